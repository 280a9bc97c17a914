"""Faults of units and layers: dead units, units at a kink, saturated or symmetric ones; a batch norm of one sample."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from chainrule.derivation.backprop import Step
from chainrule.diagnostics.attention import attentions, spread_of_scores
from chainrule.diagnostics.check import Check
from chainrule.diagnostics.comparisons import comparisons
from chainrule.diagnostics.finding import LISTED, Finding, listed, plural
from chainrule.diagnostics.run_context import Run, carry
from chainrule.diagnostics.step_context import StepContext, argument, is_zero
from chainrule.graph.comparison import dense
from chainrule.graph.graph import Operation
from chainrule.graph.snapshot import Parameter, has_numbers
from chainrule.graph.statistics import Statistics
from chainrule.numbers import number
from chainrule.rules.facts import Slope, base_name, facts_of, facts_of_call

MIN_SAMPLES = 2  # with one sample, a unit that is off says nothing
BY_CHANCE = 4.0  # times as many units as equal samples leave off by chance count as many
FEW = 8  # places; who has fewer rows mostly has all of them in the batch, and none are to come
FAR = 4.0  # standard deviations below 0: normal rows turn such a unit on once in 30,000
MIN_STEPS = 3  # examined steps after which a unit that was always off is called dead

UNIT_OFF = Check(
    "unit-off", "A unit is off for every sample", "warning",
    what="A ReLU (or another function that is flat on a side) has slope 0 for every sample of the batch, and no "
    "gradient passes the unit another way. One unit, or a few, is a note. So are many, in one step, where rows to come "
    "may turn them on, as 0 is within 4 standard deviations of their mean; or where rows are alike, so that half as "
    "many are on for every sample. Over a run: the units that were off at every one of the last examined steps. A "
    "layer with no other unit is an error then, and has a title of its own. Terms of a loss count only where all of "
    "them are off, the loss is not 0, and nothing learns from its other terms, as they are off where a margin is "
    "reached.",
    why="Its weights get no gradient, so they do not learn, and the layer is narrower than it looks. A layer that is "
    "off as a whole also stops the gradient of the layers before it.",
    advice="If it stays off it will never learn again. A smaller learning rate, another initialisation of weight and "
    "bias, or a leaky ReLU keeps it alive.",
    source="Lu et al., Dying ReLU and initialization, 2019; He et al., 2015", thresholds=("units_off", "units_dead"),
)  # fmt: skip
LAYER_OFF = "A whole layer is off for every sample"
OFF_HERE = "Units are off for every sample of this batch"
BOUNDED = (
    "If it stays there it will never learn again. Bring what the function is given into the range where it has a "
    "slope: a smaller learning rate or initialisation, or a norm before it; or widen its bounds."
)


@UNIT_OFF.in_step
def _units_off(context: StepContext) -> Iterator[Finding]:
    """Units whose nonlinearity has slope 0 for every sample."""
    for step, name, value in _hinges(context):
        before, out = context.values[value], step.outputs[0]
        if not has_numbers(step.op.out):  # type: ignore[union-attr]
            continue
        slope = step.rule.gradient(step.op, (torch.ones_like(step.op.out),), name)  # type: ignore[union-attr, arg-type]
        if before.data is None or len(before.shape) < 2 or slope.shape != before.shape:
            continue
        axis = 1 if _by_channels(context, value) else len(before.shape) - 1
        size = before.shape[axis]
        if before.shape[0] < MIN_SAMPLES or not slope.numel():
            continue
        stops = slope == 0
        if has_numbers(before.grad):  # which may have come another way, as in a straight-through estimator
            stops = stops & (dense(before.grad) == 0)
        off, columns = (each.movedim(axis, 0).flatten(1) for each in (stops, dense(before.data)))
        units = off.all(1).nonzero().flatten().tolist()
        if not units or not _counts(context, value, out, len(units) == size):
            continue
        count = slope.numel() // size
        places = f"{'both' if count == 2 else f'all {count}'} {'samples' if len(before.shape) == 2 else 'places'}"
        evidence = []
        for unit in units[:LISTED]:
            column = listed([number(each) for each in columns[unit].tolist()])
            at = ",".join(str(unit) if each == axis else ":" for each in range(len(before.shape)))
            evidence.append(
                f"{context.name(value)}[{at}] is {column}: the slope of {context.name(out)} is 0 in {places}."
            )
        limit, rectifies = context.thresholds.units_off, facts_of(step.op.name).rectifies  # type: ignore[union-attr]
        many = len(units) > max(limit, BY_CHANCE * _by_chance(columns.T)) * size
        ordinary = ""
        if many and rectifies and len(units) < size and count >= FEW:
            ordinary = _ordinary(columns[units], int((~off).all(1).sum()), limit * size)
        found = _off(context, value, out, units, size, many, [*evidence, ordinary], rectifies)
        yield replace(found, severity="note", title=OFF_HERE) if ordinary else found


@UNIT_OFF.in_step
def _layer_off(context: StepContext) -> Iterator[Finding]:
    """By statistics: a ReLU whose output is 0 everywhere."""
    for operation in context.operations_that(lambda facts: facts.rectifies):
        (*_, out), given = operation.outputs, argument(operation, "self")
        if out is None or not context.values[out].has_gradient:
            continue
        if context.derivation is not None and context.values[out].has_numbers:
            continue  # `_units_off` has seen it
        known, passed, shape = context.statistics(out), context.statistics(given, True), context.values[out].shape
        if is_zero(known) and (passed is None or is_zero(passed)) and _counts(context, given, out, True):
            units = shape[-1] if shape else 1
            evidence = f"All {math.prod(shape)} elements of {context.name(out)} are 0."
            yield _off(context, out, out, list(range(units)), units, True, [evidence], True)


def _ordinary(off: Tensor, on: int, most: float) -> str:
    """Why units that are off in this batch are no fault, if they are none; `on` others are on for every sample."""
    far = int((off.mean(1) < -FAR * off.std(1)).sum())
    if len(off) <= 2 * on:
        return f"{on} others are on for every sample: what the layer is given differs little between samples."
    return f"Rows to come may turn {len(off) - far} of them on: 0 is not far from their mean." if far <= most else ""


def _by_chance(rows: Tensor) -> float:
    """The share of units that are off because samples are equal up to rounding: 2^-k for k different ones."""
    different = len((rows / rows.abs().max().clamp(min=1e-30) * 1000).round().unique(dim=0))
    return 0.5**different if different < len(rows) else 0.0


def _off(
    context: StepContext,
    given: int,
    out: int,
    units: list[int],
    size: int,
    many: bool,
    evidence: list[str],
    rectifies: bool,
) -> Finding:
    """The finding of so many units of a layer."""
    layer = context.layer(given)
    if len(units) == size > 1:
        text = f"All {size} units{layer} are off for every sample: no gradient passes."
    elif len(units) == 1:
        text = f"Unit {units[0]}{layer} is off for every sample: its weights get no gradient."
    else:
        which = f"{len(units)} of {size} units ({listed(units)}){layer}"
        text = f"{which} are off for every sample: their weights get no gradient."
    many = many or len(units) == size > 1
    return UNIT_OFF.found(
        context.name(out), text, evidence, place=context.values[out].place, severity="warning" if many else "note",
        advice="" if rectifies else BOUNDED, title=LAYER_OFF if len(units) == size else "", rows=units, size=size,
    )  # fmt: skip


def _counts(context: StepContext, given: int | None, out: int, whole: bool) -> bool:
    """Whether units that are off may be a fault: terms of a loss are off where a margin is reached."""
    made = None if given is None else context.producer(context.source(given))
    of_layer = made is not None and bool(facts_of(made.name).weighs or facts_of(made.name).normalises)
    if of_layer or not context.is_output(out):
        return True
    learnt = all(is_zero(context.statistics(loss)) for loss in context.losses)
    return whole and not learnt and not _learns_otherwise(context, out)


def _learns_otherwise(context: StepContext, out: int) -> bool:
    """Whether a parameter behind a term of a loss gets a gradient from its other terms."""
    behind = context.graph.ancestors([out])
    known = (context.gradient(each) for each in context.graph.parameters.values() if each.value in behind)
    return any(each is not None and each.norm > 0 for each in known)


@UNIT_OFF.over_time
def _dead(run: Run) -> Iterator[Finding]:
    """The units that were off at every one of the last steps; one that is off now and then is no fault."""
    for stretch in (each.of_lasting_rows(MIN_STEPS) for each in run.stretches(UNIT_OFF.id)):
        rows, latest = stretch.rows, stretch.findings[-1]
        found = carry(stretch, MIN_STEPS)
        if stretch.ended or not rows or len(stretch.steps) < MIN_STEPS or found is None:
            continue
        whole = len(rows) == latest.size > 1
        many = latest.severity != "note" or latest.title == OFF_HERE
        dead = len(rows) > run.thresholds.units_dead * latest.size and many
        which = f"All {latest.size} units" if whole else f"{len(rows)} of {latest.size} units"
        passes = ": no gradient passes this layer" if whole else ""
        yield replace(
            found, severity="error" if whole else "warning" if dead else "note", rows=rows,
            title=LAYER_OFF if whole else UNIT_OFF.title,
            text=(f"{which} of {latest.where} {plural(len(rows), 'was', 'were')} off for every sample, at each of "
                  f"{len(stretch.steps)} steps{passes}.",),
            evidence=(f"Off: {listed(list(rows))}.", *(found.evidence[:1] if dead else ())),
        )  # fmt: skip


def _by_channels(context: StepContext, value: int) -> bool:
    """Whether units lie along axis 1, as in the output of a convolution and of a norm after it."""
    while (operation := context.producer(context.source(value))) is not None:
        facts = facts_of(operation.name)
        if facts.channels:
            return True
        given = argument(operation, "self")
        if not facts.notation or given is None:
            return False
        value = given
    return False


def _hinges(context: StepContext) -> Iterator[tuple[Step, str, int]]:
    """Elementwise functions of one tensor with a kink and a slope, at whose result a gradient arrives."""
    for step in context.forward():
        if step.rule is None or step.op is None or step.rule.kink is None or step.rule.structure != "elementwise":
            continue
        wanted = [(name, value) for name, _, value in step.arguments if name in step.rule.wrt]
        if len(wanted) == 1 and len(step.arguments) == 1 and len(step.outputs) == 1:
            name, value = wanted[0]
            arrives = context.values[value].requires_grad and context.values[step.outputs[0]].has_gradient
            if arrives and isinstance(step.op.out, Tensor) and not step.rule.is_constant(step.op):
                yield step, name, value


AT_KINK = Check(
    "at-kink", "A value lies exactly where a function has no derivative", "note",
    what="An element lies exactly at a kink, such as 0 for ReLU, and a gradient passes there.",
    why="Any slope between those of the two sides is valid. PyTorch takes one, and the gradient depends on it.",
    advice="Nothing by itself: by hand, take the same side. If many elements lie there, move them off.",
    source="the rule of the operation names PyTorch's choice")  # fmt: skip


@AT_KINK.in_step
def _at_kinks(context: StepContext) -> Iterator[Finding]:
    for step in context.forward():
        if step.rule is None or step.op is None or step.rule.kink is None or not has_numbers(step.op.out):
            continue
        kink = step.rule.kink
        value = next((value for name, item, value in step.arguments if name == kink.argument and item is None), None)
        if value is None or not context.values[value].requires_grad or not context.values[value].has_numbers:
            continue
        places = [tuple(place) for place in kink.where(step.op, 0.0).nonzero().tolist()]
        if places:
            shown = [text for place in places[:LISTED] if (text := context.at(value, place))]
            count = plural(len(places), "1 element", f"{len(places)} elements")
            lies = plural(len(places), "lies", "lie")
            yield AT_KINK.found(
                context.name(value), (f"{count} of {context.name(value)} {lies} exactly at a kink: ", kink.choice, "."),
                (*shown, *((f"and {len(places) - LISTED} more",) if len(places) > LISTED else ())),
                place=context.place(context.graph.operations[step.operations[0]]),
            )  # fmt: skip


SATURATED = Check(
    "saturated", "A sigmoid, a tanh or a softmax is saturated", "warning",
    what="The mean slope of a hidden sigmoid or tanh over its elements is close to 0: E[a(1 - a)] or E[1 - a^2]. For "
    "a softmax (of attention, for example) the mean of 1 - sum p^2 over its rows is close to 0: each row is one-hot. "
    "Attention whose scores lie far apart is saturated sooner.",
    why="The gradient is multiplied by that slope, so earlier layers learn little or nothing.",
    advice="Use a smaller initialisation, a norm before it, scores divided by the root of their width; or a ReLU.",
    source="Glorot and Bengio, 2010; Vaswani et al., 2017, 3.2.1, for the softmax of attention",
    thresholds=("flat", "scores"), lasts=3)  # fmt: skip

APART = 1 / 3  # instead of `flat`, for attention whose scores lie far apart


@SATURATED.in_step
def _saturated(context: StepContext) -> Iterator[Finding]:
    for operation in context.operations_that(lambda facts: facts.slope):
        slope, out = facts_of(operation.name).slope, operation.outputs[0]
        known = context.statistics(out) if out is not None and context.values[out].requires_grad else None
        if slope is None or out is None or known is None or known.not_finite or known.elements < 2:
            continue
        part, evidence = _passed_back(slope, operation, context.values[out].shape, known)
        spread = next((spread_of_scores(context, each) for each in attentions(context) if each.weights == out), 0.0)
        apart = spread > context.thresholds.scores
        if not part < (APART if apart else context.thresholds.flat) or context.is_output(out):
            continue
        name = base_name(operation.name).strip("_")
        yield SATURATED.found(
            context.name(out),
            f"The {name} {context.name(out)} is saturated: it passes back {100 * part:.2g} % of the largest possible "
            "gradient.",
            (evidence, f"Its scores have a standard deviation of {number(spread)}." if apart else context.between(out)),
            place=context.values[out].place,
            # A softmax may well become sure of itself; a fault is one that is so from the start, see `_since_start`.
            severity="note" if slope.of_rows else "warning",
        )


@SATURATED.over_time
def _since_start(run: Run) -> Iterator[Finding]:
    for stretch, found in SATURATED.carried(run):
        lasting = stretch.whole and len(stretch.steps) >= SATURATED.lasts
        yield replace(found, severity="warning") if lasting else found


def _passed_back(slope: Slope, operation: Operation, shape: tuple[int, ...], known: Statistics) -> tuple[float, str]:
    """The mean slope as a share of the largest, and a sentence that says so."""
    classes = shape[operation.arguments.get("dim", -1)] if shape and slope.of_rows else 1
    mean, most = slope.mean(known.mean, known.norm**2 / known.elements, classes), slope.most(classes)
    rows = " over the rows" if slope.of_rows else ""
    evidence = f"{slope.formula} is {number(mean)} on average{rows}, and at most {number(most)}."
    return mean / most if most else 1.0, evidence


SYMMETRIC = Check(
    "symmetric-units", "Units are equal and stay equal", "warning",
    what="Rows of a weight and their gradients are equal, or all of both is 0, as after a constant initialisation. "
    "Over a run it lasts, unless every weight of three layers or more begins at 0.",
    why="Equal units with equal gradients stay equal for ever, so the layer is no better than one unit.",
    advice="Draw the weights at random (PyTorch's default, or nn.init.kaiming_normal_, xavier_uniform_); zeros are "
    "fine for biases, and for the last layer of a branch.",
    source="Goodfellow, Bengio and Courville, Deep Learning, 2016, 8.4", thresholds=("same",), lasts=2)  # fmt: skip


ALL_ZERO = "Every weight begins at 0"


@SYMMETRIC.in_step
def _symmetric(context: StepContext) -> Iterator[Finding]:
    weights = {weight for _, weight, _ in context.weighed}
    all_zero = len(weights) > 2 and all(is_zero(context.statistics(weight)) for weight in weights)
    for name, parameter in context.graph.parameters.items():
        if parameter.value not in weights or not has_numbers(parameter.grad) or not has_numbers(parameter.before):
            continue
        if parameter.before.dim() < 2 or parameter.before.shape[0] < 2 or not _may_be_symmetric(context, parameter):
            continue
        before, grad = (dense(each).detach().flatten(1).double() for each in (parameter.before, parameter.grad))
        if before.shape != grad.shape or not grad.isfinite().all():
            continue
        size = before.shape[0]
        if not before.any() and not grad.any():
            rows = list(range(size))
            text = f"The weight {name} is 0, and so is its whole gradient: nothing moves it."
            evidence = [f"The norm of {name} is 0, and the norm of its gradient is 0."]
            if all_zero:
                evidence.append(f"All {len(weights)} weights of the step are 0.")
        else:
            rows = _equal_rows(before, grad, context.thresholds.same)
            if len(rows) < 2:
                continue
            which = f"All {size} rows" if len(rows) == size else f"{len(rows)} of {size} rows ({listed(rows)})"
            text = f"{which} of {name} are equal, and get the same gradient: these units stay equal."
            evidence = [
                f"{name}[{row}] is {listed([number(each) for each in before[row].tolist()])}; its gradient is "
                f"{listed([number(each) for each in grad[row].tolist()])}."
                for row in rows[:2]
            ]
        yield SYMMETRIC.found(
            name, text, evidence, place=context.place_of(parameter), rows=rows, size=size,
            title=ALL_ZERO if all_zero else "",
        )  # fmt: skip


@SYMMETRIC.over_time
def _symmetric_for_long(run: Run) -> Iterator[Finding]:
    """Weights that all begin at 0 leave that point by one layer at each step, and learn hardly anything for long."""
    for stretch in run.stretches(SYMMETRIC.id):
        all_zero = stretch.whole and stretch.findings[0].title == ALL_ZERO
        if (found := carry(stretch, 1 if all_zero else SYMMETRIC.lasts)) is not None:
            yield found


def _may_be_symmetric(context: StepContext, parameter: Parameter) -> bool:
    """A quick check: equal rows have equal products with any three vectors, and other rows hardly ever do."""
    before = parameter.before
    if before is None or before.layout is not torch.strided or not before.is_floating_point():
        return False
    rows = before.detach().flatten(1).float()
    angles = torch.linspace(1, 2, rows.shape[1], dtype=rows.dtype, device=rows.device)
    products = rows @ torch.stack([angles.sin(), angles.cos(), (7 * angles).sin()], 1)
    ordered = products[products[:, 0].argsort()]
    return bool((ordered.diff(dim=0).abs() <= context.thresholds.same * products.abs().amax(0)).all(1).any())


def _equal_rows(before: Tensor, grad: Tensor, tolerance: float) -> list[int]:
    """The rows that equal another one in the weight and in its gradient; rows without a gradient do not count."""
    scale, steep = before.abs().max(), grad.abs().max()
    if not steep:
        return []
    both = torch.cat([before / scale if scale else before, grad / steep], 1)
    keys = (both / max(tolerance, 1e-12)).round()
    _, inverse, counts = keys.unique(dim=0, return_inverse=True, return_counts=True)
    lively = grad.abs().amax(1) > tolerance * steep
    rows: list[int] = ((counts[inverse] > 1) & lively).nonzero().flatten().tolist()
    return rows


BATCH_NORM_OF_ONE = Check(
    "batch-norm-of-one", "A batch norm in train mode gets one sample", "warning",
    what="A batch norm that computes its mean and variance from the batch (train mode) gets a batch of one sample. Or "
    "a layer norm or group norm takes each number by itself, as nn.LayerNorm(1) does. One sample that has the same "
    "targets at every step of a run, as where a network is fitted to one picture, is a note.",
    why="It removes differences between samples; running averages, used in evaluation, follow single samples. A number "
    "minus its own mean is 0.",
    advice="Use a larger batch (drop_last=True for a last one of 1), put the layer into eval mode, or use a norm "
    "within each sample: nn.GroupNorm, nn.LayerNorm, nn.InstanceNorm2d.",
    source="Ioffe and Szegedy, 2015; Wu and He, Group normalization, 2018: its error grows as the batch gets small",
)  # fmt: skip


OF_TARGETS = "The mean of the targets is"


@BATCH_NORM_OF_ONE.in_step
def _batch_norm_of_one(context: StepContext) -> Iterator[Finding]:
    for operation in context.operations_that(lambda facts: facts.uses_batch):
        uses_batch = facts_of(operation.name).uses_batch
        given, out = argument(operation, "input"), operation.outputs[0] if operation.outputs else None
        if given is None or out is None or operation.call is None or uses_batch is None:
            continue
        shape, call = context.values[given].shape, context.graph.calls[operation.call]
        if not uses_batch(operation.arguments) or not shape or shape[0] != 1:
            continue
        if not facts_of_call(call.name).uses_batch:
            continue  # PyTorch computes an instance norm as a batch norm with the samples as channels
        evidence = [f"Its input has the shape {shape}: mean and variance of each channel are those of one sample."]
        known = context.statistics(given)
        if known is not None:
            evidence.append(f"The input's mean is {number(known.mean)}, its standard deviation {number(known.std)}.")
        target = next((context.statistics(each.target) for each in comparisons(context)), None)
        if target is not None:
            evidence.append(f"{OF_TARGETS} {number(target.mean)}.")
        where = call.module or context.name(out)
        yield BATCH_NORM_OF_ONE.found(
            where, f"The batch norm {where} is in train mode and gets one sample.", evidence, place=call.place
        )


@BATCH_NORM_OF_ONE.over_time
def _one_sample_for_ever(run: Run) -> Iterator[Finding]:
    for stretch, found in BATCH_NORM_OF_ONE.carried(run):
        targets = [{line for line in each.evidence if line.startswith(OF_TARGETS)} for each in stretch.findings]
        long = stretch.steps[-1] - stretch.steps[0] + 1 >= run.thresholds.enough
        one = long and bool(targets[0]) and all(each == targets[0] for each in targets)
        yield replace(found, severity="note") if one else found


@BATCH_NORM_OF_ONE.in_step
def _norm_of_one_number(context: StepContext) -> Iterator[Finding]:
    for operation in context.operations_that(lambda facts: facts.normalises and not facts.uses_batch):
        given, (out, *means) = argument(operation, "input"), operation.outputs
        sizes = {math.prod(context.values[each].shape) for each in (given, *means[:1]) if each is not None}
        if given is None or out is None or operation.call is None or len(means) < 2 or len(sizes) > 1 or sizes == {1}:
            continue
        call = context.graph.calls[operation.call]
        where = call.module or context.name(out)
        yield BATCH_NORM_OF_ONE.found(
            where, f"The norm {where} takes each number by itself: minus its own mean it is 0, whatever it was.",
            (f"Its input has the shape {context.values[given].shape}, and it computes {min(sizes)} means.",
             context.between(out)),
            place=call.place, title="A norm over one number",
            advice="Leave that norm out, or normalise over an axis with several features.",
        )  # fmt: skip
