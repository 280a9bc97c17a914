"""The facts of one training step, as plain frozen data: nothing here computes, names or judges anything.

Everything refers to everything else by index into the tuples of `Graph`, never by object, so that a graph can be
written to a file and read back, and no cycle keeps memory alive. Two levels stand side by side: a `Call` is what the
user wrote (`F.linear(x, W, b)`), an `Operation` is one ATen operation that ran for it (`t`, then `addmm`), and a `Node`
is what autograd wrote down to go back through that operation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch

from chainrule.graph.snapshot import (
    Snapshot,
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
type_of_reduction = Literal["all-reduce", "reduce-scatter"]


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
class Passage:
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

    def with_upstream(self, upstream: tuple[torch.Tensor | None, ...]) -> Passage:
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
    passages: tuple[Passage, ...]
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
    """One backward pass: `roots` are (node, slot) where it began, with their seeds in the nodes' passages.

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
class ParameterUpdate:
    """One parameter in one `optimizer.step()`. `state_before` is what the optimizer remembered of it until then.

    `gradient` is what the optimizer met, after unscaling and clipping. Where the parameter was not kept, there are
    statistics of the update (after minus before): of a sample, where it is large (`statistics.of_a_sample`).
    """

    value: int | None
    name: str
    start: Snapshot
    gradient: Snapshot | None
    end: Snapshot
    options: dict[str, Any]
    state_before: dict[str, Any]
    update_statistics: Statistics | None = None

    @property
    def before(self) -> torch.Tensor:
        """The parameter before, or a placeholder."""
        return self.start.tensor

    @property
    def grad(self) -> torch.Tensor | None:
        """The gradient, or a placeholder; None where the optimizer met none."""
        return tensor_of(self.gradient)

    @property
    def after(self) -> torch.Tensor:
        """The parameter after, or a placeholder."""
        return self.end.tensor

    @property
    def is_whole(self) -> bool:
        """Whether all numbers that the update is made of were kept."""
        state = (each for each in self.state_before.values() if isinstance(each, torch.Tensor))
        facts = (each for each in (self.start, self.gradient, self.end) if each is not None)
        return all(each.has_numbers for each in facts) and all_have_numbers(*state)

    def without_numbers(self) -> ParameterUpdate:
        """The same with shapes alone: what has the parameter's shape is a placeholder."""
        bare = self.start.filled(None)
        state = {
            name: bare.placeholder if getattr(each, "shape", None) == bare.shape != () else each
            for name, each in self.state_before.items()
        }
        return replace(self, start=bare, gradient=self.gradient and bare, end=bare, state_before=state)


@dataclass(frozen=True, slots=True)
class Update:
    """One `optimizer.step()`."""

    optimizer: str
    parameters: tuple[ParameterUpdate, ...]
    position: int  # the number of operations that had run before it
    optimizer_number: int = 0  # which of the optimizers that stepped it is, in the order of their first steps


@dataclass(frozen=True, slots=True)
class Parameter:
    """A trained leaf at the start of the step and at its end, with the gradient that arrived.

    `gradient` is what backward left in `.grad` (None: nothing arrived). `end` is None where no optimizer stepped.
    """

    name: str
    value: int | None
    start: Snapshot
    gradient: Snapshot | None = None
    end: Snapshot | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return self.start.shape

    @property
    def before(self) -> torch.Tensor | None:
        """Its numbers before the step, where they were kept."""
        return self.start.data

    @property
    def grad(self) -> torch.Tensor | None:
        """What backward left in `.grad`, where something arrived and was kept."""
        return data_of(self.gradient)

    @property
    def after(self) -> torch.Tensor | None:
        """Its numbers after the step, where an optimizer stepped and they were kept."""
        return data_of(self.end)

    @property
    def has_gradient(self) -> bool:
        """Whether a gradient arrived, kept or not."""
        return self.gradient is not None

    @property
    def elements(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)


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


@dataclass(frozen=True, slots=True)
class Reducer:
    """A module that combines the gradients of several processes: `DistributedDataParallel`, or one `fully_shard`ed.

    `batch` is how many samples went through it on this rank; `hook` names the communication hooks that take the place
    of the plain mean ("" without).
    """

    module: str
    class_name: str
    kind: type_of_reduction
    rank: int
    ranks: int
    batch: int | None
    hook: str = ""


@dataclass(frozen=True, slots=True)
class Reduction:
    """One parameter's gradient on its way over the ranks.

    `sent` is what this rank gave, as it stood in `.grad` (micro-batches of before included), `received` what it was
    given back: the mean over all ranks, or of a sharded parameter this rank's part of it. `gathered` is the local
    gradient of every rank, in their order, where they were gathered; `verdict` is then what the ranks together found of
    the mean.
    """

    name: str
    reducer: int
    sent: Snapshot
    received: Snapshot | None
    gathered: tuple[torch.Tensor, ...] = ()
    verdict: str = ""  # on the mean, where it was gathered

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of this rank's gradient."""
        return self.sent.shape

    @property
    def dtype(self) -> torch.dtype:
        """Its number type."""
        return self.sent.dtype

    @property
    def local(self) -> torch.Tensor | None:
        """The numbers of this rank's gradient, where they were kept."""
        return self.sent.data

    @property
    def mean(self) -> torch.Tensor | None:
        """The numbers of what was given back, where they were kept."""
        return data_of(self.received)


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

    def passes(self) -> list[tuple[int, dict[int, Passage]]]:
        """The backward passes in order, each with the nodes that ran in it."""
        ran: dict[int, dict[int, Passage]] = {}
        for node in self.nodes:
            for passage in node.passages:
                ran.setdefault(passage.backward, {})[node.index] = passage
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
