"""Writes the file of a run from a thread of its own, so that training never waits for a disk.

Each batch is one transaction, so a process killed at any moment leaves whole batches. A chunk that is not full is
rewritten, longer, with each batch: a slow run loses no more than a fast one, and the chunks of both end up full. Items
that cannot be written (a full disk) wait and are tried again. The thread never raises.
"""

from __future__ import annotations

import json
import os
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Literal

from chainrule.errors import StorageError
from chainrule.graph.history import Kind, StepFacts
from chainrule.graph.statistics import Statistics
from chainrule.monitor.runs import format
from chainrule.monitor.runs.found import Found

BATCH = 1.0  # seconds between two writes
CHUNK = 64  # steps in a full chunk
OPEN = 64  # layouts whose chunks still grow; older ones are final
HISTOGRAMS = 10  # histograms are stored at every tenth watched step
WAITING = 5000  # items that wait at most while nothing can be written

TABLES = ("step", "recording")


@dataclass(frozen=True, slots=True)
class Figure:
    """The statistics of one tensor at one step."""

    kind: Kind
    name: str
    layer: int
    type: str
    dtype: str
    statistics: Statistics


@dataclass(frozen=True, slots=True)
class _Step:
    facts: StepFacts
    figures: tuple[Figure, ...]
    histograms: bool


@dataclass(frozen=True, slots=True)
class _Recorded:
    step: int
    file: str
    reason: str


@dataclass(frozen=True, slots=True)
class _End:
    status: str
    when: float


_Item = _Step | Found | _Recorded | _End


@dataclass(slots=True)
class _Chunk:
    """A chunk that still grows."""

    id: int | None = None
    steps: list[int] = field(default_factory=list)
    rows: list[format.Array] = field(default_factory=list)


def keeps_histograms(before: int) -> bool:
    """Whether histograms are stored for the watched step after `before` others."""
    return before % HISTOGRAMS == 0


class Writer:
    """Adds a run to the file at `path`, or continues the last one.

    With `start`, the number of steps done before, the last run of the file continues after that step, and its later
    steps, which the process that died had done, are deleted. Otherwise the run is new.

    Raises StorageError if the file cannot be opened, is not the file of a run, or has a newer version.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, every: int = 1, start: int = 0, versions: Mapping[str, str] | None = None
    ) -> None:
        self.path = Path(path).absolute()  # the script may change the working directory
        self.problem: str | None = None  # why the last batch could not be written
        self.dropped = 0  # items dropped because too many waited
        self._connection = format.connect_to_write(path)
        self._process = os.getpid()
        self._items: SimpleQueue[_Item | threading.Event | None] = SimpleQueue()
        self._waiting: list[_Item] = []
        self._forget()
        self._watched = 0  # how many steps with tensors were added
        try:
            self.run = self._begin(every, start, versions or {})
        except sqlite3.Error as error:
            raise format.unwritable(path, error) from error
        self._thread = threading.Thread(target=self._work, name="chainrule writes a run", daemon=True)
        self._thread.start()

    # -- what the watch calls -----------------------------------------------------------------------------------------

    def add(self, facts: StepFacts, figures: Iterable[Figure] = ()) -> None:
        """Add a watched step."""
        step = _Step(facts, tuple(figures), keeps_histograms(self._watched))
        self._watched += bool(step.figures)
        self._items.put(step)

    def find(self, found: Found) -> None:
        """Add a finding; it replaces the one with the same id and tensor."""
        self._items.put(found)

    def keep_full(self, save: Callable[[Path], object], step: int, reason: str) -> str | None:
        """Save a step recorded in full in a folder beside this file, and list it; returns the problem, if any."""
        folder = self.path.with_name(f"{self.path.stem}.steps")
        name = f"{step}.safetensors" if self.run == 1 else f"{self.run}-{step}.safetensors"
        try:
            folder.mkdir(exist_ok=True)
            save(folder / name)
        except (OSError, StorageError) as error:
            return f"step {step} could not be saved in full: {error}"
        self.recorded(step, f"{folder.name}/{name}", reason)
        return None

    def recorded(self, step: int, file: str, reason: str) -> None:
        """List a step recorded in full, in a file beside this one."""
        self._items.put(_Recorded(step, file, reason))

    def flush(self, timeout: float = 30) -> bool:
        """Wait until everything added so far is written or has failed to be; returns False after `timeout` seconds."""
        done = threading.Event()
        self._items.put(done)
        return done.wait(timeout)

    def close(self, status: Literal["ended"] | str = "ended") -> None:
        """Write all items and the status of the run, and close the file. Does nothing in a forked process."""
        if os.getpid() != self._process or not self._thread.is_alive():
            return
        self._items.put(_End(status, time.time()))
        self._items.put(None)
        self._thread.join()

    # -- the thread ---------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        closing = False
        while not closing:
            closing = self._take_batch()
            self._write()
        self._connection.close()

    def _take_batch(self) -> bool:
        """Wait for an item, then for those within `BATCH` seconds of it; returns whether the run was closed."""
        until: float | None = None
        while True:
            try:
                item = self._items.get(timeout=None if until is None else max(0.0, until - time.monotonic()))
            except Empty:
                return False
            if item is None:
                return True
            if isinstance(item, threading.Event):
                self._write()
                item.set()
                continue
            self._waiting.append(item)
            until = time.monotonic() + BATCH if until is None else until

    def _write(self) -> None:
        """Write all waiting items in one transaction; if it fails they keep waiting."""
        if not self._waiting:
            return
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            for item in self._waiting:
                self._put(item)
            self._put_chunks()
            self._connection.execute("COMMIT")
        except (sqlite3.Error, OSError) as error:
            self._fail(error)
            return
        self._waiting.clear()
        self.problem = None

    def _fail(self, error: Exception) -> None:
        self.problem = f"{self.path} cannot be written now: {error}"
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")
        self._forget()
        surplus = len(self._waiting) - WAITING
        if surplus > 0:
            self.dropped += surplus
            del self._waiting[:surplus]

    def _forget(self) -> None:
        """Forget the ids of rows in the file: after a failure they do not exist."""
        self._series: dict[tuple[str, str], int] = {}
        self._layouts: dict[tuple[str, tuple[int, ...]], int] = {}
        self._chunks: dict[int, _Chunk] = {}
        self._grown: set[int] = set()

    # -- the tables ---------------------------------------------------------------------------------------------------

    def _begin(self, every: int, start: int, versions: Mapping[str, str]) -> int:
        execute = self._connection.execute
        execute("BEGIN IMMEDIATE")
        (last,) = execute("SELECT max(id) FROM run").fetchone()
        if start and last is not None:
            self._cut(last, start)
            execute("UPDATE run SET status = 'running', ended = NULL WHERE id = ?", (last,))
            run = int(last)
        else:
            row = (time.time(), "running", sys.argv[0] if sys.argv else "", every, json.dumps(dict(versions)))
            added = execute("INSERT INTO run (began, status, script, every, versions) VALUES (?, ?, ?, ?, ?)", row)
            run = int(added.lastrowid or 0)
        execute("COMMIT")
        return run

    def _cut(self, run: int, start: int) -> None:
        """Delete the steps of a run after `start`."""
        execute = self._connection.execute
        for table in TABLES:
            execute(f"DELETE FROM {table} WHERE run = ? AND step > ?", (run, start))
        execute("DELETE FROM finding WHERE run = ? AND since > ?", (run, start))
        mine = "layout IN (SELECT id FROM layout WHERE run = ?)"
        execute(f"DELETE FROM histogram WHERE {mine} AND step > ?", (run, start))
        execute(f"DELETE FROM chunk WHERE {mine} AND first > ?", (run, start))
        names = ", ".join(format.COLUMNS)
        for identity, steps, *columns in execute(
            f"SELECT id, steps, {names} FROM chunk WHERE {mine} AND last > ?", (run, start)
        ).fetchall():
            kept = [step for step in format.read_integers(steps).tolist() if step <= start]
            shorter = [
                format.truncated(column, name, len(steps) // 8, len(kept))
                for name, column in zip(format.COLUMNS, columns, strict=True)
            ]
            self._replace(identity, kept, shorter)

    def _put(self, item: _Item) -> None:
        match item:
            case _Step():
                self._put_step(item.facts)
                self._put_figures(item)
            case Found():
                self._put_finding(item)
            case _Recorded():
                row = (self.run, item.step, item.file, item.reason)
                self._connection.execute("INSERT OR REPLACE INTO recording VALUES (?, ?, ?, ?)", row)
            case _End():
                ending = (item.status, item.when, self.run)
                self._connection.execute("UPDATE run SET status = ?, ended = ? WHERE id = ?", ending)

    def _put_step(self, facts: StepFacts) -> None:
        norm, clipped = facts.clipped or (None, None)
        self._connection.execute(
            "INSERT OR REPLACE INTO step VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                self.run, facts.step, facts.time, _real(facts.loss), json.dumps(list(facts.rates)),
                facts.skipped, _real(facts.scale), _real(norm), _real(clipped), facts.passes,
            ),
        )  # fmt: skip

    def _put_finding(self, found: Found) -> None:
        self._connection.execute(
            "INSERT OR REPLACE INTO finding (run, finding, severity, name, place, since, until, text, evidence, advice,"
            " rows, size) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                self.run, found.id, found.severity, found.where, found.place, found.since, found.until, found.text,
                json.dumps(list(found.evidence)), found.advice, json.dumps(list(found.rows)), found.size,
            ),
        )  # fmt: skip

    def _put_figures(self, item: _Step) -> None:
        step = item.facts.step
        by_kind: dict[str, list[Figure]] = {}
        for figure in item.figures:
            by_kind.setdefault(figure.kind, []).append(figure)
        for kind, figures in by_kind.items():
            layout = self._layout(kind, tuple(self._identity(figure) for figure in figures))
            chunk = self._chunks.setdefault(layout, _Chunk())
            chunk.steps.append(step)
            chunk.rows.append(format.row(figure.statistics for figure in figures))
            self._grown.add(layout)
            if len(chunk.steps) == CHUNK:
                self._put_chunk(layout)
                del self._chunks[layout]
            if item.histograms and any(figure.statistics.magnitudes for figure in figures):
                counts = format.histograms([figure.statistics for figure in figures])
                self._connection.execute("INSERT OR REPLACE INTO histogram VALUES (?, ?, ?)", (layout, step, counts))

    def _identity(self, figure: Figure) -> int:
        key = (figure.kind, figure.name)
        if key not in self._series:
            row = (self.run, *key, figure.layer, figure.type, figure.dtype)
            known = "SELECT id FROM series WHERE run = ? AND kind = ? AND name = ?"
            execute = self._connection.execute
            execute("INSERT OR IGNORE INTO series (run, kind, name, layer, type, dtype) VALUES (?, ?, ?, ?, ?, ?)", row)
            (self._series[key],) = execute(known, row[:3]).fetchone()
        return self._series[key]

    def _layout(self, kind: str, series: tuple[int, ...]) -> int:
        key = (kind, series)
        if key not in self._layouts:
            row = (self.run, kind, format.integers(series))
            execute = self._connection.execute
            known = execute("SELECT id FROM layout WHERE run = ? AND kind = ? AND series = ?", row).fetchone()
            added = known or (execute("INSERT INTO layout (run, kind, series) VALUES (?, ?, ?)", row).lastrowid,)
            self._layouts[key] = int(added[0] or 0)
        return self._layouts[key]

    def _put_chunks(self) -> None:
        for layout in sorted(self._grown):
            self._put_chunk(layout)
        self._grown.clear()
        for layout in list(self._chunks)[:-OPEN]:
            del self._chunks[layout]

    def _put_chunk(self, layout: int) -> None:
        self._grown.discard(layout)
        chunk = self._chunks[layout]
        columns = format.columns(chunk.rows)
        if chunk.id is not None:
            self._replace(chunk.id, chunk.steps, columns)
            return
        row = (layout, chunk.steps[0], chunk.steps[-1], format.integers(chunk.steps), *columns)
        places = ", ".join("?" * len(row))
        names = ", ".join(format.COLUMNS)
        added = self._connection.execute(
            f"INSERT INTO chunk (layout, first, last, steps, {names}) VALUES ({places})", row
        )
        chunk.id = added.lastrowid

    def _replace(self, identity: int, steps: Sequence[int], columns: Sequence[bytes]) -> None:
        names = ", ".join(f"{name} = ?" for name in format.COLUMNS)
        row = (steps[-1], format.integers(steps), *columns, identity)
        self._connection.execute(f"UPDATE chunk SET last = ?, steps = ?, {names} WHERE id = ?", row)


def _real(number: float | None) -> float | str | None:
    """NaN as text: SQLite stores NaN as NULL, which means no loss."""
    return "nan" if number is not None and number != number else number
