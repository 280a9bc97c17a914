"""What happened between the operations: gradients cleared, clipped or written to by hand, and changed by hooks.

A write is on the tape. A hook runs inside autograd, unseen: it shows as a gradient that is not the sum of what came
from the uses of the value.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules._functions import BackwardHookFunction

from chainrule.capture.lowering.backward_passes import Passes
from chainrule.capture.lowering.naming import Names
from chainrule.capture.lowering.operations import Reading
from chainrule.capture.lowering.tensor_versions import data_after, frozen
from chainrule.capture.tape import Tape
from chainrule.graph.comparison import compare
from chainrule.graph.graph import Event, accumulate
from chainrule.graph.snapshot import all_have_numbers, has_numbers

Arriving = dict[tuple[int, int, int], Tensor]  # (task, node, slot) -> the sum of what was sent there so far


def read_events(reading: Reading, passes: Passes, names: Names) -> Iterator[Event]:
    """The writes in their order, then the changes by hooks in the order in which the gradients passed."""
    yield from _writes(reading.tape, names)
    yield from _changes_by_hooks(reading, passes)


def _writes(tape: Tape, names: Names) -> Iterator[Event]:
    for position, gradient, function, site in tape.writes:
        parameter = tape.gradients.get(gradient)
        if parameter is not None:
            name = names.of_parameter(parameter, 0)
            yield Event(function or "write", name, position, site.place() if site else None)


def _changes_by_hooks(reading: Reading, passes: Passes) -> Iterator[Event]:
    tape, arriving = reading.tape, Arriving()
    for task, number, downstream, upstream in tape.passages:
        sent_on = frozen(tape, downstream)
        if getattr(tape.nodes[number].node, "_forward_cls", None) is BackwardHookFunction:
            yield from _changes_by_module_hooks(reading, number, frozen(tape, upstream), sent_on)
        for slot, value in reading.outputs_of.get(number, {}).items():
            sent = arriving.pop((task, number, slot), None)
            arrived: Any = upstream[slot] if slot < len(upstream) else None
            if sent is not None and arrived is not None and not _alike(sent, data_after(tape, arrived, -1)):
                yield _change(reading, value)
        for (node, slot), gradient in zip(tape.nodes[number].edges, sent_on, strict=False):
            if gradient is not None and node in tape.number_of:
                accumulate(arriving, (task, tape.number_of[node], slot), gradient)
    yield from _changes_at_leaves(reading, passes, arriving)


def _changes_at_leaves(reading: Reading, passes: Passes, arriving: Arriving) -> Iterator[Event]:
    """What nodes sent to a leaf ought to be what the pass left in its `.grad`, over what had been there."""
    combined = {(raw.task, id(raw.leaf)) for raw in reading.tape.arrivals}  # with other ranks': no hook of the user's
    for (task, number, _), sent in arriving.items():
        leaf = getattr(reading.tape.nodes[number].node, "variable", None)
        raw = passes.of_task(task)
        if raw is None or leaf is None or id(leaf) not in reading.values.versions:
            continue
        if (task, id(leaf)) in combined:
            continue
        before, left = raw.before.get(id(leaf)), passes.left(raw, leaf)
        if before is not None and has_numbers(before) != has_numbers(sent):
            continue  # of one of them only the statistics are known
        whole = sent if before is None else sent + before
        if left is not None and not _alike(whole, left):
            yield _change(reading, reading.values.versions[id(leaf)][0])


def _changes_by_module_hooks(
    reading: Reading, number: int, upstream: tuple[Tensor | None, ...], downstream: tuple[Tensor | None, ...]
) -> Iterator[Event]:
    """`register_full_backward_hook` hangs on a function of PyTorch's that hands everything through."""
    for slot, (arrived, sent) in enumerate(zip(upstream, downstream, strict=False)):
        value = reading.outputs_of.get(number, {}).get(slot)
        if value is not None and arrived is not None and sent is not None and not _alike(arrived, sent):
            yield _change(reading, value)


def _change(reading: Reading, value: int) -> Event:
    draft = reading.values[value]
    return Event("hook", draft.names[0], max(draft.created + 1, 0), draft.place)


def _alike(left: Tensor, right: Tensor) -> bool:
    """The same but for the rounding of another order of summation, as far as is known."""
    if not all_have_numbers(left, right):
        return True
    if left.layout is not torch.strided or right.layout is not torch.strided or left.shape != right.shape:
        return left.shape == right.shape
    return compare(left, right).agrees
