"""Faults of the batches: the same one again, all zeros, and micro-batches that do not add up to the big batch."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

import torch

from chainrule.diagnostics import gradients  # not its check alone: `_checks_of` takes the checks of a module
from chainrule.diagnostics.check import Check
from chainrule.diagnostics.clipping import clipped_between
from chainrule.diagnostics.comparisons import Comparison, comparisons, counted, looked_up, picked, with_constants
from chainrule.diagnostics.finding import Finding, Severity, listed
from chainrule.diagnostics.loss_terms import loss_scale
from chainrule.diagnostics.run_context import Run
from chainrule.diagnostics.step_context import StepContext
from chainrule.graph.comparison import FLOAT32, same_statistics
from chainrule.graph.snapshot import ParameterUpdate
from chainrule.graph.statistics import Statistics
from chainrule.numbers import number

SAME = Check(
    "same-batch", "A batch is the same as the one before", "note",
    what="The inputs and targets of a watched step have the statistics of those of the watched step before, at 4 steps "
    "of a run or more. It is a warning if all watched steps have one batch, and the loop takes it anew at each step, "
    "by next(iter(loader)), from a DataLoader that has others.",
    why="A training on all the data at once has such batches. Otherwise the rest of the data is not seen.",
    advice="If this is not all the data: take the next batch inside the loop, from one iterator for each epoch. "
    "next(iter(loader)) begins anew at each call.",
    source="PyTorch's documentation of torch.utils.data: each iter() of a DataLoader begins anew")  # fmt: skip
MIN_REPEATS = 4  # pairs of watched steps


@SAME.over_time
def _same_batch(run: Run) -> Iterator[Finding]:
    at: dict[int, dict[str, Statistics]] = defaultdict(dict)
    for series in run.history.of_kind("input"):
        for step, known in series:
            at[step][series.name] = known
    steps = sorted(at)
    repeats = [after for before, after in pairwise(steps) if _is_same(at[before], at[after])]
    if len(repeats) >= MIN_REPEATS:
        batch = at[repeats[-1]]
        restarted = [each.restarted for each in run.steps if each.step in at]
        anew = len(repeats) == len(steps) - 1 and all(restarted)
        yield SAME.found(
            "batch", f"{len(repeats)} of {len(steps)} watched steps have the batch of the watched step before, by its "
            "statistics.",
            (f"It is {listed(sorted(batch))}, with {sum(each.elements for each in batch.values()):,} numbers.",
             f"next(iter(...)) takes it at each step, the first ({restarted[-1]})." if anew else ""),
            since=repeats[0], severity="warning" if anew else "note",
        )  # fmt: skip


def _is_same(before: dict[str, Statistics], after: dict[str, Statistics]) -> bool:
    """Whether all inputs are the same by their statistics, and one of them at least is no constant."""
    if before.keys() != after.keys() or not any(each.low < each.high for each in after.values()):
        return False
    return all(is_same(before[name], after[name]) for name in after)


def is_same(before: Statistics, after: Statistics) -> bool:
    """Whether a tensor was the same, by its statistics; sums may be in another order."""
    exact = [(each.elements, each.low, each.high, each.zeros, each.not_finite) for each in (before, after)]
    return exact[0] == exact[1] and same_statistics(before, after, FLOAT32)


ZEROS = Check(
    "zero-batch", "A batch is all zeros", "warning",
    what="Every input of the network, of two samples or more, is 0 everywhere, also one that an action led to. It is a "
    "note if a run begins so and goes on otherwise, as where an environment begins at 0. One other number everywhere "
    "is a note, and a warning for tokens that are all the same at every examined step, 3 at least.",
    why="Nothing can be learnt from it: only biases get a gradient.",
    advice="Look at how the data is read: a path that does not exist, a buffer that is not filled, a conversion to "
    "integers before the division by 255, a vocabulary that knows none of the words.",
    source="Karpathy, A recipe for training neural networks, 2019: visualize just before the net")  # fmt: skip


@ZEROS.in_step
def _zeros(context: StepContext) -> Iterator[Finding]:
    inputs = [given for given, _, _ in context.weighed if given in context.data]
    inputs += [each for each in looked_up(context) if each in context.data and len(context.values[each].shape) > 1]
    known = {given: context.statistics(given) for given in dict.fromkeys(inputs)}
    if not known or any(each is None or each.low != each.high or each.not_finite for each in known.values()):
        return
    fed = {weight for given, weight, _ in context.weighed if given in known}
    others = (context.statistics(given) for given, weight, _ in context.weighed if weight in fed and given not in known)
    if any(each is None or each.low != each.high for each in others):
        return  # the same layer learns from another input, such as the state that an action led to
    given, first = next(iter(known.items()))
    shape = context.values[given].shape
    if first is None or len(shape) < 2 or shape[0] < 2 or first.elements == shape[0]:
        return
    name = context.name(given)
    what = "all zeros" if not first.low else f"{number(first.low)} everywhere"
    yield ZEROS.found(
        name, f"The input {name} is {what}.", f"All {first.elements} elements of {shape} are {number(first.low)}.",
        place=context.place(context.uses[given][0]), severity="note" if first.low else "warning",
        rows=(int(first.low),) if first.low and given in looked_up(context) else (),
    )  # fmt: skip


STATES = Check(
    "states-alike", "The next state is the state", "warning",
    what="The value of an action is compared with a target that networks computed, without a gradient, from another "
    "tensor with the same numbers: states and next states are equal in the whole batch.",
    why="The target says nothing of what an action leads to. It is so where an environment changes its array in place "
    "and the memory keeps the array itself.",
    advice="Store copies: state.copy() of an array, state.clone() of a tensor.",
    source="Mnih et al., Human-level control, 2015: a transition has a state and the next one", lasts=3)  # fmt: skip


@STATES.in_step
def _states(context: StepContext) -> Iterator[Finding]:
    fed = [
        given for given, _, _ in context.weighed if given in context.data and context.values[given].operation is None
    ]
    for comparison in with_constants(context) if len(fed) > 1 else ():
        if comparison.target in context.data or picked(context, comparison.prediction) is None:
            continue
        behind = [context.graph.ancestors([each]) for each in (comparison.prediction, comparison.target)]
        own, others = ([each for each in dict.fromkeys(fed) if each in before] for before in behind)
        for one in own:
            for other in others:
                if one not in others and other not in own and _is_equal(context, one, other):
                    names = f"{context.name(one)} and {context.name(other)}"
                    yield STATES.found(
                        context.name(other), f"{names} are equal: the target is computed from the very states that the "
                        "prediction is of.", f"All {math.prod(context.values[one].shape)} numbers are the same.",
                        place=context.place(comparison.operation),
                    )  # fmt: skip
                    return


def _is_equal(context: StepContext, one: int, other: int) -> bool:
    values, known = [context.values[each] for each in (one, other)], [context.statistics(each) for each in (one, other)]
    if values[0].shape != values[1].shape or known[0] is None or known[1] is None or known[0].low == known[0].high:
        return False
    data = [each.data for each in values]
    if data[0] is not None and data[1] is not None:
        return bool(torch.equal(data[0], data[1]))
    return is_same(known[0], known[1])


TOKENS_LAST = 3  # examined steps


@ZEROS.over_time
def _always_one_token(run: Run) -> Iterator[Finding]:
    for stretch, found in ZEROS.carried(run):
        if stretch.whole and stretch.ended:  # what an environment, or a memory, begins with
            yield replace(found, severity="note")
            continue
        lasts = stretch.whole and not stretch.ended and len(stretch.steps) >= TOKENS_LAST
        tokens = lasts and len({each.rows for each in stretch.findings}) == 1 and found.rows != ()
        yield replace(found, severity="warning") if tokens else found


# -- micro-batches ----------------------------------------------------------------------------------------------------

UNEQUAL = Check(
    "unequal-micro-batches", "Means of micro-batches of unequal counts", "warning",
    what="The backward passes of a step take means over unequal numbers of samples or tokens, and give the means equal "
    "weights: a sample of one weighs 1.25 times as much as one of another. A note if it is so at less than half of the "
    "examined steps, or at fewer than 3: the last batch of an epoch is often smaller.",
    why="The gradient is not that of the big batch: samples of small micro-batches count more.",
    advice="Sum the losses (reduction='sum') of all micro-batches, and divide by the samples or tokens of all.",
    source="Hugging Face, Fixing gradient accumulation, 2024")  # fmt: skip
MIN_UNEQUAL, OFTEN = 3, 0.5  # examined steps, and their share
UNEQUAL_WEIGHTS = 1.25  # largest / smallest weight of a sample


@UNEQUAL.in_step
def _unequal(context: StepContext) -> Iterator[Finding]:
    for several in _micro_batches(context):
        counts = [count for _, count, _ in several]
        weights = [weight / count for _, count, weight in several]
        if min(weights) > 0 and max(weights) > UNEQUAL_WEIGHTS * min(weights):
            comparison = several[0][0]
            yield UNEQUAL.found(
                context.name(comparison.measured),
                f"{len(several)} micro-batches of {number(min(counts))} to {number(max(counts))} samples have equal "
                "weights, or others that do not fit their sizes.",
                f"A sample weighs up to {number(max(weights) / min(weights))} times as much as another; the counts are "
                f"{listed([number(each) for each in counts])}.",
                place=context.place(comparison.operation),
            )  # fmt: skip


@UNEQUAL.over_time
def _often_unequal(run: Run) -> Iterator[Finding]:
    examined = run.in_steps(UNEQUAL.id)
    shown = [(step, found) for step, found in examined if found is not None]
    if shown:
        often = len(shown) >= max(MIN_UNEQUAL, OFTEN * len(examined))
        evidence = (*shown[-1][1].evidence, f"It holds at {len(shown)} of {len(examined)} examined steps.")
        severity: Severity = "warning" if often else "note"
        yield replace(shown[-1][1], since=shown[0][0], severity=severity, evidence=evidence)


MICRO_SCALE = Check(
    "micro-batch-scale", "Accumulated gradients are not divided by the number of micro-batches", "warning",
    what="The means of k micro-batches are added up: the gradient is k times that of one big batch. It is a note below "
    "4 micro-batches, where the gradient is clipped, and for optimizers whose step does not depend on its size.",
    why="The effective learning rate grows with the number of micro-batches.",
    advice="Divide each loss by the number of micro-batches before backward(), or choose the rate for the sum.",
    source="Hugging Face Accelerate's documentation: Performing gradient accumulation")  # fmt: skip
MANY = 4  # micro-batches


@MICRO_SCALE.in_step
def _micro_scale(context: StepContext) -> Iterator[Finding]:
    for several in _micro_batches(context):
        total, count = sum(weight for *_, weight in several), len(several)
        if not all(math.isclose(weight, 1.0, rel_tol=1e-3) for *_, weight in several):
            continue
        rescaled = any("betas" in each.options or "alpha" in each.options for each in context.members)
        clipped = any(each.kind.startswith("clip") for each in context.graph.events)
        comparison = several[0][0]
        yield MICRO_SCALE.found(
            context.name(comparison.measured),
            f"The gradients of {count} micro-batches are added up, and none is divided by their number.",
            f"The means have weights of {number(total)} together, and that of one big batch has 1.",
            place=context.place(comparison.operation),
            severity="note" if count < MANY or rescaled or clipped else "warning",
        )  # fmt: skip


@gradients.CHANGED.in_step
def _cleared_between(context: StepContext) -> Iterator[Finding]:
    """Micro-batches of which the optimizer used less than all sent: gradients were cleared between their passes."""
    passes = context.graph.accumulating
    for several in _micro_batches(context) if not clipped_between(context) else ():
        lost = [_lost_between(context, member) for member in context.members]
        divided = all(math.isclose(weight * len(several), 1, rel_tol=1e-3) for *_, weight in several)
        if (
            (len(several) < MIN_CLEARED and not divided)
            or len({each.place for each in passes}) > 1
            or not lost
            or not all(lost)
        ):
            continue
        comparison, names = several[0][0], listed([member.name for member in context.members])
        yield gradients.CHANGED.found(
            context.name(comparison.measured),
            f"The gradients of {len(several)} micro-batches do not add up: they are cleared between the backward "
            "passes, and the optimizer uses the last ones alone.", (lost[0], f"So it is with {names}."),
            place=passes[0].place, severity="warning", title=CLEARED, advice=CLEAR_ONCE,
        )  # fmt: skip


MIN_CLEARED = 3  # micro-batches; two losses that are each divided by 2 are micro-batches too
CLEARLY = 0.1  # relative difference of the norms
CLEARED = "Gradients of micro-batches are cleared"
CLEAR_ONCE = "Call zero_grad() once for each step of the optimizer, outside of the loop over the micro-batches."


def _lost_between(context: StepContext, member: ParameterUpdate) -> str:
    """What shows that a gradient is not the sum of what the passes sent, though the optimizer took it as it was."""
    known = context.parameter(member)
    if known is None or known.value in context.graph.hooked:
        return ""
    sent, left, used = context.statistics(known.value, gradient=True), context.gradient(known), context.gradient(member)
    if sent is None or left is None or used is None or not left.norm or sent.not_finite:
        return ""
    clipped = any(each.kind.startswith("clip") for each in context.graph.events)
    taken = clipped or math.isclose(used.norm, left.norm, rel_tol=1e-3)
    if not taken or math.isclose(sent.norm, left.norm, rel_tol=CLEARLY):
        return ""
    return (
        f"The passes sent gradients to {member.name} whose sum has a norm of {number(sent.norm)}; what was left has "
        f"one of {number(left.norm)}."
    )


MicroBatch = tuple[Comparison, float, float]
"""(comparison, how many samples or tokens it has the mean of, the weight of that mean in the loss)"""


def _micro_batches(context: StepContext) -> list[list[MicroBatch]]:
    """Comparisons by the same line in backward passes of their own, each with a batch of its own."""
    return context.once("micro-batches", lambda: list(_found(context)) if len(context.losses) > 1 else [])


def _found(context: StepContext) -> Iterator[list[MicroBatch]]:
    updates, ends = context.graph.updates, [context.producer(each) for each in context.losses]
    if not all(each.accumulates for each in context.graph.backwards):
        return  # gradients of gradients: the inner losses are no micro-batches
    if any(end is not None and update.position <= end.index for update in updates for end in ends):
        return  # an update between the passes: they are those of several optimizers
    left_out = list(context.operations_that(lambda facts: facts.unscales))
    if any(end is not None and each.index < end.index for each in left_out for end in ends):
        return  # a GradScaler left an update out between the passes
    several: dict[object, list[tuple[int, MicroBatch]]] = defaultdict(list)
    computed: list[set[int]] = []
    for loss in context.losses:
        inside = context.graph.ancestors([loss]) | {loss}
        computed.append({each for each in inside if context.values[each].kind == "result"} - context.data)
        for comparison in comparisons(context):
            weight, place = _weight(context, comparison), context.place(comparison.operation)
            if comparison.measured in inside and weight is not None and place is not None:
                several[place.file, place.line, comparison.operation.name].append((loss, (comparison, *weight)))
    together = set().union(*computed)
    if sum(map(len, computed)) != len(together):
        return  # parts of one batch, or of one sequence: they have results in common
    for found in several.values():
        targets = {context.source(comparison.target) for _, (comparison, *_) in found}
        if 1 < len(found) == len(context.losses) == len({loss for loss, _ in found}) == len(targets):
            yield [each for _, each in found]


def _varies(context: StepContext, value: int) -> bool:
    """Whether a target is more than one number everywhere, as those of a discriminator are."""
    known = context.statistics(value)
    return known is not None and (known.low < known.high or known.elements == 1)


def _weight(context: StepContext, comparison: Comparison) -> tuple[float, float] | None:
    """(count, weight of the mean in the loss); None if they are unknown, or if the loss is a sum."""
    sent, count = context.statistics(comparison.measured, gradient=True), counted(context, comparison)
    if (
        sent is None
        or not count
        or comparison.reduction == "sum"
        or not _varies(context, comparison.target)
        or sent.low != sent.high
    ):
        return None
    weight = abs(sent.mean) / loss_scale(context)
    return count, weight if comparison.reduction else weight * sent.elements
