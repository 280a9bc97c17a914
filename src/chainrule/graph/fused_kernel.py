"""One pass over many numbers, as numba compiles it. Only `onepass` imports this, where numba is installed.

The loop stays as fast as the memory only as long as the compiler takes eight or sixteen numbers at a time, for which it
must see sums that may be made in any order, a least and a greatest that need not care for NaN, and plain indices.
"""

from __future__ import annotations

from typing import Any

import numpy
from numba import carray, njit, types  # type: ignore[attr-defined]
from numba.extending import intrinsic
from numpy import float64

from chainrule.graph.bins import EXPONENTS, SAMPLE

ROW = 4096  # numbers whose zeros are counted in an integer of their own size
FIRST, STEP, LAST = EXPONENTS.start, EXPONENTS.step, len(EXPONENTS) - 1


def _chosen(order: str) -> Any:
    """The less or the greater of two numbers, neither of them NaN: for that a processor has one instruction."""

    @intrinsic
    def chosen(typing: Any, one: Any, other: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, pair: Any) -> Any:
            flags = ("nnan", "nsz")
            return builder.select(builder.fcmp_ordered(order, *pair, flags=flags), *pair, flags=flags)

        return one(one, other), generate

    return chosen


_less, _greater = _chosen("<"), _chosen(">")


def _address(typing: Any, number: Any) -> Any:
    """A number as the address that it is."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(types.voidptr))

    return types.voidptr(number), generate


_at: Any = intrinsic(_address)


def _figures(
    floats: Any, integers: Any, mantissa: int, exponents: int, address: int, count: int, counts: Any
) -> tuple[float, float, float, float, int, int]:
    """Least, greatest, sum, sum of squares, zeros, and how many are not finite; the histogram is added to `counts`.

    `floats` and `integers` are empty arrays of the type of the numbers, and of integers of the same size; a number has
    so many bits of mantissa, and exponents up to that one.
    """
    numbers, bits = carray(_at(address), count, floats.dtype), carray(_at(address), count, integers.dtype)
    zero, infinity = floats.dtype.type(0), floats.dtype.type(numpy.inf)
    total, squares, zeros, not_finite = 0.0, 0.0, 0, 0
    low, high = infinity, -infinity
    sample, every = 0, max(-(-count // SAMPLE), 1)
    for start in range(0, count, ROW):
        row = numbers[start : start + ROW]
        row_total, row_squares, row_zeros = 0.0, 0.0, integers.dtype.type(0)
        row_low, row_high = infinity, -infinity
        for i in range(row.size):
            x = row[i]
            wide = float64(x)
            row_total += wide
            row_squares += wide * wide
            row_zeros += integers.dtype.type(x == zero)
            row_low, row_high = _less(x, row_low), _greater(x, row_high)
        if not -infinity < row_total < infinity:  # once more, without what is not finite
            row_total, row_squares, row_finite = 0.0, 0.0, integers.dtype.type(0)
            row_low, row_high = infinity, -infinity
            for i in range(row.size):
                x = row[i]
                finite = -infinity < x < infinity
                wide = float64(x if finite else zero)
                row_total += wide
                row_squares += wide * wide
                row_finite += integers.dtype.type(finite)
                row_low = _less(x if finite else infinity, row_low)
                row_high = _greater(x if finite else -infinity, row_high)
            not_finite += row.size - row_finite
        total, squares, zeros = total + row_total, squares + row_squares, zeros + row_zeros
        low, high = min(low, row_low), max(high, row_high)
        while sample < start + row.size:  # now, while the row is in the processor's cache
            exponent = (bits[sample] >> mantissa) & (2 * exponents - 1)
            if numbers[sample] != zero and exponent != 2 * exponents - 1:
                counts[min(max((exponent - exponents + 1 - FIRST) // STEP, 0), LAST)] += 1
            sample += every
    return low, high, total, squares, zeros, not_finite


# Sums may be made in any order, but there may be infinities and NaN: nothing else of `fastmath`.
_options: Any = {"nogil": True, "error_model": "numpy", "fastmath": {"reassoc", "nsz", "contract"}}
try:
    figures: Any = njit(cache=True, **_options)(_figures)
except RuntimeError:  # there is no place where its machine code may be kept
    figures = njit(**_options)(_figures)
