"""Operations with a right backward, written as sums of terms, so that each part of one can be made wrong by itself.

A term is a function of the upstream gradient and of what was saved: the inputs by name, and `out`. `sum` are the axes
that the sum of the terms is summed over, as broadcasting asks.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace

import torch
from torch import Tensor

Term = Callable[[Tensor, SimpleNamespace], Tensor]


@dataclass(frozen=True)
class Gradient:
    """The gradient of one input: (t1 + t2 + ...), summed over `axes`."""

    terms: tuple[Term, ...]
    axes: tuple[int, ...] = ()
    keep: bool = False


@dataclass(frozen=True)
class Operation:
    """A forward, inputs to try it on (name -> shape, or a function that makes it), and the gradient of each."""

    name: str
    forward: Callable[..., Tensor]
    inputs: dict[str, tuple[int, ...]]
    gradients: dict[str, Gradient]
    positive: bool = False
    constants: dict[str, float] = field(default_factory=dict)


def _of(*terms: Term, axes: tuple[int, ...] = (), keep: bool = False) -> Gradient:
    return Gradient(terms, axes, keep)


def _unary(name: str, forward: Callable[[Tensor], Tensor], *terms: Term, positive: bool = False) -> Operation:
    return Operation(name, forward, {"x": (4, 4)}, {"x": Gradient(terms)}, positive)


def _binary(
    name: str,
    forward: Callable[..., Tensor],
    x: Gradient,
    y: Gradient,
    *,
    shapes: tuple[tuple[int, ...], ...] = ((4, 4), (4, 4)),
    positive: bool = False,
) -> Operation:
    return Operation(name, forward, dict(zip("xy", shapes, strict=True)), {"x": x, "y": y}, positive)


def _sum(t: Tensor) -> Tensor:
    return t.sum(-1, keepdim=True)


def _mean(t: Tensor) -> Tensor:
    return t.mean(-1, keepdim=True)


def _normal(x: Tensor) -> Tensor:
    return torch.exp(-x * x / 2) / math.sqrt(2 * math.pi)


def _scale(x: Tensor) -> Tensor:
    return 1 / (x.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt()


def _standard(x: Tensor) -> Tensor:
    return (x - _mean(x)) * _scale(x)


ELEMENTWISE = [
    _unary("exp", torch.exp, lambda g, s: g * s.out),
    _unary("expm1", torch.expm1, lambda g, s: g * (s.out + 1)),
    _unary("log", torch.log, lambda g, s: g / s.x, positive=True),
    _unary("log1p", torch.log1p, lambda g, s: g / (1 + s.x), positive=True),
    _unary("sin", torch.sin, lambda g, s: g * s.x.cos()),
    _unary("cos", torch.cos, lambda g, s: -g * s.x.sin()),
    _unary("tan", lambda x: torch.tan(x / 3), lambda g, s: g / 3, lambda g, s: g * s.out**2 / 3),
    _unary("tanh", torch.tanh, lambda g, s: g, lambda g, s: -g * s.out * s.out),
    _unary("sigmoid", torch.sigmoid, lambda g, s: g * s.out, lambda g, s: -g * s.out * s.out),
    _unary("sqrt", torch.sqrt, lambda g, s: g / (2 * s.out), positive=True),
    _unary("rsqrt", torch.rsqrt, lambda g, s: -g * s.out / (2 * s.x), positive=True),
    _unary("reciprocal", torch.reciprocal, lambda g, s: -g * s.out * s.out, positive=True),
    _unary("square", torch.square, lambda g, s: 2 * g * s.x),
    _unary("cube", lambda x: x**3, lambda g, s: 3 * g * s.x * s.x),
    _unary("sinh", torch.sinh, lambda g, s: g * s.x.cosh()),
    _unary("cosh", torch.cosh, lambda g, s: g * s.x.sinh()),
    _unary("atan", torch.atan, lambda g, s: g / (1 + s.x * s.x)),
    _unary("asinh", torch.asinh, lambda g, s: g / (1 + s.x * s.x).sqrt()),
    _unary("erf", torch.erf, lambda g, s: g * 2 / math.sqrt(math.pi) * torch.exp(-s.x * s.x)),
    _unary("softplus", torch.nn.functional.softplus, lambda g, s: g * s.x.sigmoid()),
    _unary(
        "silu",
        lambda x: x * x.sigmoid(),
        lambda g, s: g * s.x.sigmoid(),
        lambda g, s: g * s.out * (1 - s.x.sigmoid()),
    ),
    _unary(
        "gelu",
        torch.nn.functional.gelu,
        lambda g, s: g * (1 + torch.erf(s.x / math.sqrt(2))) / 2,
        lambda g, s: g * s.x * _normal(s.x),
    ),
    _unary("x sin x", lambda x: x * x.sin(), lambda g, s: g * s.x.sin(), lambda g, s: g * s.x * s.x.cos()),
    _unary("x log x", lambda x: x * x.log(), lambda g, s: g * s.x.log(), lambda g, s: g, positive=True),
    _unary("polynomial", lambda x: x**3 + 2 * x**2, lambda g, s: 3 * g * s.x**2, lambda g, s: 4 * g * s.x),
]

BINARY = [
    _binary("add a row", torch.add, _of(lambda g, s: g), _of(lambda g, s: g, axes=(0,)), shapes=((4, 4), (4,))),
    _binary(
        "sub a column",
        torch.sub,
        _of(lambda g, s: g),
        _of(lambda g, s: -g, axes=(1,), keep=True),
        shapes=((4, 4), (4, 1)),
    ),
    _binary("mul", torch.mul, _of(lambda g, s: g * s.y), _of(lambda g, s: g * s.x)),
    _binary(
        "mul by a row",
        torch.mul,
        _of(lambda g, s: g * s.y),
        _of(lambda g, s: g * s.x, axes=(0,)),
        shapes=((4, 4), (4,)),
    ),
    _binary(
        "scale by a scalar",
        torch.mul,
        _of(lambda g, s: g * s.y),
        _of(lambda g, s: g * s.x, axes=(0, 1)),
        shapes=((4, 4), ()),
    ),
    _binary("div", torch.div, _of(lambda g, s: g / s.y), _of(lambda g, s: -g * s.x / s.y**2), positive=True),
    _binary(
        "div by a column",
        torch.div,
        _of(lambda g, s: g / s.y),
        _of(lambda g, s: -g * s.out / s.y, axes=(1,), keep=True),
        shapes=((4, 4), (4, 1)),
        positive=True,
    ),
    _binary(
        "pow",
        torch.pow,
        _of(lambda g, s: g * s.y * s.x ** (s.y - 1)),
        _of(lambda g, s: g * s.out * s.x.log()),
        positive=True,
    ),
    _binary(
        "atan2",
        torch.atan2,
        _of(lambda g, s: g * s.y / (s.x**2 + s.y**2)),
        _of(lambda g, s: -g * s.x / (s.x**2 + s.y**2)),
        positive=True,
    ),
    _binary("hypot", torch.hypot, _of(lambda g, s: g * s.x / s.out), _of(lambda g, s: g * s.y / s.out), positive=True),
    _binary(
        "complex product, real part",
        lambda x, y: x * y - x.sin() * y.cos(),
        _of(lambda g, s: g * s.y, lambda g, s: -g * s.x.cos() * s.y.cos()),
        _of(lambda g, s: g * s.x, lambda g, s: g * s.x.sin() * s.y.sin()),
    ),
    _binary(
        "gated unit",
        lambda x, y: x * y.sigmoid(),
        _of(lambda g, s: g * s.y.sigmoid()),
        _of(lambda g, s: g * s.out * (1 - s.y.sigmoid())),
    ),
]

MATRIX = [
    _binary("matmul", torch.matmul, _of(lambda g, s: g @ s.y.T), _of(lambda g, s: s.x.T @ g)),
    _binary(
        "batched matmul",
        torch.bmm,
        _of(lambda g, s: g @ s.y.transpose(1, 2)),
        _of(lambda g, s: s.x.transpose(1, 2) @ g),
        shapes=((2, 4, 4), (2, 4, 4)),
    ),
    Operation(
        "linear",
        lambda x, w, b: x @ w.T + b,
        {"x": (4, 4), "w": (4, 4), "b": (4,)},
        {"x": _of(lambda g, s: g @ s.w), "w": _of(lambda g, s: g.T @ s.x), "b": _of(lambda g, s: g, axes=(0,))},
    ),
    _unary("gram", lambda x: x @ x.T, lambda g, s: g @ s.x, lambda g, s: g.T @ s.x),
    _unary("square of a matrix", lambda x: x @ x, lambda g, s: g @ s.x.T, lambda g, s: s.x.T @ g),
    _binary("outer", torch.outer, _of(lambda g, s: g @ s.y), _of(lambda g, s: g.T @ s.x), shapes=((4,), (4,))),
    _binary(
        "quadratic form",
        lambda x, y: x @ y @ x,
        _of(lambda g, s: g * (s.y @ s.x), lambda g, s: g * (s.y.T @ s.x)),
        _of(lambda g, s: g * torch.outer(s.x, s.x)),
        shapes=((4,), (4, 4)),
    ),
    Operation(
        "bilinear",
        lambda x, w, y: x @ w @ y.T,
        {"x": (4, 4), "w": (4, 4), "y": (4, 4)},
        {
            "x": _of(lambda g, s: g @ s.y @ s.w.T),
            "w": _of(lambda g, s: s.x.T @ g @ s.y),
            "y": _of(lambda g, s: g.T @ s.x @ s.w),
        },
    ),
    _unary("inverse", lambda x: torch.linalg.inv(x), lambda g, s: -s.out.T @ g @ s.out.T, positive=True),
    _binary(
        "row by row dot product",
        lambda x, y: (x * y).sum(1),
        _of(lambda g, s: g[:, None] * s.y),
        _of(lambda g, s: g[:, None] * s.x),
    ),
]

REDUCTIONS = [
    _unary("softmax", lambda x: x.softmax(-1), lambda g, s: g * s.out, lambda g, s: -s.out * _sum(g * s.out)),
    _unary("log softmax", lambda x: x.log_softmax(-1), lambda g, s: g, lambda g, s: -s.out.exp() * _sum(g)),
    _unary("logsumexp", lambda x: x.logsumexp(1), lambda g, s: g[:, None] * (s.x - s.out[:, None]).exp()),
    _unary("mean over rows", lambda x: x.square().mean(0), lambda g, s: 2 * g * s.x / 4),
    _unary("sum of squares", lambda x: x.square().sum(), lambda g, s: 2 * g * s.x),
    _unary("norm of rows", lambda x: x.norm(dim=1), lambda g, s: g[:, None] * s.x / s.out[:, None]),
    _unary("variance", lambda x: x.var(1), lambda g, s: 2 * g[:, None] * (s.x - _mean(s.x)) / 3),
    _unary("cumulative sum", lambda x: x.cumsum(1), lambda g, s: g.flip(1).cumsum(1).flip(1)),
    _unary(
        "unit rows",
        lambda x: x / x.norm(dim=1, keepdim=True),
        lambda g, s: g / s.x.norm(dim=1, keepdim=True),
        lambda g, s: -s.out * _sum(g * s.out) / s.x.norm(dim=1, keepdim=True),
    ),
    _unary("centred rows", lambda x: x - x.mean(-1, keepdim=True), lambda g, s: g, lambda g, s: -_mean(g).expand(4, 4)),
    _unary(
        "standardised rows",
        _standard,
        lambda g, s: g * _scale(s.x),
        lambda g, s: -(_mean(g) * _scale(s.x)).expand(4, 4),
        lambda g, s: -s.out * _mean(g * s.out) * _scale(s.x),
    ),
    _unary(
        "root mean square norm",
        lambda x: x / x.square().mean(-1, keepdim=True).sqrt(),
        lambda g, s: g / s.x.square().mean(-1, keepdim=True).sqrt(),
        lambda g, s: -s.out * _mean(g * s.out) / s.x.square().mean(-1, keepdim=True).sqrt(),
    ),
    _binary(
        "mean squared error",
        lambda x, y: (x - y).square().mean(),
        _of(lambda g, s: 2 * g * (s.x - s.y) / 16),
        _of(lambda g, s: -2 * g * (s.x - s.y) / 16),
    ),
    _binary(
        "cross-entropy with logits",
        lambda x, y: (torch.nn.functional.softplus(x) - x * y).sum(1),
        _of(lambda g, s: g[:, None] * s.x.sigmoid(), lambda g, s: -g[:, None] * s.y),
        _of(lambda g, s: -g[:, None] * s.x),
    ),
    _binary(
        "layer norm's scale and shift",
        lambda x, y: _standard(x) * y,
        _of(
            lambda g, s: g * s.y * _scale(s.x),
            lambda g, s: -(_mean(g * s.y) * _scale(s.x)).expand(4, 4),
            lambda g, s: -_standard(s.x) * _mean(g * s.y * _standard(s.x)) * _scale(s.x),
        ),
        _of(lambda g, s: g * _standard(s.x), axes=(0,)),
        shapes=((4, 4), (4,)),
    ),
    _unary("transpose", lambda x: x.T.clone(), lambda g, s: g.T),
    _unary("flip", lambda x: x.flip(1), lambda g, s: g.flip(1)),
]

OPERATIONS = [*ELEMENTWISE, *BINARY, *MATRIX, *REDUCTIONS]
