"""Recomputes what was not kept: the recorded operations run again, and autograd goes back through them.

A recording that keeps statistics alone still holds every operation, the state of its random generator, the small
tensors, and references to the user's large leaves (`BorrowedTensor`). Only the operations that are needed run, in their
order, and a tensor that no later one needs is freed. The backward pass goes node by node: autograd runs again on each
operation alone, with the gradient that arrived.

Everything is verified. A leaf must be unchanged (its version, a few of its numbers, its statistics), and what is
recomputed must have the recorded statistics; otherwise an error is raised, and no number is returned. On the same
machine PyTorch's operations give the same bits; gradients may differ by the rounding of another order of summation. A
note of the graph says what was recomputed.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from chainrule.capture.borrowed import BorrowedTensor
from chainrule.capture.data_parallel import storage_of
from chainrule.capture.traits import Traits
from chainrule.errors import ReplayError, RequestError, in_one_line
from chainrule.execution.experiment import CannotRunError, Experiment, drawn_again, without_gradients, written_by
from chainrule.execution.recomputation_plan import RecomputationPlan, is_lost, operands
from chainrule.execution.user_code import UserCode
from chainrule.graph.comparison import FLOAT32, UNKNOWN_SUMS, rounding, same_statistics, tolerance
from chainrule.graph.graph import Graph, Node, NodeExecution, Operation, Value
from chainrule.graph.names import find_value, values_named
from chainrule.graph.snapshot import Parameter, Snapshot, accumulate
from chainrule.graph.statistics import Statistics, measure
from chainrule.graph.trees import map_leaves, tensors_in
from chainrule.pytorch_internals import DisableTorchFunction, _DisableAutocast
from chainrule.rules.facts import facts_of

NO_WAY = (
    "Record the step with keep= for it, or recompute before the next optimizer.step() (and end the block before it)."
)

Gradients = tuple[Tensor | None, ...]


def recompute(graph: Graph, borrowed: Mapping[int, BorrowedTensor], names: Iterable[str]) -> Graph:
    """The facts of a step with the numbers of the values that `names` name; of all values where none is named.

    With a value come those of the calls that made it or used it, so that its gradient can be explained and checked.

    Raises MissingError for a name that the recording does not hold, ReplayError where the step cannot run again.
    """
    names = tuple(names)
    chosen = [value for name in names for value in _named(graph, name)] if names else range(len(graph.values))
    plan = RecomputationPlan(graph, set(chosen))
    if not plan.is_missing():
        return graph
    rerun = Reexecution(graph, borrowed, plan)
    with without_gradients(), _DisableAutocast(), DisableTorchFunction():
        rerun.forward()
        rerun.backward()
        return rerun.graph(names)


def _named(graph: Graph, name: str) -> list[int]:
    if not isinstance(name, str):
        raise RequestError(f'recompute({name!r}): give names of values, or patterns such as "h.3.*", each by itself.')
    return values_named(graph, name) if any(mark in name for mark in "*?") else [find_value(graph, name)]


class Reexecution:
    """One re-execution: `values` are the graph's, with numbers as long as something needs them."""

    def __init__(self, graph: Graph, borrowed: Mapping[int, BorrowedTensor], plan: RecomputationPlan) -> None:
        self.old, self.plan, self.borrowed = graph, plan, borrowed
        self.values = list(graph.values)
        self.working = replace(graph, values=cast(tuple[Value, ...], self.values))  # filled in step by step
        self.uses = Counter(plan.lasting())
        self.uses.update(each for operation in plan.operations for each in operands(operation))
        self.uses.update(each.earlier for each in plan.overtaken if each.earlier is not None)
        self.written: dict[int, tuple[Tensor, Tensor]] = {}  # memory -> what was written to, before and after
        self.empty: set[int] = set()  # values that are memory which nothing has been written to
        self.executions: dict[int, list[NodeExecution]] = {}
        self.gradients: dict[int, Tensor] = {}
        self.of_passes: dict[int, dict[int, Tensor]] = {}
        self.unreturned: dict[int, list[int]] = {}  # operation -> values that it wrote, and did not return
        for value in graph.values:
            operation = graph.operations[value.operation] if value.operation is not None else None
            if operation is not None and value.earlier is None and value.index not in operation.outputs:
                self.unreturned.setdefault(operation.index, []).append(value.index)

    # -- forward ------------------------------------------------------------------------------------------------------

    def forward(self, carried: Iterable[int] = ()) -> dict[int, Tensor]:
        """Run the operations, each once its operands are there; leaves are read from their owners.

        Gives the tensors of the leaves that are `carried` as the operations left them, where one wrote to them.
        """
        for operation in self.plan.operations:
            needed = operands(operation)
            for each in needed:
                self._find(each)
            for index, made in self._run(operation).items():
                if self.uses[index] and not self.values[index].has_numbers:
                    self._fill(index, made, operation)
            self._release(needed)
        for each in self.plan.lasting():
            self._find(each)
        left = {each: self._now(self.values[each].snapshot.tensor) for each in carried}
        self.written.clear()
        return {each: data for each, data in left.items() if data is not None}

    def _run(self, operation: Operation) -> dict[int, Tensor]:
        if operation.function is None:
            raise ReplayError(f"{_called(self.old, operation)}: the recording does not hold what it ran. {NO_WAY}")
        arguments: dict[str, Any] = self.working.filled(operation.arguments)
        if arguments.get("dtype", "") is None and not tensors_in(arguments):  # it took the default type of then
            made_there = (self.values[each].snapshot.dtype for each in operation.outputs if each is not None)
            arguments["dtype"] = next(made_there, None)
        written = [name for name in arguments if name in written_by(operation.function)]
        given = tensors_in([arguments[name] for name in written]) or tensors_in(arguments.get("base"))
        arguments |= {name: cloned(arguments[name]) for name in written}
        try:
            with drawn_again(operation.random_state):
                out = run_again(operation, arguments)
        except Exception as error:
            said = f"{_called(self.old, operation)} cannot be run again ({in_one_line(error)}). {NO_WAY}"
            raise ReplayError(said) from error
        made = list(tensors_in(out))
        after = tensors_in([arguments[name] for name in written]) or made[:1]
        hidden = [t for t in after if written and not any(t is each for each in made)]
        found = {index: made[slot] for slot, index in enumerate(operation.outputs) if index is not None}
        unreturned = self.unreturned.get(operation.index, [])
        if unreturned and len(unreturned) == len(hidden):
            found |= dict(zip(unreturned, hidden, strict=True))
        memories = set(map(storage_of, given))
        if operation.index in self.plan.watched or memories & self.written.keys():
            for old, new in zip(given, after, strict=True) if len(memories) == len(given) else ():
                self.written[storage_of(old)] = old, new
                self.written.setdefault(storage_of(new), (new, new))
        return found

    def _find(self, index: int) -> None:
        """Give a value its numbers: those of a leaf are its owner's."""
        value = self.values[index]
        if value.has_numbers or (value.earlier is not None and self._overtake(value, value.earlier)):
            return
        if value.operation is not None:
            raise ReplayError(
                f"{value.name}{_at(value)}: it is memory that an operation overwrote through another tensor, and the "
                f"recording does not hold how. {NO_WAY}"
            )
        owner = self.borrowed.get(index)
        what = f"the {value.kind} {value.name} {value.shape}"
        if owner is None:
            raise ReplayError(
                f"{what} was not kept, and is no longer what the step began with: it was overwritten in the recorded "
                f"step, by optimizer.step() for one, or made unseen, or the recording was read from a file. {NO_WAY}"
            )
        if not owner.is_unchanged() or not _matches(value.statistics, owner.tensor, exact=True):
            raise ReplayError(f"{what} was not kept, and was overwritten after the recorded step. {NO_WAY}")
        leaf = owner.tensor.detach()  # its owner may overwrite it, so a wanted value is a copy
        self.values[index] = _with(value, leaf.clone() if index in self.plan.values else leaf)

    def _overtake(self, value: Value, earlier: int) -> bool:
        """Give a value of memory that others wrote to: its earlier tensor, in the memory that holds the new numbers."""
        self._find(earlier)
        now = self._now(self.values[earlier].snapshot.tensor)
        if now is None:
            return False
        self.values[value.index] = _with(value, now)
        self._release([earlier])
        return True

    def _now(self, view: Tensor) -> Tensor | None:
        """A tensor in the memory that holds what was written to it since; None where that is not followed."""
        if view.layout is not torch.strided or storage_of(view) not in self.written:
            return None
        offset, memory = view.storage_offset(), view.untyped_storage()
        while (pair := self.written[memory._cdata])[0] is not pair[1]:
            old, new = pair
            offset, memory = offset - old.storage_offset() + new.storage_offset(), new.untyped_storage()
        if memory.nbytes() < view.untyped_storage().nbytes():
            return None
        return _in_memory(view, memory, int(offset))

    def _fill(self, index: int, made: Tensor, operation: Operation) -> None:
        value = self.values[index]
        if self._means_nothing(value, operation):
            self.empty.add(index)
        elif not _matches(value.statistics, made):
            raise ReplayError(
                f"{_called(self.old, operation)}: run again, {value.name} comes out with other statistics than those "
                f"recorded ({_in_words(made)}; recorded: {_in_words(value.statistics)}). The operation reads what the "
                f"recording does not hold (a clock, a random generator of its own, a buffer written unseen). {NO_WAY}"
            )
        self.values[index] = _with(value, made.detach())

    def _means_nothing(self, value: Value, operation: Operation) -> bool:
        """Whether a value is memory that nothing has been written to, or not to all of it."""
        function = getattr(operation.function, "function", None)
        is_view = hasattr(function, "_schema") and Traits.of(function).views
        return value.slot in facts_of(operation.name).unwritten or (
            is_view and not self.empty.isdisjoint(operands(operation))
        )

    def _release(self, indices: Iterable[int]) -> None:
        for index in indices:
            self.uses[index] -= 1
            if not self.uses[index]:
                self.values[index] = self.old.values[index]

    # -- back ---------------------------------------------------------------------------------------------------------

    def backward(self) -> None:
        """Run every pass again, from its roots, as far as it leads to what is wanted."""
        left = Counter(index for _, ran in self.old.passes() for index in ran if index in self.plan.ran)
        for _, ran in self.old.passes():
            arriving: dict[int, dict[int, Tensor]] = {}
            for index in sorted(self.plan.ran & ran.keys(), key=lambda each: ran[each].order):
                self._step_back(self.old.nodes[index], ran[index], arriving)
                left[index] -= 1
                if not left[index]:
                    self._release(self.plan.operands_of(index))
        self.gradients = self.old.summed(self.of_passes)
        for index, gradient in self.gradients.items():
            value = self.values[index]
            if value.grad is None and not _matches(value.grad_statistics, gradient):
                raise ReplayError(
                    f"the gradient of {value.name}{_at(value)}: recomputed, it has other statistics than those "
                    f"recorded ({_in_words(gradient)}; recorded: {_in_words(value.grad_statistics)}). A hook "
                    f"changed it, or an operation's backward reads what the recording does not hold. {NO_WAY}"
                )

    def _step_back(self, node: Node, execution: NodeExecution, arriving: dict[int, dict[int, Tensor]]) -> None:
        here, gradients = arriving.pop(node.index, {}), self.of_passes.setdefault(execution.backward, {})
        upstream = tuple(here.get(slot, g) if is_lost(g) else g for slot, g in enumerate(execution.upstream))
        if node.leaf is None and any(map(is_lost, upstream)):
            raise ReplayError(
                f"{node.name}{f' ({node.place})' if node.place else ''}: the gradient that arrived there was not kept, "
                f"and no recorded node sent it, as where backward(gradient=...) began with a large one. {NO_WAY}"
            )
        downstream = self._downstream(node, execution, upstream)
        if node.index in self.plan.nodes:
            whole = replace(
                execution, arrived=_filled(execution.arrived, upstream), sent=_filled(execution.sent, downstream)
            )
            self.executions.setdefault(node.index, []).append(whole)
            for value, gradient in zip(node.outputs, upstream, strict=False):
                if value is not None and gradient is not None:
                    accumulate(gradients, value, gradient)
        for edge in node.edges:
            sent = downstream[edge.position] if edge.position < len(downstream) else None
            target = self.old.nodes[edge.node]
            if sent is not None and target.leaf is not None:
                if edge.node in self.plan.nodes:
                    accumulate(gradients, target.leaf, sent)
            elif sent is not None and edge.node in self.plan.ran:
                accumulate(arriving.setdefault(edge.node, {}), edge.slot, sent)

    def _downstream(self, node: Node, execution: NodeExecution, upstream: Gradients) -> Gradients:
        """What the node sends on: as recorded, or where that was not kept as autograd gives it on the operation."""
        found = list(execution.downstream)
        lost = [e for e in node.edges if e.position < len(found) and is_lost(found[e.position])]
        if not lost:
            return execution.downstream
        try:
            if any(edge.argument is None for edge in lost):
                raise CannotRunError("which argument one of its gradients belongs to is not known")
            gradients = Experiment(self.working, node, upstream, 0).replayed(lost, wide=False)
            for edge, gradient in zip(lost, gradients, strict=True):
                asked = found[edge.position]
                if gradient is None or asked is None or gradient.shape != asked.shape:
                    raise CannotRunError(f"it gives no such gradient for `{edge.argument}`")
                found[edge.position] = gradient.to(asked.dtype)
        except Exception as error:
            said = str(error).splitlines()[0] if str(error) else type(error).__name__
            where = f" ({node.place})" if node.place else ""
            raise ReplayError(f"{node.name}{where}: autograd cannot run it again ({said}). {NO_WAY}") from error
        return tuple(found)

    # -- the new facts ------------------------------------------------------------------------------------------------

    def graph(self, names: tuple[str, ...]) -> Graph:
        """The facts, with the numbers that were recomputed, and a note that says which these are."""
        borrowed = {storage_of(owner.tensor) for owner in self.borrowed.values()}
        values = [
            self._filled(value, borrowed) if value.index in self.plan.values else self.old.values[value.index]
            for value in self.values
        ]
        pairs = list(zip(values, self.old.values, strict=True))
        numbers = [old.statistics for new, old in pairs if new.has_numbers and not old.has_numbers]
        gradients = [old.grad_statistics for new, old in pairs if new.grad is not None and old.grad is None]
        unmeasured = (*numbers, *gradients).count(None)
        held = f"; of {unmeasured} none were recorded" if unmeasured else ""
        note = (
            f"recomputed, not recorded: {', '.join(names) or 'everything'} and what it was made of and used for "
            f"(the numbers of {len(numbers)} values and {len(gradients)} gradients), by running "
            f"{len(self.plan.operations)} of {len(self.old.operations)} operations forward and "
            f"{len(self.plan.rerun)} nodes back again; the statistics are those that were recorded{held}"
        )
        return replace(
            self.old,
            values=tuple(values),
            nodes=tuple(
                replace(node, executions=tuple(self.executions.get(node.index, node.executions)))
                for node in self.old.nodes
            ),
            parameters={name: _parameter(each, values) for name, each in self.old.parameters.items()},
            notes=(*self.old.notes, note),
        )

    def _filled(self, value: Value, borrowed: set[int]) -> Value:
        if value.data is not None and storage_of(value.data) in borrowed:
            value = _with(value, value.data.clone())
        gradient = self.gradients.get(value.index)
        if gradient is None or value.gradient is None or value.gradient.has_numbers:
            return value
        return replace(value, gradient=value.gradient.filled(gradient))


def run_again(operation: Operation, arguments: dict[str, Any]) -> Any:
    """What an operation gives on these arguments; what it writes to is overwritten."""
    function: Any = operation.function
    if isinstance(getattr(function, "function", None), type):  # a user's own
        return UserCode(function.function, arguments).run(lambda: function(arguments), arguments)
    return function(arguments, gradients=operation.node is not None)


def _parameter(parameter: Parameter, values: list[Value]) -> Parameter:
    """A parameter with its numbers before, and its `.grad` where that is what arrived in this step, and no more."""
    value = values[parameter.value] if parameter.value is not None else None
    if value is None:
        return parameter
    start, gradient = parameter.start, parameter.gradient
    if not start.has_numbers:
        start = start.filled(value.data)
    if gradient is not None and not gradient.has_numbers and gradient.statistics is not None and value.grad is not None:
        gradient = gradient.filled(value.grad if _matches(gradient.statistics, value.grad) else None)
    return replace(parameter, start=start, gradient=gradient)


def _with(value: Value, data: Tensor) -> Value:
    """A value with its numbers."""
    return replace(value, snapshot=value.snapshot.filled(data))


def _filled(recorded: tuple[Snapshot | None, ...], gradients: Gradients) -> tuple[Snapshot | None, ...]:
    """The gradients of one run of a node with their numbers."""
    return tuple(
        known if known is None or known.has_numbers else known.filled(found)
        for known, found in zip(recorded, gradients, strict=True)
    )


def cloned(tree: Any) -> Any:
    """Tensors to write to, with all of the memory that they are a part of: each stands where it stood."""

    def copied(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or leaf.layout is not torch.strided:
            return leaf.clone() if isinstance(leaf, Tensor) else leaf
        return _in_memory(leaf, leaf.untyped_storage().clone(), int(leaf.storage_offset()))

    return map_leaves(copied, tree)


def _in_memory(like: Tensor, memory: torch.UntypedStorage, offset: int) -> Tensor:
    """A tensor of this memory, of the shape and strides of another."""
    made = torch.empty(0, dtype=like.dtype, device=like.device)
    return made.set_(memory, offset, like.size(), like.stride())


def _matches(recorded: Statistics | None, data: Tensor, exact: bool = False) -> bool:
    """Whether a tensor has the recorded statistics (None: none were recorded, and there is nothing to compare it with).

    An `exact` tensor must be identical; other statistics may differ by rounding.
    """
    if recorded is None:
        return True
    found = measure(data.detach()).read()
    if found == recorded:
        return True
    if exact or found.elements != recorded.elements or found.not_finite != recorded.not_finite:
        return False
    eps = min(rounding(data.dtype), FLOAT32)
    typical = math.sqrt(UNKNOWN_SUMS) * recorded.norm / math.sqrt(max(recorded.elements, 1))
    small = tolerance(0.0, typical, UNKNOWN_SUMS, eps)
    sizes = data if data.dtype is torch.bool else data.abs()
    if recorded.zeros > found.zeros and recorded.zeros > int((sizes <= small).sum()):
        return False  # a recorded 0 may come out close to 0; the norm shows the reverse
    return same_statistics(found, recorded, eps, UNKNOWN_SUMS)


def _in_words(of: Tensor | Statistics | None) -> str:
    found = measure(of).read() if isinstance(of, Tensor) else of
    return "none" if found is None else f"norm {found.norm:.6g}, from {found.low:.6g} to {found.high:.6g}"


def _called(graph: Graph, operation: Operation) -> str:
    place = graph.calls[operation.call].place if operation.call is not None else None
    return f"{operation.name}, operation {operation.index}{f' ({place})' if place else ''}"


def _at(value: Value) -> str:
    return f" ({value.place})" if value.place else ""
