"""How everything here is timed: interleaved in one process, garbage collected first, medians."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from itertools import permutations
from statistics import median
from time import perf_counter, process_time
from typing import Any

from rich.table import Table

Step = Callable[[], Any]


@dataclass(frozen=True)
class Comparison:
    """Medians over all rounds, of wall time unless the name says otherwise.

    `noise` is the bare step over itself: what a ratio of two equal things comes to on this machine, at this moment.
    """

    bare: float
    other: float
    ratio: float
    cpu_ratio: float
    noise: float


def timed(step: Step) -> tuple[float, float]:
    """Seconds of wall time and of processor time that one call takes. What it returns is let go of afterwards."""
    gc.collect()  # or one side pays for the objects that the other left behind
    cpu, wall = process_time(), perf_counter()
    result = step()
    wall, cpu = perf_counter() - wall, process_time() - cpu
    del result
    return wall, cpu


def compare(bare: Step, other: Step, rounds: int, warm_up: int = 2) -> Comparison:
    """Time `bare`, `bare` again and `other` in every round, in an order that changes from round to round."""
    for _ in range(warm_up):
        bare(), other()
    sides = {"bare": bare, "again": bare, "other": other}
    orders = list(permutations(sides))
    times: dict[str, list[tuple[float, float]]] = {side: [] for side in sides}
    for number in range(rounds):
        for side in orders[number % len(orders)]:
            times[side].append(timed(sides[side]))
    wall = {side: [each[0] for each in measured] for side, measured in times.items()}
    cpu = {side: [each[1] for each in measured] for side, measured in times.items()}
    return Comparison(
        median(wall["bare"] + wall["again"]),
        median(wall["other"]),
        _ratio(wall["other"], wall["bare"]),
        _ratio(cpu["other"], cpu["bare"]),
        _ratio(wall["again"], wall["bare"]),
    )


def once(step: Step, rounds: int = 5) -> float:
    """Median wall time of a call, in seconds."""
    return median(timed(step)[0] for _ in range(rounds))


def _ratio(over: list[float], under: list[float]) -> float:
    """The median of the rounds' ratios: the two of a round ran close together, so slow spells fall on both."""
    return median(a / b for a, b in zip(over, under, strict=True))


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:,.2f}" if seconds < 1 else f"{seconds * 1e3:,.0f}"


def against(measured: float, target: float | None, digits: int = 2) -> tuple[str, str]:
    """A figure with its target, and whether it keeps it: the last two cells of a row."""
    if target is None:
        return f"{measured:.{digits}f}", ""
    return f"{measured:.{digits}f}", f"{target:g} {'✓' if measured <= target else '✗ missed'}"


def table(title: str, *columns: str) -> Table:
    """An empty table: the first column says what was measured, the others are numbers."""
    made = Table(title=title, title_justify="left", title_style="bold")
    made.add_column(columns[0])
    for column in columns[1:]:
        made.add_column(column, justify="right")
    return made
