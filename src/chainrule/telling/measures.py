"""The figures of tensors of any size, each worked out once.

A step of a large model tells a thousand tensors, and the same memory under several names: a view, its transpose, the
gradient that our rule and autograd agree on to the last bit. So figures are kept by memory, and every pass is one that
PyTorch runs at the speed of the memory: reductions in the tensor's own number type over rows that are short enough to
lose nothing, added up in float64. (A reduction that converts to float64 on the way takes thirty times as long.)
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor as Data

from chainrule.document import Text, Verdict
from chainrule.statistics import Statistics

ROW = 4096  # numbers that are added up in the tensor's own type
SLAB = 2**22  # numbers that are converted at a time
PART = 2**18  # numbers that are subtracted at a time
FEW = 2**16  # numbers up to which every pass is cheap
TINY = 1e-15  # below, the square of a float32 may be lost

UNKNOWN = Statistics(0, math.nan, math.nan, math.nan, math.nan, math.nan, 0, 0)
"""Of a tensor whose numbers were not kept."""

Key = tuple[object, ...]


class Measures:
    """Figures by memory; what was measured is held, so that its memory is not given to another tensor."""

    def __init__(self) -> None:
        self._known: dict[Key, tuple[Data, Statistics]] = {}
        self._twins: set[tuple[Key, Key]] = set()

    def statistics(self, data: Data) -> Statistics:
        """What is said of a tensor without its numbers."""
        if data.is_meta:
            return UNKNOWN
        key = memory(data)
        if key not in self._known:
            self._known[key] = (data, measured(data))
        return self._known[key][1]

    def norm(self, data: Data) -> float:
        """The Euclidean norm; not finite where an element is not."""
        found = self.statistics(data)
        return found.norm if not found.not_finite else norm_of(data)

    def are_twins(self, one: Data, other: Data) -> bool:
        """Whether two tensors are the same number for number; then both are measured as one."""
        if one.is_meta or other.is_meta:
            return False
        pair = memory(one), memory(other)
        if pair not in self._twins and one is not other:
            if not _equal(one, other):
                return False
            self._twins.add(pair)
            self._known.setdefault(pair[0], (one, self.statistics(other)))
        return True

    def agreement(self, ours: Data, theirs: Data, text: Text, passing: bool = False) -> Verdict:
        """Hold our number against PyTorch's: `agrees` where they differ by no more than rounding.

        Nothing is kept of `ours` where it is `passing`, made to be held against something once.
        """
        if ours.is_meta or theirs.is_meta:
            return Verdict("not checked", ("not checked: the numbers were not kept",))
        if _equal(ours, theirs) if passing else self.are_twins(ours, theirs):
            return Verdict("agrees", text, 0.0, self._tolerance(theirs))
        return self._held_against(ours, theirs, text)

    def _held_against(self, ours: Data, theirs: Data, text: Text) -> Verdict:
        if theirs.numel() <= FEW or not self._plain(ours, theirs):
            return agreement(ours, theirs, text)
        bound = self._tolerance(theirs)
        difference = max(part.abs_().amax().item() for part in _differences(ours, theirs))
        return Verdict("agrees" if difference <= bound else "disagrees", text, difference, bound)

    def _plain(self, ours: Data, theirs: Data) -> bool:
        """Whether two large tensors can be subtracted part by part, and all of their numbers are finite."""
        both = (ours, theirs)
        return (
            ours.dtype == theirs.dtype
            and all(each.layout == torch.strided and each.is_floating_point() for each in both)
            and not any(self.statistics(each).not_finite for each in both)
        )

    def _tolerance(self, data: Data) -> float:
        return tolerance(data, self.statistics(data))


def memory(data: Data) -> Key:
    """What two tensors share that hold the same numbers in another order: one is a view of all of the other."""
    if data.layout != torch.strided or not is_dense(data):
        return (id(data),)
    return (data.data_ptr(), data.numel(), data.dtype, data.device, data.is_conj(), data.is_neg())


def is_dense(data: Data) -> bool:
    """Whether a strided tensor fills one piece of memory, each place once."""
    expected = 1
    for stride, size in sorted(zip(data.stride(), data.shape, strict=True)):
        if size > 1 and stride != expected:
            return False
        expected *= size
    return bool(data.numel())


def flat(data: Data) -> Data:
    """All numbers in a row: as they lie in memory where the tensor fills a piece of it, else in row-major order."""
    return data.as_strided((data.numel(),), (1,)) if is_dense(data) else data.reshape(-1)


def measured(data: Data) -> Statistics:
    """Measure one tensor, in few passes."""
    data = data.detach()
    data = data.to_dense() if data.layout is not torch.strided else data
    data = data.abs() if data.is_complex() else data
    numbers = flat(data)
    found = [_slab(each) for each in _slabs(numbers)]
    if not found or not all(math.isfinite(low) and math.isfinite(high) for low, high, _, _, _ in found):
        return _finite_part(numbers)
    lows, highs, sums, norms, counts = zip(*found, strict=True)
    elements, norm = numbers.numel(), math.hypot(*norms)
    largest = max(-min(lows), max(highs))
    if not math.isfinite(norm) or 0 < largest < TINY:  # squares that the type cannot hold
        norm = norm_of(numbers)
    mean = math.fsum(sums) / elements
    std = math.sqrt(max(norm**2 / elements - mean**2, 0.0))
    return Statistics(elements, norm, mean, std, min(lows), max(highs), elements - sum(counts), 0)


def _finite_part(numbers: Data) -> Statistics:
    finite = numbers[numbers.isfinite()]
    if not finite.numel():
        return Statistics(numbers.numel(), 0.0, 0.0, 0.0, 0.0, 0.0, 0, numbers.numel())
    found = measured(finite)
    return Statistics(
        numbers.numel(), found.norm, found.mean, found.std, found.low, found.high, found.zeros,
        numbers.numel() - finite.numel(),
    )  # fmt: skip


def _slabs(numbers: Data) -> Iterator[Data]:
    """The numbers as float32 or float64: as they are, or converted part by part."""
    if not numbers.numel():
        return iter(())
    if numbers.dtype in (torch.float32, torch.float64):
        return iter((numbers,))
    wide = torch.float32 if numbers.is_floating_point() else torch.float64
    return (part.to(wide) for part in numbers.split(SLAB))


def _slab(numbers: Data) -> tuple[float, float, float, float, int]:
    """Least, greatest, sum, norm, and how many are not zero."""
    low, high = numbers.aminmax()
    whole = numbers.numel() // ROW * ROW
    rows, rest = numbers[:whole].view(-1, ROW), numbers[whole:]
    total = rows.sum(1).sum(dtype=torch.float64) + rest.sum()
    squares = torch.linalg.vector_norm(rows, dim=1).double().square().sum() + torch.linalg.vector_norm(rest) ** 2
    return low.item(), high.item(), total.item(), math.sqrt(squares.item()), int(numbers.count_nonzero())


def _equal(one: Data, other: Data) -> bool:
    if one.dtype != other.dtype:
        return False
    one, other = (each if each.layout == torch.strided else each.to_dense() for each in (one, other))
    if one.shape != other.shape:
        return False
    return (one.data_ptr() == other.data_ptr() and one.stride() == other.stride()) or torch.equal(one, other)


def _differences(one: Data, other: Data) -> Iterator[Data]:
    """The difference in parts that stay in the processor's cache, one after the other in the same memory."""
    if one.stride() == other.stride() and is_dense(one):
        one, other = flat(one), flat(other)
    one, other = one.reshape(-1), other.reshape(-1)
    room = torch.empty(min(PART, one.numel()), dtype=one.dtype, device=one.device)
    for mine, theirs in zip(one.split(PART), other.split(PART), strict=True):
        yield torch.sub(mine, theirs, out=room[: mine.numel()])


def distance(one: Data, other: Data) -> float:
    """The norm of the difference of two tensors of one shape."""
    one, other = (each if each.layout == torch.strided else each.to_dense() for each in (one, other))
    return math.hypot(*(norm_of(part) for part in _differences(one, other)))


def norm_of(data: Data) -> float:
    """The Euclidean norm, of a sparse or complex tensor too, in float64 all the way."""
    data = data.to_dense() if data.layout is not torch.strided else data
    data = data.abs() if data.is_complex() else data
    return math.hypot(*(float(torch.linalg.vector_norm(part.double())) for part in data.reshape(-1).split(SLAB)))


def tolerance(data: Data, found: Statistics) -> float:
    """What rounding may do to a gradient: some hundred units in the last place of its largest finite element."""
    if not (data.is_floating_point() or data.is_complex()) or not data.numel():
        return 0.0
    return 256 * torch.finfo(data.dtype).eps * max(abs(found.low), abs(found.high), 1e-30)


def agreement(ours: Data, theirs: Data, text: Text) -> Verdict:
    """Hold our number against PyTorch's, whatever the two tensors hold and however it is laid out."""
    theirs = theirs.to_dense() if theirs.layout is not torch.strided else theirs
    ours = (ours.to_dense() if ours.layout is not torch.strided else ours).to(theirs.dtype)
    bound = tolerance(theirs, measured(theirs))
    same = torch.isclose(ours, theirs, rtol=0, atol=bound, equal_nan=True)
    apart = (ours - theirs).abs()
    difference = apart.max().item() if apart.numel() else 0.0
    if math.isnan(difference):  # both NaN in one place, which is no difference, or in one of them only
        apart = apart[~(ours.isnan() & theirs.isnan())]
        difference = apart.max().item() if apart.numel() else 0.0
    return Verdict("agrees" if bool(same.all()) else "disagrees", text, difference, bound)
