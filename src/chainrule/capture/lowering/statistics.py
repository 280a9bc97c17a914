"""Snapshots of a tape's tensors: numbers where they were kept, else statistics measured while the step ran."""

from __future__ import annotations

from torch import Tensor, float16, strided

from chainrule.capture import retention as limits
from chainrule.capture.data_parallel import wraps_others
from chainrule.capture.tape import Tape
from chainrule.graph.snapshot import Snapshot, has_numbers, name_of
from chainrule.graph.statistics import Statistics
from chainrule.graph.statistics_cache import StatisticsCache


class Snapshots:
    """What is known of the tensors of a tape, and of those that placeholders stand for."""

    lasting = True  # whether the facts stay true when the user's code goes on

    def __init__(self, tape: Tape, magnitudes: bool = True) -> None:
        self._originals = tape.placeholders.known
        self._magnitudes = magnitudes  # whether histograms are wanted; float16 always has them, which show underflow
        self._read: dict[int, Snapshot] = {}  # by the id of a placeholder, which the tape holds

    def of(self, tensor: Tensor) -> Snapshot:
        """A tensor of the tape; one that was not kept has its statistics, as far as it was measured."""
        original = self._originals.get(id(tensor))
        if original is None:
            return _bare(tensor) if wraps_others(tensor) else Snapshot.of(tensor)
        found = self._read.get(id(tensor))
        if found is None:
            measured = original.measured
            statistics = None if measured is None else measured.read(self._wants_histogram(tensor))
            found = Snapshot(tuple(tensor.shape), tensor.dtype, name_of(original.device), None, statistics)
            self._read[id(tensor)] = found
        return found

    def of_some(self, tensor: Tensor | None) -> Snapshot | None:
        """The same of a tensor, if there is one."""
        return None if tensor is None else self.of(tensor)

    def of_after(self, tensor: Tensor) -> Snapshot:
        """A parameter after the step."""
        return self.of(tensor)

    def _wants_histogram(self, tensor: Tensor) -> bool:
        return self._magnitudes or tensor.dtype is float16


class SnapshotsInPlace(Snapshots):
    """The same without copies: what is too large to be kept is still there, and measured where it is.

    The facts are good only until the user's code goes on. Parameters after the step are not measured: what was added to
    them is known. With copies, nodes and all statistics each step that is watched would cost 15 % more for the MLP of
    the benchmarks and 49 % for a tiny GPT-2 (the nodes alone 25 %).
    """

    lasting = False

    def __init__(self, tape: Tape, measures: StatisticsCache, magnitudes: bool) -> None:
        super().__init__(tape, magnitudes)
        self._measures = measures

    def of(self, tensor: Tensor) -> Snapshot:
        """Without numbers, but measured now, where it is too large to be kept."""
        if not _is_large(tensor):
            return super().of(tensor)
        return _bare(tensor, self._measures.statistics(tensor, self._wants_histogram(tensor)))

    def of_after(self, tensor: Tensor) -> Snapshot:
        """Without numbers and unmeasured where it is too large to be kept."""
        return _bare(tensor) if _is_large(tensor) else super().of(tensor)


def _is_large(tensor: Tensor) -> bool:
    """Whether it is too large to be kept."""
    if not has_numbers(tensor) or tensor.layout is not strided or wraps_others(tensor):
        return False
    return tensor.nbytes > limits.SMALL


def _bare(tensor: Tensor, statistics: Statistics | None = None) -> Snapshot:
    return Snapshot(tuple(tensor.shape), tensor.dtype, name_of(tensor.device), None, statistics)
