"""The facts of one training step, as plain frozen data: nothing here computes, names or judges anything.

Everything refers to everything else by index into the tuples of `Graph`, never by object, so that a graph can be
written to a file and read back, and no cycle keeps memory alive. Two levels stand side by side: a `Call` is what the
user wrote (`F.linear(x, W, b)`), an `Operation` is one ATen operation that ran for it (`t`, then `addmm`), and a `Node`
is what autograd wrote down to go back through that operation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch

from chainrule.graph.snapshot import (
    Parameter,
    Reducer,
    Reduction,
    Snapshot,
    Update,
    all_have_numbers,
    data_of,
    placeholder,
    snapshots_of,
    statistics_of,
    tensor_of,
)
from chainrule.graph.statistics import Statistics
from chainrule.graph.trees import map_leaves, reach

type_of_value = Literal["input", "parameter", "buffer", "result"]


@dataclass(frozen=True, slots=True)
class Place:
    """Where in the user's code something happened: the nearest frame outside PyTorch.

    `expression` is the source text that was being evaluated, `targets` the names on the left of its assignment.
    """

    file: str
    line: int
    function: str
    expression: str = ""
    targets: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.file.rsplit('/', 1)[-1]}:{self.line}"


@dataclass(frozen=True, slots=True)
class Ref:
    """Stands for a tensor inside the argument trees of an `Operation` or a `Call`: an index into `Graph.values`."""

    value: int


def references(arguments: dict[str, Any]) -> Iterator[tuple[str, int | None, int]]:
    """(argument, place in its list, value) of every tensor among an operation's or a call's arguments."""
    for name, value in arguments.items():
        if isinstance(value, Ref):
            yield name, None, value.value
        elif isinstance(value, list):
            for item, each in enumerate(value):
                if isinstance(each, Ref):
                    yield name, item, each.value


@dataclass(frozen=True, slots=True)
class Value:
    """One tensor at one moment of the step; an in-place operation makes a new Value of the same tensor.

    `gradient` is d loss / d value, summed over all its uses in the passes that are `counted` (None: no gradient
    arrived). `names` are the user's names, best first; `operation` and `slot` say which output of which operation it is
    (None: a leaf, it came from outside); `node` is the autograd node that leads back from it. A tensor whose memory was
    written to through another one has `earlier`, the value that it was until then.
    """

    index: int
    kind: type_of_value
    names: tuple[str, ...]
    requires_grad: bool
    snapshot: Snapshot
    gradient: Snapshot | None = None
    operation: int | None = None
    slot: int = 0
    node: int | None = None
    place: Place | None = None
    earlier: int | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape at that moment."""
        return self.snapshot.shape

    @property
    def dtype(self) -> torch.dtype:
        """Its number type."""
        return self.snapshot.dtype

    @property
    def device(self) -> str:
        """Where it was."""
        return self.snapshot.device

    @property
    def data(self) -> torch.Tensor | None:
        """Its numbers, where they were kept."""
        return self.snapshot.data

    @property
    def statistics(self) -> Statistics | None:
        """What was measured of it where its numbers were not kept."""
        return self.snapshot.statistics

    @property
    def has_gradient(self) -> bool:
        """Whether a gradient arrived, kept or not."""
        return self.gradient is not None

    @property
    def grad(self) -> torch.Tensor | None:
        """The numbers of its gradient, where one arrived and they were kept."""
        return data_of(self.gradient)

    @property
    def grad_statistics(self) -> Statistics | None:
        """What was measured of its gradient where the numbers were not kept."""
        return statistics_of(self.gradient)

    @property
    def name(self) -> str:
        """The best of its names."""
        return self.names[0] if self.names else f"value{self.index}"


@dataclass(frozen=True, slots=True)
class Operation:
    """One ATen operation (or one `autograd.Function`), with its arguments by the names of its schema.

    `function` runs it again: `function(**arguments)` with each `Ref` replaced by data. `arguments` holds tensors as
    `Ref`, also inside lists; `outputs` are value indices (None where an output is no tensor).
    """

    index: int
    name: str
    function: Callable[..., Any] | None
    arguments: dict[str, Any]
    outputs: tuple[int | None, ...]
    call: int | None
    node: int | None = None
    random_state: torch.Tensor | None = None


@dataclass(frozen=True, slots=True)
class Edge:
    """One way on from a node: gradient number `position` of the node goes to argument `argument` of its operation.

    `value` is the tensor that argument was, `node` the node the gradient flows into next (`slot`: which of its inputs).
    For a list argument (`cat`), `item` is the place in the list.
    """

    position: int
    node: int
    slot: int
    value: int | None
    argument: str | None
    item: int | None = None


@dataclass(frozen=True, slots=True)
class NodeExecution:
    """One run of one node in one backward pass.

    `arrived`: d loss / d output, one for each output of the node; `sent`: d loss / d input as autograd computed it, one
    for each of its edges, aligned with `next_functions` (None: undefined, or not needed).
    """

    backward: int
    order: int
    arrived: tuple[Snapshot | None, ...]
    sent: tuple[Snapshot | None, ...]

    @property
    def upstream(self) -> tuple[torch.Tensor | None, ...]:
        """What arrived, as tensors: a placeholder where the numbers were not kept."""
        return tuple(map(tensor_of, self.arrived))

    @property
    def downstream(self) -> tuple[torch.Tensor | None, ...]:
        """What was sent on, as tensors: a placeholder where the numbers were not kept."""
        return tuple(map(tensor_of, self.sent))

    @property
    def has_numbers(self) -> bool:
        """Whether all its gradients were kept."""
        return all(each is None or each.has_numbers for each in (*self.arrived, *self.sent))

    def along(self, edge: Edge) -> Snapshot | None:
        """What was sent on along an edge."""
        return self.sent[edge.position] if edge.position < len(self.sent) else None

    def with_upstream(self, upstream: tuple[torch.Tensor | None, ...]) -> NodeExecution:
        """The same run with other gradients arriving."""
        return replace(self, arrived=snapshots_of(upstream))


@dataclass(frozen=True, slots=True)
class Node:
    """One node of autograd's graph. `AccumulateGrad` nodes have no operation; `leaf` is the value they write to."""

    index: int
    name: str
    operation: int | None
    call: int | None
    outputs: tuple[int | None, ...]
    edges: tuple[Edge, ...]
    executions: tuple[NodeExecution, ...]
    leaf: int | None = None
    place: Place | None = None
    function_class: type | None = None  # the user's autograd.Function, where it is one


@dataclass(frozen=True, slots=True)
class Call:
    """What the user wrote: one torch function call, and the operations that ran for it.

    `module` is the path of the innermost module whose forward was running ("" outside any).
    """

    index: int
    name: str
    module: str
    place: Place | None
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    operations: tuple[int, ...]
    outputs: tuple[int, ...]
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Backward:
    """One backward pass: `roots` are (node, slot) where it began, with their seeds in the executions of these nodes.

    It `accumulates` into `.grad`, but for one of `torch.autograd.grad`: what that returned is `given`, the gradient of
    each value that it was asked for.
    """

    index: int
    roots: tuple[tuple[int, int], ...]
    loss: int | None
    place: Place | None = None
    accumulates: bool = True
    given: dict[int, Snapshot] = field(default_factory=dict)


def counted(backwards: Sequence[Backward], reached: Iterable[int]) -> list[int]:
    """Of the passes that reached a value, those that its gradient is the sum of: all that accumulate into `.grad`.

    Where only `torch.autograd.grad` reached it, the last: each such pass may differentiate something else.
    """
    passes = sorted(reached)
    return [each for each in passes if backwards[each].accumulates] or passes[-1:]


def accumulate(sums: dict[Any, torch.Tensor], key: Any, gradient: torch.Tensor | None) -> None:
    """Add a gradient to what arrived before it, in no tensor's memory; a sum with a part not kept has no numbers."""
    if gradient is not None:
        known = sums.get(key)
        if known is not None and not all_have_numbers(known, gradient):
            sums[key] = placeholder(tuple(known.shape), known.dtype)
        else:
            sums[key] = gradient if known is None else known + gradient


@dataclass(frozen=True, slots=True)
class Event:
    """Something between the operations that a reader must know: gradients cleared, clipped, changed by a hook."""

    kind: str
    text: str
    position: int
    place: Place | None = None


@dataclass(frozen=True, slots=True)
class Module:
    """A module that ran: its path, class name, and the call site that began it."""

    path: str
    class_name: str
    training: bool
    parameters: tuple[str, ...]


@dataclass(frozen=True)
class Graph:
    """All facts of one recorded step, in the order in which they happened."""

    values: tuple[Value, ...]
    operations: tuple[Operation, ...]
    calls: tuple[Call, ...]
    nodes: tuple[Node, ...]
    backwards: tuple[Backward, ...]
    updates: tuple[Update, ...]
    parameters: dict[str, Parameter]
    modules: tuple[Module, ...] = ()
    events: tuple[Event, ...] = ()
    error: str | None = None
    notes: tuple[str, ...] = field(default=())
    reducers: tuple[Reducer, ...] = ()
    reductions: dict[str, Reduction] = field(default_factory=dict)  # by the parameter's name

    def ancestors(self, values: Iterable[int]) -> set[int]:
        """The values that these were computed from, whatever came between."""
        return set(reach((operand for value in values for operand in self.operands(value)), self.operands))

    def operands(self, value: int) -> list[int]:
        """The values that the operation which made a value took; none of a leaf."""
        made_by = self.values[value].operation
        return [] if made_by is None else [operand for *_, operand in references(self.operations[made_by].arguments)]

    def filled(self, tree: Any, numbers: bool = True) -> Any:
        """An argument tree with the data of each `Ref`, or a tensor without numbers where there is none."""

        def filled(leaf: Any) -> Any:
            if not isinstance(leaf, Ref):
                return leaf
            value = self.values[leaf.value]
            return value.snapshot.tensor if numbers else value.snapshot.placeholder

        return map_leaves(filled, tree)

    def passes(self) -> list[tuple[int, dict[int, NodeExecution]]]:
        """The backward passes in order, each with the nodes that ran in it."""
        ran: dict[int, dict[int, NodeExecution]] = {}
        for node in self.nodes:
            for execution in node.executions:
                ran.setdefault(execution.backward, {})[node.index] = execution
        return sorted(ran.items())

    def summed(self, of_passes: dict[int, dict[int, torch.Tensor]]) -> dict[int, torch.Tensor]:
        """The gradient of each value, from those of each backward pass: the sum over the passes that are counted."""
        reached: dict[int, list[int]] = {}
        for backward, gradients in of_passes.items():
            for value in gradients:
                reached.setdefault(value, []).append(backward)
        found: dict[int, torch.Tensor] = {}
        for value, backwards in reached.items():
            for backward in counted(self.backwards, backwards):
                accumulate(found, value, of_passes[backward][value])
        return found

    @property
    def accumulating(self) -> tuple[Backward, ...]:
        """The passes that make the step's gradients: those into `.grad`; all, where there is `autograd.grad` alone."""
        return tuple(each for each in self.backwards if each.accumulates) or self.backwards

    def sent(self, parameter: Parameter) -> torch.Tensor | None:
        """What the backward passes of this process left in `.grad`, before other ranks' gradients were mixed in."""
        reduction = self.reductions.get(parameter.name)
        return parameter.grad if reduction is None else reduction.local
