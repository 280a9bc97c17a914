"""What is printed of an element of a result, `y[0] = σ(x[0]) = σ(-2.3) = 0.0911`, evaluated by Python and scipy."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator
from typing import Any

import mpmath
import numpy
import pytest
import scipy.special as special
import torch
from test_every_formula import RULES, uses
from torch import Tensor

from chainrule.derivation.forward_values import formula, is_short, sides
from chainrule.graph.comparison import rounding
from chainrule.rules import Rule
from chainrule.rules.element import Element, TooManyError

pytestmark = pytest.mark.filterwarnings("ignore:.*deprecated", "ignore:.*beta", "ignore:Sparse")

# Of these a page says only what a number depends on: decompositions and inverses, which are no formula of elements,
# recurrent layers, numbers that were drawn, and results that are not stored as elements.
WITHOUT = {
    *("cholesky", "cholesky_inverse", "linalg_det", "linalg_eig", "linalg_eigh", "linalg_householder_product"),
    *("linalg_inv_ex", "linalg_lstsq", "linalg_lu", "linalg_lu_factor_ex", "linalg_matrix_exp", "linalg_pinv"),
    *("linalg_qr", "linalg_slogdet", "linalg_svd", "ormqr"),
    *("lstm_layer", "recurrent_layers", "thnn_fused_gru_cell", "thnn_fused_lstm_cell"),
    *("bernoulli", "cauchy", "exponential", "geometric", "log_normal", "normal", "poisson", "random", "uniform"),
    *("sparse_coo_tensor", "sparse_sampled_addmm", "to_sparse"),
    *("fake_quantize_per_tensor_affine_cachemask", "fake_quantize_per_tensor_affine_cachemask_tensor_qparams"),
    *("fake_quantize_per_channel_affine_cachemask", "fake_quantize_learnable_per_tensor_affine"),
    *("fake_quantize_learnable_per_channel_affine", "fused_moving_avg_obs_fq_helper"),
}
PARTLY = {"scatter_reduce", "index_reduce", "segment_reduce", "nll_loss_reduced"}  # products; a mean of nothing
NAMED = {"L", "S", "N", "μ", "v", "M", "r", "n"}  # what a calculation works out beside it, or what was drawn
EACH = 4  # elements of each result that are tried


def ln(value: Any) -> Any:
    return numpy.log(value) if isinstance(value, complex) or value > 0 else -math.inf if value == 0 else math.nan


def ordered(place: int) -> Any:
    return lambda *values: sorted(values)[place]


def extreme(of: Any) -> Any:
    """NaN loses, as in fmax."""
    return lambda *values: of((value for value in values if value == value), default=math.nan)


FUNCTIONS: dict[str, Any] = {
    **{name: getattr(numpy, name) for name in ("exp", "exp2", "log2", "log10", "sin", "cos", "tan", "sinh", "cosh")},
    **{name: getattr(numpy, name) for name in ("tanh", "sqrt", "floor", "ceil", "trunc", "conj", "nextafter", "inf")},
    **{f"arc{name}": getattr(numpy, f"arc{name}") for name in ("sin", "cos", "tan")},
    **{f"ar{name}": getattr(numpy, f"arc{name}") for name in ("sinh", "cosh", "tanh")},
    "ln": ln, "abs": abs, "max": extreme(max), "min": extreme(min), "round": numpy.round,
    "arg": numpy.angle, "atan2": numpy.arctan2,
    "sign": lambda z: z / abs(z) if z else 0, "σ": special.expit, "Φ": special.ndtr, "erf": special.erf,
    "φ": lambda z: math.exp(-z * z / 2) / math.sqrt(2 * math.pi), "Φinv": special.ndtri, "erfc": special.erfc,
    "erfinv": special.erfinv, "lnΓ": special.gammaln, "ψ": special.psi, "I0": special.i0, "I1": special.i1,
    "ψ1": lambda z: special.polygamma(1, z), "ψ2": lambda z: special.polygamma(2, z), "ζ": special.zeta,
    "P": special.gammainc, "Q": special.gammaincc, "π": math.pi, "nan": math.nan, "real": lambda z: z.real,
    "lnΓ2": lambda z: special.multigammaln(z, 2), "lnΓ3": lambda z: special.multigammaln(z, 3),
    "clamp": lambda z, low, high: min(max(z, low), high), "nonzero": lambda z: int(z != 0),
    "median": lambda *values: sorted(values)[(len(values) - 1) // 2], "smallest1": ordered(0), "smallest2": ordered(1),
    "mode": lambda *values: min(values, key=lambda value: (-values.count(value), value)),
}  # fmt: skip
FUNCTIONS["__builtins__"] = {"True": True, "False": False}


WIDE = {"exp": mpmath.exp, "ln": mpmath.log, "σ": lambda z: 1 / (1 + mpmath.exp(-z))}


class Operand:
    """`x[0,1]` as Python reads it."""

    def __init__(self, data: Tensor) -> None:
        self.data = data

    def __getitem__(self, index: Any) -> Any:
        return self.data[index].item()


def printed(rule: Rule, all_samples: bool) -> Iterator[tuple[str | None, dict[str, Any], float]]:
    """What is printed for some elements of a rule's results (None: nothing), the operands, and the type's rounding."""
    for _, use in itertools.islice(uses(rule), None if all_samples else 2):
        given: dict[str, Any] = {}
        for name, each in use.op.arguments.items():
            items = enumerate(each) if isinstance(each, list) else [("", each)]
            for item, tensor in items:
                if isinstance(tensor, Tensor):
                    given[f"x_{name}{item}"] = Operand(tensor) if tensor.dim() else tensor.item()
        slots = use.differentiable() if rule.outputs > 1 else [0]
        for slot, out in ((slot, use.op.outs[slot]) for slot in slots):
            if not isinstance(out, Tensor) or out.layout != torch.strided or rule.name in WITHOUT:
                continue
            for index in itertools.islice(itertools.product(*map(range, out.shape)), EACH):
                try:
                    found = formula(rule, use.op, slot, index)
                except TooManyError:
                    continue
                if found is None:
                    yield None, given, 0.0
                elif is_short(found):
                    text = sides("y", found, out[index].item(), f"{out.dtype}", name_of)
                    yield text, given, rounding(out.dtype)


def name_of(leaf: Element) -> str:
    assert leaf.source is not None
    argument, item, index = leaf.source
    return f"x_{argument}{'' if item is None else item}" + (f"[{','.join(map(str, index))}]" if index else "")


def wrong(text: str, given: dict[str, Any], eps: float) -> str:
    """What in a printed calculation does not come out."""
    for equation in text.split("; "):
        calculation = re.sub(r"(, as | \(rounded to |: .* before\)).*", "", equation)
        _, *middle, result = calculation.split(" = ")
        expected = complex(result) if "j" in result else float(result)
        digits = 1e-4 if 1e-4 <= abs(expected) < 1e6 or not expected else abs(expected) * 1e-2
        for side in middle:
            try:
                got = eval(side, {**FUNCTIONS}, given)
            except ZeroDivisionError:
                if math.isfinite(abs(expected)):
                    return f"{side} divides by 0, in {text}"
                continue
            except NameError as error:
                if error.name in NAMED:
                    continue
                return f"{side}: {error!r}"
            if math.isfinite(abs(expected)) and not math.isfinite(
                abs(got)
            ):  # it overflows, and has a value all the same
                with mpmath.workdps(900):
                    got = float(eval(side, {**FUNCTIONS, **WIDE}, given))
            same = got == expected or (got != got and expected != expected)
            if not same and not abs(got - expected) <= digits + 64 * eps * abs(expected):
                return f"{side} is {got}, not {expected}, in {text}"
    return ""


def explained(rules: list[Rule], all_samples: bool) -> None:
    numeric, only_depends = [], []
    for rule in rules:
        texts = list(printed(rule, all_samples))
        found = [wrong(text, *rest) for text, *rest in texts if text is not None]
        assert not any(found), f"{rule.name}: {next(filter(None, found))}"
        (numeric if found else only_depends).append(rule.name)
        if rule.name not in PARTLY and found:
            assert all(text is not None for text, *_ in texts), f"{rule.name} has elements without a formula"
    print(f"{len(numeric)} operations print a calculation, {len(only_depends)} what they depend on: {only_depends}")
    assert set(only_depends) - (set() if all_samples else PARTLY) == {rule.name for rule in rules} & WITHOUT


@pytest.mark.slow
def test_every_printed_calculation_comes_out() -> None:
    explained(RULES, all_samples=True)


def test_printed_calculations_come_out() -> None:
    explained(RULES[::5], all_samples=False)


def test_a_wrong_calculation_is_met() -> None:
    given = {"x": Operand(torch.tensor([-2.3]))}
    assert not wrong("y[0] = σ(x[0]) = σ(-2.3) = 0.0911", given, 1e-7)
    assert wrong("y[0] = σ(x[0]) = σ(-2.3) = 0.0913", given, 1e-7)
    assert wrong("y[0] = x[0] = σ(-2.3) = 0.0911", given, 1e-7)
