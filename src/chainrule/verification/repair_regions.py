"""Where a gradient is wrong: for negative inputs, in the last row, where a mask is 0. All other elements are right."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations

import torch
from torch import Tensor

from chainrule.execution.function_trace import CLOSE
from chainrule.graph.comparison import unravel
from chainrule.verification.repair_changes import fitted_shape
from chainrule.verification.repair_samples import Finding, Sample
from chainrule.verification.repair_whole import changed, scaled

OF_NUMBERS = 2.45  # the least cost of a condition on numbers
PLAIN = 1.7  # the cost of the first or last row: whatever else repairs it, the place is what matters
FEW = 8  # elements of which any part is one where a tensor that is the same at all points is negative, or larger than 1
MOST_PAIRS = 24  # kinds of elements that are tried two by two


def region(samples: Sequence[Sample], name: str, sizes: Sequence[tuple[int, str]]) -> Iterator[Finding]:
    """The gradient is wrong at the elements of one kind, and at no others."""
    if any(sample.elements is not None or sample.wrong.is_complex() for sample in samples):
        return
    wrong = [_wrong(sample) for sample in samples]
    if any(
        bool((off | _silent(sample)).all()) or not bool(off.any()) for off, sample in zip(wrong, samples, strict=True)
    ):
        return  # wrong wherever it can be wrong
    found, partly = list[tuple[float, str]](), list[tuple[float, str, list[Tensor]]]()
    for cost, inside, outside, marks in _kinds(samples):
        if any(bool((off & ~mark).any()) for off, mark in zip(wrong, marks, strict=True)):
            continue
        partly.append((cost, inside, marks))
        if all(_is(off, mark, sample) for off, mark, sample in zip(wrong, marks, samples, strict=True)):
            found.append((cost, f"{inside}, at {_counted(wrong[0])}, and right {outside}"))
    for (cost, one, first), (_, two, second) in combinations(partly[:MOST_PAIRS], 2) if not found else ():
        marks = [a & b for a, b in zip(first, second, strict=True)]
        if all(_is(off, mark, sample) for off, mark, sample in zip(wrong, marks, samples, strict=True)):
            found.append((cost + 0.4, f"{one} and {two}, at {_counted(wrong[0])}, and right elsewhere"))
    if found:
        cost, where = min([each for each in found if each[0] >= OF_NUMBERS] or found)  # no place by chance
        dearest, there = _there(samples, wrong, sizes)
        cost = cost if cost <= PLAIN else max(cost + 0.1, dearest)
        yield Finding("region", cost, f"{name} is wrong {where}", there)


def _counted(off: Tensor) -> str:
    count = int(off.sum())
    return f"all {count} elements" if count > 1 else "the one element"


def _wrong(sample: Sample) -> Tensor:
    size = sample.right.abs() + sample.right.square().mean().sqrt()
    apart = (sample.seen(sample.wrong) - sample.right).abs()
    return (apart > 100 * (CLOSE * size + sample.error)).reshape(sample.wrong.shape)


def _is(off: Tensor, mark: Tensor, sample: Sample) -> bool:
    """Whether it is wrong just there, or where both gradients are 0."""
    if torch.equal(off, mark):
        return True
    if bool((off & ~mark).any()):
        return False
    return bool((off | _silent(sample) | ~mark).all())


def _silent(sample: Sample) -> Tensor:
    """Where both gradients are 0."""
    return (sample.right.reshape(sample.wrong.shape) == 0) & (sample.wrong == 0)


def _there(samples: Sequence[Sample], wrong: Sequence[Tensor], sizes: Sequence[tuple[int, str]]) -> tuple[float, str]:
    """What makes it right there, and at what cost at least: what makes it right everywhere is said without a place."""
    parts = []
    for sample, off in zip(samples, wrong, strict=True):
        elements = off.reshape(-1).nonzero()[:, 0]
        error = sample.error[elements] if isinstance(sample.error, Tensor) and sample.error.dim() else sample.error
        parts.append(replace(sample, right=sample.right[elements], elements=elements, error=error))
    if all(bool((part.right == 0).all()) for part in parts):
        return 0.0, "there it should be 0"
    if all(bool((part.seen(part.wrong) == 0).all()) for part in parts):
        upstream = [part.reach.named.get("the upstream gradient") for part in parts]
        if all(
            each is not None and each.tensor.shape == part.wrong.shape and part.agrees(each.tensor)
            for each, part in zip(upstream, parts, strict=True)
        ):
            return 0.0, "there it is 0 and should be the upstream gradient"
        return 2.9, "there it is 0"
    found = sorted([*scaled(parts, "it", sizes), *changed(parts, "it")], key=lambda each: each.cost)
    if not found:
        return 3.0, ""
    best = found[0]
    return best.cost + 0.15, f"there {best.problem} ({best.fix})"


Kind = tuple[float, str, str, list[Tensor]]


def _kinds(samples: Sequence[Sample]) -> Iterator[Kind]:
    shape = samples[0].wrong.shape
    yield from _of_places(samples, shape)
    for key, named in samples[0].reach.named.items():
        if "upstream" in named.text or named.made >= 0 or key.startswith("slope"):
            continue
        tensors = [sample.reach.named[key].tensor for sample in samples]
        if samples[0].wrong.numel() < FEW and all(torch.equal(tensors[0], each) for each in tensors[1:]):
            continue
        fitted = fitted_shape(tensors[0].shape, shape)
        cost = OF_NUMBERS + named.cost / 2
        if fitted is not None and tensors[0].dim():
            spread = [tensor.reshape(fitted).expand(shape) for tensor in tensors]
            few = tensors[0].numel() < min(FEW, samples[0].wrong.numel())
            for kind in _of_numbers(samples, named.text, spread, cost):
                if not few or any(not torch.equal(kind[3][0], each) for each in kind[3][1:]):
                    yield kind  # a few that are the same at all points, broadcast, fit any rows or columns by chance
        if tensors[0].dtype == torch.long and tensors[0].dim() == 1 and len(shape):
            yield from _of_indices(named.text, tensors, shape, cost)


def _of_numbers(samples: Sequence[Sample], text: str, tensors: list[Tensor], cost: float) -> Iterator[Kind]:
    if tensors[0].is_complex():
        return
    if tensors[0].dtype == torch.bool:
        yield cost, f"where {text} is True", "elsewhere", tensors
        yield cost, f"where {text} is False", "elsewhere", [~tensor for tensor in tensors]
        return
    yield cost, f"where {text} is negative", f"where {text} >= 0", [tensor < 0 for tensor in tensors]
    yield cost, f"where {text} is positive", f"where {text} <= 0", [tensor > 0 for tensor in tensors]
    yield cost, f"where {text} is 0", "elsewhere", [tensor == 0 for tensor in tensors]
    yield cost, f"where {text} is not 0", "where it is 0", [tensor != 0 for tensor in tensors]
    if not tensors[0].is_floating_point():
        return
    for number in samples[0].reach.numbers:
        limits = [sample.reach.numbers[number] for sample in samples]
        pairs = list(zip(tensors, limits, strict=True))
        yield cost, f"where {text} > {number}", "elsewhere", [tensor > limit for tensor, limit in pairs]
        yield cost, f"where {text} < {number}", "elsewhere", [tensor < limit for tensor, limit in pairs]
        yield cost, f"where |{text}| > {number}", "elsewhere", [tensor.abs() > abs(limit) for tensor, limit in pairs]
        yield cost, f"where |{text}| < {number}", "elsewhere", [tensor.abs() < abs(limit) for tensor, limit in pairs]
    for limit in (1.0, 0.5):
        yield cost + 0.1, f"where |{text}| > {limit:g}", "elsewhere", [tensor.abs() > limit for tensor in tensors]
        yield cost + 0.1, f"where |{text}| < {limit:g}", "elsewhere", [tensor.abs() < limit for tensor in tensors]
    for axis in range(tensors[0].dim()):
        if tensors[0].shape[axis] > 1:
            largest = [tensor == tensor.amax(axis, keepdim=True) for tensor in tensors]
            what = f"{text} is the largest along axis {axis}"
            yield cost + 0.1, f"where {what}", "elsewhere", largest
            yield cost + 0.1, f"except where {what}", "there", [~each for each in largest]


def _of_indices(text: str, tensors: list[Tensor], shape: torch.Size, cost: float) -> Iterator[Kind]:
    """Rows that an index names, more than once, or never."""
    rows = shape[0]
    if any(not tensor.numel() or int(tensor.min()) < 0 or int(tensor.max()) >= rows for tensor in tensors):
        return
    counts = [
        torch.bincount(tensor, minlength=rows).reshape(-1, *(1,) * (len(shape) - 1)).expand(shape) for tensor in tensors
    ]
    yield cost, f"in the rows that {text} names more than once", "elsewhere", [count > 1 for count in counts]
    yield cost, f"in the rows that {text} names", "elsewhere", [count > 0 for count in counts]
    yield cost, f"in the rows that {text} does not name", "elsewhere", [count == 0 for count in counts]


_WORDS = {0: "row", 1: "column"}


def _of_places(samples: Sequence[Sample], shape: torch.Size) -> Iterator[Kind]:
    def everywhere(mark: Tensor) -> list[Tensor]:
        return [mark.expand(shape)] * len(samples)

    for axis, size in enumerate(shape):
        if size < 2:
            continue
        at = torch.arange(size, device=samples[0].wrong.device).reshape(-1, *(1,) * (len(shape) - axis - 1))
        word = _WORDS[axis] if len(shape) == 2 else "element" if len(shape) == 1 else f"slice along axis {axis}"
        yield PLAIN, f"in the last {word}", "elsewhere", everywhere(at == size - 1)
        yield PLAIN, f"in the first {word}", "elsewhere", everywhere(at == 0)
        if size > 2:
            yield 2.4, f"in all but the first {word}", "there", everywhere(at > 0)
            yield 2.4, f"in all but the last {word}", "there", everywhere(at < size - 1)
        if size > 3:
            half = size // 2
            yield 2.4, f"in the {word}s from {half} on", "before", everywhere(at >= half)
            yield 2.4, f"in the {word}s before {half}", "from there on", everywhere(at < half)
            yield 2.4, f"in every other {word}, from the first on", "elsewhere", everywhere(at % 2 == 0)
            yield 2.4, f"in every other {word}, from the second on", "elsewhere", everywhere(at % 2 == 1)
    if len(shape) == 2 and shape[0] > 1 and shape[1] > 1:
        ones = torch.ones(shape, dtype=torch.bool, device=samples[0].wrong.device)
        for cost, text, mark in (
            (2.35, "on the diagonal", ones.triu() & ones.tril()),
            (2.35, "above the diagonal (the upper triangle)", ones.triu(1)),
            (2.35, "below the diagonal (the lower triangle)", ones.tril(-1)),
            (2.4, "on and above the diagonal", ones.triu()),
            (2.4, "on and below the diagonal", ones.tril()),
        ):
            yield cost, text, "elsewhere", everywhere(mark)
    yield from _single(samples, shape)


def _single(samples: Sequence[Sample], shape: torch.Size) -> Iterator[Kind]:
    """One element alone, the same at each point."""
    wrong = [_wrong(sample) for sample in samples]
    if int(wrong[0].sum()) == 1 and all(torch.equal(each, wrong[0]) for each in wrong):
        index = unravel(int(wrong[0].reshape(-1).nonzero()[0, 0]), tuple(shape))
        yield 2.5, f"at {list(index)}", "elsewhere", wrong
