"""The file format of a run: SQLite tables, opened for writing or reading, and packed columns of statistics.

SQLite's write-ahead log keeps the file valid when a process is killed, lets a reader see whole batches during a write,
and any SQLite tool can read the tables. `application_id` names the program, `user_version` the version of the format.
docs/runs.md describes every field.

A packed column holds one statistic (the norm, say) of every tensor of a layout at each step of a chunk, tensor by
tensor, because a tensor changes little between steps. Its bytes are sorted by significance (all first bytes, then all
second bytes) and compressed: about 3 bytes a number instead of 4, and almost none for a constant.
"""

from __future__ import annotations

import os
import sqlite3
import zlib
from collections.abc import Iterable, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from chainrule.errors import StorageError
from chainrule.graph.statistics import Statistics

APPLICATION = 0x63687264  # "chrd"
VERSION = 1
PAGE = 16384  # bytes; the columns of a chunk take tens of kB

REALS = ("norm", "mean", "std", "low", "high")  # float32
COUNTS = ("elements", "zeros", "not_finite")  # uint32
COLUMNS = (*REALS, *COUNTS)
NOT_MEASURED = 2**32 - 1  # first bin of a histogram that does not exist

SCHEMA = f"""
CREATE TABLE run (
    id INTEGER PRIMARY KEY, began REAL NOT NULL, ended REAL, status TEXT NOT NULL, script TEXT NOT NULL,
    every INTEGER NOT NULL, versions TEXT NOT NULL
);
CREATE TABLE series (
    id INTEGER PRIMARY KEY, run INTEGER NOT NULL REFERENCES run, kind TEXT NOT NULL, name TEXT NOT NULL,
    layer INTEGER NOT NULL, type TEXT NOT NULL, dtype TEXT NOT NULL, UNIQUE (run, kind, name)
);
CREATE TABLE step (
    run INTEGER NOT NULL REFERENCES run, step INTEGER NOT NULL, time REAL NOT NULL, loss REAL, rates TEXT NOT NULL,
    skipped INTEGER NOT NULL, scale REAL, norm REAL, norm_clipped REAL, passes INTEGER NOT NULL,
    PRIMARY KEY (run, step)
) WITHOUT ROWID;
CREATE TABLE layout (
    id INTEGER PRIMARY KEY, run INTEGER NOT NULL REFERENCES run, kind TEXT NOT NULL, series BLOB NOT NULL
);
CREATE TABLE chunk (
    id INTEGER PRIMARY KEY, layout INTEGER NOT NULL REFERENCES layout, first INTEGER NOT NULL, last INTEGER NOT NULL,
    steps BLOB NOT NULL, {", ".join(f"{name} BLOB NOT NULL" for name in COLUMNS)}
);
CREATE INDEX chunk_by_step ON chunk (layout, first);
CREATE TABLE histogram (
    layout INTEGER NOT NULL REFERENCES layout, step INTEGER NOT NULL, counts BLOB NOT NULL, PRIMARY KEY (layout, step)
);
CREATE TABLE finding (
    id INTEGER PRIMARY KEY, run INTEGER NOT NULL REFERENCES run, finding TEXT NOT NULL, severity TEXT NOT NULL,
    name TEXT NOT NULL, place TEXT NOT NULL, since INTEGER, until INTEGER, text TEXT NOT NULL, evidence TEXT NOT NULL,
    advice TEXT NOT NULL, rows TEXT NOT NULL, size INTEGER NOT NULL, UNIQUE (run, finding, name)
);
CREATE TABLE recording (
    run INTEGER NOT NULL REFERENCES run, step INTEGER NOT NULL, file TEXT NOT NULL, reason TEXT NOT NULL,
    PRIMARY KEY (run, step)
);
"""

# -- the file ---------------------------------------------------------------------------------------------------------


def connect_to_write(path: str | os.PathLike[str]) -> sqlite3.Connection:
    """Open the file at `path` for writing; create it if it does not exist.

    Raises StorageError if the file cannot be opened, is not the file of a run, or has a newer version.
    """
    try:
        connection = sqlite3.connect(path, timeout=10, isolation_level=None, check_same_thread=False)
        connection.execute(f"PRAGMA page_size = {PAGE}")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("BEGIN IMMEDIATE")
        if connection.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,):
            for statement in SCHEMA.split(";"):
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {APPLICATION}")
            connection.execute(f"PRAGMA user_version = {VERSION}")
        connection.execute("COMMIT")
    except sqlite3.Error as error:
        raise unwritable(path, error) from error
    _check(connection, path)
    return connection


def connect_to_read(path: str | os.PathLike[str]) -> sqlite3.Connection:
    """Open the file at `path` for reading, even while another process writes it.

    Raises StorageError if the file does not exist, is not the file of a run, or has a newer version.
    """
    if not Path(path).is_file():
        raise StorageError(f"{path}: there is no such file. Give a file that chainrule.watch(..., to=...) wrote.")
    address = Path(path).absolute().as_uri()
    try:
        try:
            connection = _opened(f"{address}?mode=ro")
        except sqlite3.OperationalError:  # a read-only folder has no room for the index of the log
            connection = _opened(f"{address}?immutable=1")
    except sqlite3.DatabaseError as error:
        raise _not_a_run(path, str(error)) from error
    _check(connection, path)
    return connection


def _opened(address: str) -> sqlite3.Connection:
    connection = sqlite3.connect(address, uri=True, timeout=10, isolation_level=None, check_same_thread=False)
    connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    return connection


def _check(connection: sqlite3.Connection, path: str | os.PathLike[str]) -> None:
    """Close the file and raise StorageError unless it is the file of a run in a known version."""
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if application == APPLICATION and version == VERSION:
        return
    connection.close()
    if application != APPLICATION:
        raise _not_a_run(path, "it is a database of another program")
    raise StorageError(
        f"{path} is the file of a run in format version {version}; this chainrule reads version {VERSION}. "
        "Use a newer chainrule."
    )


def unwritable(path: str | os.PathLike[str], error: sqlite3.Error) -> StorageError:
    """The error for a file that cannot be opened for writing."""
    if isinstance(error, sqlite3.DatabaseError) and "not a database" in str(error):
        return _not_a_run(path, str(error))
    return StorageError(
        f"{path} cannot be written as the file of a run: {error}. Give a path in a writable folder, on a disk with "
        "free space."
    )


def _not_a_run(path: str | os.PathLike[str], cause: str) -> StorageError:
    return StorageError(
        f"{path} is not the file of a run: {cause}. Give a file that chainrule.watch(..., to=...) wrote, or another "
        "path."
    )


# -- packed columns ---------------------------------------------------------------------------------------------------

Array = npt.NDArray[Any]
_columns_of = attrgetter(*COLUMNS)


def row(statistics: Iterable[Statistics]) -> Array:
    """The statistics of one step's tensors, (tensors, columns); float64 represents the counts exactly."""
    return np.array([_columns_of(each) for each in statistics], np.float64)


def columns(rows: Sequence[Array]) -> list[bytes]:
    """The packed columns of several steps, in the order of `COLUMNS`."""
    table = np.stack(rows)  # (steps, tensors, columns)
    with np.errstate(over="ignore"):  # a number beyond float32 becomes infinite
        return [_packed(_narrow(table[:, :, place], name).T) for place, name in enumerate(COLUMNS)]


def _narrow(numbers: Array, name: str) -> Array:
    return numbers.astype("<f4") if name in REALS else np.minimum(numbers, NOT_MEASURED).astype("<u4")


def read_column(data: bytes, name: str, steps: int) -> Array:
    """One statistic of each tensor at each step, (tensors, steps)."""
    return _unpacked(data, "<f4" if name in REALS else "<u4").reshape(-1, steps)


def truncated(data: bytes, name: str, steps: int, kept: int) -> bytes:
    """A column reduced to its first `kept` steps."""
    return _packed(np.ascontiguousarray(read_column(data, name, steps)[:, :kept]))


def histograms(statistics: Sequence[Statistics]) -> bytes:
    """The histograms of one step's tensors."""
    bins = max(len(each.magnitudes) for each in statistics)
    counts = [each.magnitudes or (NOT_MEASURED, *(0,) * (bins - 1)) for each in statistics]
    return _packed(np.minimum(np.asarray(counts, np.int64), NOT_MEASURED).astype("<u4"))


def read_histograms(data: bytes, tensors: int) -> list[tuple[int, ...]]:
    """The histogram of each tensor; () if it has none."""
    counts = _unpacked(data, "<u4").reshape(tensors, -1).tolist()
    return [() if row[0] == NOT_MEASURED else tuple(row) for row in counts]


def integers(numbers: Sequence[int]) -> bytes:
    """Steps or ids of series as bytes."""
    return np.asarray(numbers, "<i8").tobytes()


def read_integers(data: bytes) -> Array:
    """The inverse of `integers`."""
    return np.frombuffer(data, "<i8")


def _packed(array: Array) -> bytes:
    flat = np.ascontiguousarray(array).view(np.uint8).reshape(-1, 4)
    return zlib.compress(np.ascontiguousarray(flat.T).tobytes(), 1)


def _unpacked(data: bytes, dtype: str) -> Array:
    sorted_bytes = np.frombuffer(zlib.decompress(data), np.uint8).reshape(4, -1)
    return np.ascontiguousarray(sorted_bytes.T).view(dtype).reshape(-1)
