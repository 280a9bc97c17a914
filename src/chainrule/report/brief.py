"""A screenful: each value with its gradient, the parameters before and after, and what is worth knowing."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor as Data

from chainrule.derivation.backprop import Step
from chainrule.document import Code, Document, Section, Table, Text
from chainrule.graph.graph import Parameter
from chainrule.graph.statistics import Statistics
from chainrule.numbers import number
from chainrule.report.alike import names
from chainrule.report.context import Context, shape_text
from chainrule.report.folding import Fold
from chainrule.report.whole import summary

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
        fold = context.folding.fold_of(step)
        if fold is not None:
            yield from _block(context, fold, step)
            continue
        place = context.place(step)
        code = (Code(place.expression),) if place and place.expression else (context.operation_name(step),)
        for value in context.results(step):
            yield (context.notation.plain(value),), code, *_both(context, value)


def _block(context: Context, fold: Fold, step: Step) -> Iterator[tuple[Text, ...]]:
    """A whole block in a row: what came out of it."""
    path = next((each for each in fold.others if context.folding.last_step(each) is step), None)
    if path is not None:
        yield (path,), ("as ", Code(fold.told)), *_both(context, step.outputs[0])


def _both(context: Context, value: int) -> tuple[Text, Text]:
    told = context.graph.values[value]
    data = told.without_numbers() if told.data is None else told.data
    grad = told.without_numbers() if told.grad is None and told.has_gradient else told.grad
    return (cell(context, data, told.statistics),), (cell(context, grad, told.grad_statistics),)


def _parameters(context: Context) -> Iterator[tuple[Text, ...]]:
    met: set[Fold] = set()
    for name, parameter in context.graph.parameters.items():
        fold = context.folding.parameter_fold(name)
        if fold is None:
            yield _parameter(context, name, parameter)
        elif fold not in met:
            met.add(fold)
            yield (f"{names(fold)}: as {fold.told}",), ("",), ("",), ("",), ("",)


def _parameter(context: Context, name: str, parameter: Parameter) -> tuple[Text, ...]:
    label = name if parameter.value is None else context.notation.plain(parameter.value)
    return (label,), *((each,) for each in _cells(context, parameter)), (_check(context, name, parameter),)


def _check(context: Context, name: str, parameter: Parameter) -> str:
    """The verdict on its gradient; on its update, where that is wrong."""
    ours = context.derivation.gradients.get(parameter.value) if parameter.value is not None else None
    arrived = context.graph.values[parameter.value].grad if parameter.value is not None else None
    if ours is None or arrived is None or parameter.value is None:
        return ""
    updates = (context.check_update(step, each) for step in context.graph.updates for each in step.parameters
               if each.name == name)  # fmt: skip
    kind = context.check_gradient(parameter.value, ours, arrived, ()).kind
    return "disagrees" if "disagrees" in updates else kind


def _cells(context: Context, parameter: Parameter) -> Iterator[str]:
    """A parameter before the step, its gradient, and the parameter after; what was not kept by its figures."""
    unkept = torch.empty(parameter.shape, device="meta")
    after = unkept if parameter.after is None and parameter.after_statistics is not None else parameter.after
    grad = unkept if parameter.grad is None and parameter.has_gradient else parameter.grad
    yield cell(context, unkept if parameter.before is None else parameter.before, parameter.before_statistics)
    yield cell(context, grad, parameter.grad_statistics)
    yield cell(context, after, parameter.after_statistics)


def cell(context: Context, data: Data | None, known: Statistics | None = None) -> str:
    """A tensor in a cell: its numbers where they are few, else its shape and the norm of what is finite in it.

    Of one whose numbers were not kept (on the device `meta`) the figures are `known`, or nothing is.
    """
    if data is None:
        return "None"
    if data.numel() > SHOWN or data.is_meta:
        found = context.figures(data, known)
        if found is None:
            return f"{shape_text(data.shape)}, not kept"
        return f"{shape_text(data.shape)}, norm {number(found.norm if found.elements > found.not_finite else math.nan)}"
    return nested((data.to_dense() if data.layout is not torch.strided else data).tolist())


def nested(item: object) -> str:
    """Nested lists of numbers as Python would write them, each number as everywhere."""
    if isinstance(item, list):
        return "[" + ", ".join(nested(each) for each in item) + "]"
    return number(item)  # type: ignore[arg-type]
