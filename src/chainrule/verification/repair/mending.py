"""What every attempt to mend a gradient needs: what it found, whether a mended gradient agrees, and what to try."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from itertools import combinations
from typing import Literal

import torch
from torch import Tensor

from chainrule.execution.function_trace import Trial
from chainrule.graph.comparison import compare

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
Mended = Callable[[Trial], Tensor]
FITTED = 1e-5  # the rounding of a factor that is fitted to differences


def agree(points: list[Trial], position: int, mended: Mended) -> bool:
    """Whether a mended gradient agrees at every point."""
    try:
        return all(point.agrees(position, mended(point)) for point in points)
    except Exception:  # shapes that do not fit
        return False


def fit(points: list[Trial], position: int, base: Mended, part: Mended) -> float | None:
    """The one number c for which base + c part agrees at every point."""
    factor = None
    for point in points:
        start, share = base(point), part(point)
        along = point.seen(position, share)
        size = float(along @ along)
        if not math.isfinite(size) or size == 0:
            return None
        here = float(along @ (point.target(position) - point.seen(position, start))) / size
        if factor is not None and not same(here, factor):
            return None
        if not abs(here) > 1e-6 or not point.agrees(position, start + here * share):
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
                told = f"{misplaced}: shifted by {by} along axis {axis}"
                yield "shifted", told, partial(torch.roll, shifts=by, dims=axis)


def _read_transposed(tensor: Tensor, a: int, b: int) -> Tensor:
    """The elements, read in the order of the shape with two axes exchanged, and transposed into the shape itself."""
    shape = list(tensor.shape)
    shape[a], shape[b] = shape[b], shape[a]
    return tensor.reshape(shape).transpose(a, b)


def readable(point: Trial) -> Iterator[tuple[str, Mended]]:
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
