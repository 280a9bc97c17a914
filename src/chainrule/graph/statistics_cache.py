"""The statistics of many tensors: each is measured once, and small ones of one size are measured together.

A step of a large model has a thousand tensors, and the same memory under several names: a view, its transpose, the
gradient on which our rule and autograd agree to the last bit. So `StatisticsCache` keeps statistics by memory. Findings
and reports ask for the same ones. A tensor is also asked whether it is finite by measuring it, as PyTorch's `isfinite`
alone takes six times as long as all statistics together.

Measuring a small tensor by itself takes ten calls into PyTorch and numpy, which cost more than the numbers do. A step
has hundreds of them (biases, norms, samples of an optimizer's state), of a few sizes. Those of one size become the rows
of a matrix, and each reduction runs once for all rows.

A thumbnail is exact: every number goes into the mean of its cell. A histogram of very many numbers counts a regular
sample of them, every n-th in memory order, and says how many it counted; its ends are the true extremes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from math import gcd

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool1d

from chainrule.document import Histogram, Sketch
from chainrule.graph.comparison import dense, identical
from chainrule.graph.reexecution import unobserved
from chainrule.graph.snapshot import Snapshot, all_have_numbers, has_numbers, statistics_of
from chainrule.graph.statistics import (
    SAMPLE,
    TINY,
    Statistics,
    histograms,
    in_a_row,
    is_dense,
    norm_of,
    of_a_sample,
    of_row,
    part_of,
    spread_over,
)
from chainrule.graph.write_log import Earlier, read_from

PART = 2**18  # numbers that are subtracted at a time
MOST = 2**14  # numbers of a tensor up to which it is measured as a row
BLOCK = 2**18  # numbers of a matrix, which should stay in the processor's cache
REAL = frozenset({torch.float32, torch.float64, torch.float16, torch.bfloat16})

UNKNOWN = Statistics(0, math.nan, math.nan, math.nan, math.nan, math.nan, 0, 0)
"""Of a tensor whose numbers were not kept."""

Key = tuple[object, ...]


class StatisticsCache:
    """Statistics by memory. A measured tensor is held, so that its memory is not given to another one.

    Of one that is read anew each time (`Earlier`), what it is read from is held.
    """

    def __init__(self) -> None:
        self._known: dict[Key, tuple[Tensor | Earlier, Statistics]] = {}
        self._twins: set[tuple[Key, Key]] = set()

    def statistics(self, data: Tensor, magnitudes: bool = False) -> Statistics:
        """The statistics of a tensor, with the histogram if `magnitudes`. Waits for the tensor's device."""
        if not has_numbers(data):
            return UNKNOWN
        key = memory(data)
        known = self._known.get(key)
        if known is None or (magnitudes and not known[1].magnitudes):
            known = self._known[key] = (read_from(data) or data, Statistics.of(data, magnitudes))
        return known[1]

    def of(self, snapshot: Snapshot | None, magnitudes: bool = False) -> Statistics | None:
        """The statistics that were measured while the step ran, else those of the numbers; None without either."""
        if snapshot is None or snapshot.statistics is not None or (data := snapshot.data) is None:
            return statistics_of(snapshot)
        return self.statistics(data, magnitudes)

    def measure(self, tensors: Iterable[Tensor], magnitudes: bool) -> None:
        """Measure the small tensors among these together, before somebody asks for them one by one."""
        small = {memory(each): each for each in tensors if is_small(each)}
        waiting = {key: each for key, each in small.items() if key not in self._known}
        found = measured(list(waiting.values()), magnitudes)
        held = (read_from(each) or each for each in waiting.values())
        self._known.update(zip(waiting, zip(held, found, strict=True), strict=True))

    def norm(self, data: Tensor) -> float:
        """The Euclidean norm; not finite where an element is not."""
        found = self.statistics(data)
        return found.norm if not found.not_finite else norm_of(data)

    def finite(self, data: Tensor | None) -> bool:
        """Whether a tensor holds no NaN and no infinity, as far as is known."""
        if not has_numbers(data) or not (data.is_floating_point() or data.is_complex()):
            return True
        return not self.statistics(data).not_finite

    def all_finite(self, several: Iterable[Tensor | None]) -> bool:
        """Whether several tensors hold neither; small ones are measured together."""
        small = []
        for each in several:  # one by one, as some are made to be read
            if has_numbers(each) and is_small(each):
                small.append(each)
            elif not self.finite(each):
                return False
        self.measure(small, magnitudes=False)
        return all(map(self.finite, small))

    def are_twins(self, one: Tensor, other: Tensor, passing: bool = False) -> bool:
        """Whether two tensors are equal number for number; then they share their statistics.

        Nothing is kept of `one` where it is `passing`, made to be compared once.
        """
        if not all_have_numbers(one, other):
            return False
        pair = memory(one), memory(other)
        if one is other or pair in self._twins:
            return True
        if not identical(one, other):
            return False
        if not passing:
            self._twins.add(pair)
            self._known.setdefault(pair[0], (read_from(one) or one, self.statistics(other)))
        return True


def memory(data: Tensor) -> Key:
    """A key that is equal for two tensors where one is a view of all of the other, in whatever order."""
    if (earlier := read_from(data)) is not None:
        return (id(earlier),)
    if data.layout != torch.strided or not is_dense(data):
        return (id(data),)
    return (data.data_ptr(), data.numel(), data.dtype, data.device, data.is_conj(), data.is_neg())


def distance(one: Tensor, other: Tensor) -> float:
    """The norm of the difference of two tensors of one shape.

    Its parts are made one after the other in the same memory, which stays in the processor's cache.
    """
    one, other = (dense(each).detach() for each in (one, other))
    if one.stride() == other.stride() and is_dense(one):
        one, other = in_a_row(one), in_a_row(other)
    one, other = one.reshape(-1), other.reshape(-1)
    room = torch.empty(min(PART, one.numel()), dtype=one.dtype, device=one.device)
    parts = zip(one.split(PART), other.split(PART), strict=True)
    return math.hypot(*(norm_of(torch.sub(mine, theirs, out=room[: mine.numel()])) for mine, theirs in parts))


# -- small tensors, measured together ---------------------------------------------------------------------------------


def measured(tensors: Sequence[Tensor], magnitudes: bool) -> list[Statistics]:
    """The statistics of each tensor, as `Statistics.of` has them, with or without the histogram."""
    found: dict[int, Statistics] = {}
    with unobserved():
        for places in _of_one_size(tensors):
            rows = torch.stack([in_a_row(tensors[place]) for place in places])
            found.update(zip(places, _of_rows(rows, magnitudes), strict=True))
    # A row with numbers that are not finite, or whose squares are too large or too small, is measured by itself.
    return [
        known if (known := found.get(place)) is not None and _is_exact(known) else _alone(tensor, magnitudes)
        for place, tensor in enumerate(tensors)
    ]


def _alone(tensor: Tensor, magnitudes: bool) -> Statistics:
    return Statistics.of(tensor, magnitudes) if has_numbers(tensor) else UNKNOWN


def measured_samples(tensors: Sequence[Tensor]) -> list[Statistics]:
    """The statistics of each tensor; of a large one those of an even sample, as `of_a_sample` has them of `part_of`."""
    with unobserved():
        samples = [
            spread_over(in_a_row(each)) if _is_plain(each) else part_of(each) if has_numbers(each) else each
            for each in tensors
        ]
    return [
        of_a_sample(known, tensor.numel())
        for known, tensor in zip(measured(samples, magnitudes=False), tensors, strict=True)
    ]


def is_small(tensor: Tensor) -> bool:
    """Whether a tensor can be a row: not too large, and of numbers that can be reduced where they are."""
    return 0 < tensor.numel() <= MOST and _is_plain(tensor)


def _is_plain(tensor: Tensor) -> bool:
    if tensor.dtype not in REAL or tensor.layout is not torch.strided:
        return False
    return tensor.device.type == "cpu" and not tensor.is_neg() and has_numbers(tensor)


def _of_one_size(tensors: Sequence[Tensor]) -> Iterator[list[int]]:
    """The places of tensors that can be rows of one matrix, in blocks."""
    groups: dict[tuple[int, torch.dtype], list[int]] = {}
    for place, each in enumerate(tensors):
        if is_small(each):
            groups.setdefault((each.numel(), each.dtype), []).append(place)
    for (size, _), places in groups.items():
        most = max(BLOCK // size, 1)
        yield from (places[start : start + most] for start in range(0, len(places), most))


def _of_rows(rows: Tensor, magnitudes: bool) -> Iterator[Statistics]:
    rows, count = rows.float() if rows.itemsize < 4 else rows, rows.shape[1]
    lows, highs = rows.amin(1).tolist(), rows.amax(1).tolist()
    sums, norms = rows.sum(1).tolist(), torch.linalg.vector_norm(rows, dim=1).tolist()
    sample = rows[:, :: -(-count // SAMPLE)].numpy()
    counted = histograms(sample) if magnitudes else [()] * len(lows)
    zeros = _zeros(rows, lows, highs)
    for low, high, total, norm, none, counts in zip(lows, highs, sums, norms, zeros, counted, strict=True):
        yield of_row((count, low, high, total, norm, none, 0), counts)


def _is_exact(known: Statistics) -> bool:
    if not known.low and not known.high:
        return True
    return all(map(math.isfinite, (known.low, known.high, known.norm))) and max(-known.low, known.high) >= TINY


def _zeros(rows: Tensor, lows: Sequence[float], highs: Sequence[float]) -> Iterator[int]:
    """How many numbers of each row are zero. Most rows have none, which takes less time to see than to count."""
    around = any(low <= 0 <= high for low, high in zip(lows, highs, strict=True))
    least = rows.abs().amin(1).tolist() if around else [1.0] * len(lows)
    return (0 if size else rows.shape[1] - int(row.count_nonzero()) for size, row in zip(least, rows, strict=True))


# -- a picture of one tensor ------------------------------------------------------------------------------------------


BINS = 24
COUNTED = 2**15  # numbers up to which all are counted; of more, at most half as many are
ROWS, COLUMNS = 8, 16  # of a thumbnail: a page with a thousand of them still opens at once


def histogram(data: Tensor, found: Statistics) -> Histogram | None:
    """How many finite numbers lie in each of 24 equally wide bins; None if all of them are equal."""
    if found.elements == found.not_finite or found.low == found.high:
        return None
    numbers = _real(_sample(data))
    numbers = numbers[numbers.isfinite()] if found.not_finite else numbers
    counts = torch.histc(numbers, BINS, found.low, found.high)
    sample = numbers.numel() if data.numel() > COUNTED else None
    return Histogram(found.low, found.high, tuple(int(count) for count in counts.tolist()), sample)


def _sample(data: Tensor) -> Tensor:
    """Every n-th number, n coprime to their count, so that no row, column or head is left out."""
    if data.numel() <= COUNTED:
        return data
    step = -(-data.numel() // (COUNTED // 2))
    while gcd(step, data.numel()) > 1:
        step += 1
    return in_a_row(data)[::step]


def sketch(data: Tensor) -> Sketch | None:
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


def _bands(grid: Tensor, count: int) -> Tensor:
    """The mean of each of `count` bands of rows."""
    length, columns = grid.shape
    if length % count == 0:
        return grid.view(count, length // count, columns).sum(1, dtype=_wide(grid)) * (count / length)
    cells = _cells(length, count)
    return torch.stack([grid[first:end].sum(0, dtype=_wide(grid)) / (end - first) for first, end in cells])


def _cells(length: int, count: int) -> list[tuple[int, int]]:
    """The bounds of `count` cells of nearly equal size; they overlap by one where `length` is not a multiple."""
    return [(place * length // count, -(-(place + 1) * length // count)) for place in range(count)]


def _wide(data: Tensor) -> torch.dtype:
    return torch.float64 if data.dtype == torch.float64 else torch.float32


def _real(data: Tensor) -> Tensor:
    """The numbers, or the magnitudes of complex ones, as float32: precise enough for a picture."""
    data = data.detach()
    return (data.abs() if data.is_complex() else data).float().cpu()
