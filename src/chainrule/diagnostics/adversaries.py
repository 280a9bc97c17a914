"""Faults of two players: what a discriminator and its maker are taught, and the penalty that holds the first."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from chainrule.diagnostics.check import Check
from chainrule.diagnostics.comparisons import Comparison, comparisons, first_output, sign_of, with_constants
from chainrule.diagnostics.finding import Finding
from chainrule.diagnostics.step_context import StepContext, argument
from chainrule.graph.graph import Operation
from chainrule.graph.statistics import Statistics
from chainrule.numbers import number
from chainrule.rules.facts import facts_of

SAME_TARGET = Check(
    "real-as-made", "Real and made samples have the same target", "warning",
    what="A network is to say one and the same number of data and of what another network made, which comes without a "
    "gradient, and of nothing it is to say another.",
    why="A discriminator learns to say that number of everything, and its maker learns nothing from it.",
    advice="Teach a discriminator 1 for real samples and 0 for made ones; its maker is trained with 1 for these.",
    source="Goodfellow et al., Generative adversarial nets, 2014, algorithm 1", lasts=3)  # fmt: skip
FEWEST = 2  # samples


@SAME_TARGET.in_step
def _same_target(context: StepContext) -> Iterator[Finding]:
    real: list[Comparison] = []
    made: list[Comparison] = []
    labels: set[float] = set()
    for comparison in comparisons(context):
        known = context.statistics(comparison.target)
        if comparison.scale == "classes" or known is None or known.low != known.high or known.elements < FEWEST:
            continue
        behind = context.graph.ancestors([comparison.prediction])
        given = [each for each, _, _ in context.weighed if each in behind and not context.values[each].requires_grad]
        if given:
            (real if all(each in context.data for each in given) else made).append(comparison)
            labels.add(known.low)
    if real and made and len(labels) == 1:
        one, fake = real[0], made[0]
        names = f"{context.name(one.prediction)} and {context.name(fake.prediction)}"
        yield SAME_TARGET.found(
            context.name(fake.target), f"Real and made samples have the same target, {number(labels.pop())}: {names}.",
            (context.between(one.prediction), context.between(fake.prediction)), place=context.place(fake.operation),
        )  # fmt: skip


AGREED = Check(
    "players-agree", "A discriminator and its maker want the same", "warning",
    what="A network's scores are pushed one way for data and the other way for what another network made, and the "
    "step of that other one pushes them the same way as the discriminator does.",
    why="The maker learns to be recognised: its samples move away from the data.",
    advice="Change the sign of the maker's loss, -D(G(z)).mean(), or its target: 1 for made samples.",
    source="Goodfellow et al., Generative adversarial nets, 2014; Arjovsky, Chintala and Bottou, Wasserstein GAN, 2017",
    lasts=2)  # fmt: skip


@AGREED.in_step
def _agree(context: StepContext) -> Iterator[Finding]:
    scores: dict[str, list[int]] = {}
    for _, weight, out in context.weighed:
        if context.values[out].has_gradient and context.is_output(out):
            scores.setdefault(_named(context, weight), []).append(out)
    behind = _layers_behind(context) if any(len(outs) >= len(KINDS) for outs in scores.values()) else {}
    for outs in scores.values():
        if len(outs) < len(KINDS) or len({behind.get(out, 0) for out in outs}) == 1:
            continue  # behind scores of made samples there are the layers of the maker too
        kinds = _kinds(context, outs)
        signs = {kind: {sign_of(context.statistics(out, gradient=True)) for out in of} for kind, of in kinds.items()}
        if len(signs) < len(KINDS) or any(len(each) > 1 or 0 in each for each in signs.values()):
            continue
        real, made, own = (next(iter(signs[kind])) for kind in KINDS)
        score, other = kinds["own"][-1], kinds["made"][-1]
        loss = next((each for each in context.losses if score in context.graph.ancestors([each]) | {each}), None)
        if real == made or own != made or loss is None:
            continue
        yield AGREED.found(
            context.name(loss), f"The loss {context.name(loss)} makes {context.name(score)}, the scores of made "
            f"samples, {'smaller' if own > 0 else 'larger'}, as the discriminator's loss does with "
            f"{context.name(other)}.",
            (f"Scores of data, {context.name(kinds['real'][-1])}, are made {'smaller' if real > 0 else 'larger'}.",
             context.between(score)), place=context.values[loss].place,
        )  # fmt: skip


KINDS = ("real", "made", "own")
"""Scores of data, of what another network made without a gradient, and of what it made with one."""


def _named(context: StepContext, weight: int) -> str:
    """The name of a parameter, without the number of the value that it is after each write."""
    return context.values[weight].name.partition("@")[0]


def _layers_behind(context: StepContext) -> dict[int, int]:
    """The layers that each value comes after, a bit for each, in one walk over the operations."""
    bits: dict[str, int] = {}
    behind: dict[int, int] = {}
    for _, weight, made in context.weighed:
        behind[made] = behind.get(made, 0) | 1 << bits.setdefault(_named(context, weight), len(bits))
    for operation in context.graph.operations:
        for out in operation.outputs:
            if out is not None:
                for each in context.graph.operands(out):
                    behind[out] = behind.get(out, 0) | behind.get(each, 0)
    return behind


def _kinds(context: StepContext, outs: list[int]) -> dict[str, list[int]]:
    before = {out: context.graph.ancestors([out]) | {out} for out in outs}
    within = {out: [(given, _named(context, weight)) for given, weight, made in context.weighed if made in before[out]]
              for out in outs}  # fmt: skip
    own = set.intersection(*({name for _, name in each} for each in within.values()))
    follows = {
        given: _follows(context, given, own) for layers in within.values() for given, name in layers if name in own
    }
    kinds: dict[str, list[int]] = {}
    for out, layers in within.items():
        inputs = {given for given, name in layers if name in own and not follows[given]}
        others = any(name not in own for _, name in layers)
        if inputs and all(context.values[each].requires_grad for each in inputs):
            kinds.setdefault("own", []).append(out)
        elif inputs and all(each in context.data for each in inputs):
            kinds.setdefault("real", []).append(out)
        elif inputs and others:
            kinds.setdefault("made", []).append(out)
    return kinds


def _follows(context: StepContext, given: int, own: set[str]) -> bool:
    """Whether a layer of the network itself comes before a value."""
    before = context.graph.ancestors([given])
    return any(context.values[each].kind == "parameter" and _named(context, each) in own for each in before)


PENALISED = Check(
    "penalty-per-part", "A gradient penalty takes the norm of a part", "warning",
    what="The gradient of one score for each sample, from torch.autograd.grad, has its norm taken along one of "
    "several axes (of channels, say), or over the whole batch at once, and a number is subtracted from it.",
    why="The slope of a score is the norm over all inputs of a sample. With the norm of a part held at 1 it is far "
    "larger; with that of the batch it is far smaller.",
    advice="Flatten the gradient of each sample first: grads.flatten(1).norm(2, dim=1).",
    source="Gulrajani et al., Improved training of Wasserstein GANs, 2017, algorithm 1")  # fmt: skip


@PENALISED.in_step
def _penalised(context: StepContext) -> Iterator[Finding]:
    for asked, scores, known in _differentiated(context):
        shape = context.values[asked].shape
        for operation in context.operations_that(lambda facts: facts.size == "norm"):
            given, out = argument(operation, "self"), first_output(operation)
            if given is None or out is None or context.values[given].shape != shape or not known(given):
                continue
            norms = math.prod(context.values[out].shape)
            held = any(facts_of(use.name).difference and "other" in use.arguments for use in _uses(context, out))
            if norms == scores or not held or not context.values[out].requires_grad:
                continue
            name = context.name(out)
            yield PENALISED.found(
                name, f"{name} has {norms} norms of the gradient of {scores} scores: "
                f"{'one for the whole batch' if norms == 1 else 'several for each sample'}.",
                f"The gradient has the shape {shape}, and its norms {context.values[out].shape}.",
                place=context.place(operation),
            )  # fmt: skip
            return


OF_MEAN = Check(
    "derivative-of-mean", "A mean over the samples is differentiated in place of each sample's output", "warning",
    what="torch.autograd.grad differentiates the mean of one output for each sample with respect to the samples, not "
    "the mean of a loss, and backward goes through the result.",
    why="The derivative of each output is divided by the number of samples: an equation, or a penalty, holds for a "
    "slope that is as many times too small.",
    advice="Differentiate the sum, outputs.sum(), or give ones as grad_outputs: no sample's output depends on another.",
    source="Raissi et al., Physics-informed neural networks, 2019: the derivatives of u at each point")  # fmt: skip


@OF_MEAN.in_step
def _of_mean(context: StepContext) -> Iterator[Finding]:
    measured = {each.measured for each in with_constants(context)}
    trained = {each.value for each in context.graph.parameters.values() if each.name in context.held}
    for each in context.graph.backwards:
        maker = None if each.accumulates or each.loss is None else context.producer(each.loss)
        given = argument(maker, "self") if maker is not None and facts_of(maker.name).averages else None
        if not each.differentiated or maker is None or given is None or context.values[given].requires_grad is False:
            continue
        count = math.prod(context.values[given].shape)
        if measured & {given, *context.graph.ancestors([given])}:
            continue
        for asked in each.given:
            shape = context.values[asked].shape
            learnt = asked in trained or any(context.values[v].requires_grad for v in context.graph.operands(asked))
            if not learnt and len(shape) > 1 and shape[0] == count > 1:
                name = context.name(asked)
                yield OF_MEAN.found(
                    name, f"The mean of {count} outputs is differentiated by {name}: each sample's derivative is "
                    f"divided by {count}.",
                    f"There is one output for each row of {name} {shape}, and backward goes through their derivatives.",
                    place=each.place or context.place(maker),
                )  # fmt: skip
                return


def _uses(context: StepContext, value: int) -> list[Operation]:
    found = []
    for use in context.uses.get(value, ()):
        found += [use, *(each for out in use.outputs if out is not None and facts_of(use.name).adds
                         for each in context.uses.get(out, ()))]  # fmt: skip
    return found


def _differentiated(context: StepContext) -> Iterator[tuple[int, int, Callable[[int], bool]]]:
    """(input, number of scores, whether a value is its gradient) where scores of samples are differentiated."""
    for each in context.graph.backwards:
        if each.accumulates or each.loss is None:
            continue
        scores, maker = each.loss, context.producer(each.loss)
        summed = argument(maker, "self") if maker is not None and facts_of(maker.name).adds_up else None
        count = math.prod(context.values[scores if summed is None else summed].shape)
        for asked, snapshot in each.given.items():
            shape, own = context.values[asked].shape, context.cache.of(snapshot)
            if len(shape) > 1 and shape[0] == count > 1 and own is not None:

                def known(value: int, own: Statistics = own) -> bool:
                    other = context.statistics(value)
                    return other is not None and math.isclose(other.norm, own.norm, rel_tol=1e-6)

                yield asked, count, known
