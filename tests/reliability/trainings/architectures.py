"""Trainings of architectures: those of the zoo, and one of each kind of layer, container and way to hold parameters."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn, optim
from torch.nn.utils import parametrizations, parametrize, skip_init
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from tests.reliability.trainings.base import Training, batch, entered, mlp, plain, training
from tests.zoo.models import ZOO

# -- the zoo ----------------------------------------------------------------------------------------------------------


def of_the_zoo(name: str) -> Training:
    model, loss = ZOO[name]()
    return plain(model, lambda number: loss(model), torch.optim.AdamW(model.parameters(), lr=1e-3))


for each in ZOO:
    entered(f"zoo_{each}", partial(of_the_zoo, each))


# -- one layer each ---------------------------------------------------------------------------------------------------

Layer = tuple[Callable[[], nn.Module], tuple[int, ...]]

LAYERS: dict[str, Layer] = {
    "conv1d_reflect": (lambda: nn.Conv1d(3, 4, 3, padding=1, padding_mode="reflect"), (2, 3, 9)),
    "conv2d_depthwise": (lambda: nn.Conv2d(4, 8, 3, groups=4, dilation=2), (2, 4, 9, 9)),
    "conv3d": (lambda: nn.Conv3d(2, 3, 2, stride=2), (2, 2, 4, 4, 4)),
    "conv_transpose": (lambda: nn.ConvTranspose2d(3, 2, 3, stride=2, output_padding=1), (2, 3, 4, 4)),
    "batch_norm_momentum_none": (lambda: nn.BatchNorm2d(3, momentum=None), (4, 3, 5, 5)),
    "batch_norm_untracked": (lambda: nn.BatchNorm1d(5, track_running_stats=False), (6, 5)),
    "lazy_linear": (lambda: nn.Sequential(nn.LazyLinear(4), nn.Tanh(), nn.LazyLinear(3)), (5, 6)),
    "instance_norm": (lambda: nn.InstanceNorm1d(3, affine=True, track_running_stats=True), (2, 3, 7)),
    "layer_norm": (lambda: nn.LayerNorm((4, 5)), (3, 4, 5)),
    "rms_norm": (lambda: nn.RMSNorm(6), (4, 6)),
    "group_norm": (lambda: nn.GroupNorm(2, 6), (3, 6, 4)),
    "local_response": (lambda: nn.Sequential(nn.Conv2d(2, 6, 1), nn.LocalResponseNorm(3)), (2, 2, 4, 4)),
    "dropout2d": (lambda: nn.Sequential(nn.Conv2d(2, 6, 1), nn.Dropout2d(0.5)), (2, 2, 4, 4)),
    "alpha_dropout": (lambda: nn.Sequential(nn.Linear(5, 6), nn.SELU(), nn.AlphaDropout(0.3)), (4, 5)),
    "rrelu": (lambda: nn.Sequential(nn.Linear(5, 6), nn.RReLU()), (4, 5)),
    "prelu": (lambda: nn.Sequential(nn.Linear(5, 6), nn.PReLU(6)), (4, 5)),
    "glu": (lambda: nn.Sequential(nn.Linear(5, 6), nn.GLU()), (4, 5)),
    "softmax_over_classes": (lambda: nn.Sequential(nn.Linear(5, 6), nn.Softmax(-1)), (4, 5)),
    "max_pool_indices": (lambda: nn.Sequential(nn.Conv2d(1, 3, 3), nn.MaxPool2d(2)), (2, 1, 8, 8)),
    "fractional_pool": (lambda: nn.Sequential(nn.Conv2d(1, 3, 1), nn.FractionalMaxPool2d(2, 3)), (2, 1, 8, 8)),
    "adaptive_pool": (lambda: nn.Sequential(nn.Conv2d(1, 3, 3), nn.AdaptiveAvgPool2d(2)), (2, 1, 8, 8)),
    "pixel_shuffle": (lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.PixelShuffle(2)), (2, 1, 6, 6)),
    "upsample": (lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.Upsample(scale_factor=2, mode="bicubic")), (2, 1, 6, 6)),
    "bilinear": (lambda: Pair(nn.Bilinear(5, 5, 3)), (4, 5)),
    "rnn": (lambda: First(nn.RNN(5, 4, num_layers=2, nonlinearity="relu")), (6, 2, 5)),
    "lstm_projection": (lambda: First(nn.LSTM(5, 6, proj_size=3, bidirectional=True)), (6, 2, 5)),
    "gru_dropout": (lambda: First(nn.GRU(5, 4, num_layers=2, dropout=0.4)), (6, 2, 5)),
    "multihead_attention": (lambda: SelfAttention(), (2, 5, 8)),
    "transformer_decoder": (lambda: Decoder(), (2, 5, 8)),
    "weight_norm": (lambda: parametrizations.weight_norm(nn.Linear(5, 3)), (4, 5)),
    "spectral_norm": (lambda: parametrizations.spectral_norm(nn.Linear(5, 3)), (4, 5)),
    "orthogonal": (lambda: parametrizations.orthogonal(nn.Linear(5, 5)), (4, 5)),
    "skip_init": (lambda: initialised(skip_init(nn.Linear, 5, 3)), (4, 5)),
    "module_list": (lambda: Residual(), (4, 5)),
    "parameter_dict": (lambda: Dictionary(), (4, 5)),
    "tied_weights": (lambda: Tied(), (4, 5)),
    "frozen_half": (lambda: frozen(nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3))), (4, 5)),
    "unused_branch": (lambda: Unused(), (4, 5)),
    "own_parametrization": (lambda: symmetric(nn.Linear(5, 5)), (4, 5)),
    "early_exit": (lambda: EarlyExit(), (4, 5)),
    "recursive": (lambda: Recursive(), (4, 5)),
    "writes_attributes": (lambda: Counting(), (4, 5)),
    "inplace_everywhere": (lambda: InPlace(), (4, 5)),
    "channels_last": (lambda: nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last), (2, 3, 6, 6)),
    "float64": (lambda: nn.Linear(5, 3).double(), (4, 5)),
    "bfloat16": (lambda: nn.Linear(5, 3).bfloat16(), (4, 5)),
    "complex": (lambda: nn.Linear(5, 3).to(torch.complex64), (4, 5)),
    "scripted": (lambda: torch.jit.script(nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))), (4, 5)),
    "traced": (lambda: torch.jit.trace(nn.Sequential(nn.Linear(5, 4), nn.Tanh()), torch.zeros(4, 5)), (4, 5)),
    "exported": (lambda: exported(nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 2))), (4, 5)),
    "graph_module": (lambda: torch.fx.symbolic_trace(nn.Sequential(nn.Linear(5, 4), nn.Tanh())), (4, 5)),
    "checkpointed": (lambda: Checkpointed(use_reentrant=False), (4, 5)),
    "checkpointed_reentrant": (lambda: Checkpointed(use_reentrant=True), (4, 5)),
    "checkpoint_sequential": (lambda: Segments(), (4, 5)),
    "own_call": (lambda: OwnCall(), (4, 5)),
    "hooks_of_all_kinds": (lambda: hooked(nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))), (4, 5)),
    "saved_tensor_hooks": (lambda: OnDisk(), (4, 5)),
    "quantisation_aware": (lambda: FakeQuantised(), (4, 5)),
    "mixture": (lambda: Mixture(), (6, 5)),
    "spectral": (lambda: Spectral(), (3, 8)),
}


class First(nn.Module):
    """A recurrent layer without its last state."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[0]


class Pair(First):
    """A layer of two inputs, given the same one twice."""

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x, x.flip(-1))


class SelfAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, dropout=0.1, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        return self.attention(x, x, x, attn_mask=mask, need_weights=True)[0]


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.memory = nn.Parameter(torch.randn(2, 3, 8))
        self.layer = nn.TransformerDecoderLayer(8, 2, 16, batch_first=True, norm_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x, self.memory)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(5, 5) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + torch.tanh(layer(x))
        return x


class Dictionary(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.ParameterDict({"left": torch.randn(5, 3), "right": torch.randn(5, 3)})
        self.heads = nn.ModuleDict({"a": nn.Linear(3, 2), "b": nn.Linear(3, 2)})

    def forward(self, x: Tensor) -> Tensor:
        h = x @ self.table["left"] * torch.sigmoid(x @ self.table["right"])
        return sum(head(h) for head in self.heads.values())


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inward, self.outward = nn.Linear(5, 5, bias=False), nn.Linear(5, 5)
        self.outward.weight = self.inward.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.outward(F.gelu(self.inward(x)))


class Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.spare = nn.Linear(5, 3), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x)


class EarlyExit(nn.Module):
    """The depth depends on the numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(5, 5) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
            if x.norm() < 3:
                break
        return x


class Recursive(nn.Module):
    """A module that calls itself."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 5)

    def forward(self, x: Tensor, depth: int = 3) -> Tensor:
        return x if depth == 0 else self(torch.tanh(self.layer(x)), depth - 1)


class Counting(nn.Module):
    """Keeps a count and its last output, and grows a buffer that is not saved."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.calls, self.last = nn.Linear(5, 3), 0, None
        self.register_buffer("seen", torch.zeros(0, 3), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        out = self.layer(x)
        self.last = out.detach()
        self.seen = torch.cat([self.seen, self.last])
        return out + self.seen.mean(0)


class InPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 6)

    def forward(self, x: Tensor) -> Tensor:
        h = self.layer(x)
        h.mul_(2).clamp_(-1, 1)
        h[:, ::2].add_(1)
        h[0] = h[1].clone()
        h.unsqueeze_(0)
        buffer = torch.empty(1, 4, 6)
        buffer.copy_(h)
        return torch.where(buffer > 0, buffer, buffer.exp()).squeeze_(0)


class Checkpointed(nn.Module):
    def __init__(self, use_reentrant: bool) -> None:
        super().__init__()
        self.first = nn.Linear(5, 6)
        self.inner = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Dropout(0.3), nn.ReLU(), nn.Linear(6, 3))
        self.use_reentrant = use_reentrant

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.inner, self.first(x), use_reentrant=self.use_reentrant)


class Segments(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(nn.Sequential(nn.Linear(5, 5), nn.Tanh()) for _ in range(4)))

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint_sequential(self.layers, 2, x, use_reentrant=False)


class OwnCall(nn.Module):
    """Overrides `__call__`, so that PyTorch's hooks see nothing of it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 3)

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self.layer.weight, self.layer.bias).relu()


class OnDisk(nn.Module):
    """Packs what autograd saves as 16-bit numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autograd.graph.saved_tensors_hooks(lambda t: t.to(torch.bfloat16), lambda t: t.to(torch.float32)):
            return self.second(torch.sin(self.first(x)))


class FakeQuantised(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 3)
        self.scale = nn.Parameter(torch.tensor(0.1))

    def forward(self, x: Tensor) -> Tensor:
        zero = torch.zeros(1, dtype=torch.int32)
        weight = torch.fake_quantize_per_tensor_affine(self.layer.weight, 0.05, 0, -128, 127)
        out = F.linear(x, weight, self.layer.bias)
        return torch._fake_quantize_learnable_per_tensor_affine(out, self.scale[None], zero.float(), -128, 127, 1.0)


class Mixture(nn.Module):
    """Each row goes to the experts that it chooses."""

    def __init__(self) -> None:
        super().__init__()
        self.router, self.experts = nn.Linear(5, 3), nn.ModuleList(nn.Linear(5, 4) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        weight, chosen = self.router(x).softmax(-1).topk(2)
        out = torch.zeros(len(x), 4)
        for number, expert in enumerate(self.experts):
            row, place = (chosen == number).nonzero(as_tuple=True)
            out.index_add_(0, row, expert(x[row]) * weight[row, place, None])
        return out


class Spectral(nn.Module):
    """A layer of a Fourier neural operator."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, dtype=torch.complex64) / math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.irfft(torch.fft.rfft(x) * self.weight, n=x.shape[-1])


class Symmetric(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.triu() + x.triu(1).mT


def symmetric(layer: nn.Module) -> nn.Module:
    parametrize.register_parametrization(layer, "weight", Symmetric())
    return layer


def initialised(layer: nn.Module) -> nn.Module:
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    return layer


def frozen(model: nn.Sequential) -> nn.Module:
    model[0].requires_grad_(False)
    return model


def exported(model: nn.Module) -> nn.Module:
    return torch.export.export(model, (torch.zeros(4, 5),)).module()


def doubled(parameter: Tensor) -> None:
    parameter.grad.mul_(2)


def hooked(model: nn.Sequential) -> nn.Module:
    """Forward, backward and gradient hooks, of which some change what passes."""
    model[0].register_forward_pre_hook(lambda module, args: (args[0] * 2,))
    model[0].register_forward_hook(lambda module, args, out: out + 1)
    model[2].register_full_backward_pre_hook(lambda module, upstream: (upstream[0] * 0.5,))
    model[2].register_full_backward_hook(lambda module, downstream, upstream: (downstream[0].clamp(-1, 1),))
    model[2].weight.register_hook(lambda gradient: gradient + 0.01)
    model[0].bias.register_post_accumulate_grad_hook(doubled)
    return model


def of_a_layer(make: Callable[[], nn.Module], shape: tuple[int, ...]) -> Training:
    model = make()
    inputs = [torch.randn(shape) for _ in range(2)]
    kinds = {
        parameter.dtype for parameter in model.parameters() if not isinstance(parameter, nn.UninitializedParameter)
    }
    if len(kinds) == 1 and not isinstance(model, Spectral):
        inputs = [each.to(*kinds) for each in inputs]
    if any(isinstance(each, nn.UninitializedParameter) for each in model.parameters()):
        model(inputs[0])
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return plain(
        model, lambda number: model(inputs[number % 2]).abs().pow(2).mean(), torch.optim.Adam(trained, lr=0.01)
    )


for name, (make_layer, shape_of_input) in LAYERS.items():
    entered(f"layer_{name}", partial(of_a_layer, make_layer, shape_of_input))


# -- losses -----------------------------------------------------------------------------------------------------------


def focal(out: Tensor, y: Tensor) -> Tensor:
    right = out.softmax(-1)[range(len(y)), y]
    return ((1 - right) ** 2 * F.cross_entropy(out, y, reduction="none")).mean()


def determinant(out: Tensor, y: Tensor) -> Tensor:
    matrix = out.T @ out + torch.eye(3)
    return torch.logdet(matrix) + torch.linalg.cholesky(matrix).sum()


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "label_smoothing": partial(F.cross_entropy, label_smoothing=0.1, weight=torch.tensor([1.0, 2.0, 0.5])),
    "focal": focal,
    "ctc": lambda out, y: F.ctc_loss(
        out.log_softmax(-1)[:, None], y[None, :2].clamp(1), torch.tensor([len(out)]), torch.tensor([2])
    ),
    "triplet": lambda out, y: F.triplet_margin_loss(out, out.roll(1, 0), out.roll(2, 0)),
    "cosine": lambda out, y: F.cosine_embedding_loss(out, out.flip(-1), y.sign() * 2 - 1),
    "contrastive": lambda out, y: F.cross_entropy(F.normalize(out) @ F.normalize(out).T / 0.1, torch.arange(len(out))),
    "gaussian": lambda out, y: F.gaussian_nll_loss(out[:, 0], y.float(), out[:, 1].exp()),
    "distribution": lambda out, y: -torch.distributions.Categorical(logits=out).log_prob(y).mean(),
    "reparameterised": lambda out, y: torch.distributions.Normal(out[:, 0], out[:, 1].exp()).rsample().pow(2).mean(),
    "gumbel": lambda out, y: F.gumbel_softmax(out, hard=True).pow(2).sum() + out.pow(2).mean(),
    "sorted": lambda out, y: out.sort(0).values[::2].pow(2).mean() + out.median(),
    "determinant": determinant,
}


def of_a_loss(loss: Callable[[Tensor, Tensor], Tensor]) -> Training:
    model, (x, y) = mlp(dropout=0.2), batch()
    return plain(model, lambda number: loss(model(x), y))


for name, loss_function in LOSSES.items():
    entered(f"loss_{name}", partial(of_a_loss, loss_function))


@training
def sparse_embedding() -> Training:
    model = nn.EmbeddingBag(20, 4, mode="sum", sparse=True)
    words, starts = torch.randint(20, (12,)), torch.tensor([0, 3, 7])
    return plain(model, lambda number: model(words, starts).pow(2).mean(), torch.optim.SparseAdam(model.parameters()))


@training
def packed_sequences() -> Training:
    from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

    model, x = nn.GRU(5, 4, batch_first=True), torch.randn(3, 6, 5)

    def loss(number: int) -> Tensor:
        packed = pack_padded_sequence(x, torch.tensor([6, 2, 4]), batch_first=True, enforce_sorted=False)
        return pad_packed_sequence(model(packed)[0])[0].pow(2).mean()

    return plain(model, loss)


@training
def any_tensors() -> Training:
    """No module at all."""
    w, b = torch.randn(6, 3, requires_grad=True), torch.zeros(3, requires_grad=True)
    (x, y), optimizer = batch(), None
    optimizer = torch.optim.SGD([w, b], lr=0.1)

    def step(number: int) -> Any:
        optimizer.zero_grad()
        loss = F.cross_entropy(x @ w + b, y)
        loss.backward()
        optimizer.step()
        return loss

    return Training(step, (w, b, optimizer))


@training
def sparse_of_many_layouts() -> Training:
    """CSR and COO weights, sparse gradients with SparseAdam, masks that are kept, softmax and sampled products."""
    table = nn.EmbeddingBag(20, 6, sparse=True, mode="sum")
    values = nn.Parameter(torch.randn(10))
    places = torch.stack([torch.arange(10) % 6, (torch.arange(10) * 3) % 7])
    head = nn.Linear(6, 3)
    ids, y = torch.randint(20, (8, 4)), torch.randint(3, (8,))
    optimizers = optim.SparseAdam(table.parameters(), lr=0.1), optim.Adam([values, *head.parameters()], lr=0.01)
    other = torch.randn(7, 8)

    def step(number: int) -> Any:
        for each in optimizers:
            each.zero_grad()
        matrix = torch.sparse_coo_tensor(places, values, (6, 7)).coalesce()
        h = table(ids) + torch.sparse.mm(matrix, other).t()
        loss = F.cross_entropy(head(h), y) + torch.sparse.softmax(matrix, 1).to_dense().square().sum() * 0.1
        fixed = matrix.detach().to_sparse_csr()
        loss = loss + (fixed @ other @ torch.randn(8, 3)).sum() * 0.0 + (torch.sparse.sum(matrix) * 0.01)
        loss.backward()
        for each in optimizers:
            each.step()
        return loss

    return Training(step, (table, values, head, optimizers))
