"""Rules of operations that join tensors, or cut one into parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from chainrule.rules import Factor, Index, Rule, rule, sample
from chainrule.rules.index_notation import Side, Statements, Term, letters, runs
from chainrule.rules.pattern import Pattern, copied, real
from chainrule.rules.shape import COPIES, FILLED, inserted, labels, replaced, x

Pieces = Sequence[Tensor]
Placed = Callable[[Any, list[str], int], list[str]]


def joins(
    node: str,
    *,
    place: Placed,
    join: Callable[[Any, Pieces], Tensor],
    cut: Callable[[Any, Tensor], Pieces],
    zeros: str = COPIES,
    **more: Any,
) -> Rule:
    """Register an operation that joins a list of tensors; `cut` takes a tensor of the output's shape apart again.

    `place(op, at, item)` are the indices of the place to which the element `at` of one of them comes.
    """

    def terms(op: Any) -> list[Term]:
        found = []
        for item, each in enumerate(op.tensors):
            at = letters(each)
            out, into = Side("out", op.out.shape, place(op, at, item)), Side(f"tensors{item}", each.shape, at)
            found.append(Term(out, into, runs(at, each.shape), once=True))
        return found

    def home(op: Any, g: Tensor) -> list[Tensor]:
        return [piece.reshape(each.shape) for piece, each in zip(cut(op, g), op.tensors, strict=True)]

    def factor(op: Any, out_index: Index, in_index: Index) -> Factor | None:
        """`in_index` begins with the place in the list; that tensor's elements are counted, all others are 0."""
        item, *at = in_index
        marked = [labels(each) * (position == item) for position, each in enumerate(op.tensors)]
        came_from = join(op, marked)[out_index]
        return Factor(latex="1") if came_from == marked[item][tuple(at)] else None

    said = Statements(terms, added=zeros is FILLED)
    wrt = {"tensors": said.wrt("tensors", home, zeros, factor)}
    return rule(node, equation=said.equation, wrt=wrt, structure="linear", **more)


def _widths(op: Any) -> list[int]:
    """torch.cat lets an empty vector stand among tensors of any shape; it takes no room."""
    return [0 if each.shape == (0,) else each.shape[op.dim] for each in op.tensors]


def _in_row(op: Any, at: list[str], item: int) -> list[str]:
    """Behind the tensors before, along `dim`."""
    dim, rank = op.dim % op.out.dim(), op.out.dim()
    at = at if len(at) == rank else ["0"] * dim + at + ["0"] * (rank - 1 - dim)
    return replaced(at, {dim: f"{sum(_widths(op)[:item])} + {at[dim]}"})


cat = joins(
    "CatBackward0",
    place=_in_row,
    join=lambda op, pieces: torch.cat(list(pieces), op.dim),
    cut=lambda op, g: g.split(_widths(op), op.dim),
    samples=lambda: [
        sample(lambda a, b: torch.cat([a, b]), x(2, 3), x(1, 3)),
        sample(lambda a, b: torch.cat([a, b], -1), x(2, 3), x(2, 1)),
        sample(lambda a, b: torch.cat([a, b]), x(0), x(2, 3), note="an empty vector among matrices"),
        sample(lambda a: torch.cat([a, a]), x(2), note="one tensor twice"),
    ],
)

stack = joins(
    "StackBackward0",
    place=lambda op, at, item: inserted(at, op.dim % op.out.dim(), item),
    join=lambda op, pieces: torch.stack(list(pieces), op.dim),
    cut=lambda op, g: g.unbind(op.dim),
    samples=lambda: [
        sample(lambda a, b: torch.stack([a, b]), x(2, 3), x(2, 3)),
        sample(lambda a, b: torch.stack([a, b], -1), x(2), x(2)),
        sample(lambda a: torch.stack([a]), x(), note="0-dim"),
    ],
)


def _corners(op: Any) -> list[tuple[int, int, int, int]]:
    """First row, first column, height and width of each block."""
    corners, row, column = [], 0, 0
    for height, width in (torch.atleast_2d(each).shape for each in op.tensors):
        corners.append((row, column, height, width))
        row, column = row + height, column + width
    return corners


block_diag = joins(
    "BlockDiagBackward0",
    place=lambda op, at, item: [
        f"{start} + {place}" if place else f"{start}"
        for place, start in zip(["", "", *at][-2:], _corners(op)[item][:2], strict=True)
    ],
    join=lambda op, pieces: torch.block_diag(*pieces),
    cut=lambda op, g: [g[row : row + high, column : column + wide] for row, column, high, wide in _corners(op)],
    zeros=FILLED,
    samples=lambda: [sample(torch.block_diag, x(2, 3), x(2), x(), note="a matrix, a vector and a number")],
)


def cuts(*nodes: str, came: Placed, join: Callable[[Any, Pieces], Tensor], **more: Any) -> Rule:
    """Register an operation that cuts `self` into parts; `join` puts them together again, zeros where none came.

    `came(op, at, slot)` are the indices of the element that came to the place `at` of one of the parts.
    """

    def terms(op: Any) -> list[Term]:
        found = []
        for slot, each in enumerate(op.outs):
            at = letters(each)
            out, into = Side(f"out{slot}", each.shape, at), Side("self", op.self.shape, came(op, at, slot))
            found.append(Term(out, into, runs(at, each.shape)))
        return found

    def home(op: Any, gs: tuple[Tensor | None, ...]) -> Tensor:
        return join(op, [torch.zeros_like(out) if g is None else g for out, g in zip(op.outs, gs, strict=False)])

    def pattern(op: Any) -> Pattern | None:
        return copied(op.out.numel(), op.self.numel()) if real(op.out, op.self) else None

    said = Statements(terms)
    wrt = {"self": said.wrt("self", home, COPIES, None, pattern)}
    return rule(*nodes, equation=said.equation, wrt=wrt, structure="linear", outputs=2, **more)


split = cuts(
    "SplitBackward0",
    "SplitWithSizesBackward0",
    "UnsafeSplitBackward0",
    "UnsafeSplitWithSizesBackward0",
    came=lambda op, at, slot: replaced(
        at, {op.dim % len(at): f"{sum(out.shape[op.dim] for out in op.outs[:slot])} + {at[op.dim]}"}
    ),
    join=lambda op, pieces: torch.cat(list(pieces), op.dim),
    samples=lambda: [
        sample(torch.split, x(5, 2), 2),
        sample(torch.split, x(2, 5), [1, 4], 1),
        sample(torch.chunk, x(2, 5), 2, -1),
        sample(torch.split, x(2, 2), 3, note="one part"),
    ],
    source="derivatives.yaml: split.Tensor, split_with_sizes",
)

unbind = cuts(
    "UnbindBackward0",
    came=lambda op, at, slot: inserted(at, op.dim % op.self.dim(), slot),
    join=lambda op, pieces: torch.stack(list(pieces), op.dim),
    samples=lambda: [sample(torch.unbind, x(2, 3)), sample(torch.unbind, x(2, 1), -1)],
    source="derivatives.yaml: unbind.int",
)
