"""A screenful: each value with its gradient, the parameters before and after, and what is worth knowing."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor as Data

from chainrule.document import Code, Document, Section, Table, Text
from chainrule.numbers import number
from chainrule.telling.context import Context, agreement, norm_of, shape_text, statistics
from chainrule.telling.whole import summary

SHOWN = 6  # numbers in a cell of a table


def brief(context: Context) -> Document:
    """Tell the step in a screenful."""
    return Document(("One training step, in brief",), tuple(summary(context)), tuple(_sections(context)))


def _sections(context: Context) -> Iterator[Section]:
    rows = tuple(_values(context))
    table = Table(("value", "what you wrote", "number", "gradient"), rows)
    yield Section(("Forward and backward",), "brief", "overview", (table,))
    if context.graph.parameters:
        table = Table(("parameter", "before", "gradient", "after", "check"), tuple(_parameters(context)))
        yield Section(("Parameters",), "brief-parameters", "overview", (table,))


def _values(context: Context) -> Iterator[tuple[Text, ...]]:
    for step in context.derivation.steps:
        if step.kind != "forward":
            continue
        place = context.place(step)
        for value in context.results(step):
            told = context.graph.values[value]
            code = (Code(place.expression),) if place and place.expression else (context.operation_name(step),)
            yield (context.notation.plain(value),), code, (cell(told.data),), (cell(told.grad),)


def _parameters(context: Context) -> Iterator[tuple[Text, ...]]:
    for name, parameter in context.graph.parameters.items():
        label = name if parameter.value is None else context.notation.plain(parameter.value)
        check = ""
        ours = context.derivation.gradients.get(parameter.value) if parameter.value is not None else None
        arrived = context.graph.values[parameter.value].grad if parameter.value is not None else None
        if ours is not None and arrived is not None:
            check = agreement(ours, arrived, ("",)).kind
        yield (label,), (cell(parameter.before),), (cell(parameter.grad),), (cell(parameter.after),), (check,)


def cell(data: Data | None) -> str:
    """A tensor in a cell: its numbers where they are few, else its shape and norm."""
    if data is None:
        return "None"
    if data.numel() > SHOWN:
        return f"{shape_text(data.shape)}, norm {number(_finite_norm(data))}"
    return nested((data.to_dense() if data.layout is not torch.strided else data).tolist())


def _finite_norm(data: Data) -> float:
    """The norm of the finite numbers; NaN where there are none."""
    norm = norm_of(data)
    return norm if math.isfinite(norm) else dict(statistics(data)).get("norm", math.nan)


def nested(item: object) -> str:
    """Nested lists of numbers as Python would write them, each number as everywhere."""
    if isinstance(item, list):
        return "[" + ", ".join(nested(each) for each in item) + "]"
    return number(item)  # type: ignore[arg-type]
