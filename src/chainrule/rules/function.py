"""Rules of elementary functions of one number, and of some of two: exponentials, logarithms, trigonometry, rounding.

Where the derivative can be told by the output (e^x, tanh, sqrt), it is: that is what PyTorch keeps, and what is taught.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from chainrule.rules import Kink, Rule, Sample, Wrt, elementwise, rule, sample
from chainrule.rules.arithmetic import (
    Function,
    at,
    binary,
    either,
    in_shape_of,
    near_whole,
    one,
    quotient_steps,
    unary,
    x,
    zero,
)


def function(
    node: str,
    f: Function,
    equation: str,
    local: str,
    slope: Function,
    *,
    points: tuple[float, ...] = (-1.5, -0.2, 0.3, 2.0),
    more_samples: Iterable[Sample] = (),
    kink: Kink | None = None,
    source: str = "",
    topic: str = "function",
) -> Rule:
    """Register y = f(x) of one operand, tried at `points`: `equation` is f(x) alone, `local` and `slope` are f'(x)."""
    extra = tuple(more_samples)
    return elementwise(
        node,
        name=f.__name__,
        equation=f"$out = {equation}",
        derivative={"self": (local, slope)},
        samples=lambda: [*unary(f, *points), *extra],
        source=f"derivatives.yaml: {f.__name__}" + (f"; {source}" if source else ""),
        kink=kink,
        topic=topic,
    )


POSITIVE = (0.3, 1.0, 2.5, 7.0)
INSIDE_ONE = (-0.9, -0.2, 0.3, 0.8)

# Exponentials, logarithms and roots

exp = function("ExpBackward0", torch.exp, "e^{$self}", "$out", lambda op: op.out)
exp2 = function("Exp2Backward0", torch.exp2, "2^{$self}", r"$out \ln 2", lambda op: op.out * math.log(2))
expm1 = function("Expm1Backward0", torch.expm1, "e^{$self} - 1", "$out + 1", lambda op: op.out + 1)
log = function("LogBackward0", torch.log, r"\ln $self", r"\frac{1}{$self}", lambda op: 1 / op.self, points=POSITIVE)
log1p = function(
    "Log1PBackward0",
    torch.log1p,
    r"\ln\left(1 + $self\right)",
    r"\frac{1}{1 + $self}",
    lambda op: 1 / (1 + op.self),
    points=POSITIVE,
)
log2 = function(
    "Log2Backward0",
    torch.log2,
    r"\log_2 $self",
    r"\frac{1}{$self \ln 2}",
    lambda op: 1 / (op.self * math.log(2)),
    points=POSITIVE,
)
log10 = function(
    "Log10Backward0",
    torch.log10,
    r"\log_{10} $self",
    r"\frac{1}{$self \ln 10}",
    lambda op: 1 / (op.self * math.log(10)),
    points=POSITIVE,
)
sqrt = function(
    "SqrtBackward0",
    torch.sqrt,
    r"\sqrt{$self}",
    r"\frac{1}{2 \, $out}",
    lambda op: 1 / (2 * op.out),
    points=(*POSITIVE, 0),
    kink=Kink(at(0), "the slope of the square root grows without bound at 0; PyTorch takes infinity"),
)
rsqrt = function(
    "RsqrtBackward0",
    torch.rsqrt,
    r"\frac{1}{\sqrt{$self}}",
    r"-\tfrac{1}{2} \left($out\right)^{3}",
    lambda op: -0.5 * op.out**3,
    points=POSITIVE,
)

# Trigonometric and hyperbolic functions

sin = function("SinBackward0", torch.sin, r"\sin $self", r"\cos $self", lambda op: op.self.cos())
cos = function("CosBackward0", torch.cos, r"\cos $self", r"-\sin $self", lambda op: -op.self.sin())
tan = function("TanBackward0", torch.tan, r"\tan $self", r"1 + \left($out\right)^{2}", lambda op: 1 + op.out**2)
sinh = function("SinhBackward0", torch.sinh, r"\sinh $self", r"\cosh $self", lambda op: op.self.cosh())
cosh = function("CoshBackward0", torch.cosh, r"\cosh $self", r"\sinh $self", lambda op: op.self.sinh())
tanh = function("TanhBackward0", torch.tanh, r"\tanh $self", r"1 - \left($out\right)^{2}", lambda op: 1 - op.out**2)
asin = function(
    "AsinBackward0",
    torch.asin,
    r"\arcsin $self",
    r"\frac{1}{\sqrt{1 - \left($self\right)^{2}}}",
    lambda op: (1 - op.self**2).rsqrt(),
    points=INSIDE_ONE,
)
acos = function(
    "AcosBackward0",
    torch.acos,
    r"\arccos $self",
    r"-\frac{1}{\sqrt{1 - \left($self\right)^{2}}}",
    lambda op: -(1 - op.self**2).rsqrt(),
    points=INSIDE_ONE,
)
atan = function(
    "AtanBackward0",
    torch.atan,
    r"\arctan $self",
    r"\frac{1}{1 + \left($self\right)^{2}}",
    lambda op: 1 / (1 + op.self**2),
)
asinh = function(
    "AsinhBackward0",
    torch.asinh,
    r"\operatorname{arsinh}($self)",
    r"\frac{1}{\sqrt{1 + \left($self\right)^{2}}}",
    lambda op: (1 + op.self**2).rsqrt(),
)
acosh = function(
    "AcoshBackward0",
    torch.acosh,
    r"\operatorname{arcosh}($self)",
    r"\frac{1}{\sqrt{\left($self\right)^{2} - 1}}",
    lambda op: (op.self - 1).rsqrt() * (op.self + 1).rsqrt(),  # in two factors for the right complex branch
    points=(1.2, 2.0, 5.5),
)
atanh = function(
    "AtanhBackward0",
    torch.atanh,
    r"\operatorname{artanh}($self)",
    r"\frac{1}{1 - \left($self\right)^{2}}",
    lambda op: 1 / (1 - op.self**2),
    points=INSIDE_ONE,
)


def _sinc_slope(op: Any) -> Tensor:
    angle = math.pi * op.self
    slope = (angle * angle.cos() - angle.sin()) / (angle * op.self)
    return torch.where(angle * op.self == 0, 0, slope)


sinc = function(
    "SincBackward0",
    torch.sinc,
    r"\frac{\sin(\pi \, $self)}{\pi \, $self}",
    r"\frac{\cos(\pi \, $self) - $out}{$self}",
    _sinc_slope,
    points=(-1.5, 0, 0.3, 2.0),
    source="at 0 the value is 1 and the slope 0, the limits of both",
)
deg2rad = function(
    "Deg2RadBackward0",
    torch.deg2rad,
    r"\frac{\pi}{180} \, $self",
    r"\frac{\pi}{180}",
    lambda op: math.pi / 180,
)
rad2deg = function(
    "Rad2DegBackward0",
    torch.rad2deg,
    r"\frac{180}{\pi} \, $self",
    r"\frac{180}{\pi}",
    lambda op: 180 / math.pi,
)
sigmoid = function(
    "SigmoidBackward0",
    torch.sigmoid,
    r"\sigma\left($self\right)",
    r"$out \odot \left(1 - $out\right)",
    lambda op: op.out * (1 - op.out),
    source="s = 1/(1 + e^-x), s' = e^-x/(1 + e^-x)^2 = s(1 - s)",
)

# Absolute value, signs and rounding

absolute = function(
    "AbsBackward0",
    torch.abs,
    r"\left|$self\right|",
    r"\operatorname{sign}($self)",
    lambda op: op.self.sgn().conj(),  # of a complex z the gradient is z/|z|, so the conjugate is taken back here
    points=(-1.5, 0, 0.3, 2.0),
    more_samples=[sample(torch.abs, x(3 + 4j, -1j, 0j), note="complex")],
    kink=Kink(at(0), "|x| has a corner at 0; PyTorch takes 0"),
)


def _rounding(node: str, f: Function, equation: str, steps: Function, choice: str) -> Rule:
    decimals = [sample(f, x(0.123, -1.5), decimals=1)] if f is torch.round else []
    kink = Kink(steps, f"{choice}; PyTorch takes 0 there too")
    points = (-1.5, -1, 0, 0.5, 2.2)
    return function(node, f, equation, "0", zero, points=points, more_samples=decimals, kink=kink)


def _whole(op: Any, radius: float) -> Tensor:
    return near_whole(op.self, radius)


def _whole_but_zero(op: Any, radius: float) -> Tensor:
    return near_whole(op.self, radius, "trunc")


def _half(op: Any, radius: float) -> Tensor:
    unit = 10.0 ** op.arguments.get("decimals", 0)
    return near_whole(op.self * unit + 0.5, radius * unit)


floor = _rounding("FloorBackward0", torch.floor, r"\lfloor $self \rfloor", _whole, "floor jumps at whole numbers")
ceil = _rounding("CeilBackward0", torch.ceil, r"\lceil $self \rceil", _whole, "ceil jumps at whole numbers")
trunc = _rounding(
    "TruncBackward0", torch.trunc, r"\operatorname{trunc}($self)", _whole_but_zero, "trunc jumps at whole numbers but 0"
)
rounding = _rounding(
    "RoundBackward0", torch.round, r"\operatorname{round}($self)", _half, "round jumps between numbers"
)
sign = _rounding("SignBackward0", torch.sign, r"\operatorname{sign}($self)", at(0), "the sign jumps at 0")
frac = function(
    "FracBackward0",
    torch.frac,
    r"$self - \operatorname{trunc}($self)",
    "1",
    one,
    points=(-1.5, -1, 0, 0.5, 2.2),
    kink=Kink(_whole_but_zero, "frac jumps at whole numbers but 0; PyTorch takes 1 there too"),
)


def _sgn_vjp(op: Any, g: Tensor) -> Tensor:
    if not op.self.is_complex():
        return torch.zeros_like(g)
    across = 1j * op.out * (op.out.conj() * g).imag  # only turning z moves z/|z|; growing it does not
    return torch.where(op.self == 0, 0, across / op.self.abs())


sgn = rule(
    "SgnBackward0",
    equation=r"$out = \operatorname{sgn}($self)",
    wrt={
        "self": Wrt(
            _sgn_vjp,
            lambda op: (
                r"\frac{i \, $out}{\left|$self\right|} \operatorname{Im}\left(\overline{$out} \, \cdot\right)"
                if op.self.is_complex()
                else "0"
            ),
            lambda op: (
                r"\frac{i \, $out}{\left|$self\right|} \odot \operatorname{Im}\left(\overline{$out} \odot $g\right)"
                if op.self.is_complex()
                else "0"
            ),
            "each output element depends on its own input element alone",
        )
    },
    samples=lambda: [*unary(torch.sgn, -1.5, 0, 2), sample(torch.sgn, x(3 + 4j, -2j, 0j), note="complex")],
    source="derivatives.yaml: sgn; sgn z = z/|z|",
    structure="elementwise",
    kink=Kink(at(0), "the sign jumps at 0; PyTorch takes 0 there too"),
)


def _angle_slope(op: Any) -> Any:
    if not op.self.is_complex():
        return 0
    length = op.self.abs() ** 2
    return torch.where(length == 0, 0, 1j * op.self / length).conj()  # the gradient is i z/|z|^2 itself


angle = function(
    "AngleBackward0",
    torch.angle,
    r"\arg $self",
    r"\frac{i \, $self}{\left|$self\right|^{2}} \text{ (0 for real numbers)}",
    _angle_slope,
    more_samples=[sample(torch.angle, x(3 + 4j, -2j, 0j), note="complex")],
    kink=Kink(at(0), "the angle is not defined at 0; PyTorch takes 0"),
)
nan_to_num = function(
    "NanToNumBackward0",
    torch.nan_to_num,
    r"\begin{cases} $self & $self \text{ is finite} \\ \text{a chosen number} & \text{otherwise} \end{cases}",
    either(r"$self \text{ is finite}"),
    lambda op: op.self.isfinite(),
    points=(1, math.inf, -math.inf, math.nan, 0),
)

# Functions of two operands


def _both_zero(op: Any, radius: float) -> Tensor:
    return in_shape_of(op.self, (op.self.abs() <= radius) & (op.other.abs() <= radius))


hypot = elementwise(
    "HypotBackward0",
    equation=r"$out = \sqrt{\left($self\right)^{2} + \left($other\right)^{2}}",
    derivative={
        "self": (r"\frac{$self}{$out}", lambda op: op.self / op.out),
        "other": (r"\frac{$other}{$out}", lambda op: op.other / op.out),
    },
    samples=lambda: [*binary(torch.hypot), sample(torch.hypot, x(0, 3), x(0, 4), note="origin")],
    source="derivatives.yaml: hypot",
    kink=Kink(_both_zero, "a length has no derivative at the origin; PyTorch takes 0/0, not a number"),
)


def _by_square_length(op: Any, leg: Tensor) -> Tensor:
    square = op.self**2 + op.other**2
    return torch.where(square == 0, 0, leg / square)


atan2 = elementwise(
    "Atan2Backward0",
    equation=r"$out = \operatorname{atan2}\left($self, $other\right)",
    derivative={
        "self": (
            r"\frac{$other}{\left($self\right)^{2} + \left($other\right)^{2}}",
            lambda op: _by_square_length(op, op.other),
        ),
        "other": (
            r"-\frac{$self}{\left($self\right)^{2} + \left($other\right)^{2}}",
            lambda op: _by_square_length(op, -op.self),
        ),
    },
    samples=lambda: [*binary(torch.atan2), sample(torch.atan2, x(0, 3), x(0, 4), note="origin")],
    source="derivatives.yaml: atan2",
    kink=Kink(_both_zero, "an angle is not defined at the origin; PyTorch takes 0"),
)
logaddexp = elementwise(
    "LogaddexpBackward0",
    equation=r"$out = \ln\left(e^{$self} + e^{$other}\right)",
    derivative={
        "self": ("e^{$self - $out}", lambda op: 1 / (1 + (op.other - op.self).exp())),
        "other": ("e^{$other - $out}", lambda op: 1 / (1 + (op.self - op.other).exp())),
    },
    samples=lambda: binary(torch.logaddexp),
    source="derivatives.yaml: logaddexp",
)
logaddexp2 = elementwise(
    "Logaddexp2Backward0",
    equation=r"$out = \log_2\left(2^{$self} + 2^{$other}\right)",
    derivative={
        "self": ("2^{$self - $out}", lambda op: 1 / (1 + (op.other - op.self).exp2())),
        "other": ("2^{$other - $out}", lambda op: 1 / (1 + (op.self - op.other).exp2())),
    },
    samples=lambda: binary(torch.logaddexp2),
    source="derivatives.yaml: logaddexp2",
)


def _remainder(node: str, f: Function, rounding: str, symbol: str) -> Rule:
    quotient = symbol.format(r"\frac{$self}{$other}")
    return elementwise(
        node,
        name=f.__name__,
        equation=rf"$out = $self - $other \odot {quotient}",
        derivative={
            "self": ("1", one),
            "other": (f"-{quotient}", lambda op: -torch.div(op.self, op.other, rounding_mode=rounding)),
        },
        samples=lambda: [
            *binary(f, (-4.5, 2.2, 7.1), (1.3, -1.0, 2.0)),
            sample(f, x(-4.5, 2.2), 0.7, note="number"),
            sample(f, x(4, 6), x(2, 3), note="on a step"),
        ],
        source=f"derivatives.yaml: {f.__name__}.Tensor",
        kink=Kink(
            quotient_steps(rounding), "a remainder jumps where the quotient is whole; PyTorch takes the slope beside it"
        ),
    )


fmod = _remainder("FmodBackward0", torch.fmod, "trunc", r"\operatorname{{trunc}}\left({}\right)")
remainder = _remainder("RemainderBackward0", torch.remainder, "floor", r"\left\lfloor {} \right\rfloor")

copysign = elementwise(
    "CopysignBackward0",
    equation=r"$out = \left|$self\right| \odot \operatorname{sign}($other)",
    derivative={
        "self": (
            r"\frac{$out}{$self}",
            lambda op: torch.where(op.self == 0, 0, op.out / op.self),
        ),
        "other": ("0", zero),
    },
    samples=lambda: [*binary(torch.copysign), sample(torch.copysign, x(0, 2), -1.0, note="corner")],
    source="derivatives.yaml: copysign.Tensor",
    kink=Kink(at(0), "|x| has a corner at 0; PyTorch takes 0"),
)
ldexp = elementwise(
    "LdexpBackward0",
    equation=r"$out = $self \odot 2^{$other}",
    derivative={
        "self": ("2^{$other}", lambda op: torch.exp2(op.other)),
        "other": (r"$out \ln 2", lambda op: op.out * math.log(2)),
    },
    samples=lambda: [*binary(torch.ldexp), sample(torch.ldexp, x(1, 2), torch.tensor([1, 3]), note="whole powers")],
    source="derivatives.yaml: ldexp",
)

nextafter = elementwise(
    "NextafterBackward0",
    equation=r"$out = \text{the number next to } $self \text{ on the way to } $other",
    derivative={
        "self": (either("$self \\neq $other"), lambda op: op.self != op.other),
        "other": ("0", zero),
    },
    samples=lambda: [*binary(torch.nextafter), sample(torch.nextafter, x(1, 2), x(1, 3), note="equal")],
    source="derivatives.yaml: nextafter",
    kink=Kink(
        lambda op, radius: in_shape_of(op.self, (op.self - op.other).abs() <= radius),
        "there is no next number where both are equal; PyTorch takes 0 there",
    ),
    remark="One step between numbers away from the identity, and differentiated as if it were the identity.",
)


def _binade_edge(op: Any, radius: float) -> Tensor:
    """Where the exponent is about to change: near 0 and near powers of two."""
    size, scale = op.out.abs(), torch.exp2(op.outs[1])
    near_edge: Tensor = (torch.minimum(size - 0.5, 1 - size) * scale <= radius) | (op.self.abs() <= radius)
    return near_edge


frexp = elementwise(
    "FrexpBackward0",
    equation=r"$self = $out \cdot 2^{e}, \quad \frac{1}{2} \le |$out| < 1",
    derivative={"self": ("2^{-e}", lambda op: torch.exp2(-op.outs[1].to(op.out.dtype)))},
    samples=lambda: [*unary(torch.frexp), sample(torch.frexp, x(0, 4), note="on a step")],
    source="derivatives.yaml: frexp.Tensor",
    kink=Kink(_binade_edge, "the exponent steps at powers of two; PyTorch holds it constant"),
)

polar = rule(
    "PolarBackward0",
    equation=r"$out = $abs \odot e^{i \, $angle}",
    wrt={
        "abs": Wrt(
            lambda op, g: (g * torch.exp(-1j * op.angle)).real,
            r"e^{i \, $angle}",
            r"\operatorname{Re}\left($g \odot e^{-i \, $angle}\right)",
            "each element stands alone",
        ),
        "angle": Wrt(
            lambda op, g: (g * (1j * op.out).conj()).real,
            r"i \, $out",
            r"\operatorname{Re}\left($g \odot \overline{i \, $out}\right)",
            "each element stands alone",
        ),
    },
    samples=lambda: binary(torch.polar, (1.5, 0.2, 2.0), (0.7, -1.2, 3.1)),
    source="derivatives.yaml: polar",
    structure="elementwise",
)
