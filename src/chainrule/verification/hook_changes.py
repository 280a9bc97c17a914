"""How a hook changed a gradient, in words and numbers: what was sent to a value, and what arrived there."""

from __future__ import annotations

import math
from collections.abc import Iterator

from torch import Tensor

from chainrule.graph.comparison import unravel
from chainrule.graph.graph import Graph, Node
from chainrule.graph.snapshot import Snapshot, accumulate, all_have_numbers, data_of
from chainrule.numbers import number

LISTED = 4  # elements of a gradient that are written out


def change_by_hook(graph: Graph, node: Node, value: int) -> str:
    """`a hook on NAME changed its gradient from A to B`; the numbers are left out where they are not known."""
    said = f"a hook on `{graph.values[value].name}` changed its gradient"
    for before, after in _sides(graph, node, value):
        if before is None or after is None or before.shape != after.shape or before.is_sparse or after.is_sparse:
            continue
        if not all_have_numbers(before, after) or not bool((before != after).any()):
            continue
        at, old, new = _written(before, after)
        if node.leaf is not None:  # what was in `.grad` before is not known
            return f"{said}: {old} was sent to it{at}, and `.grad` holds {new}"
        return f"{said} from {old} to {new}{at}"
    return said


def _sides(graph: Graph, node: Node, value: int) -> Iterator[tuple[Tensor | None, Tensor | None]]:
    """What was sent and what arrived, in each pass."""
    if node.leaf is not None:
        left = next((graph.sent(each) for each in graph.parameters.values() if each.value == value), None)
        yield from ((before, left) for before in _sent(graph, node, 0).values())
        return
    slot = node.outputs.index(value)
    sent = _sent(graph, node, slot)
    for execution in node.executions:
        yield sent.get(execution.backward), _at(execution.arrived, slot)
    for execution in node.executions:  # of a module's hook, whose node passes on what arrives
        yield _at(execution.arrived, slot), _at(execution.sent, slot)


def _at(gradients: tuple[Snapshot | None, ...], slot: int) -> Tensor | None:
    return data_of(gradients[slot]) if slot < len(gradients) else None


def _sent(graph: Graph, node: Node, slot: int) -> dict[int, Tensor]:
    """The sum of what was sent along all edges to an output of a node, by the pass."""
    sums: dict[int, Tensor] = {}
    for other in graph.nodes:
        for edge in other.edges:
            if (edge.node, edge.slot) == (node.index, slot):
                for execution in other.executions:
                    accumulate(sums, execution.backward, data_of(execution.along(edge)))
    return sums


def _written(before: Tensor, after: Tensor) -> tuple[str, str, str]:
    """Where, before and after: all numbers of a small gradient; of a large one the element that changed most."""
    if before.numel() <= LISTED:
        return "", _list(before), _list(after)
    most = int((after - before).abs().nan_to_num(math.inf).argmax())
    index = ",".join(map(str, unravel(most, tuple(before.shape))))
    old, new = (number(each.reshape(-1)[most].item()) for each in (before, after))
    return f" at [{index}]", old, new


def _list(tensor: Tensor) -> str:
    numbers = ", ".join(number(each) for each in tensor.reshape(-1).tolist())
    return f"[{numbers}]" if tensor.dim() else numbers
