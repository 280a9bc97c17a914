"""Rules of elementary functions of one number, and of some of two: exponentials, logarithms, trigonometry, rounding.

Where the derivative has a short form in the output (e^x, tanh, sqrt), it is given so: PyTorch keeps the output, and
textbooks teach that form.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from chainrule.rules import Kink, Sample, Wrt, rule, sample
from chainrule.rules import formula_functions as e
from chainrule.rules.arithmetic import QUOTIENT
from chainrule.rules.element import apply
from chainrule.rules.expression import (
    HALF,
    OTHER,
    OUT,
    SUM,
    Expression,
    Named,
    X,
    argument,
    cases,
    choice,
    let,
    of,
    symbol,
)
from chainrule.rules.pointwise import at, in_shape_of, meeting, near_whole, quotient_steps, unary, x
from chainrule.rules.pointwise import function as register

function = partial(register, topic="elementary")


def named(latex: str, f: Callable[..., Any]) -> Named:
    """A function without a slope of its own, such as `\\operatorname{erf}`."""
    return Named(f"{latex}(@)", f)


POSITIVE, INSIDE_ONE = (0.3, 1.0, 2.5, 7.0), (-0.9, -0.2, 0.3, 0.8)
STEPS = (-1.5, -1, 0, 0.5, 2.2)
arcsin, arccos, arctan = (Named(rf"\arc{name} @", getattr(torch, f"a{name}")) for name in ("sin", "cos", "tan"))
arsinh, arcosh, artanh = (named(rf"\operatorname{{ar{n}}}", getattr(torch, f"a{n}")) for n in ("sinh", "cosh", "tanh"))
trunc, rounded = named(r"\operatorname{trunc}", torch.trunc), named(r"\operatorname{round}", torch.round)
TENS = of(10) ** argument("decimals", 0)
floor, ceil = Named(r"\lfloor @ \rfloor", torch.floor), Named(r"\lceil @ \rceil", torch.ceil)
argument_of = Named(r"\arg @", torch.angle)
FINITE = Named(r"\left|@\right| < \infty", torch.isfinite, (), SUM)
UNEQUAL = Named(r"@1 \neq @2", operator.ne, (), SUM, "@1 = @2")
UP, DOWN = choice(lambda op: _put(op, "posinf", 1)), choice(lambda op: _put(op, "neginf", -1))
FILLED = cases(X, FINITE(X), cases(argument("nan", 0), UNEQUAL(X, X), cases(UP, X > 0, DOWN)))


def _put(op: Any, name: str, sign: int) -> float:
    """What an infinity is replaced by: the argument, or else the largest number of the type."""
    given: float | None = op.arguments.get(name)
    return sign * torch.finfo(op.self.dtype).max if given is None else given


def _whole(op: Any, radius: float) -> Tensor:
    return near_whole(op.self, radius)


def _but_0(op: Any, radius: float) -> Tensor:
    return near_whole(op.self, radius, "trunc")


def _half(op: Any, radius: float) -> Tensor:
    unit = 10.0 ** op.arguments.get("decimals", 0)
    return near_whole(op.self * unit + 0.5, radius * unit)


def _jump(where: Callable[..., Any], what: str, slope: int = 0) -> Kink:
    return Kink(where, f"{what}; PyTorch takes {slope} there too")


ZERO = X.equals(0)
TURN = choice(lambda op: (e.UNIT * X / e.size(X) ** 2).but(0, ZERO) if op.self.is_complex() else 0)
STEEP = Kink(at(0), "the slope of the square root grows without bound at 0; PyTorch takes infinity")
CORNER = Kink(at(0), "|x| has a corner at 0; PyTorch takes 0")
SINC, SINC_SLOPE = e.sin(e.PI * X) / (e.PI * X), (e.cos(e.PI * X) - OUT) / X

# f, its formula, f'(x) where it does not follow, and the points that it is tried at
function(torch.exp, e.exp(X), OUT)
function(torch.exp2, e.exp2(X), OUT * e.ln(2))
function(torch.expm1, e.exp(X) - 1, OUT + 1)
function(torch.log, e.ln(X), points=POSITIVE)
function(torch.log1p, e.ln1p(X), points=POSITIVE)
function(torch.log2, e.log2(X), points=POSITIVE)
function(torch.log10, e.log10(X), points=POSITIVE)
function(torch.sqrt, e.sqrt(X), 1 / (2 * OUT), (*POSITIVE, 0), kink=STEEP)
function(torch.rsqrt, 1 / e.sqrt(X), -HALF * OUT**3, POSITIVE)
function(torch.sin, e.sin(X))
function(torch.cos, e.cos(X))
function(torch.tan, e.tan(X), 1 + OUT**2)
function(torch.sinh, e.sinh(X))
function(torch.cosh, e.cosh(X))
function(torch.tanh, e.tanh(X), 1 - OUT**2)
function(torch.asin, arcsin(X), 1 / e.sqrt(1 - X**2), INSIDE_ONE)
function(torch.acos, arccos(X), -1 / e.sqrt(1 - X**2), INSIDE_ONE)
function(torch.atan, arctan(X), 1 / (1 + X**2))
function(torch.asinh, arsinh(X), 1 / e.sqrt(1 + X**2))
# In two factors for the right complex branch.
function(torch.acosh, arcosh(X), 1 / (e.sqrt(X - 1) * e.sqrt(X + 1)), (1.2, 2.0, 5.5))
function(torch.atanh, artanh(X), 1 / (1 - X**2), INSIDE_ONE)
LIMITS = "; at 0 the value is 1 and the slope 0, the limits of both"
function(torch.sinc, SINC.but(1, ZERO), SINC_SLOPE.but(0, ZERO), (-1.5, 0, 0.3, 2.0), LIMITS)
function(torch.deg2rad, e.PI / 180 * X)
function(torch.rad2deg, 180 / e.PI * X)
function(torch.sigmoid, e.sigma(X), OUT * (1 - OUT), cites="; s = 1/(1 + e^-x), s' = e^-x/(1 + e^-x)^2 = s(1 - s)")
function(
    torch.abs, e.size(X), e.sign(X), (-1.5, 0, 0.3, 2.0), kink=CORNER,
    more=lambda: [sample(torch.abs, x(3 + 4j, -1j, 0j), note="complex")],
)  # fmt: skip
function(torch.floor, floor(X), of(0), STEPS, kink=_jump(_whole, "floor jumps at whole numbers"))
function(torch.ceil, ceil(X), of(0), STEPS, kink=_jump(_whole, "ceil jumps at whole numbers"))
function(torch.trunc, trunc(X), of(0), STEPS, kink=_jump(_but_0, "trunc jumps at whole numbers but 0"))
function(
    torch.round, rounded(TENS * X) / TENS, of(0), STEPS, kink=_jump(_half, "round jumps between numbers"),
    more=lambda: [sample(torch.round, x(0.123, -1.5), decimals=1)],
)  # fmt: skip
function(torch.sign, e.sign(X), of(0), STEPS, kink=_jump(at(0), "the sign jumps at 0"))
function(torch.frac, X - trunc(X), of(1), STEPS, kink=_jump(_but_0, "frac jumps at whole numbers but 0", 1))
function(
    torch.angle, argument_of(X), TURN, cites="; of a complex z the gradient is i z/|z|^2",
    kink=Kink(at(0), "the angle is not defined at 0; PyTorch takes 0"),
    more=lambda: [sample(torch.angle, x(3 + 4j, -2j, 0j), note="complex")],
)  # fmt: skip
function(torch.nan_to_num, FILLED, cases(1, FINITE(X)), (1, math.inf, -math.inf, math.nan, 0))

TURNED = r"\frac{\mathrm{i} \, $out}{\left|$self\right|}"


def _sgn_vjp(op: Any, g: Tensor) -> Tensor:
    if not op.self.is_complex():
        return torch.zeros_like(g)
    across = 1j * op.out * (op.out.conj() * g).imag  # only turning z moves z/|z|; growing it does not
    return torch.where(op.self == 0, 0, across / op.self.abs())


sgn = rule(
    "SgnBackward0",
    element=lambda op, slot, index: apply(e.sign, op.self),
    equation=r"$out = \operatorname{sgn}($self)",
    wrt={
        "self": Wrt(
            _sgn_vjp,
            lambda op: (
                r"\dot{$out} = " + TURNED + r" \odot \operatorname{Im}\left(\overline{$out} \odot \dot{$self}\right)"
                if op.self.is_complex()
                else "0"
            ),
            lambda op: (
                TURNED + r" \odot \operatorname{Im}\left(\overline{$out} \odot $g\right)"
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


# Functions of two operands


def _both_zero(op: Any, radius: float) -> Tensor:
    return in_shape_of(op.self, (op.self.abs() <= radius) & (op.other.abs() <= radius))


def _beside_a_step(f: Callable[..., Any]) -> list[Sample]:
    return [sample(f, x(-4.5, 2.2), 0.7, note="number"), sample(f, x(4, 6), x(2, 3), note="on a step")]


SQUARES = X**2 + OTHER**2

function(
    torch.hypot,
    e.sqrt(SQUARES),
    {"self": X / OUT, "other": OTHER / OUT},
    more=lambda: [sample(torch.hypot, x(0, 3), x(0, 4), note="origin")],
    kink=Kink(_both_zero, "a length has no derivative at the origin; PyTorch takes 0/0, not a number"),
)
function(
    torch.atan2,
    Named(r"\operatorname{atan2}(@1, @2)", torch.atan2)(X, OTHER),
    {"self": (OTHER / SQUARES).but(0, SQUARES.equals(0)), "other": (-X / SQUARES).but(0, SQUARES.equals(0))},
    more=lambda: [sample(torch.atan2, x(0, 3), x(0, 4), note="origin")],
    kink=Kink(_both_zero, "an angle is not defined at the origin; PyTorch takes 0"),
)
for f, exp, ln in ((torch.logaddexp, e.exp, e.ln), (torch.logaddexp2, e.exp2, e.log2)):
    function(f, ln(exp(X) + exp(OTHER)), {"self": 1 / (1 + exp(OTHER - X)), "other": 1 / (1 + exp(X - OTHER))})

for f, rounding in ((torch.fmod, "trunc"), (torch.remainder, "floor")):
    quotient = QUOTIENT[rounding](X, OTHER)
    function(
        f,
        X - OTHER * quotient,
        {"self": 1, "other": -quotient},
        ((-4.5, 2.2, 7.1), (1.3, -1.0, 2.0)),
        ".Tensor",
        more=partial(_beside_a_step, f),
        kink=Kink(
            quotient_steps(rounding), "a remainder jumps where the quotient is whole; PyTorch takes the slope beside it"
        ),
    )

function(
    torch.copysign,
    e.size(X) * named(r"\operatorname{sign}", lambda z: torch.copysign(torch.ones_like(z), z))(OTHER),
    {"self": (OUT / X).but(0, X.equals(0)), "other": 0},
    cites=".Tensor",
    more=lambda: [sample(torch.copysign, x(0, 2), -1.0, note="corner")],
    kink=CORNER,
)
function(
    torch.ldexp,
    X * e.exp2(OTHER),
    {"self": e.exp2(OTHER), "other": OUT * e.ln(2)},
    more=lambda: [sample(torch.ldexp, x(1, 2), torch.tensor([1, 3]), note="whole powers")],
)
function(
    torch.nextafter,
    Named(r"\operatorname{nextafter}(@1, @2)", torch.nextafter)(X, OTHER),
    {"self": cases(1, UNEQUAL(X, OTHER)), "other": 0},
    more=lambda: [sample(torch.nextafter, x(1, 2), x(1, 3), note="equal")],
    kink=Kink(meeting("other"), "there is no next number where both are equal; PyTorch takes 0 there"),
    remark="The next number of the type on the way from x to the other: differentiated as if it were x itself.",
)


def _binade_edge(op: Any, radius: float) -> Tensor:
    """Where the exponent is about to change: near 0 and near powers of two."""
    size, scale = op.out.abs(), torch.exp2(op.outs[1])
    near_edge: Tensor = (torch.minimum(size - 0.5, 1 - size) * scale <= radius) | (op.self.abs() <= radius)
    return near_edge


ABS, ANGLE = argument("abs"), argument("angle")
EXPONENT: Expression = replace(
    let("n", floor(e.log2(e.size(X))) + 1),
    run=symbol("n", lambda op: op.outs[1].to(op.out.dtype)).run,
    put=lambda op: EXPONENT,
)

function(
    torch.frexp,
    X * e.exp2(-EXPONENT),
    e.exp2(-EXPONENT),
    cites=".Tensor",
    more=lambda: [sample(torch.frexp, x(0, 4), note="on a step")],
    kink=Kink(_binade_edge, "the exponent steps at powers of two; PyTorch holds it constant"),
)

function(
    torch.polar,
    ABS * e.exp(e.UNIT * ANGLE),
    {"abs": e.exp(e.UNIT * ANGLE), "angle": e.UNIT * OUT},
    ((1.5, 0.2, 2.0), (0.7, -1.2, 3.1)),
)
