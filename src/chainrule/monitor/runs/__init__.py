"""Whole runs, in files: `chainrule.runs.open("run.db")` asks what `chainrule.watch(..., to="run.db")` wrote.

run = chainrule.runs.open("run.db")
run.losses()                                  # [(1, 2.3), (51, 1.9), ...]
run.series("parameter gradient", "fc1.weight")
run.findings()
run.frame("update")                           # a DataFrame

Reading needs no torch. The tables are told in docs/runs.md.
"""

from __future__ import annotations

import builtins
import os

from chainrule.monitor.runs.found import Found
from chainrule.monitor.runs.run import Recorded, Run, Tensor
from chainrule.monitor.runs.writer import Figure, Writer

__all__ = ["Figure", "Found", "Recorded", "Run", "Tensor", "Writer", "is_run", "open"]

SQLITE = b"SQLite format 3\0"  # how such a file begins


def open(path: str | os.PathLike[str], run: int | None = None) -> Run:
    """The last run in a file, or that with the number `run`; also while it is being written.

    Raises StorageError where the file is missing, no run's, or of a newer version, and MissingError where it has no
    such run.
    """
    return Run(path, run)


def is_run(path: str | os.PathLike[str]) -> bool:
    """Whether a file is a SQLite database, as those of runs are."""
    try:
        with builtins.open(path, "rb") as file:
            return file.read(len(SQLITE)) == SQLITE
    except OSError:
        return False
