"""Faults of models: layers, modes, frozen parts, schedules, attention and padding."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import lr_scheduler

from tests.bed.loops import fault
from tests.bed.loops.shared import batches, mlp, train

# -- layers ------------------------------------------------------------------------------------------------------------


@fault("no-activation", 3)
def linear_layers_in_a_row():
    return train(nn.Sequential(nn.Linear(64, 64), nn.Dropout(0.2), nn.Linear(64, 10)), batches())


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter, self.norm, self.head = nn.Linear(64, 32), nn.LayerNorm(32), nn.Linear(32, 10)
        self.up, self.down = nn.Linear(32, 96), nn.Linear(96, 32)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        return self.head(self.norm(x + self.down(self.up(self.norm(x)))))


@fault("no-activation", 3)
def block_of_a_transformer_without_its_activation():
    return train(Residual(), batches())


# -- modes -------------------------------------------------------------------------------------------------------------


def normed() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Dropout(0.3),
        nn.Linear(32, 10),
    )  # fmt: skip


@fault("eval-while-training")
def evaluation_that_no_train_follows():
    model = normed()
    return train(model, batches(), before_step=lambda step: model.eval() if step == 3 else None)


@fault("eval-while-training", 5)
def dropout_that_was_never_turned_on():
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Dropout(0.3), nn.Linear(32, 10)).eval()
    return train(model, batches())


def evaluated(model: nn.Module, between: Any) -> Iterator[Any]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    yield model
    for step, (x, y) in enumerate(batches()):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        if step % 5 == 4:
            with between():
                for part in x.chunk(3):
                    model(part)
        yield


@fault("train-while-evaluating")
def evaluation_without_eval():
    return evaluated(normed(), torch.no_grad)


@fault("train-while-evaluating")
def evaluation_of_a_dropout_without_eval():
    return evaluated(nn.Sequential(nn.Linear(64, 32), nn.Dropout(0.5), nn.Linear(32, 10)), torch.inference_mode)


class Dropping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(64, 32), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.dropout(self.first(x).relu(), 0.3))


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter, self.head = nn.Linear(8, 16), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x.reshape(-1, 1, 8, 8))
        return self.head(F.scaled_dot_product_attention(x, x, x, dropout_p=0.2).mean((1, 2)))


@fault("dropout-in-eval", 3)
def dropout_of_a_function():
    return train(Dropping().eval(), batches())


@fault("dropout-in-eval", 3)
def dropout_of_an_attention():
    return train(Attending().eval(), batches())


# -- frozen parts ------------------------------------------------------------------------------------------------------


class Deep(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter, self.head = nn.Linear(64, 16), nn.Linear(16, 10)
        self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(12))

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        for layer in self.layers:
            x = x + 0.3 * layer(x).relu()
        return self.head(x)


@fault("frozen-by-name", 3)
def layer_1_and_also_10_and_11():
    model = Deep()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("layers.1" not in name)
    return train(model, batches())


@fault("frozen-by-name", 6)
def frozen_layer_that_decays():
    """Its gradient of an earlier step is cleared to 0, not to None."""
    model = Deep()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    yield model
    for step, (x, y) in enumerate(batches()):
        model.layers[0].requires_grad_(step < 2)
        optimizer.zero_grad(set_to_none=False)
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        yield


@fault("dropout-rate", 1)
def nine_of_ten_are_dropped():
    return train(nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Dropout(0.9), nn.Linear(32, 10)), batches())


# -- schedules ---------------------------------------------------------------------------------------------------------


def scheduled(of: Any) -> Iterator[Any]:
    model = mlp(64, 16, 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    schedule = of(optimizer)
    yield model
    for x, y in batches():
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        schedule.step()
        yield


@fault("scheduler-per-batch", 40)
def steps_of_epochs_counted_in_batches():
    return scheduled(lambda optimizer: lr_scheduler.StepLR(optimizer, 10, 0.1))


@fault("scheduler-per-batch", 40)
def exponential_decay_of_epochs_at_each_batch():
    return scheduled(lambda optimizer: lr_scheduler.ExponentialLR(optimizer, 0.85))


# -- attention ---------------------------------------------------------------------------------------------------------


class Rows(nn.Module):
    """Attention between the rows of a picture, with scores that are changed."""

    def __init__(self, change: Any = lambda scores: scores) -> None:
        super().__init__()
        self.enter, self.place, self.norm = nn.Linear(8, 16), nn.Parameter(0.1 * torch.randn(8, 16)), nn.LayerNorm(16)
        self.q, self.k, self.v, self.head = (nn.Linear(16, size) for size in (16, 16, 16, 10))
        self.change = change

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x.reshape(-1, 8, 8)) + self.place
        q, k, v = (project(self.norm(x)) for project in (self.q, self.k, self.v))
        scores = self.change(q @ k.transpose(1, 2) / 4)
        return self.head((x + scores.softmax(-1) @ v).mean(1))


FUTURE = torch.ones(8, 8).triu(1).bool()


@fault("uniform-attention", 42)
def mask_of_large_numbers_on_every_token():
    return train(Rows(lambda scores: scores.masked_fill(FUTURE | ~FUTURE, -1e9)), batches())


@fault("uniform-attention", 42)
def scores_divided_by_far_too_much():
    return train(Rows(lambda scores: scores / 1e5), batches())


def with_a_large_key(model: Rows) -> Rows:
    """One key is far larger than the others, in the direction of every query."""
    with torch.no_grad():
        model.place[0] += torch.linspace(-30, 30, 16)
        model.k.weight.copy_(torch.eye(16))
        model.q.weight.zero_()
        model.q.bias.copy_(torch.linspace(-20, 20, 16))
    return model


@fault("one-token-attention", 42)
def key_far_larger_than_the_others():
    return train(with_a_large_key(Rows()), batches(8))


@fault("one-token-attention", 42)
def bias_that_favours_the_first_token():
    return train(Rows(lambda scores: scores + 30 * F.one_hot(torch.tensor(0), 8)), batches(8))


@fault("mask-without-effect", 4)
def masked_scores_that_are_dropped():
    def change(scores: Tensor) -> Tensor:
        scores.masked_fill(FUTURE, -math.inf)
        return scores

    return train(Rows(change), batches())


@fault("mask-without-effect", 4)
def mask_of_a_tiny_number():
    return train(Rows(lambda scores: scores.masked_fill(FUTURE, -1e-9)), batches())


# -- padding -----------------------------------------------------------------------------------------------------------


def sentences(samples: int = 16, length: int = 12) -> Iterator[tuple[Tensor, Tensor]]:
    """Tokens of sentences with 0 as their padding, and a class."""
    while True:
        ids = torch.randint(3, 40, (samples, length))
        ids[torch.arange(length) >= torch.randint(4, length + 1, (samples, 1))] = 0
        yield ids, ids[:, 0] % 2


class Reader(nn.Module):
    def __init__(self, padding: int | None, hides: Any = lambda padded: None, dropout: float = 0.0) -> None:
        super().__init__()
        self.embed, self.head, self.hides = nn.Embedding(40, 16, padding_idx=padding), nn.Linear(16, 2), hides
        self.layer = nn.TransformerEncoderLayer(16, 4, 16, dropout, batch_first=True)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.layer(self.embed(ids), src_key_padding_mask=self.hides(ids == 0)).mean(1))


@fault("padding-attended", 4)
def sentences_without_a_mask():
    return train(Reader(None), sentences())


@fault("padding-attended", 4)
def mask_with_the_other_convention():
    return train(Reader(0, lambda padded: ~padded, dropout=0.1), sentences())


class Tagger(nn.Module):
    def __init__(self, padding: int | None) -> None:
        super().__init__()
        self.embed, self.rnn = nn.Embedding(40, 16, padding_idx=padding), nn.GRU(16, 16, batch_first=True)
        self.head = nn.Linear(16, 40)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.rnn(self.embed(ids))[0])


def next_tokens(padding: int | None, loss: Any) -> Iterator[Any]:
    data = ((ids[:, :-1], ids[:, 1:]) for ids, _ in sentences())
    return train(Tagger(padding), data, loss=loss)


@fault("padding-in-loss", 4)
def loss_of_every_token():
    return next_tokens(None, lambda output, ids: F.cross_entropy(output.flatten(0, 1), ids.flatten()))


@fault("padding-in-loss", 4)
def loss_of_every_place():
    return next_tokens(0, lambda output, ids: F.cross_entropy(output.transpose(1, 2), ids))
