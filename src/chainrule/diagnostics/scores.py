"""What stands between the last layer and the loss: a dropout, or a range in which scores can't differ enough."""

from __future__ import annotations

import math
from collections.abc import Iterator

from chainrule.diagnostics.check import Check
from chainrule.diagnostics.comparisons import Comparison, comparisons
from chainrule.diagnostics.finding import Finding
from chainrule.diagnostics.modes import drops
from chainrule.diagnostics.step_context import StepContext, argument
from chainrule.diagnostics.targets import bounded
from chainrule.graph.graph import Operation, Ref
from chainrule.graph.trees import leaves
from chainrule.numbers import number
from chainrule.rules.facts import facts_of, facts_of_call

DROPPED = Check(
    "dropout-on-outputs", "The outputs of the network are dropped", "warning",
    what="A loss compares the result of a dropout with targets, with nothing but a softmax or a sigmoid between them.",
    why="Predictions are zeroed at random, whatever the network says of them, so the loss can't come near 0.",
    advice="Put the dropout before the last layer, not after it.",
    source="Srivastava et al., Dropout, 2014: dropout of input and hidden units")  # fmt: skip


@DROPPED.in_step
def _dropped(context: StepContext) -> Iterator[Finding]:
    dropping = {
        context.source(call.outputs[0]): call
        for call in context.graph.calls if call.outputs and drops(context.graph, call)
    }  # fmt: skip
    for comparison in comparisons(context) if dropping else ():
        scores = _scores(context, comparison)
        if (call := dropping.get(scores)) is not None and context.values[scores].requires_grad:
            known = context.statistics(scores)
            zeros = "" if known is None else f"{known.zeros} of {known.elements} predictions are 0 in this step."
            yield DROPPED.found(
                call.module or context.name(scores), f"A dropout makes {context.name(scores)}, which is compared with "
                f"the targets {context.name(comparison.target)}.", zeros, place=call.place,
            )  # fmt: skip
            return


def _scores(context: StepContext, comparison: Comparison) -> int:
    """What the last function made a prediction of: the scores before a softmax or sigmoid."""
    value = context.source(comparison.prediction)
    while (maker := context.producer(value)) is not None:
        facts, given = facts_of(maker.name), argument(maker, "self")
        if given is None or not (facts.softmax or facts.sigmoid or facts.takes == "scores"):
            break
        value = context.source(given)
    return value


ALIKE = Check(
    "scores-alike", "Scores that cannot differ enough", "warning",
    what="The scores of a cross-entropy are bounded (by a tanh or a sigmoid, or as products of unit vectors, times a "
    "number), so that the loss keeps 60 % of that of a guess at least, however sure the network is.",
    why="A softmax of scores that lie close to each other is nearly uniform. The loss stays where it began, and its "
    "gradient is small.",
    advice="Drop the last function, or divide cosines by a temperature below 1, such as 0.07, and don't multiply by "
    "it.",
    source="Chen et al., SimCLR, 2020, 5.1; Wang et al., NormFace, 2017, proposition 2: the bound")  # fmt: skip
KEPT = 0.6  # share of the loss of a guess


@ALIKE.in_step
def _alike(context: StepContext) -> Iterator[Finding]:
    for comparison in comparisons(context):
        axis = comparison.axis
        if comparison.scale != "classes" or comparison.likelihood or axis is None:
            continue
        scores = _scores(context, comparison)
        classes, (maker, low, high) = context.values[comparison.prediction].shape[axis], _range(context, scores)
        if maker is None or facts_of(maker.name).softmax or classes < 2 or not 0 < high - low < math.inf:
            continue
        least, guess = math.log1p((classes - 1) * math.exp(low - high)), math.log(classes)
        if least > KEPT * guess:
            yield ALIKE.found(
                context.name(scores), f"The scores {context.name(scores)} lie between {number(low)} and {number(high)} "
                f"whatever the network says, so the loss cannot fall below {number(least)}.",
                (f"A guess among {classes} classes has a loss of {number(guess)}.", context.between(scores)),
                place=context.place(context.producer(scores) or maker),
            )  # fmt: skip
            return


def _range(context: StepContext, scores: int) -> tuple[Operation | None, float, float]:
    return bounded(context, scores, lambda maker: (-1.0, 1.0) if _of_unit_vectors(context, maker) else None)


def _of_unit_vectors(context: StepContext, maker: Operation) -> bool:
    """Whether a matrix product has cosines as its elements."""
    if not facts_of(maker.name).matrix_product:
        return False
    other = argument(maker, "other") or argument(maker, "mat2") or argument(maker, "mat")
    return _is_unit(context, argument(maker, "self"), -1) and _is_unit(context, other, -2)


def _is_unit(context: StepContext, value: int | None, axis: int) -> bool:
    """Whether a division by their norms has made unit vectors along an axis."""
    known, maker = context.statistics(value), None if value is None else context.producer(context.source(value))
    if value is None or known is None or maker is None or facts_of(maker.name).singular != "other":
        return False
    return math.isclose(known.norm**2, known.elements / context.values[value].shape[axis], rel_tol=1e-3)


ACROSS = Check(
    "cosine-axis", "Vectors are normalised along another axis than their products add up", "warning",
    what="Both sides of a matrix product of learned values were divided by their norms along another axis than the one "
    "along which the product adds up: of tokens or samples in place of features. Or F.cosine_similarity of more than "
    "two axes is called without dim, and the layer before has its features on the last axis.",
    why="The products are no cosines: they are not bounded by 1, and depend on the other tokens or samples.",
    advice="Give the axis of the features: F.normalize(x, dim=-1). Without dim it takes axis 1.",
    source="PyTorch's documentation of torch.nn.functional.normalize: dim is 1 by default")  # fmt: skip


@ACROSS.in_step
def _across(context: StepContext) -> Iterator[Finding]:
    for operation in context.operations_that(lambda facts: facts.matrix_product):
        other = argument(operation, "mat2") or argument(operation, "other")
        sides = ((argument(operation, "self"), -1), (other, -2))
        found = [_normalised(context, value, axis) for value, axis in sides if value is not None]
        if len(found) != 2 or None in found or any(each is not None and each[1] for each in found):
            continue
        name, makers = context.name(next(iter(operation.outputs)) or 0), [each[0] for each in found if each is not None]
        shape = context.values[next(iter(makers[0].outputs)) or 0].shape
        yield ACROSS.found(
            name, f"{name} adds up products along the features of {context.name(next(iter(makers[0].outputs)) or 0)} "
            f"{shape}, which were normalised along another axis.",
            "Rows of a unit length have norms of 1 along the axis that a product adds up.",
            place=context.place(makers[0]),
        )  # fmt: skip
        return


@ACROSS.in_step
def _without_axis(context: StepContext) -> Iterator[Finding]:
    for call in context.graph.calls:
        given = [each.value for each in leaves(call.arguments, Ref)]
        if not facts_of_call(call.name).likens or "dim" in call.keywords or len(call.arguments) != 2:
            continue
        for value in given:
            shape, features = context.values[value].shape, _features(context, value)
            if len(shape) > 2 and features == shape[-1] != shape[1]:
                name = context.name(value)
                yield ACROSS.found(
                    name, f"{call.name} compares {name} {shape} along axis 1, and the {features} features of the "
                    "layer before lie along the last one.",
                    f"Each product is over {shape[1]} numbers of one feature.", place=call.place,
                    advice="Give the axis of the features: F.cosine_similarity(a, b, dim=-1). Without dim it takes "
                    "axis 1.", title="A cosine along another axis than that of the features",
                )  # fmt: skip
                return


def _features(context: StepContext, value: int) -> int | None:
    """How many features a layer has that made a value, along the last axis; None for channels, or without a layer."""
    maker = context.producer(context.source(value))
    while maker is not None and not facts_of(maker.name).weighs:
        given = argument(maker, "self") or argument(maker, "input")
        if given is None or context.values[given].shape != context.values[next(iter(maker.outputs)) or 0].shape:
            return None
        maker = context.producer(context.source(given))
    if maker is None or facts_of(maker.name).channels:
        return None
    return context.values[next(iter(maker.outputs)) or 0].shape[-1]


def _normalised(context: StepContext, value: int, axis: int) -> tuple[Operation, bool] | None:
    """(the division by norms that made a value, whether these run along an axis of it); None without one."""
    while (maker := context.producer(value)) is not None:
        facts, given = facts_of(maker.name), argument(maker, "self")
        if facts.singular == "other" and not facts.logarithm:
            norms = argument(maker, "other")
            if norms is None or given is None or not context.values[given].requires_grad:
                return None
            size, shape = _norms(context, norms), context.values[given].shape
            alone = [place for place, each in enumerate(size or ()) if each == 1 and shape[place] > 1]
            if size is None or len(size) != len(shape) or len(alone) != 1 or len(shape) + axis < 0:
                return None
            return maker, alone[0] == len(shape) + axis
        if given is None or not (facts.keeps_numbers or facts.copies) or len(context.values[given].shape) < 2:
            return None
        before, after = context.values[given].shape[-2:], context.values[value].shape[-2:]
        swaps = not facts.in_row_order and facts.only_reshapes
        if swaps:
            axis = -3 - axis
        elif before != after:
            return None
        value = given
    return None


def _norms(context: StepContext, value: int) -> tuple[int, ...] | None:
    """The shape of norms, before they were expanded; None if it has others."""
    while (maker := context.producer(value)) is not None:
        facts, given = facts_of(maker.name), argument(maker, "self")
        if facts.size == "norm":
            return context.values[value].shape
        if given is None or not (facts.limits or facts.in_row_order):
            return None
        value = given
    return None
