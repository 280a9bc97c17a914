"""Rules of operations that only move elements: reshape, pick, join, cut, repeat, mirror, pad.

Each output element is a copy of one input element (or a constant), so the Jacobian has a single 1 in each row, and
going back means: send every upstream element home to the place it was copied from, and add where several come home.
A rule tells how the operation moves a tensor; which entry of the Jacobian is 1 follows by moving the positions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn import functional as F

from chainrule.rules import Applied, Factor, Rule, Sample, Wrt, rule, sample
from chainrule.rules.pattern import Pattern, copied, identity, permuted, real

Index = tuple[int, ...]
Move = Callable[[Any, Tensor], Tensor]

COPIES = "each output element is a copy of one input element alone, so every row of the Jacobian has a single 1"
FILLED = "each output element is a copy of one input element, or a constant: a row of the Jacobian has at most one 1"


def x(*shape: int, dtype: torch.dtype | None = None) -> Tensor:
    """A sample input that wants a gradient: 1, 2, 3, ... in the given shape."""
    count = torch.Size(shape).numel()
    return (torch.arange(count, dtype=torch.get_default_dtype()) + 1).to(dtype).reshape(shape).requires_grad_()


def moves(
    *nodes: str,
    equation: str | Callable[[Any], str],
    move: Move,
    home: Move | None = None,
    product: str | Callable[[Any], str],
    samples: Callable[[], Iterable[Sample]],
    source: str,
    zeros: str = COPIES,
    local: str = "1",
    **more: Any,
) -> Rule:
    """Register an operation that moves the elements of `self`: `move(op, tensor)` does to a tensor what it did.

    `home(op, g)` is the way back; without one, `move` gives a view, and the way back writes g through that view.
    """
    way = home or _through(move)
    pattern = _pattern(move, in_order=home is _reshape_home, filled=zeros is not COPIES)
    return rule(
        *nodes,
        equation=equation,
        wrt={"self": Wrt(way, local, product, zeros, _moved(move), pattern)},
        samples=samples,
        source=source,
        structure="linear",
        **more,
    )


def _pattern(move: Move, in_order: bool, filled: bool) -> Callable[[Any], Pattern | None]:
    """A selection; where nothing is left out, repeated or filled in, a permutation, or the identity `in_order`."""

    def pattern(op: Any) -> Pattern | None:
        if not real(op.self, op.out):
            return None
        out, into = op.out.numel(), op.self.numel()
        if in_order:
            return identity(out)
        origins = copied(out, into, lambda: move(op, _positions(op.self).double() + 1).long(), filled)
        return permuted(out) if out == into and not filled and not _repeats(op) else origins

    return pattern


def _repeats(op: Any) -> bool:
    """Whether one element may have been copied to several places, also where there are as many as before."""
    return any(name in op.arguments for name in ("step", "stride"))


def _through(view: Move) -> Move:
    """The way back through a view without overlap: on an empty page of the input's shape, write g in that view."""

    def home(op: Any, g: Tensor) -> Tensor:
        page = g.new_zeros(op.self.shape)
        view(op, page).copy_(g)
        return page

    return home


def _overlapping(move: Move) -> Move:
    """The way back where one input element may have gone to several places: all that comes home is added."""

    def home(op: Any, g: Tensor) -> Tensor:
        origins = move(op, _positions(op.self))
        return g.new_zeros(op.self.numel()).index_add(0, origins.reshape(-1), g.reshape(-1)).reshape(op.self.shape)

    return home


def _positions(t: Tensor) -> Tensor:
    return torch.arange(t.numel(), device=t.device).reshape(t.shape)


_origins: WeakKeyDictionary[Applied, Tensor] = WeakKeyDictionary()  # a reader asks for many entries of one Jacobian


def _moved(move: Move) -> Callable[[Any, Index, Index], Factor | None]:
    """The Jacobian entry of a move: 1 where the output element came from that input element, else structurally zero."""

    def factor(op: Any, out_index: Index, in_index: Index) -> Factor | None:
        if op not in _origins:
            # counted from 1, as 0 is what an operation fills in; as floating point, as not every move takes integers
            _origins[op] = move(op, _positions(op.self).double() + 1)
        position = 0
        for place, size in zip(in_index, op.self.shape, strict=True):
            position = position * size + place
        return Factor(latex="1") if _origins[op][out_index] == position + 1 else None

    return factor


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


# Turned and reshaped ---------------------------------------------------------------------------------------------

t = moves(
    "TBackward0",
    "TBackward0_copy",
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

transpose = moves(
    "TransposeBackward0",
    "TransposeBackward0_copy",
    equation=lambda op: "$out = $self^{T}" if op.self.dim() == 2 else _named("transpose", "dim0", "dim1")(op),
    move=lambda op, v: v.transpose(op.dim0, op.dim1),
    home=lambda op, g: g.transpose(op.dim0, op.dim1),
    product=lambda op: "$g^{T}" if op.self.dim() == 2 else r"\operatorname{transpose}($g)",
    samples=lambda: [sample(torch.transpose, x(2, 3, 4), 0, -1), sample(torch.swapaxes, x(1, 3), 0, 1)],
    source="derivatives.yaml: transpose.int. Exchanging two axes twice changes nothing.",
)


def _permute_home(op: Any, g: Tensor) -> Tensor:
    came_from = [dim % op.self.dim() for dim in op.dims]
    return g.permute([came_from.index(axis) for axis in range(len(came_from))])


permute = moves(
    "PermuteBackward0",
    "PermuteBackward0_copy",
    equation=lambda op: "$out = $self^{T}" if op.self.dim() == 2 else _named("permute", "dims")(op),
    move=lambda op, v: v.permute(op.dims),
    home=_permute_home,
    product=lambda op: "$g^{T}" if op.self.dim() == 2 else r"\operatorname{permute}^{-1}($g)",
    samples=lambda: [
        sample(torch.permute, x(2, 3, 4), (2, 0, 1)),
        sample(torch.permute, x(2, 3, 4), (-1, 0, -2)),
        sample(torch.movedim, x(2, 3, 1), 0, 2),
        sample(torch.permute, x(), (), note="0-dim"),
    ],
    source="derivatives.yaml: permute. The inverse permutation brings every axis home.",
)

view = moves(
    "ViewBackward0",
    "UnsafeViewBackward0",
    "ReshapeAliasBackward0",
    "ReshapeCopyBackward0",
    "ViewBackward0_copy",
    equation=lambda op: rf"$out = \operatorname{{reshape}}($self;\ {_sizes(op.outs[0].shape)})",
    move=lambda op, v: v.reshape(op.out.shape),
    home=_reshape_home,
    product=lambda op: rf"\operatorname{{reshape}}($g;\ {_sizes(op.self.shape)})",
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

unsqueeze = moves(
    "UnsqueezeBackward0",
    "UnsqueezeBackward0_copy",
    equation=_named("unsqueeze", "dim"),
    move=lambda op, v: v.unsqueeze(op.dim),
    home=_reshape_home,
    product=lambda op: rf"\operatorname{{reshape}}($g;\ {_sizes(op.self.shape)})",
    samples=lambda: [sample(torch.unsqueeze, x(2, 3), 1), sample(torch.unsqueeze, x(), -1, note="0-dim")],
)

squeeze = moves(
    "SqueezeBackward0",
    "SqueezeBackward0_copy",
    equation=_named("squeeze", "dim"),
    move=lambda op, v: v.reshape(op.out.shape),
    home=_reshape_home,
    product=lambda op: rf"\operatorname{{reshape}}($g;\ {_sizes(op.self.shape)})",
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

expand = moves(
    "ExpandBackward0",
    "ExpandBackward0_copy",
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


def _repeat_home(op: Any, g: Tensor) -> Tensor:
    """Split each axis into (repetition, place) and sum over the repetitions."""
    sizes = (1,) * (len(op.repeats) - op.self.dim()) + tuple(op.self.shape)
    pairs = [size for pair in zip(op.repeats, sizes, strict=True) for size in pair]
    repetitions = tuple(range(0, len(pairs), 2))
    return (g.reshape(pairs).sum(repetitions) if repetitions else g).reshape(op.self.shape)


repeat = moves(
    "RepeatBackward0",
    equation=_named("repeat", "repeats"),
    move=lambda op, v: v.repeat(op.repeats),
    home=_repeat_home,
    product=r"\sum_{\text{copies}} $g",
    samples=lambda: [
        sample(torch.Tensor.repeat, x(2, 3), 2, 1, 2),
        sample(torch.tile, x(3), (2,)),
        sample(torch.Tensor.repeat, x(3), 0, note="no copy"),
        sample(torch.Tensor.repeat, x(), 3, note="0-dim"),
    ],
)

# Picked out ------------------------------------------------------------------------------------------------------

select = moves(
    "SelectBackward0",
    "SelectBackward0_copy",
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


def _slice(op: Any, v: Tensor) -> Tensor:
    return v[(slice(None),) * (op.dim % v.dim()) + (slice(op.start, op.end, op.step),)]


slice_ = moves(
    "SliceBackward0",
    "SliceBackward0_copy",
    equation=lambda op: f"$out = $self[{_range(op)}]",
    move=_slice,
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

diagonal = moves(
    "DiagonalBackward0",
    "DiagonalBackward0_copy",
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
    home=_overlapping(lambda op, v: v.unfold(op.dimension, op.size, op.step)),
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


def _as_strided_home(op: Any, g: Tensor) -> Tensor:
    origins = strided_origins(op)
    assert origins is not None
    return g.new_zeros(op.self.numel()).index_add(0, origins.reshape(-1), g.reshape(-1)).reshape(op.self.shape)


as_strided = moves(
    "AsStridedBackward0",
    "AsStridedBackward0_copy",
    equation=_named("as_strided", "size", "stride", "storage_offset"),
    move=lambda op, v: v.reshape(-1)[strided_origins(op)],
    home=_as_strided_home,
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

tril = moves(
    "TrilBackward0",
    equation=_named("tril", "diagonal"),
    move=lambda op, v: v.tril(op.diagonal),
    home=lambda op, g: g.tril(op.diagonal),
    product=r"\operatorname{tril}($g)",
    zeros="an element is copied to its own place where that lies in the lower triangle, and 0 is written elsewhere",
    samples=lambda: [sample(torch.tril, x(3, 3)), sample(torch.tril, x(2, 2, 3), -1)],
)

triu = moves(
    "TriuBackward0",
    equation=_named("triu", "diagonal"),
    move=lambda op, v: v.triu(op.diagonal),
    home=lambda op, g: g.triu(op.diagonal),
    product=r"\operatorname{triu}($g)",
    zeros="an element is copied to its own place where that lies in the upper triangle, and 0 is written elsewhere",
    samples=lambda: [sample(torch.triu, x(3, 3), 1), sample(torch.triu, x(2, 2, 3), -1)],
)

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
    move=lambda op, v: _exchange(v, op.groups),
    home=lambda op, g: _exchange(g, g.shape[1] // op.groups),
    product=r"\operatorname{channel\_shuffle}^{-1}($g)",
    samples=lambda: [sample(F.channel_shuffle, x(2, 6, 1, 2), 2)],
    source="derivatives.yaml: channel_shuffle. Channels (group, place) become (place, group).",
)


def _exchange(v: Tensor, groups: int) -> Tensor:
    grouped = v.reshape(v.shape[0], groups, v.shape[1] // groups, *v.shape[2:])
    return grouped.transpose(1, 2).reshape(v.shape)


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


def _parts(op: Any, g: Tensor) -> list[Tensor]:
    dim = op.dim % g.dim()
    # torch.cat lets an empty vector stand among tensors of any shape; it takes no room
    widths = [0 if each.shape == (0,) else each.shape[dim] for each in op.tensors]
    starts = accumulate(widths, initial=0)
    pieces = [g.narrow(dim, start, width) for start, width in zip(starts, widths, strict=False)]
    return [piece.reshape(each.shape) for piece, each in zip(pieces, op.tensors, strict=True)]


def _cat_factor(op: Any, out_index: Index, in_index: Index) -> Factor | None:
    """`in_index` begins with the place in the list."""
    item, *place = in_index
    dim = op.dim % len(out_index)
    place[dim] += sum(each.shape[dim] for each in op.tensors[:item] if each.shape != (0,))
    return Factor(latex="1") if tuple(place) == out_index else None


def _stack_factor(op: Any, out_index: Index, in_index: Index) -> Factor | None:
    """`in_index` begins with the place in the list."""
    item, *place = in_index
    place.insert(op.dim % len(out_index), item)
    return Factor(latex="1") if tuple(place) == out_index else None


cat = rule(
    "CatBackward0",
    equation=r"$out = \operatorname{cat}($tensors; \text{dim} = $dim)",
    wrt={"tensors": Wrt(_parts, "1", r"\text{the parts of } $g \text{ along dim } $dim", COPIES, _cat_factor)},
    structure="linear",
    samples=lambda: [
        sample(lambda a, b: torch.cat([a, b]), x(2, 3), x(1, 3)),
        sample(lambda a, b: torch.cat([a, b], -1), x(2, 3), x(2, 1)),
        sample(lambda a, b: torch.cat([a, b]), x(0), x(2, 3), note="an empty vector among matrices"),
        sample(lambda a: torch.cat([a, a]), x(2), note="one tensor twice"),
    ],
)

stack = rule(
    "StackBackward0",
    equation=r"$out = \operatorname{stack}($tensors; \text{dim} = $dim)",
    wrt={
        "tensors": Wrt(
            lambda op, g: list(g.unbind(op.dim)),
            "1",
            r"\text{the slices of } $g \text{ along dim } $dim",
            COPIES,
            _stack_factor,
        )
    },
    structure="linear",
    samples=lambda: [
        sample(lambda a, b: torch.stack([a, b]), x(2, 3), x(2, 3)),
        sample(lambda a, b: torch.stack([a, b], -1), x(2), x(2)),
        sample(lambda a: torch.stack([a]), x(), note="0-dim"),
    ],
)


def _defined(op: Any, gs: tuple[Tensor | None, ...]) -> list[Tensor]:
    """One gradient for each part: zeros where nothing came back."""
    return [torch.zeros_like(out) if g is None else g for out, g in zip(op.outs, gs, strict=False)]


def _part(op: Any) -> Pattern | None:
    """Of each part: its elements are copies of the whole's."""
    return copied(op.out.numel(), op.self.numel()) if real(op.out, op.self) else None


split = rule(
    "SplitBackward0",
    "SplitWithSizesBackward0",
    "UnsafeSplitBackward0",
    "UnsafeSplitWithSizesBackward0",
    equation=r"$out = \operatorname{split}($self; \text{dim} = $dim)",
    wrt={
        "self": Wrt(
            lambda op, gs: torch.cat(_defined(op, gs), op.dim), "1", r"\operatorname{cat}($g)", COPIES, pattern=_part
        )
    },
    structure="linear",
    outputs=2,
    samples=lambda: [
        sample(torch.split, x(5, 2), 2),
        sample(torch.split, x(2, 5), [1, 4], 1),
        sample(torch.chunk, x(2, 5), 2, -1),
        sample(torch.split, x(2, 2), 3, note="one part"),
    ],
    source="derivatives.yaml: split.Tensor, split_with_sizes",
)

unbind = rule(
    "UnbindBackward0",
    equation=r"$out = \operatorname{unbind}($self; \text{dim} = $dim)",
    wrt={
        "self": Wrt(
            lambda op, gs: torch.stack(_defined(op, gs), op.dim),
            "1",
            r"\operatorname{stack}($g)",
            COPIES,
            pattern=_part,
        )
    },
    structure="linear",
    outputs=2,
    samples=lambda: [sample(torch.unbind, x(2, 3)), sample(torch.unbind, x(2, 1), -1)],
    source="derivatives.yaml: unbind.int",
)


def _blocks(op: Any, g: Tensor) -> list[Tensor]:
    gradients, row, column = [], 0, 0
    for each in op.tensors:
        height, width = torch.atleast_2d(each).shape
        gradients.append(g[row : row + height, column : column + width].reshape(each.shape))
        row, column = row + height, column + width
    return gradients


block_diag = rule(
    "BlockDiagBackward0",
    equation=r"$out = \operatorname{block\_diag}($tensors)",
    wrt={"tensors": Wrt(_blocks, "1", r"\text{the blocks of } $g", FILLED)},
    structure="linear",
    samples=lambda: [sample(torch.block_diag, x(2, 3), x(2), x(), note="a matrix, a vector and a number")],
)

# Written into a copy ---------------------------------------------------------------------------------------------


def _written(node: str, place: Move, equation: str, samples: Callable[[], Iterable[Sample]], source: str) -> Rule:
    """Register an operation that copies `self` and writes `src` where `place` looks."""

    def untouched(op: Any, g: Tensor) -> Tensor:
        rest = g.clone()
        place(op, rest).zero_()
        return rest

    wrt = {
        "self": Wrt(untouched, "1", r"$g \text{ with zeros where } $src \text{ was written}", FILLED),
        "src": Wrt(place, "1", r"$g \text{ where } $src \text{ was written}", COPIES),
    }
    return rule(node, equation=equation, wrt=wrt, structure="linear", samples=samples, source=source)


slice_scatter = _written(
    "SliceScatterBackward0",
    _slice,
    r"$out = $self \text{ with } $src \text{ written into a slice of dim } $dim",
    lambda: [sample(torch.slice_scatter, x(4, 3), x(2, 3), 0, 1, 3)],
    "derivatives.yaml: slice_scatter",
)

select_scatter = _written(
    "SelectScatterBackward0",
    lambda op, v: v.select(op.dim, op.index),
    r"$out = $self \text{ with } $src \text{ written at index } $index \text{ of dim } $dim",
    lambda: [sample(torch.select_scatter, x(4, 3), x(4), 1, -1)],
    "derivatives.yaml: select_scatter",
)

diagonal_scatter = _written(
    "DiagonalScatterBackward0",
    lambda op, v: v.diagonal(op.offset, op.dim1, op.dim2),
    r"$out = $self \text{ with } $src \text{ written on a diagonal}",
    lambda: [sample(torch.diagonal_scatter, x(4, 3), x(3))],
    "derivatives.yaml: diagonal_scatter",
)
