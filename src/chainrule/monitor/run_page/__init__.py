"""The page of a run: one HTML file that works offline, like the page of one step.

A screen does not show a hundred thousand steps, so the steps are grouped into columns: a column shows the mean, the
minimum and the maximum of the loss, and the maximum in a heat map. The page states how many steps a column covers.
types.d.ts declares the data field by field, and the modules of the page are checked against it.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from datetime import datetime
from functools import cache
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from chainrule.graph.history import StepFacts
from chainrule.monitor.runs.found import by_cause
from chainrule.views import page
from chainrule.views.blocks import printable

if TYPE_CHECKING:
    from chainrule.monitor.runs.reader import RunReader, Table

SHARED = ("numbers.js", "dom.js")  # also in the page of one step
MODULES = ("scene.js", "curves.js", "heat.js", "findings.js", "main.js")
FORMAT, VERSION = "chainrule-run", 1
COLUMNS = 600
ROWS = 400  # in a heat map; of more tensors it shows every second, third, ...

Array = npt.NDArray[Any]
Edges = list[tuple[int, int]]
"""The first and the end index of each column among the watched steps."""


def render(run: RunReader, links: dict[int, str] | None = None) -> str:
    """The run as one self-contained HTML file; `links` are the pages of steps recorded in full."""
    style = page.read("base.css") + page.read("run.css", __name__)
    script = _script()
    parts = {
        "policy": page.policy(script, [style]),
        "title": escape(printable(f"{run.script or 'a run'}, watched")),
        "style": style,
        "data": page.embedded(data_of(run, links or {})),
        "script": script,
    }
    return re.sub(r"<!--\s*put:(\w+)\s*-->", lambda place: parts[place[1]], page.read("run.html", __name__))


def write(run: RunReader, path: Path) -> None:
    """Write the page of the run, and beside each step recorded in full the page that it links to.

    An existing page of a step is kept. Raises StorageError if a file cannot be written or a recording cannot be read.
    """
    from chainrule.graph.storage import write_atomically

    links = {}
    for step, recorded in run.recordings().items():
        target = recorded.file.with_suffix(".html")
        if recorded.file.exists() and not target.exists():
            from chainrule.recording import load  # imports torch

            load(recorded.file).save(target)
        if target.exists():
            links[step] = Path(os.path.relpath(target, path.absolute().parent)).as_posix()
    write_atomically(path, render(run, links).encode())


@cache
def _script() -> str:
    return page.joined([*(page.read(name) for name in SHARED), *(page.read(name, __name__) for name in MODULES)])


# -- the data of the page ---------------------------------------------------------------------------------------------


def data_of(run: RunReader, links: dict[int, str]) -> dict[str, Any]:
    """The data of the page, as types.d.ts declares it."""
    steps = run.steps()
    watched = np.array([facts.step for facts in steps], np.int64)
    edges = _edges(len(watched))
    shown = ("id", "severity", "where", "text", "place", "evidence", "advice", "since", "until", "because")
    return {
        "format": FORMAT,
        "version": VERSION,
        "title": run.script or "a run",
        "about": _about(run, steps),
        "columns": [[int(watched[first]), int(watched[end - 1])] for first, end in edges],
        "watched": len(watched),
        "loss": _loss(np.array([math.nan if f.loss is None else f.loss for f in steps]), edges),
        "rates": _rates(steps, edges),
        "skipped": [sum(f.skipped for f in steps[first:end]) for first, end in edges],
        "maps": [each for each in _maps(run, watched, edges) if each["rows"]],
        "findings": [{name: getattr(found, name) for name in shown} for found in by_cause(run.findings())],
        "recordings": [
            {"step": each.step, "reason": each.reason, "link": links.get(each.step, "")}
            for each in run.recordings().values()
        ],
    }


def _edges(count: int) -> Edges:
    columns = min(count, COLUMNS)
    places = np.linspace(0, count, columns + 1).round().astype(int).tolist() if columns else [0]
    return list(pairwise(places))


def _about(run: RunReader, steps: Sequence[StepFacts]) -> list[list[str]]:
    began = datetime.fromtimestamp(run.began).strftime("%Y-%m-%d %H:%M")
    facts = [["started", began], ["status", run.status], ["watched", f"{len(steps):,} steps, every {run.every:,}"]]
    facts += [["run", f"{run.id} of {len(run.runs)} in the file"]] if len(run.runs) > 1 else []
    return facts + [[name, version] for name, version in run.versions.items()]


def _loss(losses: Array, edges: Edges) -> dict[str, list[Any]]:
    """The mean, minimum and maximum of the finite losses in each column, and whether it has an infinite one."""
    curve: dict[str, list[Any]] = {"mean": [], "low": [], "high": []}
    for first, end in edges:
        part = losses[first:end]
        finite = part[np.isfinite(part)]
        for name, reduce in (("mean", np.mean), ("low", np.min), ("high", np.max)):
            curve[name].append(_entry(float(reduce(finite)), 6) if finite.size else None)
    curve["broken"] = [int(np.isinf(losses[first:end]).any()) for first, end in edges]
    return curve


def _rates(steps: Sequence[StepFacts], edges: Edges) -> list[list[Any]]:
    """The last learning rate of each parameter group in each column; groups with equal rates throughout are merged."""
    groups = max((len(facts.rates) for facts in steps), default=0)
    rates = []
    for group in range(groups):
        column = []
        for first, end in edges:
            known = [facts.rates[group] for facts in steps[first:end] if group < len(facts.rates)]
            column.append(_entry(known[-1], 6) if known else None)
        if column not in rates:
            rates.append(column)
    return rates


def _maps(run: RunReader, watched: Array, edges: Edges) -> list[dict[str, Any]]:
    """The heat maps: the maximum of each tensor in each column."""
    first = watched[[first for first, _ in edges]]
    last = watched[[end - 1 for _, end in edges]]

    def heat_map(hue: str, title: str, about: str, table: Table) -> dict[str, Any]:
        steps, tensors, numbers = table
        kept = slice(None, None, max(1, math.ceil(len(tensors) / ROWS)))
        begins, ends = np.searchsorted(steps, first), np.searchsorted(steps, last, side="right")
        columns = [_largest(numbers[kept, begin:end]) for begin, end in zip(begins, ends, strict=True)]
        return {
            "hue": hue,
            "title": title,
            "about": about,
            "rows": [{"name": each.name, "type": each.type} for each in tensors[kept]],
            "left_out": len(tensors) - len(tensors[kept]),
            "cells": [[_entry(float(number), 3) for number in row] for row in zip(*columns, strict=True)],
        }

    gradients = run.table("parameter gradient", "norm", marked=True)
    outputs = run.table("value", "std", marked=True)
    output_gradients = run.table("gradient", "norm", marked=True)
    return [
        heat_map("gradient", "gradient norm", "of each parameter, as the optimizer used it", gradients),
        heat_map("value", "update / weight", "norm of the update over the norm of the parameter", run.ratios()),
        heat_map("value", "spread of outputs", "standard deviation of each module's output", outputs),
        heat_map("gradient", "gradient of outputs", "norm of the gradient of each module's output", output_gradients),
    ]


def _largest(part: Array) -> Array:
    """The maximum of each row; NaN for no number, infinity if one is not finite."""
    if not part.shape[1]:
        return np.full(part.shape[0], np.nan)
    largest: Array = np.fmax.reduce(part, axis=1)
    return largest


def _entry(number: float, digits: int) -> Any:
    """A number for JSON: None for NaN, a word for infinity."""
    if math.isnan(number):
        return None
    return ("inf" if number > 0 else "-inf") if math.isinf(number) else float(f"{number:.{digits}g}")
