"""What is wrong with a user's wrong backward, where it can be recognised: each kind of mistake is tried to be mended.

A mistake is named only where the mended gradient agrees with the differences at the recorded point, with another
upstream gradient, and at a point nearby. Simple mistakes are tried before intricate ones; where nothing agrees the
answer is that it was not recognised.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain, combinations, combinations_with_replacement, product
from typing import Any, Literal

import torch
from torch import Tensor

from chainrule.agreement import Finding
from chainrule.differences import Experiment
from chainrule.trial import LARGEST, Trial, trials

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
SAME = 1e-4  # relative difference up to which a fitted factor is the same at each point
MOST_EDITS = 6000  # of single steps of a backward

Mended = Callable[[Trial], Tensor]


@dataclass(frozen=True, slots=True)
class Repair:
    """What is wrong with the gradient of one argument, in words, found by mending it."""

    kind: Mistake
    argument: str
    text: str


def recognise(experiment: Experiment, findings: list[Finding]) -> tuple[Repair, ...]:
    """For each argument whose gradient is wrong, what is wrong with it."""
    wrong = [finding for finding in findings if finding.off and not finding.missing]
    edges = [finding.edge for finding in findings if not finding.missing and finding.edge.argument is not None]
    if not wrong:
        return ()
    points: list[Trial] = []
    if all(finding.got.numel() <= LARGEST for finding in wrong):
        try:
            points = list(trials(experiment, edges))
        except Exception:  # a user's code may do anything when it runs again
            points = []
    return tuple(_recognised(points, finding, wrong) for finding in wrong)


def _recognised(points: list[Trial], finding: Finding, wrong: list[Finding]) -> Repair:
    if points:
        for attempt in (
            _anew,
            _flat,
            _scaled,
            _swapped,
            _moved,
            _summed,
            _edited,
            _missing_use,
            _missing_product,
            _padded,
        ):
            try:
                found = next(attempt(points, finding, wrong), None)
            except Exception:  # an attempt that cannot be made is none
                continue
            if found is not None:
                return Repair(found[0], finding.label, found[1])
    return Repair(
        "not recognised", finding.label, f"what is wrong with the gradient of `{finding.label}` was not recognised"
    )


Found = tuple[Mistake, str]


def _agree(points: list[Trial], position: int, mended: Mended) -> bool:
    """Whether a mended gradient agrees at every point."""
    try:
        return all(point.agrees(position, mended(point)) for point in points)
    except Exception:  # shapes that do not fit
        return False


# -- the gradient that came back, as it is, scaled, exchanged, moved ---------------------------------------------------


def _anew(points: list[Trial], finding: Finding, wrong: list[Finding]) -> Iterator[Found]:
    """Nothing is wrong with the backward when it runs again, on what the forward has just kept."""
    position = finding.edge.position
    if _agree(points, position, lambda point: point.got[position]):
        yield (
            "overwritten",
            f"run again, right after its forward, backward gives the gradient of `{finding.label}` that agrees: in "
            "this step something that it reads, its output or a tensor kept on ctx, was written to in between",
        )


def _flat(points: list[Trial], finding: Finding, wrong: list[Finding]) -> Iterator[Found]:
    """The function has slope 0 all around, and a gradient comes back all the same, as of `round` in quantisation."""
    position, points = finding.edge.position, points[:2]  # a point nearby may lie at a jump
    if not _agree(points, position, lambda point: torch.zeros_like(point.got[position])):
        return
    passed_on = any(
        all(slot < len(p.upstream) and _equal(p.upstream[slot], p.got[position]) for p in points)
        for slot in range(len(points[0].upstream))
    )
    what = "the upstream gradient as it is (a straight-through estimator)" if passed_on else "a gradient of its own"
    yield (
        "flat forward",
        f"the forward does not change with `{finding.label}` around here, so its derivative is 0, while backward gives "
        f"{what}: right if that is meant, and no derivative",
    )


def _scaled(points: list[Trial], finding: Finding, wrong: list[Finding]) -> Iterator[Found]:
    position = finding.edge.position
    factor = _fitted(
        points, position, lambda point: torch.zeros_like(point.got[position]), lambda point: point.got[position]
    )
    if factor is None:
        return
    name = f"the gradient of `{finding.label}`"
    if abs(factor + 1) < SAME:
        yield "sign", f"the sign of {name} is wrong: with -1 it agrees"
        return
    for given, value in _constants(points[0]):
        if abs(factor / value - 1) < SAME:
            yield "factor", f"a factor {given} = {value:.6g} is missing in {name}: multiplied by it, it agrees"
            return
        if abs(factor * value - 1) < SAME:
            yield "factor", f"{name} has a factor {given} = {value:.6g} too many: divided by it, it agrees"
            return
    for size, called in _sizes(points[0]):
        if abs(factor * size - 1) < SAME:
            yield "1/N", f"a factor 1/N is missing in {name}: divided by N = {size}, {called}, it agrees"
            return
        if abs(factor / size - 1) < SAME:
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
                yield size, f"the size of {name} along {_axes(axes)}"


def _axes(axes: tuple[int, ...]) -> str:
    return f"axis {axes[0]}" if len(axes) == 1 else f"axes {', '.join(map(str, axes))}"


def _fitted(points: list[Trial], position: int, base: Mended, part: Mended) -> float | None:
    """The one number c for which base + c part agrees at every point."""
    factor = None
    for point in points:
        start, share = base(point), part(point)
        along = point.seen(position, share)
        size = float(along @ along)
        if not math.isfinite(size) or size == 0:
            return None
        here = float(along @ (point.target(position) - point.seen(position, start))) / size
        if factor is not None and abs(here - factor) > SAME * abs(factor):
            return None
        if not abs(here) > 1e-6 or not point.agrees(position, start + here * share):
            return None
        factor = here if factor is None else factor
    return factor


def _swapped(points: list[Trial], finding: Finding, wrong: list[Finding]) -> Iterator[Found]:
    position = finding.edge.position
    for other, edge in points[0].edges.items():
        if other != position and _agree(points, position, lambda point, other=other: point.got[other]):  # type: ignore[misc]
            yield (
                "swapped",
                f"what came back for `{edge.argument}` is the gradient of `{finding.label}`: the two are swapped",
            )


def _moved(points: list[Trial], finding: Finding, wrong: list[Finding]) -> Iterator[Found]:
    position, name = finding.edge.position, f"the gradient of `{finding.label}`"
    for kind, what, change in _moves(points[0].got[position]):
        if _agree(points, position, lambda point, change=change: change(point.got[position])):  # type: ignore[misc]
            yield kind, f"{name} {what} it agrees"


def _moves(tensor: Tensor) -> Iterator[tuple[Mistake, str, Callable[[Tensor], Tensor]]]:
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
                told = f"{misplaced}: shifted by {by} along axis {axis}"
                yield "shifted", told, partial(torch.roll, shifts=by, dims=axis)


def _read_transposed(tensor: Tensor, a: int, b: int) -> Tensor:
    """The elements, read in the order of the shape with two axes exchanged, and transposed into the shape itself."""
    shape = list(tensor.shape)
    shape[a], shape[b] = shape[b], shape[a]
    return tensor.reshape(shape).transpose(a, b)


def _padded(points: list[Trial], finding: Finding, wrong: list[Finding]) -> Iterator[Found]:
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


# -- one step of the backward changed ----------------------------------------------------------------------------------


def _summed(points: list[Trial], finding: Finding, wrong: list[Finding]) -> Iterator[Found]:
    """A sum over axes of what some step gave, or of the upstream gradient, where one was left out or is another."""
    position, point = finding.edge.position, points[0]
    shape = point.got[position].shape
    for called, take in _tensors(point):
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

                if _agree(points, position, mended):
                    yield (
                        "reduction",
                        f"a sum is missing in the gradient of `{finding.label}`: {called}, summed over {_axes(axes)}, "
                        "agrees",
                    )


def _tensors(point: Trial) -> Iterator[tuple[str, Mended]]:
    """Everything that a backward reads or works out, by name, with how to find it at any point."""
    for name in point.sources:
        yield name, lambda point, name=name: point.sources[name]  # type: ignore[misc]
    for place, call in enumerate(point.calls):
        if isinstance(call.out, Tensor):
            yield f"what its `{call.name}` gives", lambda point, place=place: point.calls[place].out  # type: ignore[misc]


def _edited(points: list[Trial], finding: Finding, wrong: list[Finding]) -> Iterator[Found]:
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

        if _agree(points, position, mended):
            yield kind, f"in the gradient of `{finding.label}` {text} it agrees"
    for called, take in _tensors(first):
        for name, source in first.sources.items():
            if source.shape != take(first).shape or source is take(first) or "upstream" in called:
                continue

            def exchanged(point: Trial, take: Mended = take, name: str = name) -> Tensor:
                return point.replay(position, instead=(take(point), point.sources[name]))

            if _agree(points, position, exchanged):
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
                fitted = _fitted(points, position, partial(put, number=0.0), share)
            except Exception:  # a number that the step cannot take
                continue
            if fitted is not None:
                yield (
                    "factor",
                    f"in the gradient of `{finding.label}` the number {written:.6g} of its `{call.name}` is wrong: "
                    f"with {fitted:.6g} it agrees",
                )
            for name in points[0].inputs:
                if _agree(points, position, lambda point, name=name: put(point, point.inputs[name])):  # type: ignore[misc]
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
            for kind, what, move in _moves(operand):
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
    alike = (name for name, each in point.sources.items() if each is tensor or _equal(each, tensor))
    name = next(alike, "")
    return f" ({name})" if name else ""


def _equal(left: Tensor, right: Tensor) -> bool:
    return left.shape == right.shape and torch.equal(left, right)


# -- terms that are missing --------------------------------------------------------------------------------------------


def _missing_use(points: list[Trial], finding: Finding, wrong: list[Finding]) -> Iterator[Found]:
    """The gradient is what comes back when one use of a tensor in the forward is forgotten."""
    position, point = finding.edge.position, points[0]
    for each in points:
        whole = each.without_use(None)[position]
        if whole is None or not each.agrees(position, whole):
            return
    for cut, name in enumerate(point.uses[:64]):
        if all(_same(each.without_use(cut)[position], each.got[position]) for each in points):
            yield (
                "missing term",
                f"a term is missing in the gradient of `{finding.label}`: the one that comes back through `{name}` of "
                "the forward; with it, it agrees",
            )


def _same(left: Tensor | None, right: Tensor) -> bool:
    if left is None or not right.any():
        return False
    return bool((left - right).abs().max() <= 1e-8 * right.abs().max())


def _missing_product(points: list[Trial], finding: Finding, wrong: list[Finding]) -> Iterator[Found]:
    """A multiple of a product of what the backward reads is missing, or too much."""
    position, name = finding.edge.position, f"the gradient of `{finding.label}`"
    for called, term in _terms(points[0], points[0].got[position].shape):
        try:
            factor = _fitted(points, position, lambda point: point.got[position], term)
        except Exception:  # shapes that do not fit
            continue
        if factor is not None:
            times = "" if abs(factor - 1) < SAME else "minus " if abs(factor + 1) < SAME else f"{factor:.6g} times "
            yield "missing term", f"a term is missing in {name}: with {times}{called} added it agrees"


def _terms(point: Trial, shape: torch.Size) -> Iterator[tuple[str, Mended]]:
    """Products of the upstream gradient with up to two tensors, with and without a sum along an axis, in this shape."""
    tensors = dict(_tensors(point))
    upstream = [(name, (take,)) for name, take in tensors.items() if "upstream" in name][:1]
    factors = [(name, take) for name, take in tensors.items() if "upstream" not in name][:24]
    for name, take in tensors.items():
        yield name, partial(_product, (take,), shape)
    products = upstream + [(f"{name} times {g}", (take, *gs)) for name, take in factors for g, gs in upstream]
    for told, parts in products[1:]:
        yield told, partial(_product, parts, shape)
    for (one, first), (two, second) in combinations_with_replacement(factors, 2):
        for g, gs in upstream:
            yield f"{one} times {two} times {g}", partial(_product, (first, second, *gs), shape)
    outside: list[tuple[str, tuple[Mended, ...]]] = [
        ("", ()),
        *((f", times {name}", (take,)) for name, take in factors),
    ]
    for (inner, parts), (outer, taken) in product(products, outside):
        for axis in (None, *range(len(shape))):
            along = "all axes" if axis is None else f"axis {axis}"
            yield f"the sum of {inner} over {along}{outer}", partial(_sum_times, parts, taken, axis, shape)


def _product(parts: tuple[Mended, ...], shape: torch.Size, point: Trial) -> Tensor:
    whole = parts[0](point)
    for take in parts[1:]:
        whole = whole * take(point)
    return whole if whole.shape == shape else whole.sum_to_size(shape)


def _sum_times(
    parts: tuple[Mended, ...], taken: tuple[Mended, ...], axis: int | None, shape: torch.Size, point: Trial
) -> Tensor:
    inner = parts[0](point)
    for take in parts[1:]:
        inner = inner * take(point)
    total = inner.sum() if axis is None else inner.sum(axis, keepdim=True)
    for take in taken:
        total = total * take(point)
    return total.expand(shape) if total.numel() < shape.numel() else total.sum_to_size(shape)
