"""A child that the training forks ends as without a watch or a recording: it says nothing, waits for nobody."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import chainrule
from chainrule import runs

SCRIPT = """
import atexit, os, sys
import torch

torch.manual_seed(0)
model, x = torch.nn.Linear(3, 1), torch.randn(8, 3)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)


def step(loss):
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()


for i in range(4):
    loss = model(x).square().mean()
    if i == int(sys.argv[1]):
        if child := os.fork():
            assert os.waitpid(child, 0)[1] == 0x300
        else:
            atexit.register(print, "the child ends")
            for _ in range(5):
                step(model(x).square().mean())
            print("the child has trained", model.weight.sum().item(), file=sys.stderr)
            sys.exit(3)
    step(loss)
print("the end", model.weight.sum().item(), file=sys.stderr)
"""


def ran(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    command = (sys.executable, *command)
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=500, check=True)


@pytest.mark.parametrize("forked", [pytest.param("0", marks=pytest.mark.slow), "2"])
def test_a_child_of_a_script(tmp_path: Path, forked: str) -> None:
    (tmp_path / "train.py").write_text(SCRIPT)
    bare = ran(tmp_path, "train.py", forked)
    assert bare.stdout == "the child ends\n"
    run = ran(tmp_path, "-m", "chainrule", "run", "train.py", "--step", "3", "-o", "step.safetensors", "--", forked)
    assert run.stdout == bare.stdout
    assert run.stderr == f"{bare.stderr}chainrule: the step is written to {tmp_path / 'step.safetensors'}\n"
    watch = ran(
        tmp_path, "-m", "chainrule", "watch", "train.py", "--every", "1", "--plain", "--to", "run.db", "--", forked
    )
    assert watch.stdout == bare.stdout
    assert watch.stderr.count("steps were watched") == 1
    said = [line for line in watch.stderr.splitlines() if not line.startswith("chainrule:")]
    assert said == bare.stderr.splitlines()
    with runs.open(tmp_path / "run.db") as stored:
        assert [step.step for step in stored.steps()] == [1, 2, 3, 4]


def in_a_child(work: Callable[[], Any]) -> str:
    """What work raises in a forked child, and whether it is slow."""
    ours, theirs = os.pipe()
    child = os.fork()
    if not child:
        began, said = time.monotonic(), ""
        try:
            work()
        except BaseException as error:
            said = repr(error)
        os.write(theirs, f"{said} {'slow' if time.monotonic() - began > 25 else ''}".strip().encode() or b"nothing")
        os._exit(0)
    os.close(theirs)
    with open(ours) as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    return said


def test_a_child_that_leaves_the_block(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def step() -> None:
        model(torch.ones(2, 3)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    with chainrule.watch(model, optimizer, to=tmp_path / "run.db") as watch:
        step()

        def leave() -> None:
            with watch:
                step()
                step()

        assert in_a_child(leave) == "nothing"
        step()
    assert watch.watched == 2
    with runs.open(tmp_path / "run.db") as stored:
        assert [each.step for each in stored.steps()] == [1, 2]
        assert stored.status == "ended"
    assert capfd.readouterr().err == ""
