"""How the facts hold a tensor: its numbers where they were kept, else the statistics that the recorder took.

Where a step is read at once, and then dropped, nothing need be copied for it (`Borrowed`).
"""

from __future__ import annotations

from torch import Tensor, float16, strided

from chainrule.capture import retention as keeping
from chainrule.capture.tape import Tape
from chainrule.graph.snapshot import Snapshot, has_numbers, name_of
from chainrule.graph.statistics_cache import StatisticsCache


class Snapshots:
    """What is known of the tensors of a tape, and of those that placeholders stand for."""

    lasting = True  # whether the facts are read when the step has long been over

    def __init__(self, tape: Tape, magnitudes: bool = True) -> None:
        self._known = tape.absentees.known
        self._magnitudes = magnitudes  # whether histograms are wanted; of float16 they tell what is about to underflow
        self._absent: dict[int, Snapshot] = {}  # by the id of a placeholder, which the tape holds

    def of(self, tensor: Tensor) -> Snapshot:
        """A tensor of the tape; of one that was not kept with its statistics, as far as they were taken."""
        absent = self._known.get(id(tensor))
        if absent is None:
            return Snapshot.of(tensor)
        found = self._absent.get(id(tensor))
        if found is None:
            statistics = None if absent.measured is None else absent.measured.read(self._wants_histogram(tensor))
            found = Snapshot(tuple(tensor.shape), tensor.dtype, name_of(absent.device), None, statistics)
            self._absent[id(tensor)] = found
        return found

    def of_some(self, tensor: Tensor | None) -> Snapshot | None:
        """The same of a tensor, if there is one."""
        return None if tensor is None else self.of(tensor)

    def of_after(self, tensor: Tensor) -> Snapshot:
        """What a parameter became."""
        return self.of(tensor)

    def _wants_histogram(self, tensor: Tensor) -> bool:
        return self._magnitudes or tensor.dtype is float16


class Borrowed(Snapshots):
    """The same where nothing was copied: what is too large to be kept is there as yet, and measured where it is.

    Small tensors are the owners' own too, so these facts are good only until the user's code goes on. What a parameter
    became is not measured: what was added to it is known.
    """

    lasting = False

    def __init__(self, tape: Tape, measures: StatisticsCache, magnitudes: bool) -> None:
        super().__init__(tape, magnitudes)
        self._measures = measures

    def of(self, tensor: Tensor) -> Snapshot:
        """Without numbers, but measured now, where it is too large to be kept."""
        if not _is_large(tensor):
            return super().of(tensor)
        statistics = self._measures.statistics(tensor, self._wants_histogram(tensor))
        return Snapshot(tuple(tensor.shape), tensor.dtype, name_of(tensor.device), None, statistics)

    def of_after(self, tensor: Tensor) -> Snapshot:
        """Without numbers and unmeasured where it is too large to be kept."""
        return Snapshot.of(tensor).filled(None) if _is_large(tensor) else super().of(tensor)


def _is_large(tensor: Tensor) -> bool:
    """Whether it would not have been kept."""
    return has_numbers(tensor) and tensor.layout is strided and tensor.nbytes > keeping.SMALL
