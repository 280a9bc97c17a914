"""Units that do nothing, or all the same: off, at a kink, saturated, symmetric."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from chainrule.derivation.backprop import Step
from chainrule.derivation.contributions import aligned
from chainrule.derivation.why import element
from chainrule.diagnostics.check import Check
from chainrule.diagnostics.finding import LISTED, Finding, listed
from chainrule.diagnostics.run_context import Run, carry
from chainrule.diagnostics.step_context import StepContext, argument, base_of, dense
from chainrule.graph.graph import Operation
from chainrule.graph.snapshot import Parameter, has_numbers
from chainrule.graph.trees import reach
from chainrule.numbers import number

MIN_SAMPLES = 2  # with one sample, a unit that is off says nothing
MIN_STEPS = 3  # examined steps after which a unit that was always off is called dead

UNIT_OFF = Check(
    "unit-off",
    title="A unit is off for every sample",
    severity="warning",
    what="A ReLU (or another function that is flat on one side) has slope 0 for every sample of the batch. Over a run: "
    "the units that were off at each of the last examined steps.",
    why="Its weights get no gradient, so it never learns again: the layer is narrower than it looks.",
    advice="If it stays off it will never learn again. A smaller learning rate, another initialisation of weight and "
    "bias, or a leaky ReLU keeps it alive.",
    thresholds=("units_off", "units_dead"),
    source="Lu et al., Dying ReLU and initialization, 2019; He et al., 2015",
)


@UNIT_OFF.in_step
def _units_off(context: StepContext) -> Iterator[Finding]:
    """Units whose nonlinearity passes nothing back, whatever the sample: its slope is 0 in their whole column."""
    for step, name, value in _hinges(context):
        before = context.graph.values[value]
        if not has_numbers(step.op.out):  # type: ignore[union-attr]
            continue
        slope = step.rule.gradient(step.op, (torch.ones_like(step.op.out),), name)  # type: ignore[union-attr, arg-type]
        if before.data is None or len(before.shape) < 2 or slope.shape != before.shape:
            continue
        axis = 1 if _by_channels(context, value) else len(before.shape) - 1
        places = math.prod(before.shape) // max(before.shape[axis], 1)
        if before.shape[0] < MIN_SAMPLES or not slope.numel():
            continue
        units = (slope == 0).movedim(axis, 0).flatten(1).all(1).nonzero().flatten().tolist()
        if not units:
            continue
        one = len(units) == 1
        told = f"unit {units[0]}" if one else f"{len(units)} of {before.shape[axis]} units ({listed(units)})"
        evidence = []
        for unit in units[:LISTED]:
            told_column = listed([number(each) for each in before.data.movedim(axis, 0).flatten(1)[unit].tolist()])
            at = _slice(context.name(value), axis, unit, len(before.shape))
            kind = "samples" if len(before.shape) == 2 else "places"
            evidence.append(
                f"{at} is {told_column}: the slope of {context.name(step.outputs[0])} is 0 in all {places} {kind}."
            )
        yield UNIT_OFF.found(
            context.name(step.outputs[0]),
            f"{told[0].upper()}{told[1:]}{context.layer(value)} {'is' if one else 'are'} off for every sample: "
            f"{'its' if one else 'their'} weights get no gradient.",
            evidence,
            place=context.graph.values[step.outputs[0]].place,
            severity="warning" if len(units) > context.thresholds.units_off * before.shape[axis] else "note",
            rows=units,
            size=before.shape[axis],
        )


@UNIT_OFF.in_step
def _layer_off(context: StepContext) -> Iterator[Finding]:
    """Of statistics alone: a ReLU that gives nothing but zeros."""
    for operation in context.named("relu", "threshold"):
        (out,) = operation.outputs
        known = context.statistics(out) if out is not None and context.graph.values[out].data is None else None
        if out is None or known is None or not known.elements or known.zeros < known.elements:
            continue
        if context.graph.values[out].requires_grad:
            units = context.graph.values[out].shape[-1] if context.graph.values[out].shape else 1
            yield UNIT_OFF.found(
                context.name(out), f"Every unit{context.layer(out)} is off for every sample: no gradient passes.",
                (f"All {known.elements} elements of {context.name(out)} are 0.",),
                place=context.place(operation), rows=range(units), size=units,
            )  # fmt: skip


@UNIT_OFF.over_time
def _dead(run: Run) -> Iterator[Finding]:
    """The units that were off at every one of the last steps: one that is off now and on then is no trouble."""
    for stretch in (each.of_lasting_rows(MIN_STEPS) for each in run.stretches(UNIT_OFF.id)):
        rows, latest = stretch.rows, stretch.findings[-1]
        if stretch.ended or not rows or len(stretch.steps) < MIN_STEPS:
            continue
        told = carry(stretch, MIN_STEPS)
        assert told is not None
        count = f"{len(rows)} of {latest.size} units" if len(rows) < latest.size else f"All {latest.size} units"
        dead = len(rows) > run.thresholds.units_dead * latest.size
        yield replace(
            told, severity="warning" if dead else "note", rows=rows,
            text=(f"{count} of {latest.where} were off for every sample, at each of {len(stretch.steps)} steps.",),
            evidence=(f"They are {listed(list(rows))}.", *(told.evidence[:1] if dead else ())),
        )  # fmt: skip


def _by_channels(context: StepContext, value: int) -> bool:
    """Whether units lie along axis 1, as a convolution and the norms after it give them."""
    while (operation := context.producer(context.source(value))) is not None:
        base = base_of(operation).removesuffix("_")
        if "conv" in base or "batch_norm" in base or base == "native_group_norm":
            return True
        given = argument(operation, "self")
        if base not in ("add", "mul", "sub", "div") or given is None:
            return False
        value = given
    return False


def _hinges(context: StepContext) -> Iterator[tuple[Step, str, int]]:
    """Nonlinearities with kinks: elementwise, of one tensor, which a gradient passes."""
    for step in context.forward():
        if step.rule is None or step.op is None or step.rule.kink is None or step.rule.structure != "elementwise":
            continue
        wanted = [(name, value) for name, _, value in step.arguments if name in step.rule.wrt]
        if len(wanted) == 1 and len(step.arguments) == 1 and len(step.outputs) == 1:
            name, value = wanted[0]
            if context.graph.values[value].requires_grad and isinstance(step.op.out, Tensor):
                yield step, name, value


AT_KINK = Check(
    "at-kink",
    title="A value lies exactly where a function has no derivative",
    severity="note",
    what="An element lies exactly at a kink, as 0 does for ReLU, and a gradient passes there.",
    why="Any slope between those of the two sides is a valid choice; PyTorch takes one, and the gradient depends on "
    "it.",
    advice="There is no derivative at such a point; any slope between those of the two sides is a valid choice, and "
    "the gradient depends on the choice.",
    source="the rule of the operation names PyTorch's choice",
)


@AT_KINK.in_step
def _at_kinks(context: StepContext) -> Iterator[Finding]:
    """Elements exactly where a function has no derivative, and what PyTorch takes there."""
    for step in context.forward():
        if step.rule is None or step.op is None or step.rule.kink is None or not has_numbers(step.op.out):
            continue
        kink = step.rule.kink
        value = next((value for name, item, value in step.arguments if name == kink.argument and item is None), None)
        if value is None or not context.graph.values[value].requires_grad or context.graph.values[value].data is None:
            continue
        places = [tuple(place) for place in kink.where(step.op, 0.0).nonzero().tolist()]
        if not places:
            continue
        numbers = context.graph.values[value].data
        told = []
        for place in places[:LISTED]:
            own = aligned(place, context.graph.values[value].shape)
            if own is not None and numbers is not None:
                told.append(f"{element(context.name(value), own)} = {number(numbers[own].item())}")
        count = "1 element" if len(places) == 1 else f"{len(places)} elements"
        lies = "lies" if len(places) == 1 else "lie"
        yield AT_KINK.found(
            context.name(value),
            (f"{count} of {context.name(value)} {lies} exactly at a kink: ", kink.choice, "."),
            (*told, *((f"and {len(places) - LISTED} more",) if len(places) > LISTED else ())),
            place=context.graph.values[value].place,
        )


SATURATED = Check(
    "saturated",
    title="A sigmoid, a tanh or a softmax is saturated",
    severity="warning",
    what="The slope of a hidden sigmoid or tanh, averaged over its elements, is next to 0: E[a(1 - a)] or E[1 - a^2]. "
    "Of a softmax (of attention, say): 1 - sum p^2, averaged over its rows, is next to 0, so each row is one-hot.",
    why="The gradient is multiplied by that slope: what comes before learns little or nothing.",
    advice="Make what enters it smaller: a smaller initialisation (Xavier), normalised inputs or a norm before it, "
    "scores divided by the root of their width; or take a ReLU.",
    thresholds=("flat",),
    source="Glorot and Bengio, 2010; Vaswani et al., 2017, 3.2.1, for the softmax of attention",
    lasts=3,
)


@SATURATED.in_step
def _saturated(context: StepContext) -> Iterator[Finding]:
    """The mean slope follows from size, mean and norm of the output alone."""
    for operation in context.named("sigmoid", "tanh", "_softmax"):
        out = operation.outputs[0]
        known = context.statistics(out) if out is not None and context.graph.values[out].requires_grad else None
        if out is None or known is None or known.not_finite or known.elements < 2:
            continue
        share, told = _slope(context, operation, out)
        if not share < context.thresholds.flat or _is_output(context, out):
            continue
        name = base_of(operation).strip("_")
        yield SATURATED.found(
            context.name(out),
            f"The {name} {context.name(out)} is saturated: it passes back {100 * share:.2g} % of what it could.",
            (told, f"It lies between {number(known.low)} and {number(known.high)}."),
            place=context.graph.values[out].place,
            # A softmax may well grow sure of itself; what is wrong is to be so from the start, see `_since_start`.
            severity="note" if name == "softmax" else "warning",
        )


@SATURATED.over_time
def _since_start(run: Run) -> Iterator[Finding]:
    for stretch in run.stretches(SATURATED.id):
        told = carry(stretch, SATURATED.lasts)
        if told is None:
            continue
        lasting = len(stretch.steps) >= SATURATED.lasts
        yield replace(told, severity="warning") if stretch.whole and lasting else told


def _slope(context: StepContext, operation: Operation, out: int) -> tuple[float, str]:
    """The mean slope of its output as a share of the largest, and a sentence that says so."""
    known = context.statistics(out)
    assert known is not None
    square = known.norm**2 / known.elements
    if base_of(operation).startswith("tanh"):
        return 1 - square, f"1 - a^2 is {number(1 - square)} on average, and at most 1."
    if base_of(operation).startswith("sigmoid"):
        slope = known.mean - square
        return 4 * slope, f"a(1 - a) is {number(slope)} on average, and at most 0.25."
    shape = context.graph.values[out].shape
    classes = shape[operation.arguments.get("dim", -1)] if shape else 1
    spread = 1 - square * classes
    share = spread / (1 - 1 / classes) if classes > 1 else 1.0
    return share, f"1 - sum p^2 is {number(spread)} on average over the rows, and at most {number(1 - 1 / classes)}."


def _is_output(context: StepContext, value: int) -> bool:
    """Whether it is what a loss is made of, where being sure of itself is the aim: no weight comes after it."""
    weights = {given for _, given, _, _ in context.weighed}

    def made(value: int) -> list[int]:
        return [out for operation in context.uses.get(value, ()) for out in operation.outputs if out is not None]

    return not any(
        each in weights or any(base_of(use) in ("bmm", "baddbmm", "mm", "addmm") for use in context.uses.get(each, ()))
        for each in reach([value], made)
    )


SYMMETRIC = Check(
    "symmetric-units",
    title="Units that are the same, and stay the same",
    severity="warning",
    what="Rows of a weight are equal, and so are their gradients (or a weight and its gradient are 0 altogether), as "
    "after an initialisation with zeros or a constant.",
    why="Units that are equal and get equal gradients stay equal for ever: the layer is as good as one unit.",
    advice="Draw the weights at random (PyTorch's own default, or nn.init.kaiming_normal_, xavier_uniform_); a zero is "
    "fine for biases, and for the last layer of a branch.",
    thresholds=("same",),
    source="Goodfellow, Bengio and Courville, Deep Learning, 2016, 8.4",
    lasts=2,
)


@SYMMETRIC.in_step
def _symmetric(context: StepContext) -> Iterator[Finding]:
    weights = {weight for _, _, weight, _ in context.weighed}
    for name, parameter in context.graph.parameters.items():
        if parameter.value not in weights or not has_numbers(parameter.grad) or not has_numbers(parameter.before):
            continue
        if parameter.before.dim() < 2 or parameter.before.shape[0] < 2:
            continue
        if not _may_be_symmetric(context, parameter):
            continue
        before, grad = (dense(each).detach().flatten(1).double() for each in (parameter.before, parameter.grad))
        if before.shape != grad.shape or not grad.isfinite().all():
            continue
        size, tolerance = before.shape[0], context.thresholds.same
        if not before.any() and not grad.any():
            rows = list(range(size))
            told = f"The weight {name} is 0, and so is its whole gradient: it can never leave that point."
            evidence = [f"The norm of {name} is 0, and the norm of its gradient is 0."]
        else:
            rows = _equal_rows(before, grad, tolerance)
            if len(rows) < 2:
                continue
            which = f"All {size} rows" if len(rows) == size else f"{len(rows)} of {size} rows ({listed(rows)})"
            told = f"{which} of {name} are equal, and get the same gradient: these units never part."
            evidence = [
                f"{name}[{row}] is {listed([number(each) for each in before[row].tolist()])}; its gradient is "
                f"{listed([number(each) for each in grad[row].tolist()])}."
                for row in rows[:2]
            ]
        value = context.graph.values[parameter.value] if parameter.value is not None else None
        yield SYMMETRIC.found(
            name, told, evidence, place=value.place if value is not None else None, rows=rows, size=size
        )


def _may_be_symmetric(context: StepContext, parameter: Parameter) -> bool:
    """A quick look: equal rows have equal products with any three vectors, and hardly any others have."""
    before = parameter.before
    if before is None or before.layout is not torch.strided or not before.is_floating_point():
        return False
    rows = before.detach().flatten(1).float()
    angles = torch.linspace(1, 2, rows.shape[1], device=rows.device)
    products = rows @ torch.stack([angles.sin(), angles.cos(), (7 * angles).sin()], 1)
    ordered = products[products[:, 0].argsort()]
    return bool((ordered.diff(dim=0).abs() <= context.thresholds.same * products.abs().amax(0)).all(1).any())


def _equal_rows(before: Tensor, grad: Tensor, tolerance: float) -> list[int]:
    """The rows that have an equal one, in the weight and in its gradient; rows without a gradient say nothing."""
    scale, steep = before.abs().max(), grad.abs().max()
    if not steep:
        return []
    both = torch.cat([before / scale if scale else before, grad / steep], 1)
    keys = (both / max(tolerance, 1e-12)).round()
    _, inverse, counts = keys.unique(dim=0, return_inverse=True, return_counts=True)
    lively = grad.abs().amax(1) > tolerance * steep
    rows: list[int] = ((counts[inverse] > 1) & lively).nonzero().flatten().tolist()
    return rows


def _slice(name: str, axis: int, at: int, axes: int) -> str:
    return f"{name}[{','.join(str(at) if each == axis else ':' for each in range(axes))}]"
