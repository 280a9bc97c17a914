"""Indices in formulas: which letter stands for which axis, and how an element is written."""

from __future__ import annotations

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


def row_major(places: Sequence[Any], sizes: Sequence[int]) -> str:
    """The position of an element when all are counted row by row: `12 i + 4 j + k`."""
    terms, step = [], 1
    for place, size in zip(reversed(places), reversed(sizes), strict=True):
        terms.append(f"{place}" if step == 1 else rf"{step} {place}")
        step *= size
    return " + ".join(reversed(terms)) or "0"


def where(value: str, condition: str, otherwise: str = "0") -> str:
    """A value where a condition holds, and another one elsewhere."""
    return rf"\begin{{cases}} {value} & {condition} \\ {otherwise} & \text{{otherwise}} \end{{cases}}"
