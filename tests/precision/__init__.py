"""How small an error the gradient check sees, and that right gradients raise no alarm however they round."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from types import SimpleNamespace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import chainrule
from tests.mutants import Operation, inputs, make, right
from tests.mutants.operations import OPERATIONS

DTYPES = (torch.float64, torch.float32, torch.bfloat16)
NOT_IN_BFLOAT16 = {"inverse"}
SEEN = {torch.float64: 1e-8, torch.float32: 1e-5, torch.bfloat16: 1e-2}
"""The relative error of a wrong backward that must be seen."""


def is_seen(operation: Operation, dtype: torch.dtype, error: float) -> bool:
    """Whether a gradient that is too large by a relative error is seen; that of the first input is wrong."""
    gradients = {name: _scaled(gradient, 1.0) for name, gradient in operation.gradients.items()}
    first = next(iter(gradients))
    gradients[first] = _scaled(operation.gradients[first], 1 + error)
    return bool(chainrule.verify(make(operation, gradients), *(x.to(dtype) for x in inputs(operation))).failures)


def _scaled(gradient, factor: float) -> Callable[[Tensor, SimpleNamespace], Tensor]:
    def work(g: Tensor, saved: SimpleNamespace) -> Tensor:
        total = sum(term(g, saved) for term in gradient.terms)
        total = total.sum(gradient.axes, keepdim=gradient.keep) if gradient.axes else total
        return total * factor if factor != 1 else total

    return work


def one_wrong_element(count: int, dtype: torch.dtype) -> bool:
    """Whether one element that is too large by one half is seen among so many."""

    def backward(g: Tensor, s: SimpleNamespace) -> Tensor:
        out = g * s.x.cos()
        out[count // 3] *= 1.5
        return out

    operation = Operation("sin", torch.sin, {"x": (count,)}, {})
    x = torch.randn(count, generator=torch.Generator().manual_seed(count)).to(dtype)
    return bool(chainrule.verify(make(operation, {"x": backward}), x).failures)


# -- right ones that round badly ---------------------------------------------------------------------------------------


def _f(forward: Callable[..., Tensor], *gradients: Callable[[Tensor, SimpleNamespace], Tensor]) -> type:
    names = "xyz"[: len(gradients)]
    return make(Operation("", forward, dict.fromkeys(names, ()), {}), dict(zip(names, gradients, strict=True)))


def _layer_norm(x: Tensor) -> Tensor:
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt()


def _layer_norm_backward(g: Tensor, s: SimpleNamespace) -> Tensor:
    scale = 1 / (s.x.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt()
    normal = (s.x - s.x.mean(-1, keepdim=True)) * scale
    return scale * (g - g.mean(-1, keepdim=True) - normal * (g * normal).mean(-1, keepdim=True))


FUNCTIONS: dict[str, tuple[type, Callable[[], tuple[Tensor, ...]]]] = {
    "variance near 10,000": (
        _f(lambda x: x.var(0, unbiased=False), lambda g, s: 2 * g * (s.x - s.x.mean(0)) / len(s.x)),
        lambda: (1e4 + torch.randn(20, 3),),
    ),
    "variance as a difference of squares": (
        _f(lambda x: x.square().mean(0) - x.mean(0).square(), lambda g, s: 2 * g * (s.x - s.x.mean(0)) / len(s.x)),
        lambda: (100 + torch.randn(20, 3),),
    ),
    "logsumexp of large numbers": (
        _f(lambda x: x.logsumexp(-1), lambda g, s: g[:, None] * (s.x - s.out[:, None]).exp()),
        lambda: (100 * torch.randn(20, 3),),
    ),
    "norm of a large offset": (
        _f(
            lambda x, y: (x - y).norm(dim=-1),
            *(lambda g, s, sign=sign: sign * g[:, None] * (s.x - s.y) / s.out[:, None] for sign in (1, -1)),
        ),
        lambda: (1e4 + torch.randn(9, 5), 1e4 + torch.randn(9, 5)),
    ),
    "layer norm of a large offset": (_f(_layer_norm, _layer_norm_backward), lambda: (1e3 + torch.randn(6, 10),)),
    "layer norm of many": (_f(_layer_norm, _layer_norm_backward), lambda: (30 + torch.randn(70, 100),)),
    "softmax of a confident prediction": (
        _f(lambda x: x.softmax(-1), lambda g, s: s.out * (g - (g * s.out).sum(-1, keepdim=True))),
        lambda: (20 * torch.randn(8, 5),),
    ),
    "a product of matrices that cancels": (
        _f(lambda x, y: x @ y, lambda g, s: g @ s.y.mT, lambda g, s: s.x.mT @ g),
        lambda: (torch.randn(6, 40) * 100, torch.randn(40, 5)),
    ),
    "a float32 constant": (
        _f(
            lambda x: (x * torch.tensor(0.7978846)).tanh(),
            lambda g, s: g * (1 - s.out * s.out) * torch.tensor(0.7978846),
        ),
        lambda: (torch.randn(40, 5),),
    ),
    "float32 inside": (
        _f(
            lambda x: x.float().sigmoid().to(x.dtype),
            lambda g, s: (g.float() * s.out.float() * (1 - s.out.float())).to(g.dtype),
        ),
        lambda: (torch.randn(40, 5),),
    ),
    "a bias that cancels": (
        _f(
            lambda x: (x - x.mean(0)) * torch.arange(1.0, 4.0).to(x),
            lambda g, s: (g - g.mean(0)) * torch.arange(1.0, 4.0).to(g),
        ),
        lambda: (1e3 + torch.randn(50, 3),),
    ),
}


def false_alarms(dtype: torch.dtype, seeds: int) -> Iterator[str]:
    """Right functions that are said to be wrong."""
    for seed in range(seeds):
        for name, (function, given) in FUNCTIONS.items():
            torch.manual_seed(seed)
            if found := chainrule.verify(function, *(x.to(dtype) for x in given())).failures:
                yield f"{name}, seed {seed}: {found[0].reason}"
        for operation in OPERATIONS:
            torch.manual_seed(seed)
            scale, offset = (1.0, 10.0, 1.0)[seed % 3], (0.0, 0.0, 30.0)[seed % 3]
            given = [offset + scale * (1 + 0.1 * seed) * x for x in inputs(operation)]
            if dtype == torch.bfloat16 and operation.name in NOT_IN_BFLOAT16:
                continue
            if found := chainrule.verify(right(operation), *(x.to(dtype) for x in given)).failures:
                yield f"{operation.name}, seed {seed}: {found[0].reason}"


class Attention(nn.Module):
    """Self-attention with a bias of the keys, whose gradient is 0 but for rounding."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return x + F.scaled_dot_product_attention(self.q(x), self.k(x), self.v(x))


def network(seed: int) -> tuple[nn.Module, Tensor]:
    """A random network in which biases stand before normalisations, and its input, with a large offset or not."""
    torch.manual_seed(seed)
    width, count = 8 * (1 + seed % 3), 6 + seed % 5
    norms = [nn.LayerNorm(width), nn.GroupNorm(4, width), nn.BatchNorm1d(width), nn.InstanceNorm1d(width)]
    kinds: list[nn.Module] = [nn.Linear(width, width), nn.Linear(width, width), Attention(width), nn.GELU(), nn.Tanh()]
    layers: list[nn.Module] = [nn.Linear(width, width), nn.BatchNorm1d(width)]
    for _ in range(4):
        layers += [kinds[int(torch.randint(len(kinds), ()))], norms[int(torch.randint(3, ()))]]
    layers = [type(each)(width) if isinstance(each, Attention) else each for each in layers]
    offset = (0.0, 100.0, 1000.0)[seed // 3 % 3]
    return nn.Sequential(*layers, nn.Linear(width, 3)), offset + torch.randn(count, width)


def network_alarms(dtype: torch.dtype, seeds: Iterable[int]) -> Iterator[str]:
    """Nodes, updates and documents of right networks that disagree."""
    for seed in seeds:
        model, x = network(seed)
        model, x = model.to(dtype), x.to(dtype)
        optimizer = (
            torch.optim.AdamW(model.parameters(), 1e-3) if seed % 2 else torch.optim.SGD(model.parameters(), 0.1)
        )
        with chainrule.record(namespace={}) as recording:
            loss = F.cross_entropy(model(x).float(), torch.arange(len(x)) % 3)
            loss.backward()
            optimizer.step()
        before = str(recording).count("disagrees")
        failures = recording.verify().failures
        if before or failures or "disagrees" in str(recording):
            yield f"network {seed}: {before} before, {[(row.node.name, row.reason) for row in failures]}"
