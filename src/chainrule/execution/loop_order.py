"""The loops of a user's backward that `range` or `reversed` order, and the backward with one of them turned round."""

from __future__ import annotations

import dis
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FunctionType
from typing import Any

from chainrule.graph.graph import Place

_OTHER: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "reversed": (reversed, iter),
    "range": (range, lambda *bounds: range(*bounds)[::-1]),
}


@dataclass(frozen=True)
class Loop:
    """A call of `range` or `reversed` in a function's code."""

    builtin: str
    function: FunctionType
    line: int

    @property
    def place(self) -> Place:
        """Where it stands."""
        return Place(self.function.__code__.co_filename, self.line, self.function.__name__)

    def turned(self) -> Callable[..., Any]:
        """The function with this loop in the other order."""
        plain, other = _OTHER[self.builtin]

        def called(*arguments: Any) -> Any:
            return (other if sys._getframe(1).f_lineno == self.line else plain)(*arguments)

        each = self.function
        return FunctionType(
            each.__code__,
            {**each.__globals__, self.builtin: called},
            each.__name__,
            each.__defaults__,
            each.__closure__,
        )


def loops_of(function: Any) -> Iterator[Loop]:
    """The loops in a Python function's own code, one for each line."""
    function = getattr(function, "__func__", function)
    if not isinstance(function, FunctionType):
        return
    called = {
        (each.positions.lineno, each.argval)
        for each in dis.get_instructions(function)
        if each.opname == "LOAD_GLOBAL" and each.argval in _OTHER and each.positions and each.positions.lineno
    }
    for line in sorted({line for line, _ in called}):
        yield Loop(next(name for name in _OTHER if (line, name) in called), function, line)
