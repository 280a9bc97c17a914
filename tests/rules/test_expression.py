r"""Formulas that are expressions: what they print, what they compute, and what PyTorch computed are one and the same.

Equation, local derivative and product of every rule that is made of expressions are read from the printed LaTeX, by a
reader that knows nothing of expressions, on every sample of the rule.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import scipy.special as special
import torch
import torch.nn.functional as F
from test_every_rule import RULES, quiet, recorded, steps_of  # noqa: F401 (a fixture)
from torch import Tensor

from chainrule.rules import Applied, Rule, elementary
from chainrule.rules.elementary import exp, ln, sin, tanh
from chainrule.rules.expression import OTHER, OUT, Expression, Named, X, argument, cases, let, of

# A reader of the printed LaTeX


def scipy_of(f: Callable[..., Any]) -> Callable[..., Tensor]:
    return lambda op, *operands: torch.as_tensor(f(*(each.numpy() for each in operands)))


def torch_of(f: Callable[..., Any]) -> Callable[..., Tensor]:
    return lambda op, *operands: f(*operands)


FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    **{rf"\{name}": torch_of(getattr(torch, name)) for name in ("sin", "cos", "tan", "sinh", "cosh", "tanh")},
    **{rf"\arc{name}": torch_of(getattr(torch, f"a{name}")) for name in ("sin", "cos", "tan")},
    **{rf"\operatorname{{ar{name}}}": torch_of(getattr(torch, f"a{name}")) for name in ("sinh", "cosh", "tanh")},
    **{rf"\psi^({n})": scipy_of(lambda z, n=n: special.polygamma(n, z)) for n in (1, 2, 3)},
    r"\ln": torch_of(torch.log),
    r"\log_2": torch_of(torch.log2),
    r"\log_10": torch_of(torch.log10),
    r"\arg": torch_of(torch.angle),
    r"\max": torch_of(torch.maximum),
    r"\min": torch_of(torch.minimum),
    r"\sigma": torch_of(lambda z: 1 / (1 + torch.exp(-z))),
    r"\Phi": scipy_of(special.ndtr),
    r"\Phi^-1": scipy_of(special.ndtri),
    r"\varphi": torch_of(lambda z: torch.exp(-z * z / 2) / math.sqrt(2 * math.pi)),
    r"\Gamma": scipy_of(special.gamma),
    r"\Gamma_3": torch_of(lambda z: torch.mvlgamma(z, 3).exp()),
    r"\psi": scipy_of(special.digamma),
    r"\zeta": scipy_of(special.zeta),
    "P": scipy_of(special.gammainc),
    "Q": scipy_of(special.gammaincc),
    "I_0": scipy_of(special.i0),
    "I_1": scipy_of(special.i1),
    r"\operatorname{erf}": scipy_of(special.erf),
    r"\operatorname{erf}^-1": scipy_of(special.erfinv),
    r"\operatorname{erfc}": scipy_of(special.erfc),
    r"\operatorname{atan2}": torch_of(torch.atan2),
    r"\operatorname{sign}": torch_of(torch.sgn),
    r"\operatorname{trunc}": torch_of(torch.trunc),
    r"\operatorname{round}": torch_of(torch.round),
    r"\operatorname{clamp}": torch_of(torch.clamp),
    r"\operatorname{ReLU}": torch_of(F.relu),
    r"\operatorname{ReLU6}": torch_of(F.relu6),
    r"\operatorname{LeakyReLU}": lambda op, z: F.leaky_relu(z, op.negative_slope),
    r"\operatorname{ELU}": lambda op, z: F.elu(z, op.alpha),
    r"\operatorname{SELU}": torch_of(F.selu),
    r"\operatorname{CELU}": lambda op, z: F.celu(z, op.alpha),
}
COMPARISONS = {"<": torch.lt, ">": torch.gt, r"\le": torch.le, r"\ge": torch.ge, "=": torch.eq, r"\neq": torch.ne}
CONSTANTS = {r"\pi": math.pi, r"\infty": math.inf, r"\mathrm{i}": 1j}
TOKEN = re.compile(
    r"\\(?:mathrm|operatorname|text)\{[^{}]*\}|\\(?:begin|end)\{cases\}|\\[a-zA-Z]+|\\.|\d+(?:\.\d+)?|[a-zA-Z]'*|\S"
)
ENDS = {*"+-,&)}", r"\\", r"\rfloor", r"\rceil", r"\end{cases}", r"\text{ or }"}
SKIPPED = {r"\left", r"\right", r"\,"}


class Reader:
    """The value of a formula, by recursive descent; behind it stand the meanings of the abbreviations in it."""

    def __init__(self, text: str, values: dict[str, Any], op: Applied) -> None:
        formula, *meanings = text.split(r", \quad ")
        self.meanings = dict(each.split(" = ", 1) for each in meanings)
        self.text, self.values, self.op = formula, values, op
        self.bars = 0  # how many are open
        self.tokens = [token for token in TOKEN.findall(formula) if token not in SKIPPED]

    def value(self) -> Tensor:
        found = self.sum()
        assert not self.tokens, f"{self.tokens} is left of {self.text}"
        return found

    def next_is(self, *tokens: str) -> bool:
        return bool(self.tokens) and self.tokens[0] in tokens

    def take(self, expected: str = "") -> str:
        token = self.tokens.pop(0)
        assert expected in ("", token), f"{token} where {expected} should stand in {self.text}"
        return token

    def within(self, opening: str, closing: str, read: Callable[[], Any]) -> Any:
        self.take(opening)
        found = read()
        self.take(closing)
        return found

    def sum(self) -> Tensor:
        total = -self.product() if self.next_is("-") and self.take() else self.product()
        while self.next_is("+", "-"):
            total = total + self.product() if self.take() == "+" else total - self.product()
        return total

    def product(self) -> Tensor:
        if self.next_is(r"\sum") and self.take():
            return self.product().sum()
        found = self.factor()
        while self.tokens and not self.next_is(*COMPARISONS, *ENDS, *"|" * self.bars):
            if self.next_is("/") and self.take():
                found = found / self.factor()
                continue
            if self.next_is(r"\odot", r"\cdot"):
                self.take()
            found = found * (self.product() if self.next_is(r"\sum") else self.factor())
        return found

    def factor(self) -> Tensor:
        found = self.primary()
        return found ** self.group() if self.next_is("^") and self.take() else found

    def group(self) -> Tensor:
        return self.within("{", "}", self.sum)

    def primary(self) -> Tensor:
        match self.tokens[0]:
            case "(":
                return self.within("(", ")", self.sum)
            case "|":
                self.bars += 1
                found = self.within("|", "|", self.sum).abs()
                self.bars -= 1
                return found
            case r"\lfloor":
                return self.within(r"\lfloor", r"\rfloor", self.sum).floor()
            case r"\lceil":
                return self.within(r"\lceil", r"\rceil", self.sum).ceil()
            case r"\begin{cases}":
                return self.within(r"\begin{cases}", r"\end{cases}", self.cases)
        token = self.take()
        match token:
            case r"\frac":
                return self.group() / self.group()
            case r"\sqrt":
                return self.group().sqrt()
            case r"\overline":
                return self.group().conj()
            case "e" if self.next_is("^") and self.take():
                return self.group().exp()
        if token in self.values:
            return torch.as_tensor(self.values[token])
        if token in self.meanings:
            return Reader(self.meanings[token] + self.behind(), self.values, self.op).value()
        if token in CONSTANTS or re.fullmatch(r"[\d.]+", token):
            known = CONSTANTS.get(token)
            return torch.tensor(
                float(token) if known is None else known, dtype=torch.complex128 if known == 1j else float
            )
        return self.function(token)

    def behind(self) -> str:
        return "".join(rf", \quad {name} = {meaning}" for name, meaning in self.meanings.items())

    def function(self, name: str) -> Tensor:
        power = None
        if self.next_is("_") and self.take():
            name += "_" + (self.within("{", "}", self.take) if self.next_is("{") else self.take())
        if self.next_is("^") and self.take():
            self.take("{")
            mark = ""
            while not self.next_is("}"):
                mark += self.take()
            self.take("}")
            name, power = (name, float(mark)) if mark.isdigit() else (f"{name}^{mark}", None)
        operands = [self.factor()] if not self.next_is("(") else self.within("(", ")", self.operands)
        found = FUNCTIONS[name](self.op, *(each.to(operands[0].dtype) for each in operands))
        return found if power is None else found**power

    def operands(self) -> list[Tensor]:
        found = [self.sum()]
        while self.next_is(",") and self.take():
            found.append(self.sum())
        return found

    def cases(self) -> Tensor:
        rows = [self.row()]
        while self.next_is(r"\\") and self.take():
            rows.append(self.row())
        found = torch.tensor(math.nan, dtype=torch.float64)
        for value, condition in reversed(rows):
            found = torch.where(condition, value, found)
        return found

    def row(self) -> tuple[Tensor, Tensor]:
        value = self.sum()
        self.take("&")
        return value, self.condition()

    def condition(self) -> Tensor:
        if self.next_is(r"\text{otherwise}") and self.take():
            return torch.tensor(True)
        left, holds = self.sum(), None
        while self.next_is(*COMPARISONS):
            compare, right = COMPARISONS[self.take()], self.sum()
            holds = compare(left, right) if holds is None else holds & compare(left, right)
            left = right
        holds = left.bool() if holds is None else holds
        return holds | self.condition() if self.next_is(r"\text{ or }") and self.take() else holds


# What is compared

DRAWN = {  # what a formula names that is no argument
    "dropout": lambda op: {"M": op.outs[1].double()},
    "rrelu": lambda op: {"r": torch.where(op.self == 0, (op.lower + op.upper) / 2, op.out / op.self)},
    "frexp": lambda op: {"e": op.outs[1].double()},
    "nan_to_num": lambda op: {r"\text{a chosen number}": op.out},
}
IN_WORDS = {"nextafter"}  # equations that no reader of formulas can evaluate


def printed(rule: Rule, template: Any, op: Applied, g: Tensor | None = None, behind: str = "") -> Tensor:
    """The value of a formula of a rule as it prints."""
    values = {name: each for name, each in {**op.arguments, "out": op.out, "g": g}.items() if isinstance(each, Tensor)}
    text = rule.latex(template, op, {name: rf"\mathrm{{{name}}}" for name in values})
    named = {rf"\mathrm{{{name}}}": each if each.is_complex() else each.double() for name, each in values.items()}
    return Reader(
        text.removeprefix(r"\mathrm{out} = ") + behind, named | DRAWN.get(rule.name, lambda op: {})(op), op
    ).value()


def differences(what: str, mine: Any, theirs: Any, op: Applied) -> Iterator[str]:
    """How two values differ at elements where the first is a number, and no operand is NaN; says how many there are."""
    mine, theirs = (torch.as_tensor(each).to(torch.complex128) for each in (mine, theirs))
    operands = [each for each in op.arguments.values() if isinstance(each, Tensor) and each.is_floating_point()]
    try:
        missing = sum((each.isnan() for each in operands), torch.zeros(()))
        mine, theirs, missing = torch.broadcast_tensors(mine, theirs, missing)
    except RuntimeError:  # a cost, or the gradient of an operand that was broadcast
        mine, theirs = torch.broadcast_tensors(mine, theirs)
        missing = torch.zeros_like(mine.real)
    place = mine.isfinite() & (missing == 0)
    if not torch.allclose(mine[place], theirs[place], rtol=2e-5, atol=1e-7):
        yield f"{what}: {mine[place]}, not {theirs[place]}"


def is_stated(rule: Rule) -> bool:
    """Whether a rule is made of expressions, or the mean of one that is."""
    base = next((each for each in RULES if f"{each.name}_reduced" == rule.name), rule)
    return any(isinstance(wrt.local, Expression) for wrt in base.wrt.values())


STATED = [rule for rule in RULES if is_stated(rule)]


def operations(rule: Rule) -> Iterator[tuple[str, Applied]]:
    for place, sample in enumerate(rule.samples()):
        recording = recorded(sample, torch.float64)
        for step in [] if recording is None else steps_of(rule, recording):
            if step.op is not None:
                yield f"sample {place} {sample.note}".strip(), step.op


def mistakes(known: Rule, changed: Rule | None = None) -> Iterator[str]:
    """All that the formulas of a rule print otherwise than they compute, or compute otherwise than PyTorch."""
    compared, rule = 0, changed or known
    for where, op in operations(known):
        compared += int(op.out.isfinite().sum())
        if isinstance(rule.equation, Expression):
            yield from differences(f"{where}: equation, computed", rule.equation.run(op), op.out, op)
        if (isinstance(rule.equation, Expression) and rule.name not in IN_WORDS) or rule.name.endswith("_reduced"):
            yield from differences(f"{where}: equation, printed", printed(rule, rule.equation, op), op.out, op)
        for name, wrt in rule.wrt.items():
            x = op.arguments.get(name)
            if not isinstance(x, Tensor) or not (x.is_floating_point() or x.is_complex()):
                continue
            g = torch.randn_like(op.out)
            local = wrt.local.run(op) if isinstance(wrt.local, Expression) else wrt.vjp(op, torch.ones_like(op.out))
            text = rule.latex(wrt.local, op, {name: rf"\mathrm{{{name}}}" for name in op.arguments})
            product = printed(rule, wrt.product, op, g, "".join(text.partition(r", \quad ")[1:]))
            yield from differences(f"{where}: {name}, local", printed(rule, wrt.local, op), local, op)
            product = product if x.is_complex() else product.real
            yield from differences(f"{where}: {name}, product", product, wrt.vjp(op, g), op)
    if not compared:
        yield "nothing was compared"


@pytest.mark.parametrize("rule", STATED, ids=lambda rule: rule.name)
def test_a_formula_prints_what_it_computes(rule: Rule) -> None:
    found = list(mistakes(rule))
    assert not found, "\n".join(found)


def rule_of(name: str) -> Rule:
    return next(rule for rule in RULES if rule.name == name)


def broken(name: str, **changes: Any) -> list[str]:
    """The mistakes of a rule whose local derivative by `self` was changed."""
    rule = rule_of(name)
    wrt = dataclasses.replace(rule.wrt["self"], local=dataclasses.replace(rule.wrt["self"].local, **changes))
    return list(mistakes(rule, dataclasses.replace(rule, wrt={**rule.wrt, "self": wrt})))


def test_a_formula_that_computes_something_else_is_caught() -> None:
    assert any("self, local" in each for each in broken("cos", run=lambda op: op.self.sin()))
    assert any("self, local" in each for each in broken("cos", put=(sin(X) * 1).put))
    assert not broken("cos")


@pytest.mark.parametrize("name", ["sigmoid", "mse_loss", "gelu_tanh"])
def test_a_printer_that_drops_brackets_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Expression, "at", lambda self, level: self.text)
    assert list(mistakes(rule_of(name)))


Y = argument("y")
U = let("u", X**2 + 1, primed=True)
OPERATION = Applied({"self": torch.rand(4), "other": torch.rand(4), "y": 3, "one": 1}, (torch.rand(4),))


@pytest.mark.parametrize(
    ("formula", "latex"),
    [
        (X + argument("one") * OTHER, "$self + $other"),
        (X - Y * OTHER, r"$self - 3 \, $other"),
        (X * OTHER * 2, r"2 \, $self \odot $other"),
        (2 * (X - OTHER), r"2 \left($self - $other\right)"),
        (X - (X + OTHER), r"$self - \left($self + $other\right)"),
        (-(X - OTHER), r"-\left($self - $other\right)"),
        (X / 2 + 0.5 * X, "$self"),
        (argument("one") * X + 1 - X, "1"),
        (OTHER * argument("pi", 3.5), r"3.5 \, $other"),
        (1 / (2 * X), r"\frac{1}{2 \, $self}"),
        (X / (-2 * OTHER), r"-\frac{$self}{2 \, $other}"),
        (-(X**2), r"-\left($self\right)^{2}"),
        ((-X) ** 2, r"\left($self\right)^{2}"),
        ((1 - X) ** 2, r"\left(1 - $self\right)^{2}"),
        (tanh(X) ** 2 * OTHER, r"$other \odot \tanh^{2} $self"),
        (ln(X) * ln(OTHER), r"\left(\ln $self\right) \odot \ln $other"),
        (ln(1 - X), r"\ln\left(1 - $self\right)"),
        (X * ln(2), r"$self \ln 2"),
        (exp(-(X**2) / 2), r"e^{-\left($self\right)^{2} / 2}"),
        (exp(X).derivative("self"), "e^{$self}"),
        ((OUT * (1 - OUT)).derivative("out"), r"1 - 2 \, $out"),
        (of(1e7) ** X, r"\left(1 \cdot 10^{7}\right)^{$self}"),
        (cases(0, X <= 0, 1), r"\begin{cases} 1 & $self > 0 \\ 0 & $self \le 0 \end{cases}"),
        (U.derivative("self"), r"u', \quad u' = 2 \, $self"),
        (U.derivative("self").derivative("self"), r"u'', \quad u'' = 2"),
    ],
)
def test_formulas_print_as_one_would_write_them(formula: Expression, latex: str) -> None:
    assert formula(OPERATION) == latex


SLOPED = {name: each for name, each in vars(elementary).items() if isinstance(each, Named) and each.slopes}


@pytest.mark.parametrize("function", SLOPED.values(), ids=SLOPED)
def test_a_function_has_its_slope(function: Named) -> None:
    x = torch.tensor([0.2, 0.7, 1.9], dtype=torch.float64).requires_grad_()
    op = Applied({"self": x}, (x,))
    (slope,) = torch.autograd.grad(function(X * 2).run(op).sum(), x)
    mine = torch.as_tensor(function(X * 2).derivative("self").run(op)).expand(3)
    torch.testing.assert_close(mine, slope, check_dtype=False)


@pytest.mark.parametrize(
    ("symbol", "printed"),
    [("x", "x^{2}"), ("x_{1}", "x_{1}^{2}"), (r"\bar{x}", r"\bar{x}^{2}"), ("-2", r"\left(-2\right)^{2}")],
)
def test_a_plain_symbol_needs_no_brackets(symbol: str, printed: str) -> None:
    assert rule_of("pow").latex((X**2)(OPERATION), OPERATION, {"self": symbol}) == printed
