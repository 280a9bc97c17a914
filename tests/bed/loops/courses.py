"""Faults that the course of a training shows, and those of number types and of a graph that is kept."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.bed.loops import fault
from tests.bed.loops.shared import batches, mlp, points, train

# -- the course --------------------------------------------------------------------------------------------------------


@fault("learning-rate-too-high", 40)
def rate_that_diverges():
    model = nn.Linear(8, 1)
    return train(model, points(), torch.optim.SGD(model.parameters(), lr=1.2), loss=F.mse_loss)


@fault("learning-rate-too-high", 30)
def rate_that_throws_a_network_away():
    model = mlp(64, 64, 64, 10)
    return train(model, batches(), torch.optim.SGD(model.parameters(), lr=10.0))


@fault("learning-rate-too-high", 60)
def rate_at_which_the_loss_swings():
    """The mean absolute error does not get flatter near its minimum: a constant rate jumps to and fro over it."""
    x = torch.linspace(-1, 1, 64).unsqueeze(1)
    model = nn.Linear(1, 1, bias=False)
    return train(
        model, ((x, 2 * x) for _ in range(100)), torch.optim.SGD(model.parameters(), lr=0.7), loss=F.l1_loss
    )  # fmt: skip


@fault("learning-rate-too-high", 30)
def adam_far_too_fast():
    model = mlp(8, 32, 32, 1)
    return train(model, points(), torch.optim.Adam(model.parameters(), lr=1.0), loss=F.mse_loss)


@fault("loss-spike", 40)
def one_batch_a_hundred_times_too_large():
    data = ((x * 100 if step == 25 else x, y) for step, (x, y) in enumerate(batches()))
    model = mlp(64, 32, 10)
    return train(model, data, torch.optim.Adam(model.parameters(), lr=3e-3))


@fault("loss-spike", 40)
def one_layer_thrown_away():
    model = mlp(64, 32, 32, 10)

    def throw(step: int) -> None:
        if step == 25:
            with torch.no_grad():
                model[2].weight.mul_(-20)

    return train(model, batches(), torch.optim.Adam(model.parameters(), lr=5e-3), before_step=throw)


@fault("loss-spike", 40)
def rate_that_jumps_for_one_step():
    model = mlp(64, 32, 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    def jump(step: int) -> None:
        optimizer.param_groups[0]["lr"] = 20.0 if step == 25 else 0.1

    return train(model, batches(), optimizer, before_step=jump)


@fault("learning-rate-jump", 40)
def rate_of_a_schedule_that_is_resumed_in_the_wrong_unit():
    model = mlp(64, 32, 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)

    def resume(step: int) -> None:
        optimizer.param_groups[0]["lr"] = 0.05 if step < 25 else 10.0

    return train(model, batches(), optimizer, before_step=resume)


@fault("learning-rate-jump", 40)
def rate_that_collapses_at_a_milestone():
    model = mlp(64, 32, 10)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def collapse(step: int) -> None:
        optimizer.param_groups[0]["lr"] = 1e-3 if step < 15 else 1e-9

    return train(model, batches(), optimizer, before_step=collapse)


def micro_batches(data: Iterator[tuple[Tensor, Tensor]], model: nn.Module, optimizer: torch.optim.Optimizer):
    yield model
    while True:
        optimizer.zero_grad()
        for _ in range(4):
            x, y = next(data)
            (F.cross_entropy(model(x), y) / 4).backward()
        optimizer.step()
        yield


@fault("gradient-noise", 25)
def labels_that_mean_nothing():
    model = mlp(64, 32, 10)
    with torch.no_grad():
        model[2].weight.mul_(0.1)
    data = ((x, torch.randint(10, (len(x),))) for x, _ in batches(8))
    return micro_batches(data, model, torch.optim.SGD(model.parameters(), lr=0.01))


@fault("gradient-noise", 25)
def micro_batches_of_one():
    model = mlp(64, 32, 10)
    data = ((torch.randn_like(x), y) for x, y in batches(1))
    return micro_batches(data, model, torch.optim.SGD(model.parameters(), lr=0.01))


# -- number types ------------------------------------------------------------------------------------------------------


def in_float16(model: nn.Module, scale: float):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    yield model
    for x, y in batches(256):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.float16):
            loss = F.cross_entropy(model(x), y)
        (loss * scale).backward()
        optimizer.step()
        yield


@fault("fp16-underflow")
def float16_without_a_scaler():
    return in_float16(mlp(64, *[64] * 4, 10), 1.0)


@fault("fp16-underflow")
def float16_with_a_loss_that_is_scaled_down():
    return in_float16(mlp(64, 64, 10), 1e-4)


# -- the graph of earlier steps ----------------------------------------------------------------------------------------


@fault("kept-graph", 30)
def a_running_mean_that_keeps_its_history():
    model, mean = nn.Linear(4, 4), torch.zeros(4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    yield model
    while True:
        mean = 0.9 * mean + 0.1 * model(torch.randn(8, 4)).mean(0)
        optimizer.zero_grad()
        (mean - 1).square().mean().backward(retain_graph=True)
        optimizer.step()
        yield


@fault("kept-graph", 30)
def losses_that_are_averaged_with_their_history():
    model, losses = mlp(64, 32, 10), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    yield model
    for x, y in batches():
        losses.append(F.cross_entropy(model(x), y))
        torch.stack(losses).mean().item()
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
        yield
