"""The boundaries of a step, from global hooks: its first forward pass, and the end of its last optimizer's step.

Between watched steps the cost is two calls for each optimizer's step. The recording begins with the first training
forward pass and not at the end of the previous step, so loading data and evaluating cost nothing and take no memory.
If code was compiled it begins right away: PyTorch would compile the hooks too, and a recording that begins inside
compiled code ends with it. What was recorded before the forward pass is then dropped, so a step is recorded the same
whether or not code was compiled. No error here reaches the training, see `watch._guard`.
"""

from __future__ import annotations

import math
import sys
import threading
import warnings
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any

import torch
from torch import nn
from torch.amp.grad_scaler import GradScaler
from torch.nn.modules import module as module_hooks
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from chainrule.capture.modes import left_on
from chainrule.graph.reexecution import apart

EXTRA_TIME = r"Using `torch\.compile\(module\)` when there are global hooks"  # as intended
MANY_PASSES = 256  # forward passes of the model without a step of torch.optim: its optimizer is another


class Boundaries:
    """Calls `begin(module, args)`, `stepping(optimizer, with_closure)` and `end()` at a training step's boundaries.

    `wanted()` says whether to record the next step. `begin` gets the module whose forward pass is about to run, or
    None; called again before `end`, it restarts the recording. `within` follows a `begin` inside an optimizer's step,
    whose closure runs the forward pass. `lost()` is called if no optimizer ever steps. `guard` calls each of them.
    """

    def __init__(
        self,
        models: Iterable[nn.Module],
        optimizers: Iterable[Optimizer],
        guard: Callable[..., Any],
        *,
        wanted: Callable[[], bool],
        begin: Callable[[nn.Module | None, Any], None],
        stepping: Callable[[Optimizer, bool], None],
        within: Callable[[Optimizer, Any, Any], None],
        end: Callable[[], None],
        lost: Callable[[], None],
    ) -> None:
        self.off = False  # the watch is over, although hooks may remain
        self.stepped_by_hook = False  # since this was last set to False
        self.optimizers: dict[int, Optimizer] = {id(each): each for each in optimizers}
        self._models = list(models)
        self._given = set(self.optimizers)
        self._rounds = Rounds(self._given)
        self._guard, self._wanted, self._begin, self._stepping, self._within, self._end, self._lost = (
            guard, wanted, begin, stepping, within, end, lost
        )  # fmt: skip
        self._thread = threading.get_ident()
        self._outermost: Optimizer | None = None
        self._forward: Any = None  # the hook on forward passes, while a step is awaited or recorded
        self._first: nn.Module | None = None
        self._passes = 0
        self._recording = False
        self._early = False  # the recording began before the step, whose forward pass is still awaited
        self._wrapped = False  # a module made by torch.compile has run
        self._any_mode = False  # this training runs models in eval mode
        self._before_hook, self._after_hook = _uncompiled(self._before_step), _uncompiled(self._after_step)
        self._before = register_optimizer_step_pre_hook(self._before_hook)
        self._after = register_optimizer_step_post_hook(self._after_hook)
        warnings.filterwarnings("ignore", EXTRA_TIME, UserWarning)
        self._filter = warnings.filters[0]

    def remove(self) -> None:
        """Remove every hook."""
        self.disarm()
        left_on.take_off()
        self._before.remove()
        self._after.remove()
        if self._filter in warnings.filters:
            warnings.filters.remove(self._filter)  # type: ignore[attr-defined]

    # -- the start of a step ------------------------------------------------------------------------------------------

    def arm(self) -> None:
        """Wait for the next step if it is to be recorded."""
        self.disarm()
        if self.off or not self._wanted():
            return
        if self._compiled():
            self._open(None, None)
            self._early = True
        self._before.remove()
        self._before = register_optimizer_step_pre_hook(self._before_hook)  # the last hook, which alone may add others
        self._members = {id(module) for model in self._models for module in model.modules()}
        self._forward = module_hooks.register_module_forward_pre_hook(self._at_forward)

    def disarm(self) -> None:
        """Stop waiting."""
        self._recording = self._early = False
        if self._forward is not None:
            self._forward.remove()
            self._forward = None

    def _at_forward(self, module: nn.Module, args: Any) -> None:
        # First, so that a compiler that traces this hook returns at once.
        if torch.compiler.is_compiling() or threading.get_ident() != self._thread:
            return
        if self.off or self._forward is None or not left_on.take_off():
            return
        if self._waits:
            compiled = getattr(module, "_orig_mod", None)  # of torch.compile, whose own call is not compiled
            self._wrapped = self._wrapped or compiled is not None
            mine = not self._members or id(module) in self._members or id(compiled) in self._members
            if mine and torch.is_grad_enabled() and (module.training or self._any_mode):
                self._first, self._passes = module, 0
                self._open(module, args)
        elif module is self._first:
            self._passes += 1
            if self._passes > MANY_PASSES:
                self.disarm()
                self._guard(self._lost)

    @property
    def _waits(self) -> bool:
        """Whether the step has yet to begin."""
        return not self._recording or self._early

    def _open(self, module: nn.Module | None, args: Any) -> None:
        self._recording, self._early = True, False
        self._guard(self._begin, module, args)

    def _compiled(self) -> bool:
        """Whether compiled functions and methods run, in which our forward hook is not called."""
        if any(model._compiled_call_impl is not None for model in self._models):
            return True
        if self._wrapped:
            return False
        dynamo = sys.modules.get("torch._dynamo.utils")
        return dynamo is not None and bool(dynamo.counters["frames"])

    # -- the end of a step --------------------------------------------------------------------------------------------

    def _concerns(self, optimizer: Optimizer) -> bool:
        mine = not self._given or id(optimizer) in self._given
        return mine and not self.off and threading.get_ident() == self._thread

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        # An optimizer may wrap another: the outermost counts. If it steps again, its previous step raised an error.
        if self._outermost not in (None, optimizer) or not self._concerns(optimizer):
            return
        self._outermost = optimizer
        closure = kwargs.get("closure") or (args[1] if len(args) > 1 else None)
        self._guard(self._stepping, optimizer, closure is not None)
        if closure is not None and self._forward is not None and self._waits:
            self._open(None, None)  # the forward pass runs inside the step
            self._guard(self._within, optimizer, args, kwargs)
        # PyTorch iterates over the hooks while it calls them, so only the last may add or remove hooks, as starting and
        # ending a recording does. The recorder's own hook also sees the update before the recording ends.
        if self._recording or self._compiled():
            self._after.remove()
            self._after = register_optimizer_step_post_hook(self._after_hook)

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if optimizer is not self._outermost:
            return
        self._outermost = None
        self.optimizers.setdefault(id(optimizer), optimizer)
        self.stepped_by_hook = True
        if self._rounds.stepped(id(optimizer)):
            self.finish()

    def finish(self) -> None:
        """End the training step, and wait for the next."""
        # No module in training mode has run, unless in code that was compiled meanwhile.
        if self._forward is not None and self._waits and (self._early or not self._compiled()):
            self._any_mode = True
        self._recording = self._early = False
        self._guard(self._end)
        self.arm()


def _uncompiled(hook: Callable[..., None]) -> Callable[..., None]:
    """A hook that is not compiled with an optimizer's compiled step, and neither is any function that it calls.

    The first call loads PyTorch's compiler, as the first step of every optimizer of torch.optim does.
    """
    called: Callable[..., None] = torch._disable_dynamo(lambda *given: hook(*given))  # type: ignore[attr-defined]
    return called


PATIENCE = 20  # steps of other optimizers after which an idle one is ignored


class Rounds:
    """Decides which optimizer's step ends a training step; `expected` are the keys of the known optimizers.

    With one optimizer every step does. With several (the two of a GAN, or one for matrices and one for the rest) a
    training step is a round in which each steps at least once, apart from those idle for `PATIENCE` steps of others.
    """

    def __init__(self, expected: Iterable[int] = ()) -> None:
        self._idle = dict.fromkeys(expected, 0)  # steps of others since the last own one
        self._stepped: set[int] = set()

    def stepped(self, optimizer: int) -> bool:
        """Count a step of an optimizer; returns whether it ends the training step."""
        if optimizer not in self._idle and self._idle:
            # A new optimizer belongs to the previous round; the next round begins after it.
            self._idle[optimizer] = 0
            self._stepped.clear()
            return False
        for other in self._idle:
            self._idle[other] += 1
        self._idle[optimizer] = 0
        self._stepped.add(optimizer)
        self._idle = {key: idle for key, idle in self._idle.items() if idle < PATIENCE}
        if self._stepped.issuperset(self._idle):
            self._stepped.clear()
            return True
        return False


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
        frame: FrameType | None = sys._getframe(1)
        for _ in range(DEEP):
            if frame is None or self.scaler is not None:
                return
            if frame.f_code is _around_a_step:
                self.scaler = frame.f_locals["self"]
                self.scale = self._read()
            frame = frame.f_back

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
