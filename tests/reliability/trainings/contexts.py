"""Trainings that differ in what goes on around the loop: contexts, threads, loaders, logs, a model that grows."""

from __future__ import annotations

import contextlib
import copy
import gc
import io
import logging
import random
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn, optim
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.flop_counter import FlopCounterMode

from tests.reliability.trainings.base import Training, batch, entered, mlp, plain, training


@training
def scaled() -> Training:
    model, (x, y) = mlp(dropout=0.1), batch()
    optimizer, scaler = optim.SGD(model.parameters(), lr=0.1), torch.amp.GradScaler("cpu", init_scale=2.0**127)

    def step(number: int) -> Tensor:
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = F.cross_entropy(model(x), y)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        return loss

    return Training(step, (model, optimizer, scaler), steps=6)


Around = Callable[[], contextlib.AbstractContextManager[Any]]

AROUND: dict[str, tuple[Around, Around]] = {  # around the forward pass, around all of the step
    "autocast_step": (contextlib.nullcontext, lambda: torch.autocast("cpu", dtype=torch.bfloat16)),
    "device": (lambda: torch.device("cpu"), contextlib.nullcontext),
    "device_step": (contextlib.nullcontext, lambda: torch.device("cpu")),
    "anomaly": (contextlib.nullcontext, lambda: torch.autograd.detect_anomaly(check_nan=False)),
    "profiler": (contextlib.nullcontext, lambda: torch.profiler.profile(record_shapes=True)),
    "flops": (lambda: FlopCounterMode(display=False), contextlib.nullcontext),
    "flops_step": (contextlib.nullcontext, lambda: FlopCounterMode(display=False)),
    "save_on_cpu": (torch.autograd.graph.save_on_cpu, contextlib.nullcontext),
    "deterministic": (contextlib.nullcontext, lambda: deterministic()),
    "warnings_are_errors": (contextlib.nullcontext, lambda: warnings_are_errors()),
    "default_dtype": (contextlib.nullcontext, lambda: default_dtype()),
    "forked_random": (torch.random.fork_rng, contextlib.nullcontext),
    "no_collector": (contextlib.nullcontext, lambda: no_collector()),
    "stdout_taken": (contextlib.nullcontext, lambda: contextlib.redirect_stdout(io.StringIO())),
}


@contextlib.contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@contextlib.contextmanager
def warnings_are_errors() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@contextlib.contextmanager
def default_dtype() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextlib.contextmanager
def no_collector() -> Iterator[None]:
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def in_contexts(inner: Around, outer: Around) -> Training:
    model, (x, y) = mlp(dropout=0.2), batch()
    optimizer = optim.Adam(model.parameters(), lr=0.05)

    def step(number: int) -> Tensor:
        with outer():
            optimizer.zero_grad()
            with inner():
                loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            return loss

    return Training(step, (model, optimizer))


for name, contexts in AROUND.items():
    entered(f"around_{name}", partial(in_contexts, *contexts))


@training
def modes_across_steps() -> Training:
    """A mode that is entered in one step and left in the next, and one that a generator leaves when it likes."""
    model, (x, y) = mlp(), batch()
    optimizer, stack = optim.SGD(model.parameters(), lr=0.1), contextlib.ExitStack()
    counts: list[int] = []

    def counted() -> Iterator[None]:
        with FlopCounterMode(display=False) as counter:
            yield
            counts.append(counter.get_total_flops())
            yield

    def step(number: int) -> Tensor:
        if number % 2 == 0:
            stack.enter_context(torch.device("cpu"))
        generator = counted()
        next(generator)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        next(generator)
        next(generator, None)
        loss.backward()
        optimizer.step()
        if number % 2:
            stack.close()
        return loss

    return Training(step, (model, optimizer, counts))


@training
def threads_evaluate() -> Training:
    """Other threads evaluate the model, and train one of their own, while it is trained."""
    model, other, (x, y) = mlp(), mlp(), batch()
    optimizer, second = optim.SGD(model.parameters(), lr=0.1), optim.Adam(other.parameters(), lr=0.1)
    scores: list[float] = []

    def evaluate() -> None:
        with torch.no_grad():
            frozen = copy.deepcopy(model)
            scores.append(float(frozen(x).sum()))

    def train_the_other() -> None:
        for _ in range(3):
            second.zero_grad()
            F.cross_entropy(other(x), y).backward()
            second.step()

    def step(number: int) -> Tensor:
        for job in (evaluate, train_the_other):
            thread = threading.Thread(target=job)
            thread.start()
            thread.join()
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        with ThreadPoolExecutor(2) as pool:
            waiting = pool.submit(train_the_other)
            loss.backward()
            waiting.result()
        optimizer.step()
        return loss

    return Training(step, (model, other, optimizer, second, scores))


@training
def trained_in_a_thread() -> Training:
    model, (x, y) = mlp(dropout=0.2), batch()
    inner = plain(model, lambda number: F.cross_entropy(model(x), y))

    def step(number: int) -> Any:
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(inner.step, number).result()

    return Training(step, inner.holds)


@training
def data_loader() -> Training:
    model, (x, y) = mlp(), batch(12)
    random_numbers = torch.Generator().manual_seed(3)
    loader = DataLoader(TensorDataset(x, y), batch_size=4, shuffle=True, generator=random_numbers)
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    batches = iter(loader)

    def step(number: int) -> Tensor:
        inputs, labels = next(batches)
        noise = torch.as_tensor(np.random.normal(size=(4, 6)) + random.random(), dtype=torch.float32)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(inputs + 0.1 * noise), labels)
        loss.backward()
        optimizer.step()
        return loss

    return Training(step, (model, optimizer, x, y), steps=3)


@training
def logged() -> Training:
    """Reads numbers, prints, and logs as people do."""
    model, (x, y) = mlp(), batch()
    optimizer, lines = optim.SGD(model.parameters(), lr=0.1), []
    log = logging.getLogger("training")

    def step(number: int) -> Tensor:
        optimizer.zero_grad()
        out = model(x)
        loss = F.cross_entropy(out, y)
        loss.backward()
        norms = {name: each.grad.norm().item() for name, each in model.named_parameters()}
        optimizer.step()
        log.info("step %d", number)
        lines.append(f"{number} {loss.item():.6f} {out.detach().numpy().sum():.6f} {norms} {out[0].tolist()}")
        return loss

    return Training(step, (model, optimizer, lines))


@training
def many_small_writes() -> Training:
    """A data set is made inside the step, row by row."""
    model = mlp()

    def loss(number: int) -> Tensor:
        x, y = torch.empty(64, 6), torch.empty(64, dtype=torch.long)
        for row in range(64):
            x[row] = torch.randn(6)
            y[row] = row % 3
        return F.cross_entropy(model(x), y)

    return plain(model, loss)


@training
def model_that_grows() -> Training:
    model, (x, y) = nn.Sequential(nn.Linear(6, 6)), batch()
    head, optimizer = nn.Linear(6, 3), None
    optimizer = optim.Adam([*model.parameters(), *head.parameters()], lr=0.05)

    def step(number: int) -> Tensor:
        if number:
            model.append(nn.Linear(6, 6))
            optimizer.add_param_group({"params": list(model[-1].parameters())})
        optimizer.zero_grad()
        loss = F.cross_entropy(head(model(x)), y)
        loss.backward()
        optimizer.step()
        return loss

    return Training(step, (model, head, optimizer))
