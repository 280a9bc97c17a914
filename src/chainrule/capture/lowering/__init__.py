"""Turns the tape of a recorded step into a `Graph`: which tensor is which value, which node belongs to which operation,
and what the user calls them.

The tape is read once, from its beginning to its end (`operations`, with `tensor_versions`); everything else asks what
was read. Each file imports only from those before it:

    tensor_versions  which tensor is which value, at each position of the tape; snapshots of their numbers
    operations       operations, and the nodes that lead back through them
    naming           paths and names; what the user wrote
    backward_passes  nodes in forward order, passes, and the gradients that they make
    parameters       before and after the step, combined over ranks, and what wrote to their gradients
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

from torch import Tensor

from chainrule.capture.data_parallel import own_part
from chainrule.capture.lowering.backward_passes import (
    BackwardPasses,
    gradients_of,
    number_nodes,
    read_nodes,
)
from chainrule.capture.lowering.naming import Names, Paths, read_call
from chainrule.capture.lowering.operations import Lowering
from chainrule.capture.lowering.parameters import (
    read_events,
    read_parameters,
    read_reducers,
    read_reductions,
    read_updates,
)
from chainrule.capture.lowering.tensor_versions import Snapshots, TensorVersions
from chainrule.capture.retention import is_trained_leaf
from chainrule.capture.tape import Tape
from chainrule.gc_control import gc_paused
from chainrule.graph.graph import Call, Failure, Graph, Operation, Value
from chainrule.graph.opaque_tensors import kind_of
from chainrule.graph.reexecution import unobserved
from chainrule.graph.snapshot import Parameter, Reduction, statistics_of
from chainrule.graph.statistics import Statistics


@gc_paused()
def lower(tape: Tape, snapshots: Snapshots | None = None) -> Graph:
    """The facts of a step; without autograd's nodes, which nobody asks for, where they do not last."""
    with unobserved():  # the user's classes of tensors too
        return _lower(tape, snapshots or Snapshots(tape))


def _lower(tape: Tape, snapshots: Snapshots) -> Graph:
    paths = Paths(tape)
    lowering = Lowering(tape, paths.buffers)
    passes = BackwardPasses(lowering)
    calls = tuple(read_call(index, raw, lowering, paths) for index, raw in enumerate(tape.calls))
    names = Names(lowering, paths, calls)
    number = number_nodes(lowering) if snapshots.lasting else {each: each for each in range(len(tape.nodes))}
    backwards = passes.backwards(number, snapshots)
    gradients = gradients_of(passes, backwards)
    parameters = read_parameters(passes, names, snapshots)
    reductions = read_reductions(passes, names, parameters, snapshots)
    of_leaves = _of_leaves(tape, parameters, reductions)
    values = _freeze(tape, lowering.values, number, gradients, snapshots, of_leaves)
    operations = tuple(
        each if each.node is None else replace(each, node=number[each.node]) for each in lowering.operations
    )
    return Graph(
        values=values,
        operations=operations,
        calls=calls,
        nodes=read_nodes(lowering, number, passes.executions(snapshots, number)) if snapshots.lasting else (),
        backwards=backwards,
        updates=read_updates(lowering, names, snapshots),
        parameters=parameters,
        modules=tuple(paths.modules()),
        events=tuple(read_events(passes, names)),
        error=tape.error,
        notes=(
            *paths.notes_of_compiled(),
            *_notes_of_patterns(tape),
            *_notes_of_writes(tape),
            *_notes_of_opaque(lowering, values, operations, calls),
        ),
        reducers=read_reducers(lowering, paths),
        reductions=reductions,
        failures=tuple(_failures(lowering, paths)),
        carried=tape.failures.carried,
    )


def free(tape: Tape) -> None:
    """Free a tape that nobody reads any more, its autograd nodes from the loss back to the leaves.

    PyTorch 2.13 frees a node that Python has seen inside the call that frees the node before it: in another order, a
    chain of 50,000 nodes overflows the stack.
    """
    # Sorted first: before PyTorch 2.12, the node of a Function has a number only as long as its graph lives.
    nodes = sorted((raw.node for raw in tape.nodes), key=lambda node: node._sequence_nr())
    tape.borrowed.release()
    tape.__dict__.clear()
    while nodes:
        nodes.pop()


def _failures(lowering: Lowering, paths: Paths) -> Iterator[Failure]:
    """Every exception that was noted, in order."""
    tape = lowering.tape
    for raw in tape.failures.all:
        facts = raw.facts
        operation = None if raw.operation is None else lowering.at.get(raw.operation)
        value = None if raw.tensor is None else lowering.values.at(raw.tensor, raw.at)
        made = facts.made
        if made is None and operation is not None and (call := lowering.operations[operation].call) is not None:
            site = tape.calls[call].site
            made = None if site is None else site.place()
        module = facts.module if raw.module is None else paths.of(raw.module) or facts.module
        yield replace(facts, operation=operation, value=value, made=made, module=module)


def _notes_of_patterns(tape: Tape) -> tuple[str, ...]:
    """A pattern of `keep=` that named nothing is most likely a mistake."""
    unmet = sorted(tape.retention.unmet) if tape.retention is not None else []
    return tuple(
        f"keep=[{each!r}] named no module that ran, so it kept nothing: the patterns are of module paths, such as "
        "those in `recording.graph.modules`."
        for each in unmet
    )


def _notes_of_writes(tape: Tape) -> Iterator[str]:
    """What was left out, and whether what was overwritten took more memory than there was for it."""
    for run in tape.unread:
        yield (
            f"{run.count} writes in a row to a tensor of shape {tuple(run.tensor.shape)} are not shown"
            f"{f' ({run.site.place()})' if run.site else ''}: nothing read it in between, and no gradient depends on "
            "it. What they left counts as an input."
        )
    kept = tape.retention
    if kept is not None and kept.policy.everything and kept.left < 0:
        yield (
            f"the {kept.policy.memory / 2**20:,.0f} MiB for values, gradients and what was overwritten (`memory=` of "
            "`record`) were not enough for all of them: of what came later, only statistics were kept."
        )


def _notes_of_opaque(
    lowering: Lowering, values: tuple[Value, ...], operations: tuple[Operation, ...], calls: tuple[Call, ...]
) -> tuple[str, ...]:
    """Values whose numbers are not ours to read, each kind once."""
    tape, kinds = lowering.tape, dict[str, list[Value]]()
    for value in values:
        if not value.has_numbers and value.statistics is None:
            tensor = lowering.values[value.index].tensor
            original = tape.placeholders.known.get(id(tensor))
            if kind := kind_of(own_part(tensor)) if original is None else original.kind:
                kinds.setdefault(kind, []).append(value)
    notes = []
    for kind, several in kinds.items():
        first, one = several[0], len(several) == 1
        operation = None if first.operation is None else operations[first.operation]
        place = first.place if operation is None or operation.call is None else calls[operation.call].place
        source = (f" of {operation.name}" if operation else "") + (f" at {place}" if place else "")
        notes.append(
            f"{len(several)} {'value has' if one else 'values have'} no numbers here, first `{first.name}`{source}: "
            f"{'it is' if one else 'they are'} {kind}. What needs these numbers is not checked."
        )
    return tuple(notes)


def _of_leaves(
    tape: Tape, parameters: dict[str, Parameter], reductions: dict[str, Reduction]
) -> dict[int, Statistics | None]:
    """The statistics of each leaf's gradient: `.grad`, or what was there before ranks were combined.

    Where a gradient was not kept and came from several uses of a leaf, the sum alone was measured.
    """
    if any(backward.before for backward in tape.backwards):
        return {}
    given = {name: each.sent for name, each in reductions.items()}
    return {
        each.value: statistics_of(given.get(name, each.gradient))
        for name, each in parameters.items()
        if each.value is not None
    }


def _freeze(
    tape: Tape,
    values: TensorVersions,
    number: dict[int, int],
    gradients: dict[int, Tensor],
    snapshots: Snapshots,
    of_leaves: dict[int, Statistics | None],
) -> tuple[Value, ...]:
    """The drafts as facts. A name that several values share is numbered: `h@1`, `h@2`."""
    shared = Counter(name for draft in values.drafts for name in draft.names)
    count: Counter[str] = Counter()
    found = []
    for index, draft in enumerate(values.drafts):
        count.update(draft.names)  # no value has the same name twice
        names = tuple(f"{name}@{count[name]}" if shared[name] > 1 else name for name in draft.names)
        data, grad = values.data(index), snapshots.of_some(gradients.get(index))
        if draft.operation is None and (owner := tape.owner_of.get(id(data))) is not None:
            tape.owners[index] = owner
        snapshot = snapshots.of(data)
        if grad is not None and not grad.has_numbers:
            grad = replace(grad, device=snapshot.device, statistics=grad.statistics or of_leaves.get(index))
        found.append(
            Value(
                index,
                draft.kind,
                names,
                draft.node is not None or is_trained_leaf(draft.tensor),
                snapshot,
                grad,
                draft.operation,
                draft.slot,
                None if draft.node is None else number[draft.node],
                draft.place,
                draft.earlier,
            )
        )
    return tuple(found)
