"""Large tensors that a recording needs and others own (parameters, their `.grad`, inputs), borrowed instead of copied.

To copy them at the end of every recorded step would cost more than everything else together, and mostly for nothing: a
recording is read, or dropped, before anybody writes to them. Whoever reads the recording copies them first. If an
optimizer steps before that, a hook for all optimizers (`global_hooks`) copies them and is removed; the hook exists
only while a recording that borrowed something is neither read nor dropped. Any other write shows in the tensor's
version, or (`x.data.add_(...)`) in a few of its numbers: then the numbers are lost, and a placeholder says so. (PyTorch
can copy on write by itself, but moves the memory of whoever writes: a numpy array or a captured CUDA graph that refers
to a parameter would then refer to another tensor.)
"""

from __future__ import annotations

import weakref
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from chainrule.capture import global_hooks
from chainrule.capture.data_parallel import own_part
from chainrule.capture.guard import Guard
from chainrule.graph.opaque_tensors import is_opaque
from chainrule.graph.reexecution import unobserved

SMALL = 16 * 1024  # bytes up to which a copy costs no more than borrowing
SAMPLES = 32  # numbers of a borrowed tensor that are remembered


@dataclass(slots=True)
class BorrowedTensor:
    """A borrowed tensor, and what shows whether its owner has written to it since."""

    tensor: Tensor
    version: int
    sample: Tensor

    @classmethod
    def of(cls, tensor: Tensor) -> BorrowedTensor:
        """Borrow a tensor with its present data."""
        return cls(tensor, 0 if tensor.is_inference() else tensor._version, _sample(tensor))

    def is_unchanged(self) -> bool:
        """Whether its numbers are still the recorded ones."""
        try:
            if not self.tensor.is_inference() and self.tensor._version != self.version:
                return False
            with torch.no_grad():
                return torch.equal(_sample(self.tensor), self.sample)
        except RuntimeError:  # its memory was freed
            return False


class Borrower(Protocol):
    """Whoever borrowed: a tape."""

    guard: Guard

    def secure(self) -> None:
        """Copy all that is borrowed."""


class BorrowedTensors:
    """All that one recording has borrowed."""

    def __init__(self) -> None:
        self._borrowed: list[BorrowedTensor] = []
        self._known: set[int] = set()
        self._at_step = object()  # the key of a hook on optimizers
        self._at_end: weakref.finalize[[object], Borrower] | None = None  # takes it off

    def take(self, tensor: Tensor) -> bool:
        """Borrow a tensor; False for one that should be copied."""
        if id(tensor) in self._known:
            return True
        if tensor.layout is not torch.strided or tensor.nbytes <= SMALL or tensor.is_inference():
            return False
        if is_opaque(tensor) or not tensor.is_contiguous() or tensor.is_conj():  # its sample would cost a copy of it
            return False
        self._known.add(id(tensor))
        self._borrowed.append(BorrowedTensor.of(tensor))
        return True

    def give_back(self) -> list[BorrowedTensor]:
        """All that was borrowed; nothing is from now on."""
        borrowed, self._borrowed = self._borrowed, []
        self._known.clear()
        return borrowed

    def guard(self, borrower: Borrower) -> None:
        """Have the borrower secure what it borrowed before the next step of any optimizer, in any thread."""
        if not self._borrowed:
            return
        waiting, guard = weakref.ref(borrower), borrower.guard

        def before_step(optimizer: Any, args: Any, kwargs: Any) -> None:
            living = waiting()
            if living is not None:
                with guard, unobserved():
                    living.secure()

        self._at_end = weakref.finalize(borrower, global_hooks.before_step.remove, self._at_step)
        global_hooks.before_step.add(self._at_step, before_step)

    def release(self) -> None:
        """Remove the hook, if there is one."""
        if self._at_end is not None:
            global_hooks.before_step.remove(self._at_step)
            self._at_end.detach()  # last: if an interrupt comes before, it still takes the hook off


def _sample(tensor: Tensor) -> Tensor:
    """The bytes of a few numbers of a tensor, as NaN is not equal to itself; none where that would cost a copy."""
    if tensor.layout is not torch.strided or not tensor.is_contiguous() or tensor.is_conj():
        return torch.empty(0, dtype=torch.uint8)
    count = min(SAMPLES, tensor.numel())
    return tensor.as_strided((count,), (max(tensor.numel() // SAMPLES, 1),)).clone().view(torch.uint8)


class Ranges:
    """The memory of some tensors as address ranges, which are cheaper to ask for than storages."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self._ends: dict[int, int] = {}
        for tensor in tensors:
            own = own_part(tensor)
            if is_opaque(own) or own.layout is not torch.strided or own._is_zerotensor():  # no memory
                continue
            storage = own.untyped_storage()
            first = storage.data_ptr()
            self._ends[first] = max(self._ends.get(first, 0), first + storage.nbytes())
        self._starts = sorted(self._ends)

    def __contains__(self, tensor: Tensor) -> bool:
        own = own_part(tensor)
        if is_opaque(own) or own.layout is not torch.strided:
            return True  # it may
        address = own.data_ptr()  # 0 for a placeholder
        place = bisect_right(self._starts, address)
        return place > 0 and address < self._ends[self._starts[place - 1]]
