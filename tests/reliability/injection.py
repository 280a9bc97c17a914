"""Makes code of ours fail at a chosen moment of a small training, and compares the training with one that nobody saw.

Nothing is patched: a trace function (`sys.settrace`) raises when a chosen function is entered for the n-th time, or
when a chosen line of ours is about to run. So every function and every line can fail, also those that another module
has imported by name, and in the middle of whatever PyTorch was doing when it called us.

What is tried is an `Observe`: it runs the steps of a training, each or all of them inside of whatever is to be tried.
"""

from __future__ import annotations

import gc
import importlib
import inspect
import os
import pkgutil
import random
import sys
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import CodeType, FrameType
from typing import Any

import torch
import torch._dynamo.eval_frame  # as checkpointing does: while the compiler is there, its stance may be left on
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules import module as module_hooks
from torch.optim import optimizer as optimizer_hooks
from torch.utils import _python_dispatch
from torch.utils.checkpoint import checkpoint

import chainrule
from chainrule.errors import ChainruleWarning

STEPS = 3
Step = Callable[[int], Tensor]
Observe = Callable[[nn.Module, torch.optim.Optimizer, Step], list[Tensor]]
"""Runs STEPS steps of a training and gives their losses, as `bare` does."""


INJECTED = "injected"


class InjectedError(RuntimeError):
    """The error that our code is made to raise."""


# -- the training -----------------------------------------------------------------------------------------------------


class _Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x * x

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 3 * x * x * upstream


class Model(nn.Module):
    """A little of everything that is recorded in a way of its own.

    Writes in place and through views, random numbers, buffers, a function with a `backward` of its own, both kinds of
    checkpoints, and tensors both below and above the size up to which numbers are always kept.
    """

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 96)
        self.norm = nn.BatchNorm1d(96)
        self.drop = nn.Dropout(0.2)
        self.block = nn.Sequential(nn.Linear(96, 96), nn.Tanh())
        self.last = nn.Linear(96, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.norm(self.first(x)), inplace=True)
        h = checkpoint(self.block, self.drop(h), use_reentrant=True)
        h = checkpoint(self.block, h, use_reentrant=False)
        h = h.clone()
        h[:, 0].mul_(2)
        return self.last(_Cube.apply(h))


def bare(model: nn.Module, optimizer: torch.optim.Optimizer, step: Step) -> list[Tensor]:
    """The training that nobody sees."""
    return [step(number) for number in range(STEPS)]


def train(observe: Observe) -> dict[str, Any]:
    """A small training, and all that it computes; each of its steps is made in another way."""
    torch.manual_seed(3)
    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    x, y = torch.randn(64, 8), torch.randint(4, (64,))

    def loss_of() -> Tensor:
        return F.cross_entropy(model(x), y)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = loss_of()
        loss.backward()
        return loss

    def step(number: int) -> Tensor:
        if number == 1:
            optimizer.step(closure)
            return loss_of().detach()
        optimizer.zero_grad(set_to_none=number == 0)
        loss = loss_of()
        if number == 2:
            slopes = torch.autograd.grad(loss, list(model.last.parameters()), create_graph=True)
            loss = loss + sum(slope.square().sum() for slope in slopes)
            model.last.bias.data = model.last.bias.data.clone()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.detach()

    losses = observe(model, optimizer, step)
    return {
        "losses": losses,
        "parameters": [parameter.detach() for parameter in model.parameters()],
        "gradients": [parameter.grad for parameter in model.parameters()],
        "buffers": list(model.buffers()),
        "optimizer": optimizer.state_dict(),
        "random": torch.get_rng_state(),
        "hooks": [
            {name: len(value) for name, value in vars(module).items() if name.endswith("_hooks")}
            for module in model.modules()
        ],
    }


def differences(left: Any, right: Any, place: str = "") -> list[str]:
    """Where two results of `train` differ, bit for bit."""
    if isinstance(left, Tensor) and isinstance(right, Tensor):
        return [] if left.dtype == right.dtype and torch.equal(left, right) else [place]
    if isinstance(left, dict) and isinstance(right, dict) and left.keys() == right.keys():
        return [each for key in left for each in differences(left[key], right[key], f"{place}.{key}")]
    if isinstance(left, (list, tuple)) and isinstance(right, (list, tuple)) and len(left) == len(right):
        pairs = enumerate(zip(left, right, strict=True))
        return [each for i, (one, other) in pairs for each in differences(one, other, f"{place}[{i}]")]
    return [] if type(left) is type(right) and left == right else [place]


# -- what may not be left on ------------------------------------------------------------------------------------------


def state_of_process() -> dict[str, Any]:
    """Everything of PyTorch's and Python's that recording or watching turns on for a while."""
    hooks = {
        name: (id(value), dict(value))
        for place in (module_hooks, optimizer_hooks)
        for name, value in vars(place).items()
        if name.startswith("_global_") and isinstance(value, dict)
    }
    flags = {name: value for name, value in vars(_python_dispatch).items() if name.startswith("_is_in_")}
    compiler = sys.modules.get("torch._dynamo.eval_frame")
    return {
        "hooks": hooks,
        "modes": (torch._C._len_torch_function_stack(), torch._C._len_torch_dispatch_stack()),
        "mode flags": flags,
        "functions seen": torch._C._is_torch_function_enabled(),
        "gradients on": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "saved tensors": torch._C._autograd._top_saved_tensors_default_hooks(True),
        "stance": None if compiler is None else compiler._stance.stance,
        "collector": (gc.isenabled(), gc.get_threshold()),
        "warnings": [(action, message and message.pattern, line) for action, message, _, _, line in warnings.filters],
    }


# -- moments ----------------------------------------------------------------------------------------------------------


def functions_of(*packages: str) -> dict[CodeType, str]:
    """Every function of these packages with its name, also those in classes and inside of other functions."""
    found: dict[CodeType, str] = {}
    for name in packages:
        package = importlib.import_module(name)
        inside = pkgutil.walk_packages(getattr(package, "__path__", []), f"{name}.")
        for module in (package, *(importlib.import_module(each.name) for each in inside)):
            code = compile(inspect.getsource(module), module.__file__ or "", "exec", dont_inherit=True)
            for each in _within(code):
                found[each] = f"{module.__name__}:{each.co_qualname}"
    return found


def _within(code: CodeType) -> Iterator[CodeType]:
    for each in code.co_consts:
        if isinstance(each, CodeType):
            is_class = "__module__" in each.co_names and not each.co_flags & inspect.CO_OPTIMIZED
            if not is_class and each.co_name not in ("<listcomp>", "<setcomp>", "<dictcomp>", "<genexpr>"):
                yield each
            yield from _within(each)


Place = tuple[str, int, str]
"""A function as a frame shows it: file, first line, name. (A code object of the running module is another object.)"""


def place_of(code: CodeType) -> Place:
    """The place of a function."""
    return code.co_filename, code.co_firstlineno, code.co_name


@dataclass
class Census:
    """What of ours ran during a training: how often each function was entered, and how often each line ran."""

    entered: Counter[Place] = field(default_factory=Counter)
    lines: Counter[tuple[str, int]] = field(default_factory=Counter)

    def ours(self, packages: tuple[str, ...]) -> dict[Place, str]:
        """The functions of these packages that were entered, with their names."""
        return {place_of(code): name for code, name in functions_of(*packages).items() if self.entered[place_of(code)]}


_ROOT = str(importlib.import_module("chainrule").__file__).removesuffix("__init__.py")


def take_census(observe: Observe, lines: bool = True) -> Census:
    """Run a training and count, after another one that fills the caches."""
    train(observe)
    census = Census()

    def local(frame: FrameType, event: str, argument: Any) -> Any:
        if event == "line":
            census.lines[frame.f_code.co_filename, frame.f_lineno] += 1
        return local

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        if not frame.f_code.co_filename.startswith(_ROOT):
            return None
        census.entered[place_of(frame.f_code)] += 1
        return local if lines else None

    _traced(trace, observe)
    return census


def _traced(trace: Any, observe: Observe) -> Any:
    return train(lambda model, optimizer, step: _under(trace, lambda: observe(model, optimizer, step)))


def _under(trace: Any, work: Callable[[], Any]) -> Any:
    before = sys.gettrace()
    sys.settrace(trace)
    try:
        return work()
    finally:
        sys.settrace(before)


def at_entry(place: Place, time: int, error: type[BaseException]) -> Any:
    """A trace function that raises when this function is entered for the n-th time."""
    left = [time]

    def trace(frame: FrameType, event: str, argument: Any) -> None:
        if left[0] and place_of(frame.f_code) == place:
            left[0] -= 1
            if not left[0]:
                raise error(INJECTED)

    return trace


def at_line(number: int, error: type[BaseException]) -> Any:
    """A trace function that raises before the n-th line of ours."""
    left = [number]

    def local(frame: FrameType, event: str, argument: Any) -> Any:
        if event == "line" and left[0]:
            left[0] -= 1
            if not left[0]:
                sys.settrace(None)
                raise error(f"{INJECTED} before {frame.f_code.co_filename.removeprefix(_ROOT)}:{frame.f_lineno}")
        return local

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        return local if frame.f_code.co_filename.startswith(_ROOT) else None

    return trace


@dataclass
class BeforeLine:
    """A trace function that interrupts before this line when it is reached for the n-th time."""

    file: str
    line: int
    left: int

    def __call__(self, frame: FrameType, event: str, argument: Any) -> Any:
        return self._local if frame.f_code.co_filename == self.file else None

    def _local(self, frame: FrameType, event: str, argument: Any) -> Any:
        if event == "line" and frame.f_lineno == self.line and self.left:
            self.left -= 1
            if not self.left:
                sys.settrace(None)
                raise KeyboardInterrupt(f"{INJECTED} before {self.file.removeprefix(_ROOT)}:{self.line}")
        return self._local


def interrupted(observe: Observe, moments: int, expected: dict[str, Any]) -> dict[str, list[str]]:
    """What is wrong after an interrupt at random lines of ours."""
    lines = int(0.98 * take_census(observe).lines.total())  # how many run depends a little on what is cached
    problems, draw = {}, random.Random(0)
    for moment in sorted(draw.randrange(1, lines + 1) for _ in range(moments)):
        trial = attempt(observe, at_line(moment, KeyboardInterrupt), expected)
        if found := trial.problems(interrupted=True):
            problems[f"line {moment}"] = [*found, str(trial.raised)]
    return problems


def interrupted_everywhere(observe: Observe, expected: dict[str, Any]) -> dict[str, list[str]]:
    """What is wrong after an interrupt before each line of ours, when it is reached first and in the middle."""
    problems = {}
    for (file, line), count in take_census(observe).lines.items():
        for time in {1, max(count // 2, 1)}:
            trace = BeforeLine(file, line, time)
            found = attempt(observe, trace, expected).problems(interrupted=True)
            if found and not trace.left:  # not every line is reached again: where fresh memory held a NaN, say
                problems[f"{file.removeprefix(_ROOT)}:{line}, time {time}"] = found
    return problems


def lines_of(function: str, work: Callable[[], Any]) -> list[int]:
    """The lines of a function ("file:name") that run in `work`, in the order in which they are reached."""
    reached: dict[int, None] = {}

    def local(frame: FrameType, event: str, argument: Any) -> Any:
        if event == "line":
            reached[frame.f_lineno] = None
        return local

    _under(lambda frame, event, argument: local if _named(frame) == function else None, work)
    return list(reached)


def interrupt_at(function: str, line: int, work: Callable[[], Any]) -> None:
    """Do `work`, and interrupt it when this line is reached."""

    def local(frame: FrameType, event: str, argument: Any) -> Any:
        if event == "line" and frame.f_lineno == line:
            sys.settrace(None)
            raise KeyboardInterrupt
        return local

    _under(lambda frame, event, argument: local if _named(frame) == function else None, work)


def _named(frame: FrameType) -> str:
    code = frame.f_code
    return f"{code.co_filename.removeprefix(_ROOT)}:{code.co_name}" if code.co_filename.startswith(_ROOT) else ""


# -- the trial --------------------------------------------------------------------------------------------------------


@dataclass
class Trial:
    """What came of a training in which something of ours failed."""

    raised: BaseException | None  # what reached the user
    lost: bool  # Python itself dropped the error: it was raised while an object was freed
    different: list[str]  # from the bare training
    left_on: dict[str, tuple[Any, Any]]
    again: str  # why the next recording failed
    warned: list[str]

    def problems(self, interrupted: bool) -> list[str]:
        """All that is wrong: the user sees an interrupt and no other error, and nothing else differs."""
        found = [f"differs: {each}" for each in self.different]
        found += [f"left on: {name}, {was} -> {now}" for name, (was, now) in self.left_on.items()]
        found += [f"the next recording: {self.again}"] if self.again else []
        if interrupted and not self.lost and not isinstance(self.raised, KeyboardInterrupt):
            found.append(f"the user did not see the interrupt but {self.raised!r}")
        if not interrupted and self.raised is not None:
            found.append(f"reached the user: {self.raised!r}")
        return found


def attempt(observe: Observe, trace: Any, expected: dict[str, Any]) -> Trial:
    """Run a training under a trace function that raises, and look at what is left of it."""
    before, before_functions = state_of_process(), torch._C._get_torch_function_state()
    lost: list[bool] = []
    hook, sys.unraisablehook = sys.unraisablehook, lambda dropped: lost.append(True)
    raised, results = None, None
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            results = _traced(trace, observe)
        except BaseException as error:
            if _ends_in_pytorch(error):
                torch.set_grad_enabled(before["gradients on"])
            raised = error.with_traceback(None)
            _forget(error)
        finally:
            sys.unraisablehook = hook
    after = state_of_process()
    torch.set_grad_enabled(before["gradients on"])  # or every later trial would fail too
    torch._C._set_torch_function_state(before_functions)
    return Trial(
        raised,
        bool(lost),
        [] if results is None else differences(expected, results),
        {name: (before[name], after[name]) for name in before if before[name] != after[name]},
        _record_again(),
        [str(each.message) for each in told if issubclass(each.category, ChainruleWarning)],
    )


def _ends_in_pytorch(error: BaseException) -> bool:
    """Whether it came while PyTorch's `no_grad` began or ended, which leaves gradients off without us too."""
    frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
    return any(frame.f_code.co_filename.endswith(os.path.join("autograd", "grad_mode.py")) for frame in frames)


def _forget(error: BaseException | None) -> None:
    """Let go of the frames of an error and of those behind it, as the end of a program's `except` does."""
    while error is not None:
        error.__traceback__, error = None, error.__context__


def _record_again() -> str:
    """Why a recording now would fail; "" where it is whole."""
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    try:
        with chainrule.record() as recording:
            loss = model(torch.ones(2, 2)).sum()
            loss.backward()
            optimizer.step()
        if recording.loss != loss.item() or len(recording.graph.modules) != 4 or len(recording.graph.updates) != 1:
            return f"is not whole: {recording!r}"
        recording.graph.values[0]
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
    return ""
