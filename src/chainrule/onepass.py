"""The figures of many numbers in one pass over their memory, at its speed: a kernel that numba compiles, where it is.

Without numba `statistics` makes them with a reduction of PyTorch's or numpy's for each figure, in four times the time.
The kernel is made for float32 and float64, when the first of them are measured: that takes half a second the first time
on a machine, and some hundredths after that, from numba's cache.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy
from numpy import float64

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


def one_pass(numbers: numpy.ndarray[Any, Any]) -> Figures | None:
    """The figures of float32 or float64 that lie one after the other; None where there is no numba to compile with."""
    integers = numpy.dtype(f"i{numbers.itemsize}")
    kernel = _kernel(numbers.dtype, integers)
    if kernel is None:
        return None
    bits, counts = numbers.view(integers), numpy.zeros(len(EXPONENTS), integers)
    return Figures(*kernel(numbers, bits, counts), tuple(counts.tolist()))


@cache
def _kernel(floats: numpy.dtype[Any], integers: numpy.dtype[Any]) -> Callable[..., Any] | None:
    try:
        from numba import njit
    except ImportError:  # not installed, or not for this Python or numpy
        return None
    # Sums may be made in any order, which is what lets a processor add eight or sixteen numbers at a time; but there
    # may be infinities and NaN, so nothing else of `fastmath`.
    options: Any = {"nogil": True, "error_model": "numpy", "fastmath": {"reassoc", "nsz", "contract"}}
    plain = _written_for(floats.type, integers.type, int(numpy.finfo(floats).nmant), int(numpy.finfo(floats).maxexp))
    try:
        made: Callable[..., Any] = njit(cache=True, **options)(plain)
    except RuntimeError:  # there is no place where its machine code may be kept
        made = njit(**options)(plain)
    return made


def _written_for(floats: Any, integers: Any, mantissa: int, exponents: int) -> Callable[..., Any]:
    """The kernel, as numba reads it, for one type of numbers and the integers of the same size.

    Least and greatest are found among the bits as integers, for which the processor has an instruction: read so,
    positive numbers are in their order, and negative ones in the opposite one until all but their sign is turned over.
    NaN then lies beyond the infinities.
    """
    first, step, last = EXPONENTS.start, EXPONENTS.step, len(EXPONENTS) - 1
    size_bits = integers(numpy.iinfo(integers).max)
    sign_place = integers(numpy.iinfo(integers).bits - 1)
    smallest = integers(numpy.iinfo(integers).min)
    zero, one, mantissa_bits, exponent_bits = floats(0), integers(1), integers(mantissa), integers(2 * exponents - 1)
    infinity = exponent_bits << mantissa_bits  # as integers, all finite numbers lie between -infinity and this

    def figures(numbers: Any, bits: Any, counts: Any) -> tuple[float, float, float, float, int, int]:
        total, squares, zeros, lost = 0.0, 0.0, 0, 0
        low, high = size_bits, smallest
        for start in range(0, numbers.size, ROW):
            row, row_bits = numbers[start : start + ROW], bits[start : start + ROW]
            row_total, row_squares, row_zeros = 0.0, 0.0, integers(0)
            row_low, row_high = size_bits, smallest
            for i in range(row.size):
                x, place = row[i], row_bits[i]
                wide = float64(x)
                row_total += wide
                row_squares += wide * wide
                row_zeros += integers(x == zero)
                place ^= (place >> sign_place) & size_bits
                row_low, row_high = min(row_low, place), max(row_high, place)
            if row_high >= infinity or row_low < -infinity:  # once more, without what is not finite
                row_total, row_squares = 0.0, 0.0
                row_low, row_high = size_bits, smallest
                for i in range(row.size):
                    place = row_bits[i] ^ ((row_bits[i] >> sign_place) & size_bits)
                    if -infinity <= place < infinity:
                        row_total += float64(row[i])
                        row_squares += float64(row[i]) * float64(row[i])
                        row_low, row_high = min(row_low, place), max(row_high, place)
                    else:
                        lost += 1
            total, squares, zeros = total + row_total, squares + row_squares, zeros + row_zeros
            low, high = min(low, row_low), max(high, row_high)
        for i in range(0, numbers.size, max(-(-numbers.size // SAMPLE), 1)):
            exponent = (bits[i] >> mantissa_bits) & exponent_bits
            if numbers[i] != zero and exponent != exponent_bits:
                counts[min(max((exponent - exponents + 1 - first) // step, 0), last)] += one
        ends = numpy.empty(2, integers)
        ends[0], ends[1] = low ^ ((low >> sign_place) & size_bits), high ^ ((high >> sign_place) & size_bits)
        least, greatest = ends.view(floats)
        return least, greatest, total, squares, zeros, lost

    return figures
