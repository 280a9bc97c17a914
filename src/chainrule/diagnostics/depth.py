"""Gradients that vanish or explode through the layers, or through the time steps of a recurrent network.

The checks compare the gradients of the layers' outputs, not those of their weights: in a network of ReLUs the product
of a weight and its gradient has the same sum in every layer, however much the gradient of the outputs grows or shrinks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from statistics import median

from chainrule.diagnostics.check import Check
from chainrule.diagnostics.finding import Finding
from chainrule.diagnostics.step_context import StepContext, operands
from chainrule.numbers import number

MIN_LAYERS = 6  # on the path to the loss; with fewer, a third of them is a single layer

WHAT = (
    "The gradient of the first layers' outputs is far {} than that of the last layers'. The check compares the median "
    "norm over the first and the last third of the layers (or of the time steps of a recurrent network)."
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
    what=WHAT.format("larger"),
    why="No learning rate fits all layers: one that lets the last layers learn makes the first ones diverge.",
    advice="Use a smaller initialisation (He, Xavier; orthogonal for an RNN), add norms, and clip the gradient.",
    source="Pascanu, Mikolov and Bengio, 2013; He et al., 2015", thresholds=("depth_growth",), lasts=3)  # fmt: skip


@VANISHING.in_step
def _vanishing(context: StepContext) -> Iterator[Finding]:
    layers, ratio = context.once("depth", lambda: _through_depth(context))
    if ratio < context.thresholds.depth_ratio:
        yield _found(VANISHING, context, layers, ratio)


@EXPLODING.in_step
def _exploding(context: StepContext) -> Iterator[Finding]:
    layers, ratio = context.once("depth", lambda: _through_depth(context))
    if ratio > context.thresholds.depth_growth:
        yield _found(EXPLODING, context, layers, ratio)


Layers = list[tuple[int, float]]
"""The outputs of layers, each with the norm of its gradient, in forward order."""


def _through_depth(context: StepContext) -> tuple[Layers, float]:
    """The layers, and the median gradient norm of their first third over that of the last; NaN for too few layers."""
    known = ((out, context.statistics(out, gradient=True)) for out in _longest_path(context))
    layers = [(out, each.norm) for out, each in known if each and each.norm > 0 and not each.not_finite]
    third = len(layers) // 3
    if len(layers) < MIN_LAYERS:
        return layers, math.nan
    return layers, median([n for _, n in layers[:third]]) / median([n for _, n in layers[-third:]])


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


def _found(check: Check, context: StepContext, layers: Layers, ratio: float) -> Finding:
    shown = layers if len(layers) <= 8 else [*layers[:4], *layers[-4:]]
    norms = ", ".join(f"{context.name(value)} {number(norm)}" for value, norm in shown)
    ends = " (the first and last four)" if len(layers) > 8 else ""
    return check.found(
        context.name(layers[0][0]),
        f"{check.title}: in the first layers they are {number(ratio)} times as large as in the last.",
        f"Norms of the gradients of {len(layers)} layers' outputs, from first to last{ends}: {norms}.",
        place=context.values[layers[0][0]].place,
    )  # fmt: skip
