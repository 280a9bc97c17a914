"""What recording a step costs while it runs, as a multiple of the bare step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from rich.table import Table

from benchmarks import steps
from benchmarks.timing import Comparison, Step, against, compare, milliseconds, table
from chainrule import record


@dataclass(frozen=True)
class Case:
    name: str
    step: Step
    rounds: int
    target: float | None = None


def tables() -> Iterator[Table]:
    made = table(
        "Recording, as a multiple of the bare step",
        "step", "bare, ms", "recorded, ms", "noise", "processor time", "ratio", "target",
    )  # fmt: skip
    for case in _cases():
        made.add_row(case.name, *_cells(compare(case.step, recorded(case.step), case.rounds), case.target))
    yield made


def recorded(step: Step) -> Step:
    """The same step inside `record()`. The recording is still there when the clock stops: letting go is not timed."""

    def run() -> Any:
        with record() as recording:
            step()
        return recording

    return run


def _cases() -> Iterator[Case]:
    mlp = "MLP 784-512-512-10, batch 64"
    yield Case(f"{mlp}, forward and backward", steps.perceptron(None), 30, 1.3)
    yield Case(f"{mlp}, with SGD", steps.perceptron(torch.optim.SGD), 30, 1.3)
    yield Case(f"{mlp}, with Adam", steps.perceptron(torch.optim.Adam), 30, 1.3)
    yield Case("chain of 1,000 tiny operations", steps.chain(1000), 30, 3)
    yield Case("worked example, with Adam", steps.worked_example(), 30)
    yield Case("GPT-2 small, 1 x 128 tokens, forward and backward", steps.transformer(), 3)


def _cells(found: Comparison, target: float | None) -> tuple[str, ...]:
    return (
        milliseconds(found.bare),
        milliseconds(found.other),
        f"{found.noise:.2f}",
        f"{found.cpu_ratio:.2f}",
        *against(found.ratio, target),
    )
