"""Faults in how a loss is put together: its sign, and summands without a gradient."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import accumulate
from statistics import median

from chainrule.diagnostics.check import Check
from chainrule.diagnostics.comparisons import (
    CONSTANT,
    Comparison,
    comparisons,
    first_output,
    sign_of,
)
from chainrule.diagnostics.finding import Finding, listed
from chainrule.diagnostics.run_context import Run
from chainrule.diagnostics.step_context import StepContext, argument, operands
from chainrule.graph.comparison import dense
from chainrule.graph.graph import Operation, Place, Ref
from chainrule.graph.snapshot import data_of, has_numbers
from chainrule.graph.statistics import Statistics
from chainrule.numbers import number
from chainrule.rules.facts import facts_of, facts_of_call

ASCENDS = Check(
    "loss-ascends", "The loss has the wrong sign", "warning",
    what="Every comparison of predictions with targets gets a negative gradient (or, with `maximize=True`, a positive "
    "one), or the log-likelihood of the targets a positive one, equal for all samples. Or a similarity of predictions "
    "and targets is made smaller. Or an update by hand adds the gradients to the parameters. Or, over a run, a summand "
    "that compares nothing with data makes the loss fall below 0 faster and faster, as a KL divergence that is "
    "subtracted.",
    why="Each update makes the predictions worse: the loss falls without bound, and nothing is learnt.",
    advice="Remove the minus sign before the loss, or put one before a likelihood or an accuracy; with maximize=True "
    "give what is to grow. If the ascent is wanted (unlearning), silence this finding.",
    source="PyTorch's documentation of torch.optim: step() descends, unless maximize=True")  # fmt: skip


@ASCENDS.in_step
def _ascends(context: StepContext) -> Iterator[Finding]:
    learning = [each for each in context.graph.parameters.values() if each.gradient is not None]
    if not all(context.may_learn(each) for each in learning):
        return  # the other player's parameters: an adversary may well make their loss larger
    maximised = {bool(each.options.get("maximize")) for each in context.members} or {False}
    if len(maximised) > 1:
        return  # what is made smaller for one is made larger for the other, on purpose
    upside_down = -1 if True in maximised else 1
    signs = [(each.measured, _sign(context, each) * upside_down) for each in comparisons(context)]
    if not signs or any(sign >= 0 for _, sign in signs):
        return
    for value, _ in signs:
        known = context.statistics(value, gradient=True)
        assert known is not None
        likely = "smaller" if known.low * upside_down > 0 else "larger"
        yield ASCENDS.found(
            context.name(value), f"Each update makes {context.name(value)} {likely}: the loss has the wrong sign.",
            (f"The gradient of {context.name(value)} is {number(known.low)}"
             f"{'' if known.low == known.high else f' to {number(known.high)}'}"
             f"{', and the optimizer maximises' if upside_down < 0 else ''}.", _size(context, value)),
            place=_turned(context, value) or context.values[value].place,
        )  # fmt: skip


def _turned(context: StepContext, value: int) -> Place | None:
    """The place of the operation that turns the sign, from which on gradients are below 0."""
    while sign_of(context.statistics(value, gradient=True)) < 0:
        uses = [(use, first_output(use)) for use in context.uses.get(value, ())]
        learning = [(use, out) for use, out in uses if sign_of(context.statistics(out, gradient=True))]
        if not learning or learning[0][1] is None:
            return None
        use, value = learning[0][0], learning[0][1]
        if sign_of(context.statistics(value, gradient=True)) > 0:
            return context.place(use)
    return None


def _size(context: StepContext, value: int) -> str:
    known = context.statistics(value)
    alone = known is not None and known.elements == 1
    return f"It is {number(known.mean)}." if known is not None and alone else context.between(value)


@ASCENDS.in_step
def _made_unlike(context: StepContext) -> Iterator[Finding]:
    """Similarities of predictions and data, which are to grow."""
    upside_down = -1 if any(each.options.get("maximize") for each in context.members) else 1
    alike: dict[int, Place | None] = {}
    for call in context.graph.calls:
        taken = [each.value for each in (*call.arguments, *call.keywords.values()) if isinstance(each, Ref)]
        learning = [each for each in taken if context.values[each].requires_grad]
        targets = {*taken} - {*learning}
        if not facts_of_call(call.name).likens or len(learning) != 1 or len(targets) != 1 or not call.outputs:
            continue
        if targets <= context.data:
            alike[call.outputs[0]] = call.place
    known = {each: context.statistics(each, gradient=True) for each in alike}
    if any(sign_of(each) * upside_down <= 0 or each is None or not is_constant(each) for each in known.values()):
        return  # some are to be alike, and some to differ
    for value, place in alike.items():
        name = context.name(value)
        yield ASCENDS.found(
            name, f"Each update makes {name} smaller, the similarity of predictions and their targets: the loss has "
            "the wrong sign.", context.between(value), place=place,
            advice="Make 1 - similarity small, or its negative.",
        )  # fmt: skip


ALONG = 0.99  # cosine between an update and the gradient


@ASCENDS.in_step
def _climbs(context: StepContext) -> Iterator[Finding]:
    """Updates by hand along the gradient, where the numbers of both are known."""
    moved = {}
    for name, parameter in context.graph.parameters.items():
        start, end, grad = parameter.start.data, data_of(parameter.end), parameter.grad
        if name in context.held or start is None or end is None or not has_numbers(grad):
            continue
        move, along = (dense(end) - dense(start)).flatten().double(), dense(grad).flatten().double()
        if size := float(move.norm() * along.norm()):
            moved[name] = float(move @ along) / size
    if moved and min(moved.values()) > ALONG:
        yield ASCENDS.found(
            listed(list(moved)), f"The update adds the gradient to {listed(list(moved))}: the loss is made larger.",
            f"The cosine between update and gradient is {number(min(moved.values()))} or more.",
            advice="Subtract the gradient, times the learning rate: p -= rate * p.grad.",
        )  # fmt: skip


LARGEST = 1.001  # a loss of classes with a larger weight may be a policy's, weighted by its return


def _sign(context: StepContext, comparison: Comparison) -> int:
    """1 if an update makes the predictions better, -1 if it makes all of them worse; 0 if that is not known."""
    known = context.statistics(comparison.measured, gradient=True)
    sign = -sign_of(known) if comparison.likelihood else sign_of(known)
    if known is None or sign > 0:
        return sign
    weight, rows = abs(known.low) / loss_scale(context), (context.values[comparison.measured].shape or (1,))[0]
    # The gradient of a sum or a mean is the same for all samples; a policy's is weighted by its returns.
    plain = any(math.isclose(weight * each, 1.0, rel_tol=1e-3) for each in (1, rows, known.elements))
    usual = {"numbers": True, "classes": weight <= LARGEST, "probabilities": weight <= LARGEST}[comparison.scale]
    return sign if is_constant(known) and (plain and known.elements > 1 if comparison.likelihood else usual) else 0


def is_constant(known: Statistics) -> bool:
    """Whether all elements are equal up to rounding."""
    return known.high - known.low <= 1e-5 * max(abs(known.high), abs(known.low))


LEAST_SCALE = 16.0  # of a GradScaler; a smaller factor is the user's


def loss_scale(context: StepContext) -> float:
    """The factor that a GradScaler gave the loss: a number that is data, and by far the largest one."""
    for maker in filter(None, map(context.producer, context.losses)):
        factors = operands(maker) if _scaled(context, maker) is not None else []
        for known in (context.statistics(each) for each in factors if each in context.data):
            if known is not None and known.elements == 1 and known.mean >= LEAST_SCALE:
                return known.mean
    return 1.0


# -- a loss without bound ---------------------------------------------------------------------------------------------

UNBOUNDED = "A summand makes the loss fall without bound"
NEARLY_ALL = 10.0  # times the other summands
FASTER = 2.0  # times the fall of the half before


@ASCENDS.in_step
def _below_zero(context: StepContext) -> Iterator[Finding]:
    """A summand beside one that compares predictions with data; alone it may well be what is to grow."""
    measured = {each.measured for each in comparisons(context)}
    for loss in context.losses:
        added = {part: (adder, weighed(context, part)) for adder, part in summands(context, loss)
                 if isinstance(part, int) and context.values[part].requires_grad}  # fmt: skip
        worst = min(added, key=lambda part: added[part][1], default=loss)
        adder, least = added.get(worst, (None, 0.0))
        behind = {part: (context.graph.ancestors([part]) | {part}) & measured for part in added}
        if adder is None or behind[worst] or not any(behind.values()):
            continue
        others = sum(abs(size) for part, (_, size) in added.items() if part != worst)
        if least < -NEARLY_ALL * others:
            name = context.name(worst)
            yield ASCENDS.found(
                name, f"The loss {context.name(loss)} is far below 0 because of its summand {name}: each update makes "
                "that larger in size.", f"{name} adds {number(least)} to the loss, and the rest {number(others)}.",
                place=context.place(adder), severity="note", title=UNBOUNDED,
                advice=f"Change the sign of {name}. If it is to grow, bound it: by a margin, or a small weight.",
            )  # fmt: skip


@ASCENDS.over_time
def _ascends_over_time(run: Run) -> Iterator[Finding]:
    for stretch, found in ASCENDS.carried(run):
        if found.title != UNBOUNDED:
            yield found
        elif run.losses and stretch.steps[-1] >= run.losses[-1][0] and (evidence := _falls_without_bound(run)):
            yield replace(found, severity="warning", evidence=(*found.evidence, evidence))


def _falls_without_bound(run: Run) -> str:
    """What the loss does, if it falls below 0 faster and faster. One that is learnt falls more and more slowly."""
    losses = [loss for _, loss in run.losses]
    quarter = len(losses) // 4
    if not run.enough or not quarter:
        return ""
    start = losses[0] if run.history.first_loss is None else run.history.first_loss
    middle, last = median(losses[quarter : 3 * quarter]), median(losses[-quarter:])
    if start <= 0 or last > -start or middle - last < FASTER * (start - middle):
        return ""
    return f"The loss was {number(start)} at the start, {number(middle)} in the middle, and is {number(last)}."


# -- summands ---------------------------------------------------------------------------------------------------------

Summand = tuple[Operation, int | float]
"""The operation that adds it, and the value, or the number of Python's."""


def summands(context: StepContext, loss: int) -> Iterator[Summand]:
    """What a loss of one number is the sum of, however it is scaled."""
    waiting: list[tuple[Operation | None, int]] = [(None, loss)]
    while waiting:
        adder, value = waiting.pop()
        maker = context.producer(context.source(value))
        if maker is not None and _adds_numbers(context, maker):
            for part in (maker.arguments.get("self"), maker.arguments.get("other")):
                if isinstance(part, Ref):
                    waiting.append((maker, part.value))
                elif isinstance(part, (int, float)):
                    yield maker, float(part)
        elif maker is not None and (scaled := _scaled(context, maker)) is not None:
            waiting.append((adder, scaled))
        elif maker is not None and (stacked := _stacked(context, maker)):
            waiting += [(maker, each) for each in stacked]
        elif adder is not None:
            yield adder, value


def weighed(context: StepContext, part: int) -> float:
    """What a summand adds to the loss."""
    known, sent = context.statistics(part), context.statistics(part, gradient=True)
    return known.mean * sent.mean / loss_scale(context) if known is not None and sent is not None else 0.0


def _adds_numbers(context: StepContext, operation: Operation) -> bool:
    return facts_of(operation.name).sums_operands and all(is_number(context, each) for each in operands(operation))


def is_number(context: StepContext, value: int) -> bool:
    """Whether a value has one element."""
    return math.prod(context.values[value].shape) == 1


def _scaled(context: StepContext, operation: Operation) -> int | None:
    """The only operand that learns, of an operation that multiplies or divides it by a number."""
    given = operands(operation)
    learning = [each for each in given if context.values[each].requires_grad]
    linear = facts_of(operation.name).linear
    if len(learning) != 1 or "other" not in operation.arguments or not {"self", "other"} & set(linear):
        return None
    return learning[0] if all(is_number(context, each) for each in given) else None


def _stacked(context: StepContext, operation: Operation) -> list[int]:
    """The numbers that were put into one tensor whose elements an operation adds up."""
    given = argument(operation, "self")
    maker = context.producer(given) if given is not None and facts_of(operation.name).adds_up else None
    parts = operands(maker) if maker is not None and "tensors" in maker.arguments else []
    return parts if all(is_number(context, each) for each in parts) else []


WITHOUT_GRADIENT = Check(
    "loss-part-without-gradient", "A summand of the loss has no gradient", "warning",
    what="A summand of the loss depends on parameters that learn, but was cut off from them: by detach(), by "
    "no_grad(), or by item() or float(), which make a number of it. Or a sample is drawn from a learned normal "
    "distribution by sample(), which passes no gradient, and its log-probability is not used, or has the same weight "
    "for all samples.",
    why="The summand changes the loss that is printed, and nothing that is learnt: that goal is not pursued.",
    advice="Add the tensor itself, computed without detach(), item() or no_grad(). If it is only there to be printed, "
    "keep it out of the loss.",
    source="PyTorch's documentation: Autograd mechanics, and Tensor.item")  # fmt: skip


@WITHOUT_GRADIENT.in_step
def _without_gradient(context: StepContext) -> Iterator[Finding]:
    for loss in context.losses:
        parts = list(summands(context, loss))
        values = {part for _, part in parts if isinstance(part, int)}
        learning = {value for value in values if context.values[value].requires_grad}
        used = context.graph.ancestors(learning) | learning
        for adder, part in parts:
            cut, how = None, "it was made a number of Python's"
            if isinstance(part, float):
                cut = _read(context, adder, part, 1e-9)
            elif _is_cut(context, part, used, learning):
                cut, how = part, "no gradient passes it"
            elif part in context.data and (added := context.statistics(part)) is not None:
                cut = _read(context, adder, added.mean, 1e-6)
            known = context.statistics(cut)
            if cut is not None and known is not None:
                yield WITHOUT_GRADIENT.found(
                    context.name(cut),
                    f"{context.name(cut)} is a summand of the loss {context.name(loss)} without a gradient: {how}.",
                    f"It is {number(known.mean)}, and depends on parameters that learn.", place=context.place(adder),
                )  # fmt: skip


@WITHOUT_GRADIENT.in_step
def _drawn_without_gradient(context: StepContext) -> Iterator[Finding]:
    """A sample of a learned normal distribution, in whose place a sample with a gradient is meant.

    Where the sample's own log-probability is computed, as by a policy, it needs no gradient.
    """
    needed = context.graph.ancestors(context.losses)
    for operation in context.operations_that(lambda facts: facts.draws_around):
        given = [argument(operation, name) for name in facts_of(operation.name).draws_around]
        learned = {context.source(each) for each in given if each is not None}
        sample = first_output(operation)
        if sample is None or context.values[sample].requires_grad or sample not in needed:
            continue
        if len(learned) < 2 or not all(context.values[each].requires_grad for each in learned):
            continue
        uses = _read_by(context, sample)
        joined = any(context.source(other) in learned for use in uses for other in operands(use))
        if (not joined or _is_unweighted(context, sample)) and any(
            context.values[out].requires_grad for use in uses for out in use.outputs if out is not None
        ):
            mean, deviation = (context.name(context.source(each)) for each in given if each is not None)
            yield WITHOUT_GRADIENT.found(
                context.name(sample),
                f"{context.name(sample)} is drawn around {mean} without a gradient: what is computed from it teaches "
                f"{mean} and {deviation} nothing.",
                UNWEIGHTED if joined else UNJOINED,
                place=context.place(operation), title="A sample without a gradient", advice=DRAW,
            )  # fmt: skip


def _is_unweighted(context: StepContext, sample: int) -> bool:
    """Whether a layer takes a sample, and its log-probability gets the same gradient for all samples.

    The mean of that gradient is 0 over what may be drawn, whatever the layer makes of the sample.
    """
    reached, weighed_, logs = {sample}, False, []
    for operation in context.graph.operations:
        if reached.isdisjoint(operands(operation)):
            continue
        facts, out, constant = facts_of(operation.name), first_output(operation), operation.arguments.get("other")
        if facts.weighs is not None:
            weighed_ = weighed_ or (out is not None and context.values[out].has_gradient)
            continue
        reached.update(each for each in operation.outputs if each is not None)
        if facts.difference and isinstance(constant, float) and math.isclose(constant, CONSTANT, rel_tol=1e-6):
            logs.append(context.statistics(out, gradient=True))
    return weighed_ and bool(logs) and all(each is not None and is_constant(each) and each.low for each in logs)


UNJOINED = "No log-probability of it is computed, which would teach them in its place."
UNWEIGHTED = "Its log-probability has the same weight for all samples, which teaches nothing in its place."
DRAW = "Draw it with a gradient: rsample() in the place of sample(), or mean + deviation * torch.randn_like(mean)."


def _read_by(context: StepContext, value: int) -> list[Operation]:
    """The operations that take the numbers of a value, in whatever shape."""
    found = []
    for use in context.uses.get(value, ()):
        outs = [out for out in use.outputs if out is not None] if facts_of(use.name).keeps_numbers else []
        found += [each for out in outs for each in _read_by(context, out)] if outs else [use]
    return found


def _is_cut(context: StepContext, value: int, used: set[int], learning: set[int]) -> bool:
    """Whether a summand was cut off from what learns. What re-centres another summand, or replaces its number, is not.

    `used` is everything that the summands that learn were computed from.
    """
    if value in learning or not _depends(context, value):
        return False
    whole = {value, _attached(context, value)}
    before = context.graph.ancestors(whole) | whole
    shared = {each for each in used & before if context.values[each].operation is not None} - context.data
    constant = any(not context.values[each].requires_grad for each in shared)  # a teacher's entropy, say
    return used.isdisjoint(whole) and learning.isdisjoint(before) and not constant


def _attached(context: StepContext, value: int) -> int:
    """The value from which this one was detached."""
    while (maker := context.producer(value)) is not None and (given := argument(maker, "self")) is not None:
        facts = facts_of(maker.name)
        if not (facts.detaches or facts.keeps_numbers):
            break
        value = given
    return value


def _depends(context: StepContext, value: int) -> bool:
    """Whether a value depends on a parameter that learns."""
    return any(context.values[each].requires_grad for each in (value, *context.graph.ancestors([value])))


def _read(context: StepContext, adder: Operation, added: float, tolerance: float) -> int | None:
    """The value that a summand, a number, was read from by item() or float(); None if it was not.

    That number comes with a coefficient, or it is the sum of several that were read one after the other.
    """
    if not added or _is_coefficient(added, tolerance):
        return None
    reads = []
    for operation in context.operations_that(lambda facts: facts.reads_number):
        given = argument(operation, "self")
        known = context.statistics(given)
        if operation.index < adder.index and given is not None and known is not None and _depends(context, given):
            reads.append((given, known.mean))
    reads = [(given, read) for given, read in reads if read and not _is_coefficient(read, tolerance)]
    for value, read in reads:
        if _is_coefficient(added / read, tolerance):
            return value
    totals = accumulate(read for _, read in reversed(reads))  # numbers of several layers, added up in Python
    last = reads[-1][0] if len(reads) > 1 else None
    return last if any(total and _is_coefficient(added / total, tolerance) for total in totals) else None


def _is_coefficient(factor: float, tolerance: float) -> bool:
    """Whether a factor has two decimals at most, as those that people write: 1, 0.5, 0.01."""
    return math.isclose(factor, float(f"{factor:.1e}"), rel_tol=tolerance)
