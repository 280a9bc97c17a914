"""What to try where a result or a derivative is not finite: it fits what made the operand, and what uses the result."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from chainrule.diagnostics.step_context import StepContext, argument
from chainrule.graph.graph import Operation
from chainrule.graph.snapshot import type_name
from chainrule.numbers import number
from chainrule.rules.facts import OF_NOTHING, facts_of

LOGSUMEXP = "Use torch.logsumexp, which subtracts the largest exponent first."
SOFTMAX = "Use torch.softmax, which subtracts the largest exponent first."
RATIO = "The exponent is a difference, so the result is a ratio: clamp the difference before exp()."


def advice_for(context: StepContext, operation: Operation) -> str:
    """What to try for an operation; "" if nothing more is known than for any."""
    if mean_of_nothing(context, operation):
        return OF_NOTHING
    facts = facts_of(operation.name)
    if facts.exponential:
        return _of_limit(context, operation, "self", high=True) or _of_exponential(context, operation)
    divisor = context.statistics(argument(operation, "other")) if facts.singular == "other" else None
    if divisor is not None and not divisor.zeros:
        return ""  # it overflows
    return at_zero(context, operation) or facts.advice


def at_zero(context: StepContext, operation: Operation) -> str:
    """What to try if an operand is 0 although a clamp or a ReLU limits it; "" if nothing limits it."""
    singular = facts_of(operation.name).singular
    return _of_limit(context, operation, singular, high=False) if singular else ""


def mean_of_nothing(context: StepContext, operation: Operation) -> str:
    """Why a loss is a mean over nothing, if it is one: all labels are ignored, or there are no predictions."""
    target, given = argument(operation, "target"), argument(operation, "self")
    labels = context.values[target].data if target is not None else None
    ignored = operation.arguments.get("ignore_index")
    if ignored is not None and labels is not None and labels.numel() and bool((labels == ignored).all()):
        return f"All {labels.numel()} labels are {ignored}, which is ignored: a mean of nothing is 0 / 0."
    if target is not None and given is not None and not math.prod(context.values[given].shape):
        return f"{context.name(given)} has no elements: a mean of nothing is 0 / 0."
    return ""


def _of_limit(context: StepContext, operation: Operation, name: str, high: bool) -> str:
    given = argument(operation, name)
    maker = None if given is None else context.producer(context.source(given))
    known = context.statistics(given)
    if given is None or maker is None or known is None or not facts_of(maker.name).limits:
        return ""
    met, place, dtype = known.high if high else known.low, context.place(maker), context.values[given].dtype
    if not high and met != 0:
        return ""
    limits = f"The `{context.called(maker)}`{f' ({place})' if place else ''} before it lets {number(met)} through: "
    if high:
        largest = f"{math.log(torch.finfo(dtype).max):.1f}"
        return f"{limits}lower its upper limit; in {type_name(dtype)} exp() overflows above {largest}."
    return f"{limits}clamp at a small positive number instead, such as 1e-6, or add one before this operation."


def _of_exponential(context: StepContext, operation: Operation) -> str:
    """By what uses the result: a sum and its logarithm, a sum that it is divided by, or neither."""
    made, exponent = operation.outputs[0], argument(operation, "self")
    uses = [use for out in [made] if out is not None for use in _uses(context, out)]
    sums = [use.outputs[0] for use in uses if facts_of(use.name).adds_up]
    of_sums = [(use, out) for out in sums if out is not None for use in _uses(context, out)]
    if any(facts_of(use.name).logarithm for use, _ in of_sums):
        return LOGSUMEXP
    if any(argument(use, facts_of(use.name).singular) == out for use, out in of_sums):
        return SOFTMAX
    maker = None if exponent is None else context.producer(context.source(exponent))
    return RATIO if maker is not None and facts_of(maker.name).difference else facts_of(operation.name).advice


def _uses(context: StepContext, value: int) -> Iterator[Operation]:
    """The operations that take the numbers of a value, in any shape or type."""
    for use in context.uses.get(value, ()):
        if not facts_of(use.name).keeps_numbers:
            yield use
        for out in use.outputs if facts_of(use.name).keeps_numbers else ():
            yield from _uses(context, out) if out is not None else ()
