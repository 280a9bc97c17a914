"""Faults of adversarial training: the targets of a discriminator for real and for generated samples."""

from __future__ import annotations

from collections.abc import Iterator

from chainrule.diagnostics.check import Check
from chainrule.diagnostics.comparisons import Comparison, comparisons
from chainrule.diagnostics.finding import Finding
from chainrule.diagnostics.step_context import StepContext
from chainrule.numbers import number

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
