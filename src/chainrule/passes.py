"""The backward passes: which node ran in which, what came down to it and what it sent on, and the gradients that this
makes for each value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from chainrule.graph import Backward, Passage
from chainrule.hooks import AccumulateGrad
from chainrule.leaves import Leaves
from chainrule.reading import Reading
from chainrule.tape import RawBackward, Tape
from chainrule.values import data_after, frozen


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

    def passages(self) -> dict[int, list[Passage]]:
        """Each node's runs, by the tape's number of the node."""
        found: dict[int, list[Passage]] = {}
        for order, (task, node, downstream, upstream) in enumerate(self._tape.passages):
            filled = self.with_leaves(node, task, downstream)
            passage = Passage(self._number[task], order, frozen(self._tape, upstream), filled)
            found.setdefault(node, []).append(passage)
        return found

    def with_leaves(self, node: int, task: int, downstream: tuple[Any, ...]) -> tuple[Tensor | None, ...]:
        """Put in the gradients that went straight into a leaf, and were read from its `.grad` afterwards."""
        filled = list(frozen(self._tape, downstream))
        raw = self.of_task(task)
        for position, leaf in self._tape.nodes[node].leaves:
            if raw is not None and filled[position] is None and id(leaf) not in raw.before:
                filled[position] = self.left(raw, leaf)
        return tuple(filled)

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

    def backwards(self, reading: Reading, number: dict[int, int]) -> tuple[Backward, ...]:
        """The passes with the nodes where they began; `number` puts these into forward order."""
        found, losses = [], self.losses(reading)
        for index, raw in enumerate(self._tape.backwards):
            roots = tuple(
                (number[self._tape.number_of[node]], self._tape.output_nr(root))
                for root in raw.roots
                if (node := self._tape.node_of(root)) is not None and node in self._tape.number_of
            )
            place = raw.site.place() if raw.site else None
            found.append(Backward(index, roots, losses[index], place, raw.accumulates))
        return (*found, *(Backward(index, (), None) for index in range(len(found), len(losses))))


def gradients_of_results(reading: Reading) -> dict[int, Tensor]:
    """d loss / d value of what operations made: what arrived at its node from all its uses."""

    def arrivals(task: int, node: int, downstream: tuple[Any, ...], upstream: tuple[Any, ...]) -> Arrivals:
        for slot, value in reading.outputs_of.get(node, {}).items():
            if slot < len(upstream) and upstream[slot] is not None:
                yield value, data_after(reading.tape, upstream[slot], -1)

    return _summed(reading, arrivals)


def gradients_of_leaves(reading: Reading, leaves: Leaves, passes: Passes) -> dict[int, Tensor]:
    """d loss / d value of leaves: what nodes sent straight to them."""
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

    return _summed(reading, arrivals)


Arrivals = Iterator[tuple[int, Tensor]]


def _summed(reading: Reading, arrivals: Callable[..., Arrivals]) -> dict[int, Tensor]:
    """The sum of what arrived at each value in all runs of nodes.

    A pass that ended in an exception counts only where no other brought a gradient.
    """
    passages = reading.tape.passages
    failed = {raw.task for raw in reading.tape.backwards if raw.error is not None}
    found: dict[int, Tensor] = {}
    for runs in (
        [each for each in passages if each[0] not in failed] if failed else passages,
        [each for each in passages if each[0] in failed] if failed else (),
    ):
        arrived: dict[int, Tensor] = {}
        for run in runs:
            for value, gradient in arrivals(*run):
                accumulate(arrived, value, gradient)
        for node, slot, value in reading.unseen:
            seen = reading.outputs_of.get(node, {}).get(slot)
            if seen in arrived:
                arrived[value] = arrived[seen]
        found = arrived | found
    return found


def accumulate(sums: dict[Any, Tensor], key: Any, gradient: Tensor) -> None:
    """Add a gradient to what arrived before it; never in place, for it is the tape's."""
    known = sums.get(key)
    if known is None:
        sums[key] = gradient
    elif known.is_meta or gradient.is_meta:  # of one of them only the figures are known, and of the sum nothing
        sums[key] = torch.empty_like(known, device="meta")
    else:
        sums[key] = known + gradient
