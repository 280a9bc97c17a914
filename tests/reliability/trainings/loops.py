"""Trainings that differ in the loop: the order of passes and steps, and what is differentiated in it."""

from __future__ import annotations

import copy
import io
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn, optim
from torch.func import functional_call, grad, grad_and_value, jvp, vmap
from torch.optim import lr_scheduler, swa_utils

from tests.reliability.trainings.base import Training, batch, mlp, training


@training
def accumulated() -> Training:
    model, (x, y) = mlp(dropout=0.1), batch(12)
    optimizer = optim.Adam(model.parameters(), lr=0.05)

    def step(number: int) -> list[Tensor]:
        losses = [F.cross_entropy(model(part), label) / 3 for part, label in zip(x.split(4), y.split(4), strict=True)]
        for loss in losses:
            loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.2)
        optimizer.step()
        optimizer.zero_grad(set_to_none=number % 2 == 0)
        return losses

    return Training(step, (model, optimizer))


@training
def clipped_by_hand() -> Training:
    model, (x, y) = mlp(), batch()
    optimizer = optim.SGD(model.parameters(), lr=0.1)

    def step(number: int) -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        for each in model.parameters():
            each.grad.data.clamp_(-0.01, 0.01)
            each.grad += 1e-3 * each.detach()
        optimizer.step()
        return loss

    return Training(step, (model, optimizer))


@training
def retained_graph() -> Training:
    model, (x, y) = mlp(), batch()
    optimizer = optim.SGD(model.parameters(), lr=0.1)

    def step(number: int) -> Tensor:
        optimizer.zero_grad()
        out = model(x)
        out.retain_grad()
        loss = F.cross_entropy(out, y)
        loss.backward(retain_graph=True)
        (out.grad.pow(2).sum() + loss).backward()
        optimizer.step()
        return loss

    return Training(step, (model, optimizer))


@training
def gradient_penalty() -> Training:
    critic, x = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1)), torch.randn(8, 6)
    optimizer = optim.RMSprop(critic.parameters(), lr=0.01)

    def step(number: int) -> Tensor:
        mixed = torch.lerp(x, torch.randn_like(x), torch.rand(8, 1)).requires_grad_()
        (slope,) = torch.autograd.grad(critic(mixed).sum(), mixed, create_graph=True)
        loss = critic(x).mean() + 10 * (slope.norm(dim=1) - 1).pow(2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    return Training(step, (critic, optimizer))


@training
def adversaries() -> Training:
    """A generative adversarial network in which the discriminator steps twice as often."""
    generator, critic = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 6)), nn.Linear(6, 1)
    first, second = optim.Adam(generator.parameters()), optim.Adam(critic.parameters())
    real = torch.randn(8, 6)

    def step(number: int) -> Tensor:
        for _ in range(2):
            second.zero_grad()
            fake = generator(torch.randn(8, 3)).detach()
            (F.softplus(critic(fake)) + F.softplus(-critic(real))).mean().backward()
            second.step()
        first.zero_grad()
        loss = F.softplus(-critic(generator(torch.randn(8, 3)))).mean()
        loss.backward()
        first.step()
        return loss

    return Training(step, (generator, critic, first, second))


@training
def meta_learning() -> Training:
    model, (x, y) = nn.Linear(6, 3), batch()
    optimizer = optim.SGD(model.parameters(), lr=0.1)

    def step(number: int) -> Tensor:
        weights = dict(model.named_parameters())
        inner = F.cross_entropy(functional_call(model, weights, (x,)), y)
        slopes = torch.autograd.grad(inner, list(weights.values()), create_graph=True)
        fast = {name: each - 0.1 * slope for (name, each), slope in zip(weights.items(), slopes, strict=True)}
        loss = F.cross_entropy(functional_call(model, fast, (x.flip(0),)), y.flip(0))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    return Training(step, (model, optimizer))


@training
def functional_gradients() -> Training:
    """Gradients by `torch.func`, written into the parameters by hand."""
    model, (x, y) = nn.Linear(6, 3), batch()
    weights = {name: each.detach() for name, each in model.named_parameters()}

    def step(number: int) -> Tensor:
        slopes, loss = grad_and_value(lambda w: F.cross_entropy(functional_call(model, w, (x,)), y))(weights)
        for name, slope in slopes.items():
            weights[name] -= 0.1 * slope
        return loss

    return Training(step, (model, weights))


@training
def per_sample_gradients() -> Training:
    """Differentially private training: a gradient per sample, each clipped, and noise."""
    model, (x, y) = nn.Linear(6, 3), batch()
    optimizer = optim.SGD(model.parameters(), lr=0.1)

    def one(weights: Any, sample: Tensor, label: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(model, weights, (sample[None],)), label[None])

    def step(number: int) -> None:
        weights = {name: each.detach() for name, each in model.named_parameters()}
        slopes = vmap(grad(one), in_dims=(None, 0, 0))(weights, x, y)
        for name, each in model.named_parameters():
            norm = slopes[name].flatten(1).norm(dim=1).clamp(min=1).view(-1, *[1] * each.dim())
            each.grad = (slopes[name] / norm).mean(0) + 0.01 * torch.randn_like(each)
        optimizer.step()

    return Training(step, (model, optimizer))


@training
def forward_gradients() -> Training:
    """The slope along a random direction, in forward mode."""
    model, (x, y) = nn.Linear(6, 3), batch()
    weights = {name: each.detach() for name, each in model.named_parameters()}

    def step(number: int) -> Tensor:
        direction = {name: torch.randn_like(each) for name, each in weights.items()}
        loss, slope = jvp(lambda w: F.cross_entropy(functional_call(model, w, (x,)), y), (weights,), (direction,))
        for name, each in direction.items():
            weights[name] -= 0.1 * slope * each
        return loss

    return Training(step, (weights,))


@training
def hessian_by_hand() -> Training:
    w = torch.randn(4, requires_grad=True)

    def step(number: int) -> Tensor:
        (slope,) = torch.autograd.grad((w**4).sum(), w, create_graph=True)
        rows = [torch.autograd.grad(each, w, retain_graph=True)[0] for each in slope]
        with torch.no_grad():
            w.sub_(torch.linalg.solve(torch.stack(rows) + 1e-3 * torch.eye(4), slope))
        return slope

    return Training(step, (w,))


@training
def truncated_in_time() -> Training:
    cell, readout, x = nn.LSTMCell(6, 8), nn.Linear(8, 3), torch.randn(12, 4, 6)
    optimizer = optim.Adam([*cell.parameters(), *readout.parameters()], lr=0.02)
    state: list[Any] = [(torch.zeros(4, 8), torch.zeros(4, 8))]

    def step(number: int) -> Tensor:
        h, c = (each.detach() for each in state[0])
        loss = torch.zeros(())
        for moment in range(3):
            h, c = cell(x[3 * number % 12 + moment], (h, c))
            loss = loss + readout(h).pow(2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        state[0] = (h, c)
        return loss

    return Training(step, (cell, readout, optimizer, state))


@training
def policy_gradient() -> Training:
    policy, random_numbers = nn.Linear(4, 2), np.random.default_rng(0)
    optimizer = optim.Adam(policy.parameters(), lr=0.05)

    def step(number: int) -> Tensor:
        terms, place = [], random_numbers.normal(size=4)
        for _ in range(5):
            choice = torch.distributions.Categorical(logits=policy(torch.as_tensor(place, dtype=torch.float32)))
            action = choice.sample()
            place = place + (action.item() - 0.5) + 0.1 * np.random.normal(size=4)
            terms.append(choice.log_prob(action) * float(-(place**2).sum()))
        loss = -torch.stack(terms).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    return Training(step, (policy, optimizer))


@training
def q_learning() -> Training:
    """A target network, and targets made under `no_grad`."""
    online = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    target = copy.deepcopy(online).requires_grad_(False)
    optimizer = optim.RMSprop(online.parameters(), lr=0.01)

    def step(number: int) -> Tensor:
        s, a, r, following = torch.randn(6, 4), torch.randint(2, (6, 1)), torch.rand(6), torch.randn(6, 4)
        with torch.no_grad():
            aim = r + 0.9 * target(following).max(1).values
        loss = F.smooth_l1_loss(online(s).gather(1, a).squeeze(1), aim)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_value_(online.parameters(), 1)
        optimizer.step()
        with torch.no_grad():
            for slow, fast in zip(target.parameters(), online.parameters(), strict=True):
                slow.mul_(0.9).add_(fast, alpha=0.1)
        return loss

    return Training(step, (online, target, optimizer))


@training
def averaged_weights() -> Training:
    model, (x, y) = mlp(), batch()
    average = swa_utils.AveragedModel(model, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(0.9))
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    rate = lr_scheduler.SequentialLR(
        optimizer,
        [lr_scheduler.LinearLR(optimizer, total_iters=2), lr_scheduler.CosineAnnealingLR(optimizer, 4)],
        milestones=[2],
    )

    def step(number: int) -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        rate.step()
        average.update_parameters(model)
        return loss

    return Training(step, (model, average, optimizer, rate), steps=5)


@training
def phases() -> Training:
    """First the head, then all; evaluation, and the best state, in between."""
    model, (x, y) = mlp(dropout=0.3), batch()
    model[0].requires_grad_(False)
    optimizers = [optim.Adam(model[3].parameters(), lr=0.1)]
    best: list[Any] = []

    def step(number: int) -> Tensor:
        if number == 2:
            model[0].requires_grad_(True)
            optimizers.append(optim.SGD(model.parameters(), lr=0.01))
        model.train()
        optimizers[-1].zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizers[-1].step()
        model.eval()
        with torch.inference_mode():
            best.append((float(F.cross_entropy(model(x), y)), copy.deepcopy(model.state_dict())))
        return loss

    return Training(step, (model, optimizers, best), steps=5)


@training
def resumed() -> Training:
    """Saved and loaded in the middle."""
    model, (x, y) = mlp(), batch()
    optimizer = optim.Adam(model.parameters(), lr=0.05)

    def step(number: int) -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        if number % 2:
            file = io.BytesIO()
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
            file.seek(0)
            state = torch.load(file)
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
        return loss

    return Training(step, (model, optimizer))


@training
def skipped_steps() -> Training:
    """Batches without a step, an empty one, and one that raises and is caught."""
    model, (x, y) = mlp(), batch()
    optimizer = optim.Adam(model.parameters(), lr=0.05)
    raised: list[str] = []

    def step(number: int) -> Any:
        optimizer.zero_grad()
        try:
            loss = F.cross_entropy(model(x[:, : 6 - number % 3 // 2]), y)
        except RuntimeError as error:
            raised.append(type(error).__name__)
            return None
        if number % 3 == 1:
            return loss
        loss.backward()
        optimizer.step()
        return loss

    return Training(step, (model, optimizer, raised), steps=6)


@training
def many_forward_passes() -> Training:
    model, (x, y) = mlp(), batch()
    optimizer = optim.SGD(model.parameters(), lr=0.1)

    def step(number: int) -> Tensor:
        optimizer.zero_grad()
        with torch.no_grad():
            for _ in range(150):
                model(x)
        loss = sum(F.cross_entropy(model(x + 0.01 * place), y) for place in range(150)) / 150
        loss.backward()
        optimizer.step()
        return loss

    return Training(step, (model, optimizer), steps=3)


@training
def not_finite() -> Training:
    """NaN in one step, which the loop looks for and leaves out."""
    model, (x, y) = mlp(), batch()
    optimizer = optim.SGD(model.parameters(), lr=0.1)

    def step(number: int) -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x.log() if number == 1 else x), y)
        loss.backward()
        if all(each.grad.isfinite().all() for each in model.parameters()):
            optimizer.step()
        return loss

    return Training(step, (model, optimizer))
