"""Reading LaTeX: text to tokens, to clauses, to trees. See `latex_math`."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

from latex_functions import FUNCTIONS, GREEK


class FormulaError(Exception):
    """The text is not a well-formed statement, or names something that is not bound."""


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
            tree: Node = ("call", name, tuple(self.inner(each) for each in parted(inside)))
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
        parts = parted(found)
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
        items = tuple(self.inner(each) for each in parted([("," if each == ":" else each) for each in under]))
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
            if len(parts := parted(inside)) > 1 and not any(each in RELATIONS for each in inside):
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
        rows = [parted(row, "&") for row in parted(inside[:-1], r"\\") if row]
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
        first, *rest = (self.inner(each) for each in parted(found))
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


def parted(found: Sequence[str], separator: str = ",") -> list[list[str]]:
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
