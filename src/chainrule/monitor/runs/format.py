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
import re
import sqlite3
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from chainrule.errors import ChainruleError, MissingError, StorageError
from chainrule.graph.statistics import Statistics

APPLICATION = 0x63687264  # "chrd"
VERSION = 4
SQLITE = b"SQLite format 3\0"  # the first bytes of every SQLite file
OTHERS = "it is a database of another program"
PATIENCE = 2  # seconds that a training waits at its begin for a file that another process has locked
PAGE = 16384  # bytes; the columns of a chunk take tens of kB

REALS = ("norm", "mean", "std", "low", "high")  # float32
COUNTS = ("elements", "zeros", "not_finite")  # uint32
COLUMNS = (*REALS, *COUNTS)
BINS = 4096  # of a histogram, at most
NOT_MEASURED = 2**32 - 1  # first bin of a histogram that does not exist

_TABLES = f"""
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
    counts TEXT NOT NULL,
    evaluated INTEGER NOT NULL, dropped TEXT NOT NULL, restarted TEXT NOT NULL,
    mean_distance REAL, variance_ratio REAL,
    estimate INTEGER NOT NULL, rewritten INTEGER NOT NULL,
    PRIMARY KEY (run, step)
) WITHOUT ROWID;
CREATE TABLE noticed (
    run INTEGER NOT NULL REFERENCES run, step INTEGER NOT NULL, rates TEXT NOT NULL, lost INTEGER NOT NULL,
    parameters TEXT NOT NULL, loss REAL, place TEXT NOT NULL, PRIMARY KEY (run, step)
) WITHOUT ROWID;
CREATE TABLE unwatched (
    run INTEGER NOT NULL REFERENCES run, step INTEGER NOT NULL, losses TEXT NOT NULL, PRIMARY KEY (run, step)
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
    advice TEXT NOT NULL, rows TEXT NOT NULL, size INTEGER NOT NULL, because TEXT NOT NULL,
    file TEXT NOT NULL,
    UNIQUE (run, finding, name)
);
CREATE TABLE recording (
    run INTEGER NOT NULL REFERENCES run, step INTEGER NOT NULL, file TEXT NOT NULL, reason TEXT NOT NULL,
    PRIMARY KEY (run, step)
);
"""

SCHEMA = re.sub(r"CREATE TABLE \w+ \(", r"\g<0>\n    checksum INTEGER NOT NULL,", _TABLES)

_STORED: dict[str, type | tuple[type, ...]] = {"INTEGER": int, "REAL": (float, str), "TEXT": str, "BLOB": bytes}
TABLES: dict[str, dict[str, tuple[Any, bool]]] = {
    table: {
        column: (_STORED[kind], not rest.strip().startswith(("NOT NULL", "PRIMARY KEY")))
        for column, kind, rest in re.findall(r"(\w+) (INTEGER|REAL|TEXT|BLOB)([^,]*)", body)
    }
    for table, body in re.findall(r"CREATE TABLE (\w+) \((.*?)\n\)", SCHEMA, re.DOTALL)
}
"""The columns of each table: the types that a value may have, and whether it may be NULL. A REAL of NaN is text."""

_APART = {"chunk": {"id", "checksum", *COLUMNS}, "histogram": {"checksum", "counts"}}  # zlib checks packed columns
SEALED = {
    table: tuple(name for name in columns if name not in _APART.get(table, {"id", "checksum"}))
    for table, columns in TABLES.items()
}
"""The columns of each table that the checksum of a row covers."""

# -- the file ---------------------------------------------------------------------------------------------------------


class DamagedError(StorageError):
    """The file of a run that cannot be read to its end."""


def connect_to_write(path: str | os.PathLike[str]) -> sqlite3.Connection:
    """Open the file at `path` for writing; create it if it does not exist.

    Raises StorageError if the file cannot be opened, is not the file of a run, or has a newer version. A file of
    another program is not touched; DamagedError, if it is damaged.
    """
    _check_header(path)
    with writing(path):
        connection = sqlite3.connect(path, timeout=PATIENCE, isolation_level=None, check_same_thread=False)
        try:
            new = connection.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,)
            if not new:
                _check(connection, path)
            connection.execute(f"PRAGMA page_size = {PAGE}")
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            if new:
                connection.execute("BEGIN IMMEDIATE")
                if connection.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,):
                    for statement in SCHEMA.split(";"):
                        connection.execute(statement)
                    connection.execute(f"PRAGMA application_id = {APPLICATION}")
                    connection.execute(f"PRAGMA user_version = {VERSION}")
                connection.execute("COMMIT")
                _check(connection, path)
        except BaseException:
            connection.close()
            raise
    return connection


def connect_to_read(path: str | os.PathLike[str]) -> sqlite3.Connection:
    """Open the file at `path` for reading, even while another process writes it.

    Raises StorageError if the file does not exist, is not the file of a run, has a newer version, or is damaged.
    """
    if not Path(path).is_file():
        missing = f"{path} is a folder" if Path(path).is_dir() else f"{path}: there is no such file"
        raise StorageError(f"{missing}. Give a file that chainrule.watch(..., to=...) wrote.")
    _check_header(path)
    address = Path(path).absolute().as_uri()
    try:
        try:
            connection = _opened(f"{address}?mode=ro")
        except sqlite3.OperationalError:  # a read-only folder has no room for the index of the log
            connection = _opened(f"{address}?immutable=1")
    except sqlite3.Error as error:
        raise _unreadable(path, error) from error
    try:
        connection.execute("PRAGMA trusted_schema = OFF")  # the file may come from anywhere
        _check(connection, path)
    except sqlite3.Error as error:
        connection.close()
        raise _unreadable(path, error) from error
    except ChainruleError:
        connection.close()
        raise
    return connection


def _opened(address: str) -> sqlite3.Connection:
    connection = sqlite3.connect(address, uri=True, timeout=10, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except BaseException:
        connection.close()
        raise
    return connection


def check_target(path: str | os.PathLike[str]) -> None:
    """Raise StorageError where a run cannot be written to `path`, as far as is known before the file is created."""
    from chainrule.graph.storage import check_writable  # it imports torch, which reading a run does not need

    check_writable(path)
    _check_header(path)


def _check_header(path: str | os.PathLike[str]) -> None:
    """Raise StorageError if an existing file is one of another program, by its first bytes alone."""
    try:
        with open(path, "rb") as file:
            header = file.read(100)
    except OSError:
        return  # a new file, or one that SQLite will not open either
    if not header:
        return
    if not header.startswith(SQLITE):
        raise _not_a_run(path, "file is not a database")
    application = int.from_bytes(header[68:72], "big")
    if application in (0, APPLICATION):  # the 0 of a file whose first pages are in the log is not yet ours
        return
    raise _not_a_run(path, OTHERS)


def _check(connection: sqlite3.Connection, path: str | os.PathLike[str]) -> None:
    """Raise StorageError unless it is the file of a run in a known version, with its tables."""
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if application == 0 and connection.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,):
        raise MissingError(f"{path} is empty: no run is in it yet.")
    if application != APPLICATION:
        raise _not_a_run(path, OTHERS)
    if version != VERSION:
        use = "Use a newer chainrule" if version > VERSION else "Use an older chainrule, or watch the training again"
        raise StorageError(
            f"{path} is the file of a run in format version {version}; this chainrule reads version {VERSION}. {use}."
        )
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if missing := TABLES.keys() - tables:
        raise damaged(path, f"it has no table {min(missing)}")
    (state,) = connection.execute("PRAGMA quick_check(1)").fetchone()  # else rows may be missing
    if state != "ok":
        raise damaged(path, state)


@contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[None]:
    """An error of SQLite, or in what a file holds, is a StorageError."""
    try:
        yield
    except (zlib.error, ValueError) as error:
        raise damaged(path, error) from error
    except sqlite3.Error as error:
        if type(error) is sqlite3.DatabaseError:  # not one of its kinds, such as a full disk or a lock
            raise _unreadable(path, error) from error
        raise StorageError(
            f"{path} cannot be written as the file of a run: {error}. Give a path in a writable folder, on a disk with "
            "free space."
        ) from error


def damaged(path: str | os.PathLike[str], cause: object) -> DamagedError:
    """The error for a file whose content is not what a watch wrote."""
    return DamagedError(
        f"{path} is damaged and cannot be read to its end: {cause}. `sqlite3 {path} .recover` saves what is left."
    )


def checksum(table: str, row: Mapping[str, Any]) -> int:
    """The checksum of a row; a column that is left out is NULL."""
    stored = [_as_stored(row.get(name), TABLES[table][name][0]) for name in SEALED[table]]
    return zlib.crc32(repr(stored).encode())


def _as_stored(value: Any, types: Any) -> Any:
    """SQLite stores an integer in a column of reals as a real, and a truth value as an integer."""
    if types == _STORED["REAL"] and not isinstance(value, str) and value is not None:
        return float(value)
    return int(value) if isinstance(value, int) else value


def checked(table: str, row: Mapping[str, Any]) -> Mapping[str, Any]:
    """A row whose values have the types of their columns, and its checksum. Raises ValueError for another."""
    for column, value in row.items():
        types, nullable = TABLES[table][column]
        fits = isinstance(value, types) and (types != _STORED["REAL"] or _is_real(value))
        if not (nullable if value is None else fits):
            raise ValueError(f"{column} of a {table} cannot be {str(value)[:60]!r}")
    if row["checksum"] != checksum(table, row):
        raise ValueError(f"the checksum of a row of the table {table} is not that of its content")
    return row


def _is_real(value: float | str) -> bool:
    return isinstance(value, float) or value == "nan"


def _unreadable(path: str | os.PathLike[str], error: sqlite3.Error) -> StorageError:
    return _not_a_run(path, str(error)) if "not a database" in str(error) else damaged(path, error)


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


def read_column(data: bytes, name: str, tensors: int, steps: int) -> Array:
    """One statistic of each tensor at each step, (tensors, steps)."""
    return _unpacked(data, "<f4" if name in REALS else "<u4", tensors * steps).reshape(tensors, steps)


def truncated(data: bytes, name: str, tensors: int, steps: int, kept: int) -> bytes:
    """A column reduced to its first `kept` steps."""
    return _packed(np.ascontiguousarray(read_column(data, name, tensors, steps)[:, :kept]))


def histograms(statistics: Sequence[Statistics]) -> bytes:
    """The histograms of one step's tensors."""
    bins = max(len(each.magnitudes) for each in statistics)
    counts = [each.magnitudes or (NOT_MEASURED, *(0,) * (bins - 1)) for each in statistics]
    return _packed(np.minimum(np.asarray(counts, np.int64), NOT_MEASURED).astype("<u4"))


def read_histograms(data: bytes, tensors: int) -> list[tuple[int, ...]]:
    """The histogram of each tensor; () if it has none."""
    counts = _unpacked(data, "<u4", tensors * BINS).reshape(tensors, -1).tolist()
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


def _unpacked(data: bytes, dtype: str, most: int) -> Array:
    """At most so many numbers, whatever the bytes claim."""
    inflater = zlib.decompressobj()
    content = inflater.decompress(data, 4 * most + 1)
    if len(content) > 4 * most or not inflater.eof:
        raise ValueError("a column is longer than its tensors and steps, or cut short")
    sorted_bytes = np.frombuffer(content, np.uint8).reshape(4, -1)
    return np.ascontiguousarray(sorted_bytes.T).view(dtype).reshape(-1)
