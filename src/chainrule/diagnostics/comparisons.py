"""Where a step compares predictions with targets: by a loss function, or by a difference written by hand."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch

from chainrule.diagnostics.step_context import StepContext, argument
from chainrule.graph.graph import Operation
from chainrule.graph.statistics import Statistics
from chainrule.rules.facts import facts_of

REDUCED = {1: "mean", 2: "sum"}
"""How ATen writes a reduction."""

Scale = Literal["classes", "probabilities", "numbers"]


@dataclass(frozen=True)
class Comparison:
    """Predictions against targets; `measured` is the loss, or the differences' sizes where it is written by hand."""

    operation: Operation
    prediction: int
    target: int
    measured: int
    scale: Scale

    @property
    def reduction(self) -> str:
        """`mean`, `sum`, or "" if the result has one number for each comparison."""
        return REDUCED.get(self.operation.arguments.get("reduction", 0), "")


def comparisons(context: StepContext) -> tuple[Comparison, ...]:
    """Every comparison of predictions that learn with targets that are data."""
    return context.once("comparisons", lambda: tuple(_found(context)))


def _found(context: StepContext) -> list[Comparison]:
    found = []
    for operation in context.graph.operations:
        facts = facts_of(operation.name)
        by_hand = facts.difference and _measures(context, operation)
        first, second = argument(operation, "self"), argument(operation, "target" if facts.compares else "other")
        if not (facts.compares or by_hand) or first is None or second is None:
            continue
        prediction, target = first, second
        if by_hand and not context.values[prediction].requires_grad:  # in either order
            prediction, target = second, first
        measured = by_hand or first_output(operation)
        if not context.values[prediction].requires_grad or target not in context.data or measured is None:
            continue
        scale: Scale = "classes" if facts.class_target else "probabilities" if _of_classes(facts.takes) else "numbers"
        found.append(Comparison(operation, prediction, target, measured, scale))
    return found


def _of_classes(takes: str) -> bool:
    return takes in ("logits", "probabilities")


def _measures(context: StepContext, operation: Operation) -> int | None:
    """The size of a difference that is taken outside the modules and then measured: a loss written by hand."""
    if operation.call is None or context.graph.calls[operation.call].module:
        return None
    uses = [use for out in operation.outputs if out is not None for use in context.uses.get(out, ())]
    if not uses or not all(facts_of(use.name).measures for use in uses):
        return None
    return first_output(uses[0])


def first_output(operation: Operation) -> int | None:
    """The first result of an operation, if that is a tensor."""
    return operation.outputs[0] if operation.outputs else None


def is_boolean(context: StepContext, value: int) -> bool:
    """Whether the numbers come from truth values."""
    return context.values[context.source(value)].dtype == torch.bool


def mean_of(context: StepContext, comparison: Comparison) -> float | None:
    """The mean loss of a sample; None if it is unknown."""
    known = context.statistics(comparison.measured)
    if known is None or known.not_finite or not known.elements:
        return None
    return known.mean / (counted(context, comparison) or math.nan) if comparison.reduction == "sum" else known.mean


def counted(context: StepContext, comparison: Comparison) -> float | None:
    """How many comparisons the loss is made of, without those of an ignored class; None if it is unknown."""
    if comparison.scale != "classes":
        return float(math.prod(context.values[comparison.prediction].shape))
    weight = comparison.operation.outputs[1] if len(comparison.operation.outputs) > 1 else None
    known = context.statistics(weight)
    if comparison.reduction and known is not None and comparison.operation.arguments.get("weight") is None:
        return known.mean
    return float(math.prod(context.values[comparison.target].shape)) if not comparison.reduction else None


def chance(context: StepContext, comparison: Comparison) -> float | None:
    """The mean loss of a guess without knowledge: all classes alike, or the mean of the targets. None if unknown."""
    arguments, facts = comparison.operation.arguments, facts_of(comparison.operation.name)
    if arguments.get("weight") is not None or arguments.get("pos_weight") is not None:
        return None
    if comparison.scale == "classes":
        shape = context.values[comparison.prediction].shape
        return math.log(shape[min(1, len(shape) - 1)]) if shape and facts.takes == "log-probabilities" else None
    if comparison.scale == "probabilities":
        return math.log(2)
    known, maker = context.statistics(comparison.target), context.producer(comparison.measured)
    guesses = {"square": lambda std: std**2, "absolute": lambda std: OF_STD * std}
    guess = guesses.get(size_taken(maker)) if maker is not None else None
    return None if known is None or guess is None else guess(known.std)


OF_STD = math.sqrt(2 / math.pi)  # the mean size of a normal variable


def size_taken(operation: Operation) -> str:
    """What an operation takes of its operand, or of a difference: `square`, `absolute`, `norm`; "" for others."""
    given = argument(operation, "self")
    itself = given is not None and given == argument(operation, "other") and facts_of(operation.name).measures
    return "square" if itself or operation.arguments.get("exponent") == 2 else facts_of(operation.name).size


def share_of_chance(context: StepContext) -> float | None:
    """The largest mean loss in multiples of a guess without knowledge; None if no comparison says."""
    known = [(mean_of(context, each), chance(context, each)) for each in comparisons(context)]
    return max((mean / guess for mean, guess in known if mean is not None and guess), default=None)


def sign_of(known: Statistics | None) -> int:
    """1 where no element is below 0, -1 where none is above it; 0 where there are both, or nothing is known."""
    if known is None or known.not_finite or known.low == known.high == 0:
        return 0
    return 1 if known.low >= 0 else -1 if known.high <= 0 else 0
