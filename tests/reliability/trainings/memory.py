"""Trainings in which memory comes and goes: views that overlap, deleted tensors, layers that are reversed."""

from __future__ import annotations

import copy
import gc
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn, optim

from tests.reliability.trainings.base import Training, batch, mlp, plain, training


@training
def memory_that_comes_and_goes() -> Training:
    """Storages are freed and filled again, exchanged, resized, shared by parameters, mapped from a file."""
    import tempfile

    flat = torch.randn(40)
    w, b, tied = (nn.Parameter(flat[:18].view(6, 3)), nn.Parameter(flat[18:21]), nn.Parameter(flat[15:21]))
    flat_gradient = torch.zeros(27)
    optimizer, (x, y) = optim.SGD([w, b, tied], lr=0.1), batch()
    mapped = torch.from_file(tempfile.mktemp(), shared=True, size=24).view(8, 3)

    def step(number: int) -> Tensor:
        w.grad, b.grad, tied.grad = flat_gradient[:18].view(6, 3), flat_gradient[18:21], flat_gradient[21:]
        flat_gradient.zero_()
        h = x @ w + b
        scratch = torch.ones(8, 3)
        size = scratch.untyped_storage().nbytes()
        scratch.untyped_storage().resize_(0)
        scratch.untyped_storage().resize_(size)
        scratch.fill_(0.5)
        mapped.copy_(h.detach())
        growing = torch.empty(0)
        growing.resize_(8, 3).copy_(mapped)
        growing.set_(mapped.untyped_storage(), 0, (8, 3), (3, 1))
        loss = F.cross_entropy(h * scratch + growing + tied.view(2, 3).sum(0), y)
        loss.backward()
        scratch.untyped_storage().resize_(0)
        optimizer.step()
        return loss

    return Training(step, (flat, flat_gradient, mapped, w, b, tied, optimizer))


@training
def overlapping_views() -> Training:
    """Views of views that overlap are written and trained; dlpack and numpy hand memory round."""
    base = torch.randn(12, requires_grad=True)
    optimizer, arrays = optim.SGD([base], lr=0.01), []

    def step(number: int) -> Tensor:
        optimizer.zero_grad()
        whole = base * 2
        rows = whole.as_strided((4, 6), (2, 1), 0)
        left, right = whole[:6], whole[6:]
        whole[::2].mul_(3)
        right.copy_(left.detach())
        handed = torch.from_dlpack(whole.detach())
        handed.numpy()[0] = 5.0
        arrays.append(np.asarray(handed).copy())
        loss = rows.square().sum() + torch.view_as_complex(whole.view(6, 2)).abs().sum() + right.sum()
        loss.backward()
        optimizer.step()
        return loss

    return Training(step, (base, optimizer, arrays))


@training
def deleted_as_soon_as_possible() -> Training:
    """Models, optimizers and losses that live for a step; what is made next gets their addresses."""
    (x, y), freed, weights = batch(), [], []

    def step(number: int) -> float:
        model = mlp()
        model.load_state_dict(weights[-1]) if weights else None
        optimizer = optim.SGD(model.parameters(), lr=0.1)
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        value = float(loss)
        del loss
        optimizer.step()
        weights.append(copy.deepcopy(model.state_dict()))
        del model, optimizer
        gc.collect()
        return value

    return Training(step, (weights, freed), steps=6)


@training
def updates_by_hand() -> Training:
    """Parameters are updated by `_foreach_`, `.data`, new tensors, and vectors of all; gradients are deleted."""
    from torch.nn.utils import parameters_to_vector, vector_to_parameters

    model, (x, y) = mlp(), batch()

    def by_vector(slopes: list[Tensor]) -> None:
        vector = parameters_to_vector(model.parameters()) - 0.1 * parameters_to_vector(slopes)
        vector_to_parameters(vector, model.parameters())

    def by_new_tensors(slopes: list[Tensor]) -> None:
        for module in model:
            for name, p in list(module._parameters.items()):
                assert p is not None
                module._parameters[name] = nn.Parameter((p - 0.1 * p.grad).detach())

    def by_data(slopes: list[Tensor]) -> None:
        for p, slope in zip(model.parameters(), slopes, strict=True):
            p.data -= 0.1 * slope
            del p.grad

    ways = [lambda slopes: torch._foreach_add_(list(model.parameters()), slopes, alpha=-0.1), by_vector, by_data]
    ways += [by_new_tensors, lambda slopes: model.load_state_dict({k: v * 0.9 for k, v in model.state_dict().items()})]

    def step(number: int) -> Tensor:
        model.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        with torch.no_grad():
            ways[number % len(ways)]([p.grad for p in model.parameters()])
        return loss

    return Training(step, (model,), steps=2 * len(ways))


class Reversible(torch.autograd.Function):
    """Keeps no tensors: its backward computes the input from the output, and the gradients by a pass of its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: nn.Module, *parameters: Tensor) -> Tensor:
        with torch.no_grad():
            left, right = x.chunk(2, -1)
            out = torch.cat([left + layer(right), right], -1)
        ctx.layer, ctx.parameters = layer, parameters
        ctx.save_for_backward(out)
        ctx.set_materialize_grads(False)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> Any:
        (out,) = ctx.saved_tensors
        _, right = out.chunk(2, -1)
        with torch.enable_grad():
            right = right.detach().requires_grad_()
            inner = ctx.layer(right)
            slopes = torch.autograd.grad(inner, [right, *ctx.parameters], upstream.chunk(2, -1)[0])
        return torch.cat([upstream.chunk(2, -1)[0], upstream.chunk(2, -1)[1] + slopes[0]], -1), None, *slopes[1:]


@training
def reversible_layers() -> Training:
    layers, (x, y) = nn.ModuleList([nn.Linear(3, 3) for _ in range(3)]), batch()

    def loss(number: int) -> Tensor:
        h = x
        for layer in layers:
            h = Reversible.apply(h, layer, *layer.parameters()).flip(-1)
        return F.cross_entropy(h, y)

    return plain(layers, loss)


@training
def evaluated_in_inference_mode() -> Training:
    """Validation in inference mode in the middle of a step, on a copy, on the model, and on its submodules."""
    model, (x, y) = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 3)), batch()
    scores: list[Tensor] = []

    def loss(number: int) -> Tensor:
        h = model[:2](x)
        model.eval()
        with torch.inference_mode():
            scores.append(model(x).clone())
            scores.append(copy.deepcopy(model)(x + 1))
        model.train()
        return F.cross_entropy(model[2:](h + scores[0].sum().item() * 0.001), y)

    return plain(model, loss, None, [])
