"""Looks for what is unhealthy in a watched run: at each watched step by itself, and at the course of all now and then.

The findings are those of `chainrule.diagnostics`. Decided here is only how much of the run they see (a window, so that
a long run costs no more than a short one) and when they are asked. What a step shows by itself is asked at once,
as its graph is let go; of the course, as often as takes a small share of the training's time. That share never hides a
finding, it only delays one: whatever it says, there is a look where a step shows something new that is more than a
note, before any step is forgotten, and when the watch ends. What a later look does not see any more becomes a note,
with the step until which it held: the course of ten steps may look worse than that of a hundred.

A step that the watch ended in is no part of the course: only what was lost in it is asked for, see `Check.unfinished`.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from chainrule.capture.recorder import exception_site
from chainrule.capture.retention import default_memory
from chainrule.diagnostics import check_silence, findings, findings_over_time
from chainrule.diagnostics.thresholds import check_thresholds
from chainrule.errors import ReplayError, brief
from chainrule.graph.graph import Graph
from chainrule.graph.history import History, StepFacts
from chainrule.monitor.runs import Figure, Found

if TYPE_CHECKING:
    from chainrule.diagnostics import Finding, Thresholds
    from chainrule.graph.statistics_cache import StatisticsCache
    from chainrule.recording import Recording

WINDOW = 256  # watched steps that are remembered; they are cut when there are twice as many
SHARE = 0.005  # of the time of the training, at most, for looking at its course


class Examiner:
    """Keeps the last part of the history, and what was found in it."""

    def __init__(self, history: History, thresholds: Thresholds | None, silence: Collection[str]) -> None:
        check_silence(silence)
        self.history = history
        self.fresh: tuple[Found, ...] = ()  # what the last look found for the first time
        self._options: dict[str, Any] = {"thresholds": check_thresholds(thresholds), "silence": tuple(silence)}
        self._found: dict[tuple[str, str], Found] = {}
        self._of_step: dict[int, Sequence[Finding]] = {}
        self._seen: set[tuple[str, str]] = set()  # what single steps have shown that is more than a note
        self._unseen = False  # there is a step that no look at the course has taken in
        self._unfinished: int | None = None
        self._looked_at = 0  # the last step that a look at the course has taken in
        self._rest_until = 0.0

    @property
    def found(self) -> tuple[Found, ...]:
        """Everything found so far, in the order in which it was."""
        return tuple(self._found.values())

    def look(
        self,
        recording: Recording,
        facts: StepFacts,
        figures: Iterable[Figure],
        of_ranks: Sequence[Finding] = (),
        measures: StatisticsCache | None = None,
    ) -> list[Found]:
        """Remember a step, and look; gives the findings that are new or have changed.

        `of_ranks` is what was found between the ranks of a distributed training at this step, `measures` are the
        figures of its tensors that are known already.
        """
        self.fresh = ()
        self._remember(facts, figures)
        shown = self._of_step[facts.step] = (*self._in_step(recording, facts, measures), *of_ranks)
        grave = {(each.id, each.where) for each in shown if each.severity != "note"}
        urgent = not grave <= self._seen
        self._seen |= grave
        full = len(self.history.steps) >= 2 * WINDOW
        changed = self._look_at_course() if urgent or full or time.monotonic() >= self._rest_until else []
        if full:
            self._forget()
        return changed

    def look_at_unfinished(
        self, recording: Recording, facts: StepFacts, ending: str, measures: StatisticsCache, scaled: bool
    ) -> None:
        """Take in the step that the watch ended in, and how it did, for the last look.

        A scaler makes gradients too large now and then, to leave that step out: where it has yet to, they say nothing.
        """
        shown = self._in_step(recording, facts, measures, unfinished=True)
        told = [replace(each, evidence=(*each.evidence, ending)) for each in shown]
        if scaled:
            told = [each for each in told if each.id != "non-finite-backward"]
        if told:
            self._of_step[facts.step] = told
            self._unfinished, self._unseen = facts.step, True

    def last_look(self) -> list[Found]:
        """When no more steps come: look once more, if any came since the last time."""
        self.fresh = ()
        return self._look_at_course() if self._unseen else []

    def _look_at_course(self) -> list[Found]:
        began = time.monotonic()
        told = findings_over_time(self.history, self._of_step, unfinished=self._unfinished, **self._options)
        seen = [Found.of(each) for each in told]
        changed = [found for found in (*seen, *self._gone(seen)) if self._found.get((found.id, found.where)) != found]
        self.fresh = tuple(found for found in changed if (found.id, found.where) not in self._found)
        self._found |= {(found.id, found.where): found for found in changed}
        self._unseen = False
        self._looked_at = self.history.steps[-1].step if self.history.steps else 0
        now = time.monotonic()
        self._rest_until = now + (now - began) / SHARE
        return changed

    def _gone(self, seen: Iterable[Found]) -> Iterator[Found]:
        """What was more than a note, and is not seen any more though the steps that showed it are: it has passed."""
        there = {(found.id, found.where) for found in seen}
        first = self.history.steps[0].step if self.history.steps else 0
        for key, found in self._found.items():
            if key not in there and found.severity != "note" and found.since is not None and found.since >= first:
                yield replace(found, severity="note", until=self._looked_at if found.until is None else found.until)

    def _in_step(
        self, recording: Recording, facts: StepFacts, measures: StatisticsCache | None, unfinished: bool = False
    ) -> Sequence[Finding]:
        """What the step shows by itself; the checks that need its derivation only where it was recorded in full."""
        derivation = recording.derivation if facts.full and recording.is_whole else None
        return findings(
            recording.graph, derivation, recording.notation, cache=measures, unfinished=unfinished, **self._options
        )

    def _remember(self, facts: StepFacts, figures: Iterable[Figure]) -> None:
        self._unseen = True
        self.history.steps.append(facts)
        for each in figures:
            self.history.add(each.kind, each.name, facts.step, each.statistics, each.layer, each.type)

    def _forget(self) -> None:
        """Let go of all but the last steps."""
        history = self.history
        if history.first_loss is None:  # what a later loss is held against
            losses = [each.loss for each in history.steps[:3] if each.loss is not None]
            history.first_loss = min(losses, default=None)
        first = history.steps[-WINDOW].step
        history.steps[:] = [facts for facts in history.steps if facts.step >= first]
        self._of_step = {step: found for step, found in self._of_step.items() if step >= first}
        for key, series in list(history.series.items()):
            kept = [place for place, step in enumerate(series.steps) if step >= first]
            series.steps[:] = [series.steps[place] for place in kept]
            series.statistics[:] = [series.statistics[place] for place in kept]
            if not kept:
                del history.series[key]


def replayed(recording: Recording) -> Recording | None:
    """A step that was watched with statistics alone, recomputed with all its numbers right after it was examined.

    Its operations, inputs, random states and copies of its parameters (`record.keep_leaves`) are known, and each value
    is compared with the statistics taken while it ran. None where the numbers would take more memory than a recording
    keeps, or where the step cannot be recomputed.
    """
    if _bytes(recording.graph) > default_memory():
        return None
    try:
        with torch.enable_grad():
            return recording.to_last().recompute()
    except (ReplayError, MemoryError, torch.OutOfMemoryError):
        return None


def _bytes(graph: Graph) -> int:
    """The bytes of all values and gradients."""
    return sum(
        torch.Size(value.shape).numel() * value.dtype.itemsize * (1 + value.has_gradient) for value in graph.values
    )


def ending(step: int, error: BaseException | None) -> str:
    """How an unfinished step ended, in a sentence."""
    site = exception_site(error.__traceback__) if error is not None else None
    cause = f": {brief(error)}" if error is not None else ""
    return f"Step {step} ended before its update{cause}{f' ({site.place()})' if site else ''}."
