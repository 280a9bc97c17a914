"""What many steps leave behind: the loss, the learning rates, and the statistics of every tensor, step after step.

The neutral form between those who gather it (a watch, a file of a run) and those who read it (findings over time, the
page of a run). Needs no torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from chainrule.graph.statistics import Statistics

Kind = Literal["input", "value", "gradient", "parameter", "parameter gradient", "update", "moment"]
"""What was measured: what came from outside (data and targets); a module's output or a value; the gradient of it; a
parameter before the step; its `.grad` as the optimizer met it; what the step added to it (after minus before); the
optimizer's state of it."""


@dataclass(slots=True)
class Series:
    """One tensor over time. `name` is a parameter's or a module's path (with `#2`... for later runs of the same module
    in one step), `layer` its place in forward order, `type` the class of its module (`ReLU`)."""

    kind: Kind
    name: str
    layer: int
    type: str = ""
    steps: list[int] = field(default_factory=list)
    statistics: list[Statistics] = field(default_factory=list)

    def add(self, step: int, statistics: Statistics) -> None:
        """What the tensor was at this step."""
        self.steps.append(step)
        self.statistics.append(statistics)

    def __iter__(self) -> Iterator[tuple[int, Statistics]]:
        return zip(self.steps, self.statistics, strict=True)


@dataclass(slots=True)
class StepFacts:
    """One watched step, apart from its tensors."""

    step: int
    time: float  # seconds since the epoch, when the step ended
    loss: float | None
    rates: tuple[float, ...] = ()  # the learning rate of each parameter group, over all optimizers
    skipped: bool = False  # a GradScaler found gradients that are not finite and left the step out
    scale: float | None = None  # of a GradScaler
    clipped: tuple[float, float] | None = None  # norm of all gradients before and after clipping
    passes: int = 1  # backward passes: micro-batches whose gradients were added up
    full: bool = False  # recorded with its numbers, so that every check of one step ran on it


@dataclass(slots=True)
class History:
    """Everything that was watched, in the order of the steps; or the last part of it, with the loss at the start."""

    steps: list[StepFacts] = field(default_factory=list)
    series: dict[tuple[Kind, str], Series] = field(default_factory=dict)
    first_loss: float | None = None  # of the run, where its first steps are not here

    def add(self, kind: Kind, name: str, step: int, statistics: Statistics, layer: int = 0, type: str = "") -> None:
        """Add what one tensor was at one step."""
        key = (kind, name)
        if key not in self.series:
            self.series[key] = Series(kind, name, layer, type)
        self.series[key].add(step, statistics)

    def of_kind(self, kind: Kind) -> list[Series]:
        """All series of a kind, in forward order."""
        return sorted((s for s in self.series.values() if s.kind == kind), key=lambda s: s.layer)
