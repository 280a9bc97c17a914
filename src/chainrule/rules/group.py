"""Rules of reductions into places: many elements, each sent to a place by an index, and one result at each place.

What scatter, index_add's relatives, segments and the messages of a graph network have in common is a `Grouping`: which
elements meet at which place. The result there depends on the elements that meet there alone, and each kind of
reduction (sum, mean, product, extreme) gives one local derivative for each of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from chainrule.rules import Kink, Rule, Sample, Wrt, rule, sample
from chainrule.rules.index import at
from chainrule.rules.shape import x

MEET = "a result depends only on the elements that were sent to its place"
OVERWRITTEN = (
    "Where what stood at a place before is left out of a maximum or minimum but is equal to it, PyTorch still counts "
    "it among the ties, and the gradient of the others comes out too small."
)
SYMBOLS = {"sum": r"\sum", "mean": r"\operatorname{mean}", "prod": r"\prod", "amax": r"\max", "amin": r"\min"}
LOCALS = {
    "sum": "1",
    "mean": r"\frac{1}{N_i}",
    "prod": r"\prod_{\text{others at } i}",
    "amax": r"\frac{1}{N_i} \left[\text{one of the } N_i \text{ largest}\right]",
    "amin": r"\frac{1}{N_i} \left[\text{one of the } N_i \text{ smallest}\right]",
}


@dataclass(frozen=True)
class Grouping:
    """Elements that meet at places: `members[k]` goes to place `index[k]` of `axis`, where `base` may stand already.

    `stands` is 1 where `base` takes part in the reduction, 0 where it is replaced; `counted` says whether a mean
    counts it.
    """

    members: Tensor
    index: Tensor
    axis: int
    base: Tensor
    stands: Tensor
    out: Tensor
    counted: bool = True

    def spread(self, places: Tensor) -> Tensor:
        """What stands at each place, told to each member that went there; 0 to those that went beyond the last one."""
        if places.shape != self.out.shape:
            places = _and_one_beyond(places, self.axis)
        return places.gather(self.axis, self.index)

    def collect(self, each: Tensor) -> Tensor:
        """The sum over the members of each place."""
        return torch.zeros_like(self.out).scatter_add(self.axis, self.index, each.to(self.out.dtype))

    def locals(self, reduce: str) -> tuple[Tensor, Tensor]:
        """The derivative of each result with respect to `base` there, and with respect to each member."""
        if reduce == "sum":
            return self.stands, torch.ones_like(self.members)
        if reduce == "mean":
            count = self.collect(torch.ones_like(self.members)) + (self.stands if self.counted else 0)
            share = 1 / count.clamp(min=1)
            return share * self.stands, self.spread(share)
        if reduce == "prod":
            return self._others()
        first = self.stands * (self.base == self.out)
        best = (self.members == self.spread(self.out)).to(self.out.dtype)
        share = 1 / (first + self.collect(best)).clamp(min=1)  # ties share alike, as PyTorch has it
        return first * share, best * self.spread(share)

    def _others(self) -> tuple[Tensor, Tensor]:
        """The product of all others at a place, without dividing by a zero."""
        none = self.stands * (self.base == 0)
        zeros = none + self.collect(self.members == 0)
        factors = torch.where((self.base == 0) | (self.stands == 0), 1, self.base)
        whole = factors.scatter_reduce(self.axis, self.index, torch.where(self.members == 0, 1, self.members), "prod")

        def without(own: Tensor, zeros: Tensor, whole: Tensor) -> Tensor:
            return torch.where(own == 0, whole * (zeros == 1), torch.where(zeros == 0, whole / own, 0))

        return self.stands * without(self.base, zeros, whole), without(
            self.members, self.spread(zeros), self.spread(whole)
        )

    def near_ties(self, radius: float) -> Tensor:
        """Members that another one at their place would overtake if each moved by `radius`."""
        near = (self.members - self.spread(self.out)).abs() <= 2 * radius
        rivals = self.collect(near) + self.stands * ((self.base - self.out).abs() <= 2 * radius)
        return near & (self.spread(rivals) > 1)


def _onto(tensor: Tensor, axis: int, index: Tensor, members: Tensor, include_self: bool, out: Tensor) -> Grouping:
    """Members that are reduced onto what a tensor holds already."""
    went = torch.zeros_like(out).scatter_add(axis, index, torch.ones_like(members))
    stands = torch.ones_like(out) if include_self else (went == 0).to(out.dtype)
    return Grouping(members, index, axis, tensor, stands, out)


def _scattered(op: Any) -> Grouping:
    return _onto(op.self, op.dim, op.index, op.src, op.include_self, op.out)


def _indexed(op: Any) -> Grouping:
    shape = [1] * op.source.dim()
    if shape:
        shape[op.dim] = -1
    index = op.index.reshape(shape).expand(op.source.shape)
    return _onto(op.self, op.dim, index, op.source, op.include_self, op.out)


def _segmented(op: Any) -> Grouping:
    """Segments lie one behind the other along `axis`; those of each row before it have lengths of their own."""
    ends = op.lengths.cumsum(-1) if op.lengths is not None else op.offsets[..., 1:]
    places = torch.arange(op.data.shape[op.axis], device=op.data.device).expand(*ends.shape[:-1], -1)
    index = torch.searchsorted(ends.contiguous(), places.contiguous(), right=True)
    index = index.reshape(*index.shape, *[1] * (op.data.dim() - index.dim())).expand(op.data.shape)
    out = _and_one_beyond(op.out, op.axis)
    nothing = torch.zeros_like(out)
    start, stands = (nothing, nothing) if op.initial is None else (nothing + op.initial, nothing + 1)
    return Grouping(op.data, index, op.axis, start, stands, out, counted=False)


def _and_one_beyond(places: Tensor, axis: int) -> Tensor:
    """Places with one more behind them, for elements that lie beyond the last segment."""
    return torch.cat((places, torch.zeros_like(places.narrow(axis, 0, 1))), axis) if places.numel() else places


def _base(grouping: Callable[[Any], Grouping]) -> Callable[[Any, Tensor], Tensor]:
    def vjp(op: Any, g: Tensor) -> Tensor:
        return g * grouping(op).locals(op.reduce)[0]

    return vjp


def _members(grouping: Callable[[Any], Grouping]) -> Callable[[Any, Tensor], Tensor]:
    def vjp(op: Any, g: Tensor) -> Tensor:
        group = grouping(op)
        return group.spread(g) * group.locals(kind(op))[1]

    return vjp


def kind(op: Any) -> str:
    """What the reduction is; segments call an extreme by another name."""
    named: str = {"max": "amax", "min": "amin"}.get(op.reduce, op.reduce)
    return named


def reduces(
    node: str,
    argument: str,
    grouping: Callable[[Any], Grouping],
    samples: Callable[[], Iterable[Sample]],
    where: str,
    onto: bool = True,
    **more: Any,
) -> Rule:
    """Register a reduction of the elements of `argument` into places, onto what `self` holds there or not."""

    def equation(op: Any) -> str:
        with_self = r"\text{, and } {$self}_{i}" if onto and op.include_self else ""
        return rf"{{$out}}_{{i}} = {SYMBOLS[kind(op)]}_{{{where}}} {{${argument}}}_{{k}}{with_self}"

    wrt = {
        argument: Wrt(
            _members(grouping),
            lambda op: LOCALS[kind(op)],
            lambda op: "{$g}_{i(k)}" + ("" if kind(op) == "sum" else rf" \cdot {LOCALS[kind(op)]}"),
            MEET,
        )
    }
    if onto:
        wrt["self"] = Wrt(
            _base(grouping),
            lambda op: LOCALS[kind(op)] if op.include_self else r"1 \text{ where nothing was sent}",
            lambda op: rf"$g \odot {LOCALS[kind(op)]}" if op.include_self else r"$g \text{, 0 where it was replaced}",
            MEET,
        )
    return rule(
        node,
        equation=equation,
        wrt=wrt,
        samples=samples,
        kink=Kink(
            lambda op, radius: (
                grouping(op).near_ties(radius)
                if kind(op) in ("amax", "amin")
                else torch.zeros_like(op.arguments[argument], dtype=torch.bool)
            ),
            "tied elements share the gradient alike",
            argument,
        ),
        **more,
    )


def _each(function: Callable[..., Any], *arguments: Any, **keywords: Any) -> list[Sample]:
    """Samples of each kind of reduction, with and without what stood at the place before."""
    return [
        sample(function, *arguments, reduce, include_self=include_self, note=f"{reduce}", **keywords)
        for reduce in ("prod", "mean", "amax", "amin")
        for include_self in (True, False)
    ]


def half(*shape: int) -> Tensor:
    """A sample input that has no element in common with `x`."""
    return (x(*shape).detach() - 0.5).requires_grad_()


def _with_zeros() -> Tensor:
    return torch.tensor([0.0, 2.0, 3.0, 0.0, 0.0, -1.0]).requires_grad_()


scatter_reduce = reduces(
    "ScatterReduceBackward0",
    "src",
    _scattered,
    where=r"k: \, {$index}_{k} = i",
    constants={"index": "not differentiable"},
    samples=lambda: [
        *_each(torch.scatter_reduce, x(3, 4), 1, at((0, 0), (1, 3)), half(2, 2)),
        sample(torch.scatter_reduce, x(3, 4), 0, at((0, 2), (0, 2)), half(2, 2), "sum"),
        sample(torch.scatter_reduce, x(3, 4), 0, at((0, 2), (0, 2)), half(2, 2), "sum", include_self=False),
        sample(torch.scatter_reduce, x(3), 0, at(0, 0, 1, 1, 1, 2), _with_zeros(), "prod", note="zeros"),
        sample(torch.scatter_reduce, x(3), 0, at(0, 0, 1), torch.ones(3).requires_grad_(), "amax", note="ties"),
        sample(torch.scatter_reduce, x(3), 0, at(), x(0), "mean", note="nothing sent"),
        sample(torch.scatter_reduce, x(), 0, torch.tensor(0), x(), "amin", note="0-dim, and a tie"),
    ],
    accepts=lambda op: op.src.shape == op.index.shape,  # PyTorch refuses to go back through any other
    remark=OVERWRITTEN,
)

index_reduce = reduces(
    "IndexReduceBackward0",
    "source",
    _indexed,
    where=r"k: \, {$index}_{k} = i",
    constants={"index": "not differentiable"},
    samples=lambda: [
        *_each(torch.index_reduce, x(3, 4), 0, at(0, 2, 0), half(3, 4)),
        sample(torch.index_reduce, x(3, 4), 1, at(1), x(3, 1), "mean"),
        sample(torch.index_reduce, x(3), 0, at(0, 0, 1, 1, 1, 2), _with_zeros(), "prod", note="zeros"),
        sample(torch.index_reduce, x(3), 0, at(), x(0), "mean", note="nothing sent"),
    ],
    remark=OVERWRITTEN,
)

segment_reduce = reduces(
    "SegmentReduceBackward0",
    "data",
    _segmented,
    where=r"k \text{ in segment } i",
    onto=False,
    constants=dict.fromkeys(("lengths", "indices", "offsets"), "not differentiable"),
    samples=lambda: [
        *(
            sample(torch.segment_reduce, x(5, 2), reduce, lengths=at(2, 3), note=reduce)
            for reduce in ("sum", "mean", "prod", "max", "min")
        ),
        sample(torch.segment_reduce, x(5), "sum", offsets=at(0, 1, 5), note="offsets"),
        sample(torch.segment_reduce, x(5), "mean", lengths=at(2, 3), initial=2, note="on top of 2"),
        sample(torch.segment_reduce, x(5), "max", lengths=at(2, 3), initial=4.5, note="at least 4.5"),
        sample(torch.segment_reduce, _with_zeros(), "prod", lengths=at(1, 2, 3), note="zeros"),
        sample(torch.segment_reduce, x(3), "sum", lengths=at(0, 3), note="an empty segment"),
        sample(
            torch.segment_reduce, x(5), "max", lengths=at(1, 2), unsafe=True, note="elements beyond the last segment"
        ),
        sample(torch.segment_reduce, x(2, 3), "max", lengths=at((1, 2), (2, 1)), axis=1, note="rows of their own"),
    ],
)
