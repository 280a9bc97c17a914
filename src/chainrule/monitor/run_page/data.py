"""The numbers of a run's page: time cut into columns, small enough to be opened at once.

Written field by field in types.d.ts, which the page's modules are checked against.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from chainrule.graph.history import StepFacts

if TYPE_CHECKING:
    from chainrule.monitor.runs.reader import RunReader, Tensor

FORMAT, VERSION = "chainrule-run", 1
COLUMNS = 600
ROWS = 400  # of a heat map; of more tensors every second, third, ... is shown

Array = npt.NDArray[Any]


def data_of(run: RunReader, links: dict[int, str]) -> dict[str, Any]:
    """Everything that the page shows."""
    steps = run.steps()
    watched = np.array([facts.step for facts in steps], np.int64)
    edges = _edges(len(watched))
    return {
        "format": FORMAT,
        "version": VERSION,
        "title": run.script or "a run",
        "about": _about(run, steps),
        "columns": [[int(watched[first]), int(watched[end - 1])] for first, end in edges],
        "watched": len(watched),
        "loss": _spread(np.array([math.nan if f.loss is None else f.loss for f in steps]), edges),
        "rates": _rates(steps, edges),
        "skipped": [sum(f.skipped for f in steps[first:end]) for first, end in edges],
        "maps": [each for each in _maps(run, watched, edges) if each["rows"]],
        "findings": [_finding(found) for found in run.findings()],
        "recordings": [
            {"step": each.step, "reason": each.reason, "link": links.get(each.step, "")}
            for each in run.recordings().values()
        ],
    }


def _edges(count: int) -> list[tuple[int, int]]:
    """Where each column begins and ends among the watched steps."""
    columns = min(count, COLUMNS)
    places = np.linspace(0, count, columns + 1).round().astype(int).tolist() if columns else [0]
    return list(pairwise(places))


def _about(run: RunReader, steps: Sequence[StepFacts]) -> list[list[str]]:
    began = datetime.fromtimestamp(run.began).strftime("%Y-%m-%d %H:%M")
    facts = [["begun", began], ["status", run.status], ["watched", f"{len(steps):,} steps, every {run.every:,}"]]
    facts += [["run", f"{run.id} of {len(run.runs)} in the file"]] if len(run.runs) > 1 else []
    return facts + [[name, version] for name, version in run.versions.items()]


def _spread(numbers: Array, edges: Sequence[tuple[int, int]]) -> dict[str, list[Any]]:
    """The mean, the least and the most in each column; words where a number is not finite, None where there is none."""
    found: dict[str, list[Any]] = {"mean": [], "low": [], "high": []}
    for first, end in edges:
        part = numbers[first:end]
        finite = part[np.isfinite(part)]
        for name, act in (("mean", np.mean), ("low", np.min), ("high", np.max)):
            found[name].append(_entry(float(act(finite)), 6) if finite.size else None)
    found["broken"] = [int(np.isinf(numbers[first:end]).any()) for first, end in edges]
    return found


def _rates(steps: Sequence[StepFacts], edges: Sequence[tuple[int, int]]) -> list[list[Any]]:
    """The last learning rate of each parameter group in each column; groups that always had the same are one."""
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


def _maps(run: RunReader, watched: Array, edges: Sequence[tuple[int, int]]) -> list[dict[str, Any]]:
    gradients = run.table("parameter gradient", "norm", marked=True)
    outputs = run.table("value", "std", marked=True)
    arriving = run.table("gradient", "norm", marked=True)
    cut = _Cut(watched, edges)
    return [
        cut.map("gradient", "gradient norm", "of each parameter, as the optimizer met it", *gradients),
        cut.map("value", "update / weight", "norm of what the step changed, over that of the parameter", *run.ratios()),
        cut.map("value", "spread of outputs", "standard deviation of what each module gave", *outputs),
        cut.map("gradient", "gradient of outputs", "norm of the gradient of what each module gave", *arriving),
    ]


class _Cut:
    """Time, cut into columns."""

    def __init__(self, watched: Array, edges: Sequence[tuple[int, int]]) -> None:
        self._first = watched[[first for first, _ in edges]]
        self._last = watched[[end - 1 for _, end in edges]]

    def map(
        self, hue: str, title: str, about: str, steps: Array, tensors: Sequence[Tensor], numbers: Array
    ) -> dict[str, Any]:
        """A heat map: the largest number of each tensor in each column."""
        kept = slice(None, None, max(1, math.ceil(len(tensors) / ROWS)))
        begins = np.searchsorted(steps, self._first)
        ends = np.searchsorted(steps, self._last, side="right")
        columns = [_largest(numbers[kept, begin:end]) for begin, end in zip(begins, ends, strict=True)]
        return {
            "hue": hue,
            "title": title,
            "about": about,
            "rows": [{"name": each.name, "type": each.type} for each in tensors[kept]],
            "left_out": len(tensors) - len(tensors[kept]),
            "cells": [[_entry(float(number), 3) for number in row] for row in zip(*columns, strict=True)],
        }


def _largest(part: Array) -> Array:
    """Of each row; NaN where there is nothing, infinity where one is not finite."""
    if not part.shape[1]:
        return np.full(part.shape[0], np.nan)
    largest: Array = np.fmax.reduce(part, axis=1)
    return largest


def _entry(number: float, digits: int) -> Any:
    if math.isnan(number):
        return None
    return ("inf" if number > 0 else "-inf") if math.isinf(number) else float(f"{number:.{digits}g}")


def _finding(found: Any) -> dict[str, Any]:
    return {
        "id": found.id,
        "severity": found.severity,
        "where": found.where,
        "text": found.text,
        "evidence": list(found.evidence),
        "advice": found.advice,
        "since": found.since,
        "until": found.until,
    }
