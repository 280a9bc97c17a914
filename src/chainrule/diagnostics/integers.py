"""Integers that are computed with as if they were other numbers: small ones that wrap around, and classes."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from chainrule.diagnostics.check import Check
from chainrule.diagnostics.comparisons import comparisons, first_output
from chainrule.diagnostics.finding import Finding
from chainrule.diagnostics.step_context import StepContext, argument, is_zero, operands
from chainrule.graph.graph import Operation
from chainrule.graph.snapshot import type_name
from chainrule.graph.trees import reach
from chainrule.numbers import number
from chainrule.rules.facts import facts_of

WRAPPED = Check(
    "bytes-wrap", "Small integers wrap around", "warning",
    what="A number is added to integers of 8 or 16 bits, subtracted from them, or multiplies them, the result leaves "
    "the range of their type, and inputs of layers are made of it. A watch sees what the network itself computes.",
    why="uint8 holds 0 to 255 and nothing else: 100 - 128 is 228, so dark pixels become bright ones.",
    advice="Convert to float first: (x.float() - 128) / 128.",
    source="NumPy's documentation: integer overflow; uint8 in PyTorch's table of tensor types")  # fmt: skip
SMALL = (torch.uint8, torch.int8, torch.int16)


@WRAPPED.in_step
def _wrapped(context: StepContext) -> Iterator[Finding]:
    for operation in context.operations_that(lambda facts: facts.calculates is not None):
        calculates, other = facts_of(operation.name).calculates, operation.arguments.get("other")
        given, out = argument(operation, "self"), first_output(operation)
        if given is None or out is None or calculates is None or not isinstance(other, int):
            continue
        known, kind = context.statistics(given), context.values[out].dtype
        if known is None or kind not in SMALL or operation.arguments.get("alpha", 1) != 1:
            continue
        low, high = sorted(calculates(each, float(other)) for each in (known.low, known.high))
        limits = torch.iinfo(kind)
        if (low < limits.min or high > limits.max) and _is_input(context, out):
            name = context.name(given)
            yield WRAPPED.found(
                name, f"{name} is of type {type_name(kind)}, and {context.called(operation)} with {other} gives "
                f"numbers from {number(low)} to {number(high)}, which wrap around.",
                (context.between(given), f"The type holds {limits.min} to {limits.max}."),
                place=context.place(operation),
            )  # fmt: skip
            return


def _is_input(context: StepContext, value: int) -> bool:
    """Whether an input of the network is made of a value."""
    after = set(reach([value], context.results))
    return any(given in after for given, _, _ in context.weighed if given in context.data)


ZEROS = Check(
    "divided-to-zero", "Integers become 0 before a layer gets them", "warning",
    what="An input of a layer was computed from integers that differ, 4 or more, and is 0 for all of them, as by "
    "t // steps: at three examined steps in a row.",
    why="The layer gets 0 for every sample, so the network never sees the number.",
    advice="Divide as floating-point numbers: t / steps, or t.float() / steps.",
    source="PyTorch's documentation of torch.floor_divide", lasts=3)  # fmt: skip
FEWEST = 4  # numbers


@ZEROS.in_step
def _zeros(context: StepContext) -> Iterator[Finding]:
    for given, _, _ in context.weighed:
        made, value = context.producer(given), context.values[given]
        if made is None or given not in context.data or value.dtype.is_floating_point or value.dtype == torch.bool:
            continue
        before = argument(made, "self")
        known = None if before is None else context.statistics(before)
        if before is None or known is None or context.values[before].dtype.is_floating_point or known.elements < FEWEST:
            continue
        if known.low < known.high and is_zero(context.statistics(given)):
            name = context.name(before)
            yield ZEROS.found(
                name, f"{context.called(made)} makes 0 of all {known.elements} numbers of {name}, before a layer gets "
                "them.", context.between(before), place=context.place(made), severity="note",
            )  # fmt: skip


ZEROS.over_time(ZEROS.lasting)

BLENDED = Check(
    "classes-blended", "The numbers of classes are interpolated", "warning",
    what="The targets of a loss that takes classes were interpolated between neighbouring places, as by "
    "F.interpolate(labels.float(), mode=\"bilinear\"), from whole numbers.",
    why="Between class 2 and class 8 lies 5, which is another class: every border gets labels that nobody gave.",
    advice='Resize labels with mode="nearest", and pictures with "bilinear".',
    source="PyTorch's documentation of F.interpolate; torchvision's of Resize: masks are resized by nearest",
)  # fmt: skip


@BLENDED.in_step
def _blended(context: StepContext) -> Iterator[Finding]:
    for comparison in comparisons(context):
        blend = _blend(context, comparison.target)
        given = argument(blend, "self") if blend is not None else None
        labels = context.source(given) if given is not None else None
        if blend is None or labels is None or not facts_of(comparison.operation.name).class_target:
            continue
        if not context.values[labels].dtype.is_floating_point:
            yield BLENDED.found(
                context.name(labels), f"{context.name(labels)} contains classes, and {context.called(blend)} "
                "interpolates between their numbers.",
                f"{context.values[labels].shape} of type {type_name(context.values[labels].dtype)} becomes "
                f"{context.values[first_output(blend) or 0].shape}.", place=context.place(blend),
            )  # fmt: skip
            return


def _blend(context: StepContext, value: int) -> Operation | None:
    """The interpolation that a value comes from, through what rounds or limits its numbers."""
    shape = context.values[value].shape
    while (maker := context.producer(context.source(value))) is not None:
        if facts_of(maker.name).blends:
            return maker
        given = operands(maker)
        if len(given) != 1 or math.prod(context.values[given[0]].shape) != math.prod(shape):
            return None
        value = given[0]
    return None
