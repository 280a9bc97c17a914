"""Faults of a policy's loss: its sign, that of the entropy, and one credit for all actions."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

from chainrule.diagnostics.check import Check
from chainrule.diagnostics.comparisons import (
    CONSTANT,
    first_output,
    log_probability,
    probability,
    sign_of,
    with_constants,
)
from chainrule.diagnostics.finding import Finding
from chainrule.diagnostics.loss_terms import ASCENDS
from chainrule.diagnostics.step_context import StepContext, argument, operands
from chainrule.graph.graph import Operation, Place
from chainrule.numbers import number
from chainrule.rules.facts import Facts, facts_of

REWARD = re.compile(r"(?<![a-z])(rewards?|rews?|returns?|rets?|adv|advs|advantages?|gae|r|g)(?![a-z])", re.IGNORECASE)
"""Names of what a policy is to gain. A cost has another name, and is to fall."""


@dataclass(frozen=True)
class Weighted:
    """A product of log-probabilities of actions, or of their ratios, with data.

    `sign` is 1 where the first grows with the log-probability; where it falls, `turned` is what turned the sign.
    """

    operation: Operation
    product: int
    chosen: int
    weight: int
    sign: int
    turned: Operation | None = None


def weighted(context: StepContext) -> tuple[Weighted, ...]:
    """The products of which the losses of policies are made."""
    return context.once("weighted", lambda: tuple(_weighted(context)))


def _weighted(context: StepContext) -> Iterator[Weighted]:
    for operation in context.operations_that(lambda facts: facts.multiplies):
        given, out = operands(operation), first_output(operation)
        if len(given) != 2 or out is None:
            continue
        for chosen, weight in (given, given[::-1]):
            if context.values[weight].requires_grad or not context.values[chosen].requires_grad:
                continue
            sign, turned = _sign(context, chosen)
            if sign and context.values[weight].kind != "buffer":
                yield Weighted(operation, out, chosen, weight, sign, turned if sign < 0 else None)


def _sign(context: StepContext, value: int) -> tuple[int, Operation | None]:
    """1 where a value grows with the log-probability of what was chosen, -1 where it falls; 0 where it is another.

    Beside it, what turned the sign.
    """
    sign, turned = 1, None
    maker = context.producer(context.source(value))
    while maker is not None:
        facts = facts_of(maker.name)
        if facts.class_target:
            return -sign, turned  # a cross-entropy
        learning = [each for each in operands(maker) if context.values[each].requires_grad]
        if log_probability(context, value) and (facts.picks or _is_of_normal(maker)):
            return sign, turned
        if not learning or (len(learning) > 1 and not _stacks(maker)):
            return 0, None
        step = 1 if facts.averages else _step(context, maker, learning[0])
        if not step:
            return 0, None
        turned = maker if step < 0 else turned
        sign, value = sign * step, learning[0]
        maker = context.producer(context.source(value))
    return 0, None


def _is_of_normal(maker: Operation) -> bool:
    """Whether it is the last operation of a normal distribution's log-probability."""
    constant = maker.arguments.get("other")
    return isinstance(constant, float) and math.isclose(constant, CONSTANT, rel_tol=1e-6)


def _step(context: StepContext, maker: Operation, given: int) -> int:
    """1 where a result grows with an operand, -1 where it falls; 0 where that is not known."""
    facts, other = facts_of(maker.name), maker.arguments.get("other")
    if facts.negates or facts.complements:
        return -1
    if facts.difference:
        return 1 if argument(maker, "self") == given else -1
    if facts.scales:
        if argument(maker, "self") != given and not facts.multiplies:
            return 0  # a number divided by it
        if isinstance(other, (int, float)):
            return (other > 0) - (other < 0)
        factors = [each for each in operands(maker) if each != given]
        return sign_of(context.statistics(factors[0])) if len(factors) == 1 else 0
    moved = _stacks(maker) or _passes_on(facts)
    return int(facts.adds or facts.adds_up or facts.exponential or facts.limits or moved)


def _stacks(maker: Operation) -> bool:
    return facts_of(maker.name).joins or (facts_of(maker.name).takes_rows and "tensors" in maker.arguments)


def _passes_on(facts: Facts) -> bool:
    return facts.keeps_numbers or facts.copies or facts.detaches or facts.slices


def _gain(context: StepContext, value: int) -> tuple[int, int] | None:
    """(what is to be gained, by its name; 1 where a value grows with it, -1 where it falls), for a value or before it.

    Of a difference, what it is taken from comes first.
    """
    waiting, seen = [(value, 1)], set()
    while waiting:
        value, sign = waiting.pop(0)
        names = (name.rsplit(".", 1)[-1] for name in context.values[value].names)
        if any(REWARD.search(name) for name in names):
            return value, sign
        maker = context.producer(value)
        if maker is None or value in seen:
            continue
        seen.add(value)
        waiting += [(each, sign * step) for each in operands(maker) if (step := _step(context, maker, each))]
    return None


COST = re.compile("cost|loss|penalt|regret|error|energy|delay|length|dist|nll", re.IGNORECASE)


def _expected(context: StepContext, value: int) -> tuple[int, int] | None:
    """Like `_gain`, by what the loss itself teaches: a value is compared with what it is taken from, or taken away."""
    reached, waiting = {value: 1}, [value]
    while waiting:
        maker, sign = context.producer(waiting[-1]), reached[waiting.pop()]
        for each in operands(maker) if maker is not None else ():
            step = _step(context, maker, each) if maker is not None and each not in reached else 0
            if step:
                reached[each] = sign * step
                waiting.append(each)
    for known in with_constants(context):
        own, gained = reached.get(known.prediction, 0), reached.get(known.target, 0)
        names = context.values[known.target].names
        if known.scale == "numbers" and not known.likelihood and own * gained < 0 and not any(map(COST.search, names)):
            return known.target, gained
    return None


@ASCENDS.in_step
def _avoids_rewards(context: StepContext) -> Iterator[Finding]:
    """The loss of a policy grows with the probability of what was rewarded."""
    if any(each.options.get("maximize") for each in context.members):
        return
    for each in weighted(context):
        sent = sign_of(context.statistics(each.product, gradient=True))
        named = _gain(context, each.weight) if sent else None
        gain = named or (_expected(context, each.weight) if sent else None)
        if gain is None or sent * each.sign * gain[1] < 0:
            continue
        chosen, name = context.name(each.chosen), context.name(gain[0])
        known = context.statistics(each.product, gradient=True)
        place = context.place(each.turned or each.operation) if named else context.values[each.weight].place
        yield ASCENDS.found(
            context.name(each.product),
            f"Each update makes actions with a high {name} less likely: the loss of the policy has the wrong sign.",
            (f"The loss {'grows' if sent > 0 else 'falls'} with {chosen} times {context.name(each.weight)}, by a "
             f"gradient of {number(known.mean if known else 0)} on average, and {chosen} "
             f"{'grows' if each.sign > 0 else 'falls'} with the log-probability of the actions.",
             context.between(each.weight)),
            place=place, title="The loss of a policy has the wrong sign",
            advice=f"Minimise minus the log-probability times {name}, or minus the ratio new / old times it, "
            f"exp(new - old). If {name} is a cost, name it so, or silence this finding.",
        )  # fmt: skip
        return


NORMAL = 0.5 + 0.5 * math.log(2 * math.pi)  # of the entropy of a normal distribution, beside log(deviation)


@ASCENDS.in_step
def _lowers_entropy(context: StepContext) -> Iterator[Finding]:
    """The entropy of a policy is added to its loss, and not subtracted."""
    for operation in context.graph.operations if weighted(context) else ():
        out = first_output(operation)
        wrong = _of_entropy(context, operation) * sign_of(context.statistics(out, gradient=True))
        if out is None or wrong <= 0 or not _is_of_a_policy(context, out):
            continue
        yield ASCENDS.found(
            context.name(out), "Each update makes the entropy of the policy smaller: its bonus has the wrong sign.",
            (context.between(out),), place=added_at(context, out) or context.place(operation),
            title="The entropy of a policy is made smaller",
            advice="Subtract the entropy, times its coefficient, from the loss: a policy that is sure too early no "
            "longer explores. If it is to fall, silence this finding.",
        )  # fmt: skip
        return


def _of_entropy(context: StepContext, operation: Operation) -> int:
    """1 where the result of an operation is a part of an entropy, -1 where it is a part of minus one, 0 otherwise."""
    facts, given = facts_of(operation.name), operands(operation)
    if facts.adds and len(given) == 1 and context.values[given[0]].requires_grad:
        added = operation.arguments.get("other")
        return int(isinstance(added, float) and math.isclose(added, NORMAL, rel_tol=1e-6))
    if not facts.multiplies or len(given) != 2 or not all(context.values[each].requires_grad for each in given):
        return 0
    kinds = [probability(context, _unlimited(context, each)) for each in given]
    if sorted(kinds) != [("classes", False), ("classes", True)]:
        return 0
    share, log = (context.source(_unlimited(context, given[kinds.index(("classes", each))])) for each in (False, True))
    before = context.graph.ancestors([share])
    return -1 if log in before or before & context.graph.ancestors([log]) - context.data else 0


def _unlimited(context: StepContext, value: int) -> int:
    while (maker := context.producer(value)) is not None and facts_of(maker.name).limits and argument(maker, "self"):
        value = argument(maker, "self") or value
    return value


def _is_of_a_policy(context: StepContext, value: int) -> bool:
    """Whether it is in a loss together with log-probabilities that are weighted by what is to be gained."""
    rewarded = [each.product for each in weighted(context) if _gain(context, each.weight) is not None]
    inside = (context.graph.ancestors([loss]) for loss in context.losses)
    return any(value in each and any(product in each for product in rewarded) for each in inside)


def added_at(context: StepContext, value: int) -> Place | None:
    """The place at which what was computed of a value becomes a summand of the loss."""
    while uses := [use for use in context.uses.get(value, ()) if first_output(use) is not None]:
        use = uses[-1]
        if facts_of(use.name).sums_operands and len(operands(use)) == 2:
            return context.place(use)
        value = first_output(use) or value
    return None


CREDIT = Check(
    "credit-lost", "The actions of a batch share one credit", "warning",
    what="The mean of the log-probabilities of several actions is multiplied by the returns of the single ones. Or the "
    "log-probability of each action is multiplied by the mean of advantages that are normalised, which is 0.",
    why="A policy learns from which action had which return. What is left is the same for all actions, or nothing.",
    advice="Multiply the log-probability of each action by its own return or advantage, and take the mean last.",
    source="Williams, Simple statistical gradient-following algorithms, 1992; Schulman et al., Proximal policy "
    "optimization, 2017, equation 7")  # fmt: skip
NORMALISED = 1e-3  # the mean of advantages, over their deviation


@CREDIT.in_step
def _credit(context: StepContext) -> Iterator[Finding]:
    for each in weighted(context):
        chosen, weight = (_averaged(context, value) for value in (each.chosen, each.weight))
        shapes = [context.values[value].shape for value in (each.chosen, each.weight)]
        name, of = context.name(each.chosen), context.name(each.weight)
        if chosen is not None and not shapes[0] and shapes[1] == context.values[chosen].shape:
            yield CREDIT.found(
                name, f"{name} is one mean for {math.prod(shapes[1])} actions, and is multiplied by the {of} of each.",
                f"The result is {name} times the sum of {of}: which action had which is lost.",
                place=context.place(each.operation),
            )  # fmt: skip
            return
        known = context.statistics(weight)
        of_all = known is not None and not shapes[1] and known.elements == math.prod(shapes[0]) > 1
        if known is not None and of_all and abs(known.mean) < NORMALISED * known.std:
            yield CREDIT.found(
                of, f"{name} of each action is multiplied by {of}, one mean that is nearly 0.",
                f"The {known.elements} advantages have a mean of {number(known.mean)} and a deviation of "
                f"{number(known.std)}.", place=context.place(each.operation),
            )  # fmt: skip
            return


def _averaged(context: StepContext, value: int) -> int | None:
    """The several numbers of which a value is the mean."""
    maker = context.producer(context.source(value))
    given = argument(maker, "self") if maker is not None and facts_of(maker.name).averages else None
    return given if given is not None and math.prod(context.values[given].shape) > 1 else None
