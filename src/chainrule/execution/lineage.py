"""What leads from one value of a step to another beside operations and their operands.

Memory is written to through other tensors. Gradients of the step and updated parameters come back as data. And numbers
leave for Python.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from chainrule.capture.traits import Traits
from chainrule.execution.experiment import written_by
from chainrule.graph.graph import Graph, Operation, Ref, references
from chainrule.graph.reexecution import WriteThroughView
from chainrule.graph.snapshot import Snapshot
from chainrule.rules.facts import facts_of


class Lineage:
    """These facts of one graph, which all walks through it share."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._memories: dict[int, Memory] = {}

    def memory(self, value: int) -> Memory:
        """The memory that a value lies in."""
        if value not in self._memories:
            self._memories[value] = memory_of(self.graph, value)
        return self._memories[value]

    def overwritten(self, value: int, before: int) -> list[int]:
        """What was written, until an operation, to memory of a value that was written to through another tensor."""
        known = self.graph.values[value]
        if known.earlier is None or known.operation is None:
            return []
        here = self.memory(known.earlier)
        writes = self._writes_to.get(here.root if here.is_new else None, [])
        written = writes[bisect_left(writes, (known.operation,)) : bisect_left(writes, (before,))]
        return [out for _, out in written if here.overlaps(self.memory(out))]

    @cached_property
    def read(self) -> list[int]:
        """The operands of the operations that give numbers to Python."""
        operations = (each for each in self.graph.operations if reads_numbers(each))
        return [value for each in operations for *_, value in references(each.arguments)]

    @cached_property
    def writes(self) -> list[tuple[int, int]]:
        """(operation, output) of every operation that wrote to memory."""
        return [
            (operation.index, out)
            for operation in self.graph.operations
            if operation.function is not None and ("base" in operation.arguments or written_by(operation.function))
            for out in (*operation.outputs, *self.unreturned.get(operation.index, ()))
            if out is not None
        ]

    @cached_property
    def _writes_to(self) -> dict[int | None, list[tuple[int, int]]]:
        """The writes by the value that the memory was made as; under None those to memory from before the step."""
        found: dict[int | None, list[tuple[int, int]]] = {}
        for write in self.writes:
            memory = self.memory(write[1])
            found.setdefault(memory.root if memory.is_new else None, []).append(write)
        return found

    @cached_property
    def unreturned(self) -> dict[int, list[int]]:
        """The values that each operation wrote and did not return."""
        found: dict[int, list[int]] = {}
        for value in self.graph.values:
            made = value.operation
            if made is not None and value.earlier is None and value.index not in self.graph.operations[made].outputs:
                found.setdefault(made, []).append(value.index)
        return found

    @cached_property
    def gradients(self) -> set[int]:
        """The leaves that hold gradients which a backward pass of this step left, and parameters after an update."""
        graph, found = self.graph, set[int]()
        if not graph.backwards:
            return found
        gradients: list[Snapshot] = [
            *(each for backward in graph.backwards for each in backward.given.values()),
            *(each.gradient for each in graph.values if each.gradient is not None),
            *(each.gradient for each in graph.parameters.values() if each.gradient is not None),
        ]
        beginnings = {_beginning(each) for each in gradients}
        first = min((self._made(each.loss) for each in graph.accumulating if each.loss is not None), default=-1)
        several = len(graph.accumulating) > 1  # between two passes a `.grad` is none of those that are known
        updated = min((each.position for each in graph.updates), default=len(graph.operations))
        used: dict[int, int] = {}
        for operation in graph.operations if several or graph.updates else ():
            used |= {value: used.get(value, operation.index) for *_, value in references(operation.arguments)}
        shapes = {each[0] for each in beginnings}
        for value in graph.values:
            if value.operation is not None:
                continue
            shape, begin = _beginning(value.snapshot), used.get(value.index, -1)
            again = value.kind == "parameter" and "@" in value.name and not value.name.endswith("@1")
            later = several and value.kind == "input" and begin > first
            alike = shape in beginnings or (shape[0], "") in beginnings
            if alike or (again and begin >= updated) or (shape[0] in shapes and (later or not shape[1])):
                found.add(value.index)
        return found

    def _made(self, value: int) -> int:
        made = self.graph.values[value].operation
        return -1 if made is None else made


@dataclass(frozen=True)
class Memory:
    """The memory of a value: the value that it was made as, and the parts that it was cut into on the way."""

    root: int
    is_new: bool  # made by an operation of the step, so that no other root shares it
    parts: dict[int, int]

    def overlaps(self, other: Memory) -> bool:
        """Whether both may have an element in common."""
        if self.root != other.root:
            return not (self.is_new or other.is_new)
        return all(other.parts.get(operation, slot) == slot for operation, slot in self.parts.items())


def memory_of(graph: Graph, value: int) -> Memory:
    """The memory that a value lies in: back through views and writes."""
    parts: dict[int, int] = {}
    while True:
        known = graph.values[value]
        made = None if known.operation is None else graph.operations[known.operation]
        origin = known.earlier if known.earlier is not None else _shared(made, value) if made is not None else None
        if origin is None:
            return Memory(value, made is not None and made.function is not None, parts)
        if made is not None and known.earlier is None and facts_of(made.name).cuts:
            parts[made.index] = known.slot
        value = origin


def _shared(operation: Operation, value: int) -> int | None:
    """The operand whose memory a result shares."""
    overload = getattr(operation.function, "function", None)
    if isinstance(overload, WriteThroughView):
        name = "base" if operation.outputs[0] == value else overload.argument
        given = operation.arguments[name]
    elif hasattr(overload, "_schema") and (traits := Traits.of(overload)).writes:
        given = operation.arguments[traits.writes[0][1]]
    elif hasattr(overload, "_schema") and traits.views:
        given = next((each for each in operation.arguments.values() if isinstance(each, Ref)), None)
    else:
        return None
    return given.value if isinstance(given, Ref) else None


def _beginning(known: Snapshot) -> tuple[tuple[Any, ...], str]:
    """Shape and type of a tensor, and its first numbers, which tell it from another one; "" without numbers."""
    data = known.data
    if data is None or data.layout != torch.strided:
        return (*known.shape, known.dtype), ""
    return (*known.shape, known.dtype), str(data.reshape(-1)[:8].tolist())


def reads_numbers(operation: Operation) -> str:
    """How an operation gives numbers to Python, in words; "" where it does not."""
    if gives_number(operation):
        return "Python read a number of it"
    return "its numbers decide a shape" if torch.Tag.dynamic_output_shape in _tags(operation) else ""


def gives_number(operation: Operation) -> bool:
    """Whether Python reads a number of a tensor by an operation, as by `item`."""
    return torch.Tag.data_dependent_output in _tags(operation)


def _tags(operation: Operation) -> tuple[torch.Tag, ...]:
    return tuple(getattr(getattr(operation.function, "function", None), "tags", ()))
