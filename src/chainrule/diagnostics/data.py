"""What comes from outside: inputs that are not normalised, and labels that no network of this kind can fit."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from statistics import median

import torch

from chainrule.diagnostics.check import Check
from chainrule.diagnostics.finding import Finding, listed
from chainrule.diagnostics.losses import COMPARING
from chainrule.diagnostics.run_context import Run
from chainrule.diagnostics.step_context import StepContext, argument, base_of, dense
from chainrule.graph.comparison import FLOAT32, same_statistics
from chainrule.graph.graph import Operation, Value
from chainrule.graph.statistics import Statistics
from chainrule.numbers import number

NOT_NORMALISED = Check(
    "input-not-normalised",
    title="The input is not normalised",
    severity="warning",
    what="What enters the first layer has a mean far from 0, a standard deviation far above 1, or features of very "
    "different spread.",
    why="Initialisations and learning rates are made for inputs of mean 0 and deviation 1. A large input makes large "
    "activations and gradients; a large feature drowns the others.",
    advice="Subtract the mean and divide by the standard deviation, both taken of the training data and kept; pixels "
    "of 0 to 255 divided by 255 do as well.",
    thresholds=("input_size", "input_spread"),
    source="LeCun, Bottou, Orr and Müller, Efficient backprop, 1998, 4.3",
)


@NOT_NORMALISED.in_step
def _not_normalised(context: StepContext) -> Iterator[Finding]:
    told: set[int] = set()
    for _, given, _, out in context.weighed:
        value, known = context.graph.values[given], context.statistics(given)
        if given in told or known is None or not value.dtype.is_floating_point or not context.is_data(given):
            continue
        told.add(given)
        matter = _matter(context, value)
        if matter:
            after = {base_of(each) for each in context.uses.get(out, ())}
            normalised = any("norm" in each for each in after)
            yield NOT_NORMALISED.found(
                context.name(given),
                f"{context.name(given)}, which enters the first layer, is not normalised: {matter}.",
                (
                    f"Mean {number(known.mean)}, standard deviation {number(known.std)}, between {number(known.low)} "
                    f"and {number(known.high)}.",
                ),
                place=value.place,
                severity="note" if normalised else "warning",  # a norm right after the layer makes up for it
            )


def _matter(context: StepContext, value: Value) -> str:
    known, limit = context.statistics(value.index), context.thresholds.input_size
    assert known is not None
    if known.std > limit:
        return f"its standard deviation is {number(known.std)}"
    if abs(known.mean) > limit:
        return f"its mean is {number(known.mean)}"
    if value.data is None or len(value.shape) != 2 or value.shape[0] < 8:
        return ""
    spread = dense(value.data).double().std(0, correction=0)
    varied = spread[spread > 0]
    if varied.numel() > 1 and varied.max() > context.thresholds.input_spread * varied.min():
        widest, narrowest = int(spread.argmax()), int(torch.where(spread > 0, spread, math.inf).argmin())
        return (
            f"its feature {widest} varies {number(float(varied.max() / varied.min()))} times as much as feature "
            f"{narrowest}"
        )
    return ""


UNFITTABLE = Check(
    "unfittable-labels",
    title="Labels that can't be fitted",
    severity="warning",
    what="Targets outside the range of the output's last function (a sigmoid, tanh, ReLU or softmax), targets of a "
    "binary cross-entropy outside 0 to 1, equal inputs with different labels; or, over a run, a loss that stays up "
    "though every step has the same batch and the network has parameters enough to learn it by heart.",
    why="However long it trains, the loss stays above 0: a batch that can't be learnt by heart is the sign of a "
    "mistake in the data or in the last layer.",
    advice="Look at inputs and labels side by side as the network gets them: their order after shuffling, their scale, "
    "and the range of the last function.",
    thresholds=("conflicts", "plateau"),
    source="Karpathy, A recipe for training neural networks, 2019: overfit one batch; Zhang et al., 2017",
)

RANGES = {
    "sigmoid": (0.0, 1.0), "_softmax": (0.0, 1.0), "tanh": (-1.0, 1.0), "relu": (0.0, math.inf),
    "softplus": (0.0, math.inf), "hardtanh": (-1.0, 1.0), "hardsigmoid": (0.0, 1.0), "exp": (0.0, math.inf),
}  # fmt: skip
BEYOND = 1e-3  # rounding of targets that lie at the very end of the range


@UNFITTABLE.in_step
def _out_of_reach(context: StepContext) -> Iterator[Finding]:
    """The target's extremes against the range of the function that makes the prediction."""
    for operation, prediction, target in _comparisons(context):
        made, base = context.made_by(prediction), base_of(operation)
        low, high = (
            (0.0, 1.0) if base == "binary_cross_entropy_with_logits" else RANGES.get(made, (-math.inf, math.inf))
        )
        known = context.statistics(target)
        if known is None or not known.elements or (made == "hardtanh" and _bounds(context, prediction) != (-1, 1)):
            continue
        if known.low >= low - BEYOND and known.high <= high + BEYOND:
            continue
        what = (
            "a probability"
            if base == "binary_cross_entropy_with_logits"
            else f"{context.name(prediction)} ({made.strip('_')})"
        )
        reach = f"at least {low:g}" if high == math.inf else f"between {low:g} and {high:g}"
        yield UNFITTABLE.found(
            context.name(target),
            f"The targets {context.name(target)} go beyond what can be reached: {what} is {reach}.",
            (f"{context.name(target)} lies between {number(known.low)} and {number(known.high)}.",),
            place=context.place(operation),
            advice="Scale the targets into the range, or leave the last function out (a plain linear layer for a "
            "regression).",
        )


def _comparisons(context: StepContext) -> Iterator[tuple[Operation, int, int]]:
    """(operation, prediction, target) of every loss, and of differences taken by hand outside the modules."""
    for operation in context.graph.operations:
        base = base_of(operation)
        by_hand = base == "sub" and _is_measured(context, operation)
        pair = argument(operation, "self"), argument(operation, COMPARING.get(base, "other"))
        if (base not in COMPARING and not by_hand) or base.startswith("nll") or None in pair:
            continue
        ordered: list[int] = [each for each in pair if each is not None]
        if by_hand:  # either way round
            ordered.sort(key=lambda value: not context.graph.values[value].requires_grad)
        prediction, target = ordered
        boolean = context.graph.values[context.source(target)].dtype == torch.bool
        if context.graph.values[prediction].requires_grad and context.is_data(target) and not boolean:
            yield operation, prediction, target


MEASURING = frozenset({"pow", "abs", "square", "mul", "norm", "linalg_vector_norm"})


def _is_measured(context: StepContext, operation: Operation) -> bool:
    """Whether a difference is taken outside the modules, and its size after that: then it is a loss by hand."""
    outside = operation.call is not None and not context.graph.calls[operation.call].module
    uses = [use for out in operation.outputs if out is not None for use in context.uses.get(out, ())]
    return outside and bool(uses) and all(base_of(use) in MEASURING for use in uses)


def _bounds(context: StepContext, value: int) -> tuple[object, object]:
    operation = context.producer(context.source(value))
    assert operation is not None
    return operation.arguments.get("min_val"), operation.arguments.get("max_val")


@UNFITTABLE.in_step
def _contradictions(context: StepContext) -> Iterator[Finding]:
    """Samples that are the same in every input, and are not in their label."""
    for operation in context.named(*COMPARING):
        target = argument(operation, COMPARING[base_of(operation)])
        labels = context.graph.values[context.source(target)] if target is not None else None
        if labels is None or not context.is_data(labels.index) or labels.data is None or not labels.shape:
            continue
        inputs = _inputs(context, labels)
        if inputs is None or labels.shape[0] < 4:
            continue
        rows = torch.cat([dense(each.data).flatten(1).double() for each in inputs if each.data is not None], 1)
        _, sample, counts = rows.unique(dim=0, return_inverse=True, return_counts=True)
        if counts.numel() == rows.shape[0]:
            continue
        pairs = torch.cat([sample.unsqueeze(1).double(), dense(labels.data).flatten(1).double()
                           if labels.data.dim() > 1 else dense(labels.data).double().unsqueeze(1)], 1)  # fmt: skip
        _, kinds = pairs.unique(dim=0)[:, 0].unique(return_counts=True)
        wrong = (kinds[sample] > 1).nonzero().flatten().tolist()
        if len(wrong) <= context.thresholds.conflicts * rows.shape[0]:
            continue
        twin = next(other for other in wrong[1:] if sample[other] == sample[wrong[0]])
        told = ", ".join(context.name(each.index) for each in inputs)
        name = context.name(labels.index)
        tokens = not any(each.dtype.is_floating_point for each in inputs)
        yield UNFITTABLE.found(
            name,
            f"{len(wrong)} of {rows.shape[0]} samples have an input ({told}) that also occurs with another label.",
            (
                f"Samples {listed(wrong)}.",
                f"Samples {wrong[0]} and {twin} have equal inputs; their labels are {_row(labels, wrong[0])} and "
                f"{_row(labels, twin)}.",
            ),
            place=context.place(operation),
            severity="note" if tokens else "warning",  # the same words are followed by others, as they should be
            rows=wrong,
            size=rows.shape[0],
        )


def _inputs(context: StepContext, labels: Value) -> list[Value] | None:
    """What the network was given, a row a sample; None where that is not known for certain.

    Nor where the labels are a part of it, as with a language model: what is left are states that begin at 0, alike for
    every sample.
    """
    found = {given for _, given, _, _ in context.weighed if context.is_data(given)}
    for operation in context.named("embedding"):
        indices = argument(operation, "indices")
        if indices is not None and context.is_data(context.source(indices)):
            found.add(context.source(indices))
    values = [context.graph.values[index] for index in sorted(found)]
    if (
        not values
        or labels.index in found
        or any(v.data is None or len(v.shape) < 2 or v.shape[0] != labels.shape[0] for v in values)
    ):
        return None
    return values


def _row(labels: Value, at: int) -> str:
    assert labels.data is not None
    row = dense(labels.data)[at]
    return listed([number(each) for each in row.flatten().tolist()])


ONE_BATCH = 30  # watched steps on the very same batch
RESIDUE = 0.1  # share of the loss at the start that is left
FELL = 1.1  # times the loss at the start: a loss that has risen has another fault


@UNFITTABLE.over_time
def _carried(run: Run) -> Iterator[Finding]:
    yield from UNFITTABLE.carried(run)


@UNFITTABLE.over_time
def _one_batch(run: Run) -> Iterator[Finding]:
    """The same batch at every step, parameters enough, and a loss that has stopped falling well above 0."""
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
            f"The loss stays at {number(after)}, though every step has the same batch.",
            (
                f"It was {number(run.first_loss)} at the start, {number(before)} in the quarter before the last, and "
                f"{number(after)} in the last.",
                f"{parameters:,} parameters, and {data:,} numbers of inputs and targets: enough to learn it by heart.",
            ),
            severity="note",  # it may only be slow
            since=run.losses[-2 * quarter][0],
        )


def _same(statistics: Sequence[Statistics]) -> bool:
    """Whether it was one tensor at all steps, as far as figures tell: sums may be made in another order."""
    first = statistics[0]
    exactly = (first.elements, first.low, first.high, first.zeros, first.not_finite)
    return all(
        (each.elements, each.low, each.high, each.zeros, each.not_finite) == exactly
        and same_statistics(each, first, FLOAT32)
        for each in statistics[1:]
    )
