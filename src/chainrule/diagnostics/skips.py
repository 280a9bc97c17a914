"""Skip connections that add something else than was meant: the branch itself, or what a branch has overwritten."""

from __future__ import annotations

import math
from collections.abc import Iterator

from chainrule.diagnostics.check import Check
from chainrule.diagnostics.comparisons import first_output
from chainrule.diagnostics.finding import Finding
from chainrule.diagnostics.step_context import StepContext, argument, operands
from chainrule.graph.graph import Operation
from chainrule.rules.facts import base_name, facts_of

ITSELF = Check(
    "added-to-itself", "A value of the network is added to itself", "warning",
    what="An addition between layers takes one and the same value twice, x + x, in a module without an nn.Identity, as "
    "a branch that is one adds its own input.",
    why="It is twice the value and no skip connection: the input of the block, which was to be added, goes nowhere.",
    advice="Keep the input under another name before the branch: y = branch(x); x = x + y.",
    source="He et al., Deep residual learning for image recognition, 2016, equation 1: y = F(x) + x")  # fmt: skip


@ITSELF.in_step
def _itself(context: StepContext) -> Iterator[Finding]:
    if any(each.class_name == "Identity" for each in context.graph.modules):
        return
    layers = {given for given, _, _ in context.weighed} | {out for _, _, out in context.weighed}
    for operation in context.operations_that(lambda facts: facts.adds):
        one, other, out = argument(operation, "self"), argument(operation, "other"), first_output(operation)
        if one is None or one != other or out is None or math.prod(context.values[out].shape) < 2:
            continue
        if context.values[one].requires_grad and not context.is_output(out) and _follows(context, one, layers):
            name = context.name(one)
            yield ITSELF.found(
                name, f"{name} is added to itself{_within(context, operation)}: the sum is twice {name}.",
                f"Both operands are the {context.values[one].shape} of {name}.", place=context.place(operation),
            )  # fmt: skip
            return


def _follows(context: StepContext, value: int, layers: set[int]) -> bool:
    """Whether a value was computed by a layer of the network."""
    return not layers.isdisjoint([value, *context.graph.ancestors([value])])


def _within(context: StepContext, operation: Operation) -> str:
    module = context.graph.calls[operation.call].module if operation.call is not None else ""
    return f" in {module}" if module else ""


OVERWRITTEN = Check(
    "skip-overwritten", "A branch overwrites what its skip connection adds", "warning",
    what="An operation in place inside a module, such as nn.ReLU(inplace=True), overwrites the module's input, and the "
    "module around it adds that input to the module's result.",
    why="The skip connection carries what the branch made of its input, and not the input: its negative part is lost.",
    advice="Drop inplace=True from the first layer of the branch.",
    source="PyTorch's documentation of nn.ReLU: inplace; He et al., Identity mappings in deep residual networks, 2016",
)  # fmt: skip


@OVERWRITTEN.in_step
def _overwritten(context: StepContext) -> Iterator[Finding]:
    for operation in context.graph.operations:
        given, out = argument(operation, "self"), first_output(operation)
        branch = _branch(context, operation)
        if given is None or out is None or not branch or len(operands(operation)) != 1:
            continue
        if not base_name(operation.name).endswith("_"):
            continue  # it overwrites nothing
        before = context.producer(given)
        if before is not None and _module(context, before).startswith(branch):
            continue  # it is no input of the branch
        for use in context.uses.get(out, ()):
            others = [each for each in operands(use) if each != out]
            if facts_of(use.name).adds and len(others) == 1 and not _module(context, use).startswith(branch):
                inside = {_module(context, made) for made in _makers(context, others[0])}
                if any(each.startswith(branch) for each in inside):
                    name, module = context.name(given), _module(context, operation)[:-1]
                    yield OVERWRITTEN.found(
                        module,
                        f"{module} overwrites {name}, which is added to the result of {branch[:-1]} afterwards.",
                        f"{context.called(operation)} writes to the {context.values[given].shape} of {name} in place.",
                        place=context.place(use),
                    )  # fmt: skip
                    return


def _module(context: StepContext, operation: Operation) -> str:
    return f"{context.graph.calls[operation.call].module}." if operation.call is not None else "."


def _branch(context: StepContext, operation: Operation) -> str:
    """The path, with a dot, of the module around the one that ran an operation; "" for one at the top."""
    path = _module(context, operation)[:-1].rpartition(".")[0]
    return f"{path}." if path else ""


def _makers(context: StepContext, value: int) -> Iterator[Operation]:
    """The operation that made a value, and those before it that move or scale data alone."""
    while (maker := context.producer(value)) is not None:
        yield maker
        given = argument(maker, "self")
        if given is None or not (facts_of(maker.name).keeps_numbers or facts_of(maker.name).scales):
            return
        value = given
