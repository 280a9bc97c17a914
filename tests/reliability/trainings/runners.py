"""Trainings whose steps run elsewhere than in a plain loop: in coroutines, threads, and among other processes."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn, optim
from torch.utils.data import DataLoader, Dataset, IterableDataset

from tests.reliability.trainings.base import Training, batch, mlp, plain, training

_temperature: contextvars.ContextVar[float] = contextvars.ContextVar("temperature", default=1.0)


@training
def coroutines() -> Training:
    """Two models train in turn in one thread: each gives way between its passes."""
    models, (x, y) = (mlp(), mlp()), batch()
    optimizers = [optim.SGD(model.parameters(), lr=0.1, momentum=0.5) for model in models]

    async def train(number: int) -> Tensor:
        _temperature.set(1.0 + number)
        optimizers[number].zero_grad()
        out = models[number](x)
        await asyncio.sleep(0)
        loss = F.cross_entropy(out / _temperature.get(), y)
        await asyncio.sleep(0)
        loss.backward()
        await asyncio.sleep(0)
        optimizers[number].step()
        return loss

    async def both() -> list[Tensor]:
        return list(await asyncio.gather(train(0), train(1)))

    return Training(lambda number: asyncio.run(both()), (models, optimizers))


@training
def generators() -> Training:
    """A step that is a generator; one of them is thrown away in its middle, with a mode and gradients off."""
    model, (x, y) = mlp(dropout=0.2), batch()
    optimizer, held = optim.Adam(model.parameters(), lr=0.01), []

    def parts() -> Iterator[Any]:
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16), torch.device("cpu"):
            loss = F.cross_entropy(model(x).float(), y)
            yield loss
        loss.backward()
        yield loss
        optimizer.step()

    def step(number: int) -> Tensor:
        *_, loss = parts()
        begun = parts()
        held.append(float(next(begun)))
        begun.close()
        return loss

    return Training(step, (model, optimizer, held))


@training
def in_another_context() -> Training:
    """Every step in a copy of the context, and what is set in it stays there."""
    model, (x, y) = mlp(), batch()

    def loss(number: int) -> Tensor:
        _temperature.set(_temperature.get() * 2)
        return F.cross_entropy(model(x) / _temperature.get(), y)

    inner, seen = plain(model, loss), []

    def step(number: int) -> Any:
        out = contextvars.copy_context().run(inner.step, number)
        seen.append(_temperature.get())
        return out

    return Training(step, (*inner.holds, seen))


@training
def passes_in_different_threads() -> Training:
    """Forward, backward and update, each in a thread of its own; and branches of a model in threads."""
    model, (x, y) = mlp(), batch()
    left, right = nn.Linear(3, 3), nn.Linear(3, 3)
    optimizer = optim.SGD([*model.parameters(), *left.parameters(), *right.parameters()], lr=0.1)

    def step(number: int) -> Tensor:
        optimizer.zero_grad()
        with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as other:
            h = one.submit(model, x).result()
            branches = [one.submit(left, h), other.submit(right, h)]
            loss = F.cross_entropy(branches[0].result() * branches[1].result(), y)
            other.submit(loss.backward).result()
            one.submit(optimizer.step).result()
        return loss

    return Training(step, (model, left, right, optimizer))


@training
def small_stack() -> Training:
    """A thread with a stack of 256 kB, as servers start them."""
    model, (x, y) = mlp(), batch()
    inner = plain(model, lambda number: F.cross_entropy(model(x), y))

    def step(number: int) -> Any:
        got: list[Any] = []
        before = threading.stack_size(256 * 1024)
        thread = threading.Thread(target=lambda: got.append(inner.step(number)))
        thread.start()
        threading.stack_size(before)
        thread.join()
        return got

    return Training(step, inner.holds)


@training
def tasks_of_the_interpreter() -> Training:
    """`torch.jit.fork` runs scripted branches in PyTorch's own threads."""
    model, (x, y) = mlp(), batch()
    traced = torch.jit.trace(nn.Sequential(nn.Linear(3, 3), nn.Tanh()), torch.zeros(8, 3))
    optimizer = optim.SGD([*model.parameters(), *traced.parameters()], lr=0.1)

    def loss(number: int) -> Tensor:
        h = model(x)
        waiting = [torch.jit.fork(traced, h * each) for each in (1, 2)]
        return F.cross_entropy(sum(map(torch.jit.wait, waiting)), y)

    return plain(model, loss, optimizer, traced)


class Noisy(Dataset[tuple[Tensor, Tensor]]):
    """Samples that a worker makes with PyTorch, from its own random numbers."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, place: int) -> tuple[Tensor, Tensor]:
        layer = nn.Linear(6, 6)
        with torch.no_grad():
            return layer(torch.randn(6)) + place, torch.randint(3, ())


class Stream(IterableDataset[tuple[Tensor, Tensor]]):
    """A stream that computes gradients of its own for each sample."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for number in range(8):
            x = torch.full((6,), float(number), requires_grad=True)
            (slope,) = torch.autograd.grad(x.square().sum(), x)
            yield slope, torch.tensor(number % 3)


def _of_loaders(make: Callable[[], DataLoader[Any]]) -> Training:
    model, sums = mlp(), []
    optimizer = optim.SGD(model.parameters(), lr=0.01)

    def step(number: int) -> list[Tensor]:
        losses = []
        for x, y in make():
            optimizer.zero_grad()
            losses.append(F.cross_entropy(model(x), y))
            losses[-1].backward()
            optimizer.step()
            sums.append(float(x.sum()))
        return losses

    return Training(step, (model, optimizer, sums), steps=2, end=gc.collect)


@training
def workers_forked_in_the_step() -> Training:
    return _of_loaders(lambda: DataLoader(Noisy(), batch_size=4, num_workers=2, multiprocessing_context="fork"))


@training
def workers_that_persist() -> Training:
    loader = DataLoader(Stream(), batch_size=4, num_workers=1, persistent_workers=True, prefetch_factor=3)
    return _of_loaders(lambda: loader)


def in_a_child(work: Callable[[], Any]) -> Any:
    """What a forked child computes; it ends at once, or as a script ends."""
    ours, theirs = os.pipe()
    child = os.fork()
    if not child:
        code = 1
        try:
            os.write(theirs, pickle.dumps(work()))
            code = 0
        finally:
            os._exit(code)
    os.close(theirs)
    with open(ours, "rb") as pipe:
        sent = pipe.read()
    assert os.waitpid(child, 0)[1] == 0
    return pickle.loads(sent)


@training
def forked_between_the_passes() -> Training:
    """A child goes on with the step that its parent began, and trains on; so does the parent."""
    model, (x, y) = mlp(), batch()
    optimizer, theirs = optim.Adam(model.parameters(), lr=0.01), []

    def finish(loss: Tensor) -> Tensor:
        loss.backward()
        optimizer.step()
        return loss

    def one() -> Tensor:
        optimizer.zero_grad()
        return F.cross_entropy(model(x), y)

    def child(loss: Tensor) -> list[Any]:
        for _ in range(3):
            finish(loss)
            loss = one()
        return [float(loss), *(p.detach().tolist() for p in model.parameters())]

    def step(number: int) -> Tensor:
        loss = one()
        theirs.append(in_a_child(lambda: child(loss)))
        return finish(loss)

    return Training(step, (model, optimizer, theirs))


def _child_that_ends(weights: Any, queue: Any) -> None:
    model = mlp()
    model.load_state_dict(weights)
    F.cross_entropy(model(torch.ones(2, 6)), torch.zeros(2, dtype=torch.long)).backward()
    queue.put([p.grad.tolist() for p in model.parameters()])


@training
def children_that_end_as_scripts_do() -> Training:
    """A forked child computes gradients and ends with all that Python does at an end."""
    model, (x, y) = mlp(), batch()
    context, theirs = multiprocessing.get_context("fork"), []

    def loss(number: int) -> Tensor:
        out = model(x)
        queue = context.SimpleQueue()
        weights = {name: p.detach().clone() for name, p in model.state_dict().items()}
        process = context.Process(target=_child_that_ends, args=(weights, queue))
        process.start()
        theirs.append(queue.get())
        process.join()
        theirs.append(process.exitcode)
        return F.cross_entropy(out, y)

    return plain(model, loss, None, theirs)


@training
def shared_with_a_child() -> Training:
    """A child trains the parameters that it shares with us, between our passes."""
    model, (x, y) = mlp().share_memory(), batch()
    context = torch.multiprocessing.get_context("fork")

    def child() -> None:
        optimizer = optim.SGD(model.parameters(), lr=0.1)
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()

    def loss(number: int) -> Tensor:
        out = F.cross_entropy(model(x), y)
        process = context.Process(target=child)
        process.start()
        process.join()
        return out

    return plain(model, loss)


@training
def other_programs() -> Training:
    """A shell, and another Python, are started in the step."""
    model, (x, y) = mlp(), batch()
    said: list[str] = []

    def loss(number: int) -> Tensor:
        said.append(subprocess.run(["echo", "hello"], capture_output=True, text=True, check=True).stdout)
        code = "import sys; print(sorted(sys.argv), len(sys.meta_path))"
        said.append(subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True).stdout)
        return F.cross_entropy(model(x), y)

    return plain(model, loss, None, said)
