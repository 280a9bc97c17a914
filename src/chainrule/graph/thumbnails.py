"""Thumbnails and histograms of large tensors.

A thumbnail is exact: every number goes into the mean of its cell. A histogram of very many numbers counts a regular
sample of them, every n-th in memory order, and says how many it counted; its ends are the true extremes.
"""

from __future__ import annotations

from math import gcd

import torch
from torch import Tensor as Data
from torch.nn.functional import adaptive_avg_pool1d

from chainrule.document import Histogram, Sketch
from chainrule.graph.statistics import Statistics, in_a_row

BINS = 24
COUNTED = 2**15  # numbers up to which all are counted; of more, at most half as many are
ROWS, COLUMNS = 8, 16  # of a thumbnail: a page with a thousand of them still opens at once


def histogram(data: Data, found: Statistics) -> Histogram | None:
    """How many finite numbers lie in each of 24 equally wide bins; None if all of them are equal."""
    if found.elements == found.not_finite or found.low == found.high:
        return None
    numbers = _real(_sample(data))
    numbers = numbers[numbers.isfinite()] if found.not_finite else numbers
    counts = torch.histc(numbers, BINS, found.low, found.high)
    sample = numbers.numel() if data.numel() > COUNTED else None
    return Histogram(found.low, found.high, tuple(int(count) for count in counts.tolist()), sample)


def _sample(data: Data) -> Data:
    """Every n-th number, n coprime to their count, so that no row, column or head is left out."""
    if data.numel() <= COUNTED:
        return data
    step = -(-data.numel() // (COUNTED // 2))
    while gcd(step, data.numel()) > 1:
        step += 1
    return in_a_row(data)[::step]


def sketch(data: Data) -> Sketch | None:
    """A thumbnail: the mean of each cell of a grid, last axis by all others; None for an empty tensor."""
    if not data.numel():
        return None
    grid = data.detach().reshape(-1, data.shape[-1]) if data.dim() else data.detach().reshape(1, 1)
    grid = grid.abs() if grid.is_complex() else grid
    rows, columns = min(ROWS, grid.shape[0]), min(COLUMNS, grid.shape[1])
    # The rows of a cell first, which reads memory in order; what is left is small.
    means = adaptive_avg_pool1d(_bands(grid, rows).unsqueeze(0), columns).reshape(-1).tolist()
    short = (" ".join(["%.3g"] * len(means)) % tuple(means)).split()  # one call, as there are so many
    return Sketch(rows, columns, tuple(map(float, short)))


def _bands(grid: Data, count: int) -> Data:
    """The mean of each of `count` bands of rows."""
    length, columns = grid.shape
    if length % count == 0:
        return grid.view(count, length // count, columns).sum(1, dtype=_wide(grid)) * (count / length)
    cells = _cells(length, count)
    return torch.stack([grid[first:end].sum(0, dtype=_wide(grid)) / (end - first) for first, end in cells])


def _cells(length: int, count: int) -> list[tuple[int, int]]:
    """The bounds of `count` cells of nearly equal size; they overlap by one where `length` is not a multiple."""
    return [(place * length // count, -(-(place + 1) * length // count)) for place in range(count)]


def _wide(data: Data) -> torch.dtype:
    return torch.float64 if data.dtype == torch.float64 else torch.float32


def _real(data: Data) -> Data:
    """The numbers, or the magnitudes of complex ones, as float32: precise enough for a picture."""
    data = data.detach()
    return (data.abs() if data.is_complex() else data).float().cpu()
