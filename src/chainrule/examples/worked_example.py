"""A network of three layers on two samples, small enough to work out every number by hand.

Samples are rows, features are columns; a row of a weight is a neuron. One step with Adam, or as the options say:

    python worked_example.py --optimizer sgd --steps 10
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

X = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
Y = torch.tensor([[0.0], [1.0]])

OPTIMIZERS = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}
LEARNING_RATE = 0.01

Loss = Callable[[Tensor, Tensor], Tensor]


def linear(weight: list[list[float]], bias: list[float]) -> nn.Linear:
    """A linear layer that begins with these numbers; `weight` is (out_features, in_features)."""
    layer = nn.Linear(len(weight[0]), len(weight))
    layer.weight = nn.Parameter(torch.tensor(weight))
    layer.bias = nn.Parameter(torch.tensor(bias))
    return layer


class Network(nn.Module):
    """Features (batch, 2) to a probability (batch, 1), or to its logit where the loss takes the sigmoid."""

    def __init__(self, logits: bool = False) -> None:
        super().__init__()
        self.logits = logits
        self.linear1 = linear([[-1.0, 2.0], [3.0, 0.5], [-0.1, -4.0]], [1.0, -2.0, 0.3])
        self.linear2 = linear([[0.5, 1.0, -2.0], [0.7, 0.1, 0.3]], [-4.0, 5.0])
        self.linear3 = linear([[0.5, -0.3]], [0.1])

    def forward(self, X: Tensor) -> Tensor:
        """Three affine maps, each with its nonlinearity."""
        Z1 = self.linear1(X)
        A1 = F.relu(Z1)
        Z2 = self.linear2(A1)
        A2 = F.relu(Z2)
        Z3: Tensor = self.linear3(A2)
        if self.logits:
            return Z3
        A3 = torch.sigmoid(Z3)
        return A3  # noqa: RET504 (a name for the page)


def build(optimizer: str = "adam", logits: bool = False) -> tuple[Network, Loss, torch.optim.Optimizer]:
    """The network with the loss that fits it, and an optimizer over its parameters."""
    model = Network(logits)
    loss = F.binary_cross_entropy_with_logits if logits else F.binary_cross_entropy
    return model, loss, OPTIMIZERS[optimizer](model.parameters(), lr=LEARNING_RATE)


def train_step(model: Network, loss: Loss, optimizer: torch.optim.Optimizer) -> Tensor:
    """One step on both samples; gives the cost, the mean binary cross-entropy, before it."""
    optimizer.zero_grad()
    output = model(X)
    cost = loss(output, Y)
    cost.backward()
    optimizer.step()
    return cost


def main() -> None:
    """Train from the command line."""
    parser = argparse.ArgumentParser(description="Train a small network on two samples.")
    parser.add_argument("--optimizer", choices=sorted(OPTIMIZERS), default="adam")
    parser.add_argument("--logits", action="store_true", help="leave the sigmoid to the loss")
    parser.add_argument("--steps", type=int, default=1)
    options = parser.parse_args()

    model, loss, optimizer = build(options.optimizer, options.logits)
    for step in range(1, options.steps + 1):
        cost = train_step(model, loss, optimizer)
        print(f"step {step}: cost {cost.item():.4f}")


if __name__ == "__main__":
    main()
