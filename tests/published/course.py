"""Programming assignments of a course: a convolution, a recurrent network and an LSTM on seeded random inputs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.published.example import Example, Part, Row, Values, measured

READ = "a public copy of the notebook with its printed outputs, 2018"
COURSE = "deeplearning.ai, *Deep Learning Specialization*"


def draws() -> Callable[..., Tensor]:
    """The course's random numbers: NumPy's generator with seed 1."""
    generator = np.random.RandomState(1)
    return lambda *shape: torch.from_numpy(generator.randn(*shape))


# -- convolution and pooling ------------------------------------------------------------------------------------------


def conv_given() -> Values:
    randn = draws()
    return {"A_prev": randn(10, 4, 4, 3), "W": randn(2, 2, 3, 8), "b": randn(1, 1, 1, 8)}


def conv_loss(A_prev: Tensor, W: Tensor, b: Tensor, stride: int = 1) -> Tensor:
    # The assignment passes Z itself back as the gradient of Z: that of half the sum of its squares.
    Z = F.conv2d(A_prev.permute(0, 3, 1, 2), W.permute(3, 2, 0, 1), b.flatten(), padding=2, stride=stride)
    J = 0.5 * Z.square().sum()
    return J


def with_twelve_biases(name: str) -> Callable[[], Tensor]:
    """The mean of Z, or of a gradient, if the bias is added to each of the twelve products of a window."""

    def mean() -> Tensor:
        given = conv_given()
        A_prev, W = given["A_prev"].requires_grad_(), given["W"].requires_grad_()
        Z = F.conv2d(A_prev.permute(0, 3, 1, 2), W.permute(3, 2, 0, 1), 12 * given["b"].flatten(), padding=2)
        found = {"Z": Z, "b": Z.sum((0, 2, 3))}  # the assignment's db is the sum of dZ
        if name not in found:
            (found[name],) = torch.autograd.grad(Z, given[name], Z.detach())
        return found[name].mean()

    return mean


def conv_mean() -> float:
    """The mean of Z in NumPy, window by window."""
    given = {name: each.numpy() for name, each in conv_given().items()}
    padded = np.pad(given["A_prev"], ((0, 0), (2, 2), (2, 2), (0, 0)))
    windows = (padded[:, h : h + 2, w : w + 2] for h in range(7) for w in range(7))
    return np.mean([np.tensordot(each, given["W"], 3) + given["b"][0, 0] for each in windows])


def mean_of(name: str, printed: str, theirs: Callable[[], Tensor] | None = None, stride: int = 1) -> Row:
    """The mean of one gradient; that of the first notebook follows from its Z."""
    part = Part(conv_given, partial(conv_loss, stride=stride), ())
    return Row(
        f"mean of d{name}",
        printed,
        lambda r: r[name].grad.mean(),
        theirs=theirs,
        follows="mean of Z" if theirs else "",
        check=lambda: measured(part, name, None).mean(),
    )


def pool_given() -> Values:
    randn = draws()
    return {"A_prev": randn(5, 5, 3, 2), "dA": randn(5, 4, 2, 2)}


def max_loss(A_prev: Tensor, dA: Tensor) -> Tensor:
    A = F.max_pool2d(A_prev.permute(0, 3, 1, 2), 2, stride=1)
    J = (A * dA.permute(0, 3, 1, 2)).sum()
    return J


def mean_loss(A_prev: Tensor, dA: Tensor) -> Tensor:
    A = F.avg_pool2d(A_prev.permute(0, 3, 1, 2), 2, stride=1)
    J = (A * dA.permute(0, 3, 1, 2)).sum()
    return J


CNN = Example(
    key="cnn",
    title="A convolution and two poolings",
    source=f"{COURSE}, course 4, week 1: *Convolutional Model: step by step*",
    address="https://www.coursera.org/learn/convolutional-neural-networks",
    read=READ + "; for the later version, public tests that hold its expected output",
    prints="means of the results and of the gradients, and some elements. The inputs are given by their seed.",
    inputs="NumPy's generator with seed 1 draws A_prev (10, 4, 4, 3), W (2, 2, 3, 8) and b (1, 1, 1, 8); padding 2, "
    "stride 1 or 2, dZ = Z. For the poolings it draws A_prev (5, 5, 3, 2) and dA (5, 4, 2, 2); window 2, stride 1.",
    parts=(
        Part(
            conv_given,
            conv_loss,
            trained=("A_prev", "W", "b"),
            title="convolution with stride 1, 2018",
            rows=(
                Row("A_prev[1,2,3]", "-0.20075807 0.18656139 0.41005165", "A_prev[1,2,3]"),
                Row(
                    "mean of Z",
                    "0.155859324889",
                    lambda r: r["Z"].data.mean(),
                    theirs=with_twelve_biases("Z"),
                    why="The bias is added to each of the twelve products of a window, not once to their sum: with "
                    "twelve times the bias every printed digit comes out. A later version adds it once. The gradients "
                    "that follow have this Z as dZ.",
                    check=conv_mean,
                ),
                mean_of("A_prev", "9.60899067587", with_twelve_biases("A_prev")),
                mean_of("W", "10.5817412755", with_twelve_biases("W")),
                mean_of("b", "76.3710691956", with_twelve_biases("b")),
            ),
        ),
        Part(
            conv_given,
            partial(conv_loss, stride=2),
            trained=("A_prev", "W", "b"),
            title="convolution with stride 2, a later version",
            rows=(
                Row("mean of Z", "0.0489952035289", lambda r: r["Z"].data.mean()),
                Row(
                    "Z[3,2,1]",
                    "-0.61490741 -6.7439236 -2.55153897 1.75698377 3.56208902 0.53036437 5.18531798 8.75898442",
                    lambda r: r["Z"].data[3, :, 2, 1],
                ),
                mean_of("A_prev", "1.45243777754", stride=2),
                mean_of("W", "1.72699145831", stride=2),
                mean_of("b", "7.83923256462", stride=2),
            ),
        ),
        Part(
            pool_given,
            max_loss,
            trained=("A_prev",),
            title="max pooling",
            rows=(
                Row("mean of dA", "0.145713902729", lambda r: r["dA"].data.mean()),
                Row("dA_prev[1,1]", "0. 0. 5.05844394 -1.68282702 0. 0.", "dJ/dA_prev[1,1]"),
            ),
        ),
        Part(
            pool_given,
            mean_loss,
            trained=("A_prev",),
            title="average pooling",
            rows=(
                Row(
                    "dA_prev[1,1]",
                    "0.08485462 0.2787552 1.26461098 -0.25749373 1.17975636 -0.53624893",
                    "dJ/dA_prev[1,1]",
                ),
            ),
        ),
    ),
)

# -- a recurrent network ----------------------------------------------------------------------------------------------


def cell_given() -> Values:
    randn = draws()
    given = {"xt": randn(3, 10), "a_prev": randn(5, 10), "Wax": randn(5, 3), "Waa": randn(5, 5)}
    randn(2, 5)  # Wya, which no gradient reaches
    given["ba"] = FORWARD_BA
    randn(5, 1), randn(2, 1)
    return {**given, "da_next": randn(5, 10)}


def ba_of_the_cell_before() -> Tensor:
    """The cell for the gradients names its bias `b` and passes on the `ba` of the notebook's cell before it."""
    randn = draws()
    for shape in [(3, 10, 4), (5, 10), (5, 5), (5, 3), (2, 5)]:
        randn(*shape)
    return randn(5, 1)


FORWARD_BA = ba_of_the_cell_before()


def cell_loss(xt: Tensor, a_prev: Tensor, Wax: Tensor, Waa: Tensor, ba: Tensor, da_next: Tensor) -> Tensor:
    a_next = torch.tanh(Waa @ a_prev + Wax @ xt + ba)
    J = (a_next * da_next).sum()
    return J


def rnn_given() -> Values:
    randn = draws()
    given = {"x": randn(3, 10, 4), "a0": randn(5, 10), "Wax": randn(5, 3), "Waa": randn(5, 5)}
    randn(2, 5)
    given["ba"] = randn(5, 1)
    randn(2, 1)
    return {**given, "da": randn(5, 10, 4)}


def rnn_loss(x: Tensor, a0: Tensor, Wax: Tensor, Waa: Tensor, ba: Tensor, da: Tensor) -> Tensor:
    a1 = torch.tanh(Waa @ a0 + Wax @ x[:, :, 0] + ba)
    a2 = torch.tanh(Waa @ a1 + Wax @ x[:, :, 1] + ba)
    a3 = torch.tanh(Waa @ a2 + Wax @ x[:, :, 2] + ba)
    a4 = torch.tanh(Waa @ a3 + Wax @ x[:, :, 3] + ba)
    a = torch.stack([a1, a2, a3, a4], dim=2)
    J = (a * da).sum()
    return J


RNN = Example(
    key="rnn",
    title="A recurrent cell, and four steps back through time",
    source=f"{COURSE}, course 5, week 1: *Building a recurrent neural network, step by step* (v2)",
    address="https://www.coursera.org/learn/nlp-sequence-models",
    read=READ,
    prints="some elements of each gradient. The inputs, and the gradient that arrives, are given by their seed.",
    inputs="NumPy's generator with seed 1 draws, in the notebook's order, x (3, 10) or (3, 10, 4), the first state "
    "(5, 10), the weights and biases of five tanh units, and the gradient of each state.",
    parts=(
        Part(
            cell_given,
            cell_loss,
            trained=("xt", "a_prev", "Wax", "Waa", "ba"),
            title="one cell",
            rows=(
                Row("dxt[1,2]", "-0.460564103059", "dJ/dxt[1,2]"),
                Row("da_prev[2,3]", "0.0842968653807", "dJ/da_prev[2,3]"),
                Row("dWax[3,1]", "0.393081873922", "dJ/dWax[3,1]"),
                Row("dWaa[1,2]", "-0.28483955787", "dJ/dWaa[1,2]"),
                Row("dba[4]", "0.80517166", "dJ/dba[4]"),
            ),
        ),
        Part(
            rnn_given,
            rnn_loss,
            trained=("x", "a0", "Wax", "Waa", "ba"),
            title="four steps",
            rows=(
                Row("dx[1,2]", "-2.07101689 -0.59255627 0.02466855 0.01483317", "dJ/dx[1,2]"),
                Row("da0[2,3]", "-0.314942375127", "dJ/da0[2,3]"),
                Row("dWax[3,1]", "11.2641044965", "dJ/dWax[3,1]"),
                Row("dWaa[1,2]", "2.30333312658", "dJ/dWaa[1,2]"),
                Row("dba[4]", "-0.74747722", "dJ/dba[4]"),
            ),
        ),
    ),
)

# -- an LSTM ----------------------------------------------------------------------------------------------------------

GATES = ("Wf", "bf", "Wi", "bi", "Wo", "bo", "Wc", "bc")


def lstm_cell_given() -> Values:
    randn = draws()
    given = {"xt": randn(3, 10), "a_prev": randn(5, 10), "c_prev": randn(5, 10)}
    given.update((name, randn(5, 8) if name.startswith("W") else randn(5, 1)) for name in GATES)
    given.update(Wy=randn(2, 5), by=randn(2, 1))
    return {**given, "da_next": randn(5, 10), "dc_next": randn(5, 10)}


def lstm_cell_loss(
    xt: Tensor,
    a_prev: Tensor,
    c_prev: Tensor,
    Wy: Tensor,
    by: Tensor,
    da_next: Tensor,
    dc_next: Tensor,
    **gates: Tensor,
) -> Tensor:
    a_next, c_next = lstm_cell(xt, a_prev, c_prev, **gates)
    with torch.no_grad():
        yt = torch.softmax(Wy @ a_next + by, dim=0)  # noqa: F841 (a name to look up)
    J = (a_next * da_next).sum() + (c_next * dc_next).sum()
    return J


def lstm_cell(
    xt: Tensor,
    a_prev: Tensor,
    c_prev: Tensor,
    Wf: Tensor,
    bf: Tensor,
    Wi: Tensor,
    bi: Tensor,
    Wo: Tensor,
    bo: Tensor,
    Wc: Tensor,
    bc: Tensor,
) -> tuple[Tensor, Tensor]:
    z = torch.cat([a_prev, xt])
    forget = torch.sigmoid(Wf @ z + bf)
    update = torch.sigmoid(Wi @ z + bi)
    output = torch.sigmoid(Wo @ z + bo)
    memory = forget * c_prev + update * torch.tanh(Wc @ z + bc)
    state = output * torch.tanh(memory)
    return state, memory


def lstm_given() -> Values:
    randn = draws()
    given = {"x": randn(3, 10, 7), "a0": randn(5, 10)}
    given.update((name, randn(5, 8) if name.startswith("W") else randn(5, 1)) for name in GATES)
    return {**given, "da": randn(5, 10, 4)}


def lstm_loss(x: Tensor, a0: Tensor, da: Tensor, cut: bool = False, **gates: Tensor) -> Tensor:
    """Four of the seven steps get a gradient, as in the assignment; `cut` keeps it from flowing between steps."""
    a, c, J = a0, torch.zeros_like(a0), torch.zeros((), dtype=a0.dtype)
    for t in range(4):
        a, c = (a.detach(), c.detach()) if cut and t else (a, c)
        a, c = lstm_cell(x[:, :, t], a, c, **gates)
        J = J + (a * da[:, :, t]).sum()
    return J


def cut_gradient(name: str, *index: int) -> Callable[[], Tensor]:
    """The gradient if nothing flows from one step to the one before."""

    def gradient() -> Tensor:
        given = lstm_given()
        given[name].requires_grad_()
        (found,) = torch.autograd.grad(lstm_loss(**given, cut=True), given[name])
        return found[index][:4] if name == "x" else found[index]

    return gradient


NOTHING_FLOWS = (
    "This is the gradient if none flows from a step to the one before: with the states detached between the steps, "
    "every printed digit comes out. A later version of the notebook prints the right number."
)
NEITHER = (
    "It is not the gradient with detached states either, {}. A later version of the notebook prints the right number."
)


def gradients_of_2018() -> tuple[Row, ...]:
    def row(label: str, printed: str, name: str, *index: int, cut: str = "") -> Row:
        return Row(
            f"{label}, 2018",
            printed,
            f"dJ/d{name}[{','.join(map(str, index))}]" if name != "x" else "dJ/dx[1,2,:4]",
            theirs=None if cut else cut_gradient(name, *index),
            why=NEITHER.format(cut) if cut else NOTHING_FLOWS,
        )

    return (
        row("dx[1,2]", "-0.00173313 0.08287442 -0.30545663 -0.43281115", "x", 1, 2),
        row("da0[2,3]", "-0.095911501954", "a0", 2, 3),
        row("dWf[3,1]", "-0.0698198561274", "Wf", 3, 1),
        row("dWi[1,2]", "0.102371820249", "Wi", 1, 2),
        row("dWc[3,1]", "-0.0624983794927", "Wc", 3, 1),
        row("dWo[1,2]", "0.0484389131444", "Wo", 1, 2),
        row("dbf[4]", "-0.0565788", "bf", 4),
        row("dbi[4]", "-0.06997391", "bi", 4, cut="−0.15399065"),
        row("dbc[4]", "-0.27441821", "bc", 4, cut="−0.29691142"),
        row("dbo[4]", "0.16532821", "bo", 4, cut="−0.29798344"),
    )


SEQUENCE = Part(
    lstm_given,
    lstm_loss,
    trained=("x", "a0", *GATES),
    title="four steps",
    rows=(
        *gradients_of_2018(),
        Row(
            "dx[1,2], later",
            "0.00218254 0.28205375 -0.48292508 -0.43281115",
            "dJ/dx[1,2,:4]",
        ),
        Row("da0[2,3], later", "0.312770310257", "dJ/da0[2,3]"),
        Row("dWf[3,1], later", "-0.0809802310938", "dJ/dWf[3,1]"),
        Row("dWi[1,2], later", "0.40512433093", "dJ/dWi[1,2]"),
        Row("dWc[3,1], later", "-0.0793746735512", "dJ/dWc[3,1]"),
        Row("dWo[1,2], later", "0.038948775763", "dJ/dWo[1,2]"),
        Row("dbf[4], later", "-0.15745657", "dJ/dbf[4]"),
        Row("dbi[4], later", "-0.50848333", "dJ/dbi[4]"),
        Row("dbc[4], later", "-0.42510818", "dJ/dbc[4]"),
        Row("dbo[4], later", "-0.17958196", "dJ/dbo[4]"),
    ),
)

LSTM = Example(
    key="lstm",
    title="An LSTM cell, and four steps back through time",
    source=f"{COURSE}, course 5, week 1: *Building a recurrent neural network, step by step* (v2, and a later version)",
    address="https://www.coursera.org/learn/nlp-sequence-models",
    read=READ + "; for the later version, two public copies of its expected output",
    prints="rows of the cell's results, and an element of each gradient. The inputs are given by their seed.",
    inputs="NumPy's generator with seed 1 draws, in the notebook's order, x (3, 10) or (3, 10, 7), the first states "
    "(5, 10), the weights and biases of the four gates, and the gradients that arrive: for the cell those of both "
    "states, for the sequence those of the first four hidden states.",
    parts=(
        Part(
            lstm_cell_given,
            lstm_cell_loss,
            trained=("xt", "a_prev", "c_prev", *GATES),
            title="one cell",
            rows=(
                Row(
                    "a_next[4]",
                    "-0.66408471 0.0036921 0.02088357 0.22834167 -0.85575339 0.00138482 0.76566531 0.34631421 "
                    "-0.00215674 0.43827275",
                    "state[4]",
                ),
                Row(
                    "c_next[2]",
                    "0.63267805 1.00570849 0.35504474 0.20690913 -1.64566718 0.11832942 0.76449811 -0.0981561 "
                    "-0.74348425 -0.26810932",
                    "memory[2]",
                ),
                Row(
                    "yt[1]",
                    "0.79913913 0.15986619 0.22412122 0.15606108 0.97057211 0.31146381 0.00943007 0.12666353 "
                    "0.39380172 0.07828381",
                    "yt[1]",
                ),
                Row("dxt[1,2]", "3.23055911511", "dJ/dxt[1,2]"),
                Row("da_prev[2,3]", "-0.0639621419711", "dJ/da_prev[2,3]"),
                Row("dc_prev[2,3]", "0.797522038797", "dJ/dc_prev[2,3]"),
                Row("dWf[3,1]", "-0.147954838164", "dJ/dWf[3,1]"),
                Row("dWi[1,2]", "1.05749805523", "dJ/dWi[1,2]"),
                Row("dWc[3,1]", "2.30456216369", "dJ/dWc[3,1]"),
                Row("dWo[1,2]", "0.331311595289", "dJ/dWo[1,2]"),
                Row("dbf[4]", "0.18864637", "dJ/dbf[4]"),
                Row("dbi[4]", "-0.40142491", "dJ/dbi[4]"),
                Row("dbc[4]", "0.25587763", "dJ/dbc[4]"),
                Row("dbo[4]", "0.13893342", "dJ/dbo[4]"),
            ),
        ),
        SEQUENCE,
    ),
    remark="The cell is right; the sequence of 2018 is not. Its expected gradients leave out what one step passes back "
    "to the one before: they are no backpropagation through time. Only the gradient of the last input is unaffected.",
)
