"""What was not kept, recomputed on demand: the recorded operations run again, and autograd back through them.

A recording that keeps statistics alone still knows every operation, what it drew its random numbers from, the small
tensors, and where the user has the large leaves (`BorrowedTensor`). So the step can be played again as far as somebody
asks: only the operations that are needed run, in their order, each on what is there, and what no later one needs is let
go of. Back through them it goes node by node: autograd runs again on each operation alone, with the gradient that
arrived.

Nothing of it is taken on trust. A leaf must be as it was (its version, a few of its numbers, its figures), and what is
recomputed must have the figures that were recorded; where it has not, that is an error, and no number is given out. Run
again on the same machine, operations of PyTorch's give the same bits; gradients may differ by the rounding of another
order of summation. What was recomputed says so in the notes of the graph.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from chainrule.capture.borrowed import BorrowedTensor
from chainrule.capture.tape import Traits, storage_of
from chainrule.errors import ReplayError, RequestError
from chainrule.execution.experiment import CannotRunError, Experiment, nothing_left_behind, written_by
from chainrule.execution.recomputation_plan import Wanted, is_lost, operands
from chainrule.graph.graph import Graph, Node, NodeExecution, Operation, Value, accumulate
from chainrule.graph.names import find_value, values_named
from chainrule.graph.snapshot import Parameter, Snapshot
from chainrule.graph.statistics import Statistics, measure
from chainrule.graph.trees import map_leaves, tensors_in

ROUNDING = 1024  # roundings of its number type that figures of what is recomputed may be off: other kernels, threads
NO_WAY = (
    "Record the step with keep= for it, or recompute before the next optimizer.step() (and end the block before it)."
)

Gradients = tuple[Tensor | None, ...]


def recompute(graph: Graph, lent: Mapping[int, BorrowedTensor], names: Iterable[str]) -> Graph:
    """The facts of a step with the numbers of the values that `names` name; of all values where none is named.

    With a value come those of the calls that made it or used it, so that its gradient can be explained and proved.

    Raises MissingError for a name that the recording does not hold, ReplayError where the step cannot be replayed.
    """
    names = tuple(names)
    chosen = [value for name in names for value in _named(graph, name)] if names else range(len(graph.values))
    wanted = Wanted(graph, set(chosen))
    if not wanted.is_missing():
        return graph
    replay = _Replay(graph, lent, wanted)
    with nothing_left_behind(), torch._C._DisableAutocast(), torch._C.DisableTorchFunction():
        replay.forward()
        replay.backward()
        return replay.graph(names)


def _named(graph: Graph, name: str) -> list[int]:
    if not isinstance(name, str):
        raise RequestError(f'recompute({name!r}): give names of values, or patterns such as "h.3.*", each by itself.')
    return values_named(graph, name) if any(mark in name for mark in "*?") else [find_value(graph, name)]


class _Replay:
    """One replay: `values` are the graph's, with numbers as long as something needs them."""

    def __init__(self, graph: Graph, lent: Mapping[int, BorrowedTensor], wanted: Wanted) -> None:
        self.old, self.wanted, self.lent = graph, wanted, lent
        self.values = list(graph.values)
        self.working = replace(graph, values=cast(tuple[Value, ...], self.values))  # filled in as the replay goes on
        self.uses = Counter(wanted.lasting())
        self.uses.update(each for operation in wanted.operations for each in operands(operation))
        self.uses.update(each.earlier for each in wanted.overtaken if each.earlier is not None)
        self.written: dict[int, tuple[Tensor, Tensor]] = {}  # memory -> what was written to, before and after
        self.watched = {each.operation for each in wanted.overtaken}
        self.empty: set[int] = set()  # values that are memory which nothing has been written to
        self.passages: dict[int, list[NodeExecution]] = {}
        self.gradients: dict[int, Tensor] = {}
        self.of_passes: dict[int, dict[int, Tensor]] = {}
        self.unreturned: dict[int, list[int]] = {}  # operation -> values that it wrote, and did not return
        for value in graph.values:
            operation = graph.operations[value.operation] if value.operation is not None else None
            if operation is not None and value.earlier is None and value.index not in operation.outputs:
                self.unreturned.setdefault(operation.index, []).append(value.index)

    # -- forward ------------------------------------------------------------------------------------------------------

    def forward(self) -> None:
        """Run the operations, each as soon as what it takes is there; leaves are taken from their owners."""
        for operation in self.wanted.operations:
            needed = operands(operation)
            for each in needed:
                self._find(each)
            for index, made in self._run(operation).items():
                if self.uses[index] and self.values[index].data is None:
                    self._fill(index, made, operation)
            self._release(needed)
        for each in self.wanted.lasting():
            self._find(each)
        self.written.clear()

    def _run(self, operation: Operation) -> dict[int, Tensor]:
        if operation.function is None:
            raise ReplayError(f"{_told(self.old, operation)}: the recording does not hold what it ran. {NO_WAY}")
        arguments: dict[str, Any] = self.working.filled(operation.arguments)
        written = [name for name in arguments if name in written_by(operation.function)]
        given = tensors_in([arguments[name] for name in written]) or tensors_in(arguments.get("base"))
        arguments |= {name: _cloned(arguments[name]) for name in written}
        if operation.random_state is not None:
            torch.set_rng_state(operation.random_state)
        try:
            out = operation.function(arguments, gradients=operation.node is not None)
        except Exception as error:
            said = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            raise ReplayError(f"{_told(self.old, operation)} cannot be run again ({said}). {NO_WAY}") from error
        made = list(tensors_in(out))
        after = tensors_in([arguments[name] for name in written]) or made[:1]
        hidden = [t for t in after if written and not any(t is each for each in made)]
        found = {index: made[slot] for slot, index in enumerate(operation.outputs) if index is not None}
        unreturned = self.unreturned.get(operation.index, [])
        if unreturned and len(unreturned) == len(hidden):
            found |= dict(zip(unreturned, hidden, strict=True))
        if len(given) == 1 and (operation.index in self.watched or storage_of(given[0]) in self.written):
            self.written[storage_of(given[0])] = given[0], after[0]
            self.written.setdefault(storage_of(after[0]), (after[0], after[0]))
        return found

    def _find(self, index: int) -> None:
        """See to it that a value has its numbers: a leaf's are its owner's."""
        value = self.values[index]
        if value.data is not None or (value.earlier is not None and self._overtake(value, value.earlier)):
            return
        if value.operation is not None:
            raise ReplayError(
                f"{value.name}{_at(value)}: it is memory that an operation overwrote through another tensor, and the "
                f"recording does not hold how. {NO_WAY}"
            )
        loan = self.lent.get(index)
        what = f"the {value.kind} {value.name} {value.shape}"
        if loan is None:
            raise ReplayError(
                f"{what} was not kept, and is no longer what the step began with: it was overwritten in the recorded "
                f"step, by optimizer.step() for one, or made unseen, or the recording was read from a file. {NO_WAY}"
            )
        if not loan.is_unchanged() or not _same_figures(value.statistics, loan.tensor, exact=True):
            raise ReplayError(f"{what} was not kept, and was overwritten after the recorded step. {NO_WAY}")
        leaf = loan.tensor.detach()  # its owner may overwrite it, so what is given out is a copy
        self.values[index] = _with(value, leaf.clone() if index in self.wanted.values else leaf)

    def _overtake(self, value: Value, earlier: int) -> bool:
        """Give a value of memory that others wrote to: what its tensor was before, in the memory as it is now."""
        self._find(earlier)
        view = self.values[earlier].data
        assert view is not None
        if view.layout is not torch.strided or storage_of(view) not in self.written:
            return False
        offset, memory = view.storage_offset(), view.untyped_storage()
        while (pair := self.written[memory._cdata])[0] is not pair[1]:
            old, new = pair
            offset, memory = offset - old.storage_offset() + new.storage_offset(), new.untyped_storage()
        if memory.nbytes() < view.untyped_storage().nbytes():
            return False
        self.values[value.index] = _with(value, _in_memory(view, memory, int(offset)))
        self._release([earlier])
        return True

    def _fill(self, index: int, made: Tensor, operation: Operation) -> None:
        value = self.values[index]
        if self._means_nothing(value, operation):
            self.empty.add(index)
        elif not _same_figures(value.statistics, made):
            raise ReplayError(
                f"{_told(self.old, operation)}: run again, {value.name} comes out with other figures than those "
                f"recorded ({_figures(made)}; recorded: {_figures(value.statistics)}). The operation reads what the "
                f"recording does not hold (a clock, a random generator of its own, a buffer written unseen). {NO_WAY}"
            )
        self.values[index] = _with(value, made.detach())

    def _means_nothing(self, value: Value, operation: Operation) -> bool:
        """Whether a value is memory that nothing has been written to, or not to all of it."""
        if operation.name.startswith(("aten.empty", "aten.new_empty")):
            return True
        is_workspace = operation.name == "aten.mkldnn_rnn_layer.default" and value.slot == 3
        function = getattr(operation.function, "function", None)
        is_view = hasattr(function, "_schema") and Traits.of(function).views
        return is_workspace or (is_view and not self.empty.isdisjoint(operands(operation)))

    def _release(self, indices: Iterable[int]) -> None:
        for index in indices:
            self.uses[index] -= 1
            if not self.uses[index]:
                self.values[index] = self.old.values[index]

    # -- back ---------------------------------------------------------------------------------------------------------

    def backward(self) -> None:
        """Every pass again, from where it began, as far as it leads to what is wanted."""
        left = Counter(index for _, ran in self.old.passes() for index in ran if index in self.wanted.ran)
        for _, ran in self.old.passes():
            arriving: dict[int, dict[int, Tensor]] = {}
            for index in sorted(self.wanted.ran & ran.keys(), key=lambda each: ran[each].order):
                self._step_back(self.old.nodes[index], ran[index], arriving)
                left[index] -= 1
                if not left[index]:
                    self._release(self.wanted.operands_of(index))
        self.gradients = self.old.summed(self.of_passes)
        for index, gradient in self.gradients.items():
            value = self.values[index]
            if value.grad is None and not _same_figures(value.grad_statistics, gradient):
                raise ReplayError(
                    f"the gradient of {value.name}{_at(value)}: recomputed, it has other figures than those recorded "
                    f"({_figures(gradient)}; recorded: {_figures(value.grad_statistics)}). A hook changed it, or an "
                    f"operation's backward reads what the recording does not hold. {NO_WAY}"
                )

    def _step_back(self, node: Node, passage: NodeExecution, arriving: dict[int, dict[int, Tensor]]) -> None:
        here, gradients = arriving.pop(node.index, {}), self.of_passes.setdefault(passage.backward, {})
        upstream = tuple(here.get(slot, g) if is_lost(g) else g for slot, g in enumerate(passage.upstream))
        if node.leaf is None and any(map(is_lost, upstream)):
            raise ReplayError(
                f"{node.name}{f' ({node.place})' if node.place else ''}: the gradient that arrived there was not kept, "
                f"and no recorded node sent it, as where backward(gradient=...) began with a large one. {NO_WAY}"
            )
        downstream = self._downstream(node, passage, upstream)
        if node.index in self.wanted.nodes:
            whole = replace(passage, arrived=_filled(passage.arrived, upstream), sent=_filled(passage.sent, downstream))
            self.passages.setdefault(node.index, []).append(whole)
            for value, gradient in zip(node.outputs, upstream, strict=False):
                if value is not None and gradient is not None:
                    accumulate(gradients, value, gradient)
        for edge in node.edges:
            sent = downstream[edge.position] if edge.position < len(downstream) else None
            target = self.old.nodes[edge.node]
            if sent is not None and target.leaf is not None:
                if edge.node in self.wanted.nodes:
                    accumulate(gradients, target.leaf, sent)
            elif sent is not None and edge.node in self.wanted.ran:
                accumulate(arriving.setdefault(edge.node, {}), edge.slot, sent)

    def _downstream(self, node: Node, passage: NodeExecution, upstream: Gradients) -> Gradients:
        """What the node sends on: as recorded where it was kept, else as autograd gives it on the operation alone."""
        found = list(passage.downstream)
        lost = [e for e in node.edges if e.position < len(found) and is_lost(found[e.position])]
        if not lost:
            return passage.downstream
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
        lent = {storage_of(loan.tensor) for loan in self.lent.values()}
        values = [
            self._filled(value, lent) if value.index in self.wanted.values else self.old.values[value.index]
            for value in self.values
        ]
        pairs = list(zip(values, self.old.values, strict=True))
        numbers = [old.statistics for new, old in pairs if new.data is not None and old.data is None]
        gradients = [old.grad_statistics for new, old in pairs if new.grad is not None and old.grad is None]
        unmeasured = (*numbers, *gradients).count(None)
        held = f"; of {unmeasured} none were recorded" if unmeasured else ""
        note = (
            f"recomputed, not recorded: {', '.join(names) or 'everything'} and what it was made of and used for "
            f"(the numbers of {len(numbers)} values and {len(gradients)} gradients), by running "
            f"{len(self.wanted.operations)} of {len(self.old.operations)} operations forward and "
            f"{len(self.wanted.rerun)} nodes back again; the figures are those that were recorded{held}"
        )
        return replace(
            self.old,
            values=tuple(values),
            nodes=tuple(
                replace(node, executions=tuple(self.passages.get(node.index, node.executions)))
                for node in self.old.nodes
            ),
            parameters={name: _parameter(each, values) for name, each in self.old.parameters.items()},
            notes=(*self.old.notes, note),
        )

    def _filled(self, value: Value, lent: set[int]) -> Value:
        if value.data is not None and storage_of(value.data) in lent:
            value = _with(value, value.data.clone())
        gradient = self.gradients.get(value.index)
        if gradient is None or value.gradient is None or value.gradient.has_numbers:
            return value
        return replace(value, gradient=value.gradient.filled(gradient))


def _parameter(parameter: Parameter, values: list[Value]) -> Parameter:
    """A parameter with its numbers before, and its `.grad` where that is what arrived in this step, and no more."""
    value = values[parameter.value] if parameter.value is not None else None
    if value is None:
        return parameter
    start, gradient = parameter.start, parameter.gradient
    if not start.has_numbers:
        start = start.filled(value.data)
    if gradient is not None and not gradient.has_numbers and gradient.statistics is not None and value.grad is not None:
        gradient = gradient.filled(value.grad if _same_figures(gradient.statistics, value.grad) else None)
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


def _cloned(tree: Any) -> Any:
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


def _same_figures(recorded: Statistics | None, data: Tensor, exact: bool = False) -> bool:
    """Whether a tensor has the figures that were recorded (None: none were, and there is nothing to hold it against).

    `exact` is for a tensor that must be the very same; else figures may differ by rounding.
    """
    if recorded is None:
        return True
    found = measure(data.detach()).read()
    if found == recorded:
        return True
    if exact or found.elements != recorded.elements or found.not_finite != recorded.not_finite:
        return False
    floating = data.is_floating_point() or data.is_complex()
    allowed = ROUNDING * torch.finfo(data.dtype if data.dtype.itemsize > 2 else torch.float32).eps if floating else 0.0
    size = max(-recorded.low, recorded.high, 0.0)
    if recorded.zeros > found.zeros and recorded.zeros > int((data.abs() <= allowed * size).sum()):
        return False  # what was 0 may come out next to it; what was next to it and comes out as 0 is in the norm
    return abs(found.norm - recorded.norm) <= allowed * recorded.norm and all(
        abs(getattr(found, name) - getattr(recorded, name)) <= allowed * size for name in ("low", "high", "mean", "std")
    )


def _figures(of: Tensor | Statistics | None) -> str:
    found = measure(of).read() if isinstance(of, Tensor) else of
    return "none" if found is None else f"norm {found.norm:.6g}, from {found.low:.6g} to {found.high:.6g}"


def _told(graph: Graph, operation: Operation) -> str:
    place = graph.calls[operation.call].place if operation.call is not None else None
    return f"{operation.name}, operation {operation.index}{f' ({place})' if place else ''}"


def _at(value: Value) -> str:
    return f" ({value.place})" if value.place else ""
