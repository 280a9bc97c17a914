"""The worked example: every number of it, from the recording and on the screen, against the published derivation."""

from __future__ import annotations

import re

import pytest
import torch
from click.testing import CliRunner

from chainrule import Recording
from chainrule.cli import commands
from chainrule.examples import worked_example
from tests.steps import worked

FORWARD = {
    "X": [[1, 2], [3, 4]],
    "Y": [[0], [1]],
    "Z1": [[4, 2, -7.8], [6, 9, -16]],
    "A1": [[4, 2, 0], [6, 9, 0]],
    "Z2": [[0, 8], [8, 10.1]],
    "A2": [[0, 8], [8, 10.1]],
    "Z3": [[-2.3], [1.07]],
    "A3": [[0.0911], [0.7446]],
}
GRADIENTS = {
    "A3": [[0.5501], [-0.6715]],
    "Z3": [[0.0456], [-0.1277]],
    "linear3.weight": [[-1.0216, -0.9253]],
    "linear3.bias": [-0.0821],
    "A2": [[0.0228, -0.0137], [-0.0639, 0.0383]],
    "Z2": [[0, -0.0137], [-0.0639, 0.0383]],
    "linear2.weight": [[-0.3831, -0.5747, 0], [0.1752, 0.3175, 0]],
    "linear2.bias": [-0.0639, 0.0246],
    "A1": [[-0.0096, -0.0014, -0.0041], [-0.0051, -0.0600, 0.1392]],
    "Z1": [[-0.0096, -0.0014, 0], [-0.0051, -0.0600, 0]],
    "linear1.weight": [[-0.0249, -0.0396], [-0.1814, -0.2428], [0, 0]],
    "linear1.bias": [-0.0147, -0.0614, 0],
}
AFTER_SGD = {
    "linear1.weight": [[-0.9998, 2.0004], [3.0018, 0.5024], [-0.1, -4]],
    "linear1.bias": [1.0001, -1.9994, 0.3],
    "linear2.weight": [[0.5038, 1.0057, -2], [0.6982, 0.0968, 0.3]],
    "linear2.bias": [-3.9994, 4.9998],
    "linear3.weight": [[0.5102, -0.2907]],
    "linear3.bias": [0.1008],
}


@pytest.fixture(scope="module")
def recording() -> Recording:
    return worked()


def shown(*options: str) -> str:
    result = CliRunner().invoke(commands, ["demo", *options])
    assert result.exit_code == 0, result.output
    return result.output


def rounded(numbers: object) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def test_loss(recording: Recording) -> None:
    assert recording.loss == 0.19522885978221893


@pytest.mark.parametrize("name", FORWARD)
def test_forward_values_go_by_the_names_in_the_code(recording: Recording, name: str) -> None:
    data = recording[name].data
    assert data is not None
    torch.testing.assert_close(data.double(), rounded(FORWARD[name]), rtol=0, atol=5.1e-5)


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients(recording: Recording, name: str) -> None:
    grad = recording[name].grad
    assert grad is not None
    torch.testing.assert_close(grad.double(), rounded(GRADIENTS[name]), rtol=0, atol=5.1e-5)


def test_the_walk_with_our_rules_arrives_at_the_same_gradients(recording: Recording) -> None:
    for name, expected in GRADIENTS.items():
        ours = recording.derivation.gradients[recording[name].index]
        torch.testing.assert_close(ours.double(), rounded(expected), rtol=0, atol=5.1e-5)


def test_sgd_update() -> None:
    for name, parameter in worked("sgd").parameters.items():
        assert parameter.after is not None
        torch.testing.assert_close(parameter.after.double(), rounded(AFTER_SGD[name]), rtol=0, atol=5.1e-5)


def test_adam_moves_every_parameter_by_the_learning_rate_against_its_gradient(recording: Recording) -> None:
    for parameter in recording.parameters.values():
        assert parameter.after is not None
        assert parameter.grad is not None
        moved = parameter.after - parameter.before
        torch.testing.assert_close(moved, -0.01 * parameter.grad.sign(), rtol=0, atol=1e-6)


def numbers_under(output: str, symbol: str) -> list[list[float]]:
    """The rows of every grid that the screen shows for a symbol, each grid flattened."""
    lines = output.splitlines()
    grids = []
    for place, line in enumerate(lines):
        if re.match(rf"\s*{re.escape(symbol)} = ", line) and ("[" in line or "⎡" in line or "⎢" in line):
            start = place
            while start and re.match(r"\s*[⎡⎢]", lines[start - 1]):
                start -= 1
            grid: list[float] = []
            for row in lines[start:]:
                inside = re.search(r"[\[⎡⎢⎣](.*?)[\]⎤⎥⎦]", row)
                if inside is None:
                    break
                grid += [float(each) for each in inside[1].split()]
            grids.append(grid)
    return grids


def rows_of(output: str, name: str) -> list[float]:
    """The numbers in the rows of tables that begin with a name."""
    found = re.findall(rf"^ *{re.escape(name)} +(.*)", output, re.MULTILINE)
    return [float(each) for row in found for each in row.split()]


SYMBOLS = {
    f"linear{layer}.{kind}": f"{letter}{layer}"
    for layer in (1, 2, 3)
    for kind, letter in (("weight", "W"), ("bias", "b"))
}


def flat(numbers: object) -> list[float]:
    return [float(each) for each in rounded(numbers).flatten()]


def test_the_screen_shows_every_number() -> None:
    output = shown("--optimizer", "sgd")
    assert "J = 0.19522885978221893" in output
    for name, expected in FORWARD.items():
        assert flat(expected) in numbers_under(output, name), name
    for name, expected in GRADIENTS.items():
        assert flat(expected) in numbers_under(output, f"dJ/d{SYMBOLS.get(name, name)}"), name
    for name, expected in AFTER_SGD.items():
        assert flat(expected) in [*numbers_under(output, SYMBOLS[name]), rows_of(output, f"{SYMBOLS[name]} after")], (
            name
        )


def test_the_screen_says_each_thing_once() -> None:
    assert len(shown("--optimizer", "sgd")) <= 22_000


def test_the_screen_disagrees_nowhere() -> None:
    for options in ((), ("--logits",), ("--optimizer", "sgd")):
        output = shown(*options)
        assert "disagree" not in output
        assert output.count("agrees: our rules against") >= 10


def test_the_awkward_places_are_found() -> None:
    output = shown()
    assert "Z2[0,0]" in output
    assert "kink" in output
    assert "off for" in output
    assert "binary_cross_entropy_with_logits" in output


def test_logits_go_back_in_one_step() -> None:
    recording = worked(logits=True)
    grad = recording["Z3"].grad
    assert grad is not None
    output = torch.sigmoid(recording["Z3"].data)
    torch.testing.assert_close(grad, (output - worked_example.Y) / 2)
    assert "in one step" in shown("--logits")


def test_brief_is_a_screenful() -> None:
    assert len(shown("--brief").splitlines()) <= 60


def test_training_ends_with_cost_and_predictions() -> None:
    output = shown("--brief", "--train", "200")
    assert "After 200 more steps" in output
    assert "probability" in output
