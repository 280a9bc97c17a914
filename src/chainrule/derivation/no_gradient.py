"""Why no gradient arrived at a value."""

from __future__ import annotations

from chainrule.graph.graph import Graph, Operation, references
from chainrule.rules.facts import facts_of


def no_gradient(graph: Graph, value: int | None, name: str) -> str:
    """Why no gradient arrived at a value, in one sentence."""
    unused = f"{name} got no gradient, because the recorded forward pass did not use it."
    if value is None:
        return unused
    if not graph.backwards:
        return f"{name} has no gradient, because no backward pass ran."
    if not graph.values[value].requires_grad:
        frozen = "it is frozen" if name in graph.parameters else "nothing asked for one"
        return f"{name} has no gradient, because {frozen}: requires_grad is False."
    if not any(reads(operation, value) for operation in graph.operations):
        return unused
    cut, arrives = _where_cut(graph, value)
    if cut is None and not arrives:
        return f"{name} got no gradient: it was used, but nothing made from it is on the way to the loss."
    if cut is None and graph.error:
        return f"{name} got no gradient: the step ended in an exception before backward came to it."
    if cut is None:
        return (
            f"{name} got no gradient, though the loss depends on it: backward() was not asked for it (`inputs=`), or a "
            "function's own backward gave None."
        )
    result = graph.values[cut.outputs[0]] if cut.outputs and cut.outputs[0] is not None else None
    place = f" ({result.place})" if result is not None and result.place else ""
    called = graph.calls[cut.call].name if cut.call is not None else cut.name
    return (
        f"{name} got no gradient: on its way to the loss it passes `{called}`{place}, which no gradient passes back "
        "through (detached, under no_grad, or not differentiable)."
    )


def reads(operation: Operation, value: int) -> bool:
    """Whether an operation reads a value; one that overwrites all of it, as an initialisation does, does not."""
    fills = facts_of(operation.name).fills
    return any(
        used == value and not (fills and argument == "self")
        for argument, _, used in references(operation.arguments)
    )  # fmt: skip


def _where_cut(graph: Graph, value: int) -> tuple[Operation | None, bool]:
    """The operation on the way to a loss at which the gradient of `value` ends, as its result wants none.

    And whether another path leads to a loss without an end.
    """
    losses = {b.loss for b in graph.backwards if b.loss is not None}
    to_loss = losses | graph.ancestors(losses)
    reached = {value}
    for operation in graph.operations:
        if any(used in reached for _, _, used in references(operation.arguments)):
            outputs = [out for out in operation.outputs if out is not None]
            alive = [out for out in outputs if graph.values[out].requires_grad]
            if not alive and any(out in to_loss for out in outputs):
                return operation, False
            reached.update(alive)
    return None, not losses.isdisjoint(reached)
