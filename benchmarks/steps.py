"""The training steps that are measured, as a user would write them; none knows chainrule.

Each is a `Training`: its parts lie open, because other tools want the model or the loss by itself, and calling it runs
the step. `tiny` makes the same shape of model in a size that tests can afford.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.models import Chain, Decoder, perceptron
from benchmarks.timing import Step


@dataclass(frozen=True)
class Training:
    """One training step in its parts; with an optimizer it also updates."""

    model: nn.Module
    inputs: Tensor
    targets: Tensor
    criterion: Callable[[Any, Tensor], Tensor]
    optimizer: torch.optim.Optimizer | None = None

    def __call__(self) -> Tensor:
        self.model.zero_grad()
        loss = self.loss()
        loss.backward()
        if self.optimizer is not None:
            self.optimizer.step()
        return loss

    def loss(self) -> Tensor:
        """The forward pass."""
        return self.criterion(self.model(self.inputs), self.targets)

    def updated_by(self, kind: type[torch.optim.Optimizer]) -> Self:
        """The same step with an optimizer of this kind."""
        return replace(self, optimizer=kind(self.model.parameters(), lr=1e-3))

    def on(self, device: str) -> Self:
        """The same step on another device. The model itself is moved."""
        return replace(
            self, model=self.model.to(device), inputs=self.inputs.to(device), targets=self.targets.to(device)
        )


@dataclass(frozen=True)
class Subject:
    """What a table calls a step, and what builds it: `build(tiny=True)` for the tests."""

    title: str
    build: Callable[..., Training]


def mlp(tiny: bool = False) -> Training:
    """784-512-512-10, batch 64, cross entropy."""
    torch.manual_seed(0)
    widths = (12, 8, 8, 10) if tiny else (784, 512, 512, 10)
    batch = 4 if tiny else 64
    return Training(perceptron(*widths), torch.randn(batch, widths[0]), torch.randint(10, (batch,)), _classified)


def resnet50(tiny: bool = False, batch: int = 8, side: int = 224) -> Training:
    """ResNet-50 with its 25.6 million parameters: the defaults of `transformers` are those of the paper."""
    from transformers import ResNetConfig, ResNetForImageClassification

    torch.manual_seed(0)
    config = ResNetConfig(num_labels=1000)
    if tiny:
        batch, side = 2, 32
        config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=1000)
    model = ResNetForImageClassification(config).train()
    return Training(model, torch.randn(batch, 3, side, side), torch.randint(1000, (batch,)), _classified)


def gpt2(attention: str, tiny: bool = False, batch: int = 1, length: int = 128, width: int = 768) -> Training:
    """GPT-2 small of `transformers`, in training mode: dropout draws as it does in a user's step."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(attn_implementation=attention, use_cache=False, n_embd=width)
    if tiny:
        length = 8
        config.update({"n_layer": 2, "n_embd": 16, "n_head": 2, "vocab_size": 50, "bos_token_id": 0, "eos_token_id": 0})
    model = GPT2LMHeadModel(config).train()
    return _next_token(model, model.config.vocab_size, batch, length)


def decoder(tiny: bool = False, batch: int = 1, length: int = 128, width: int = 768) -> Training:
    """GPT-2 small as one writes it by hand."""
    torch.manual_seed(0)
    model = Decoder(vocabulary=50, context=16, width=16, heads=2, depth=2) if tiny else Decoder(width=width)
    return _next_token(model, model.tokens.num_embeddings, batch, 8 if tiny else length)


def chain(operations: int = 1000, tiny: bool = False) -> Training:
    """A chain of tiny elementwise operations."""
    scale, unused = torch.tensor(1.01), torch.zeros(())
    return Training(Chain(20 if tiny else operations), scale, unused, lambda output, _: output.sum())


def worked_example() -> Step:
    """The step of `chainrule demo`, with Adam."""
    from chainrule.examples.worked_example import build, train_step

    model, loss, optimizer = build()
    return lambda: train_step(model, loss, optimizer)


SUBJECTS = {
    "mlp": Subject("MLP 784-512-512-10, batch 64", mlp),
    "chain": Subject("chain of 1,000 tiny operations", chain),
    "resnet50": Subject("ResNet-50, batch 8 at 224", resnet50),
    "gpt2-eager": Subject("GPT-2 small, 1 x 128 tokens, eager", partial(gpt2, "eager")),
    "gpt2-sdpa": Subject("GPT-2 small, 1 x 128 tokens, sdpa", partial(gpt2, "sdpa")),
    "decoder": Subject("GPT-2 small by hand, 1 x 128 tokens", decoder),
}


def _next_token(model: nn.Module, vocabulary: int, batch: int, length: int) -> Training:
    tokens = torch.randint(vocabulary, (batch, length + 1))
    return Training(model, tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), _classified)


def _classified(output: Any, targets: Tensor) -> Tensor:
    """Cross entropy over the last dimension; the models of `transformers` wrap their output."""
    logits = getattr(output, "logits", output)
    return F.cross_entropy(logits.flatten(0, -2), targets.flatten())
