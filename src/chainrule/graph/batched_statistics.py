"""Many small tensors measured at once: those of one size are the rows of a matrix.

To measure a small tensor by itself takes ten calls into PyTorch and numpy, which cost more than the numbers do. A step
has hundreds of them (biases, norms, samples of what an optimizer remembers), of a few sizes; so they are laid under one
another, and each reduction runs once for all of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from chainrule.graph.bins import EXPONENTS, SAMPLE
from chainrule.graph.statistics import TINY, Statistics, in_a_row, of_a_sample, part_of, spread, spread_over
from chainrule.graph.unobserved import unobserved

MOST = 2**14  # numbers of a tensor up to which it is measured as a row
REAL = frozenset({torch.float32, torch.float64, torch.float16, torch.bfloat16})
BLOCK = 2**18  # numbers of a matrix, which should stay in the processor's cache


def measured(tensors: Sequence[Tensor], magnitudes: bool) -> list[Statistics]:
    """The statistics of each, as `Statistics.of` has them, with or without the histogram."""
    found: dict[int, Statistics] = {}
    with unobserved():
        for places in _alike(tensors):
            rows = torch.stack([in_a_row(tensors[place]) for place in places])
            found.update(zip(places, _of_rows(rows, magnitudes), strict=True))
    # A row with numbers that are not finite, or whose squares are too large or too small, is measured by itself.
    return [
        known if (known := found.get(place)) is not None and _is_exact(known) else Statistics.of(tensor, magnitudes)
        for place, tensor in enumerate(tensors)
    ]


def measured_samples(tensors: Sequence[Tensor]) -> list[Statistics]:
    """The statistics of each; of a large one those of an even sample, as `of_a_sample` has them of `part_of`."""
    with unobserved():
        samples = [_sampled(each) for each in tensors]
    return [
        of_a_sample(known, tensor.numel())
        for known, tensor in zip(measured(samples, magnitudes=False), tensors, strict=True)
    ]


def _sampled(tensor: Tensor) -> Tensor:
    """As `part_of`, but no copy where the numbers can be reduced as they are."""
    return spread_over(in_a_row(tensor)) if _is_plain(tensor) else part_of(tensor)


def is_small(tensor: Tensor) -> bool:
    """Whether it can be measured as a row: not too large, and of numbers that can be reduced as they are."""
    return 0 < tensor.numel() <= MOST and _is_plain(tensor)


def _is_plain(tensor: Tensor) -> bool:
    if tensor.dtype not in REAL or tensor.layout is not torch.strided:
        return False
    return tensor.device.type == "cpu" and not tensor.is_neg()


def _alike(tensors: Sequence[Tensor]) -> Iterator[list[int]]:
    """The places of the tensors that can be rows of one matrix, in blocks."""
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
    histograms = _histograms(rows) if magnitudes else [()] * len(lows)
    zeros = _zeros(rows, lows, highs)
    for low, high, total, norm, none, counts in zip(lows, highs, sums, norms, zeros, histograms, strict=True):
        mean = total / count
        std = 0.0 if low == high else spread(norm / math.sqrt(count), mean)
        yield Statistics(count, norm, mean, std, low, high, none, 0, counts)


def _is_exact(known: Statistics) -> bool:
    if not known.low and not known.high:
        return True
    return all(map(math.isfinite, (known.low, known.high, known.norm))) and max(-known.low, known.high) >= TINY


def _zeros(rows: Tensor, lows: Sequence[float], highs: Sequence[float]) -> Iterator[int]:
    """How many numbers of each row are zero; most rows have none, which is seen sooner than they are counted."""
    around = any(low <= 0 <= high for low, high in zip(lows, highs, strict=True))
    least = rows.abs().amin(1).tolist() if around else [1.0] * len(lows)
    return (0 if size else rows.shape[1] - int(row.count_nonzero()) for size, row in zip(least, rows, strict=True))


def _histograms(rows: Tensor) -> list[tuple[int, ...]]:
    """How many of a sample of each row lie in which bin of `EXPONENTS`."""
    import numpy

    sizes = numpy.abs(rows[:, :: -(-rows.shape[1] // SAMPLE)].numpy())
    exponents = numpy.frexp(sizes)[1] - 1  # frexp: size = mantissa * 2^exponent, mantissa from 0.5 up to 1
    bins = ((exponents - EXPONENTS.start) // EXPONENTS.step).clip(0, len(EXPONENTS) - 1)
    bins += numpy.arange(len(bins))[:, None] * len(EXPONENTS)
    counts = numpy.bincount(bins[sizes > 0], minlength=len(bins) * len(EXPONENTS))
    return [tuple(each) for each in counts.reshape(len(bins), -1).tolist()]
