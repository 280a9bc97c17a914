"""Rules of operations that pick or write elements by index or mask, and of orderings.

The index says where each element came from or went to; it carries no gradient itself. Picking sends each upstream
element back to its origin (an origin picked twice gets the sum); writing cuts the gradient of what was overwritten.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from chainrule.rules import Factor, Kink, Rule, Sample, Wrt, rule, sample
from chainrule.rules import at as element
from chainrule.rules.indices import digits
from chainrule.rules.pattern import Pattern, copied, real
from chainrule.rules.shape import COPIES, FILLED, Index, Move, Template, moves, slice_of, strided_origins, x

WRITTEN = "each output element is made of what was there before and of what was written there, and of nothing else"


def at(*places: Any) -> Tensor:
    """An index."""
    return torch.tensor(places, dtype=torch.long)


def picks(*nodes: str, index: tuple[str, ...] = ("index",), **more: Any) -> Rule:
    """Register an operation that copies chosen elements of `self`, perhaps several times."""
    return moves(*nodes, index=index, repeats=True, **more)


def writes(
    *nodes: str,
    equation: Template,
    kept: Move | None = None,
    written: dict[str, Move],
    index: str = "index",
    adds: Callable[[Any], bool] = lambda op: False,
    scale: str = "1",
    **more: Any,
) -> Rule:
    """Register an operation that copies `self` and writes other elements at chosen places, or `adds` them there.

    `kept` takes what was overwritten out of a gradient; without it, nothing is overwritten, as all is added.
    """

    def adds_up(op: Any) -> bool:
        return kept is None or adds(op)

    def product(op: Any) -> str:
        return "$g" if adds_up(op) else r"$g \text{, with zeros where it was overwritten}"

    wrt = {"self": Wrt(lambda op, g: kept(op, g) if kept and not adds(op) else g, "1", product, WRITTEN)}
    for name, vjp in written.items():
        told = rf"$g \text{{ at the places where }} ${name} \text{{ went}}"
        wrt[name] = Wrt(vjp, scale, told if scale == "1" else rf"{scale} \, {told}", WRITTEN)
    constants = {index: "not differentiable"} if index else {}
    return rule(*nodes, equation=equation, wrt=wrt, constants=constants, structure="linear", **more)


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


index = picks(
    "IndexBackward0",
    "UnsafeIndexBackward0",
    equation=r"$out = $self[\text{indices}]",
    move=lambda op, v: torch.ops.aten.index(v, op.indices),  # takes None among the indices, unlike Tensor.index_put
    home=lambda op, g: torch.ops.aten.index_put(g.new_zeros(op.self.shape), op.indices, g, True),
    product=r"\mathbf{0} \text{ with } $g \text{ added at } [\text{indices}]",
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


masked_select = picks(
    "MaskedSelectBackward0",
    equation=r"$out = $self[$mask]",
    move=lambda op, v: v.masked_select(op.mask),
    product=r"\mathbf{0} \text{ with } $g \text{ where } $mask",
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
    equation=r"$out = $self[\text{indices}] \text{ where } $mask \text{, else } $fill",
    move=lambda op, v: torch.ops.aten._unsafe_masked_index(v, op.mask, op.indices, 0),
    zeros=FILLED,
    product=r"\mathbf{0} \text{ with } $g \text{ added at } [\text{indices}] \text{ where } $mask",
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


def _embedding_pattern(op: Any) -> Pattern | None:
    if not real(op.out, op.weight) or op.scale_grad_by_freq:  # a gradient that was divided is not that of a copy
        return None
    return copied(op.out.numel(), op.weight.numel(), filled=True)


embedding = rule(
    "EmbeddingBackward0",
    equation=r"{$out}_{k} = {$weight}_{{$indices}_{k}}",
    wrt={
        "weight": Wrt(
            _embedding,
            "1",
            r"\sum_{k: \, {$indices}_{k} = i} {$g}_{k}",
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
_BAG = {
    _SUM: r"\sum_{k \in \text{bag } b} {$weight}_{{$indices}_{k}}",
    _MEAN: r"\frac{1}{N_b} \sum_{k \in \text{bag } b} {$weight}_{{$indices}_{k}}",
    _MAX: r"\max_{k \in \text{bag } b} {$weight}_{{$indices}_{k}}",
}
_BAG_LOCAL = {_SUM: "1", _MEAN: r"\frac{1}{N_b}", _MAX: r"1 \text{ at the largest element}"}

embedding_bag = rule(
    "EmbeddingBagBackward0",
    equation=lambda op: "{$out}_{b} = " + (_BAG[op.mode] if op.per_sample_weights is None else _BAG[_SUM] + " w_k"),
    wrt={
        "weight": Wrt(
            _embedding_bag,
            lambda op: _BAG_LOCAL[op.mode] if op.per_sample_weights is None else "w_k",
            r"\sum_{k: \, {$indices}_{k} = i} {$g}_{\text{bag of } k} \cdot \text{local}",
            "a bag depends on the rows of its own words alone",
        ),
        "per_sample_weights": Wrt(
            _bag_weights,
            r"{$weight}_{{$indices}_{k}}",
            r"{$g}_{\text{bag of } k} \cdot {$weight}_{{$indices}_{k}}",
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
    remark="The indices that are returned are those of the `k` largest of each row along `dim` (smallest, if so asked).",
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


def _scatter_sources(op: Any, g: Tensor) -> Tensor:
    """Elements of `src` beyond the index were not read."""
    read = g.gather(op.dim, op.index)
    if read.shape == op.src.shape:
        return read
    home = g.new_zeros(op.src.shape)
    home[tuple(slice(size) for size in op.index.shape)] = read
    return home


# PyTorch sends the gradient to every `src` that was written to a place, also to those overwritten by a later one: right
# only where each place is written once, as its documentation says.
scatter = writes(
    "ScatterBackward0",
    equation=r"$out = $self \text{ with } $src \text{ written at } $index \text{ of dim } $dim",
    kept=lambda op, g: g.scatter(op.dim, op.index, 0),
    written={"src": _scatter_sources},
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
    equation=r"$out = $self \text{ with } $value \text{ written at } $index \text{ of dim } $dim",
    kept=lambda op, g: g.scatter(op.dim, op.index, 0),
    written={},
    accepts=lambda op: "reduce" not in op.arguments and "value" in op.arguments,
    samples=lambda: [sample(torch.scatter, x(3, 4), 1, at((0, 2), (1, 1)), 5.0)],
    source="derivatives.yaml: scatter.value",
)

scatter_add = writes(
    "ScatterAddBackward0",
    equation=r"$out = $self \text{ with } $src \text{ added at } $index \text{ of dim } $dim",
    written={"src": _scatter_sources},
    samples=lambda: [
        sample(torch.scatter_add, x(3, 4), 1, at((0, 0), (1, 3)), x(2, 2), note="one place twice"),
        sample(torch.scatter_add, x(3), 0, at(2, 2, 0), x(3)),
    ],
)


def _selected(op: Any, g: Tensor) -> Tensor:
    """What stands at `index` of `dim`, in the shape of `source`."""
    if not g.dim():
        return g.reshape(op.source.shape)
    picked = g.index_select(op.dim, op.index.reshape(-1))
    return picked.expand_as(op.source) if op.source.dim() else picked.reshape(())


index_add = writes(
    "IndexAddBackward0",
    equation=r"$out = $self \text{ with } $alpha \cdot $source \text{ added at } $index \text{ of dim } $dim",
    written={"source": lambda op, g: op.alpha * _selected(op, g)},
    scale="$alpha",
    samples=lambda: [
        sample(torch.index_add, x(3, 4), 0, at(0, 0), x(2, 4), alpha=2),
        sample(torch.index_add, x(), 0, at(0), torch.tensor(2.0, requires_grad=True), note="0-dim"),
    ],
)

index_copy = writes(
    "IndexCopyBackward0",
    equation=r"$out = $self \text{ with } $source \text{ written at } $index \text{ of dim } $dim",
    kept=lambda op, g: g.index_fill(op.dim, op.index, 0),
    written={"source": _selected},
    samples=lambda: [sample(torch.index_copy, x(3, 4), 1, at(3, 0), x(3, 2))],
)

index_fill = writes(
    "IndexFillBackward0",
    equation=r"$out = $self \text{ with } $value \text{ written at } $index \text{ of dim } $dim",
    kept=lambda op, g: g.index_fill(op.dim, op.index, 0),
    written={"value": lambda op, g: (g - g.index_fill(op.dim, op.index, 0)).sum()},
    samples=lambda: [
        sample(torch.index_fill, x(3, 4), 1, at(3, 0), 5.0),
        sample(torch.index_fill, x(3, 4), 0, at(1, 1), torch.tensor(2.0, requires_grad=True)),
    ],
)

# Written by advanced indexing, mask, flat position ---------------------------------------------------------------


def _verb(op: Any) -> str:
    return "added" if op.accumulate else "written"


index_put = writes(
    "IndexPutBackward0",
    "UnsafeIndexPutBackward0",
    "IndexPutImplBackward0",
    equation=lambda op: rf"$out = $self \text{{ with }} $values \text{{ {_verb(op)} at [indices]}}",
    kept=lambda op, g: torch.ops.aten.index_put(g, op.indices, g.new_zeros(()), False),
    adds=lambda op: op.accumulate,
    # in the shape of the places: the walk sums where `values` was broadcast
    written={"values": lambda op, g: torch.ops.aten.index(g, op.indices)},
    index="indices",
    samples=lambda: [
        sample(torch.index_put, x(3, 4), (at(0, 1),), x(2, 4)),
        sample(torch.index_put, x(3, 4), (at(0, 0), at(1, 1)), x(2), accumulate=True, note="one place twice"),
        sample(torch.index_put, x(3, 4), (at(0, 2),), x(4), note="broadcast"),
        sample(torch.index_put, x(3), (torch.tensor([True, False, True]),), x(1), note="by a mask"),
    ],
)


unsafe_masked_index_put = writes(
    "UnsafeMaskedIndexPutAccumulateBackward0",
    equation=r"$out = $self \text{ with } $values \text{ added at [indices] where } $mask",
    written={"values": lambda op, g: torch.ops.aten._unsafe_masked_index(g, op.mask, op.indices, 0)},
    index="mask",
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


def _strided_kept(op: Any, g: Tensor) -> Tensor:
    origins = strided_origins(op)
    assert origins is not None
    return g.reshape(-1).index_fill(0, origins.reshape(-1), 0).reshape(g.shape)


as_strided_scatter = writes(
    "AsStridedScatterBackward0",
    equation=r"$out = $self \text{ with } $src \text{ written over } \operatorname{as\_strided}($self)",
    kept=_strided_kept,
    written={"src": lambda op, g: g.reshape(-1)[strided_origins(op)]},
    accepts=lambda op: strided_origins(op) is not None,
    samples=lambda: [
        sample(torch.as_strided_scatter, x(3, 4), x(2, 2), (2, 2), (4, 1)),
        sample(torch.as_strided_scatter, x(3, 4), x(2, 2), (2, 2), (4, 1), 2, note="with an offset"),
    ],
    source="derivatives.yaml: as_strided_scatter. What was there before has the gradient of the elements that stayed.",
    remark="PyTorch (2.13) has it the wrong way round: its gradient of `self` is g where it was overwritten, else 0.",
)


def _masked_source(op: Any, g: Tensor) -> Tensor:
    """The source is read in row-major order, as far as the mask asks for."""
    read = g.masked_select(op.mask)
    return torch.cat((read, read.new_zeros(op.source.numel() - read.numel()))).reshape(op.source.shape)


masked_scatter = writes(
    "MaskedScatterBackward0",
    equation=r"$out = $self \text{ with } $source \text{ written, one element after the other, where } $mask",
    kept=lambda op, g: g.masked_fill(op.mask, 0),
    written={"source": _masked_source},
    index="mask",
    samples=lambda: [
        sample(torch.masked_scatter, x(2, 3), torch.tensor([True, False, True]), x(5), note="not all of it read"),
        sample(torch.masked_scatter, x(3), torch.tensor([False] * 3), x(2), note="nothing written"),
    ],
)

put = writes(
    "PutBackward0",
    equation=lambda op: rf"$out = $self \text{{ (flattened) with }} $source \text{{ {_verb(op)} at }} $index",
    kept=lambda op, g: g.put(op.index, torch.zeros_like(op.source), False),
    adds=lambda op: op.accumulate,
    written={"source": lambda op, g: g.take(op.index).reshape(op.source.shape)},
    samples=lambda: [
        sample(torch.Tensor.put, x(2, 3), at(0, 4), x(2)),
        sample(torch.Tensor.put, x(2, 3), at(4, 4), x(2), accumulate=True, note="one place twice"),
    ],
)

# Written where a view looks --------------------------------------------------------------------------------------


def _overwrites(node: str, where: str, place: Move, samples: Callable[[], Iterable[Sample]]) -> Rule:
    """Register an operation that copies `self` and writes `src` where the view `place` looks."""

    def kept(op: Any, g: Tensor) -> Tensor:
        rest = g.clone()
        place(op, rest).zero_()
        return rest

    return writes(
        node,
        equation=rf"$out = $self \text{{ with }} $src \text{{ written {where}",
        kept=kept,
        written={"src": place},
        index="",
        samples=samples,
    )


slice_scatter = _overwrites(
    "SliceScatterBackward0",
    r"into a slice of dim } $dim",
    slice_of,
    lambda: [sample(torch.slice_scatter, x(4, 3), x(2, 3), 0, 1, 3)],
)

select_scatter = _overwrites(
    "SelectScatterBackward0",
    r"at index } $index \text{ of dim } $dim",
    lambda op, v: v.select(op.dim, op.index),
    lambda: [sample(torch.select_scatter, x(4, 3), x(4), 1, -1)],
)

diagonal_scatter = _overwrites(
    "DiagonalScatterBackward0",
    "on a diagonal}",
    lambda op, v: v.diagonal(op.offset, op.dim1, op.dim2),
    lambda: [sample(torch.diagonal_scatter, x(4, 3), x(3))],
)
