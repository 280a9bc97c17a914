"""One recorded training step of a small network that hypothesis chooses."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn

import chainrule


class Wrong(torch.autograd.Function):
    """A square whose backward is wrong by a factor."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, upstream):
        (x,) = ctx.saved_tensors
        return 3 * x * upstream


class Squared(nn.Module):
    """A layer whose gradient is not the derivative."""

    def forward(self, x: Tensor) -> Tensor:
        return Wrong.apply(x)


class Residual(nn.Module):
    """A linear layer and what it was given."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.inner(x))


class Convolution(nn.Module):
    """A convolution along the features."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Conv1d(1, 2, 2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.unsqueeze(1)).amax(1)[:, :-1]


LAYERS = {
    "linear": lambda width: nn.Linear(width, width),
    "without a bias": lambda width: nn.Linear(width, width, bias=False),
    "relu": lambda width: nn.ReLU(),
    "gelu": lambda width: nn.GELU(),
    "softmax": lambda width: nn.Softmax(dim=-1),
    "layer norm": nn.LayerNorm,
    "batch norm": nn.BatchNorm1d,
    "residual": Residual,
    "convolution": lambda width: Convolution(),
    "dropout": lambda width: nn.Dropout(0.25),
    "wrong": lambda width: Squared(),
}
OPTIMIZERS = {
    "": lambda parameters: None,
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.01),
}


@dataclass(frozen=True)
class Network:
    """What decides a step; hypothesis prints it where a test fails."""

    layers: tuple[str, ...]
    width: int
    batch: int
    optimizer: str
    seed: int

    def recorded(self) -> chainrule.Recording:
        """The step, recorded."""
        torch.manual_seed(self.seed)
        model = nn.Sequential(nn.Linear(2, self.width), *(LAYERS[layer](self.width) for layer in self.layers))
        optimizer = OPTIMIZERS[self.optimizer](model.parameters())
        x, y = torch.randn(self.batch, 2), torch.randn(self.batch, self.width)
        with chainrule.record() as recording:
            loss = F.mse_loss(model(x), y)
            loss.backward()
            if optimizer is not None:
                optimizer.step()
        return recording


networks = st.builds(
    Network,
    layers=st.lists(st.sampled_from(sorted(LAYERS)), max_size=3).map(tuple),
    width=st.integers(2, 3),
    batch=st.integers(2, 3),
    optimizer=st.sampled_from(sorted(OPTIMIZERS)),
    seed=st.integers(0, 99),
)
