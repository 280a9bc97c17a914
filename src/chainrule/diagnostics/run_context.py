"""A run under examination: what was watched over many steps, with the questions that several checks ask of it.

What a single step showed is carried on from step to step. It holds *since* the first step of the last unbroken row of
examined steps that show it; a step breaks the row only where the check could have run on it (`StepFacts.full`), and one
that was never finished breaks none.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from statistics import median

from chainrule.diagnostics.finding import RANK, Finding
from chainrule.diagnostics.thresholds import Thresholds
from chainrule.graph.history import History, StepFacts


@dataclass(frozen=True)
class Stretch:
    """The last unbroken row of examined steps that show the same thing at the same place."""

    steps: tuple[int, ...]
    findings: tuple[Finding, ...]
    ended: bool  # a later step was examined, and did not show it
    whole: bool  # no examined step came before it

    @property
    def rows(self) -> tuple[int, ...]:
        """The rows that it was about at every one of these steps."""
        common = set(self.findings[0].rows).intersection(*(each.rows for each in self.findings))
        return tuple(sorted(common))

    def of_lasting_rows(self, least: int) -> Stretch:
        """From where the rows of its last half, of at least `least` steps, were there without a break.

        What it was about before was something else: the units that were off at the start, say, when it was others.
        """
        first = len(self.steps) - min(max(least, -(-len(self.steps) // 2)), len(self.steps))
        rows = set(replace(self, findings=self.findings[first:]).rows)
        while first and rows <= set(self.findings[first - 1].rows):
            first -= 1
        return replace(self, steps=self.steps[first:], findings=self.findings[first:], whole=self.whole and first == 0)


class Run:
    """The run under examination."""

    def __init__(
        self,
        history: History,
        step_findings: Mapping[int, Sequence[Finding]],
        thresholds: Thresholds,
        unfinished: int | None = None,
    ) -> None:
        self.unfinished = unfinished
        self.history = history
        self.step_findings = step_findings
        self.thresholds = thresholds
        self.steps: list[StepFacts] = history.steps

    # -- what single steps showed -------------------------------------------------------------------------------------

    @cached_property
    def _seen(self) -> dict[str, dict[str, dict[int, Finding]]]:
        """Check -> place -> step -> the worst that was found there."""
        seen: dict[str, dict[str, dict[int, Finding]]] = {}
        for step in sorted(self.step_findings):
            for finding in self.step_findings[step]:
                at = seen.setdefault(finding.id, {}).setdefault(finding.where, {})
                if step not in at or RANK[finding.severity] < RANK[at[step].severity]:
                    at[step] = finding
        return seen

    def stretches(self, id: str) -> Iterator[Stretch]:
        """The last unbroken row of every place at which a kind was found."""
        examined = sorted(self.step_findings)
        full = {each.step for each in self.steps if each.full}
        for at in self._seen.get(id, {}).values():
            asked = [step for step in examined if step in full] if full >= set(at) else examined
            asked = [step for step in asked if step != self.unfinished or step in at]
            last = asked.index(max(at))
            first = last
            while first and asked[first - 1] in at:
                first -= 1
            steps = tuple(asked[first : last + 1])
            yield Stretch(steps, tuple(at[step] for step in steps), last + 1 < len(asked), first == 0)

    # -- courses ------------------------------------------------------------------------------------------------------

    @cached_property
    def losses(self) -> list[tuple[int, float]]:
        """(step, loss) of every step that has one that is finite."""
        return [(each.step, each.loss) for each in self.steps if each.loss is not None and math.isfinite(each.loss)]

    @cached_property
    def first_loss(self) -> float:
        """The loss at the start: the least of the first three, as a rate that is too high shows from the second on.

        NaN where there is none.
        """
        if self.history.first_loss is not None:
            return self.history.first_loss
        return min((loss for _, loss in self.losses[:3]), default=math.nan)

    @cached_property
    def consecutive(self) -> bool:
        """Whether every step was watched, so that what happens from one step to the next can be seen."""
        steps = [step for step, _ in self.losses]
        return len(steps) > 1 and steps[-1] - steps[0] == len(steps) - 1

    @cached_property
    def ratios(self) -> dict[str, list[tuple[int, float]]]:
        """For each weight (step, norm of its update / its norm); biases, which begin at 0, are left out."""
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
        """How large updates are: the largest median update ratio of a weight; 0 where none is known.

        What grows from 0 has large ratios at first for no bad reason, so only the second half of the run counts.
        """
        halves = [ratios[len(ratios) // 2 :] for ratios in self.ratios.values()]
        return max((median([ratio for _, ratio in half]) for half in halves), default=0.0)

    def began_at_its_size(self, name: str) -> bool:
        """Whether a weight was not 0 at the first watched step: one that was must grow by large updates."""
        ratios = self.ratios.get(name)
        return bool(ratios) and ratios[0][0] == self.steps[0].step  # type: ignore[index]

    @property
    def enough(self) -> bool:
        """Whether there are steps enough to speak of a course."""
        return len(self.steps) >= self.thresholds.enough


def carry(stretch: Stretch, lasts: int) -> Finding | None:
    """What a row of steps showed as one finding; None for what has gone and was never lasting."""
    worst = min(stretch.findings, key=lambda finding: RANK[finding.severity])
    lost = worst.severity == "error"
    if stretch.ended and lasts > 1 and not lost:
        return None
    # What was born at the first step is what made it; what lasts is best shown by its latest numbers.
    told = stretch.findings[0] if lost else stretch.findings[-1]
    severity = worst.severity if lost or len(stretch.steps) >= lasts else "note"
    held = (f"Held at {len(stretch.steps)} examined steps in a row.",) if len(stretch.steps) > 1 else ()
    return replace(
        told, severity=severity, since=stretch.steps[0], until=stretch.steps[-1] if stretch.ended else None,
        evidence=(*told.evidence, *held), rows=stretch.rows or told.rows,
    )  # fmt: skip


def is_bias(name: str) -> bool:
    """Whether a parameter's name says that it is a bias or a norm's scale, which begin at 0 and 1."""
    last = name.rsplit(".", 1)[-1].partition("#")[0]
    return "bias" in last or "norm" in name.lower()


def robust_spread(numbers: Sequence[float]) -> float:
    """The noise of a course as a standard deviation, from the median size of its differences.

    A trend, which a falling loss has, makes small differences and does not count. Independent noise of deviation s has
    differences of deviation s * sqrt(2), and the median of a normal size is 0.6745 of its deviation.
    """
    return median([abs(after - before) for before, after in pairwise(numbers)]) / (0.6745 * math.sqrt(2))
