"""Seven networks worked out in plain PyTorch, right or with a student's mistakes in them; nothing of chainrule is used.

A slip is a kind of mistake at a place (`off unit` at `A1`). Each network gives every number that a student is asked
for, by its name, computed from formulas with that slip.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

Numbers = dict[str, Tensor]


@dataclass
class Slips:
    """The slips that are made; `places` collects those that could be."""

    made: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        self.places: list[tuple[str, str]] = []

    def at(self, kind: str, place: str) -> bool:
        self.places.append((kind, place))
        return (kind, place) in self.made


def linear(
    s: Slips, place: str, g: Tensor, x: Tensor, W: Tensor, new: Tensor, z: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Back through Z = x W^T + b: the gradients of x, W and b; x is an activation of `z`."""
    count = len(x)
    dW, db, dx = g.T @ x, g.sum(0), g @ W
    if s.at("sum over the batch", place):
        dW, db = g[:1].T @ x[:1], g[0]
    if s.at("mean over the batch", place):
        dW, db = dW / count, db / count
    if s.at("factor left out", f"x of {place}"):
        dW = g.T @ torch.ones_like(x)
    if s.at("upstream left out", place):
        dW = torch.ones_like(g).T @ x
    if s.at("not summed", place):
        db = g
    if z is not None and s.at("before the activation", place):
        dW = g.T @ z
    if s.at("factor left out", f"W of {place}"):
        dx = g @ torch.ones_like(W)
    if s.at("updated weight", place):
        dx = g @ new
    if W.shape[0] == W.shape[1] and s.at("transposed", place):
        dx = g @ W.T
    return dx, dW, db


def slope(s: Slips, place: str, kind: str, x: Tensor) -> Tensor:
    """The derivative of an activation at x."""
    sigma = torch.sigmoid(x)
    slopes = {"relu": (x > 0).to(x.dtype), "sigmoid": sigma * (1 - sigma), "tanh": 1 - torch.tanh(x) ** 2}
    if s.at("derivative left out", place):
        return torch.ones_like(x)
    for other in slopes.keys() - {kind}:
        if s.at(f"derivative of {other}", place):
            return slopes[other]
    y = {"relu": torch.relu(x), "sigmoid": sigma, "tanh": torch.tanh(x)}[kind]
    if kind != "relu" and s.at("at the wrong value", place):
        return {"sigmoid": torch.sigmoid(y) * (1 - torch.sigmoid(y)), "tanh": 1 - torch.tanh(y) ** 2}[kind]
    if kind != "relu" and s.at("half of the derivative", place):
        return 1 - y
    if s.at("the function itself", place):
        return y
    return slopes[kind]


def stepped(s: Slips, name: str, W: Tensor, g: Tensor, rate: float) -> Tensor:
    """Plain gradient descent."""
    if s.at("learning rate left out", name):
        return W - g
    if s.at("sign of the update", name):
        return W + rate * g
    return W - rate * g


def squared_error(s: Slips, y: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """The mean of the squares, and its gradient."""
    count = y.numel()
    J, g = ((y - t) ** 2).mean(), 2 * (y - t) / count
    if s.at("mean forgotten", "J"):
        J, g = J * count, g * count
    if s.at("factor 2 forgotten", "J"):
        g = g / 2
    if s.at("swapped", "J"):
        g = -g
    if len(y) not in (1, count) and s.at("mean over the samples alone", "J"):
        J, g = J * count / len(y), g * count / len(y)
    return J, g


def cross_entropy(s: Slips, z: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Softmax with the mean cross-entropy, and its gradient."""
    p, count = z.softmax(-1), len(z)
    hot = F.one_hot(t, z.shape[-1]).to(z.dtype)
    J, g = -(p[torch.arange(count), t].log()).mean(), (p - hot) / count
    if s.at("mean forgotten", "J"):
        J, g = J * count, g * count
    if s.at("swapped", "J"):
        g = -g
    if s.at("target forgotten", "J"):
        g = p / count
    if s.at("logarithm", "J"):
        J = -(p[torch.arange(count), t].log10()).mean()
    if s.at("mean over the classes too", "J"):
        J, g = J / z.shape[-1], g / z.shape[-1]
    return J, g


def finish(s: Slips, found: Numbers, at: str | None = None) -> Numbers:
    """Slips in a number that is there: its sign, its transpose, one element."""
    for name in list(found):
        whole = found[name]
        if not name.startswith("new") and s.at("sign", name):
            found[name] = -whole
        if whole.dim() == 2 and min(whole.shape) > 1 and s.at("transposed", name):
            found[name] = whole.T
        if whole.numel() > 1 and s.at("one element", name):
            found[name] = whole.clone(memory_format=torch.contiguous_format)
            found[name].reshape(-1)[-1] *= -1.7
    return found


def three_layers(p: Numbers, s: Slips) -> Numbers:
    """The worked example: two ReLUs, a sigmoid, the mean binary cross-entropy."""
    X, Y, rate = p["X"], p["Y"], 0.01
    Z1 = X @ p["W1"].T + (0 if s.at("bias forgotten", "Z1") else p["b1"])
    A1 = torch.tanh(Z1) if s.at("other activation", "A1") else Z1 if s.at("activation forgotten", "A1") else Z1.relu()
    Z2 = A1 @ p["W2"].T + (0 if s.at("bias forgotten", "Z2") else p["b2"])
    A2 = Z2 if s.at("activation forgotten", "A2") else Z2.relu()
    Z3 = A2 @ p["W3"].T + p["b3"]
    A3 = torch.sigmoid(-Z3 if s.at("sign in the sigmoid", "A3") else Z3)
    J = -(Y * A3.log() + (1 - Y) * (1 - A3).log()).mean()
    dA3 = (A3 - Y) / (A3 * (1 - A3)) / len(X)
    if s.at("mean forgotten", "J"):
        J, dA3 = J * len(X), dA3 * len(X)
    if s.at("target minus prediction", "J"):
        dA3 = -dA3
    dZ3 = dA3 * slope(s, "A3", "sigmoid", Z3)
    dA2, dW3, db3 = linear(s, "3", dZ3, A2, p["W3"], p["new W3"], Z2)
    dZ2 = dA2 * slope(s, "A2", "relu", Z2)
    dA1, dW2, db2 = linear(s, "2", dZ2, A1, p["W2"], p["new W2"], Z1)
    dZ1 = dA1 * slope(s, "A1", "relu", Z1)
    _, dW1, db1 = linear(s, "1", dZ1, X, p["W1"], p["W1"])
    gradients = {"W1": dW1, "b1": db1, "W2": dW2, "b2": db2, "W3": dW3, "b3": db3}
    found = {f"dJ/d{name}": each for name, each in gradients.items()}
    found |= {"dJ/dZ1": dZ1, "dJ/dA1": dA1, "dJ/dZ2": dZ2, "dJ/dA2": dA2, "dJ/dZ3": dZ3, "dJ/dA3": dA3}
    found |= {"Z1": Z1, "A1": A1, "Z2": Z2, "A2": A2, "A3": A3, "J": J}
    found |= {f"new {w}": stepped(s, w, p[w], gradients[w], rate) for w in ("W1", "W2", "W3")}
    return finish(s, found)


def classifier(p: Numbers, s: Slips) -> Numbers:
    """A tanh layer and a softmax; momentum was at 0."""
    X, t, rate = p["X"], p["t"], 0.1
    Z1 = X @ p["W1"].T + (0 if s.at("bias forgotten", "Z1") else p["b1"])
    A1 = Z1.relu() if s.at("other activation", "A1") else torch.tanh(Z1)
    Z2 = A1 @ p["W2"].T + p["b2"]
    J, dZ2 = cross_entropy(s, Z2, t)
    dA1, dW2, db2 = linear(s, "2", dZ2, A1, p["W2"], p["new W2"], Z1)
    dZ1 = dA1 * slope(s, "A1", "tanh", Z1)
    _, dW1, db1 = linear(s, "1", dZ1, X, p["W1"], p["W1"])
    gradients = {"W1": dW1, "b1": db1, "W2": dW2, "b2": db2}
    found = {f"dJ/d{name}": each for name, each in gradients.items()}
    found |= {"dJ/dZ1": dZ1, "dJ/dA1": dA1, "dJ/dZ2": dZ2, "Z1": Z1, "A1": A1, "Z2": Z2, "J": J}
    found |= {f"new {w}": stepped(s, w, p[w], gradients[w], rate) for w in ("W1", "W2")}
    return finish(s, found)


def convolution(p: Numbers, s: Slips) -> Numbers:
    """A convolution, ReLU, max pooling and a softmax, as sums over windows."""
    X, t, K = p["X"], p["t"], p["K"]
    windows = X.unfold(2, 3, 1).unfold(3, 3, 1)  # (n, 1, 4, 4, 3, 3)
    turned = K.flip(-1, -2) if s.at("kernel turned", "Z") else K
    Z = torch.einsum("ncijab,fcab->nfij", windows, turned) + p["b"][:, None, None]
    A = Z.relu()
    blocks = A.unfold(2, 2, 2).unfold(3, 2, 2).flatten(-2)
    P, winner = blocks.max(-1)
    if s.at("mean of the window", "P"):
        P = blocks.mean(-1)
    f = P.flatten(1)
    Z2 = f @ p["W2"].T + p["b2"]
    J, dZ2 = cross_entropy(s, Z2, t)
    df, dW2, db2 = linear(s, "2", dZ2, f, p["W2"], p["new W2"])
    dP = df.reshape(P.shape)
    share = torch.full_like(blocks, 0.25) if s.at("pooling shared out", "P") else F.one_hot(winner, 4).to(A.dtype)
    spread = (dP[..., None] * share).unflatten(-1, (2, 2))  # (n, f, i, j, a, b)
    dA = spread.permute(0, 1, 2, 4, 3, 5).reshape(A.shape)
    dZ = dA * slope(s, "A", "relu", Z)
    dK = torch.einsum("ncijab,nfij->fcab", windows, dZ)
    db = dZ.sum((0, 2, 3))
    if s.at("sum over the batch", "K"):
        dK, db = torch.einsum("ncijab,nfij->fcab", windows[:1], dZ[:1]), dZ[0].sum((1, 2))
    if s.at("mean over the batch", "K"):
        dK, db = dK / len(X), db / len(X)
    found = {"dJ/dK": dK, "dJ/db": db, "dJ/dW2": dW2, "dJ/db2": db2, "dJ/dZ": dZ, "dJ/dA": dA, "dJ/dZ2": dZ2}
    found |= {"Z": Z, "A": A, "Z2": Z2, "J": J, "new W2": stepped(s, "W2", p["W2"], dW2, 0.1)}
    return finish(s, found)


def lstm(p: Numbers, s: Slips) -> Numbers:
    """One step of an LSTM cell, and the mean of the squares of its state."""
    x, h0, c0 = p["x"], p["h0"], p["c0"]
    z = x @ p["Wi"].T + p["bi"] + h0 @ p["Wh"].T
    zi, zf, zg, zo = z.chunk(4, 1)
    i, f, o = torch.sigmoid(zi), torch.sigmoid(zf), torch.sigmoid(zo)
    g = torch.sigmoid(zg) if s.at("other activation", "g") else torch.tanh(zg)
    c = f * c0 + i * g
    q = torch.tanh(c)
    h = o * q
    J, dh = squared_error(s, h, p["t"])
    do, dq = dh * (1 if s.at("factor left out", "q of h") else q), dh * (1 if s.at("factor left out", "o of h") else o)
    dc = dq * slope(s, "q", "tanh", c)
    df, di, dg = (
        dc * (1 if s.at("factor left out", "c0 of c") else c0),
        dc * g,
        dc * (1 if s.at("factor left out", "i of c") else i),
    )
    dzi, dzf = di * slope(s, "i", "sigmoid", zi), df * slope(s, "f", "sigmoid", zf)
    dzg, dzo = dg * slope(s, "g", "tanh", zg), do * slope(s, "o", "sigmoid", zo)
    dz = torch.cat([dzi, dzf, dzg, dzo], 1)
    _, dWi, dbi = linear(s, "i", dz, x, p["Wi"], p["new Wi"])
    found = {
        "dJ/dWi": dWi,
        "dJ/dbi": dbi,
        "dJ/dWh": dz.T @ h0,
        "dJ/dc": dc,
        "dJ/do": do,
        "dJ/dq": dq,
        "dJ/dg": dg,
        "dJ/di": di,
        "dJ/df": df,
    }
    found |= {"c": c, "h": h, "J": J, "new Wi": stepped(s, "Wi", p["Wi"], dWi, 0.1)}
    return finish(s, found)


def attention(p: Numbers, s: Slips) -> Numbers:
    """One head of attention over four tokens, and the mean squared error."""
    x, d = p["x"], p["Wq"].shape[1]
    q, k, v = x @ p["Wq"], x @ p["Wk"], x @ p["Wv"]
    M = q @ k.T
    S = M if s.at("scale forgotten", "S") else M / d if s.at("root forgotten", "S") else M / d**0.5
    P = S.softmax(0) if s.at("softmax over the wrong axis", "P") else S.softmax(-1)
    out = P @ v
    J, dout = squared_error(s, out, p["t"])
    dP, dv = dout @ v.T, P.T @ dout
    if s.at("transposed", "P of dv"):
        dv = P @ dout
    dS = P * (dP - (dP * P).sum(-1, keepdim=True))
    if s.at("diagonal of the softmax", "P"):
        dS = dP * P * (1 - P)
    if s.at("derivative left out", "P"):
        dS = dP
    dM = dS if s.at("scale forgotten on the way back", "S") else dS / d**0.5
    dq, dk = dM @ k, dM.T @ q
    if s.at("transposed", "dM of dk"):
        dk = dM @ q
    found = {"dJ/dWq": x.T @ dq, "dJ/dWk": x.T @ dk, "dJ/dWv": x.T @ dv, "dJ/dq": dq, "dJ/dk": dk, "dJ/dv": dv}
    found |= {"dJ/dS": dS, "dJ/dP": dP, "dJ/dout": dout, "S": S, "P": P, "out": out, "J": J}
    found |= {f"new {w}": stepped(s, w, p[w], found[f"dJ/d{w}"], 0.1) for w in ("Wq", "Wv")}
    return finish(s, found)


def batch_norm(p: Numbers, s: Slips) -> Numbers:
    """A layer, batch normalisation, ReLU, a layer, and the mean squared error."""
    X, t, eps = p["X"], p["t"], 1e-5
    Z = X @ p["W1"].T + p["b1"]
    spread = (Z.var(0, unbiased=s.at("variance over n - 1", "N")) + eps).sqrt()
    if s.at("variance without root", "N"):
        spread = spread * spread
    hat = (Z if s.at("mean not subtracted", "N") else Z - Z.mean(0)) / spread
    N = p["gamma"] * hat + (0 if s.at("bias forgotten", "N") else p["beta"])
    A = N.relu()
    out = A @ p["W2"].T + p["b2"]
    J, dout = squared_error(s, out, t)
    dA, dW2, db2 = linear(s, "2", dout, A, p["W2"], p["new W2"])
    dN = dA * slope(s, "A", "relu", N)
    dgamma, dbeta = (dN * hat).sum(0), dN.sum(0)
    if s.at("sum over the batch", "N"):
        dgamma, dbeta = dN[0] * hat[0], dN[0]
    if s.at("mean over the batch", "N"):
        dgamma, dbeta = dgamma / len(X), dbeta / len(X)
    dhat = dN * (1 if s.at("factor left out", "gamma") else p["gamma"])
    dZ = (dhat - dhat.mean(0) - hat * (dhat * hat).mean(0)) / spread
    if s.at("mean and variance as constants", "N"):
        dZ = dhat / spread
    _, dW1, _ = linear(s, "1", dZ, X, p["W1"], p["W1"])
    found = {
        "dJ/dW1": dW1,
        "dJ/dgamma": dgamma,
        "dJ/dbeta": dbeta,
        "dJ/dW2": dW2,
        "dJ/db2": db2,
        "dJ/dZ": dZ,
        "dJ/dN": dN,
        "dJ/dA": dA,
    }
    found |= {"N": N, "A": A, "out": out, "J": J}
    found |= {f"new {w}": stepped(s, w, p[w], found[f"dJ/d{w}"], 0.1) for w in ("W1", "W2")}
    return finish(s, found)


def adam(s: Slips, name: str, p: Numbers, g: Tensor) -> Tensor:
    """The second step of Adam."""
    rate, (b1, b2), m, v, t = 0.1, (0.8, 0.9), p[f"m {name}"], p[f"v {name}"], 2
    if s.at("betas swapped", name):
        b1, b2 = b2, b1
    if s.at("moments of before forgotten", name):
        m, v = torch.zeros_like(m), torch.zeros_like(v)
    m = b1 * m + (1 if s.at("1 - beta forgotten", name) else 1 - b1) * g
    v = b2 * v + (1 - b2) * (g if s.at("gradient not squared", name) else g * g)
    if s.at("step counted from 0", name):
        t = 1
    m_hat, v_hat = m / (1 - b1**t), v / (1 - b2**t)
    if s.at("bias correction forgotten", name):
        m_hat, v_hat = m, v
    if s.at("bias correction of v forgotten", name):
        v_hat = v
    root = v_hat if s.at("square root forgotten", name) else v_hat.sqrt()
    step = g if s.at("plain gradient descent", name) else m_hat / (root + 1e-8)
    step = step if s.at("learning rate left out", name) else rate * step
    return p[name] + step if s.at("sign of the update", name) else p[name] - step


def residual(p: Numbers, s: Slips) -> Numbers:
    """A layer, a tanh layer with a way around it, a layer, the mean squared error, and the second step of Adam."""
    X, t = p["X"], p["t"]
    Z0 = X @ p["W0"].T
    Z1 = Z0 @ p["W1"].T + p["b1"]
    A1 = torch.tanh(Z1)
    H = A1 if s.at("way around forgotten", "H") else A1 + Z0
    out = H @ p["W2"].T + (0 if s.at("bias forgotten", "out") else p["b2"])
    J, dout = squared_error(s, out, t)
    dH, dW2, db2 = linear(s, "2", dout, H, p["W2"], p["new W2"])
    dZ1 = dH * slope(s, "A1", "tanh", Z1)
    through, dW1, db1 = linear(s, "1", dZ1, Z0, p["W1"], p["new W1"])
    dZ0 = through if s.at("path forgotten", "around") else dH if s.at("path forgotten", "through") else through + dH
    dW0 = dZ0.T @ X
    found = {"dJ/dW0": dW0, "dJ/dW1": dW1, "dJ/db1": db1, "dJ/dW2": dW2, "dJ/db2": db2, "dJ/dH": dH, "dJ/dZ1": dZ1}
    found |= {"dJ/dZ0": dZ0, "A1": A1, "H": H, "out": out, "J": J}
    found |= {f"new {w}": adam(s, w, p, found[f"dJ/d{w}"]) for w in ("W1", "W2")}
    return finish(s, found)


NAMES: dict[str, set[str]] = {
    "mean over the samples alone": {"mean"},
    "mean over the classes too": {"mean"},
    "before the activation": {"wrong value"},
    "sign in the sigmoid": {"sign"},
    "kernel turned": {"kernel turned"},
    "mean of the window": {"pooling"},
    "root forgotten": {"square root"},
    "variance over n - 1": {"mean and variance"},
    "variance without root": {"square root", "mean and variance"},
    "mean not subtracted": {"mean and variance"},
    "betas swapped": {"decay rates"},
    "moments of before forgotten": {"moments"},
    "1 - beta forgotten": {"decay rates"},
    "gradient not squared": {"square"},
    "step counted from 0": {"bias correction"},
    "bias correction forgotten": {"bias correction"},
    "bias correction of v forgotten": {"bias correction"},
    "square root forgotten": {"square root"},
    "plain gradient descent": {"wrong optimizer"},
    "way around forgotten": {"left out"},
    "path forgotten": {"path"},
    "sum over the batch": {"sum over the batch"},
    "mean over the batch": {"mean"},
    "factor left out": {"left out"},
    "upstream left out": {"upstream left out"},
    "not summed": {"not summed"},
    "updated weight": {"updated weight"},
    "transposed": {"transposed"},
    "derivative left out": {"off unit", "left out", "kink"},
    "derivative of relu": {"wrong activation"},
    "derivative of sigmoid": {"wrong activation"},
    "derivative of tanh": {"wrong activation"},
    "at the wrong value": {"wrong value"},
    "half of the derivative": {"wrong value"},
    "the function itself": {"wrong value"},
    "learning rate left out": {"learning rate"},
    "sign of the update": {"sign"},
    "mean forgotten": {"mean"},
    "factor 2 forgotten": {"factor 2"},
    "swapped": {"swapped", "sign"},
    "target minus prediction": {"sign"},
    "target forgotten": {"missing term"},
    "logarithm": {"logarithm"},
    "sign": {"sign"},
    "one element": {"one element"},
    "bias forgotten": {"bias left out"},
    "other activation": {"wrong activation"},
    "activation forgotten": {"left out"},
    "pooling shared out": {"pooling"},
    "scale forgotten": {"left out"},
    "scale forgotten on the way back": {"left out"},
    "softmax over the wrong axis": {"wrong axis"},
    "diagonal of the softmax": {"diagonal"},
    "mean and variance as constants": {"mean and variance"},
}
"""What each kind of slip may be called."""

Network = Callable[[Numbers, Slips], Numbers]
