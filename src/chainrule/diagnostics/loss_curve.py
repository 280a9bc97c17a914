"""Faults that the loss shows over a run: too high a learning rate, and spikes with the layer in which they began."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from statistics import mean, median, pstdev

from chainrule.diagnostics.check import Check
from chainrule.diagnostics.finding import Finding
from chainrule.diagnostics.run_context import BEGINNING, Run, autocorrelation, robust_spread
from chainrule.graph.history import Kind, Series
from chainrule.numbers import number

RATE_TOO_HIGH = Check(
    "learning-rate-too-high", "The learning rate is too high", "warning",
    what="The loss ends above its start, is thrown far above it, or oscillates; and the updates are large. Losses are "
    "not compared if they are around 0 at the start, or weight terms by data of either sign, as a policy's does; if "
    "steps grow, as episodes do; if they follow the size of the data; or if tasks take turns.",
    why="Every step overshoots the minimum: the loss does not fall, or falls far more slowly than it could.",
    advice="Divide the rate by 3 or 10; warm it up over the first hundreds of steps; clip the gradient.",
    source="Goodfellow, Bengio and Courville, 2016, 8.3 and 11.4.1; LeCun et al., 1998: beyond twice the inverse of "
    "the largest curvature gradient descent diverges",
    thresholds=("loss_rise", "loss_swing", "update_ratio_lively", "enough"))  # fmt: skip
THROWN = 3.0  # times the loss at the start, after an update of a third of a weight's size
HEAVY = 10.0  # times `update_ratio_lively`
ZIGZAG = 0.85  # share of the steps at which the loss turns, where tasks take turns; two thirds for noise
SWINGING = 0.1  # standard deviation of the loss over its mean
MIN_SWINGS = 16  # steps, so that noise does not look like an oscillation: 0.6 is then 2.4 of its standard deviations


@RATE_TOO_HIGH.over_time
def rate_too_high(run: Run) -> Iterator[Finding]:
    """A loss that rises, was thrown up or oscillates, with large updates."""
    if not run.enough or not run.losses:
        return
    # The loss of a policy, or of a critic, is an estimate around 0: it has no start to rise from.
    if not min(run.first_loss, *(loss for _, loss in run.losses[: int(run.thresholds.enough)])) > 0:
        return
    if any(each.estimate for each in run.steps[:BEGINNING]):
        return
    reason = _diverges(run) or _thrown(run) or _swings(run)
    if reason is not None:
        since, text, evidence = reason
        yield RATE_TOO_HIGH.found("loss", text, (*evidence, run.learning_rate), since=since)


Reason = tuple[int, str, tuple[str, ...]]
"""The step since which it holds, the sentence and the evidence."""


def _diverges(run: Run) -> Reason | None:
    losses = run.losses
    half = losses[len(losses) // 2 :]
    limit = run.thresholds.loss_rise * run.first_loss
    low, level = (sorted(loss for _, loss in half)[int(share * len(half))] for share in (0.25, 0.5))
    lively = max(run.lively, _largest_ratio(run, half[0][0]))
    if not low > limit or lively < run.thresholds.update_ratio_lively:
        return None
    steps = [step for step, _ in run.watched_losses]
    if run.is_another_task(steps[-1], steps[:BEGINNING]):
        return None  # another model is trained than in the beginning, or in another way
    if run.grows or run.takes_turns([step for step, _ in half]) or not _both_rise(run, losses):
        return None
    below = max((step for step, loss in losses[: len(losses) // 2] if loss <= limit), default=losses[0][0] - 1)
    since = next(step for step, loss in losses if step > below and loss > limit)
    return since, f"The loss rises from {number(run.first_loss)} at the start to {number(losses[-1][1])} at the end.", (
        f"Over the last half its median is {number(level)}, its lower quartile {number(low)}.", _large_updates(lively),
    )  # fmt: skip


def _both_rise(run: Run, losses: list[tuple[int, float]]) -> bool:
    """Whether, of losses that alternate, those of the even steps and those of the odd ones end above their start."""
    numbers = [loss for _, loss in losses[: 2 * int(run.thresholds.enough)]]
    rises = [after > before for before, after in pairwise(numbers)]
    if sum(one != other for one, other in pairwise(rises)) < ZIGZAG * (len(rises) - 1):
        return True
    numbers = [loss for _, loss in losses]
    return all(median(each[len(each) // 2 :]) > min(each[:2]) for each in (numbers[::2], numbers[1::2]))


def _large_updates(ratio: float) -> str:
    return f"Updates are up to {number(ratio)} times as large as the weights."


def _thrown(run: Run) -> Reason | None:
    """A large update threw the loss far up. Such a network may well be dead when the loss falls again."""
    step, peak = max(run.losses, key=lambda each: each[1])
    before = [s for s, _ in run.losses if s < step]
    if not before or not peak > THROWN * run.first_loss:
        return None
    watched = [each.step for each in run.steps if each.step < step]
    # An update long before, as the first ones of an adaptive optimizer, threw nothing.
    ratio = _largest_ratio(run, step, min(step - int(run.thresholds.window), watched[-1] if watched else step))
    if ratio < HEAVY * run.thresholds.update_ratio_lively or run.is_another_task(step, before) or run.grows:
        return None
    return before[-1], f"A large update threw the loss from {number(run.first_loss)} at the start to {number(peak)}.", (
        f"The largest update before that was {number(ratio)} times as large as its weight.",
        f"The loss is {number(run.losses[-1][1])} at the end.",
    )  # fmt: skip


def _largest_ratio(run: Run, before: int, since: int = 0) -> float:
    """The largest update ratio before a step, of weights that did not begin at 0."""
    return max(
        (ratio for name, ratios in run.ratios.items() if run.began_at_its_size(name)
         for step, ratio in ratios if since <= step < before), default=0.0,
    )  # fmt: skip


def _swings(run: Run) -> Reason | None:
    half = run.watched_losses[len(run.watched_losses) // 2 :]
    if not run.consecutive or len(half) < MIN_SWINGS or run.lively < run.thresholds.update_ratio_lively:
        return None
    losses = [loss for _, loss in half]
    level, spread = mean(losses), pstdev(losses)
    if not spread > SWINGING * level:
        return None
    correlation = autocorrelation(losses)
    if correlation > -run.thresholds.loss_swing or run.takes_turns([step for step, _ in half]):
        return None
    return half[0][0], f"The loss oscillates between {number(min(losses))} and {number(max(losses))}.", (
        f"Over the last {len(losses)} steps its autocorrelation at lag 1 is {number(correlation)}.",
        _large_updates(run.lively),
    )  # fmt: skip


SPIKE = Check(
    "loss-spike", "The loss jumps up", "warning",
    what="The loss of a step lies far above the median of the steps before, in standard deviations, as a multiple, "
    "and as a share of the loss at the start, and it does not do so now and then, as that of a rare task. Where most "
    "steps were not watched, whose tasks are not known, or where the batch is a quarter of the usual one or "
    "less, a loss that comes down at once is a note. The finding names the layer in which another number jumped first.",
    why="One bad batch or one bad update can undo hours of training, and the loss may not recover.",
    advice="Look at that batch and layer; clip the gradient, skip steps with extreme ones, or lower rate or beta2.",
    source="Chowdhery et al., PaLM, 2022, 5.1: spikes come of certain batches with a certain state of the weights; "
    "Molybog et al., A theory on Adam instability, 2023",
    thresholds=("spike_factor", "spike_sigmas", "spike_height", "window"))  # fmt: skip
MIN_BEFORE = 8  # watched steps before a spike, so that there is a usual loss
JUMP = 3.0  # times its median before: a tensor is named if it jumped by more
WORDS = {
    "input": "input", "value": "output of", "gradient": "gradient of", "parameter": "weight", "moment": "state of",
    "parameter gradient": "gradient of", "update": "update of",
}  # fmt: skip
AFTER, LEFT = 3, 0.1  # steps after a jump, and how much of it must be left in each of them
SMALLER = 4  # times as small as usual: the mean of its losses varies twice as much
REPORTED = 3  # spikes that are reported one by one


@SPIKE.over_time
def _spikes(run: Run) -> Iterator[Finding]:
    window, found, quiet_from = int(run.thresholds.window), 0, 0
    for index, (step, loss) in enumerate(run.losses):
        steps = [each for each, _ in run.losses[max(quiet_from, index - window) : index]]
        before = [each for _, each in run.losses[max(quiet_from, index - window) : index]]
        if found == REPORTED or len(before) < MIN_BEFORE or not is_spike(run, loss, before):
            continue
        if run.is_another_task(step, steps) or _recurs(loss, before):
            continue
        if not run.is_watched(step) and run.grows:
            continue
        known = run.is_watched(step) and sum(map(run.is_watched, steps)) >= MIN_BEFORE
        found += 1
        quiet_from = index + 1  # later steps are compared with those after the spike
        usual, origin = number(median(before)), _first_jump(run, index)
        spread = f"Its median over {len(before)} watched steps before is {usual}, with a standard deviation of "
        where, cause, evidence = "loss", "", [f"{spread}{number(robust_spread(before))}."]
        if origin is not None:
            factor, series, at = origin
            where, words = series.name, f"the {WORDS[series.kind]} {series.name}"
            cause = f"; it began in {words}"
            evidence.append(f"At step {at} the norm of {words} was {number(factor)} times its usual value.")
        yield SPIKE.found(
            where, f"The loss jumps from {usual} to {number(loss)} at step {step}{cause}.", evidence, since=step,
            until=step,
            severity=None if (known and not _is_small(run, step)) or _lasts(run, index, median(before)) else "note",
        )  # fmt: skip


def is_spike(run: Run, loss: float, before: list[float]) -> bool:
    """Whether a loss lies far above those before it."""
    usual, limits = median(before), run.thresholds
    if usual > limits.loss_rise * abs(run.first_loss):
        return False  # it was rising before, see `learning-rate-too-high`
    if usual == robust_spread(before) == 0:
        return False  # it is of few samples, most of which are right
    high = loss - usual > limits.spike_height * abs(run.first_loss)
    far = loss - usual > limits.spike_sigmas * robust_spread(before)
    multiple = loss - usual > (limits.spike_factor - 1) * abs(usual)  # also for a loss below 0, such as a critic's
    return high and far and multiple


def _recurs(loss: float, before: list[float]) -> bool:
    """Whether it had such peaks before, after it first came down to its usual level: a task of its own now and then."""
    usual = median(before)
    came_down = next(place for place, each in enumerate(before) if each <= usual)
    return any(each - usual > (loss - usual) / 2 for each in before[came_down:])


def _lasts(run: Run, index: int, usual: float) -> bool:
    """Whether the steps after a jump are high too: of a step that was not watched it is not known what it computed."""
    loss, later = run.losses[index][1], [each for _, each in run.losses[index + 1 : index + 1 + AFTER]]
    return len(later) == AFTER and min(later) - usual > LEFT * (loss - usual)


def _is_small(run: Run, step: int) -> bool:
    """Whether the batch of a step is far smaller than usual, as the last one of an epoch."""
    for series in (each for each in run.history.of_kind("input") if step in each.steps):
        sizes = [each.elements for each in series.statistics]
        if series.statistics[series.steps.index(step)].elements * SMALLER <= median(sizes):
            return True
    return False


def _first_jump(run: Run, index: int) -> tuple[float, Series, int] | None:
    """(ratio, series, step) of the tensor that jumped first: the largest, of outputs that of the first layer."""
    step, previous = run.losses[index][0], run.losses[index - 1][0]
    # A large update shows at the step before the spike; a bad batch, or weights changed by hand, at the spike.
    kinds: tuple[tuple[int, tuple[Kind, ...]], ...] = (
        (previous, ("update", "parameter gradient")), (step, ("parameter",)), (step, ("input",)),
    )  # fmt: skip
    for at, several in kinds:
        if jumps := _jumps(run, several, at):
            return (*max(jumps, key=lambda each: each[0]), at)
    outputs = _jumps(run, ("value",), step)
    return (*min(outputs, key=lambda each: each[1].layer), step) if outputs else None


def _jumps(run: Run, kinds: tuple[Kind, ...], step: int) -> list[tuple[float, Series]]:
    """(ratio of the norm to its median before, series) of the tensors that jumped at a step."""
    found = []
    for series in (each for kind in kinds for each in run.history.of_kind(kind) if step in each.steps):
        at = series.steps.index(step)
        before = [each.norm for each in series.statistics[max(0, at - int(run.thresholds.window)) : at]]
        usual = median(before) if len(before) >= MIN_BEFORE // 2 else 0.0
        factor = series.statistics[at].norm / usual if usual else 0.0
        if factor > JUMP and math.isfinite(factor):
            found.append((factor, series))
    return found
