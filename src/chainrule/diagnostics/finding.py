"""A finding: one unhealthy thing in a step or a run, with the numbers that show it and what to try."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from chainrule.document import Text
from chainrule.graph.graph import Place

Severity = Literal["note", "warning", "error"]
"""`note`: worth knowing. `warning`: it most likely does harm. `error`: numbers are lost, or nothing is learnt."""

RANK: dict[str, int] = {"error": 0, "warning": 1, "note": 2}
LISTED = 5  # items that are listed one by one


@dataclass(frozen=True)
class Finding:
    """One unhealthy thing: where it is, what it is, the numbers that show it, and what to do.

    `title` is that of its check, or of a special case. In a run, it holds `since` a step without a break; if it has
    ended, it was last seen at `until`. `rows` are the units, rows or elements concerned, out of `size`. `because` names
    the finding that most likely caused it, as `id: where`.
    """

    id: str
    title: str
    severity: Severity
    where: str
    place: Place | None
    text: Text
    evidence: tuple[str, ...]
    advice: str
    since: int | None = None
    until: int | None = None
    rows: tuple[int, ...] = ()
    size: int = 0
    because: str = ""

    @property
    def sentence(self) -> str:
        """What was found, as plain text."""
        return "".join(span if isinstance(span, str) else getattr(span, "source", "") for span in self.text)

    @property
    def when(self) -> str:
        """` since step 20`, ` at step 20` or ` from step 20 to 40`; empty for a single step."""
        if self.since is None:
            return ""
        if self.until is None:
            return f" since step {self.since}"
        return f" at step {self.since}" if self.since == self.until else f" from step {self.since} to {self.until}"

    def __str__(self) -> str:
        place = f" ({self.place})" if self.place else ""
        head = f"{self.severity}{self.when}: {self.sentence}{place}"
        return "\n".join([head, *(f"  {each}" for each in (*self.evidence, self.advice))])


def in_order(found: Iterable[Finding]) -> tuple[Finding, ...]:
    """Errors first, then warnings, then notes; each group in the order in which it was found."""
    return tuple(sorted(found, key=lambda finding: RANK[finding.severity]))


def joined(found: Iterable[Finding]) -> Iterator[Finding]:
    """Merge findings that differ only in their place into one, which lists the places."""
    groups: dict[object, list[Finding]] = {}
    for each in found:
        words = each.sentence.replace(each.where, "...")
        key = (each.id, each.severity, each.since, each.until, words) if each.where in each.sentence else id(each)
        groups.setdefault(key, []).append(each)
    for first, *others in groups.values():
        more = (f" The same applies to {listed([each.where for each in others])}.",) if others else ()
        yield replace(first, text=(*first.text, *more))


def listed(items: Sequence[object], most: int = LISTED) -> str:
    """The first few items, and how many more there are."""
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(map(str, items[:most])) + more


def plural(count: int, one: str, many: str) -> str:
    """`one` for a count of 1, else `many`."""
    return one if count == 1 else many
