"""A step worked through once more, forward and back, with one of its steps changed or some of its values given.

Going back takes the steps of the derivation, so a change is one of something that a reader sees. It holds only where
the walk without a change gives what was recorded: elsewhere (several backward passes, a hook) there is no chain.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from chainrule.derivation.backprop import Derivation, Step
from chainrule.execution.number_types import wide
from chainrule.graph.comparison import UNKNOWN_SUMS, compare, identical, rounding
from chainrule.graph.graph import Graph, Ref
from chainrule.graph.reexecution import apart
from chainrule.graph.snapshot import accumulate
from chainrule.graph.trees import map_leaves
from chainrule.rules import Applied, reduce_to_shape

Values = Mapping[int, Tensor]


@dataclass(frozen=True)
class Part:
    """One gradient on its way through one step: that of `argument`, which is `value`; it goes to `target`."""

    step: Step
    argument: str
    item: int | None
    value: int
    target: int


Back = Callable[[Part, Applied, tuple[Tensor | None, ...]], Tensor | None]
"""The gradient of an argument of a step, from the step's operation and its upstream gradients."""


def by_rule(part: Part, op: Applied, upstream: tuple[Tensor | None, ...]) -> Tensor | None:
    """The right gradient."""
    assert part.step.rule is not None
    found: Any = part.step.rule.gradient(op, upstream, part.argument)
    gradient: Tensor | None = found if part.item is None or found is None else found[part.item]
    return gradient


def as_recorded(part: Part, op: Applied, upstream: tuple[Tensor | None, ...]) -> Tensor | None:
    """The gradient with the step's own numbers, whatever went into it."""
    assert part.step.op is not None
    return by_rule(part, wide_op(part.step.op), upstream)


@dataclass(frozen=True)
class Change:
    """One step done in another way: `back` gives the gradient of one argument, `forward` the result from the right one.

    `given` are operands that the step takes instead, in the forward pass. A change of the forward pass may have a
    `back` as well, of who goes on with what he wrote.
    """

    step: Step
    argument: str | None = None
    back: Back | None = None
    forward: Callable[[Tensor], Tensor] | None = None
    given: Values = field(default_factory=dict)


def wide_op(op: Applied) -> Applied:
    """An operation with its numbers in double precision."""
    return Applied(map_leaves(wide, op.arguments), tuple(map(wide, op.outs)), op.name)


class Chain:
    """The forward and the backward pass of a step with one backward pass."""

    def __init__(self, graph: Graph, derivation: Derivation) -> None:
        self.graph = graph
        self.forward_steps = [step for step in derivation.steps if step.kind == "forward"]
        self.backward_steps = [step for step in derivation.steps if step.kind == "backward"]
        self.alias = self._aliases()
        self.loss = next((each.loss for each in graph.accumulating), None)
        self._wide: dict[int, Applied] = {}
        self._last: dict[int, tuple[tuple[Tensor | None, ...], list[Tensor | None]]] = {}  # of the right walk

    def _aliases(self) -> dict[int, int]:
        """By the value that an operation took, the result that its gradient flows to: writes in place make new ones."""
        found: dict[int, int] = {}
        for node in self.graph.nodes:
            for edge in node.edges:
                target = self.graph.nodes[edge.node]
                made = target.outputs[edge.slot] if target.leaf is None and edge.slot < len(target.outputs) else None
                to = target.leaf if target.leaf is not None else made
                if edge.value is not None and to is not None and edge.value != to:
                    found[edge.value] = to
        return found

    @cached_property
    def parts(self) -> dict[int, list[Part]]:
        """The ways of gradients through each backward step."""
        return {
            step.index: [
                Part(step, each.argument, each.item, each.value, self.alias.get(each.value, each.value))
                for each in step.contributions
                if each.value is not None and each.gradient is not None
            ]
            for step in self.backward_steps
        }

    # -- back ---------------------------------------------------------------------------------------------------------

    @cached_property
    def goes_back(self) -> bool:
        """Whether going back with the rules gives the recorded gradients."""
        if self.loss is None or len(self.graph.backwards) != 1 or self.graph.hooked:
            return False
        if any(step.rule is None or step.op is None or not step.op.has_numbers for step in self.backward_steps):
            return False
        try:
            found = self.gradients()
        except (RuntimeError, IndexError, ValueError, TypeError):
            return False
        targets = {part.target for parts in self.parts.values() for part in parts}
        if not targets <= found.keys():
            return False
        recorded = {value: grad for value in targets if (grad := self.graph.values[value].grad) is not None}
        slack = 1e-6 * max((float(each.abs().max()) for each in recorded.values() if each.numel()), default=0.0)
        return all(
            compare(found[value], grad.double(), count=UNKNOWN_SUMS, eps=rounding(grad.dtype), slack=slack).agrees
            for value, grad in recorded.items()
        )

    def gradients(
        self, change: Change | None = None, values: Values | None = None, given: Values | None = None
    ) -> dict[int, Tensor]:
        """The gradient of each value; with a change, with other `values`, with some gradients `given`."""
        assert self.loss is not None
        seed = self.graph.values[self.loss].grad
        found: dict[int, Tensor] = {} if seed is None else {self.loss: wide(seed)}
        given = given or {}
        for step in self.backward_steps:
            upstream = tuple(None if v is None else given.get(v, found.get(v)) for v in self._outputs(step))
            if any(each is not None for each in upstream):
                mine = change if change is not None and change.step is step else None
                for part, gradient in zip(
                    self.parts[step.index], self._sent(step, upstream, mine, values), strict=True
                ):
                    accumulate(found, part.target, gradient)
        return {**found, **given}

    def _sent(
        self, step: Step, upstream: tuple[Tensor | None, ...], change: Change | None, values: Values | None
    ) -> list[Tensor | None]:
        """What a step gives its arguments; from the last time, where nothing that it depends on has changed."""
        op = self._applied(step, values)
        before, known = self._last.get(step.index, ((), []))
        is_right = change is None and op is self._wide.get(step.index)
        if is_right and known and all(a is b for a, b in zip(before, upstream, strict=True)):
            return known
        sent = []
        for part in self.parts[step.index]:
            own = change.back if change is not None and change.argument in (None, part.argument) else None
            gradient = (own or by_rule)(part, op, upstream)
            shape = self.graph.values[part.value].shape
            sent.append(None if gradient is None else reduce_to_shape(gradient, shape)[0])
        if is_right and not known:
            self._last[step.index] = upstream, sent
        return sent

    def _outputs(self, step: Step) -> tuple[int | None, ...]:
        """The results of a step, one for each slot of its rule."""
        return self.graph.operations[step.operations[0]].outputs if len(step.operations) == 1 else step.outputs

    def _applied(self, step: Step, values: Values | None) -> Applied:
        """A step's operation in double precision, with other numbers."""
        assert step.op is not None
        concerned = (*(v for _, _, v in step.arguments), *self._outputs(step))
        if not values or not any(v in values for v in concerned):
            if step.index not in self._wide:
                self._wide[step.index] = wide_op(step.op)
            return self._wide[step.index]
        arguments = dict(step.op.arguments)
        for name, item, value in step.arguments:
            if value not in values:
                continue
            if item is None:
                arguments[name] = values[value]
            else:
                arguments[name] = [*arguments[name][:item], values[value], *arguments[name][item + 1 :]]
        outs = zip(self._outputs(step), step.op.outs, strict=False)
        results = tuple(out if v is None else values.get(v, out) for v, out in outs)
        return wide_op(Applied(arguments, results, step.op.name))

    # -- forward ------------------------------------------------------------------------------------------------------

    @cached_property
    def _versions(self) -> dict[int, list[int]]:
        """The later values of each result that an in-place write made without changing its numbers."""
        found: dict[int, list[int]] = {}
        for later, result in self.alias.items():
            found.setdefault(result, []).append(later)
        return found

    @cached_property
    def goes_forward(self) -> bool:
        """Whether the recorded operations give the recorded values again; not where others wrote to their memory."""
        values = self.graph.values
        used = {value for step in self.forward_steps for _, _, value in step.arguments}
        if any(values[v].earlier is not None and v not in self.alias for v in used):
            return False
        same = all(
            values[a].data is not None and values[b].data is not None and identical(values[a].data, values[b].data)  # type: ignore[arg-type]
            for a, b in self.alias.items()
        )
        if not same or not all(values[v].has_numbers for v in used):
            return False
        try:
            found = self.values()
        except Exception:  # a user's function may be gone, or do anything
            return False
        return all(
            (known := values[value].data) is None or compare(each, known, count=UNKNOWN_SUMS).agrees
            for value, each in found.items()
        )

    def values(self, change: Change | None = None, given: Values | None = None) -> dict[int, Tensor]:
        """The result of each step; with a change, or with some values `given`."""
        found: dict[int, Tensor] = dict(given or {})
        with apart(), torch.no_grad():
            for step in self.forward_steps:
                mine = change if change is not None and change.step.operations == step.operations else None
                for value, result in self._run(step, found, mine).items():
                    for each in (value, *self._versions.get(value, ())):
                        if not given or each not in given:
                            found[each] = result
        return found

    def _run(self, step: Step, known: Values, change: Change | None) -> dict[int, Tensor]:
        inner: dict[int, Tensor] = {**known, **(change.given if change is not None else {})}
        made: dict[int, Tensor] = {}
        for index in step.operations:
            operation = self.graph.operations[index]
            taken = [each for _, _, each in step.arguments]
            if operation.random_state is not None or operation.function is None:
                if any(each in known for each in taken):
                    raise ValueError(f"{operation.name} cannot run again on other numbers")
                return {}
            arguments = map_leaves(lambda leaf: self._filled(leaf, inner), operation.arguments)
            results = operation.function(arguments, gradients=operation.node is not None)
            several = results if isinstance(results, (tuple, list)) else (results,)
            for value, result in zip(operation.outputs, several, strict=False):
                if value is not None:
                    made[value] = inner[value] = result.detach()
        if change is not None and change.forward is not None:
            made |= {value: change.forward(made[value]) for value in step.outputs[:1] if value in made}
        return made

    def _filled(self, leaf: Any, known: Values) -> Any:
        """An argument with its numbers in double precision, copied: an in-place operation writes to them."""
        if not isinstance(leaf, Ref):
            return leaf
        data = known[leaf.value] if leaf.value in known else self.graph.values[leaf.value].snapshot.tensor
        return wide(data.clone())

    def changed(self, update: Change) -> Change:
        """The same change of the backward step of a forward step."""
        back = next((step for step in self.backward_steps if step.operations == update.step.operations), update.step)
        return replace(update, step=back)
