"""Updates of optimizers, number by number."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.optim import SGD, Adadelta, Adagrad, Adam, Adamax, Optimizer, RMSprop

from chainrule import Recording
from tests.published.example import Example, Part, Row, Values, numbers

Make = Callable[[list[Tensor]], Optimizer]


def after(make: Make, steps: int) -> Make:
    """The optimizer after some steps on the sum of squares."""

    def made(parameters: list[Tensor]) -> Optimizer:
        optimizer = make(parameters)
        for _ in range(steps):
            optimizer.zero_grad()
            sum(each.square().sum() for each in parameters).backward()
            optimizer.step()
        optimizer.zero_grad()
        return optimizer

    return made


# -- Adam by hand -----------------------------------------------------------------------------------------------------


def square_loss(theta: Tensor) -> Tensor:
    J = theta**2
    return J


def moment(name: str, decay: float, corrected: bool = False) -> Callable[[Recording], Tensor]:
    """A moment after the update, from the recorded one before and the gradient; or with its bias corrected."""

    def found(recording: Recording) -> Tensor:
        ((update,),) = (each.parameters for each in recording.graph.updates)
        before = update.state_before.get(name)
        steps = 1 + (int(update.state_before["step"]) if before is not None else 0)
        power = update.gradient.data ** (1 if name == "exp_avg" else 2)
        now = (1 - decay) * power + (decay * before.data if before is not None else 0)
        return now / (1 - decay**steps) if corrected else now

    return found


def adam_part(steps: int, *rows: Row) -> Part:
    title = f"iteration {steps + 1}"
    make = after(partial(Adam, lr=0.1), steps)
    return Part(lambda: {"theta": numbers(5.0)}, square_loss, rows, ("theta",), make, title=title)


def moments(m: str, v: str, m_hat: str, v_hat: str, theirs: tuple[float, float, float, float]) -> tuple[Row, ...]:
    first, second, first_hat, second_hat = theirs
    return (
        Row("m", m, moment("exp_avg", 0.9), theirs=lambda: first),
        Row("v", v, moment("exp_avg_sq", 0.999), theirs=lambda: second),
        Row("m̂", m_hat, moment("exp_avg", 0.9, corrected=True), theirs=lambda: first_hat),
        Row("v̂", v_hat, moment("exp_avg_sq", 0.999, corrected=True), theirs=lambda: second_hat),
    )


def slope(recording: Recording) -> Tensor:
    return recording["theta"].grad


ADAM = Example(
    key="adam",
    title="Three iterations of Adam",
    source="gbasran, *Page 12: The Full Adam Algorithm* (MATH 3850), April 2026",
    address="https://gbasran.github.io/ADAM-Machine-Learning-Deepdive/concept-12-full-adam.html",
    prints="gradient, moments, corrected moments and parameter of each iteration, each from the rounded ones before.",
    inputs="f(θ) = θ² from θ = 5; α = 0.1, β1 = 0.9, β2 = 0.999, ε = 1e-8.",
    parts=(
        adam_part(
            0,
            Row("g", "10", slope),
            *moments("1", "0.1", "10", "100", (1, 0.1, 10, 100)),
            Row("θ", "4.9", "theta after"),
        ),
        adam_part(
            1,
            Row("g", "9.8", slope),
            *moments("1.88", "0.19594", "9.895", "98.02", (1.88, 0.19594, 1.88 / 0.19, 0.19594 / 0.001999)),
            Row("θ", "4.8001", "theta after", theirs=lambda: 4.9 - 0.0999),
        ),
        adam_part(
            2,
            Row("g", "9.6002", slope, theirs=lambda: 2 * 4.8001),
            *moments(
                "2.652",
                "0.28790",
                "9.786",
                "96.06",
                (1.692 + 0.96002, 0.19574 + 0.09216, 2.652 / 0.271, 0.28790 / 0.002997),
            ),
            Row("θ", "4.7003", "theta after", theirs=lambda: 4.8001 - 0.0998),
        ),
    ),
)

# -- the documentation of Optax and Keras -----------------------------------------------------------------------------


def squares_given() -> Values:
    return {"x": numbers([1.0, 2.0, 3.0])}


def squares_loss(x: Tensor) -> Tensor:
    J = (x**2).sum()
    return J


def objectives(make: Make) -> Callable[[Recording], Tensor]:
    """The objective after one step, as recorded, and after four more."""

    def found(recording: Recording) -> Tensor:
        losses = [recording.parameters["x"].after.square().sum()]
        for steps in range(2, 6):
            x = squares_given()["x"].requires_grad_()
            after(make, steps)([x])
            losses.append(x.detach().square().sum())
        return torch.stack(losses)

    return found


def optax(title: str, make: Make, printed: str) -> Part:
    rows = (Row("objective after 1 to 5 steps", printed, objectives(make)),)
    return Part(squares_given, squares_loss, rows, ("x",), make, title=title)


def half_square_loss(var1: Tensor) -> Tensor:
    J = var1**2 / 2
    return J


OPTIMIZERS = Example(
    key="optimizers",
    title="Seven optimizers, as the documentation of Optax and Keras prints them",
    source="Optax (docstrings of `optax.alias`, 2026) and Keras (docstring of `keras.optimizers.RMSprop`, 2026)",
    address="https://optax.readthedocs.io/en/latest/api/optimizers.html",
    prints="the objective after each of five steps, to three digits; for Keras the variable after one.",
    inputs="Optax: f(x) = sum of x² from [1, 2, 3], learning rates 0.003, 1 (Adagrad) and 10 (Adadelta). Keras: v² / 2 "
    "from 10, learning rate 0.1.",
    parts=(
        optax("SGD", partial(SGD, lr=0.003), "1.38E+01 1.37E+01 1.35E+01 1.33E+01 1.32E+01"),
        optax("Adam", partial(Adam, lr=0.003), "1.40E+01 1.39E+01 1.39E+01 1.39E+01 1.38E+01"),
        optax("Adamax", partial(Adamax, lr=0.003), "1.40E+01 1.39E+01 1.39E+01 1.39E+01 1.38E+01"),
        optax("RMSprop", partial(RMSprop, lr=0.003, alpha=0.9), "1.39E+01 1.38E+01 1.37E+01 1.37E+01 1.36E+01"),
        optax(
            "Adagrad",
            partial(Adagrad, lr=1.0, initial_accumulator_value=0.1, eps=1e-7),
            "5.01E+00 2.40E+00 1.25E+00 6.86E-01 3.85E-01",
        ),
        optax("Adadelta", partial(Adadelta, lr=10.0), "1.36E+01 1.32E+01 1.29E+01 1.25E+01 1.21E+01"),
        Part(
            lambda: {"var1": numbers(10.0)},
            half_square_loss,
            (Row("variable after one step", "9.683772", "var1 after"),),
            ("var1",),
            partial(RMSprop, lr=0.1, alpha=0.9, eps=1e-7),
            title="Keras' RMSprop",
        ),
    ),
    remark="PyTorch's optimizers, with the settings that make them the same: Optax and Keras start Adagrad at 0.1, and "
    "decay RMSprop by 0.9.",
)
