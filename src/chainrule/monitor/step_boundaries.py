"""The boundaries of a step, from global hooks: its first forward pass, and the end of its last optimizer's step.

Between watched steps the cost is two calls for each optimizer's step. The recording begins with the first training
forward pass and not at the end of the previous step, so loading data and evaluating cost nothing and take no memory.
It begins right away if no forward pass can be seen: no module runs at all, or code was compiled, as PyTorch would
compile the hooks too, and a recording that begins inside compiled code ends with it. What was recorded before the
forward pass is then dropped, so a step is recorded the same whether or not code was compiled.

Hooks see the whole process: what runs in another thread than the watch is passed over. No recording begins or ends
inside of a backward pass: if optimizers step in there, the training step ends when the next forward pass begins. No
error here reaches the training, see `watch._guard`.
"""

from __future__ import annotations

import math
import sys
import threading
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from itertools import islice
from types import CodeType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim.optimizer import Optimizer

from chainrule.capture.function_hooks import in_forward_of_function
from chainrule.capture.global_hooks import after_step, before_forward, before_step
from chainrule.capture.modes import left_on
from chainrule.capture.module_tree import inside_compiled, modules_of
from chainrule.capture.optimizer_step import closure_of
from chainrule.capture.rounds import PATIENCE, Rounds
from chainrule.capture.source import callers
from chainrule.graph.reexecution import apart
from chainrule.monitor.evaluations import Evaluations
from chainrule.monitor.passes_without_step import RUNNING, PassesWithoutStep
from chainrule.monitor.updates_by_hand import UpdatesByHand
from chainrule.pytorch_internals import (
    _current_graph_task_id,
    _disable_dynamo,
    _is_tracing,
    compiled_frames,
    get_eval_frame_callback,
)

if TYPE_CHECKING:
    from chainrule.recording import record

EXTRA_TIME = r"Using `torch\.compile\(module\)` when there are global hooks"  # as intended
MANY_PASSES, MANY_OPERATIONS = 256, 200_000  # of one step, after which its recording takes too much memory

_step_code: CodeType = Optimizer.profile_hook_step(lambda self: None).__code__


@dataclass(frozen=True, slots=True, kw_only=True)
class Calls:
    """What `Boundaries` calls."""

    guard: Callable[..., Any]  # calls each of the others, and everything in a hook
    wanted: Callable[[], bool]  # whether to record the next step
    begin: Callable[[nn.Module | None, Any], None]  # with the module whose forward pass begins; again: restart
    within: Callable[[Optimizer, Any, Any], None]  # the recording began inside a step, whose closure runs the pass
    stepping: Callable[[bool], None]  # an optimizer's step begins, with a closure or without
    end: Callable[[str], None]  # a training step ended; why it was not recorded although it was wanted
    give_up: Callable[[], None]  # the recording of this step has become too large
    passed: Callable[[Tensor], None]  # a backward pass reached this parameter, in a step that is not recorded
    unstepped: Callable[[int, int], None]  # backward passes run and no optimizer steps: how many, how many as a rule
    say: Callable[[str], None]  # warn once
    recorder: Callable[[], record | None]  # of the step that is being recorded


class Boundaries:
    """Calls `begin`, `stepping` and `end` at the boundaries of training steps. `models` may be added to or emptied."""

    def __init__(
        self,
        models: list[nn.Module],
        whole: Callable[[], Iterable[nn.Module]],
        optimizers: Iterable[Optimizer],
        calls: Calls,
    ) -> None:
        self.off = False  # the watch is over, although hooks may remain
        self.stepped_by_hook = False  # since this was last set to False
        self.rounds = Rounds(optimizers, self._note_uneven)
        self.elsewhere = 0  # steps of optimizers in other threads
        self.evaluations = Evaluations(lambda: self.rounds.current, calls.guard)  # before the step
        self._foreign = 0  # steps of optimizers that are not watched since one that is
        self._models, self._calls = models, calls
        self._by_hand = UpdatesByHand(whole)
        self._without_step = PassesWithoutStep(calls.guard, self._too_many, calls.passed)
        self._thread = threading.get_ident()
        self._outermost: Optimizer | None = None
        self._first: nn.Module | None = None
        self._passes = 0  # forward passes of the first module in this step
        self._looks = False  # whether forward passes are watched
        self._armed = False  # the next step is to be recorded, and has not been given up
        self._recording = False
        self._early = False  # the recording began before the step, whose forward pass is still awaited
        self._perhaps = False  # the recording began with a forward pass in eval mode, which may be an evaluation
        self._ended = False  # the step has ended inside of a backward pass
        self._missed = ""  # why the step was not recorded so far
        self._wrapped = False  # a module made by torch.compile has run
        self._without_modules = False  # this training runs no module
        self._eval: bool | None = None  # whether this training runs models in eval mode, once known
        self._before, self._after = (_uncompiled(calls.guard, each) for each in (self._before_step, self._after_step))
        self._filter: Any = None

    def start(self) -> None:
        """Register the hooks and wait for the first step."""
        before_step.add(self, self._before)
        after_step.add(self, self._after)
        warnings.filterwarnings("ignore", EXTRA_TIME, UserWarning)
        self._filter = warnings.filters[0]
        self.arm()

    def remove(self) -> None:
        """Remove every hook."""
        self.off = True
        before_step.remove(self)
        after_step.remove(self)
        if self._filter in warnings.filters:
            warnings.filters.remove(self._filter)  # type: ignore[attr-defined]
        self.disarm()
        self._without_step.forget()
        self.evaluations.clear()
        left_on.take_off()

    # -- the start of a step ------------------------------------------------------------------------------------------

    def arm(self) -> None:
        """Wait for the next step if it is to be recorded."""
        self.disarm()
        if self.off:
            return
        self._armed = self._calls.wanted()
        if not self._compiled():
            self._without_step.count(self._first)
        # If the step ended in compiled code, modes are left on; the next forward pass may run outside it.
        if not self._armed and left_on.take_off() and not self._by_hand.known and not self.evaluations.curious:
            return
        self._members = {id(module) for model in self._models for module in modules_of(model)}
        self._missed = "no forward pass ran in it in the thread of the watch"
        if self._armed and not in_backward() and (self._without_modules or self._compiled()):
            self._open(None, None)
            self._early = True
        self._looks = True
        before_forward.add(self, self._at_forward)

    def disarm(self) -> None:
        """Stop waiting."""
        self._armed = self._recording = self._early = self._perhaps = self._ended = False
        if self._looks:
            before_forward.remove(self)
            self._looks = False

    def _at_forward(self, module: nn.Module, args: Any) -> None:
        # First, so that a compiler that traces this hook returns at once.
        if torch.compiler.is_compiling() or threading.get_ident() != self._thread:
            return
        self._calls.guard(self._forward_begins, module, args)

    def _forward_begins(self, module: nn.Module, args: Any) -> None:
        if in_backward():  # a checkpoint computes again
            return
        if self._ended or (module is self._first and self._updated_by_hand()):
            self.finish()
        if left_on.modes and left_on.take_off():
            self.arm()  # which was impossible at the end of the previous step
        if left_on.modes or not self._armed:
            if self.evaluations.curious and not torch.is_grad_enabled():
                self.evaluations.see(module, args)
            return
        if _is_tracing():  # what we compute would be traced as the user's
            return
        if self._waits:
            self._perhaps_begin(module, args)
        elif module is self._first:
            self._passes += 1
            if self._passes % RUNNING == 0:
                self._too_many()
            recorder = self._calls.recorder()
            if self._passes > MANY_PASSES and recorder is not None and recorder.operations > MANY_OPERATIONS:
                self.disarm()
                self._calls.give_up()

    @property
    def _waits(self) -> bool:
        """Whether the step has yet to begin, as far as is known."""
        if not self._recording or self._early:
            return True
        recorder = self._calls.recorder()
        return self._perhaps and recorder is not None and not recorder.passes and not recorder.in_module

    def _perhaps_begin(self, module: nn.Module, args: Any) -> None:
        """Begin to record if the step begins with this forward pass."""
        compiled = inside_compiled(module)  # whose wrapper's own call is not compiled
        self._wrapped = self._wrapped or compiled is not None
        if self._members and id(module) not in self._members and id(compiled) not in self._members:
            self._missed = "none of the given models ran in it"
            return
        trains = module.training or any(part.training for part in modules_of(module))
        # Reentrant checkpointing of a whole model is an `autograd.Function`.
        if not torch.is_grad_enabled() and not (trains and in_forward_of_function()):
            self.evaluations.see(module, args)
            self._missed = "its forward pass ran without gradients"
            return
        if not trains and self._eval is False:
            self._missed = "its models ran in eval mode, as they did not before"
            return
        self._first, self._passes, self._without_modules = module, 0, False
        self._open(module, args)
        self._perhaps = not trains and self._eval is None

    def _open(self, module: nn.Module | None, args: Any) -> None:
        self._recording, self._early, self._perhaps = True, False, False
        self._without_step.record()
        self._calls.begin(module, args)
        after_step.remove(self)
        after_step.add(self, self._after)  # after the recorder's, which sees the update before the recording ends
        if not self.rounds.current or self._by_hand.known:
            self._by_hand.begin(module)

    def _compiled(self) -> bool:
        """Whether compiled functions and methods run, in which our forward hook is not called."""
        if any(model._compiled_call_impl is not None for model in self._models):
            return True
        if self._wrapped:
            return False
        return compiled_frames() > 0

    # -- the end of a step --------------------------------------------------------------------------------------------

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if threading.get_ident() != self._thread:
            self._note_elsewhere(optimizer)
            return
        # An optimizer may wrap another: the outermost counts.
        if self._outermost not in (None, optimizer) and _is_stepping(self._outermost):
            return
        if not self.rounds.concern(optimizer):
            self._note_foreign(optimizer)
            return
        self._foreign = 0
        self._outermost = optimizer
        closure = closure_of(args, kwargs)
        self._calls.stepping(closure is not None)
        if closure is not None and self._armed and self._waits and not in_backward():
            self._open(None, None)  # the forward pass runs inside the step
            self._calls.within(optimizer, args, kwargs)

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if optimizer is not self._outermost or threading.get_ident() != self._thread:
            return
        self._outermost = None
        self._without_step.stepped(optimizer, self._recorded_passes())
        if not self._by_hand.known:
            self._by_hand.forget()
        self.stepped_by_hook = True
        recorder = self._calls.recorder()
        others = tuple if recorder is None else partial(recorder.others_than, optimizer)
        self._ended = self.rounds.stepped(optimizer, others) or self._ended
        if self._ended and (not in_backward() or not self._recording):
            self.finish(counted=True)

    @property
    def missed(self) -> str:
        """Why this step, which was to be recorded, is not being recorded so far; "" if it is."""
        return self._missed if self._armed and not self._recording else ""

    def finish(self, counted: bool = False) -> None:
        """End the training step, and wait for the next. `counted`: with the step of an optimizer, which was counted."""
        missed = self.missed
        if missed and self._compiled():
            missed = "it ran in code that was compiled meanwhile"
        if self._recording and not self._early:
            self._eval = self._perhaps or bool(self._eval)
        elif self._armed:
            self._adapt()
        self._armed = self._recording = False
        if not counted:
            self._without_step.stepped(None, self._recorded_passes())
        self._calls.end(missed)
        self.evaluations.clear()
        self.rounds.pass_over()
        self.arm()

    def _adapt(self) -> None:
        """No forward pass was recorded: look for those of the next step elsewhere."""
        if self._missed.startswith("none of the given"):
            self._models.clear()
        elif self._missed.startswith("its models ran in eval"):
            self._eval = True
        elif self._missed.startswith("no forward"):
            self._without_modules = True

    def settle(self) -> None:
        """At the end of the watch: end a step that has ended already, but where no recording can; say what is known."""
        if self._ended or self._updated_by_hand():
            self._armed = self._armed and self._recording
            self.finish()
        self._too_many(ended=True)
        if self.elsewhere and not self.rounds.current:
            self._calls.say(
                "no training step was watched: optimizers stepped in other threads than the one in which "
                "`chainrule.watch` was called. Call it there."
            )

    def _updated_by_hand(self) -> bool:
        if self.rounds.current or (not self._recording and not self._by_hand.known) or self._early:
            return False
        return self._by_hand.look()

    # -- a step that does not end -------------------------------------------------------------------------------------

    def _recorded_passes(self) -> int:
        recorder = self._calls.recorder()
        return 0 if recorder is None else recorder.passes

    def _too_many(self, ended: bool = False) -> None:
        """Report the backward passes since the last step, if there are too many of them."""
        if threading.get_ident() == self._thread:
            found = self._without_step.found(self._recorded_passes(), ended)
            if found is not None:
                self._calls.unstepped(*found)

    # -- what cannot be watched ---------------------------------------------------------------------------------------

    def _note_elsewhere(self, optimizer: Optimizer) -> None:
        self.elsewhere += 1
        self._without_step.stepped(None, 0)
        if self.rounds.is_given(optimizer):
            self._calls.say(
                "the optimizer steps in another thread than the one in which `chainrule.watch` was called. Call it "
                "there to watch these steps."
            )

    def _note_uneven(self, optimizer: Optimizer) -> None:
        self._calls.say(
            f"{type(optimizer).__name__} has not stepped in the last {PATIENCE} steps of each other optimizer, which "
            "are counted as one training step. From now on no training step waits for it."
        )

    def _note_foreign(self, optimizer: Optimizer) -> None:
        self._foreign += 1
        self._without_step.stepped(None, 0)
        if self._foreign == PATIENCE:
            self._calls.say(
                f"the last {PATIENCE} steps were made by another optimizer than the given one, "
                f"{type(optimizer).__name__}, and are not watched: pass all of them to `chainrule.watch`."
            )


def in_backward() -> bool:
    """Whether a backward pass is running in this thread."""
    return _current_graph_task_id() != -1


def _is_stepping(optimizer: Optimizer | None) -> bool:
    """Whether an optimizer's step is on the stack; an exception may have ended it without our hook."""
    frames = (each for each in callers(sys._getframe(1)) if each.f_code is _step_code)
    return any(each.f_locals.get("self") is optimizer for each in frames)


def _uncompiled(guard: Callable[..., Any], hook: Callable[..., None]) -> Callable[..., None]:
    """A guarded hook that is not compiled with an optimizer's compiled step, nor is any function that it calls."""
    # The first call loads PyTorch's compiler, as the first step of every optimizer of torch.optim does.
    disabled: Callable[..., None] = _disable_dynamo(lambda *given: guard(hook, *given))

    def called(*given: Any) -> None:
        if is_compiling() or get_eval_frame_callback() is not None:  # what compiles the functions that are called now
            disabled(*given)
        else:  # which costs less
            guard(hook, *given)

    is_compiling = torch.compiler.is_compiling
    return called


_around_a_step = GradScaler._maybe_opt_step.__code__
DEEP = 12  # frames between a scaler's step and the optimizer's hooks at most, wrappers of schedulers included


class ScalerView:
    """The GradScaler of a training loop, given or found when it first steps an optimizer.

    A scaler calls no hook, and a skipped step reaches no optimizer: only a drop of the scale shows it.
    """

    def __init__(self, scaler: Any = None) -> None:
        self.scaler = scaler if scaler is not None and scaler.is_enabled() else None
        self.scale = self._read()

    def look(self) -> None:
        """Find the scaler that called the optimizer's step in which this runs."""
        for frame in islice(callers(sys._getframe(1)), DEEP):
            if self.scaler is None and frame.f_code is _around_a_step:
                self.scaler = frame.f_locals["self"]
                self.scale = self._read()

    def skipped(self) -> int:
        """How many steps the scaler skipped since the last call: each lowered the scale once."""
        if self.scaler is None:
            return 0
        before, self.scale = self.scale, self._read()
        if before is None or self.scale is None or not 0 < self.scale < before:
            return 0
        return max(1, round(math.log(self.scale / before) / math.log(self.scaler.get_backoff_factor())))

    @apart()
    def _read(self) -> float | None:
        return None if self.scaler is None else float(self.scaler.get_scale())
