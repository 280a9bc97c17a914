"""The values of a step that may be others by themselves, and the buffers that it leaves to the next step."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping

from torch import Tensor

from chainrule.execution.other_inputs import left_in, values_with, writes_to
from chainrule.graph.graph import Graph, references
from chainrule.graph.trees import reach


def leaves_of(graph: Graph, losses: Iterable[int], rows: Container[int]) -> tuple[list[int], set[int]]:
    """The leaves of the losses, and the values that are computed from these.

    A leaf is what nothing made, or what code made of data that has no row (`randn`, `tensor`, a crop of an image), as a
    reader sees no other.
    """
    losses = set(losses)

    def is_leaf(index: int) -> bool:
        value = graph.values[index]
        if value.operation is None:
            return True
        given = index in rows and value.has_numbers and value.earlier is None and value.node is None
        return given and not any(each in rows for each in graph.ancestors([index]))

    known: dict[int, bool] = {}

    def operands(index: int) -> list[int]:
        known[index] = index not in losses and is_leaf(index)
        return [] if known[index] else graph.operands(index)

    found = list(reach(losses, operands))
    return sorted(each for each in found if known[each]), {each for each in found if not known[each]}


class Carried:
    """The buffers that the leaves of a step are, or are made of, and the operations that write to them."""

    def __init__(self, graph: Graph, leaves: Iterable[int]) -> None:
        self.graph = graph
        known: set[int] = set()
        self.behind = {*leaves, *graph.ancestors(leaves)}
        while len(known) < len(self.behind):  # what is written may be computed from buffers of its own
            known = self.behind
            buffers = {each for each in known if graph.values[each].kind == "buffer"}
            writes = writes_to(graph, buffers)
            self.writers = list({operation.index: operation for operation, _ in writes}.values())
            self.written = sorted({buffer for _, buffer in writes})
            taken = {each for one in self.writers for *_, each in references(one.arguments)}
            self.behind = {*known, *taken, *graph.ancestors(taken)}
        self._made = [each for each in leaves if graph.ancestors([each]) & set(self.written)]

    def left(self, leaves: Mapping[int, Tensor]) -> dict[int, Tensor]:
        """Each of them as a step on these leaves leaves it, and the leaves that are made of them."""
        if not self.writers:
            return {}
        found = left_in(self.graph, leaves, self.written, self.writers)
        given = {each: data for each, data in {**leaves, **found}.items() if each not in self._made}
        return {**found, **values_with(self.graph, given, self._made)}
