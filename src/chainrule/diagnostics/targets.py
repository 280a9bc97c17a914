"""Faults of the targets: out of the reach of the outputs, far from their scale, of one class; and the initial loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise

from chainrule.diagnostics.check import Check
from chainrule.diagnostics.comparisons import (
    Comparison,
    chance,
    comparisons,
    counted,
    first_output,
    is_boolean,
    mean_of,
)
from chainrule.diagnostics.finding import Finding
from chainrule.diagnostics.losses import OF_ONE
from chainrule.diagnostics.run_context import Run
from chainrule.diagnostics.softmax import over_one
from chainrule.diagnostics.step_context import StepContext, argument, operands
from chainrule.document import Code
from chainrule.graph.graph import Operation, Ref
from chainrule.graph.statistics import Statistics
from chainrule.numbers import number
from chainrule.rules.facts import base_name, facts_of, facts_of_call

OUT_OF_RANGE = Check(
    "targets-out-of-range", "Targets that the outputs cannot reach", "warning",
    what="Targets lie outside the range of the output's last function (a sigmoid, tanh, ReLU or clamp, say), or of a "
    "binary cross-entropy; or a loss whose targets are 1 and -1 (of margins, cosines, a hinge written by hand) gets 0. "
    "Or predictions add up to 1, by a softmax, and the numbers of a regression do not; or a loss that lists the labels "
    "of a sample (`multilabel_margin_loss`) gets zeros and ones; or the targets of `cross_entropy` are shares of the "
    "classes that add up to more than 1, as zeros and ones for several labels do. "
    "It is a note if they exceed the range by less than a twentieth of their deviation.",
    why="The loss stays above 0, and pushes the last function to its flat end, where gradients vanish.",
    advice="Scale the targets into the range, or drop the last function: a regression ends in a linear layer.",
    source="Goodfellow, Bengio and Courville, Deep Learning, 2016, 6.2.2: output units")  # fmt: skip
FEWEST = 8  # samples, so that what holds for all of them is no accident
BEYOND = 1e-3  # rounding of targets at the very end of the range
NO_SIGN = "Targets of 0 where 1 and -1 are expected"
GIVE_SIGNS = "Give the targets as 1 and -1: 2 * target - 1 of labels 0 and 1."
SLIGHT = 0.05  # standard deviations of the targets


@OUT_OF_RANGE.in_step
def _out_of_range(context: StepContext) -> Iterator[Finding]:
    for comparison in comparisons(context):
        known = context.statistics(comparison.target)
        if known is None or not (excess := _excess(context, comparison, known)):
            continue
        low, high, what = _range(context, comparison)
        limits = f"at least {low:g}" if high == math.inf else f"at most {high:g}" if low == -math.inf else ""
        yield OUT_OF_RANGE.found(
            context.name(comparison.target),
            f"The targets {context.name(comparison.target)} are out of reach: {what} is "
            f"{limits or f'between {low:g} and {high:g}'}.",
            context.between(comparison.target), place=context.place(comparison.operation),
            severity="warning" if excess > SLIGHT * known.std else "note",
        )  # fmt: skip


@OUT_OF_RANGE.in_step
def _no_sign(context: StepContext) -> Iterator[Finding]:
    for call in context.graph.calls:
        if not (place := facts_of_call(call.name).signed_target):
            continue
        given = call.keywords.get("target", next(iter(call.arguments[place:]), None))
        if isinstance(given, Ref) and (known := context.statistics(given.value)) is not None and known.zeros:
            name = context.name(given.value)
            yield OUT_OF_RANGE.found(
                name, (f"{known.zeros} of {known.elements} targets {name} are 0, and ", Code(call.name),
                       " knows 1 and -1."),
                ("A sample with the target 0 has a constant loss, or a wrong one, and no gradient that teaches.",
                 context.between(given.value)),
                place=call.place, title=NO_SIGN, advice=GIVE_SIGNS,
            )  # fmt: skip


@OUT_OF_RANGE.in_step
def _hinge_of_zeros(context: StepContext) -> Iterator[Finding]:
    """max(0, margin - y * prediction), written by hand, with a y of 0 and 1."""
    for operation in context.operations_that(lambda facts: facts.rectifies or facts.limits):
        given, (low, high) = argument(operation, "self"), _limits(operation)
        margin = context.producer(context.source(given)) if given is not None and low == 0 and high > 0 else None
        product = _subtracted_product(context, margin) if margin is not None else None
        if product is None:
            continue
        for target, prediction in (operands(product), operands(product)[::-1]):
            known = context.statistics(target) if target in context.data else None
            if known is None or not context.values[prediction].requires_grad or not _zeros_and_ones(known):
                continue
            name = context.name(target)
            yield OUT_OF_RANGE.found(
                name, f"{known.zeros} of {known.elements} labels {name} are 0, and a hinge loss knows 1 and -1.",
                ("A label of 0 takes the prediction out of max(0, 1 - y * prediction): that sample has a constant loss "
                 "and no gradient.", context.between(target)),
                place=context.place(product), title=NO_SIGN, advice=GIVE_SIGNS,
            )  # fmt: skip


@OUT_OF_RANGE.in_step
def _add_up_to_one(context: StepContext) -> Iterator[Finding]:
    for comparison in comparisons(context):
        made = context.source(comparison.prediction)
        maker, shape = context.producer(made), context.values[made].shape
        known = context.statistics(comparison.target)
        if comparison.scale != "numbers" or maker is None or not facts_of(maker.name).softmax or known is None:
            continue
        count = shape[maker.arguments.get("dim", -1)] if shape else 1
        total, same = known.mean * count, context.values[comparison.target].shape == shape
        if count > 1 and same and abs(total - 1) > OF_ONE and not _excess(context, comparison, known):
            name, targets = context.name(comparison.prediction), context.name(comparison.target)
            yield OUT_OF_RANGE.found(
                targets, f"The targets {targets} are out of reach: each row of {name} adds up to 1, by a softmax, and "
                f"theirs to {number(total)} on average.", (context.between(comparison.target),),
                place=context.place(comparison.operation), title="Predictions that always add up to 1",
                advice="Drop the softmax: a regression ends in a linear layer, or in a sigmoid for numbers from 0 to 1."
            )  # fmt: skip


@OUT_OF_RANGE.in_step
def _several_labels(context: StepContext) -> Iterator[Finding]:
    for call in context.graph.calls:
        if not facts_of_call(call.name).shares_target:
            continue
        first, second = (*call.arguments, None, None)[:2]
        given, target = call.keywords.get("input", first), call.keywords.get("target", second)
        if not isinstance(given, Ref) or not isinstance(target, Ref):
            continue
        shape, known = context.values[given.value].shape, context.statistics(target.value)
        if known is None or len(shape) < 2 or context.values[target.value].shape != shape or known.low < 0:
            continue
        total, name = known.mean * shape[1], context.name(context.source(target.value))
        if total > 1 + OF_ONE and context.values[given.value].requires_grad:
            labels = _zeros_and_ones(known)
            yield OUT_OF_RANGE.found(
                name, (f"The targets {name} are out of reach: ", Code(call.name), " takes probabilities that add up to "
                       f"1, and each row of these adds up to {number(total)} on average."),
                ("They are zeros and ones: labels of which a sample has several." if labels else "",
                 context.between(target.value)), place=call.place, title="Several labels where one is expected",
                advice="Use binary_cross_entropy_with_logits, which asks for each label by itself." if labels else
                "Divide each row by its sum.",
            )  # fmt: skip


@OUT_OF_RANGE.in_step
def _zeros_and_ones_for_indices(context: StepContext) -> Iterator[Finding]:
    for call in context.graph.calls:
        given = call.keywords.get("target", next(iter(call.arguments[1:2]), None))
        if not facts_of_call(call.name).lists_labels or not isinstance(given, Ref):
            continue
        known, shape = context.statistics(given.value), context.values[given.value].shape
        # A list that no -1 ends has all classes, so also the last.
        if known is not None and known.low >= 0 and shape and known.high < shape[-1] - 1:
            name = context.name(given.value)
            yield OUT_OF_RANGE.found(
                name, (f"The targets {name} are zeros and ones, and ", Code(call.name), " expects the indices of each "
                       "sample's labels, and -1 after the last."),
                (f"They are read as the classes 0 and 1, whatever the labels are: {known.zeros} of {known.elements} "
                 "are 0.", context.between(given.value)),
                place=call.place, title="Zeros and ones where indices are expected",
                advice="For zeros and ones use binary_cross_entropy_with_logits or multilabel_soft_margin_loss.",
            )  # fmt: skip


def _limits(operation: Operation) -> tuple[float, float]:
    bounds = facts_of(operation.name).bounds
    return bounds(operation.arguments) if bounds is not None else (-math.inf, math.inf)


def _subtracted_product(context: StepContext, operation: Operation) -> Operation | None:
    """The product in `number - a * b`."""
    taken = operands(operation)
    if not facts_of(operation.name).complements or len(taken) != 1:
        return None
    product = context.producer(context.source(taken[0]))
    return (
        product if product is not None and facts_of(product.name).multiplies and len(operands(product)) == 2 else None
    )


def _zeros_and_ones(known: Statistics) -> bool:
    """Whether there are both, and nothing else: their squares add up to their sum."""
    return known.low == 0 and known.high == 1 and math.isclose(known.norm**2, known.mean * known.elements, rel_tol=1e-4)


def _excess(context: StepContext, comparison: Comparison, known: Statistics) -> float:
    """How far the targets lie outside the range; 0 within it."""
    if comparison.scale == "classes" or not known.elements or is_boolean(context, comparison.target):
        return 0.0
    low, high, _ = _range(context, comparison)
    excess = max(low - known.low, known.high - high)
    return excess if excess > BEYOND else 0.0


def _range(context: StepContext, comparison: Comparison) -> tuple[float, float, str]:
    """The range of a prediction, and what has it."""
    if facts_of(comparison.operation.name).takes == "logits":
        return 0.0, 1.0, "a probability"
    maker, low, high = bounded(context, comparison.prediction)
    name = f" ({base_name(maker.name).strip('_')})" if maker is not None else ""
    return low, high, f"{context.name(comparison.prediction)}{name}"


def bounded(
    context: StepContext, value: int, also: Callable[[Operation], tuple[float, float] | None] = lambda maker: None
) -> tuple[Operation | None, float, float]:
    """The bounded function that made a value, and the value's range, perhaps scaled and shifted by numbers since.

    `also` gives the range of further functions.
    """
    maker = context.producer(context.source(value))
    if maker is None:
        return None, -math.inf, math.inf
    facts, given, factor = facts_of(maker.name), argument(maker, "self"), maker.arguments.get("other")
    if facts.bounds is not None:
        return maker, *facts.bounds(maker.arguments)
    if (found := also(maker)) is not None:
        return maker, *found
    if facts.calculates is None or given is None or not isinstance(factor, (int, float)) or not factor:
        return None, -math.inf, math.inf
    inner, *ends = bounded(context, given, also)
    low, high = sorted(facts.calculates(each, factor) for each in ends)
    return inner, low, high


SCALE = Check(
    "targets-scale", "Targets far from the scale of the outputs", "warning",
    what="The targets of a regression are above 100, and 30 times as large as the outputs, by their root mean squares. "
    "One batch of a run may be so, see `loss-spike`. It is a note if they are below 0.001 instead, and the outputs 30 "
    "times as large.",
    why="Outputs begin near 1: an adaptive optimizer needs thousands of steps to get there, and for others the huge "
    "gradient makes the weights diverge. Next to tiny targets the loss looks small, whatever the outputs are.",
    advice="Subtract the training targets' mean and divide by their deviation, and undo it for predictions; or train "
    "on their logarithm.",
    source="LeCun, Bottou, Orr and Müller, Efficient backprop, 1998, 4.5",
    thresholds=("target_size", "target_ratio"), lasts=3)  # fmt: skip
TINY = 1e-3  # root mean square


@SCALE.in_step
def _scale(context: StepContext) -> Iterator[Finding]:
    for comparison in comparisons(context):
        target, output = context.statistics(comparison.target), context.statistics(comparison.prediction)
        if comparison.scale != "numbers" or target is None or output is None or not target.std or output.not_finite:
            continue
        sizes, limits = [_root(target), _root(output)], context.thresholds
        large = sizes[0] > limits.target_size and sizes[0] > limits.target_ratio * sizes[1]
        tiny = sizes[0] < TINY and sizes[1] > limits.target_ratio * sizes[0]
        if (large or tiny) and not _excess(context, comparison, target):
            factor = number(max(sizes) / min(sizes)) if min(sizes) else "infinitely many"
            yield SCALE.found(
                context.name(comparison.target),
                f"The targets {context.name(comparison.target)} are {factor} times as {'large' if large else 'small'} "
                f"as the outputs {context.name(comparison.prediction)}.",
                (f"Their root mean squares are {number(sizes[0])} and {number(sizes[1])}.",
                 context.between(comparison.target)),
                place=context.place(comparison.operation), severity="warning" if large else "note",
            )  # fmt: skip


def _root(known: Statistics) -> float:
    return known.norm / math.sqrt(max(known.elements - known.not_finite, 1))


INITIAL = Check(
    "initial-loss", "The initial loss is far above that of a guess", "warning",
    what="The first step of a run has a cross-entropy far above that of equal probabilities for all classes: ln C for "
    "C classes, ln 2 for a binary one. Logits that depend on the targets, as with a margin, are left out. In a single "
    "step, which need not be the first, it is a note.",
    why="The network begins sure of wrong answers: the first steps only undo its initialisation.",
    advice="Look at the scale of the last layer's weights and inputs (a smaller initialisation, a norm before it), and "
    "at what comes between logits and loss.",
    source="Karpathy, A recipe for training neural networks, 2019: verify loss @ init", thresholds=("excess",),
)  # fmt: skip


@INITIAL.in_step
def _initial(context: StepContext) -> Iterator[Finding]:
    for comparison in comparisons(context):
        mean, guess = mean_of(context, comparison), chance(context, comparison)
        limit = context.thresholds.excess
        few = (counted(context, comparison) or 0.0) < FEWEST
        if comparison.scale == "numbers" or few or not guess or mean is None:
            continue
        if mean - guess <= limit * min(guess, 1.0) or _has_margin(context, comparison):
            continue
        if any(each.severity == "warning" for check in (_out_of_range, over_one) for each in check(context)):
            continue  # that is the cause
        classes = "2" if comparison.scale == "probabilities" else f"{math.exp(guess):.0f}"
        name = context.name(comparison.measured)
        yield INITIAL.found(
            name, f"{name} is {number(mean)}, and a guess among {classes} classes has {number(guess)}.",
            (f"ln {classes} = {number(guess)}.", context.between(comparison.prediction), growth(context, comparison)),
            place=context.place(comparison.operation), severity="note",
        )  # fmt: skip


def _has_margin(context: StepContext, comparison: Comparison) -> bool:
    """Whether the prediction was computed with its own targets, as where a margin makes the right class harder."""
    return comparison.target in context.graph.ancestors([comparison.prediction])


@INITIAL.over_time
def _at_the_start(run: Run) -> Iterator[Finding]:
    if run.steps and run.steps[0].step == 1:
        for found in run.step_findings.get(1, ()):
            if found.id == INITIAL.id:
                yield replace(found, severity="warning", since=1, until=1)


GROWN = 4.0  # times


def growth(context: StepContext, comparison: Comparison) -> str:
    """The line of code at which the signal grows most on its way to a prediction, in words; "" if it hardly grows."""
    factors: dict[str, list[float]] = {}
    for operation in context.graph.operations:
        out, place = first_output(operation), context.place(operation)
        if out is None or place is None or out not in _behind(context, comparison.prediction):
            continue
        made = context.statistics(out)
        given = [context.statistics(each) for each in operands(operation) if each in context.from_data]
        sizes = [_root(each) for each in given if each is not None]
        if made is not None and sizes and max(sizes) and _root(made):
            factors.setdefault(str(place), []).append(_root(made) / max(sizes))
    line, several = max(factors.items(), key=lambda each: math.prod(each[1]), default=("", []))
    if math.prod(several) < GROWN:
        return ""
    times = f" in {len(several)} operations" if len(several) > 1 else ""
    return f"On the way there the signal grows most at {line}: {number(math.prod(several))}-fold{times}."


def _behind(context: StepContext, value: int) -> frozenset[int]:
    return context.once(("behind", value), lambda: frozenset({value, *context.graph.ancestors([value])}))


ONE_CLASS = Check(
    "one-class", "Every batch has one class", "warning",
    what="All targets of a batch are one class: a note for a step. Over a run, at most batches, with another class at "
    "others; or the same class at every batch of 10 examined steps or more (a note for binary targets). Class 0 is "
    "right for scores that are put together with the pair's first (InfoNCE).",
    why="Each batch teaches that there is one class, and the next one the contrary; what came first is forgotten.",
    advice="Shuffle the training data (DataLoader(shuffle=True)): it is sorted by class. If the class is always the "
    "same, look at how labels are read.",
    source="Bottou, Stochastic gradient descent tricks, 2012: shuffle the examples")  # fmt: skip
MOST_BATCHES, MIN_BATCHES, MIN_ALIKE = 0.7, 5, 10  # share and numbers of examined steps; a batch may span two classes
LISTED = 20  # classes


@ONE_CLASS.in_step
def _one_class(context: StepContext) -> Iterator[Finding]:
    several = [each for each in comparisons(context) if each.scale != "numbers" and _is_label(each)]
    known = [context.statistics(each.target) for each in several]
    first = known[0] if known else None
    if first is None or any(each is None or each.low != first.low or each.high != first.low for each in known):
        return
    comparison, count = several[0], sum(each.elements for each in known if each is not None)
    makers = _makers(context, comparison.target)
    made = any(facts_of(each.name).makes_constant or not operands(each) for each in makers)
    if count < FEWEST or (comparison.scale == "probabilities" and (len(several) > 1 or made)):
        return  # a discriminator's targets are made as ones and zeros
    if comparison.scale != "probabilities" and not first.low and _is_one_of_several(context, comparison.prediction):
        return  # the first score is that of the pair: it is right at each row
    name = context.name(comparison.target)
    yield ONE_CLASS.found(
        name, f"All {count} targets {name} are {number(first.low)}.", f"{count} targets, and one class.",
        place=context.place(comparison.operation), severity="note", rows=(int(first.low),),
        size=1 if comparison.scale == "probabilities" else 0,
    )  # fmt: skip


def _is_label(comparison: Comparison) -> bool:
    """Whether each target is one label; a row of ones and zeros has several numbers for it."""
    return not comparison.likelihood or comparison.axis is not None


def _is_one_of_several(context: StepContext, scores: int) -> bool:
    """Whether scores were put side by side, as a contrastive loss puts the pair's before those of the others."""
    while (operation := context.producer(scores)) is not None and (given := operands(operation)):
        if facts_of(operation.name).joins:
            return len(given) > 1
        if context.values[given[0]].shape != context.values[scores].shape:
            break
        scores = given[0]
    return False


def _makers(context: StepContext, value: int) -> Iterator[Operation]:
    """The operations that a value was computed with."""
    return filter(None, map(context.producer, (value, *context.graph.ancestors([value]))))


@ONE_CLASS.over_time
def _one_class_at_each(run: Run) -> Iterator[Finding]:
    examined = run.in_steps(ONE_CLASS.id)
    shown = [(step, found) for step, found in examined if found is not None]
    if len(shown) < max(MIN_BATCHES, MOST_BATCHES * len(examined)):
        return
    (since, first), (_, last) = shown[0], shown[-1]
    classes = [found.rows[0] for _, found in shown]
    binary, changes = bool(first.size), sum(before != after for before, after in pairwise(classes))
    # Targets of 0 and 1 that take turns are those of an adversary.
    is_sorted = changes > 0 and (not binary or changes <= len(classes) / 3)
    alike = not changes and len(shown) == len(examined) >= MIN_ALIKE
    if is_sorted or alike:
        which = "the same one" if alike else f"{len(set(classes))} different ones"
        more = ", ..." if len(classes) > LISTED else ""
        yield ONE_CLASS.found(
            last.where, f"{len(shown)} of {len(examined)} examined batches have one class each, {which}.",
            f"The classes were, from step to step, {', '.join(map(str, classes[:LISTED]))}{more}.",
            place=last.place, since=since, severity="note" if binary and alike else "warning",
        )  # fmt: skip
