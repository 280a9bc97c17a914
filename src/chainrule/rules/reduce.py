"""Rules of reductions along axes (sum, mean, extremes, norms, spread) and of running sums and products.

All reductions share the way back: the upstream gradient gets its reduced axes again (size 1) and meets every element
that was reduced into it; only the factor at each element differs.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from chainrule.rules import Factor, Kink, Rule, Sample, Wrt, derivative, number, parenthesise, pattern, rule, sample
from chainrule.rules import at as element
from chainrule.rules.element import Element, Elements, call, exps, largest, let, of, product, smallest
from chainrule.rules.element import mean as mean_of
from chainrule.rules.element import total as total_of
from chainrule.rules.index_notation import JOINED, OTHERS, filled, fitted, letters, places, where
from chainrule.rules.pattern import Pattern, real

Index = tuple[int, ...]
Template = str | Callable[[Any], str]
Entry = Callable[[Any, Index, Index], Factor | None]

OWN_SLICE = "an output element depends on the elements that were reduced into it, and on no others"
TIES = "the extreme elements share the gradient evenly"


def x(*rows: Any, dtype: torch.dtype | None = None) -> Tensor:
    """A sample input that wants a gradient: the given rows."""
    return torch.tensor(rows or ((1.5, -2.0, 0.5), (3.0, 0.25, -1.0)), dtype=dtype).requires_grad_()


def scalar() -> Tensor:
    """A sample input without axes."""
    return torch.tensor(2.0, requires_grad=True)


def axes(op: Any) -> Index:
    """The axes that were reduced; all of them where `dim` is not given or empty."""
    dim = op.arguments.get("dim")
    if dim is None or dim == [] or dim == ():
        return tuple(range(op.self.dim()))
    dims = [dim] if isinstance(dim, int) else dim
    return tuple(sorted({each % op.self.dim() for each in dims})) if op.self.dim() else ()


def count(op: Any) -> int:
    """How many elements were reduced into one."""
    return math.prod(op.self.shape[axis] for axis in axes(op))


def back(op: Any, t: Tensor) -> Tensor:
    """Give a tensor of the output's shape its reduced axes again, with size 1, to meet the input's elements."""
    if not op.arguments.get("keepdim"):
        for axis in axes(op):
            t = t.unsqueeze(axis)
    return t.to(op.self.dtype)


def _words(op: Any, reduced: Index) -> dict[str, str]:
    """What the capital words of a template stand for: elements of the operands, and numbers.

    OUT is made of SELF for all OVER. A second element of the same slice is OTHER, for all AMONG; SAME says that it is
    the first, DIFFER that it is not. WHOLE, MINE and THEIRS are of an output that has all axes, and of its gradient.
    """
    own = letters(op.self)
    other = [OTHERS[axis] if axis in reduced else letter for axis, letter in enumerate(own)]
    out = kept = [letter for axis, letter in enumerate(own) if axis not in reduced]
    if op.arguments.get("keepdim"):
        out = ["0" if axis in reduced else letter for axis, letter in enumerate(own)]
    chosen = element("out1", out)
    return {
        **{name.upper(): element(name, out) for name in ("out", "out0", "out1", "g", "g0", "g1")},
        **{"SELF": element("self", own), "GRAD": element("grad", own), "OTHER": element("self", other)},
        "MEAN": rf"\mu_{{{', '.join(kept)}}}" if kept else r"\mu",
        "MOST": f"M_{{{', '.join(kept)}}}" if kept else "M",
        "SIZE": f"N_{{{', '.join(kept)}}}",
        **{"WHOLE": element("out", own), "MINE": element("g", own), "THEIRS": element("g", other)},
        "SAME": "".join(f"[{own[axis]} = {other[axis]}]" for axis in reduced),
        "OVER": ", ".join(own[axis] for axis in reduced),
        "AMONG": ", ".join(other[axis] for axis in reduced),
        "DIFFER": r" \lor ".join(rf"{other[axis]} \neq {own[axis]}" for axis in reduced),
        "CHOSEN": element("self", [chosen if axis in reduced else letter for axis, letter in enumerate(own)]),
        "PICKED": "".join(f"[{own[axis]} = {chosen}]" for axis in reduced) or "1",
        "COUNTED": f"C_{{{', '.join(own)}}}",
        "COUNT": str(count(op)),
        "DEGREES": number(_degrees(op)),
        "ORDER": number(_order(op)),
        "ORDERLESS": number(_order(op) - 1),
    }


def formula(template: Template, over: Callable[[Any], Index] = axes) -> Callable[[Any], str]:
    """A template with its capital words filled in; what runs over nothing, as no axis was reduced, is left out."""

    def text(op: Any) -> str:
        found = filled(template(op) if callable(template) else template, _words(op, over(op)))
        return re.sub(r"(\\operatorname\{\w+\}|\\\w+)_\{(: \\, )?\}\s*", "", found).replace(r"\frac{1}{1}", "1")

    return text


Parts = list[Element]
Made = Callable[[Any, Parts], Element]


def _slice(op: Elements, index: Index) -> Parts:
    """The elements that were reduced into one."""
    reduced, whole, kept = axes(op.whole), op.whole.self, iter(index)
    keep = op.whole.arguments.get("keepdim")
    places = []
    for axis, size in enumerate(whole.shape):
        own = range(size)
        if axis not in reduced or keep:
            at = next(kept, 0)
            own = range(at, at + 1) if axis not in reduced else own
        places.append(own)
    return [op.at("self", place) for place in itertools.product(*places)]


def of_slice(*made: Made) -> Callable[[Elements, int, Index], Element | None]:
    """The formula of an element of each output, from the elements that were reduced into it."""

    def element(op: Elements, slot: int, index: Index) -> Element | None:
        return made[slot](op.whole, _slice(op, index)) if slot < len(made) else None

    return element


def _within(op: Any, out_index: Index, in_index: Index) -> bool:
    """Whether this input element was reduced into that output element."""
    reduced = axes(op)
    rest = [place for axis, place in enumerate(in_index) if axis not in reduced]
    kept = [p for axis, p in enumerate(out_index) if axis not in reduced] if op.arguments.get("keepdim") else out_index
    return rest == list(kept)


def _slices(op: Any) -> Pattern | None:
    """Each output element and the input elements that were reduced into it."""
    if not real(op.self, op.out):
        return None
    into, reduced = pattern.axes(op.self.shape), axes(op)
    return pattern.product([each for axis, each in enumerate(into) if axis not in reduced], into)


def reduction(
    *nodes: str,
    value: Template | tuple[str, ...],
    vjp: Callable[[Any, Any], Tensor],
    local: Template | tuple[str, ...],
    given: str = "",
    factor: Entry | None = None,
    **more: Any,
) -> Rule:
    """Register an operation that reduces `self` along `dim` (an int, a list, or all of it).

    `value` is OUT, `local` its derivative by SELF (of several outputs, those of each), and `given` defines what they
    use; see `_words`.
    """
    values, rates = ((each if isinstance(each, tuple) else (each,)) for each in (value, local))
    marks = [str(slot) if len(values) > 1 else "" for slot in range(len(values))]

    def each(templates: tuple[Template, ...], text: Callable[[str, str], str], joined: str) -> Callable[[Any], str]:
        def whole(op: Any) -> str:
            texts = (template(op) if callable(template) else template for template in templates)
            return joined.join(text(mark, found) for mark, found in zip(marks, texts, strict=True))

        return formula(whole)

    def times(op: Any) -> str:
        def addend(mark: str, rate: str) -> str:
            slope = parenthesise(rate)
            slope = rf"\overline{{{slope}}}" if op.out.is_complex() and slope != "1" else slope
            return {"0": "0", "1": f"G{mark}"}.get(slope, rf"G{mark} \, {slope}")

        return f"GRAD = {each(rates, addend, ' + ')(op)}"

    equation = each(values, lambda mark, text: f"OUT{mark} = {text}", JOINED)
    rate = each(rates, lambda mark, text: derivative(f"OUT{mark}", "SELF", text), JOINED)
    wrt = {"self": Wrt(vjp, rate, formula(times), OWN_SLICE, factor, _slices)}
    return rule(*nodes, equation=equation, wrt=wrt, where=formula(given), outputs=len(values), **more)


# Sums and means --------------------------------------------------------------------------------------------------


def _weighted(*nodes: str, weight: str, **more: Any) -> Rule:
    """Register a sum in which every element has the same weight."""
    each = formula(weight)
    return reduction(
        *nodes,
        value=("" if weight == "1" else weight) + r" \sum_{OVER} SELF",
        local=weight,
        factor=lambda op, out_index, in_index: Factor(latex=each(op)) if _within(op, out_index, in_index) else None,
        structure="linear",
        **more,
    )


sum_ = _weighted(
    "SumBackward0",
    weight="1",
    vjp=lambda op, g: back(op, g).expand_as(op.self),
    samples=lambda: [
        sample(torch.sum, x()),
        sample(torch.sum, x(), 1),
        sample(torch.sum, x(), (0, -1), keepdim=True),
        sample(torch.sum, x(), 0, keepdim=True),
        sample(torch.sum, torch.ones(0, 3, requires_grad=True), 0, note="empty"),
        sample(torch.sum, scalar(), note="0-dim"),
        sample(torch.sum, x(), dtype=torch.float32, note="into another dtype"),
    ],
    source="derivatives.yaml: sum, sum.dim_IntList",
)

mean = _weighted(
    "MeanBackward0",
    weight=r"\frac{1}{COUNT}",
    vjp=lambda op, g: (back(op, g) / count(op)).expand_as(op.self),
    samples=lambda: [
        sample(torch.mean, x()),
        sample(torch.mean, x(), 1),
        sample(torch.mean, x(), (0, 1), keepdim=True),
        sample(torch.mean, x((2.0,)), 1, note="size 1"),
        sample(torch.mean, scalar(), note="0-dim"),
    ],
    source="derivatives.yaml: mean, mean.dim",
)

nansum = reduction(
    "NansumBackward0",
    value=r"\sum_{OVER: \, SELF = SELF} SELF",
    vjp=lambda op, g: torch.where(op.self.isnan(), 0, back(op, g)),
    local="[SELF = SELF]",
    element=of_slice(lambda op, parts: total_of((x for x in parts if x.value == x.value), keep=True)),
    remark="NaN counts as 0: it is what does not equal itself.",
    samples=lambda: [sample(torch.nansum, x(1.0, math.nan, 2.0)), sample(torch.nansum, x((1.0, math.nan)), 1)],
)


trace = rule(
    "TraceBackward0",
    equation=lambda op: rf"$out = \sum_{{i=0}}^{{{min(op.self.shape) - 1}}} {{$self}}_{{i, i}}",
    wrt={
        "self": Wrt(
            lambda op, g: g * torch.eye(*op.self.shape, dtype=g.dtype, device=g.device),
            derivative("$out", "{$self}_{i, j}", "[i = j]"),
            "{$grad}_{i, j} = [i = j] \\, $g",
            "only the diagonal enters the sum",
        )
    },
    structure="linear",
    samples=lambda: [sample(torch.trace, x()), sample(torch.trace, torch.ones(0, 0, requires_grad=True), note="empty")],
)

# Products --------------------------------------------------------------------------------------------------------


def _before(t: Tensor, dim: int) -> Tensor:
    """At each place, the product of all elements before it along `dim` (1 for the first)."""
    shifted = torch.cat((torch.ones_like(t.narrow(dim, 0, 1)), t.narrow(dim, 0, t.shape[dim] - 1)), dim)
    return shifted.cumprod(dim)


def _all_others(t: Tensor, dim: int) -> Tensor:
    """At each place, the product of all other elements along `dim`: without a division, so zeros are no trouble."""
    return _before(t, dim) * _before(t.flip(dim), dim).flip(dim) if t.numel() else t


def _prod(op: Any, g: Tensor) -> Tensor:
    if "dim" in op.arguments and op.self.dim():
        return back(op, g) * _all_others(op.self, op.dim).conj()
    return (g * _all_others(op.self.reshape(-1), 0).conj()).reshape(op.self.shape).to(op.self.dtype)


prod = reduction(
    "ProdBackward0",
    value=r"\prod_{OVER} SELF",
    vjp=_prod,
    local=lambda op: r"\prod_{AMONG: \, DIFFER} OTHER" if op.self.dim() else "1",
    element=of_slice(lambda op, parts: product(parts) if parts else of(1)),
    samples=lambda: [
        sample(torch.prod, x()),
        sample(torch.prod, x(), 1, keepdim=True),
        sample(torch.prod, x((2.0, 0.0, 3.0), (0.0, 0.0, 1.0)), 1, note="one zero, two zeros"),
        sample(torch.prod, x(2.0, 0.0, 3.0), note="a zero"),
        sample(torch.prod, torch.ones(0, requires_grad=True), note="empty"),
        sample(torch.prod, scalar(), 0, note="0-dim"),
    ],
    source="derivatives.yaml: prod. The derivative by one factor is the product of all others.",
)

# Spread ----------------------------------------------------------------------------------------------------------


def _degrees(op: Any) -> float:
    """N - correction, the number that the squared distances are divided by; never below 0."""
    correction = op.arguments.get("correction")
    return max(count(op) - (1 if correction is None else correction), 0)


def _var(op: Any, g: Tensor) -> Tensor:
    degrees = _degrees(op)
    distance: Tensor = op.self - op.self.mean(axes(op), keepdim=True)
    return back(op, g) * (2 / degrees if degrees else math.inf) * distance


def _std(op: Any, g: Tensor) -> Tensor:
    return _var(op, (g / (2 * op.out)).masked_fill(op.out == 0, 0))


def _flat(op: Any, radius: float) -> Tensor:
    """Slices whose elements are all equal, where the standard deviation has a corner."""
    distance: Tensor = (op.self - op.self.mean(axes(op), keepdim=True)).abs()
    return (distance <= radius).all(axes(op), keepdim=True).expand_as(distance)


def _spread(name: str, source: str = "") -> Rule:
    """Register a variance or its root, alone or as a pair with the mean."""
    root, with_mean, function = name.startswith("std"), name.endswith("mean"), getattr(torch, name)
    spread = _std if root else _var

    def vjp(op: Any, gs: Any) -> Tensor:
        if not with_mean:
            return spread(op, gs)
        gradient = torch.zeros_like(op.self) if gs[0] is None else spread(op, gs[0])
        return gradient if gs[1] is None else gradient + back(op, gs[1]) / count(op)

    def element(op: Any, parts: Parts) -> Element:
        degrees, centre = _degrees(op), let("μ", mean_of(parts))
        square = total_of((each - centre) ** 2 for each in parts) / (int(degrees) if degrees % 1 == 0 else degrees)
        return call("sqrt", math.sqrt, square) if root else square

    square = r"\frac{1}{DEGREES} \sum_{OVER} (SELF - MEAN)^2"
    slope = where(r"\frac{SELF - MEAN}{DEGREES \, OUT0}", "OUT0 > 0") if root else r"\frac{2}{DEGREES} (SELF - MEAN)"
    value = rf"\sqrt{{{square}}}" if root else square
    return reduction(
        f"{name.title().replace('_', '')}Backward0",
        value=(value, "MEAN") if with_mean else value,
        vjp=vjp,
        local=(slope, r"\frac{1}{COUNT}") if with_mean else slope.replace("OUT0", "OUT"),
        given=r"MEAN = \frac{1}{COUNT} \sum_{AMONG} OTHER",
        kink=Kink(_flat, "0 where all elements are equal") if root else None,
        element=of_slice(element, lambda op, parts: mean_of(parts)),
        samples=lambda: [
            sample(function, x()),
            sample(function, x(), 1, keepdim=True),
            sample(function, x(), 0, correction=0),
            sample(function, x((2.0, 2.0)), 1, note="all equal"),
        ],
        source=f"derivatives.yaml: {name}.correction{source}",
    )


var = _spread("var", ". The mean's own dependence adds nothing, as the distances sum to zero.")
std, var_mean, std_mean = (_spread(name) for name in ("std", "var_mean", "std_mean"))

# Extremes and order statistics -----------------------------------------------------------------------------------


def _share(op: Any, g: Tensor, extreme: Tensor) -> Tensor:
    """All elements equal to the extreme one get an even share."""
    winners: Tensor = op.self == back(op, extreme)
    return back(op, g) * winners / winners.sum(axes(op), keepdim=True)


def _tied(op: Any, radius: float, extremes: int = 1) -> Tensor:
    """Elements that another one would overtake: two may move towards each other by `radius` each."""
    marks = torch.zeros_like(op.self, dtype=torch.bool)
    for out in op.outs[:extremes]:
        near = (op.self - back(op, out)).abs() <= 2 * radius
        marks = marks | (near & (near.sum(axes(op), keepdim=True) > 1))
    return marks


def _winner_takes(op: Any, g: Tensor) -> Tensor:
    """The element at the recorded index gets the whole gradient."""
    index = op.outs[1] if op.keepdim else op.outs[1].unsqueeze(op.dim)
    home = g.new_zeros(op.self.shape if op.self.dim() else (1,))
    return home.scatter(op.dim, index, g if op.keepdim else g.unsqueeze(op.dim)).reshape(op.self.shape)


def _winner(op: Any, out_index: Index, in_index: Index) -> Factor | None:
    if not op.self.dim() or not _within(op, out_index, in_index):
        return None if op.self.dim() else Factor(latex="1")
    return Factor(latex="1") if int(op.outs[1][out_index]) == in_index[op.dim % op.self.dim()] else None


def _big(operator: str) -> str:
    if operator == "kthvalue":
        return r"\min_{OVER: \, COUNTED \ge $k} SELF"
    name = rf"\{operator}" if operator in ("max", "min") else rf"\operatorname{{{operator}}}"
    return rf"{name}_{{OVER}} SELF"


def _in_order(place: Callable[[int], int]) -> Callable[..., Any]:
    """The number at a place of some numbers in order."""
    return lambda *values: sorted(values)[place(len(values))]


def _mode(*values: Any) -> Any:
    return min(values, key=lambda value: (-values.count(value), value))


def _extreme(operator: str) -> Made:
    """The chosen one of some elements."""
    if operator == "kthvalue":
        return lambda op, parts: call(f"smallest{op.k}", _in_order(lambda count: op.k - 1), *parts)
    if operator == "mode":
        return lambda op, parts: call("mode", _mode, *parts)
    if "median" in operator:
        return lambda op, parts: call(
            "median", _in_order(lambda count: (count - 1) // 2), *(x for x in parts if x.value == x.value)
        )
    return lambda op, parts: (largest if operator == "max" else smallest)(parts)


def _with_index(operator: str, samples: Callable[[Any], Iterable[Sample]], source: str) -> Rule:
    """Register an operation that gives one chosen element along `dim`, and its index."""
    return reduction(
        f"{operator.capitalize()}Backward0",
        name=f"{operator}_dim",
        value=lambda op: (f"{_big(operator)} = " if op.self.dim() else "") + "CHOSEN",
        given=r"COUNTED = \sum_{AMONG} [OTHER \le SELF]" if operator == "kthvalue" else "",
        vjp=_winner_takes,
        local="PICKED",
        factor=_winner,
        accepts=lambda op: "dim" in op.arguments,
        kink=Kink(_tied, "of tied elements, the one whose index was returned gets the whole gradient"),
        constants={"indices": "not differentiable"},
        element=of_slice(_extreme(operator)),
        samples=lambda: samples(getattr(torch, operator)),
        source=f"derivatives.yaml: {source}",
    )


def _even(out: str) -> str:
    """The share of an element: an even one for all that are equal to the extreme."""
    return rf"\frac{{[SELF = {out}]}}{{\sum_{{AMONG}} [OTHER = {out}]}}"


def _shared(node: str, name: str, operator: str, samples: Callable[[Any], Iterable[Sample]], **more: Any) -> Rule:
    """Register an operation that gives one element, without saying which of several equal ones it is."""
    return reduction(
        node,
        name=name,
        value=_big(operator),
        vjp=lambda op, g: _share(op, g, op.out),
        local=_even("OUT"),
        kink=Kink(_tied, TIES),
        element=of_slice(_extreme(operator)),
        samples=lambda: samples(getattr(torch, name.removesuffix("_all"))),
        source=f"derivatives.yaml: {name.removesuffix('_all')}",
        **more,
    )


def _tie() -> Tensor:
    return x((1.0, 3.0, 3.0), (2.0, -1.0, -1.0))


amax = _shared(
    "AmaxBackward0",
    "amax",
    "max",
    lambda f: [
        sample(f, x(), 1),
        sample(f, x()),
        sample(f, _tie(), 1, keepdim=True, note="ties"),
        sample(f, x(), (0, 1)),
        sample(f, scalar(), note="0-dim"),
    ],
)
amin = _shared("AminBackward0", "amin", "min", lambda f: [sample(f, x(), 1), sample(f, _tie(), note="ties")])

max_all, min_all, median_all, nanmedian_all = (
    _shared(
        f"{operator.capitalize()}Backward1",
        f"{operator}_all",
        operator,
        lambda f: [sample(f, x()), sample(f, _tie(), note="ties"), sample(f, scalar(), note="0-dim")],
        accepts=lambda op: "dim" not in op.arguments,
    )
    for operator in ("max", "min", "median", "nanmedian")
)

max_dim, min_dim, median_dim, nanmedian_dim, mode = (
    _with_index(
        operator,
        lambda f: [
            sample(f, x(), 1),
            sample(f, x(), 0, keepdim=True),
            sample(f, _tie(), 1, note="ties"),
            sample(f, scalar(), 0, note="0-dim"),
        ],
        f"{operator}.dim",
    )
    for operator in ("max", "min", "median", "nanmedian", "mode")
)
kthvalue = _with_index("kthvalue", lambda f: [sample(f, x(), 2, 1), sample(f, x(), 1, 0, keepdim=True)], "kthvalue")


def _aminmax(op: Any, gs: tuple[Tensor | None, Tensor | None]) -> Tensor:
    shares = [_share(op, g, out) for g, out in zip(gs, op.outs, strict=True) if g is not None]
    return sum(shares, torch.zeros_like(op.self))


aminmax = reduction(
    "AminmaxBackward0",
    value=(r"\min_{OVER} SELF", r"\max_{OVER} SELF"),
    vjp=_aminmax,
    local=(_even("OUT0"), _even("OUT1")),
    element=of_slice(_extreme("min"), _extreme("max")),
    kink=Kink(lambda op, radius: _tied(op, radius, extremes=2), TIES),
    samples=lambda: [
        sample(torch.aminmax, x()),
        sample(torch.aminmax, x(), dim=1, keepdim=True),
        sample(torch.aminmax, _tie(), dim=1, note="ties"),
    ],
)

# Norms and log-sums ----------------------------------------------------------------------------------------------


def _log_sum(parts: Parts) -> Element:
    powers, most = exps(parts)
    return call("ln", _ln, total_of(powers)) + most


def _ln(value: Any) -> Any:
    return torch.tensor(value, dtype=torch.complex128 if isinstance(value, complex) else torch.float64).log().item()


logsumexp = reduction(
    "LogsumexpBackward0",
    value=r"MOST + \log \sum_{OVER} e^{SELF - MOST}",
    given=r"MOST = \max_{AMONG} OTHER",
    vjp=lambda op, g: back(op, g) * (op.self - back(op, op.out)).exp().conj(),
    local="e^{SELF - OUT}",
    element=of_slice(lambda op, parts: _log_sum(parts)),
    remark="The maximum M cancels, and keeps the powers from overflowing. The derivative is the softmax.",
    samples=lambda: [
        sample(torch.logsumexp, x(), 1),
        sample(torch.logsumexp, x(), (0, 1), keepdim=True),
        sample(torch.logsumexp, x((-math.inf, 1.0)), 1, note="minus infinity"),
        sample(torch.logsumexp, x(1000.0, 999.0), 0, note="large"),
    ],
)


def _order(op: Any) -> float:
    order = op.arguments.get("ord", op.arguments.get("p"))
    return 2.0 if order is None else float(order)


def norm_gradient(v: Tensor, g: Tensor, norm: Tensor, p: float, dims: Index) -> Tensor:
    """d |v|_p / d v times g; `g` and `norm` have the reduced axes with size 1. Where no derivative exists: 0."""
    if p == 0:
        return torch.zeros_like(v)
    if math.isinf(p):
        extreme = v.abs() == norm
        return g * v.sgn() * extreme / extreme.sum(dims, keepdim=True)
    return g * v.sgn() * ((v.abs() / norm) ** (p - 1)).masked_fill(v == 0, 0)


def norm_of(parts: Parts, order: float) -> Element:
    """The norm of some elements."""
    sizes = [call("abs", abs, each) for each in parts]
    if order == 0:
        return total_of(call("nonzero", lambda value: int(value != 0), each) for each in parts)
    if math.isinf(order):
        return largest(sizes) if order > 0 else smallest(sizes)
    if order == 1:
        return total_of(sizes)
    if order == 2:
        squares = [
            (size if isinstance(each.value, complex) else each) ** 2 for each, size in zip(parts, sizes, strict=True)
        ]
        return call("sqrt", math.sqrt, total_of(squares))
    whole = int(order) if order % 1 == 0 else order
    return total_of(size**whole for size in sizes) ** (of(1) / of(whole))


def _norm_kink(op: Any, radius: float) -> Tensor:
    """Elements near 0 (p <= 1), whole slices near 0 (p > 1), and ties of the extreme elements (p infinite)."""
    p, size = _order(op), op.self.abs()
    near: Tensor = size <= radius
    if math.isinf(p):
        extreme = (size - back(op, op.out).abs()).abs() <= 2 * radius
        tied: Tensor = extreme & (near | (extreme.sum(axes(op), keepdim=True) > 1))
        return tied
    return near if p <= 1 else near.all(axes(op), keepdim=True).expand_as(size)


EXTREME = r"\operatorname{sgn}(SELF) \, \frac{[|SELF| = OUT]}{\sum_{AMONG} [|OTHER| = OUT]}"
NORMS = {  # value and local derivative
    0: (r"\sum_{OVER} [SELF \neq 0]", "0"),
    1: (r"\sum_{OVER} |SELF|", r"\operatorname{sgn}(SELF)"),
    2: (r"\sqrt{\sum_{OVER} |SELF|^2}", where(r"\frac{SELF}{OUT}", r"SELF \neq 0")),
    math.inf: (r"\max_{OVER} |SELF|", EXTREME),
    -math.inf: (r"\min_{OVER} |SELF|", EXTREME),
}
ANY_NORM = (
    r"\left(\sum_{OVER} |SELF|^{ORDER}\right)^{1/ORDER}",
    where(r"\operatorname{sgn}(SELF) \left(\frac{|SELF|}{OUT}\right)^{ORDERLESS}", r"SELF \neq 0"),
)

norm = reduction(
    "LinalgVectorNormBackward0",
    "NormBackward0",
    name="norm",
    value=lambda op: NORMS.get(_order(op), ANY_NORM)[0],
    vjp=lambda op, g: norm_gradient(op.self, back(op, g), back(op, op.out), _order(op), axes(op)),
    local=lambda op: NORMS.get(_order(op), ANY_NORM)[1],
    element=of_slice(lambda op, parts: norm_of(parts, _order(op))),
    kink=Kink(_norm_kink, "0 at 0, and an even share for ties"),
    samples=lambda: [
        *(
            sample(torch.linalg.vector_norm, x(), p, 1, note=f"p = {p}")
            for p in (0, 0.5, 1, 1.5, 2, 3, math.inf, -math.inf)
        ),
        sample(torch.linalg.vector_norm, x(), 2, keepdim=True),
        sample(torch.linalg.matrix_norm, x()),
        *(sample(torch.linalg.vector_norm, x(0.0, 0.0), p, note=f"at 0, p = {p}") for p in (1, 1.5, 2, 3, math.inf)),
        *(sample(torch.linalg.vector_norm, x((0.0, -1.0, 1.0)), p, 1, note=f"one 0, p = {p}") for p in (0.5, 1, 3)),
        sample(torch.linalg.vector_norm, x((2.0, -2.0, 1.0)), math.inf, 1, note="ties"),
        sample(torch.ops.aten.norm.Scalar, x(), 2),
        sample(torch.ops.aten.norm.ScalarOpt_dim, x(), 3, [1], True),
        sample(torch.linalg.vector_norm, x(1 + 2j, -1j, dtype=torch.complex128), note="complex"),
    ],
    source="derivatives.yaml: linalg_vector_norm, norm",
)


def _dist(op: Any, g: Tensor) -> Tensor:
    difference = op.self - op.other
    return norm_gradient(difference, g, op.out, _order(op), tuple(range(difference.dim())))


def _distance(sign: str = "", argument: str = "") -> Callable[[Any], str]:
    """The distance of two tensors that broadcast, or its derivative: of an operand that was copied, over the copies."""

    def filled(op: Any) -> str:
        whole = op.self - op.other
        every = places(whole.shape)
        own = {name: fitted(every, op.arguments[name]) for name in ("self", "other")}
        over = [place for place in every if place != "0"]
        d = f"D_{{{', '.join(over)}}}" if over else "D"
        given = rf", \quad {d} = {element('self', own['self'])} - {element('other', own['other'])}"
        if not argument:
            size = rf"\sum_{{{', '.join(over)}}} |{d}|^{{ORDER}}" if over else rf"|{d}|^{{ORDER}}"
            return formula(rf"$out = \left({size}\right)^{{1/ORDER}}{given}")(op)
        each = where(rf"\operatorname{{sgn}}({d}) \left(\frac{{|{d}|}}{{$out}}\right)^{{ORDERLESS}}", rf"{d} \neq 0")
        copies = ", ".join(place for place in over if place not in own[argument])
        summed = rf"\sum_{{{copies}}} {each}" if copies else each
        if sign.endswith("$g"):
            return formula(rf"{element('grad', own[argument])} = {sign} \, {summed}{given}")(op)
        return formula(derivative("$out", element(argument, own[argument]), f"{sign}{summed}{given}"))(op)

    return filled


def _dist_element(op: Elements, slot: int, index: Index) -> Element:
    shape = torch.broadcast_shapes(op.whole.self.shape, op.whole.other.shape)
    pairs = [Elements(op.whole, at) for at in itertools.product(*map(range, shape))]
    return norm_of([pair.self - pair.other for pair in pairs], _order(op.whole))


dist = rule(
    "DistBackward0",
    element=_dist_element,
    equation=_distance(),
    wrt={
        "self": Wrt(_dist, _distance("", "self"), _distance("$g", "self")),
        "other": Wrt(lambda op, g: -_dist(op, g), _distance("-", "other"), _distance("-$g", "other")),
    },
    samples=lambda: (
        [sample(torch.dist, x(1.0, 2.0), x(0.0, 4.0), p) for p in (1, 2, 3)]
        + [sample(torch.dist, x(1.0), x(0.0, 4.0), note="broadcast"), sample(torch.dist, x(1.0), x(1.0), note="at 0")]
    ),
)

# Running ---------------------------------------------------------------------------------------------------------


def _up_to(op: Any) -> Pattern | None:
    return pattern.triangular(op.self.shape, op.dim) if real(op.self, op.out) else None


def _earlier(op: Any, out_index: Index, in_index: Index) -> Factor | None:
    """1 for an element of the same row that is not later."""
    dim = op.dim % max(op.self.dim(), 1)
    pairs = enumerate(zip(out_index, in_index, strict=True))
    return Factor(latex="1") if all(i <= k if axis == dim else i == k for axis, (k, i) in pairs) else None


def _running(
    name: str,
    value: str,
    vjp: Callable[[Any, Tensor], Tensor],
    local: str,
    samples: Callable[[Callable[..., Any]], Iterable[Sample]],
    remark: str = "",
    factor: Entry | None = None,
    made: Made | None = None,
    **more: Any,
) -> Rule:
    """Register an operation in which each element y_k of a row is made of x_i, i <= k; `local` is their derivative."""

    def element(op: Elements, slot: int, index: Index) -> Element | None:
        if made is None or slot:
            return None
        dim = op.whole.dim % max(len(index), 1)
        places = [(*index[:dim], at, *index[dim + 1 :]) for at in range(index[dim] + 1)] if index else [()]
        return made(op.whole, [op.at("self", place) for place in places])

    zeros = "an output element depends on the elements before it and on its own along dim, never on later ones"
    along = r" \quad \text{along dim } $dim"
    wrt = Wrt(
        vjp,
        derivative("{$out}_{k}", "{$self}_{i}", f"{local}{along}"),
        rf"{{$grad}}_{{i}} = \sum_{{k: \, k \ge i}} {{$g}}_{{k}} \, {local}{along}",
        zeros,
        factor,
        _up_to,
    )
    return rule(
        f"{name.capitalize()}Backward0",
        equation=f"{{$out}}_{{k}} = {value}{along}",
        wrt={"self": wrt},
        samples=lambda: samples(getattr(torch, name)),
        source=f"derivatives.yaml: {name}{remark}",
        element=None if made is None else element,
        **more,
    )


def _horner(g: Tensor, weights: Tensor, dim: int) -> Tensor:
    """r_i = g_i + w_{i+1} r_{i+1}, from the right: a weighted sum of all later gradients without a division."""
    carried, sums = torch.zeros_like(g.select(dim, 0)), []
    for g_i, w_i in zip(reversed(g.unbind(dim)), reversed(weights.unbind(dim)), strict=True):
        sums.append(g_i + carried)
        carried = w_i * sums[-1]
    return torch.stack(sums[::-1], dim)


def _cumprod(op: Any, g: Tensor) -> Tensor:
    if not g.dim() or not g.numel():
        return g
    factors = op.self.conj()
    return (_before(factors, op.dim) * _horner(g, factors, op.dim)).to(op.self.dtype)


def _logcumsumexp(op: Any, g: Tensor) -> Tensor:
    if not g.dim() or not g.numel():
        return g
    first = op.out.narrow(op.dim, 0, 1)
    decay = (-op.out.diff(dim=op.dim, prepend=first)).exp()
    own: Tensor = (op.self - op.out).exp().conj()
    return own * _horner(g, decay.conj(), op.dim)


def _running_samples(function: Callable[..., Any]) -> list[Sample]:
    return [
        sample(function, x(), 1),
        sample(function, x(), 0),
        sample(function, x((2.0, 0.0, 3.0), (0.0, 0.0, 1.0)), -1, note="zeros"),
        sample(function, scalar(), 0, note="0-dim"),
        sample(function, torch.ones(0, 2, requires_grad=True), 0, note="empty"),
    ]


cumsum = _running(
    "cumsum",
    r"\sum_{i \le k} {$self}_{i}",
    lambda op, g: (g.flip(op.dim).cumsum(op.dim).flip(op.dim) if g.dim() else g).to(op.self.dtype),
    r"[i \le k]",
    _running_samples,
    factor=_earlier,
    structure="linear",
)

cumprod = _running(
    "cumprod",
    r"\prod_{i \le k} {$self}_{i}",
    _cumprod,
    r"[i \le k] \prod_{j \le k, \, j \neq i} {$self}_{j}",
    _running_samples,
    remark="; summed from the right by Horner's scheme, so zeros are no trouble.",
    made=lambda op, parts: product(parts),
)

logcumsumexp = _running(
    "logcumsumexp",
    r"\log \sum_{i \le k} e^{{$self}_{i}}",
    _logcumsumexp,
    r"[i \le k] \, e^{{$self}_{i} - {$out}_{k}}",
    _running_samples,
    made=lambda op, parts: _log_sum(parts),
)

cummax, cummin = (
    _running(
        name,
        rf"\{name[3:]}_{{i \le k}} {{$self}}_{{i}}",
        lambda op, g: torch.zeros_like(g).scatter_add(op.dim, op.outs[1], g),
        "[i = {$out1}_{k}]",
        lambda function: [sample(function, x(), 1), sample(function, _tie(), 1, note="ties")],
        made=_extreme(name[3:]),
        constants={"indices": "not differentiable"},
    )
    for name in ("cummax", "cummin")
)


def _slices_of(op: Any) -> Index:
    """All axes but the one whose slices are held to the largest norm."""
    return tuple(axis for axis in range(op.self.dim()) if axis != op.dim % op.self.dim())


def _slice_norms(op: Any) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(op.self, float(op.p), _slices_of(op), keepdim=True)
    return norms


RENORM_TINY = 1e-7  # what PyTorch adds to a norm before dividing by it


def _renorm(op: Any, g: Tensor) -> Tensor:
    """<g, x m / (n + t)> moves with x itself and, against it, with the norm n of its slice."""
    dims, length = _slices_of(op), _slice_norms(op)
    held = length + RENORM_TINY
    along = (g * op.self.conj()).sum(dims, keepdim=True)
    pull = norm_gradient(op.self, (along.real if g.is_complex() else along) / held, length, float(op.p), dims)
    return torch.where(length > op.maxnorm, op.maxnorm / held * (g - pull), g)


HELD, TOO_LONG = r"\frac{$maxnorm}{SIZE}", "SIZE > $maxnorm"
TURN = r"\operatorname{sgn}(EACH) \left(\frac{|EACH|}{SIZE}\right)^{ORDERLESS}"  # the norm's derivative by EACH
ALONG = r"\operatorname{Re}\left(\sum_{AMONG} THEIRS \, \overline{OTHER}\right)"
PULL = rf"\frac{{{TURN.replace('EACH', 'SELF')}}}{{SIZE}} {ALONG}"


def _renormed(op: Any) -> str:
    turn = TURN.replace("EACH", "OTHER")

    def rate(same: str, turn: str, into: str) -> str:
        held = rf"{HELD} \left({same} - \frac{{SELF}}{{SIZE}} \, {turn}\right)"
        return derivative("WHOLE", into, where(held, TOO_LONG, same))

    if not op.self.is_complex():
        return rate("SAME", turn, "OTHER")
    plain, conjugate = rf"\frac{{1}}{{2}} \overline{{{turn}}}", rf"\frac{{1}}{{2}} {turn}"
    return rate("SAME", plain, "OTHER") + r", \quad " + rate("0", conjugate, r"\overline{OTHER}")


def _renorm_element(op: Elements, slot: int, index: Index) -> Element:
    whole, dim = op.whole, op.whole.dim % op.whole.self.dim()
    places = [range(n) if axis != dim else [index[dim]] for axis, n in enumerate(whole.self.shape)]
    length = let("N", norm_of([op.at("self", at) for at in itertools.product(*places)], float(whole.p)))
    own = op.at("self", index)
    return own * (of(whole.maxnorm) / (length + RENORM_TINY)) if length.value > whole.maxnorm else own


renorm = rule(
    "RenormBackward0",
    element=_renorm_element,
    equation=formula(rf"WHOLE = SELF \, \min\left(1, {HELD}\right)", _slices_of),
    where=formula(r"SIZE = \left(\sum_{AMONG} |OTHER|^{ORDER}\right)^{1/ORDER}", _slices_of),
    wrt={
        "self": Wrt(
            _renorm,
            formula(_renormed, _slices_of),
            formula("GRAD = " + where(rf"{HELD} \left(MINE - {PULL}\right)", TOO_LONG, "MINE"), _slices_of),
            "a slice has its own norm, and other slices do not enter",
        )
    },
    kink=Kink(
        lambda op, radius: ((_slice_norms(op) - op.maxnorm).abs() <= radius).expand_as(op.self),
        "1 where the norm is just the largest allowed one",
    ),
    samples=lambda: [
        *(sample(torch.renorm, x(), p, 0, 2.0, note=f"p = {p}") for p in (1, 1.5, 2, 3)),
        sample(torch.renorm, x(), 2, -1, 3.0, note="last dim"),
        sample(torch.renorm, x(), 2, 0, 100.0, note="short enough"),
        sample(torch.renorm, x(1 + 2j, -1j, dtype=torch.complex128).reshape(2, 1), 2, 0, 0.5, note="complex"),
    ],
)
