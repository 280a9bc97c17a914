"""Reads a run from its file, also while it is being written."""

from __future__ import annotations

import json
import os
import sqlite3
import zlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, get_args

import numpy as np

from chainrule.errors import MissingError, StorageError
from chainrule.graph.history import History, Kind, Series, StepFacts
from chainrule.graph.statistics import Statistics
from chainrule.monitor.runs import chunks, format
from chainrule.monitor.runs.found import Found

if TYPE_CHECKING:
    from chainrule.monitor.runs.chunks import Array

Table = tuple["Array", "list[Tensor]", "Array"]
"""Steps, tensors, and numbers, (tensors, steps)."""

KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor that the run has figures of: a parameter's or a module's path, its place in forward order, its class."""

    id: int
    kind: Kind
    name: str
    layer: int
    type: str
    dtype: str


@dataclass(frozen=True, slots=True)
class Recorded:
    """A step that was recorded in full: the file, beside the run's, that `chainrule.load` reads, and why."""

    step: int
    file: Path
    reason: str


class RunReader:
    """Reads one run from the file at `path`: the last one, or that with the number `run`.

    Raises StorageError where the file is missing, no run's, or of a newer version, MissingError where it has no such
    run.
    """

    def __init__(self, path: str | os.PathLike[str], run: int | None = None) -> None:
        self.path = Path(path)
        self._connection = format.connect_to_read(path)
        self.runs = tuple(row[0] for row in self._ask("SELECT id FROM run ORDER BY id"))
        if run not in (None, *self.runs) or not self.runs:
            self.close()
            there = ", ".join(map(str, self.runs)) or "none yet"
            raise MissingError(f"{path} has no run number {run or 1}; the numbers in it: {there}.")
        self.id: int = self.runs[-1] if run is None else run

    # -- the run ------------------------------------------------------------------------------------------------------

    @property
    def status(self) -> str:
        """`running` until it was closed; then `ended`, or the exception that ended it. A killed run stays `running`."""
        return str(self._of_run("status"))

    @property
    def began(self) -> float:
        """Seconds since the epoch."""
        return float(self._of_run("began"))

    @property
    def ended(self) -> float | None:
        """Seconds since the epoch; None where it was not closed."""
        found = self._of_run("ended")
        return None if found is None else float(found)

    @property
    def script(self) -> str:
        """What was run."""
        return str(self._of_run("script"))

    @property
    def every(self) -> int:
        """Every how many steps it was watched."""
        return int(self._of_run("every"))

    @property
    def versions(self) -> dict[str, str]:
        """Of chainrule, torch and Python."""
        return dict(json.loads(self._of_run("versions")))

    def _of_run(self, column: str) -> Any:
        return next(self._ask(f"SELECT {column} FROM run WHERE id = ?", self.id))[0]

    # -- the steps ----------------------------------------------------------------------------------------------------

    def steps(self) -> list[StepFacts]:
        """Each watched step, apart from its tensors."""
        full = self.recordings().keys()
        rows = self._ask(
            "SELECT step, time, loss, rates, skipped, scale, norm, norm_clipped, passes FROM step WHERE run = ? "
            "ORDER BY step",
            self.id,
        )
        return [_facts(row, full) for row in rows]

    def losses(self) -> list[tuple[int, float]]:
        """The loss at each watched step that has one."""
        rows = self._ask("SELECT step, loss FROM step WHERE run = ? AND loss IS NOT NULL ORDER BY step", self.id)
        return [(step, float(loss)) for step, loss in rows]

    def recordings(self) -> dict[int, Recorded]:
        """The steps that were recorded in full."""
        rows = self._ask("SELECT step, file, reason FROM recording WHERE run = ? ORDER BY step", self.id)
        return {step: Recorded(step, self.path.parent / file, reason) for step, file, reason in rows}

    def findings(self) -> tuple[Found, ...]:
        """What was found to be unhealthy, in the order in which it began."""
        rows = self._ask(
            "SELECT finding, severity, name, text, evidence, advice, place, since, until, rows, size FROM finding "
            "WHERE run = ? ORDER BY since, id",
            self.id,
        )
        return tuple(_found(row) for row in rows)

    # -- the tensors --------------------------------------------------------------------------------------------------

    def tensors(self, kind: Kind | None = None) -> list[Tensor]:
        """Every tensor that there are figures of, in forward order."""
        rows = self._ask(
            "SELECT id, kind, name, layer, type, dtype FROM series WHERE run = ? ORDER BY layer, id", self.id
        )
        return [Tensor(*row) for row in rows if kind in (None, row[1])]

    def series(self, kind: Kind, name: str) -> Series:
        """One tensor over time. Raises MissingError, with what there is, where the run has no such tensor."""
        found = next((each for each in self.tensors(kind) if each.name == name), None)
        if found is None:
            raise MissingError(self._without(kind, name))
        history = self._gathered([found], None, None, None)
        return history.series[kind, name]

    def table(self, kind: Kind, figure: str, marked: bool = False) -> Table:
        """One figure (`norm`, `mean`, `std`, `low`, `high`, `zeros`, ...) of all tensors of a kind at once.

        Gives the steps, the tensors in forward order, and the numbers, (tensors, steps), NaN where there is none.
        Figures are of the finite elements alone: `marked` puts infinity where a tensor had others.
        """
        tensors = self.tensors(kind)
        row_of = {tensor.id: row for row, tensor in enumerate(tensors)}
        parts = list(self._chunks(kind, (figure, "not_finite") if marked else (figure,)))
        steps = np.unique(np.concatenate([part.steps for part in parts])) if parts else np.zeros(0, np.int64)
        numbers = np.full((len(tensors), len(steps)), np.nan, np.float64 if figure in chunks.COUNTS else np.float32)
        for part in parts:
            rows = np.array([row_of[each] for each in part.series], np.int64)
            column = part.columns[figure]
            if marked and (broken := part.columns["not_finite"] > 0).any():
                column = np.where(broken, np.inf, column)
            numbers[np.ix_(rows, np.searchsorted(steps, part.steps))] = column
        return steps, tensors, numbers

    def ratios(self) -> Table:
        """How far each step moved each parameter: the norm of its update over its own norm before it.

        NaN where all of a parameter was zero.
        """
        steps, tensors, updates = self.table("update", "norm", marked=True)
        before, parameters, weights = self.table("parameter", "norm")
        row_of = {tensor.name: row for row, tensor in enumerate(parameters)}
        known = np.array([row for row, tensor in enumerate(tensors) if tensor.name in row_of], np.int64)
        shared, left, right = np.intersect1d(steps, before, assume_unique=True, return_indices=True)
        over = weights[np.ix_(np.array([row_of[tensors[row].name] for row in known], np.int64), right)]
        over[over == 0] = np.nan
        with np.errstate(invalid="ignore"):
            return shared, [tensors[row] for row in known], updates[np.ix_(known, left)] / over

    def history(
        self,
        kinds: Collection[Kind] | None = None,
        *,
        first: int | None = None,
        last: int | None = None,
        at_most: int | None = None,
    ) -> History:
        """What was watched between two steps, as findings read it; of more than `at_most` steps evenly spread ones.

        Each number becomes a Python object: ask for a part of a long run.
        """
        tensors = [tensor for tensor in self.tensors() if kinds is None or tensor.kind in kinds]
        return self._gathered(tensors, first, last, at_most)

    # -- reading ------------------------------------------------------------------------------------------------------

    def _gathered(self, tensors: Sequence[Tensor], first: int | None, last: int | None, at_most: int | None) -> History:
        steps = [facts for facts in self.steps() if _within(facts.step, first, last)]
        if at_most is not None and len(steps) > at_most:
            steps = [steps[place] for place in np.linspace(0, len(steps) - 1, at_most).round().astype(int)]
        history = History(steps)
        wanted = {facts.step for facts in steps}
        by_id = {tensor.id: tensor for tensor in tensors}
        for tensor in tensors:
            history.series[tensor.kind, tensor.name] = _series(tensor)
        for kind in dict.fromkeys(tensor.kind for tensor in tensors):
            for part in self._chunks(kind, chunks.COLUMNS):
                part.fill(history, by_id, wanted, self._histograms(part))
        for series in history.series.values():
            _sort(series)
        return history

    def _chunks(self, kind: Kind, names: Sequence[str]) -> Iterator[_Part]:
        columns = ", ".join(f"chunk.{name}" for name in names)
        rows = self._ask(
            f"SELECT layout.id, layout.series, chunk.steps, {columns} FROM layout "
            "JOIN chunk ON chunk.layout = layout.id WHERE layout.run = ? AND layout.kind = ? "
            "ORDER BY chunk.first, chunk.id",
            self.id,
            kind,
        )
        for layout, series, steps, *data in rows:
            try:
                count = len(steps) // 8
                read = {name: chunks.read_column(each, name, count) for name, each in zip(names, data, strict=True)}
                part = _Part(layout, chunks.read_integers(series).tolist(), chunks.read_integers(steps), read)
                part.check()
            except (ValueError, zlib.error) as error:
                raise self._damaged(error) from error
            yield part

    def _histograms(self, part: _Part) -> dict[int, list[tuple[int, ...]]]:
        """The histograms of a part's tensors at the steps where they were kept."""
        rows = self._ask(
            "SELECT step, counts FROM histogram WHERE layout = ? AND step BETWEEN ? AND ?",
            part.layout,
            int(part.steps[0]),
            int(part.steps[-1]),
        )
        return {step: chunks.read_histograms(counts, len(part.series)) for step, counts in rows}

    def _without(self, kind: Kind, name: str) -> str:
        if kind not in KINDS:
            return f"A run has no series of kind {kind!r}; the kinds are {', '.join(map(repr, KINDS))}."
        from difflib import get_close_matches

        names = [tensor.name for tensor in self.tensors(kind)]
        near = get_close_matches(name, names, 3) or names[:3]
        met = f"Near matches: {', '.join(map(repr, near))}." if near else "It has none of this kind."
        return f"{self.path} has no {kind} named {name!r}. {met}"

    def _ask(self, statement: str, *values: Any) -> Iterator[tuple[Any, ...]]:
        try:
            yield from self._connection.execute(statement, values)
        except sqlite3.Error as error:
            raise self._damaged(error) from error

    def _damaged(self, error: Exception) -> StorageError:
        return StorageError(
            f"{self.path} cannot be read to its end: {error}. It is damaged; `sqlite3 {self.path} .recover` saves what "
            "is left of it."
        )

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        (count,) = next(self._ask("SELECT count(*) FROM step WHERE run = ?", self.id))
        return f"<chainrule.runs.Run {self.id} of {self.path}: {count} watched steps, {self.status}>"


@dataclass(frozen=True, slots=True)
class _Part:
    """One chunk, unpacked."""

    layout: int
    series: list[int]
    steps: Array
    columns: dict[str, Array]

    def check(self) -> None:
        """Raise ValueError where it does not have a number for each tensor and step."""
        shape = (len(self.series), len(self.steps))
        if any(column.shape != shape for column in self.columns.values()):
            raise ValueError("a chunk has other numbers than its tensors and steps ask for")

    def fill(
        self,
        history: History,
        tensors: dict[int, Tensor],
        wanted: Collection[int],
        histograms: dict[int, list[tuple[int, ...]]],
    ) -> None:
        """Add what this chunk has of these tensors at these steps."""
        places = [place for place, step in enumerate(self.steps.tolist()) if step in wanted]
        for row, identity in enumerate(self.series):
            if identity not in tensors:
                continue
            series = history.series[tensors[identity].kind, tensors[identity].name]
            columns = [self.columns[name][row, places].tolist() for name in STATISTICS]
            for step, figures in zip(self.steps[places].tolist(), zip(*columns, strict=True), strict=True):
                found = Statistics(*figures)
                series.add(step, replace(found, magnitudes=histograms[step][row]) if step in histograms else found)


STATISTICS = ("elements", "norm", "mean", "std", "low", "high", "zeros", "not_finite")  # in the order of the class


def _within(step: int, first: int | None, last: int | None) -> bool:
    return (first is None or step >= first) and (last is None or step <= last)


def _sort(series: Series) -> None:
    """Put the steps in order: a tensor that comes and goes has its steps in the chunks of several layouts."""
    order = sorted(range(len(series.steps)), key=series.steps.__getitem__)
    if order != list(range(len(order))):
        series.steps[:] = [series.steps[place] for place in order]
        series.statistics[:] = [series.statistics[place] for place in order]


def _series(tensor: Tensor) -> Series:
    return Series(tensor.kind, tensor.name, tensor.layer, tensor.type)


@lru_cache(maxsize=1024)  # most steps have the rates of the step before
def _rates(text: str) -> tuple[float, ...]:
    return tuple(json.loads(text))


def _facts(row: tuple[Any, ...], full: Collection[int]) -> StepFacts:
    step, time, loss, rates, skipped, scale, norm, clipped, passes = row
    return StepFacts(
        step,
        time,
        None if loss is None else float(loss),
        _rates(rates),
        bool(skipped),
        None if scale is None else float(scale),
        None if norm is None else (float(norm), float(clipped)),
        passes,
        step in full,
    )


def _found(row: tuple[Any, ...]) -> Found:
    identity, severity, where, text, evidence, advice, place, since, until, rows, size = row
    return Found(
        identity, severity, where, text, tuple(json.loads(evidence)), advice, place, since, until,
        tuple(json.loads(rows)), size,
    )  # fmt: skip
