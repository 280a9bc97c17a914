"""How the gamma function and its derivatives come down to primitives.

By Stirling's series at x + 16, and the recurrence back from there (Abramowitz and Stegun, 6.1.40, 6.3.18, 6.4.11).
Below -8 the result is NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

aten: Any = torch.ops.aten
FAR, LOWEST = 16, -8.0
BERNOULLI = (1 / 6, -1 / 30, 1 / 42, -1 / 30, 5 / 66, -691 / 2730)


def _as_given(x: Tensor, made: Tensor) -> Tensor:
    return torch.where(x > LOWEST, made, torch.nan).to(x.dtype)


def _nearer(x: Tensor) -> list[Tensor]:
    return [x + k for k in range(FAR)]


def log_gamma(self: Tensor) -> Any:
    """ln |gamma(x)|."""
    x = self.double()
    z = x + FAR
    series = sum((b / (2 * k * (2 * k - 1)) / z ** (2 * k - 1) for k, b in enumerate(BERNOULLI, 1)), torch.zeros(()))
    far = (z - 0.5) * z.log() - z + 0.5 * math.log(2 * math.pi) + series
    return _as_given(self, far - sum(each.abs().log() for each in _nearer(x)))


def digamma(self: Tensor) -> Any:
    """The derivative of ln gamma(x)."""
    x = self.double()
    z = x + FAR
    series = sum((b / (2 * k) / z ** (2 * k) for k, b in enumerate(BERNOULLI, 1)), torch.zeros(()))
    return _as_given(self, z.log() - 0.5 / z - series - sum(each.reciprocal() for each in _nearer(x)))


def polygamma(n: int, self: Tensor) -> Any:
    """The derivative of order n + 1."""
    if n < 1:
        return digamma(self) if n == 0 else NotImplemented
    x = self.double()
    z = x + FAR
    series = math.factorial(n - 1) / z**n + math.factorial(n) / (2 * z ** (n + 1))
    for k, b in enumerate(BERNOULLI, 1):
        series = series + b * math.factorial(2 * k + n - 1) / math.factorial(2 * k) / z ** (2 * k + n)
    near = sum(math.factorial(n) / each ** (n + 1) for each in _nearer(x))
    return _as_given(self, (-1) ** (n + 1) * (series + near))


GAMMA: dict[Any, Callable[..., Any]] = {
    aten.lgamma.default: log_gamma,
    aten.digamma.default: digamma,
    aten.polygamma.default: polygamma,
}
