"""A change of one step of a user's backward, and the operands of a step, with how to put others in."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from chainrule.execution.call_tape import Called
from chainrule.verification.repair_samples import Mistake, Reach

Path = tuple[int, ...]
Step = Callable[[Called, Reach, list[Any], dict[str, Any]], Any]
"""What a step does instead: (the step at a point, what is in reach there, its arguments, its keywords)."""


@dataclass(frozen=True)
class Edit:
    """A change of one step, or of one tensor in several steps that read it; `place` is the step that tells the line."""

    cost: float
    kind: Mistake
    problem: str
    fix: str
    place: int | None
    works: dict[int, Step]


def operands_of(call: Called) -> Iterator[tuple[Path, Tensor]]:
    """The tensors among the arguments of a step, those in lists too, with how to find them."""
    for slot, each in enumerate(call.arguments):
        if isinstance(each, Tensor):
            yield (slot,), each
        elif isinstance(each, (tuple, list)):
            for item, inner in enumerate(each):
                if isinstance(inner, Tensor):
                    yield (slot, item), inner


def put_in(arguments: list[Any], path: Path, change: Callable[[Any], Any]) -> list[Any]:
    """The arguments with one of them changed."""
    slot = path[0]
    if len(path) == 1:
        arguments[slot] = change(arguments[slot])
    else:
        inner = list(arguments[slot])
        inner[path[1]] = change(inner[path[1]])
        arguments[slot] = type(arguments[slot])(inner)
    return arguments


ARITHMETIC: dict[str, tuple[str, Callable[[Any, Any], Any]]] = {
    "mul": ("*", operator.mul),
    "add": ("+", operator.add),
    "sub": ("-", operator.sub),
    "truediv": ("/", operator.truediv),
}
