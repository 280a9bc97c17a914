"""Attempts to repair a wrong gradient: scaled, swapped or moved as a whole, or with one step of the backward edited.

An attempt yields a mistake only if the repaired gradient agrees at every point.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain, combinations
from typing import Any, Literal

import torch
from torch import Tensor

from chainrule.execution.function_trace import FunctionTrace
from chainrule.graph.comparison import compare
from chainrule.rules.facts import facts_of_call
from chainrule.verification.differences import ArgumentCheck

Mistake = Literal[
    "sign",
    "factor",
    "1/N",
    "transpose",
    "reduction",
    "missing term",
    "extra term",
    "wrong operand",
    "shifted",
    "swapped",
    "conjugate",
    "overwritten",
    "flat forward",
    "not recognised",
]
Found = tuple[Mistake, str]
Mended = Callable[[FunctionTrace], Tensor]
FITTED = 1e-5  # the rounding of a factor that is fitted to differences


def agree(points: list[FunctionTrace], position: int, mended: Mended) -> bool:
    """Whether a mended gradient agrees at every point."""
    try:
        return all(point.agrees(position, mended(point)) for point in points)
    except Exception:  # shapes that do not fit
        return False


def fit(points: list[FunctionTrace], position: int, base: Mended, part: Mended) -> float | None:
    """The one number c for which base + c part agrees at every point."""
    factor = None
    for point in points:
        start, change = base(point), part(point)
        along = point.seen(position, change)
        size = float(along @ along)
        if not math.isfinite(size) or size == 0:
            return None
        here = float(along @ (point.target(position) - point.seen(position, start))) / size
        if factor is not None and not same(here, factor):
            return None
        if not abs(here) > 1e-6 or not point.agrees(position, start + here * change):
            return None
        factor = here if factor is None else factor
    return factor


def same(factor: float, other: float) -> bool:
    """Whether a fitted factor is this number."""
    return compare(factor, other, eps=FITTED).agrees


def moves(tensor: Tensor) -> Iterator[tuple[Mistake, str, Callable[[Tensor], Tensor]]]:
    """Its conjugate, transposes of two axes, and shifts by one along an axis; the shape stays."""
    shape, misplaced = tensor.shape, "has its elements in the wrong places"
    if tensor.is_complex():
        yield "conjugate", "is not conjugated where it should be, or the reverse: conjugated", torch.conj
    for a, b in combinations(range(tensor.dim()), 2):
        if shape[a] == shape[b] > 1:
            yield "transpose", f"{misplaced}: transposed in axes {a} and {b}", partial(torch.transpose, dim0=a, dim1=b)
        elif min(shape[a], shape[b]) > 1:
            yield "transpose", f"{misplaced}: transposed in axes {a} and {b}", partial(_read_transposed, a=a, b=b)
    for axis in range(tensor.dim()):
        if shape[axis] > 1:
            for by in (1, -1):
                text = f"{misplaced}: shifted by {by} along axis {axis}"
                yield "shifted", text, partial(torch.roll, shifts=by, dims=axis)


def _read_transposed(tensor: Tensor, a: int, b: int) -> Tensor:
    """The elements, read in the order of the shape with two axes exchanged, and transposed into the shape itself."""
    shape = list(tensor.shape)
    shape[a], shape[b] = shape[b], shape[a]
    return tensor.reshape(shape).transpose(a, b)


def readable(point: FunctionTrace) -> Iterator[tuple[str, Mended]]:
    """Everything that a backward reads or works out, by name, with how to find it at any point."""
    for name in point.sources:
        yield name, lambda point, name=name: point.sources[name]  # type: ignore[misc]
    for place, call in enumerate(point.calls):
        if isinstance(call.out, Tensor):
            yield f"what its `{call.name}` gives", lambda point, place=place: point.calls[place].out  # type: ignore[misc]


def along(axes: tuple[int, ...]) -> str:
    """Axes in words."""
    return f"axis {axes[0]}" if len(axes) == 1 else f"axes {', '.join(map(str, axes))}"


def equal(left: Tensor, right: Tensor) -> bool:
    """Whether two tensors are the same, shape and numbers."""
    return left.shape == right.shape and torch.equal(left, right)


# -- of the gradient as a whole ---------------------------------------------------------------------------------------


def anew(points: list[FunctionTrace], finding: ArgumentCheck) -> Iterator[Found]:
    """The gradient agrees when forward and backward run again: a tensor was overwritten between them."""
    position = finding.edge.position
    if agree(points, position, lambda point: point.got[position]):
        yield (
            "overwritten",
            f"run again, right after its forward, backward gives the gradient of `{finding.label}` that agrees: in "
            "this step something that it reads, its output or a tensor kept on ctx, was written to in between",
        )


def flat(points: list[FunctionTrace], finding: ArgumentCheck) -> Iterator[Found]:
    """The function is flat around the point, but backward returns a gradient, as for `round` in quantisation."""
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


def scaled(points: list[FunctionTrace], finding: ArgumentCheck) -> Iterator[Found]:
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


def _constants(point: FunctionTrace) -> Iterator[tuple[str, float]]:
    """The plain numbers that the forward was given, by the names of its arguments."""
    for name, value in point.experiment.wide.items():
        if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) not in (0, 1):
            yield f"`{name}`", value


def _sizes(point: FunctionTrace) -> Iterator[tuple[int, str]]:
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


def swapped(points: list[FunctionTrace], finding: ArgumentCheck) -> Iterator[Found]:
    """Backward returned the gradient of this argument for another one."""
    position = finding.edge.position
    for other, edge in points[0].edges.items():
        if other != position and agree(points, position, lambda point, other=other: point.got[other]):  # type: ignore[misc]
            yield (
                "swapped",
                f"what came back for `{edge.argument}` is the gradient of `{finding.label}`: the two are swapped",
            )


def moved(points: list[FunctionTrace], finding: ArgumentCheck) -> Iterator[Found]:
    """The gradient agrees with its elements in other places, or conjugated."""
    position, name = finding.edge.position, f"the gradient of `{finding.label}`"
    for kind, what, change in moves(points[0].got[position]):
        if agree(points, position, lambda point, change=change: change(point.got[position])):  # type: ignore[misc]
            yield kind, f"{name} {what} it agrees"


def padded(points: list[FunctionTrace], finding: ArgumentCheck) -> Iterator[Found]:
    """A shift that lost the elements at the edge; all others agree."""
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


def _agree_inside(point: FunctionTrace, position: int, gradient: Tensor, inner: tuple[slice, ...]) -> bool:
    if point.target(position).numel() != gradient.numel():  # measured along directions only
        return False
    patched = point.target(position).reshape(gradient.shape).clone()
    patched[inner] = gradient[inner]
    return bool(gradient[inner].any()) and point.agrees(position, patched)


# -- of one step ------------------------------------------------------------------------------------------------------


MOST_EDITS = 6000  # of single steps of a backward


def summed(points: list[FunctionTrace], finding: ArgumentCheck) -> Iterator[Found]:
    """A missing or wrong sum over axes: of the result of a step, or of the upstream gradient."""
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

                def mended(point: FunctionTrace, take: Mended = take, axes: tuple[int, ...] = axes) -> Tensor:
                    return take(point).sum(axes).reshape(shape)

                if agree(points, position, mended):
                    yield (
                        "reduction",
                        f"a sum is missing in the gradient of `{finding.label}`: {called}, summed over {along(axes)}, "
                        "agrees",
                    )


def edited(points: list[FunctionTrace], finding: ArgumentCheck) -> Iterator[Found]:
    """One operand of one step transposed, shifted, replaced or negated; one term of a sum left out."""
    position, first = finding.edge.position, points[0]
    if not all(point.repeats for point in points) or len({len(point.calls) for point in points}) > 1:
        return
    yield from _numbers(points, finding)
    edits = sorted(_edits(first), key=lambda each: _RANK.index(each[2]))
    for place, slot, kind, text, change in edits[:MOST_EDITS]:

        def mended(point: FunctionTrace, place: int = place, slot: int = slot, change: _Change = change) -> Tensor:
            if change is None:
                return point.replay(position, skip=(place, slot))
            return point.replay(position, partial(_put, place, slot, partial(change, point)))

        if agree(points, position, mended):
            yield kind, f"in the gradient of `{finding.label}` {text} it agrees"
    for called, take in readable(first):
        for name, source in first.sources.items():
            if source.shape != take(first).shape or source is take(first) or "upstream" in called:
                continue

            def exchanged(point: FunctionTrace, take: Mended = take, name: str = name) -> Tensor:
                return point.replay(position, instead=(take(point), point.sources[name]))

            if agree(points, position, exchanged):
                yield (
                    "wrong operand",
                    f"the gradient of `{finding.label}` is worked out from the wrong operand: with {name} for {called} "
                    "it agrees",
                )


def _numbers(points: list[FunctionTrace], finding: ArgumentCheck) -> Iterator[Found]:
    """A plain number in one step is wrong, such as a factor, and the gradient is linear in it."""
    position = finding.edge.position
    for place, call in enumerate(points[0].calls):
        for slot, written in enumerate(call.arguments):
            plain = isinstance(written, (int, float)) and not isinstance(written, bool)
            if not plain or not facts_of_call(call.name).linear_in_numbers:
                continue

            def put(point: FunctionTrace, number: float | Tensor, place: int = place, slot: int = slot) -> Tensor:
                return point.replay(position, partial(_put, place, slot, lambda _: number))

            def slope(point: FunctionTrace, put: Callable[[FunctionTrace, float | Tensor], Tensor] = put) -> Tensor:
                return put(point, 1.0) - put(point, 0.0)

            try:
                fitted = fit(points, position, partial(put, number=0.0), slope)
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


_RANK: tuple[Mistake, ...] = ("sign", "conjugate", "transpose", "shifted", "wrong operand", "extra term")
_Change = Callable[[FunctionTrace, Tensor], Tensor] | None


def _put(place: int, slot: int, change: Callable[[Any], Any], at: int, arguments: list[Any]) -> list[Any]:
    if at == place:
        arguments[slot] = change(arguments[slot])
    return arguments


def _edits(point: FunctionTrace) -> Iterator[tuple[int, int, Mistake, str, _Change]]:
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
                text = f"{called} is the wrong one: with {name}"
                yield place, slot, "wrong operand", text, partial(_source, name, False)
                if source.dim() == 2:
                    yield place, slot, "wrong operand", f"{text} transposed", partial(_source, name, True)
            if (
                facts_of_call(call.name).sums_operands
                and isinstance(call.out, Tensor)
                and operand.shape == call.out.shape
            ):
                text = f"its `{call.name}` has a term too many: with operand {slot + 1} alone"
                yield place, slot, "extra term", text, None


def _to_operand(move: Callable[[Tensor], Tensor], point: FunctionTrace, operand: Tensor) -> Tensor:
    return move(operand)


def _source(name: str, transposed: bool, point: FunctionTrace, operand: Tensor) -> Tensor:
    source = point.sources[name]
    return source.transpose(0, 1) if transposed else source


def _known_as(point: FunctionTrace, tensor: Tensor) -> str:
    """What a step's operand is to the user: an input, the output, a saved tensor."""
    alike = (name for name, each in point.sources.items() if each is tensor or equal(each, tensor))
    name = next(alike, "")
    return f" ({name})" if name else ""
