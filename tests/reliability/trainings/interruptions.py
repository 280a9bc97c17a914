"""Trainings that are interrupted: by signals, time limits, errors, and the end of the stack."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn, optim

from tests.reliability.trainings.base import Training, batch, mlp, plain, training


@training
def signals() -> Training:
    """A handler evaluates and trains another model, in the middle of a module and of its backward pass."""
    model, other, (x, y) = mlp(), mlp(), batch()
    second, seen = optim.SGD(other.parameters(), lr=0.1), []

    def handler(*given: Any) -> None:
        with torch.no_grad():
            seen.append(float(model[0](x).sum()))
        with torch.enable_grad():
            second.zero_grad()
            F.cross_entropy(other(x), y).backward()
            second.step()

    def interrupt(*given: Any) -> None:
        signal.raise_signal(signal.SIGUSR1)

    model[1].register_forward_hook(interrupt)
    model[1].register_full_backward_hook(interrupt)
    inner = plain(model, lambda number: F.cross_entropy(model(x), y), None, other, second, seen)

    def step(number: int) -> Any:
        before = signal.signal(signal.SIGUSR1, handler)
        try:
            return inner.step(number)
        finally:
            signal.signal(signal.SIGUSR1, before)

    return Training(step, inner.holds)


class TooLate(BaseException):
    """A time limit that no `except Exception` stops."""


@training
def time_limits() -> Training:
    """A signal ends a forward pass, a backward pass and an update by an exception; the loop goes on."""
    model, (x, y) = mlp(), batch()
    optimizer, caught = optim.SGD(model.parameters(), lr=0.1), []

    def handler(*given: Any) -> None:
        raise TooLate(3)

    def ring(*given: Any) -> None:
        if wanted:
            signal.raise_signal(signal.SIGALRM)

    wanted: list[bool] = []
    handles: list[Any] = []
    places: list[Callable[[], Any]] = [
        lambda: model[0].register_forward_hook(ring),
        lambda: model[1].register_full_backward_hook(ring),
        lambda: optimizer.register_step_pre_hook(ring),
        lambda: optimizer.register_step_post_hook(ring),
    ]

    def attempt() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    def step(number: int) -> Tensor:
        before = signal.signal(signal.SIGALRM, handler)
        handle = places[number]()
        wanted.append(True)
        try:
            attempt()
        except TooLate as late:
            caught.append(repr(late))
        wanted.clear()
        handle.remove()
        signal.signal(signal.SIGALRM, before)
        return attempt()

    return Training(step, (model, optimizer, caught, handles))


@training
def interrupts_that_are_caught() -> Training:
    """Ctrl-C, `sys.exit` and StopIteration in a forward pass, each caught by the loop."""
    model, (x, y) = mlp(), batch()
    errors: list[Any] = [KeyboardInterrupt, lambda: SystemExit(3), StopIteration, GeneratorExit]
    caught: list[str] = []

    def interrupt(module: nn.Module, args: Any, out: Tensor) -> None:
        if errors:
            raise errors.pop()()

    model[0].register_forward_hook(interrupt)
    inner = plain(model, lambda number: F.cross_entropy(model(x), y))

    def step(number: int) -> Any:
        try:
            inner.step(number)
        except BaseException as error:
            caught.append(repr(error))
        return inner.step(number) if not errors else None

    return Training(step, (*inner.holds, caught), steps=5)


class Unprintable(Exception):
    """An error that cannot say what it is."""

    def __str__(self) -> str:
        raise RuntimeError("no words")

    __repr__ = __str__

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("incomparable")

    __hash__ = None  # type: ignore[assignment]


class FailsOnce(torch.autograd.Function):
    """Its backward fails with an error that has no words."""

    left = 0

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Tensor:
        FailsOnce.left -= 1
        if FailsOnce.left >= 0:
            raise Unprintable
        return upstream * 2


@training
def errors_without_words() -> Training:
    """Raised in a module, in a backward pass, in a step; caught, and the loop goes on."""
    model, (x, y) = mlp(), batch()
    optimizer, caught = optim.SGD(model.parameters(), lr=0.1), []

    def fail(*given: Any) -> None:
        raise Unprintable

    def attempt() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(FailsOnce.apply(model(x)), y)
        loss.backward()
        optimizer.step()
        return loss

    def step(number: int) -> Tensor:
        FailsOnce.left = number % 2
        hooks: Any = [model[2].register_forward_hook(fail)] if number == 0 else []
        hooks += [optimizer.register_step_pre_hook(fail)] if number == 2 else []
        for handle in hooks or [None]:
            try:
                attempt()
            except Unprintable as error:
                caught.append(type(error).__name__)
            if handle is not None:
                handle.remove()
        FailsOnce.left = 0
        return attempt()

    return Training(step, (model, optimizer, caught))


@training
def near_the_limits_of_the_stack() -> Training:
    """A model that recurses until Python says no, catches that, and goes on from there."""
    model, (x, y) = mlp(), batch()

    def endless(h: Tensor) -> Tensor:
        return endless(h * 1.0)

    def loss(number: int) -> Tensor:
        out = model(x)
        limit = sys.getrecursionlimit()
        sys.setrecursionlimit(len(_stack()) + 200)
        try:
            endless(out)
        except RecursionError:
            out = out * 2
        finally:
            sys.setrecursionlimit(limit)
        return F.cross_entropy(out, y)

    return plain(model, loss)


def _stack() -> list[Any]:
    frame, found = sys._getframe(), []
    while frame is not None:
        found.append(frame)
        frame = frame.f_back  # type: ignore[assignment]
    return found
