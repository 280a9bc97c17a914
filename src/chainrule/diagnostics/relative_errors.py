"""Errors that are divided by targets near 0."""

from __future__ import annotations

import math
from collections.abc import Iterator

from chainrule.diagnostics.batches import is_same
from chainrule.diagnostics.check import Check
from chainrule.diagnostics.comparisons import comparisons
from chainrule.diagnostics.finding import Finding
from chainrule.diagnostics.step_context import StepContext, argument
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
    for comparison in comparisons(context):
        target = context.source(comparison.target)
        for operation in context.graph.operations if comparison.scale == "numbers" else ():
            given, by = argument(operation, "self"), argument(operation, "other")
            facts = facts_of(operation.name)
            if facts.multiplies or not facts.scales or given is None or by not in context.data:
                continue
            sizes, inside = context.statistics(by), context.graph.ancestors([given]) | {given}
            if not _is_of(context, by, target) or sizes is None or comparison.operation.outputs[0] not in inside:
                continue
            if sizes.elements < FEWEST or sizes.elements != math.prod(context.values[given].shape):
                continue
            if (least := _least(sizes)) is not None and least < SMALL * sizes.norm / sizes.elements**0.5:
                name = context.name(by)
                yield RELATIVE.found(
                    name, f"The errors are divided by {name}, which is as small as {number(least)}.",
                    f"Its root mean square is {number(sizes.norm / sizes.elements**0.5)}, so one error may weigh "
                    f"{number(sizes.norm / sizes.elements**0.5 / least) if least else 'infinitely many'} times as much "
                    "as another.", place=context.place(operation),
                )  # fmt: skip
                return


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
