"""Faults of units, layers and data."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from tests.bed.loops import fault
from tests.bed.loops.networks import Transformer
from tests.bed.loops.shared import batches, cnn, digits, mlp, points, train

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
