"""Looks at every step of the training, watched or not: at its learning rates, and at whether its update lost numbers.

The look costs a few microseconds. It reads the rates and, after the update, one small parameter of each optimizer (a
bias, or the scale of a norm) from the first layers, because what a backward pass loses spreads there from where it
began. On the CPU the result is read at once. On another device it stays there until the next watched step, so the
training never waits.
"""

from __future__ import annotations

import math
import sys
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import FrameType

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from chainrule.capture.data_parallel import own_part
from chainrule.capture.source import Site, is_library
from chainrule.graph.history import Noticed
from chainrule.graph.reexecution import dispatch_modes, function_modes, unobserved
from chainrule.graph.snapshot import has_numbers
from chainrule.graph.statistics import spread_over
from chainrule.pytorch_internals import _set_grad_enabled

NEAR = 8  # parameters from the first on, among which a small one is looked for
CHANGE = 2.0  # times the rate of the step before; more is noticed
CHANGES = 500  # changes of the rates that are noticed, at most
MANY = 65536  # numbers, of which only some are looked at
WAITING = 256  # looks whose result waits on the device, at most
KNOWN = {torch.float32, torch.float64, torch.float16, torch.bfloat16}


class EveryStep:
    """What the look at each step notices; `names` are those of the parameters, by id."""

    def __init__(self, names: Mapping[int, str]) -> None:
        self._names = names
        self._rates: tuple[float, ...] = ()
        self._changes = 0
        self._of: list[int] = []  # the optimizers, by id, whose parameters are looked at
        self._chosen: list[weakref.ref[Tensor]] = []
        self._lost: bool | None = None  # whether numbers are lost now; None: nothing was looked at so far
        self._waiting: list[tuple[int, bool, Tensor]] = []

    def look(self, step: int, watched: bool, optimizers: Sequence[Optimizer]) -> Sequence[Noticed]:
        """Look at a step that has just ended. One that was `watched` shows by itself where numbers are lost."""
        if dispatch_modes.modes() or function_modes.modes():
            with unobserved():  # which takes longer than the look
                return self._look(step, watched, optimizers)
        before = torch.is_grad_enabled()
        _set_grad_enabled(False)
        try:
            return self._look(step, watched, optimizers)
        finally:
            _set_grad_enabled(before)

    def _look(self, step: int, watched: bool, optimizers: Sequence[Optimizer]) -> Sequence[Noticed]:
        if (ids := [id(each) for each in optimizers]) != self._of:
            self._of, self._chosen = ids, [weakref.ref(each) for each in _chosen(optimizers)]
        found = self._changed(step, optimizers)
        lost, at_once = False, True
        for reference in self._chosen:
            parameter = reference()
            if parameter is None:
                self._of = []  # choose again, for another optimizer may have the id of one that is gone
                continue
            total = _total(parameter)
            if total is None:
                continue
            if total.device.type == "cpu":
                lost = lost or not math.isfinite(total.item())
            else:
                at_once = False
                self._waiting.append((step, watched, total))
        if at_once:
            return [*found, *self._judge(step, watched, lost, optimizers)] if found or lost != self._lost else ()
        return [*found, *self.read()] if watched or len(self._waiting) >= WAITING else found

    def read(self) -> Iterator[Noticed]:
        """What the looks show whose results wait on a device."""
        waiting, self._waiting = self._waiting, []
        lost: dict[tuple[int, bool], bool] = {}
        with unobserved():
            for step, watched, total in waiting:
                lost[step, watched] = lost.get((step, watched), False) or not math.isfinite(total.item())
        for (step, watched), is_lost in lost.items():
            yield from self._judge(step, watched, is_lost)

    def _judge(self, step: int, watched: bool, lost: bool, now: Sequence[Optimizer] = ()) -> Iterator[Noticed]:
        """The loss of numbers that were there before; the parameters of `now` can be read in detail."""
        before, self._lost = self._lost, lost
        if lost and before is False and not watched:
            yield self._noticed(step, now)

    def _noticed(self, step: int, now: Sequence[Optimizer]) -> Noticed:
        if not now:
            return Noticed(step, self._rates, lost=True)
        frame = _user_frame()
        names = [self._names.get(id(each), "a parameter") for each in _parameters(now) if _is_lost(each)]
        loss = None if frame is None else _loss_in(frame)
        place = "" if frame is None else str(Site(frame.f_code, frame.f_lasti).place())
        return Noticed(step, self._rates, True, tuple(names), loss, place)

    def _changed(self, step: int, optimizers: Sequence[Optimizer]) -> Sequence[Noticed]:
        rates = tuple([group.get("lr") for each in optimizers for group in each.param_groups])
        if rates == self._rates or not all(type(each) is float or type(each) is int for each in rates):
            return ()  # to read a tensor may wait for the device
        before, self._rates = self._rates, rates  # type: ignore[assignment]
        if len(rates) != len(before) or self._changes >= CHANGES:
            return ()
        if not any(max(a, b) > CHANGE * min(a, b) for a, b in zip(before, self._rates, strict=True)):
            return ()
        self._changes += 1
        return Noticed(step - 1, before), Noticed(step, self._rates)


def rates_of(optimizers: Iterable[Optimizer]) -> tuple[float, ...]:
    """The learning rate of each parameter group."""
    return tuple(float(group["lr"]) for each in optimizers for group in each.param_groups if "lr" in group)


def _parameters(optimizers: Iterable[Optimizer]) -> Iterator[Tensor]:
    """All that these optimizers hold."""
    return (each for optimizer in optimizers for group in optimizer.param_groups for each in group["params"])


def _chosen(optimizers: Iterable[Optimizer]) -> Iterator[Tensor]:
    """The parameter of each optimizer that is looked at."""
    for optimizer in optimizers:
        first = [each for each in optimizer.param_groups[0]["params"][:NEAR] if has_numbers(own_part(each))]
        first = [each for each in first if each.dtype in KNOWN and each.layout is torch.strided]
        if first:
            yield next((each for each in first if each.dim() < 2), first[0])


def _total(parameter: Tensor) -> Tensor | None:
    """The sum of its numbers, of many only of some: finite if all of them are. None: it cannot be read now."""
    if parameter.is_cuda and torch.cuda.is_current_stream_capturing():
        return None
    part = own_part(parameter)
    if part.numel() > MANY:
        part = spread_over(part.reshape(-1)) if part.is_contiguous() else part[0]
    return part.sum(dtype=torch.float32)


def _is_lost(parameter: Tensor) -> bool:
    part = own_part(parameter)
    return has_numbers(part) and part.dtype in KNOWN and not bool(part.isfinite().all())


def _user_frame() -> FrameType | None:
    """The frame of the user's code that made the optimizer step."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and is_library(frame.f_code):
        frame = frame.f_back
    return frame


def _loss_in(frame: FrameType) -> float | None:
    """The loss among the variables of this code: a number with a gradient, one that is not finite first."""
    there = [
        (math.isfinite(number), "loss" not in name, number)
        for name, each in frame.f_locals.items()
        if type(each) is Tensor and each.grad_fn is not None and each.numel() == 1 and each.dtype in KNOWN
        for number in (each.item(),)
    ]
    return min(there, key=lambda each: each[:2])[2] if there else None
