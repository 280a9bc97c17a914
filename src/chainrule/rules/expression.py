r"""Formulas of elements, each written once: a formula prints LaTeX, runs on tensors, and differentiates itself.

`1 - OUT**2` is $1 - y^2$ for a reader and `1 - op.out**2` for the walk, so the formula cannot part from the code.
Arithmetic keeps a formula in one plain form (like terms added up, numbers in front, one fraction), so that derivatives
come out as one would write them. Arguments that an operation got as numbers are printed as those numbers.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor

SUM, PRODUCT, POWER, ATOM = range(4)  # how tightly a formula binds


def number(value: float) -> str:
    """A Python number in LaTeX."""
    if isinstance(value, float) and not math.isfinite(value):
        return r"\mathrm{NaN}" if math.isnan(value) else r"\infty" if value > 0 else r"-\infty"
    text = f"{value:g}" if isinstance(value, float) else str(value)
    mantissa, _, exponent = text.partition("e")
    return text if not exponent else rf"{mantissa} \cdot 10^{{{int(exponent)}}}"


class Expression:
    """A formula. `text` is its LaTeX template, `binds` how tightly that holds together, `parts` what it is made of."""

    binds: int = ATOM
    text: str
    parts: tuple[Expression, ...] = ()

    def run(self, op: Any) -> Any:
        """Its value for an operation: a tensor, a Python number, or a mask where it is 1 or 0."""
        raise NotImplementedError

    def derivative(self, name: str) -> Expression:
        """Its derivative with respect to an argument."""
        raise NotImplementedError

    def made_of(self, parts: tuple[Expression, ...]) -> Expression:
        """The same formula of other parts."""
        return self

    def put(self, op: Any) -> Expression:
        """The formula for a reader of this operation: arguments that are numbers put in."""
        return self.made_of(tuple(part.put(op) for part in self.parts))

    def __call__(self, op: Any) -> str:
        """The LaTeX template for an operation, with the abbreviations in it written out behind."""
        known = self.put(op)
        meanings = dict.fromkeys(f"{each.symbol} = {each.inner.text}" for each in known.abbreviations())
        return r", \quad ".join([known.text, *meanings])

    def abbreviations(self) -> Iterator[Let]:
        """The abbreviations in it, outermost first."""
        for part in self.parts:
            yield from part.abbreviations()

    @property
    def scalar(self) -> bool:
        """Whether it is a single number, so that multiplying by it is no product of elements."""
        return all(part.scalar for part in self.parts)

    def at(self, level: int) -> str:
        """Its LaTeX inside something that binds as tightly as `level`."""
        return self.text if self.binds >= level else rf"\left({self.text}\right)"

    def but(self, value: Any, when: Expression) -> Expression:
        """The formula, computed as `value` in places that a remark tells or where it has a limit alone."""
        return Guarded(self, of(value), when)

    def between(self, low: Any, high: Any) -> Expression:
        """Whether it lies inside two bounds; NaN does, as for PyTorch."""
        return INSIDE(low, self, high)

    def equals(self, other: Any) -> Expression:
        """Whether both are the same number (`==` compares the formulas)."""
        return EQUAL(self, other)

    def __add__(self, other: Any) -> Expression:
        return total(self, of(other))

    def __radd__(self, other: Any) -> Expression:
        return total(of(other), self)

    def __neg__(self) -> Expression:
        return product(of(-1), self)

    def __sub__(self, other: Any) -> Expression:
        return total(self, -of(other))

    def __rsub__(self, other: Any) -> Expression:
        return total(of(other), -self)

    def __mul__(self, other: Any) -> Expression:
        return product(self, of(other))

    def __rmul__(self, other: Any) -> Expression:
        return product(of(other), self)

    def __truediv__(self, other: Any) -> Expression:
        return product(self, power(of(other), of(-1)))

    def __rtruediv__(self, other: Any) -> Expression:
        return product(of(other), power(self, of(-1)))

    def __pow__(self, exponent: Any) -> Expression:
        return power(self, of(exponent))

    def __lt__(self, other: Any) -> Expression:
        return LESS(self, other)

    def __le__(self, other: Any) -> Expression:
        return AT_MOST(self, other)

    def __gt__(self, other: Any) -> Expression:
        return MORE(self, other)

    def __ge__(self, other: Any) -> Expression:
        return AT_LEAST(self, other)


@dataclass(frozen=True)
class Number(Expression):
    """A number, as a fraction in lowest terms where it is one."""

    top: Any
    bottom: Any = 1

    @property
    def value(self) -> Any:
        return self.top if self.bottom == 1 else self.top / self.bottom

    @property
    def text(self) -> str:  # type: ignore[override]
        return Product(self, ()).text

    @property
    def binds(self) -> int:  # type: ignore[override]
        return ATOM if self.bottom == 1 and self.top >= 0 else POWER if self.top >= 0 else PRODUCT

    def run(self, op: Any) -> Any:
        return self.value

    def derivative(self, name: str) -> Expression:
        return ZERO


def fraction(top: Any, bottom: Any = 1) -> Number:
    """A number in its plain form."""
    top, bottom = (int(v) if isinstance(v, (bool, float)) and abs(v) < 1e6 and v == int(v) else v for v in (top, bottom))
    if isinstance(top, int) and isinstance(bottom, int) and bottom:
        common = math.gcd(top, bottom) * (1 if bottom > 0 else -1)
        return Number(top // common, bottom // common)
    return Number(top / bottom) if isinstance(top, float) and bottom else Number(top, bottom)


def of(value: Any) -> Expression:
    """A number as a formula; a formula is itself."""
    return value if isinstance(value, Expression) else fraction(value)


ZERO, ONE = Number(0), Number(1)


@dataclass(frozen=True)
class Argument(Expression):
    """An argument of the operation, its output (`out`), or the upstream gradient (`g`); `default` where it has none."""

    name: str
    default: Any = None
    single: bool = False

    @property
    def text(self) -> str:  # type: ignore[override]
        return f"${self.name}"

    @property
    def scalar(self) -> bool:
        return self.single

    def _of(self, op: Any) -> Any:
        value = op.out if self.name in ("out", "g") else op.arguments.get(self.name)
        return self.default if value is None else value

    def run(self, op: Any) -> Any:
        value = self._of(op)
        whole = isinstance(value, Tensor) and not (value.is_floating_point() or value.is_complex())
        # Whole numbers in the result's precision: 1 divided by them would be float32.
        return value.to(op.out.dtype) if whole and value.dtype != torch.bool else value

    def derivative(self, name: str) -> Expression:
        return of(int(name == self.name))

    def put(self, op: Any) -> Expression:
        value = self._of(op)
        if isinstance(value, complex):
            return Symbol(f"({value.real:g}{value.imag:+g} \\, i)", value)
        if isinstance(value, int | float):
            return of(value)
        return Argument(self.name, self.default, isinstance(value, Tensor) and value.dim() == 0)


@dataclass(frozen=True)
class Symbol(Expression):
    """A number with a name, or a tensor that is no argument (`source` gives it for an operation): a drawn mask."""

    text: str
    source: Any

    @property
    def scalar(self) -> bool:
        return not callable(self.source)

    def run(self, op: Any) -> Any:
        return self.source(op) if callable(self.source) else self.source

    def derivative(self, name: str) -> Expression:
        return ZERO


@dataclass(frozen=True)
class Sum(Expression):
    """Two terms or more."""

    parts: tuple[Expression, ...]
    binds = SUM

    @property
    def text(self) -> str:  # type: ignore[override]
        first, *rest = (part.at(PRODUCT) for part in self.parts)
        return first + "".join(f" - {each[1:]}" if each.startswith("-") else f" + {each}" for each in rest)

    def made_of(self, parts: tuple[Expression, ...]) -> Expression:
        return total(*parts)

    def run(self, op: Any) -> Any:
        return reduce(operator.add, (part.run(op) for part in self.parts))

    def derivative(self, name: str) -> Expression:
        return total(*(part.derivative(name) for part in self.parts))


def total(*terms: Expression) -> Expression:
    """A sum with like terms added up."""
    found: dict[Expression, Number] = {}
    for term in (each for term in terms for each in (term.parts if isinstance(term, Sum) else (term,))):
        times, core = _split(term)
        known = found.get(core, ZERO)
        found[core] = fraction(known.top * times.bottom + times.top * known.bottom, known.bottom * times.bottom)
    kept = tuple(product(times, core) for core, times in found.items() if times.top != 0)
    return Sum(kept) if len(kept) > 1 else kept[0] if kept else ZERO


def _split(term: Expression) -> tuple[Number, Expression]:
    """A term as a number times the rest."""
    if isinstance(term, Product):
        return term.times, product(*(power(*pair) for pair in term.powers))
    return (term, ONE) if isinstance(term, Number) else (ONE, term)


@dataclass(frozen=True)
class Product(Expression):
    """A number times powers of distinct formulas; those with a negative exponent are the denominator."""

    times: Number
    powers: tuple[tuple[Expression, Expression], ...]

    @property
    def parts(self) -> tuple[Expression, ...]:  # type: ignore[override]
        return tuple(each for pair in self.powers for each in pair)

    @property
    def above(self) -> list[tuple[Expression, Expression]]:
        """The factors of the numerator: single numbers first, functions without brackets last."""
        return sorted((pair for pair in self.powers if not _is_below(pair[1])), key=_place)

    @property
    def below(self) -> list[tuple[Expression, Expression]]:
        """The factors of the denominator."""
        return sorted(((base, -exponent) for base, exponent in self.powers if _is_below(exponent)), key=_place)

    @property
    def is_fraction(self) -> bool:
        return bool(self.below) or self.times.bottom != 1

    @property
    def text(self) -> str:  # type: ignore[override]
        size = self.times.top
        sign = "-" if not isinstance(size, complex) and size < 0 else ""
        size = -size if sign else size
        if self.is_fraction:
            return rf"{sign}\frac{{{_row(size, self.above)}}}{{{_row(self.times.bottom, self.below)}}}"
        return sign + _joined(size, self.above)

    @property
    def binds(self) -> int:  # type: ignore[override]
        return POWER if self.times.top == 1 and (self.is_fraction or len(self.powers) == 1) else PRODUCT

    def made_of(self, parts: tuple[Expression, ...]) -> Expression:
        return product(self.times, *map(power, parts[::2], parts[1::2]))

    def run(self, op: Any) -> Any:
        top, bottom = self.times.top, self.times.bottom
        for base, exponent in self.powers:
            value = base.run(op)
            if _is_below(exponent):
                bottom = _times(bottom, _raised(value, (-exponent).run(op)))
            else:
                top = _times(top, _raised(value, exponent.run(op)))
        return top if isinstance(bottom, int) and bottom == 1 else top / bottom

    def derivative(self, name: str) -> Expression:
        return total(*(
            product(self, power(base, of(-1)), exponent, base.derivative(name)) for base, exponent in self.powers
        ))  # fmt: skip


def _is_below(exponent: Expression) -> bool:
    return isinstance(exponent, Number) and exponent.value < 0


def _place(pair: tuple[Expression, Expression]) -> int:
    return 2 if _is_bare(pair[0]) else 0 if pair[0].scalar else 1


def _is_bare(base: Expression) -> bool:
    return isinstance(base, Call) and base.function.is_bare


def _times(a: Any, b: Any) -> Any:
    return b if isinstance(a, int) and a == 1 else a * b


def _raised(base: Any, exponent: Any) -> Any:
    return base if isinstance(exponent, int) and exponent == 1 else base**exponent


def _row(size: Any, pairs: list[tuple[Expression, Expression]]) -> str:
    """The factors above or below a fraction's line, where a lone sum needs no brackets."""
    return pairs[0][0].text if size == 1 and len(pairs) == 1 and pairs[0][1] == ONE else _joined(size, pairs)


def _joined(size: Any, pairs: list[tuple[Expression, Expression]]) -> str:
    """Factors in a row: a thin space where one is a single number, nothing before brackets, else the product sign."""
    text, single = ("", True) if size == 1 and pairs else (number(size), True)
    for place, (base, exponent) in enumerate(pairs):
        factor = _power_text(base, exponent)
        if _is_bare(base) and place < len(pairs) - 1:
            factor = rf"\left({factor}\right)"
        if text:
            thin = single or base.scalar
            loose = " " if text[-1].isdigit() and isinstance(base, Symbol) or re.match(r"\\(left\((?!\$\w+\\right\)\^)|ln|log|sin|cos|tan|sinh|cosh)", factor) else r" \, "
            text += loose if thin else r" \odot "
        text, single = text + factor, base.scalar
    return text


def _power_text(base: Expression, exponent: Expression) -> str:
    if exponent == ONE:
        return base.at(PRODUCT)
    if _is_bare(base):
        function = base.function  # type: ignore[attr-defined]
        return str(function.text(f"{function.latex[:-2]}^{{{exponent.text}}} @", base.parts))
    # Brackets that a symbol does not need fall off when it is put in: see `without_brackets`.
    text = rf"\left({base.text}\right)" if isinstance(base, Argument) or "'" in base.text else base.at(ATOM)
    return rf"{text}^{{{exponent.text}}}"


def product(*factors: Expression) -> Expression:
    """A product with its numbers multiplied and equal bases put together."""
    top, bottom = 1, 1
    powers: dict[Expression, Expression] = {}
    for factor in factors:
        times, pairs = _factors(factor)
        top, bottom = top * times.top, bottom * times.bottom
        for base, exponent in pairs:
            powers[base] = powers[base] + exponent if base in powers else exponent
    times = fraction(top, bottom)
    kept = tuple(pair for pair in powers.items() if pair[1] != ZERO)
    if times == ZERO or not kept:
        return times
    return kept[0][0] if times == ONE and len(kept) == 1 and kept[0][1] == ONE else Product(times, kept)


def _factors(factor: Expression) -> tuple[Number, tuple[tuple[Expression, Expression], ...]]:
    if isinstance(factor, Product):
        return factor.times, factor.powers
    return (factor, ()) if isinstance(factor, Number) else (ONE, ((factor, ONE),))


def power(base: Expression, exponent: Expression) -> Expression:
    """A power; one of a product with a whole exponent is the product of powers."""
    if exponent == ONE or exponent == ZERO:
        return base if exponent == ONE else ONE
    if isinstance(exponent, Number) and isinstance(exponent.value, int):
        times, pairs = _factors(base)
        top, bottom = (times.top, times.bottom) if exponent.value > 0 else (times.bottom, times.top)
        raised = fraction(top ** abs(exponent.value), bottom ** abs(exponent.value))
        kept = tuple((each, product(own, exponent)) for each, own in pairs)
        return Product(raised, kept) if kept else raised
    if isinstance(exponent, Number) and isinstance(base, Number):
        return fraction(base.value**exponent.value)
    return Product(ONE, ((base, exponent),))


@dataclass(frozen=True, eq=False)
class Named:
    r"""A function with a name: LaTeX with `@` (`@1`, `@2`) for its operands, its code, and its slope by each operand.

    A comparison has an `opposite`, for the other one of two cases.
    """

    latex: str
    code: Callable[..., Any]
    slopes: tuple[Callable[..., Any], ...] = ()
    binds: int = ATOM
    opposite: str = ""

    @property
    def is_bare(self) -> bool:
        r"""Whether its operand stands without brackets: `\ln x`."""
        return self.latex.endswith(" @")

    def __call__(self, *operands: Any) -> Expression:
        return Call(self, tuple(map(of, operands)))

    def text(self, latex: str, operands: tuple[Expression, ...]) -> str:
        """The LaTeX with the operands filled in, in brackets of their size."""
        if self.is_bare:
            inner = operands[0].at(POWER)
            return latex[:-2] + ("" if inner.startswith(r"\left(") else " ") + inner
        texts = [each.text for each in operands]
        if not all(re.fullmatch(r"-?\$?[\w.]+", each) for each in texts):
            latex = re.sub(r"\((@.*)\)", r"\\left(\1\\right)", latex)
        if latex.endswith("^{@}"):
            texts = [re.sub(r"^(-?)\\frac\{((?:[^{}+]|\{[^{}]*\})*)\}\{([\d.]+)\}$", r"\1\2 / \3", texts[0])]
        return re.sub(r"@(\d?)", lambda found: texts[int(found[1] or 1) - 1], latex)


@dataclass(frozen=True)
class Call(Expression):
    """A function of formulas."""

    function: Named
    parts: tuple[Expression, ...]

    @property
    def text(self) -> str:  # type: ignore[override]
        return self.function.text(self.function.latex, self.parts)

    @property
    def binds(self) -> int:  # type: ignore[override]
        return PRODUCT if self.function.is_bare else self.function.binds

    def made_of(self, parts: tuple[Expression, ...]) -> Expression:
        return Call(self.function, parts)

    def run(self, op: Any) -> Any:
        return self.function.code(*(like(part.run(op), op) for part in self.parts))

    def derivative(self, name: str) -> Expression:
        inner = [part.derivative(name) for part in self.parts]
        return total(*(
            product(of(self.function.slopes[place](*self.parts)), each)
            for place, each in enumerate(inner) if each != ZERO
        ))  # fmt: skip


def like(value: Any, op: Any) -> Tensor:
    """A value that may be a Python number, as a tensor in the precision of the operation's output."""
    return value if isinstance(value, Tensor) else torch.tensor(value, dtype=op.out.dtype, device=op.out.device)


@dataclass(frozen=True)
class Cases(Expression):
    """One value where a condition holds, another elsewhere; flat in its condition."""

    value: Expression
    condition: Expression
    otherwise: Expression

    @property
    def parts(self) -> tuple[Expression, ...]:  # type: ignore[override]
        return self.value, self.condition, self.otherwise

    @property
    def text(self) -> str:  # type: ignore[override]
        rows, last = [], self
        while isinstance(last, Cases):
            rows.append((last.value.text, last.condition.text))
            final, last = last.condition, last.otherwise  # type: ignore[assignment]
        closing = (last.text, r"\text{otherwise}")
        if len(rows) == 1 and isinstance(final, Call) and final.function.opposite:
            closing = (last.text, final.function.text(final.function.opposite, final.parts))
            is_second = self.value == ZERO or (final.function == AT_MOST and self.otherwise != ZERO)
            rows = [closing, *rows] if is_second else [*rows, closing]
        else:
            rows.append(closing)
        return r"\begin{cases} " + r" \\ ".join(" & ".join(row) for row in rows) + r" \end{cases}"

    def made_of(self, parts: tuple[Expression, ...]) -> Expression:
        return Cases(*parts)

    def run(self, op: Any) -> Any:
        mask = self.condition.run(op)
        if (self.value, self.otherwise) in ((ONE, ZERO), (ZERO, ONE)):
            return mask if self.value == ONE else ~mask
        return torch.where(mask, like(self.value.run(op), op), like(self.otherwise.run(op), op))

    def derivative(self, name: str) -> Expression:
        value, otherwise = self.value.derivative(name), self.otherwise.derivative(name)
        return value if value == otherwise else Cases(value, self.condition, otherwise)


def cases(value: Any, condition: Expression, otherwise: Any = 0) -> Expression:
    """One value where a condition holds, another elsewhere. Several cases: those of `otherwise` follow."""
    return Cases(of(value), condition, of(otherwise))


@dataclass(frozen=True)
class Guarded(Expression):
    """A formula that is computed as another value in some places; a reader is shown the formula alone."""

    inner: Expression
    value: Expression
    when: Expression

    def put(self, op: Any) -> Expression:
        return self.inner.put(op)

    def run(self, op: Any) -> Any:
        return torch.where(self.when.run(op), like(self.value.run(op), op), like(self.inner.run(op), op))

    def derivative(self, name: str) -> Expression:
        return Guarded(self.inner.derivative(name), self.value.derivative(name), self.when)


@dataclass(frozen=True)
class Let(Expression):
    """An abbreviation; with `primed` its derivatives by `self` are abbreviated too, as u' and u''."""

    symbol: str
    inner: Expression
    primed: bool = False

    @property
    def text(self) -> str:  # type: ignore[override]
        return self.symbol

    @property
    def parts(self) -> tuple[Expression, ...]:  # type: ignore[override]
        return (self.inner,)

    def made_of(self, parts: tuple[Expression, ...]) -> Expression:
        return Let(self.symbol, *parts, self.primed)

    def abbreviations(self) -> Iterator[Let]:
        yield self
        yield from self.inner.abbreviations()

    def run(self, op: Any) -> Any:
        return self.inner.run(op)

    def derivative(self, name: str) -> Expression:
        slope = self.inner.derivative(name)
        return Let(f"{self.symbol}'", slope, True) if self.primed and slope != ZERO else slope


@dataclass(frozen=True)
class Choice(Expression):
    """A formula whose form depends on how the operation was called."""

    choose: Callable[[Any], Any]

    def put(self, op: Any) -> Expression:
        return of(self.choose(op)).put(op)

    def run(self, op: Any) -> Any:
        return of(self.choose(op)).run(op)

    def derivative(self, name: str) -> Expression:
        return Choice(lambda op: of(self.choose(op)).derivative(name))


@dataclass(frozen=True)
class Equation(Expression):
    """The output = a formula, with a remark in words behind it."""

    inner: Expression
    remark: str = ""

    def __call__(self, op: Any) -> str:
        return f"$out = {self.inner(op)}{self.remark}"

    def run(self, op: Any) -> Any:
        return self.inner.run(op)

    def derivative(self, name: str) -> Expression:
        return self.inner.derivative(name)


def times_upstream(local: Expression, op: Any) -> str:
    """The upstream gradient times a local derivative, as one would write it by hand."""
    known, upstream = local.put(op), Argument("g").put(op)
    if isinstance(known, Product) and known.is_fraction and known.above:
        sign, rest = ("-", (-known).text) if known.text.startswith("-") else ("", known.text)
        return rf"{sign}{rest} \, $g" if known.scalar or upstream.scalar else rf"{sign}$g \odot {rest}"
    return product(upstream, known).text


def without_brackets(template: str, symbols: Any) -> str:
    r"""Drop the brackets of `\left($x\right)^{2}` where the symbol of x needs none: one letter, a name, a number."""

    def bare(found: re.Match[str]) -> str:
        symbol = str(symbols.get(found[1], "^"))
        return f"${{{found[1]}}}" if re.fullmatch(r"[\w.]+|\\\w+\{[\w\\]+\}|\w_\{\w+\}", symbol) else found[0]

    return re.sub(r"\\left\(\$(\w+)\\right\)(?=\^)", bare, template)


X, OTHER, OUT, G = Argument("self"), Argument("other"), Argument("out"), Argument("g")
PI, I = Symbol(r"\pi", math.pi), Symbol("i", 1j)
HALF = fraction(1, 2)

LESS = Named("@1 < @2", operator.lt, (), SUM, r"@1 \ge @2")
AT_MOST = Named(r"@1 \le @2", operator.le, (), SUM, "@1 > @2")
MORE = Named("@1 > @2", operator.gt, (), SUM, r"@1 \le @2")
AT_LEAST = Named(r"@1 \ge @2", operator.ge, (), SUM, "@1 < @2")
EQUAL = Named("@1 = @2", operator.eq, (), SUM)
# NaN lies inside, as for PyTorch, which asks whether it lies outside.
INSIDE = Named("@1 < @2 < @3", lambda low, z, high: ~((z <= low) | (z >= high)), (), SUM)

exp = Named("e^{@}", torch.exp, (lambda u: exp(u),), POWER)
exp2 = Named("2^{@}", torch.exp2, (lambda u: exp2(u) * ln(2),), POWER)
ln = Named(r"\ln @", torch.log, (lambda u: 1 / u,))
ln1p = Named(r"\ln\left(1 + @\right)", torch.log1p, (lambda u: 1 / (1 + u),))
softplus = Named(r"\ln\left(1 + e^{@}\right)", torch.nn.functional.softplus, (lambda u: sigma(u),))
log2 = Named(r"\log_2 @", torch.log2, (lambda u: 1 / (u * ln(2)),))
log10 = Named(r"\log_{10} @", torch.log10, (lambda u: 1 / (u * ln(10)),))
sqrt = Named(r"\sqrt{@}", torch.sqrt, (lambda u: 1 / (2 * sqrt(u)),))
sin = Named(r"\sin @", torch.sin, (lambda u: cos(u),))
cos = Named(r"\cos @", torch.cos, (lambda u: -sin(u),))
tan = Named(r"\tan @", torch.tan, (lambda u: 1 + tan(u) ** 2,))
sinh = Named(r"\sinh @", torch.sinh, (lambda u: cosh(u),))
cosh = Named(r"\cosh @", torch.cosh, (lambda u: sinh(u),))
tanh = Named(r"\tanh @", torch.tanh, (lambda u: 1 - tanh(u) ** 2,))
sigma = Named(r"\sigma(@)", torch.sigmoid, (lambda u: sigma(u) * (1 - sigma(u)),))
Phi = Named(r"\Phi(@)", lambda z: 0.5 * (1 + torch.erf(z / math.sqrt(2))), (lambda u: phi(u),))
phi = Named(r"\varphi(@)", lambda z: (-0.5 * z * z).exp() / math.sqrt(2 * math.pi), (lambda u: -u * phi(u),))
sign = Named(r"\operatorname{sign}(@)", lambda z: z.sgn().conj(), (lambda u: 0,))
size = Named(r"\left|@\right|", torch.abs, (sign,))
highest = Named(r"\max(@1, @2)", torch.maximum)
lowest = Named(r"\min(@1, @2)", torch.minimum)
