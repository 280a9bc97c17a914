"""Healthy runs with a habit of their own: two players, codes, frozen parts, micro-batches."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.bed.loops import healthy
from tests.bed.loops.networks import Variational
from tests.bed.loops.shared import batches, classify, mlp


@healthy
def gan():
    """Two networks and two optimizers; a step trains both."""
    generator = nn.Sequential(nn.Linear(16, 64), nn.LeakyReLU(0.2), nn.Linear(64, 64), nn.Tanh())
    discriminator = nn.Sequential(nn.Linear(64, 64), nn.LeakyReLU(0.2), nn.Linear(64, 1))
    of_g = torch.optim.Adam(generator.parameters(), lr=5e-4, betas=(0.5, 0.999))
    of_d = torch.optim.Adam(discriminator.parameters(), lr=5e-4, betas=(0.5, 0.999))
    yield {"generator": generator, "discriminator": discriminator}
    for x, _ in batches():
        real, ones, zeros = x / x.abs().max(), torch.ones(len(x), 1), torch.zeros(len(x), 1)
        fake = generator(torch.randn(len(x), 16))
        of_d.zero_grad()
        loss = F.binary_cross_entropy_with_logits(discriminator(real), ones)
        loss = loss + F.binary_cross_entropy_with_logits(discriminator(fake.detach()), zeros)
        loss.backward()
        of_d.step()
        of_g.zero_grad()
        F.binary_cross_entropy_with_logits(discriminator(fake), ones).backward()
        of_g.step()
        yield


def wasserstein(generator_first: bool):
    """The same, but each network's step is one of its own: who looks at every fourth sees one of the two alone."""
    generator = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64), nn.Tanh())
    discriminator = nn.Sequential(nn.Linear(64, 64), nn.LeakyReLU(0.2), nn.Linear(64, 1))
    of_g = torch.optim.RMSprop(generator.parameters(), lr=2e-4)
    of_d = torch.optim.RMSprop(discriminator.parameters(), lr=2e-4)
    yield {"generator": generator, "discriminator": discriminator}
    for step, (x, _) in enumerate(batches()):
        if (step % 2 == 0) == generator_first:
            of_g.zero_grad()
            (-discriminator(generator(torch.randn(len(x), 16))).mean()).backward()
            of_g.step()
        else:
            with torch.no_grad():
                fake = generator(torch.randn(len(x), 16))
            of_d.zero_grad()
            (discriminator(fake).mean() - discriminator(x / x.abs().max()).mean()).backward()
            of_d.step()
            with torch.no_grad():
                for parameter in discriminator.parameters():
                    parameter.clamp_(-0.1, 0.1)
        yield


@healthy
def wasserstein_gan_that_begins_with_the_critic():
    return wasserstein(generator_first=False)


@healthy
def wasserstein_gan_that_begins_with_the_generator():
    return wasserstein(generator_first=True)


def variational(loss_of: Any, optimizer_of: Any):
    model = Variational()
    optimizer = optimizer_of(model.parameters())
    yield model
    for x, _ in batches():
        optimizer.zero_grad()
        made, mean, spread = model(x)
        divergence = -0.5 * (1 + spread - mean**2 - spread.exp())
        loss_of(made, x, divergence).backward()
        optimizer.step()
        yield


@healthy
def vae_mean():
    return variational(
        lambda made, x, divergence: F.mse_loss(made, x) + 0.01 * divergence.mean(),
        lambda parameters: torch.optim.Adam(parameters, lr=1e-3),
    )


@healthy
def vae_sum_over_pixels():
    return variational(
        lambda made, x, divergence: (F.mse_loss(made, x, reduction="sum") + divergence.sum()) / len(x),
        lambda parameters: torch.optim.AdamW(parameters, lr=1e-3),
    )


@healthy
def autoencoder_with_sigmoid_gates():
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.value, self.gate, self.out = nn.Linear(64, 24), nn.Linear(64, 24), nn.Linear(24, 64)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.value(x) * torch.sigmoid(self.gate(x)))

    model = Gated()
    data = ((x, x) for x, _ in batches())
    return classify(model, torch.optim.Adam(model.parameters(), lr=2e-3), data)


@healthy
def accumulation_of_micro_batches():
    model = mlp(64, 64, 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    data = batches(16)
    yield model
    for _ in range(100):
        optimizer.zero_grad()
        for _ in range(4):
            x, y = next(data)
            (F.cross_entropy(model(x), y) / 4).backward()
        optimizer.step()
        yield


@healthy
def fine_tuning_a_frozen_body():
    body, head = mlp(64, 64, 32), nn.Linear(32, 10)
    for parameter in body.parameters():
        parameter.requires_grad_(False)
    model = nn.Sequential(body, nn.ReLU(), head)
    return classify(model, torch.optim.AdamW(head.parameters(), lr=1e-2), batches())


@healthy
def low_rank_adaptation():
    """A frozen weight with a learnt low-rank change, one of whose factors begins at 0."""

    class Adapted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.frozen = nn.Linear(64, 64).requires_grad_(False)
            self.down, self.up = nn.Linear(64, 4, bias=False), nn.Linear(4, 64, bias=False)
            nn.init.zeros_(self.up.weight)
            self.head = nn.Linear(64, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(F.relu(self.frozen(x) + self.up(self.down(x))))

    model = Adapted()
    wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return classify(model, torch.optim.AdamW(wanted, lr=2e-3), batches())


@healthy
def warm_up_in_stages_then_warm_restarts():
    """The rate rises tenfold from one step to the next, and then twentyfold at each restart."""
    model = mlp(64, 64, 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    data = classify(model, optimizer, batches())
    yield next(data)
    for step, _ in enumerate(data):
        optimizer.param_groups[0]["lr"] = 0.01 if step < 20 else 0.1 * (1 - 0.95 * (step % 25) / 24)
        yield


@healthy
def two_groups_with_two_rates():
    body, head = mlp(64, 64, 32), nn.Linear(32, 10)
    model = nn.Sequential(body, nn.ReLU(), head)
    groups = [{"params": body.parameters(), "lr": 1e-4}, {"params": head.parameters(), "lr": 1e-2}]
    return classify(model, torch.optim.Adam(groups), batches())


@healthy
def fp16_with_a_scaler():
    model = mlp(64, 64, 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu")
    yield model
    for x, y in batches():
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.float16):
            loss = F.cross_entropy(model(x), y)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        yield


@healthy
def straight_through_codes():
    """Codes of -1 and 1, whose gradient is that of the identity; a group with a rate of 0 waits for its turn."""
    body, head = mlp(64, 48), nn.Linear(48, 10)

    def forward(x: Tensor) -> Tensor:
        hidden = body(x)
        return head(torch.sign(hidden) + hidden - hidden.detach())

    optimizer = torch.optim.Adam([{"params": body.parameters(), "lr": 0.0}, {"params": head.parameters()}], lr=1e-3)
    yield {"body": body, "head": head}
    for step, (x, y) in enumerate(batches()):
        optimizer.param_groups[0]["lr"] = 1e-3 if step >= 60 else 0.0
        optimizer.zero_grad()
        F.cross_entropy(forward(x), y).backward()
        optimizer.step()
        yield


@healthy
def margins_that_are_reached():
    """A hinge loss for each class: some are 0 for every sample of the batch, and in the end all are."""
    x, y = next(batches())
    model, signs = mlp(64, 64, 10), 2 * F.one_hot(y, 10) - 1
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    yield model
    for _ in range(100):
        optimizer.zero_grad()
        F.relu(1 - signs * model(x)).sum(1).mean().backward()
        optimizer.step()
        yield


@healthy
def critic_that_begins_later():
    """A weight of 0 in the code holds the critic's gradient at 0 for half of the run, as autoencoders with one do."""
    maker, critic = mlp(64, 32, 64), mlp(64, 32, 1)
    of_m, of_c = (torch.optim.Adam(part.parameters(), lr=1e-3) for part in (maker, critic))
    yield {"maker": maker, "critic": critic}
    for step, (x, _) in enumerate(batches()):
        weight, made = float(step >= 50), maker(x)
        of_m.zero_grad()
        (1 + F.mse_loss(made, x) - 0.01 * weight * critic(made).mean()).backward()
        of_m.step()
        of_c.zero_grad()
        (1 + weight * (critic(made.detach()).sigmoid().mean() - critic(x).sigmoid().mean())).backward()
        of_c.step()
        yield
