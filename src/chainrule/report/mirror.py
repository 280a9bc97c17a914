"""The rows of the mirror: every told value, forward, with the gradient of the same value beside it."""

from __future__ import annotations

from chainrule.derivation.backprop import Step
from chainrule.document import Row
from chainrule.report.context import Context


def numbered(context: Context) -> dict[int, int]:
    """The row of each told value: of each leaf that the told operations use, and of each of their results."""
    number: dict[int, int] = {}
    for step in context.derivation.steps:
        if step.kind == "forward":
            for value in (*(value for _, _, value in step.arguments), *context.results(step)):
                number.setdefault(value, len(number))
    return number


def rows(context: Context) -> tuple[Row, ...]:
    """One row for each told value, in execution order."""
    number, anchors = numbered(context), _anchors(context)
    made_by = {
        value: step for step in context.derivation.steps if step.kind == "forward" for value in context.results(step)
    }
    found = []
    for value, index in number.items():
        step = made_by.get(value)
        inputs = dict.fromkeys(number[used] for _, _, used in step.arguments) if step is not None else ()
        found.append(_row(context, index, value, step, tuple(inputs), anchors))
    return tuple(found)


def _anchors(context: Context) -> dict[int, tuple[list[str], list[str]]]:
    """For each value the anchors of the sections forward, and of those in which its gradient is worked out."""
    found: dict[int, tuple[list[str], list[str]]] = {}
    for kind in ("forward", "backward"):
        steps = [step for step in context.derivation.steps if step.kind == kind]
        number = {step.index: place for place, step in enumerate(steps, 1)}
        for step in steps:
            told = context.folding.told_for(step)  # where blocks are alike, the sections are those of one of them
            place = number[told.index]
            if kind == "forward":
                for value in step.outputs:
                    found.setdefault(value, ([], []))[0].append(f"forward-{place}")
            for share in step.shares:
                if share.value is not None and share.gradient is not None:
                    item = "" if share.item is None else f"-{share.item}"
                    found.setdefault(share.value, ([], []))[1].append(f"backward-{place}-{share.argument}{item}")
    return found


def _row(
    context: Context,
    index: int,
    value: int,
    step: Step | None,
    inputs: tuple[int, ...],
    anchors: dict[int, tuple[list[str], list[str]]],
) -> Row:
    told, notation = context.graph.values[value], context.notation
    forward, backward = anchors.get(value, ([], []))
    loss = any(value == b.loss for b in context.graph.accumulating)
    kind = "parameter" if told.kind == "parameter" else "data" if step is None else "loss" if loss else "operation"
    place = (context.place(step) if step is not None else None) or told.place
    symbol = notation.gradient(value)
    return Row(
        index,
        kind,  # type: ignore[arg-type]
        notation.plain(value),
        notation.symbol(value),
        symbol,
        context.operation_name(step) if step is not None else "",
        place.expression if place else "",
        str(place) if place else "",
        _module(context, value, step),
        inputs,
        context.pictured(context.value(value), told.data),
        context.arrived(value),
        forward[0] if forward else None,
        tuple(backward),
        row.verdict if told.node is not None and (row := context.rows.get(told.node)) is not None else None,
        context.relative_updates.get(value),
    )


def _module(context: Context, value: int, step: Step | None) -> str:
    """The module that computed a value; for a parameter or a buffer the module that it belongs to."""
    graph, told = context.graph, context.graph.values[value]
    owner = told.name.rpartition(".")[0]
    if step is None and told.kind == "parameter":
        return owner
    made_by = step or (None if told.operation is None else graph.operations[told.operation])
    computed = graph.calls[made_by.call].module if made_by is not None and made_by.call is not None else ""
    if step is None and not computed and any(module.path == owner for module in graph.modules):
        return owner
    return computed
