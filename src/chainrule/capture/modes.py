"""The two modes of PyTorch's that a recorder puts on: one sees what the user wrote, one each ATen operation."""

from __future__ import annotations

import sys
import threading
from types import FrameType
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn
from torch._C import (
    _are_functorch_transforms_active,
    _current_graph_task_id,
    _get_function_stack_at,
    _len_torch_dispatch_stack,
    _len_torch_function_stack,
)
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode

# By the names of their operations: none of them writes, makes a view, draws numbers, or is cast by autocast.
_ELEMENTWISE = frozenset(
    f"aten::{name}"
    for name in (
        "abs", "add", "cos", "div", "maximum", "minimum", "mul", "neg", "relu", "rsub", "sigmoid", "silu", "sin",
        "sqrt", "sub", "tanh",
    )
)  # fmt: skip
_KINDS = frozenset({Tensor, nn.Parameter, int, float, bool})

_set_aside = torch.ops.aten.detach.default

Key = tuple[Any, ...]  # the function, and the types of its arguments


class Direct:
    """What has been learnt; `known.get((function, *map(type, arguments)))` is the operation, or None."""

    def __init__(self) -> None:
        self.known: dict[Key, Any] = {}

    def learn(self, function: Any, arguments: tuple[Any, ...], out: Any, operations: list[tuple[Any, ...]]) -> None:
        """Look at a call for which these operations of the tape ran."""
        func, given, keywords, result = operations[0][:4]
        if keywords or result is not out or func._schema.name not in _ELEMENTWISE or len(given) != len(arguments):
            return
        # A function that goes back by its result has autograd set that aside.
        if any(each[0] is not _set_aside or each[1][0] is not out for each in operations[1:]):
            return
        key = (function, *map(type, arguments))
        if _KINDS.issuperset(key[1:]) and all(map(_same, arguments, given)) and applies():
            self.known[key] = func


def _same(one: Any, other: Any) -> bool:
    return one is other if isinstance(one, Tensor) else type(one) is type(other) and bool(one == other)


def applies() -> bool:
    """Whether a call runs now as it did when it was learnt: no other mode, no transform, no backward pass around it."""
    return (
        _len_torch_dispatch_stack() == 1 and _current_graph_task_id() == -1 and not _are_functorch_transforms_active()
    )


BACKWARD = frozenset({Tensor.backward, torch.autograd.backward, torch.autograd.grad})


class Watcher(Protocol):
    """What the modes report to."""

    directly: Direct

    def dispatch(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None) -> Any:
        """Run an ATen operation."""

    def call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a torch function."""

    def direct(self, operation: Any, func: Any, args: tuple[Any, ...]) -> Any:
        """Run a torch function of which it is known that it runs just this operation."""

    def backward(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run `backward` or `grad`."""


class Nobody:
    """Lets everything pass: what modes report to that cannot be taken off yet."""

    def __init__(self) -> None:
        self.directly = Direct()

    def dispatch(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None) -> Any:
        """Run an ATen operation."""
        return func(*args, **(kwargs or {}))

    def call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a torch function."""
        return func(*args, **kwargs)

    def direct(self, operation: Any, func: Any, args: tuple[Any, ...]) -> Any:
        """Run a torch function."""
        return func(*args)

    backward = call


class DispatchMode(TorchDispatchMode):
    """Sees each ATen operation, below autograd."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Otherwise the base class imports PyTorch's compiler, which takes more than a second. It only keeps the
        # compiler from tracing into `__torch_dispatch__`, and compiled code is run eagerly while we record.
        return False

    def __init__(self, recorder: Watcher) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.recorder = recorder

    def __enter__(self) -> Self:
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        super().__exit__(kind, error, trace)  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return self.recorder.dispatch(func, args, kwargs)


class FunctionMode(TorchFunctionMode):
    """Sees each torch function that the user's code calls."""

    def __init__(self, recorder: Watcher) -> None:
        super().__init__()
        self.recorder = recorder

    def __enter__(self) -> Self:
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        super().__exit__(kind, error, trace)  # type: ignore[no-untyped-call]

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        recorder = self.recorder
        if not kwargs:
            operation = recorder.directly.known.get((func, *map(type, args)))
            if operation is not None and applies():
                return recorder.direct(operation, func, args)
        if func in BACKWARD:
            return recorder.backward(func, args, kwargs or {})
        return recorder.call(func, args, kwargs or {})


class LeftOn(threading.local):
    """Modes that had to stay on when a recording ended, in this thread: nobody looks through them any more.

    `torch.compile` puts the thread's dispatch keys back, when the code that it made returns, as they were when it was
    called. A mode that is taken off inside of it leaves its key behind, and the next operation fails in PyTorch. So it
    is taken off when no such code is around it.
    """

    modes: tuple[DispatchMode | FunctionMode, ...] = ()

    def leave(self, *modes: DispatchMode | FunctionMode) -> None:
        """Modes that are on, the innermost first."""
        for mode in modes:
            mode.recorder = Nobody()
        self.modes = modes

    def take_off(self, for_others: bool = False) -> bool:
        """Take them off, if that can be done now; whether none is on.

        Where others are put on at once (`for_others`) it can be done in compiled code too: the keys stay.
        """
        if self.modes and (for_others or not in_compiled_code()) and all(map(is_innermost, self.modes)):
            modes, self.modes = self.modes, ()
            for mode in modes:
                mode.__exit__(None, None, None)
        return not self.modes


left_on = LeftOn()


def is_innermost(mode: DispatchMode | FunctionMode) -> bool:
    """Whether no other mode of its kind was put on since."""
    if isinstance(mode, DispatchMode):
        return _get_current_dispatch_mode() is mode
    return bool(_len_torch_function_stack()) and _get_function_stack_at(_len_torch_function_stack() - 1) is mode


def in_compiled_code() -> bool:
    """Whether a function that `torch.compile` made is around us, be it run without the compiler."""
    if "torch._dynamo.eval_frame" not in sys.modules:
        return False
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == "compile_wrapper" and frame.f_code.co_filename.endswith("eval_frame.py"):
            return True
        frame = frame.f_back
    return False
