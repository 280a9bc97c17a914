"""Faults between layers: linear layers that follow each other with nothing but linear operations between them."""

from __future__ import annotations

import math
from collections.abc import Iterator

from chainrule.diagnostics.check import Check
from chainrule.diagnostics.finding import Finding
from chainrule.diagnostics.step_context import StepContext, argument, operands
from chainrule.graph.graph import Operation
from chainrule.rules.facts import facts_of

NO_ACTIVATION = Check(
    "no-activation", "Two linear layers without an activation between them", "warning",
    what="A linear layer or a convolution is followed by others with nothing but linear operations between them. A "
    "narrow layer between two wide ones, a depthwise or transposed convolution, a frozen layer, the projections of an "
    "attention and the gates of a recurrent layer are meant so and are not reported. Nor is it where a layer takes the "
    "same value and its result is dropped (`no-gradient`): that is what is missing between them.",
    why="The two are one linear function: the second adds parameters, and nothing that the network could express.",
    advice="Put a nonlinearity (nn.ReLU, nn.GELU) between them, or drop one of the two.",
    source="Goodfellow, Bengio and Courville, Deep Learning, 2016, 6.1: a composition of linear functions is linear",
)  # fmt: skip


@NO_ACTIVATION.in_step
def _no_activation(context: StepContext) -> Iterator[Finding]:
    chains = _Chains(context)
    for taken, weight, out in context.weighed:
        first = context.producer(out)
        if first is None or not context.values[weight].requires_grad or _special(context, first):
            continue
        if chains.is_attention(taken):
            continue  # its output projection
        followers = chains.followers(out)
        if not followers or any(_special(context, each) or chains.is_factor(each, out) for each in followers):
            continue
        if not all(chains.reaches_a_loss(each) for each in followers):
            continue
        if any(_weight(context, each) == context.source(weight) for each in followers):
            continue  # a state that one matrix moves on, step by step, as in a Kalman filter
        given, second = _width(context, first, given=True), sum(_width(context, each) for each in followers)
        inner = max(_width(context, each, given=True) for each in followers)
        if not (inner > min(given, second) or inner >= max(given, second)):
            continue  # a bottleneck: the product has a lower rank than one layer would have
        name, then = _layer(context, first), [_layer(context, each) for each in followers]
        names = " and ".join(dict.fromkeys(then))
        yield NO_ACTIVATION.found(
            name,
            f"Nothing but linear operations lies between the layers {name} and {names}: together they are one.",
            (f"{given} inputs become {inner}, and then {second} outputs: {_count(context, [first, *followers])} "
             f"weights do what one layer of {given} inputs and {second} outputs does.",),
            place=context.place(followers[0]),
        )  # fmt: skip


class _Chains:
    """What follows a value through linear operations alone."""

    def __init__(self, context: StepContext) -> None:
        self._context = context
        self._made = {out for *_, out in context.weighed}
        self._before_losses = {*context.losses, *context.graph.ancestors(context.losses)}

    def followers(self, value: int) -> list[Operation]:
        """The layers that take a value; none if anything else takes it too."""
        found, seen, ahead = [], {value}, [value]
        while ahead:
            each = ahead.pop()
            uses = self._context.uses.get(each, [])
            if not uses:
                return []  # it leaves the network
            for use in uses:
                if _weight(self._context, use, each) is not None:
                    found.append(use)
                elif _is_linear(self._context, use):
                    ahead += [out for out in self._learning(use) if out not in seen]
                    seen.update(ahead)
                else:
                    return []
        weights = (_weight(self._context, each) for each in found)
        return found if all(each is not None and self._context.values[each].requires_grad for each in weights) else []

    def reaches_a_loss(self, layer: Operation) -> bool:
        """Whether a backward pass begins after it."""
        return not self._before_losses.isdisjoint(self._learning(layer))

    def is_attention(self, value: int) -> bool:
        """Whether it is a product of activations, or attention by one kernel."""
        made = self._context.producer(self._back(value))
        if made is None:
            return False
        facts = facts_of(made.name)
        return facts.attends or (facts.matrix_product and all(map(self._of_activations, operands(made))))

    def is_factor(self, layer: Operation, first: int) -> bool:
        """Whether its result is multiplied by another value (attention, gates), or added to another layer's.

        What `first`, the result of the layer before, was computed from is a residual stream.
        """
        seen, stream = set[int](), self._context.graph.ancestors([first])
        ahead = self._learning(layer)
        while ahead:
            each = ahead.pop()
            seen.add(each)
            for use in self._context.uses.get(each, []):
                others = [other for other in operands(use) if other != each and self._of_activations(other)]
                added = facts_of(use.name).adds
                if others and (not added or any(self._back(other) in self._made - stream for other in others)):
                    return True
                if _is_linear(self._context, use) or _splits(use):
                    ahead += [out for out in self._learning(use) if out not in seen]
        return False

    def _of_activations(self, value: int) -> bool:
        known = self._context.values[value]
        return known.requires_grad and self._context.values[self._context.source(value)].kind != "parameter"

    def _back(self, value: int) -> int:
        """The value that linear operations of one operand made another one from."""
        while value not in self._made and (made := self._context.producer(value)) is not None:
            given = argument(made, "self")
            if given is None or not (_is_linear(self._context, made) or _splits(made)):
                break
            value = given
        return value

    def _learning(self, operation: Operation) -> list[int]:
        return [out for out in operation.outputs if out is not None and self._context.values[out].requires_grad]


def _splits(operation: Operation) -> bool:
    facts = facts_of(operation.name)
    return facts.cuts or facts.slices


def _is_linear(context: StepContext, operation: Operation) -> bool:
    """Whether it keeps the numbers of one value, drops some, scales them, or adds a bias to them."""
    facts = facts_of(operation.name)
    if facts.keeps_numbers or _is_dropout(context, operation) or operation.arguments.get("negative_slope") == 1:
        return True
    if facts.scales:
        return len(operands(operation)) == 1
    values = [context.values[context.source(each)].kind for each in operands(operation)]
    return facts.adds and sum(kind not in ("parameter", "buffer") for kind in values) == 1


def _is_dropout(context: StepContext, operation: Operation) -> bool:
    return operation.call is not None and "dropout" in context.graph.calls[operation.call].name


def _weight(context: StepContext, operation: Operation, given: int | None = None) -> int | None:
    """The parameter by which it multiplies its input, which is `given`."""
    names = facts_of(operation.name).weighs
    if names is None or (given is not None and argument(operation, names[0]) != given):
        return None
    weight = argument(operation, names[1])
    weight = None if weight is None else context.source(weight)
    return weight if weight is not None and context.values[weight].kind == "parameter" else None


def _special(context: StepContext, operation: Operation) -> bool:
    """A depthwise or transposed convolution, or a part of a recurrent layer."""
    if operation.arguments.get("groups", 1) != 1 or operation.arguments.get("transposed", False):
        return True
    return operation.call is not None and context.graph.calls[operation.call].name.startswith(("lstm", "gru", "rnn"))


def _width(context: StepContext, operation: Operation, given: bool = False) -> int:
    """The features, or channels, that a layer makes, or that it takes."""
    names = facts_of(operation.name).weighs
    value = argument(operation, names[0]) if given and names is not None else operation.outputs[0]
    shape = context.values[value].shape if value is not None else ()
    axis = 1 if facts_of(operation.name).channels else -1
    return shape[axis] if len(shape) > 1 else math.prod(shape)


def _layer(context: StepContext, operation: Operation) -> str:
    """The path of the layer's module, or the name of its weight."""
    weight = _weight(context, operation)
    return "" if weight is None else context.values[weight].name.removesuffix(".weight")


def _count(context: StepContext, layers: list[Operation]) -> int:
    weights = [_weight(context, each) for each in layers]
    return sum(math.prod(context.values[each].shape) for each in weights if each is not None)
