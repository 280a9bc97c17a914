"""Where a step compares predictions with targets: by a loss function, a likelihood or a difference written by hand."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch

from chainrule.diagnostics.step_context import StepContext, argument, operands
from chainrule.graph.graph import Operation, references
from chainrule.graph.statistics import Statistics
from chainrule.rules.facts import facts_of

REDUCED = {1: "mean", 2: "sum"}
"""How ATen writes a reduction."""

Scale = Literal["classes", "probabilities", "numbers"]


@dataclass(frozen=True)
class Comparison:
    """Predictions against targets.

    `measured` is the loss; where it is written by hand, the size of each difference, or each (log-)likelihood, which
    is to grow. `axis` is that of the classes, where the comparison picks one.
    """

    operation: Operation
    prediction: int
    target: int
    measured: int
    scale: Scale
    likelihood: bool = False
    axis: int | None = None

    @property
    def reduction(self) -> str:
        """`mean`, `sum`, or "" if the result has one number for each comparison."""
        return REDUCED.get(self.operation.arguments.get("reduction", 0), "")


def comparisons(context: StepContext) -> tuple[Comparison, ...]:
    """Every comparison of predictions that learn with targets that are data."""
    found = (each for each in with_constants(context) if each.target in context.data)
    return context.once("comparisons", lambda: tuple(found))


def with_constants(context: StepContext) -> tuple[Comparison, ...]:
    """Also those with targets that a network computed without a gradient."""
    return context.once("with constants", lambda: tuple(_found(context)))


def _found(context: StepContext) -> Iterator[Comparison]:
    for operation in context.graph.operations:
        found = _by_function(context, operation) or _by_hand(context, operation) or _by_likelihood(context, operation)
        if found is None or context.values[found.target].requires_grad:
            continue
        if context.values[found.prediction].requires_grad:
            yield found


def _by_function(context: StepContext, operation: Operation) -> Comparison | None:
    facts, measured = facts_of(operation.name), first_output(operation)
    prediction, target = argument(operation, "self"), argument(operation, "target")
    if not facts.compares or prediction is None or target is None or measured is None:
        return None
    if facts.class_target:
        axis = min(1, len(context.values[prediction].shape) - 1)
        return Comparison(operation, prediction, target, measured, "classes", axis=axis)
    scale: Scale = "probabilities" if facts.takes in ("logits", "probabilities") else "numbers"
    return Comparison(operation, prediction, target, measured, scale)


def _by_hand(context: StepContext, operation: Operation) -> Comparison | None:
    """A difference that is taken outside the modules and then measured."""
    prediction, target = argument(operation, "self"), argument(operation, "other")
    if not facts_of(operation.name).difference or prediction is None or target is None or operation.call is None:
        return None
    uses = [use for out in operation.outputs if out is not None for use in context.uses.get(out, ())]
    measured = first_output(uses[0]) if uses and all(facts_of(use.name).measures for use in uses) else None
    if context.graph.calls[operation.call].module or measured is None:
        return None
    if not context.values[prediction].requires_grad:  # in either order
        prediction, target = target, prediction
    return Comparison(operation, prediction, target, measured, "numbers")


def _by_likelihood(context: StepContext, operation: Operation) -> Comparison | None:
    """The (log-)probabilities of the targets, picked by indices; or a product of logarithms with ones and zeros."""
    facts, given, out = facts_of(operation.name), argument(operation, "self"), first_output(operation)
    if given is None or out is None:
        return None
    if facts.picks:
        indices = [(item or 0, value) for name, item, value in references(operation.arguments) if name != "self"]
        place, target = max(indices, default=(0, None))
        axes = len(context.values[given].shape)
        dim = operation.arguments.get("dim", place if len(indices) == axes else None)
        kind, _ = probability(context, given)
        if target is None or dim is None or kind != "classes" or is_boolean(context, target):
            return None
        logarithms = [use for use in context.uses.get(out, ()) if facts_of(use.name).logarithm]
        measured = (first_output(logarithms[0]) if logarithms else None) or out
        return Comparison(operation, given, target, measured, "classes", True, dim % max(axes, 1))
    target = argument(operation, "other") if facts.measures else None
    if target is not None and not context.values[given].requires_grad:
        given, target = target, given
    known = context.statistics(target) if target in context.data else None
    kind, logarithm = probability(context, given)
    if target is None or known is None or known.low < 0 or known.high != 1 or not kind or not logarithm:
        return None
    return Comparison(operation, given, target, out, "classes" if kind == "classes" else "probabilities", True)


def probability(context: StepContext, value: int) -> tuple[str, bool]:
    """(`classes` for a softmax, `one` for a sigmoid, "" for others; whether it is the logarithm of it)."""
    maker = context.producer(context.source(value))
    logarithm = maker is not None and facts_of(maker.name).logarithm
    if logarithm and maker is not None:
        maker = _before(context, maker)
        while maker is not None and _has_number(maker):  # log(p + eps), log(1 - p)
            maker = _before(context, maker)
    if maker is None:
        return "", False
    facts, other = facts_of(maker.name), argument(maker, "other")
    taken = context.producer(context.source(other)) if facts.difference and other is not None else None
    if facts.takes == "scores" or (taken is not None and facts_of(taken.name).sums_exponentials):
        return "classes", True  # log_softmax, also as torch.distributions.Categorical writes it
    return "classes" if facts.softmax else "one" if facts.sigmoid else "", logarithm


CONSTANT = 0.5 * math.log(2 * math.pi)  # that a normal distribution subtracts from its log-probability


def log_probability(context: StepContext, value: int) -> bool:
    """Whether it is the log-probability of what was chosen: picked by an index, of a normal distribution, or a ratio's.

    It may be summed over the parts of an action since, scaled by a number, or turned into a ratio to an old policy.
    """
    maker = context.producer(context.source(value))
    while maker is not None:
        facts, number = facts_of(maker.name), maker.arguments.get("other")
        if facts.picks:
            found = _by_likelihood(context, maker)
            return found is not None and found.scale == "classes"
        if facts.difference and isinstance(number, float) and math.isclose(number, CONSTANT, rel_tol=1e-6):
            return True
        learning = [each for each in operands(maker) if context.values[each].requires_grad]
        known = facts.adds_up or facts.scales or facts.difference or facts.exponential or facts.slices
        if len(learning) != 1 or not known:
            return False
        maker = context.producer(context.source(learning[0]))
    return False


def picked(context: StepContext, value: int) -> int | None:
    """The values of which this one was picked by indices that are data; None if it was not."""
    maker = context.producer(context.source(value))
    if maker is None or not facts_of(maker.name).picks:
        return None
    indices = [each for name, _, each in references(maker.arguments) if name != "self"]
    return (
        argument(maker, "self") if indices and all(not context.values[each].requires_grad for each in indices) else None
    )


def _before(context: StepContext, operation: Operation) -> Operation | None:
    given = argument(operation, "self")
    return None if given is None else context.producer(context.source(given))


def _has_number(operation: Operation) -> bool:
    """Whether it takes one tensor, and a number: a sum, a difference, a clamp."""
    return len(operands(operation)) == 1 and not {"other", "max"}.isdisjoint(operation.arguments)


def looked_up(context: StepContext) -> list[int]:
    """The indices of embeddings."""
    found = [argument(each, facts_of(each.name).looks_up) for each in context.operations_that(lambda f: f.looks_up)]
    return [context.source(each) for each in found if each is not None]


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
    if comparison.likelihood:
        return -known.mean * (1 if comparison.axis is not None else context.values[comparison.prediction].shape[-1])
    return known.mean / (counted(context, comparison) or math.nan) if comparison.reduction == "sum" else known.mean


def counted(context: StepContext, comparison: Comparison) -> float | None:
    """How many comparisons the loss is made of, without those of an ignored class; None if it is unknown."""
    if comparison.scale != "classes" or comparison.likelihood:
        shaped = comparison.measured if comparison.likelihood else comparison.prediction
        return float(math.prod(context.values[shaped].shape))
    weight = comparison.operation.outputs[1] if len(comparison.operation.outputs) > 1 else None
    known = context.statistics(weight)
    if comparison.reduction and known is not None and comparison.operation.arguments.get("weight") is None:
        return known.mean
    return float(math.prod(context.values[comparison.target].shape)) if not comparison.reduction else None


OF_STD = math.sqrt(2 / math.pi)  # the mean size of a normal variable


def chance(context: StepContext, comparison: Comparison) -> float | None:
    """The mean loss of a guess without knowledge: all classes alike, or the mean of the targets. None if unknown."""
    arguments, facts = comparison.operation.arguments, facts_of(comparison.operation.name)
    if arguments.get("weight") is not None or arguments.get("pos_weight") is not None:
        return None
    if comparison.scale == "classes":
        shape = context.values[comparison.prediction].shape
        known = context.statistics(comparison.measured)
        logarithms = facts.takes == "log-probabilities" or (known is not None and known.high <= 0)
        return math.log(shape[comparison.axis]) if comparison.axis is not None and shape and logarithms else None
    if comparison.scale == "probabilities":
        return None if comparison.likelihood else math.log(2)
    known, maker = context.statistics(comparison.target), context.producer(comparison.measured)
    guesses = {"squares": lambda std: std**2, "sizes": lambda std: OF_STD * std}
    guess = guesses.get(size_taken(maker)) if maker is not None else None
    return None if known is None or guess is None else guess(known.std)


def size_taken(operation: Operation) -> str:
    """What an operation takes of its operand, or of a difference: `squares`, `sizes`, `norm`; "" for others."""
    given = argument(operation, "self")
    itself = given is not None and given == argument(operation, "other") and facts_of(operation.name).measures
    return "squares" if itself or operation.arguments.get("exponent") == 2 else facts_of(operation.name).size


def share_of_chance(context: StepContext) -> float | None:
    """The largest mean loss in multiples of a guess without knowledge; None if no comparison says."""
    known = [(mean_of(context, each), chance(context, each)) for each in comparisons(context)]
    return max((mean / guess for mean, guess in known if mean is not None and guess), default=None)


def sign_of(known: Statistics | None) -> int:
    """1 where no element is below 0, -1 where none is above it; 0 where there are both, or nothing is known."""
    if known is None or known.not_finite or known.low == known.high == 0:
        return 0
    return 1 if known.low >= 0 else -1 if known.high <= 0 else 0
