"""Runs a recorded step with other inputs and parameters: what a similar step that was not recorded computed."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace

from torch import Tensor

from chainrule.errors import ReplayError
from chainrule.execution.experiment import widened, without_gradients, written_by
from chainrule.execution.lineage import Lineage
from chainrule.execution.recomputation_plan import RecomputationPlan, operands
from chainrule.execution.recompute import Reexecution
from chainrule.graph.comparison import compare
from chainrule.graph.graph import Graph, Node, Operation, Value, references
from chainrule.graph.snapshot import Parameter, Snapshot
from chainrule.pytorch_internals import DisableTorchFunction, _DisableAutocast
from chainrule.rules.facts import PYTORCH


def leaves_of_loss(graph: Graph) -> list[Value]:
    """The values that the loss of the only backward pass was computed from and that no operation made.

    Raises ReplayError if there are several passes, or none that began from a value.
    """
    losses = [each.loss for each in graph.backwards if each.loss is not None]
    if len(losses) != 1 or len(graph.backwards) != 1:
        raise ReplayError("the step has not one backward pass")
    needed = graph.ancestors(losses)
    return [value for value in graph.values if value.index in needed and value.operation is None]


def with_other_inputs(graph: Graph, leaves: Mapping[int, Tensor], also: Iterable[int] = ()) -> Graph:
    """The step with the numbers that its operations give on these leaves, without updates.

    `also` are values that no loss is computed from. Random operations draw what they drew. Raises ReplayError if an
    operation does not run on them.
    """
    bare = _bare(graph, leaves)
    wanted = [*(each.loss for each in bare.backwards if each.loss is not None), *also]
    plan = RecomputationPlan(bare, {*wanted, *bare.ancestors(wanted)})
    again = Reexecution(bare, {}, plan)
    with without_gradients(), _DisableAutocast(), DisableTorchFunction():
        again.forward()
        again.backward()
        found = again.graph(())
    parameters = {name: _with_gradient(each, found.values) for name, each in found.parameters.items()}
    return replace(found, parameters=parameters, notes=graph.notes)


def losses_with(graph: Graph, leaves: Mapping[int, Tensor]) -> dict[int, Tensor]:
    """The losses alone that the step's operations give on these leaves; raises as `with_other_inputs` does."""
    return values_with(graph, leaves, {each.loss for each in graph.backwards if each.loss is not None})


def values_with(graph: Graph, leaves: Mapping[int, Tensor], wanted: Collection[int]) -> dict[int, Tensor]:
    """Some values alone that the step's operations give on these leaves; raises as `with_other_inputs` does."""
    bare = _bare(graph, leaves)
    again = Reexecution(bare, {}, _Forward(bare, set(wanted)))
    with without_gradients(), _DisableAutocast(), DisableTorchFunction():
        again.forward()
        return {each: again.values[each].snapshot.tensor for each in wanted}


def writes_to(graph: Graph, leaves: Collection[int]) -> list[tuple[Operation, int]]:
    """Each operation that writes to the memory of one of these leaves, with the leaf."""
    lineage = Lineage(graph)
    return [
        (operation, root)
        for operation in graph.operations
        if operation.function is not None
        for name, _, value in references(operation.arguments)
        if name == "base" or name in written_by(operation.function)
        if (root := lineage.memory(value).root) in leaves
    ]


def left_in(
    graph: Graph, leaves: Mapping[int, Tensor], written: Iterable[int], writers: Iterable[Operation]
) -> dict[int, Tensor]:
    """What the `writers` leave in those leaves that are `written`, computed on these leaves; raises as above."""
    bare = _bare(graph, leaves)
    again = Reexecution(bare, {}, _Writing(bare, writers))
    with without_gradients(), _DisableAutocast(), DisableTorchFunction():
        return again.forward(written)


AGAIN = 10**6  # numbers of the leaves up to which a loss is computed again unasked


def loss_after(graph: Graph) -> float | None:
    """The loss that the operations of the step give with the parameters after it; None where that is not known.

    It is not where a step has several passes or losses, where not all numbers were kept, where no parameter moved,
    where the user's own code would have to run, and where the recorded loss does not come out again from the recorded
    numbers.
    """
    after = {each.value: each.after for each in graph.parameters.values() if each.after is not None}
    begun = max((each.position for each in graph.backwards), default=0)
    try:
        leaves = leaves_of_loss(graph)
    except ReplayError:
        return None
    numbers = {each.index: each.snapshot.tensor for each in leaves if each.has_numbers}
    moved = {index: after[index] for index in numbers if index in after}
    small = sum(each.numel() for each in numbers.values()) <= AGAIN
    if any(each.name.partition(".")[0] not in PYTORCH for each in graph.operations):
        return None
    if len(numbers) < len(leaves) or not moved or not small or any(each.position < begun for each in graph.updates):
        return None
    try:
        (again,) = losses_with(graph, numbers).items()
        (found,) = losses_with(graph, {**numbers, **moved}).values()
    except Exception:  # an operation that does not run again: the loss after the step is not known
        return None
    recorded = graph.values[again[0]].data
    return found.item() if recorded is not None and found.numel() == 1 and compare(again[1], recorded).agrees else None


def in_double(graph: Graph) -> Graph:
    """The step in float64: also where an operation was asked for a coarser number type."""
    return replace(
        graph,
        operations=tuple(replace(each, arguments=widened(each.arguments)) for each in graph.operations),
        values=tuple(
            replace(each, snapshot=_wide(each.snapshot), gradient=each.gradient and _wide(each.gradient))
            for each in graph.values
        ),
        nodes=tuple(
            replace(node, executions=tuple(
                replace(each, arrived=tuple(g and _wide(g) for g in each.arrived),
                        sent=tuple(g and _wide(g) for g in each.sent))
                for each in node.executions
            ))
            for node in graph.nodes
        ),
    )  # fmt: skip


def _wide(snapshot: Snapshot) -> Snapshot:
    return replace(snapshot, dtype=widened(snapshot.dtype), held=widened(snapshot.data), statistics=None)


class _Forward(RecomputationPlan):
    """A plan without a way back."""

    def _senders(self) -> set[int]:
        return set()


class _Writing(_Forward):
    """A plan of some operations that write, whether or not a value of the step is what they wrote."""

    def __init__(self, graph: Graph, writers: Iterable[Operation]) -> None:
        self.writers = {each.index: each for each in writers}
        super().__init__(graph, {each for one in self.writers.values() for each in operands(one)})
        self.watched |= self.writers.keys()

    def _makers(self) -> list[Operation]:
        found = {each.index: each for each in super()._makers()}
        return [operation for _, operation in sorted({**found, **self.writers}.items())]


def _bare(graph: Graph, leaves: Mapping[int, Tensor]) -> Graph:
    """The step without any number or statistic but those of its leaves, and the seed of its backward pass."""
    values = tuple(
        replace(value, snapshot=Snapshot.of(leaves[value.index].detach()) if value.index in leaves else
                _without(value.snapshot), gradient=value.gradient and _without(value.gradient))
        for value in graph.values
    )  # fmt: skip
    fed = {edge.node for node in graph.nodes if node.executions for edge in node.edges}
    return replace(
        graph, values=values, nodes=tuple(_bare_node(node, node.index in fed) for node in graph.nodes), updates=(),
        parameters={name: replace(each, gradient=None, end=None) for name, each in graph.parameters.items()},
        failures=(),
    )  # fmt: skip


def _bare_node(node: Node, fed: bool) -> Node:
    executions = tuple(
        replace(
            each,
            arrived=tuple(g and _without(g) for g in each.arrived) if fed else each.arrived,
            sent=tuple(g and _without(g) for g in each.sent),
        )
        for each in node.executions
    )
    return replace(node, executions=executions)


def _without(snapshot: Snapshot) -> Snapshot:
    return replace(snapshot, held=None, statistics=None)


def _with_gradient(parameter: Parameter, values: tuple[Value, ...]) -> Parameter:
    gradient = None if parameter.value is None else values[parameter.value].gradient
    return replace(parameter, gradient=gradient)
