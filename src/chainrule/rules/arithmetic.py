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

from chainrule.rules import Kink, Sample, elementwise, reduce_to_shape, sample
from chainrule.rules.elementary import highest, ln, lowest
from chainrule.rules.expression import HALF, OTHER, OUT, SUM, Expression, Named, X, argument, cases, choice, like, of

Function = Callable[..., Any]
Where = Callable[[Any, float], Tensor]


def x(*values: float | complex, shape: tuple[int, ...] | None = None) -> Tensor:
    """A sample input that wants a gradient: a vector, or of `shape`."""
    if not values and shape is None:
        values = (-1.5, -0.2, 0.3, 2.0)
    dtype = torch.complex128 if any(isinstance(value, complex) for value in values) else torch.get_default_dtype()
    return torch.tensor(values, dtype=dtype).reshape((len(values),) if shape is None else shape).requires_grad_()


def unary(function: Function, *values: float, **keywords: Any) -> list[Sample]:
    """One operand: a vector, a column, size 1, a 0-dimensional tensor, and an empty one."""
    values = values or (-1.5, -0.2, 0.3, 2.0)
    inputs = {
        "vector": x(*values),
        "column": x(*values, shape=(-1, 1)),
        "size 1": x(values[0]),
        "0-dimensional": x(values[-1], shape=()),
        "empty": x(shape=(0, 2)),
    }
    return [sample(function, value, note=note, **keywords) for note, value in inputs.items()]


def binary(
    function: Function,
    left: tuple[float, ...] = (-1.5, -0.2, 0.3, 2.0),
    right: tuple[float, ...] = (0.7, -1.2, 3.1, 1.6),
    **keywords: Any,
) -> list[Sample]:
    """Two operands: of one shape, both broadcast, size 1, 0-dimensional, and empty."""
    pairs = {
        "one shape": (x(*left), x(*right)),
        "both broadcast": (x(*left, shape=(-1, 1)), x(*right)),
        "size 1": (x(*left), x(right[0])),
        "0-dimensional": (x(left[-1], shape=()), x(*right)),
        "both 0-dimensional": (x(left[0], shape=()), x(right[0], shape=())),
        "empty": (x(shape=(0, 1)), x(*right)),
    }
    return [sample(function, *pair, note=note, **keywords) for note, pair in pairs.items()]


def at(*points: float) -> Where:
    """Where `self` lies within the radius of one of `points`."""
    return lambda op, radius: near(op.self, *points, radius=radius)


def near(values: Tensor, *points: float, radius: float) -> Tensor:
    """Which values lie within `radius` of one of `points`."""
    within = torch.zeros(values.shape, dtype=torch.bool, device=values.device)
    for point in points:
        within = within | ((values - point).abs() <= radius)
    return within


def near_whole(values: Tensor, radius: float | Tensor, rounding: str = "floor") -> Tensor:
    """Which values lie within `radius` of a step of `rounding`: whole numbers, but 0 is no step of `trunc`."""
    near_one = (values - values.round()).abs() <= radius
    return near_one & (values.round() != 0) if rounding == "trunc" else near_one


def quotient_steps(rounding: str | None = None) -> Where:
    """Where `self / other` is about to step; the rounding may be an argument of the operation."""

    def where(op: Any, radius: float) -> Tensor:
        steps = near_whole(op.self / op.other, radius / abs(op.other), rounding or op.rounding_mode)
        return in_shape_of(op.self, steps)

    return where


def meeting(other: str) -> Where:
    """Where `self` meets the operand `other`; an element that broadcasting repeats counts if any copy does."""

    def where(op: Any, radius: float) -> Tensor:
        return in_shape_of(op.self, (op.self - op.arguments[other]).abs() <= radius)

    return where


def in_shape_of(operand: Any, marks: Tensor) -> Tensor:
    """Bring marks in the shape of the output back to an operand that was broadcast."""
    shape = tuple(operand.shape) if isinstance(operand, Tensor) else ()
    return reduce_to_shape(marks.to(torch.int64), shape)[0] > 0


# The scalar `alpha` is missing from some overloads, and then 1.
ALPHA, EXPONENT, VALUE = argument("alpha", 1), argument("exponent"), argument("value", 1)
TENSOR1, TENSOR2, WEIGHT, END = (argument(name) for name in ("tensor1", "tensor2", "weight", "end"))
CONDITION, MASK = argument("condition"), argument("mask")


def _scaled(function: Function, scalar: float) -> Callable[[], list[Sample]]:
    return lambda: [*binary(function), sample(function, x(), scalar), sample(function, x(), x(1), alpha=3)]


def _three(function: Function) -> Callable[[], list[Sample]]:
    return lambda: [
        sample(function, x(1, 2, shape=(2, 1)), x(3, -1, 4), x(0.5, shape=()), value=2.5, note="broadcast"),
        sample(function, x(), x(), x(), note="one shape"),
        sample(function, x(1), x(shape=(0,)), x(2), note="empty"),
    ]


YES_NO, NONE = torch.tensor([True, False]), torch.ones(0, dtype=torch.bool)

# fmt: off
for name, equation, arguments, samples, entries, *masks in (
    # node          equation                          differentiated by, samples, entries of derivatives.yaml
    ("Add",         X + ALPHA * OTHER,                ("self", "other"), _scaled(torch.add, 2.5), "add.Tensor"),
    ("Sub",         X - ALPHA * OTHER,                ("self", "other"), _scaled(torch.sub, 2.5), "sub.Tensor"),
    ("Rsub",        OTHER - ALPHA * X,                ("self", "other"), _scaled(torch.rsub, 1), "rsub.Tensor"),
    ("Mul",         X * OTHER,                        ("self", "other"), lambda: [
        *binary(torch.mul),
        sample(torch.mul, x(), 3.0, note="number"),
        sample(torch.mul, x(1 + 2j, -1j), x(2, 3), note="complex times real"),
    ], "mul.Tensor"),
    ("Neg",         -X,                               ("self",), lambda: unary(torch.neg), "neg"),
    ("Addcmul",     X + VALUE * TENSOR1 * TENSOR2,    ("self", "tensor1", "tensor2"), _three(torch.addcmul), "addcmul"),
    ("Addcdiv",     X + VALUE * TENSOR1 / TENSOR2,    ("self", "tensor1", "tensor2"), _three(torch.addcdiv), "addcdiv"),
    ("Lerp",        X + WEIGHT * (END - X),           ("self", "end", "weight"), lambda: [
        *binary(torch.lerp, weight=0.3),
        sample(torch.lerp, x(1, 2, shape=(2, 1)), x(3, -1, 4), x(0.25), note="weight as tensor"),
    ], "lerp.Scalar, lerp.Tensor"),
    ("Where",       cases(X, CONDITION, OTHER),       ("self", "other"), lambda: [
        sample(torch.where, torch.tensor([True, False, True]), x(1, 2, shape=(2, 1)), x(4), note="broadcast"),
        sample(torch.where, YES_NO.unsqueeze(1), x(1, 2), x(3, shape=()), note="condition broadcast"),
        sample(torch.where, YES_NO, x(1, 2), 0.0, note="number"),
        sample(torch.where, NONE, x(1), x(shape=(0,)), note="empty"),
    ], "where", "condition"),
    ("MaskedFill",  cases(VALUE, MASK, X),            ("self", "value"), lambda: [
        sample(torch.masked_fill, x(1, 2, 3), torch.tensor([True, False, True]), -math.inf, note="number"),
        sample(torch.masked_fill, x(1, 2), YES_NO.unsqueeze(1), x(5, shape=()), note="tensor, broadcast"),
        sample(torch.masked_fill, x(shape=(0,)), NONE, 1.0, note="empty"),
    ], "masked_fill.Scalar, masked_fill.Tensor", "mask"),
    ("Clone",       X,                                ("self",), lambda: unary(torch.clone), "clone"),
    ("Fill",        VALUE,                            ("self", "value"), lambda: [
        sample(torch.fill, x(1, 2, 3), x(4, shape=()), note="tensor"),
        sample(torch.fill, x(1, 2, 3), 4.0, note="number"),
        sample(torch.fill, x(shape=(0,)), x(4, shape=()), note="empty"),
    ], "fill.Scalar, fill.Tensor"),
    ("Zero",        of(0),                            ("self",), lambda: [
        sample(lambda value: value.clone().zero_(), x(1, 2)), *unary(torch.ops.aten.zero),
    ], "zero"),
):
    elementwise(
        f"{name}Backward0",
        equation=equation,
        derivative=arguments,
        samples=samples,
        source=f"derivatives.yaml: {entries}",
        constants=dict.fromkeys(masks, "not differentiable"),
    )
# fmt: on

div = elementwise(
    "DivBackward0",
    name="div",
    equation=X / OTHER,
    derivative=("self", "other"),
    samples=lambda: [
        *binary(torch.div),
        sample(torch.div, x(), 3.0, note="number"),
        sample(torch.div, x(1 + 2j, -1j), x(2, 3), note="complex by real"),
        sample(torch.div, x(), torch.tensor(3), note="whole number"),
    ],
    source="derivatives.yaml: div.Tensor",
    accepts=lambda op: op.arguments.get("rounding_mode") is None,
)
QUOTIENT = {
    "floor": Named(r"\left\lfloor \frac{@1}{@2} \right\rfloor", partial(torch.div, rounding_mode="floor")),
    "trunc": Named(r"\operatorname{trunc}\left(\frac{@1}{@2}\right)", partial(torch.div, rounding_mode="trunc")),
}
div_rounded = elementwise(
    "DivBackward0",
    name="div_rounded",
    equation=choice(lambda op: QUOTIENT[op.rounding_mode](X, OTHER)),
    derivative={"self": 0, "other": 0},
    samples=lambda: [
        *binary(torch.div, rounding_mode="floor"),
        *binary(torch.div, rounding_mode="trunc"),
        sample(torch.div, x(2, 4), 2, rounding_mode="floor", note="on a step"),
    ],
    source="derivatives.yaml: div.Tensor_mode",
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
    name="pow",
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
reciprocal = elementwise(
    "ReciprocalBackward0",
    equation=1 / X,
    derivative={"self": -(OUT**2)},
    samples=lambda: unary(torch.reciprocal),
    source="derivatives.yaml: reciprocal; (1/x)' = -1/x^2",
)


def _ties(
    function: Function,
    left: tuple[float, ...] = (1, 2),
    right: tuple[float, ...] = (1, 3),
    note: str = "tie",
) -> list[Sample]:
    return [*binary(function), sample(function, x(*left), x(*right), note=note)]


for node, extremum, function, wins in (
    # NaN wins, as for PyTorch.
    ("Maximum", highest, torch.maximum, Named("@1 > @2", lambda a, b: ~(a <= b), (), SUM)),
    ("Minimum", lowest, torch.minimum, Named("@1 < @2", lambda a, b: ~(a >= b), (), SUM)),
):
    elementwise(
        f"{node}Backward0",
        equation=extremum(X, OTHER),
        # The share of the gradient that a candidate gets: 1 if it wins, one half at a tie, 0 if it loses.
        derivative={
            "self": cases(1, wins(X, OTHER), cases(HALF, X.equals(OTHER))),
            "other": cases(1, wins(OTHER, X), cases(HALF, X.equals(OTHER))),
        },
        samples=partial(_ties, function),
        topic="arithmetic",
        source=f"derivatives.yaml: {node.lower()}",
        kink=Kink(meeting("other"), "at a tie PyTorch gives each operand one half of the gradient"),
    )

for node, latex, function, first in (
    ("Fmax", r"\max(@1, @2)", torch.fmax, Named(r"@1 \ge @2", lambda a, b: (a >= b) | b.isnan(), (), SUM, "@1 < @2")),
    ("Fmin", r"\min(@1, @2)", torch.fmin, Named(r"@1 \le @2", lambda a, b: (a <= b) | b.isnan(), (), SUM, "@1 > @2")),
):
    elementwise(
        f"{node}Backward0",
        equation=Named(latex, function)(X, OTHER),
        derivative={"self": cases(1, first(X, OTHER)), "other": cases(0, first(X, OTHER), 1)},
        samples=partial(_ties, function, (1, math.nan, 2), (1, 3, math.nan), "tie and NaN"),
        topic="arithmetic",
        source=f"derivatives.yaml: {node.lower()}",
        kink=Kink(meeting("other"), "at a tie PyTorch gives the whole gradient to the first operand"),
        remark="NaN counts as missing.",
    )

MIN, MAX = argument("min"), argument("max")
WITHIN = Named(r"@1 \le @2 \le @3", lambda low, z, high: (z >= low) & (z <= high), (), SUM)
BELOW_BOTH = Named("@1 < @2 < @3", lambda z, low, high: (z < low) & (low < high), (), SUM)
ABOVE = Named(r"@1 > @2 \text{ or } @2 < @3", lambda z, high, low: (z > high) | (high < low), (), SUM)


def _by_bounds(both: Any, low: Any, high: Any) -> Expression:
    """One of three formulas: with both bounds, the lower one alone, the upper one alone."""
    return choice(
        lambda op: high if op.arguments.get("min") is None else low if op.arguments.get("max") is None else both
    )


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
        "self": _by_bounds(cases(1, WITHIN(MIN, X, MAX)), cases(1, X >= MIN), cases(1, X <= MAX)),
        "min": _by_bounds(_may_cross(cases(1, BELOW_BOTH(X, MIN, MAX)), cases(1, X < MIN)), cases(1, X < MIN), 0),
        "max": _by_bounds(_may_cross(cases(1, ABOVE(X, MAX, MIN)), cases(1, X > MAX)), 0, cases(1, X > MAX)),
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
    ],
    source="derivatives.yaml: clamp, clamp.Tensor, clamp_min, clamp_max",
    kink=Kink(_at_a_bound, "at a bound PyTorch lets the gradient pass to the clamped tensor, and gives the bound 0"),
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
