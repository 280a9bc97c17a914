"""Faults of the data: inputs that are not normalised, and labels that the network cannot fit."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from statistics import median

import torch
from torch import Tensor

from chainrule.diagnostics.check import Check
from chainrule.diagnostics.finding import Finding, listed
from chainrule.diagnostics.run_context import Run
from chainrule.diagnostics.step_context import StepContext, argument
from chainrule.graph.comparison import FLOAT32, dense, same_statistics
from chainrule.graph.graph import Operation, Value
from chainrule.graph.statistics import Statistics
from chainrule.numbers import number
from chainrule.rules.facts import base_name, facts_of

NOT_NORMALISED = Check(
    "input-not-normalised", "The input is not normalised", "warning",
    what="The first layer's input has a mean far from 0, a deviation far above 1, or features of unequal spread. Pairs "
    "of a sine and a cosine may be unequal: they stand for a time or a place.",
    why="Initialisation and learning rate assume mean 0 and deviation 1; a large feature hides the others.",
    advice="Subtract the training data's mean and divide by its deviation, or divide pixels of 0 to 255 by 255.",
    source="LeCun, Bottou, Orr and Müller, Efficient backprop, 1998, 4.3", thresholds=("input_size", "input_spread"),
)  # fmt: skip


ROUNDED = 1e-3


@NOT_NORMALISED.in_step
def _not_normalised(context: StepContext) -> Iterator[Finding]:
    outputs: dict[int, list[int]] = {}
    for given, _, out in context.weighed:
        outputs.setdefault(given, []).append(out)
    for given, made in outputs.items():
        value, known = context.values[given], context.statistics(given)
        if known is None or not value.dtype.is_floating_point or given not in context.data:
            continue
        fault = _fault(context, value, known)
        if fault:
            normalised = any(facts_of(use.name).normalises for use in context.uses.get(made[0], ()))
            yield NOT_NORMALISED.found(
                context.name(given),
                f"{context.name(given)}, the input of the first layer, is not normalised: {fault}.",
                (f"Mean {number(known.mean)}, standard deviation {number(known.std)}; {context.between(given)}",),
                place=value.place,
                severity="note" if normalised else "warning",  # a norm right after the layer makes up for it
            )


def _fault(context: StepContext, value: Value, known: Statistics) -> str:
    limit = context.thresholds.input_size
    if known.std > limit:
        return f"its standard deviation is {number(known.std)}"
    if abs(known.mean) > limit:
        return f"its mean is {number(known.mean)}"
    if value.data is None or len(value.shape) != 2 or value.shape[0] < 8:
        return ""
    spread = dense(value.data).double().std(0, correction=0)
    varied = spread[spread > 0]
    if varied.numel() < 2 or varied.max() <= context.thresholds.input_spread * varied.min():
        return ""
    narrow = ((spread > 0) & (spread * context.thresholds.input_spread < varied.max())).nonzero().flatten().tolist()
    if all(_is_wave(dense(value.data), feature) for feature in narrow):
        return ""
    widest, narrowest = int(spread.argmax()), int(torch.where(spread > 0, spread, math.inf).argmin())
    ratio = number(float(varied.max() / varied.min()))
    return f"its feature {widest} varies {ratio} times as much as feature {narrowest}"


def _is_wave(data: Tensor, feature: int) -> bool:
    """Whether another feature is the cosine of which this is the sine: long waves of a time or place hardly vary."""
    squares = data.double().square()
    return bool(((squares + squares[:, feature : feature + 1] - 1).abs().amax(0) < ROUNDED).any())


UNFITTABLE = Check(
    "unfittable-labels", "Labels that can't be fitted", "warning",
    what="Targets lie outside the range of the output's last function (or of a binary cross-entropy), or equal inputs "
    "have different labels, which is a note for tokens and for rows of 0 and 1. Over a run: the loss stays up for one "
    "repeated batch that the network could memorise.",
    why="The loss stays above 0. A batch that can't be memorised points to a fault in the data or the last layer.",
    advice="Compare inputs and labels as the network gets them: their order, scale, and the last function's range.",
    source="Karpathy, A recipe for training neural networks, 2019: overfit one batch; Zhang et al., 2017",
    thresholds=("conflicts", "plateau"))  # fmt: skip
BEYOND = 1e-3  # rounding of targets at the very end of the range


@UNFITTABLE.in_step
def _out_of_reach(context: StepContext) -> Iterator[Finding]:
    """Targets outside the range of the function that computes the prediction."""
    for operation, prediction, target in _comparisons(context):
        logits = facts_of(operation.name).takes == "logits"
        known, maker = context.statistics(target), context.producer(context.source(prediction))
        made = "" if maker is None else base_name(maker.name).strip("_")
        bounds = facts_of(maker.name).bounds if maker is not None else None
        low, high = -math.inf, math.inf
        if logits:
            low, high = 0.0, 1.0
        elif maker is not None and bounds is not None:
            low, high = bounds(maker.arguments)
        if known is None or not known.elements:
            continue
        if known.low >= low - BEYOND and known.high <= high + BEYOND:
            continue
        what = "a probability" if logits else f"{context.name(prediction)} ({made})"
        limits = f"at least {low:g}" if high == math.inf else f"between {low:g} and {high:g}"
        yield UNFITTABLE.found(
            context.name(target), f"The targets {context.name(target)} are out of reach: {what} is {limits}.",
            context.between(target), place=context.place(operation),
            advice="Scale the targets into the range, or drop the last function: a regression ends in a linear layer.",
        )  # fmt: skip


def _comparisons(context: StepContext) -> Iterator[tuple[Operation, int, int]]:
    """(operation, prediction, target) of every loss, and of differences outside the modules."""
    for operation in context.graph.operations:
        facts = facts_of(operation.name)
        by_hand = facts.difference and _is_measured(context, operation)
        pair = argument(operation, "self"), argument(operation, "target" if facts.compares else "other")
        if not (facts.compares or by_hand) or facts.class_target or None in pair:
            continue
        ordered: list[int] = [each for each in pair if each is not None]
        if by_hand:  # in either order
            ordered.sort(key=lambda value: not context.values[value].requires_grad)
        prediction, target = ordered
        boolean = context.values[context.source(target)].dtype == torch.bool
        if context.values[prediction].requires_grad and target in context.data and not boolean:
            yield operation, prediction, target


def _is_measured(context: StepContext, operation: Operation) -> bool:
    """Whether a difference is taken outside the modules and then measured, which makes it a loss written by hand."""
    outside = operation.call is not None and not context.graph.calls[operation.call].module
    uses = [use for out in operation.outputs if out is not None for use in context.uses.get(out, ())]
    return outside and bool(uses) and all(facts_of(use.name).measures for use in uses)


@UNFITTABLE.in_step
def _contradictions(context: StepContext) -> Iterator[Finding]:
    """Samples that are equal in every input and differ in their label."""
    for operation in context.operations_that(lambda facts: facts.compares):
        target = argument(operation, "target")
        labels = context.values[context.source(target)] if target is not None else None
        if labels is None or labels.index not in context.data or labels.data is None or not labels.shape:
            continue
        inputs, count = _inputs(context, labels), labels.shape[0]
        if inputs is None or count < 4:
            continue
        rows = torch.cat([dense(each.data).flatten(1).double() for each in inputs if each.data is not None], 1)
        _, sample, counts = rows.unique(dim=0, return_inverse=True, return_counts=True)
        if counts.numel() == count:
            continue
        pairs = torch.cat([sample.unsqueeze(1).double(), dense(labels.data).double().reshape(count, -1)], 1)
        _, kinds = pairs.unique(dim=0)[:, 0].unique(return_counts=True)
        wrong = (kinds[sample] > 1).nonzero().flatten().tolist()
        if len(wrong) <= context.thresholds.conflicts * count:
            continue
        alike = (other for other in wrong[1:] if sample[other] == sample[wrong[0]])
        other = next(other for other in alike if not torch.equal(pairs[other], pairs[wrong[0]]))
        names = ", ".join(context.name(each.index) for each in inputs)
        tokens = bool(((rows == 0) | (rows == 1)).all()) or not any(each.dtype.is_floating_point for each in inputs)
        yield UNFITTABLE.found(
            context.name(labels.index),
            f"{len(wrong)} of {count} samples have an input ({names}) that also occurs with another label.",
            (
                f"Samples {listed(wrong)}.",
                f"Samples {wrong[0]} and {other} have equal inputs; their labels are {_row(labels, wrong[0])} and "
                f"{_row(labels, other)}.",
            ),
            place=context.place(operation),
            severity="note" if tokens else "warning",  # different words may well follow the same words
            rows=wrong,
            size=count,
        )


def _inputs(context: StepContext, labels: Value) -> list[Value] | None:
    """The inputs of the network, one row per sample; None if unknown, as when the labels are among them."""
    found = {given for given, _, _ in context.weighed if given in context.data}
    lookups = context.operations_that(lambda facts: facts.looks_up)
    indices = (argument(each, facts_of(each.name).looks_up) for each in lookups)
    sources = {context.source(each) for each in indices if each is not None}
    found |= {each for each in sources if each in context.data}
    values = [context.values[index] for index in sorted(found)]
    rows = all(v.data is not None and len(v.shape) > 1 and v.shape[0] == labels.shape[0] for v in values)
    return values if values and rows and labels.index not in found else None


def _row(labels: Value, at: int) -> str:
    assert labels.data is not None
    return listed([number(each) for each in dense(labels.data)[at].flatten().tolist()])


ONE_BATCH = 30  # watched steps with the very same batch
RESIDUE = 0.1  # share of the loss at the start that remains
FELL = 1.1  # times the loss at the start: a loss that has risen has another fault


@UNFITTABLE.over_time
def _over_time(run: Run) -> Iterator[Finding]:
    """What steps showed, and a loss that stays far above 0 for the same batch at every step with enough parameters."""
    yield from (found for _, found in UNFITTABLE.carried(run))
    inputs, losses = run.history.of_kind("input"), [loss for _, loss in run.losses]
    if len(losses) < ONE_BATCH or not inputs or not all(_same(series.statistics) for series in inputs):
        return
    quarter = len(losses) // 4
    before, after = median(losses[-2 * quarter : -quarter]), median(losses[-quarter:])
    parameters = sum(series.statistics[-1].elements for series in run.history.of_kind("parameter"))
    data = sum(series.statistics[-1].elements for series in inputs)
    flat = abs(before - after) <= run.thresholds.plateau * abs(before)
    if flat and after > RESIDUE * run.first_loss and parameters > 2 * data and after < FELL * run.first_loss:
        yield UNFITTABLE.found(
            "loss",
            f"The loss stays at {number(after)}, although every step has the same batch.",
            (
                f"It was {number(run.first_loss)} at the start, {number(before)} in the third quarter, and "
                f"{number(after)} in the last.",
                f"{parameters:,} parameters are enough to memorise {data:,} numbers of inputs and targets.",
            ),
            severity="note",  # it may only be slow
            since=run.losses[-2 * quarter][0],
        )


def _same(statistics: Sequence[Statistics]) -> bool:
    """Whether the tensor was the same at all steps, by its statistics; sums may be in another order."""
    exact = {(each.elements, each.low, each.high, each.zeros, each.not_finite) for each in statistics}
    return len(exact) == 1 and all(same_statistics(each, statistics[0], FLOAT32) for each in statistics)
