"""Tensors that a training carries from step to step with their autograd graph, and how far back that graph goes."""

from __future__ import annotations

import heapq
from typing import Any

from chainrule.capture.source import Site
from chainrule.capture.step_log import StepLog, number_of
from chainrule.capture.tape import Tape
from chainrule.graph.graph import Carried

LOOKED_AT = 400  # nodes, the earliest first


def carried(tape: Tape, log: StepLog) -> Carried | None:
    """What this step took from the graphs of two earlier steps or more; None if there is nothing.

    The search visits the earliest node first, so it reaches the beginning of a chain in a few steps, however much hangs
    on it.
    """
    entries = _entries(tape)
    if not entries:
        return None
    steps: set[int] = set()
    waiting = [(number_of(node), place, node) for place, node in enumerate(entries)]
    seen = set(entries)
    heapq.heapify(waiting)
    for place in range(len(entries), len(entries) + LOOKED_AT):
        if not waiting:
            break
        _, _, node = heapq.heappop(waiting)
        if (step := log.step_of(node)) is not None:
            steps.add(step)
        for at, (target, _) in enumerate(node.next_functions):
            if target is not None and target not in seen and not hasattr(target, "variable"):
                seen.add(target)
                heapq.heappush(waiting, (number_of(target), LOOKED_AT * at + place, target))
    if len(steps) < 2:
        return None
    lines = [number for number in map(number_of, seen) if number in log.made]  # of the step that was recorded last
    return Carried(len(steps), min(steps), log.made[max(lines)].place() if lines else None)


def _entries(tape: Tape) -> list[Any]:
    """The nodes from before this step's recording whose results it took."""
    nodes = (tape.original(tensor).grad_fn for tensor in tape.leaves)
    return list(dict.fromkeys(node for node in nodes if node is not None and number_of(node) < tape.first_node))


def lines_of_nodes(tape: Tape) -> dict[int, Site]:
    """The line that made each of autograd's nodes in a step, by autograd's number of it."""
    found = {}
    for raw in tape.nodes:
        call = None if raw.operation is None else tape.operations[raw.operation][4]
        if call is not None and call < len(tape.calls) and (site := tape.calls[call].site) is not None:
            found[number_of(raw.node)] = site
    return found
