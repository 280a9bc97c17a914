"""Figures of many tensors over some steps, as bytes: what makes the file of a long run small.

A column holds one figure (the norm) of every tensor of a layout at each step of a chunk. It is written tensor by
tensor, so that what changes little from step to step stands together, its bytes sorted by significance (all first
bytes, then all second ones), then deflated: some 3 bytes a number where float32 has 4, next to none for what stays the
same.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from operator import attrgetter
from typing import Any

import numpy as np
import numpy.typing as npt

from chainrule.graph.statistics import Statistics

REALS = ("norm", "mean", "std", "low", "high")  # float32
COUNTS = ("elements", "zeros", "not_finite")  # uint32
COLUMNS = (*REALS, *COUNTS)
NOT_ASKED = 2**32 - 1  # in the first bin of a histogram that was not made

Array = npt.NDArray[Any]


_figures = attrgetter(*COLUMNS)


def row(statistics: Iterable[Statistics]) -> Array:
    """The figures of one step's tensors, (tensors, columns); float64 holds the counts exactly."""
    return np.array([_figures(each) for each in statistics], np.float64)


def columns(rows: Sequence[Array]) -> list[bytes]:
    """Each figure of the tensors over some steps, in the order of `COLUMNS`."""
    figures = np.stack(rows)  # (steps, tensors, columns)
    with np.errstate(over="ignore"):  # what is beyond float32 is infinite there
        return [_packed(_narrow(figures[:, :, place], name).T) for place, name in enumerate(COLUMNS)]


def _narrow(figures: Array, name: str) -> Array:
    return figures.astype("<f4") if name in REALS else np.minimum(figures, NOT_ASKED).astype("<u4")


def read_column(data: bytes, name: str, steps: int) -> Array:
    """The figure of each tensor at each step, (tensors, steps)."""
    return _unpacked(data, "<f4" if name in REALS else "<u4").reshape(-1, steps)


def shortened(data: bytes, name: str, steps: int, kept: int) -> bytes:
    """A column with its first `kept` steps alone."""
    return _packed(np.ascontiguousarray(read_column(data, name, steps)[:, :kept]))


def histograms(row: Sequence[Statistics]) -> bytes:
    """The histograms of one step's tensors."""
    bins = max(len(each.magnitudes) for each in row)
    counts = [each.magnitudes or (NOT_ASKED, *(0,) * (bins - 1)) for each in row]
    return _packed(np.minimum(np.asarray(counts, np.int64), NOT_ASKED).astype("<u4"))


def read_histograms(data: bytes, tensors: int) -> list[tuple[int, ...]]:
    """The histogram of each tensor; () where there is none."""
    counts = _unpacked(data, "<u4").reshape(tensors, -1).tolist()
    return [() if row[0] == NOT_ASKED else tuple(row) for row in counts]


def integers(numbers: Sequence[int]) -> bytes:
    """Steps or ids of series."""
    return np.asarray(numbers, "<i8").tobytes()


def read_integers(data: bytes) -> Array:
    """The way back."""
    return np.frombuffer(data, "<i8")


def _packed(array: Array) -> bytes:
    flat = np.ascontiguousarray(array).view(np.uint8).reshape(-1, 4)
    return zlib.compress(np.ascontiguousarray(flat.T).tobytes(), 1)


def _unpacked(data: bytes, dtype: str) -> Array:
    sorted_bytes = np.frombuffer(zlib.decompress(data), np.uint8).reshape(4, -1)
    return np.ascontiguousarray(sorted_bytes.T).view(dtype).reshape(-1)
