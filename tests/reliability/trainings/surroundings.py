"""Trainings in a process in which much else goes on: coroutines, processes, signals, tracers, limits, odd settings."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import copy
import cProfile
import ctypes
import decimal
import gc
import io
import json
import locale
import logging
import multiprocessing
import os
import pickle
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
import tracemalloc
import warnings
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn, optim
from torch.utils.data import DataLoader, Dataset, IterableDataset

from tests.reliability.trainings.base import Training, batch, mlp, plain, training

# -- who runs the step ------------------------------------------------------------------------------------------------

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


# -- processes --------------------------------------------------------------------------------------------------------


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


# -- interruptions ----------------------------------------------------------------------------------------------------


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


# -- who looks on, and what is set ------------------------------------------------------------------------------------


@training
def traced_by_a_debugger() -> Training:
    """A tracer and a profiler of the user's count what runs in this file."""
    model, (x, y) = mlp(), batch()
    inner = plain(model, lambda number: F.cross_entropy(model(x), y))
    seen: list[int] = []

    def trace(frame: Any, event: str, argument: Any) -> Any:
        if frame.f_code.co_filename != __file__:
            return None
        seen.append(frame.f_lineno)
        return trace

    def profile(frame: Any, event: str, argument: Any) -> None:
        if frame.f_code.co_filename == __file__:
            seen.append(-frame.f_lineno)

    def step(number: int) -> Any:
        sys.settrace(trace)
        sys.setprofile(profile)
        threading.settrace(trace)
        try:
            return inner.step(number)
        finally:
            sys.settrace(None)
            sys.setprofile(None)
            threading.settrace(None)  # type: ignore[arg-type]

    return Training(step, (*inner.holds, seen))


@training
def profiled_by_python() -> Training:
    """cProfile and tracemalloc, begun in one step and ended in the next."""
    model, (x, y) = mlp(), batch()
    inner = plain(model, lambda number: F.cross_entropy(model(x), y))
    profiler = cProfile.Profile()

    def step(number: int) -> Any:
        if number == 1:
            profiler.enable()
            tracemalloc.start()
        out = inner.step(number)
        if number == 2:
            tracemalloc.stop()
            profiler.disable()
        return out

    return Training(step, inner.holds)


@training
def errors_of_numpy() -> Training:
    """numpy raises at every overflow, and numbers are NaN, infinite, and too small."""
    model, (x, _) = mlp(), batch()
    x = x * torch.tensor([1e-30, 1e30, 1.0, 0.0, -1e20, 1e-44])
    inner = plain(model, lambda number: model(x).sum() * (float("nan") if number == 2 else 1e10))

    def step(number: int) -> Any:
        with np.errstate(all="raise"):
            return inner.step(number)

    return Training(step, (*inner.holds, np.geterr()))


@training
def settings_of_python() -> Training:
    """Decimal places, a locale, the length of integers, and numpy's printing are set by the user and stay."""
    model, (x, y) = mlp(), batch()
    inner, seen = plain(model, lambda number: F.cross_entropy(model(x), y)), []

    def step(number: int) -> Any:
        decimal.getcontext().prec = 2 + number
        with contextlib.suppress(locale.Error):
            locale.setlocale(locale.LC_ALL, "C.UTF-8")
        sys.set_int_max_str_digits(640 + number)
        np.set_printoptions(precision=number, threshold=1)
        torch.set_printoptions(precision=number, threshold=1, sci_mode=True)
        out = inner.step(number)
        printed = repr(model[0].weight)
        seen.append([decimal.getcontext().prec, sys.get_int_max_str_digits(), np.get_printoptions()["precision"]])
        seen.append(printed)
        return out

    return Training(step, (*inner.holds, seen))


@training
def settings_of_pytorch_left_on() -> Training:
    """Each step changes a setting in the middle of the forward pass, and leaves it so."""
    model, (x, y) = mlp(), batch()
    changes: list[Callable[[], Any]] = [
        lambda: torch.set_grad_enabled(True),
        lambda: torch.set_default_dtype(torch.float64),
        lambda: torch.set_flush_denormal(True),
        lambda: torch.use_deterministic_algorithms(True, warn_only=True),
        lambda: torch.autograd.set_detect_anomaly(True, check_nan=False),
        lambda: torch.set_float32_matmul_precision("medium"),
        lambda: torch.set_default_device("cpu"),
        lambda: gc.set_threshold(123, 4, 5),
        lambda: gc.disable(),
        lambda: torch.manual_seed(number_of_changes),
        lambda: warnings.simplefilter("error"),
    ]
    number_of_changes = len(changes)

    def loss(number: int) -> Tensor:
        h = model[0](x)
        changes[number]()
        return F.cross_entropy(model[1:](h) * torch.rand(()), y)

    return plain_for(model, loss, steps=number_of_changes)


def plain_for(model: nn.Module, loss: Callable[[int], Tensor], steps: int, *more: Any) -> Training:
    """`plain`, for more steps."""
    made = plain(model, loss, None, *more)
    return Training(made.step, made.holds, steps)


@training
def without_a_folder() -> Training:
    """The current folder is gone, nothing more can be opened, and there is no output."""
    model, (x, y) = mlp(), batch()
    inner = plain(model, lambda number: F.cross_entropy(model(x), y))
    home = os.getcwd()

    def step(number: int) -> Any:
        streams = sys.stdout, sys.stderr
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
        sys.stdout = sys.stderr = None  # type: ignore[assignment]
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
        try:
            return inner.step(number)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            sys.stdout, sys.stderr = streams
            os.chdir(home)

    return Training(step, inner.holds)


@training
def time_stands_still() -> Training:
    """Clocks and other functions of the standard library are patched, as tests do."""
    model, (x, y) = mlp(), batch()
    inner = plain(model, lambda number: F.cross_entropy(model(x), y))

    def refuse(*given: Any, **named: Any) -> Any:
        raise RuntimeError("not in here")

    patches = [(time, name, lambda: 5.0) for name in ("time", "monotonic", "perf_counter")]
    patches += [(json, "dumps", refuse), (tempfile, "mkdtemp", refuse), (os, "urandom", refuse), (io, "open", refuse)]

    def step(number: int) -> Any:
        before = [getattr(module, name) for module, name, _ in patches]
        for module, name, new in patches:
            setattr(module, name, new)
        try:
            return inner.step(number)
        finally:
            for (module, name, _), old in zip(patches, before, strict=True):
                setattr(module, name, old)

    return Training(step, inner.holds)


@training
def logging_of_warnings() -> Training:
    """Warnings go to the log, whose handler raises."""
    model, (x, y) = mlp(), batch()

    class Raises(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise RuntimeError("the log is full")

    def loss(number: int) -> Tensor:
        logger, handler = logging.getLogger("py.warnings"), Raises()
        logger.addHandler(handler)
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            logging.captureWarnings(True)
            try:
                return F.cross_entropy(model(x), y)
            finally:
                logging.captureWarnings(False)
                logger.removeHandler(handler)

    return plain(model, loss)


@training
def objects_that_die() -> Training:
    """Finalizers and a callback of the collector compute and train, whenever something of the step is freed."""
    model, other, (x, y) = mlp(), mlp(), batch()
    second, freed = optim.SGD(other.parameters(), lr=0.1), []

    class Dies:
        def __init__(self) -> None:
            self.itself = self

        def __del__(self) -> None:
            with torch.enable_grad():
                second.zero_grad()
                F.cross_entropy(other(x), y).backward()
                second.step()

    def loss(number: int) -> Tensor:
        h = model[0](x)
        Dies()
        gc.collect()
        noise = torch.ones(3)
        weakref.finalize(noise, freed.append, number)
        del noise
        return F.cross_entropy(model[1:](h), y)

    return plain(model, loss, None, other, second)


@training
def written_by_c() -> Training:
    """Memory is written through a pointer, and through numpy, between the passes."""
    model, (x, y) = mlp(), batch()
    array = np.ones((8, 6), dtype=np.float32)
    shared = torch.from_numpy(array)

    def loss(number: int) -> Tensor:
        array[:] = number
        out = F.cross_entropy(model(shared + x), y)
        ctypes.memset(shared.data_ptr(), 0, 24)
        return out

    return plain(model, loss, None, shared, array)


@training
def copied_in_the_middle() -> Training:
    """Model, optimizer and a recorder of the loss are copied and pickled between the passes, and the copy trains on."""
    model, (x, y) = mlp(), batch()
    optimizer, copies = optim.Adam(model.parameters(), lr=0.01), []

    def step(number: int) -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        twin, its = copy.deepcopy((model, optimizer))
        thawed = pickle.loads(pickle.dumps((model, optimizer)))
        loss.backward()
        for net, stepper in ((twin, its), thawed):
            F.cross_entropy(net(x), y).backward()
            stepper.step()
            copies.append((net, stepper))
        optimizer.step()
        saved = io.BytesIO()
        torch.save((model, optimizer.state_dict()), saved)
        copies.append(len(saved.getvalue()) // 1000)
        return loss

    return Training(step, (model, optimizer, copies), steps=3)
