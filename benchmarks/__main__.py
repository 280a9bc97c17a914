"""Print every table, or those of the topics named; with `--write` put them into docs/performance.md."""

from __future__ import annotations

import argparse
import os
import platform
import re
from collections.abc import Iterable
from datetime import date
from io import StringIO
from pathlib import Path
from types import ModuleType

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks import derivation, memory, overhead, page, processes, scale, store, verification, views, watching

# The first derivation must be the first in this process; what is large comes last.
TOPICS: dict[str, ModuleType] = {
    "derivation": derivation,
    "processes": processes,
    "memory": memory,
    "scale": scale,
    "overhead": overhead,
    "page": page,
    "views": views,
    "verification": verification,
    "watching": watching,
    "store": store,
}
PAGE = Path(__file__).parent.parent / "docs" / "performance.md"
BEGIN, END = "<!-- tables: make bench ARGS=--write -->", "<!-- end of tables -->"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("topics", nargs="*", metavar="TOPIC", help=f"of {', '.join(TOPICS)} (default: all)")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/performance.md")
    options = parser.parse_args()
    unknown = [topic for topic in options.topics if topic not in TOPICS]
    if unknown:
        parser.error(f"no topic {', '.join(unknown)}; there are {', '.join(TOPICS)}")

    console = Console()
    console.print(machine())
    made = []
    for topic in options.topics or TOPICS:
        for each in TOPICS[topic].tables():
            made.append(each)
            console.print("", each)
    if options.write:
        write(made)


def machine() -> str:
    """Date, processor and versions, in a line."""
    return (
        f"{date.today().isoformat()}, {_processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, "
        f"Python {platform.python_version()}, PyTorch {torch.__version__}"
    )


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def write(made: Iterable[Table]) -> None:
    """Each table takes the place of the one of its title; tables of other topics stay as they were measured."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    old, _, after = rest.partition(END)
    tables = {each.split("**", 1)[0]: each for each in re.split(r"^\*\*", old, flags=re.MULTILINE)[1:]}
    tables |= {str(each.title): _markdown(each) for each in made}
    parts = [BEGIN, *(f"**{each.strip()}" for each in tables.values()), END]
    PAGE.write_text(before + "\n\n".join(parts) + after, encoding="utf-8")


def _markdown(made: Table) -> str:
    """The title, when and where it was measured, and the table."""
    title, made.title, made.box = made.title, None, box.MARKDOWN
    console = Console(file=StringIO(), width=200)
    console.print(made)
    lines = (line.rstrip() for line in console.file.getvalue().splitlines())
    return f"{title}** ({machine()})\n\n" + "\n".join(line for line in lines if line)


if __name__ == "__main__":
    main()
