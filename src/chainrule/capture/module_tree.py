"""The modules inside a module, its parameters and buffers, without asking the user's code.

A class may override `parameters()` with other arguments, or raise in it, and `self.modules = [...]` hides the method.
Paths and order are those of `nn.Module`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn


def named_modules(root: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """A module ("") and all inside it, each once."""
    seen: set[int] = set()
    waiting = [("", root)]
    while waiting:
        path, module = waiting.pop()
        if id(module) in seen:
            continue
        seen.add(id(module))
        yield path, module
        inner = [(_joined(path, name), each) for name, each in inside(module)]
        waiting += reversed(inner)


def inside(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """The modules directly inside a module, by each of their names."""
    return [(name, each) for name, each in _own(module, "_modules") if each is not None]


def modules_of(root: nn.Module) -> Iterator[nn.Module]:
    """The same without paths."""
    return (module for _, module in named_modules(root))


def children_of(module: nn.Module) -> list[nn.Module]:
    """The modules directly inside a module."""
    return list({id(each): each for _, each in _own(module, "_modules") if each is not None}.values())


def named_parameters(root: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """The parameters of a module and of all inside it, each once."""
    return _named(root, "_parameters")


def parameters_of(root: nn.Module) -> Iterator[nn.Parameter]:
    """The same without paths."""
    return (parameter for _, parameter in named_parameters(root))


def own_parameters(module: nn.Module) -> list[nn.Parameter]:
    """Those that a module holds itself."""
    return list({id(each): each for _, each in _own(module, "_parameters") if each is not None}.values())


def named_buffers(root: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The buffers of a module and of all inside it, each once."""
    return _named(root, "_buffers")


def is_compiled(module: nn.Module) -> bool:
    """Whether `torch.compile` made this module, or is to compile its call."""
    return inside_compiled(module) is not None or module._compiled_call_impl is not None


def inside_compiled(module: nn.Module) -> nn.Module | None:
    """The user's module in one that `torch.compile` made."""
    return dict(_own(module, "_modules")).get("_orig_mod")


def _named(root: nn.Module, kind: str) -> Iterator[tuple[str, Any]]:
    seen: set[int] = set()
    for path, module in named_modules(root):
        for name, each in _own(module, kind):
            if each is not None and id(each) not in seen:
                seen.add(id(each))
                yield _joined(path, name), each


def _own(module: nn.Module, kind: str) -> list[tuple[str, Any]]:
    return list(vars(module).get(kind, {}).items())


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
