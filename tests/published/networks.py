"""Small networks of dense layers."""

from __future__ import annotations

import math
from functools import cache, partial

import torch
from torch import Tensor

from tests.published.example import Example, Part, Row, Values, numbers

SGD = partial(torch.optim.SGD, lr=0.5)


def mazur_given() -> Values:
    return {
        "W1": numbers([0.15, 0.20], [0.25, 0.30]),
        "b1": numbers(0.35),
        "W2": numbers([0.40, 0.45], [0.50, 0.55]),
        "b2": numbers(0.60),
        "i": numbers([0.05, 0.10]),
        "target": numbers([0.01, 0.99]),
    }


def mazur_loss(W1: Tensor, b1: Tensor, W2: Tensor, b2: Tensor, i: Tensor, target: Tensor) -> Tensor:
    net_h = W1 @ i + b1
    out_h = torch.sigmoid(net_h)
    net_o = W2 @ out_h + b2
    out_o = torch.sigmoid(net_o)
    E = 0.5 * (target - out_o) ** 2
    J = E.sum()
    return J


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@cache
def mazur_trained(updates: int, biases: bool = False, digits: int | None = None) -> tuple[float, float, float]:
    """The total error and the two outputs after some updates, in plain Python; `digits` rounds the weights."""
    w, b, t = [0.15, 0.20, 0.25, 0.30, 0.40, 0.45, 0.50, 0.55], [0.35, 0.60], (0.01, 0.99)

    def forward() -> tuple[list[float], list[float]]:
        h = [sigmoid(w[k] * 0.05 + w[k + 1] * 0.10 + b[0]) for k in (0, 2)]
        return h, [sigmoid(w[k] * h[0] + w[k + 1] * h[1] + b[1]) for k in (4, 6)]

    for _ in range(updates):
        h, o = forward()
        d = [(o[k] - t[k]) * o[k] * (1 - o[k]) for k in (0, 1)]
        e = [(d[0] * w[4 + k] + d[1] * w[6 + k]) * h[k] * (1 - h[k]) for k in (0, 1)]
        slopes = [
            e[0] * 0.05,
            e[0] * 0.10,
            e[1] * 0.05,
            e[1] * 0.10,
            d[0] * h[0],
            d[0] * h[1],
            d[1] * h[0],
            d[1] * h[1],
        ]
        w = [weight - 0.5 * slope for weight, slope in zip(w, slopes, strict=True)]
        b = [b[0] - 0.5 * sum(e), b[1] - 0.5 * sum(d)] if biases else b
        w = w if digits is None else [round(each, digits) for each in w]
    _, o = forward()
    return sum((t[k] - o[k]) ** 2 for k in (0, 1)) / 2, o[0], o[1]


def after_the_update(recording) -> Tensor:
    """The loss with the weights that the recording has after the update, and the old biases."""
    after = {name: recording.parameters[name].after for name in ("W1", "W2")}
    return mazur_loss(**{**mazur_given(), **after})


MAZUR = Example(
    key="mazur",
    title="A 2-2-2 network, step by step",
    source="Matt Mazur, *A Step by Step Backpropagation Example*, 17 March 2015",
    address="https://mattmazur.com/2015/03/17/a-step-by-step-backpropagation-example/",
    read="two stored copies of the post's text",
    prints="all inputs, the forward pass, the gradients of two weights factor by factor, all eight updated weights, "
    "and the error after one and after 10,000 updates. The biases are not updated.",
    inputs="i = [0.05, 0.10], target = [0.01, 0.99]; w1 to w4 = 0.15, 0.20, 0.25, 0.30, b1 = 0.35; "
    "w5 to w8 = 0.40, 0.45, 0.50, 0.55, b2 = 0.60; sigmoid in both layers; E = sum of ½ (target − out)²; "
    "learning rate 0.5.",
    parts=(
        Part(
            mazur_given,
            mazur_loss,
            trained=("W1", "b1", "W2", "b2"),
            optimizer=SGD,
            updated=("W1", "W2"),
            rows=(
                Row("net_h1", "0.3775", "net_h[0]"),
                Row("out_h1", "0.593269992", "out_h[0]"),
                Row("out_h2", "0.596884378", "out_h[1]"),
                Row("net_o1", "1.105905967", "net_o[0]"),
                Row("out_o1", "0.75136507", "out_o[0]"),
                Row("out_o2", "0.772928465", "out_o[1]"),
                Row("E_o1", "0.274811083", "E[0]"),
                Row("E_o2", "0.023560026", "E[1]"),
                Row("E_total", "0.298371109", "J"),
                Row("∂E/∂out_o1", "0.74136507", "dJ/dout_o[0]"),
                Row("∂E/∂net_o1", "0.138498562", "dJ/dnet_o[0]"),
                Row("∂E/∂w5", "0.082167041", "dJ/dW2[0,0]"),
                Row("∂E/∂out_h1", "0.036350306", "dJ/dout_h[0]"),
                Row("∂E/∂w1", "0.000438568", "dJ/dW1[0,0]"),
                Row("w5, w6 updated", "0.35891648 0.408666186", "W2[0,:] after"),
                Row("w7, w8 updated", "0.511301270 0.561370121", "W2[1,:] after"),
                Row("w1, w2 updated", "0.149780716 0.19956143", "W1[0,:] after"),
                Row("w3, w4 updated", "0.24975114 0.29950229", "W1[1,:] after"),
                Row(
                    "E_total after one update",
                    "0.291027924",
                    after_the_update,
                    why="The post's own updated weights give 0.291027774. With all digits of the weights, with the "
                    "eight or nine digits that are printed, or with six, the first seven digits are 0.2910277; with "
                    "the biases updated as well the error is 0.285750887.",
                    check=lambda: mazur_trained(1)[0],
                ),
                Row(
                    "E_total after 10,000 updates",
                    "0.0000351085",
                    lambda _: numbers(mazur_trained(10_000)[0]),
                    theirs=lambda: mazur_trained(9_999)[0],
                    reading="It is the error before the last of them, after 9,999.",
                ),
                Row(
                    "outputs after 10,000 updates",
                    "0.015912196 0.984065734",
                    lambda _: numbers(mazur_trained(10_000)[1:]),
                    why="Five digits agree. No number of updates gives the others: 10,002 give 0.0159124913, and "
                    "10,003 give 0.0159119272. They do not go with the printed error either: these outputs have the "
                    "error 0.0000350848, not 0.0000351085.",
                    check=lambda: mazur_trained(10_000)[1:],
                ),
            ),
        ),
    ),
    remark="The step is recorded; the numbers after 10,000 updates are computed in plain Python.",
)

RETOLD = Example(
    key="retold",
    title="The same network, retold",
    source="zhwhong, *Deep learning: theory of backpropagation (BP)* (in Chinese)",
    address="http://www.jianshu.com/p/408ab8177a53",
    read="a copy of the post in a public repository",
    prints="the forward pass, the error, and the factors of two gradients of Mazur's network.",
    inputs="what the network above has; the model is the same.",
    parts=(
        Part(
            mazur_given,
            mazur_loss,
            trained=("W1", "b1", "W2", "b2"),
            optimizer=SGD,
            updated=("W1", "W2"),
            rows=(
                Row("input(h2)", "0.3925", "net_h[1]"),
                Row("output(h1), output(h2)", "0.593269992 0.596884378", "out_h"),
                Row("output(o1), output(o2)", "0.75136507 0.772928465", "out_o"),
                Row(
                    "J_o1",
                    "0.298371109",
                    "E[0]",
                    why="½ (0.75136507 − 0.01)² is 0.274811083. The printed number is the total error of both outputs.",
                    check=lambda: (mazur_trained(0)[1] - 0.01) ** 2 / 2,
                ),
                Row("J_o2", "0.023560026", "E[1]"),
                Row("J_total", "0.321931135", "J", theirs=lambda: 0.298371109 + 0.023560026, follows="J_o1"),
                Row("∂J/∂w5", "0.082167041", "dJ/dW2[0,0]"),
                Row("∂J/∂w1", "0.000438568", "dJ/dW1[0,0]"),
                Row(
                    "tmp3, ∂output(h1)/∂w1",
                    "0.012065035",
                    lambda r: r["out_h"].data[0] * (1 - r["out_h"].data[0]) * 0.05,
                ),
            ),
        ),
    ),
    remark="The wrong error does not spread: no gradient needs it.",
)


def go_given() -> Values:
    return {"W1": numbers([0.5, 0.5], [0.5, 0.5]), "W2": numbers([0.5, 0.5]), "x": numbers([1.0, 1.0])}


def go_loss(W1: Tensor, W2: Tensor, x: Tensor) -> Tensor:
    x_j = W1 @ x
    y_j = torch.sigmoid(x_j)
    y_k = W2 @ y_j
    J = 0.5 * (y_k - 0.5) ** 2
    return J


def go_after() -> float:
    w, v = 0.5 - 0.01 * 0.0227, 0.5 - 0.01 * 0.168861
    return 2 * v * sigmoid(2 * w)


GOKADIN = Example(
    key="gokadin",
    title="A 2-2-1 network with equal weights",
    source="gokadin, *Backpropagation*, readme of ai-backpropagation, 2019",
    address="https://github.com/gokadin/ai-backpropagation",
    prints="every number of one step, and the output after it. Each number is computed from the rounded one before.",
    inputs="x = [1, 1], target 0.5, all weights 0.5, no biases; sigmoid, then the identity; E = ½ (y − target)²; "
    "learning rate 0.01.",
    parts=(
        Part(
            go_given,
            go_loss,
            trained=("W1", "W2"),
            optimizer=partial(torch.optim.SGD, lr=0.01),
            rows=(
                Row("x_j", "1.0 1.0", "x_j"),
                Row("y_j", "0.731 0.731", "y_j"),
                Row("y_k", "0.731", "y_k"),
                Row("δ_k", "0.231", "dJ/dy_k"),
                Row("∇w_jk", "0.168861 0.168861", "dJ/dW2", theirs=lambda: [0.231 * 0.731] * 2),
                Row("δ_j, ∇w_ij", "0.0227 0.0227 0.0227 0.0227", "dJ/dW1"),
                Row("w_ij updated", "0.499773 0.499773 0.499773 0.499773", "W1 after"),
                Row("w_jk updated", "0.49831139 0.49831139", "W2 after", theirs=lambda: [0.5 - 0.01 * 0.168861] * 2),
                Row("y_k after the update", "0.7285", lambda _: numbers(go_after())),
            ),
        ),
    ),
)


def softmax_given() -> Values:
    return {
        "W1": numbers([0.2, -0.3, 0.4], [-0.5, 0.1, 0.2]),
        "b1": numbers(0.5),
        "W2": numbers([0.3, 0.4], [-0.1, 0.2]),
        "b2": numbers(0.1),
        "x": numbers([1.0, 2.0, -1.0]),
        "y": numbers([1.0, 0.0]),
    }


def softmax_loss(W1: Tensor, b1: Tensor, W2: Tensor, b2: Tensor, x: Tensor, y: Tensor) -> Tensor:
    z_hidden = W1 @ x + b1
    a = torch.sigmoid(z_hidden)
    z = W2 @ a + b2
    y_hat = torch.softmax(z, dim=0)
    J = -(y * torch.log(y_hat)).sum()
    return J


def softmax_of(z3: float, z4: float) -> float:
    return 1 / (1 + math.exp(z4 - z3))


SOFTMAX = Example(
    key="softmax",
    title="Softmax and cross-entropy after a hidden layer",
    source="Bindeshwar Singh Kushwaha (PostNetwork Academy), *Understanding Neural Networks: Softmax, Cross-Entropy, "
    "and Backpropagation*",
    address="https://www.postnetwork.co/understanding-neural-networks-softmax-cross-entropy-and-backpropagation",
    prints="all inputs and the forward pass; the gradients as formulas, without numbers.",
    inputs="x = [1, 2, −1], y = [1, 0]; w1 to w3 = 0.2, −0.3, 0.4 and w4 to w6 = −0.5, 0.1, 0.2, b = 0.5; "
    "w7 to w10 = 0.3, −0.1, 0.4, 0.2, b = 0.1, where z3 = w7 a1 + w9 a2 + b and z4 = w8 a1 + w10 a2 + b.",
    parts=(
        Part(
            softmax_given,
            softmax_loss,
            trained=("W1", "b1", "W2", "b2"),
            rows=(
                Row("z1, z2", "-0.3 0", "z_hidden"),
                Row("a1, a2", "0.426 0.5", "a"),
                Row("z3", "0.428", "z[0]"),
                Row(
                    "z4",
                    "0.185",
                    "z[1]",
                    why="−0.1 · 0.426 + 0.2 · 0.5 + 0.1, as the source writes it, is 0.1574. What gives 0.185 is "
                    "0.2 · 0.426 + 0.1: a1 in the place of a2, and no term of w8.",
                    check=lambda: -0.1 * sigmoid(-0.3) + 0.2 * 0.5 + 0.1,
                ),
                Row("ŷ1", "0.561", "y_hat[0]", theirs=lambda: softmax_of(0.428, 0.185), follows="z4"),
                Row("ŷ2", "0.439", "y_hat[1]", theirs=lambda: softmax_of(0.185, 0.428), follows="z4"),
                Row("L", "0.579", "J", theirs=lambda: -math.log(softmax_of(0.428, 0.185)), follows="z4"),
            ),
        ),
    ),
    remark="Its gradients belong to another wiring than its forward pass. It computes z3 = w7 a1 + w9 a2 + b and z4 = "
    "w8 a1 + w10 a2 + b, but states ∂L/∂w8 = (ŷ1 − y1) a2 and ∂L/∂w9 = (ŷ2 − y2) a1, as if w8 led to z3 and w9 to "
    "z4. For the network that it computes, ∂L/∂w8 = (ŷ2 − y2) a1 = 0.1842 and ∂L/∂w9 = (ŷ1 − y1) a2 = −0.2164, as "
    "chainrule derives and central differences measure; the stated formulas give −0.2164 and 0.1842, so both weights "
    "would move the wrong way. With the other wiring z3 and z4 would be 0.178 and 0.370.",
)
