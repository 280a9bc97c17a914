"""The activations that students take for one another, with what they write for their derivatives."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

Slope = Callable[[Tensor, Tensor], Tensor]
"""A derivative from (the argument x, the result y)."""


@dataclass(frozen=True)
class Activation:
    """An activation: what it is called, its derivative in words, both as functions, and wrong forms of the derivative.

    Each of the `forms` has its cost, the name of the mistake, and a template with {x} and {y} for the names of argument
    and result.
    """

    called: str
    derivative: str
    function: Callable[[Tensor], Tensor]
    slope: Slope
    forms: tuple[tuple[float, str, str, Slope], ...] = ()

    def wrong(self, x: str, y: str) -> Iterator[tuple[float, str, str, Slope]]:
        """The wrong forms, with the names put in."""
        yield 1.35, "wrong value", f"{y}, the function itself", lambda _, out: out
        for cost, name, template, slope in self.forms:
            yield cost, name, template.format(x=x, y=y), slope


ACTIVATIONS = {
    "relu": Activation(
        "ReLU", "1 above 0 and else 0", torch.relu, lambda x, y: (x > 0).to(x.dtype),
        ((1.35, "wrong value", "1 where {x} is below 0, and else 0: the wrong way round",
          lambda x, y: (x <= 0).to(x.dtype)),
         (1.21, "kink", "1 also where {x} = 0, where PyTorch takes 0", lambda x, y: (x >= 0).to(x.dtype)),
         (1.4, "wrong value", "{x}", lambda x, y: x)),
    ),
    "sigmoid": Activation(
        "the sigmoid", "s(1 - s)", torch.sigmoid, lambda x, y: torch.sigmoid(x) * (1 - torch.sigmoid(x)),
        ((1.2, "wrong value", "{x}(1 - {x}), with {x} where {y} belongs", lambda x, y: x * (1 - x)),
         (1.2, "wrong value", "s(1 - s) at {y}, the result, where it belongs at {x}",
          lambda x, y: torch.sigmoid(y) * (1 - torch.sigmoid(y))),
         (1.25, "wrong value", "1 - {y}, with the factor {y} left out", lambda x, y: 1 - y),
         (1.3, "wrong value", "{y}(1 + {y})", lambda x, y: y * (1 + y)),
         (1.3, "wrong activation", "1 - {y}^2, which is that of tanh", lambda x, y: 1 - y * y)),
    ),
    "tanh": Activation(
        "tanh", "1 - t^2", torch.tanh, lambda x, y: 1 - torch.tanh(x) ** 2,
        ((1.2, "wrong value", "1 - {x}^2, with {x} where {y} belongs", lambda x, y: 1 - x * x),
         (1.2, "wrong value", "1 - t^2 at {y}, the result, where it belongs at {x}",
          lambda x, y: 1 - torch.tanh(y) ** 2),
         (1.2, "wrong value", "1 - {y}, with the square left out", lambda x, y: 1 - y),
         (1.3, "wrong value", "1 + {y}^2", lambda x, y: 1 + y * y),
         (1.3, "wrong activation", "{y}(1 - {y}), which is that of the sigmoid", lambda x, y: y * (1 - y))),
    ),
}  # fmt: skip
"""By the name of the rule."""


def called(rule: str) -> str:
    """What a sentence calls the activation of a rule; "" for another operation."""
    return ACTIVATIONS[rule].called if rule in ACTIVATIONS else ""
