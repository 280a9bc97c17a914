"""An error of ours ends the recording, never the training, wherever it is raised; an interrupt reaches the user."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import chainrule
from tests.reliability import injection
from tests.reliability.injection import STEPS, InjectedError, Step


class Recorded:
    """Records each step of a training, and reads what was recorded, if it is to."""

    def __init__(self, read: bool = False, **options: Any) -> None:
        self.read, self.options = read, options
        self.unreadable: list[str] = []

    def __call__(self, model: nn.Module, optimizer: torch.optim.Optimizer, step: Step) -> list[Tensor]:
        losses = []
        self.unreadable = []
        for number in range(STEPS):
            with chainrule.record(**self.options) as recording:
                losses.append(step(number))
            try:
                if self.read:
                    assert recording.graph
            except Exception as error:  # the training goes on
                self.unreadable.append(f"{type(error).__name__}: {error}")
        return losses


OBSERVERS = {
    "all": Recorded(keep="all", read=True),
    "statistics": Recorded(keep="statistics"),
    "chosen": Recorded(keep=["block*"], memory=2**20, read=True),
}
PACKAGES = ("chainrule.capture",)


@pytest.fixture(scope="module")
def expected():
    return injection.train(injection.bare)


@pytest.mark.parametrize("name", OBSERVERS)
@pytest.mark.parametrize("interrupted", [False, True])
def test_every_function_may_fail(name, interrupted, expected):
    observe = OBSERVERS[name]
    census = injection.take_census(observe, lines=False)
    problems, tried = {}, 0
    for place, called in census.ours(PACKAGES).items():
        for time in sorted({1, max(census.entered[place] // 2, 1)}):
            tried += 1
            error = KeyboardInterrupt() if interrupted else InjectedError("injected")
            trial = injection.attempt(observe, injection.at_entry(place, time, error), expected)
            if found := trial.problems(interrupted):
                problems[f"{called}, call {time} of {census.entered[place]}"] = found
    for where, found in problems.items():
        print(where, *found[:4], sep="\n    ")
    print(tried, "tried", len(problems), "not survived")
    assert not problems


@pytest.mark.slow
@pytest.mark.parametrize("name", OBSERVERS)
def test_an_interrupt_at_any_line(name, expected):
    observe = OBSERVERS[name]
    lines = injection.take_census(observe).lines
    problems, draw = {}, random.Random(0)
    for moment in sorted(draw.randrange(1, lines + 1) for _ in range(500)):
        trial = injection.attempt(observe, injection.at_line(moment, KeyboardInterrupt()), expected)
        if found := trial.problems(interrupted=True):
            problems[moment] = found
    for where, found in problems.items():
        print(where, *found[:4], sep="\n    ")
    assert not problems
