"""The page of all findings: `python -m chainrule.diagnostics.catalogue` rewrites docs/findings.md from the registry."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

from chainrule.diagnostics import BY_TOPIC, CHECKS, Check, Thresholds

PAGE = Path(__file__).parents[3] / "docs" / "findings.md"
COMMAND = "python -m chainrule.diagnostics.catalogue"

HEAD = """# The findings

<!-- Written by `COMMAND` from the registry. Do not edit: change the kind of finding. -->

COUNT kinds, by topic. A finding is advice with evidence, never a verdict: the step may be exactly what its author
wants. A **note** is worth knowing, a **warning** most likely does harm, an **error** means that numbers are lost.

`recording.findings()` looks at one step, `chainrule.diagnostics.findings_over_time(history, step_findings)` at a run:
then a finding says since which step it holds, and what a single step is too little to judge is a note until it has
lasted. Both take `silence=("at-kink",)`, the ids to leave out, and `thresholds=chainrule.Thresholds(units_off=0.5)`.
What differs between the ranks of a [distributed](distributed.md) training is looked for by
`chainrule.distributed.gather(recording)` and by a watch.

"""

TABLE_HEAD = """## Thresholds

The fields of `chainrule.Thresholds`, in the order of that table. Each lies well beyond what healthy runs showed
(`tests/faults`).

| Field | Default | In units of | What it decides | Where it comes from |
|---|---|---|---|---|
"""


def page() -> str:
    """The whole page, in Markdown."""
    text = HEAD.replace("COMMAND", COMMAND).replace("COUNT", str(len(CHECKS)))
    for topic, kinds in BY_TOPIC.items():
        text += f"## {topic}\n\n" + "".join("\n".join(_entry(kind)) + "\n\n" for kind in kinds)
    return text + TABLE_HEAD + "\n".join(_thresholds()) + "\n"


def _entry(kind: Check) -> Iterator[str]:
    yield f"### {kind.id}\n"
    yield f"{_escape(kind.title)}. *{_severity(kind)}*\n"
    yield f"- found: {_escape(kind.what)}"
    yield f"- why it matters: {_escape(kind.why)}"
    yield f"- what to try: {_escape(kind.advice)}"
    if kind.thresholds:
        yield "- thresholds: " + ", ".join(f"[`{name}`](#thresholds)" for name in kind.thresholds)
    yield f"- source: {_escape(kind.source)}"


def _severity(kind: Check) -> str:
    looks = "across ranks" if kind.across_ranks else "in one step and over time" if kind.step_checks else "over time"
    lasting = f"; over time once it has held at {kind.lasts} examined steps" if kind.lasts > 1 else ""
    unfinished = "; also in a step that never came to its update" if kind.unfinished else ""
    return f"{kind.severity.capitalize()}, {looks}{lasting}{unfinished}."


def _thresholds() -> Iterator[str]:
    for each in fields(Thresholds):
        told = (_escape(each.metadata[key]) for key in ("unit", "meaning", "source"))
        yield f"| `{each.name}` | {each.default:g} | {' | '.join(told)} |"


def _escape(text: str) -> str:
    """Words in Markdown: what would be emphasis, markup or the edge of a cell stands for itself; code stays code."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if part.startswith("`") else re.sub(r"([*_<>\\|])", r"\\\1", part) for part in parts)


def main() -> None:
    """Rewrite docs/findings.md."""
    PAGE.write_text(page(), encoding="utf-8")
    print(f"{PAGE.relative_to(PAGE.parents[1])}: {len(CHECKS)} kinds of findings", file=sys.stderr)


if __name__ == "__main__":
    main()
