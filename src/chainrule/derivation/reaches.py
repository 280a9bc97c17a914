"""Which positions of one value each element of another can depend on, from the operations between them alone.

The bound is for all numbers: it follows from what each operation does with shapes, indices and constants
(`rules.reach`). It may be too large, and is never too small as far as PyTorch's operations carry the numbers. Numbers
that leave them (`item()`, NumPy, a gradient) and come back as data are listed: there the bound proves nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from chainrule.capture.traits import Traits
from chainrule.execution.experiment import written_by
from chainrule.graph.graph import Graph, Operation, Place, Ref, references
from chainrule.graph.reexecution import WriteThroughView
from chainrule.graph.snapshot import Snapshot
from chainrule.graph.trees import reach
from chainrule.rules import Applied
from chainrule.rules.facts import base_name
from chainrule.rules.reach import carried

Relation = Literal["none", "own", "one", "earlier", "later", "any"]
"""What an element depends on: on no position, on its own, on one other, on those up to its own, from it on, on any."""


class Bounds(NamedTuple):
    """For each element, 1 + the last position that reaches it, and the size - the first; 0 in both where none does.

    Both broadcast to the shape of the value.
    """

    last: Tensor
    first: Tensor

    def mixed(self, size: int) -> Tensor:
        """Where more than one position reaches an element."""
        return (self.last > 0) & (self.last - 1 > size - self.first)


@dataclass(frozen=True)
class Alignment:
    """How the elements of a value follow the positions along an axis of another.

    `positions` says for each place along `axis` of the value which position is its own. Where several axes were merged
    to it, `note` says how.
    """

    axis: int
    positions: Tensor
    note: str = ""


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
        if made is not None and known.earlier is None and base_name(made.name) in _CUTS:
            parts[made.index] = known.slot
        value = origin


_CUTS = frozenset(["split", "split_with_sizes", "unbind", "unsafe_split", "unsafe_split_with_sizes", "unsafe_chunk"])


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


class Reaches:
    """The bounds of all values that can depend on the positions along one axis of a value.

    Without an axis the whole value is one position. `until` is the value that is asked about: what does not lead to it
    is left out.
    """

    def __init__(self, graph: Graph, source: int, axis: int | None, until: int | None = None) -> None:
        self.graph, self.source, self.axis = graph, source, axis
        shape = graph.values[source].shape
        self.size = 1 if axis is None else shape[axis]
        steps = torch.arange(1.0, self.size + 1).reshape([-1 if each == axis else 1 for each in range(len(shape))])
        self.bounds: dict[int, Bounds] = {source: Bounds(steps, self.size + 1 - steps)}
        self.left: list[tuple[str, Operation]] = []  # how numbers left the operations
        self._came: dict[int, list[int]] = {}  # memory that was written to through another tensor: from what
        self._memories: dict[int, Memory] = {}
        self._nothing: set[int] = set()  # values that no position reaches
        self._until = until
        self._wanted = None if until is None else self._leading_to(until)
        self._ran = -1
        for operation in graph.operations:
            self._run(operation)
            self._ran = operation.index

    def _leading_to(self, value: int) -> set[int]:
        """The value, what it was made from, and what gave numbers to Python."""
        read = (
            each
            for operation in self.graph.operations
            if _reads_numbers(operation)
            for *_, each in references(operation.arguments)
        )
        return set(reach([value, *read], self._made_from))

    def _made_from(self, value: int) -> list[int]:
        """The operands of a value, and what its memory was made of."""
        known = self.graph.values[value]
        if value in self._came:
            return self._came[value]
        found = self.graph.operands(value)
        if known.earlier is not None:
            found += [known.earlier, *(out for _, out in self._writes)]
        if value in self._gradients:
            found += [each.loss for each in self.graph.backwards if each.loss is not None]
        return found

    @cached_property
    def _writes(self) -> list[tuple[int, int]]:
        """(operation, output) of every operation that wrote to memory."""
        return [
            (operation.index, out)
            for operation in self.graph.operations
            if written_by(operation.function) or "base" in operation.arguments
            for out in operation.outputs
            if out is not None
        ]

    def of(self, value: int) -> Bounds | None:
        """The bounds of a value; None where no position reaches it."""
        if value not in self.bounds and value not in self._nothing:
            found = self._of_memory(value) or self._of_gradient(value)
            if found is not None:
                self.bounds[value] = found
            else:
                self._nothing.add(value)
        return self.bounds.get(value)

    def _of_memory(self, value: int) -> Bounds | None:
        """Memory that was written to through another tensor: anything that was written to that part may be in it."""
        known = self.graph.values[value]
        if known.earlier is None or known.operation is None:
            return None
        written = [out for operation, out in self._writes if known.operation <= operation <= self._ran]
        here = self._memory(known.earlier)
        self._came[value] = [known.earlier, *(each for each in written if here.overlaps(self._memory(each)))]
        several = [found for each in self._came[value] if (found := self.of(each)) is not None]
        return several[0] if len(self._came[value]) == 1 and several else self._whole(value, several)

    def _memory(self, value: int) -> Memory:
        """The memory that a value lies in."""
        if value not in self._memories:
            self._memories[value] = memory_of(self.graph, value)
        return self._memories[value]

    def _of_gradient(self, value: int) -> Bounds | None:
        """A gradient that comes back as data, or a parameter that was updated: any position behind the loss."""
        if value not in self._gradients:
            return None
        losses = [self.bounds[each.loss] for each in self.graph.backwards if each.loss in self.bounds]
        return self._whole(value, losses)

    def _whole(self, value: int, several: list[Bounds]) -> Bounds | None:
        if not several:
            return None
        ones = (1,) * len(self.graph.values[value].shape)
        last, first = (torch.stack([each.amax() for each in labels]).amax() for labels in zip(*several, strict=True))
        return Bounds(last.reshape(ones), first.reshape(ones))

    @cached_property
    def _gradients(self) -> set[int]:
        """The leaves that hold gradients which a backward pass of this step left, and parameters after an update."""
        graph, found = self.graph, set[int]()
        if not graph.backwards:
            return found
        gradients = [
            *(each for backward in graph.backwards for each in backward.given.values()),
            *(each.gradient for each in (*graph.values, *graph.parameters.values()) if each.gradient is not None),
        ]
        first = min((self._made(each.loss) for each in graph.accumulating if each.loss is not None), default=-1)
        several = len(graph.accumulating) > 1  # between two passes a `.grad` is none of those that are known
        used: dict[int, int] = {}
        for operation in graph.operations if several else ():
            used |= {value: used.get(value, operation.index) for *_, value in references(operation.arguments)}
        for value in graph.values:
            if value.operation is not None or value.index == self.source:
                continue
            again = value.kind == "parameter" and "@" in value.name and not value.name.endswith("@1")
            alike = [each for each in gradients if each.shape == value.shape and each.dtype == value.dtype]
            later = several and value.kind == "input" and used.get(value.index, 0) > first
            if again or (later and alike) or any(_is_same(value.snapshot, each) for each in alike):
                found.add(value.index)
        return found

    def _made(self, value: int) -> int:
        made = self.graph.values[value].operation
        return -1 if made is None else made

    def _run(self, operation: Operation) -> None:
        unreturned = self._unreturned.get(operation.index, [])
        outputs = [*(out for out in operation.outputs if out is not None), *unreturned]
        if self._wanted is not None and outputs and self._wanted.isdisjoint(outputs):
            return
        if operation.function is None:  # its operands are not known
            for out in outputs:
                ones = torch.full((1,) * len(self.graph.values[out].shape), float(self.size))
                self.bounds[out] = Bounds(ones, ones)
            return
        labels: dict[str, list[tuple[int | None, Bounds]]] = {}
        for name, item, value in references(operation.arguments):
            if (found := self.of(value)) is not None:
                labels.setdefault(name, []).append((item, found))
        if not labels:
            return
        if reads := _reads_numbers(operation):
            self.left.append((reads, operation))
        if not outputs:
            return
        outs = tuple(None if out is None else self.graph.values[out].snapshot.placeholder for out in operation.outputs)
        op = Applied(self.graph.filled(operation.arguments), outs, operation.name)
        pairs = []
        for end in (0, 1):
            given = {name: _label(operation.arguments[name], found, end) for name, found in labels.items()}
            pairs.append(carried(op, given, operation.function))
        for out, last, first in zip(operation.outputs, *pairs, strict=True):
            if out is not None and out != self.source and last is not None and first is not None and bool(last.any()):
                self.bounds[out] = Bounds(last, first)
        for out in unreturned:
            if (whole := self._whole(out, [found for several in labels.values() for _, found in several])) is not None:
                self.bounds[out] = whole

    @cached_property
    def _unreturned(self) -> dict[int, list[int]]:
        """The values that each operation wrote and did not return."""
        found: dict[int, list[int]] = {}
        for value in self.graph.values:
            made = value.operation
            if made is not None and value.earlier is None and value.index not in self.graph.operations[made].outputs:
                found.setdefault(made, []).append(value.index)
        return found

    # -- what they say ------------------------------------------------------------------------------------------------

    def relation(self, value: int) -> tuple[Relation, Alignment | None]:
        """What the elements of a value depend on, at most, and along which of its axes."""
        return relation(self.of(value), self.graph.values[value].shape, self.size)

    def path(self, value: int, leaks: Callable[[int], bool]) -> tuple[list[int], int]:
        """A way from the source to a value: the values on it, and the place of the first that leaks.

        Back from the value it follows what leaks as far as it goes, and from there the shortest way to the source.
        """
        leaking = [value]
        while leaking[-1] != self.source:
            before = [each for each in self._reached(leaking[-1]) if each not in leaking and leaks(each)]
            if not before:
                break
            leaking.append(before[0])
        came: dict[int, int] = {}
        waiting = deque([leaking[-1]])
        while waiting and self.source not in came and (here := waiting.popleft()) != self.source:
            for each in self._reached(here):
                if each not in came and each != leaking[-1]:
                    came[each] = here
                    waiting.append(each)
        start, here = [], self.source
        while here in came:
            start.append(here)
            here = came[here]
        return [*start, *reversed(leaking)], len(start)

    def _reached(self, value: int) -> list[int]:
        return [each for each in dict.fromkeys(self._made_from(value)) if self.of(each) is not None]

    def returned(self) -> list[int]:
        """The gradients of the step, and the parameters after an update, that lead on to the value asked about."""
        return [value for value in self._gradients if value in self.bounds]

    def open(self) -> list[str]:
        """Where numbers left the operations before the value that is asked about was there, in words."""
        made = None if self._until is None else self.graph.values[self._until].operation
        found = []
        for words, operation in self.left:
            if made is None or operation.index < made:
                call = None if operation.call is None else self.graph.calls[operation.call]
                found.append(f"{words}{_at(call and call.place)}")
        return list(dict.fromkeys(found))


def relation(bounds: Bounds | None, shape: tuple[int, ...], size: int) -> tuple[Relation, Alignment | None]:
    """What the elements of a value of this shape depend on, and along which of its axes."""
    if bounds is None or not bool(bounds.last.any()):
        return "none", None
    last, first, some = bounds.last - 1, size - bounds.first, bounds.last > 0
    found: list[tuple[Relation, Alignment | None]] = []
    for aligned in alignments(shape, size):
        own = aligned.positions
        if bool((~some | ((last == own) & (first == own))).all()):
            return "own", aligned
        if bool((~some | (last <= own)).all()):
            found.append(("earlier", aligned))
        elif bool((~some | (first >= own)).all()):
            found.append(("later", aligned))
    if bool((~some | (last == first)).all()):
        return "one", None
    return found[0] if found else ("any", None)


def alignments(shape: tuple[int, ...], size: int) -> Iterator[Alignment]:
    """The axes of a shape along which there are as many positions, or a multiple: several axes merged to one."""
    for axis, own in enumerate(shape):
        places = torch.arange(float(own)).reshape([-1 if each == axis else 1 for each in range(len(shape))])
        if own == size:
            yield Alignment(axis, places)
        elif size > 1 and own > size and own % size == 0:
            yield Alignment(axis, places // (own // size), f" (place i is of position i // {own // size})")
            yield Alignment(axis, places % size, f" (place i is of position i % {size})")


def _label(argument: Any, found: list[tuple[int | None, Bounds]], end: int) -> Any:
    if found[0][0] is None:
        return found[0][1][end]
    labels: list[Tensor | None] = [None] * len(argument)
    for item, bounds in found:
        if item is not None:
            labels[item] = bounds[end]
    return labels


def _is_same(value: Snapshot, gradient: Snapshot) -> bool:
    """Whether a leaf holds this gradient of its shape, or may do."""
    one, other = value.data, gradient.data
    if one is None or other is None or not one.layout == other.layout == torch.strided:
        return True
    if one.device != other.device or not torch.equal(one.reshape(-1)[:16], other.reshape(-1)[:16]):
        return False
    return torch.equal(one, other)


def _reads_numbers(operation: Operation) -> str:
    """How an operation gives numbers to Python, in words; "" where it does not."""
    tags = getattr(getattr(operation.function, "function", None), "tags", ())
    if torch.Tag.data_dependent_output in tags:
        return "Python read a number of it"
    return "its numbers decide a shape" if torch.Tag.dynamic_output_shape in tags else ""


def _at(place: Place | None) -> str:
    return f" ({place})" if place is not None else ""


def step_of(graph: Graph, value: int) -> str:
    """What made a value, as the user called it, with the place in the code: `softmax (model.py:12)`."""
    made = graph.values[value].operation
    if made is None:
        return graph.values[value].name
    operation = graph.operations[made]
    if operation.call is None:
        return base_name(operation.name)
    call = graph.calls[operation.call]
    return f"{call.name.strip('_')}{_at(call.place)}"
