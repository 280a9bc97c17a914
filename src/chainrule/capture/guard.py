"""Keeps the errors of a recording out of the training that it records, and other threads and processes out of both.

PyTorch calls us in the middle of the user's step, in whichever thread it runs. All that we do there runs guarded: an
error of ours ends the recording's work, not the training, and from then on everything passes as if nobody looked.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any

from torch.compiler import is_dynamo_compiling

from chainrule.errors import RecordingError, brief, warn
from chainrule.graph.reexecution import close_interrupted
from chainrule.pytorch_internals import _current_graph_task_id, stash, stashed, unstash

GAVE_WAY = "a `chainrule.record()` of your own ran in it"
_KEY = "chainrule"  # of what autograd's own threads carry for us during a pass
_package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


class _Here(threading.local):
    guard: Guard | None = None


this_thread = _Here()


def here() -> Guard | None:
    """The guard of the recording that this thread belongs to.

    Autograd runs nodes of a device in threads of its own. They carry what the thread that began the pass had
    (`Guard.enter_pass`), and only while they work on that pass.
    """
    guard = this_thread.guard
    if guard is None and _current_graph_task_id() != -1:
        guard = stashed(_KEY)
    return guard


class Guard:
    """Of one recording: whether it is on in this thread, and what it failed of. `with guard:` is around work of ours.

    It has no `__init__`, so that making one cannot fail.
    """

    failure = ""  # what ended its work, as a sentence
    on = False
    gives_way = False  # to a recording that the user's code begins

    # -- where -------------------------------------------------------------------------------------------------------

    def enter_thread(self) -> None:
        """This thread is recorded from now on."""
        self.on = True
        this_thread.guard = self

    def leave_thread(self) -> None:
        """It is recorded no longer."""
        self.on = False
        if this_thread.guard is self:
            this_thread.guard = None
            self.leave_pass(True)

    def enter_pass(self) -> bool:
        """A backward pass of ours begins: the threads in which it runs belong to us. False inside of another one."""
        if stashed(_KEY) is not None:
            return False
        stash(_KEY, self)
        return True

    def leave_pass(self, entered: bool) -> None:
        """The pass is over."""
        if entered and stashed(_KEY) is not None:
            unstash(_KEY)

    # -- errors ------------------------------------------------------------------------------------------------------

    def failed(self, error: BaseException) -> None:
        """End the recording's work, because of an error of ours that is being handled. Raises an interrupt again."""
        self._note(error)
        if not isinstance(error, Exception):
            try:
                raise error
            finally:
                del error  # its traceback holds this frame: a cycle, which would keep the session from being freed

    def _note(self, error: BaseException) -> None:
        close_interrupted()
        if not self.failure:
            place = _place(error.__traceback__)
            if isinstance(error, Exception):
                self.failure = f"this step could not be recorded: {brief(error)} ({place})."
                warn(f"{self.failure} The training goes on unobserved.")
            else:
                self.failure = f"the recording was interrupted: {type(error).__name__} ({place})."

    def check(self) -> None:
        """Raise RecordingError if the recording has failed."""
        if self.failure:
            raise RecordingError(f"{self.failure} The training went on without it; there is nothing to read.")

    def __enter__(self) -> None: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if error is None:
            return False
        self._note(error)
        return isinstance(error, Exception)

    def hook(self, part: Callable[..., None]) -> Callable[..., None]:
        """A function of ours as PyTorch may call it: guarded, and only for the recorded thread."""

        def hook(*given: Any) -> None:
            if is_dynamo_compiling():  # the compiler reads this function, and finds that the call passes
                return
            try:
                if (this_thread.guard is self or here() is self) and not self.failure:
                    part(*given)
            except BaseException as error:
                self.failed(error)

        return hook


def recorded_here() -> bool:
    """Whether this thread is being recorded."""
    guard = here()
    return guard is not None and guard.on


def _place(trace: TracebackType | None) -> str:
    """The innermost place of ours that an error came through."""
    place = ""
    while trace is not None:
        name = trace.tb_frame.f_code.co_filename
        if name.startswith(_package):
            place = f"{os.path.relpath(name, _package)}, line {trace.tb_lineno}"
        trace = trace.tb_next
    return place
