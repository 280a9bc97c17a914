"""The rows of a gradient check: the verdict on each node in words, and what the rows say of each step of a derivation.

A document and `verify` give one verdict, because it is one row. Two more comparisons stand beside the rows: our own
number as the document shows it, which came down the whole chain of our rules, and the rule of a call of several
operations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from chainrule.derivation.backprop import Contribution, Derivation, Step
from chainrule.document import Kind
from chainrule.execution.experiment import widened
from chainrule.execution.random_rounding import RandomRounding, spread
from chainrule.graph.comparison import FLOAT32, MARGIN, Comparison, compare, rounding, unravel, worst
from chainrule.graph.graph import Graph, Node, Place
from chainrule.graph.snapshot import ParameterUpdate, Snapshot, has_numbers
from chainrule.graph.trees import reach
from chainrule.rules import Applied, reduce_to_shape
from chainrule.rules.optimizers import terms
from chainrule.verification.differences import ArgumentCheck, AtKink
from chainrule.verification.repair import Repair

_WORST: tuple[Kind, ...] = ("disagrees", "not checked", "by convention", "agrees", "not differentiable")


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
        again = "run again in float64, " if all(f.in_float64 for f in off) else ""
        return "disagrees", f"{again}the gradient of {names} is not the derivative that differences measure{beside}"
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
        return "by convention", f"{kinks[0].choice} ({where})"
    if not findings:
        return "not differentiable", "none of its inputs has a gradient"
    rounding = ", within the rounding of its number type" if any(f.rounding for f in findings) else ""
    compared = [f for f in findings if f.finite is not None or (explained and f.rule is not None)]
    if not compared or any(f not in compared and not f.missing for f in findings):
        return "not checked", "nothing independent of autograd was compared"
    if node.function_class is not None:
        return "agrees", f"its backward agrees with central differences{rounding}"
    if not explained:
        return "agrees", f"we have no rule for it; autograd and central differences agree{rounding}"
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


# -- the verdict on a step --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StepCheck:
    """The verdict, what is to be said beside it ("" for plain agreement), and the comparison that it rests on."""

    verdict: Kind
    reason: str = ""
    comparison: Comparison | None = None


class StepChecks:
    """The checks of one recording, each worked out when it is first asked for."""

    def __init__(self, graph: Graph, derivation: Derivation, row: Callable[[int], Row]) -> None:
        self._graph, self._derivation, self._row = graph, derivation, row

    @cached_property
    def _steps(self) -> dict[int, Step]:
        return {id(contribution): step for step in self._derivation.steps for contribution in step.contributions}

    def contribution(self, contribution: Contribution) -> StepCheck:
        """Of one contribution to a gradient: the row of the nodes that it came back through."""
        step = self._steps[id(contribution)]
        row = worst_row(self._row(node) for node in step.nodes)
        known = worst([row.rule_difference, row.finite_difference])
        reason = "" if row.verdict == "agrees" and row.rule_difference is not None else row.reason
        ours, recorded = contribution.gradient, contribution.recorded
        if row.verdict in ("disagrees", "not checked") or not has_numbers(ours) or not has_numbers(recorded):
            return StepCheck(row.verdict, reason, known)
        shown = compare(ours, recorded, count=self._path_length(step))
        if shown.agrees:
            return StepCheck(row.verdict, reason, shown)
        if len(step.operations) > 1 and not (of_call := self._of_call(step, contribution)).agrees:
            said = "the rule of the whole call is not what its operations give"
            return StepCheck("disagrees", said, of_call)
        grown = f"each step agrees; rounding on the way from the loss makes {shown.largest:.3g} between the two"
        return StepCheck(row.verdict, f"{reason}; {grown}" if reason else grown, known)

    def _path_length(self, step: Step) -> int:
        """How many nodes our number came through: each of them adds its roundings."""
        runs = (each for node in step.nodes for each in self._graph.nodes[node].executions)
        return 1 + max((each.order for each in runs if each.backward == step.backward), default=0)

    def _of_call(self, step: Step, contribution: Contribution) -> Comparison:
        """A call's own rule on what arrived in the recorded step. How far it rounds shows in float64."""
        assert step.rule is not None
        assert step.op is not None
        assert contribution.recorded is not None
        node = self._graph.nodes[step.nodes[0]]
        arrived = next((each.upstream for each in node.executions if each.backward == step.backward), step.upstream)
        wide = Applied({k: widened(v) for k, v in step.op.arguments.items()}, step.op.outs, step.op.name)
        ours, precise = (
            reduce_to_shape(found, tuple(contribution.recorded.shape))[0].double()
            for op, upstream in ((step.op, arrived), (wide, widened([*arrived])))
            if (found := step.rule.gradient(op, tuple(upstream), contribution.argument)) is not None
        )
        slack = 4 * (ours - precise).abs()
        return compare(ours.to(contribution.recorded.dtype), contribution.recorded, slack=slack)

    def gradient(self, value: int) -> StepCheck:
        """Of the whole gradient of a value: every node between it and the losses."""
        rows = [self._row(index) for index in self._behind(value)]
        wrong = [row for row in rows if row.verdict == "disagrees"]
        if wrong:
            at = f" ({wrong[0].place})" if wrong[0].place is not None else ""
            return StepCheck("disagrees", f"{wrong[0].node.name}, node {wrong[0].node.index}{at}: {wrong[0].reason}")
        open_ = [row for row in rows if row.verdict == "not checked" and row.rule_difference is None]
        if not rows or open_:
            return StepCheck("not checked", open_[0].reason if open_ else "no gradient flowed to it")
        return StepCheck("agrees")

    def _behind(self, value: int) -> list[int]:
        """The nodes that a value's gradient came through, that of a leaf itself with them."""
        leaf = {node.index for node in self._graph.nodes if node.leaf == value}
        own = {node for node in [self._graph.values[value].node] if node is not None}
        return sorted(set(reach(leaf or own, lambda node: self._senders.get(node, ()))) - (own - leaf))

    @cached_property
    def _senders(self) -> dict[int, list[int]]:
        found: dict[int, list[int]] = {}
        for node in self._graph.nodes:
            for edge in node.edges if any(g is not None for each in node.executions for g in each.upstream) else ():
                found.setdefault(edge.node, []).append(node.index)
        return found


def compare_update(new: Tensor, update: ParameterUpdate, optimizer: str) -> Comparison:
    """What the terms of an update give, with the parameter after the step, each element by itself.

    Rounding allows two last places of the parameter and MARGIN of the step. Where that is not enough, since the terms
    of a step may cancel, as a momentum and a gradient do, it allows MARGIN times how far random rounding moves it.
    """
    before, after = update.before, update.after
    eps = rounding(after.dtype)

    of_step = eps * (after - before).abs()

    def compared(of_terms: Tensor | float) -> Comparison:
        return compare(new, after, before.abs(), eps=2 * eps / MARGIN, slack=MARGIN * (of_step + of_terms))

    found = compared(0.0)
    return found if found.agrees else compared(_spread_of_step(update, optimizer))


def _spread_of_step(update: ParameterUpdate, optimizer: str) -> Tensor:
    """How far the rounding of the parameter's type moves the step that is added to it."""

    def step(rounding: RandomRounding | None, _: bool = True) -> Tensor:
        state = {name: each for name, each in update.state_before.items() if name != "step"}  # which is exact
        given = widened([update.before, update.grad, state])
        before, gradient, state = given if rounding is None else rounding.moved(given)
        state = update.state_before | state
        wide = replace(update, start=Snapshot.of(before), gradient=Snapshot.of(gradient), state_before=state)
        with rounding if rounding is not None else nullcontext():
            worked_out = terms(wide, optimizer)
        assert worked_out is not None
        value = worked_out[-2].value
        return value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)

    return spread(step, update.before.dtype.to_real(), step(None), None).expand(update.before.shape)
