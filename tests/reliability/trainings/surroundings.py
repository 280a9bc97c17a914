"""Trainings in a process in which much else goes on: tracers, limits, odd settings of Python and PyTorch."""

from __future__ import annotations

import contextlib
import copy
import cProfile
import ctypes
import decimal
import gc
import io
import json
import locale
import logging
import os
import pickle
import resource
import sys
import tempfile
import threading
import time
import tracemalloc
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn, optim

from tests.reliability.trainings.base import Training, batch, mlp, plain, training


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
