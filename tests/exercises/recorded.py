"""The networks of `by_hand`, as a user writes them, and recorded."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import chainrule
from chainrule.examples import worked_example
from tests.exercises import by_hand
from tests.exercises.by_hand import Network, Numbers


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape).mul(16).round().div(16)


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(drawn(*shape))


def numbers(**tensors: Tensor) -> Numbers:
    return {name: each.detach().clone() for name, each in tensors.items()}


def after(before: Numbers, **tensors: Tensor) -> Numbers:
    """In double precision, with the parameters as they are now."""
    found = before | {f"new {name}": each.detach() for name, each in tensors.items()}
    return {name: each.double() if each.is_floating_point() else each for name, each in found.items()}


Recorded = tuple[chainrule.Recording, Numbers]


def three_layers() -> Recorded:
    model, loss, optimizer = worked_example.build("sgd")
    named = {
        f"{kind[0].upper() if kind == 'weight' else 'b'}{i}": getattr(getattr(model, f"linear{i}"), kind)
        for i in (1, 2, 3)
        for kind in ("weight", "bias")
    }
    before = numbers(X=worked_example.X, Y=worked_example.Y, **named)
    with chainrule.record() as recording:
        worked_example.train_step(model, loss, optimizer)
    return recording, after(before, W2=named["W2"], W3=named["W3"])


def classifier() -> Recorded:
    X, t = drawn(4, 3), torch.tensor([0, 2, 1, 2])
    W1, b1, W2, b2 = parameter(5, 3), parameter(5), parameter(3, 5), parameter(3)
    before = numbers(X=X, t=t, W1=W1, b1=b1, W2=W2, b2=b2)
    optimizer = torch.optim.SGD([W1, b1, W2, b2], lr=0.1)
    with chainrule.record() as recording:
        Z1 = F.linear(X, W1, b1)
        A1 = torch.tanh(Z1)
        Z2 = F.linear(A1, W2, b2)
        F.cross_entropy(Z2, t).backward()
        optimizer.step()
    return recording, after(before, W2=W2)


def convolution() -> Recorded:
    X, t = drawn(2, 1, 6, 6), torch.tensor([0, 2])
    K, b, W2, b2 = parameter(2, 1, 3, 3), parameter(2), parameter(3, 8), parameter(3)
    before = numbers(X=X, t=t, K=K, b=b, W2=W2, b2=b2)
    optimizer = torch.optim.SGD([K, b, W2, b2], lr=0.1)
    with chainrule.record() as recording:
        Z = F.conv2d(X, K, b)
        A = F.relu(Z)
        P = F.max_pool2d(A, 2)
        Z2 = F.linear(P.flatten(1), W2, b2)
        F.cross_entropy(Z2, t).backward()
        optimizer.step()
    return recording, after(before, W2=W2)


def lstm() -> Recorded:
    x, h0, c0, t = drawn(3, 2), drawn(3, 2), drawn(3, 2), drawn(3, 2)
    Wi, Wh, bi = parameter(8, 2), parameter(8, 2), parameter(8)
    before = numbers(x=x, h0=h0, c0=c0, t=t, Wi=Wi, Wh=Wh, bi=bi)
    optimizer = torch.optim.SGD([Wi, Wh, bi], lr=0.1)
    with chainrule.record() as recording:
        z = F.linear(x, Wi, bi) + h0 @ Wh.T
        zi, zf, zg, zo = z.chunk(4, 1)
        i, f, g, o = torch.sigmoid(zi), torch.sigmoid(zf), torch.tanh(zg), torch.sigmoid(zo)
        c = f * c0 + i * g
        q = torch.tanh(c)
        h = o * q
        F.mse_loss(h, t).backward()
        optimizer.step()
    return recording, after(before, Wi=Wi)


def attention() -> Recorded:
    x, t = drawn(4, 3), drawn(4, 2)
    Wq, Wk, Wv = parameter(3, 2), parameter(3, 2), parameter(3, 2)
    before = numbers(x=x, t=t, Wq=Wq, Wk=Wk, Wv=Wv)
    optimizer = torch.optim.SGD([Wq, Wk, Wv], lr=0.1)
    with chainrule.record() as recording:
        q, k, v = x @ Wq, x @ Wk, x @ Wv
        S = q @ k.T / 2**0.5
        P = S.softmax(-1)
        out = P @ v
        F.mse_loss(out, t).backward()
        optimizer.step()
    return recording, after(before)


def batch_norm() -> Recorded:
    X, t = drawn(4, 3), drawn(4, 2)
    W1, b1, gamma, beta, W2, b2 = (
        parameter(3, 3),
        parameter(3),
        parameter(3),
        parameter(3),
        parameter(2, 3),
        parameter(2),
    )
    before = numbers(X=X, t=t, W1=W1, b1=b1, gamma=gamma, beta=beta, W2=W2, b2=b2)
    optimizer = torch.optim.SGD([W1, b1, gamma, beta, W2, b2], lr=0.1)
    with chainrule.record() as recording:
        Z = F.linear(X, W1, b1)
        N = F.batch_norm(Z, None, None, gamma, beta, training=True)
        A = F.relu(N)
        out = F.linear(A, W2, b2)
        F.mse_loss(out, t).backward()
        optimizer.step()
    return recording, after(before, W2=W2)


def residual() -> Recorded:
    X, t = drawn(4, 3), drawn(4, 2)
    named = {
        "W0": parameter(3, 3),
        "W1": parameter(3, 3),
        "b1": parameter(3),
        "W2": parameter(2, 3),
        "b2": parameter(2),
    }
    optimizer = torch.optim.Adam(named.values(), lr=0.1, betas=(0.8, 0.9))

    def step(X: Tensor) -> None:
        optimizer.zero_grad()
        W0, W1, b1, W2, b2 = named.values()
        Z0 = F.linear(X, W0)
        Z1 = F.linear(Z0, W1, b1)
        A1 = torch.tanh(Z1)
        H = A1 + Z0
        out = F.linear(H, W2, b2)
        F.mse_loss(out, t).backward()
        optimizer.step()

    step(drawn(4, 3))
    state = {f"{of} {name}": optimizer.state[named[name]][long] for of, long in MOMENTS for name in ("W1", "W2")}
    before = numbers(X=X, t=t, **named, **state)
    with chainrule.record() as recording:
        step(X)
    return recording, after(before, W1=named["W1"], W2=named["W2"])


MOMENTS = (("m", "exp_avg"), ("v", "exp_avg_sq"))

NETWORKS: dict[str, tuple[Callable[[], Recorded], Network]] = {
    name: (globals()[name], getattr(by_hand, name))
    for name in ("three_layers", "classifier", "convolution", "lstm", "attention", "batch_norm", "residual")
}
