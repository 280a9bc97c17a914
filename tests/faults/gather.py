"""Watches a script of the bed: records each step and fills a History, as a watch of a real run does.

A script is a generator: it yields its models and optimizers once, then once after every training step.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

import chainrule
from chainrule.findings import Finding, Thresholds, findings, findings_over_time
from chainrule.graph import Graph
from chainrule.history import History, StepFacts
from chainrule.recording import Recording
from chainrule.statistics import Statistics, norm_of

Script = Callable[[], Generator[Any, None, None]]


class Watched:
    """What was gathered of a run."""

    def __init__(self, full_every: int, thresholds: Thresholds | None = None) -> None:
        self.thresholds = thresholds
        self.history = History()
        self.step_findings: dict[int, tuple[Finding, ...]] = {}
        self._full_every = full_every

    def take(self, step: int, recording: Recording) -> None:
        """One recorded step; only some are looked at in full, as numbers of all steps are never kept."""
        full = step % self._full_every == 0
        graph = recording.graph
        derivation = recording.derivation if full else None
        self.step_findings[step] = findings(graph, derivation, recording.notation, self.thresholds)
        self.history.steps.append(_facts(step, recording, full))
        places = {name: place for place, name in enumerate(graph.parameters)}
        for known in graph.parameters.values():
            self.history.add("parameter", known.name, step, Statistics.of(known.before), places[known.name])
        for parameter in (member for update in graph.updates for member in update.parameters):
            layer = places.get(parameter.name, len(places))
            self.history.add("update", parameter.name, step, Statistics.of(parameter.after - parameter.before), layer)
            if parameter.grad is not None:
                self.history.add("parameter gradient", parameter.name, step, Statistics.of(parameter.grad), layer)
        classes = {module.path: module.class_name for module in graph.modules if module.path}
        for value in graph.values:
            if value.kind == "input" and value.data is not None and value.operation is None:
                self.history.add("input", value.name, step, Statistics.of(value.data))
            for name in value.names:
                path, _, run = name.partition("@")
                if path in classes and value.data is not None:
                    key = f"{path}#{run}" if run not in ("", "1") else path
                    self.history.add("value", key, step, Statistics.of(value.data), value.index, classes[path])
                    if value.grad is not None:
                        self.history.add("gradient", key, step, Statistics.of(value.grad), value.index, classes[path])

    def findings(self, silence: tuple[str, ...] = ()) -> tuple[Finding, ...]:
        """What the run shows."""
        return findings_over_time(self.history, self.step_findings, self.thresholds, silence)


def watched(
    script: Script, steps: int = 100, every: int = 1, full_every: int = 10, thresholds: Thresholds | None = None
) -> Watched:
    """Run a script for at most so many steps; each `every`th is watched, each `full_every`th in full."""
    running, found = script(), Watched(full_every, thresholds)
    models = next(running)
    names = models if isinstance(models, dict) else {"model": models}
    for step in range(steps):
        if step % every:
            next(running)
            continue
        with chainrule.record(names) as recording:
            ended = next(running, running) is running
        if ended:
            break
        found.take(step, recording)
    return found


def _facts(step: int, recording: Recording, full: bool) -> StepFacts:
    graph = recording.graph
    rates = dict.fromkeys(float(m.options["lr"]) for update in graph.updates for m in update.parameters)
    return StepFacts(
        step, float(step), recording.loss, tuple(rates), skipped=bool(graph.backwards) and not graph.updates,
        clipped=_clipped(graph), passes=len(graph.backwards), full=full,
    )  # fmt: skip


def _clipped(graph: Graph) -> tuple[float, float] | None:
    if not any("clip_grad" in event.kind for event in graph.events):
        return None
    seen = {m.name: m.grad for update in graph.updates for m in update.parameters if m.grad is not None}
    left = [p.grad for name, p in graph.parameters.items() if name in seen and p.grad is not None]
    return norm_of(*left), norm_of(*seen.values())
