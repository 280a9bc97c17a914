"""Looks at every step of the training, watched or not: at its loss and rates, and at whether its update lost numbers.

The look costs a few microseconds. It reads the rates and, after the update, one small parameter of each optimizer (a
bias, or the scale of a norm) from the first layers, because what a backward pass loses spreads there from where it
began. A hook on such a parameter, which each backward pass between watched steps calls, reads the loss from which the
pass began, and whether the parameter's gradient is finite. On the CPU all results are read at once. On another device
they stay there until the next watched step, so the training never waits.
"""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from types import CodeType, FrameType

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from chainrule.capture.data_parallel import own_part
from chainrule.capture.source import Site, locals_of, users_frame
from chainrule.graph.history import Noticed, Unwatched
from chainrule.graph.reexecution import dispatch_modes, function_modes, unobserved
from chainrule.graph.snapshot import has_numbers
from chainrule.graph.statistics import spread_over
from chainrule.monitor.updates_by_hand import same_bits, some_bits
from chainrule.pytorch_internals import _engine_run_backward, _set_grad_enabled
from chainrule.pytorch_internals import _get_sequence_nr as nodes_made

NEAR, SMALL = 8, 16384  # parameters from the first on, among which one of so few numbers or a bias is looked for
CHANGE = 2.0  # times the rate of the step before; more is noticed
CHANGES = 500  # changes of the rates that are noticed, at most
MANY = 65536  # numbers, of which only some are compared
WAITING = 256  # looks whose result waits on the device, at most
_begins: CodeType = _engine_run_backward.__code__
KNOWN = {torch.float32, torch.float64, torch.float16, torch.bfloat16}
DEEP = 64  # frames between a hook and the beginning of its pass at most, reentrant checkpoints included


class EveryStep:
    """What the look at each step notices; `names` are those of the parameters, by id."""

    def __init__(self, names: Mapping[int, str]) -> None:
        self._names = names
        self._rates: tuple[float, ...] = ()
        self._changes = 0
        self._of: list[int] = []  # the optimizers, by id, whose parameters are checked
        self._chosen: list[_Place] = []
        self._plain = False  # whether those are of no class that hears what is asked of them
        self._lost: bool | None = None  # whether numbers are lost now; None: nothing was looked at so far
        self._waiting: list[tuple[int, bool, Tensor]] = []
        self._thread = threading.get_ident()
        self._losses: list[Tensor | float | None] = []  # of this step's passes at the weights of its first one
        self._version = 0  # of the parameter in the first of them
        self._strange = False  # the latest pass lost numbers
        self._nodes = 0  # that autograd had made until the latest step
        self._seen = False  # whether the gradient was read in a pass of this step
        self._before = False  # whether the strange pass began with lost parameters
        self._between: list[tuple[int, int, list[Tensor | float | None], float]] = []
        self._parameter: Tensor | None = None  # that of the latest pass; with a weak reference it cannot be swapped
        self._left: Tensor | None = None  # some of its numbers after the update of a watched step
        self.rewritten = False  # whether it began the next step with others

    def passed(self, parameter: Tensor, scaled: bool) -> float | None:
        """See a backward pass that reached this parameter; the loss, if it lost numbers and the one before did not.

        Where a GradScaler has `scaled` the loss, infinity is as it should be.
        """
        if dispatch_modes.any() or function_modes.any():
            with unobserved():
                return self._passed(parameter, scaled)
        return self._passed(parameter, scaled)

    def _passed(self, parameter: Tensor, scaled: bool) -> float | None:
        if self._left is not None:
            same = self._parameter is not parameter
            self.rewritten, self._left = not (same or same_bits(self._left, some_bits(parameter))), None
        first = not self._losses or self._parameter is not parameter
        self._version = parameter._version if first else self._version
        elsewhere = parameter._version != self._version  # SAM climbs first
        self._parameter = parameter
        loss = _loss_of_pass(self._thread)
        if loss is None or loss.device.type != "cpu":
            if not elsewhere:
                self._losses.append(None if loss is None or is_captured(loss) else loss.detach())
            return None
        number, total = loss.item(), _total_of(parameter.grad)
        if not elsewhere:
            self._losses.append(number)
        lost = number != number if scaled else not (isfinite(number) and isfinite(total))
        before, self._strange, self._seen = self._strange, lost, True
        if not self._strange or before:
            return None
        self._before = _is_lost(parameter)  # by the update of the step before, whose pass was finite
        return None if self._before else number

    def end(self, step: int, watched: bool, scale: float | None, optimizers: Sequence[Optimizer]) -> Sequence[Noticed]:
        """Look at a step that has just ended. One that was `watched` shows by itself where numbers are lost."""
        nodes, losses, seen = nodes_made(), self._losses, self._seen
        if losses:
            self._losses, self._seen = [], False
            if not watched:
                self._between.append((step, nodes - self._nodes, losses, scale or 1.0))
        self._nodes = nodes
        parameter = self._parameter if watched else None
        if parameter is not None and parameter.device.type == "cpu":  # of another device it would wait
            self._left = some_bits(parameter)
        if seen and not self._strange and not watched:  # what its update may have lost, the next pass shows
            self._lost = False
            return self._changed(step, optimizers)
        return self.look(step, watched, optimizers)

    def skip(self) -> None:
        """A GradScaler has skipped a step."""
        self._losses, self._nodes, self._seen = [], nodes_made(), False

    def unwatched(self, passes: int) -> Iterator[Unwatched]:
        """The steps since the last call of which the losses are known: those of as many passes as a watched step."""
        between, self._between = self._between, []
        with unobserved():
            for step, nodes, losses, scale in between:
                known = [float(each) for each in losses if each is not None]
                if len(known) == len(losses) == passes:
                    yield Unwatched(step, sum(known) / scale, nodes)

    def look(self, step: int, watched: bool, optimizers: Sequence[Optimizer]) -> Sequence[Noticed]:
        """Look at the parameters after a step."""
        if (ids := [id(each) for each in optimizers]) != self._of:
            self._of = ids
            with unobserved():
                self._chosen = list(_chosen(optimizers))
            self._plain = all(each.kind in (Tensor, torch.nn.Parameter) for each in self._chosen)
        if not self._plain or dispatch_modes.any() or function_modes.any():
            with unobserved():  # which takes longer than the look
                return self._look(step, watched, optimizers)
        before = torch.is_grad_enabled()
        try:
            try:
                _set_grad_enabled(False)
                return self._look(step, watched, optimizers)
            finally:
                _set_grad_enabled(before)
        finally:  # an interrupt came before the line above
            _set_grad_enabled(before)

    def _look(self, step: int, watched: bool, optimizers: Sequence[Optimizer]) -> Sequence[Noticed]:
        found = self._changed(step, optimizers)
        lost, at_once = False, True
        for place in self._chosen:
            parameter = place.parameter()
            if parameter is None:
                self._of = []  # choose again, for another optimizer may have the id of one that is gone
                continue
            total = _total(parameter)
            if total is None:
                continue
            if total.device.type == "cpu":
                lost = lost or not isfinite(total.item())
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
                lost[step, watched] = lost.get((step, watched), False) or not isfinite(total.item())
        for (step, watched), is_lost in lost.items():
            yield from self._judge(step, watched, is_lost)

    def _judge(self, step: int, watched: bool, lost: bool, now: Sequence[Optimizer] = ()) -> Iterator[Noticed]:
        """The loss of numbers that were there before; the parameters of `now` can be read in detail."""
        before, self._lost = self._lost, lost
        self._strange = self._strange and (lost or not watched)
        if lost and before is False and not watched:
            yield self._noticed(step, now)
        self._before = False

    def _noticed(self, step: int, now: Sequence[Optimizer]) -> Noticed:
        if not now:
            return Noticed(step, self._rates, lost=True)
        frame = users_frame(sys._getframe(1))
        with unobserved():
            names = [self._names.get(id(each), "a parameter") for each in _parameters(now) if _is_lost(each)]
        if self._before:
            step, loss = step - 1, self._between[-2][2][-1] if len(self._between) > 1 else None
            loss = loss if type(loss) is float and self._between[-2][0] == step else None
        else:
            loss = None if frame is None else _loss_in(frame)
        place = "" if frame is None else str(Site(frame.f_code, frame.f_lasti).place())
        return Noticed(step, self._rates, True, tuple(names), loss, place)

    def forget(self) -> None:
        """Drop every reference to the user's objects."""
        self._parameter = self._left = None

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


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a parameter is found: a weak reference to itself would keep PyTorch from swapping it (`Module.to`)."""

    optimizer: weakref.ref[Optimizer]
    place: int  # in the first group
    kind: type[Tensor]

    def parameter(self) -> Tensor | None:
        optimizer = self.optimizer()
        there = [] if optimizer is None else optimizer.param_groups[0]["params"]
        found = there[self.place] if self.place < len(there) else None
        return found if type(found) is self.kind else None


def _chosen(optimizers: Iterable[Optimizer]) -> Iterator[_Place]:
    """The parameter of each optimizer that is checked."""
    for optimizer in optimizers:
        first = [each for each in optimizer.param_groups[0]["params"][:NEAR] if has_numbers(own_part(each))]
        first = [each for each in first if each.dtype in KNOWN and each.layout is torch.strided]
        if first:
            found = first_small(first)
            place = next(at for at, each in enumerate(optimizer.param_groups[0]["params"]) if each is found)
            yield _Place(weakref.ref(optimizer), place, type(found))


def first_small(parameters: Sequence[Tensor]) -> Tensor:
    """The first one that is small, or a bias or the scale of a norm: what a pass loses spreads to the first layers."""
    return next((each for each in parameters if each.numel() <= SMALL or each.dim() < 2), parameters[0])


def is_captured(tensor: Tensor) -> bool:
    """Whether what is computed with it now goes into a CUDA graph."""
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()


def _total_of(grad: Tensor | None) -> float:
    """The sum of a gradient that has just arrived; 0 if it cannot be read."""
    total = None if grad is None or grad.layout is not torch.strided else _total(grad)
    return 0.0 if total is None else total.item()


def _total(parameter: Tensor) -> Tensor | None:
    """The sum of its numbers, of many only of some: finite if all of them are. None: it cannot be read now."""
    if is_captured(parameter):
        return None
    part = own_part(parameter)
    if part.numel() > MANY:
        part = spread_over(part.reshape(-1)) if part.is_contiguous() else part[0]
    return part.sum(dtype=torch.float32)


def _is_lost(parameter: Tensor) -> bool:
    part = own_part(parameter)
    return has_numbers(part) and part.dtype in KNOWN and not bool(part.isfinite().all())


def _loss_in(frame: FrameType) -> float | None:
    """The loss among the variables of this code: a number with a gradient, one that is not finite first."""
    there = [
        (isfinite(number), "loss" not in name, number)
        for name, each in locals_of(frame).items()
        if type(each) is Tensor and each.grad_fn is not None and each.numel() == 1 and each.dtype in KNOWN
        for number in (each.item(),)
    ]
    return min(there, key=lambda each: each[:2])[2] if there else None


def _loss_of_pass(thread: int) -> Tensor | None:
    """The loss of the pass in which this runs, if it is one number. On a GPU `thread` waits for the pass to end."""
    frame: FrameType | None = sys._getframe(1)
    for _ in range(DEEP):
        if frame is None:
            frame = sys._current_frames().get(thread)
            if frame is None or frame.f_code is not _begins:
                return None
        if frame.f_code is _begins:
            roots = frame.f_locals["t_outputs"]
            if len(roots) == 1 and type(roots[0]) is Tensor and roots[0].numel() == 1 and roots[0].dtype in KNOWN:
                loss: Tensor = roots[0]
                return loss
        frame = frame.f_back
    return None
