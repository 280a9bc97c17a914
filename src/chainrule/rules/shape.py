"""Rules of operations that only move elements: reshape, pick, join, cut, repeat, mirror, pad.

Each output element is a copy of one input element (or a constant), so the Jacobian has a single 1 in each row, and
going back means: send every upstream element home to the place it was copied from, and add where several come home.
A rule tells how the operation moves a tensor; which entry of the Jacobian is 1 follows by moving the positions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn import functional as F

from chainrule.rules import Applied, Factor, Rule, Sample, Wrt, rule, sample
from chainrule.rules.pattern import Pattern, copied, identity, permuted, real

Index = tuple[int, ...]
Move = Callable[[Any, Tensor], Tensor]
Template = str | Callable[[Any], str]

COPIES = "each output element is a copy of one input element alone, so every row of the Jacobian has a single 1"
FILLED = "each output element is a copy of one input element, or a constant: a row of the Jacobian has at most one 1"


def x(*shape: int, dtype: torch.dtype | None = None) -> Tensor:
    """A sample input that wants a gradient: 1, 2, 3, ... in the given shape."""
    count = torch.Size(shape).numel()
    return (torch.arange(count, dtype=torch.get_default_dtype()) + 1).to(dtype).reshape(shape).requires_grad_()


def moves(
    *nodes: str,
    equation: Template,
    move: Move,
    home: Move | None = None,
    product: Template,
    zeros: str = COPIES,
    repeats: bool = False,
    index: Iterable[str] = (),
    **more: Any,
) -> Rule:
    """Register an operation that moves the elements of `self`: `move(op, tensor)` does to a tensor what it did.

    `home(op, g)` is the way back; without one, every upstream element is added to the place it came from. `repeats`
    says that one element may be copied to several places, also where there are as many as before. The arguments in
    `index` say where to.
    """

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
        return Factor(latex="1") if _found[op][out_index] == _labels(op.self)[in_index] else None

    def add_up(op: Any, g: Tensor) -> Tensor:
        gradient = g.new_zeros(op.self.numel() + 1).index_add(0, _origins(move, op).reshape(-1), g.reshape(-1))
        return gradient[1:].reshape(op.self.shape)

    return rule(
        *nodes,
        equation=equation,
        wrt={"self": Wrt(home or add_up, "1", product, zeros, factor, pattern)},
        constants=dict.fromkeys(index, "not differentiable"),
        structure="linear",
        **more,
    )


def views(node: str, *others: str, move: Move, home: Move | None = None, **more: Any) -> Rule:
    """Register a view (and the operation that copies where it makes one): the way back writes g through the view."""

    def through(op: Any, g: Tensor) -> Tensor:
        page = g.new_zeros(op.self.shape)
        move(op, page).copy_(g)
        return page

    return moves(node, *others, f"{node}_copy", move=move, home=home or through, **more)


def _labels(t: Tensor) -> Tensor:
    """The place of every element, counted from 1, as 0 is what an operation fills in."""
    return torch.arange(1, t.numel() + 1, device=t.device).reshape(t.shape)


def _origins(move: Move, op: Any) -> Tensor:
    """For each output element the label of the input element that it is a copy of; 0 for a constant."""
    return move(op, _labels(op.self).double()).long()  # as floating point, since not every operation takes integers


_found: WeakKeyDictionary[Applied, Tensor] = WeakKeyDictionary()  # a reader asks for many entries of one Jacobian


def _sizes(values: Iterable[Any]) -> str:
    return r" \times ".join(str(value) for value in values) or "1"


def _list(values: Iterable[Any]) -> str:
    return ", ".join(str(value) for value in values)


def _named(verb: str, *settings: str) -> Callable[[Any], str]:
    """`$out = verb($self; setting = value, ...)`, for the settings that the operation has."""

    def equation(op: Any) -> str:
        told = [rf"\text{{{_text(name)}}} = {_value(op.arguments[name])}" for name in settings if name in op.arguments]
        return rf"$out = \operatorname{{{_text(verb)}}}($self{'; ' if told else ''}{', '.join(told)})"

    return equation


def _text(name: str) -> str:
    return name.replace("_", r"\_")


def _value(setting: Any) -> str:
    return (
        f"({_list(setting)})" if isinstance(setting, Sequence) else r"\text{none}" if setting is None else f"{setting}"
    )


def _reshape_home(op: Any, g: Tensor) -> Tensor:
    return g.reshape(op.self.shape)


def _reshaped(op: Any) -> str:
    return rf"\operatorname{{reshape}}($g;\ {_sizes(op.self.shape)})"


# Turned and reshaped ---------------------------------------------------------------------------------------------

t = views(
    "TBackward0",
    equation="$out = $self^{T}",
    move=lambda op, v: v.t(),
    home=lambda op, g: g.t(),
    product="$g^{T}",
    samples=lambda: [
        sample(torch.t, x(2, 3)),
        sample(torch.t, x(3), note="a vector stays as it is"),
        sample(torch.t, x(0, 2), note="empty"),
    ],
)

transpose = views(
    "TransposeBackward0",
    equation=lambda op: "$out = $self^{T}" if op.self.dim() == 2 else _named("transpose", "dim0", "dim1")(op),
    move=lambda op, v: v.transpose(op.dim0, op.dim1),
    home=lambda op, g: g.transpose(op.dim0, op.dim1),
    product=lambda op: "$g^{T}" if op.self.dim() == 2 else r"\operatorname{transpose}($g)",
    samples=lambda: [sample(torch.transpose, x(2, 3, 4), 0, -1), sample(torch.swapaxes, x(1, 3), 0, 1)],
    source="derivatives.yaml: transpose.int. Exchanging two axes twice changes nothing.",
)


permute = views(
    "PermuteBackward0",
    equation=lambda op: "$out = $self^{T}" if op.self.dim() == 2 else _named("permute", "dims")(op),
    move=lambda op, v: v.permute(op.dims),
    home=lambda op, g: g.movedim(tuple(range(g.dim())), tuple(op.dims)),
    product=lambda op: "$g^{T}" if op.self.dim() == 2 else r"\operatorname{permute}^{-1}($g)",
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
    equation=lambda op: rf"$out = \operatorname{{reshape}}($self;\ {_sizes(op.outs[0].shape)})",
    move=lambda op, v: v.reshape(op.out.shape),
    home=_reshape_home,
    product=_reshaped,
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
    equation=_named("unsqueeze", "dim"),
    move=lambda op, v: v.unsqueeze(op.dim),
    home=_reshape_home,
    product=_reshaped,
    samples=lambda: [sample(torch.unsqueeze, x(2, 3), 1), sample(torch.unsqueeze, x(), -1, note="0-dim")],
)

squeeze = views(
    "SqueezeBackward0",
    equation=_named("squeeze", "dim"),
    move=lambda op, v: v.reshape(op.out.shape),
    home=_reshape_home,
    product=_reshaped,
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
    equation="$out = $self",
    move=lambda op, v: v,
    home=lambda op, g: g,
    product="$g",
    samples=lambda: [sample(torch.ops.aten.alias, x(2, 3))],
)

# Repeated --------------------------------------------------------------------------------------------------------

expand = views(
    "ExpandBackward0",
    equation=lambda op: rf"$out = \operatorname{{expand}}($self;\ {_sizes(op.outs[0].shape)})",
    move=lambda op, v: v.expand(op.out.shape),
    home=lambda op, g: g,  # in the shape of the output: the walk sums over the copies, as a step of its own
    product=r"\sum_{\text{copies}} $g",
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
    equation=_named("repeat", "repeats"),
    move=lambda op, v: v.repeat(op.repeats),
    product=r"\sum_{\text{copies}} $g",
    samples=lambda: [
        sample(torch.Tensor.repeat, x(2, 3), 2, 1, 2),
        sample(torch.tile, x(3), (2,)),
        sample(torch.Tensor.repeat, x(3), 0, note="no copy"),
        sample(torch.Tensor.repeat, x(), 3, note="0-dim"),
    ],
)

# Picked out ------------------------------------------------------------------------------------------------------

select = views(
    "SelectBackward0",
    equation=lambda op: rf"$out = $self[{_commas(op.dim, op.self)}{op.index}]",
    move=lambda op, v: v.select(op.dim, op.index),
    product=lambda op: rf"\mathbf{{0}} \text{{ with }} $g \text{{ at }} [{_commas(op.dim, op.self)}{op.index}]",
    samples=lambda: [
        sample(torch.select, x(3, 4), 0, 1),
        sample(torch.select, x(3, 4), -1, -1),
        sample(lambda a: a[0], x(1), note="to 0-dim"),
    ],
    source="derivatives.yaml: select.int",
)


def _commas(dim: int, t: Tensor) -> str:
    """The axes before `dim`, as in an index expression: `:, :, `."""
    return ":, " * (dim % max(t.dim(), 1))


def _range(op: Any) -> str:
    start, end = ("" if bound is None or bound >= 2**62 else str(bound) for bound in (op.start, op.end))
    return _commas(op.dim, op.self) + f"{start}:{end}" + (f":{op.step}" if op.step != 1 else "")


def slice_of(op: Any, v: Tensor) -> Tensor:
    """The view from `start` to `end` along `dim`."""
    return v[(slice(None),) * (op.dim % v.dim()) + (slice(op.start, op.end, op.step),)]


slice_ = views(
    "SliceBackward0",
    equation=lambda op: f"$out = $self[{_range(op)}]",
    move=slice_of,
    product=lambda op: rf"\mathbf{{0}} \text{{ with }} $g \text{{ at }} [{_range(op)}]",
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
    equation=_named("narrow", "dim", "start", "length"),
    move=lambda op, v: v.narrow(op.dim, op.start, op.length),
    product=r"\mathbf{0} \text{ with } $g \text{ written at the same place}",
    samples=lambda: [
        sample(torch.narrow_copy, x(3, 4), 1, 1, 2),
        sample(torch.narrow_copy, x(3, 4), 0, 1, 0, note="empty"),
    ],
)

diagonal = views(
    "DiagonalBackward0",
    equation=_named("diagonal", "offset", "dim1", "dim2"),
    move=lambda op, v: v.diagonal(op.offset, op.dim1, op.dim2),
    product=r"\operatorname{diag}($g)",
    samples=lambda: [
        sample(torch.diagonal, x(3, 3)),
        sample(torch.diagonal, x(2, 3, 4), 1, 0, 2),
        sample(torch.diagonal, x(2, 2), 5, note="a diagonal without elements"),
        sample(torch.diag, x(3, 2), -1),
    ],
)

diag_embed = moves(
    "DiagEmbedBackward0",
    equation=_named("diag", "offset", "dim1", "dim2"),
    move=lambda op, v: torch.diag_embed(v, op.offset, op.dim1, op.dim2),
    home=lambda op, g: g.diagonal(op.offset, op.dim1, op.dim2),
    product=r"\operatorname{diagonal}($g)",
    zeros=FILLED,
    samples=lambda: [sample(torch.diag_embed, x(2, 3)), sample(torch.diag, x(3), 1), sample(torch.diag_embed, x(0))],
)

unfold = moves(
    "UnfoldBackward0",
    "UnfoldBackward0_copy",
    equation=_named("unfold", "dimension", "size", "step"),
    move=lambda op, v: v.unfold(op.dimension, op.size, op.step),
    repeats=True,
    product=r"\sum_{\text{windows}} $g",
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


as_strided = moves(
    "AsStridedBackward0",
    "AsStridedBackward0_copy",
    equation=_named("as_strided", "size", "stride", "storage_offset"),
    move=lambda op, v: v.reshape(-1)[strided_origins(op)],
    repeats=True,
    product=r"\sum_{\text{copies}} $g",
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
    equation=_named("flip", "dims"),
    move=lambda op, v: v.flip(op.dims),
    home=lambda op, g: g.flip(op.dims),
    product=r"\operatorname{flip}($g)",
    samples=lambda: [sample(torch.flip, x(2, 3), (0, 1)), sample(torch.flip, x(0, 3), (0,), note="empty")],
)

roll = moves(
    "RollBackward0",
    equation=_named("roll", "shifts", "dims"),
    move=lambda op, v: v.roll(op.shifts, op.dims),
    home=lambda op, g: g.roll([-shift for shift in op.shifts], op.dims),
    product=r"\operatorname{roll}($g; -\text{shifts})",
    samples=lambda: [sample(torch.roll, x(2, 3), 1), sample(torch.roll, x(2, 3), (1, -2), (0, 1))],
)

rot90 = moves(
    "Rot90Backward0",
    equation=_named("rot90", "k", "dims"),
    move=lambda op, v: v.rot90(op.k, op.dims),
    home=lambda op, g: g.rot90(-op.k, op.dims),
    product=r"\operatorname{rot90}($g; -k)",
    samples=lambda: [sample(torch.rot90, x(2, 3)), sample(torch.rot90, x(2, 3, 2), 3, (1, 2))],
)


def _triangle(name: str, part: str, diagonal: int) -> Rule:
    return moves(
        f"{name.capitalize()}Backward0",
        equation=_named(name, "diagonal"),
        move=lambda op, v: getattr(v, name)(op.diagonal),
        home=lambda op, g: getattr(g, name)(op.diagonal),
        product=rf"\operatorname{{{name}}}($g)",
        zeros=f"an element is copied to its own place where that lies in the {part} triangle, else 0 is written there",
        samples=lambda: [
            sample(getattr(torch, name), x(3, 3), diagonal),
            sample(getattr(torch, name), x(2, 2, 3), -1),
        ],
    )


tril, triu = _triangle("tril", "lower", 0), _triangle("triu", "upper", 1)

constant_pad_nd = moves(
    "ConstantPadNdBackward0",
    equation=_named("pad", "pad", "value"),
    move=lambda op, v: F.pad(v, op.pad),
    home=lambda op, g: F.pad(g, [-amount for amount in op.pad]),
    product=r"$g \text{ without the border}",
    zeros=FILLED,
    samples=lambda: [
        sample(F.pad, x(2, 3), (1, 2), value=5.0),
        sample(F.pad, x(2, 3), (1, -1, -1, 0), note="negative amounts cut"),
        sample(F.pad, x(0, 3), (0, 0, 1, 1), note="empty"),
    ],
)

pixel_shuffle = moves(
    "PixelShuffleBackward0",
    equation=_named("pixel_shuffle", "upscale_factor"),
    move=lambda op, v: F.pixel_shuffle(v, op.upscale_factor),
    home=lambda op, g: F.pixel_unshuffle(g, op.upscale_factor),
    product=r"\operatorname{pixel\_unshuffle}($g)",
    samples=lambda: [sample(F.pixel_shuffle, x(1, 4, 2, 3), 2)],
)

pixel_unshuffle = moves(
    "PixelUnshuffleBackward0",
    equation=_named("pixel_unshuffle", "downscale_factor"),
    move=lambda op, v: F.pixel_unshuffle(v, op.downscale_factor),
    home=lambda op, g: F.pixel_shuffle(g, op.downscale_factor),
    product=r"\operatorname{pixel\_shuffle}($g)",
    samples=lambda: [sample(F.pixel_unshuffle, x(1, 1, 4, 2), 2)],
)

channel_shuffle = moves(
    "ChannelShuffleBackward0",
    "NativeChannelShuffleBackward0",
    equation=_named("channel_shuffle", "groups"),
    move=lambda op, v: F.channel_shuffle(v, op.groups),
    home=lambda op, g: F.channel_shuffle(g, g.shape[1] // op.groups),
    product=r"\operatorname{channel\_shuffle}^{-1}($g)",
    samples=lambda: [sample(F.channel_shuffle, x(2, 6, 1, 2), 2)],
    source="derivatives.yaml: channel_shuffle. Channels (group, place) become (place, group).",
)


# Complex numbers as pairs ----------------------------------------------------------------------------------------

conj = rule(
    "ConjBackward0",
    "ConjPhysicalBackward0",
    equation=r"$out = \overline{$self}",
    wrt={"self": Wrt(lambda op, g: g.conj(), r"\text{conjugation}", r"\overline{$g}", COPIES)},
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

view_as_real = rule(
    "ViewAsRealBackward0",
    "ViewAsRealBackward0_copy",
    equation=r"$out = (\operatorname{Re} $self, \operatorname{Im} $self)",
    wrt={"self": Wrt(lambda op, g: torch.complex(g[..., 0], g[..., 1]), "1", r"{$g}_{0} + i \, {$g}_{1}", COPIES)},
    structure="linear",
    samples=lambda: [
        sample(torch.view_as_real, x(2, 3, dtype=torch.complex128)),
        sample(torch.real, x(2, dtype=torch.complex128)),
    ],
)

view_as_complex = rule(
    "ViewAsComplexBackward0",
    "ViewAsComplexBackward0_copy",
    equation=r"$out = {$self}_{0} + i \, {$self}_{1}",
    wrt={
        "self": Wrt(
            lambda op, g: torch.stack((g.real, g.imag), -1),
            "(1, i)",
            r"(\operatorname{Re} $g, \operatorname{Im} $g)",
            COPIES,
        )
    },
    structure="linear",
    samples=lambda: [sample(torch.view_as_complex, x(3, 2))],
)

complex_ = rule(
    "ComplexBackward0",
    equation=r"$out = $real + i \, $imag",
    wrt={
        "real": Wrt(lambda op, g: g.real, "1", r"\operatorname{Re} $g", COPIES),
        "imag": Wrt(lambda op, g: g.imag, "i", r"\operatorname{Im} $g", COPIES),
    },
    structure="linear",
    samples=lambda: [sample(torch.complex, x(3), x(3)), sample(torch.complex, x(2, 1), x(3), note="broadcast")],
)

# Joined and cut --------------------------------------------------------------------------------------------------


Pieces = Sequence[Tensor]


def joins(
    node: str,
    equation: str,
    join: Callable[[Any, Pieces], Tensor],
    cut: Callable[[Any, Tensor], Pieces],
    product: str,
    samples: Callable[[], Iterable[Sample]],
    zeros: str = COPIES,
) -> Rule:
    """Register an operation that joins a list of tensors; `cut` takes a tensor of the output's shape apart again."""

    def home(op: Any, g: Tensor) -> list[Tensor]:
        return [piece.reshape(each.shape) for piece, each in zip(cut(op, g), op.tensors, strict=True)]

    def factor(op: Any, out_index: Index, in_index: Index) -> Factor | None:
        """`in_index` begins with the place in the list; that tensor's elements are counted, all others are 0."""
        item, *place = in_index
        marked = [_labels(each) * (position == item) for position, each in enumerate(op.tensors)]
        came_from = join(op, marked)[out_index]
        return Factor(latex="1") if came_from == marked[item][tuple(place)] else None

    wrt = {"tensors": Wrt(home, "1", product, zeros, factor)}
    return rule(node, equation=equation, wrt=wrt, structure="linear", samples=samples)


def _widths(op: Any) -> list[int]:
    """torch.cat lets an empty vector stand among tensors of any shape; it takes no room."""
    return [0 if each.shape == (0,) else each.shape[op.dim] for each in op.tensors]


cat = joins(
    "CatBackward0",
    r"$out = \operatorname{cat}($tensors; \text{dim} = $dim)",
    lambda op, pieces: torch.cat(list(pieces), op.dim),
    lambda op, g: g.split(_widths(op), op.dim),
    r"\text{the parts of } $g \text{ along dim } $dim",
    lambda: [
        sample(lambda a, b: torch.cat([a, b]), x(2, 3), x(1, 3)),
        sample(lambda a, b: torch.cat([a, b], -1), x(2, 3), x(2, 1)),
        sample(lambda a, b: torch.cat([a, b]), x(0), x(2, 3), note="an empty vector among matrices"),
        sample(lambda a: torch.cat([a, a]), x(2), note="one tensor twice"),
    ],
)

stack = joins(
    "StackBackward0",
    r"$out = \operatorname{stack}($tensors; \text{dim} = $dim)",
    lambda op, pieces: torch.stack(list(pieces), op.dim),
    lambda op, g: g.unbind(op.dim),
    r"\text{the slices of } $g \text{ along dim } $dim",
    lambda: [
        sample(lambda a, b: torch.stack([a, b]), x(2, 3), x(2, 3)),
        sample(lambda a, b: torch.stack([a, b], -1), x(2), x(2)),
        sample(lambda a: torch.stack([a]), x(), note="0-dim"),
    ],
)


def _blocks(op: Any, g: Tensor) -> list[Tensor]:
    blocks, row, column = [], 0, 0
    for height, width in (torch.atleast_2d(each).shape for each in op.tensors):
        blocks.append(g[row : row + height, column : column + width])
        row, column = row + height, column + width
    return blocks


block_diag = joins(
    "BlockDiagBackward0",
    r"$out = \operatorname{block\_diag}($tensors)",
    lambda op, pieces: torch.block_diag(*pieces),
    _blocks,
    r"\text{the blocks of } $g",
    lambda: [sample(torch.block_diag, x(2, 3), x(2), x(), note="a matrix, a vector and a number")],
    zeros=FILLED,
)


def cuts(
    *nodes: str,
    verb: str,
    join: Callable[[Any, Pieces], Tensor],
    inverse: str,
    samples: Callable[[], Iterable[Sample]],
    **more: Any,
) -> Rule:
    """Register an operation that cuts `self` into parts; `join` puts them together again, zeros where none came."""

    def home(op: Any, gs: tuple[Tensor | None, ...]) -> Tensor:
        return join(op, [torch.zeros_like(out) if g is None else g for out, g in zip(op.outs, gs, strict=False)])

    def pattern(op: Any) -> Pattern | None:
        return copied(op.out.numel(), op.self.numel()) if real(op.out, op.self) else None

    return rule(
        *nodes,
        equation=rf"$out = \operatorname{{{verb}}}($self; \text{{dim}} = $dim)",
        wrt={"self": Wrt(home, "1", rf"\operatorname{{{inverse}}}($g)", COPIES, pattern=pattern)},
        structure="linear",
        outputs=2,
        samples=samples,
        **more,
    )


split = cuts(
    "SplitBackward0",
    "SplitWithSizesBackward0",
    "UnsafeSplitBackward0",
    "UnsafeSplitWithSizesBackward0",
    verb="split",
    join=lambda op, pieces: torch.cat(list(pieces), op.dim),
    inverse="cat",
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
    verb="unbind",
    join=lambda op, pieces: torch.stack(list(pieces), op.dim),
    inverse="stack",
    samples=lambda: [sample(torch.unbind, x(2, 3)), sample(torch.unbind, x(2, 1), -1)],
    source="derivatives.yaml: unbind.int",
)
