"""Small steps of several architectures, each with its tensors, so that a test can change a number and run it again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import chainrule


@dataclass
class Trained:
    """A model with the tensors that it is given, its loss, and how to make its optimizer."""

    model: nn.Module
    given: list[Tensor]
    loss: Callable[..., Tensor]
    optimizer: Callable[[Any], torch.optim.Optimizer]

    def record(self) -> chainrule.Recording:
        """One step from the start, whatever ran before: nothing is left changed."""
        state = {name: each.clone() for name, each in self.model.state_dict().items()}
        optimizer = self.optimizer(self.model.parameters())
        torch.manual_seed(5)
        with chainrule.record() as recording:
            self.loss(self.model, *self.given).backward()
            optimizer.step()
        recording.graph  # noqa: B018 (lowered before the parameters are put back)
        self.model.load_state_dict(state)
        self.model.zero_grad()
        return recording


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Embedding(5, 4), nn.LayerNorm(4)
        self.attention, self.head = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 5)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        y = self.norm(x)
        return self.head(F.gelu(x + self.attention(y, y, y, need_weights=False)[0]))


class Last(nn.Module):
    def __init__(self, kind: type[nn.RNNBase], **options: Any) -> None:
        super().__init__()
        self.rnn = kind(3, 2, batch_first=True, **options)
        self.head = nn.Linear(4 if options.get("bidirectional") else 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][:, -1])


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


def adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=0.01)


def mlp() -> Trained:
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2), nn.Sigmoid(), nn.Linear(2, 1))
    return Trained(model, [torch.randn(2, 2), torch.randn(2, 1)], lambda m, x, y: F.mse_loss(m(x), y), adam)


def cnn() -> Trained:
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(18, 3)
    )
    given = [torch.randn(2, 1, 6, 6), torch.tensor([0, 2])]
    return Trained(model, given, lambda m, x, y: F.cross_entropy(m(x), y), sgd)


def attention() -> Trained:
    given = [torch.tensor([[0, 1, 4], [2, 2, 3]]), torch.tensor([[1, 4, 0], [2, 3, 1]])]
    return Trained(
        Attention(), given, lambda m, x, y: F.cross_entropy(m(x).flatten(0, 1), y.flatten()), torch.optim.AdamW
    )


def lstm() -> Trained:
    return Trained(
        Last(nn.LSTM, bidirectional=True), [torch.randn(2, 3, 3)], lambda m, x: m(x).pow(2).mean(), torch.optim.RMSprop
    )


def gru() -> Trained:
    return Trained(Last(nn.GRU), [torch.randn(2, 3, 3)], lambda m, x: m(x).pow(2).mean(), torch.optim.Adagrad)


def rnn() -> Trained:
    return Trained(Last(nn.RNN), [torch.randn(2, 3, 3)], lambda m, x: m(x).pow(2).mean(), torch.optim.Adadelta)


def autoencoder() -> Trained:
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3, stride=2, padding=1),
        nn.GELU(),
        nn.ConvTranspose2d(2, 1, 4, stride=2, padding=1),
        nn.Sigmoid(),
    )
    return Trained(model, [torch.rand(1, 1, 6, 6)], lambda m, x: F.binary_cross_entropy(m(x), x), torch.optim.Adamax)


def groups_and_dropout() -> Trained:
    model = nn.Sequential(
        nn.Conv1d(2, 4, 3, groups=2), nn.GroupNorm(2, 4), nn.SiLU(), nn.AvgPool1d(2), nn.Flatten(), nn.Dropout(0.5),
        nn.Linear(8, 3),
    )  # fmt: skip
    given = [torch.randn(2, 2, 6), torch.tensor([0, 2])]
    return Trained(model, given, lambda m, x, y: F.cross_entropy(m(x), y, label_smoothing=0.1), adam)


def double() -> Trained:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()

    def loss(m: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return F.huber_loss(m(x), y) + 0.1 * sum(each.norm() for each in m.parameters())

    return Trained(model, [torch.randn(3, 3).double(), torch.randn(3, 1).double()], loss, sgd)


def bfloat16() -> Trained:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).bfloat16()
    given = [torch.randn(3, 3).bfloat16(), torch.tensor([0, 1, 1])]
    return Trained(model, given, lambda m, x, y: F.cross_entropy(m(x), y), sgd)


def in_place() -> Trained:
    """Writes to a whole tensor, in place."""

    def loss(m: nn.Module, x: Tensor) -> Tensor:
        y = m(x).mul_(2).sub_(x[:, :2])
        return F.relu_(y).sum() + y.cumsum(0).prod(1).mean()

    return Trained(nn.Linear(3, 2), [torch.randn(3, 3)], loss, sgd)


def parts() -> Trained:
    """Writes to parts of a tensor, in place."""

    def loss(m: nn.Module, x: Tensor) -> Tensor:
        states = torch.zeros(4, 3, 2)
        for t in range(3):
            states[t + 1] = torch.tanh(m(x) + states[t].clone())
        y = states[1:] * 1.5
        y[:, 0].mul_(x[0, :2])
        y.transpose(0, 2)[1].clamp_(-0.4, 0.4)
        y.view(-1)[3:5] = 2 * m.bias
        return y.square().mean()

    return Trained(nn.Linear(3, 2), [torch.randn(3, 3)], loss, sgd)


ALL = (mlp, cnn, attention, lstm, gru, rnn, autoencoder, groups_and_dropout, double, bfloat16, in_place, parts)
STEPS = {each.__name__: each for each in ALL}
