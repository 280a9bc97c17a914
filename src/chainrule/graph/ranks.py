"""What is known of one step on every rank, and how the figures of several ranks are joined into one. Needs no torch."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from chainrule.graph.statistics import Statistics


@dataclass(frozen=True, slots=True)
class RankParameter:
    """One parameter on one rank: before the step, the gradient that the rank gave, and what it was given back.

    The marks are checksums of the numbers, where these were at hand: equal numbers have equal marks.
    """

    before: Statistics | None = None
    local: Statistics | None = None
    mean: Statistics | None = None
    before_mark: int | None = None
    mean_mark: int | None = None
    sharded: bool = False  # each rank holds another part of it
    combined: bool = False  # the gradients of all ranks are made one


@dataclass(frozen=True, slots=True)
class RankFacts:
    """One rank at one step. `batch` is how many samples it took (None: not known)."""

    rank: int
    batch: int | None
    loss: float | None
    parameters: dict[str, RankParameter] = field(default_factory=dict)


def joined(parts: Iterable[Statistics]) -> Statistics:
    """The figures of the tensors of several ranks as if they were one tensor.

        n = sum n_r     norm^2 = sum norm_r^2     mean = sum n_r mean_r / n
        std^2 = sum n_r (std_r^2 + (mean_r - mean)^2) / n

    Each up to rounding; extremes and counts exactly.
    """
    known = list(parts)
    counts = [each.elements - each.not_finite for each in known]
    count, elements = sum(counts), sum(each.elements for each in known)
    lost = elements - count
    if not count:
        return Statistics(elements, 0.0, 0.0, 0.0, 0.0, 0.0, 0, lost, _magnitudes(known))
    mean = math.fsum(n * each.mean for n, each in zip(counts, known, strict=True)) / count
    squares = (n * (each.std**2 + (each.mean - mean) ** 2) for n, each in zip(counts, known, strict=True))
    there = [each for n, each in zip(counts, known, strict=True) if n]
    return Statistics(
        elements,
        math.hypot(*(each.norm for each in there)),
        mean,
        math.sqrt(math.fsum(squares) / count),
        min(each.low for each in there),
        max(each.high for each in there),
        sum(each.zeros for each in there),
        lost,
        _magnitudes(known),
    )


def _magnitudes(known: list[Statistics]) -> tuple[int, ...]:
    histograms = [each.magnitudes for each in known if each.magnitudes]
    return tuple(map(sum, zip(*histograms, strict=True))) if histograms else ()
