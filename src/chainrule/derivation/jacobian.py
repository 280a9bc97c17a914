"""Jacobians entry by entry, from the vector-Jacobian product of a rule: one basis vector gives one row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product

import torch
from torch import Tensor

from chainrule.derivation.backprop import Contribution
from chainrule.rules import Applied, Rule, broadcast_index, reduce_to_shape

Index = tuple[int, ...]


def jacobian(
    rule: Rule,
    op: Applied,
    contribution: Contribution,
    shape: torch.Size,
    output: Tensor,
    upstream: tuple[Tensor | None, ...],
) -> Tensor:
    """The Jacobian of the row-major flattened tensors: (elements of the output, elements of an input of this shape)."""
    slot = next(i for i, g in enumerate(upstream) if g is not None)
    rows = []
    for i in range(output.numel()):
        basis = torch.zeros(output.numel(), dtype=output.dtype, device=output.device)
        basis[i] = 1
        seeds: list[Tensor | None] = [None] * max(len(upstream), rule.outputs)
        seeds[slot] = basis.reshape(output.shape)
        row = rule.gradient(op, tuple(seeds), contribution.argument)
        row = row[contribution.item] if contribution.item is not None and row is not None else row
        rows.append(torch.zeros(shape) if row is None else reduce_to_shape(row, tuple(shape))[0])
    assert contribution.gradient is not None
    return torch.stack([row.reshape(-1).to(contribution.gradient.dtype) for row in rows])


def zeros_by_value(
    rule: Rule, op: Applied, contribution: Contribution, full: Tensor, output: torch.Size, shape: torch.Size
) -> Iterator[tuple[Index, Index]]:
    """The entries that are zero because of the numbers, though the structure allows others: (output, input) indices."""
    factor = rule.wrt[contribution.argument].factor
    for row, i in enumerate(indices(output)):
        for column, j in enumerate(indices(shape)):
            if full[row, column] != 0 or factor is None:
                continue
            if rule.structure == "elementwise" and broadcast_index(i, tuple(shape)) != j:
                continue
            if factor(op, i, j if contribution.item is None else (contribution.item, *j)) is not None:
                yield i, j


def row_of(rule: Rule, op: Applied, argument: str, index: Index, output: Tensor) -> Iterator[tuple[Index, float]]:
    """One row of the Jacobian, without the entries that are zero by structure: (index in the input, entry)."""
    basis = torch.zeros_like(output)
    basis[index] = 1
    operand = op.arguments[argument]
    if not isinstance(operand, Tensor) or not operand.is_floating_point():
        return
    gradient = rule.gradient(op, (basis,) + (None,) * (rule.outputs - 1), argument)
    if gradient is None or gradient.shape != operand.shape:
        if gradient is not None and rule.structure == "elementwise":
            yield broadcast_index(index, tuple(operand.shape)), gradient[index].item()
        return
    factor = rule.wrt[argument].factor
    for at in indices(operand.shape):
        local = gradient[at].item()
        allowed = factor is not None and (
            at == index if rule.structure == "elementwise" else factor(op, index, at) is not None
        )
        if local or allowed:
            yield at, local


def indices(shape: Sequence[int]) -> Iterator[Index]:
    """Every index of a shape in row-major order."""
    return product(*(range(size) for size in shape))
