"""Recording and watching change none of the user's modes, wherever they are entered and left, and no number.

A training of some steps runs bare and under each of `RUNNERS`, with modes entered and left at points of its course:
what it computes, raises and leaves in PyTorch's state has to be the same.
"""

from __future__ import annotations

import contextlib
import itertools
import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._C import _get_dispatch_stack_at, _get_function_stack_at, _len_torch_dispatch_stack, _len_torch_function_stack
from torch.overrides import TorchFunctionMode
from torch.utils import _python_dispatch
from torch.utils._debug_mode import DebugMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import chainrule

Enter = Callable[[], AbstractContextManager[Any]]


class Operations(TorchDispatchMode):
    """A user's mode: lists the operations."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not torch.ops.aten.detach.default:  # made of what a factory returns while someone holds it
            self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


class Functions(TorchFunctionMode):
    """A user's mode: lists the torch functions."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(getattr(func, "__name__", str(func)))
        return func(*args, **(kwargs or {}))


class Doubling(TorchFunctionMode):
    """A user's mode that changes what is computed."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        return out * 2 if func is F.linear else out


@contextlib.contextmanager
def default_device() -> Iterator[None]:
    torch.set_default_device("cpu")
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextlib.contextmanager
def double() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def profile() -> AbstractContextManager[Any]:
    return torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU])


MODES: dict[str, Enter] = {
    "device": lambda: torch.device("cpu"),
    "meta": lambda: torch.device("meta"),
    "default-device": default_device,
    "flops": lambda: FlopCounterMode(display=False),
    "operations": Operations,
    "functions": Functions,
    "doubling": Doubling,
    "debug": lambda: DebugMode(record_torchfunction=True),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "no-autocast": lambda: torch.autocast("cpu", enabled=False),
    "no-grad": torch.no_grad,
    "grad": torch.enable_grad,
    "inference": torch.inference_mode,
    "no-inference": lambda: torch.inference_mode(False),
    "hooks": lambda: torch.autograd.graph.saved_tensors_hooks(lambda x: x * 2, lambda x: x / 2),
    "on-cpu": torch.autograd.graph.save_on_cpu,
    "no-hooks": lambda: torch.autograd.graph.disable_saved_tensors_hooks("none here"),
    "anomaly": torch.autograd.detect_anomaly,
    "multithreading": lambda: torch.autograd.set_multithreading_enabled(False),
    "double": double,
    "deterministic": deterministic,
    "record-function": lambda: torch.profiler.record_function("mine"),
    "forward-ad": torch.autograd.forward_ad.dual_level,
    "no-subclass": torch._C.DisableTorchFunctionSubclass,
}

POINTS = ("before", "start", "forward", "backward", "stepped", "after")  # of one step
STEPS = 3
Event = tuple[int, int, str]  # when it enters and leaves (points since the start; -1: before everything), which mode


class Course:
    """The modes of one training: enters and leaves them at their points."""

    def __init__(self, events: tuple[Event, ...]) -> None:
        self.events, self.now, self.states = events, -1, []
        self.modes = [MODES[name]() for *_, name in events]

    def point(self) -> None:
        for order, act in ((1, "__exit__"), (0, "__enter__")):
            for event, mode in zip(self.events, self.modes, strict=True):
                if event[order] == self.now:
                    getattr(mode, act)(*((None, None, None) if order else ()))
        self.states.append(state())
        self.now += 1

    def told(self) -> list[Any]:
        """What the user's modes have to tell."""
        return [
            mode.get_total_flops() if isinstance(mode, FlopCounterMode)
            else mode.debug_string() if isinstance(mode, DebugMode)
            else getattr(mode, "seen", None)
            for mode in self.modes
        ]  # fmt: skip


def state() -> list[Any]:
    """All of PyTorch's state that a mode can change, without our own modes."""
    functions = [_get_function_stack_at(i) for i in range(_len_torch_function_stack())]
    dispatch = [_get_dispatch_stack_at(i) for i in range(_len_torch_dispatch_stack())]
    return [
        *([type(each).__name__ for each in stack if "chainrule" not in type(each).__module__] for stack in (functions, dispatch)),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.get_autocast_dtype("cpu"),
        torch.is_autocast_cache_enabled(),
        torch.get_default_dtype(),
        torch.get_default_device(),
        torch.are_deterministic_algorithms_enabled(),
        torch.is_anomaly_enabled(),
        torch._C._autograd._saved_tensors_hooks_is_enabled(),
    ]


def flags() -> list[Any]:
    """What is left when all is over: ours among it, if it were."""
    return [
        _len_torch_function_stack(),
        _len_torch_dispatch_stack(),
        _python_dispatch._is_in_torch_dispatch_mode,
        _python_dispatch._is_in_non_infra_torch_dispatch_mode,
        _python_dispatch._is_in_any_mode_without_ignore_compile_internals,
    ]


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 3))


def each_step(recorded: Callable[[], AbstractContextManager[Any]], watched: Callable[..., AbstractContextManager[Any]]):
    """A training whose steps run in `recorded()`, and as a whole in `watched(model, optimizer)`."""

    def run(events: tuple[Event, ...]) -> dict[str, Any]:
        net = model()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        x, y = torch.randn(8, 6), torch.randint(3, (8,))
        course, losses, error = Course(events), [], None
        try:
            course.point()
            with watched(net, optimizer):
                for _ in range(STEPS):
                    course.point()
                    with recorded():
                        course.point()
                        optimizer.zero_grad()
                        loss = F.cross_entropy(net(x), y) + torch.ones(2).sum()
                        course.point()
                        loss.backward()
                        course.point()
                        optimizer.step()
                        course.point()
                    course.point()
                    losses.append(loss.detach())
            course.point()
        except Exception as raised:
            error = f"{type(raised).__name__}: {raised}"
        return {
            "error": error,
            "states": course.states,
            "told": course.told(),
            "losses": losses,
            "gradients": [p.grad for p in net.parameters()],
            "parameters": list(net.state_dict().values()),
            "random": torch.get_rng_state(),
            "flags": flags(),
        }

    return run


RUNNERS = {
    "record": each_step(chainrule.record, lambda *_: nullcontext()),
    "record-statistics": each_step(lambda: chainrule.record(keep="statistics"), lambda *_: nullcontext()),
    "watch-1": each_step(nullcontext, lambda *given: chainrule.watch(*given, every=1)),
    "watch-2": each_step(nullcontext, lambda *given: chainrule.watch(*given, every=2)),
}
bare = each_step(nullcontext, lambda *_: nullcontext())
LAST = STEPS * len(POINTS)


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        if one.is_meta or other.is_meta:
            return one.device == other.device and one.shape == other.shape
        return one.dtype == other.dtype and one.device == other.device and torch.equal(one.detach(), other.detach())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    yield
    restore()


def restore() -> None:
    """Take off what a course left on."""
    while _len_torch_function_stack():
        torch._C._pop_torch_function_stack()
    while _len_torch_dispatch_stack():
        torch._C._pop_torch_dispatch_stack()
    _python_dispatch._is_in_torch_dispatch_mode = False
    _python_dispatch._is_in_non_infra_torch_dispatch_mode = False
    _python_dispatch._is_in_any_mode_without_ignore_compile_internals = False
    torch.utils._device.CURRENT_DEVICE = None
    torch._GLOBAL_DEVICE_CONTEXT.device_context = None
    torch.set_grad_enabled(True)


def differing(events: tuple[Event, ...], runners: dict[str, Any] = RUNNERS) -> list[str]:
    """Where a run under chainrule differs from the bare one."""
    restore()
    expected, found = bare(events), []
    for name, run in runners.items():
        restore()
        got = run(events)
        found += [f"{name} {part}: {expected[part]} became {got[part]}" for part in got if not same(expected[part], got[part])]
    restore()
    return found
