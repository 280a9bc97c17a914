"""What is wrong with gradients: missing, left over, changed on the way, lost to the number type, mere noise."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace
from statistics import median

import torch
from torch import Tensor

from chainrule.derivation.why import no_gradient
from chainrule.diagnostics.check import Check
from chainrule.diagnostics.finding import Finding, listed
from chainrule.diagnostics.run_context import Run
from chainrule.diagnostics.step_context import StepContext, argument, base_of, dense
from chainrule.document import Code
from chainrule.graph.graph import Place, Value
from chainrule.graph.snapshot import Parameter, has_numbers, statistics_of
from chainrule.graph.statistics import EXPONENTS, norm_of
from chainrule.graph.statistics_cache import distance
from chainrule.numbers import number

NO_GRADIENT = Check(
    "no-gradient",
    title="A parameter got no gradient",
    severity="warning",
    what="A parameter of a module that ran, or of an optimizer that stepped, has no gradient. The reason is told: it "
    "was not used, is frozen, or was cut off by detach, no_grad or an operation that is not differentiable.",
    why="It does not learn. It is a note where that is meant: frozen, or in no optimizer that stepped.",
    advice="If it is meant to learn, use it on the way to the loss, without detach(), item() or no_grad().",
    source="PyTorch's documentation: Autograd mechanics",
    lasts=5,  # an expert of a mixture may well be left out of a few steps
)


@NO_GRADIENT.in_step
def _without_gradient(context: StepContext) -> Iterator[Finding]:
    given = {value for backward in context.graph.backwards for value in backward.given}  # by torch.autograd.grad
    missing = [each for each in context.graph.parameters.values() if not each.has_gradient and each.value not in given]
    if missing and not context.graph.backwards:
        yield NO_GRADIENT.found(
            missing[0].name,
            "No parameter has a gradient, because no backward pass ran.",
            (f"{len(missing)} parameters: {listed([each.name for each in missing])}.",),
            severity="note",
            advice="Call backward() on the loss inside the recorded block.",
        )
        return
    if missing and context.graph.error:
        yield _cut_short(context, missing)
        return
    for parameter in missing:
        value = None if parameter.value is None else context.graph.values[parameter.value]
        frozen = value is not None and not value.requires_grad
        yield NO_GRADIENT.found(
            parameter.name,
            no_gradient(context.graph, parameter.value, parameter.name),
            (f"Its shape is {parameter.shape}; the optimizer {_moved(context, parameter)}.",),
            place=value.place if value is not None else None,
            # What no optimizer of this step holds is not asked to learn now: a teacher, or the other half of a GAN.
            severity="note" if frozen or not context.may_learn(parameter) else "warning",
            advice="This is right for a layer that is meant to stay as it is."
            if frozen
            else "If it is meant to learn, call its module on the way to the loss, with gradients on: what runs under "
            "no_grad() passes none, and a watch does not see it at all."
            if value is None
            else "",
        )


def _cut_short(context: StepContext, missing: list[Parameter]) -> Finding:
    """Once for all parameters where an exception ended the step: what is missing may have come later.

    PyTorch says that what backward needs was overwritten, but not where; that is on record.
    """
    error = str(context.graph.error)
    writes = list(_overwrites(context, error)) if OVERWRITTEN in error else []
    return NO_GRADIENT.found(
        missing[0].name if len(missing) == 1 else f"{len(missing)} parameters",
        "The step ended in an exception" + (", as backward needs what was overwritten." if writes else ".")
        + f" {listed([each.name for each in missing])} got no gradient until then.",
        (error.split(". ")[0].removesuffix(".") + ".", *writes),
        severity="warning" if writes else "note",
        advice="Make the write a new tensor (`x = x + 1` for `x += 1`, no inplace=True), or write to a clone()."
        if writes
        else "Look at the exception first.",
    )  # fmt: skip


OVERWRITTEN = "modified by an inplace operation"


def _overwrites(context: StepContext, error: str) -> Iterator[str]:
    """Every write over a result of the shape that the exception names: what was written over, by what and where."""
    for operation in context.graph.operations:
        written = argument(operation, "self") if base_of(operation).endswith("_") else None
        value = None if written is None else context.graph.values[written]
        if value is None or not (value.requires_grad or value.kind == "parameter"):
            continue
        if f"{list(value.shape)}" in error:
            at, made = context.place(operation), value.place
            yield (
                f"`{base_of(operation)}`{f' ({at})' if at else ''} wrote over {context.name(value.index)}"
                f"{f' ({made})' if made else ''}."
            )


def _moved(context: StepContext, parameter: Parameter) -> str:
    if parameter.after is None or parameter.before is None:
        return "did not touch it" if statistics_of(parameter.end) is None else "may have moved it"
    same = torch.equal(parameter.before.detach(), parameter.after.detach())
    return "left it as it was" if same else "moved it all the same (by momentum or weight decay)"


ACCUMULATED = Check(
    "accumulated-gradient",
    title="A gradient was there before the backward pass",
    severity="warning",
    what="What lies in `.grad` after backward is more than what the backward passes of this step sent.",
    why="Gradients of earlier steps are added to those of this one, as if by a momentum of 1 that nobody asked for.",
    advice="Call optimizer.zero_grad() before backward(), unless gradients are accumulated on purpose.",
    thresholds=("accumulated",),
    source="PyTorch's documentation of zero_grad",
)


CLEARLY = 0.01  # relative difference of two norms, which say less than the numbers do


@ACCUMULATED.in_step
def _accumulated(context: StepContext) -> Iterator[Finding]:
    """What was left in `.grad` is more than what the backward passes of this step sent."""
    sent = _sent(context)
    for parameter in context.graph.parameters.values():
        grad = context.graph.sent(parameter)
        if (
            not has_numbers(grad)
            or parameter.value is None
            or not context.graph.backwards
            or _is_hooked(context, parameter)
        ):
            continue
        # Clearing between two passes is fine: then only the last of them are left.
        sums = list(itertools.accumulate(reversed(sent.get(parameter.value, []))))
        if not sums or any(_same(context, grad, each) for each in sums):
            continue
        left = dense(grad)
        before = left - sums[-1]
        yield ACCUMULATED.found(
            parameter.name,
            f"{parameter.name} had a gradient already when backward began, and the new one was added to it.",
            (
                f"Its norm was {number(norm_of(before))}; this step sent {number(norm_of(sums[-1]))}, which left "
                f"{number(norm_of(left))} in `.grad`.",
            ),
            place=context.graph.accumulating[0].place,
            severity="warning" if context.may_learn(parameter) else "note",  # nobody reads it now
        )


@ACCUMULATED.in_step
def _accumulated_by_statistics(context: StepContext) -> Iterator[Finding]:
    """Without a derivation: the norm of what arrived in the step's only pass, and of what was left in `.grad`."""
    if context.derivation is not None or len(context.graph.accumulating) != 1:
        return
    for parameter in context.graph.parameters.values():
        left = context.sent(parameter)
        sent = context.statistics(parameter.value, gradient=True) if parameter.value is not None else None
        if left is None or sent is None or left.not_finite or sent.not_finite or _is_hooked(context, parameter):
            continue
        if abs(left.norm - sent.norm) > CLEARLY * max(left.norm, sent.norm):
            yield ACCUMULATED.found(
                parameter.name,
                f"{parameter.name} had a gradient already when backward began, and the new one was added to it.",
                (f"This step sent a gradient of norm {number(sent.norm)}, and left {number(left.norm)} in `.grad`.",),
                place=context.graph.accumulating[0].place,
                severity="warning" if context.may_learn(parameter) else "note",
            )


def _is_hooked(context: StepContext, parameter: Parameter) -> bool:
    """Whether a hook was seen to change its gradient on the way into `.grad`."""
    return any(event.kind == "hook" and event.text == parameter.name for event in context.graph.events)


def _sent(context: StepContext) -> dict[int, list[Tensor]]:
    """For each leaf the gradient that each backward pass sent to it: the sum of its contributions."""
    passes: dict[int, dict[int, Tensor]] = {}
    unknown: set[int] = set()
    accumulating = {backward.index for backward in context.graph.accumulating}
    for step in context.derivation.nodes if context.derivation is not None else ():
        if step.backward not in accumulating:
            continue
        for contribution, edge in zip(step.contributions, context.graph.nodes[step.node].edges, strict=True):
            leaf = context.graph.nodes[edge.node].leaf
            sent = contribution.gradient if contribution.recorded is None else contribution.recorded
            if leaf is not None and sent is not None and not has_numbers(sent):
                unknown.add(leaf)
            elif leaf is not None and sent is not None:
                sent, sums = dense(sent), passes.setdefault(leaf, {})
                alone = context.graph.values[leaf].grad if len(context.graph.accumulating) == 1 else None
                if step.backward in sums and alone is not None and has_numbers(alone):  # summed once, with the graph
                    sums[step.backward] = dense(alone)
                else:
                    sums[step.backward] = sums[step.backward] + sent if step.backward in sums else sent
    return {leaf: [sums[index] for index in sorted(sums)] for leaf, sums in passes.items() if leaf not in unknown}


CHANGED = Check(
    "gradient-changed",
    title="A gradient was changed between backward and the optimizer's step",
    severity="note",
    what="The gradient that the optimizer met is not the one that backward left: clipped, scaled, written to or "
    "cleared.",
    why="The update follows from the changed gradient. Where it was cleared, there is no update at all.",
    advice="The update follows from the changed gradient; the derivation tells the one that backward computed.",
    source="PyTorch's documentation of clip_grad_norm_",
)


@CHANGED.in_step
def _changed(context: StepContext) -> Iterator[Finding]:
    """The gradient that the optimizer saw is not the one that backward left: clipped, scaled, cleared."""
    found: dict[str, list[tuple[str, Tensor, Tensor | None]]] = {}
    places: dict[str, Place | None] = {}
    for update in context.graph.updates:
        for member in update.parameters:
            known = context.parameter(member)
            if (
                known is None
                or not has_numbers(known.grad)
                or (member.grad is not None and not has_numbers(member.grad))
            ):
                continue
            left, seen = dense(known.grad), None if member.grad is None else dense(member.grad)
            if seen is not None and context.measures.are_twins(left, seen):
                continue
            event = next(
                (e for e in context.graph.events if e.text == member.name and e.position <= update.position), None
            )
            if event is None and len(context.graph.accumulating) > 1:
                continue  # a later backward pass may have written what `.grad` held at the end
            kind = event.kind if event is not None else "your code"
            found.setdefault(kind, []).append((member.name, left, seen))
            places.setdefault(kind, event.place if event is not None else None)
    for kind, members in found.items():
        before = norm_of(*(left for _, left, _ in members))
        after = norm_of(*(g for _, _, g in members if g is not None))
        cleared = all(g is None or not g.any() for _, _, g in members) and before > 0
        told = "cleared" if cleared else "changed"
        yield CHANGED.found(
            members[0][0] if len(members) == 1 else f"{len(members)} parameters",
            (
                "Between backward and the optimizer's step, ",
                Code(kind),
                f" {told} the gradient of {listed([name for name, _, _ in members])}.",
            ),
            (f"Their norm together was {number(before)}, and is {number(after)}.", *_factor(context, members)),
            place=places[kind],
            severity="warning" if cleared else "note",
            advice="The optimizer had no gradient to work with: clear gradients before backward(), not after it."
            if cleared
            else "",
        )


def _factor(context: StepContext, members: list[tuple[str, Tensor, Tensor | None]]) -> tuple[str, ...]:
    pairs = [(left.flatten(), g.flatten()) for _, left, g in members if g is not None and left.numel() == g.numel()]
    if not pairs:
        return ()
    left, g = torch.cat([a for a, _ in pairs]), torch.cat([b for _, b in pairs])
    square = (left * left).sum().item()
    if not square or not math.isfinite(square):
        return ()
    factor = (left * g).sum().item() / square
    if _same(context, g, left * factor):
        return (f"Every element was multiplied by {number(factor)}.",)
    changed = int((left != g).sum())
    return (
        f"{changed} of {left.numel()} elements changed: the largest was {number(left.abs().max().item())}, "
        f"and is {number(g.abs().max().item())}.",
    )


def _same(context: StepContext, a: Tensor, b: Tensor) -> bool:
    """Whether two gradients are the same up to rounding; nothing can be said of those that are not finite."""
    a, b = dense(a), dense(b)
    if a.shape != b.shape:
        return False
    if context.measures.are_twins(b, a, passing=True):
        return True
    size = max(norm_of(a), norm_of(b))
    return not math.isfinite(size) or distance(a, b) <= context.thresholds.accumulated * size


# -- too small for its number type, or only noise ----------------------------------------------------------------------

UNDERFLOW = Check(
    "fp16-underflow",
    title="Gradients too small for float16",
    severity="warning",
    what="Most elements of a float16 gradient that are not 0 are below 2^-16, or the gradient is 0 altogether though "
    "what it was made of is not.",
    why="float16 ends at 2^-24: small gradients lose their digits, then become 0, and the weights stop learning.",
    advice="Scale the loss (torch.amp.GradScaler), or take bfloat16, which has the range of float32.",
    thresholds=("tiny",),
    source="Micikevicius et al., Mixed precision training, 2018",
    lasts=2,
)
SMALL = EXPONENTS.index(-16)


@UNDERFLOW.in_step
def _underflow(context: StepContext) -> Iterator[Finding]:
    worst: tuple[float, Value, str] | None = None
    count = 0
    for value in context.graph.values:
        if value.dtype != torch.float16 or value.kind == "input" or not value.requires_grad:
            continue
        share, told = _tiny(context, value)
        if share > context.thresholds.tiny:
            count += 1
            if worst is None or share > worst[0]:
                worst = (share, value, told)
    if worst is not None:
        _, value, told = worst
        yield UNDERFLOW.found(
            "float16 gradients",
            f"The gradients of {count} values in float16 are too small for it, most of all that of "
            f"{context.name(value.index)}.",
            (told,),
            place=value.place,
        )


def _tiny(context: StepContext, value: Value) -> tuple[float, str]:
    """The share of the gradient's elements that lie below 2^-16, of those that are not 0."""
    known = context.statistics(value.index, gradient=True)
    if known is None or not known.elements:
        return 0.0, ""
    name, lively = context.name(value.index), known.elements - known.zeros - known.not_finite
    if not lively:
        lost = _sent_something(context, value.index)
        return (
            1.0 if lost else 0.0
        ), f"dJ/d{name} is 0 in all {known.elements} elements, though its uses have gradients."
    if value.grad is not None:
        small = int(((dense(value.grad).abs() < 2.0**-16) & (dense(value.grad) != 0)).sum())
    elif known.magnitudes:
        small = sum(known.magnitudes[:SMALL])
    else:
        return 0.0, ""
    return small / lively, (
        f"{small} of {lively} elements of dJ/d{name} that are not 0 are below 2^-16 = 1.5e-05; {known.zeros} are 0."
    )


def _sent_something(context: StepContext, value: int) -> bool:
    """Whether a linear use of it has a gradient that is not 0: then 0 can only be an underflow."""
    linear = {"addmm", "mm", "linear", "_to_copy", "convolution", "view", "t", "mul", "add"}
    for operation in context.uses.get(value, ()):
        for out in operation.outputs if base_of(operation) in linear else ():
            known = context.statistics(out, gradient=True) if out is not None else None
            if known is not None and known.norm > 0:
                return True
    return False


NOISE = Check(
    "gradient-noise",
    title="The gradients of micro-batches share no direction",
    severity="note",
    what="The backward passes of one step give gradients that are next to orthogonal: the mean cosine between them.",
    why="The sum is mostly noise: a step of the size that the rate asks for goes nowhere in particular. It is natural "
    "near the end of training, and a sign of too small batches, or of labels that mean nothing, at its start.",
    advice="Take larger or more micro-batches, or a smaller learning rate; at the start of training look at the "
    "labels.",
    thresholds=("noise",),
    source="McCandlish et al., An empirical model of large-batch training, 2018",
)
MIN_PASSES = 3
SAME_LOSS = 0.02  # how little of the loss at the start may have been gained for noise to be a warning


@NOISE.in_step
def _noise(context: StepContext) -> Iterator[Finding]:
    if len(context.graph.accumulating) < MIN_PASSES:
        return
    grads = {p.value: p.grad for p in context.graph.parameters.values()}
    whole = []  # of the parameters that every pass used, and whose gradients were added up, not cleared in between
    for leaf, sent in _sent(context).items():
        left = grads.get(leaf)
        if (
            len(sent) == len(context.graph.accumulating)
            and has_numbers(left)
            and _same(context, left, sum(sent[1:], sent[0]))
        ):
            whole.append(sent)
    if not whole:
        return
    joined = [torch.cat([each[index].flatten().double() for each in whole]) for index in range(len(whole[0]))]
    stacked = torch.stack([g / g.norm() for g in joined if g.norm() > 0 and g.isfinite().all()])
    passes = stacked.shape[0]
    if passes < MIN_PASSES:
        return
    cosine = (float(stacked.sum(0).square().sum()) - passes) / (passes * (passes - 1))
    if cosine < context.thresholds.noise:
        norms = listed([number(float(g.norm())) for g in joined])
        yield NOISE.found(
            "all gradients",
            f"The gradients of {passes} backward passes share next to no direction: their mean cosine is "
            f"{number(cosine)}.",
            (f"Their norms are {norms}; the norm of their sum is {number(float(torch.stack(joined).sum(0).norm()))}.",),
            place=context.graph.accumulating[0].place,
        )


@NOISE.over_time
def _noise_from_the_start(run: Run) -> Iterator[Finding]:
    """From the first step on, and nothing gained by it: then it is more than the noise of a loss near its minimum."""
    losses = [loss for _, loss in run.losses]
    gained = run.first_loss - median(losses[-5:]) if losses else math.nan
    for stretch, told in zip(run.stretches(NOISE.id), NOISE.carried(run), strict=True):
        fruitless = stretch.whole and not stretch.ended and run.enough and gained < SAME_LOSS * abs(run.first_loss)
        if fruitless:
            loss = f"The loss was {number(run.first_loss)} at the start, and is {number(median(losses[-5:]))}."
            yield replace(told, severity="warning", evidence=(*told.evidence, loss))
        else:
            yield told
