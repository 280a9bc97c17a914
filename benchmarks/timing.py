"""How everything here is timed: interleaved in one process, garbage collected first, medians."""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from random import Random
from statistics import median
from time import perf_counter, process_time
from typing import Any

from rich.table import Table

Step = Callable[[], Any]
TRIM, MAP = -1, -3  # mallopt(3): from how much memory on it is given back, or mapped apart and then given back
FEWEST, MOST = 3, 30  # rounds


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

    def cells(self, target: float | None = None) -> tuple[str, ...]:
        """What a row says of it, under HEADINGS."""
        return (
            milliseconds(self.bare),
            milliseconds(self.other),
            f"{self.noise:.2f}",
            f"{self.cpu_ratio:.2f}",
            *against(self.ratio, target),
        )


HEADINGS = ("bare, ms", "recorded, ms", "noise", "processor time", "ratio", "target")


def timed(step: Step, wait: Callable[[], None] | None = None) -> tuple[float, float]:
    """Seconds of wall time and of processor time that one call takes. What it returns is freed afterwards.

    `wait` returns when the device has done what it was given; without it the step is over when it returns.
    """
    gc.collect()  # or one side pays for the objects that the other left behind
    if wait is not None:
        wait()
    cpu, wall = process_time(), perf_counter()
    result = step()
    if wait is not None:
        wait()
    wall, cpu = perf_counter() - wall, process_time() - cpu
    del result
    return wall, cpu


def compare(
    bare: Step, others: Mapping[str, Step], seconds: float = 30, wait: Callable[[], None] | None = None
) -> dict[str, Comparison]:
    """Time `bare`, `bare` again and each of the others in every round, in an order that changes.

    After two rounds of warm-up there are as many as fit into `seconds`, but FEWEST at least and MOST at most.
    """
    sides: dict[str, Step] = {"bare": bare, "bare again": bare, **others}
    order, mixed = list(sides), Random(0)
    for _ in range(2):
        round_ = sum(timed(step, wait)[0] for step in sides.values())
    times: dict[str, list[tuple[float, float]]] = {side: [] for side in sides}
    for _ in range(min(max(int(seconds / round_), FEWEST), MOST)):
        mixed.shuffle(order)
        for side in order:
            times[side].append(timed(sides[side], wait))
    wall = {side: [each[0] for each in measured] for side, measured in times.items()}
    cpu = {side: [each[1] for each in measured] for side, measured in times.items()}
    return {
        other: Comparison(
            median(wall["bare"] + wall["bare again"]),
            median(wall[other]),
            _ratio(wall[other], wall["bare"]),
            _ratio(cpu[other], cpu["bare"]),
            _ratio(wall["bare again"], wall["bare"]),
        )
        for other in others
    }


def keep_what_is_freed() -> None:
    """Have the process keep memory that was freed, from now on: pages that the system takes back cost what it likes."""
    with suppress(OSError, AttributeError):  # no glibc
        for parameter, size in ((TRIM, 2**31 - 1), (MAP, 2**25)):
            ctypes.CDLL(None).mallopt(parameter, size)


def _ratio(over: list[float], under: list[float]) -> float:
    """The median of the rounds' ratios: the two of a round ran close together, so slow spells fall on both."""
    return median(a / b for a, b in zip(over, under, strict=True))


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:,.2f}" if seconds < 1 else f"{seconds * 1e3:,.0f}"


def against(measured: float, target: float | None, digits: int = 2) -> tuple[str, str]:
    """A figure with its target, and whether it keeps it: the last two cells of a row."""
    figure = f"{measured:,.{digits}f}"
    if target is None:
        return figure, ""
    return figure, f"{target:,.6g} {'✓' if measured <= target else '✗ missed'}"


def table(title: str, *columns: str, texts: tuple[str, ...] = ()) -> Table:
    """An empty table: the first column says what was measured, the others are numbers, but for those in `texts`."""
    made = _Told(title=title, title_justify="left", title_style="bold")
    for place, column in enumerate(columns):
        made.add_column(column, justify="left" if place == 0 or column in texts else "right")
    return made


class _Told(Table):
    """A table takes many minutes to fill: each row is told at once, on standard error."""

    def add_row(self, *cells: Any, **options: Any) -> None:
        print(*cells, sep=" | ", file=sys.stderr, flush=True)
        super().add_row(*cells, **options)
