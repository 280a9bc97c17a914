"""Whether two results are the same up to rounding: the one answer that every check of the package uses.

It stands in `graph`, the lowest room, because `execution` and `capture` ask it as well as `verification` and `report`.

The tolerance follows from how a number was computed. A sum of n terms t, each computed with a rounding of eps and added
up with a rounding of a, is off by

    |error| <= 8 * eps * max(|sum t|, sum |t| / sqrt(n)) + a * (8 * sum |t| + sqrt(n) * |sum t|)

but for rare accidents. The first part is the rounding of the terms: the few operations that each term goes through are
the factor 8, and independent roundings grow like the root of the sum of squares, which is sum |t| / sqrt(n) for terms
of one size. The second part is the rounding of the additions (0 where n is 1). PyTorch adds up in float32 what is
coarser, so a is the smaller of eps and 2**-23. The worst case is n * a * sum |t| / 2 (N. J. Higham, Accuracy and
Stability of Numerical Algorithms, 2nd ed., 2002, section 4.2). Independent roundings grow like sqrt(n) (N. J. Higham
and T. Mary, A new approach to probabilistic rounding error analysis, SIAM J. Sci. Comput. 41(5), 2019), and where the
terms cancel the error stays near a * sum |t| whatever n is (N. J. Higham and T. Mary, Sharper probabilistic backward
error analysis for basic linear algebra kernels with random data, SIAM J. Sci. Comput. 42(5), 2020).

Where the terms are not known, sum |t| is estimated. It is at least |sum t|, and n terms of random signs sum to some
sum |t| / sqrt(n), which the root mean square of all elements shows: sum |t| = |sum t| + sqrt(n) * rms.

NaN equals NaN alone, and an infinity equals the same infinity alone. Numbers without rounding (integers, booleans) must
be equal. Tensors of other shapes differ. A difference below the smallest normal float32 is none, so that what
underflows raises no alarm.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy
import torch
from torch import Tensor

from chainrule.graph.statistics import Statistics

EPS = 2.0**-52  # the rounding of float64
FLOAT32 = 2.0**-23
MARGIN = 8  # roundings that every term may carry
FLOOR = torch.finfo(torch.float32).tiny
UNKNOWN_SUMS = 2**20  # terms that are assumed where a number came out of a chain of sums of unknown lengths
PART = 2**18  # elements that are compared at a time
LISTED = 64  # elements that are named where two tensors differ

Number = Tensor | float | complex


@dataclass(frozen=True, slots=True)
class Comparison:
    """The difference of two tensors that lies furthest beyond its tolerance, or the largest where none does.

    `index` is where it lies (None: along a direction, or nowhere), `tolerance` what rounding allows there, `off` the
    first elements, flat, that differ by more.
    """

    largest: float
    argument: str
    index: tuple[int, ...] | None
    tolerance: float
    off: tuple[int, ...] = ()

    def __float__(self) -> float:
        return self.largest

    @property
    def agrees(self) -> bool:
        """Whether the two are the same up to rounding, everywhere."""
        return self.largest <= self.tolerance

    @property
    def excess(self) -> float:
        """How many tolerances the difference amounts to; above 1 it is more than rounding."""
        return self.largest / self.tolerance if self.tolerance else self.largest


def compare(
    got: Number,
    expected: Number,
    terms: Number | None = None,
    *,
    count: float = 1,
    eps: float | None = None,
    slack: Tensor | float = 0.0,
    argument: str = "",
) -> Comparison:
    """Compare two results element by element, with the tolerance that this module states.

    `terms` is sum |t| of each element, or one for all (None: estimated), `count` the number n of terms. `eps` is the
    rounding of the coarser number type, where numbers were computed in another one than they have. `slack` is added
    to the tolerance: how far off one side is known to be, as a finite difference is.
    """
    if isinstance(got, (int, float)) and isinstance(expected, (int, float)):
        got, expected = float(got), float(expected)
        spread = math.sqrt(count) * _finite(abs(expected)) if terms is None else 0.0
        return _compare_two(got, expected, _Limits(terms, spread, count, EPS if eps is None else eps, slack), argument)
    got, expected = _plain(got), _plain(expected)
    if got.shape != expected.shape:
        return Comparison(math.inf, argument, None, 0.0)
    if not got.numel():
        return Comparison(0.0, argument, None, 0.0)
    eps = max(rounding(got.dtype), rounding(expected.dtype)) if eps is None else eps
    spread = math.sqrt(count) * rms(expected) if terms is None else 0.0
    limits = _Limits(terms, spread, count, eps, slack)
    shape = tuple(got.shape)
    if identical(got, expected):
        first = (0,) * len(shape)
        return Comparison(0.0, argument, first, limits.at(0, _finite(abs(got[first].item()))))
    found, off = (-math.inf, -math.inf, 0.0, 0), list[int]()
    one, other = _working(got, expected, exact=terms is not None)
    for start in range(0, one.numel(), PART):
        here = slice(start, start + PART)
        mine, theirs = one[here], other[here]
        apart = (mine - theirs).abs()
        largest = float(apart.max())
        if largest <= limits.least:
            if largest > found[1]:
                place = int(apart.argmax())
                size = max(_finite(abs(mine[place].item())), _finite(abs(theirs[place].item())))
                found = max(found, (-math.inf, largest, limits.at(start + place, size), start + place))
            continue
        apart = torch.where((mine == theirs) | (mine.isnan() & theirs.isnan()), 0.0, apart)
        apart = apart.nan_to_num_(math.inf, math.inf)
        allowed = limits.of(here, torch.maximum(mine.abs(), theirs.abs()).nan_to_num_(0.0, 0.0, 0.0))
        beyond = apart > allowed
        if bool(beyond.any()):
            off += [start + each for each in beyond.nonzero()[: max(0, LISTED - len(off)), 0].tolist()]
            place = int(torch.where(beyond, apart - allowed, -math.inf).argmax())
            rank = float(apart[place] - allowed[place])
        else:
            place, rank = int(apart.argmax()), -math.inf
        found = max(found, (rank, float(apart[place]), float(allowed[place]), start + place))
    _, largest, allowed_there, place = found
    return Comparison(largest, argument, unravel(place, shape), allowed_there, tuple(off))


def _compare_two(got: float, expected: float, limits: _Limits, argument: str) -> Comparison:
    """Compare two numbers as tensors of one element are compared: a document compares thousands of them."""
    same = got == expected or (got != got and expected != expected)
    apart = 0.0 if same else abs(got - expected)
    apart = math.inf if apart != apart else apart
    is_known = got == got and expected == expected
    allowed = limits.at(0, _finite(max(abs(got), abs(expected))) if is_known else 0.0)
    return Comparison(apart, argument, (), allowed, (0,) if apart > allowed else ())


class _Limits:
    """What rounding allows each element; `least` allows every one."""

    def __init__(self, terms: Number | None, spread: float, count: float, eps: float, slack: Tensor | float) -> None:
        self.terms, self.slack = _in_a_row(terms), _in_a_row(slack)
        self.spread, self.count, self.eps = spread, count, eps
        self.least = tolerance(0.0, spread, count, eps) + (0.0 if isinstance(self.slack, Tensor) else self.slack)

    def of(self, here: slice, size: Tensor) -> Tensor:
        """For a part, whose elements have this size."""
        terms, slack = (each[here] if isinstance(each, Tensor) else each for each in (self.terms, self.slack))
        total = size + self.spread if terms is None else torch.as_tensor(terms, dtype=size.dtype, device=size.device)
        return torch.as_tensor(allowance(size, total, self.count, self.eps) + slack)

    def at(self, element: int, size: float) -> float:
        """For one element of this size."""
        terms, slack = (float(each[element]) if isinstance(each, Tensor) else each for each in (self.terms, self.slack))
        total = size + self.spread if terms is None else terms
        return tolerance(size, total, self.count, self.eps) + slack


def tolerance(size: float, terms: float, count: float, eps: float) -> float:
    """What rounding allows a sum of this size, of terms whose sizes add up to `terms`."""
    return float(allowance(size, terms, count, eps)) if count else math.nan


def allowance(size: float | Tensor, terms: float | Tensor, count: float, eps: float) -> float | Tensor:
    """What rounding allows sums of these sizes, numbers or tensors, of `count` terms whose sizes add up to `terms`."""
    adding, share = min(eps, FLOAT32) if count > 1 else 0.0, terms / math.sqrt(count)
    larger = torch.maximum(size, torch.as_tensor(share)) if isinstance(size, Tensor) else max(size, float(share))
    return MARGIN * eps * larger + adding * (MARGIN * terms + math.sqrt(count) * size) + FLOOR


def worst(comparisons: Iterable[Comparison | None]) -> Comparison | None:
    """The comparison that lies furthest beyond its tolerance."""
    found = [each for each in comparisons if each is not None]
    return max(found, key=lambda each: (each.excess, each.largest), default=None)


def rounding(dtype: torch.dtype) -> float:
    """The distance from 1 to the next number of this type; 0 for types that do not round."""
    return torch.finfo(dtype).eps if dtype.is_floating_point or dtype.is_complex else 0.0


def last_place(numbers: Tensor, dtype: torch.dtype) -> Tensor:
    """The distance of each real number to the next one of this type, in float64."""
    known, wide = torch.finfo(dtype), numbers.double()
    place = torch.ldexp(torch.full_like(wide, known.eps), torch.frexp(wide)[1] - 1)
    return place.clamp(min=known.smallest_normal * known.eps)  # below, numbers lie no closer


def identical(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are the same number for number; NaN is NaN."""
    if one is other:
        return True
    one, other = _plain(one), _plain(other)
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    if (one.data_ptr() == other.data_ptr() and one.stride() == other.stride()) or torch.equal(one, other):
        return True
    if not (one.dtype.is_floating_point or one.dtype.is_complex) or not bool(one.isnan().any()):
        return False
    return bool(((one == other) | (one.isnan() & other.isnan())).all())


def compare_mean(several: Sequence[Tensor], mean: Tensor, eps: float) -> Comparison:
    """A mean as it was given, with the rounding of its number type, compared with that of several tensors."""
    wide = torch.stack([_plain(each).to(_wide(each.dtype)) for each in several])
    return compare(mean, wide.sum(0) / len(several), wide.abs().sum(0) / len(several), eps=eps)


def same_statistics(one: Statistics, other: Statistics, eps: float, count: float = 1) -> bool:
    """Whether two tensors may be the same up to rounding, as far as their statistics show; zeros are not asked."""
    if (one.elements, one.not_finite) != (other.elements, other.not_finite):
        return False
    typical = math.sqrt(count) * max(one.norm, other.norm) / math.sqrt(max(one.elements, 1))
    names = ("norm", "low", "high", "mean", "std")
    got, expected = (
        torch.tensor([float(getattr(each, name)) for name in names], dtype=torch.float64) for each in (one, other)
    )
    terms = torch.maximum(got.abs(), expected.abs())
    terms[1:] += typical
    return compare(got, expected, terms, count=count, eps=eps).agrees


def rms(tensor: Tensor) -> float:
    """The root of the mean square of the finite elements."""
    squares = finite = 0.0
    for part in flat(tensor).split(PART):
        length = float(torch.linalg.vector_norm(part, dtype=_wide(part.dtype)))
        many = part.numel()
        if not math.isfinite(length):
            part = part[part.isfinite()]
            length, many = float(torch.linalg.vector_norm(part, dtype=_wide(part.dtype))), part.numel()
        squares, finite = squares + length**2, finite + many
    return math.sqrt(squares / finite) if finite else 0.0


def unravel(element: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The index of a row-major flat element."""
    return tuple(map(int, numpy.unravel_index(element, shape)))


def flat(tensor: Tensor) -> Tensor:
    """The elements in row-major order; integers as float64."""
    rounds = tensor.dtype.is_floating_point or tensor.dtype.is_complex
    return (tensor if rounds else tensor.double()).reshape(-1)


def _working(got: Tensor, expected: Tensor, exact: bool) -> tuple[Tensor, Tensor]:
    """Both in a row, in the type in which they are subtracted: float32 where both have it and that is fine enough."""
    if not exact and got.dtype == expected.dtype == torch.float32:
        return flat(got), flat(expected)
    dtype = torch.complex128 if got.is_complex() or expected.is_complex() else torch.float64
    return got.reshape(-1).to(dtype), expected.reshape(-1).to(dtype)


def _in_a_row(known: Any) -> Any:
    """What is known of each element, flat; one number for all stays one. What is not finite allows nothing."""
    if isinstance(known, Tensor) and known.dim():
        return known.detach().reshape(-1).abs().nan_to_num(0.0, 0.0, 0.0)
    return None if known is None else _finite(abs(float(known)))


def _finite(number: float) -> float:
    return number if math.isfinite(number) else 0.0


def _plain(number: Number) -> Tensor:
    """A dense tensor without a graph, of real or complex numbers as they are stored."""
    if not isinstance(number, Tensor):
        return torch.tensor(number, dtype=torch.complex128 if isinstance(number, complex) else torch.float64)
    return dense(number).detach().resolve_conj().resolve_neg()


def dense(tensor: Tensor) -> Tensor:
    """The tensor with all its elements in memory; one without numbers has none either way."""
    if tensor.layout == torch.strided:
        return tensor
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta") if tensor.is_meta else tensor.to_dense()


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.complex128 if dtype.is_complex else torch.float64
