"""Recurrent cells by hand: backpropagation through two steps, and a GRU."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tests.published.example import Example, Part, Row, Values, numbers


def two_steps_given() -> Values:
    return {
        "Wx": numbers(0.5),
        "Wh": numbers(0.1),
        "b": numbers(0.0),
        "Wy": numbers(2.0),
        "x": numbers([1.0, 2.0]),
        "target": numbers([1.0, 2.0]),
    }


def two_steps_loss(Wx: Tensor, Wh: Tensor, b: Tensor, Wy: Tensor, x: Tensor, target: Tensor) -> Tensor:
    a1 = Wx * x[0] + b
    h1 = torch.tanh(a1)
    y1 = Wy * h1
    L1 = 0.5 * (y1 - target[0]) ** 2
    a2 = Wx * x[1] + Wh * h1 + b
    h2 = torch.tanh(a2)
    y2 = Wy * h2
    L2 = 0.5 * (y2 - target[1]) ** 2
    J = L1 + L2
    return J


H2 = math.tanh(0.5 * 2 + 0.1 * math.tanh(0.5))

BPTT = Example(
    key="bptt",
    title="Two steps back through time",
    source="PracHub, *Backpropagation Through Time (BPTT): complete walkthrough*",
    address="https://prachub.com/resources/detailed-backpropagation-walkthrough",
    read="a stored copy that ends within the first step back; what comes after is not compared",
    prints="every number of the forward pass and of the backward pass.",
    inputs="x = 1, 2 and targets 1, 2; h = tanh(Wx x + Wh h + b), y = Wy h with Wx = 0.5, Wh = 0.1, b = 0, Wy = 2; "
    "L = sum of ½ (y − target)².",
    parts=(
        Part(
            two_steps_given,
            two_steps_loss,
            trained=("Wx", "Wh", "b", "Wy"),
            rows=(
                Row("h1", "0.4621", "h1"),
                Row("y1", "0.9242", "y1"),
                Row("a2", "1.04621", "a2"),
                Row(
                    "h2",
                    "0.7790",
                    "h2",
                    why="tanh(1.04621) is 0.7803. The slip is in the tanh alone: a2 is right, and 0.7790 is the tanh "
                    "of 1.0428.",
                    check=lambda: H2,
                ),
                Row("y2", "1.558", "y2", theirs=lambda: 2 * 0.7790, follows="h2"),
                Row("L1", "0.00288", "L1"),
                Row("L2", "0.0978", "L2", theirs=lambda: 0.442**2 / 2, follows="h2"),
                Row("L", "0.1007", "J", theirs=lambda: 0.00288 + 0.0978, follows="h2"),
                Row("∂L/∂y2", "-0.442", "dJ/dy2", theirs=lambda: 1.558 - 2, follows="h2"),
                Row("∂L/∂h2", "-0.884", "dJ/dh2", theirs=lambda: -0.442 * 2, follows="h2"),
                Row("tanh′(a2)", "0.3931", lambda r: 1 - r["h2"].data ** 2, theirs=lambda: 1 - 0.7790**2, follows="h2"),
                Row("∂L/∂a2", "-0.3475", "dJ/da2", theirs=lambda: -0.884 * 0.3931, follows="h2"),
                Row(
                    "share of step 2 in ∂L/∂Wx",
                    "-0.695",
                    lambda r: r["a2"].grad * 2,
                    theirs=lambda: -0.3475 * 2,
                    follows="h2",
                ),
                Row(
                    "share of step 2 in ∂L/∂Wh",
                    "-0.1606",
                    lambda r: r["a2"].grad * r["h1"].data,
                    theirs=lambda: -0.3475 * 0.4621,
                    follows="h2",
                ),
            ),
        ),
    ),
    remark="The method is right throughout; one tanh is not, and every number of the second step inherits it.",
)


def gru_given() -> Values:
    return {
        "x": numbers([1.0, 0.5]),
        "h": numbers([0.0, 0.0]),
        "Wz": numbers([0.3, 0.2, 0.1, 0.4], [0.1, 0.5, 0.3, 0.2]),
        "Wr": numbers([0.2, 0.4, 0.3, 0.1], [0.4, 0.1, 0.2, 0.3]),
        "Wh": numbers([0.5, 0.1, 0.2, 0.3], [0.2, 0.3, 0.4, 0.1]),
    }


def gru_loss(x: Tensor, h: Tensor, Wz: Tensor, Wr: Tensor, Wh: Tensor) -> Tensor:
    combined = torch.cat([x, h])
    net_z = Wz @ combined
    z = torch.sigmoid(net_z)
    net_r = Wr @ combined
    r = torch.sigmoid(net_r)
    net_h = Wh @ torch.cat([x, r * h])
    h_hat = torch.tanh(net_h)
    h_new = (1 - z) * h + z * h_hat
    J = h_new.sum()
    return J


GRU = Example(
    key="gru",
    title="A GRU cell",
    source="Click4AI, *GRU Cell (Gated Recurrent Unit)* (exercise)",
    address="https://click4ai.perfionixai.com/problems/gru-cell",
    prints="the forward pass of one cell, to three digits; no gradients. We sum the new state to have a loss.",
    inputs="x = [1, 0.5], h = [0, 0], three 2 × 4 matrices, no biases; the new state is (1 − z) h + z ĥ.",
    parts=(
        Part(
            gru_given,
            gru_loss,
            trained=("Wz", "Wr", "Wh"),
            rows=(
                Row("W_z [x; h]", "0.40 0.35", "net_z"),
                Row("z", "0.599 0.587", "z"),
                Row("W_r [x; h]", "0.40 0.45", "net_r"),
                Row("r", "0.599 0.611", "r"),
                Row("W_h [x; r h]", "0.55 0.35", "net_h"),
                Row("ĥ", "0.500 0.337", "h_hat"),
                Row("new h", "0.300 0.198", "h_new", theirs=lambda: [0.599 * 0.500, 0.587 * 0.337]),
            ),
        ),
    ),
    remark="tanh(0.35) is 0.3364, so ĥ ends in 0.336; with it the new state ends in 0.197.",
)
