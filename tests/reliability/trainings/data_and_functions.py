"""Trainings with tensors of other kinds, operators of higher order, compiled code, and functions of the user's own."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn, optim

from tests.reliability.trainings.base import Training, batch, mlp, plain, training


@training
def replaced_data() -> Training:
    """Parameters get other memory by `.data =`, `swap_tensors` and `set_`."""
    model, (x, y) = mlp(), batch()
    optimizer = optim.SGD(model.parameters(), lr=0.1)

    def step(number: int) -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        weight = model[0].weight
        weight.data = weight.data.clone().clamp(-0.3, 0.3)
        with torch.no_grad():
            model[3].weight.set_(model[3].weight.clone())
        return loss

    return Training(step, (model, optimizer))


@training
def subclass_of_tensor() -> Training:
    class Tagged(Tensor):
        """A tensor with nothing but a name."""

    w = nn.Parameter(torch.randn(6, 3).as_subclass(Tagged))
    (x, y), optimizer = batch(), optim.SGD([w], lr=0.1)

    def step(number: int) -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(x @ w, y)
        loss.backward()
        optimizer.step()
        return loss

    return Training(step, (w, optimizer))


@training
def nested_tensors() -> Training:
    layer = nn.Linear(6, 3)
    x = [torch.randn(rows, 6) for rows in (2, 4, 3)]

    def loss(number: int) -> Tensor:
        nested = torch.nested.nested_tensor(x, layout=torch.jagged)
        return layer(nested).values().pow(2).mean()

    return plain(layer, loss)


@training
def sparse_matrix() -> Training:
    layer, x = nn.Linear(4, 3), torch.randn(6, 4)
    graph = (torch.rand(6, 6) > 0.5).float().to_sparse()
    return plain(layer, lambda number: torch.sparse.mm(graph, layer(x)).pow(2).mean(), None, graph)


@training
def chosen_branch() -> Training:
    """`torch.cond` on a number of the data."""
    layer, x = nn.Linear(4, 4), torch.randn(6, 4)

    def loss(number: int) -> Tensor:
        out = layer(x) * (number % 2 - 0.5)
        return torch.cond(out.sum() > 0, lambda t: t.sin(), lambda t: t * 3, (out,)).pow(2).mean()

    return plain(layer, loss)


@training
def flexible_attention() -> Training:
    """On a CPU it has no backward pass, so only what comes after it is trained."""
    from torch.nn.attention.flex_attention import flex_attention

    layer, x = nn.Linear(16, 3), torch.randn(1, 1, 8, 16)

    def loss(number: int) -> Tensor:
        mixed = flex_attention(x, x, x, score_mod=lambda score, b, h, i, j: score + 0.1 * (i - j))
        return layer(mixed).pow(2).mean()

    return plain(layer, loss)


@training
def compiled() -> Training:
    model, (x, y) = mlp(), batch()
    whole = torch.compile(model, backend="eager")
    return plain(model, lambda number: F.cross_entropy(whole(x), y))


class Cube(torch.autograd.Function):
    """Counts its passes in a class attribute and writes to what it is given."""

    passes = 0

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        ctx.seed = torch.rand(())
        Cube.passes += 1
        return x**3

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Tensor:
        Cube.passes += 1
        (x,) = ctx.saved_tensors
        return upstream.mul_(3 * x**2 * (0.9 + 0.2 * ctx.seed))


@training
def own_function() -> Training:
    model, (x, y) = mlp(), batch()
    passes: list[int] = []

    def loss(number: int) -> Tensor:
        passes.append(Cube.passes)
        return F.cross_entropy(Cube.apply(model(x)), y)

    return plain(model, loss, None, passes)


@training
def own_operator() -> Training:
    model, (x, y) = mlp(), batch()

    @torch.library.custom_op("reliability::twice", mutates_args=())
    def twice(t: Tensor) -> Tensor:
        return t.clone() * 2

    twice.register_autograd(lambda ctx, upstream: upstream * 2)
    return plain(model, lambda number: F.cross_entropy(twice(model(x)), y))
