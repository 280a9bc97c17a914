"""Where in the forward pass NaN and infinity come from, which values they reach, and why an operation made them.

The *origin* is the operation that turns finite operands into numbers that are not finite. (An operand may also be
infinite on purpose, like a mask.) An operation with an operand that an earlier origin reaches only *passes it on*.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from chainrule.derivation.contributions import aligned
from chainrule.diagnostics.nonfinite_advice import mean_of_nothing
from chainrule.diagnostics.step_context import StepContext, element_of, operands
from chainrule.graph.comparison import dense, identical
from chainrule.graph.graph import Graph, Operation, Ref, Value
from chainrule.graph.names import Index
from chainrule.graph.snapshot import has_numbers
from chainrule.graph.trees import leaves, reach
from chainrule.numbers import number
from chainrule.rules.facts import base_name, facts_of


@dataclass
class Origin:
    """An operation that made a value non-finite; without one, the value is a leaf that was so before the step."""

    value: Value
    operation: Operation | None
    passed_on: list[int] = field(default_factory=list)  # the values that it reaches, in order


class Origins:
    """Every origin in the forward pass, and the values that each reaches."""

    def __init__(self, context: StepContext) -> None:
        self.context = context
        self.every: list[Origin] = []
        self.of: dict[int, Origin] = {}  # a value that is not finite -> its origin
        self.on_purpose: list[tuple[Value, Operation | None]] = []  # that may well be, such as a mask and what fills it
        self.bad_losses: list[int] = []
        self.first: list[Origin] = []
        values = context.values
        if not context.cache.all_finite(value.data for value in values):
            self._buffers = _buffers_of_shards(context.graph)
            for operation in context.graph.operations:
                self._read(operation)
            self.bad_losses = [loss for loss in context.losses if not context.cache.finite(values[loss].data)]
            self.first = self._first()

    def _read(self, operation: Operation) -> None:
        values = self.context.values
        given = [values[index] for index in operands(operation)]
        for leaf in given:
            if leaf.operation is None and leaf.index not in self._buffers and leaf.index not in self.of:
                self._read_leaf(leaf)
        inherited = next((self.of[each.index] for each in given if each.index in self.of), None)
        for slot, out in enumerate(operation.outputs):
            if out is None or not self._is_lost(values[out]):
                continue
            made = values[out]
            if inherited is not None:
                inherited.passed_on.append(made.index)
                self.of[made.index] = inherited
            elif made.data is None or any(map(self._is_lost_unkept, given)):
                continue  # values without numbers are checked by their statistics
            elif on_purpose(operation, slot):
                self.on_purpose.append((made, operation))
            elif _makes(self.context, made.data, [each.data for each in given]):
                self._add(made, operation)

    def _read_leaf(self, leaf: Value) -> None:
        if leaf.data is None or self.context.cache.finite(leaf.data):
            return
        if self._is_gradient(leaf, leaf.data) or not self._is_read(leaf.index):
            return
        if dense(leaf.data).isnan().any():
            self._add(leaf, None)
        else:
            self.on_purpose.append((leaf, None))

    def _is_lost(self, value: Value) -> bool:
        return self._is_lost_unkept(value) if value.data is None else not self.context.cache.finite(value.data)

    def _is_lost_unkept(self, value: Value) -> bool:
        return value.data is None and self.context.lost(value.index) is not None

    def _is_gradient(self, leaf: Value, data: Tensor) -> bool:
        """Whether it is the `.grad` that clipping reads; an equal value that a loss depends on is a factor instead.

        Or one of a step that a GradScaler skipped.
        """
        if all(facts_of(use.name).unscales for use in self.context.uses.get(leaf.index, ())):
            return True
        known = (each.grad for each in self.context.graph.parameters.values() if each.shape == leaf.shape)
        same = any(has_numbers(each) and identical(dense(each), dense(data)) for each in known)
        return same and leaf.index not in self.context.graph.ancestors(self.context.losses)

    def _is_read(self, leaf: int) -> bool:
        """Whether an operation reads its numbers: a new parameter is arbitrary until it is initialised."""
        return any(
            not (facts_of(use.name).keeps_numbers or facts_of(use.name).detaches)
            for value in reach([leaf], self._carries_on)
            for use in self.context.uses.get(value, ())
            if not _fills(use, value)
        )

    def _carries_on(self, value: int) -> list[int]:
        """The results that may contain the numbers of a value, which it has none if it is overwritten."""
        uses = (use for use in self.context.uses.get(value, ()) if "base" in use.arguments or not _fills(use, value))
        known = ((out, self.context.statistics(out)) for use in uses for out in use.outputs)
        return [out for out, each in known if out is not None and (each is None or each.not_finite)]

    def _add(self, value: Value, operation: Operation | None) -> None:
        self.of[value.index] = origin = Origin(value, operation)
        self.every.append(origin)

    def _first(self) -> list[Origin]:
        """The first origin, and that of the loss; in an unfinished step only one that reaches a loss or gradient."""
        if not self.every and any(map(self.context.is_loss, self.bad_losses)):
            # Masked scores are infinite on purpose, a loss is not.
            before = self.context.graph.ancestors(self.bad_losses).union(self.bad_losses)
            for value, operation in [each for each in self.on_purpose if each[0].index in before][:1]:
                self._add(value, operation)
        reached = [self.of[loss] for loss in self.bad_losses if loss in self.of][:1]
        if not reached:
            return self.every[:1] if self.gradients_lost or not self.context.unfinished else []
        before = self.context.graph.ancestors([reached[0].value.index])
        return [*[origin for origin in self.every if origin.value.index in before][:1], *reached]

    @cached_property
    def gradients_lost(self) -> bool:
        """Whether the gradient of a parameter is not finite."""
        return not all(self.context.cache.finite(each.grad) for each in self.context.graph.parameters.values())


def origins_of(context: StepContext) -> Origins:
    """The origins in a step, found once."""
    return context.once("origins", lambda: Origins(context))


def _fills(operation: Operation, value: int) -> bool:
    """Whether an operation overwrites a value, or a part of it."""
    given = operation.arguments
    return facts_of(operation.name).fills and Ref(value) in (given.get("self"), given.get("base"))


def _makes(context: StepContext, made: Tensor, given: list[Tensor | None]) -> bool:
    """Whether a result has NaN and no operand has, or it has infinity and all operands are finite."""
    known = [dense(each) for each in given if each is not None and (each.is_floating_point() or each.is_complex())]
    if dense(made).isnan().any():
        return not any(each.isnan().any() for each in known)
    return all(context.cache.finite(each) for each in known)


def _buffers_of_shards(graph: Graph) -> set[int]:
    """The buffers in which FSDP2 gathers shards, and their bases: memory that is arbitrary until it is filled."""
    moves = (operation for operation in graph.operations if facts_of(operation.name).gathers_shards)
    found = {index for operation in moves for index in operands(operation)}
    makers = [graph.values[index].operation for index in found]
    views = (graph.operations[each] for each in makers if each is not None)
    return found.union(*(operands(view) for view in views if facts_of(view.name).only_reshapes))


def on_purpose(operation: Operation, slot: int) -> bool:
    """Whether a result may well be infinite or arbitrary: a mask, fresh memory, or memory that other ranks fill."""
    masked = any(not math.isfinite(each) for each in leaves(operation.arguments, float))
    facts = facts_of(operation.name)
    return masked or facts.filled_by_ranks or slot in (*facts.unwritten, *facts.infinite)


def evidence_of(context: StepContext, operation: Operation, made: Value) -> Iterator[str]:
    """The first such element with its operands, the calculation, and the number of such elements."""
    assert made.data is not None
    data = dense(made.data)
    bad = data.isnan() if data.isnan().any() else ~data.isfinite()
    places = [tuple(at) for at in bad.nonzero().tolist()]
    at = places[0]
    given = ", ".join(_operands(context, operation, at))
    yield f"{element_of(context.name(made.index), at, data)}{' from ' + given if given else ''}."
    if reason := _reason(context, operation, at, data):
        yield reason
    if len(places) > 1:
        yield f"{len(places)} of {data.numel()} elements are {'NaN' if data[at].isnan() else 'infinite'}."


def _operands(context: StepContext, operation: Operation, at: Index) -> Iterator[str]:
    """The element of each operand at the same place; its range if the places do not correspond."""
    for index in operands(operation):
        data = context.values[index].data
        if text := context.at(index, at):
            yield text
        elif data is not None and data.numel() and data.is_floating_point():
            low, high = dense(data).min().item(), dense(data).max().item()
            yield f"{context.name(index)} between {number(low)} and {number(high)}"


def _reason(context: StepContext, operation: Operation, at: Index, made: Tensor) -> str:
    """The calculation as one would write it: `log(-1.2)`, `0 / 0`, and why it is not finite."""
    if nothing := mean_of_nothing(context, operation):
        return nothing
    facts, numbers, result = facts_of(operation.name), _numbers(context, operation, at), made[at].item()
    limit = _overflow(result, made) if facts.overflows and "0" not in numbers else ""
    why = f": {limit}" if limit else ""
    if facts.notation and len(numbers) == 2:
        return f"{facts.notation.format(*numbers)} is {number(result)}{why}."
    if facts.undefined and math.isnan(abs(result)):
        return facts.undefined
    if len(numbers) == 1:
        return f"{base_name(operation.name).removesuffix('_')}({numbers[0]}) is {number(result)}{why}."
    return f"{limit[0].upper()}{limit[1:]}." if limit else ""


def _numbers(context: StepContext, operation: Operation, at: Index) -> list[str]:
    """The operands as numbers: tensors at this place, and plain numbers; [] if a tensor's place is unknown."""
    found = []
    for name, given in operation.arguments.items():
        if isinstance(given, Ref):
            value = context.values[given.value]
            own = aligned(at, value.shape)
            if value.data is None or own is None:
                return []
            found.append(number(dense(value.data)[own].item()))
        elif isinstance(given, (int, float)) and not isinstance(given, bool) and name != "alpha":
            found.append(number(given))
    return found


def _overflow(result: Any, made: Tensor) -> str:
    """Why a finite calculation gives infinity: the largest number of the type."""
    if isinstance(result, complex) or not math.isinf(result):
        return ""
    limits = torch.finfo(made.dtype)
    return f"the largest {limits.dtype} is {limits.max:.3g}"
