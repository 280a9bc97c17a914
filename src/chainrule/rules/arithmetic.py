"""Rules of operations that act element by element: arithmetic, powers, choices between values, and copies.

At a point without a derivative PyTorch takes one value all the same; each such rule names it in its `kink`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.torch_version import TorchVersion

from chainrule.rules import Kink, Sample, elementwise, sample
from chainrule.rules.expression import HALF, OTHER, OUT, SUM, Expression, Named, X, argument, cases, choice, like, of
from chainrule.rules.formula_functions import highest, ln, lowest
from chainrule.rules.pointwise import Function, binary, in_shape_of, meeting, near, quotient_steps, unary, x
from chainrule.rules.pointwise import function as register

function = partial(register, topic="arithmetic")

# The scalar `alpha` is missing from some overloads, and then 1.
ALPHA, EXPONENT, VALUE = argument("alpha", 1), argument("exponent"), argument("value", 1)
TENSOR1, TENSOR2, WEIGHT, END = (argument(name) for name in ("tensor1", "tensor2", "weight", "end"))
CONDITION, MASK = argument("condition"), argument("mask")


YES_NO, NONE = torch.tensor([True, False]), torch.ones(0, dtype=torch.bool)
BOTH = ("self", "other")


def _scaled(f: Function, scalar: float) -> Callable[[], list[Sample]]:
    return lambda: [sample(f, x(), scalar), sample(f, x(), x(1), alpha=3)]


def _three(f: Function) -> Callable[[], list[Sample]]:
    return lambda: [
        sample(f, x(1, 2, shape=(2, 1)), x(3, -1, 4), x(0.5, shape=()), value=2.5, note="broadcast"),
        sample(f, x(), x(), x(), note="one shape"),
        sample(f, x(1), x(shape=(0,)), x(2), note="empty"),
    ]


def _one(f: Function, left: tuple[float, ...], right: tuple[float, ...], note: str) -> list[Sample]:
    return [sample(f, x(*left), x(*right), note=note)]


# fmt: off
function(torch.add, X + ALPHA * OTHER, BOTH, cites=".Tensor", more=_scaled(torch.add, 2.5))
function(torch.sub, X - ALPHA * OTHER, BOTH, cites=".Tensor", more=_scaled(torch.sub, 2.5))
function(torch.rsub, OTHER - ALPHA * X, BOTH, cites=".Tensor", more=_scaled(torch.rsub, 1))
function(torch.mul, X * OTHER, BOTH, cites=".Tensor", more=lambda: [
    sample(torch.mul, x(), 3.0, note="number"),
    sample(torch.mul, x(1 + 2j, -1j), x(2, 3), note="complex times real"),
])
function(torch.div, X / OTHER, BOTH, cites=".Tensor", more=lambda: [
    sample(torch.div, x(), 3.0, note="number"),
    sample(torch.div, x(1 + 2j, -1j), x(2, 3), note="complex by real"),
    sample(torch.div, x(), torch.tensor(3), note="whole number"),
], accepts=lambda op: op.arguments.get("rounding_mode") is None)
function(torch.neg, -X)
function(torch.reciprocal, 1 / X, -(OUT**2), cites="; (1/x)' = -1/x^2")
function(torch.addcmul, X + VALUE * TENSOR1 * TENSOR2, ("self", "tensor1", "tensor2"), samples=_three(torch.addcmul))
function(torch.addcdiv, X + VALUE * TENSOR1 / TENSOR2, ("self", "tensor1", "tensor2"), samples=_three(torch.addcdiv))
function(torch.lerp, X + WEIGHT * (END - X), ("self", "end", "weight"), calls=[{"weight": 0.3}], more=lambda: [
    sample(torch.lerp, x(1, 2, shape=(2, 1)), x(3, -1, 4), x(0.25), note="weight as tensor"),
], source="derivatives.yaml: lerp.Scalar, lerp.Tensor")
function(torch.where, cases(X, CONDITION, OTHER), BOTH, constants={"condition": "not differentiable"}, samples=lambda: [
    sample(torch.where, torch.tensor([True, False, True]), x(1, 2, shape=(2, 1)), x(4), note="broadcast"),
    sample(torch.where, YES_NO.unsqueeze(1), x(1, 2), x(3, shape=()), note="condition broadcast"),
    sample(torch.where, YES_NO, x(1, 2), 0.0, note="number"),
    sample(torch.where, NONE, x(1), x(shape=(0,)), note="empty"),
])
function(torch.masked_fill, cases(VALUE, MASK, X), ("self", "value"), samples=lambda: [
    sample(torch.masked_fill, x(1, 2, 3), torch.tensor([True, False, True]), -math.inf, note="number"),
    sample(torch.masked_fill, x(1, 2), YES_NO.unsqueeze(1), x(5, shape=()), note="tensor, broadcast"),
    sample(torch.masked_fill, x(shape=(0,)), NONE, 1.0, note="empty"),
], constants={"mask": "not differentiable"}, source="derivatives.yaml: masked_fill.Scalar, masked_fill.Tensor")
function(torch.clone, X)
function(torch.fill, VALUE, ("self", "value"), source="derivatives.yaml: fill.Scalar, fill.Tensor", samples=lambda: [
    sample(torch.fill, x(1, 2, 3), x(4, shape=()), note="tensor"),
    sample(torch.fill, x(1, 2, 3), 4.0, note="number"),
    sample(torch.fill, x(shape=(0,)), x(4, shape=()), note="empty"),
])
function(torch.zero_, of(0), name="zero", samples=lambda: [
    sample(lambda value: value.clone().zero_(), x(1, 2)), *unary(torch.ops.aten.zero),
])
# fmt: on

QUOTIENT = {
    "floor": Named(r"\left\lfloor \frac{@1}{@2} \right\rfloor", partial(torch.div, rounding_mode="floor")),
    "trunc": Named(r"\operatorname{trunc}\left(\frac{@1}{@2}\right)", partial(torch.div, rounding_mode="trunc")),
}
function(
    torch.div,
    choice(lambda op: QUOTIENT[op.rounding_mode](X, OTHER)),
    {"self": 0, "other": 0},
    cites=".Tensor_mode",
    name="div_rounded",
    calls=[{"rounding_mode": "floor"}, {"rounding_mode": "trunc"}],
    more=lambda: [sample(torch.div, x(2, 4), 2, rounding_mode="floor", note="on a step")],
    accepts=lambda op: op.arguments.get("rounding_mode") is not None,
    kink=Kink(quotient_steps(), "a rounded quotient jumps where it is whole; PyTorch takes 0 there too"),
)


def _at_base_zero(op: Any, radius: float) -> Tensor:
    exponent = op.exponent
    polynomial = not isinstance(exponent, Tensor | complex) and exponent >= 0 and float(exponent).is_integer()
    return near(like(op.self, op), *(() if polynomial else (0.0,)), radius=radius)


# 0^p stays 0 while p > 0; ln 0 would make this NaN.
STAYS_ZERO = Named("@1 = 0", lambda base, exponent: (base == 0) & (exponent.real >= 0))

power = elementwise(
    "PowBackward0",
    equation=X**EXPONENT,
    derivative={
        "self": (EXPONENT * X ** (EXPONENT - 1)).but(0, EXPONENT.equals(0)),
        "exponent": (OUT * ln(X)).but(0, STAYS_ZERO(X, EXPONENT)),
    },
    samples=lambda: [
        *unary(torch.square),
        *(sample(torch.pow, x(0, 0.5, 2), exponent) for exponent in (0, 1, 3, 0.5, -1.5)),
        *binary(torch.pow, left=(0.4, 1, 2.2), right=(-1.2, 0, 2.5)),
        *(sample(torch.pow, base, x(0, 0.5, 2), note="number to a tensor") for base in (2, 0.5, 0)),
        sample(torch.pow, x(0, 0, 0), x(0, 1, 2), note="0 as base"),
        sample(torch.pow, x(1 + 2j, 1j), x(2 - 1j, 3j), note="complex"),
    ],
    source="derivatives.yaml: pow.Tensor_Scalar, pow.Tensor_Tensor, pow.Scalar",
    kink=Kink(
        _at_base_zero,
        "a power of 0 has a derivative only for exponents above 1; PyTorch takes the formula's limit, and 0 for the "
        "exponent 0 and for the derivative by the exponent",
    ),
)

for f, extremum, wins in (
    # NaN wins, as for PyTorch.
    (torch.maximum, highest, Named("@1 > @2", lambda a, b: ~(a <= b), (), SUM)),
    (torch.minimum, lowest, Named("@1 < @2", lambda a, b: ~(a >= b), (), SUM)),
):
    tie = cases(HALF, X.equals(OTHER))
    function(
        f,
        extremum(X, OTHER),
        # The share of the gradient that a candidate gets: 1 if it wins, one half at a tie, 0 if it loses.
        {"self": cases(1, wins(X, OTHER), tie), "other": cases(1, wins(OTHER, X), tie)},
        more=partial(_one, f, (1, 2), (1, 3), "tie"),
        kink=Kink(meeting("other"), "at a tie PyTorch gives each operand one half of the gradient"),
    )

for f, latex, first in (
    (torch.fmax, r"\max(@1, @2)", Named(r"@1 \ge @2", lambda a, b: (a >= b) | b.isnan(), (), SUM, "@1 < @2")),
    (torch.fmin, r"\min(@1, @2)", Named(r"@1 \le @2", lambda a, b: (a <= b) | b.isnan(), (), SUM, "@1 > @2")),
):
    function(
        f,
        Named(latex, f)(X, OTHER),
        {"self": cases(1, first(X, OTHER)), "other": cases(0, first(X, OTHER), 1)},
        more=partial(_one, f, (1, math.nan, 2), (1, 3, math.nan), "tie and NaN"),
        kink=Kink(meeting("other"), "at a tie PyTorch gives the whole gradient to the first operand"),
        remark="NaN counts as missing.",
    )

OPEN = TorchVersion(torch.__version__) >= TorchVersion("2.14")
MIN, MAX = argument("min"), argument("max")
AT_MIN, AT_MAX = cases(HALF, X.equals(MIN)), cases(HALF, X.equals(MAX))  # a tie, from PyTorch 2.14 on
WITHIN = Named(r"@1 \le @2 \le @3", lambda low, z, high: (z >= low) & (z <= high), (), SUM)
STRICTLY_WITHIN = Named("@1 < @2 < @3", lambda low, z, high: (z > low) & (z < high), (), SUM)
BELOW_BOTH = Named("@1 < @2 < @3", lambda z, low, high: (z < low) & (low < high), (), SUM)
ABOVE = Named(r"@1 > @2 \text{ or } @2 < @3", lambda z, high, low: (z > high) | (high < low), (), SUM)
BELOW = Named(r"@1 < @2 \le @3", lambda z, low, high: (z < low) & (low <= high), (), SUM)
AT_LOWER = Named("@1 = @2 < @3", lambda z, low, high: (z == low) & (low < high), (), SUM)
AT_UPPER = Named("@1 < @2 = @3", lambda low, z, high: (low < z) & (z == high), (), SUM)
AT_BOTH = Named("@1 = @2 = @3", lambda low, z, high: (low == z) & (z == high), (), SUM)


def _by_bounds(both: Any, low: Any, high: Any) -> Expression:
    """One of three formulas: with both bounds, the lower one alone, the upper one alone."""
    return choice(
        lambda op: high if op.arguments.get("min") is None else low if op.arguments.get("max") is None else both
    )


def _within_bounds() -> Expression:
    """1 where the gradient passes to the clamped tensor.

    From PyTorch 2.14 on a bound that is a number takes it where the two meet, and one that is a tensor half of it.
    """
    if not OPEN:
        return _by_bounds(cases(1, WITHIN(MIN, X, MAX)), cases(1, X >= MIN), cases(1, X <= MAX))
    at_one = cases(HALF, AT_LOWER(X, MIN, MAX), cases(HALF, AT_UPPER(MIN, X, MAX), cases(1, AT_BOTH(MIN, X, MAX))))
    shared = _by_bounds(
        cases(1, STRICTLY_WITHIN(MIN, X, MAX), at_one), cases(1, X > MIN, AT_MIN), cases(1, X < MAX, AT_MAX)
    )
    inside = _by_bounds(cases(1, STRICTLY_WITHIN(MIN, X, MAX)), cases(1, X > MIN), cases(1, X < MAX))
    return choice(lambda op: shared if any(isinstance(op.arguments.get(m), Tensor) for m in ("min", "max")) else inside)


def _of_lower() -> Expression:
    """1 where the lower bound wins."""
    if not OPEN:
        return _by_bounds(_may_cross(cases(1, BELOW_BOTH(X, MIN, MAX)), cases(1, X < MIN)), cases(1, X < MIN), 0)
    both = cases(1, BELOW(X, MIN, MAX), cases(HALF, AT_LOWER(X, MIN, MAX)))
    return _by_bounds(both, cases(1, X < MIN, AT_MIN), 0)


def _of_upper() -> Expression:
    """1 where the upper bound wins."""
    if not OPEN:
        return _by_bounds(_may_cross(cases(1, ABOVE(X, MAX, MIN)), cases(1, X > MAX)), 0, cases(1, X > MAX))
    both = cases(1, ABOVE(X, MAX, MIN), cases(HALF, AT_UPPER(MIN, X, MAX)))
    return _by_bounds(both, 0, cases(1, X > MAX, AT_MAX))


def _may_cross(crossing: Any, otherwise: Any) -> Expression:
    """One of two formulas: for bounds that are tensors, and so may be crossed in some places, or for numbers."""
    return choice(lambda op: crossing if isinstance(op.min, Tensor) and isinstance(op.max, Tensor) else otherwise)


def _at_a_bound(op: Any, radius: float) -> Tensor:
    marks = torch.zeros_like(op.out, dtype=torch.bool)
    for bound in (op.arguments.get("min"), op.arguments.get("max")):
        if bound is not None:
            marks = marks | ((op.self - bound).abs() <= radius)
    return in_shape_of(op.self, marks)


clamp = elementwise(
    "ClampBackward0",
    "ClampMinBackward0",
    "ClampMaxBackward0",
    equation=_by_bounds(lowest(highest(X, MIN), MAX), highest(X, MIN), lowest(X, MAX)),
    derivative={
        "self": _within_bounds(),
        "min": _of_lower(),
        "max": _of_upper(),
    },
    samples=lambda: [
        *unary(torch.clamp, min=-0.5, max=1.0),
        *unary(torch.clamp, min=-0.5),
        *binary(torch.clamp_min),
        *binary(torch.clamp_max),
        sample(torch.clamp, x(-1, 0, 0.5, 1, 2), 0, 1, note="at the bounds"),
        sample(torch.clamp_min, x(-1, 0, 1), 0),
        sample(torch.clamp_max, x(-1, 0, 1), 0),
        sample(torch.clamp, x(-2, 0, 3, shape=(3, 1)), x(-1, 0), x(1, 2), note="tensors as bounds"),
        sample(torch.clamp, x(0, 5, 1), x(2, 2, 2), x(1, 1, 1), note="bounds crossed"),
        sample(torch.clamp, x(-1, 0, 0.5, 1, 2), x(0, 0, 0, 0, 0), x(1, 1, 1, 1, 1), note="at bounds that are tensors"),
        sample(torch.clamp, x(-1, 1, 2), x(1, 1, 1), x(1, 1, 1), note="bounds that are equal"),
        sample(torch.clamp_min, x(-1, 0, 1), x(0, 0, 0), note="at a bound that is a tensor"),
        sample(torch.clamp_max, x(-1, 0, 1), x(0, 0, 0), note="at a bound that is a tensor"),
    ],
    source="derivatives.yaml: clamp, clamp.Tensor, clamp_min, clamp_max",
    kink=Kink(
        _at_a_bound,
        "at a bound that is a number PyTorch lets no gradient pass; one that is a tensor gets half of it"
        if OPEN
        else "at a bound PyTorch lets the gradient pass to the clamped tensor, and gives the bound 0",
    ),
)
to_copy = elementwise(
    "ToCopyBackward0",
    equation=X,
    derivative=("self",),
    remark="The copy is in another number type or on another device.",
    samples=lambda: [
        *unary(torch.Tensor.to, dtype=torch.float32),
        sample(torch.Tensor.to, x(1, 2), torch.complex128, note="real to complex"),
    ],
    source="derivatives.yaml: _to_copy",
)

copy = elementwise(
    "CopyBackwards",
    name="copy_",
    equation=argument("src"),
    derivative=("self", "src"),
    samples=lambda: [
        sample(lambda target, source: target.clone().copy_(source), x(1, 2, 3), x(4), note="broadcast"),
        sample(lambda source: torch.zeros(2).copy_(source), x(4, 5), note="into a constant"),
        sample(lambda source: torch.zeros(0).copy_(source), x(shape=(0,)), note="empty"),
    ],
    source="derivatives.yaml: copy (what was there before is gone, so its derivative is 0)",
)
