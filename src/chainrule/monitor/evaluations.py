"""Counts the forward passes between two steps in which a model that trains runs without gradients, in train mode."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable

from torch import nn
from torch.optim.optimizer import Optimizer

from chainrule.capture.lowering.naming import drops
from chainrule.graph.reexecution import hidden
from chainrule.graph.snapshot import has_numbers
from chainrule.pytorch_internals import _BatchNorm


class Evaluations:
    """The passes since the last `clear`: `see` each module that runs, where a step is waited for.

    Where steps were not waited for, a batch norm's own count of its batches shows what ran beside them: `began` and
    `ended` are called around each watched step. A step counts as much as the largest watched one.
    """

    def __init__(self, optimizers: Callable[[], Iterable[Optimizer]]) -> None:
        self._optimizers = optimizers
        self._norm: weakref.ref[_BatchNorm] | None = None
        self._before = 0  # batches of the norm before the step that is watched
        self._after: int | None = None  # and after the one before it
        self._most, self._done = 0, 0  # batches of one step; steps until then
        self.clear()

    def clear(self) -> None:
        """A step has ended."""
        self.passes = 0
        self._within: set[int] = set()  # models and the modules inside them
        self._counted: set[int] = set()  # models

    def see(self, module: nn.Module) -> None:
        """The forward pass of a module begins without gradients. The modes of a model are looked at in its first."""
        if id(module) not in self._within:
            self._within |= {id(each) for each in module.modules()}
            if self._trains(module):
                self._counted.add(id(module))
        self.passes += id(module) in self._counted

    def began(self, models: Iterable[nn.Module], done: int) -> None:
        """A watched step begins, after so many others."""
        before, steps = self._batches(models), done - self._done
        if before is None:
            self._after = None
        elif self._after is not None and steps:
            self.passes = max(self.passes, before - self._after - steps * self._most)
        self._before = before or 0

    def ended(self, models: Iterable[nn.Module], done: int) -> None:
        """The watched step has ended."""
        self._after, self._done = self._batches(models), done
        if self._after is not None:
            self._most = max(self._most, self._after - self._before)

    def _batches(self, models: Iterable[nn.Module]) -> int | None:
        norm = self._norm() if self._norm is not None else None
        if norm is None:
            held = self._held()
            norms = (each for model in models for each in model.modules() if isinstance(each, _BatchNorm))
            norm = next((each for each in norms if id(each.weight) in held), None)
            self._norm, self._after = (weakref.ref(norm) if norm is not None else None), None
        with hidden():
            tracked = None if norm is None else norm.num_batches_tracked
            return int(tracked) if has_numbers(tracked) else None

    def _trains(self, model: nn.Module) -> bool:
        """Whether an optimizer holds parameters of it, and a dropout or a batch norm in it is in train mode."""
        if not any(each.training and (isinstance(each, _BatchNorm) or drops(each)) for each in model.modules()):
            return False
        held = self._held()
        return any(id(parameter) in held for parameter in model.parameters())

    def _held(self) -> set[int]:
        groups = (group for optimizer in self._optimizers() for group in optimizer.param_groups)
        return {id(parameter) for group in groups for parameter in group["params"]}
