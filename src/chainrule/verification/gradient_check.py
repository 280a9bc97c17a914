"""The proof: at each node our rule, autograd, and a central difference in float64 are held against each other.

What is compared is the gradient that left a node in the recorded step, given the upstream gradient u that reached it:
(1) our rule's VJP on the recorded values; (2) autograd's recorded gradient; (3) u^T J measured by running the operation
again in float64 on both sides of the recorded point. Element by element for at most 64 elements (and 4,096 outputs);
above that along random directions v, by the dot-product test <u, J v> = <J^T u, v>, and where that fails at single
elements, to find which are wrong.

Tolerance. A gradient computed with rounding eps is a sum of terms; it may be off by 8 eps times the sum of the terms'
magnitudes, here sum_i |u_i J_ij|. Along a direction that is 8 eps times the root of the sum of their squares, since
independent roundings add up so, and one float32 rounding of the sum of magnitudes for the summation. Central
differences are good to about 1e-10 of the terms, so eps counts as at least that. A disagreement is called only after
other step sizes, one-sided differences (a kink?), and autograd run again in float64 and in the recorded type (mere
rounding?).

Nothing global is changed, the state of the random generators included.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from chainrule.derivation.backprop import applied, rule_of
from chainrule.document import Kind
from chainrule.errors import RequestError
from chainrule.execution.experiment import CannotRunError, Experiment, nothing_left_behind, real
from chainrule.graph.comparison import FLOAT32, Comparison, compare, rounding, unravel, worst
from chainrule.graph.graph import Edge, Graph, Node, Passage, Place, Value
from chainrule.graph.selection import select
from chainrule.rules import Applied, Rule, plain
from chainrule.verification.differences import (
    LARGE,
    AtKink,
    Case,
    Finding,
    at_known_kink,
    compare_rule,
    measure,
    settle,
    unmeasured,
)
from chainrule.verification.quick_check import glance, slabs
from chainrule.verification.repair import Repair, recognise

_SYMMETRIC = "its argument stands for a symmetric matrix, of which it reads one triangle"
_NORMALISED = "the statistics that it is given are those of its `input`, whose gradient counts their change too"
_CONSTRAINED = {
    "NativeLayerNormBackwardBackward": _NORMALISED,
    "NativeBatchNormBackwardBackward": _NORMALISED,
    "CholeskyBackward": _SYMMETRIC,
    "LinalgCholeskyExBackward": _SYMMETRIC,
    "LinalgEighBackward": _SYMMETRIC,
    "CholeskyInverseBackward": "its argument stands for a triangular matrix",
    "CholeskySolveBackward": "its argument stands for a triangular matrix",
    "CtcLossBackward": "its argument stands for logarithms of probabilities, which add up to one",
}
MEMORY = 2 * 2**30  # bytes that the check of one node may take, where nothing else is said
Senders = dict[int, list[tuple[Node, Edge]]]
UNKEPT = "its numbers were not kept: recording.recompute gives them"
_WORST: tuple[Kind, ...] = ("disagrees", "kink", "not checked", "no rule yet", "agrees", "not differentiable")


@dataclass(frozen=True, slots=True)
class Wrong:
    """One element on which the sides differ: what each of them says (None: that side says nothing)."""

    argument: str
    index: tuple[int, ...]
    rule: float | complex | None
    autograd: float | complex | None
    finite: float | complex | None


@dataclass(frozen=True, slots=True)
class Row:
    """The proof of one node. `tolerance` is the one at its largest difference."""

    node: Node
    place: Place | None
    verdict: Kind
    reason: str
    arguments: tuple[str, ...] = ()
    rule_difference: Comparison | None = None
    finite_difference: Comparison | None = None
    tolerance: float | None = None
    kinks: tuple[AtKink, ...] = ()
    wrong: tuple[Wrong, ...] = ()
    repairs: tuple[Repair, ...] = ()


@dataclass(frozen=True, repr=False)
class GradientCheck:
    """The check of a step: one row a node, in the order of the graph.

    `coverage` is (explained by a rule, total) of the nodes that were looked at; `left_out` counts the nodes that were
    not, because of what was asked for, which `chosen` says in words. What was left out is not proved.
    """

    rows: tuple[Row, ...]
    coverage: tuple[int, int]
    left_out: int = 0
    chosen: str = ""

    @property
    def passed(self) -> bool:
        """Whether nothing disagrees, of what was looked at."""
        return not self.failures

    @property
    def failures(self) -> tuple[Row, ...]:
        """The rows that disagree."""
        return tuple(row for row in self.rows if row.verdict == "disagrees")

    def __repr__(self) -> str:
        explained, total = self.coverage
        result = "passed" if self.passed else f"{len(self.failures)} disagree"
        left = f", {self.left_out} not looked at" if self.left_out else ""
        return f"<chainrule.Verification: {result}, {total} nodes, {explained} explained by a rule{left}>"


def verify(
    graph: Graph,
    *,
    only: str | Iterable[str] | None = None,
    sample: float | None = None,
    memory: int = MEMORY,
    progress: Callable[[int, int], None] | None = None,
) -> GradientCheck:
    """Prove the nodes of a recorded step: all of them, or those that `only` names, or a random share, `sample`.

    `only` is a pattern, or several: a part of a node's name, of its operation's, of a module's path, or of the name of
    one of its outputs; with dots or a `*` it is held against whole parts of a path (`h.3.*`). `sample` draws the same
    nodes each time. `memory` is what the check of one node may take, in bytes: many elements are looked at in chunks
    that fit, and where a single run does not fit the node is not checked, and says so. `progress(done, total)` is
    called after each node. Raises MissingError where `only` names nothing, RequestError for a value that means nothing.
    """
    if memory <= 0:
        raise RequestError(f"memory={memory!r} leaves nothing to work with. Give the bytes a check may take, above 0.")
    nodes, chosen = select(graph, only, sample)
    senders = _senders(graph)
    rows, explained = [], 0
    with nothing_left_behind():
        for done, node in enumerate(nodes, 1):
            op, rule = _meaning(graph, node)
            explained += rule is not None or node.leaf is not None
            rows.append(_row(graph, node, op, rule, senders, memory))
            if progress is not None:
                progress(done, len(nodes))
    return GradientCheck(tuple(rows), (explained, len(nodes)), len(graph.nodes) - len(nodes), chosen)


def _senders(graph: Graph) -> Senders:
    """The nodes that lead straight to each leaf, with the edges that do."""
    found: Senders = {}
    for node in graph.nodes:
        for edge in node.edges:
            if graph.nodes[edge.node].leaf is not None:
                found.setdefault(edge.node, []).append((node, edge))
    return found


def _meaning(graph: Graph, node: Node) -> tuple[Applied | None, Rule | None]:
    if node.operation is None:
        return None, None
    op = applied(graph, graph.operations[node.operation])
    try:
        return op, rule_of(graph, node, op)
    except Exception:  # a rule that cannot even say whether it applies
        return op, None


class Rows:
    """The rows of single nodes, each worked out when it is first asked for.

    A row that `verify` has not given yet compares our rule with autograd alone, which is cheap. Where the two differ,
    and where there is no rule, central differences decide there as well.
    """

    def __init__(self, graph: Graph, measured: Mapping[int, Row]) -> None:
        self._graph, self._rows = graph, dict(measured)
        self._senders = _senders(graph)

    def __getitem__(self, index: int) -> Row:
        if index not in self._rows:
            node = self._graph.nodes[index]
            with nothing_left_behind():
                meaning = _meaning(self._graph, node)
                self._rows[index] = _row(self._graph, node, *meaning, self._senders, MEMORY, differences=False)
        return self._rows[index]


def _row(
    graph: Graph,
    node: Node,
    op: Applied | None,
    rule: Rule | None,
    senders: Senders,
    memory: int,
    differences: bool = True,
) -> Row:
    if node.leaf is not None:
        return worst_row(_sums(graph, node, senders.get(node.index, [])))
    if not node.passages:
        return _unchecked(node, "no gradient flowed through it")
    return worst_row(_passage(Case(graph, node, each, op, rule), memory, differences) for each in node.passages)


def worst_row(rows: Iterable[Row]) -> Row:
    """The row that a summary of several shows."""
    return min(rows, key=lambda row: _WORST.index(row.verdict))


def _unchecked(node: Node, reason: str) -> Row:
    return Row(node, node.place, "not checked", reason)


# -- leaves -----------------------------------------------------------------------------------------------------------


def _sums(graph: Graph, node: Node, senders: list[tuple[Node, Edge]]) -> list[Row]:
    """What was accumulated in a leaf, and what each `torch.autograd.grad` gave as its gradient."""
    assert node.leaf is not None
    leaf = graph.values[node.leaf]
    arrived: dict[int, list[Tensor]] = {}
    for other, edge in senders:
        for passage in other.passages:
            share = passage.downstream[edge.position] if edge.position < len(passage.downstream) else None
            if share is not None:
                arrived.setdefault(passage.backward, []).append(share)
    given = [
        _sum(node, leaf, arrived.get(backward.index, []), backward.given[node.leaf], None, "the gradient that "
             "torch.autograd.grad gave of it")
        for backward in graph.backwards if node.leaf in backward.given
    ]  # fmt: skip
    shares = [each for index in sorted(arrived) if graph.backwards[index].accumulates for each in arrived[index]]
    if given and not shares:
        return given
    left = next((graph.sent(p) for p in graph.parameters.values() if p.value == node.leaf), None)
    return [_sum(node, leaf, shares, leaf.grad, left, "its gradient"), *given]


def _sum(node: Node, leaf: Value, arrived: list[Tensor], gradient: Tensor | None, left: Tensor | None, it: str) -> Row:
    """What edges into a leaf brought, summed, against the gradient that arrived and what stands in `.grad`."""
    if leaf.has_gradient and (gradient is None or any(each.is_meta for each in (gradient, *arrived))):
        return _unchecked(node, UNKEPT)
    if gradient is None or not arrived:
        return _unchecked(node, "no gradient was accumulated in it")
    uses = "its only use" if len(arrived) == 1 else f"{len(arrived)} uses"
    summed = f"{it} is the sum of what came back from {uses}"
    if gradient.numel() > LARGE and (exact := _exactly(gradient, arrived, left)) is not None:
        return Row(node, leaf.place, "agrees", summed, ("grad",), exact, tolerance=exact.tolerance)
    brought = [real(share) for share in arrived]
    recorded, total = real(gradient), sum(brought[1:], brought[0])
    if not recorded.isfinite().all():
        return _unchecked(node, "its gradient is not finite")
    terms, eps = sum((share.abs() for share in brought), torch.zeros_like(total)), rounding(leaf.dtype)
    found = compare(recorded, total, terms, eps=eps, argument="grad")
    pairs = 2 if leaf.dtype.is_complex else 1
    index = unravel(found.index[0] // pairs, leaf.shape) if found.index else None
    at = replace(found, index=index, off=())
    row = Row(node, leaf.place, "agrees", "", ("grad",), at, tolerance=at.tolerance)
    if not found.agrees:
        places = dict.fromkeys(i // pairs for i in found.off[:8])
        sides = [(unravel(i, leaf.shape), _number(total, i, pairs), _number(recorded, i, pairs)) for i in places]
        wrong = tuple(Wrong("grad", index, ours, theirs, None) for index, ours, theirs in sides)
        reason = f"{it} is not the sum of what came back from {uses}"
        return replace(row, verdict="disagrees", reason=reason, wrong=wrong)
    if left is not None and not _holds(left, total, terms):
        if any(_holds(left, each, terms) for each in itertools.accumulate(reversed(brought))):
            return replace(row, reason=f"{summed}; `.grad` was cleared in between, and holds what came after that")
        reason = "`.grad` holds more than what its uses brought: an earlier gradient, or the work of a hook"
        return replace(row, verdict="not checked", reason=reason)
    return replace(row, reason=summed)


def _holds(left: Tensor, total: Tensor, terms: Tensor) -> bool:
    """Whether a sum stands in `.grad`."""
    return compare(real(left), total, terms, eps=rounding(left.dtype)).agrees


def _exactly(recorded: Tensor, arrived: list[Tensor], left: Tensor | None) -> Comparison | None:
    """A large leaf's gradient where it is, to the last bit, the sum of what arrived, and what stands in `.grad`."""
    if any(g.layout != torch.strided for g in (recorded, *arrived)) or not _finite(recorded):
        return None
    if left is not None and left is not recorded and not torch.equal(left, recorded):
        return None
    if any(g.shape != recorded.shape for g in arrived):
        return None
    if not all(torch.equal(whole, sum(parts[1:], parts[0])) for whole, *parts in slabs(recorded, *arrived)):
        return None
    return compare(recorded, recorded, argument="grad")


# -- one passage through one node -------------------------------------------------------------------------------------


def _passage(case: Case, memory: int, differences: bool) -> Row:
    graph, node, passage = case.graph, case.node, case.passage
    differences = differences or case.rule is None
    if all(g is None for g in passage.upstream):
        return _unchecked(node, "no gradient flowed through it")
    if any(g is not None and g.is_meta for g in (*passage.upstream, *passage.downstream)) or (
        case.op is not None and not case.op.has_numbers
    ):
        return _unchecked(node, UNKEPT)
    if not all(map(_finite, passage.upstream)):
        return _unchecked(node, "the gradient that reached it is not finite (NaN or infinity)")
    if not all(map(_finite, passage.downstream)):
        return _unchecked(node, "the gradient that it gave is not finite (NaN or infinity)")
    if all(g is None for g in passage.downstream) and node.function_class is None:
        return _unchecked(node, "no gradient was asked of it for any of its inputs")
    try:
        shares, broken = case.shares(), ""
    except Exception as error:  # whatever a rule does wrong is a result to show
        shares, broken = {}, f"our rule fails here: {error}"
    findings: list[Finding] = []
    obstacle, experiment = "", None
    try:
        experiment = _experiment(graph, node, passage, memory)
        for edge in node.edges:
            if edge.argument is None:
                obstacle = "which argument one of its gradients belongs to is not known"
                continue
            share = shares.get(edge.position)
            ours = share.gradient if share else None
            if differences:
                finding = glance(case, experiment, edge, ours) or measure(case, experiment, edge)
            else:
                finding = at_known_kink(case, unmeasured(edge, case, ours))
            if finding is not None:
                findings.append(finding)
        settle(experiment, findings, graph)
    except CannotRunError as error:
        obstacle = str(error)
    except Exception as error:  # a user's function, or an operation without float64, may raise anything
        obstacle = (
            f"it cannot be run again ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})"
        )
    if obstacle:
        known = {finding.edge.position for finding in findings}
        for edge in node.edges:
            share = shares.get(edge.position)
            finding = unmeasured(edge, case, share.gradient if share else None)
            if edge.position not in known and finding is not None:
                findings.append(finding)
    for finding in findings:
        compare_rule(case, experiment, finding, shares.get(finding.edge.position))
    explained = case.rule is not None and all(f.ours is not None or f.missing for f in findings)
    if not differences and (broken or not explained or any(f.rule_off or f.missing for f in findings)):
        return _passage(case, memory, differences=True)
    row = _judged(graph, node, findings, obstacle, broken, explained)
    if not differences and row.verdict == "agrees":
        return replace(row, reason="our rule and autograd agree")
    if experiment is None or not experiment.custom or row.verdict != "disagrees":
        return row
    return replace(row, repairs=recognise(experiment, findings))


def _finite(gradient: Tensor | None) -> bool:
    """Whether nothing in it is NaN or infinite: one pass where its sum can tell."""
    if gradient is None or gradient.layout != torch.strided:
        return True
    if gradient.numel() > LARGE and bool(gradient.sum().isfinite()):
        return True  # a finite sum has finite terms, and takes no memory of its own
    return bool(gradient.isfinite().all())


def _experiment(graph: Graph, node: Node, passage: Passage, memory: int) -> Experiment:
    if node.name == "CopySlices":
        raise CannotRunError("it stands for a write to a part of a tensor, which is not run again on its own")
    if node.operation is None:
        raise CannotRunError("the recording does not hold the operation that made it")
    constraint = _CONSTRAINED.get(plain(node.name))
    if graph.operations[node.operation].arguments.get("hermitian") is True:
        constraint = _SYMMETRIC
    if constraint is not None:
        raise CannotRunError(f"{constraint}, so its elements cannot be moved one by one")
    experiment = Experiment(graph, node, passage.upstream, memory)
    if experiment.random_state is not None and all(g is None or not g.any() for g in passage.downstream):
        raise CannotRunError("PyTorch takes what was drawn as given, and passes no gradient back through the draw")
    if experiment.custom and not experiment.repeats():
        raise CannotRunError(
            "running its forward again does not give what was recorded: it draws random numbers, or keeps a state"
        )
    return experiment


# -- the verdict ------------------------------------------------------------------------------------------------------


def _judged(graph: Graph, node: Node, findings: list[Finding], obstacle: str, broken: str, explained: bool) -> Row:
    verdict, reason = _verdict(node, findings, obstacle, broken, explained)
    finite = worst([f.finite for f in findings])
    rule = worst([f.rule for f in findings])
    told = worst([finite, rule])
    wrong = tuple(each for f in findings for each in _wrong(graph, f)) if verdict == "disagrees" else ()
    kinks = tuple(f.kinks for f in findings if f.kinks is not None)
    arguments = tuple(f.label for f in findings if not f.missing or f.off)
    return Row(
        node, node.place, verdict, reason, arguments, rule, finite, told.tolerance if told else None, kinks, wrong
    )


def _verdict(node: Node, findings: list[Finding], obstacle: str, broken: str, explained: bool) -> tuple[Kind, str]:
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


def _rule_is_right(finding: Finding) -> bool:
    measured, ours = finding.measured or {}, finding.ours
    if ours is None or finding.finite is None:
        return False
    off = [i for i in finding.off or () if i in measured]
    differences = torch.tensor([measured[i] for i in off], dtype=torch.float64)
    return compare(ours[off].cpu(), differences, eps=FLOAT32, slack=finding.finite.tolerance).agrees


def _wrong(graph: Graph, finding: Finding) -> Iterator[Wrong]:
    value = graph.values[finding.edge.value] if finding.edge.value is not None else None
    shape = value.shape if value is not None else (finding.got.numel(),)
    pairs = 2 if value is not None and value.dtype.is_complex else 1
    for place in dict.fromkeys(element // pairs for element in [*(finding.off or ()), *finding.rule_off][:8]):
        sides = [_number(side, place, pairs) for side in (finding.ours, None if finding.missing else finding.got)]
        measured = finding.measured or {}
        parts = [measured[i] for i in range(place * pairs, place * pairs + pairs) if i in measured]
        finite = (complex(*parts) if pairs == 2 else parts[0]) if len(parts) == pairs else None
        yield Wrong(finding.label, unravel(place, shape), sides[0], sides[1], finite)


def _number(side: Tensor | None, place: int, pairs: int) -> float | complex | None:
    if side is None:
        return None
    parts = side[place * pairs : place * pairs + pairs].tolist()
    return complex(*parts) if pairs == 2 else float(parts[0])
