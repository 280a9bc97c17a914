"""One step under examination, with the questions that several checks ask of it.

Numbers may be missing: of a step that was recorded with statistics alone a value has no `data`. What can be asked of
statistics is asked of them (`statistics`), and a check that needs the numbers leaves such a value out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor

from chainrule.derivation.backprop import Derivation, Step
from chainrule.diagnostics.thresholds import Thresholds
from chainrule.graph.graph import Graph, Operation, Place, Ref, references
from chainrule.graph.names import Notation
from chainrule.graph.snapshot import Parameter, ParameterUpdate, has_numbers
from chainrule.graph.statistics import Statistics
from chainrule.graph.statistics_cache import StatisticsCache

# What hands its numbers on as they are: only their shape, order or number type changes.
TRANSPARENT = frozenset({
    "view", "_unsafe_view", "reshape", "_reshape_alias", "squeeze", "unsqueeze", "t", "transpose", "permute", "expand",
    "clone", "alias", "contiguous", "_to_copy", "flatten", "select", "slice", "lift_fresh", "movedim",
})  # fmt: skip

WEIGHING = {"addmm": ("mat1", "mat2"), "mm": ("self", "mat2"), "linear": ("input", "weight"), "bmm": ("self", "mat2"),
            "convolution": ("input", "weight"), "addmv": ("mat", "vec"), "mv": ("self", "vec"),
            "_convolution": ("input", "weight"), "baddbmm": ("batch1", "batch2")}  # fmt: skip
"""What multiplies an input by a weight, and as which arguments it takes the two."""


class StepContext:
    """The step under examination."""

    def __init__(
        self,
        graph: Graph,
        derivation: Derivation | None,
        notation: Notation,
        thresholds: Thresholds | None = None,
        measures: StatisticsCache | None = None,
        unfinished: bool = False,
    ) -> None:
        self.unfinished = unfinished
        self.graph = graph
        self.derivation = derivation
        self.notation = notation
        self.thresholds = thresholds or Thresholds()
        self.measures = measures or StatisticsCache()
        self.worked_out: dict[str, Any] = {}  # what more than one check asks for, by the name of what it is
        self._statistics: dict[tuple[int, bool], Statistics | None] = {}

    # -- names --------------------------------------------------------------------------------------------------------

    def name(self, value: int) -> str:
        """What a value is called."""
        return self.notation.plain(value)

    def layer(self, value: int) -> str:
        """The layer that made a value, for a line of text: ` of layer 1 (linear1)`."""
        known = self.notation.layers.get(value)
        operation = self.producer(value)
        module = self.graph.calls[operation.call].module if operation and operation.call is not None else ""
        path = f" ({module})" if module else ""
        return f" of layer {known[1]}{path}" if known else f" of {module}" if module else f" of {self.name(value)}"

    def place(self, operation: Operation) -> Place | None:
        """Where an operation was called."""
        return self.graph.calls[operation.call].place if operation.call is not None else None

    def called(self, operation: Operation) -> str:
        """What the user called; where that is an operator (`/`), the operation that it is."""
        name = self.graph.calls[operation.call].name if operation.call is not None else "__"
        return base_of(operation) if name.startswith("__") else name

    def parameter(self, member: ParameterUpdate) -> Parameter | None:
        """What an optimizer moved, as a parameter of the step; two may have one name, so its value comes first."""
        return self._of_value.get(member.value) or self.graph.parameters.get(member.name)

    def may_learn(self, parameter: Parameter) -> bool:
        """Whether an optimizer that stepped holds it; where none stepped, any may."""
        return not self.held or parameter.name in self.held

    @cached_property
    def held(self) -> frozenset[str]:
        """The names of the parameters that the optimizers that stepped hold."""
        members = (member for update in self.graph.updates for member in update.parameters)
        return frozenset(known.name for member in members if (known := self.parameter(member)) is not None)

    @cached_property
    def _of_value(self) -> dict[int | None, Parameter]:
        return {known.value: known for known in self.graph.parameters.values() if known.value is not None}

    # -- the path through the graph ------------------------------------------------------------------------------------

    def forward(self) -> Iterator[Step]:
        """The steps of the forward pass, where there is a derivation."""
        steps = self.derivation.steps if self.derivation is not None else ()
        return (step for step in steps if step.kind == "forward")

    def producer(self, value: int) -> Operation | None:
        """The operation that made a value."""
        operation = self.graph.values[value].operation
        return None if operation is None else self.graph.operations[operation]

    def source(self, value: int) -> int:
        """The value whose numbers these are: back through views, copies and changes of the number type."""
        while (operation := self.producer(value)) is not None and base_of(operation) in TRANSPARENT:
            given = argument(operation, "self")
            if given is None:
                break
            value = given
        return value

    @cached_property
    def losses(self) -> tuple[int, ...]:
        """What backward passes began from; of an unfinished step also what its forward pass had come to."""
        begun = [each.loss for each in self.graph.accumulating if each.loss is not None]
        return tuple(dict.fromkeys([*begun, *(self._ends() if self.unfinished else ())]))

    def is_loss(self, value: int) -> bool:
        """Whether a backward pass began from it, or one could as from a loss: it is one number."""
        begun = any(each.loss == value for each in self.graph.backwards)
        return begun or math.prod(self.graph.values[value].shape) == 1

    def _ends(self) -> list[int]:
        """The results that a gradient could begin from, as none passes on from them: of one element, and the last."""
        passing = [operation for operation in self.graph.operations if self._hands_on(operation)]
        passed = {value for operation in passing for _, _, value in references(operation.arguments)}
        ends = [out for operation in passing for out in self._learning(operation.outputs) if out not in passed]
        return [out for out in ends if self.is_loss(out) or out == ends[-1]]

    def _hands_on(self, operation: Operation) -> bool:
        """Whether what was called gave a result that a gradient passes; `isfinite(loss)`, say, only works with some."""
        given = operation.outputs if operation.call is None else self.graph.calls[operation.call].outputs
        return bool(self._learning(given))

    def _learning(self, values: Iterable[int | None]) -> list[int]:
        return [value for value in values if value is not None and self.graph.values[value].requires_grad]

    def is_data(self, value: int) -> bool:
        """Whether it came from outside, or was made of such values alone: no parameter had a part in it."""
        return value in self._data

    @cached_property
    def _data(self) -> frozenset[int]:
        values = self.graph.values
        frozen = {known.value for known in self.graph.parameters.values()}
        leaves = (value.index for value in values if value.operation is None and value.kind == "input")
        found = {leaf for leaf in leaves if leaf not in frozen}
        for operation in self.graph.operations:
            if all(operand in found for _, _, operand in references(operation.arguments)):
                found.update(out for out in operation.outputs if out is not None and not values[out].requires_grad)
        return frozenset(found)

    def made_by(self, value: int) -> str:
        """The base name of the operation that made a value's numbers: `sigmoid`; "" for what came from outside."""
        operation = self.producer(self.source(value))
        return "" if operation is None else base_of(operation).removesuffix("_")

    def named(self, *bases: str) -> Iterator[Operation]:
        """The operations of these base names, in their order."""
        found = [operation for base in set(bases) for operation in self._by_base.get(base, ())]
        return iter(sorted(found, key=lambda operation: operation.index))

    @cached_property
    def _by_base(self) -> dict[str, list[Operation]]:
        found: dict[str, list[Operation]] = {}
        for operation in self.graph.operations:
            found.setdefault(base_of(operation).removesuffix("_"), []).append(operation)
        return found

    @cached_property
    def uses(self) -> dict[int, list[Operation]]:
        """The operations that take a value."""
        found: dict[int, list[Operation]] = {}
        for operation in self.graph.operations:
            for _, _, value in references(operation.arguments):
                found.setdefault(value, []).append(operation)
        return found

    @cached_property
    def weighed(self) -> tuple[tuple[Operation, int, int, int], ...]:
        """Where an input meets a weight: (operation, input, parameter, output), in forward order."""
        found = []
        for operation in self.graph.operations:
            names = WEIGHING.get(base_of(operation))
            out = operation.outputs[0] if operation.outputs else None
            if names is None or out is None:
                continue
            given, weight = (argument(operation, name) for name in names)
            if given is None or weight is None:
                continue
            given, weight = self.source(given), self.source(weight)
            if self.graph.values[weight].kind == "parameter":
                found.append((operation, given, weight, out))
        return tuple(found)

    # -- numbers ------------------------------------------------------------------------------------------------------

    def statistics(self, value: int, gradient: bool = False) -> Statistics | None:
        """What is known of a value's numbers, or of its gradient's; None where neither was kept."""
        key = (value, gradient)
        if key not in self._statistics:
            known = self.graph.values[value]
            self._statistics[key] = self.measures.of(known.gradient if gradient else known.snapshot)
        return self._statistics[key]

    def before(self, item: Parameter | ParameterUpdate) -> Statistics | None:
        """What is known of a parameter before the step."""
        return self._once("before", item, lambda: self.measures.of(item.start))

    def gradient(self, item: Parameter | ParameterUpdate) -> Statistics | None:
        """What is known of a parameter's gradient, or of that which the optimizer met; None also where it has none."""
        return self._once("gradient", item, lambda: self.measures.of(item.gradient))

    def sent(self, parameter: Parameter) -> Statistics | None:
        """What is known of what backward left in `.grad`, before other ranks' gradients were mixed in."""
        reduction = self.graph.reductions.get(parameter.name)
        if reduction is None:
            return self.gradient(parameter)
        return self._once("sent", reduction, lambda: self.measures.of(reduction.sent))

    def move(self, item: ParameterUpdate) -> Statistics | None:
        """What is known of a parameter's update: what it was after the step, minus what it was before."""

        def moved() -> Statistics | None:
            if item.update_statistics is not None or not (has_numbers(item.after) and has_numbers(item.before)):
                return item.update_statistics
            return Statistics.of(item.after - item.before)  # measured once, and let go

        return self._once("move", item, moved)

    def _once(self, what: str, item: object, figures: Callable[[], Statistics | None]) -> Statistics | None:
        key = f"{what} {id(item)}"
        if key not in self.worked_out:
            self.worked_out[key] = figures()
        found: Statistics | None = self.worked_out[key]
        return found

    def gradient_norm(self, value: int) -> float | None:
        """The norm of d loss / d value; None where it is not known, or not finite."""
        known = self.statistics(value, gradient=True)
        return None if known is None or known.not_finite else known.norm


def base_of(operation: Operation) -> str:
    """`addmm` of `aten.addmm.default`."""
    return _base(operation.name)


@cache
def _base(name: str) -> str:
    return name.removeprefix("aten.").split(".")[0]


def argument(operation: Operation, name: str) -> int | None:
    """The value that an operation took as this argument."""
    ref = operation.arguments.get(name)
    return ref.value if isinstance(ref, Ref) else None


def dense(tensor: Tensor) -> Tensor:
    """A tensor with all its elements."""
    return tensor.to_dense() if tensor.layout != torch.strided else tensor


def floating(tensor: Tensor) -> bool:
    """Whether its numbers can be other than finite."""
    return tensor.is_floating_point() or tensor.is_complex()
