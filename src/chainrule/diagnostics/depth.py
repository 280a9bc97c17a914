"""Gradients that vanish or explode on their way back through the layers, or through the moments of a recurrent network.

What is compared is the gradient of the layers' outputs, never that of their weights: in a network of ReLUs the product
of a weight and its gradient has the same sum in every layer, however much the gradient of the outputs grows or shrinks.
"""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median

from chainrule.diagnostics.check import Check
from chainrule.diagnostics.finding import Finding
from chainrule.diagnostics.step_context import StepContext
from chainrule.graph.graph import references
from chainrule.numbers import number

MIN_LAYERS = 6  # on the way to the loss, below which first and last third are single layers

VANISHING = Check(
    "vanishing-gradient",
    title="Gradients vanish through depth",
    severity="warning",
    what="The gradient of the first layers' outputs is far smaller than that of the last layers': the medians of the "
    "norm over the first and the last third of the layers (or of the moments of a recurrent network).",
    why="The first layers hardly learn, while the last ones fit to what those happen to give.",
    advice="Take ReLU-like functions with He's initialisation, or tanh with Xavier's; put in skip connections or "
    "norms; for a recurrent network, gates (LSTM, GRU).",
    thresholds=("depth_ratio",),
    source="Hochreiter, 1991; Glorot and Bengio, 2010; He et al., 2015",
    lasts=3,
)
EXPLODING = Check(
    "exploding-gradient",
    title="Gradients explode through depth",
    severity="warning",
    what="The gradient of the first layers' outputs is far larger than that of the last layers': the medians of the "
    "norm over the first and the last third of the layers (or of the moments of a recurrent network).",
    why="No learning rate fits all layers: one that lets the last ones learn throws the first ones about.",
    advice="Make the initial weights smaller (He's or Xavier's initialisation, an orthogonal one for a recurrent "
    "network), put in norms, and clip the norm of the gradient.",
    thresholds=("depth_growth",),
    source="Pascanu, Mikolov and Bengio, 2013; He et al., 2015",
    lasts=3,
)


@VANISHING.in_step
def _vanishing(context: StepContext) -> Iterator[Finding]:
    for layers, early, late in _through_depth(context):
        if early < context.thresholds.depth_ratio * late:
            yield VANISHING.found(
                context.name(layers[0][0]),
                f"The gradient vanishes on its way back: in the first layers it is {number(early / late)} times as "
                "large as in the last.",
                _evidence(context, layers),
                place=context.graph.values[layers[0][0]].place,
            )


@EXPLODING.in_step
def _exploding(context: StepContext) -> Iterator[Finding]:
    for layers, early, late in _through_depth(context):
        if early > context.thresholds.depth_growth * late:
            yield EXPLODING.found(
                context.name(layers[0][0]),
                f"The gradient explodes on its way back: in the first layers it is {number(early / late)} times as "
                "large as in the last.",
                _evidence(context, layers),
                place=context.graph.values[layers[0][0]].place,
            )


def _through_depth(context: StepContext) -> Iterator[tuple[list[tuple[int, float]], float, float]]:
    """(layers with the norm of their output's gradient, its median in the first and in the last third of them)."""
    if "longest path" not in context.worked_out:
        context.worked_out["longest path"] = _longest_path(context)
    path = context.worked_out["longest path"]
    layers = [(out, norm) for out in path if (norm := context.gradient_norm(out)) is not None and norm > 0]
    if len(layers) >= MIN_LAYERS:
        third = len(layers) // 3
        yield layers, median([n for _, n in layers[:third]]), median([n for _, n in layers[-third:]])


def _longest_path(context: StepContext) -> list[int]:
    """The outputs of weighing operations on the longest path through the step, counted in such operations.

    So a discriminator that sees real and made data, or a tower beside the trunk, is not taken for depth.
    """
    outputs = {out for _, _, _, out in context.weighed if context.graph.values[out].requires_grad}
    depth: dict[int, tuple[int, int | None]] = {}  # value -> (weighing operations before it, the last of them)
    before: dict[int, int | None] = {}
    for operation in context.graph.operations:
        known = [depth[value] for _, _, value in references(operation.arguments) if value in depth]
        deepest = max(known, key=lambda each: each[0], default=(0, None))
        for out in operation.outputs:
            if out is None or not context.graph.values[out].requires_grad:
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


def _evidence(context: StepContext, layers: list[tuple[int, float]]) -> Iterator[str]:
    shown = layers if len(layers) <= 8 else [*layers[:4], *layers[-4:]]
    told = ", ".join(f"{context.name(value)} {number(norm)}" for value, norm in shown)
    ends = " (the first and last four)" if len(layers) > 8 else ""
    yield f"Norms of the gradient of {len(layers)} layers' outputs, from first to last{ends}: {told}."
