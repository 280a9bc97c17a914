"""Losses that pursue the opposite of what they are for: of two answers the worse one, no bound, a divergence."""

from __future__ import annotations

import re
from collections.abc import Iterator

from chainrule.diagnostics.check import Check
from chainrule.diagnostics.comparisons import first_output, log_probability, probability, sign_of
from chainrule.diagnostics.finding import Finding
from chainrule.diagnostics.loss_terms import is_constant
from chainrule.diagnostics.policies import added_at, weighted
from chainrule.diagnostics.step_context import StepContext, argument, operands
from chainrule.graph.graph import Operation
from chainrule.numbers import number
from chainrule.rules.facts import facts_of

WORD = r"(?<![a-z])({})(?![a-z])"
BETTER = re.compile(WORD.format("chosen|preferred|accepted|winners?|winning|liked"), re.IGNORECASE)
WORSE = re.compile(WORD.format("rejected|dispreferred|losers?|losing|disliked"), re.IGNORECASE)
POSITIVE, NEGATIVE = (re.compile(WORD.format(each), re.IGNORECASE) for each in ("pos|positives?", "neg|negatives?"))
SCORE = re.compile(WORD.format("scores?|rewards?|logits?|sims?|similarity|similarities"), re.IGNORECASE)
SMALLER_IS_BETTER = re.compile("loss|nll|dist|cost|error|perplexity|energy", re.IGNORECASE)
"""Names of the two sides of a pair. `positive` and `negative` say which is to be larger only of what is a score."""


PREFERS = Check(
    "worse-preferred", "A loss prefers the worse one of two", "warning",
    what="The scores of what is named chosen, preferred, accepted, liked or a winner (or positive scores) get a "
    "positive gradient at every pair, and those of what is rejected, disliked or a loser (or negative) a negative one. "
    "One network scores both. Which one is better is taken from the names alone, as the evidence says.",
    why="Each update gives the better one of two a smaller score: the model learns to prefer what people rejected.",
    advice="Subtract the score of the rejected one from that of the chosen one where the difference is to be large.",
    source="Ouyang et al., Training language models to follow instructions, 2022, equation 1; Rafailov et al., Direct "
    "preference optimization, 2023, equation 7")  # fmt: skip


@PREFERS.in_step
def _prefers_the_worse(context: StepContext) -> Iterator[Finding]:
    """Scores of the better one of two get a positive gradient at each pair, and those of the worse one a negative."""
    if any(each.options.get("maximize") for each in context.members):
        return
    sides: dict[int, list[int]] = {1: [], -1: []}
    for value in context.values:
        side = _side(value.names)
        many = len(value.shape) > 2 or (len(value.shape) == 2 and min(value.shape) > 1)
        if side and value.has_gradient and value.operation is not None and not many:
            sides[side].append(value.index)
    if not all(sides.values()):
        return
    signs = {side * sign_of(context.statistics(each, gradient=True)) for side in sides for each in sides[side]}
    if signs != {1}:
        return
    better, worse = (sides[side][0] for side in (1, -1))
    names, joined = [context.name(each) for each in (better, worse)], _joins(context, better, worse)
    behind, other = (context.graph.ancestors([each]) for each in (better, worse))
    if joined is None or not any(each.value in behind & other for each in context.graph.parameters.values()):
        return  # no pair that one network scores
    sent = [context.statistics(each, gradient=True) for each in (better, worse)]
    yield PREFERS.found(
        names[1], f"Each update makes {names[1]} larger and {names[0]} smaller, for every pair: the loss prefers the "
        "wrong one of two.",
        [*(f"The gradient of {name} is {number(known.mean)} on average."
           for name, known in zip(names, sent, strict=True) if known is not None),
         f"The names say which one is better: {names[0]}, not {names[1]}."],
        place=context.place(joined),
        advice=f"Subtract {names[1]} from {names[0]}, and not the other way round, where the difference is to be "
        "large. If the names are the other way round, silence this finding.",
    )  # fmt: skip


def _side(names: tuple[str, ...]) -> int:
    """1 for the name of what is to have the larger score of two, -1 for that of the other one, else 0."""
    for name in (each.rsplit(".", 1)[-1] for each in names):
        better, worse = BETTER.search(name), WORSE.search(name)
        if not better and not worse and SCORE.search(name):
            better, worse = POSITIVE.search(name), NEGATIVE.search(name)
        if bool(better) != bool(worse) and not SMALLER_IS_BETTER.search(name):
            return 1 if better else -1
    return 0


def _joins(context: StepContext, one: int, other: int) -> Operation | None:
    """The first operation that takes what was computed of two values."""
    reached = [{one}, {other}]
    for operation in context.graph.operations:
        given = operands(operation)
        met = [not each.isdisjoint(given) for each in reached]
        if all(met):
            return operation
        for each, follows in zip(reached, met, strict=True):
            each.update(out for out in operation.outputs if follows and out is not None)
    return None


UNLIMITED = Check(
    "limit-without-effect", "The limit of a policy's ratio holds nothing back", "warning",
    what="Of a product with a ratio and the product with the same ratio within bounds the larger one is taken and is "
    "to grow, or the smaller one is taken and is to fall.",
    why="A bound is to keep a policy near the one that drew the actions: it only holds where the worse one counts.",
    advice="Take torch.min of two gains, or torch.max of two losses.",
    source="Schulman et al., Proximal policy optimization, 2017, equation 7: a lower bound")  # fmt: skip


@UNLIMITED.in_step
def _unlimited(context: StepContext) -> Iterator[Finding]:
    """The larger one of two gains of a policy, one of which has a limited ratio, where the smaller one is meant."""
    for operation in context.operations_that(lambda facts: facts.chooses):
        given, out = operands(operation), first_output(operation)
        factors = [_factors(context, each) for each in given]
        if out is None or len(factors) != 2 or not any(_is_limited(context, a, b) for a, b in (factors, factors[::-1])):
            continue
        known, *sides = map(context.statistics, (out, *given))
        means = [each.mean for each in sides if each is not None]
        wanted = sign_of(context.statistics(out, gradient=True))
        if known is None or len(means) != 2 or not wanted or all(known.mean == each for each in means):
            continue
        larger = known.mean >= max(means)
        if (larger and wanted < 0) or (known.mean <= min(means) and wanted > 0):
            chosen, right = ("larger", "smaller") if larger else ("smaller", "larger")
            yield UNLIMITED.found(
                context.name(out), f"The loss takes the {chosen} one of {context.name(given[0])} and "
                f"{context.name(given[1])}, of which the second has a limited ratio: nothing is limited.",
                (f"It {'falls' if wanted < 0 else 'grows'} with the result, {context.name(out)}, whose mean is "
                 f"{number(known.mean)}; those of the two are {number(means[0])} and {number(means[1])}.",),
                place=context.place(operation),
                advice=f"Take the {right} one of the two: a gain is to be the lower one, a loss the higher one.",
            )  # fmt: skip
            return


def _factors(context: StepContext, value: int) -> list[int]:
    maker = context.producer(context.source(value))
    return [context.source(each) for each in operands(maker)] if maker and facts_of(maker.name).multiplies else []


def _is_limited(context: StepContext, plain: list[int], limited: list[int]) -> bool:
    """Whether one of the second factors is one of the first ones within bounds."""
    makers = [context.producer(each) for each in limited]
    return any(
        maker is not None and facts_of(maker.name).limits and context.values[each].requires_grad
        and (given := argument(maker, "self")) is not None and context.source(given) in plain
        for each, maker in zip(limited, makers, strict=True)
    )  # fmt: skip


LEAVES = Check(
    "reference-left", "A divergence from the reference is made larger", "warning",
    what="A policy is trained by rewards, and a divergence of it from a network that stands still (the mean difference "
    "of their log-probabilities, or that difference times the probabilities) gets a negative gradient.",
    why="The policy is paid for moving away from the model that it is to stay near.",
    advice="Add the divergence, times its coefficient, to the loss, or subtract it from the reward. If the policy is "
    "to move away, silence this finding.",
    source="Ziegler et al., Fine-tuning language models from human preferences, 2019, equation 2", lasts=2,
)  # fmt: skip


@LEAVES.in_step
def _leaves_the_reference(context: StepContext) -> Iterator[Finding]:
    """The divergence of a policy from a network that stands still is made larger."""
    for operation in context.operations_that(lambda facts: facts.difference) if weighted(context) else ():
        own, other, out = argument(operation, "self"), argument(operation, "other"), first_output(operation)
        if own is None or other is None or out is None or not _is_fixed(context, own, other):
            continue
        found = _averaged_alone(context, out) if log_probability(context, own) else _expected(context, own, out)
        known = context.statistics(found, gradient=True)
        if found is None or known is None or sign_of(known) >= 0 or not is_constant(known):
            continue
        name, of = context.name(own), context.name(other)
        yield LEAVES.found(
            context.name(found), f"Each update moves the policy away from the one that {of} comes from: the divergence "
            "has the wrong sign.",
            (f"The loss falls with {context.name(found)}, which grows with {name} minus {of}, by a gradient of "
             f"{number(known.mean)}.", f"{of} passes no gradient."),
            place=added_at(context, found) or context.place(operation),
        )  # fmt: skip
        return


def _is_fixed(context: StepContext, own: int, other: int) -> bool:
    """Whether two values of one shape come from parameters, and the second one from others too, without a gradient."""
    values = context.values
    known = {each.value: each.name for each in context.graph.parameters.values()}
    stands, moves = (
        {known[each] for each in context.graph.ancestors([side]) if each in known} for side in (other, own)
    )
    same = values[own].shape == values[other].shape and values[own].requires_grad and not values[other].requires_grad
    return same and bool(stands - moves)


def _averaged_alone(context: StepContext, value: int) -> int | None:
    """The sum or mean of a value, if nothing else takes it."""
    uses = context.uses.get(value, ())
    if len(uses) == 1 and (facts_of(uses[0].name).averages or facts_of(uses[0].name).adds_up):
        return first_output(uses[0])
    return None


def _expected(context: StepContext, own: int, difference: int) -> int | None:
    """A difference of log-probabilities times the probabilities."""
    if probability(context, own) != ("classes", True):
        return None
    for use in context.uses.get(difference, ()):
        shares = [each for each in operands(use) if each != difference]
        if facts_of(use.name).multiplies and len(shares) == 1 and probability(context, shares[0])[0] == "classes":
            return first_output(use)
    return None
