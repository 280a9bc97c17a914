"""Faults of means and shares of losses, of skip connections, integers and states, and their healthy neighbours."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.bed.loops import fault, healthy
from tests.bed.loops.shared import batches, mlp, train

# -- losses ------------------------------------------------------------------------------------------------------------


@fault("averaged-first")
def weights_of_samples_times_a_mean():
    def loss(output: Tensor, y: Tensor) -> Tensor:
        return (F.cross_entropy(output, y) * (1.0 + (y > 4))).mean()

    return train(mlp(64, 32, 10), batches(), loss=loss)


@healthy
def weights_of_samples_times_their_losses():
    def loss(output: Tensor, y: Tensor) -> Tensor:
        return (F.cross_entropy(output, y, reduction="none") * (1.0 + (y > 4))).mean()

    return train(mlp(64, 32, 10), batches(), loss=loss)


@fault("divided-twice")
def mean_of_squares_divided_by_its_rows():
    def loss(output: Tensor, y: Tensor) -> Tensor:
        return (output - F.one_hot(y, 10)).square().mean() / len(y)

    return train(mlp(64, 32, 10), batches(), loss=loss)


# -- skip connections --------------------------------------------------------------------------------------------------


class Residual(nn.Module):
    def __init__(self, in_place: bool = False, itself: bool = False) -> None:
        super().__init__()
        self.itself = itself
        self.branch = nn.Sequential(
            nn.LeakyReLU(0.1, inplace=in_place), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 32)
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.branch(x)
        return y + y if self.itself else x + y


def residual(**options: bool) -> Iterator[Any]:
    return train(
        nn.Sequential(nn.Linear(64, 32), Residual(**options), nn.ReLU(), nn.Linear(32, 10)), batches()
    )  # fmt: skip


@fault("added-to-itself")
def sum_of_a_branch_and_itself():
    return residual(itself=True)


@fault("skip-overwritten")
def leaky_relu_in_place_at_the_start_of_a_branch():
    return residual(in_place=True)


@healthy
def residual_of_a_branch():
    return residual()


# -- integers ----------------------------------------------------------------------------------------------------------


class OfBytes(nn.Module):
    """A classifier of bytes that brighten or centre them first."""

    def __init__(self, early: bool) -> None:
        super().__init__()
        self.early, self.layers = early, mlp(64, 32, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers((x * 2).float() / 255 if self.early else x.float() * 2 / 255)


def of_bytes_in(model: nn.Module) -> Iterator[Any]:
    return train(model, (((40 * x + 60).clamp(0, 255).to(torch.uint8), y) for x, y in batches()))


@fault("bytes-wrap")
def bytes_times_two():
    return of_bytes_in(OfBytes(True))


@healthy
def bytes_as_floats():
    return of_bytes_in(OfBytes(False))


def resized(mode: str) -> Iterator[Any]:
    def loss(output: Tensor, labels: Tensor) -> Tensor:
        small = F.interpolate(labels[:, None].float(), size=4, mode=mode)
        return F.cross_entropy(output, small[:, 0].round().long().clamp(0, 3))

    model = nn.Sequential(nn.Conv2d(1, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 1))
    return train(model, ((x, (x[:, 0] > 0).long() + 2 * (x[:, 0] > 1)) for x, _ in batches(images=True)), loss=loss)


@fault("classes-blended")
def maps_of_classes_resized_smoothly():
    return resized("bicubic")


@healthy
def maps_of_classes_resized_by_the_nearest():
    return resized("nearest")


@fault("labels-of-all")
def ones_in_all_columns_of_a_batch():
    def loss(output: Tensor, y: Tensor) -> Tensor:
        target = torch.zeros(len(y), 10)
        target[:, y] = 1.0
        return F.mse_loss(output.sigmoid(), target)

    return train(mlp(64, 32, 10), batches(8), loss=loss)


# -- states and clippings ----------------------------------------------------------------------------------------------


class ByRows(nn.Module):
    """An LSTM over the rows of a picture, one call for each."""

    def __init__(self, swapped: bool) -> None:
        super().__init__()
        self.swapped, self.lstm, self.out = swapped, nn.LSTM(8, 24, batch_first=True), nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        state = None
        for row in x.view(-1, 8, 8).split(1, 1):
            read, (h, c) = self.lstm(row, state)
            state = (c, h) if self.swapped else (h, c)
        return self.out(read[:, 0])


@fault("states-swapped")
def states_of_an_lstm_in_the_other_order():
    return train(ByRows(True), batches())


@healthy
def states_of_an_lstm():
    return train(ByRows(False), batches())


def limited(in_place: bool) -> Iterator[Any]:
    model = mlp(64, 32, 10)

    def limit(step: int) -> None:
        for each in model.parameters():
            assert each.grad is not None
            limited = each.grad.clamp(-0.001, 0.001)
            if in_place:
                each.grad.copy_(limited)

    return train(model, batches(), before_step=limit)


@fault("clipping-idle")
def limited_gradients_that_nobody_takes():
    return limited(False)


@healthy
def limited_gradients():
    return limited(True)
