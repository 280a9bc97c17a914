"""Indices in formulas: which letter stands for which axis, and how an element is written."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor

LETTERS = "ijklmnpqrs"
AND = r" \land "
OTHERS = "uvwabcdfgh"  # of a second element of the same tensor


def letters(t: Tensor) -> list[str]:
    """One letter for each axis."""
    return list(LETTERS[: t.dim()])


def places(shape: Sequence[int], letters: str = LETTERS) -> list[str]:
    """One letter for each axis that has more than one place, and 0 for the others."""
    return ["0" if size == 1 else letter for letter, size in zip(letters, shape, strict=False)]


def fitted(places: Sequence[str], t: Tensor) -> list[str]:
    """The indices of the element of `t` that broadcasting puts at `places`."""
    own = places[len(places) - t.dim() :]
    return ["0" if size == 1 else place for place, size in zip(own, t.shape, strict=True)]


def affine(place: str, step: int = 1, start: int = 0) -> str:
    """`step` times an index, and `start` more: `2 i + 1`."""
    if place == "0":
        return str(start)
    text = place if step == 1 else f"{step} {place}"
    return text if not start else f"{text} {'+' if start > 0 else '-'} {abs(start)}"


def position(places: Sequence[Any], steps: Sequence[int]) -> str:
    """Where an element lies when each index is a step of some length: `12 i + 4 j + k`."""
    return " + ".join(affine(p, step) for p, step in zip(places, steps, strict=True) if step and p != "0") or "0"


def row_major(sizes: Sequence[int]) -> list[int]:
    """The steps by which all elements are counted row by row; 0 along an axis of size 1, which has one place alone."""
    return [math.prod(sizes[axis + 1 :]) * (size != 1) for axis, size in enumerate(sizes)]


def digits(place: str, sizes: Sequence[int], steps: Sequence[int] = ()) -> list[str]:
    """The indices of the element that lies at a position: the inverse of `position`."""
    steps = steps or row_major(sizes)
    longest = max((step for step, size in zip(steps, sizes, strict=True) if size != 1), default=0)
    place = f"({place})" if " " in place else place
    found = []
    for size, step in zip(sizes, steps, strict=True):
        whole = place if step == 1 else rf"\lfloor {place} / {step} \rfloor"
        found.append("0" if size == 1 else whole if step == longest else rf"{whole} \bmod {size}")
    return [each[1:-1] if each == place and " " in place else each for each in found]


def where(value: str, condition: str, otherwise: str = "0") -> str:
    """A value where a condition holds, and another one elsewhere."""
    return rf"\begin{{cases}} {value} & {condition} \\ {otherwise} & \text{{otherwise}} \end{{cases}}"


def total(among: Sequence[str], conditions: Sequence[str], each: str) -> str:
    """The sum over some indices, under conditions; where no index is summed over, it is there or not."""
    if among:
        return rf"\sum_{{{', '.join(among)}{': ' * bool(conditions)}{', '.join(conditions)}}} {each}"
    return rf"{each} \, [{AND.join(conditions)}]" if conditions else each


def ranges(letters: Iterable[str], sizes: Iterable[int]) -> dict[str, str]:
    """What each letter runs over."""
    return {a: rf"0 \le {a} < {size}" for a, size in zip(letters, sizes, strict=True) if a.isalpha()}


def stated(conditions: Iterable[str]) -> str:
    """Conditions beside a formula."""
    return "".join(rf", \quad {each}" for each in conditions)
