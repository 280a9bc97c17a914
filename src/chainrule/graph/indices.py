"""Checks that the indices by which the parts of a graph refer to each other lead somewhere."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from chainrule.graph.graph import Graph, Ref
from chainrule.graph.trees import leaves


def check_indices(graph: Graph) -> None:
    """Raise ValueError where an index leads nowhere, as a later reader of the graph would fail far from here."""
    values, operations, nodes, calls = map(len, (graph.values, graph.operations, graph.nodes, graph.calls))
    counted: tuple[tuple[Any, ...], ...] = (graph.values, graph.operations, graph.nodes, graph.calls, graph.backwards)
    for several in counted:
        for place, each in enumerate(several):
            if each.index != place:
                raise ValueError(f"number {place} of its kind ({type(each).__name__}) says that it is {each.index}")
    for value in graph.values:
        _within((value.operation,), operations, f"value {value.index}")
        _within((value.earlier,), values, f"value {value.index}")
        _within((value.node,), nodes, f"value {value.index}")
    for operation in graph.operations:
        where = f"operation {operation.index}"
        _within((*operation.outputs, *_refs(operation.arguments)), values, where)
        _within((operation.node,), nodes, where)
        _within((operation.call,), calls, where)
    for node in graph.nodes:
        where = f"node {node.index}"
        _within((*node.outputs, node.leaf, *(edge.value for edge in node.edges)), values, where)
        _within((edge.node for edge in node.edges), nodes, where)
        _within((node.operation,), operations, where)
        _within((node.call,), calls, where)
        _within((execution.backward for execution in node.executions), len(graph.backwards), where)
    for call in graph.calls:
        _within(call.operations, operations, f"call {call.index}")
        _within((*call.outputs, *_refs((call.arguments, call.keywords))), values, f"call {call.index}")
    for backward in graph.backwards:
        _within((backward.loss, *backward.given), values, f"backward pass {backward.index}")
        _within((node for node, _ in backward.roots), nodes, f"backward pass {backward.index}")
    _within((each.value for each in graph.failures), values, "a failure")
    _within((each.operation for each in graph.failures), operations, "a failure")
    _within((parameter.value for parameter in graph.parameters.values()), values, "a parameter")
    _within((each.value for update in graph.updates for each in update.parameters), values, "an update")
    _within((event.value for event in graph.events), values, "an event")
    _within((event.operation for event in graph.events), operations, "an event")
    _within((each.reducer for each in graph.reductions.values()), len(graph.reducers), "a reduction")


def _refs(tree: Any) -> Iterable[int]:
    """Every value that a tree of arguments refers to."""
    return (ref.value for ref in leaves(tree, Ref))


def _within(indices: Iterable[int | None], count: int, where: str) -> None:
    for index in indices:
        if index is not None and not 0 <= index < count:
            raise ValueError(f"{where} refers to number {index} of {count}")
