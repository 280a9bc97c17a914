"""Rules of matrix and vector products, and of the affine map of a layer.

All of them are sums of products of two operands, so one line of Einstein notation ("ij,jk->ik") says everything: the
VJP by one operand is the product of the upstream gradient with the other one, over the remaining index, and one entry
of the Jacobian is one element of the other operand. The formulas follow from the same letters.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from chainrule.rules import (
    Factor,
    Index,
    Rule,
    Sample,
    Wrt,
    at,
    derivative,
    lettered,
    number,
    reduce_to_shape,
    rule,
    sample,
)
from chainrule.rules.pattern import Pattern, aligned, real
from chainrule.rules.pattern import letters as named
from chainrule.rules.pattern import product as meeting

Samples = Callable[[], Iterable[Sample]]


def randn(*shape: int, dtype: torch.dtype | None = None, shift: int = 1) -> Tensor:
    """A sample input that wants a gradient; the same numbers each time, and others with another `shift`."""
    generator = torch.Generator().manual_seed(sum(shape) + shift)
    return torch.randn(shape, generator=generator, dtype=dtype).requires_grad_()


# How a sum of products is written ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class WeightedSum:
    """The formulas of out = sum of weights times an operand, over the indices of the operand that `out` lacks.

    The same weights say all: the sum, its derivative, and the way back, which sums over the other indices.
    """

    out: Sequence[str]
    into: Sequence[str]
    weight: str

    def terms(self, source: str) -> str:
        """The sum alone, without the name of its result."""
        over = ",".join(index for index in self.into if index not in self.out)
        weight = "" if self.weight == "1" else rf"{self.weight} \, "
        return (rf"\sum_{{{over}}} " if over else "") + weight + at(source, self.into)

    def forward(self, target: str = "out", source: str = "self") -> str:
        """The sum."""
        return f"{at(target, self.out)} = {self.terms(source)}"

    def turned(self) -> WeightedSum:
        """The transposed map."""
        return WeightedSum(self.into, self.out, self.weight)

    def back(self, target: str = "grad", source: str = "g") -> str:
        """The sum of the transposed map."""
        return self.turned().forward(target, source)

    def local(self, of: str = "out", by: str = "self") -> str:
        """The derivative."""
        return derivative(at(of, self.out), at(by, self.into), self.weight)


Sums = Callable[[Any], WeightedSum]


def weighted(sums: Sums, vjp: Callable[[Any, Tensor], Any], zeros: str, *more: Any, by: str = "self") -> Wrt:
    """The derivative of a weighted sum by the operand that it adds up."""
    return Wrt(vjp, lambda op: sums(op).local(by=by), lambda op: sums(op).back(), zeros, *more)


def in_matrices(target: str, left: tuple[str, str], right: tuple[str, str], conjugated: str = "") -> str:
    """A sum of products of two operands (name, letters) in matrix notation; a letter b counts batches.

    The operand that has the target's first letter comes first. What is summed over stands at the end of the first one,
    and at the beginning of the second one.
    """
    target, mine, others = (letters.replace("b", "") for letters in (target, left[1], right[1]))
    if mine and target and target[0] in others:
        left, mine, right, others = right, others, left, mine
    summed = set(mine) & set(others) - set(target)
    turned = {left[0]: mine[:1] in summed, right[0]: mine != "" and others[0] not in summed}
    conjugate = {name: rf"\overline{{${name}}}" if name == conjugated else f"${name}" for name in turned}
    power = {name: "^{H}" if name == conjugated else "^{T}" for name in turned}
    return r" \, ".join(f"${name}{power[name]}" if turned[name] else conjugate[name] for name in turned)


def prefix(scale: Any) -> str:
    """A scale as a factor in LaTeX; nothing where it is 1."""
    return "" if scale == 1 else rf"{number(scale)} \, "


# Products of two operands -----------------------------------------------------------------------------------------

Letters = tuple[str, str, str]  # of the operand, of the other one, of the result


def product_rule(node: str, function: Callable[..., Tensor], subscripts: str, operands: tuple[str, str]) -> Rule:
    """Register out = sum of left * right over the indices that `subscripts` ("ij,jk->ik") leaves out of the result.

    An operation with an argument `self` beside its operands (addmm) is out = beta self + alpha (left right).
    """
    inputs, result = subscripts.split("->")
    (left, right), (mine, others) = operands, inputs.split(",")
    wrt = {
        left: _operand(left, right, lambda op: (mine, others, result)),
        right: _operand(right, left, lambda op: (others, mine, result)),
    }
    if "b" in subscripts and "b" not in result:
        equation = rf"\sum_b {{${left}}}_b \, {{${right}}}_b"
    else:
        equation = in_matrices(result, (left, mine), (right, others))
    batch = r" \quad \text{(in each batch)}" if "b" in result else ""

    def statement(op: Any) -> str:
        beta = op.arguments.get("beta", 0)
        added = "" if beta == 0 else f"{prefix(beta)}$self + "
        return f"$out = {added}{prefix(_alpha(op))}{equation}{batch}".replace("+ -", "- ")

    added = "self" not in operands
    wrt = {"self": ADDED, **wrt} if added else wrt
    return rule(
        node,
        equation=statement,
        wrt=wrt,
        samples=lambda: _product_samples(function, subscripts, added),
        linear=("self", left) if added else (left,),
    )


def _operand(name: str, other: str, letters: Callable[[Any], Letters], zeros: str = "") -> Wrt:
    """The derivative by one of the two operands; the letters may depend on the call, as those of a layer do."""

    def back(op: Any, g: Tensor) -> Tensor:
        mine, others, result = letters(op)
        columns = _in_columns(getattr(op, name))  # then so is its gradient, or writing it takes half as long again
        asked = mine[::-1] if columns else mine
        gradient = torch.einsum(f"{result},{others}->{asked}", g, getattr(op, other).conj())
        return _scaled(gradient.mT if columns else gradient, _alpha(op))

    def factor(op: Any, out_index: Index, in_index: Index) -> Factor | None:
        mine, others, result = op.once(letters)
        places = dict(zip(result, out_index, strict=True))
        if any(places.setdefault(letter, place) != place for letter, place in zip(mine, in_index, strict=True)):
            return None
        return Factor(other, tuple(places[letter] for letter in others), scale=_alpha(op))

    def local(op: Any) -> str:
        mine, others, result = letters(op)
        return WeightedSum(result, mine, prefix(_alpha(op)) + at(other, others)).local(by=name)

    def statement(op: Any) -> str:
        mine, others, result = letters(op)
        conjugated = other if getattr(op, other).is_complex() else ""
        if len(set(result) & set(others) - set("b")) > 1:  # no product of matrices sums over two axes
            factor = at(other, others)
            return WeightedSum(result, mine, rf"\overline{{{factor}}}" if conjugated else factor).back()
        return prefix(_alpha(op)) + in_matrices(mine, ("g", result), (other, others), conjugated)

    def pattern(op: Any) -> Pattern | None:
        (mine, others, result), operand, factor = letters(op), getattr(op, name), getattr(op, other)
        if not real(op.out, operand, factor):
            return None
        rows, columns = ("".join(sorted(set(a) - set(b), key=a.index)) for a, b in ((result, mine), (mine, result)))
        block = "" if _alpha(op) != 1 else _block(other, others, rows, columns)
        return meeting(named(result, op.out.shape), named(mine, operand.shape), block)

    if not zeros:
        mine, _, result = letters(None)
        if shared := [letter for letter in mine if letter in result]:
            zeros = (
                f"output element ({', '.join(result)}) is made of the elements ({', '.join(mine)}) with "
                f"the same {' and '.join(shared)}; its derivative by all others is zero"
            )
    return Wrt(back, local, statement, zeros, factor, pattern)


def _block(name: str, letters: str, rows: str, columns: str) -> str:
    """What each block of the Jacobian is, in LaTeX: the other operand, where it is the same for all blocks."""
    if letters == rows + columns and rows:
        return f"${name}"
    return f"${name}^{{T}}" if letters == columns + rows else ""


def _in_columns(operand: Tensor) -> bool:
    """Whether a matrix lies in memory column by column, as the weight of a layer does in its product."""
    return operand.dim() == 2 and not operand.is_contiguous() and operand.mT.is_contiguous()


def _alpha(op: Any) -> Any:
    return op.arguments.get("alpha", 1)


def _scaled(gradient: Tensor, scale: Any) -> Tensor:
    return gradient if scale == 1 else gradient * (scale.conjugate() if isinstance(scale, complex) else scale)


def _added_factor(op: Any, out_index: Index, in_index: Index) -> Factor | None:
    aligned = zip(op.self.shape, out_index[len(out_index) - op.self.dim() :], in_index, strict=True)
    return Factor(latex="1", scale=op.beta) if all(size == 1 or i == j for size, i, j in aligned) else None


ADDED = Wrt(
    # beta = 0 means that `self` is not even read, so its gradient is 0 also where the upstream gradient is not finite
    vjp=lambda op, g: torch.zeros_like(g) if op.beta == 0 else _scaled(g, op.beta),
    local=lambda op: number(op.beta),
    product=lambda op: "0" if op.beta == 0 else prefix(op.beta) + "$g",
    zeros="each output element has one element of this argument added to it",
    factor=_added_factor,
    pattern=lambda op: aligned(op.out.shape, op.self.shape) if real(op.out, op.self) and op.beta != 0 else None,
)


complex_randn = partial(randn, dtype=torch.complex128)


def _product_samples(function: Callable[..., Tensor], subscripts: str, added: bool) -> Iterator[Sample]:
    """A product on operands of several sizes; where something is added, also with that broadcast, and with scales."""
    *inputs, result = subscripts.replace("->", ",").split(",")

    def operands(make: Callable[..., Tensor] = randn, **changed: int) -> list[Tensor]:
        sizes = {"b": 2, "i": 2, "j": 3, "k": 4, **changed}
        return [make(*(sizes[each] for each in letters)) for letters in [*[result] * added, *inputs]]

    whole, *factors = operands()
    if added:
        yield sample(function, whole, *factors, beta=2, alpha=0.5, note="scaled")
        yield sample(function, randn(whole.shape[-1]), *factors, beta=0.5, alpha=-2.0, note="broadcast")
        yield sample(function, randn(*whole.shape[:-1], 1), *factors, note="a column")
        yield sample(function, randn(), *factors, note="0-dim self")
        yield sample(function, whole, *factors, beta=0, note="beta 0")
    yield sample(function, *operands())
    yield sample(function, *operands(b=1, i=1, j=1, k=1), note="size 1")
    yield sample(function, *operands(i=0), note="no rows")
    yield sample(function, *operands(j=0), note="nothing to sum")
    yield sample(function, *operands(b=0), note="no batch")
    yield sample(function, *operands(complex_randn), note="complex")
    if function is torch.bmm:
        yield sample(torch.matmul, randn(2, 1, 3, 4), randn(3, 4, 2), note="matmul with broadcast batches")


product_rule("MmBackward0", torch.mm, "ij,jk->ik", ("self", "mat2"))
product_rule("BmmBackward0", torch.bmm, "bij,bjk->bik", ("self", "mat2"))
product_rule("MvBackward0", torch.mv, "ij,j->i", ("self", "vec"))
product_rule("DotBackward0", torch.dot, "i,i->", ("self", "tensor"))
product_rule("AddmmBackward0", torch.addmm, "ij,jk->ik", ("mat1", "mat2"))
product_rule("AddmvBackward0", torch.addmv, "ij,j->i", ("mat", "vec"))
product_rule("AddrBackward0", torch.addr, "i,j->ij", ("vec1", "vec2"))
product_rule("BaddbmmBackward0", torch.baddbmm, "bij,bjk->bik", ("batch1", "batch2"))
product_rule("AddbmmBackward0", torch.addbmm, "bij,bjk->ik", ("batch1", "batch2"))

# The conjugate stands on the first operand, so its own gradient is that of a function of the conjugate.
vdot = rule(
    "VdotBackward0",
    linear=("other",),
    equation=r"$out = $self^{H} $other",
    wrt={
        "self": Wrt(
            lambda op, g: g.conj() * op.other,
            lambda op: derivative(
                "$out", r"\overline{$self}_{i}" if op.self.is_complex() else at("self", "i"), "{$other}_{i}"
            ),
            r"\overline{$g} \, $other",
        ),
        "other": Wrt(
            lambda op, g: g * op.self, derivative("$out", at("other", "i"), r"\overline{{$self}_{i}}"), r"$g \, $self"
        ),
    },
    samples=lambda: [
        sample(torch.vdot, randn(3), randn(3) + 1),
        sample(torch.vdot, complex_randn(3), complex_randn(3), note="complex"),
    ],
)

ALONG = r" \quad \text{(along dim $dim)}"


NEXT = (r"(i + 1) \bmod 3", r"(i + 2) \bmod 3")


def _turned(argument: str, other: str, signs: tuple[str, str]) -> str:
    """The derivative of one factor of a vector product: the other one, whose place comes after or before."""
    ways = zip(NEXT, NEXT[::-1], signs, strict=True)
    each = (derivative(at("out", "i"), at(argument, [own]), sign + at(other, [their])) for own, their, sign in ways)
    return r", \quad ".join(each) + ALONG


linalg_cross = rule(
    "LinalgCrossBackward0",
    linear=("self",),
    equation=r"$out = $self \times $other" + ALONG,
    wrt={
        "self": Wrt(
            lambda op, g: torch.linalg.cross(op.other.conj(), g, dim=op.dim),
            _turned("self", "other", ("", "-")),
            r"$other \times $g" + ALONG,
            "a x a is zero",
        ),
        "other": Wrt(
            lambda op, g: torch.linalg.cross(g, op.self.conj(), dim=op.dim),
            _turned("other", "self", ("-", "")),
            r"$g \times $self" + ALONG,
            "a x a is zero",
        ),
    },
    samples=lambda: [
        sample(torch.linalg.cross, randn(2, 3), randn(2, 3) + 1),
        sample(torch.linalg.cross, randn(3, 2), randn(1, 3, 2)[0] + 2, dim=0),
        sample(torch.linalg.cross, randn(2, 3), randn(1, 3), note="broadcast"),
    ],
    source="derivatives.yaml: linalg_cross. g . (a x b) = a . (b x g) = b . (g x a).",
)

# A layer: the samples (n; m, n where there are two batch axes), out_features o, in_features i. -----------------------


def _layer(op: Any) -> Letters:
    """The letters of input, weight and output; a one-dimensional weight has no axis of features."""
    samples, out = "bcdefghjklmn"[13 - op.input.dim() :], "o" * (op.weight.dim() - 1)
    return f"{samples}i", f"{out}i", samples + out


def _bias_local(op: Any) -> str:
    _, weight, out = _layer(op)
    return derivative(at("out", out), at("bias", weight[: op.bias.dim() and -1]), "1")


def _bias_product(op: Any) -> str:
    samples, weight, out = _layer(op)
    over = ",".join(samples[:-1])
    total = rf"\sum_{{{over}}} " if over else ""
    return f"{at('grad', weight[: op.bias.dim() and -1])} = {total}{at('g', out)}"


linear = rule(
    "LinearBackward0",
    calls=("linear",),
    linear=("input", "bias"),
    equation=lambda op: r"$out = $input \, $weight^{T}" + ("" if op.bias is None else " + $bias"),
    wrt={
        "input": _operand(
            "input", "weight", _layer, "each sample has its own row: output row n is made of input row n alone"
        ),
        "weight": _operand(
            "weight",
            "input",
            lambda op: (_layer(op)[1], _layer(op)[0], _layer(op)[2]),
            "each neuron has its own row of weights: output column o is made with row o of the weight alone",
        ),
        "bias": Wrt(
            lambda op, g: reduce_to_shape(g, tuple(op.bias.shape))[0],
            _bias_local,
            _bias_product,
            "each neuron has its own bias: output column o has bias o alone added to it, in every sample",
            lambda op, out, into: Factor(latex="1") if into in (out[len(out) - len(into) :], ()) else None,
            lambda op: aligned(op.out.shape, op.bias.shape) if real(op.out, op.input, op.weight, op.bias) else None,
        ),
    },
    samples=lambda: [
        sample(F.linear, randn(2, 3), randn(4, 3), randn(4)),
        sample(F.linear, randn(2, 3), randn(4, 3), note="no bias"),
        sample(F.linear, randn(3), randn(4, 3), randn(4), note="one sample without a batch axis"),
        sample(F.linear, randn(2, 5, 3), randn(4, 3), randn(4), note="two batch axes"),
        sample(F.linear, randn(0, 3), randn(4, 3), randn(4), note="empty batch"),
        sample(F.linear, randn(2, 1), randn(1, 1), randn(1), note="size 1"),
        sample(F.linear, randn(2, 3), randn(3), note="a weight of one dimension"),
        sample(F.linear, complex_randn(2, 2, 3), complex_randn(4, 3), complex_randn(4), note="complex, two batch axes"),
    ],
    source=(
        "derivatives.yaml: linear. z_no = sum_i x_ni w_oi + b_o, so d z_no / d w_oi = x_ni, d z_no / d x_ni = w_oi, "
        "d z_no / d b_o = 1."
    ),
)


def _groups(op: Any) -> list[tuple[Any, Any, Any]]:
    """The pieces of `self`, `mat2` and the result that make one product each.

    Where an operand has no axis for the groups, they lie one behind the other along the axis that is not shared, and
    end at `offs`: rows of `self`, columns of `mat2`, or, where neither has one, the axis that is summed over.
    """
    if not (flat := _flat(op)):
        return [(e, e, e) for e in range(len(op.self))]
    rows = [slice(*ends) for ends in itertools.pairwise([0, *(int(each) for each in op.offs)])]
    columns = [(slice(None), each) for each in rows]
    experts = range(len(rows))
    pieces: dict[str, tuple[Sequence[Any], Sequence[Any], Sequence[Any]]]
    pieces = {"i": (rows, experts, rows), "j": (columns, rows, experts), "k": (experts, columns, columns)}
    return list(zip(*pieces[flat], strict=True))


def _grouped_told(template: str, op: Any) -> str:
    """A formula with `@o`, `@l`, `@r` for the indices of result and operands, `@so`, ... for the letter summed over.

    Where an operand has no axis e for the groups, they lie along i, j, or k, and the group depends on the place there.
    In `@O`, `@L`, `@R`, those of a left side, the group is a letter of its own.
    """
    flat = _flat(op)
    group = rf"\operatorname{{group}}({flat})"
    indices = {"o": "e,i,k", "l": "e,i,j", "r": "e,j,k"}
    if flat:
        indices = {name: each[2:] if flat in each else group + each[1:] for name, each in indices.items()}
    own = {name.upper(): each.replace(group, "e") for name, each in indices.items()}
    sums = {f"s{n}": f"{x}: {group} = e" if x == flat else x for n, x in zip("olr", "jki", strict=True)}
    return lettered(template, {**indices, **own, **sums})


def _flat(op: Any) -> str:
    """The letter of the axis along which the groups lie; "" where each operand has an axis for them."""
    flat = (op.self.dim() == 2, op.mat2.dim() == 2)
    return {(True, True): "j", (True, False): "i", (False, True): "k"}.get(flat, "")


def _experts(left: tuple[int, ...], right: tuple[int, ...], *ends: int) -> Sample:
    """A sample whose groups end at `ends`; PyTorch wants 16 bytes to a row, and float32."""
    offs = torch.tensor(ends, dtype=torch.int32) if ends else None
    operands = randn(*left, dtype=torch.float32), randn(*right, dtype=torch.float32)
    return sample(lambda a, b: F.grouped_mm(a, b, offs=offs), *operands, note=f"{left} by {right}")


def _grouped_wrt(argument: str, other: str, mine: str, their: str) -> Wrt:
    """The derivative by an operand, with the letters of its indices and of those of the other one."""

    def vjp(op: Any, g: Tensor) -> Tensor:
        home = torch.zeros_like(op.arguments[argument], dtype=g.dtype)
        for left, right, out in _groups(op):
            if argument == "self":
                home[left] = g[out] @ op.mat2[right].mH
            else:
                home[right] = op.self[left].mH @ g[out]
        return home

    factor = rf"{{${other}}}_{{@{their}}}"
    return Wrt(
        vjp,
        partial(_grouped_told, derivative("{$out}_{@o}", rf"{{${argument}}}_{{@{mine}}}", factor)),
        partial(_grouped_told, rf"{{$grad}}_{{@{mine.upper()}}} = \sum_{{@s{mine}}} {{$g}}_{{@o}} \, {factor}"),
        "a group is multiplied with its own matrix alone",
    )


grouped_mm = rule(
    "GroupedMmBackward0",
    equation=partial(_grouped_told, r"{$out}_{@O} = \sum_{@so} {$self}_{@l} \, {$mat2}_{@r}"),
    where=lambda op: (
        rf"\operatorname{{group}}({_flat(op)}) = \sum_{{m}} [{{$offs}}_{{m}} \le {_flat(op)}]" if _flat(op) else ""
    ),
    wrt={"self": _grouped_wrt("self", "mat2", "l", "r"), "mat2": _grouped_wrt("mat2", "self", "r", "l")},
    constants={"offs": "not differentiable"},
    linear=("self",),
    samples=lambda: [
        _experts((6, 4), (3, 4, 8), 2, 3, 6),
        _experts((6, 4), (3, 4, 8), 2, 2, 6),
        _experts((3, 4, 8), (8, 8), 4, 4, 8),
        _experts((4, 8), (8, 4), 4, 8),
        _experts((2, 4, 8), (2, 8, 4)),
    ],
    accepts=lambda op: op.bias is None,
    source="derivatives.yaml: _grouped_mm. One product for each expert of a mixture, over the tokens sent to it.",
)
