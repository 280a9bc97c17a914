"""Softmaxes along the wrong axis: over the samples of a batch, or over a single element."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from chainrule.diagnostics.check import Check
from chainrule.diagnostics.comparisons import Comparison, comparisons, first_output, looked_up
from chainrule.diagnostics.finding import Finding
from chainrule.diagnostics.run_context import Run
from chainrule.diagnostics.step_context import StepContext, argument, operands
from chainrule.graph.graph import Operation
from chainrule.rules.facts import facts_of

TWICE = Check(
    "softmax-twice", "A softmax of a softmax", "warning",
    what="A softmax takes the unchanged output of another softmax, and a gradient passes both.",
    why="Its operands lie between 0 and 1, so of n results none is above e times another: a policy stays nearly "
    "random, an attention nearly uniform, and the gradient is far smaller.",
    advice="Drop one of the two.",
    source="Goodfellow, Bengio and Courville, Deep Learning, 2016, 6.2.2.3: it takes scores of any size")  # fmt: skip


@TWICE.in_step
def _twice(context: StepContext) -> Iterator[Finding]:
    for operation in context.operations_that(lambda facts: facts.softmax):
        given, out = argument(operation, "self"), first_output(operation)
        first = context.producer(context.source(given)) if given is not None else None
        if first is None or out is None or not facts_of(first.name).softmax or not context.values[out].has_gradient:
            continue
        name = context.name(context.source(given if given is not None else out))
        yield TWICE.found(
            name, f"{name} is the output of a softmax, and {context.name(out)} is the softmax of it.",
            context.between(out), place=context.place(operation),
        )  # fmt: skip


OVER_BATCH = Check(
    "softmax-axis", "A softmax over the samples of a batch", "warning",
    what="A softmax (or log_softmax) whose result is compared with targets runs along another axis than the classes; "
    "or one inside the network runs along the axis of the samples. Or cross_entropy gets the features of the last "
    "layer on its last axis, and takes another of the same length for the classes. Or ctc_loss gets a "
    "log_softmax along another axis than the last one, that of the symbols. Or the softmax of scores that two learned "
    "values make (attention) runs along the other axis than the product with its weights adds up.",
    why="The probabilities of a sample do not add up to 1, and depend on which other samples are in its batch.",
    advice="Give the axis of the classes: softmax(dim=-1), or dim=1 for (samples, classes, ...). Without dim, "
    "nn.Softmax takes axis 0 for operands of one or three axes.",
    source="PyTorch's documentation of softmax: every slice along dim sums to 1")  # fmt: skip


@OVER_BATCH.in_step
def _over_batch(context: StepContext) -> Iterator[Finding]:
    compared = set()
    for comparison in comparisons(context):
        for operation, given, axis in _before(context, comparison):
            if axis == _class_axis(context, comparison, given):
                continue
            compared.add(operation.index)
            if axis == 0 or (comparison.axis is not None and not comparison.likelihood):
                yield _wrong_axis(context, operation, given, axis, "its result is compared with targets")
    batch = _batch(context)
    for operation, given, axis in _softmaxes(context):
        shape = context.values[given].shape
        if operation.index in compared or axis != 0 or batch is None or shape.count(batch) != 1 or shape[0] != batch:
            continue
        if len(shape) > 1 and not context.data.isdisjoint(context.graph.ancestors([given])):
            yield _wrong_axis(context, operation, given, axis, "each sample depends on all others of its batch")


@OVER_BATCH.in_step
def _not_the_symbols(context: StepContext) -> Iterator[Finding]:
    """ctc_loss takes (times, samples, symbols), or (times, symbols)."""
    softmaxes = {each[0].index: each for each in _softmaxes(context)}
    for operation in context.operations_that(lambda facts: facts.takes == "log-probabilities"):
        given = next(iter(operands(operation)), None)
        maker = context.producer(context.source(given)) if given is not None else None
        if "blank" in operation.arguments and maker is not None and maker.index in softmaxes:
            softmax, before, axis = softmaxes[maker.index]
            shape = context.values[before].shape
            if axis != len(shape) - 1:
                yield OVER_BATCH.found(
                    context.name(first_output(softmax) or before),
                    f"ctc_loss takes a softmax along axis {axis} of {shape}, and the symbols are along the last one.",
                    f"Along axis {axis} {shape[axis]} numbers add up to 1.", place=context.place(softmax),
                    title="A softmax along another axis than the symbols", advice="Use log_softmax(dim=-1).",
                )  # fmt: skip


@OVER_BATCH.in_step
def _not_the_features(context: StepContext) -> Iterator[Finding]:
    """Of a linear layer's result, (samples, positions, classes), cross_entropy takes axis 1 for the classes."""
    made = {out: weight for _, weight, out in context.weighed}
    for comparison in comparisons(context):
        given = context.producer(context.source(comparison.prediction))
        scores = argument(given, "self") if given is not None and facts_of(given.name).takes == "scores" else None
        if scores is None or comparison.axis is None or given is None:
            continue
        shape, value = context.values[scores].shape, scores
        while value not in made and (maker := context.producer(value)) is not None:
            taken, facts = argument(maker, "self"), facts_of(maker.name)
            if taken is None or not (facts.in_row_order or facts.adds):
                break
            value = taken
        features = context.values[made[value]].shape[0] if value in made else 0
        flat = value in made and len(context.values[value].shape) == 2
        if flat and len(shape) == 3 and features == shape[-1] and comparison.axis != len(shape) - 1:
            yield _wrong_axis(context, given, scores, comparison.axis, "those lie along the last one, as a linear "
                              "layer made them")  # fmt: skip
            return


@OVER_BATCH.in_step
def _over_queries(context: StepContext) -> Iterator[Finding]:
    for operation, given, axis in _softmaxes(context):
        maker, out = context.producer(context.source(given)), first_output(operation)
        while maker is not None and facts_of(maker.name).scales and len(operands(maker)) == 1:
            maker = context.producer(context.source(operands(maker)[0]))
        if maker is None or out is None or not _of_two_learned(context, maker):
            continue
        last = len(context.values[out].shape) - 1
        for weights, use in _used_whole(context, out):
            first = argument(use, "self") == weights and facts_of(use.name).matrix_product
            if first and axis == last - 1 and context.values[weights].shape[-2:] == context.values[out].shape[-2:]:
                name, shape = context.name(out), context.values[given].shape
                yield OVER_BATCH.found(
                    name, f"{name} is a softmax along axis {axis} of {shape}, and the product with the values adds up "
                    f"along axis {last}.",
                    f"The weights of a query do not add up to 1; along axis {axis} {shape[axis]} numbers do.",
                    place=context.place(operation), advice="Take softmax(dim=-1) of queries @ keys.transpose(-2, -1).",
                )  # fmt: skip
                return


def _of_two_learned(context: StepContext, maker: Operation) -> bool:
    """Whether it is a product of two values that the network computed, as of queries and keys."""
    taken = operands(maker)
    return facts_of(maker.name).matrix_product and len(taken) == 2 and all(
        context.values[each].requires_grad and context.values[context.source(each)].kind != "parameter"
        for each in taken
    )  # fmt: skip


def _used_whole(context: StepContext, value: int) -> Iterator[tuple[int, Operation]]:
    """(value, use) of what takes a value, also under another shape or after a dropout."""
    for use in context.uses.get(value, ()):
        out, facts = first_output(use), facts_of(use.name)
        if out is not None and (facts.in_row_order or facts.drops or facts.copies):
            yield from _used_whole(context, out)
        else:
            yield value, use


def _wrong_axis(context: StepContext, operation: Operation, given: int, axis: int, why: str) -> Finding:
    name, shape = context.name(first_output(operation) or given), context.values[given].shape
    return OVER_BATCH.found(
        name, f"{name} is a softmax along axis {axis} of {shape}, which holds the samples: {why}."
        if axis == 0 else f"{name} is a softmax along axis {axis} of {shape}, which does not hold the classes: {why}.",
        f"Along axis {axis} {shape[axis]} numbers add up to 1.", place=context.place(operation),
    )  # fmt: skip


def _softmaxes(context: StepContext) -> Iterator[tuple[Operation, int, int]]:
    """(operation, operand, axis) of every softmax and log_softmax of numbers that learn."""
    for operation in context.operations_that(lambda facts: facts.softmax or facts.takes == "scores"):
        given = argument(operation, "self")
        if given is not None and context.values[given].requires_grad and context.values[given].shape:
            yield operation, given, operation.arguments["dim"] % len(context.values[given].shape)


def _before(context: StepContext, comparison: Comparison) -> Iterator[tuple[Operation, int, int]]:
    """The softmaxes that made a prediction, element by element."""
    softmaxes = context.once("softmaxes", lambda: {each[0].index: each for each in _softmaxes(context)})
    value = comparison.prediction
    while (maker := context.producer(value)) is not None:
        if maker.index in softmaxes:
            yield softmaxes[maker.index]
        given = argument(maker, "self")
        if given is None or context.values[given].shape != context.values[value].shape or facts_of(maker.name).weighs:
            break
        value = given


def _class_axis(context: StepContext, comparison: Comparison, given: int) -> int:
    """The axis of the classes; of one number a sample there is none, and any axis is wrong."""
    axes = len(context.values[given].shape)
    if comparison.axis is not None:
        return comparison.axis
    alone = axes == 1 and context.values[given].shape[0] != _batch(context)
    return 0 if alone else axes - 1 if axes > 1 else -1


def _batch(context: StepContext) -> int | None:
    """The number of samples: the first axis of an input of the network and of targets of one row for each sample."""
    targets = [context.values[context.source(each.target)].shape for each in comparisons(context)]
    counts = {shape[0] for shape in targets if shape}
    rows = {context.values[given].shape[0] for given, _, _ in context.weighed if given in context.data}
    rows |= {shape[0] for each in looked_up(context) if (shape := context.values[each].shape)}
    flat = all(len(shape) == 1 or (len(shape) == 2 and 1 in shape) for shape in targets)
    return next(iter(counts)) if flat and len(counts) == 1 and counts <= rows and counts != {1} else None


OVER_ONE = Check(
    "softmax-of-one", "A softmax over one element", "warning",
    what="A softmax (or the log_softmax of cross-entropy) runs over an axis of length 1, each time its line runs. "
    "Inside the network (attention to a single place) it is a note until it has lasted for 5 examined steps.",
    why="Its result is 1 whatever comes in, and its gradient is 0: nothing before it learns.",
    advice="For one output use a sigmoid, or binary_cross_entropy_with_logits on the logits; for classes give the last "
    "layer one output for each class; otherwise look at the axis and at the length of the sequence.",
    source="The definition: exp(x) / exp(x) = 1")  # fmt: skip
LASTING = 5  # examined steps


@OVER_ONE.in_step
def over_one(context: StepContext) -> Iterator[Finding]:
    """Softmaxes over one element."""
    sites: dict[object, list[tuple[Operation, int, int]]] = {}
    for found in _softmaxes(context):
        place = context.place(found[0])
        sites.setdefault((place.file, place.line) if place else found[0].index, []).append(found)
    compared = {each[0].index for comparison in comparisons(context) for each in _before(context, comparison)}
    for several in sites.values():
        if any(context.values[given].shape[axis] != 1 for _, given, axis in several):
            continue  # one place alone is where a growing sequence begins
        operation, given, axis = several[0]
        name = context.name(first_output(operation) or given)
        yield OVER_ONE.found(
            name, f"{name} is a softmax over one element: it is always 1, and passes no gradient.",
            f"{context.name(given)} has the shape {context.values[given].shape}; the softmax runs along axis {axis}.",
            place=context.place(operation), severity="warning" if operation.index in compared else "note",
        )  # fmt: skip


@OVER_ONE.over_time
def _over_one_for_long(run: Run) -> Iterator[Finding]:
    for stretch, found in OVER_ONE.carried(run):
        yield replace(found, severity="warning") if len(stretch.steps) >= LASTING else found
