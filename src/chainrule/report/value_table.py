"""The value table of a document: every value with its gradient, and the sum behind each number of the small ones.

An element of a gradient is the sum that `why` finds. An element of a value depends on elements of the operands; where
the operation is linear in them, it is their sum, with the same factors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice

import torch
from torch import Tensor as Data

from chainrule.derivation.backprop import Step
from chainrule.derivation.forward_values import CHOOSING, WRITTEN, Forward, Named, is_short, rounding_of, spread, symbol
from chainrule.derivation.jacobian import indices, row_of
from chainrule.derivation.why import Search, Term, Why
from chainrule.document import Row, Source, Sum, Summand
from chainrule.graph.comparison import unravel
from chainrule.graph.names import Index, element
from chainrule.graph.snapshot import type_name
from chainrule.numbers import number, real_part
from chainrule.report.context import ELEMENTS, Context
from chainrule.rules.element import Element, TooManyError
from chainrule.rules.facts import facts_of

SMALL = ELEMENTS  # elements of a tensor up to which every one of its numbers is explained
WHOLLY = 36  # elements up to which it is also where that takes more than WRITTEN others; of a larger tensor one is
MOST = 1_500  # values, and as many gradients, that are explained in one document
MOST_TERMS = 8_000  # of which these are made, and as many of those
CHOSEN = 40  # large results, and large gradients, of which one number is explained
SEARCHED_FORWARD = 2**16  # elements of a large result up to which one is
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
    return tuple(
        _row(context, numbers, value, made_by.get(value), *anchors.get(value, ([], [], []))) for value in numbers
    )


def _anchors(context: Context) -> dict[int, tuple[list[str], list[str], list[str]]]:
    """For each value the anchors of its forward sections, of those that work its gradient out, and pass it on."""
    found: dict[int, tuple[list[str], list[str], list[str]]] = {}
    for kind in ("forward", "backward"):
        steps = [step for step in context.derivation.steps if step.kind == kind]
        number = {step.index: place for place, step in enumerate(steps, 1)}
        for step in steps:
            place = number[context.repeated.shown_for(step).index]
            for value in step.outputs:
                found.setdefault(value, ([], [], []))[0 if kind == "forward" else 2].append(f"{kind}-{place}")
            for contribution in step.contributions:
                if contribution.value is not None and contribution.gradient is not None:
                    item = "" if contribution.item is None else f"-{contribution.item}"
                    found.setdefault(contribution.value, ([], [], []))[1].append(
                        f"backward-{place}-{contribution.argument}{item}"
                    )
    return found


def _row(
    context: Context,
    numbers: dict[int, int],
    index: int,
    step: Step | None,
    forward: list[str],
    backward: list[str],
    onward: list[str],
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
        step=onward[0] if onward else None,
        updates=tuple(
            f"update-{number}-{place}"
            for number, update in enumerate(context.graph.updates, 1)
            for place, each in enumerate(update.parameters)
            if each.value == index
        )
        if kind == "parameter"
        else (),
        layout=step is not None and is_layout(context, step),
        taken=_taken(context, step) if step is not None else (),
    )


def is_layout(context: Context, step: Step) -> bool:
    """Whether a step only lays the numbers of its one operand out anew."""
    graph = context.graph
    if len(step.arguments) != 1 or len(step.outputs) != 1 or not step.operations:
        return False
    operand, result = graph.values[step.arguments[0][2]], graph.values[step.outputs[0]]
    names = [graph.operations[each].name for each in step.operations]
    return operand.dtype == result.dtype and all(facts_of(name).keeps_numbers for name in names)


def _taken(context: Context, step: Step) -> tuple[int, ...]:
    """For each element of a small result of a layout step the place of the operand's element that it is."""
    graph, rule, op = context.graph, step.rule, step.op
    if not is_layout(context, step) or rule is None or op is None or not op.has_numbers:
        return ()
    argument, item, operand = step.arguments[0]
    shape, whole = graph.values[operand].shape, graph.values[step.outputs[0]].shape
    if item is not None or argument not in rule.wrt or max(math.prod(whole), math.prod(shape)) > SMALL:
        return ()
    places = [[at for at, local in row_of(rule, op, argument, 0, index) if local == 1] for index in indices(whole)]
    if any(len(each) != 1 for each in places):
        return ()
    return tuple(sum(i * math.prod(shape[axis + 1 :]) for axis, i in enumerate(at)) for [at] in places)


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
    values, gradients = _values(context, rows), _gradients(context, rows, context.search)
    return (*_few(values), *_few(gradients), *islice(_largest(context, rows, context.search), CHOSEN))


def _few(sums: Iterator[Sum]) -> Iterator[Sum]:
    """The first of these sums."""
    terms = 0
    for each in islice(sums, MOST):
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
        rest = [real_part(term.value) for term in largest[TERMS:]]
        if rest:
            summands.append(Summand(sum(rest), (), (), f"{len(rest)} smaller terms together"))
        text = (
            f"{why.gradient} = {number(real_part(why.total))}, the largest element of {why.gradient.partition('[')[0]}"
        )
        yield Sum(Source(rows[value], "gradient", index), text, tuple(summands))


def _is_finite(context: Context, grad: Data) -> bool:
    """Whether a gradient is dense and real, and all of its elements are finite."""
    real = grad.layout == torch.strided and grad.is_floating_point()
    return real and not context.statistics.statistics(grad).not_finite


def _gradients(context: Context, rows: dict[int, int], search: Search) -> Iterator[Sum]:
    arriving: dict[int, int] = {}  # elements of the largest result that a value went into
    for step in context.derivation.steps:
        sizes = [math.prod(context.graph.values[each].shape) for each in step.outputs]
        for _, _, operand in step.arguments if step.kind == "forward" else ():
            arriving[operand] = max(arriving.get(operand, 0), *sizes, 0)
    for index, row in rows.items():
        value = context.graph.values[index]
        if math.prod(value.shape) > WHOLLY and arriving.get(index, 0) > SMALL:
            continue  # the numbers that it is the sum of are not on the page
        if value.grad is None or value.grad.numel() > SMALL or value.grad.is_complex() or not search.has_numbers(index):
            continue
        for at in indices(value.shape):
            why = search.why(index, at)
            summands = tuple(_summand(term, rows) for term in why.terms)
            rest = _rest(why, type_name(value.dtype))
            yield Sum(Source(row, "gradient", at), str(why).partition("\n")[0], (*summands, *rest))
            if value.grad.numel() > WHOLLY and len(summands) > WRITTEN:
                break


def _rest(why: Why, dtype: str) -> Iterator[Summand]:
    """What a gradient has beside its terms: the seed, the rounding to its type, or a change of it on the way."""
    if why.value is None or why.value != why.value:
        return
    if not why.uses:
        yield Summand(real_part(why.value), (), (), "the seed of the backward pass" if why.value == why.total else "")
    elif why.sentence and why.terms:
        yield Summand(real_part(why.value - why.total), (), (), why.sentence)
    elif why.is_rounded:
        yield Summand(real_part(why.value - why.total), (), (), f"rounding to {dtype}")


def _summand(term: Term, rows: dict[int, int]) -> Summand:
    factors = tuple((factor.name, real_part(factor.value)) for factor in term.factors)
    sources = tuple(
        Source(rows[value], "gradient" if gradient else "value", index)
        for factor in term.factors
        if factor.element is not None
        for value, index, gradient in [factor.element]
        if value in rows
    )
    reason = "; ".join(factor.reason for factor in term.factors if factor.reason)
    return Summand(real_part(term.value), factors, sources, reason)


def _values(context: Context, rows: dict[int, int]) -> Iterator[Sum]:
    forward = context.forward
    chosen = iter(range(CHOSEN))
    for step in context.derivation.steps:
        for value in context.results(step) if step.kind == "forward" else ():
            data = context.graph.values[value].data
            if data is None or value not in rows or is_layout(context, step):
                continue
            if data.is_floating_point() and data.layout == torch.strided:
                if (
                    SMALL < data.numel() <= SEARCHED_FORWARD
                    and _is_finite(context, data)
                    and next(chosen, None) is not None
                ):
                    index = unravel(int(data.abs().argmax()), tuple(data.shape))
                    found = _value(context, forward, step, value, index, rows)
                    if any(summand.factors for summand in found.summands):
                        yield found
                for index in indices(data.shape) if data.numel() <= SMALL else ():
                    yield (found := _value(context, forward, step, value, index, rows))
                    if data.numel() > WHOLLY and len(set(_sources(found))) > WRITTEN:
                        break


def _sources(found: Sum) -> Iterator[Source]:
    for summand in found.summands:
        yield from summand.sources


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
        return Sum(of, text, (Summand(real_part(result), (), made_of, depends),))
    name, values = forward.named(value), context.graph.values

    def sources(part: Element) -> dict[Source, float | None]:
        """The elements that a part is made of; those of a large tensor with their numbers."""
        made_of: dict[Source, float | None] = {}
        for leaf in part.leaves():
            at = forward.operand(value, leaf) if leaf.source else None
            if at is not None and at[0] in rows:
                large = math.prod(values[at[0]].shape) > SMALL
                made_of[Source(rows[at[0]], "value", at[1])] = real_part(leaf.value) if large else None
        return made_of

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
        dtype = type_name(context.graph.values[value].dtype)
        summands.append(Summand(lost, (), (), f"rounding to {dtype}"))
    if is_short(found):
        chosen = [leaf for leaf in found.leaves() if leaf.source and leaf.value == found.value]
        chosen = chosen if found.text.startswith(CHOOSING) else []
        return Sum(of, forward.text(value, index, found), tuple(summands), tuple(s for c in chosen for s in sources(c)))
    count = sum(1 for leaf in found.leaves() if leaf.source)
    return Sum(of, f"{own} = {number(result)}, computed from {count:,} elements", tuple(summands))


def _known(context: Context, value: int, index: Index) -> str:
    """An element with its number."""
    data, name = context.graph.values[value].data, element(context.notation.plain(value), index)
    return name if data is None else f"{name} = {number(data[index].item())}"


def _summand_of(term: Element, name: Named, sources: Callable[[Element], dict[Source, float | None]]) -> Summand:
    """A term of a formula: its factors where each is one number of the recording, else as a whole."""
    factors = [(part, sources(part)) for part in term.factors]
    if not all(len(found) == 1 for _, found in factors):
        factors = [(term, sources(term))]
    written = tuple((part.written(lambda leaf: symbol(leaf, name)), real_part(part.value)) for part, _ in factors)
    known = [number for _, found in factors for number in found.values() if len(found) > 1 and number is not None]
    made_of = tuple(each for _, found in factors for each in found)
    return Summand(real_part(term.value), written, made_of, numbers=tuple(known) if len(known) == len(made_of) else ())
