r"""Formulas of elements, each written once: a formula prints LaTeX, runs on tensors, and differentiates itself.

`1 - OUT**2` is $1 - y^2$ for a reader and `1 - op.out**2` for the walk, so the formula cannot part from the code.
Arithmetic keeps a formula in one plain form (like terms added up, numbers in front, one fraction), so that derivatives
come out as one would write them. Arguments that an operation got as numbers are printed as those numbers.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial, reduce
from typing import Any

import torch
from torch import Tensor

from chainrule.rules.element import ATOM as ATOM
from chainrule.rules.element import POWER as POWER
from chainrule.rules.element import PRODUCT as PRODUCT
from chainrule.rules.element import SUM as SUM
from chainrule.rules.element import Elements, apply, either, plain
from chainrule.rules.element import of as element_of
from chainrule.rules.element import whole as whole_of


def number(value: float) -> str:
    """A Python number in LaTeX."""
    if isinstance(value, float) and not math.isfinite(value):
        return r"\mathrm{NaN}" if math.isnan(value) else r"\infty" if value > 0 else r"-\infty"
    text = f"{value:g}" if isinstance(value, float) else str(value)
    mantissa, _, exponent = text.partition("e")
    return text if not exponent else rf"{mantissa} \cdot 10^{{{int(exponent)}}}"


Operator = Callable[["Expression", Any], "Expression"]


def _both(build: Operator) -> tuple[Operator, Operator]:
    """An operator with the formula on its left, and on its right."""
    return lambda self, other: build(self, of(other)), lambda self, other: build(of(other), self)


@dataclass(frozen=True, eq=False)
class Expression:
    """A formula: its LaTeX template, how tightly that binds, its value for an operation, its derivative by an argument.

    A value is a tensor, a Python number, or a mask where it is 1 or 0. `put` gives the formula as a reader of an
    operation is shown it. A number is a product without factors, and other formulas are one factor. Formulas of one
    `key` are the same. A `single` number needs no product sign. `names` are its abbreviations with their meaning.
    """

    text: str
    binds: int
    run: Callable[[Any], Any]
    derivative: Callable[[str], Expression]
    put: Callable[[Any], Expression]
    single: bool = False
    names: tuple[str, ...] = ()
    key: Any = None
    times: tuple[Any, Any] = (1, 1)  # a numerator and a denominator
    factors: tuple[tuple[Expression, Expression], ...] | None = None  # bases and exponents
    terms: tuple[Expression, ...] | None = None
    call: tuple[Named, tuple[Expression, ...]] | None = None
    branches: tuple[Expression, Expression, Expression] | None = None

    def __call__(self, op: Any) -> str:
        """The LaTeX template for an operation."""
        return self.put(op).text

    @property
    def same(self) -> Any:
        """What formulas are compared by."""
        return self.key or self.text

    @property
    def value(self) -> Any:
        """The number that it is; None where it is none."""
        top, bottom = self.times
        return None if self.factors != () else top if bottom == 1 else top / bottom

    @property
    def is_bare(self) -> bool:
        r"""Whether it is a function whose operand has no brackets: `\ln x`."""
        return self.call is not None and self.call[0].is_bare

    @property
    def is_constant(self) -> bool:
        """Whether it is a number that depends on no operand."""
        return self.single and "$" not in self.text and not self.names

    def at(self, level: int) -> str:
        """Its LaTeX inside something that binds as tightly as `level`."""
        return self.text if self.binds >= level else rf"\left({self.text}\right)"

    def but(self, value: Any, when: Expression) -> Expression:
        """The formula, computed as `value` in places that a remark names or where it has a limit alone."""
        return replace(
            self,
            run=lambda op: _where(when, of(value), self, op),
            derivative=lambda name: self.derivative(name).but(of(value).derivative(name), when),
            key=(self.same, of(value).same, when.same),
            times=(1, 1),
            factors=None,
            terms=None,
        )

    def between(self, low: Any, high: Any) -> Expression:
        """Whether it lies inside two bounds; NaN does, as for PyTorch."""
        return INSIDE(low, self, high)

    def equals(self, other: Any) -> Expression:
        """Whether both are the same number."""
        return EQUAL(self, other)

    def __neg__(self) -> Expression:
        return product(of(-1), self)

    __add__, __radd__ = _both(lambda a, b: total(a, b))
    __sub__, __rsub__ = _both(lambda a, b: total(a, -b))
    __mul__, __rmul__ = _both(lambda a, b: product(a, b))
    __truediv__, __rtruediv__ = _both(lambda a, b: product(a, power(b, of(-1))))
    __pow__, _ = _both(lambda a, b: power(a, b))
    __lt__, _ = _both(lambda a, b: LESS(a, b))
    __le__, _ = _both(lambda a, b: AT_MOST(a, b))
    __gt__, _ = _both(lambda a, b: MORE(a, b))
    __ge__, _ = _both(lambda a, b: AT_LEAST(a, b))


def like(value: Any, op: Any) -> Tensor:
    """A value that may be a Python number, as a tensor in the precision of the operation's output."""
    return value if isinstance(value, Tensor) else torch.tensor(value, dtype=op.out.dtype, device=op.out.device)


def meanings(formulas: Iterable[Expression], op: Any) -> str:
    """The abbreviations in some formulas, as LaTeX templates of what they stand for."""
    return r", \quad ".join(dict.fromkeys(name for each in formulas for name in each.put(op).names))


def _names(*parts: Expression) -> tuple[str, ...]:
    return tuple(name for part in parts for name in part.names)


# What formulas are made of: numbers, arguments, names


def of(value: Any) -> Expression:
    """A number as a formula; a formula is returned unchanged."""
    return value if isinstance(value, Expression) else fraction(value)


def fraction(top: Any, bottom: Any = 1) -> Expression:
    """A number, as a fraction in lowest terms where it is one."""
    return _product(*_lowest(top, bottom), ())


def _lowest(top: Any, bottom: Any) -> tuple[Any, Any]:
    top, bottom = (int(v) if isinstance(v, bool | float) and abs(v) < 1e6 and v == int(v) else v for v in (top, bottom))
    if isinstance(top, int) and isinstance(bottom, int) and bottom:
        common = math.gcd(top, bottom) * (1 if bottom > 0 else -1)
        return top // common, bottom // common
    return (top / bottom, 1) if isinstance(top, float) and bottom else (top, bottom)


def argument(name: str, default: Any = None, single: bool = False) -> Expression:
    """An argument of the operation, its output (`out`), or the upstream gradient (`g`); `default` where it has none."""

    def given(op: Any) -> Any:
        value = op.out if name in ("out", "g") else op.arguments.get(name)
        return default if value is None else value

    def run(op: Any) -> Any:
        value = given(op)
        whole = isinstance(value, Tensor) and not (value.is_floating_point() or value.is_complex())
        # Whole numbers in the result's precision: 1 divided by them would be float32.
        return value.to(op.out.dtype) if whole and value.dtype != torch.bool else value

    def put(op: Any) -> Expression:
        value = given(op)
        if isinstance(value, complex):
            return symbol(rf"({value.real:g}{value.imag:+g} \, \mathrm{{i}})", value)
        if isinstance(value, int | float):
            return of(value)
        return argument(name, default, isinstance(value, Tensor) and value.dim() == 0)

    return Expression(f"${name}", ATOM, run, lambda by: of(int(by == name)), put, single)


def symbol(text: str, source: Any, single: bool = False) -> Expression:
    """A number with a name, or what `source` gives for an operation (a drawn mask), which may be `single` as well."""

    def run(op: Any) -> Any:
        value = source(whole_of(op)) if callable(source) else source
        if not isinstance(op, Elements):
            return value
        met = element_of(op.met("", value))
        place = ",".join(map(str, op.index)) if isinstance(value, Tensor) else ""
        return replace(met, name=plain(text) + (f"[{place}]" if place else ""))

    made = Expression(
        text, ATOM, run, lambda by: of(0), lambda op: made, single=single or not callable(source)
    )  # fmt: skip
    return made


def let(name: str, meaning: Expression, primed: bool = False) -> Expression:
    """An abbreviation; with `primed` its derivatives are abbreviated too, as u' and u''."""

    def derivative(by: str) -> Expression:
        slope = meaning.derivative(by)
        return let(f"{name}'", slope, True) if primed and slope.value != 0 else slope

    return Expression(
        name, ATOM, meaning.run, derivative, lambda op: let(name, meaning.put(op)), meaning.single,
        (f"{name} = {meaning.text}", *meaning.names),
    )  # fmt: skip


def choice(choose: Callable[[Any], Any]) -> Expression:
    """A formula whose form depends on how the operation was called."""
    return Expression(
        "", ATOM, lambda op: of(choose(whole_of(op))).run(op),
        lambda by: choice(lambda op: of(choose(op)).derivative(by)),
        lambda op: of(choose(op)).put(op), key=choose,
    )  # fmt: skip


def stated(formula: Expression) -> Expression:
    """A formula as what the output equals."""
    return replace(formula, text=f"$out = {formula.text}", put=lambda op: stated(formula.put(op)))


# Sums, products and powers


def total(*terms: Expression) -> Expression:
    """A sum with like terms added up."""
    found: dict[Any, tuple[Expression, Any, Any]] = {}
    for term in (each for some in terms for each in some.terms or (some,)):
        core = term if term.factors is None else product(_product(1, 1, term.factors))
        (top, bottom), (_, more, below) = term.times, found.get(core.same, (core, 0, 1))
        found[core.same] = (core, *_lowest(top * below + more * bottom, bottom * below))
    kept = tuple(product(fraction(top, bottom), core) for core, top, bottom in found.values() if top != 0)
    if len(kept) < 2:
        return kept[0] if kept else of(0)
    first, *rest = (each.at(PRODUCT) for each in kept)
    return Expression(
        first + "".join(f" - {each[1:]}" if each.startswith("-") else f" + {each}" for each in rest),
        SUM,
        lambda op: reduce(operator.add, (each.run(op) for each in kept)),
        lambda by: total(*(each.derivative(by) for each in kept)),
        lambda op: total(*(each.put(op) for each in kept)),
        single=all(each.single for each in kept),
        names=_names(*kept),
        key=tuple(each.same for each in kept),
        terms=kept,
    )


def product(*parts: Expression) -> Expression:
    """A product with its numbers multiplied and equal bases put together."""
    top, bottom = 1, 1
    found: dict[Any, tuple[Expression, Expression]] = {}
    for part in parts:
        top, bottom = top * part.times[0], bottom * part.times[1]
        for base, exponent in ((part, of(1)),) if part.factors is None else part.factors:
            found[base.same] = (base, found[base.same][1] + exponent if base.same in found else exponent)
    times, kept = _lowest(top, bottom), tuple(pair for pair in found.values() if pair[1].value != 0)
    if times == (1, 1) and len(kept) == 1 and kept[0][1].value == 1:
        return kept[0][0]
    return of(0) if times[0] == 0 else _product(*times, kept)


def power(base: Expression, exponent: Expression) -> Expression:
    """A power; one of a product with a whole exponent is the product of powers."""
    count = exponent.value
    if isinstance(count, int):
        (top, bottom), size = base.times if count > 0 else base.times[::-1], abs(count)
        inner = ((base, of(1)),) if base.factors is None else base.factors
        return product(fraction(top**size, bottom**size), _product(1, 1, tuple((b, e * exponent) for b, e in inner)))
    if count is not None and base.value is not None:
        return fraction(base.value**count)
    return _product(1, 1, ((base, exponent),))


def _product(top: Any, bottom: Any, factors: tuple[tuple[Expression, Expression], ...]) -> Expression:
    """A number times powers of distinct formulas; those with a negative exponent are the denominator."""

    def run(op: Any) -> Any:
        up, down = top, bottom
        for base, exponent in factors:
            value = base.run(op)
            if _is_below(exponent):
                down = _times(down, value if exponent.value == -1 else value**-exponent.value)
            else:
                up = _times(up, value if exponent.value == 1 else value ** exponent.run(op))
        return up if isinstance(down, int) and down == 1 else up / down

    def put(op: Any) -> Expression:
        return product(fraction(top, bottom), *(power(base.put(op), exponent.put(op)) for base, exponent in factors))

    def derivative(by: str) -> Expression:
        return total(*(product(whole, base**-1, exponent, base.derivative(by)) for base, exponent in factors))

    above = sorted((pair for pair in factors if not _is_below(pair[1])), key=_place)
    below = sorted(((base, -exponent) for base, exponent in factors if _is_below(exponent)), key=_place)
    minus = "-" if not isinstance(top, complex) and top < 0 else ""
    text = _row(-top if minus else top, above, bool(below) or bottom != 1)
    if below or bottom != 1:
        text = rf"\frac{{{text}}}{{{_row(bottom, below, True)}}}"
    is_one = bottom != 1 or bool(below) or (len(factors) < 2 and top == 1)  # a fraction, or a power alone
    whole = Expression(
        minus + text,
        PRODUCT if minus or r"\cdot" in text else POWER if is_one else PRODUCT if factors else ATOM,
        run,
        derivative,
        put,
        single=all(each.single for pair in factors for each in pair),
        names=_names(*(each for pair in factors for each in pair)),
        key=(top, bottom, tuple((base.same, exponent.same) for base, exponent in factors)) if factors else None,
        times=(top, bottom),
        factors=factors,
    )
    return whole


def _is_below(exponent: Expression) -> bool:
    return exponent.value is not None and exponent.value < 0


def _place(pair: tuple[Expression, Expression]) -> int:
    """Constants stand first, functions without brackets last."""
    return 2 if pair[0].is_bare else 0 if pair[0].is_constant else 1


def _times(a: Any, b: Any) -> Any:
    return b if isinstance(a, int) and a == 1 else a * b


THIN = re.compile(r"\\(left\((?!\$\w+\\right\)\^)|ln|sum|log|sin|cos|tan|pi)")  # what brings its own space


def _row(size: Any, pairs: list[tuple[Expression, Expression]], is_part: bool) -> str:
    """A number and factors, with a thin space beside a single number, else the product sign."""
    if is_part and size == 1 and len(pairs) == 1 and pairs[0][1].value == 1:
        return pairs[0][0].text
    text, single = "" if size == 1 and pairs else number(size), True
    for place, (base, exponent) in enumerate(pairs):
        factor = _raised(base, exponent)
        factor = rf"\left({factor}\right)" if base.is_bare and place < len(pairs) - 1 else factor
        is_single = base.single and exponent.single
        sign = r" \odot " if not (single or is_single) else " " if THIN.match(factor) else r" \, "
        text, single = text + (sign if text else "") + factor, is_single
    return text


def _raised(base: Expression, exponent: Expression) -> str:
    if exponent.value == 1:
        return base.at(PRODUCT)
    if base.call is not None and base.is_bare:
        function, operands = base.call
        return function.text(f"{function.latex[:-2]}^{{{exponent.text}}} @", operands)
    # Brackets that a symbol does not need fall off when it is put in: see `without_brackets`.
    is_symbol = base.binds == ATOM and (base.text[0] == "$" or base.text[-1] == "'")
    return (rf"\left({base.text}\right)" if is_symbol else base.at(ATOM)) + f"^{{{exponent.text}}}"


# Functions and cases


@dataclass(frozen=True, eq=False)
class Named:
    r"""A function with a name: LaTeX with `@` (`@1`, `@2`) for its operands, its code, and its slope by each operand.

    A comparison has an `opposite`, for the other one of two cases. An operand without brackets binds as tightly as
    `inside`. `spelled` gives the function of single numbers, where its LaTeX leaves out how it is computed.
    """

    latex: str
    code: Callable[..., Any]
    slopes: tuple[Callable[..., Any], ...] = ()
    binds: int = ATOM
    opposite: str = ""
    inside: int = POWER
    spelled: Callable[..., Any] | None = None

    @property
    def is_bare(self) -> bool:
        r"""Whether its operand stands without brackets: `\ln x`."""
        return self.latex.endswith(" @")

    def __call__(self, *operands: Any) -> Expression:
        """The function of formulas or numbers."""
        parts = tuple(map(of, operands))
        return Expression(
            self.text(self.latex, parts),
            PRODUCT if self.is_bare else self.binds,
            lambda op: self._run(op, parts),
            lambda by: total(*self._slopes(parts, by)),
            lambda op: self(*(part.put(op) for part in parts)),
            single=all(part.single for part in parts),
            names=_names(*parts),
            key=(self, *(part.same for part in parts)),
            call=(self, parts),
        )

    def _run(self, op: Any, parts: tuple[Expression, ...]) -> Any:
        if isinstance(op, Elements):
            return (self.spelled or partial(apply, self))(*(element_of(part.run(op)) for part in parts))
        return self.code(*(like(part.run(op), op) for part in parts))

    def _slopes(self, parts: tuple[Expression, ...], by: str) -> Iterator[Expression]:
        for place, part in enumerate(parts):
            inner = part.derivative(by)
            if inner.value != 0:
                yield self.slopes[place](*parts) * inner

    def text(self, latex: str, operands: tuple[Expression, ...]) -> str:
        """The LaTeX with the operands filled in, in brackets of their size."""
        if self.is_bare:
            inner = operands[0].at(self.inside)
            return latex[:-2] + ("" if inner.startswith(r"\left(") else " ") + inner
        texts = [each.text for each in operands]
        if not all(re.fullmatch(r"-?\$?[\w.]+", each) for each in texts):
            latex = re.sub(r"\((@[^()]*)\)", r"\\left(\1\\right)", latex)
        if latex.endswith("^{@}"):  # a quotient in an exponent is written in a line
            texts = [re.sub(r"^(-?)\\frac\{((?:[^{}+]|\{[^{}]*\})*)\}\{([\d.]+)\}$", r"\1\2 / \3", texts[0])]
        return re.sub(r"@(\d?)", lambda found: texts[int(found[1] or 1) - 1], latex)


def cases(value: Any, condition: Expression, otherwise: Any = 0) -> Expression:
    """One value where a condition holds, another elsewhere. Several cases: those of `otherwise` follow."""
    first, second = of(value), of(otherwise)

    def run(op: Any) -> Any:
        if (first.value, second.value) not in ((1, 0), (0, 1)) or isinstance(op, Elements):
            return _where(condition, first, second, op)
        mask = condition.run(op)
        return mask if first.value == 1 else ~mask

    def derivative(by: str) -> Expression:
        slopes = first.derivative(by), second.derivative(by)
        return slopes[0] if slopes[0].same == slopes[1].same else cases(slopes[0], condition, slopes[1])

    return Expression(
        r"\begin{cases} " + r" \\ ".join(map(" & ".join, _rows(first, condition, second))) + r" \end{cases}",
        PRODUCT,
        run,
        derivative,
        lambda op: cases(first.put(op), condition.put(op), second.put(op)),
        names=_names(first, condition, second),
        branches=(first, condition, second),
    )


def _where(condition: Expression, first: Expression, second: Expression, op: Any) -> Any:
    """One formula where a condition holds, another elsewhere."""
    mask = condition.run(op)
    if isinstance(op, Elements):
        opposite = condition.call[0].opposite if condition.call else ""
        return either(lambda: first.run(op), element_of(mask), lambda: second.run(op), opposite)
    return torch.where(mask, like(first.run(op), op), like(second.run(op), op))


def _rows(value: Expression, condition: Expression, otherwise: Expression) -> list[tuple[str, str]]:
    """The rows of cases; of two, both have their condition, and a 0 or what lies below is the second."""
    row = (value.text, condition.text)
    if otherwise.branches:
        return [row, *_rows(*otherwise.branches)]
    if condition.call is None or not condition.call[0].opposite:
        return [row, (otherwise.text, r"\text{otherwise}")]
    function, operands = condition.call
    rows = [row, (otherwise.text, function.text(function.opposite, operands))]
    return rows[::-1] if value.value == 0 or (function is AT_MOST and otherwise.value != 0) else rows


def times_upstream(local: Expression, argument: str, op: Any) -> str:
    """The upstream gradient times a local derivative (its conjugate, of a complex output), as written by hand."""
    operand = op.arguments.get(argument)
    of_real = op.out.is_complex() and isinstance(operand, Tensor) and not operand.is_complex()
    text = _times_upstream(local, op)
    return rf"\operatorname{{Re}}\left({text}\right)" if of_real else text


def _times_upstream(local: Expression, op: Any) -> str:
    known, upstream = local.put(op), G.put(op)
    if op.out.is_complex() and known.value is None:
        size, core = fraction(*known.times), product(known, 1 / fraction(*known.times))
        known = size * (core.call[1][0] if core.call and core.call[0] is CONJUGATE else CONJUGATE(core))
    minus, rest = ("-", known.text[1:]) if known.text.startswith("-") else ("", known.text)
    factors = known.factors or ()
    is_fraction = known.times[1] != 1 or any(_is_below(exponent) for _, exponent in factors)
    if is_fraction and any(not _is_below(exponent) and not base.is_constant for base, exponent in factors):
        return rf"{minus}$g \, {rest}" if known.single or upstream.single else rf"{minus}$g \odot {rest}"
    return product(upstream, known).text


def without_brackets(template: str, symbols: Mapping[str, str]) -> str:
    r"""Drop the brackets of `\left($x\right)^{2}` where the symbol of x needs none: one letter, a name, a number."""

    def bare(found: re.Match[str]) -> str:
        symbol = symbols.get(found[1], "")
        return f"${{{found[1]}}}" if re.fullmatch(r"[\w.]+|\\\w+\{[\w\\]+\}|\w_\{\w+\}", symbol) else found[0]

    return re.sub(r"\\left\(\$(\w+)\\right\)(?=\^)", bare, template)


X, OTHER, OUT, G = argument("self"), argument("other"), argument("out"), argument("g")
HALF = fraction(1, 2)

LESS: Named = Named("@1 < @2", operator.lt, (), SUM, r"@1 \ge @2")
AT_MOST: Named = Named(r"@1 \le @2", operator.le, (), SUM, "@1 > @2")
MORE: Named = Named("@1 > @2", operator.gt, (), SUM, r"@1 \le @2")
AT_LEAST: Named = Named(r"@1 \ge @2", operator.ge, (), SUM, "@1 < @2")
EQUAL = Named("@1 = @2", operator.eq, (), SUM)
# NaN lies inside, as for PyTorch, which asks whether it lies outside.
INSIDE = Named("@1 < @2 < @3", lambda low, z, high: ~((z <= low) | (z >= high)), (), SUM)
CONJUGATE = Named(r"\overline{@}", torch.conj)
