"""Autograd's side of the step: its nodes in forward order with their edges, and the backward passes: which node ran in
which, what arrived at it and what it sent on, the gradient of each value, and events between the operations (gradients
cleared, clipped or written to by hand, and changed by hooks).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules._functions import BackwardHookFunction

from chainrule.capture.lowering.naming import Names
from chainrule.capture.lowering.operations import Lowering, node_name
from chainrule.capture.lowering.tensor_versions import Snapshots, data_after, frozen
from chainrule.capture.node_hooks import AccumulateGrad
from chainrule.capture.retention import is_trained_leaf
from chainrule.capture.tape import RawBackward
from chainrule.graph.comparison import compare
from chainrule.graph.graph import (
    Backward,
    Edge,
    Event,
    Node,
    NodeExecution,
    Place,
    Ref,
    accumulate,
    counted,
    references,
)
from chainrule.graph.snapshot import all_have_numbers
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
        tuple(_edges(raw, operation, lowering, number)),
        tuple(executions),
        lowering.leaves.of(node.variable) if hasattr(node, "variable") else None,
        functions.get(-1 if operation is None else operation) or _place(call, lowering),
        getattr(node, "_forward_cls", None),
    )


def _place(call: int | None, lowering: Lowering) -> Place | None:
    site = lowering.tape.calls[call].site if call is not None else None
    return site.place() if site is not None else None


def _edges(raw: int, operation: int | None, lowering: Lowering, number: dict[int, int]) -> Iterator[Edge]:
    """Match each edge with the argument it belongs to: both run through the arguments in the schema's order."""
    arguments = list(references(lowering.operations[operation].arguments)) if operation is not None else []
    cursor = 0
    for position, (node, slot) in enumerate(lowering.tape.nodes[raw].edges):
        target = None if node is None else lowering.tape.number_of.get(node)
        if target is None:
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

    def executions(self, snapshots: Snapshots) -> dict[int, list[NodeExecution]]:
        """Each node's runs, by the tape's number of the node."""
        found: dict[int, list[NodeExecution]] = {}
        for order, (task, node, downstream, upstream) in enumerate(self._tape.executions):
            filled = self.with_leaves(node, task, downstream)
            arrived = tuple(map(snapshots.of_some, frozen(self._tape, upstream)))
            execution = NodeExecution(self.number[task], order, arrived, tuple(map(snapshots.of_some, filled)))
            found.setdefault(node, []).append(execution)
        return found

    def with_leaves(self, node: int, task: int, downstream: tuple[Any, ...]) -> tuple[Tensor | None, ...]:
        """Fill in the gradients that went straight into a leaf, which were read from its `.grad` afterwards."""
        filled = list(frozen(self._tape, downstream))
        raw = self.by_task.get(task)
        if raw is not None:
            for position, leaf in raw.straight.get(node, ()):
                if filled[position] is None:
                    filled[position] = self.left(raw, leaf)
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
            found.append(Backward(index, roots, loss, place, raw.accumulates, given))
        unseen = range(len(found), max(self.number.values(), default=-1) + 1)
        return (*found, *(Backward(index, (), None) for index in unseen))


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
    for task, node, _, upstream in lowering.tape.executions:
        for slot, value in lowering.outputs_of.get(node, {}).items():
            if slot < len(upstream) and upstream[slot] is not None:
                yield task, value, data_after(lowering.tape, upstream[slot], -1)


def _at_leaves(passes: BackwardPasses) -> Arrivals:
    """For a leaf: what nodes sent straight to it."""
    tape, leaves = passes.lowering.tape, passes.lowering.leaves
    at_leaves = [any(type(node) is AccumulateGrad for node, _ in raw.edges) for raw in tape.nodes]
    for task, node, downstream, _ in tape.executions:
        sent = passes.with_leaves(node, task, downstream) if at_leaves[node] else ()
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


Arriving = dict[tuple[int, int, int], Tensor]  # (task, node, slot) -> the sum of what was sent there so far


def read_events(passes: BackwardPasses, names: Names) -> Iterator[Event]:
    """The writes in their order, then the changes by hooks in the order in which they ran.

    A write is on the tape. A hook runs inside autograd, unseen: it shows as a gradient that is not the sum of what the
    uses of the value sent.
    """
    tape = passes.lowering.tape
    for position, gradient, function, site in tape.writes:
        if (parameter := tape.gradients.get(gradient)) is not None:
            name = names.of_parameter(parameter, 0)
            yield Event(function or "write", name, position, site.place() if site else None)
    yield from _changes_by_hooks(passes)


def _changes_by_hooks(passes: BackwardPasses) -> Iterator[Event]:
    lowering, tape, arriving = passes.lowering, passes.lowering.tape, Arriving()
    for task, number, downstream, upstream in tape.executions:
        sent_on = frozen(tape, downstream)
        if getattr(tape.nodes[number].node, "_forward_cls", None) is BackwardHookFunction:
            yield from _changes_by_module_hooks(lowering, number, frozen(tape, upstream), sent_on)
        for slot, value in lowering.outputs_of.get(number, {}).items():
            sent = arriving.pop((task, number, slot), None)
            arrived: Any = upstream[slot] if slot < len(upstream) else None
            if sent is not None and arrived is not None and not _alike(sent, data_after(tape, arrived, -1)):
                yield _change(lowering, value)
        for (node, slot), gradient in zip(tape.nodes[number].edges, sent_on, strict=False):
            if gradient is not None and node in tape.number_of:
                accumulate(arriving, (task, tape.number_of[node], slot), gradient)
    yield from _changes_at_leaves(passes, arriving)


def _changes_at_leaves(passes: BackwardPasses, arriving: Arriving) -> Iterator[Event]:
    """What nodes sent to a leaf should be what the pass added to its `.grad`."""
    lowering = passes.lowering
    combined = {(raw.task, id(raw.leaf)) for raw in lowering.tape.arrivals}  # over ranks: no hook of the user's
    for (task, number, _), sent in arriving.items():
        leaf = getattr(lowering.tape.nodes[number].node, "variable", None)
        raw = passes.by_task.get(task)
        if raw is None or leaf is None or id(leaf) not in lowering.values.versions or (task, id(leaf)) in combined:
            continue
        before, left = raw.before.get(id(leaf)), passes.left(raw, leaf)
        if before is not None and not all_have_numbers(before, sent):
            continue
        whole = sent if before is None else sent + before
        if left is not None and not _alike(whole, left):
            yield _change(lowering, lowering.values.versions[id(leaf)][0])


def _changes_by_module_hooks(
    lowering: Lowering, number: int, upstream: tuple[Tensor | None, ...], downstream: tuple[Tensor | None, ...]
) -> Iterator[Event]:
    """`register_full_backward_hook` puts its hook on a function of PyTorch's that passes everything on unchanged."""
    for slot, (arrived, sent) in enumerate(zip(upstream, downstream, strict=False)):
        value = lowering.outputs_of.get(number, {}).get(slot)
        if value is not None and arrived is not None and sent is not None and not _alike(arrived, sent):
            yield _change(lowering, value)


def _change(lowering: Lowering, value: int) -> Event:
    draft = lowering.values[value]
    return Event("hook", draft.names[0], max(draft.created + 1, 0), draft.place, value)


def _alike(left: Tensor, right: Tensor) -> bool:
    """The same apart from the rounding of another order of summation, as far as is known."""
    if not all_have_numbers(left, right):
        return True
    if left.layout is not torch.strided or right.layout is not torch.strided or left.shape != right.shape:
        return left.shape == right.shape
    return compare(left, right).agrees
