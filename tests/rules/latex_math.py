r"""Numbers from printed LaTeX: an evaluator for the formulas of the rules, which shares no code with them.

A text is parsed into clauses, separated by commas, semicolons, `\quad`, or words such as `\text{for}`:

- the first clause is the claim, `y_{ik} = \sum_j x_{ij} w_{jk}` or a bare expression; a later clause that begins with
  an operand, or with a derivative, is a claim too;
- `\hat{x}_{i} = ...` and `\lambda(t) = ...` define names, before or after their use;
- `0 \le i < 4` states the range of an index, or limits the claim;
- `x \text{ is 0 outside}` gives x the value 0 where an index names no element. Without it such an element is NaN.

The conventions are those of docs/glossary.md, "Formulas". In short: indices start at 0; an index that is bare in a
subscript of an operand runs over that axis; a letter that neither the left side, nor a sum, nor a range binds is an
error. Fewer subscripts than axes name a part, as in `x[i]`. Juxtaposition scales, or is the matrix product; `\odot`
is elementwise; `\cdot` of two vectors is their inner product.

To use it: `Statement(text, {"x": tensor, "y": tensor})`, then `.wrong_equation("y")` ("" if all is well),
`.jacobian("y", "x")`, or `.value()`. Names are those that print (`\bar{y}`, `\mathrm{other}`, `\beta_{1}`).
`elementwise=shape` reads every operand, broadcast to `shape`, as one element, so that juxtaposition is a product of
numbers and a bare `\sum` adds up all elements. `classes=axis` says further which axis counts classes: an operand
without it is one of samples, `\sum_c` goes over the classes and `\sum_n` over the samples. `along=dim` reads every
operand as its rows along one axis: the statement holds for each row.

How a value is represented: a tensor whose first axes are the indices in scope (size 1 where it does not depend on one)
and whose last axes are its own. So an index is an axis, a sum is a reduction over one, and nothing is looped over.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy
import scipy.linalg
import scipy.special
import torch
from torch import Tensor

SLACK = 1e-9  # a quotient of whole numbers may miss the whole number that it is by a rounding


class FormulaError(Exception):
    """The text is not a well-formed statement, or names something that is not bound."""


# Reading: text -> tokens -> tree -------------------------------------------------------------------------------------

Node = tuple[Any, ...]

NAMED = r"\\(?:text|mathrm|mathbf|mathsf|mathit|mathbb|mathcal|operatorname\*?)\{[^{}]*\}"
TOKEN = re.compile(rf"{NAMED}|\\begin\{{\w+\}}|\\end\{{\w+\}}|\\[a-zA-Z]+|\\.|\d+(?:\.\d+)?|\.\d+|\S")
BARS = {"|": (r"\lvert", r"\rvert"), r"\|": (r"\lVert", r"\rVert")}
SPACES = {r"\,", r"\;", r"\:", r"\!", r"\ ", "~", r"\displaystyle", r"\limits"}
SIZES = re.compile(r"\\(?:left|bigl?|Bigl?|biggl?)$"), re.compile(r"\\(?:right|bigr|Bigr|biggr)$")
SAME = {r"\leq": r"\le", r"\geq": r"\ge", r"\neq": r"\ne", r"\tfrac": r"\frac", r"\dfrac": r"\frac", r"\lbrack": "["}
ACCENTS = {r"\hat", r"\tilde", r"\bar", r"\dot", r"\vec", r"\check"}
RELATIONS = {"=", r"\ne", "<", ">", r"\le", r"\ge"}
OPEN, CLOSE = {"(", "[", "{", r"\{", r"\lfloor", r"\lceil", r"\lvert", r"\lVert", r"\langle"}, {
    ")", "]", "}", r"\}", r"\rfloor", r"\rceil", r"\rvert", r"\rVert", r"\rangle",
}  # fmt: skip
BIG = {r"\sum": "sum", r"\prod": "prod", r"\max": "max", r"\min": "min", r"\operatorname{mean}": "mean"}
BIG |= {r"\operatorname{any}": "max", r"\operatorname{all}": "min"}
BIG |= {rf"\operatorname{{{name}}}": name for name in ("median", "nanmedian", "mode")}
WORDS = re.compile(r"\\text\{\s*(for|where|if|with|and|or|is 0 outside|is stored|otherwise|\(?in each batch\)?)\s*\}")
ALONG = re.compile(r"(?:,?\s*\\(?:quad|qquad|;|,))*\s*\\text\{[,( ]*along dim (?:\} *)?(-?\d+)\)?\}?")
BREAKS = {"for", "where", "with", "and", "if"}


def tokens(text: str) -> list[str]:
    """The words of a formula, without what only sets spaces and sizes."""
    found: list[str] = []
    size = ""
    for token in TOKEN.findall(text):
        if SIZES[0].match(token) or SIZES[1].match(token):
            size = token
            continue
        if size and token in BARS:
            token = BARS[token][bool(SIZES[1].match(size))]
        size, dropped = "", size and token == "."
        if token not in SPACES and not dropped:
            found.append(SAME.get(token, token))
    return found


def word(token: str) -> str:
    """The word that a piece of text in a formula stands for; "" where the token is none."""
    if not token.startswith(r"\text{"):
        return ""
    known = WORDS.fullmatch(token)
    if known is None:
        raise FormulaError(f"prose in a formula: {token}")
    return known[1]


def clauses(found: Sequence[str]) -> Iterator[list[str]]:
    """The parts between separators that stand outside all brackets; a bracket around conditions is taken off."""
    part: list[str] = []
    depth = 0
    for token in [*found, r"\quad"]:
        depth += (token in OPEN or token.startswith(r"\begin")) - (token in CLOSE or token.startswith(r"\end"))
        breaks = token in {",", ";", r"\quad", r"\qquad"} or (token.startswith(r"\text") and word(token) in BREAKS)
        if depth or not breaks:
            part.append(token)
        elif part and not (len(part) == 1 and "in each batch" in part[0]):
            if part[0] == "(" and _closing(part, 0) == len(part) - 1 and any(each in RELATIONS for each in part):
                yield from clauses(part[1:-1])
            else:
                yield part
        if breaks and not depth:
            part = []


def _closing(part: Sequence[str], start: int) -> int:
    depth = 0
    for place in range(start, len(part)):
        depth += (part[place] in OPEN) - (part[place] in CLOSE)
        if not depth:
            return place
    raise FormulaError("brackets do not close: " + " ".join(part))


class Parser:
    """One clause as a tree. `values` are names that stand for numbers, `functions` those that are applied."""

    def __init__(self, found: Sequence[str], values: set[str], functions: set[str]) -> None:
        self.tokens, self.place = list(found), 0
        self.values, self.functions = values, functions
        self.bars = 0

    def peek(self, ahead: int = 0) -> str:
        """The next token, "" at the end."""
        return self.tokens[self.place + ahead] if self.place + ahead < len(self.tokens) else ""

    def take(self, expected: str = "") -> str:
        """Step over the next token."""
        token = self.peek()
        if not token or (expected and token != expected):
            raise FormulaError(f"{expected or 'more'} expected, not {token or 'the end'}: {' '.join(self.tokens)}")
        self.place += 1
        return token

    def whole(self) -> Node:
        """The tree of all tokens."""
        tree = self.condition()
        if self.peek():
            raise FormulaError(f"left over: {' '.join(self.tokens[self.place :])}, of {' '.join(self.tokens)}")
        return tree

    def condition(self) -> Node:
        """Relations joined by commas, "and" or "or"; with no relation, an expression."""
        tree = self.relation()
        while self.peek() in {r"\land", r"\lor", r"\wedge", r"\vee"} or word(self.peek()) in {"and", "or"}:
            token = self.take()
            either = token in {r"\lor", r"\vee"} or word(token) == "or"
            tree = ("logic", "or" if either else "and", tree, self.relation())
        return tree

    def relation(self) -> Node:
        """A chain such as `0 \\le i < 4`."""
        if self.peek() in {r"\lnot", r"\neg"}:
            self.take()
            return ("not", self.relation())
        parts, signs = [self.sum()], []
        if self.peek().startswith(r"\text") and word(self.peek()) == "is stored":
            self.take()
            return ("stored", parts[0])
        while self.peek() in RELATIONS:
            signs.append(self.take())
            parts.append(self.sum())
        return ("relation", tuple(parts), tuple(signs)) if signs else parts[0]

    def sum(self) -> Node:
        """Terms with signs between them."""
        tree: Node | None = None
        while tree is None or self.peek() in {"+", "-"}:
            sign = self.take() if self.peek() in {"+", "-"} else "+"
            term = self.term()
            term = ("negative", term) if sign == "-" else term
            tree = term if tree is None else ("+", tree, term)
        return tree

    def term(self) -> Node:
        """Factors with signs of multiplication or division between them."""
        tree = self.juxtaposed()
        while self.peek() in {r"\cdot", r"\odot", r"\times", "/", r"\bmod", r"\oslash", r"\otimes", r"\circ"}:
            sign = self.take()
            negative = self.peek() == "-"
            if negative:
                self.take()
            right = self.juxtaposed()
            tree = (sign, tree, ("negative", right) if negative else right)
        return tree

    def juxtaposed(self) -> Node:
        """Factors side by side."""
        tree = self.factor()
        while self.starts_factor():
            tree = ("beside", tree, self.factor())
        return tree

    def starts_factor(self) -> bool:
        """Whether the next token begins another factor."""
        token = self.peek()
        if token == "|":
            return not self.bars
        return token in OPEN or token in BIG or bool(
            re.fullmatch(r"[a-zA-Z0-9.]+|\\(?!r(?:angle|floor|ceil|vert|Vert)$|text|end|\\)[a-zA-Z]+(?:\{.*\})?", token)
            and token not in RELATIONS | {r"\cdot", r"\odot", r"\times", r"\bmod", r"\oslash", r"\otimes", r"\land"}
            and token not in {r"\lor", r"\wedge", r"\vee", r"\quad", r"\qquad", r"\in", r"\circ"}
        )  # fmt: skip

    def factor(self) -> Node:
        """A primary with its subscripts and powers."""
        token = self.peek()
        if token in BIG and self.peek(1) == "_":
            return self.big()
        if token == r"\sum":
            self.take()
            return ("total", self.term())
        if token == r"\int":
            return self.integral()
        name = self.name()
        tree = self.applied(name) if name and self.is_function(name) else self.named(name) if name else self.primary()
        while self.peek() in {"_", "^", "!"}:
            mark = self.take()
            if mark == "!":
                tree = ("call", r"\operatorname{factorial}", (tree,))
            elif mark == "_":
                tree = ("at", tree, tuple(self.subscripts(self.group())))
            else:
                tree = self.raised(tree, self.group())
        return tree

    def is_function(self, name: str) -> bool:
        """Whether a name is applied to what follows; a Greek letter without a bracket is a number."""
        if (GREEK.fullmatch(name) or len(name) == 1) and name not in self.functions and self.peek() != "(":
            return False
        return name not in self.values and (name in self.functions or name in FUNCTIONS)

    def name(self) -> str:
        """The name that begins here, accents and a subscript that belongs to it included; "" where none does."""
        start, token = self.place, self.peek()
        if token == "{" and _closing(self.tokens, self.place) > self.place + 1:
            end = _closing(self.tokens, self.place)
            inside = Parser(self.tokens[self.place + 1 : end], self.values, self.functions)
            inner = inside.name()
            if inner and not inside.peek():
                self.place = end + 1
                return self.subscripted(inner)
            return ""
        if token in ACCENTS:
            self.take()
            mark = "".join(self.group())
            return self.subscripted(f"{token}{{{mark}}}")
        letter = re.fullmatch(r"[a-zA-Z]|\\(?:mathrm|mathbf|mathsf|mathit|mathbb|mathcal|operatorname\*?)\{.*\}", token)
        if letter or token in self.values or token in self.functions or token in FUNCTIONS or GREEK.fullmatch(token):
            self.take()
            while self.peek() == "'":
                token += self.take()
            return self.subscripted(token)
        self.place = start
        return ""

    def subscripted(self, name: str) -> str:
        """A name with its mark where both together are a name, as in `\\beta_1`, `\\log_2` or `\\Phi^{-1}`."""
        if self.peek() not in {"_", "^"}:
            return name
        start = self.place
        mark = self.take()
        whole = f"{name}{mark}{{{''.join(self.group())}}}"
        if whole in self.values or whole in self.functions or whole in FUNCTIONS:
            return whole
        self.place = start
        return name

    def named(self, name: str) -> Node:
        """A name that stands for a number."""
        if name == "e" and name not in self.values and self.peek() == "^":
            self.take()
            return ("call", r"\exp", (self.inner(self.group()),))
        if name == r"\pi" and name not in self.values:
            return ("number", math.pi)
        if name == r"\mathrm{i}" and name not in self.values:
            return ("number", 1j)
        if name == r"\infty":
            return ("number", math.inf)
        return ("name", name)

    def applied(self, name: str) -> Node:
        """A function with its arguments; `\\log x` applies to the next factor."""
        if name in {r"\operatorname{tril}", r"\operatorname{triu}"} and self.peek() == "_":
            self.take()
            name += "".join(self.group())
        power = self.group() if self.peek() == "^" and self.take() else None
        if self.peek() == "(":
            inside = self.between("(", ")")
            tree: Node = ("call", name, tuple(self.inner(each) for each in _split(inside)))
        else:
            tree = ("call", name, (self.factor(),))
        return tree if power is None else self.raised(tree, power)

    def between(self, opening: str, closing: str) -> list[str]:
        """The tokens inside brackets."""
        end = _closing(self.tokens, self.place)
        self.take(opening)
        inside = self.tokens[self.place : end]
        self.place = end
        self.take(closing)
        return inside

    def group(self) -> list[str]:
        """The tokens of a braced group, or the single one."""
        if self.peek() == "{":
            return self.between("{", "}")
        return [self.take()]

    def inner(self, found: Sequence[str]) -> Node:
        """The tree of other tokens, under the same names."""
        return Parser(found, self.values, self.functions).whole()

    def subscripts(self, found: Sequence[str]) -> Iterator[Node]:
        """The indices in a subscript: between commas, or letter by letter (`ij`)."""
        parts = _split(found)
        letters = all(re.fullmatch(r"[a-zA-Z]|\d", each) for each in found)
        if len(parts) == 1 and len(found) > 1 and letters:
            parts = [[each] for each in found]
        return (self.inner(each) for each in parts)

    def raised(self, tree: Node, power: Sequence[str]) -> Node:
        """A power, a transpose (`T`, `H`, `-T`), or an inverse."""
        text = "".join(power)
        if text == "+":
            return ("pseudoinverse", tree)
        if text in {"T", "H", "-T", "-H", r"\top"} and text not in self.values:
            base = ("inverse", tree) if text[0] == "-" else tree
            return ("transpose", base, text[-1] == "H")
        return ("^", tree, self.inner(power))

    def big(self) -> Node:
        """A sum (product, maximum, ...) over indices, with what it runs over."""
        kind = BIG[self.take()]
        self.take("_")
        under = self.group()
        upper = None
        if self.peek() == "^":
            self.take()
            upper = self.inner(self.group())
        items = tuple(self.inner(each) for each in _split([("," if each == ":" else each) for each in under]))
        if upper is not None:
            (_, (letter, low), _), *rest = items
            items = (("relation", (low, letter, upper), (r"\le", r"\le"), "whole"), *rest)
        return ("big", kind, items, self.term())

    def integral(self) -> Node:
        """`\\int_0^1 f(t) \\, dt`."""
        self.take()
        bounds = {self.take(): self.inner(self.group()) for _ in range(2)}
        end = next(p for p in range(self.place, len(self.tokens)) if self.tokens[p] == "d")
        body, letter = self.tokens[self.place : end], self.tokens[end + 1]
        self.place = end + 2
        return ("integral", letter, bounds["_"], bounds["^"], self.inner(body))

    def primary(self) -> Node:
        """A number, a bracket, a root, a fraction, an environment."""
        token = self.peek()
        if re.fullmatch(r"[\d.]+", token):
            return ("number", float(self.take()))
        if token == "(":
            return self.inner(self.between("(", ")"))
        if token == "{":
            return self.inner(self.between("{", "}"))
        if token == "[":
            inside = self.between("[", "]")
            if len(parts := _split(inside)) > 1 and not any(each in RELATIONS for each in inside):
                return ("row", tuple(self.inner(each) for each in parts))
            tree = self.inner(inside)
            if tree[0] not in {"relation", "logic", "not", "stored"}:
                raise FormulaError(f"square brackets hold a condition: {' '.join(self.tokens)}")
            return ("iverson", tree)
        for opening, closing, function in BRACKETS:
            if token == opening:
                return self.bracketed(opening, closing, function)
        if token == r"\frac":
            return self.fraction()
        if token == r"\sqrt":
            self.take()
            root = self.inner(self.between("[", "]")) if self.peek() == "[" else ("number", 2.0)
            return ("^", self.inner(self.group()), ("fraction", ("number", 1.0), root))
        if token == r"\overline":
            self.take()
            return ("call", r"\operatorname{conj}", (self.inner(self.group()),))
        if token.startswith(r"\begin{"):
            return self.environment()
        raise FormulaError(f"{token or 'the end'} where a value is expected: {' '.join(self.tokens)}")

    def bracketed(self, opening: str, closing: str, function: str) -> Node:
        """Floor, ceiling, absolute value, norm."""
        if opening != "|":
            tree = self.inner(self.between(opening, closing))
        else:
            self.take()
            self.bars += 1
            tree = self.sum()
            self.bars -= 1
            self.take("|")
        if function == "norm":
            order = ("number", 2.0)
            if self.peek() == "_":
                self.take()
                found = self.group()
                order = ("number", 2.0) if found == ["F"] else self.inner(found)
            return ("norm", tree, order)
        return ("call", function, (tree,))

    def fraction(self) -> Node:
        """A quotient, or a derivative that a claim is about."""
        self.take(r"\frac")
        above, below = self.group(), self.group()
        if above[0] == r"\partial":
            conjugate = below[1] == r"\overline"
            variable = self.inner(below[1:])
            if conjugate:
                variable = _without_bar(variable)
            return ("derivative", self.inner(above[1:]), variable, conjugate)
        return ("fraction", self.inner(above), self.inner(below))

    def environment(self) -> Node:
        """Cases, or a matrix."""
        kind = self.take().removeprefix(r"\begin{").removesuffix("}")
        inside: list[str] = []
        depth = 1
        while depth:
            token = self.take()
            depth += token.startswith(r"\begin{") - token.startswith(r"\end{")
            inside.append(token)
        rows = [_split(row, "&") for row in _split(inside[:-1], r"\\") if row]
        if kind != "cases":
            return ("matrix", tuple(tuple(self.inner(each) for each in row) for row in rows))
        return ("cases", tuple((self.inner(value), self.case(condition)) for value, condition in rows))

    def case(self, found: list[str]) -> Node:
        """The condition of a case: commas and "and" join, and words before it are left out."""
        found = (
            found[1:] if found and found[0].startswith(r"\text") and word(found[0]) in {"if", "for", "where"} else found
        )
        if len(found) == 1 and found[0].startswith(r"\text") and word(found[0]) == "otherwise":
            return ("otherwise",)
        first, *rest = (self.inner(each) for each in _split(found))
        for each in rest:
            first = ("logic", "and", first, each)
        return first


BRACKETS = (
    (r"\lfloor", r"\rfloor", r"\operatorname{floor}"), (r"\lceil", r"\rceil", r"\operatorname{ceil}"),
    (r"\lvert", r"\rvert", r"\operatorname{abs}"), ("|", "|", r"\operatorname{abs}"), (r"\lVert", r"\rVert", "norm"),
)  # fmt: skip


def _without_bar(tree: Node) -> Node:
    if tree[0] == "at":
        return ("at", _without_bar(tree[1]), tree[2])
    return tree[2][0]  # type: ignore[no-any-return]


def _split(found: Sequence[str], separator: str = ",") -> list[list[str]]:
    """The parts between separators outside all brackets."""
    parts: list[list[str]] = [[]]
    depth = 0
    for token in found:
        depth += (token in OPEN or token.startswith(r"\begin")) - (token in CLOSE or token.startswith(r"\end"))
        if token == separator and not depth:
            parts.append([])
        else:
            parts[-1].append(token)
    return parts


# Functions -----------------------------------------------------------------------------------------------------------

GREEK = re.compile(
    r"\\(?:var)?(?:alpha|beta|gamma|delta|epsilon|zeta|eta|theta|iota|kappa|lambda|mu|nu|xi|pi|rho|sigma|tau|upsilon|phi"
    r"|chi|psi|omega|Gamma|Delta|Theta|Lambda|Xi|Pi|Sigma|Upsilon|Phi|Psi|Omega|ell|infty)"
)


def _scipy(function: Callable[..., Any]) -> Callable[..., Tensor]:
    def called(*arguments: Tensor) -> Tensor:
        return torch.as_tensor(function(*(each.numpy() for each in torch.broadcast_tensors(*arguments))))

    return called


def _folded(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    def called(first: Tensor, *rest: Tensor) -> Tensor:
        for each in rest:
            first = function(first, each)
        return first

    return called


# Applied to tensors whose own axes were made to agree, element by element.
FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    **{rf"\{name}": getattr(torch, name) for name in ["exp", "sin", "cos", "tan", "sinh", "cosh", "tanh"]},
    r"\log": torch.log, r"\ln": torch.log, r"\arcsin": torch.asin, r"\arccos": torch.acos, r"\arctan": torch.atan,
    r"\operatorname{arsinh}": torch.asinh, r"\operatorname{arcosh}": torch.acosh, r"\operatorname{artanh}": torch.atanh,
    r"\operatorname{conj}": torch.conj, r"\operatorname{Re}": torch.real, r"\operatorname{Im}": torch.imag,
    r"\operatorname{abs}": torch.abs, r"\operatorname{sgn}": torch.sgn, r"\operatorname{sign}": torch.sgn,
    r"\operatorname{floor}": lambda t: torch.floor(t + SLACK), r"\operatorname{ceil}": lambda t: torch.ceil(t - SLACK),
    r"\operatorname{round}": torch.round, r"\operatorname{trunc}": torch.trunc,
    r"\max": _folded(torch.maximum), r"\min": _folded(torch.minimum),
    r"\operatorname{ReLU}": lambda t: torch.where(t > 0, t, 0.0), r"\sigma": lambda t: 1 / (1 + torch.exp(-t)),
    r"\Gamma": _scipy(scipy.special.gamma), r"\psi": _scipy(scipy.special.digamma),
    r"\operatorname{erf}": _scipy(scipy.special.erf), r"\operatorname{factorial}": _scipy(scipy.special.factorial),
    r"\operatorname{sinc}": torch.sinc, r"\operatorname{clamp}": torch.clamp, r"\operatorname{atan2}": torch.atan2,
    r"\operatorname{nextafter}": _scipy(numpy.nextafter), r"\arg": torch.angle,
    r"\log_{2}": torch.log2, r"\log_{10}": torch.log10,
    r"\Phi": _scipy(scipy.special.ndtr), r"\Phi^{-1}": _scipy(scipy.special.ndtri),
    r"\varphi": lambda t: torch.exp(-t * t / 2) / math.sqrt(2 * math.pi),
    r"\operatorname{erf}^{-1}": _scipy(scipy.special.erfinv), r"\operatorname{erfc}": _scipy(scipy.special.erfc),
    r"\Gamma_{3}": lambda t: torch.as_tensor(scipy.special.multigammaln(t.numpy()[..., None], 3)).exp(),
    **{rf"\psi^{{({order})}}": _scipy(partial(scipy.special.polygamma, order)) for order in (1, 2, 3)},
    r"\zeta": _scipy(scipy.special.zeta), "P": _scipy(scipy.special.gammainc), "Q": _scipy(scipy.special.gammaincc),
    "I_{0}": _scipy(scipy.special.i0), "I_{1}": _scipy(scipy.special.i1),
}  # fmt: skip


def _trace(t: Tensor) -> Tensor:
    return t.diagonal(dim1=-2, dim2=-1).sum(-1)


def _softmax(t: Tensor) -> Tensor:
    """Of each row; a row without a finite number gives 0."""
    top = t.amax(-1, keepdim=True) if t.shape[-1] else t.new_zeros(())
    powers = torch.exp(t - torch.where(top.isfinite(), top, 0))
    total = powers.sum(-1, keepdim=True)
    return torch.where(total == 0, 0, powers / total)


# Applied to the last one or two axes: name -> (axes, function).
OF_TENSORS: dict[str, tuple[int, Callable[[Tensor], Tensor]]] = {
    r"\operatorname{diag}": (1, torch.diag_embed),
    r"\operatorname{tr}": (2, _trace),
    r"\det": (2, torch.linalg.det),
    r"\operatorname{tril}": (2, torch.tril),
    r"\operatorname{triu}": (2, torch.triu),
    r"\operatorname{tril}-1": (2, lambda t: torch.tril(t, -1)),
    r"\operatorname{triu}1": (2, lambda t: torch.triu(t, 1)),
    r"\operatorname{expm}": (2, lambda t: torch.as_tensor(scipy.linalg.expm(t.numpy())) if t.numel() else t),
    r"\operatorname{rowsum}": (1, lambda t: t.sum(-1, keepdim=True)),
    r"\operatorname{colsum}": (2, lambda t: t.sum(-2)),
    r"\operatorname{rowmean}": (1, lambda t: t.mean(-1, keepdim=True)),
    r"\operatorname{colmean}": (2, lambda t: t.mean(-2, keepdim=True)),
    r"\operatorname{softmax}": (1, _softmax),
    r"\operatorname{causal}": (2, lambda t: t.masked_fill(torch.ones_like(t, dtype=torch.bool).triu(1), -math.inf)),
}


def _onehot(t: Tensor, axis: int, count: int) -> Tensor:
    """1 at the class of each sample, and nowhere where the number is none of a class."""
    return (t == torch.arange(count).reshape([-1 if each == axis else 1 for each in range(t.dim())])).double()


# Applied along the axis of the classes.
OF_CLASSES: dict[str, Callable[[Tensor, int, int], Tensor]] = {
    r"\operatorname{softmax}": lambda t, axis, count: _softmax(t.movedim(axis, -1)).movedim(-1, axis),
    r"\operatorname{onehot}": _onehot,
}
FUNCTIONS[r"\operatorname{chunk}"] = lambda t: t
FUNCTIONS[r"\operatorname{onehot}"] = lambda t: t
FUNCTIONS |= {name: function for name, (_, function) in OF_TENSORS.items()}


# Evaluating ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Value:
    """Numbers: `tensor` has the scope's indices as its first axes, then its own. `row` marks a transposed vector."""

    tensor: Tensor
    row: bool = False


@dataclass(frozen=True)
class Bound:
    """A name's numbers, made where `depth` indices were in scope; `outside` is what a missing element is."""

    tensor: Tensor
    depth: int = 0
    outside: float = math.nan


@dataclass(frozen=True)
class Defined:
    """A name that a clause defines, with the letters that it depends on."""

    letters: tuple[str, ...]
    body: Node


Names = Mapping[str, "Bound | Defined"]


@dataclass(frozen=True)
class Scope:
    """The names that stand for something here, and how many indices are in scope.

    `outer` are the names of the whole statement, which is all that a definition sees beside its own letters.
    """

    names: Names
    outer: Names
    depth: int = 0
    ranges: Mapping[str, Node] = field(default_factory=dict)
    steps: frozenset[str] = frozenset()  # names that are defined by themselves, step by step
    known: dict[tuple[int, int], Tensor] = field(default_factory=dict)  # the steps worked out
    masks: Mapping[str, Tensor] = field(default_factory=dict)  # where sparse operands store an element
    shape: tuple[int, ...] = ()  # of all elements, where operands are read element by element
    classes: int | None = None  # which of its axes counts classes

    def with_index(self, letter: str, numbers: Tensor) -> Scope:
        """One more index, which runs over `numbers`."""
        if letter in self.names:
            raise FormulaError(f"the index {letter} already stands for something else here")
        along = numbers.double().reshape((1,) * self.depth + (-1,))
        bound = Bound(along, self.depth + 1)
        return replace(self, names={**self.names, letter: bound}, depth=self.depth + 1)

    def lift(self, bound: Bound) -> Tensor:
        """A name's numbers, with an axis for each index in scope."""
        shape = bound.tensor.shape
        return bound.tensor.reshape(shape[: bound.depth] + (1,) * (self.depth - bound.depth) + shape[bound.depth :])

    def rank(self, value: Value) -> int:
        """How many axes of its own a value has."""
        return value.tensor.dim() - self.depth

    def together(self, *values: Value) -> list[Tensor]:
        """The numbers of several values, with equally many axes of their own."""
        rank = max(self.rank(each) for each in values)
        return [
            each.tensor.reshape(
                each.tensor.shape[: self.depth] + (1,) * (rank - self.rank(each)) + each.tensor.shape[self.depth :]
            )
            for each in values
        ]

    def __call__(self, node: Node) -> Value:
        """The value of a tree."""
        handler: Callable[..., Value] = getattr(self, "_" + KINDS[node[0]])
        return handler(*node[1:]) if node[0] in OWN else handler(*node)

    def number(self, node: Node) -> Tensor:
        """The value of a tree that must be a number for each index, not a tensor."""
        value = self(node)
        if self.rank(value):
            raise FormulaError(f"a number is expected, not a tensor of {self.rank(value)} axes")
        return value.tensor

    def _constant(self, number: complex) -> Value:
        kind = torch.complex128 if isinstance(number, complex) else torch.float64
        return Value(torch.full((1,) * self.depth, number, dtype=kind))

    def _named(self, name: str) -> Value:
        found = self.names.get(name)
        if found is None:
            raise FormulaError(f"{name} is not bound: no operand, no definition, and no sum or left side runs over it")
        if isinstance(found, Bound):
            return Value(self.lift(found))
        if found.letters:
            raise FormulaError(f"{name} is defined for an index or an argument, and stands without")
        if name in self.steps:
            return Value(self.lift(Bound(self._step(found, 0))))
        return self._hidden({})(found.body)

    def _hidden(self, letters: Names) -> Scope:
        """What a definition's body sees: the statement's names, and its own letters."""
        return replace(self, names={**self.outer, **letters})

    def _defined(self, name: str, arguments: Sequence[Node]) -> Value:
        found = self.names[name]
        assert isinstance(found, Defined)
        if len(arguments) != len(found.letters):
            raise FormulaError("a definition is used with another number of indices than it has")
        values = [self(each).tensor for each in arguments]
        if name in self.steps:
            if len(values) != 1 or values[0].dim() != self.depth:
                raise FormulaError(f"{name} is defined by itself, and has more than one index")
            numbers, places = values[0].round().unique(return_inverse=True)
            steps = torch.broadcast_tensors(*(self._step(found, int(each)) for each in numbers))
            return Value(torch.stack(steps)[places])
        letters = {letter: Bound(value, self.depth) for letter, value in zip(found.letters, values, strict=True)}
        return self._hidden(letters)(found.body)

    def _step(self, found: Defined, number: int) -> Tensor:
        """One step of a definition that refers to other steps of itself."""
        key = (id(found), number)
        if key not in self.known:
            letters = {letter: Bound(torch.tensor(float(number)), 0) for letter in found.letters}
            self.known[key] = replace(self, names={**self.outer, **letters}, depth=0)(found.body).tensor
        return self.known[key]

    def _at(self, base: Node, indices: tuple[Node, ...]) -> Value:
        found = self.names.get(base[1]) if base[0] == "name" else None
        if isinstance(found, Defined) and found.letters:
            count = len(found.letters)
            value = self._defined(base[1], indices[:count])
            return value if len(indices) == count else self._picked(value.tensor, indices[count:], math.nan)
        outside = found.outside if isinstance(found, Bound) else math.nan
        return self._picked(self(base).tensor, indices, outside)

    def _picked(self, tensor: Tensor, indices: Sequence[Node], outside: float) -> Value:
        """The elements (or the parts) that indices name."""
        own = tensor.shape[self.depth :]
        if len(indices) > len(own):
            raise FormulaError(f"{len(indices)} indices of a tensor of {len(own)} axes")
        places = [self.number(each).real for each in indices]
        shape = torch.broadcast_shapes(tensor.shape[: self.depth], *(each.shape for each in places))
        lead = [
            torch.arange(size).reshape((-1,) + (1,) * (self.depth - axis - 1)) * (tensor.shape[axis] > 1)
            for axis, size in enumerate(shape)
        ]
        whole, exists = [], torch.ones(shape, dtype=torch.bool)
        for place, size in zip(places, own, strict=False):
            near = place.round()
            exists = exists & ((place - near).abs() < SLACK) & (near >= 0) & (near < size)
            whole.append(near.clamp(0, max(size - 1, 0)).nan_to_num(0).long())
        rest = own[len(indices) :]
        if not math.prod(own[: len(indices)]):
            picked = tensor.new_full((*shape, *rest), math.nan)
        else:
            picked = tensor[(*lead, *whole)].expand((*shape, *rest))
        return Value(torch.where(exists.reshape((*shape, *(1 for _ in rest))), picked, outside))

    def _call(self, name: str, arguments: tuple[Node, ...]) -> Value:
        found = self.names.get(name)
        if isinstance(found, Defined):
            return self._defined(name, arguments)
        values = [self(each) for each in arguments]
        if name == r"\operatorname{chunk}":
            place, count = (int(self.number(each)) for each in arguments[1:])
            whole = values[0]
            return Value(whole.tensor.chunk(count, -1)[place]) if self.rank(whole) else whole
        if self.classes is not None and name in OF_CLASSES:
            return Value(OF_CLASSES[name](values[0].tensor, self.classes, self.shape[self.classes]))
        if name in OF_TENSORS:
            axes, function = OF_TENSORS[name]
            if any(self.rank(each) < axes for each in values):
                raise FormulaError(f"{name} of a number")
            return Value(function(values[0].tensor))
        return Value(FUNCTIONS[name](*self.together(*values)))

    def _with_identity(self, *sides: Node) -> Iterator[Value]:
        """The values of two sides; I beside a matrix is the identity of its size."""
        unit = ("name", "I")
        found = [None if each == unit and "I" not in self.names else self(each) for each in sides]
        for value, other in zip(found, reversed(found), strict=True):
            if value is None and other is not None:
                size = other.tensor.shape[-2:]
                eye = torch.eye(*size, dtype=other.tensor.dtype)
                value = Value(eye.reshape((1,) * (other.tensor.dim() - 2) + size))
            yield self(unit) if value is None else value

    def _elementwise(self, sign: str, left: Node, right: Node) -> Value:
        a, b = self._with_identity(left, right)
        rows = {each.row for each in (a, b) if self.rank(each)}
        if len(rows) > 1:
            raise FormulaError("a row and a column, element by element")
        x, y = self.together(a, b)
        return Value(ELEMENTWISE[sign](x, y), rows == {True})

    def _dot(self, sign: str, left: Node, right: Node) -> Value:
        a, b = self(left), self(right)
        if not self.rank(a) or not self.rank(b):
            return self._elementwise(r"\odot", left, right)
        return Value((a.tensor * b.tensor).sum(tuple(range(self.depth, a.tensor.dim()))))

    def _times(self, sign: str, left: Node, right: Node) -> Value:
        """A product of numbers, or the vector product along the last axis."""
        a, b = self(left), self(right)
        if not self.rank(a) or not self.rank(b):
            return self._elementwise(r"\odot", left, right)
        x, y = torch.broadcast_tensors(a.tensor, b.tensor)
        turned = [
            x[..., (i + 1) % 3] * y[..., (i + 2) % 3] - x[..., (i + 2) % 3] * y[..., (i + 1) % 3] for i in range(3)
        ]
        return Value(torch.stack(turned, -1))

    def _row(self, parts: tuple[Node, ...]) -> Value:
        return Value(torch.cat([self(each).tensor for each in parts], -1))

    def _stored(self, tree: Node) -> Value:
        return replace(self, names={**self.names, **{name: Bound(mask) for name, mask in self.masks.items()}})(tree)

    def _negative(self, inside: Node) -> Value:
        value = self(inside)
        return Value(-value.tensor, value.row)

    def _beside(self, left: Node, right: Node) -> Value:
        a, b = self(left), self(right)
        ranks = self.rank(a), self.rank(b)
        if 0 in ranks:
            x, y = self.together(a, b)
            return Value(x * y, a.row or b.row)
        x, y = _promoted(a.tensor, b.tensor)
        if ranks == (1, 1):
            if a.row and not b.row:
                return Value((x * y).sum(-1))
            if b.row and not a.row:
                return Value(x.unsqueeze(-1) * y.unsqueeze(-2))
            raise FormulaError("two vectors side by side: neither an inner product nor an outer one")
        if 1 in ranks:
            if ranks[0] == 1:
                return Value((x.unsqueeze(-2) @ y).squeeze(-2), a.row)
            return Value((x @ y.unsqueeze(-1)).squeeze(-1))
        if ranks[0] != ranks[1]:  # one stack of matrices and one matrix
            x, y = self.together(Value(x), Value(y))
        return Value(x @ y)

    def _transpose(self, inside: Node, conjugate: bool) -> Value:
        value = self(inside)
        tensor = value.tensor.conj() if conjugate else value.tensor
        rank = self.rank(value)
        return Value(tensor.mT if rank > 1 else tensor, rank == 1 and not value.row)

    def _integral(self, letter: str, low: Node, high: Node, body: Node) -> Value:
        """By the rule of Gauss and Legendre."""
        places, weights = (torch.as_tensor(each) for each in numpy.polynomial.legendre.leggauss(24))
        a, b = (float(self.number(each)) for each in (low, high))
        inside = self.with_index(letter, (b - a) / 2 * places + (a + b) / 2)
        found = inside(body).tensor
        weights = ((b - a) / 2 * weights).reshape([-1 if axis == self.depth else 1 for axis in range(found.dim())])
        return Value((found * weights).sum(self.depth))

    def _pseudoinverse(self, inside: Node) -> Value:
        return Value(torch.linalg.pinv(self(inside).tensor))

    def _inverse(self, inside: Node) -> Value:
        return Value(torch.linalg.inv(self(inside).tensor))

    def _power(self, sign: str, base: Node, exponent: Node) -> Value:
        value = self(base)
        if self.rank(value) >= 2:
            power = self.number(exponent)
            if power.numel() != 1 or float(power) != round(float(power)):
                raise FormulaError("a matrix to a power that is not a whole number")
            return Value(torch.linalg.matrix_power(value.tensor, int(power)))
        x, y = self.together(value, self(exponent))
        return Value(torch.pow(x, y))

    def _norm(self, inside: Node, order: Node) -> Value:
        value, power = self(inside), self.number(order)
        axes = tuple(range(self.depth, value.tensor.dim()))
        return Value(torch.linalg.vector_norm(value.tensor, float(power), axes) if axes else value.tensor.abs())

    def _matrix(self, rows: tuple[tuple[Node, ...], ...]) -> Value:
        cells = torch.broadcast_tensors(*(self.number(each) for row in rows for each in row))
        return Value(torch.stack(cells, -1).unflatten(-1, (len(rows), len(rows[0]))))

    def _iverson(self, condition: Node) -> Value:
        return Value(self.truth(condition).tensor.double())

    def _relation(self, parts: tuple[Node, ...], signs: tuple[str, ...], kind: str = "") -> Value:
        values = [self(each) for each in parts]
        truth: Value | None = None
        for left, sign, right in zip(values, signs, values[1:], strict=False):
            here = Value(COMPARED[sign](*self.together(left, right)))
            truth = here if truth is None else Value(torch.logical_and(*self.together(truth, here)))
        assert truth is not None
        return truth

    def _logic(self, kind: str, left: Node, right: Node) -> Value:
        x, y = self.together(self.truth(left), self.truth(right))
        return Value(x & y if kind == "and" else x | y)

    def _not(self, inside: Node) -> Value:
        return Value(~self.truth(inside).tensor)

    def _otherwise(self) -> Value:
        return Value(torch.ones((1,) * self.depth, dtype=torch.bool))

    def truth(self, condition: Node) -> Value:
        """Whether a condition holds; numbers (a recorded mask) hold where they are not 0."""
        value = self(condition)
        return value if value.tensor.dtype == torch.bool else Value(value.tensor != 0)

    def _cases(self, rows: tuple[tuple[Node, Node], ...]) -> Value:
        result = Value(torch.full((1,) * self.depth, math.nan, dtype=torch.float64))
        open_ = self._otherwise()
        for value, condition in rows:
            truth, left = self.together(self.truth(condition), open_)
            if bool((truth & left).any()):  # so that a definition by steps comes to an end
                holds, here, other = self.together(Value(truth & left), self(value), result)
                result = Value(torch.where(holds, *_promoted(here, other)))
            open_ = Value(left & ~truth)
        return result

    def _total(self, body: Node, over: Sequence[int] | None = None) -> Value:
        """The sum of all elements, or of those along some axes."""
        axes = tuple(range(len(self.shape)) if over is None else over)
        terms = self(body).tensor
        whole = [self.shape[axis] if axis in axes else size for axis, size in enumerate(terms.shape)]
        return Value(terms.expand(whole).sum(axes, keepdim=True) if axes else terms)

    def _big(self, kind: str, items: tuple[Node, ...], body: Node) -> Value:
        if self.classes is not None and kind == "sum" and items in ((("name", "c"),), (("name", "n"),)):
            along = [axis for axis in range(len(self.shape)) if (axis == self.classes) == (items[0][1] == "c")]
            return self._total(body, along)
        letters = list(_new_names(items, self.names))
        scope, limits = self, [each for each in items if each[0] != "name"]
        if not letters:
            raise FormulaError("a sum over nothing")
        for letter in letters:
            conditions = [*limits, *([self.ranges[letter]] if letter in self.ranges else [])]
            limits += [self.ranges[letter]] if letter in self.ranges else []
            ranges = (each for each in limits if each[0] == "relation" and ("name", letter) in each[1])
            whole = letter in self.ranges or any(each[3:] for each in ranges)
            scope = scope.with_index(letter, scope.run(letter, conditions, body, whole))
        holds = Value(torch.ones((1,) * scope.depth, dtype=torch.bool))
        for each in limits:
            x, y = scope.together(holds, scope.truth(each))
            holds = Value(x & y)
        mask, terms = scope.together(holds, scope(body))
        sizes = [scope.names[letter].tensor.numel() for letter in letters]  # type: ignore[union-attr]
        own = terms.shape[scope.depth :]
        shape = torch.broadcast_shapes(terms.shape, mask.shape, (*(1,) * self.depth, *sizes, *(1 for _ in own)))
        axes = tuple(range(self.depth, scope.depth))
        mask, terms = mask.expand(shape), terms.expand(shape)
        if kind in {"median", "nanmedian", "mode"}:
            if not bool(mask.all()):
                raise FormulaError(f"a {kind} of some elements alone")
            return Value(REDUCED[kind](terms, axes))
        if kind == "mean":
            return Value(torch.where(mask, terms, 0).sum(axes) / mask.sum(axes))
        return Value(REDUCED[kind](torch.where(mask, terms, NEUTRAL[kind]), axes))

    def run(self, letter: str, conditions: Sequence[Node], body: Any, whole: bool = True) -> Tensor:
        """The numbers that an index runs over: from its stated range, or from the axis on which it stands bare.

        A mere condition below a sum (not `whole`) takes some of the axis.
        """
        low, high = self._stated(letter, conditions)
        if high is None or not whole:
            sizes = set(self.sizes(letter, (body, *conditions)))
            if len(sizes) != 1:
                raise FormulaError(
                    f"nothing says what {letter} runs over" if not sizes else f"{letter} runs over {sizes}"
                )
            axis = float(sizes.pop())
            low, high = max(low or 0.0, 0.0), axis if high is None else min(high, axis)
        return torch.arange(0.0 if low is None else low, high, dtype=torch.float64)

    def _stated(self, letter: str, conditions: Sequence[Node]) -> tuple[float | None, float | None]:
        """The least number and the end of a range that conditions such as `0 \\le i < 4` state."""
        low: float | None = None
        high: float | None = None
        for condition in conditions:
            if condition[0] != "relation":
                continue
            parts, signs = condition[1:3]
            for place, part in enumerate(parts):
                if part != ("name", letter):
                    continue
                for sign, other in ((signs[p], parts[p + 1]) for p in range(place, len(signs))):
                    if sign in {"<", r"\le"} and self._known(other):
                        high = self._end(other, sign == r"\le")
                        break
                for sign, other in ((signs[p], parts[p]) for p in range(place - 1, -1, -1)):
                    if sign in {"<", r"\le"} and self._known(other):
                        found = self.number(other).real
                        low = math.floor(float(found.min()) + SLACK) + (sign == "<") if found.numel() else 0
                        break
        return low, high

    def _end(self, node: Node, included: bool) -> float:
        found = self.number(node).real
        if not found.numel():
            return 0
        top = float(found.max())
        return math.floor(top + SLACK) + 1 if included else math.ceil(top - SLACK)

    def _known(self, node: Node) -> bool:
        return all(name in self.names for name in _names(node))

    def sizes(self, letter: str, trees: Sequence[Node]) -> Iterator[int]:
        """The sizes of the axes on which an index stands bare."""
        for tree in trees:
            for base, indices in _subscripts(tree):
                for place, index in enumerate(indices):
                    if index == ("name", letter):
                        yield from self._size(base, place)

    def _size(self, base: Node, place: int) -> Iterator[int]:
        found = self.names.get(base[1]) if base[0] == "name" else None
        if isinstance(found, Defined):
            if place < len(found.letters):
                yield from replace(self, names=self.outer).sizes(found.letters[place], (found.body,))
        elif isinstance(found, Bound):
            own = found.tensor.shape[found.depth :]
            if place < len(own):
                yield own[place]
        elif base[0] == "transpose":
            yield from self._size(base[1], 1 - place)


def _promoted(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    kind = torch.promote_types(x.dtype, y.dtype)
    return x.to(kind), y.to(kind)


ELEMENTWISE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "+": torch.add, r"\odot": torch.mul, "/": torch.div, r"\oslash": torch.div,
    "fraction": torch.div, r"\bmod": torch.remainder,
}  # fmt: skip
COMPARED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "=": torch.eq, r"\ne": torch.ne, "<": torch.lt, ">": torch.gt, r"\le": torch.le, r"\ge": torch.ge,
}  # fmt: skip
NEUTRAL = {"sum": 0.0, "prod": 1.0, "max": -math.inf, "min": math.inf}


def _one_by_one(function: Callable[..., Tensor]) -> Callable[[Tensor, tuple[int, ...]], Tensor]:
    def reduced(t: Tensor, axes: tuple[int, ...]) -> Tensor:
        for axis in reversed(axes):
            t = function(t, axis)
        return t

    return reduced


def _extreme(function: Callable[..., Tensor], empty: float) -> Callable[[Tensor, int], Tensor]:
    return lambda t, axis: function(t, axis) if t.shape[axis] else t.sum(axis) + empty


def _ordered(name: str) -> Callable[[Tensor, tuple[int, ...]], Tensor]:
    return lambda t, axes: getattr(torch, name)(t.flatten(axes[0], axes[-1]), axes[0]).values


REDUCED: dict[str, Callable[[Tensor, tuple[int, ...]], Tensor]] = {
    **{name: _ordered(name) for name in ("median", "nanmedian", "mode")},
    "sum": lambda t, axes: t.sum(axes), "prod": _one_by_one(torch.prod),
    "max": _one_by_one(_extreme(torch.amax, -math.inf)), "min": _one_by_one(_extreme(torch.amin, math.inf)),
}  # fmt: skip

# Which method evaluates a kind of tree, and which of them want the parts without the kind.
KINDS = {
    "number": "constant", "name": "named", "at": "at", "call": "call", "negative": "negative", "beside": "beside",
    "transpose": "transpose", "inverse": "inverse",
    "pseudoinverse": "pseudoinverse", "integral": "integral", "^": "power", "norm": "norm", "matrix": "matrix",
    "iverson": "iverson", "relation": "relation", "logic": "logic", "not": "not", "otherwise": "otherwise",
    "cases": "cases", "big": "big", "total": "total", "row": "row", "stored": "stored",
    r"\cdot": "dot", r"\times": "times",
    **dict.fromkeys(ELEMENTWISE, "elementwise"),
}  # fmt: skip
OWN = {kind for kind, method in KINDS.items() if method not in {"elementwise", "dot", "times", "power"}}


def _children(node: Any) -> Iterator[Node]:
    if isinstance(node, (tuple, list)):
        if node and isinstance(node[0], str):
            yield node
        for each in node:
            yield from _children(each)


def _names(tree: Any) -> Iterator[str]:
    return (node[1] for node in _children(tree) if node[0] == "name" and isinstance(node[1], str))


def _new_names(trees: Any, known: Names) -> list[str]:
    """The names in trees that nothing binds yet, in their order."""
    return list(dict.fromkeys(name for name in _names(trees) if name not in known))


def _subscripts(tree: Any) -> Iterator[tuple[Node, tuple[Node, ...]]]:
    return ((node[1], node[2]) for node in _children(tree) if node[0] == "at")


# Statements ----------------------------------------------------------------------------------------------------------


class Statement:
    """A formula with numbers for its operands: see the module's docstring."""

    def __init__(
        self,
        text: str,
        symbols: Mapping[str, Tensor],
        *,
        elementwise: Sequence[int] | None = None,
        classes: int | None = None,
        along: int | None = None,
        subject: str = "",
    ) -> None:
        found = ALONG.search(text)
        if found:
            text, along = text.replace(found[0], ""), int(found[1])
        self.text, self.subject = text, _spelled(subject)
        self.operands = {_spelled(name): _wide(tensor) for name, tensor in symbols.items()}
        self.masks = {_spelled(name): _mask(tensor) for name, tensor in symbols.items()}
        self.names: dict[str, Bound | Defined] = {name: Bound(tensor) for name, tensor in self.operands.items()}
        self.depth, self.rank, self.single = 0, 0, False
        self.dim: int | None = None  # the axis that the statement goes along, row by row
        self.shape, self.classes = tuple(elementwise or ()), classes
        if elementwise is not None:
            self._read_elements()
        if along is not None:
            self._read_rows(along)
        self.claims: list[Node] = []
        self.limits: list[Node] = []
        self._sort(list(clauses(tokens(text))))
        self.steps = frozenset(name for name in self.names if name in self._reached(name))

    def _reached(self, name: str) -> set[str]:
        """The names that a definition refers to, directly or through others."""
        found: set[str] = set()
        waiting = [name]
        while waiting:
            each = self.names.get(waiting.pop())
            if isinstance(each, Defined):
                fresh = {other for other in _names(each.body) if other not in each.letters} - found
                found |= fresh
                waiting += fresh
        return found

    def _read_elements(self) -> None:
        self.depth = len(self.shape)
        for name, tensor in self.operands.items():
            shape = self._aligned(tensor.shape)
            if torch.broadcast_shapes(shape, self.shape) == torch.Size(self.shape):
                self.names[name] = Bound(tensor.reshape(shape), self.depth)

    def _aligned(self, own: Sequence[int]) -> tuple[int, ...]:
        """The shape of an operand with an axis for each one of the elements."""
        shape, axis = tuple(own), self.classes
        if axis is not None and shape == self.shape[:axis] + self.shape[axis + 1 :]:
            return (*shape[:axis], 1, *shape[axis:])
        if axis is not None and shape == self.shape[axis : axis + 1]:
            return tuple(size if each == axis else 1 for each, size in enumerate(self.shape))
        return (1,) * (len(self.shape) - len(shape)) + shape

    def _read_rows(self, dim: int) -> None:
        self.rank = max(tensor.dim() for tensor in self.operands.values())
        if not self.rank:  # a single number is a row of one
            self.operands = {name: tensor.reshape(1) for name, tensor in self.operands.items()}
            self.rank, self.single = 1, True
        self.dim, self.depth = dim % self.rank, self.rank - 1
        for name, tensor in self.operands.items():
            if tensor.dim() >= self.depth:
                self.names[name] = Bound(self._moved(tensor), self.depth)

    def _sort(self, parts: list[list[str]]) -> None:
        """Which clauses define names, which limit, and which claim."""
        values, functions, kinds = {*self.operands, self.subject}, set[str](), []
        for number, part in enumerate(parts):
            kind, name = self._kind(part, number)
            kinds.append(kind)
            if kind == "function":
                functions.add(name)
            elif kind == "definition":
                values.add(name)
        for part, kind in zip(parts, kinds, strict=True):
            if kind == "outside":
                name = Parser(part[:-1], values, functions).name()
                bound = self.names[name]
                assert isinstance(bound, Bound)
                self.names[name] = replace(bound, outside=0.0)
            elif kind in {"definition", "function"}:
                self._define(part, values, functions)
            else:
                tree = Parser(part, values, functions).whole()
                (self.limits if kind == "limit" else self.claims).append(tree)
        if not self.claims:
            raise FormulaError(f"nothing is claimed: {self.text}")

    def _kind(self, part: list[str], number: int) -> tuple[str, str]:
        if part[-1].startswith(r"\text") and word(part[-1]) == "is 0 outside":
            return "outside", ""
        if number and "=" in part:
            parser = Parser(part, {*self.operands, self.subject}, set())
            name = parser.name()
            if name and name not in {*self.operands, self.subject}:
                return ("function" if parser.peek() == "(" else "definition"), self._whole_name(parser, name)
        signs = [each for each in _outside_brackets(part) if each in RELATIONS]
        return ("limit" if number and signs and "=" not in signs else "claim"), ""

    def _whole_name(self, parser: Parser, name: str) -> str:
        """A defined name: with a subscript that is no list of letters, the subscript belongs to it."""
        if parser.peek() == "_":
            parser.take()
            found = parser.group()
            if not all(re.fullmatch("[a-z],?", each) or each == "," for each in found):
                return f"{name}_{{{''.join(found)}}}"
        return name

    def _define(self, part: list[str], values: set[str], functions: set[str]) -> None:
        parser = Parser(part, values, functions)
        name = parser.name()
        letters: tuple[str, ...] = ()
        if parser.peek() == "(":
            letters = tuple("".join(each) for each in _split(parser.between("(", ")")))
        elif parser.peek() == "_":
            parser.take()
            letters = tuple(each for each in parser.group() if each != ",")
        parser.take("=")
        if name in self.names:
            raise FormulaError(f"{name} is defined twice, or is an operand")
        body = Parser(parser.tokens[parser.place :], values | set(letters), functions).whole()
        self.names[name] = Defined(letters, body)

    def _scope(self, heads: Sequence[Node], *others: Node) -> tuple[Scope, Tensor | None]:
        """The scope in which a claim's left side has bound its indices, and where its limits hold."""
        ranges = {}
        for limit in self.limits:
            for name in _new_names(limit, self.names):
                if limit[0] == "relation" and ("name", name) in limit[1]:
                    ranges[name] = limit
        scope = Scope(self.names, self.names, self.depth, ranges, self.steps, {}, self.masks, self.shape, self.classes)
        letters = _new_names(heads, self.names)
        for letter in letters:
            scope = scope.with_index(letter, scope.run(letter, self.limits, (heads, others)))
        holds: Tensor | None = None
        for limit in self.limits:
            if not _new_names(limit, scope.names):
                here = scope.truth(limit).tensor
                holds = here if holds is None else holds & here
        return scope, holds

    def _of(self, head: Node, subject: str) -> bool:
        """Whether a left side is an operand or its elements."""
        base = head[1] if head[0] == "at" else head
        return bool(base == ("name", subject))

    def wrong_equation(self, subject: str, tolerance: float = 1e-5, finite: bool = False) -> str:
        """Why the claims about an operand (`y = ...`) do not hold, or which elements they leave out; "" if neither.

        With `finite` elements that are no number on the right are left out.
        """
        subject = _spelled(subject)
        tensor = self.operands[subject]
        said = torch.zeros(tensor.shape, dtype=torch.bool)
        if not any(self._of(claim[1][0], subject) for claim in self.claims if claim[0] == "relation"):
            return self._unsatisfied(subject, tolerance)
        for claim in self.claims:
            if claim[0] != "relation" or set(claim[2]) != {"="}:
                raise FormulaError(f"no equation: {self.text}")
            head, *others = claim[1]
            if not self._of(head, subject):
                continue
            scope, holds = self._scope([head], *others)
            mine = scope(head)
            for other in others:
                right = scope(other)
                here = (
                    holds
                    if not finite
                    else right.tensor.isfinite()
                    if holds is None
                    else holds & right.tensor.isfinite()
                )
                difference = _difference(scope, mine, right, here, tolerance)
                if difference:
                    return difference
            said |= self._elements(scope, head, holds, tensor.shape)
        return "" if bool(said.all()) else f"it says nothing of {int((~said).sum())} of {said.numel()} elements"

    def _unsatisfied(self, subject: str, tolerance: float) -> str:
        """Why the output does not satisfy the equations that define it, `A = L L^T`."""
        found = f"it says nothing of {subject}"
        for claim in self.claims:
            if subject not in _names(claim):
                continue
            found = ""
            if claim[0] != "relation" or set(claim[2]) != {"="}:
                raise FormulaError(f"no equation: {self.text}")
            heads = [each for each in claim[1] if each[0] == "at"][:1]
            scope, holds = self._scope(heads, *claim[1])
            first, *others = (scope(each) for each in claim[1])
            for other in others:
                if found := _difference(scope, first, other, holds, tolerance):
                    return found
        return found

    def _elements(self, scope: Scope, head: Node, holds: Tensor | None, shape: torch.Size) -> Tensor:
        """Which elements of an operand a left side names."""
        said = torch.zeros(shape, dtype=torch.bool)
        if head[0] != "at":
            return ~said
        moved = self._moved(said)
        lead = [
            torch.arange(size).reshape((-1,) + (1,) * (scope.depth - axis - 1))
            for axis, size in enumerate(moved.shape[: self.depth])
        ]
        places = [*lead, *(scope.number(each) for each in head[2])]
        *whole, keep = torch.broadcast_tensors(*places, torch.ones(()) if holds is None else holds)
        if said.numel():
            moved[tuple(each[keep != 0].long() for each in whole)] = True
        return said

    def value(self) -> Tensor:
        """The value of a bare expression."""
        scope, _ = self._scope([])
        return scope(self.claims[0]).tensor

    def _sides(self, claim: Node) -> tuple[Node | None, Node]:
        if claim[0] != "relation":
            return None, claim
        if claim[2] != ("=",):
            raise FormulaError(f"one equality is expected: {self.text}")
        return claim[1]

    def gradient(self, shape: Sequence[int]) -> Tensor:
        r"""The value of a product for an argument of `shape`: `\bar{w}_{ij} = \sum_n ...`, or a bare expression.

        A left side names the gradient (`subject`), whose axes are the argument's. Elements that none names are 0.
        """
        name = self.subject
        result = torch.zeros(tuple(shape), dtype=torch.float64)
        known, claimed = self.names, False
        for claim in self.claims:
            head, tree = self._sides(claim)
            if head is not None and not self._of(head, name):
                continue
            claimed = True
            if head is None or head[0] != "at":
                scope, _ = self._scope([])
                value = scope(tree).tensor
                if self.single:
                    return value.reshape(())
                if self.classes is not None and value.shape == self._aligned(shape):
                    return value.reshape(tuple(shape))
                return value.movedim(-1, self.dim) if self.dim is not None and scope.depth < value.dim() else value
            axes = self._moved(result.reshape(1) if self.single else result)
            self.names = {**known, name: Bound(axes, self.depth)}
            scope, holds = self._scope([head], tree)
            self.names = known
            written = self._scattered(scope, [(head[2], axes.shape)], scope(tree), holds, axes)
            result = written if self.dim is None else written.movedim(-1, self.dim)
        if not claimed:
            raise FormulaError(f"nothing is said of {name}: {self.text}")
        return result.reshape(()) if self.single else result

    def _moved(self, tensor: Tensor) -> Tensor:
        """A tensor as the statement sees it: the axis that it goes along last, if it has that one."""
        return tensor.movedim(self.dim, -1) if self.dim is not None and tensor.dim() > self.depth else tensor

    def jacobian(self, out: str, into: str, conjugate: bool = False) -> Tensor:
        r"""d out / d into, as [*out, *into]. Derivatives that no left side names are 0.

        A bare expression is that of an elementwise map: out[i] depends on the element that broadcasting puts at i.
        Where `out` is a single number, it is the gradient by all elements.
        """
        out, into = _spelled(out), _spelled(into)
        y, x = (self._moved(self.operands[each]) for each in (out, into))
        result = torch.zeros((*y.shape, *x.shape), dtype=torch.float64)
        written = torch.zeros(result.shape, dtype=torch.bool)
        for claim in self.claims:
            head, tree = self._sides(claim)
            if head is not None and head[0] != "derivative":
                raise FormulaError(f"the left side is no derivative: {self.text}")
            of, by, barred = (("name", out), ("name", into), False) if head is None else head[1:]
            if not self._of(of, out) or not self._of(by, into) or barred != conjugate:
                continue
            if of[0] != "at" and by[0] != "at" and self.dim is None:
                return self._diagonal(tree, y, x)
            scope, holds = self._scope([of, by], tree)
            sides = [(each[2] if each[0] == "at" else (), t.shape) for each, t in ((of, y), (by, x))]
            result = self._scattered(scope, sides, scope(tree), holds, result, written)
        if self.single:
            return result.reshape(())
        if self.dim is None:
            return result
        result = result.movedim(-1, self.dim - self.rank) if x.dim() > self.depth else result
        return result.movedim(y.dim() - 1, self.dim) if y.dim() > self.depth else result

    def _diagonal(self, tree: Node, y: Tensor, x: Tensor) -> Tensor:
        scope, _ = self._scope([])
        value = scope(tree).tensor
        if y.dim() == 0 and x.dim():
            return value.expand(x.shape).clone()
        shapes = [self._aligned(each.shape) if self.classes is not None else each.shape for each in (y, x)]
        try:
            whole = torch.broadcast_shapes(*shapes)
        except RuntimeError:
            whole = torch.Size()
        if whole != (shapes[0] if self.classes is None else torch.Size(self.shape)):
            raise FormulaError(
                f"{tuple(x.shape)} does not broadcast to {tuple(y.shape)}: a derivative of which elements?"
            )
        rows, columns = (
            torch.arange(each.numel()).reshape(shape).expand(whole).reshape(-1)
            for each, shape in zip((y, x), shapes, strict=True)
        )
        full = value.new_zeros(y.numel(), x.numel())
        full[rows, columns] = value.expand(whole).reshape(-1)
        return full.reshape((*y.shape, *x.shape))

    def _scattered(
        self,
        scope: Scope,
        sides: Sequence[tuple[tuple[Node, ...], torch.Size]],
        value: Value,
        holds: Tensor | None,
        result: Tensor,
        written: Tensor | None = None,
    ) -> Tensor:
        """Write values where the indices of left sides point; what is named twice must have one value."""
        places, sizes, parts = [], [], scope.rank(value)
        if parts and len(sides) > 1:
            raise FormulaError(f"an element is expected on the right: {self.text}")
        if parts:  # a part of the argument: its own axes are written whole
            indices, shape = sides[0]
            whole = shape[len(shape) - parts :]
            value = Value(value.tensor.expand((*value.tensor.shape[: scope.depth], *whole)))
            sides = [(indices, shape[: len(shape) - parts])]
        for indices, shape in sides:
            for axis in range(self.depth):
                places.append(torch.arange(shape[axis]).reshape([-1 if axis == a else 1 for a in range(scope.depth)]))
                sizes.append(shape[axis])
            shape = shape[self.depth :]
            if len(indices) != len(shape):
                raise FormulaError(f"{len(indices)} indices on the left of a tensor of {len(shape)} axes: {self.text}")
            places += [scope.number(each) for each in indices]
            sizes += list(shape)
        places = [each.reshape(each.shape + (1,) * parts) for each in places]
        for axis in range(parts):
            sizes.append(value.tensor.shape[scope.depth + axis])
            places.append(torch.arange(sizes[-1]).reshape([-1 if axis == other else 1 for other in range(parts)]))
        limits = [] if holds is None else [holds.double().reshape(holds.shape + (1,) * parts)]
        *places, numbers = torch.broadcast_tensors(*places, *limits, value.tensor)
        keep = torch.ones(numbers.shape, dtype=torch.bool)
        if limits:
            keep &= places.pop() != 0
        flat = torch.zeros(numbers.shape, dtype=torch.long)
        for place, size in zip(places, sizes, strict=True):
            near = place.double().round()
            keep &= ((place - near).abs() < SLACK) & (near >= 0) & (near < size)
            flat = flat * size + near.long()
        flat, numbers = flat[keep], numbers[keep]
        result = result.to(torch.promote_types(result.dtype, numbers.dtype))
        page = result.reshape(-1).clone()
        fresh = page.clone()
        page[flat] = numbers
        if not torch.allclose(page[flat], numbers, equal_nan=True):
            raise FormulaError(f"one element has two values: {self.text}")
        if written is not None:
            before = written.reshape(-1)
            if bool(before[flat].any()) and not torch.allclose(fresh[flat][before[flat]], numbers[before[flat]]):
                raise FormulaError(f"two claims give one element two values: {self.text}")
            before[flat] = True
        return page.reshape(result.shape)


def _outside_brackets(part: Sequence[str]) -> Iterator[str]:
    depth = 0
    for token in part:
        depth += (token in OPEN or token.startswith(r"\begin")) - (token in CLOSE or token.startswith(r"\end"))
        if not depth:
            yield token


def _spelled(name: str) -> str:
    """A name as the parser writes it: `\beta_1` is `\beta_{1}`, and spaces are left out."""
    found = tokens(name)
    text = "".join(found)
    text = text.removeprefix("{").removesuffix("}") if text.startswith("{") else text
    return re.sub(r"(?<!\\)_(\\[a-zA-Z]+|[a-zA-Z0-9])$", r"_{\1}", text)


def _wide(tensor: Tensor) -> Tensor:
    full = tensor.detach() if tensor.layout == torch.strided else tensor.detach().to_dense()
    return full.to(torch.complex128 if full.is_complex() else torch.float64)


def _mask(tensor: Tensor) -> Tensor:
    """1 where a tensor stores an element, 0 elsewhere."""
    if tensor.layout == torch.strided:
        return torch.ones(tensor.shape, dtype=torch.float64)
    coo = (tensor.detach() if tensor.layout == torch.sparse_coo else tensor.detach().to_sparse_coo()).coalesce()
    ones = torch.ones_like(coo.values(), dtype=torch.float64)
    return torch.sparse_coo_tensor(coo.indices(), ones, coo.shape).to_dense()


def _difference(scope: Scope, left: Value, right: Value, holds: Tensor | None, tolerance: float) -> str:
    """How two values differ by more than rounding; "" where they do not."""
    x, y = scope.together(left, right)
    own = torch.broadcast_shapes(x.shape[scope.depth :], y.shape[scope.depth :])
    if own != x.shape[scope.depth :]:
        return f"the right side has the shape {tuple(y.shape[scope.depth :])}, the left {tuple(x.shape[scope.depth :])}"
    x, y = torch.broadcast_tensors(*_promoted(x, y))
    if holds is not None:
        mask = holds.reshape(holds.shape + (1,) * len(own)).expand(x.shape)
        x, y = x[mask], y[mask]
    return differ(x, y, tolerance)


def differ(x: Tensor, y: Tensor, tolerance: float = 1e-5) -> str:
    """How the second of two tensors of one shape differs from the first by more than rounding; "" where it does not."""
    x, y = _promoted(x.detach(), y.detach())
    if x.shape != y.shape:
        return f"shape {tuple(y.shape)}, not {tuple(x.shape)}"
    finite = x.abs()[x.abs().isfinite()]
    scale = float(finite.max()) if finite.numel() else 1.0
    if torch.allclose(y, x, tolerance, tolerance * min(scale, 1.0) + 1e-12, equal_nan=True):
        return ""
    place = int(((y - x).abs() / (x.abs() + 1e-12)).nan_to_num(math.inf).argmax())
    return f"it gives {y.flatten()[place].item():.6g}, not {x.flatten()[place].item():.6g} (element {place})"
