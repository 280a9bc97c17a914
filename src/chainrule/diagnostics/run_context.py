"""A run under examination: its history and the findings of its steps, with the questions that several checks ask.

A finding of single steps is carried on from step to step. It holds *since* the first step of the last unbroken row of
examined steps that show it. A step without it ends the row only if the check could have run on it (`StepFacts.full`)
and the step was finished.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from statistics import correlation, mean, median, pstdev

from chainrule.diagnostics.finding import RANK, Finding, listed
from chainrule.diagnostics.thresholds import Thresholds
from chainrule.graph.history import History, Kind, Series, StepFacts
from chainrule.numbers import number

RARE = 0.25  # share of the steps: what fewer of them compute is another task
LEARNT = 0.01  # share of the loss at the start
BEGINNING = 5  # steps
GROWN = 1.25  # times the numbers of a step at the start
SECOND_MOMENTS = "max_exp_avg_sq", "exp_avg_sq", "square_avg"  # in an optimizer's state
FOLLOWS = 0.5  # correlation of the loss with the numbers of a step, or with the size of its data: it is their sum
SMALL = 0.03  # times the size of most weights: the last layer of a policy begins at a hundredth of what is usual
VARIED = 2.0  # upper quartile of the sizes of a step's data over the lower one; far less for batches of one kind


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
    """The run under examination; the checks for unfinished steps alone ran on the steps examined `partly`.

    `ended`: the watch has ended, so nothing comes after its last step.
    """

    history: History
    step_findings: Mapping[int, Sequence[Finding]]
    thresholds: Thresholds
    partly: Collection[int] = ()
    ended: bool = False

    @property
    def steps(self) -> list[StepFacts]:
        """The watched steps."""
        return self.history.steps

    @cached_property
    def seen(self) -> dict[str, dict[str, dict[int, Finding]]]:
        """Check id -> place -> step -> the most severe finding."""
        seen: dict[str, dict[str, dict[int, Finding]]] = {}
        for step in sorted(self.step_findings):
            for finding in self.step_findings[step]:
                at = seen.setdefault(finding.id, {}).setdefault(finding.where, {})
                if step not in at or RANK[finding.severity] < RANK[at[step].severity]:
                    at[step] = finding
        return seen

    def stretches(self, id: str, first_row: bool = False) -> Iterator[Stretch]:
        """The last unbroken row, or the first, of every place at which a check found something."""
        examined = sorted(self.step_findings)
        full = {each.step for each in self.steps if each.full}
        for at in self.seen.get(id, {}).values():
            asked = [step for step in examined if step in full] if full >= set(at) else examined
            asked = [step for step in asked if step not in self.partly or step in at]
            first = last = asked.index(min(at) if first_row else max(at))
            while first and asked[first - 1] in at:
                first -= 1
            while last + 1 < len(asked) and asked[last + 1] in at:
                last += 1
            steps = tuple(asked[first : last + 1])
            yield Stretch(steps, tuple(at[step] for step in steps), last + 1 < len(asked), first == 0)

    def of(self, kind: Kind, name: str) -> Series | tuple[()]:
        """The series of a parameter, whose name in a step may begin with that of its model; () if there is none."""
        series = self.history.series
        known = series.get((kind, name))
        longer = (each for (of, short), each in series.items() if of == kind and name.endswith(f".{short}"))
        return known or next(longer, ())

    def in_steps(self, id: str) -> list[tuple[int, Finding | None]]:
        """Every examined step, with the first finding of a check in it."""
        return [
            (step, next((each for each in self.step_findings[step] if each.id == id), None))
            for step in sorted(self.step_findings)
        ]

    @cached_property
    def watched_losses(self) -> list[tuple[int, float]]:
        """(step, loss) of every watched step with a finite loss."""
        return [(each.step, each.loss) for each in self.steps if each.loss is not None and math.isfinite(each.loss)]

    @cached_property
    def losses(self) -> list[tuple[int, float]]:
        """(step, loss) of every step with a finite loss that is known, watched or not."""
        between = ((each.step, each.loss) for each in self.history.unwatched if math.isfinite(each.loss))
        return sorted([*self.watched_losses, *between])

    @cached_property
    def _nodes(self) -> dict[int, int]:
        """How many nodes autograd made in each step that was not watched."""
        return {each.step: each.nodes for each in self.history.unwatched}

    @cached_property
    def first_loss(self) -> float:
        """The smallest of the first three losses, as too high a rate shows from the second on; NaN without any."""
        if self.history.first_loss is not None:
            return self.history.first_loss
        return min((loss for _, loss in self.losses[:3]), default=math.nan)

    @cached_property
    def has_learnt(self) -> bool:
        """Whether the last loss is next to nothing of the first."""
        return bool(self.losses) and self.losses[-1][1] < LEARNT * self.first_loss

    @cached_property
    def rates(self) -> list[tuple[int, tuple[float, ...]]]:
        """(step, rate of each parameter group) of the watched steps, and of those at which a rate changed much."""
        noticed = {each.step: each.rates for each in self.history.noticed if each.rates}
        watched = {each.step: each.rates for each in self.steps if each.rates}
        return sorted((noticed | watched).items())

    def has_finite_parameters(self, after: int, until: int) -> bool:
        """Whether a watched step after one and until another began with finite parameters."""
        broken: dict[int, bool] = {}
        for series in self.history.of_kind("parameter"):
            for step, known in series:
                if after < step <= until:
                    broken[step] = broken.get(step, False) or known.not_finite > 0
        return not all(broken.values())

    def comes_down(self, spike: int, until: int) -> bool:
        """Whether the loss fell below that of a spike before a later step."""
        after = [loss for step, loss in self.losses if spike <= step < until]
        return bool(after) and after[-1] < after[0]

    @cached_property
    def consecutive(self) -> bool:
        """Whether every step was watched, so that each change from one step to the next is visible."""
        steps = [step for step, _ in self.watched_losses]
        return len(steps) > 1 and steps[-1] - steps[0] == len(steps) - 1

    @cached_property
    def ratios(self) -> dict[str, list[tuple[int, float]]]:
        """For each weight (step, norm of its update / its norm), without updates that were withdrawn.

        Biases are left out, as they begin at 0.
        """
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
                and not (update.norm and known[step] == known.get(step + 1))  # withdrawn: the weight is what it was
            ]  # fmt: skip
        return {name: ratios for name, ratios in found.items() if ratios}

    @property
    def rewritten(self) -> float:
        """The share of the watched steps after which a weight is not what the update made of it.

        Reptile takes back most of what its inner steps did.
        """
        return sum(self.rewrites.values()) / len(self.rewrites) if self.rewrites else 0.0

    @cached_property
    def rewrites(self) -> dict[int, bool]:
        """Whether something else changed a weight after the update of a watched step, by that step.

        The mean of a sum is the sum of the means. Where the next step is not watched, a look at it tells.
        """
        found = {a.step: b.rewritten for a, b in pairwise(self.steps) if b.step > a.step + 1}
        for series in self.history.of_kind("update"):
            weight = dict(self.history.series.get(("parameter", series.name), ()))
            for step, update in series:
                before, after = weight.get(step), weight.get(step + 1)
                if before is None or after is None or after.not_finite or is_bias(series.name):
                    continue
                off = abs(after.mean - before.mean - update.mean)
                rounding = 1e-5 * (abs(before.mean) + before.std + update.std)
                found[step] = found.get(step, False) or off > 0.1 * abs(update.mean) + rounding
        return found

    @cached_property
    def lively(self) -> float:
        """The largest median update ratio of a weight in the second half, when it has grown from 0; 0 without any."""
        halves = [ratios[len(ratios) // 2 :] for ratios in self.ratios.values()]
        return max((median([ratio for _, ratio in half]) for half in halves), default=0.0)

    def began_at_its_size(self, name: str) -> bool:
        """Whether a weight was not 0 at the first watched step, nor far smaller than most. It would need large updates.

        If step 1 was not watched, one with an update larger than itself was probably 0 there.
        """
        ratios, first = self.ratios.get(name), self.steps[0].step
        if not ratios or ratios[0][0] != first or self._first_sizes[name] < SMALL * median(self._first_sizes.values()):
            return False
        return first <= 1 or ratios[0][1] < 1

    @cached_property
    def _first_sizes(self) -> dict[str, float]:
        """The root mean square of each weight that moved, at its first watched step."""
        known = {name: self.history.series["parameter", name].statistics[0] for name in self.ratios}
        return {name: each.norm / math.sqrt(each.elements) for name, each in known.items()}

    @cached_property
    def _computed(self) -> dict[int, dict[str, int]]:
        """For each step the data and results that it had, by name, and how many numbers these were."""
        found: dict[int, dict[str, int]] = {}
        for series in (*self.history.of_kind("input"), *self.history.of_kind("value")):
            name = series.name.partition("#")[0].partition("@")[0]
            for step, known in series:
                names = found.setdefault(step, {})
                names[name] = names.get(name, 0) + known.elements
        return found

    def is_another_task(self, step: int, before: Sequence[int]) -> bool:
        """Whether a step computed something that few of the steps before did, or not what most did, or on more data.

        Of a step that was not watched it is known how many nodes autograd made.
        """
        if step in self._nodes:
            others = [self._nodes[each] for each in before if each in self._nodes]
            return others.count(self._nodes[step]) < RARE * len(others)
        now, before = self._computed.get(step, {}), [each for each in before if each not in self._nodes]
        if not before:
            return False
        if sum(now.values()) > GROWN * median([sum(self._computed.get(each, {}).values()) for each in before]):
            return True
        counts = Counter(name for each in before for name in self._computed.get(each, {}))
        return any(
            count < RARE * len(before) if name in now else count > (1 - RARE) * len(before)
            for name, count in ((name, counts[name]) for name in now.keys() | counts.keys())
        )

    def takes_turns(self, steps: Sequence[int]) -> bool:
        """Whether the data or the computation alternates from step to step."""
        present = Counter(name for each in steps for name in self._computed.get(each, {}))
        pairs = list(pairwise(steps))
        for name, count in present.items():
            seen = sum((name in self._computed.get(a, {})) != (name in self._computed.get(b, {})) for a, b in pairs)
            if RARE < count / len(steps) < 1 - RARE and seen > (1 - RARE) * len(pairs):
                return True
        wanted = set(steps)
        norms = ([known.norm for step, known in series if step in wanted] for series in self.history.of_kind("input"))
        return any(autocorrelation(each) < -self.thresholds.loss_swing for each in norms if len(each) == len(steps))

    def is_watched(self, step: int) -> bool:
        """Whether it is known what a step computed, and not its loss alone."""
        return step not in self._nodes

    @cached_property
    def grows(self) -> bool:
        """Whether the steps of the last half compute more, or their data is larger, or the loss follows either.

        An episode gets longer, or its returns larger, as a policy gets better.
        """
        steps = [step for step, _ in self.watched_losses]
        halves = steps[:BEGINNING], steps[len(steps) // 2 :]
        size = {step: sum(self._computed.get(step, {}).values()) for step in steps}
        if median(size[step] for step in halves[1]) > GROWN * median(size[step] for step in halves[0]):
            return True
        losses = [loss for _, loss in self.watched_losses]
        if len(set(size.values())) > 1 and len(set(losses)) > 1 and correlation([*size.values()], losses) > FOLLOWS:
            return True
        for series in self.history.of_kind("input"):
            known = {step: each.norm / math.sqrt(each.elements) for step, each in series if each.elements}
            norms = [[known[step] for step in half if step in known] for half in halves]
            if all(norms) and median(norms[1]) > self.thresholds.loss_rise * median(norms[0]):
                return True
            if _follows(losses, [known[step] for step in steps if step in known]):
                return True
        return False

    def had_gradient(self, name: str) -> bool:
        """Whether a parameter of the history had a gradient; its name there may lack that of the model."""
        series = self.history.of_kind("parameter gradient")
        return any(each.name == name or name.endswith(f".{each.name}") for each in series if each.steps)

    @cached_property
    def is_adaptive(self) -> bool:
        """Whether an optimizer divides by the gradients' size, as Adam does."""
        return any(series.name.endswith((*SECOND_MOMENTS, "/sum")) for series in self.history.of_kind("moment"))

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


def _follows(losses: Sequence[float], sizes: Sequence[float]) -> bool:
    """Whether losses follow sizes that differ much from step to step, as those of tasks do."""
    if len(sizes) != len(losses) or len(set(losses)) < 2:
        return False
    low, high = (sorted(sizes)[int(share * len(sizes))] for share in (0.25, 0.75))
    return high > VARIED * low and correlation(sizes, losses) > FOLLOWS


def is_bias(name: str) -> bool:
    """Whether the name of a parameter is that of a bias or of a norm's scale, which begin at 0 and 1."""
    last = name.rsplit(".", 1)[-1].partition("#")[0]
    return "bias" in last or "norm" in name.lower()


def autocorrelation(numbers: Sequence[float]) -> float:
    """Of a series at lag 1: -1 if it alternates, 0 for noise; 0 if it is constant."""
    level, spread = mean(numbers), pstdev(numbers)
    products = sum((a - level) * (b - level) for a, b in pairwise(numbers))
    return products / (spread * spread * (len(numbers) - 1)) if spread > 0 and len(numbers) > 1 else 0.0


def robust_spread(numbers: Sequence[float]) -> float:
    """The standard deviation of the noise of a series, from the median size of its differences.

    A trend makes small differences and hardly counts. Independent noise of deviation s has differences of deviation
    s * sqrt(2), and the median size of a normal variable is 0.6745 of its deviation.
    """
    return median([abs(after - before) for before, after in pairwise(numbers)]) / (0.6745 * math.sqrt(2))
