"""The facts of one training step, as frozen data.

Facts refer to each other by index into the tuples of `Graph`, never by object: a graph can be written to a file and
read back, and no cycle keeps memory alive. A `Call` is what the user wrote (`F.linear(x, W, b)`), an `Operation` is one
ATen operation that ran for it (`t`, then `addmm`), and a `Node` is autograd's record of how to go back through it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch

from chainrule.document import Kind
from chainrule.graph.snapshot import (
    Parameter,
    Reducer,
    Reduction,
    Snapshot,
    Update,
    accumulate,
    data_of,
    snapshots_of,
    statistics_of,
    tensor_of,
)
from chainrule.graph.statistics import Statistics
from chainrule.graph.trees import map_leaves, reach

type_of_value = Literal["input", "parameter", "buffer", "result"]


@dataclass(frozen=True, slots=True)
class Place:
    """A place in the user's code: the nearest frame outside PyTorch.

    `expression` is the source text that was being evaluated, `targets` are the names that it was assigned to.
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
    """A tensor among the arguments of an `Operation` or a `Call`: an index into `Graph.values`."""

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
    arrived). `names` are the user's names, best first. It is output `slot` of `operation` (None: a leaf, made outside
    the step). `node` is the autograd node that leads back from it. `earlier` is the value that the tensor was until its
    memory was written to through another tensor.
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
        """The device that it was on."""
        return self.snapshot.device

    @property
    def data(self) -> torch.Tensor | None:
        """Its numbers, where they were kept."""
        return self.snapshot.data

    @property
    def has_numbers(self) -> bool:
        """Whether its numbers were kept."""
        return self.snapshot.has_numbers

    @property
    def statistics(self) -> Statistics | None:
        """Its statistics, where its numbers were not kept."""
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
        """The statistics of its gradient, where that was not kept."""
        return statistics_of(self.gradient)

    @property
    def name(self) -> str:
        """The best of its names."""
        return self.names[0] if self.names else f"value{self.index}"


@dataclass(frozen=True, slots=True)
class Operation:
    """One ATen operation (or one `autograd.Function`), with its arguments by the names of its schema.

    `function(graph.filled(arguments))` runs it again. `arguments` holds tensors as `Ref`, also inside lists; `outputs`
    are indices of values (None where an output is no tensor).
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
    """An edge of autograd's graph: gradient number `position` of a node is that of `argument` of its operation.

    `value` is the tensor that was this argument. The gradient flows into input `slot` of `node`. In a list of tensors
    (`cat`), `item` is the place in the list.
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

    `arrived` is d loss / d output for each output of the node; `sent` is d loss / d input as autograd computed it, for
    each of `next_functions` (None: undefined, or not needed). `overwrote`: its own backward wrote to what arrived, and
    these nodes were given that too (None: it wrote nothing).
    """

    backward: int
    order: int
    arrived: tuple[Snapshot | None, ...]
    sent: tuple[Snapshot | None, ...]
    overwrote: tuple[int, ...] | None = None

    @property
    def upstream(self) -> tuple[torch.Tensor | None, ...]:
        """The gradients that arrived, as tensors or placeholders."""
        return tuple(map(tensor_of, self.arrived))

    @property
    def downstream(self) -> tuple[torch.Tensor | None, ...]:
        """The gradients that were sent on, as tensors or placeholders."""
        return tuple(map(tensor_of, self.sent))

    @property
    def has_numbers(self) -> bool:
        """Whether all its gradients were kept."""
        return all(each is None or each.has_numbers for each in (*self.arrived, *self.sent))

    def along(self, edge: Edge) -> Snapshot | None:
        """The gradient that was sent along an edge."""
        return self.sent[edge.position] if edge.position < len(self.sent) else None

    def with_upstream(self, upstream: tuple[torch.Tensor | None, ...]) -> NodeExecution:
        """The same run with other gradients arriving; what it would have sent on is not known."""
        return replace(self, arrived=snapshots_of(upstream), sent=())


@dataclass(frozen=True, slots=True)
class Node:
    """One node of autograd's graph. `AccumulateGrad` nodes have no operation; `leaf` is the value they write to.

    `before`: it was made before the recording began, or in another thread.
    """

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
    before: bool = False


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a torch function in the user's code, and the operations that ran for it.

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

    A pass of `torch.autograd.grad` does not accumulate into `.grad`: it returned `given`, the gradients of the values
    that it was asked for. It was `differentiated` if a later pass went back through what it computed. `position` is the
    number of operations that had run before it.
    """

    index: int
    roots: tuple[tuple[int, int], ...]
    loss: int | None
    place: Place | None = None
    accumulates: bool = True
    given: dict[int, Snapshot] = field(default_factory=dict)
    differentiated: bool = False
    position: int = 0


def counted(backwards: Sequence[Backward], reached: Iterable[int]) -> list[int]:
    """The passes whose gradients add up to a value's gradient: of those that reached it, all that accumulate.

    Where only `torch.autograd.grad` reached it, the last one, as each such pass may differentiate something else.
    """
    passes = sorted(reached)
    return [each for each in passes if backwards[each].accumulates] or passes[-1:]


UNSCALE = "unscale_"  # the kind of event by which a GradScaler divides gradients by its scale


@dataclass(frozen=True, slots=True)
class Event:
    """An event between operations that a reader must know: gradients cleared, clipped, changed by a hook.

    `value` is what a hook changed the gradient of; `operation` is the one that wrote to the gradient.
    """

    kind: str
    text: str
    position: int
    place: Place | None = None
    value: int | None = None
    operation: int | None = None


@dataclass(frozen=True, slots=True)
class GivenTensor:
    """A tensor that a function got when it raised an exception, with its smallest and largest number."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    device: str
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    """An exception of PyTorch's in the step, and what was known of its cause when it was raised.

    Where it came out of a backward pass: `node` is autograd's node that it came to, made by `operation` at `made` in
    training step `step`, and `value` (`name`, if it has none) is what the node saved, or the tensor through which
    backward reached it; `writes` are what wrote over it since, and `freed` is the pass that freed the node. `raised_in`
    is the user's function that ran inside of backward. `module` and `given` are the layer and the tensors of a forward
    pass. With `ended` the exception ended the step; otherwise the user's code went on.
    """

    error: str
    place: Place | None = None
    ended: bool = False
    backward: bool = False
    raised_in: str = ""
    called: str = ""
    module: str = ""
    layer: str = ""
    given: tuple[GivenTensor, ...] = ()
    node: str = ""
    operation: int | None = None
    made: Place | None = None
    step: int | None = None
    value: int | None = None
    name: str = ""
    writes: tuple[tuple[str, Place | None], ...] = ()
    freed: Place | None = None


@dataclass(frozen=True, slots=True)
class Carried:
    """A graph of earlier steps that this step computed with: of how many `steps`, the `first`, and what made it."""

    steps: int
    first: int
    made: Place | None = None


@dataclass(frozen=True, slots=True)
class Module:
    """A module that ran: its path and class name, whether it ever ran in train mode, and its own parameters.

    `drops` is the probability with which it drops an element in train mode, `again` are its other paths in the module
    around it, and `ignored` are attributes, of it or of its parameters, that somebody set and PyTorch does not read.
    """

    path: str
    class_name: str
    training: bool
    parameters: tuple[str, ...]
    drops: float = 0.0
    again: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()


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
    failures: tuple[Failure, ...] = ()
    carried: Carried | None = None
    # Verdicts on the user's own nodes, with their reasons, which were reached when it was saved: a file has no code.
    verdicts: dict[int, tuple[Kind, str]] = field(default_factory=dict, metadata={"optional": True})

    def ancestors(self, values: Iterable[int]) -> set[int]:
        """The values that these were computed from, directly or not."""
        return set(reach((operand for value in values for operand in self.operands(value)), self.operands))

    def operands(self, value: int) -> list[int]:
        """What a value was made of: the operands of its operation, and what its memory held before a write."""
        made_by, earlier = self.values[value].operation, self.values[value].earlier
        operands = [] if made_by is None else [each for *_, each in references(self.operations[made_by].arguments)]
        return operands if earlier is None else [*operands, earlier]

    def filled(self, tree: Any, numbers: bool = True) -> Any:
        """An argument tree with the data of each `Ref`; placeholders where there is none, or without `numbers`."""

        def filled(leaf: Any) -> Any:
            if not isinstance(leaf, Ref):
                return leaf
            value = self.values[leaf.value]
            return value.snapshot.tensor if numbers else value.snapshot.placeholder

        return map_leaves(filled, tree)

    def passes(self) -> list[tuple[int, dict[int, NodeExecution]]]:
        """The backward passes in order, each with its executions by node."""
        ran: dict[int, dict[int, NodeExecution]] = {}
        for node in self.nodes:
            for execution in node.executions:
                ran.setdefault(execution.backward, {})[node.index] = execution
        return sorted(ran.items())

    def summed(self, of_passes: dict[int, dict[int, torch.Tensor]]) -> dict[int, torch.Tensor]:
        """The gradient of each value: the sum of its gradients in the passes that are `counted`."""
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
        """The passes that accumulate into `.grad`; all passes, where none does."""
        return tuple(each for each in self.backwards if each.accumulates) or self.backwards

    @property
    def hooked(self) -> set[int]:
        """The values of which a hook changed the gradient."""
        return {event.value for event in self.events if event.kind == "hook" and event.value is not None}

    def written_before(self, position: float) -> list[Event]:
        """The writes to gradients between the last backward pass before a position and this position, in order."""
        begun = max((each.position for each in self.accumulating if each.position <= position), default=0)
        return [each for each in self.events if each.kind != "hook" and begun <= each.position <= position]

    def sent(self, parameter: Parameter) -> torch.Tensor | None:
        """The `.grad` that this rank's backward passes left, before it was combined with other ranks'."""
        reduction = self.reductions.get(parameter.name)
        return parameter.grad if reduction is None else reduction.local
