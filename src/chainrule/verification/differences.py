"""One argument of one node: autograd's recorded gradient against differences, and against our rule.

A first look is cheap. Only where it finds a difference beyond the tolerance are other step sizes tried, one-sided
differences taken (at a kink no step size helps), and autograd run again, to tell a wrong derivative from a kink, from
rounding, and from a gradient that a hook changed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from chainrule.derivation.backprop import Share, shares_of
from chainrule.execution.experiment import (
    FINEST,
    SMALL,
    STEP,
    WIDE,
    CannotRunError,
    Experiment,
    Probe,
    real,
    widened,
)
from chainrule.graph.comparison import EPS, FLOAT32, FLOOR, MARGIN, Comparison, compare, rms, tolerance, unravel
from chainrule.graph.graph import Edge, Graph, Node, Passage
from chainrule.rules import Applied, Rule

LARGE = 2**16  # elements: from here on a quick check comes first, and tensors are compared in their own type
DIRECTIONS = 2
EVENED = 1e-8  # of a typical element: smaller ones count no more in a direction to which all contribute alike
SETTLED = 1e-4  # error of the differences, relative to the terms, from which on another step size is tried


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
    finite: Comparison | None = None
    measured: dict[int, float] | None = None  # element -> u^T J
    terms: Tensor | None = None  # the size of the summed terms, where each element was measured
    off: list[int] | None = None  # elements where autograd and differences disagree
    kinks: AtKink | None = None
    rule: Comparison | None = None
    rule_off: tuple[int, ...] = ()
    unsettled: str = ""
    rounding: bool = False


def label_of(edge: Edge) -> str:
    """What an edge's argument is called."""
    label = edge.argument or f"input {edge.position}"
    return label if edge.item is None else f"{label}[{edge.item}]"


def unmeasured(edge: Edge, case: Case, ours: Tensor | None = None) -> Finding | None:
    """What autograd gave for one argument, with nothing measured; `ours` is compared at once where it is large."""
    graph, passage = case.graph, case.passage
    got = passage.downstream[edge.position] if edge.position < len(passage.downstream) else None
    if edge.value is None and got is None:
        return None
    label = label_of(edge)
    if got is None:
        value = graph.values[edge.value or 0]
        count = 2 if value.dtype.is_complex else 1
        return Finding(edge, label, torch.zeros(torch.Size(value.shape).numel() * count, dtype=torch.float64), True)
    if ours is not None and got.numel() > LARGE and (found := compare_large(got, ours, case.eps, label)) is not None:
        return Finding(edge, label, got, False, ours, rule=found)
    return Finding(edge, label, real(got), False)


def compare_large(got: Tensor, ours: Tensor, eps: float, label: str) -> Comparison | None:
    """Our rule's gradient compared with autograd's as they are; None where they differ, or are of other kinds."""
    if not is_plain(got) or not is_plain(ours) or ours.shape != got.shape or ours.dtype != got.dtype:
        return None
    found = compare(got, ours, eps=eps, argument=label)
    return found if found.agrees else None


def is_plain(tensor: object) -> bool:
    """Whether something is a dense tensor of real numbers."""
    return isinstance(tensor, Tensor) and tensor.layout == torch.strided and tensor.is_floating_point()


def at_known_kink(case: Case, finding: Finding | None) -> Finding | None:
    """The same with the elements that lie exactly at a kink that our rule knows."""
    kink = case.rule.kink if case.rule is not None else None
    if kink is None or finding is None or (kink.argument, None) != (finding.edge.argument, finding.edge.item):
        return finding
    marks = kink.where(case.op, 0.0)
    if marks.numel() == finding.got.numel() and (count := int(marks.count_nonzero())):
        first = marks.nonzero()[:8].tolist()
        finding.kinks = AtKink(finding.label, tuple(map(tuple, first)), count, kink.choice)
    return finding


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
        left_out = marks.near(8 * probe.step) | ~probe.x.isfinite()
        _along_directions(probe, finding, left_out, eps)
        if case.rule is None and not (finding.off or finding.unsettled):
            _small_elements(probe, finding, left_out, eps)
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
    """Compare autograd's gradient with differences at single elements; look closer where they do not agree."""
    finding.measured, finding.off, corners = {}, [], []
    got = finding.got[chosen]
    if chosen:
        found = probe.elements(chosen)
        if tell:
            finding.terms = torch.zeros_like(finding.got)
            finding.terms[chosen] = found.terms.nan_to_num(0.0, 0.0)
        slope, terms, error = found.slope.clone(), found.terms.clone(), found.error.clone()
        for i in compare(got, slope, terms, eps=eps, slack=error).off:
            verdict, slope[i], terms[i], error[i] = _closer(probe, chosen[i], float(got[i]), eps)
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
            sides = got[compared], slope[compared], terms[compared]
            largest = compare(*sides, eps=eps, slack=error[compared], argument=finding.label)
            place = largest.index[0] if largest.index else 0
            finding.finite = replace(largest, index=probe.index(chosen[compared[place]]), off=())
    if corners:
        finding.kinks = _at_kink(probe, finding, corners, "")


def _closer(probe: Probe, element: int, got: float, eps: float) -> tuple[str, float, float, float]:
    """Try other step sizes at one element, then one-sided ones: (verdict, u^T J, its terms, its error)."""
    best: tuple[float, float, float] | None = None  # error, slope, terms
    for step in _steps(probe, abs(float(probe.x[element]))):
        found = probe.refined(element, step)
        slope, terms, error = float(found.slope), float(found.terms), float(found.error)
        if not (error < float("inf")):
            continue
        settled = error <= max(MARGIN * eps, SETTLED) * terms + FLOOR
        if settled and compare(got, slope, terms, eps=eps, slack=4 * error).agrees:
            return "agrees", slope, terms, 4 * error
        if best is None or error < best[0]:
            best = error, slope, terms
    if best is None:
        return "unsettled", float("nan"), float("nan"), float("nan")
    error, slope, terms = best
    corner = _corner(probe, element, got, tolerance(0.0, terms, 1, eps) + 4 * error)
    if corner is not None:
        return corner, slope, terms, 4 * error
    apart = not compare(got, slope, terms, eps=eps, slack=14 * error).agrees
    return "wrong" if apart else "unsettled", slope, terms, 4 * error


def _steps(probe: Probe, size: float) -> Iterator[float]:
    for factor in (1.0, 2.0**-5, 2.0**5):
        yield probe.step * factor
    if size and size != probe.scale:
        yield STEP * size
    yield from (STEP, probe.step * 2.0**-10, probe.step * 2.0**10)


def _corner(probe: Probe, line: int, got: float, allowed: float) -> str | None:
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
    return "kink" if jump or abs(got - middle) <= gaps[-1] / 2 * (1 + 1e-6) + allowed else "wrong"


def _along_directions(probe: Probe, finding: Finding, left_out: Tensor, eps: float) -> None:
    """The dot-product test; where it fails, kinks are left out, and single elements are looked at."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(DIRECTIONS):
        v = torch.randn(probe.x.numel(), dtype=torch.float64, generator=generator).to(probe.x.device)
        v = torch.where(left_out, 0.0, v)
        found = _dot_product(probe, finding, v, eps)
        if finding.finite is None or not found.excess <= finding.finite.excess:
            finding.finite = found
        if found.agrees:
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
            if found.agrees:
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


def _small_elements(probe: Probe, finding: Finding, left_out: Tensor, eps: float) -> None:
    """The dot product along a direction to which small elements of the gradient contribute as much as large ones.

    Along the others an error of a small element, however wrong it is, is lost in the rounding of the large ones. What
    fails here may be a cancellation inside the operation, so only an element that is wrong by itself counts.
    """
    size, typical = finding.got.abs(), rms(finding.got)
    least = max(float(size[size > 0].min()), EVENED * typical) if typical else 0.0
    if not 0 < least < typical / 10:
        return
    generator = torch.Generator().manual_seed(1)
    v = torch.randn(probe.x.numel(), dtype=torch.float64, generator=generator).to(probe.x.device)
    v = torch.where(left_out, 0.0, v * (least / size.clamp(min=least)))
    if _dot_product(probe, finding, v, eps).agrees:
        return
    corners = _corners_along(probe, v)
    v = v if corners is None else torch.where(corners, 0.0, v)
    closer = _holding(finding, finding.got)
    _each_element(probe, closer, _suspects(probe, finding, v, eps, generator), eps, tell=False)
    if closer.off:
        finding.finite, finding.measured, finding.off = closer.finite, closer.measured, closer.off


def _dot_product(probe: Probe, finding: Finding, v: Tensor, eps: float) -> Comparison:
    """<u, J v> by differences, and <J^T u, v>. The roundings of the elements are independent: squares add up."""
    adding = max(FLOAT32 if eps > FINEST else 0.0, EPS)
    terms, rounding = probe.direction(v)
    ours = finding.got * v
    spread = float(terms.norm() + ours.norm())
    slack, total = adding * float(terms.abs().sum()) + rounding, float(ours.sum())
    found = compare(total, float(terms.sum()), spread, eps=eps, slack=slack, argument=finding.label)
    if not found.agrees:
        for factor in (2.0**-5, 2.0**5, 2.0**-9):
            fine = probe.refined(v, probe.step * factor)
            error = float(fine.error)
            again = compare(total, float(fine.slope), spread, eps=eps, slack=slack + 4 * error, argument=finding.label)
            if again.agrees and error <= 0.01 * spread and 4 * error < found.largest:
                found = again
                break
    return replace(found, index=None, off=())


def _corners_along(probe: Probe, v: Tensor) -> Tensor | None:
    """Elements at a corner, where every output element belongs to the input element at its place."""
    if probe.y.numel() != probe.x.numel():
        return None
    (right, left), (far_right, far_left) = probe.sides(v, probe.step / 256), probe.sides(v, probe.step / 16)
    gap = (right - left).abs()
    # Of a curve the gap shrinks with the step, to a sixteenth; of a corner it stays.
    apart = (gap > 1e-3 * (right.abs() + left.abs())) & (gap > (far_right - far_left).abs() / 12)
    return apart if apart.any() else None


def _suspects(probe: Probe, finding: Finding, v: Tensor, eps: float, generator: torch.Generator) -> list[int]:
    """Elements worth a closer look: one found by halving the direction, the largest gradients, and some at random."""
    alive = v.nonzero()[:, 0]
    while alive.numel() > 1:
        half = alive[: alive.numel() // 2]
        part = torch.zeros_like(v)
        part[half] = v[half]
        found = _dot_product(probe, finding, part, eps)
        alive = half if not found.agrees else alive[alive.numel() // 2 :]
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
        same = compare(finding.got, real(repeated), eps=4 * experiment.eps).agrees
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


def compare_rule(case: Case, experiment: Experiment | None, finding: Finding, share: Share | None) -> None:
    """Compare our rule's gradient with autograd's, where that is not done yet."""
    if finding.rule is not None or share is None or share.gradient is None or share.recorded is None:
        return
    finding.ours = ours = real(share.gradient)
    got, eps, size = finding.got, case.eps, torch.maximum(ours.abs(), finding.got.abs()) + rms(finding.got)
    terms = size if finding.terms is None else size + finding.terms
    found = compare(got, ours, terms, eps=eps, argument=finding.label)
    if not found.agrees:
        apart = finding.finite.largest if finding.rounding and finding.finite is not None else 0.0
        terms, count = terms + _size_of_terms(case, finding), _most_terms(case, got)
        found = compare(got, ours, terms, count=count, eps=eps, slack=4.0 * apart, argument=finding.label)
    off = found.off
    if off and experiment is not None and not finding.off and _right_in_float64(case, experiment, finding, [*off[:8]]):
        # One of the two is the coarser one here (a constant in float32, a sum that cancels), and neither is wrong.
        found, off = replace(found, tolerance=max(found.tolerance, found.largest)), ()
    pairs = 2 if share.gradient.is_complex() else 1
    shape = tuple(share.gradient.shape)
    index = unravel(found.index[0] // pairs, shape) if found.index else None
    finding.rule, finding.rule_off = replace(found, index=index, off=()), off


def _most_terms(case: Case, got: Tensor) -> int:
    """How many terms an element of a gradient can have: of every element of the outputs one, if all depend on it."""
    elementwise = case.rule is not None and case.rule.structure == "elementwise"
    outs = max((g.numel() for g in case.passage.upstream if g is not None), default=1)
    return max(1, outs // max(got.numel(), 1) if elementwise else outs)


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
    return size + rms(size)


def _at_kink(probe: Probe, finding: Finding, elements: list[int], choice: str) -> AtKink | None:
    places = list(dict.fromkeys(probe.index(element) for element in elements[:8]))
    if not places:
        return None
    if not choice:
        taken = f"{float(finding.got[elements[0]]):.4g}"
        choice = f"the one-sided derivatives differ here; PyTorch's gradient there is {taken}"
    return AtKink(finding.label, tuple(places), len(elements), choice)
