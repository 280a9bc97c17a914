"""No training of the matrix is harmed; and the matrix sees harm where there is some."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.reliability.matrix import difference, prints_of
from tests.reliability.trainings import TRAININGS

ROOT = Path(__file__).parents[2]
EVERY_SO_MANY = 80  # of the trainings are in the fast suite


def run_matrix(names: list[str]) -> subprocess.CompletedProcess[str]:
    """In a process without threads: PyTorch's do not survive the forks in which the trainings run."""
    command = [sys.executable, "-m", "tests.reliability", *(f"={name}=" for name in names)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=3000, check=False)


def test_a_part_of_the_matrix() -> None:
    ended = run_matrix(list(TRAININGS)[13::EVERY_SO_MANY])
    assert ended.returncode == 0, ended.stdout + ended.stderr[-2000:]


@pytest.mark.slow
def test_the_whole_matrix() -> None:
    assert len(TRAININGS) >= 150
    ended = run_matrix(list(TRAININGS))
    assert ended.returncode == 0, ended.stdout + ended.stderr[-2000:]


def forget_a_hook() -> None:
    torch.nn.modules.module.register_module_forward_hook(lambda module, args, out: None)


def draw_a_number() -> None:
    random.random()


def leave_a_mode_on() -> None:
    torch.device("cpu").__enter__()


HARM: dict[str, Callable[[], Any]] = {
    "hooks": forget_a_hook,
    "random": draw_a_number,
    "modes": leave_a_mode_on,
    "grad": lambda: torch.set_grad_enabled(False),
    "defaults": lambda: torch.set_default_dtype(torch.float64),
}


def test_harm_to_the_process_is_seen() -> None:
    script = (
        "from tests.reliability.matrix import difference, world; from tests.reliability.test_matrix import HARM\n"
        "for harm in HARM.values():\n    before = world(); harm(); print(difference(before, world()))"
    )
    ended = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    for place, seen in zip(HARM, ended.stdout.splitlines(), strict=True):
        assert f"world: {place}: " in seen


def test_harm_to_a_training_is_seen() -> None:
    def state(change: Callable[[nn.Module, Any], Any]) -> dict[str, str]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
        optimizer = torch.optim.Adam(model.parameters())
        model(torch.ones(3, 2)).sum().backward()
        optimizer.step()
        change(model, optimizer)
        return dict(prints_of((model, optimizer)))

    alone = state(lambda model, optimizer: None)
    changes: dict[str, Callable[[nn.Module, Any], Any]] = {
        "a last place": lambda model, optimizer: model[0].weight.data.copy_(
            model[0].weight.data.nextafter(torch.tensor(9.0))
        ),
        "a gradient": lambda model, optimizer: model[0].weight.grad.add_(1),
        "a buffer": lambda model, optimizer: model[1].running_mean.add_(1),
        "evaluation": lambda model, optimizer: model.eval(),
        "a hook": lambda model, optimizer: model[0].register_forward_hook(print),
        "a moment": lambda model, optimizer: optimizer.state[model[0].weight]["exp_avg"].add_(1),
        "a rate": lambda model, optimizer: optimizer.param_groups[0].update(lr=0.5),
        "an attribute": lambda model, optimizer: setattr(model[0], "note", "written"),
    }
    assert not difference(alone, state(lambda model, optimizer: None))
    for what, change in changes.items():
        assert difference(alone, state(change)), what
