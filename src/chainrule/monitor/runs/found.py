"""A finding as stored in the file of a run: text and numbers alone, so that reading needs no torch."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True, slots=True)
class Found:
    """One finding, with the steps since which and until which it holds (None: open).

    `because` names the finding that most likely caused it, as `id: where`. `file` is the path of the file in `place`.
    """

    id: str
    severity: str
    where: str
    text: str
    evidence: tuple[str, ...] = ()
    advice: str = ""
    place: str = ""
    since: int | None = None
    until: int | None = None
    rows: tuple[int, ...] = ()
    size: int = 0
    because: str = ""
    file: str = ""

    @classmethod
    def of(cls, finding: Any) -> Found:
        """The same for a `chainrule.diagnostics.Finding`."""
        return cls(
            finding.id, finding.severity, finding.where, finding.sentence, tuple(finding.evidence), finding.advice,
            str(finding.place or ""), finding.since, finding.until, tuple(finding.rows), finding.size,
            finding.because, finding.place.file if finding.place else "",
        )  # fmt: skip

    def row(self) -> dict[str, Any]:
        """The columns of the finding in the file."""
        return {column: _stored(getattr(self, name)) for column, name in COLUMNS.items()}

    @classmethod
    def of_row(cls, row: Sequence[Any]) -> Found:
        """The inverse of `row`. Raises ValueError or TypeError for a row that is none."""
        found = dict(zip(COLUMNS.values(), row, strict=True))
        lists = {name: tuple(json.loads(found[name])) for name in LISTS}
        if not all(isinstance(each, kind) for name, kind in LISTS.items() for each in lists[name]):
            raise ValueError("the lists of a finding")
        return cls(**found | lists)

    @property
    def name(self) -> str:
        """How `because` of another finding names this one."""
        return f"{self.id}: {self.where}"

    @property
    def statement(self) -> str:
        """What was found, and where in the code."""
        if not self.place or self.place in self.text:
            return self.text
        return f"{self.text.removesuffix('.')} ({self.place})."

    @property
    def when(self) -> str:
        """`since step 20`, `at step 20` or `from step 20 to 40`."""
        if self.since is None:
            return ""
        if self.until is None:
            return f"since step {self.since:,}"
        return f"at step {self.since:,}" if self.since == self.until else f"from step {self.since:,} to {self.until:,}"

    def __str__(self) -> str:
        since = f" {self.when}" if self.when else ""
        rest = (f"  {each}" for each in (*self.evidence, self.advice) if each)
        return "\n".join([f"{self.severity}{since}: {self.statement}", *rest])


def families(found: Iterable[Found]) -> list[tuple[Found, list[Found]]]:
    """Each finding without a known cause, with its effects in the order of steps; the most likely cause first.

    The gravest come first, and among them those that explain others.
    """
    effects: dict[str, list[Found]] = {}
    by_name = {each.name: each for each in found}
    roots = [each for each in by_name.values() if each.because not in by_name]
    for each in by_name.values():
        root, seen = each, {each.name}
        while root.because in by_name and root.because not in seen:
            root = by_name[root.because]
            seen.add(root.name)
        if root is not each:
            effects.setdefault(root.name, []).append(each)
    made = [(root, sorted(effects.get(root.name, []), key=_since)) for root in roots]
    return sorted(made, key=lambda family: (_gravity(family), not family[1], _since(family[0])))


def by_cause(found: Iterable[Found]) -> list[Found]:
    """The findings in the order of `families`: each cause before its effects."""
    return [each for root, effects in families(found) for each in (root, *effects)]


def _since(found: Found) -> int:
    return found.since or 0


def _gravity(family: tuple[Found, list[Found]]) -> int:
    return min(SEVERITIES.index(each.severity) for each in (family[0], *family[1]))


def lines(found: Iterable[Found]) -> Iterator[str]:
    """The findings above a note as lines of text: each cause with its evidence and advice, its effects below it."""
    for family in families(found):
        if _is_note(family):
            continue
        root, effects = family
        yield f"{root.severity} {root.when}: {root.statement} [{root.id}]"
        yield from (f"  {each}" for each in (*root.evidence, root.advice) if each)
        for each in effects:
            yield f"  because of this, {each.severity} {each.when}: {each.statement} [{each.id}]"
            yield from (f"    {line}" for line in each.evidence)


def notes(found: Iterable[Found]) -> list[Found]:
    """The findings that `lines` leaves out: notes that no graver one belongs to."""
    return [each for family in families(found) if _is_note(family) for each in (family[0], *family[1])]


def _is_note(family: tuple[Found, list[Found]]) -> bool:
    return SEVERITIES[_gravity(family)] == "note"


SEVERITIES = ("error", "warning", "note")
LISTS = {"evidence": str, "rows": int}  # stored as JSON
COLUMNS = {{"id": "finding", "where": "name"}.get(each.name, each.name): each.name for each in fields(Found)}
"""The columns of the finding table, and the field in each."""


def _stored(value: Any) -> Any:
    return json.dumps(list(value)) if isinstance(value, tuple) else value
