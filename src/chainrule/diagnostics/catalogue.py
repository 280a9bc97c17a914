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

<!-- Written by `COMMAND` from the registry. Do not edit: change the check. -->

COUNT kinds, by topic. A finding is advice with evidence, never a verdict: the step may be exactly what its author
wants. A **note** is worth knowing, a **warning** most likely does harm, an **error** means that numbers are lost.

`recording.findings()` looks at one step, and `chainrule.diagnostics.findings_over_time(history, step_findings)` at a
run. A finding of a run says since which step it holds; if one step cannot decide, it is a note until it has lasted.
Both take `silence=("at-kink",)`, the ids to leave out, and `thresholds=chainrule.Thresholds(units_off=0.5)`.
`chainrule.distributed.gather(recording)` and a watch compare the ranks of a [distributed](distributed.md) training.

"""

TABLE_HEAD = """## Thresholds

The fields of `chainrule.Thresholds`. Each lies well beyond what healthy runs showed (`tests/faults`).

| Field | Default | In units of | What it decides | Where it comes from |
|---|---|---|---|---|
"""


def page() -> str:
    """The whole page, in Markdown."""
    text = HEAD.replace("COMMAND", COMMAND).replace("COUNT", str(len(CHECKS)))
    for topic, checks in BY_TOPIC.items():
        text += f"## {topic}\n\n" + "".join("\n".join(_entry(check)) + "\n\n" for check in checks)
    return text + TABLE_HEAD + "\n".join(_thresholds()) + "\n"


def _entry(check: Check) -> Iterator[str]:
    yield f"### {check.id}\n"
    yield f"{_escape(check.title)}. *{_severity(check)}*\n"
    yield f"- what is found: {_escape(check.what)}"
    yield f"- why it matters: {_escape(check.why)}"
    yield f"- what to try: {_escape(check.advice)}"
    if check.thresholds:
        yield "- thresholds: " + ", ".join(f"[`{name}`](#thresholds)" for name in check.thresholds)
    yield f"- source: {_escape(check.source)}"


def _severity(check: Check) -> str:
    scope = "across ranks" if check.across_ranks else "in one step and over time" if check.step_checks else "over time"
    lasting = f"; over time after {check.lasts} examined steps in a row" if check.lasts > 1 else ""
    unfinished = "; also in a step that never reached its update" if check.unfinished else ""
    return f"{check.severity.capitalize()}, {scope}{lasting}{unfinished}."


def _thresholds() -> Iterator[str]:
    for each in fields(Thresholds):
        cells = (_escape(each.metadata[key]) for key in ("unit", "meaning", "source"))
        yield f"| `{each.name}` | {each.default:g} | {' | '.join(cells)} |"


def _escape(text: str) -> str:
    """Text in Markdown: characters that would be emphasis, markup or the edge of a cell are escaped outside code."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if part.startswith("`") else re.sub(r"([*_<>\\|])", r"\\\1", part) for part in parts)


def main() -> None:
    """Rewrite docs/findings.md."""
    PAGE.write_text(page(), encoding="utf-8")
    print(f"{PAGE.relative_to(PAGE.parents[1])}: {len(CHECKS)} kinds of findings", file=sys.stderr)


if __name__ == "__main__":
    main()
