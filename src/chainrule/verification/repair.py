"""Diagnoses a wrong backward of the user: each attempt undoes one kind of mistake, until the gradient agrees.

A mistake is named only if the repaired gradient agrees with the differences at the recorded point, with another
upstream gradient, and at a point nearby. Simple mistakes are tried first. If nothing agrees, the mistake is not
recognised.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import combinations_with_replacement, product

import torch
from torch import Tensor

from chainrule.execution.experiment import FINEST, Experiment
from chainrule.execution.function_trace import LARGEST, FunctionTrace, traces
from chainrule.graph.comparison import compare
from chainrule.verification.circumstances import Circumstance
from chainrule.verification.differences import ArgumentCheck
from chainrule.verification.repair_attempts import (
    Found,
    Mended,
    Mistake,
    anew,
    edited,
    fit,
    flat,
    moved,
    padded,
    readable,
    same,
    scaled,
    summed,
    swapped,
)


@dataclass(frozen=True, slots=True)
class Repair:
    """What is wrong with the gradient of one argument, in words, found by repairing it."""

    kind: Mistake | Circumstance
    argument: str
    text: str


def recognise(experiment: Experiment, findings: list[ArgumentCheck]) -> tuple[Repair, ...]:
    """For each argument whose gradient is wrong, what is wrong with it."""
    wrong = [finding for finding in findings if finding.off and not finding.missing]
    edges = [finding.edge for finding in findings if not finding.missing and finding.edge.argument is not None]
    if not wrong:
        return ()
    points: list[FunctionTrace] = []
    if all(finding.got.numel() <= LARGEST for finding in wrong):
        try:
            points = list(traces(experiment, edges))
        except Exception:  # a user's code may do anything when it runs again
            points = []
    return tuple(_recognised(points, finding) for finding in wrong)


def _recognised(points: list[FunctionTrace], finding: ArgumentCheck) -> Repair:
    if points:
        for attempt in _ATTEMPTS:
            try:
                found = next(attempt(points, finding), None)
            except Exception:  # an attempt that cannot be made is none
                continue
            if found is not None:
                return Repair(found[0], finding.label, found[1])
    return Repair(
        "not recognised", finding.label, f"what is wrong with the gradient of `{finding.label}` was not recognised"
    )


# -- terms that are missing -------------------------------------------------------------------------------------------


def missing_use(points: list[FunctionTrace], finding: ArgumentCheck) -> Iterator[Found]:
    """Backward forgets one use of a tensor in the forward pass."""
    position, point = finding.edge.position, points[0]
    if not _forward_agrees(points, position):
        return
    for cut, name in enumerate(point.uses[:64]):
        if all(_same(each.without_use(cut)[position], each.got[position]) for each in points):
            yield (
                "missing term",
                f"a term is missing in the gradient of `{finding.label}`: the one that comes back through `{name}` of "
                "the forward; with it, it agrees",
            )


def _forward_agrees(points: list[FunctionTrace], position: int) -> bool:
    """Whether autograd's gradient of the forward's own steps agrees with the differences."""
    wholes = [each.without_use(None)[position] for each in points]
    return all(whole is not None and each.agrees(position, whole) for each, whole in zip(points, wholes, strict=True))


def missing_others(points: list[FunctionTrace], finding: ArgumentCheck) -> Iterator[Found]:
    """Backward uses the diagonal of the Jacobian alone, as if a softmax were elementwise."""
    position = finding.edge.position
    if _forward_agrees(points, position) and all(
        _same(each.along_the_diagonal(position), each.got[position]) for each in points
    ):
        yield (
            "missing term",
            f"the gradient of `{finding.label}` is made of the diagonal of the Jacobian alone: it lets each element of "
            "the output depend on the same element of the input, and the terms of all others are missing",
        )


def _same(left: Tensor | None, right: Tensor) -> bool:
    if left is None or not right.any():
        return False
    return compare(left, right, eps=FINEST).agrees


def missing_product(points: list[FunctionTrace], finding: ArgumentCheck) -> Iterator[Found]:
    """A term is missing or too much: a multiple of a product of tensors that the backward reads."""
    position, name = finding.edge.position, f"the gradient of `{finding.label}`"
    for called, term in _terms(points[0], points[0].got[position].shape):
        try:
            factor = fit(points, position, lambda point: point.got[position], term)
        except Exception:  # shapes that do not fit
            continue
        if factor is not None:
            times = "" if same(factor, 1) else "minus " if same(factor, -1) else f"{factor:.6g} times "
            yield "missing term", f"a term is missing in {name}: with {times}{called} added it agrees"


def _terms(point: FunctionTrace, shape: torch.Size) -> Iterator[tuple[str, Mended]]:
    """Products of the upstream gradient with up to two tensors, with and without a sum along an axis, in this shape."""
    tensors = dict(readable(point))
    upstream = [(name, (take,)) for name, take in tensors.items() if "upstream" in name][:1]
    factors = [(name, take) for name, take in tensors.items() if "upstream" not in name][:24]
    for name, take in tensors.items():
        yield name, partial(_product, (take,), shape)
    products = upstream + [(f"{name} times {g}", (take, *gs)) for name, take in factors for g, gs in upstream]
    for text, parts in products[1:]:
        yield text, partial(_product, parts, shape)
    for (one, first), (two, second) in combinations_with_replacement(factors, 2):
        for g, gs in upstream:
            yield f"{one} times {two} times {g}", partial(_product, (first, second, *gs), shape)
    outside: list[tuple[str, tuple[Mended, ...]]] = [
        ("", ()),
        *((f", times {name}", (take,)) for name, take in factors),
    ]
    for (inner, parts), (outer, taken) in product(products, outside):
        for axis in (None, *range(len(shape))):
            along = "all axes" if axis is None else f"axis {axis}"
            yield f"the sum of {inner} over {along}{outer}", partial(_sum_times, parts, taken, axis, shape)


def _product(parts: tuple[Mended, ...], shape: torch.Size, point: FunctionTrace) -> Tensor:
    whole = parts[0](point)
    for take in parts[1:]:
        whole = whole * take(point)
    return whole if whole.shape == shape else whole.sum_to_size(shape)


def _sum_times(
    parts: tuple[Mended, ...], taken: tuple[Mended, ...], axis: int | None, shape: torch.Size, point: FunctionTrace
) -> Tensor:
    inner = parts[0](point)
    for take in parts[1:]:
        inner = inner * take(point)
    total = inner.sum() if axis is None else inner.sum(axis, keepdim=True)
    for take in taken:
        total = total * take(point)
    return total.expand(shape) if total.numel() < shape.numel() else total.sum_to_size(shape)


_ATTEMPTS = (
    anew, flat, scaled, swapped, moved, summed, edited, missing_use, missing_others, missing_product, padded
)  # fmt: skip
