"""Healthy runs: common networks, optimizers and habits, in which nothing above a note may be found."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.faults.common import batches, cnn, mlp, points
from tests.faults.watched import Script

HEALTHY: dict[str, Script] = {}


def healthy(script: Script) -> Script:
    """Enter a run into the bed under the name of its function."""
    HEALTHY[script.__name__] = script
    return script


def classify(model: nn.Module, optimizer: torch.optim.Optimizer, data: Any, **options: Any) -> Any:
    """The usual loop, with what the options ask for."""
    warm, clip, dtype = (options.get(name) for name in ("warm", "clip", "dtype"))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: min(1.0, s / warm) if warm else 1.0)
    yield model
    for x, y in data:
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=dtype or torch.bfloat16, enabled=dtype is not None):
            output = model(x)
            loss = F.cross_entropy(output, y) if y.dim() == 1 else F.mse_loss(output, y)
        loss.backward()
        if clip:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        schedule.step()
        yield


@healthy
def mlp_sgd():
    model = mlp(64, 64, 64, 10)
    return classify(model, torch.optim.SGD(model.parameters(), lr=0.05), batches())


@healthy
def mlp_momentum():
    model = mlp(64, 64, 10)
    return classify(model, torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True), batches(64))


@healthy
def mlp_adam():
    model = mlp(64, 128, 64, 10)
    return classify(model, torch.optim.Adam(model.parameters(), lr=1e-3), batches())


@healthy
def mlp_adamw_high_rate():
    model = mlp(64, 64, 10)
    return classify(model, torch.optim.AdamW(model.parameters(), lr=1e-2), batches())


@healthy
def mlp_deep_with_gelu():
    model = mlp(64, *[48] * 8, 10, act=nn.GELU)
    return classify(model, torch.optim.AdamW(model.parameters(), lr=2e-3), batches())


@healthy
def mlp_tanh():
    model = mlp(64, 48, 48, 48, 10, act=nn.Tanh)
    return classify(model, torch.optim.SGD(model.parameters(), lr=0.1), batches())


@healthy
def mlp_bf16():
    model = mlp(64, 64, 10)
    return classify(model, torch.optim.AdamW(model.parameters(), lr=3e-3), batches(), dtype=torch.bfloat16)


@healthy
def mlp_with_dropout():
    model = nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Dropout(0.5), nn.Linear(96, 10))
    return classify(model, torch.optim.RMSprop(model.parameters(), lr=1e-3), batches())


@healthy
def mlp_one_batch_by_heart():
    x, y = next(batches())
    model = mlp(64, 64, 10)
    return classify(model, torch.optim.Adam(model.parameters(), lr=3e-3), ((x, y) for _ in range(100)))


@healthy
def softmax_regression():
    model = nn.Linear(64, 10)
    return classify(model, torch.optim.SGD(model.parameters(), lr=0.1), batches(128))


@healthy
def linear_regression_full_batch():
    x, y = next(points(128))
    model = nn.Linear(8, 1)
    return classify(model, torch.optim.SGD(model.parameters(), lr=0.1), ((x, y) for _ in range(100)))


@healthy
def regression_adam():
    model = mlp(8, 32, 32, 1)
    return classify(model, torch.optim.Adam(model.parameters(), lr=3e-3), points())


@healthy
def cnn_sgd_with_warm_up():
    model = cnn()
    return classify(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4),
        batches(images=True),
        warm=20,
    )


@healthy
def cnn_adam():
    model = cnn(norm=False)
    return classify(model, torch.optim.Adam(model.parameters(), lr=3e-3), batches(images=True))


@healthy
def cnn_bf16_clipped():
    model = cnn()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    return classify(model, optimizer, batches(images=True), dtype=torch.bfloat16, clip=1.0)


class Residual(nn.Module):
    """Blocks whose last norm begins at 0, as is usual for residual networks."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 12, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(12, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU(),
                          nn.Conv2d(12, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)) for _ in range(3)
        )  # fmt: skip
        for block in self.blocks:
            nn.init.zeros_(block[4].weight)
        self.head = nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        for block in self.blocks:
            x = F.relu(x + block(x))
        return self.head(x.mean((2, 3)))


@healthy
def resnet_sgd():
    model = Residual()
    return classify(model, torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9), batches(images=True))


class Rows(nn.Module):
    """Reads a picture row by row."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.rnn, self.out = kind(8, 32, batch_first=True), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.rnn(x.reshape(-1, 8, 8))[0][:, -1])


@healthy
def rnn_clipped():
    model = Rows(nn.RNN)
    return classify(model, torch.optim.Adam(model.parameters(), lr=3e-3), batches(), clip=1.0)


@healthy
def lstm_adam():
    model = Rows(nn.LSTM)
    return classify(model, torch.optim.Adam(model.parameters(), lr=1e-2), batches())


@healthy
def gru_sgd():
    model = Rows(nn.GRU)
    return classify(model, torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9), batches(), clip=5.0)


class Attention(nn.Module):
    """Attention written out, so that its softmax is seen."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        return self.out((q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])).softmax(-1) @ v)


class Transformer(nn.Module):
    def __init__(self, width: int = 32, layers: int = 2) -> None:
        super().__init__()
        self.embed, self.position = nn.Linear(8, width), nn.Parameter(0.02 * torch.randn(8, width))
        self.attentions = nn.ModuleList(Attention(width) for _ in range(layers))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2 * layers))
        self.mlps = nn.ModuleList(mlp(width, 2 * width, width, act=nn.GELU) for _ in range(layers))
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x.reshape(-1, 8, 8)) + self.position
        for index, (attention, block) in enumerate(zip(self.attentions, self.mlps, strict=True)):
            x = x + attention(self.norms[2 * index](x))
            x = x + block(self.norms[2 * index + 1](x))
        return self.head(x.mean(1))


@healthy
def transformer_adamw_warm_up():
    model = Transformer()
    return classify(model, torch.optim.AdamW(model.parameters(), lr=3e-3), batches(), warm=20, clip=1.0)


@healthy
def transformer_bf16():
    model = Transformer()
    return classify(model, torch.optim.AdamW(model.parameters(), lr=1e-3), batches(), dtype=torch.bfloat16)


@healthy
def causal_attention_written_out():
    """Masked with infinities: one mask is a buffer, one is data, and the scores have a name of their own."""

    class Causal(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.qkv, self.out = nn.Linear(8, 32), nn.Linear(32, 96), nn.Linear(32, 10)
            self.register_buffer("seen", torch.tril(torch.ones(8, 8)))
            self.bias = torch.full((8, 8), -math.inf).triu(1)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.qkv(self.embed(x.reshape(-1, 8, 8))).chunk(3, -1)
            scores = q @ k.transpose(1, 2) / math.sqrt(32)
            scores = scores.masked_fill(self.seen == 0, -math.inf)
            scores = scores + self.bias
            return self.out((scores.softmax(-1) @ v).mean(1))

    model = Causal()
    return classify(model, torch.optim.AdamW(model.parameters(), lr=3e-3), batches())


TEXT = (
    "the quick brown fox jumps over the lazy dog while the small cat sleeps on the warm red mat and dreams of fish. "
    * 4
)


@healthy
def language_model():
    """A causal model of characters, of PyTorch's own layers, with an embedding that begins as the head's weight."""
    vocabulary = sorted(set(TEXT))
    ids = torch.tensor([vocabulary.index(c) for c in TEXT])

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.position = nn.Embedding(len(vocabulary), 32), nn.Embedding(16, 32)
            self.block = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.1, batch_first=True, norm_first=True)
            self.head = nn.Linear(32, len(vocabulary), bias=False)
            nn.init.normal_(self.embed.weight, std=0.02)
            self.head.weight = self.embed.weight

        def forward(self, ids: Tensor) -> Tensor:
            mask = nn.Transformer.generate_square_subsequent_mask(ids.shape[1])
            x = self.embed(ids) + self.position(torch.arange(ids.shape[1]))
            return self.head(self.block(x, mask))

    model = Model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.95))
    yield model
    for _ in range(100):
        starts = torch.randint(len(ids) - 17, (8,))
        x = torch.stack([ids[s : s + 16] for s in starts])
        y = torch.stack([ids[s + 1 : s + 17] for s in starts])
        optimizer.zero_grad()
        F.cross_entropy(model(x).flatten(0, 1), y.flatten()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        yield


@healthy
def gan():
    """Two networks and two optimizers; a step trains both."""
    generator = nn.Sequential(nn.Linear(16, 64), nn.LeakyReLU(0.2), nn.Linear(64, 64), nn.Tanh())
    discriminator = nn.Sequential(nn.Linear(64, 64), nn.LeakyReLU(0.2), nn.Linear(64, 1))
    of_g = torch.optim.Adam(generator.parameters(), lr=5e-4, betas=(0.5, 0.999))
    of_d = torch.optim.Adam(discriminator.parameters(), lr=5e-4, betas=(0.5, 0.999))
    yield {"generator": generator, "discriminator": discriminator}
    for x, _ in batches():
        real, ones, zeros = x / x.abs().max(), torch.ones(len(x), 1), torch.zeros(len(x), 1)
        fake = generator(torch.randn(len(x), 16))
        of_d.zero_grad()
        loss = F.binary_cross_entropy_with_logits(discriminator(real), ones)
        loss = loss + F.binary_cross_entropy_with_logits(discriminator(fake.detach()), zeros)
        loss.backward()
        of_d.step()
        of_g.zero_grad()
        F.binary_cross_entropy_with_logits(discriminator(fake), ones).backward()
        of_g.step()
        yield


def wasserstein(generator_first: bool):
    """The same, but each network's step is one of its own: who looks at every fourth sees one of the two alone."""
    generator = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64), nn.Tanh())
    discriminator = nn.Sequential(nn.Linear(64, 64), nn.LeakyReLU(0.2), nn.Linear(64, 1))
    of_g = torch.optim.RMSprop(generator.parameters(), lr=2e-4)
    of_d = torch.optim.RMSprop(discriminator.parameters(), lr=2e-4)
    yield {"generator": generator, "discriminator": discriminator}
    for step, (x, _) in enumerate(batches()):
        if (step % 2 == 0) == generator_first:
            of_g.zero_grad()
            (-discriminator(generator(torch.randn(len(x), 16))).mean()).backward()
            of_g.step()
        else:
            with torch.no_grad():
                fake = generator(torch.randn(len(x), 16))
            of_d.zero_grad()
            (discriminator(fake).mean() - discriminator(x / x.abs().max()).mean()).backward()
            of_d.step()
            with torch.no_grad():
                for parameter in discriminator.parameters():
                    parameter.clamp_(-0.1, 0.1)
        yield


@healthy
def wasserstein_gan_that_begins_with_the_critic():
    return wasserstein(generator_first=False)


@healthy
def wasserstein_gan_that_begins_with_the_generator():
    return wasserstein(generator_first=True)


class Variational(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encode, self.mean, self.spread = nn.Linear(64, 48), nn.Linear(48, 4), nn.Linear(48, 4)
        self.decode = mlp(4, 48, 64)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        hidden = F.relu(self.encode(x))
        mean, spread = self.mean(hidden), self.spread(hidden)
        return self.decode(mean + torch.randn_like(mean) * (spread / 2).exp()), mean, spread


def variational(loss_of: Any, optimizer_of: Any):
    model = Variational()
    optimizer = optimizer_of(model.parameters())
    yield model
    for x, _ in batches():
        optimizer.zero_grad()
        made, mean, spread = model(x)
        divergence = -0.5 * (1 + spread - mean**2 - spread.exp())
        loss_of(made, x, divergence).backward()
        optimizer.step()
        yield


@healthy
def vae_mean():
    return variational(
        lambda made, x, divergence: F.mse_loss(made, x) + 0.01 * divergence.mean(),
        lambda parameters: torch.optim.Adam(parameters, lr=1e-3),
    )


@healthy
def vae_sum_over_pixels():
    return variational(
        lambda made, x, divergence: (F.mse_loss(made, x, reduction="sum") + divergence.sum()) / len(x),
        lambda parameters: torch.optim.AdamW(parameters, lr=1e-3),
    )


@healthy
def autoencoder_with_sigmoid_gates():
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.value, self.gate, self.out = nn.Linear(64, 24), nn.Linear(64, 24), nn.Linear(24, 64)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.value(x) * torch.sigmoid(self.gate(x)))

    model = Gated()
    data = ((x, x) for x, _ in batches())
    return classify(model, torch.optim.Adam(model.parameters(), lr=2e-3), data)


@healthy
def accumulation_of_micro_batches():
    model = mlp(64, 64, 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    data = batches(16)
    yield model
    for _ in range(100):
        optimizer.zero_grad()
        for _ in range(4):
            x, y = next(data)
            (F.cross_entropy(model(x), y) / 4).backward()
        optimizer.step()
        yield


@healthy
def fine_tuning_a_frozen_body():
    body, head = mlp(64, 64, 32), nn.Linear(32, 10)
    for parameter in body.parameters():
        parameter.requires_grad_(False)
    model = nn.Sequential(body, nn.ReLU(), head)
    return classify(model, torch.optim.AdamW(head.parameters(), lr=1e-2), batches())


@healthy
def low_rank_adaptation():
    """A frozen weight with a learnt low-rank change, one of whose factors begins at 0."""

    class Adapted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.frozen = nn.Linear(64, 64).requires_grad_(False)
            self.down, self.up = nn.Linear(64, 4, bias=False), nn.Linear(4, 64, bias=False)
            nn.init.zeros_(self.up.weight)
            self.head = nn.Linear(64, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(F.relu(self.frozen(x) + self.up(self.down(x))))

    model = Adapted()
    wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return classify(model, torch.optim.AdamW(wanted, lr=2e-3), batches())


@healthy
def warm_up_in_stages_then_warm_restarts():
    """The rate rises tenfold from one step to the next, and then twentyfold at each restart."""
    model = mlp(64, 64, 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    data = classify(model, optimizer, batches())
    yield next(data)
    for step, _ in enumerate(data):
        optimizer.param_groups[0]["lr"] = 0.01 if step < 20 else 0.1 * (1 - 0.95 * (step % 25) / 24)
        yield


@healthy
def two_groups_with_two_rates():
    body, head = mlp(64, 64, 32), nn.Linear(32, 10)
    model = nn.Sequential(body, nn.ReLU(), head)
    groups = [{"params": body.parameters(), "lr": 1e-4}, {"params": head.parameters(), "lr": 1e-2}]
    return classify(model, torch.optim.Adam(groups), batches())


@healthy
def fp16_with_a_scaler():
    model = mlp(64, 64, 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu")
    yield model
    for x, y in batches():
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.float16):
            loss = F.cross_entropy(model(x), y)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        yield


@healthy
def straight_through_codes():
    """Codes of -1 and 1, whose gradient is that of the identity; a group with a rate of 0 waits for its turn."""
    body, head = mlp(64, 48), nn.Linear(48, 10)

    def forward(x: Tensor) -> Tensor:
        hidden = body(x)
        return head(torch.sign(hidden) + hidden - hidden.detach())

    optimizer = torch.optim.Adam([{"params": body.parameters(), "lr": 0.0}, {"params": head.parameters()}], lr=1e-3)
    yield {"body": body, "head": head}
    for step, (x, y) in enumerate(batches()):
        optimizer.param_groups[0]["lr"] = 1e-3 if step >= 60 else 0.0
        optimizer.zero_grad()
        F.cross_entropy(forward(x), y).backward()
        optimizer.step()
        yield


@healthy
def margins_that_are_reached():
    """A hinge loss for each class: some are 0 for every sample of the batch, and in the end all are."""
    x, y = next(batches())
    model, signs = mlp(64, 64, 10), 2 * F.one_hot(y, 10) - 1
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    yield model
    for _ in range(100):
        optimizer.zero_grad()
        F.relu(1 - signs * model(x)).sum(1).mean().backward()
        optimizer.step()
        yield


@healthy
def critic_that_begins_later():
    """A weight of 0 in the code holds the critic's gradient at 0 for half of the run, as autoencoders with one do."""
    maker, critic = mlp(64, 32, 64), mlp(64, 32, 1)
    of_m, of_c = (torch.optim.Adam(part.parameters(), lr=1e-3) for part in (maker, critic))
    yield {"maker": maker, "critic": critic}
    for step, (x, _) in enumerate(batches()):
        weight, made = float(step >= 50), maker(x)
        of_m.zero_grad()
        (1 + F.mse_loss(made, x) - 0.01 * weight * critic(made).mean()).backward()
        of_m.step()
        of_c.zero_grad()
        (1 + weight * (critic(made.detach()).sigmoid().mean() - critic(x).sigmoid().mean())).backward()
        of_c.step()
        yield
