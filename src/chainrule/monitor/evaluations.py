"""Sees what a model that trains does without gradients between two steps, and what that does to its batch norms.

It counts the forward passes in train mode. Of those in eval mode, it looks whether they draw random numbers, if a
dropout of the step is always on. A batch norm's statistics of the step's batch are compared with its running ones.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer

from chainrule.capture.global_hooks import after_forward
from chainrule.capture.lowering.naming import drops
from chainrule.capture.module_tree import is_compiled, modules_of, parameters_of
from chainrule.graph.reexecution import hidden, unobserved
from chainrule.graph.snapshot import has_numbers
from chainrule.pytorch_internals import _BatchNorm


class Evaluations:
    """The passes since the last `clear`: `see` each module that runs, where a step is waited for.

    Where steps were not waited for, a batch norm's own count of its batches shows what ran beside them: `began` and
    `ended` are called around each watched step. A step counts as much as the largest watched one.
    """

    LOOKS = 8  # passes in eval mode that are examined

    def __init__(self, optimizers: Callable[[], Iterable[Optimizer]], guard: Callable[..., Any]) -> None:
        self._optimizers, self._guard = optimizers, guard
        self.always_drops = ""  # the place of a dropout in the last step that nothing turns off
        self.dropped = ""  # the same, once a pass in eval mode has drawn random numbers
        self.distance: tuple[float, float] | None = None  # see `StepFacts.distance`
        self._looks = 0
        self._running: tuple[Tensor, Tensor] | None = None  # statistics of the norm before the step that is watched
        self._norm: weakref.ref[_BatchNorm] | None = None
        self._before = 0  # batches of the norm before the step that is watched
        self._after: int | None = None  # and after the one before it
        self._most, self._done = 0, 0  # batches of one step; steps until then
        self.clear()

    def clear(self) -> None:
        """A step has ended."""
        self.passes = 0
        after_forward.remove(self)
        self._within: set[int] = set()  # models and the modules inside them
        self._counted: set[int] = set()  # models
        self._seen: tuple[weakref.ref[Tensor], tuple[Any, ...]] | None = None  # the input of the last pass

    @property
    def curious(self) -> bool:
        """Whether to see the passes between all steps, watched or not."""
        return bool(self.always_drops) and self._looks < self.LOOKS

    def see(self, module: nn.Module, args: Any) -> None:
        """The forward pass of a module begins without gradients. The first one checks the modes of a model.

        Several passes with one input count as one: they draw from a network with dropout, and evaluate nothing.
        """
        if id(module) not in self._within:
            self._within |= {id(each) for each in modules_of(module)}
            if self._trains(module):
                self._counted.add(id(module))
            elif self.curious and self._is_off(module):
                self._looks += 1
                with hidden():
                    before = _random_state(module)
                after_forward.add(self, partial(self._guard, self._end_look, id(module), before))
        self.passes += id(module) in self._counted and not self._is_again(module, args)

    def _is_again(self, module: nn.Module, args: Any) -> bool:
        """Whether the last pass had the same input: the tensor, or the same slice of it, unchanged."""
        given = args[0] if isinstance(args, tuple) and args else None
        if type(given) is not Tensor or given.is_inference():
            return False
        before, owner = self._seen, given if given._base is None else given._base
        part = id(module), owner._version, given.storage_offset(), tuple(given.shape)
        self._seen = weakref.ref(owner), part
        return before is not None and before[0]() is owner and before[1] == part

    def _end_look(self, looked: int, before: Tensor | None, module: nn.Module, args: Any, out: Any) -> None:
        if id(module) == looked:
            after_forward.remove(self)
            with hidden():
                after = _random_state(module)
                if before is not None and after is not None and not torch.equal(before, after):
                    self.dropped, self._looks = self.always_drops, self.LOOKS

    def _is_off(self, model: nn.Module) -> bool:
        """Whether a model that an optimizer trains is in eval mode, with all its parts, and none was compiled."""
        parts = list(modules_of(model))
        compiled = any(map(is_compiled, parts))
        return not compiled and not any(each.training for each in parts) and self._is_held(model)

    def began(self, models: Iterable[nn.Module], done: int) -> None:
        """A watched step begins, after so many others."""
        before, steps = self._batches(models), done - self._done
        if before is None:
            self._after = None
        elif self._after is not None and steps:
            self.passes = max(self.passes, before - self._after - steps * self._most)
        self._before = before or 0
        self._running = None if before is None else self._statistics()

    def ended(self, models: Iterable[nn.Module], done: int) -> None:
        """The watched step has ended."""
        self._after, self._done = self._batches(models), done
        self.distance = None
        if self._after is not None:
            self._most = max(self._most, self._after - self._before)
            self.distance = self._distance(self._after - self._before)

    def _statistics(self) -> tuple[Tensor, Tensor] | None:
        """The running mean and variance of the norm, in float64."""
        norm = self._norm() if self._norm is not None else None
        if norm is None or norm.momentum is None:
            return None
        with unobserved():
            if not has_numbers(norm.running_mean) or norm.running_var is None:
                return None
            return norm.running_mean.double(), norm.running_var.double()

    def _distance(self, batches: int) -> tuple[float, float] | None:
        """Of so many batches, by running = kept * before + (1 - kept) * theirs, with kept = (1 - momentum)^batches."""
        before, after = self._running, self._statistics()
        norm = self._norm() if self._norm is not None else None
        if before is None or after is None or norm is None or norm.momentum is None or batches < 1:
            return None
        kept = (1 - norm.momentum) ** batches
        with unobserved():
            mean, var = ((new - kept * old) / (1 - kept) for old, new in zip(before, after, strict=True))
            var = var.clamp(min=norm.eps)
            away = ((before[0] - mean).square() / var).mean().sqrt()
            ratio = before[1].mean() / var.mean()
            found = torch.stack([away, ratio]).tolist()
        return (found[0], found[1]) if all(map(math.isfinite, found)) else None

    def _batches(self, models: Iterable[nn.Module]) -> int | None:
        norm = self._norm() if self._norm is not None else None
        if norm is None:
            held = self._held()
            norms = (each for model in models for each in modules_of(model) if isinstance(each, _BatchNorm))
            norm = next((each for each in norms if id(each.weight) in held), None)
            self._norm, self._after = (weakref.ref(norm) if norm is not None else None), None
        with hidden():
            tracked = None if norm is None else norm.num_batches_tracked
            return int(tracked) if has_numbers(tracked) else None

    def _trains(self, model: nn.Module) -> bool:
        """Whether an optimizer holds parameters of it, and a dropout or a batch norm in it is in train mode."""
        if not any(each.training and (isinstance(each, _BatchNorm) or drops(each)) for each in modules_of(model)):
            return False
        return self._is_held(model)

    def _is_held(self, model: nn.Module) -> bool:
        held = self._held()
        return any(id(parameter) in held for parameter in parameters_of(model))

    def _held(self) -> set[int]:
        groups = (group for optimizer in self._optimizers() for group in optimizer.param_groups)
        return {id(parameter) for group in groups for parameter in group["params"]}


def _random_state(model: nn.Module) -> Tensor | None:
    """The state of the random numbers of a model's device; None if it cannot be read now."""
    device = next((each.device for each in parameters_of(model)), None)
    if device is None or device.type not in ("cpu", "cuda"):
        return None
    if device.type == "cpu":
        return torch.default_generator.get_state()
    if torch.cuda.is_current_stream_capturing():
        return None
    return torch.cuda.default_generators[device.index or 0].get_state()
