"""Faults of gradients: too small, too large, exactly 0, not finite, missing, not cleared."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.bed.loops import fault
from tests.bed.loops.networks import Rows
from tests.bed.loops.shared import batches, mlp, points, train

# -- gradients through depth -------------------------------------------------------------------------------------------


def _deep(width, std):
    model = mlp(64, *[width] * 8, 10)
    for layer in model:
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=std)
    return model


@fault("vanishing-gradient")
def deep_sigmoid_network():
    model = mlp(64, *[32] * 10, 10, act=nn.Sigmoid)
    return train(model, batches())


@fault("vanishing-gradient")
def deep_network_with_tiny_weights():
    return train(_deep(32, std=0.01), batches())


@fault("vanishing-gradient")
def recurrent_network_that_forgets():
    model = Rows(nn.RNN)
    nn.init.normal_(model.rnn.weight_hh_l0, std=0.02)
    return train(model, batches())


@fault("exploding-gradient")
def deep_network_with_large_weights():
    model = _deep(64, std=1.0)
    return train(model, batches(), torch.optim.SGD(model.parameters(), lr=1e-14))


@fault("exploding-gradient")
def recurrent_network_that_blows_up():
    class Linear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter, self.again, self.out = nn.Linear(8, 32), nn.Linear(32, 32, bias=False), nn.Linear(32, 10)
            nn.init.normal_(self.again.weight, std=1.0)

        def forward(self, x: Tensor) -> Tensor:
            h = torch.zeros(len(x), 32)
            for row in x.reshape(-1, 8, 8).unbind(1):
                h = self.enter(row) + self.again(h)
            return self.out(h)

    model = Linear()
    return train(model, batches(), torch.optim.SGD(model.parameters(), lr=1e-12))


# -- gradients that are exactly 0 --------------------------------------------------------------------------------------


@fault("zero-gradient")
def signs_without_a_straight_through_estimator():
    return train(Two(torch.sign), batches())


@fault("zero-gradient")
def attention_over_a_single_key():
    def pooled(hidden: Tensor) -> Tensor:
        return hidden.detach() * hidden.mean(1, keepdim=True).softmax(1)

    return train(Two(pooled), batches())


@fault("zero-gradient")
def gate_that_is_a_step_in_all_but_name():
    return train(Two(lambda hidden: (1e9 * (hidden - 0.5)).clamp(0, 1)), batches())


# -- numbers that are not finite ---------------------------------------------------------------------------------------


@fault("non-finite-forward")
def logarithm_of_a_probability_that_is_zero():
    model = mlp(64, 32, 10)
    with torch.no_grad():
        model[2].weight.mul_(300)

    def loss(output: Tensor, y: Tensor) -> Tensor:
        return -(F.one_hot(y, 10) * output.softmax(1).log()).sum(1).mean()

    return train(model, batches(), loss=loss)


@fault("non-finite-forward", 20)
def data_with_a_gap():
    def data() -> Iterator[tuple[Tensor, Tensor]]:
        for step, (x, y) in enumerate(points()):
            if step == 10:
                x[3, 2] = float("nan")
            yield x, y

    return train(mlp(8, 16, 1), data(), loss=F.mse_loss)


@fault("non-finite-forward")
def variance_that_overflows():
    """At a batch that is too large, so that it is the forward pass that overflows, whatever the weights are."""
    model = mlp(8, 16, 2)
    data = ((x * 1e5 if step == 5 else x, y) for step, (x, y) in enumerate(points()))

    def loss(output: Tensor, y: Tensor) -> Tensor:
        return ((output[:, :1] - y) ** 2 / output[:, 1:].exp() + output[:, 1:]).mean()

    return train(model, data, torch.optim.SGD(model.parameters(), lr=1e-3), loss=loss)


@fault("non-finite-backward")
def norm_of_a_row_that_is_zero():
    def loss(output: Tensor, y: Tensor) -> Tensor:
        return (output - output.detach()).square().sum(1).sqrt().mean() + F.mse_loss(output, y)

    return train(mlp(8, 16, 1), points(), loss=loss)


@fault("non-finite-backward")
def where_after_a_division():
    def loss(output: Tensor, y: Tensor) -> Tensor:
        hidden = output.relu()
        return torch.where(hidden > 0, y / hidden, 0.0).square().clamp(max=4.0).mean() + hidden.mean()

    return train(mlp(8, 16, 1), points(), loss=loss)


# -- parameters and their gradients ------------------------------------------------------------------------------------


class Two(nn.Module):
    """A body and a head, joined as asked."""

    def __init__(self, join: Callable[[Tensor], Tensor] = lambda x: x) -> None:
        super().__init__()
        self.body, self.head, self.join = mlp(64, 32, 32), nn.Linear(32, 10), join

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.join(self.body(x).relu()))


@fault("no-gradient")
def detached_body():
    return train(Two(lambda hidden: hidden.detach()), batches())


@fault("no-gradient")
def through_numpy_and_back():
    return train(Two(lambda hidden: torch.from_numpy(hidden.detach().numpy()) * 1.0), batches())


@fault("no-gradient")
def layer_that_is_never_used():
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused, self.out = nn.Linear(64, 32), nn.Linear(32, 32), nn.Linear(32, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(F.relu(self.used(x)))

    return train(Model(), batches())


@fault("no-gradient")
def frozen_and_forgotten():
    model = Two()
    model.body.requires_grad_(False)
    return train(model, batches())


@fault("not-in-optimizer")
def only_the_head_is_given():
    model = Two()
    return train(model, batches(), torch.optim.Adam(model.head.parameters(), lr=1e-3))


@fault("not-in-optimizer")
def head_replaced_after_the_optimizer_was_made():
    model = Two()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    model.head = nn.Linear(32, 10)
    return train(model, batches(), optimizer)


def two_optimizers(first: Callable[[Two], Any], second: Callable[[Two], Any]):
    model = Two()
    optimizers = first(model), second(model)
    yield model
    for x, y in batches():
        for optimizer in optimizers:
            optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        for optimizer in optimizers:
            optimizer.step()
        yield


@fault("in-two-optimizers")
def head_in_two_optimizers():
    return two_optimizers(
        lambda model: torch.optim.Adam(model.parameters(), lr=1e-3),
        lambda model: torch.optim.SGD(model.head.parameters(), lr=0.1),
    )


@fault("in-two-optimizers")
def everything_in_two_of_a_kind():
    return two_optimizers(
        lambda model: torch.optim.SGD(model.parameters(), lr=0.05),
        lambda model: torch.optim.SGD(model.parameters(), lr=0.05),
    )


@fault("accumulated-gradient")
def no_zero_grad():
    return train(mlp(64, 32, 10), batches(), clear=False)


@fault("accumulated-gradient")
def the_wrong_optimizer_clears():
    """Two optimizers, and only the one of the head clears."""
    model = Two()
    body, head = (torch.optim.SGD(part.parameters(), lr=0.02) for part in (model.body, model.head))
    yield model
    for x, y in batches():
        head.zero_grad()
        F.cross_entropy(model(x), y).backward()
        body.step()
        head.step()
        yield


@fault("gradient-changed")
def cleared_after_backward():
    model = mlp(64, 32, 10)
    return train(model, batches(), before_step=lambda step: model.zero_grad(set_to_none=False), clear=False)


@fault("gradient-changed")
def cleared_by_the_optimizer():
    model = mlp(64, 32, 10)
    optimizer = torch.optim.Adam(model.parameters())
    return train(model, batches(), optimizer, before_step=lambda step: optimizer.zero_grad(), clear=False)
