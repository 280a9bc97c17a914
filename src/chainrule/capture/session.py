"""One recording from its begin to its end, whatever fails on the way, and wherever an interrupt comes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch

from chainrule.capture.carried import carried, lines_of_nodes
from chainrule.capture.failed_forward import note_end
from chainrule.capture.guard import Guard
from chainrule.capture.lowering.naming import note_names
from chainrule.capture.policy import Policy
from chainrule.capture.recorder import Recorder
from chainrule.capture.rounds import besides
from chainrule.capture.step_log import StepLog
from chainrule.capture.tape import Tape
from chainrule.errors import ChainruleError
from chainrule.gc_control import FewerCollections
from chainrule.graph.reexecution import apart, unobserved


class Session:
    """Turns a recorder on with `begin`, off with `end`, and everything off again with `take_off`, at any time.

    An error of ours makes a recording that cannot be read, and no more. An interrupt reaches the user. It may come at
    any line, so what turns something off may be called again, and is: by whoever was interrupted, by the `finally` of
    who called that, and if it came before the first line of `__exit__`, when Python frees the session.
    """

    _recorder: Recorder | None = None  # while none has begun, or none could
    _is_off = False

    def __init__(self, keep: str | Sequence[str] | None, memory: int | None) -> None:
        self.guard = Guard()
        self._policy: Policy | None = None
        self._models: list[torch.nn.Module] = []
        self._keeps_leaves = False
        self._log: StepLog | None = None
        self._collections = FewerCollections()
        try:
            self._policy = Policy.of(keep, memory)
        except ChainruleError:
            raise
        except BaseException as error:
            self.guard.failed(error)

    @property
    def tape(self) -> Tape | None:
        """What is recorded; None where nothing can be."""
        return None if self._recorder is None else self._recorder.tape

    def begin(self) -> None:
        """Begin to record. Raises RecordingError where that cannot be."""
        if self.guard.failure:
            return
        try:
            self._recorder = Recorder(self._policy, self.guard)
            self._recorder.tape.models = self._models
            if self._log is not None:
                self._recorder.tape.failures.log = self._log
            if self._recorder.tape.retention is not None:
                self._recorder.tape.retention.keeps_leaves = self._keeps_leaves
            self._collections.begin()
            self._recorder.start()
        except BaseException as error:
            self.take_off()
            if isinstance(error, ChainruleError):
                raise
            self.guard.failed(error)

    def end(self, error: BaseException | None, names: Callable[[], Mapping[str, Any]]) -> None:
        """End the recording, and complete it with the user's names of tensors."""
        recorder = self._recorder
        if recorder is None:
            return
        with self.guard:
            recorder.take_off()
            if self.guard.failure:
                return
            with apart():
                if error is not None:
                    recorder.tape.error = f"{type(error).__name__}: {error}"
                    note_end(recorder.tape, error)
                recorder.finish()
                if self._log is not None:
                    with unobserved():
                        recorder.tape.failures.carried = carried(recorder.tape, self._log)
                        self._log.made = lines_of_nodes(recorder.tape)
                note_names(recorder.tape, names())
                with unobserved():
                    recorder.tape.end()

    def take_off(self) -> None:
        """Take everything off."""
        with self.guard:
            self._collections.end()
            if self._recorder is not None:
                self._recorder.take_off()
            self._is_off = True

    def __del__(self) -> None:
        if self._recorder is not None and not self._is_off:
            self.take_off()

    # -- for who begins in the middle of something --------------------------------------------------------------------

    def know(self, models: Iterable[torch.nn.Module]) -> None:
        """Name whole models: paths begin at them, even if only parts of them are called."""
        self._models.extend(models)

    def know_steps(self, log: StepLog) -> None:
        """The steps before this one, whose graphs it may meet; the log gets the lines of this one when it ends."""
        self._log = log

    def keep_leaves(self) -> None:
        """Keep what an optimizer overwrites, however large it is, so that the step can be recomputed."""
        self._keeps_leaves = True

    def enter(self, module: torch.nn.Module, args: Any) -> None:
        """Record a module whose forward pass began before the recording."""
        if self._recorder is not None:
            with self.guard:
                self._recorder.enter_module(module, args)

    def enter_step(self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Record an optimizer's step that began before the recording."""
        if self._recorder is not None:
            with self.guard:
                self._recorder.enter_step(optimizer, args, kwargs)

    @property
    def passes(self) -> int:
        """How many backward passes into `.grad` have run so far."""
        return 0 if self.tape is None else sum(backward.accumulates for backward in self.tape.backwards)

    def others_than(self, optimizer: torch.optim.Optimizer) -> list[torch.optim.Optimizer]:
        """The optimizers of other parameters that were used in this step."""
        if self.tape is None:
            return []
        reached = {leaf for each in self.tape.backwards for leaf, found in each.after.items() if found is not None}
        return besides(optimizer, [raw.module for raw in self.tape.modules], lambda each: id(each) in reached)

    @property
    def operations(self) -> int:
        """How many operations have been recorded so far."""
        return 0 if self.tape is None else len(self.tape.operations)

    @property
    def in_module(self) -> bool:
        """Whether the forward pass of a module is being recorded now."""
        return self._recorder is not None and self._recorder.in_module

    def abandon(self) -> None:
        """Record no more: everything passes from now on, and nothing can be read."""
        self.guard.failure = self.guard.failure or "the recording was abandoned."

    @property
    def failure(self) -> str:
        """Why the recording has ended early, if it has; it cannot be read then."""
        return self.guard.failure

    @property
    def models(self) -> list[torch.nn.Module]:
        """The modules that ran outside of any other, so far."""
        runs = () if self.tape is None else self.tape.modules
        return list({id(run.module): run.module for run in runs if run.parent is None}.values())
