"""Where in a forward pass numbers that are not finite are born, and which values carry which birth on.

A number that is not finite is *born* where an operation makes it of operands that are finite (or infinite on purpose,
as in a mask); wherever an operand was already tainted by an earlier birth it is only *passed on*.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from chainrule.diagnostics.step_context import TRANSPARENT, StepContext, base_of, dense, floating
from chainrule.graph.graph import Graph, Operation, Ref, Value, references
from chainrule.graph.snapshot import has_numbers
from chainrule.graph.trees import leaves, reach

COLLECTIVES = ("fsdp.", "c10d.")  # whose results other ranks fill
FILLS = frozenset({
    "uniform_", "normal_", "zero_", "fill_", "copy_", "random_", "bernoulli_", "exponential_", "log_normal_",
    "cauchy_", "geometric_", "eye_",
})  # fmt: skip
"""What writes over all of its `self`, whatever that held."""

OF_LOGARITHMS = frozenset({("_ctc_loss", 1), ("_cudnn_ctc_loss", 1)})
"""Results that only the backward pass reads: logarithms of the probabilities of paths, most of which are 0."""


@dataclass
class Birth:
    """What was born where: in which operation (None: it was in the leaf `value` before the step)."""

    value: Value
    operation: Operation | None
    passed_on: list[int] = field(default_factory=list)  # the values that got it from here, in order


class Births:
    """Every birth of the forward pass, and which values carry which on."""

    def __init__(self, context: StepContext) -> None:
        self.context = context
        self.births: list[Birth] = []
        self.of: dict[int, Birth] = {}  # a value that is not finite -> the birth it goes back to
        self.infinite: list[Value] = []  # leaves that hold infinity, on purpose as it may be
        self.bad_losses: list[int] = []
        self.first: list[Birth] = []
        if not context.measures.all_finite(value.data for value in context.graph.values):
            self._find()

    def _find(self) -> None:
        graph = self.context.graph
        self._buffers = _buffers_of_shards(graph)
        for operation in graph.operations:
            self._read(operation)
        self.bad_losses = [
            loss for loss in self.context.losses if not self.context.measures.finite(graph.values[loss].data)
        ]
        self.first = self._first()

    def _read(self, operation: Operation) -> None:
        context, values = self.context, self.context.graph.values
        operands = [values[index] for _, _, index in references(operation.arguments)]
        for leaf in operands:
            if leaf.index in self._buffers or leaf.operation is not None or leaf.index in self.of:
                continue
            if leaf.data is not None and not context.measures.finite(leaf.data):
                if self._is_gradient(leaf, leaf.data) or not self._is_read(leaf.index):
                    continue
                if dense(leaf.data).isnan().any():
                    self._born(leaf, None)
                else:
                    self.infinite.append(leaf)
        inherited = next((self.of[each.index] for each in operands if each.index in self.of), None)
        for slot, out in enumerate(operation.outputs):
            if out is None or not self._is_lost(values[out]):
                continue
            made = values[out]
            if inherited is not None:
                inherited.passed_on.append(made.index)
                self.of[made.index] = inherited
            elif made.data is None or on_purpose(operation, slot) or any(map(self._is_lost_unkept, operands)):
                continue  # what was not kept is asked by its figures, see `origin`
            elif _makes(context, made.data, [each.data for each in operands]):
                self._born(made, operation)

    def _is_lost(self, value: Value) -> bool:
        return not self.context.measures.finite(value.data) or self._is_lost_unkept(value)

    def _is_lost_unkept(self, value: Value) -> bool:
        known = self.context.statistics(value.index) if value.data is None else None
        return known is not None and known.not_finite > 0

    def _is_gradient(self, leaf: Value, data: Tensor) -> bool:
        """Whether it is what backward left in a parameter's `.grad`, as whatever clips it reads it: not born before.

        The gradient of a factor is the other one, number for number, so what a loss was made of is none.
        """
        known = (each.grad for each in self.context.graph.parameters.values() if each.shape == leaf.shape)
        same = any(has_numbers(each) and _are_same(dense(each), dense(data)) for each in known)
        return same and leaf.index not in self.context.graph.ancestors(self.context.losses)

    def _is_read(self, leaf: int) -> bool:
        """Whether any operation takes its numbers: a new parameter holds anything until it is initialised."""
        return any(
            base_of(use) not in TRANSPARENT and base_of(use) != "detach"
            for value in reach([leaf], self._carries_on)
            for use in self.context.uses.get(value, ())
            if not _fills(use, value)
        )

    def _carries_on(self, value: int) -> list[int]:
        """The results that may hold the numbers of a value; of one that is filled whole there are none."""
        uses = (use for use in self.context.uses.get(value, ()) if "base" in use.arguments or not _fills(use, value))
        return [out for use in uses for out in use.outputs if out is not None and self._may_carry(out)]

    def _may_carry(self, value: int) -> bool:
        known = self.context.statistics(value)
        return known is None or bool(known.not_finite)

    def _born(self, value: Value, operation: Operation | None) -> None:
        birth = Birth(value, operation)
        self.births.append(birth)
        self.of[value.index] = birth

    def _first(self) -> list[Birth]:
        """The first of all, and the one that the loss goes back to, where that is another.

        In an unfinished step only what reached a loss or a gradient counts: what else ran in it (an evaluation, say) is
        not known to be of the training.
        """
        losses = [
            loss for loss in self.bad_losses if self.context.is_loss(loss)
        ]  # masked scores are infinite on purpose
        if losses and self.infinite and not self.births:
            self._born(self.infinite[0], None)
        reached = [self.of[loss] for loss in self.bad_losses if loss in self.of][:1]
        if not reached:
            return self.births[:1] if self._gradients_lost or not self.context.unfinished else []
        before = self.context.graph.ancestors([reached[0].value.index])
        return [*[birth for birth in self.births if birth.value.index in before][:1], *reached]

    @property
    def harmful(self) -> bool:
        """Whether what is not finite reaches the loss or a parameter's gradient."""
        return bool(self.bad_losses) or self._gradients_lost

    @property
    def _gradients_lost(self) -> bool:
        return not all(self.context.measures.finite(each.grad) for each in self.context.graph.parameters.values())


def births_of(context: StepContext) -> Births:
    """The births of a step, worked out once."""
    if "births" not in context.worked_out:
        context.worked_out["births"] = Births(context)
    known: Births = context.worked_out["births"]
    return known


def _fills(operation: Operation, value: int) -> bool:
    """Whether an operation writes over a value, or over a part of it."""
    given = operation.arguments
    return base_of(operation) in FILLS and Ref(value) in (given.get("self"), given.get("base"))


def _are_same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are equal, NaN for NaN."""
    return one.dtype == other.dtype and torch.allclose(one, other, rtol=0, atol=0, equal_nan=True)


def _makes(context: StepContext, made: Tensor, operands: list[Tensor | None]) -> bool:
    """NaN where no operand has it, or infinity where all operands are finite."""
    known = [dense(each) for each in operands if each is not None and floating(each)]
    if dense(made).isnan().any():
        return not any(each.isnan().any() for each in known)
    return all(context.measures.finite(each) for each in known)


def _buffers_of_shards(graph: Graph) -> set[int]:
    """What FSDP2 gathers parts in, and what that is a view of: memory that holds anything before it is filled."""
    moves = (operation for operation in graph.operations if operation.name.startswith("fsdp."))
    found = {index for operation in moves for _, _, index in references(operation.arguments)}
    makers = [graph.values[index].operation for index in found]
    views = [graph.operations[each] for each in makers if each is not None]
    return found | {
        index
        for operation in views
        if operation.name.startswith("aten.view")
        for _, _, index in references(operation.arguments)
    }


def on_purpose(operation: Operation, slot: int) -> bool:
    """Masks are filled with infinity by hand, and fresh memory, or what other ranks are yet to fill, holds anything.

    FSDP2 looks at such memory through `as_strided`, which makes no numbers of its own.
    """
    if (base_of(operation), slot) in OF_LOGARITHMS:
        return True
    given = any(not math.isfinite(each) for each in leaves(operation.arguments, float))
    return given or "empty" in operation.name or operation.name.startswith((*COLLECTIVES, "aten.as_strided."))
