"""Attention by hand, a skip-gram probability, and batch normalisation."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.published.example import Example, Part, Row, Values, numbers


def integers_given() -> Values:
    return {
        "Q": numbers([1, 0, 2, 0], [0, 1, 1, 0], [1, 1, 0, 1], [0, 2, 1, 1]),
        "K": numbers([2, 1, 0, 0], [0, 1, 1, 0], [1, 0, 1, 1], [0, 0, 2, 1]),
        "V": numbers([1, 0], [0, 1], [1, 1], [2, 1]),
    }


def integers_loss(Q: Tensor, K: Tensor, V: Tensor) -> Tensor:
    S = Q @ K.T / 2
    P = torch.softmax(S, dim=1)
    O = P @ V  # noqa: E741 (the source's name)
    J = O.sum()
    return J


INTEGERS = Example(
    key="attention",
    title="Attention of four queries to four keys",
    source="*flash attension*, blog My learning note for AI",
    address="https://mylearningnoteforai.blogspot.com/",
    prints="scores, weights and results; it calls the last two approximate. No gradients. We sum the results to have a "
    "loss.",
    inputs="Q, K (4 × 4) and V (4 × 2) of small integers; softmax of Q Kᵀ / 2 by rows.",
    parts=(
        Part(
            integers_given,
            integers_loss,
            trained=("Q", "K", "V"),
            rows=(
                Row("S", "1.0 1.0 1.5 2.0 0.5 1.0 0.5 1.0 1.5 0.5 1.0 0.5 1.0 1.5 1.0 1.5", "S"),
                Row("P, row 1", "0.1570 0.1570 0.2588 0.4269", "P[0]"),
                Row("P, row 2", "0.1887 0.3113 0.1887 0.3113", "P[1]"),
                Row("P, row 3", "0.4271 0.1571 0.2589 0.1571", "P[2]"),
                Row("P, row 4", "0.1888 0.3112 0.1888 0.3112", "P[3]"),
                Row(
                    "O, row 1",
                    "1.2696 0.8427",
                    "O[0]",
                    theirs=lambda: [0.1570 + 0.2588 + 2 * 0.4269, 0.1570 + 0.2588 + 0.4269],
                ),
                Row("O, row 2", "1.0000 0.8113", "O[1]"),
                Row("O, row 3", "1.0000 0.5731", "O[2]"),
                Row("O, row 4", "1.0000 0.8112", "O[3]"),
            ),
        ),
    ),
)


def lynx_given() -> Values:
    X = numbers([0.50, 0.30, -0.20, 0.10], [-0.10, 0.40, 0.20, -0.30], [0.20, -0.10, 0.50, 0.10], [0.0, 0.0, 0.0, 0.20])
    half = torch.eye(4, dtype=torch.float64) * 0.5
    return {"X": X, "W_Q": half, "W_K": half.clone()}


def lynx_loss(X: Tensor, W_Q: Tensor, W_K: Tensor) -> Tensor:
    products = X @ X.T  # noqa: F841 (printed on the way)
    Q = X @ W_Q
    K = X @ W_K
    scores = Q @ K.T
    scaled = scores / 2
    weights = torch.softmax(scaled, dim=1)
    J = (weights @ X).sum()
    return J


PRINTED_PRODUCTS = [
    [0.39, -0.04, -0.01, 0.02],
    [-0.04, 0.30, 0.04, -0.06],
    [-0.01, 0.04, 0.31, 0.02],
    [0.02, -0.06, 0.02, 0.04],
]
PRINTED_SCORES = [
    [0.098, -0.010, -0.003, 0.005],
    [-0.010, 0.075, 0.010, -0.015],
    [-0.003, 0.010, 0.078, 0.005],
    [0.005, -0.015, 0.005, 0.010],
]


def plain(rows: list[list[float]], digits: int) -> str:
    return " ".join(f"{each:.{digits}f}" for row in rows for each in row)


LYNX = Example(
    key="dot-products",
    title="The scores of an attention head",
    source="Lynx Cortex, *Full attention computation: length-4 sequence with numerical values* (phase 15, theory 05)",
    address="https://lynx-cortex.pages.dev/phase-15-attention/theory/05-worked-length-4-attention/",
    read="a stored copy that ends after the scaled scores; the softmax and the gradients after them are not compared",
    prints="all dot products, the scores and the scaled scores.",
    inputs="four embeddings of four numbers; W_Q = W_K = ½ I; scores Q Kᵀ, then divided by 2.",
    parts=(
        Part(
            lynx_given,
            lynx_loss,
            trained=("W_Q", "W_K"),
            rows=(
                Row(
                    "X Xᵀ",
                    plain(PRINTED_PRODUCTS, 2),
                    lambda r: r["X"].data @ r["X"].data.T,
                    why="X[0] · X[1] = −0.05 + 0.12 − 0.04 − 0.03 is 0, not −0.04; X[1] · X[2] = −0.02 − 0.04 + 0.10 − "
                    "0.03 is 0.01, not 0.04.",
                    check=lambda: [[sum(a * b for a, b in zip(u, v, strict=True)) for v in ROWS] for u in ROWS],
                ),
                Row(
                    "Q Kᵀ",
                    plain(PRINTED_SCORES, 3),
                    "scores",
                    theirs=lambda: numbers(PRINTED_PRODUCTS) / 4,
                    follows="X Xᵀ",
                ),
                Row(
                    "scaled",
                    "0.049 -0.005 -0.002 0.003 -0.005 0.038 0.005 -0.008 "
                    "-0.002 0.005 0.039 0.003 0.003 -0.008 0.003 0.005",
                    "scaled",
                    theirs=lambda: numbers(PRINTED_SCORES) / 2,
                    follows="X Xᵀ",
                ),
            ),
        ),
    ),
)
ROWS = lynx_given()["X"].tolist()


def words_given() -> Values:
    government, the, deficit = [-0.24, 0.18, 0.42], [0.33, 0.07, -0.15], [-0.11, 0.29, -0.38]
    spending, cut = [0.45, -0.22, 0.19], [0.12, -0.31, 0.05]
    return {"vectors": numbers(government, the, deficit, spending, cut)}


def words_loss(vectors: Tensor) -> Tensor:
    dots = vectors @ vectors[4]
    powers = torch.exp(dots)
    total = powers.sum()
    p = powers[0] / total
    J = -torch.log(p)
    return J


SKIP_GRAM = Example(
    key="skip-gram",
    title="The probability of a context word (word2vec)",
    source="University College London, PUBL0099, lecture 7",
    address="https://uclspp.github.io/PUBL0099/lectures/lecture_7.html",
    prints="dot products, exponentials, the probability and its logarithm; no gradients.",
    inputs="vectors of three numbers for cut (the centre), government (the context), the, deficit and spending.",
    parts=(
        Part(
            words_given,
            words_loss,
            trained=("vectors",),
            rows=(
                Row("dot products with cut", "-0.064 0.010 -0.122 0.132 0.113", "dots"),
                Row("exponentials", "0.938 1.010 0.885 1.141 1.120", "powers"),
                Row("their sum", "5.094", "total"),
                Row("p(government given cut)", "0.184", "p"),
                Row("its logarithm", "-1.69", lambda r: -r["J"].data),
            ),
        ),
    ),
)


def norm_given() -> Values:
    ones = torch.ones(2, dtype=torch.float64)
    return {"x": numbers([1.0, 2.0], [3.0, 4.0], [5.0, 6.0]), "gamma": ones, "beta": torch.zeros_like(ones)}


def norm_loss(x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    out = F.batch_norm(x, None, None, gamma, beta, training=True)
    J = out.sum()  # its gradient is one everywhere, as in the source
    return J


BATCH_NORM = Example(
    key="batch-norm",
    title="Batch normalisation, forward and back",
    source="akim42003, *alexkode*, problem Batch Normalization",
    address="https://github.com/akim42003/alexkode/blob/main/problems/04-deep-learning/11-batch-normalization/README.md",
    prints="the result, and the gradients for an upstream gradient of ones.",
    inputs="x = [[1, 2], [3, 4], [5, 6]], γ = 1, β = 0, upstream gradient 1.",
    parts=(
        Part(
            norm_given,
            norm_loss,
            trained=("x", "gamma", "beta"),
            rows=(
                Row("out", "-1.2247 -1.2247 0 0 1.2247 1.2247", "out"),
                Row("dγ", "0 0", "dJ/dgamma"),
                Row("dβ", "3 3", "dJ/dbeta"),
                Row("dx", "0 0 0 0 0 0", "dJ/dx"),
            ),
        ),
    ),
)
