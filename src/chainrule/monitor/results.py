"""The findings of a watched run, and its file."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch

from chainrule._version import __version__
from chainrule.errors import StorageError
from chainrule.graph.history import Unwatched
from chainrule.graph.reexecution import apart
from chainrule.monitor.between_steps import Seen
from chainrule.monitor.examine import Examiner
from chainrule.monitor.ranks import Step
from chainrule.monitor.runs import Found, Writer
from chainrule.recording import Recording

T = TypeVar("T")


class Results:
    """Stores and examines what a watch saw. A file or an examination that fails ends with a warning, not the watch."""

    def __init__(self, examiner: Examiner, examining: bool, warn: Callable[[str], None]) -> None:
        self.examiner, self.examining, self._warn = examiner, examining, warn
        self.writer: Writer | None = None

    def open(self, to: str | Path, every: int, start: int) -> None:
        """Open the file; without one, if it cannot be written, the training is watched all the same."""
        versions = {"chainrule": __version__, "torch": torch.__version__, "python": platform.python_version()}
        try:
            self.writer = Writer(to, every=every, start=start, versions=versions)
        except StorageError as error:
            self._warn(f"{error} The training is watched without a file.")
        if self.writer is not None and self.writer.notice is not None:
            self._warn(self.writer.notice)

    def add(self, step: Step) -> None:
        """Store and examine a watched step."""
        if self.writer is not None:
            self.writer.add(step.facts, step.figures)
        self.find(lambda: self.examiner.add(step.facts, step.figures, step.found), since=step.facts.step)

    def add_unwatched(self, steps: list[Unwatched]) -> None:
        """Store the losses of steps between the watched ones."""
        if steps:
            self.examiner.history.unwatched += steps
            if self.writer is not None:
                self.writer.add_unwatched(steps)

    def notice(self, seen: Iterable[Seen]) -> None:
        """Store and examine what was noticed of a step."""
        for noticed, found in seen:
            if self.writer is not None:
                self.writer.add_noticed(noticed)
            self.find(partial(self.examiner.notice, noticed, found), since=noticed.step)

    def find(self, examine: Callable[[], Sequence[Found]], since: int) -> None:
        """Store what an examination finds."""
        for found in self.examined(examine, since):
            if self.writer is not None:
                self.writer.find(found)

    @apart()
    def examined(self, examine: Callable[[], Sequence[T]], since: int) -> Sequence[T]:
        """What an examination finds; an error ends the findings, not the watch."""
        try:
            return examine() if self.examining else ()
        except Exception as error:
            self.examining = False
            self._warn(f"there are no findings from step {since} on: {type(error).__name__}: {error}")
            return ()

    def save_full(self, recording: Recording, step: int, reason: str) -> None:
        """Save a step with all its numbers beside the file."""
        if self.writer is not None and (problem := self.writer.keep_full(recording.save, step, reason)):
            self._warn(problem)

    def close(self, status: str) -> None:
        """Close the file."""
        if self.writer is not None:
            self.writer.close(status)
        self.report_problem()

    def report_problem(self) -> None:
        """Say what kept the file from being written."""
        if self.writer is not None and self.writer.problem:
            self._warn(self.writer.problem)
