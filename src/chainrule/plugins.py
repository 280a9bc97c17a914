"""What other packages add to chainrule: rules, findings, views and callbacks, announced by their entry points.

| Group | What the entry point names |
|---|---|
| `chainrule.rules` | a module that registers rules (`chainrule.rules.rule`) when it is imported |
| `chainrule.findings` | a module that creates a `chainrule.diagnostics.Check` for each kind of finding |
| `chainrule.views` | a module with a `SUFFIX` and a function `written(document)` |
| `chainrule.callbacks` | a class or function that `chainrule.callbacks` then has, under the name of the entry point |

A group is looked up when something of it is first needed, never by `import chainrule`. A plug-in that fails is left
out, with a warning that names it: neither a training nor a recording fails for it.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

from chainrule.errors import brief, warn

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint


@cache
def offered(group: str) -> Mapping[str, EntryPoint]:
    """The entry points of a group by their names, not loaded yet."""
    from importlib.metadata import entry_points  # takes some milliseconds

    return {each.name: each for each in sorted(entry_points(group=f"chainrule.{group}"))}


@cache
def load(group: str) -> Mapping[str, Any]:
    """What the plug-ins of a group are, by their names; those that fail are left out."""
    loaded = {}
    for name, entry in offered(group).items():
        try:
            loaded[name] = load_one(entry)
        except (Exception, SystemExit) as error:
            leave_out(group, name, brief(error))
    return loaded


def load_one(entry: EntryPoint) -> Any:
    """Import what an entry point names; random numbers that the import draws are put back."""
    with _random_numbers_restored():
        return entry.load()


def leave_out(group: str, name: str, reason: str) -> None:
    """Warn that a plug-in is left out."""
    warn(f"{described(group, name)} is left out: {reason}")


def described(group: str, name: str) -> str:
    """A plug-in with the package that it belongs to."""
    entry = offered(group)[name]
    package = f" of {entry.dist.name} {entry.dist.version}" if entry.dist is not None else ""
    return f"the plug-in {name!r}{package} (chainrule.{group}: {entry.value})"


@contextmanager
def _random_numbers_restored() -> Iterator[None]:
    restore: list[Callable[[], None]] = []
    state, numpy, torch = random.getstate(), sys.modules.get("numpy"), sys.modules.get("torch")
    restore.append(lambda: random.setstate(state))
    if numpy is not None:
        drawn = numpy.random.get_state()
        restore.append(lambda: numpy.random.set_state(drawn))
    if torch is not None:
        generated = torch.get_rng_state()
        restore.append(lambda: torch.set_rng_state(generated))
    try:
        yield
    finally:
        for each in restore:
            each()
