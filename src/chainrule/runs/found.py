"""A finding as the file of a run keeps it: words and numbers alone, so that reading a file needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Found:
    """One thing that a reader of the run should know, since which step and until when it held (None: not said)."""

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
        """The same of a `chainrule.findings.Finding`."""
        return cls(
            finding.id,
            finding.severity,
            finding.where,
            finding.sentence,
            tuple(finding.evidence),
            finding.advice,
            str(finding.place or ""),
            finding.since,
            finding.until,
            tuple(finding.rows),
            finding.size,
        )

    def __str__(self) -> str:
        since = "" if self.since is None else f" since step {self.since}"
        return "\n".join(
            [f"{self.severity}{since}: {self.text}", *(f"  {each}" for each in (*self.evidence, self.advice) if each)]
        )
