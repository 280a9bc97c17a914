"""A run in a screenful, as the Document that every view renders: loss curve, findings, parameters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

import numpy as np

from chainrule.document import Block, Code, Document, Paragraph, Section, Table, Text
from chainrule.monitor.runs.found import families
from chainrule.monitor.runs.reader import spread
from chainrule.numbers import many, number

if TYPE_CHECKING:
    from chainrule.graph.history import StepFacts
    from chainrule.monitor.runs.found import Found
    from chainrule.monitor.runs.reader import RunReader

LINES = 10  # steps in the table of losses
PARAMETERS = 30  # rows in the table of parameters


def document(run: RunReader) -> Document:
    """Summarise a run."""
    steps = run.steps()
    return Document(("One run of training",), tuple(_summary(run, steps)), tuple(_sections(run, steps)))


def _summary(run: RunReader, steps: Sequence[StepFacts]) -> Iterator[Block]:
    if not steps:
        yield Paragraph(("No step has been watched yet.",))
        yield from _findings(run)
        return
    began = datetime.fromtimestamp(run.began).strftime("%Y-%m-%d %H:%M")
    ending = run.status if run.status in ("running", "ended") else f"ended by {run.status}"
    yield Paragraph(
        (
            f"{len(steps):,} watched steps, {steps[0].step:,} to {steps[-1].step:,}, every {run.every:,}; "
            f"started {began}, {ending}. Script: ",
            Code(run.script or "none"),
        )
    )
    if len(run.runs) > 1:
        there = ", ".join(map(str, run.runs))
        yield Paragraph((f"The file holds the runs {there}; this is number {run.id}.",), "note")
    skipped = sum(facts.skipped for facts in steps)
    if skipped:
        yield Paragraph((f"A GradScaler skipped {many(skipped, 'step')} with gradients that were not finite.",), "note")
    if not run.findings():
        yield Paragraph(("No findings.",))
    yield from _findings(run)


def _findings(run: RunReader) -> Iterator[Block]:
    """Each cause with its effects after it, the most likely cause first."""
    for root, effects in families(run.findings()):
        yield _found(root)
        yield from (_found(each, "because of the above, ") for each in effects)


def _found(found: Found, because: str = "") -> Paragraph:
    opening = because + found.when
    sentence = f"{opening[0].upper()}{opening[1:]}: {found.statement}" if opening else found.statement
    words = " ".join([sentence, *found.evidence, found.advice]).strip()
    return Paragraph((words,), found.severity)  # type: ignore[arg-type]


def _sections(run: RunReader, steps: Sequence[StepFacts]) -> Iterator[Section]:
    if steps:
        yield Section(("Loss curve",), "course", "overview", (_course(steps),))
    rows = tuple(_parameters(run))
    if rows:
        shown = spread(rows, PARAMETERS)
        left = (
            f"The page of the run shows {len(rows) - len(shown)} more between these." if len(rows) > len(shown) else ""
        )
        headers = ("parameter", "gradient norm", "largest", "update / weight", "largest")
        words = Paragraph((f"Medians over the watched steps. {left}".strip(),))
        yield Section(("Parameters",), "parameters", "overview", (words, Table(headers, tuple(shown))))
    recordings = run.recordings().values()
    if recordings:
        full = tuple(((f"{each.step:,}",), (Code(str(each.file)),), (each.reason,)) for each in recordings)
        yield Section(("Steps recorded in full",), "full", "overview", (Table(("step", "file", "why"), full),))


def _course(steps: Sequence[StepFacts]) -> Table:
    rows = []
    for facts in spread(steps, LINES):
        loss = "skipped" if facts.skipped else "" if facts.loss is None else number(facts.loss)
        clipped = "" if facts.clipped is None else " -> ".join(map(number, facts.clipped))
        rows.append(((f"{facts.step:,}",), (loss,), (", ".join(map(number, facts.rates)),), (clipped,)))
    return Table(("step", "loss", "learning rate", "norm before and after clipping"), tuple(rows))


def _parameters(run: RunReader) -> Iterator[tuple[Text, ...]]:
    _, tensors, norms = run.table("parameter gradient", "norm", marked=True)
    _, moved, ratios = run.ratios()
    ratio_of = {tensor.name: row for tensor, row in zip(moved, ratios, strict=True)}
    for tensor, row in zip(tensors, norms, strict=True):
        numbers = (*_median_and_largest(row), *_median_and_largest(ratio_of.get(tensor.name, row[:0])))
        yield (Code(tensor.name),), *((each,) for each in numbers)


def _median_and_largest(row: np.ndarray) -> tuple[str, str]:
    """The median and the maximum of the numbers that are not NaN."""
    there = row[~np.isnan(row)]
    if not there.size:
        return "", ""
    with np.errstate(invalid="ignore"):
        return number(float(np.median(there))), number(float(there.max()))
