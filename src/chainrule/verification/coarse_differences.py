"""Differences of what runs in its recorded number type alone: a kernel for float32.

Rounding then hides small changes, and a curve or a corner spoils large steps. So each line is measured with a series of
steps, each pair of which gives Richardson's extrapolation and a bound of its rounding. A gradient agrees if one
estimate that rounding leaves useful says so; the steps begin in the middle, and end where one whose rounding does not
count says so. A gradient is wrong only if two neighbours say the same, and something else, and the slopes on both sides
are alike, as they are not over a corner.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import pairwise

import torch
from torch import Tensor

from chainrule.execution.central_differences import Probe, weigh
from chainrule.execution.experiment import CannotRunError, Experiment, pick
from chainrule.graph.comparison import Comparison, compare, rms
from chainrule.graph.graph import Edge
from chainrule.verification.differences import DIRECTIONS_ALONE, ArgumentCheck, NodeContext, left_out

STEPS = [4.0**-k for k in range(-4, 8)]  # relative to the size of the argument
PRECISION = 2e-4  # relative to the terms
USEFUL = 0.02  # rounding relative to the terms, or to those of a typical element, above which an estimate is none
ALL, SOME, DIRECTIONS = 64, 6, 3  # elements up to which each is measured; or else how many, and along which lines

# Neighbouring steps by the place of the larger one: first the pair that begins at the size of the argument.
MIDDLE_FIRST = sorted(range(len(STEPS) - 1), key=lambda place: abs(place - STEPS.index(1)))


@dataclass(frozen=True)
class _Estimate:
    slope: float
    terms: float
    rounding: float
    bend: float = 0.0  # how far the slopes on both sides are apart

    def __sub__(self, other: _Estimate) -> float:
        return abs(self.slope - other.slope)


def measure_coarsely(context: NodeContext, experiment: Experiment, edge: Edge, finding: ArgumentCheck) -> ArgumentCheck:
    """What differences say of one argument of an experiment that is `narrow`."""
    line = _Line(Probe(experiment, edge), pick(experiment.recorded, edge).dtype)
    probe, got = line.probe, finding.got
    if got.numel() != probe.x.numel():
        raise CannotRunError(f"the gradient of `{finding.label}` has another shape than the argument")
    generator = torch.Generator().manual_seed(0)
    size, finding.off, finding.measured = got.numel(), [], {}
    usable = ~left_out(context, probe, STEPS[0] * probe.scale if size > ALL else 0.0)
    chosen = set(range(size))
    if size > ALL:
        some = torch.randint(size, (SOME,), generator=generator).tolist()
        chosen = {*some, *got.abs().topk(SOME // 3).indices.tolist()}
        for _ in range(DIRECTIONS):
            v = torch.randn(size, dtype=torch.float64, generator=generator) * usable
            verdict, _ = line.judge(v, got)
            if verdict != "agrees":
                chosen.add(_halved(line, v, got))
                finding.unsettled = DIRECTIONS_ALONE
    for element in sorted(each for each in chosen if usable[each]):
        v = torch.zeros_like(probe.x)
        v[element] = 1
        verdict, best = line.judge(v, got)
        if best is not None:
            finding.measured[element] = best.slope
            found = compare(float(got[element]), best.slope, best.terms, eps=PRECISION, slack=4 * best.rounding)
            finding.finite = _larger(finding.finite, replace(found, argument=finding.label, index=probe.index(element)))
        if verdict == "wrong":
            finding.off.append(element)
        elif verdict == "unsettled" and not finding.unsettled:
            finding.unsettled = f"the differences of `{finding.label}` do not settle at {list(probe.index(element))}"
    if finding.off:
        finding.unsettled = ""
    finding.conventions = context.applied(finding)
    return finding


def _larger(one: Comparison | None, other: Comparison) -> Comparison:
    return other if one is None or not other.excess <= one.excess else one


def _halved(line: _Line, v: Tensor, got: Tensor) -> int:
    """The element to which a direction that does not agree leads when it is halved again and again."""
    alive = v.nonzero()[:, 0]
    while alive.numel() > 1:
        half = alive[: alive.numel() // 2]
        part = torch.zeros_like(v)
        part[half] = v[half]
        alive = half if line.judge(part, got)[0] != "agrees" else alive[alive.numel() // 2 :]
    return int(alive[0])


class _Line:
    """The lines through the recorded point, along which <u, y> is measured."""

    def __init__(self, probe: Probe, dtype: torch.dtype) -> None:
        self.probe, self.dtype = probe, dtype
        self.grain = torch.finfo(dtype).eps
        weighed = weigh(probe.u, probe.y)
        self.height = float(weighed.nan_to_num(0.0, 0.0, 0.0).norm())  # rounding hides what changes less

    def judge(self, v: Tensor, got: Tensor) -> tuple[str, _Estimate | None]:
        """What is found of <got, v>: agrees, wrong or unsettled; with the best estimate of it."""
        ours = _Estimate(float((got * v).sum()), float((got * v).norm()), 0.0)
        typical = rms(got) * float(v.norm())
        slope_of, useful = cache(partial(self._slope, v.to(self.probe.x.device))), dict[int, _Estimate]()
        for pair in MIDDLE_FIRST:
            each = _extrapolated(slope_of(STEPS[pair]), slope_of(STEPS[pair + 1]))
            if not math.isfinite(each.slope) or each.rounding > USEFUL * max(each.terms, ours.terms, typical):
                continue
            if 4 * each.rounding <= PRECISION * each.terms and each - ours <= self._allowed(each, ours):
                return "agrees", each
            useful[pair] = each
        if not useful:
            return "unsettled", None
        best = min(useful.values(), key=lambda each: each - ours)
        if best - ours <= self._allowed(best, ours):
            return "agrees", best
        for one, other in pairwise(useful[pair] for pair in sorted(useful)):
            apart = min(one - ours, other - ours)
            allowed = self._allowed(one, other)
            if one - other <= allowed and apart > max(5 * allowed, 2 * one.bend, 2 * other.bend):
                return "wrong", other
        return "unsettled", best

    def _allowed(self, one: _Estimate, other: _Estimate) -> float:
        return PRECISION * (one.terms + other.terms) + 4 * (one.rounding + other.rounding)

    def _slope(self, v: Tensor, share: float) -> tuple[Tensor, float, float]:
        """The terms of <u, J v> by one step, their rounding, and how far the slopes on both sides are apart."""
        probe, step = self.probe, share * self.probe.scale
        above, below = ((probe.x + sign * step * v).to(self.dtype).double() for sign in (1, -1))
        up, down = probe.f(above) - probe.y, probe.y - probe.f(below)
        terms = weigh(probe.u, up + down)
        moved = float(((above - below) * v).sum() / (v * v).sum())  # the step, as the number type has it
        place = float((terms / step).norm()) * float((probe.x * (v != 0)).abs().max())  # of the argument
        bend = float(weigh(probe.u, up - down).sum().abs()) / step
        return terms / moved, self.grain * (self.height + place) / step, bend


def _extrapolated(coarse: tuple[Tensor, float, float], fine: tuple[Tensor, float, float]) -> _Estimate:
    """Richardson's extrapolation of two steps, the second a quarter of the first."""
    best = (16 * fine[0] - coarse[0]) / 15
    return _Estimate(float(best.sum()), float(best.norm()), *fine[1:])
