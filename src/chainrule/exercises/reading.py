"""Numbers as a student gives them: each with the digits that it was written with.

`0.0247` stands for every number that is rounded to it. A string keeps its digits, a float has those of its shortest
form, a fraction (`1/3`) is exact. In a list or a tensor the zeros at the end, which a float does not keep, come back:
all elements have the decimals, or the significant digits, of the one that has most.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from typing import Any

import numpy
import torch
from torch import Tensor

from chainrule.errors import RequestError

FRACTION = re.compile(r"[-+]?\d+(\.\d*)?/\d+(\.\d*)?")


@dataclass(frozen=True)
class Given:
    """An answer as numbers in double precision.

    `half` is half a unit of the last digit that each was written with; `fine` is the same if all of a list have as many
    significant digits.
    """

    data: Tensor
    half: Tensor
    fine: Tensor

    def reshape(self, shape: tuple[int, ...]) -> Given:
        """The same in another shape."""
        return Given(self.data.reshape(shape), self.half.reshape(shape), self.fine.reshape(shape))


def read(answer: Any) -> Given:
    """An answer of a student: a tensor, an array, nested lists, a number, or a number as text.

    Raises RequestError for what is none of these.
    """
    if isinstance(answer, Tensor):
        if answer.is_complex():
            raise RequestError("an answer is made of real numbers, and this tensor is complex.")
        answer = answer.detach().cpu()
        known = answer.float() if answer.dtype in (torch.float16, torch.bfloat16) else answer
        return _array(known.to_dense().numpy() if known.layout != torch.strided else known.resolve_neg().numpy())
    if isinstance(answer, numpy.ndarray):
        return _array(answer)
    shape, items = _flat(answer)
    numbers = [_number(each) for each in items]
    values = torch.tensor([value for value, _, _ in numbers], dtype=torch.float64).reshape(shape)
    decimals = [places for _, places, _ in numbers]
    return _given(values, decimals, [kept for _, _, kept in numbers])


def _array(array: Any) -> Given:
    if array.dtype.kind not in "fiu":
        raise RequestError(f"an answer is made of numbers, and this array has the type {array.dtype}.")
    numbers = [_number(each) for each in array.reshape(-1)]
    values = torch.tensor([value for value, _, _ in numbers], dtype=torch.float64).reshape(array.shape)
    return _given(values, [places for _, places, _ in numbers], [False] * len(numbers))


def _flat(tree: Any) -> tuple[tuple[int, ...], list[Any]]:
    """The shape of nested lists, and what is in them."""
    if not isinstance(tree, (list, tuple)):
        return (), [tree]
    parts = [_flat(each) for each in tree]
    if len({shape for shape, _ in parts}) > 1:
        raise RequestError("the rows of the answer have different lengths. Give as many numbers in each.")
    shape = parts[0][0] if parts else ()
    return (len(parts), *shape), [each for _, items in parts for each in items]


def _number(given: Any) -> tuple[float, float, bool]:
    """(value, decimals that it was written with, whether these are all); decimals are infinite if it is exact."""
    if isinstance(given, Tensor) and given.numel() == 1:
        given = given.item()
    if isinstance(given, (bool, numpy.bool_, complex)) or given is None:
        raise RequestError(f"{given!r} is no number. Give one such as 0.0247, or 1/3 as text.")
    if isinstance(given, Fraction):
        return float(given), math.inf, True
    text = str(given).strip().replace("−", "-").replace(" ", "")
    if isinstance(given, str) and FRACTION.fullmatch(text):
        above, below = text.split("/")
        if float(below) == 0:
            raise RequestError(f"{given!r} divides by 0.")
        return float(Fraction(above) / Fraction(below)), math.inf, True
    try:
        found = Decimal(text)
    except InvalidOperation:
        raise RequestError(f"{given!r} is no number. Give one such as 0.0247, or 1/3 as text.") from None
    exponent = found.as_tuple().exponent
    return float(found), -exponent if isinstance(exponent, int) else 0, isinstance(given, str)


def _given(values: Tensor, decimals: list[float], kept: list[bool]) -> Given:
    """Numbers with half a unit of the last digit of each, with the zeros at the end put back."""
    flat = values.reshape(-1).tolist()
    finite = [places for places in decimals if math.isfinite(places)]
    most = max(finite, default=0.0)
    significant = max(
        (_digits(x, places) for x, places in zip(flat, decimals, strict=True) if math.isfinite(places)), default=0.0
    )
    halves, fine = [], []
    for x, places, is_kept in zip(flat, decimals, kept, strict=True):
        by_digits = places
        if not is_kept and len(flat) > 1 and math.isfinite(places):
            by_digits = significant - 1 - _power(x) if x else most
            places = max(places, min(most, by_digits))
        halves.append(_half(places))
        fine.append(_half(max(places, by_digits)))
    wide = torch.tensor([halves, fine], dtype=torch.float64)
    return Given(values, wide[0].reshape(values.shape), wide[1].reshape(values.shape))


def _half(decimals: float) -> float:
    return 0.5 * 10.0**-decimals if math.isfinite(decimals) else 0.0


def _digits(x: float, decimals: float) -> float:
    return decimals + 1 + _power(x) if x and math.isfinite(x) else 0


def _power(x: float) -> int:
    return math.floor(math.log10(abs(x))) if x and math.isfinite(x) else 0


def places_of(mask: Tensor) -> Iterator[tuple[int, ...]]:
    """The indices that are marked."""
    yield from (tuple(each) for each in mask.nonzero().tolist())
