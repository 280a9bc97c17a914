"""Rules of embeddings: rows of a table by their numbers, alone or in bags."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from chainrule.rules import Convention, Factor, Index, Wrt, derivative, rule, sample
from chainrule.rules import at as element
from chainrule.rules.element import Element, Elements, largest, mean, of
from chainrule.rules.element import total as total_of
from chainrule.rules.index_notation import AND, OTHERS, Side, Statements, Term, filled, letters, ranges, runs, total
from chainrule.rules.indexing import at
from chainrule.rules.pattern import Pattern, copied, real
from chainrule.rules.shape import COPIES, x


def _onto_rows(op: Any, words: Tensor, each: Tensor) -> Tensor:
    """Each word's gradient, added to its row, and divided by how often the word is used where that is asked for."""
    if op.scale_grad_by_freq:
        each = each / words.bincount(minlength=op.weight.shape[0])[words].unsqueeze(1)
    return each.new_zeros(op.weight.shape).index_add_(0, words, each)


def _embedding(op: Any, g: Tensor) -> Tensor:
    words = op.indices.reshape(-1)
    each = g.reshape(words.numel(), op.weight.shape[1])
    return _onto_rows(op, words, each.masked_fill((words == op.padding_idx).unsqueeze(1), 0))


def _padding(op: Any, radius: float) -> Tensor:
    """The row of the padding index, where that is looked up."""
    rows = torch.arange(op.weight.shape[0], device=op.weight.device)
    used: Tensor = (rows == op.padding_idx) & (op.indices == op.padding_idx).any()
    return used.unsqueeze(1).expand(op.weight.shape)


def _looked_up_twice(op: Any, radius: float) -> Tensor:
    """The rows that are looked up more than once, where the gradient is divided by that."""
    uses: Tensor = op.indices.reshape(-1).bincount(minlength=op.weight.shape[0])
    uses[op.padding_idx] *= op.padding_idx < 0
    divided: Tensor = (uses > 1) & op.scale_grad_by_freq
    return divided.unsqueeze(1).expand(op.weight.shape)


PADDING = Convention(_padding, "padding_idx: the row of the padding index gets no gradient", "weight")
BY_FREQUENCY = Convention(
    _looked_up_twice, "scale_grad_by_freq: a row's gradient is divided by the number of its uses", "weight"
)


def _embedding_factor(op: Any, out_index: Index, in_index: Index) -> Factor | None:
    word = int(op.indices[out_index[:-1]])
    if word == op.padding_idx or (word, out_index[-1]) != in_index:
        return None
    uses = int((op.indices == word).sum()) if op.scale_grad_by_freq else 1
    return Factor(latex="1" if uses == 1 else rf"\frac{{1}}{{{uses}}}")


def _row_of_word(op: Any) -> Term:
    """The row of each word."""
    *k, j = letters(op.out)
    word = Side("weight", op.weight.shape, [element("indices", k), j])
    return Term(Side("out", op.out.shape, [*k, j]), word, runs([*k, j], op.out.shape))


def _counted_row(op: Any) -> Term:
    """The row of each word, at the rate at which the gradient counts it."""
    row = _row_of_word(op)
    word, k = row.into.at[0], row.out.at[:-1]
    rate = "1" if op.padding_idx < 0 else rf"[{word} \neq {op.padding_idx}]"
    if not op.scale_grad_by_freq:
        return replace(row, rate=rate)
    other, uses = OTHERS[2 : 2 + len(k)], f"N_{{{', '.join(k)}}}"
    same = f"{element('indices', other)} = {word}"
    given = f"{uses} = {total(other, [same], '1')}"
    return replace(row, rate=rf"\frac{{{rate}}}{{{uses}}}", given=[given])


def _embedding_pattern(op: Any) -> Pattern | None:
    if not real(op.out, op.weight) or op.scale_grad_by_freq:  # a gradient that was divided is not that of a copy
        return None
    return copied(op.out.numel(), op.weight.numel(), filled=True)


embedding = rule(
    "EmbeddingBackward0",
    equation=lambda op: _row_of_word(op).direct,
    wrt={
        "weight": Statements(lambda op: [_counted_row(op)]).wrt(
            "weight", _embedding, COPIES, _embedding_factor, _embedding_pattern
        )
    },
    constants={"indices": "not differentiable"},
    structure="linear",
    element=lambda op, slot, index: op.at("weight", (op.whole.indices[index[:-1]], index[-1])),
    samples=lambda: [
        sample(F.embedding, at((0, 1), (1, 3)), x(4, 2), note="one word twice"),
        sample(F.embedding, at(0, 1, 1), x(4, 2), padding_idx=1, note="padding gets no gradient"),
        sample(F.embedding, at(0, 1, 1), x(4, 2), scale_grad_by_freq=True, note="divided by the count of the word"),
        sample(F.embedding, torch.tensor(2), x(4, 2), note="one word"),
        sample(F.embedding, at(), x(4, 2), note="no word"),
    ],
    conventions=tuple(replace(each, source="torch.nn.functional.embedding") for each in (PADDING, BY_FREQUENCY)),
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
    return _onto_rows(op, op.indices, each)


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

    HERE are the conditions that the word is in the bag and counts. RATE is what its row is multiplied by, and SHARE
    the derivative by the row w: a gradient may be divided by the word's uses, and of extremes one row gets all.
    """

    def formula(op: Any) -> str:
        counts = ["B_{u} = i", *([rf"{{$indices}}_{{u}} \neq {op.padding_idx}"] if op.padding_idx >= 0 else [])]
        given, rate, each = [r"B_{u} = \sum_{v} [{$offsets}_{v} \le u] - 1"], "", "1"
        if op.per_sample_weights is not None:
            each = "{$per_sample_weights}_{u}"
            rate = rf"{each} \, "
        elif op.mode == _MEAN:
            each = r"\frac{1}{\max(N_{i}, 1)}"
            rate = rf"{each} \, "
            given.append(f"N_{{i}} = {total(['u'], counts, '1')}")
        if op.scale_grad_by_freq:
            each = rf"\frac{{{each}}}{{F_{{u}}}}"
            given.append(r"F_{u} = \sum_{v} [{$indices}_{v} = {$indices}_{u}]")
        given += ranges("u", [op.indices.numel()]).values()
        largest = op.mode == _MAX
        words = {
            "BIG": r"\max_{u: HERE}" if largest else r"\sum_{u: HERE}",
            **{"HERE": ", ".join(counts), "COUNTED": AND.join(counts), "RATE": rate},
            "SHARE": LARGEST if largest else rf"\sum_{{u: HERE, {{$indices}}_{{u}} = w}} {each}",
        }
        return filled(text or r", \quad ".join(given), words)

    return formula


def _bag_element(op: Elements, slot: int, index: tuple[int, ...]) -> Element | None:
    """The sum, mean or largest of the rows of a bag."""
    if slot:
        return None
    bags, counts, _ = _bags(op.whole)
    words = [u for u in range(len(bags)) if bags[u] == index[0] and counts[u]]
    rows = [op.at("weight", (op.whole.indices[u], index[1])) for u in words]
    if op.whole.per_sample_weights is not None:
        rows = [row * op.at("per_sample_weights", (u,)) for u, row in zip(words, rows, strict=True)]
    if not rows:
        return of(0)
    return (
        largest(rows) if op.whole.mode == _MAX else mean(rows) if op.whole.mode == _MEAN else total_of(rows, keep=True)
    )


ROW = "{$weight}_{{$indices}_{u}, j}"
LARGEST = r"[\sum_{u: HERE} [{$indices}_{u} = w] > 0] \, [{$weight}_{w, j} = {$out}_{i, j}]"

embedding_bag = rule(
    "EmbeddingBagBackward0",
    equation=_bag(f"{{$out}}_{{i, j}} = BIG RATE {ROW}"),
    where=_bag(""),
    wrt={
        "weight": Wrt(
            _embedding_bag,
            _bag(derivative("{$out}_{i, j}", "{$weight}_{w, j}", "SHARE")),
            _bag(r"{$grad}_{w, j} = \sum_{i} {$g}_{i, j} \, SHARE"),
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
    element=_bag_element,
    samples=lambda: [
        *(sample(F.embedding_bag, at(0, 1, 1, 3), x(4, 2), at(0, 1), mode=mode) for mode in ("sum", "mean", "max")),
        sample(F.embedding_bag, at(0, 1, 1, 3), x(4, 2), at(0, 1), mode="sum", per_sample_weights=x(4)),
        sample(F.embedding_bag, at(0, 1, 1, 3), x(4, 2), at(0, 2), mode="mean", padding_idx=1, note="padding"),
        sample(F.embedding_bag, at(0, 1, 1, 3), x(4, 2), at(0, 2, 2), mode="mean", note="an empty bag"),
        sample(F.embedding_bag, at((0, 1), (3, 3)), x(4, 2), mode="max", note="ties"),
        sample(F.embedding_bag, at(0, 1, 3), x(4, 2), at(0, 1, 3), mode="mean", include_last_offset=True),
        sample(F.embedding_bag, at(0, 1, 1), x(4, 2), at(0, 1), mode="sum", scale_grad_by_freq=True),
    ],
    conventions=(replace(BY_FREQUENCY, source="torch.nn.functional.embedding_bag"),),
    remark="With `scale_grad_by_freq` PyTorch (2.13, on a CPU) may divide by the number of uses of another word.",
    source="derivatives.yaml: _embedding_bag",
)
