"""A loss that compares something with itself: a sample with the same sample, or a network with its own output."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch

from chainrule.diagnostics.check import Check
from chainrule.diagnostics.comparisons import comparisons, first_output, with_constants
from chainrule.diagnostics.finding import Finding
from chainrule.diagnostics.run_context import Run
from chainrule.diagnostics.step_context import StepContext, argument, is_zero, operands
from chainrule.graph.graph import Operation
from chainrule.rules.facts import facts_of

ITSELF = Check(
    "compared-with-itself", "A loss compares something with itself", "warning",
    what="The scores of a cross-entropy are products of some rows with the same rows, and each row is to find itself, "
    "or another row while nothing hides its product with itself. "
    "Or predictions are equal to targets that are not constant, so that the loss is exactly 0: over a run it is so "
    "from the first watched step on, and in one step it is a note. Or the difference of two values that the network "
    "computed, as between an anchor and its positive, is 0 everywhere; or the smaller of two is taken that are equal "
    "everywhere, as of two critics.",
    why="There is nothing to learn: a row is most like itself in any case, and so is a network.",
    advice="Compare the two views, or the two towers, with each other; make a teacher by copy.deepcopy(model).",
    source="Chen et al., SimCLR, 2020; Tarvainen and Valpola, Mean teachers, 2017", lasts=3)  # fmt: skip


@ITSELF.in_step
def _own_row(context: StepContext) -> Iterator[Finding]:
    for comparison in comparisons(context):
        made = _product(context, comparison.prediction) if comparison.axis is not None else None
        target = context.values[context.source(comparison.target)].data
        if made is None or target is None or target.dim() != 1 or target.dtype.is_floating_point:
            continue
        own = target == torch.arange(len(target), device=target.device)
        if len(target) > 1 and not own.any():
            name, rows = context.name(comparison.prediction), context.name(context.source(operands(made)[0]))
            yield ITSELF.found(
                name, f"Each row of {rows} is to find another one among all of them, itself included: nothing hides "
                f"the products of rows with themselves in {name}.",
                (f"None of the targets {context.name(comparison.target)} is the row itself. Of unit vectors no other "
                 "has a larger product with a row than itself, so the loss cannot fall below ln 2 = 0.6931.",
                 context.between(comparison.prediction)),
                place=context.place(comparison.operation), title="A row is among its own negatives",
                advice="Hide the diagonal before the loss: scores.masked_fill(torch.eye(len(z)).bool(), -inf).",
            )  # fmt: skip
        if len(target) > 1 and own.all():
            name, rows = context.name(comparison.prediction), context.name(context.source(operands(made)[0]))
            yield ITSELF.found(
                name, f"Each row of {rows} is to find itself: {name} has the products of {rows} with {rows}.",
                (f"The targets {context.name(comparison.target)} are 0 to {len(target) - 1}, the places of the rows "
                 "themselves.", context.between(comparison.prediction)),
                place=context.place(made) or context.place(comparison.operation),
            )  # fmt: skip


def _product(context: StepContext, scores: int) -> Operation | None:
    """The product of a matrix and its own transpose that scores are, perhaps scaled by a number."""
    maker = context.producer(context.source(scores))
    while maker is not None and not facts_of(maker.name).matrix_product:
        facts, given = facts_of(maker.name), argument(maker, "self")
        if given is None or not (facts.scales or facts.takes == "scores"):
            return None
        maker = context.producer(context.source(given))
    if maker is None or len(operands(maker)) != 2:
        return None
    return maker if len(set(map(context.source, operands(maker)))) == 1 else None


@ITSELF.in_step
def _no_difference(context: StepContext) -> Iterator[Finding]:
    for operation in context.operations_that(lambda facts: facts.difference):
        taken, out = operands(operation), next(iter(operation.outputs), None)
        made = [context.source(each) for each in taken]
        if len(taken) != 2 or out is None or made[0] == made[1] or not is_zero(context.statistics(out)):
            continue
        known, shapes = context.statistics(taken[0]), [context.values[each].shape for each in taken]
        learned = all(
            context.values[each].requires_grad and context.values[each].operation is not None for each in made
        )
        if learned and known is not None and known.std and known.elements >= FEWEST and shapes[0] == shapes[1]:
            names = [context.name(each) for each in taken]
            yield ITSELF.found(
                names[1], f"{names[0]} and {names[1]} are equal in all {known.elements} numbers, and their difference "
                "is measured.", f"The difference is exactly 0, and {context.between(taken[0])}",
                place=context.place(operation), title="Two values that are compared are the same",
                advice="Look at how the pairs are drawn: another sample of the same class, or another view of the same "
                "sample.",
            )  # fmt: skip
            return


@ITSELF.in_step
def _one_for_two(context: StepContext) -> Iterator[Finding]:
    """The smaller or larger one of two outputs of layers that are the same."""
    for operation in context.operations_that(lambda facts: facts.chooses):
        taken = operands(operation)
        made = [context.source(each) for each in taken]
        known = [context.statistics(each) for each in (*taken, first_output(operation))]
        makers = [context.producer(each) for each in made]
        layers = all(each is not None and facts_of(each.name).weighs for each in makers)
        if len(set(made)) != 2 or not layers or known[0] is None or known[0].elements < FEWEST:
            continue
        if known[0].std > 0 and known[0] == known[1] == known[2]:
            names = [context.name(each) for each in taken]
            yield ITSELF.found(
                names[1], f"{names[0]} and {names[1]}, of which the smaller or larger is taken, are equal in all "
                f"{known[0].elements} numbers: one network computed both.", context.between(taken[0]),
                place=context.place(operation), title="Two values that are compared are the same",
                advice="Let two networks compute them: the two critics of a clipped double Q-learning are trained "
                "apart.",
            )  # fmt: skip
            return


FEWEST = 8  # numbers
EQUAL = "The targets are what the network predicts"


@ITSELF.in_step
def _own_output(context: StepContext) -> Iterator[Finding]:
    for comparison in with_constants(context):
        if comparison.likelihood or comparison.axis is not None:
            continue
        measured, *sides = map(context.statistics, (comparison.measured, comparison.prediction, comparison.target))
        if is_zero(measured) and all(each is not None and each.std > 0 for each in sides):
            names = [context.name(each) for each in (comparison.prediction, comparison.target)]
            yield ITSELF.found(
                names[1], f"The targets {names[1]} are equal to the predictions {names[0]}, as where one network "
                "computes both.", f"The loss {context.name(comparison.measured)} is exactly 0, and {names[0]} is not.",
                place=context.place(comparison.operation), severity="note", title=EQUAL,
            )  # fmt: skip


@ITSELF.over_time
def _from_the_start(run: Run) -> Iterator[Finding]:
    """A loss that is exactly 0 before anything was learnt; at the end of a training it may well be."""
    for stretch, found in ITSELF.carried(run):
        learnt = found.title == EQUAL and not (stretch.whole and len(stretch.steps) >= ITSELF.lasts)
        yield found if learnt else replace(found, severity=ITSELF.severity)
