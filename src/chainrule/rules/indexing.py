"""Rules of operations that pick or write elements by index or mask, and of orderings.

The index says where each element came from or went to; it carries no gradient itself. Picking sends each upstream
element back to its origin (an origin picked twice gets the sum); writing cuts the gradient of what was overwritten.
Both are one map, read one way or the other: it is stated once, as `move` (what is read) and `came` (from where).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from chainrule.rules import Convention, Kink, Rule, reduce_to_shape, rule, sample
from chainrule.rules import at as element
from chainrule.rules.index_notation import (
    LETTERS,
    OTHERS,
    Side,
    Statements,
    Term,
    digits,
    fitted,
    own_letters,
    places,
    position,
    ranges,
    row_major,
    runs,
    total,
)
from chainrule.rules.shape import (
    DIAGONAL,
    FILLED,
    SELECT,
    SLICE,
    STRIDED,
    Came,
    Move,
    labels,
    moves,
    strided_origins,
    x,
)

WRITTEN = "each output element is made of what was there before and of what was written there, and of nothing else"

CONTESTED = "repeated indices: all that is written to one place gets the gradient of that place, though one of it stays"


def at(*places: Any) -> Tensor:
    """An index."""
    return torch.tensor(places, dtype=torch.long)


@dataclass(frozen=True)
class Masked:
    """Elements at which a mask holds, one after the other: the element at `own` is number `rank`, as `given` says."""

    own: list[str]
    runs: dict[str, int]
    axes: range
    mask: str
    rank: str
    given: list[str]

    @property
    def place(self) -> list[str]:
        """The indices of the element among those that are chosen: its number stands for the axes of the mask."""
        return [*self.own[: self.axes.start], self.rank, *self.own[self.axes.stop :]]


def masked(name: str, mask: Tensor, shape: Sequence[int], axes: range) -> Masked:
    """The elements of a shape that a mask along some axes chooses."""
    own = list(LETTERS[: len(shape)])
    other = [OTHERS[4 + axis] if axis in axes else letter for axis, letter in enumerate(own)]
    sizes = [shape[axis] for axis in axes]
    here, there = ([each[axis] for axis in axes] for each in (own, other))
    rank = f"R_{{{', '.join(here)}}}"
    before = f"{position(there, row_major(sizes))} < {position(here, row_major(sizes))}"
    counted = total(there, [before], element(name, fitted(there, mask)))
    given = [f"{rank} = {counted}", *ranges(there, sizes).values()]
    return Masked(own, runs(own, shape), axes, element(name, fitted(here, mask)), rank, given)


Mask = Callable[[Any], Masked | None]


def picks(*nodes: str, by_mask: Mask = lambda op: None, **more: Any) -> Rule:
    """Register an operation that copies chosen elements of `self`, perhaps several times; or those of a mask."""

    def term(op: Any) -> Term | None:
        mask = by_mask(op)
        if mask is None:
            return None
        into = Side("self", op.self.shape, fitted(mask.own, op.self))
        return Term(Side("out", op.out.shape, mask.place), into, mask.runs, [f"{mask.mask} = 1"], given=mask.given)

    return moves(*nodes, repeats=True, term=term, **more)


def writes(
    *nodes: str,
    move: Move,
    came: Came = lambda op, at: at,
    argument: str = "src",
    index: Sequence[str] = (),
    adds: Callable[[Any], bool] = lambda op: False,
    only: Callable[[Any, list[str]], str] | None = None,
    scale: str = "",
    by_mask: Mask = lambda op: None,
    repeats: str = "",
    **more: Any,
) -> Rule:
    """Register an operation that copies `self` and writes elements of `argument` at some places, or `adds` them there.

    `move(op, tensor)` reads the elements of a tensor like `self` at these places, and `came(op, at)` are the indices
    of the place to which the element `at` goes, where the condition `only` holds. A single number goes to all places.
    `repeats` names the function whose documentation says what holds where several elements go to one place.
    """

    def kept(op: Any, g: Tensor) -> Tensor:
        if adds(op):
            return g
        return g.reshape(-1).index_fill(0, move(op, labels(g)).reshape(-1) - 1, 0).reshape(g.shape)

    def sources(op: Any, g: Tensor) -> Tensor:
        """In the shape of the places: the walk sums where what is written was broadcast."""
        found, source = move(op, g), op.arguments[argument]
        found = op.arguments[scale] * found if scale else found
        if not source.dim() and not adds(op):
            return found.sum() if repeats else (g - kept(op, g)).sum()
        if source.numel() > found.numel():  # what lies beyond was not read
            home = g.new_zeros(source.shape if source.dim() == found.dim() else source.numel())
            home[tuple(slice(size) for size in found.shape)] = found
            return home.reshape(source.shape)
        return found.reshape(source.shape) if found.numel() == source.numel() else found

    def contested(op: Any, radius: float) -> Tensor:
        """What is written to a place to which something else is written too."""
        source = op.arguments[argument]
        if adds(op):
            return torch.zeros_like(source, dtype=torch.bool)
        uses = move(op, labels(op.self)).reshape(-1).long().bincount(minlength=op.self.numel() + 1)[1:]
        return reduce_to_shape(sources(op, (uses > 1).to(torch.int64).reshape(op.self.shape)), source.shape)[0] > 0

    def side(name: str, op: Any, at: Sequence[str]) -> Side:
        given = op.out if name == "out" else op.arguments[name]
        return Side(name, given.shape if isinstance(given, Tensor) else (), at)

    def both(op: Any, own: list[str], free: str, comes: Term, given: Sequence[str] = ()) -> list[Term]:
        """What stays at a place that is `free`, and what comes there."""
        stays = Term(side("out", op, own), side("self", op, own), runs(own, op.self.shape))
        return [stays if adds(op) else replace(stays, rate=f"[{free}]", given=given), comes]

    def terms(op: Any) -> list[Term]:
        source = op.arguments[argument]
        if mask := by_mask(op):
            in_a_row = source.dim() > len(mask.place)
            read = side(argument, op, digits(mask.rank, source.shape) if in_a_row else fitted(mask.place, source))
            comes = Term(side("out", op, mask.own), read, mask.runs, [f"{mask.mask} = 1"], given=mask.given)
            return both(op, mask.own, f"{mask.mask} = 0", comes)
        size = move(op, labels(op.self)).shape
        at = places(size)
        single = not isinstance(source, Tensor) or (not source.dim() and op.self.dim() > 0)
        read = side(argument, op, () if single else fitted(at, source))
        held = [only(op, at)] if only else ()
        comes = Term(side("out", op, came(op, at)), read, runs(at, size), held, f"${scale}" if scale else "1")
        own = own_letters([comes])
        named = ", ".join(letter for letter in own if letter != "0")
        count, among = f"N_{{{named}}}" if named else "N", comes.letters(own)
        given = [f"{count} = {total(among, comes.met(own), '1')}"]
        sizes = dict(zip(own, op.self.shape, strict=True))
        unclear = {a: sizes.get(a, n) for a, n in comes.runs.items() if sizes.get(a) != n}
        given += ranges(unclear, unclear.values()).values()
        if single:
            held = [f"{count} > 0"]
            comes = Term(side("out", op, own), read, runs(own, op.self.shape), held, given=given)
        return both(op, own, f"{count} = 0", comes, given)

    said = Statements(terms, added=True)
    wrt = {"self": said.wrt("self", kept, WRITTEN)}
    if argument not in index:
        wrt[argument] = said.wrt(argument, sources, WRITTEN)
    constants = dict.fromkeys((each for each in index if each != argument), "not differentiable")
    if repeats:
        more["conventions"] = (Convention(contested, CONTESTED, argument, repeats),)
    return rule(*nodes, equation=said.equation, wrt=wrt, constants=constants, structure="linear", **more)


def along(op: Any, at: list[str], place: str) -> list[str]:
    """Indices with another one along `dim`."""
    return [place if axis == op.dim % len(at) else each for axis, each in enumerate(at)]


# The maps that are read and written ------------------------------------------------------------------------------


def _indexed(op: Any, at: list[str]) -> list[str]:
    """Where advanced indexing reads: the axes of the indices stand at the first of theirs, or in front if apart."""
    axes = [axis for axis, each in enumerate(op.indices) if each is not None]
    shape = torch.broadcast_shapes(*(op.indices[axis].shape for axis in axes))
    start = axes[0] if axes == list(range(axes[0], axes[-1] + 1)) else 0
    mine, rest = at[start : start + len(shape)], iter([*at[:start], *at[start + len(shape) :]])
    origin = []
    for axis, size in enumerate(op.self.shape):
        place = element(f"indices{axis}", fitted(mine, op.indices[axis])) if axis in axes else next(rest)
        signed = axis in axes and bool((op.indices[axis] < 0).any() | (op.indices[axis] >= size).any())
        origin.append(rf"{place} \bmod {size}" if signed else place)
    return origin


def _index_mask(op: Any) -> Masked | None:
    """The mask among indices; None where they are numbers."""
    for axis, each in enumerate(op.indices):
        if each is not None and each.dtype == torch.bool:
            return masked(f"indices{axis}", each, op.self.shape, range(axis, axis + each.dim()))
    return None


def _whole_mask(op: Any) -> Masked:
    shape = torch.broadcast_shapes(op.mask.shape, op.self.shape)
    return masked("mask", op.mask, shape, range(len(shape)))


aten, SOME = torch.ops.aten, torch.tensor([True, False, True])
Map = dict[str, Any]  # what `moves` and `writes` have in common
SELECTED: Map = {
    "move": lambda op, v: v.index_select(op.dim, op.index.reshape(-1)) if v.dim() else v,
    "came": lambda op, at: along(op, at, element("index", [at[op.dim]] * op.index.dim())) if at else [],
    "index": ("index",),
}
GATHERED: Map = {
    "move": lambda op, v: v.gather(op.dim, op.index),
    "came": lambda op, at: along(op, at, element("index", at)),
    "index": ("index",),
}
INDEXED: Map = {
    "move": lambda op, v: aten.index(v, op.indices),  # takes None among the indices, unlike Tensor.index_put
    "came": _indexed,
    "by_mask": _index_mask,
    "index": ("indices",),
}
MASKED: Map = {"move": lambda op, v: v.masked_select(op.mask), "by_mask": _whole_mask, "index": ("mask",)}
TAKEN: Map = {
    "move": lambda op, v: v.take(op.index),
    "came": lambda op, at: digits(rf"{element('index', at)} \bmod {op.self.numel()}", op.self.shape),
    "index": ("index",),
}
UNSAFE: Map = {
    "move": lambda op, v: aten._unsafe_masked_index(v, op.mask, op.indices, 0),
    "came": _indexed,
    "only": lambda op, at: f"{element('mask', fitted(at, op.mask))} = 1",
    "index": ("mask", "indices"),
}

# Picked ----------------------------------------------------------------------------------------------------------

index_select = picks(
    "IndexSelectBackward0",
    **SELECTED,
    samples=lambda: [
        sample(torch.index_select, x(3, 4), 1, at(0, 0, 2), note="one place twice"),
        sample(torch.index_select, x(3, 4), -2, at(2)),
        sample(torch.index_select, x(3, 4), 0, at(), note="empty"),
        sample(torch.index_select, x(), 0, at(0), note="0-dim"),
    ],
)

gather = picks(
    "GatherBackward0",
    **GATHERED,
    home=lambda op, g: g.new_zeros(op.self.shape).scatter_add(op.dim, op.index, g),
    samples=lambda: [
        sample(torch.gather, x(3, 4), 1, at((0, 1), (2, 2)), note="fewer rows, one place twice"),
        sample(torch.gather, x(3, 4), 0, at((0, 1, 2, 0))),
        sample(torch.take_along_dim, x(2, 3), at((0, 2), (1, 1)), 1),
        sample(torch.gather, x(3, 4), 0, torch.zeros(0, 4, dtype=torch.long), note="empty"),
        sample(torch.gather, x(), 0, torch.tensor(0), note="0-dim"),
    ],
)

index = picks(
    "IndexBackward0",
    "UnsafeIndexBackward0",
    **INDEXED,
    home=lambda op, g: aten.index_put(g.new_zeros(op.self.shape), op.indices, g, True),
    samples=lambda: [
        sample(lambda a: a[at(0, 0), at(1, 2)], x(3, 4)),
        sample(lambda a: a[:, at(1, 1)], x(3, 4), note="one place twice"),
        sample(lambda a: a[a > 3], x(3, 4), note="by a mask"),
        sample(lambda a: a[at((0, 1), (2, 0)), :, 1:], x(3, 2, 4)),
        sample(lambda a: a[at(0), :, at(1)], x(3, 2, 4), note="indices apart"),
        sample(lambda a: a[a > 100], x(3), note="nothing picked"),
        sample(lambda a: a[at(-1)], x(3), note="negative"),
    ],
    source="derivatives.yaml: index.Tensor",
)

masked_select = picks(
    "MaskedSelectBackward0",
    **MASKED,
    samples=lambda: [
        sample(torch.masked_select, x(2, 3), SOME),
        sample(torch.masked_select, x(3), torch.tensor([[True, False, True], [True, True, False]]), note="broadcast"),
        sample(torch.masked_select, x(3), torch.tensor([False]), note="nothing picked"),
    ],
)

take = picks(
    "TakeBackward0",
    **TAKEN,
    samples=lambda: [sample(torch.take, x(2, 3), at((0, 5), (0, -1))), sample(torch.take, x(3), at(), note="empty")],
)

unsafe_masked_index = picks(
    "UnsafeMaskedIndexBackward0",
    **UNSAFE,
    fill="$fill",
    zeros=FILLED,
    samples=lambda: [
        sample(aten._unsafe_masked_index, x(3, 2), SOME, [at(0, 7, 0), at(1, 1, 1)], 5),
        sample(aten._unsafe_masked_index, x(3), SOME[:2], [at(-1, -9)], 0, note="negative"),
    ],
    source="derivatives.yaml: _unsafe_masked_index",
)

# Ordered ---------------------------------------------------------------------------------------------------------


def _neighbours(op: Any, radius: float) -> Tensor:
    """Elements that another one of their row would overtake if each moved by `radius`."""
    if not op.self.dim() or not op.self.numel():
        return torch.zeros_like(op.self, dtype=torch.bool)
    values, order = op.self.sort(op.dim)
    close = values.diff(dim=op.dim) <= 2 * radius
    edge = torch.zeros_like(values.narrow(op.dim, 0, 1), dtype=torch.bool)
    near = torch.cat((edge, close), op.dim) | torch.cat((close, edge), op.dim)
    return torch.zeros_like(near).scatter(op.dim, order, near)


RANKED: Map = {
    "move": lambda op, v: v.gather(op.dim, op.outs[1]),
    "came": lambda op, at: along(op, at, element("out1", at)),
    "index": ("indices",),
    "kink": Kink(_neighbours, "tied elements keep the order that was returned"),
}

sort = picks(
    "SortBackward0",
    remark="The indices that are returned put each row along `dim` in rising order (falling, where `descending`).",
    **RANKED,
    samples=lambda: [
        sample(torch.sort, torch.tensor([[3.0, 1.0, 2.0], [0.0, 5.0, -1.0]], requires_grad=True), 1),
        sample(torch.sort, x(3, 2), 0, descending=True),
        sample(torch.sort, torch.ones(3, requires_grad=True), stable=True, note="ties"),
        sample(torch.msort, x(3, 2)),
        sample(torch.sort, x(), note="0-dim"),
        sample(torch.sort, x(0, 2), 0, note="empty"),
    ],
)

topk = picks(
    "TopkBackward0",
    remark="The indices that are returned are those of the `k` largest (or smallest) of each row along `dim`.",
    **RANKED,
    samples=lambda: [
        sample(torch.topk, torch.tensor([[3.0, 1.0, 2.0], [0.0, 5.0, -1.0]], requires_grad=True), 2),
        sample(torch.topk, x(3, 2), 1, 0, False),
        sample(torch.topk, x(3), 0, note="none"),
    ],
)

# Written ---------------------------------------------------------------------------------------------------------

scatter = writes(
    "ScatterBackward0",
    repeats="torch.Tensor.scatter_",
    **GATHERED,
    accepts=lambda op: "reduce" not in op.arguments and "src" in op.arguments,
    samples=lambda: [
        sample(torch.scatter, x(3, 4), 1, at((0, 2), (1, 3)), x(2, 2)),
        sample(torch.scatter, x(3), 0, at(), x(0), note="nothing written"),
    ],
    source="derivatives.yaml: scatter.src",
)

scatter_value = writes(
    "ScatterBackward1",
    name="scatter_value",
    **{**GATHERED, "index": ("index", "value")},
    argument="value",
    accepts=lambda op: "reduce" not in op.arguments and "value" in op.arguments,
    samples=lambda: [sample(torch.scatter, x(3, 4), 1, at((0, 2), (1, 1)), 5.0)],
    source="derivatives.yaml: scatter.value",
)

scatter_add = writes(
    "ScatterAddBackward0",
    **GATHERED,
    adds=lambda op: True,
    samples=lambda: [
        sample(torch.scatter_add, x(3, 4), 1, at((0, 0), (1, 3)), x(2, 2), note="one place twice"),
        sample(torch.scatter_add, x(3), 0, at(2, 2, 0), x(3)),
    ],
)

index_add = writes(
    "IndexAddBackward0",
    **SELECTED,
    argument="source",
    adds=lambda op: True,
    scale="alpha",
    samples=lambda: [
        sample(torch.index_add, x(3, 4), 0, at(0, 0), x(2, 4), alpha=2),
        sample(torch.index_add, x(), 0, at(0), torch.tensor(2.0, requires_grad=True), note="0-dim"),
    ],
)

index_copy = writes(
    "IndexCopyBackward0",
    repeats="torch.Tensor.index_copy_",
    **SELECTED,
    argument="source",
    samples=lambda: [sample(torch.index_copy, x(3, 4), 1, at(3, 0), x(3, 2))],
)

index_fill = writes(
    "IndexFillBackward0",
    **SELECTED,
    argument="value",
    samples=lambda: [
        sample(torch.index_fill, x(3, 4), 1, at(3, 0), 5.0),
        sample(torch.index_fill, x(3, 4), 0, at(1, 1), torch.tensor(2.0, requires_grad=True)),
    ],
)

index_put = writes(
    "IndexPutBackward0",
    "UnsafeIndexPutBackward0",
    "IndexPutImplBackward0",
    repeats="torch.Tensor.index_put_",
    **INDEXED,
    argument="values",
    adds=lambda op: op.accumulate,
    samples=lambda: [
        sample(torch.index_put, x(3, 4), (at(0, 1),), x(2, 4)),
        sample(torch.index_put, x(3, 4), (at(0, 0), at(1, 1)), x(2), accumulate=True, note="one place twice"),
        sample(torch.index_put, x(3, 4), (at(0, 2),), x(4), note="broadcast"),
        sample(torch.index_put, x(3), (SOME,), x(1), note="by a mask"),
        sample(torch.index_put, x(3, 2), (SOME,), x(2, 2), note="rows by a mask"),
    ],
)

unsafe_masked_index_put = writes(
    "UnsafeMaskedIndexPutAccumulateBackward0",
    **UNSAFE,
    argument="values",
    adds=lambda op: True,
    samples=lambda: [sample(aten._unsafe_masked_index_put_accumulate, x(3), SOME, [at(0, 7, 0)], x(3))],
    source="derivatives.yaml: _unsafe_masked_index_put_accumulate",
)

masked_scatter = writes(
    "MaskedScatterBackward0",
    **MASKED,
    argument="source",
    samples=lambda: [
        sample(torch.masked_scatter, x(2, 3), SOME, x(5), note="not all of it read"),
        sample(torch.masked_scatter, x(3), torch.tensor([False] * 3), x(2), note="nothing written"),
        sample(torch.masked_scatter, x(3), SOME, x(2, 2), note="read in a row"),
    ],
)

put = writes(
    "PutBackward0",
    repeats="torch.Tensor.put_",
    **TAKEN,
    argument="source",
    adds=lambda op: op.accumulate,
    samples=lambda: [
        sample(torch.Tensor.put, x(2, 3), at(0, 4), x(2)),
        sample(torch.Tensor.put, x(2, 3), at(4, 4), x(2), accumulate=True, note="one place twice"),
    ],
)

as_strided_scatter = writes(
    "AsStridedScatterBackward0",
    **STRIDED,
    accepts=lambda op: strided_origins(op) is not None,
    samples=lambda: [
        sample(torch.as_strided_scatter, x(3, 4), x(2, 2), (2, 2), (4, 1)),
        sample(torch.as_strided_scatter, x(3, 4), x(2, 2), (2, 2), (4, 1), 2, note="with an offset"),
    ],
    source="derivatives.yaml: as_strided_scatter. What was there before has the gradient of the elements that stayed.",
    remark="PyTorch (2.13) has it the wrong way round: its gradient of `self` is g where it was overwritten, else 0.",
)

slice_scatter, select_scatter, diagonal_scatter = (
    writes(node, **where_the_view_looks, samples=samples)
    for node, where_the_view_looks, samples in (
        ("SliceScatterBackward0", SLICE, lambda: [sample(torch.slice_scatter, x(4, 3), x(2, 3), 0, 1, 3)]),
        ("SelectScatterBackward0", SELECT, lambda: [sample(torch.select_scatter, x(4, 3), x(4), 1, -1)]),
        (
            "DiagonalScatterBackward0",
            DIAGONAL,
            lambda: [
                sample(torch.diagonal_scatter, x(4, 3), x(3)),
                sample(torch.diagonal_scatter, x(2, 3, 3), x(2, 2), -1, 1, 2, note="below the diagonal, of a batch"),
            ],
        ),
    )
)
