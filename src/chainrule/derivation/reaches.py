"""Which positions of one value each element of another can depend on, from the operations between them alone.

The bound is for all numbers: it follows from what each operation does with shapes, indices and constants
(`rules.reach`). It may be too large, and is never too small as far as PyTorch's operations carry the numbers. Numbers
that leave them (`item()`, NumPy, a gradient) and come back as data are listed: there the bound proves nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from chainrule.execution.lineage import Lineage, reads_numbers
from chainrule.graph.graph import Graph, Operation, Place, references
from chainrule.graph.trees import reach
from chainrule.rules import Applied
from chainrule.rules.facts import base_name
from chainrule.rules.pattern import laid
from chainrule.rules.reach import carried

Relation = Literal["none", "own", "one", "earlier", "later", "any"]
"""What an element depends on: on no position, on its own, on one other, on those up to its own, from it on, on any."""


ANY_WRITE = -1  # in place of a value: all that was written in place


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


class Reaches:
    """The bounds of all values that can depend on the positions along one axis of a value.

    Without an axis the whole value is one position. `until` is the value that is asked about: what does not lead to it
    is left out.
    """

    def __init__(
        self, graph: Graph, source: int, axis: int | None, until: int | None = None, lineage: Lineage | None = None
    ) -> None:
        self.graph, self.source, self.axis = graph, source, axis
        self.lineage = lineage or Lineage(graph)
        shape = graph.values[source].shape
        self.size = 1 if axis is None else shape[axis]
        kind = torch.float32 if self.size < 2**24 else torch.float64  # in which every position is exact
        steps = laid(torch.arange(1, self.size + 1, dtype=kind), axis, len(shape))
        self.bounds: dict[int, Bounds] = {source: Bounds(steps, self.size + 1 - steps)}
        self.left: list[tuple[str, Operation]] = []  # how numbers left the operations
        self._came: dict[int, list[int]] = {}  # memory that was written to through another tensor: from what
        self._nothing: set[int] = set()  # values that no position reaches
        self._until = until
        self._wanted = None if until is None else self._leading_to(until)
        self._ran = -1
        for operation in graph.operations:
            self._run(operation)
            self._ran = operation.index

    def _leading_to(self, value: int) -> set[int]:
        """The value, what it was made from, and what gave numbers to Python."""
        return set(reach([value, *self.lineage.read], self._made_from))

    def _made_from(self, value: int) -> list[int]:
        """The operands of a value, and what its memory was made of."""
        if value == ANY_WRITE:
            return [out for _, out in self.lineage.writes]
        known = self.graph.values[value]
        if value in self._came:
            return self._came[value]
        found = self.graph.operands(value)
        if known.earlier is not None:
            found.append(ANY_WRITE)
        if value in self.lineage.gradients:
            found += [each.loss for each in self.graph.backwards if each.loss is not None]
        return found

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
        self._came[value] = [known.earlier, *self.lineage.overwritten(value, self._ran + 1)]
        several = [found for each in self._came[value] if (found := self.of(each)) is not None]
        return several[0] if len(self._came[value]) == 1 and several else self._whole(value, several)

    def _of_gradient(self, value: int) -> Bounds | None:
        """A gradient that comes back as data, or a parameter that was updated: any position behind the loss."""
        if value not in self.lineage.gradients or value == self.source:
            return None
        losses = [self.bounds[each.loss] for each in self.graph.backwards if each.loss in self.bounds]
        return self._whole(value, losses)

    def _whole(self, value: int, several: list[Bounds]) -> Bounds | None:
        if not several:
            return None
        ones = (1,) * len(self.graph.values[value].shape)
        last, first = (torch.stack([each.amax() for each in labels]).amax() for labels in zip(*several, strict=True))
        return Bounds(last.reshape(ones), first.reshape(ones))

    def _run(self, operation: Operation) -> None:
        unreturned = self.lineage.unreturned.get(operation.index, [])
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
        if reads := reads_numbers(operation):
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
        return [value for value in self.lineage.gradients if value in self.bounds and value != self.source]

    def open(self) -> list[str]:
        """Where numbers left the operations before the value that is asked about was there, in words."""
        made = None if self._until is None else self.graph.values[self._until].operation
        found = []
        for words, operation in self.left:
            if made is None or operation.index < made:
                place = None if operation.call is None else self.graph.calls[operation.call].place
                found.append(f"{words}{_at(place)}")
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
        places = laid(torch.arange(float(own)), axis, len(shape))
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
