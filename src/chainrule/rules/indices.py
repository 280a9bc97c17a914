"""Indices in formulas: which letter stands for which axis, and how an element is written."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor

LETTERS = "ijklmnpqrs"
OTHERS = "uvwabcdfgh"  # of a second element of the same tensor


def element(name: str, places: Iterable[Any]) -> str:
    """An element of the operand `name` of a template: `{$self}_{i, j}`, or `$self` of a tensor without axes."""
    text = ", ".join(map(str, places))
    return f"{{${name}}}_{{{text}}}" if text else f"${name}"


def letters(t: Tensor) -> list[str]:
    """One letter for each axis."""
    return list(LETTERS[: t.dim()])


def broadcast(t: Tensor, shape: Sequence[int]) -> list[str]:
    """The indices of the element of `t` that broadcasting to `shape` puts at i, j, k, ..."""
    added = len(shape) - t.dim()
    axes = zip(LETTERS[added : len(shape)], t.shape, shape[added:], strict=True)
    return ["0" if size == 1 != whole else letter for letter, size, whole in axes]


def partial(out: str, into: str) -> str:
    """The derivative of one element by another."""
    return rf"\frac{{\partial {out}}}{{\partial {into}}}"


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
