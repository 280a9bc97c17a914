"""The training steps that are measured, as a user would write them; none knows chainrule."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.timing import Step

type_of_optimizer = type[torch.optim.Optimizer]


def perceptron(optimizer: type_of_optimizer | None) -> Step:
    """784-512-512-10, batch 64, cross entropy."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))
    inputs, targets = torch.randn(64, 784), torch.randint(10, (64,))
    update = None if optimizer is None else optimizer(model.parameters(), lr=1e-3)

    def step() -> Tensor:
        model.zero_grad()
        loss = F.cross_entropy(model(inputs), targets)
        loss.backward()
        if update is not None:
            update.step()
        return loss

    return step


def chain(operations: int) -> Step:
    """So many elementwise operations one after the other on eight numbers: nothing but overhead."""
    start = torch.linspace(-1, 1, 8, requires_grad=True)

    def step() -> Tensor:
        start.grad = None
        x: Tensor = start
        for _ in range(operations // 2):
            x = torch.tanh(x * 1.01)
        loss = x.sum()
        loss.backward()
        return loss

    return step


class Block(nn.Module):
    """Pre-norm attention and a feed-forward layer, as in GPT-2."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attend, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.rise, self.fall = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.attend(self.norm1(x)).chunk(3, -1)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.project(mixed.transpose(1, 2).flatten(2))
        return x + self.fall(F.gelu(self.rise(self.norm2(x)), approximate="tanh"))


class Transformer(nn.Module):
    """A decoder of GPT-2 small's size, with the embedding tied to the output."""

    def __init__(
        self, vocabulary: int = 50257, context: int = 1024, width: int = 768, heads: int = 12, depth: int = 12
    ):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(context, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens) + self.positions(torch.arange(tokens.shape[1]))
        for block in self.blocks:
            x = block(x)
        return F.linear(self.norm(x), self.tokens.weight)


def transformer() -> Step:
    """GPT-2 small, 1 x 128 tokens, forward and backward."""
    torch.manual_seed(0)
    model = Transformer()
    tokens = torch.randint(50257, (1, 129))

    def step() -> Tensor:
        model.zero_grad()
        loss = F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        return loss

    return step


def worked_example() -> Step:
    """The step of `chainrule demo`, with Adam."""
    from chainrule.examples.worked_example import build, train_step

    model, loss, optimizer = build()
    return lambda: train_step(model, loss, optimizer)
