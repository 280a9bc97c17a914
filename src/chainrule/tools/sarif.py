"""A result as SARIF 2.1.0, the format in which code hosts and editors take the findings of a tool."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

from chainrule.tools.result import VERDICTS, Issue, Result

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"


def to_sarif(result: Result, root: Path) -> str:
    """The findings of a result as SARIF: each with its rule, level, file and line. An accepted one is suppressed.

    Files in the folder `root` are named from there.
    """
    from chainrule._version import __version__

    ids = list(dict.fromkeys(each.id for each in result.findings))
    driver = {"name": "chainrule", "version": __version__, "rules": [_rule(id) for id in ids]}
    run = {
        "tool": {"driver": driver},
        "automationDetails": {"id": f"chainrule/{result.command}/{result.target}/"},
        "originalUriBaseIds": {"SRCROOT": {"uri": root.as_uri().rstrip("/") + "/"}},
        "invocations": [_invocation(result)],
        "results": [_result(each, ids, result.target, root) for each in result.findings],
        "columnKind": "unicodeCodePoints",
        "properties": {"command": result.command, "target": result.target, "summary": result.summary},
    }
    return json.dumps({"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}, indent=1) + "\n"


def _invocation(result: Result) -> dict[str, Any]:
    """How the command ended; where it failed without a finding, it says why."""
    well = result.status == 0 or not all(each.accepted for each in result.findings)
    said = [] if well else [{"level": "error", "message": {"text": result.summary or f"status {result.status}"}}]
    return {"executionSuccessful": well, "exitCode": result.status, "toolExecutionNotifications": said}


def _rule(id: str) -> dict[str, Any]:
    if id in VERDICTS:
        level, words = VERDICTS[id]
        return {"id": id, "shortDescription": {"text": words}, "defaultConfiguration": {"level": level}}
    from chainrule.diagnostics import CHECKS

    check = CHECKS.get(id)
    if check is None:  # a run that another version watched, or with a plug-in
        return {"id": id}
    return {
        "id": id,
        "shortDescription": {"text": check.title},
        "fullDescription": {"text": check.what},
        "help": {"text": f"{check.why} {check.advice}"},
        "defaultConfiguration": {"level": check.severity},
    }


def _result(issue: Issue, ids: list[str], target: str, root: Path) -> dict[str, Any]:
    words = "\n".join(filter(None, (issue.text, *issue.evidence, issue.advice)))
    found: dict[str, Any] = {
        "ruleId": issue.id,
        "ruleIndex": ids.index(issue.id),
        "level": issue.level,
        "message": {"text": words},
        "locations": [_location(issue, target, root)],
        "partialFingerprints": {"chainrule/v1": "|".join((issue.id, issue.where, issue.code))},
    }
    properties = dict(_steps(issue))
    if properties:
        found["properties"] = properties
    if issue.accepted:
        found["suppressions"] = [{"kind": "external", "status": "accepted"}]
    return found


def _location(issue: Issue, target: str, root: Path) -> dict[str, Any]:
    """File and line; the script alone where no line is known, since code hosts drop a result without a file."""
    found: dict[str, Any] = {"logicalLocations": [{"fullyQualifiedName": issue.where}]} if issue.where else {}
    file = issue.file or (target if target.endswith(".py") else "")
    if file:
        physical: dict[str, Any] = {"artifactLocation": _artifact(root / file, root)}
        if issue.line is not None:
            physical["region"] = {"startLine": issue.line} | ({"snippet": {"text": issue.code}} if issue.code else {})
        found["physicalLocation"] = physical
    return found


def _artifact(path: Path, root: Path) -> dict[str, str]:
    if not path.is_relative_to(root):
        return {"uri": path.as_uri()}
    return {"uri": quote(path.relative_to(root).as_posix()), "uriBaseId": "SRCROOT"}


def _steps(issue: Issue) -> Iterator[tuple[str, Any]]:
    for name in ("since", "until", "because"):
        value = getattr(issue, name)
        if value not in (None, ""):
            yield name, value
