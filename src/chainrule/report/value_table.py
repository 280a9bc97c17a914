"""The value table of a document: every value with its gradient, and the sum behind each number of the small ones.

An element of a gradient is the sum that `why` finds. An element of a value depends on elements of the operands; where
the operation is linear in them, it is their sum, with the same factors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import chain, islice

import torch
from torch import Tensor as Data

from chainrule.derivation.backprop import Step
from chainrule.derivation.contributions import indices
from chainrule.derivation.forward_values import WRITTEN, Forward, Named, is_short, rounding_of, spread, symbol
from chainrule.derivation.why import Search, Term, Why
from chainrule.document import Row, Source, Sum, Summand
from chainrule.graph.comparison import unravel
from chainrule.graph.names import Index, element
from chainrule.numbers import number
from chainrule.report.context import Context
from chainrule.rules.element import Element, TooManyError

SMALL = 36  # elements of a tensor up to which every one of its numbers is explained
MOST, MOST_TERMS = 3_000, 8_000  # numbers that are explained in one document, and terms of which they are made
CHOSEN = 40  # large gradients of which one number is explained
SEARCHED = 2**22  # elements of a gradient up to which one is
TERMS = 16  # of such a number that are listed one by one

# -- rows -------------------------------------------------------------------------------------------------------------


def row_numbers(context: Context) -> dict[int, int]:
    """The row of each value that has one: the leaves that the shown operations use, and the results of these."""
    rows: dict[int, int] = {}
    for step in context.derivation.steps:
        if step.kind == "forward":
            for value in (*(value for _, _, value in step.arguments), *context.results(step)):
                rows.setdefault(value, len(rows))
    return rows


def rows(context: Context) -> tuple[Row, ...]:
    """One row for each value, in execution order."""
    numbers, anchors = row_numbers(context), _anchors(context)
    made_by = {
        value: step for step in context.derivation.steps if step.kind == "forward" for value in context.results(step)
    }
    return tuple(_row(context, numbers, value, made_by.get(value), *anchors.get(value, ([], []))) for value in numbers)


def _anchors(context: Context) -> dict[int, tuple[list[str], list[str]]]:
    """For each value the anchors of its forward sections, and of those that work its gradient out."""
    found: dict[int, tuple[list[str], list[str]]] = {}
    for kind in ("forward", "backward"):
        steps = [step for step in context.derivation.steps if step.kind == kind]
        number = {step.index: place for place, step in enumerate(steps, 1)}
        for step in steps:
            place = number[context.repeated.shown_for(step).index]
            if kind == "forward":
                for value in step.outputs:
                    found.setdefault(value, ([], []))[0].append(f"forward-{place}")
            for contribution in step.contributions:
                if contribution.value is not None and contribution.gradient is not None:
                    item = "" if contribution.item is None else f"-{contribution.item}"
                    found.setdefault(contribution.value, ([], []))[1].append(
                        f"backward-{place}-{contribution.argument}{item}"
                    )
    return found


def _row(
    context: Context, numbers: dict[int, int], index: int, step: Step | None, forward: list[str], backward: list[str]
) -> Row:
    value, notation = context.graph.values[index], context.notation
    loss = any(index == b.loss for b in context.graph.accumulating)
    kind = "parameter" if value.kind == "parameter" else "data" if step is None else "loss" if loss else "operation"
    place = (context.place(step) if step is not None else None) or value.place
    return Row(
        index=numbers[index],
        kind=kind,  # type: ignore[arg-type]
        name=notation.plain(index),
        symbol=notation.symbol(index),
        gradient_symbol=notation.gradient(index),
        operation=context.operation_name(step) if step is not None else "",
        expression=place.expression if place else "",
        place=str(place) if place else "",
        module=_module(context, index, step),
        inputs=tuple(dict.fromkeys(numbers[used] for _, _, used in step.arguments)) if step is not None else (),
        value=context.pictured(context.value(index), value.data),
        gradient=context.arrived(index),
        forward=forward[0] if forward else None,
        backward=tuple(backward),
        verdict=context.row(value.node).verdict if value.node is not None else None,
        update=context.relative_updates.get(index),
    )


def _module(context: Context, index: int, step: Step | None) -> str:
    """The module that computed a value, or the module that a parameter or a buffer belongs to."""
    graph, value = context.graph, context.graph.values[index]
    owner = value.name.rpartition(".")[0]
    if step is None and value.kind == "parameter":
        return owner
    made_by = step or (None if value.operation is None else graph.operations[value.operation])
    computed = graph.calls[made_by.call].module if made_by is not None and made_by.call is not None else ""
    if step is None and not computed and any(module.path == owner for module in graph.modules):
        return owner
    return computed


# -- sums -------------------------------------------------------------------------------------------------------------


def sums(context: Context) -> tuple[Sum, ...]:
    """The sums behind all numbers of small tensors, in the order of the rows, then behind one number of large ones."""
    rows = row_numbers(context)
    search = Search(context.graph, context.derivation, context.notation)
    small = chain(_values(context, rows), _gradients(context, rows, search))
    return (*_few(islice(small, MOST)), *islice(_largest(context, rows, search), CHOSEN))


def _few(sums: Iterator[Sum]) -> Iterator[Sum]:
    """The first sums, which have so many terms together."""
    terms = 0
    for each in sums:
        yield each
        terms += len(each.summands)
        if terms >= MOST_TERMS:
            return


def _largest(context: Context, rows: dict[int, int], search: Search) -> Iterator[Sum]:
    """The largest element of each large gradient of a shown parameter, from the last layer, where backward begins."""
    shown = [
        parameter.value
        for name, parameter in context.graph.parameters.items()
        if parameter.value in rows and context.repeated.of_parameter(name) is None
    ]
    for value in reversed(shown):
        assert value is not None
        grad = context.graph.values[value].grad
        if grad is None or not SMALL < grad.numel() <= SEARCHED or not _is_finite(context, grad):
            continue
        if not search.has_numbers(value):
            continue
        index = unravel(int(grad.abs().argmax()), tuple(grad.shape))
        why = search.why(value, index)
        if not why.terms:  # its terms were not kept
            continue
        largest = sorted(why.terms, key=lambda term: -abs(term.value))
        summands = [_summand(term, rows) for term in largest[:TERMS]]
        rest = [_real(term.value) for term in largest[TERMS:]]
        if rest:
            summands.append(Summand(sum(rest), (), (), f"{len(rest)} smaller terms together"))
        text = f"{why.gradient} = {number(_real(why.total))}, the largest element of {why.gradient.partition('[')[0]}"
        yield Sum(Source(rows[value], "gradient", index), text, tuple(summands))


def _is_finite(context: Context, grad: Data) -> bool:
    """Whether a gradient is dense and real, and all of its elements are finite."""
    real = grad.layout == torch.strided and grad.is_floating_point()
    return real and not context.statistics.statistics(grad).not_finite


def _gradients(context: Context, rows: dict[int, int], search: Search) -> Iterator[Sum]:
    for index, row in rows.items():
        value = context.graph.values[index]
        if value.grad is None or value.grad.numel() > SMALL or value.grad.is_complex() or not search.has_numbers(index):
            continue
        for at in indices(value.shape):
            why = search.why(index, at)
            summands = tuple(_summand(term, rows) for term in why.terms)
            rest = _rest(why, str(value.dtype).removeprefix("torch."))
            yield Sum(Source(row, "gradient", at), str(why).partition("\n")[0], (*summands, *rest))


def _rest(why: Why, dtype: str) -> Iterator[Summand]:
    """What a gradient has beside its terms: the seed, the rounding to its type, or a change of it on the way."""
    if why.value is None or why.value != why.value:
        return
    if not why.uses:
        yield Summand(_real(why.value), (), (), "the seed of the backward pass" if why.value == why.total else "")
    elif why.sentence and why.terms:
        yield Summand(_real(why.value - why.total), (), (), why.sentence)
    elif why.is_rounded:
        yield Summand(_real(why.value - why.total), (), (), f"rounding to {dtype}")


def _summand(term: Term, rows: dict[int, int]) -> Summand:
    factors = tuple((factor.name, _real(factor.value)) for factor in term.factors)
    sources = tuple(
        Source(rows[value], "gradient" if gradient else "value", index)
        for factor in term.factors
        if factor.element is not None
        for value, index, gradient in [factor.element]
        if value in rows
    )
    reason = "; ".join(factor.reason for factor in term.factors if factor.reason)
    return Summand(_real(term.value), factors, sources, reason)


def _real(value: float | complex) -> float:
    return value.real if isinstance(value, complex) else float(value)


def _values(context: Context, rows: dict[int, int]) -> Iterator[Sum]:
    forward = Forward(context.graph, context.derivation, context.notation)
    for step in context.derivation.steps:
        for value in context.results(step) if step.kind == "forward" else ():
            data = context.graph.values[value].data
            if data is None or data.numel() > SMALL or value not in rows:
                continue
            if data.is_floating_point() and data.layout == torch.strided:
                for index in indices(data.shape):
                    yield _value(context, forward, step, value, index, rows)


def _value(context: Context, forward: Forward, step: Step, value: int, index: Index, rows: dict[int, int]) -> Sum:
    """How one element of a result was computed; without a formula, what it depends on."""
    own = element(context.notation.plain(value), index)
    of, result = Source(rows[value], "value", index), context.graph.values[value].data[index].item()  # type: ignore[index]
    try:
        found = forward.formula(value, index)
    except TooManyError:
        found = None
    if found is None:
        used = [(operand, at) for operand, at in forward.depends(value, index) if operand in rows]
        listed = (_known(context, operand, at) for operand, at in used[:TERMS])
        more = f" and {len(used) - TERMS} more elements" if len(used) > TERMS else ""
        depends = f"depends on {', '.join(listed)}{more}" if used else ""
        made_of = tuple(Source(rows[operand], "value", at) for operand, at in used)
        text = f"{own} = {number(result)}" + f", which {depends}" * bool(used)
        return Sum(of, text, (Summand(_real(result), (), made_of, depends),))
    name = forward.named(value)

    def sources(part: Element) -> tuple[Source, ...]:
        placed = (forward.operand(value, leaf) for leaf in part.leaves() if leaf.source)
        return tuple(dict.fromkeys(Source(rows[p[0]], "value", p[1]) for p in placed if p is not None and p[0] in rows))

    summands = [_summand_of(term, name, sources) for term in spread(found)]
    if len(summands) <= WRITTEN:
        zeros = [forward.zero_of(value, term) if term.value == 0 else "" for term in spread(found)]
        summands = [replace(each, reason=reason) for each, reason in zip(summands, zeros, strict=True)]
    summands.sort(key=lambda each: -abs(each.value) if len(summands) > WRITTEN else 0)
    rest = summands[TERMS:] if len(summands) > WRITTEN else []
    if rest:
        together = Summand(sum(each.value for each in rest), (), (), f"{len(rest)} smaller terms together")
        summands = [*summands[:TERMS], together]
    if lost := rounding_of(found, result):
        dtype = str(context.graph.values[value].dtype).removeprefix("torch.")
        summands.append(Summand(lost, (), (), f"rounding to {dtype}"))
    if is_short(found):
        return Sum(of, forward.text(value, index, found), tuple(summands))
    count = sum(1 for leaf in found.leaves() if leaf.source)
    return Sum(of, f"{own} = {number(result)}, computed from {count:,} elements", tuple(summands))


def _known(context: Context, value: int, index: Index) -> str:
    """An element with its number."""
    data, name = context.graph.values[value].data, element(context.notation.plain(value), index)
    return name if data is None else f"{name} = {number(data[index].item())}"


def _summand_of(term: Element, name: Named, sources: Callable[[Element], tuple[Source, ...]]) -> Summand:
    """A term of a formula: its factors where each is one number of the recording, else as a whole."""
    factors = [(part, sources(part)) for part in term.factors]
    if not all(len(found) == 1 for _, found in factors):
        factors = [(term, sources(term))]
    written = tuple((part.written(lambda leaf: symbol(leaf, name)), _real(part.value)) for part, _ in factors)
    return Summand(_real(term.value), written, tuple(each for _, found in factors for each in found))
