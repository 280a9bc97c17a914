"""Noise of another size than a loss assumes, as in a variational autoencoder or a diffusion model."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from chainrule.diagnostics.check import Check
from chainrule.diagnostics.comparisons import comparisons, first_output, size_taken
from chainrule.diagnostics.data import is_drawn, is_noise
from chainrule.diagnostics.finding import Finding
from chainrule.diagnostics.loss_terms import is_constant
from chainrule.diagnostics.run_context import Run
from chainrule.diagnostics.step_context import StepContext, argument, is_zero, operands
from chainrule.graph.graph import Operation, Place
from chainrule.graph.statistics import Statistics
from chainrule.numbers import number
from chainrule.rules.facts import facts_of

SCALE = Check(
    "noise-scale", "Noise has another size than the loss assumes", "warning",
    what="A code is drawn with a deviation that its KL divergence takes for the variance, exp(v), or for the "
    "logarithm of it. Or data and the noise that is to be predicted are mixed so that their coefficients a and b have "
    "a^2 + b = 1 or a + b^2 = 1: one of the roots is missing.",
    why="The divergence, or the schedule of the noise, belongs to another distribution than the one that is drawn.",
    advice="Draw with mean + exp(0.5 * log_variance) * noise; mix with sqrt(alpha) * x + sqrt(1 - alpha) * noise.",
    source="Kingma and Welling, Auto-encoding variational Bayes, 2014, appendix B; Ho et al., Denoising diffusion "
    "probabilistic models, 2020, equation 4")  # fmt: skip
CLOSE, APART = 1e-4, 1e-2


def _drawn(context: StepContext) -> Iterator[tuple[Operation, int, int]]:
    """(operation, deviation, sample): where noise times a deviation that is learnt is added to what is learnt."""
    for operation in context.operations_that(lambda facts: facts.multiplies):
        given, out = operands(operation), first_output(operation)
        noise = [each for each in given if is_drawn(context, context.source(each))]
        learnt = [each for each in given if context.values[each].requires_grad]
        if len(given) == 2 and len(noise) == len(learnt) == 1 and out is not None:
            for use in context.uses.get(out, ()):
                sample = first_output(use)
                if facts_of(use.name).adds and len(operands(use)) == 2 and sample is not None:
                    yield operation, learnt[0], sample


@SCALE.in_step
def _variance_for_deviation(context: StepContext) -> Iterator[Finding]:
    for operation, deviation, sample in _drawn(context):
        adder = context.producer(sample)
        means = [each for each in operands(adder) if each != first_output(operation)] if adder is not None else []
        made = context.producer(context.source(deviation))
        log = argument(made, "self") if made is not None and facts_of(made.name).exponential else None
        code = context.source(deviation if log is None else log)
        squares = [first_output(use) for mean in means for use in context.uses.get(mean, ()) if _squares(use)]
        sizes = {_size(context, each) for each in squares} - {None}
        for exponential in context.uses.get(code, ()) if len(sizes) == 1 else ():
            variance = first_output(exponential)
            if variance is None or not facts_of(exponential.name).exponential:
                continue
            sent = {_size(context, first_output(use)) for use in context.uses.get(variance, ())
                    if use.index != operation.index and facts_of(use.name).sums_operands}  # fmt: skip
            size, wanted = next(iter(sent - {None}), None), next(iter(sizes))
            if size is None or wanted is None or not math.isclose(size, wanted, rel_tol=CLOSE):
                continue
            name, of = context.name(deviation), context.name(code)
            yield SCALE.found(
                name, f"The noise is multiplied by {name}, "
                f"{'exp of ' + of if log is not None else 'the logarithm ' + of}, and the divergence takes "
                f"exp of {of} for the variance.",
                (f"In the loss exp of {of} has the weight of the squared mean {context.name(means[0])}, "
                 f"{number(size)}, as the variance of the code has.", context.between(deviation)),
                place=context.place(operation),
            )  # fmt: skip
            return


def _squares(operation: Operation) -> bool:
    return size_taken(operation) == "squares"


def _size(context: StepContext, value: int | None) -> float | None:
    """The size of the gradient of a value, if it is the same for all elements."""
    known = context.statistics(value, gradient=True)
    return None if known is None or not is_constant(known) or not known.low else abs(known.low)


@SCALE.in_step
def _root_missing(context: StepContext) -> Iterator[Finding]:
    for comparison in comparisons(context):
        noise = context.source(comparison.target)
        if not is_noise(context, noise):
            continue
        for scaled, factor, product in _products(context, noise):
            for adder in context.uses.get(product, ()):
                other = [each for each in operands(adder) if each != product]
                if not facts_of(adder.name).adds or len(other) != 1:
                    continue
                maker = context.producer(other[0])
                kept = [each for each in operands(maker) if maker is not None] if maker is not None else []
                for signal in kept if maker is not None and facts_of(maker.name).multiplies and len(kept) == 2 else ():
                    words = _without_root(context.statistics(signal), context.statistics(factor))
                    if words:
                        name = context.name(first_output(adder) or product)
                        yield SCALE.found(
                            name, f"{name} is data times {context.name(signal)} and noise times "
                            f"{context.name(factor)}: the root of the {words} is missing.",
                            (context.between(signal), context.between(factor)),
                            place=context.place(adder) or context.place(scaled),
                        )  # fmt: skip
                        return


def _products(context: StepContext, noise: int) -> Iterator[tuple[Operation, int, int]]:
    """(operation, factor, product) where noise is multiplied by other data."""
    for use in context.uses.get(noise, ()):
        other, out = [each for each in operands(use) if each != noise], first_output(use)
        if facts_of(use.name).multiplies and len(other) == 1 and out is not None and other[0] in context.data:
            yield use, other[0], out


def _without_root(signal: Statistics | None, noise: Statistics | None) -> str:
    """Which coefficient is a variance, where the other one is a deviation; "" where both are deviations, or other."""
    if signal is None or noise is None or signal.elements != noise.elements or signal.not_finite or noise.not_finite:
        return ""
    if signal.std == 0 or noise.low < 0:
        return ""
    squares = [each.norm**2 / each.elements for each in (signal, noise)]
    if abs(sum(squares) - 1) < APART:
        return ""
    if abs(squares[0] + noise.mean - 1) < CLOSE:
        return "second"
    return "first" if abs(signal.mean + squares[1] - 1) < CLOSE else ""


FORGOTTEN = Check(
    "noise-forgotten", "A code is decoded without its noise", "warning",
    what="A divergence from the normal distribution takes a learned mean and the logarithm of a learned variance, a "
    "layer takes the mean, and nothing but the divergence takes the variance.",
    why="The variance only follows the divergence, to 1: nothing is drawn, and what is trained is an autoencoder with "
    "a penalty on its code.",
    advice="Decode mean + exp(0.5 * log_variance) * torch.randn_like(mean).",
    source="Kingma and Welling, Auto-encoding variational Bayes, 2014, 2.4: the reparametrisation")  # fmt: skip


@FORGOTTEN.in_step
def _forgotten(context: StepContext) -> Iterator[Finding]:
    for operation in context.operations_that(lambda facts: facts.exponential):
        log, variance = argument(operation, "self"), first_output(operation)
        if log is None or variance is None or _size(context, variance) is None:
            continue
        uses = [facts_of(use.name) for each in (log, variance) for use in _whole_uses(context, each)]
        if len(uses) < 3 or not all(each.exponential or each.adds or each.difference for each in uses):
            continue
        for square in context.graph.operations if context.values[log].requires_grad else ():
            mean, out = argument(square, "self"), first_output(square)
            if not _squares(square) or mean is None or context.values[mean].shape != context.values[log].shape:
                continue
            decoded = any(facts_of(use.name).weighs for use in _whole_uses(context, mean))
            sizes = _size(context, out), _size(context, variance)
            if decoded and None not in sizes and math.isclose(*sizes, rel_tol=CLOSE):  # type: ignore[arg-type]
                name, of = context.name(mean), context.name(log)
                taker = next(use for use in _whole_uses(context, mean) if facts_of(use.name).weighs)
                yield FORGOTTEN.found(
                    of, f"A layer takes the mean {name} unchanged, and only the divergence takes the logarithm of the "
                    f"variance, {of}: no noise is drawn.",
                    (f"In the loss exp of {of} and the square of {name} have the same weight, {number(sizes[1] or 0)}.",
                     context.between(log)),
                    place=context.place(taker),
                )  # fmt: skip
                return


FREE = Check(
    "noise-unheld", "Nothing keeps the noise of a code from vanishing", "warning",
    what="A network draws a code with a deviation that it computes itself, only a layer takes the code, and no other "
    "part of the loss has a gradient at that deviation, as where the weight of the KL divergence is 0. In one step it "
    "is a note; a warning if it held since the start, over 40 steps and 5 examined ones.",
    why="The noise only makes the loss larger, so its deviation goes to 0: what is trained is a plain autoencoder.",
    advice="Give the KL divergence a weight above 0, and add it to the loss.",
    source="Kingma and Welling, Auto-encoding variational Bayes, 2014; Higgins et al., beta-VAE, 2017")  # fmt: skip
LASTS, SPAN = 5, 40  # examined steps, and steps


@FREE.in_step
def _unheld(context: StepContext) -> Iterator[Finding]:
    for operation, deviation, sample in _drawn(context):
        inside, value = {operation.index}, deviation
        if not all(facts_of(use.name).weighs for use in _whole_uses(context, sample)):
            continue
        chain = [value]
        while (maker := context.producer(value)) is not None and not facts_of(maker.name).weighs:
            given = argument(maker, "self")
            if given is None or context.values[given].shape != context.values[value].shape:
                break
            inside.add(maker.index)
            chain.append(value := given)
        uses = [use for each in chain for use in context.uses.get(each, ()) if use.index not in inside]
        if chain[-1] not in context.from_data or any(_holds(context, use) for use in uses) or len(chain) < 2:
            continue
        name = context.name(deviation)
        yield FREE.found(
            name, f"{name} multiplies the noise of {context.name(sample)}, and no other part of the loss has a "
            "gradient at it.",
            (f"{len(uses)} other operations take it, or what it was computed from, and get a gradient of 0."
             if uses else "Nothing else takes it.", context.between(deviation)),
            place=_place(context, uses) or context.place(operation), severity="note",
        )  # fmt: skip
        return


def _place(context: StepContext, uses: list[Operation]) -> Place | None:
    """The place of the product with 0 that takes the gradient away."""
    value = next((first_output(use) for use in uses), None)
    while value is not None:
        taken = [use for use in context.uses.get(value, ()) if first_output(use) is not None]
        if not taken:
            return None
        zero = context.statistics(first_output(taken[0]), gradient=True)
        if zero is not None and not is_zero(zero) and is_zero(context.statistics(value, gradient=True)):
            return context.place(taken[0])
        value = first_output(taken[0])
    return None


def _whole_uses(context: StepContext, value: int) -> list[Operation]:
    """What takes a value, also in another shape."""
    found = []
    for use in context.uses.get(value, ()):
        out = first_output(use)
        same = facts_of(use.name).keeps_numbers and out is not None
        found += _whole_uses(context, out) if same and out is not None else [use]
    return found


def _holds(context: StepContext, use: Operation) -> bool:
    """Whether an operation may send a gradient that is not 0."""
    known = [context.statistics(out, gradient=True) for out in use.outputs if out is not None]
    learning = [out for out in use.outputs if out is not None and context.values[out].has_gradient]
    return bool(learning) and not all(each is None or is_zero(each) for each in known)


@FREE.over_time
def _unheld_for_long(run: Run) -> Iterator[Finding]:
    for stretch, found in FREE.carried(run):
        lasting = stretch.whole and len(stretch.steps) >= LASTS and stretch.steps[-1] - stretch.steps[0] >= SPAN
        yield replace(found, severity="warning") if lasting and not stretch.ended else found
