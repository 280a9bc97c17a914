"""Autograd's side of the step: its nodes in forward order with their edges, and the backward passes: which node ran in
which, what arrived at it and what it sent on, the gradient of each value, and events between the operations (gradients
cleared, clipped or written to by hand, and changed by hooks).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from chainrule.capture.lowering.operations import Lowering, node_name
from chainrule.capture.lowering.tensor_versions import Snapshots, frozen
from chainrule.capture.node_hooks import AccumulateGrad
from chainrule.capture.raw_records import RawBackward
from chainrule.capture.retention import is_trained_leaf
from chainrule.capture.tape import Tape
from chainrule.graph.comparison import compare
from chainrule.graph.graph import (
    Backward,
    Edge,
    Node,
    NodeExecution,
    Operation,
    Place,
    Ref,
    counted,
    references,
)
from chainrule.graph.snapshot import accumulate, all_have_numbers
from chainrule.pytorch_internals import BackwardHookFunction
from chainrule.rules.facts import facts_of


def number_nodes(lowering: Lowering) -> dict[int, int]:
    """The tape's numbers of nodes -> ours, in forward order.

    A leaf's `AccumulateGrad` comes where the leaf is first used; any other node at its operation.
    """
    first_use: dict[int, int] = {}
    for index, raw in enumerate(lowering.tape.nodes):
        for node, _ in raw.edges:
            number = lowering.tape.number_of.get(node)
            if number is not None and hasattr(node, "variable"):
                use = lowering.operation_of.get(index, 0)
                first_use[number] = min(first_use.get(number, use), use)
    last = len(lowering.operations)

    def place(raw: int) -> tuple[int, int]:
        return (first_use[raw], 0) if raw in first_use else (lowering.operation_of.get(raw, last), 1)

    return {raw: new for new, raw in enumerate(sorted(range(len(lowering.tape.nodes)), key=place))}


def read_nodes(
    lowering: Lowering, number: dict[int, int], executions: dict[int, list[NodeExecution]]
) -> tuple[Node, ...]:
    """The nodes by our numbers; `executions` are their runs, by the tape's."""
    sites = {lowering.at.get(each.first): each.site for each in reversed(lowering.tape.functions)}
    places = {
        operation: site.place() for operation, site in sites.items() if operation is not None and site is not None
    }
    return tuple(_node(new, raw, lowering, number, executions.get(raw, []), places) for raw, new in number.items())


def _node(
    index: int,
    raw: int,
    lowering: Lowering,
    number: dict[int, int],
    executions: list[NodeExecution],
    functions: dict[int, Place],
) -> Node:
    """One node; `functions` are the places of the operations that are an `autograd.Function`."""
    node = lowering.tape.nodes[raw].node
    operation = lowering.operation_of.get(raw)
    slots = lowering.outputs_of.get(raw, {})
    call = lowering.operations[operation].call if operation is not None else None
    return Node(
        index,
        node_name(node),
        operation,
        call,
        tuple(slots.get(slot) for slot in range(max(slots, default=-1) + 1)),
        _completed(list(_edges(raw, operation, lowering, number)), operation, lowering),
        tuple(executions),
        lowering.leaves.of(node.variable) if hasattr(node, "variable") else None,
        functions.get(-1 if operation is None else operation) or _place(call, lowering),
        getattr(node, "_forward_cls", None),
        node._sequence_nr() < lowering.tape.first_node,
    )


def _place(call: int | None, lowering: Lowering) -> Place | None:
    site = lowering.tape.calls[call].site if call is not None else None
    return site.place() if site is not None else None


def _edges(raw: int, operation: int | None, lowering: Lowering, number: dict[int, int]) -> Iterator[Edge]:
    """Match each edge with the argument it belongs to: both run through the arguments in the schema's order.

    An `autograd.Function` has one edge for each of its arguments that is a tensor, whatever leads there.
    """
    arguments = list(references(lowering.operations[operation].arguments)) if operation is not None else []
    given = _given(lowering.operations[operation]) if operation is not None else []
    cursor = 0
    for position, (node, slot) in enumerate(lowering.tape.nodes[raw].edges):
        target = None if node is None else lowering.tape.number_of.get(node)
        if target is None:
            continue
        if position < len(given):
            yield Edge(position, number[target], slot, given[position][1], given[position][0])
            continue
        place, value = next(
            (
                (place, source)
                for place in range(cursor, len(arguments))
                if (source := _source(arguments[place][2], target, slot, node, lowering)) is not None
            ),
            (None, lowering.outputs_of.get(target, {}).get(slot)),
        )
        name, item = (None, None) if place is None else arguments[place][:2]
        cursor = cursor if place is None else place + 1
        yield Edge(position, number[target], slot, value, name, item)


def _completed(edges: list[Edge], operation: int | None, lowering: Lowering) -> tuple[Edge, ...]:
    """The edges whose source was not met as a tensor, in the order of the arguments that want gradients and have none.

    Autograd makes some views anew after a write to their memory, so an argument may be another object than its source.
    """
    unknown = [edge for edge in edges if edge.argument is None]
    if operation is None or not unknown:
        return tuple(edges)
    taken = {(edge.argument, edge.item) for edge in edges}
    free = [
        each
        for each in references(lowering.operations[operation].arguments)
        if each[:2] not in taken and lowering.tape.original(lowering.values[each[2]].tensor).requires_grad
    ]
    if len(free) != len(unknown):
        return tuple(edges)
    found = dict(zip((edge.position for edge in unknown), free, strict=True))
    return tuple(
        edge
        if edge.position not in found
        else replace(
            edge, argument=found[edge.position][0], item=found[edge.position][1], value=found[edge.position][2]
        )
        for edge in edges
    )


def _given(operation: Operation) -> list[tuple[str, int]]:
    """The arguments of an `autograd.Function` that are tensors, with their values."""
    if not isinstance(getattr(operation.function, "function", None), type):
        return []
    return [(name, each.value) for name, each in operation.arguments.items() if isinstance(each, Ref)]


def _source(value: int, target: int, slot: int, node: Any, lowering: Lowering) -> int | None:
    """This argument if the edge leads to its source; or what it was copied from, unseen by autograd."""
    draft = lowering.values[value]
    if hasattr(node, "variable"):
        found = draft.tensor is node.variable
    else:
        # The tensor is compared too: under `no_grad` a write makes another value and leaves the node unchanged.
        same = lowering.tape.nodes[target].outputs.get(slot) is draft.tensor
        found = same or lowering.outputs_of.get(target, {}).get(slot) == value
    if found:
        return value
    operation = lowering.operations[draft.operation] if draft.operation is not None and draft.node is None else None
    if operation is None:
        return None
    facts, original = facts_of(operation.name), lowering.tape.original(draft.tensor)
    if facts.detaches and original.grad_fn is node:  # it gave the node its own result back, which then has that node
        return lowering.outputs_of.get(target, {}).get(original.output_nr)
    if not facts.copies or not isinstance(operation.arguments["self"], Ref):
        return None
    return _source(operation.arguments["self"].value, target, slot, node, lowering)


# -- backward passes --------------------------------------------------------------------------------------------------


class BackwardPasses:
    """The backward passes of a tape, numbered in the order of their calls."""

    def __init__(self, lowering: Lowering) -> None:
        self.lowering = lowering
        self._tape = tape = lowering.tape
        self.number = self._numbers()  # autograd's number of a pass -> ours
        self.by_task = {raw.task: raw for raw in reversed(tape.backwards) if raw.task is not None}

    def _numbers(self) -> dict[int, int]:
        """Autograd's numbers of its passes -> ours; a pass that began unseen (inside a node) comes last."""
        known = {raw.task: index for index, raw in enumerate(self._tape.backwards) if raw.task is not None}
        for task, *_ in self._tape.executions:
            known.setdefault(task, max(len(self._tape.backwards), *known.values(), -1) + 1 if known else 0)
        return known

    @cached_property
    def changes(self) -> list[_Change]:
        """The gradients that are not the sum of what was sent."""
        return list(_changes(self))

    def sent_on(self, order: int) -> tuple[Tensor | None, ...]:
        """What an execution sent on, but for what went straight into a leaf."""
        return frozen(self._tape, self._tape.executions[order][2], order)

    def executions(self, snapshots: Snapshots, number: dict[int, int]) -> dict[int, list[NodeExecution]]:
        """Each node's runs, by the tape's number of the node; `number` puts these into forward order."""
        overwrote: dict[int, set[int]] = {order: set() for order in self._tape.backward_writes}
        for change in self.changes if overwrote else ():
            for order in change.writers:
                overwrote[order].add(number[change.node])
        found: dict[int, list[NodeExecution]] = {}
        for order, (task, node, _, upstream) in enumerate(self._tape.executions):
            filled = self.with_leaves(order)
            arrived = tuple(map(snapshots.of_some, frozen(self._tape, upstream, order)))
            sent = tuple(map(snapshots.of_some, filled))
            others = tuple(sorted(overwrote[order])) if order in overwrote else None
            execution = NodeExecution(self.number[task], order, arrived, sent, others)
            found.setdefault(node, []).append(execution)
        return found

    def with_leaves(self, order: int) -> tuple[Tensor | None, ...]:
        """What an execution sent on, with what went straight into a leaf, read from its `.grad` afterwards."""
        task, node, *_ = self._tape.executions[order]
        filled = list(self.sent_on(order))
        raw = self.by_task.get(task)
        if raw is not None:
            for position, leaf in raw.straight.get(node, ()):
                if filled[position] is None:
                    passed = raw.passed.get(id(leaf))
                    filled[position] = self.left(raw, leaf) if passed is None else self._tape.data_of(passed)
        return tuple(filled)

    def left(self, raw: RawBackward, leaf: Tensor) -> Tensor | None:
        """What a backward pass left in a leaf's `.grad`."""
        left = raw.after.get(id(leaf))
        return None if left is None else self._tape.data_of(left)

    def left_last(self, leaf: Tensor) -> Tensor | None:
        """What the last pass that reached a leaf left in its `.grad`."""
        left = (self.left(raw, leaf) for raw in reversed(self._tape.backwards))
        return next((each for each in left if each is not None), None)

    def given(self, raw: RawBackward) -> dict[int, Tensor]:
        """What `torch.autograd.grad` returned in a pass, by the value that it was asked for."""
        found, lowering = {}, self.lowering
        for asked, version in raw.given:
            of_leaf = is_trained_leaf(asked)
            value = lowering.leaves.of(asked) if of_leaf else lowering.values.at(asked, raw.position)
            if value is not None:
                found[value] = self._tape.data_of(version)
        return found

    def backwards(self, number: dict[int, int], snapshots: Snapshots) -> tuple[Backward, ...]:
        """The passes with the nodes where they began; `number` puts these into forward order."""
        found = []
        for index, raw in enumerate(self._tape.backwards):
            roots = tuple(
                (number[self._tape.number_of[node]], self._tape.original(root).output_nr)
                for root in raw.roots
                if (node := self._tape.original(root).grad_fn) is not None and node in self._tape.number_of
            )
            loss = self.lowering.values.at(raw.roots[0], raw.position) if raw.roots else None
            place = raw.site.place() if raw.site else None
            given = {value: snapshots.of(gradient) for value, gradient in self.given(raw).items()}
            differentiated = self._was_differentiated(raw)
            found.append(Backward(index, roots, loss, place, raw.accumulates, given, differentiated, raw.position))
        unseen = range(len(found), max(self.number.values(), default=-1) + 1)
        return (*found, *(Backward(index, (), None) for index in unseen))

    def _was_differentiated(self, raw: RawBackward) -> bool:
        """Whether another pass went through a node that was made in this one."""
        if raw.last is None:
            return False
        made = range(raw.position, raw.last)
        ran = (self._tape.nodes[node].operation for task, node, *_ in self._tape.executions if task != raw.task)
        return any(operation is not None and operation in made for operation in ran)


def gradients_of(passes: BackwardPasses, backwards: Sequence[Backward]) -> dict[int, Tensor]:
    """d loss / d value of all values, summed over the passes that are `counted`.

    Where no node that uses a value ran, it is what `torch.autograd.grad` returned.
    """
    given = {value: gradient for raw in passes.lowering.tape.backwards for value, gradient in passes.given(raw).items()}
    results = _summed(passes, backwards, _at_results(passes.lowering))
    return given | results | _summed(passes, backwards, _at_leaves(passes))


Arrivals = Iterator[tuple[int, int, Tensor]]  # (task, value, gradient)


def _at_results(lowering: Lowering) -> Arrivals:
    """For the result of an operation: what arrived at its node from all uses."""
    for order, (task, node, _, upstream) in enumerate(lowering.tape.executions):
        arrived = frozen(lowering.tape, upstream, order)
        for slot, value in lowering.outputs_of.get(node, {}).items():
            if slot < len(arrived) and (gradient := arrived[slot]) is not None:
                yield task, value, gradient


def _at_leaves(passes: BackwardPasses) -> Arrivals:
    """For a leaf: what nodes sent straight to it."""
    tape, leaves = passes.lowering.tape, passes.lowering.leaves
    at_leaves = [any(type(node) is AccumulateGrad for node, _ in raw.edges) for raw in tape.nodes]
    for order, (task, node, *_) in enumerate(tape.executions):
        sent = passes.with_leaves(order) if at_leaves[node] else ()
        for (target, _), gradient in zip(tape.nodes[node].edges, sent, strict=False):
            if gradient is not None and type(target) is AccumulateGrad:
                leaf = leaves.of(target.variable)  # type: ignore[attr-defined]
                if leaf is not None:
                    yield task, leaf, gradient


def _summed(passes: BackwardPasses, backwards: Sequence[Backward], arrivals: Arrivals) -> dict[int, Tensor]:
    """The sum of what arrived at each value in the passes that are counted.

    A pass that ended in an exception counts only where no other brought a gradient.
    """
    lowering, tape = passes.lowering, passes.lowering.tape
    arrived: dict[int, dict[int, Tensor]] = {}
    for task, value, gradient in arrivals:
        accumulate(arrived.setdefault(value, {}), passes.number[task], gradient)
    failed = {index for index, raw in enumerate(tape.backwards) if raw.error is not None}
    found: dict[int, Tensor] = {}
    for value, sums in arrived.items():
        for index in counted(backwards, sums.keys() - failed or sums):
            accumulate(found, value, sums[index])
    for node, slot, value in lowering.unseen:
        seen = lowering.outputs_of.get(node, {}).get(slot)
        if seen in found:
            found[value] = found[seen]
    return found


class _Sent(dict[tuple[int, int, int], list[tuple[int, Tensor | None, Tensor]]]):
    """(task, node, slot) -> what was sent there so far: by which execution, the tensor, and its data then."""


@dataclass(frozen=True, slots=True)
class _Change:
    """A gradient that is not the sum of what was sent: by a hook, or by backwards that wrote to it on its way."""

    value: int
    node: int  # that it arrived at
    writers: frozenset[int]  # executions


def _changes(passes: BackwardPasses) -> Iterator[_Change]:
    lowering, tape, sent = passes.lowering, passes.lowering.tape, _Sent()
    for order, (task, number, _, upstream) in enumerate(tape.executions):
        sent_on, arrived = passes.sent_on(order), frozen(tape, upstream, order)
        if getattr(tape.nodes[number].node, "_forward_cls", None) is BackwardHookFunction:
            yield from _changes_by_module_hooks(lowering, number, arrived, passes.with_leaves(order))
        for slot, value in lowering.outputs_of.get(number, {}).items():
            parts = sent.pop((task, number, slot), [])
            here = arrived[slot] if slot < len(arrived) else None
            if parts and here is not None and not _alike(_total(parts), here):
                yield _Change(value, number, _writers(tape, parts, order))
        for (node, slot), gradient, tensor in zip(
            tape.nodes[number].edges, sent_on, tape.executions[order][2], strict=False
        ):
            if gradient is not None and node in tape.number_of:
                sent.setdefault((task, tape.number_of[node], slot), []).append((order, tensor, gradient))
    yield from _changes_at_leaves(passes, sent)


def _total(parts: list[tuple[int, Tensor | None, Tensor]]) -> Tensor:
    total: dict[int, Tensor] = {}
    for *_, gradient in parts:
        accumulate(total, 0, gradient)
    return total[0]


def _writers(tape: Tape, parts: list[tuple[int, Tensor | None, Tensor]], end: int) -> frozenset[int]:
    """The executions whose backward wrote to one of these gradients after it was sent, and before `end`."""
    copied = (
        copy.executions
        for order, tensor, _ in parts
        for copy in tape.copies.get(id(tensor), ())
        if order < copy.executions <= end
    )
    writers = ((each for each in sorted(tape.backward_writes) if each >= at) for at in copied)
    return frozenset(found for each in writers if (found := next(each, None)) is not None)


def _changes_at_leaves(passes: BackwardPasses, arriving: _Sent) -> Iterator[_Change]:
    """What nodes sent to a leaf should be what the pass added to its `.grad`."""
    lowering, tape = passes.lowering, passes.lowering.tape
    combined = {(raw.task, id(raw.leaf)) for raw in tape.arrivals}  # over ranks: no hook of the user's
    for (task, number, _), parts in arriving.items():
        leaf, sent = getattr(tape.nodes[number].node, "variable", None), _total(parts)
        raw = passes.by_task.get(task)
        if raw is None or leaf is None or id(leaf) not in lowering.values.versions or (task, id(leaf)) in combined:
            continue
        if id(leaf) in raw.passed:  # a pass inside added to `.grad` too
            continue
        before, left = raw.before.get(id(leaf)), passes.left(raw, leaf)
        if before is not None and not all_have_numbers(before, sent):
            continue
        whole = sent if before is None else sent + before
        if left is not None and not _alike(whole, left):
            last = max(order for order, execution in enumerate(tape.executions) if execution[0] == task)
            yield _Change(lowering.values.versions[id(leaf)][0], number, _writers(tape, parts, last))


def _changes_by_module_hooks(
    lowering: Lowering, number: int, upstream: tuple[Tensor | None, ...], downstream: tuple[Tensor | None, ...]
) -> Iterator[_Change]:
    """`register_full_backward_hook` puts its hook on a function of PyTorch's that passes everything on unchanged."""
    for slot, (arrived, sent) in enumerate(zip(upstream, downstream, strict=False)):
        value = lowering.outputs_of.get(number, {}).get(slot)
        if value is not None and arrived is not None and sent is not None and not _alike(arrived, sent):
            yield _Change(value, number, frozenset())


def _alike(left: Tensor, right: Tensor) -> bool:
    """The same apart from the rounding of another order of summation, as far as is known."""
    if not all_have_numbers(left, right):
        return True
    if left.layout is not torch.strided or right.layout is not torch.strided or left.shape != right.shape:
        return left.shape == right.shape
    return compare(left, right).agrees
