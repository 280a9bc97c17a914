"""The figures of many numbers in one pass over their memory, at its speed: a kernel that numba compiles, where it is.

Without numba `statistics` makes them with a reduction of PyTorch's or numpy's for each figure, in four times the time.
The kernel is made for float32 and float64, when the first of them are measured: that takes half a second the first time
on a machine, and some hundredths after that, from numba's cache.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy
from numpy import float64

if TYPE_CHECKING:
    import torch
    from torch import Tensor

ROW = 4096  # numbers that are counted, or added up without numba, in a type of their own size
SAMPLE = 512  # numbers, spread over all, that the histogram is made of
EXPONENTS = range(-32, 32, 4)
"""The histogram's bins: bin `i` counts the sizes from 2^EXPONENTS[i] up to the next; the outermost take the rest."""


class Figures(NamedTuple):
    """What one pass finds: of the finite numbers, and how many others there are."""

    low: float
    high: float
    total: float
    squares: float
    zeros: int
    not_finite: int
    magnitudes: tuple[int, ...]


def one_pass(row: Tensor) -> Figures | None:
    """The figures of float32 or float64 on a processor; None for other types, and where there is no numba."""
    kernel = _kernel(row.dtype)
    if kernel is None:
        return None
    row = row.contiguous()
    counts = numpy.zeros(len(EXPONENTS), numpy.int64)
    low, high, total, squares, zeros, not_finite = kernel(row.data_ptr(), row.numel(), counts)
    return Figures(low, high, total, squares, zeros, not_finite, tuple(counts.tolist()))


@cache
def _kernel(type: torch.dtype) -> Callable[..., Any] | None:
    """The kernel for one type of numbers."""
    integers = {"torch.float32": numpy.int32, "torch.float64": numpy.int64}.get(str(type))
    try:
        from numba import njit
    except ImportError:  # not installed, or not for this Python or numpy
        return None
    if integers is None:
        return None
    # Sums may be made in any order, which is what lets a processor add eight or sixteen numbers at a time; but there
    # may be infinities and NaN, so nothing else of `fastmath`.
    options: Any = {"nogil": True, "error_model": "numpy", "fastmath": {"reassoc", "nsz", "contract"}}
    plain = _written_for(numpy.dtype(str(type).removeprefix("torch.")).type, integers)
    try:
        made: Callable[..., Any] = njit(cache=True, **options)(plain)
    except RuntimeError:  # there is no place where its machine code may be kept
        made = njit(**options)(plain)
    return made


def _written_for(floats: Any, integers: Any) -> Callable[..., Any]:
    """The kernel, as numba reads it, for one type of numbers and the integers of the same size."""
    from numba import carray  # type: ignore[attr-defined]

    less, greater, at = _chosen("<"), _chosen(">"), _pointer()
    first, step, last = EXPONENTS.start, EXPONENTS.step, len(EXPONENTS) - 1
    zero, infinity = floats(0), floats(numpy.inf)
    mantissa_bits, exponents = integers(numpy.finfo(floats).nmant), integers(numpy.finfo(floats).maxexp)
    exponent_bits = integers(2 * exponents - 1)

    def figures(address: Any, count: Any, counts: Any) -> tuple[float, float, float, float, int, int]:
        numbers = carray(at(address), count, floats)
        bits = carray(at(address), count, integers)
        total, squares, zeros, not_finite = 0.0, 0.0, 0, 0
        low, high = infinity, -infinity
        for start in range(0, numbers.size, ROW):
            row = numbers[start : start + ROW]
            row_total, row_squares, row_zeros = 0.0, 0.0, integers(0)
            row_low, row_high = infinity, -infinity
            for i in range(row.size):  # by index: over an iterator, sixteen numbers at a time are not seen
                x = row[i]
                wide = float64(x)
                row_total += wide
                row_squares += wide * wide
                row_zeros += integers(x == zero)
                row_low, row_high = less(x, row_low), greater(x, row_high)
            if not -infinity < row_total < infinity:  # once more, without what is not finite
                row_total, row_squares = 0.0, 0.0
                row_low, row_high, row_finite = infinity, -infinity, integers(0)
                for i in range(row.size):
                    x = row[i]
                    finite = -infinity < x < infinity
                    wide = float64(x if finite else zero)
                    row_total += wide
                    row_squares += wide * wide
                    row_finite += integers(finite)
                    row_low = less(x if finite else infinity, row_low)
                    row_high = greater(x if finite else -infinity, row_high)
                not_finite += row.size - row_finite
            total, squares, zeros = total + row_total, squares + row_squares, zeros + row_zeros
            low, high = min(low, row_low), max(high, row_high)
        for i in range(0, numbers.size, max(-(-numbers.size // SAMPLE), 1)):
            exponent = (bits[i] >> mantissa_bits) & exponent_bits
            if numbers[i] != zero and exponent != exponent_bits:
                counts[min(max((exponent - exponents + 1 - first) // step, 0), last)] += 1
        return low, high, total, squares, zeros, not_finite

    return figures


def _chosen(order: str) -> Any:
    """The less or the greater of two numbers, neither of them NaN: for that a processor has one instruction.

    Python's `min` and `max` say what they do with NaN, which keeps a compiler from using it.
    """
    from numba.extending import intrinsic

    @intrinsic
    def chosen(typing: Any, one: Any, other: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, pair: Any) -> Any:
            flags = ("nnan", "nsz")
            return builder.select(builder.fcmp_ordered(order, *pair, flags=flags), *pair, flags=flags)

        return one(one, other), generate

    return chosen


def _pointer() -> Any:
    """A number as the address that it is."""
    from numba import types
    from numba.extending import intrinsic

    @intrinsic
    def pointer(typing: Any, address: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, address: Any) -> Any:
            return builder.inttoptr(address[0], context.get_value_type(types.voidptr))

        return types.voidptr(address), generate

    return pointer
