"""Faults of the learning rate's schedule: one that is made for epochs and stepped at each batch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from statistics import median

from chainrule.diagnostics.check import Check
from chainrule.diagnostics.finding import Finding
from chainrule.diagnostics.run_context import Run
from chainrule.diagnostics.step_context import StepContext
from chainrule.numbers import number

PER_BATCH = Check(
    "scheduler-per-batch", "A schedule for epochs is stepped at each batch", "warning",
    what="Within a few hundred steps on changing batches the learning rate falls to a hundredth by equal factors, as "
    "ExponentialLR and StepLR do. Schedules that end at 0 (linear, cosine, OneCycleLR) and warm-up fall otherwise. Or "
    "it swings between nearly 0 and its top three times or more, in periods of 20 steps at most, as CosineAnnealingLR "
    "with a T_max in epochs does; all steps must be watched to see that.",
    why="The rate has collapsed before the network has seen much of its data: it no longer learns.",
    advice="Call scheduler.step() once an epoch, after the loop over batches; or count step_size, gamma and T_max in "
    "batches. ReduceLROnPlateau needs mode='min' for a loss.",
    source="PyTorch's documentation of torch.optim: how to adjust the learning rate",
    thresholds=("collapsed", "collapse_steps"))  # fmt: skip
DROPS = 3  # equal drops at least: two milestones are a schedule in batches


@PER_BATCH.over_time
def _per_batch(run: Run) -> Iterator[Finding]:
    rates = [(each.step, max(each.rates)) for each in run.steps if each.rates and not each.skipped]
    if len(rates) < DROPS or not _batches_change(run):
        return
    peak = max(range(len(rates)), key=lambda place: (rates[place][1], place))
    falling = rates[peak:]
    limit = run.thresholds.collapsed * falling[0][1]
    low = next((place for place, (_, rate) in enumerate(falling) if rate <= limit), None)
    if low is None or falling[low][0] - falling[0][0] > run.thresholds.collapse_steps or not limit > 0:
        return
    fall = falling[: low + 1]
    if not _by_equal_factors(fall):
        fall = _by_many_drops(falling, run.thresholds.collapse_steps)
    if not fall:
        return
    (first, high), (last, rate) = fall[0], fall[-1]
    yield PER_BATCH.found(
        "learning rate",
        f"The learning rate falls from {number(high)} to {number(rate)} within {last - first} steps, by equal factors, "
        "as if a schedule for epochs were stepped at each batch.",
        (f"It is {number(rates[-1][1])} at step {rates[-1][0]}, {number(rates[-1][1] / high)} of its largest.",
         f"It was halved about every {number((last - first) * math.log(2) / math.log(high / rate))} steps."),
        since=last,
    )  # fmt: skip


@PER_BATCH.over_time
def _swings(run: Run) -> Iterator[Finding]:
    """A cosine whose period is meant in epochs: the rate falls and rises again within a few steps, over and over."""
    rates = [(each.step, max(each.rates)) for each in run.steps if each.rates and not each.skipped]
    top = max((rate for _, rate in rates), default=0.0)
    if len(rates) < FEWEST or not run.consecutive or not top > 0 or not _batches_change(run):
        return
    turns = [rates[0]]  # the ends of each fall and rise
    for (_, before), (step, now), (_, after) in zip(rates, rates[1:], rates[2:], strict=False):
        if (now - before) * (after - now) < 0:
            turns.append((step, now))
    lows = [step for step, rate in turns[1:] if rate <= run.thresholds.collapsed * top]
    highs = [step for step, rate in turns if rate >= NEARLY * top]
    rises = sum(after > before for (_, before), (_, after) in pairwise(rates))
    if len(lows) < CYCLES or len(highs) < CYCLES or len(turns) - 1 > len(lows) + len(highs):
        return
    if 3 * rises < len(rates):
        return  # it restarts, and does not climb
    period = (lows[-1] - lows[0]) / (len(lows) - 1)
    if period <= SHORTEST:
        yield PER_BATCH.found(
            "learning rate",
            f"The learning rate falls to nearly 0 and rises again every {number(period)} steps, as if a schedule for "
            "epochs were stepped at each batch.",
            f"It did so {len(lows)} times from step {rates[0][0]} to {rates[-1][0]}, between {number(top)} and "
            f"{number(min(rate for _, rate in rates))}.", since=lows[0],
        )  # fmt: skip


FEWEST, CYCLES, SHORTEST, NEARLY = 10, 3, 20, 0.99  # steps, falls to nearly 0, steps of a period, share of the top


def _by_equal_factors(fall: Sequence[tuple[int, float]]) -> bool:
    """Whether the rate keeps, but for one drop of the usual size, to a line on a logarithmic scale, and never rises."""
    if fall[-1][1] <= 0:
        return False
    logs = [(step, math.log(rate)) for step, rate in fall]
    changes = [after - before for (_, before), (_, after) in pairwise(logs)]
    drops = [-each for each in changes if each < -1e-9]
    if len(drops) < DROPS or max(changes) > 1e-9:
        return False
    (first, start), (last, end) = logs[0], logs[-1]
    slope = (end - start) / (last - first)
    away = max(abs(value - start - slope * (step - first)) for step, value in logs)
    return away <= 1.05 * min(median(drops), (start - end) / DROPS)


def _by_many_drops(falling: Sequence[tuple[int, float]], within: float) -> list[tuple[int, float]]:
    """The steps from the first to the last of many equal drops, as of a plateau that each noisy batch seems to be."""
    drops = [(step, before, after) for (_, before), (step, after) in pairwise(falling) if after != before]
    factors = [after / before for _, before, after in drops]
    if len(drops) < MANY or max(factors) > HALVED or max(factors) > 1.05 * min(factors):
        return []
    last = drops[-1][0]
    few = last - falling[0][0] <= within and falling[-1][1] <= FALLEN * falling[0][1]
    return [each for each in falling if each[0] <= last] if few else []


MANY, HALVED, FALLEN = 5, 0.5, 1e-4  # drops; the factor of each; what is left: milestones are fewer, or less is lost


def _batches_change(run: Run) -> bool:
    """Whether the inputs differ from step to step: with the whole data in each step an epoch is one step."""
    inputs = run.history.of_kind("input")
    return any(len({(each.norm, each.mean) for _, each in series}) > len(series.steps) // 2 for series in inputs)


ONE_CYCLE = Check(
    "scheduler-per-epoch", "A schedule for batches is not stepped at each of them", "warning",
    what="OneCycleLR has set the learning rate, and the rate is the same as at the examined step before: at four of "
    "five examined steps, 8 at least.",
    why="It is made for as many steps as there are batches, so the rate stays near its start, a 25th of the largest.",
    advice="Call scheduler.step() after each optimizer.step(), or give it the number of epochs as total_steps.",
    source="PyTorch's documentation of OneCycleLR: step should be called after a batch has been used for training",
)  # fmt: skip
UNCHANGED, MOSTLY = 8, 0.8  # examined steps, and their share


@ONE_CYCLE.in_step
def _same_rate(context: StepContext) -> Iterator[Finding]:
    cycles = [each.options for each in context.members if each.options.keys() >= PLANNED]
    rates = tuple(float(each["lr"]) for each in cycles)
    before, context.kept[ONE_CYCLE.id] = context.kept.get(ONE_CYCLE.id), rates
    if rates and before == rates:
        high = max(float(each["max_lr"]) for each in cycles)
        yield ONE_CYCLE.found(
            "learning rate", f"The learning rate stays at {number(max(rates))}, and OneCycleLR plans to change it at "
            f"each batch, up to {number(high)}.", "",
            severity="note",
        )  # fmt: skip


PLANNED = {"lr", "initial_lr", "max_lr", "min_lr"}
"""The options that OneCycleLR leaves in a group of parameters."""


@ONE_CYCLE.over_time
def _rarely_stepped(run: Run) -> Iterator[Finding]:
    examined = run.in_steps(ONE_CYCLE.id)
    shown = [(step, found) for step, found in examined if found is not None]
    if len(shown) >= max(UNCHANGED, MOSTLY * len(examined)):
        held = f"It did not change before {len(shown)} of {len(examined)} examined steps."
        yield replace(shown[-1][1], severity="warning", since=shown[0][0], evidence=(held,))


VANISHED = Check(
    "learning-rate-vanished", "The learning rate has vanished long before the end", "warning",
    what="The largest learning rate has fallen, step by step and not at once, below a millionth of what it was, and "
    "stays there for a fifth of the watched steps, 20 at least, while the loss is above a tenth of that at the start.",
    why="Updates are too small for the number type: the rest of the training moves nothing.",
    advice="Print the rate at each epoch. The function of LambdaLR returns the factor of the first rate, that of "
    "MultiplicativeLR the factor of the last one; gamma multiplies the rate again and again.",
    source="PyTorch's documentation of torch.optim.lr_scheduler: MultiplicativeLR, LambdaLR, ExponentialLR",
)  # fmt: skip
GONE, REST, LEAST, ABOVE = 1e-6, 0.2, 20, 0.1  # of the largest rate; of the steps; steps; of the first loss


@VANISHED.over_time
def _vanished(run: Run) -> Iterator[Finding]:
    rates = [(each.step, max(each.rates)) for each in run.steps if each.rates and not each.skipped]
    top = max(range(len(rates)), key=lambda place: (rates[place][1], place), default=0)
    start = next((place for place in range(top, len(rates)) if rates[place][1] < GONE * rates[top][1]), None)
    if start is None or len(rates) - start < max(LEAST, REST * len(rates)) or not run.losses:
        return
    fall, rest = rates[top : start + 1], rates[start:]
    drops = sum(after < before for (_, before), (_, after) in pairwise(fall))
    stays = all(rate < GONE * fall[0][1] for _, rate in rest)
    if drops < DROPS or not stays or run.losses[-1][1] < ABOVE * run.first_loss:
        return
    yield VANISHED.found(
        "learning rate", f"The learning rate fell from {number(fall[0][1])} at step {fall[0][0]} to "
        f"{number(fall[-1][1])} at step {fall[-1][0]}, and the training went on for {rest[-1][0] - rest[0][0]} steps.",
        f"It is {number(rest[-1][1])} at step {rest[-1][0]}, after {drops} drops; the loss is "
        f"{number(run.losses[-1][1])}, and was {number(run.first_loss)} at the start.", since=fall[-1][0],
    )  # fmt: skip
