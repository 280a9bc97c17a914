"""One argument of one node: autograd's recorded gradient against differences, and against our rule.

A first look is cheap. Only where it finds a difference beyond the tolerance are other step sizes tried, one-sided
differences taken (at a kink no step size helps), and autograd run again, to tell a wrong derivative from a kink, from
rounding, and from a gradient that a hook changed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from chainrule.derivation.backprop import Share, shares_of
from chainrule.execution.experiment import EPS, MARGIN, STEP, CannotRunError, Experiment, Probe, real, unravel, widened
from chainrule.graph.graph import Edge, Graph, Node, Passage
from chainrule.rules import Applied, Rule

SMALL, WIDE = 64, 4096  # elements of an argument, of the outputs: up to here every element is measured
DIRECTIONS = 2
FINEST = 1e-10  # what a central difference in float64 can tell, relative to the terms
FLOOR = torch.finfo(torch.float32).tiny  # what counts as nothing at all, so that what underflows raises no alarm


@dataclass(frozen=True, slots=True)
class Difference:
    """The largest absolute difference from autograd's gradient, where it is, and what rounding allows there.

    `index` is None where it was met along a random direction.
    """

    largest: float
    argument: str
    index: tuple[int, ...] | None
    tolerance: float

    def __float__(self) -> float:
        return self.largest

    @property
    def excess(self) -> float:
        """How many tolerances it amounts to; above 1 it is more than rounding."""
        return self.largest / self.tolerance if self.tolerance else self.largest


@dataclass(frozen=True, slots=True)
class AtKink:
    """Elements that lie where the derivative does not exist, and what PyTorch takes there."""

    argument: str
    indices: tuple[tuple[int, ...], ...]  # the first few
    count: int
    choice: str


@dataclass(frozen=True)
class Case:
    """One passage through one node, with what our rules know of it."""

    graph: Graph
    node: Node
    passage: Passage
    op: Applied | None
    rule: Rule | None

    @property
    def eps(self) -> float:
        """The rounding of the coarsest gradient."""
        gradients = [g for g in (*self.passage.upstream, *self.passage.downstream) if g is not None]
        return max((torch.finfo(g.dtype).eps for g in gradients), default=EPS)

    def shares(self) -> dict[int, Share]:
        """Our rule's gradients by the positions of the edges."""
        if self.rule is None or self.op is None:
            return {}
        shares = shares_of(self.graph, self.node, self.rule, self.op, self.passage.upstream, self.passage)
        return {edge.position: share for edge, share in zip(self.node.edges, shares, strict=True)}


@dataclass
class Finding:
    """What was found of one argument."""

    edge: Edge
    label: str
    got: Tensor  # autograd's, flat in float64 (as recorded, where a first look was enough); zeros where it gave nothing
    missing: bool
    ours: Tensor | None = None
    finite: Difference | None = None
    measured: dict[int, float] | None = None  # element -> u^T J
    terms: Tensor | None = None  # the size of the summed terms, where each element was measured
    off: list[int] | None = None  # elements where autograd and differences disagree
    kinks: AtKink | None = None
    rule: Difference | None = None
    rule_off: tuple[int, ...] = ()
    unsettled: str = ""
    rounding: bool = False


def label_of(edge: Edge) -> str:
    """What an edge's argument is called."""
    label = edge.argument or f"input {edge.position}"
    return label if edge.item is None else f"{label}[{edge.item}]"


def unmeasured(edge: Edge, case: Case) -> Finding | None:
    """What autograd gave for one argument, with nothing to hold against it yet."""
    graph, passage = case.graph, case.passage
    got = passage.downstream[edge.position] if edge.position < len(passage.downstream) else None
    if edge.value is None and got is None:
        return None
    label = label_of(edge)
    if got is None:
        value = graph.values[edge.value or 0]
        count = 2 if value.dtype.is_complex else 1
        return Finding(edge, label, torch.zeros(torch.Size(value.shape).numel() * count, dtype=torch.float64), True)
    return Finding(edge, label, real(got), False)


def measure(case: Case, experiment: Experiment, edge: Edge) -> Finding | None:
    """Measure one argument."""
    finding = unmeasured(edge, case)
    if finding is None:
        return None
    probe = Probe(experiment, edge)
    if finding.missing:
        finding.got = finding.got.to(probe.x.device)
    if finding.got.numel() != probe.x.numel():
        raise CannotRunError(f"the gradient of `{finding.label}` has another shape than the argument")
    eps = max(experiment.eps, FINEST, probe.grain ** (2 / 3) if probe.grain > EPS else 0)
    marks = _Marks(case, edge, probe)
    if probe.x.numel() <= SMALL and probe.u.numel() <= WIDE:
        left_out = marks.near(probe.step * 2**-10)
        _each_element(probe, finding, [i for i in range(probe.x.numel()) if not left_out[i]], eps, tell=True)
    else:
        _along_directions(probe, finding, marks.near(8 * probe.step), eps)
    at = marks.near(0.0).nonzero()[:, 0].tolist()
    if at and marks.kink is not None:
        finding.kinks = _at_kink(probe, finding, at, marks.kink.choice)
    return finding


class _Marks:
    """Which elements of an argument lie at or near a kink that our rule knows."""

    def __init__(self, case: Case, edge: Edge, probe: Probe) -> None:
        kink = case.rule.kink if case.rule is not None else None
        self.kink = kink if kink is not None and (kink.argument, None) == (edge.argument, edge.item) else None
        self.op, self.probe = case.op, probe

    def near(self, radius: float) -> Tensor:
        size = self.probe.x.numel()
        nowhere = torch.zeros(size, dtype=torch.bool, device=self.probe.x.device)
        if self.kink is None:
            return nowhere
        marks = self.kink.where(self.op, radius).reshape(-1)
        marks = marks.repeat_interleave(2) if self.probe.complex else marks
        return marks if marks.numel() == size else nowhere


# -- differences against autograd -------------------------------------------------------------------------------------


def _each_element(probe: Probe, finding: Finding, chosen: list[int], eps: float, tell: bool) -> None:
    """Hold autograd's gradient against differences at single elements; look closer where they do not agree."""
    finding.measured, finding.off, corners = {}, [], []
    got = finding.got[chosen]
    if chosen:
        found = probe.elements(chosen)
        tolerance = MARGIN * eps * found.terms + found.error + FLOOR
        if tell:
            finding.terms = torch.zeros_like(finding.got)
            finding.terms[chosen] = found.terms.nan_to_num(0.0, 0.0)
        slope = found.slope.clone()
        for i in (~((slope - got).abs() <= tolerance)).nonzero()[:, 0].tolist():
            verdict, slope[i], tolerance[i] = _closer(probe, chosen[i], float(got[i]), eps, FLOOR)
            if verdict == "wrong":
                finding.off.append(chosen[i])
            elif verdict == "kink":
                corners.append(chosen[i])
            elif verdict == "unsettled":
                finding.unsettled = (
                    f"the differences of `{finding.label}` do not settle at {list(probe.index(chosen[i]))}"
                    if slope[i].isfinite()
                    else f"the values around `{finding.label}`{list(probe.index(chosen[i]))} are not finite"
                )
        finding.measured = dict(zip(chosen, slope.tolist(), strict=True))
        compared = [i for i, element in enumerate(chosen) if element not in corners and slope[i].isfinite()]
        if compared:
            finding.finite = largest_difference(
                finding.label, got[compared], slope[compared], tolerance[compared], None, probe.complex,
                lambda i: probe.index(chosen[compared[i]]),
            )  # fmt: skip
    if corners:
        finding.kinks = _at_kink(probe, finding, corners, "")


def _closer(probe: Probe, element: int, got: float, eps: float, floor: float) -> tuple[str, float, float]:
    """Try other step sizes at one element, then one-sided ones: (verdict, u^T J, tolerance)."""
    best: tuple[float, float, float] | None = None  # error, slope, tolerance
    for step in _steps(probe, abs(float(probe.x[element]))):
        found = probe.refined(element, step)
        slope, terms, error = float(found.slope), float(found.terms), float(found.error)
        tolerance = MARGIN * eps * terms + 4 * error + floor
        if not (error < float("inf")):
            continue
        settled = error <= max(MARGIN * eps, 1e-4) * terms + floor
        if settled and abs(slope - got) <= tolerance:
            return "agrees", slope, tolerance
        if best is None or error < best[0]:
            best = error, slope, tolerance
    if best is None:
        return "unsettled", float("nan"), float("nan")
    error, slope, tolerance = best
    corner = _corner(probe, element, got, tolerance)
    if corner is not None:
        return corner, slope, tolerance
    return ("wrong" if abs(slope - got) > 10 * error + tolerance else "unsettled"), slope, tolerance


def _steps(probe: Probe, size: float) -> Iterator[float]:
    for factor in (1.0, 2.0**-5, 2.0**5):
        yield probe.step * factor
    if size and size != probe.scale:
        yield STEP * size
    yield from (STEP, probe.step * 2.0**-10, probe.step * 2.0**10)


def _corner(probe: Probe, line: int, got: float, tolerance: float) -> str | None:
    """Whether the one-sided differences stay apart as the step shrinks; at a corner autograd must lie between them."""
    gaps, middle = [], 0.0
    for step in (probe.step, probe.step / 16, probe.step / 256):
        right, left = probe.sides(line, step)
        gaps.append(float((right - left).abs().sum()))
        middle = float((right + left).sum()) / 2
    rounding = 16 * probe.grain * float((probe.u * probe.y).abs().nan_to_num(0.0, 0.0, 0.0).sum()) * 256 / probe.step
    if not gaps[-1] > max(0.5 * gaps[0], rounding):
        return None
    jump = gaps[-1] > 8 * gaps[0]
    return "kink" if jump or abs(got - middle) <= gaps[-1] / 2 * (1 + 1e-6) + tolerance else "wrong"


def _along_directions(probe: Probe, finding: Finding, left_out: Tensor, eps: float) -> None:
    """The dot-product test; where it fails, kinks are left out, and single elements are looked at."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(DIRECTIONS):
        v = torch.randn(probe.x.numel(), dtype=torch.float64, generator=generator).to(probe.x.device)
        v = torch.where(left_out | ~probe.x.isfinite(), 0.0, v)
        found = _dot_product(probe, finding, v, eps)
        if finding.finite is None or not found.excess <= finding.finite.excess:
            finding.finite = found
        if found.largest <= found.tolerance:
            continue
        corners = _corners_along(probe, v)
        if corners is not None:
            v = torch.where(corners, 0.0, v)
            kinks = (corners & ~left_out).nonzero()[:, 0].tolist()
            found = _dot_product(probe, finding, v, eps)
            _each_element(probe, finding, kinks[:8], eps, tell=False)  # is what autograd takes there one of the slopes?
            if finding.off:
                return
            finding.finite, finding.kinks = found, _at_kink(probe, finding, kinks, "")
            if found.largest <= found.tolerance:
                continue
        kinks_before, along = finding.kinks, finding.finite
        sample = _suspects(probe, finding, v, eps, generator)
        _each_element(probe, finding, sample, eps, tell=False)
        if finding.kinks is None:
            finding.kinks = kinks_before
            if not finding.off and not finding.unsettled:
                finding.finite, finding.off = along, []
                finding.unsettled = (
                    "the differences along random directions disagree, but those at single elements do not"
                )
        return


def _dot_product(probe: Probe, finding: Finding, v: Tensor, eps: float) -> Difference:
    accumulated = max(torch.finfo(torch.float32).eps if eps > FINEST else 0.0, EPS)
    terms, rounding = probe.direction(v)
    ours = finding.got * v
    spread = float(terms.norm() + ours.norm())
    tolerance = MARGIN * eps * spread + accumulated * float(terms.abs().sum()) + rounding + FLOOR
    difference = float((terms.sum() - ours.sum()).abs())
    if not difference <= tolerance:
        for factor in (2.0**-5, 2.0**5, 2.0**-9):
            found = probe.refined(v, probe.step * factor)
            closer, allowed = abs(float(found.slope) - float(ours.sum())), tolerance + 4 * float(found.error)
            if closer <= allowed and float(found.error) <= 0.01 * spread:
                return Difference(closer, finding.label, None, allowed)
    return Difference(difference, finding.label, None, tolerance)


def _corners_along(probe: Probe, v: Tensor) -> Tensor | None:
    """Elements at a corner, where every output element belongs to the input element at its place."""
    if probe.y.numel() != probe.x.numel():
        return None
    right, left = probe.sides(v, probe.step / 256)
    apart = (right - left).abs() > 1e-3 * (right.abs() + left.abs())
    return apart if apart.any() else None


def _suspects(probe: Probe, finding: Finding, v: Tensor, eps: float, generator: torch.Generator) -> list[int]:
    """Elements worth a closer look: one found by halving the direction, the largest gradients, and some at random."""
    alive = v.nonzero()[:, 0]
    while alive.numel() > 1:
        half = alive[: alive.numel() // 2]
        part = torch.zeros_like(v)
        part[half] = v[half]
        found = _dot_product(probe, finding, part, eps)
        alive = half if not found.largest <= found.tolerance else alive[alive.numel() // 2 :]
    usable = v != 0
    largest = torch.where(usable, finding.got.abs(), -1).topk(min(8, v.numel())).indices.tolist()
    random = torch.randint(v.numel(), (24,), generator=generator).tolist()
    chosen = {*alive.tolist(), *largest, *random}
    return sorted(element for element in chosen if usable[element])


def settle(experiment: Experiment, findings: list[Finding], graph: Graph) -> None:
    """Where autograd and differences disagree, run autograd again: that tells rounding, hooks, unwanted gradients."""
    doubtful = [finding for finding in findings if finding.off]
    if not doubtful:
        return
    if not experiment.repeats():
        for finding in doubtful:
            finding.off, finding.finite, finding.measured = [], None, {}
        raise CannotRunError("run again on the recorded inputs, it does not give the recorded outputs")
    edges = [finding.edge for finding in findings]
    wide, again = experiment.replayed(edges, wide=True), experiment.replayed(edges, wide=False)
    for finding, precise, repeated in zip(findings, wide, again, strict=True):
        if not finding.off or precise is None or repeated is None:
            continue
        if finding.missing:  # the function does give it: it was not wanted in that pass (`inputs=`, `autograd.grad`)
            finding.off, finding.finite, finding.measured = [], None, {}
            continue
        elements, measured = list(finding.off), finding.measured or {}
        if _mere_rounding(experiment, edges, finding, measured):
            finding.off, finding.rounding = [], True
            continue
        finer = _holding(finding, real(precise))
        _each_element(Probe(experiment, finding.edge), finer, elements, FINEST, tell=False)
        if (finer.off or finer.unsettled) and not _shrunk(finding, finer, measured):
            continue
        tolerance = 4 * MARGIN * experiment.eps * (finding.got.abs() + _rms(finding.got))
        same = not outside(finding.got, real(repeated), tolerance)
        if same and experiment.eps > FINEST:
            finding.off, finding.rounding = [], True
        elif not same and not experiment.custom and graph.nodes[finding.edge.node].leaf is not None:
            finding.off, finding.got = [], real(repeated)
            finding.unsettled = (
                f"the gradient of `{finding.label}` is not what this node gives when it is run again: a hook on the "
                "leaf, or a write to `.grad`, changed it"
            )
        finding.measured = measured


def _mere_rounding(experiment: Experiment, edges: list[Edge], finding: Finding, measured: dict[int, float]) -> bool:
    """Whether autograd's own gradient moves as far as it is off when its arguments move by a rounding.

    An operation may cancel large terms inside, as the normalisation of a single element does, which the size of its
    derivatives does not show. Only what is nothing beside the upstream gradient is put down to that, and nothing in a
    user's own backward.
    """
    off = finding.off or []
    apart = torch.tensor([abs(float(finding.got[i]) - measured.get(i, math.inf)) for i in off], dtype=torch.float64)
    largest = max((float(g.abs().max()) for g in experiment.upstream.values() if g.numel()), default=0.0)
    if experiment.custom or not bool((apart <= FINEST * largest).all()):
        return False
    generator, moved = torch.Generator().manual_seed(0), torch.zeros_like(apart)
    for _ in range(8):
        again = experiment.replayed(edges, wide=False, jitter=generator)[edges.index(finding.edge)]
        if again is not None:
            moved = torch.maximum(moved, (real(again) - finding.got)[off].abs().cpu())
    return bool((apart <= MARGIN * moved).all())


def _shrunk(coarse: Finding, fine: Finding, measured: dict[int, float]) -> bool:
    """Whether the difference all but vanishes in float64, as rounding does."""
    return all(
        i in measured and abs(float(fine.got[i]) - measured[i]) <= 1e-4 * abs(float(coarse.got[i]) - measured[i])
        for i in coarse.off or ()
    )


def _holding(finding: Finding, got: Tensor) -> Finding:
    """The same argument with another gradient to hold against the differences."""
    return Finding(finding.edge, finding.label, got, False)


# -- our rule against autograd ----------------------------------------------------------------------------------------


def hold_rule(case: Case, experiment: Experiment | None, finding: Finding, share: Share | None) -> None:
    """Hold our rule's gradient against autograd's, where that is not done yet."""
    if finding.rule is not None or share is None or share.gradient is None or share.recorded is None:
        return
    finding.ours = ours = real(share.gradient)
    got, eps = finding.got, case.eps
    size = torch.maximum(ours.abs(), got.abs()) + _rms(got) + (finding.terms if finding.terms is not None else 0.0)
    tolerance = MARGIN * eps * size + FLOOR
    off = outside(got, ours, tolerance)
    if off:
        tolerance = tolerance + MARGIN * eps * _size_of_terms(case, finding)
        if finding.rounding and finding.finite is not None:
            tolerance = tolerance + 4 * finding.finite.largest
        off = outside(got, ours, tolerance)
    if off and experiment is not None and not finding.off and _right_in_float64(case, experiment, finding, off[:8]):
        # One of the two is the coarser one here (a constant in float32, a sum that cancels), and neither is wrong.
        tolerance, off = torch.maximum(tolerance, (got - ours).abs()), []
    shape = tuple(share.gradient.shape)
    finding.rule = largest_difference(finding.label, got, ours, tolerance, shape, share.gradient.is_complex())
    finding.rule_off = tuple(off)


def _right_in_float64(case: Case, experiment: Experiment, finding: Finding, elements: list[int]) -> bool:
    """Whether our rule, computed in float64, agrees with differences at these elements."""
    assert case.op is not None
    outs = experiment.run(experiment.wide)
    op = Applied(experiment.wide, (*outs, *case.op.outs[len(outs) :]), case.op.name)
    upstream = tuple(None if g is None else widened(g) for g in case.passage.upstream)
    precise = replace(case, op=op, passage=replace(case.passage, upstream=upstream))
    share = precise.shares()[finding.edge.position]
    if share.gradient is None:
        return False
    judged = _holding(finding, real(share.gradient))
    _each_element(Probe(experiment, finding.edge), judged, elements, FINEST, tell=False)
    return not judged.off and not judged.unsettled


def _size_of_terms(case: Case, finding: Finding) -> Tensor:
    """How large the summed terms are: the VJP of the upstream gradient with random signs does not cancel."""
    generator = torch.Generator().manual_seed(0)
    size = torch.zeros_like(finding.got)
    for _ in range(3):
        upstream = tuple(
            None if g is None else g * (2.0 * torch.randint(2, g.shape, generator=generator).to(g) - 1)
            for g in case.passage.upstream
        )
        again = replace(case, passage=replace(case.passage, upstream=upstream))
        gradient = again.shares()[finding.edge.position].gradient
        if gradient is not None:
            size = torch.maximum(size, real(gradient).abs())
    return size + _rms(size)


def _at_kink(probe: Probe, finding: Finding, elements: list[int], choice: str) -> AtKink | None:
    places = list(dict.fromkeys(probe.index(element) for element in elements[:8]))
    if not places:
        return None
    if not choice:
        taken = f"{float(finding.got[elements[0]]):.4g}"
        choice = f"the one-sided derivatives differ here; PyTorch's gradient there is {taken}"
    return AtKink(finding.label, tuple(places), len(elements), choice)


def largest_difference(
    label: str,
    got: Tensor,
    other: Tensor,
    tolerance: Tensor,
    shape: tuple[int, ...] | None,
    paired: bool,
    index: Callable[[int], tuple[int, ...]] | None = None,
) -> Difference:
    """The difference furthest beyond the tolerance, or the largest where none is."""
    apart = (got - other).abs()
    if not apart.numel():
        return Difference(0.0, label, None, 0.0)
    place = int(torch.where(apart.isnan(), float("inf"), apart - tolerance).argmax())
    if apart[place] <= tolerance[place]:
        place = int(apart.argmax())
    where = unravel(place // 2 if paired else place, shape or ()) if index is None else index(place)
    return Difference(float(apart[place]), label, where, float(tolerance[place]))


def worst(differences: Iterable[Difference | None]) -> Difference | None:
    """The difference furthest beyond its tolerance."""
    found = [each for each in differences if each is not None]
    return max(found, key=lambda d: (d.excess, d.largest), default=None)


def outside(got: Tensor, other: Tensor, tolerance: Tensor) -> list[int]:
    """The elements that differ by more than the tolerance."""
    apart = ~(((got - other).abs() <= tolerance) | (got == other) | (got.isnan() & other.isnan()))
    found: list[int] = apart.nonzero()[:, 0].tolist()
    return found


def _rms(gradient: Tensor) -> float:
    return float(gradient.square().mean().sqrt()) if gradient.numel() else 0.0
