"""Rules of operations that only move elements: reshape, pick, join, cut, repeat, mirror, pad.

Each output element is a copy of one input element (or a constant), so the Jacobian has a single 1 in each row, and
going back means: send every upstream element home to the place it was copied from, and add where several come home.
A rule tells how the operation moves a tensor; which entry of the Jacobian is 1 follows by moving the positions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn import functional as F

from chainrule.rules import Applied, Factor, Rule, Sample, Wrt, derivative, number, rule, sample
from chainrule.rules import at as element
from chainrule.rules.indices import (
    LETTERS,
    OTHERS,
    affine,
    digits,
    fitted,
    letters,
    places,
    position,
    row_major,
    total,
    where,
)
from chainrule.rules.pattern import Pattern, copied, identity, permuted, real

Index = tuple[int, ...]
Move = Callable[[Any, Tensor], Tensor]
Template = str | Callable[[Any], str]
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
    home: Move | None = None,
    only: Callable[[Any, list[str]], str] | None = None,
    equation: Template = "",
    local: Template = "",
    product: Template = "",
    zeros: str = COPIES,
    repeats: bool = False,
    index: Iterable[str] = (),
    fill: str = "",
    instead: Callable[[Any], Mapping[str, Callable[[Any], str]] | None] = lambda op: None,
    **more: Any,
) -> Rule:
    """Register an operation that moves the elements of `self`: `move(op, tensor)` does to a tensor what it did.

    The formulas follow from `came(op, at)`, the indices of the element that is copied to the place `at`, where the
    condition `only` holds. `home(op, g)` is the way back; without one, every upstream element is added to the place it
    came from. `repeats` says that one element may be copied to several places, also where there are as many as before.
    The arguments in `index` say where to, and `fill` is put where there is nothing to copy. `instead` has other
    formulas for some calls.
    """

    def copy(op: Any) -> tuple[list[str], list[str], str]:
        at = places(op.out.shape)
        return at, came(op, at), rf" \, [{only(op, at)}]" if only else ""

    def value(op: Any) -> str:
        if other := instead(op):
            return other["equation"](op)
        at, origin, held = copy(op)
        if fill and only:
            return f"{element('out', at)} = {where(element('self', origin), only(op, at), f'${fill}')}"
        outside = r", \quad $self \text{ is 0 outside}" if zeros is FILLED else ""
        stated = _ranges(op, at, origin, [place for place in at if place in origin])
        return f"{element('out', at)} = {element('self', origin)}{held}{outside}{stated}"

    def rate(op: Any) -> str:
        if other := instead(op):
            return other["local"](op)
        at, origin, held = copy(op)
        text = derivative(element("out", at), element("self", origin), f"1{held}")
        return text + _ranges(op, at, origin, [place for place in at if place in origin])

    def back(op: Any) -> str:
        if other := instead(op):
            return other["product"](op)
        at, origin, held = copy(op)
        if not repeats and all(place in f"{origin}" for place in at):
            return f"{element('grad', origin)} = {element('g', at)}{held}{_ranges(op, at, origin, at)}"
        own, among, met = arrivals(at, origin)
        stated = _ranges(op, at, own, [each for each in at if each in own])
        return f"{element('grad', own)} = {total(among, met, element('g', at) + held)}{stated}"

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

    return rule(
        *nodes,
        equation=equation or value,
        wrt={"self": Wrt(home or add_up, local or rate, product or back, zeros, factor, pattern)},
        constants=dict.fromkeys(index, "not differentiable"),
        structure="linear",
        **more,
    )


def arrivals(at: list[str], origin: list[str]) -> tuple[list[str], list[str], list[str]]:
    """The indices of a place, and what is added up there: for which of the indices `at`, under which conditions."""
    own = [place if place in at and origin.count(place) == 1 else OTHERS[axis] for axis, place in enumerate(origin)]
    met = [f"{place} = {letter}" for place, letter in zip(origin, own, strict=True) if place != letter]
    return own, [letter for letter in at if letter not in own and letter != "0"], met


def _ranges(op: Any, at: list[str], origin: list[str], letters: list[str]) -> str:
    """The ranges of those letters of which the axes that they stand on bare do not give one, or not the same one."""
    found = ""
    for letter, size in zip(at, op.out.shape, strict=True):
        sizes = {n for place, n in zip(origin, op.self.shape, strict=True) if place == letter}
        if letter in letters and letter != "0" and sizes != {size}:
            found += rf", \quad 0 \le {letter} < {size}"
    return found


def views(node: str, *others: str, move: Move, home: Move | None = None, **more: Any) -> Rule:
    """Register a view (and the operation that copies where it makes one): the way back writes g through the view."""

    def through(op: Any, g: Tensor) -> Tensor:
        page = g.new_zeros(op.self.shape)
        move(op, page).copy_(g)
        return page

    return moves(node, *others, f"{node}_copy", move=move, home=home or through, **more)


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


def _replaced(places: list[str], new: dict[int, str]) -> list[str]:
    """Indices, with other ones along some axes."""
    return [new.get(axis, place) for axis, place in enumerate(places)]


def _exchanged(op: Any, at: list[str]) -> list[str]:
    """Exchange the axes `dim0` and `dim1`."""
    first, second = op.dim0 % len(at), op.dim1 % len(at)
    return _replaced(at, {first: at[second], second: at[first]})


# Turned and reshaped ---------------------------------------------------------------------------------------------

t = views(
    "TBackward0",
    came=lambda op, at: at[::-1],
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
    came=_exchanged,
    move=lambda op, v: v.transpose(op.dim0, op.dim1),
    home=lambda op, g: g.transpose(op.dim0, op.dim1),
    samples=lambda: [sample(torch.transpose, x(2, 3, 4), 0, -1), sample(torch.swapaxes, x(1, 3), 0, 1)],
    source="derivatives.yaml: transpose.int. Exchanging two axes twice changes nothing.",
)


permute = views(
    "PermuteBackward0",
    came=lambda op, at: [at[[dim % len(at) for dim in op.dims].index(axis)] for axis in range(len(at))],
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
    came=_regrouped,
    move=lambda op, v: v.unsqueeze(op.dim),
    home=_reshape_home,
    samples=lambda: [sample(torch.unsqueeze, x(2, 3), 1), sample(torch.unsqueeze, x(), -1, note="0-dim")],
)

squeeze = views(
    "SqueezeBackward0",
    came=_regrouped,
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
    came=lambda op, at: at,
    move=lambda op, v: v,
    home=lambda op, g: g,
    samples=lambda: [sample(torch.ops.aten.alias, x(2, 3))],
)

# Repeated --------------------------------------------------------------------------------------------------------

expand = views(
    "ExpandBackward0",
    came=lambda op, at: fitted(at, op.self),
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
        sample(torch.tile, x(3), (2,)),
        sample(torch.Tensor.repeat, x(3), 0, note="no copy"),
        sample(torch.Tensor.repeat, x(), 3, note="0-dim"),
    ],
)

# Picked out ------------------------------------------------------------------------------------------------------


def selected(op: Any, at: list[str]) -> list[str]:
    """With the index along `dim` again."""
    axis = op.dim % op.self.dim()
    return [*at[:axis], f"{op.index % op.self.shape[axis]}", *at[axis:]]


select = views(
    "SelectBackward0",
    came=selected,
    move=lambda op, v: v.select(op.dim, op.index),
    samples=lambda: [
        sample(torch.select, x(3, 4), 0, 1),
        sample(torch.select, x(3, 4), -1, -1),
        sample(lambda a: a[0], x(1), note="to 0-dim"),
    ],
    source="derivatives.yaml: select.int",
)


def slice_of(op: Any, v: Tensor) -> Tensor:
    """The view from `start` to `end` along `dim`."""
    return v[(slice(None),) * (op.dim % v.dim()) + (slice(op.start, op.end, op.step),)]


def _shifted(op: Any, at: list[str], start: int, step: int = 1) -> list[str]:
    axis = op.dim % len(at)
    return _replaced(at, {axis: affine(at[axis], step, start)})


def in_slice(op: Any, at: list[str]) -> list[str]:
    """Counted from the start of the slice, in its steps."""
    return _shifted(op, at, slice(op.start, op.end).indices(op.self.shape[op.dim])[0], op.step)


slice_ = views(
    "SliceBackward0",
    came=in_slice,
    move=slice_of,
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
    came=lambda op, at: _shifted(op, at, op.start % op.self.shape[op.dim]),
    move=lambda op, v: v.narrow(op.dim, op.start, op.length),
    samples=lambda: [
        sample(torch.narrow_copy, x(3, 4), 1, 1, 2),
        sample(torch.narrow_copy, x(3, 4), 0, 1, 0, note="empty"),
    ],
)


def on_diagonal(op: Any, at: list[str]) -> list[str]:
    """The last index runs along the diagonal."""
    *origin, k = at
    first, second = op.dim1 % op.self.dim(), op.dim2 % op.self.dim()
    along = {first: affine(k, 1, max(-op.offset, 0)), second: affine(k, 1, max(op.offset, 0))}
    for axis in sorted(along):
        origin.insert(axis, along[axis])
    return origin


diagonal = views(
    "DiagonalBackward0",
    came=on_diagonal,
    move=lambda op, v: v.diagonal(op.offset, op.dim1, op.dim2),
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
    home=lambda op, g: g.diagonal(op.offset, op.dim1, op.dim2),
    zeros=FILLED,
    samples=lambda: [sample(torch.diag_embed, x(2, 3)), sample(torch.diag, x(3), 1), sample(torch.diag_embed, x(0))],
)

unfold = moves(
    "UnfoldBackward0",
    "UnfoldBackward0_copy",
    came=lambda op, at: [
        f"{affine(place, op.step)} + {at[-1]}" if axis == op.dimension % op.self.dim() else place
        for axis, place in enumerate(at[:-1])
    ],
    move=lambda op, v: v.unfold(op.dimension, op.size, op.step),
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
        steps = torch.arange(size) * step
        positions = positions + steps.reshape([-1 if each == axis else 1 for each in range(len(shape))])
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


def in_memory(op: Any, at: list[str]) -> list[str]:
    """The element of `self` at the same place in memory."""
    start = op.storage_offset - op.self.storage_offset() if op.storage_offset is not None else 0
    return digits(affine(position(at, op.stride), 1, start), op.self.shape, op.self.stride())


as_strided = moves(
    "AsStridedBackward0",
    "AsStridedBackward0_copy",
    came=in_memory,
    move=lambda op, v: v.reshape(-1)[strided_origins(op)],
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
    came=lambda op, at: _replaced(at, {dim % len(at): f"{op.self.shape[dim] - 1} - {at[dim]}" for dim in op.dims}),
    move=lambda op, v: v.flip(op.dims),
    home=lambda op, g: g.flip(op.dims),
    samples=lambda: [sample(torch.flip, x(2, 3), (0, 1)), sample(torch.flip, x(0, 3), (0,), note="empty")],
)


def _rolled(op: Any, at: list[str]) -> list[str]:
    """Without dims, all elements are one row."""
    if not op.dims:
        whole = affine(position(at, row_major(op.self.shape)), 1, -op.shifts[0])
        return digits(rf"({whole}) \bmod {op.self.numel()}", op.self.shape)
    return _replaced(
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
    return _replaced(at, dict(zip((a, b), quarters[op.k % 4], strict=True)))


rot90 = moves(
    "Rot90Backward0",
    came=_turned,
    move=lambda op, v: v.rot90(op.k, op.dims),
    home=lambda op, g: g.rot90(-op.k, op.dims),
    samples=lambda: [sample(torch.rot90, x(2, 3)), sample(torch.rot90, x(2, 3, 2), 3, (1, 2))],
)


def _triangle(name: str, part: str, sign: str, diagonal: int) -> Rule:
    return moves(
        f"{name.capitalize()}Backward0",
        came=lambda op, at: at,
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
    return [affine(place, 1, -amount) for place, amount in zip(at, _borders(op), strict=True)]


def _borders(op: Any) -> list[int]:
    """How much was put before the first element along each axis; `pad` begins with the last axis."""
    return [0] * (op.self.dim() - len(op.pad) // 2) + list(op.pad[-2::-2])


def _padded(op: Any) -> str:
    at = letters(op.out)
    bounds = zip(_inside_border(op, at), op.self.shape, strict=True)
    inside = r" \land ".join(rf"0 \le {place} < {size}" for place, size in bounds)
    return f"{element('out', at)} = " + where(element("self", _inside_border(op, at)), inside, number(op.value or 0))


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
    came=lambda op, at: _replaced(
        at, {1: rf"{op.self.shape[1] // op.groups} ({at[1]} \bmod {op.groups}) + \lfloor {at[1]} / {op.groups} \rfloor"}
    ),
    move=lambda op, v: F.channel_shuffle(v, op.groups),
    home=lambda op, g: F.channel_shuffle(g, g.shape[1] // op.groups),
    samples=lambda: [sample(F.channel_shuffle, x(2, 6, 1, 2), 2)],
    source="derivatives.yaml: channel_shuffle. Channels (group, place) become (place, group).",
)


# Complex numbers as pairs ----------------------------------------------------------------------------------------

conj = rule(
    "ConjBackward0",
    "ConjPhysicalBackward0",
    equation=r"$out = \overline{$self}",
    wrt={
        "self": Wrt(
            lambda op, g: g.conj(), r"\frac{\partial $out}{\partial \overline{$self}} = 1", r"\overline{$g}", COPIES
        )
    },
    structure="linear",
    samples=lambda: [
        sample(torch.conj, x(2, dtype=torch.complex128)),
        sample(torch.conj_physical, x(2, dtype=torch.complex128)),
    ],
    source="derivatives.yaml: _conj",
)

neg_view = rule(
    "NegViewBackward0",
    equation=r"$out = -$self",
    wrt={"self": Wrt(lambda op, g: -g, "-1", "-$g", COPIES)},
    structure="linear",
    samples=lambda: [sample(torch._neg_view, x(2))],
    source="derivatives.yaml: _neg_view",
)


def _pairs(template: str) -> Callable[[Any], str]:
    """A template in which * stands for the axes before the last one, which holds the two parts of a number."""

    def filled(op: Any) -> str:
        before = ", ".join(LETTERS[: max(op.self.dim(), op.out.dim()) - 1])
        return template.replace("*, ", f"{before}, " * bool(before)).replace("*", before).replace("_{}", "")

    return filled


view_as_real = rule(
    "ViewAsRealBackward0",
    "ViewAsRealBackward0_copy",
    equation=_pairs(
        r"{$out}_{*, 0} = \operatorname{Re} {$self}_{*}, \quad {$out}_{*, 1} = \operatorname{Im} {$self}_{*}"
    ),
    wrt={
        "self": Wrt(
            lambda op, g: torch.complex(g[..., 0], g[..., 1]),
            _pairs(
                derivative("{$out}_{*, 0}", "{$self}_{*}", r"1, \quad ")
                + derivative("{$out}_{*, 1}", "{$self}_{*}", r"\mathrm{i}")
            ),
            _pairs(r"{$grad}_{*} = {$g}_{*, 0} + \mathrm{i} \, {$g}_{*, 1}"),
            COPIES,
        )
    },
    structure="linear",
    samples=lambda: [
        sample(torch.view_as_real, x(2, 3, dtype=torch.complex128)),
        sample(torch.real, x(2, dtype=torch.complex128)),
    ],
)

view_as_complex = rule(
    "ViewAsComplexBackward0",
    "ViewAsComplexBackward0_copy",
    equation=_pairs(r"{$out}_{*} = {$self}_{*, 0} + \mathrm{i} \, {$self}_{*, 1}"),
    wrt={
        "self": Wrt(
            lambda op, g: torch.stack((g.real, g.imag), -1),
            _pairs(
                derivative("{$out}_{*}", "{$self}_{*, 0}", r"1, \quad ")
                + derivative("{$out}_{*}", "{$self}_{*, 1}", r"\mathrm{i}")
            ),
            _pairs(r"{$grad}_{*, u} = [u = 0] \operatorname{Re} {$g}_{*} + [u = 1] \operatorname{Im} {$g}_{*}"),
            COPIES,
        )
    },
    structure="linear",
    samples=lambda: [sample(torch.view_as_complex, x(3, 2))],
)

complex_ = rule(
    "ComplexBackward0",
    equation=r"$out = $real + \mathrm{i} \, $imag",
    wrt={
        "real": Wrt(lambda op, g: g.real, "1", r"\operatorname{Re} $g", COPIES),
        "imag": Wrt(lambda op, g: g.imag, r"\mathrm{i}", r"\operatorname{Im} $g", COPIES),
    },
    structure="linear",
    samples=lambda: [sample(torch.complex, x(3), x(3)), sample(torch.complex, x(2, 1), x(3), note="broadcast")],
)

# Joined and cut --------------------------------------------------------------------------------------------------


Pieces = Sequence[Tensor]


def joins(
    node: str,
    came: Callable[[Any, list[str], int], list[str]],
    join: Callable[[Any, Pieces], Tensor],
    cut: Callable[[Any, Tensor], Pieces],
    samples: Callable[[], Iterable[Sample]],
    only: Callable[[Any, list[str], int], list[str]] = lambda op, at, item: [],
    zeros: str = COPIES,
) -> Rule:
    """Register an operation that joins a list of tensors; `cut` takes a tensor of the output's shape apart again.

    `came(op, at, item)` are the indices of the element of one of them that would come to the place `at`, if those of
    `only` hold.
    """

    def home(op: Any, g: Tensor) -> list[Tensor]:
        return [piece.reshape(each.shape) for piece, each in zip(cut(op, g), op.tensors, strict=True)]

    def factor(op: Any, out_index: Index, in_index: Index) -> Factor | None:
        """`in_index` begins with the place in the list; that tensor's elements are counted, all others are 0."""
        item, *place = in_index
        marked = [labels(each) * (position == item) for position, each in enumerate(op.tensors)]
        came_from = join(op, marked)[out_index]
        return Factor(latex="1") if came_from == marked[item][tuple(place)] else None

    def value(op: Any) -> str:
        """The first tensor that has an element for this place."""
        at = letters(op.out)
        inside = (
            (element(f"tensors{item}", came(op, at, item)), _bounds(came(op, at, item), each.shape, only(op, at, item)))
            for item, each in enumerate(op.tensors)
            if each.numel()
        )
        parts = [rf"{text} & {bounds or '0 = 0'}" for text, bounds in inside]
        rest = [r"0 & \text{otherwise}"] if zeros is FILLED else []
        cases = r" \\ ".join([*parts, *rest])
        ranges = "".join(rf", \quad 0 \le {letter} < {size}" for letter, size in zip(at, op.out.shape, strict=True))
        return f"{element('out', at)} = " + rf"\begin{{cases}} {cases or 0} \end{{cases}}{ranges}"

    def each(op: Any, text: Callable[[str, str, str], str]) -> str:
        """For each tensor, a text of an output element, an input element, and when one is a copy of the other."""
        at, found = list(OTHERS[: op.out.dim()]), []
        for item, tensor in enumerate(op.tensors):
            own = letters(tensor)
            pairs = zip(came(op, at, item), own, strict=True)
            met = r" \land ".join([*(f"{place} = {letter}" for place, letter in pairs), *only(op, at, item)])
            found.append(text(f"{item}", element("tensors" + str(item), own), met))
        return r", \quad ".join(found)

    def local(op: Any) -> str:
        out = element("out", OTHERS[: op.out.dim()])
        return each(op, lambda item, into, met: derivative(out, into, f"[{met}]" if met else "1"))

    def product(op: Any) -> str:
        g, among = element("g", OTHERS[: op.out.dim()]), ", ".join(OTHERS[: op.out.dim()])
        return each(op, lambda item, into, met: into.replace("tensors", "grad") + rf" = \sum_{{{among}: {met}}} {g}")

    wrt = {"tensors": Wrt(home, local, product, zeros, factor)}
    return rule(node, equation=value, wrt=wrt, structure="linear", samples=samples)


def _bounds(origin: list[str], sizes: Sequence[int], conditions: Iterable[str]) -> str:
    """The condition that a place lies inside a tensor, and further ones."""
    inside = (rf"0 \le {place} < {size}" for place, size in zip(origin, sizes, strict=True))
    return r" \land ".join([*inside, *conditions])


def _widths(op: Any) -> list[int]:
    """torch.cat lets an empty vector stand among tensors of any shape; it takes no room."""
    return [0 if each.shape == (0,) else each.shape[op.dim] for each in op.tensors]


cat = joins(
    "CatBackward0",
    lambda op, at, item: [
        affine(place, 1, -sum(_widths(op)[:item])) if axis == op.dim % len(at) else place
        for axis, place in enumerate(at[: op.tensors[item].dim()])
    ],
    lambda op, pieces: torch.cat(list(pieces), op.dim),
    lambda op, g: g.split(_widths(op), op.dim),
    lambda: [
        sample(lambda a, b: torch.cat([a, b]), x(2, 3), x(1, 3)),
        sample(lambda a, b: torch.cat([a, b], -1), x(2, 3), x(2, 1)),
        sample(lambda a, b: torch.cat([a, b]), x(0), x(2, 3), note="an empty vector among matrices"),
        sample(lambda a: torch.cat([a, a]), x(2), note="one tensor twice"),
    ],
)

stack = joins(
    "StackBackward0",
    lambda op, at, item: [place for axis, place in enumerate(at) if axis != op.dim % len(at)],
    lambda op, pieces: torch.stack(list(pieces), op.dim),
    lambda op, g: g.unbind(op.dim),
    lambda: [
        sample(lambda a, b: torch.stack([a, b]), x(2, 3), x(2, 3)),
        sample(lambda a, b: torch.stack([a, b], -1), x(2), x(2)),
        sample(lambda a: torch.stack([a]), x(), note="0-dim"),
    ],
    only=lambda op, at, item: [f"{at[op.dim]} = {item}"],
)


def _corners(op: Any) -> list[tuple[int, int, int, int]]:
    """First row, first column, height and width of each block."""
    corners, row, column = [], 0, 0
    for height, width in (torch.atleast_2d(each).shape for each in op.tensors):
        corners.append((row, column, height, width))
        row, column = row + height, column + width
    return corners


def _within_corner(op: Any, at: list[str], item: int) -> list[str]:
    return [affine(place, 1, -start) for place, start in zip(at, _corners(op)[item][:2], strict=True)]


block_diag = joins(
    "BlockDiagBackward0",
    lambda op, at, item: _within_corner(op, at, item)[2 - op.tensors[item].dim() :],
    lambda op, pieces: torch.block_diag(*pieces),
    lambda op, g: [g[row : row + high, column : column + wide] for row, column, high, wide in _corners(op)],
    lambda: [sample(torch.block_diag, x(2, 3), x(2), x(), note="a matrix, a vector and a number")],
    only=lambda op, at, item: [f"{each} = 0" for each in _within_corner(op, at, item)[: 2 - op.tensors[item].dim()]],
    zeros=FILLED,
)


def cuts(
    *nodes: str,
    came: Callable[[Any, list[str], int], list[str]],
    join: Callable[[Any, Pieces], Tensor],
    **more: Any,
) -> Rule:
    """Register an operation that cuts `self` into parts; `join` puts them together again, zeros where none came.

    `came(op, at, slot)` are the indices of the element that came to the place `at` of one of the parts.
    """

    def home(op: Any, gs: tuple[Tensor | None, ...]) -> Tensor:
        return join(op, [torch.zeros_like(out) if g is None else g for out, g in zip(op.outs, gs, strict=False)])

    def pattern(op: Any) -> Pattern | None:
        return copied(op.out.numel(), op.self.numel()) if real(op.out, op.self) else None

    def each(text: Callable[[list[str], list[str], int], str], joined: str) -> Callable[[Any], str]:
        def filled(op: Any) -> str:
            ats = [letters(out) for out in op.outs]
            return joined.join(text(at, came(op, at, slot), slot) for slot, at in enumerate(ats))

        return filled

    def back(op: Any) -> str:
        own = letters(op.self)
        parts = []
        for slot, out in enumerate(op.outs):
            at = list(OTHERS[: out.dim()])
            met = r" \land ".join(f"{p} = {letter}" for p, letter in zip(came(op, at, slot), own, strict=True))
            parts.append(
                rf"\sum_{{{', '.join(at)}: {met}}} {element(f'g{slot}', at)}" if at else rf"[{met}] \, $g{slot}"
            )
        return f"{element('grad', own)} = " + " + ".join(parts)

    def value(at: list[str], origin: list[str], slot: int) -> str:
        return f"{element(f'out{slot}', at)} = {element('self', origin)}"

    def local(at: list[str], origin: list[str], slot: int) -> str:
        return derivative(element(f"out{slot}", at), element("self", origin), "1")

    wrt = {"self": Wrt(home, each(local, r", \quad "), back, COPIES, pattern=pattern)}
    return rule(*nodes, equation=each(value, r", \quad "), wrt=wrt, structure="linear", outputs=2, **more)


split = cuts(
    "SplitBackward0",
    "SplitWithSizesBackward0",
    "UnsafeSplitBackward0",
    "UnsafeSplitWithSizesBackward0",
    came=lambda op, at, slot: [
        f"{sum(out.shape[op.dim] for out in op.outs[:slot])} + {place}" if axis == op.dim % len(at) else place
        for axis, place in enumerate(at)
    ],
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
    came=lambda op, at, slot: [*at[: op.dim % op.self.dim()], f"{slot}", *at[op.dim % op.self.dim() :]],
    join=lambda op, pieces: torch.stack(list(pieces), op.dim),
    samples=lambda: [sample(torch.unbind, x(2, 3)), sample(torch.unbind, x(2, 1), -1)],
    source="derivatives.yaml: unbind.int",
)
