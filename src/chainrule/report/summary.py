"""The step in a screenful: each value with its gradient, the parameters before and after, and the findings."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from chainrule.derivation.backprop import Step
from chainrule.derivation.repeated_blocks import Repetition
from chainrule.document import Code, Document, Section, Table, Text
from chainrule.graph.snapshot import Parameter, Snapshot
from chainrule.numbers import number
from chainrule.report.block_tables import names
from chainrule.report.context import Context, shape_text
from chainrule.report.full import summary

SHOWN = 6  # numbers in a cell of a table


def brief(context: Context) -> Document:
    """The step in a screenful."""
    return Document(("One training step, in brief",), tuple(summary(context)), tuple(_sections(context)))


def _sections(context: Context) -> Iterator[Section]:
    rows = tuple(_values(context))
    table = Table(("name", "code", "value", "gradient"), rows)
    yield Section(("Forward and backward",), "brief", "overview", (table,))
    if context.graph.parameters:
        table = Table(("parameter", "before", "gradient", "after", "check"), tuple(_parameters(context)))
        yield Section(("Parameters",), "brief-parameters", "overview", (table,))


def _values(context: Context) -> Iterator[tuple[Text, ...]]:
    for step in context.derivation.steps:
        if step.kind != "forward":
            continue
        repetition = context.repeated.of_step(step)
        if repetition is not None:
            yield from _block(context, repetition, step)
            continue
        place = context.place(step)
        code = (Code(place.expression),) if place and place.expression else (context.operation_name(step),)
        for value in context.results(step):
            yield (context.notation.plain(value),), code, *_both(context, value)


def _block(context: Context, repetition: Repetition, step: Step) -> Iterator[tuple[Text, ...]]:
    """A whole block in a row: its output."""
    path = next((each for each in repetition.others if context.repeated.last_step(each) is step), None)
    if path is not None:
        yield (path,), ("like ", Code(repetition.shown)), *_both(context, step.outputs[0])


def _both(context: Context, value: int) -> tuple[Text, Text]:
    known = context.graph.values[value]
    return (cell(context, known.snapshot),), (cell(context, known.gradient),)


def _parameters(context: Context) -> Iterator[tuple[Text, ...]]:
    seen: set[Repetition] = set()
    for name, parameter in context.graph.parameters.items():
        repetition = context.repeated.of_parameter(name)
        if repetition is None:
            yield _parameter(context, name, parameter)
        elif repetition not in seen:
            seen.add(repetition)
            yield (f"{names(repetition)}: like {repetition.shown}",), ("",), ("",), ("",), ("",)


def _parameter(context: Context, name: str, parameter: Parameter) -> tuple[Text, ...]:
    label = name if parameter.value is None else context.notation.plain(parameter.value)
    cells = (cell(context, each) for each in (parameter.start, parameter.gradient, parameter.end))
    return (label,), *((each,) for each in cells), (_check(context, name, parameter),)


def _check(context: Context, name: str, parameter: Parameter) -> str:
    """The verdict on its gradient; on its update, where that is wrong."""
    ours = context.derivation.gradients.get(parameter.value) if parameter.value is not None else None
    arrived = context.graph.values[parameter.value].grad if parameter.value is not None else None
    if ours is None or arrived is None or parameter.value is None:
        return ""
    updates = (
        context.check_update(step, each)
        for step in context.graph.updates
        for each in step.parameters
        if each.name == name
    )
    kind = context.check_gradient(parameter.value, ours, arrived, ()).kind
    return "disagrees" if "disagrees" in updates else kind


def cell(context: Context, snapshot: Snapshot | None) -> str:
    """A tensor in a cell: its numbers if they are few, else its shape and the norm of its finite elements."""
    if snapshot is None:
        return "None"
    data, shape = snapshot.data, shape_text(snapshot.shape)
    if data is None or data.numel() > SHOWN:
        found = context.statistics.of(snapshot)
        if found is None:
            return f"{shape}, not kept"
        return f"{shape}, norm {number(found.norm if found.elements > found.not_finite else math.nan)}"
    return nested((data.to_dense() if data.layout is not torch.strided else data).tolist())


def nested(item: object) -> str:
    """Nested lists of numbers as Python writes them, each number as in all views."""
    if isinstance(item, list):
        return "[" + ", ".join(nested(each) for each in item) + "]"
    return number(item)  # type: ignore[arg-type]
