"""Faults of the data: inputs that are not normalised, and labels that the network cannot fit."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from statistics import median

import torch
from torch import Tensor

from chainrule.diagnostics.batches import is_same
from chainrule.diagnostics.check import Check
from chainrule.diagnostics.comparisons import comparisons, looked_up
from chainrule.diagnostics.finding import Finding, listed
from chainrule.diagnostics.run_context import Run
from chainrule.diagnostics.step_context import StepContext, argument, operands
from chainrule.graph.comparison import dense
from chainrule.graph.graph import Operation, Ref, Value
from chainrule.graph.statistics import Statistics
from chainrule.numbers import number
from chainrule.rules.facts import facts_of

NOT_NORMALISED = Check(
    "input-not-normalised", "The input is not normalised", "warning",
    what="The first layer's input has a mean far from 0, a deviation far above 1, or features of unequal spread, or of "
    "which each hardly varies about a mean of its own, as after rows were normalised in place of columns. Pairs "
    "of a sine and a cosine may be unequal: they stand for a time or a place. Or all inputs hardly vary: their "
    "deviation is far below 1, in a layer's whole field of view too; that is a warning where it holds at every "
    "examined step, 3 at least. It is said if such an input grew to four times its size during a run.",
    why="Initialisation and learning rate assume mean 0 and deviation 1; a large feature hides the others, and the "
    "first bias hides an input that hardly varies.",
    advice="Subtract the training data's mean and divide by its deviation, or divide pixels of 0 to 255 by 255, once.",
    source="LeCun, Bottou, Orr and Müller, Efficient backprop, 1998, 4.3",
    thresholds=("input_size", "input_small", "input_spread"))  # fmt: skip


ROUNDED = 1e-3
UNSEEN = "The noise to predict is not in the input"
UNSEEN_LASTS = 10  # examined steps
LASTS = 3  # examined steps with an input that hardly varies
TINY = "The input hardly varies"
RANGE, REACH = 2.5, 12.5  # times `input_small`: what a tiny input lies within, and its norm in a field of view


@NOT_NORMALISED.in_step
def _not_normalised(context: StepContext) -> Iterator[Finding]:
    outputs: dict[int, list[int]] = {}
    for given, _, out in context.weighed:
        outputs.setdefault(given, []).append(out)
    inputs = [given for given in outputs if given in context.data and context.values[given].dtype.is_floating_point]
    tiny = all(_is_tiny(context, given) for given in inputs)  # one alone may be of little weight by intention
    for given in inputs:
        value, known = context.values[given], context.statistics(given)
        if known is None:
            continue
        fault = _fault(context, value, known)
        if fault or tiny:
            # A norm right after the layer makes up for it.
            normalised = any(facts_of(use.name).normalises for use in context.uses.get(outputs[given][0], ()))
            yield NOT_NORMALISED.found(
                context.name(given),
                f"{context.name(given)}, the input of the first layer, is not normalised: "
                f"{fault or f'its standard deviation is {number(known.std)}'}.",
                (f"Mean {number(known.mean)}, standard deviation {number(known.std)}; {context.between(given)}",),
                place=value.place,
                severity="note" if normalised or not fault else "warning",
                title="" if fault or normalised else TINY,
            )


@NOT_NORMALISED.over_time
def _not_normalised_over_time(run: Run) -> Iterator[Finding]:
    for stretch, found in NOT_NORMALISED.carried(run):
        lasts = stretch.whole and not stretch.ended and len(stretch.steps) >= LASTS
        tiny = lasts and all(each.title == TINY for each in stretch.findings)
        yield replace(found, severity="warning") if tiny else _with_growth(run, found)


GROWN = 4.0  # times the deviation at the start


def _with_growth(run: Run, found: Finding) -> Finding:
    """With what it says of data that grows from step to step."""
    known = next((each.statistics for each in run.history.of_kind("input") if each.name == found.where), [])
    quarter = len(known) // 4
    sizes = (
        [median(each.std for each in known[at * quarter : (at + 1) * quarter]) for at in range(4)] if quarter else []
    )
    if not sizes or sizes != sorted(sizes) or sizes[-1] < GROWN * sizes[0] or found.severity == "note":
        return found
    grown = (
        f"It grows: its standard deviation was {number(sizes[0])} in the first quarter of the watched steps, and is "
    )
    shown = (f"{grown}{number(sizes[-1])} in the last.", *found.evidence)
    return replace(found, title="The input grows", evidence=shown, advice=IN_PLACE)


IN_PLACE = (
    "Look for what changes the data itself: an operation in place (x -= mean, picture.sub_(0.5), Normalize with "
    "inplace=True) on what a data set keeps works again at each epoch. Make a copy of it first."
)


def _is_tiny(context: StepContext, given: int) -> bool:
    """Whether an input varies far less than 1, also as a vector of what one output of its layer sees."""
    known, limit = context.statistics(given), context.thresholds.input_small
    if known is None or not 0 < known.std < limit or known.high - known.low > RANGE * limit:
        return False
    shapes = [context.values[weight].shape for other, weight, _ in context.weighed if other == given]
    seen = max(math.prod(shape) / min(shape[0], shape[-1]) for shape in shapes)
    return known.std * math.sqrt(seen) < REACH * limit


def _fault(context: StepContext, value: Value, known: Statistics) -> str:
    limit = context.thresholds.input_size
    if known.std > limit:
        return f"its standard deviation is {number(known.std)}"
    if abs(known.mean) > limit:
        return f"its mean is {number(known.mean)}"
    if value.data is None or len(value.shape) != 2 or value.shape[0] < 8:
        return ""
    spread = dense(value.data).double().std(0, correction=0)
    varied = spread[spread > 0]
    if (
        value.shape[1] > 2
        and varied.numel() == value.shape[1]
        and varied.max() < context.thresholds.input_small * known.std
    ):
        return f"none of its {varied.numel()} features varies by more than {number(float(varied.max()))} about its mean"
    if varied.numel() < 2 or varied.max() <= context.thresholds.input_spread * varied.min():
        return ""
    narrow = ((spread > 0) & (spread * context.thresholds.input_spread < varied.max())).nonzero().flatten().tolist()
    if all(_is_wave(dense(value.data), feature) for feature in narrow):
        return ""
    widest, narrowest = int(spread.argmax()), int(torch.where(spread > 0, spread, math.inf).argmin())
    ratio = number(float(varied.max() / varied.min()))
    return f"its feature {widest} varies {ratio} times as much as feature {narrowest}"


def _is_wave(data: Tensor, feature: int) -> bool:
    """Whether another feature is the cosine of which this is the sine: long waves of a time or place hardly vary."""
    squares = data.double().square()
    return bool(((squares + squares[:, feature : feature + 1] - 1).abs().amax(0) < ROUNDED).any())


UNFITTABLE = Check(
    "unfittable-labels", "Labels that can't be fitted", "warning",
    what="Equal inputs have different labels, which is a note for tokens and for rows of 0 and 1. Or "
    "label_smoothing is 1, so that labels have no effect. Or the targets are noise that was drawn for them alone, and "
    "the network's input was made with noise of that shape from another draw. Where that draw was not "
    "recorded: the targets are normal, have no correlation with the input that could hold them, and nothing is "
    "learnt; a note, and a warning after 10 examined steps with other targets. Over a run: the loss "
    "stays up for one repeated batch that the network could memorise.",
    why="The loss stays above 0. A batch that can't be memorised points to a fault in the data or the last layer.",
    advice="Compare inputs and labels as the network gets them: their order, and their scale.",
    source="Karpathy, A recipe for training neural networks, 2019: overfit one batch; Zhang et al., 2017",
    thresholds=("conflicts", "plateau"))  # fmt: skip


@UNFITTABLE.in_step
def _contradictions(context: StepContext) -> Iterator[Finding]:
    """Samples that are equal in every input and differ in their label."""
    compared = list(context.operations_that(lambda facts: facts.compares))
    targets: dict[int | None, set[int | None]] = {}
    for operation in compared:
        targets.setdefault(_scores(context, operation), set()).add(argument(operation, "target"))
    for operation in compared:
        target = argument(operation, "target")
        if len(targets[_scores(context, operation)]) > 1:
            continue  # a sample has a share of several labels, as with mixup
        labels = context.values[context.source(target)] if target is not None else None
        if labels is None or labels.index not in context.data or labels.data is None or not labels.shape:
            continue
        inputs, count = _inputs(context, labels), labels.shape[0]
        if inputs is None or count < 4:
            continue
        rows = torch.cat([dense(each.data).flatten(1).double() for each in inputs if each.data is not None], 1)
        _, sample, counts = rows.unique(dim=0, return_inverse=True, return_counts=True)
        if counts.numel() == count or (rows.shape[1] > 1 and not rows.any()):  # see `zero-batch`
            continue
        pairs = torch.cat([sample.unsqueeze(1).double(), dense(labels.data).double().reshape(count, -1)], 1)
        _, kinds = pairs.unique(dim=0)[:, 0].unique(return_counts=True)
        wrong = (kinds[sample] > 1).nonzero().flatten().tolist()
        if len(wrong) <= context.thresholds.conflicts * count:
            continue
        alike = (other for other in wrong[1:] if sample[other] == sample[wrong[0]])
        other = next(other for other in alike if not torch.equal(pairs[other], pairs[wrong[0]]))
        names = ", ".join(context.name(each.index) for each in inputs)
        tokens = bool(((rows == 0) | (rows == 1)).all()) or not any(each.dtype.is_floating_point for each in inputs)
        yield UNFITTABLE.found(
            context.name(labels.index),
            f"{len(wrong)} of {count} samples have an input ({names}) that also occurs with another label.",
            (
                f"Samples {listed(wrong)}.",
                f"Samples {wrong[0]} and {other} have equal inputs; their labels are {_row(labels, wrong[0])} and "
                f"{_row(labels, other)}.",
            ),
            place=context.place(operation),
            severity="note" if tokens else "warning",  # different words may well follow the same words
            rows=wrong,
            size=count,
        )


def _scores(context: StepContext, operation: Operation) -> int | None:
    """The prediction of a loss, before the log_softmax of cross_entropy."""
    given = argument(operation, "self")
    maker = context.producer(given) if given is not None else None
    return argument(maker, "self") if maker is not None and facts_of(maker.name).takes == "scores" else given


@UNFITTABLE.in_step
def _smoothed_away(context: StepContext) -> Iterator[Finding]:
    for call in context.graph.calls:
        share, given = call.keywords.get("label_smoothing", 0.0), next(iter(call.arguments[1:2]), None)
        if isinstance(share, (int, float)) and share >= 1 and isinstance(given, Ref):
            name = context.name(given.value)
            yield UNFITTABLE.found(
                name, f"The labels {name} have no effect: label_smoothing={share:g} gives all classes the same share.",
                "With label_smoothing=s the right class has the share 1 - s, and s is spread over all classes.",
                place=call.place, title="Labels without an effect", advice="Use 0.1, say: label_smoothing=0.1.",
            )  # fmt: skip


@UNFITTABLE.in_step
def _other_noise(context: StepContext) -> Iterator[Finding]:
    """Noise is to be predicted that the network never sees, as it was drawn anew."""
    for comparison in comparisons(context):
        target, shape = context.source(comparison.target), context.values[context.source(comparison.target)].shape
        before = context.graph.ancestors([comparison.prediction])
        if not is_noise(context, target) or target in before or math.prod(shape) < FEWEST:
            continue
        added = [each for each in sorted(before) if is_noise(context, each) and context.values[each].shape == shape]
        added = [each for each in added if any(_is_combined(use) for use in _followed(context, each))]
        if added:
            name, other = context.name(target), context.name(added[0])
            yield UNFITTABLE.found(
                name, f"The targets {name} are noise that nothing before the prediction depends on.",
                (f"The input was made with {other}, another draw of the shape {shape}"
                 f"{_where(context, added[0])}; the targets were drawn{_where(context, target)}.",),
                place=context.place(comparison.operation), title="The noise to predict is not the noise that was added",
                advice="Draw the noise once: add it to the data, and give the same tensor to the loss.",
            )  # fmt: skip
            return


FEWEST = 16  # numbers


def is_noise(context: StepContext, value: int) -> bool:
    """Whether it was drawn from a normal distribution in this step, whatever the network computes."""
    return value in context.data and is_drawn(context, value)


def is_drawn(context: StepContext, value: int) -> bool:
    """Whether it was drawn from a normal distribution in this step; its shape may be that of a computed value."""
    made = context.producer(value)
    if made is None or made.call is None:
        return False
    return context.graph.calls[made.call].name in ("randn", "randn_like", "normal", "normal_")


def _followed(context: StepContext, value: int) -> list[Operation]:
    """What is done with a value, or with a multiple of it."""
    uses = context.uses.get(value, [])
    scaled = [out for use in uses if facts_of(use.name).multiplies for out in use.outputs if out is not None]
    return [*uses, *(use for out in scaled for use in context.uses.get(out, ()))]


def _is_combined(operation: Operation) -> bool:
    """Whether it adds noise to other data."""
    return facts_of(operation.name).adds and len(operands(operation)) == 2


def _where(context: StepContext, value: int) -> str:
    made = context.producer(value)
    place = None if made is None else context.place(made)
    return f" ({place})" if place is not None else ""


def _inputs(context: StepContext, labels: Value) -> list[Value] | None:
    """The inputs of the network, one row per sample; None if unknown, as when the labels are among them."""
    found = {given for given, _, _ in context.weighed if given in context.data}
    found |= {each for each in looked_up(context) if each in context.data}
    values = [context.values[index] for index in sorted(found)]
    rows = all(v.data is not None and len(v.shape) > 1 and v.shape[0] == labels.shape[0] for v in values)
    return values if values and rows and labels.index not in found else None


def _row(labels: Value, at: int) -> str:
    assert labels.data is not None
    return listed([number(each) for each in dense(labels.data)[at].flatten().tolist()])


ONE_BATCH = 30  # watched steps with the very same batch
RESIDUE = 0.1  # share of the loss at the start that remains
FELL = 1.1  # times the loss at the start: a loss that has risen has another fault


@UNFITTABLE.over_time
def _over_time(run: Run) -> Iterator[Finding]:
    """What steps showed, and a loss that stays far above 0 for the same batch at every step with enough parameters."""
    for stretch, found in UNFITTABLE.carried(run):
        if found.title != UNSEEN:
            yield found
        elif len({each.evidence for each in stretch.findings}) >= UNSEEN_LASTS:  # other draws, and not one batch
            yield replace(found, severity="warning")
    inputs, losses = run.history.of_kind("input"), [loss for _, loss in run.watched_losses]
    if len(losses) < ONE_BATCH or not inputs or not all(_same(series.statistics) for series in inputs):
        return
    quarter = len(losses) // 4
    before, after = median(losses[-2 * quarter : -quarter]), median(losses[-quarter:])
    parameters = sum(series.statistics[-1].elements for series in run.history.of_kind("parameter"))
    data = sum(series.statistics[-1].elements for series in inputs)
    flat = abs(before - after) <= run.thresholds.plateau * abs(before)
    if flat and after > RESIDUE * run.first_loss and parameters > 2 * data and after < FELL * run.first_loss:
        yield UNFITTABLE.found(
            "loss",
            f"The loss stays at {number(after)}, although every step has the same batch.",
            (
                f"It was {number(run.first_loss)} at the start, {number(before)} in the third quarter, and "
                f"{number(after)} in the last.",
                f"{parameters:,} parameters are enough to memorise {data:,} numbers of inputs and targets.",
            ),
            severity="note",  # it may only be slow
            since=run.watched_losses[-2 * quarter][0],
        )


def _same(statistics: Sequence[Statistics]) -> bool:
    """Whether the tensor was the same at all steps."""
    return all(is_same(each, statistics[0]) for each in statistics)
