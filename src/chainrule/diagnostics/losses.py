"""What is wrong with a loss: probabilities where logits belong, shapes that do not meet, a sum where a mean belongs."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from chainrule.diagnostics.check import Check
from chainrule.diagnostics.finding import Finding
from chainrule.diagnostics.step_context import StepContext, argument, base_of
from chainrule.document import Code
from chainrule.graph.graph import Call, Operation, Ref, Value, references
from chainrule.numbers import number

SUM = 2  # how ATen writes reduction="sum"
NONE = 0

COMPARING = {
    "mse_loss": "target", "smooth_l1_loss": "target", "huber_loss": "target", "binary_cross_entropy": "target",
    "binary_cross_entropy_with_logits": "target", "nll_loss_forward": "target", "nll_loss2d_forward": "target",
    "soft_margin_loss": "target", "l1_loss": "target",
}  # fmt: skip
"""The operations that are a loss between a prediction (`self`) and a target."""

BROADCASTING = frozenset({"mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss"})  # the others ask for equal shapes

SIGMOID_BEFORE_BCE = Check(
    "sigmoid-before-bce",
    title="A sigmoid before binary cross-entropy",
    severity="warning",
    what="The output of a sigmoid goes into `binary_cross_entropy` (nn.BCELoss).",
    why="The loss divides by a(1 - a), and the sigmoid multiplies by it again: where the network is sure, a is rounded "
    "to 0 or 1 and the gradient is lost.",
    advice="Give the logits to binary_cross_entropy_with_logits (nn.BCEWithLogitsLoss) and leave the sigmoid out.",
    source="PyTorch's documentation of BCEWithLogitsLoss: the log-sum-exp trick",
)


@SIGMOID_BEFORE_BCE.in_step
def _sigmoid_before_bce(context: StepContext) -> Iterator[Finding]:
    for operation in context.named("binary_cross_entropy"):
        probability = argument(operation, "self")
        if probability is None or context.made_by(probability) != "sigmoid":
            continue
        sigmoid = context.producer(context.source(probability))
        assert sigmoid is not None
        a, logits = context.graph.values[probability], argument(sigmoid, "self")
        evidence = []
        if a.data is not None and a.data.numel():
            steepest = 1 / (a.data * (1 - a.data)).min().item() if (a.data * (1 - a.data)).min() > 0 else math.inf
            evidence.append(
                f"The loss divides by a(1 - a), here a factor of up to {number(steepest)}; the sigmoid multiplies by "
                "the same number again."
            )
            saturated = int(((a.data == 0) | (a.data == 1)).sum())
            if saturated:
                evidence.append(f"{saturated} of {a.data.numel()} probabilities are rounded to exactly 0 or 1.")
        limit = -math.log(torch.finfo(a.dtype).eps / 2)
        evidence.append(
            f"In {str(a.dtype).removeprefix('torch.')} a probability rounds to 1 from a logit of {limit:.1f} on."
        )
        name = context.name(logits) if logits is not None else "the logits"
        yield SIGMOID_BEFORE_BCE.found(
            context.name(probability),
            f"{context.name(probability)} is a sigmoid, and goes into binary cross-entropy.",
            evidence,
            place=a.place,
            advice=f"Give {name} to binary_cross_entropy_with_logits (nn.BCEWithLogitsLoss) and leave the sigmoid out: "
            "the two factors cancel into a - y, which neither overflows nor loses digits when the network is sure.",
        )


SIGMOID_TWICE = Check(
    "sigmoid-twice",
    title="A sigmoid before a loss that takes the sigmoid itself",
    severity="warning",
    what="The output of a sigmoid goes into `binary_cross_entropy_with_logits` (nn.BCEWithLogitsLoss).",
    why="The sigmoid is taken twice, so every probability lies between 0.5 and 0.7311, and the gradient is at most a "
    "quarter of what it should be.",
    advice="Give the logits to the loss and leave the sigmoid out; take it where probabilities are read.",
    source="PyTorch's documentation of BCEWithLogitsLoss",
)


@SIGMOID_TWICE.in_step
def _sigmoid_twice(context: StepContext) -> Iterator[Finding]:
    for operation in context.named("binary_cross_entropy_with_logits"):
        given = argument(operation, "self")
        if given is None or context.made_by(given) != "sigmoid":
            continue
        evidence = ["The loss of a sample lies between 0.3133 and 1.3133, however sure the network is."]
        known = context.statistics(given)
        if known is not None:
            evidence.append(f"{context.name(given)} lies between {number(known.low)} and {number(known.high)}.")
        yield SIGMOID_TWICE.found(
            context.name(given),
            f"{context.name(given)} is a sigmoid, and goes into a loss that takes the sigmoid once more.",
            evidence,
            place=context.graph.values[given].place,
        )


SOFTMAX_BEFORE_CROSS_ENTROPY = Check(
    "softmax-before-cross-entropy",
    title="A softmax before cross-entropy",
    severity="warning",
    what="The output of a softmax goes into `cross_entropy` (nn.CrossEntropyLoss), or into `log_softmax`.",
    why="Probabilities are taken for logits: the loss can't come near 0, and the gradient passes two softmaxes.",
    advice="Give the logits to cross_entropy and leave the softmax out; it is inside.",
    source="PyTorch's documentation of CrossEntropyLoss: the input is expected to contain the unnormalised logits",
)


@SOFTMAX_BEFORE_CROSS_ENTROPY.in_step
def _softmax_before_cross_entropy(context: StepContext) -> Iterator[Finding]:
    for operation in context.named("_log_softmax"):
        probability = argument(operation, "self")
        if probability is None or context.made_by(probability) != "_softmax":
            continue
        softmax = context.producer(context.source(probability))
        assert softmax is not None
        logits, a = argument(softmax, "self"), context.graph.values[probability]
        axis, classes = operation.arguments.get("dim", -1), 1
        if a.shape:
            classes = a.shape[axis]
        floor = math.log(1 + (classes - 1) / math.e)
        name = context.name(logits) if logits is not None else "the logits"
        yield SOFTMAX_BEFORE_CROSS_ENTROPY.found(
            context.name(probability),
            f"{context.name(probability)} is a softmax, and cross-entropy takes the softmax once more.",
            (
                f"With {classes} classes the loss of a sample can't fall below {floor:.4f}, however sure the network: "
                "probabilities lie between 0 and 1, and are taken for logits.",
            ),
            place=a.place,
            advice=f"Give {name} to cross_entropy and leave the softmax out; it is inside.",
        )


NO_LOGARITHM = Check(
    "nll-without-log",
    title="A negative log-likelihood of what is no logarithm",
    severity="warning",
    what="`nll_loss` is given probabilities or logits instead of log-probabilities.",
    why="Of logits the loss falls without a bound, by making one logit ever larger; of probabilities it is linear, and "
    "punishes being wrong and sure no more than being unsure.",
    advice="Give it log_softmax of the logits, or give the logits to cross_entropy, which does both.",
    source="PyTorch's documentation of NLLLoss: the input is expected to contain log-probabilities",
)

_NOT_LOGARITHMS = {
    "_softmax": "probabilities (a softmax)", "sigmoid": "probabilities (a sigmoid)", "addmm": "logits",
    "mm": "logits", "linear": "logits", "convolution": "logits", "relu": "the output of a ReLU", "bmm": "logits",
}  # fmt: skip


@NO_LOGARITHM.in_step
def _no_logarithm(context: StepContext) -> Iterator[Finding]:
    for operation in context.named("nll_loss_forward", "nll_loss2d_forward"):
        given = argument(operation, "self")
        made = context.made_by(given) if given is not None else ""
        if given is None or made not in _NOT_LOGARITHMS:
            continue
        known = context.statistics(given)
        evidence = [f"nll_loss takes minus the entry of the right class; what it got was made by `{made.strip('_')}`."]
        if known is not None:
            evidence.append(
                f"{context.name(given)} lies between {number(known.low)} and {number(known.high)}; a logarithm of a "
                "probability is never above 0."
            )
        yield NO_LOGARITHM.found(
            context.name(given),
            f"{context.name(given)} holds {_NOT_LOGARITHMS[made]}, and nll_loss takes it for log-probabilities.",
            evidence,
            place=context.graph.values[given].place,
        )


BROADCAST_IN_LOSS = Check(
    "broadcast-in-loss",
    title="Predictions and targets are broadcast against each other",
    severity="warning",
    what="A loss, or a difference, of a prediction (N, 1) and a target (N,), or of any other two shapes that a loss "
    "broadcasts.",
    why="Each prediction is compared with every target. Nothing fails; the network learns to say the mean.",
    advice="Give both the same shape: squeeze(1) the predictions, or unsqueeze(1) the targets.",
    source="PyTorch's broadcasting semantics; the warning of mse_loss about a target size that is different",
)


@BROADCAST_IN_LOSS.in_step
def _broadcast_in_loss(context: StepContext) -> Iterator[Finding]:
    """(N, 1) against (N,): each prediction meets every target. In a function that is a loss, any two shapes."""
    for call in context.graph.calls:
        refs = [each.value for each in call.arguments[:2] if isinstance(each, Ref)]
        refs += [v.value for k, v in call.keywords.items() if k in ("target", "other") and isinstance(v, Ref)]
        if len(refs) != 2:
            continue
        first, second = (context.graph.values[ref] for ref in refs)
        if not any(map(context.is_data, refs)) or not (first.requires_grad or second.requires_grad):
            continue
        shape = _common(first.shape, second.shape)
        if shape is None or not _crossed(call, first, second, shape):
            continue
        if not any(_wide(context, context.graph.operations[index], shape) for index in call.operations):
            continue
        names = f"{context.name(first.index)} {first.shape} and {context.name(second.index)} {second.shape}"
        pairs, n = math.prod(shape), max(math.prod(first.shape), math.prod(second.shape))
        evidence = f"Each of the {n} predictions is compared with all {n} targets: {pairs} differences instead of {n}."
        if not _column_and_row(first.shape, second.shape):
            evidence = (
                f"{pairs} differences are taken of {math.prod(first.shape)} and {math.prod(second.shape)} numbers."
            )
        yield BROADCAST_IN_LOSS.found(
            context.name(call.outputs[0]) if call.outputs else call.name,
            (f"{names} are broadcast to {shape} in ", Code(call.name), "."),
            (evidence,),
            place=call.place,
        )


def _crossed(call: Call, first: Value, second: Value, shape: tuple[int, ...]) -> bool:
    """Whether this can't be meant: a column against a row, or other shapes in what is a loss by its name.

    One number for all (a GAN's label) is meant.
    """
    if _column_and_row(first.shape, second.shape):
        return True
    named = call.name in BROADCASTING and first.shape != second.shape
    return named and min(math.prod(first.shape), math.prod(second.shape)) > 1


def _column_and_row(first: tuple[int, ...], second: tuple[int, ...]) -> bool:
    n = max(math.prod(first), 1)
    return {first, second} == {(n, 1), (n,)} and n > 1


def _common(first: tuple[int, ...], second: tuple[int, ...]) -> tuple[int, ...] | None:
    try:
        return tuple(torch.broadcast_shapes(first, second))
    except RuntimeError:
        return None


def _wide(context: StepContext, operation: Operation, shape: tuple[int, ...]) -> bool:
    values = [
        *(out for out in operation.outputs if out is not None),
        *(v for _, _, v in references(operation.arguments)),
    ]
    return any(context.graph.values[value].shape == shape for value in values)


SUM_OF_LOSSES = Check(
    "sum-reduction",
    title="The loss is a sum over the batch",
    severity="note",
    what="A loss that compares predictions with targets is summed over its elements, and not divided by their number.",
    why="The gradient grows with the batch: the learning rate works as if it were that many times as large, and means "
    "something else at every batch size.",
    advice="Take the mean, or divide the sum by the number of samples; keep the sum only where the learning rate was "
    "chosen for it.",
    source="Goyal et al., Accurate, large minibatch SGD, 2017: the rate belongs to the mean over a batch",
)


@SUM_OF_LOSSES.in_step
def _sum_of_losses(context: StepContext) -> Iterator[Finding]:
    for backward in context.graph.accumulating:
        if backward.loss is None:
            continue
        summed = context.producer(context.source(backward.loss))
        comparing = _summed_comparison(context, summed) if summed is not None else None
        given = argument(comparing, "self") if comparing is not None else None
        if given is None or comparing is None:
            continue
        shape = context.graph.values[given].shape
        terms = math.prod(shape[:1] if base_of(comparing).startswith("nll") else shape)
        if terms < 2:
            continue
        yield SUM_OF_LOSSES.found(
            context.name(backward.loss),
            f"The loss {context.name(backward.loss)} is the sum of {terms} terms, not their mean.",
            (f"Its gradient is {terms} times that of the mean, and grows with the batch.",),
            place=context.graph.values[backward.loss].place,
        )


def _summed_comparison(context: StepContext, operation: Operation) -> Operation | None:
    """The loss whose elements an operation adds up: itself with reduction="sum", or what a sum was taken of."""
    if base_of(operation) in COMPARING and operation.arguments.get("reduction") == SUM:
        return operation
    given = argument(operation, "self")
    if base_of(operation) != "sum" or given is None:
        return None
    inner = context.producer(context.source(given))
    unreduced = inner is not None and base_of(inner) in COMPARING and inner.arguments.get("reduction") == NONE
    return inner if unreduced else None
