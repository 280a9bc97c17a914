"""The plan of a recomputation: what must run again, forward and back, so that some values and gradients have numbers.

Nothing runs here. One walk goes from the wanted values along the nodes that sent them gradients, up to gradients that
were kept. The other goes from the operands of these nodes along the operations that made them, up to kept numbers.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from chainrule.graph.graph import Graph, Node, Operation, Value, references
from chainrule.graph.snapshot import Snapshot, all_have_numbers
from chainrule.graph.trees import reach


class RecomputationPlan:
    """The operations and nodes that must run: the calls around the chosen values, and all that these need."""

    def __init__(self, graph: Graph, chosen: set[int]) -> None:
        self.graph = graph
        around = {op.index for op in graph.operations if chosen & {*operands(op), *_results(op)}}
        calls = {graph.operations[each].call for each in around} - {None}
        around |= {op.index for op in graph.operations if op.call in calls}
        self.values = set(chosen)
        for each in around:
            self.values.update(operands(graph.operations[each]), _results(graph.operations[each]))
        self.nodes = {node.index for node in graph.nodes if node.operation in around or node.leaf in chosen}
        self._senders_of: dict[int, list[int]] = {}
        for node in graph.nodes:
            for edge in node.edges if node.executions else ():
                self._senders_of.setdefault(edge.node, []).append(node.index)
        self.nodes |= {
            node.index
            for node in graph.nodes
            if node.leaf in self.values and self.nodes.issuperset(self._senders_of.get(node.index, ()))
        }
        self.ran = self._senders()
        self.rerun = {index for index in self.ran if _unknown(graph.nodes[index])}
        self.overtaken: list[Value] = []  # of memory that was written to through another tensor
        self.operations = self._makers()
        self.watched = {each.operation for each in self.overtaken}  # operations whose writes are followed

    def is_missing(self) -> bool:
        """Whether there is anything to recompute."""
        values = (self.graph.values[each] for each in self.values)
        return bool(self.rerun) or any(not value.has_numbers for value in values)

    def _senders(self) -> set[int]:
        """The nodes whose gradients flow into the wanted ones, back to where what arrived was kept."""

        def senders(index: int) -> list[int]:
            node = self.graph.nodes[index]
            lost = any(is_lost(g) for execution in node.executions for g in execution.arrived)
            return self._senders_of.get(index, []) if lost or node.leaf is not None else []

        return set(reach(self.nodes, senders))

    def operands_of(self, index: int) -> list[int]:
        """The values that a node's operation takes, where it must run again."""
        operation = self.graph.nodes[index].operation
        return operands(self.graph.operations[operation]) if index in self.rerun and operation is not None else []

    def lasting(self) -> Iterator[int]:
        """The values needed after the forward pass: once as wanted, once for each node that takes it."""
        yield from self.values
        for index in self.ran:
            yield from self.operands_of(index)

    def _makers(self) -> list[Operation]:
        """The operations that give the values, in their order."""

        def made_of(index: int) -> list[int]:
            return [] if self.graph.values[index].has_numbers else self.graph.operands(index)

        missing = [v for v in map(self.graph.values.__getitem__, reach(self.lasting(), made_of)) if not v.has_numbers]
        self.overtaken = [value for value in missing if value.earlier is not None]
        makers = {value.operation for value in missing if value.operation is not None}
        return [self.graph.operations[each] for each in sorted(makers)]


def operands(operation: Operation) -> list[int]:
    """The values that an operation takes, each once."""
    return list(dict.fromkeys(value for *_, value in references(operation.arguments)))


def _results(operation: Operation) -> Iterator[int]:
    return (each for each in operation.outputs if each is not None)


def is_lost(gradient: Tensor | Snapshot | None) -> bool:
    """Whether there was a gradient that was not kept."""
    if isinstance(gradient, Snapshot):
        return not gradient.has_numbers
    return not all_have_numbers(gradient)


def _unknown(node: Node) -> bool:
    """Whether any gradient that a node sent on was not kept."""
    return any(is_lost(g) for execution in node.executions for g in execution.sent)
