"""A finding, and what every check of a step asks: what things are called, and where they stand."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from chainrule.backprop import Derivation, Step
from chainrule.document import Text
from chainrule.graph import Graph, Operation, Place
from chainrule.notation import Notation

TITLES = {
    "unit-off": "A unit is off for every sample",
    "at-kink": "A value lies exactly where a function has no derivative",
    "sigmoid-before-bce": "A sigmoid before binary cross-entropy",
    "softmax-before-cross-entropy": "A softmax before cross-entropy",
    "no-gradient": "A parameter got no gradient",
    "accumulated-gradient": "A gradient was there before the backward pass",
    "gradient-changed": "A gradient was changed between backward and the optimizer's step",
    "non-finite-forward": "A number that is not finite is born in the forward pass",
    "non-finite-backward": "A number that is not finite is born in the backward pass",
    "broadcast-in-loss": "Predictions and targets are broadcast against each other",
}
"""What each id means."""

LISTED = 5  # places that are named one by one

Severity = Literal["note", "warning", "error"]


@dataclass(frozen=True)
class Finding:
    """One thing that a reader should know: where, what, the numbers that show it, and what to do."""

    id: str
    severity: Severity
    where: str
    place: Place | None
    text: Text
    evidence: tuple[str, ...]
    advice: str

    @property
    def title(self) -> str:
        """What this kind of finding is about."""
        return TITLES[self.id]

    def __str__(self) -> str:
        text = "".join(span if isinstance(span, str) else getattr(span, "source", "") for span in self.text)
        place = f" ({self.place})" if self.place else ""
        return "\n".join([f"{self.severity}: {text}{place}", *(f"  {each}" for each in (*self.evidence, self.advice))])


class Case:
    """The step under examination, with the questions that several checks ask."""

    def __init__(self, graph: Graph, derivation: Derivation, notation: Notation) -> None:
        self.graph = graph
        self.derivation = derivation
        self.notation = notation

    def name(self, value: int) -> str:
        """What a value is called."""
        return self.notation.plain(value)

    def forward(self) -> Iterator[Step]:
        """The steps of the forward pass."""
        return (step for step in self.derivation.steps if step.kind == "forward")

    def producer(self, value: int) -> Operation | None:
        """The operation that made a value."""
        operation = self.graph.values[value].operation
        return None if operation is None else self.graph.operations[operation]

    def layer(self, value: int) -> str:
        """The layer that made a value, for a line of text: ` of layer 1 (linear1)`."""
        known = self.notation.layers.get(value)
        operation = self.producer(value)
        module = self.graph.calls[operation.call].module if operation and operation.call is not None else ""
        path = f" ({module})" if module else ""
        return f" of layer {known[1]}{path}" if known else f" of {module}" if module else f" of {self.name(value)}"


def called(case: Case, operation: Operation) -> str:
    """What the user called; where that is an operator (`/`), the operation that it is."""
    name = case.graph.calls[operation.call].name if operation.call is not None else "__"
    return operation.name.removeprefix("aten.").split(".")[0] if name.startswith("__") else name


def place_of(case: Case, operation: Operation) -> Place | None:
    """Where it was called."""
    return case.graph.calls[operation.call].place if operation.call is not None else None


def listed(items: list[Any]) -> str:
    """The first few of several."""
    more = f" and {len(items) - LISTED} more" if len(items) > LISTED else ""
    return ", ".join(map(str, items[:LISTED])) + more


def dense(tensor: Tensor) -> Tensor:
    """A tensor with all its elements."""
    return tensor.to_dense() if tensor.layout != torch.strided else tensor


def finite(tensor: Tensor | None) -> bool:
    """Whether there is no NaN and no infinity in it."""
    return tensor is None or not floating(tensor) or bool(dense(tensor).isfinite().all())


def floating(tensor: Tensor) -> bool:
    """Whether its numbers can be other than finite."""
    return tensor.is_floating_point() or tensor.is_complex()
