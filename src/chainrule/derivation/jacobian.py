"""The Jacobian of one operation, from its rule alone: whole, by rows, and which of its entries are zero by chance.

A rule's vector-Jacobian product is linear in the upstream gradient, so row i is what comes back where 1 arrives at
element i of the output, and 0 at the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import product
from math import prod
from typing import Any

import torch
from torch import Tensor

from chainrule.derivation.backprop import Contribution
from chainrule.graph.comparison import compare, dense, rounding
from chainrule.graph.names import Index
from chainrule.rules import Applied, Rule, reduce_to_shape
from chainrule.rules.element import broadcast_index

SMALL = 2_048  # entries of a Jacobian up to which it is worked out once, and kept

Number = float | complex


def jacobian(
    rule: Rule,
    op: Applied,
    contribution: Contribution,
    shape: torch.Size,
    output: Tensor,
    upstream: tuple[Tensor | None, ...],
) -> Tensor | None:
    """The matrix that the flattened upstream gradient is multiplied by: (elements of the output, those of an input).

    It is the Jacobian of the row-major flattened tensors, and with a complex output its conjugate: see `slopes`.
    """
    assert contribution.gradient is not None
    slot = next(i for i, g in enumerate(upstream) if g is not None)
    known = op.once(small_jacobian, rule, contribution.argument, contribution.item, slot, tuple(shape))
    if known is not None:
        return known.to(contribution.gradient.dtype)
    seeds: list[Tensor | None] = [None] * max(len(upstream), rule.outputs)
    like = torch.zeros((), dtype=contribution.gradient.dtype)
    rows = []
    for at in indices(output.shape):

        def pull(seed: Tensor) -> Tensor:
            seeds[slot] = seed
            row = pulled(rule, op, tuple(seeds), contribution.argument, contribution.item, tuple(shape))
            return like.expand(shape) if row is None else row

        row = slopes(pull, unit_at(output, at), like.is_complex())
        if row is None:
            return None
        rows.append(row.reshape(-1))
    whole = torch.stack(rows)
    return whole if whole.is_complex() else whole.to(like.dtype)


def small_jacobian(op: Applied, rule: Rule, argument: str, item: int | None, slot: int, shape: Index) -> Tensor | None:
    """A small Jacobian of real tensors, as `jacobian` gives it; None of any other, and where a row is not known.

    Each output element of an elementwise operation has one slope, so all of them come from one product.
    """
    out = op.outs[slot] if slot < len(op.outs) else None
    if not isinstance(out, Tensor) or out.layout != torch.strided or not out.is_floating_point():
        return None
    if not 0 < out.numel() * prod(shape) <= SMALL:
        return None
    seeds: list[Tensor | None] = [None] * max(len(op.outs), rule.outputs)

    def row(seed: Tensor) -> Tensor | None:
        seeds[slot] = seed
        found = pulled(rule, op, tuple(seeds), argument, item, shape)
        return None if found is None or found.is_complex() else dense(found).reshape(-1)

    if rule.structure == "elementwise" and item is None and tuple(out.shape) == shape:
        slope = row(torch.ones_like(out))
        if slope is not None and bool(slope.isfinite().all()):
            return torch.diag(slope)
    rows = []
    for at in indices(out.shape):
        if (found := row(unit_at(out, at))) is None:
            return None
        rows.append(found)
    return torch.stack(rows)


def slopes(pull: Callable[[Tensor], Tensor], unit: Tensor, of_complex: bool) -> Tensor | None:
    """What a VJP multiplies an upstream gradient by: the derivative, and with a complex output its conjugate.

    A real operand (not `of_complex`) gets the real part of that product. None where the operation is not holomorphic:
    then the VJP takes the conjugate of the upstream gradient too, and no one number is the factor.
    """
    ones = pull(unit)
    if not unit.is_complex():
        return ones
    turned = pull(1j * unit)
    if not of_complex:
        return torch.complex(ones.real, 0 - turned.real)
    return ones if compare(turned, 1j * ones, ones.abs(), eps=rounding(ones.dtype)).agrees else None


def pulled(
    rule: Rule, op: Applied, upstream: tuple[Tensor | None, ...], argument: str, item: int | None, shape: Index
) -> Tensor | None:
    """A rule's vector-Jacobian product for one argument, in the argument's own shape."""
    gradient = rule.gradient(op, upstream, argument)
    if item is not None and gradient is not None:
        gradient = gradient[item]
    return None if gradient is None else reduce_to_shape(gradient, shape)[0]


def unit_at(like: Tensor, at: Index) -> Tensor:
    """A basis vector: zeros with a 1 at one place."""
    unit = torch.zeros_like(like)
    unit[at] = 1
    return unit


def zeros_by_value(
    rule: Rule, op: Applied, contribution: Contribution, full: Tensor, output: torch.Size, shape: torch.Size
) -> Iterator[tuple[Index, Index]]:
    """The entries that are zero because of the numbers, though the structure allows others: (output, input) indices."""
    factor = rule.wrt[contribution.argument].factor
    if factor is None:
        return
    rows, columns, zero = list(indices(output)), list(indices(shape)), full == 0
    if rule.structure == "elementwise":  # an output element depends on one element
        place = {j: column for column, j in enumerate(columns)}
        own = [place[broadcast_index(i, tuple(shape))] for i in rows]
        places = [(row, column) for row, column in enumerate(own) if bool(zero[row, column])]
    else:
        places = zero.nonzero().tolist()
    for row, column in places:
        i, j = rows[row], columns[column]
        if factor(op, i, j if contribution.item is None else (contribution.item, *j)) is not None:
            yield i, j


def row_of(rule: Rule, op: Applied, argument: str, slot: int, index: Index) -> Iterator[tuple[Index, Number]]:
    """One row of the Jacobian, without the entries that are zero by structure: (index in the argument, entry).

    The index in an argument that is a list of tensors begins with the place in the list.
    """
    gradient, operand = _row(rule, op, argument, slot, index), op.arguments[argument]
    if isinstance(gradient, Tensor) and op.outs[slot].is_complex() and not gradient.is_complex():
        # A real operand's gradient is a real part: ask for the other.
        gradient = torch.complex(gradient, _row(rule, op, argument, slot, index, 1j)).conj()
    parts: list[tuple[Index, Any, Any]] = [((), operand, gradient)]
    if isinstance(operand, list):
        parts = [((item,), *pair) for item, pair in enumerate(zip(operand, gradient or (), strict=False))]
    for lead, each, slope in parts:
        if not isinstance(each, Tensor) or slope is None:
            continue
        row, factor = reduce_to_shape(slope, tuple(each.shape))[0], rule.wrt[argument].factor
        if factor is None or rule.outputs > 1 or rule.structure == "linear":  # a constant rate is not 0 by chance
            places = [tuple(at) for at in row.nonzero().tolist()]
        else:
            locals_ = zip(indices(row.shape), row.flatten().tolist(), strict=True)
            places = [at for at, local in locals_ if local or factor(op, index, (*lead, *at)) is not None]
        for at in places:
            local = row[at].item()
            yield (*lead, *at), local.conjugate() if isinstance(local, complex) else local


def _row(rule: Rule, op: Applied, argument: str, slot: int, index: Index, size: Number = 1) -> Any:
    """What a rule sends to an argument where `size` arrives at one element of an output, and 0 at the others."""
    out, operand = op.outs[slot], op.arguments[argument]
    if isinstance(operand, Tensor) and operand.layout == torch.strided and size == 1:
        full = op.once(small_jacobian, rule, argument, None, slot, tuple(operand.shape))
        if full is not None:
            return full[flat_place(index, tuple(out.shape))].reshape(operand.shape)
    seeds: list[Tensor | None] = [None] * max(len(op.outs), rule.outputs)
    seeds[slot] = size * unit_at(out, index)
    return rule.gradient(op, tuple(seeds), argument)


def flat_place(index: Index, shape: Index) -> int:
    """The place of an element in a row of all of them."""
    place = 0
    for i, size in zip(index, shape, strict=True):
        place = place * size + i
    return place


def indices(shape: Sequence[int]) -> Iterator[Index]:
    """Every index of a shape in row-major order."""
    return product(*(range(size) for size in shape))
