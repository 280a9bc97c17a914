"""What is said of a tensor without its numbers: size, norm, mean, spread, extremes, zeros, and a small histogram.

A tensor is measured where it lives, in few passes over its memory. On a processor `measure` has the statistics at once;
on another device they stay there until somebody reads them, so that a thousand tensors are measured without waiting
for one. Many numbers on a processor are measured in one pass (`fused_kernel`), where numba is installed. Elsewhere
PyTorch or numpy run each pass at the speed of the memory: they reduce rows in the tensor's own number type, which are
short enough to lose nothing, and the rows are added up in float64. (A reduction that converts to float64 on the way
takes thirty times as long.)

Reading the file of a run needs `Statistics` without torch, so this module imports torch inside its functions.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy

if TYPE_CHECKING:
    import torch
    from torch import Tensor

EXPONENTS = range(-32, 32, 4)
"""Bin `i` of the histogram counts the sizes from 2^EXPONENTS[i] up to the next; the outermost take the rest."""

SAMPLE = 512  # numbers, spread over the tensor, that the histogram is made of
ROW = 4096  # numbers that are added up in their own type
MANY = 4096  # numbers from which on one pass is worth a call of its own
LARGE = 2**18  # numbers from which on it is worth loading the compiler of the kernel
SLAB = 2**20  # numbers that are read, or converted, at a time
TINY = 1e-15  # below, the square of a float32 may be lost


@dataclass(frozen=True, slots=True)
class Statistics:
    """Statistics of one tensor: of absolute values, where it is complex; of floats, where it has integers or booleans.

    All but `elements`, `zeros` and `not_finite` are of the finite elements alone, and 0 where there are none:

        norm = sqrt(sum x^2)     mean = sum x / n     std = sqrt(sum (x - mean)^2 / n)

    `magnitudes` is the histogram: it counts the finite elements that are not 0 by the power of two of their size, among
    at most 512 elements spread evenly over the tensor; empty where nobody asked for it.
    """

    elements: int
    norm: float
    mean: float
    std: float
    low: float
    high: float
    zeros: int
    not_finite: int
    magnitudes: tuple[int, ...] = ()

    @classmethod
    def of(cls, tensor: Tensor, magnitudes: bool = False) -> Statistics:
        """Measure one tensor, of any layout and type, on any device; waits for the device."""
        return measure(tensor).read(magnitudes)


Row = tuple[float, ...]
"""The result of a pass: the number of elements; least, greatest, sum, norm; how many are zero, and not finite."""


@dataclass(slots=True)
class Measured:
    """A tensor's statistics, perhaps still on its device, and the histogram, or the sample to make it of."""

    row: Row | Tensor
    magnitudes: tuple[int, ...] | Tensor

    def read(self, magnitudes: bool = True) -> Statistics:
        """The statistics; waits for the device that they are on."""
        row = self.row if isinstance(self.row, tuple) else tuple(self.row.tolist())
        if not magnitudes:
            return of_row(row)
        if isinstance(self.magnitudes, tuple):
            return of_row(row, self.magnitudes)
        sample = self.magnitudes.double().cpu().numpy()  # on so few numbers torch takes five times as long
        return of_row(row, histograms(sample[None])[0])


def measure(tensor: Tensor) -> Measured:
    """Measure a tensor where it lives. The tensor may be overwritten as soon as this returns."""
    from chainrule.graph.reexecution import unobserved

    with unobserved():
        known = in_place(tensor)
        if known is not None:
            return known
        flat = _flat(tensor.detach())
        if flat.device.type != "cpu":
            return Measured(_on_device(flat), _sample(flat))
        return in_place(flat) or Measured(_on_processor(flat), _sample(flat))


def in_place(tensor: Tensor) -> Measured | None:
    """Measure a tensor in one pass over its memory, where that is possible.

    Runs no operation of PyTorch's and takes no memory, as the recorder needs while a step runs.
    """
    import torch

    count = tensor.numel()
    if count < MANY or tensor.layout is not torch.strided or not is_dense(tensor) or tensor.is_neg():
        return None
    found = one_pass(tensor)
    if found is None or not math.isfinite(found.squares):  # a float64 may be too large for its square
        return None
    row = (count, found.low, found.high, found.total, math.sqrt(found.squares), found.zeros, found.not_finite)
    return Measured(row, found.magnitudes)


def fetch(several: Iterable[Measured]) -> None:
    """Bring statistics and samples to the processor, in one transfer for each device and type of number.

    Waits for all streams of the devices, as any of them may have measured.
    """
    import torch

    away: list[Any] = [each for each in several if not isinstance(each.row, tuple)]
    for device in {each.row.device for each in away}:
        torch.accelerator.synchronize(device)
    _gather(away)


def _gather(away: list[Any]) -> None:
    import torch

    for part in _alike(away, lambda each: (each.magnitudes.device, each.magnitudes.dtype)):
        samples = torch.cat([each.magnitudes for each in part]).cpu().split([each.magnitudes.numel() for each in part])
        for each, sample in zip(part, samples, strict=True):
            each.magnitudes = sample
    for part in _alike(away, lambda each: each.row.device):
        rows = torch.stack([each.row for each in part]).tolist()
        for each, row in zip(part, rows, strict=True):
            each.row = tuple(row)


def _alike(several: list[Any], key: Callable[[Any], Any]) -> list[list[Any]]:
    found: dict[Any, list[Any]] = {}
    for each in several:
        found.setdefault(key(each), []).append(each)
    return list(found.values())


def is_dense(tensor: Tensor) -> bool:
    """Whether a strided tensor fills one piece of memory, each place once."""
    if tensor.is_contiguous():
        return tensor.numel() > 0
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1 and stride != expected:
            return False
        expected *= size
    return tensor.numel() > 0


def in_a_row(tensor: Tensor) -> Tensor:
    """All numbers of a strided tensor in one row, in the order of its memory where that saves a copy."""
    return tensor.as_strided((tensor.numel(),), (1,)) if is_dense(tensor) else tensor.reshape(-1)


def norm_of(*tensors: Tensor) -> float:
    """The Euclidean norm of all elements of all tensors together; not finite where an element is not."""
    found = []
    for tensor in tensors:
        flat = _flat(tensor.detach())
        norm = math.hypot(*map(_norm, _slabs(flat)))
        found.append(norm if math.isfinite(norm) and norm > TINY else _wide_norm(flat))
    return math.hypot(*found)


def _flat(tensor: Tensor) -> Tensor:
    """All numbers as real ones in one row; of complex ones the absolute values."""
    import torch

    tensor = tensor.to_dense() if tensor.layout is not torch.strided else tensor
    return in_a_row(tensor.abs() if tensor.is_complex() else tensor.resolve_neg())


def _sample(flat: Tensor) -> Tensor:
    """The numbers that the histogram is made of, copied."""
    every = -(-flat.numel() // SAMPLE)
    return flat[::every].clone() if every else flat.clone()


def histograms(rows: Any) -> list[tuple[int, ...]]:
    """How many finite numbers of each row of a numpy matrix lie in which bin of `EXPONENTS`; zeros lie in none."""
    there = numpy.isfinite(rows) & (rows != 0)
    exponents = numpy.frexp(numpy.where(there, rows, 1))[1] - 1  # number = mantissa * 2^exponent, mantissa below 1
    bins = ((exponents - EXPONENTS.start) // EXPONENTS.step).clip(0, len(EXPONENTS) - 1)
    bins += numpy.arange(len(rows), dtype=bins.dtype)[:, None] * len(EXPONENTS)
    counts = numpy.bincount(bins[there], minlength=len(rows) * len(EXPONENTS))
    return list(map(tuple, counts.reshape(len(rows), -1).tolist()))


def of_row(row: Row, magnitudes: tuple[int, ...] = ()) -> Statistics:
    """The statistics from the result of a pass."""
    elements, low, high, total, norm, zeros, not_finite = row
    count = elements - not_finite
    if not count:
        return Statistics(int(elements), 0.0, 0.0, 0.0, 0.0, 0.0, 0, int(not_finite), magnitudes)
    mean = total / count
    size = norm / math.sqrt(count)
    between = size - abs(mean)  # not above 0 where all are the same, or their sum was too large for the type
    # sqrt(size^2 - mean^2), without squares that overflow
    std = math.sqrt(between) * math.sqrt(size + abs(mean)) if low != high and between > 0 else 0.0
    return Statistics(int(elements), norm, mean, std, low, high, int(zeros), int(not_finite), magnitudes)


# -- on a processor ---------------------------------------------------------------------------------------------------


def _on_processor(flat: Tensor) -> Row:
    import torch

    found = [_slab(each) for each in _slabs(flat)]
    if not found or not all(math.isfinite(low) and math.isfinite(high) for low, high, *_ in found):
        finite = flat[flat.isfinite()]
        _, *inner, _ = _on_processor(finite) if finite.numel() else (0.0,) * 7
        return flat.numel(), *inner, flat.numel() - finite.numel()
    lows, highs, sums, norms, zeros = zip(*found, strict=True)
    low, high, total, norm = min(lows), max(highs), sum(sums), math.hypot(*norms)
    if not math.isfinite(norm) or max(-low, high, 0.0) < TINY:  # squares too large or too small for the type
        norm = _wide_norm(flat)
    if not math.isfinite(total):
        total = math.fsum(part.sum(dtype=torch.float64).item() for part in flat.split(SLAB))
    return flat.numel(), low, high, total, norm, sum(zeros), 0


def _slabs(flat: Tensor) -> Iterator[Tensor]:
    """The numbers as float32 or float64: as they are, or converted part by part."""
    import torch

    if not flat.numel():
        return
    parts = flat.split(SLAB) if flat.numel() > SLAB else (flat,)
    if flat.dtype in (torch.float32, torch.float64):
        yield from parts
    else:
        wide = torch.float32 if flat.is_floating_point() else torch.float64
        yield from (part.to(wide) for part in parts)


def _slab(flat: Tensor) -> tuple[float, float, float, float, int]:
    """Least, greatest, sum, norm, and how many are zero."""
    import torch

    if flat.numel() >= MANY and (found := one_pass(flat.contiguous())) and not found.not_finite:
        return found.low, found.high, found.total, math.sqrt(found.squares), found.zeros
    low, high = flat.aminmax()
    numbers = numpy.from_dlpack(flat)  # `flat.numpy()` would forbid resizing its memory for good, as FSDP2 does
    zeros = int(numpy.count_nonzero(numbers == 0)) if low <= 0 <= high else 0  # numpy counts in a fifth of the time
    if flat.numel() <= ROW * 16:
        return low.item(), high.item(), flat.sum().item(), _norm(flat), zeros
    whole = flat.numel() // ROW * ROW
    total = flat[:whole].view(-1, ROW).sum(1).sum(dtype=torch.float64) + flat[whole:].sum()
    return low.item(), high.item(), total.item(), _norm(flat), zeros


def _norm(flat: Tensor) -> float:
    """The norm of float32 or float64 in their own type, over rows that are short enough to lose nothing."""
    import torch

    if flat.numel() <= ROW * 16:
        return float(torch.linalg.vector_norm(flat))
    whole = flat.numel() // ROW * ROW
    rows = torch.linalg.vector_norm(flat[:whole].view(-1, ROW), dim=1)
    return math.hypot(torch.linalg.vector_norm(rows, dtype=torch.float64).item(), _norm(flat[whole:]))


def _wide_norm(flat: Tensor) -> float:
    import torch

    return math.hypot(*(torch.linalg.vector_norm(part.double()).item() for part in flat.split(SLAB)))


# -- one pass, where numba is installed -------------------------------------------------------------------------------


class OnePass(NamedTuple):
    """The result of one pass: of the finite numbers, and how many others there are."""

    low: float
    high: float
    total: float
    squares: float
    zeros: int
    not_finite: int
    magnitudes: tuple[int, ...]


@cache
def prepare() -> None:
    """Load the compiler and the kernel for float32 now, where much is going to be measured.

    Loading takes half a second, once in a process, and another half the first time on a machine.
    """
    import torch

    from chainrule.graph.reexecution import unobserved
    from chainrule.pytorch_internals import _DisableFuncTorch

    with _DisableFuncTorch(), unobserved():  # what is made inside of `vmap` has no memory; modes see what is made
        one_pass(torch.zeros(LARGE, dtype=torch.float32))


def one_pass(dense: Tensor) -> OnePass | None:
    """Measure float32 or float64 on a processor, of a tensor that fills one piece of memory, at the memory's speed.

    None for other types and devices, without numba, and for a few numbers as long as the kernel is not loaded.
    """
    count = dense.numel()
    if count < LARGE and "chainrule.graph.fused_kernel" not in sys.modules:
        return None
    kernel = _kernel(dense.dtype) if dense.is_cpu else None
    if kernel is None or not (address := dense.data_ptr()):
        return None
    counts = numpy.zeros(len(EXPONENTS), numpy.int64)
    found = kernel(address, count, max(-(-count // SAMPLE), 1), counts)
    return OnePass._make((*found, tuple(counts.tolist())))


@cache
def _kernel(type: torch.dtype) -> Callable[..., Any] | None:
    name = str(type).removeprefix("torch.")
    integers = {"float32": numpy.int32, "float64": numpy.int64}.get(name)
    if integers is None:
        return None
    try:
        from chainrule.graph.fused_kernel import measure_memory
    except ImportError:  # no numba, or none for this Python or numpy
        return None
    known = numpy.finfo(name)
    types = numpy.empty(0, name), numpy.empty(0, integers)
    shift = EXPONENTS.step.bit_length() - 1  # a shift is faster than a division
    return partial(measure_memory, *types, known.nmant, known.maxexp, EXPONENTS.start, shift)


# -- on another device ------------------------------------------------------------------------------------------------


def _on_device(flat: Tensor) -> Any:
    """The row of statistics as one small tensor, without waiting for any of them."""
    import torch

    finite = flat.isfinite() if flat.is_floating_point() else torch.ones_like(flat, dtype=torch.bool)
    count, wide = flat.numel(), torch.float32 if flat.dtype.itemsize < 8 else torch.float64
    numbers = torch.where(finite, flat, 0).to(wide)
    if not count:
        return torch.zeros(7, dtype=torch.float64)
    low, high = numbers.aminmax()
    found = (
        low, high, numbers.sum(), torch.linalg.vector_norm(numbers),
        (flat == 0).sum(), count - finite.sum(),
    )  # fmt: skip
    return torch.stack([torch.full((), count, dtype=torch.float64, device=flat.device), *(x.double() for x in found)])


# -- of a part --------------------------------------------------------------------------------------------------------

PART = 4096  # numbers of a large tensor from which an update is estimated; each is a cache line to fetch


def part_of(tensor: Tensor) -> Tensor:
    """A copy of at most 4,096 numbers spread evenly over a tensor; of all of a small one."""
    return spread_over(_flat(tensor.detach())).clone()


def spread_over(flat: Tensor) -> Tensor:
    """Every n-th of the numbers in a row, n odd: an even n would take them from a few columns of a matrix alone."""
    return flat if flat.numel() <= PART else flat[:: flat.numel() // PART | 1][:PART]


def of_a_sample(found: Statistics, elements: int) -> Statistics:
    """The statistics of a tensor from those of an even sample of it: norm and counts are scaled up to `elements`."""
    if found.elements == elements:
        return found
    scale = elements / max(found.elements, 1)
    zeros, lost = round(found.zeros * scale), round(found.not_finite * scale)
    return replace(found, elements=elements, norm=found.norm * math.sqrt(scale), zeros=zeros, not_finite=lost)
