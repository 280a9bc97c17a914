"""What students do wrong on the way back: in one step, in the gradient of one of its arguments."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from chainrule.derivation.backprop import Step
from chainrule.derivation.forward_values import name_of
from chainrule.execution.number_types import wide
from chainrule.exercises.activations import ACTIVATIONS, called
from chainrule.exercises.chain import Change, Part, by_rule
from chainrule.exercises.loss_slips import loss_slips, mean_of
from chainrule.exercises.slip import Slip, SlipsOfStep, listed, written
from chainrule.graph.graph import Graph, Value
from chainrule.graph.names import Notation
from chainrule.graph.trees import map_leaves
from chainrule.rules import Applied, Rule

Upstream = tuple[Tensor | None, ...]
Work = Callable[[Applied, Upstream], Tensor | None]

SAMPLES = 8  # of a batch, of which one may be taken alone


class BackwardSlips(SlipsOfStep):
    """The slips in the steps of one backward pass."""

    def __init__(self, graph: Graph, notation: Notation, forward: Iterable[Step]) -> None:
        super().__init__(graph, notation)
        activations = (step for step in forward if step.rule is not None and step.rule.name in ACTIVATIONS)
        self.argument_of = {step.outputs[0]: step.arguments[0][2] for step in activations}  # by an activation's result

    def of(self, part: Part, uses: int) -> Iterator[Slip]:
        """The slips in one part of a step; `uses` is how many steps its value goes into."""
        assert part.step.rule is not None
        assert part.step.op is not None
        yield from _Slips(self, part, part.step.rule, part.step.op).all(uses)


class _Slips:
    """Those in one part, with the names of its numbers: y = f(x), and the gradients of both."""

    def __init__(self, known: BackwardSlips, part: Part, rule: Rule, op: Applied) -> None:
        self.graph, self.after, self.argument_of = known.graph, known.after, known.argument_of
        self.plain = known.notation.plain
        self.part, self.rule, self.op = part, rule, op
        self.value: Value = self.graph.values[part.value]
        self.result: Value = self.graph.values[part.step.outputs[0]]
        self.x, self.y = self.plain(part.value), self.plain(self.result.index)
        self.dx = known.notation.plain_gradient(part.value)
        self.dy = known.notation.plain_gradient(self.result.index)

    def all(self, uses: int) -> Iterator[Slip]:
        yield from self._chain_rule()
        yield from self._batch()
        if self.rule.topic not in ("loss", "activation") and self.rule.name != "softmax":
            yield from self._operands()
        yield from self._activation()
        yield from self._special()
        if self.rule.topic == "loss":
            yield from self._loss()
        if uses > 1:
            sentence = f"{self.x} is used {uses} times, and what comes back through {self.y} is missing in the sum"
            yield self._slip(1.5, "path", sentence, lambda op, up: None)

    def _slip(self, cost: float, name: str, sentence: str, work: Work) -> Slip:
        def back(_: Part, op: Applied, upstream: Upstream) -> Tensor | None:
            return work(op, upstream)

        return Slip(cost, name, sentence, Change(self.part.step, self.part.argument, back))

    def _by_rule(self, op: Applied, up: Upstream) -> Tensor | None:
        return by_rule(self.part, op, up)

    def _from(self, change: Callable[[Tensor], Tensor]) -> Work:
        """The right step from other upstream gradients."""
        return lambda op, up: self._by_rule(op, tuple(None if g is None else change(g) for g in up))

    def _scaled(self, factor: float) -> Work:
        def work(op: Applied, up: Upstream) -> Tensor | None:
            found = self._by_rule(op, up)
            return None if found is None else factor * found

        return work

    # -- any step -----------------------------------------------------------------------------------------------------

    def _chain_rule(self) -> Iterator[Slip]:
        """One of the two factors left out, or the sign."""
        if self.result.shape == self.value.shape and len(self.part.step.outputs) == 1:
            sentence = f"the derivative of {self.y} by {self.x} is left out: {self.dy} is passed on as it is"
            off = self._off()
            yield self._slip(1.2, "off unit" if off else "left out", off or sentence, lambda op, up: up[0])
        numbers = f", without {written(self.dy, self.result.grad)}" if self.result.grad is not None else ""
        sentence = f"{self.dy} is left out: this is the derivative of {self.y} by {self.x} alone{numbers}"
        yield self._slip(1.6, "upstream left out", sentence, self._from(torch.ones_like))
        sentence = f"the sign of what comes back to {self.x} through {self.y} is wrong"
        yield self._slip(1.45, "sign", sentence, self._scaled(-1.0))

    def _off(self) -> str:
        """Where a ReLU is off, if it is one."""
        data, grad = self.value.data, self.result.grad
        if self.rule.name != "relu" or data is None or grad is None:
            return ""
        off = listed(self.x, data, (data <= 0) & (grad != 0))
        return f"the ReLU is off there: {off}; {self.dx} is 0 where {self.x} is not above 0" if off else ""

    def _batch(self) -> Iterator[Slip]:
        """A gradient that is summed over the samples of a batch: one sample alone, or the mean."""
        count = self.result.shape[0] if self.result.shape else 1
        others = [self.graph.values[v] for _, _, v in self.part.step.arguments if v != self.part.value]
        data = next((each for each in others if each.kind != "parameter"), None)
        if self.value.kind != "parameter" or count < 2 or data is None or data.shape[:1] != (count,):
            return
        said = f"the sum over the batch is missing: {self.dx} adds up what {self.dy} has for {count} samples"
        for sample in range(min(count, SAMPLES)):
            sentence = f"{said}; here only sample {sample} counts"
            yield self._slip(1.2, "sum over the batch", sentence, self._from(partial(_of_sample, sample)))
        sentence = (
            f"{self.dx} is the sum over the {count} samples, and not their mean; a mean in the loss is in {self.dy}"
        )
        yield self._slip(1.15, "mean", sentence, self._scaled(1 / count))

    # -- products -----------------------------------------------------------------------------------------------------

    def _operands(self) -> Iterator[Slip]:
        """The other factor of a product: left out, transposed, of after the update."""
        if len(self.result.shape) == 2 and self.result.shape[0] == self.result.shape[1] > 1:
            sentence = f"{self.dy} is transposed the other way in {self.dx}"
            yield self._slip(1.3, "transposed", sentence, self._from(torch.t))
        for name, item, value in self.part.step.arguments:
            other = self.op.arguments.get(name)
            is_factor = item is None and value != self.part.value and name in self.rule.wrt
            if is_factor and isinstance(other, Tensor) and other.is_floating_point():
                yield from self._operand(name, self.plain(value), other, self.after.get(value))
                yield from self._before_activation(name, value)

    def _operand(self, name: str, text: str, other: Tensor, after: Tensor | None) -> Iterator[Slip]:
        numbers = written(text, other)
        sentence = f"the factor {text} is left out in {self.dx}: {numbers}"
        yield self._with(1.3, "left out", sentence, name, torch.ones_like)
        yield self._with(1.5, "sign", f"the sign of {text} is wrong in {self.dx}", name, torch.neg)
        if other.dim() == 2 and other.shape[0] == other.shape[1] > 1:
            sentence = f"{text} is transposed the other way in {self.dx}: {numbers}"
            yield self._with(1.2, "transposed", sentence, name, torch.t)
        if other.dim() == 4:
            sentence = f"the kernel {text} is turned the other way in {self.dx}"
            yield self._with(1.5, "kernel turned", sentence, name, lambda data: data.flip(-1, -2))
        if after is not None:
            sentence = f"the updated {text} is used in {self.dx}, which belongs to that of before: {numbers}"
            yield self._with(1.25, "updated weight", sentence, name, lambda data: after.to(data.dtype))

    def _before_activation(self, name: str, value: int) -> Iterator[Slip]:
        """An activation's argument in the place of its result."""
        argument = self.argument_of.get(value)
        data = None if argument is None else self.graph.values[argument].data
        if argument is not None and data is not None:
            z, taken = self.plain(argument), wide(data)
            sentence = f"{z} is used in {self.dx}, which has {self.plain(value)}: {written(z, data)}"
            yield self._with(1.25, "wrong value", sentence, name, lambda _: taken)

    def _with(self, cost: float, name: str, sentence: str, argument: str, change: Callable[[Tensor], Tensor]) -> Slip:
        """A slip that takes another operand."""

        def work(op: Applied, up: Upstream) -> Tensor | None:
            return self._by_rule(_with(op, {argument: change(op.arguments[argument])}), up)

        return self._slip(cost, name, sentence, work)

    # -- single operations --------------------------------------------------------------------------------------------

    def _activation(self) -> Iterator[Slip]:
        own = ACTIVATIONS.get(self.rule.name)
        if own is None:
            return
        here = called(self.rule.name) or name_of(self.rule, self.op)
        for name, other in ACTIVATIONS.items():
            if name != self.rule.name:
                sentence = f"this takes the derivative of {other.called}, {other.derivative}"
                whole = f"{sentence}; {self.y} is {here} of {self.x}, and has {own.derivative}"
                yield self._slip(1.3, "wrong activation", whole, partial(_times, other.slope))
        numbers = "" if self.value.data is None else f", {written(self.x, self.value.data)}"
        for cost, name, text, slope in own.wrong(self.x, self.y):
            sentence = f"the derivative of {here} is taken as {text}{numbers}"
            yield self._slip(cost, name, sentence, partial(_times, slope))

    def _special(self) -> Iterator[Slip]:
        """A softmax, a normalisation, a pooling."""
        if self.rule.name == "softmax":
            sentence = f"only the diagonal of the softmax's Jacobian is used, {self.y}(1 - {self.y})"
            whole = f"{sentence}: each element of {self.y} depends on all of {self.x} in its row"
            yield self._slip(1.2, "diagonal", whole, partial(_times, lambda x, y: y * (1 - y)))
            sentence = f"the sum over the row is left out in the softmax's derivative: this is {self.y} times {self.dy}"
            yield self._slip(1.3, "diagonal", sentence, partial(_times, lambda x, y: y))
        if self.rule.name == "batch_norm" and self.part.argument == "input":
            sentence = f"the mean and the variance are taken as constants, and they depend on {self.x} too"
            yield self._slip(1.2, "mean and variance", sentence, lambda op, up: self._by_rule(_frozen(op), up))
        if self.rule.name == "max_pool2d_with_indices" and set(self.op.dilation) == {1}:
            sentence = f"the gradient of a maximum goes to the largest of each window of {self.x}, and not to all"
            yield self._slip(1.3, "pooling", f"{sentence} in equal shares", partial(_spread, None))
            yield self._slip(1.3, "pooling", f"{sentence} of them", partial(_spread, 1))

    def _loss(self) -> Iterator[Slip]:
        kind = self.rule.name.removesuffix("_reduced")
        target = next((v for name, _, v in self.part.step.arguments if name == "target"), None)
        t = "the target" if target is None else self.plain(target)
        count = mean_of(self.part.step, self.graph)
        for name, sentence, slope in loss_slips(kind, self.x, t):
            yield self._slip(1.3, name, sentence, partial(_of_loss, slope, count))
            if count > 1:
                whole = f"{sentence}; and the mean's 1/{count} is missing"
                yield self._slip(1.5, name, whole, partial(_of_loss, slope, 1))
        if self.part.argument == "self" and self.value.shape == getattr(self.op.arguments.get("target"), "shape", None):
            sentence = f"{t} and {self.x} are swapped"
            yield self._slip(1.15, "swapped", sentence, lambda op, up: self._by_rule(
                _with(op, {"self": op.target, "target": op.self}), up))  # fmt: skip


def _with(op: Applied, arguments: dict[str, Any]) -> Applied:
    return Applied({**op.arguments, **arguments}, op.outs, op.name)


def _of_sample(sample: int, upstream: Tensor) -> Tensor:
    """An upstream gradient of one sample alone."""
    kept = torch.zeros_like(upstream)
    kept[sample] = upstream[sample]
    return kept


def _times(slope: Callable[[Tensor, Tensor], Tensor], op: Applied, up: Upstream) -> Tensor | None:
    """The upstream gradient times a derivative, from argument and result."""
    return None if up[0] is None else up[0] * slope(op.self, op.out)


def _of_loss(slope: Callable[[Any], Tensor], count: int, op: Applied, up: Upstream) -> Tensor | None:
    return None if up[0] is None else up[0] * slope(op) / count


def _frozen(op: Applied) -> Applied:
    """Batch normalisation with the mean and the variance of the batch as constants."""
    x: Tensor = op.input
    axes = [axis for axis in range(x.dim()) if axis != 1]
    constants = {"running_mean": x.mean(axes), "running_var": x.var(axes, unbiased=False), "training": False}
    return _with(op, map_leaves(wide, constants))


def _spread(divisor: int | None, op: Applied, up: Upstream) -> Tensor | None:
    """The gradient of a pooling that goes to all elements of a window, whole or (None) in equal shares."""
    if up[0] is None:
        return None
    sizes = (list(op.kernel_size), list(op.stride) or list(op.kernel_size), list(op.padding))
    spread = torch.func.vjp(lambda x: F.avg_pool2d(x, *sizes, bool(op.ceil_mode), True, divisor), op.self)[1]
    found: Tensor = spread(up[0])[0]
    return found
