"""Faults of what depends on what: samples that mix, positions that see the future, inputs that are ignored."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.bed.loops import fault
from tests.bed.loops.shared import train


def sequences(size: int = 16, length: int = 12) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows of numbers (batch, positions, 1), and whether their sum is above 0."""
    while True:
        x = torch.randn(size, length, 1)
        yield x, (x.sum((1, 2)) > 0).long()


def next_letters(size: int = 8, length: int = 12) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows of letters, and the letters that follow."""
    while True:
        rows = torch.randint(16, (size, 1)) + torch.arange(length + 1)
        yield rows[:, :-1] % 16, rows[:, 1:] % 16


def letter_loss(output: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(output.flatten(0, 1), y.flatten())


class LastOf(nn.Module):
    """A recurrent network, and a layer on its last output."""

    def __init__(self, cell: nn.RNNBase) -> None:
        super().__init__()
        self.cell, self.out = cell, nn.Linear(cell.hidden_size, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.cell(x)[0][:, -1])


class Pooled(nn.Module):
    """An encoder, and a layer on the mean of its outputs."""

    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(1, 16), nn.Linear(16, 2)
        self.encoder = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=batch_first)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.encoder(self.into(x)).mean(1))


class Reader(nn.Module):
    """Letters through layers of attention or a recurrent network to the letters that follow."""

    def __init__(self, *layers: nn.Module, width: int = 16) -> None:
        super().__init__()
        self.letters, self.layers = nn.Embedding(16, 16), nn.ModuleList(layers)
        self.out = nn.Linear(width, 16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.letters(x)
        for layer in self.layers:
            x = layer(x)[0] if isinstance(layer, nn.RNNBase) else layer(x)
        return self.out(x)


@fault("samples-mix", 3)
def attention_over_the_batch():
    return train(Pooled(batch_first=False), sequences())


@fault("samples-mix", 3)
def a_recurrent_network_over_the_batch():
    return train(LastOf(nn.RNN(1, 8)), sequences())


@fault("sees-the-future", 3)
def attention_without_a_mask():
    return train(
        Reader(nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)), next_letters(), loss=letter_loss
    )


@fault("sees-the-future", 3)
def a_recurrent_network_in_both_directions():
    return train(Reader(nn.LSTM(16, 8, batch_first=True, bidirectional=True)), next_letters(), loss=letter_loss)


def letters_after_next(gap: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows of letters that follow no rule, and the letters so many positions later."""
    while True:
        rows = torch.randint(16, (8, 12 + gap))
        yield rows[:, :12].clone(), rows[:, gap:].clone()


@fault("targets-shifted-twice", 3)
def a_reader_of_letters_whose_targets_are_shifted_twice():
    return train(Reader(nn.GRU(16, 16, batch_first=True)), letters_after_next(2), loss=letter_loss)


@fault("targets-shifted-twice", 3)
def targets_shifted_by_the_data_the_loop_and_the_loss():
    return train(Reader(nn.Linear(16, 16)), letters_after_next(3), loss=lambda o, y: F.nll_loss(o.log_softmax(2).mT, y))


@fault("ignored-input", 3)
def the_last_position_of_the_wrong_axis():
    return train(LastOf(nn.LSTM(1, 8)), sequences())


@fault("ignored-input", 3)
def a_layer_for_each_position_and_the_last_alone():
    model = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 2))
    return train(model, sequences(), loss=lambda output, y: F.cross_entropy(output[:, -1], y))
