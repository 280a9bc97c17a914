"""When a step is recorded: from its first forward pass to the end of its last optimizer's step, seen by global hooks.

Between the watched steps there is nothing but two calls for each optimizer's step. The recording begins with the first
training forward pass rather than where the step before ended, so that what lies between (loading data, evaluating)
costs nothing and fills no memory. Only where code was compiled does it begin right away, for PyTorch would have to
compile the hooks too, and a recording that begins inside of compiled code would not outlast it; then what came before
the forward pass is let go of again, so that a step is told the same whatever was compiled in the process.
Nothing that happens here reaches the training: see `watch._harmless`.
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

EXTRA_TIME = r"Using `torch\.compile\(module\)` when there are global hooks"  # which we know, and want
MANY_PASSES = 256  # forward passes of the model without an optimizer's step: it is not one of torch.optim


class Boundaries:
    """Calls `begin(module, args)`, `stepping(optimizer, with_closure)` and `end()` at a training step's boundaries.

    `wanted()` tells whether the step that comes next is to be recorded. `begin` is called with the module whose forward
    pass is about to run, or with None; called again before `end`, it begins anew. `within` where it was called only
    inside an optimizer's step, whose closure runs the forward pass. `lost()` is called where no optimizer ever steps.
    `guard` runs each of them.
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
        self.off = False  # nothing is watched any more, though the hooks may still be there
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
        self._forward: Any = None  # the hook that waits for a forward pass
        self._first: nn.Module | None = None
        self._passes = 0
        self._recording = False
        self._early = False  # it was begun before the step's own beginning, which is still waited for
        self._wrapped = False  # a module that torch.compile made was met
        self._any_mode = False  # models in eval mode are trained here
        self._before_hook, self._after_hook = _uncompiled(self._before_step), _uncompiled(self._after_step)
        self._before = register_optimizer_step_pre_hook(self._before_hook)
        self._after = register_optimizer_step_post_hook(self._after_hook)
        warnings.filterwarnings("ignore", EXTRA_TIME, UserWarning)
        self._filter = warnings.filters[0]

    def remove(self) -> None:
        """Take every hook off."""
        self.disarm()
        left_on.take_off()
        self._before.remove()
        self._after.remove()
        if self._filter in warnings.filters:
            warnings.filters.remove(self._filter)  # type: ignore[attr-defined]

    # -- the beginning ------------------------------------------------------------------------------------------------

    def arm(self) -> None:
        """Wait for the step that comes next, if it is to be recorded."""
        self.disarm()
        if self.off or not self._wanted():
            if not left_on.take_off():  # the step ended in compiled code: the next forward pass may be outside of it
                self._forward = module_hooks.register_module_forward_pre_hook(self._at_forward)
            return
        if self._compiled():
            self._open(None, None)
            self._early = True
        self._before.remove()
        self._before = register_optimizer_step_pre_hook(self._before_hook)  # the last, which alone may add others
        self._members = {id(module) for model in self._models for module in model.modules()}
        self._forward = module_hooks.register_module_forward_pre_hook(self._at_forward)

    def disarm(self) -> None:
        """Wait no longer."""
        self._recording = self._early = False
        if self._forward is not None:
            self._forward.remove()
            self._forward = None

    def _at_forward(self, module: nn.Module, args: Any) -> None:
        # First of all, so that a compiler that traces its way in here goes back at once.
        if torch.compiler.is_compiling() or threading.get_ident() != self._thread:
            return
        if left_on.modes:
            self.arm()  # as it would have been done when the step before ended
        if self.off or left_on.modes or self._forward is None:
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
        """Whether the step has not begun yet."""
        return not self._recording or self._early

    def _open(self, module: nn.Module | None, args: Any) -> None:
        self._recording, self._early = True, False
        self._guard(self._begin, module, args)

    def _compiled(self) -> bool:
        """Whether compiled code runs where no forward hook of ours is called: in compiled functions and methods."""
        if any(model._compiled_call_impl is not None for model in self._models):
            return True
        if self._wrapped:
            return False
        dynamo = sys.modules.get("torch._dynamo.utils")
        return dynamo is not None and bool(dynamo.counters["frames"])

    # -- the end ------------------------------------------------------------------------------------------------------

    def _concerns(self, optimizer: Optimizer) -> bool:
        mine = not self._given or id(optimizer) in self._given
        return mine and not self.off and threading.get_ident() == self._thread

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        # An optimizer may wrap another: only the outermost counts. One that steps again has failed before it was done.
        if self._outermost not in (None, optimizer) or not self._concerns(optimizer):
            return
        self._outermost = optimizer
        closure = kwargs.get("closure") or (args[1] if len(args) > 1 else None)
        self._guard(self._stepping, optimizer, closure is not None)
        if closure is not None and self._forward is not None and self._waits:
            self._open(None, None)  # the forward pass will run inside the step
            self._guard(self._within, optimizer, args, kwargs)
        # PyTorch walks through the hooks while it calls them, and only the last may add or remove any, as opening and
        # closing a recording does. Being last also lets the recorder's own hook see the update before we close it.
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
        """The training step is over; the next one begins."""
        # It was waited for, and no module in training mode ran; unless it did so in code that was compiled meanwhile.
        if self._forward is not None and self._waits and (self._early or not self._compiled()):
            self._any_mode = True
        self._recording = self._early = False
        self._guard(self._end)
        self.arm()


def _uncompiled(hook: Callable[..., None]) -> Callable[..., None]:
    """A hook that runs as it is where an optimizer's step is compiled; else it, and all it calls, would be too.

    Loads PyTorch's compiler when it is first called, as each optimizer of torch.optim does in its first step.
    """
    called: Callable[..., None] = torch._disable_dynamo(lambda *given: hook(*given))  # type: ignore[attr-defined]
    return called


PATIENCE = 20  # steps of the others after which an optimizer is no longer waited for


class Rounds:
    """Says which optimizer's step ends a training step; `expected` are the keys of the optimizers known so far.

    With one optimizer, each of its steps does. With several (a GAN's two, or one for matrices and one for the rest), a
    training step is a round in which each has stepped at least once. An optimizer that has not stepped for `PATIENCE`
    steps of the others is no longer waited for.
    """

    def __init__(self, expected: Iterable[int] = ()) -> None:
        self._idle = dict.fromkeys(expected, 0)  # steps of others since its own last one
        self._stepped: set[int] = set()

    def stepped(self, optimizer: int) -> bool:
        """One optimizer has stepped; whether this ends the training step."""
        if optimizer not in self._idle and self._idle:
            # It belongs to the round that another seemed to end: the next round begins behind it.
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
DEEP = 12  # frames between a scaler's step and the optimizer's hooks, with room for wrappers of schedulers


class ScalerView:
    """The GradScaler of a training loop, given or found when it first steps an optimizer.

    It calls no hook, and a step that it skips reaches no optimizer: the fall of its scale shows it.
    """

    def __init__(self, scaler: Any = None) -> None:
        self.scaler = scaler if scaler is not None and scaler.is_enabled() else None
        self.scale = self._read()

    def look(self) -> None:
        """From within an optimizer's step: find the scaler that called it."""
        frame: FrameType | None = sys._getframe(1)
        for _ in range(DEEP):
            if frame is None or self.scaler is not None:
                return
            if frame.f_code is _around_a_step:
                self.scaler = frame.f_locals["self"]
                self.scale = self._read()
            frame = frame.f_back

    def skipped(self) -> int:
        """How many steps the scaler left out since this was asked last: each made its scale fall once."""
        if self.scaler is None:
            return 0
        before, self.scale = self.scale, self._read()
        if before is None or self.scale is None or not 0 < self.scale < before:
            return 0
        return max(1, round(math.log(self.scale / before) / math.log(self.scaler.get_backoff_factor())))

    def _read(self) -> float | None:
        return None if self.scaler is None else float(self.scaler.get_scale())
