"""Why each number of a small tensor is what it is: what a reader sees who points at it.

An element of a gradient is the sum that `why` finds. An element of a value is made of the elements of its operands that
it depends on; where the operation is linear in them, it is their sum, with the same factors.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, islice

import torch
from torch import Tensor as Data

from chainrule.derivation.backprop import Step
from chainrule.derivation.why import Search, Term
from chainrule.document import Source, Sum, Summand
from chainrule.graph.comparison import compare, rounding, unravel
from chainrule.numbers import number
from chainrule.report.context import Context, element, indices
from chainrule.report.mirror import numbered
from chainrule.rules import Applied, Rule, broadcast_index

SMALL = 36  # elements of a tensor up to which every one of its numbers is explained
MOST = 3_000  # numbers that are explained in one document
CHOSEN = 40  # large gradients of which one number is explained
SEARCHED = 2**22  # elements of a gradient up to which one is
TERMS = 16  # of such a number that are told one by one
WRITTEN = 1_024  # elements of an operand up to which a value is told as made of them


def sums(context: Context) -> tuple[Sum, ...]:
    """The sums behind the numbers of all small tensors of the step, in the order of the rows; then of a few large ones.

    Of a large gradient the element that is largest is explained, if it is not told for another like it.
    """
    rows = numbered(context)
    search = Search(context.graph, context.derivation, context.notation)
    small = chain(_values(context, rows), _gradients(context, rows, search))
    return (*islice(small, MOST), *islice(_largest(context, rows, search), CHOSEN))


def _largest(context: Context, rows: dict[int, int], search: Search) -> Iterator[Sum]:
    """The largest element of each large gradient of a parameter, last layers first, where gradients begin."""
    told = [
        parameter.value
        for name, parameter in context.graph.parameters.items()
        if parameter.value in rows and context.folding.parameter_fold(name) is None
    ]
    for value in reversed(told):
        assert value is not None
        grad = context.graph.values[value].grad
        if grad is None or not SMALL < grad.numel() <= SEARCHED or not _plain(context, grad):
            continue
        if not search.has_numbers(value):
            continue
        index = unravel(int(grad.abs().argmax()), tuple(grad.shape))
        why = search.why(value, index)
        if not why.terms:  # what it is made of was not kept
            continue
        largest = sorted(why.terms, key=lambda term: -abs(term.value))
        summands = [_summand(term, rows) for term in largest[:TERMS]]
        rest = [_real(term.value) for term in largest[TERMS:]]
        if rest:
            summands.append(Summand(sum(rest), (), (), f"{len(rest)} smaller terms together"))
        text = f"{why.gradient} = {number(_real(why.total))}, the largest element of {why.gradient.partition('[')[0]}"
        yield Sum(Source(rows[value], "gradient", index), text, tuple(summands))


def _plain(context: Context, grad: Data) -> bool:
    """Whether the largest element is a finite real number."""
    real = grad.layout == torch.strided and grad.is_floating_point()
    return real and not context.measures.statistics(grad).not_finite


def _gradients(context: Context, rows: dict[int, int], search: Search) -> Iterator[Sum]:
    for value, row in rows.items():
        told = context.graph.values[value]
        if told.grad is None or told.grad.numel() > SMALL or told.grad.is_complex() or not search.has_numbers(value):
            continue
        for index in indices(told.shape):
            why = search.why(value, index)
            summands = tuple(_summand(term, rows) for term in why.terms)
            yield Sum(Source(row, "gradient", index), str(why).partition("\n")[0], summands)


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
            yield _made_of(context, step, value, index, data, rows)


def _made_of(context: Context, step: Step, value: int, index: tuple[int, ...], data: Data, rows: dict[int, int]) -> Sum:
    """The operands' elements that one element of a result depends on, as a sum where that is what it is."""
    own = element(context.notation.plain(value), index)
    of = Source(rows[value], "value", index)
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
            return Sum(of, f"{own} = {result}, made of {size:,} numbers of {context.notation.plain(operand)}", ())
        bias = argument == "bias"
        for at, local in _row(step.rule, step.op, argument, index, data):
            summand = _element(context, step, argument, operand, index, at, local, rows, names)
            depends.append(Summand(summand.value, summand.factors[:1], summand.sources[:1]))
            if argument in ("input", "self", "mat1") or bias:
                linear.append(summand)
    total = sum(each.value for each in linear)
    terms, eps = sum(abs(each.value) for each in linear), rounding(data.dtype)
    if linear and compare(data[index].item(), total, terms, count=len(linear), eps=eps).agrees:
        symbols = " + ".join(" * ".join(name for name, _ in each.factors) for each in linear)
        numbers = " + ".join(" * ".join(number(v) for _, v in each.factors) for each in linear)
        return Sum(of, " = ".join(dict.fromkeys([own, symbols, numbers, result])), tuple(linear))
    on = ", ".join(f"{name} = {number(v)}" for each in depends for name, v in each.factors)
    return Sum(of, f"{own} = {result}, made of {on}" if on else f"{own} = {result}", tuple(depends))


def _row(
    rule: Rule, op: Applied, argument: str, index: tuple[int, ...], data: Data
) -> Iterator[tuple[tuple[int, ...], float]]:
    """The entries of one row of the Jacobian that structure does not forbid: our VJP of one basis vector."""
    basis = torch.zeros_like(data)
    basis[index] = 1
    operand = op.arguments[argument]
    if not isinstance(operand, Data) or not operand.is_floating_point():
        return
    gradient = rule.gradient(op, (basis,) + (None,) * (rule.outputs - 1), argument)
    if gradient is None or gradient.shape != operand.shape:
        if gradient is not None and rule.structure == "elementwise":
            at = broadcast_index(index, tuple(operand.shape))
            yield at, gradient[index].item()
        return
    factor = rule.wrt[argument].factor
    for at in indices(operand.shape):
        local = gradient[at].item()
        allowed = factor is not None and (
            at == index if rule.structure == "elementwise" else factor(op, index, at) is not None
        )
        if local or allowed:
            yield at, local


def _element(
    context: Context,
    step: Step,
    argument: str,
    operand: int,
    index: tuple[int, ...],
    at: tuple[int, ...],
    local: float,
    rows: dict[int, int],
    names: dict[str, int],
) -> Summand:
    """One operand's element times its local derivative; a derivative of exactly 1 is left out."""
    assert step.rule is not None
    assert step.op is not None
    mine = step.op.arguments[argument][at].item()
    factors = [(element(context.notation.plain(operand), at), mine)]
    sources = [Source(rows[operand], "value", at)]
    named = step.rule.wrt[argument].factor
    factor = named(step.op, index, at) if named is not None else None
    other = names.get(factor.argument or "") if factor is not None else None
    if factor is not None and other is not None and other in rows:
        factors.append((element(context.notation.plain(other), factor.index), local))
        sources.append(Source(rows[other], "value", factor.index))
    elif local != 1:
        factors.append((f"d/d{context.notation.plain(operand)}", local))
    return Summand(mine * local, tuple(factors), tuple(sources))
