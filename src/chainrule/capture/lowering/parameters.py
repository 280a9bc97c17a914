"""The parameters before and after the step: each `optimizer.step()`, what ranks combined, writes to gradients."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from chainrule.capture.ignored_settings import ignored_options
from chainrule.capture.lowering.backward_passes import BackwardPasses
from chainrule.capture.lowering.naming import Names, Paths
from chainrule.capture.lowering.operations import Lowering
from chainrule.capture.lowering.tensor_versions import Snapshots, data_after
from chainrule.capture.module_tree import parameters_of
from chainrule.capture.raw_records import RawUpdate
from chainrule.graph.comparison import identical
from chainrule.graph.graph import UNSCALE, Event
from chainrule.graph.snapshot import (
    Parameter,
    ParameterUpdate,
    Reducer,
    Reduction,
    Snapshot,
    Update,
    all_have_numbers,
    data_of,
    has_numbers,
    statistics_of,
)
from chainrule.rules.facts import facts_of


def read_updates(lowering: Lowering, names: Names, snapshots: Snapshots) -> tuple[Update, ...]:
    """Each `optimizer.step()`, with the values of the parameters before it."""
    number_of: dict[int, int] = {}
    return tuple(
        Update(
            _name_of(type(raw.optimizer)),
            tuple(_updated(lowering, raw, names, snapshots)),
            raw.position,
            number_of.setdefault(id(raw.optimizer), len(number_of)),
            ignored_options(raw.optimizer),
            raw.hooks,
        )
        for raw in lowering.tape.updates
    )


def _name_of(optimizer: type[Optimizer]) -> str:
    """The name of an optimizer's class, with its module where one of PyTorch's is called so and it is another."""
    name = optimizer.__name__
    return name if getattr(torch.optim, name, optimizer) is optimizer else f"{optimizer.__module__}.{name}"


def _updated(lowering: Lowering, raw: RawUpdate, names: Names, snapshots: Snapshots) -> Iterator[ParameterUpdate]:
    tape, leaves = lowering.tape, lowering.leaves
    whole = {id(part): leaf for leaf, part in tape.reducers.gathered.values()}
    members = [(options, parameter) for options, group in raw.groups for parameter in group]
    for place, (options, parameter) in enumerate(members):
        version, before = raw.gradients[place], raw.before[place]
        gradient = None if version is None else tape.data_of(version)
        yield ParameterUpdate(
            leaves.of(whole.get(id(parameter), parameter), before=raw.position),
            names.of_parameter(parameter),
            snapshots.of(before),
            snapshots.of_some(gradient),
            snapshots.of_after(tape.data_of(raw.after[place]) if raw.after else before),
            options,
            {name: _state(each, snapshots) for name, each in raw.states[place].items()},
            raw.moved[place] if raw.moved else None,
            _left_over(lowering, raw, parameter, snapshots),
        )


def _left_over(lowering: Lowering, update: RawUpdate, parameter: Tensor, snapshots: Snapshots) -> Snapshot | None:
    """What was in `.grad` before the passes since this optimizer's last step, unless it was cleared before the last."""
    tape = lowering.tape
    last = max((each.position for each in tape.updates if each.optimizer is update.optimizer
                and each.position < update.position), default=-1)  # fmt: skip
    passes = [
        each for each in tape.backwards if last < each.position <= update.position and id(parameter) in each.after
    ]
    before = [each.before.get(id(parameter)) for each in passes if each.accumulates]
    found = [snapshots.of_some(each) for each in before]
    return found[0] if found and all(each is not None and not _is_zero(each) for each in found) else None


def _is_zero(snapshot: Snapshot) -> bool:
    known, data = statistics_of(snapshot), data_of(snapshot)
    return known.zeros == known.elements if known is not None else data is not None and not data.any()


def read_parameters(passes: BackwardPasses, names: Names, snapshots: Snapshots) -> dict[str, Parameter]:
    """Every trained leaf by its name; equal names are numbered."""
    lowering, leaves = passes.lowering, passes.lowering.leaves
    found: dict[str, Parameter] = {}
    stepped = {
        id(p): after for raw in lowering.tape.updates for p, after in zip(raw.parameters, raw.after, strict=False)
    }
    whole = {id(part): leaf for leaf, part in lowering.tape.reducers.gathered.values()}
    for tensor in _trained(lowering, leaves.used):
        value = leaves.of(whole.get(id(tensor), tensor))
        name = names.of_parameter(tensor)
        if name in found:
            name = f"{name}@{sum(other.split('@')[0] == name for other in found) + 1}"
        spread = value is None or id(tensor) in whole  # no operation took it, or only what was gathered from its parts
        before = data_after(lowering.tape, tensor, -1) if spread or value is None else lowering.values.data(value)
        stepped_to = stepped.get(id(tensor))
        after = None if stepped_to is None else lowering.tape.data_of(stepped_to)
        if after is None and value is not None and not spread:
            after = _changed_by_hand(lowering, tensor, before)
        gradient = snapshots.of_some(passes.left_last(tensor))
        end = None if after is None else snapshots.of_after(after)
        reached = (each for each in lowering.tape.backwards if each.accumulates and id(tensor) in each.after)
        first = next(reached, None)
        left_over = None if first is None else snapshots.of_some(first.before.get(id(tensor)))
        found[name] = Parameter(name, value, snapshots.of(before), gradient, end, left_over)
    return found


def _state(state: Any, snapshots: Snapshots) -> Any:
    """A part of an optimizer's state; a snapshot of a tensor that was not kept."""
    return snapshots.of(state) if isinstance(state, Tensor) and not has_numbers(state) else state


def _changed_by_hand(lowering: Lowering, tensor: Tensor, before: Tensor) -> Tensor | None:
    """The data after the user's own update: the last copy was made at the end, an earlier one for a write."""
    copies = lowering.tape.copies.get(id(tensor), ())
    if len(copies) < 2 or not all_have_numbers(before, copies[-1].data):
        return None
    return copies[-1].data if not identical(copies[-1].data, before) else None


def _trained(lowering: Lowering, used: set[int]) -> Iterator[Tensor]:
    """Every parameter of the modules that ran, those of an optimizer that stepped, then other leaves in use."""
    seen: set[int] = set(lowering.tape.reducers.gathered)  # their parts are the parameters
    roots = [run.module for run in lowering.tape.modules if run.parent is None]
    groups = [parameter for raw in lowering.tape.updates for parameter in raw.parameters]
    # A leaf that is read under `no_grad` alone (by a moving average of weights) is not trained here.
    leaves = [lowering.values[each].tensor for each in sorted(used) if lowering.values[each].kind == "parameter"]
    for tensor in [*(p for root in roots for p in parameters_of(root)), *groups, *leaves]:
        if id(tensor) not in seen:
            seen.add(id(tensor))
            yield tensor


def read_reducers(lowering: Lowering, paths: Paths) -> tuple[Reducer, ...]:
    """The modules that combine gradients over ranks."""
    return tuple(
        Reducer(paths.of(raw.module), type(raw.module).__name__, raw.kind, raw.rank, raw.ranks, raw.batch, raw.hook)
        for raw in lowering.tape.reducers.all
    )


def read_reductions(
    passes: BackwardPasses, names: Names, parameters: dict[str, Parameter], snapshots: Snapshots
) -> dict[str, Reduction]:
    """For each parameter the last time that its gradient was combined: what this rank gave, and what it got."""
    tape, found = passes.lowering.tape, {}
    for raw in tape.arrivals:
        name = names.of_parameter(raw.parameter)
        backward = passes.by_task.get(raw.task)
        left = None if backward is None else passes.left(backward, raw.parameter)
        local = data_after(tape, raw.whole, -1)
        found[name] = Reduction(name, raw.reducer, snapshots.of(local), snapshots.of_some(left))
    return {name: found[name] for name in parameters if name in found}


def read_events(passes: BackwardPasses, names: Names) -> Iterator[Event]:
    """The writes to gradients in their order, then the changes by hooks in the order in which they ran.

    A write is on the tape. A hook runs inside autograd, unseen: it shows as a gradient that is not the sum of what the
    uses of the value sent.
    """
    lowering = passes.lowering
    for position, gradient, function, site in lowering.tape.writes:
        if (parameter := lowering.tape.gradients.get(gradient)) is not None:
            operation = lowering.at.get(position)
            unscales = operation is not None and facts_of(lowering.operations[operation].name).unscales
            kind = UNSCALE if unscales else function or "write"  # a scaler's own step() unscales, too
            place = site.place() if site else None
            yield Event(kind, names.of_parameter(parameter), position, place, operation=operation)
    for change in passes.changes:
        if not change.writers:
            draft = lowering.values[change.value]
            yield Event("hook", draft.names[0], max(draft.created + 1, 0), draft.place, change.value)
