"""Faults between a network and its optimizer, and of what stands between them: targets, lists, a scaler."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.faults.common import batches, mlp, points
from tests.faults.faulty import fault, quietly, train


def bootstrapped(loss_of: Any) -> Iterator[Any]:
    """Values of states that are compared with rewards and later values, computed in the step without a gradient."""
    online, target = mlp(8, 16, 4), mlp(8, 16, 4)
    optimizer = torch.optim.Adam(online.parameters(), lr=1e-3)
    yield {"online": online, "target": target}
    for x, y in points():
        with torch.no_grad():
            wanted = y.squeeze(1) + 0.9 * target(x.flip(0)).max(1).values
        actions = torch.randint(4, (len(x), 1))
        optimizer.zero_grad()
        quietly(loss_of)(online(x).gather(1, actions), wanted).backward()
        optimizer.step()
        yield


@fault("broadcast-in-loss")
def chosen_values_as_a_column():
    return bootstrapped(F.smooth_l1_loss)


@fault("broadcast-in-loss")
def chosen_values_as_a_column_by_hand():
    return bootstrapped(lambda output, wanted: (wanted - output).square().mean())


@fault("broadcast-in-loss")
def advantages_that_are_detached_as_a_column():
    """A policy and a critic: the weights of the actions broadcast against the logarithms of their probabilities."""
    policy, critic = mlp(8, 16, 4), mlp(8, 16, 1)
    optimizer = torch.optim.Adam([*policy.parameters(), *critic.parameters()], lr=1e-3)
    yield {"policy": policy, "critic": critic}
    for x, y in points():
        values = critic(x)
        chosen = policy(x).log_softmax(1)[:, 0]
        optimizer.zero_grad()
        (F.mse_loss(values, y) - (chosen * (y - values).detach()).mean()).backward()
        optimizer.step()
        yield


@fault("not-in-optimizer")
def optimizer_of_the_model_before():
    first, model = mlp(64, 32, 10), mlp(64, 32, 10)
    return train(model, batches(), torch.optim.Adam(first.parameters(), lr=1e-3))


class Listed(nn.Module):
    """Layers and a scale that the model has not registered."""

    def __init__(self) -> None:
        super().__init__()
        self.layers, self.head = [nn.Linear(64, 32), nn.Linear(32, 32)], nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x).tanh()
        return self.head(x)


@fault("not-in-optimizer")
def layers_in_a_plain_list():
    return train(Listed(), batches())


@fault("not-in-optimizer")
def scale_that_is_a_plain_tensor():
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.scale = mlp(64, 32, 10), torch.ones(10, requires_grad=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x) * self.scale

    return train(Scaled(), batches())


@fault("not-in-optimizer")
def layer_made_in_forward():
    class Made(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Linear(64, 32)

        def forward(self, x: Tensor) -> Tensor:
            return nn.Linear(32, 10)(self.body(x).relu())

    return train(Made(), batches())


def scaled(clip: Any) -> Iterator[Any]:
    model = mlp(64, 32, 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    yield model
    for x, y in batches():
        optimizer.zero_grad()
        scaler.scale(F.cross_entropy(model(x), y)).backward()
        clip(model.parameters())
        scaler.step(optimizer)
        scaler.update()
        yield


@fault("clipped-before-unscale")
def norm_of_the_scaled_gradient_clipped():
    return scaled(lambda parameters: nn.utils.clip_grad_norm_(parameters, 1.0))


@fault("clipped-before-unscale")
def values_of_the_scaled_gradient_clipped():
    return scaled(lambda parameters: nn.utils.clip_grad_value_(parameters, 0.1))
