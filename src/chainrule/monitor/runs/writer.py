"""Writes the file of a run from a thread of its own, so that training never waits for a disk.

Each batch is one transaction, so a process killed at any moment leaves whole batches. A chunk that is not full is
rewritten, longer, with each batch: a slow run loses no more than a fast one, and the chunks of both end up full. Items
that cannot be written (a full disk) wait and are tried again. The thread never raises.
"""

from __future__ import annotations

import json
import math
import os
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Literal

from chainrule.graph.history import Kind, Noticed, StepFacts, Unwatched
from chainrule.graph.statistics import Statistics
from chainrule.monitor.runs import format
from chainrule.monitor.runs.found import Found
from chainrule.process import Process

BATCH = 1.0  # seconds between two writes
CHUNK = 64  # steps in a full chunk
OPEN = 64  # layouts whose chunks still grow; older ones are final
HISTOGRAMS = 10  # histograms are stored at every tenth watched step
BESIDE = 100  # files that are tried where one is damaged
LOCKED = 10  # seconds to wait for another process that writes
WAITING = 5000  # items that wait at most while nothing can be written


@dataclass(frozen=True, slots=True)
class Figure:
    """The statistics of one tensor at one step."""

    kind: Kind
    name: str
    layer: int
    type: str
    dtype: str
    statistics: Statistics


_Item = Callable[[], object]
"""Puts one thing into the tables."""


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

    With `start`, the number of steps done before, the last run of the file continues after that step. Its later steps,
    which a process did that then died, are deleted. Otherwise the run is new.

    Raises StorageError if the file cannot be opened, is not the file of a run, or has a newer version.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, every: int = 1, start: int = 0, versions: Mapping[str, str] | None = None
    ) -> None:
        self.notice: str | None = None  # why the run is in another file than `path`
        self.problem: str | None = None  # why nothing can be written since the last batch that was
        self.dropped = 0  # items that were not written
        self._process = Process()
        self._items: SimpleQueue[_Item | threading.Event | None] = SimpleQueue()
        self._waiting: list[_Item] = []
        self._forget()
        self._watched = 0  # how many steps with tensors were added
        self.path = Path(path).absolute()  # the script may change the working directory
        self.run = self._open_or_beside(every, start, versions or {})
        self._thread = threading.Thread(target=self._work, name="chainrule writes a run", daemon=True)
        self._thread.start()

    # -- called by the watch ------------------------------------------------------------------------------------------

    def add(self, facts: StepFacts, figures: Iterable[Figure] = ()) -> None:
        """Add a watched step."""
        tensors, histograms = tuple(figures), keeps_histograms(self._watched)
        self._watched += bool(tensors)
        self._items.put(lambda: self._put_step(facts, tensors, histograms))

    def add_noticed(self, noticed: Noticed) -> None:
        """Add what a look at a step noticed."""
        row = {name: getattr(noticed, name) for name in ("step", "lost", "place")}
        lists = {name: json.dumps(list(getattr(noticed, name))) for name in ("rates", "parameters")}
        self._items.put(lambda: self._insert("noticed", run=self.run, loss=_real(noticed.loss), **row, **lists))

    def add_unwatched(self, steps: Sequence[Unwatched]) -> None:
        """Add the losses of steps between two watched ones."""
        rows = [[each.step, each.loss if math.isfinite(each.loss) else None, each.nodes] for each in steps]
        self._items.put(lambda: self._insert("unwatched", run=self.run, step=rows[-1][0], losses=json.dumps(rows)))

    def find(self, found: Found) -> None:
        """Add a finding; it replaces the one with the same id and tensor."""
        self._items.put(lambda: self._insert("finding", run=self.run, **found.row()))

    def keep_full(self, save: Callable[[Path], object], step: int, reason: str) -> str | None:
        """Save a step recorded in full in a folder beside this file, and list it; returns the problem, if any."""
        folder = self.path.with_name(f"{self.path.stem}.steps")
        name = f"{step}.safetensors" if self.run == 1 else f"{self.run}-{step}.safetensors"
        try:
            folder.mkdir(exist_ok=True)
            save(folder / name)
        except Exception as error:  # a full disk, or an `open` that the script has replaced
            return f"step {step} could not be saved in full: {error}"
        self.recorded(step, f"{folder.name}/{name}", reason)
        return None

    def recorded(self, step: int, file: str, reason: str) -> None:
        """List a step recorded in full, in a file beside this one."""
        self._items.put(lambda: self._insert("recording", run=self.run, step=step, file=file, reason=reason))

    def flush(self, timeout: float = 30) -> bool:
        """Wait until everything added so far is written or has failed to be; False after `timeout` seconds."""
        done = threading.Event()
        self._items.put(done)
        return done.wait(timeout)

    def close(self, status: Literal["ended"] | str = "ended") -> None:
        """Write all items and the status of the run, and close the file. Does nothing in a forked process."""
        if self._process.is_left or not self._thread.is_alive():
            return
        self._items.put(lambda: self._update("run", self.run, status=status, ended=time.time()))
        self._items.put(None)
        self._thread.join()

    # -- the file -----------------------------------------------------------------------------------------------------

    def _open_or_beside(self, every: int, start: int, versions: Mapping[str, str]) -> int:
        """Open the file and begin the run, in a new file beside one that is damaged; returns the run's number."""
        first = self.path
        for number in range(2, BESIDE):
            try:
                return self._open(every, start, versions)
            except format.DamagedError as error:
                self.path = first.with_stem(f"{first.stem}-{number}")
                self.notice = f"{self.notice or error} The run goes to {self.path}."
        raise format.damaged(first, f"and so are {BESIDE - 2} more beside it")

    def _open(self, every: int, start: int, versions: Mapping[str, str]) -> int:
        self._connection = format.connect_to_write(self.path)
        try:
            with format.writing(self.path):
                run = self._begin(every, start, versions)
            self._connection.execute(f"PRAGMA busy_timeout = {1000 * LOCKED}")
        except BaseException:
            self._connection.close()
            raise
        return run

    def _execute(self, statement: str, values: Sequence[Any] = ()) -> sqlite3.Cursor:
        return self._connection.execute(statement, [_stored(each) for each in values])

    # -- the thread ---------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        closing = False
        while not closing:
            closing = self._take_batch()
            self._write()
        with suppress(sqlite3.Error):
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
            self._execute("BEGIN IMMEDIATE")
            for put in self._waiting:
                put()
            self._put_chunks()
            self._execute("COMMIT")
        except Exception as error:
            self._fail(error)
            return
        self._waiting.clear()
        self.problem = None

    def _fail(self, error: Exception) -> None:
        self.problem = self.problem or f"{self.path} cannot be written now: {error}"
        with suppress(sqlite3.Error):
            if self._connection.in_transaction:
                self._execute("ROLLBACK")
        self._forget()
        lasting = not isinstance(error, (sqlite3.Error, OSError))  # the items are to blame, and would be again
        surplus = len(self._waiting) - (0 if lasting else WAITING)
        if surplus > 0:
            self.dropped += surplus
            del self._waiting[:surplus]

    def _forget(self) -> None:
        """Forget the ids of rows in the file: after a failure they do not exist."""
        self._ids: dict[tuple[Any, ...], int] = {}
        self._chunks: dict[int, _Chunk] = {}
        self._grown: set[int] = set()

    # -- the tables ---------------------------------------------------------------------------------------------------

    def _insert(self, table: str, **row: Any) -> int:
        """Insert a row, or replace the one with the same key; returns its id."""
        row = {name: _stored(each) for name, each in row.items()}
        row["checksum"] = format.checksum(table, row)
        names, places = ", ".join(row), ", ".join("?" * len(row))
        added = self._execute(f"INSERT OR REPLACE INTO {table} ({names}) VALUES ({places})", tuple(row.values()))
        return added.lastrowid or 0

    def _update(self, table: str, identity: int, **row: Any) -> None:
        columns = format.SEALED[table]
        old = self._execute(f"SELECT {', '.join(columns)} FROM {table} WHERE id = ?", (identity,)).fetchone()
        row = {name: _stored(each) for name, each in row.items()}
        row["checksum"] = format.checksum(table, dict(zip(columns, old, strict=True)) | row)
        names = ", ".join(f"{name} = ?" for name in row)
        self._execute(f"UPDATE {table} SET {names} WHERE id = ?", (*row.values(), identity))

    def _id(self, table: str, key: dict[str, Any], **rest: Any) -> int:
        """The id of the row of this run with a key; it is inserted if there is none."""
        known = (table, *key.values())
        if known not in self._ids:
            key = {"run": self.run, **key}
            where = " AND ".join(f"{name} = ?" for name in key)
            found = self._execute(f"SELECT id FROM {table} WHERE {where}", tuple(key.values())).fetchone()
            self._ids[known] = int(found[0]) if found else self._insert(table, **key, **rest)
        return self._ids[known]

    def _begin(self, every: int, start: int, versions: Mapping[str, str]) -> int:
        self._execute("BEGIN IMMEDIATE")
        (run,) = self._execute("SELECT max(id) FROM run").fetchone()
        if start and run is not None:
            self._cut(run, start)
            self._update("run", run, status="running", ended=None)
        else:
            script = sys.argv[0] if sys.argv else ""
            known = json.dumps(dict(versions))
            run = self._insert("run", began=time.time(), status="running", script=script, every=every, versions=known)
        self._execute("COMMIT")
        return int(run)

    def _cut(self, run: int, start: int) -> None:
        """Delete the steps of a run after `start`."""
        for table, column in (
            ("step", "step"),
            ("noticed", "step"),
            ("unwatched", "step"),
            ("recording", "step"),
            ("finding", "since"),
        ):
            self._execute(f"DELETE FROM {table} WHERE run = ? AND {column} > ?", (run, start))
        mine = "layout IN (SELECT id FROM layout WHERE run = ?)"
        self._execute(f"DELETE FROM histogram WHERE {mine} AND step > ?", (run, start))
        self._execute(f"DELETE FROM chunk WHERE {mine} AND first > ?", (run, start))
        names = ", ".join(format.COLUMNS)
        for identity, series, steps, *columns in self._execute(
            f"SELECT chunk.id, layout.series, steps, {names} FROM chunk JOIN layout ON layout.id = chunk.layout "
            "WHERE layout.run = ? AND last > ?",
            (run, start),
        ).fetchall():
            kept = [step for step in format.read_integers(steps).tolist() if step <= start]
            shorter = [
                format.truncated(column, name, len(series) // 8, len(steps) // 8, len(kept))
                for name, column in zip(format.COLUMNS, columns, strict=True)
            ]
            self._update("chunk", identity, **_columns(kept, shorter))

    def _put_step(self, facts: StepFacts, figures: Sequence[Figure], histograms: bool) -> None:
        norm, clipped = facts.clipped or (None, None)
        distance, ratio = facts.distance or (None, None)
        self._insert(
            "step", run=self.run, step=facts.step, time=facts.time, loss=_real(facts.loss),
            rates=json.dumps(list(facts.rates)), skipped=facts.skipped, scale=_real(facts.scale), norm=_real(norm),
            norm_clipped=_real(clipped), passes=facts.passes, counts=json.dumps(list(facts.counts)),
            evaluated=facts.evaluated, dropped=facts.dropped, restarted=facts.restarted, mean_distance=_real(distance),
            variance_ratio=_real(ratio), estimate=facts.estimate, rewritten=facts.rewritten,
        )  # fmt: skip
        by_kind: dict[str, list[Figure]] = {}
        for figure in figures:
            by_kind.setdefault(figure.kind, []).append(figure)
        for kind, several in by_kind.items():
            self._put_figures(facts.step, kind, several, histograms)

    def _put_figures(self, step: int, kind: str, figures: Sequence[Figure], histograms: bool) -> None:
        series = format.integers(
            [
                self._id(
                    "series", {"kind": kind, "name": each.name}, layer=each.layer, type=each.type, dtype=each.dtype
                )
                for each in figures
            ]
        )
        layout = self._id("layout", {"kind": kind, "series": series})
        chunk = self._chunks.setdefault(layout, _Chunk())
        chunk.steps.append(step)
        chunk.rows.append(format.row(figure.statistics for figure in figures))
        self._grown.add(layout)
        if len(chunk.steps) == CHUNK:
            self._put_chunk(layout)
            del self._chunks[layout]
        if histograms and any(figure.statistics.magnitudes for figure in figures):
            counts = format.histograms([figure.statistics for figure in figures])
            self._insert("histogram", layout=layout, step=step, counts=counts)

    def _put_chunks(self) -> None:
        for layout in sorted(self._grown):
            self._put_chunk(layout)
        self._grown.clear()
        for layout in list(self._chunks)[:-OPEN]:
            del self._chunks[layout]

    def _put_chunk(self, layout: int) -> None:
        self._grown.discard(layout)
        chunk = self._chunks[layout]
        columns = _columns(chunk.steps, format.columns(chunk.rows))
        if chunk.id is None:
            chunk.id = self._insert("chunk", layout=layout, first=chunk.steps[0], **columns)
        else:
            self._update("chunk", chunk.id, **columns)


def _columns(steps: Sequence[int], columns: Sequence[bytes]) -> dict[str, Any]:
    """The columns of a chunk that change as it grows."""
    return {
        "last": steps[-1], "steps": format.integers(steps), **dict(zip(format.COLUMNS, columns, strict=True))
    }  # fmt: skip


def _stored(value: Any) -> Any:
    """A value as SQLite can store it: a lone surrogate in a name is not text."""
    if not isinstance(value, str) or value.isascii():
        return value
    return value.encode(errors="backslashreplace").decode()


def _real(number: float | None) -> float | str | None:
    """NaN as text: SQLite stores NaN as NULL, which means no loss."""
    return "nan" if number is not None and number != number else number
