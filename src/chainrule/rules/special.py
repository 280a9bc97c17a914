"""Rules of special functions: error, gamma, Bessel and zeta functions, and logarithms that treat 0 as a limit."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor

from chainrule.rules import Kink, Sample, elementwise, sample
from chainrule.rules.arithmetic import Function, at, binary, tensor_like, unary, x
from chainrule.rules.function import INSIDE_ONE, POSITIVE, function

special = partial(function, topic="special")
TWO_BY_ROOT_PI = 2 / math.sqrt(math.pi)

erf = special(
    "ErfBackward0",
    torch.erf,
    r"\operatorname{erf}($self)",
    r"\frac{2}{\sqrt{\pi}} \, e^{-\left($self\right)^{2}}",
    lambda op: TWO_BY_ROOT_PI * (-op.self * op.self).exp(),
)
erfc = special(
    "ErfcBackward0",
    torch.erfc,
    r"\operatorname{erfc}($self)",
    r"-\frac{2}{\sqrt{\pi}} \, e^{-\left($self\right)^{2}}",
    lambda op: -TWO_BY_ROOT_PI * (-op.self * op.self).exp(),
)
erfcx = special(
    "SpecialErfcxBackward0",
    torch.special.erfcx,
    r"e^{\left($self\right)^{2}} \operatorname{erfc}($self)",
    r"2 \, $self \odot $out - \frac{2}{\sqrt{\pi}}",
    lambda op: 2 * op.self * op.out - TWO_BY_ROOT_PI,
)
erfinv = special(
    "ErfinvBackward0",
    torch.erfinv,
    r"\operatorname{erf}^{-1}($self)",
    r"\frac{\sqrt{\pi}}{2} \, e^{\left($out\right)^{2}}",
    lambda op: (op.out * op.out).exp() / TWO_BY_ROOT_PI,
    points=INSIDE_ONE,
    source="the inverse function: f' = 1/erf'(out)",
)
ndtri = special(
    "SpecialNdtriBackward0",
    torch.special.ndtri,
    r"\Phi^{-1}($self)",
    r"\sqrt{2 \pi} \, e^{\left($out\right)^{2} / 2}",
    lambda op: math.sqrt(2 * math.pi) * (op.out * op.out / 2).exp(),
    points=(0.1, 0.5, 0.9),
    source="the inverse function: f' = 1/phi(out)",
)
log_ndtr = special(
    "SpecialLogNdtrBackward0",
    torch.special.log_ndtr,
    r"\ln \Phi($self)",
    r"\frac{e^{-\left($self\right)^{2} / 2}}{\sqrt{2 \pi} \, \Phi($self)}",
    lambda op: math.sqrt(2 / math.pi) / torch.special.erfcx(-op.self / math.sqrt(2)),
    source="phi/Phi, told by erfcx so that neither underflows",
)
entr = special(
    "SpecialEntrBackward0",
    torch.special.entr,
    r"-$self \odot \ln $self",
    r"-\ln $self - 1",
    lambda op: -op.self.log() - 1,
    points=POSITIVE,
)
lgamma = special(
    "LgammaBackward0", torch.lgamma, r"\ln \Gamma($self)", r"\psi($self)", lambda op: op.self.digamma(), points=POSITIVE
)
digamma = special(
    "DigammaBackward0",
    torch.digamma,
    r"\psi($self)",
    r"\psi^{(1)}($self)",
    lambda op: torch.polygamma(1, op.self),
    points=POSITIVE,
)


def _spaced_digamma(op: Any) -> Any:
    halves = torch.arange(op.p, dtype=op.self.dtype, device=op.self.device) / 2
    return (op.self.unsqueeze(-1) - halves).digamma().sum(-1)


mvlgamma = elementwise(
    "MvlgammaBackward0",
    equation=r"$out = \ln \Gamma_{$p}($self)",
    derivative={"self": (r"\sum_{j=0}^{$p - 1} \psi\left($self - \tfrac{j}{2}\right)", _spaced_digamma)},
    samples=lambda: unary(torch.mvlgamma, 1.7, 3, 5.5, p=3),
    source="derivatives.yaml: mvlgamma; DLMF 35.3",
)
polygamma = elementwise(
    "PolygammaBackward0",
    equation=r"$out = \psi^{($n)}($self)",
    derivative={"self": (lambda op: rf"\psi^{{({op.n + 1})}}($self)", lambda op: torch.polygamma(op.n + 1, op.self))},
    samples=lambda: [sample(torch.polygamma, 2, each.arguments[0]) for each in unary(torch.exp, *POSITIVE)],
    source="derivatives.yaml: polygamma",
)
i0 = special("I0Backward0", torch.i0, "I_0($self)", "I_1($self)", lambda op: torch.special.i1(op.self))
i0e = special(
    "SpecialI0EBackward0",
    torch.special.i0e,
    r"e^{-\left|$self\right|} \odot I_0($self)",
    r"e^{-\left|$self\right|} \odot I_1($self) - \operatorname{sign}($self) \odot $out",
    lambda op: torch.special.i1e(op.self) - op.self.sgn() * op.out,
    points=(-1.5, 0, 2.0),
    kink=Kink(at(0), "e^{-|x|} has a corner at 0; PyTorch takes 0"),
)
i1 = special(
    "SpecialI1Backward0",
    torch.special.i1,
    "I_1($self)",
    r"I_0($self) - \frac{$out}{$self}",
    lambda op: torch.where(op.self == 0, 0.5, torch.i0(op.self) - op.out / op.self),
    points=(-1.5, 0, 2.0),
    source="DLMF 10.29; the limit at 0 is 1/2",
)
i1e = special(
    "SpecialI1EBackward0",
    torch.special.i1e,
    r"e^{-\left|$self\right|} \odot I_1($self)",
    r"e^{-\left|$self\right|} \odot I_0($self) - $out \odot \left(\operatorname{sign}($self) + \frac{1}{$self}\right)",
    lambda op: torch.where(op.self == 0, 0.5, torch.special.i0e(op.self) - op.out * (op.self.sgn() + 1 / op.self)),
    points=(-1.5, 0, 2.0),
    source="DLMF 10.29; the limit at 0 is 1/2",
)


def _logit_slope(op: Any) -> Tensor:
    low, high = (0.0, 1.0) if op.eps is None else (op.eps, 1 - op.eps)
    outside = math.nan if op.eps is None else 0.0
    return torch.where((op.self >= low) & (op.self <= high), 1 / (op.self * (1 - op.self)), outside)


logit = elementwise(
    "LogitBackward0",
    equation=r"$out = \ln \frac{$self}{1 - $self}",
    derivative={"self": (r"\frac{1}{$self \odot \left(1 - $self\right)}", _logit_slope)},
    samples=lambda: [*unary(torch.logit, 0.1, 0.5, 0.8), *unary(torch.logit, 0.1, 0.2, 0.7, 0.8, 0.95, eps=0.2)],
    source="derivatives.yaml: logit",
    kink=Kink(
        lambda op, radius: at(*(() if op.eps is None else (op.eps, 1 - op.eps)))(op, radius),
        "with eps the operand is clamped to [eps, 1 - eps]; at these bounds PyTorch takes the slope inside",
    ),
)


def _log_times(numerator: Any, logarithm: Tensor, bad: Tensor) -> Tensor:
    """The logarithm as the slope of x log y in x, but 0 where x is 0 and the logarithm is no number."""
    return torch.where((tensor_like(numerator, logarithm) == 0) & bad, 0, logarithm)


def _xlogy_slope(op: Any) -> Tensor:
    other = tensor_like(op.other, op.out)
    return _log_times(op.self, other.log(), other <= 0)


def _xlog1py_slope(op: Any) -> Tensor:
    other = tensor_like(op.other, op.out)
    return _log_times(op.self, other.log1p(), other <= -1)


def _two(f: Function) -> list[Sample]:
    left, right = (-1.5, 0, 2.0), (0.5, 1.3, 4)
    return [
        *binary(f, left, right),
        sample(f, x(*left), 2.0, note="number second"),
        sample(f, 2.0, x(*right), note="number first"),
    ]


xlogy = elementwise(
    "XlogyBackward0",
    equation=r"$out = $self \odot \ln $other",
    derivative={
        "self": (r"\ln $other", _xlogy_slope),
        "other": (r"\frac{$self}{$other}", lambda op: op.self / op.other),
    },
    samples=lambda: [*_two(torch.xlogy), sample(torch.xlogy, x(0, 1), x(0, 0), note="0 log 0")],
    source="derivatives.yaml: xlogy.Tensor, xlogy.Scalar_Self, xlogy.Scalar_Other",
)
xlog1py = elementwise(
    "SpecialXlog1PyBackward0",
    name="special_xlog1py",
    equation=r"$out = $self \odot \ln\left(1 + $other\right)",
    derivative={
        "self": (r"\ln\left(1 + $other\right)", _xlog1py_slope),
        "other": (r"\frac{$self}{1 + $other}", lambda op: op.self / (1 + op.other)),
    },
    samples=lambda: [*_two(torch.special.xlog1py), sample(torch.special.xlog1py, x(0, 1), x(-1, -1), note="0 log 0")],
    source="derivatives.yaml: special_xlog1py",
)
zeta = elementwise(
    "SpecialZetaBackward0",
    equation=r"$out = \zeta($self, $other)",
    derivative={
        "other": (
            r"-$self \odot \zeta\left($self + 1, $other\right)",
            lambda op: -op.self * torch.special.zeta(tensor_like(op.self, op.out) + 1, op.other),
        )
    },
    samples=lambda: [
        sample(torch.special.zeta, each.arguments[0].detach(), each.arguments[1], note=each.note)
        for each in binary(torch.special.zeta, (2.0, 3.5, 5.0), (0.5, 1.3, 4))
    ],
    source="derivatives.yaml: special_zeta; DLMF 25.11.17",
    constants={"self": "no rule yet"},
)


def _igamma_slope(op: Any) -> Any:
    return ((op.self - 1) * op.other.log() - op.other - op.self.lgamma()).exp()


def _fixed_first(f: Function) -> list[Sample]:
    pairs = binary(f, (0.5, 1.5, 3.0), (0.5, 1.3, 4))
    return [sample(f, each.arguments[0].detach(), each.arguments[1], note=each.note) for each in pairs]


GAMMA_SLOPE = r"\frac{\left($other\right)^{$self - 1} e^{-$other}}{\Gamma($self)}"

igamma = elementwise(
    "IgammaBackward0",
    equation=r"$out = P($self, $other) \text{ (regularised lower incomplete gamma function)}",
    derivative={"other": (GAMMA_SLOPE, _igamma_slope)},
    samples=lambda: _fixed_first(torch.igamma),
    source="derivatives.yaml: igamma; DLMF 8.8.13",
    constants={"self": "no rule yet"},
)
igammac = elementwise(
    "IgammacBackward0",
    equation=r"$out = Q($self, $other) \text{ (regularised upper incomplete gamma function)}",
    derivative={"other": (f"-{GAMMA_SLOPE}", lambda op: -_igamma_slope(op))},
    samples=lambda: _fixed_first(torch.igammac),
    source="derivatives.yaml: igammac; DLMF 8.8.14",
    constants={"self": "no rule yet"},
)
