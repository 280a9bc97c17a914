"""A run as the user holds it: what `RunReader` reads, exported, summarised, and saved in any view."""

from __future__ import annotations

import builtins
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chainrule.graph.history import Kind
from chainrule.monitor.runs.reader import RunReader

if TYPE_CHECKING:
    from chainrule.document import Document

SQLITE = b"SQLite format 3\0"  # how such a file begins


class Run(RunReader):
    """One run of the file at `path`: the last one, or that with the number `run`.

    Raises StorageError where the file is missing, no run's, or of a newer version, MissingError where it has no such
    run.
    """

    def frame(self, kind: Kind | None = None, library: str | None = None) -> Any:
        """A DataFrame: of the steps, or with `kind` of all its tensors, a row for each tensor and step.

        With pandas, or polars, whichever is installed, or the one named by `library`. Raises MissingError where neither
        is.
        """
        from chainrule.monitor.runs.export import frame

        return frame(self, kind, library)

    def to_tensorboard(self, folder: str | os.PathLike[str]) -> None:
        """Write TensorBoard event files into a folder. Raises MissingError where `tensorboard` is not installed."""
        from chainrule.monitor.runs.export import to_tensorboard

        to_tensorboard(self, folder)

    def to_parquet(self, folder: str | os.PathLike[str]) -> None:
        """Write Parquet files into a folder: `steps.parquet`, `findings.parquet`, and one for each kind of tensor.

        Raises MissingError where `pyarrow` is not installed.
        """
        from chainrule.monitor.runs.export import to_parquet

        to_parquet(self, folder)

    def document(self) -> Document:
        """The run in a screenful, for any view."""
        from chainrule.monitor.runs.summary import document

        return document(self)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the run to a file; its suffix names the view: `.html` is the page of the run, with every step in it.

        Beside a page stand the pages of the steps that were recorded in full, which it links to. Raises StorageError
        for a suffix that no view has, and where the file cannot be written.
        """
        from chainrule import views
        from chainrule.graph.storage import write_atomically

        suffix = Path(path).suffix.lower()
        views.check_suffix(suffix)
        if suffix == ".html":
            from chainrule.monitor import run_page

            run_page.write(self, Path(path))
            return
        write_atomically(path, views.written(self.document(), suffix).encode())


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
