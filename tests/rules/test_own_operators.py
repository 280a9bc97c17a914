"""Rules for operators that are not PyTorch's: they explain, and they excuse nothing."""

import os
import subprocess
import sys

import pytest
import torch
from torch import nn

import chainrule
from chainrule import rules
from chainrule.rules import Kink, Wrt, elementwise, rule
from chainrule.rules.expression import argument
from chainrule.rules.formula_functions import tanh

X = argument("x")


@pytest.fixture(autouse=True)
def only_here(monkeypatch):
    rules.load()
    monkeypatch.setattr(rules, "_by_node", dict(rules._by_node))
    monkeypatch.setattr(rules, "_all", list(rules._all))


def function(factor=3.0):
    class Cube(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x**3

        @staticmethod
        def backward(ctx, upstream):
            (x,) = ctx.saved_tensors
            return factor * x**2 * upstream

    return Cube


def recorded(call, size=4):
    w = nn.Parameter(torch.linspace(0.5, 1.5, size))
    with chainrule.record(namespace={"w": w}) as recording:
        call(w).sum().backward()
    return recording


def row_of(recording):
    return next(row for row in recording.verify().rows if row.own)


def test_a_rule_explains_a_function():
    cube = function()
    elementwise(cube, equation=X**3, derivative=["x"])
    recording = recorded(cube.apply)
    row = row_of(recording)
    assert (row.verdict, row.reason) == ("agrees", "our rule, autograd and central differences agree")
    assert str(recording.why("w", 1)) == "dJ/dw[1] = dJ/dpow[1] * dpow[1]/dw[1] = 1 * 2.0833 = 2.0833"
    twin = function()  # of the same name: rules go by the class's full name
    assert row_of(recorded(twin.apply)).verdict == "agrees"


def test_a_rule_explains_a_custom_operator():
    @torch.library.custom_op("chainrule_test::limited", mutates_args=())
    def limited(x: torch.Tensor, limit: float) -> torch.Tensor:
        return limit * torch.tanh(x / limit)

    def keep(ctx, inputs, output):
        _, ctx.limit = inputs
        ctx.save_for_backward(output)

    def backward(ctx, upstream):
        (y,) = ctx.saved_tensors
        return upstream * (1 - (y / ctx.limit) ** 2), None

    limited.register_autograd(backward, setup_context=keep)
    assert row_of(recorded(lambda w: limited(w, 2.0))).reason == "its backward agrees with central differences"
    limit = argument("limit")
    elementwise("chainrule_test::limited", equation=limit * tanh(X / limit), derivative=["x"])
    recording = recorded(lambda w: limited(w, 2.0))
    assert row_of(recording).reason == "our rule, autograd and central differences agree"
    assert "2 with our rule, 2 with central differences" in " ".join(str(recording).split())


def test_a_wrong_rule_is_seen():
    cube = function()
    elementwise(cube, equation=X**3, derivative={"x": 2 * X**2})
    row = row_of(recorded(cube.apply))
    assert row.verdict == "disagrees"
    assert "our rule is wrong" in row.reason


@pytest.mark.parametrize("size", [4, pytest.param(100_000, marks=pytest.mark.slow)])
def test_a_rule_with_the_same_mistake_excuses_nothing(size):
    cube = function(2.0)
    elementwise(cube, equation=X**3, derivative={"x": 2 * X**2})
    assert row_of(recorded(cube.apply, size)).verdict == "disagrees"


def test_a_kink_everywhere_excuses_nothing():
    cube = function(2.0)
    kink = Kink(lambda op, radius: torch.ones_like(op.x, dtype=torch.bool), "said to be a corner", argument="x")
    elementwise(cube, equation=X**3, derivative=["x"], kink=kink)
    assert row_of(recorded(cube.apply)).verdict == "disagrees"


def test_agreement_with_a_rule_alone_is_no_proof():
    class Noisy(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x + 0 * os.getpid()  # it reaches out of the process, so it is not run again

        @staticmethod
        def backward(ctx, upstream):
            return 2 * upstream

    rule(Noisy, equation="$out = $x", wrt={"x": Wrt(lambda op, g: 2 * g, "2", "2 $g")})
    row = row_of(recorded(Noisy.apply))
    assert row.verdict == "not checked"
    assert row.reason.startswith("our rule and autograd agree, but ")


def test_a_function_named_like_a_node_of_pytorchs_gets_no_rule_of_it():
    class Relu(torch.autograd.Function):
        @staticmethod
        def forward(ctx, self):
            return 2 * self

        @staticmethod
        def backward(ctx, upstream):
            return 2 * upstream

    assert row_of(recorded(Relu.apply)).reason == "its backward agrees with central differences"


BROKEN = """
import warnings
import torch, chainrule
assert "broken" not in __import__("sys").modules
w = torch.nn.Parameter(torch.ones(3))
state = torch.get_rng_state()
with chainrule.record() as recording:
    w.exp().sum().backward()
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    print(recording.verify().verdict, recording.findings())
    recording.save("step.md")
print(torch.equal(state, torch.get_rng_state()))
for each in said:
    print(each.message)
try:
    chainrule.callbacks.Broken
except chainrule.ChainruleError as error:
    print(error)
"""


def test_a_broken_plugin_is_named_and_breaks_nothing(tmp_path, monkeypatch):
    (tmp_path / "broken.py").write_text("import torch\ntorch.rand(3)\nraise OSError('no such library')\n")
    (tmp_path / "failing.py").write_text(
        "from chainrule.diagnostics import Check\n"
        "CHECK = Check('fails', 'It fails', 'note', what='', why='', advice='')\n"
        "@CHECK.in_step\ndef look(context):\n    yield from 1 / 0\n"
    )
    info = tmp_path / "broken_plugin-1.5.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken-plugin\nVersion: 1.5\n")
    (info / "entry_points.txt").write_text(
        "[chainrule.rules]\nmine = broken\n[chainrule.findings]\nmine = broken\nother = failing\n"
        "[chainrule.views]\nmine = broken\nno_view = failing\n[chainrule.callbacks]\nBroken = broken\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", ":".join(sys.path))
    done = subprocess.run([sys.executable, "-c", BROKEN], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("agrees ()\nTrue\n")
    for group in ("rules", "findings", "views"):
        assert (
            f"the plug-in 'mine' of broken-plugin 1.5 (chainrule.{group}: broken) is left out: OSError: no such library"
        ) in done.stdout
    assert "'no_view' of broken-plugin 1.5 (chainrule.views: failing) is left out: a view states" in done.stdout
    assert "the finding 'fails' of the plug-in module failing failed and is left out" in done.stdout
    assert "the plug-in 'Broken' of broken-plugin 1.5 (chainrule.callbacks: broken) cannot be loaded" in done.stdout


def test_code_of_ones_own_does_not_run_for_the_loss_after_the_step():
    @torch.library.custom_op("chainrule_test::doubled", mutates_args=())
    def doubled(x: torch.Tensor) -> torch.Tensor:
        return x * 2

    doubled.register_autograd(lambda ctx, upstream: upstream * 2)
    for call, known in ((torch.square, True), (doubled, False), (function().apply, False)):
        w = torch.ones(3, requires_grad=True)
        optimizer = torch.optim.SGD([w], lr=0.1)
        with chainrule.record() as recording:
            call(w).sum().backward()
            optimizer.step()
        assert ("after the step, on the same data" in str(recording)) == known
