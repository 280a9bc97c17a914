"""Wrong formulas are caught: small edits of those of reductions, moves, indices, groups, matrices and spectra."""

from __future__ import annotations

import pytest
from test_every_formula import RULES
from test_wrong_formulas import Mutant

pytestmark = pytest.mark.usefixtures("quiet")

# (rule, formula, what is replaced, by what)
MUTANTS = [
    ("sum", "self local", "= 1", "= -1"),
    ("mean", "equation", r"\frac{1}{6}", r"\frac{1}{5}"),
    ("prod", "self local", r"\lor", r"\land"),
    ("var", "self product", r"\frac{2}{5}", r"\frac{1}{5}"),
    ("std", "self local", "5 \\, y", "y"),
    ("max_dim", "self local", "[j = ", r"[j \neq "),
    ("kthvalue_dim", "equation", r"\ge 2", r"\ge 1"),
    ("norm", "self local", r"\operatorname{sgn}", ""),
    ("cumprod", "self product", r"j \neq i", r"j \ge 0"),
    ("cummin", "equation", r"\min", r"\max"),
    ("renorm", "self local", "[j = v] - ", "[j = v] + "),
    ("dist", "other product", "-", ""),
    ("permute", "equation", "{x}_{j,k,i}", "{x}_{k,i,j}"),
    ("view", "self local", r"\bmod 2", r"\bmod 1"),
    ("flip", "self product", "1 - i", "i"),
    ("roll", "equation", "- 1", "+ 1"),
    ("rot90", "equation", "2 - i", "i"),
    ("tril", "self local", r"j \le i", r"i \le j"),
    ("constant_pad_nd", "equation", "5 &", "0 &"),
    ("pixel_shuffle", "equation", r"+ l", r"- l"),
    ("unfold", "self product", "j + k", "j - k"),
    ("as_strided", "equation", "+ 1)", ")"),
    ("cat", "tensors local", "2 + i", "1 + i"),
    ("stack", "equation", "{y}_{0,", "{y}_{1,"),
    ("block_diag", "equation", "0 + i = u", "1 + i = u"),
    ("split", "self product", "2 + i", "1 + i"),
    ("view_as_complex", "self local", r"= \mathrm{i}", "= 1"),
    ("gather", "self product", "= v", r"\ne v"),
    ("gather", "self local", "i < 2", "i < 3"),
    ("index", "equation", r"\bmod 3", ""),
    ("masked_select", "self product", "3 b", "2 b"),
    ("repeat", "equation", r"\bmod 2", r"\bmod 3"),
    ("index_copy", "self local", "j < 2", "j < 3"),
    ("embedding", "weight local", r"\frac{1}{", r"\frac{2}{"),
    ("embedding_bag", "where", r"\le u", "< u"),
    ("embedding_bag", "per_sample_weights product", "B_{u} = i", "B_{u} = 0"),
    ("sort", "equation", "{x}_{i,", "{x}_{0,"),
    ("scatter", "self local", "= 0]", "= 1]"),
    ("index_add", "source local", "= 2", "= 1"),
    ("masked_scatter", "source product", "= 1", "= 0"),
    ("slice_scatter", "equation", "+ 1 =", "="),
    ("scatter_reduce", "src local", r"u \neq v", r"u = v"),
    ("scatter_reduce", "self product", r"\frac{1}{(", r"\frac{2}{("),
    ("segment_reduce", "equation", r"\le v", "< v"),
    ("linalg_inv_ex", "A local", "-", ""),
    ("linalg_det", "A product", "_{j,i}", "_{i,j}"),
    ("linalg_slogdet", "A local", r"\operatorname{Im}", r"\operatorname{Re}"),
    ("linalg_solve_ex", "A product", "^{H}", "^{T}"),
    ("linalg_solve_triangular", "self product", r"\operatorname{tril}", r"\operatorname{triu}"),
    ("linalg_pinv", "self product", "I - ", "I + "),
    ("linalg_lstsq", "b local", "= -2", "= 2"),
    ("linalg_matrix_exp", "self local", "(1 - t)", "(1 + t)"),
    ("trilinear", "i2 local", "{\\mathrm{i1}}", "2 {\\mathrm{i1}}"),
    ("fft_c2c", "equation", "-2 ", "2 "),
    ("fft_c2r", "self local", "C_{u}", ""),
    ("overlap_add", "grad_in local", "2 r", "3 r"),
    ("cholesky", "self local", r"\frac{1}{2} \left(\operatorname", r"\left(\operatorname"),
    ("cholesky_solve", "input2 product", "-", ""),
    ("linalg_svd", "A local", "^2", ""),
    ("linalg_svd", "A product", r"[k = l] {", r"{"),
    ("linalg_eigh", "A product", "2 \\left(", "\\left("),
    ("linalg_qr", "A local", "P - P^{H}", "P"),
    ("linalg_lu", "A product", "_{-1}", ""),
    ("linalg_lu_factor_ex", "A local", r"\operatorname{triu}(C)", "C"),
    ("linalg_householder_product", "where", "V^{T}", "V"),
    ("linalg_householder_product", "input product", "[i > t]", r"[i \ge t]"),
    ("ormqr", "equation", "Q_1", "Q_0"),
    ("ormqr", "input2 product", "R_{t + 1}", "R_t"),
    ("ormqr", "input3 local", r"Q_1", r"Q_1^{T}"),
    ("linalg_lu_solve", "LU product", "P^{T}", "P"),
    ("triangular_solve", "A product", ")^{T}", ")"),
    ("lu_unpack", "LU_data product", "j < i", r"j \le i"),
]


@pytest.mark.parametrize(("name", "formula", "old", "new"), MUTANTS)
def test_a_wrong_formula_is_caught(name: str, formula: str, old: str, new: str) -> None:
    mutant = Mutant(next(rule for rule in RULES if rule.name == name), formula, old, new)
    assert mutant.caught()
    assert mutant.changed, "the edit changes nothing"
