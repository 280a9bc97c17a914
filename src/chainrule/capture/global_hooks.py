"""Hooks for the modules and optimizers of the whole process, without a change to PyTorch's own dictionaries of them.

PyTorch iterates over these dictionaries while it calls the hooks, in every thread that runs a module or an optimizer: a
hook that is added or removed meanwhile raises an error there. So while one of ours is on, PyTorch finds a `_Layer` in
the place of its dictionary, which reads as the dictionary and ours together, in a list of its own for each iteration.
What others register or remove meanwhile goes into PyTorch's dictionary as ever.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from torch.nn.modules import module as of_modules
from torch.optim import optimizer as of_optimizers

_lock = threading.RLock()


class HookPlace:
    """One of PyTorch's dictionaries of global hooks, and our hooks before those in it (`first`), or after them."""

    def __init__(self, module: ModuleType, name: str, *, first: bool) -> None:
        self.ours: dict[Any, Any] = {}
        self.first = first
        self.own: OrderedDict[Any, Any] = getattr(module, name)
        self._module, self._name = module, name
        self._layer = _Layer(self)

    def add(self, key: Any, value: Any) -> None:
        """Put a hook on."""
        self.ours[key] = value
        self._settle()

    def remove(self, key: Any) -> None:
        """Take it off, if it is on."""
        try:
            self.ours.pop(key, None)
        finally:
            self._settle()

    def _settle(self) -> None:
        try:
            _lock.acquire(timeout=1)  # an interrupt may have kept another thread from giving it back
            setattr(self._module, self._name, self._layer if self.ours else self.own)
        finally:
            while _lock._is_owned():  # type: ignore[attr-defined]
                _lock.release()


class _Layer(OrderedDict[Any, Any]):
    """What PyTorch reads in the place of its dictionary."""

    def __init__(self, place: HookPlace) -> None:
        super().__init__()
        self._place = place

    def items(self) -> list[tuple[Any, Any]]:  # type: ignore[override]
        place = self._place
        ours, own = list(place.ours.items()), list(place.own.items())
        return ours + own if place.first else own + ours

    def values(self) -> list[Any]:  # type: ignore[override]
        return [hook for _, hook in self.items()]

    def keys(self) -> list[Any]:  # type: ignore[override]
        return [key for key, _ in self.items()]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.keys())

    def __len__(self) -> int:
        return len(self._place.ours) + len(self._place.own)

    def __contains__(self, key: object) -> bool:
        return key in self._place.ours or key in self._place.own

    def __getitem__(self, key: Any) -> Any:
        return self._place.ours[key] if key in self._place.ours else self._place.own[key]

    def __setitem__(self, key: Any, hook: Any) -> None:
        self._place.own[key] = hook

    def __delitem__(self, key: Any) -> None:
        del self._place.own[key]

    def clear(self) -> None:
        self._place.own.clear()


before_forward = HookPlace(of_modules, "_global_forward_pre_hooks", first=True)
after_forward = HookPlace(of_modules, "_global_forward_hooks", first=False)
after_failed_forward = HookPlace(of_modules, "_global_forward_hooks_always_called", first=False)  # keys of the above
before_step = HookPlace(of_optimizers, "_global_optimizer_pre_hooks", first=False)
after_step = HookPlace(of_optimizers, "_global_optimizer_post_hooks", first=True)
