"""From what happened (`Tape`) to the facts (`Graph`): which tensor is which value, which node went back through which
operation, and what the user calls them.

The tape is read once, from its beginning to its end (`reading`, with `values`); all else asks what was read. The rooms
stand in this order, and each imports only from those before it:

    rerun, values    an operation that runs again; which tensor is which value
    reading          operations, and the nodes that go back through them
    leaves           of the values that a leaf was, the one that its gradients belong to
    passes           backward passes, and the gradients that they make
    nodes            nodes in forward order, edges and arguments matched
    naming, calls    paths and names; what the user wrote
    figures          the numbers that were kept, and what was measured of the rest
    parameters       before and after the step
    reductions       what ranks gave each other
    events           what happened between the operations
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from torch import Tensor

from chainrule.capture.lowering.backward_passes import BackwardPasses, gradients_of, read_events
from chainrule.capture.lowering.naming import Names, Paths, read_calls
from chainrule.capture.lowering.nodes import number_nodes, read_nodes
from chainrule.capture.lowering.operations import DraftOperation, Leaves, Lowering
from chainrule.capture.lowering.parameters import read_parameters, read_reducers, read_reductions, read_updates
from chainrule.capture.lowering.statistics import TapeStatistics
from chainrule.capture.lowering.tensor_versions import TensorVersions
from chainrule.capture.retention import is_trained_leaf
from chainrule.capture.tape import Tape
from chainrule.gc_control import gc_paused
from chainrule.graph.graph import Graph, Operation, Parameter, Reduction, Value
from chainrule.graph.statistics import Statistics


@gc_paused()
def lower(tape: Tape, figures: TapeStatistics | None = None) -> Graph:
    """Read the tape once, from its beginning to its end, and give the facts.

    Facts that are not to last (`figures.lasting`) are without autograd's nodes, which nobody asks for.
    """
    figures = figures or TapeStatistics(tape)
    paths, passes = Paths(tape), BackwardPasses(tape)
    lowering = Lowering(tape, paths.buffers)
    leaves = Leaves(lowering)
    calls = read_calls(lowering, paths)
    names = Names(lowering, leaves, paths, calls)
    number = number_nodes(lowering) if figures.lasting else {each: each for each in range(len(tape.nodes))}
    backwards = passes.backwards(lowering, leaves, number)
    gradients = gradients_of(lowering, leaves, passes, backwards)
    parameters = read_parameters(lowering, leaves, passes, names, figures)
    reductions = read_reductions(lowering, passes, names, parameters, figures)
    of_leaves = _of_leaves(tape, parameters, reductions)
    return Graph(
        values=_freeze(tape, lowering.values, number, gradients, figures, of_leaves),
        operations=tuple(_frozen(operation, number) for operation in lowering.operations),
        calls=calls,
        nodes=read_nodes(lowering, leaves, number, passes.executions()) if figures.lasting else (),
        backwards=tuple(replace(each, given=_held(each.given, figures)) for each in backwards),
        updates=read_updates(lowering, leaves, names, figures),
        parameters=parameters,
        modules=tuple(paths.modules()),
        events=tuple(read_events(lowering, passes, names)),
        error=tape.error,
        notes=(*paths.notes_of_compiled(), *_notes_of_patterns(tape)),
        reducers=read_reducers(lowering, paths),
        reductions=reductions,
    )


def free(tape: Tape) -> None:
    """Free a tape that nobody reads any more, its autograd nodes from the loss back to the leaves.

    PyTorch 2.13 frees a node that Python has seen from inside the one that leads to it, call within call: let go of in
    another order, a chain of 50,000 nodes overflows the stack.
    """
    nodes = [raw.node for raw in tape.nodes]
    tape.__dict__.clear()
    nodes.sort(key=lambda node: node._sequence_nr())
    while nodes:
        nodes.pop()


def _notes_of_patterns(tape: Tape) -> tuple[str, ...]:
    """A pattern of `keep=` that named nothing is most likely a slip."""
    unmet = sorted(tape.retention.unmet) if tape.retention is not None else []
    return tuple(
        f"keep=[{each!r}] named no module that ran, so it kept nothing: the patterns are of module paths, such as "
        "those in `recording.graph.modules`."
        for each in unmet
    )


def _frozen(draft: DraftOperation, number: dict[int, int]) -> Operation:
    return Operation(
        draft.index,
        draft.name,
        draft.function,
        draft.arguments,
        draft.outputs,
        draft.call,
        None if draft.node is None else number[draft.node],
        draft.random_state,
    )


def _of_leaves(
    tape: Tape, parameters: dict[str, Parameter], reductions: dict[str, Reduction]
) -> dict[int, Statistics | None]:
    """Of a gradient that was not kept, and came from several uses of a leaf, the sum alone was measured: `.grad`, or
    what was there before ranks were combined.
    """
    if any(backward.before for backward in tape.backwards):
        return {}
    given = {name: each.local_statistics for name, each in reductions.items()}
    return {
        each.value: given.get(name, each.grad_statistics) for name, each in parameters.items() if each.value is not None
    }


def _held(given: dict[int, Tensor], figures: TapeStatistics) -> dict[int, Tensor]:
    return {value: figures.held(gradient) for value, gradient in given.items()}


def _numbered(name: str, count: Counter[str]) -> str:
    count[name] += 1  # no value has a name twice
    return f"{name}@{count[name]}"


def _freeze(
    tape: Tape,
    values: TensorVersions,
    number: dict[int, int],
    gradients: dict[int, Tensor],
    figures: TapeStatistics,
    of_leaves: dict[int, Statistics | None],
) -> tuple[Value, ...]:
    """The drafts as facts. A name that several values have gets a number at each: `h@1`, `h@2`."""
    shared = Counter(name for draft in values.drafts for name in draft.names)
    count: Counter[str] = Counter()
    found = []
    for index, draft in enumerate(values.drafts):
        names = tuple(_numbered(name, count) if shared[name] > 1 else name for name in draft.names)
        data, grad = values.data(index), gradients.get(index)
        if draft.operation is None and (owner := tape.owner_of(data)) is not None:
            tape.owners[index] = owner
        found.append(
            Value(
                index,
                draft.kind,
                names,
                tuple(data.shape),  # the tensor's own may have been changed in place since
                data.dtype,
                tape.device_of(data),
                draft.node is not None or is_trained_leaf(draft.tensor),
                figures.numbers(data),
                figures.numbers(grad),
                draft.operation,
                draft.slot,
                None if draft.node is None else number[draft.node],
                draft.place,
                grad is not None,
                figures.of(data),
                figures.of(grad) or of_leaves.get(index),
                draft.earlier,
            )
        )
    return tuple(found)
