"""The ways on which gradients came back to a value, and the terms that each element got on them.

The upstream factors are recorded; column j of the local Jacobian, dy_i/dx_j, comes from the rule alone: its
vector-Jacobian product is linear in the upstream gradient g, so the column is the derivative by g of its element j.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from chainrule import rules
from chainrule.derivation.backprop import Derivation, NodeStep, Share, Step
from chainrule.graph.comparison import compare, rounding
from chainrule.graph.graph import Graph, counted, references
from chainrule.graph.lookup import Index
from chainrule.rules import Applied, Rule

SEARCHED = 4_096  # elements of an output up to which each is asked whether its derivative is 0 only by chance
BASIS = 4_096  # elements of an output up to which a Jacobian is worked out with one basis vector after another

Number = float | complex
Arguments = tuple[tuple[str, int | None, int], ...]


@dataclass(frozen=True)
class Way:
    """One way on which a gradient came back to a value: what it was used for, and as which argument."""

    outputs: tuple[int | None, ...]
    argument: str
    gradient: Tensor
    backward: int

    @property
    def has_numbers(self) -> bool:
        """Whether the numbers that it is made of were kept."""
        return not self.gradient.is_meta


@dataclass(frozen=True)
class RuledWay(Way):
    """A way that a rule explains. `operands` are the values of the operation's other arguments too."""

    rule: Rule
    op: Applied
    item: int | None
    shape: tuple[int, ...]
    upstream: tuple[Tensor | None, ...]
    operands: dict[tuple[str, int | None], int]

    @property
    def has_numbers(self) -> bool:
        """Whether the numbers that it is made of were kept: upstream gradients, operands and results."""
        arrived = (*self.upstream, self.gradient)
        return self.op.has_numbers and not any(each is not None and each.is_meta for each in arrived)

    def pull(self, upstream: tuple[Tensor | None, ...]) -> Tensor | None:
        """The rule's vector-Jacobian product, in the value's own shape."""
        gradient = self.rule.gradient(self.op, upstream, self.argument)
        if self.item is not None and gradient is not None:
            gradient = gradient[self.item]
        return None if gradient is None else rules.reduce_to_shape(gradient, self.shape)[0]


@dataclass(frozen=True)
class Entry:
    """One term before it is named: element `at` of output `slot`, and the two numbers."""

    slot: int
    at: Index
    upstream: Number
    local: Number
    value: Number


def ways_back(graph: Graph, derivation: Derivation) -> dict[int, list[Way]]:
    """The ways back to each value: through the steps as they are told, else through the bare nodes."""
    told: dict[int, list[Way]] = {}
    for step in derivation.steps:
        if step.kind == "backward":
            alone = len(step.operations) == 1
            outputs = graph.operations[step.operations[0]].outputs if alone else step.outputs
            for share in step.shares:
                _add(told, graph, step, share, outputs, step.arguments)
    bare: dict[int, list[Way]] = {}
    for node in derivation.nodes:
        if node.operation is not None:
            operation = graph.operations[node.operation]
            for share in node.shares:
                _add(bare, graph, node, share, operation.outputs, tuple(references(operation.arguments)))
    return {value: _counted(graph, ways) for value, ways in {**bare, **told}.items()}


def _counted(graph: Graph, ways: list[Way]) -> list[Way]:
    """The ways of the passes that the value's gradient is the sum of."""
    passes = counted(graph.backwards, {way.backward for way in ways})
    return [way for way in ways if way.backward in passes]


def _add(
    ways: dict[int, list[Way]],
    graph: Graph,
    step: Step | NodeStep,
    share: Share,
    outputs: tuple[int | None, ...],
    arguments: Arguments,
) -> None:
    if share.value is None or share.gradient is None:
        return
    gradient = share.gradient.to_dense() if share.gradient.is_sparse else share.gradient
    common = (outputs, share.argument, gradient, step.backward or 0)
    way = Way(*common)
    if step.rule is not None and step.op is not None:
        upstream = step.upstream + (None,) * (len(outputs) - len(step.upstream))
        operands = {(name, item): value for name, item, value in arguments}
        shape = graph.values[share.value].shape
        way = RuledWay(*common, step.rule, step.op, share.item, shape, upstream, operands)
    ways.setdefault(share.value, []).append(way)


def entries_of(way: Way, index: Index) -> list[Entry] | None:
    """The terms of one use, in the order of the output's elements (None: the Jacobian can't be had from a rule)."""
    columns = _column(way, index) if isinstance(way, RuledWay) else None
    if columns is None or not isinstance(way, RuledWay):
        return None
    entries = []
    own = way.gradient[index].item()
    for slot, (upstream, column) in enumerate(zip(way.upstream, columns, strict=False)):
        if upstream is None or column is None or way.outputs[slot] is None:
            continue
        for at in _places(way, index, slot, column):
            g, local = upstream[at].item(), column[at].item()
            term = g * (local.conjugate() if isinstance(local, complex) else local)
            # What a rule stops is 0, even where the upstream gradient is not finite.
            entries.append(Entry(slot, at, g, local, 0.0 if term != term and own == own and local == 0 else term))
    return entries if _add_up(entries, way.gradient.dtype, own) else None


def _add_up(entries: list[Entry], dtype: torch.dtype, own: Number) -> bool:
    """Whether the terms make the share that they are terms of; not so where a VJP is not linear (conjugates)."""
    total, terms = sum(entry.value for entry in entries), sum(abs(entry.value) for entry in entries)
    if total != total or own != own:
        return True  # NaN is what its terms make it
    return compare(total, own, terms, count=max(1, len(entries)), eps=rounding(dtype)).agrees


def _column(way: RuledWay, index: Index) -> list[Tensor | None] | None:
    """Column `index` of the Jacobian, one part for each output: the derivative of the VJP by the upstream gradient."""
    if any(each is not None and each.is_complex() for each in (way.gradient, *way.upstream)):
        return _column_by_basis(way, index)
    try:
        with torch.enable_grad():
            upstream = tuple(None if g is None else g.detach().clone().requires_grad_() for g in way.upstream)
            gradient = way.pull(upstream)
            wanted = [g for g in upstream if g is not None]
            if gradient is None or not gradient.requires_grad:
                return [None if g is None else torch.zeros_like(g) for g in way.upstream]
            slopes = iter(torch.autograd.grad(gradient[index], wanted, allow_unused=True))
    except (RuntimeError, NotImplementedError):
        return _column_by_basis(way, index)
    found = [None if g is None else (next(slopes), g) for g in way.upstream]
    return [None if each is None else torch.zeros_like(each[1]) if each[0] is None else each[0] for each in found]


def _column_by_basis(way: RuledWay, index: Index) -> list[Tensor | None] | None:
    if sum(g.numel() for g in way.upstream if g is not None) > BASIS:
        return None
    columns: list[Tensor | None] = []
    for slot, g in enumerate(way.upstream):
        if g is None:
            columns.append(None)
            continue
        column = torch.zeros(g.shape, dtype=torch.promote_types(g.dtype, way.gradient.dtype))
        for at in itertools.product(*map(range, g.shape)):
            basis = [None if each is None else torch.zeros_like(each) for each in way.upstream]
            one = torch.zeros_like(g)
            one[at] = 1
            basis[slot] = one
            gradient = way.pull(tuple(basis))
            # conjugated, as a VJP multiplies by the conjugate of the derivative
            column[at] = 0 if gradient is None else gradient[index].conj()
        columns.append(column)
    return columns


def _places(way: RuledWay, index: Index, slot: int, column: Tensor) -> Iterator[Index]:
    """The output elements that the input element can influence, also where the derivative happens to be 0."""
    shape = tuple(column.shape)
    if way.rule.structure == "elementwise" and way.item is None and len(way.shape) <= len(shape):
        added = len(shape) - len(way.shape)
        axes = [range(size) for size in shape[:added]]
        for size, own, place in zip(shape[added:], way.shape, index, strict=True):
            axes.append(range(size) if own == 1 else range(place, place + 1))
        yield from itertools.product(*axes)
        return
    certain = {tuple(at) for at in column.nonzero().tolist()}
    named = way.rule.wrt[way.argument].factor is not None and way.rule.structure != "linear"
    if prod(shape) > SEARCHED or not named:
        yield from sorted(certain)
        return
    for at in itertools.product(*map(range, shape)):
        # Only an operand's element can be 0 by chance; a formula is named for every place alike.
        factor = None if at in certain else closed_form(way, index, Entry(slot, at, 0, 0, 0))
        if at in certain or (factor is not None and factor.argument is not None):
            yield at


def closed_form(way: RuledWay, index: Index, entry: Entry) -> rules.Factor | None:
    """The rule's own name for a Jacobian entry, if it has one."""
    factor = way.rule.wrt[way.argument].factor
    if factor is None:
        return None
    try:
        return factor(way.op, entry.at, index if way.item is None else (way.item, *index))
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        return None  # it is a name only: without it the entry is told as dy/dx


def at_kink(way: RuledWay, index: Index, at: Index) -> bool:
    """Whether this element lies exactly where the function has no derivative."""
    kink = way.rule.kink
    if kink is None or kink.argument != way.argument:
        return False
    mask = kink.where(way.op, 0.0)
    place = index if tuple(mask.shape) == way.shape else aligned(at, tuple(mask.shape))
    return place is not None and bool(mask[place])


def aligned(at: Index, shape: tuple[int, ...]) -> Index | None:
    """The element of a tensor of `shape` that broadcasting put at `at`; None where it did not."""
    if len(shape) > len(at):
        return None
    own = tuple(0 if size == 1 else place for size, place in zip(shape, at[len(at) - len(shape) :], strict=True))
    return own if all(place < size for place, size in zip(own, shape, strict=True)) else None
