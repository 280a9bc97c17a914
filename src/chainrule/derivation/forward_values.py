"""How one element of a result was computed: its rule's formula, with the elements of the operands in it.

A formula that does not give the recorded number, up to rounding, is not shown.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import cycle
from typing import Any

import torch
from torch import Tensor

from chainrule.derivation.backprop import Derivation, Step
from chainrule.derivation.jacobian import indices, row_of
from chainrule.graph.comparison import compare, rounding
from chainrule.graph.graph import Graph
from chainrule.graph.names import Index, Notation, element
from chainrule.graph.snapshot import type_name
from chainrule.numbers import enough, number, rounded
from chainrule.rules import Applied, Factor, Rule, Stage, latex_of
from chainrule.rules.element import MOST, Element, Elements, TooManyError, call, let, of, total
from chainrule.rules.expression import Expression

Named = Callable[[Element], str]

WORKED_OUT = 3  # parts with a name of their own that are worked out beside the formula
CHOOSING = ("max(", "min(", "median(", "mode(", "smallest")  # functions that give one of their numbers
WRITTEN = 64  # numbers up to which a formula is written out


class Forward:
    """The formulas of the elements of one recording's results."""

    def __init__(self, graph: Graph, derivation: Derivation, notation: Notation) -> None:
        self.graph = graph
        self.notation = notation
        self._made: dict[int, tuple[Step, int]] = {}
        self._found: dict[tuple[int, Index], Element | None] = {}
        self._zeros: dict[tuple[int, Index], str] = {}
        for step in derivation.steps:
            alone = len(step.operations) == 1
            outputs = graph.operations[step.operations[0]].outputs if alone else step.outputs
            if step.kind == "forward":
                self._made |= {value: (step, slot) for slot, value in enumerate(outputs) if value is not None}

    def step(self, value: int) -> Step | None:
        """The step that computed a value."""
        return self._made[value][0] if value in self._made else None

    def formula(self, value: int, index: Index) -> Element | None:
        """The formula of one element; None where it is data, or where none is known.

        Raises TooManyError where it would be made of more elements than are listed.
        """
        if (value, index) not in self._found:
            self._found[value, index] = self._formula(value, index)
        return self._found[value, index]

    def _formula(self, value: int, index: Index) -> Element | None:
        step, slot = self._made.get(value, (None, 0))
        if step is None or step.rule is None or step.op is None or not step.op.has_numbers:
            return None
        out = step.op.outs[slot] if slot < len(step.op.outs) else None
        if not isinstance(out, Tensor) or out.layout != torch.strided or out.shape != self.graph.values[value].shape:
            return None
        try:
            return formula(step.rule, step.op, slot, index)
        except (ArithmeticError, AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError):
            return None  # it is only an explanation: without it the page says what the number depends on

    def depends(self, value: int, index: Index) -> Iterator[tuple[int, Index]]:
        """The elements of the operands that one element of a result depends on, where the rule can tell."""
        step, slot = self._made[value]
        if step.rule is None or step.op is None or not step.op.has_numbers:
            return
        for argument, item, operand in step.arguments:
            given = step.op.arguments.get(argument)
            if not isinstance(given, Tensor) or not (given.is_floating_point() or given.is_complex()):
                continue
            if argument in step.rule.wrt and item is None and given.numel() <= MOST:
                yield from ((operand, at) for at, _ in row_of(step.rule, step.op, argument, slot, index))

    def operand(self, value: int, leaf: Element) -> tuple[int, Index] | None:
        """The value, and the index in it, of an operand's element in the formula of another value's element."""
        assert leaf.source is not None
        name, item, index = leaf.source
        step, _ = self._made[value]
        operand = next((each for argument, place, each in step.arguments if (argument, place) == (name, item)), None)
        if operand is None or self.graph.values[operand].shape != _shape(step, leaf):
            return None
        return operand, index

    def why_zero(self, value: int, index: Index, depth: int = 8) -> str:
        """Why an element of a value is 0, in a few words; "" where that is not known."""
        if (value, index) not in self._zeros:
            self._zeros[value, index] = self._why_zero(value, index, depth)
        return self._zeros[value, index]

    def _why_zero(self, value: int, index: Index, depth: int) -> str:
        step = self.step(value)
        if step is None:
            return self._given(value)
        try:
            found = self.formula(value, index) if depth else None
        except TooManyError:
            found = None
        if found is None or step.rule is None or step.op is None:
            return ""
        return self._zero_of(value, found, step.rule, step.op, depth)

    def _given(self, value: int) -> str:
        """Where a number comes from that no step computed."""
        known = self.graph.values[value]
        if any(parameter.value == value for parameter in self.graph.parameters.values()):
            return "the parameter is 0 there"
        if known.operation is None:
            return "it is 0 in the data"
        call = self.graph.operations[known.operation].call
        by = self.graph.operations[known.operation].name if call is None else self.graph.calls[call].name
        return "dropout dropped it" if "dropout" in by else f"{by} gave 0"

    def winner(self, value: int, operand: int, index: Index) -> str:
        """Which element a value has in place of this one of an operand, where it is the largest of some; else ""."""
        shape = self.graph.values[value].shape
        for at in indices(shape) if math.prod(shape) <= WRITTEN else ():
            try:
                found = self.formula(value, at)
            except TooManyError:
                return ""
            if found is None or not found.text.startswith(CHOOSING):
                return ""
            leaves = [(leaf, self.operand(value, leaf)) for leaf in found.leaves() if leaf.source]
            if any(place == (operand, index) for _, place in leaves):
                winner = next(leaf for leaf, _ in leaves if leaf.value == found.value)
                own, name = element(self.notation.plain(value), at), self.named(value)
                return f"{own} took {name(winner)}, not {element(self.notation.plain(operand), index)}"
        return ""

    def zero_of(self, value: int, part: Element) -> str:
        """Why a part of the formula of a value's element is 0."""
        step = self._made[value][0]
        assert step.rule is not None
        assert step.op is not None
        return self._zero_of(value, part, step.rule, step.op, 8)

    def _zero_of(self, value: int, found: Element, rule: Rule, op: Applied, depth: int) -> str:
        name, leaves = self.named(value), [leaf for leaf in found.leaves() if leaf.source]
        zeros = [leaf for leaf in found.leaves() if leaf.value == 0 and (leaf.source or leaf.name)]
        if conditions := [_condition(each, name) for each in found.conditions()]:
            return " and ".join(conditions)
        if rule.kink is not None and rule.structure == "elementwise" and len(leaves) == 1:
            here = f"{name(leaves[0])} = {number(leaves[0].value)}"
            return f"{name_of(rule, op)} is off, {here}" + (" < 0" if leaves[0].value < 0 else "")
        if len(found.terms) > 1:
            is_flat = all(term.value == 0 for term in found.terms)
            return f"all {len(found.terms)} terms are 0" if is_flat else "its terms cancel"
        if zeros and (found.text == "*" or not found.parts or found.text == "@1 / @2"):
            leaf = next((each for each in zeros if each in found.factors), zeros[0])
            if not leaf.source:
                return f"{leaf.name} = 0, drawn at random"
            place = self.operand(value, leaf)
            cause = self.why_zero(*place, depth - 1) if place is not None else ""
            return f"{name(leaf)} = 0" + (f": {cause}" if cause else "")
        return "" if leaves else "a constant was put there"

    def named(self, value: int) -> Named:
        """How the formula of a value's element calls the elements of the operands."""

        def name(leaf: Element) -> str:
            assert leaf.source is not None
            place = self.operand(value, leaf)
            return element(self.notation.plain(place[0]) if place else leaf.source[0], leaf.source[2])

        return name

    def text(self, value: int, index: Index, found: Element) -> str:
        """The whole calculation in one line."""
        data = self.graph.values[value].data
        assert data is not None
        own, dtype = element(self.notation.plain(value), index), type_name(data.dtype)
        return sides(own, found, data[index].item(), dtype, self.named(value))


def name_of(rule: Rule, op: Applied) -> str:
    """What a reader calls an operation: `ReLU`."""
    named = re.search(r"\\operatorname\{(\w+)\}", latex_of(rule.equation, op))
    return named[1] if named else rule.name


def _shape(step: Step, leaf: Element) -> Index:
    """The shape of the tensor that a rule took an element from."""
    assert step.op is not None
    assert leaf.source is not None
    given = step.op.arguments[leaf.source[0]]
    return tuple((given if leaf.source[1] is None else given[leaf.source[1]]).shape)


# -- the formula ------------------------------------------------------------------------------------------------------


def formula(rule: Rule, op: Applied, slot: int, index: Index) -> Element | None:
    """The formula of one element of a result; None where the rule has none, or it does not give that number.

    Raises TooManyError where it would be made of more elements than are listed.
    """
    return op.once(_right_formula, rule, slot, index)


def _right_formula(op: Applied, rule: Rule, slot: int, index: Index) -> Element | None:
    found = _formula(rule, op, slot, index)
    return found if found is not None and gives(found, op.outs[slot][index].item(), op.outs[slot]) else None


def gives(found: Element, result: Any, out: Tensor) -> bool:
    """Whether a formula gives a recorded number, up to the rounding of its type."""
    if found.value == result or (found.value != found.value and result != result):
        return True
    if isinstance(result, (bool, int)):
        return False
    eps, turns = rounding(out.dtype), cycle((1, -1))
    moved = found.at(lambda leaf: leaf.value * (1 + next(turns) * eps) if leaf.source else leaf.value)
    terms = sum(abs(term.value) for term in found.terms)
    slack = 8 * abs(moved - found.value)
    return compare(found.value, result, terms, count=64, eps=eps, slack=slack if slack == slack else 0.0).agrees


def _formula(rule: Rule, op: Applied, slot: int, index: Index) -> Element | None:
    elements = Elements(op, index)
    if rule.element is not None:
        return rule.element(elements, slot, index)
    if rule.stages is not None and not slot and (stages := op.once(rule.stages)):
        return _staged(stages, index)
    if isinstance(rule.equation, Expression) and rule.structure == "elementwise":
        return None if slot else of(rule.equation.run(elements))
    arguments = rule.linear_in(op)
    return _sum(rule, elements, arguments, slot, index) if arguments else None


def _staged(stages: Sequence[Stage], index: Index) -> Element | None:
    """The formula of the last of several stages, in which the results of those before have names."""
    *before, last = stages
    found = _formula(last.rule, last.op, 0, index)
    if found is None or not before:
        return found

    def named(leaf: Element) -> Element:
        if leaf.source is None or leaf.source[0] != "self":
            return leaf
        inner = _staged(before, leaf.source[2])
        name = element(before[-1].symbol, leaf.source[2])
        return let(name, inner or of(leaf.value))

    return found.replaced(named)


def _sum(rule: Rule, elements: Elements, arguments: Sequence[str], slot: int, index: Index) -> Element | None:
    """The sum of the elements of the arguments in which an operation is linear, each with its factor."""
    op: Applied = elements.whole
    terms: list[tuple[Element, Element]] = []
    for argument in arguments:
        given, named = op.arguments.get(argument), rule.wrt[argument].factor
        if not isinstance(given, (Tensor, list)):
            continue
        for at, local in row_of(rule, op, argument, slot, index):
            own = elements.at(argument, at[1:], at[0]) if isinstance(given, list) else elements.at(argument, at)
            factor = named(op, index, at) if named is not None and rule.outputs == 1 else None
            terms.append((_coefficient(elements, factor, local, rounding(op.outs[slot].dtype)), own))
    if not terms:
        return of(op.outs[slot][index].item())
    first, same = terms[0][0], len({c.value for c, _ in terms}) == 1
    if len(terms) > 1 and same and not any(leaf.source for c, _ in terms for leaf in c.leaves()):
        return first * total((own for _, own in terms), keep=True)
    found = total((own * coefficient for coefficient, own in terms), keep=True)
    is_part = isinstance(found.value, complex) and not op.outs[slot].is_complex()
    return call("real", lambda value: value.real, found) if is_part else found


def _coefficient(elements: Elements, factor: Factor | None, local: Any, eps: float) -> Element:
    """The factor of an operand's element: the element of another operand, or a number."""
    if factor is not None and isinstance(elements.whole.arguments.get(factor.argument or ""), Tensor):
        other = of(int(factor.scale) if factor.scale == int(factor.scale) else factor.scale)
        other = other * elements.at(factor.argument or "", factor.index)
        if other.value == local:
            return other
    local = of(local).value
    if isinstance(local, float) and math.isfinite(local) and local:
        if local == int(local):
            return of(int(local))
        if abs(1 / local - round(1 / local)) < max(1e-6, eps) * abs(1 / local) and abs(1 / local) < 1e6:
            return of(1) / of(round(1 / local)) if local > 0 else -(of(1) / of(round(-1 / local)))
    return of(local)


# -- its text ---------------------------------------------------------------------------------------------------------


def is_short(found: Element) -> bool:
    """Whether a formula is written out."""
    return sum(1 for _ in found.leaves(worked_out=False)) <= WRITTEN


def sides(own: str, found: Element, result: Any, dtype: str, name: Named) -> str:
    """A formula in symbols, in numbers, and its result: `A[0,1] = σ(Z[0,1]) = σ(-2.3) = 0.0911`, and what it uses."""
    text = " = ".join(dict.fromkeys([own, *_sides(found, result, name), number(result)]))
    if off := rounding_of(found, result):
        text += f" (rounded to {dtype}: {number(found.value)} before)" if off else ""
    inner = {part.name: part for part in found.named()}
    worked = [
        " = ".join(dict.fromkeys([part.name, *_sides(part, part.value, name), number(part.value)]))
        for part in list(inner.values())[:WORKED_OUT]
    ]
    conditions = dict.fromkeys(_condition(each, name) for each in found.conditions())
    text += f", as {' and '.join(conditions)}" if conditions else ""
    return text + (f"; {'; '.join(worked)}" if worked else "")


def spread(found: Element) -> tuple[Element, ...]:
    """The terms that add up to a number; the factor of a sum of several is spread over them."""
    if found.name or found.text not in ("*", "@1 / @2"):
        return found.terms
    sums = [part for part in found.parts if len(part.terms) > 1]
    if len(sums) != 1 or (found.text == "@1 / @2" and sums[0] is found.parts[1]):
        return (found,)
    return tuple(_with(found, sums[0], term) for term in sums[0].terms)


def _with(found: Element, part: Element, other: Element) -> Element:
    """A formula with another part."""
    parts = tuple(other if each is part else each for each in found.parts)
    return replace(found, parts=parts, value=found.code(*(each.value for each in parts)))


def rounding_of(found: Element, result: Any) -> Any:
    """By how much the type of a result changed it, where that shows in the written number; else 0."""
    shows = number(found.value) != number(result) and abs(found.value - result) > 1e-6 * abs(result)
    return result - found.value if shows else 0


def _sides(found: Element, result: Any, name: Named) -> Iterator[str]:
    yield found.written(lambda leaf: symbol(leaf, name))
    yield _in_numbers(found, result)
    if found.text == "@1 / @2" and any(part.parts for each in found.parts for part in each.parts):
        computed = (replace(part, parts=(), name="", source=("", None, ())) for part in found.parts)
        yield _in_numbers(replace(found, parts=tuple(computed)), result)


def _in_numbers(found: Element, result: Any) -> str:
    decimals = decimals_of(found, result)
    return found.written(lambda leaf: _number(leaf, decimals))


def decimals_of(found: Element, result: Any) -> int:
    """How many decimals the numbers of a formula need so that a reader gets the printed result."""
    return enough(lambda count: found.at(lambda leaf: _rounded(leaf, count)), result)


def symbol(leaf: Element, name: Named) -> str:
    """A leaf as the name of its element, or as a constant."""
    return leaf.name or (name(leaf) if leaf.source else _number(leaf, 6))


def _number(leaf: Element, decimals: int) -> str:
    return f"{leaf.value:g}" if _is_in_full(leaf) else number(leaf.value, decimals)


def _is_in_full(leaf: Element) -> bool:
    """Whether it is a constant of few digits, which no rounding shortens."""
    if leaf.source or leaf.parts or not isinstance(leaf.value, float):
        return False
    return float(f"{leaf.value:g}") == leaf.value


def _rounded(leaf: Element, decimals: int) -> Any:
    return leaf.value if _is_in_full(leaf) else rounded(leaf.value, decimals)


def _condition(condition: Element, name: Named) -> str:
    in_numbers = condition.written(lambda leaf: _number(leaf, 4))
    in_symbols = condition.written(lambda leaf: symbol(leaf, name))
    return in_symbols + (f" = {number(condition.value)}" if not condition.parts else f", {in_numbers}")
