"""A step under examination, with the questions that several checks ask.

Numbers may be missing: in a step that was recorded with statistics alone a value has no `data`. Checks that can use
statistics do so (`statistics`), and checks that need the numbers leave such a value out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

from torch import Tensor

from chainrule.derivation.backprop import Contribution, Derivation, Step
from chainrule.derivation.contributions import aligned
from chainrule.diagnostics.thresholds import Thresholds
from chainrule.graph.comparison import dense
from chainrule.graph.graph import Graph, Operation, Place, Ref, Value
from chainrule.graph.names import Index, Notation, element
from chainrule.graph.snapshot import Parameter, ParameterUpdate, Update, has_numbers
from chainrule.graph.statistics import Statistics
from chainrule.graph.statistics_cache import StatisticsCache
from chainrule.graph.trees import reach
from chainrule.numbers import number
from chainrule.rules.facts import Facts, base_name, facts_of

T = TypeVar("T")
Wanted = Callable[[Facts], Any]
"""What is asked of an operation's facts: true where they say so."""


@dataclass
class StepContext:
    """The step under examination; an `unfinished` step never reached its update.

    `kept` is passed on from step to step of a run, for what follows from the operations alone.
    """

    graph: Graph
    derivation: Derivation | None
    notation: Notation
    thresholds: Thresholds
    cache: StatisticsCache
    unfinished: bool
    kept: dict[Hashable, Any] = field(default_factory=dict)
    _memo: dict[object, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.values = self.graph.values

    def once(self, key: object, compute: Callable[[], T]) -> T:
        """A result that several checks need, computed once."""
        if key not in self._memo:
            self._memo[key] = compute()
        found: T = self._memo[key]
        return found

    def name(self, value: int) -> str:
        """The name of a value."""
        return self.notation.plain(value)

    def layer(self, value: int) -> str:
        """The layer that made a value, for a line of text: ` of layer 1 (linear1)`."""
        known = self.notation.layers.get(value)
        operation = self.producer(value)
        module = self.graph.calls[operation.call].module if operation and operation.call is not None else ""
        path = f" ({module})" if module else ""
        return f" of layer {known[1]}{path}" if known else f" of {module}" if module else f" of {self.name(value)}"

    def place(self, operation: Operation) -> Place | None:
        """The place of the call that ran an operation."""
        return self.graph.calls[operation.call].place if operation.call is not None else None

    def place_of(self, parameter: Parameter) -> Place | None:
        """The place of a parameter's value."""
        return None if parameter.value is None else self.values[parameter.value].place

    def called(self, operation: Operation) -> str:
        """The function that the user called; for an operator (`/`), the operation."""
        name = self.graph.calls[operation.call].name if operation.call is not None else "__"
        return base_name(operation.name) if name.startswith("__") else name

    @cached_property
    def members(self) -> tuple[ParameterUpdate, ...]:
        """The parameters that optimizers moved, in the order of the updates."""
        return tuple(member for update in self.graph.updates for member in update.parameters)

    def parameter(self, member: ParameterUpdate) -> Parameter | None:
        """The parameter of the step that an optimizer moved. Its value comes first, as names may not be unique."""
        return self._of_value.get(member.value) or self.graph.parameters.get(member.name)

    def may_learn(self, parameter: Parameter) -> bool:
        """Whether an optimizer that stepped holds it; if none stepped, any may."""
        return not self.held or parameter.name in self.held

    @cached_property
    def held(self) -> frozenset[str]:
        """The names of the parameters that the optimizers that stepped hold."""
        return frozenset(known.name for member in self.members if (known := self.parameter(member)) is not None)

    @cached_property
    def idle(self) -> frozenset[str]:
        """The names of the parameters of optimizers that stepped, moved nothing, and had no gradient at all."""
        nothing = (each.parameters for each in self.graph.updates if self.is_idle(each))
        known = (self.parameter(member) for members in nothing for member in members)
        return frozenset(each.name for each in known if each is not None)

    def is_idle(self, update: Update) -> bool:
        """Whether no parameter of an optimizer had a gradient or was moved, as by a closure."""
        return all(member.gradient is None and is_zero(self.move(member)) for member in update.parameters)

    @cached_property
    def _of_value(self) -> dict[int | None, Parameter]:
        return {known.value: known for known in self.graph.parameters.values() if known.value is not None}

    def forward(self) -> Iterator[Step]:
        """The steps of the forward pass; none without a derivation."""
        steps = self.derivation.steps if self.derivation is not None else ()
        return (step for step in steps if step.kind == "forward")

    def producer(self, value: int) -> Operation | None:
        """The operation that made a value."""
        operation = self.values[value].operation
        return None if operation is None else self.graph.operations[operation]

    def source(self, value: int) -> int:
        """The value that the numbers come from, before views, copies and changes of the number type."""
        while (operation := self.producer(value)) is not None and facts_of(operation.name).keeps_numbers:
            given = argument(operation, "self")
            if given is None:
                break
            value = given
        return value

    @cached_property
    def losses(self) -> tuple[int, ...]:
        """The values that backward passes began from; in an unfinished step also the ends of its forward pass."""
        begun = [each.loss for each in self.graph.accumulating if each.loss is not None]
        return tuple(dict.fromkeys([*begun, *(self._ends() if self.unfinished else ())]))

    def is_loss(self, value: int) -> bool:
        """Whether a backward pass began from it, or it is one number, from which one could begin."""
        begun = any(each.loss == value for each in self.graph.backwards)
        return begun or math.prod(self.values[value].shape) == 1

    def _ends(self) -> list[int]:
        """The results with a gradient that nothing uses: those of one element, and the last."""
        calls, operations = self.graph.calls, self.graph.operations
        # A call such as `isfinite(loss)` has a result without a gradient, though operations inside may have one.
        results = ((each, each.outputs if each.call is None else calls[each.call].outputs) for each in operations)
        passing = [operation for operation, outputs in results if self._learning(outputs)]
        passed = {value for operation in passing for value in operands(operation)}
        ends = [out for operation in passing for out in self._learning(operation.outputs) if out not in passed]
        return [out for out in ends if self.is_loss(out) or out == ends[-1]]

    def _learning(self, values: Iterable[int | None]) -> list[int]:
        return [value for value in values if value is not None and self.values[value].requires_grad]

    @cached_property
    def data(self) -> frozenset[int]:
        """The inputs, and the values that were computed from inputs alone, without a parameter."""
        values = self.values
        frozen = {known.value for known in self.graph.parameters.values()}
        leaves = (value.index for value in values if value.operation is None and value.kind == "input")
        found = {leaf for leaf in leaves if leaf not in frozen}
        for operation in self.graph.operations:
            if all(operand in found for operand in operands(operation)):
                found.update(out for out in operation.outputs if out is not None and not values[out].requires_grad)
        return frozenset(found)

    @cached_property
    def from_data(self) -> frozenset[int]:
        """The inputs, and every value that depends on one."""
        found = set(self.data)
        for operation in self.graph.operations:
            if not found.isdisjoint(operands(operation)):
                found.update(out for out in operation.outputs if out is not None)
        return frozenset(found)

    def operations_that(self, wanted: Wanted) -> Iterator[Operation]:
        """The operations whose facts are as wanted, in order."""
        return (operation for operation in self.graph.operations if wanted(facts_of(operation.name)))

    def fed_by(self, takes: str, makers: Wanted) -> Iterator[tuple[Operation, Value, Operation]]:
        """(loss, its first operand, the operation that made it): losses that take this, and get it from `makers`."""
        for operation in self.operations_that(lambda facts: facts.takes == takes):
            given = next(iter(operands(operation)), None)
            maker = self.producer(self.source(given)) if given is not None else None
            if given is not None and maker is not None and makers(facts_of(maker.name)):
                yield operation, self.values[given], maker

    @cached_property
    def uses(self) -> dict[int, list[Operation]]:
        """The operations that take a value."""
        found: dict[int, list[Operation]] = {}
        for operation in self.graph.operations:
            for value in operands(operation):
                found.setdefault(value, []).append(operation)
        return found

    def results(self, value: int) -> list[int]:
        """The outputs of the operations that take a value."""
        return [out for use in self.uses.get(value, ()) for out in use.outputs if out is not None]

    @cached_property
    def weighed(self) -> tuple[tuple[int, int, int], ...]:
        """Where an input is multiplied by a parameter: (input, parameter, output), in forward order."""
        found = []
        for operation in self.graph.operations:
            names = facts_of(operation.name).weighs
            out = operation.outputs[0] if operation.outputs else None
            if names is None or out is None:
                continue
            given, weight = (argument(operation, name) for name in names)
            if given is None or weight is None:
                continue
            given, weight = self.source(given), self.source(weight)
            if self.values[weight].kind == "parameter":
                found.append((given, weight, out))
        return tuple(found)

    def statistics(self, value: int | None, gradient: bool = False) -> Statistics | None:
        """The statistics of a value, or of its gradient; None if neither they nor its numbers were stored."""
        if value is None:
            return None
        known = self.values[value]
        return self.once((value, gradient), lambda: self.cache.of(known.gradient if gradient else known.snapshot))

    def is_output(self, value: int) -> bool:
        """Whether no product with a weight or another value follows it, as for an output of the network or a loss."""
        weighed = {given for given, _, _ in self.weighed}
        return not any(
            each in weighed or any(facts_of(use.name).weighs for use in self.uses.get(each, ()))
            for each in reach([value], self.results)
        )

    def lost(self, value: int | None, gradient: bool = False) -> Statistics | None:
        """The statistics of a value, or of its gradient, if they show an element that is not finite."""
        known = self.statistics(value, gradient)
        return known if known is not None and known.not_finite else None

    def gradient(self, item: Parameter | ParameterUpdate) -> Statistics | None:
        """The statistics of a parameter's gradient, or of the one that the optimizer used; None if it has none."""
        return self.cache.of(item.gradient)

    def sent(self, parameter: Parameter) -> Statistics | None:
        """The statistics of what backward left in `.grad`, before the gradients of other ranks were added."""
        reduction = self.graph.reductions.get(parameter.name)
        return self.gradient(parameter) if reduction is None else self.cache.of(reduction.sent)

    def move(self, item: ParameterUpdate) -> Statistics | None:
        """The statistics of a parameter's update, its difference between the end and the start of the step."""
        if item.update_statistics is not None or not (has_numbers(item.after) and has_numbers(item.before)):
            return item.update_statistics
        after, before = item.after, item.before
        return self.once(("move", id(item)), lambda: Statistics.of(dense(after) - dense(before)))

    def between(self, value: int) -> str:
        """The range of a value: `x lies between -1 and 2.`; "" if it is unknown."""
        known = self.statistics(value)
        return f"{self.name(value)} lies between {number(known.low)} and {number(known.high)}." if known else ""

    def at(self, value: int, place: Index) -> str:
        """The element of a value at a place of a result, broadcast: `x[0] = 2`; "" if it is unknown."""
        known = self.values[value]
        own = aligned(place, known.shape)
        if own is None or known.data is None or not known.data.numel():
            return ""
        return element_of(self.name(value), own, known.data)


def element_of(name: str, place: Index, data: Tensor) -> str:
    """One element with its number: `x[0] = 2`."""
    return f"{element(name, place)} = {number(dense(data)[place].item())}"


def is_zero(known: Statistics | None) -> bool:
    """Whether every element of a tensor is known to be 0."""
    return known is not None and known.zeros == known.elements > 0


def rate_of(member: ParameterUpdate) -> float:
    """The learning rate of a parameter in an optimizer's step; NaN where the optimizer has none."""
    rate = member.options.get("lr")
    return math.nan if rate is None else float(rate)


def argument(operation: Operation, name: str) -> int | None:
    """The value that an operation took as this argument."""
    ref = operation.arguments.get(name)
    return ref.value if isinstance(ref, Ref) else None


def operands(operation: Operation) -> list[int]:
    """The values that an operation takes."""
    lists = (given if type(given) is list else (given,) for given in operation.arguments.values())
    return [each.value for given in lists for each in given if type(each) is Ref]


def sent_by(contribution: Contribution) -> Tensor | None:
    """The gradient of a contribution as autograd computed it, or ours if that was not recorded."""
    return contribution.gradient if contribution.recorded is None else contribution.recorded
