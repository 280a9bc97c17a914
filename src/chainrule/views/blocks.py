"""What several views share: plain text, verdicts, and the numbers of a tensor as grids."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import TypeVar

from chainrule.document import Block, Code, Kind, Margin, Math, Tensor, Text, Verdict
from chainrule.numbers import number

COLUMNS = 16  # a wider grid is split into parts
USUAL_DTYPE = "float32"  # not mentioned at every tensor
MARKS: Mapping[Kind, str] = {
    "agrees": "✓", "disagrees": "✗", "by convention": "∠", "not differentiable": "–", "not checked": "·",
}  # fmt: skip
Writer = TypeVar("Writer", bound=Callable[..., object])


def printable(text: str) -> str:
    r"""`text` on one line, with control characters replaced by their codes (ESC by `\x1b`)."""
    return "".join(
        _escaped(char) if unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp") else char
        for char in re.sub(r"[ \t\n]*[\t\n][ \t\n]*", " ", text)
    )


def _escaped(char: str) -> str:
    code = ord(char)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


@dataclass(frozen=True, slots=True)
class Grid:
    """Part of a tensor: the index of its leading axes, its first column, and its rows as text, with their labels.

    `upstream` and `product` are the numbers at its margins.
    """

    index: tuple[int, ...]
    first: int
    rows: tuple[tuple[str, ...], ...]
    row_labels: tuple[str, ...] = ()
    column_labels: tuple[str, ...] = ()
    is_part: bool = False
    upstream: tuple[str, ...] = ()
    product: tuple[str, ...] = ()

    @property
    def span(self) -> str:
        """Which columns these are: `columns 16 to 31`."""
        return f"columns {self.first} to {self.first + len(self.rows[0]) - 1}"


def plain(text: Text) -> str:
    """A line of text as a string, with its formulas in LaTeX."""
    return "".join(
        span.latex if isinstance(span, Math) else span.source if isinstance(span, Code) else span for span in text
    )


def compared(verdict: Verdict) -> str:
    """The numbers of a verdict: ` (difference 0, tolerance 2.05e-05; measured 3, 12: difference 0, ...)`."""
    known = (("difference", verdict.difference), ("tolerance", verdict.tolerance))
    texts = [", ".join(f"{name} {number(value)}" for name, value in known if value is not None)]
    if (measured := verdict.measured) is not None:
        gave = ", ".join("-" if each is None else number(each) for each in measured.elements)
        if measured.count > len(measured.elements):
            taken = f"{measured.taken:,} of " if measured.taken < measured.count else ""
            gave = f"{taken}{measured.count:,} elements"
        gave = f"measured {gave}" if measured.taken else "measured along random directions"
        texts.append(f"{gave}: difference {number(measured.difference)}, tolerance {number(measured.tolerance)}")
    text = "; ".join(filter(None, texts))
    return f" ({text})" if text else ""


def statistics(tensor: Tensor) -> str:
    """The statistics of a tensor: `elements 98304, norm 313.5000`."""
    return ", ".join(f"{printable(name)} {number(value)}" for name, value in tensor.statistics)


def writer_of(block: Block, writers: Mapping[type, Writer], view: str) -> Writer:
    """A view's function for a block. Raises TypeError for a kind of block that the view does not know."""
    if type(block) not in writers:
        raise TypeError(f"{view} has no function for a block of type {type(block).__name__}. Add one to its _WRITERS.")
    return writers[type(block)]


def about(tensor: Tensor) -> str:
    """What the numbers of a tensor do not show: its shape if they are left out, its dtype if unusual, its label."""
    shape = " x ".join(map(str, tensor.shape))
    unseen = tensor.entries is None or len(tensor.shape) > 2 or not tensor.entries
    shape = shape if unseen and shape not in tensor.label else ""
    dtype = tensor.dtype if tensor.dtype != USUAL_DTYPE else ""
    return ", ".join(part for part in (shape, dtype, tensor.label) if part)


def grids(tensor: Tensor, columns: int = COLUMNS) -> Iterator[Grid]:
    """The matrices of a tensor, each at most `columns` wide. A vector is a row, or with row labels alone a column.

    Raises ValueError if the entries or the labels do not fit the shape.
    """
    entries, name = tensor.entries or (), f"tensor {printable(tensor.symbol)}"
    if len(entries) != prod(tensor.shape):
        raise ValueError(
            f"{name} of shape {tensor.shape} has {prod(tensor.shape)} elements, but its block holds {len(entries)} "
            "entries. Give all of them in row-major order, or None."
        )
    if not entries:
        return
    *leading, height, width = (1, 1, *tensor.shape)[-max(2, len(tensor.shape)) :]
    if len(tensor.shape) == 1 and tensor.row_labels and not tensor.column_labels:
        height, width = width, height
    labels = len(tensor.row_labels), len(tensor.column_labels)
    if labels[0] not in (0, height) or labels[1] not in (0, width):
        raise ValueError(
            f"{name} has {height} rows and {width} columns, but {labels[0]} row labels and {labels[1]} column labels. "
            "Give one label each, or none."
        )
    upstream = _written(tensor.upstream, height, tensor.decimals, name)
    below = _written(tensor.product, width, 4, name)
    for place, index in enumerate(product(*map(range, leading))):
        size = height * width
        part = [number(entry, tensor.decimals) for entry in entries[place * size : (place + 1) * size]]
        for first in range(0, width, columns):
            last = min(first + columns, width)
            rows = tuple(tuple(part[row * width + first : row * width + last]) for row in range(height))
            labels_above, is_part = tensor.column_labels[first:last], width > columns
            yield Grid(index, first, rows, tensor.row_labels, labels_above, is_part, upstream, below[first:last])


def _written(margin: Margin | None, count: int, decimals: int, name: str) -> tuple[str, ...]:
    if margin is None:
        return ()
    if len(margin.entries) != count:
        raise ValueError(f"{name} has {count} rows or columns, but {len(margin.entries)} numbers at their margin.")
    return tuple(number(entry, decimals) for entry in margin.entries)
