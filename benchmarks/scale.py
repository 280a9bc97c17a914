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

LENGTHS = (1_000, 10_000, 100_000)
ROUNDS = 3
ALIKE = 1.3  # the dearest length over the cheapest
STAGES = ("record", "graph", "derivation", "save", "load")


def tables() -> Iterator[Table]:
    _round(steps.chain(LENGTHS[0]))  # what is imported on first use
    made = table("A node, microseconds", "chain", "nodes", *STAGES)
    found = {length: per_node(steps.chain(length)) for length in LENGTHS}
    for length, (nodes, times) in found.items():
        made.add_row(f"{length:,} operations", f"{nodes:,}", *(f"{times[stage]:,.1f}" for stage in STAGES))
    spread = {stage: _spread([times[stage] for _, times in found.values()]) for stage in STAGES}
    made.add_row(f"dearest over cheapest (target {ALIKE})", "", *(" ".join(against(*spread[s], 2)) for s in STAGES))
    yield made


def per_node(step: steps.Training, rounds: int = ROUNDS) -> tuple[int, dict[str, float]]:
    """(nodes, microseconds a node for each stage): medians of some rounds. The bare step's time is not taken off."""
    measured = [_round(step) for _ in range(rounds)]
    nodes = measured[0][0]
    return nodes, {stage: median(times[stage] for _, times in measured) / nodes * 1e6 for stage in STAGES}


def _round(step: steps.Training) -> tuple[int, dict[str, float]]:
    """Seconds of each stage, one after the other on one recording."""
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
        times = {stage: timed(run_stage)[0] for stage, run_stage in stages.items()}
    return len(made[0].nodes), times


def _spread(figures: list[float]) -> tuple[float, float]:
    return max(figures) / min(figures), ALIKE
