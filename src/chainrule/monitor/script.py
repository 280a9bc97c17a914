"""`chainrule watch SCRIPT`: watches an unmodified training script from outside, with a dashboard while it runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from shlex import quote
from typing import Any

from rich.console import Console

from chainrule.monitor.dashboard import Dashboard, Lines
from chainrule.monitor.runs import Found
from chainrule.monitor.runs.format import check_target
from chainrule.monitor.runs.found import lines
from chainrule.monitor.watcher import watch
from chainrule.numbers import many
from chainrule.script import Ending, Namespace, run_inside

FEW = 3  # watched steps, of a training that has more


class Outcome:
    """The result of a watched script."""

    def __init__(self, every: int = 1) -> None:
        self.every = every
        self.status = 0
        self.ending: Ending = "ended"
        self.steps = 0
        self.watched = 0
        self.findings: tuple[Found, ...] = ()
        self.kept: str | None = None  # the file of the run

    def sentence(self, script: str) -> str:
        """A sentence with the counts of steps and findings, and the file."""
        found = many(len(self.findings), "finding")
        kept = f" `chainrule show {quote(self.kept)}` shows the run." if self.kept else ""
        if self.steps == 0 and self.findings:
            return f"{script} ended in the middle of its first training step: {found}.{kept}"
        if self.steps == 0 and self.ending in ("crashed", "was interrupted"):
            return f"{script} {self.ending} before the end of its first training step."
        if self.steps == 0:
            return (
                f"{script} ended without a training step. One ends with the step() of an optimizer from torch.optim: "
                "call one, or use `chainrule.watch(...)` in the script and call its step()."
            )
        return f"{self.watched:,} of {self.steps:,} steps were watched: {found}.{kept}{self._hint()}"

    def lines(self) -> Iterator[str]:
        """The findings above a note: the most likely cause first, its effects below it."""
        found = list(lines(self.findings))
        if found:
            yield "The most likely cause first:"
        yield from found

    def _hint(self) -> str:
        """What `--every 1` would show beside: the step in which the script failed, or more than hardly any step."""
        failed_in, every_step = self.steps + 1, "--every 1 watches and examines every step."
        if self.status and failed_in % self.every:
            return f" It ended in step {failed_in:,}, which was not watched: {every_step}"
        return f" Few steps show little: {every_step}" if self.watched < min(FEW, self.steps) else ""


def watch_script(
    script: str,
    arguments: Sequence[str],
    options: Mapping[str, Any],
    *,
    total: int | None = None,
    plain: bool = False,
    module: bool = False,
) -> Outcome:
    """Run `script` as python would, watched with these options; the dashboard goes to stderr.

    With `module` it is the name of a module, as for `python -m`. Raises RecordingError if it cannot be read, and
    StorageError if the file of the run cannot be written: the training may last for hours.
    """
    if options.get("to") is not None:
        check_target(options["to"])
    console = Console(stderr=True)
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

    outcome.ending, outcome.status = run_inside(script, arguments, around, module)
    return outcome
