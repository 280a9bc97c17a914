"""Runs a user's Function that ran under `vmap` without it, on one sample of the batch."""

from __future__ import annotations

import copy
from functools import partial

from chainrule.execution.experiment import Experiment, pick
from chainrule.graph.comparison import unravel
from chainrule.graph.graph import Edge
from chainrule.graph.reexecution import Reexecution
from chainrule.pytorch_internals import batched


def one_sample(experiment: Experiment, edge: Edge, element: int) -> Experiment | None:
    """The same of the Function that `vmap` ran, on the sample of one element of an argument; None where none did.

    Of the steps of a Function under `vmap` nothing is recorded.
    """
    index: list[int] | None = None
    found = experiment
    while (known := batched(found.function.function)) is not None:
        function, axes = known
        given = pick(found.wide, edge)
        index = list(unravel(element // (2 if given.is_complex() else 1), given.shape)) if index is None else index
        by_name = dict(zip(found.wide, axes, strict=True))
        axis = by_name[edge.argument or ""]
        place = index.pop(axis) if axis is not None else 0
        *_, out_axes = found.guarded(partial(found.function.function.forward, *found.wide.values()))
        out_axes = out_axes if isinstance(out_axes, tuple) else (out_axes,)
        other = copy.copy(found)
        other.__dict__.pop("_unmoved", None)
        other.function = Reexecution(function)
        other.upstream = {slot: g.select(out_axes[slot], place) for slot, g in found.upstream.items()}
        other.wide = {
            name: each if by_name[name] is None else each.select(by_name[name], place)
            for name, each in found.wide.items()
        }
        found = other
    return None if found is experiment else found
