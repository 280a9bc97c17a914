"""Runs an unmodified training script as `python SCRIPT` or `python -m MODULE` would, and records one of its steps.

PyTorch calls global hooks around every `optimizer.step()`: training step N runs from the end of step N-1 (or the start
of the script) to the end of step N. With several optimizers it ends when each has stepped (`capture/rounds.py`).
PyTorch is imported before the script begins, so environment variables that it reads at import must be set outside.
"""

from __future__ import annotations

import builtins
import os
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.abc import InspectLoader
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import find_spec
from itertools import dropwhile
from pathlib import Path
from types import CodeType, FrameType, ModuleType, TracebackType
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch.optim.optimizer import (
    Optimizer,
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from chainrule.capture.global_hooks import before_forward
from chainrule.capture.rounds import Rounds, besides, living
from chainrule.capture.source import Site, callers, entries, is_library, locals_of, without_our_frames
from chainrule.capture.step_log import StepLog
from chainrule.errors import RecordingError
from chainrule.process import Process
from chainrule.pytorch_internals import _current_graph_task_id
from chainrule.recording import Recording, record

if TYPE_CHECKING:
    from chainrule.diagnostics import Finding

Namespace = dict[str, Any]
Ending = Literal["ended", "exited", "crashed", "was interrupted", "was stopped"]
Session = Callable[[Namespace], AbstractContextManager[Recording]]
"""Makes the context manager that records. The dict is empty until the step ends, and then has all names in scope."""

LAUNCHERS = {"torchrun": "torchrun --nproc-per-node 2", "accelerate": "accelerate launch"}
INTERRUPTED = 130  # what a shell reports for a process ended by SIGINT


@dataclass(frozen=True)
class ScriptRun:
    """How a script ran: `steps` is how many training steps it made, `status` its exit status.

    `recording` is None where the step asked for never began, and partial where it did not end. With `in_one` a script
    that goes backward and updates nothing counts as one step, the first.
    """

    script: str
    step: int
    steps: int
    ending: Ending
    status: int
    recording: Recording | None
    failure: Recording | None = None  # of an exception in a step that was not recorded
    in_one: bool = False

    @property
    def complete(self) -> bool:
        """Whether the step asked for was recorded to its end."""
        return self.steps >= self.step or self.is_one_step

    @property
    def is_one_step(self) -> bool:
        """Whether all that the script did counts as the step asked for: it went backward, and no optimizer updated."""
        ended = self.ending in ("ended", "exited") and self.status == 0
        if not (self.in_one and ended and self.steps == 0 and self.step == 1) or self.recording is None:
            return False
        return bool(self.recording.graph.backwards)

    @property
    def explanations(self) -> tuple[Finding, ...]:
        """Why the exception was raised that ended the script, if PyTorch raised it."""
        from chainrule.diagnostics.exceptions import EXPLAINED

        known = (self.failure, self.recording if self.ending == "crashed" else None)
        found = (each for recording in known if recording is not None for each in recording.findings())
        return tuple(each for each in found if each.id in EXPLAINED and each.severity == "error")

    @property
    def shortfall(self) -> str | None:
        """What to say and to do where the step asked for did not come, or did nothing; else None."""
        if self.complete and self.recording is not None and not self.recording.graph.calls:
            return f"Training step {self.step} of {self.script} ran no operation of PyTorch: there is nothing to show."
        if self.complete:
            return None
        ending = f"exited with status {self.status}" if self.ending == "exited" else self.ending
        if self.ending in ("crashed", "was interrupted"):
            where = f"before the end of training step {self.steps + 1}"
        else:
            where = {0: "without a training step", 1: "after 1 training step"}.get(
                self.steps, f"after {self.steps} training steps"
            )
        return f"{self.script} {ending} {where}; step {self.step} was asked for. {self._advice()}"

    def _advice(self) -> str:
        if self.ending in ("crashed", "was interrupted"):
            if self.steps + 1 == self.step:
                recorded = self.recording is not None and self.recording.graph.calls
                return "What it did up to there is recorded." if recorded else "Nothing was recorded before."
            return f"Use --step {self.steps + 1} to see what it did up to there."
        if self.steps == 0:
            return (
                "A training step ends with the step() of an optimizer from torch.optim: call one, or put "
                "`with chainrule.record() as recording:` around the code that trains."
            )
        return f"Use --step {self.steps} for the last one."


def run_script(
    script: str,
    arguments: Sequence[str] = (),
    *,
    step: int = 1,
    stop: bool = False,
    module: bool = False,
    session: Session | None = None,
    in_one: bool = False,
) -> ScriptRun:
    """Run `script` to its end, or with `stop` to the end of training step `step`, which is recorded.

    With `module` it is the name of a module, as for `python -m`. With `in_one` a script that goes backward and updates
    nothing is one step. Output, exit status and tracebacks are the script's own; its exceptions end here. Raises
    RecordingError if the file cannot be read, or the module not be found.
    """
    with _as_main(script, arguments, module) as (namespace, code):
        recorder = _StepRecorder(session or (lambda names: record(namespace=names)), namespace, step, stop)
        ending, status = _execute(code, namespace, recorder)
    if recorder.recording is not None:
        recorder.recording.title = f"Training step {step} of {script if module else os.path.basename(script)}"
    return ScriptRun(script, step, recorder.steps, ending, status, recorder.recording, recorder.failure, in_one)


def run_inside(
    script: str,
    arguments: Sequence[str],
    around: Callable[[Namespace], AbstractContextManager[Any]],
    module: bool = False,
) -> tuple[Ending, int]:
    """Run `script` to its end inside a context manager made with its globals; gives its ending and exit status.

    Raises RecordingError if the file cannot be read, or the module not be found.
    """
    with _as_main(script, arguments, module) as (namespace, code):
        return _execute(code, namespace, around(namespace))


def _execute(
    code: Callable[[], CodeType], namespace: Namespace, around: AbstractContextManager[Any]
) -> tuple[Ending, int]:
    """Run a script's code; its exceptions are printed as Python prints them, and end here.

    So does a child that the script forked, by SystemExit: what comes after the script is its parent's to do.
    """
    process = Process()
    try:
        with around:
            exec(code(), namespace)
        ended: tuple[Ending, int] = "ended", 0
    except _StepRecorded:
        ended = "was stopped", 0
    except SystemExit as error:
        ended = "exited", _exit_status(error.code)
    except BaseException as error:
        ended = ("was interrupted", INTERRUPTED) if isinstance(error, KeyboardInterrupt) else ("crashed", 1)
        _print_as_python(error)
    if process.is_left:
        sys.exit(ended[1])
    return ended


def _read(script: str) -> bytes:
    try:
        return Path(script).read_bytes()
    except OSError as error:
        raise RecordingError(f"cannot open {script}: {error.strerror}. {_advice_on(script)}") from error


def _advice_on(script: str) -> str:
    if script in LAUNCHERS:
        return f"Let the launcher start chainrule: `{LAUNCHERS[script]} -m chainrule watch train.py`."
    return "Give the path of a Python file, as to `python`."


def _find(module: str) -> ModuleSpec:
    """The module that `python -m` would run: of a package, its `__main__`."""
    hint = "Give its name as to `python -m`, in the folder that it is imported from."
    if module.endswith(".py"):
        name = module.removesuffix(".py").replace("/", ".")
        raise RecordingError(f"{module} is a file, and -m takes a module. Leave out -m, or give `-m {name}`.")
    try:
        spec = find_spec(module)
        if spec is not None and spec.submodule_search_locations is not None:
            spec = find_spec(f"{module}.__main__")
    except (ImportError, ValueError) as error:
        raise RecordingError(f"cannot find the module {module}: {error}. {hint}") from error
    if spec is None:
        raise RecordingError(f"cannot find the module {module}, or it is a package without `__main__`. {hint}")
    if not isinstance(spec.loader, InspectLoader) or not spec.has_location:
        raise RecordingError(f"the module {module} has no Python code. {hint}")
    return spec


@contextmanager
def _as_main(script: str, arguments: Sequence[str], module: bool) -> Iterator[tuple[Namespace, Callable[[], CodeType]]]:
    """Make the script `__main__`, with the argv and the import path that Python would give it."""
    before = sys.modules["__main__"], sys.argv, sys.path[:]
    try:
        if not sys.flags.safe_path:
            sys.path[0] = os.getcwd() if module else os.path.dirname(os.path.realpath(script))
        main, code = _module(script) if module else _file(script)
        sys.modules["__main__"], sys.argv = main, [main.__dict__["__file__"] if module else script, *arguments]
        yield main.__dict__, code
    finally:
        sys.modules["__main__"], sys.argv, sys.path[:] = before


def _file(script: str) -> tuple[ModuleType, Callable[[], CodeType]]:
    source, path = _read(script), os.path.abspath(script)
    main = _main(path, SourceFileLoader("__main__", path))
    return main, lambda: compile(source, path, "exec", dont_inherit=True)


def _module(name: str) -> tuple[ModuleType, Callable[[], CodeType]]:
    spec = _find(name)
    assert isinstance(spec.loader, InspectLoader)
    main = _main(str(spec.origin), spec.loader)
    main.__dict__.update(__package__=spec.parent, __spec__=spec, __cached__=spec.cached)
    return main, partial(cast("Callable[[str], CodeType]", spec.loader.get_code), spec.name)


def _main(path: str, loader: Any) -> ModuleType:
    module = ModuleType("__main__")
    module.__dict__.update(
        __file__=path, __cached__=None, __builtins__=builtins, __annotations__={}, __loader__=loader, __package__=None
    )
    return module


class _StepRecorded(BaseException):
    """Ends a script after the step that was asked for; an `except Exception` of the script does not catch it."""


class _StepRecorder:
    """Counts the steps of optimizers; its session is open from the end of step N-1 to the end of step N."""

    def __init__(self, session: Session, namespace: Namespace, step: int, stop: bool) -> None:
        self.steps = 0
        self.recording: Recording | None = None
        self._make_session = session
        self._globals = namespace
        self._names: Namespace = {}
        self._step = step
        self._stop = stop
        self._session: AbstractContextManager[Recording] | None = None
        self._stepping: Optimizer | None = None
        self._rounds = Rounds((), lambda _: None)
        self._older = weakref.WeakSet(living())  # optimizers, older than the script
        self._ran = weakref.WeakSet[torch.nn.Module]()  # modules, in a first step that is not recorded
        self._log = StepLog()
        self.failure: Recording | None = None
        self._process = Process()

    def __enter__(self) -> None:
        self._before = register_optimizer_step_pre_hook(self._before_step)
        self._after = register_optimizer_step_post_hook(self._after_step)
        if self._step == 1:
            self._open()
        else:
            before_forward.add(self, self._at_forward)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._before.remove()
        self._after.remove()
        before_forward.remove(self)
        if isinstance(error, SystemExit):  # an exit is no crash
            kind, error, trace = None, None, None
        if self._session is None and error is not None and not isinstance(error, _StepRecorded):
            self.failure = Recording.of_failure(error, self._log)
        self._close([entry.tb_frame for entry in entries(trace)], kind, error, trace)

    def others_than(self, optimizer: Optimizer) -> list[Optimizer]:
        """The optimizers of other parameters that were used in the first step, which was not recorded."""
        found = besides(optimizer, self._ran, lambda each: each.grad is not None)
        return [each for each in found if each not in self._older]

    def _at_forward(self, module: torch.nn.Module, args: Any) -> None:
        """Note the modules of the first step; open the session where the step before ended in a backward pass."""
        if self.steps == 0:
            self._ran.add(module)
        elif _current_graph_task_id() == -1:
            before_forward.remove(self)
            self._open()
            if isinstance(self._session, record):
                self._session.enter(module, args)

    def _open(self) -> None:
        session = self._make_session(self._names)
        if isinstance(session, record):
            session.know_steps(self._log)
        self.recording = session.__enter__()
        self._session = session  # only now is there something to close

    def _close(
        self,
        frames: Iterable[FrameType],
        kind: type[BaseException] | None = None,
        error: BaseException | None = None,
        trace: TracebackType | None = None,
    ) -> None:
        if self._session is None:
            return
        session, self._session = self._session, None
        self._names.update(self._globals)
        for frame in dropwhile(lambda frame: frame.f_globals is not self._globals, frames):
            if not is_library(frame.f_code):
                self._names.update(locals_of(frame))
        try:
            session.__exit__(kind, error, trace)
        finally:
            self._names.clear()

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        # An optimizer may wrap another: only the outermost ends a training step.
        if self._stepping is None:
            self._stepping = optimizer
        # PyTorch iterates over the hooks while it calls them, so only the last may add or remove any, as opening and
        # closing a session does. As the last we also close the session after its own hook has seen the update.
        self._after.remove()
        self._after = register_optimizer_step_post_hook(self._after_step)

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if optimizer is not self._stepping:
            return
        self._stepping = None
        if self._process.is_left:  # in a child that the script forked, whose steps are not its parent's
            self._close(())
            return
        session = self._session
        others = partial((session if isinstance(session, record) else self).others_than, optimizer)
        if not self._rounds.stepped(optimizer, others):
            return
        before_forward.remove(self)
        self.steps += 1
        self._log.end(self.steps, Site.of(sys._getframe()))
        if self.steps == self._step:
            self._close(reversed(list(callers(sys._getframe()))))
        elif self.steps == self._step - 1 and _current_graph_task_id() == -1:
            self._open()
        elif self.steps == self._step - 1:  # within a backward pass, where no recording can begin
            before_forward.add(self, self._at_forward)
        if self._stop and self.steps >= self._step:
            raise _StepRecorded


def _exit_status(code: object) -> int:
    """The exit status that Python gives `sys.exit(code)`: words are printed and mean 1."""
    if code is None:
        return 0
    if isinstance(code, int):
        return int(code)
    print(code, file=sys.stderr)
    return 1


def _print_as_python(error: BaseException) -> None:
    """Print a traceback as Python would without us: by the script's own hook, if it set one."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        each = waiting.pop()
        if each is not None and id(each) not in seen:
            seen.add(id(each))
            each.__traceback__ = _without_our_frames(each.__traceback__)
            waiting += [each.__cause__, each.__context__]
    sys.excepthook(type(error), error, error.__traceback__)


def _without_our_frames(trace: TracebackType | None) -> TracebackType | None:
    rebuilt: TracebackType | None = None
    for entry in reversed(without_our_frames(trace)):
        rebuilt = TracebackType(rebuilt, entry.tb_frame, entry.tb_lasti, entry.tb_lineno)
    return rebuilt
