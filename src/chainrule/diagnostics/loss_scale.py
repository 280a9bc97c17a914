"""Gradients of a loss that a GradScaler scales: what it divided them by, and clipping that came before that."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from chainrule.diagnostics.check import Check
from chainrule.diagnostics.finding import Finding, listed
from chainrule.diagnostics.step_context import StepContext, argument
from chainrule.graph.graph import UNSCALE, Event, Graph
from chainrule.graph.snapshot import Update
from chainrule.numbers import number

CLIPS = "clip_grad"  # how the functions that clip gradients begin


def unscaled_by(graph: Graph, events: Iterable[Event]) -> float:
    """The factor by which a GradScaler multiplied a gradient, by the writes to this gradient; 1 if it did not."""
    factor = 1.0
    for event in events:
        if event.kind == UNSCALE and event.operation is not None:
            inverse = argument(graph.operations[event.operation], "inv_scale")
            data = None if inverse is None else graph.values[inverse].data
            factor *= 1.0 if data is None else float(data.item())
    return factor


CLIPPED_BEFORE_UNSCALE = Check(
    "clipped-before-unscale", "Gradients are clipped before they are unscaled", "warning",
    what="clip_grad_norm_ or clip_grad_value_ changed a gradient that a GradScaler unscaled afterwards. If it changed "
    "nothing, this is a note.",
    why="The limit meets gradients of the scaled loss: it is stricter by the scale, which changes over time.",
    advice="Call scaler.unscale_(optimizer) before the gradients are clipped; scaler.step() does not unscale again.",
    source="PyTorch's documentation: Automatic mixed precision examples, Gradient clipping")  # fmt: skip


@CLIPPED_BEFORE_UNSCALE.in_step
def _clipped_before_unscale(context: StepContext) -> Iterator[Finding]:
    for update in context.graph.updates:
        clip, names, before, after, inverse = None, [], 0.0, 0.0, 1.0
        for name, event, factor in _too_early(context.graph, update):
            parameter = context.graph.parameters.get(name)
            left = None if parameter is None else context.gradient(parameter)
            used = next((context.gradient(each) for each in update.parameters if each.name == name), None)
            if left is not None and used is not None:
                clip, inverse = event, factor
                names.append(name)
                before, after = math.hypot(before, left.norm), math.hypot(after, used.norm)
        if clip is None or not math.isfinite(before) or not math.isfinite(after):
            continue
        plain, scale = before * inverse, number(1 / inverse)
        changed = after < 0.999 * plain
        yield CLIPPED_BEFORE_UNSCALE.found(
            "all gradients", f"{clip.kind} ran before the GradScaler unscaled the gradients of {listed(names)}.",
            (f"It met a joint norm of {number(before)}, that of the scaled loss; unscaled it is {number(plain)}.",
             f"The optimizer used a norm of {number(after)}"
             + (f": the gradients were clipped by a factor of {number(plain / after) if after else 'infinity'}."
                if changed else ": the limit had no effect in this step."),
             f"With a scale of {scale} a limit is {scale} times as strict as it looks."),
            place=clip.place, severity=None if changed else "note",
        )  # fmt: skip


def _too_early(graph: Graph, update: Update) -> Iterator[tuple[str, Event, float]]:
    """(parameter, clipping, inverse scale) of every gradient that was clipped before it was unscaled."""
    written: dict[str, list[Event]] = {}
    for event in graph.written_before(update.position):
        written.setdefault(event.text, []).append(event)
    for name, events in written.items():
        last = max((place for place, each in enumerate(events) if each.kind == UNSCALE), default=0)
        clip = next((each for each in events[:last] if each.kind.startswith(CLIPS)), None)
        if clip is not None:
            yield name, clip, unscaled_by(graph, events)


UNSCALED = Check(
    "unscaled-loss", "A GradScaler unscales a loss that was not scaled", "warning",
    what="A GradScaler divided gradients by its scale, and a backward pass before began from a loss that was not "
    "multiplied by it.",
    why="These gradients are too small by the scale, 65536 at first: the weights hardly move.",
    advice="Call scaler.scale(loss).backward(), for each loss.",
    source="PyTorch's documentation: Automatic mixed precision examples, Typical mixed precision training", lasts=2,
)  # fmt: skip


@UNSCALED.in_step
def _unscaled(context: StepContext) -> Iterator[Finding]:
    events = [each for each in context.graph.events if each.kind == UNSCALE]
    scale = 1 / unscaled_by(context.graph, events[:1])
    for backward in context.graph.accumulating if scale > 1 else ():
        loss = backward.loss
        if loss is None or not any(backward.position <= each.position for each in events):
            continue
        behind = {loss, *context.graph.ancestors([loss])}
        numbers = [context.statistics(each) for each in behind if context.values[each].shape in ((), (1,))]
        if not any(known is not None and math.isclose(known.mean, scale, rel_tol=1e-3) for known in numbers):
            name = context.name(loss)
            yield UNSCALED.found(
                name, f"The loss {name} was not scaled, and a GradScaler divides its gradients by {number(scale)}.",
                (f"{len(events)} gradients were unscaled.", context.between(loss)), place=backward.place,
            )  # fmt: skip
