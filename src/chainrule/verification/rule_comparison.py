"""One argument of one node: our rule's gradient compared with autograd's recorded one, in full or quickly.

A large operation (its argument or outputs above LARGE elements) would cost many whole-tensor passes in float64. The
quick check compares our rule's gradient with autograd's at every element, in their own number type. It compares
autograd's with the operation itself along one random direction v, of which only a few thousand elements differ from 0
where the argument has more than DENSE. Where the operation is linear in the argument, J v is the operation on v, run in
the recorded number type with the terms that do not hold the argument set to zero; elsewhere it is a central difference
in float64. The tolerances are those of the full check. Only agreement counts: what does not agree here goes through the
full check.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from chainrule.derivation.backprop import Contribution
from chainrule.execution.central_differences import Probe
from chainrule.execution.experiment import FINEST, STEP, Experiment, pick, put, real
from chainrule.graph.comparison import EPS, FLOAT32, MARGIN, Comparison, compare, rms, unravel
from chainrule.graph.graph import Edge
from chainrule.graph.snapshot import tensor_of
from chainrule.rules.facts import facts_of
from chainrule.verification.differences import (
    ArgumentCheck,
    NodeContext,
    compare_elements,
    label_of,
    with_gradient,
)
from chainrule.verification.rounding import rule_in_float64, spread_of_rule

LARGE = 2**16  # elements: from here on tensors are compared in their own number type
DENSE = 2**20  # elements: above, directions are sparse
DRAWN, KEPT = 2**18, 2**12  # elements of a sparse direction: drawn, and kept of those

Arguments = dict[str, Any]


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
    finding.breach = _breach(context, finding, off)
    if off and not (finding.off or finding.breach) and experiment is not None:
        # One of the two may round more (a constant in float32, a sum that cancels), and neither be wrong.
        precise = _right_in_float64(context, experiment, finding, [*off[:8]])
        if precise is not None:
            moved = MARGIN * spread_of_rule(context, experiment, finding.edge)
            sides = [
                compare(side, precise, terms, count=count, eps=eps, slack=moved, argument=finding.label)
                for side in (ours, got)
            ]
            if all(side.agrees for side in sides):
                found, off = replace(found, tolerance=max(found.largest, *(side.tolerance for side in sides))), ()
    pairs = 2 if contribution.gradient.is_complex() else 1
    shape = tuple(contribution.gradient.shape)
    index = unravel(found.index[0] // pairs, shape) if found.index else None
    finding.rule, finding.rule_off = replace(found, index=index, off=()), off


def _breach(context: NodeContext, finding: ArgumentCheck, off: tuple[int, ...]) -> str:
    """The convention at an element where our rule and autograd differ: no difference can be taken there."""
    for each in context.conventions(finding.edge) if off else ():
        marks = context.marks([each], 0.0, finding.got.numel())
        if marks is not None and bool(marks[[*off]].any()):
            return each.choice
    return ""


def _most_terms(context: NodeContext, got: Tensor) -> int:
    """The most terms that an element of a gradient can have: one for each element of the outputs."""
    elementwise = context.rule is not None and context.rule.structure == "elementwise"
    outs = max((g.numel() for g in context.execution.upstream if g is not None), default=1)
    return max(1, outs // max(got.numel(), 1) if elementwise else outs)


def _right_in_float64(
    context: NodeContext, experiment: Experiment, finding: ArgumentCheck, elements: list[int]
) -> Tensor | None:
    """What our rule gives in float64, unless differences at these elements say that it is wrong."""
    try:
        precise = rule_in_float64(context, experiment, finding.edge)
    except Exception:  # a rule that does not run in float64
        return None
    if precise is None or finding.finite is None or finding.unsettled:
        return precise
    judged = with_gradient(finding, precise)
    try:
        compare_elements(Probe(experiment, finding.edge), judged, elements, FINEST, keep_terms=False)
    except Exception:  # an operation without a kernel for float64, or a user's, may raise anything
        return precise
    return None if judged.off or judged.unsettled else precise


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


# -- the quick check ------------------------------------------------------------------------------------------------


def quick_check(context: NodeContext, experiment: Experiment, edge: Edge, ours: Tensor | None) -> ArgumentCheck | None:
    """What is found of one argument; None where the full check decides, also where we have no rule."""
    got = tensor_of(context.execution.along(edge))
    if got is None or ours is None or not is_plain(got) or not context.trusts_rule:
        return None
    recorded, upstream = pick(experiment.recorded, edge), experiment.upstream
    size = max(got.numel(), *(g.numel() for g in upstream.values())) if upstream else 0
    if (
        size <= LARGE
        or not is_plain(recorded)
        or recorded.shape != got.shape
        or not all(map(is_plain, upstream.values()))
    ):
        return None
    near = context.marks(context.conventions(edge), 8 * STEP * (rms(recorded) or 1.0), got.numel())
    label = label_of(edge)
    beside = compare_large(got, ours, context.eps, label)
    finite = _along(experiment, edge, got, label, near) if beside is not None else None
    if finite is None or not finite.agrees:
        return None
    finding = ArgumentCheck(edge, label, got, False, ours, finite, rule=beside)
    finding.conventions = context.applied(finding)
    return finding


def slabs(first: Tensor, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Tensors of one shape in pieces that stay in the processor's cache."""
    if first.numel() <= DENSE:
        return iter([(first, *others)])
    axis = max(range(first.dim()), key=first.stride)
    thickness = max(1, DENSE // 4 * first.shape[axis] // first.numel())
    return zip(*(each.split(thickness, axis) for each in (first, *others)), strict=True)


def _along(experiment: Experiment, edge: Edge, got: Tensor, label: str, left_out: Tensor | None) -> Comparison | None:
    """The dot-product test, <u, J v> = <J^T u, v>, along one direction in which no element `left_out` moves."""
    v, places = _direction(got)
    if left_out is not None:
        v = v.masked_fill(left_out.view(v.shape), 0)
    eps = max(experiment.eps, FINEST)
    found = _linear(experiment, edge, v) or _central(experiment, edge, v)
    if found is None:
        return None
    change, rounding = found
    if places is None:
        ours = got.double() * v
    else:
        ours = got.reshape(-1)[places].double() * v.view(-1)[places] if got.is_contiguous() else _picked(got, v, places)
    slope = square = size = 0.0
    for place, moved in change.items():
        u = experiment.upstream[place]
        if moved.shape != u.shape:
            return None
        for part, other in slabs(u, moved):
            terms = part * other
            slope += float(terms.sum(dtype=torch.float64))
            square += float(torch.linalg.vector_norm(terms)) ** 2
            size += float(torch.linalg.vector_norm(terms, 1))
    spread = square**0.5 + float(ours.norm())
    slack = max(FLOAT32 if eps > FINEST else 0.0, EPS) * size + rounding
    compared = compare(float(ours.sum()), slope, spread, eps=eps, slack=slack, argument=label)
    return replace(compared, index=None, off=())


def _picked(got: Tensor, v: Tensor, places: Tensor) -> Tensor:
    index = torch.unravel_index(places, got.shape)
    return got[index].double() * v.view(-1)[places]


def _direction(got: Tensor) -> tuple[Tensor, Tensor | None]:
    """A random direction of the shape of `got`, and which elements differ from 0 (None: any may).

    Of the elements drawn for a sparse one, half of those kept are where the gradient is largest: most of an
    embedding's gradient is 0.
    """
    if got.numel() <= DENSE:
        return _normal(got.numel(), got.device).view(got.shape), None
    drawn = _draw(got.numel(), got.device)
    there = got[torch.unravel_index(drawn, got.shape)]
    kept = torch.cat([there.abs().topk(KEPT // 2).indices, torch.arange(KEPT // 2, device=got.device)]).unique()
    places = drawn[kept].unique()
    v = torch.zeros(got.shape, dtype=torch.float64 if got.dtype == torch.float64 else torch.float32, device=got.device)
    v.view(-1)[places] = _normal(KEPT, got.device)[: len(places)].to(v.dtype)
    return v, places


def _normal(count: int, device: torch.device) -> Tensor:
    return _normals(device)[:count]


@lru_cache(maxsize=2)
def _normals(device: torch.device) -> Tensor:
    # Rounded to float32, so that a run in float32 moves along the same direction.
    generator = torch.Generator().manual_seed(0)
    return torch.randn(DENSE, dtype=torch.float32, generator=generator).double().to(device)


@lru_cache(maxsize=4)
def _draw(count: int, device: torch.device) -> Tensor:
    return torch.randint(count, (DRAWN,), generator=torch.Generator().manual_seed(0)).to(device)


def _central(experiment: Experiment, edge: Edge, v: Tensor) -> tuple[dict[int, Tensor], float] | None:
    """J v by a central difference in float64, and how far rounding may move <u, J v>."""
    experiment.afford(pick(experiment.recorded, edge), 4, 5)
    x = pick(experiment.wide, edge)
    step = STEP * (rms(x) or 1.0)
    if not step < float("inf"):  # something in it is not finite
        return None
    up, down = (_run(experiment, {**experiment.wide}, edge, torch.add(x, v, alpha=h)) for h in (step, -step))
    if up.keys() != experiment.upstream.keys():
        return None
    heights = [float(torch.linalg.vector_norm(experiment.upstream[p] * y)) for p, y in up.items()]
    rounding = MARGIN * EPS * sum(height**2 for height in heights) ** 0.5 / step
    return {place: (up[place] - down[place]).div_(2 * step) for place in up}, rounding


def _linear(experiment: Experiment, edge: Edge, v: Tensor) -> tuple[dict[int, Tensor], float] | None:
    """J v as the operation on v itself, where it is linear in the argument."""
    recorded = pick(experiment.recorded, edge)
    without = facts_of(experiment.name).linear.get(edge.argument or "")
    if without is None or experiment.writes or recorded.dtype not in (torch.float32, torch.float64):
        return None
    experiment.afford(recorded, 3, 3, wide=False)
    change = _run(experiment, without({**experiment.recorded}), edge, v.to(recorded.dtype))
    return (change, 0.0) if change.keys() == experiment.upstream.keys() else None


def _run(experiment: Experiment, arguments: Arguments, edge: Edge, x: Tensor) -> dict[int, Tensor]:
    put(arguments, edge, x)
    outs = experiment.run(arguments)
    return {place: outs[place] for place in experiment.upstream if place < len(outs)}


def is_finite(gradient: Tensor | None) -> bool:
    """Whether nothing in it is NaN or infinite: one pass where its sum can tell."""
    if gradient is None or gradient.layout != torch.strided:
        return True
    if gradient.numel() > LARGE and bool(gradient.sum().isfinite()):
        return True  # a finite sum has finite terms, and takes no memory of its own
    return bool(gradient.isfinite().all())
