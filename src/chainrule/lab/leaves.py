"""The values of a step that may be others by themselves, and those that the losses are computed from on the way."""

from __future__ import annotations

from collections.abc import Container, Iterable

from chainrule.graph.graph import Graph
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
