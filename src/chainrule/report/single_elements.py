"""Single elements in place of what is too large to write out, and which elements a maximum took."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor as Data

from chainrule.derivation.backprop import Contribution, Step
from chainrule.derivation.forward_values import CHOOSING, WRITTEN, is_short
from chainrule.derivation.jacobian import indices
from chainrule.derivation.why import Term, Why
from chainrule.diagnostics.finding import listed
from chainrule.document import Block, Code, Paragraph, Table
from chainrule.graph.comparison import unravel
from chainrule.graph.names import element
from chainrule.graph.snapshot import has_numbers
from chainrule.numbers import enough, number, rounded
from chainrule.report.context import Context
from chainrule.rules import Applied, Rule
from chainrule.rules.element import TooManyError

TERMS = 6  # of the sum of one element that are written out
TRIED = 16  # elements of which one with few terms is looked for
ENTRIES = 2**16  # of a Jacobian, up to which one of its elements is worked out


def winners(context: Context, step: Step) -> Iterator[Block]:
    """Which element each of a small result is, where it is the largest or smallest of several, and ties."""
    rule, rows, tied = step.rule, [], []
    if rule is None or rule.structure == "elementwise" or rule.kink is None or next(context.turns, None) is None:
        return
    for value in context.results(step):
        data = context.graph.values[value].data
        if not has_numbers(data) or not data.is_floating_point() or not 0 < data.numel() <= WRITTEN:
            continue
        for at in indices(data.shape):
            try:
                found = context.forward.formula(value, at)
            except TooManyError:
                return
            if found is None or not found.text.startswith(CHOOSING):
                return
            name = context.forward.named(value)
            same = [name(leaf) for leaf in found.leaves() if leaf.source and leaf.value == found.value]
            own = element(context.notation.plain(value), at)
            rows.append(((own,), (number(data[at].item()),), (", ".join(same),)))
            tied += [own] * (len(same) > 1)
    if rows:
        yield Table(("element", "number", "taken from"), tuple(rows))
    if tied:
        said = f"Tied, so that the derivative is undefined: {listed(tied, TERMS)}; {rule.kink.choice}."
        yield Paragraph((said,), "note")


def of_result(context: Context, step: Step) -> Iterator[Block]:
    """The calculation of the first element of a result that is a short sum."""
    value = step.outputs[0]
    data = context.graph.values[value].data
    if step.rule is None or step.rule.structure == "elementwise" or not has_numbers(data) or not data.numel():
        return
    if next(context.turns, None) is None:
        return
    index = unravel(0, tuple(data.shape))
    try:
        found = context.forward.formula(value, index)
    except TooManyError:
        return
    if found is not None and is_short(found) and len(found.terms) > 1 and not any(found.named()):
        yield Paragraph(("One element: ", Code(context.forward.text(value, index, found)), "."))


def one(context: Context, contribution: Contribution, entries: int) -> Iterator[Block]:
    """The sum behind one element of a gradient whose Jacobian has so many entries: its terms, and their numbers."""
    value, gradient = contribution.value, contribution.gradient
    if value is None or entries > ENTRIES or not has_numbers(gradient) or not context.is_whole(contribution):
        return
    if gradient.is_complex() or next(context.turns, None) is None or not context.search.has_numbers(value):
        return
    best: tuple[Why, list[Term]] | None = None
    for place in gradient.reshape(-1).nonzero().reshape(-1)[:TRIED].tolist():
        why = context.search.why(value, unravel(place, tuple(gradient.shape)))
        terms = [term for term in why.terms if term.value]
        if why.sentence or why.is_rounded or not all(term.factors for term in terms):
            continue
        if best is None or len(terms) < len(best[1]):
            best = why, terms
        if len(terms) <= TERMS:
            break
    if best is not None:
        yield Paragraph(("One element: ", Code(_written(*best)), "."))


def lost(context: Context, contribution: Contribution, rule: Rule, op: Applied) -> Iterator[Block]:
    """How many elements of an operand a maximum did not take, and what it took in place of the first of them."""
    value = contribution.value
    if value is None or rule.kink is None or rule.structure == "elementwise" or rule.outputs > 1:
        return
    if contribution.item is not None or not isinstance(op.out, Data) or not 0 < op.out.numel() <= WRITTEN:
        return
    taken = rule.gradient(op, (torch.ones_like(op.out),), contribution.argument)
    if not isinstance(taken, Data) or tuple(taken.shape) != tuple(context.graph.values[value].shape):
        return
    places = (taken == 0).nonzero().tolist()
    if places and next(context.turns, None) is not None and (won := context.search.not_taken(value, tuple(places[0]))):
        get = f"{len(places)} of the {taken.numel()} elements of {context.notation.plain(value)} get 0"
        yield Paragraph((f"{get}, as no maximum took them: first, {won}.",))


def _written(why: Why, terms: list[Term]) -> str:
    """The largest terms of a sum, what the others add up to, and how many are 0."""
    largest = sorted(terms, key=lambda term: -abs(term.value))[:TERMS]
    shown = [term for term in terms if term in largest]
    total = sum(term.value for term in terms)
    rest = total - sum(term.value for term in shown)
    factors = [[factor.value for factor in term.factors if factor.name != "1"] for term in shown]
    decimals = enough(lambda n: sum(math.prod(rounded(x, n) for x in each) for each in factors) + rest, total)
    symbols = [" * ".join(factor.name for factor in term.factors if factor.name != "1") for term in shown]
    numbers = [" * ".join(number(x, decimals) for x in each) for each in factors]
    if len(terms) > len(shown):
        symbols.append(f"{len(terms) - len(shown)} more")
        numbers.append(number(rest, decimals))
    zeros = len(why.terms) - len(terms)
    ending = f" ({zeros} more terms are 0)" if zeros > 1 else " (1 more term is 0)" if zeros else ""
    sides = dict.fromkeys([why.gradient, " + ".join(symbols), " + ".join(numbers), number(total)])
    return " = ".join(sides) + ending
