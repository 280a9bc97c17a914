"""The rows of a gradient check: the verdict on each node, in words, from what was found of its arguments."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from chainrule.document import Kind
from chainrule.graph.comparison import FLOAT32, Comparison, compare, unravel, worst
from chainrule.graph.graph import Graph, Node, Place
from chainrule.verification.differences import ArgumentCheck, AtKink
from chainrule.verification.repair import Repair

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
    """The check of one node. `tolerance` is the one at its largest difference."""

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

    `coverage` is (explained by a rule, total) of the nodes that were checked. `left_out` counts the nodes that were not
    chosen, and `chosen` says in words which were.
    """

    rows: tuple[Row, ...]
    coverage: tuple[int, int]
    left_out: int = 0
    chosen: str = ""

    @property
    def passed(self) -> bool:
        """Whether nothing disagrees, of what was checked."""
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


def worst_row(rows: Iterable[Row]) -> Row:
    """The row that a summary of several shows."""
    return min(rows, key=lambda row: _WORST.index(row.verdict))


# -- the verdict ------------------------------------------------------------------------------------------------------


def judged(graph: Graph, node: Node, findings: list[ArgumentCheck], obstacle: str, broken: str, explained: bool) -> Row:
    """The row of a node: `obstacle` says why differences could not be taken, `broken` why our rule gave nothing."""
    verdict, reason = _verdict(node, findings, obstacle, broken, explained)
    finite = worst([f.finite for f in findings])
    rule = worst([f.rule for f in findings])
    most = worst([finite, rule])
    wrong = tuple(each for f in findings for each in _wrong(graph, f)) if verdict == "disagrees" else ()
    kinks = tuple(f.kinks for f in findings if f.kinks is not None)
    arguments = tuple(f.label for f in findings if not f.missing or f.off)
    return Row(
        node, node.place, verdict, reason, arguments, rule, finite, most.tolerance if most else None, kinks, wrong
    )


def _verdict(
    node: Node, findings: list[ArgumentCheck], obstacle: str, broken: str, explained: bool
) -> tuple[Kind, str]:
    off = [f for f in findings if f.off]
    rule_off = [f for f in findings if f.rule_off]
    if off:
        names = ", ".join(f"`{f.label}`" for f in off)
        if all(f.missing for f in off):
            return "disagrees", f"no gradient came back for {names}, though the output depends on it"
        beside = ""
        if all(f.ours is not None for f in off):
            beside = "; our rule differs too" if rule_off else "; our rule agrees with autograd"
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


def _rule_is_right(finding: ArgumentCheck) -> bool:
    measured, ours = finding.measured or {}, finding.ours
    if ours is None or finding.finite is None:
        return False
    off = [i for i in finding.off or () if i in measured]
    differences = torch.tensor([measured[i] for i in off], dtype=torch.float64)
    return compare(ours[off].cpu(), differences, eps=FLOAT32, slack=finding.finite.tolerance).agrees


def _wrong(graph: Graph, finding: ArgumentCheck) -> Iterator[Wrong]:
    value = graph.values[finding.edge.value] if finding.edge.value is not None else None
    shape = value.shape if value is not None else (finding.got.numel(),)
    pairs = 2 if value is not None and value.dtype.is_complex else 1
    for place in dict.fromkeys(element // pairs for element in [*(finding.off or ()), *finding.rule_off][:8]):
        sides = [number_at(side, place, pairs) for side in (finding.ours, None if finding.missing else finding.got)]
        measured = finding.measured or {}
        parts = [measured[i] for i in range(place * pairs, place * pairs + pairs) if i in measured]
        finite = (complex(*parts) if pairs == 2 else parts[0]) if len(parts) == pairs else None
        yield Wrong(finding.label, unravel(place, shape), sides[0], sides[1], finite)


def number_at(side: Tensor | None, place: int, pairs: int) -> float | complex | None:
    """One element of a flat tensor of real numbers, `pairs` of them."""
    if side is None:
        return None
    parts = side[place * pairs : place * pairs + pairs].tolist()
    return complex(*parts) if pairs == 2 else float(parts[0])
