"""Autograd's nodes in forward order, each edge matched with the argument of the operation that it belongs to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from chainrule.capture.lowering.operations import Lowering, node_name
from chainrule.graph.graph import Edge, Node, NodeExecution, Place, Ref, references
from chainrule.rules.operations import facts_of


def number_nodes(lowering: Lowering) -> dict[int, int]:
    """The tape's numbers of nodes -> ours, in forward order."""
    order = sorted(range(len(lowering.tape.nodes)), key=_forward_order(lowering))
    return {raw: new for new, raw in enumerate(order)}


def _forward_order(lowering: Lowering) -> Callable[[int], tuple[int, int]]:
    """A leaf's `AccumulateGrad` comes where the leaf is first used; any other node at its operation."""
    first_use: dict[int, int] = {}
    for index, raw in enumerate(lowering.tape.nodes):
        for node, _ in raw.edges:
            number = lowering.tape.number_of.get(node)
            if number is not None and hasattr(node, "variable"):
                use = lowering.operation_of.get(index, 0)
                first_use[number] = min(first_use.get(number, use), use)
    last = len(lowering.operations)
    return lambda index: (first_use[index], 0) if index in first_use else (lowering.operation_of.get(index, last), 1)


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
