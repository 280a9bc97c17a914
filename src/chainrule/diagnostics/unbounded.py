"""A penalty on weights that has no least value."""

from __future__ import annotations

from collections.abc import Iterator

from chainrule.diagnostics.check import Check
from chainrule.diagnostics.finding import Finding
from chainrule.diagnostics.loss_terms import summands
from chainrule.diagnostics.penalties import is_penalty
from chainrule.diagnostics.step_context import StepContext, operands
from chainrule.graph.graph import Operation
from chainrule.rules.facts import facts_of

UNBOUNDED = Check(
    "penalty-unbounded", "A penalty has no least value", "warning",
    what="A summand of the loss adds up or averages weights of layers that may be below 0, without their absolute "
    "values or squares.",
    why="Its gradient is the same whatever a weight is, so it pushes all of them on and on in one direction, and the "
    "loss falls below 0 instead of holding the weights near it.",
    advice="Take the absolute values, weight.abs().sum(), for an L1 penalty, or the squares, weight.pow(2).sum().",
    source="Tibshirani, Regression shrinkage and selection via the lasso, 1996")  # fmt: skip


@UNBOUNDED.in_step
def _unbounded(context: StepContext) -> Iterator[Finding]:
    layers = {weight for _, weight, _ in context.weighed}
    for loss in context.losses:
        for _, part in summands(context, loss):
            if not isinstance(part, int) or not is_penalty(context, part):
                continue
            inside = context.graph.ancestors([part]) | {part}
            makers = [made for each in inside if (made := context.producer(each)) is not None]
            added = [made for made in makers if facts_of(made.name).adds_up or facts_of(made.name).averages]
            signs = {each: context.statistics(each) for each in sorted(inside & layers)}
            free = [each for each, known in signs.items() if known is not None and known.low < 0 < known.high]
            if free and added and all(_is_linear(context, made) for made in makers):
                name = context.name(part)
                yield UNBOUNDED.found(
                    name, f"The penalty {name} adds up weights as they are, and those below 0 make it smaller.",
                    f"It is a sum of {context.name(free[0])}, whose gradient is one number everywhere. "
                    f"{context.between(free[0])}", place=context.place(min(added, key=lambda made: made.index)),
                )  # fmt: skip
                return


def _is_linear(context: StepContext, operation: Operation) -> bool:
    """Whether its result is a sum of its operands, each times a number."""
    facts, learning = facts_of(operation.name), [context.values[each].requires_grad for each in operands(operation)]
    if not any(learning):
        return True
    joins = "tensors" in operation.arguments
    scaled = facts.scales and sum(learning) == 1
    return (
        joins
        or scaled
        or facts.sums_operands
        or facts.adds_up
        or facts.averages
        or facts.keeps_numbers
        or (facts.negates)
    )
