"""One argument of one node: autograd's recorded gradient compared with differences.

The first measurement is cheap. Only where it disagrees, other step sizes are tried, one-sided differences are taken
(at a kink no step size helps), and autograd runs again, which separates a wrong derivative from a kink, from rounding,
and from a gradient that a hook changed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from copy import copy
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from chainrule.derivation.backprop import Contribution, contributions_of
from chainrule.execution.central_differences import Measured, Probe, weigh
from chainrule.execution.experiment import FINEST, SMALL, STEP, WIDE, CannotRunError, Experiment
from chainrule.execution.function_trace import forward_gradient
from chainrule.graph.comparison import EPS, FLOAT32, FLOOR, MARGIN, Comparison, compare, rms, tolerance
from chainrule.graph.graph import Edge, Graph, Node, NodeExecution
from chainrule.rules import Applied, Convention, Rule

DIRECTIONS = 2
ONE_SIDED = "the one-sided derivatives differ here"
DIRECTIONS_ALONE = "the differences disagree along random directions alone, and agree at single elements"
EVENED = 1e-8  # of a typical element: smaller ones count no more in a direction to which all contribute alike
STRAY = 32  # elements of a large gradient that are measured since they differ from another derivation
CLEAR = 1e-6  # error of the differences, relative to the terms, that leaves no doubt about a gradient far from them
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
    """One execution of one node, with what its rule knows of it."""

    graph: Graph
    node: Node
    execution: NodeExecution
    op: Applied | None
    rule: Rule | None

    @property
    def trusts_rule(self) -> bool:
        """Whether what its rule says may excuse a gradient: our tests do not try the rules of others."""
        return self.rule is not None and self.rule.ours

    @property
    def eps(self) -> float:
        """The rounding of the coarsest gradient."""
        gradients = [g for g in (*self.execution.upstream, *self.execution.downstream) if g is not None]
        return max((torch.finfo(g.dtype).eps for g in gradients), default=EPS)

    def conventions(self, edge: Edge) -> list[Convention]:
        """The kinks and other conventions that our rule knows in the argument of an edge."""
        known = (self.rule.kink, *self.rule.conventions) if self.rule is not None and self.trusts_rule else ()
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
    known: dict[tuple[int, float], Measured] = field(default_factory=dict)  # differences by element and step
    changed: bool = False  # by something that PyTorch does not see: it contradicts what is recorded
    moved_alone: bool = False  # off only where the rounding of outputs that do not move counts as none
    in_float64: bool = False  # off only when run again in float64: the recorded type is too coarse to show it


def differentiated(findings: Iterable[ArgumentCheck]) -> list[Edge]:
    """The edges of the arguments to which autograd gave a gradient."""
    return [each.edge for each in findings if not each.missing and each.edge.argument is not None]


def label_of(edge: Edge) -> str:
    """What an edge's argument is called."""
    return (edge.argument or f"input {edge.position}") + ("" if edge.item is None else f"[{edge.item}]")


def measure(
    context: NodeContext, experiment: Experiment, edge: Edge, finding: ArgumentCheck, eps: float | None = None
) -> ArgumentCheck:
    """Measure one argument; `eps` is the rounding of its gradient, if that is not the recorded one."""
    probe = Probe(experiment, edge)
    if finding.missing:
        finding.got = finding.got.to(probe.x.device)
    if finding.got.numel() != probe.x.numel():
        raise CannotRunError(f"the gradient of `{finding.label}` has another shape than the argument")
    eps = max(experiment.eps if eps is None else eps, FINEST, probe.grain ** (2 / 3) if probe.grain > EPS else 0)
    if probe.x.numel() <= SMALL and probe.u.numel() <= WIDE:
        marks = left_out(context, probe, probe.step * 2**-10)
        compare_elements(probe, finding, [i for i in range(probe.x.numel()) if not marks[i]], eps, keep_terms=True)
    else:
        marks = left_out(context, probe, 8 * probe.step) | ~probe.x.isfinite()
        _along_directions(probe, finding, marks, eps)
        if not context.trusts_rule and not (finding.off or finding.unsettled):
            _small_elements(probe, finding, marks, eps)
    if experiment.custom and not (finding.off or finding.unsettled):
        _stray_elements(probe, finding, marks, eps)
    finding.conventions = context.applied(finding) or finding.conventions
    return finding


def left_out(context: NodeContext, probe: Probe, radius: float) -> Tensor:
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
            verdict, slope[i], terms[i], error[i] = _closer(probe, finding, chosen[i], float(got[i]), eps)
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


def _closer(
    probe: Probe, finding: ArgumentCheck, element: int, got: float, eps: float
) -> tuple[str, float, float, float]:
    """Try other step sizes at one element, then one-sided ones: (verdict, u^T J, its terms, its error)."""
    line, noise, before = probe.line(element), [0.0], [(math.inf, 0.0)]

    def noisy() -> float:
        noise[0] = noise[0] or probe.noise(line)
        return noise[0]

    def refined(step: float) -> Measured:
        if (element, step) not in finding.known:
            finding.known[element, step] = probe.refined(line, step, noisy())
        return finding.known[element, step]

    def enough(slope: float, terms: float, error: float) -> bool:
        if error <= eps * terms and compare(got, slope, terms, eps=eps).agrees:
            return True
        same = abs(slope - before[0][0]) <= 4 * (error + before[0][1])
        apart = error <= CLEAR * terms and abs(got - slope) > 100 * error
        before[0] = (slope, error) if apart else (math.inf, 0.0)
        return same and apart  # two steps contradict the gradient, and not each other

    best = _finest(refined, _steps(probe, abs(float(probe.x[element]))), enough)
    if best is None:
        return "unsettled", float("nan"), float("nan"), float("nan")
    slope, terms, error = best
    negligible = FLOOR if probe.experiment.custom else FINEST * float(probe.u.abs().max())
    settled = error <= max(MARGIN * eps, SETTLED) * terms + negligible
    if settled and compare(got, slope, terms, eps=eps, slack=4 * error).agrees:
        return "agrees", slope, terms, 4 * error
    corner = _corner(probe, line, noisy(), got, tolerance(0.0, terms, 1, eps) + 4 * error)
    if corner is not None:
        return corner, slope, terms, 4 * error
    apart = not compare(got, slope, terms, eps=eps, slack=14 * error).agrees
    last = refined(min(_steps(probe, abs(float(probe.x[element])))))
    jumps = float(last.slope.abs() - last.error) > 14 * (abs(slope) + error)  # the slope grows as the step shrinks
    return "wrong" if apart and not jumps else "unsettled", slope, terms, 4 * error


def _finest(
    refined: Callable[[float], Measured], steps: Iterable[float], enough: Callable[[float, float, float], bool]
) -> tuple[float, float, float] | None:
    """The most accurate difference along a line: u^T J, its terms, and its error by truncation and rounding.

    The error shows in the differences alone: it does not depend on the gradient that is judged. Steps go from large to
    small. Where two contradict each other the smaller one counts, since the larger one reaches beyond a corner. The
    first one that is `enough` ends the search.
    """
    best = None
    for step in sorted({*steps}, reverse=True):
        found = refined(step)
        slope, terms, error = float(found.slope), float(found.terms), float(found.error)
        if not error < float("inf"):
            continue
        if enough(slope, terms, error):
            return slope, terms, error
        if best is None or error < best[2] or (error < 16 * best[2] and abs(slope - best[0]) > 4 * (error + best[2])):
            best = slope, terms, error
    return best


def _steps(probe: Probe, size: float) -> Iterator[float]:
    for power in (8, 4, 0, -5, -10):
        yield probe.step * 2.0**power
    yield STEP
    if size:
        yield STEP * size


def _corner(probe: Probe, line: Tensor, noise: float, got: float, allowed: float) -> str | None:
    """Whether the one-sided differences stay apart as the step shrinks; at a corner autograd must lie between them."""
    gaps, middle = [], 0.0
    for step in (probe.step, probe.step / 16, probe.step / 256):
        right, left = probe.sides(line, step)
        gaps.append(float((right - left).abs().sum()))
        middle = float((right + left).sum()) / 2
    noise = max(noise, probe.grain * float(weigh(probe.u, probe.y).abs().nan_to_num(0.0, 0.0, 0.0).sum()))
    rounding = 16 * noise * 256 / probe.step
    if not gaps[-1] > max(0.5 * gaps[0], rounding):
        return None
    jump = gaps[-1] > 8 * gaps[0]
    return "kink" if jump or abs(got - middle) <= gaps[-1] / 2 * (1 + 1e-6) + allowed else "wrong"


def _along_directions(probe: Probe, finding: ArgumentCheck, left_out: Tensor, eps: float) -> None:
    """The dot-product test; where it fails, kinks are left out, and single elements are measured."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(DIRECTIONS):
        v = torch.where(left_out, 0.0, probe.drawn(generator))
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
                finding.unsettled = DIRECTIONS_ALONE
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
    v = torch.where(left_out, 0.0, probe.drawn(generator) * (least / size.clamp(min=least)))
    if _dot_product(probe, finding, v, eps).agrees:
        return
    if (corners := _corners_along(probe, v)) is not None:
        v = torch.where(corners, 0.0, v)
    _only_if_wrong(probe, finding, _suspects(probe, finding, v, eps, generator), eps)


def _stray_elements(probe: Probe, finding: ArgumentCheck, left_out: Tensor, eps: float) -> None:
    """Measure elements of a user's gradient that differ from what autograd gives of its own forward.

    Along a direction one wrong element of a million is lost in the rounding of the others. Where the forward has none
    (it calls NumPy), but each output depends on the input at its place, the terms along one direction are compared.
    """
    own = expected = forward_gradient(probe.experiment, probe.edge)
    slack, size = 0.0, finding.got.numel()
    if expected is None and size > SMALL and probe.y.numel() == size:
        expected, slack = probe.direction(torch.ones_like(probe.x))
    if expected is None or expected.shape != finding.got.shape:
        return
    apart = (finding.got - expected).abs() - MARGIN * eps * expected.abs() - slack
    apart = torch.where(left_out | ~apart.isfinite(), 0.0, apart)
    stray = int((apart > 0).sum())
    if not stray or (size > SMALL and stray > size // 4):  # otherwise it is no derivative of this function
        return
    chosen = sorted(apart.topk(min(stray, STRAY)).indices.tolist())
    if size > SMALL:
        _only_if_wrong(probe, finding, chosen, eps)
    if own is not None and not finding.off:
        _hidden_elements(probe, finding, chosen, own, eps)


def _hidden_elements(probe: Probe, finding: ArgumentCheck, chosen: list[int], own: Tensor, eps: float) -> None:
    """Measure elements without the rounding of the outputs that do not move with them, which hides what is small.

    Such an output may move by less than its last place: wrong is only where autograd of the forward agrees with them.
    """
    alone = copy(probe)
    alone.moved_alone = True
    wrong, right = (replace(with_gradient(finding, got), known={}) for got in (finding.got, own))
    compare_elements(alone, wrong, chosen, eps, keep_terms=False)
    compare_elements(alone, right, wrong.off or [], eps, keep_terms=False)
    if wrong.off and not (right.off or right.unsettled or right.conventions):
        finding.finite, finding.measured, finding.off = wrong.finite, wrong.measured, wrong.off
        finding.known, finding.moved_alone = wrong.known, True


def _only_if_wrong(probe: Probe, finding: ArgumentCheck, suspects: list[int], eps: float) -> None:
    """Measure single elements beside directions that agree: what is found counts only where one is wrong by itself."""
    closer = with_gradient(finding, finding.got)
    compare_elements(probe, closer, suspects, eps, keep_terms=False)
    if closer.off:
        finding.finite, finding.measured, finding.off = closer.finite, closer.measured, closer.off


def _dot_product(probe: Probe, finding: ArgumentCheck, v: Tensor, eps: float, refine: bool = True) -> Comparison:
    """<u, J v> by differences, and <J^T u, v>. The roundings of the elements are independent: squares add up."""
    terms, rounding = probe.direction(v)
    ours = finding.got * v
    spread, total = float(terms.norm() + ours.norm()), float(ours.sum())
    adding = max(FLOAT32 if eps > FINEST else 0.0, EPS) * float(terms.abs().sum())

    def compared(slope: float, error: float) -> Comparison:
        return compare(total, slope, spread, eps=eps, slack=adding + error, argument=finding.label)

    found = compared(float(terms.sum()), 0.0 if probe.experiment.custom and refine else rounding)
    if refine and not found.agrees:
        noise = probe.noise(v)
        best = _finest(
            lambda step: probe.refined(v, step, noise),
            [probe.step * 2.0**power for power in (6, 0, -5, -9)],
            lambda slope, _, error: error <= eps * spread and compared(slope, 0.0).agrees,
        )
        if best is not None and best[2] <= max(MARGIN * eps, SETTLED) * spread:
            found = compared(best[0], 4 * best[2])
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
        found = _dot_product(probe, finding, part, eps, refine=False)
        alive = half if not found.agrees else alive[alive.numel() // 2 :]
    usable = v != 0
    largest = torch.where(usable, finding.got.abs(), -1).topk(min(8, v.numel())).indices.tolist()
    random = torch.randint(v.numel(), (24,), generator=generator).tolist()
    chosen = {*alive.tolist(), *largest, *random}
    return sorted(element for element in chosen if usable[element])


def with_gradient(finding: ArgumentCheck, got: Tensor) -> ArgumentCheck:
    """The same argument with another gradient to be compared with the differences."""
    return ArgumentCheck(finding.edge, finding.label, got, False, known=finding.known)


def _at_corners(probe: Probe, finding: ArgumentCheck, elements: list[int]) -> tuple[AtConvention, ...]:
    """Elements at a corner that differences found."""
    places = list(dict.fromkeys(probe.index(element) for element in elements[:8]))
    if not places:
        return ()
    taken = f"{float(finding.got[elements[0]]):.4g}"
    choice = f"{ONE_SIDED}; PyTorch's gradient there is {taken}"
    return (AtConvention(finding.label, tuple(places), len(elements), choice),)
