"""What comes after recording the worked example: the graph, the derivation, the checks, the report."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

from rich.table import Table

from benchmarks import steps
from benchmarks.overhead import recorded
from benchmarks.timing import against, table, timed
from chainrule.recording import Recording

STAGES: dict[str, Callable[[Recording], Any]] = {
    "graph": lambda recording: recording.graph,
    "derivation": lambda recording: recording.derivation,
    "verification": lambda recording: recording.verify(),
    "report": lambda recording: recording.document(),
}


def tables() -> Iterator[Table]:
    run = recorded(steps.worked_example())
    first, *others = (stages(run()) for _ in range(11))
    warm = {stage: median(times[stage] for times in others) for stage in STAGES}
    made = table("The worked example, seconds", "stage", "first", "warm", "target, first")
    for stage in STAGES:
        made.add_row(stage, f"{first[stage]:.3f}", f"{warm[stage]:.3f}", "")
    needed = ("graph", "derivation", "verification")
    total, target = against(sum(first[stage] for stage in needed), 0.2, 3)
    made.add_row("derived and verified", total, f"{sum(warm[stage] for stage in needed):.3f}", target)
    yield made


def stages(recording: Recording, names: tuple[str, ...] = tuple(STAGES)) -> dict[str, float]:
    """Seconds for each stage, in order; the first run in a process also pays for what it imports."""
    return {name: timed(lambda name=name: STAGES[name](recording))[0] for name in names}
