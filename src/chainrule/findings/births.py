"""Where in a forward pass numbers that are not finite are born, and which values carry which birth on.

A number that is not finite is *born* where an operation makes it of operands that are finite (or infinite on purpose,
as in a mask); wherever an operand was already tainted by an earlier birth it is only *passed on*.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from chainrule.findings.case import TRANSPARENT, Case, base_of, dense, floating
from chainrule.graph import Graph, Operation, Ref, Value, references

COLLECTIVES = ("fsdp.", "c10d.")  # whose results other ranks fill
FILLS = frozenset({
    "uniform_", "normal_", "zero_", "fill_", "copy_", "random_", "bernoulli_", "exponential_", "log_normal_",
    "cauchy_", "geometric_", "eye_",
})  # fmt: skip
"""What writes over all of its `self`, whatever that held."""


@dataclass
class Birth:
    """What was born where: in which operation (None: it was in the leaf `value` before the step)."""

    value: Value
    operation: Operation | None
    passed_on: list[int] = field(default_factory=list)  # the values that got it from here, in order


class Births:
    """Every birth of the forward pass, and which values carry which on."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.births: list[Birth] = []
        self.of: dict[int, Birth] = {}  # a value that is not finite -> the birth it goes back to
        self.infinite: list[Value] = []  # leaves that hold infinity, on purpose as it may be
        self.bad_losses: list[int] = []
        self.first: list[Birth] = []
        if not case.measures.all_finite(value.data for value in case.graph.values):
            self._find()

    def _find(self) -> None:
        graph = self.case.graph
        self._buffers = _buffers_of_shards(graph)
        for operation in graph.operations:
            self._read(operation)
        losses = [b.loss for b in graph.accumulating if b.loss is not None]
        self.bad_losses = [loss for loss in losses if not self.case.measures.finite(graph.values[loss].data)]
        self.first = self._first()

    def _read(self, operation: Operation) -> None:
        case, values = self.case, self.case.graph.values
        operands = [values[index] for _, _, index in references(operation.arguments)]
        for leaf in operands:
            if leaf.index in self._buffers:
                continue
            if leaf.operation is None and leaf.index not in self.of and leaf.data is not None and floating(leaf.data):
                if case.measures.finite(leaf.data) or not self._is_read(leaf.index):
                    continue
                if dense(leaf.data).isnan().any():
                    self._born(leaf, None)
                else:
                    self.infinite.append(leaf)
        inherited = next((self.of[each.index] for each in operands if each.index in self.of), None)
        for out in operation.outputs:
            made = values[out] if out is not None else None
            if made is None or made.data is None or case.measures.finite(made.data):
                continue
            if inherited is not None:
                inherited.passed_on.append(made.index)
                self.of[made.index] = inherited
            elif not on_purpose(operation) and _makes(case, made.data, [each.data for each in operands]):
                self._born(made, operation)

    def _is_read(self, leaf: int) -> bool:
        """Whether any operation takes its numbers: a new parameter holds anything until it is initialised."""
        seen, waiting = {leaf}, [leaf]
        while waiting:
            value = waiting.pop()
            for operation in self.case.uses.get(value, ()):
                base, given = base_of(operation), operation.arguments
                if base in FILLS and Ref(value) in (given.get("self"), given.get("base")):
                    if "base" not in given:  # else only a part of it is filled
                        continue
                elif base not in TRANSPARENT and base != "detach":
                    return True
                made = {out for out in operation.outputs if out is not None and self._may_carry(out)} - seen
                seen |= made
                waiting.extend(made)
        return False

    def _may_carry(self, value: int) -> bool:
        known = self.case.statistics(value)
        return known is None or bool(known.not_finite)

    def _born(self, value: Value, operation: Operation | None) -> None:
        birth = Birth(value, operation)
        self.births.append(birth)
        self.of[value.index] = birth

    def _first(self) -> list[Birth]:
        """The first of all, and the one that the loss goes back to, where that is another."""
        if self.bad_losses and self.infinite and not self.births:
            self._born(self.infinite[0], None)
        reached = [self.of[loss] for loss in self.bad_losses if loss in self.of][:1]
        if not reached:
            return self.births[:1]
        led_to = [birth for birth in self.births if birth.value.index in self._before(reached[0])]
        return [*led_to[:1], *reached]

    def _before(self, birth: Birth) -> set[int]:
        """The values that the operands of a birth were computed from."""
        found: set[int] = set()
        waiting = [] if birth.operation is None else [birth.operation]
        while waiting:
            for _, _, index in references(waiting.pop().arguments):
                made_by = self.case.graph.values[index].operation
                if index not in found:
                    found.add(index)
                    waiting += [] if made_by is None else [self.case.graph.operations[made_by]]
        return found

    @property
    def harmful(self) -> bool:
        """Whether what is not finite reaches the loss or a parameter's gradient."""
        return bool(self.bad_losses) or not all(
            self.case.measures.finite(each.grad) for each in self.case.graph.parameters.values()
        )


def births_of(case: Case) -> Births:
    """The births of a step, worked out once."""
    if "births" not in case.worked_out:
        case.worked_out["births"] = Births(case)
    known: Births = case.worked_out["births"]
    return known


def _makes(case: Case, made: Tensor, operands: list[Tensor | None]) -> bool:
    """NaN where no operand has it, or infinity where all operands are finite."""
    known = [dense(each) for each in operands if each is not None and floating(each)]
    if dense(made).isnan().any():
        return not any(each.isnan().any() for each in known)
    return all(case.measures.finite(each) for each in known)


def _buffers_of_shards(graph: Graph) -> set[int]:
    """What FSDP2 gathers parts in, and what that is a view of: memory that holds anything before it is filled."""
    moves = (operation for operation in graph.operations if operation.name.startswith("fsdp."))
    found = {index for operation in moves for _, _, index in references(operation.arguments)}
    makers = [graph.values[index].operation for index in found]
    views = [graph.operations[each] for each in makers if each is not None]
    return found | {
        index
        for operation in views
        if operation.name.startswith("aten.view")
        for _, _, index in references(operation.arguments)
    }


def on_purpose(operation: Operation) -> bool:
    """Masks are filled with infinity by hand, and fresh memory, or what other ranks are yet to fill, holds anything."""
    given = [a for a in _scalars(list(operation.arguments.values())) if isinstance(a, float) and not math.isfinite(a)]
    return bool(given) or "empty" in operation.name or operation.name.startswith(COLLECTIVES)


def _scalars(tree: Any) -> Iterator[Any]:
    waiting = list(tree)
    while waiting:
        item = waiting.pop()
        if isinstance(item, (list, tuple)):
            waiting.extend(item)
        else:
            yield item
