"""What a student can be asked for, by its name: a gradient, a value, a parameter after the update."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

from chainrule.derivation.backprop import Derivation
from chainrule.errors import MissingError
from chainrule.graph.graph import Graph
from chainrule.graph.names import Index, Notation, check_index, element, find_value, near_matches

Kind = Literal["gradient", "value", "update"]


class Recorded(Protocol):
    """What a recording is to an exercise."""

    @property
    def graph(self) -> Graph:
        """The facts of the step."""

    @property
    def derivation(self) -> Derivation:
        """The steps, with their gradients."""

    @property
    def notation(self) -> Notation:
        """What each value is called."""


@dataclass(frozen=True)
class Quantity:
    """A tensor of a step, or one `index` of it, as the views call it: `name` is `dJ/dW2`, `of` is `W2`."""

    kind: Kind
    value: int
    of: str
    name: str
    data: Tensor
    index: Index | None = None

    def __str__(self) -> str:
        return self.name if self.index is None else element(self.name, self.index)

    @property
    def right(self) -> Tensor:
        """The right answer: a tensor, of no axes for one element."""
        return self.data if self.index is None else self.data[self.index]

    def part(self, whole: Tensor) -> Tensor | None:
        """What is asked for, of a whole tensor; None where that has another shape and one element is asked for."""
        if self.index is None:
            return whole
        return whole[self.index] if whole.shape == self.data.shape else None


def quantity_of(recorded: Recorded, name: str) -> Quantity:
    """The quantity of a name: `dJ/dW2`, `A1`, `J`, `new W2`, each with an index behind it or without.

    Raises MissingError, with the nearest names, where there is none, and for an index outside its shape.
    """
    parts = re.fullmatch(r"\s*(new\s+|d\s*[^/]*/\s*d)?\s*(.+?)(_new)?\s*(?:\[([-+\d,\s]*)\])?\s*", name)
    if parts is None:
        raise _missing(recorded, name)
    prefix, of, suffix, places = (each or "" for each in parts.groups())
    kind: Kind = "gradient" if prefix.startswith("d") else "update" if prefix or suffix else "value"
    found = _whole(recorded, name, kind, of)
    if not places.strip():
        return found
    index = check_index(recorded.graph, found.value, tuple(int(each) for each in places.split(",")), found.name)
    return Quantity(found.kind, found.value, found.of, found.name, found.data, index)


def _whole(recorded: Recorded, name: str, kind: Kind, of: str) -> Quantity:
    try:
        value = find_value(recorded.graph, of)
    except MissingError:
        raise _missing(recorded, name) from None
    found = made(recorded, kind, value)
    if found is None:
        raise _without_numbers(recorded, kind, value) or _missing(recorded, name)
    if kind == "gradient" and not _is_derivative(recorded, name, found):
        raise _missing(recorded, name)
    return found


def made(recorded: Recorded, kind: Kind, value: int) -> Quantity | None:
    """The quantity of a kind that a value has; None where it has none, or its numbers were not kept."""
    graph, notation = recorded.graph, recorded.notation
    of, known = notation.plain(value), graph.values[value]
    if kind == "gradient":
        data, called = known.grad, notation.plain_gradient(value)
    elif kind == "value":
        data, called = known.data, of
    else:
        ends = (each.after for each in graph.parameters.values() if each.value == value)
        data, called = next(ends, None), f"new {of}"
    if data is None or data.is_complex():
        return None
    return Quantity(kind, value, of, called, data.to_dense() if data.is_sparse else data)


def _is_derivative(recorded: Recorded, name: str, found: Quantity) -> bool:
    """Whether a name is the derivative of what the gradient is the derivative of; the loss may have the user's name."""
    above = name.partition("/")[0].strip()[1:].strip()
    losses = [each.loss for each in recorded.graph.backwards if each.loss is not None]
    return above == found.name.partition("/")[0][1:] or any(above in recorded.graph.values[v].names for v in losses)


def _without_numbers(recorded: Recorded, kind: Kind, value: int) -> MissingError | None:
    """Why a value that exists cannot be asked for; None where it has no such quantity at all."""
    known, of = recorded.graph.values[value], recorded.notation.plain(value)
    if known.dtype.is_complex:
        return MissingError(f"{of} is complex, and answers are real numbers. Ask for a real value.")
    if kind == "gradient" and not known.has_gradient:
        return MissingError(f"No gradient arrived at {of}. Ask for a value that backward() reached.")
    if kind != "update" and not (known.has_numbers if kind == "value" else known.grad is not None):
        return MissingError(
            f'Of {of} only statistics were kept. Record the step with keep="all" to ask for its numbers.'
        )
    return None


def _missing(recorded: Recorded, name: str) -> MissingError:
    return MissingError(f"There is nothing named {name!r} to ask for. {near_matches(name, list(names(recorded)))}")


def names(recorded: Recorded) -> Iterator[str]:
    """Everything that the steps show and that can be asked for, in the order of the step."""
    steps = recorded.derivation.steps
    values = dict.fromkeys(v for step in steps for v in (*(v for _, _, v in step.arguments), *step.outputs))
    kinds: tuple[Kind, ...] = ("value", "gradient", "update")
    yield from (found.name for v in values for kind in kinds if (found := made(recorded, kind, v)) is not None)
