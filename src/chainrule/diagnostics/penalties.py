"""What is added to a loss to hold the network back, and drowns it: penalties on weights or outputs, weight decay."""

from __future__ import annotations

import math
from collections.abc import Iterator, Set
from dataclasses import replace

from chainrule.diagnostics.check import Check
from chainrule.diagnostics.comparisons import comparisons, first_output, share_of_chance, size_taken
from chainrule.diagnostics.finding import Finding, Severity
from chainrule.diagnostics.loss_terms import is_number, summands, weighed
from chainrule.diagnostics.run_context import Run
from chainrule.diagnostics.step_context import StepContext, argument, operands
from chainrule.graph.graph import Operation
from chainrule.graph.snapshot import ParameterUpdate
from chainrule.numbers import number
from chainrule.rules.facts import facts_of

PENALTY = Check(
    "penalty-dominates", "The regularisation drowns the loss", "warning",
    what="The gradient of the penalties on parameters, or of the weight decay that an optimizer adds, is several times "
    "that of the rest of the loss (a note if it is larger), while the predictions are hardly better than a guess. So "
    "is that of a summand that compares nothing with data, such as the KL divergence of a code, where both are "
    "computed from one value: a note in one step, and a warning at a quarter of the examined steps, 3 at least. Or "
    "each step takes a hundredth of the weights away.",
    why="Weights or code are pulled to where the penalty is 0, whatever the data says.",
    advice="Divide its coefficient by 10 or 100. Usual are 1e-4 to 1e-2 for weight decay (0.1 with AdamW), and the "
    "penalty should begin well below the loss.",
    source="Goodfellow, Bengio and Courville, Deep Learning, 2016, 7.1; Loshchilov and Hutter, 2019; Bowman et al., "
    "Generating sentences from a continuous space, 2016: the KL term that is too strong at the start",
    thresholds=("penalty",))  # fmt: skip
UNLEARNT = 0.5  # times the loss of a guess
PER_STEP = 0.01  # of a weight: it is halved in 69 steps


@PENALTY.in_step
def _penalty(context: StepContext) -> Iterator[Finding]:
    yield from _of_loss(context)
    yield from _of_outputs(context)
    yield from _of_decay(context)


LASTS, OFTEN = 3, 0.25  # examined steps, and their share
OF_OUTPUTS = "A summand without data drowns the loss"


@PENALTY.over_time
def _penalty_over_time(run: Run) -> Iterator[Finding]:
    """A penalty that has won pulls no more than the rest does: the steps at which it drowned the loss count."""
    for stretch, found in PENALTY.carried(run):
        at = run.seen[PENALTY.id][found.where]
        if found.title == OF_OUTPUTS:
            held, least = list(at), OFTEN * len(run.step_findings)
        else:
            held, least = [step for step, each in at.items() if each.severity == "warning"], 0.0
        if len(held) < max(LASTS, least):
            yield found
            continue
        ended = stretch.ended or stretch.steps[-1] not in held
        evidence = (*at[held[0]].evidence, f"It held at {len(held)} of {len(run.step_findings)} examined steps.")
        yield replace(
            at[held[0]], severity="warning", since=held[0], until=held[-1] if ended else None, evidence=evidence,
        )  # fmt: skip


def _is_unlearnt(context: StepContext) -> bool:
    return (share_of_chance(context) or 0.0) > UNLEARNT


def _of_loss(context: StepContext) -> Iterator[Finding]:
    """Summands that depend on nothing but parameters.

    The gradient of the rest is orthogonal to theirs as long as nothing is learnt, so it is what is left of the squares.
    """
    for loss in context.losses:
        parts = [part for _, part in summands(context, loss) if isinstance(part, int)]
        penalties = [part for part in parts if is_penalty(context, part)]
        if not penalties:
            continue
        pulls = _pulls(context, penalties)
        weights = set().union(*(each for each, _ in pulls))
        sent = [context.statistics(each, gradient=True) for each in weights]
        if not pulls or None in sent or not _is_unlearnt(context):
            continue
        pull = math.hypot(*(each for _, each in pulls))
        whole = math.hypot(*(each.norm for each in sent if each is not None))
        rest = math.sqrt(max(whole**2 - pull**2, 0.0))
        if pull > rest and whole > pull / 2:
            sizes = {part: weighed(context, part) for part in parts}
            name = context.name(max(penalties, key=lambda part: sizes[part]))
            yield PENALTY.found(
                name, f"The penalty {name} drowns the rest of the loss {context.name(loss)}.",
                (f"The norm of its gradient is {number(pull)}, that of the rest about {number(rest)}.",
                 f"{number(sum(sizes[part] for part in penalties))} of the loss is penalty, the rest is "
                 f"{number(sum(size for part, size in sizes.items() if part not in penalties))}."),
                place=context.values[loss].place, severity=_severity(context, pull, rest),
            )  # fmt: skip


def _of_outputs(context: StepContext) -> Iterator[Finding]:
    """Summands that compare nothing with data, such as a KL divergence, beside one that does.

    They are weighed at the values from which both are computed: the mean of a code, say.
    """
    measured = {each.measured for each in comparisons(context)}
    for loss in context.losses:
        parts = {part for _, part in summands(context, loss) if isinstance(part, int)}
        before = {part: context.graph.ancestors([part]) | {part} for part in parts}
        free = [each for each in parts if measured.isdisjoint(before[each]) and context.values[each].requires_grad]
        if len(free) == len(parts) or not free or not _is_unlearnt(context):
            continue
        for part in free:
            rest = set().union(*(before[each] for each in parts if each != part))
            pull, other = _at_the_fork(context, before[part], rest)
            if weighed(context, part) > 0 and other and pull > context.thresholds.penalty * other:
                name = context.name(part)
                yield PENALTY.found(
                    name, f"The summand {name} drowns the rest of the loss {context.name(loss)}.",
                    f"Where both begin, the norm of its gradient is {number(pull)}, and that of the rest "
                    f"{number(other)}.",
                    place=context.values[loss].place, severity="note", title=OF_OUTPUTS,
                )  # fmt: skip


def _at_the_fork(context: StepContext, one: Set[int], other: Set[int]) -> tuple[float, float]:
    """The norms of the gradients that two parts of a loss send to the results from which both are computed.

    It counts results whose uses are plain enough for the norms to tell what each sends.
    """
    squares = [0.0, 0.0]
    for value in (one & other) - context.data:
        uses = {out: use for use in context.uses.get(value, ()) for out in use.outputs if out is not None}
        sent: list[list[float | None]] = [[], []]
        for out, use in uses.items() if context.values[value].kind == "result" else ():
            if out in one and out in other:
                break
            if context.values[out].requires_grad and (out in one or out in other):
                sent[out in other].append(_sent(context, use, value))
        else:
            norms = [[each for each in side if each is not None] for side in sent]
            if len(norms[0]) == len(sent[0]) == 1 and norms[1] and len(norms[1]) == len(sent[1]):
                squares = [square + sum(side) ** 2 for square, side in zip(squares, norms, strict=True)]
    return math.sqrt(squares[0]), math.sqrt(squares[1])


def _sent(context: StepContext, use: Operation, value: int) -> float | None:
    """The norm of the gradient that an operation sends to its operand; None if its statistics do not tell."""
    out, facts = first_output(use), facts_of(use.name)
    sent, before = context.statistics(out, gradient=True), context.statistics(value)
    if sent is None or before is None or sent.elements != before.elements:
        return None
    if facts.sums_operands or facts.keeps_numbers:
        return sent.norm
    return 2 * sent.norm / math.sqrt(sent.elements) * before.norm if size_taken(use) == "squares" else None


def _severity(context: StepContext, pull: float, rest: float) -> Severity:
    return "warning" if pull > context.thresholds.penalty * rest else "note"


def is_penalty(context: StepContext, value: int) -> bool:
    """Whether a value depends on parameters alone."""
    leaves = [each for each in context.graph.ancestors([value]) if context.values[each].operation is None]
    kinds = [context.values[each].kind for each in leaves if not is_number(context, each)]
    return context.values[value].requires_grad and bool(kinds) and set(kinds) == {"parameter"}


def _pulls(context: StepContext, penalties: list[int]) -> list[tuple[set[int], float]]:
    """(parameters, the norm of a penalty's gradient at them) wherever a size of parameters is taken."""
    inside, found = context.graph.ancestors(penalties) | set(penalties), []
    for operation in context.graph.operations:
        given, out, size = argument(operation, "self"), first_output(operation), size_taken(operation)
        weights = _weights(context, given) if given is not None and out in inside and size else set()
        before, sent = context.statistics(given), context.statistics(out, gradient=True)
        if not weights or before is None or sent is None:
            continue
        pull = sent.norm
        if size == "squares":
            pull = 2 * sent.norm / math.sqrt(sent.elements) * before.norm
        elif size == "norm" and (order := operation.arguments.get("ord", operation.arguments.get("p"))) != 2:
            pull = sent.norm * math.sqrt(before.elements) if order == 1 else 0.0
        found.append((weights, pull))
    return found


def _weights(context: StepContext, value: int) -> set[int]:
    """The parameters whose elements a value has, alone or joined; none if it has others."""
    value = context.source(value)
    maker = context.producer(value)
    parts = [value] if maker is None else operands(maker) if "tensors" in maker.arguments else []
    found = {context.source(each) for each in parts}
    own = all(context.values[each].kind == "parameter" and context.values[each].requires_grad for each in found)
    return found if own else set()


def _of_decay(context: StepContext) -> Iterator[Finding]:
    """Weight decay: it is added to the gradient, or (AdamW) shrinks the weights by itself."""
    decayed = [each for each in context.members if each.options.get("weight_decay")]
    if not decayed:
        return
    worst = max(decayed, key=_shrinks)
    if _shrinks(worst) > PER_STEP:
        yield PENALTY.found(
            worst.name,
            f"The weight decay takes {number(100 * _shrinks(worst))} % of {worst.name} away at each step"
            f"{', once the momentum has built up' * bool(worst.options.get('momentum'))}.",
            _coefficients(worst),
        )  # fmt: skip
        return
    pulls, grads = [], []
    for member in (each for each in decayed if not _is_decoupled(each)):
        before, grad = context.cache.of(member.start), context.gradient(member)
        if before is not None and grad is not None and not grad.not_finite:
            pulls.append(float(member.options["weight_decay"]) * before.norm)
            grads.append(grad.norm)
    pull, rest = math.hypot(*pulls), math.hypot(*grads)
    if rest and pull > rest and _is_unlearnt(context):
        yield PENALTY.found(
            "all weights", "The weight decay drowns the gradient of the loss.",
            (f"It adds {number(pull)} to a gradient whose norm is {number(rest)}.", _coefficients(worst)),
            severity=_severity(context, pull, rest),
        )  # fmt: skip


def _coefficients(member: ParameterUpdate) -> str:
    decay, rate, momentum = (number(member.options.get(name) or 0) for name in ("weight_decay", "lr", "momentum"))
    by = f", the momentum {momentum}" * bool(member.options.get("momentum"))
    return f"weight_decay is {decay}, the learning rate {rate}{by}."


def _is_decoupled(member: ParameterUpdate) -> bool:
    return bool(member.options.get("decoupled_weight_decay"))


def _shrinks(member: ParameterUpdate) -> float:
    """The share of a parameter that its weight decay takes away in a step; 0 where the optimizer rescales it."""
    options = member.options
    rescaled = "betas" in options or not options.keys().isdisjoint(("alpha", "lr_decay", "rho"))
    if "lr" not in options or (rescaled and not _is_decoupled(member)):
        return 0.0
    return float(options["lr"]) * float(options["weight_decay"]) / (1 - float(options.get("momentum") or 0.0))
