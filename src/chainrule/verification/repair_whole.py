"""Repairs of a wrong gradient as a whole: a factor, a term, a sum, an exchange of axes. They need the numbers alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, combinations_with_replacement

import torch
from torch import Tensor

from chainrule.verification.repair_changes import changes, fitted_shape
from chainrule.verification.repair_samples import Change, Finding, Named, Reach, Sample, agree, derived, fit, same

LATEST = 1 << 30  # every step of a backward comes before
MOST_FACTORS = 20
MOST_TERMS = 4000


def scaled(samples: Sequence[Sample], name: str, sizes: Sequence[tuple[int, str]]) -> Iterator[Finding]:
    """A number times the gradient agrees: its sign, a factor, a mean's 1/N."""
    factor = fit(samples, lambda sample: torch.zeros_like(sample.wrong), lambda sample: sample.wrong)
    if factor is None:
        return
    if same(factor, -1):
        yield Finding("sign", 1.0, f"the sign of {name} is wrong", "with -1 it agrees")
        return
    for given, value, _ in derived(samples[0].reach):
        given = given if given == f"{value:.6g}" else f"{given} = {value:.6g}"
        if value in (0, 1):
            continue
        if same(factor, value):
            text = f"a factor {given} is missing in {name}"
            yield Finding("factor", 1.2, text, "multiplied by it, it agrees")
            return
        if same(factor, 1 / value):
            text = f"{name} has a factor {given} too many"
            yield Finding("factor", 1.2, text, "divided by it, it agrees")
            return
    for right, problem, fix in ((1 / factor, f"a factor 1/N is missing in {name}", "divided"),
                                (factor, f"{name} has a factor 1/N too many", "multiplied")):  # fmt: skip
        fitting = [(size, called) for size, called in sizes if same(right, size)]
        if fitting:
            said = " or ".join([f"N = {fitting[0][0]}, {fitting[0][1]}", *(called for _, called in fitting[1:2])])
            yield Finding("1/N", 1.2, problem, f"{fix} by {said}, it agrees")
            return
    cost = 1.4 if any(same(factor, nice) for nice in (2, 0.5, 3, 1 / 3, 4, 0.25, -2, -0.5)) else 2.9
    problem = f"{name} is {1 / factor:.6g} times what it should be"
    yield Finding("factor", cost, problem, f"multiplied by {factor:.6g} it agrees")


def changed(samples: Sequence[Sample], name: str) -> Iterator[Finding]:
    """One change of the whole gradient, such as a factor, a term, or another order of its elements."""
    reach = [sample.reach for sample in samples]
    for change in changes(reach, samples[0].wrong, name, LATEST):
        if agree(samples, lambda sample, turn=change.turn: turn(sample.reach, sample.wrong)):  # type: ignore[misc]
            yield Finding(change.kind, change.cost + 0.15, change.problem, f"{change.fix}, it agrees")


def summed(samples: Sequence[Sample], name: str) -> Iterator[Finding]:
    """The sum over some axes of something in reach is the gradient: a missing or a wrong sum."""
    shape = samples[0].wrong.shape
    plain = tuple(size for size in shape if size != 1)
    for key, named in samples[0].reach.named.items():
        tensor = named.tensor
        if not tensor.is_floating_point() and not tensor.is_complex():
            continue
        for count in range(1, min(tensor.dim(), 4) + 1):
            for axes in combinations(range(tensor.dim()), count):
                kept = tuple(size for axis, size in enumerate(tensor.shape) if axis not in axes)
                if tuple(size for size in kept if size != 1) != plain or math.prod(tensor.shape) == math.prod(kept):
                    continue

                def mended(sample: Sample, key: str = key, axes: tuple[int, ...] = axes) -> Tensor:
                    return sample.reach.named[key].tensor.sum(axes).reshape(shape)

                if agree(samples, mended):
                    over = f"axis {axes[0]}" if count == 1 else f"axes {', '.join(map(str, axes))}"
                    problem = f"a sum is missing in {name}"
                    yield Finding(
                        "reduction", 2.0 + named.cost / 2, problem, f"{named.text}, summed over {over}, agrees"
                    )


def padded(samples: Sequence[Sample], name: str) -> Iterator[Finding]:
    """A shift that lost the elements at the edge; all others agree."""
    if any(sample.elements is not None or sample.wrong.is_complex() for sample in samples):
        return
    shape = samples[0].wrong.shape
    for axis, by in ((axis, by) for axis, size in enumerate(shape) if size > 2 for by in (1, -1)):
        inner = (slice(None),) * axis + (slice(1, None) if by > 0 else slice(None, -1),)

        def patched(sample: Sample, axis: int = axis, by: int = by, inner: tuple[slice, ...] = inner) -> Tensor:
            whole = sample.right.reshape(shape).clone()
            whole[inner] = sample.wrong.roll(by, axis)[inner]
            return whole

        if all(bool(sample.wrong[inner].any()) for sample in samples) and agree(samples, patched):
            fix = f"shifted by {by} it agrees, except at the edge"
            yield Finding("shifted", 2.2, f"{name} is off by one along axis {axis}", fix)


def swapped(samples: Sequence[Sample], name: str, others: dict[str, Sequence[Tensor]]) -> Iterator[Finding]:
    """Another argument was given the gradient of this one."""
    for other, gradients in others.items():
        if all(sample.agrees(gradient) for sample, gradient in zip(samples, gradients, strict=True)):
            problem = f"what came back for `{other}` is {name}"
            yield Finding("swapped", 0.8, problem, "the two are swapped")


# -- products of what is in reach -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Term:
    """A product of tensors in reach, in the shape of the gradient."""

    text: str
    cost: float
    make: Callable[[Reach], Tensor]


def missing_product(samples: Sequence[Sample], name: str) -> Iterator[Finding]:
    """A multiple of a product of tensors in reach is missing, is too much, or is the gradient itself."""
    first = samples[0]
    terms, rows = list[Term](), list[Tensor]()
    for term in _terms(first.reach, first.wrong):
        try:
            made = first.seen(term.make(first.reach))
        except Exception:  # shapes that do not fit
            continue
        if made.shape == first.right.shape and bool(made.isfinite().all()):
            terms.append(term)
            rows.append(made[:64])
        if len(terms) >= MOST_TERMS:
            break
    if not terms:
        return
    stacked = torch.stack(rows)
    sizes = stacked.square().sum(1)
    bases: tuple[tuple[Change, float, str], ...] = (
        (lambda sample: sample.wrong, 2.8, "a term is missing in {name}: with {term} added it agrees"),
        (lambda sample: torch.zeros_like(sample.wrong), 3.2, "{name} should be {term}"),
    )
    for base, cost, words in bases:
        apart = (first.right - first.seen(base(first)))[:64]
        factors = stacked @ apart / sizes
        left = (apart - factors[:, None] * stacked).abs().amax(1)
        fitting = (left <= 1e-5 * apart.abs().max()).nonzero()[:, 0].tolist()
        for term in sorted((terms[at] for at in fitting), key=lambda term: term.cost)[:40]:
            factor = fit(samples, base, lambda sample, term=term: term.make(sample.reach))  # type: ignore[misc]
            if factor is not None:
                times = "" if same(factor, 1) else "minus " if same(factor, -1) else f"{factor:.6g} times "
                more = 0.0 if abs(abs(factor) - 1) < 1e-5 else 0.3
                said = words.format(name=name, term=times + term.text)
                problem, _, fix = said.partition(": ")
                yield Finding("missing term" if fix else "wrong expression", cost + term.cost + more, problem, fix)


def _terms(reach: Reach, wrong: Tensor) -> Iterator[Term]:
    """Products of the upstream gradient with up to two tensors, summed over axes or not; products of matrices."""
    shape = wrong.shape
    real_numbers = {
        key: named
        for key, named in reach.named.items()
        if named.tensor.is_floating_point() or named.tensor.is_complex()
    }
    upstream = [(key, named) for key, named in real_numbers.items() if "upstream" in named.text][:2]
    # That the gradient is the derivative of the whole times the upstream gradient says nothing.
    chosen = sorted(
        (each for each in real_numbers.items() if "` by `" not in each[1].text), key=lambda each: each[1].cost
    )
    factors = [(key, named) for key, named in chosen if "upstream" not in named.text][:MOST_FACTORS]
    for key, named in chosen:
        yield Term(_over(named.text, (key,), reach, shape), named.cost / 2, _product((key,), shape))
    for g, above in upstream:
        for key, named in factors:
            text = f"{named.text} times {above.text}"
            whole = _over(text, (key, g), reach, shape)
            yield Term(whole, 0.1 + named.cost / 2, _product((key, g), shape))
            for axis in (None, *range(len(shape))):
                over = "all axes" if axis is None else f"axis {axis}"
                yield Term(f"the sum of {text} over {over}", 0.2 + named.cost / 2, _summed((key, g), (), axis, shape))
                yield Term(f"the sum of {text} over {over}, times {named.text}", 0.3 + named.cost / 2,
                           _summed((key, g), (key,), axis, shape))  # fmt: skip
        for axis in (None, *range(len(shape))):
            over = "all axes" if axis is None else f"axis {axis}"
            yield Term(f"the sum of {above.text} over {over}", 0.1, _summed((g,), (), axis, shape))
            for key, named in factors:
                yield Term(f"the sum of {above.text} over {over}, times {named.text}", 0.2 + named.cost / 2,
                           _summed((g,), (key,), axis, shape))  # fmt: skip
        for (one, first), (two, second) in combinations_with_replacement(factors, 2):
            cost = 0.3 + (first.cost + second.cost) / 2
            text = f"{first.text} times {second.text} times {above.text}"
            yield Term(_over(text, (one, two, g), reach, shape), cost, _product((one, two, g), shape))
            for axis in range(len(shape)):
                for (inner, a), (outer, b) in (((one, first), (two, second)), ((two, second), (one, first))):
                    text = f"the sum of {a.text} times {above.text} over axis {axis}, times {b.text}"
                    yield Term(text, cost + 0.1, _summed((inner, g), (outer,), axis, shape))
    if len(shape) == 2:
        yield from _matrices(chosen[: MOST_FACTORS + 2], shape)


def _over(text: str, keys: tuple[str, ...], reach: Reach, shape: torch.Size) -> str:
    """A product in words, with the axes that it is summed over to have the shape of the gradient."""
    shapes = [reach.named[key].tensor.shape for key in keys]
    try:
        whole = torch.broadcast_shapes(*shapes)
    except RuntimeError:
        return text
    axes = [str(at) for at, size in enumerate(whole) if at < len(whole) - len(shape) or (
        size > 1 and shape[at - len(whole) + len(shape)] == 1)]  # fmt: skip
    over = f"axis {axes[0]}" if len(axes) == 1 else f"axes {', '.join(axes)}"
    return f"{text}, summed over {over}" if axes else text


def _matrices(chosen: Sequence[tuple[str, Named]], shape: torch.Size) -> Iterator[Term]:
    for one, first in chosen:
        for two, second in chosen:
            a, b = first.tensor, second.tensor
            if a.dim() != 2 or b.dim() != 2:
                continue
            for left, right in ((False, False), (True, False), (False, True)):
                x, y = (a.t() if left else a), (b.t() if right else b)
                if x.shape[1] == y.shape[0] and (x.shape[0], y.shape[1]) == tuple(shape):
                    text = f"{first.text}{' transposed' * left} @ {second.text}{' transposed' * right}"
                    yield Term(text, 0.2 + (first.cost + second.cost) / 2, _matmul(one, two, left, right))


def _matmul(one: str, two: str, left: bool, right: bool) -> Callable[[Reach], Tensor]:
    def make(reach: Reach) -> Tensor:
        a, b = reach.named[one].tensor, reach.named[two].tensor
        return (a.t() if left else a) @ (b.t() if right else b)

    return make


def _multiplied(reach: Reach, keys: tuple[str, ...]) -> Tensor:
    whole = reach.named[keys[0]].tensor
    for key in keys[1:]:
        other = reach.named[key].tensor
        large, small = (whole, other) if whole.dim() >= other.dim() else (other, whole)
        shape = fitted_shape(small.shape, large.shape)
        whole = large * (small if shape is None else small.reshape(shape))
    return whole


def _product(keys: tuple[str, ...], shape: torch.Size) -> Callable[[Reach], Tensor]:
    def make(reach: Reach) -> Tensor:
        tensors = [reach.named[key].tensor for key in keys]
        fitted = [fitted_shape(each.shape, shape) for each in tensors]
        if None in fitted:
            return _shaped(_multiplied(reach, keys), shape)
        whole = torch.ones((), dtype=tensors[0].dtype, device=tensors[0].device)
        for each, to in zip(tensors, fitted, strict=True):
            whole = whole * each.reshape(to or ())
        return _shaped(whole, shape)

    return make


def _summed(
    inner: tuple[str, ...], outer: tuple[str, ...], axis: int | None, shape: torch.Size
) -> Callable[[Reach], Tensor]:
    def make(reach: Reach) -> Tensor:
        whole = _multiplied(reach, inner)
        total = whole.sum() if axis is None else whole.sum(axis, keepdim=True)
        for key in outer:
            other = reach.named[key].tensor
            fitted = fitted_shape(other.shape, whole.shape)
            total = total * (other if fitted is None else other.reshape(fitted))
        return _shaped(total, shape)

    return make


def _shaped(whole: Tensor, shape: torch.Size) -> Tensor:
    if whole.shape == shape:
        return whole
    if whole.numel() < shape.numel():
        fitted = fitted_shape(whole.shape, shape)
        return (whole if fitted is None else whole.reshape(fitted)).expand(shape)
    return whole.sum_to_size(shape)
