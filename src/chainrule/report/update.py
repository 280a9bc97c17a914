"""After the backward pass: the gradients in `.grad`, clipped or not, and the update of the parameters."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from string import Template

import torch
from torch import Tensor as Data

from chainrule.document import Block, Code, Equation, Math, Paragraph, Section, Span, Table, Text, Verdict
from chainrule.graph.comparison import compare, dense, rounding
from chainrule.graph.graph import Backward
from chainrule.graph.names import escape
from chainrule.graph.snapshot import Parameter, ParameterUpdate, Snapshot, Update, has_numbers
from chainrule.numbers import number
from chainrule.report import block_tables
from chainrule.report.context import UNKEPT, Context, group, matrix, of_comparison, shape_text
from chainrule.rules.optimizers import terms
from chainrule.verification.update_check import compare_update


def gradients(context: Context) -> Section:
    """The gradients in `.grad`, and why they are cleared."""
    return Section(
        ("Gradients in .grad, and why they are cleared",), "gradients", "backward", tuple(_gradients(context))
    )


def _gradients(context: Context) -> Iterator[Block]:
    graph = context.graph
    yield from _given(context)
    given = {value for backward in graph.backwards for value in backward.given}
    rows: list[tuple[Text, ...]] = []
    for name, parameter in graph.parameters.items():
        if not parameter.has_gradient:
            why = "returned by torch.autograd.grad only" if parameter.value in given else "no gradient arrived"
            rows.append(((Code(name),), (f"None: {why}",), ("",)))
            continue
        known = context.statistics.of(parameter.gradient)
        norm = "not kept" if known is None else f"{math.nan if known.not_finite else known.norm:.4g}"
        rows.append(((Code(name),), (shape_text(parameter.shape),), (norm,)))
    yield Table(("parameter", "gradient", "norm"), tuple(rows))
    ours = context.derivation.gradients
    for name, parameter in graph.parameters.items():
        value = parameter.value
        recorded = graph.values[value].grad if value is not None else None
        if value is not None and value in ours and recorded is not None and len(context.uses(value)) > 1:
            text = ("the sum of all contributions against ", Code(f"{name}.grad"))
            yield context.check_gradient(value, ours[value], recorded, text)
    filled = [
        (n, p, sent) for n, p in graph.parameters.items() if (sent := graph.sent(p)) is not None and p.value is not None
    ]
    if not filled:
        return
    name, parameter, sent = filled[-1] if len(filled) < 2 else filled[-2]
    assert parameter.value is not None
    arrived = graph.values[parameter.value].grad
    symbol = context.notation.gradient(parameter.value)
    if arrived is not None and not compare(sent, arrived).agrees:
        yield Paragraph(
            (Code(f"{name}.grad"), " was not empty when backward began, and backward accumulates into it: the "
             "optimizer uses the old gradient plus the new one. Call ", Code("optimizer.zero_grad()"), " before each "
             "step, unless you accumulate gradients on purpose."),
            "warning",
        )  # fmt: skip
        return
    yield Paragraph(
        (Code(".grad"), " was empty when backward began (", Code("optimizer.zero_grad()"), " clears it). Backward "
         "accumulates into it: without clearing, a second pass over the same batch would leave twice the gradient, and "
         "the optimizer would use that. For ", Math(symbol), " it would be"),
    )  # fmt: skip
    yield context.passing(rf"2 \cdot {symbol}", 2 * sent, "gradient", "after two backward passes")


def _given(context: Context) -> Iterator[Block]:
    """What each `torch.autograd.grad` returned, compared with our own sums."""
    for backward in context.graph.backwards:
        if backward.accumulates:
            continue
        yield Paragraph(returned(context, backward))
        for value, gradient in backward.given.items():
            symbol = context.notation.gradient(value, backward.index)
            yield context.tensor(symbol, gradient.tensor, "gradient", "returned by torch.autograd.grad")
            ours = context.derivation.of_passes.get(backward.index, {}).get(value)
            if ours is not None:
                text = (f"our rules against what torch.autograd.grad returned for {context.notation.plain(value)}",)
                yield context.check_gradient(value, ours, gradient.tensor, text)


def returned(context: Context, backward: Backward) -> Text:
    """What a pass of `torch.autograd.grad` returned, in a sentence."""
    notation, where = context.notation, f" ({backward.place})" if backward.place else ""
    of = "" if backward.loss is None else f" of {notation.plain(backward.loss)}"
    names = " and ".join(notation.plain(value) for value in backward.given) or "values that were not recorded"
    return (
        Code("torch.autograd.grad"), f"{where} returned the gradient{of} with respect to {names} to its caller. It is "
        "not accumulated into ", Code(".grad"), ".",
    )  # fmt: skip


def update(context: Context, number: int, step: Update) -> Section:
    """One `optimizer.step()`: the update of every parameter, term by term."""
    title: tuple[Span, ...] = (f"Update: {step.optimizer}",)
    inner = tuple(
        _parameter(context, step, each, f"update-{number}-{place}")
        for place, each in enumerate(step.parameters)
        if context.repeated.of_parameter(each.name) is None
    )
    return Section(title, f"update-{number}", "update", tuple(_events(context, step)), inner)


def _events(context: Context, step: Update) -> Iterator[Block]:
    seen: set[str] = set()
    for event in context.graph.written_before(step.position):
        if event.kind not in seen:
            seen.add(event.kind)
            where = f" ({event.place})" if event.place else ""
            yield Paragraph(
                ("Between backward and the optimizer step, ", Code(event.kind), f" changed gradients in place{where}. "
                 "The optimizer uses the changed ones."),
                "note",
            )  # fmt: skip


def _parameter(context: Context, step: Update, each: ParameterUpdate, anchor: str) -> Section:
    name = each.name if each.value is None else context.notation.plain(each.value)
    title: tuple[Span, ...] = (name,) if name == each.name else (f"{name} (", Code(each.name), ")")
    return Section(
        title, anchor, "update", (*_terms(context, step, each), *block_tables.updates(context, step, each.name))
    )


def _terms(context: Context, step: Update, each: ParameterUpdate) -> Iterator[Block]:
    symbol = rf"\text{{{escape(each.name)}}}" if each.value is None else context.notation.symbol(each.value)
    gradient = r"\frac{\partial J}{\partial " + symbol + "}"
    yield context.known(symbol, each.start, "parameter", "before")
    grad = each.grad
    if grad is None:
        yield Paragraph(("No gradient: the optimizer skips this parameter.",), "note")
        return
    yield from _changed(context, each)
    yield context.known(gradient, each.gradient, "gradient", "gradient")
    worked_out = terms(each, step.optimizer)
    if worked_out is None:
        yield Paragraph((f"No rule yet for {step.optimizer}: before, after and their difference.",), "note")
        yield context.tensor(rf"{symbol}_{{new}}", each.after, "parameter", "after")
        known = each if each.is_whole else each.without_numbers()
        yield context.passing(rf"\Delta {symbol}", dense(known.after) - dense(known.before), "parameter", "difference")
        return
    yield from _state(context, each)
    fill = {"theta": group(symbol), "g": group(gradient)}
    numbers = fill | {"theta": matrix(each.before) or fill["theta"], "g": matrix(grad) or fill["g"]}
    for term in worked_out:
        left = Template(term.symbol).safe_substitute(fill)
        yield Paragraph((term.meaning[:1].upper() + term.meaning[1:] + ":",))
        yield Equation(Template(term.equation).safe_substitute(fill))
        left_side, _, right_side = term.numbers.partition(" = " if " = " in term.numbers else r" \leftarrow ")
        put_in = Template(right_side).safe_substitute(numbers)
        yield Equation(f"{Template(left_side).safe_substitute(fill)} = {put_in}", "numbers")
        value = term.value if isinstance(term.value, Data) else torch.tensor(term.value, dtype=torch.float32)
        yield context.passing(left, value, "parameter")
    new = worked_out[-1].value
    assert isinstance(new, Data)
    text = ("our formula against the parameter after ", Code("optimizer.step()"))
    if not each.is_whole:
        yield UNKEPT
        return
    found, undecided = compare_update(new, each, step.optimizer)
    yield Verdict("not checked", (undecided,)) if found.agrees and undecided else of_comparison(found, text)


def written_by_hand(context: Context) -> list[Parameter]:
    """The parameters that the step changed without an optimizer."""
    graph = context.graph
    stepped = {each.name for step in graph.updates for each in step.parameters}
    return [
        parameter
        for name, parameter in graph.parameters.items()
        if parameter.after is not None and name not in stepped and context.repeated.of_parameter(name) is None
    ]


def by_hand(context: Context, written: Iterable[Parameter]) -> Section:
    """The parameters that the user's own code changed: before, gradient, after, and the change."""
    inner = tuple(
        Section(
            (Code(parameter.name),), f"by-hand-{place}", "update",
            (*_written(context, parameter), *block_tables.by_hand(context, parameter.name)),
        )
        for place, parameter in enumerate(written)
    )  # fmt: skip
    note = Paragraph(("Code other than a ", Code("torch.optim"), " optimizer changed these parameters."))
    return Section(("Update: by hand",), "by-hand", "update", (note,), inner)


def _written(context: Context, parameter: Parameter) -> Iterator[Block]:
    value, before, after = parameter.value, parameter.before, parameter.after
    symbol = rf"\text{{{escape(parameter.name)}}}" if value is None else context.notation.symbol(value)
    grad = parameter.grad
    if grad is None and value is not None:  # returned by torch.autograd.grad
        grad = context.graph.values[value].grad
    yield context.tensor(symbol, before, "parameter", "before")
    if grad is not None and value is not None:
        yield context.tensor(context.notation.gradient(value), grad, "gradient", "gradient")
    yield context.tensor(rf"{group(symbol)}_{{new}}", after, "parameter", "after")
    if before is None or after is None:
        return
    added = after - before
    yield context.passing(rf"\Delta {symbol}", added, "parameter", "change")
    rate = None if grad is None else _rate(added, grad, before)
    if rate is not None and value is not None:
        gradient = context.notation.gradient(value)
        yield Equation(rf"\Delta {symbol} = {number(rate)} \cdot {gradient}", "up to rounding")


def _rate(added: Data, grad: Data, before: Data) -> float | None:
    """The factor of the gradient, if the change is a multiple of it up to rounding; else None."""
    grad, size = grad.to_dense(), float((grad.to_dense().double() ** 2).sum())
    if not size or added.is_complex() or not math.isfinite(size):
        return None
    rate = float((added.double() * grad.double()).sum()) / size
    terms, eps = before.abs().double() + added.abs(), rounding(added.dtype)
    return rate if compare(added, rate * grad.double(), terms, eps=eps).agrees else None


def _state(context: Context, each: ParameterUpdate) -> Iterator[Block]:
    """The optimizer's state before the step."""
    for name, held in each.state_before.items():
        symbol, label = rf"\text{{{escape(name)}}}", "optimizer state before the step"
        if isinstance(held, Snapshot):
            yield context.known(symbol, held, "parameter", label)
        elif isinstance(held, Data) and name != "step":
            yield context.tensor(symbol, held, "parameter", label)
    if not each.state_before:
        yield Paragraph(("The first step: the optimizer has no state yet; it starts at 0.",))


def _changed(context: Context, each: ParameterUpdate) -> Iterator[Block]:
    """Say so where the optimizer used another gradient than the one that backward left."""
    parameter = context.graph.parameters.get(each.name)
    if parameter is None or parameter.grad is None or not has_numbers(each.grad):
        return
    if context.statistics.are_twins(each.grad, parameter.grad):
        return
    before, after = context.statistics.norm(parameter.grad), context.statistics.norm(each.grad)
    ratio = f", {after / before:.4g} of it" if before else ""
    yield Paragraph(
        (f"The gradient was changed after backward: its norm was {before:.4g} and is now {after:.4g}{ratio}.",),
        "note",
    )
