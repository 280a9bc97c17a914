"""Rules of activation functions, gates, and dropout.

A hinge (ReLU and its kin) has no derivative at its corner; the rule's `kink` says which slope PyTorch takes there.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from chainrule.rules import Factor, Kink, Wrt, elementwise, number, rule, sample
from chainrule.rules.arithmetic import at, either, near, tensor_like, unary, x

CORNER = (-1.5, 0, 0.3, 2.0)


def _above(threshold: float) -> Any:
    return lambda op: ~(op.self <= threshold)  # said in this way, NaN lets the gradient pass, as in PyTorch


relu = elementwise(
    "ReluBackward0",
    equation=r"$out = \operatorname{ReLU}($self)",
    derivative={"self": (r"\begin{cases} 1 & $self > 0 \\ 0 & $self \le 0 \end{cases}", _above(0))},
    samples=lambda: unary(F.relu, *CORNER),
    source="derivatives.yaml: relu",
    kink=Kink(at(0), "ReLU has a corner at 0, with slope 0 on the left and 1 on the right; PyTorch takes 0"),
)

threshold = elementwise(
    "ThresholdBackward0",
    equation=r"$out = \begin{cases} $self & $self > $threshold \\ $value & $self \le $threshold \end{cases}",
    derivative={
        "self": (
            r"\begin{cases} 1 & $self > $threshold \\ 0 & $self \le $threshold \end{cases}",
            lambda op: ~(op.self <= op.threshold),
        )
    },
    samples=lambda: unary(F.threshold, -1.5, 0.25, 0.3, 2.0, threshold=0.25, value=-2.0),
    source="derivatives.yaml: threshold",
    kink=Kink(
        lambda op, radius: near(op.self, op.threshold, radius=radius),
        "the function may jump at the threshold; PyTorch takes the slope 0 there",
    ),
)

leaky_relu = elementwise(
    "LeakyReluBackward0",
    equation=r"$out = \operatorname{LeakyReLU}($self)",
    derivative={
        "self": (
            r"\begin{cases} 1 & $self > 0 \\ $negative_slope & $self \le 0 \end{cases}",
            lambda op: torch.where(op.self > 0, tensor_like(1, op.self), op.negative_slope),
        )
    },
    samples=lambda: [*unary(F.leaky_relu, *CORNER), *unary(F.leaky_relu, *CORNER, negative_slope=0.2)],
    source="derivatives.yaml: leaky_relu",
    kink=Kink(at(0), "leaky ReLU has a corner at 0; PyTorch takes the slope of the left side"),
)


def _elu_slopes(op: Any) -> tuple[float, float, float]:
    """The slope on the right, the slope on the left at 0, and the rate of the exponential."""
    return op.scale, op.alpha * op.scale * op.input_scale, op.input_scale


def _elu_local(op: Any) -> str:
    right, left, rate = _elu_slopes(op)
    exponent = "$self" if rate == 1 else rf"{number(rate)} \, $self"
    factor = "" if left == 1 else rf"{number(left)} \, "
    return _exponential_side(number(right), exponent, factor)


def _exponential_side(right: str, exponent: str, factor: str = "") -> str:
    return rf"\begin{{cases}} {right} & $self > 0 \\ {factor}e^{{{exponent}}} & $self \le 0 \end{{cases}}"


def _elu_slope(op: Any) -> Tensor:
    right, left, rate = _elu_slopes(op)
    return torch.where(op.self > 0, tensor_like(right, op.self), left * (rate * op.self).exp())


def _elu_corner(op: Any, radius: float) -> Tensor:
    right, left, _ = _elu_slopes(op)
    return near(op.self, *(() if math.isclose(right, left) else (0.0,)), radius=radius)


elu = elementwise(
    "EluBackward0",
    equation=lambda op: rf"$out = \operatorname{{{'ELU' if op.scale == 1 else 'SELU'}}}($self)",
    derivative={"self": (_elu_local, _elu_slope)},
    samples=lambda: [*unary(F.elu, *CORNER), *unary(F.elu, *CORNER, alpha=0.5), *unary(F.selu, *CORNER)],
    source="derivatives.yaml: elu; arXiv:1511.07289, arXiv:1706.02515 (SELU)",
    kink=Kink(_elu_corner, "where alpha is not 1, ELU has a corner at 0; PyTorch takes the slope of the left side"),
)

celu = elementwise(
    "CeluBackward0",
    equation=r"$out = \operatorname{CELU}($self)",
    derivative={
        "self": (
            lambda op: _exponential_side("1", "$self" if op.alpha == 1 else "$self / $alpha"),
            lambda op: torch.where(op.self > 0, tensor_like(1, op.self), (op.self / op.alpha).exp()),
        )
    },
    samples=lambda: [*unary(F.celu, *CORNER), *unary(F.celu, *CORNER, alpha=0.5)],
    source="derivatives.yaml: celu; arXiv:1704.07483 (its slope is 1 on both sides of 0)",
)


def _normal_cdf(z: Tensor) -> Tensor:
    return 0.5 * (1 + torch.erf(z / math.sqrt(2)))


def _normal_density(z: Tensor) -> Tensor:
    return (-0.5 * z * z).exp() / math.sqrt(2 * math.pi)


gelu = elementwise(
    "GeluBackward0",
    name="gelu",
    equation=r"$out = $self \odot \Phi($self)",
    derivative={
        "self": (
            r"\Phi($self) + $self \odot \varphi($self)",
            lambda op: _normal_cdf(op.self) + op.self * _normal_density(op.self),
        )
    },
    samples=lambda: unary(F.gelu, *CORNER),
    source="derivatives.yaml: gelu; arXiv:1606.08415. Phi and phi: distribution and density of the standard normal",
    accepts=lambda op: op.arguments.get("approximate", "none") == "none",
)

GELU_ROOT, GELU_CUBE = math.sqrt(2 / math.pi), 0.044715


def _gelu_tanh_slope(op: Any) -> Any:
    z = op.self
    t = torch.tanh(GELU_ROOT * (z + GELU_CUBE * z**3))
    return 0.5 * (1 + t) + 0.5 * z * (1 - t * t) * GELU_ROOT * (1 + 3 * GELU_CUBE * z * z)


gelu_tanh = elementwise(
    "GeluBackward0",
    name="gelu_tanh",
    equation=(
        r"$out = \tfrac{1}{2} \, $self \odot \left(1 + \tanh u\right), \quad "
        r"u = \sqrt{\tfrac{2}{\pi}} \left($self + 0.044715 \left($self\right)^{3}\right)"
    ),
    derivative={
        "self": (
            r"\tfrac{1}{2} \left(1 + \tanh u\right) + \tfrac{1}{2} \, $self \odot \left(1 - \tanh^2 u\right) \odot "
            r"\sqrt{\tfrac{2}{\pi}} \left(1 + 0.134145 \left($self\right)^{2}\right)",
            _gelu_tanh_slope,
        )
    },
    samples=lambda: unary(F.gelu, *CORNER, approximate="tanh"),
    source="derivatives.yaml: gelu; arXiv:1606.08415, the approximation by tanh",
    accepts=lambda op: op.arguments.get("approximate", "none") == "tanh",
)


def _silu_slope(op: Any) -> Any:
    s = op.self.sigmoid()
    return s * (1 + op.self * (1 - s))


silu = elementwise(
    "SiluBackward0",
    equation=r"$out = $self \odot \sigma($self)",
    derivative={
        "self": (r"\sigma($self) \odot \left(1 + $self \odot \left(1 - \sigma($self)\right)\right)", _silu_slope)
    },
    samples=lambda: unary(F.silu, *CORNER),
    source="derivatives.yaml: silu; the product rule with s' = s(1 - s)",
)


def _mish_slope(op: Any) -> Any:
    t = F.softplus(op.self).tanh()
    return t + op.self * op.self.sigmoid() * (1 - t * t)


mish = elementwise(
    "MishBackward0",
    equation=r"$out = $self \odot \tanh s, \quad s = \ln\left(1 + e^{$self}\right)",
    derivative={"self": (r"\tanh s + $self \odot \sigma($self) \odot \left(1 - \tanh^2 s\right)", _mish_slope)},
    samples=lambda: unary(F.mish, *CORNER),
    source="derivatives.yaml: mish; arXiv:1908.08681",
)

softplus = elementwise(
    "SoftplusBackward0",
    equation=lambda op: (
        r"$out = \ln\left(1 + e^{$self}\right)"
        if op.beta == 1
        else r"$out = \frac{1}{$beta} \ln\left(1 + e^{$beta \, $self}\right)"
    ),
    derivative={
        "self": (
            lambda op: r"\sigma($self)" if op.beta == 1 else r"\sigma\left($beta \, $self\right)",
            lambda op: torch.where(op.beta * op.self > op.threshold, 1.0, (op.beta * op.self).sigmoid()),
        )
    },
    samples=lambda: [*unary(F.softplus, *CORNER, 25), *unary(F.softplus, *CORNER, 1.2, beta=2.5, threshold=3)],
    source="derivatives.yaml: softplus (past its threshold PyTorch takes the straight line x itself)",
    kink=Kink(
        lambda op, radius: near(op.self, op.threshold / op.beta, radius=radius),
        "past its threshold softplus is taken as the straight line x; at the threshold PyTorch takes the curve's slope",
    ),
)

log_sigmoid = elementwise(
    "LogSigmoidBackward0",
    equation=r"$out = \ln \sigma($self)",
    derivative={"self": (r"1 - \sigma($self)", lambda op: (-op.self).sigmoid())},
    samples=lambda: unary(F.logsigmoid, *CORNER, -40),
    source="derivatives.yaml: log_sigmoid_forward; (ln s)' = s'/s = 1 - s",
)

hardtanh = elementwise(
    "HardtanhBackward0",
    equation=lambda op: (
        r"$out = \operatorname{ReLU6}($self)"
        if (op.min_val, op.max_val) == (0, 6)
        else r"$out = \min\left(\max\left($self, $min_val\right), $max_val\right)"
    ),
    derivative={
        "self": (either("$min_val < $self < $max_val"), lambda op: ~((op.self <= op.min_val) | (op.self >= op.max_val)))
    },
    samples=lambda: [*unary(F.hardtanh, -1.5, -1, 0.3, 1, 2), *unary(F.relu6, -1, 0, 3, 6, 7)],
    source="derivatives.yaml: hardtanh (ReLU6 is hardtanh between 0 and 6)",
    kink=Kink(
        lambda op, radius: near(op.self, op.min_val, op.max_val, radius=radius),
        "hardtanh has a corner at each bound; PyTorch takes 0",
    ),
)

hardsigmoid = elementwise(
    "HardsigmoidBackward0",
    equation=r"$out = \min\left(\max\left(\tfrac{1}{6} \, $self + \tfrac{1}{2}, 0\right), 1\right)",
    derivative={
        "self": (
            either("-3 < $self < 3", first=r"\tfrac{1}{6}"),
            lambda op: torch.where((op.self > -3) & (op.self < 3), tensor_like(1, op.self) / 6, 0),
        )
    },
    samples=lambda: unary(F.hardsigmoid, -4, -3, 0.3, 3, 5),
    source="derivatives.yaml: hardsigmoid",
    kink=Kink(at(-3, 3), "hardsigmoid has corners at -3 and 3; PyTorch takes 0"),
)

hardswish = elementwise(
    "HardswishBackward0",
    equation=r"$out = $self \odot \min\left(\max\left(\tfrac{1}{6} \, $self + \tfrac{1}{2}, 0\right), 1\right)",
    derivative={
        "self": (
            r"\begin{cases} 0 & $self \le -3 \\ \tfrac{1}{3} \, $self + \tfrac{1}{2} & -3 < $self < 3 \\ "
            r"1 & $self \ge 3 \end{cases}",
            lambda op: torch.where(op.self <= -3, 0, torch.where(op.self < 3, op.self / 3 + 0.5, 1)),
        )
    },
    samples=lambda: unary(F.hardswish, -4, -3, 0.3, 3, 5),
    source="derivatives.yaml: hardswish; arXiv:1905.02244",
    kink=Kink(at(-3, 3), "hardswish has corners at -3 and 3; PyTorch takes the slope outside: 0 and 1"),
)


def _at_lambda(op: Any, radius: float) -> Tensor:
    return near(op.self, -op.lambd, op.lambd, radius=radius)


SHRINK = r"\begin{cases} 0 & \left|$self\right| \le $lambd \\ 1 & \text{otherwise} \end{cases}"

hardshrink = elementwise(
    "HardshrinkBackward0",
    equation=(r"$out = \begin{cases} 0 & \left|$self\right| \le $lambd \\ $self & \text{otherwise} \end{cases}"),
    derivative={"self": (SHRINK, lambda op: ~(op.self.abs() <= op.lambd))},
    samples=lambda: unary(F.hardshrink, -1.5, -0.5, 0, 0.3, 0.5, 2),
    source="derivatives.yaml: hardshrink",
    kink=Kink(_at_lambda, "hardshrink jumps at both ends of its dead zone; PyTorch takes the slope 0 there"),
)

softshrink = elementwise(
    "SoftshrinkBackward0",
    equation=r"$out = \operatorname{sign}($self) \odot \max\left(\left|$self\right| - $lambd, 0\right)",
    derivative={"self": (SHRINK, lambda op: ~(op.self.abs() <= op.lambd))},
    samples=lambda: unary(F.softshrink, -1.5, -0.5, 0, 0.3, 0.5, 2),
    source="derivatives.yaml: softshrink",
    kink=Kink(_at_lambda, "softshrink has a corner at both ends of its dead zone; PyTorch takes the slope 0 there"),
)

prelu = elementwise(
    "PreluKernelBackward0",
    name="prelu",
    equation=r"$out = \begin{cases} $self & $self > 0 \\ $weight \odot $self & $self \le 0 \end{cases}",
    derivative={
        "self": (
            r"\begin{cases} 1 & $self > 0 \\ $weight & $self \le 0 \end{cases}",
            lambda op: torch.where(op.self > 0, tensor_like(1, op.self), op.weight),
        ),
        "weight": (
            r"\begin{cases} 0 & $self > 0 \\ $self & $self \le 0 \end{cases}",
            lambda op: torch.where(op.self > 0, 0, op.self),
        ),
    },
    samples=lambda: [
        *unary(F.prelu, *CORNER, weight=x(0.25)),
        sample(F.prelu, x(-1, 0, 2, -3, shape=(2, 2)), x(0.25, 0.5), note="a slope for each channel"),
    ],
    source="derivatives.yaml: _prelu_kernel; arXiv:1502.01852",
    kink=Kink(at(0), "PReLU has a corner at 0; PyTorch takes the slope of the left side, the weight"),
)


def _rrelu_slope(op: Any) -> Tensor:
    """The slope drawn for each element, told by the output: the noise is not known yet when the operation is called."""
    mean = tensor_like((op.lower + op.upper) / 2, op.self)
    drawn = torch.where(op.self == 0, mean, op.out / op.self) if op.training else mean
    return torch.where(op.self > 0, 1, drawn)


rrelu = elementwise(
    "RreluWithNoiseBackward0",
    name="rrelu",
    equation=r"$out = \begin{cases} $self & $self > 0 \\ r \odot $self & $self \le 0 \end{cases}",
    derivative={"self": (r"\begin{cases} 1 & $self > 0 \\ r & $self \le 0 \end{cases}", _rrelu_slope)},
    samples=lambda: [*unary(F.rrelu, *CORNER), *unary(F.rrelu, -1.5, -0.2, 0.3, training=True)],
    source=(
        "derivatives.yaml: rrelu_with_noise; arXiv:1505.00853. r is drawn between lower and upper for each element in "
        "training, and is their mean in evaluation"
    ),
    constants={"noise": "not differentiable"},
    kink=Kink(at(0), "RReLU has a corner at 0; PyTorch takes the slope of the left side (in training the drawn one)"),
)


def _halves(op: Any) -> tuple[Tensor, Tensor]:
    value, gate = op.self.chunk(2, op.dim)
    return value, gate.sigmoid()


def _glu_vjp(op: Any, g: Tensor) -> Tensor:
    value, s = _halves(op)
    return torch.cat([g * s, g * value * s * (1 - s)], op.dim)


def _glu_factor(op: Any, out_index: tuple[int, ...], in_index: tuple[int, ...]) -> Factor:
    half, dim = op.out.shape[op.dim], op.dim % op.self.dim()
    value = ",".join(str(i) for i in out_index)
    gate = ",".join(str(i + half * (axis == dim)) for axis, i in enumerate(out_index))
    slope = rf"\sigma(${{self}}_{{{gate}}})"
    if in_index[dim] < half:
        return Factor(latex=slope)
    return Factor(latex=rf"${{self}}_{{{value}}} \, {slope} \left(1 - {slope}\right)")


glu = rule(
    "GluBackward0",
    equation=r"$out = a \odot \sigma(b), \quad [a, b] = $self \text{ cut in halves along axis } $dim",
    wrt={
        "self": Wrt(
            _glu_vjp,
            r"\left[\sigma(b), \; a \odot \sigma(b) \odot \left(1 - \sigma(b)\right)\right]",
            r"\left[$g \odot \sigma(b), \; $g \odot a \odot \sigma(b) \odot \left(1 - \sigma(b)\right)\right]",
            "each output element depends on one element of either half alone",
            _glu_factor,
        )
    },
    samples=lambda: [
        sample(F.glu, x(1, 2, -1, 0.5), note="vector"),
        sample(F.glu, x(1, 2, -1, 0.5, 3, -2, shape=(2, 3)), dim=0, note="first axis"),
        sample(F.glu, x(1, 2), note="size 1"),
        sample(F.glu, x(shape=(0, 4)), note="empty"),
    ],
    source="derivatives.yaml: glu; arXiv:1612.08083",
)


def _dropout_slope(op: Any) -> Any:
    kept = op.outs[1].to(op.out.dtype)  # the mask is held as drawn
    return kept if op.train is False else kept * (0 if op.p == 1 else 1 / (1 - op.p))


native_dropout = elementwise(
    "NativeDropoutBackward0",
    name="dropout",
    equation=r"$out = \frac{M}{1 - $p} \odot $input, \quad M \in \{0, 1\} \text{ drawn, 0 with probability } $p",
    derivative={"input": (r"\frac{M}{1 - $p}", _dropout_slope)},
    samples=lambda: [
        *(
            sample(torch.native_dropout, each.arguments[0], 0.4, True, note=each.note)
            for each in unary(F.relu)
            if each.arguments[0].numel()  # of none, PyTorch gives a result without a gradient
        ),
        sample(torch.native_dropout, x(), 0.5, False, note="evaluation"),
        sample(torch.native_dropout, x(), 1.0, True, note="all dropped"),
    ],
    source="derivatives.yaml: native_dropout; JMLR 15:1929 (Srivastava et al., 2014)",
)
