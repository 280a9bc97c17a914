"""How the facts hold a tensor: its numbers where they were kept, else its figures, which the recorder took.

Where a step is only looked at, at once, and then let go of, nothing need be copied for it (`Borrowed`).
"""

from __future__ import annotations

from torch import Tensor, empty_like, float16, strided

from chainrule.capture import retention as keeping
from chainrule.capture.tape import Tape
from chainrule.graph.statistics import Statistics
from chainrule.graph.statistics_cache import Measures


class TapeStatistics:
    """What is known of the tensors of a tape, and of what stands for them."""

    lasting = True  # whether the facts are read when the step has long been over

    def __init__(self, tape: Tape, magnitudes: bool = True) -> None:
        self._absent = tape.placeholders.known
        self._magnitudes = magnitudes  # whether histograms are wanted; of float16 they tell what is about to underflow
        self._read: dict[int, Statistics] = {}  # by the id of what was measured, which the tape holds

    def of(self, tensor: Tensor | None) -> Statistics | None:
        """The figures of what was not kept, as far as they were taken; each is read once, however often it is met."""
        original = None if tensor is None else self._absent.get(id(tensor))
        if tensor is None or original is None or original.measured is None:
            return None
        measured = original.measured
        found = self._read.get(id(measured))
        if found is None:
            found = self._read[id(measured)] = measured.read(self._magnitudes or tensor.dtype is float16)
        return found

    def of_after(self, tensor: Tensor | None) -> Statistics | None:
        """The figures of what a parameter became."""
        return self.of(tensor)

    def numbers(self, tensor: Tensor | None) -> Tensor | None:
        """The tensor, if it has its numbers."""
        return None if tensor is None or tensor.is_meta else tensor

    def held(self, tensor: Tensor) -> Tensor:
        """The tensor, or what stands for it on the device `meta`."""
        return tensor


class Borrowed(TapeStatistics):
    """The same where nothing was copied: what is too large to be kept is there as yet, and measured where it is.

    Small tensors are the owners' own too, so these facts are good only until the user's code goes on. What a parameter
    became is not measured: what was added to it is known.
    """

    lasting = False

    def __init__(self, tape: Tape, measures: Measures, magnitudes: bool) -> None:
        super().__init__(tape, magnitudes)
        self._measures = measures

    def of(self, tensor: Tensor | None) -> Statistics | None:
        """Also of what is too large to be kept, which is measured now."""
        if tensor is not None and _is_large(tensor):
            return self._measures.statistics(tensor, self._magnitudes or tensor.dtype is float16)
        return super().of(tensor)

    def of_after(self, tensor: Tensor | None) -> Statistics | None:
        """Only those that were taken."""
        return super().of(tensor)

    def numbers(self, tensor: Tensor | None) -> Tensor | None:
        """The tensor, if it has its numbers and is small enough to be kept."""
        return None if tensor is None or _is_large(tensor) else super().numbers(tensor)

    def held(self, tensor: Tensor) -> Tensor:
        """The tensor, or one on the device `meta` in its place."""
        return empty_like(tensor, device="meta") if _is_large(tensor) else tensor


def _is_large(tensor: Tensor) -> bool:
    """Whether it would not have been kept."""
    return not tensor.is_meta and tensor.layout is strided and tensor.nbytes > keeping.SMALL
