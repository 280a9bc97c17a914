"""Whether recording leaks: the slope of resident memory over many recorded steps."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path
from statistics import linear_regression

from rich.table import Table

from benchmarks import steps
from benchmarks.overhead import recorded
from benchmarks.timing import Step, table

STEPS, WARM_UP, EVERY = 1000, 200, 20
STATM = Path("/proc/self/statm")


def tables() -> Iterator[Table]:
    made = table(
        f"Resident memory over {STEPS:,} steps of the worked example", "step", "slope, kB a step", "growth, kB"
    )
    if not STATM.exists():
        made.add_row("not measured: this system has no /proc", "", "")
        yield made
        return
    step = steps.worked_example()
    run = recorded(step)
    cases = {"bare": step, "recorded": run, "recorded, its graph read": lambda: run().graph}
    for name, each in cases.items():
        slope, growth = resident_slope(each)
        made.add_row(name, f"{slope:+.3f}", f"{growth:+,.0f}")
    yield made


def resident_slope(step: Step) -> tuple[float, float]:
    """(kB a step by least squares, kB from first to last) after a warm-up in which the allocator finds its size."""
    for _ in range(WARM_UP):
        step()
    counts, sizes = [], []
    for count in range(STEPS + 1):
        if count % EVERY == 0:
            gc.collect()
            counts.append(count)
            sizes.append(_resident())
        step()
    return linear_regression(counts, sizes).slope, sizes[-1] - sizes[0]


def _resident() -> float:
    """Kilobytes of this process that are in memory."""
    return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e3
