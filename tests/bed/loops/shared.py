"""What the loops share: the digits of scikit-learn in batches, small networks, and the usual loop."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from functools import cache
from itertools import count, pairwise
from typing import Any

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from tests.seeds import SHIFT


@cache
def digits() -> tuple[Tensor, Tensor]:
    """1797 pictures of 8 x 8, as rows of mean 0 and deviation 1 over all, and what they show."""
    pictures, labels = load_digits(return_X_y=True)
    x = torch.tensor(pictures, dtype=torch.float32)
    return (x - x.mean()) / x.std(), torch.tensor(labels)


def batches(size: int = 32, images: bool = False) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of the digits without end, shuffled anew each epoch."""
    x, y = digits()
    x = x.reshape(-1, 1, 8, 8) if images else x
    for _ in count():
        order = torch.randperm(len(x))
        for chosen in order.split(size)[:-1]:
            yield x[chosen], y[chosen]


def points(size: int = 32, features: int = 8) -> Iterator[tuple[Tensor, Tensor]]:
    """A regression without end: a smooth function of normal points, with a little noise. Targets have one column."""
    generator = torch.Generator().manual_seed(1 + SHIFT)
    w = torch.randn(features, 1, generator=generator) / features**0.5
    while True:
        x = torch.randn(size, features, generator=generator)
        yield x, torch.sin(x @ w) + 0.5 * (x @ w) + 0.05 * torch.randn(size, 1, generator=generator)


def mlp(*sizes: int, act: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """Linear layers with a nonlinearity between them."""
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(sizes):
        layers += [nn.Linear(fan_in, fan_out), act()]
    return nn.Sequential(*layers[:-1])


def cnn(norm: bool = True) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8) if norm else nn.Identity(), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16) if norm else nn.Identity(), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10),
    )  # fmt: skip


def train(
    model: nn.Module,
    data: Iterator[tuple[Tensor, Tensor]],
    optimizer: torch.optim.Optimizer | None = None,
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    before_step: Callable[[int], Any] = lambda step: None,
    clear: bool = True,
) -> Iterator[Any]:
    """The usual loop; `before_step` runs between backward and the optimizer's step."""
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.05)
    yield model
    for step, (x, y) in enumerate(data):
        if clear:
            optimizer.zero_grad()
        loss(model(x), y).backward()
        before_step(step)
        optimizer.step()
        yield


def classify(model: nn.Module, optimizer: torch.optim.Optimizer, data: Any, **options: Any) -> Any:
    """The usual loop, with what the options ask for."""
    warm, clip, dtype = (options.get(name) for name in ("warm", "clip", "dtype"))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: min(1.0, s / warm) if warm else 1.0)
    yield model
    for x, y in data:
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=dtype or torch.bfloat16, enabled=dtype is not None):
            output = model(x)
            loss = F.cross_entropy(output, y) if y.dim() == 1 else F.mse_loss(output, y)
        loss.backward()
        if clip:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        schedule.step()
        yield


def column(loss: Callable[..., Tensor], **options: Any) -> Callable[[Tensor, Tensor], Tensor]:
    """A loss of two classes for one logit: whether the digit is 5 or more."""
    return lambda output, y: loss(output, (y >= 5).float().unsqueeze(1), **options)


def quietly(loss: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """PyTorch warns of some of these shapes, and nobody reads it."""

    def run(output: Tensor, y: Tensor) -> Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return loss(output, y)

    return run
