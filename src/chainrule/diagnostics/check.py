"""A check: everything about one kind of finding in one block, as a rule is for an operation.

Creating the block registers it: it can then be silenced, and docs/findings.md lists it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field, replace
from difflib import get_close_matches

from chainrule import plugins
from chainrule.diagnostics.finding import Finding, Severity
from chainrule.diagnostics.run_context import Run, Stretch, carry
from chainrule.diagnostics.step_context import StepContext
from chainrule.document import Text
from chainrule.errors import RequestError, SilenceError
from chainrule.graph.graph import Place

CHECKS: dict[str, Check] = {}
"""Every check by its id; those of plug-ins after `load_plugins`."""

StepCheck = Callable[[StepContext], Iterable[Finding]]
RunCheck = Callable[[Run], Iterable[Finding]]


@dataclass(eq=False)
class Check:
    """One kind of finding.

    `what` is found, `why` it matters, and `advice` is what to try. `thresholds` are the fields of `Thresholds` that
    decide, and `source` is the practice or paper behind them. Over a run, a finding of single steps is more than a note
    only if it held at `lasts` examined steps in a row; if `lasts` is above 1, one that has ended is dropped. An
    `unfinished` check also runs on a step that never reached its update.
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
    across_ranks: bool = False  # it needs the statistics of every rank, see `chainrule.diagnostics.ranks`
    step_checks: list[StepCheck] = field(default_factory=list)
    run_checks: list[RunCheck] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.id in CHECKS:
            raise RequestError(f"there is a kind of finding with the id {self.id!r} already")
        CHECKS[self.id] = self

    def in_step(self, check: StepCheck) -> StepCheck:
        """Register a function that looks at one step."""
        self.step_checks.append(check)
        return check

    def over_time(self, check: RunCheck) -> RunCheck:
        """Register a function that looks at a run. It replaces the default, which carries on what steps showed."""
        self.run_checks.append(check)
        return check

    def carried(self, run: Run) -> Iterator[tuple[Stretch, Finding]]:
        """What single steps of the run showed, with the step since which it holds."""
        for stretch in run.stretches(self.id):
            if (found := carry(stretch, self.lasts)) is not None:
                yield stretch, found

    def lasting(self, run: Run) -> Iterator[Finding]:
        """Like `carried`, for notes of single steps: what lasts gets the severity of the check."""
        for stretch, found in self.carried(run):
            yield replace(found, severity=self.severity) if len(stretch.steps) >= self.lasts else found

    def found(
        self,
        where: str,
        text: str | Text,
        evidence: str | Iterable[str],
        *,
        place: Place | None = None,
        severity: Severity | None = None,
        advice: str = "",
        title: str = "",
        since: int | None = None,
        until: int | None = None,
        rows: Iterable[int] = (),
        size: int = 0,
    ) -> Finding:
        """A finding of this check. An empty sentence of evidence is dropped."""
        spans: Text = (text,) if isinstance(text, str) else text
        shown = tuple(filter(None, (evidence,) if isinstance(evidence, str) else evidence))
        return Finding(
            self.id, title or self.title, severity or self.severity, where, place, spans, shown, advice or self.advice,
            since, until, tuple(rows), size,
        )  # fmt: skip


def check_silence(silence: Collection[str]) -> frozenset[str]:
    """The ids to leave out. Raises SilenceError for an id that no check has."""
    if not isinstance(silence, Iterable):
        raise SilenceError(
            f'silence={silence!r}: give the ids of findings to leave out, as in ("unit-off", "at-kink").'
        )
    given = [silence] if isinstance(silence, str) else list(silence)
    for each in given:
        check_id(each, "silence")
    return frozenset(given)


def load_plugins() -> None:
    """Register the checks of plug-ins."""
    plugins.load("findings")


def check_id(id: object, option: str) -> None:
    """Raise SilenceError, with near matches, unless a check has this id."""
    load_plugins()
    if id not in CHECKS:
        near = get_close_matches(str(id), CHECKS, n=3, cutoff=0.6)
        known = f"Near matches: {', '.join(map(repr, near))}." if near else f"There are {', '.join(CHECKS)}."
        raise SilenceError(f"{option}: no finding has the id {id!r}. {known}")
