"""The rows of a gradient check: the verdict on each node in words, and what the rows say of each step of a derivation.

A document and `verify` give one verdict, because it is one row. Two more comparisons stand beside the rows: our own
number as the document shows it, which came down the whole chain of our rules, and the rule of a call of several
operations.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeVar

import torch
from torch import Tensor

from chainrule.derivation.backprop import Contribution, Derivation, Step
from chainrule.document import Kind
from chainrule.execution.experiment import widened
from chainrule.graph.comparison import FLOAT32, Comparison, compare, dense, rms, rounding, unravel, worst
from chainrule.graph.graph import Graph, Node, Place
from chainrule.graph.snapshot import has_numbers
from chainrule.graph.trees import gathered
from chainrule.numbers import many
from chainrule.rules import Applied, Rule, reduce_to_shape
from chainrule.verification.differences import ONE_SIDED, ArgumentCheck, AtConvention
from chainrule.verification.repair import Repair
from chainrule.verification.update_check import UpdateCheck

_WORST: tuple[Kind, ...] = ("disagrees", "not checked", "by convention", "agrees", "not differentiable")
FORWARD = "forward pass"
UNSEEN = "unseen write"
RULE_ALONE = "our rule and autograd agree"
UNKEPT = "its numbers were not kept: recording.recompute gives them"
NO_GRADIENT = "no gradient flowed through it"
NOT_ASKED = "no gradient was asked of it for any of its inputs"
NOT_ACCUMULATED = "no gradient was accumulated in it"
SAVED = "checked when it was saved: "  # what a reason begins with whose node a file does not let run again
LISTED = 12  # elements of a gradient of which a row holds both numbers


@dataclass(frozen=True, slots=True)
class Wrong:
    """One element on which the sides differ: what each of them says (None: that side says nothing)."""

    argument: str
    index: tuple[int, ...]
    rule: float | complex | None
    autograd: float | complex | None
    finite: float | complex | None


@dataclass(frozen=True, slots=True)
class Differences:
    """The first elements of the gradient of one argument, by autograd and by central differences.

    `count` is how many elements the gradient has, `taken` how many were measured. `central` is empty where single
    elements were not measured, but random directions; `found` compares the two, wherever it was measured.
    """

    argument: str
    value: int | None
    count: int
    taken: int
    autograd: tuple[float | complex, ...]
    central: tuple[float | complex | None, ...]
    found: Comparison


@dataclass(frozen=True, slots=True)
class Row:
    """The check of one node. `tolerance` is the one at its largest difference.

    `own` says what of the user's own is checked here: `autograd.Function`, `custom operator`, `hook`, `forward pass`
    where that was not recorded, `unseen write` where the recorded numbers contradict each other; "" for PyTorch's.
    """

    node: Node
    place: Place | None
    verdict: Kind
    reason: str
    arguments: tuple[str, ...] = ()
    rule_difference: Comparison | None = None
    finite_difference: Comparison | None = None
    tolerance: float | None = None
    conventions: tuple[AtConvention, ...] = ()
    wrong: tuple[Wrong, ...] = ()
    repairs: tuple[Repair, ...] = ()
    measured: tuple[Differences, ...] = ()
    own: str = ""


@dataclass(frozen=True, repr=False)
class GradientCheck:
    """The check of a step: one row a node, in the order of the graph, and the updates of the parameters.

    `coverage` is (explained by a rule, total) of the nodes that were checked. `left_out` counts the nodes that were not
    chosen, and `chosen` says in words which were. `names` says where a report shows a node (`Backward 2, Cube`).
    """

    rows: tuple[Row, ...]
    coverage: tuple[int, int]
    left_out: int = 0
    chosen: str = ""
    updates: tuple[UpdateCheck, ...] = ()
    names: Mapping[int, str] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether something was checked, nothing disagrees, and nothing of the user's own went unchecked."""
        return self.verdict == "agrees"

    @property
    def verdict(self) -> Kind:
        """The verdict on the whole step: `agrees` where it passed."""
        if self.failures or any(update.verdict == "disagrees" for update in self.updates):
            return "disagrees"
        return "agrees" if self.proved and not self.unchecked else "not checked"

    @property
    def proved(self) -> bool:
        """Whether anything was checked and found right."""
        return any(row.verdict in ("agrees", "by convention") for row in self.rows)

    @property
    def idle(self) -> tuple[Row, ...]:
        """The rows of nodes without a gradient: there was nothing to check."""
        nothing = (NO_GRADIENT, NOT_ASKED, NOT_ACCUMULATED)
        return tuple(row for row in self.rows if row.verdict == "not checked" and row.reason in nothing)

    @property
    def failures(self) -> tuple[Row, ...]:
        """The rows that disagree."""
        return tuple(row for row in self.rows if row.verdict == "disagrees")

    @property
    def unchecked(self) -> tuple[Row, ...]:
        """The rows of the user's own that could not be checked: a Function, an operator, a hook, an unseen write."""
        return tuple(row for row in self.rows if row.own and row.verdict == "not checked")

    @property
    def of_own(self) -> dict[int, tuple[Kind, str]]:
        """Verdict and reason of each node of the user's own functions: a file does not keep their code."""
        return {row.node.index: (row.verdict, row.reason) for row in self.rows if row.own and row.node.function_class}

    def __repr__(self) -> str:
        explained, total = self.coverage
        wrong = len(self.failures) + sum(update.verdict == "disagrees" for update in self.updates)
        result = "passed" if self.passed else f"{wrong} disagree" if wrong else "nothing was checked"
        if not wrong and self.unchecked:
            result = f"{len(self.unchecked)} of your own not checked"
        left = f", {self.left_out} not looked at" if self.left_out else ""
        return f"<chainrule.Verification: {result}, {total} nodes, {explained} explained by a rule{left}>"


Checked = TypeVar("Checked", Row, UpdateCheck)


def unchecked(node: Node, reason: str) -> Row:
    """The row of a node that is not checked, with the reason."""
    return Row(node, node.place, "not checked", reason)


def worst_row(rows: Iterable[Checked]) -> Checked:
    """The row that a summary of several shows."""
    return min(rows, key=lambda row: _WORST.index(row.verdict))


# -- the verdict ------------------------------------------------------------------------------------------------------


def judged(
    graph: Graph, node: Node, findings: list[ArgumentCheck], obstacle: str, broken: str, explained: Rule | None
) -> Row:
    """The row of a node, which is `explained` by a rule or not.

    `obstacle` says why differences could not be taken, `broken` why the rule gave nothing.
    """
    verdict, reason = _verdict(node, findings, obstacle, broken, explained)
    finite = worst([f.finite for f in findings])
    rule = worst([f.rule for f in findings])
    most = worst([finite, rule])
    wrong = tuple(each for f in findings for each in _wrong(graph, f)) if verdict == "disagrees" else ()
    conventions = tuple(each for f in findings for each in f.conventions)
    arguments = tuple(f.label for f in findings if not f.missing or f.off)
    return Row(
        node, node.place, verdict, reason, arguments, rule, finite, most.tolerance if most else None, conventions,
        wrong,
        measured=tuple(_measured(graph, f, f.finite) for f in findings if f.finite is not None and not f.missing),
        own=UNSEEN if verdict == "not checked" and any(f.changed for f in findings) else "",
    )  # fmt: skip


def _verdict(
    node: Node, findings: list[ArgumentCheck], obstacle: str, broken: str, explained: Rule | None
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
    breach = next((f for f in rule_off if f.breach), None)
    if breach is not None:
        return "disagrees", f"the gradient of `{breach.label}` is not what the convention says: {breach.breach}"
    if rule_off:
        names = ", ".join(f"`{f.label}`" for f in rule_off)
        if unmeasured := obstacle or next((f.unsettled for f in rule_off if f.unsettled), ""):
            return "disagrees", f"our rule and autograd differ in the gradient of {names}; {unmeasured}"
        return "disagrees", f"autograd and differences agree: our rule is wrong in the gradient of {names}"
    if broken:
        return "disagrees", broken
    trusted = explained is not None and explained.ours
    unsettled = next((f.unsettled for f in findings if f.unsettled), "")
    compared = [f for f in findings if f.finite is not None or (trusted and f.rule is not None)]
    incomplete = not compared or any(f not in compared and not f.missing for f in findings)
    if unsettled or (obstacle and (incomplete or not trusted)):
        known = explained and findings and not any(f.changed for f in findings)
        agreed = "our rule and autograd agree, but " if known else ""
        return "not checked", agreed + (unsettled or obstacle)
    conventions = [each for f in findings for each in f.conventions]
    if conventions and trusted and not incomplete and all(each.choice.startswith(ONE_SIDED) for each in conventions):
        # Our rule knows its kinks, and this is none of them: the differences are lost in rounding there.
        where = ", ".join(f"{each.count} elements of `{each.argument}`" for each in conventions)
        return "agrees", f"our rule and autograd agree; central differences do not settle at {where}"
    if conventions:
        return "by convention", by_convention(conventions)
    if not findings:
        return "not differentiable", "none of its inputs has a gradient"
    rounding = ", within the rounding of its number type" if any(f.rounding for f in findings) else ""
    if incomplete:
        return "not checked", "nothing independent of autograd was compared"
    if obstacle:
        return "agrees", f"our rule and autograd agree; no central difference was taken: {obstacle}"
    if node.function_class is not None and not explained:
        return "agrees", f"its backward agrees with central differences{rounding}"
    if not explained:
        return "agrees", f"we have no rule for it; autograd and central differences agree{rounding}"
    return "agrees", f"our rule, autograd and central differences agree{rounding}"


def by_convention(conventions: Iterable[AtConvention]) -> str:
    """What PyTorch takes where it does not take the derivative, at which elements, and who says so."""
    where: dict[tuple[str, str], list[str]] = {}
    for each in conventions:
        places = f"{many(each.count, 'element')} of the input `{each.argument}`"
        places += f", the first at {list(each.indices[0])}" if each.count > 1 else f", at {list(each.indices[0])}"
        where.setdefault((each.choice, each.source), []).append(places)
    return "; ".join(
        f"{choice} ({'; '.join(places)}{f'; source: {source}' if source else ''})"
        for (choice, source), places in where.items()
    )


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
        finite = _measured_at(finding.measured or {}, place, pairs)
        yield Wrong(finding.label, unravel(place, shape), sides[0], sides[1], finite)


def _measured(graph: Graph, finding: ArgumentCheck, found: Comparison) -> Differences:
    value, known = finding.edge.value, finding.measured or {}
    pairs = 2 if value is not None and graph.values[value].dtype.is_complex else 1
    count = finding.got.numel() // pairs
    places = range(min(count, LISTED)) if known else ()
    autograd = tuple(number_at(finding.got, place, pairs) or 0.0 for place in places)
    central = tuple(_measured_at(known, place, pairs) for place in places)
    return Differences(finding.label, value, count, len(known) // pairs, autograd, central, found)


def _measured_at(known: Mapping[int, float], place: int, pairs: int) -> float | complex | None:
    """One element of a measured gradient of real numbers, `pairs` of them; None where it was not measured."""
    parts = [known[i] for i in range(place * pairs, place * pairs + pairs) if i in known]
    return None if len(parts) < pairs else complex(*parts) if pairs == 2 else parts[0]


def number_at(side: Tensor | None, place: int, pairs: int) -> float | complex | None:
    """One element of a flat tensor of real numbers, `pairs` of them."""
    if side is None:
        return None
    parts = side[place * pairs : place * pairs + pairs].tolist()
    return complex(*parts) if pairs == 2 else float(parts[0])


# -- the verdict on a step --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StepCheck:
    """The verdict, what is to be said beside it ("" for plain agreement), and the comparison that it rests on.

    `measured` has the central differences of this contribution, where they were taken. Without a rule (`has_rule`) they
    are all that autograd is compared with.
    """

    verdict: Kind
    reason: str = ""
    comparison: Comparison | None = None
    measured: Differences | None = None
    has_rule: bool = True


NEVER = sys.maxsize  # the number of no node


class StepChecks:
    """The checks of one recording, each worked out when it is first asked for."""

    def __init__(self, graph: Graph, derivation: Derivation, row: Callable[[int], Row]) -> None:
        self._graph, self._derivation, self._row = graph, derivation, row
        self._firsts: dict[int, tuple[int, int]] = {}

    @cached_property
    def _steps(self) -> dict[int, Step]:
        return {id(contribution): step for step in self._derivation.steps for contribution in step.contributions}

    def contribution(self, contribution: Contribution) -> StepCheck:
        """Of one contribution to a gradient: the row of the nodes that it came back through."""
        step = self._steps[id(contribution)]
        rows = [self._row(node) for node in step.nodes]
        row = worst_row(rows)
        known = worst([row.rule_difference, row.finite_difference])
        ours, recorded = contribution.gradient, contribution.recorded
        measured = self._measured(rows, contribution)
        if step.rule is None:  # what the walk shows is autograd's number, which proves nothing about itself
            return StepCheck(row.verdict, row.reason, row.finite_difference, measured, has_rule=False)
        plain = row.verdict == "agrees" and row.finite_difference is not None and row.rule_difference is not None
        reason = "" if plain or row.reason == RULE_ALONE else row.reason
        if row.verdict in ("disagrees", "not checked") or not has_numbers(ours) or not has_numbers(recorded):
            return StepCheck(row.verdict, reason, known, measured)
        shown = compare(ours, recorded, count=self._path_length(step))
        if shown.agrees:
            return StepCheck(row.verdict, reason, shown, measured)
        if len(step.operations) > 1 and not (of_call := self._of_call(step, contribution)).agrees:
            said = "the rule of the whole call is not what its operations give"
            return StepCheck("disagrees", said, of_call)
        grown = f"each step agrees; rounding on the way from the loss makes {shown.largest:.3g} between the two"
        return StepCheck(row.verdict, f"{reason}; {grown}" if reason else grown, known, measured)

    def _measured(self, rows: list[Row], contribution: Contribution) -> Differences | None:
        """The differences of the one edge that sent this contribution, where there is one."""
        found = [each for row in rows for each in row.measured if each.value == contribution.value]
        if len(found) != 1 or not has_numbers(contribution.recorded):
            return None
        (measured,) = found
        sent = dense(contribution.recorded).reshape(-1)[: len(measured.autograd)].tolist()
        return measured if sent == [*measured.autograd] or not measured.autograd else None

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
        # Terms may cancel, as those of a bias before a normalisation do: with random signs they do not.
        generator = torch.Generator().manual_seed(0)
        signed = [None if g is None else g * (2 * torch.randint(2, g.shape, generator=generator).to(g) - 1)
                  for g in arrived]  # fmt: skip
        loose = step.rule.gradient(step.op, tuple(signed), contribution.argument)
        terms = ours.abs() + rms(reduce_to_shape(loose, tuple(contribution.recorded.shape))[0])
        count = max(1, max(g.numel() for g in arrived if g is not None) // max(ours.numel(), 1))
        slack, eps = 4 * (ours - precise).abs(), rounding(contribution.recorded.dtype)
        return compare(ours, contribution.recorded.double(), terms, count=count, eps=eps, slack=slack)

    def gradient(self, value: int) -> StepCheck:
        """Of the whole gradient of a value: every node between it and the losses."""
        behind = [self._first(node) for node in self._nearest(value)]
        wrong, open_ = (min((each[k] for each in behind), default=NEVER) for k in (0, 1))
        if wrong != NEVER:
            row = self._row(wrong)
            at = f" ({row.place})" if row.place is not None else ""
            return StepCheck("disagrees", f"{row.node.name}, node {row.node.index}{at}: {row.reason}")
        if not behind or open_ != NEVER:
            return StepCheck("not checked", self._row(open_).reason if behind else "no gradient flowed to it")
        return StepCheck("agrees")

    def _nearest(self, value: int) -> list[int]:
        """The nodes that a value's gradient came through last, that of a leaf itself among them."""
        own = self._graph.values[value].node
        return self._leaves.get(value) or ([] if own is None else self._senders.get(own, []))

    @cached_property
    def _leaves(self) -> dict[int, list[int]]:
        found: dict[int, list[int]] = {}
        for node in self._graph.nodes:
            if node.leaf is not None:
                found.setdefault(node.leaf, []).append(node.index)
        return found

    def _first(self, node: int) -> tuple[int, int]:
        """The first node that disagrees, and the first that was not checked, of this one and those before it."""

        def combine(node: int, behind: list[tuple[int, int]]) -> tuple[int, int]:
            verdict = self._row(node).verdict
            own = (node if verdict == "disagrees" else NEVER, node if verdict == "not checked" else NEVER)
            return min(each[0] for each in (own, *behind)), min(each[1] for each in (own, *behind))

        return gathered(node, lambda each: self._senders.get(each, ()), combine, self._firsts)

    @cached_property
    def _senders(self) -> dict[int, list[int]]:
        found: dict[int, list[int]] = {}
        for node in self._graph.nodes:
            for edge in node.edges if any(g is not None for each in node.executions for g in each.upstream) else ():
                found.setdefault(edge.node, []).append(node.index)
        return found
