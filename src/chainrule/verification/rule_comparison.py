"""One argument of one node: our rule's gradient compared with autograd's recorded one."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from chainrule.derivation.backprop import Contribution
from chainrule.execution.experiment import FINEST, Experiment, Probe, real, widened
from chainrule.graph.comparison import Comparison, compare, rms, unravel
from chainrule.graph.graph import Edge
from chainrule.graph.snapshot import tensor_of
from chainrule.rules import Applied
from chainrule.verification.differences import (
    ArgumentCheck,
    AtKink,
    NodeContext,
    compare_elements,
    label_of,
    with_gradient,
)

LARGE = 2**16  # elements: from here on tensors are compared in their own number type


def unmeasured(edge: Edge, context: NodeContext, ours: Tensor | None = None) -> ArgumentCheck | None:
    """What autograd gave for one argument, unmeasured; where it is large, it is compared with `ours` at once."""
    graph, execution = context.graph, context.execution
    got = tensor_of(execution.along(edge))
    if edge.value is None and got is None:
        return None
    label = label_of(edge)
    if got is None:
        value = graph.values[edge.value or 0]
        count = 2 if value.dtype.is_complex else 1
        return ArgumentCheck(
            edge, label, torch.zeros(torch.Size(value.shape).numel() * count, dtype=torch.float64), True
        )
    if ours is not None and got.numel() > LARGE and (found := compare_large(got, ours, context.eps, label)) is not None:
        return ArgumentCheck(edge, label, got, False, ours, rule=found)
    return ArgumentCheck(edge, label, real(got), False)


def compare_large(got: Tensor, ours: Tensor, eps: float, label: str) -> Comparison | None:
    """Our rule's gradient compared with autograd's as they are; None where they differ, or are of other kinds."""
    if not is_plain(got) or not is_plain(ours) or ours.shape != got.shape or ours.dtype != got.dtype:
        return None
    found = compare(got, ours, eps=eps, argument=label)
    return found if found.agrees else None


def is_plain(tensor: object) -> bool:
    """Whether something is a dense tensor of real numbers."""
    return isinstance(tensor, Tensor) and tensor.layout == torch.strided and tensor.is_floating_point()


def at_known_kink(context: NodeContext, finding: ArgumentCheck | None) -> ArgumentCheck | None:
    """The same with the elements that lie exactly at a kink that our rule knows."""
    kink = context.kink(finding.edge) if finding is not None else None
    if kink is None or finding is None:
        return finding
    marks = kink.where(context.op, 0.0)
    if marks.numel() == finding.got.numel() and (count := int(marks.count_nonzero())):
        first = marks.nonzero()[:8].tolist()
        finding.kinks = AtKink(finding.label, tuple(map(tuple, first)), count, kink.choice)
    return finding


def compare_rule(
    context: NodeContext, experiment: Experiment | None, finding: ArgumentCheck, contribution: Contribution | None
) -> None:
    """Compare our rule's gradient with autograd's, unless the quick check has."""
    if (
        finding.rule is not None
        or contribution is None
        or contribution.gradient is None
        or contribution.recorded is None
    ):
        return
    finding.ours = ours = real(contribution.gradient)
    got, eps, size = finding.got, context.eps, torch.maximum(ours.abs(), finding.got.abs()) + rms(finding.got)
    terms = size if finding.terms is None else size + finding.terms
    found = compare(got, ours, terms, eps=eps, argument=finding.label)
    if not found.agrees:
        apart = finding.finite.largest if finding.rounding and finding.finite is not None else 0.0
        terms, count = terms + _size_of_terms(context, finding), _most_terms(context, got)
        found = compare(got, ours, terms, count=count, eps=eps, slack=4.0 * apart, argument=finding.label)
    off = found.off or (() if found.agrees else (0,))
    if off and not finding.off and _right_in_float64(context, experiment, finding, [*off[:8]]):
        # One of the two rounds more (a constant in float32, a sum that cancels), and neither is wrong.
        found, off = replace(found, tolerance=max(found.tolerance, found.largest)), ()
    pairs = 2 if contribution.gradient.is_complex() else 1
    shape = tuple(contribution.gradient.shape)
    index = unravel(found.index[0] // pairs, shape) if found.index else None
    finding.rule, finding.rule_off = replace(found, index=index, off=()), off


def _most_terms(context: NodeContext, got: Tensor) -> int:
    """The most terms that an element of a gradient can have: one for each element of the outputs."""
    elementwise = context.rule is not None and context.rule.structure == "elementwise"
    outs = max((g.numel() for g in context.execution.upstream if g is not None), default=1)
    return max(1, outs // max(got.numel(), 1) if elementwise else outs)


def _right_in_float64(
    context: NodeContext, experiment: Experiment | None, finding: ArgumentCheck, elements: list[int]
) -> bool:
    """Whether our rule, computed in float64, agrees with differences at these elements."""
    if experiment is None:
        return False
    assert context.op is not None
    outs = experiment.run(experiment.wide)
    op = Applied(experiment.wide, (*outs, *context.op.outs[len(outs) :]), context.op.name)
    upstream = tuple(None if g is None else widened(g) for g in context.execution.upstream)
    precise = replace(context, op=op, execution=context.execution.with_upstream(upstream))
    contribution = precise.contributions()[finding.edge.position]
    if contribution.gradient is None:
        return False
    judged = with_gradient(finding, real(contribution.gradient))
    compare_elements(Probe(experiment, finding.edge), judged, elements, FINEST, keep_terms=False)
    return not judged.off and not judged.unsettled


def _size_of_terms(context: NodeContext, finding: ArgumentCheck) -> Tensor:
    """The size of the summed terms: the VJP of the upstream gradient with random signs does not cancel."""
    generator = torch.Generator().manual_seed(0)
    size = torch.zeros_like(finding.got)
    for _ in range(3):
        upstream = tuple(
            None if g is None else g * (2.0 * torch.randint(2, g.shape, generator=generator).to(g) - 1)
            for g in context.execution.upstream
        )
        again = replace(context, execution=context.execution.with_upstream(upstream))
        gradient = again.contributions()[finding.edge.position].gradient
        if gradient is not None:
            size = torch.maximum(size, real(gradient).abs())
    return size + rms(size)
