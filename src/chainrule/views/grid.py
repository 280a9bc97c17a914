"""A tensor's numbers as grids of written numbers, for the views that set them as matrices or tables."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from math import prod

from chainrule.document import Tensor
from chainrule.numbers import number

COLUMNS = 16  # a wider grid is cut into parts that stand below one another


@dataclass(frozen=True, slots=True)
class Grid:
    """Part of a tensor: the index of its leading axes, its first column, and its rows as text, with their labels."""

    index: tuple[int, ...]
    first: int
    rows: tuple[tuple[str, ...], ...]
    row_labels: tuple[str, ...] = ()
    column_labels: tuple[str, ...] = ()
    is_part: bool = False


USUAL_DTYPE = "float32"  # not worth saying at every tensor


def about(tensor: Tensor) -> str:
    """What its numbers do not show of a tensor: the shape where they are not there, the type of number, the label."""
    shape = " x ".join(map(str, tensor.shape))
    unseen = tensor.entries is None or len(tensor.shape) > 2 or not tensor.entries
    told = [shape if unseen and shape not in tensor.label else "", tensor.dtype if tensor.dtype != USUAL_DTYPE else ""]
    return ", ".join(part for part in (*told, tensor.label) if part)


def grids(tensor: Tensor, columns: int = COLUMNS) -> Iterator[Grid]:
    """The matrices that a tensor consists of, each at most `columns` wide.

    Raises ValueError where the entries do not fill the shape.
    """
    entries = tensor.entries or ()
    if len(entries) != prod(tensor.shape):
        raise ValueError(f"a tensor of shape {tensor.shape} has {prod(tensor.shape)} elements, not {len(entries)}")
    if not entries:
        return
    *leading, height, width = (1, 1, *tensor.shape)[-max(2, len(tensor.shape)) :]
    for place, index in enumerate(product(*map(range, leading))):
        part = entries[place * height * width : (place + 1) * height * width]
        for first in range(0, width, columns):
            last = min(first + columns, width)
            rows = (part[row * width + first : row * width + last] for row in range(height))
            yield Grid(
                index,
                first,
                tuple(tuple(number(entry) for entry in row) for row in rows),
                tensor.row_labels if len(tensor.row_labels) == height else (),
                tensor.column_labels[first:last] if len(tensor.column_labels) == width else (),
                width > columns,
            )
