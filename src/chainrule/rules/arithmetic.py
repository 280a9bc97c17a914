"""Rules of operations that act element by element: arithmetic, powers, choices between values, and copies.

At a point without a derivative PyTorch takes one value all the same; each such rule names it in its `kink`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from chainrule.rules import Kink, Sample, elementwise, number, reduce_to_shape, sample

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


def scaled(name: str, latex: str) -> Callable[[Any], str]:
    """A template times the scalar argument `name`, which is left away where it is 1."""

    def template(op: Any) -> str:
        scale = op.arguments.get(name, 1)
        if scale == 1:
            return latex
        sign, rest = ("-", latex[1:]) if latex.startswith("-") else ("", latex)
        return sign + (number(scale) if rest == "1" else rf"{number(scale)} \, {rest}")

    return template


def plus(left: str, sign: str, name: str, right: str) -> Callable[[Any], str]:
    """`$out = left + name * right`, with a scalar of 1 left away."""
    return lambda op: f"$out = {left} {sign} {scaled(name, right)(op)}"


def scale_of(op: Any, name: str = "alpha") -> Any:
    """A scalar argument that some overloads lack: 1 there."""
    return op.arguments.get(name, 1)


def tensor_like(value: Any, like: Tensor) -> Tensor:
    """An operand that may have been passed as a Python number, as a tensor."""
    return value if isinstance(value, Tensor) else torch.tensor(value, dtype=like.dtype, device=like.device)


def zero(op: Any) -> int:
    """The derivative of what does not change with its argument."""
    return 0


def one(op: Any) -> int:
    """The derivative of what passes its argument on."""
    return 1


add = elementwise(
    "AddBackward0",
    equation=plus("$self", "+", "alpha", "$other"),
    derivative={"self": ("1", one), "other": (scaled("alpha", "1"), scale_of)},
    samples=lambda: [*binary(torch.add), sample(torch.add, x(), 2.5), sample(torch.add, x(), x(1), alpha=3)],
    source="derivatives.yaml: add.Tensor",
)

sub = elementwise(
    "SubBackward0",
    equation=plus("$self", "-", "alpha", "$other"),
    derivative={"self": ("1", one), "other": (scaled("alpha", "-1"), lambda op: -scale_of(op))},
    samples=lambda: [*binary(torch.sub), sample(torch.sub, x(), 2.5), sample(torch.sub, x(), x(1), alpha=3)],
    source="derivatives.yaml: sub.Tensor",
)

rsub = elementwise(
    "RsubBackward0",
    equation=plus("$other", "-", "alpha", "$self"),
    derivative={"self": (scaled("alpha", "-1"), lambda op: -scale_of(op)), "other": ("1", one)},
    samples=lambda: [*binary(torch.rsub), sample(torch.rsub, x(), 1), sample(torch.rsub, x(), x(1), alpha=3)],
    source="derivatives.yaml: rsub.Tensor",
)

mul = elementwise(
    "MulBackward0",
    equation=lambda op: r"$out = $self \odot $other" if isinstance(op.other, Tensor) else r"$out = $other \, $self",
    derivative={"self": ("$other", lambda op: op.other), "other": ("$self", lambda op: op.self)},
    samples=lambda: [
        *binary(torch.mul),
        sample(torch.mul, x(), 3.0, note="number"),
        sample(torch.mul, x(1 + 2j, -1j), x(2, 3), note="complex times real"),
    ],
    source="derivatives.yaml: mul.Tensor",
)


def divisor(op: Any) -> Any:
    """The divisor in the quotient's precision: 1 divided by whole numbers would be float32."""
    return op.other.to(op.out.dtype) if isinstance(op.other, Tensor) else op.other


div = elementwise(
    "DivBackward0",
    name="div",
    equation=r"$out = \frac{$self}{$other}",
    derivative={
        "self": (r"\frac{1}{$other}", lambda op: 1 / divisor(op)),
        "other": (r"-\frac{$self}{\left($other\right)^{2}}", lambda op: -(op.self / op.other) / op.other),
    },
    samples=lambda: [
        *binary(torch.div),
        sample(torch.div, x(), 3.0, note="number"),
        sample(torch.div, x(1 + 2j, -1j), x(2, 3), note="complex by real"),
        sample(torch.div, x(), torch.tensor(3), note="whole number"),
    ],
    source="derivatives.yaml: div.Tensor",
    accepts=lambda op: op.arguments.get("rounding_mode") is None,
)

div_rounded = elementwise(
    "DivBackward0",
    name="div_rounded",
    equation=lambda op: rf"$out = \operatorname{{{op.rounding_mode}}}\left(\frac{{$self}}{{$other}}\right)",
    derivative={"self": ("0", zero), "other": ("0", zero)},
    samples=lambda: [
        *binary(torch.div, rounding_mode="floor"),
        *binary(torch.div, rounding_mode="trunc"),
        sample(torch.div, x(2, 4), 2, rounding_mode="floor", note="on a step"),
    ],
    source="derivatives.yaml: div.Tensor_mode",
    accepts=lambda op: op.arguments.get("rounding_mode") is not None,
    kink=Kink(
        quotient_steps(),
        "a rounded quotient jumps where it is whole; PyTorch takes 0 there too",
    ),
)

neg = elementwise(
    "NegBackward0",
    equation="$out = -$self",
    derivative={"self": ("-1", lambda op: -1)},
    samples=lambda: unary(torch.neg),
    source="derivatives.yaml: neg",
)


def _power_slope(op: Any) -> Tensor:
    base, exponent = tensor_like(op.self, op.out), tensor_like(op.exponent, op.out)
    return torch.where(exponent == 0, 0, exponent * base ** (exponent - 1))


def _exponent_slope(op: Any) -> Tensor:
    base, exponent = tensor_like(op.self, op.out), tensor_like(op.exponent, op.out)
    nothing = (base == 0) & (exponent.real >= 0)  # 0^p stays 0 while p > 0; log(0) would make this NaN
    return torch.where(nothing, 0, op.out * base.log())


def _power_local(op: Any) -> str:
    exponent = op.exponent
    if isinstance(exponent, Tensor):
        return r"$exponent \odot \left($self\right)^{$exponent - 1}"
    if exponent in (0, 1, 2):
        return ("0", "1", r"2 \, $self")[int(exponent)]
    return rf"{number(exponent)} \, \left($self\right)^{{{number(exponent - 1)}}}"


def _at_base_zero(op: Any, radius: float) -> Tensor:
    base, exponent = tensor_like(op.self, op.out), op.exponent
    polynomial = not isinstance(exponent, Tensor | complex) and exponent >= 0 and float(exponent).is_integer()
    return near(base, *(() if polynomial else (0.0,)), radius=radius)


power = elementwise(
    "PowBackward0",
    name="pow",
    equation=r"$out = \left($self\right)^{$exponent}",
    derivative={
        "self": (_power_local, _power_slope),
        "exponent": (r"$out \odot \ln $self", _exponent_slope),
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
    equation=r"$out = \frac{1}{$self}",
    derivative={"self": (r"-\left($out\right)^{2}", lambda op: -op.out * op.out)},
    samples=lambda: unary(torch.reciprocal),
    source="derivatives.yaml: reciprocal; (1/x)' = -1/x^2",
)

addcmul = elementwise(
    "AddcmulBackward0",
    equation=plus("$self", "+", "value", r"$tensor1 \odot $tensor2"),
    derivative={
        "self": ("1", one),
        "tensor1": (scaled("value", "$tensor2"), lambda op: op.value * op.tensor2),
        "tensor2": (scaled("value", "$tensor1"), lambda op: op.value * op.tensor1),
    },
    samples=lambda: [
        sample(torch.addcmul, x(1, 2, shape=(2, 1)), x(3, -1, 4), x(0.5, shape=()), value=2.5, note="broadcast"),
        sample(torch.addcmul, x(), x(), x(), note="one shape"),
        sample(torch.addcmul, x(1), x(shape=(0,)), x(2), note="empty"),
    ],
    source="derivatives.yaml: addcmul",
)

addcdiv = elementwise(
    "AddcdivBackward0",
    equation=plus("$self", "+", "value", r"\frac{$tensor1}{$tensor2}"),
    derivative={
        "self": ("1", one),
        "tensor1": (scaled("value", r"\frac{1}{$tensor2}"), lambda op: op.value / op.tensor2),
        "tensor2": (
            scaled("value", r"-\frac{$tensor1}{\left($tensor2\right)^{2}}"),
            lambda op: -op.value * op.tensor1 / op.tensor2**2,
        ),
    },
    samples=lambda: [
        sample(torch.addcdiv, x(1, 2, shape=(2, 1)), x(3, -1, 4), x(0.5, shape=()), value=2.5, note="broadcast"),
        sample(torch.addcdiv, x(), x(), x(), note="one shape"),
        sample(torch.addcdiv, x(1), x(shape=(0,)), x(2), note="empty"),
    ],
    source="derivatives.yaml: addcdiv",
)

lerp = elementwise(
    "LerpBackward0",
    equation=r"$out = $self + $weight \left($end - $self\right)",
    derivative={
        "self": ("1 - $weight", lambda op: 1 - op.weight),
        "end": ("$weight", lambda op: op.weight),
        "weight": ("$end - $self", lambda op: op.end - op.self),
    },
    samples=lambda: [
        *binary(torch.lerp, weight=0.3),
        sample(torch.lerp, x(1, 2, shape=(2, 1)), x(3, -1, 4), x(0.25), note="weight as tensor"),
    ],
    source="derivatives.yaml: lerp.Scalar, lerp.Tensor",
)


def _winner(wins: str, loses: Function) -> tuple[str, Function]:
    """The share of the gradient that one of two candidates gets: 1 if it wins, one half at a tie, 0 if it loses."""
    latex = rf"\begin{{cases}} 1 & {wins} \\ \tfrac{{1}}{{2}} & $self = $other \\ 0 & \text{{otherwise}} \end{{cases}}"
    return latex, lambda op: torch.where(op.self == op.other, 0.5, torch.where(loses(op), 0.0, 1.0))


maximum = elementwise(
    "MaximumBackward0",
    equation=r"$out = \max\left($self, $other\right)",
    derivative={
        "self": _winner("$self > $other", lambda op: op.self < op.other),
        "other": _winner("$other > $self", lambda op: op.self > op.other),
    },
    samples=lambda: [*binary(torch.maximum), sample(torch.maximum, x(1, 2), x(1, 3), note="tie")],
    source="derivatives.yaml: maximum",
    kink=Kink(meeting("other"), "at a tie PyTorch gives each operand one half of the gradient"),
)

minimum = elementwise(
    "MinimumBackward0",
    equation=r"$out = \min\left($self, $other\right)",
    derivative={
        "self": _winner("$self < $other", lambda op: op.self > op.other),
        "other": _winner("$other < $self", lambda op: op.self < op.other),
    },
    samples=lambda: [*binary(torch.minimum), sample(torch.minimum, x(1, 2), x(1, 3), note="tie")],
    source="derivatives.yaml: minimum",
    kink=Kink(meeting("other"), "at a tie PyTorch gives each operand one half of the gradient"),
)


def either(condition: str, first: str = "1", otherwise: str = "0") -> str:
    """The template of a derivative with two cases."""
    return rf"\begin{{cases}} {first} & {condition} \\ {otherwise} & \text{{otherwise}} \end{{cases}}"


def _fmax_takes_self(op: Any) -> Any:
    return (op.self >= op.other) | op.other.isnan()


def _fmin_takes_self(op: Any) -> Any:
    return (op.self <= op.other) | op.other.isnan()


fmax = elementwise(
    "FmaxBackward0",
    equation=r"$out = \max\left($self, $other\right) \text{ (NaN counts as missing)}",
    derivative={
        "self": (either(r"$self \ge $other"), _fmax_takes_self),
        "other": (either("$other > $self"), lambda op: ~_fmax_takes_self(op)),
    },
    samples=lambda: [
        *binary(torch.fmax),
        sample(torch.fmax, x(1, math.nan, 2), x(1, 3, math.nan), note="tie and NaN"),
    ],
    source="derivatives.yaml: fmax",
    kink=Kink(meeting("other"), "at a tie PyTorch gives the whole gradient to the first operand"),
)

fmin = elementwise(
    "FminBackward0",
    equation=r"$out = \min\left($self, $other\right) \text{ (NaN counts as missing)}",
    derivative={
        "self": (either(r"$self \le $other"), _fmin_takes_self),
        "other": (either("$other < $self"), lambda op: ~_fmin_takes_self(op)),
    },
    samples=lambda: [
        *binary(torch.fmin),
        sample(torch.fmin, x(1, math.nan, 2), x(1, 3, math.nan), note="tie and NaN"),
    ],
    source="derivatives.yaml: fmin",
    kink=Kink(meeting("other"), "at a tie PyTorch gives the whole gradient to the first operand"),
)


def _bound(op: Any, name: str) -> Any:
    return op.arguments.get(name)


def _clamp_equation(op: Any) -> str:
    inner = "$self" if _bound(op, "min") is None else r"\max\left($self, $min\right)"
    return f"$out = {inner}" if _bound(op, "max") is None else rf"$out = \min\left({inner}, $max\right)"


def _clamp_local(op: Any) -> str:
    lower = "" if _bound(op, "min") is None else r"$min \le "
    upper = "" if _bound(op, "max") is None else r" \le $max"
    return either(f"{lower}$self{upper}")


def _passes(op: Any) -> Tensor:
    within = torch.ones_like(op.out, dtype=torch.bool)
    if (low := _bound(op, "min")) is not None:
        within = within & (op.self >= low)
    if (high := _bound(op, "max")) is not None:
        within = within & (op.self <= high)
    return within


def _lower_bound_holds(op: Any) -> Tensor:
    high = _bound(op, "max")
    below: Tensor = op.self < op.min
    return below if high is None else below & (op.min < high)


def _upper_bound_holds(op: Any) -> Tensor:
    low = _bound(op, "min")
    above: Tensor = op.self > op.max
    return above if low is None else above | (op.max < low)


def _at_a_bound(op: Any, radius: float) -> Tensor:
    bounds = [bound for bound in (_bound(op, "min"), _bound(op, "max")) if bound is not None]
    marks = torch.zeros_like(op.out, dtype=torch.bool)
    for bound in bounds:
        marks = marks | ((op.self - bound).abs() <= radius)
    return in_shape_of(op.self, marks)


clamp = elementwise(
    "ClampBackward0",
    "ClampMinBackward0",
    "ClampMaxBackward0",
    equation=_clamp_equation,
    derivative={
        "self": (_clamp_local, _passes),
        "min": (either("$self < $min"), _lower_bound_holds),
        "max": (either("$self > $max"), _upper_bound_holds),
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

where = elementwise(
    "WhereBackward0",
    equation=r"$out = \begin{cases} $self & \text{where } $condition \\ $other & \text{otherwise} \end{cases}",
    derivative={
        "self": (either("$condition"), lambda op: op.condition),
        "other": (either(r"\lnot $condition"), lambda op: ~op.condition),
    },
    samples=lambda: [
        sample(torch.where, torch.tensor([True, False, True]), x(1, 2, shape=(2, 1)), x(4), note="broadcast"),
        sample(torch.where, torch.tensor([[True], [False]]), x(1, 2), x(3, shape=()), note="condition broadcast"),
        sample(torch.where, torch.tensor([True, False]), x(1, 2), 0.0, note="number"),
        sample(torch.where, torch.ones(0, dtype=torch.bool), x(1), x(shape=(0,)), note="empty"),
    ],
    source="derivatives.yaml: where",
    constants={"condition": "not differentiable"},
)

masked_fill = elementwise(
    "MaskedFillBackward0",
    equation=r"$out = \begin{cases} $value & \text{where } $mask \\ $self & \text{otherwise} \end{cases}",
    derivative={
        "self": (either(r"\lnot $mask"), lambda op: ~op.mask),
        "value": (either("$mask"), lambda op: op.mask),
    },
    samples=lambda: [
        sample(torch.masked_fill, x(1, 2, 3), torch.tensor([True, False, True]), -math.inf, note="number"),
        sample(torch.masked_fill, x(1, 2), torch.tensor([[True], [False]]), x(5, shape=()), note="tensor, broadcast"),
        sample(torch.masked_fill, x(shape=(0,)), torch.ones(0, dtype=torch.bool), 1.0, note="empty"),
    ],
    source="derivatives.yaml: masked_fill.Scalar, masked_fill.Tensor",
    constants={"mask": "not differentiable"},
)

clone = elementwise(
    "CloneBackward0",
    equation="$out = $self",
    derivative={"self": ("1", one)},
    samples=lambda: unary(torch.clone),
    source="derivatives.yaml: clone",
)

to_copy = elementwise(
    "ToCopyBackward0",
    equation=r"$out = $self \text{ (in another number type or on another device)}",
    derivative={"self": ("1", one)},
    samples=lambda: [
        *unary(torch.Tensor.to, dtype=torch.float32),
        sample(torch.Tensor.to, x(1, 2), torch.complex128, note="real to complex"),
    ],
    source="derivatives.yaml: _to_copy",
)

copy = elementwise(
    "CopyBackwards",
    name="copy_",
    equation="$out = $src",
    derivative={"self": ("0", zero), "src": ("1", one)},
    samples=lambda: [
        sample(lambda target, source: target.clone().copy_(source), x(1, 2, 3), x(4), note="broadcast"),
        sample(lambda source: torch.zeros(2).copy_(source), x(4, 5), note="into a constant"),
        sample(lambda source: torch.zeros(0).copy_(source), x(shape=(0,)), note="empty"),
    ],
    source="derivatives.yaml: copy (what was there before is gone, so its derivative is 0)",
)

fill = elementwise(
    "FillBackward0",
    equation="$out = $value",
    derivative={"self": ("0", zero), "value": ("1", one)},
    samples=lambda: [
        sample(torch.fill, x(1, 2, 3), x(4, shape=()), note="tensor"),
        sample(torch.fill, x(1, 2, 3), 4.0, note="number"),
        sample(torch.fill, x(shape=(0,)), x(4, shape=()), note="empty"),
    ],
    source="derivatives.yaml: fill.Scalar, fill.Tensor",
)

zeroed = elementwise(
    "ZeroBackward0",
    equation="$out = 0",
    derivative={"self": ("0", zero)},
    samples=lambda: [sample(lambda value: value.clone().zero_(), x(1, 2)), *unary(torch.ops.aten.zero)],
    source="derivatives.yaml: zero",
)
