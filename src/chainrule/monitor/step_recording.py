"""The recording of the training step that is under way, if it is being recorded."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.optim.optimizer import Optimizer

from chainrule.capture.guard import GAVE_WAY, recorded_here
from chainrule.capture.step_log import StepLog
from chainrule.errors import RecordingError
from chainrule.monitor.arguments import WatchedModels
from chainrule.recording import Recording, record


class StepRecording:
    """Begins, ends and drops recordings; knows what must be known of the optimizers' steps in the last one."""

    def __init__(self) -> None:
        self.session: record | None = None  # while it runs
        self.passes_before = 0  # backward passes before the last but one optimizer's step in it
        self.closure = False  # whether the last optimizer's step has one
        self._recording: Recording | None = None
        self._passes = 0  # backward passes before the last optimizer's step in it
        self._failures = 0  # recordings in a row that failed
        self._abandoned = False
        self.missed = ""  # why the last step has no recording, if that is no failure
        self.log = StepLog()

    def begin(self, models: WatchedModels, full: bool, keeps_leaves: bool, module: nn.Module | None, args: Any) -> None:
        """Begin to record; drops what was recorded so far. `module` is one whose forward pass begins."""
        self.leave()
        if recorded_here():  # by the user's own code, which goes first
            self.missed = GAVE_WAY
            return
        session = record(namespace=models.named(), keep=None if full else "statistics")
        session.guard.gives_way = True
        session.know(models.whole())
        session.know_steps(self.log)
        if keeps_leaves:
            session.keep_leaves()
        self.session = session
        self._recording = session.__enter__()
        self._passes = self.passes_before = 0
        if module is not None:
            session.enter(module, args)

    def stepping(self, closure: bool) -> None:
        """An optimizer's step begins."""
        self.closure = closure
        passes = 0 if self.session is None else self.session.passes
        if passes > self._passes:  # backward ran again since the previous optimizer's step
            self.passes_before, self._passes = self._passes, passes

    def within(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        """An optimizer's step began before the recording."""
        if self.session is not None:
            self.session.enter_step(optimizer, args, kwargs)

    def end(self, models: WatchedModels) -> Recording | None:
        """End the recording and give it; None if there is none, or if it failed, which it has said.

        Raises RecordingError for the second in a row that failed.
        """
        session, recording = self.session, self._recording
        if session is None:
            return None
        models.meet(session.models)
        self.missed = GAVE_WAY if session.failure == GAVE_WAY else ""
        abandoned = self._abandoned or self.missed
        self.leave()
        if abandoned:
            return None
        self._failures = self._failures + 1 if session.failure else 0
        if self._failures > 1:
            raise RecordingError(session.failure)
        return None if session.failure else recording

    def unfinished(self) -> Recording | None:
        """The recording that runs, to be read when it has ended."""
        return None if self.session is None or self.session.failure else self._recording

    def leave(self, error: BaseException | None = None) -> None:
        """End the recording, which `error` may have ended, and drop it."""
        session = self.session
        if session is not None:
            session.__exit__(type(error) if error else None, error, error.__traceback__ if error else None)
        self.session = self._recording = None
        self._abandoned = False

    def abandon(self) -> None:
        """Record no more of this step. The recording ends with the step: in the middle of it that may be impossible."""
        self._abandoned = True
        if self.session is not None:
            self.session.abandon()
