"""The figures of many numbers in one pass over their memory, at its speed: `kernel`, where numba is installed.

Without numba `statistics` makes them with a reduction of PyTorch's or numpy's for each figure, in four times the time.
It takes half a second to load the compiler, once in a process, and another the first time on a machine.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache, partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy

from chainrule.graph.bins import EXPONENTS

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Figures(NamedTuple):
    """What one pass finds: of the finite numbers, and how many others there are."""

    low: float
    high: float
    total: float
    squares: float
    zeros: int
    not_finite: int
    magnitudes: tuple[int, ...]


LARGE = 2**18  # numbers from which on it is worth loading the compiler


@cache
def prepare() -> None:
    """Load the compiler and the kernel for float32 now: where much is going to be measured, and not in its midst."""
    import torch

    one_pass(torch.zeros(LARGE))


def one_pass(dense: Tensor) -> Figures | None:
    """The figures of float32 or float64 on a processor, of a tensor that fills one piece of memory.

    None for other types and devices, where there is no numba, and for a few numbers as long as it is not loaded.
    """
    count = dense.numel()
    if count < LARGE and "chainrule.graph.fused_kernel" not in sys.modules:
        return None
    kernel = _kernel(dense.dtype) if dense.is_cpu else None
    if kernel is None or not (address := dense.data_ptr()):
        return None
    counts = numpy.zeros(len(EXPONENTS), numpy.int64)
    low, high, total, squares, zeros, not_finite = kernel(address, count, counts)
    return Figures(low, high, total, squares, zeros, not_finite, tuple(counts.tolist()))


@cache
def _kernel(type: torch.dtype) -> Callable[..., Any] | None:
    name = str(type).removeprefix("torch.")
    integers = {"float32": numpy.int32, "float64": numpy.int64}.get(name)
    if integers is None:
        return None
    try:
        from chainrule.graph.fused_kernel import figures
    except ImportError:  # no numba, or none for this Python or numpy
        return None
    known = numpy.finfo(name)
    return partial(figures, numpy.empty(0, name), numpy.empty(0, integers), known.nmant, known.maxexp)
