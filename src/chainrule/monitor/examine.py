"""Examines a watched run for findings: each watched step by itself, and from time to time the course of the run.

`chainrule.diagnostics` makes the findings. This module decides which steps they see and when. A step is examined at
once, before its graph is freed. The course is the last steps, a window, so a long run costs no more than a short one;
it is examined as often as a small share of the training's time allows. The share delays findings and never hides them:
the course is also examined when a step shows something new above a note, before old steps are dropped, and at the end
of the watch. A finding that a later examination no longer makes becomes a note with the step until which it held: ten
steps may look worse than a hundred.

The step during which the watch ends is not part of the course: it is examined for non-finite numbers alone, see
`Check.unfinished`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from chainrule.capture.policy import default_memory
from chainrule.capture.source import exception_site
from chainrule.diagnostics import check_silence, findings, findings_over_time
from chainrule.diagnostics.thresholds import check_thresholds
from chainrule.errors import ReplayError, brief
from chainrule.graph.history import History, Noticed, StepFacts, Unstepped
from chainrule.monitor.runs import Figure, Found

if TYPE_CHECKING:
    from chainrule.diagnostics import Finding, Thresholds
    from chainrule.graph.statistics_cache import StatisticsCache
    from chainrule.recording import Recording

WINDOW = 256  # watched steps of the course; older ones are dropped when there are twice as many
UNWATCHED = 4096  # steps between them of which the loss is kept
SHARE = 0.005  # of the training's time, at most, to examine its course
OnFinding = bool | Callable[[Found], Any]


class Examiner:
    """The course of a run and the findings in it."""

    def __init__(self, history: History, thresholds: Thresholds | None, silence: Collection[str]) -> None:
        check_silence(silence)
        self.history = history
        self.fresh: tuple[Found, ...] = ()  # new findings of the last examination
        self._options: dict[str, Any] = {"thresholds": check_thresholds(thresholds), "silence": tuple(silence)}
        self._found: dict[tuple[str, str], Found] = {}
        self._in_steps: dict[int, Sequence[Finding]] = {}
        self._kept: dict[Hashable, Any] = {}  # what checks know of earlier steps
        self._seen: set[tuple[str, str]] = set()  # findings of single steps above a note
        self._pending = False  # a step came after the last examination of the course
        self._partly: set[int] = set()  # steps examined for non-finite numbers alone
        self._examined = 0  # the last step in an examination of the course
        self._rest_until = 0.0

    @property
    def found(self) -> tuple[Found, ...]:
        """All findings so far, in the order in which they were made."""
        return tuple(self._found.values())

    def add(self, facts: StepFacts, figures: Iterable[Figure], shown: Sequence[Finding]) -> list[Found]:
        """Add a step to the course and examine it; returns the findings that are new or have changed.

        `shown` are the findings in the step by itself.
        """
        self.fresh = ()
        self._pending = True
        self.history.steps.append(facts)
        for each in figures:
            self.history.add(each.kind, each.name, facts.step, each.statistics, each.layer, each.type)
        self._in_steps[facts.step] = shown
        severe = {(each.id, each.where) for each in shown if each.severity != "note"}
        urgent = not severe <= self._seen
        self._seen |= severe
        full = len(self.history.steps) >= 2 * WINDOW
        changed = self._examine_course() if urgent or full or time.monotonic() >= self._rest_until else []
        if full:
            self._drop_old_steps()
        return changed

    def add_unstepped(self, unstepped: Unstepped) -> list[Found]:
        """Examine the course with what came after its last step: backward passes and no step."""
        self.fresh = ()
        self.history.unstepped = unstepped
        return self._examine_course()

    def examine_unfinished(
        self, recording: Recording, facts: StepFacts, ending: str, cache: StatisticsCache, scaled: bool
    ) -> None:
        """Add the step during which the watch ended, for the last examination; `ending` says how it ended.

        `scaled` gradients are left out: they may be infinite because the GradScaler is about to skip the step.
        """
        shown = self.in_step(recording, facts, cache, unfinished=True)
        reported = [
            replace(each, evidence=(*each.evidence, ending))
            for each in shown
            if not (scaled and each.id == "non-finite-backward")
        ]
        if reported:
            self._in_steps[facts.step] = reported
            self._partly.add(facts.step)
            self._pending = True

    def finish(self) -> list[Found]:
        """Examine the course once more, at the end of the watch."""
        self.fresh = ()
        known = self.history.steps or self._pending or self.history.unstepped
        return self._examine_course(ended=True) if known else []

    def notice(self, noticed: Noticed, shown: Sequence[Finding] = ()) -> list[Found]:
        """Add what a look at a step noticed, and what the step showed when it was run again.

        Lost numbers have the course examined at once.
        """
        if shown:
            self._in_steps[noticed.step] = shown
            self._partly.add(noticed.step)
        self.history.noticed.append(noticed)
        self.fresh, self._pending = (), True
        return self._examine_course() if noticed.lost or noticed.loss is not None else []

    def requested(self, on_finding: OnFinding) -> str | None:
        """The first new finding that requests a step in full: one above a note, or the choice of a function."""
        if callable(on_finding):
            chosen = [found for found in self.fresh if on_finding(found) is True]
        else:
            chosen = [found for found in self.fresh if on_finding and found.severity != "note"]
        return f"{chosen[0].id}: {chosen[0].where}" if chosen else None

    def _examine_course(self, ended: bool = False) -> list[Found]:
        began = time.monotonic()
        first = self.history.steps[0].step if self.history.steps else 0
        earlier = [each for each in self._found.values() if each.since is not None and each.since < first]
        found = findings_over_time(
            self.history, self._in_steps, partly=self._partly, earlier=earlier, ended=ended, **self._options
        )
        seen = [Found.of(each) for each in found]
        changed = [each for each in (*seen, *self._passed(seen)) if self._found.get((each.id, each.where)) != each]
        self.fresh = tuple(each for each in changed if (each.id, each.where) not in self._found)
        self._found |= {(each.id, each.where): each for each in changed}
        self._pending = False
        self._examined = self.history.steps[-1].step if self.history.steps else 0
        now = time.monotonic()
        self._rest_until = now + (now - began) / SHARE
        return changed

    def _passed(self, seen: Iterable[Found]) -> Iterator[Found]:
        """Findings above a note that are no longer made although the course still has their steps, as notes."""
        present = {(found.id, found.where) for found in seen}
        first = self.history.steps[0].step if self.history.steps else 0
        for key, found in self._found.items():
            if key not in present and found.severity != "note" and found.since is not None and found.since >= first:
                yield replace(found, severity="note", until=self._examined if found.until is None else found.until)

    def in_step(
        self, recording: Recording, facts: StepFacts, cache: StatisticsCache | None, unfinished: bool = False
    ) -> Sequence[Finding]:
        """The findings of one step by itself; checks that need its derivation run only if it was recorded in full."""
        derivation = recording.derivation if facts.full and recording.is_whole else None
        return findings(
            recording.graph, derivation, recording.notation, cache=cache, unfinished=unfinished, kept=self._kept,
            **self._options,
        )  # fmt: skip

    def _drop_old_steps(self) -> None:
        """Drop all but the last `WINDOW` steps."""
        history = self.history
        if history.first_loss is None:  # which later losses are compared with
            losses = [(each.step, each.loss) for each in history.steps[:3] if each.loss is not None]
            losses += [(each.step, each.loss) for each in history.unwatched[:3]]
            history.first_loss = min([loss for _, loss in sorted(losses)[:3]], default=None)
        first = history.steps[-WINDOW].step
        history.steps[:] = [facts for facts in history.steps if facts.step >= first]
        history.noticed[:] = [noticed for noticed in history.noticed if noticed.step >= first]
        history.unwatched[:] = [each for each in history.unwatched if each.step >= first][-UNWATCHED:]
        self._in_steps = {step: found for step, found in self._in_steps.items() if step >= first}
        for key, series in list(history.series.items()):
            kept = [place for place, step in enumerate(series.steps) if step >= first]
            series.steps[:] = [series.steps[place] for place in kept]
            series.statistics[:] = [series.statistics[place] for place in kept]
            if not kept:
                del history.series[key]


def replayed(recording: Recording) -> Recording | None:
    """A step watched with statistics alone, recomputed with all its numbers right after it was examined.

    Its operations, inputs, random states and copies of its parameters (`record.keep_leaves`) are known, and each value
    is compared with the statistics taken while it ran. None if the numbers need more memory than a recording keeps, or
    if the step cannot be recomputed.
    """
    values = recording.graph.values
    numbers = ((torch.Size(each.shape).numel(), each.dtype.itemsize * (1 + each.has_gradient)) for each in values)
    if sum(count * size for count, size in numbers) > default_memory():
        return None
    try:
        with torch.enable_grad():
            return recording.to_last().recompute()
    except (ReplayError, MemoryError, torch.OutOfMemoryError):
        return None


def ending(step: int, error: BaseException | None, missed: str = "") -> str:
    """A sentence on how an unfinished step ended."""
    site = exception_site(error.__traceback__) if error is not None else None
    cause = f": {brief(error)}" if error is not None else ""
    unseen = f" It was not recorded: {missed}." if missed else ""
    return f"Step {step} ended before its update{cause}{f' ({site.place()})' if site else ''}.{unseen}"
