"""A finding, and what a kind of finding is: everything that is known of a kind stands in one block, as with a rule.

Registering the block is enough: checks, titles, the table of thresholds, what can be silenced and the page
docs/findings.md follow from the registry.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import TYPE_CHECKING, Literal

from chainrule.document import Text
from chainrule.errors import SilenceError
from chainrule.graph.graph import Place

if TYPE_CHECKING:
    from chainrule.diagnostics.run_context import Run
    from chainrule.diagnostics.step_context import Case

Severity = Literal["note", "warning", "error"]
"""`note`: worth knowing. `warning`: it most likely harms. `error`: the numbers are lost."""

RANK: dict[str, int] = {"error": 0, "warning": 1, "note": 2}

KINDS: dict[str, Kind] = {}
"""Every kind of finding by its id, in the order in which the checks run."""


@dataclass(frozen=True)
class Finding:
    """One thing that a reader should know: where, what, the numbers that show it, and what to do.

    Over time it holds without a break `since` a step, and was seen last at `until`. `rows` are the units, rows or
    elements that it is about, of `size` that there are.
    """

    id: str
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

    @property
    def title(self) -> str:
        """What this kind of finding is about."""
        return KINDS[self.id].title

    @property
    def sentence(self) -> str:
        """What was found, as plain text."""
        return "".join(span if isinstance(span, str) else getattr(span, "source", "") for span in self.text)

    @property
    def when(self) -> str:
        """` since step 20`, ` at step 20` or ` from step 20 to 40`; nothing for one step on its own."""
        if self.since is None:
            return ""
        if self.until is None:
            return f" since step {self.since}"
        return f" at step {self.since}" if self.since == self.until else f" from step {self.since} to {self.until}"

    def __str__(self) -> str:
        place = f" ({self.place})" if self.place else ""
        head = f"{self.severity}{self.when}: {self.sentence}{place}"
        return "\n".join([head, *(f"  {each}" for each in (*self.evidence, self.advice))])


StepCheck = Callable[["Case"], Iterable[Finding]]
RunCheck = Callable[["Run"], Iterable[Finding]]


@dataclass(eq=False)
class Kind:
    """Everything that is known of one kind of finding.

    `what` is found, `why` it matters, what to try (`advice`), the `thresholds` (fields of `Thresholds`) that decide,
    and the `source` that they follow. In a run, what a single step shows is told as more than a note only where it
    held for `lasts` examined steps in a row up to the last one; with `lasts` 1 it is told whenever it was seen. What
    is `unfinished` is also looked for in a step that never came to its update, where most others would say no more than
    that.
    """

    id: str
    title: str
    severity: Severity
    what: str
    why: str
    advice: str
    thresholds: tuple[str, ...] = ()
    source: str = ""
    lasts: int = 1
    unfinished: bool = False
    across_ranks: bool = False  # asks the figures of every rank, see `findings.ranks`
    step_checks: list[StepCheck] = field(default_factory=list)
    run_checks: list[RunCheck] = field(default_factory=list)

    def __post_init__(self) -> None:
        assert self.id not in KINDS
        KINDS[self.id] = self

    def in_step(self, check: StepCheck) -> StepCheck:
        """Enter a check of one step."""
        self.step_checks.append(check)
        return check

    def over_time(self, check: RunCheck) -> RunCheck:
        """Enter a check of a run. It takes the place of merely carrying on what single steps showed."""
        self.run_checks.append(check)
        return check

    def found(
        self,
        where: str,
        text: str | Text,
        evidence: Iterable[str],
        *,
        place: Place | None = None,
        severity: Severity | None = None,
        advice: str = "",
        since: int | None = None,
        until: int | None = None,
        rows: Iterable[int] = (),
        size: int = 0,
    ) -> Finding:
        """One finding of this kind."""
        told: Text = (text,) if isinstance(text, str) else text
        return Finding(
            self.id, severity or self.severity, where, place, told, tuple(evidence), advice or self.advice,
            since, until, tuple(rows), size,
        )  # fmt: skip


def check_silence(silence: Collection[str]) -> frozenset[str]:
    """The ids to leave out. Raises SilenceError for one that no kind of finding has."""
    if not isinstance(silence, Iterable):
        raise SilenceError(
            f'silence={silence!r}: give the ids of findings to leave out, as in ("unit-off", "at-kink").'
        )
    given = [silence] if isinstance(silence, str) else list(silence)
    for each in given:
        if each not in KINDS:
            near = get_close_matches(str(each), KINDS, n=3, cutoff=0.4)
            known = f"Near matches: {', '.join(map(repr, near))}." if near else f"There are {', '.join(KINDS)}."
            raise SilenceError(f"silence: no finding has the id {each!r}. {known}")
    return frozenset(given)


def in_order(found: Iterable[Finding]) -> tuple[Finding, ...]:
    """Errors first, then warnings, then notes; each group in the order in which it was found."""
    return tuple(sorted(found, key=lambda finding: RANK[finding.severity]))
