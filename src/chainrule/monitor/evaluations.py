"""Counts the forward passes between two steps in which a model that trains runs without gradients, in train mode."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.optimizer import Optimizer

from chainrule.capture.lowering.naming import drops


class Evaluations:
    """The passes of one model since the last `clear`, where its mode makes a difference; `see` each module that runs.

    The modes of a model are looked at in its first pass alone.
    """

    def __init__(self, optimizers: Callable[[], Iterable[Optimizer]]) -> None:
        self._optimizers = optimizers
        self.clear()

    def clear(self) -> None:
        """A step has ended."""
        self.passes = 0
        self._within: set[int] = set()  # models and the modules inside them
        self._counted: set[int] = set()  # models

    def see(self, module: nn.Module) -> None:
        """The forward pass of a module begins without gradients."""
        if id(module) not in self._within:
            self._within |= {id(each) for each in module.modules()}
            if self._trains(module):
                self._counted.add(id(module))
        self.passes += id(module) in self._counted

    def _trains(self, model: nn.Module) -> bool:
        """Whether an optimizer holds parameters of it, and a dropout or a batch norm in it is in train mode."""
        if not any(each.training and (isinstance(each, _BatchNorm) or drops(each)) for each in model.modules()):
            return False
        groups = (group for optimizer in self._optimizers() for group in optimizer.param_groups)
        held = {id(parameter) for group in groups for parameter in group["params"]}
        return any(id(parameter) in held for parameter in model.parameters())
