"""Numbers of a tape's tensors where they were kept, else their statistics, which were measured while the step ran."""

from __future__ import annotations

from torch import Tensor, empty_strided, float16, strided

from chainrule.capture import retention as limits
from chainrule.capture.data_parallel import wraps_others
from chainrule.capture.tape import Tape
from chainrule.graph.statistics import Statistics
from chainrule.graph.statistics_cache import Measures


class TapeStatistics:
    """What is known of the tensors of a tape."""

    lasting = True  # whether the facts stay true when the user's code goes on

    def __init__(self, tape: Tape, magnitudes: bool = True) -> None:
        self._absent = tape.placeholders.known
        self._magnitudes = magnitudes  # whether histograms are wanted; float16 always has them, which show underflow
        self._read: dict[int, Statistics] = {}  # by the id of what was measured, which the tape holds

    def of(self, tensor: Tensor | None) -> Statistics | None:
        """The statistics of what was not kept, as far as it was measured; each is read once."""
        original = None if tensor is None else self._absent.get(id(tensor))
        if tensor is None or original is None or original.measured is None:
            return None
        measured = original.measured
        found = self._read.get(id(measured))
        if found is None:
            found = self._read[id(measured)] = measured.read(self._magnitudes or tensor.dtype is float16)
        return found

    def of_after(self, tensor: Tensor | None) -> Statistics | None:
        """The statistics of a parameter after the step."""
        return self.of(tensor)

    def numbers(self, tensor: Tensor | None) -> Tensor | None:
        """The tensor, if it has its numbers."""
        return None if tensor is None or tensor.is_meta or wraps_others(tensor) else tensor

    def held(self, tensor: Tensor) -> Tensor:
        """The tensor, or its placeholder."""
        return _placeholder(tensor) if wraps_others(tensor) else tensor


class StatisticsInPlace(TapeStatistics):
    """The same without copies: what is too large to be kept is still there, and measured where it is.

    The facts are good only until the user's code goes on. Parameters after the step are not measured: what was added to
    them is known. With copies, nodes and all statistics each step that is watched would cost 15 % more for the MLP of
    the benchmarks and 49 % for a tiny GPT-2 (the nodes alone 25 %).
    """

    lasting = False

    def __init__(self, tape: Tape, measures: Measures, magnitudes: bool) -> None:
        super().__init__(tape, magnitudes)
        self._measures = measures

    def of(self, tensor: Tensor | None) -> Statistics | None:
        """Also the statistics of what is too large to be kept, measured now."""
        if tensor is not None and _is_large(tensor):
            return self._measures.statistics(tensor, self._magnitudes or tensor.dtype is float16)
        return super().of(tensor)

    def of_after(self, tensor: Tensor | None) -> Statistics | None:
        """Only what was measured while the step ran."""
        return super().of(tensor)

    def numbers(self, tensor: Tensor | None) -> Tensor | None:
        """The tensor, if it has its numbers and is small enough to be kept."""
        return None if tensor is None or _is_large(tensor) else super().numbers(tensor)

    def held(self, tensor: Tensor) -> Tensor:
        """The tensor, or a placeholder where it is too large to be kept."""
        return _placeholder(tensor) if _is_large(tensor) else super().held(tensor)


def _is_large(tensor: Tensor) -> bool:
    """Whether it is too large to be kept."""
    return not tensor.is_meta and not wraps_others(tensor) and tensor.layout is strided and tensor.nbytes > limits.SMALL


def _placeholder(tensor: Tensor) -> Tensor:
    return empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device="meta")
