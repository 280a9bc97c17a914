"""Means of a loss that are taken too soon, or divided again."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from chainrule.diagnostics.check import Check
from chainrule.diagnostics.comparisons import Comparison, comparisons, first_output
from chainrule.diagnostics.finding import Finding
from chainrule.diagnostics.run_context import Run
from chainrule.diagnostics.step_context import StepContext, operands
from chainrule.graph.graph import Operation
from chainrule.numbers import number
from chainrule.rules.facts import facts_of

EARLY = Check(
    "averaged-first", "A loss is averaged before its samples are weighed", "warning",
    what="The mean of a loss over a batch is multiplied by data with a number for each sample, such as a mask or "
    "weights. Or it is multiplied by a function of its own exponential, as a focal loss does with the loss of each "
    "sample. Or all that a step compares is the mean of its predictions with the mean of as many targets.",
    why="Every sample counts alike: a mask hides nothing, weights or a focus choose among none, and one prediction may "
    "be as much too large as another is too small.",
    advice='Pass reduction="none" to the loss, multiply, and take the mean last.',
    source="PyTorch's documentation of nn.MSELoss: reduction; Lin et al., Focal loss for dense object detection, 2017, "
    "equation 4: the loss of each sample")  # fmt: skip


@EARLY.in_step
def _early(context: StepContext) -> Iterator[Finding]:
    for comparison in comparisons(context):
        if (mean := mean_loss(context, comparison)) is None:
            continue
        name, means = context.name(mean), _scaled(context, mean)
        for use in (use for each in means for use in context.uses.get(each, ())):
            other = next((each for each in operands(use) if each not in means), None)
            if not facts_of(use.name).multiplies or other is None:
                continue
            if _is_of_samples(context, other, comparison.target):
                yield EARLY.found(
                    name, f"{name} is one mean, and {context.name(other)} multiplies it by a number of each sample.",
                    f"The result is {name} times each of {math.prod(context.values[other].shape)} numbers: which "
                    "sample has which is lost.", place=context.place(use),
                )  # fmt: skip
                return
            if _is_exponential_of(context, other, means):
                samples = context.values[comparison.target].shape[0]
                yield EARLY.found(
                    name, f"{name} is one mean, and is weighed by its own exponential, as a focal loss weighs the loss "
                    "of each sample.", f"{context.name(other)} is 1 number for {samples} samples.",
                    place=context.place(use),
                )  # fmt: skip
                return


@EARLY.in_step
def _of_means(context: StepContext) -> Iterator[Finding]:
    """The only comparison is of the mean of all predictions with that of as many targets."""
    for comparison in comparisons(context) if len(comparisons(context)) == 1 else ():
        own, other = (_averaged(context, each) for each in (comparison.prediction, comparison.target))
        if own is None or other is None or other not in context.data:
            continue
        count, shapes = math.prod(context.values[own].shape), [context.values[each].shape for each in (own, other)]
        if count == math.prod(shapes[1]) >= FEWEST and shapes[0][:1] == shapes[1][:1]:
            yield EARLY.found(
                context.name(comparison.prediction), f"The loss compares the mean of {context.name(own)} with the mean "
                f"of {context.name(other)}: no sample has a target of its own.",
                f"{count} predictions and {count} targets are one difference.",
                place=context.place(comparison.operation), title="Means are compared, not samples",
                advice="Compare each prediction with its target, and take the mean last. If means are all that is to "
                "agree, as of two distributions, silence this finding.",
            )  # fmt: skip


def _averaged(context: StepContext, value: int) -> int | None:
    """What a number is the mean of."""
    maker = context.producer(context.source(value))
    if context.values[value].shape or maker is None or not facts_of(maker.name).averages:
        return None
    return next(iter(operands(maker)), None)


def mean_loss(context: StepContext, comparison: Comparison) -> int | None:
    """The mean of a comparison over its samples, of which there are several; None if it has another reduction."""
    if not math.prod(context.values[comparison.target].shape) > 1:
        return None
    if comparison.reduction:
        return comparison.measured if comparison.reduction == "mean" else None
    uses = context.uses.get(comparison.measured, ())
    averaged = [first_output(use) for use in uses if facts_of(use.name).averages]
    return next((each for each in averaged if each is not None and not context.values[each].shape), None)


def _scaled(context: StepContext, value: int) -> set[int]:
    """A value, and what it is after views and products with plain numbers."""
    found, waiting = {value}, [value]
    while waiting:
        for use in context.uses.get(waiting.pop(), ()):
            facts, out = facts_of(use.name), first_output(use)
            same = facts.keeps_numbers or (facts.scales and len(operands(use)) == 1)
            if same and out is not None and out not in found:
                found.add(out)
                waiting.append(out)
    return found


def _is_of_samples(context: StepContext, value: int, target: int) -> bool:
    """Whether it is data with one number for each sample, or for each of their targets."""
    shape, of = context.values[value].shape, context.values[target].shape
    size = math.prod(shape)
    return value in context.data and size > 1 and shape[:1] == of[:1] and size in (of[0], math.prod(of))


def _is_exponential_of(context: StepContext, value: int, means: set[int]) -> bool:
    """Whether functions of one operand, an exponential among them, lead back to a mean."""
    exponential = False
    while value not in means and (maker := context.producer(value)) is not None and len(operands(maker)) == 1:
        exponential = exponential or facts_of(maker.name).exponential
        (value,) = operands(maker)
    return exponential and value in means


AGAIN = Check(
    "divided-twice", "A mean is divided by the number of its samples", "note",
    what="The mean of a loss over its samples is divided by their number, in a step with one backward pass. Over a run "
    "it is a warning if the rate divided by that number is below 0.01, for optimizers whose step grows with the "
    "gradient, without clipping.",
    why="The gradient is as many times too small as the batch has samples, and so is each step.",
    advice="Leave the division out: a loss is a mean already, unless it has reduction=\"sum\" or \"none\".",
    source="PyTorch's documentation of nn.CrossEntropyLoss: reduction is mean by default")  # fmt: skip
FEWEST, SLOW = 8, 0.01  # samples; learning rate over samples: as a mean's, plain gradient descent hardly moves


@AGAIN.in_step
def _again(context: StepContext) -> Iterator[Finding]:
    if len(context.graph.accumulating) != 1:
        return  # the number may be that of the micro-batches
    for comparison in comparisons(context):
        mean, shape = mean_loss(context, comparison), context.values[comparison.target].shape
        if mean is None or shape[0] < FEWEST:
            continue
        for use in context.uses.get(mean, ()):
            if _factor(use) == 1 / shape[0]:
                yield AGAIN.found(
                    context.name(mean), f"{context.name(mean)} is the mean over {shape[0]} samples, and is divided by "
                    f"{shape[0]} again.", f"The gradient is {shape[0]} times smaller than that of the mean.",
                    place=context.place(use), size=shape[0],
                )  # fmt: skip
                return


@AGAIN.over_time
def _again_over_time(run: Run) -> Iterator[Finding]:
    for stretch, found in AGAIN.carried(run):
        rate = max((rate for _, rates in run.rates if rates for rate in rates), default=math.inf)
        bears = run.is_adaptive or any(each.clipped for each in run.steps) or not rate < SLOW * found.size
        if bears or len(stretch.steps) < LASTS:
            yield found
        else:
            evidence = f"A rate of {number(rate)} for it is one of {number(rate / found.size)} for the mean."
            yield replace(found, severity="warning", evidence=(*found.evidence, evidence))


LASTS = 3  # examined steps


def _factor(operation: Operation) -> float | None:
    """The number by which an operation multiplies its operand; None if it does something else."""
    facts, other = facts_of(operation.name), operation.arguments.get("other")
    if not facts.scales or facts.calculates is None or not isinstance(other, (int, float)) or not other:
        return None
    return facts.calculates(1.0, float(other))
