"""Networks of the loops: residual, recurrent, of attention, variational."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.bed.loops.shared import mlp


class Residual(nn.Module):
    """Blocks whose last norm begins at 0, as is usual for residual networks."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 12, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(12, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU(),
                          nn.Conv2d(12, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)) for _ in range(3)
        )  # fmt: skip
        for block in self.blocks:
            nn.init.zeros_(block[4].weight)
        self.head = nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        for block in self.blocks:
            x = F.relu(x + block(x))
        return self.head(x.mean((2, 3)))


class Rows(nn.Module):
    """Reads a picture row by row."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.rnn, self.out = kind(8, 32, batch_first=True), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.rnn(x.reshape(-1, 8, 8))[0][:, -1])


class Attention(nn.Module):
    """Attention written out, so that its softmax is seen."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        return self.out((q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])).softmax(-1) @ v)


class Transformer(nn.Module):
    def __init__(self, width: int = 32, layers: int = 2) -> None:
        super().__init__()
        self.embed, self.position = nn.Linear(8, width), nn.Parameter(0.02 * torch.randn(8, width))
        self.attentions = nn.ModuleList(Attention(width) for _ in range(layers))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2 * layers))
        self.mlps = nn.ModuleList(mlp(width, 2 * width, width, act=nn.GELU) for _ in range(layers))
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x.reshape(-1, 8, 8)) + self.position
        for index, (attention, block) in enumerate(zip(self.attentions, self.mlps, strict=True)):
            x = x + attention(self.norms[2 * index](x))
            x = x + block(self.norms[2 * index + 1](x))
        return self.head(x.mean(1))


TEXT = (
    "the quick brown fox jumps over the lazy dog while the small cat sleeps on the warm red mat and dreams of fish. "
    * 4
)


class Variational(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encode, self.mean, self.spread = nn.Linear(64, 48), nn.Linear(48, 4), nn.Linear(48, 4)
        self.decode = mlp(4, 48, 64)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        hidden = F.relu(self.encode(x))
        mean, spread = self.mean(hidden), self.spread(hidden)
        return self.decode(mean + torch.randn_like(mean) * (spread / 2).exp()), mean, spread
