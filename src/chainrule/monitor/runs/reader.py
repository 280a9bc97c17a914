"""Reads a run from its file, even while another process writes it."""

from __future__ import annotations

import json
import math
import os
import sqlite3
import weakref
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import lru_cache, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, Self, TypeVar, get_args

import numpy as np

from chainrule.errors import ChainruleError, MissingError, StorageError
from chainrule.graph.history import History, Kind, Noticed, Series, StepFacts, Unwatched
from chainrule.graph.statistics import Statistics
from chainrule.monitor.runs import format, found
from chainrule.monitor.runs.found import Found

if TYPE_CHECKING:
    from chainrule.monitor.runs.format import Array

Table = tuple["Array", "list[Tensor]", "Array"]
"""Steps, tensors, and numbers, (tensors, steps)."""

T = TypeVar("T")
P = ParamSpec("P")
DAMAGE = (
    ValueError, TypeError, LookupError, OverflowError, RecursionError, MemoryError, zlib.error
)  # fmt: skip
LATEST = 2.0**37  # seconds since the epoch

KINDS: tuple[Kind, ...] = get_args(Kind)
STATISTICS = ("elements", "norm", "mean", "std", "low", "high", "zeros", "not_finite")  # in the order of the class


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor with statistics: the path of its parameter or module, its place in forward order, its class."""

    id: int
    kind: Kind
    name: str
    layer: int
    type: str
    dtype: str


@dataclass(frozen=True, slots=True)
class Recorded:
    """A step recorded in full: the file beside the run's that `chainrule.load` reads, and the reason."""

    step: int
    file: Path
    reason: str


def _reads(method: Callable[P, T]) -> Callable[P, T]:
    """A method for which content that no watch wrote is a StorageError."""

    @wraps(method)
    def read(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return method(*args, **kwargs)
        except ChainruleError:
            raise
        except DAMAGE as error:
            raise format.damaged(args[0].path, error) from error  # type: ignore[attr-defined]

    return read


class RunReader:
    """Reads one run from the file at `path`, see `Run`."""

    def __init__(self, path: str | os.PathLike[str], run: int | None = None) -> None:
        self.path = Path(path)
        self._connection = format.connect_to_read(path)
        dropped = weakref.finalize(self, self._connection.close)  # Python 3.13 warns of one that nobody closed
        dropped.atexit = False
        try:
            self._begin(run)
        except BaseException:
            self.close()
            raise

    @_reads
    def _begin(self, run: int | None) -> None:
        self.runs = tuple(row[0] for row in self._query("SELECT id FROM run ORDER BY id"))
        if run not in (None, *self.runs) or not self.runs:
            there = ", ".join(map(str, self.runs)) or "none yet"
            raise MissingError(f"{self.path} has no run number {run or 1}; the numbers in it: {there}.")
        self.id: int = self.runs[-1] if run is None else run
        began, script, every, versions = self._row("began, script, every, versions")
        self.began: float = began
        self.script: str = script
        self.every: int = every
        self.versions: dict[str, str] = json.loads(versions)
        if not (0 <= began < LATEST and isinstance(self.versions, dict) and _are(str, self.versions.values())):
            raise ValueError("the row of a run")

    # -- the run ------------------------------------------------------------------------------------------------------

    @property
    def status(self) -> str:
        """`running` until it is closed; then `ended`, or the exception that ended it. A killed run stays `running`."""
        return str(self._row("status")[0])

    @property
    def ended(self) -> float | None:
        """Seconds since the epoch; None if the run was not closed."""
        ended: float | None = self._row("ended")[0]
        return ended

    @_reads
    def _row(self, columns: str) -> Sequence[Any]:
        for row in self._rows(columns, "run", "WHERE id = ?", self.id):
            return row
        raise ValueError(f"there is no run {self.id} any more")

    # -- the steps ----------------------------------------------------------------------------------------------------

    @_reads
    def steps(self) -> list[StepFacts]:
        """Each watched step, apart from its tensors."""
        full = self.recordings().keys()
        columns = "step, time, loss, rates, skipped, scale, norm, norm_clipped, passes, evaluated, counts, dropped, "
        columns += "restarted, mean_distance, variance_ratio, estimate, rewritten"
        return [_facts(row, full) for row in self._of_run(columns, "step", "step")]

    @_reads
    def noticed(self) -> list[Noticed]:
        """What a look at every step noticed, also between the watched steps."""
        columns = "step, rates, lost, parameters, loss, place"
        return [_noticed(row) for row in self._of_run(columns, "noticed", "step")]

    @_reads
    def unwatched(self) -> list[Unwatched]:
        """The loss of each step between two watched ones, where it is known."""
        return [each for row in self._of_run("step, losses", "unwatched", "step") for each in _unwatched(row[1])]

    @_reads
    def losses(self) -> list[tuple[int, float]]:
        """The loss of each watched step that has one."""
        return [(step, float(loss)) for step, loss in self._of_run("step, loss", "step", "step") if loss is not None]

    @_reads
    def recordings(self) -> dict[int, Recorded]:
        """The steps recorded in full."""
        rows = self._of_run("step, file, reason", "recording", "step")
        return {step: Recorded(step, self.path.parent / file, reason) for step, file, reason in rows}

    @_reads
    def findings(self) -> tuple[Found, ...]:
        """The findings of the run, in the order of the steps since which they hold."""
        return tuple(Found.of_row(row) for row in self._of_run(", ".join(found.COLUMNS), "finding", "since, id"))

    # -- the tensors --------------------------------------------------------------------------------------------------

    @_reads
    def tensors(self, kind: Kind | None = None) -> list[Tensor]:
        """Every tensor with statistics, in forward order."""
        rows = self._of_run("id, kind, name, layer, type, dtype", "series", "layer, id")
        tensors = [Tensor(*row) for row in rows]
        if not all(each.kind in KINDS for each in tensors):
            raise ValueError("a tensor of no kind")
        return [each for each in tensors if kind in (None, each.kind)]

    @_reads
    def series(self, kind: Kind, name: str) -> Series:
        """One tensor over time. Raises MissingError with near matches if the run has no such tensor."""
        tensors = [each for each in self.tensors(kind) if each.name == name]
        if not tensors:
            raise MissingError(self._no_series(kind, name))
        return self._history(tensors[:1], self.steps()).series[kind, name]

    @_reads
    def table(self, kind: Kind, figure: str, marked: bool = False) -> Table:
        """One statistic (`norm`, `mean`, `std`, `low`, `high`, `zeros`, ...) of all tensors of a kind.

        Returns the steps, the tensors in forward order, and the numbers, (tensors, steps), NaN where there is none.
        Statistics are of the finite elements; `marked` puts infinity where a tensor has others.
        """
        if figure not in format.COLUMNS:
            raise MissingError(f"A run has no statistic {figure!r}; there are {', '.join(map(repr, format.COLUMNS))}.")
        tensors = self.tensors(kind)
        row_of = {tensor.id: row for row, tensor in enumerate(tensors)}
        parts = list(self._chunks(kind, (figure, "not_finite") if marked else (figure,)))
        steps = np.unique(np.concatenate([part.steps for part in parts])) if parts else np.zeros(0, np.int64)
        numbers = np.full((len(tensors), len(steps)), np.nan, np.float64 if figure in format.COUNTS else np.float32)
        for part in parts:
            rows = np.array([row_of[each] for each in part.series], np.int64)
            column = part.columns[figure]
            if marked and (broken := part.columns["not_finite"] > 0).any():
                column = np.where(broken, np.inf, column)
            numbers[np.ix_(rows, np.searchsorted(steps, part.steps))] = column
        return steps, tensors, numbers

    @_reads
    def ratios(self) -> Table:
        """The norm of each parameter's update over the norm of the parameter before it; NaN for a norm of zero."""
        steps, tensors, updates = self.table("update", "norm", marked=True)
        before, parameters, weights = self.table("parameter", "norm")
        row_of = {tensor.name: row for row, tensor in enumerate(parameters)}
        known = np.array([row for row, tensor in enumerate(tensors) if tensor.name in row_of], np.int64)
        shared, left, right = np.intersect1d(steps, before, assume_unique=True, return_indices=True)
        norms = weights[np.ix_(np.array([row_of[tensors[row].name] for row in known], np.int64), right)]
        norms[norms == 0] = np.nan
        with np.errstate(invalid="ignore"):
            return shared, [tensors[row] for row in known], updates[np.ix_(known, left)] / norms

    @_reads
    def history(
        self,
        kinds: Collection[Kind] | None = None,
        *,
        first: int | None = None,
        last: int | None = None,
        at_most: int | None = None,
    ) -> History:
        """The watched steps from `first` to `last` in the form that findings read, at most `at_most`, evenly spread.

        Each number becomes a Python object: ask for a part of a long run.
        """
        tensors = [tensor for tensor in self.tensors() if kinds is None or tensor.kind in kinds]
        low, high = -math.inf if first is None else first, math.inf if last is None else last
        steps = [each for each in self.steps() if low <= each.step <= high]
        history = self._history(tensors, steps if at_most is None else list(spread(steps, at_most)))
        history.noticed = [each for each in self.noticed() if low <= each.step <= high]
        history.unwatched = [each for each in self.unwatched() if low <= each.step <= high]
        return history

    # -- reading ------------------------------------------------------------------------------------------------------

    def _history(self, tensors: Sequence[Tensor], steps: list[StepFacts]) -> History:
        history = History(steps)
        wanted = {facts.step for facts in steps}
        by_id = {
            tensor.id: history.series.setdefault(
                (tensor.kind, tensor.name), Series(tensor.kind, tensor.name, tensor.layer, tensor.type)
            )
            for tensor in tensors
        }
        for kind in dict.fromkeys(tensor.kind for tensor in tensors):
            for part in self._chunks(kind, format.COLUMNS):
                part.fill(by_id, wanted, self._histograms(part))
        for series in by_id.values():
            _sort(series)
        return history

    def _chunks(self, kind: Kind, names: Sequence[str]) -> Iterator[_Chunk]:
        mine = "WHERE run = ? AND kind = ?"
        layouts = {each: series for (each, series) in self._rows("id, series", "layout", mine, self.id, kind)}  # noqa: C416
        where = f"WHERE layout IN (SELECT id FROM layout {mine}) ORDER BY first, id"
        for layout, steps, *data in self._rows(", ".join(("layout", "steps", *names)), "chunk", where, self.id, kind):
            if (series := layouts.get(layout)) is None:
                continue  # written since the layouts were read
            size = (len(series) // 8, len(steps) // 8)
            read = {name: format.read_column(each, name, *size) for name, each in zip(names, data, strict=True)}
            yield _Chunk(layout, format.read_integers(series).tolist(), format.read_integers(steps), read)

    def _histograms(self, chunk: _Chunk) -> dict[int, list[tuple[int, ...]]]:
        """The histograms of a chunk's tensors, by step."""
        between = "WHERE layout = ? AND step BETWEEN ? AND ?"
        rows = self._rows("step, counts", "histogram", between, chunk.layout, int(chunk.steps[0]), int(chunk.steps[-1]))
        return {step: format.read_histograms(counts, len(chunk.series)) for step, counts in rows}

    def _no_series(self, kind: Kind, name: str) -> str:
        if kind not in KINDS:
            return f"A run has no series of kind {kind!r}; the kinds are {', '.join(map(repr, KINDS))}."
        names = [tensor.name for tensor in self.tensors(kind)]
        near = get_close_matches(name, names, 3) or names[:3]
        matches = f"Near matches: {', '.join(map(repr, near))}." if near else "It has none of this kind."
        return f"{self.path} has no {kind} named {name!r}. {matches}"

    def _of_run(self, columns: str, table: str, order: str) -> Iterator[Sequence[Any]]:
        """The rows of a table that belong to this run."""
        return self._rows(columns, table, f"WHERE run = ? ORDER BY {order}", self.id)

    def _rows(self, columns: str, table: str, where: str, *values: Any) -> Iterator[Sequence[Any]]:
        """These columns of the rows of a table, once the checksum of each row is seen to be right."""
        wanted = columns.split(", ")
        read = list(dict.fromkeys(("checksum", *format.SEALED[table], *wanted)))
        for row in self._query(f"SELECT {', '.join(read)} FROM {table} {where}", *values):
            found = format.checked(table, dict(zip(read, row, strict=True)))
            yield [found[name] for name in wanted]

    def _query(self, statement: str, *values: Any) -> Iterator[tuple[Any, ...]]:
        try:
            for row in self._connection.execute(statement, values):  # noqa: UP028 (it would close the cursor after the connection)
                yield row
        except sqlite3.ProgrammingError as error:
            raise StorageError(f"{self.path} was closed. Open it again with chainrule.runs.open().") from error
        except sqlite3.Error as error:
            raise format.damaged(self.path, error) from error

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        (count,) = next(self._query("SELECT count(*) FROM step WHERE run = ?", self.id))
        return f"<chainrule.runs.Run {self.id} of {self.path}: {count} watched steps, {self.status}>"


@dataclass(frozen=True, slots=True)
class _Chunk:
    """One chunk, unpacked."""

    layout: int
    series: list[int]
    steps: Array
    columns: dict[str, Array]

    def fill(
        self, series: dict[int, Series], wanted: Collection[int], histograms: dict[int, list[tuple[int, ...]]]
    ) -> None:
        """Add the statistics of this chunk at the wanted steps to the series."""
        places = [place for place, step in enumerate(self.steps.tolist()) if step in wanted]
        for row, identity in enumerate(self.series):
            if identity not in series:
                continue
            columns = [self.columns[name][row, places].tolist() for name in STATISTICS]
            for step, numbers in zip(self.steps[places].tolist(), zip(*columns, strict=True), strict=True):
                found = Statistics(*numbers)
                found = replace(found, magnitudes=histograms[step][row]) if step in histograms else found
                series[identity].add(step, found)


def spread(items: Sequence[T], most: int) -> Sequence[T]:
    """At most `most` items: the first, the last, and evenly spaced ones between."""
    places = np.linspace(0, len(items) - 1, most).round().astype(int).tolist()
    return items if len(items) <= most else [items[place] for place in places]


def _sort(series: Series) -> None:
    """Put the steps in order: the steps of a tensor that comes and goes are in the chunks of several layouts."""
    order = sorted(range(len(series.steps)), key=series.steps.__getitem__)
    if order != list(range(len(order))):
        series.steps[:] = [series.steps[place] for place in order]
        series.statistics[:] = [series.statistics[place] for place in order]


@lru_cache(maxsize=1024)  # most steps have the rates of the step before
def _rates(text: str) -> tuple[float, ...]:
    rates = json.loads(text)
    if not _are((int, float), rates):
        raise ValueError(f"learning rates cannot be {text[:60]}")
    return tuple(rates)


@lru_cache(maxsize=8)  # of SGD there are none
def _counts(text: str) -> tuple[int, ...]:
    counts = json.loads(text)
    if not _are(int, counts):
        raise ValueError(f"counts of steps cannot be {text[:60]}")
    return tuple(counts)


def _are(types: type | tuple[type, ...], items: Iterable[Any]) -> bool:
    return all(isinstance(each, types) and not isinstance(each, bool) for each in items)


def _facts(row: Sequence[Any], full: Collection[int]) -> StepFacts:
    step, time, loss, rates, skipped, scale, norm, clipped, passes, evaluated, counts, *rest = row
    dropped, restarted, distance, ratio, estimate, rewritten = rest
    return StepFacts(
        step, time, None if loss is None else float(loss), _rates(rates), bool(skipped),
        None if scale is None else float(scale), None if norm is None else (float(norm), float(clipped)), passes,
        step in full, _counts(counts), evaluated, dropped, restarted,
        None if distance is None else (float(distance), float(ratio)), bool(estimate), bool(rewritten),
    )  # fmt: skip


def _noticed(row: Sequence[Any]) -> Noticed:
    step, rates, lost, parameters, loss, place = row
    names = json.loads(parameters)
    if not _are(str, names):
        raise ValueError(f"parameters cannot be {parameters[:60]}")
    return Noticed(step, _rates(rates), bool(lost), tuple(names), None if loss is None else float(loss), place)


def _unwatched(text: str) -> Iterator[Unwatched]:
    for row in json.loads(text):
        step, loss, nodes = row
        if not _are(int, (step, nodes)) or not (loss is None or _are((int, float), (loss,))):
            raise ValueError(f"the loss of a step cannot be {row}")
        yield Unwatched(step, math.nan if loss is None else float(loss), nodes)
