"""Rules of operations that only move elements: reshape, pick, repeat, mirror, pad.

Each output element is a copy of one input element (or a constant), so the Jacobian has a single 1 in each row, and
going back means: send every upstream element home to the place it was copied from, and add where several come home.
A rule says how the operation moves a tensor, and once more in indices. The numbers follow from the one, the formulas
from the other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn import functional as F

from chainrule.rules import Applied, Factor, Index, Latex, Rule, number, rule, sample
from chainrule.rules import at as element
from chainrule.rules.index_notation import (
    AND,
    Side,
    Statements,
    Term,
    affine,
    digits,
    letters,
    places,
    position,
    row_major,
    runs,
    where,
)
from chainrule.rules.pattern import Pattern, copied, identity, laid, permuted, real

Move = Callable[[Any, Tensor], Tensor]
Came = Callable[[Any, list[str]], list[str]]

COPIES = "each output element is a copy of one input element alone, so every row of the Jacobian has a single 1"
FILLED = "each output element is a copy of one input element, or a constant: a row of the Jacobian has at most one 1"


def x(*shape: int, dtype: torch.dtype | None = None) -> Tensor:
    """A sample input that wants a gradient: 1, 2, 3, ... in the given shape."""
    count = torch.Size(shape).numel()
    return (torch.arange(count, dtype=torch.get_default_dtype()) + 1).to(dtype).reshape(shape).requires_grad_()


def moves(
    *nodes: str,
    move: Move,
    came: Came = lambda op, at: at,
    only: Callable[[Any, list[str]], str] | None = None,
    home: Move | None = None,
    term: Callable[[Any], Term | None] = lambda op: None,
    zeros: str = COPIES,
    repeats: bool = False,
    fill: str = "0",
    index: Iterable[str] = (),
    equation: Latex = "",
    local: Latex = "",
    product: Latex = "",
    **more: Any,
) -> Rule:
    """Register an operation that moves the elements of `self`; `move(op, tensor)` moves those of another tensor alike.

    `came(op, at)` are the indices of the element that is copied to the place `at`, where the condition `only` holds;
    `fill` is put elsewhere. `repeats` says that an element may be copied to several places. `home(op, g)` is a faster
    way back than adding every upstream element to the place it came from. The arguments in `index` say where to.
    Calls for which there is a `term` have that statement, and a formula that is given stands in place of what follows.
    """

    def terms(op: Any) -> list[Term]:
        at, size = places(op.out.shape), op.out.shape
        return [
            term(op)
            or Term(
                Side("out", size, at),
                Side("self", op.self.shape, came(op, at)),
                runs(at, size),
                [only(op, at)] if only else (),
                once=not repeats,
                fill=fill,
            )
        ]

    def pattern(op: Any) -> Pattern | None:
        """A selection; where nothing is left out, repeated or filled in, a permutation, or the identity in order."""
        if not real(op.self, op.out):
            return None
        out, into = op.out.numel(), op.self.numel()
        if home is _reshape_home:
            return identity(out)
        if out == into and zeros is COPIES and not repeats:
            return permuted(out)
        return copied(out, into, lambda: _origins(move, op), filled=zeros is not COPIES)

    def factor(op: Any, out_index: Index, in_index: Index) -> Factor | None:
        """1 where the output element came from that input element, else structurally zero."""
        if op not in _found:
            _found[op] = _origins(move, op)
        return Factor(latex="1") if _found[op][out_index] == labels(op.self)[in_index] else None

    def add_up(op: Any, g: Tensor) -> Tensor:
        gradient = g.new_zeros(op.self.numel() + 1).index_add(0, _origins(move, op).reshape(-1), g.reshape(-1))
        return gradient[1:].reshape(op.self.shape)

    said = Statements(terms)
    wrt = said.wrt("self", home or add_up, zeros, factor, pattern)
    wrt = replace(wrt, local=local or wrt.local, product=product or wrt.product)
    constants = dict.fromkeys(index, "not differentiable")
    return rule(
        *nodes, equation=equation or said.equation, wrt={"self": wrt}, constants=constants, structure="linear", **more
    )


def by_strides(move: Move) -> dict[str, Any]:
    """A view and its map of indices, both from how it moves along memory: the strides say where each element was."""

    def came(op: Any, at: list[str]) -> list[str]:
        whole = torch.empty(op.self.shape, device="meta")
        view = move(op, whole)
        start, steps, origin = view.storage_offset(), list(view.stride()), []
        for size, step in zip(whole.shape, whole.stride(), strict=True):
            if size == 1:
                origin.append("0")
                continue
            origin.append(affine(position(at, [each // step for each in steps]), 1, start // step))
            start, steps = start % step, [each % step for each in steps]
        return origin

    return {"move": move, "came": came}


def views(node: str, *others: str, move: Move, home: Move | None = None, **more: Any) -> Rule:
    """Register a view (and the operation that copies where it makes one): the way back writes g through the view."""

    def through(op: Any, g: Tensor) -> Tensor:
        page = g.new_zeros(op.self.shape)
        move(op, page).copy_(g)
        return page

    return moves(node, *others, f"{node}_copy", home=home or through, **{**by_strides(move), **more})


def labels(t: Tensor) -> Tensor:
    """The place of every element, counted from 1, as 0 is what an operation fills in."""
    return torch.arange(1, t.numel() + 1, device=t.device).reshape(t.shape)


def _origins(move: Move, op: Any) -> Tensor:
    """For each output element the label of the input element that it is a copy of; 0 for a constant."""
    try:
        return move(op, labels(op.self))
    except RuntimeError:  # not every operation takes integers
        return move(op, labels(op.self).double()).long()


_found: WeakKeyDictionary[Applied, Tensor] = WeakKeyDictionary()  # a reader asks for many entries of one Jacobian


def _reshape_home(op: Any, g: Tensor) -> Tensor:
    return g.reshape(op.self.shape)


def _regrouped(op: Any, at: list[str]) -> list[str]:
    """Where an element of a reshaped tensor was: runs of axes with the same number of elements keep to themselves."""
    into, out = op.self.shape, op.out.shape
    origin, a, b = [], 0, 0
    while a < len(into):
        if into[a] == 1 or not op.out.numel():
            origin.append("0")
            a += 1
            continue
        while out[b] == 1:
            b += 1
        c, d = a + 1, b + 1
        while (mine := math.prod(into[a:c])) != (theirs := math.prod(out[b:d])):
            c, d = (c + 1, d) if mine < theirs else (c, d + 1)
        origin += digits(position(at[b:d], row_major(out[b:d])), into[a:c])
        a, b = c, d
    return origin


def replaced(places: list[str], new: dict[int, str]) -> list[str]:
    """Indices with some of them replaced, by axis."""
    return [new.get(axis, place) for axis, place in enumerate(places)]


# Turned and reshaped ---------------------------------------------------------------------------------------------

t = views(
    "TBackward0",
    move=lambda op, v: v.t(),
    home=lambda op, g: g.t(),
    samples=lambda: [
        sample(torch.t, x(2, 3)),
        sample(torch.t, x(3), note="a vector stays as it is"),
        sample(torch.t, x(0, 2), note="empty"),
    ],
)

transpose = views(
    "TransposeBackward0",
    move=lambda op, v: v.transpose(op.dim0, op.dim1),
    home=lambda op, g: g.transpose(op.dim0, op.dim1),
    samples=lambda: [sample(torch.transpose, x(2, 3, 4), 0, -1), sample(torch.swapaxes, x(1, 3), 0, 1)],
    source="derivatives.yaml: transpose.int. Exchanging two axes twice changes nothing.",
)


permute = views(
    "PermuteBackward0",
    move=lambda op, v: v.permute(op.dims),
    home=lambda op, g: g.movedim(tuple(range(g.dim())), tuple(op.dims)),
    samples=lambda: [
        sample(torch.permute, x(2, 3, 4), (2, 0, 1)),
        sample(torch.permute, x(2, 3, 4), (-1, 0, -2)),
        sample(torch.movedim, x(2, 3, 1), 0, 2),
        sample(torch.permute, x(), (), note="0-dim"),
    ],
    source="derivatives.yaml: permute. The inverse permutation brings every axis home.",
)

view = views(
    "ViewBackward0",
    "UnsafeViewBackward0",
    "ReshapeAliasBackward0",
    "ReshapeCopyBackward0",
    came=_regrouped,
    move=lambda op, v: v.reshape(op.out.shape),
    home=_reshape_home,
    samples=lambda: [
        sample(torch.Tensor.view, x(2, 3), 3, 2),
        sample(torch.flatten, x(2, 3, 2), 1),
        sample(torch.reshape, x(3, 2), (-1, 1)),
        sample(lambda a: a.t().reshape(-1), x(2, 3), note="reshape that copies"),
        sample(torch.Tensor.view, x(), 1, note="0-dim"),
        sample(torch.Tensor.view, x(0, 3), 3, 0, note="empty"),
    ],
    source="derivatives.yaml: view, _unsafe_view, _reshape_alias. Row-major order is kept: the Jacobian is I.",
)

unsqueeze = views(
    "UnsqueezeBackward0",
    move=lambda op, v: v.unsqueeze(op.dim),
    home=_reshape_home,
    samples=lambda: [sample(torch.unsqueeze, x(2, 3), 1), sample(torch.unsqueeze, x(), -1, note="0-dim")],
)

squeeze = views(
    "SqueezeBackward0",
    move=lambda op, v: v.reshape(op.out.shape),
    home=_reshape_home,
    samples=lambda: [
        sample(torch.squeeze, x(1, 3, 1)),
        sample(torch.squeeze, x(1, 3, 1), 0),
        sample(torch.squeeze, x(1, 3, 1), (0, 2)),
        sample(torch.squeeze, x(2, 3), 0, note="no axis of size 1"),
        sample(torch.squeeze, x(1, 1), note="to 0-dim"),
    ],
)

alias = moves(
    "AliasBackward0",
    "LiftBackward0",
    "LiftFreshBackward0",
    move=lambda op, v: v,
    home=lambda op, g: g,
    samples=lambda: [sample(torch.ops.aten.alias, x(2, 3))],
)

# Repeated --------------------------------------------------------------------------------------------------------

expand = views(
    "ExpandBackward0",
    move=lambda op, v: v.expand(op.out.shape),
    home=lambda op, g: g,  # in the shape of the output: the walk sums over the copies, as a step of its own
    product="$g",
    samples=lambda: [
        sample(torch.Tensor.expand, x(3), 2, 3),
        sample(torch.Tensor.expand, x(2, 1), 2, 3),
        sample(torch.Tensor.expand, x(), 2, 1, note="0-dim"),
        sample(torch.Tensor.expand, x(1), 0, note="expanded to nothing"),
    ],
    source="derivatives.yaml: expand. Every copy's gradient belongs to the one original.",
)


repeat = moves(
    "RepeatBackward0",
    came=lambda op, at: [
        rf"{place} \bmod {size}" for place, size in zip(at[len(at) - op.self.dim() :], op.self.shape, strict=True)
    ],
    move=lambda op, v: v.repeat(op.repeats),
    repeats=True,
    samples=lambda: [
        sample(torch.Tensor.repeat, x(2, 3), 2, 1, 2),
        sample(torch.Tensor.repeat, x(2, 3), 2, 1, note="rows"),
        sample(torch.tile, x(3), (2,)),
        sample(torch.Tensor.repeat, x(3), 0, note="no copy"),
        sample(torch.Tensor.repeat, x(), 3, note="0-dim"),
    ],
)

# Picked out ------------------------------------------------------------------------------------------------------


def inserted(at: list[str], axis: int, place: int) -> list[str]:
    """Indices with one more, at an axis."""
    return [*at[:axis], f"{place}", *at[axis:]]


SELECT = by_strides(lambda op, v: v.select(op.dim, op.index))
select = views(
    "SelectBackward0",
    **SELECT,
    samples=lambda: [
        sample(torch.select, x(3, 4), 0, 1),
        sample(torch.select, x(3, 4), -1, -1),
        sample(lambda a: a[0], x(1), note="to 0-dim"),
    ],
    source="derivatives.yaml: select.int",
)


SLICE = by_strides(lambda op, v: v[(slice(None),) * (op.dim % v.dim()) + (slice(op.start, op.end, op.step),)])
slice_ = views(
    "SliceBackward0",
    **SLICE,
    samples=lambda: [
        sample(lambda a: a[1:3], x(4, 2)),
        sample(lambda a: a[:, ::2], x(2, 5)),
        sample(torch.narrow, x(4, 3), 1, 1, 2),
        sample(lambda a: a[2:2], x(4), note="empty"),
        sample(lambda a: a[-2:], x(4)),
        sample(torch.tensor_split, x(2, 5), 3, 1),
    ],
    source="derivatives.yaml: slice.Tensor",
)

narrow_copy = moves(
    "NarrowCopyBackward0",
    **by_strides(lambda op, v: v.narrow(op.dim, op.start, op.length)),
    samples=lambda: [
        sample(torch.narrow_copy, x(3, 4), 1, 1, 2),
        sample(torch.narrow_copy, x(3, 4), 0, 1, 0, note="empty"),
    ],
)


DIAGONAL = by_strides(lambda op, v: v.diagonal(op.offset, op.dim1, op.dim2))
diagonal = views(
    "DiagonalBackward0",
    **DIAGONAL,
    samples=lambda: [
        sample(torch.diagonal, x(3, 3)),
        sample(torch.diagonal, x(2, 3, 4), 1, 0, 2),
        sample(torch.diagonal, x(2, 2), 5, note="a diagonal without elements"),
        sample(torch.diag, x(3, 2), -1),
    ],
)

diag_embed = moves(
    "DiagEmbedBackward0",
    came=lambda op, at: [
        *(place for axis, place in enumerate(at) if axis not in (op.dim1 % len(at), op.dim2 % len(at))),
        affine(at[op.dim1], 1, -max(-op.offset, 0)),
    ],
    only=lambda op, at: f"{at[op.dim2]} = {affine(at[op.dim1], 1, op.offset)}",
    move=lambda op, v: torch.diag_embed(v, op.offset, op.dim1, op.dim2),
    zeros=FILLED,
    samples=lambda: [sample(torch.diag_embed, x(2, 3)), sample(torch.diag, x(3), 1), sample(torch.diag_embed, x(0))],
)

unfold = moves(
    "UnfoldBackward0",
    "UnfoldBackward0_copy",
    **by_strides(lambda op, v: v.unfold(op.dimension, op.size, op.step)),
    repeats=True,
    samples=lambda: [
        sample(torch.Tensor.unfold, x(2, 5), 1, 3, 1, note="overlapping windows"),
        sample(torch.Tensor.unfold, x(6), 0, 2, 3, note="windows with gaps"),
    ],
    source="derivatives.yaml: unfold. An element in several windows gets the sum of their gradients.",
)


def _strided_positions(shape: Sequence[int], stride: Sequence[int], offset: int) -> Tensor:
    """Where in memory each element of a strided tensor lies."""
    positions = torch.full((1,) * len(shape), offset)
    for axis, (size, step) in enumerate(zip(shape, stride, strict=True)):
        positions = positions + laid(torch.arange(size) * step, axis, len(shape))
    return positions


def strided_origins(op: Any) -> Tensor | None:
    """For each output element, the row-major position of the input element in the same place of memory."""
    offset = op.self.storage_offset()
    mine = _strided_positions(op.self.shape, op.self.stride(), offset).reshape(-1)
    theirs = _strided_positions(op.size, op.stride, offset if op.storage_offset is None else op.storage_offset)
    if not theirs.numel():
        return theirs.to(op.self.device)
    order = mine.argsort()
    found = torch.searchsorted(mine[order], theirs).clamp(max=max(mine.numel() - 1, 0))
    if not mine.numel() or mine.unique().numel() != mine.numel() or not bool((mine[order][found] == theirs).all()):
        return None
    return order[found].to(op.self.device)


def _in_memory(op: Any, at: list[str]) -> list[str]:
    """The element of `self` at the same place in memory."""
    start = op.storage_offset - op.self.storage_offset() if op.storage_offset is not None else 0
    return digits(affine(position(at, op.stride), 1, start), op.self.shape, op.self.stride())


STRIDED: dict[str, Any] = {"move": lambda op, v: v.reshape(-1)[strided_origins(op)], "came": _in_memory}
as_strided = moves(
    "AsStridedBackward0",
    "AsStridedBackward0_copy",
    **STRIDED,
    repeats=True,
    # It looks at memory rather than at its argument: where the input is itself a stretched view, or the reach goes
    # beyond it, there is nothing to say.
    accepts=lambda op: "stride" in op.arguments and strided_origins(op) is not None,
    samples=lambda: [
        sample(torch.as_strided, x(3, 4), (2, 2), (4, 1)),
        sample(torch.as_strided, x(6), (4, 3), (1, 1), note="overlapping"),
        sample(torch.as_strided, x(3, 4), (2, 2), (1, 2), 1, note="with an offset"),
        sample(lambda a: a.t().as_strided((2, 2), (1, 3)), x(2, 3), note="of a transposed view"),
    ],
)

# Mirrored, shifted, masked, padded -------------------------------------------------------------------------------

flip = moves(
    "FlipBackward0",
    came=lambda op, at: replaced(at, {dim % len(at): f"{op.self.shape[dim] - 1} - {at[dim]}" for dim in op.dims}),
    move=lambda op, v: v.flip(op.dims),
    home=lambda op, g: g.flip(op.dims),
    samples=lambda: [sample(torch.flip, x(2, 3), (0, 1)), sample(torch.flip, x(0, 3), (0,), note="empty")],
)


def _rolled(op: Any, at: list[str]) -> list[str]:
    """Without dims, all elements are one row."""
    if not op.dims:
        whole = affine(position(at, row_major(op.self.shape)), 1, -op.shifts[0])
        return digits(rf"({whole}) \bmod {op.self.numel()}", op.self.shape)
    return replaced(
        at,
        {
            dim % len(at): rf"({affine(at[dim], 1, -shift)}) \bmod {op.self.shape[dim]}"
            for shift, dim in zip(op.shifts, op.dims, strict=True)
        },
    )


roll = moves(
    "RollBackward0",
    came=_rolled,
    move=lambda op, v: v.roll(op.shifts, op.dims),
    home=lambda op, g: g.roll([-shift for shift in op.shifts], op.dims),
    samples=lambda: [sample(torch.roll, x(2, 3), 1), sample(torch.roll, x(2, 3), (1, -2), (0, 1))],
)


def _turned(op: Any, at: list[str]) -> list[str]:
    a, b = (dim % len(at) for dim in op.dims)
    last_a, last_b = op.self.shape[a] - 1, op.self.shape[b] - 1
    quarters = [
        (at[a], at[b]),
        (at[b], f"{last_b} - {at[a]}"),
        (f"{last_a} - {at[a]}", f"{last_b} - {at[b]}"),
        (f"{last_a} - {at[b]}", at[a]),
    ]
    return replaced(at, dict(zip((a, b), quarters[op.k % 4], strict=True)))


rot90 = moves(
    "Rot90Backward0",
    came=_turned,
    move=lambda op, v: v.rot90(op.k, op.dims),
    samples=lambda: [sample(torch.rot90, x(2, 3)), sample(torch.rot90, x(2, 3, 2), 3, (1, 2))],
)


def _triangle(name: str, part: str, sign: str, diagonal: int) -> Rule:
    return moves(
        f"{name.capitalize()}Backward0",
        only=lambda op, at: rf"{at[-1]} {sign} {affine(at[-2], 1, op.diagonal)}",
        move=lambda op, v: getattr(v, name)(op.diagonal),
        home=lambda op, g: getattr(g, name)(op.diagonal),
        zeros=f"an element is copied to its own place where that lies in the {part} triangle, else 0 is written there",
        samples=lambda: [
            sample(getattr(torch, name), x(3, 3), diagonal),
            sample(getattr(torch, name), x(2, 2, 3), -1),
        ],
    )


tril, triu = _triangle("tril", "lower", r"\le", 0), _triangle("triu", "upper", r"\ge", 1)


def _inside_border(op: Any, at: list[str]) -> list[str]:
    """Counted from the border that was put before; `pad` begins with the last axis."""
    before = [0] * (op.self.dim() - len(op.pad) // 2) + list(op.pad[-2::-2])
    return [affine(place, 1, -amount) for place, amount in zip(at, before, strict=True)]


def _padded(op: Any) -> str:
    at = letters(op.out)
    origin = _inside_border(op, at)
    inside = AND.join(rf"0 \le {place} < {size}" for place, size in zip(origin, op.self.shape, strict=True))
    return f"{element('out', at)} = {where(element('self', origin), inside, number(op.value or 0))}"


constant_pad_nd = moves(
    "ConstantPadNdBackward0",
    came=_inside_border,
    equation=_padded,
    move=lambda op, v: F.pad(v, op.pad),
    home=lambda op, g: F.pad(g, [-amount for amount in op.pad]),
    zeros=FILLED,
    samples=lambda: [
        sample(F.pad, x(2, 3), (1, 2), value=5.0),
        sample(F.pad, x(2, 3), (1, -1, -1, 0), note="negative amounts cut"),
        sample(F.pad, x(0, 3), (0, 0, 1, 1), note="empty"),
    ],
)


def _from_pixels(at: list[str], r: int) -> list[str]:
    *batch, c, h, w = at
    return [
        *batch,
        rf"{affine(c, r * r)} + {r} ({h} \bmod {r}) + {w} \bmod {r}",
        *(rf"\lfloor {p} / {r} \rfloor" for p in (h, w)),
    ]


def _from_channels(at: list[str], r: int) -> list[str]:
    *batch, c, h, w = at
    high, wide = rf"{affine(h, r)} + \lfloor {c} / {r} \rfloor \bmod {r}", rf"{affine(w, r)} + {c} \bmod {r}"
    return [*batch, rf"\lfloor {c} / {r * r} \rfloor", high, wide]


pixel_shuffle = moves(
    "PixelShuffleBackward0",
    came=lambda op, at: _from_pixels(at, op.upscale_factor),
    move=lambda op, v: F.pixel_shuffle(v, op.upscale_factor),
    home=lambda op, g: F.pixel_unshuffle(g, op.upscale_factor),
    samples=lambda: [sample(F.pixel_shuffle, x(1, 4, 2, 3), 2)],
)

pixel_unshuffle = moves(
    "PixelUnshuffleBackward0",
    came=lambda op, at: _from_channels(at, op.downscale_factor),
    move=lambda op, v: F.pixel_unshuffle(v, op.downscale_factor),
    home=lambda op, g: F.pixel_shuffle(g, op.downscale_factor),
    samples=lambda: [sample(F.pixel_unshuffle, x(1, 1, 4, 2), 2)],
)

channel_shuffle = moves(
    "ChannelShuffleBackward0",
    "NativeChannelShuffleBackward0",
    came=lambda op, at: replaced(
        at, {1: rf"{op.self.shape[1] // op.groups} ({at[1]} \bmod {op.groups}) + \lfloor {at[1]} / {op.groups} \rfloor"}
    ),
    move=lambda op, v: F.channel_shuffle(v, op.groups),
    samples=lambda: [sample(F.channel_shuffle, x(2, 6, 1, 2), 2)],
    source="derivatives.yaml: channel_shuffle. Channels (group, place) become (place, group).",
)
