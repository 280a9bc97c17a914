"""How the gradients of several processes became one: for each parameter what this rank gave, and what it was given."""

from __future__ import annotations

from chainrule.capture.lowering.backward_passes import Passes
from chainrule.capture.lowering.naming import Names, Paths
from chainrule.capture.lowering.operations import Reading
from chainrule.capture.lowering.statistics import Snapshots
from chainrule.capture.lowering.tensor_versions import data_after
from chainrule.graph.snapshot import Parameter, Reducer, Reduction


def read_reducers(reading: Reading, paths: Paths) -> tuple[Reducer, ...]:
    """The modules that combine gradients over ranks."""
    return tuple(
        Reducer(paths.of(raw.module), type(raw.module).__name__, raw.kind, raw.rank, raw.ranks, raw.batch, raw.hook)
        for raw in reading.tape.reducers.all
    )


def read_reductions(
    reading: Reading, passes: Passes, names: Names, parameters: dict[str, Parameter], snapshots: Snapshots
) -> dict[str, Reduction]:
    """The last time that each parameter's gradient was combined, by the parameter's name and in their order."""
    tape, found = reading.tape, {}
    for number, raw in enumerate(tape.arrivals):
        name = names.of_parameter(raw.parameter, number)
        backward = passes.of_task(raw.task)
        left = None if backward is None else passes.left(backward, raw.parameter)
        local = data_after(tape, raw.whole, -1)
        found[name] = Reduction(name, raw.reducer, snapshots.of(local), snapshots.of_some(left))
    return {name: found[name] for name in parameters if name in found}
