"""Faults of losses, targets and batches: their sign, penalty and summands, their softmax, scale and classes."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.bed.loops import fault
from tests.bed.loops.shared import batches, column, digits, mlp, points, quietly, train

# -- the sign ----------------------------------------------------------------------------------------------------------


@fault("loss-ascends", 6)
def minus_the_cross_entropy():
    return train(mlp(64, 32, 10), batches(), loss=lambda output, y: -F.cross_entropy(output, y))


@fault("loss-ascends", 6)
def log_likelihood_without_a_minus():
    def loss(output: Tensor, y: Tensor) -> Tensor:
        return output.log_softmax(1).gather(1, y.unsqueeze(1)).mean()

    return train(mlp(64, 32, 10), batches(), loss=loss)


@fault("loss-ascends", 6)
def squares_that_are_maximised():
    model = mlp(8, 16, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, maximize=True)
    return train(model, points(), optimizer, loss=lambda output, y: ((output - y) ** 2).mean())


# -- summands ----------------------------------------------------------------------------------------------------------


def penalised(coefficient: float, size: Callable[[Tensor], Tensor]):
    model = mlp(64, 32, 10)

    def loss(output: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(output, y) + coefficient * sum(size(each).sum() for each in model.parameters())

    return train(model, batches(), torch.optim.SGD(model.parameters(), lr=1e-3), loss=loss)


@fault("penalty-dominates", 6)
def squares_of_weights_with_far_too_large_a_coefficient():
    return penalised(3.0, torch.square)


@fault("penalty-dominates", 6)
def sizes_of_weights_with_far_too_large_a_coefficient():
    return penalised(0.3, torch.abs)


@fault("penalty-dominates", 6)
def weight_decay_meant_for_another_optimizer():
    model = mlp(64, 32, 10)
    return train(model, batches(), torch.optim.Adam(model.parameters(), lr=1e-4, weight_decay=5.0))


@fault("loss-part-without-gradient", 6)
def penalty_as_a_number():
    model = mlp(64, 32, 10)

    def loss(output: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(output, y) + 0.01 * model[0].weight.norm().item()

    return train(model, batches(), loss=loss)


@fault("loss-part-without-gradient", 6)
def second_goal_without_gradients():
    def loss(output: Tensor, y: Tensor) -> Tensor:
        with torch.no_grad():
            spread = output.std(0).mean()
        return F.cross_entropy(output, y) - 0.1 * spread

    return train(mlp(64, 32, 10), batches(), loss=loss)


# -- softmaxes ---------------------------------------------------------------------------------------------------------


@fault("softmax-axis", 6)
def logarithm_of_a_softmax_over_the_batch():
    return train(mlp(64, 32, 10), batches(), loss=lambda output, y: F.nll_loss(output.log_softmax(0), y))


@fault("softmax-axis", 6)
def attention_to_the_other_samples():
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.score, self.value, self.out = nn.Linear(64, 16), nn.Linear(64, 16), nn.Linear(16, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.score(x).softmax(0) * self.value(x))

    return train(Model(), batches())


@fault("softmax-of-one", 6)
def cross_entropy_of_one_output():
    return train(mlp(64, 32, 1), batches(), loss=lambda output, y: F.cross_entropy(output, torch.zeros_like(y)))


@fault("softmax-of-one", 8)
def attention_to_a_single_place():
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.out = nn.Linear(64, 48), nn.Linear(16, 10)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.qkv(x.unsqueeze(1)).chunk(3, -1)
            return self.out(((q @ k.transpose(1, 2) / 4).softmax(-1) @ v)[:, 0])

    return train(Model(), batches())


# -- targets -----------------------------------------------------------------------------------------------------------


@fault("targets-scale", 6)
def prices_in_dollars():
    model = mlp(8, 32, 1)
    data = ((x, 200_000 + 50_000 * y) for x, y in points())
    return train(model, data, torch.optim.Adam(model.parameters(), lr=1e-3), loss=F.mse_loss)


@fault("targets-scale", 6)
def lengths_in_nanometres():
    model = mlp(8, 32, 1)
    data = ((x, 1e4 * y) for x, y in points())
    return train(model, data, torch.optim.Adam(model.parameters(), lr=1e-3), loss=F.l1_loss)


@fault("initial-loss", 6)
def last_layer_far_too_large():
    model = mlp(64, 32, 10)
    nn.init.normal_(model[2].weight, std=10.0)
    return train(model, batches(), torch.optim.Adam(model.parameters(), lr=1e-3))


@fault("initial-loss", 6)
def logits_times_a_hundred():
    return train(
        mlp(64, 32, 1), batches(), loss=column(lambda output, y: F.binary_cross_entropy_with_logits(100 * output, y))
    )


def by_class(labels: Callable[[Tensor], Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of the digits, sorted by their classes."""
    x, y = digits()
    order = labels(y).argsort()
    for chosen in order.split(32)[:-1]:
        yield x[chosen], y[chosen]


@fault("one-class", 30)
def digits_one_after_the_other():
    return train(mlp(64, 32, 10), by_class(lambda y: y))


@fault("one-class", 45)
def the_large_ones_last():
    return train(mlp(64, 32, 1), by_class(lambda y: y >= 5), loss=column(F.binary_cross_entropy_with_logits))


# -- batches -----------------------------------------------------------------------------------------------------------


@fault("same-batch")
def the_first_batch_at_each_step():
    x, y = digits()
    return train(mlp(64, 32, 10), ((x[:32], y[:32]) for _ in range(12)))


@fault("same-batch")
def a_stream_that_stands_still():
    first = next(points())
    return train(mlp(8, 16, 1), (first for _ in range(12)), loss=F.mse_loss)


@fault("zero-batch", 6)
def pictures_as_integers_before_the_division():
    data = (((x - x.min()).div(255).long().float(), y) for x, y in batches())
    return train(mlp(64, 32, 10), data)


@fault("zero-batch", 6)
def one_buffer_that_is_never_filled():
    data = ((torch.zeros_like(x) if step == 3 else x, y) for step, (x, y) in enumerate(batches()))
    return train(mlp(64, 32, 10), data)


def accumulated(loss: Callable[[Tensor, Tensor], Tensor], sizes: tuple[int, ...]):
    model, data = mlp(64, 32, 10), batches(64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    yield model
    while True:
        optimizer.zero_grad()
        for size in sizes:
            x, y = next(data)
            loss(model(x[:size]), y[:size]).backward()
        optimizer.step()
        yield


@fault("unequal-micro-batches", 6)
def means_of_unequal_micro_batches():
    return accumulated(lambda output, y: F.cross_entropy(output, y) / 3, (40, 25, 8))


@fault("unequal-micro-batches", 6)
def means_over_the_labels_that_are_not_ignored():
    def loss(output: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(output, torch.where(y < 1 + len(y) % 9, y, -100)) / 2

    return accumulated(loss, (35, 32))


@fault("micro-batch-scale", 6)
def sum_of_eight_means():
    return accumulated(F.cross_entropy, (8,) * 8)


@fault("micro-batch-scale", 6)
def sum_of_four_means_by_hand():
    def loss(output: Tensor, y: Tensor) -> Tensor:
        return ((output.softmax(1) - F.one_hot(y, 10)) ** 2).mean()

    return accumulated(loss, (16,) * 4)


# -- the loss itself ---------------------------------------------------------------------------------------------------


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
