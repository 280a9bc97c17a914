"""Wrong formulas are caught: small edits of those of elements, losses, distances and draws."""

from __future__ import annotations

import pytest
from test_every_formula import RULES
from test_wrong_formulas import Mutant

pytestmark = pytest.mark.usefixtures("quiet")

# (rule, formula, what is replaced, by what)
MUTANTS = [
    ("add", "equation", "+", "-"),
    ("mul", "other local", "x", r"\mathrm{other}"),
    ("div", "other product", "^{2}", "^{3}"),
    ("pow", "exponent local", r"\ln", ""),
    ("maximum", "self local", r"\frac{1}{2}", "1"),
    ("fmin", "equation", r"\min", r"\max"),
    ("clamp", "self local", r"\le x", "< x"),
    ("sin", "self local", r"\cos", r"-\cos"),
    ("log2", "self local", r"\ln 2", ""),
    ("abs", "self local", r"\operatorname{sign}", ""),
    ("sgn", "self local", r"\operatorname{Im}", r"\operatorname{Re}"),
    ("angle", "self product", r"\mathrm{i}", "1"),
    ("nan_to_num", "equation", r"x \neq x", "x = x"),
    ("frexp", "where", "+ 1", "+ 2"),
    ("polar", "angle local", r"\mathrm{i}", ""),
    ("atan2", "other local", "-", ""),
    ("erfinv", "self local", "e^{", "e^{-"),
    ("lgamma", "equation", r"\ln", ""),
    ("igamma", "other local", r"\Gamma", r"\psi"),
    ("relu", "where", r"\max", r"\min"),
    ("leaky_relu", "where", "0.2", "0.3"),
    ("elu", "where", "- 1", "+ 1"),
    ("celu", "where", "- 1", ""),
    ("hardtanh", "where", "6", "5"),
    ("mish", "where", "1 +", "2 +"),
    ("gelu_tanh", "where", "0.044715", "0.04"),
    ("gelu", "self local", r"\varphi", r"\Phi"),
    ("glu", "self local", "(1 - ", "(1 + "),
    ("glu", "self product", r"{\bar{x}}_{i + 2}", r"{\bar{x}}_{i + 1}"),
    ("dropout", "equation", "0.6", "0.5"),
    ("gelu_backward", "self local", "2", "3"),
    ("softmax_backward_data", "output product", "- ", "+ "),
    ("log_softmax_backward_data", "grad_output local", "[i = j] - ", "[i = j] + "),
    ("nll_loss_backward", "grad_output product", r"\sum_n", "2"),
    ("select_backward", "equation", "u", "1 - u"),
    ("slice_backward", "grad_output product", "2 i", "i"),
    ("embedding_dense_backward", "equation", r"\land v \neq", r"\land v \ge"),
    ("cdist", "x1 local", r"\operatorname{sgn}", ""),
    ("cdist", "where", "-", "+"),
    ("pdist", "where", r"\frac{1}{2}", r"\frac{1}{3}"),
    ("pdist", "self local", "= -", "= "),
    ("mse_loss_reduced", "equation", r"\frac{1}{12}", r"\frac{1}{11}"),
    ("mse_loss", "target local", "-2", "2"),
    ("huber_loss", "equation", r"\frac{1}{2}", r"\frac{1}{3}"),
    ("smooth_l1_loss", "self local", "-1, 1", "0, 1"),
    ("soft_margin_loss", "self local", "1 +", "2 +"),
    ("binary_cross_entropy", "equation", "1 - x", "x"),
    ("binary_cross_entropy_with_logits", "self product", r"\sigma", ""),
    ("nll_loss", "self local", "W", "2 W"),
    ("nll_loss_reduced", "equation", r"\sum_n \sum_c", r"\sum_c"),
    ("cross_entropy", "equation", "-", ""),
    ("cross_entropy", "input local", r"\neq -100", "= -100"),
    ("cross_entropy_reduced", "input product", r"\frac{", r"2 \frac{"),
    ("cross_entropy_reduced", "target product", "1 - 0.1", "0.1"),
    ("multi_margin_loss", "where", r"v = \left(1 - ", r"v = \left(2 - "),
    ("multi_margin_loss", "self local", r"\sum_c v", "v"),
    ("multilabel_margin_loss", "where", r"v \le u", "v < u"),
    ("multilabel_margin_loss", "self product", "B_{n,k}", ""),
    ("bernoulli", "equation", "0.3", "0.4"),
    ("normal", "equation", "^{2}", ""),
    ("uniform", "equation", "-1", "0"),
    ("random", "equation", "6", "7"),
    ("geometric", "equation", "Geometric", "Bernoulli"),
]


@pytest.mark.parametrize(("name", "formula", "old", "new"), MUTANTS)
def test_a_wrong_formula_is_caught(name: str, formula: str, old: str, new: str) -> None:
    mutant = Mutant(next(rule for rule in RULES if rule.name == name), formula, old, new)
    assert mutant.caught()
    assert mutant.changed, "the edit changes nothing"


@pytest.mark.parametrize(("name", "formula", "old"), [mutant[:3] for mutant in MUTANTS[::4]])
def test_a_right_formula_is_not_caught(name: str, formula: str, old: str) -> None:
    mutant = Mutant(next(rule for rule in RULES if rule.name == name), formula, old, old)
    assert not mutant.caught()
    assert mutant.changed
