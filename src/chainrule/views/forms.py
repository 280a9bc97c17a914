"""Formulas of one form: those that differ in numbers alone are converted once, and the numbers put in afterwards."""

from __future__ import annotations

import re
from collections.abc import Callable

_MATRIX = re.compile(r"\\begin\{pmatrix\}.*?\\end\{pmatrix\}", re.DOTALL)
_CELL = re.compile(r"(?:(?<=[&}] )|(?<=\\\\ ))-?\d+(?:\.\d+)?(?:e[+-]\d+)?(?= (?:&|\\\\|\\end))")
_POWER = re.compile(r"(?<![\w.\\])\d+(?:\.\d+)?e[+-]\d+")


def numbers_apart(latex: str, mark: Callable[[int], str]) -> tuple[str, list[str]]:
    """A formula with marks in place of the numbers of its matrices and of powers of ten (`1.2e-05`), and these numbers.

    Only the number of a whole cell has its sign with it.
    """
    numbers: list[str] = []

    def hidden(match: re.Match[str]) -> str:
        numbers.append(match[0])
        return mark(len(numbers) - 1)

    form = _MATRIX.sub(lambda matrix: _CELL.sub(hidden, matrix[0]), latex)
    return _POWER.sub(hidden, form), numbers
