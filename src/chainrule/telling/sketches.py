"""Large tensors made small enough to be looked at: where their numbers lie, and what they look like from afar."""

from __future__ import annotations

import torch
from torch import Tensor as Data
from torch.nn.functional import adaptive_avg_pool2d

from chainrule.document import Histogram, Sketch

BINS = 24
ROWS, COLUMNS = 8, 16  # of a sketch: a thousand of them still make a page that opens at once


def histogram(data: Data) -> Histogram | None:
    """How many finite numbers lie in each of 24 equally wide bins; None where all of them are the same."""
    numbers = _real(data)
    known = numbers.isfinite()
    numbers = numbers if known.all() else numbers[known]
    if not numbers.numel():
        return None
    low, high = numbers.min().item(), numbers.max().item()
    if low == high:
        return None
    counts = torch.histc(numbers, BINS, low, high)
    return Histogram(low, high, tuple(int(count) for count in counts.tolist()))


def sketch(data: Data) -> Sketch | None:
    """The mean of each cell of a grid over the last axis (columns) and all others (rows); None for an empty tensor."""
    if not data.numel():
        return None
    numbers = _real(data)
    flat = numbers.reshape(-1, numbers.shape[-1]) if numbers.dim() else numbers.reshape(1, 1)
    rows, columns = min(ROWS, flat.shape[0]), min(COLUMNS, flat.shape[1])
    means = adaptive_avg_pool2d(flat.unsqueeze(0), (rows, columns)).reshape(-1)
    return Sketch(rows, columns, tuple(float(f"{mean:.3g}") for mean in means.tolist()))


def _real(data: Data) -> Data:
    """The numbers as float32, the size of complex ones: enough to be looked at."""
    data = data.detach()
    data = data.to_dense() if data.layout is not torch.strided else data
    return (data.abs() if data.is_complex() else data).float().cpu()
