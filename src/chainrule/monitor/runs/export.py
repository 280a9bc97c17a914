"""Exports a run to other tools, with their own libraries, which are imported on first use."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from chainrule.errors import MissingError, StorageError
from chainrule.graph.history import Kind
from chainrule.monitor.runs.format import COLUMNS, COUNTS

if TYPE_CHECKING:
    from chainrule.monitor.runs.reader import RunReader

FRAMES = ("pandas", "polars")
SCALARS = ("norm", "mean", "std", "low", "high", "zeros", "not_finite")  # in TensorBoard


def frame(run: RunReader, kind: Kind | None, library: str | None) -> Any:
    """A DataFrame of the steps, or of the tensors of a kind."""
    chosen = library or next((each for each in FRAMES if find_spec(each)), None)
    if chosen not in FRAMES:
        cause = f"{chosen} is neither" if chosen else "neither is installed"
        raise MissingError(f"a DataFrame needs {' or '.join(FRAMES)}, and {cause}: pip install pandas")
    return _import(chosen, "a DataFrame").DataFrame(steps_of(run) if kind is None else tensors_of(run, kind))


def steps_of(run: RunReader) -> dict[str, Any]:
    """The steps as columns."""
    steps = run.steps()
    groups = max((len(facts.rates) for facts in steps), default=0)
    rates = {
        f"learning_rate_{group}": [facts.rates[group] if group < len(facts.rates) else None for facts in steps]
        for group in range(groups)
    }
    return {
        **{name: [getattr(facts, name) for facts in steps] for name in ("step", "time", "loss")},
        **rates,
        **{name: [getattr(facts, name) for facts in steps] for name in ("skipped", "scale")},
        "norm": [facts.clipped[0] if facts.clipped else None for facts in steps],
        "norm_clipped": [facts.clipped[1] if facts.clipped else None for facts in steps],
        "passes": [facts.passes for facts in steps],
    }


def tensors_of(run: RunReader, kind: Kind) -> dict[str, Any]:
    """All tensors of a kind as columns, a row for each tensor and step."""
    tables = {name: run.table(kind, name) for name in COLUMNS}
    steps, tensors, elements = tables["elements"]
    present = ~np.isnan(elements)
    rows, columns = np.nonzero(present)
    numbers = {name: table[present] for name, (_, _, table) in tables.items()}
    counts = {name: numbers[name].astype(np.int64) for name in COUNTS}
    names = np.array([tensor.name for tensor in tensors], object)[rows]
    layers = np.array([tensor.layer for tensor in tensors], np.int64)[rows]
    types = np.array([tensor.type for tensor in tensors], object)[rows]
    return {"step": steps[columns], "name": names, "layer": layers, "type": types, **numbers, **counts}


def findings_of(run: RunReader) -> dict[str, Any]:
    """The findings as columns."""
    found = run.findings()
    names = ("id", "severity", "where", "since", "until", "text", "advice", "place", "size", "because")
    return {name: [getattr(each, name) for each in found] for name in names}


def to_parquet(run: RunReader, folder: str | os.PathLike[str]) -> None:
    """Write `steps.parquet`, `findings.parquet`, and one file for each kind of tensor."""
    arrow = _import("pyarrow", "Parquet")
    parquet = import_module("pyarrow.parquet")
    kinds = dict.fromkeys(tensor.kind for tensor in run.tensors())
    tables = {"steps": steps_of(run), "findings": findings_of(run)}
    tables |= {kind.replace(" ", "_"): tensors_of(run, kind) for kind in kinds}
    with _writing(folder) as target:
        for name, columns in tables.items():
            parquet.write_table(arrow.table(columns), target / f"{name}.parquet")


def to_tensorboard(run: RunReader, folder: str | os.PathLike[str]) -> None:
    """Write scalars: the loss, the learning rates, and the statistics of each tensor under its kind."""
    _import("tensorboard", "TensorBoard event files")
    writer_of = import_module("tensorboard.summary.writer.event_file_writer").EventFileWriter
    messages = (import_module(f"tensorboard.compat.proto.{name}_pb2") for name in ("event", "summary"))
    with _writing(folder) as target:
        writer = writer_of(str(target))
        for event in _events(run, *messages):
            writer.add_event(event)
        writer.close()


def _events(run: RunReader, event: Any, summary: Any) -> Iterator[Any]:
    """One event for each watched step, with all its scalars."""
    at: dict[int, list[tuple[str, float]]] = {}
    for facts in run.steps():
        scalars = at.setdefault(facts.step, [])
        if facts.loss is not None:
            scalars.append(("loss", facts.loss))
        scalars += [(f"learning rate/{group}", rate) for group, rate in enumerate(facts.rates)]
    times = {facts.step: facts.time for facts in run.steps()}
    for kind in dict.fromkeys(tensor.kind for tensor in run.tensors()):
        for name in SCALARS:
            steps, tensors, numbers = run.table(kind, name)
            for row, tensor in enumerate(tensors):
                tag = f"{kind}/{name}/{tensor.name}"
                for place in np.nonzero(~np.isnan(numbers[row]))[0]:
                    at.setdefault(int(steps[place]), []).append((tag, float(numbers[row, place])))
    for step, scalars in sorted(at.items()):
        values = [summary.Summary.Value(tag=tag, simple_value=number) for tag, number in scalars]
        yield event.Event(wall_time=times.get(step, run.began), step=step, summary=summary.Summary(value=values))


@contextmanager
def _writing(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """The folder, created; an error of the block is a StorageError."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        yield Path(folder)
    except OSError as error:
        raise StorageError(
            f"{folder} cannot be written: {error.strerror}. Give a folder that you can write to."
        ) from error


def _import(name: str, what: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise MissingError(f"{what} needs {name}, which is not installed: pip install {name}") from error
