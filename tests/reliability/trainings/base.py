"""What a training of the matrix is: an ordinary step, and everything that is compared after some of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

Step = Callable[[int], Any]


@dataclass
class Training:
    """A training that anybody could have written: `step(i)` runs step i and may return its loss (or several).

    Everything in `holds` (modules, optimizers, schedulers, tensors, plain containers) is compared afterwards.
    """

    step: Step
    holds: tuple[Any, ...] = ()
    steps: int = 4
    end: Callable[[], None] = field(default=lambda: None)


TRAININGS: dict[str, Callable[[], Training]] = {}


def training(make: Callable[[], Training]) -> Callable[[], Training]:
    """Enter a training under the name of its function."""
    return entered(make.__name__, make)


def entered(name: str, make: Callable[[], Training]) -> Callable[[], Training]:
    """Enter a training under a name, which must be new."""
    assert name not in TRAININGS, name
    TRAININGS[name] = make
    return make


def mlp(*, dropout: float = 0.0) -> nn.Sequential:
    """The smallest model with a hidden layer worth the name."""
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(dropout), nn.Linear(8, 3))


def batch(rows: int = 8) -> tuple[Tensor, Tensor]:
    """Inputs for `mlp` and their labels."""
    return torch.randn(rows, 6), torch.randint(3, (rows,))


def plain(model: nn.Module, loss: Callable[[int], Tensor], optimizer: Any = None, *more: Any) -> Training:
    """Zero, forward, backward, step."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05) if optimizer is None else optimizer

    def step(number: int) -> Tensor:
        optimizer.zero_grad()
        value = loss(number)
        value.backward()
        optimizer.step()
        return value

    return Training(step, (model, optimizer, *more))
