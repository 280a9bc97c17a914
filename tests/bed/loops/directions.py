"""Faults of losses that pursue the opposite, of copies that do not follow, and of what is prepared in vain."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Categorical, kl_divergence

from tests.bed.loops import fault
from tests.bed.loops.methods import descend
from tests.bed.loops.shared import mlp


@fault("limit-without-effect", 6)
def the_smaller_one_of_two_losses() -> Iterator[object]:
    policy = mlp(4, 16, 3)

    def loss() -> Tensor:
        log = Categorical(logits=policy(torch.randn(64, 4))).log_prob(torch.randint(0, 3, (64,)))
        ratio, gain = (log - log.detach() + 0.5 * torch.randn(64)).exp(), torch.randn(64)
        return torch.min(-gain * ratio, -gain * ratio.clamp(0.8, 1.2)).mean()

    return descend(loss, policy=policy)


def away_from(exact: bool) -> Iterator[object]:
    policy, reference = mlp(4, 16, 3), mlp(4, 16, 3).requires_grad_(False)

    def loss() -> Tensor:
        states, actions, rewards = torch.randn(64, 4), torch.randint(0, 3, (64,)), torch.randn(64)
        new, old = Categorical(logits=policy(states)), Categorical(logits=reference(states))
        log = new.log_prob(actions)
        divergence = kl_divergence(new, old) if exact else log - old.log_prob(actions)
        return -(log * rewards).mean() - 0.1 * divergence.mean()

    return descend(loss, policy=policy, reference=reference)


@fault("reference-left", 6)
def a_divergence_that_is_subtracted() -> Iterator[object]:
    return away_from(exact=True)


@fault("reference-left", 6)
def a_mean_ratio_that_is_subtracted() -> Iterator[object]:
    return away_from(exact=False)


@fault("noise-forgotten", 4)
def a_decoder_of_means() -> Iterator[object]:
    encoder, decoder = mlp(8, 16, 8), mlp(4, 16, 8)

    def loss() -> Tensor:
        x = torch.randn(32, 8)
        mean, log = encoder(x).chunk(2, 1)
        return F.mse_loss(decoder(mean), x) + 0.1 * (log.exp() + mean.square() - 1 - log).mean()

    return descend(loss, encoder=encoder, decoder=decoder)


@fault("average-wrong", 40)
def an_average_of_the_newest() -> Iterator[object]:
    student = mlp(8, 16, 1)
    teacher = deepcopy(student).requires_grad_(False)
    optimizer = torch.optim.Adam(student.parameters(), lr=1e-3)
    yield {"student": student, "teacher": teacher}
    while True:
        x = torch.randn(32, 8)
        optimizer.zero_grad()
        (F.mse_loss(student(x), x[:, :1]) + F.mse_loss(student(x), teacher(x))).backward()
        optimizer.step()
        with torch.no_grad():
            for slow, fast in zip(teacher.parameters(), student.parameters(), strict=True):
                slow.lerp_(fast, 0.9)
        yield


@fault("prepared-in-vain", 8)
def a_mask_of_a_loss_that_is_not_used() -> Iterator[object]:
    model = mlp(8, 16, 8)

    def loss() -> Tensor:
        x = torch.randn(32, 8)
        outputs = model(x)
        mask = (x > 0).float()  # noqa: F841
        return F.mse_loss(outputs, x.flip(1))

    return descend(loss, model=model)
