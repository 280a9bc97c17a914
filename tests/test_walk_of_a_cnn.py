"""What a reader of the walk of a small CNN finds stated, and that it is true."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import nn

import chainrule
from chainrule.cli import commands
from chainrule.views.terminal import text

SCRIPT = """
import torch
from torch import nn
import torch.nn.functional as F

torch.manual_seed(5)
conv1, conv2, fc = nn.Conv2d(1, 2, 2), nn.Conv2d(2, 1, 2), nn.Linear(1, 2)
optimizer = torch.optim.SGD([*conv1.parameters(), *conv2.parameters(), *fc.parameters()], lr=0.1, momentum=0.9)
x = torch.randn(2, 1, 5, 5).mul(4).round() / 4
y = torch.tensor([0, 1])
for _ in range(3):
    optimizer.zero_grad()
    h = F.relu(conv1(x))
    p = F.max_pool2d(h, 2)
    z = F.relu(conv2(p))
    loss = F.cross_entropy(fc(z.flatten(1)), y)
    loss.backward()
    optimizer.step()
    print("a loss of", loss.item())
"""
POOLING = 1 + SCRIPT.splitlines().index("    p = F.max_pool2d(h, 2)")


@pytest.fixture(scope="module")
def walk(tmp_path_factory: pytest.TempPathFactory) -> str:
    return walk_of(SCRIPT, tmp_path_factory.mktemp("cnn"), "--step", "2")


def walk_of(text: str, folder: Path, *options: str) -> str:
    script = folder / "train.py"
    script.write_text(text)
    result = CliRunner(env={"COLUMNS": "100"}).invoke(commands, ["run", str(script), *options])
    assert result.exit_code == 0, result.output
    return result.output


def numbers_of(walk: str, name: str) -> dict[str, float]:
    """The elements of a tensor of four axes, by their names."""
    found: dict[str, float] = {}
    for place in re.finditer(rf"(?:^ *[⎡⎢].*\n)*^ *{name}\[(\d),(\d)\] = .*\n(?:^ *[⎢⎣].*\n)*", walk, re.MULTILINE):
        rows = re.findall(r"[\[⎡⎢⎣]((?: *-?[\d.]+)+) *[\]⎤⎥⎦]", place[0])
        for i, row in enumerate(rows):
            found |= {f"{name}[{place[1]},{place[2]},{i},{j}]": float(x) for j, x in enumerate(row.split())}
    return found


def test_it_says_which_step_of_what_it_is_and_the_loss_after_it(walk: str) -> None:
    assert "\nTraining step 2 of train.py, worked out\n" in walk
    (after,) = re.findall(r"\(loss.*\); ([\d.]+) after the step", walk)
    losses = re.findall(r"a loss of ([\d.]+)", walk)  # the third has the same data
    assert math.isclose(float(after), float(losses[2]), abs_tol=1e-4)


def test_it_says_from_where_each_window_took_its_number_and_which_one_ties(walk: str) -> None:
    h, p = numbers_of(walk, "h"), numbers_of(walk, "p")
    taken = re.findall(r"^ +(p\[[\d,]+\]) +([\d.]+) +(h\[.*)", walk, re.MULTILINE)
    assert len(taken) == len(p) == 16
    for own, value, sources in taken:
        n, c, i, j = map(int, re.findall(r"\d+", own))
        window = [f"h[{n},{c},{2 * i + u},{2 * j + v}]" for u in (0, 1) for v in (0, 1)]
        assert sources.split(", ") == [each for each in window if h[each] == max(h[place] for place in window)], own
        assert float(value) == p[own] == max(h[place] for place in window)
    tied = [own for own, _, sources in taken if ", " in sources]
    assert f"Tied, so that the derivative is undefined: {', '.join(tied)}; of tied elements, the first" in walk
    assert f"at-kink: h (train.py:{POOLING})" in walk
    assert "elements of h, the first at" in " ".join(walk.split())


def test_it_counts_the_elements_that_a_pooling_did_not_take_and_says_what_it_took_for_the_first(walk: str) -> None:
    taken = re.findall(r"^ +(p\[[\d,]+\]) +[\d.]+ +(h\[[\d,]+\])", walk, re.MULTILINE)
    kept = {element for _, element in taken}
    lost = next(name for name in numbers_of(walk, "h") if name not in kept)
    said = f"{64 - len(kept)} of the 64 elements of h get 0, as no maximum took them: first, "
    (won,) = re.findall(rf"{said}(.*?), not {re.escape(lost)}\.", " ".join(walk.split()))
    assert tuple(won.split(" took ")) in taken


def test_it_works_one_element_out_where_a_jacobian_is_too_large(walk: str) -> None:
    steps = [" ".join(each.split()) for each in re.findall(r"^One element: (dJ/d(?:.+\n)+)", walk, re.MULTILINE)]
    assert {each.partition("[")[0] for each in steps} >= {"dJ/dW1", "dJ/db1", "dJ/dh"}
    known = {**numbers_of(walk, "dJ/dZ1"), **numbers_of(walk, "dJ/dp"), **numbers_of(walk, "x")}
    for each in steps:
        left, symbols, *numbers, total = re.sub(r"( \(.*)?\.$", "", each).split(" = ")
        shown = [math.fsum(math.prod(map(float, term.split(" * "))) for term in side.split(" + ")) for side in numbers]
        named = [term for term in symbols.split(" + ") if not term.endswith("more")]
        again = math.fsum(math.prod(known[factor] for factor in term.split(" * ")) for term in named)
        for found in (*shown, *([] if "more =" in each else [again])):
            assert math.isclose(found, float(total), abs_tol=1e-3), left


def test_it_counts_the_slopes_that_are_zero_and_says_why_they_are(walk: str) -> None:
    before = numbers_of(walk, "Z1")
    off = [name for name, value in before.items() if value <= 0]
    said = f"{len(off)} of {len(before)} are zero for these values: ReLU is off there, first {off[0]} = "
    assert said in " ".join(walk.split())


def test_the_first_step_says_the_factor_of_a_momentum_that_it_does_not_use_yet(tmp_path: Path) -> None:
    walk = " ".join(walk_of(SCRIPT, tmp_path).split())
    assert "begins as the first gradient; its factor 0.9 counts from the next step on" in walk


def test_zeros_of_a_convolution_whose_kernel_covers_its_input_are_those_of_other_samples(walk: str) -> None:
    assert "an output element is made of the input elements of its own sample alone" in " ".join(walk.split())


def test_what_was_compared_is_said_in_words(walk: str) -> None:
    assert "10 with our rule, 10 with central differences, 6 as sums into .grad" in " ".join(walk.split())
    assert "measured 64 elements" in walk
    assert "..." not in walk.partition("Backward 1")[2]


def test_a_layer_of_a_chain_has_one_name_where_its_variable_is_used_again() -> None:
    first, second = nn.Linear(2, 3), nn.Linear(3, 1)
    with chainrule.record() as recording:
        x = torch.tensor([[1.0, 2.0], [-3.0, 0.5]])
        x = torch.tanh(first(x))
        x = second(x)
        x.square().mean().backward()
    walk = text(recording.document())
    assert "A1 = tanh Z1" in walk
    assert "Z2 = A1 W2ᵀ + b2" in walk
    assert "dZ2[n,o]/dA1[n,i]" in walk
    assert "x⁽²⁾" not in walk
