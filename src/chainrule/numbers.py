"""How every view writes a number: exactly if that is short, else visibly rounded."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from functools import lru_cache

DECIMALS = (4, 5, 6, 7, 8, 10, 12, 17)


def number(value: float | complex, decimals: int = 4) -> str:
    """`value` with at most 4 decimals, or with more where a sum needs them.

    Trailing zeros are dropped only if the written number equals the value up to a relative 5e-7, which is about the
    precision of float32: 4, -7.8, 0.5, but -0.0600 for -0.05998. Below 1e-4 and from 1e6 on, a number has 3 significant
    digits and a power of ten (1.23e-05). Minus zero is 0; booleans and integers are written in full.
    """
    return _number(value, decimals)


@lru_cache(maxsize=2**15, typed=True)  # a report writes each number many times
def _number(value: float | complex, decimals: int) -> str:
    if isinstance(value, int):
        return str(value)
    if isinstance(value, complex):
        sign = "-" if math.copysign(1.0, value.imag) < 0 else "+"
        return f"{number(value.real, decimals)}{sign}{number(abs(value.imag), decimals)}j"
    if not math.isfinite(value):
        return str(value)
    if value == 0:
        return "0"
    text = f"{value:.{decimals}f}" if 1e-4 <= abs(value) < 1e6 else f"{value:.{decimals - 2}e}"
    if abs(float(text) - value) > 5e-7 * abs(value):
        return text
    mantissa, power, exponent = text.partition("e")
    return mantissa.rstrip("0").rstrip(".") + power + exponent


def many(count: int, thing: str) -> str:
    """`1 decimal`, `2 decimals`."""
    return f"{count:,} {thing}{'s' * (count != 1)}"


def real_part(value: float | complex) -> float:
    """The real part of a complex number; any other as it is."""
    return value.real if isinstance(value, complex) else float(value)


def rounded(value: float | complex, decimals: int) -> float | complex:
    """The number that is written."""
    if isinstance(value, complex):
        return complex(rounded(value.real, decimals), rounded(value.imag, decimals))
    if isinstance(value, int) or not math.isfinite(value) or decimals >= DECIMALS[-1]:
        return value
    if 1e-4 <= abs(value) < 1e6:
        return round(value, decimals)
    return float(f"{value:.{decimals - 2}e}") + 0.0  # minus zero is 0


def enough(repeat: Callable[[int], float | complex], result: float | complex) -> int:
    """How many decimals the numbers of a calculation need so that a reader who repeats it gets the printed result.

    `repeat` gives what comes out with so many. Where none are enough, because the result was rounded to a coarse type,
    they are those that change nothing more.
    """
    known = abs(result) if math.isfinite(abs(result)) else 0.0
    unit = 1e-4 if 1e-4 <= known < 1e6 or not known else 10.0 ** (math.floor(math.log10(known)) - 2)
    written = rounded(result, DECIMALS[0])
    exact = abs(repeat(DECIMALS[-1]) - written)
    for decimals in DECIMALS:
        if not abs(repeat(decimals) - written) > max(0.75 * unit, exact + 0.01 * unit):
            return decimals
    return DECIMALS[-1]


def nested(item: object) -> str:
    """Nested lists of numbers as Python writes them, each number as in all views."""
    if isinstance(item, list):
        return "[" + ", ".join(nested(each) for each in item) + "]"
    return number(item)  # type: ignore[arg-type]


def aligned(column: Sequence[str]) -> list[str]:
    """Written numbers padded to one width, aligned at their decimal points."""
    parts = [_at_point(text) for text in column]
    left = max((len(whole) for whole, _ in parts), default=0)
    right = max((len(rest) for _, rest in parts), default=0)
    return [whole.rjust(left) + rest.ljust(right) for whole, rest in parts]


def _at_point(text: str) -> tuple[str, str]:
    """The digits before the point, and the rest; text that is no plain real number has no rest."""
    match = re.fullmatch(r"([+-]?\d+)([.e][^j]*)", text)
    return (match[1], match[2]) if match else (text, "")
