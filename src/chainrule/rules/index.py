"""Rules of operations that pick or write elements by index or mask, and of orderings.

The index says where each element came from or went to; it carries no gradient itself. Picking sends each upstream
element back to its origin (an origin picked twice gets the sum); writing cuts the gradient of what was overwritten.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from chainrule.rules import Factor, Kink, Rule, Wrt, derivative, rule, sample
from chainrule.rules import at as element
from chainrule.rules.indices import (
    AND,
    LETTERS,
    OTHERS,
    digits,
    fitted,
    letters,
    places,
    position,
    ranges,
    row_major,
    stated,
    total,
    where,
)
from chainrule.rules.pattern import Pattern, copied, real
from chainrule.rules.shape import (
    COPIES,
    FILLED,
    Came,
    Index,
    Move,
    arrivals,
    in_memory,
    in_slice,
    labels,
    moves,
    on_diagonal,
    selected,
    slice_of,
    strided_origins,
    x,
)

WRITTEN = "each output element is made of what was there before and of what was written there, and of nothing else"


def at(*places: Any) -> Tensor:
    """An index."""
    return torch.tensor(places, dtype=torch.long)


@dataclass(frozen=True)
class Masked:
    """Elements at which a mask holds, one after the other: the element at `own` is number `rank`, as `given` says."""

    source: Tensor
    own: list[str]
    mask: str
    rank: str
    given: str

    @classmethod
    def of(cls, name: str, mask: Tensor, shape: Sequence[int], source: Tensor, axes: range) -> Masked:
        """Of elements of a shape, which a mask along some axes chooses."""
        own = list(LETTERS[: len(shape)])
        other = [OTHERS[4 + axis] if axis in axes else letter for axis, letter in enumerate(own)]
        steps = row_major([shape[axis] for axis in axes])
        before, after = (position([each[axis] for axis in axes], steps) for each in (other, own))
        held, there = (element(name, fitted([each[axis] for axis in axes], mask)) for each in (own, other))
        rank = f"R_{{{', '.join(own[axis] for axis in axes)}}}"
        among = ranges([other[axis] for axis in axes], [shape[axis] for axis in axes])
        given = f"{rank} = {total(list(among), [f'{before} < {after}'], there)}"
        return cls(source, own, held, rank, stated([given, *among.values()]))

    @property
    def held(self) -> str:
        """The condition that an element is chosen."""
        return f"{self.mask} = 1"

    def read(self, argument: str) -> str:
        """The element of the source that goes to this place."""
        return element(argument, digits(self.rank, self.source.shape))

    def written(self, argument: str, adds: bool) -> str:
        """The equation of writing them."""
        mine = element("self", self.own)
        text = (
            f"{mine} + {where(self.read(argument), self.held)}" if adds else where(self.read(argument), self.held, mine)
        )
        return f"{element('out', self.own)} = {text}{self.given}"

    def product(self, argument: str) -> str:
        """The gradient of the source: what arrived at the place to which each of its elements went."""
        mine = [
            place if place == "0" else OTHERS[axis] for axis, place in enumerate(digits(self.rank, self.source.shape))
        ]
        origin = digits(self.rank, self.source.shape)
        met = [self.held, *(f"{a} = {b}" for a, b in zip(origin, mine, strict=True) if a != b)]
        return f"{element('grad', mine)} = {total(self.own, met, element('g', self.own))}{self.given}"


def _picked(mask: Callable[[Any], Masked | None]) -> dict[str, Any]:
    """The formulas of picking by a mask; none where the indices are numbers, as `moves` has those."""

    def parts(op: Any) -> tuple[Masked, list[str], str, list[str], list[str]]:
        found = mask(op)
        assert found is not None
        counted = found.rank[3:-1].split(", ")
        first = found.own.index(counted[0])
        out = [*found.own[:first], "u", *found.own[first + len(counted) :]]
        mine = fitted(found.own, op.self)
        return found, out, element("self", mine), counted, mine

    def value(op: Any) -> str:
        found, out, into, counted, _ = parts(op)
        return f"{element('out', out)} = {total(counted, [found.held, f'{found.rank} = u'], into)}{found.given}"

    def local(op: Any) -> str:
        found, out, into, counted, mine = parts(op)
        copies = [each for each in counted if each not in mine]
        rate = (
            total(copies, [found.held, f"{found.rank} = u"], "1")
            if copies
            else rf"[{found.held} \land {found.rank} = u]"
        )
        return derivative(element("out", out), into, rate + found.given)

    def product(op: Any) -> str:
        found, out, _, counted, mine = parts(op)
        each = where(element("g", [found.rank if place == "u" else place for place in out]), found.held)
        copies = [each for each in counted if each not in mine]
        return f"{element('grad', mine)} = {total(copies, [], each)}{found.given}"

    return {"equation": value, "local": local, "product": product}


def picks(
    *nodes: str,
    index: tuple[str, ...] = ("index",),
    by_mask: Callable[[Any], Masked | None] = lambda op: None,
    **more: Any,
) -> Rule:
    """Register an operation that copies chosen elements of `self`, perhaps several times; or those of a mask."""
    masked = _picked(by_mask)
    return moves(*nodes, index=index, repeats=True, instead=lambda op: masked if by_mask(op) else None, **more)


def writes(
    *nodes: str,
    read: Move,
    place: Came = lambda op, at: at,
    argument: str = "src",
    index: tuple[str, ...] = ("index",),
    adds: Callable[[Any], bool] = lambda op: False,
    only: Callable[[Any, list[str]], str] | None = None,
    scale: str = "",
    masked: Callable[[Any], Masked | None] = lambda op: None,
    **more: Any,
) -> Rule:
    """Register an operation that copies `self` and writes elements of `argument` at some places, or `adds` them there.

    `read(op, tensor)` gives the elements of a tensor like `self` at these places, and `place(op, at)` the indices of
    the place to which the element `at` goes, where the condition `only` holds. A single number goes to all places.
    Places that a mask chooses are `masked`.
    """

    def kept(op: Any, g: Tensor) -> Tensor:
        if adds(op):
            return g
        return g.reshape(-1).index_fill(0, read(op, labels(g)).reshape(-1) - 1, 0).reshape(g.shape)

    def sources(op: Any, g: Tensor) -> Tensor:
        """In the shape of the places: the walk sums where what is written was broadcast."""
        found, source = read(op, g), op.arguments[argument]
        found = op.arguments[scale] * found if scale else found
        if not source.dim() and not adds(op):
            return (g - kept(op, g)).sum()
        if source.dim() == found.dim() and source.numel() > found.numel():  # what lies beyond was not read
            home = g.new_zeros(source.shape)
            home[tuple(slice(size) for size in found.shape)] = found
            return home
        return found.reshape(source.shape) if found.numel() == source.numel() else found

    def goes(op: Any) -> tuple[list[str], dict[str, str], list[str], list[str], list[str], list[str]]:
        """The indices of what is written, their ranges, where it goes; those of a place, and what comes to it."""
        shape = read(op, labels(op.self)).shape
        at = places(shape)
        origin = place(op, at)
        own, among, met = arrivals(at, origin)
        met = [*met, only(op, at)] if only else met
        return at, ranges(at, shape), origin, own, among, met

    def written(op: Any, at: list[str]) -> str:
        source = op.arguments[argument]
        return element(argument, fitted(at, source)) if isinstance(source, Tensor) else f"${argument}"

    def counted(op: Any) -> tuple[str, str]:
        """How many come to a place, and its definition."""
        _, bounds, _, own, among, met = goes(op)
        count = f"N_{{{', '.join(own)}}}" if own else "N"
        within = {**bounds, **ranges(own, op.self.shape)}
        return count, stated([f"{count} = {total(among, met, '1')}", *within.values()])

    def single(op: Any) -> bool:
        return not isinstance(op.arguments[argument], Tensor) or (
            not op.arguments[argument].dim() and op.self.dim() > 0
        )

    def value(op: Any) -> str:
        if mask := masked(op):
            return mask.written(argument, adds(op))
        at, bounds, _, own, among, met = goes(op)
        count, given = counted(op)
        if adds(op):
            given = stated({**bounds, **ranges(own, op.self.shape)}.values())
        arrived = total(among, met, written(op, at))
        arrived = rf"[{count} > 0] \, ${argument}" if single(op) else arrived
        stays = "" if adds(op) else rf" \, [{count} = 0]"
        factor = rf"${scale} \, " if scale else ""
        return f"{element('out', own)} = {element('self', own)}{stays} + {factor}{arrived}{given}"

    def staying(op: Any) -> tuple[list[str], str, str]:
        """The indices of a place, and on what condition its element stays."""
        mask = masked(op)
        own = mask.own if mask else goes(op)[3]
        if adds(op):
            return own, "1", ""
        return (own, f"[{mask.mask} = 0]", "") if mask else (own, f"[{counted(op)[0]} = 0]", counted(op)[1])

    def self_local(op: Any) -> str:
        own, stays, given = staying(op)
        return derivative(element("out", own), element("self", own), stays + given)

    def self_product(op: Any) -> str:
        own, stays, given = staying(op)
        factor = "" if stays == "1" else rf" \, {stays}"
        return f"{element('grad', own)} = {element('g', own)}{factor}{given}"

    def source_local(op: Any) -> str:
        if mask := masked(op):
            return derivative(element("out", mask.own), mask.read(argument), f"[{mask.held}]{mask.given}")
        at, bounds, origin, own, _, _ = goes(op)
        if single(op):
            return derivative(element("out", own), f"${argument}", f"[{counted(op)[0]} > 0]{counted(op)[1]}")
        rate = f"${scale}" if scale else f"[{only(op, at)}]" if only else "1"
        return derivative(element("out", origin), written(op, at), rate + stated(bounds.values()))

    def source_product(op: Any) -> str:
        if mask := masked(op):
            return mask.product(argument)
        at, bounds, origin, own, _, _ = goes(op)
        if single(op):
            summed = total(own, [f"{counted(op)[0]} > 0"], element("g", own))
            return f"$grad = {summed}{counted(op)[1]}"
        mine = fitted(at, op.arguments[argument])
        copies = [each for each in bounds if each not in mine]
        each = where(element("g", origin), only(op, at)) if only else element("g", origin)
        summed = total(copies, [], (rf"${scale} \, " if scale else "") + each)
        return f"{element('grad', mine)} = {summed}{stated(bounds.values())}"

    wrt = {"self": Wrt(kept, self_local, self_product, WRITTEN)}
    if argument not in index:
        wrt[argument] = Wrt(sources, source_local, source_product, WRITTEN)
    constants = dict.fromkeys((each for each in index if each != argument), "not differentiable")
    return rule(*nodes, equation=value, wrt=wrt, constants=constants, structure="linear", **more)


def along(op: Any, at: list[str], place: str) -> list[str]:
    """Indices with another one along `dim`."""
    return [place if axis == op.dim % len(at) else each for axis, each in enumerate(at)]


# Picked along one axis -------------------------------------------------------------------------------------------

index_select = picks(
    "IndexSelectBackward0",
    came=lambda op, at: along(op, at, element("index", [at[op.dim]] * op.index.dim() if at else [])),
    move=lambda op, v: v.index_select(op.dim, op.index),
    samples=lambda: [
        sample(torch.index_select, x(3, 4), 1, at(0, 0, 2), note="one place twice"),
        sample(torch.index_select, x(3, 4), -2, at(2)),
        sample(torch.index_select, x(3, 4), 0, at(), note="empty"),
        sample(torch.index_select, x(), 0, at(0), note="0-dim"),
    ],
)


gather = picks(
    "GatherBackward0",
    came=lambda op, at: along(op, at, element("index", at)),
    move=lambda op, v: v.gather(op.dim, op.index),
    home=lambda op, g: g.new_zeros(op.self.shape).scatter_add(op.dim, op.index, g),
    samples=lambda: [
        sample(torch.gather, x(3, 4), 1, at((0, 1), (2, 2)), note="fewer rows, one place twice"),
        sample(torch.gather, x(3, 4), 0, at((0, 1, 2, 0))),
        sample(torch.take_along_dim, x(2, 3), at((0, 2), (1, 1)), 1),
        sample(torch.gather, x(3, 4), 0, torch.zeros(0, 4, dtype=torch.long), note="empty"),
        sample(torch.gather, x(), 0, torch.tensor(0), note="0-dim"),
    ],
)

# Picked by advanced indexing, mask, flat position ----------------------------------------------------------------


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
            source = op.arguments.get("values", op.out)
            return Masked.of(f"indices{axis}", each, op.self.shape, source, range(axis, axis + each.dim()))
    return None


index = picks(
    "IndexBackward0",
    "UnsafeIndexBackward0",
    came=_indexed,
    by_mask=_index_mask,
    move=lambda op, v: torch.ops.aten.index(v, op.indices),  # takes None among the indices, unlike Tensor.index_put
    home=lambda op, g: torch.ops.aten.index_put(g.new_zeros(op.self.shape), op.indices, g, True),
    index=("indices",),
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


def _whole_mask(op: Any) -> Masked:
    shape = torch.broadcast_shapes(op.mask.shape, op.self.shape)
    return Masked.of("mask", op.mask, shape, op.arguments.get("source", op.out), range(len(shape)))


masked_select = picks(
    "MaskedSelectBackward0",
    by_mask=_whole_mask,
    move=lambda op, v: v.masked_select(op.mask),
    index=("mask",),
    samples=lambda: [
        sample(torch.masked_select, x(2, 3), torch.tensor([True, False, True])),
        sample(torch.masked_select, x(3), torch.tensor([[True, False, True], [True, True, False]]), note="broadcast"),
        sample(torch.masked_select, x(3), torch.tensor([False]), note="nothing picked"),
    ],
)

take = picks(
    "TakeBackward0",
    came=lambda op, at: digits(rf"{element('index', at)} \bmod {op.self.numel()}", op.self.shape),
    move=lambda op, v: v.take(op.index),
    samples=lambda: [sample(torch.take, x(2, 3), at((0, 5), (0, -1))), sample(torch.take, x(3), at(), note="empty")],
)

unsafe_masked_index = picks(
    "UnsafeMaskedIndexBackward0",
    came=_indexed,
    only=lambda op, at: f"{element('mask', fitted(at, op.mask))} = 1",
    fill="fill",
    move=lambda op, v: torch.ops.aten._unsafe_masked_index(v, op.mask, op.indices, 0),
    zeros=FILLED,
    index=("mask", "indices"),
    samples=lambda: [
        sample(
            torch.ops.aten._unsafe_masked_index,
            x(3, 2),
            torch.tensor([True, False, True]),
            [at(0, 7, 0), at(1, 1, 1)],
            5,
        ),
        sample(
            torch.ops.aten._unsafe_masked_index, x(3), torch.tensor([True, False]), [at(-1, -9)], 0, note="negative"
        ),
    ],
    source="derivatives.yaml: _unsafe_masked_index",
)

# Embeddings ------------------------------------------------------------------------------------------------------


def _embedding(op: Any, g: Tensor) -> Tensor:
    words = op.indices.reshape(-1)
    g = g.reshape(words.numel(), op.weight.shape[1])
    if op.scale_grad_by_freq:
        g = g / words.bincount(minlength=op.weight.shape[0])[words].unsqueeze(1)
    g = g.masked_fill((words == op.padding_idx).unsqueeze(1), 0)
    return g.new_zeros(op.weight.shape).index_add_(0, words, g)


def _embedding_factor(op: Any, out_index: Index, in_index: Index) -> Factor | None:
    word = int(op.indices[out_index[:-1]])
    if word == op.padding_idx or (word, out_index[-1]) != in_index:
        return None
    uses = int((op.indices == word).sum()) if op.scale_grad_by_freq else 1
    return Factor(latex="1" if uses == 1 else rf"\frac{{1}}{{{uses}}}")


def _word(k: str) -> str:
    return element("indices", k.split(", ")[:-1])


def _embedding_formula(text: Callable[[str, str, str, str], str]) -> Callable[[Any], str]:
    """A formula of the place k of a word, the axis j, and the rate at which its row counts, with what that uses."""

    def filled(op: Any) -> str:
        *k, j = letters(op.out)
        places = "".join(f"{each}, " for each in k)
        rate = "1" if op.padding_idx < 0 else rf"[{_word(places)} \neq {op.padding_idx}]"
        other = OTHERS[2 : 2 + len(k)]
        if not op.scale_grad_by_freq:
            return text(places, j, rate, "")
        uses = f"N_{{{', '.join(k)}}}"
        summed = total(other, [f"{element('indices', other)} = {_word(places)}"], "1")
        return text(places, j, rf"\frac{{{rate}}}{{{uses}}}", stated([f"{uses} = {summed}"]))

    return filled


def _embedding_pattern(op: Any) -> Pattern | None:
    if not real(op.out, op.weight) or op.scale_grad_by_freq:  # a gradient that was divided is not that of a copy
        return None
    return copied(op.out.numel(), op.weight.numel(), filled=True)


embedding = rule(
    "EmbeddingBackward0",
    equation=_embedding_formula(lambda k, j, rate, given: f"{{$out}}_{{{k}{j}}} = {{$weight}}_{{{_word(k)}, {j}}}"),
    wrt={
        "weight": Wrt(
            _embedding,
            _embedding_formula(
                lambda k, j, rate, given: derivative(
                    f"{{$out}}_{{{k}{j}}}", f"{{$weight}}_{{{_word(k)}, {j}}}", rate + given
                )
            ),
            _embedding_formula(
                lambda k, j, rate, given: (
                    f"{{$grad}}_{{u, {j}}} = "
                    + total(
                        k.split(", ")[:-1],
                        [f"{_word(k)} = u"],
                        f"{{$g}}_{{{k}{j}}}" + (rf" \, {rate}" if rate != "1" else ""),
                    )
                    + given
                )
            ),
            COPIES,
            _embedding_factor,
            _embedding_pattern,
        )
    },
    constants={"indices": "not differentiable"},
    structure="linear",
    samples=lambda: [
        sample(F.embedding, at((0, 1), (1, 3)), x(4, 2), note="one word twice"),
        sample(F.embedding, at(0, 1, 1), x(4, 2), padding_idx=1, note="padding gets no gradient"),
        sample(F.embedding, at(0, 1, 1), x(4, 2), scale_grad_by_freq=True, note="divided by the count of the word"),
        sample(F.embedding, torch.tensor(2), x(4, 2), note="one word"),
        sample(F.embedding, at(), x(4, 2), note="no word"),
    ],
    source="derivatives.yaml: embedding. Padding and the division by frequency are conventions, no derivatives.",
)


def _bags(op: Any) -> tuple[Tensor, Tensor, Tensor]:
    """For each word: its bag, whether it counts (padding does not), and how many count in its bag."""
    starts = op.offsets[:-1] if op.include_last_offset else op.offsets
    places = torch.arange(op.indices.numel(), device=op.indices.device)
    bags = torch.searchsorted(starts.contiguous(), places, right=True) - 1
    counts = (op.indices != op.padding_idx) if op.padding_idx >= 0 else torch.ones_like(bags, dtype=torch.bool)
    sizes = torch.zeros_like(starts).index_add(0, bags, counts.to(starts.dtype))
    return bags, counts, sizes[bags].clamp(min=1)


def _embedding_bag(op: Any, g: Tensor) -> Tensor:
    bags, counts, sizes = _bags(op)
    if op.mode == _MAX:
        return _bag_extremes(op, g, bags, counts)
    each = g[bags] * counts.unsqueeze(1)
    if op.mode == _MEAN:
        each = each / sizes.unsqueeze(1)
    if op.per_sample_weights is not None:
        each = each * op.per_sample_weights.unsqueeze(1)
    if op.scale_grad_by_freq:
        each = each / op.indices.bincount(minlength=op.weight.shape[0])[op.indices].unsqueeze(1)
    return g.new_zeros(op.weight.shape).index_add_(0, op.indices, each)


def _bag_extremes(op: Any, g: Tensor, bags: Tensor, counts: Tensor) -> Tensor:
    """The first word that has the bag's largest element gets that element's gradient."""
    home = g.new_zeros(op.weight.shape)
    for bag in range(g.shape[0]):
        words = op.indices[(bags == bag) & counts]
        if words.numel():
            winners = words[op.weight[words].argmax(0)]
            home = home.index_put((winners, torch.arange(g.shape[1], device=g.device)), g[bag], accumulate=True)
    return home


def _bag_weights(op: Any, g: Tensor) -> Tensor:
    bags, counts, _ = _bags(op)
    along: Tensor = (g[bags] * op.weight[op.indices]).sum(1)
    return along * counts


_SUM, _MEAN, _MAX = range(3)  # `mode` as the operation has it


def _bag(text: str) -> Callable[[Any], str]:
    """A formula of word u in bag i with its words filled in; without a text, the definitions of what these use.

    HERE are the conditions that the word is in the bag and counts. RATE is what its row is multiplied by, SLOPE that
    of the derivative, which divides by the word's uses where asked to.
    """

    def filled(op: Any) -> str:
        counts = ["B_{u} = i", *([rf"{{$indices}}_{{u}} \neq {op.padding_idx}"] if op.padding_idx >= 0 else [])]
        given = [r"B_{u} = \sum_{v} [{$offsets}_{v} \le u] - 1"]
        rate = ""
        if op.per_sample_weights is not None:
            rate = r"{$per_sample_weights}_{u} \, "
        elif op.mode == _MEAN:
            rate = r"\frac{1}{\max(N_{i}, 1)} \, "
            given.append(f"N_{{i}} = {total(['u'], counts, '1')}")
        slope = rate.removesuffix(r" \, ") or "1"
        if op.scale_grad_by_freq:
            slope = rf"\frac{{{slope}}}{{F_{{u}}}}"
            given.append(r"F_{u} = \sum_{v} [{$indices}_{v} = {$indices}_{u}]")
        words = {
            "BIG": r"\max" if op.mode == _MAX else r"\sum",
            "HERE": ", ".join(counts),
            "COUNTED": AND.join(counts),
            "RATE": rate,
            "SLOPE": slope,
        }
        given += ranges("u", [op.indices.numel()]).values()
        return re.sub("(?<![A-Z])[A-Z]{3,}(?![A-Z])", lambda word: words[word[0]], text or r", \quad ".join(given))

    return filled


def _by_mode(usual: str, largest: str) -> Callable[[Any], str]:
    return lambda op: _bag(largest if op.mode == _MAX else usual)(op)


ROW = "{$weight}_{{$indices}_{u}, j}"
LARGEST = r"[\sum_{u: HERE} [{$indices}_{u} = w] > 0] \, [{$weight}_{w, j} = {$out}_{i, j}]"

embedding_bag = rule(
    "EmbeddingBagBackward0",
    equation=_bag(rf"{{$out}}_{{i, j}} = BIG_{{u: HERE}} RATE {ROW}"),
    where=_bag(""),
    wrt={
        "weight": Wrt(
            _embedding_bag,
            _by_mode(
                derivative("{$out}_{i, j}", "{$weight}_{w, j}", r"\sum_{u: HERE, {$indices}_{u} = w} SLOPE"),
                derivative("{$out}_{i, j}", "{$weight}_{w, j}", LARGEST),
            ),
            _by_mode(
                r"{$grad}_{w, j} = \sum_{i} \sum_{u: HERE, {$indices}_{u} = w} SLOPE \, {$g}_{i, j}",
                rf"{{$grad}}_{{w, j}} = \sum_{{i}} {{$g}}_{{i, j}} \, {LARGEST}",
            ),
            "a bag depends on the rows of its own words alone",
        ),
        "per_sample_weights": Wrt(
            _bag_weights,
            _bag(derivative("{$out}_{i, j}", "{$per_sample_weights}_{u}", rf"[COUNTED] \, {ROW}")),
            _bag(rf"{{$grad}}_{{u}} = \sum_{{i, j: COUNTED}} {{$g}}_{{i, j}} \, {ROW}"),
            "a weight belongs to one word of one bag",
        ),
    },
    constants={"indices": "not differentiable", "offsets": "not differentiable"},
    samples=lambda: [
        *(sample(F.embedding_bag, at(0, 1, 1, 3), x(4, 2), at(0, 1), mode=mode) for mode in ("sum", "mean", "max")),
        sample(F.embedding_bag, at(0, 1, 1, 3), x(4, 2), at(0, 1), mode="sum", per_sample_weights=x(4)),
        sample(F.embedding_bag, at(0, 1, 1, 3), x(4, 2), at(0, 2), mode="mean", padding_idx=1, note="padding"),
        sample(F.embedding_bag, at(0, 1, 1, 3), x(4, 2), at(0, 2, 2), mode="mean", note="an empty bag"),
        sample(F.embedding_bag, at((0, 1), (3, 3)), x(4, 2), mode="max", note="ties"),
        sample(F.embedding_bag, at(0, 1, 3), x(4, 2), at(0, 1, 3), mode="mean", include_last_offset=True),
        sample(F.embedding_bag, at(0, 1, 1), x(4, 2), at(0, 1), mode="sum", scale_grad_by_freq=True),
    ],
    source="derivatives.yaml: _embedding_bag",
)

# Ordered ---------------------------------------------------------------------------------------------------------


def _ranked(op: Any, at: list[str]) -> list[str]:
    return along(op, at, element("out1", at))


def _neighbours(op: Any, radius: float) -> Tensor:
    """Elements that another one of their row would overtake if each moved by `radius`."""
    if not op.self.dim() or not op.self.numel():
        return torch.zeros_like(op.self, dtype=torch.bool)
    values, order = op.self.sort(op.dim)
    close = values.diff(dim=op.dim) <= 2 * radius
    edge = torch.zeros_like(values.narrow(op.dim, 0, 1), dtype=torch.bool)
    near = torch.cat((edge, close), op.dim) | torch.cat((close, edge), op.dim)
    return torch.zeros_like(near).scatter(op.dim, order, near)


ORDER_KINK = Kink(_neighbours, "tied elements keep the order that was returned")

sort = picks(
    "SortBackward0",
    remark="The indices that are returned put each row along `dim` in rising order (falling, where `descending`).",
    came=_ranked,
    move=lambda op, v: v.gather(op.dim, op.outs[1]),
    index=("indices",),
    kink=ORDER_KINK,
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
    came=_ranked,
    move=lambda op, v: v.gather(op.dim, op.outs[1]),
    index=("indices",),
    kink=ORDER_KINK,
    samples=lambda: [
        sample(torch.topk, torch.tensor([[3.0, 1.0, 2.0], [0.0, 5.0, -1.0]], requires_grad=True), 2),
        sample(torch.topk, x(3, 2), 1, 0, False),
        sample(torch.topk, x(3), 0, note="none"),
    ],
)

# Written along one axis ------------------------------------------------------------------------------------------


def _at_index(op: Any, at: list[str]) -> list[str]:
    return along(op, at, element("index", at))


def _selected_place(op: Any, at: list[str]) -> list[str]:
    return along(op, at, element("index", at[op.dim : op.dim + 1 or None] * op.index.dim())) if at else []


# PyTorch sends the gradient to every `src` that was written to a place, also to those overwritten by a later one: right
# only where each place is written once, as its documentation says.
scatter = writes(
    "ScatterBackward0",
    read=lambda op, v: v.gather(op.dim, op.index),
    place=_at_index,
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
    read=lambda op, v: v.gather(op.dim, op.index),
    place=_at_index,
    argument="value",
    index=("index", "value"),
    accepts=lambda op: "reduce" not in op.arguments and "value" in op.arguments,
    samples=lambda: [sample(torch.scatter, x(3, 4), 1, at((0, 2), (1, 1)), 5.0)],
    source="derivatives.yaml: scatter.value",
)

scatter_add = writes(
    "ScatterAddBackward0",
    read=lambda op, v: v.gather(op.dim, op.index),
    place=_at_index,
    adds=lambda op: True,
    samples=lambda: [
        sample(torch.scatter_add, x(3, 4), 1, at((0, 0), (1, 3)), x(2, 2), note="one place twice"),
        sample(torch.scatter_add, x(3), 0, at(2, 2, 0), x(3)),
    ],
)


def _selected(op: Any, v: Tensor) -> Tensor:
    return v.index_select(op.dim, op.index.reshape(-1)) if v.dim() else v


index_add = writes(
    "IndexAddBackward0",
    read=_selected,
    place=_selected_place,
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
    read=_selected,
    place=_selected_place,
    argument="source",
    samples=lambda: [sample(torch.index_copy, x(3, 4), 1, at(3, 0), x(3, 2))],
)

index_fill = writes(
    "IndexFillBackward0",
    read=_selected,
    place=_selected_place,
    argument="value",
    samples=lambda: [
        sample(torch.index_fill, x(3, 4), 1, at(3, 0), 5.0),
        sample(torch.index_fill, x(3, 4), 0, at(1, 1), torch.tensor(2.0, requires_grad=True)),
    ],
)

# Written by advanced indexing, mask, flat position ---------------------------------------------------------------


index_put = writes(
    "IndexPutBackward0",
    "UnsafeIndexPutBackward0",
    "IndexPutImplBackward0",
    read=lambda op, v: torch.ops.aten.index(v, op.indices),
    place=_indexed,
    masked=_index_mask,
    argument="values",
    adds=lambda op: op.accumulate,
    index=("indices",),
    samples=lambda: [
        sample(torch.index_put, x(3, 4), (at(0, 1),), x(2, 4)),
        sample(torch.index_put, x(3, 4), (at(0, 0), at(1, 1)), x(2), accumulate=True, note="one place twice"),
        sample(torch.index_put, x(3, 4), (at(0, 2),), x(4), note="broadcast"),
        sample(torch.index_put, x(3), (torch.tensor([True, False, True]),), x(1), note="by a mask"),
    ],
)


unsafe_masked_index_put = writes(
    "UnsafeMaskedIndexPutAccumulateBackward0",
    read=lambda op, v: torch.ops.aten._unsafe_masked_index(v, op.mask, op.indices, 0),
    place=_indexed,
    only=lambda op, at: f"{element('mask', fitted(at, op.mask))} = 1",
    argument="values",
    adds=lambda op: True,
    index=("mask", "indices"),
    samples=lambda: [
        sample(
            torch.ops.aten._unsafe_masked_index_put_accumulate,
            x(3),
            torch.tensor([True, False, True]),
            [at(0, 7, 0)],
            x(3),
        )
    ],
    source="derivatives.yaml: _unsafe_masked_index_put_accumulate",
)


as_strided_scatter = writes(
    "AsStridedScatterBackward0",
    read=lambda op, v: v.reshape(-1)[strided_origins(op)],
    place=in_memory,
    index=(),
    accepts=lambda op: strided_origins(op) is not None,
    samples=lambda: [
        sample(torch.as_strided_scatter, x(3, 4), x(2, 2), (2, 2), (4, 1)),
        sample(torch.as_strided_scatter, x(3, 4), x(2, 2), (2, 2), (4, 1), 2, note="with an offset"),
    ],
    source="derivatives.yaml: as_strided_scatter. What was there before has the gradient of the elements that stayed.",
    remark="PyTorch (2.13) has it the wrong way round: its gradient of `self` is g where it was overwritten, else 0.",
)


masked_scatter = writes(
    "MaskedScatterBackward0",
    read=lambda op, v: v.masked_select(op.mask),
    masked=_whole_mask,
    argument="source",
    index=("mask",),
    samples=lambda: [
        sample(torch.masked_scatter, x(2, 3), torch.tensor([True, False, True]), x(5), note="not all of it read"),
        sample(torch.masked_scatter, x(3), torch.tensor([False] * 3), x(2), note="nothing written"),
    ],
)

put = writes(
    "PutBackward0",
    read=lambda op, v: v.take(op.index),
    place=lambda op, at: digits(rf"{element('index', at)} \bmod {op.self.numel()}", op.self.shape),
    argument="source",
    adds=lambda op: op.accumulate,
    samples=lambda: [
        sample(torch.Tensor.put, x(2, 3), at(0, 4), x(2)),
        sample(torch.Tensor.put, x(2, 3), at(4, 4), x(2), accumulate=True, note="one place twice"),
    ],
)

# Written where a view looks --------------------------------------------------------------------------------------

slice_scatter = writes(
    "SliceScatterBackward0",
    read=slice_of,
    place=in_slice,
    index=(),
    samples=lambda: [sample(torch.slice_scatter, x(4, 3), x(2, 3), 0, 1, 3)],
)

select_scatter = writes(
    "SelectScatterBackward0",
    read=lambda op, v: v.select(op.dim, op.index),
    place=selected,
    index=(),
    samples=lambda: [sample(torch.select_scatter, x(4, 3), x(4), 1, -1)],
)

diagonal_scatter = writes(
    "DiagonalScatterBackward0",
    read=lambda op, v: v.diagonal(op.offset, op.dim1, op.dim2),
    place=on_diagonal,
    index=(),
    samples=lambda: [sample(torch.diagonal_scatter, x(4, 3), x(3))],
)
