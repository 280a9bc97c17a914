"""What the scripts of the bed share: the digits of scikit-learn in batches, and small networks."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import count, pairwise

import torch
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
