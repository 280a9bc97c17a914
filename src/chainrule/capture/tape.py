"""The tape: what happened while the user's code ran, raw and in order, and copies of what was overwritten on the way.

The recorder appends to it and `lowering` reads it. It holds the user's tensor objects, and copies the data of one only
when something is about to write to its memory.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from chainrule.capture.borrowed import SMALL, BorrowedTensor, BorrowedTensors, Ranges
from chainrule.capture.data_parallel import RawArrival, Reducers, own_part, storage_of
from chainrule.capture.guard import Guard
from chainrule.capture.raw_records import (
    Failures,
    Overwritten,
    Part,
    RawBackward,
    RawCall,
    RawFunction,
    RawModule,
    RawNode,
    RawUpdate,
    UnreadRun,
    Version,
)
from chainrule.capture.retention import Original, Placeholders, Retention, is_trained_leaf, within_memory
from chainrule.capture.source import Site
from chainrule.capture.traits import Traits
from chainrule.graph.opaque_tensors import is_opaque
from chainrule.graph.trees import tensors_in
from chainrule.graph.write_log import Earlier, WriteLog
from chainrule.pytorch_internals import _get_sequence_nr


class Tape:
    """What happened, in order: plain lists, to which the recorder appends."""

    def __init__(self, guard: Guard) -> None:
        self.guard = guard
        self.first_node = _get_sequence_nr()  # of autograd's nodes, in this thread
        self.operations: list[tuple[Any, tuple[Any, ...], dict[str, Any] | None, Any, int | None, Tensor | None]] = []
        self.calls: list[RawCall] = []
        self.modules: list[RawModule] = []
        self.functions: list[RawFunction] = []
        self.nodes: list[RawNode] = []
        self.number_of: dict[Any, int] = {}  # autograd node -> index into nodes
        self.executions: list[tuple[int, int, tuple[Any, ...], tuple[Any, ...]]] = []
        self.backwards: list[RawBackward] = []
        self.updates: list[RawUpdate] = []
        self.writes: list[tuple[int, int, str, Site | None]] = []  # (position, id of .grad, function, site)
        self.replaced: list[tuple[int, Tensor, int]] = []  # by `.data =`: (position, tensor, how many copies are older)
        self.unread: list[UnreadRun] = []
        self.gradients: dict[int, Tensor] = {}  # id of a .grad -> its parameter
        self.copies: dict[int, list[Overwritten]] = {}  # id of a tensor -> its data before each write, in order
        self.backward_writes: set[int] = set()  # executions of nodes whose own backward wrote to what arrived there
        self.scope: dict[int, tuple[str, Tensor]] = {}  # id of a tensor -> the caller's name of it at the end
        self.names_of_modules: dict[int, str] = {}
        self.models: list[torch.nn.Module] = []  # known to be whole models, also where only parts of them are called
        self.reducers = Reducers()
        self.arrivals: list[RawArrival] = []
        self.error: str | None = None
        self.failures = Failures()
        self.shared = False  # whether memory with several tensors in it was ever overwritten
        self.placeholders = Placeholders()
        self.retention: Retention | None = None  # None: everything is kept
        self.owners: dict[int, BorrowedTensor] = {}  # value of a leaf that was not kept -> its owner's tensor
        self.owner_of: dict[int, BorrowedTensor] = {}  # the same by the id of its placeholder
        self.borrowed = BorrowedTensors()
        self._left: list[tuple[Tensor, int]] = []  # results at the end of the step, and their versions
        self._held: list[Tensor] = []
        self._opaque: dict[int, tuple[Tensor, Tensor]] = {}  # id of a tensor -> it, and its placeholder
        self._made: set[int] = set()  # ids of the operations' results; what else they take is a leaf
        self._entered: set[int] = set()  # ids of the tensors in _storages
        self._sharing: set[int] = set()  # ids of all that were ever in it: used again, they are entered again
        self._storages: dict[int, list[Tensor]] = {}  # memory -> tensors in it, since it was copied last
        self._leaves: dict[int, Tensor] = {}
        self._logs: dict[int, WriteLog] = {}  # memory -> what was overwritten in it, since it was copied last
        self._found = 0
        self._indexed = 0
        self._results: dict[int, list[Tensor]] = {}  # memory -> results in it that are not in _sharing
        self._scanned = [0, 0, 0]

    # -- copies of what is overwritten --------------------------------------------------------------------------------

    def overwritten(self, tensors: Iterable[Tensor], seen: bool = True, part: Part | None = None) -> list[Tensor]:
        """Copy these tensors, and all recorded tensors in the same memory, because it is about to be overwritten.

        With `seen` the tensors are known to the tape. Otherwise one that no operation has met (`x.data`) may share its
        memory with any recorded tensor. Where a `part` alone is overwritten, a log keeps that.
        """
        tensors = list(tensors)
        if not tensors:
            return []
        self._scan()
        for tensor in () if seen else tensors:
            self._enter_results(tensor)
        self._entered.difference_update(map(id, tensors))
        self._enter(tensors)
        self._copy(tensors, part=part, counted=not seen)
        return [self.copies[id(tensor)][-1].data for tensor in tensors]

    def overwritten_in_backward(self, tensor: Tensor, arrived: Iterable[Tensor]) -> None:
        """Copy what is recorded in a memory that the backward of a function writes to; `arrived` came there."""
        self._scan()
        self._enter(arrived)
        self._enter_results(tensor)
        self._copy([tensor])

    @property
    def seen(self) -> int:
        """How many operations were looked at already."""
        return max(self._scanned[0], self._found)

    def are_leaves(self, tensors: Iterable[int], storage: int) -> None:
        """What no operation has made any more: the tensors of these ids, in this memory, were written to unseen."""
        self._made.difference_update(tensors)
        if self.retention is not None:
            self.retention.forget(storage)

    def want(self, tensors: Iterable[Tensor], position: int) -> None:
        """Keep what a chosen module takes at this position, or gave before it, even if it was evicted already."""
        assert self.retention is not None
        for tensor in tensors:
            if is_trained_leaf(tensor):
                self.retention.choose_leaf(tensor)
            if (found := self.retention.want(tensor)) is not None:
                self._keep(*found, position)

    def version(self, tensor: Tensor) -> Version:
        """The tensor with its present data, whatever overwrites it later; no operation need have met it."""
        self._enter((tensor,))
        return tensor, len(self.copies.get(id(tensor), ()))

    def data_of(self, version: Version) -> Tensor:
        """The data of a version: the next copy, or the tensor's own."""
        tensor, copied = version
        later = self.copies.get(id(tensor), [])[copied:]
        return self.placeholders.read(later[0].data) if later else self.detached(tensor)

    def detached(self, tensor: Tensor) -> Tensor:
        """A tensor without its history: this rank's part, or a placeholder where its numbers are not ours to read.

        A placeholder is known by its id, and returned unchanged.
        """
        own = own_part(tensor)
        if not is_opaque(own):
            return own if own.is_meta else own.detach()
        if id(own) not in self._opaque:
            self._opaque[id(own)] = own, self.placeholders.placeholder(own, None)
        return self._opaque[id(own)][1]

    # -- of tensors that may be placeholders --------------------------------------------------------------------------

    def original(self, tensor: Tensor) -> Tensor | Original:
        """What a placeholder stands for, which answers as a tensor does; any other tensor is itself."""
        return self.placeholders.known.get(id(tensor), tensor)

    def storage_of(self, tensor: Tensor) -> int:
        """Identifies the memory of a tensor as long as the tape lives."""
        original = self.placeholders.known.get(id(tensor))
        return storage_of(tensor) if original is None else original.storage

    @property
    def leaves(self) -> list[Tensor]:
        """What operations took and none has made."""
        self._find_leaves()
        return list(self._leaves.values())

    def end(self) -> None:
        """The step is over: placeholders get their tensors' names, and what others own is copied or borrowed.

        Leaves, their `.grad`, and results that the user has named or made of nothing (a state) live on, and may be
        overwritten. Small ones are copied now. Large ones are borrowed, until the recording is read or an optimizer is
        about to overwrite them.
        """
        if self.retention is not None:
            known = [(name, self.retention.of(tensor)) for name, tensor in self.scope.values()]
            self.scope = {id(tensor): (name, tensor) for name, tensor in known}
            self.retention.end()
        self._find_leaves()
        named = [each for _, each in self.scope.values() if id(each) in self._made and not each.is_meta]
        versions = [
            *(left for backward in self.backwards for left in backward.after.values()),
            *(version for backward in self.backwards for _, version in backward.given),
            *(each for update in self.updates for each in (*update.gradients, *update.after)),
        ]
        parts = [part for _, part in self.reducers.gathered.values()]
        parts += [log.whole for log in self._logs.values()]
        for _, args, kwargs, made, _, _ in self.operations:
            made_of_nothing = not (args and isinstance(args[0], Tensor)) and not tensors_in((args, kwargs))
            for out in (made,) if isinstance(made, Tensor) else tensors_in(made):
                if not out.is_meta:
                    if made_of_nothing and out.nbytes <= SMALL:
                        named.append(out)
                    if not out.is_inference():
                        self._left.append((out, out._version))
        owned = [*self._leaves.values(), *parts, *(each[0] for each in versions if each is not None), *named]
        self._enter(owned)
        self._enter_neighbours(owned)
        self._copy((tensor for tensor in owned if not self.borrowed.take(tensor)), lives_on=True)
        self.borrowed.guard(self)

    def secure(self) -> None:
        """Copy what was borrowed. What its owner has overwritten meanwhile is lost: a placeholder takes its place."""
        borrowed = self.borrowed.give_back()
        changed = {self.storage_of(each.tensor) for each in borrowed if not each.is_unchanged()}
        for each in borrowed:
            self._copy([each.tensor], lost=self.storage_of(each.tensor) in changed, lives_on=True)
        lost = [each for each, version in self._left if each._version != version and not self._is_copied(each)]
        self._enter(lost)
        self._enter_neighbours(lost)
        self._copy(lost, lost=True, lives_on=True)
        self.placeholders.fetch()

    def _is_copied(self, tensor: Tensor) -> bool:
        """Whether a tensor was copied after the last operation."""
        known = self.copies.get(id(tensor))
        return known is not None and known[-1].position == len(self.operations)

    def _copy(
        self,
        tensors: Iterable[Tensor],
        lost: bool = False,
        lives_on: bool = False,
        part: Part | None = None,
        counted: bool = False,
    ) -> None:
        """Copy all recorded tensors in these tensors' memory that were used since it was copied last.

        With `lives_on` nothing is about to be overwritten: what is not kept stays with its owner. What is `counted`
        takes its share of the memory that the recording may keep.
        """
        for tensor in tensors:
            storage = self.storage_of(tensor)
            known = self._storages.pop(storage, None)
            if not known:
                continue
            self.shared = self.shared or len(known) > 1
            memory = None
            strict = self.retention is not None and self.retention.is_strict
            log = None if part is None or strict else self._noted(storage, *part)
            if log is None and (closed := self._logs.pop(storage, None)) is not None:
                memory = (
                    None if lost or is_opaque(closed.whole) else within_memory(closed.whole.untyped_storage().clone)
                )
                closed.close(memory)
            for alias in known:
                self._entered.discard(id(alias))
                own = own_part(alias)
                if lost or is_opaque(own):
                    data = self.placeholders.placeholder(own, None)
                elif log is not None and id(alias) not in self.placeholders.known:
                    data = self.placeholders.placeholder(own, None, Earlier(log, own))
                elif self.retention is not None and (id(alias) in self.placeholders.known or self.retention.is_strict):
                    data = self.retention.copy(own)
                    if lives_on and data.is_meta and not own.is_meta:
                        self.owner_of[id(data)] = BorrowedTensor.of(own)
                else:
                    data, memory = self._copied(own, memory)
                    if counted and self.retention is not None:
                        self.retention.left -= data.nbytes
                self._keep(alias, data, len(self.operations))
                self._held.append(alias)  # or its id would be reused

    def _keep(self, tensor: Tensor, data: Tensor, position: int) -> None:
        self.copies.setdefault(id(tensor), []).append(Overwritten(position, len(self.executions), data))

    def _noted(self, storage: int, written: Tensor, index: tuple[Any, ...] | None) -> WriteLog | None:
        """The log of a memory, with what is about to be overwritten in it."""
        log = self._logs.get(storage)
        if log is None:
            log = self._logs[storage] = WriteLog(written if written._base is None else written._base)
        kept = within_memory(lambda: log.note(written, index))
        if kept is not None and self.retention is not None:
            self.retention.left -= kept
        return None if kept is None else log

    def _scan(self) -> None:
        """Enter, by their memory, the tensors that may share it: leaves, views with what they view, and gradients.

        Any other result has its memory to itself.
        """
        self._find_leaves()
        sharing = self._sharing
        for func, args, kwargs, out, _, _ in self.operations[self._scanned[0] :]:
            if Traits.of(func).views:
                self._enter(tensors_in((args, kwargs, out)))
            elif sharing:
                self._enter(each for each in tensors_in((args, kwargs) if kwargs else args) if id(each) in sharing)
        for _, _, _, upstream in self.executions[self._scanned[1] :]:
            self._enter(tensor for tensor in upstream if tensor is not None)
        for backward in self.backwards[self._scanned[2] :]:
            self._enter(left[0] for left in backward.after.values() if left is not None)
        # The last backward may still be running.
        self._scanned = [len(self.operations), len(self.executions), max(len(self.backwards) - 1, 0)]

    def _enter_results(self, tensor: Tensor) -> None:
        """Enter the results in a memory that were not thought to share it, once: they are entered again if used."""
        if id(tensor) in self._entered or id(tensor) in self._made:
            return
        for position in range(self._indexed, len(self.operations)):
            for each in tensors_in(self.operations[position][3]):
                if id(each) not in self._sharing:
                    self._results.setdefault(self.storage_of(each), []).append(each)
        self._indexed = len(self.operations)
        self._enter(self._results.pop(self.storage_of(tensor), []))

    def _copied(
        self, tensor: Tensor, memory: torch.UntypedStorage | None
    ) -> tuple[Tensor, torch.UntypedStorage | None]:
        """A copy. For a part of a storage all of it is copied, and returned for other parts of it."""
        alone = tensor.layout is not torch.strided or tensor.nbytes == tensor.untyped_storage().nbytes()
        if alone or tensor._is_zerotensor():  # which has no memory
            data = within_memory(lambda: tensor.detach().clone())
            return self.placeholders.placeholder(tensor, None) if data is None else data, memory
        memory = memory if memory is not None else within_memory(tensor.untyped_storage().clone)
        if memory is None:
            return self.placeholders.placeholder(tensor, None), None
        data = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
        data.set_(memory, tensor.storage_offset(), tensor.size(), tensor.stride())
        return data, memory

    def _find_leaves(self) -> None:
        """Find what operations take and none has made, and enter it whenever it is used."""
        made, leaves = self._made, self._leaves
        for _, args, kwargs, out, _, _ in self.operations[self._found :]:
            for each in args if not kwargs else (*args, kwargs):
                if isinstance(each, Tensor):
                    if id(each) not in made:
                        leaves[id(each)] = each
                        self._enter((each,))
                elif isinstance(each, (tuple, list, dict)):
                    for tensor in tensors_in(each):
                        if id(tensor) not in made:
                            leaves[id(tensor)] = tensor
                            self._enter((tensor,))
            if isinstance(out, Tensor):
                made.add(id(out))
            else:
                made.update(map(id, tensors_in(out)))
        self._found = len(self.operations)

    def _enter_neighbours(self, owned: Iterable[Tensor]) -> None:
        """As `_scan`, but enter only what shares its memory with these tensors, by address."""
        memory = Ranges(owned)
        for func, args, kwargs, out, _, _ in self.operations[self._scanned[0] :]:
            if Traits.of(func).views:
                self._enter(each for each in tensors_in((args, kwargs, out)) if each in memory)
        for _, _, _, upstream in self.executions[self._scanned[1] :]:
            for each in upstream:
                if each is not None and each in memory:
                    self._enter((each,))

    def _enter(self, tensors: Iterable[Tensor]) -> None:
        for tensor in tensors:
            if id(tensor) not in self._entered:
                self._entered.add(id(tensor))
                self._sharing.add(id(tensor))
                self._storages.setdefault(self.storage_of(tensor), []).append(tensor)
