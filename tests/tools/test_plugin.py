"""The pytest plug-in, in a pytest of its own: what it verifies, and that it does not touch other tests."""

import os
import re
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path
from textwrap import dedent

import pytest

ROOT = Path(__file__).parents[2]
PLUGIN = "chainrule.tools.pytest_plugin"
SQUARE = """
    import pytest, torch

    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x * x

        @staticmethod
        def backward(ctx, upstream):
            return FACTOR * ctx.saved_tensors[0] * upstream

    @pytest.fixture
    def x():
        return torch.tensor([1.0, 2.0], requires_grad=True)
"""
TESTS = """
    import unittest

    def test_wrong(x):
        Square.apply(x).sum().backward()

    def test_second_pass(x):
        (x * x).sum().backward()
        Square.apply(x).sum().backward()

    @pytest.mark.xfail(strict=True)
    def test_known(x):
        Square.apply(x).sum().backward()

    class TestUnit(unittest.TestCase):
        def test_unit(self):
            Square.apply(torch.ones(2, requires_grad=True)).sum().backward()

    def test_right(x):
        (x * x).sum().backward()
        assert x.grad.tolist() == [2, 4]

    def test_training():
        model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
        optimizer = torch.optim.Adam(model.parameters())
        for _ in range(8):
            optimizer.zero_grad()
            model(torch.randn(6, 3)).square().mean().backward()
            optimizer.step()

    def test_hook(x):
        doubled = x * 2
        doubled.register_hook(lambda gradient: 3 * gradient)
        doubled.sum().backward()

    def test_no_backward():
        assert True

    def test_skipped(x):
        pytest.skip("no")

    def test_raises(x):
        loss = (x * x).sum()
        loss.backward()
        with pytest.raises(RuntimeError, match="second time"):
            loss.backward()

    def test_itself(x):
        import chainrule
        with chainrule.record():
            (x * x).sum().backward()

    @pytest.mark.chainrule_skip
    def test_marked(x):
        import chainrule
        with chainrule.record():
            Square.apply(x).sum().backward()
"""
FIXTURE = """
    @pytest.fixture
    def after(chainrule_step, x):
        return Square.apply(x)

    def test_step(chainrule_step, x):
        y = x * x
        y.sum().backward()
        assert chainrule_step.verify().passed
        assert chainrule_step.recording["y"].data.tolist() == [1, 4]
        assert not chainrule_step.findings("warning")

    def test_body_alone(chainrule_step, after, x):
        (x * x).sum().backward()
        assert len(chainrule_step.recording.nodes) == 3

    def test_wrong_step(chainrule_step, x):
        Square.apply(x).sum().backward()
        assert chainrule_step.verify().passed
"""


@pytest.fixture
def run(tmp_path):
    """Run tests in a pytest that has the plug-in and no other; gives its outcome, a line for each test first."""

    def run(text, *options):
        (tmp_path / "test_it.py").write_text(dedent(text))
        line = [
            sys.executable,
            "-m",
            "pytest",
            "-p",
            PLUGIN,
            "-v",
            "--strict-markers",
            *options,
        ]
        environment = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "COLUMNS": "200"}
        return subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300).stdout

    return run


def outcomes(printed):
    lines = [line.split() for line in printed.splitlines() if line.startswith("test_it.py::")]
    return {words[0].rpartition("::")[2]: words[1] for words in lines if len(words) > 1}


@pytest.mark.slow
def test_every_backward_pass_is_verified(run):
    printed = run(SQUARE.replace("FACTOR", "2.01") + TESTS, "--chainrule-verify")
    assert outcomes(printed) == {
        "test_wrong": "FAILED", "test_second_pass": "FAILED", "test_known": "XFAIL", "test_unit": "FAILED",
        "test_right": "PASSED", "test_training": "PASSED", "test_hook": "PASSED", "test_no_backward": "PASSED",
        "test_skipped": "SKIPPED", "test_raises": "PASSED", "test_itself": "FAILED", "test_marked": "PASSED",
    }  # fmt: skip
    assert (
        "error: SquareBackward: the gradient of `x` is not the derivative that differences measure (test_it.py:"
        in printed
    )
    assert "x[1]: autograd 4.02, measured 4" in printed
    assert "1 tests with something not checked:\n  test_it.py::test_hook: warning: MulBackward0: a hook" in printed
    assert "more of the same lines left out (--chainrule-alike)" in printed
    assert "mark it: @pytest.mark.chainrule_skip." in printed


@pytest.mark.slow
def test_the_fixture_hands_out_the_step(run):
    page = (ROOT / "docs" / "tools.md").read_text(encoding="utf-8")
    example = re.search(r"```python\n(.*?)```", page, re.DOTALL)[1].replace("test_step", "test_example")
    printed = run(dedent(SQUARE.replace("FACTOR", "3") + FIXTURE) + example)
    assert outcomes(printed) == {
        "test_step": "PASSED", "test_body_alone": "PASSED", "test_wrong_step": "FAILED", "test_example": "PASSED",
    }  # fmt: skip
    assert "x[0]: autograd 3, measured 2" in printed


def test_a_test_that_uses_nothing_of_it_is_not_touched(run):
    assert outcomes(run("""
        import sys

        def test_nothing():
            assert "torch" not in sys.modules and "chainrule.recording" not in sys.modules
    """)) == {"test_nothing": "PASSED"}  # fmt: skip


def test_pytest_finds_it():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert import_module(project["entry-points"]["pytest11"]["chainrule"]).chainrule_step
