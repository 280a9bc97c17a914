"""Faults of one method: policies, codes with noise, two players, decoders, tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Normal

from tests.bed.loops import fault
from tests.bed.loops.shared import mlp


def descend(loss: Callable[[], Tensor], **models: nn.Module) -> Iterator[object]:
    """The usual loop over a loss that draws its own data."""
    optimizer = torch.optim.Adam([each for model in models.values() for each in model.parameters()], lr=1e-3)
    yield models
    while True:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
        yield


@fault("credit-lost", 4)
def returns_of_each_with_one_log_probability() -> Iterator[object]:
    model = mlp(4, 16, 1)

    def loss() -> Tensor:
        policy = Normal(model(torch.randn(32, 4)).squeeze(1), 0.5)
        action = policy.sample()
        return -(policy.log_prob(action).mean() * -action.abs()).mean()

    return descend(loss, model=model)


@fault("noise-scale", 4)
def a_logarithm_for_the_deviation() -> Iterator[object]:
    encoder, decoder = mlp(8, 16, 8), mlp(4, 16, 8)

    def loss() -> Tensor:
        x = torch.randn(32, 8)
        mean, log = encoder(x).chunk(2, 1)
        kl = 0.5 * (log.exp() + mean.square() - 1 - log).sum(1).mean()
        return F.mse_loss(decoder(mean + log * torch.randn_like(mean)), x) + kl

    return descend(loss, encoder=encoder, decoder=decoder)


@fault("noise-unheld", 50)
def a_code_without_a_divergence() -> Iterator[object]:
    encoder, decoder = mlp(8, 16, 8), mlp(4, 16, 8)

    def loss() -> Tensor:
        x = torch.randn(32, 8)
        mean, log = encoder(x).chunk(2, 1)
        return F.mse_loss(decoder(mean + (0.5 * log).exp() * torch.randn_like(mean)), x)

    return descend(loss, encoder=encoder, decoder=decoder)


@fault("players-agree", 6)
def a_maker_that_is_taught_to_be_recognised() -> Iterator[object]:
    maker, judge = mlp(4, 16, 2), mlp(2, 16, 1)
    optimizers = [torch.optim.Adam(each.parameters(), lr=1e-3) for each in (judge, maker)]
    yield {"maker": maker, "judge": judge}
    yes, no = torch.ones(32, 1), torch.zeros(32, 1)
    while True:
        made = maker(torch.randn(32, 4))
        pairs = [[(torch.randn(32, 2) + 2, yes), (made.detach(), no)], [(made, no)]]
        for optimizer, given in zip(optimizers, pairs, strict=True):
            optimizer.zero_grad()
            sum(F.binary_cross_entropy_with_logits(judge(each), target) for each, target in given).backward()
            optimizer.step()
        yield


@fault("penalty-per-part", 4)
def a_penalty_on_the_norm_of_the_batch() -> Iterator[object]:
    judge = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))

    def loss() -> Tensor:
        x = torch.randn(16, 8).requires_grad_()
        scores = judge(x)
        (slope,) = torch.autograd.grad(scores.sum(), x, create_graph=True)
        return scores.mean() + 10 * (slope.norm() - 1) ** 2

    return descend(loss, judge=judge)


class Weighted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.weight = mlp(8, 16, 1), nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.exp(-self.weight) * F.mse_loss(self.body(x), y)


@fault("loss-weight-unheld", 4)
def an_uncertainty_without_its_logarithm() -> Iterator[object]:
    model = Weighted()
    return descend(lambda: model(torch.randn(32, 8), torch.randn(32, 1)), model=model)


class Reader(nn.Module):
    """Tokens, through a table of positions and one layer of attention or recurrence."""

    def __init__(self, mix: nn.Module, change: Callable[[Reader, Tensor], Tensor], width: int = 8) -> None:
        super().__init__()
        self.emb, self.mix, self.out, self.change = nn.Embedding(20, 8), mix, nn.Linear(width, 20), change
        self.register_buffer("table", torch.randn(30, 8))

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(self.change(self, self.emb(ids)))


def read(
    mix: nn.Module, change: Callable[[Reader, Tensor], Tensor], one: bool = False, width: int = 8
) -> Iterator[object]:
    model = Reader(mix, change, width)

    def loss() -> Tensor:
        ids = torch.randint(1, 20, (16, 6))
        return F.cross_entropy(model(ids).reshape(-1, 20), ids.flip(1)[:, 0] if one else ids.flip(1).flatten())

    return descend(loss, model=model)


@fault("one-position", 4)
def the_row_of_the_length() -> Iterator[object]:
    return read(mlp(8, 8, 8), lambda model, h: model.mix(h + model.table[h.shape[1]]))


@fault("mask-after-softmax", 4)
def weights_times_a_triangle() -> Iterator[object]:
    kept = torch.tril(torch.ones(6, 6))
    return read(
        nn.Linear(8, 8), lambda model, h: ((model.mix(h) @ h.transpose(1, 2)).softmax(-1) * kept) @ model.mix(h)
    )


@fault("cosine-axis", 4)
def unit_vectors_over_the_batch() -> Iterator[object]:
    def change(model: Reader, h: Tensor) -> Tensor:
        q, k = F.normalize(model.mix(h), dim=0), F.normalize(h, dim=0)
        return (q @ k.transpose(1, 2)).softmax(-1) @ h

    return read(nn.Linear(8, 8), change)


@fault("state-not-carried", 4)
def a_cell_that_begins_anew() -> Iterator[object]:
    def change(model: Reader, h: Tensor) -> Tensor:
        start = h.mean(1)
        return torch.stack([model.mix(each, start) for each in h.unbind(1)], 1)

    return read(nn.GRUCell(8, 8), change)


@fault("direction-unread", 4)
def the_first_output_of_both_directions() -> Iterator[object]:
    return read(nn.GRU(8, 4, batch_first=True, bidirectional=True), lambda model, h: model.mix(h)[0][:, 0], one=True)


@fault("padding-in-mean", 4)
def a_mean_over_rows_of_zeros() -> Iterator[object]:
    model = Reader(mlp(8, 8, 8), lambda model, h: model.mix(h).mean(1))

    def loss() -> Tensor:
        lengths = torch.randint(2, 9, (16,))
        ids = torch.randint(1, 20, (16, 8)) * (torch.arange(8) < lengths[:, None])
        return F.cross_entropy(model(ids), ids[:, 0])

    return descend(loss, model=model)
