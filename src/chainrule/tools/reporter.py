"""Hands out the result of a command: JSON, SARIF, a baseline, and an exit status that a build can act on."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

import click

from chainrule.numbers import many
from chainrule.tools import baseline
from chainrule.tools.result import LEVELS, VERDICTS, Accepted, Issue, Level, Result, from_root, to_json

FAILED = 1
NOTHING = 2  # also click's status for wrong usage

json_option = click.option(
    "--json", "json", is_flag=True,
    help="Print the result as one JSON object; what else is printed goes to standard error.",
)  # fmt: skip


def result_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say what to do with the findings, besides showing them."""
    options = (
        json_option,
        click.option("--sarif", type=click.Path(dir_okay=False), metavar="FILE", help="Write the findings as SARIF."),
        click.option(
            "--fail-on", type=click.Choice(["note", "warning", "error"]), metavar="LEVEL",
            help="Exit with status 1 where a finding has this level (note, warning, error) or a higher one.",
        ),
        click.option(
            "--baseline", type=click.Path(dir_okay=False), metavar="FILE", help="Accept the findings in this file."
        ),
        click.option(
            "--write-baseline", type=click.Path(dir_okay=False), metavar="FILE",
            help="Accept the findings of now: write them to a file for --baseline.",
        ),
    )  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


@dataclass
class Reporter:
    """What the options of a command ask for. It is made before a script runs, which may take hours and change folder.

    Raises StorageError where a file cannot be read, or could not be written.
    """

    json: bool = False
    sarif: str | None = None
    fail_on: Level | None = None
    baseline: str | None = None
    write_baseline: str | None = None
    by_default: Level | None = None
    root: Path = field(default_factory=Path.cwd)

    def __post_init__(self) -> None:
        from chainrule.graph.storage import check_writable

        self._entries = baseline.read(self.baseline) if self.baseline else ()
        if rank():
            self.sarif = self.write_baseline = None
        for path in (self.sarif, self.write_baseline):
            if path is not None:
                check_writable(path)
        before = self.write_baseline is not None and os.path.exists(self.write_baseline)
        self._before = baseline.read(self.write_baseline) if self.write_baseline and before else ()
        self._out: IO[str] = _alone() if self.json else sys.stdout

    @property
    def wanted(self) -> bool:
        """Whether anybody asks for the findings."""
        return self.json or any((self.sarif, self.fail_on, self.baseline, self.write_baseline))

    def accept(self, result: Result, *, whole: bool = True) -> Result:
        """The result, with what the baseline accepts marked, and a new baseline written where that was asked for.

        Where not the `whole` was looked at, no entry of the baseline is said not to have been found.
        """
        issues, nodes = from_root(result.findings, self.root), from_root(result.nodes, self.root)
        result = replace(result, findings=issues, nodes=nodes)
        scope = _scope(result)
        entries = self._entries
        if self.write_baseline is not None:
            entries = (*baseline.entries_of(issues), *(each for each in self._before if not scope(each)))
            _write(self.root / self.write_baseline, baseline.written(entries))
            say(f"{many(len(issues), 'finding')} accepted: {self.write_baseline} is written")
        issues, _ = baseline.applied(issues, entries)
        resolved = baseline.applied(issues, [each for each in self._entries if scope(each)])[1] if whole else ()
        if not rank():
            self._say_accepted(issues, resolved)
        return replace(result, findings=issues, resolved=resolved)

    def _say_accepted(self, issues: Iterable[Issue], resolved: Iterable[Accepted]) -> None:
        accepted = [each for each in issues if each.accepted]
        if accepted and self.baseline:
            say(f"{self.baseline} accepts {many(len(accepted), 'finding')}:")
            for each in accepted:
                say(f"  accepted {each}")
        for entry in resolved:
            say(f"{self.baseline} accepts what was not found this time: {entry}. --write-baseline writes it anew.")

    def finish(self, result: Result, status: int) -> int:
        """Hand out the result with its exit status: 1 where a finding that is not accepted has the level to fail on.

        That is the one of `--fail-on`; where it is not given, or what `by_default` fails, is graver, `by_default`.
        """
        asked = [each for each in (self.fail_on, self.by_default) if each is not None]
        limit = min(asked, key=LEVELS.index, default=None)
        failing = [each for each in result.findings if limit and _reaches(each, limit)]
        if failing and self.fail_on:
            kinds = ", ".join(dict.fromkeys(each.id for each in failing))
            say(f"status {FAILED}: {many(len(failing), 'finding')} at or above --fail-on {self.fail_on}: {kinds}")
        return self.give(replace(result, status=FAILED if failing else status))

    def give(self, result: Result) -> int:
        """Write the result where it was asked for; returns its exit status."""
        if self.sarif is not None:
            from chainrule.tools.sarif import to_sarif

            _write(self.root / self.sarif, to_sarif(result, self.root))
            say(f"{many(len(result.findings), 'finding')} written to {self.sarif}")
        if self.json and not rank():
            print(to_json(result), file=self._out, flush=True)
        return result.status


def _reaches(issue: Issue, limit: Level) -> bool:
    return not issue.accepted and LEVELS.index(issue.level) >= LEVELS.index(limit)


def _alone() -> IO[str]:
    """Standard output for the result alone: what else this process and its children print goes to stderr."""
    sys.stdout.flush()
    with suppress(OSError, ValueError, AttributeError):
        if sys.stdout.fileno() == 1:
            out = os.fdopen(os.dup(1), "w", encoding="utf-8")
            os.dup2(2, 1)
            return out
    shown: IO[str] = sys.stdout
    sys.stdout = sys.stderr
    return shown


def _scope(result: Result) -> Callable[[Accepted], bool]:
    """Whether a command can find what an entry of a baseline accepts: the file may serve several commands."""
    if result.command == "verify":
        return lambda entry: entry.id in VERDICTS
    from chainrule.diagnostics import CHECKS

    if result.watched is not None:
        return lambda entry: entry.id not in VERDICTS
    of_steps = {id for id, check in CHECKS.items() if check.step_checks}
    return lambda entry: entry.id in of_steps


def _write(path: Path, text: str) -> None:
    from chainrule.graph.storage import write_atomically

    write_atomically(path, text.encode())


def rank() -> int:
    """The rank of this process where a launcher (torchrun) started several; only the first shows and writes results."""
    several = os.environ.get("WORLD_SIZE", "1") != "1"
    number = os.environ.get("RANK", "0")
    return int(number) if several and number.isdecimal() else 0


def say(sentence: str) -> None:
    """Print a sentence to standard error, as the command's own."""
    click.echo(f"chainrule: rank {rank()}: {sentence}" if rank() else f"chainrule: {sentence}", err=True)
