"""Faults of what is compared: dropped outputs, targets of others, states that are equal, labels of several classes."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.bed.loops import fault
from tests.bed.loops.dependence import letter_loss, next_letters
from tests.bed.loops.shared import batches, mlp, train


@fault("dropout-on-outputs", 6)
def dropout_behind_the_last_layer():
    return train(nn.Sequential(mlp(64, 32, 10), nn.Dropout(0.2)), batches())


@fault("softmax-before-bce", 6)
def softmax_for_labels_of_their_own():
    def loss(output: Tensor, y: Tensor) -> Tensor:
        several = (y.unsqueeze(1) >= torch.arange(10)).float()  # as many labels as the digit says, and one
        return F.binary_cross_entropy(output, several)

    return train(nn.Sequential(mlp(64, 32, 10), nn.Softmax(1)), batches(), loss=loss)


class TimeFirst(nn.Module):
    """A recurrent network over (time, samples)."""

    def __init__(self) -> None:
        super().__init__()
        self.letters, self.cell, self.out = nn.Embedding(16, 16), nn.GRU(16, 24), nn.Linear(24, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.cell(self.letters(x.t()))[0])


@fault("targets-of-others", 6)
def predictions_with_the_time_first():
    return train(TimeFirst(), next_letters(), loss=letter_loss)


class Placed(nn.Module):
    """A classifier of rows of letters, with learned positions along the wrong axis."""

    def __init__(self) -> None:
        super().__init__()
        self.letters, self.places = nn.Embedding(16, 16), nn.Parameter(torch.randn(64, 1, 16))
        self.layer, self.out = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.layer(self.letters(x) + self.places[: len(x)]).mean(1))


@fault("place-in-batch", 6)
def positions_for_samples():
    return train(Placed(), ((x, (x[:, 0] > 7).long()) for x, _ in next_letters()))


@fault("states-alike", 6)
def next_states_that_are_the_states() -> Iterator[object]:
    model, target = mlp(4, 16, 2), mlp(4, 16, 2)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    yield {"model": model, "target": target}
    while True:
        state, action, reward = torch.randn(32, 4), torch.randint(2, (32, 1)), torch.randn(32)
        value = model(state).gather(1, action).squeeze(1)
        with torch.no_grad():
            goal = reward + 0.9 * target(torch.tensor(state.tolist())).max(1).values
        optimizer.zero_grad()
        F.smooth_l1_loss(value, goal).backward()
        optimizer.step()
        yield


@fault("real-as-made", 6)
def a_discriminator_that_says_yes() -> Iterator[object]:
    maker, judge = mlp(4, 16, 2), mlp(2, 16, 1)
    optimizers = [torch.optim.Adam(each.parameters(), lr=1e-3) for each in (judge, maker)]
    yield {"maker": maker, "judge": judge}
    while True:
        yes, made = torch.ones(32, 1), maker(torch.randn(32, 4))
        for optimizer, given in zip(optimizers, ([torch.randn(32, 2) + 2, made.detach()], [made]), strict=True):
            optimizer.zero_grad()
            sum(F.binary_cross_entropy_with_logits(judge(each), yes) for each in given).backward()
            optimizer.step()
        yield
