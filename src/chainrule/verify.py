"""The proof: at each node our rule, autograd, and a central difference in float64 are held against each other.

What is compared is the gradient that left a node in the recorded step, given the upstream gradient u that reached it:
(1) our rule's VJP on the recorded values; (2) autograd's recorded gradient; (3) u^T J measured by running the operation
again in float64 on both sides of the recorded point. Element by element for at most 64 elements (and 4,096 outputs);
above that along random directions v, by the dot-product test <u, J v> = <J^T u, v>, and where that fails at single
elements, to find which are wrong.

Tolerance. A gradient computed with rounding eps is a sum of terms; it may be off by 8 eps times the sum of the terms'
magnitudes, here sum_i |u_i J_ij| (along a direction: 8 eps times the root of the sum of their squares, since independent
roundings add up so, plus one float32 rounding of the sum of magnitudes for the summation). Central differences are good
to about 1e-10 of the terms, so eps counts as at least that. A disagreement is called only after other step sizes,
one-sided differences (a kink?), and autograd itself, run again in float64 and in the recorded type (mere rounding?).

Nothing global is changed, the state of the random generators included.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from chainrule import document
from chainrule.backprop import Share, applied, rule_of, shares_of
from chainrule.differences import EPS, MARGIN, STEP, CannotRunError, Experiment, Probe, nothing_left_behind, real
from chainrule.differences import unravel as unravelled
from chainrule.document import Kind
from chainrule.errors import MissingError
from chainrule.graph import Edge, Graph, Node, Passage, Place
from chainrule.rules import Applied, Rule

SMALL, WIDE = 64, 4096  # elements of an argument, of the outputs: up to here every element is measured
DIRECTIONS = 2
FINEST = 1e-10  # what a central difference in float64 can tell, relative to the terms
_WORST: tuple[Kind, ...] = ("disagrees", "kink", "not checked", "no rule yet", "agrees", "not differentiable")


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


@dataclass(frozen=True, slots=True)
class Wrong:
    """One element on which the sides differ: what each of them says (None: that side says nothing)."""

    argument: str
    index: tuple[int, ...]
    rule: float | complex | None
    autograd: float | complex | None
    finite: float | complex | None


@dataclass(frozen=True, slots=True)
class AtKink:
    """Elements that lie where the derivative does not exist, and what PyTorch takes there."""

    argument: str
    indices: tuple[tuple[int, ...], ...]  # the first few
    count: int
    choice: str


@dataclass(frozen=True, slots=True)
class Row:
    """The proof of one node. `tolerance` is the one at its largest difference."""

    node: Node
    place: Place | None
    verdict: Kind
    reason: str
    arguments: tuple[str, ...] = ()
    rule_difference: Difference | None = None
    finite_difference: Difference | None = None
    tolerance: float | None = None
    kinks: tuple[AtKink, ...] = ()
    wrong: tuple[Wrong, ...] = ()


@dataclass(frozen=True)
class Verification:
    """The proof of a step: one row a node, in the order of the graph."""

    rows: tuple[Row, ...]
    coverage: tuple[int, int]

    @property
    def passed(self) -> bool:
        """Whether nothing disagrees."""
        return not self.failures

    @property
    def failures(self) -> tuple[Row, ...]:
        """The rows that disagree."""
        return tuple(row for row in self.rows if row.verdict == "disagrees")

    def document(self) -> document.Document:
        """The proof, told: a summary, a table of all nodes, and each disagreement with its wrong elements."""
        return _told(self)


def verify(
    graph: Graph, *, only: str | None = None, progress: Callable[[int, int], None] | None = None
) -> Verification:
    """Prove every node of a recorded step, or those that `only` names.

    `only` is a part of a node's name, of its operation's, of a module's path, or of the name of one of its outputs.
    `progress(done, total)` is called after each node. Raises MissingError where `only` names nothing.
    """
    nodes = [node for node in graph.nodes if only is None or any(only in name for name in _names(graph, node))]
    if only is not None and not nodes:
        known = sorted({name for node in graph.nodes for name in _names(graph, node) if name})
        near = difflib.get_close_matches(only, known) or known[:5]
        raise MissingError(f"no node is named {only!r}. Near it: {', '.join(near)}." if near else "no node was recorded.")
    rows, explained = [], 0
    with nothing_left_behind():
        for done, node in enumerate(nodes, 1):
            op, rule = _meaning(graph, node)
            explained += rule is not None or node.leaf is not None
            rows.append(_row(graph, node, op, rule))
            if progress is not None:
                progress(done, len(nodes))
    return Verification(tuple(rows), (explained, len(nodes)))


def _names(graph: Graph, node: Node) -> list[str]:
    values = [value for value in (*node.outputs, node.leaf) if value is not None]
    names = [node.name, *(name for value in values for name in graph.values[value].names)]
    if node.operation is not None:
        names.append(graph.operations[node.operation].name)
    return [*names, graph.calls[node.call].module] if node.call is not None else names


def _meaning(graph: Graph, node: Node) -> tuple[Applied | None, Rule | None]:
    if node.operation is None:
        return None, None
    op = applied(graph, graph.operations[node.operation])
    try:
        return op, rule_of(graph, node, op)
    except Exception:  # a rule that cannot even say whether it applies
        return op, None


def _row(graph: Graph, node: Node, op: Applied | None, rule: Rule | None) -> Row:
    if node.leaf is not None:
        return _accumulation(graph, node)
    if not node.passages:
        return _unchecked(node, "no gradient flowed through it")
    rows = [_passage(graph, node, passage, op, rule) for passage in node.passages]
    return min(rows, key=lambda row: _WORST.index(row.verdict))


def _unchecked(node: Node, reason: str) -> Row:
    return Row(node, node.place, "not checked", reason)


# -- leaves -----------------------------------------------------------------------------------------------------------


def _accumulation(graph: Graph, node: Node) -> Row:
    """What all edges into a leaf brought, summed, against what was recorded of its `.grad`."""
    assert node.leaf is not None
    leaf = graph.values[node.leaf]
    shares = [
        passage.downstream[edge.position]
        for other in graph.nodes
        for edge in other.edges
        if edge.node == node.index
        for passage in other.passages
        if edge.position < len(passage.downstream)
    ]
    brought = [real(share) for share in shares if share is not None]
    if leaf.grad is None or not brought:
        return _unchecked(node, "no gradient was accumulated in it")
    recorded, total, size = real(leaf.grad), sum(brought[1:], brought[0]), sum(b.abs() for b in brought)
    left = [p.grad for p in graph.parameters.values() if p.value == node.leaf and p.grad is not None]
    tolerance = MARGIN * torch.finfo(leaf.dtype).eps * (size + sum(real(g).abs() for g in left))
    if not recorded.isfinite().all():
        return _unchecked(node, "its gradient is not finite")
    found = _largest("grad", recorded, total, tolerance, leaf.shape, leaf.dtype.is_complex)
    bad = _outside(recorded, total, tolerance)
    if not bad:
        uses = "the only use" if len(brought) == 1 else f"{len(brought)} shares"
        return Row(node, None, "agrees", f"`.grad` is the sum of what came back from {uses}", ("grad",), found,
                   tolerance=found.tolerance)  # fmt: skip
    wrong = tuple(
        Wrong("grad", unravelled(i, leaf.shape), float(total[i]), float(recorded[i]), None) for i in bad[:8]
    )
    reason = "`.grad` is not the sum of what its uses brought: a hook on the leaf, or a write to `.grad`, changed it"
    return Row(node, leaf.place, "disagrees", reason, ("grad",), found, tolerance=found.tolerance, wrong=wrong)


# -- one passage through one node -------------------------------------------------------------------------------------


@dataclass
class _Finding:
    """What was found of one argument."""

    edge: Edge
    label: str
    got: Tensor  # autograd's, flat; zeros where it gave nothing
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


def _passage(graph: Graph, node: Node, passage: Passage, op: Applied | None, rule: Rule | None) -> Row:
    if all(g is None for g in passage.upstream):
        return _unchecked(node, "no gradient flowed through it")
    if any(not g.isfinite().all() for g in passage.upstream if g is not None and g.layout == torch.strided):
        return _unchecked(node, "the gradient that reached it is not finite (NaN or infinity)")
    if all(g is None for g in passage.downstream):
        if node.function_class is None:
            return _unchecked(node, "no gradient was asked of it for any of its inputs")
    try:
        shares, broken = _shares(graph, node, rule, op, passage), ""
    except Exception as error:  # whatever a rule does wrong is a result to show
        shares, broken = {}, f"our rule fails here: {error}"
    findings: list[_Finding] = []
    obstacle = ""
    try:
        experiment = _experiment(graph, node, passage)
        for edge in node.edges:
            if edge.argument is None:
                obstacle = "which argument one of its gradients belongs to is not known"
            elif (finding := _finding(graph, experiment, edge, passage, rule, op)) is not None:
                findings.append(finding)
        _settle(experiment, findings, graph)
    except CannotRunError as error:
        obstacle = str(error)
    except Exception as error:  # a user's function, or an operation without float64, may raise anything
        obstacle = f"it cannot be run again ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})"
    if obstacle:
        known = {finding.edge.position for finding in findings}
        findings += [f for edge in node.edges if edge.position not in known and (f := _recorded(edge, graph, passage))]
    eps = _coarsest(passage)
    for finding in findings:
        _hold_rule(finding, shares.get(finding.edge.position), eps, graph, node, passage, rule, op)
    explained = rule is not None and all(f.ours is not None or f.missing for f in findings)
    return _judged(graph, node, findings, obstacle, broken, explained)


def _experiment(graph: Graph, node: Node, passage: Passage) -> Experiment:
    if node.name == "CopySlices":
        raise CannotRunError("it stands for a write to a part of a tensor, which is not run again on its own")
    if node.operation is None:
        raise CannotRunError("the recording does not hold the operation that made it")
    experiment = Experiment(graph, node, passage.upstream)
    if experiment.custom and not experiment.repeats():
        raise CannotRunError(
            "running its forward again does not give what was recorded: it draws random numbers, or keeps a state"
        )
    return experiment


def _shares(
    graph: Graph, node: Node, rule: Rule | None, op: Applied | None, passage: Passage
) -> dict[int, Share]:
    if rule is None or op is None:
        return {}
    shares = shares_of(graph, node, rule, op, passage.upstream, passage)
    return {edge.position: share for edge, share in zip(node.edges, shares, strict=True)}


def _recorded(edge: Edge, graph: Graph, passage: Passage) -> _Finding | None:
    got = passage.downstream[edge.position] if edge.position < len(passage.downstream) else None
    if edge.value is None and got is None:
        return None
    label = edge.argument or f"input {edge.position}"
    label = label if edge.item is None else f"{label}[{edge.item}]"
    if got is None:
        value = graph.values[edge.value or 0]
        count = 2 if value.dtype.is_complex else 1
        return _Finding(edge, label, torch.zeros(torch.Size(value.shape).numel() * count, dtype=torch.float64), True)
    return _Finding(edge, label, real(got), False)


def _finding(
    graph: Graph, experiment: Experiment, edge: Edge, passage: Passage, rule: Rule | None, op: Applied | None
) -> _Finding | None:
    """Measure one argument."""
    finding = _recorded(edge, graph, passage)
    if finding is None:
        return None
    probe = Probe(experiment, edge)
    if finding.missing:
        finding.got = finding.got.to(probe.x.device)
    if finding.got.numel() != probe.x.numel():
        raise CannotRunError(f"the gradient of `{finding.label}` has another shape than the argument")
    eps = max(experiment.eps, FINEST, probe.grain ** (2 / 3) if probe.grain > EPS else 0)
    marks = _Marks(rule, op, edge, probe)
    if probe.x.numel() <= SMALL and probe.u.numel() <= WIDE:
        left_out = marks.near(probe.step * 2**-10)
        _each_element(probe, finding, [i for i in range(probe.x.numel()) if not left_out[i]], eps, tell=True)
    else:
        _along_directions(probe, finding, marks.near(8 * probe.step), eps, experiment.eps)
    at = marks.near(0.0).nonzero()[:, 0].tolist()
    if at and rule is not None and rule.kink is not None:
        finding.kinks = _at_kink(probe, finding, at, rule.kink.choice)
    return finding


class _Marks:
    """Which elements of an argument lie at or near a kink that our rule knows."""

    def __init__(self, rule: Rule | None, op: Applied | None, edge: Edge, probe: Probe) -> None:
        known = rule is not None and rule.kink is not None and rule.kink.argument == edge.argument and edge.item is None
        self.kink, self.op, self.probe = (rule.kink if known and rule is not None else None), op, probe

    def near(self, radius: float) -> Tensor:
        size = self.probe.x.numel()
        nowhere = torch.zeros(size, dtype=torch.bool, device=self.probe.x.device)
        if self.kink is None:
            return nowhere
        marks = self.kink.where(self.op, radius).reshape(-1)
        marks = marks.repeat_interleave(2) if self.probe.complex else marks
        return marks if marks.numel() == size else nowhere


# -- differences against autograd -------------------------------------------------------------------------------------


def _each_element(probe: Probe, finding: _Finding, chosen: list[int], eps: float, tell: bool) -> None:
    """Hold autograd's gradient against differences at single elements; look closer where they do not agree."""
    finding.measured, finding.off, corners = {}, [], []
    got = finding.got[chosen]
    if chosen:
        found = probe.elements(chosen)
        tolerance = MARGIN * eps * found.terms + found.error + _floor(finding.got)
        if tell:
            finding.terms = torch.zeros_like(finding.got)
            finding.terms[chosen] = found.terms.nan_to_num(0.0, 0.0)
        slope = found.slope.clone()
        for i in (~((slope - got).abs() <= tolerance)).nonzero()[:, 0].tolist():
            verdict, slope[i], tolerance[i] = _closer(probe, chosen[i], float(got[i]), eps, _floor(finding.got))
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
            finding.finite = _largest(
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


def _along_directions(probe: Probe, finding: _Finding, left_out: Tensor, eps: float, recorded_eps: float) -> None:
    """The dot-product test; where it fails, kinks are left out, and single elements are looked at."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(DIRECTIONS):
        v = torch.randn(probe.x.numel(), dtype=torch.float64, generator=generator).to(probe.x.device)
        v = torch.where(left_out | ~probe.x.isfinite(), 0.0, v)
        found = _dot_product(probe, finding, v, eps)
        if finding.finite is None or not found.largest / found.tolerance <= finding.finite.largest / (
            finding.finite.tolerance
        ):
            finding.finite = found
        if found.largest <= found.tolerance:
            continue
        corners = _corners_along(probe, v)
        if corners is not None:
            v = torch.where(corners, 0.0, v)
            kinks = (corners & ~left_out).nonzero()[:, 0].tolist()
            finding.finite = found = _dot_product(probe, finding, v, eps)
            finding.kinks = _at_kink(probe, finding, kinks, "")
            if found.largest <= found.tolerance:
                continue
        kinks_before, along = finding.kinks, finding.finite
        sample = _suspects(probe, finding, v, eps, generator)
        _each_element(probe, finding, sample, eps, tell=False)
        if finding.kinks is None:
            finding.kinks = kinks_before
            if not finding.off and not finding.unsettled:
                finding.finite, finding.off = along, []
                finding.unsettled = "the differences along random directions disagree, but those at single elements do not"
        return


def _dot_product(probe: Probe, finding: _Finding, v: Tensor, eps: float) -> Difference:
    accumulated = max(torch.finfo(torch.float32).eps if eps > FINEST else 0.0, EPS)
    terms, rounding = probe.direction(v)
    ours = finding.got * v
    spread = float(terms.norm() + ours.norm())
    tolerance = MARGIN * eps * spread + accumulated * float(terms.abs().sum()) + rounding + _floor(finding.got)
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


def _suspects(probe: Probe, finding: _Finding, v: Tensor, eps: float, generator: torch.Generator) -> list[int]:
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


def _settle(experiment: Experiment, findings: list[_Finding], graph: Graph) -> None:
    """Where autograd and differences disagree, let autograd run again: it tells rounding, hooks and unwanted gradients."""
    doubtful = [finding for finding in findings if finding.off]
    if not doubtful:
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
        finer = replace_got(finding, real(precise))
        probe = Probe(experiment, finding.edge)
        _each_element(probe, finer, elements, FINEST, tell=False)
        if finer.off or finer.unsettled:
            continue
        tolerance = 4 * MARGIN * experiment.eps * (finding.got.abs() + _rms(finding.got))
        same = not _outside(finding.got, real(repeated), tolerance)
        if same and experiment.eps > FINEST:
            finding.off, finding.rounding = [], True
        elif not same and not experiment.custom and graph.nodes[finding.edge.node].leaf is not None:
            finding.off, finding.unsettled = [], (
                f"the gradient of `{finding.label}` is not what this node gives when it is run again: a hook on the "
                "leaf, or a write to `.grad`, changed it"
            )
        finding.measured = measured


def replace_got(finding: _Finding, got: Tensor) -> _Finding:
    """The same argument with another gradient to hold against the differences."""
    return _Finding(finding.edge, finding.label, got, False)


# -- our rule against autograd ----------------------------------------------------------------------------------------


def _hold_rule(
    finding: _Finding,
    share: Share | None,
    eps: float,
    graph: Graph,
    node: Node,
    passage: Passage,
    rule: Rule | None,
    op: Applied | None,
) -> None:
    if share is None or share.gradient is None or share.recorded is None:
        return
    finding.ours = ours = real(share.gradient)
    got = finding.got
    size = torch.maximum(ours.abs(), got.abs()) + _rms(got) + (finding.terms if finding.terms is not None else 0.0)
    tolerance = MARGIN * eps * size + _floor(got)
    off = _outside(got, ours, tolerance)
    if off:
        tolerance = tolerance + MARGIN * eps * _size_of_terms(graph, node, passage, rule, op, finding)
        if finding.rounding and finding.finite is not None:
            tolerance = tolerance + 4 * finding.finite.largest
        off = _outside(got, ours, tolerance)
    shape = tuple(share.gradient.shape)
    finding.rule = _largest(finding.label, got, ours, tolerance, shape, share.gradient.is_complex())
    finding.rule_off = tuple(off)


def _size_of_terms(
    graph: Graph, node: Node, passage: Passage, rule: Rule | None, op: Applied | None, finding: _Finding
) -> Tensor:
    """How large the summed terms are: the VJP of the upstream gradient with random signs does not cancel."""
    generator = torch.Generator().manual_seed(0)
    size = torch.zeros_like(finding.got)
    for _ in range(3):
        upstream = tuple(
            None if g is None else g * (2.0 * torch.randint(2, g.shape, generator=generator).to(g) - 1)
            for g in passage.upstream
        )
        shares = _shares(graph, node, rule, op, replace(passage, upstream=upstream))
        gradient = shares[finding.edge.position].gradient
        if gradient is not None:
            size = torch.maximum(size, real(gradient).abs())
    return size + _rms(size)


def _coarsest(passage: Passage) -> float:
    gradients = [g for g in (*passage.upstream, *passage.downstream) if g is not None]
    return max((torch.finfo(g.dtype).eps for g in gradients if not g.dtype.is_floating_point or True), default=EPS)


# -- the verdict ------------------------------------------------------------------------------------------------------


def _judged(
    graph: Graph, node: Node, findings: list[_Finding], obstacle: str, broken: str, explained: bool
) -> Row:
    verdict, reason = _verdict(node, findings, obstacle, broken, explained)
    finite = _worst([f.finite for f in findings])
    rule = _worst([f.rule for f in findings])
    told = _worst([finite, rule])
    wrong = tuple(each for f in findings for each in _wrong(graph, f)) if verdict == "disagrees" else ()
    kinks = tuple(f.kinks for f in findings if f.kinks is not None)
    arguments = tuple(f.label for f in findings if not f.missing or f.off)
    return Row(node, node.place, verdict, reason, arguments, rule, finite, told.tolerance if told else None, kinks, wrong)


def _verdict(node: Node, findings: list[_Finding], obstacle: str, broken: str, explained: bool) -> tuple[Kind, str]:
    off = [f for f in findings if f.off]
    rule_off = [f for f in findings if f.rule_off]
    if off:
        names = ", ".join(f"`{f.label}`" for f in off)
        if all(f.missing for f in off):
            return "disagrees", f"no gradient came back for {names}, though the output depends on it"
        beside = ""
        if all(f.ours is not None for f in off):
            beside = "; our rule differs too" if rule_off else "; our rule says the same as autograd"
            if rule_off and all(_rule_is_right(f) for f in off):
                beside = "; our rule agrees with the differences"
        return "disagrees", f"the gradient of {names} is not the derivative that differences measure{beside}"
    if rule_off:
        names = ", ".join(f"`{f.label}`" for f in rule_off)
        if obstacle:
            return "disagrees", f"our rule and autograd differ in the gradient of {names}; {obstacle}"
        return "disagrees", f"autograd and differences agree: our rule is wrong in the gradient of {names}"
    if broken:
        return "disagrees", broken
    unsettled = next((f.unsettled for f in findings if f.unsettled), "")
    if obstacle or unsettled:
        agreed = "our rule and autograd agree, but " if explained and findings else ""
        return "not checked", agreed + (obstacle or unsettled)
    kinks = [f.kinks for f in findings if f.kinks is not None]
    if kinks:
        where = "; ".join(f"{k.count} of `{k.argument}`, first at {list(k.indices[0])}" for k in kinks)
        return "kink", f"{kinks[0].choice} ({where})"
    if not findings:
        return "not differentiable", "none of its inputs has a gradient"
    rounding = ", within the rounding of its number type" if any(f.rounding for f in findings) else ""
    if node.function_class is not None:
        return "agrees", f"its backward agrees with central differences{rounding}"
    if not explained:
        return "no rule yet", f"autograd and central differences agree{rounding}"
    return "agrees", f"our rule, autograd and central differences agree{rounding}"


def _rule_is_right(finding: _Finding) -> bool:
    measured, ours = finding.measured or {}, finding.ours
    if ours is None or finding.finite is None:
        return False
    return all(
        abs(float(ours[i]) - measured[i]) <= max(finding.finite.tolerance, 1e-6 * abs(measured[i]))
        for i in finding.off or ()
        if i in measured
    )


def _wrong(graph: Graph, finding: _Finding) -> Iterator[Wrong]:
    value = graph.values[finding.edge.value] if finding.edge.value is not None else None
    shape = value.shape if value is not None else (finding.got.numel(),)
    pairs = 2 if value is not None and value.dtype.is_complex else 1
    for place in dict.fromkeys(element // pairs for element in [*(finding.off or ()), *finding.rule_off][:8]):
        sides = [
            _number(side, place, pairs) for side in (finding.ours, None if finding.missing else finding.got)
        ]
        measured = finding.measured or {}
        parts = [measured[i] for i in range(place * pairs, place * pairs + pairs) if i in measured]
        finite = (complex(*parts) if pairs == 2 else parts[0]) if len(parts) == pairs else None
        yield Wrong(finding.label, unravelled(place, shape), sides[0], sides[1], finite)


def _number(side: Tensor | None, place: int, pairs: int) -> float | complex | None:
    if side is None:
        return None
    parts = side[place * pairs : place * pairs + pairs].tolist()
    return complex(*parts) if pairs == 2 else float(parts[0])


def _at_kink(probe: Probe, finding: _Finding, elements: list[int], choice: str) -> AtKink | None:
    places = list(dict.fromkeys(probe.index(element) for element in elements[:8]))
    if not places:
        return None
    if not choice:
        taken = f"{float(finding.got[elements[0]]):.4g}"
        choice = f"the one-sided derivatives differ here; PyTorch's gradient there is {taken}"
    return AtKink(finding.label, tuple(places), len(elements), choice)


def _worst(differences: list[Difference | None]) -> Difference | None:
    found = [each for each in differences if each is not None]
    return max(found, key=lambda d: (d.largest / d.tolerance if d.tolerance else d.largest, d.largest), default=None)


def _largest(
    label: str,
    got: Tensor,
    other: Tensor,
    tolerance: Tensor,
    shape: tuple[int, ...] | None,
    paired: bool,
    index: Callable[[int], tuple[int, ...]] | None = None,
) -> Difference:
    apart = (got - other).abs()
    if not apart.numel():
        return Difference(0.0, label, None, 0.0)
    place = int(torch.where(apart.isnan(), float("inf"), apart - tolerance).argmax())
    if apart[place] <= tolerance[place]:
        place = int(apart.argmax())
    if index is None:
        where = unravelled(place // 2 if paired else place, shape or ())
    else:
        where = index(place)
    return Difference(float(apart[place]), label, where, float(tolerance[place]))


def _outside(got: Tensor, other: Tensor, tolerance: Tensor) -> list[int]:
    apart = ~(((got - other).abs() <= tolerance) | (got == other) | (got.isnan() & other.isnan()))
    found: list[int] = apart.nonzero()[:, 0].tolist()
    return found


def _rms(gradient: Tensor) -> float:
    return float(gradient.square().mean().sqrt()) if gradient.numel() else 0.0


def _floor(gradient: Tensor) -> float:
    """What counts as nothing at all: float32's smallest number, so that what underflows raises no alarm."""
    return torch.finfo(torch.float32).tiny


# -- told -------------------------------------------------------------------------------------------------------------


def _told(verification: Verification) -> document.Document:
    explained, total = verification.coverage
    count = Counter(row.verdict for row in verification.rows)
    words = ", ".join(f"{count[kind]} {kind}" for kind in _WORST if count[kind])
    largest = _worst([d for row in verification.rows for d in (row.rule_difference, row.finite_difference)])
    summary = document.Verdict(
        "disagrees" if verification.failures else "agrees",
        (f"{len(verification.rows)} nodes: {words}; {explained} of {total} explained by a rule",),
        largest.largest if largest else None,
        largest.tolerance if largest else None,
    )
    headers = ("node", "name", "line", "verdict", "rule", "differences", "tolerance", "why")
    table = document.Table(headers, tuple(_cells(row) for row in verification.rows), "every node")
    failures = tuple(_failure(row) for row in verification.failures)
    return document.Document(
        ("Proof",), (summary,), (document.Section(("Every node",), "proof", "overview", (table,)), *failures)
    )


def _cells(row: Row) -> tuple[document.Text, ...]:
    return tuple(
        (cell,)
        for cell in (
            str(row.node.index),
            row.node.name,
            str(row.place or ""),
            row.verdict,
            _figure(row.rule_difference),
            _figure(row.finite_difference),
            "" if row.tolerance is None else f"{row.tolerance:.1e}",
            row.reason,
        )
    )


def _figure(difference: Difference | None) -> str:
    return "" if difference is None else f"{difference.largest:.1e}"


def _failure(row: Row) -> document.Section:
    blocks: list[document.Block] = []
    if row.place is not None:
        line: document.Text = (f"{row.place}: ", document.Code(row.place.expression)) if row.place.expression else (
            str(row.place),
        )
        blocks.append(document.Paragraph(line))
    told = _worst([row.rule_difference, row.finite_difference])
    blocks.append(
        document.Verdict("disagrees", (row.reason,), told.largest if told else None, told.tolerance if told else None)
    )
    if row.wrong:
        headers = ("element", "rule", "autograd", "central difference")
        cells = tuple(
            tuple((text,) for text in (_element(w), _said(w.rule), _said(w.autograd), _said(w.finite)))
            for w in row.wrong
        )
        blocks.append(document.Table(headers, cells, "the wrong elements, side by side"))
    title = (f"{row.node.name}, node {row.node.index}",)
    return document.Section(title, f"proof-node-{row.node.index}", "note", tuple(blocks))


def _element(wrong: Wrong) -> str:
    return f"{wrong.argument}{list(wrong.index)}" if wrong.index else wrong.argument


def _said(number: Any) -> str:
    return "none" if number is None else f"{number:.8g}"
