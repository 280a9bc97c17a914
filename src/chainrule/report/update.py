"""After the backward pass: the gradients in `.grad`, clipped or not, and the update of the parameters."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from string import Template

import torch
from torch import Tensor as Data

from chainrule.derivation.jacobian import indices
from chainrule.document import Block, Code, Equation, Math, Paragraph, Section, Span, Table, Text, Verdict
from chainrule.graph.comparison import compare, dense, rounding
from chainrule.graph.graph import Backward
from chainrule.graph.names import element, escape
from chainrule.graph.snapshot import Parameter, ParameterUpdate, Snapshot, Update, has_numbers
from chainrule.numbers import number
from chainrule.report import block_tables, digits
from chainrule.report.context import PUT_IN, Context, group, matrix, shape_text
from chainrule.report.verdicts import UNKEPT, of_comparison
from chainrule.rules.optimizers import SYMBOLS, Term, hyperparameters, terms, without_terms
from chainrule.verification.update_check import by_hooks, compare_update

LISTED = PUT_IN  # elements of a parameter whose terms are a table
ACROSS = 6  # elements side by side in such a table
HOW_CHECKED = "Tolerance: two last places of the parameter, 8 roundings of its step, more if its terms cancel."
BETAS = {"beta1": "betas[0]", "beta2": "betas[1]"}


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
            rows.append(((Code(name),), (f"None: {why}",), ("",), ("",)))
            continue
        known = context.statistics.of(parameter.gradient)
        norm = "not kept" if known is None else f"{math.nan if known.not_finite else known.norm:.4g}"
        rows.append(((Code(name),), (shape_text(parameter.shape),), (norm,), (context.held_before(name),)))
    yield Table(("parameter", "gradient", "norm", "before backward"), tuple(rows))
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
         "accumulates into it: a second pass over the same batch would leave twice the gradient, and the optimizer "
         "would use that. For ", Math(symbol), " it would be"),
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
    """One `optimizer.step()`: one parameter in words and formulas, and the terms of each by the same formulas."""
    title: tuple[Span, ...] = (f"Update: {step.optimizer}",)
    seen: dict[object, str] = {}
    inner = tuple(
        _parameter(context, step, each, f"update-{number}-{place}", seen)
        for place, each in enumerate(step.parameters)
        if context.repeated.of_parameter(each.name) is None
    )
    how = (Paragraph((HOW_CHECKED,)),) if number == 1 and seen else ()
    return Section(title, f"update-{number}", "update", (*_events(context, step), *how), inner)


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


def _parameter(context: Context, step: Update, each: ParameterUpdate, anchor: str, seen: dict[object, str]) -> Section:
    """The update of one parameter. `seen` has, by formulas, the parameter for which they are worked out."""
    name = each.name if each.value is None else context.notation.plain(each.value)
    title: tuple[Span, ...] = (name,) if name == each.name else (f"{name} (", Code(each.name), ")")
    worked_out = terms(each, step.optimizer) if each.grad is not None else None
    blocks: Iterable[Block]
    if worked_out is None:
        blocks = _without_terms(context, step, each)
    else:
        like = seen.setdefault(tuple((term.equation, term.numbers, term.meaning) for term in worked_out), name)
        lines = _terms(context, each, worked_out) if like == name else _values(context, each, worked_out)
        title = title if like == name else (*title, f", by the formulas of {like}")
        text: Text = ("our formula against the parameter after ", Code("optimizer.step()")) if like == name else ()
        new = _data(worked_out[-1])
        blocks = (*_changed(context, each), *lines, _verdict(new, each, step, text))
    return Section(title, anchor, "update", (*blocks, *block_tables.updates(context, step, each.name)))


def _verdict(new: Data, each: ParameterUpdate, step: Update, text: Text) -> Verdict:
    if not each.is_whole:
        return UNKEPT
    found, undecided = compare_update(new, each, step.optimizer)
    if found.agrees and undecided:
        return Verdict("not checked", (undecided,))
    return of_comparison(found, (*text, by_hooks(step)) if text and not found.agrees else text)


def _symbol(context: Context, each: ParameterUpdate) -> str:
    return rf"\text{{{escape(each.name)}}}" if each.value is None else context.notation.symbol(each.value)


def _without_terms(context: Context, step: Update, each: ParameterUpdate) -> Iterator[Block]:
    symbol = _symbol(context, each)
    yield context.known(symbol, each.start, "parameter", "before")
    if each.grad is None:
        yield Paragraph(("No gradient: the optimizer skips this parameter.",), "note")
        return
    yield from _changed(context, each)
    yield context.known(rf"\frac{{\partial J}}{{\partial {symbol}}}", each.gradient, "gradient", "gradient")
    why = without_terms(each, step.optimizer)
    yield Paragraph((f"{why[0].upper()}{why[1:]}: before, after and their difference.",), "note")
    yield context.tensor(rf"{symbol}_{{new}}", each.after, "parameter", "after")
    known = each if each.is_whole else each.without_numbers()
    yield context.passing(rf"\Delta {symbol}", dense(known.after) - dense(known.before), "parameter", "difference")


def _fill(context: Context, each: ParameterUpdate) -> dict[str, str]:
    """What stands for the parameter and its gradient in the terms."""
    symbol = _symbol(context, each)
    return {"theta": group(symbol), "g": rf"{{\frac{{\partial J}}{{\partial {symbol}}}}}"}


def _terms(context: Context, each: ParameterUpdate, worked_out: tuple[Term, ...]) -> Iterator[Block]:
    """The terms one by one: what each is, its formula, the numbers put in, and its value."""
    yield from _settings(each, worked_out)
    yield from _state(context, each, any("t-1" in term.equation for term in worked_out))
    fill, decimals = _fill(context, each), _decimals(each, worked_out)
    grad = each.grad
    assert grad is not None
    put_in = {"theta": matrix(each.before, decimals), "g": matrix(grad, decimals)}
    if put_in["theta"] is None:  # else both stand in the formulas
        yield context.known(_symbol(context, each), each.start, "parameter", "before")
        yield context.known(fill["g"][1:-1], each.gradient, "gradient", "gradient")
    numbers = {name: known or fill[name] for name, known in put_in.items()}
    for term in worked_out:
        left = Template(term.symbol).safe_substitute(fill)
        yield Paragraph((f"{_capital(term.meaning)}:",))
        equation, arrow = (
            Template(term.equation).safe_substitute(fill),
            " = " if " = " in term.numbers else r" \leftarrow ",
        )
        yield Equation(equation)
        left_side, _, right_side = term.numbers.partition(arrow)
        right = Template(right_side).safe_substitute(numbers)
        if right != equation.partition(arrow)[2]:  # numbers stand in it
            yield Equation(f"{Template(left_side).safe_substitute(fill)} = {right}", "numbers")
        is_last = term is worked_out[-1]
        yield replace(context.passing(left, _data(term), "parameter"), decimals=4 if is_last else decimals)


def _values(context: Context, each: ParameterUpdate, worked_out: tuple[Term, ...]) -> Iterator[Block]:
    """The values of all terms, by the formulas of another parameter."""
    fill, grad = _fill(context, each), each.grad
    assert grad is not None
    lines: list[tuple[str, Snapshot | Data | None, str]] = [
        (fill["theta"], each.start, "before"), (fill["g"], each.gradient, ""),
        *((name, held, "before") for name, held in _held(each)),
        *((Template(term.symbol).safe_substitute(fill), _data(term), "") for term in worked_out[:-1]),
        (fill["theta"], _data(worked_out[-1]), "after"),
    ]  # fmt: skip
    if not each.is_whole or each.before.numel() > LISTED or each.before.is_complex():
        for symbol, known, label in lines:
            if isinstance(known, Data):
                yield context.passing(symbol, known, "parameter", label)
            else:
                yield context.known(symbol, known, "parameter", label)
        return
    decimals = _decimals(each, worked_out)
    name = context.notation.plain(each.value) if each.value is not None else each.name
    at = list(indices(each.before.shape))
    for first in range(0, len(at), ACROSS):
        part = slice(first, first + ACROSS)
        rows = []
        for place, (symbol, known, label) in enumerate(lines):
            data = known.data if isinstance(known, Snapshot) else known
            assert data is not None
            row = data.expand(each.before.shape).reshape(-1)[part].tolist()
            written = (number(value, 4 if place == len(lines) - 1 else decimals) for value in row)
            said = (Math(symbol), f" {label}") if label else (Math(symbol),)
            rows.append((said, *((cell,) for cell in written)))
        yield Table(("", *(element(name, index) for index in at[part])), tuple(rows))


def _decimals(each: ParameterUpdate, worked_out: tuple[Term, ...]) -> int:
    """How many the numbers of an update need, so that what is printed gives the printed parameter."""
    step, new = worked_out[-2 if len(worked_out) > 1 else -1], worked_out[-1]
    if not each.is_whole or each.before.numel() > LISTED or each.before.is_complex():
        return digits.USUAL
    needed = [digits.USUAL]
    for value in _data(step).abs().reshape(-1).tolist() if step is not new else ():
        if 1e-4 <= value < 1:  # three digits, as a small number has in any case
            needed.append(2 - math.floor(math.log10(value)))
    return min(max(needed), digits.MOST)


def _data(term: Term) -> Data:
    return term.value if isinstance(term.value, Data) else torch.tensor(term.value, dtype=torch.float32)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _settings(each: ParameterUpdate, worked_out: tuple[Term, ...]) -> Iterator[Block]:
    """The hyperparameters in the formulas: symbol, number, and name in the optimizer."""
    formulas = " ".join(term.equation for term in worked_out)
    known = hyperparameters(each.options, each.state_before)
    names = {"lr": "learning rate ", "t": "number of this step"}
    found: list[Span] = []
    for name, symbol in SYMBOLS.items():
        used = f"^{{{symbol}}}" in formulas if name in ("t", "s") else symbol in formulas
        if used and type(known.get(name)) in (int, float):
            found += [", " if found else "With ", Math(symbol), f" = {number(known[name])} ({names.get(name, '')}"]
            found += [")"] if name in ("t", "s") else [Code(BETAS.get(name, name)), ")"]
    if found:
        yield Paragraph((*found, ":"))


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


def _held(each: ParameterUpdate) -> Iterator[tuple[str, Snapshot | Data]]:
    """The optimizer's state before the step."""
    for name, held in each.state_before.items():
        if isinstance(held, Snapshot) or (isinstance(held, Data) and name != "step"):
            yield rf"\text{{{escape(name)}}}", held


def _state(context: Context, each: ParameterUpdate, used: bool) -> Iterator[Block]:
    """The state that the formulas read."""
    for symbol, held in _held(each):
        known = held if isinstance(held, Snapshot) else Snapshot.of(held)
        yield context.known(symbol, known, "parameter", "optimizer state before the step")
    if used and not each.state_before:
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
