"""Further architectures for the lab, which no rule and no test was written for."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.browser.lab_steps import Trained, adam, sgd


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down, self.middle = nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 3, 3, padding=1)
        self.out = nn.Conv2d(5, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = F.leaky_relu(self.down(x), 0.1)
        below = F.interpolate(F.elu(self.middle(F.avg_pool2d(first, 2))), scale_factor=2.0, mode="nearest")
        return self.out(torch.cat([first, below], 1))


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(6, 4), nn.Parameter(torch.randn(5, 4) / 4)
        self.qkv, self.mix, self.up, self.down = nn.Linear(4, 12), nn.Linear(4, 4), nn.Linear(4, 8), nn.Linear(8, 4)
        self.norm = nn.LayerNorm(4)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids) + self.places
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        scores = (q @ k.transpose(-2, -1)) / 2
        scores = scores.masked_fill(torch.ones(5, 5).triu(1).bool(), float("-inf"))
        x = x + self.mix(scores.softmax(-1) @ v)
        return (x + self.down(F.gelu(self.up(x), approximate="tanh"))) @ self.tokens.weight.T


class Graphs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        for layer in (self.first, self.second):
            sent = layer(x)[edges[0]]
            x = F.softplus(torch.zeros(5, sent.shape[1]).index_add(0, edges[1], sent))
        return x.log_softmax(-1)


class Autoencoder(nn.Module):
    """Variational."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.decode = nn.Linear(6, 4), nn.Linear(2, 6)

    def forward(self, x: Tensor) -> Tensor:
        mean, log_variance = self.encode(x).chunk(2, -1)
        drawn = mean + torch.randn_like(mean) * (log_variance / 2).exp()
        divergence = -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).sum(-1)
        return F.mse_loss(self.decode(drawn), x, reduction="sum") + 0.1 * divergence.mean()


class Experts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.experts = nn.Linear(3, 3), nn.ModuleList(nn.Linear(3, 2) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.gate(x).softmax(-1).topk(2, -1)
        each = torch.stack([expert(x) for expert in self.experts], 1)
        return (each.gather(1, chosen[..., None].expand(-1, -1, 2)) * weights[..., None]).sum(1)


class Separable(nn.Module):
    """Depthwise and pointwise, with channels weighed."""

    def __init__(self) -> None:
        super().__init__()
        self.depth, self.point = nn.Conv2d(3, 3, 3, groups=3, padding=1), nn.Conv2d(3, 4, 1)
        self.norm, self.squeeze, self.excite = nn.InstanceNorm2d(4, affine=True), nn.Linear(4, 2), nn.Linear(2, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.hardswish(self.norm(self.point(self.depth(x))))
        weight = torch.sigmoid(self.excite(F.relu(self.squeeze(x.mean((2, 3))))))
        return (x * weight[:, :, None, None]).amax((2, 3))


class Reader(nn.Module):
    """A recurrent encoder, and a decoder that looks back at its states."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.decode, self.score = nn.GRUCell(3, 4), nn.GRUCell(4, 4), nn.Bilinear(4, 4, 1)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        state, states = x.new_zeros(2, 4), []
        for step in x.unbind(1):
            state = self.encode(step, state)
            states.append(state)
        memory, outs = torch.stack(states, 1), []
        for _ in range(2):
            weights = self.score(memory, state[:, None].expand_as(memory).contiguous()).softmax(1)
            state = self.decode((memory * weights).sum(1), state)
            outs.append(self.head(state))
        return torch.stack(outs, 1)


class Mixer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.channels = nn.Linear(4, 4), nn.Linear(3, 3)
        self.one, self.two, self.head = nn.RMSNorm(3), nn.RMSNorm(3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.tokens(self.one(x).mT).mT
        x = x + F.mish(self.channels(self.two(x)))
        return self.head(x.mean(1))


class Gated(nn.Module):
    """Dilated causal convolutions, gated."""

    def __init__(self) -> None:
        super().__init__()
        self.filters = nn.ModuleList(nn.Conv1d(2, 4, 2, dilation=d) for d in (1, 2))
        self.skips = nn.ModuleList(nn.Conv1d(2, 2, 1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        total = torch.zeros_like(x)
        for layer, skip in zip(self.filters, self.skips, strict=True):
            a, b = layer(F.pad(x, (layer.dilation[0], 0))).chunk(2, 1)
            made = torch.tanh(a) * torch.sigmoid(b)
            total, x = total + skip(made), x + made
        return total


class Filter(nn.Module):
    """Kalman's, by its likelihood."""

    def __init__(self) -> None:
        super().__init__()
        self.moves, self.noise = nn.Parameter(torch.tensor([[0.9, 0.1], [0.0, 0.8]])), nn.Parameter(torch.rand(2))

    def forward(self, seen: Tensor) -> Tensor:
        mean, spread, surprise = torch.zeros(2, 1), torch.eye(2), torch.zeros(())
        for each in seen:
            mean, spread = self.moves @ mean, self.moves @ spread @ self.moves.T + torch.diag(self.noise.exp())
            whole, off = spread + 0.5 * torch.eye(2), each[:, None] - mean
            surprise = surprise + (off.T @ torch.linalg.inv(whole) @ off).squeeze() + torch.linalg.slogdet(whole)[1]
            gain = torch.linalg.solve(whole, spread).T
            mean, spread = mean + gain @ off, spread - gain @ spread
        return surprise


class Process(nn.Module):
    """A Gaussian one, by its marginal likelihood."""

    def __init__(self) -> None:
        super().__init__()
        self.length, self.noise = nn.Parameter(torch.tensor(0.3)), nn.Parameter(torch.tensor(-1.0))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        kernel = torch.exp(-(x - x.T).square() / self.length.exp()) + self.noise.exp() * torch.eye(len(x))
        factor = torch.linalg.cholesky(kernel)
        return torch.linalg.solve_triangular(factor, y, upper=False).square().sum() + factor.diagonal().log().sum()


class Rates(nn.Module):
    """The parameters of a distribution, whose arguments are looked at in Python."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        first, second = (F.softplus(self.layer(x)) + 0.5).unbind(-1)
        return -torch.distributions.Beta(first, second).log_prob(y).mean()


class Packed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.pool, self.head = nn.LSTM(2, 3), nn.AdaptiveMaxPool2d(2), nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(x, torch.tensor([3, 2]))
        states, _ = nn.utils.rnn.pad_packed_sequence(self.layer(packed)[0])
        return self.head(self.pool(states.transpose(0, 1)).flatten(1)).square().mean()


class Factors(nn.Module):
    """Functions of a matrix that PyTorch leaves to LAPACK, and a pooling whose last windows lie partly outside."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(3, 3, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        turned = x @ torch.linalg.qr(self.matrix)[0]
        pooled = F.avg_pool1d(turned[None], 2, stride=2, padding=1, ceil_mode=True, count_include_pad=False)
        grown = torch.matrix_exp(self.matrix - self.matrix.T) @ torch.addbmm(x[:3], x[None, :3], self.matrix[None])
        spread = torch.linalg.eigvalsh(x.T @ x + self.matrix @ self.matrix.T)
        return pooled.relu().sum() + torch.det(self.matrix) + grown.square().mean() + spread.log().sum()


def factors() -> Trained:
    return Trained(Factors(), [torch.randn(4, 3, dtype=torch.float64)], lambda m, x: m(x), sgd)


def kalman() -> Trained:
    return Trained(Filter(), [torch.randn(3, 2)], lambda m, x: m(x), sgd)


def process() -> Trained:
    return Trained(Process(), [torch.randn(5, 1), torch.randn(5, 1)], lambda m, x, y: m(x, y), sgd)


def rates() -> Trained:
    return Trained(Rates(), [torch.randn(4, 2), torch.rand(4) / 2 + 0.2], lambda m, x, y: m(x, y), adam)


def packed() -> Trained:
    return Trained(Packed(), [torch.randn(3, 2, 2)], lambda m, x: m(x), sgd)


def unet() -> Trained:
    given = [torch.randn(1, 1, 4, 4), torch.rand(1, 1, 4, 4).round()]
    return Trained(UNet(), given, lambda m, x, y: F.binary_cross_entropy_with_logits(m(x), y), torch.optim.NAdam)


def decoder() -> Trained:
    given = [torch.tensor([[0, 3, 5, 1, 2]]), torch.tensor([[3, 5, 1, 2, 4]])]
    return Trained(
        Decoder(), given, lambda m, x, y: F.cross_entropy(m(x).flatten(0, 1), y.flatten()), torch.optim.RAdam
    )


def graphs() -> Trained:
    edges = torch.tensor([[0, 1, 2, 3, 4, 0, 2], [1, 2, 3, 4, 0, 3, 0]])
    return Trained(
        Graphs(),
        [torch.randn(5, 3), edges, torch.tensor([0, 1, 1, 0, 1])],
        lambda m, x, e, y: F.nll_loss(m(x, e), y),
        adam,
    )


def variational() -> Trained:
    return Trained(Autoencoder(), [torch.randn(2, 6)], lambda m, x: m(x), sgd)


def triplet() -> Trained:
    model = nn.Sequential(nn.Linear(4, 5), nn.PReLU(), nn.Linear(5, 3))

    def loss(m: nn.Module, a: Tensor, p: Tensor, n: Tensor) -> Tensor:
        return F.triplet_margin_loss(m(a), m(p), F.normalize(m(n), dim=-1), margin=2.0)

    return Trained(
        model, [torch.randn(3, 4) for _ in range(3)], loss, lambda p: torch.optim.SGD(p, 0.1, weight_decay=0.1)
    )


def experts() -> Trained:
    given = [torch.randn(4, 3), torch.randn(4, 2)]
    return Trained(
        Experts(), given, lambda m, x, y: F.smooth_l1_loss(m(x), y), lambda p: torch.optim.Adam(p, amsgrad=True)
    )


def separable() -> Trained:
    given = [torch.randn(2, 3, 4, 4), torch.tensor([1, 3])]
    return Trained(Separable(), given, lambda m, x, y: F.multi_margin_loss(m(x), y), torch.optim.Adagrad)


def reader() -> Trained:
    return Trained(Reader(), [torch.randn(2, 3, 3), torch.randn(2, 2, 3)], lambda m, x, y: F.l1_loss(m(x), y), adam)


def mixer() -> Trained:
    given = [torch.randn(2, 4, 3), torch.tensor([[0.2, 0.8], [0.5, 0.5]])]
    return Trained(
        Mixer(), given, lambda m, x, y: F.kl_div(m(x).log_softmax(-1), y, reduction="batchmean"),
        lambda p: torch.optim.RMSprop(p, momentum=0.9, centered=True),
    )  # fmt: skip


def gated() -> Trained:
    given = [torch.randn(2, 2, 5), torch.randn(2, 2, 5)]
    return Trained(
        Gated(), given, lambda m, x, y: (m(x) - y).abs().clamp(max=1.5).pow(1.5).mean(), torch.optim.Adadelta
    )


ALL = (
    unet,
    decoder,
    graphs,
    variational,
    triplet,
    experts,
    separable,
    reader,
    mixer,
    gated,
    kalman,
    process,
    rates,
    packed,
    factors,
)
OTHERS = {each.__name__: each for each in ALL}
