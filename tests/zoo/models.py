"""Real architectures built small: each gives a model and a function that runs its forward pass to a scalar loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Loss = Callable[[nn.Module], Tensor]
Entry = Callable[[], tuple[nn.Module, Loss]]

ZOO: dict[str, Entry] = {}


def entry(make: Entry) -> Entry:
    """Enter a model into the zoo under the name of its function."""
    ZOO[make.__name__] = make
    return make


def tokens(*shape: int, vocabulary: int = 37) -> Tensor:
    """No token is 0: where that is the padding, PyTorch's gradient of its row is 0, which is not the derivative."""
    return torch.randint(1, vocabulary, shape)


def language_model(configuration: Any) -> tuple[nn.Module, Loss]:
    """A causal language model of transformers, trained to say its own input."""
    from transformers import AutoModelForCausalLM

    ids = tokens(2, 8)
    return AutoModelForCausalLM.from_config(configuration), lambda model: model(input_ids=ids, labels=ids).loss


@entry
def gpt2() -> tuple[nn.Module, Loss]:
    from transformers import GPT2Config

    return language_model(GPT2Config(vocab_size=37, n_positions=16, n_embd=16, n_layer=2, n_head=2))


@entry
def gpt2_eager() -> tuple[nn.Module, Loss]:
    from transformers import GPT2Config

    return language_model(
        GPT2Config(vocab_size=37, n_positions=16, n_embd=16, n_layer=2, n_head=2, attn_implementation="eager")
    )


@entry
def llama() -> tuple[nn.Module, Loss]:
    from transformers import LlamaConfig

    return language_model(
        LlamaConfig(
            vocab_size=37, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=16,
        )
    )  # fmt: skip


@entry
def mixtral() -> tuple[nn.Module, Loss]:
    from transformers import MixtralConfig

    return language_model(
        MixtralConfig(
            vocab_size=37, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, num_local_experts=4, max_position_embeddings=16,
        )
    )  # fmt: skip


@entry
def mamba() -> tuple[nn.Module, Loss]:
    from transformers import MambaConfig

    return language_model(
        MambaConfig(vocab_size=37, hidden_size=16, state_size=4, num_hidden_layers=2, time_step_rank=2, use_cache=False)
    )


@entry
def bert() -> tuple[nn.Module, Loss]:
    from transformers import BertConfig, BertForMaskedLM

    model = BertForMaskedLM(
        BertConfig(
            vocab_size=37, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
            max_position_embeddings=16,
        )
    )  # fmt: skip
    ids, mask = tokens(2, 8), torch.ones(2, 8, dtype=torch.long)
    mask[1, 5:] = 0
    return model, lambda model: model(input_ids=ids, attention_mask=mask, labels=ids).loss


@entry
def t5() -> tuple[nn.Module, Loss]:
    from transformers import T5Config, T5ForConditionalGeneration

    model = T5ForConditionalGeneration(
        T5Config(vocab_size=37, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, decoder_start_token_id=0)
    )
    ids, labels = tokens(2, 8), tokens(2, 6)
    return model, lambda model: model(input_ids=ids, labels=labels).loss


@entry
def vit() -> tuple[nn.Module, Loss]:
    from transformers import ViTConfig, ViTForImageClassification

    model = ViTForImageClassification(
        ViTConfig(
            hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=16,
            patch_size=4, num_labels=5,
        )
    )  # fmt: skip
    images, labels = torch.randn(2, 3, 16, 16), tokens(2, vocabulary=5)
    return model, lambda model: model(pixel_values=images, labels=labels).loss


@entry
def resnet() -> tuple[nn.Module, Loss]:
    from transformers import ResNetConfig, ResNetForImageClassification

    model = ResNetForImageClassification(
        ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="bottleneck", num_labels=5)
    )
    images, labels = torch.randn(4, 3, 32, 32), tokens(4, vocabulary=5)
    return model, lambda model: model(pixel_values=images, labels=labels).loss


@entry
def convnext() -> tuple[nn.Module, Loss]:
    from transformers import ConvNextConfig, ConvNextForImageClassification

    model = ConvNextForImageClassification(
        ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, drop_path_rate=0.2, num_labels=5)
    )
    images, labels = torch.randn(2, 3, 32, 32), tokens(2, vocabulary=5)
    return model, lambda model: model(pixel_values=images, labels=labels).loss


class UNet(nn.Module):
    """Down, a bottom, and up again with a skip connection."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.SiLU())
        self.bottom = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.InstanceNorm2d(8, affine=True), nn.LeakyReLU(0.1))
        self.up = nn.ConvTranspose2d(8, 4, 2, stride=2)
        self.out = nn.Conv2d(8, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.down(x)
        deep = self.bottom(F.max_pool2d(skip, 2))
        wide = self.up(deep) + F.interpolate(deep[:, :4], scale_factor=2, mode="bilinear", align_corners=False)
        return self.out(torch.cat([skip, wide], dim=1))


@entry
def unet() -> tuple[nn.Module, Loss]:
    x, y = torch.randn(2, 1, 8, 8), torch.rand(2, 1, 8, 8).round()
    return UNet(), lambda model: F.binary_cross_entropy_with_logits(model(x), y)


class Recurrent(nn.Module):
    """An embedding, two recurrent layers, and a decoder."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.embedding = nn.Embedding(37, 8, padding_idx=0)
        self.cells = kind(8, 12, num_layers=2, batch_first=True, dropout=0.1)
        self.decoder = nn.Linear(12, 37)

    def forward(self, ids: Tensor) -> Tensor:
        states, _ = self.cells(self.embedding(ids))
        return self.decoder(states)


def recurrent(kind: type[nn.RNNBase]) -> tuple[nn.Module, Loss]:
    ids = tokens(3, 6)
    return Recurrent(kind), lambda model: F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())


@entry
def lstm() -> tuple[nn.Module, Loss]:
    return recurrent(nn.LSTM)


@entry
def gru() -> tuple[nn.Module, Loss]:
    return recurrent(nn.GRU)


class Graph(nn.Module):
    """Message passing: gather at the edges, scatter to the nodes."""

    def __init__(self) -> None:
        super().__init__()
        self.message, self.state, self.out = nn.Linear(10, 8), nn.GRUCell(8, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor, source: Tensor, target: Tensor) -> Tensor:
        for _ in range(2):
            messages = F.elu(self.message(torch.cat([x[source], x[target]], dim=-1)))
            summed = torch.zeros(len(x), 8).index_add(0, target, messages)
            most = torch.zeros(len(x), 8).scatter_reduce(0, target[:, None].expand(-1, 8), messages, "amax")
            x = self.state(summed + most, x)
        return self.out(x.mean(0, keepdim=True))


@entry
def graph_network() -> tuple[nn.Module, Loss]:
    x, label = torch.randn(6, 5), torch.tensor([1])
    source, target = tokens(12, vocabulary=6), tokens(12, vocabulary=6)
    return Graph(), lambda model: F.cross_entropy(model(x, source, target), label)


class Autoencoder(nn.Module):
    """A variational autoencoder with a Gaussian code."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(8, 6), nn.Linear(3, 8)

    def forward(self, x: Tensor) -> Tensor:
        mean, log_variance = self.encoder(x).chunk(2, dim=-1)
        code = mean + torch.randn_like(mean) * torch.exp(0.5 * log_variance)
        reconstruction = F.mse_loss(torch.sigmoid(self.decoder(code)), x, reduction="sum") / len(x)
        divergence = -0.5 * (1 + log_variance - mean.pow(2) - log_variance.exp()).sum(-1).mean()
        return reconstruction + divergence


@entry
def vae() -> tuple[nn.Module, Loss]:
    x = torch.rand(5, 8)
    return Autoencoder(), lambda model: model(x)


class Adversaries(nn.Module):
    """A generator and the discriminator that it must please."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.BatchNorm1d(8), nn.Linear(8, 4), nn.Tanh())
        self.discriminator = nn.Sequential(
            nn.utils.parametrizations.spectral_norm(nn.Linear(4, 8)),
            nn.LeakyReLU(0.2),
            nn.Dropout(0.2),
            nn.Linear(8, 1),
        )


@entry
def gan() -> tuple[nn.Module, Loss]:
    noise, real = torch.randn(6, 3), torch.randn(6, 4)

    def loss(model: Any) -> Tensor:
        fake = model.generator(noise)
        return F.softplus(model.discriminator(fake)).mean() + F.softplus(-model.discriminator(real)).mean()

    return Adversaries(), loss


@entry
def transformer_encoder() -> tuple[nn.Module, Loss]:
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2, enable_nested_tensor=False)
    x = torch.randn(2, 5, 8)
    return model, lambda model: model(x).pow(2).mean()
