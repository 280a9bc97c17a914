"""The tables of a run's file, and how one is opened. Told field by field in docs/runs.md.

SQLite does the hard part: with its write-ahead log a process may be killed at any moment, a reader sees whole batches
while another process writes, and any tool that knows SQLite can look inside. The file says what it is by SQLite's own
two numbers: `application_id` names the program, `user_version` the version of this schema.
"""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

from chainrule.errors import StorageError

APPLICATION = 0x63687264  # "chrd"
VERSION = 1
SCHEMA = """
CREATE TABLE run (
    id INTEGER PRIMARY KEY,
    began REAL NOT NULL,
    ended REAL,
    status TEXT NOT NULL,
    script TEXT NOT NULL,
    every INTEGER NOT NULL,
    versions TEXT NOT NULL
);
CREATE TABLE series (
    id INTEGER PRIMARY KEY,
    run INTEGER NOT NULL REFERENCES run,
    kind TEXT NOT NULL,
    name TEXT NOT NULL,
    layer INTEGER NOT NULL,
    type TEXT NOT NULL,
    dtype TEXT NOT NULL,
    UNIQUE (run, kind, name)
);
CREATE TABLE step (
    run INTEGER NOT NULL REFERENCES run,
    step INTEGER NOT NULL,
    time REAL NOT NULL,
    loss REAL,
    rates TEXT NOT NULL,
    skipped INTEGER NOT NULL,
    scale REAL,
    norm REAL,
    norm_clipped REAL,
    passes INTEGER NOT NULL,
    PRIMARY KEY (run, step)
) WITHOUT ROWID;
CREATE TABLE layout (
    id INTEGER PRIMARY KEY,
    run INTEGER NOT NULL REFERENCES run,
    kind TEXT NOT NULL,
    series BLOB NOT NULL
);
CREATE TABLE chunk (
    id INTEGER PRIMARY KEY,
    layout INTEGER NOT NULL REFERENCES layout,
    first INTEGER NOT NULL,
    last INTEGER NOT NULL,
    steps BLOB NOT NULL,
    norm BLOB NOT NULL,
    mean BLOB NOT NULL,
    std BLOB NOT NULL,
    low BLOB NOT NULL,
    high BLOB NOT NULL,
    elements BLOB NOT NULL,
    zeros BLOB NOT NULL,
    not_finite BLOB NOT NULL
);
CREATE INDEX chunk_by_step ON chunk (layout, first);
CREATE TABLE histogram (
    layout INTEGER NOT NULL REFERENCES layout,
    step INTEGER NOT NULL,
    counts BLOB NOT NULL,
    PRIMARY KEY (layout, step)
);
CREATE TABLE finding (
    id INTEGER PRIMARY KEY,
    run INTEGER NOT NULL REFERENCES run,
    finding TEXT NOT NULL,
    severity TEXT NOT NULL,
    name TEXT NOT NULL,
    place TEXT NOT NULL,
    since INTEGER,
    until INTEGER,
    text TEXT NOT NULL,
    evidence TEXT NOT NULL,
    advice TEXT NOT NULL,
    rows TEXT NOT NULL,
    size INTEGER NOT NULL,
    UNIQUE (run, finding, name)
);
CREATE TABLE recording (
    run INTEGER NOT NULL REFERENCES run,
    step INTEGER NOT NULL,
    file TEXT NOT NULL,
    reason TEXT NOT NULL,
    PRIMARY KEY (run, step)
);
"""

PAGE = 16384  # bytes; a chunk's columns are some tens of kB


def connect_to_write(path: str | os.PathLike[str]) -> sqlite3.Connection:
    """The file at `path`, made where there is none, ready to be written.

    Raises StorageError where it cannot be opened or is no run's file, or one of a newer version.
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
    check(connection, path)
    return connection


def connect_to_read(path: str | os.PathLike[str]) -> sqlite3.Connection:
    """The file at `path`, to be read, also while another process writes it.

    Raises StorageError where there is none, or where it is no run's file, or one of a newer version.
    """
    if not Path(path).is_file():
        raise StorageError(f"{path}: there is no such file. Give a file that chainrule.watch(..., to=...) wrote.")
    address = Path(path).absolute().as_uri()
    try:
        connection = _opened(f"{address}?mode=ro")
    except sqlite3.OperationalError:  # a folder that cannot be written to has no place for the log's index
        try:
            connection = _opened(f"{address}?immutable=1")
        except sqlite3.Error as error:
            raise _no_run(path, str(error)) from error
    except sqlite3.DatabaseError as error:
        raise _no_run(path, str(error)) from error
    check(connection, path)
    return connection


def _opened(address: str) -> sqlite3.Connection:
    connection = sqlite3.connect(address, uri=True, timeout=10, isolation_level=None, check_same_thread=False)
    connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    return connection


def check(connection: sqlite3.Connection, path: str | os.PathLike[str]) -> None:
    """Hold that an open file is a run's, of a version that we know; else close it and raise StorageError."""
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if application == APPLICATION and version == VERSION:
        return
    connection.close()
    if application != APPLICATION:
        raise _no_run(path, "it is a database of another program")
    raise StorageError(
        f"{path} is the file of a run in version {version} of its form; this chainrule knows version {VERSION}. "
        "Read it with a newer chainrule."
    )


def unwritable(path: str | os.PathLike[str], error: sqlite3.Error) -> StorageError:
    """What to say where a file cannot be opened to be written."""
    if isinstance(error, sqlite3.DatabaseError) and "not a database" in str(error):
        return _no_run(path, str(error))
    return StorageError(
        f"{path} cannot be written as the file of a run: {error}. Give a path in a folder you can write to, on a disk "
        "with room."
    )


def _no_run(path: str | os.PathLike[str], met: str) -> StorageError:
    return StorageError(
        f"{path} is not the file of a run: {met}. Give a file that chainrule.watch(..., to=...) wrote, or another path."
    )
