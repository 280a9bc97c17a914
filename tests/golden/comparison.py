"""Compares printed output: words exactly, numbers to their last printed digit."""

from __future__ import annotations

import difflib
import math
import re

NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?:e[-+]?\d+)?(?!\w|\.\d)")
RULE = re.compile(r"([─━═])\1+")
FLOAT32 = 1e-6
"""Relative difference of numbers that are printed with all the digits of a float32."""


def difference(expected: str, real: str) -> str:
    """The differences as a unified diff; empty where there are none.

    Where every number is written alike, so must be everything else, to the character. Where one is rounded otherwise,
    the columns around it may have another width.
    """
    if expected == real:
        return ""
    before, after = expected.splitlines(), real.splitlines()
    if NUMBER.findall(expected) != NUMBER.findall(real):
        after = _without_rounding(before, after)
    return "\n".join(difflib.unified_diff(before, after, "expected", "printed", lineterm=""))


def _without_rounding(before: list[str], after: list[str]) -> list[str]:
    """The lines after, each as it was before where only rounding differs."""
    same = list(after)
    matcher = difflib.SequenceMatcher(None, [*map(_words, before)], [*map(_words, after)], autojunk=False)
    for start, other, size in matcher.get_matching_blocks():
        for a, b in zip(range(start, start + size), range(other, other + size), strict=True):
            pairs = zip(NUMBER.findall(before[a]), NUMBER.findall(after[b]), strict=True)
            if all(_close(*pair) for pair in pairs):
                same[b] = before[a]
    return same


def _words(line: str) -> str:
    """A line without its numbers, and without the widths that follow from them."""
    return " ".join(RULE.sub(r"\1", NUMBER.sub("#", line)).split())


def _close(one: str, other: str) -> bool:
    """Whether two numbers differ by one in the last printed digit at most; whole numbers do not differ."""
    if one == other:
        return True
    digit = max(_last_digit(one), _last_digit(other), key=lambda digit: digit or 0.0)
    return digit is not None and math.isclose(float(one), float(other), rel_tol=FLOAT32, abs_tol=1.01 * digit)


def _last_digit(number: str) -> float | None:
    """What one in the last digit of a printed number is worth; None for a whole number."""
    mantissa, _, exponent = number.partition("e")
    decimals = len(mantissa.partition(".")[2])
    return 10.0 ** (int(exponent or 0) - decimals) if decimals or exponent else None
