"""What stands between the last layer and the loss, where it takes away what the scores can say."""

from __future__ import annotations

from collections.abc import Iterator

from chainrule.diagnostics.check import Check
from chainrule.diagnostics.comparisons import comparisons
from chainrule.diagnostics.finding import Finding
from chainrule.diagnostics.step_context import StepContext, argument
from chainrule.numbers import number
from chainrule.rules.facts import base_name, facts_of

RECTIFIED = Check(
    "relu-on-scores", "A ReLU on the scores of a classifier", "warning",
    what="A ReLU makes the scores that a sigmoid or a softmax turns into the probabilities of a loss.",
    why="A score is never below 0, so a sigmoid is never below 0.5 and a class is never made unlikely by its own "
    "score; a score that is 0 has no gradient.",
    advice="Drop the ReLU after the last layer.",
    source="Goodfellow, Bengio and Courville, Deep Learning, 2016, 6.2.2: output units")  # fmt: skip


@RECTIFIED.in_step
def _rectified(context: StepContext) -> Iterator[Finding]:
    for comparison in comparisons(context):
        if comparison.scale == "numbers":
            continue
        value, squashed = context.source(comparison.prediction), facts_of(comparison.operation.name).takes == "logits"
        maker = context.producer(value)
        while maker is not None:
            facts, given = facts_of(maker.name), argument(maker, "self")
            if given is None or not (facts.softmax or facts.sigmoid or facts.takes == "scores"):
                break
            value, squashed = context.source(given), True
            maker = context.producer(value)
        if not squashed or maker is None or not facts_of(maker.name).rectifies:
            continue
        known, name = context.statistics(value), context.name(value)
        zeros = "" if known is None else f"{known.zeros} of {known.elements} scores are 0, and get no gradient."
        least = "no probability is below 0.5" if comparison.scale == "probabilities" else "none is below 0"
        yield RECTIFIED.found(
            name, f"The scores {name} are the output of a ReLU ({base_name(maker.name).strip('_')}): {least}.",
            (zeros, f"The largest is {number(known.high)}." if known is not None else ""), place=context.place(maker),
        )  # fmt: skip
