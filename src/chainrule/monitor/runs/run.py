"""A run for the user: what `RunReader` reads, exported, summarised, and saved in any view."""

from __future__ import annotations

import builtins
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chainrule.graph.history import Kind
from chainrule.monitor.runs import export
from chainrule.monitor.runs.format import SQLITE
from chainrule.monitor.runs.reader import RunReader
from chainrule.monitor.runs.summary import document

if TYPE_CHECKING:
    from chainrule.document import Document


class Run(RunReader):
    """One run in the file at `path`: the last one, or the one with the number `run`.

    `began` is in seconds since the epoch; `every` says how often a step is watched; `versions` are those of chainrule,
    torch and Python. Raises StorageError if the file does not exist, is not the file of a run, or has a newer version;
    MissingError if it has no such run.
    """

    def frame(self, kind: Kind | None = None, library: str | None = None) -> Any:
        """A DataFrame of the steps, or with `kind` of all its tensors, a row for each tensor and step.

        The library is pandas or polars, whichever is installed, or the one named by `library`. Raises MissingError if
        neither is.
        """
        return export.frame(self, kind, library)

    def to_tensorboard(self, folder: str | os.PathLike[str]) -> None:
        """Write TensorBoard event files to a folder. Raises MissingError if `tensorboard` is not installed."""
        export.to_tensorboard(self, folder)

    def to_parquet(self, folder: str | os.PathLike[str]) -> None:
        """Write Parquet files to a folder: `steps.parquet`, `findings.parquet`, and one for each kind of tensor.

        Raises MissingError if `pyarrow` is not installed.
        """
        export.to_parquet(self, folder)

    def document(self) -> Document:
        """The run in a screenful, for any view."""
        return document(self)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the run to a file; the suffix selects the view, and `.html` the page of the run.

        The pages of steps recorded in full are written beside it. Raises StorageError for an unknown suffix, and if
        the file cannot be written.
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
    """The last run in a file, or the one with the number `run`, even while another process writes it.

    Raises StorageError if the file does not exist, is not the file of a run, or has a newer version, and MissingError
    if it has no such run.
    """
    return Run(path, run)


def is_run(path: str | os.PathLike[str]) -> bool:
    """Whether a file is a SQLite database, as the file of a run is."""
    try:
        with builtins.open(path, "rb") as file:
            return file.read(len(SQLITE)) == SQLITE
    except OSError:
        return False
