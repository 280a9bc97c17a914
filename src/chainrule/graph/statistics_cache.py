"""The figures of the tensors of one recording, each worked out once for all who ask.

A step of a large model has a thousand tensors, and the same memory under several names: a view, its transpose, the
gradient that our rule and autograd agree on to the last bit. So figures are kept by memory. Findings and telling ask
for the same ones; and to know whether a tensor is finite is to have measured it, as PyTorch's `isfinite` alone takes
six times as long as all the figures together.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from chainrule.graph.batched_statistics import is_small, measured
from chainrule.graph.snapshot import Snapshot, all_have_numbers, has_numbers, statistics_of
from chainrule.graph.statistics import Statistics, in_a_row, is_dense, norm_of

PART = 2**18  # numbers that are subtracted at a time

UNKNOWN = Statistics(0, math.nan, math.nan, math.nan, math.nan, math.nan, 0, 0)
"""Of a tensor whose numbers were not kept."""

Key = tuple[object, ...]


class Measures:
    """Figures by memory; what was measured is held, so that its memory is not given to another tensor."""

    def __init__(self) -> None:
        self._known: dict[Key, tuple[Tensor, Statistics]] = {}
        self._twins: set[tuple[Key, Key]] = set()

    def statistics(self, data: Tensor, magnitudes: bool = False) -> Statistics:
        """What is said of a tensor without its numbers; with the histogram of its magnitudes where that is asked for.

        Waits for the device that the tensor is on.
        """
        if not has_numbers(data):
            return UNKNOWN
        key = memory(data)
        known = self._known.get(key)
        if known is None or (magnitudes and not known[1].magnitudes):
            known = self._known[key] = (data, Statistics.of(data, magnitudes))
        return known[1]

    def of(self, snapshot: Snapshot | None, magnitudes: bool = False) -> Statistics | None:
        """What was measured of a tensor while the step ran, else the statistics of its numbers; None without either."""
        if snapshot is None or snapshot.statistics is not None or snapshot.data is None:
            return statistics_of(snapshot)
        return self.statistics(snapshot.data, magnitudes)

    def measure(self, tensors: Iterable[Tensor], magnitudes: bool) -> None:
        """Measure the small ones among these together, which is sooner done than one by one when they are asked for."""
        small = {memory(each): each for each in tensors if is_small(each)}
        waiting = {key: each for key, each in small.items() if key not in self._known}
        found = measured(list(waiting.values()), magnitudes)
        self._known.update(zip(waiting, zip(waiting.values(), found, strict=True), strict=True))

    def norm(self, data: Tensor) -> float:
        """The Euclidean norm; not finite where an element is not."""
        found = self.statistics(data)
        return found.norm if not found.not_finite else norm_of(data)

    def finite(self, data: Tensor | None) -> bool:
        """Whether there is no NaN and no infinity in it, as far as is known."""
        if not has_numbers(data) or not (data.is_floating_point() or data.is_complex()):
            return True
        return not self.statistics(data).not_finite

    def all_finite(self, several: Iterable[Tensor | None]) -> bool:
        """The same of several; those that are small are measured together."""
        known = [each for each in several if has_numbers(each)]
        self.measure(known, magnitudes=False)
        return all(self.finite(each) for each in known)

    def are_twins(self, one: Tensor, other: Tensor, passing: bool = False) -> bool:
        """Whether two tensors are the same number for number; then both are measured as one.

        Nothing is kept of `one` where it is `passing`, made to be held against something once.
        """
        if not all_have_numbers(one, other):
            return False
        pair = memory(one), memory(other)
        if one is other or pair in self._twins:
            return True
        if not _equal(one, other):
            return False
        if not passing:
            self._twins.add(pair)
            self._known.setdefault(pair[0], (one, self.statistics(other)))
        return True


def memory(data: Tensor) -> Key:
    """What two tensors share that hold the same numbers in another order: one is a view of all of the other."""
    if data.layout != torch.strided or not is_dense(data):
        return (id(data),)
    return (data.data_ptr(), data.numel(), data.dtype, data.device, data.is_conj(), data.is_neg())


def _equal(one: Tensor, other: Tensor) -> bool:
    if one.dtype != other.dtype:
        return False
    one, other = (each if each.layout == torch.strided else each.to_dense() for each in (one, other))
    if one.shape != other.shape:
        return False
    return (one.data_ptr() == other.data_ptr() and one.stride() == other.stride()) or torch.equal(one, other)


def differences(one: Tensor, other: Tensor) -> Iterator[Tensor]:
    """The difference in parts that stay in the processor's cache, one after the other in the same memory."""
    if one.stride() == other.stride() and is_dense(one):
        one, other = in_a_row(one), in_a_row(other)
    one, other = one.reshape(-1), other.reshape(-1)
    room = torch.empty(min(PART, one.numel()), dtype=one.dtype, device=one.device)
    for mine, theirs in zip(one.split(PART), other.split(PART), strict=True):
        yield torch.sub(mine, theirs, out=room[: mine.numel()])


def distance(one: Tensor, other: Tensor) -> float:
    """The norm of the difference of two tensors of one shape."""
    one, other = (each if each.layout == torch.strided else each.to_dense() for each in (one, other))
    return math.hypot(*(norm_of(part) for part in differences(one.detach(), other.detach())))
