"""Trainings whose optimizers, schedulers and loops are their authors' own; random, concurrent and scripted ones."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import random
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn, optim
from torch.optim import lr_scheduler

from tests.reliability.trainings.base import Training, batch, mlp, plain, training

# -- optimizers -------------------------------------------------------------------------------------------------------


class Bare(optim.Optimizer):
    """An optimizer that never calls its base class, and whose `step` takes and returns what it likes."""

    def __init__(self, parameters: Any) -> None:
        self.param_groups = [{"params": list(parameters), "lr": 0.1}]
        self.state: dict[Any, Any] = {}

    def zero_grad(self, *given: Any) -> None:
        for p in self.param_groups[0]["params"]:
            p.grad = None

    def step(self, closure: Any, scale: float, *, also: list[float]) -> tuple[float, str]:
        with torch.enable_grad():
            loss = closure() if closure is not None else None
        with torch.no_grad():
            for p in self.param_groups[0]["params"]:
                p.sub_(p.grad, alpha=self.param_groups[0]["lr"] * scale)
        also.append(scale)
        return scale, "done" if loss is None else f"{float(loss):.6f}"

    def state_dict(self) -> Any:
        return {"lr": self.param_groups[0]["lr"]}


@training
def optimizer_without_its_base() -> Training:
    """No `super().__init__`, extra arguments, a closure now and then, and answers of its own kind."""
    model, (x, y), told = mlp(), batch(), []
    optimizer = Bare(model.parameters())

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        return loss

    def step(number: int) -> Any:
        also: list[float] = []
        loss = closure() if number % 2 else None
        told.append(list(optimizer.step(None if number % 2 else closure, 0.5 + number, also=also)) + also)
        return loss

    return Training(step, (model, optimizer, told))


class Sharp(optim.Optimizer):
    """Sharpness-aware minimisation: two passes for a step, around another optimizer whose groups it shares."""

    def __init__(self, parameters: Any, base: Any, **options: Any) -> None:
        super().__init__(parameters, {"rho": 0.05, **options})
        self.base = base(self.param_groups, **options)
        self.param_groups = self.base.param_groups

    @torch.no_grad()
    def first_step(self) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["old"] = p.data.clone()
                p.add_(p.grad, alpha=0.05)
        self.zero_grad()

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        closure = torch.enable_grad()(closure)
        self.first_step()
        loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                p.data = self.state[p]["old"]
        self.base.step()
        return loss


class Slow:
    """Looks ahead, is no `Optimizer`, and hands on all that it does not know."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.count = inner, 0
        self.slow = [p.detach().clone() for group in inner.param_groups for p in group["params"]]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["inner"], name)

    def step(self, *given: Any) -> Any:
        out = self.inner.step(*given)
        self.count += 1
        if self.count % 2 == 0:
            parameters = [p for group in self.inner.param_groups for p in group["params"]]
            torch._foreach_lerp_(self.slow, [p.detach() for p in parameters], 0.5)
            for p, slow in zip(parameters, self.slow, strict=True):
                p.data.copy_(slow)
        return out


@training
def optimizers_around_optimizers() -> Training:
    """One that perturbs and steps another, in one that looks ahead and only stands before it."""
    model, (x, y) = mlp(), batch()
    optimizer = Slow(Sharp(model.parameters(), optim.SGD, lr=0.1, momentum=0.9))

    def closure() -> Tensor:
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        return loss

    def step(number: int) -> Any:
        optimizer.zero_grad()
        first = closure()
        return first, optimizer.step(closure)

    return Training(step, (model, optimizer.inner, optimizer.slow))


@training
def schedulers_that_wrap_steps() -> Training:
    """Five schedulers of two optimizers, one made in the middle; `step` of the instance is replaced and put back."""
    model, (x, y), counts = mlp(), batch(), []
    first = optim.SGD(model[0].parameters(), lr=0.1, momentum=0.9)
    second = optim.AdamW(model[3].parameters(), lr=0.01)
    holders: list[Any] = [
        lr_scheduler.OneCycleLR(first, max_lr=0.2, total_steps=20),
        lr_scheduler.SequentialLR(
            second, [lr_scheduler.LinearLR(second), lr_scheduler.CosineAnnealingWarmRestarts(second, 2)], milestones=[2]
        ),
        lr_scheduler.ReduceLROnPlateau(second, patience=0),
    ]

    def counted(step: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(step)
        def wrapper(*given: Any, **named: Any) -> Any:
            counts.append(len(counts))
            return step(*given, **named)

        return wrapper

    def step(number: int) -> Tensor:
        if number == 1:
            first.step = counted(first.step)  # type: ignore[method-assign]
        if number == 2:
            holders.append(lr_scheduler.CyclicLR(first, 0.01, 0.1, step_size_up=2, cycle_momentum=True))
        for each in (first, second):
            each.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        first.step()
        second.step()
        for scheduler in holders:
            scheduler.step(float(loss)) if scheduler is holders[2] else scheduler.step()
        if number == 3:
            del first.step
        return loss

    return Training(step, (model, first, second, counts, *holders), steps=6)


def _in_a_thread(work: Callable[[], Any]) -> Any:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()


@training
def steps_behind_functions() -> Training:
    """`step` is reached by its class, by partials, by threads, from within `no_grad`, and while gradients are None."""
    model, (x, y) = mlp(), batch()
    optimizer = optim.Adam(model.parameters(), lr=0.01)
    ways: list[Callable[[], Any]] = [
        functools.partial(optim.Adam.step, optimizer),
        functools.partial(type(optimizer).step, optimizer, closure=None),
        torch.no_grad()(optimizer.step),
        lambda: _in_a_thread(optimizer.step),
        lambda: optim.Adam.step.__wrapped__(optimizer),
        torch.compiler.disable(optimizer.step),
    ]

    def step(number: int) -> Tensor:
        optimizer.zero_grad()
        optimizer.step()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        ways[number]()
        return loss

    return Training(step, (model, optimizer), steps=len(ways))


# -- loops ------------------------------------------------------------------------------------------------------------


@training
def one_loop_for_all_steps() -> Training:
    """A generator holds the whole loop, its contexts stay open between the steps; asynchronous ones take turns."""
    model, other, (x, y) = mlp(), mlp(), batch()
    optimizers = [optim.SGD(each.parameters(), lr=0.1) for each in (model, other)]

    def loop() -> Iterator[Tensor]:
        with torch.enable_grad(), contextlib.ExitStack() as stack:
            while True:
                stack.enter_context(torch.autograd.set_grad_enabled(True))
                optimizers[0].zero_grad()
                loss = F.cross_entropy(model(x), y)
                yield loss
                loss.backward()
                optimizers[0].step()
                yield loss

    async def losses() -> AsyncIterator[Tensor]:
        while True:
            optimizers[1].zero_grad()
            loss = F.cross_entropy(other(x), y)
            await asyncio.sleep(0)
            loss.backward()
            yield loss
            optimizers[1].step()

    running, waiting = loop(), losses()
    events = asyncio.new_event_loop()
    events.set_default_executor(ThreadPoolExecutor(1))  # or a worker that is still busy gets a second one beside it

    async def both() -> Any:
        first = await asyncio.to_thread(lambda: float(other(x).sum().detach()))
        return first, await anext(waiting)

    def step(number: int) -> Any:
        return next(running), events.run_until_complete(both()), next(running)

    return Training(step, (model, other, optimizers))


@training
def threads_that_outlive_the_step() -> Training:
    """A thread starts in the forward pass, waits for the next step, and evaluates then; switches are very frequent."""
    model, (x, y), seen = mlp(), batch(), []
    waiting: list[Any] = []
    twin = mlp()

    def evaluate(go: threading.Event, number: int) -> None:
        go.wait(30)
        with torch.no_grad():
            seen.append(float(twin(x + number).sum()))
        F.cross_entropy(twin(x), y).backward()

    def loss(number: int) -> Tensor:
        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-6)
        h = model[0](x)
        for go, thread in waiting:
            go.set()
            thread.join()
        waiting.clear()
        go = threading.Event()
        waiting.append((go, threading.Thread(target=evaluate, args=(go, number))))
        waiting[0][1].start()
        sys.setswitchinterval(interval)
        return F.cross_entropy(model[1:](h), y)

    made = plain(model, loss, None, twin, seen)

    def end() -> None:
        for go, thread in waiting:
            go.set()
            thread.join()

    return Training(made.step, made.holds, end=end)


@training
def frozen_garbage() -> Training:
    """`gc.freeze` in a step, thresholds of one, and a callback of the collector that raises."""
    model, (x, y), calls = mlp(), batch(), []

    def callback(phase: str, details: Any) -> None:
        if phase == "start" and details["generation"] == 2:
            calls.append(1)
            if len(calls) == 1:
                raise RuntimeError("ignored by Python")

    def loss(number: int) -> Tensor:
        gc.callbacks.append(callback)
        h = model[0](x)
        gc.freeze()
        gc.set_threshold(1, 1, 1)
        gc.collect()
        out = F.cross_entropy(model[1:](h), y)
        gc.callbacks.remove(callback)
        gc.set_threshold(700, 10, 10)
        gc.unfreeze()
        return out

    hook, unraisable = plain(model, loss), sys.unraisablehook

    def step(number: int) -> Any:
        sys.unraisablehook = lambda details: None
        try:
            return hook.step(number)
        finally:
            sys.unraisablehook = unraisable

    return Training(step, hook.holds)


# -- random numbers ---------------------------------------------------------------------------------------------------


@training
def random_states_are_compared() -> Training:
    """Generators of PyTorch, numpy and Python are forked, saved, put back, and compared by the training itself."""
    model, (x, y), seen = mlp(dropout=0.3), batch(), []
    own, other = torch.Generator().manual_seed(3), np.random.default_rng(3)

    def states() -> list[Any]:
        return [torch.get_rng_state().sum().item(), hash(random.getstate()), int(np.random.get_state()[1].sum())]

    def loss(number: int) -> Tensor:
        before = states()
        with torch.random.fork_rng():
            torch.manual_seed(number)
            h = model[0](x + torch.randn(x.shape, generator=own))
        seen.append(states() == before)
        saved = torch.get_rng_state()
        first = model[1:](h)
        torch.set_rng_state(saved)
        second = model[1:](h)
        seen.append(bool(torch.equal(first, second)))
        noise = torch.from_numpy(other.normal(size=3)).float() + random.random() + np.random.rand()
        return F.cross_entropy(first + second * noise, y)

    inner = plain(model, loss, None, seen)

    def step(number: int) -> Any:
        before = states()
        out = inner.step(number)
        seen.append(str(before) + str(states()))
        return out, own.get_state()

    return Training(step, inner.holds)


# -- graphs -----------------------------------------------------------------------------------------------------------


@training
def scripted_between_steps() -> Training:
    """A model is scripted, traced, exported and made a graph between its steps; each form trains the same weights."""
    model, (x, y) = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), batch()
    makes: list[Callable[[], Any]] = [
        lambda: torch.jit.script(model),
        lambda: torch.jit.trace(model, x),
        lambda: torch.fx.symbolic_trace(model),
        lambda: torch.export.export(model, (x,)).module(),
        lambda: functools.partial(torch.func.functional_call, model, dict(model.named_parameters())),
    ]
    seen: list[Any] = []

    def step(number: int) -> Tensor:
        form = makes[number]()
        weights = list(form.parameters()) if isinstance(form, nn.Module) else list(model.parameters())
        optimizer = optim.SGD(weights, lr=0.1, momentum=0.5)
        loss = F.cross_entropy(form((x,)) if number == 4 else form(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seen.append([float(w.sum()) for w in weights])
        return loss

    return Training(step, (model, seen), steps=len(makes))
