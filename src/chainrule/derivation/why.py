"""The sum behind one number of a gradient: its terms, and for a zero the first cause.

One element x_j of a value has dJ/dx_j = sum_i dJ/dy_i * dy_i/dx_j, over the elements y_i of every result that it
entered. `contributions` finds the terms, and this module names them.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from torch import Tensor

from chainrule.derivation.backprop import Derivation
from chainrule.derivation.contributions import (
    Entry,
    Path,
    RuledPath,
    aligned,
    at_kink,
    closed_form,
    entries_of,
    paths_back,
)
from chainrule.derivation.forward_values import Forward, name_of
from chainrule.derivation.jacobian import Number
from chainrule.derivation.no_gradient import no_gradient
from chainrule.document import Block, Code, Equation, Math, Paragraph, Section, Span, Table
from chainrule.errors import MissingError
from chainrule.graph.comparison import UNKNOWN_SUMS, compare, rounding
from chainrule.graph.graph import Graph
from chainrule.graph.names import Index, Notation, check_index, element, find_value
from chainrule.numbers import enough, number, rounded
from chainrule.rules import Factor as Named

SPELLED = 8  # terms up to which those that are 0 are written too
LISTED = 64  # terms of one use that are shown one by one; the rest as their sum
FOLLOWED = 200  # elements that are visited in search of what made a gradient zero
CAUSES = 3  # different causes of one zero that are shown


@dataclass(frozen=True)
class Factor:
    """One of the two numbers that make a term. `reason` says why it is zero, where it is.

    `element` is (value, index, whether it is the gradient's element) where it is one number of the recording.
    """

    name: str
    latex: str
    value: Number
    reason: str = ""
    element: tuple[int, Index, bool] | None = None


@dataclass(frozen=True)
class Term:
    """One summand: the upstream element times the local derivative. A remainder has no factors, and says what it is."""

    value: Number
    factors: tuple[Factor, ...]
    text: str = ""

    def __str__(self) -> str:
        return " * ".join(factor.name for factor in self.factors) or f"({self.text})"


@dataclass(frozen=True)
class Use:
    """One use of the value, and what comes back from it: `result` is what it was used for, `argument` as what."""

    result: str
    argument: str
    terms: tuple[Term, ...]
    subtotal: Number


@dataclass(frozen=True)
class Why:
    """The sum that made one element of a gradient.

    `value` is the gradient as recorded (None: there is none, and `sentence` says why), `total` the sum of the terms.
    """

    name: str
    index: Index
    value: Number | None
    total: Number
    uses: tuple[Use, ...]
    gradient: str  # `dJ/dW1[1,0]`
    latex: str
    sentence: str = ""

    @property
    def terms(self) -> tuple[Term, ...]:
        """The terms of all uses, in order."""
        return tuple(term for use in self.uses for term in use.terms)

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why factors are zero: each once, in order."""
        zeros = [(f"{f.name} = 0", f.reason) for term in self.terms for f in term.factors if f.reason]
        return tuple(dict.fromkeys(why if why.startswith(name) else f"{name}: {why}" for name, why in zeros))

    def __str__(self) -> str:
        lines = [self._sum()] if self.terms else []
        lines += [self.sentence] if self.sentence else []
        if len(self.uses) > 1:
            lines += [
                f"  {u.result}: {' = '.join([*_sides(u.terms, u.subtotal), number(u.subtotal)])}" for u in self.uses
            ]
        return "\n".join([*lines, *(f"  {reason}" for reason in self.reasons)])

    def document(self) -> Section:
        """The same as a section: the sum in symbols and in numbers, each use on its own, and the reasons of zeros."""
        blocks: list[Block] = [Paragraph((Code(self._sum()),))] if self.terms else []
        if self.terms:
            blocks.append(Equation(self._equation(), "chain rule"))
        if self.sentence:
            blocks.append(Paragraph((self.sentence,)))
        if len(self.terms) > 1 or len(self.uses) > 1:
            blocks.append(self._table())
        blocks += [Paragraph((reason + ".",), "note") for reason in self.reasons]
        anchor = "why-" + re.sub(r"[^A-Za-z0-9]+", "-", f"{self.name} {' '.join(map(str, self.index))}").strip("-")
        found = () if self.value is None else (f" is {number(self.value)}",)
        title: tuple[Span, ...] = ("Why ", Code(self.gradient), *found)
        return Section(title, anchor.lower(), "note", tuple(blocks))

    @property
    def is_rounded(self) -> bool:
        """Whether the recorded gradient is visibly another number than the sum, as its type rounded it."""
        value, total = self.value, self.total
        if value is None or self.sentence or number(value) == number(total):
            return False
        return abs(value - total) > 1e-6 * abs(value)

    def _sum(self) -> str:
        recorded = f" (recorded: {number(self.value)})" if self.is_rounded and self.value is not None else ""
        nonzero = tuple(term for term in self.terms if term.value)
        shown = nonzero if nonzero and len(self.terms) > SPELLED else self.terms
        rest = len(self.terms) - len(shown)
        zeros = f" ({rest} more {'term is' if rest == 1 else 'terms are'} 0)" if rest else ""
        return " = ".join([self.gradient, *_sides(shown, self.total), number(self.total)]) + zeros + recorded

    def _equation(self) -> str:
        products = [r" \cdot ".join(f.latex for f in term.factors) or rf"\text{{({term.text})}}" for term in self.terms]
        return f"{self.latex} = {' + '.join(products)} = {number(self.total)}"

    def _table(self) -> Table:
        several = len(self.uses) > 1
        rows: list[tuple[tuple[Span, ...], ...]] = []
        for use in self.uses:
            where: tuple[tuple[Span, ...], ...] = ((Code(use.result),),) if several else ()
            rows += [(*where, *_row(term)) for term in use.terms]
            if several:
                rows.append((*where, (), ("together",), (number(use.subtotal),)))
        headers = (*(("used for",) if several else ()), "upstream", "local derivative", "term")
        return Table(headers, tuple(rows))


def _row(term: Term) -> tuple[tuple[Span, ...], ...]:
    factors: list[tuple[Span, ...]] = [
        (Math(f.latex), f" = {number(f.value)}") if f.latex != number(f.value) else (number(f.value),)
        for f in term.factors
    ]
    return (*(factors or [(term.text,), ()]), (number(term.value),))


def _sides(terms: tuple[Term, ...], total: Number) -> list[str]:
    """The sum in symbols, and in numbers with as many decimals as give the total."""
    parts = [[factor.value for factor in term.factors] or [term.value] for term in terms]
    decimals = enough(lambda count: sum(math.prod(rounded(each, count) for each in part) for part in parts), total)
    symbols = " + ".join(map(str, terms))
    numbers = " + ".join(" * ".join(_in_product(each, decimals) for each in part) for part in parts)
    return list(dict.fromkeys(side for side in (symbols, numbers) if side))


def _in_product(value: Number, decimals: int) -> str:
    return f"({number(value, decimals)})" if isinstance(value, complex) else number(value, decimals)


_FORWARD_BEFORE = (
    "{} got a gradient, but through operations that ran before the recording began, so it cannot be taken apart. "
    "Record its forward pass too."
)


def why(graph: Graph, derivation: Derivation, notation: Notation, name: str, index: Index | int) -> Why:
    """The sum behind one element of d loss / d `name`.

    Where there is no such gradient, or no operation that it came back from, `sentence` says why.

    Raises MissingError for a name that the recording does not hold, for an index outside the value's shape, and where
    the numbers were not kept.
    """
    parameter = graph.parameters.get(name) if isinstance(name, str) else None
    if parameter is not None and parameter.value is None:
        given = index if isinstance(index, tuple) else (index,)
        sentence = _FORWARD_BEFORE.format(name) if parameter.has_gradient else no_gradient(graph, None, name)
        return Why(name, given, None, 0, (), element(f"dJ/d{name}", given), "", sentence)
    value = find_value(graph, name)
    place, search = check_index(graph, value, index, name), Search(graph, derivation, notation)
    if not search.has_numbers(value):
        raise MissingError(
            f"{element(f'dJ/d{name}', place)}: of this gradient, or of what it is the sum of, only statistics were "
            f"kept. Ask recording.recompute({name!r}).why({name!r}, {place}), or record the step with keep= for it."
        )
    return search.why(value, place)


class Search:
    """Answers many questions about one recording."""

    def __init__(self, graph: Graph, derivation: Derivation, notation: Notation) -> None:
        self.graph = graph
        self.notation = notation
        self._paths = paths_back(graph, derivation)
        self._causes: dict[tuple[int, Index], str] = {}
        self.forward = Forward(graph, derivation, notation)

    def has_numbers(self, value: int) -> bool:
        """Whether the gradient of a value, and what it is the sum of, was kept."""
        known = self.graph.values[value]
        is_known = known.grad is not None or not known.has_gradient
        return is_known and all(path.has_numbers for path in self._paths.get(value, ()))

    def why(self, value: int, index: Index) -> Why:
        """The sum behind one element of the gradient of a value."""
        called = self.notation.plain(value)
        grad = self.graph.values[value].grad
        recorded = None if grad is None else (grad.to_dense() if grad.is_sparse else grad)[index].item()
        paths = self._paths.get(value, ())
        if not all(path.has_numbers for path in paths):
            return self._not_kept(value, index, recorded)
        gradient, latex = self._gradient(value, index)
        uses = tuple(self._use(path, index) for path in paths)
        total = sum((use.subtotal for use in uses), start=0.0)
        # A local derivative is itself a sum that may cancel: its rounding is that of numbers near 1.
        size = sum(max(abs(t.value), *(abs(f.value) for f in t.factors[:1]), 0) for use in uses for t in use.terms)
        sentence = (
            self._sentence(value, called, index, recorded, total, size) if recorded is not None or not uses else ""
        )
        if uses and not any(use.terms for use in uses):
            causes = dict.fromkeys(self._not_taken(path, value, index) for path in paths)
            sentence = f"{gradient} = 0: {'; '.join(causes)}"
        if recorded is not None and not uses:
            total = recorded
        return Why(called, index, recorded, total, uses, gradient, latex, sentence)

    def _sentence(
        self, value: int, called: str, index: Index, recorded: Number | None, total: Number, terms: float
    ) -> str:
        if recorded is None:
            return no_gradient(self.graph, value, called)
        if value in self._paths:
            if recorded != recorded or self._add_up(value, recorded, total, terms):
                return ""
            return (
                f"PyTorch's gradient is {number(recorded)}, the terms add up to {number(total)}: a hook changed it on "
                "the way, or a rule and PyTorch disagree."
            )
        gradient, _ = self._gradient(value, index)
        return f"The backward pass began at {called}: its gradient is the seed, {gradient} = {number(recorded)}."

    def _add_up(self, value: int, recorded: Number, total: Number, terms: float) -> bool:
        """Whether the terms add up to the gradient; each came down a chain of sums, and carries their roundings."""
        eps = rounding(self.graph.values[value].dtype)
        return compare(total, recorded, terms * UNKNOWN_SUMS**0.5, count=UNKNOWN_SUMS, eps=eps).agrees

    def _gradient(self, value: int, index: Index) -> tuple[str, str]:
        """d loss / d element, in a line of text and in LaTeX."""
        symbol, loss = _at(self.notation.symbol(value), index), self.notation.differentiated(value)
        return element(self.notation.plain_gradient(value), index), rf"\frac{{\partial {loss}}}{{\partial {symbol}}}"

    def _not_kept(self, value: int, index: Index, recorded: Number | None) -> Why:
        """The answer where the terms were not kept: what is known, and how to record the rest."""
        called = self.notation.plain(value)
        total = math.nan if recorded is None else recorded
        gradient, latex = self._gradient(value, index)
        known = f"{gradient} = {number(recorded)}; the" if recorded is not None else "The"
        sentence = (
            f"{known} numbers that {gradient if recorded is None else 'it'} is made of were not kept. Record with "
            'keep="all", or with its module among the patterns of keep, to see the sum.'
        )
        return Why(called, index, recorded, total, (), gradient, latex, sentence)

    # -- one use ------------------------------------------------------------------------------------------------------

    def _use(self, path: Path, index: Index) -> Use:
        result = " and ".join(self.notation.plain(out) for out in path.outputs if out is not None) or "an operation"
        entries = entries_of(path, index)
        if entries is None or not isinstance(path, RuledPath):
            value = path.gradient[index].item()
            text = "not opened, as there is no rule for this operation yet: PyTorch's own contribution"
            if isinstance(path, RuledPath):
                text = "not opened, as its terms do not follow from the rule alone: our own contribution"
            return Use(result, path.argument, (Term(value, (), text),), value)
        listed = entries
        rest: list[Term] = []
        if len(entries) > LISTED:
            largest = sorted(range(len(entries)), key=lambda place: -abs(entries[place].value))[:LISTED]
            listed = [entries[place] for place in sorted(largest)]
            left = sum((entry.value for entry in entries), start=0.0) - sum((e.value for e in listed), start=0.0)
            rest = [Term(left, (), f"and {len(entries) - LISTED} more that add up to {number(left)}")]
        terms = tuple(self._term(path, index, entry) for entry in listed)
        return Use(result, path.argument, (*terms, *rest), sum((entry.value for entry in entries), start=0.0))

    def _term(self, path: RuledPath, index: Index, entry: Entry) -> Term:
        out = path.outputs[entry.slot]
        assert out is not None
        plain, symbol = self._result(path, out)
        name = element(f"d{self.notation.plain_loss(path.backward)}/d{plain}", entry.at)
        latex = rf"\frac{{\partial {self.notation.loss(path.backward)}}}{{\partial {_at(symbol, entry.at)}}}"
        reason = self._first_cause(*_arrived(path, out, entry)) if entry.upstream == 0 else ""
        upstream = Factor(name, latex, entry.upstream, reason, None if path.via else (out, entry.at, True))
        return Term(entry.value, (upstream, self._local(path, index, entry)))

    def _result(self, path: RuledPath, out: int) -> tuple[str, str]:
        """What the result of a path is called, in a line of text and in LaTeX."""
        return (path.via, path.via) if path.via else (self.notation.plain(out), self.notation.symbol(out))

    def _local(self, path: RuledPath, index: Index, entry: Entry) -> Factor:
        factor = closed_form(path, index, entry)
        name, latex = self._named(path, index, entry, factor)
        reason = self._flat(path, index, entry, factor, name) if entry.local == 0 else ""
        operand = path.operands.get((factor.argument or "", None)) if factor is not None else None
        element = None if factor is None or operand is None else (operand, factor.index, False)
        if isinstance(entry.local, complex) and entry.local.imag:  # a VJP multiplies by the conjugate
            return Factor(f"conj({name})", rf"\overline{{{latex}}}", entry.local.conjugate(), reason, None)
        return Factor(name, latex, entry.local, reason, element)

    def _named(self, path: RuledPath, index: Index, entry: Entry, factor: Named | None) -> tuple[str, str]:
        """The local derivative as an operand's element, as a formula, or as one symbol."""
        out, value = path.outputs[entry.slot], path.operands.get((path.argument, path.item))
        assert out is not None
        mine = self.notation.plain(value) if value is not None else path.argument
        symbol = self.notation.symbol(value) if value is not None else rf"\text{{{path.argument}}}"
        plain, own = self._result(path, out)
        name = f"d{element(plain, entry.at)}/d{element(mine, index)}"
        latex = rf"\frac{{\partial {_at(own, entry.at)}}}{{\partial {_at(symbol, index)}}}"
        if plain == self.notation.plain_loss(path.backward):  # its name would be that of the gradient itself
            name = number(entry.local)
            latex = latex if factor is not None else name
        if factor is None:
            return name, latex
        sign = {1: "", -1: "-"}.get(factor.scale, f"{number(factor.scale)} ")  # type: ignore[call-overload]
        operand = path.operands.get((factor.argument or "", None))
        if operand is not None:
            latex = _at(self.notation.symbol(operand), factor.index)
            return sign + element(self.notation.plain(operand), factor.index), sign + latex
        if factor.argument is not None:
            return number(entry.local), number(entry.local)
        formula = sign + self._filled(path, entry, factor.latex)
        plain = re.sub(r"\\frac\{(-?\d+)\}\{(\d+)\}", r"\1/\2", formula)
        return (plain if re.fullmatch(r"-?[\d.]+(/\d+)?", plain) else name), formula

    def _filled(self, path: RuledPath, entry: Entry, template: str) -> str:
        """A formula with the symbols of the operands, and of their elements where it is one of whole tensors."""
        out = path.outputs[entry.slot]
        indexed = "_{" in template
        symbols = {}
        for name, value in [*((name, v) for (name, _), v in path.operands.items()), ("out", out)]:
            if value is not None:
                symbol, shape = self.notation.symbol(value), self.graph.values[value].shape
                if path.via and name == "out":
                    symbol, shape = path.via, tuple(path.op.out.shape)
                own = aligned(entry.at, shape)
                symbols[name] = symbol if indexed or own is None else _at(symbol, own)
        return path.rule.latex(template, path.op, symbols).replace(r"\odot", r"\cdot")

    # -- zeros --------------------------------------------------------------------------------------------------------

    def _flat(self, path: RuledPath, index: Index, entry: Entry, factor: Named | None, name: str) -> str:
        """Why a local derivative is zero: an operand is, the point is a kink, or the function is flat there."""
        if factor is not None and factor.argument is not None:
            operand = path.operands.get((factor.argument, None))
            cause = "" if operand is None else self.forward.why_zero(operand, factor.index)
            return f"{name.lstrip('-')} = 0" + (f": {cause}" if cause else "")
        value = path.operands.get((path.argument, path.item))
        data = self.graph.values[value].data if value is not None else None
        if value is None or data is None:
            return f"the derivative of {path.rule.name} is 0 there"
        here = f"{element(self.notation.plain(value), index)} = {number(data[index].item())}"
        if at_kink(path, index, entry.at):
            assert path.rule.kink is not None
            return f"{here} lies exactly at a kink: {path.rule.kink.choice}"
        called = name_of(path.rule, path.op)
        result = path.op.outs[entry.slot]
        off = isinstance(result, Tensor) and result[entry.at].item() == 0 and path.rule.kink is not None
        below = " < 0" if off and not data.is_complex() and data[index].item() < 0 else ""
        return f"{called} is {'off' if off else 'flat'}: {here}{below}"

    def _first_cause(self, value: int, index: Index) -> str:
        """Follow a zero gradient back along its paths to what made it zero; "" where that is not found."""
        if (value, index) not in self._causes:
            self._causes[value, index] = self._search(value, index)
        return self._causes[value, index]

    def _search(self, value: int, index: Index) -> str:
        waiting, seen = [(value, index)], {(value, index)}
        causes: dict[str, None] = {}
        while waiting and len(seen) <= FOLLOWED and len(causes) < CAUSES:
            here, at = waiting.pop()
            paths = self._paths.get(here, [])
            if not paths:
                causes[f"the backward pass began with {self._gradient(here, at)[0]} = 0"] = None
            for path in paths:
                if not path.has_numbers:
                    causes["what made it so was not kept"] = None
                    continue
                entries = entries_of(path, at)
                if entries is None or not isinstance(path, RuledPath):
                    causes["an operation that has no rule yet gave 0"] = None
                    continue
                if not entries:
                    causes[self._not_taken(path, here, at)] = None
                for entry in entries:
                    out = path.outputs[entry.slot]
                    if entry.value != 0:
                        causes["its terms cancel"] = None
                    elif entry.local == 0:
                        causes[self._local(path, at, entry).reason] = None
                    elif out is not None and (place := _arrived(path, out, entry)) not in seen:
                        seen.add(place)
                        waiting.append(place)
        return "; ".join(list(causes)[:CAUSES])

    def _not_taken(self, path: Path, value: int, index: Index) -> str:
        """No result has a term of this element: an index left it out, or a maximum took another."""
        called = element(self.notation.plain(value), index)
        result = next((self.notation.plain(out) for out in path.outputs if out is not None), "the result")
        if isinstance(path, RuledPath) and index and path.op.arguments.get("padding_idx") == index[0]:
            return f"row {index[0]} is padding_idx, which gets no gradient by convention"
        return self.not_taken(value, index, path) or f"{result} does not change with {called} here"

    def not_taken(self, value: int, index: Index, path: Path | None = None) -> str:
        """Which element a result took in place of this one, on one path or on any; "" where none did."""
        outs = (out for each in ([path] if path else self._paths.get(value, ())) for out in each.outputs)
        won = (self.forward.winner(out, value, index) for out in outs if out is not None)
        return next(filter(None, won), "")


def _arrived(path: RuledPath, out: int, entry: Entry) -> tuple[int, Index]:
    """The element whose gradient a term's upstream factor is, or is a share of."""
    return (out, ()) if path.via else (out, entry.at)


def _at(symbol: str, index: Index) -> str:
    return rf"{{{symbol}}}_{{{','.join(map(str, index))}}}" if index else symbol
