r"""The printed update formulas of the optimizers, evaluated from their text, and compared with PyTorch's new parameter.

Each line may use the lines before it, the hyperparameters, the parameter, its gradient, and the state before the step.
The last line is compared with what the real optimizer wrote, the lines before it with the values beside them.
"""

from __future__ import annotations

import re
from string import Template
from typing import Any

import pytest
import torch
from latex_math import Statement, differ
from test_optimizers import CASES, steps

from chainrule.rules.optimizers import SYMBOLS, hyperparameters, terms

# What the state before the step is called in the formulas.
STATE = {
    "exp_avg": "m_{t-1}", "exp_avg_sq": "v_{t-1}", "square_avg": "v_{t-1}", "max_exp_avg_sq": "V_{t-1}",
    "exp_inf": "u_{t-1}", "acc_delta": "u_{t-1}", "momentum_buffer": "b_{t-1}", "grad_avg": r"\bar{g}_{t-1}",
    "sum": "G_{t-1}", "mu_product": r"\Pi_{t-1}", "prev": "p_{t-1}", "step_size": r"\delta_{t-1}", "ax": "a_{t-1}",
    "eta": r"\eta_{t-1}", "mu": r"\mu_{t-1}", "row_var": "R_{t-1}", "col_var": "C_{t-1}", "variance": "v_{t-1}",
}  # fmt: skip

MATRICES = re.compile(r"Vert|mean|C_t|O_")  # in a line with these, matrices side by side are their product


def wrong_lines(update: Any, optimizer: str, old: str = "", new: str = "") -> tuple[list[str], int]:
    """Which lines of an update do not give their values, with a piece of the text replaced, and how often it was."""
    hyper = hyperparameters(dict(update.options), dict(update.state_before))
    known: dict[str, Any] = dict.fromkeys(STATE.values(), torch.zeros_like(update.before)) | {
        SYMBOLS[name]: each for name, each in hyper.items() if name in SYMBOLS and type(each) in (int, float)
    }
    known |= {r"\Pi_{t-1}": 1.0, "G_{t-1}": torch.full_like(update.before, hyper.get("initial_accumulator_value", 0.0))}
    known |= {
        r"\delta_{t-1}": torch.full_like(update.before, hyper["lr"]),
        r"\eta_{t-1}": hyper["lr"],
        r"\mu_{t-1}": 1.0,
    }
    known |= {STATE[name]: each for name, each in update.state_before.items() if name in STATE and each is not None}
    known |= {"w": update.before, "q": update.grad}
    found, edits = [], 0
    lines = terms(update, optimizer)
    assert lines
    for line in lines:
        text = Template(line.equation).safe_substitute(theta="w", g="q").replace(r"v^{\max}", "V")
        edits += bool(old) and old in text
        text = text.replace(old, new) if old else text
        symbol, formula = text.split(r" \leftarrow " if line is lines[-1] else " = ", 1)
        numbers = {name: torch.as_tensor(each, dtype=torch.float64) for name, each in known.items() if name != "t-1"}
        value = Statement(
            formula, numbers, elementwise=None if MATRICES.search(formula) else update.before.shape
        ).value()
        expected = update.after if line is lines[-1] else torch.as_tensor(line.value)
        tolerance = 0.02 if symbol.startswith("O_") else 1e-5  # of bfloat16
        shape = torch.broadcast_shapes(expected.shape, value.shape)
        if wrong := differ(expected.double().expand(shape), value.expand(shape), tolerance):
            found.append(f"{text}: {wrong}")
        known[symbol] = expected
    return found, edits


@pytest.mark.parametrize("optimizer", CASES)
def test_the_formulas_of_an_optimizer(optimizer: str) -> None:
    for options in CASES[optimizer]:
        for update in steps(getattr(torch.optim, optimizer), **options):
            assert not wrong_lines(update, optimizer)[0], options


# (optimizer, what is replaced, by what)
MUTANTS = [
    ("SGD", r"\eta \,", r"-\eta \,"),
    ("Adam", r"\sqrt{\hat{v}_t}", r"\hat{v}_t"),
    ("Adam", r"(1 - \beta_1)", r"(1 + \beta_1)"),
    ("AdamW", r"{\beta_2}^{t}", r"{\beta_2}^{2 \, t}"),
    ("RMSprop", r"\odot q", r"\odot w"),
    ("Adagrad", r"\sqrt{G_t}", "G_t"),
    ("Adadelta", r"u_{t-1} + \varepsilon", r"u_{t-1}"),
    ("Adamax", r"\max", r"\min"),
    ("NAdam", r"(1 - \mu_t)", r"\mu_t"),
    ("Rprop", r"s_t > 0", r"s_t < 1"),
    ("Rprop", r"\delta_{\max}", r"\delta_{\min}"),
    ("ASGD", r"1 - \kappa", r"1 + \kappa"),
    ("ASGD", r"\mu_{t-1} \,", r"2 \, \mu_{t-1} \,"),
    ("Adafactor", "rowmean", "colmean"),
    ("Adafactor", r"\tau", r"2 \, \tau"),
    ("Adafactor", r"\max\left(\frac", r"\min\left(\frac"),
    ("Muon", r"c \, {", r"2 \, c \, {"),
    ("Muon", r"{\left(O_1 \, O_1^{T}\right)}^{2}", r"O_1 \, O_1^{T}"),
    ("Muon", r"\mu \, b", r"(1 - \mu) \, b"),
    ("RAdam", r"\frac{2}{1 - \beta_2}", r"\frac{1}{1 - \beta_2}"),
]


@pytest.mark.parametrize(("optimizer", "old", "new"), MUTANTS)
def test_a_wrong_formula_is_caught(optimizer: str, old: str, new: str) -> None:
    updates = (each for options in CASES[optimizer] for each in steps(getattr(torch.optim, optimizer), **options))
    for update in updates:
        wrong, edits = wrong_lines(update, optimizer, old, new)
        if wrong:
            assert edits
            return
    pytest.fail("not caught, or nothing was edited")
