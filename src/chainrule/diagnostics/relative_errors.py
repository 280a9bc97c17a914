"""Errors that are divided by targets near 0."""

from __future__ import annotations

import math
from collections.abc import Iterator

from chainrule.diagnostics.batches import is_same
from chainrule.diagnostics.check import Check
from chainrule.diagnostics.finding import Finding
from chainrule.diagnostics.step_context import StepContext, argument, operands
from chainrule.graph.statistics import Statistics
from chainrule.numbers import number
from chainrule.rules.facts import facts_of

RELATIVE = Check(
    "relative-error-near-zero", "A relative error of targets near 0", "warning",
    what="Errors are divided by their targets, or by the targets' sizes, and the smallest one is below a thousandth of "
    "their mean size.",
    why="The error of a sample whose target is nearly 0 weighs a thousand times as much as that of others, so the "
    "network learns these samples alone.",
    advice="Divide by a size that is never small: (target.abs() + prediction.abs()) / 2, the mean size of the targets, "
    "or max(size, 1). Or take errors of logarithms.",
    source="Hyndman and Koehler, Another look at measures of forecast accuracy, 2006", lasts=3)  # fmt: skip
FEWEST, SMALL = 8, 1e-3  # targets; of their mean size


@RELATIVE.in_step
def _relative(context: StepContext) -> Iterator[Finding]:
    for operation in context.operations_that(lambda facts: facts.scales and not facts.multiplies):
        given, by = argument(operation, "self"), argument(operation, "other")
        target = _target_of(context, given) if given is not None and by in context.data else None
        if target is None or by is None or given is None or not _is_of(context, by, target):
            continue
        sizes = context.statistics(by)
        if sizes is None or sizes.elements < FEWEST or sizes.elements != math.prod(context.values[given].shape):
            continue
        usual, least = sizes.norm / math.sqrt(sizes.elements), _least(sizes)
        if least is not None and least < SMALL * usual:
            name, times = context.name(context.source(by)), number(usual / least) if least else "infinitely many"
            yield RELATIVE.found(
                name, f"The errors are divided by {name}, which is as small as {number(least)}.",
                f"Its root mean square is {number(usual)}, so one error may weigh {times} times as much as another.",
                place=context.place(operation),
            )  # fmt: skip
            return


def _target_of(context: StepContext, value: int) -> int | None:
    """What predictions are subtracted from, or it from them, in a value that may be the size of a difference."""
    made = context.producer(value)
    while made is not None and facts_of(made.name).size and (given := argument(made, "self")) is not None:
        made = context.producer(given)
    if made is None or not facts_of(made.name).difference:
        return None
    targets = [each for each in operands(made) if each in context.data]
    return targets[0] if len(targets) == 1 and len(operands(made)) == 2 else None


def _is_of(context: StepContext, value: int, target: int) -> bool:
    """Whether a value is a target, or computed from one: also from its numbers, taken from the data once more."""
    wanted = context.statistics(target)
    known = [(each, context.statistics(each)) for each in (context.source(value), *context.graph.ancestors([value]))]
    return any(
        each == target or (own is not None and wanted is not None and is_same(own, wanted)) for each, own in known
    )


def _least(known: Statistics) -> float | None:
    """The smallest size of a number, where all have one sign."""
    if known.not_finite or known.low < 0 < known.high:
        return None
    return min(abs(known.low), abs(known.high))
