"""Whether rounding explains what differs, and what it must not hide.

A gradient that is off in the recorded type may be right but for its rounding: it subtracts large numbers, as the
variance of numbers near 10,000 does. It is excused where autograd, run again in float64, gives the derivative, and
where the difference stays within MARGIN times the spread that random rounding shows (`execution.random_rounding`).
That bound is measured on the right computation, so a float32 path that is wrong does not raise it.

Conversely a coarse type hides small errors. A user's backward therefore also runs in float64, where it must agree with
the differences up to the rounding of float32 (its constants may be float32).
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import replace

import torch
from torch import Tensor

from chainrule.execution.central_differences import Probe
from chainrule.execution.experiment import FINEST, SMALL, CannotRunError, Experiment, real, widened
from chainrule.execution.random_rounding import RandomRounding, spread
from chainrule.graph.comparison import FLOAT32, MARGIN, Comparison, compare
from chainrule.graph.graph import Edge
from chainrule.rules import Applied
from chainrule.verification.differences import (
    STRAY,
    ArgumentCheck,
    NodeContext,
    compare_elements,
    measure,
    with_gradient,
)

CHANGED = (
    "run again on the recorded inputs, it does not give the recorded outputs: it cannot be repeated, or a write that "
    "PyTorch does not see (by NumPy, say) changed one of them"
)


class Replays:
    """Autograd run again on the recorded inputs: in float64, as recorded, and with random roundings."""

    def __init__(self, experiment: Experiment, findings: list[ArgumentCheck]) -> None:
        self._experiment = experiment
        self._edges = [finding.edge for finding in findings]
        self.wide, self.again = (self._run(None, wide) for wide in (True, False))

    def _run(self, rounding: RandomRounding | None, wide: bool) -> dict[int, Tensor]:
        grads = self._experiment.replayed(self._edges, wide, rounding)
        return {e.position: real(g) for e, g in zip(self._edges, grads, strict=True) if g is not None}

    def spread(self, edge: Edge, dtype: torch.dtype) -> Tensor:
        """How far the rounding of a type moves the gradient of an argument, element by element."""
        place = edge.position
        coarse = self.again[place] if dtype == self._experiment.coarsest else None
        return spread(lambda rounding, wide: self._run(rounding, wide).get(place), dtype, self.wide[place], coarse)


def settle(context: NodeContext, experiment: Experiment, findings: list[ArgumentCheck]) -> None:
    """Run autograd again where it disagrees with differences: this finds rounding, hooks and unwanted gradients."""
    doubtful = [finding for finding in findings if finding.off]
    if not doubtful:
        return
    if not experiment.repeats():
        for finding in doubtful:
            finding.off, finding.finite, finding.measured = [], None, {}
            finding.unsettled, finding.changed = CHANGED, not experiment.custom
        return
    replays = Replays(experiment, findings)
    for finding in doubtful:
        place = finding.edge.position
        if place not in replays.wide or place not in replays.again:
            continue
        if finding.missing:  # the function does give it: it was not wanted in that pass (`inputs=`, `autograd.grad`)
            finding.off, finding.finite, finding.measured = [], None, {}
            continue
        _settle(context, experiment, finding, replays)


def _settle(context: NodeContext, experiment: Experiment, finding: ArgumentCheck, replays: Replays) -> None:
    elements, measured = list(finding.off or ()), finding.measured or {}
    wide, again = replays.wide[finding.edge.position], replays.again[finding.edge.position]
    negligible = _is_negligible(experiment, finding, elements, measured)
    if not negligible and _is_wrong_in_float64(context, experiment, finding, wide):
        finding.rounding = _is_a_constants(experiment, finding, elements, measured)
        finding.off = [] if finding.rounding else finding.off
        return
    moved = replays.spread(finding.edge, experiment.coarsest)
    if context.trusts_rule:  # kernels hide their steps, our rule shows them
        moved = torch.maximum(moved, torch.as_tensor(spread_of_rule(context, experiment, finding.edge)).to(moved))
    # Upstream gradients that lie otherwise in memory are summed in another order.
    same = compare(finding.got, again, eps=4 * experiment.eps, slack=moved).agrees
    if not (same or negligible):
        if not experiment.custom and context.graph.nodes[finding.edge.node].leaf is not None:
            finding.off, finding.got, finding.changed = [], again, True
            finding.unsettled = (
                f"the gradient of `{finding.label}` is not what this node gives when it is run again: a hook, or "
                "a write that PyTorch does not see (by NumPy, say), changed it or what the node reads"
            )
        finding.measured = measured
        return
    found = _within(finding.got[elements], wide[elements], moved[elements])
    if not found.agrees and not experiment.custom and _differs_in_float64(experiment):
        finding.off, finding.finite = [], None
        finding.unsettled = "in float64, where differences are taken, the operation gives other outputs"
    elif found.agrees:
        finding.off, finding.rounding = [], True
        if finding.finite is not None:
            finding.finite = replace(finding.finite, tolerance=max(finding.finite.largest, found.tolerance))
    finding.measured = measured


def _is_wrong_in_float64(context: NodeContext, experiment: Experiment, finding: ArgumentCheck, wide: Tensor) -> bool:
    """Whether autograd's gradient in float64 is not the derivative either, at the elements that are off."""
    elements, measured = list(finding.off or ()), finding.measured or {}
    finer = with_gradient(finding, wide)
    probe = Probe(experiment, finding.edge)
    probe.moved_alone = finding.moved_alone
    compare_elements(probe, finer, elements, FINEST, keep_terms=False)
    found = finer.measured or {}
    if not finer.off and all(math.isfinite(found.get(i, math.nan)) for i in elements):
        return False  # where differences do not settle, they are near, and the bound below decides
    if context.trusts_rule and not finer.unsettled and _is_negligible(experiment, finer, finer.off or [], found):
        return False
    return not _shrunk(finding, finer, measured)


def rule_in_float64(
    context: NodeContext, experiment: Experiment, edge: Edge, rounding: RandomRounding | None = None
) -> Tensor | None:
    """What our rule gives in float64, flat; with a `rounding`, on moved operands and with all its steps rounded."""
    assert context.op is not None
    upstream = widened(context.execution.upstream)
    try:
        outs = experiment.run(experiment.wide)
    except Exception:  # it has no kernel for float64
        outs = [*widened(context.op.outs)]
    op = Applied(experiment.wide, (*outs, *context.op.outs[len(outs) :]), context.op.name)
    if rounding is not None:
        op = Applied(rounding.moved(op.arguments), rounding.moved(op.outs), op.name)
        upstream = rounding.moved(upstream)
    precise = replace(context, op=op, execution=context.execution.with_upstream(upstream))
    with rounding if rounding is not None else nullcontext():
        gradient = precise.contributions()[edge.position].gradient
    return None if gradient is None else real(gradient)


def spread_of_rule(context: NodeContext, experiment: Experiment, edge: Edge) -> Tensor | float:
    """How far the rounding of the recorded type moves what our rule gives; 0 where it gives nothing."""
    still = rule_in_float64(context, experiment, edge)
    if still is None:
        return 0.0
    return spread(
        lambda rounding, _: rule_in_float64(context, experiment, edge, rounding), experiment.coarsest, still, None
    )


def _within(got: Tensor, expected: Tensor, moved: Tensor) -> Comparison:
    """Compare with what random rounding allows."""
    return compare(got, expected, expected.abs(), eps=FINEST, slack=MARGIN * moved)


def _is_negligible(
    experiment: Experiment, finding: ArgumentCheck, elements: list[int], measured: dict[int, float]
) -> bool:
    """Whether autograd is off by less than differences can resolve beside the upstream gradient.

    Log-softmax of a confident prediction computes log(1 + 1e-18) = 0: the outputs do not move, and their size does not
    show what rounded them off. This excuses no function of the user's.
    """
    largest = max((float(g.abs().max()) for g in experiment.upstream.values() if g.numel()), default=0.0)
    return not experiment.custom and all(
        abs(float(finding.got[i]) - measured.get(i, float("inf"))) <= FINEST * largest for i in elements
    )


def _is_a_constants(
    experiment: Experiment, finding: ArgumentCheck, elements: list[int], measured: dict[int, float]
) -> bool:
    """Whether PyTorch's own kernel is off by a rounding of float32: some have constants in it (1/6 in hardsigmoid)."""
    return not experiment.custom and all(
        abs(float(finding.got[i]) - measured.get(i, 0.0)) <= FLOAT32 / 2 * abs(measured.get(i, 0.0)) for i in elements
    )


def _differs_in_float64(experiment: Experiment) -> bool:
    """Whether the outputs are not the recorded ones at all, as eigenvectors in another order."""
    wide = experiment.run(experiment.wide)
    return any(
        out is not None and not compare(wide[experiment.place[slot]], out, eps=1e-3).agrees
        for slot, out in experiment.outs.items()
    )


def _shrunk(coarse: ArgumentCheck, fine: ArgumentCheck, measured: dict[int, float]) -> bool:
    """Whether the difference all but vanishes in float64, as rounding does."""
    return all(
        i in measured and abs(float(fine.got[i]) - measured[i]) <= 1e-4 * abs(float(coarse.got[i]) - measured[i])
        for i in coarse.off or ()
    )


def check_in_float64(context: NodeContext, experiment: Experiment, findings: list[ArgumentCheck]) -> None:
    """Compare what a user's backward gives in float64 with the differences, and what it gave with that."""
    if not experiment.custom or experiment.eps <= FINEST or not findings:
        return
    try:
        replays = Replays(experiment, findings)
    except CannotRunError:
        raise
    except Exception:  # it runs in coarser types alone
        return
    for finding in findings:
        known = finding.edge.position in replays.wide and finding.edge.position in replays.again
        if known and not (finding.off or finding.unsettled or finding.missing):
            _check_in_float64(context, experiment, finding, replays)


def _check_in_float64(context: NodeContext, experiment: Experiment, finding: ArgumentCheck, replays: Replays) -> None:
    wide = replays.wide[finding.edge.position]
    fine = measure(context, experiment, finding.edge, with_gradient(finding, wide), FLOAT32)
    if fine.off:
        off, measured = fine.off, fine.measured or {}
        slopes = torch.tensor([measured.get(i, float("nan")) for i in off], dtype=wide.dtype, device=wide.device)
        moved = replays.spread(finding.edge, torch.float32)[off]
        # A float64 path that no other type takes says nothing about what was recorded.
        allowed = MARGIN * replays.spread(finding.edge, experiment.coarsest)[off]
        alike = compare(finding.got[off], wide[off], wide[off].abs(), eps=experiment.eps, slack=allowed).agrees
        if alike and not _within(wide[off], slopes, moved).agrees:
            finding.off, finding.finite, finding.measured, finding.in_float64 = off, fine.finite, measured, True
            finding.moved_alone = fine.moved_alone
        return
    if finding.got.numel() <= SMALL:
        return
    apart = compare(finding.got, wide, eps=experiment.eps).off
    if apart:
        off = [*apart[:STRAY]]
        moved = replays.spread(finding.edge, experiment.coarsest)[off]
        strays = _within(finding.got[off], wide[off], moved).off
        closer = with_gradient(finding, finding.got)
        compare_elements(
            Probe(experiment, finding.edge), closer, [off[i] for i in strays], experiment.eps, keep_terms=False
        )
        if closer.off:
            finding.off, finding.finite, finding.measured = closer.off, closer.finite, closer.measured
