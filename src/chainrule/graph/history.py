"""Facts of many steps, and of one step on many ranks: losses, learning rates, and the statistics of every tensor.

A watch and the file of a run write these; checks of a run and its page read them. Needs no torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from chainrule.graph.statistics import Statistics

Kind = Literal["input", "value", "gradient", "parameter", "parameter gradient", "update", "moment"]
"""What was measured: what came from outside (data and targets); a module's output or a value; its gradient; a parameter
before the step; its `.grad` as the optimizer met it; the update (after minus before); the optimizer's state of it."""


@dataclass(slots=True)
class Series:
    """One tensor over time.

    `name` is a parameter's or a module's path (with `#2`... for later runs of the same module in one step), `layer` its
    place in forward order, `type` the class of its module (`ReLU`).
    """

    kind: Kind
    name: str
    layer: int
    type: str = ""
    steps: list[int] = field(default_factory=list)
    statistics: list[Statistics] = field(default_factory=list)

    def add(self, step: int, statistics: Statistics) -> None:
        """Add the statistics of one step."""
        self.steps.append(step)
        self.statistics.append(statistics)

    def __iter__(self) -> Iterator[tuple[int, Statistics]]:
        return zip(self.steps, self.statistics, strict=True)


@dataclass(slots=True)
class StepFacts:
    """One watched step, apart from its tensors."""

    step: int
    time: float  # seconds since the epoch, when the step ended
    loss: float | None  # at the weights with which the step began
    rates: tuple[float, ...] = ()  # the learning rate of each parameter group, over all optimizers
    skipped: bool = False  # a GradScaler found gradients that are not finite and left the step out
    scale: float | None = None  # of a GradScaler
    clipped: tuple[float, float] | None = None  # norm of all gradients before and after clipping
    passes: int = 1  # backward passes at these weights: micro-batches whose gradients were added up
    full: bool = False  # recorded with its numbers, so that every check of one step ran on it
    counts: tuple[int, ...] = ()  # of steps in the state of each optimizer that has such a count, after the step
    evaluated: int = 0  # forward passes before it of a model that trains, in train mode and without gradients
    dropped: str = ""  # the place of a dropout that was on in eval mode, in a pass at any time before it
    restarted: str = ""  # the line that took its batch as the first of a loader's, and how many batches that has
    distance: tuple[float, float] | None = None
    """Of a batch norm's running statistics from those of the step's batch: that of the means in standard deviations
    (the root mean square over the channels), and the ratio of the mean variances."""
    estimate: bool = False  # the loss weights its terms by data of either sign, as a policy's does by its advantages
    rewritten: bool = False  # something else changed a parameter after the update of the watched step before


@dataclass(frozen=True, slots=True)
class Noticed:
    """What a look at every step noticed, whether or not the step was watched.

    A rate that changed much is noticed at the step before the change and at the step after it.
    """

    step: int
    rates: tuple[float, ...] = ()  # the learning rate of each parameter group
    lost: bool = False  # its update made numbers of parameters NaN or infinite, which were finite before
    parameters: tuple[str, ...] = ()  # these parameters, if they could be read at once
    loss: float | None = None  # of the step, if it or its update is not finite
    place: str = ""  # of the optimizer's step, if `lost`


@dataclass(frozen=True, slots=True)
class Unwatched:
    """A step between two watched ones, of which only the loss is known; `nodes` are those that autograd made in it."""

    step: int
    loss: float
    nodes: int


@dataclass(frozen=True, slots=True)
class Unstepped:
    """Backward passes after the last step of an optimizer: after which step, how many, and at most in earlier steps."""

    step: int
    passes: int
    usual: int


@dataclass(slots=True)
class History:
    """All watched steps in their order, or the last of them with the loss of the first."""

    steps: list[StepFacts] = field(default_factory=list)
    series: dict[tuple[Kind, str], Series] = field(default_factory=dict)
    first_loss: float | None = None  # of the run, where its first steps are not here
    unstepped: Unstepped | None = None  # after the last step
    noticed: list[Noticed] = field(default_factory=list)
    unwatched: list[Unwatched] = field(default_factory=list)

    def add(self, kind: Kind, name: str, step: int, statistics: Statistics, layer: int = 0, type: str = "") -> None:
        """Add the statistics of one tensor at one step."""
        key = (kind, name)
        if key not in self.series:
            self.series[key] = Series(kind, name, layer, type)
        self.series[key].add(step, statistics)

    def of_kind(self, kind: Kind) -> list[Series]:
        """All series of a kind, in forward order."""
        return sorted((s for s in self.series.values() if s.kind == kind), key=lambda s: s.layer)


# -- one step on many ranks -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RankParameter:
    """One parameter on one rank: before the step, the gradient that the rank sent, and the mean that it received.

    The marks are checksums of the numbers, where these were kept: equal numbers have equal marks.
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
    """The statistics of the tensors of several ranks as if they were one tensor.

        n = sum n_r     norm^2 = sum norm_r^2     mean = sum n_r mean_r / n
        std^2 = sum n_r (std_r^2 + (mean_r - mean)^2) / n

    These hold up to rounding; extremes and counts are exact.
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
