"""Circuits of single numbers, and losses on given scores."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.published.example import Example, Part, Row, Values, numbers


def scalars(**values: float) -> Values:
    return {name: numbers(value) for name, value in values.items()}


def product_loss(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    q = x + y
    J = q * z
    return J


def neuron_loss(w0: Tensor, x0: Tensor, w1: Tensor, x1: Tensor, w2: Tensor) -> Tensor:
    a = w0 * x0
    b = w1 * x1
    c = a + b
    dot = c + w2
    negative = -dot
    power = torch.exp(negative)
    den = power + 1
    J = 1 / den
    return J


def gates_loss(x: Tensor, y: Tensor, z: Tensor, w: Tensor) -> Tensor:
    product = x * y
    larger = torch.maximum(z, w)
    both = product + larger
    J = both * 2
    return J


CIRCUITS = Example(
    key="circuits",
    title="Three circuits of the CS231n notes",
    source="CS231n, Stanford, *Backpropagation, Intuitions* (course notes)",
    address="https://cs231n.github.io/optimization-2/",
    prints="the value and the gradient on every wire of three circuit diagrams.",
    inputs="(x + y) z at x = −2, y = 5, z = −4; a sigmoid neuron at w = [2, −3, −3], x = [−1, −2]; "
    "2 (x y + max(z, w)) at x = 3, y = −4, z = 2, w = −1.",
    parts=(
        Part(
            lambda: scalars(x=-2, y=5, z=-4),
            product_loss,
            trained=("x", "y", "z"),
            title="(x + y) z",
            rows=(
                Row("q, f", "3 -12", lambda r: torch.stack([r["q"].data, r["J"].data])),
                Row("∂f/∂x", "-4", "dJ/dx"),
                Row("∂f/∂y", "-4", "dJ/dy"),
                Row("∂f/∂z", "3", "dJ/dz"),
                Row("∂f/∂q", "-4", "dJ/dq"),
            ),
        ),
        Part(
            lambda: scalars(w0=2, x0=-1, w1=-3, x1=-2, w2=-3),
            neuron_loss,
            trained=("w0", "x0", "w1", "x1", "w2"),
            title="a sigmoid neuron",
            rows=(
                Row("w0 x0, w1 x1", "-2.00 6.00", lambda r: torch.stack([r["a"].data, r["b"].data])),
                Row("sums", "4.00 1.00", lambda r: torch.stack([r["c"].data, r["dot"].data])),
                Row("−1 ·", "-1.00", "negative"),
                Row("exp", "0.37", "power"),
                Row("+ 1", "1.37", "den"),
                Row("1/x", "0.73", "J"),
                Row("gradient of + 1", "-0.53", "dJ/dden"),
                Row("gradient of exp", "-0.53", "dJ/dpower"),
                Row("gradient of −1 ·", "-0.20", "dJ/dnegative"),
                Row("gradients of the sums", "0.20 0.20", lambda r: torch.stack([r["c"].grad, r["dot"].grad])),
                Row("gradients of w0 x0, w1 x1", "0.20 0.20", lambda r: torch.stack([r["a"].grad, r["b"].grad])),
                Row("∂f/∂w0", "-0.20", "dJ/dw0"),
                Row("∂f/∂x0", "0.39", "dJ/dx0"),
                Row("∂f/∂w1", "-0.39", "dJ/dw1"),
                Row("∂f/∂x1", "-0.59", "dJ/dx1"),
                Row("∂f/∂w2", "0.20", "dJ/dw2"),
            ),
        ),
        Part(
            lambda: scalars(x=3, y=-4, z=2, w=-1),
            gates_loss,
            trained=("x", "y", "z", "w"),
            title="add, multiply and max gates",
            rows=(
                Row("x y", "-12.00", "product"),
                Row("max(z, w)", "2.00", "larger"),
                Row("sum", "-10.00", "both"),
                Row("f", "-20.00", "J"),
                Row(
                    "gradients of the gates",
                    "2.00 2.00 2.00",
                    lambda r: torch.stack([r[n].grad for n in ("product", "larger", "both")]),
                ),
                Row("∂f/∂x", "-8.00", "dJ/dx"),
                Row("∂f/∂y", "6.00", "dJ/dy"),
                Row("∂f/∂z", "2.00", "dJ/dz"),
                Row("∂f/∂w", "0.00", "dJ/dw"),
            ),
        ),
    ),
)


def hinge_loss(s: Tensor) -> Tensor:
    margins = torch.relu(s[1:] - s[0] + 10)
    J = margins.sum()
    return J


def soft_loss(f: Tensor) -> Tensor:
    powers = torch.exp(f)
    total = powers.sum()
    p = powers / total
    J = -torch.log(p[0])
    return J


SCORES = Example(
    key="scores",
    title="Hinge loss and softmax of given scores",
    source="CS231n, Stanford, *Linear Classification* (course notes)",
    address="https://cs231n.github.io/linear-classify/",
    prints="the loss, or the exponentials and probabilities; no gradients.",
    inputs="scores [13, −7, 11] of the multiclass hinge loss with margin 10, the first class is right; "
    "softmax of [1, −2, 0] and of [0.5, −1, 0].",
    parts=(
        Part(
            lambda: {"s": numbers([13.0, -7.0, 11.0])},
            hinge_loss,
            trained=("s",),
            title="hinge loss",
            rows=(Row("the two terms", "0 8", "margins"), Row("loss", "8", "J")),
        ),
        Part(
            lambda: {"f": numbers([1.0, -2.0, 0.0])},
            soft_loss,
            trained=("f",),
            title="softmax of [1, −2, 0]",
            rows=(Row("exponentials", "2.71 0.14 1", "powers"), Row("probabilities", "0.7 0.04 0.26", "p")),
        ),
        Part(
            lambda: {"f": numbers([0.5, -1.0, 0.0])},
            soft_loss,
            trained=("f",),
            title="softmax of [0.5, −1, 0]",
            rows=(Row("exponentials", "1.65 0.37 1", "powers"), Row("probabilities", "0.55 0.12 0.33", "p")),
        ),
    ),
)


def micrograd_given() -> Values:
    # The lecture makes the bias in float32 and then widens it.
    bias = torch.tensor(6.8813735870195432, dtype=torch.float32).double()
    return {**scalars(x1=2, x2=0, w1=-3, w2=1), "b": bias}


def micrograd_loss(x1: Tensor, x2: Tensor, w1: Tensor, w2: Tensor, b: Tensor) -> Tensor:
    n = x1 * w1 + x2 * w2 + b
    o = torch.tanh(n)
    return o


MICROGRAD = Example(
    key="micrograd",
    title="One tanh neuron to sixteen digits",
    source="Andrej Karpathy, *micrograd* lecture, second notebook of *Neural Networks: Zero to Hero*",
    address="https://github.com/karpathy/nn-zero-to-hero/blob/master/lectures/micrograd/micrograd_lecture_second_half_roughly.ipynb",
    prints="the output and four gradients, as PyTorch computed them.",
    inputs="x = [2, 0], w = [−3, 1], b = 6.8813735870195432 rounded to float32; o = tanh(w x + b).",
    parts=(
        Part(
            micrograd_given,
            micrograd_loss,
            trained=("x1", "x2", "w1", "w2", "b"),
            rows=(
                Row("o", "0.7071066904050358", "o"),
                Row("∂o/∂x2", "0.5000001283844369", "dJ/dx2"),
                Row("∂o/∂w2", "0.0", "dJ/dw2"),
                Row("∂o/∂x1", "-1.5000003851533106", "dJ/dx1"),
                Row("∂o/∂w1", "1.0000002567688737", "dJ/dw1"),
            ),
        ),
    ),
    remark="Without the rounding to float32 the gradients are 0.5, 0, −1.5 and 1 to nine digits.",
)
