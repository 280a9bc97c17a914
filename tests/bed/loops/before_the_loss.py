"""Faults of what stands before a loss, of how samples are drawn, and of weights that are replaced; healthy ones."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from itertools import count
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, TensorDataset, WeightedRandomSampler

from tests.bed.loops import fault, healthy
from tests.bed.loops.models import scheduled
from tests.bed.loops.shared import batches, column, digits, mlp, points, train

# -- which samples -----------------------------------------------------------------------------------------------------


def drawn(weights: Tensor, size: int = 32) -> Iterator[Any]:
    x, y = digits()
    sampler = WeightedRandomSampler(weights, len(x))
    return (each for _ in count() for each in DataLoader(TensorDataset(x, y), batch_size=size, sampler=sampler))


@fault("few-samples", steps=40)
def one_weight_for_each_class():
    return train(mlp(64, 32, 10), drawn(1 / digits()[1].bincount()))


@fault("few-samples", steps=40)
def indices_of_which_a_part_repeats():
    x, y = digits()
    rows = (torch.randint(len(x), (64,)) % 12 for _ in count())
    return train(mlp(64, 32, 10), ((x[each], y[each]) for each in rows))


@healthy
def classes_drawn_alike():
    y = digits()[1]
    return train(mlp(64, 32, 10), drawn((1 / y.bincount())[y]))


@healthy
def four_points_of_xor():
    x = torch.tensor([[0.0, 0], [0, 1], [1, 0], [1, 1]])
    y = torch.tensor([0, 1, 1, 0])
    rows = (torch.randint(4, (32,)) for _ in count())
    return train(mlp(2, 16, 2), ((x[each], y[each]) for each in rows))


@healthy
def each_sample_in_four_copies_with_noise():
    several = ((x.repeat_interleave(4, 0), y.repeat_interleave(4, 0)) for x, y in batches(16))
    noisy = nn.Sequential(nn.Dropout(0.2), mlp(64, 32, 10))
    return train(noisy, several)


# -- schedules ---------------------------------------------------------------------------------------------------------


def cycled(every: int, planned: int = 5000) -> Iterator[Any]:
    model = mlp(64, 16, 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    schedule = lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=planned)
    stepped = lambda step: (step + 1) % every or schedule.step()  # noqa: E731
    return train(model, batches(), optimizer, before_step=stepped)


@fault("scheduler-per-epoch", steps=40)
def one_cycle_in_epochs():
    return cycled(18)


@fault("scheduler-per-epoch", steps=40)
def one_cycle_that_is_never_stepped():
    return cycled(1000)


@healthy
def one_cycle_at_each_batch():
    return scheduled(lambda optimizer: lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=200))


# -- outputs -----------------------------------------------------------------------------------------------------------


def far(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    return x, 40 + 10 * y


@fault("norm-on-outputs")
def batch_norm_after_the_last_layer():
    model = nn.Sequential(mlp(8, 16, 1), nn.BatchNorm1d(1))
    return train(model, (far(*each) for each in points()), loss=F.mse_loss)


@fault("norm-on-outputs")
def layer_norm_of_four_predictions():
    model = nn.Sequential(mlp(8, 16, 4), nn.LayerNorm(4))
    return train(model, ((x, 30 * x[:, :4]) for x, _ in points()), loss=F.l1_loss)


@healthy
def norm_of_outputs_for_standardised_targets():
    model = nn.Sequential(mlp(8, 16, 1), nn.BatchNorm1d(1))
    return train(model, ((x, (y - y.mean()) / y.std()) for x, y in points()), loss=F.mse_loss)


@fault("score-as-class")
def largest_score_for_a_label():
    return train(mlp(64, 32, 10), batches(), loss=largest)


def largest(output: Tensor, y: Tensor) -> Tensor:
    return F.mse_loss(output.max(1).values, y.float())


@fault("score-as-class")
def largest_score_for_a_label_by_hand():
    return train(mlp(64, 32, 10), batches(), loss=lambda output, y: (torch.amax(output, 1) - y).abs().mean())


@healthy
def largest_part_for_a_number():
    """A network that is the largest of several planes, for a convex function."""
    return train(mlp(8, 16, 6), points(), loss=lambda output, y: F.mse_loss(output.max(1).values, y[:, 0]))


@fault("sigmoid-twice", steps=1)
def log_softmax_for_logits():
    hot = lambda output, y: F.binary_cross_entropy_with_logits(output.log_softmax(1), F.one_hot(y, 10).float())  # noqa: E731
    return train(mlp(64, 32, 10), batches(), loss=hot)


@fault("sigmoid-twice", steps=1)
def log_sigmoid_for_logits():
    return train(
        mlp(64, 32, 1), batches(), loss=lambda o, y: column(F.binary_cross_entropy_with_logits)(F.logsigmoid(o), y)
    )


@healthy
def log_sigmoid_by_hand():
    """The right binary loss, written with log_sigmoid."""
    hand = lambda output, y: -(y * F.logsigmoid(output) + (1 - y) * F.logsigmoid(-output)).mean()  # noqa: E731
    return train(mlp(64, 32, 1), batches(), loss=lambda output, y: hand(output, (y >= 5).float()[:, None]))


# -- targets -----------------------------------------------------------------------------------------------------------


@fault("targets-out-of-range", steps=1)
def several_labels_for_a_softmax():
    tags = lambda x: (x[:, :4] > 0).float()  # noqa: E731
    return train(mlp(8, 16, 4), ((x, tags(x)) for x, _ in points()))


@fault("targets-out-of-range", steps=1)
def counts_for_a_softmax():
    return train(mlp(8, 16, 4), ((x, x[:, :4].abs().round() + 1) for x, _ in points()))


@healthy
def shares_of_classes_for_a_softmax():
    return train(mlp(8, 16, 4), ((x, (2 * x[:, :4]).softmax(1)) for x, _ in points()))


@fault("relative-error-near-zero")
def percentage_of_numbers_that_begin_at_zero():
    return train(mlp(8, 16, 1), points(256), loss=lambda o, y: ((o - y.relu()).abs() / (y.relu() + 1e-8)).mean())


@fault("relative-error-near-zero")
def squared_ratio_to_small_targets():
    small = ((x, torch.where(torch.arange(len(y))[:, None] % 4 > 0, y.abs() + 1, 1e-5)) for x, y in points())
    return train(mlp(8, 16, 1), small, loss=lambda o, y: ((o - y) / y).square().mean())


@healthy
def relative_error_of_targets_around_ten():
    relative = lambda output, y: ((output - y).abs() / y).mean()  # noqa: E731
    return train(mlp(8, 16, 1), ((x, 10 + y) for x, y in points()), loss=relative)


# -- shapes ------------------------------------------------------------------------------------------------------------


def places(reorder: Any) -> Iterator[Any]:
    """The class of each of 6 places of a row, by a convolution."""
    labels = (torch.randint(3, (16, 6)) for _ in count())
    data = ((F.one_hot(y, 3).float().movedim(-1, 1) + 0.1 * torch.randn(16, 3, 6), y) for y in labels)
    model = nn.Sequential(nn.Conv1d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv1d(8, 3, 1))
    return train(model, data, loss=lambda output, y: F.cross_entropy(reorder(output), y.flatten()))


@fault("view-swaps-axes", steps=1)
def scores_of_places_in_rows_by_a_view():
    return places(lambda scores: scores.reshape(-1, 3))


@fault("view-swaps-axes", steps=1)
def scores_of_places_in_rows_by_two_views():
    return places(lambda scores: scores.view(16, -1, 3).flatten(0, 1))


@healthy
def scores_of_places_with_the_classes_last():
    return places(lambda scores: scores.movedim(1, -1).reshape(-1, 3))


# -- penalties and weights ---------------------------------------------------------------------------------------------


def penalised(size: Any) -> Iterator[Any]:
    model = mlp(64, 32, 10)
    add = lambda output, y: F.cross_entropy(output, y) + 1e-4 * sum(map(size, model.parameters()))  # noqa: E731
    return train(model, batches(), loss=add)


@fault("penalty-unbounded", steps=1)
def sum_of_weights_as_they_are():
    return penalised(torch.sum)


@fault("penalty-unbounded", steps=1)
def mean_of_weights_as_they_are():
    return penalised(lambda weight: 10 * weight.mean())


@healthy
def sums_of_absolute_weights():
    return penalised(lambda weight: weight.abs().sum())


@healthy
def affine_flow_with_a_sum_of_logarithms():
    """The logarithm of a volume is a sum of parameters, and right so."""
    model = nn.Linear(4, 4)
    scale = nn.Parameter(0.1 * torch.randn(4))
    model.register_parameter("scale", scale)
    density = lambda output, y: (output * scale.exp()).square().mean() / 2 - scale.sum() / 4  # noqa: E731
    return train(model, ((x[:, :4], y) for x, y in points()), loss=density)


@healthy
def sum_of_weights_kept_above_zero():
    model = mlp(64, 10)
    keep = lambda step: [each.data.clamp_(min=0) for each in model.parameters()]  # noqa: E731
    keep(0)
    add = lambda output, y: F.cross_entropy(output, y) + 1e-4 * model[0].weight.sum()  # noqa: E731
    loop = train(model, batches(), torch.optim.SGD(model.parameters(), lr=0.01), add)
    yield next(loop)
    for step, _ in enumerate(loop):
        keep(step)
        yield


def replaced(change: Any, each: int = 20) -> Iterator[Any]:
    model = mlp(64, 32, 10)
    change = change(model)
    loop = train(model, batches(64), torch.optim.Adam(model.parameters(), lr=5e-3))
    yield next(loop)
    for step, _ in enumerate(loop, 1):
        if step % each == 0:
            change()
        yield


@fault("weights-replaced", steps=90)
def initialised_anew_now_and_then():
    return replaced(lambda model: lambda: [each.reset_parameters() for each in model if hasattr(each, "weight")])


@fault("weights-replaced", steps=90)
def the_first_checkpoint_is_loaded_again():
    def change(model):
        first = copy.deepcopy(model.state_dict())
        return lambda: model.load_state_dict(first)

    return replaced(change)


@healthy
def weights_put_back_after_an_evaluation():
    def change(model):
        average = copy.deepcopy(model.state_dict())

        def evaluate():
            backup = copy.deepcopy(model.state_dict())
            model.load_state_dict(average)
            with torch.no_grad():
                model(digits()[0][:64])
            model.load_state_dict(backup)

        return evaluate

    return replaced(change)


@healthy
def smallest_weights_set_to_zero_now_and_then():
    def change(model):
        def prune():
            for each in model.parameters():
                each.data[each.abs() < 0.01] = 0

        return prune

    return replaced(change)


# -- what is joined ----------------------------------------------------------------------------------------------------


class Branches(nn.Module):
    def __init__(self, take: Any) -> None:
        super().__init__()
        self.one, self.other, self.head = nn.Linear(64, 16), nn.Linear(64, 16), nn.Linear(16, 10)
        self.take = take

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.take(torch.stack([self.one(x).tanh(), self.other(x).tanh()])))


@fault("zero-gradient")
def one_of_two_branches_is_taken():
    return train(Branches(lambda both: both[0]), batches())


@fault("zero-gradient")
def state_of_the_first_layer_is_taken():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.recur, self.head = nn.GRU(8, 16, num_layers=2, batch_first=True), nn.Linear(16, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.recur(x.view(-1, 8, 8))[1][0])

    return train(Net(), batches())


@healthy
def a_branch_is_drawn_in_each_step():
    return train(Branches(lambda both: both[int(torch.randint(2, ()))]), batches())
