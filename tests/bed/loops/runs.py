"""Faults of losses, data and modes that a run shows: summed, subtracted, weighed, not cleared, not turned off."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from tests.bed.loops import fault
from tests.bed.loops.models import Dropping, normed
from tests.bed.loops.shared import batches, digits, mlp, points, train

# -- losses ------------------------------------------------------------------------------------------------------------


@fault("sum-reduction")
def sum_of_classes_with_the_rate_of_a_mean():
    return train(mlp(64, 32, 10), batches(64), loss=lambda output, y: F.cross_entropy(output, y, reduction="sum"))


@fault("sum-reduction")
def sum_of_squares_with_the_rate_of_a_mean():
    return train(mlp(8, 32, 1), points(64), loss=lambda output, y: F.mse_loss(output, y, reduction="sum"))


def by_hand(mean: Tensor, log_variance: Tensor) -> Tensor:
    return -0.5 * torch.sum(1 + log_variance - mean.pow(2) - log_variance.exp()) / len(mean)


def of_distributions(mean: Tensor, log_variance: Tensor) -> Tensor:
    code = Normal(mean, (log_variance / 2).exp())
    return kl_divergence(code, Normal(torch.zeros_like(mean), torch.ones_like(mean))).sum(1).mean()


def coded(weight: float, divergence: Callable[[Tensor, Tensor], Tensor], lr: float = 5e-3) -> Iterator[Any]:
    """A variational autoencoder of the digits, with its divergence weighed."""
    encoder, decoder = mlp(64, 32, 8), mlp(4, 32, 64)
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=lr)
    yield {"encoder": encoder, "decoder": decoder}
    for x, _ in batches():
        mean, log_variance = encoder(x).chunk(2, 1)
        output = decoder(mean + torch.randn_like(mean) * (log_variance / 2).exp())
        loss = F.mse_loss(output, x) + weight * divergence(mean, log_variance)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield


@fault("penalty-dominates")
def divergence_that_empties_the_code():
    return coded(10.0, by_hand)


@fault("penalty-dominates")
def divergence_of_distributions_that_empties_the_code():
    return coded(10.0, of_distributions)


@fault("loss-ascends", 20)
def divergence_that_is_subtracted():
    return coded(-0.5, by_hand)


@fault("loss-ascends", 20)
def divergence_of_distributions_that_is_subtracted():
    return coded(-0.5, of_distributions)


# -- data --------------------------------------------------------------------------------------------------------------


@fault("input-not-normalised", 5)
def pictures_divided_twice():
    return train(mlp(64, 32, 10), ((x / 255, y) for x, y in batches()))


@fault("input-not-normalised", 5)
def pictures_divided_twice_and_then_shifted():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))
    return train(model, ((x / 255 - 0.5, y) for x, y in batches(images=True)))


# -- gradients of two optimizers ---------------------------------------------------------------------------------------


def players(generator_first: bool, clears: bool = False) -> Iterator[Any]:
    """A GAN that clears the gradients of the discriminator only if it is told to."""
    G, D = mlp(4, 16, 2), mlp(2, 16, 1)
    g, d = (torch.optim.SGD(each.parameters(), lr=0.02) for each in (G, D))

    def step_g(fake: Tensor) -> None:
        g.zero_grad()
        F.softplus(-D(fake)).mean().backward()
        g.step()

    def step_d(fake: Tensor) -> None:
        if clears:
            d.zero_grad(set_to_none=False)
        F.softplus(-D(torch.randn(32, 2) + 1)).mean().backward()
        F.softplus(D(fake.detach())).mean().backward()
        d.step()

    yield {"G": G, "D": D}
    while True:
        fake = G(torch.randn(32, 4))
        for step in (step_g, step_d) if generator_first else (step_d, step_g):
            step(fake)
        yield


@fault("accumulated-gradient", 6)
def discriminator_that_is_never_cleared():
    return players(generator_first=False)


@fault("accumulated-gradient", 6)
def discriminator_that_is_never_cleared_after_the_generator():
    return players(generator_first=True)


# -- modes -------------------------------------------------------------------------------------------------------------


def validated(model: nn.Module, change: Callable[[Tensor], Tensor], evaluates: bool) -> Iterator[Any]:
    """A training with one pass over other pictures after each step."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    pictures = change(digits()[0][:64])
    yield model
    for x, y in batches():
        model.train()
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        model.train(not evaluates)
        with torch.no_grad():
            model(pictures)
        yield


@fault("train-while-evaluating", 16)
def validation_of_brighter_pictures_in_train_mode():
    return validated(normed(), lambda x: x + 4, evaluates=False)


@fault("train-while-evaluating", 16)
def validation_of_harsher_pictures_in_train_mode():
    return validated(normed(), lambda x: 5 * x, evaluates=False)


@fault("dropout-in-eval", 4)
def dropout_of_a_function_in_evaluation():
    return validated(Dropping(), lambda x: x, evaluates=True)
