"""Whether a node costs the same in a long step as in a short one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from rich.table import Table

import chainrule
from benchmarks import steps
from benchmarks.overhead import recorded
from benchmarks.timing import against, table, timed
from chainrule.recording import Recording

LENGTHS = {1_000: 5, 10_000: 3, 100_000: 1}  # operations -> rounds
ALIKE = 1.3  # the dearest length over the cheapest
STAGES = ("record", "graph", "derivation", "save", "load")


def tables() -> Iterator[Table]:
    _round(steps.chain(min(LENGTHS)))  # what is imported on first use
    found = [per_node(steps.chain(length), rounds) for length, rounds in LENGTHS.items()]
    lengths = (f"{length:,} operations" for length in LENGTHS)
    made = table("A node of a chain, microseconds", "stage", *lengths, "dearest over cheapest", "target")
    for stage in STAGES:
        figures = [each[stage] for each in found]
        made.add_row(stage, *(f"{each:,.1f}" for each in figures), *against(max(figures) / min(figures), ALIKE))
    yield made


def per_node(step: steps.Training, rounds: int) -> dict[str, float]:
    """Microseconds a node for each stage, medians over the rounds. `record` holds the step itself as well."""
    measured = [_round(step) for _ in range(rounds)]
    return {stage: median(each[stage] for each in measured) for stage in STAGES}


def _round(step: steps.Training) -> dict[str, float]:
    """Microseconds a node for each stage, one after the other on one recording."""
    made: list[Recording] = []
    run = recorded(step)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "step.safetensors"
        stages: dict[str, Callable[[], Any]] = {
            "record": lambda: made.append(run()),
            "graph": lambda: made[0].graph,
            "derivation": lambda: made[0].derivation,
            "save": lambda: made[0].save(path),
            "load": lambda: chainrule.load(path),
        }
        seconds = {stage: timed(run_stage)[0] for stage, run_stage in stages.items()}
    return {stage: taken / len(made[0].nodes) * 1e6 for stage, taken in seconds.items()}
