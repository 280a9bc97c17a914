"""The paths along which gradients came back to a value, the terms of each element.

The upstream factors are recorded. Column j of the local Jacobian, dy_i/dx_j, comes from the rule alone: its
vector-Jacobian product is linear in the upstream gradient g, so the column is the derivative by g of its element j.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from math import prod

import torch
from torch import Tensor

from chainrule import rules
from chainrule.derivation.backprop import Contribution, Derivation, NodeStep, Step
from chainrule.derivation.jacobian import Number, flat_place, indices, pulled, small_jacobian, unit_at
from chainrule.graph.comparison import compare, dense, rounding
from chainrule.graph.graph import Graph, counted, references
from chainrule.graph.names import Index
from chainrule.graph.snapshot import all_have_numbers, has_numbers
from chainrule.rules import Applied, Rule

SEARCHED = 4_096  # elements of an output up to which each is tested for a derivative that is 0 only by chance
KEPT = 256  # elements of an output up to which the terms of each element are kept
BASIS = 4_096  # elements of an output up to which a Jacobian is computed from basis vectors

Arguments = tuple[tuple[str, int | None, int], ...]


@dataclass(frozen=True)
class Path:
    """One path of a gradient back to a value: what the value was used for, and as which argument."""

    outputs: tuple[int | None, ...]
    argument: str
    gradient: Tensor
    backward: int

    @property
    def has_numbers(self) -> bool:
        """Whether its numbers were kept."""
        return has_numbers(self.gradient)


@dataclass(frozen=True)
class RuledPath(Path):
    """A path that a rule explains. `operands` are the values of the operation's other arguments too.

    Where the operation amounts to several stages (a loss for each sample, then their mean), the path is through the
    first one: `via` is the symbol of its result, and `upstream` the gradient of that.
    """

    rule: Rule
    op: Applied
    item: int | None
    shape: tuple[int, ...]
    upstream: tuple[Tensor | None, ...]
    operands: dict[tuple[str, int | None], int]
    via: str = ""
    _entries: dict[Index, list[Entry] | None] = field(default_factory=dict, repr=False, compare=False)

    @property
    def has_numbers(self) -> bool:
        """Whether its numbers were kept: upstream gradients, operands and results."""
        return self.op.has_numbers and all_have_numbers(*self.upstream, self.gradient)

    def pull(self, upstream: tuple[Tensor | None, ...]) -> Tensor | None:
        """The rule's vector-Jacobian product, in the value's own shape."""
        return pulled(self.rule, self.op, upstream, self.argument, self.item, self.shape)

    @cached_property
    def is_small(self) -> bool:
        """Whether what is worked out for it is kept: others may ask for another element of it, or for the same."""
        return sum(g.numel() for g in self.upstream if g is not None) <= KEPT

    def columns(self, index: Index) -> list[list[Number] | None] | None:
        """Column `index` of the Jacobian, one part for each output; None where the rule does not give it."""
        if self.small is not None:
            column = self.small[flat_place(index, self.shape)]
            return [None if g is None else column for g in self.upstream]
        found = _column(self, index)
        return None if found is None else [None if each is None else each.reshape(-1).tolist() for each in found]

    @cached_property
    def flat(self) -> list[list[Number] | None]:
        """The numbers of the upstream gradients, in a row."""
        return [None if g is None else dense(g).reshape(-1).tolist() for g in self.upstream]

    @cached_property
    def small(self) -> list[list[Number]] | None:
        """The columns of a small Jacobian that is worked out as a whole, as each of its columns is asked for."""
        arrived = [slot for slot, g in enumerate(self.upstream) if g is not None]
        g = self.upstream[arrived[0]] if len(arrived) == 1 else None
        if g is None or not self.is_small or not g.dtype == self.gradient.dtype == self.op.outs[arrived[0]].dtype:
            return None
        full = self.op.once(small_jacobian, self.rule, self.argument, self.item, arrived[0], tuple(self.shape))
        if full is None or full.dtype != g.dtype or len(full) != g.numel() or not bool(full.isfinite().all()):
            return None
        columns: list[list[Number]] = full.T.tolist()
        return columns

    @cached_property
    def differentiable(self) -> tuple[list[Tensor], Tensor | None]:
        """The upstream gradients, and what the rule makes of them, for the derivative of one by the others."""
        with torch.enable_grad():
            upstream = tuple(None if g is None else g.detach().clone().requires_grad_() for g in self.upstream)
            return [g for g in upstream if g is not None], self.pull(upstream)


@dataclass(frozen=True)
class Entry:
    """One term before it is named: element `at` of output `slot`, and the two numbers."""

    slot: int
    at: Index
    upstream: Number
    local: Number
    value: Number


def paths_back(graph: Graph, derivation: Derivation) -> dict[int, list[Path]]:
    """The paths back to each value: through the steps, or through the nodes where a value is inside a step."""
    of_steps: dict[int, list[Path]] = {}
    for step in derivation.steps:
        if step.kind == "backward":
            alone = len(step.operations) == 1
            outputs = graph.operations[step.operations[0]].outputs if alone else step.outputs
            for contribution in step.contributions:
                _add(of_steps, graph, step, contribution, outputs, step.arguments)
    bare: dict[int, list[Path]] = {}
    for node in derivation.nodes:
        if node.operation is not None:
            operation = graph.operations[node.operation]
            for contribution in node.contributions:
                _add(bare, graph, node, contribution, operation.outputs, tuple(references(operation.arguments)))
    return {value: _counted(graph, paths) for value, paths in {**bare, **of_steps}.items()}


def _counted(graph: Graph, paths: list[Path]) -> list[Path]:
    """The paths of the passes that the value's gradient is the sum of."""
    passes = counted(graph.backwards, {path.backward for path in paths})
    return [path for path in paths if path.backward in passes]


def _add(
    paths: dict[int, list[Path]],
    graph: Graph,
    step: Step | NodeStep,
    contribution: Contribution,
    outputs: tuple[int | None, ...],
    arguments: Arguments,
) -> None:
    if contribution.value is None or contribution.gradient is None:
        return
    common = (outputs, contribution.argument, dense(contribution.gradient), step.backward or 0)
    path = Path(*common)
    if step.rule is not None and step.op is not None:
        upstream = step.upstream + (None,) * (len(outputs) - len(step.upstream))
        operands = {(name, item): value for name, item, value in arguments}
        shape = graph.values[contribution.value].shape
        rule, op, upstream, via = _first_stage(step.rule, step.op, upstream)
        path = RuledPath(*common, rule, op, contribution.item, shape, upstream, operands, via)
    paths.setdefault(contribution.value, []).append(path)


def _first_stage(
    rule: Rule, op: Applied, upstream: tuple[Tensor | None, ...]
) -> tuple[Rule, Applied, tuple[Tensor | None, ...], str]:
    """The first of the stages that an operation amounts to, what arrives at its result, and the symbol of that."""
    g = upstream[0] if upstream else None
    stages = op.once(rule.stages) if rule.stages is not None and op.has_numbers and has_numbers(g) else []
    if not stages:
        return rule, op, upstream, ""
    for stage in reversed(stages[1:]):
        g = None if g is None else stage.rule.gradient(stage.op, (g,), "self")
    return stages[0].rule, stages[0].op, (g,), stages[0].symbol


def entries_of(path: Path, index: Index) -> list[Entry] | None:
    """The terms of one use, in the order of the output's elements (None: no rule gives the Jacobian)."""
    if not isinstance(path, RuledPath):
        return None
    if not path.is_small:
        return _entries_of(path, index)
    if index not in path._entries:
        path._entries[index] = _entries_of(path, index)
    return path._entries[index]


def _entries_of(path: RuledPath, index: Index) -> list[Entry] | None:
    columns = path.columns(index)
    if columns is None:
        return None
    entries = []
    own = path.gradient[index].item()
    for slot, (upstream, column) in enumerate(zip(path.flat, columns, strict=False)):
        if upstream is None or column is None or path.outputs[slot] is None:
            continue
        shape = tuple(path.upstream[slot].shape)  # type: ignore[union-attr]
        for at in _places(path, index, slot, shape, column):
            g, local = upstream[flat_place(at, shape)], column[flat_place(at, shape)]
            term = g * (local.conjugate() if isinstance(local, complex) else local)
            # What a rule stops is 0, even where the upstream gradient is not finite.
            entries.append(Entry(slot, at, g, local, 0.0 if term != term and own == own and local == 0 else term))
    return entries if _add_up(entries, path.gradient.dtype, own) else None


def _add_up(entries: list[Entry], dtype: torch.dtype, own: Number) -> bool:
    """Whether the terms add up to the contribution; they do not where a VJP is not linear (conjugates)."""
    total, terms = sum(entry.value for entry in entries), sum(abs(entry.value) for entry in entries)
    if total != total or own != own:
        return True  # NaN is what its terms make it
    return compare(total, own, terms, count=max(1, len(entries)), eps=rounding(dtype)).agrees


def _column(path: RuledPath, index: Index) -> list[Tensor | None] | None:
    """Column `index` of the Jacobian, one part for each output: the derivative of the VJP by the upstream gradient."""
    if any(each is not None and each.is_complex() for each in (path.gradient, *path.upstream)):
        return _column_by_basis(path, index)
    try:
        wanted, gradient = path.differentiable
        if gradient is None or not gradient.requires_grad:
            return [None if g is None else torch.zeros_like(g) for g in path.upstream]
        with torch.enable_grad():
            slopes = iter(torch.autograd.grad(gradient[index], wanted, retain_graph=True, materialize_grads=True))
    except (RuntimeError, NotImplementedError):
        return _column_by_basis(path, index)
    finally:
        if not path.is_small:
            path.__dict__.pop("differentiable", None)
    return [None if g is None else dense(next(slopes)) for g in path.upstream]


def _column_by_basis(path: RuledPath, index: Index) -> list[Tensor | None] | None:
    if sum(g.numel() for g in path.upstream if g is not None) > BASIS:
        return None
    columns: list[Tensor | None] = []
    for slot, g in enumerate(path.upstream):
        if g is None:
            columns.append(None)
            continue
        column = torch.zeros(g.shape, dtype=torch.promote_types(g.dtype, path.gradient.dtype))
        for at in indices(g.shape):
            basis = [None if each is None else torch.zeros_like(each) for each in path.upstream]
            basis[slot] = unit_at(g, at)
            gradient = path.pull(tuple(basis))
            # conjugated, as a VJP multiplies by the conjugate of the derivative
            column[at] = 0 if gradient is None else gradient[index].conj()
        columns.append(column)
    return columns


def _places(path: RuledPath, index: Index, slot: int, shape: Index, column: list[Number]) -> Iterator[Index]:
    """The output elements that the input element can influence, also where the derivative happens to be 0."""
    if path.rule.structure == "elementwise" and path.item is None and len(path.shape) <= len(shape):
        added = len(shape) - len(path.shape)
        axes = [range(size) for size in shape[:added]]
        for size, own, place in zip(shape[added:], path.shape, index, strict=True):
            axes.append(range(size) if own == 1 else range(place, place + 1))
        yield from product(*axes)
        return
    certain = {at for at, local in zip(indices(shape), column, strict=True) if local}
    named = path.rule.wrt[path.argument].factor is not None and path.rule.structure != "linear"
    if prod(shape) > SEARCHED or not named:
        yield from sorted(certain)
        return
    for at in indices(shape):
        # Only an operand's element can be 0 by chance; a formula is the same everywhere.
        factor = None if at in certain else closed_form(path, index, Entry(slot, at, 0, 0, 0))
        if at in certain or (factor is not None and factor.argument is not None):
            yield at


def closed_form(path: RuledPath, index: Index, entry: Entry) -> rules.Factor | None:
    """The rule's own name for a Jacobian entry, if it has one."""
    factor = path.rule.wrt[path.argument].factor
    if factor is None:
        return None
    try:
        return factor(path.op, entry.at, index if path.item is None else (path.item, *index))
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        return None  # it is only a name: without it the entry is written as dy/dx


def at_kink(path: RuledPath, index: Index, at: Index) -> bool:
    """Whether this element lies exactly where the function has no derivative."""
    kink = path.rule.kink
    if kink is None or kink.argument != path.argument:
        return False
    mask = kink.where(path.op, 0.0)
    place = index if tuple(mask.shape) == path.shape else aligned(at, tuple(mask.shape))
    return place is not None and bool(mask[place])


def aligned(at: Index, shape: tuple[int, ...]) -> Index | None:
    """The element of a tensor of `shape` that broadcasting put at `at`; None where it did not."""
    if len(shape) > len(at):
        return None
    own = tuple(0 if size == 1 else place for size, place in zip(shape, at[len(at) - len(shape) :], strict=True))
    return own if all(place < size for place, size in zip(own, shape, strict=True)) else None
