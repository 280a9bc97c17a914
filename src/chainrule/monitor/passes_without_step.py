"""Counts the backward passes after an optimizer's last step: a training whose step() is no longer called has many."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer

from chainrule.capture.rounds import living
from chainrule.graph.graph import Graph
from chainrule.graph.reexecution import hidden, unobserved
from chainrule.graph.snapshot import has_numbers
from chainrule.monitor.every_step import NEAR, first_small
from chainrule.monitor.updates_by_hand import same_bits, some_bits

ENDED, RUNNING, MORE = 20, 100, 8  # passes at the end of the watch, before it, and as a multiple of an earlier step's
LOOK = 10  # the pass at which the parameter is read, to see later whether anything else has moved it


class PassesWithoutStep:
    """The passes since the last step: those of a recording, and those that a hook on one parameter sees without one.

    The hook is called once for each backward pass, counts, calls `passed` with the parameter, and takes nothing. A pass
    in eval mode does not count: it belongs to an evaluation (an adversarial example, a saliency map), unless the
    training itself runs in that mode.
    """

    def __init__(
        self, guard: Callable[..., Any], too_many: Callable[[], None], passed: Callable[[Tensor], None]
    ) -> None:
        self._guard, self._too_many, self._passed = guard, too_many, passed
        self._usual = 0  # passes before an earlier step at most
        self._passes = 0
        self._parameter: Tensor | None = None
        self._module: nn.Module | None = None
        self._handle: Any = None
        self._bits: Tensor | None = None
        self._steps = False  # whether an optimizer has stepped

    def stepped(self, optimizer: Optimizer | None, passes: int) -> None:
        """An optimizer has stepped after so many recorded passes; None: one that is not watched, or updates by hand."""
        self._usual = max(self._usual, self._passes + passes)
        self._passes, self._bits = 0, None
        if optimizer is not None:
            self._steps = True
            known = self._parameter
            with hidden():
                if known is None or known.grad is None or not known.requires_grad:
                    self.leave()
                    self._parameter = _first_with_gradient(optimizer)

    def count(self, module: nn.Module | None) -> None:
        """Count from now on, until a step is recorded; `module` is the one whose forward pass begins a step."""
        self._module = module
        if self._parameter is not None and self._handle is None:
            with hidden():
                hook = partial(self._guard, self._count)  # no function of ours, which could fail outside the guard
                if self._parameter.requires_grad:  # it may be frozen by now
                    self._handle = self._parameter.register_post_accumulate_grad_hook(hook)

    def record(self) -> None:
        """A recording begins, which counts by itself."""
        self.leave()
        if self._parameter is not None and self._bits is None:
            self._bits = some_bits(self._parameter)

    def leave(self) -> None:
        """Take the hook off."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def forget(self) -> None:
        """Take the hook off for good, and drop every reference to the user's objects."""
        self.leave()
        self._parameter = self._module = self._bits = None

    def found(self, recorded: int, ended: bool) -> tuple[int, int] | None:
        """The passes since the last step, and before earlier ones at most, if there are too many of them.

        None also where something else has moved the parameter meanwhile.
        """
        passes, usual = self._passes + recorded, max(self._usual, 1)
        if not self._steps or self._parameter is None or passes < max(ENDED if ended else RUNNING, MORE * usual):
            return None
        if self._bits is not None and not same_bits(self._bits, some_bits(self._parameter)):
            return None
        return passes, usual

    def _count(self, parameter: Tensor) -> None:
        if self._module is not None and not self._module.training:
            return
        self._passes += 1
        self._passed(parameter)
        if self._passes == LOOK and not (parameter.is_cuda and torch.cuda.is_current_stream_capturing()):
            self._bits = some_bits(parameter)
        if self._passes % RUNNING == 0:
            self._too_many()


def never_stepped(graph: Graph) -> int:
    """The backward passes of a step that has no end, if an optimizer that never stepped holds what they reached.

    0 if they are few, if there is no such optimizer, or if what it holds is not as it was before them.
    """
    passes = len(graph.accumulating)
    if passes < ENDED:
        return 0
    first = next((found for each in living() if (found := next(_with_gradient(each), None)) is not None), None)
    if first is None:
        return 0
    known = (each.before for each in graph.parameters.values() if each.shape == first.shape)
    with unobserved():
        return passes if any(has_numbers(each) and torch.equal(each, first) for each in known) else 0


def _first_with_gradient(optimizer: Optimizer) -> Tensor | None:
    """A parameter with a gradient, of the first layers."""
    first = list(islice(_with_gradient(optimizer), NEAR))
    return first_small(first) if first else None


def _with_gradient(optimizer: Optimizer) -> Iterator[Tensor]:
    """The plain parameters of an optimizer that have a gradient."""
    return (
        each
        for group in optimizer.param_groups
        for each in group["params"]
        if type(each) in (Tensor, nn.Parameter) and each.grad is not None and each.requires_grad and each.is_leaf
    )
