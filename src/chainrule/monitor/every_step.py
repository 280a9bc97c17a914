"""Looks at every step of the training, watched or not: at its learning rates, and at whether its update lost numbers.

The look costs next to nothing. It reads the rates, and a part of two parameters after the update: those of the first
and the last layer, because what a backward pass loses spreads from where it began to the first layers, and a loss that
is not finite loses all of them. On the CPU the result is read at once. On another device it stays there until the next
watched step, so the training never waits for it.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import FrameType

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim.optimizer import Optimizer

from chainrule.capture.data_parallel import own_part
from chainrule.capture.source import Site, is_library
from chainrule.graph.history import Noticed
from chainrule.graph.reexecution import unobserved
from chainrule.graph.snapshot import has_numbers

ROWS = 4096  # of a parameter, at most, of which the first number is looked at: backward loses whole rows of a gradient
CHANGE = 2.0  # times the rate of the step before; more is noticed
CHANGES = 500  # changes of the rates that are noticed, at most
WAITING = 256  # looks whose result waits on the device, at most
KNOWN = {torch.float32, torch.float64, torch.float16, torch.bfloat16}


class EveryStep:
    """What the look at each step notices; `names` are those of the parameters, by id."""

    def __init__(self, names: Mapping[int, str]) -> None:
        self._names = names
        self._rates: tuple[float, ...] = ()
        self._changes = 0
        self._lost: bool | None = None  # whether numbers are lost now; None: nothing was looked at so far
        self._waiting: list[tuple[int, bool, Tensor]] = []

    def look(self, step: int, watched: bool, optimizers: Sequence[Optimizer]) -> list[Noticed]:
        """Look at a step that has just ended. One that was `watched` shows by itself where numbers are lost."""
        found = [*self._changed(step, optimizers)]
        at_once = True
        with unobserved():
            for total in _totals(optimizers):
                self._waiting.append((step, watched, total))
                at_once = at_once and total.device.type == "cpu"
        if at_once or watched or len(self._waiting) >= WAITING:
            found += self.read(optimizers if at_once else ())
        return found

    def read(self, now: Sequence[Optimizer] = ()) -> Iterator[Noticed]:
        """What the waiting looks show; the parameters of `now`, which have just stepped, can be read in detail."""
        waiting, self._waiting = self._waiting, []
        lost: dict[tuple[int, bool], bool] = {}
        for step, watched, total in waiting:
            lost[step, watched] = lost.get((step, watched), False) or not math.isfinite(total.item())
        for (step, watched), is_lost in lost.items():
            before, self._lost = self._lost, is_lost
            if is_lost and before is False and not watched:
                yield self._noticed(step, now)

    def _noticed(self, step: int, now: Sequence[Optimizer]) -> Noticed:
        if not now:
            return Noticed(step, self._rates, lost=True)
        frame = _user_frame()
        with unobserved():
            names = [self._names.get(id(each), "a parameter") for each in _parameters(now) if _is_lost(each)]
            loss = None if frame is None else _loss_in(frame)
        place = "" if frame is None else str(Site(frame.f_code, frame.f_lasti).place())
        return Noticed(step, self._rates, True, tuple(names), loss, place)

    def _changed(self, step: int, optimizers: Sequence[Optimizer]) -> Iterator[Noticed]:
        rates = tuple(group.get("lr") for each in optimizers for group in each.param_groups)
        if rates == self._rates or not all(type(each) is float or type(each) is int for each in rates):
            return  # to read a tensor may wait for the device
        before, self._rates = self._rates, rates  # type: ignore[assignment]
        if len(rates) != len(before) or self._changes >= CHANGES:
            return
        if any(max(a, b) > CHANGE * min(a, b) for a, b in zip(before, self._rates, strict=True)):
            self._changes += 1
            yield Noticed(step - 1, before)
            yield Noticed(step, self._rates)


def rates_of(optimizers: Iterable[Optimizer]) -> tuple[float, ...]:
    """The learning rate of each parameter group."""
    return tuple(float(group["lr"]) for each in optimizers for group in each.param_groups if "lr" in group)


def _parameters(optimizers: Iterable[Optimizer]) -> Iterator[Tensor]:
    """All that these optimizers hold."""
    return (each for optimizer in optimizers for group in optimizer.param_groups for each in group["params"])


def _totals(optimizers: Iterable[Optimizer]) -> Iterator[Tensor]:
    """For each device a sum that is finite if all numbers that are looked at are."""
    pieces: dict[torch.device, list[Tensor]] = {}
    for optimizer in optimizers:
        groups = optimizer.param_groups
        for each in (*groups[0]["params"][:1], *groups[-1]["params"][-1:]):
            part = each if type(each) is Parameter else own_part(each)
            if part.dtype in KNOWN and has_numbers(part) and part.layout is torch.strided and part.numel():
                pieces.setdefault(part.device, []).append(_first_of_rows(part))
    for device, several in pieces.items():
        if device.type != "cuda" or not torch.cuda.is_current_stream_capturing():
            yield torch.cat(several).sum(dtype=torch.float32)


def _first_of_rows(tensor: Tensor) -> Tensor:
    """The first number of each row, or of each n-th of very many."""
    if not tensor.dim():
        return tensor.reshape(1)
    every = -(-tensor.shape[0] // ROWS)
    return tensor.as_strided(
        (-(-tensor.shape[0] // every),), (tensor.stride(0) * every,), tensor.storage_offset()
    )  # fmt: skip


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
