"""Faults of the learning rate over a run: a jump after which the loss jumps too or is lost, and a collapse."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from statistics import median

from chainrule.diagnostics.check import Check
from chainrule.diagnostics.finding import Finding
from chainrule.diagnostics.loss_curve import MIN_BEFORE, is_spike
from chainrule.diagnostics.run_context import Run
from chainrule.numbers import number

RATE_JUMP = Check(
    "learning-rate-jump", "The learning rate jumps", "warning",
    what="From one step to the next the rate rises far above every rate before, and then the loss jumps up, stays up, "
    "or is lost. Or all rates collapse from one step to the next and stay so low, before the loss is near 0. A rise "
    "that the loss bears (the end of a warm-up, a restart) is not reported.",
    why="Updates grow in proportion to the rate: one that is far too large destroys what was learnt. With a collapsed "
    "rate nothing more is learnt.",
    advice="Look at what sets the rate at that step: a milestone, a scheduler made anew or with another last_epoch "
    "after a checkpoint, a factor that is applied twice, steps counted as epochs.",
    source="Goodfellow, Bengio and Courville, 2016, 8.3; PyTorch issue 60265: a resumed schedule that jumps",
    thresholds=("rate_jump", "rate_collapse", "loss_rise", "spike_factor", "spike_height", "window", "enough"),
)  # fmt: skip
MOST = 0.1  # of the highest rate: a rate below has nearly decayed, so what follows is no collapse
NEAR = 20  # steps after a rise in which numbers are lost, at least
FEW = 3  # losses before and after a rise, at least, to compare their levels

Rates = tuple[float, ...]


@RATE_JUMP.over_time
def _jumps(run: Run) -> Iterator[Finding]:
    highest: Rates = ()
    for (earlier, before), (step, after) in pairwise(run.rates):
        highest = tuple(map(max, highest, before)) if len(highest) == len(before) else before
        if step != earlier + 1 or len(before) != len(after):
            continue
        found = _rise(run, step, highest, before, after) or _collapse(run, step, highest, before, after)
        if found is not None:
            yield found
            return


def _rise(run: Run, step: int, highest: Rates, before: Rates, after: Rates) -> Finding | None:
    limit = run.thresholds.rate_jump
    risen = [group for group, rate in enumerate(after) if rate > limit * highest[group] > 0]
    if not risen or step - run.rates[0][0] < MIN_BEFORE:
        return None
    until = next((at - 1 for at, rates in run.rates if at > step and not _high(rates, risen, limit, highest)), None)
    harm = _harm(run, step)
    if harm is None:
        return None
    worst = max(risen, key=lambda group: after[group] / highest[group])
    of = "" if len(risen) == len(after) else f" of {len(risen)} of {len(after)} parameter groups"
    fold = f"{number(after[worst] / before[worst])}-fold " if before[worst] else ""
    return RATE_JUMP.found(
        "learning rate",
        f"The learning rate{of} rises {fold}at step {step}, from {number(before[worst])} to {number(after[worst])}.",
        (f"Before it was never above {number(highest[worst])}.", harm), since=step, until=until,
    )  # fmt: skip


def _high(rates: Rates, risen: list[int], limit: float, highest: Rates) -> bool:
    return len(rates) != len(highest) or any(rates[group] > limit * highest[group] for group in risen)


def _harm(run: Run, step: int) -> str | None:
    """What the loss does after a rise; None if it bears it."""
    window, limits = int(run.thresholds.window), run.thresholds
    later = [each for each in run.steps if each.step > step][:window]
    for facts in later:
        if facts.loss is not None and not math.isfinite(facts.loss):
            return f"The loss is {number(facts.loss)} at step {facts.step}."
    for each in run.history.noticed:
        if each.lost and step <= each.step <= max(step + NEAR, later[-1].step if later else 0):
            return f"The update of step {each.step} makes parameters NaN or infinite."
    before = [loss for at, loss in run.losses if at <= step][-window:]
    after = [(loss, at) for at, loss in run.losses if at > step][:window]
    if len(before) < FEW or not after:
        return None
    usual, (peak, at) = median(before[-max(FEW, len(before) // 2) :]), max(after)
    level = median([loss for loss, _ in after[: 2 * FEW - 1]]) if len(after) >= FEW else -math.inf
    rises = level - usual > max(limits.spike_height * abs(run.first_loss), (limits.loss_rise - 1) * abs(usual))
    if (rises and level > max(before[-FEW:])) or (len(before) >= MIN_BEFORE and is_spike(run, peak, before)):
        return f"The loss was {number(usual)} before, in the median, and is {number(peak)} at step {at}."
    return None


def _collapse(run: Run, step: int, highest: Rates, before: Rates, after: Rates) -> Finding | None:
    limit, last = 1 / run.thresholds.rate_collapse, run.steps[-1].step if run.steps else 0
    fell = all(now <= limit * earlier for earlier, now in zip(before, after, strict=True))
    whole = any(earlier > MOST * top for earlier, top in zip(before, highest, strict=True))
    later = [rates for at, rates in run.rates if at > step]
    stays = all(max(rates, default=0.0) <= limit * max(before) for rates in later)
    if not (fell and whole and stays) or last - step < run.thresholds.enough or len(later) < FEW:
        return None
    if not run.losses or run.has_learnt:
        return None
    top, bottom = number(max(before)), number(max(after))
    return RATE_JUMP.found(
        "learning rate", f"The learning rate collapses at step {step}, from {top} to {bottom}.",
        (f"It has not risen again until step {last}.", f"The loss is {number(run.losses[-1][1])} there."), since=step,
    )  # fmt: skip
