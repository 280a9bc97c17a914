"""The value table of a document: every value with its gradient, and the sum behind each number of the small ones.

An element of a gradient is the sum that `why` finds. An element of a value depends on elements of the operands; where
the operation is linear in them, it is their sum, with the same factors.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, islice

import torch
from torch import Tensor as Data

from chainrule.derivation.backprop import Step
from chainrule.derivation.contributions import indices, row_of
from chainrule.derivation.why import Search, Term, element
from chainrule.document import Row, Source, Sum, Summand
from chainrule.graph.comparison import compare, rounding, unravel
from chainrule.graph.names import Index
from chainrule.numbers import number
from chainrule.report.context import Context

SMALL = 36  # elements of a tensor up to which every one of its numbers is explained
MOST = 3_000  # numbers that are explained in one document
CHOSEN = 40  # large gradients of which one number is explained
SEARCHED = 2**22  # elements of a gradient up to which one is
TERMS = 16  # of such a number that are listed one by one
WRITTEN = 1_024  # elements of an operand up to which they are listed as what a value depends on

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
    return (*islice(small, MOST), *islice(_largest(context, rows, search), CHOSEN))


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
            yield Sum(Source(row, "gradient", at), str(why).partition("\n")[0], summands)


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
    for step in context.derivation.steps:
        if step.kind != "forward" or len(context.results(step)) != 1:
            continue
        value = step.outputs[0]
        data = context.graph.values[value].data
        if data is None or data.numel() > SMALL or not data.is_floating_point() or value not in rows:
            continue
        for index in indices(data.shape):
            yield _value(context, step, index, data, rows)


def _value(context: Context, step: Step, index: Index, data: Data, rows: dict[int, int]) -> Sum:
    """The operands' elements that one element of a result depends on, as a sum where the operation is linear."""
    own = element(context.notation.plain(step.outputs[0]), index)
    of = Source(rows[step.outputs[0]], "value", index)
    result = number(data[index].item())
    if step.rule is None or step.op is None or not step.op.has_numbers:
        return Sum(of, f"{own} = {result}", ())
    names = {name: operand for name, item, operand in step.arguments if item is None}
    linear: list[Summand] = []
    depends: list[Summand] = []
    for argument, operand in names.items():
        if argument not in step.rule.wrt or operand not in rows:
            continue
        size = torch.Size(context.graph.values[operand].shape).numel()
        if size > WRITTEN:
            plain = context.notation.plain(operand)
            return Sum(of, f"{own} = {result}, which depends on {size:,} elements of {plain}", ())
        for at, local in row_of(step.rule, step.op, argument, index, data):
            summand = _element(context, step, argument, index, at, local, rows, names)
            depends.append(Summand(summand.value, summand.factors[:1], summand.sources[:1]))
            if argument in ("input", "self", "mat1", "bias"):
                linear.append(summand)
    total = sum(each.value for each in linear)
    terms, eps = sum(abs(each.value) for each in linear), rounding(data.dtype)
    if linear and compare(data[index].item(), total, terms, count=len(linear), eps=eps).agrees:
        symbols = " + ".join(" * ".join(name for name, _ in each.factors) for each in linear)
        numbers = " + ".join(" * ".join(number(v) for _, v in each.factors) for each in linear)
        return Sum(of, " = ".join(dict.fromkeys([own, symbols, numbers, result])), tuple(linear))
    on = ", ".join(f"{name} = {number(v)}" for each in depends for name, v in each.factors)
    return Sum(of, f"{own} = {result}, which depends on {on}" if on else f"{own} = {result}", tuple(depends))


def _element(
    context: Context,
    step: Step,
    argument: str,
    index: Index,
    at: Index,
    local: float,
    rows: dict[int, int],
    names: dict[str, int],
) -> Summand:
    """One operand's element times its local derivative; a derivative of exactly 1 is left out."""
    assert step.rule is not None
    assert step.op is not None
    plain, mine = context.notation.plain, step.op.arguments[argument][at].item()
    factors = [(element(plain(names[argument]), at), mine)]
    sources = [Source(rows[names[argument]], "value", at)]
    named = step.rule.wrt[argument].factor
    factor = named(step.op, index, at) if named is not None else None
    other = names.get(factor.argument or "") if factor is not None else None
    if factor is not None and other is not None and other in rows:
        factors.append((element(plain(other), factor.index), local))
        sources.append(Source(rows[other], "value", factor.index))
    elif local != 1:
        factors.append((f"d/d{plain(names[argument])}", local))
    return Summand(mine * local, tuple(factors), tuple(sources))
