"""What a watch costs a training: whole windows of steps with and without one, the watched steps among them.

A median would show a step that is not watched, which costs nothing; so times are summed over windows that hold as many
watched steps as they should. Bare and watched steps take turns, each with a model of its own, so that slow spells of
the machine fall on both. Nothing is left out: garbage is collected whenever Python does, the thread that writes runs.

But memory that was freed stays with the process. Whether glibc gives it back to the system depends on what happens to
lie behind it, and the page faults that follow make up to a tenth of the small step, on the one side or the other.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from time import perf_counter, process_time

import torch
from rich.table import Table

import chainrule
from benchmarks.steps import SUBJECTS, Training
from benchmarks.timing import against, keep_what_is_freed, milliseconds, table

TARGETS = {50: 1.02, 1: 1.15}
STEPS = {"mlp": 500, "resnet50": 50, "gpt2-sdpa": 50}  # so many of each kind, a multiple of 50
WARM_UP = 3


def tables(counts: Mapping[str, int] | None = None, tiny: bool = False) -> Iterator[Table]:
    """One table; `counts` are the steps of each subject, by default `STEPS`."""
    made = table(
        "Watching, as a multiple of the bare training with AdamW",
        "training", "every", "bare step, ms", "noise", "processor time", "ratio", "target",
    )  # fmt: skip
    for key, steps in (STEPS if counts is None else counts).items():
        for every, target in TARGETS.items():
            build = partial(SUBJECTS[key].build, tiny=tiny)
            made.add_row(SUBJECTS[key].title, str(every), *measured(build, every, steps, target))
    yield made


def measured(build: Callable[[], Training], every: int, steps: int, target: float) -> tuple[str, ...]:
    """The cells of a row."""
    keep_what_is_freed()
    sides = {name: build().updated_by(torch.optim.AdamW) for name in ("bare", "bare again", "watched")}
    with tempfile.TemporaryDirectory() as folder:
        seen = sides["watched"]
        watch = chainrule.watch(seen.model, seen.optimizer, every=every, to=Path(folder, "run.db"))
        for _ in range(WARM_UP):
            for step in sides.values():
                step()
        wall, cpu = _turns(sides, steps)
        watch.close()
    return (
        milliseconds(wall["bare"] / steps),
        f"{wall['bare again'] / wall['bare']:.3f}",
        f"{cpu['watched'] / cpu['bare']:.3f}",
        *against(wall["watched"] / wall["bare"], target, 3),
    )


def _turns(sides: dict[str, Training], steps: int) -> tuple[dict[str, float], dict[str, float]]:
    """Seconds of wall and of processor time that all steps of each side took."""
    wall, cpu = dict.fromkeys(sides, 0.0), dict.fromkeys(sides, 0.0)
    order = list(sides)
    for _ in range(steps):
        order.append(order.pop(0))
        for name in order:
            began, worked = perf_counter(), process_time()
            sides[name]()
            wall[name] += perf_counter() - began
            cpu[name] += process_time() - worked
    return wall, cpu
