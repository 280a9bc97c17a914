"""Rules of activation functions, gates, and dropout.

A hinge (ReLU and its kin) has no derivative at its corner; the rule's `kink` says which slope PyTorch takes there. Some
formulas have names, because second derivatives (`second_order.py`) follow from them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from chainrule.rules import Factor, Kink, Wrt, derivative, elementwise, rule, sample
from chainrule.rules.element import Element, Elements, apply
from chainrule.rules.expression import HALF, Expression, Named, X, argument, cases, choice, fraction, let, symbol
from chainrule.rules.formula_functions import PI, Phi, exp, highest, ln, lowest, sigma, sign, size, softplus, sqrt, tanh
from chainrule.rules.pointwise import at, near, unary, x
from chainrule.rules.pointwise import function as register

function = partial(register, topic="activation")

CORNER = (-1.5, 0, 0.3, 2.0)
DEAD_ZONE, BEND = (-1.5, -0.5, 0, 0.3, 0.5, 2), (-4, -3, 0.3, 3, 5)
ALPHA, BETA, LAMBDA, THRESHOLD = (argument(name) for name in ("alpha", "beta", "lambd", "threshold"))
LEAK, LOW, HIGH, P = (argument(name) for name in ("negative_slope", "min_val", "max_val", "p"))
SCALE, RATE = argument("scale"), argument("input_scale")


def near_to(*points: str) -> Callable[[Any, float], Tensor]:
    """Where `self` lies within the radius of one of the arguments `points`."""
    return lambda op, radius: near(op.self, *(op.arguments[point] for point in points), radius=radius)


def known_as(name: str, meaning: Expression) -> Expression:
    """A formula that prints the name of its function, `ReLU(x)`, and says beside it what that is."""
    return let(rf"\operatorname{{{name}}}($self)", meaning)


# `<=` lets NaN pass, as PyTorch does.
THRESHOLDED = cases(argument("value"), X <= THRESHOLD, X)
LEAKY_SLOPE = cases(1, X > 0, LEAK)
ELU = cases(SCALE * X, X > 0, ALPHA * SCALE * (exp(RATE * X) - 1))
HARDTANH_SLOPE = cases(1, X.between(LOW, HIGH))
CURVE, IS_STRAIGHT = softplus(BETA * X) / BETA, BETA * X > THRESHOLD
# Past the usual threshold, 20, line and curve are the same number in single precision.
SOFTPLUS = choice(lambda op: CURVE.but(X, IS_STRAIGHT) if op.threshold >= 20 else cases(X, IS_STRAIGHT, CURVE))
STRAIGHT = (
    "past its threshold softplus is taken as the straight line x; at the threshold PyTorch takes the curve's slope"
)
U = let("u", sqrt(2 / PI) * (X + 0.044715 * X**3), primed=True)
GELU, GELU_TANH = X * Phi(X), HALF * X * (1 + tanh(U))
RAMP = lowest(highest(X / 6 + HALF, 0), 1)


def _elu_corner(op: Any, radius: float) -> Tensor:
    smooth = math.isclose(op.scale, op.alpha * op.scale * op.input_scale)
    return near(op.self, *(() if smooth else (0.0,)), radius=radius)


def _hardtanh(op: Any) -> Expression:
    is_relu6 = (op.min_val, op.max_val) == (0, 6)
    return known_as("ReLU6", lowest(highest(0, X), 6)) if is_relu6 else lowest(highest(X, LOW), HIGH)


def _at_lambda(op: Any, radius: float) -> Tensor:
    return near(op.self, -op.lambd, op.lambd, radius=radius)


def gelu_by(how: str) -> Callable[[Any], bool]:
    """Whether a GELU, or its backward, uses this approximation: "none" or "tanh"."""
    return lambda op: op.arguments.get("approximate", "none") == how


def _drawn(op: Any) -> Tensor:
    """The slope drawn for each element, from the output: the noise is not known yet when the operation is called."""
    mean = torch.full_like(op.self, (op.lower + op.upper) / 2)
    return torch.where(op.self == 0, mean, op.out / op.self) if op.training else mean


function(
    F.relu,
    known_as("ReLU", highest(0, X)),
    cases(0, X <= 0, 1),
    CORNER,
    kink=Kink(at(0), "ReLU has a corner at 0, with slope 0 on the left and 1 on the right; PyTorch takes 0"),
)
# fmt: off
function(F.silu, X * sigma(X), points=CORNER, cites="; the product rule with s' = s(1 - s)")
function(F.threshold, THRESHOLDED, points=(-1.5, 0.25, 0.3, 2.0), calls=[{"threshold": 0.25, "value": -2.0}],
    kink=Kink(near_to("threshold"), "the function may jump at the threshold; PyTorch takes the slope 0 there"))
function(F.leaky_relu, known_as("LeakyReLU", cases(X, X > 0, LEAK * X)), LEAKY_SLOPE, CORNER,
    calls=[{}, {"negative_slope": 0.2}],
    kink=Kink(at(0), "leaky ReLU has a corner at 0; PyTorch takes the slope of the left side"))
function(F.elu, choice(lambda op: known_as("ELU" if op.scale == 1 else "SELU", ELU)),
    cases(SCALE, X > 0, ALPHA * SCALE * RATE * exp(RATE * X)), CORNER,
    "; arXiv:1511.07289, arXiv:1706.02515 (SELU)", calls=[{}, {"alpha": 0.5}], more=lambda: unary(F.selu, *CORNER),
    kink=Kink(_elu_corner, "where alpha is not 1, ELU has a corner at 0; PyTorch takes the slope of the left side"))
function(F.celu, known_as("CELU", cases(X, X > 0, ALPHA * (exp(X / ALPHA) - 1))), cases(1, X > 0, exp(X / ALPHA)),
    CORNER, "; arXiv:1704.07483 (its slope is 1 on both sides of 0)", calls=[{}, {"alpha": 0.5}])
function(F.mish, X * tanh(let("s", softplus(X))), points=CORNER, cites="; arXiv:1908.08681")
function(F.softplus, SOFTPLUS, points=(*CORNER, 25),
    more=lambda: unary(F.softplus, *CORNER, 1.2, beta=2.5, threshold=3),
    cites=" (past its threshold PyTorch takes the straight line x itself)",
    kink=Kink(lambda op, radius: near(op.self, op.threshold / op.beta, radius=radius), STRAIGHT))
function(F.logsigmoid, ln(sigma(X)), sigma(-X), (*CORNER, -40), "_forward; (ln s)' = s'/s = 1 - s")
function(F.hardtanh, choice(_hardtanh), HARDTANH_SLOPE, (-1.5, -1, 0.3, 1, 2),
    " (ReLU6 is hardtanh between 0 and 6)", more=lambda: unary(F.relu6, -1, 0, 3, 6, 7),
    kink=Kink(near_to("min_val", "max_val"), "hardtanh has a corner at each bound; PyTorch takes 0"))
function(F.hardsigmoid, RAMP, cases(fraction(1, 6), Named("-3 < @ < 3", lambda z: (z > -3) & (z < 3))(X)), BEND,
    kink=Kink(at(-3, 3), "hardsigmoid has corners at -3 and 3; PyTorch takes 0"))
function(F.hardswish, X * RAMP, cases(0, X <= -3, cases(X / 3 + HALF, Named("-3 < @ < 3", lambda z: z < 3)(X), 1)),
    BEND, "; arXiv:1905.02244",
    kink=Kink(at(-3, 3), "hardswish has corners at -3 and 3; PyTorch takes the slope outside: 0 and 1"))
function(F.hardshrink, cases(0, size(X) <= LAMBDA, X), points=DEAD_ZONE,
    kink=Kink(_at_lambda, "hardshrink jumps at both ends of its dead zone; PyTorch takes the slope 0 there"))
function(F.softshrink, sign(X) * highest(size(X) - LAMBDA, 0), cases(0, size(X) <= LAMBDA, 1), DEAD_ZONE,
    kink=Kink(_at_lambda, "softshrink has a corner at both ends of its dead zone; PyTorch takes the slope 0 there"))
function(F.gelu, GELU, points=CORNER, accepts=gelu_by("none"),
    cites="; arXiv:1606.08415. Phi and phi: distribution and density of the standard normal")
function(F.gelu, GELU_TANH, points=CORNER, accepts=gelu_by("tanh"), name="gelu_tanh", calls=[{"approximate": "tanh"}],
    cites="; arXiv:1606.08415, the approximation by tanh")
function(F.prelu, cases(X, X > 0, argument("weight") * X), ("self", "weight"), node="PreluKernel", samples=lambda: [
    *unary(F.prelu, *CORNER, weight=x(0.25)),
    sample(F.prelu, x(-1, 0, 2, -3, shape=(2, 2)), x(0.25, 0.5), note="a slope for each channel"),
], source="derivatives.yaml: _prelu_kernel; arXiv:1502.01852",
    kink=Kink(at(0), "PReLU has a corner at 0; PyTorch takes the slope of the left side, the weight"))
function(F.rrelu, cases(X, X > 0, symbol("r", _drawn) * X), points=CORNER, node="RreluWithNoise",
    more=lambda: unary(F.rrelu, -1.5, -0.2, 0.3, training=True), constants={"noise": "not differentiable"},
    cites="_with_noise; arXiv:1505.00853. r is drawn between lower and upper for each element in training, and is "
    "their mean in evaluation",
    kink=Kink(at(0), "RReLU has a corner at 0; PyTorch takes the slope of the left side (in training the drawn one)"))
# fmt: on


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


def _glu_formula(template: str) -> Callable[[Any], str]:
    """A formula of the elements along the axis: `@b` is the place of the gate of the element i, `@s` its sigmoid."""

    def formula(op: Any) -> str:
        gate = f"i + {op.out.shape[op.dim]}"
        text = template.replace("@s", rf"\sigma({{$self}}_{{{gate}}})").replace("@b", gate)
        return text + rf", \quad 0 \le i < {op.out.shape[op.dim]} \quad \text{{(along dim }} $dim)"

    return formula


def _glu_element(op: Elements, slot: int, index: tuple[int, ...]) -> Element:
    dim = op.whole.dim % op.whole.self.dim()
    gate = [at + op.whole.out.shape[dim] * (axis == dim) for axis, at in enumerate(index)]
    return op.at("self", index) * apply(sigma, op.at("self", gate))


glu = rule(
    "GluBackward0",
    element=_glu_element,
    equation=_glu_formula("{$out}_i = {$self}_i \\, @s"),
    wrt={
        "self": Wrt(
            _glu_vjp,
            _glu_formula(
                derivative("{$out}_i", "{$self}_j", r"[j = i] \, @s + [j = @b] \, {$self}_i \, @s \, (1 - @s)")
            ),
            _glu_formula(r"{$grad}_i = {$g}_i \, @s, \quad {$grad}_{@b} = {$g}_i \, {$self}_i \, @s \, (1 - @s)"),
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


KEPT = symbol("M", lambda op: op.outs[1].to(op.out.dtype))  # the mask is held as drawn
DROPPING = choice(lambda op: KEPT if op.train is False else 0 if op.p == 1 else KEPT / (1 - P))

native_dropout = elementwise(
    "NativeDropoutBackward0",
    name="dropout",
    equation=DROPPING * argument("input"),
    remark="M is drawn for each element: 0 with probability p, else 1.",
    derivative={"input": DROPPING},
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
