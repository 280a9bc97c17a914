"""What it costs to derive a large step and to prove each of its nodes, as a multiple of the bare step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median

from rich.table import Table

from benchmarks import steps
from benchmarks.derivation import stages
from benchmarks.overhead import recorded
from benchmarks.steps import SUBJECTS
from benchmarks.timing import Step, against, table, timed

ROUNDS = 3
TARGETS = {"derivation": 1.0, "verification": 6.0}  # seconds; multiples of the bare step
LARGE = ("gpt2-eager", "gpt2-sdpa", "decoder")


@dataclass(frozen=True)
class Proof:
    """Medians over the rounds, in seconds; ratios are taken within a round."""

    bare: float
    seconds: dict[str, float]
    ratios: dict[str, float]
    nodes: int
    agrees: bool


def tables() -> Iterator[Table]:
    recorded(steps.mlp(tiny=True))().verify()  # the modules of the rules are read once in a process
    for key in LARGE:
        found = prove(SUBJECTS[key].build())
        outcome = "all agree" if found.agrees else "some disagree"
        title = f"{SUBJECTS[key].title}: {found.nodes:,} nodes, {outcome}"
        made = table(title, "stage", "seconds", "target", "of the bare step", "target")
        made.add_row("bare step", f"{found.bare:.2f}", "", "1.00", "")
        for stage, seconds in found.seconds.items():
            in_seconds = TARGETS["derivation"] if stage == "derivation" else None
            in_steps = TARGETS["verification"] if stage == "verification" else None
            made.add_row(stage, *against(seconds, in_seconds), *against(found.ratios[stage], in_steps))
        yield made


def prove(step: Step, rounds: int = ROUNDS) -> Proof:
    """Each round runs the bare step, records it anew, and derives and verifies what it recorded."""
    run = recorded(step)
    step()
    bare, times = [], []
    for _ in range(rounds):
        bare.append(timed(step)[0])
        recording = run()
        times.append(stages(recording, ("graph", "derivation", "verification")))
    names = tuple(times[0])
    return Proof(
        median(bare),
        {name: median(each[name] for each in times) for name in names},
        {name: median(each[name] / under for each, under in zip(times, bare, strict=True)) for name in names},
        len(recording.nodes),
        recording.verify().passed,
    )
