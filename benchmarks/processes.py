"""From the start of the process to its end: what a user waits for at the command line."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from statistics import median
from time import perf_counter

from rich.table import Table

from benchmarks.timing import against, table

ROUNDS = 7
TORCH = ("-c", "import torch")
DEMO = ("-m", "chainrule", "demo")
# Timed from the inside, where the import of torch and its noise are over already.
IMPORTS = """
from time import perf_counter
import torch
start = perf_counter()
from chainrule import record
print(perf_counter() - start)
"""


def tables() -> Iterator[Table]:
    times: dict[Sequence[str], list[float]] = {TORCH: [], DEMO: []}
    imports = []
    _run(DEMO)  # once without the clock: compiled files are written, the disk's cache is filled
    for _ in range(ROUNDS):
        for command, measured in times.items():
            start = perf_counter()
            _run(command)
            measured.append(perf_counter() - start)
        imports.append(float(_run(("-c", IMPORTS))))
    torch = median(times[TORCH])
    made = table(f"Whole processes, median of {ROUNDS}", "process", "seconds", "target")
    made.add_row('python -c "import torch"', *against(torch, None))
    made.add_row(
        "chainrule demo (target: 1.5 times that, plus 1)", *against(median(times[DEMO]), round(1.5 * torch + 1, 2))
    )
    made.add_row("what chainrule adds to import torch", *against(median(imports), 0.15, 3))
    yield made


def _run(command: Sequence[str]) -> str:
    return subprocess.run([sys.executable, *command], check=True, stdout=subprocess.PIPE, text=True).stdout
