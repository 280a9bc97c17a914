"""The formula of one element of a result: a tree of the numbers that it was computed from.

A rule's formula that is run on `Elements` in place of tensors gives such a tree, as arithmetic of `Element`s keeps how
each number came about. The tree is written twice, with the names of the elements and with their numbers, in the
notation of Python: `σ(Z[0,1])` and `σ(-2.3)`.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

Index = tuple[int, ...]
SUM, PRODUCT, POWER, ATOM = range(4)  # how tightly a text binds
LARGE = 80.0  # beyond this an exponential overflows in single precision
MOST = 1_024  # elements that one formula is made of

PLAIN = {  # functions whose name in LaTeX is not that of a function
    "e^{@}": "exp(@)",
    "2^{@}": "exp2(@)",
    r"\left|@\right|": "abs(@)",
    r"\lfloor @ \rfloor": "floor(@)",
    r"\lceil @ \rceil": "ceil(@)",
    r"\left\lfloor \frac{@1}{@2} \right\rfloor": "floor(@1 / @2)",
    r"\operatorname{trunc}\left(\frac{@1}{@2}\right)": "trunc(@1 / @2)",
    r"\overline{@}": "conj(@)",
    r"\sqrt{@}": "sqrt(@)",
    r"\ln\left(1 + e^{@}\right)": "ln(1 + exp(@))",
    r"e^{-\left|@\right|} \odot I_0(@)": "exp(-abs(@)) * I0(@)",
    r"e^{-\left|@\right|} \odot I_1(@)": "exp(-abs(@)) * I1(@)",
    r"\Phi^{-1}(@)": "Φinv(@)",
    r"\operatorname{erf}^{-1}(@)": "erfinv(@)",
    r"\psi^{(1)}(@)": "ψ1(@)",
    r"\ln \sigma(@)": "ln(σ(@))",
    r"\left|@\right| < \infty": "abs(@) < inf",
}
WORDS = {
    r"\sigma": "σ", r"\Phi": "Φ", r"\varphi": "φ", r"\psi": "ψ", r"\zeta": "ζ", r"\pi": "π", r"\mathrm{i}": "1j",
    r"\Gamma": "Γ", r"\le": "<=", r"\ge": ">=", r"\neq": "!=", r"\left": "", r"\right": "", "_2": "2", "_0": "0",
    "_1": "1", r"\text{ or }": " or ", " = ": " == ",
}  # fmt: skip


class TooManyError(Exception):
    """The formula is made of more elements than are listed."""


@cache
def plain(latex: str) -> str:
    r"""A function's LaTeX in the notation of Python: `ln(@)` for `\ln @`; what has none keeps its backslashes."""
    if latex in PLAIN:
        return PLAIN[latex]
    text = re.sub(r"\\operatorname\{(\w+)\}|[_^]\{\(?(\d+)\)?\}", lambda found: found[1] or found[2], latex)
    text = text.replace(r"\ln \Gamma", "lnΓ")
    for word, meaning in WORDS.items():
        text = re.sub(re.escape(word) + r"(?![a-z])", lambda _, meaning=meaning: meaning, text)  # type: ignore[misc]
    return re.sub(r"\\?(\w+) @$", r"\1(@)", text).replace("\\", "" if re.fullmatch(r"\\\w+\(.*\)", text) else "\\")


@dataclass(frozen=True, eq=False, slots=True)
class Element:
    """A number: `value`, how it was computed (`code` of `parts`), and how that is written.

    `text` is a template with `@1` for the first part. A number without parts is an operand's element, of which `source`
    is (argument, item of a list, index), or a constant. One with a `name` is written as that, and worked out beside.
    """

    value: Any
    text: str = ""
    parts: tuple[Element, ...] = ()
    code: Callable[..., Any] = field(default=lambda value: value, repr=False)
    binds: int = ATOM
    source: tuple[str, int | None, Index] | None = None
    name: str = ""
    condition: Element | None = None

    def __add__(self, other: Any) -> Element:
        return total([self, other])

    def __radd__(self, other: Any) -> Element:
        return total([other, self])

    def __sub__(self, other: Any) -> Element:
        return total([self, -of(other)])

    def __rsub__(self, other: Any) -> Element:
        return total([other, -self])

    def __neg__(self) -> Element:
        return self.parts[0] if self.text == "-@1" else _made("-@1", operator.neg, PRODUCT, self)

    def __mul__(self, other: Any) -> Element:
        return _times(self, of(other))

    def __rmul__(self, other: Any) -> Element:
        return _times(of(other), self)

    def __truediv__(self, other: Any) -> Element:
        return self if _is(other, 1) else _made("@1 / @2", _divided, PRODUCT, self, of(other))

    def __rtruediv__(self, other: Any) -> Element:
        return of(other) / self

    def __pow__(self, other: Any) -> Element:
        return self if _is(other, 1) else _made("@1**@2", _power, POWER, self, of(other))

    def __rpow__(self, other: Any) -> Element:
        return of(other) ** self

    def leaves(self, worked_out: bool = True) -> Iterator[Element]:
        """The numbers that it is made of, each use of one; with those that are worked out beside it, or without."""
        found: list[Element] = []
        self._collect(found, worked_out)
        return iter(found)

    def _collect(self, found: list[Element], worked_out: bool) -> None:
        named = []
        for part in self.parts:
            if worked_out or not part.name:
                part._collect(found, worked_out)
            else:
                named.append(part)
        if not self.parts:
            found.append(self)
        found += named
        if self.condition is not None:
            self.condition._collect(found, True)

    def named(self) -> Iterator[Element]:
        """The parts that have a name of their own, each before what it is made of."""
        for part in self.parts:
            if part.name and part.parts:
                yield part
            yield from part.named()

    def conditions(self) -> Iterator[Element]:
        """The conditions that decided which formula holds; not those of parts with a name."""
        if self.condition is not None:
            yield self.condition
        for part in self.parts:
            if not part.name:
                yield from part.conditions()

    @property
    def terms(self) -> tuple[Element, ...]:
        """What it is the sum of: itself, where it is none."""
        return self.parts if self.text == "+" and not self.name else (self,)

    @property
    def factors(self) -> tuple[Element, ...]:
        """What it is the product of: itself, where it is none."""
        return self.parts if self.text == "*" and not self.name else (self,)

    def replaced(self, by: Callable[[Element], Element]) -> Element:
        """The same formula with other numbers in it."""
        if not self.parts:
            return by(self)
        return replace(self, parts=tuple(part.replaced(by) for part in self.parts))

    def at(self, rounded: Callable[[Element], Any], is_whole: bool = True) -> Any:
        """The number that comes out where all that are written are rounded."""
        if self.parts and (is_whole or not self.name):
            return self.code(*(part.at(rounded, False) for part in self.parts))
        return rounded(self)

    def written(self, leaf: Callable[[Element], str], level: int = SUM, is_whole: bool = True) -> str:
        """The formula, with each number as `leaf` writes it."""
        text, binds = self._written(leaf, is_whole)
        return f"({text})" if binds < level else text

    def _written(self, leaf: Callable[[Element], str], is_whole: bool) -> tuple[str, int]:
        if not self.parts or (self.name and not is_whole):
            text = leaf(self)
            return text, SUM if re.search(r"(?<!e)[+-].", text[1:]) and "[" not in text else (
                PRODUCT if text.startswith("-") else ATOM
            )
        if self.text == "+":
            first, *rest = (part.written(leaf, PRODUCT, False) for part in self.parts)
            return first + "".join(f" - {each[1:]}" if each[0] == "-" else f" + {each}" for each in rest), SUM
        if self.text == "*":
            return " * ".join(part.written(leaf, PRODUCT, False) for part in self.parts), PRODUCT
        if self.text == "-@1":
            inner = self.parts[0].written(leaf, PRODUCT, False)
            return f"-({inner})" if inner[0] == "-" else f"-{inner}", PRODUCT
        if self.text == "@1 / @2":
            top, bottom = self.parts
            if all(isinstance(part.value, int) and not part.parts and not part.source for part in self.parts):
                return f"{top.value}/{bottom.value}", PRODUCT
            return f"{top.written(leaf, PRODUCT, False)} / {bottom.written(leaf, POWER, False)}", PRODUCT
        inside = ATOM if re.search(r"[^(, ]@|[+*/] @|@\d*( [+*/]|\*)", self.text) else SUM
        texts = [part.written(leaf, inside, False) for part in self.parts]
        return re.sub(r"@(\d*)", lambda found: texts[int(found[1] or 1) - 1], self.text), self.binds


def of(value: Any) -> Element:
    """A number as a constant."""
    if isinstance(value, complex) and not value.imag:
        value = value.real
    return value if isinstance(value, Element) else Element(int(value) if isinstance(value, bool) else value)


def _is(value: Any, number: int) -> bool:
    """Whether a value is this plain number."""
    bare = value.value if isinstance(value, Element) and not value.parts and value.source is None else value
    return isinstance(bare, (int, float)) and bare == number


def _made(text: str, code: Callable[..., Any], binds: int, *parts: Element) -> Element:
    return Element(code(*(part.value for part in parts)), text, parts, code, binds)


def _divided(top: Any, bottom: Any) -> Any:
    return top / bottom if bottom else (torch.tensor(top, dtype=_type(top)) / bottom).item()


def _power(base: Any, exponent: Any) -> Any:
    return torch.pow(torch.tensor(base, dtype=_type(base)), exponent).item()


def of_number(function: Callable[[Tensor], Tensor]) -> Callable[[Any], Any]:
    """A function of tensors as one of a single number, in double precision."""
    return lambda value: function(torch.tensor(value, dtype=_type(value))).item()


def _type(value: Any) -> torch.dtype:
    return torch.complex128 if isinstance(value, complex) else torch.float64


def total(parts: Iterable[Any], keep: bool = False) -> Element:
    """The sum of some numbers; a plain 0 is left out."""
    terms = [term for part in parts for term in of(part).terms if keep or not _is(term, 0)]
    if len(terms) < 2:
        return terms[0] if terms else of(0)
    return _made("+", lambda *values: sum(values), SUM, *terms)


def product(parts: Iterable[Any]) -> Element:
    """The product of some numbers."""
    factors = [of(part) for part in parts]
    return _made("*", lambda *values: math.prod(values), PRODUCT, *factors) if len(factors) > 1 else factors[0]


def _times(a: Element, b: Element) -> Element:
    if _is(a, 1) or _is(b, 1):
        return b if _is(a, 1) else a
    if _is(a, -1) or _is(b, -1):
        return -(b if _is(a, -1) else a)
    return product((*a.factors, *b.factors))


def call(name: str, code: Callable[..., Any], *parts: Any) -> Element:
    """A named function of numbers, such as `max` of several."""
    listed = ", ".join(f"@{place}" for place in range(1, len(parts) + 1))
    return _made(f"{name}({listed})", code, ATOM, *map(of, parts))


def apply(function: Any, *parts: Any) -> Element:
    """A function of formulas (`expression.Named`), of numbers."""

    def code(*values: Any) -> Any:
        kind = torch.complex128 if any(isinstance(value, complex) for value in values) else torch.float64
        return function.code(*(torch.tensor(value, dtype=kind) for value in values)).item()

    binds = ATOM if plain(function.latex).endswith(")") else SUM
    return _made(plain(function.latex), code, binds, *map(of, parts))


def either(first: Callable[[], Any], condition: Any, second: Callable[[], Any], opposite: str) -> Element:
    """The one of two numbers that a condition chooses, which keeps the condition."""
    chosen = of(first() if condition.value else second())
    if not condition.value:
        if not opposite:
            return chosen
        condition = Element(True, plain(opposite), condition.parts, condition.code, SUM)
    return replace(chosen, condition=condition if chosen.condition is None else chosen.condition)


def let(name: str, meaning: Element) -> Element:
    """A number that is written as a name, and worked out beside the formula."""
    return replace(meaning, name=name)


def largest(parts: Sequence[Element]) -> Element:
    """The largest of some numbers."""
    return call("max", max, *parts) if len(parts) > 1 else parts[0]


def smallest(parts: Sequence[Element]) -> Element:
    """The smallest of some numbers."""
    return call("min", min, *parts) if len(parts) > 1 else parts[0]


def exps(parts: Sequence[Element]) -> tuple[list[Element], Element]:
    """The exponentials of some numbers, all divided by that of one number, which is 0 unless they would overflow."""
    sizes = [abs(part.value) for part in parts if math.isfinite(abs(part.value))]
    most = of(max(part.value for part in parts) if max(sizes, default=0) > LARGE else 0)
    return [call("exp", of_number(torch.exp), part - most if most.value else part) for part in parts], most


def mean(parts: Sequence[Element]) -> Element:
    """The mean of some numbers."""
    return of(1) / of(len(parts)) * total(parts, keep=True)


def broadcast_index(out_index: Index, shape: Sequence[int]) -> Index:
    """The element of an operand of `shape` that broadcasting put at `out_index`."""
    kept = out_index[len(out_index) - len(shape) :]
    return tuple(0 if size == 1 else position for position, size in zip(kept, shape, strict=True))


class Elements:
    """An operation, seen from the element `index` of its output: each tensor is the element that meets it there.

    `whole` is the operation itself, `at` any element of an operand.
    """

    def __init__(self, whole: Any, index: Index) -> None:
        self.whole, self.index, self.count = whole, index, 0
        self.arguments = _Arguments(self)

    def __getattr__(self, name: str) -> Any:
        return self.arguments.get(name)

    @property
    def outs(self) -> list[Any]:
        """The elements of all outputs."""
        return [self.met(f"out{slot}", out) for slot, out in enumerate(self.whole.outs)]

    @property
    def out(self) -> Any:
        """The (first) output."""
        return self.outs[0]

    def at(self, argument: str, index: Sequence[int], item: int | None = None) -> Element:
        """One element of an operand; of one of a list where `item` is given."""
        self.count += 1
        if self.count > MOST:
            raise TooManyError
        data = self.whole.arguments[argument]
        data = data if item is None else data[item]
        place = tuple(int(i) for i in index)
        return Element(data[place].item(), source=(argument, item, place))

    def met(self, argument: str, data: Any) -> Any:
        """The element of a tensor that broadcasting brings to the output's; anything else is returned unchanged."""
        if not isinstance(data, Tensor):
            return data
        if data.dim() > len(self.index):
            raise IndexError(f"{argument} has more axes than the result")
        place = broadcast_index(self.index, data.shape)
        return self.at(argument, place) if argument in self.whole.arguments else of(data[place].item())


class _Arguments:
    def __init__(self, elements: Elements) -> None:
        self._elements = elements

    def get(self, name: str, default: Any = None) -> Any:
        found = self._elements.whole.arguments.get(name, default)
        return self._elements.met(name, found)

    __getitem__ = get


def whole(op: Any) -> Any:
    """The operation, where it is seen from one element."""
    return op.whole if isinstance(op, Elements) else op
