"""What the file of a long run comes to: 100,000 watched steps of 150 parameters, its size, and how long it takes.

Each parameter has five series (itself, its gradient, its update and both moments of Adam), whose figures wander as
those of a real training do.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter, process_time

import numpy as np
from rich.table import Table

from benchmarks.timing import against, table
from chainrule import runs
from chainrule.graph.history import Kind, StepFacts
from chainrule.graph.statistics import Statistics

STEPS, PARAMETERS = 100_000, 150
KINDS: tuple[tuple[Kind, str], ...] = (
    ("parameter", ""),
    ("parameter gradient", ""),
    ("update", ""),
    ("moment", "/exp_avg"),
    ("moment", "/exp_avg_sq"),
)
AHEAD = 2000  # steps that may wait for the writer, before it is waited for


def tables(steps: int = STEPS, parameters: int = PARAMETERS) -> Iterator[Table]:
    """One table, of a run of so many steps and parameters."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "run.db")
        start, cpu = perf_counter(), process_time()
        write(path, steps, parameters)
        wall, cpu = perf_counter() - start, process_time() - cpu
        made = table(
            f"A run of {steps:,} steps x {parameters} parameters x {len(KINDS)} series", "what", "measured", "target"
        )
        made.add_row("size, GB", *against(path.stat().st_size / 1e9, 2))
        made.add_row("written in, seconds (making up the numbers included)", *against(wall, None))
        made.add_row("processor time a step, ms", *against(1e3 * cpu / steps, None))
        for what, ask in (
            ("losses, seconds", _losses),
            ("one kind's norms, seconds", _norms),
            ("page, seconds", _page),
        ):
            start = perf_counter()
            ask(path)
            made.add_row(what, *against(perf_counter() - start, 5 if ask is _page else None))
        yield made


def write(path: Path, steps: int, parameters: int) -> None:
    """A run of made-up numbers."""
    writer = runs.Writer(path, every=1)
    random = np.random.default_rng(0)
    sizes = np.exp(random.normal(0, 2, (len(KINDS), parameters)))
    elements = random.integers(64, 2_000_000, parameters).tolist()
    for step in range(1, steps + 1):
        sizes *= np.exp(random.normal(0, 0.02, sizes.shape))
        noisy = (sizes * np.exp(random.normal(0, 0.2, (5, *sizes.shape)))).tolist()
        figures = [
            runs.Figure(
                kind, f"layer{place}.weight{suffix}", place, "Linear", "float32", _statistics(noisy, row, place, n)
            )
            for row, (kind, suffix) in enumerate(KINDS)
            for place, n in enumerate(elements)
        ]
        writer.add(StepFacts(step, float(step), 2 / step**0.1 + 0.1 * random.random(), (1e-3,)), figures)
        if step % AHEAD == 0:
            writer.flush(600)
    writer.close()


def _statistics(noisy: list[list[list[float]]], row: int, place: int, elements: int) -> Statistics:
    norm, mean, std, low, high = (noisy[figure][row][place] for figure in range(5))
    return Statistics(elements, norm, mean / 100, std, -low, high, 0, 0)


def _losses(path: Path) -> None:
    with runs.open(path) as run:
        run.losses()


def _norms(path: Path) -> None:
    with runs.open(path) as run:
        run.table("parameter gradient", "norm")


def _page(path: Path) -> None:
    from chainrule.monitor import run_page

    with runs.open(path) as run:
        run_page.render(run)
