"""The gradient check: it compares our rule, autograd, and a central difference in float64 at each node.

What is compared is the gradient that left a node in the recorded step, given the upstream gradient u that reached it:
(1) our rule's VJP on the recorded values; (2) autograd's recorded gradient; (3) u^T J, measured by running the
operation again in float64 on both sides of the recorded point. Up to 64 elements (and 4,096 outputs) are measured one
by one. Above that the dot-product test <u, J v> = <J^T u, v> is made along random directions v; where it fails, single
elements are measured to find the wrong ones.

The tolerance is that of `graph.comparison`, with the terms u_i J_ij of each element. Along a direction the terms of all
elements count as the root of the sum of their squares, since independent roundings add up so. Central differences are
good to about 1e-10 of the terms, so eps counts as at least that. A verdict of disagreement comes only after other step
sizes, one-sided differences (a kink?), and autograd run again in float64 and in the recorded type (mere rounding?).

Nothing global is changed, the state of the random generators included.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor
from torch.utils.checkpoint import CheckpointFunction

from chainrule.derivation.backprop import applied, rule_of
from chainrule.errors import RequestError, in_one_line
from chainrule.execution.experiment import CannotRunError, Experiment, without_gradients
from chainrule.graph.graph import Edge, Graph, Node, NodeExecution, Operation
from chainrule.graph.names import select_nodes
from chainrule.graph.snapshot import snapshots_of
from chainrule.pytorch_internals import LIBRARY, SCRIPTED, TRANSFORMED, BackwardHookFunction
from chainrule.rules import Applied, Rule
from chainrule.rules.facts import PYTORCH, SYMMETRIC, facts_of
from chainrule.verification.circumstances import circumstance
from chainrule.verification.coarse_differences import measure_coarsely
from chainrule.verification.conventions import settle_by_convention
from chainrule.verification.differences import ArgumentCheck, NodeContext, differentiated, measure
from chainrule.verification.hook_changes import change_by_hook
from chainrule.verification.leaf_sums import leaf_sums
from chainrule.verification.other_inputs import another_point, another_upstream, count_zeros, held_numbers
from chainrule.verification.repair import Repair, recognise
from chainrule.verification.rounding import CHANGED, check_in_float64, settle
from chainrule.verification.rows import (
    FORWARD,
    NO_GRADIENT,
    NOT_ASKED,
    RULE_ALONE,
    SAVED,
    UNKEPT,
    UNSEEN,
    GradientCheck,
    Row,
    judged,
    unchecked,
    worst_row,
)
from chainrule.verification.rule_comparison import compare_rule, is_finite, quick_check, unmeasured
from chainrule.verification.second_derivative import wrong_in_step
from chainrule.verification.update_check import updates_of
from chainrule.verification.user_functions import overwritten_by, run_inside, with_writes

MEMORY = 2 * 2**30  # bytes that the check of one node may take by default
Senders = dict[int, list[tuple[Node, Edge]]]
FUNCTION = "autograd.Function"
BEFORE = "its forward ran before the block began, or in another thread: put it inside"


def verify(
    graph: Graph,
    *,
    only: str | Iterable[str] | None = None,
    sample: float | None = None,
    alike: int | None = None,
    memory: int = MEMORY,
    progress: Callable[[int, int], None] | None = None,
) -> GradientCheck:
    """Check the nodes of a recorded step: all of them, those that `only` names, or a random fraction, `sample`.

    `only` is a pattern, or several: a part of a node's name, of its operation's, of a module's path, or of the name of
    one of its outputs. A pattern with dots or a `*` matches whole parts of a path (`h.3.*`). `sample` draws the same
    nodes each time, and `alike` the first so many of those that one line made of one operation and equal shapes.
    `memory` is the number of bytes that the check of one node may take: elements are measured in chunks that fit, and a
    node whose operation does not fit at all is not checked. `progress(done, total)` is called after each node. Raises
    MissingError where `only` names nothing, RequestError for a value that means nothing.
    """
    if memory <= 0:
        raise RequestError(f"memory={memory!r} leaves nothing to work with. Give the bytes a check may take, above 0.")
    nodes, chosen = select_nodes(graph, only, sample, alike)
    senders = _senders(graph)
    rows, explained = [], 0
    with without_gradients():
        for done, node in enumerate(nodes, 1):
            op, rule = _meaning(graph, node)
            explained += rule is not None or node.leaf is not None
            rows.append(_owned(graph, _row(graph, node, op, rule, senders, memory)))
            if progress is not None:
                progress(done, len(nodes))
    left_out = len(graph.nodes) - len(nodes)
    updates = () if chosen else updates_of(graph)
    return GradientCheck(tuple(rows), (explained, len(nodes)), left_out, chosen, updates)


def _senders(graph: Graph) -> Senders:
    """The nodes that lead straight to each leaf, with the edges that do."""
    found: Senders = {}
    for node in graph.nodes:
        for edge in node.edges:
            if graph.nodes[edge.node].leaf is not None or graph.nodes[edge.node].name == "AccumulateGrad":
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

    def row(self, index: int) -> Row:
        """The row of a node."""
        if index not in self._rows:
            node = self._graph.nodes[index]
            with without_gradients():
                meaning = _meaning(self._graph, node)
                row = _row(self._graph, node, *meaning, self._senders, MEMORY, differences=False)
            self._rows[index] = _owned(self._graph, row)
        return self._rows[index]


def _owned(graph: Graph, row: Row) -> Row:
    """A row that knows what of the user's own it checks; what a hook made of a gradient is not checked."""
    node = row.node
    hooked = graph.hooked & ({*node.outputs} if node.leaf is None else {node.leaf})
    if not hooked or (row.verdict == "disagrees" and node.function_class is not BackwardHookFunction):
        return replace(row, own=row.own or _own(graph, node))
    said = f"{change_by_hook(graph, node, min(hooked))}; there is no derivative to compare a hook with"
    return replace(row, own="hook", verdict="not checked", reason=said, wrong=(), repairs=())


def _own(graph: Graph, node: Node) -> str:
    """What of the user's own a node runs; "" for an operation of PyTorch's, and where no gradient flowed.

    A forward pass that was not recorded counts: who recorded a step wanted it checked.
    """
    if not node.executions or node.name.startswith(SCRIPTED):
        return ""
    if node.before and node.function_class is None:
        return FORWARD
    made_by, module = node.function_class, getattr(node.function_class, "__module__", "")
    if made_by is not None and (not module.startswith("torch.") or module == TRANSFORMED):
        return FUNCTION
    if made_by is not None and not module.startswith(LIBRARY):
        return ""  # PyTorch's, as those of a checkpoint and of a module's hooks
    name = graph.operations[node.operation].name if node.operation is not None else ""
    space, is_operator, _ = name.partition(".")
    if is_operator:
        return "" if space in PYTORCH else "custom operator"
    return FUNCTION if name else ""  # read from a file, which does not hold the class


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
        row = worst_row(leaf_sums(graph, node, senders.get(node.index, [])))
        if row.verdict == "disagrees" and (writer := overwritten_by(graph, node)) is not None:
            return unchecked(node, f"the backward of {writer.name} wrote to what came back to it")
        return row
    if node.name == "AccumulateGrad":
        before = any(other.before for other, _ in senders.get(node.index, []))
        return unchecked(node, BEFORE if before else "the recording does not hold an operation that used its tensor")
    if not node.executions:
        return _unreached(graph, node, op, rule, memory)
    if node.index in graph.verdicts and (node.operation is None or graph.operations[node.operation].function is None):
        verdict, reason = graph.verdicts[node.index]
        return Row(node, node.place, verdict, f"{SAVED}{reason.removeprefix(SAVED)}")
    contexts = (NodeContext(graph, node, each, op, rule) for each in node.executions)
    row = worst_row(
        with_writes(graph, node, each.execution, _execution(each, memory, differences)) for each in contexts
    )
    if row.verdict == "disagrees" and node.function_class is CheckpointFunction:
        inside = [graph.nodes[index] for index in run_inside(graph, node)]
        rows = [_row(graph, each, *_meaning(graph, each), senders, memory, differences) for each in inside]
        if wrong := [each.node.name for each in rows if each.verdict == "disagrees"]:
            return unchecked(node, f"it runs other nodes again, of which {', '.join(wrong)} disagrees")
    return row


def _unreached(graph: Graph, node: Node, op: Applied | None, rule: Rule | None, memory: int) -> Row:
    """A node that no gradient flowed through; a user's function is given a random one."""
    if node.function_class is None or node.operation is None:
        return unchecked(node, NO_GRADIENT)
    try:
        context = NodeContext(graph, node, _never(graph), op, rule)
        row = _given(context, _random(context), memory)
    except Exception:
        return unchecked(node, NO_GRADIENT)
    return replace(row, reason=f"{NO_GRADIENT} in this step; given a random one: {row.reason}")


def _never(graph: Graph) -> NodeExecution:
    return NodeExecution(len(graph.backwards), -1, (), ())


def _random(context: NodeContext) -> tuple[Tensor | None, ...]:
    """A random upstream gradient for each output."""
    generator = torch.Generator().manual_seed(4)
    outs = [None if value is None else context.graph.values[value] for value in context.node.outputs]
    return tuple(
        torch.randn(out.shape, dtype=torch.float64, generator=generator).to(out.dtype)
        if out is not None and (out.dtype.is_floating_point or out.dtype.is_complex)
        else None
        for out in outs
    )


def _given(context: NodeContext, arrived: tuple[Tensor | None, ...], memory: int) -> Row:
    """The row of a user's function that is run again with another upstream gradient."""
    graph, node = context.graph, context.node
    edges = [edge for edge in node.edges if edge.argument is not None]
    gradients = Experiment(graph, node, arrived, memory).replayed(edges, wide=False)
    sent: list[Tensor | None] = [None] * (1 + max((edge.position for edge in edges), default=-1))
    for edge, gradient in zip(edges, gradients, strict=True):
        sent[edge.position] = gradient
    execution = replace(_never(graph), arrived=snapshots_of(arrived), sent=snapshots_of(tuple(sent)))
    return _execution(NodeContext(graph, node, execution, context.op, context.rule), memory, differences=True)


# -- one execution of one node ----------------------------------------------------------------------------------------


def _execution(context: NodeContext, memory: int, differences: bool) -> Row:
    graph, node, execution = context.graph, context.node, context.execution
    differences = differences or not context.trusts_rule
    if all(g is None for g in execution.upstream):
        return unchecked(node, NO_GRADIENT)
    if not execution.has_numbers or (context.op is not None and not context.op.has_numbers):
        return unchecked(node, UNKEPT)
    if not all(map(is_finite, execution.upstream)):
        return unchecked(node, "the gradient that reached it is not finite (NaN or infinity)")
    if not all(map(is_finite, execution.downstream)):
        return unchecked(node, "the gradient that it gave is not finite (NaN or infinity)")
    if all(g is None for g in execution.downstream) and node.function_class is None:
        return unchecked(node, NOT_ASKED)
    try:
        contributions, broken = context.contributions(), ""
    except Exception as error:  # whatever a rule does wrong is a result to show
        contributions, broken = {}, f"our rule fails here: {error}"
    findings: list[ArgumentCheck] = []
    obstacle, experiment = "", None
    try:
        experiment = _experiment(graph, node, execution, memory)
        for edge in node.edges:
            if edge.argument is None:
                obstacle = "which argument one of its gradients belongs to is not known"
                continue
            contribution = contributions.get(edge.position)
            ours = contribution.gradient if contribution else None
            if differences:
                finding = quick_check(context, experiment, edge, ours)
                if finding is None:
                    finding = _measured(context, experiment, edge)
            else:
                finding = unmeasured(edge, context, ours)
                if finding is not None:
                    finding.conventions = context.applied(finding)
            if finding is not None:
                findings.append(finding)
        if not experiment.narrow:
            settle(context, experiment, findings)
            check_in_float64(context, experiment, findings)
    except CannotRunError as error:
        obstacle = str(error)
    except Exception as error:  # a user's function, or an operation without float64, may raise anything
        obstacle = f"it cannot be run again ({in_one_line(error)})"
    if obstacle:
        found = {finding.edge.position for finding in findings}
        for edge in node.edges:
            contribution = contributions.get(edge.position)
            finding = unmeasured(edge, context, contribution.gradient if contribution else None)
            if edge.position not in found and finding is not None:
                finding.conventions = context.applied(finding)
                findings.append(finding)
    for finding in findings:
        compare_rule(context, experiment, finding, contributions.get(finding.edge.position))
    explained = context.rule is not None and all(f.ours is not None or f.missing for f in findings)
    if not differences and (broken or not explained or any(f.rule_off or f.missing for f in findings)):
        return _execution(context, memory, differences=True)
    if experiment is not None and experiment.custom:
        settle_by_convention(experiment, findings)
    row = judged(graph, node, findings, obstacle, broken, context.rule if explained else None)
    if not differences and row.verdict == "agrees":
        return replace(row, reason=RULE_ALONE)
    if experiment is None or not experiment.custom:
        return _unless_changed(experiment, row)
    if row.verdict == "disagrees":
        return replace(row, repairs=tuple(_repairs(context, experiment, findings)))
    return _elsewhere(context, memory, _differentiated(context, experiment, row))


def _unless_changed(experiment: Experiment | None, row: Row) -> Row:
    """A row that agrees, unless the recorded inputs do not give the recorded outputs: then one of them was changed."""
    try:
        if experiment is None or row.verdict != "agrees" or experiment.repeats():
            return row
    except Exception:  # it cannot run in its own number types
        return row
    return replace(unchecked(row.node, CHANGED), own=UNSEEN)


def _measured(context: NodeContext, experiment: Experiment, edge: Edge) -> ArgumentCheck | None:
    """Differences of one argument; coarse ones if it runs in its recorded number type alone, as its first run shows."""
    known = unmeasured(edge, context)
    if known is not None and not experiment.narrow:
        found = measure(context, experiment, edge, known)
        if not experiment.narrow:
            return found
        known = unmeasured(edge, context)  # `measure` wrote to it
    return None if known is None else measure_coarsely(context, experiment, edge, known)


def _elsewhere(context: NodeContext, memory: int, row: Row) -> Row:
    """A row that agrees, of a user's function that is given what this step did not give it as well.

    What arrives in one step may hide a mistake: an upstream gradient of ones a factor that was forgotten, one of equal
    rows a sum over the wrong axis, an argument of ones a factor as well; and where it is 0 any backward is right.
    """
    graph, node, arrived = context.graph, context.node, context.execution.upstream
    already = context.execution.backward == len(graph.backwards)
    if row.verdict != "agrees" or already or not _own(graph, node):
        return row
    try:
        another = another_upstream(arrived)
        other = _given(context, another, memory)
        if other.verdict == "disagrees":
            where = held_numbers(arrived)
            if not where and (zeros := count_zeros(arrived)):
                kept = _given(context, another_upstream(arrived, keep_zeros=True), memory)
                where = zeros if kept.verdict == "agrees" else ""
            where = where and f", where the upstream gradient is {where}"
            said = f"right in this step{where or ' alone'}; given another one: {other.reason}"
            return replace(other, reason=said)
        moved, where = another_point(graph, node, arrived, memory)
        other = _given(replace(context, graph=moved, op=_meaning(moved, node)[0]), another, memory) if where else row
    except Exception:
        return row
    said = f"right in this step, where {where}; given other numbers there: {other.reason}"
    return replace(other, reason=said) if other.verdict == "disagrees" else row


def _repairs(context: NodeContext, experiment: Experiment, findings: list[ArgumentCheck]) -> Iterator[Repair]:
    """What is wrong with a user's backward; where it is right when it runs again, what was different in this step."""
    for repair in recognise(experiment.contiguous(), findings):
        if repair.kind == "overwritten":
            finding = next(each for each in findings if each.label == repair.argument)
            kind, text = circumstance(context.graph, context.node, experiment, differentiated(findings), finding)
            repair = replace(repair, kind=kind, text=text)
        yield repair


def _differentiated(context: NodeContext, experiment: Experiment, row: Row) -> Row:
    """The row of a user's function with what is wrong with its second derivative, where that was used."""
    backwards, execution = context.graph.backwards, context.execution
    if not (execution.backward < len(backwards) and backwards[execution.backward].differentiated) or experiment.narrow:
        return row
    edges = [e for e in context.node.edges if e.argument is not None and execution.along(e) is not None]
    try:
        reason = experiment.guarded(lambda: wrong_in_step(experiment, edges))
    except Exception:  # what cannot be differentiated twice here was not, then
        return row
    return replace(row, verdict="disagrees", reason=reason) if reason else row


def constraint_of(operation: Operation) -> str:
    """Why the elements of an operation's argument cannot be moved one by one; "" where they can."""
    constraint = facts_of(operation.name).constrained
    if operation.arguments.get("hermitian") is True:
        constraint = SYMMETRIC
    return f"{constraint}, so its elements cannot be moved one by one" if constraint else ""


def _experiment(graph: Graph, node: Node, execution: NodeExecution, memory: int) -> Experiment:
    if node.before:
        raise CannotRunError(BEFORE)
    if node.name.startswith(SCRIPTED):
        raise CannotRunError("TorchScript differentiates several operations as one: run them without torch.jit.script")
    if node.operation is None:
        raise CannotRunError("the recording does not hold the operation that made it")
    if constraint := constraint_of(graph.operations[node.operation]):
        raise CannotRunError(constraint)
    experiment = Experiment(graph, node, execution.upstream, memory)
    drew = experiment.random_state is not None and not experiment.custom
    if drew and all(g is None or not g.any() for g in execution.downstream):
        raise CannotRunError("PyTorch takes what was drawn as given, and passes no gradient back through the draw")
    if experiment.custom and not experiment.repeats():
        raise CannotRunError(
            "running its forward again does not give what was recorded: it draws random numbers, or keeps a state"
        )
    return experiment
