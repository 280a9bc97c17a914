"""Shows a training while it runs: a dashboard at the bottom of a terminal, or a line every few seconds without one.

The script's own output scrolls above the dashboard. The display shows the last watched step and counts all steps.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Self

from rich.console import Console, Group, RenderableType
from rich.file_proxy import FileProxy
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from chainrule.graph.history import StepFacts
from chainrule.monitor.runs import Figure, Found
from chainrule.monitor.runs.found import by_cause, notes
from chainrule.monitor.runs.reader import spread
from chainrule.numbers import number
from chainrule.process import Process
from chainrule.views.blocks import printable

SPARKS = "▁▂▃▄▅▆▇█"
WIDE = 48  # steps in the loss curve
LAYERS = 12  # parameters in the table, evenly spread in depth
FOUND = 5
LINE_EVERY = 10.0  # seconds between two lines without a terminal
STYLES = {"error": "bold red", "warning": "yellow", "note": "dim"}


class LastStep:
    """The last watched step."""

    def __init__(self) -> None:
        self.facts: StepFacts | None = None
        self.losses: list[float] = []
        self.layers: list[tuple[str, float, float | None]] = []  # (parameter, norm of its gradient, update over weight)
        self.norm = 0.0  # of all gradients

    def take(self, facts: StepFacts, figures: Iterable[Figure]) -> None:
        """Replace it by the next watched step."""
        self.facts = facts
        if facts.loss is not None:
            self.losses = [*self.losses, facts.loss][-WIDE:]
        norms: dict[str, dict[str, float]] = {}
        for each in figures:
            norms.setdefault(each.kind, {})[each.name] = (
                math.nan if each.statistics.not_finite else each.statistics.norm
            )
        gradients, weights, updates = (norms.get(kind, {}) for kind in ("parameter gradient", "parameter", "update"))
        self.norm = math.hypot(*gradients.values()) if gradients else 0.0
        self.layers = [
            (name, norm, updates[name] / weights[name] if weights.get(name) and name in updates else None)
            for name, norm in gradients.items()
        ]

    def sentence(self, total: int | None = None) -> str:
        """The step as one line."""
        facts = self.facts
        if facts is None:
            return "no step watched yet"
        parts = [f"step {facts.step:,}" + (f" of {total:,}" if total else "")]
        parts += [] if facts.loss is None else [f"loss {number(facts.loss)}"]
        parts += [f"learning rate {', '.join(map(number, facts.rates))}"] if facts.rates else []
        parts += [f"gradient norm {number(self.norm)}"]
        ratios = [ratio for _, _, ratio in self.layers if ratio is not None and math.isfinite(ratio)]
        parts += [f"largest update/weight {number(max(ratios))}"] if ratios else []
        parts += [f"loss scale {facts.scale:g}"] if facts.scale is not None else []
        return ", ".join(parts)


class Display:
    """What the dashboard and the lines have in common; `progress` counts the steps of the training."""

    def __init__(self, console: Console, total: int | None) -> None:
        self.progress: Callable[[], int] = lambda: 0
        self._console, self._total = console, total
        self._process = Process()
        self._last = LastStep()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None:
        pass

    def conclude(self, findings: Sequence[Found]) -> None:
        """Show the findings after the end of the training, where there is a place for them."""


class Lines(Display):
    """Prints a line for a step every few seconds, and one for each new finding."""

    def __init__(self, console: Console, total: int | None = None) -> None:
        super().__init__(console, total)
        self._printed: dict[tuple[str, str], str] = {}  # the severity with which a finding was printed
        self._next = 0.0

    def report(self, facts: StepFacts, figures: Iterable[Figure], findings: Sequence[Found]) -> None:
        """Print a watched step and its new findings."""
        now = time.monotonic()
        if now >= self._next:
            self._next = now + LINE_EVERY
            self._last.take(facts, figures)
            self._print(self._last.sentence(self._total))
        self._tell(findings, f"at step {facts.step:,}")

    def conclude(self, findings: Sequence[Found]) -> None:
        """Print the notes of the last examination. The command itself ends with the graver findings."""
        if not self._process.is_left:
            self._tell(notes(findings), "at the end")

    def _tell(self, findings: Sequence[Found], when: str) -> None:
        """Print the findings that are new, with their evidence, and those whose severity has changed."""
        for found in by_cause(findings):
            before = self._printed.get((found.id, found.where))
            if before == found.severity:
                continue
            self._printed[found.id, found.where] = found.severity
            changed = f" (before: {before})" if before is not None else ""
            because = f" (because of {found.because})" if found.because else ""
            self._print(f"{found.severity}{changed} {when}: {found.statement}{because}")
            for each in found.evidence if before is None else ():
                self._print(f"  {each}")

    def _print(self, sentence: str) -> None:
        self._console.print(Text(f"chainrule: {printable(sentence)}"), soft_wrap=True)


class Dashboard(Display):
    """A panel that a thread of rich redraws four times a second."""

    def __init__(self, script: str, console: Console, total: int | None = None) -> None:
        super().__init__(console, total)
        self._script = script
        self._findings: Sequence[Found] = ()
        self._began = time.monotonic()
        self._live = Live(self, console=console, refresh_per_second=4)

    def report(self, facts: StepFacts, figures: Iterable[Figure], findings: Sequence[Found]) -> None:
        """Show a watched step."""
        self._last.take(facts, figures)
        self._findings = findings

    def conclude(self, findings: Sequence[Found]) -> None:
        """Show the findings after the end of the training."""
        self._findings = findings

    def __enter__(self) -> Self:
        self._began = time.monotonic()
        self._live.__enter__()
        self._streams = {name: getattr(sys, name) for name in ("stdout", "stderr")}
        os.register_at_fork(after_in_child=self._leave_to_parent)
        return self

    def __exit__(self, *error: Any) -> None:
        if not self._process.is_left:
            self._live.__exit__(*error)

    def _leave_to_parent(self) -> None:
        """Give a forked child its own output: what it prints must not draw the panel once more."""
        for name, stream in self._streams.items():
            if getattr(sys, name) is stream and isinstance(stream, FileProxy):
                setattr(sys, name, stream.rich_proxied_file)

    def __rich__(self) -> RenderableType:
        parts: list[RenderableType] = [self._head(), Text(self._last.sentence()), self._curve()]
        if self._last.layers and self._console.height > 24:
            parts.append(self._layers())
        parts += [_finding(found) for found in self._findings[-FOUND:]]
        if len(self._findings) > FOUND:
            parts.append(Text(f"and {len(self._findings) - FOUND} earlier findings", style="dim"))
        title = f"chainrule watch {printable(self._script)}"
        return Panel(Group(*parts), title=title, title_align="left", border_style="dim")

    def _head(self) -> RenderableType:
        steps, seconds = self.progress(), time.monotonic() - self._began
        rate = steps / seconds if seconds else 0.0
        text = Text(f"{steps:,} steps, {rate:,.1f} a second, {_clock(seconds)}")
        if not self._total:
            return text
        left = (self._total - steps) / rate if rate else math.inf
        text.append(f" of about {_clock(seconds + left)}" if math.isfinite(left) else "")
        line = Table.grid(padding=(0, 2, 0, 0), expand=True)
        line.add_column()
        line.add_column(ratio=1)
        line.add_row(text, ProgressBar(self._total, min(steps, self._total)))
        return line

    def _curve(self) -> Text:
        return Text.assemble(("loss ", "dim"), (sparkline(self._last.losses), "blue"))

    def _layers(self) -> Table:
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
        table.add_column("parameter", no_wrap=True, overflow="ellipsis", ratio=1)
        for name in ("gradient norm", "update / weight"):
            table.add_column(name, justify="right")
        for name, norm, ratio in spread(self._last.layers, LAYERS):
            style = "" if math.isfinite(norm) else STYLES["error"]
            table.add_row(printable(name), Text(number(norm), style), "" if ratio is None else number(ratio))
        return table


def _finding(found: Found) -> Text:
    when = f" {found.when}" if found.when else ""
    because = f" (because of {found.because})" if found.because else ""
    text, evidence = printable(found.statement + because), printable(" ".join(found.evidence[:1]))
    return Text.assemble((f"{found.severity}{when}: ", STYLES.get(found.severity, "")), text, (f" {evidence}", "dim"))


def sparkline(numbers: Sequence[float]) -> str:
    """Numbers as a row of bars between the minimum and the maximum; a non-finite one is a cross."""
    finite = [each for each in numbers if math.isfinite(each)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 0.0)
    step = (high - low) / (len(SPARKS) - 1) or 1.0
    return "".join(SPARKS[round((each - low) / step)] if math.isfinite(each) else "✗" for each in numbers)


def _clock(seconds: float) -> str:
    whole = int(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"
