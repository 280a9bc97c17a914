"""Rules of special functions: error, gamma, Bessel and zeta functions, and logarithms that treat 0 as a limit."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.special as S

from chainrule.rules import Kink, Sample, elementwise, sample
from chainrule.rules.arithmetic import WITHIN, at, binary, unary, x
from chainrule.rules.elementary import PI, Phi, exp, highest, ln, ln1p, lowest, sign, sqrt
from chainrule.rules.expression import OTHER, OUT, POWER, PRODUCT, Named, X, argument, cases, choice, fraction, total
from chainrule.rules.function import ALL, INSIDE_ONE, POSITIVE, function, named

erf, erfc = named(r"\operatorname{erf}", torch.erf), named(r"\operatorname{erfc}", torch.erfc)
erfinv, probit = named(r"\operatorname{erf}^{-1}", torch.erfinv), named(r"\Phi^{-1}", S.ndtri)
loggamma, psi = named(r"\ln \Gamma", torch.lgamma), named(r"\psi", torch.digamma)
I0, I1, zeta = named("I_0", torch.i0), named("I_1", S.i1), Named(r"\zeta(@1, @2)", S.zeta)
# Each in one, because its factors would underflow and overflow.
I0E, I1E = (Named(rf"e^{{-\left|@\right|}} \odot I_{n}(@)", f, (), PRODUCT) for n, f in ((0, S.i0e), (1, S.i1e)))
HAZARD = Named(r"\frac{\varphi(@)}{\Phi(@)}", lambda z: math.sqrt(2 / math.pi) / S.erfcx(-z / math.sqrt(2)), (), POWER)
ROOT_PI = sqrt(PI)
SIGNED = (-1.5, 0, 2.0)
LIMIT = "DLMF 10.29; the limit at 0 is 1/2"
KINK = Kink(at(0), "e^{-|x|} has a corner at 0; PyTorch takes 0")
AT_0, I1E_SLOPE = X.equals(0), I0E(X) - OUT * (sign(X) + 1 / X)


def polygamma_of(order: int) -> Named:
    r"""A derivative of \psi."""
    return named(rf"\psi^{{({order})}}", partial(torch.polygamma, order))


# fmt: off
for row in (
    # node             function       f(x)                 f'(x)                             tried at, kink, source
    ("Erf",            torch.erf,     erf(X),              2 * exp(-X**2) / ROOT_PI),
    ("Erfc",           torch.erfc,    erfc(X),             -2 * exp(-X**2) / ROOT_PI),
    ("SpecialErfcx",   S.erfcx,       exp(X**2) * erfc(X), 2 * X * OUT - 2 / ROOT_PI),
    ("Erfinv",         torch.erfinv,  erfinv(X),           ROOT_PI * exp(OUT**2) / 2,        INSIDE_ONE, None,
     "the inverse function: f' = 1/erf'(out)"),
    ("SpecialNdtri",   S.ndtri,       probit(X),           sqrt(2 * PI) * exp(OUT**2 / 2),   (0.1, 0.5, 0.9), None,
     "the inverse function: f' = 1/phi(out)"),
    ("SpecialLogNdtr", S.log_ndtr,    ln(Phi(X)),          HAZARD(X),                        ALL, None,
     "phi/Phi, computed by erfcx so that neither underflows"),
    ("SpecialEntr",    S.entr,        -X * ln(X),          -ln(X) - 1,                       POSITIVE),
    ("Lgamma",         torch.lgamma,  loggamma(X),         psi(X),                           POSITIVE),
    ("Digamma",        torch.digamma, psi(X),              polygamma_of(1)(X),               POSITIVE),
    ("I0",             torch.i0,      I0(X),               I1(X)),
    ("SpecialI0E",     S.i0e,         I0E(X),              I1E(X) - sign(X) * OUT,           SIGNED, KINK),
    ("SpecialI1",      S.i1,          I1(X),               (I0(X) - OUT / X).but(0.5, AT_0), SIGNED, None, LIMIT),
    ("SpecialI1E",     S.i1e,         I1E(X),              I1E_SLOPE.but(0.5, AT_0),         SIGNED, None, LIMIT),
):
    function(*row, topic="special")  # type: ignore[misc]
# fmt: on

mvlgamma = elementwise(
    "MvlgammaBackward0",
    equation=choice(lambda op: named(rf"\ln \Gamma_{{{op.p}}}", partial(torch.mvlgamma, p=op.p))(X)),
    derivative={"self": choice(lambda op: total(*(psi(X - fraction(j, 2)) for j in range(op.p))))},
    samples=lambda: unary(torch.mvlgamma, 1.7, 3, 5.5, p=3),
    source="derivatives.yaml: mvlgamma; DLMF 35.3",
)
polygamma = elementwise(
    "PolygammaBackward0",
    equation=choice(lambda op: polygamma_of(op.n)(X)),
    derivative={"self": choice(lambda op: polygamma_of(op.n + 1)(X))},
    samples=lambda: [sample(torch.polygamma, 2, each.arguments[0]) for each in unary(torch.exp, *POSITIVE)],
    source="derivatives.yaml: polygamma",
)

EPS = argument("eps")
OUTSIDE = Named("", lambda z: ~((z >= 0) & (z <= 1)))
ODDS_SLOPE = 1 / (X * (1 - X))
HELD = choice(lambda op: X if op.eps is None else lowest(highest(X, EPS), 1 - EPS))

logit = elementwise(
    "LogitBackward0",
    equation=ln(HELD / (1 - HELD)),
    derivative={
        "self": choice(
            lambda op: (
                ODDS_SLOPE.but(math.nan, OUTSIDE(X)) if op.eps is None else cases(ODDS_SLOPE, WITHIN(EPS, X, 1 - EPS))
            )
        )
    },
    samples=lambda: [*unary(torch.logit, 0.1, 0.5, 0.8), *unary(torch.logit, 0.1, 0.2, 0.7, 0.8, 0.95, eps=0.2)],
    source="derivatives.yaml: logit",
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

xlogy = elementwise(
    "XlogyBackward0",
    equation=(X * ln(OTHER)).but(0, AT_0),
    derivative={"self": ln(OTHER).but(0, NO_NUMBER(X, OTHER)), "other": X / OTHER},
    samples=lambda: [*_two(torch.xlogy), sample(torch.xlogy, x(0, 1), x(0, 0), note="0 log 0")],
    source="derivatives.yaml: xlogy.Tensor, xlogy.Scalar_Self, xlogy.Scalar_Other",
)
xlog1py = elementwise(
    "SpecialXlog1PyBackward0",
    name="special_xlog1py",
    equation=(X * ln1p(OTHER)).but(0, AT_0),
    derivative={"self": ln1p(OTHER).but(0, NO_NUMBER(X, 1 + OTHER)), "other": X / (1 + OTHER)},
    samples=lambda: [*_two(S.xlog1py), sample(S.xlog1py, x(0, 1), x(-1, -1), note="0 log 0")],
    source="derivatives.yaml: special_xlog1py",
)


def _fixed_first(f: Callable[..., Any], left: tuple[float, ...] = (0.5, 1.5, 3.0)) -> list[Sample]:
    pairs = binary(f, left, (0.5, 1.3, 4))
    return [sample(f, each.arguments[0].detach(), each.arguments[1], note=each.note) for each in pairs]


special_zeta = elementwise(
    "SpecialZetaBackward0",
    equation=zeta(X, OTHER),
    derivative={"other": -X * zeta(X + 1, OTHER)},
    samples=lambda: _fixed_first(S.zeta, (2.0, 3.5, 5.0)),
    source="derivatives.yaml: special_zeta; DLMF 25.11.17",
    constants={"self": "no rule yet"},
)

GAMMA_SLOPE = Named(
    r"\frac{\left(@2\right)^{@1 - 1} e^{-@2}}{\Gamma(@1)}",
    lambda a, z: ((a - 1) * z.log() - z - a.lgamma()).exp(),  # by logarithms, because the factors overflow
    (),
    POWER,
)

igamma = elementwise(
    "IgammaBackward0",
    equation=Named("P(@1, @2)", torch.igamma)(X, OTHER),
    remark="P is the regularised lower incomplete gamma function.",
    derivative={"other": GAMMA_SLOPE(X, OTHER)},
    samples=lambda: _fixed_first(torch.igamma),
    source="derivatives.yaml: igamma; DLMF 8.8.13",
    constants={"self": "no rule yet"},
)
igammac = elementwise(
    "IgammacBackward0",
    equation=Named("Q(@1, @2)", torch.igammac)(X, OTHER),
    remark="Q is the regularised upper incomplete gamma function.",
    derivative={"other": -GAMMA_SLOPE(X, OTHER)},
    samples=lambda: _fixed_first(torch.igammac),
    source="derivatives.yaml: igammac; DLMF 8.8.14",
    constants={"self": "no rule yet"},
)
