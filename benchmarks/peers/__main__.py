"""Run every tool on every model, or on those named, and print one table a model."""

from __future__ import annotations

import argparse
import subprocess
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.__main__ import machine
from benchmarks.footprint import MB, alone
from benchmarks.peers.tools import TOOLS
from benchmarks.steps import SUBJECTS
from benchmarks.timing import milliseconds, table

LIMIT = 900  # seconds for one tool on one model, with everything
PACKAGES = ("torchlens", "nansense", "torchviz", "backpack-for-pytorch", "transformers")
HEADINGS = ("outcome", "time over bare", "noise", "memory above bare, MB", "operations", "nodes", "captured")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"of {', '.join(SUBJECTS)} (default: all)")
    parser.add_argument("--tool", action="append", choices=TOOLS, help="only this one; may be given several times")
    parser.add_argument("--seconds", type=float, default=20, help="for the timed rounds of each (default: %(default)s)")
    parser.add_argument("--tiny", action="store_true", help="the models in the size of the tests: does it run at all?")
    options = parser.parse_args()
    unknown = [model for model in options.models if model not in SUBJECTS]
    if unknown:
        parser.error(f"no model {', '.join(unknown)}; there are {', '.join(SUBJECTS)}")

    console = Console()
    console.print(machine(), ", ".join(map(_version, PACKAGES)), sep="; ")
    flags = ("--seconds", str(options.seconds), *(("--tiny",) if options.tiny else ()))
    for model in options.models or SUBJECTS:
        title = SUBJECTS[model].title + (", tiny" if options.tiny else "")
        found = ((tool, _measured(model, tool, flags)) for tool in options.tool or TOOLS)
        console.print("", side_by_side(title, found))


def side_by_side(title: str, found: Iterable[tuple[str, dict[str, Any]]]) -> Table:
    """A row for each tool; the bare step is that of all the processes together."""
    made = table(title, "tool", *HEADINGS, texts=("outcome", "captured"))
    bare = []
    for tool, each in found:
        made.add_row(tool, *_cells(each))
        bare += [each["bare"]] if "bare" in each else []
    if bare:
        made.add_row(f"bare step, {milliseconds(median(bare))} ms", "", "1.00", *[""] * 5)
    return made


def _cells(found: dict[str, Any]) -> tuple[str, ...]:
    if "error" in found:
        return ("fails", "", "", "", "", "", found["error"])
    above = "" if found["above"] is None else f"{found['above'] / MB:+,.1f}"
    counts = ("" if found[key] is None else f"{found[key]:,}" for key in ("operations", "nodes"))
    return ("works", f"{found['ratio']:,.2f}", f"{found['noise']:.2f}", above, *counts, found["what"])


def _measured(model: str, tool: str, flags: tuple[str, ...]) -> dict[str, Any]:
    try:
        return alone(model, tool, *flags, module="benchmarks.peers.one", seconds=LIMIT)
    except subprocess.TimeoutExpired:
        return {"error": f"no end within {LIMIT // 60} minutes"}
    except subprocess.CalledProcessError as ended:  # killed, or died below Python
        last = (ended.stderr.strip().splitlines() or [""])[-1]
        return {"error": f"the process ended with status {ended.returncode}: {last}"[:90]}


def _version(package: str) -> str:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return f"{package} not installed"


if __name__ == "__main__":
    main()
