"""Rules of reductions into places: many elements, each sent to a place by an index, and one result at each place.

What scatter, index_add's relatives, segments and the messages of a graph network have in common is a `Grouping`: which
elements meet at which place. The result there depends on the elements that meet there alone, and each kind of
reduction (sum, mean, product, extreme) gives one local derivative for each of them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from chainrule.rules import Kink, Rule, Sample, Wrt, derivative, rule, sample
from chainrule.rules import at as element
from chainrule.rules.index_notation import filled, letters, ranges, stated, where
from chainrule.rules.indexing import at
from chainrule.rules.shape import x

MEET = "a result depends only on the elements that were sent to its place"
OVERWRITTEN = (
    "Where what stood at a place before is left out of a maximum or minimum but is equal to it, PyTorch still counts "
    "it among the ties, and the gradient of the others comes out too small."
)
# For each kind of reduction: its value from the members alone, and on top of what stands at the place already.
VALUES = {
    "sum": ("SUM MEMBER", "BASE + SUM MEMBER"),
    "mean": (r"\frac{1}{N} SUM MEMBER", r"\frac{1}{COUNT} \left(BASE + SUM MEMBER\right)"),
    "prod": ("PROD MEMBER", r"BASE \, PROD MEMBER"),
    "amax": ("MAX MEMBER", r"\max\left(BASE, MAX MEMBER\right)"),
    "amin": ("MIN MEMBER", r"\min\left(BASE, MIN MEMBER\right)"),
}
TIED = (r"\frac{[MEMBER = OUT]}{TIES}", r"\frac{[BASE = OUT]}{TIES}")
# Its derivatives by a member that met at the place, and by what stands there.
RATES = {
    "sum": ("1", "1"),
    "mean": (r"\frac{1}{COUNT}", r"\frac{1}{COUNT}"),
    "prod": ("FIRST OTHERS", "PROD MEMBER"),
    "amax": TIED,
    "amin": TIED,
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
        """What stands at each place, given to each member that went there; 0 to those that went beyond the last one."""
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


def kind(op: Any) -> str:
    """What the reduction is; segments call an extreme by another name."""
    named: str = {"max": "amax", "min": "amin"}.get(op.reduce, op.reduce)
    return named


def _value(op: Any) -> str:
    alone, both = VALUES[kind(op)]
    if "include_self" in op.arguments:
        return both if op.include_self else where("BASE", "N = 0", alone)
    return alone if op.initial is None else both


def _words(op: Any, argument: str) -> dict[str, str]:
    """What the words of a formula stand for: OUT and BASE at a place, MEMBER v, another one u that met there too."""
    own, onto = letters(op.out), "include_self" in op.arguments
    axis = op.arguments.get("dim", op.arguments.get("axis", 0)) % max(len(own), 1)

    def member(letter: str) -> list[str]:
        return [letter if each == axis else place for each, place in enumerate(own)]

    def went(letter: str) -> str:
        if not onto:
            return f"B_{{{', '.join([*own[:axis], letter])}}}"
        return element("index", member(letter) if "src" in op.arguments else [letter] * op.index.dim())

    def big(symbol: str, letter: str, condition: str = "") -> str:
        return rf"\{symbol}_{{{letter}: {went(letter)} = {own[axis]}{condition}}}" if own else ""

    stands = op.include_self if onto else op.initial is not None
    base = element("self", own) if onto else "$initial"
    other = element(argument, member("u"))
    count = f"N_{{{', '.join(own)}}}" if own else "N"
    return {
        **{name.upper(): big(name, "v") for name in ("sum", "prod", "max", "min")},
        **{"OUT": element("out", own), "G": element("g", own), "BARE": element("grad", own)},
        **{"MEMBER": element(argument, member("v")), "GRAD": element("grad", member("v"))},
        **{"BASE": base, "FIRST": base if stands else "", "VALUE": _value(op)},
        "RATE": RATES[kind(op)][0],
        "SHARE": RATES[kind(op)][1] if stands else "[N = 0]",
        "OTHERS": f"{big('prod', 'u', f', u {chr(92)}neq v')} {other}" if own else "1",
        "TIES": f"[{base} = OUT] + " * stands + f"{big('sum', 'u')} [{other} = OUT]",
        "N": count,
        "NUMBER": f"{big('sum', 'b')} 1",
        "COUNT": f"({count} + 1)" if onto and stands else count,
        "MET": f"{went('v')} = {own[axis]}" if own else "0 = 0",
        "PLACES": rf"\sum_{{{own[axis]}: MET}}" if own else "",
    }


def _formula(text: str, argument: str) -> Callable[[Any], str]:
    """A formula with its words filled in, the definitions of what it uses, and the ranges."""

    of_member = re.search("MEMBER|GRAD", text.partition(" = ")[0])

    def formula(op: Any) -> str:
        words = _words(op, argument)
        found = filled(text, words)
        given = [f"{words['N']} = {words['NUMBER']}"] if "N" in found else []
        given += [] if "include_self" in op.arguments else _segments(op)
        if op.out.dim():
            axis, members = op.arguments.get("dim", op.arguments.get("axis")), list(op.arguments[argument].shape)
            used = [each for each in "vub" if re.search(rf"\b{each}\b", found + "".join(given))]
            along, sizes = members[axis], list(op.out.shape)
            if of_member:
                members[axis] = sizes[axis]
                sizes = [min(each) for each in zip(sizes, members, strict=True)]
            given += ranges([*letters(op.out), *used], [*sizes, *[along] * len(used)]).values()
        return found + stated(given)

    return formula


def _segments(op: Any) -> list[str]:
    """The definition of the segment B in which an element lies, from where the segments end or begin."""
    row = letters(op.out)[: op.axis % op.out.dim()]
    place, segment, before = (", ".join([*row, letter]) for letter in "vsw")
    if op.lengths is None:
        return [rf"B_{{{place}}} = \sum_{{s}} [{{$offsets}}_{{s}} \le v] - 1"]
    return [
        rf"B_{{{place}}} = \sum_{{s}} [E_{{{segment}}} \le v]",
        rf"E_{{{segment}}} = \sum_{{w: \, w \le s}} {element('lengths', before.split(', '))}",
        rf"0 \le s < {op.lengths.shape[-1]}",
    ]


def reduces(
    node: str, argument: str, grouping: Callable[[Any], Grouping], constants: Iterable[str] = ("index",), **more: Any
) -> Rule:
    """Register a reduction of the elements of `argument` into places, onto what `self` holds there or not."""

    def members(op: Any, g: Tensor) -> Tensor:
        group = grouping(op)
        return group.spread(g) * group.locals(kind(op))[1]

    def near(op: Any, radius: float) -> Tensor:
        if kind(op) in ("amax", "amin"):
            return grouping(op).near_ties(radius)
        return torch.zeros_like(op.arguments[argument], dtype=torch.bool)

    formula = partial(_formula, argument=argument)
    local = formula(derivative("OUT", "MEMBER", where("RATE", "MET")))
    wrt = {argument: Wrt(members, local, formula(r"GRAD = PLACES G \, RATE"), MEET)}
    if "index" in constants:
        local = formula(derivative("OUT", "BASE", "SHARE"))
        wrt["self"] = Wrt(
            lambda op, g: g * grouping(op).locals(op.reduce)[0], local, formula(r"BARE = G \, SHARE"), MEET
        )
    return rule(
        node,
        equation=formula("OUT = VALUE"),
        wrt=wrt,
        linear=lambda op: () if kind(op) == "prod" else tuple(wrt),  # an extreme is a copy of one of them
        kink=Kink(near, "tied elements share the gradient alike", argument),
        constants=dict.fromkeys(constants, "not differentiable"),
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
    """A sample input that shares no element with `x`."""
    return (x(*shape).detach() - 0.5).requires_grad_()


def _with_zeros() -> Tensor:
    return torch.tensor([0.0, 2.0, 3.0, 0.0, 0.0, -1.0]).requires_grad_()


scatter_reduce = reduces(
    "ScatterReduceBackward0",
    "src",
    _scattered,
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
    constants=("lengths", "indices", "offsets"),
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
        sample(torch.segment_reduce, x(5), "max", lengths=at(1, 2), unsafe=True, note="elements beyond the segments"),
        sample(torch.segment_reduce, x(2, 3), "max", lengths=at((1, 2), (2, 1)), axis=1, note="rows of their own"),
    ],
)
