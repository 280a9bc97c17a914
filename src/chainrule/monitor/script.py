"""`chainrule watch SCRIPT`: an unmodified training script, watched from outside, with a dashboard while it runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console

from chainrule.monitor.dashboard import Dashboard, Lines
from chainrule.monitor.runs import Found
from chainrule.monitor.watcher import watch
from chainrule.script import Namespace, run_inside


class Outcome:
    """What is left when the script has ended."""

    def __init__(self, every: int = 1) -> None:
        self.every = every
        self.status = 0
        self.steps = 0
        self.watched = 0
        self.findings: tuple[Found, ...] = ()
        self.kept: str | None = None  # the file that holds it

    def sentence(self, script: str) -> str:
        """What was seen, and where it is kept."""
        found = f"{len(self.findings)} finding{'s' if len(self.findings) != 1 else ''}"
        kept = f" `chainrule show {self.kept}` tells more." if self.kept else ""
        if self.steps == 0 and self.findings:
            return f"{script} ended in the middle of its first training step: {found}.{kept}"
        if self.steps == 0:
            return (
                f"{script} ended without a training step. One ends with the step() of an optimizer from torch.optim: "
                "call one, or put `chainrule.watch(...)` into the script and call its step()."
            )
        return f"{self.watched:,} of {self.steps:,} steps were watched: {found}.{kept}{self._missed()}"

    def _missed(self) -> str:
        """What would show more of a script that failed in a step that was not watched."""
        failed_in = self.steps + 1
        if not self.status or failed_in % self.every == 0:
            return ""
        return f" Step {failed_in:,}, in which it ended, was not watched: with --every 1 each is, and looked at."


def watch_script(
    script: str,
    arguments: Sequence[str],
    options: Mapping[str, Any],
    *,
    total: int | None = None,
    plain: bool = False,
    console: Console | None = None,
) -> Outcome:
    """Run `script` as python would, watched with these options; the dashboard goes to stderr.

    Raises RecordingError where the script cannot be read.
    """
    console = console or Console(stderr=True)
    outcome = Outcome(options.get("every", 1))

    @contextmanager
    def around(namespace: Namespace) -> Iterator[None]:
        watching = watch(**options, namespace=namespace)
        live = console.is_terminal and not plain
        shown = Dashboard(script, console, total) if live else Lines(console, total)
        watching.reports.append(lambda facts, figures: shown.report(facts, figures, watching.findings))
        shown.progress = lambda: watching.step_number
        try:
            with shown:
                try:
                    with watching:
                        yield
                finally:
                    shown.conclude(watching.findings)
        finally:
            outcome.steps, outcome.watched = watching.step_number, watching.watched
            outcome.findings = watching.findings
            outcome.kept = options.get("to") if watching.writer is not None else None

    _, outcome.status = run_inside(script, arguments, around)
    return outcome
