"""Runs trainings bare, recorded and watched, each in a process of its own; compares what they leave, bit for bit."""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import hashlib
import importlib
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._C import _len_torch_function_stack
from torch.nn.modules import module as module_hooks
from torch.optim import Optimizer
from torch.optim import optimizer as optimizer_hooks
from torch.utils._python_dispatch import _len_torch_dispatch_stack

import chainrule
from tests.reliability.trainings import TRAININGS, Training

Prints = dict[str, str]  # what was found where, as a hash or as text
SECONDS = 240  # without any work, after which a training counts as stuck
LOADED = ("torch._dynamo", "chainrule.recording", "chainrule.monitor.watcher")  # by any training; slow to import


def recorded(trained: Training, **options: Any) -> list[Any]:
    """Record every step, and read the last recording when all is over."""
    losses = []
    for number in range(trained.steps):
        with chainrule.record(**options) as recording:
            losses.append(trained.step(number))
    read(recording)
    return losses


def read(recording: Any) -> None:
    """Reading may refuse, but not crash."""
    with warnings.catch_warnings(), contextlib.suppress(chainrule.ChainruleError):
        warnings.simplefilter("ignore")
        str(recording)


def watched(trained: Training, **options: Any) -> list[Any]:
    """Watch the whole training; the watch finds models and optimizers by itself."""
    folder = Path(tempfile.mkdtemp())
    with chainrule.watch(to=folder / "run.db", **options):
        return [trained.step(number) for number in range(trained.steps)]


def bare(trained: Training) -> list[Any]:
    """The training alone."""
    return [trained.step(number) for number in range(trained.steps)]


WAYS: dict[str, Callable[[Training], list[Any]]] = {
    "bare": bare,
    "record": lambda trained: recorded(trained, keep="all"),
    "record statistics": lambda trained: recorded(trained, keep="statistics"),
    "watch every step, in full": lambda trained: watched(trained, every=1, full_every=1),
    "watch every second step": lambda trained: watched(trained, every=2),
}


# -- what a training leaves -------------------------------------------------------------------------------------------


def prints_of(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Everything inside a value that a training can change, with where it is."""
    if isinstance(value, Tensor):
        yield path, of_a_tensor(value)
        if value.is_leaf and value.grad is not None:
            yield f"{path}.grad", of_a_tensor(value.grad)
    elif isinstance(value, nn.Module):
        for name, module in value.named_modules():
            here = f"{path}.{name}"
            yield f"{here}!", f"{type(module).__name__} {module.training} {sorted(hook_counts(module).items())}"
            own = {**vars(module), **module._parameters, **module._buffers}
            plain = {key: each for key, each in own.items() if isinstance(each, (Tensor, int, float, str, list))}
            yield from prints_of(plain, here)
    elif isinstance(value, Mapping):
        for key, each in value.items():
            yield from prints_of(each, f"{path}[{key if isinstance(key, (str, int)) else type(key).__name__}]")
    elif isinstance(value, (list, tuple, set, deque)):
        yield path, str(len(value))
        for place, each in enumerate(value):
            yield from prints_of(each, f"{path}[{place}]")
    elif isinstance(value, Optimizer):
        yield from prints_of(value.state_dict(), path)
        yield from prints_of({"hooks": hook_counts(value)}, path)
    elif hasattr(value, "state_dict"):
        yield from prints_of(value.state_dict(), path)
    elif isinstance(value, np.ndarray):
        yield path, hashlib.sha1(value.tobytes()).hexdigest()
    elif isinstance(value, (int, float, str, bool, type(None))):
        yield path, repr(value)
    else:
        yield path, type(value).__name__


def of_a_tensor(tensor: Tensor) -> str:
    """Type, shape and bytes."""
    kind = f"{type(tensor).__name__} {tensor.dtype} {tensor.requires_grad} {tensor.layout}"
    tensor = tensor.detach()
    if tensor.is_nested:
        return f"{kind} {of_a_tensor(tensor.values())} {of_a_tensor(tensor.offsets())}"
    if tensor.layout is torch.sparse_coo:
        return f"{kind} {of_a_tensor(tensor._indices())} {of_a_tensor(tensor._values())}"
    plain = tensor.as_subclass(Tensor).resolve_conj().resolve_neg().contiguous().flatten()
    return f"{kind} {tuple(tensor.shape)} {hashlib.sha1(plain.view(torch.uint8).numpy().tobytes()).hexdigest()}"


def hook_counts(holder: Any) -> dict[str, int]:
    """How many hooks of each kind an object holds."""
    return {
        name: len(each) for name, each in vars(holder).items() if "hook" in name and isinstance(each, dict) and each
    }


def world() -> Prints:
    """Every place of the process where something could be left."""
    holders = {"module": module_hooks, "optimizer": optimizer_hooks}
    hooks = {f"{kind} {name}": count for kind, each in holders.items() for name, count in hook_counts(each).items()}
    stance = getattr(sys.modules.get("torch._dynamo.eval_frame"), "_stance", None)
    for each in threading.enumerate():
        if each.name == "QueueFeederThread":  # of a loader's workers: it ends a moment after its loader
            each.join(timeout=2)
    found = {
        "hooks": hooks,
        "modes": (_len_torch_function_stack(), _len_torch_dispatch_stack()),
        "levels": torch._C._functorch.peek_interpreter_stack() is None,
        "grad": (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_anomaly_enabled()),
        "saved tensors": torch._C._autograd._top_saved_tensors_default_hooks(True),
        "autocast": (torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")),
        "defaults": (torch.get_default_dtype(), torch.get_default_device(), torch.get_num_threads()),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "compiler": None if stance is None else stance.stance,
        "collector": (gc.isenabled(), gc.get_threshold(), gc.get_freeze_count(), len(gc.callbacks)),
        "python": (sys.gettrace(), sys.getprofile(), sys.excepthook is sys.__excepthook__, sys.getrecursionlimit()),
        "signals": [str(signal.getsignal(each)) for each in (signal.SIGINT, signal.SIGTERM)],
        "threads": threading.active_count(),
        "warnings": [str(each) for each in warnings.filters],
        "directory": os.getcwd(),
        "random": (of_a_tensor(torch.get_rng_state()), random.getstate(), np.random.get_state()[1].tobytes()),
    }
    shown = {name: repr(each) for name, each in found.items()}
    return {
        f"world: {name}": text if len(text) < 2000 else hashlib.sha1(text.encode()).hexdigest()
        for name, text in shown.items()
    }


def left_by(name: str, way: str) -> Prints:
    """Train, and say what is left: losses, all that the training holds, and the process."""
    torch.manual_seed(7)
    random.seed(7)
    np.random.seed(7)
    warnings.simplefilter("ignore")
    trained = TRAININGS[name]()
    losses = WAYS[way](trained)
    trained.end()
    found = world()
    found |= dict(prints_of(losses, "losses"))
    found |= dict(prints_of(trained.holds, "held"))
    return found


# -- processes --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """How a training ended: what it left, or why it did not."""

    name: str
    way: str
    left: Prints | None
    failure: str = ""


def outcomes(names: Iterable[str], ways: Iterable[str], processes: int = 2) -> Iterator[Outcome]:
    """Run each training each way in a forked process: it has PyTorch already, and nothing that another one did."""
    torch.set_num_threads(1)  # before the first operation: a forked process has no threads of its parent
    for module in LOADED:
        importlib.import_module(module)
    context = multiprocessing.get_context("fork")
    waiting = deque((name, way) for name in names for way in ways)
    running: dict[Any, Running] = {}
    while waiting or running:
        while waiting and len(running) < processes:
            name, way = waiting.popleft()
            ours, theirs = context.Pipe(duplex=False)
            stacks = Path(tempfile.mkdtemp()) / "stacks"
            process = context.Process(target=_send, args=(theirs, stacks, name, way))
            process.start()
            theirs.close()
            running[ours] = Running(process, stacks, name, way)
        ready = wait(running, timeout=SECONDS / 20)
        for each in ready or [pipe for pipe, each in running.items() if each.is_stuck()]:
            yield running.pop(each).outcome(each)


class Running:
    """A training in its process."""

    def __init__(self, process: Any, stacks: Path, name: str, way: str) -> None:
        self.process, self.stacks, self.name, self.way = process, stacks, name, way
        self.used, self.since = self._processor_time(), time.monotonic()

    def _processor_time(self) -> int:
        """In ticks of the system's clock; 0 where the system does not tell."""
        try:
            text = Path(f"/proc/{self.process.pid}/stat").read_text()
        except OSError:
            return 0
        return sum(map(int, text.rpartition(")")[2].split()[11:15]))  # with those of children that have ended

    def is_stuck(self) -> bool:
        """Whether it has done nothing for a while. A machine with much else to do makes it slow, not stuck."""
        used = self._processor_time()
        if used > self.used:
            self.used, self.since = used, time.monotonic()
        return time.monotonic() - self.since > SECONDS

    def outcome(self, pipe: Any) -> Outcome:
        """What came of it; if it is stuck, where it was."""
        sent: Any = None
        if not pipe.poll():
            os.kill(self.process.pid, signal.SIGUSR2)
            time.sleep(1)
            self.process.kill()
            failure = f"stuck for {SECONDS} seconds\n{self.stacks.read_text()}"
        else:
            try:
                sent = pipe.recv()
                failure = f"raised\n{sent}" if isinstance(sent, str) else ""
            except EOFError:
                failure = "died with exit code "
        self.process.join()
        failure += str(self.process.exitcode) if failure.startswith("died") else ""
        return Outcome(self.name, self.way, None if failure else sent, failure)


def _send(pipe: Any, stacks: Path, name: str, way: str) -> None:
    with stacks.open("w") as shown, open(os.devnull, "w") as nowhere:
        faulthandler.register(signal.SIGUSR2, shown)
        with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            try:
                sent: Any = left_by(name, way)
            except BaseException:
                sent = traceback.format_exc()
        pipe.send(sent)
        pipe.close()


def harm(names: Iterable[str], ways: Iterable[str] = WAYS, processes: int = 2) -> Iterator[tuple[str, str, str]]:
    """Training, way, and what was harmed ("" where nothing was)."""
    names = list(names)
    alone = {each.name: each for each in outcomes(names, ("bare",), processes)}
    for each in alone.values():
        if each.failure:
            yield each.name, each.way, f"fails by itself: {each.failure}"
    for each in outcomes(names, [way for way in ways if way != "bare"], processes):
        yield each.name, each.way, each.failure or difference(alone[each.name].left or {}, each.left or {})


def difference(expected: Prints, found: Prints) -> str:
    """The first differences, with where they are."""
    keys = [key for key in {**expected, **found} if expected.get(key) != found.get(key)]
    return "; ".join(f"{key}: {expected.get(key)} became {found.get(key)}" for key in keys[:6])
