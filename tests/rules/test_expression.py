r"""Formulas that are expressions: what they compute is what PyTorch computed, and they print as one would write them.

That what they print is right as well, `test_every_formula.py` says, which evaluates the LaTeX of every rule.
"""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from test_every_formula import WITHOUT_NUMBERS, mistakes, uses
from test_every_rule import RULES

from chainrule import rules
from chainrule.rules import Applied, Rule, formula_functions
from chainrule.rules.expression import OTHER, OUT, Expression, Named, X, argument, cases, let, meanings, of
from chainrule.rules.formula_functions import exp, ln, tanh

pytestmark = pytest.mark.usefixtures("quiet")

STATED = [rule for rule in RULES if isinstance(rule.equation, Expression)]


@pytest.mark.parametrize("rule", STATED, ids=lambda rule: rule.name)
def test_an_equation_computes_what_pytorch_computed(rule: Rule) -> None:
    assert isinstance(rule.equation, Expression)
    for where, use in uses(rule):
        mine = torch.as_tensor(rule.equation.run(use.op)).to(use.op.out.dtype).expand(use.op.out.shape)
        there = mine.isfinite() | (rule.name not in WITHOUT_NUMBERS)
        assert torch.allclose(mine[there], use.op.out[there], rtol=2e-5, atol=1e-7, equal_nan=True), where


def rule_of(name: str) -> Rule:
    return next(rule for rule in RULES if rule.name == name)


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
    assert r", \quad ".join(filter(None, [formula(OPERATION), meanings([formula], OPERATION)])) == latex


SLOPED = {name: each for name, each in vars(formula_functions).items() if isinstance(each, Named) and each.slopes}


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


@pytest.mark.parametrize("weight", [None, torch.tensor([1.0, 2.0, 0.5])])
def test_a_class_that_is_masked_adds_nothing_to_a_cross_entropy(weight: torch.Tensor | None) -> None:
    scores = torch.tensor([[1.0, -math.inf, 2.0], [0.5, 0.0, -math.inf]], requires_grad=True)
    arguments = {"input": scores.detach(), "target": torch.tensor([2, 0]), "weight": weight, "reduction": "none"}
    losses = F.cross_entropy(scores, arguments["target"], weight, reduction="none")
    op = Applied(arguments, (losses.detach(),))
    (rule,) = (each for each in rules.all_for_call("cross_entropy") if each.accepts(op))
    assert isinstance(rule.equation, Expression)
    torch.testing.assert_close(rule.equation.run(op), losses)
    upstream = torch.tensor([0.5, 2.0])
    (gradient,) = torch.autograd.grad(losses, scores, upstream)
    torch.testing.assert_close(rule.gradient(op, (upstream,), "input"), gradient)
