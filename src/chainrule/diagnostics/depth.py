"""Gradients that vanish or explode through the layers, or through the time steps of a recurrent network.

The checks compare the gradients of the layers' outputs, not those of their weights: in a network of ReLUs the product
of a weight and its gradient has the same sum in every layer, however much the gradient of the outputs grows or shrinks.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from statistics import linear_regression, median

from chainrule.diagnostics.check import Check
from chainrule.diagnostics.finding import Finding
from chainrule.diagnostics.run_context import Run
from chainrule.diagnostics.step_context import StepContext, operands
from chainrule.numbers import number

MIN_LAYERS = 6  # on the path to the loss; with fewer, a third of them is a single layer
TIMES = 10  # uses of one weight on the path, from which on they are time steps
MOSTLY = 0.6  # of the examined steps; how far a recurrence throws the gradient differs much from batch to batch

WHAT = (
    "The gradient of the first layer's output is far {} than that of the last layer's, by a line through the "
    "logarithms of all their norms. Of the time steps of a recurrent network, the median norm of the first third is "
    "compared with that of the last."
)
VANISHING = Check(
    "vanishing-gradient", "Gradients vanish through depth", "warning",
    what=WHAT.format("smaller"),
    why="The first layers hardly learn, and the last layers fit to whatever the first ones produce.",
    advice="Use He's initialisation for ReLU, Xavier's for tanh; skip connections or norms; LSTM or GRU gates.",
    source="Hochreiter, 1991; Glorot and Bengio, 2010; He et al., 2015", thresholds=("depth_ratio",), lasts=3,
)  # fmt: skip
EXPLODING = Check(
    "exploding-gradient", "Gradients explode through depth", "warning",
    what=WHAT.format("larger") + " A recurrent network that throws it ten times as far is a note in one step, and a "
    "warning over a run if it does so at most steps and the gradient is not clipped.",
    why="No learning rate fits all layers: one that lets the last layers learn makes the first ones diverge.",
    advice="Use a smaller initialisation (He, Xavier; orthogonal for an RNN), add norms, and clip the gradient.",
    source="Pascanu, Mikolov and Bengio, 2013; He et al., 2015", thresholds=("depth_growth", "time_growth"),
    lasts=3)  # fmt: skip


@VANISHING.in_step
def _vanishing(context: StepContext) -> Iterator[Finding]:
    layers = _through_depth(context)
    if layers.ratio < context.thresholds.depth_ratio:
        yield _found(VANISHING, context, layers)


@EXPLODING.in_step
def _exploding(context: StepContext) -> Iterator[Finding]:
    layers = _through_depth(context)
    if layers.ratio > context.thresholds.depth_growth:
        yield _found(EXPLODING, context, layers)
    elif layers.recurrent is not None and layers.ratio > context.thresholds.time_growth:
        yield replace(_found(EXPLODING, context, layers), severity="note")


@EXPLODING.over_time
def _exploding_for_long(run: Run) -> Iterator[Finding]:
    """At most steps is enough; where the gradient is clipped, the cure is in place."""
    examined = run.in_steps(EXPLODING.id)
    shown = [(step, found) for step, found in examined if found]
    mostly = len(shown) >= max(MOSTLY * len(examined), EXPLODING.lasts)
    if mostly and not any(each.clipped for each in run.steps):
        (since, _), (_, latest) = shown[0], shown[-1]
        held = f"It is so at {len(shown)} of {len(examined)} examined steps."
        yield replace(latest, severity="warning", since=since, evidence=(*latest.evidence, held))
    else:
        yield from (found for _, found in EXPLODING.carried(run))


@dataclass(frozen=True)
class Layers:
    """The outputs of the layers on a path, each with the norm of its gradient, in forward order.

    `ratio` is how many times as large the gradient is at the first as at the last, NaN for too few layers. `recurrent`
    is the weight that most of them use, where they are time steps.
    """

    norms: list[tuple[int, float]]
    ratio: float
    recurrent: int | None = None


def _through_depth(context: StepContext) -> Layers:
    return context.once("depth", lambda: _measured(context))


def _measured(context: StepContext) -> Layers:
    known = ((out, context.statistics(out, gradient=True)) for out in _longest_path(context))
    layers = [(out, each.norm) for out, each in known if each and each.norm > 0 and not each.not_finite]
    if len(layers) < MIN_LAYERS:
        return Layers(layers, math.nan)
    path, third = {out for out, _ in layers}, len(layers) // 3
    uses = Counter(weight for _, weight, out in context.weighed if out in path)
    weight, times = uses.most_common(1)[0]
    if times >= TIMES:
        first, last = (median(norm for _, norm in part) for part in (layers[:third], layers[-third:]))
        return Layers(layers, first / last, weight)
    slope, _ = linear_regression(range(len(layers)), [math.log(norm) for _, norm in layers])
    return Layers(layers, math.exp(-slope * (len(layers) - 1)))


def _longest_path(context: StepContext) -> list[int]:
    """The layers' outputs on the path with most layers; a second input or a side branch does not count as depth."""
    requires_grad = [value.requires_grad for value in context.values]
    outputs = {out for _, _, out in context.weighed}
    depth: dict[int, tuple[int, int | None]] = {}  # value -> (layers before it, the last of them)
    before: dict[int, int | None] = {}
    for operation in context.graph.operations:
        known = [depth[value] for value in operands(operation) if value in depth]
        deepest = max(known, key=lambda each: each[0], default=(0, None))
        for out in operation.outputs:
            if out is None or not requires_grad[out]:
                continue
            if out in outputs:
                before[out] = deepest[1]
                depth[out] = (deepest[0] + 1, out)
            elif deepest[0]:
                depth[out] = deepest
    ends = [depth[b.loss] for b in context.graph.accumulating if b.loss in depth]
    path, at = [], max(ends, key=lambda each: each[0], default=(0, None))[1]
    while at is not None:
        path.append(at)
        at = before[at]
    return path[::-1]


def _found(check: Check, context: StepContext, layers: Layers) -> Finding:
    norms, (first, _), weight = layers.norms, layers.norms[0], layers.recurrent
    made = context.graph.operations[context.values[first].operation or 0]
    shown = norms if len(norms) <= 8 else [*norms[:4], *norms[-4:]]
    listed = ", ".join(f"{context.name(value)} {number(norm)}" for value, norm in shown)
    ends = " (the first and last four)" if len(norms) > 8 else ""
    where, title, words, steps, thing = (
        (context.name(first), check.title, "in the first layer they are {} times as large as in the last",
         len(norms) - 1, "layer")
        if weight is None else
        (context.values[weight].name, check.title.replace("depth", "time"),
         "at the first time steps they are {} times as large as at the last", len(norms) - len(norms) // 3, "step")
    )  # fmt: skip
    return check.found(
        where,
        f"{title}: {words.format(number(layers.ratio))}.",
        (f"That is a factor of {number(layers.ratio ** (1 / steps))} per {thing}.",
         f"Norms of the gradients of {len(norms)} layers' outputs, from first to last{ends}: {listed}."),
        place=context.values[first].place or context.place(made),
    )  # fmt: skip
