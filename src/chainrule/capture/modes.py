"""The two modes that a recorder puts on: one sees each torch function that the user calls, one each ATen operation."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FunctionType
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.compiler import is_dynamo_compiling
from torch.overrides import TorchFunctionMode

from chainrule.capture.compiler import compiles_for_itself
from chainrule.capture.global_hooks import before_forward
from chainrule.capture.guard import Guard
from chainrule.capture.own_mode import NUMBERS, OwnMode, go_on, is_higher_order, run_inside, with_tensors
from chainrule.capture.source import callers
from chainrule.capture.traits import Traits
from chainrule.capture.wrapped_functions import original
from chainrule.graph.reexecution import ModeStack, dispatch_modes, function_modes
from chainrule.pytorch_internals import (
    DeviceContext,
    _are_functorch_transforms_active,
    _current_graph_task_id,
    _get_dispatch_stack_at,
    _is_tracing,
    _len_torch_dispatch_stack,
    _pop_mode,
    _push_mode,
    compiler_is_loaded,
)

BACKWARD = frozenset({"torch._tensor.Tensor.backward", "torch.autograd.backward", "torch.autograd.grad"})

_KINDS = frozenset({Tensor, nn.Parameter, int, float, bool})


class DispatchBypass:
    """Functions known to run one elementwise operation on their own arguments, so that the function mode sees enough.

    `known.get((id(function), *map(type, arguments)))` is that operation, and the function. Which functions these are is
    learnt from calls that went through both modes; the operation of an elementwise one depends on the types of its
    arguments alone. The dispatch mode costs several times more than a tiny operation: without the bypass a step of
    1,000 tiny operations takes 35 % longer to record.
    """

    def __init__(self) -> None:
        self.known: dict[tuple[Any, ...], tuple[Any, Any]] = {}

    def learn(self, function: Any, arguments: tuple[Any, ...], out: Any, operations: list[tuple[Any, ...]]) -> None:
        """Look at a call for which these operations of the tape ran."""
        func, given, keywords, result = operations[0][:4]
        if keywords or result is not out or not Traits.of(func).elementwise or len(given) != len(arguments):
            return
        # Autograd detaches the result of a function whose derivative needs it.
        if any(not Traits.of(each[0]).detaches or each[1][0] is not out for each in operations[1:]):
            return
        key = (id(function), *map(type, arguments))
        if _KINDS.issuperset(key[1:]) and all(map(_same, arguments, given)) and bypass_applies():
            self.known[key] = func, function  # which keeps its id


def _same(one: Any, other: Any) -> bool:
    return one is other if isinstance(one, Tensor) else type(one) is type(other) and bool(one == other)


def bypass_applies() -> bool:
    """Whether a call runs as it did when it was learnt: no other mode, no transform, no backward pass around it.

    A trace for TorchScript notes the line that runs each operation, and PyTorch compares two traces with one another:
    all of their operations run by the same line of ours.
    """
    return (
        _len_torch_dispatch_stack() == 1
        and type(_get_dispatch_stack_at(0)) is DispatchMode  # not a mode of PyTorch's, which takes ours off to trace
        and _current_graph_task_id() == -1
        and not _are_functorch_transforms_active()
        and not _is_tracing()
    )


class Observer(Protocol):
    """What the modes report to."""

    bypass: DispatchBypass
    guard: Guard

    def dispatch(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None) -> Any:
        """Run an ATen operation."""

    def call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a torch function."""

    def call_bypassing(self, operation: Any, func: Any, args: tuple[Any, ...]) -> Any:
        """Run a torch function that is known to run this operation alone."""

    def backward(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run `backward` or `grad`."""


class DispatchMode(OwnMode):
    """Sees each ATen operation, below autograd."""

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Whether PyTorch compiles although this mode is on: what it hands to its higher-order operators.

        Only so do tensors that a branch takes from around it get gradients.
        """
        return compiles_for_itself()

    def __init__(self, observer: Observer) -> None:
        super().__init__()
        self.observer: Observer | None = observer  # None: nobody looks, and everything passes
        self.inference = torch.is_inference_mode_enabled()  # where its recording began

    # Without the base class, which sets flags for the whole process: other threads would find them set, and of two
    # recordings that overlap one would set them for good. The compiler looks at the stack of modes.

    def __enter__(self) -> DispatchMode:
        _push_mode(self)
        return self

    def __exit__(self, *raised: object) -> None:
        _pop_mode()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if args and type(args[0]) in NUMBERS:
            args = with_tensors(func, args)
        observer = self.observer
        return func(*args, **(kwargs or {})) if observer is None else observer.dispatch(func, args, kwargs)


class FunctionMode(TorchFunctionMode):
    """Sees each torch function that the user's code calls."""

    def __init__(self, observer: Observer) -> None:
        super().__init__()
        self.observer: Observer | None = observer

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if is_dynamo_compiling():  # the compiler reads this function, and finds that the call passes
            return func(*args, **(kwargs or {}))
        observer = self.observer
        if observer is None:
            return func(*args, **(kwargs or {}))
        known = None
        try:
            if not kwargs:
                known = observer.bypass.known.get((id(func), *map(type, args)))
                if known is not None and not bypass_applies():
                    known = None
            if known is None:
                func = original(func, sys._getframe(1))
        except BaseException as error:
            observer.guard.failed(error)
        if known is not None:
            return observer.call_bypassing(known[0], func, args)
        if is_higher_order[type(func)]:  # what the user calls are the functions that it runs
            return go_on(func, args, kwargs or {}, self)
        if type(func) is FunctionType and f"{func.__module__}.{func.__qualname__}" in BACKWARD:
            return observer.backward(func, args, kwargs or {})
        return observer.call(func, args, kwargs or {})


def put_on(mode: DispatchMode | FunctionMode) -> None:
    """Put a mode on beneath the user's, so that whatever the user takes off, in any order, is never ours.

    PyTorch takes off whichever mode lies on top. Beneath ours stay the modes that PyTorch itself keeps at the bottom.
    """
    stack = _stack(mode)
    modes = stack.modes()
    place = 1 + max((place for place, each in enumerate(modes) if _stays_beneath(each)), default=-1)
    stack.set([*modes[:place], mode, *modes[place:]])


def take_off(mode: DispatchMode | FunctionMode) -> bool:
    """Take a mode off, wherever in the stack it lies; False where it is not on (it handles a call at the moment)."""
    stack = _stack(mode)
    modes = stack.modes()
    for place in reversed(range(len(modes))):
        if modes[place] is mode:
            stack.set([*modes[:place], *modes[place + 1 :]])
            return True
    return False


def _stack(mode: DispatchMode | FunctionMode) -> ModeStack:
    return dispatch_modes if isinstance(mode, DispatchMode) else function_modes


def _stays_beneath(mode: Any) -> bool:
    """Whether PyTorch keeps a mode at the bottom: that of `set_default_device`, or one of its own dispatch modes.

    A device that is the context of a `with` statement is a mode like the user's: it was put on without `__enter__`.
    """
    if isinstance(mode, DeviceContext):
        return hasattr(mode, "old_device")
    return getattr(mode, "_mode_key", None) is not None


class LeftOn(threading.local):
    """Modes of this thread that had to stay on when their recording ended; they report to nobody.

    `torch.compile` restores the thread's dispatch keys when the code that it made returns, and inference mode when it
    ends. A mode that was taken off inside of these would leave its key behind, and the next operation would fail in
    PyTorch. While a mode handles a call, PyTorch has taken it off, and puts it on again afterwards; so does autograd
    with the modes around a backward pass, inside of which an optimizer may step. Such modes are taken off as soon as
    that is possible, when a module is called at the latest; beneath the user's they disturb nothing.
    """

    modes: tuple[DispatchMode | FunctionMode, ...] = ()
    _waiting: object = None  # the key of a hook on forward passes

    def leave(self, *modes: DispatchMode | FunctionMode) -> None:
        """Take modes off for good, now or later."""
        for mode in modes:
            mode.observer = None
        self.modes += tuple(mode for mode in modes if not any(mode is each for each in self.modes))
        if not self.take_off() and self._waiting is None:
            self._waiting = object()
            before_forward.add(self._waiting, self._at_forward)

    def take_off(self, for_others: bool = False) -> bool:
        """Take them off, if that is possible now; whether none is on.

        It is possible in compiled code too where others are put on at once (`for_others`): the keys stay.
        """
        if self.modes and (for_others or not in_compiled_code()):
            inference, in_backward = torch.is_inference_mode_enabled(), _current_graph_task_id() != -1
            self.modes = tuple(
                mode
                for mode in self.modes
                if (isinstance(mode, DispatchMode) and inference and not mode.inference)
                or (not _all_off(mode) and _is_running(mode))
                or in_backward
            )
        if not self.modes and self._waiting is not None:
            before_forward.remove(self._waiting)
            self._waiting = None
        return not self.modes

    def _at_forward(self, module: nn.Module, args: Any) -> None:
        if not torch.compiler.is_compiling():
            self.take_off()


left_on = LeftOn()


def _all_off(mode: DispatchMode | FunctionMode) -> bool:
    """Take a mode off as often as it is on; whether it was on at all."""
    found = take_off(mode)
    while take_off(mode):
        pass
    return found


def _is_running(mode: DispatchMode | FunctionMode) -> bool:
    """Whether a mode handles a call at the moment."""
    handlers = DispatchMode.__torch_dispatch__.__code__, FunctionMode.__torch_function__.__code__
    return any(frame.f_code in handlers and frame.f_locals["self"] is mode for frame in callers(sys._getframe(1)))


def in_compiled_code() -> bool:
    """Whether a function that `torch.compile` made is on the stack, even if it runs without the compiler."""
    if not compiler_is_loaded():
        return False
    return any(
        frame.f_code.co_name == "compile_wrapper" and frame.f_code.co_filename.endswith("eval_frame.py")
        for frame in callers(sys._getframe(1))
    )


class Modes:
    """Both modes of one recording: on, off, and paused while PyTorch works for itself."""

    def __init__(self, observer: Observer) -> None:
        self.paused = False
        self._dispatch, self._function = DispatchMode(observer), FunctionMode(observer)
        self._taken: list[DispatchMode | FunctionMode] = []  # off for a pause
        self._inside: list[bool] = []  # for each Python function whose backward is running: whether a pause was ended

    def enter(self) -> None:
        """Put both on."""
        put_on(self._function)
        put_on(self._dispatch)

    def blind(self) -> None:
        """Let everything pass from now on."""
        self._dispatch.observer = self._function.observer = None  # they held the recorder, which holds us: a cycle

    def leave(self) -> None:
        """Take both off, for good, wherever a pause or an error has left them. May be called again."""
        self.blind()
        self._taken.clear()  # a pause that ends later puts nothing on
        left_on.leave(self._dispatch, self._function)

    def pause(self) -> None:
        """Let operations pass unseen: what is on is taken off, and a flag is set for what handles a call."""
        self.paused = True
        self._taken += [mode for mode in (self._dispatch, self._function) if take_off(mode)]

    def resume(self) -> None:
        """End a pause, if there is one."""
        self.paused = False
        while self._taken:
            put_on(self._taken.pop())

    @contextmanager
    def during_backward(self, pauses: bool) -> Iterator[None]:
        """Pause for a backward pass, unless a pause is on already; only without `create_graph` (`pauses`)."""
        pauses = pauses and not self.paused
        if pauses:
            self.pause()
        depth, taken, paused = len(self._inside), list(self._taken), self.paused
        try:
            yield
        finally:
            if len(self._inside) > depth:  # a function raised; autograd has put the modes back as they were before it
                del self._inside[depth:]
                self._taken, self.paused = taken, paused
            if pauses:
                self.resume()

    @property
    def in_function(self) -> bool:
        """Whether the backward of a Python function is running, which is seen."""
        return bool(self._inside) and not self.paused

    def sees_operations(self) -> bool:
        """Whether the dispatch mode is on, or off for a pause of ours: PyTorch takes it off too, where it traces."""
        stack = map(_get_dispatch_stack_at, range(_len_torch_dispatch_stack()))
        return self.paused or any(mode is self._dispatch for mode in stack)

    def inside(self, operator: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a higher-order operator for which PyTorch has taken the dispatch mode off, and see what runs in it."""
        return run_inside(operator, args, kwargs, self._dispatch)

    def enter_function(self) -> None:
        """The backward of a Python function begins: it is recorded, as checkpointing runs whole passes in there."""
        self._inside.append(self.paused)
        if self.paused:
            self.resume()
        put_on(self._function)

    def leave_function(self) -> None:
        """It has ended: a pause goes on."""
        if self._inside:
            take_off(self._function)
            if self._inside.pop():
                self.pause()
