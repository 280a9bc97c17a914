"""The pattern of a Jacobian: where it can differ from zero, and what its blocks are, whatever the numbers.

A Jacobian that is too large to write still has a shape to describe: that of a layer is the same weight once for each
sample, that of an elementwise function a diagonal. Nearly all of it follows from the axes. An entry can differ from
zero only where output and input element have the same place along every axis that both have, so these axes count the
blocks, and the other axes make one block's rows and columns. A rule names the axes, and the words follow here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

Shape = Sequence[int]
Axis = tuple[str, int]  # what it is called, its size: two axes are the same where both agree


@dataclass(frozen=True)
class Pattern:
    """What is known of a Jacobian of `shape` (outputs, inputs), in words that end before the block.

    `nonzero` entries can differ from zero, or where it is not `exact` at most so many. `block` is LaTeX of what each
    block equals, a template as in a rule ("" where the blocks differ). `mask` marks the entries that can differ from
    zero: for proofs, at small sizes. `carry(labels, into, out)` gives for each output element the largest label of the
    input elements that it can depend on; `into` and `out` are the shapes, and labels may be broadcast to theirs.
    """

    words: str
    shape: tuple[int, int]
    nonzero: int
    exact: bool = True
    block: str = ""
    mask: Callable[[], Tensor] | None = None
    carry: Callable[[Tensor, Shape, Shape], Tensor] | None = None

    def at_most(self) -> Pattern:
        """The same where more may be zero for a reason that the axes do not show."""
        return replace(self, exact=False)


def axes(shape: Sequence[int], own: Container[int] = (), mark: str = "") -> tuple[Axis, ...]:
    """The axes of a tensor, counted from 0; those in `own` are the tensor's own, distinguished by `mark`."""
    return tuple((f"{axis}{mark}" if axis in own else f"{axis}", size) for axis, size in enumerate(shape))


def letters(names: str, shape: Sequence[int]) -> tuple[Axis, ...]:
    """The axes of a tensor by the letters of Einstein's notation."""
    return tuple(zip(names, shape, strict=True))


def product(out: Iterable[Axis], into: Iterable[Axis], block: str = "") -> Pattern:
    """The pattern where output and input meet at equal places along the axes that both have."""
    out, into = ([axis for axis in each if axis[1] != 1] for each in (tuple(out), tuple(into)))
    shared = [axis for axis in into if axis in out]
    rows, columns, count = _size(out), _size(into), _size(shared)
    if not rows or not columns:
        return Pattern("empty", (rows, columns), 0, mask=lambda: torch.zeros(rows, columns, dtype=torch.bool))
    high, wide = rows // count, columns // count
    leading = out[: len(shared)] == into[: len(shared)] == shared
    return Pattern(
        _words(count, high, wide, leading, bool(block)),
        (rows, columns),
        count * high * wide,
        block=block,
        mask=lambda: _labels(out, shared)[:, None] == _labels(into, shared)[None],
        carry=lambda labels, own, made: _carry(labels, (own, into), (made, out), shared),
    )


def _carry(labels: Tensor, into: tuple[Shape, list[Axis]], out: tuple[Shape, list[Axis]], shared: list[Axis]) -> Tensor:
    labels = reshaped(labels, into[0], [size for _, size in into[1]])
    if mixed := [place for place, axis in enumerate(into[1]) if axis not in shared]:
        labels = labels.amax(mixed)
    labels = labels.permute([shared.index(axis) for axis in out[1] if axis in shared])
    for place, axis in enumerate(out[1]):
        labels = labels if axis in shared else labels.unsqueeze(place)
    return reshaped(labels, [size for _, size in out[1]], out[0])


def reshaped(labels: Tensor, before: Shape, after: Shape) -> Tensor:
    """Labels of a tensor in another shape; an axis along which they are all the same may have the size 1."""
    if [size for size in before if size != 1] != [size for size in after if size != 1]:
        return compact(labels.expand(tuple(before)).reshape(tuple(after)))
    for axis in reversed(range(len(before))):
        labels = labels.squeeze(axis) if before[axis] == 1 else labels
    for axis, size in enumerate(after):
        labels = labels.unsqueeze(axis) if size == 1 else labels
    return labels


def compact(labels: Tensor) -> Tensor:
    """The same labels, with the size 1 for each axis along which they are all the same."""
    for axis, (size, stride) in enumerate(zip(labels.shape, labels.stride(), strict=True)):
        first = labels.narrow(axis, 0, min(size, 1))
        if size > 1 and (stride == 0 or torch.equal(first.expand_as(labels), labels)):
            labels = first
    return labels


def laid(values: Tensor, axis: int | None, rank: int) -> Tensor:
    """Values along one axis of so many; of no axis where there is one value alone."""
    return values.reshape([-1 if each == axis else 1 for each in range(rank)])


def _size(found: Iterable[Axis]) -> int:
    return math.prod(size for _, size in found)


def _words(count: int, high: int, wide: int, leading: bool, equal: bool) -> str:
    if count == 1:
        return "one block:" if equal else "dense"
    if high == wide == 1 and not equal:
        return "diagonal" if leading else "a permuted diagonal"
    many = f"{count:,} copies of" if equal else f"{count:,} blocks of {high:,} x {wide:,}"
    return f"block-diagonal, {many}" if leading else f"block-diagonal but for the order of rows and columns, {many}"


def _labels(found: Sequence[Axis], shared: Iterable[Axis]) -> Tensor:
    """Of each element, row by row, which block it is in."""
    label = torch.zeros([size for _, size in found], dtype=torch.long)
    for axis in shared:
        label = label * axis[1] + laid(torch.arange(axis[1]), found.index(axis), len(found))
    return label.reshape(-1)


def aligned(out: Sequence[int], operand: Sequence[int]) -> Pattern:
    """Elementwise: each output element and the one element of the operand that broadcasting put there."""
    named = axes(out)
    return product(
        named, [axis for axis, size in zip(named[len(out) - len(operand) :], operand, strict=True) if size != 1]
    )


def triangular(shape: Sequence[int], dim: int) -> Pattern:
    """Along `dim` each output element is made of the input elements up to its own place."""
    dim = dim % max(len(shape), 1)
    whole = product(axes(shape, (dim,), "out"), axes(shape, (dim,), "in"))
    size = shape[dim] if shape else 1
    place = laid(torch.arange(size), dim, len(shape)).expand(tuple(shape))

    def mask() -> Tensor:
        assert whole.mask is not None
        return whole.mask() & (place.reshape(-1)[:, None] >= place.reshape(-1)[None])

    blocks = whole.nonzero // (size * size) if size else 0
    return replace(
        whole,
        words=f"{whole.words}, lower-triangular",
        nonzero=blocks * size * (size + 1) // 2,
        mask=mask,
        carry=lambda labels, into, out: labels.cummax(dim).values if shape else labels,
    )


def copied(out: int, into: int, origins: Callable[[], Tensor] | None = None, filled: bool = False) -> Pattern:
    """A selection: each output element is a copy of one input element, or where it is `filled` perhaps of none.

    `origins` gives the flat place that each output element came from, counted from 1 (0: from none).
    """

    def mask() -> Tensor:
        assert origins is not None
        return origins().reshape(-1, 1) == torch.arange(1, into + 1)

    words = "a selection, one-hot rows: " + ("at most one 1 in each row" if filled else "a single 1 in each row")
    return Pattern(words, (out, into), out, not filled, mask=None if origins is None else mask)


def permuted(size: int) -> Pattern:
    """Each output element is a copy of one input element, and each input element is copied once."""
    return Pattern("a permutation: a single 1 in each row and in each column", (size, size), size)


def identity(size: int) -> Pattern:
    """Row by row, the output is the input."""
    return Pattern("the identity", (size, size), size, mask=lambda: torch.eye(size, dtype=torch.bool))


def real(*tensors: Any) -> bool:
    """Whether the tensors are real: of complex ones a Jacobian of numbers is not the whole derivative."""
    return all(isinstance(each, Tensor) and not each.is_complex() for each in tensors)
