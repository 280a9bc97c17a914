"""Healthy runs: common networks and optimizers, in which nothing above a note may be found."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.bed.loops import healthy
from tests.bed.loops.networks import TEXT, Residual, Rows, Transformer
from tests.bed.loops.shared import batches, classify, cnn, mlp, points


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


@healthy
def resnet_sgd():
    model = Residual()
    return classify(model, torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9), batches(images=True))


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
