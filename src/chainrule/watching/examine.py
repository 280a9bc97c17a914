"""Looks at the last watched steps for what is unhealthy, after each of them, as long as that takes little time.

The findings are those of `chainrule.findings`; what is decided here is only how much of the run they see (a window, so
that a long run costs no more than a short one) and how often they are asked (a share of the training's time).
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from chainrule.findings import Thresholds, check_silence, findings, findings_over_time
from chainrule.history import History, StepFacts
from chainrule.runs import Figure, Found

if TYPE_CHECKING:
    from chainrule.findings import Finding
    from chainrule.recording import Recording

WINDOW = 256  # watched steps that are remembered; they are cut when there are twice as many
SHARE = 0.02  # of the time of the training, at most, for looking


class Examiner:
    """Keeps the last part of the history, and what was found in it."""

    def __init__(self, history: History, thresholds: Thresholds | None, silence: Collection[str]) -> None:
        check_silence(silence)
        self.history = history
        self.fresh: tuple[Found, ...] = ()  # what the last look found for the first time
        self._options: dict[str, Any] = {"thresholds": thresholds or Thresholds(), "silence": tuple(silence)}
        self._found: dict[tuple[str, str], Found] = {}
        self._of_step: dict[int, Sequence[Finding]] = {}
        self._rest_until = 0.0

    @property
    def found(self) -> tuple[Found, ...]:
        """Everything found so far, in the order in which it was."""
        return tuple(self._found.values())

    def look(
        self, recording: Recording, facts: StepFacts, figures: Iterable[Figure], of_ranks: Sequence[Finding] = ()
    ) -> list[Found]:
        """Remember a step, and look; gives the findings that are new or have changed.

        `of_ranks` is what was found between the ranks of a distributed training at this step.
        """
        self.fresh = ()
        self._remember(facts, figures)
        began = time.monotonic()
        urgent = any((each.id, each.where) not in self._found for each in of_ranks)  # only this step shows them
        if began < self._rest_until and not urgent:
            return []
        self._of_step[facts.step] = (*self._in_step(recording, facts), *of_ranks)
        seen = [Found.of(each) for each in findings_over_time(self.history, self._of_step, **self._options)]
        changed = [found for found in seen if self._found.get((found.id, found.where)) != found]
        self.fresh = tuple(found for found in changed if (found.id, found.where) not in self._found)
        self._found |= {(found.id, found.where): found for found in changed}
        now = time.monotonic()
        self._rest_until = now + (now - began) / SHARE
        return changed

    def _in_step(self, recording: Recording, facts: StepFacts) -> Sequence[Finding]:
        """What the step shows by itself; the checks that need its derivation only where it was recorded in full."""
        if facts.full:
            return recording.findings(**self._options)
        return findings(recording.graph, None, recording.notation, **self._options)

    def _remember(self, facts: StepFacts, figures: Iterable[Figure]) -> None:
        history = self.history
        history.steps.append(facts)
        for each in figures:
            history.add(each.kind, each.name, facts.step, each.statistics, each.layer, each.type)
        if len(history.steps) >= 2 * WINDOW:
            if history.first_loss is None:  # what a later loss is held against
                losses = [each.loss for each in history.steps[:3] if each.loss is not None]
                history.first_loss = min(losses, default=None)
            self._cut(history.steps[-WINDOW].step)

    def _cut(self, first: int) -> None:
        """Forget what lies before a step."""
        history = self.history
        history.steps[:] = [facts for facts in history.steps if facts.step >= first]
        self._of_step = {step: found for step, found in self._of_step.items() if step >= first}
        for key, series in list(history.series.items()):
            kept = [place for place, step in enumerate(series.steps) if step >= first]
            series.steps[:] = [series.steps[place] for place in kept]
            series.statistics[:] = [series.statistics[place] for place in kept]
            if not kept:
                del history.series[key]
