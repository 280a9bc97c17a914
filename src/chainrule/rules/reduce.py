"""Rules of sums, means, products and the spread along axes, and what all reductions have in common.

All reductions share the way back: the upstream gradient gets its reduced axes again (size 1) and meets every element
that was reduced into it; only the factor at each element differs.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from chainrule.rules import (
    Factor,
    Index,
    Kink,
    Latex,
    Rule,
    Wrt,
    derivative,
    latex_of,
    number,
    parenthesise,
    pattern,
    rule,
    sample,
)
from chainrule.rules import at as element
from chainrule.rules.element import Element, Elements, call, let, of, product
from chainrule.rules.element import mean as mean_of
from chainrule.rules.element import total as total_of
from chainrule.rules.index_notation import JOINED, OTHERS, filled, letters, where
from chainrule.rules.pattern import Pattern, real

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
        "ORDER": number(order_of(op)),
        "ORDERLESS": number(order_of(op) - 1),
    }


def formula(template: Latex, over: Callable[[Any], Index] = axes) -> Callable[[Any], str]:
    """A template with its capital words filled in; what runs over nothing, as no axis was reduced, is left out."""

    def text(op: Any) -> str:
        found = filled(latex_of(template, op), _words(op, over(op)))
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


def within(op: Any, out_index: Index, in_index: Index) -> bool:
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
    value: Latex | tuple[str, ...],
    vjp: Callable[[Any, Any], Tensor],
    local: Latex | tuple[str, ...],
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

    def each(templates: tuple[Latex, ...], text: Callable[[str, str], str], joined: str) -> Callable[[Any], str]:
        def whole(op: Any) -> str:
            texts = (latex_of(template, op) for template in templates)
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
        factor=lambda op, out_index, in_index: Factor(latex=each(op)) if within(op, out_index, in_index) else None,
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


def product_before(t: Tensor, dim: int) -> Tensor:
    """At each place, the product of all elements before it along `dim` (1 for the first)."""
    shifted = torch.cat((torch.ones_like(t.narrow(dim, 0, 1)), t.narrow(dim, 0, t.shape[dim] - 1)), dim)
    return shifted.cumprod(dim)


def _all_others(t: Tensor, dim: int) -> Tensor:
    """At each place, the product of all other elements along `dim`: without a division, so zeros are no trouble."""
    return product_before(t, dim) * product_before(t.flip(dim), dim).flip(dim) if t.numel() else t


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


def order_of(op: Any) -> float:
    """The order p of a norm."""
    order = op.arguments.get("ord", op.arguments.get("p"))
    return 2.0 if order is None else float(order)


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
