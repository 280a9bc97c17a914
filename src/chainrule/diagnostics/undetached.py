"""Constants of a loss that it trains nevertheless: an advantage, a bootstrapped target, the other tower."""

from __future__ import annotations

from collections.abc import Iterator

from chainrule.diagnostics.check import Check
from chainrule.diagnostics.comparisons import Comparison, log_probability, picked, with_constants
from chainrule.diagnostics.finding import Finding
from chainrule.diagnostics.loss_terms import is_number
from chainrule.diagnostics.step_context import StepContext, argument, operands
from chainrule.graph.graph import Call, Ref
from chainrule.graph.trees import reach
from chainrule.rules.facts import facts_of, facts_of_call

TRAINED = Check(
    "trained-target", "A loss trains what it should take as given", "warning",
    what="The log-probability of an action is multiplied by an advantage that passes a gradient to a value, which has "
    "a loss of its own in the same backward pass. Or the prediction of an action's value is compared with a reward and "
    "the largest value that the same network predicts elsewhere, and that passes a gradient too; or a value with data "
    "plus a share of the value that the same network gives other data. Or a loss is made of "
    "similarities alone, both sides are trained by the same parameters, and no data holds them apart.",
    why="The loss falls by moving the wrong side: a value that is wrong on purpose, a target that comes to meet its "
    "prediction, or one representation for every input.",
    advice="Detach it: advantage.detach(), or compute it under torch.no_grad(). If it is meant (a residual gradient), "
    "silence this finding.",
    source="Mnih et al., Asynchronous methods, 2016, and Human-level control, 2015; Chen and He, SimSiam, 2021, 4.1",
)  # fmt: skip


@TRAINED.in_step
def _advantage(context: StepContext) -> Iterator[Finding]:
    """A product of a log-probability and what depends on a value that is compared with data in the same loss."""
    valued = [each for each in with_constants(context) if each.scale == "numbers" and not each.likelihood]
    for operation in context.operations_that(lambda facts: facts.multiplies) if valued else ():
        factors = [each for each in operands(operation) if context.values[each].has_gradient]
        if len(set(factors)) != 2 or operation.outputs[0] is None:
            continue
        for chosen, weight in (factors, factors[::-1]):
            if context.values[chosen].shape != context.values[weight].shape or not log_probability(context, chosen):
                continue
            behind, apart = _with_ancestors(context, weight), _with_ancestors(context, chosen)
            product = operation.outputs[0]
            value = next(
                (each for each in valued if each.prediction in behind and each.prediction not in apart
                 and _has_a_loss(context, each, product)), None
            )  # fmt: skip
            if value is None:
                continue
            name, of = context.name(weight), context.name(value.prediction)
            yield TRAINED.found(
                name,
                f"The policy's loss passes a gradient through {name} to {of}: it trains the value that it should take "
                "as given.",
                (f"{name} is multiplied by the log-probability of the actions, {context.name(chosen)}.",
                 f"{of} has a loss of its own: it is compared with {context.name(value.target)}."),
                place=context.values[weight].place or context.place(operation),
            )  # fmt: skip


def _with_ancestors(context: StepContext, value: int) -> set[int]:
    return context.graph.ancestors([value]) | {value}


def _has_a_loss(context: StepContext, value: Comparison, product: int) -> bool:
    """Whether the comparison of a value with data is in the loss of a product, apart from it."""
    measured = {value.measured, *(out for made in value.operation.outputs if made for out in context.results(made))}
    inside = (_with_ancestors(context, loss) for loss in context.losses)
    return any(product in each and not each.isdisjoint(measured - {product}) for each in inside)


@TRAINED.in_step
def _bootstrapped(context: StepContext) -> Iterator[Finding]:
    """A prediction picked by an action, and a target with the maximum over actions of the same network's outputs."""
    for operation in context.operations_that(lambda facts: facts.compares or facts.difference):
        sides = [argument(operation, name) for name in ("self", "target", "other")]
        sides = [each for each in sides if each is not None and context.values[each].has_gradient]
        for prediction, target in (sides, sides[::-1]) if len(sides) == 2 else ():
            values, largest = picked(context, prediction), _largest_in(context, target)  # type: ignore[arg-type]
            if values is None or largest is None or _parameters(context, values) != _parameters(context, largest):
                continue
            name = context.name(target)  # type: ignore[arg-type]
            yield TRAINED.found(
                name, f"The target {name} passes a gradient to the network that is to predict it.",
                (f"{name} has the largest of {context.name(largest)} in it, and {context.name(prediction)} is one of "  # type: ignore[arg-type]
                 f"{context.name(values)}: the same parameters computed both.",),
                place=context.values[target].place or context.place(operation),  # type: ignore[index]
                advice=SEMI,
            )  # fmt: skip


def _largest_in(context: StepContext, target: int) -> int | None:
    """The values whose maximum a target has, added to data and perhaps scaled by it."""
    maker, added = context.producer(context.source(target)), False
    while maker is not None and not facts_of(maker.name).largest:
        facts = facts_of(maker.name)
        learning = [each for each in operands(maker) if context.values[each].requires_grad]
        if len(learning) != 1 or not (facts.adds or facts.scales or facts.difference):
            return None
        given = [each for each in operands(maker) if each in context.data]
        added = added or (facts.adds and any(not is_number(context, each) for each in given))
        maker = context.producer(context.source(learning[0]))
    return argument(maker, "self") if maker is not None and added else None


@TRAINED.in_step
def _semi_gradient(context: StepContext) -> Iterator[Finding]:
    """A value, and a target with data and a share of the value that the same network gives other data."""
    for operation in context.operations_that(lambda facts: facts.compares or facts.difference):
        sides = [argument(operation, name) for name in ("self", "target", "other")]
        known = [each for each in sides if each is not None and context.values[each].has_gradient]
        for prediction, target in (known, known[::-1]) if len(known) == 2 else ():
            later = _discounted(context, target)
            if later is None or not (shared := _parameters(context, prediction)) or later == context.source(prediction):
                continue
            if shared != _parameters(context, later) or _data(context, prediction) == _data(context, later):
                continue
            name, of = context.name(target), context.name(later)
            yield TRAINED.found(
                name, f"The target {name} passes a gradient to the network that is to predict it.",
                (f"{name} is data plus a share of {of}, and the same parameters computed {context.name(prediction)}.",),
                place=context.values[target].place or context.place(operation), advice=SEMI,
            )  # fmt: skip
            return


SEMI = (
    "Compute the target under torch.no_grad(), or detach it; a copy of the network (a target network) keeps it still. "
    "If a residual gradient is meant, silence this finding."
)
SHARES = 0.5, 1.0  # of the later value in the target


def _discounted(context: StepContext, target: int) -> int | None:
    """The value of which a target has a share, added to data."""
    maker, added, share = context.producer(context.source(target)), False, 1.0
    while maker is not None:
        facts, given = facts_of(maker.name), operands(maker)
        learning = [each for each in given if context.values[each].requires_grad]
        if len(learning) != 1 or not (facts.adds or facts.scales or facts.multiplies):
            return None
        factor = maker.arguments.get("other")
        if facts.adds:
            added = added or any(each in context.data and not is_number(context, each) for each in given)
        elif isinstance(factor, (int, float)):
            share *= factor
        elif facts.multiplies:
            known = [context.statistics(each) for each in given if each not in learning]
            share *= known[0].high if known and known[0] is not None and known[0].low >= 0 else 0
        following = context.source(learning[0])
        maker = context.producer(following)
        if maker is None or facts_of(maker.name).weighs:
            return following if added and SHARES[0] <= share < SHARES[1] else None
    return None


def _parameters(context: StepContext, value: int) -> set[int]:
    """The parameters that a value was computed with."""
    known = {each.value for each in context.graph.parameters.values()}
    return {each for each in context.graph.ancestors([value]) if each in known and context.values[each].requires_grad}


@TRAINED.in_step
def _twins(context: StepContext) -> Iterator[Finding]:
    """A loss of similarities alone, whose minimum is one output for every input."""
    calls = [each for each in context.graph.calls if _compares_twins(context, each)]
    ends = {out for call in calls for out in call.outputs}
    for loss in context.losses if calls else ():
        inside = set(reach([loss], lambda each: () if each in ends else context.graph.operands(each)))
        leaves = {each for each in inside if each not in ends and context.values[each].operation is None}
        if ends.isdisjoint(inside) or leaves:
            continue
        call = next(each for each in calls if not ends.isdisjoint(each.outputs))
        one, other = (context.name(each.value) for each in _sides(call))
        yield TRAINED.found(
            context.name(loss),
            f"The loss {context.name(loss)} makes outputs of the same network alike, trains both sides, and nothing "
            "holds them apart: one output for every input is its minimum.",
            (f"{call.name} compares {one} with {other}, and both pass a gradient to the same parameters.",),
            place=call.place,
            advice="Detach one side (the stop-gradient of BYOL and SimSiam), or add a term that keeps different inputs "
            "apart: negatives, or the variance of each feature.",
        )  # fmt: skip


def _sides(call: Call) -> list[Ref]:
    return [each for each in call.arguments[:2] if isinstance(each, Ref)]


def _compares_twins(context: StepContext, call: Call) -> bool:
    """Whether a call makes two outputs of the same parameters alike, element by element, and trains both."""
    facts, sides = facts_of_call(call.name), _sides(call)
    sign = -1 if facts.likens else 1 if facts.compares else 0
    if not sign or len(sides) != 2 or len(call.outputs) != 1 or sides[0].value == sides[1].value:
        return False
    one, other = (each.value for each in sides)
    shape = context.values[one].shape
    if shape != context.values[other].shape or len(shape) < 2 or not (shared := _parameters(context, one)):
        return False
    trained = all(context.values[each].has_gradient and not _has_data_added(context, each) for each in (one, other))
    sent = context.statistics(call.outputs[0], gradient=True)
    if not trained or sent is None or not (sent.low * sign > 0 and sent.high * sign > 0):
        return False  # a loss that holds some apart has gradients of both signs
    return bool(shared & _parameters(context, other)) and _data(context, one) != _data(context, other)


def _has_data_added(context: StepContext, value: int) -> bool:
    """Whether data is a summand of a value, as a reward is of a target: that holds it apart from others."""
    maker = context.producer(context.source(value))
    facts = facts_of(maker.name) if maker is not None else None
    added = maker is not None and facts is not None and (facts.adds or facts.difference)
    return added and any(each in context.data for each in operands(maker))  # type: ignore[arg-type]


def _data(context: StepContext, value: int) -> set[int]:
    return context.graph.ancestors([value]) & context.data
