"""Mistakes of a gradient as a whole: run again, scaled, exchanged, moved it agrees."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import chain, combinations

import torch
from torch import Tensor

from chainrule.execution.function_trace import Trial
from chainrule.verification.differences import Finding
from chainrule.verification.repair.mending import Found, agree, along, equal, fit, moves, same


def anew(points: list[Trial], finding: Finding, wrong: list[Finding]) -> Iterator[Found]:
    """Nothing is wrong with the backward when it runs again, on what the forward has just kept."""
    position = finding.edge.position
    if agree(points, position, lambda point: point.got[position]):
        yield (
            "overwritten",
            f"run again, right after its forward, backward gives the gradient of `{finding.label}` that agrees: in "
            "this step something that it reads, its output or a tensor kept on ctx, was written to in between",
        )


def flat(points: list[Trial], finding: Finding, wrong: list[Finding]) -> Iterator[Found]:
    """The function has slope 0 all around, and a gradient comes back all the same, as of `round` in quantisation."""
    position, points = finding.edge.position, points[:2]  # a point nearby may lie at a jump
    if not agree(points, position, lambda point: torch.zeros_like(point.got[position])):
        return
    passed_on = any(
        all(slot < len(p.upstream) and equal(p.upstream[slot], p.got[position]) for p in points)
        for slot in range(len(points[0].upstream))
    )
    what = "the upstream gradient as it is (a straight-through estimator)" if passed_on else "a gradient of its own"
    yield (
        "flat forward",
        f"the forward does not change with `{finding.label}` around here, so its derivative is 0, while backward gives "
        f"{what}: right if that is meant, and no derivative",
    )


def scaled(points: list[Trial], finding: Finding, wrong: list[Finding]) -> Iterator[Found]:
    """A number times the gradient agrees: its sign, a factor, a mean's 1/N."""
    position = finding.edge.position
    factor = fit(
        points, position, lambda point: torch.zeros_like(point.got[position]), lambda point: point.got[position]
    )
    if factor is None:
        return
    name = f"the gradient of `{finding.label}`"
    if same(factor, -1):
        yield "sign", f"the sign of {name} is wrong: with -1 it agrees"
        return
    for given, value in _constants(points[0]):
        if same(factor, value):
            yield "factor", f"a factor {given} = {value:.6g} is missing in {name}: multiplied by it, it agrees"
            return
        if same(factor, 1 / value):
            yield "factor", f"{name} has a factor {given} = {value:.6g} too many: divided by it, it agrees"
            return
    for size, called in _sizes(points[0]):
        if same(factor, 1 / size):
            yield "1/N", f"a factor 1/N is missing in {name}: divided by N = {size}, {called}, it agrees"
            return
        if same(factor, size):
            yield "1/N", f"{name} has a factor 1/N too many: multiplied by N = {size}, {called}, it agrees"
            return
    yield "factor", f"{name} is {1 / factor:.6g} times what it should be: multiplied by {factor:.6g} it agrees"


def _constants(point: Trial) -> Iterator[tuple[str, float]]:
    """The plain numbers that the forward was given, by the names of its arguments."""
    for name, value in point.experiment.wide.items():
        if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) not in (0, 1):
            yield f"`{name}`", value


def _sizes(point: Trial) -> Iterator[tuple[int, str]]:
    """The numbers that a mean may divide by. Two is left to be a plain factor."""
    tensors = {**{f"`{name}`": each for name, each in point.inputs.items()}}
    tensors |= {"the output" if len(point.outs) == 1 else f"output {i}": out for i, out in enumerate(point.outs)}
    for name, each in tensors.items():
        if each.numel() > 2:
            yield each.numel(), f"the number of elements of {name}"
    for name, each in tensors.items():
        for axes in chain.from_iterable(combinations(range(each.dim()), count) for count in (1, 2, 3)):
            size = math.prod(each.shape[axis] for axis in axes)
            if size > 2:
                yield size, f"the size of {name} along {along(axes)}"


def swapped(points: list[Trial], finding: Finding, wrong: list[Finding]) -> Iterator[Found]:
    """What came back for another argument is the gradient of this one."""
    position = finding.edge.position
    for other, edge in points[0].edges.items():
        if other != position and agree(points, position, lambda point, other=other: point.got[other]):  # type: ignore[misc]
            yield (
                "swapped",
                f"what came back for `{edge.argument}` is the gradient of `{finding.label}`: the two are swapped",
            )


def moved(points: list[Trial], finding: Finding, wrong: list[Finding]) -> Iterator[Found]:
    """Its elements in other places agree, or its conjugate."""
    position, name = finding.edge.position, f"the gradient of `{finding.label}`"
    for kind, what, change in moves(points[0].got[position]):
        if agree(points, position, lambda point, change=change: change(point.got[position])):  # type: ignore[misc]
            yield kind, f"{name} {what} it agrees"


def padded(points: list[Trial], finding: Finding, wrong: list[Finding]) -> Iterator[Found]:
    """A shift that lost the element at the edge: all others agree."""
    position = finding.edge.position
    shape = points[0].got[position].shape
    for axis, by in ((axis, by) for axis, size in enumerate(shape) if size > 2 for by in (1, -1)):
        inner = (slice(None),) * axis + (slice(1, None) if by > 0 else slice(None, -1),)
        if all(_agree_inside(point, position, point.got[position].roll(by, axis), inner) for point in points):
            yield (
                "shifted",
                f"the gradient of `{finding.label}` is off by one along axis {axis}: shifted by {by} it agrees, except "
                "at the edge",
            )


def _agree_inside(point: Trial, position: int, gradient: Tensor, inner: tuple[slice, ...]) -> bool:
    if point.target(position).numel() != gradient.numel():  # measured along directions only
        return False
    patched = point.target(position).reshape(gradient.shape).clone()
    patched[inner] = gradient[inner]
    return bool(gradient[inner].any()) and point.agrees(position, patched)
