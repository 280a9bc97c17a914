"""A check: everything about one kind of finding in one block, as a rule is for an operation.

Creating the block registers it. The order of checks, the thresholds, what can be silenced and docs/findings.md follow.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field, replace
from difflib import get_close_matches

from chainrule.diagnostics.finding import Finding, Severity
from chainrule.diagnostics.run_context import Run, carry
from chainrule.diagnostics.step_context import StepContext
from chainrule.document import Text
from chainrule.errors import SilenceError
from chainrule.graph.graph import Place

CHECKS: dict[str, Check] = {}
"""Every kind of finding by its id, in the order in which the checks run."""


StepCheck = Callable[[StepContext], Iterable[Finding]]
RunCheck = Callable[[Run], Iterable[Finding]]


@dataclass(eq=False)
class Check:
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
        assert self.id not in CHECKS
        CHECKS[self.id] = self

    def in_step(self, check: StepCheck) -> StepCheck:
        """Enter a check of one step."""
        self.step_checks.append(check)
        return check

    def over_time(self, check: RunCheck) -> RunCheck:
        """Enter a check of a run. It takes the place of merely carrying on what single steps showed."""
        self.run_checks.append(check)
        return check

    def carried(self, run: Run) -> Iterator[Finding]:
        """What single steps of the run showed, with the step since which it holds."""
        for stretch in run.stretches(self.id):
            if (found := carry(stretch, self.lasts)) is not None:
                yield found

    def lasting(self, run: Run) -> Iterator[Finding]:
        """As `carried`, where a single step is too little to judge: what lasts is as severe as its kind."""
        for stretch in run.stretches(self.id):
            if (found := carry(stretch, self.lasts)) is not None:
                yield replace(found, severity=self.severity) if len(stretch.steps) >= self.lasts else found

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
            self.id, self.title, severity or self.severity, where, place, told, tuple(evidence), advice or self.advice,
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
        if each not in CHECKS:
            near = get_close_matches(str(each), CHECKS, n=3, cutoff=0.4)
            known = f"Near matches: {', '.join(map(repr, near))}." if near else f"There are {', '.join(CHECKS)}."
            raise SilenceError(f"silence: no finding has the id {each!r}. {known}")
    return frozenset(given)
