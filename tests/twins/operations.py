"""Operations whose backward is written by hand, and right: as authors write them, in the number type they are given."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Draw = Callable[..., Tensor]  # a shape -> numbers


@dataclass(frozen=True)
class Operation:
    """A forward, its backward (u, out, *inputs) -> gradients, and inputs to try it on; 0 is the axis of a batch."""

    name: str
    forward: Callable[..., Tensor]
    backward: Callable[..., Any]
    inputs: Callable[[Draw], tuple[Tensor, ...]]
    complex: bool = False
    batched: int = 1  # how many of the inputs have the batch axis, for vmap


EVERY: dict[str, Operation] = {}


def enter(name: str, forward: Any, backward: Any, inputs: Any, *, complex: bool = False, batched: int = 1) -> None:
    """Enter an operation."""
    EVERY[name] = Operation(name, forward, backward, inputs, complex, batched)


def one(draw: Draw) -> tuple[Tensor, ...]:
    return (draw(4, 6),)


def two(draw: Draw) -> tuple[Tensor, ...]:
    return draw(4, 6), draw(4, 6)


def row(draw: Draw) -> tuple[Tensor, ...]:
    return draw(4, 6), draw(6)


def positive(draw: Draw) -> tuple[Tensor, ...]:
    return (draw(4, 6).abs() + 0.5,)


def to(x: Tensor, like: Tensor) -> Tensor:
    return x.sum_to_size(like.shape)


# One number at a time
enter("exp", torch.exp, lambda u, y, x: u * y.conj(), one, complex=True)
enter("square", torch.square, lambda u, y, x: 2 * u * x.conj(), one, complex=True)
enter("reciprocal", lambda x: 1 / (x + 3), lambda u, y, x: -u * (y * y).conj(), one, complex=True)
enter("sin", torch.sin, lambda u, y, x: u * x.cos().conj(), one, complex=True)
enter("tanh", torch.tanh, lambda u, y, x: u * (1 - y * y), one)
enter("sigmoid", torch.sigmoid, lambda u, y, x: u * y * (1 - y), one)
enter("sqrt", torch.sqrt, lambda u, y, x: u / (2 * y), positive)
enter("log", torch.log, lambda u, y, x: u / x, positive)
enter("softplus", F.softplus, lambda u, y, x: u * x.sigmoid(), one)
enter("silu", lambda x: x * x.sigmoid(), lambda u, y, x: u * x.sigmoid() * (1 + x * (1 - x.sigmoid())), one)
enter(
    "gelu",
    F.gelu,
    lambda u, y, x: u * ((1 + torch.erf(x / math.sqrt(2))) / 2 + x * torch.exp(-x * x / 2) / math.sqrt(2 * math.pi)),
    one,
)
enter("relu", torch.relu, lambda u, y, x: u * (x > 0), one)
enter("leaky relu", lambda x: torch.where(x > 0, x, 0.1 * x), lambda u, y, x: torch.where(x > 0, u, 0.1 * u), one)
enter("clamp", lambda x: x.clamp(-1, 1), lambda u, y, x: u * ((x > -1) & (x < 1)), one)

# Two
enter("mul", torch.mul, lambda u, y, a, b: (u * b.conj(), u * a.conj()), two, complex=True, batched=2)
enter("div", lambda a, b: a / (b * b + 1), lambda u, y, a, b: (u / (b * b + 1), -2 * u * y * b / (b * b + 1)), two,
      batched=2)  # fmt: skip
enter("add a row", torch.add, lambda u, y, a, b: (u, to(u, b)), row, complex=True)
enter("scale by a row", torch.mul, lambda u, y, a, b: (u * b, to(u * a, b)), row)
enter(
    "mm", torch.matmul, lambda u, y, a, b: (u @ b.mH, a.mH @ u), lambda draw: (draw(4, 5), draw(5, 3)), complex=True,
    batched=0,
)  # fmt: skip
enter(
    "linear", lambda x, w, b: F.linear(x, w, b), lambda u, y, x, w, b: (u @ w, u.mT @ x, u.sum(0)),
    lambda draw: (draw(7, 5), draw(3, 5), draw(3)), batched=0,
)  # fmt: skip
enter("outer", torch.outer, lambda u, y, a, b: (u @ b, u.mT @ a), lambda draw: (draw(4), draw(5)), batched=0)
enter(
    "gated", lambda a, b: a * torch.sigmoid(b),
    lambda u, y, a, b: (u * b.sigmoid(), u * a * b.sigmoid() * (1 - b.sigmoid())), two, batched=2,
)  # fmt: skip

# Along an axis
enter("softmax", lambda x: x.softmax(-1), lambda u, y, x: y * (u - (u * y).sum(-1, keepdim=True)), one)
enter("log softmax", lambda x: x.log_softmax(-1), lambda u, y, x: u - y.exp() * u.sum(-1, keepdim=True), one)
enter("logsumexp", lambda x: x.logsumexp(-1), lambda u, y, x: u.unsqueeze(-1) * (x - y.unsqueeze(-1)).exp(), one)
enter("mean", lambda x: x.mean(-1), lambda u, y, x: u.unsqueeze(-1).expand_as(x) / x.shape[-1], one, complex=True)
enter("cumsum", lambda x: x.cumsum(-1), lambda u, y, x: u.flip(-1).cumsum(-1).flip(-1), one, complex=True)
enter("roll", lambda x: x.roll(2, -1), lambda u, y, x: u.roll(-2, -1), one, complex=True)
enter(
    "maximum", lambda x: x.amax(-1),
    lambda u, y, x: u.unsqueeze(-1) * (x == y.unsqueeze(-1)), one,
)  # fmt: skip


def _length(x: Tensor) -> Tensor:
    return (x * x).sum(-1, keepdim=True).sqrt()


def _unit(u: Tensor, y: Tensor, x: Tensor) -> Tensor:
    return (u - y * (u * y).sum(-1, keepdim=True)) / _length(x)


enter("to length 1", lambda x: x / _length(x), _unit, one)


# Normalisation
def _scale(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    return (x.var(axes, unbiased=False, keepdim=True) + 1e-5).rsqrt()


def _standard(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    return (x - x.mean(axes, keepdim=True)) * _scale(x, axes)


def _of_standard(g: Tensor, x: Tensor, axes: tuple[int, ...]) -> Tensor:
    h = _standard(x, axes)
    return _scale(x, axes) * (g - g.mean(axes, keepdim=True) - h * (g * h).mean(axes, keepdim=True))


def _layer(u: Tensor, y: Tensor, x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, ...]:
    return _of_standard(u * w, x, (-1,)), to(u * _standard(x, (-1,)), w), to(u, b)


def _rms(x: Tensor) -> Tensor:
    return ((x * x).mean(-1, keepdim=True) + 1e-5).rsqrt()


def _of_rms(u: Tensor, y: Tensor, x: Tensor, w: Tensor) -> tuple[Tensor, ...]:
    r, g = _rms(x), u * w
    return r * g - x * r**3 * (g * x).mean(-1, keepdim=True), to(u * x * r, w)


def affine(draw: Draw) -> tuple[Tensor, ...]:
    return draw(5, 8), draw(8), draw(8)


enter("layer norm", lambda x, w, b: _standard(x, (-1,)) * w + b, _layer, affine)
enter("rms norm", lambda x, w: x * _rms(x) * w, _of_rms, lambda draw: (draw(5, 8), draw(8)))
enter(
    "batch norm", lambda x: _standard(x, (0, 2)), lambda u, y, x: _of_standard(u, x, (0, 2)),
    lambda draw: (draw(4, 3, 5),), batched=0,
)  # fmt: skip


# Attention, convolution, pooling
def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1) @ v


def _attention(u: Tensor, y: Tensor, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
    scale = 1 / math.sqrt(q.shape[-1])
    p = (q @ k.mT * scale).softmax(-1)
    dp = u @ v.mT
    ds = p * (dp - (dp * p).sum(-1, keepdim=True)) * scale
    return ds @ k, ds.mT @ q, p.mT @ u


enter("attention", _attend, _attention, lambda draw: (draw(2, 4, 3), draw(2, 5, 3), draw(2, 5, 3)), batched=3)
enter(
    "conv2d", lambda x, w: F.conv2d(x, w, padding=1),
    lambda u, y, x, w: (
        torch.nn.grad.conv2d_input(x.shape, w, u, padding=1), torch.nn.grad.conv2d_weight(x, w.shape, u, padding=1)
    ),
    lambda draw: (draw(2, 2, 5, 5), draw(3, 2, 3, 3)), batched=0,
)  # fmt: skip
enter(
    "average of pairs", lambda x: (x[..., ::2] + x[..., 1::2]) / 2,
    lambda u, y, x: u.repeat_interleave(2, -1) / 2, one,
)  # fmt: skip


def _rotated(x: Tensor, turn: int = 1) -> Tensor:
    angle = torch.arange(x.shape[-1] // 2, dtype=x.dtype, device=x.device) + 0.3
    a, b = x.chunk(2, -1)
    return torch.cat([a * angle.cos() - turn * b * angle.sin(), turn * a * angle.sin() + b * angle.cos()], -1)


enter("rotary", _rotated, lambda u, y, x: _rotated(u, -1), one)


# Losses
def _targets(x: Tensor) -> Tensor:
    return torch.arange(x.shape[0]) * 7 % x.shape[1]


def _cross_entropy(u: Tensor, y: Tensor, x: Tensor) -> Tensor:
    return u * (x.softmax(-1) - F.one_hot(_targets(x), x.shape[1]).to(x.dtype)) / x.shape[0]


enter("cross entropy", lambda x: F.cross_entropy(x, _targets(x)), _cross_entropy, one, batched=0)
enter("mse", lambda a, b: ((a - b) ** 2).mean(), lambda u, y, a, b: (2 * u * (a - b) / a.numel(),
      -2 * u * (a - b) / a.numel()), two, batched=2)  # fmt: skip
enter("smooth l1", lambda a, b: F.smooth_l1_loss(a, b), lambda u, y, a, b: (u * (a - b).clamp(-1, 1) / a.numel(),
      -u * (a - b).clamp(-1, 1) / a.numel()), two, batched=2)  # fmt: skip
enter(
    "cosine", lambda a, b: (a * b).sum(-1) / (_length(a) * _length(b)).squeeze(-1),
    lambda u, y, a, b: (
        u.unsqueeze(-1) * (b / (_length(a) * _length(b)) - y.unsqueeze(-1) * a / _length(a) ** 2),
        u.unsqueeze(-1) * (a / (_length(a) * _length(b)) - y.unsqueeze(-1) * b / _length(b) ** 2),
    ), two, batched=2,
)  # fmt: skip
