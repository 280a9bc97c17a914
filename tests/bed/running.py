"""Runs the real commands on scripts: each in a fork of a process that has already imported PyTorch."""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TIMEOUT = 600  # seconds for one command


@dataclass
class Found:
    """What the bed asks of a finding, of a step or of a run."""

    id: str
    severity: str
    where: str
    place: str
    text: str
    evidence: list[str]
    advice: str
    since: int | None = None


@dataclass
class Result:
    """What one command did with one script."""

    script: str
    how: str
    status: int
    seconds: float
    printed: str
    said: str
    found: list[Found] = field(default_factory=list)

    @property
    def figure(self) -> str:
        """The last line that the script printed."""
        lines = self.printed.strip().splitlines()
        return lines[-1] if lines else ""


def arguments(how: str, script: str) -> list[str]:
    """The arguments of the command `chainrule`."""
    kind, number = how.split("=")
    if kind == "every":
        return ["watch", script, "--every", number, "--plain", "--to", "run.db"]
    return ["run", script, "--step", number, "--stop", "-o", "step.safetensors"]


def run_all(jobs: Iterable[tuple[str, Path | str, str]], workers: int) -> Iterator[Result]:
    """Run (name, text, how) jobs in a few processes at once; the results come in the order in which they end."""
    _import_all()
    running: dict[int, tuple[Path, tuple[str, str], float]] = {}
    waiting = iter(jobs)
    with tempfile.TemporaryDirectory() as folder:
        for count, (name, text, how) in enumerate(waiting):
            if len(running) >= workers:
                yield _ended(running)
            here = Path(folder, str(count))
            here.mkdir()
            Path(here, f"{name}.py").write_text(text)
            running[_fork(here, f"{name}.py", how)] = here, (name, how), time.monotonic()
        while running:
            yield _ended(running)


def _import_all() -> None:
    os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")
    import sklearn.datasets  # noqa: F401
    import torch

    import chainrule.cli
    import chainrule.runs

    assert chainrule.record  # its module is loaded when it is asked for

    torch.set_num_threads(1)


def _fork(here: Path, script: str, how: str) -> int:
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        return child
    status = 70
    try:
        os.chdir(here)
        for stream, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT), stream)
        signal.alarm(TIMEOUT)
        status = _guarded(lambda: _bare(script) if how == "bare" else _command(script, how))
        sys.stdout.flush()
        if how != "bare":
            Path("found.json").write_text(json.dumps([vars(each) for each in _read(how)]))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def _guarded(call: Callable[[], None]) -> int:
    try:
        call()
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    return 0


def _bare(script: str) -> None:
    import runpy

    runpy.run_path(script, run_name="__main__")


def _command(script: str, how: str) -> None:
    from chainrule.cli import commands

    commands(arguments(how, script), prog_name="chainrule")


def _read(how: str) -> list[Found]:
    """What was found, in the order in which the command shows it."""
    import chainrule
    from chainrule import runs
    from chainrule.monitor.runs.found import by_cause

    if how.startswith("every"):
        with runs.open("run.db") as run:
            return [_found(each, each.text) for each in by_cause(run.findings())]
    if not Path("step.safetensors").exists():
        return []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [_found(each, each.sentence) for each in chainrule.load("step.safetensors").findings()]


def _found(each: Any, text: str) -> Found:
    place = str(each.place or "")
    return Found(each.id, each.severity, each.where, place, text, list(each.evidence), each.advice, each.since)


def _ended(running: dict[int, tuple[Path, tuple[str, str], float]]) -> Result:
    child, state = os.wait()
    here, (name, how), began = running.pop(child)
    kept = here / "found.json"
    found = [Found(**each) for each in json.loads(kept.read_text())] if kept.exists() else []
    printed, said = ((here / name).read_text() for name in ("stdout", "stderr"))
    status = os.waitstatus_to_exitcode(state)
    if how != "bare" and not kept.exists():
        status = status or 70
    return Result(name, how, status, time.monotonic() - began, printed, said, found)
