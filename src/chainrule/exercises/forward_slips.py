"""What students do wrong on the way forward: in one step, with its operands or with its result."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from chainrule.derivation.backprop import Step
from chainrule.derivation.forward_values import name_of
from chainrule.exercises.activations import ACTIVATIONS, Activation, called
from chainrule.exercises.chain import Change, Part, wide_op
from chainrule.exercises.loss_slips import is_square, mean_of, other_means
from chainrule.exercises.slip import Slip, SlipsOfStep, written
from chainrule.rules import Applied

Result = Callable[[Tensor], Tensor]


class ForwardSlips(SlipsOfStep):
    """The slips in the steps of a forward pass."""

    def of(self, step: Step) -> Iterator[Slip]:
        """The slips in one step."""
        if step.rule is None or step.op is None or len(step.outputs) < 1:
            return
        out = self.notation.plain(step.outputs[0])
        yield from self._operands(step, out)
        yield from self._terms(step, out)
        yield from self._result(step, out)
        yield from self._loss(step, out)
        if step.rule.name == "batch_norm" and step.op.training:
            yield from self._normalised(step, out)

    def _given(self, step: Step, cost: float, name: str, sentence: str, value: int, data: Tensor) -> Slip:
        return Slip(cost, name, sentence, Change(step, given={value: data}))

    def _made(self, step: Step, cost: float, name: str, sentence: str, forward: Result) -> Slip:
        return Slip(cost, name, sentence, Change(step, forward=forward))

    def _operands(self, step: Step, out: str) -> Iterator[Slip]:
        assert step.rule is not None
        if step.rule.topic in ("loss", "activation") or self._is_sum(step):
            return
        operands = {value: name for name, item, value in step.arguments if item is None and name in step.rule.wrt}
        for value, name in operands.items() if len(operands) > 1 else ():
            data, text = self.graph.values[value].data, self.notation.plain(value)
            if data is None or not data.is_floating_point():
                continue
            is_bias = (
                name == "bias"
                if step.rule.topic == "normalise"
                else data.dim() < len(self.graph.values[step.outputs[0]].shape)
            )
            if step.rule.topic == "normalise" and name not in ("weight", "bias"):
                continue
            if is_bias:
                sentence = f"{text} is not added in {out}: {written(text, data)}"
                yield self._given(step, 1.1, "bias left out", sentence, value, torch.zeros_like(data))
                yield self._given(step, 1.4, "sign", f"{text} is subtracted in {out}, and not added", value, -data)
            else:
                sentence = f"the factor {text} is left out in {out}: {written(text, data)}"
                yield self._given(step, 1.5, "left out", sentence, value, torch.ones_like(data))
                yield self._given(step, 1.5, "sign", f"the sign of {text} is wrong in {out}", value, -data)
            if data.dim() == 2 and data.shape[0] == data.shape[1] and data.shape[0] > 1:
                sentence = f"{text} is transposed the other way in {out}: {written(text, data)}"
                yield self._given(step, 1.2, "transposed", sentence, value, data.t().contiguous())
            if data.dim() == 4 and not bool((data == data.flip(-1, -2)).all()):
                sentence = f"the kernel {text} is turned in {out}: {written(text, data)}"
                yield self._given(step, 1.4, "kernel turned", sentence, value, data.flip(-1, -2))
            after = self.after.get(value)
            if after is not None:
                sentence = f"the updated {text} is used in {out}, and it had {written(text, data)}"
                yield self._given(step, 1.3, "updated weight", sentence, value, after)

    def _is_sum(self, step: Step) -> bool:
        """Whether a step adds its operands, each by itself."""
        rule, op = step.rule, step.op
        if rule is None or op is None or rule.structure != "elementwise" or len(rule.wrt) < 2:
            return False
        return all("$" not in rule.latex(each.local, op, {}) for each in rule.wrt.values())  # constant derivatives

    def _terms(self, step: Step, out: str) -> Iterator[Slip]:
        """A term of a sum."""
        several = [value for _, item, value in step.arguments if item is None]
        for value in several if self._is_sum(step) and len(several) > 1 else ():
            data, text = self.graph.values[value].data, self.notation.plain(value)
            if data is not None and data.is_floating_point():
                sentence = f"{text} is left out in {out}: {written(text, data)}"
                yield self._given(step, 1.1, "left out", sentence, value, torch.zeros_like(data))
                yield self._given(step, 1.4, "sign", f"the sign of {text} is wrong in {out}", value, -data)

    def _result(self, step: Step, out: str) -> Iterator[Slip]:
        assert step.rule is not None
        assert step.op is not None
        value = step.arguments[0][2] if step.arguments else None
        data = None if value is None else self.graph.values[value].data
        if value is None or data is None or len(step.arguments) > 1:
            return
        before = data.double() if data.is_floating_point() else data
        text, here = self.notation.plain(value), called(step.rule.name) or name_of(step.rule, step.op)
        if data.shape == self.graph.values[step.outputs[0]].shape and step.rule.structure == "elementwise":
            sentence = f"{here} is left out: this is {text} itself"
            change = Change(step, "self", lambda part, op, up: up[0], lambda _: before)
            yield Slip(1.1, "left out", sentence, change)
        yield from self._scale(step, out, before)
        if step.rule.name == "sigmoid":
            sentence = f"the minus in exp(-{text}) is missing: this is the sigmoid of -{text}"
            yield self._made(step, 1.2, "sign", sentence, lambda _: torch.sigmoid(-before))
        if step.rule.name == "max_pool2d_with_indices" and set(step.op.dilation) == {1}:
            sizes = (
                list(step.op.kernel_size),
                list(step.op.stride) or list(step.op.kernel_size),
                list(step.op.padding),
            )
            sentence = f"{out} has the largest number of each window of {text}, and this is the mean"
            yield self._made(step, 1.2, "pooling", sentence, lambda _: F.avg_pool2d(before, *sizes, step.op.ceil_mode))  # type: ignore[union-attr]
        for name, other in ACTIVATIONS.items() if step.rule.name in ACTIVATIONS else ():
            if name != step.rule.name:
                sentence = f"{out} is {here} of {text}, and this takes {other.called}"
                yield Slip(1.2, "wrong activation", sentence, _taken(step, before, other))
        if step.rule.name == "softmax":
            exponentials = "the softmax divides each row's exponentials by their sum, and these are"
            yield self._made(step, 1.2, "left out", f"{exponentials} exp({text}) alone", lambda result: before.exp())
            sentence = f"the softmax goes over the wrong axis of {text}"
            yield self._made(step, 1.3, "wrong axis", sentence, lambda result: before.softmax(0))

    def _scale(self, step: Step, out: str, before: Tensor) -> Iterator[Slip]:
        """A root of a whole number by which a step multiplies or divides, without the root."""
        assert step.op is not None
        for root in step.op.arguments.values():
            if not isinstance(root, float) or root <= 1 or abs(root * root - round(root * root)) > 1e-6 * root:
                continue
            for factor in (root, 1 / root):
                if root != round(root) and torch.allclose(step.op.out.double(), before * factor, rtol=1e-5):
                    sentence = f"the square root is left out in {out}: the scale is the root of {round(root * root)}"
                    yield self._made(step, 1.2, "square root", sentence, lambda result, k=factor: result * k)  # type: ignore[misc]

    def _normalised(self, step: Step, out: str) -> Iterator[Slip]:
        """Batch normalisation with a wrong mean or spread."""
        assert step.op is not None
        op = wide_op(step.op)
        x: Tensor = op.input
        axes = [axis for axis in range(x.dim()) if axis != 1]
        mean, var = x.mean(axes, keepdim=True), x.var(axes, unbiased=False, keepdim=True)
        shape, count = mean.shape, x.numel() // x.shape[1]
        weight, bias = (1 if each is None else each.reshape(shape) for each in (op.weight, op.bias))

        def made(mean: Tensor | float, spread: Tensor) -> Result:
            return lambda _: (x - mean) / spread * weight + (bias if op.bias is not None else 0)

        if count > 1:
            sentence = f"the variance in {out} is divided by {count - 1}, and a normalisation divides it by {count}"
            root = (var * count / (count - 1) + op.eps).sqrt()
            yield self._made(step, 1.2, "mean and variance", sentence, made(mean, root))
        sentence = f"the square root of the variance is left out in {out}"
        yield self._made(step, 1.2, "square root", sentence, made(mean, var + op.eps))
        sentence = f"the mean is not subtracted in {out}"
        yield self._made(step, 1.2, "mean and variance", sentence, made(0.0, (var + op.eps).sqrt()))

    def _loss(self, step: Step, out: str) -> Iterator[Slip]:
        """Slips in the loss alone: its sign, its mean, its logarithm, its square."""
        assert step.rule is not None
        assert step.op is not None
        kind, op = step.rule.name.removesuffix("_reduced"), step.op
        given = step.arguments[0][2] if step.arguments else None
        count = mean_of(step, self.graph)
        if count > 1:
            sentence = f"{out} is the mean over {count}, and this is the sum: 1/{count} is missing"
            yield self._made(step, 1.05, "mean", sentence, lambda result: result * count)
        for other, over in other_means(step, self.graph):
            sentence = f"{out} is the mean over {count}, and this divides by {other}: the mean over {over}"
            yield self._made(step, 1.1, "mean", sentence, lambda result, k=count / other: result * k)  # type: ignore[misc]
        if "entropy" in kind or kind == "nll_loss":
            sentence = f"the logarithm in {out} is the natural one, and this takes the one"
            yield self._made(step, 1.3, "logarithm", f"{sentence} of base 10", lambda result: result / math.log(10))
            yield self._made(step, 1.3, "logarithm", f"{sentence} of base 2", lambda result: result / math.log(2))
            yield self._made(step, 1.0, "sign", f"the minus in front of the logarithm is missing in {out}", torch.neg)
        if kind == "binary_cross_entropy" and given is not None:
            x = self.notation.plain(given)
            first, second = op.target * op.self.log(), (1 - op.target) * (1 - op.self).log()
            for term, text in ((first, f"1 - {x}"), (second, x)):
                sentence = f"the term with the logarithm of {text} is missing in {out}"
                yield self._made(step, 1.2, "missing term", sentence, lambda result, term=term: -term.sum() / count)  # type: ignore[misc]
            swapped = (
                torch.nn.functional.binary_cross_entropy(op.target, op.self)
                if bool(((op.self >= 0) & (op.self <= 1)).all())
                else None
            )
            if swapped is not None:
                yield self._made(
                    step,
                    1.3,
                    "swapped",
                    f"{x} and the target are swapped in {out}",
                    lambda result: swapped * (1 if count > 1 else op.self.numel()),
                )
        if is_square(step):
            yield self._made(
                step, 1.2, "factor 2", f"{out} has no 1/2 in front of its square", lambda result: result / 2
            )
            root = op.self - op.target if kind == "mse_loss" else op.self
            sentence = f"the square is left out in {out}"
            yield self._made(
                step,
                1.3,
                "left out",
                sentence,
                lambda result: root.reshape(result.shape) if root.numel() == result.numel() else root.sum() / count,
            )


def _taken(step: Step, x: Tensor, other: Activation) -> Change:
    """Another activation, forward and back."""

    def back(part: Part, op: Applied, upstream: tuple[Tensor | None, ...]) -> Tensor | None:
        return None if upstream[0] is None else upstream[0] * other.slope(op.self, other.function(op.self))

    return Change(step, "self", back, lambda _: other.function(x))
