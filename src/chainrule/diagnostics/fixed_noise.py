"""Noise that was drawn once, before the loop, where each step is to draw its own."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from chainrule.diagnostics.check import Check
from chainrule.diagnostics.finding import Finding
from chainrule.diagnostics.samples import often
from chainrule.diagnostics.step_context import StepContext
from chainrule.graph.comparison import dense
from chainrule.graph.graph import Value

FIXED = Check(
    "noise-fixed", "The noise of a generator is the same at every step", "warning",
    what="An input of numbers around 0, with a deviation of about 1, is the same at the examined step before, to the "
    "last digit. What a network makes of it enters the layer that other data of as many samples enters, and that data "
    "is another one. It needs the numbers of both.",
    why="The network learns to make these few samples, and nothing in between.",
    advice="Draw the noise in the loop, anew for each step. A fixed one is for looking at the same samples again.",
    source="Goodfellow et al., Generative adversarial nets, 2014, algorithm 1: noise is drawn in each step",
)  # fmt: skip
FEWEST, NUMBERS, NEAR = 4, 64, 0.25  # samples; numbers; how far mean and deviation may be from 0 and 1


@FIXED.in_step
def _fixed(context: StepContext) -> Iterator[Finding]:
    for given in dict.fromkeys(given for given, _, _ in context.weighed if _is_given(context.values[given])):
        value, known = context.values[given], context.statistics(given)
        if known is None or known.elements < NUMBERS or abs(known.mean) > NEAR or abs(known.std - 1) > NEAR:
            continue
        beside = _beside(context, given, value.shape[0])
        if beside is None:
            continue
        key = (FIXED.id, context.name(given))
        now = [dense(data) for each in (given, beside) if (data := context.values[each].data) is not None]
        before, context.kept[key] = context.kept.get(key), now
        if before is not None and torch.equal(before[0], now[0]) and not torch.equal(before[1], now[1]):
            name, other = context.name(given), context.name(beside)
            yield FIXED.found(
                name, f"The noise {name} is that of the examined step before, while {other} is another batch.",
                f"All {known.elements} numbers of {name} {value.shape} are the same.",
                place=context.place(context.uses[given][0]),
            )  # fmt: skip
            return


FIXED.over_time(partial(often, FIXED))


def _is_given(value: Value) -> bool:
    known = (
        value.kind in ("input", "buffer")
        and value.operation is None
        and value.data is not None
        and not value.requires_grad
    )
    return known and value.dtype.is_floating_point and len(value.shape) > 1 and value.shape[0] >= FEWEST


def _beside(context: StepContext, noise: int, samples: int) -> int | None:
    """The data that enters a layer which something made from the noise enters too."""
    made = {weight for given, weight, _ in context.weighed if noise in context.graph.ancestors([given])}
    for given, weight, _ in context.weighed:
        value = context.values[given]
        known = given in context.data and value.data is not None and value.shape[:1] == (samples,)
        if known and given != noise and weight in made:
            return given
    return None
