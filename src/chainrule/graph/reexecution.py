"""Runs operations for ourselves: recorded ones again, on other data, and any work that the user's modes must not see.

Functions are the one part of a graph that is code; a file keeps their names. Gradient checks run an operation on other
data, unseen by autograd. Arguments have the names of the operation's schema.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._C import DisableTorchFunction, _len_torch_dispatch_stack, _len_torch_function_stack
from torch.autograd import forward_ad
from torch.overrides import _pop_mode as _pop_function_mode
from torch.overrides import _push_mode as _push_function_mode
from torch.utils._python_dispatch import _pop_mode, _push_mode


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


class unobserved:  # noqa: N801 (read as a word: `with unobserved():`)
    """No function mode, no dispatch mode and no autograd sees the operations in this block, and autocast leaves them.

    A tensor subclass still runs its own `__torch_dispatch__`: one that wraps other tensors has no memory, and PyTorch
    crashes when it is copied without (`torch._C._DisableTorchDispatch`). Costs less than PyTorch's own contexts.
    """

    __slots__ = ("_autocast", "_functions", "_grad", "_modes", "_tangents")

    def __enter__(self) -> None:
        self._functions = DisableTorchFunction()
        self._functions.__enter__()
        self._grad = torch.is_grad_enabled()
        torch._C._set_grad_enabled(False)
        self._modes = [_pop_mode() for _ in range(_len_torch_dispatch_stack())]
        self._autocast = _autocast_off()
        self._tangents = forward_ad._current_level >= 0 and torch._C._is_fwd_grad_enabled()
        if self._tangents:
            torch._C._set_fwd_grad_enabled(False)

    def __exit__(self, *raised: Any) -> None:
        if self._tangents:
            torch._C._set_fwd_grad_enabled(True)
        if self._autocast is not None:
            self._autocast.__exit__(*raised)
        while self._modes:
            _push_mode(self._modes.pop())
        torch._C._set_grad_enabled(self._grad)
        self._functions.__exit__(*raised)


@contextmanager
def apart() -> Iterator[None]:
    """Our own work, with autograd: what the user has set up around it neither sees nor changes it.

    Without the user's modes, autocast, inference mode, hooks on saved tensors and detection of anomalies. The default
    type of numbers is left as it is, because it is one for all threads.
    """
    functions = [_pop_function_mode() for _ in range(_len_torch_function_stack())]
    modes = [_pop_mode() for _ in range(_len_torch_dispatch_stack())]
    anomaly = torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()
    try:
        with ExitStack() as stack:
            if (autocast := _autocast_off()) is not None:
                stack.push(autocast)
            if torch.is_inference_mode_enabled():
                stack.enter_context(torch.inference_mode(False))
            if torch._C._autograd._top_saved_tensors_default_hooks(True) is not None:
                stack.enter_context(torch.autograd.graph.saved_tensors_hooks(_itself, _itself))
            if anomaly[0]:
                torch.set_anomaly_enabled(False)
            yield
    finally:
        if anomaly[0]:
            torch.set_anomaly_enabled(*anomaly)
        while modes:
            _push_mode(modes.pop())
        while functions:
            _push_function_mode(functions.pop())


def _autocast_off() -> Any:
    """A guard that was entered, or None where no autocast is on, which costs less."""
    if not torch._C._is_any_autocast_enabled():
        return None
    guard = torch._C._DisableAutocast()
    guard.__enter__()
    return guard


def _itself(tensor: Tensor) -> Tensor:
    return tensor
