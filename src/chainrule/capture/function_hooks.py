"""Hooks for every `autograd.Function` that is applied, around its `forward`. PyTorch has none of this kind.

To apply a function PyTorch reads `_backward_cls` of its class, and then `forward`, which it calls. While one of our
hooks is on, both are looked up by an attribute of the metaclass, which gives PyTorch, in a recorded thread, a `forward`
with the hooks around it. Whoever else reads the class finds what he would find without it.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch
from torch.autograd.function import BackwardCFunction, Function, FunctionMeta

from chainrule.capture.guard import here
from chainrule.capture.source import callers
from chainrule.pytorch_internals import make_autograd_impl

Enter = Callable[[type, tuple[Any, ...], FrameType | None], None]
Leave = Callable[[], None]


class _Applied(threading.local):
    cls: type | None = None  # whose `forward` PyTorch reads next


_applied = _Applied()


class FunctionHooks:
    """Our hooks, a pair by key: one before a forward, with class, arguments and caller, and one after it."""

    def __init__(self) -> None:
        self.ours: dict[Any, tuple[Enter, Leave]] = {}
        self._attributes = [_ClassAttribute("_backward_cls", self._begins), _ClassAttribute("forward", self._around)]

    def add(self, key: Any, value: tuple[Enter, Leave]) -> None:
        """Put a pair on."""
        self.ours[key] = value
        for each in self._attributes:
            each.put_on()

    def remove(self, key: Any) -> None:
        """Take it off, if it is on."""
        try:
            self.ours.pop(key, None)
        finally:
            for each in self._attributes:
                if not self.ours:
                    each.take_off()
                if self.ours:  # those of another thread, put on meanwhile
                    each.put_on()

    def _begins(self, cls: type, found: Any) -> Any:
        _applied.cls = cls
        return found

    def _around(self, cls: type, forward: Any) -> Any:
        begun, _applied.cls = _applied.cls is cls, None
        guard = here() if begun else None
        if guard is None:
            return forward
        try:
            if not issubclass(cls, Function) or is_of_operator(cls):
                return forward
        except BaseException as error:
            guard.failed(error)
        hooks = list(self.ours.values())

        def applied(*given: Any, **named: Any) -> Any:
            arguments = given[1:] if given and isinstance(given[0], BackwardCFunction) else given
            try:
                for enter, _ in hooks:
                    enter(cls, arguments, sys._getframe(1))
                return forward(*given, **named)
            finally:
                for _, leave in hooks:
                    leave()

        return applied


class _ClassAttribute:
    """An attribute of the metaclass, which Python asks before the class that has one of this name."""

    def __init__(self, name: str, seen: Callable[[type, Any], Any]) -> None:
        self._name, self._seen = name, seen

    def put_on(self) -> None:
        setattr(FunctionMeta, self._name, self)

    def take_off(self) -> None:
        if self._name in vars(FunctionMeta):
            delattr(FunctionMeta, self._name)

    def __get__(self, cls: type, meta: type) -> Any:
        for each in cls.__mro__:
            if self._name in vars(each):
                found = vars(each)[self._name]
                return self._seen(cls, found.__get__(None, cls) if hasattr(found, "__get__") else found)
        raise AttributeError(f"type object {cls.__name__!r} has no attribute {self._name!r}")

    def __set__(self, cls: type, value: Any) -> None:
        self.take_off()
        try:
            setattr(cls, self._name, value)
        finally:
            self.put_on()

    def __delete__(self, cls: type) -> None:
        self.take_off()
        try:
            delattr(cls, self._name)
        finally:
            self.put_on()


around_functions = FunctionHooks()


def is_of_operator(cls: type) -> bool:
    """Whether PyTorch made a function for a single operation (`torch.library.register_autograd`)."""
    return cls.__module__ == make_autograd_impl.__module__


def in_forward_of_function() -> bool:
    """Whether the forward of an `autograd.Function` is on this thread's stack, recorded or not."""
    codes = {getattr(each.forward, "__code__", None) for each in _subclasses(Function)}
    return not torch.is_grad_enabled() and any(each.f_code in codes for each in callers(sys._getframe(1)))


def _subclasses(cls: type) -> set[Any]:
    """Every class below this one."""
    below: set[Any] = set(type.__subclasses__(cls))
    return below.union(*map(_subclasses, below))
