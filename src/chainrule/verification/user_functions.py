"""What the gradient check says of a user's `autograd.Function` besides its numbers: writes that autograd cannot see."""

from __future__ import annotations

from dataclasses import replace

from chainrule.graph.graph import Graph, Node, NodeExecution, Value, references
from chainrule.verification.rows import Row


def with_writes(graph: Graph, node: Node, execution: NodeExecution, row: Row) -> Row:
    """The row of one execution, with what its forward or its backward wrote to and should not have.

    Such a write makes the step's gradients wrong where something else uses what was overwritten.
    """
    if argument := unmarked_write(graph, node):
        reason = (
            f"its forward writes to `{argument}` without ctx.mark_dirty, and what was written is used elsewhere: "
            "autograd takes that for the value before the write"
        )
        return _wrong(row, reason)
    if execution.overwrote is None:
        return row
    writes = "its backward writes to the gradient that it is given"
    if others := [graph.nodes[index] for index in execution.overwrote]:
        names = ", ".join(_name(graph, other) for other in others)
        return _wrong(row, f"{writes}, and {names} is given that gradient too: autograd shares it")
    return replace(row, reason=f"{row.reason}; {writes}, which is autograd's")


def _wrong(row: Row, reason: str) -> Row:
    """The row with a reason to disagree, before any other."""
    return replace(row, verdict="disagrees", reason=f"{reason}; {row.reason}" if row.verdict == "disagrees" else reason)


def _name(graph: Graph, node: Node) -> str:
    return f"`{graph.values[node.leaf].name}`" if node.leaf is not None else node.name


def unmarked_write(graph: Graph, node: Node) -> str:
    """The argument, or what shares its memory, that a forward overwrites unseen by autograd, if a node uses it then."""
    if node.operation is None or node.function_class is None:
        return ""
    arguments = {value: name for name, _, value in references(graph.operations[node.operation].arguments)}
    overwritten = {
        value.index: arguments.get(value.earlier, graph.values[value.earlier].name)
        for value in graph.values
        if value.operation == node.operation and value.earlier is not None and not _is_known(graph, value, node)
    }
    used = (edge.value for other in graph.nodes if other.executions for edge in other.edges)
    return next((overwritten[value] for value in used if value in overwritten), "") if overwritten else ""


def _is_known(graph: Graph, value: Value, node: Node) -> bool:
    """Whether autograd knows that this is what a node's operation wrote."""
    return value.index in node.outputs or (
        value.node is not None and graph.nodes[value.node].operation == node.operation
    )


def overwritten_by(graph: Graph, node: Node) -> Node | None:
    """The node whose backward wrote to what this one was given, if one did."""
    return next(
        (other for other in graph.nodes for each in other.executions if node.index in (each.overwrote or ())), None
    )


def run_inside(graph: Graph, node: Node) -> list[int]:
    """The nodes that ran while the backward of this one did, in a pass of their own (a reentrant checkpoint)."""
    ran = sorted((each.order, each.backward, other.index) for other in graph.nodes for each in other.executions)
    ends = {each.order: each.backward for each in node.executions}
    found: list[int] = []
    for place, (order, _, _) in enumerate(ran):
        for _, backward, index in reversed(ran[:place]) if order in ends else ():
            if backward == ends[order]:
                break
            found.append(index)
    return found
