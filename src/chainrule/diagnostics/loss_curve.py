"""What the course of the loss shows: a rate that is too high, and spikes with the layer that they began in."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from statistics import mean, median, pstdev

from chainrule.diagnostics.check import Check
from chainrule.diagnostics.finding import Finding
from chainrule.diagnostics.run_context import Run, robust_spread
from chainrule.graph.history import Series
from chainrule.numbers import number

RATE_TOO_HIGH = Check(
    "learning-rate-too-high",
    title="The learning rate is too high",
    severity="warning",
    what="The loss ends above where it began, was thrown far above it by a large update, or jumps to and fro over a "
    "minimum; and the updates are large for their weights, so that it is the rate which is to blame.",
    why="Every step goes past the minimum that it aims at: the loss does not fall, or falls far more slowly than it "
    "could.",
    advice="Divide the rate by 3 or by 10 and look again; warm it up over the first hundreds of steps; clip the "
    "gradient.",
    thresholds=("loss_rise", "loss_swing", "update_ratio_lively", "enough"),
    source="Goodfellow, Bengio and Courville, 2016, 8.3 and 11.4.1; LeCun et al., 1998: beyond twice the inverse of "
    "the largest curvature gradient descent diverges",
)
THROWN = 3.0  # times the loss at the start, after an update of a third of a weight's size
HEAVY = 10.0  # times `update_ratio_lively`
SWINGING = 0.1  # standard deviation of the loss over its mean
MIN_SWINGS = 16  # steps, so that noise does not look like a swing: 0.6 is then 2.4 of its standard deviations


@RATE_TOO_HIGH.over_time
def _rate_too_high(run: Run) -> Iterator[Finding]:
    if not run.enough or not run.losses or not run.first_loss > 0:
        return
    reason = _diverges(run) or _thrown(run) or _swings(run)
    if reason is not None:
        since, told, evidence = reason
        rates = [number(rate) for each in run.steps[-1:] for rate in dict.fromkeys(each.rates)]
        yield RATE_TOO_HIGH.found(
            "loss", told, (*evidence, *((f"Learning rate {', '.join(rates)}.",) if rates else ())), since=since
        )


Reason = tuple[int, str, tuple[str, ...]]


def _diverges(run: Run) -> Reason | None:
    losses = run.losses
    half = losses[len(losses) // 2 :]
    level, limit = median([loss for _, loss in half]), run.thresholds.loss_rise * run.first_loss
    lively = max(run.lively, _largest_ratio(run, half[0][0]))
    if not level > limit or lively < run.thresholds.update_ratio_lively:
        return None
    since = next(step for step, loss in losses if loss > limit)
    return since, f"The loss rises: it began at {number(run.first_loss)}, and is {number(losses[-1][1])} in the end.", (
        f"Its median over the last half is {number(level)}.",
        f"Updates are up to {number(lively)} times as large as the weights.",
    )  # fmt: skip


def _thrown(run: Run) -> Reason | None:
    """Thrown far up by a large update: such a network may well come down dead."""
    step, peak = max(run.losses, key=lambda each: each[1])
    before = [s for s, _ in run.losses if s < step]
    if not before or not peak > THROWN * run.first_loss:
        return None
    ratio = _largest_ratio(run, step)
    if ratio < HEAVY * run.thresholds.update_ratio_lively:
        return None
    return before[-1], f"A large update threw the loss from {number(run.first_loss)} at the start to {number(peak)}.", (
        f"Until then an update was as large as {number(ratio)} of its weight.",
        f"The loss is {number(run.losses[-1][1])} in the end.",
    )  # fmt: skip


def _largest_ratio(run: Run, before: int) -> float:
    """The largest update ratio before a step, of weights that did not begin at 0."""
    return max(
        (ratio for name, ratios in run.ratios.items() if run.began_at_its_size(name)
         for step, ratio in ratios if step < before), default=0.0,
    )  # fmt: skip


def _swings(run: Run) -> Reason | None:
    half = run.losses[len(run.losses) // 2 :]
    if not run.consecutive or len(half) < MIN_SWINGS or run.lively < run.thresholds.update_ratio_lively:
        return None
    losses = [loss for _, loss in half]
    level, spread = mean(losses), pstdev(losses)
    if not spread > SWINGING * level:
        return None
    products = sum((a - level) * (b - level) for a, b in pairwise(losses))
    correlation = products / (spread * spread * (len(losses) - 1))
    if correlation > -run.thresholds.loss_swing:
        return None
    return half[0][0], f"The loss jumps to and fro between {number(min(losses))} and {number(max(losses))}.", (
        f"Over the last {len(losses)} steps its correlation with itself one step later is {number(correlation)}.",
        f"Updates are up to {number(run.lively)} times as large as the weights.",
    )  # fmt: skip


SPIKE = Check(
    "loss-spike",
    title="The loss jumps up",
    severity="warning",
    what="The loss of a step lies far above the median of the steps before: in spreads of these, as a multiple, and as "
    "a share of the loss at the start. The layer is told in which something else jumped first.",
    why="One bad batch or one bad update can undo hours, and may not be made good again.",
    advice="Look at that batch, and at the layer that is named; clip the gradient, skip steps whose gradient is far "
    "above the usual, or lower the rate and Adam's beta2.",
    thresholds=("spike_factor", "spike_sigmas", "spike_height", "window"),
    source="Chowdhery et al., PaLM, 2022, 5.1: spikes come of certain batches with a certain state of the weights; "
    "Molybog et al., A theory on Adam instability, 2023",
)
MIN_BEFORE = 8  # watched steps before a spike, so that there is a usual loss
JUMP = 3.0  # times its median before: what a tensor must have jumped by to be named
WORDS = {
    "input": "input", "value": "output of", "gradient": "gradient of", "parameter": "weight", "moment": "state of",
    "parameter gradient": "gradient of", "update": "update of",
}  # fmt: skip
TOLD = 3  # spikes that are told one by one


@SPIKE.over_time
def _spikes(run: Run) -> Iterator[Finding]:
    window, found, quiet_from = int(run.thresholds.window), 0, 0
    for index, (step, loss) in enumerate(run.losses):
        before = [each for _, each in run.losses[max(quiet_from, index - window) : index]]
        if len(before) < MIN_BEFORE or not _is_spike(run, loss, before):
            continue
        found += 1
        quiet_from = index + 1  # what follows is judged by what comes after the spike
        if found <= TOLD:
            usual = median(before)
            cause = _began_in(run, index)
            yield SPIKE.found(
                cause[0] if cause else "loss",
                f"The loss jumps from {number(usual)} to {number(loss)} at step {step}"
                f"{'; it began in ' + cause[1] if cause else ''}.",
                (
                    f"Median {number(usual)} over {len(before)} watched steps before, with a spread of "
                    f"{number(robust_spread(before))}.",
                    *((cause[2],) if cause else ()),
                ),
                since=step,
                until=step,
            )


def _is_spike(run: Run, loss: float, before: list[float]) -> bool:
    usual, limits = median(before), run.thresholds
    if usual > limits.loss_rise * abs(run.first_loss):
        return False  # it is rising already: see `learning-rate-too-high`
    high = loss - usual > limits.spike_height * abs(run.first_loss)
    far = loss - usual > limits.spike_sigmas * robust_spread(before)
    multiple = loss - usual > (limits.spike_factor - 1) * abs(usual)  # of a loss below 0 (a critic's, say) as well
    return high and far and multiple


def _began_in(run: Run, index: int) -> tuple[str, str, str] | None:
    """(where, words, numbers) of what jumped first: at the step before the spike, else at the spike itself.

    An update that is too large shows at the step before; a bad batch, and weights changed by hand, at the step.
    """
    step, previous = run.losses[index][0], run.losses[index - 1][0]
    moved = _jumps(run, ("update", "parameter gradient"), previous)
    if moved:
        factor, series = max(moved, key=lambda each: each[0])
        return _told(series, factor, previous)
    for kinds in (("parameter",), ("input",)):
        jumped = _jumps(run, kinds, step)
        if jumped:
            factor, series = max(jumped, key=lambda each: each[0])
            return _told(series, factor, step)
    outputs = _jumps(run, ("value",), step)
    if outputs:
        factor, series = min(outputs, key=lambda each: each[1].layer)
        return _told(series, factor, step)
    return None


def _told(series: Series, factor: float, step: int) -> tuple[str, str, str]:
    words = f"the {WORDS[series.kind]} {series.name}"
    return series.name, words, f"At step {step} the norm of {words} was {number(factor)} times its usual."


def _jumps(run: Run, kinds: tuple[str, ...], step: int) -> list[tuple[float, Series]]:
    """What jumped at a step, against its median over the watched steps before."""
    found = []
    for kind in kinds:
        for series in run.history.of_kind(kind):  # type: ignore[arg-type]
            if step not in series.steps:
                continue
            at = series.steps.index(step)
            before = [each.norm for each in series.statistics[max(0, at - int(run.thresholds.window)) : at]]
            usual = median(before) if len(before) >= MIN_BEFORE // 2 else 0.0
            factor = series.statistics[at].norm / usual if usual else 0.0
            if factor > JUMP and math.isfinite(factor):
                found.append((factor, series))
    return found
