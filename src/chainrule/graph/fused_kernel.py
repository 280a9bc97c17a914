"""The statistics of many numbers in one pass over their memory, compiled by numba. Only `statistics` imports this.

The loop is as fast as the memory only while the compiler takes eight or sixteen numbers at a time. For that it must see
sums in any order, a minimum and a maximum that ignore NaN, and plain indices.
"""

from __future__ import annotations

from typing import Any

import numpy
from numba import carray, njit, types  # type: ignore[attr-defined]
from numba.extending import intrinsic
from numpy import float64

ROW = 4096  # numbers whose zeros are counted in an integer of their own size


def _chosen(order: str) -> Any:
    """The minimum or maximum of two numbers, neither of them NaN, for which a processor has one instruction."""

    @intrinsic
    def chosen(typing: Any, one: Any, other: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, pair: Any) -> Any:
            flags = ("nnan", "nsz")
            return builder.select(builder.fcmp_ordered(order, *pair, flags=flags), *pair, flags=flags)

        return one(one, other), generate

    return chosen


_less, _greater = _chosen("<"), _chosen(">")


def _address(typing: Any, number: Any) -> Any:
    """A number as an address."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(types.voidptr))

    return types.voidptr(number), generate


_at: Any = intrinsic(_address)


def _measure_memory(
    floats: Any,
    integers: Any,
    mantissa: int,
    exponents: int,
    first: int,
    shift: int,
    address: int,
    count: int,
    every: int,
    counts: Any,
) -> tuple[float, float, float, float, int, int]:
    """Least, greatest, sum, sum of squares, zeros, and how many are not finite; the histogram is added to `counts`.

    `floats` and `integers` are empty arrays of the numbers' type and of integers of the same size. A number has
    `mantissa` bits of mantissa, and an exponent of at most `exponents`. The histogram counts one number of `every` so
    many; its first bin begins at 2^`first`, and each spans 2^`shift` powers of two.
    """
    numbers, bits = carray(_at(address), count, floats.dtype), carray(_at(address), count, integers.dtype)
    zero, infinity = floats.dtype.type(0), floats.dtype.type(numpy.inf)
    total, squares, zeros, not_finite = 0.0, 0.0, 0, 0
    low, high = infinity, -infinity
    sample = 0
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
                counts[min(max((exponent - exponents + 1 - first) >> shift, 0), counts.size - 1)] += 1
            sample += every
    return low, high, total, squares, zeros, not_finite


# Sums may be made in any order; the rest of `fastmath` would assume that there is no infinity and no NaN.
_options: Any = {"nogil": True, "error_model": "numpy", "fastmath": {"reassoc", "nsz", "contract"}}
try:
    measure_memory: Any = njit(cache=True, **_options)(_measure_memory)
except RuntimeError:  # there is no folder for the compiled code
    measure_memory = njit(**_options)(_measure_memory)
