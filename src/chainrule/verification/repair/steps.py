"""Mistakes of one step of a backward: with a sum, another operand, or another number in it, the gradient agrees."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from chainrule.execution.function_trace import Trial
from chainrule.verification.differences import Finding
from chainrule.verification.repair.mending import Found, Mended, Mistake, agree, along, equal, fit, moves, readable

MOST_EDITS = 6000  # of single steps of a backward


def summed(points: list[Trial], finding: Finding, wrong: list[Finding]) -> Iterator[Found]:
    """A sum over axes of what some step gave, or of the upstream gradient, where one was left out or is another."""
    position, point = finding.edge.position, points[0]
    shape = point.got[position].shape
    for called, take in readable(point):
        tensor = take(point)
        for count in range(1, min(tensor.dim(), 4) + 1):
            for axes in combinations(range(tensor.dim()), count):
                kept = tuple(size for axis, size in enumerate(tensor.shape) if axis not in axes)
                if math.prod(kept) != math.prod(shape) or tuple(s for s in shape if s != 1) != tuple(
                    s for s in kept if s != 1
                ):
                    continue
                if math.prod(tensor.shape) == math.prod(kept):
                    continue

                def mended(point: Trial, take: Mended = take, axes: tuple[int, ...] = axes) -> Tensor:
                    return take(point).sum(axes).reshape(shape)

                if agree(points, position, mended):
                    yield (
                        "reduction",
                        f"a sum is missing in the gradient of `{finding.label}`: {called}, summed over {along(axes)}, "
                        "agrees",
                    )


def edited(points: list[Trial], finding: Finding, wrong: list[Finding]) -> Iterator[Found]:
    """One operand of one step transposed, shifted, replaced or negated; one term of a sum left out."""
    position, first = finding.edge.position, points[0]
    if not all(point.repeats for point in points) or len({len(point.calls) for point in points}) > 1:
        return
    yield from _numbers(points, finding)
    edits = sorted(_edits(first), key=lambda each: _RANK.index(each[2]))
    for place, slot, kind, text, change in edits[:MOST_EDITS]:

        def mended(point: Trial, place: int = place, slot: int = slot, change: _Change = change) -> Tensor:
            if change is None:
                return point.replay(position, skip=(place, slot))
            return point.replay(position, partial(_put, place, slot, partial(change, point)))

        if agree(points, position, mended):
            yield kind, f"in the gradient of `{finding.label}` {text} it agrees"
    for called, take in readable(first):
        for name, source in first.sources.items():
            if source.shape != take(first).shape or source is take(first) or "upstream" in called:
                continue

            def exchanged(point: Trial, take: Mended = take, name: str = name) -> Tensor:
                return point.replay(position, instead=(take(point), point.sources[name]))

            if agree(points, position, exchanged):
                yield (
                    "wrong operand",
                    f"the gradient of `{finding.label}` is worked out from the wrong operand: with {name} for {called} "
                    "it agrees",
                )


def _numbers(points: list[Trial], finding: Finding) -> Iterator[Found]:
    """A plain number in one step, such as a factor, is another: where the gradient is linear in it."""
    position = finding.edge.position
    for place, call in enumerate(points[0].calls):
        for slot, written in enumerate(call.arguments):
            if call.name not in _WITH_FACTORS or not isinstance(written, (int, float)) or isinstance(written, bool):
                continue

            def put(point: Trial, number: float | Tensor, place: int = place, slot: int = slot) -> Tensor:
                return point.replay(position, partial(_put, place, slot, lambda _: number))

            def share(point: Trial, put: Callable[[Trial, float | Tensor], Tensor] = put) -> Tensor:
                return put(point, 1.0) - put(point, 0.0)

            try:
                fitted = fit(points, position, partial(put, number=0.0), share)
            except Exception:  # a number that the step cannot take
                continue
            if fitted is not None:
                yield (
                    "factor",
                    f"in the gradient of `{finding.label}` the number {written:.6g} of its `{call.name}` is wrong: "
                    f"with {fitted:.6g} it agrees",
                )
            for name in points[0].inputs:
                if agree(points, position, lambda point, name=name: put(point, point.inputs[name])):  # type: ignore[misc]
                    yield (
                        "wrong operand",
                        f"in the gradient of `{finding.label}` the number {written:.6g} of its `{call.name}` is wrong: "
                        f"with `{name}` it agrees",
                    )


_WITH_FACTORS = {"mul", "add", "sub", "multiply", "subtract"}
_RANK: tuple[Mistake, ...] = ("sign", "conjugate", "transpose", "shifted", "wrong operand", "extra term")
_Change = Callable[[Trial, Tensor], Tensor] | None


def _put(place: int, slot: int, change: Callable[[Any], Any], at: int, arguments: list[Any]) -> list[Any]:
    if at == place:
        arguments[slot] = change(arguments[slot])
    return arguments


def _edits(point: Trial) -> Iterator[tuple[int, int, Mistake, str, _Change]]:
    """(step, operand, kind, words, the change): the words end in `it agrees`."""
    for place, call in enumerate(point.calls):
        operands = [(slot, each) for slot, each in enumerate(call.arguments) if isinstance(each, Tensor)]
        for slot, operand in operands:
            called = f"operand {slot + 1} of its `{call.name}`{_known_as(point, operand)}"
            for kind, what, move in moves(operand):
                yield place, slot, kind, f"{called} {what}", partial(_to_operand, move)
            yield place, slot, "sign", f"the sign of {called} is wrong: with -1", partial(_to_operand, torch.neg)
            for name, source in point.sources.items():
                if source.shape != operand.shape or source is operand or source.dtype != operand.dtype:
                    continue
                told = f"{called} is the wrong one: with {name}"
                yield place, slot, "wrong operand", told, partial(_source, name, False)
                if source.dim() == 2:
                    yield place, slot, "wrong operand", f"{told} transposed", partial(_source, name, True)
            if call.name in ("add", "sub") and isinstance(call.out, Tensor) and operand.shape == call.out.shape:
                told = f"its `{call.name}` has a term too many: with operand {slot + 1} alone"
                yield place, slot, "extra term", told, None


def _to_operand(move: Callable[[Tensor], Tensor], point: Trial, operand: Tensor) -> Tensor:
    return move(operand)


def _source(name: str, transposed: bool, point: Trial, operand: Tensor) -> Tensor:
    source = point.sources[name]
    return source.transpose(0, 1) if transposed else source


def _known_as(point: Trial, tensor: Tensor) -> str:
    """What a step's operand is to the user: an input, the output, a saved tensor."""
    alike = (name for name, each in point.sources.items() if each is tensor or equal(each, tensor))
    name = next(alike, "")
    return f" ({name})" if name else ""
