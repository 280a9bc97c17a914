"""Recording and watching change none of the user's modes, wherever they are entered and left, and no number.

A training of some steps runs bare and under each of `RUNNERS`, with modes entered and left at points of its course:
what it computes, raises and leaves in PyTorch's state has to be the same.
"""

from __future__ import annotations

import contextlib
import random
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._C import (
    _get_dispatch_stack_at,
    _get_function_stack_at,
    _len_torch_dispatch_stack,
    _len_torch_function_stack,
)
from torch.overrides import TorchFunctionMode
from torch.utils import _python_dispatch
from torch.utils._debug_mode import DebugMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import chainrule

pytestmark = pytest.mark.filterwarnings("ignore:Anomaly Detection")

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

STEPS = 3
Event = tuple[int, int, str]  # at which points it enters and leaves, and which mode
"""Point -1 is before everything. Each step has six: before it, at its start, after the forward and the backward pass,
after the update, and after the step. The last is after everything."""


class Course:
    """The modes of one training: enters and leaves them at their points."""

    def __init__(self, events: tuple[Event, ...]) -> None:
        self.events, self.now, self.states = events, -1, []
        self.modes = [MODES[name]() for *_, name in events]
        self.entered: list[AbstractContextManager[Any]] = []

    def point(self) -> None:
        for order, act in ((1, "__exit__"), (0, "__enter__")):
            for event, mode in zip(self.events, self.modes, strict=True):
                if event[order] == self.now:
                    self.entered.remove(mode) if order else self.entered.append(mode)
                    getattr(mode, act)(*((None, None, None) if order else ()))
        self.states.append(state())
        self.now += 1

    def end(self) -> None:
        """Leave what an error kept from being left."""
        while self.entered:
            self.entered.pop().__exit__(None, None, None)

    def told(self) -> list[Any]:
        """What the user's modes have to tell."""
        return [
            mode.get_total_flops() if isinstance(mode, FlopCounterMode)
            else re.sub(r"0x[0-9a-f]+|\n *aten::detach\(.*", "", mode.debug_string()) if isinstance(mode, DebugMode)
            else getattr(mode, "seen", None)
            for mode in self.modes
        ]  # fmt: skip


def state() -> list[Any]:
    """All of PyTorch's state that a mode can change, without our own modes."""
    functions = [_get_function_stack_at(i) for i in range(_len_torch_function_stack())]
    dispatch = [_get_dispatch_stack_at(i) for i in range(_len_torch_dispatch_stack())]
    stacks = ([type(mode) for mode in stack] for stack in (functions, dispatch))
    return [
        *([kind.__name__ for kind in stack if not kind.__module__.startswith("chainrule")] for stack in stacks),
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
    """What is left when all is over: ours among it, if it were. The call of a module takes off what had to stay."""
    nn.Identity()(0)
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


Outcome = dict[str, Any]


def each_step(
    recorded: Callable[[], AbstractContextManager[Any]], watched: Callable[..., AbstractContextManager[Any]]
) -> Callable[[tuple[Event, ...]], Outcome]:
    """A training whose steps run in `recorded()`, and as a whole in `watched(model, optimizer)`."""

    def run(events: tuple[Event, ...]) -> Outcome:
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
        course.end()
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
LAST = STEPS * 6


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
        torch._C._pop_torch_dispatch_stack(None)
    _python_dispatch._is_in_torch_dispatch_mode = False
    _python_dispatch._is_in_non_infra_torch_dispatch_mode = False
    _python_dispatch._is_in_any_mode_without_ignore_compile_internals = False
    torch.utils._device.CURRENT_DEVICE = None
    torch._GLOBAL_DEVICE_CONTEXT.device_context = None
    torch.set_grad_enabled(True)
    torch.set_autocast_enabled("cpu", False)
    torch.set_autocast_dtype("cpu", torch.bfloat16)
    torch.set_autocast_cache_enabled(True)
    torch.clear_autocast_cache()
    torch.set_anomaly_enabled(False)
    torch.set_default_dtype(torch.float32)
    while torch._C._autograd._top_saved_tensors_default_hooks(True):
        torch._C._autograd._pop_saved_tensors_default_hooks()
    torch._C._autograd._saved_tensors_hooks_enable()


def differing(*events: Event, apart_from: str = "") -> list[str]:
    """Where a run under chainrule differs from the bare one."""
    restore()
    expected, found = bare(events), []
    for name, run in RUNNERS.items():
        restore()
        got = run(events)
        parts = (part for part in got if part != apart_from and not same(expected[part], got[part]))
        found += [f"{name} {part}: {expected[part]} became {got[part]}" for part in parts]
    return found


PLACES = (
    (-1, 0), (-1, 4), (0, 1), (0, 2), (1, 2), (1, 5), (2, 3), (2, 4), (3, 4), (3, 5), (4, 5), (4, 8), (2, 7), (1, 6),
    (2, 9), (3, 13), (-1, 17),
)  # fmt: skip
FEW = 2
KEYS_RETURN = ((1, 5), (2, 4), (3, 4), (4, 8), (2, 7), (1, 6), (2, 9), (3, 13), (3, 5))
"""Where a recording ends in a block that began inside of it. What `inference_mode(False)` puts back when such a block
ends cannot be known: see docs/limitations.md."""


def placed(name: str) -> list[tuple[int, int]]:
    return [place for place in PLACES if name != "no-inference" or place not in KEYS_RETURN]


@pytest.mark.parametrize("name", MODES)
def test_a_mode_at_some_places(name: str) -> None:
    places = placed(name)
    first = list(MODES).index(name) * FEW
    for place in {places[(first + i) % len(places)] for i in range(FEW)}:
        assert differing((*place, name)) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", MODES)
def test_a_mode_at_every_place(name: str) -> None:
    for place in placed(name):
        assert differing((*place, name)) == []


CROSSING = (
    ((0, 2, "flops"), (1, 3, "operations")),
    ((1, 4, "operations"), (2, 5, "flops")),
    ((-1, 5, "functions"), (2, 6, "device")),
    ((1, 7, "device"), (3, 9, "functions")),
    ((2, 8, "default-device"), (3, 10, "doubling")),
    ((0, 3, "no-grad"), (1, 2, "grad"), (2, 4, "functions")),
    ((-1, 4, "autocast"), (2, 6, "no-autocast")),
    ((3, 10, "flops"), (4, 8, "debug")),
)


@pytest.mark.parametrize("events", CROSSING)
def test_modes_left_in_another_order(events: tuple[Event, ...]) -> None:
    assert differing(*events, apart_from="flags") == []


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(150))
def test_modes_at_random_places(seed: int) -> None:
    draw = random.Random(seed)
    # Inference mode puts back PyTorch's dispatch keys, so leaving it out of order breaks the bare run too. And leaving
    # a device in which a default device was set makes PyTorch forget the default.
    names = [name for name in MODES if "inference" not in name and name != "default-device"]
    events = []
    for _ in range(draw.choice((2, 2, 3))):
        enters = draw.randint(-1, 9)
        leaves = draw.choice((draw.randint(enters + 1, enters + 4), draw.randint(enters + 1, LAST)))
        events.append((enters, min(leaves, LAST), draw.choice(names)))
    assert differing(*events, apart_from="flags") == []
