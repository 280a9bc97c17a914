"""Writes of recorded operations: which part of a memory one overwrites, and those that nothing reads.

A program may fill its data in a loop, element by element, inside the recorded block. Such writes are recorded as any
other operation, but no more than MANY in a row to one memory: as long as nothing reads it and no gradient depends on
it, the writes that follow are left out, and so are the views that they write to. When the memory is used next, its
tensors are new leaves, with what was written.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from chainrule.capture.raw_records import Part, UnreadRun
from chainrule.capture.source import Site
from chainrule.capture.tape import Tape
from chainrule.capture.traits import Traits
from chainrule.graph.trees import tensors_in
from chainrule.graph.write_log import can_keep

MANY = 64  # writes in a row that are recorded
NEAR = 16  # operations that are searched between two writes
LEAST = 2048  # bytes of a memory from which on a part of it is kept; less is copied as a whole


def part_written(traits: Traits, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Part | None:
    """What an operation overwrites, if that is only a part of a memory."""
    if not traits.in_one_part:
        return None
    position, name = traits.writes[0]
    written = args[position] if position < len(args) else kwargs.get(name)
    if not isinstance(written, Tensor) or not can_keep(written):
        return None
    small = 2 * written.nbytes <= (whole := written.untyped_storage().nbytes())
    if whole <= LEAST or (traits.part_written is None and not small):
        return None
    if small or traits.part_written is None:
        return written, None
    names = (each.name for each in func._schema.arguments)
    try:
        index = traits.part_written({**dict(zip(names, args, strict=False)), **kwargs})
        counts = [each.numel() for each in index if isinstance(each, Tensor)]
    except Exception:  # the operation will say what is wrong with its arguments
        return None
    return (written, index) if counts and 2 * max(counts) <= written.numel() else None


@dataclass(slots=True)
class _Row:
    """The writes in a row to one memory: how many, up to which position, in which state of the tape."""

    state: tuple[int, ...]
    count: int = 0
    position: int = 0
    run: UnreadRun | None = None


class UnreadWrites:
    """Counts the writes in a row to each memory, and takes back the views that were made for those left out."""

    def __init__(self, tape: Tape) -> None:
        self._tape = tape
        self._rows: dict[int, _Row] = {}

    def row_of(self, written: Tensor, arguments: Any, open_modules: int, seen: int, call: int | None) -> _Row | None:
        """The row of a write that may be left out, for nothing has read what the writes before it have written.

        `seen` operations can not be taken back any more; from `call` on (None: not known) all run for this write alone.
        """
        tape, base = self._tape, written._base
        if any(each.requires_grad for each in tensors_in(arguments)) or not can_keep(written):
            return None
        if (base is not None and base.requires_grad) or id(written) in tape.gradients or id(base) in tape.gradients:
            return None
        state = (open_modules, len(tape.modules), len(tape.functions), len(tape.executions), len(tape.updates))
        memory, end = tape.storage_of(written), len(tape.operations)
        row = self._rows.get(memory)
        if row is None or row.state != state or end - row.position > NEAR:
            row = self._rows[memory] = _Row(state, position=end)
        left = self._without_views(memory, max(row.position, seen), end if call is None else call)
        if not self._is_unread(memory, range(row.position, left)):
            row = self._rows[memory] = _Row(state)
        row.count, row.position = row.count + 1, end + 1
        if row.count <= MANY or left < seen:
            row.run = None
            return None
        del tape.operations[left:]
        while tape.calls and tape.calls[-1].last > left:
            tape.calls.pop()
        row.position = left
        return row

    def _is_unread(self, memory: int, positions: range) -> bool:
        """Whether none of these operations took a tensor in this memory, or made one."""
        operations, of = self._tape.operations, self._tape.storage_of
        return all(of(each) != memory for position in positions for each in tensors_in(operations[position][1:4]))

    def _without_views(self, memory: int, first: int, end: int) -> int:
        """How many operations are left before the newest, whole calls that only made views of this memory."""
        operations, calls, of = self._tape.operations, self._tape.calls, self._tape.storage_of
        number = len(calls)
        while end > first:
            func, _, _, out, call, _ = operations[end - 1]
            if not Traits.of(func).views or any(of(each) != memory for each in tensors_in(out)):
                break
            if call is None:
                end -= 1
            elif call == number - 1 and calls[call].first >= first:
                made = operations[calls[call].first : end]
                if not all(Traits.of(each[0]).views for each in made):
                    break
                end, number = calls[call].first, call
            else:
                break
        return end


def leave_out(tape: Tape, written: Iterable[Tensor], site: Site | None) -> UnreadRun:
    """Record no writes to this memory until it is used: then the tensors in it are new leaves."""
    *_, tensor = written = list(written)
    tape.overwritten(written, seen=False)
    position = len(tape.operations)
    copies = {each: len(known) for each, known in tape.copies.items() if known[-1].position == position}
    tape.are_leaves(copies, tape.storage_of(tensor))
    tape.unread.append(UnreadRun(position, tensor, copies, site))
    return tape.unread[-1]
