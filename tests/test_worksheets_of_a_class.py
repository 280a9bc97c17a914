"""A class of 30 students hands in worksheets: plain tensor code makes their answers, each with one kind of mistake."""

import csv
import json
import runpy

import pytest
import torch
from click.testing import CliRunner

from chainrule.cli import commands

pytestmark = pytest.mark.slow


def answers(step, slip=None):
    """The answers to a 2-3-2-1 sheet; `slip(name, value, env)` changes one, and the rest follows from it."""
    given = {}

    def put(name, value, **env):
        given[name] = value if slip is None else slip(name, value, env)
        return given[name]

    parameters = [p.detach().double() for p in step["model"].parameters()]
    w, b, y = parameters[::2], parameters[1::2], step["Y"].double()
    inputs, sums = [step["X"].double()], []
    for i in range(3):
        sums.append(put(f"Z{i + 1}", inputs[-1] @ w[i].T + b[i], bias=b[i]))
        if i < 2:
            inputs.append(put(f"A{i + 1}", sums[-1].clamp(min=0), z=sums[-1]))
    put("J", ((sums[-1] - y) ** 2).mean(), count=y.numel())
    g = put("dJ_dZ3", 2 * (sums[-1] - y) / y.numel())
    for i in (2, 1, 0):
        put(f"dJ_db{i + 1}", g.sum(0), upstream=g)
        put(f"dJ_dW{i + 1}", g.T @ inputs[i])
        if i:
            above = put(f"dJ_dA{i}", g @ w[i])
            g = put(f"dJ_dZ{i}", above * (sums[i - 1] > 0), above=above)
    for i in range(3):
        for letter, before in (("W", w[i]), ("b", b[i])):
            gradient = given[f"dJ_d{letter}{i + 1}"]
            if gradient.shape == before.shape:
                put(f"new_{letter}{i + 1}", before - 0.1 * gradient, before=before, gradient=gradient)
    return given


SLIPS = {
    # the answer that is wrong, what stands in its place, and what the mistake may be called
    "none": ("", None, ()),
    "sign": ("dJ_dW2", lambda v, e: -v, ("sign",)),
    "transposed": ("dJ_dW1", lambda v, e: v.T, ("transposed",)),
    "without the mask": (
        "dJ_dZ1",
        lambda v, e: e["above"],
        ("off unit", "another quantity", "one element", "some elements"),
    ),
    "half": ("dJ_dZ3", lambda v, e: v / 2, ("factor 2",)),
    "no mean": ("dJ_dZ3", lambda v, e: 2 * v, ("mean", "factor 2")),
    "no bias": ("Z2", lambda v, e: v - e["bias"], ("bias left out",)),
    "no ReLU": ("A1", lambda v, e: e["z"], ("left out", "another quantity")),
    "ascent": ("new_W2", lambda v, e: 2 * e["before"] - v, ("sign",)),
    "no rate": ("new_W1", lambda v, e: e["before"] - e["gradient"], ("learning rate",)),
    "sum of the loss": ("J", lambda v, e: v * e["count"], ("mean",)),
    "not summed": ("dJ_db2", lambda v, e: e["upstream"], ("not summed",)),
    "slip of the pen": ("Z1", lambda v, e: v + torch.tensor([[1.0, 0, 0], [0, 0, 0]]).double(), ("one element",)),
}
ALONE = ("transposed", "not summed")  # have another shape, so that nothing follows from them


def test_the_table_is_right_for_all(tmp_path):
    def run(*arguments):
        return CliRunner().invoke(commands, [str(each) for each in arguments], prog_name="chainrule")

    homework = tmp_path / "homework"
    assert run("exercise", "--seed", "5", "-o", homework).exit_code == 0
    (tmp_path / "in").mkdir()
    expected, rows = {}, [("student", "variant", "quantity", "answer")]
    for number in range(30):
        kind = list(SLIPS)[number % len(SLIPS)]
        wrong, change, mistakes = SLIPS[kind]
        step = runpy.run_path(str(homework / "solutions" / f"variant-{number + 1:02d}.py"))
        right = answers(step)

        def slip(name, value, env, wrong=wrong, change=change):
            return change(value, env) if name == wrong else value

        given = answers(step, slip)
        given = {**right, wrong: given[wrong]} if kind in ALONE else given
        points = sum(value.numel() for value in right.values())
        if wrong:
            same = right[wrong].shape == given[wrong].shape
            lost = (right[wrong] - given[wrong]).abs() > 1e-9 if same else torch.ones_like(right[wrong])
            points -= int(lost.sum())
        expected[f"student {number:02d}"] = (points, wrong, mistakes)
        rows += [(f"student {number:02d}", number + 1, name, str(v.tolist())) for name, v in given.items()]
    with (tmp_path / "in" / "class.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    report = json.loads(run("grade", tmp_path / "in", "--solutions", homework / "solutions", "--json").stdout)
    assert len(report["graded"]) == 30
    named = 0
    for each in report["graded"]:
        points, wrong, mistakes = expected[each["student"]]
        assert each["points"] == points, each
        found = {a["name"]: a["mistake"] for a in each["answers"] if a["verdict"] == "wrong"}
        assert found.keys() == ({wrong} if wrong else set())
        assert found.get(wrong, "") in ("", *mistakes), each
        named += bool(found.get(wrong))
    assert named >= 20  # of 27; few one-digit numbers may also be wrong by chance
