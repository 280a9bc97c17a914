r"""Wrong formulas are caught: small edits of the printed LaTeX, which the tests of `test_every_formula.py` must see.

An edit replaces one piece of one formula of one rule, everywhere in it: a sign, a factor, an exponent, a swapped
operand, a missing term, another function, an index. `where` are the definitions that a rule's formulas share.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from latex_math import Statement
from latex_tree import FormulaError
from test_every_formula import RULES, Use, uses, wrong_equation, wrong_local, wrong_product

from chainrule.graph.trees import tensors_in
from chainrule.rules import Rule, Wrt

pytestmark = pytest.mark.usefixtures("quiet")

# (rule, formula, what is replaced, by what)
MUTANTS = [
    ("mm", "self local", "B", "2 B"),
    ("mm", "self product", r"\bar{y} \, B^{T}", r"\bar{y} \, B"),
    ("mm", "equation", r"x \, B", r"B \, x"),
    ("bmm", "mat2 product", "x^{T}", "x"),
    ("bmm", "self local", "{B}_{b,j,k}", "{B}_{b,k,j}"),
    ("mv", "vec local", "{x}_{i,j}", "-{x}_{i,j}"),
    ("mv", "self product", r"\mathrm{vec}^{T}", r"\mathrm{vec}"),
    ("dot", "equation", "x^{T}", "x"),
    ("dot", "self local", "}} = ", "}} = 3 "),
    ("addmm", "equation", "x + ", "x - "),
    ("addmm", "self local", "1", "0"),
    ("addmm", "mat2 local", "{A}_{i,j}", "{A}_{i,k}"),
    ("addmv", "self local", "2", "1"),
    ("addmv", "equation", "0.5", "0.25"),
    ("addr", "vec2 product", r"\mathrm{vec1}", r"\mathrm{vec2}"),
    ("baddbmm", "batch1 local", "0.5", "2"),
    ("addbmm", "equation", r"\sum_b", ""),
    ("vdot", "self product", r"\overline{\bar{y}}", r"\bar{y}"),
    ("vdot", "other local", r"\overline{{x}_{i}}", "{x}_{i}"),
    ("linalg_cross", "equation", r"x \times \mathrm{other}", r"\mathrm{other} \times x"),
    ("linalg_cross", "self local", "= -", "= "),
    ("linear", "equation", "W^{T}", "W"),
    ("linear", "equation", " + b", ""),
    ("linear", "weight local", "{X}_{n,i}", "{X}_{n,o}"),
    ("linear", "bias product", r"\sum_{n}", r"2 \sum_{n}"),
    ("grouped_mm", "where", r"\le", "<"),
    ("grouped_mm", "mat2 product", r": \operatorname{group}(i) = e", ""),
    ("convolution", "equation", r"\sum_{c=0}^{2}", r"\sum_{c=0}^{1}"),
    ("convolution", "equation", "i + u", "i - u"),
    ("convolution", "input local", "{n,c,i + u}", "{n,c,i}"),
    ("convolution", "input product", "i - u", "i + u"),
    ("convolution", "weight product", "i + u", "i"),
    ("convolution", "bias local", "= 1", "= 2"),
    ("convolution_kernel", "where", r"x \text{ is 0 outside}", ""),
    ("convolution_kernel", "self product", "/ 2", "/ 1"),
    ("conv_tbc", "weight local", "i + u", "i - u"),
    ("convolution_backward", "equation", r"\bmod 2", r"\bmod 3"),
    ("convolution_backward", "grad_output product", "+ {", "- {"),
    ("im2col", "equation", "3 u + v", "2 v + u"),
    ("col2im", "self local", "= 1", "= -1"),
    ("col2im", "equation", "[p = ", "[q = "),
    ("softmax", "equation", "{x}_i - m", "2 {x}_i - m"),
    ("softmax", "self local", "[i = j] - ", "[i = j] + "),
    ("softmax", "self product", r"{\bar{y}}_j \, ", ""),
    ("log_softmax", "equation", r"\log", r"\exp"),
    ("log_softmax", "self local", "e^{{y}_j}", "{y}_j"),
    ("native_layer_norm", "where", ")^2", ")"),
    ("native_layer_norm", "where", r" + 1 \cdot 10^{-5}", r" + 1 \cdot 10^{-1}"),
    ("native_layer_norm", "input local", "(1 + ", "("),
    ("native_layer_norm", "input product", r" - \alpha_{n}", ""),
    ("rms_norm", "where", r"\frac{1}{4}", r"\frac{1}{3}"),
    ("rms_norm", "input local", "[i = p] - ", "[i = p] + "),
    ("batch_norm", "equation", r"{W}_{c} \, ", ""),
    ("batch_norm", "where", r"- \mu_{c}}", "}"),
    ("batch_norm", "bias product", r"\sum_{n}", r"\sum_{n} n"),
    ("native_group_norm", "where", r"\lfloor d / 2 \rfloor = a", "d = a"),
    ("native_group_norm", "input local", r"= -\frac{1}{6}", r"= \frac{1}{6}"),
    ("weight_norm", "where", r"\sqrt", ""),
    ("weight_norm", "v local", " - ", " + "),
    ("upsample_nearest", "where", r"\lfloor \frac{4}{7} \, i \rfloor", r"\lceil \frac{4}{7} \, i \rceil"),
    ("upsample_nearest_exact", "where", r"\frac{1}{2}", r"\frac{1}{3}"),
    ("upsample_linear", "where", "1 - |t|", "1 - t"),
    ("upsample_linear_backward", "equation", "A_{iu}", "A_{ui}"),
    ("upsample_bicubic", "where", r"\frac{5}{4}", r"\frac{5}{3}"),
    ("upsample_bicubic", "where", "+ m, 0)", "+ m, 1)"),
    ("upsample_bicubic_aa", "where", r"\frac{3}{2} \, |t|^3", r"\frac{3}{2} \, |t|^2"),
    ("upsample_lanczos_aa", "where", r"\sin(\pi \, t / 3)", r"\cos(\pi \, t / 3)"),
    ("reflection_pad", "where", "3 - |3 - ", "3 - |4 - "),
    ("replication_pad", "where", r"\max(i - 3, 0)", r"\max(i - 2, 0)"),
    ("grid_sampler", "equation", "B_{nijv}", "B_{nijv}^2"),
    ("grid_sampler", "where", "[-1 \\le t < 0] - ", "[-1 \\le t < 0] + "),
    ("grid_sampler", "grid product", r"A'_{niju}", r"A_{niju}"),
    ("affine_grid_generator", "where", "- 1", "+ 1"),
    ("avg_pool2d", "where", r"\frac{1}{2}", r"\frac{1}{3}"),
    ("avg_pool2d", "self local", "A_{iu}", "2 A_{iu}"),
    ("adaptive_avg_pool2d", "where", r"\le u", "< u"),
    ("max_pool2d_with_indices", "equation", r"\max_", r"\min_"),
    ("max_pool2d_with_indices", "where", r"\min_", r"\max_"),
    ("max_pool2d_with_indices", "self local", "4 u + v", "4 v + u"),
    ("max_pool2d_with_indices_backward", "grad_output product", "4 u + v", "u + v"),
    ("fractional_max_pool2d", "where", r"\lfloor (i + ", r"\lfloor (i - "),
    ("max_unpool2d", "equation", "4 u + v", "4 u - v"),
    ("flash_attention_for_cpu", "where", r"\sqrt{3}", "3"),
    ("flash_attention_for_cpu", "query local", r" - {y}_{b,h,i,e}", ""),
    ("flash_attention_for_cpu", "key product", r"\bar{S}_{b,h}^{T}", r"P_{b,h}^{T}"),
    ("flash_attention", "where", r"\operatorname{softmax}", r"\exp"),
    ("efficient_attention", "value product", r"P_{b,h}^{T}", r"2 P_{b,h}^{T}"),
    ("scaled_dot_product_attention", "attn_mask local", r"P_{b,h,i,j} \, ", ""),
    ("lstm_layer", "where", r"\tanh(c_t)", "c_t"),
    ("lstm_layer", "input local", r"\dot{f}_t \odot v_t + ", ""),
    ("lstm_layer", "weight0 product", r"\bar{d}_{t + 1}", r"\bar{d}_{t}"),
    ("lstm_layer", "cx_ product", r"f_0", r"i_0"),
    ("recurrent_layers", "where", r"r_t \odot ", ""),
    ("recurrent_layers", "weight local", r"(1 - h_t \odot h_t)", r"(1 + h_t \odot h_t)"),
    ("thnn_fused_lstm_cell", "where", r"\tanh(\operatorname{chunk}", r"\sigma(\operatorname{chunk}"),
    ("thnn_fused_lstm_cell", "cx product", r"f \odot", r"o \odot"),
    ("thnn_fused_gru_cell", "where", "(1 - z)", "(1 + z)"),
    ("pack_padded_sequence", "where", r"> t]", r"\ge t]"),
    ("pack_padded_sequence", "input local", "= 1", "= n"),
    ("sparse_addmm", "mat1 local", r"[{A}_{i,j} \text{ is stored}] \, ", ""),
    ("sparse_sampled_addmm", "equation", r"[x \text{ is stored}] \odot ", ""),
    ("sparse_sampled_addmm", "mat2 product", "^{T}", ""),
    ("to_dense", "self product", r"\text{ is stored}", "= 0"),
    ("sparse_coo_tensor", "equation", r"_{1,n} = j", r"_{0,n} = j"),
]  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Mutant:
    """A rule one of whose formulas is edited, and what the edit did."""

    rule: Rule
    formula: str
    old: str
    new: str
    changed: list[str] = dataclasses.field(default_factory=list)

    def edited(self, template: Any) -> Callable[[Any], str]:
        """A template filled in, and edited."""

        def formula(op: Any) -> str:
            use = Use(self.rule, op, lambda: None, None)
            argument = self.formula.split()[0]
            bar = rf"\bar{{{use.called(argument, 0)}}}" if argument in self.rule.wrt else ""
            text = self.rule.latex(template, op, {**use.symbols(), "grad": bar})
            if self.old in text:
                self.changed.append(text)
            return text.replace(self.old, self.new)

        return formula

    def whole(self) -> Rule:
        """The edited rule."""
        argument, _, part = self.formula.partition(" ")
        if not part:
            return dataclasses.replace(self.rule, **{argument: self.edited(getattr(self.rule, argument))})
        wrt = self.rule.wrt[argument]
        wrong: Wrt = dataclasses.replace(wrt, **{part: self.edited(getattr(wrt, part))})
        return dataclasses.replace(self.rule, wrt={**self.rule.wrt, argument: wrong})

    def checks(self, use: Use) -> Iterator[str]:
        """What the formulas that the edit can reach say."""
        argument, _, part = self.formula.partition(" ")
        if not part:
            yield wrong_equation(use)
            if argument == "equation":
                return
        for name in self.rule.wrt if not part else [argument]:
            given = tensors_in([use.op.arguments.get(name)])
            if not any(each.is_floating_point() or each.is_complex() for each in given):
                continue
            if not use.op.arguments.get("has_biases", True):
                continue
            if part != "product":
                yield wrong_local(use, name)
            if part != "local":
                yield wrong_product(use, name)

    def caught(self) -> bool:
        """Whether a sample shows that the formula is wrong."""
        rule = self.whole()
        for _, use in uses(self.rule):
            try:
                if any(self.checks(dataclasses.replace(use, rule=rule))):
                    return True
            except (FormulaError, RuntimeError, IndexError):
                return True
        return False


@pytest.mark.parametrize(("name", "formula", "old", "new"), MUTANTS)
def test_a_wrong_formula_is_caught(name: str, formula: str, old: str, new: str) -> None:
    mutant = Mutant(next(rule for rule in RULES if rule.name == name), formula, old, new)
    assert mutant.caught()
    assert mutant.changed, "the edit changes nothing"


@pytest.mark.parametrize(("name", "formula", "old"), [mutant[:3] for mutant in MUTANTS[::6]])
def test_a_right_formula_is_not_caught(name: str, formula: str, old: str) -> None:
    mutant = Mutant(next(rule for rule in RULES if rule.name == name), formula, old, old)
    assert not mutant.caught()
    assert mutant.changed


def test_there_are_enough_wrong_formulas() -> None:
    assert len(set(MUTANTS)) >= 60
    assert len({name for name, *_ in MUTANTS}) >= 40


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (r"y_i = \sum_j x_j w_k", "w is not bound"),
        (r"y_i = x_j", "j is not bound"),
        (r"y_i = \sum_i x_i", "a sum over nothing"),
        (r"y_i = x_i \text{ roughly}", "prose"),
        (r"y = x \, x", "side by side"),
        (r"y_i = \sum_j 1", "nothing says what j runs over"),
        (r"y_i = x_i +", "more expected"),
        (r"y_{i0} = x_i", "2 indices"),
    ],
)
def test_a_formula_that_says_nothing_is_an_error(text: str, why: str) -> None:
    x = torch.arange(3.0)
    with pytest.raises(FormulaError, match=why):
        Statement(text, {"x": x, "y": x}).wrong_equation("y")
