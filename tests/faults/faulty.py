"""Training scripts with one known fault each, by the id under which it is to be found."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from copy import deepcopy
from itertools import count
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.faults.common import batches, cnn, digits, mlp, points
from tests.faults.healthy import Rows, Transformer
from tests.faults.watched import Script

FAULTS: dict[str, tuple[str, Script, int]] = {}
"""Name -> (the id, the script, the steps that it is run for)."""


def fault(id: str, steps: int = 12) -> Callable[[Script], Script]:
    """Enter a script into the bed; most faults show in a few steps, a course needs more."""

    def enter(script: Script) -> Script:
        FAULTS[script.__name__] = (id, script, steps)
        return script

    return enter


def train(
    model: nn.Module,
    data: Iterator[tuple[Tensor, Tensor]],
    optimizer: torch.optim.Optimizer | None = None,
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    before_step: Callable[[int], Any] = lambda step: None,
    clear: bool = True,
) -> Iterator[Any]:
    """The usual loop; `before_step` runs between backward and the optimizer's step."""
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.05)
    yield model
    for step, (x, y) in enumerate(data):
        if clear:
            optimizer.zero_grad()
        loss(model(x), y).backward()
        before_step(step)
        optimizer.step()
        yield


def column(loss: Callable[..., Tensor], **options: Any) -> Callable[[Tensor, Tensor], Tensor]:
    """A loss of two classes for one logit: whether the digit is 5 or more."""
    return lambda output, y: loss(output, (y >= 5).float().unsqueeze(1), **options)


# -- units -------------------------------------------------------------------------------------------------------------


@fault("unit-off", 25)
def biases_far_below_zero():
    model = mlp(64, 32, 32, 10)
    nn.init.constant_(model[2].bias, -20.0)
    return train(model, batches())


@fault("unit-off", 35)
def killed_by_one_huge_step():
    model = mlp(64, 32, 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=30.0)

    def calm(step: int) -> None:
        optimizer.param_groups[0]["lr"] = 30.0 if step < 2 else 0.05

    return train(model, batches(), optimizer, before_step=calm)


@fault("unit-off", 25)
def channels_killed_by_a_negative_shift():
    model = cnn()
    with torch.no_grad():
        model[1].bias[:6] = -6.0
    return train(model, batches(images=True))


@fault("saturated")
def tanh_with_large_weights():
    model = mlp(64, 64, 64, 10, act=nn.Tanh)
    for layer in (model[0], model[2]):
        nn.init.normal_(layer.weight, std=3.0)
    return train(model, batches())


@fault("saturated")
def sigmoid_with_a_large_bias():
    model = mlp(64, 32, 10, act=nn.Sigmoid)
    nn.init.constant_(model[0].bias, 15.0)
    return train(model, batches())


@fault("saturated")
def attention_without_scaling():
    model = Transformer()
    for attention in model.attentions:
        nn.init.normal_(attention.qkv.weight, std=4.0)
    return train(model, batches(), torch.optim.SGD(model.parameters(), lr=1e-3))


@fault("symmetric-units")
def constant_initialisation():
    model = mlp(64, 32, 10)
    for layer in (model[0], model[2]):
        nn.init.constant_(layer.weight, 0.05)
        nn.init.zeros_(layer.bias)
    return train(model, batches(), torch.optim.Adam(model.parameters(), lr=1e-3))


@fault("symmetric-units")
def everything_begins_at_zero():
    model = mlp(64, 32, 10)
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    return train(model, batches())


@fault("symmetric-units")
def convolution_of_equal_channels():
    model = cnn(norm=False)
    nn.init.constant_(model[0].weight, 0.1)
    nn.init.zeros_(model[0].bias)
    nn.init.constant_(model[4].weight, 0.05)
    nn.init.zeros_(model[4].bias)
    return train(model, batches(images=True))


# -- gradients through depth -------------------------------------------------------------------------------------------


@fault("vanishing-gradient")
def deep_sigmoid_network():
    model = mlp(64, *[32] * 10, 10, act=nn.Sigmoid)
    return train(model, batches())


@fault("vanishing-gradient")
def deep_network_with_tiny_weights():
    model = mlp(64, *[32] * 8, 10)
    for layer in model:
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=0.01)
    return train(model, batches())


@fault("vanishing-gradient")
def recurrent_network_that_forgets():
    model = Rows(nn.RNN)
    nn.init.normal_(model.rnn.weight_hh_l0, std=0.02)
    return train(model, batches())


@fault("exploding-gradient")
def deep_network_with_large_weights():
    model = mlp(64, *[64] * 8, 10)
    for layer in model:
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=1.0)
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


# -- losses ------------------------------------------------------------------------------------------------------------


@fault("softmax-before-cross-entropy")
def softmax_as_last_layer():
    return train(nn.Sequential(mlp(64, 32, 10), nn.Softmax(1)), batches())


@fault("softmax-before-cross-entropy")
def softmax_then_a_view():
    def loss(output: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(output.reshape(-1, 2, 10).softmax(-1).reshape(-1, 10), y)

    return train(mlp(64, 32, 10), batches(), loss=loss)


@fault("nll-without-log")
def likelihood_of_a_softmax():
    return train(nn.Sequential(mlp(64, 32, 10), nn.Softmax(1)), batches(), loss=F.nll_loss)


@fault("nll-without-log")
def likelihood_of_logits():
    return train(mlp(64, 32, 10), batches(), loss=F.nll_loss)


@fault("sigmoid-before-bce")
def sigmoid_and_bce():
    return train(nn.Sequential(mlp(64, 32, 1), nn.Sigmoid()), batches(), loss=column(F.binary_cross_entropy))


@fault("sigmoid-before-bce")
def sigmoid_squeezed_and_bce():
    return train(
        mlp(64, 32, 1),
        batches(),
        loss=lambda output, y: nn.BCELoss()(torch.sigmoid(output).squeeze(1), (y > 4).float()),
    )


@fault("sigmoid-twice")
def sigmoid_and_bce_with_logits():
    model = nn.Sequential(mlp(64, 32, 1), nn.Sigmoid())
    return train(model, batches(), loss=column(F.binary_cross_entropy_with_logits))


@fault("sigmoid-twice")
def sigmoid_in_the_loop():
    return train(
        mlp(64, 32, 10), batches(),
        loss=lambda output, y: nn.BCEWithLogitsLoss()(output.sigmoid(), F.one_hot(y, 10).float()),
    )  # fmt: skip


def quietly(loss: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """PyTorch warns of some of these shapes, and nobody reads it."""

    def run(output: Tensor, y: Tensor) -> Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return loss(output, y)

    return run


@fault("broadcast-in-loss")
def column_against_vector():
    return train(mlp(8, 16, 1), points(), loss=quietly(lambda output, y: F.mse_loss(output, y.squeeze(1))))


@fault("broadcast-in-loss")
def difference_by_hand():
    return train(mlp(8, 16, 1), points(), loss=lambda output, y: ((output - y[:, 0]) ** 2).mean())


@fault("broadcast-in-loss")
def one_target_for_every_output():
    return train(mlp(8, 16, 4), points(), loss=quietly(lambda output, y: F.smooth_l1_loss(output, y)))


@fault("sum-reduction")
def sum_over_the_batch():
    model = mlp(64, 32, 10)
    return train(
        model, batches(), torch.optim.SGD(model.parameters(), lr=1e-3),
        loss=lambda output, y: F.cross_entropy(output, y, reduction="sum"),
    )  # fmt: skip


@fault("sum-reduction")
def none_and_then_sum():
    model = mlp(8, 16, 1)
    return train(
        model, points(), torch.optim.SGD(model.parameters(), lr=1e-3),
        loss=lambda output, y: F.mse_loss(output, y, reduction="none").sum(),
    )  # fmt: skip


# -- layers and data ---------------------------------------------------------------------------------------------------


@fault("batch-norm-of-one")
def images_one_by_one():
    return train(cnn(), batches(1, images=True))


@fault("batch-norm-of-one")
def last_batch_of_one():
    model = cnn()
    one = (pair for index, pair in enumerate(batches(1, images=True)) if index)
    many = batches(16, images=True)
    return train(model, (next(one) if step % 3 == 0 else next(many) for step in range(12)))


@fault("input-not-normalised")
def pixels_up_to_255():
    data = ((128 + 90 * x, y) for x, y in batches())
    model = mlp(64, 32, 10)
    return train(model, data, torch.optim.SGD(model.parameters(), lr=1e-6))


@fault("input-not-normalised")
def features_of_different_units():
    scale = torch.tensor([1.0, 1e4, 1.0, 1e-2, 1.0, 1.0, 1.0, 1.0]) / 1e4
    model = mlp(8, 16, 1)
    return train(model, ((x * scale, y) for x, y in points()), loss=F.mse_loss)


@fault("input-not-normalised")
def a_year_among_the_features():
    model = mlp(8, 16, 1)
    data = ((x + torch.tensor([2000.0] + [0.0] * 7), y) for x, y in points())
    return train(model, data, torch.optim.Adam(model.parameters(), lr=1e-4), loss=F.mse_loss)


@fault("unfittable-labels")
def equal_pictures_with_other_labels():
    x, y = digits()
    x, y = x[:32].clone(), y[:32].clone()
    x[16:] = x[:16]
    y[16:] = (y[:16] + 1) % 10
    return train(mlp(64, 64, 10), ((x, y) for _ in range(100)))


@fault("targets-out-of-range")
def tanh_for_targets_beyond_one():
    model = nn.Sequential(mlp(8, 32, 1), nn.Tanh())
    return train(model, ((x, 5 * y) for x, y in points()), loss=F.mse_loss)


@fault("targets-out-of-range")
def labels_of_minus_one():
    return train(
        mlp(64, 32, 1), batches(),
        loss=lambda output, y: F.binary_cross_entropy_with_logits(output, (2.0 * (y > 4) - 1).unsqueeze(1)),
    )  # fmt: skip


@fault("unfittable-labels", 100)
def one_batch_through_the_norm_of_a_single_feature():
    """A layer norm of one feature gives 0 whatever comes in: only how often each label occurs can be learnt."""
    x, y = next(batches())
    model = nn.Sequential(nn.Linear(64, 1), nn.LayerNorm(1), nn.Linear(1, 400), nn.ReLU(), nn.Linear(400, 10))
    return train(model, ((x, y) for _ in range(100)), torch.optim.Adam(model.parameters(), lr=1e-2))


# -- the optimizer -----------------------------------------------------------------------------------------------------


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
