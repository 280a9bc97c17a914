"""Runs operations for ourselves: recorded ones again, on other data, and any work that the user's modes must not see.

Functions are the one part of a graph that is code; a file keeps their names. Gradient checks run an operation on other
data, unseen by autograd. Arguments have the names of the operation's schema.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from chainrule.pytorch_internals import (
    _DisableAutocast,
    _get_dispatch_stack_at,
    _get_function_stack_at,
    _get_torch_function_state,
    _is_any_autocast_enabled,
    _is_fwd_grad_enabled,
    _len_torch_dispatch_stack,
    _len_torch_function_stack,
    _pop_torch_dispatch_stack,
    _pop_torch_function_stack,
    _push_on_torch_dispatch_stack,
    _push_on_torch_function_stack,
    _set_fwd_grad_enabled,
    _set_grad_enabled,
    _set_torch_function_state,
    _top_saved_tensors_default_hooks,
    _TorchFunctionState,
    forward_level,
)

_functions_off = _TorchFunctionState.ALL_DISABLED


class Reexecution:
    """Runs a recorded operation again on other data, with gradients off: `function({"self": x, "other": y})`."""

    def __init__(self, function: Any) -> None:
        self.function = function

    def __call__(self, arguments: dict[str, Any], gradients: bool = False) -> Any:
        """The result on these arguments; an in-place operation writes to them.

        With `gradients` on, some operations also return tensors for their backward.
        """
        if isinstance(self.function, type):
            with torch.no_grad():
                return self.function.apply(*arguments.values())  # type: ignore[attr-defined]
        with torch.set_grad_enabled(gradients):
            if isinstance(self.function, WriteThroughView):
                return self.function(**arguments)
            return call_overload(self.function, arguments)


class WriteThroughView:
    """An in-place operation on a view, as a function of the view's base, which is what autograd makes of it.

    `function(base=..., **arguments)` returns the base after the write, and the view. `offset` is where in the base
    the view begins, in the view's elements.
    """

    def __init__(self, function: Any, argument: str, base: Tensor, view: Tensor, offset: int) -> None:
        self.function, self.argument = function, argument
        self.size, self.stride = tuple(view.shape), tuple(view.stride())
        self.real = base.is_complex() and not view.is_complex()
        self.offset = offset
        self.layout = tuple(base.shape), tuple(base.stride())

    def __call__(self, /, base: Tensor, **arguments: Any) -> tuple[Tensor, Tensor]:
        """The base after the write, and the view; writes to copies alone."""
        after = torch.empty_strided(*self.layout, dtype=base.dtype, device=base.device).copy_(base)
        whole = torch.view_as_real(after) if self.real else after
        if arguments[self.argument].is_complex() and not after.is_complex():
            whole = torch.view_as_complex(after)
        view = whole.as_strided(self.size, self.stride, self.offset if whole.numel() else 0)
        call_overload(self.function, {**arguments, self.argument: view})
        return after, view


def offset_in(base: Tensor, view: Tensor) -> int:
    """Where in the base a view begins, in the view's elements."""
    return (view.storage_offset() * view.itemsize - base.storage_offset() * base.itemsize) // view.itemsize


def call_overload(function: Any, arguments: dict[str, Any]) -> Any:
    """Run an ATen operation on arguments given by the names of its schema."""
    schema = function._schema.arguments
    positional = [arguments[a.name] for a in schema if not a.kwarg_only]
    return function(*positional, **{a.name: arguments[a.name] for a in schema if a.kwarg_only})


class ModeStack:
    """PyTorch's modes of one kind that are on in this thread."""

    def __init__(
        self,
        length: Callable[[], int],
        at: Callable[[int], Any],
        push: Callable[[Any], None],
        pop: Callable[[], Any],
    ) -> None:
        self._length, self._at, self._push, self._pop = length, at, push, pop

    def modes(self) -> list[Any]:
        """The modes, the outermost first."""
        return [self._at(place) for place in range(self._length())]

    def any(self) -> bool:
        """Whether a mode is on."""
        return self._length() > 0

    def set(self, wanted: list[Any]) -> None:
        """Make these the modes, also where an interrupt comes on the way."""
        try:
            self._settle(wanted)
        except BaseException:
            self._settle(wanted)
            raise

    def _settle(self, wanted: list[Any]) -> None:
        present, same = self._length(), 0
        while same < present and same < len(wanted) and self._at(same) is wanted[same]:
            same += 1
        for _ in range(present - same):
            self._pop()
        for mode in wanted[same:]:
            self._push(mode)


dispatch_modes = ModeStack(
    _len_torch_dispatch_stack,
    _get_dispatch_stack_at,
    _push_on_torch_dispatch_stack,
    lambda: _pop_torch_dispatch_stack(None),
)
function_modes = ModeStack(
    _len_torch_function_stack, _get_function_stack_at, _push_on_torch_function_stack, _pop_torch_function_stack
)


class unobserved:  # noqa: N801 (read as a word: `with unobserved():`)
    """No function mode, no dispatch mode and no autograd sees the operations in this block, and autocast leaves them.

    A tensor subclass still runs its own `__torch_dispatch__`: one that wraps other tensors has no memory, and PyTorch
    crashes when it is copied without (`_DisableTorchDispatch`). Costs less than PyTorch's own contexts.
    """

    __slots__ = ("__weakref__", "_autocast", "_functions", "_grad", "_modes", "_tangents")

    def __enter__(self) -> None:
        try:
            self._begin()
            _set_grad_enabled(False)
            dispatch_modes.set([])
            self._autocast = _autocast_off()
            if self._tangents:
                _set_fwd_grad_enabled(False)
        except BaseException:  # an interrupt, after which Python calls no `__exit__`
            self._end()
            raise

    def _begin(self) -> None:
        self._functions, self._grad = _get_torch_function_state(), torch.is_grad_enabled()
        self._modes = dispatch_modes.modes()
        self._autocast = None
        self._tangents = forward_level() >= 0 and _is_fwd_grad_enabled()
        _open.blocks[id(self)] = weakref.ref(self)
        _set_torch_function_state(_functions_off)

    def __exit__(self, *raised: Any) -> None:
        try:
            self._restore()
        finally:
            self._end()

    def _restore(self) -> None:
        # A block within this one that an interrupt kept from ending would later bring its own state back.
        while id(self) in _open.blocks and (last := next(reversed(_open.blocks))) != id(self):
            inner = _open.blocks[last]()
            if inner is not None:
                inner._restore()
            _open.blocks.pop(last, None)
        if self._tangents:
            _set_fwd_grad_enabled(True)
        if self._autocast is not None:
            guard, self._autocast = self._autocast, None
            guard.__exit__(None, None, None)
        dispatch_modes.set(self._modes)
        _set_grad_enabled(self._grad)
        _set_torch_function_state(self._functions)
        _open.blocks.pop(id(self), None)

    def _end(self) -> None:
        if id(self) in _open.blocks:  # an interrupt came before the end of `_restore`
            self._restore()

    __del__ = _end


class functions_unobserved(unobserved):  # noqa: N801
    """As `unobserved`, but for function modes alone: dispatch modes see the operations, and gradients stay as they are.

    PyTorch's own context for this has no way back where an interrupt comes between its block and its end.
    """

    __slots__ = ()

    def __enter__(self) -> None:
        try:
            self._begin()
        except BaseException:
            self._end()
            raise


def hidden() -> AbstractContextManager[None]:
    """`unobserved` where the user has a mode on; where none is, nothing, which costs less."""
    return unobserved() if dispatch_modes.any() or function_modes.any() else _nothing


_nothing = nullcontext()


class _Open(threading.local):
    def __init__(self) -> None:
        self.blocks: dict[int, weakref.ref[unobserved]] = {}  # of this thread, the outermost first


_open = _Open()


def close_interrupted() -> None:
    """End the blocks of `unobserved` that an interrupt kept from ending."""
    for known in reversed(list(_open.blocks.values())):
        if (block := known()) is not None:
            block.__exit__()


@contextmanager
def apart() -> Iterator[None]:
    """Our own work, with autograd: what the user has set up around it neither sees nor changes it.

    Without the user's modes, autocast, inference mode, hooks on saved tensors and detection of anomalies. The default
    type of numbers is left as it is, because it is one for all threads.
    """
    functions, modes = function_modes.modes(), dispatch_modes.modes()
    anomaly = torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()
    try:
        function_modes.set([])
        dispatch_modes.set([])
        with ExitStack() as stack:
            if (autocast := _autocast_off()) is not None:
                stack.push(autocast)
            if torch.is_inference_mode_enabled():
                stack.enter_context(torch.inference_mode(False))
            if _top_saved_tensors_default_hooks(True) is not None:
                stack.enter_context(torch.autograd.graph.saved_tensors_hooks(_itself, _itself))
            if anomaly[0]:
                torch.set_anomaly_enabled(False)
            yield
    finally:
        if anomaly[0]:
            torch.set_anomaly_enabled(*anomaly)
        dispatch_modes.set(modes)
        function_modes.set(functions)


def _autocast_off() -> Any:
    """A guard that was entered, or None where no autocast is on, which costs less."""
    if not _is_any_autocast_enabled():
        return None
    guard = _DisableAutocast()
    guard.__enter__()
    return guard


def _itself(tensor: Tensor) -> Tensor:
    return tensor
