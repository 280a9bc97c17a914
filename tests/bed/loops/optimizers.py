"""Faults between a network and its optimizer, and of what stands between them: targets, lists, a scaler."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from itertools import count
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.bed.loops import fault
from tests.bed.loops.shared import batches, cnn, mlp, points, quietly, train


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


# -- the step ----------------------------------------------------------------------------------------------------------


@fault("update-too-large", 40)
def adam_with_a_rate_of_one():
    model = mlp(64, 32, 10)
    return train(model, batches(), torch.optim.Adam(model.parameters(), lr=0.5))


@fault("update-too-large", 40)
def weights_that_begin_too_small_for_the_rate():
    model = mlp(64, 32, 10, act=nn.Tanh)
    nn.init.normal_(model[0].weight, std=1e-3)
    return train(model, batches(), torch.optim.SGD(model.parameters(), lr=20.0))


@fault("update-too-small", 30)
def rate_of_a_billionth():
    model = mlp(64, 32, 10)
    return train(model, batches(), torch.optim.Adam(model.parameters(), lr=1e-9))


@fault("update-too-small", 30)
def sgd_with_the_rate_of_something_else():
    model = cnn()
    return train(model, batches(images=True), torch.optim.SGD(model.parameters(), lr=1e-7))


@fault("stuck-update", 30)
def schedule_that_ends_at_zero():
    model = mlp(64, 32, 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=20)
    return train(model, batches(), optimizer, before_step=lambda step: step and schedule.step())


@fault("stuck-update", 100)
def one_huge_gradient_in_adams_memory():
    """Of every weight: a unit that was off in that batch would remember nothing of it, hence the tanh."""
    model = mlp(64, 32, 10, act=nn.Tanh)
    loss = count()
    return train(
        model, batches(), torch.optim.Adam(model.parameters(), lr=1e-3),
        loss=lambda output, y: F.cross_entropy(output, y) * (1e6 if next(loss) == 0 else 1),
    )  # fmt: skip


@fault("stuck-update", 20)
def bfloat16_weights_with_a_small_rate():
    model = mlp(64, 32, 10).bfloat16()
    data = ((x.bfloat16(), y) for x, y in batches())
    return train(model, data, torch.optim.SGD(model.parameters(), lr=1e-6))


@fault("stuck-update", 30)
def rate_that_collapses():
    model = mlp(64, 32, 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)

    def collapse(step: int) -> None:
        optimizer.param_groups[0]["lr"] = 0.05 if step < 10 else 1e-30

    return train(model, batches(), optimizer, before_step=collapse)


@fault("stuck-update", 30)
def step_that_writes_nothing():
    class Stale(torch.optim.Adam):
        calls = 0

        def step(self, closure: Any = None) -> Any:
            self.calls += 1
            return super().step(closure) if self.calls < 10 else None

    model = mlp(64, 32, 10)
    return train(model, batches(), Stale(model.parameters()))


@fault("nothing-to-step")
def optimizer_of_the_model_before_it_was_copied():
    model = mlp(64, 32, 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    return train(deepcopy(model), batches(), optimizer)


@fault("nothing-to-step")
def optimizer_of_a_model_that_was_built_again():
    optimizer = torch.optim.Adam(mlp(64, 32, 10).parameters())
    return train(mlp(64, 32, 10), batches(), optimizer)


@fault("step-counter-stands")
def new_optimizer_at_each_step():
    model = mlp(64, 32, 10)
    yield model
    for x, y in batches():
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        yield


@fault("step-counter-stands")
def state_loaded_at_each_step():
    model = mlp(64, 32, 10)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    state = deepcopy(optimizer.state_dict())
    return train(model, batches(), optimizer, before_step=lambda step: optimizer.load_state_dict(state))


def stepping_if(wanted: Callable[[int], bool]):
    model = mlp(64, 32, 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    yield model
    for step, (x, y) in enumerate(batches()):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        if wanted(step):
            optimizer.step()
        yield


@fault("step-not-called", 45)
def step_under_a_condition_that_no_longer_holds():
    return stepping_if(lambda step: step < 20)


@fault("step-not-called", 60)
def step_after_so_many_micro_batches_that_it_never_comes():
    return stepping_if(lambda step: step < 8 and step % 4 == 3)


@fault("always-clipped", 20)
def limit_of_a_hundredth():
    model = mlp(64, 32, 10)
    clip = lambda step: nn.utils.clip_grad_norm_(model.parameters(), 0.01)  # noqa: E731
    return train(model, batches(), torch.optim.SGD(model.parameters(), lr=1.0), before_step=clip)


@fault("always-clipped", 20)
def sum_with_a_limit_made_for_a_mean():
    model = mlp(8, 16, 1)
    return train(
        model, ((x, 20 * y) for x, y in points()), loss=F.mse_loss,
        before_step=lambda step: nn.utils.clip_grad_norm_(model.parameters(), 0.5),
    )  # fmt: skip
