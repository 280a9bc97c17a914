"""One argument of one node: autograd's recorded gradient compared with differences.

The first measurement is cheap. Only where it disagrees, other step sizes are tried, one-sided differences are taken
(at a kink no step size helps), and autograd runs again, which separates a wrong derivative from a kink, from rounding,
and from a gradient that a hook changed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from chainrule.derivation.backprop import Contribution, contributions_of
from chainrule.execution.experiment import FINEST, SMALL, STEP, WIDE, CannotRunError, Experiment, Probe, real
from chainrule.graph.comparison import EPS, FLOAT32, FLOOR, MARGIN, Comparison, compare, rms, tolerance
from chainrule.graph.graph import Edge, Graph, Node, NodeExecution
from chainrule.rules import Applied, Convention, Rule

DIRECTIONS = 2
ONE_SIDED = "the one-sided derivatives differ here"
EVENED = 1e-8  # of a typical element: smaller ones count no more in a direction to which all contribute alike
SETTLED = 1e-4  # error of the differences, relative to the terms, from which on another step size is tried


@dataclass(frozen=True, slots=True)
class AtConvention:
    """Elements at which the gradient is by convention not the derivative, and what PyTorch takes there."""

    argument: str
    indices: tuple[tuple[int, ...], ...]  # the first few
    count: int
    choice: str
    source: str = ""


@dataclass(frozen=True)
class NodeContext:
    """One execution of one node, with what our rules know of it."""

    graph: Graph
    node: Node
    execution: NodeExecution
    op: Applied | None
    rule: Rule | None

    @property
    def eps(self) -> float:
        """The rounding of the coarsest gradient."""
        gradients = [g for g in (*self.execution.upstream, *self.execution.downstream) if g is not None]
        return max((torch.finfo(g.dtype).eps for g in gradients), default=EPS)

    def conventions(self, edge: Edge) -> list[Convention]:
        """The kinks and other conventions that our rule knows in the argument of an edge."""
        known = (self.rule.kink, *self.rule.conventions) if self.rule is not None else ()
        return [each for each in known if each is not None and (each.argument, None) == (edge.argument, edge.item)]

    def marks(self, conventions: list[Convention], radius: float, size: int) -> Tensor | None:
        """Which of the real numbers of an argument, so many, lie at or near a convention; None where none can."""
        found: Tensor | None = None
        for each in conventions:
            marks = each.where(self.op, radius).reshape(-1)
            if marks.numel() not in (size, size // 2):
                continue
            marks = marks.repeat_interleave(size // max(marks.numel(), 1))
            found = marks if found is None else found | marks
        return found

    def applied(self, finding: ArgumentCheck) -> tuple[AtConvention, ...]:
        """The conventions of one argument, each with the elements to which it applies."""
        found = []
        for each in self.conventions(finding.edge):
            places = each.where(self.op, 0.0).nonzero()
            if len(places):
                first = tuple(map(tuple, places[:8].tolist()))
                source = each.source or (self.rule.source if self.rule is not None else "")
                found.append(AtConvention(finding.label, first, len(places), each.choice, source))
        return tuple(found)

    def contributions(self) -> dict[int, Contribution]:
        """Our rule's gradients by the positions of the edges."""
        if self.rule is None or self.op is None:
            return {}
        found = contributions_of(self.graph, self.node, self.rule, self.op, self.execution.upstream, self.execution)
        return {edge.position: each for edge, each in zip(self.node.edges, found, strict=True)}


@dataclass
class ArgumentCheck:
    """What was found of one argument."""

    edge: Edge
    label: str
    got: Tensor  # autograd's, flat in float64 (as recorded after a quick check); zeros where it gave nothing
    missing: bool
    ours: Tensor | None = None
    finite: Comparison | None = None
    measured: dict[int, float] | None = None  # element -> u^T J
    terms: Tensor | None = None  # the size of the summed terms, where each element was measured
    off: list[int] | None = None  # elements where autograd and differences disagree
    conventions: tuple[AtConvention, ...] = ()
    rule: Comparison | None = None
    rule_off: tuple[int, ...] = ()
    breach: str = ""  # the convention that autograd's gradient does not keep to
    unsettled: str = ""
    rounding: bool = False


def label_of(edge: Edge) -> str:
    """What an edge's argument is called."""
    label = edge.argument or f"input {edge.position}"
    return label if edge.item is None else f"{label}[{edge.item}]"


def measure(context: NodeContext, experiment: Experiment, edge: Edge, finding: ArgumentCheck) -> ArgumentCheck:
    """Measure one argument."""
    probe = Probe(experiment, edge)
    if finding.missing:
        finding.got = finding.got.to(probe.x.device)
    if finding.got.numel() != probe.x.numel():
        raise CannotRunError(f"the gradient of `{finding.label}` has another shape than the argument")
    eps = max(experiment.eps, FINEST, probe.grain ** (2 / 3) if probe.grain > EPS else 0)
    if probe.x.numel() <= SMALL and probe.u.numel() <= WIDE:
        left_out = _left_out(context, probe, probe.step * 2**-10)
        compare_elements(probe, finding, [i for i in range(probe.x.numel()) if not left_out[i]], eps, keep_terms=True)
    else:
        left_out = _left_out(context, probe, 8 * probe.step) | ~probe.x.isfinite()
        _along_directions(probe, finding, left_out, eps)
        if context.rule is None and not (finding.off or finding.unsettled):
            _small_elements(probe, finding, left_out, eps)
    finding.conventions = context.applied(finding) or finding.conventions
    return finding


def _left_out(context: NodeContext, probe: Probe, radius: float) -> Tensor:
    """Which elements of an argument lie at or near a convention that our rule knows."""
    marks = context.marks(context.conventions(probe.edge), radius, probe.x.numel())
    return torch.zeros(probe.x.numel(), dtype=torch.bool, device=probe.x.device) if marks is None else marks


# -- autograd and differences -----------------------------------------------------------------------------------------


def compare_elements(probe: Probe, finding: ArgumentCheck, chosen: list[int], eps: float, keep_terms: bool) -> None:
    """Compare autograd's gradient with differences at single elements; look closer where they do not agree."""
    finding.measured, finding.off, corners = {}, [], []
    got = finding.got[chosen]
    if chosen:
        found = probe.elements(chosen)
        if keep_terms:
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
        finding.conventions = _at_corners(probe, finding, corners)


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


def _along_directions(probe: Probe, finding: ArgumentCheck, left_out: Tensor, eps: float) -> None:
    """The dot-product test; where it fails, kinks are left out, and single elements are measured."""
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
            compare_elements(
                probe, finding, kinks[:8], eps, keep_terms=False
            )  # is autograd's gradient one of the slopes?
            if finding.off:
                return
            finding.finite, finding.conventions = found, _at_corners(probe, finding, kinks)
            if found.agrees:
                continue
        corners_before, along = finding.conventions, finding.finite
        sample = _suspects(probe, finding, v, eps, generator)
        compare_elements(probe, finding, sample, eps, keep_terms=False)
        if not finding.conventions:
            finding.conventions = corners_before
            if not finding.off and not finding.unsettled:
                finding.finite, finding.off = along, []
                finding.unsettled = (
                    "the differences along random directions disagree, but those at single elements do not"
                )
        return


def _small_elements(probe: Probe, finding: ArgumentCheck, left_out: Tensor, eps: float) -> None:
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
    closer = with_gradient(finding, finding.got)
    compare_elements(probe, closer, _suspects(probe, finding, v, eps, generator), eps, keep_terms=False)
    if closer.off:
        finding.finite, finding.measured, finding.off = closer.finite, closer.measured, closer.off


def _dot_product(probe: Probe, finding: ArgumentCheck, v: Tensor, eps: float) -> Comparison:
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


def _suspects(probe: Probe, finding: ArgumentCheck, v: Tensor, eps: float, generator: torch.Generator) -> list[int]:
    """Elements to be measured: one found by halving the direction, the largest gradients, and some at random."""
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


def settle(context: NodeContext, experiment: Experiment, findings: list[ArgumentCheck]) -> None:
    """Run autograd again where it disagrees with differences: this finds rounding, hooks and unwanted gradients."""
    doubtful = [finding for finding in findings if finding.off]
    if not doubtful:
        return
    if not experiment.repeats():
        for finding in doubtful:
            finding.off, finding.finite, finding.measured = [], None, {}
            finding.unsettled = "run again on the recorded inputs, it does not give the recorded outputs"
        return
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
        finer = with_gradient(finding, real(precise))
        compare_elements(Probe(experiment, finding.edge), finer, elements, FINEST, keep_terms=False)
        unresolved = context.rule is not None and not finer.unsettled and _is_unresolved(experiment, finer)
        if (finer.off or finer.unsettled) and not unresolved and not _shrunk(finding, finer, measured):
            continue
        same = compare(finding.got, real(repeated), eps=4 * experiment.eps).agrees
        if same and experiment.eps > FINEST:
            finding.off, finding.rounding = [], True
        elif not same and not experiment.custom and context.graph.nodes[finding.edge.node].leaf is not None:
            finding.off, finding.got = [], real(repeated)
            finding.unsettled = (
                f"the gradient of `{finding.label}` is not what this node gives when it is run again: a hook, or a "
                "write to `.grad`, changed it"
            )
        finding.measured = measured


def _is_unresolved(experiment: Experiment, fine: ArgumentCheck) -> bool:
    """Whether autograd in float64 differs by less than differences can resolve beside the upstream gradient.

    Log-softmax of a confident prediction computes log(1 + 1e-18) = 0: the outputs do not move, and their size does not
    show what rounded them off. This excuses no function of the user's.
    """
    off, measured = fine.off or [], fine.measured or {}
    apart = max((abs(float(fine.got[i]) - measured.get(i, math.inf)) for i in off), default=0.0)
    return not experiment.custom and apart <= FINEST * _largest(experiment)


def _largest(experiment: Experiment) -> float:
    """The largest element of the upstream gradient."""
    return max((float(g.abs().max()) for g in experiment.upstream.values() if g.numel()), default=0.0)


def _mere_rounding(
    experiment: Experiment, edges: list[Edge], finding: ArgumentCheck, measured: dict[int, float]
) -> bool:
    """Whether autograd's own gradient moves as far as it is off when its arguments move by a rounding.

    An operation may cancel large terms inside, as the normalisation of a single element does, and the size of its
    derivatives does not show them. This excuses only what is negligible beside the upstream gradient, and nothing in
    a user's own backward.
    """
    off = finding.off or []
    apart = torch.tensor([abs(float(finding.got[i]) - measured.get(i, math.inf)) for i in off], dtype=torch.float64)
    if experiment.custom or not bool((apart <= FINEST * _largest(experiment)).all()):
        return False
    generator, moved = torch.Generator().manual_seed(0), torch.zeros_like(apart)
    for _ in range(8):
        again = experiment.replayed(edges, wide=False, jitter=generator)[edges.index(finding.edge)]
        if again is not None:
            moved = torch.maximum(moved, (real(again) - finding.got)[off].abs().cpu())
    return bool((apart <= MARGIN * moved).all())


def _shrunk(coarse: ArgumentCheck, fine: ArgumentCheck, measured: dict[int, float]) -> bool:
    """Whether the difference all but vanishes in float64, as rounding does."""
    return all(
        i in measured and abs(float(fine.got[i]) - measured[i]) <= 1e-4 * abs(float(coarse.got[i]) - measured[i])
        for i in coarse.off or ()
    )


def with_gradient(finding: ArgumentCheck, got: Tensor) -> ArgumentCheck:
    """The same argument with another gradient to be compared with the differences."""
    return ArgumentCheck(finding.edge, finding.label, got, False)


def _at_corners(probe: Probe, finding: ArgumentCheck, elements: list[int]) -> tuple[AtConvention, ...]:
    """Elements at a corner that differences found."""
    places = list(dict.fromkeys(probe.index(element) for element in elements[:8]))
    if not places:
        return ()
    taken = f"{float(finding.got[elements[0]]):.4g}"
    choice = f"{ONE_SIDED}; PyTorch's gradient there is {taken}"
    return (AtConvention(finding.label, tuple(places), len(elements), choice),)
