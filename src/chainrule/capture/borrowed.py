"""Large tensors that a recording needs and others own: parameters, their `.grad`, inputs.

To copy them at the end of every recorded step would cost more than all else together, and mostly for nothing: a
recording is read, or dropped, before anybody writes to them. So they are borrowed. Whoever reads the recording copies
them first; should an optimizer step before that, one hook of PyTorch's own for all optimizers has them copied, and is
gone. That hook is there only while a recording that borrowed something is neither read nor dropped. A write by other
means shows in the tensor's version, or (`x.data.add_(...)`) in a few of its numbers: then the numbers are lost, and a
stand-in says so. (PyTorch can copy on write by itself, but moves the memory of whoever writes: what looks at a
parameter from outside, a numpy array or a captured CUDA graph, would from then on look at another one.)
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

from chainrule.capture.data_parallel import own_part

SMALL = 32 * 1024  # bytes: up to this a copy costs no more than to borrow
SAMPLES = 32  # numbers of a borrowed tensor that are remembered


@dataclass(slots=True)
class Loan:
    """One borrowed tensor, with what shows whether its owner has written to it since."""

    tensor: Tensor
    version: int
    sample: Tensor

    @classmethod
    def of(cls, tensor: Tensor) -> Loan:
        """A tensor as it is now."""
        return cls(tensor, 0 if tensor.is_inference() else tensor._version, _sample(tensor))

    def is_unchanged(self) -> bool:
        """Whether its numbers are still those that were recorded."""
        try:
            if not self.tensor.is_inference() and self.tensor._version != self.version:
                return False
            with torch.no_grad():
                return torch.equal(_bytes(_sample(self.tensor)), _bytes(self.sample))
        except RuntimeError:  # its memory was taken away
            return False


class Borrower(Protocol):
    """What copies what it borrowed."""

    def secure(self) -> None:
        """Copy it now."""


class Loans:
    """What one recording has borrowed."""

    def __init__(self) -> None:
        self._loans: list[Loan] = []
        self._known: set[int] = set()
        self._remove: Callable[[], Any] | None = None

    def take(self, tensor: Tensor) -> bool:
        """Borrow a tensor; False for one that is better copied."""
        if id(tensor) in self._known:
            return True
        if own_part(tensor) is not tensor:
            return False
        if tensor.layout is not torch.strided or tensor.nbytes <= SMALL or tensor.is_inference():
            return False
        if not tensor.is_contiguous() or tensor.is_conj():  # its sample would cost a copy of it
            return False
        self._known.add(id(tensor))
        self._loans.append(Loan.of(tensor))
        return True

    def give_back(self) -> list[Loan]:
        """All that is borrowed, for the last time."""
        loans, self._loans = self._loans, []
        self._known.clear()
        return loans

    def guard(self, borrower: Borrower) -> None:
        """Have the borrower secure its loans before the next step of any optimizer."""
        if not self._loans:
            return
        waiting = weakref.ref(borrower)

        def before_step(optimizer: Any, args: Any, kwargs: Any) -> None:
            living = waiting()
            if living is not None:
                with hooks_held(), torch._C.DisableTorchFunction(), torch._C._DisableTorchDispatch(), torch.no_grad():
                    living.secure()

        handle = register_optimizer_step_pre_hook(before_step)
        self._remove = weakref.finalize(borrower, _remove, handle)

    def release(self) -> None:
        """Take the hook off, if there is one."""
        if self._remove is not None:
            self._remove()


_held: list[int] = []  # an optimizer goes through its hooks while there is something in it
_waiting: list[Any] = []  # handles that were to be removed meanwhile


@contextmanager
def hooks_held() -> Iterator[None]:
    """No hook of an optimizer's is removed in here: PyTorch is going through them, and would stumble.

    A recording may be freed at any moment, by the garbage collector too.
    """
    _held.append(0)
    try:
        yield
    finally:
        _held.pop()


def _remove(handle: Any) -> None:
    _waiting.append(handle)
    while _waiting and not _held:
        _waiting.pop().remove()


def _bytes(numbers: Tensor) -> Tensor:
    return numbers.view(torch.uint8)  # NaN is not equal to itself


def _sample(tensor: Tensor) -> Tensor:
    """A few numbers of a tensor; none of one that it would cost a copy to look into."""
    if tensor.layout is not torch.strided or not tensor.is_contiguous() or tensor.is_conj():
        return torch.empty(0)
    count = min(SAMPLES, tensor.numel())
    return tensor.as_strided((count,), (max(tensor.numel() // SAMPLES, 1),)).clone()
