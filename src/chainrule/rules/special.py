"""Rules of special functions: error, gamma, Bessel and zeta functions, and logarithms that treat 0 as a limit."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.special as S

from chainrule.rules import Kink, Sample, sample
from chainrule.rules.arithmetic import WITHIN
from chainrule.rules.elementary import INSIDE_ONE, POSITIVE, named
from chainrule.rules.expression import OTHER, OUT, POWER, PRODUCT, Named, X, argument, cases, choice, fraction, total
from chainrule.rules.formula_functions import PI, Phi, exp, highest, ln, ln1p, lowest, sign, sqrt
from chainrule.rules.pointwise import at, binary, unary, x
from chainrule.rules.pointwise import function as register

function = partial(register, topic="special")

erf, erfc = named(r"\operatorname{erf}", torch.erf), named(r"\operatorname{erfc}", torch.erfc)
erfinv, probit = named(r"\operatorname{erf}^{-1}", torch.erfinv), named(r"\Phi^{-1}", S.ndtri)
loggamma, psi = named(r"\ln \Gamma", torch.lgamma), named(r"\psi", torch.digamma)
I0, I1, zeta = named("I_0", torch.i0), named("I_1", S.i1), Named(r"\zeta(@1, @2)", S.zeta)
# Each in one, because its factors would underflow and overflow.
I0E, I1E = (Named(rf"e^{{-\left|@\right|}} \odot I_{n}(@)", f, (), PRODUCT) for n, f in ((0, S.i0e), (1, S.i1e)))
HAZARD = Named(r"\frac{\varphi(@)}{\Phi(@)}", lambda z: math.sqrt(2 / math.pi) / S.erfcx(-z / math.sqrt(2)), (), POWER)
ROOT_PI = sqrt(PI)
SIGNED = (-1.5, 0, 2.0)
LIMIT = "; DLMF 10.29; the limit at 0 is 1/2"
KINK = Kink(at(0), "e^{-|x|} has a corner at 0; PyTorch takes 0")
AT_0, I1E_SLOPE = X.equals(0), I0E(X) - OUT * (sign(X) + 1 / X)


def polygamma_of(order: int) -> Named:
    r"""A derivative of \psi."""
    return named(rf"\psi^{{({order})}}", partial(torch.polygamma, order))


# f, its formula, f'(x), and the points that it is tried at
function(torch.erf, erf(X), 2 * exp(-(X**2)) / ROOT_PI)
function(torch.erfc, erfc(X), -2 * exp(-(X**2)) / ROOT_PI)
function(S.erfcx, exp(X**2) * erfc(X), 2 * X * OUT - 2 / ROOT_PI)
INVERSE = "; the inverse function: f' = 1/"
function(torch.erfinv, erfinv(X), ROOT_PI * exp(OUT**2) / 2, INSIDE_ONE, INVERSE + "erf'(out)")
function(S.ndtri, probit(X), sqrt(2 * PI) * exp(OUT**2 / 2), (0.1, 0.5, 0.9), INVERSE + "phi(out)")
function(S.log_ndtr, ln(Phi(X)), HAZARD(X), cites="; phi/Phi, computed by erfcx so that neither underflows")
function(S.entr, -X * ln(X), -ln(X) - 1, POSITIVE)
function(torch.lgamma, loggamma(X), psi(X), POSITIVE)
function(torch.digamma, psi(X), polygamma_of(1)(X), POSITIVE)
function(torch.i0, I0(X), I1(X))
function(S.i0e, I0E(X), I1E(X) - sign(X) * OUT, SIGNED, kink=KINK)
function(S.i1, I1(X), (I0(X) - OUT / X).but(0.5, AT_0), SIGNED, LIMIT)
function(S.i1e, I1E(X), I1E_SLOPE.but(0.5, AT_0), SIGNED, LIMIT)
function(
    torch.mvlgamma,
    choice(lambda op: named(rf"\ln \Gamma_{{{op.p}}}", partial(torch.mvlgamma, p=op.p))(X)),
    choice(lambda op: total(*(psi(X - fraction(j, 2)) for j in range(op.p)))),
    (1.7, 3, 5.5),
    "; DLMF 35.3",
    calls=[{"p": 3}],
)
function(
    torch.polygamma,
    choice(lambda op: polygamma_of(op.n)(X)),
    choice(lambda op: polygamma_of(op.n + 1)(X)),
    samples=lambda: [sample(torch.polygamma, 2, each.arguments[0]) for each in unary(torch.exp, *POSITIVE)],
)

EPS = argument("eps")
OUTSIDE = Named("", lambda z: ~((z >= 0) & (z <= 1)))
ODDS_SLOPE = 1 / (X * (1 - X))
HELD_SLOPE = cases(ODDS_SLOPE, WITHIN(EPS, X, 1 - EPS))
HELD = choice(lambda op: X if op.eps is None else lowest(highest(X, EPS), 1 - EPS))

function(
    torch.logit,
    ln(HELD / (1 - HELD)),
    choice(lambda op: ODDS_SLOPE.but(math.nan, OUTSIDE(X)) if op.eps is None else HELD_SLOPE),
    samples=lambda: [*unary(torch.logit, 0.1, 0.5, 0.8), *unary(torch.logit, 0.1, 0.2, 0.7, 0.8, 0.95, eps=0.2)],
    kink=Kink(
        lambda op, radius: at(*(() if op.eps is None else (op.eps, 1 - op.eps)))(op, radius),
        "with eps the operand is clamped to [eps, 1 - eps]; at these bounds PyTorch takes the slope inside",
    ),
)


def _two(f: Callable[..., Any]) -> list[Sample]:
    left, right = (-1.5, 0, 2.0), (0.5, 1.3, 4)
    return [
        *binary(f, left, right),
        sample(f, x(*left), 2.0, note="number second"),
        sample(f, 2.0, x(*right), note="number first"),
    ]


# x ln y is 0 where x is, and so is its slope where the logarithm is no number.
NO_NUMBER = Named("", lambda z, y: (z == 0) & (y <= 0))

function(
    torch.xlogy,
    (X * ln(OTHER)).but(0, AT_0),
    {"self": ln(OTHER).but(0, NO_NUMBER(X, OTHER)), "other": X / OTHER},
    samples=lambda: [*_two(torch.xlogy), sample(torch.xlogy, x(0, 1), x(0, 0), note="0 log 0")],
    source="derivatives.yaml: xlogy.Tensor, xlogy.Scalar_Self, xlogy.Scalar_Other",
)
function(
    S.xlog1py,
    (X * ln1p(OTHER)).but(0, AT_0),
    {"self": ln1p(OTHER).but(0, NO_NUMBER(X, 1 + OTHER)), "other": X / (1 + OTHER)},
    samples=lambda: [*_two(S.xlog1py), sample(S.xlog1py, x(0, 1), x(-1, -1), note="0 log 0")],
)


def _fixed_first(f: Callable[..., Any], left: tuple[float, ...] = (0.5, 1.5, 3.0)) -> list[Sample]:
    pairs = binary(f, left, (0.5, 1.3, 4))
    return [sample(f, each.arguments[0].detach(), each.arguments[1], note=each.note) for each in pairs]


GAMMA_SLOPE = Named(
    r"\frac{\left(@2\right)^{@1 - 1} e^{-@2}}{\Gamma(@1)}",
    lambda a, z: ((a - 1) * z.log() - z - a.lgamma()).exp(),  # by logarithms, because the factors overflow
    (),
    POWER,
)(X, OTHER)

FIXED = {"self": "no rule yet"}

function(
    S.zeta,
    zeta(X, OTHER),
    {"other": -X * zeta(X + 1, OTHER)},
    cites="; DLMF 25.11.17",
    samples=lambda: _fixed_first(S.zeta, (2.0, 3.5, 5.0)),
    constants=FIXED,
)
function(
    torch.igamma,
    Named("P(@1, @2)", torch.igamma)(X, OTHER),
    {"other": GAMMA_SLOPE},
    cites="; DLMF 8.8.13",
    samples=lambda: _fixed_first(torch.igamma),
    constants=FIXED,
    remark="P is the regularised lower incomplete gamma function.",
)
function(
    torch.igammac,
    Named("Q(@1, @2)", torch.igammac)(X, OTHER),
    {"other": -GAMMA_SLOPE},
    cites="; DLMF 8.8.14",
    samples=lambda: _fixed_first(torch.igammac),
    constants=FIXED,
    remark="Q is the regularised upper incomplete gamma function.",
)
