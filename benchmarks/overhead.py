"""What recording a step costs while it runs, as a multiple of the bare step, for each measure of what is kept."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from rich.table import Table

from benchmarks import steps
from benchmarks.steps import SUBJECTS
from benchmarks.timing import HEADINGS, Step, compare, keep_what_is_freed, table
from chainrule import record

KEEPS = ("all", "statistics")
TARGETS = {
    "mlp": {"all": 1.2, "statistics": 1.35},
    "resnet50": {"all": 1.05, "statistics": 1.1},
    "gpt2-eager": {"all": 1.05, "statistics": 1.1},
    "gpt2-sdpa": {"all": 1.05, "statistics": 1.1},
    "decoder": {"all": 1.05, "statistics": 1.1},
    "chain": {"all": 2.5, "statistics": 4.0},
}


@dataclass(frozen=True)
class Case:
    title: str
    step: Step
    targets: dict[str, float] = field(default_factory=dict)


def tables() -> Iterator[Table]:
    made = table("Recording, as a multiple of the bare step", "step", "keep", *HEADINGS)
    for case in _cases():
        found = compare(case.step, {keep: recorded(case.step, keep) for keep in KEEPS})
        for keep, comparison in found.items():
            made.add_row(case.title, keep, *comparison.cells(case.targets.get(keep)))
    yield made


def recorded(step: Step, keep: str = "all") -> Step:
    """The same step inside `record()`. The recording is still there when the clock stops: letting go is not timed."""

    def run() -> Any:
        with record(keep=keep) as recording:
            step()
        return recording

    return run


def _cases() -> Iterator[Case]:
    """One after the other, so that a large model is freed before the next is built."""
    for key, subject in SUBJECTS.items():
        yield Case(subject.title, subject.build(), TARGETS[key])
        if key == "mlp":  # the update is a large part of a step only where the batch is small
            for kind in (torch.optim.SGD, torch.optim.Adam):
                yield Case(f"the same, with {kind.__name__}", subject.build().updated_by(kind), TARGETS[key])
    yield Case("worked example, with Adam", steps.worked_example())
    keep_what_is_freed()  # which cannot be undone, so these come last
    for key in ("resnet50", "gpt2-eager", "gpt2-sdpa"):
        yield Case(f"{SUBJECTS[key].title}; freed memory kept", SUBJECTS[key].build(), TARGETS[key])
