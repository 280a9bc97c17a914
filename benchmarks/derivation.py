"""What comes after recording: the graph, the derivation, the checks, the telling."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

from rich.table import Table

from benchmarks import steps
from benchmarks.overhead import recorded
from benchmarks.timing import Step, against, milliseconds, table, timed
from chainrule.recording import Recording

STAGES: dict[str, Callable[[Recording], Any]] = {
    "graph": lambda recording: recording.graph,
    "derivation": lambda recording: recording.derivation,
    "verification": lambda recording: recording.verify(),
    "telling": lambda recording: recording.document(),
}


def tables() -> Iterator[Table]:
    yield _worked_example()
    yield _per_node()
    yield _large()


def _worked_example() -> Table:
    run = recorded(steps.worked_example())
    first, *others = (_stages(run()) for _ in range(11))
    warm = {stage: median(times[stage] for times in others) for stage in STAGES}
    made = table("The worked example, seconds", "stage", "first", "warm", "target, first")
    for stage in STAGES:
        made.add_row(stage, f"{first[stage]:.3f}", f"{warm[stage]:.3f}", "")
    needed = ("graph", "derivation", "verification")
    total, target = against(sum(first[stage] for stage in needed), 0.2, 3)
    made.add_row("derived and verified", total, f"{sum(warm[stage] for stage in needed):.3f}", target)
    return made


def _stages(recording: Recording, names: tuple[str, ...] = tuple(STAGES)) -> dict[str, float]:
    """Seconds for each stage, in order; the first run in a process also pays for what it imports."""
    return {name: timed(lambda name=name: STAGES[name](recording))[0] for name in names}


def _per_node() -> Table:
    """The cost of a node must not grow with the number of nodes."""
    stages = ("graph", "derivation")
    made = table("A node, microseconds", "chain", "nodes", *stages)
    for length in (100, 1000, 4000):
        nodes, times = _chain(recorded(steps.chain(length)), stages)
        made.add_row(
            f"{length:,} operations", f"{nodes:,}", *(milliseconds(times[stage] / nodes * 1e3) for stage in stages)
        )
    return made


def _large() -> Table:
    """GPT-2 small, 1 x 128 tokens: each stage as a multiple of the bare step; every node must agree."""
    step = steps.transformer()
    step()
    bare = median(timed(step)[0] for _ in range(3))
    recording = recorded(step)()
    times = _stages(recording, ("graph", "derivation", "verification"))
    proof = recording.verify()
    made = table("GPT-2 small, seconds", "stage", "seconds", "of the bare step", "target")
    made.add_row("bare step", f"{bare:.2f}", "1", "")
    for stage, seconds in times.items():
        ratio, target = against(seconds / bare, 10, 1) if stage == "verification" else (f"{seconds / bare:.1f}", "")
        made.add_row(stage, f"{seconds:.2f}", ratio, target)
    outcome = "all agree" if proof.passed else "some disagree"
    made.add_row(f"{len(proof.rows)} nodes, {outcome}", "", "", "")
    return made


def _chain(run: Step, stages: tuple[str, ...]) -> tuple[int, dict[str, float]]:
    recording = run()
    return len(recording.nodes), _stages(run(), stages)
