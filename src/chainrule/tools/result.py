"""What a command found, as data: one shape for every command, which JSON, SARIF and a baseline are made from.

docs/tools.md describes the fields for a reader, and docs/result.schema.json for a program; `schema` writes that from
the dataclasses.
"""

from __future__ import annotations

import linecache
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

from chainrule.document import Document, Kind, Paragraph
from chainrule.views.blocks import plain as plain_text
from chainrule.views.json import encoded, text_of

if TYPE_CHECKING:
    from chainrule.graph.graph import Place
    from chainrule.monitor.runs import Found
    from chainrule.recording import Recording
    from chainrule.script import ScriptRun
    from chainrule.verification.rows import Wrong
    from chainrule.verification_result import Verification

FORMAT, VERSION = "chainrule result", 1
Level = Literal["note", "warning", "error"]
LEVELS: tuple[Level, ...] = ("note", "warning", "error")

VERDICTS: dict[str, tuple[Level, str]] = {
    "gradient-disagrees": ("error", "The gradient of an autograd node is not the derivative."),
    "update-disagrees": ("error", "A parameter after the step is not what the formula of its optimizer gives."),
    "own-not-checked": (
        "warning",
        "Something of your own (a Function, an operator, a hook) was not checked.",
    ),
    "not-checked": ("note", "An autograd node of PyTorch's with a gradient was not checked."),
    "update-not-checked": ("note", "The updates of parameters were not checked."),
}
"""What `verify` reports, as the checks of `chainrule.diagnostics` are what the other commands report."""


@dataclass(frozen=True, slots=True)
class Issue:
    """One finding, or one verdict of `verify` that is no agreement.

    `id` is its kind and `where` the parameter, module or node. `file` is "" where no line is known; `code` is the text
    of that line. A finding of a run holds from step `since` to `until` (null: to the end), and `because` names its
    cause as `id: where`. `accepted`: a baseline holds it.
    """

    id: str
    level: Level
    where: str
    text: str
    evidence: tuple[str, ...] = ()
    advice: str = ""
    file: str = ""
    line: int | None = None
    code: str = ""
    since: int | None = None
    until: int | None = None
    because: str = ""
    accepted: bool = False

    def __str__(self) -> str:
        at = f" ({self.file}:{self.line})" if self.file else ""
        return f"{self.level}: {self.text.removesuffix('.')}{at}. [{self.id}]"


@dataclass(frozen=True, slots=True)
class Accepted:
    """An entry of a baseline: up to `count` issues of this kind at this place, up to this level, are accepted."""

    id: str
    level: Level
    where: str
    file: str
    code: str
    count: int = 1

    def __str__(self) -> str:
        return f"{self.id}: {self.where}" + (f" ({self.file}: {self.code})" if self.file else "")


@dataclass(frozen=True, slots=True)
class NodeCheck:
    """The check of one autograd node; `difference` is the largest one found, `tolerance` what rounding allows."""

    index: int
    name: str
    verdict: Kind
    reason: str
    file: str
    line: int | None
    difference: float | None
    tolerance: float | None


Placed = TypeVar("Placed", Issue, NodeCheck)


@dataclass(frozen=True, slots=True)
class UpdateCheck:
    """The check of what an optimizer's step did to one parameter."""

    parameter: str
    verdict: Kind
    reason: str


@dataclass(frozen=True, slots=True)
class Result:
    """What one command found.

    `target` is the script, module or file, `status` the exit status. `verdict` and `summary` are the head of the
    report; the verdict is null where nothing was verified. `step` is the one that was asked for, `steps` how many the
    training made, `watched` how many of them were recorded. `resolved` are the entries of the baseline that were not
    found. `nodes` and `updates` are those of `verify`. `document` is the report of demo, run and show, see document.md.
    """

    command: str
    target: str
    status: int = 0
    verdict: Kind | None = None
    summary: str = ""
    step: int | None = None
    steps: int | None = None
    watched: int | None = None
    file: str | None = None
    loss: float | None = None
    findings: tuple[Issue, ...] = ()
    resolved: tuple[Accepted, ...] = ()
    nodes: tuple[NodeCheck, ...] = ()
    updates: tuple[UpdateCheck, ...] = ()
    document: Document | None = None

    @property
    def is_accepted(self) -> bool:
        """Whether a baseline accepts every finding above a note."""
        return all(each.accepted or each.level == "note" for each in self.findings)


def to_json(result: Result) -> str:
    """The result as one line of JSON."""
    from chainrule._version import __version__

    return text_of({"format": FORMAT, "version": VERSION, "chainrule": __version__, **plain(result)})


def plain(item: Any) -> Any:
    """A part of a result as what `json` can write. All its fields are there; a document leaves its defaults out."""
    if isinstance(item, tuple):
        return [plain(each) for each in item]
    if is_dataclass(item) and not isinstance(item, Document):
        return {each.name: plain(getattr(item, each.name)) for each in fields(item)}
    return encoded(item)


# -- from what the package found --------------------------------------------------------------------------------------


def of_recording(
    result: Callable[..., Result],
    recording: Recording,
    document: Document | None = None,
    script: ScriptRun | None = None,
) -> Result:
    """The result of recording one step. Only a small step has a verdict: it is verified for its report."""
    from chainrule.monitor.runs import Found
    from chainrule.recording import QUICKLY_VERIFIED

    head: dict[str, Any] = {}
    if len(recording.nodes) <= QUICKLY_VERIFIED:
        head = _head(recording.verify(), script)
    issues = issues_of(Found.of(each) for each in recording.findings())
    later = [each for each in explained(script) if each not in issues]
    return result(loss=recording.loss, findings=(*issues, *later), document=document, **head)


def of_verification(
    result: Callable[..., Result], check: Verification, loss: float | None, script: ScriptRun
) -> Result:
    """The result of verifying one step."""
    nodes = tuple(
        NodeCheck(
            row.node.index, row.node.name, row.verdict, row.reason, *_spot(row.place),
            None if row.finite_difference is None else row.finite_difference.largest, row.tolerance,
        )
        for row in check.rows
    )  # fmt: skip
    updates = tuple(UpdateCheck(each.parameter, each.verdict, each.reason) for each in check.updates)
    issues = (*issues_of_check(check), *explained(script))
    return result(loss=loss, findings=issues, nodes=nodes, updates=updates, **_head(check, script))


def explained(script: ScriptRun | None) -> tuple[Issue, ...]:
    """Why the exception was raised that ended a script, if PyTorch raised it."""
    from chainrule.monitor.runs import Found

    return () if script is None else issues_of(Found.of(each) for each in script.explanations)


def issues_of(found: Iterable[Found]) -> tuple[Issue, ...]:
    """Findings of a step or a run."""
    return tuple(_issue(each) for each in found)


def _issue(found: Found) -> Issue:
    line = found.place.rpartition(":")[2]
    number = int(line) if found.file and line.isdecimal() else None
    return Issue(
        found.id, cast(Level, found.severity), found.where, found.text, found.evidence, found.advice,
        found.file, number, code_at(found.file, number), found.since, found.until, found.because,
    )  # fmt: skip


def issues_of_check(check: Verification) -> list[Issue]:
    """The verdicts of a gradient check that are no agreement, apart from those by convention."""
    return [*_of_nodes(check), *_of_updates(check)]


def _of_nodes(check: Verification) -> Iterator[Issue]:
    from chainrule.graph.names import element

    idle = {row.node.index for row in check.idle}
    for row in check.rows:
        if row.verdict == "disagrees":
            id = "gradient-disagrees"
        elif row.verdict == "not checked" and row.own:
            id = "own-not-checked"
        elif row.verdict == "not checked" and row.node.index not in idle:
            id = "not-checked"
        else:
            continue
        file, line = _spot(row.place)
        numbers = tuple(f"{element(each.argument, each.index)}: {_sides(each)}" for each in row.wrong)
        advice = " ".join(each.text.removesuffix(".") + "." for each in row.repairs)
        text = f"{row.node.name}: {row.reason}"
        yield Issue(id, VERDICTS[id][0], row.node.name, text, numbers, advice, file, line, code_at(file, line))


def _of_updates(check: Verification) -> Iterator[Issue]:
    for update in check.updates:
        if update.verdict == "disagrees":
            text = f"The update of {update.parameter}: {update.reason}"
            yield Issue("update-disagrees", VERDICTS["update-disagrees"][0], update.parameter, text)
    reasons = Counter(update.reason for update in check.updates if update.verdict == "not checked")
    for reason, many in reasons.items():
        text = f"{many} updates of {len(check.updates)} were not checked: {reason}"
        yield Issue("update-not-checked", VERDICTS["update-not-checked"][0], "updates", text)


def _sides(wrong: Wrong) -> str:
    sides = {"our rule": wrong.rule, "autograd": wrong.autograd, "measured": wrong.finite}
    for digits in (8, 17):  # as many as show the difference
        texts = {name: f"{value:.{digits}g}" for name, value in sides.items() if value is not None}
        if len({*texts.values()}) > 1:
            break
    return ", ".join(f"{name} {text}" for name, text in texts.items())


def _head(check: Verification, script: ScriptRun | None) -> dict[str, Any]:
    """Verdict and summary. Of a step that did not come to its end, what was checked is not the whole."""
    from chainrule.report.headline import headline

    verdict = headline(check)
    if script is not None and script.shortfall:
        kind = "not checked" if verdict.kind == "agrees" else verdict.kind
        return {"verdict": kind, "summary": f"{script.shortfall} {plain_text(verdict.text)}"}
    return {"verdict": verdict.kind, "summary": plain_text(verdict.text)}


def head_of(document: Document) -> str:
    """The first words of a report."""
    return plain_text(next((each.text for each in document.summary if isinstance(each, Paragraph)), ()))


def from_root(items: Iterable[Placed], root: Path) -> tuple[Placed, ...]:
    """The same with files inside a folder by their path from there, with slashes: the same on every machine."""
    return tuple(
        replace(each, file=Path(each.file).relative_to(root).as_posix())
        if each.file and Path(each.file).is_relative_to(root)
        else each
        for each in items
    )


def _spot(place: Place | None) -> tuple[str, int | None]:
    return ("", None) if place is None else (place.file, place.line)


def code_at(file: str, line: int | None) -> str:
    """The text of a line: it stays the same where lines above it come and go."""
    return linecache.getline(file, line).strip() if file and line else ""
