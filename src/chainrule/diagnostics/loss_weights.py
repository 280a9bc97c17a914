"""Weights of losses that are learnt, and that nothing holds."""

from __future__ import annotations

from collections.abc import Iterator

from chainrule.diagnostics.check import Check
from chainrule.diagnostics.comparisons import comparisons, first_output
from chainrule.diagnostics.finding import Finding
from chainrule.diagnostics.loss_terms import is_number
from chainrule.diagnostics.step_context import StepContext, operands
from chainrule.graph.graph import Operation
from chainrule.numbers import number
from chainrule.rules.facts import facts_of

UNHELD = Check(
    "loss-weight-unheld", "The weight of a loss is learnt, and nothing holds it", "warning",
    what="A loss that compares predictions with targets is multiplied by a parameter, or by its exponential, that an "
    "optimizer moves, and no other summand of the loss depends on that parameter.",
    why="The loss falls fastest where its weight does: the weight goes to 0 and below, and the task is given up.",
    advice="Keep the weight a constant, or learn it with a term that holds it: exp(-s) * loss + s.",
    source="Kendall, Gal and Cipolla, Multi-task learning using uncertainty to weigh losses, 2018")  # fmt: skip


@UNHELD.in_step
def _unheld(context: StepContext) -> Iterator[Finding]:
    measured = {each.measured for each in comparisons(context) if not each.likelihood}
    names = {known.value: name for name, known in context.graph.parameters.items()
             if known.gradient is not None and context.may_learn(known)}  # fmt: skip
    for operation in context.operations_that(lambda facts: facts.multiplies) if measured else ():
        given, out = operands(operation), first_output(operation)
        if len(given) != 2 or out is None or not all(is_number(context, each) for each in given):
            continue
        for weight, loss in (given, given[::-1]):
            parameter = _parameter(context, weight)
            known, sent = context.statistics(loss), context.statistics(out, gradient=True)
            before = context.graph.ancestors([loss]) | {loss}
            if parameter is None or parameter not in names or parameter in before or measured.isdisjoint(before):
                continue
            if known is None or sent is None or known.mean * sent.mean <= 0:
                continue
            if not all(_is_product(context, use, measured) for use in _ends(context, parameter)):
                continue
            name = names[parameter]
            yield UNHELD.found(
                name, f"The loss {context.name(loss)} is multiplied by {name}, which is learnt: each update makes that "
                "smaller, and nothing holds it.",
                (f"The gradient of the weight is the loss itself, {number(known.mean)}.", context.between(weight)),
                place=context.place(operation),
            )  # fmt: skip
            return


def _parameter(context: StepContext, value: int) -> int | None:
    """The parameter that a number is an element, or the exponential, of."""
    value = context.source(value)
    while (maker := context.producer(value)) is not None:
        facts, given = facts_of(maker.name), operands(maker)
        if len(given) != 1 or not (facts.exponential or facts.negates or facts.scales or facts.sigmoid or facts.limits):
            return None
        value = context.source(given[0])
    return value


def _ends(context: StepContext, value: int) -> list[Operation]:
    """The operations that take a parameter, or an element or a function of it alone, together with something else."""
    found = []
    for use in context.uses.get(value, ()):
        alone = len(operands(use)) == 1
        found += [each for out in use.outputs if out is not None for each in _ends(context, out)] if alone else [use]
    return found


def _is_product(context: StepContext, operation: Operation, measured: set[int]) -> bool:
    """Whether an operation multiplies by a loss that compares; what has no gradient does not hold anything."""
    out = first_output(operation)
    if out is None or not context.values[out].has_gradient:
        return True
    multiplies = facts_of(operation.name).multiplies and all(is_number(context, each) for each in operands(operation))
    return multiplies and not measured.isdisjoint(context.graph.ancestors([out]))
