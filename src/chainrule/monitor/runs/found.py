"""A finding as stored in the file of a run: text and numbers alone, so that reading needs no torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True, slots=True)
class Found:
    """One finding, with the steps since which and until which it holds (None: open)."""

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

    @classmethod
    def of(cls, finding: Any) -> Found:
        """The same for a `chainrule.diagnostics.Finding`."""
        return cls(
            finding.id, finding.severity, finding.where, finding.sentence, tuple(finding.evidence), finding.advice,
            str(finding.place or ""), finding.since, finding.until, tuple(finding.rows), finding.size,
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
    def when(self) -> str:
        """`since step 20`, `at step 20` or `from step 20 to 40`."""
        if self.since is None:
            return ""
        if self.until is None:
            return f"since step {self.since:,}"
        return f"at step {self.since:,}" if self.since == self.until else f"from step {self.since:,} to {self.until:,}"

    def __str__(self) -> str:
        since = f" {self.when}" if self.when else ""
        return "\n".join(
            [f"{self.severity}{since}: {self.text}", *(f"  {each}" for each in (*self.evidence, self.advice) if each)]
        )


LISTS = {"evidence": str, "rows": int}  # stored as JSON
COLUMNS = {{"id": "finding", "where": "name"}.get(each.name, each.name): each.name for each in fields(Found)}
"""The columns of the finding table, and the field in each."""


def _stored(value: Any) -> Any:
    return json.dumps(list(value)) if isinstance(value, tuple) else value
