"""Whether the gradient of a leaf is the sum of what its uses sent, and `.grad` holds it."""

from __future__ import annotations

import itertools
from dataclasses import replace

import torch
from torch import Tensor

from chainrule.execution.experiment import real
from chainrule.graph.comparison import Comparison, compare, rounding, unravel
from chainrule.graph.graph import Edge, Graph, Node, Value
from chainrule.graph.snapshot import all_have_numbers, tensor_of
from chainrule.verification.rows import NOT_ACCUMULATED, UNKEPT, Row, Wrong, number_at, unchecked
from chainrule.verification.rule_comparison import LARGE, is_finite, slabs


def leaf_sums(graph: Graph, node: Node, senders: list[tuple[Node, Edge]]) -> list[Row]:
    """What was accumulated in a leaf, and what each `torch.autograd.grad` gave as its gradient."""
    assert node.leaf is not None
    leaf = graph.values[node.leaf]
    arrived: dict[int, list[Tensor]] = {}
    for other, edge in senders:
        for execution in other.executions:
            contribution = tensor_of(execution.along(edge))
            if contribution is not None:
                arrived.setdefault(execution.backward, []).append(contribution)
    given = [
        _sum(node, leaf, arrived.get(backward.index, []), backward.given[node.leaf].tensor, it="the gradient that "
             "torch.autograd.grad gave of it")
        for backward in graph.backwards if node.leaf in backward.given
    ]  # fmt: skip
    contributions = [each for index in sorted(arrived) if graph.backwards[index].accumulates for each in arrived[index]]
    if given and not contributions:
        return given
    known = next((each for each in graph.parameters.values() if each.value == node.leaf), None)
    left, before = (None, None) if known is None else (graph.sent(known), tensor_of(known.left_over))
    return [_sum(node, leaf, contributions, leaf.grad, left, before), *given]


def _sum(
    node: Node, leaf: Value, arrived: list[Tensor], gradient: Tensor | None, left: Tensor | None = None,
    before: Tensor | None = None, it: str = "its gradient",
) -> Row:  # fmt: skip
    """Compare the sum of what the edges into a leaf sent with the gradient that arrived, and with `.grad`.

    `left` is what `.grad` holds after the passes, `before` what it held before them.
    """
    if leaf.has_gradient and (gradient is None or not all_have_numbers(gradient, *arrived)):
        return unchecked(node, UNKEPT)
    if gradient is None or not arrived:
        return unchecked(node, NOT_ACCUMULATED)
    uses = "its only use" if len(arrived) == 1 else f"{len(arrived)} uses"
    summed = f"{it} is the sum of what came back from {uses}"
    if gradient.numel() > LARGE and (exact := _exactly(gradient, arrived, left)) is not None:
        return Row(node, leaf.place, "agrees", summed, ("grad",), exact, tolerance=exact.tolerance)
    sent = [real(contribution) for contribution in arrived]
    recorded, total = real(gradient), sum(sent[1:], sent[0])
    if not recorded.isfinite().all():
        return unchecked(node, "its gradient is not finite")
    terms, eps = sum((contribution.abs() for contribution in sent), torch.zeros_like(total)), rounding(leaf.dtype)
    found = compare(recorded, total, terms, count=len(sent), eps=eps, argument="grad")
    pairs = 2 if leaf.dtype.is_complex else 1
    index = unravel(found.index[0] // pairs, leaf.shape) if found.index else None
    at = replace(found, index=index, off=())
    row = Row(node, leaf.place, "agrees", "", ("grad",), at, tolerance=at.tolerance)
    if not found.agrees:
        places = dict.fromkeys(i // pairs for i in found.off[:8])
        sides = [(unravel(i, leaf.shape), number_at(total, i, pairs), number_at(recorded, i, pairs)) for i in places]
        wrong = tuple(Wrong("grad", index, ours, theirs, None) for index, ours, theirs in sides)
        reason = f"{it} is not the sum of what came back from {uses}"
        return replace(row, verdict="disagrees", reason=reason, wrong=wrong)
    if left is not None and not _equals(left, total, terms, len(sent)):
        if any(_equals(left, each, terms, len(sent)) for each in itertools.accumulate(reversed(sent))):
            return replace(row, reason=f"{summed}; `.grad` was cleared in between, and holds what came after that")
        if before is not None and not all_have_numbers(before):
            return replace(row, verdict="not checked", reason=UNKEPT)
        if before is not None and _equals(left, real(before) + total, real(before).abs() + terms, len(sent) + 1):
            return replace(row, reason=f"{summed}; `.grad` holds that and the gradient that was there before")
        reason = "`.grad` is neither what its uses sent nor that and what was there before: something wrote to it"
        return replace(row, verdict="not checked", reason=reason)
    return replace(row, reason=summed)


def _equals(left: Tensor, total: Tensor, terms: Tensor, count: int) -> bool:
    """Whether `.grad` is this sum."""
    return compare(real(left), total, terms, count=count, eps=rounding(left.dtype)).agrees


def _exactly(recorded: Tensor, arrived: list[Tensor], left: Tensor | None) -> Comparison | None:
    """For a large leaf whose gradient, and whose `.grad`, is bit for bit the sum of what arrived."""
    if any(g.layout != torch.strided for g in (recorded, *arrived)) or not is_finite(recorded):
        return None
    if left is not None and left is not recorded and not torch.equal(left, recorded):
        return None
    if any(g.shape != recorded.shape for g in arrived):
        return None
    if not all(torch.equal(whole, sum(parts[1:], parts[0])) for whole, *parts in slabs(recorded, *arrived)):
        return None
    return compare(recorded, recorded, argument="grad")
