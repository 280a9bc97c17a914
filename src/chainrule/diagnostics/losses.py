"""Faults of a loss: probabilities instead of logits, shapes that do not match, a sum instead of a mean."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain

import torch

from chainrule.diagnostics.check import Check
from chainrule.diagnostics.finding import Finding
from chainrule.diagnostics.loss_curve import rate_too_high
from chainrule.diagnostics.optimizer import too_large
from chainrule.diagnostics.run_context import Run
from chainrule.diagnostics.step_context import StepContext, argument, operands
from chainrule.document import Code
from chainrule.graph.graph import Call, Operation, Ref, Value
from chainrule.graph.snapshot import type_name
from chainrule.numbers import number
from chainrule.rules.facts import Facts, base_name, facts_of, facts_of_call

SUM, NONE = 2, 0
"""How ATen writes `reduction="sum"` and `reduction="none"`."""

SIGMOID_BEFORE_BCE = Check(
    "sigmoid-before-bce", "A sigmoid before binary cross-entropy", "warning",
    what="`binary_cross_entropy` (nn.BCELoss) takes the output of a sigmoid.",
    why="The loss divides by a(1 - a), the sigmoid multiplies by it: once a rounds to 0 or 1, the gradient is lost.",
    advice="Pass the logits to binary_cross_entropy_with_logits (nn.BCEWithLogitsLoss) and drop the sigmoid.",
    source="PyTorch's documentation of BCEWithLogitsLoss: the log-sum-exp trick")  # fmt: skip


@SIGMOID_BEFORE_BCE.in_step
def _sigmoid_before_bce(context: StepContext) -> Iterator[Finding]:
    for _, a, sigmoid in context.fed_by("probabilities", lambda facts: facts.sigmoid):
        name, evidence = context.name(a.index), []
        if a.data is not None and a.data.numel():
            least = (a.data * (1 - a.data)).min().item()
            factor = f"here a factor of up to {number(1 / least if least > 0 else math.inf)}"
            divides = f"With a = {name}, the loss divides by a(1 - a)"
            evidence.append(f"{divides}, {factor}; the sigmoid multiplies by it again.")
            if saturated := int(((a.data == 0) | (a.data == 1)).sum()):
                evidence.append(f"{saturated} of {a.data.numel()} probabilities are rounded to exactly 0 or 1.")
        limit = -math.log(torch.finfo(a.dtype).eps / 2)
        evidence.append(f"In {type_name(a.dtype)} a probability rounds to 1 if its logit is above {limit:.1f}.")
        yield SIGMOID_BEFORE_BCE.found(
            name, f"{name} is the output of a sigmoid, and binary cross-entropy takes it.", evidence, place=a.place,
            advice=f"Pass {_logits(context, sigmoid)} to binary_cross_entropy_with_logits (nn.BCEWithLogitsLoss) and "
            f"drop the sigmoid: the two factors cancel and {name} - target is left, accurate even for a confident "
            "network.",
        )  # fmt: skip


def _logits(context: StepContext, activation: Operation) -> str:
    given = argument(activation, "self")
    return "the logits" if given is None else context.name(given)


SIGMOID_TWICE = Check(
    "sigmoid-twice", "A sigmoid before a loss that applies the sigmoid itself", "warning",
    what="`binary_cross_entropy_with_logits` (nn.BCEWithLogitsLoss) takes the output of a sigmoid, or the logarithm of "
    "a probability, as log_sigmoid and log_softmax give it.",
    why="Every probability lies between 0.5 and 0.7311, and the gradient is at most a quarter of the right one.",
    advice="Pass the logits to the loss and drop the sigmoid; apply it only where probabilities are read.",
    source="PyTorch's documentation of BCEWithLogitsLoss")  # fmt: skip


@SIGMOID_TWICE.in_step
def _sigmoid_twice(context: StepContext) -> Iterator[Finding]:
    for _, given, _ in context.fed_by("logits", lambda facts: facts.sigmoid):
        name, floor = context.name(given.index), "lies between 0.3133 and 1.3133, however sure the network is."
        yield SIGMOID_TWICE.found(
            name, f"{name} is the output of a sigmoid, and the loss applies the sigmoid once more.",
            (f"The loss of a sample {floor}", context.between(given.index)), place=given.place,
        )  # fmt: skip
    for operation, given, maker in context.fed_by("logits", _is_log_probability):
        known, name = context.statistics(argument(operation, "target")), context.name(given.index)
        if known is not None and known.high > HALF:
            yield SIGMOID_TWICE.found(
                name, (f"{name} is the logarithm of a probability (", Code(context.called(maker)), "), and the loss "
                       "takes it for a logit."),
                ("It is never above 0, so no probability is above 0.5, and the loss of a sample with the label 1 is at "
                 "least 0.6931.", context.between(given.index)), place=given.place,
            )  # fmt: skip


HALF = 0.5


def _is_log_probability(facts: Facts) -> bool:
    return facts.logarithm_of_probability


SOFTMAX_BEFORE_CROSS_ENTROPY = Check(
    "softmax-before-cross-entropy", "A softmax before cross-entropy", "warning",
    what="`cross_entropy` (nn.CrossEntropyLoss), `log_softmax`, torch.distributions.Categorical(logits=...) or "
    "F.gumbel_softmax takes the output of a softmax.",
    why="The loss treats probabilities as logits: it cannot come near 0, and the gradient passes two softmaxes.",
    advice="Pass the logits to cross_entropy and drop the softmax; the loss applies it.",
    source="PyTorch's documentation of CrossEntropyLoss: the input is expected to contain the unnormalised logits",
)  # fmt: skip


@SOFTMAX_BEFORE_CROSS_ENTROPY.in_step
def _softmax_before_cross_entropy(context: StepContext) -> Iterator[Finding]:
    for operation, a, softmax in context.fed_by("scores", lambda facts: facts.softmax):
        classes = a.shape[operation.arguments.get("dim", -1)] if a.shape else 1
        floor, name = math.log(1 + (classes - 1) / math.e), context.name(a.index)
        yield SOFTMAX_BEFORE_CROSS_ENTROPY.found(
            name, f"{name} is the output of a softmax, and cross-entropy applies the softmax once more.",
            f"With {classes} classes the loss of a sample can't fall below {floor:.4f}, however sure the network "
            "is: its inputs, taken as logits, lie between 0 and 1.",
            place=a.place,
            advice=f"Pass {_logits(context, softmax)} to cross_entropy and drop the softmax; the loss applies it.",
        )  # fmt: skip


@SOFTMAX_BEFORE_CROSS_ENTROPY.in_step
def _softmax_before_sampling(context: StepContext) -> Iterator[Finding]:
    """Probabilities as the logits of a distribution, which normalises them, or adds noise and takes a softmax."""
    for operation in context.graph.operations:
        facts, out = facts_of(operation.name), next(iter(operation.outputs), None)
        for given in operands(operation) if facts.sums_exponentials or facts.adds else ():
            softmax = context.producer(context.source(given))
            if softmax is None or not facts_of(softmax.name).softmax or not context.values[given].requires_grad:
                continue
            drawn = [each for each in operands(operation) if not context.values[each].requires_grad]
            if facts.adds and not (drawn and out is not None and _goes_to_softmax(context, out)):
                continue
            if facts.sums_exponentials and not any(facts_of(use.name).difference for use in context.uses[given]):
                continue
            name = context.name(context.source(given))
            yield SOFTMAX_BEFORE_CROSS_ENTROPY.found(
                name, f"{name} is the output of a softmax, and is taken for logits, of which another softmax makes "
                "probabilities.",
                ("Logits between 0 and 1 give probabilities that differ at most by a factor of e = 2.718.",
                 context.between(given)), place=context.place(operation),
                advice=f"Pass {_logits(context, softmax)} in its place, or give probabilities as such: "
                "Categorical(probs=...).",
            )  # fmt: skip
            return


def _goes_to_softmax(context: StepContext, value: int) -> bool:
    """Whether a softmax takes it, perhaps divided by a temperature."""
    for use in context.uses.get(value, ()):
        facts, out = facts_of(use.name), next(iter(use.outputs), None)
        if facts.softmax or (facts.scales and out is not None and _goes_to_softmax(context, out)):
            return True
    return False


SOFTMAX_BEFORE_BCE = Check(
    "softmax-before-bce", "A softmax where a sample may have several labels", "warning",
    what="`binary_cross_entropy` takes the output of a softmax, and the rows of its targets do not add up to 1.",
    why="The probabilities of a row add up to 1, so they can't all be near 1, nor all near 0: the loss stays high.",
    advice="Drop the softmax, and pass the logits to binary_cross_entropy_with_logits.",
    source="PyTorch's documentation of BCEWithLogitsLoss: several labels for each sample")  # fmt: skip
OF_ONE = 0.2  # how far the mean sum of a row may be from 1


@SOFTMAX_BEFORE_BCE.in_step
def _softmax_before_bce(context: StepContext) -> Iterator[Finding]:
    for operation, a, softmax in context.fed_by("probabilities", lambda facts: facts.softmax):
        target = context.statistics(argument(operation, "target"))
        classes = a.shape[softmax.arguments.get("dim", -1)] if a.shape else 1
        total = math.nan if target is None else target.mean * classes
        if abs(total - 1) > OF_ONE:
            name = context.name(a.index)
            yield SOFTMAX_BEFORE_BCE.found(
                name, f"{name} is the output of a softmax, and binary cross-entropy takes it for {classes} labels of "
                "their own.", f"A row of probabilities adds up to 1, and a row of targets to {number(total)} "
                "on average.", place=a.place, advice=f"Pass {_logits(context, softmax)} to "
                "binary_cross_entropy_with_logits, and drop the softmax.",
            )  # fmt: skip


NO_LOGARITHM = Check(
    "nll-without-log", "A negative log-likelihood of numbers that are not logarithms", "warning",
    what="`nll_loss`, `ctc_loss` or `kl_div` takes probabilities or logits instead of log-probabilities; or "
    "`poisson_nll_loss` with log_input takes what is never below 0, a rate instead of its logarithm.",
    why="With logits the loss falls without bound; with probabilities it hardly punishes a sure mistake. The exponent "
    "of what is never below 0 is never below 1.",
    advice="Pass it log_softmax of the logits, or pass the logits to cross_entropy, which does both.",
    source="PyTorch's documentation of NLLLoss: the input is expected to contain log-probabilities")  # fmt: skip


@NO_LOGARITHM.in_step
def _no_logarithm(context: StepContext) -> Iterator[Finding]:
    for call in context.graph.calls:
        given = call.arguments[0] if call.name == DIVERGENCE and call.arguments else None
        source = context.source(given.value) if isinstance(given, Ref) else None
        maker = context.producer(source) if source is not None else None
        if source is not None and maker is not None and (made := _not_logarithms(facts_of(maker.name))):
            yield NO_LOGARITHM.found(
                context.name(source), f"{context.name(source)} contains {made}, but {DIVERGENCE} expects "
                "log-probabilities as its input.",
                (f"{DIVERGENCE} takes its input from the logarithm of the target.", context.between(source)),
                place=call.place,
            )  # fmt: skip
    for loss, given, maker in context.fed_by("log-probabilities", _not_logarithms):
        taker = "nll_loss" if facts_of(loss.name).class_target else base_name(loss.name).strip("_")
        made, name = _not_logarithms(facts_of(maker.name)), context.name(given.index)
        function = base_name(maker.name).strip("_")
        yield NO_LOGARITHM.found(
            name, f"{name} contains {made}, but {taker} expects log-probabilities, at most 0.",
            (f"{taker} takes minus the entry of the right class; `{function}` computed that entry."
             if taker == "nll_loss" else f"{taker} adds the entries of the right classes; `{function}` computed them.",
             context.between(given.index)), place=given.place,
        )  # fmt: skip


DIVERGENCE = "kl_div"


@NO_LOGARITHM.in_step
def _rate_for_logarithm(context: StepContext) -> Iterator[Finding]:
    for call in context.graph.calls:
        given, *rest = call.arguments or (None,)
        logarithm = call.keywords.get("log_input", next(iter(rest[1:2]), True))
        if not facts_of_call(call.name).counts_events or not logarithm or not isinstance(given, Ref):
            continue
        source = context.source(given.value)
        maker = context.producer(source)
        bounds = None if maker is None else facts_of(maker.name).bounds
        if maker is not None and bounds is not None and bounds(maker.arguments)[0] >= 0:
            name, function = context.name(source), base_name(maker.name).strip("_")
            yield NO_LOGARITHM.found(
                name, f"{name} is a rate, made by `{function}`, but {call.name} expects the logarithm of the rate.",
                (f"It takes exp({name}) for the rate, which is never below 1.", context.between(source)),
                place=call.place, title="A rate in place of its logarithm",
                advice=f"Give {call.name} log_input=False, or drop the {function}.",
            )  # fmt: skip


def _not_logarithms(facts: Facts) -> str:
    """What the results of an operation are, where they are not log-probabilities."""
    return facts.not_logarithms or ("logits" if facts.weighs else "")


BROADCAST_IN_LOSS = Check(
    "broadcast-in-loss", "Predictions and targets are broadcast against each other", "warning",
    what="A loss, a difference or a product broadcasts (N, 1) against (N,), or a loss broadcasts any other two shapes: "
    "predictions, and targets that are data or were computed from it without a gradient.",
    why="Each prediction is compared with every target. Nothing fails; the network learns to predict the mean.",
    advice="Give both the same shape: squeeze(1) the predictions, or unsqueeze(1) the targets.",
    source="PyTorch's broadcasting semantics; the warning of mse_loss about a target size that is different",
)  # fmt: skip


@BROADCAST_IN_LOSS.in_step
def _broadcast_in_loss(context: StepContext) -> Iterator[Finding]:
    for call in context.graph.calls:
        refs = [each.value for each in call.arguments[:2] if isinstance(each, Ref)]
        refs += [v.value for k, v in call.keywords.items() if k in ("input", "target", "other") and isinstance(v, Ref)]
        if len(refs) != 2:
            continue
        first, second = (context.values[ref] for ref in refs)
        shape = _common(first.shape, second.shape)
        # A target has no gradient: it is data, or was computed under no_grad (a bootstrapped return), or detached.
        if shape is None or first.requires_grad == second.requires_grad or not _crossed(call, first, second):
            continue
        if not context.from_data.issuperset(refs):
            continue  # a parameter or a buffer is no target
        if not any(_wide(context, context.graph.operations[index], shape) for index in call.operations):
            continue
        names = f"{context.name(first.index)} {first.shape} and {context.name(second.index)} {second.shape}"
        pairs, one, other = map(math.prod, (shape, first.shape, second.shape))
        yield BROADCAST_IN_LOSS.found(
            context.name(call.outputs[0]) if call.outputs else call.name,
            (f"{names} are broadcast to {shape} in ", Code(call.name), "."),
            (f"Each of the {one} predictions is compared with all {one} targets: {pairs} differences instead of "
             f"{one}."
             if _column_and_row(first.shape, second.shape)
             else f"{pairs} differences are taken of {one} and {other} numbers."),
            place=call.place,
        )  # fmt: skip


def _crossed(call: Call, first: Value, second: Value) -> bool:
    """Whether this cannot be intended: a column against a row, or a loss of different shapes (not of one number)."""
    if _column_and_row(first.shape, second.shape):
        return True
    named = facts_of_call(call.name).broadcasts_target and first.shape != second.shape
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
    values = [*operation.outputs, *operands(operation)]
    return any(value is not None and context.values[value].shape == shape for value in values)


SUM_OF_LOSSES = Check(
    "sum-reduction", "The loss is a sum over the batch", "note",
    what="A loss between predictions and targets is the sum over its elements, not divided by their number. Over a run "
    "it is a warning if the learning rate is too high or the updates are too large, and the rate times the number of "
    "terms is above 0.5; not for optimizers whose step does not depend on the gradient's size, or with clipping.",
    why="The gradient grows with the batch, so the effective learning rate depends on the batch size.",
    advice="Use the mean, or divide by the number of samples; keep the sum only if the rate was chosen for it.",
    source="Goyal et al., Accurate, large minibatch SGD, 2017: the rate belongs to the mean over a batch")  # fmt: skip
RATE_OF_MEAN = 0.5  # learning rate times terms: plain gradient descent hardly ever bears more for a mean


@SUM_OF_LOSSES.in_step
def _sum_of_losses(context: StepContext) -> Iterator[Finding]:
    for loss in (backward.loss for backward in context.graph.accumulating):
        summed = context.producer(context.source(loss)) if loss is not None else None
        comparing = _summed_comparison(context, summed) if summed is not None else None
        given = argument(comparing, "self") if comparing is not None else None
        if loss is None or given is None or comparing is None:
            continue
        shape = context.values[given].shape
        terms = math.prod(shape[:1] if facts_of(comparing.name).class_target else shape)
        if terms > 1:
            yield SUM_OF_LOSSES.found(
                context.name(loss), f"The loss {context.name(loss)} is the sum of {terms} terms, not their mean.",
                f"Its gradient is {terms} times that of the mean, and grows with the batch.",
                place=context.values[loss].place, size=terms,
            )  # fmt: skip


@SUM_OF_LOSSES.over_time
def _sum_of_losses_too_large(run: Run) -> Iterator[Finding]:
    for stretch, found in SUM_OF_LOSSES.carried(run):
        rate = max((rate for _, rates in run.rates if rates for rate in rates), default=0.0)
        bears = run.is_adaptive or any(each.clipped for each in run.steps) or rate * found.size <= RATE_OF_MEAN
        harm = None if bears or not stretch.whole else next(chain(rate_too_high(run), too_large(run)), None)
        if harm is not None:
            evidence = (f"A rate of {number(rate)} for the sum is one of {number(rate * found.size)} for the mean.",)
            yield replace(found, severity="warning", evidence=(*found.evidence, *evidence, harm.sentence))
        else:
            yield found


def _summed_comparison(context: StepContext, operation: Operation) -> Operation | None:
    """The loss whose elements an operation adds up: itself with reduction="sum", or the operand of a sum."""
    facts = facts_of(operation.name)
    if facts.compares and operation.arguments.get("reduction") == SUM:
        return operation
    given = argument(operation, "self")
    if not facts.adds_up or given is None:
        return None
    inner = context.producer(context.source(given))
    unreduced = inner is not None and facts_of(inner.name).compares and inner.arguments.get("reduction") == NONE
    return inner if unreduced else None
