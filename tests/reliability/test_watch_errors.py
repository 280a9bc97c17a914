"""An error of ours ends the watch, never the training, wherever it is raised; an interrupt reaches the user."""

from __future__ import annotations

import random
from pathlib import Path
from types import CodeType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import chainrule
from tests.reliability import injection
from tests.reliability.injection import STEPS, InjectedError, Step

OUTERMOST = (  # nothing of ours is around them
    "__init__", "__enter__", "__exit__", "watch.close", "watch._guard", "Boundaries._at_forward",
    "_uncompiled.<locals>.<lambda>", "_uncompiled.<locals>.called",
)  # fmt: skip
PACKAGES = ("chainrule.monitor", "chainrule.diagnostics", "chainrule.report")


class Watched:
    """Watches a training, with a file of its own for each."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.folder, self.options, self.count = folder, options, 0

    def __call__(self, model: nn.Module, optimizer: torch.optim.Optimizer, step: Step) -> list[Tensor]:
        self.count += 1
        with chainrule.watch(model, optimizer, to=self.folder / f"{self.count}.db", **self.options):
            return [step(number) for number in range(STEPS)]


OPTIONS = {"full": {"every": 1, "full_every": 1, "on_finding": True}, "statistics": {"every": 2}}


@pytest.fixture(scope="module")
def expected():
    return injection.train(injection.bare)


def tried(observe, trace, expected, interrupted, where, problems):
    trial = injection.attempt(observe, trace, expected)
    if found := trial.problems(interrupted):
        problems[where] = found
    return trial


def report(problems):
    return "\n".join(f"{where}:\n    " + "\n    ".join(found[:4]) for where, found in problems.items())


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("interrupted", [False, True])
@pytest.mark.parametrize("share", [0.01, pytest.param(1, marks=pytest.mark.slow)])
def test_every_function_may_fail(tmp_path, name, interrupted, share, expected):
    observe = Watched(tmp_path, **OPTIONS[name])
    census = injection.take_census(observe, lines=False)
    ours = sorted(census.ours(PACKAGES).items(), key=lambda item: item[1])
    functions = [(place, called) for place, called in ours if not f"{called}".partition(":")[2].endswith(OUTERMOST)]
    problems = {}
    for place, called in random.Random(0).sample(functions, round(share * len(functions))):
        for time in sorted({1, max(census.entered[place] // 2, 1)}):
            error = KeyboardInterrupt if interrupted else InjectedError
            where = f"{called}, call {time} of {census.entered[place]}"
            trial = tried(observe, injection.at_entry(place, time, error), expected, interrupted, where, problems)
            if len(trial.warned) > 1:
                problems.setdefault(where, []).append(f"warned more than once: {trial.warned}")
    assert not problems, report(problems)


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIONS)
def test_an_interrupt_at_any_line(tmp_path, name, expected):
    problems = injection.interrupted(Watched(tmp_path, **OPTIONS[name]), 500, expected)
    assert not problems, report(problems)


@pytest.mark.slow
@pytest.mark.sweep
@pytest.mark.parametrize("name", OPTIONS)
def test_an_interrupt_at_every_line(tmp_path, name, expected):
    problems = injection.interrupted_everywhere(Watched(tmp_path, **OPTIONS[name]), expected)
    for bound in (chainrule.watch.__enter__, chainrule.watch.__exit__):  # nothing of ours is around their first line
        problems.pop(f"monitor/watcher.py:{first_line(bound.__code__)}, time 1")
    assert not problems, report(problems)


def first_line(code: CodeType) -> int:
    """The first line of the body."""
    return min(line for _, _, line in code.co_lines() if line is not None and line > code.co_firstlineno)
