"""The recorded steps whose output is kept. Their numbers are small fractions of powers of 2, in float64.

So are most results, and the rest is written with few digits: what is printed does not hang on the processor's rounding.
No gradient is 0 by cancelling, as that of a bias before a norm, which rounding alone would fill with numbers.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import chainrule
from chainrule.examples import worked_example


def fractions(*shape: int, shift: int = 0) -> Tensor:
    """Eighths between -1 and 1, without a pattern."""
    places = torch.arange(math.prod(shape)) + 5 * shift
    return ((places**3 + 4 * places) % 17 - 8).reshape(shape).double() / 8


def filled(model: nn.Module) -> nn.Module:
    """A model in float64 whose weights are fractions; what a norm begins with stays."""
    model.double()
    with torch.no_grad():
        for shift, (name, parameter) in enumerate(model.named_parameters()):
            if "norm" not in name:
                parameter.copy_(fractions(*parameter.shape, shift=shift))
    return model


def mlp() -> chainrule.Recording:
    """The worked example, of `chainrule demo`."""
    with chainrule.record(namespace=vars(worked_example)) as recording:
        worked_example.train_step(*worked_example.build())
    return recording


class Convolutional(nn.Module):
    """One convolution with batch norm, and a classifier of two classes."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(1, 2, 2, bias=False)
        self.norm = nn.BatchNorm2d(2)
        self.classifier = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        features = F.relu(self.norm(self.convolution(x)))
        pooled = F.max_pool2d(features, 2).flatten(1)
        return self.classifier(pooled)


def cnn() -> chainrule.Recording:
    """A convolutional network with SGD and momentum."""
    model = filled(Convolutional())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.125, momentum=0.5)
    images, labels = fractions(2, 1, 3, 3, shift=3), torch.tensor([1, 0])
    with chainrule.record() as recording:
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
    return recording


class Block(nn.Module):
    """Attention of one head over normalised tokens, beside a residual connection; a linear layer tells the classes."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(3)
        self.queries, self.keys = nn.Linear(3, 2, bias=False), nn.Linear(3, 2, bias=False)
        self.values = nn.Linear(3, 3, bias=False)
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        scores = self.queries(normed) @ self.keys(normed).T / 2
        attended = torch.softmax(scores, dim=-1) @ self.values(normed)
        return self.head(x + attended)


def block() -> chainrule.Recording:
    """A transformer block with SGD and weight decay."""
    model = filled(Block())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.125, weight_decay=0.25)
    tokens, labels = fractions(2, 3), torch.tensor([1, 0])
    with chainrule.record() as recording:
        loss = F.cross_entropy(model(tokens), labels)
        loss.backward()
        optimizer.step()
    return recording


STEPS = {"mlp": mlp, "cnn": cnn, "block": block}
