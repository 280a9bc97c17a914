"""The backward passes: which node ran in which, what came down to it and what it sent on, and the gradients that this
makes for each value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor

from chainrule.capture.lowering.leaves import Leaves
from chainrule.capture.lowering.operations import Reading
from chainrule.capture.lowering.statistics import Snapshots
from chainrule.capture.lowering.tensor_versions import data_after, frozen
from chainrule.capture.node_hooks import AccumulateGrad
from chainrule.capture.retention import is_trained_leaf
from chainrule.capture.tape import RawBackward, Tape
from chainrule.graph.graph import Backward, NodeExecution, accumulate, counted


class Passes:
    """The backward passes of a tape, numbered in the order of their calls."""

    def __init__(self, tape: Tape) -> None:
        self._tape = tape
        self._number = self._numbers()
        self._by_task = {raw.task: raw for raw in reversed(tape.backwards) if raw.task is not None}

    def _numbers(self) -> dict[int, int]:
        """Autograd's numbers of its passes -> ours; one that began unseen (inside a node) comes after those we saw."""
        known = {raw.task: index for index, raw in enumerate(self._tape.backwards) if raw.task is not None}
        for task, *_ in self._tape.passages:
            known.setdefault(task, max(len(self._tape.backwards), *known.values(), -1) + 1 if known else 0)
        return known

    def passages(self, snapshots: Snapshots) -> dict[int, list[NodeExecution]]:
        """Each node's runs, by the tape's number of the node."""
        found: dict[int, list[NodeExecution]] = {}
        for order, (task, node, downstream, upstream) in enumerate(self._tape.passages):
            filled = self.with_leaves(node, task, downstream)
            arrived = tuple(map(snapshots.of_some, frozen(self._tape, upstream)))
            passage = NodeExecution(self.number(task), order, arrived, tuple(map(snapshots.of_some, filled)))
            found.setdefault(node, []).append(passage)
        return found

    def with_leaves(self, node: int, task: int, downstream: tuple[Any, ...]) -> tuple[Tensor | None, ...]:
        """Put in the gradients that went straight into a leaf, and were read from its `.grad` afterwards."""
        filled = list(frozen(self._tape, downstream))
        raw = self.of_task(task)
        if raw is not None:
            for position, leaf in raw.straight.get(node, ()):
                if filled[position] is None:
                    filled[position] = self.left(raw, leaf)
        return tuple(filled)

    def number(self, task: int) -> int:
        """Our number of one of autograd's passes."""
        return self._number[task]

    def of_task(self, task: int) -> RawBackward | None:
        """The backward call behind autograd's number of a pass."""
        return self._by_task.get(task)

    def left(self, raw: RawBackward, leaf: Tensor) -> Tensor | None:
        """What a backward pass left in a leaf's `.grad`."""
        left = raw.after.get(id(leaf))
        return None if left is None else self._tape.data_of(left)

    def left_last(self, leaf: Tensor) -> Tensor | None:
        """What the last pass that reached a leaf left in its `.grad`."""
        left = (self.left(raw, leaf) for raw in reversed(self._tape.backwards))
        return next((each for each in left if each is not None), None)

    def losses(self, reading: Reading) -> list[int | None]:
        """What each pass began from, as a value; None of one that began unseen."""
        known = [reading.values.at(raw.roots[0], raw.position) if raw.roots else None for raw in self._tape.backwards]
        unseen = max(self._number.values(), default=-1) + 1 - len(known)
        return known + [None] * unseen

    def given(self, reading: Reading, leaves: Leaves) -> list[dict[int, Tensor]]:
        """What `torch.autograd.grad` returned in each pass, by the values that it was asked for."""
        return [self._given(raw, reading, leaves) for raw in self._tape.backwards]

    def _given(self, raw: RawBackward, reading: Reading, leaves: Leaves) -> dict[int, Tensor]:
        found = {}
        for asked, version in raw.given:
            value = leaves.of(asked) if is_trained_leaf(asked) else reading.values.at(asked, raw.position)
            if value is not None:
                found[value] = self._tape.data_of(version)
        return found

    def backwards(
        self, reading: Reading, number: dict[int, int], given: list[dict[int, Tensor]], snapshots: Snapshots
    ) -> tuple[Backward, ...]:
        """The passes with the nodes where they began; `number` puts these into forward order."""
        found, losses = [], self.losses(reading)
        for index, raw in enumerate(self._tape.backwards):
            roots = tuple(
                (number[self._tape.number_of[node]], self._tape.output_nr(root))
                for root in raw.roots
                if (node := self._tape.node_of(root)) is not None and node in self._tape.number_of
            )
            place = raw.site.place() if raw.site else None
            gradients = {value: snapshots.of(gradient) for value, gradient in given[index].items()}
            found.append(Backward(index, roots, losses[index], place, raw.accumulates, gradients))
        return (*found, *(Backward(index, (), None) for index in range(len(found), len(losses))))


def gradients_of(
    reading: Reading,
    leaves: Leaves,
    passes: Passes,
    backwards: Sequence[Backward],
    given: list[dict[int, Tensor]],
) -> dict[int, Tensor]:
    """d loss / d value of all values, summed over the passes that are `counted`.

    Where no node that led on from a value ran, it is what `torch.autograd.grad` gave.
    """
    last = {value: gradient for each in given for value, gradient in each.items()}
    results = _summed(reading, passes, backwards, _at_results(reading))
    return last | results | _summed(reading, passes, backwards, _at_leaves(reading, leaves, passes))


Arrivals = Iterator[tuple[int, Tensor]]


def _at_results(reading: Reading) -> Callable[..., Arrivals]:
    """To what operations made: what arrived at its node from all its uses."""

    def arrivals(task: int, node: int, downstream: tuple[Any, ...], upstream: tuple[Any, ...]) -> Arrivals:
        for slot, value in reading.outputs_of.get(node, {}).items():
            if slot < len(upstream) and upstream[slot] is not None:
                yield value, data_after(reading.tape, upstream[slot], -1)

    return arrivals


def _at_leaves(reading: Reading, leaves: Leaves, passes: Passes) -> Callable[..., Arrivals]:
    """To leaves: what nodes sent straight to them."""
    nodes = reading.tape.nodes
    at_leaves = [any(type(node) is AccumulateGrad for node, _ in raw.edges) for raw in nodes]

    def arrivals(task: int, node: int, downstream: tuple[Any, ...], upstream: tuple[Any, ...]) -> Arrivals:
        if at_leaves[node]:
            for (target, _), gradient in zip(
                nodes[node].edges, passes.with_leaves(node, task, downstream), strict=False
            ):
                if gradient is not None and type(target) is AccumulateGrad:
                    leaf = leaves.of(target.variable)  # type: ignore[attr-defined]
                    if leaf is not None:
                        yield leaf, gradient

    return arrivals


def _summed(
    reading: Reading, passes: Passes, backwards: Sequence[Backward], arrivals: Callable[..., Arrivals]
) -> dict[int, Tensor]:
    """The sum of what arrived at each value in all runs of nodes, in the passes that are counted.

    A pass that ended in an exception counts only where no other brought a gradient.
    """
    tape, arrived = reading.tape, dict[int, dict[int, Tensor]]()
    for run in tape.passages:
        number = passes.number(run[0])
        for value, gradient in arrivals(*run):
            accumulate(arrived.setdefault(value, {}), number, gradient)
    failed = {index for index, raw in enumerate(tape.backwards) if raw.error is not None}
    found: dict[int, Tensor] = {}
    for value, sums in arrived.items():
        for index in counted(backwards, sums.keys() - failed or sums):
            accumulate(found, value, sums[index])
    for node, slot, value in reading.unseen:
        seen = reading.outputs_of.get(node, {}).get(slot)
        if seen in found:
            found[value] = found[seen]
    return found
