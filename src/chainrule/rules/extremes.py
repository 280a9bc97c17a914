"""Rules of extremes and order statistics: the largest, smallest, middle and most frequent element along axes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from chainrule.rules import Factor, Index, Kink, Rule, Sample, sample
from chainrule.rules.element import call, largest, smallest
from chainrule.rules.reduce import TIES, Made, axes, back, of_slice, reduction, scalar, within, x


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
    if not op.self.dim() or not within(op, out_index, in_index):
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


def extreme_of(operator: str) -> Made:
    """The chosen one of some elements."""
    if operator == "kthvalue":
        return lambda op, parts: call(f"smallest{op.k}", _in_order(lambda count: op.k - 1), *parts)
    if operator == "mode":
        return lambda op, parts: call("mode", lambda *all: min(all, key=lambda x: (-all.count(x), x)), *parts)
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
        element=of_slice(extreme_of(operator)),
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
        element=of_slice(extreme_of(operator)),
        samples=lambda: samples(getattr(torch, name.removesuffix("_all"))),
        source=f"derivatives.yaml: {name.removesuffix('_all')}",
        **more,
    )


def with_ties() -> Tensor:
    """A sample input with ties."""
    return x((1.0, 3.0, 3.0), (2.0, -1.0, -1.0))


amax = _shared(
    "AmaxBackward0",
    "amax",
    "max",
    lambda f: [
        sample(f, x(), 1),
        sample(f, x()),
        sample(f, with_ties(), 1, keepdim=True, note="ties"),
        sample(f, x(), (0, 1)),
        sample(f, scalar(), note="0-dim"),
    ],
)
amin = _shared("AminBackward0", "amin", "min", lambda f: [sample(f, x(), 1), sample(f, with_ties(), note="ties")])

max_all, min_all, median_all, nanmedian_all = (
    _shared(
        f"{operator.capitalize()}Backward1",
        f"{operator}_all",
        operator,
        lambda f: [sample(f, x()), sample(f, with_ties(), note="ties"), sample(f, scalar(), note="0-dim")],
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
            sample(f, with_ties(), 1, note="ties"),
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
    element=of_slice(extreme_of("min"), extreme_of("max")),
    kink=Kink(lambda op, radius: _tied(op, radius, extremes=2), TIES),
    samples=lambda: [
        sample(torch.aminmax, x()),
        sample(torch.aminmax, x(), dim=1, keepdim=True),
        sample(torch.aminmax, with_ties(), dim=1, note="ties"),
    ],
)
