"""Rules of pooling: the largest element or the mean of each window of a picture.

A window is a product of ranges, one an axis; a table an axis says which input places each output place looks at. The
mean is linear and goes axis by axis. The largest passes its whole gradient back to the place whose index was returned.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from chainrule.rules import Factor, Kink, Rule, Sample, Wrt, rule, sample
from chainrule.rules.linear import randn
from chainrule.rules.resample import Taps, along_axes

Index = tuple[int, ...]


@dataclass(frozen=True)
class Window:
    """Along one axis: `index[p, k]` is the k-th input place in the window of output place p, if `inside[p, k]`."""

    size: int
    index: Tensor
    inside: Tensor


@lru_cache(maxsize=256)
def _sliding(size: int, places: int, kernel: int, stride: int, padding: int, dilation: int) -> Window:
    """Windows of one size, at equal steps; padding and what lies beyond it are no part of them."""
    index = (torch.arange(places) * stride - padding).unsqueeze(-1) + torch.arange(kernel) * dilation
    return Window(size, index.clamp(0, max(size - 1, 0)), (index >= 0) & (index < size))


@lru_cache(maxsize=256)
def _adaptive(size: int, places: int) -> Window:
    """Windows from floor(p S / P) up to, but without, ceil((p + 1) S / P)."""
    p = torch.arange(places)
    first, last = p * size // max(places, 1), -(-(p + 1) * size // max(places, 1))
    index = first.unsqueeze(-1) + torch.arange(int((last - first).max()) if places else 0)
    return Window(size, index.clamp(max=max(size - 1, 0)), index < last.unsqueeze(-1))


def _settings(op: Any, name: str, default: Any = None) -> Index:
    """A setting for each axis; an empty list stands for the default, one number for all."""
    axes = _AXES[len(op.kernel_size)] if len(op.kernel_size) > 1 else op.out.dim() - 2
    value = op.arguments.get(name)
    values = tuple(default if value is None or value == [] else [value] if isinstance(value, int) else value)
    return values * axes if len(values) == 1 else values


_AXES = {2: 2, 3: 3}


def _output(op: Any) -> Tensor:
    """What has the size of the pool's output: in the way back, that is `grad_output`."""
    found: Tensor = op.arguments.get("grad_output", op.out)
    return found


def _kernel_windows(op: Any) -> list[Window]:
    kernel = _settings(op, "kernel_size")
    stride, padding = _settings(op, "stride", kernel), _settings(op, "padding")
    dilation = _settings(op, "dilation", (1,))
    sizes, places = op.self.shape[-len(kernel) :], _output(op).shape[-len(kernel) :]
    each = zip(sizes, places, kernel, stride, padding, dilation, strict=True)
    return [_sliding(*axis) for axis in each]
