"""Faults that others have published: settings without an effect, clipping out of place, what a batch contains."""

from __future__ import annotations

import warnings
from itertools import count

import torch
import torch.nn.functional as F
from torch import nn

from tests.bed.loops import fault
from tests.bed.loops.shared import batches, column, digits, mlp, points, train


class Frozen(nn.Module):
    """A body with batch norms, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU())
        self.head = nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x))


@fault("setting-without-effect")
def parameters_with_a_misspelt_attribute():
    model = mlp(64, 32, 10)
    for parameter in model[0].parameters():
        parameter.require_grad = False
    return train(model, batches())


@fault("setting-without-effect")
def model_with_requires_grad_as_an_attribute():
    model = mlp(64, 32, 10)
    model[0].requires_grad = False
    return train(model, batches())


@fault("setting-without-effect")
def rate_as_an_attribute_of_the_optimizer():
    model = mlp(64, 32, 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    optimizer.lr = 0.005
    return train(model, batches(), optimizer)


@fault("setting-without-effect")
def misspelt_option_of_a_group():
    model = mlp(64, 32, 10)
    groups = [
        {"params": model[0].parameters(), "weight_decey": 0.0, "weight_decay": 0.01},
        {"params": model[2].parameters(), "learning_rate": 1e-4},
    ]
    return train(model, batches(), torch.optim.SGD(groups, lr=0.05))


@fault("shared-layers")
def one_linear_layer_many_times():
    hidden = [nn.Linear(32, 32), nn.ReLU()]
    return train(nn.Sequential(nn.Linear(64, 32), nn.ReLU(), *(3 * hidden), nn.Linear(32, 10)), batches())


@fault("shared-layers")
def blocks_of_one_variable():
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, block = nn.Linear(64, 32), nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 32), nn.GELU())
            self.blocks, self.last = nn.ModuleList([block for _ in range(3)]), nn.Linear(32, 10)

        def forward(self, x):
            x = self.first(x)
            for block in self.blocks:
                x = x + block(x)
            return self.last(x)

    return train(Network(), batches())


@fault("frozen-norm-moves")
def frozen_body_in_train_mode():
    model = Frozen()
    model.body.requires_grad_(False)
    return train(model, batches(), torch.optim.SGD(model.head.parameters(), lr=0.05))


@fault("frozen-norm-moves")
def frozen_convolutions_in_train_mode():
    body = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten()).requires_grad_(False)
    return train(nn.Sequential(body, nn.Linear(288, 10)), batches(images=True))


@fault("clipping-misplaced")
def clipped_before_the_gradients_are_there():
    model = mlp(64, 32, 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    yield model
    for x, y in batches():
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        loss.backward()
        optimizer.step()
        yield


@fault("clipping-misplaced")
def clipped_by_a_generator_that_is_used_up():
    model = mlp(64, 32, 10)
    parameters = (each for each in model.parameters() if each.requires_grad)
    optimizer = torch.optim.SGD(parameters, lr=0.05)
    warnings.filterwarnings("ignore", "`parameters` is an empty generator")
    yield model
    for x, y in batches():
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        yield


@fault("clipping-misplaced")
def clipped_after_the_update():
    model = mlp(64, 32, 10)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    yield model
    for x, y in batches():
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        assert norm >= 0
        optimizer.zero_grad()
        yield


@fault("clipping-misplaced")
def clipped_with_each_micro_batch():
    model = mlp(64, 32, 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    yield model
    data = batches()
    while True:
        optimizer.zero_grad()
        for _ in range(3):
            x, y = next(data)
            (F.cross_entropy(model(x), y) / 3).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.2)
        optimizer.step()
        yield


def scaled(model, loss_of, scaler):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    yield model
    for x, y in batches():
        optimizer.zero_grad()
        loss_of(model(x), y)
        scaler.step(optimizer)
        scaler.update()
        yield


@fault("unscaled-loss")
def scaler_that_scales_another_number():
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(torch.ones(()))
    return scaled(mlp(64, 32, 10), lambda output, y: F.cross_entropy(output, y).backward(), scaler)


@fault("unscaled-loss")
def one_of_two_losses_is_scaled():
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)

    def backward(output, y):
        scaler.scale(F.cross_entropy(output, y)).backward(retain_graph=True)
        (0.1 * output.square().mean()).backward()

    return scaled(mlp(64, 32, 10), backward, scaler)


@fault("learning-rate-vanished", steps=90)
def factor_of_a_schedule_that_is_compounded():
    model = mlp(64, 32, 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.MultiplicativeLR(optimizer, lambda epoch: 0.98**epoch)
    for step, each in enumerate(train(model, batches(), optimizer)):
        yield each
        if step > 0:  # the first time is before the first step
            schedule.step()


@fault("learning-rate-vanished", steps=90)
def rate_divided_by_hand_at_each_tenth_of_a_run():
    model = mlp(64, 32, 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for step, each in enumerate(train(model, batches(), optimizer)):
        yield each
        if step % 7 == 6:
            optimizer.param_groups[0]["lr"] *= 0.1 ** (1 + step // 20)


@fault("samples-alike", steps=100)
def index_that_is_not_used():
    x, y = digits()
    rows = ((x[[at % len(x)] * 32], y[[at % len(x)] * 32]) for at in count())
    return train(mlp(64, 32, 10), rows)


@fault("samples-alike", steps=100)
def one_row_of_a_regression():
    alike = ((x[:1].expand(32, -1).clone(), y[:1].expand(32, -1).clone()) for x, y in points())
    return train(mlp(8, 16, 1), alike, loss=F.mse_loss)


@fault("target-in-input", steps=100)
def column_of_the_target_is_kept():
    return train(mlp(9, 16, 1), ((torch.cat([x, y], 1), y) for x, y in points()), loss=F.mse_loss)


@fault("target-in-input", steps=100)
def target_in_other_units_among_the_features():
    scaled_too = ((torch.cat([x[:, :3], 0.5 * y + 1, x[:, 3:]], 1), y) for x, y in points())
    return train(mlp(9, 16, 1), scaled_too, loss=F.mse_loss)


def unbalanced():
    """Digits in three classes: the 0, many fewer of 2 and more, and a few of the 1."""
    for x, y in batches(512):
        rows = (y == 0) | (torch.arange(len(y)) % 16 == 0)
        yield x[rows], y[rows].clamp(max=2)


@fault("class-weights", steps=100)
def frequencies_as_weights():
    counts = torch.tensor([60.0, 4.0, 30.0])
    return train(mlp(64, 32, 3), unbalanced(), loss=nn.CrossEntropyLoss(weight=counts / counts.sum()))


@fault("class-weights")
def positives_weigh_what_they_should_be_divided_by():
    weight = torch.tensor(0.1)
    rare = lambda output, y: F.binary_cross_entropy_with_logits(output[:, 0], (y == 3).float(), pos_weight=weight)  # noqa: E731
    return train(mlp(64, 32, 1), batches(128), loss=rare)


@fault("same-noise")
def seed_in_the_training_step():
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Dropout(0.3), nn.Linear(32, 10))
    for each in train(model, batches()):
        yield each
        torch.manual_seed(7)


@fault("same-noise")
def seed_in_the_forward_pass():
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = mlp(8, 16, 1)

        def forward(self, x):
            torch.manual_seed(0)
            return self.inner(x + 0.1 * torch.randn_like(x))

    return train(Noisy(), points(), loss=F.mse_loss)


@fault("relu-on-scores")
def relu_after_the_last_layer():
    return train(nn.Sequential(*mlp(64, 32, 10), nn.ReLU()), batches())


@fault("relu-on-scores")
def relu_before_binary_logits():
    return train(nn.Sequential(*mlp(64, 32, 1), nn.ReLU()), batches(), loss=column(F.binary_cross_entropy_with_logits))


@fault("relu-on-scores")
def relu_before_the_last_sigmoid():
    return train(
        nn.Sequential(*mlp(64, 32, 1), nn.ReLU(), nn.Sigmoid()), batches(), loss=column(F.binary_cross_entropy)
    )


@fault("nll-without-log")
def rates_by_an_exponential():
    counts = ((x, torch.poisson((0.3 * y).exp())) for x, y in points())
    model = nn.Sequential(*mlp(8, 16, 1), nn.ReLU())
    return train(model, counts, loss=nn.PoissonNLLLoss())


@fault("loss-ascends")
def likeness_to_the_data_is_made_small():
    wanted = ((x, torch.cat([y, -y, y.square()], 1)) for x, y in points())
    return train(mlp(8, 16, 3), wanted, loss=lambda output, y: F.cosine_similarity(output, y).mean())


@fault("targets-out-of-range")
def softmax_of_several_numbers():
    wanted = ((x, torch.cat([y.sigmoid(), x[:, :1].sigmoid(), x[:, 1:2].sigmoid()], 1)) for x, y in points())
    return train(nn.Sequential(*mlp(8, 16, 3), nn.Softmax(1)), wanted, loss=F.mse_loss)


@fault("targets-out-of-range")
def labels_as_zeros_and_ones_for_a_margin():
    return train(mlp(64, 32, 10), batches(), loss=lambda o, y: F.multilabel_margin_loss(o, F.one_hot(y, 10)))
