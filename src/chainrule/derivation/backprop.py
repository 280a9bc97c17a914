"""Backpropagation with our own rules, independent of autograd: from the seed at the loss to every leaf.

The walk reads only the recorded forward values and the edges between nodes. A rule of ours computes each gradient that
it passes on, so agreement with autograd at the leaves checks the whole chain. Where there is no rule the walk continues
with autograd's own gradient, and the step says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, Literal

import torch
from torch import Tensor

from chainrule import rules
from chainrule.errors import RuleError
from chainrule.gc_control import gc_paused
from chainrule.graph.graph import Call, Graph, Node, NodeExecution, Operation, Ref, references
from chainrule.graph.reexecution import WriteThroughView
from chainrule.graph.snapshot import Update, accumulate, all_have_numbers, placeholder, tensor_of
from chainrule.graph.trees import leaves
from chainrule.rules import Applied, Rule
from chainrule.rules.facts import PYTORCH
from chainrule.rules.written_part import rule_of_write


@dataclass(frozen=True)
class Contribution:
    """The contribution of one backward step to the gradient of one argument.

    `gradient` is ours, in the argument's own shape. `summed` are the axes of the output over which it was summed,
    because broadcasting had copied the argument along them. `recorded` is autograd's (None: not recorded by itself).
    """

    argument: str
    item: int | None
    value: int | None
    gradient: Tensor | None
    recorded: Tensor | None
    summed: tuple[int, ...] = ()


@dataclass(frozen=True)
class NodeStep:
    """One rule applied to one node, in one backward pass; `rule` is None where there is none yet."""

    node: int
    backward: int
    operation: int | None
    rule: Rule | None
    op: Applied | None
    upstream: tuple[Tensor | None, ...]
    contributions: tuple[Contribution, ...]
    failure: str = ""  # why the node's rule could not be used


@dataclass(frozen=True)
class Step:
    """One step of the derivation: what the user wrote as one call, opened down to its nodes where needed.

    `arguments` and `outputs` are indices of values; `rule` and `op` say what the operation means (None: no rule yet).
    A backward step has `upstream` and `contributions`, an update step its `update`. The walk continues with the
    gradients of the nodes; those of the rule of a whole call are computed when `contributions` is first read.
    """

    index: int
    kind: Literal["forward", "backward", "update"]
    call: int | None = None
    operations: tuple[int, ...] = ()
    nodes: tuple[int, ...] = ()
    rule: Rule | None = None
    op: Applied | None = None
    arguments: tuple[tuple[str, int | None, int], ...] = ()
    outputs: tuple[int, ...] = ()
    backward: int | None = None
    upstream: tuple[Tensor | None, ...] = ()
    compute_contributions: Callable[[], tuple[Contribution, ...]] = tuple
    update: Update | None = None

    @cached_property
    def contributions(self) -> tuple[Contribution, ...]:
        """The contribution to the gradient of each argument."""
        return self.compute_contributions()


@dataclass(frozen=True)
class Derivation:
    """The whole walk: its steps, the rule's step at each node, and our own gradient of each value.

    `of_passes` has the gradients of each backward pass, `gradients` their sums over the passes that are `counted`.
    """

    steps: tuple[Step, ...]
    nodes: tuple[NodeStep, ...]
    gradients: dict[int, Tensor]
    of_passes: dict[int, dict[int, Tensor]]


@gc_paused()
def derive(graph: Graph) -> Derivation:
    """Walk every backward pass with the rules and lay out the steps: forward, backward, update."""
    node_steps, of_passes = walked(graph)
    return Derivation(tuple(_steps(graph, node_steps)), tuple(node_steps), graph.summed(of_passes), of_passes)


def walked(
    graph: Graph, arrived: Callable[[int, Tensor], Tensor] = lambda _, gradient: gradient
) -> tuple[list[NodeStep], dict[int, dict[int, Tensor]]]:
    """The rule's step at each node of every backward pass, and the gradients of each pass by value.

    `arrived` takes what arrives at an operation, with the value that it is the gradient of; the walk goes on with what
    it gives.
    """
    node_steps: list[NodeStep] = []
    of_passes: dict[int, dict[int, Tensor]] = {}
    for backward, ran in graph.passes():
        node_steps += _walk(graph, backward, ran, of_passes.setdefault(backward, {}), arrived)
    return node_steps, of_passes


def applied(graph: Graph, operation: Operation) -> Applied:
    """A recorded operation with its data, as rules see it; without numbers where those of an operand were not kept."""
    indices = [*(index for *_, index in references(operation.arguments)), *operation.outputs]
    kept = all(graph.values[index].has_numbers for index in indices if index is not None)
    outs = (None if index is None else Ref(index) for index in operation.outputs)
    return Applied(graph.filled(operation.arguments, kept), graph.filled(tuple(outs), kept), operation.name)


def rule_of(graph: Graph, node: Node, op: Applied | None = None) -> Rule | None:
    """The rule for a node, if there is one."""
    if node.operation is None:
        return None
    if op is not None and not (op.arguments and op.outs):
        return None  # no operation was seen that made this node
    operation = graph.operations[node.operation]
    written = getattr(operation.function, "function", None)
    try:
        if isinstance(written, WriteThroughView):
            return rule_of_write(written, op) if op is not None else None
        rule = rules.for_node(_ruled_as(node, operation.name), op)
    except RuntimeError:  # it asks for numbers, and they were not kept
        if op is None or op.has_numbers:
            raise
        return None
    sparse = op is not None and any(getattr(a, "layout", torch.strided) != torch.strided for a in op.arguments.values())
    return rule if rule is None or not sparse or rule.topic == "sparse" else None


def _ruled_as(node: Node, operation: str) -> str:
    """The name of a node's rule; a user's Function is no node of PyTorch's, whatever it is called."""
    space, is_operator, name = operation.partition(".")
    if is_operator and space not in PYTORCH:
        return f"{space}::{name.partition('.')[0]}"
    if node.function_class is not None:
        return rules.name_of_function(node.function_class)
    return node.name if is_operator else ""  # a file does not hold the class of a Function


def node_upstream(graph: Graph, node: Node, upstream: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
    """The gradients that arrive at a node, one for each output of its operation.

    A node counts only the outputs that a gradient can come back from: `linalg.lu` has none for its permutation.
    """
    outputs = graph.operations[node.operation].outputs if node.operation is not None else (None,)
    place: dict[int | None, int] = {value: slot for slot, value in enumerate(outputs) if value is not None}
    values = node.outputs + (None,) * (len(upstream) - len(node.outputs))
    arrived = {
        place.get(v, slot): g for slot, (v, g) in enumerate(zip(values, upstream, strict=False)) if g is not None
    }
    return tuple(arrived.get(slot) for slot in range(len(outputs)))


def contributions_of(
    graph: Graph, node: Node, rule: Rule, op: Applied, upstream: tuple[Tensor | None, ...], execution: NodeExecution
) -> Iterator[Contribution]:
    """Apply a rule to one node: the contribution to each argument that requires a gradient.

    Raises RuleError, with the node and its place, where the rule breaks its contract.
    """
    computed: dict[str, Any] = {}
    for edge in node.edges:
        recorded = tensor_of(execution.along(edge))
        if edge.argument is None or edge.argument not in rule.wrt:
            yield Contribution(edge.argument or f"input {edge.position}", edge.item, edge.value, None, recorded)
            continue
        if edge.argument not in computed:
            computed[edge.argument] = rule.gradient(op, node_upstream(graph, node, upstream), edge.argument)
        gradient = computed[edge.argument]
        if edge.item is not None and gradient is not None:
            gradient = gradient[edge.item]
        summed: tuple[int, ...] = ()
        if gradient is not None and edge.value is not None:
            try:
                gradient, summed = rules.reduce_to_shape(gradient, graph.values[edge.value].shape)
            except RuleError as error:
                where = f" ({node.place})" if node.place else ""
                said = f"{node.name}, node {node.index}{where}, with respect to `{edge.argument}`: {error}"
                raise RuleError(said) from None
            if recorded is not None and recorded.is_complex() == gradient.is_complex():
                gradient = gradient.to(recorded.dtype)  # under autocast the other operands may be wider
        yield Contribution(edge.argument, edge.item, edge.value, gradient, recorded, summed)


def _walk(
    graph: Graph,
    backward: int,
    ran: dict[int, NodeExecution],
    gradients: dict[int, Tensor],
    arrived: Callable[[int, Tensor], Tensor],
) -> Iterator[NodeStep]:
    """One backward pass, from its roots, each node after all nodes that send it a gradient."""
    arriving: dict[int, dict[int, Tensor]] = {}
    hooked = graph.hooked
    fed = {edge.node for index in ran for edge in graph.nodes[index].edges}
    roots = {node for each in graph.backwards for node, _ in each.roots} if len(graph.backwards) == 1 else set()
    for index in sorted(ran, key=lambda each: ran[each].order):
        node, execution = graph.nodes[index], ran[index]
        if index in fed and index not in roots:
            here = arriving.pop(index, {})
            upstream = tuple(here.get(slot) for slot in range(max([len(execution.upstream), *(s + 1 for s in here)])))
        else:
            upstream = execution.upstream  # the seed, to which another root may have added
        if hooked & set(node.outputs):
            upstream = execution.upstream  # a user's hook changed what arrived, and the walk goes on from there
        if not all_have_numbers(*upstream):
            upstream = execution.upstream  # what came before was not kept; what arrived here may have been
        if node.operation is not None:
            outputs = (*node.outputs, *[None] * (len(upstream) - len(node.outputs)))
            upstream = tuple(
                g if g is None or value is None else arrived(value, g)
                for g, value in zip(upstream, outputs, strict=False)
            )
        step = _asked(graph, ran, _step_back(graph, node, execution, backward, upstream))
        for slot, value in enumerate(node.outputs):
            if value is not None and slot < len(upstream) and upstream[slot] is not None:
                accumulate(gradients, value, upstream[slot])
        for contribution, edge in zip(step.contributions, node.edges, strict=True):
            target = graph.nodes[edge.node]
            if target.leaf is not None:
                accumulate(gradients, target.leaf, contribution.gradient)
            elif contribution.gradient is not None:
                accumulate(arriving.setdefault(edge.node, {}), edge.slot, contribution.gradient)
        yield step
    for index in arriving.keys() - ran.keys():  # where `torch.autograd.grad` ends: nothing was asked of what is behind
        for slot, value in enumerate(graph.nodes[index].outputs):
            if value is not None:
                accumulate(gradients, value, arriving[index].get(slot))


def _asked(graph: Graph, ran: dict[int, NodeExecution], step: NodeStep) -> NodeStep:
    """Drop what nobody asked for: `torch.autograd.grad` and `backward(inputs=...)` compute some gradients only."""
    contributions = []
    for contribution, edge in zip(step.contributions, graph.nodes[step.node].edges, strict=True):
        goes_on = graph.nodes[edge.node].leaf is None and edge.node in ran
        contributions.append(
            contribution if contribution.recorded is not None or goes_on else replace(contribution, gradient=None)
        )
    return replace(step, contributions=tuple(contributions))


def _step_back(
    graph: Graph, node: Node, execution: NodeExecution, backward: int, upstream: tuple[Tensor | None, ...]
) -> NodeStep:
    op = applied(graph, graph.operations[node.operation]) if node.operation is not None else None
    rule = rule_of(graph, node, op)
    failure = ""
    if op is not None and not (op.has_numbers and all_have_numbers(*upstream)):
        contributions = tuple(
            replace(each, gradient=None if (known := each.recorded) is None else placeholder(known.shape, known.dtype))
            for each in _recorded(node, execution)
        )
        return NodeStep(node.index, backward, node.operation, rule, op, upstream, contributions)
    if rule is not None and op is not None:
        try:
            contributions = tuple(contributions_of(graph, node, rule, op, upstream, execution))
            if all(each.gradient is not None or each.recorded is None for each in contributions):
                return NodeStep(node.index, backward, node.operation, rule, op, upstream, contributions)
        except (RuleError, RuntimeError, IndexError, ValueError, TypeError) as error:
            failure = f"{node.name}: the rule {rule.name} cannot take this case ({error})"
    contributions = tuple(_recorded(node, execution))
    return NodeStep(node.index, backward, node.operation, None, op, upstream, contributions, failure)


def _recorded(node: Node, execution: NodeExecution) -> Iterator[Contribution]:
    """What autograd gave each argument, where no rule gives anything."""
    for edge in node.edges:
        recorded = tensor_of(execution.along(edge))
        yield Contribution(edge.argument or f"input {edge.position}", edge.item, edge.value, recorded, recorded)


# -- the steps --------------------------------------------------------------------------------------------------------


def _steps(graph: Graph, node_steps: list[NodeStep]) -> Iterator[Step]:
    forward = list(_forward_steps(graph))
    updates = (Step(0, "update", update=update) for update in graph.updates)
    for index, step in enumerate([*forward, *_backward_steps(graph, forward, node_steps), *updates]):
        yield replace(step, index=index)


def _forward_steps(graph: Graph) -> Iterator[Step]:
    """The operations that led to a loss (all of them where there is none), grouped into steps."""
    wanted = _ancestors(graph)
    flowing = {operation.call for operation in graph.operations if operation.node is not None} - {None}
    done: set[int] = set()
    for operation in graph.operations:
        if operation.index not in wanted or operation.index in done:
            continue
        if operation.node is None and flowing and (operation.call in flowing or not _in_module(graph, operation)):
            continue  # inner work of a call, as the mask of dropout, or making of the data and the model
        step = _call_step(graph, operation.call) if operation.call is not None else None
        step = _operation_step(graph, operation) if step is None else step
        done.update(step.operations)
        yield step


def _operation_step(graph: Graph, operation: Operation) -> Step:
    op = applied(graph, operation)
    node = graph.nodes[operation.node] if operation.node is not None else None
    rule = rule_of(graph, node, op) if node is not None else None
    outputs = tuple(value for value in operation.outputs if value is not None)
    nodes, arguments = () if node is None else (node.index,), tuple(references(operation.arguments))
    return Step(0, "forward", operation.call, (operation.index,), nodes, rule, op, arguments, outputs)


def _in_module(graph: Graph, operation: Operation) -> bool:
    """Whether an operation ran in a module's forward, as those of a frozen backbone do."""
    return operation.call is not None and bool(graph.calls[operation.call].module)


def _ancestors(graph: Graph) -> set[int]:
    losses = {b.loss for b in graph.backwards if b.loss is not None}
    if not losses:
        return {operation.index for operation in graph.operations}
    makers = (graph.values[value].operation for value in losses | graph.ancestors(losses))
    return {operation for operation in makers if operation is not None}


def _call_step(graph: Graph, index: int) -> Step | None:
    """A call of several operations as one step, if a rule knows it as a whole and it gives one tensor."""
    call = graph.calls[index]
    if len(call.outputs) != 1 or len(call.operations) < 2:
        return None
    out = graph.values[call.outputs[0]]
    for rule in rules.all_for_call(call.name):
        names = [*rule.wrt, *rule.constants]
        arguments: dict[str, Any] = dict.fromkeys(names)
        arguments |= dict(zip(names, call.arguments, strict=False)) | call.keywords
        kept = all(graph.values[v].has_numbers for *_, v in references(arguments)) and out.has_numbers
        op = Applied(graph.filled(arguments, kept), (graph.filled(Ref(out.index), kept),), call.name)
        # Under autocast a call computes with other numbers than its arguments: then its nodes are the steps.
        operands = [each for name in rule.wrt if isinstance(each := op.arguments[name], Tensor)]
        cast = any(each.is_floating_point() and each.dtype != out.dtype for each in operands)
        if not cast and _takes_its_arguments(graph, call) and _accepts(rule, op):
            nodes = tuple(n for o in call.operations if (n := graph.operations[o].node) is not None)
            used = tuple(references(arguments))
            return Step(0, "forward", index, call.operations, nodes, rule, op, used, call.outputs)
    return None


def _takes_its_arguments(graph: Graph, call: Call) -> bool:
    """Whether a call's operations take nothing from around it but its arguments.

    Autocast hands a call the cast of a parameter that it made earlier and kept, which may be before the recording.
    """
    operations = [graph.operations[o] for o in call.operations]
    known: set[int | None] = {ref.value for ref in leaves((call.arguments, call.keywords), Ref)}
    known.update(value for operation in operations for value in operation.outputs)
    return all(value in known for operation in operations for *_, value in references(operation.arguments))


def _accepts(rule: Rule, op: Applied) -> bool:
    try:
        return rule.accepts(op)
    except RuntimeError:  # it asks for numbers, and they were not kept
        if op.has_numbers:
            raise
        return False


def _backward_steps(graph: Graph, forward: list[Step], node_steps: list[NodeStep]) -> Iterator[Step]:
    step_of = {operation: step for step in forward for operation in step.operations}
    by_step: dict[tuple[int, int], list[NodeStep]] = {}
    sources: dict[tuple[int, int], set[int]] = {}
    for each in node_steps:
        if each.operation in step_of:
            by_step.setdefault((each.backward, step_of[each.operation].operations[0]), []).append(each)
        for edge in graph.nodes[each.node].edges:
            sources.setdefault((each.backward, edge.node), set()).add(each.node)
    for (_, operation), members in by_step.items():
        step = step_of[operation]
        if len(step.operations) > 1 and _goes_through(graph, step, members, sources):
            yield _backward(step, step.rule, members, partial(_call_contributions, graph, step, members))
            continue
        for member in members:  # of a call that the pass entered in its middle too, as second derivatives do, each
            assert member.operation is not None
            alone = step if len(step.operations) == 1 else _operation_step(graph, graph.operations[member.operation])
            yield _backward(alone, member.rule, [member], partial(tuple, member.contributions))


def _goes_through(graph: Graph, step: Step, members: list[NodeStep], sources: dict[tuple[int, int], set[int]]) -> bool:
    """Whether a pass enters a call at its result, and nowhere else."""
    first, *others = members
    entered = bool(set(step.outputs) & set(graph.nodes[first.node].outputs))
    inside = {member.node for member in members}
    return entered and not any(sources.get((first.backward, each.node), set()) - inside for each in others)


def _backward(
    forward: Step, rule: Rule | None, members: list[NodeStep], contributions: Callable[[], tuple[Contribution, ...]]
) -> Step:
    return replace(
        forward,
        kind="backward",
        nodes=tuple(member.node for member in members),
        rule=rule,
        backward=members[0].backward,
        upstream=members[0].upstream,
        compute_contributions=contributions,
    )


def _call_contributions(graph: Graph, step: Step, members: list[NodeStep]) -> tuple[Contribution, ...]:
    """What the call's own rule gives each argument, with what the nodes of the call together gave it."""
    assert step.rule is not None
    assert step.op is not None
    inside = {member.node for member in members}
    left: dict[int, list[Tensor | None]] = {}
    for member in members:
        for contribution, edge in zip(member.contributions, graph.nodes[member.node].edges, strict=True):
            asked = contribution.gradient is not None or contribution.recorded is not None
            if edge.node not in inside and contribution.value is not None and asked:
                left.setdefault(contribution.value, []).append(contribution.recorded)
    found = []
    for name, item, value in step.arguments:
        if name not in step.rule.wrt or value not in left:
            continue
        unkept = graph.values[value].snapshot.placeholder
        numbers = step.op.has_numbers and all_have_numbers(*members[0].upstream)
        gradient = step.rule.gradient(step.op, members[0].upstream, name) if numbers else unkept
        summed: tuple[int, ...] = ()
        if gradient is not None:
            gradient, summed = rules.reduce_to_shape(gradient, graph.values[value].shape)
        alone = len(left[value]) == 1 and sum(value == other for _, _, other in step.arguments) == 1
        found.append(Contribution(name, item, value, gradient, left[value][0] if alone else None, summed))
    return tuple(found)
