"""What students do wrong on the way back: in one step, in the gradient of one of its arguments."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from chainrule.derivation.forward_values import name_of
from chainrule.exercises.activations import ACTIVATIONS, called
from chainrule.exercises.chain import Change, Part, by_rule, wide
from chainrule.exercises.slip import Slip, listed, written
from chainrule.graph.graph import Graph
from chainrule.graph.names import Notation
from chainrule.graph.trees import map_leaves
from chainrule.rules import Applied

Upstream = tuple[Tensor | None, ...]
Work = Callable[[Applied, Upstream], Tensor | None]

SAMPLES = 8  # of a batch of which one may be taken alone
NORMS = ("batch_norm", "native_layer_norm", "native_group_norm")
SOFTMAXES = ("softmax",)


class BackwardSlips:
    """The slips in the steps of one backward pass."""

    def __init__(self, graph: Graph, notation: Notation) -> None:
        self.graph = graph
        self.notation = notation
        self.after = {each.value: each.after for each in graph.parameters.values() if each.value is not None}

    def of(self, part: Part, uses: int) -> Iterator[Slip]:
        """The slips in one part of a step; `uses` is how many steps its value goes into."""
        assert part.step.op is not None
        op = part.step.op
        yield from self._upstream(part)
        yield from self._operands(part, op)
        yield from self._activation(part, op)
        yield from self._softmax(part, op)
        yield from self._norm(part, op)
        yield from self._pool(part, op)
        yield from self._loss(part, op)
        if uses > 1:
            sentence = f"{self._named(part)} is used {uses} times, and what comes back through {self._result(part)} is missing in the sum"
            yield self._slip(part, 1.5, "path", sentence, lambda op, up: None)

    # -- words --------------------------------------------------------------------------------------------------------

    def _named(self, part: Part) -> str:
        return self.notation.plain(part.value)

    def _result(self, part: Part) -> str:
        return self.notation.plain(part.step.outputs[0])

    def _operation(self, part: Part) -> str:
        assert part.step.rule is not None
        assert part.step.op is not None
        return called(part.step.rule.name) or name_of(part.step.rule, part.step.op)

    def _gradient(self, value: int) -> str:
        return self.notation.plain_gradient(value)

    def _slip(self, part: Part, cost: float, name: str, sentence: str, work: Work) -> Slip:
        def back(_: Part, op: Applied, upstream: Upstream) -> Tensor | None:
            return work(op, upstream)

        return Slip(cost, name, sentence, Change(part.step, part.argument, back))

    # -- any step -----------------------------------------------------------------------------------------------------

    def _upstream(self, part: Part) -> Iterator[Slip]:
        shape = self.graph.values[part.value].shape
        known = self.graph.values[part.step.outputs[0]]
        above = self._gradient(part.step.outputs[0])
        if known.shape == shape and len(part.step.outputs) == 1:
            sentence = f"the derivative of {self._result(part)} by {self._named(part)} is left out: {above} is passed on as it is"
            if part.step.rule is not None and part.step.rule.kink is not None:
                sentence = self._off(part) or sentence
            name = "off unit" if sentence.startswith("the ReLU is off") else "left out"
            yield self._slip(part, 1.2, name, sentence, lambda op, up: up[0])
        if known.shape != () or known.has_gradient:
            sentence = f"the upstream gradient {above} is left out: this is the derivative of {self._result(part)} by {self._named(part)} alone"
            if known.grad is not None:
                sentence = f"{sentence}, without {written(above, known.grad)}"
            yield self._slip(part, 1.6, "upstream left out", sentence, lambda op, up: by_rule(part, op, tuple(None if g is None else torch.ones_like(g) for g in up)))  # fmt: skip
        yield self._slip(part, 1.45, "sign", f"the sign of what comes back to {self._named(part)} through {self._result(part)} is wrong", lambda op, up: _times(-1.0, by_rule(part, op, up)))  # fmt: skip
        yield from self._batch(part)

    def _off(self, part: Part) -> str:
        """Where a ReLU is off, if it is one and something comes back there."""
        data, grad = self.graph.values[part.value].data, self.graph.values[part.step.outputs[0]].grad
        if part.step.rule is None or part.step.rule.name != "relu" or data is None or grad is None:
            return ""
        off = (data <= 0) & (grad != 0)
        here = self._gradient(part.value)
        return f"the ReLU is off there: {listed(self._named(part), data, off)}; {here} is 0 where it is not above 0"

    def _batch(self, part: Part) -> Iterator[Slip]:
        """A gradient that is summed over the samples of a batch: one sample alone, or the mean."""
        value, out = self.graph.values[part.value], self.graph.values[part.step.outputs[0]]
        count = out.shape[0] if out.shape else 1
        if value.kind != "parameter" or count < 2 or len(part.step.outputs) > 1 or part.step.op is None:
            return
        operand = next((each for _, _, each in part.step.arguments if each != part.value and self.graph.values[each].kind != "parameter"), None)  # fmt: skip
        if operand is None or self.graph.values[operand].shape[:1] != (count,):
            return
        named, above = self._named(part), self._gradient(part.step.outputs[0])
        sentence = f"the sum over the batch is missing: {above} comes from {count} samples, which add up in {self._gradient(part.value)}"
        for sample in range(min(count, SAMPLES)):
            kept = partial(_sample, sample)
            yield self._slip(part, 1.2, "sum over the batch", f"{sentence}; here only sample {sample} counts",
                             lambda op, up, kept=kept: by_rule(part, op, tuple(map(kept, up))))  # type: ignore[misc] # fmt: skip
        sentence = f"{self._gradient(part.value)} is the sum over the {count} samples, and not their mean: the 1/{count} of the mean is in {above} already"
        yield self._slip(part, 1.15, "mean", sentence, lambda op, up: _times(1 / count, by_rule(part, op, up)))
        if out.shape == (count, *value.shape):
            sentence = f"{named} is added to each of the {count} samples, so {self._gradient(part.value)} is the sum of the rows of {above}, and not {above} itself"
            yield self._slip(part, 1.0, "not summed", sentence, lambda op, up: up[0])

    # -- products -----------------------------------------------------------------------------------------------------

    def _operands(self, part: Part, op: Applied) -> Iterator[Slip]:
        """The other factor of a product: left out, transposed, of after the update."""
        rule = part.step.rule
        assert rule is not None
        if rule.topic in ("loss", "activation") or rule.name in SOFTMAXES:
            return
        above = self.graph.values[part.step.outputs[0]].grad
        if above is not None and above.dim() == 2 and above.shape[0] == above.shape[1] > 1:
            sentence = f"{self._gradient(part.step.outputs[0])} is transposed where it should not be, or not where it should"
            yield self._slip(part, 1.3, "transposed", sentence, lambda op, up: by_rule(part, op, tuple(None if g is None else g.t() for g in up)))  # fmt: skip
        for name, item, value in part.step.arguments:
            other = op.arguments.get(name)
            if (
                item is not None
                or value == part.value
                or not isinstance(other, Tensor)
                or not other.is_floating_point()
            ):
                continue
            if name not in rule.wrt:
                continue
            text = self.notation.plain(value)
            where = f"in {self._gradient(part.value)}"
            yield self._with(
                part,
                1.3,
                "left out",
                f"the factor {text} is left out {where}: {written(text, other)}",
                name,
                torch.ones_like,
            )
            yield self._with(part, 1.5, "sign", f"the sign of {text} is wrong {where}", name, torch.neg)
            if other.dim() == 2 and other.shape[0] == other.shape[1] and other.shape[0] > 1:
                sentence = f"{text} is transposed where it should not be, or not where it should, {where}: {written(text, other)}"
                yield self._with(part, 1.2, "transposed", sentence, name, torch.t)
            if other.dim() == 4:
                yield self._with(part, 1.5, "kernel not turned", f"the kernel {text} is turned by 180° where it should not be, or not where it should, {where}", name, lambda t: t.flip(-1, -2))  # fmt: skip
            after = self.after.get(value)
            if after is not None:
                sentence = f"the updated {text} is used {where}; the gradients belong to the weights of before the update, {written(text, other)}"
                yield self._with(part, 1.25, "updated weight", sentence, name, lambda t, after=after: after.to(t.dtype))  # type: ignore[misc]

    def _with(
        self, part: Part, cost: float, name: str, sentence: str, argument: str, change: Callable[[Tensor], Tensor]
    ) -> Slip:
        def work(op: Applied, up: Upstream) -> Tensor | None:
            return by_rule(part, _with_argument(op, argument, change(op.arguments[argument])), up)

        return self._slip(part, cost, name, sentence, work)

    # -- activations --------------------------------------------------------------------------------------------------

    def _activation(self, part: Part, op: Applied) -> Iterator[Slip]:
        rule = part.step.rule
        own = ACTIVATIONS.get(rule.name) if rule is not None else None
        if rule is None or own is None:
            return
        x, y, here = self._named(part), self._result(part), self._operation(part)
        for name, other in ACTIVATIONS.items():
            if name != rule.name:
                sentence = f"this takes the derivative of {other.called}, {other.derivative}, where {y} = {here}({x}) has {own.derivative}"
                yield self._slip(part, 1.3, "wrong activation", sentence, partial(_slope, other.slope))
        for cost, name, text, slope in own.wrong(x, y):
            data = self.graph.values[part.value].data
            numbers = "" if data is None else f", {written(x, data)}"
            yield self._slip(
                part, cost, name, f"the derivative of {here} is taken as {text}{numbers}", partial(_slope, slope)
            )

    def _softmax(self, part: Part, op: Applied) -> Iterator[Slip]:
        if part.step.rule is None or part.step.rule.name not in SOFTMAXES:
            return
        p = self._result(part)
        sentence = f"only the diagonal of the softmax's Jacobian is used, {p}(1 - {p}): each element of {p} depends on all of {self._named(part)} in its row"
        yield self._slip(part, 1.2, "diagonal", sentence, lambda op, up: _each(up, lambda g: g * op.out * (1 - op.out)))
        sentence = (
            f"the sum over the row is left out in the softmax's derivative: {p} times the upstream gradient alone"
        )
        yield self._slip(part, 1.3, "diagonal", sentence, lambda op, up: _each(up, lambda g: g * op.out))

    def _norm(self, part: Part, op: Applied) -> Iterator[Slip]:
        rule = part.step.rule
        if rule is None or rule.name not in NORMS or part.argument != "input":
            return
        sentence = f"the mean and the variance are taken as constants: they depend on {self._named(part)} too, and two terms come back through them"
        if rule.name == "batch_norm":
            yield self._slip(part, 1.2, "mean and variance", sentence, lambda op, up: by_rule(part, _frozen(op), up))

    def _pool(self, part: Part, op: Applied) -> Iterator[Slip]:
        if part.step.rule is None or part.step.rule.name != "max_pool2d_with_indices" or any(op.dilation[i] != 1 for i in range(len(op.dilation))):  # fmt: skip
            return
        sentence = f"the gradient of a maximum goes to the largest element of each window of {self._named(part)} alone; here it goes to all of them"

        def spread(op: Applied, up: Upstream, share: bool) -> Tensor | None:
            if up[0] is None:
                return None
            sizes = (list(op.kernel_size), list(op.stride) or list(op.kernel_size), list(op.padding))
            found: Tensor = torch.ops.aten.avg_pool2d_backward(up[0], op.self, *sizes, bool(op.ceil_mode), True, None)
            return found if share else found * (sizes[0][0] * sizes[0][-1])

        yield self._slip(part, 1.3, "pooling", f"{sentence}, shared out", partial(spread, share=True))
        yield self._slip(part, 1.3, "pooling", f"{sentence}, whole", partial(spread, share=False))

    # -- losses -------------------------------------------------------------------------------------------------------

    def _loss(self, part: Part, op: Applied) -> Iterator[Slip]:
        rule = part.step.rule
        if rule is None or rule.topic != "loss":
            return
        kind = rule.name.removesuffix("_reduced")
        x = self._named(part)
        target = next((v for name, _, v in part.step.arguments if name == "target"), None)
        t = "the target" if target is None else self.notation.plain(target)
        slopes: dict[str, tuple[tuple[str, str, Callable[[Any], Tensor]], ...]] = {
            "binary_cross_entropy": (
                ("missing term", f"only the first term, -{t}/{x}, is used: the one of 1 - {t} is missing", lambda op: -op.target / op.self),
                ("missing term", f"the first term, -{t}/{x}, is missing", lambda op: (1 - op.target) / (1 - op.self)),
                ("left out", f"{x} - {t} is the gradient behind the sigmoid; by {x} itself it is divided by {x}(1 - {x})", lambda op: op.self - op.target),
            ),
            "binary_cross_entropy_with_logits": (
                ("missing term", f"{t} is not subtracted from the sigmoid of {x}", lambda op: op.self.sigmoid()),
                ("wrong value", f"the sigmoid is left out: {x} - {t}", lambda op: op.self - op.target),
            ),
            "cross_entropy": (
                ("missing term", f"the 1 of the target's class is not subtracted: this is softmax({x}), divided by the number of samples", lambda op: op.input.softmax(-1)),
                ("missing term", f"softmax({x}) is missing: only the 1 of the target's class is left", lambda op: -_onehot(op)),
                ("wrong value", f"the softmax is left out: {x} minus the 1 of the target's class", lambda op: op.input - _onehot(op)),
            ),
        }  # fmt: skip
        for name, sentence, slope in slopes.get(kind, ()):
            yield self._slip(part, 1.3, name, sentence, partial(_mean_of, slope))
            if op.arguments.get("reduction") in (1, "mean"):
                yield self._slip(part, 1.5, name, f"{sentence}; and the mean's 1/N is missing", partial(_sum_of, slope))
        if kind in ("binary_cross_entropy", "binary_cross_entropy_with_logits", "mse_loss") and part.argument == "self":
            sentence = f"{t} and {x} are swapped"
            yield self._slip(part, 1.15, "swapped", sentence, lambda op, up: by_rule(part, Applied({**op.arguments, "self": op.target, "target": op.self}, op.outs, op.name), up))  # fmt: skip


def _onehot(op: Applied) -> Tensor:
    if op.target.is_floating_point():
        return wide(op.target)  # type: ignore[no-any-return]
    found: Tensor = torch.nn.functional.one_hot(op.target, op.input.shape[-1]).to(op.input.dtype)
    return found


def _sum_of(slope: Callable[[Any], Tensor], op: Applied, up: Upstream) -> Tensor | None:
    return None if up[0] is None else up[0] * slope(op)


def _mean_of(slope: Callable[[Any], Tensor], op: Applied, up: Upstream) -> Tensor | None:
    found = _sum_of(slope, op, up)
    is_mean = op.arguments.get("reduction") in (1, "mean")
    count = op.target.numel() if is_mean and found is not None else 1
    return None if found is None else found / count


def _slope(slope: Callable[[Tensor, Tensor], Tensor], op: Applied, up: Upstream) -> Tensor | None:
    return None if up[0] is None else up[0] * slope(op.self, op.out)


def _each(up: Upstream, work: Callable[[Tensor], Tensor]) -> Tensor | None:
    return None if up[0] is None else work(up[0])


def _times(factor: float, gradient: Tensor | None) -> Tensor | None:
    return None if gradient is None else factor * gradient


def _sample(sample: int, upstream: Tensor | None) -> Tensor | None:
    """An upstream gradient of one sample alone."""
    if upstream is None:
        return None
    kept = torch.zeros_like(upstream)
    kept[sample] = upstream[sample]
    return kept


def _with_argument(op: Applied, name: str, given: Any) -> Applied:
    return Applied({**op.arguments, name: given}, op.outs, op.name)


def _frozen(op: Applied) -> Applied:
    """Batch normalisation with the mean and the variance of the batch as constants."""
    x: Tensor = op.input
    axes = [axis for axis in range(x.dim()) if axis != 1]
    constants = {"running_mean": x.mean(axes), "running_var": x.var(axes, unbiased=False), "training": False}
    return Applied(map_leaves(wide, {**op.arguments, **constants}), op.outs, op.name)
