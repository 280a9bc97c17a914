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

    `data` is as it was at that moment, `grad` is d loss / d value, summed over all its uses (None: no gradient arrived,
    or it was not kept: `has_gradient` tells which), in the passes that are `counted`. Of what was not kept there are
    `statistics` and `grad_statistics`, unless it was overwritten before it could be measured. `names` are the user's
    names, best first; `operation` and `slot` say which output of which operation it is (None: a leaf, it came from
    outside); `node` is the autograd node that leads back from it. A tensor whose memory was written to through another
    one has `earlier`, the value that it was until then.
    """

    index: int
    kind: type_of_value
    names: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: torch.dtype
    device: str
    requires_grad: bool
    data: torch.Tensor | None
    grad: torch.Tensor | None
    operation: int | None = None
    slot: int = 0
    node: int | None = None
    place: Place | None = None
    has_gradient: bool = False
    statistics: Statistics | None = None
    grad_statistics: Statistics | None = None
    earlier: int | None = None

    @property
    def name(self) -> str:
        """The best of its names."""
        return self.names[0] if self.names else f"value{self.index}"

    def without_numbers(self) -> torch.Tensor:
        """A tensor of its shape and type on the device `meta`, where tensors have no numbers."""
        return torch.empty(self.shape, dtype=self.dtype, device="meta")


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

    `upstream`: d loss / d output, one for each output of the node; `downstream`: d loss / d input as autograd computed
    it, one for each of its edges, aligned with `next_functions` (None: undefined, or not needed). One that was not kept
    is a tensor on the device `meta`, which has a shape but no numbers.
    """

    backward: int
    order: int
    upstream: tuple[torch.Tensor | None, ...]
    downstream: tuple[torch.Tensor | None, ...]


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
    each value that it was asked for (on the device `meta` where it was not kept).
    """

    index: int
    roots: tuple[tuple[int, int], ...]
    loss: int | None
    place: Place | None = None
    accumulates: bool = True
    given: dict[int, torch.Tensor] = field(default_factory=dict)


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
        if known is not None and (known.is_meta or gradient.is_meta):
            sums[key] = torch.empty(known.shape, dtype=known.dtype, device="meta")
        else:
            sums[key] = gradient if known is None else known + gradient


@dataclass(frozen=True, slots=True)
class ParameterUpdate:
    """One parameter in one `optimizer.step()`. `state_before` is what the optimizer remembered of it until then.

    `grad` is the gradient as the optimizer met it, after unscaling and clipping. A tensor that was not kept is one on
    the device `meta`; then there are statistics, those of the update (after minus before) of a sample where the
    parameter is large (`statistics.of_a_sample`).
    """

    value: int | None
    name: str
    before: torch.Tensor
    grad: torch.Tensor | None
    after: torch.Tensor
    options: dict[str, Any]
    state_before: dict[str, Any]
    before_statistics: Statistics | None = None
    grad_statistics: Statistics | None = None
    update_statistics: Statistics | None = None

    @property
    def is_whole(self) -> bool:
        """Whether all numbers that the update is made of were kept."""
        held = (self.before, self.grad, self.after, *self.state_before.values())
        return not any(isinstance(each, Statistics) or getattr(each, "is_meta", False) for each in held)

    def without_numbers(self) -> ParameterUpdate:
        """The same with shapes alone: tensors of the parameter's shape are on the device `meta`."""
        bare = torch.empty(self.before.shape, dtype=self.before.dtype, device="meta")
        state = {
            name: bare if isinstance(each, Statistics) or getattr(each, "shape", None) == bare.shape != () else each
            for name, each in self.state_before.items()
        }
        grad = None if self.grad is None else bare
        return replace(self, before=bare, grad=grad, after=bare, state_before=state)


@dataclass(frozen=True, slots=True)
class Update:
    """One `optimizer.step()`."""

    optimizer: str
    parameters: tuple[ParameterUpdate, ...]
    position: int  # the number of operations that had run before it
    optimizer_number: int = 0  # which of the optimizers that stepped it is, in the order of their first steps


@dataclass(frozen=True, slots=True)
class Parameter:
    """A trained leaf: its data before the step, the gradient that arrived, its data after the step.

    `grad` is what backward left in `.grad` (None: nothing arrived, or it was not kept: `has_gradient` tells which);
    `after` is None where no optimizer stepped. What was not kept is None, and has statistics instead.
    """

    name: str
    value: int | None
    shape: tuple[int, ...]
    before: torch.Tensor | None
    grad: torch.Tensor | None
    after: torch.Tensor | None
    has_gradient: bool = False
    before_statistics: Statistics | None = None
    grad_statistics: Statistics | None = None
    after_statistics: Statistics | None = None

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

    `local` is what this rank gave, as it stood in `.grad` (micro-batches of before included), `mean` what it was given
    back: the mean over all ranks, or of a sharded parameter this rank's part of it. What was not kept is None, and has
    statistics. `gathered` is the local gradient of every rank, in their order, where they were gathered; `verdict` is
    then what the ranks together found of the mean.
    """

    name: str
    reducer: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    local: torch.Tensor | None
    mean: torch.Tensor | None
    local_statistics: Statistics | None = None
    mean_statistics: Statistics | None = None
    gathered: tuple[torch.Tensor, ...] = ()
    verdict: str = ""  # on the mean, where it was gathered


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
            return value.data if numbers and value.data is not None else value.without_numbers()

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
