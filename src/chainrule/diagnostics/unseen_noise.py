"""Noise that is to be predicted and was drawn anew, where the line that made the input was not recorded."""

from __future__ import annotations

import math
from collections.abc import Iterator
from statistics import mean

from torch import Tensor

from chainrule.diagnostics.comparisons import Comparison, chance, comparisons, mean_of
from chainrule.diagnostics.data import UNFITTABLE, UNSEEN
from chainrule.diagnostics.finding import Finding
from chainrule.diagnostics.step_context import StepContext
from chainrule.graph.comparison import dense
from chainrule.numbers import number

FEWEST = 256  # numbers
APPENDED = 64  # features or channels beside the noisy data
APART = 4.0  # standard deviations of what is measured: by chance once in ten thousand
LASTS = 50  # examined steps that are taken together
LEARNT = 0.9  # times the loss of a guess: what is lower was learnt


@UNFITTABLE.in_step
def _unseen(context: StepContext) -> Iterator[Finding]:
    """Targets that are standard normal, and not correlated with any input that could hold them."""
    for comparison in comparisons(context):
        target, inputs = _normal(context, comparison), _of_its_shape(context, comparison)
        if target is None or not inputs:
            continue
        found = [_correlation(context.values[each].data, target) for each in inputs]
        key = ("unseen noise", str(context.place(comparison.operation)), len(found))
        drawn = target.flatten()[0].item()
        again, context.kept[*key, "drawn"] = context.kept.get((*key, "drawn")) == drawn, drawn
        if again:  # a fixed batch can be memorised
            continue
        known = context.kept[key] = [*context.kept.get(key, ()), *([found] if None not in found else ())][-LASTS:]
        limit = APART / math.sqrt(target.numel() * max(len(known), 1))
        means = [mean(each) for each in zip(*known, strict=True)]
        if not means or None in found or any(abs(each) > limit for each in means):
            continue
        loss, guess = mean_of(context, comparison), chance(context, comparison)
        if loss is None or guess is None or loss < LEARNT * guess:
            continue
        name, given = context.name(comparison.target), context.name(inputs[0])
        yield UNFITTABLE.found(
            name, f"The targets {name} are normal noise that {given}, the network's input, does not contain.",
            (f"Their correlation over {target.numel() * len(known):,} numbers is {number(means[0])}, as of draws that "
             "have nothing in common.", context.between(comparison.target)),
            place=context.place(comparison.operation), title=UNSEEN, severity="note",
            advice="Draw the noise once: add it to the data, and give the same tensor to the loss.",
        )  # fmt: skip
        return


def _normal(context: StepContext, comparison: Comparison) -> Tensor | None:
    """The numbers of the targets, if they are as those of a standard normal distribution."""
    data = context.values[context.source(comparison.target)].data
    if data is None or data.numel() < FEWEST or not data.dtype.is_floating_point:
        return None
    numbers, count = dense(data).double(), data.numel()
    moments = ((numbers.mean(), 1), (numbers.square().mean() - 1, 2), (numbers.pow(4).mean() - 3, 96))
    return numbers if all(abs(m.item()) < APART * math.sqrt(var / count) for m, var in moments) else None


def _of_its_shape(context: StepContext, comparison: Comparison) -> list[int]:
    """The data that the prediction is computed from, as large as the targets; none if the targets are among it."""
    before, target = context.graph.ancestors([comparison.prediction]), context.source(comparison.target)
    shape = context.values[target].shape
    found = [each for each in sorted(before & context.data) if _wider(context.values[each].shape, shape) is not None]
    return [] if target in before else [each for each in found if context.values[each].dtype.is_floating_point]


def _wider(shape: tuple[int, ...], least: tuple[int, ...]) -> int | None:
    """The one axis along which a shape is longer, as where a time was appended; the last one for equal shapes."""
    longer = [axis for axis, (a, b) in enumerate(zip(shape, least, strict=False)) if a != b] or [len(shape) - 1]
    apart = len(shape) != len(least) or len(longer) > 1 or not shape
    return None if apart or not 0 <= shape[longer[0]] - least[longer[0]] <= APPENDED else longer[0]


def _correlation(data: Tensor | None, target: Tensor) -> float | None:
    """The largest one with a part of the data that has the targets' shape; None if it is unknown."""
    axis = None if data is None else _wider(tuple(data.shape), tuple(target.shape))
    if data is None or axis is None:
        return None
    numbers = target - target.mean()
    found = []
    for start in range(data.shape[axis] - target.shape[axis] + 1):
        given = dense(data).narrow(axis, start, target.shape[axis]).double()
        given = given - given.mean()
        size = (given.norm() * numbers.norm()).item()
        found.append((given * numbers).sum().item() / size if 0 < size < math.inf else math.nan)
    return None if any(map(math.isnan, found)) else max(found, key=abs)
