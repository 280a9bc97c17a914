"""What the gradient check says of the steps of a derivation: its rows, for what a document shows of each gradient.

A document and `verify` give one verdict, because it is one row. What is compared here beside the rows is our own number
as the document shows it, which came down the whole chain of our rules, and the rule of a call of several operations.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from chainrule.derivation.backprop import Contribution, Derivation, Step
from chainrule.document import Kind
from chainrule.execution.experiment import widened
from chainrule.graph.comparison import Comparison, compare, worst
from chainrule.graph.graph import Graph
from chainrule.graph.snapshot import ParameterUpdate, has_numbers
from chainrule.graph.trees import reach
from chainrule.rules import Applied, reduce_to_shape
from chainrule.verification.gradient_check import Rows
from chainrule.verification.rows import Row, worst_row


@dataclass(frozen=True)
class StepCheck:
    """The verdict, what is to be said beside it ("" for plain agreement), and the comparison that it rests on."""

    verdict: Kind
    reason: str = ""
    comparison: Comparison | None = None


class StepChecks:
    """The checks of one recording, each worked out when it is first asked for."""

    def __init__(self, graph: Graph, derivation: Derivation, rows: Rows) -> None:
        self._graph, self._derivation, self._rows = graph, derivation, rows

    @cached_property
    def _steps(self) -> dict[int, Step]:
        return {id(contribution): step for step in self._derivation.steps for contribution in step.contributions}

    def contribution(self, contribution: Contribution) -> StepCheck:
        """Of one contribution to a gradient: the row of the nodes that it came back through."""
        step = self._steps[id(contribution)]
        row = worst_row(self._rows[node] for node in step.nodes)
        known = worst([row.rule_difference, row.finite_difference])
        reason = "" if row.verdict == "agrees" and row.rule_difference is not None else row.reason
        ours, recorded = contribution.gradient, contribution.recorded
        if row.verdict in ("disagrees", "not checked") or not has_numbers(ours) or not has_numbers(recorded):
            return StepCheck(row.verdict, reason, known)
        shown = compare(ours, recorded, count=self._path_length(step))
        if shown.agrees:
            return StepCheck(row.verdict, reason, shown)
        if len(step.operations) > 1 and not (of_call := self._of_call(step, contribution, row)).agrees:
            said = "the rule of the whole call is not what its operations give"
            return StepCheck("disagrees", said, of_call)
        grown = f"each step agrees; rounding on the way from the loss makes {shown.largest:.3g} between the two"
        return StepCheck(row.verdict, f"{reason}; {grown}" if reason else grown, known)

    def _path_length(self, step: Step) -> int:
        """How many nodes our number came through: each of them adds its roundings."""
        runs = (each for node in step.nodes for each in self._graph.nodes[node].executions)
        return 1 + max((each.order for each in runs if each.backward == step.backward), default=0)

    def _of_call(self, step: Step, contribution: Contribution, row: Row) -> Comparison:
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
        rows = [self._rows[index] for index in self._behind(value)]
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


def compare_update(new: Tensor, update: ParameterUpdate) -> Comparison:
    """What the terms of an update give, with the parameter after the step: before, and what is added to it."""
    before, after = update.before, update.after
    change = (after - before).abs()
    terms = before.abs() + change + torch.linalg.vector_norm(change) / max(change.numel(), 1) ** 0.5
    return compare(new, after, terms)
