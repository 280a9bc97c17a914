"""Output forms of a document. A view is a module of this package that states its SUFFIX and has `written(document)`.

It also states what its document must hold beyond the text: with `POINTING = True` the sum behind each number, for a
reader who can point at one, with `CODED = True` the code that recomputes each section, and with `RUNNING = True` the
program that runs a small step again.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from chainrule import plugins
from chainrule.document import Document
from chainrule.errors import StorageError

_state = random.getstate()
import_module("rich.style")  # it draws a random number when it is imported: the user's must stay what they are
random.setstate(_state)


@dataclass(frozen=True, slots=True)
class View:
    """One output form: the function that writes it, and what its document must hold."""

    written: Callable[[Document], str]
    pointing: bool
    coded: bool
    running: bool


@cache
def by_suffix() -> Mapping[str, View]:
    """Every view of the package and of plug-ins, by the suffix of its files."""
    modules = [import_module(f"{__name__}.{module.name}") for module in iter_modules(__path__)]
    views = {module.SUFFIX: _view(module) for module in modules if hasattr(module, "SUFFIX")}
    for name, module in plugins.load("views").items():
        if not (hasattr(module, "SUFFIX") and hasattr(module, "written")):
            plugins.leave_out("views", name, "a view states its SUFFIX and has a function written(document)")
        elif module.SUFFIX in (*views, ".safetensors"):
            plugins.leave_out("views", name, f"there is a view for {module.SUFFIX} already")
        else:
            views[module.SUFFIX] = _view(module)
    return dict(sorted(views.items()))


def _view(module: Any) -> View:
    return View(module.written, *(getattr(module, name, False) for name in ("POINTING", "CODED", "RUNNING")))


def check_suffix(suffix: str, *others: str) -> None:
    """Raise StorageError unless a view has this suffix, or it is one of `others`, which are written without a view."""
    if suffix not in (*by_suffix(), *others):
        known = ", ".join((*by_suffix(), *others))
        raise StorageError(f"no view writes {suffix or 'a file without a suffix'}. Give one of {known}.")


def written(document: Document, suffix: str) -> str:
    """The document as text in the view that has this suffix."""
    return by_suffix()[suffix].written(document)
