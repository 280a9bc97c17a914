"""How every view writes a number: exactly if that is short, else visibly rounded."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence


def number(value: float | complex) -> str:
    """`value` with at most 4 decimals.

    Trailing zeros are dropped only if the written number equals the value up to a relative 5e-7, which is about the
    precision of float32: 4, -7.8, 0.5, but -0.0600 for -0.05998. Below 1e-4 and from 1e6 on, a number has 3 significant
    digits and a power of ten (1.23e-05). Minus zero is 0; booleans and integers are written in full.
    """
    if isinstance(value, int):
        return str(value)
    if isinstance(value, complex):
        sign = "-" if math.copysign(1.0, value.imag) < 0 else "+"
        return f"{number(value.real)}{sign}{number(abs(value.imag))}j"
    if not math.isfinite(value):
        return str(value)
    if value == 0:
        return "0"
    text = f"{value:.4f}" if 1e-4 <= abs(value) < 1e6 else f"{value:.2e}"
    if abs(float(text) - value) > 5e-7 * abs(value):
        return text
    mantissa, power, exponent = text.partition("e")
    return mantissa.rstrip("0").rstrip(".") + power + exponent


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
