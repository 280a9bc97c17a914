"""Runs a user's own Python once more and leaves nothing of it behind: an `autograd.Function`, forward or backward.

Such code may do anything: call a module that counts and has running statistics (a reentrant checkpoint does), append to
a list, draw random numbers, print. Three things keep a check from changing what it looks at.

A write to a tensor that the code did not make itself is refused before it happens. What Python changes (attributes,
lists, dicts, sets, global names, `.grad`) is put back: the objects that the code leads to are looked through before,
and compared after. And code that leads to what can be neither refused nor put back (an open file, an iterator, a
logger, another process) is not run at all.
"""

from __future__ import annotations

import builtins
import io
import logging
import sys
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any, TypeVar

import torch
from torch import Tensor

from chainrule.capture.data_parallel import storage_of
from chainrule.capture.own_mode import OwnMode, is_higher_order, run_inside
from chainrule.capture.source import is_library
from chainrule.capture.traits import Traits
from chainrule.graph.trees import tensors_in
from chainrule.rules.facts import facts_of

T = TypeVar("T")

MOST = 50_000  # objects that are looked through
_REACHES_OUT = frozenset(
    {"os", "subprocess", "socket", "shutil", "pathlib", "tempfile", "threading", "multiprocessing", "asyncio"}
    | {"sqlite3", "urllib", "http", "requests", "signal", "atexit", "ctypes", "importlib"}
)
_CALLS_OUT = frozenset({"open", "input", "exec", "eval", "__import__", "breakpoint"})
_plain = (int, float, complex, str, bytes, type(None), type(Ellipsis), torch.dtype, torch.device, torch.layout)


class SideEffectError(Exception):
    """Running the user's code again would change something; the message says what."""


class UserCode:
    """The user's code behind a function, with what it could change. `run` runs something that calls it."""

    def __init__(self, *roots: Any) -> None:
        self.obstacle = ""
        self._back: list[Callable[[], None]] = []  # each puts one object back
        self._names: dict[int, str] = {}  # id of a tensor -> where it was found
        self._seen: dict[int, Any] = {}
        self._waiting: list[tuple[Any, str]] = [(each, "") for each in roots]
        while self._waiting and not self.obstacle:
            found, name = self._waiting.pop()
            if not isinstance(found, _plain) and id(found) not in self._seen:
                self._seen[id(found)] = found
                self._look(found, name)
                if len(self._seen) > MOST:
                    self.obstacle = "it leads to more objects than can be looked through"

    def run(self, work: Callable[[], T], own: Any = ()) -> T:
        """What `work` gives; `own` tensors may be overwritten. Raises SideEffectError where it must not run."""
        if self.obstacle:
            raise SideEffectError(f"it is not run again: {self.obstacle}")
        with self.restored(), _muted(), _NoWrites(own, self._names) as refusal:
            result = work()
        if refusal.refused:  # which the user's code may have caught
            raise SideEffectError(refusal.refused)
        return result

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Put back at the end what Python changed meanwhile; nothing is refused."""
        with _settings_restored():
            try:
                yield
            finally:
                for put_back in self._back:
                    put_back()

    def tensors(self) -> list[Tensor]:
        """The tensors that the code leads to."""
        return [each for each in self._seen.values() if isinstance(each, Tensor)]

    # -- what the code leads to ---------------------------------------------------------------------------------------

    def _look(self, found: Any, name: str) -> None:
        if isinstance(found, Tensor):
            self._tensor(found, name)
        elif isinstance(found, FunctionType):
            if not is_library(found.__code__):
                self._function(found)
        elif isinstance(found, MethodType):
            self._add((found.__self__, name), (found.__func__, name))
        elif isinstance(found, partial):
            self._add((found.func, name), (found.args, name), (found.keywords, name))
        elif isinstance(found, (staticmethod, classmethod)):
            self._add((found.__func__, name))
        elif isinstance(found, property):
            self._add((found.fget, name), (found.fset, name))
        elif isinstance(found, (tuple, frozenset)):
            self._add(*((each, name) for each in found))
        elif isinstance(found, type):
            self._class(found)
        elif isinstance(found, ModuleType):
            if found.__name__.partition(".")[0] in _REACHES_OUT:
                self.obstacle = f"it uses `{found.__name__}`"
        elif isinstance(found, logging.Logger):
            self.obstacle = "it logs"
        elif isinstance(found, io.IOBase):
            self.obstacle = "it has a file"
        elif isinstance(found, Iterator):
            self.obstacle = f"it reads from an iterator (a {type(found).__name__})"
        elif not isinstance(found, BuiltinFunctionType):
            self._object(found, name)

    def _add(self, *several: tuple[Any, str]) -> None:
        self._waiting.extend(several)

    def _tensor(self, tensor: Tensor, name: str) -> None:
        self._names[id(tensor)] = name
        hooks = (tensor._backward_hooks, getattr(tensor, "_post_accumulate_grad_hooks", None))
        self._add(*((each, name) for each in hooks if each is not None))
        if not tensor.is_leaf:
            return
        grad, data, wanted = tensor.grad, tensor.detach(), tensor.requires_grad

        def put_back() -> None:
            if tensor.grad is not grad:
                tensor.grad = grad
            if storage_of(tensor) != storage_of(data):
                tensor.data = data
            if tensor.requires_grad != wanted:
                tensor.requires_grad_(wanted)

        self._back.append(put_back)

    def _function(self, function: FunctionType) -> None:
        self._names_in(function.__code__, function.__globals__)
        self._items(function.__dict__, "")
        self._add((function.__defaults__, ""), (function.__kwdefaults__, ""))
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=False):
            try:
                self._slot(partial(setattr, cell, "cell_contents"), partial(getattr, cell, "cell_contents"), name)
            except ValueError:  # it is empty
                continue

    def _names_in(self, code: CodeType, names: dict[str, Any]) -> None:
        for name in (*code.co_names, "__warningregistry__"):
            if name in names:
                self._slot(partial(names.__setitem__, name), partial(names.get, name), name)
                if isinstance(names[name], ModuleType) and not _is_library(names[name]):
                    self._names_in_module(code, names[name])
            elif name in _CALLS_OUT and hasattr(builtins, name):
                self.obstacle = f"it calls `{name}`"
        for inner in code.co_consts:
            if isinstance(inner, CodeType):
                self._names_in(inner, names)

    def _names_in_module(self, code: CodeType, module: ModuleType) -> None:
        for name in code.co_names:
            if name in vars(module):
                self._slot(partial(setattr, module, name), partial(getattr, module, name, None), name)

    def _class(self, cls: type) -> None:
        for kind in cls.__mro__:
            if kind is object or _is_library(sys.modules.get(kind.__module__)):
                continue
            for name, value in list(vars(kind).items()):
                if not name.startswith("__") or isinstance(value, FunctionType):
                    if isinstance(value, (FunctionType, staticmethod, classmethod, property)):
                        self._add((value, name))
                    else:
                        self._slot(partial(setattr, kind, name), partial(vars(kind).get, name), name)

    def _object(self, found: Any, name: str) -> None:
        kind = type(found)
        if kind.__module__.partition(".")[0] in _REACHES_OUT:
            self.obstacle = f"it has a {kind.__name__}"
        elif isinstance(found, dict):
            self._items(found, name)
        elif isinstance(found, (list, deque, bytearray)):
            self._sequence(found, name)
        elif isinstance(found, set):
            self._set(found, name)
        elif kind.__module__ == "numpy" and kind.__name__ == "ndarray":
            numbers = found.copy()
            if found.flags.writeable:
                self._back.append(partial(found.__setitem__, ..., numbers))
        elif hasattr(kind, "bit_generator"):  # a numpy Generator
            self._state(lambda: found.bit_generator.state, partial(setattr, found.bit_generator, "state"))
        else:
            for get, put in (("get_state", "set_state"), ("getstate", "setstate")):  # of PyTorch, of Python, of numpy
                if hasattr(kind, get) and hasattr(kind, put):
                    self._state(getattr(found, get), getattr(found, put))
        if isinstance(attributes := getattr(found, "__dict__", None), dict):
            self._items(attributes, kind.__name__)
            self._add((kind, name))

    def _state(self, get: Callable[[], Any], put: Callable[[Any], Any]) -> None:
        state = get()
        self._back.append(lambda: put(state))

    def _slot(self, put: Callable[[Any], Any], get: Callable[[], Any], name: str) -> None:
        """One name: what it stands for."""
        value = get()

        def put_back() -> None:
            if get() is not value:
                put(value)

        self._back.append(put_back)
        self._add((value, name))

    def _items(self, items: dict[Any, Any], owner: str) -> None:
        known = dict(items)

        def put_back() -> None:
            if len(items) != len(known) or any(
                key not in items or items[key] is not each for key, each in known.items()
            ):
                items.clear()
                items.update(known)

        self._back.append(put_back)
        self._add(*((each, f"`{key}` of {owner}" if owner else str(key)) for key, each in known.items()))
        self._add(*((key, "") for key in known))

    def _sequence(self, found: list[Any] | deque[Any] | bytearray, name: str) -> None:
        known = list(found)

        def put_back() -> None:
            if len(found) != len(known) or any(one is not other for one, other in zip(found, known, strict=True)):
                found.clear()
                found.extend(known)

        self._back.append(put_back)
        self._add(*((each, name) for each in known))

    def _set(self, found: set[Any], name: str) -> None:
        known = set(found)

        def put_back() -> None:
            for each in set(found) ^ known:
                (found.add if each in known else found.discard)(each)

        self._back.append(put_back)
        self._add(*((each, name) for each in known))


def _is_library(module: ModuleType | None) -> bool:
    """Whether a module is no user's: PyTorch's, Python's own, or built in."""
    if module is None or module.__name__.partition(".")[0] in sys.stdlib_module_names - {"__main__"}:
        return True
    file = getattr(module, "__file__", None)
    if file is None:
        return module.__name__ != "__main__"
    return "site-packages" in file or is_library(compile("", file, "exec"))


class _NoWrites(OwnMode):
    """Refuses writes to tensors that were not made while it is on, and whatever speaks to other ranks."""

    def __init__(self, own: Any, names: dict[int, str]) -> None:
        super().__init__()
        self._own = {storage_of(each): each for each in tensors_in(own)}
        self._names = names
        self.refused = ""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if is_higher_order[type(func)]:
            return run_inside(func, args, kwargs or {}, self)
        facts, traits = facts_of(str(func)), Traits.of(func)
        if facts.communicates:
            self._refuse("it is not run again: it speaks to other ranks")
        for each in traits.written(args, kwargs or {}) if traits.writes else ():
            for tensor in tensors_in(each):
                if storage_of(tensor) not in self._own:
                    what = self._names.get(id(tensor)) or f"a tensor of shape {tuple(tensor.shape)}"
                    self._refuse(f"running it again would change {what}")
        out = func(*args, **(kwargs or {}))
        if not traits.writes and (facts.lifts or not traits.views):
            self._own.update((storage_of(each), each) for each in tensors_in(out))
        return out

    def _refuse(self, reason: str) -> None:
        self.refused = reason
        raise SideEffectError(reason)


# -- of the whole process ---------------------------------------------------------------------------------------------


@contextmanager
def _settings_restored() -> Iterator[None]:
    dtype, threads = torch.get_default_dtype(), torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    try:
        yield
    finally:
        if torch.get_default_dtype() is not dtype:
            torch.set_default_dtype(dtype)
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        if (deterministic, warns) != (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        ):
            torch.use_deterministic_algorithms(deterministic, warn_only=warns)


class _Muted(io.TextIOBase):
    """A stream that swallows what this thread writes, and hands on what others do."""

    def __init__(self, stream: Any) -> None:
        self._stream, self._thread = stream, threading.get_ident()

    def write(self, text: str) -> int:
        """Write, for any other thread."""
        if threading.get_ident() != self._thread:
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush the stream behind it."""
        self._stream.flush()


@contextmanager
def _muted() -> Iterator[None]:
    out, error = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _Muted(out), _Muted(error)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        sys.stdout, sys.stderr = out, error
