"""Rules of matrix and vector products, and of the affine map of a layer.

All of them are sums of products of two operands, so one line of Einstein notation ("ij,jk->ik") says everything: the
VJP by one operand is the product of the upstream gradient with the other one, over the remaining index, and one entry
of the Jacobian is one element of the other operand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from chainrule.rules import Factor, Rule, Sample, Wrt, at, derivative, lettered, number, reduce_to_shape, rule, sample
from chainrule.rules.pattern import Pattern, aligned, real
from chainrule.rules.pattern import letters as named
from chainrule.rules.pattern import product as meeting

Index = tuple[int, ...]


def randn(*shape: int, dtype: torch.dtype | None = None, shift: int = 1) -> Tensor:
    """A sample input that wants a gradient; the same numbers each time, and others with another `shift`."""
    generator = torch.Generator().manual_seed(sum(shape) + shift)
    return torch.randn(shape, generator=generator, dtype=dtype).requires_grad_()


Letters = tuple[str, str, str]  # of the operand, of the other one, of the result


def product_rule(
    node: str,
    subscripts: str,
    equation: str,
    products: tuple[str, str],
    samples: Callable[[], Iterable[Sample]],
    operands: tuple[str, str] = ("self", "mat2"),
) -> Rule:
    """Register out = sum of left * right over the indices that `subscripts` ("ij,jk->ik") leaves out of the result.

    An operation with an argument `self` beside its operands (addmm) is out = beta self + alpha (left right).
    """
    inputs, result = subscripts.split("->")
    (left, right), (mine, others) = operands, inputs.split(",")
    wrt = {
        left: _operand(left, right, (mine, others, result), products[0]),
        right: _operand(right, left, (others, mine, result), products[1]),
    }
    if "self" not in operands:
        wrt = {"self": ADDED, **wrt}
    return rule(node, equation=_with_scales(f"$out = {equation}"), wrt=wrt, samples=samples)


def _operand(
    name: str,
    other: str,
    subscripts: Letters | Callable[[Any], Letters],
    product: str | Callable[[Any], str],
    vjp: Callable[[Any, Tensor], Tensor] | None = None,
    zeros: str = "",
) -> Wrt:
    """The derivative by one of the two operands; the letters may depend on the call, as those of a layer do."""

    def letters(op: Any) -> Letters:
        return subscripts(op) if callable(subscripts) else subscripts

    def back(op: Any, g: Tensor) -> Tensor:
        mine, others, result = letters(op)
        columns = _in_columns(getattr(op, name))  # then so is its gradient, or writing it takes half as long again
        asked = mine[::-1] if columns else mine
        gradient = torch.einsum(f"{result},{others}->{asked}", g, getattr(op, other).conj())
        gradient = gradient.mT if columns else gradient
        return _scaled(gradient, _scale(op, "alpha"))

    def factor(op: Any, out_index: Index, in_index: Index) -> Factor | None:
        mine, others, result = letters(op)
        places = dict(zip(result, out_index, strict=True))
        if any(places.setdefault(letter, place) != place for letter, place in zip(mine, in_index, strict=True)):
            return None
        return Factor(other, tuple(places[letter] for letter in others), scale=_scale(op, "alpha"))

    def local(op: Any) -> str:
        mine, others, result = letters(op)
        return derivative(at("out", result), at(name, mine), prefix(_scale(op, "alpha")) + at(other, others))

    def told(op: Any) -> str:
        text = product(op) if callable(product) else product
        if getattr(op, other).is_complex():
            text = (
                text.replace("^{T}", "^{H}") if "^{T}" in text else text.replace(f"${other}", rf"\overline{{${other}}}")
            )
        return prefix(_scale(op, "alpha")) + text

    def pattern(op: Any) -> Pattern | None:
        (mine, others, result), operand, factor = letters(op), getattr(op, name), getattr(op, other)
        if not real(op.out, operand, factor):
            return None
        rows, columns = ("".join(sorted(set(a) - set(b), key=a.index)) for a, b in ((result, mine), (mine, result)))
        block = "" if _scale(op, "alpha") != 1 else _block(other, others, rows, columns)
        return meeting(named(result, op.out.shape), named(mine, operand.shape), block)

    if not callable(subscripts) and (shared := [letter for letter in subscripts[0] if letter in subscripts[2]]):
        zeros = (
            f"output element ({', '.join(subscripts[2])}) is made of the elements ({', '.join(subscripts[0])}) with "
            f"the same {' and '.join(shared)}; its derivative by all others is zero"
        )
    return Wrt(vjp or back, local, told, zeros, factor, pattern)


def _block(name: str, letters: str, rows: str, columns: str) -> str:
    """What each block of the Jacobian is, in LaTeX: the other operand, where it is the same for all blocks."""
    if letters == rows + columns and rows:
        return f"${name}"
    return f"${name}^{{T}}" if letters == columns + rows else ""


def _in_columns(operand: Tensor) -> bool:
    """Whether a matrix lies in memory column by column, as the weight of a layer does in its product."""
    return operand.dim() == 2 and not operand.is_contiguous() and operand.mT.is_contiguous()


def _scale(op: Any, name: str) -> Any:
    return op.arguments.get(name, 1)


def _scaled(gradient: Tensor, scale: Any) -> Tensor:
    return gradient if scale == 1 else gradient * (scale.conjugate() if isinstance(scale, complex) else scale)


def prefix(scale: Any) -> str:
    """A scale as a factor in LaTeX; nothing where it is 1."""
    return "" if scale == 1 else rf"{number(scale)} \, "


def _with_scales(equation: str) -> Callable[[Any], str]:
    def filled(op: Any) -> str:
        beta, alpha = (_scale(op, name) for name in ("beta", "alpha"))
        text = equation.replace("BETA $self + ", "") if beta == 0 else equation.replace("BETA ", prefix(beta))
        return text.replace("ALPHA ", prefix(alpha)).replace("+ -", "- ")

    return filled


def _added_factor(op: Any, out_index: Index, in_index: Index) -> Factor | None:
    sizes = op.self.shape
    aligned = out_index[len(out_index) - len(sizes) :]
    same = all(size == 1 or i == j for size, i, j in zip(sizes, aligned, in_index, strict=True))
    return Factor(latex="1", scale=_scale(op, "beta")) if same else None


ADDED = Wrt(
    # beta = 0 means that `self` is not even read, so its gradient is 0 also where the upstream gradient is not finite
    vjp=lambda op, g: torch.zeros_like(g) if op.beta == 0 else _scaled(g, op.beta),
    local=lambda op: number(op.beta),
    product=lambda op: "0" if op.beta == 0 else prefix(op.beta) + "$g",
    zeros="each output element has one element of this argument added to it",
    factor=_added_factor,
    pattern=lambda op: aligned(op.out.shape, op.self.shape) if real(op.out, op.self) and op.beta != 0 else None,
)

mm = product_rule(
    "MmBackward0",
    "ij,jk->ik",
    r"$self \, $mat2",
    (r"$g \, $mat2^{T}", r"$self^{T} \, $g"),
    samples=lambda: [
        sample(torch.mm, randn(2, 3), randn(3, 4)),
        sample(torch.mm, randn(1, 1), randn(1, 1), note="size 1"),
        sample(torch.mm, randn(0, 3), randn(3, 2), note="no rows"),
        sample(torch.mm, randn(2, 0), randn(0, 3), note="nothing to sum"),
        sample(torch.mm, randn(2, 3, dtype=torch.complex128), randn(3, 2, dtype=torch.complex128), note="complex"),
    ],
)

bmm = product_rule(
    "BmmBackward0",
    "bij,bjk->bik",
    r"$self \, $mat2 \quad \text{(in each batch)}",
    (r"$g \, $mat2^{T}", r"$self^{T} \, $g"),
    samples=lambda: [
        sample(torch.bmm, randn(2, 3, 4), randn(2, 4, 2)),
        sample(torch.bmm, randn(0, 3, 4), randn(0, 4, 2), note="no batch"),
        sample(torch.matmul, randn(2, 1, 3, 4), randn(3, 4, 2), note="matmul with broadcast batches"),
    ],
)

mv = product_rule(
    "MvBackward0",
    "ij,j->i",
    r"$self \, $vec",
    (r"$g \, $vec^{T}", r"$self^{T} \, $g"),
    operands=("self", "vec"),
    samples=lambda: [
        sample(torch.mv, randn(2, 3), randn(3)),
        sample(torch.mv, randn(2, 0), randn(0), note="nothing to sum"),
        sample(torch.mv, randn(2, 3, dtype=torch.complex128), randn(3, dtype=torch.complex128), note="complex"),
    ],
)

dot = product_rule(
    "DotBackward0",
    "i,i->",
    r"$self^{T} $tensor",
    (r"$g \, $tensor", r"$g \, $self"),
    operands=("self", "tensor"),
    samples=lambda: [
        sample(torch.dot, randn(3), randn(3) + 1),
        sample(torch.dot, randn(0), randn(0), note="empty"),
        sample(torch.dot, randn(3, dtype=torch.complex128), randn(3, dtype=torch.complex128), note="complex"),
    ],
)

addmm = product_rule(
    "AddmmBackward0",
    "ij,jk->ik",
    r"BETA $self + ALPHA $mat1 \, $mat2",
    (r"$g \, $mat2^{T}", r"$mat1^{T} \, $g"),
    operands=("mat1", "mat2"),
    samples=lambda: [
        sample(torch.addmm, randn(4), randn(2, 3), randn(3, 4), note="broadcast bias"),
        sample(torch.addmm, randn(2, 1), randn(2, 3), randn(3, 4), beta=0.5, alpha=-2.0, note="scaled"),
        sample(torch.addmm, randn(), randn(2, 3), randn(3, 4), note="0-dim self"),
        sample(torch.addmm, randn(2), randn(0, 3), randn(3, 2), note="no rows"),
        sample(torch.addmm, randn(4), randn(2, 3), randn(3, 4), beta=0, note="beta 0"),
    ],
)

addmv = product_rule(
    "AddmvBackward0",
    "ij,j->i",
    r"BETA $self + ALPHA $mat \, $vec",
    (r"$g \, $vec^{T}", r"$mat^{T} \, $g"),
    operands=("mat", "vec"),
    samples=lambda: [
        sample(torch.addmv, randn(2), randn(2, 3), randn(3), beta=2, alpha=0.5),
        sample(torch.addmv, randn(1), randn(2, 3), randn(3), note="broadcast"),
    ],
)

addr = product_rule(
    "AddrBackward0",
    "i,j->ij",
    r"BETA $self + ALPHA $vec1 \, $vec2^{T}",
    (r"$g \, $vec2", r"$g^{T} \, $vec1"),
    operands=("vec1", "vec2"),
    samples=lambda: [
        sample(torch.addr, randn(2, 3), randn(2), randn(3), beta=2, alpha=0.5),
        sample(torch.addr, randn(3), randn(2), randn(3), note="broadcast"),
    ],
)

baddbmm = product_rule(
    "BaddbmmBackward0",
    "bij,bjk->bik",
    r"BETA $self + ALPHA $batch1 \, $batch2 \quad \text{(in each batch)}",
    (r"$g \, $batch2^{T}", r"$batch1^{T} \, $g"),
    operands=("batch1", "batch2"),
    samples=lambda: [
        sample(torch.baddbmm, randn(2, 3, 2), randn(2, 3, 4), randn(2, 4, 2), beta=2, alpha=0.5),
        sample(torch.baddbmm, randn(2, 1, 2), randn(2, 3, 4), randn(2, 4, 2), note="broadcast"),
    ],
)

addbmm = product_rule(
    "AddbmmBackward0",
    "bij,bjk->ik",
    r"BETA $self + ALPHA \sum_b {$batch1}_b \, {$batch2}_b",
    (r"$g \, $batch2^{T}", r"$batch1^{T} \, $g"),
    operands=("batch1", "batch2"),
    samples=lambda: [
        sample(torch.addbmm, randn(3, 2), randn(2, 3, 4), randn(2, 4, 2), beta=2, alpha=0.5),
        sample(torch.addbmm, randn(2), randn(2, 3, 4), randn(2, 4, 2), note="broadcast"),
    ],
)

# The conjugate stands on the first operand, so its own gradient is that of a function of the conjugate.
vdot = rule(
    "VdotBackward0",
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
        sample(torch.vdot, randn(3, dtype=torch.complex128), randn(3, dtype=torch.complex128), note="complex"),
    ],
)


def _turned(argument: str, other: str, sign: int) -> Callable[[Any], str]:
    """The derivative of one factor of a vector product: the other one, whose place comes after or before."""
    plus, minus = (at(other, [rf"(i + {step}) \bmod 3"]) for step in (2, 1))

    def local(op: Any) -> str:
        after, before = (
            derivative(at("out", "i"), at(argument, [rf"(i + {step}) \bmod 3"]), value)
            for step, value in ((1, plus if sign > 0 else f"-{plus}"), (2, f"-{minus}" if sign > 0 else minus))
        )
        return rf"{after}, \quad {before}" + ALONG

    return local


ALONG = r" \quad \text{(along dim $dim)}"

linalg_cross = rule(
    "LinalgCrossBackward0",
    equation=r"$out = $self \times $other" + ALONG,
    wrt={
        "self": Wrt(
            lambda op, g: _cross(op.other.conj(), g, op.dim),
            _turned("self", "other", 1),
            r"$other \times $g" + ALONG,
            "a x a is zero",
        ),
        "other": Wrt(
            lambda op, g: _cross(g, op.self.conj(), op.dim),
            _turned("other", "self", -1),
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


def _cross(a: Tensor, b: Tensor, dim: int) -> Tensor:
    """The vector product along `dim`, from its definition: (a x b)_i = a_{i+1} b_{i+2} - a_{i+2} b_{i+1}."""
    a, b = torch.broadcast_tensors(a, b)
    return a.roll(-1, dim) * b.roll(-2, dim) - a.roll(-2, dim) * b.roll(-1, dim)


# A layer: the samples (n; m, n where there are two batch axes), out_features o, in_features i. -----------------------


def _layer(op: Any) -> tuple[str, str, str]:
    """The letters of input, weight and output; a one-dimensional weight has no axis of features."""
    samples, out = "bcdefghjklmn"[13 - op.input.dim() :], "o" * (op.weight.dim() - 1)
    return f"{samples}i", f"{out}i", samples + out


def _out_features(op: Any) -> int:
    return int(op.weight.shape[0]) if op.weight.dim() == 2 else 1


def _linear_input(op: Any, g: Tensor) -> Tensor:
    weight = op.weight.reshape(_out_features(op), op.weight.shape[-1])
    gradient: Tensor = g.reshape(*op.input.shape[:-1], _out_features(op)) @ weight.conj()
    return gradient.reshape(op.input.shape)


def _linear_weight(op: Any, g: Tensor) -> Tensor:
    samples = op.input.reshape(op.input.shape[:-1].numel(), op.input.shape[-1])
    gradient: Tensor = g.reshape(samples.shape[0], _out_features(op)).mT @ samples.conj()
    return gradient.reshape(op.weight.shape)


def _weight_product(op: Any) -> str:
    into, weight, out = _layer(op)
    if len(into) == 2:
        return r"$g^{T} \, $input" if not op.input.is_complex() else r"$g^{T} \, \overline{$input}"
    sums = rf"\sum_{{{','.join(into[:-1])}}} " if into[:-1] else ""
    return rf"{at('grad', weight)} = {sums}{at('g', out)} \, {at('input', into)}"


def _bias_product(op: Any) -> str:
    samples = _layer(op)[0][:-1]
    return rf"\sum_{{{','.join(samples)}}} {at('g', samples)}" if samples else "$g"


def _bias_features(op: Any) -> str:
    """The letters of the bias: a single number is added to all."""
    return "o" if op.bias.numel() == _out_features(op) and op.bias.dim() == op.weight.dim() - 1 == 1 else ""


def _bias_pattern(op: Any) -> Pattern | None:
    if not real(op.out, op.input, op.weight, op.bias):
        return None
    letters = _bias_features(op)
    return (
        meeting(named(_layer(op)[2], op.out.shape), named(letters, op.bias.shape))
        if letters
        else aligned(op.out.shape, op.bias.shape)
    )


linear = rule(
    "LinearBackward0",
    calls=("linear",),
    equation=lambda op: r"$out = $input \, $weight^{T}" + ("" if op.bias is None else " + $bias"),
    wrt={
        "input": _operand(
            "input",
            "weight",
            _layer,
            lambda op: r"$g \, $weight" if op.weight.dim() == 2 else r"$g \, $weight^{T}",
            _linear_input,
            "each sample has its own row: output row n is made of input row n alone",
        ),
        "weight": _operand(
            "weight",
            "input",
            lambda op: (_layer(op)[1], _layer(op)[0], _layer(op)[2]),
            _weight_product,
            _linear_weight,
            "each neuron has its own row of weights: output column o is made with row o of the weight alone",
        ),
        "bias": Wrt(
            lambda op, g: reduce_to_shape(g, tuple(op.bias.shape))[0],
            "1",
            _bias_product,
            "each neuron has its own bias: output column o has bias o alone added to it, in every sample",
            lambda op, out, into: Factor(latex="1") if into in (out[len(out) - len(into) :], ()) else None,
            _bias_pattern,
        ),
    },
    samples=lambda: [
        sample(torch.nn.functional.linear, randn(2, 3), randn(4, 3), randn(4)),
        sample(torch.nn.functional.linear, randn(2, 3), randn(4, 3), note="no bias"),
        sample(torch.nn.functional.linear, randn(3), randn(4, 3), randn(4), note="one sample without a batch axis"),
        sample(torch.nn.functional.linear, randn(2, 5, 3), randn(4, 3), randn(4), note="two batch axes"),
        sample(torch.nn.functional.linear, randn(0, 3), randn(4, 3), randn(4), note="empty batch"),
        sample(torch.nn.functional.linear, randn(2, 1), randn(1, 1), randn(1), note="size 1"),
        sample(torch.nn.functional.linear, randn(2, 3), randn(3), note="a weight of one dimension"),
    ],
    source=(
        "derivatives.yaml: linear. z_no = sum_i x_ni w_oi + b_o, so d z_no / d w_oi = x_ni, d z_no / d x_ni = w_oi, "
        "d z_no / d b_o = 1."
    ),
)


def _groups(op: Any) -> Iterator[tuple[Any, Any, Any]]:
    """The pieces of `self`, `mat2` and the result that make one product each.

    Where an operand has no axis for the groups, they lie one behind the other along the axis that is not shared, and
    end at `offs`: rows of `self`, columns of `mat2`, or, where neither has one, the axis that is summed over.
    """
    flat, every = (op.self.dim() == 2, op.mat2.dim() == 2), slice(None)
    if op.offs is None:
        yield from ((e, e, e) for e in range(len(op.self)))
        return
    start = 0
    for e, end in enumerate(op.offs.tolist()):
        group, start = slice(start, end), end
        if flat == (True, True):
            yield (every, group), group, e
        elif flat[0]:
            yield group, e, group
        else:
            yield e, (every, group), (every, group)


def _grouped(argument: str) -> Callable[[Any, Tensor], Tensor]:
    """g times the other operand's piece, for each group, in the place of this operand's."""

    def vjp(op: Any, g: Tensor) -> Tensor:
        home = torch.zeros_like(op.arguments[argument], dtype=g.dtype)
        for left, right, out in _groups(op):
            if argument == "self":
                home[left] = g[out] @ op.mat2[right].mH
            else:
                home[right] = op.self[left].mH @ g[out]
        return home

    return vjp


def _grouped_told(template: str) -> Callable[[Any], str]:
    """A formula with `@o`, `@l`, `@r` for the indices of result and operands, `@so`, ... for the letter summed over.

    Where an operand has no axis e for the groups, they lie along i, j, or k, and the group depends on the place there.
    In `@O`, `@L`, `@R`, those of a left side, the group is a letter of its own.
    """

    def formula(op: Any) -> str:
        flat = _flat(op)
        group = rf"\operatorname{{group}}({flat})"
        indices = {"o": "e,i,k", "l": "e,i,j", "r": "e,j,k"}
        if flat:
            indices = {name: each[2:] if flat in each else group + each[1:] for name, each in indices.items()}
        own = {name.upper(): each.replace(group, "e") for name, each in indices.items()}
        sums = {f"s{n}": f"{x}: {group} = e" if x == flat else x for n, x in zip("olr", "jki", strict=True)}
        return lettered(template, {**indices, **own, **sums})

    return formula


def _flat(op: Any) -> str:
    """The letter of the axis along which the groups lie; "" where each operand has an axis for them."""
    flat = (op.self.dim() == 2, op.mat2.dim() == 2)
    return {(True, True): "j", (True, False): "i", (False, True): "k"}.get(flat, "")


def _experts(left: tuple[int, ...], right: tuple[int, ...], *ends: int) -> Sample:
    """A sample whose groups end at `ends`; PyTorch wants 16 bytes to a row, and float32."""
    offs = torch.tensor(ends, dtype=torch.int32) if ends else None
    operands = randn(*left, dtype=torch.float32), randn(*right, dtype=torch.float32)
    return sample(lambda a, b: torch.nn.functional.grouped_mm(a, b, offs=offs), *operands, note=f"{left} by {right}")


IN_GROUPS = "a group is multiplied with its own matrix alone"

grouped_mm = rule(
    "GroupedMmBackward0",
    equation=_grouped_told(r"{$out}_{@O} = \sum_{@so} {$self}_{@l} \, {$mat2}_{@r}"),
    where=lambda op: (
        rf"\operatorname{{group}}({_flat(op)}) = \sum_{{m}} [{{$offs}}_{{m}} \le {_flat(op)}]" if _flat(op) else ""
    ),
    wrt={
        "self": Wrt(
            _grouped("self"),
            _grouped_told(derivative("{$out}_{@o}", "{$self}_{@l}", "{$mat2}_{@r}")),
            _grouped_told(r"{$grad}_{@L} = \sum_{@sl} {$g}_{@o} \, {$mat2}_{@r}"),
            IN_GROUPS,
        ),
        "mat2": Wrt(
            _grouped("mat2"),
            _grouped_told(derivative("{$out}_{@o}", "{$mat2}_{@r}", "{$self}_{@l}")),
            _grouped_told(r"{$grad}_{@R} = \sum_{@sr} {$self}_{@l} \, {$g}_{@o}"),
            IN_GROUPS,
        ),
    },
    constants={"offs": "not differentiable"},
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
