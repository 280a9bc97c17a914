"""Healthy runs that look like faults: shared layers, frozen norms, clipping in a helper, weights, seeds."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from tests.bed.loops import healthy
from tests.bed.loops.published import Frozen, unbalanced
from tests.bed.loops.shared import batches, column, digits, mlp, points, train


@healthy
def layer_called_in_a_loop():
    """Weights are shared on purpose: one layer, one name."""

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.middle, self.last = nn.Linear(64, 32), nn.Linear(32, 32), nn.Linear(32, 10)

        def forward(self, x):
            x = self.first(x)
            for _ in range(3):
                x = x + torch.relu(self.middle(x))
            return self.last(x)

    return train(Network(), batches())


@healthy
def heads_of_one_layer():
    """One head under several names, each on another input, as detectors share theirs."""

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.bodies, head = nn.ModuleList([mlp(64, 16, 16), mlp(64, 16, 16)]), nn.Linear(16, 10)
            self.heads = nn.ModuleList([head, head])

        def forward(self, x):
            return sum(head(torch.relu(body(x))) for body, head in zip(self.bodies, self.heads, strict=True))

    return train(Network(), batches())


@healthy
def one_activation_many_times():
    act = nn.ReLU()
    return train(nn.Sequential(nn.Linear(64, 32), act, nn.Linear(32, 32), act, nn.Linear(32, 10)), batches())


@healthy
def frozen_body_in_eval_mode():
    model = Frozen()
    model.body.requires_grad_(False).eval()
    return train(model, batches(), torch.optim.SGD(model.head.parameters(), lr=0.05))


@healthy
def follower_with_batch_norms():
    """A target network that follows by a moving average, in train mode and without gradients."""
    online, follower, head = Frozen().body, Frozen().body.requires_grad_(False), mlp(32, 32, 32)
    optimizer = torch.optim.Adam([*online.parameters(), *head.parameters()], lr=1e-3)
    yield {"online": online, "follower": follower, "head": head}
    for x, _ in batches():
        one, other = (x + 0.1 * torch.randn_like(x) for _ in range(2))
        loss = 1 - F.cosine_similarity(head(online(one)), follower(other).detach()).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for kept, new in zip(follower.parameters(), online.parameters(), strict=True):
                kept.lerp_(new, 0.05)
        yield


@healthy
def clipped_once_for_several_micro_batches():
    model, data = mlp(64, 32, 10), batches()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    yield model
    while True:
        optimizer.zero_grad()
        for _ in range(3):
            x, y = next(data)
            (F.cross_entropy(model(x), y) / 3).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        yield


@healthy
def clipped_if_asked_for():
    model, limit = mlp(64, 32, 10), 0.0
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    yield model
    for x, y in batches():
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        if limit:
            nn.utils.clip_grad_norm_(model.parameters(), limit)
        optimizer.step()
        yield


@healthy
def norm_logged_by_clipping_to_infinity():
    model = mlp(64, 32, 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    yield model
    for x, y in batches():
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), float("inf"))
        assert norm >= 0
        optimizer.step()
        yield


@healthy
def two_losses_scaled_apart():
    model, scaler = mlp(64, 32, 10), torch.amp.GradScaler("cpu")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    yield model
    for x, y in batches():
        optimizer.zero_grad()
        output = model(x)
        scaler.scale(F.cross_entropy(output, y) / 2).backward(retain_graph=True)
        scaler.scale(0.1 * output.square().mean()).backward()
        scaler.step(optimizer)
        scaler.update()
        yield


@healthy
def inverse_frequencies_as_weights():
    weights = torch.tensor([0.5, 3.0, 1.0])
    return train(mlp(64, 32, 3), unbalanced(), loss=nn.CrossEntropyLoss(weight=weights))


@healthy
def positives_weigh_more():
    weight = torch.tensor(5.0)
    loss = column(F.binary_cross_entropy_with_logits, pos_weight=weight)
    return train(mlp(64, 32, 1), batches(), loss=loss)


@healthy
def column_of_the_day_before():
    """A feature that is close to the target, and not it."""
    near = ((torch.cat([x, y + 0.02 * torch.randn_like(y)], 1), y) for x, y in points())
    return train(mlp(9, 16, 1), near, loss=F.mse_loss)


@healthy
def seed_before_the_loop_and_at_each_epoch():
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 10))
    for step, each in enumerate(train(model, batches())):
        yield each
        if step % 20 == 0:
            torch.manual_seed(step)


@healthy
def counts_with_the_logarithm_of_the_rate():
    counts = ((x, torch.poisson((0.5 * y).exp())) for x, y in points())
    return train(mlp(8, 16, 1), counts, loss=nn.PoissonNLLLoss())


@healthy
def counts_with_their_rate():
    counts = ((x, torch.poisson((0.5 * y).exp())) for x, y in points())
    return train(nn.Sequential(*mlp(8, 16, 1), nn.Softplus()), counts, loss=nn.PoissonNLLLoss(log_input=False))


@healthy
def distribution_by_a_softmax():
    """Shares that add up to 1, compared by squares."""
    shares = ((x, torch.cat([y, x[:, :2]], 1).softmax(1)) for x, y in points())
    return train(nn.Sequential(*mlp(8, 16, 3), nn.Softmax(1)), shares, loss=F.mse_loss)


@healthy
def directions_by_their_cosine():
    wanted = ((x, torch.cat([y, x[:, :2]], 1)) for x, y in points())
    return train(mlp(8, 16, 3), wanted, loss=lambda output, y: 1 - F.cosine_similarity(output, y).mean())


@healthy
def few_prompts_repeated():
    """A batch has each sample several times, as with several answers to each question."""
    x, y = digits()

    def repeated():
        while True:
            chosen = torch.randint(len(x), (8,)).repeat_interleave(4)
            yield x[chosen], y[chosen]

    return train(mlp(64, 32, 10), repeated())
