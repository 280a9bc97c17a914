"""A run under examination: its history and the findings of its steps, with the questions that several checks ask.

A finding of single steps is carried on from step to step. It holds *since* the first step of the last unbroken row of
examined steps that show it. A step without it ends the row only if the check could have run on it (`StepFacts.full`)
and the step was finished.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from statistics import median

from chainrule.diagnostics.finding import RANK, Finding, listed
from chainrule.diagnostics.thresholds import Thresholds
from chainrule.graph.history import History, Kind, Series, StepFacts
from chainrule.numbers import number


@dataclass(frozen=True)
class Stretch:
    """The last unbroken row of examined steps that show the same thing at the same place."""

    steps: tuple[int, ...]
    findings: tuple[Finding, ...]
    ended: bool  # a later step was examined and did not show it
    whole: bool  # no step was examined before it

    @property
    def rows(self) -> tuple[int, ...]:
        """The rows that every one of its findings concerns."""
        common = set(self.findings[0].rows).intersection(*(each.rows for each in self.findings))
        return tuple(sorted(common))

    def of_lasting_rows(self, least: int) -> Stretch:
        """The end of the stretch through which the rows of its last half (of at least `least` steps) are present."""
        first = len(self.steps) - min(max(least, -(-len(self.steps) // 2)), len(self.steps))
        rows = set(replace(self, findings=self.findings[first:]).rows)
        while first and rows <= set(self.findings[first - 1].rows):
            first -= 1
        return replace(self, steps=self.steps[first:], findings=self.findings[first:], whole=self.whole and first == 0)


@dataclass
class Run:
    """The run under examination; `unfinished` is the step, if any, that never reached its update."""

    history: History
    step_findings: Mapping[int, Sequence[Finding]]
    thresholds: Thresholds
    unfinished: int | None = None

    @property
    def steps(self) -> list[StepFacts]:
        """The watched steps."""
        return self.history.steps

    @cached_property
    def _seen(self) -> dict[str, dict[str, dict[int, Finding]]]:
        """Check id -> place -> step -> the most severe finding."""
        seen: dict[str, dict[str, dict[int, Finding]]] = {}
        for step in sorted(self.step_findings):
            for finding in self.step_findings[step]:
                at = seen.setdefault(finding.id, {}).setdefault(finding.where, {})
                if step not in at or RANK[finding.severity] < RANK[at[step].severity]:
                    at[step] = finding
        return seen

    def stretches(self, id: str) -> Iterator[Stretch]:
        """The last unbroken row of every place at which a check found something."""
        examined = sorted(self.step_findings)
        full = {each.step for each in self.steps if each.full}
        for at in self._seen.get(id, {}).values():
            asked = [step for step in examined if step in full] if full >= set(at) else examined
            asked = [step for step in asked if step != self.unfinished or step in at]
            first = last = asked.index(max(at))
            while first and asked[first - 1] in at:
                first -= 1
            steps = tuple(asked[first : last + 1])
            yield Stretch(steps, tuple(at[step] for step in steps), last + 1 < len(asked), first == 0)

    def of(self, kind: Kind, name: str) -> Series | tuple[()]:
        """The series of a parameter, whose name in a step may begin with that of its model; () if there is none."""
        series = self.history.series
        known = series.get((kind, name))
        longer = (each for (of, short), each in series.items() if of == kind and name.endswith(f".{short}"))
        return known or next(longer, ())

    @cached_property
    def losses(self) -> list[tuple[int, float]]:
        """(step, loss) of every step with a finite loss."""
        return [(each.step, each.loss) for each in self.steps if each.loss is not None and math.isfinite(each.loss)]

    @cached_property
    def first_loss(self) -> float:
        """The smallest of the first three losses, as too high a rate shows from the second on; NaN without any."""
        if self.history.first_loss is not None:
            return self.history.first_loss
        return min((loss for _, loss in self.losses[:3]), default=math.nan)

    @cached_property
    def consecutive(self) -> bool:
        """Whether every step was watched, so that each change from one step to the next is visible."""
        steps = [step for step, _ in self.losses]
        return len(steps) > 1 and steps[-1] - steps[0] == len(steps) - 1

    @cached_property
    def ratios(self) -> dict[str, list[tuple[int, float]]]:
        """For each weight (step, norm of its update / its norm). Biases are left out, as they begin at 0."""
        found = {}
        for series in self.history.of_kind("update"):
            weight = self.history.series.get(("parameter", series.name))
            if weight is None or is_bias(series.name):
                continue
            known = dict(weight)
            found[series.name] = [
                (step, update.norm / known[step].norm)
                for step, update in series
                if step in known and known[step].norm and not update.not_finite
            ]
        return {name: ratios for name, ratios in found.items() if ratios}

    @cached_property
    def lively(self) -> float:
        """The largest median update ratio of a weight in the second half, when it has grown from 0; 0 without any."""
        halves = [ratios[len(ratios) // 2 :] for ratios in self.ratios.values()]
        return max((median([ratio for _, ratio in half]) for half in halves), default=0.0)

    def began_at_its_size(self, name: str) -> bool:
        """Whether a weight was not 0 at the first watched step. One that was 0 needs large updates to grow."""
        ratios = self.ratios.get(name)
        return bool(ratios) and ratios[0][0] == self.steps[0].step  # type: ignore[index]

    @property
    def enough(self) -> bool:
        """Whether there are enough steps to judge the run over time."""
        return len(self.steps) >= self.thresholds.enough

    @property
    def learning_rate(self) -> str:
        """The last known learning rates, as a sentence."""
        rates = next((each.rates for each in reversed(self.steps) if each.rates), ())
        return f"Learning rate {listed([number(rate) for rate in dict.fromkeys(rates)]) or 'unknown'}."


def carry(stretch: Stretch, lasts: int) -> Finding | None:
    """One finding for a row of steps; None if the row has ended and single steps do not count."""
    worst = min(stretch.findings, key=lambda finding: RANK[finding.severity])
    lost = worst.severity == "error"
    if stretch.ended and lasts > 1 and not lost:
        return None
    # The first step shows where lost numbers come from; the latest numbers show best what lasts.
    shown = stretch.findings[0] if lost else stretch.findings[-1]
    severity = worst.severity if lost or len(stretch.steps) >= lasts else "note"
    held = (f"It held at {len(stretch.steps)} examined steps in a row.",) if len(stretch.steps) > 1 else ()
    return replace(
        shown, severity=severity, since=stretch.steps[0], until=stretch.steps[-1] if stretch.ended else None,
        evidence=(*shown.evidence, *held), rows=stretch.rows or shown.rows,
    )  # fmt: skip


def is_bias(name: str) -> bool:
    """Whether the name of a parameter is that of a bias or of a norm's scale, which begin at 0 and 1."""
    last = name.rsplit(".", 1)[-1].partition("#")[0]
    return "bias" in last or "norm" in name.lower()


def robust_spread(numbers: Sequence[float]) -> float:
    """The standard deviation of the noise of a series, from the median size of its differences.

    A trend makes small differences and hardly counts. Independent noise of deviation s has differences of deviation
    s * sqrt(2), and the median size of a normal variable is 0.6745 of its deviation.
    """
    return median([abs(after - before) for before, after in pairwise(numbers)]) / (0.6745 * math.sqrt(2))
