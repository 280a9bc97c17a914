"""One training step of a transformer, printed number by number."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.published.example import Example, Part, Row, Values, measured, numbers

TOKENS, TARGETS = [1, 3, 4, 5, 2], [3, 4, 5, 2]


def draws() -> Callable[..., Tensor]:
    """The book's random numbers: Python's generator with seed 42, normal with deviation 0.1."""
    gauss = random.Random(42).gauss

    def draw(*shape: int) -> Tensor:
        return numbers([gauss(0, 0.1) for _ in range(math.prod(shape))]).reshape(shape)

    return draw


# -- forward, to the loss ---------------------------------------------------------------------------------------------


def model_given() -> Values:
    draw = draws()
    given = {"E_token": draw(6, 16), "E_pos": draw(5, 16)}
    for kind in ("W_Q", "W_K", "W_V"):
        given.update({f"{kind}{head}": draw(16, 8) for head in (0, 1)})
    given.update(W_O=draw(16, 16), W1=draw(64, 16), b1=draw(64), W2=draw(16, 64), b2=draw(16))
    one = torch.ones(16, dtype=torch.float64)
    return {**given, "gamma": one, "beta": torch.zeros_like(one), "W_lm": draw(6, 16)}


def model_loss(
    E_token: Tensor,
    E_pos: Tensor,
    W_Q0: Tensor,
    W_Q1: Tensor,
    W_K0: Tensor,
    W_K1: Tensor,
    W_V0: Tensor,
    W_V1: Tensor,
    W_O: Tensor,
    W1: Tensor,
    b1: Tensor,
    W2: Tensor,
    b2: Tensor,
    gamma: Tensor,
    beta: Tensor,
    W_lm: Tensor,
) -> Tensor:
    X = F.embedding(torch.tensor(TOKENS), E_token) + E_pos
    later = torch.ones(5, 5, dtype=torch.bool).triu(1)
    scores0 = (X @ W_Q0) @ (X @ W_K0).T
    weights0 = torch.softmax((scores0 / math.sqrt(8)).masked_fill(later, -math.inf), dim=1)
    weights1 = torch.softmax(((X @ W_Q1) @ (X @ W_K1).T / math.sqrt(8)).masked_fill(later, -math.inf), dim=1)
    concat = torch.cat([weights0 @ (X @ W_V0), weights1 @ (X @ W_V1)], dim=1)
    attended = F.linear(concat, W_O)
    hidden = F.linear(attended, W1, b1)
    active = F.gelu(hidden, approximate="tanh")
    expanded = F.linear(active, W2, b2)
    residual = attended + expanded
    normed = F.layer_norm(residual, (16,), gamma, beta)
    logits = F.linear(normed, W_lm)
    probs = torch.softmax(logits, dim=1)
    losses = -torch.log(probs[torch.arange(4), torch.tensor(TARGETS)])
    J = losses.mean()
    return J


MODEL = tuple(model_given())

FORWARD = Part(
    model_given,
    model_loss,
    trained=MODEL,
    title="forward, from the embeddings to the loss",
    rows=(
        Row(
            "X, position 0",
            "0.1473 0.1281 0.1995 -0.0465 0.2125 -0.1338 -0.0829 -0.0638 0.0722 0.1183 0.1193 0.0937 -0.1594 -0.0402 "
            "0.1124 -0.2064",
            "X[0]",
        ),
        Row("scores of head 0, position 1", "0.0021 -0.0134 0.0119 -0.0027 0.0091", "scores0[1]"),
        Row(
            "weights of head 0, last three positions",
            "0.3320 0.3348 0.3332 0.0000 0.0000 0.2501 0.2492 0.2506 0.2501 0.0000 0.1999 0.2007 0.1999 0.2000 0.1996",
            "weights0[2:]",
        ),
        Row(
            "weights of head 1, last three positions",
            "0.3342 0.3337 0.3322 0.0000 0.0000 0.2514 0.2494 0.2510 0.2482 0.0000 0.1999 0.1997 0.2001 0.2000 0.2003",
            "weights1[2:]",
        ),
        Row(
            "attention, position 0",
            "0.0334 0.0033 -0.0041 -0.0073 0.0185 0.0074 0.0169 0.0107 0.0277 0.0060 0.0222 0.0241 0.0074 0.0067 "
            "-0.0067 0.0063",
            "attended[0]",
        ),
        Row("hidden layer, position 0, first 4", "0.0000 0.0439 0.0457 0.1031", "hidden[0,:4]"),
        Row("after GELU, position 0, first 4", "0.0000 0.0227 0.0237 0.0558", "active[0,:4]"),
        Row(
            "feed-forward, position 4",
            "-0.0004 -0.0894 -0.0002 0.2300 0.0976 0.0970 -0.2113 0.0588 0.1994 0.0691 -0.0428 -0.0819 0.1326 -0.0337 "
            "0.1642 0.0539",
            "expanded[4]",
        ),
        Row(
            "μ, σ² of position 0",
            "0.052101 0.011860",
            lambda r: torch.stack(torch.var_mean(r["residual"].data[0], correction=0)[::-1]),
        ),
        Row(
            "layer norm, position 0",
            "-0.1319 -1.2702 -0.4969 1.5600 0.6278 0.4769 -2.2261 0.1465 1.5670 0.2124 -0.6301 -0.9558 0.8655 -0.7691 "
            "0.9595 0.0645",
            "normed[0]",
        ),
        Row(
            "variances after layer norm",
            "0.999158 0.999175 0.999211 0.999223 0.999231",
            lambda r: r["normed"].data.var(1, correction=0),
        ),
        Row(
            "logits",
            "0.3362 -0.1025 -0.0514 -0.0053 0.2907 0.0848 0.3332 -0.1114 -0.0743 -0.0182 0.2730 0.0714 0.3179 -0.1641 "
            "-0.0885 -0.0041 0.3290 0.0326 0.3252 -0.1279 -0.0646 -0.0031 0.3202 0.0518 0.3209 -0.1388 -0.0673 0.0066 "
            "0.3317 0.0356",
            "logits",
        ),
        Row(
            "probabilities, position 0",
            "0.2098 0.1353 0.1424 0.1491 0.2004 0.1631",
            "probs[0]",
        ),
        Row("losses", "1.9033 1.6123 1.8479 1.9560", "losses"),
        Row("loss at position 0", "1.903260", "losses[0]"),
        Row("average loss", "1.8299", "J"),
        Row("perplexity", "6.23", lambda r: r["J"].data.exp()),
    ),
)

# -- the gradient of the loss, of probabilities that the book gives ---------------------------------------------------

PROBS = [
    [0.1785, 0.2007, 0.1759, 0.1254, 0.1563, 0.1632],
    [0.1836, 0.1969, 0.1805, 0.1233, 0.1500, 0.1657],
    [0.1795, 0.2050, 0.1782, 0.1207, 0.1437, 0.1728],
    [0.1855, 0.2017, 0.1771, 0.1271, 0.1391, 0.1695],
]
SLOPES = (
    "0.1785 0.2007 0.1759 -0.8746 0.1563 0.1632 0.1836 0.1969 0.1805 0.1233 -0.8500 0.1657 "
    "0.1795 0.2050 0.1782 0.1207 0.1437 -0.8272 0.1855 0.2017 -0.8229 0.1271 0.1391 0.1695"
)


def entropy_loss(logits: Tensor) -> Tensor:
    J = F.cross_entropy(logits, torch.tensor(TARGETS), reduction="sum")
    return J


ENTROPY = Part(
    lambda: {"logits": numbers(PROBS).log()},
    entropy_loss,
    trained=("logits",),
    title="gradient of the cross-entropy, from given probabilities",
    rows=(Row("∂L/∂logits", SLOPES, "dJ/dlogits"),),
)

# -- back through each layer, with values drawn anew ------------------------------------------------------------------


def layers_given() -> Values:
    draw = draws()
    given = {"h": draw(4, 16), "W_lm": draw(6, 16), "x_norm": draw(4, 16), "h1": draw(4, 64)}
    draw(4, 16)  # the input of the feed-forward layer, of which no printed number depends
    draw(64, 16)
    given["W2"] = draw(16, 64)
    draw(64)  # its bias, which is in h1 already
    given["b1"] = torch.zeros(64, dtype=torch.float64)
    given.update(b2=draw(16), concat=draw(4, 16), W_O=draw(16, 16), X=draw(4, 16), W_Q=draw(16, 8))
    draw(16, 8), draw(16, 8)
    given.update(dQ=draw(4, 8), dX=draw(5, 16), E_token=torch.zeros(6, 16, dtype=torch.float64))
    one = torch.ones(16, dtype=torch.float64)
    dlogits = numbers([float(each) for each in SLOPES.split()]).reshape(4, 6)
    return {**given, "gamma": one, "beta": torch.zeros_like(one), "dlogits": dlogits, "dy": dlogits @ given["W_lm"]}


def layers_loss(
    h: Tensor,
    W_lm: Tensor,
    x_norm: Tensor,
    h1: Tensor,
    b1: Tensor,
    W2: Tensor,
    b2: Tensor,
    concat: Tensor,
    W_O: Tensor,
    X: Tensor,
    W_Q: Tensor,
    dQ: Tensor,
    dX: Tensor,
    E_token: Tensor,
    gamma: Tensor,
    beta: Tensor,
    dlogits: Tensor,
    dy: Tensor,
) -> Tensor:
    head = (F.linear(h, W_lm) * dlogits).sum()
    norm = ((gamma * x_norm + beta) * dy).sum()
    forward = (F.linear(F.gelu(h1 + b1, approximate="tanh"), W2, b2) * dy).sum()
    attention = (F.linear(concat, W_O) * dy).sum() + ((X @ W_Q) * dQ).sum()
    J = head + norm + forward + attention + (F.embedding(torch.tensor(TOKENS), E_token) * dX).sum()
    return J


LAYERS = Part(
    layers_given,
    layers_loss,
    trained=("h", "W_lm", "b1", "W2", "b2", "W_O", "W_Q", "E_token", "gamma", "beta"),
    title="back through the layers, each with values drawn anew",
    rows=(
        Row(
            "∂L/∂W_lm, first row",
            "-0.0567 -0.0032 -0.0264 0.0356 0.0148 -0.0320 0.0002 -0.0341 0.0249 0.0188 0.0225 0.0555 0.0640 -0.0139 "
            "-0.0175 -0.0472",
            "dJ/dW_lm[0]",
        ),
        Row(
            "∂L/∂h, position 0",
            "0.0903 -0.0471 -0.1804 0.0674 0.0800 -0.1086 0.1034 0.0616 0.0108 0.1447 0.0161 0.1209 -0.1277 0.0034 "
            "-0.1746 0.0298",
            "dJ/dh[0]",
        ),
        Row("∂L/∂γ, first 8", "0.0225 -0.0240 -0.0296 0.0103 0.0170 -0.0249 0.0179 -0.0028", "dJ/dgamma[:8]"),
        Row("∂L/∂β, first 8", "-0.0287 -0.0846 -0.2322 -0.0055 -0.1733 0.0561 0.0873 0.1953", "dJ/dbeta[:8]"),
        Row("∂L/∂b2, first 8", "-0.0287 -0.0846 -0.2322 -0.0055 -0.1733 0.0561 0.0873 0.1953", "dJ/db2[:8]"),
        Row("∂L/∂b1, first 8", "-0.0364 0.0281 0.0095 -0.0106 -0.0364 0.0285 -0.0004 -0.0165", "dJ/db1[:8]"),
        Row(
            "∂L/∂W_O, first row, first 8",
            "-0.0054 -0.0005 -0.0072 -0.0334 0.0020 0.0262 -0.0032 0.0370",
            "dJ/dW_O[0,:8]",
        ),
        Row("∂L/∂W_Q, first row", "-0.0017 -0.0116 -0.0035 0.0058 0.0073 -0.0046 -0.0093 -0.0092", "dJ/dW_Q[0]"),
        Row(
            "norms of ∂L/∂E_token",
            "0.0000 0.4340 0.3268 0.2963 0.3597 0.3583",
            lambda r: r["E_token"].grad.norm(dim=1),
            check=lambda: measured(LAYERS, "E_token", None).norm(dim=1),
        ),
    ),
)

# -- GELU and its derivative ------------------------------------------------------------------------------------------

POINTS = [-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0]


def gelu_loss(x: Tensor) -> Tensor:
    y = F.gelu(x, approximate="tanh")
    J = y.sum()
    return J


def mixed(x: float) -> float:
    """The tanh approximation of the distribution plus x times the exact density."""
    cdf = 0.5 * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return cdf + x * math.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)


GELU = Part(
    lambda: {"x": numbers(POINTS)},
    gelu_loss,
    trained=("x",),
    title="GELU and its derivative",
    rows=(
        Row("GELU(x)", "-0.0454 -0.1588 -0.1543 0.0000 0.3457 0.8412 1.9546", "y"),
        Row(
            "GELU′(x)",
            "-0.0853 -0.0832 0.1325 0.5000 0.8675 1.0832 1.0853",
            "dJ/dx",
            theirs=lambda: [mixed(each) for each in POINTS],
            why="The function is the tanh approximation, the derivative is not its derivative: it takes the "
            "approximate distribution and the exact density. At ±2 this gives −0.0853 and 1.0853; the derivative of "
            "the printed function is −0.0861 and 1.0861, that of the exact GELU −0.0852 and 1.0852.",
        ),
    ),
)

# -- one AdamW update -------------------------------------------------------------------------------------------------


def adamw_loss(theta: Tensor) -> Tensor:
    J = theta * -0.352893
    return J


ADAMW = Part(
    lambda: {"theta": numbers(0.024634)},
    adamw_loss,
    trained=("theta",),
    optimizer=partial(torch.optim.AdamW, lr=0.001, weight_decay=0.01),
    title="one AdamW update",
    rows=(
        Row("g", "-0.352893", "dJ/dtheta"),
        Row("m", "-0.035289", lambda r: 0.1 * r["theta"].grad),
        Row("v", "0.000124533", lambda r: 0.001 * r["theta"].grad ** 2),
        Row("θ after", "0.025634", "theta after"),
    ),
)

TRANSFORMER = Example(
    key="transformer",
    title="A whole transformer step",
    source="Zack Hubert, *Understanding Gradients* (Introduction to Transformers), January 2026",
    address="https://github.com/zhubert/intro-to-transformers/tree/main/understanding-gradients",
    prints="the forward pass from the embeddings to the loss, the gradient of the loss, gradients of each layer, and "
    "one AdamW update. We compare a selection of what is printed.",
    inputs="Python's generator with seed 42 draws every parameter (normal, deviation 0.1): 6 tokens, width 16, 2 heads "
    "of 8, a feed-forward layer of 64, one block. The tokens are <BOS> I like transformers <EOS>.",
    parts=(FORWARD, ENTROPY, LAYERS, GELU, ADAMW),
    remark="The parts do not make up one step: the gradient of the loss starts from other probabilities than the "
    "forward pass ends in, and each layer's gradient from values drawn anew; so each part is recorded by "
    "itself. In our own forward pass chainrule derives all 16 parameter gradients at once, and verifies them. "
    "The variances after the layer norm are right, but not 0.999 because of a division by n: 0.011860 / "
    "(0.011860 + 0.00001), with the ε of the layer norm, is 0.99916.",
)
