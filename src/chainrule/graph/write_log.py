"""A memory that is written to part by part, and what it held before each write.

A loop that fills a tensor row by row writes to it a thousand times, and each time all of it becomes another value. To
copy all of it each time would take a thousand times its memory. So what a write overwrites is kept, and one copy of the
memory after the last of them. From there any earlier content is found by exchanging parts, one write after the other;
neighbours are found from each other by one exchange.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor

from chainrule.graph.reexecution import unobserved
from chainrule.pytorch_internals import _neg_view, _storage_Use_Count

_bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64, 16: torch.complex128}  # number types by size
_Parts = tuple[tuple[int, ...], tuple[int, ...], int]  # size, strides, offset


class WriteLog:
    """What the writes to one memory have overwritten. `whole` is a tensor in it."""

    def __init__(self, whole: Tensor) -> None:
        self.whole = whole
        self._memory: torch.UntypedStorage | None = whole.untyped_storage()  # what the writes go to, until `close`
        self._is_own = False  # whether it is a copy that nobody else reads
        self._undo: list[tuple[torch.dtype, _Parts, tuple[Any, ...] | None, Tensor]] = []
        self._given: torch.UntypedStorage | None = None  # memory of what was read last
        self._at = 0  # how many of the writes are in the memory's content

    def note(self, written: Tensor, index: tuple[Any, ...] | None) -> int:
        """Keep what is about to be overwritten: `written[index]`, or all of this view. Gives how many bytes it was."""
        kind, place = _bits[written.itemsize], _distinct(written)
        part = _view(written.untyped_storage(), kind, written.device, place)
        kept = part.clone() if index is None else part[index]
        self._undo.append((kind, place, index, kept))
        self._at += 1
        return kept.nbytes

    def __len__(self) -> int:
        return len(self._undo)

    @property
    def is_lost(self) -> bool:
        """Whether the content after the last write was overwritten unseen, and with it what stood there before."""
        return self._memory is None

    def close(self, memory: torch.UntypedStorage | None) -> None:
        """The next write will not be kept here: this is a copy of the present content (None: it is lost)."""
        self._memory = memory
        del self.whole

    def read(self, at: int, dtype: torch.dtype, place: _Parts) -> Tensor | None:
        """What stood there before write number `at`, in a memory of its own."""
        with unobserved():
            if self._memory is None:
                return None
            if not self._is_own:
                self._memory, self._is_own = self._memory.clone(), True
            while self._at > at:
                self._at -= 1
                self._exchange(self._at)
            while self._at < at:
                self._exchange(self._at)
                self._at += 1
            first, last = _ends(*place)
            bits, device, span = _bits[dtype.itemsize], self._memory.device, ((last - first,), (1,), first)
            copied = _view(self._memory, bits, device, span)
            memory = self._memory_of(copied)
            _view(memory, bits, device, (span[0], (1,), 0)).copy_(copied)
            return _view(memory, dtype, device, (place[0], place[1], place[2] - first))

    def _memory_of(self, copied: Tensor) -> torch.UntypedStorage:
        """Memory for a copy: that of the last one, if nobody has it any more.

        To take and free large blocks in turn with the small ones of other objects would let the process grow.
        """
        known = self._given
        if known is None or known.nbytes() != copied.nbytes or _storage_Use_Count(known._cdata) > 1:
            known = self._given = torch.empty(copied.nbytes, dtype=torch.uint8, device=copied.device).untyped_storage()
        return known

    def _exchange(self, number: int) -> None:
        assert self._memory is not None
        kind, place, index, kept = self._undo[number]
        part = _view(self._memory, kind, self._memory.device, place)
        found = part.clone() if index is None else part[index]
        if index is None:
            part.copy_(kept)
        else:
            part[index] = kept
        self._undo[number] = (kind, place, index, found)


class Earlier:
    """A tensor as it was before a write: read from a log each time it is asked for, and held by nobody."""

    __slots__ = ("_at", "_dtype", "_flags", "_known", "_log", "_place")

    def __init__(self, log: WriteLog, tensor: Tensor) -> None:
        self._log, self._at, self._dtype = log, len(log) - 1, tensor.dtype
        self._place = tuple(tensor.size()), tuple(tensor.stride()), int(tensor.storage_offset())
        self._flags = tensor.is_conj(), tensor.is_neg()
        self._known: weakref.ref[Tensor] | None = None

    @property
    def is_lost(self) -> bool:
        """Whether its numbers were overwritten unseen."""
        return self._log.is_lost

    def read(self) -> Tensor | None:
        """Its numbers; None where they are lost."""
        known = None if self._known is None else self._known()
        if known is not None:
            return known
        data = self._log.read(self._at, self._dtype, self._place)
        if data is None:
            return None
        with unobserved():
            conjugate, negative = self._flags
            data = data.conj() if conjugate else data
            data = _neg_view(data) if negative else data
        data._read_from = self  # type: ignore[attr-defined]
        self._known = weakref.ref(data)
        return data


def read_from(data: Tensor) -> Earlier | None:
    """What a tensor was read from, if it is such a one: it identifies the numbers, as their memory does not last."""
    return getattr(data, "_read_from", None)


def can_keep(written: Tensor) -> bool:
    """Whether a log can be kept of the memory of this tensor.

    What shares its memory with numpy, or with another process, may be written to unseen. PyTorch does not resize it.
    """
    if type(written) not in (Tensor, torch.nn.Parameter) or written.layout is not torch.strided or written.is_meta:
        return False
    return written.itemsize in _bits and not written.is_quantized and written.untyped_storage().resizable()


def _view(memory: torch.UntypedStorage, dtype: torch.dtype, device: torch.device, place: _Parts) -> Tensor:
    size, stride, offset = place
    return torch.empty(0, dtype=dtype, device=device).set_(memory, offset, size, stride)


def _ends(size: tuple[int, ...], stride: tuple[int, ...], offset: int) -> tuple[int, int]:
    """The first element of a memory that belongs to a view of it, and the end of the last."""
    if 0 in size:
        return offset, offset
    return offset, offset + 1 + sum((n - 1) * step for n, step in zip(size, stride, strict=True))


def _distinct(view: Tensor) -> _Parts:
    """Where a view lies; of one that has an element several times, the memory from its first to its last element."""
    place = tuple(view.size()), tuple(view.stride()), int(view.storage_offset())
    reached = 0
    for step, size in sorted(zip(place[1], place[0], strict=True)):
        if size > 1:
            if step <= reached:
                first, last = _ends(*place)
                return (last - first,), (1,), first
            reached += (size - 1) * step
    return place
