"""Faults of gradients: missing, left over, changed before the update, lost to the number type, or only noise."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace
from statistics import median

import torch
from torch import Tensor

from chainrule.derivation.no_gradient import no_gradient, reads
from chainrule.diagnostics.check import Check
from chainrule.diagnostics.finding import Finding, Severity, listed
from chainrule.diagnostics.loss_scale import unscaled_by
from chainrule.diagnostics.optimizer import holds_another_model, replaced
from chainrule.diagnostics.run_context import Run
from chainrule.diagnostics.step_context import StepContext, sent_by
from chainrule.document import Code, Span
from chainrule.graph.comparison import dense
from chainrule.graph.graph import UNSCALE, Place, Value
from chainrule.graph.snapshot import Parameter, Snapshot, has_numbers, statistics_of
from chainrule.graph.statistics import EXPONENTS, norm_of
from chainrule.graph.statistics_cache import distance
from chainrule.numbers import number
from chainrule.rules.facts import facts_of

NO_GRADIENT = Check(
    "no-gradient", "A parameter got no gradient", "warning",
    what="A parameter of a module that ran, or of an optimizer that stepped, has no gradient. The finding says why: "
    "it was not used, is frozen, or was cut off by detach, no_grad or an operation that is not differentiable.",
    why="It does not learn. This is a note if it is frozen, if no optimizer that stepped holds it, or if the step used "
    "nothing that the optimizer holds (see `not-in-optimizer`); and in one step, if its module did not run, as tasks "
    "may take turns.",
    advice="If it should learn, use it in the computation of the loss, without detach(), item() or no_grad().",
    source="PyTorch's documentation: Autograd mechanics", lasts=5,  # an expert of a mixture may be unused in some
)  # fmt: skip
UNUSED = "A parameter is not used"
FROZEN = "This is right for a layer that should stay frozen."
NOT_USED = "If it should learn, call its module with gradients enabled; a watch does not see a call under no_grad()."


@NO_GRADIENT.in_step
def _without_gradient(context: StepContext) -> Iterator[Finding]:
    graph = context.graph
    given = {value for backward in graph.backwards for value in backward.given}  # by torch.autograd.grad
    missing = [each for each in graph.parameters.values() if not each.has_gradient and each.value not in given]
    if missing and not graph.backwards:
        yield NO_GRADIENT.found(
            missing[0].name, "No parameter has a gradient, because no backward pass ran.",
            (f"{len(missing)} parameters: {listed([each.name for each in missing])}.",), severity="note",
            advice="Call backward() on the loss inside the recorded block.",
        )  # fmt: skip
    elif not graph.error and not graph.failures:  # what is missing then is an effect of the exception
        stranger, strays = holds_another_model(context), replaced(context)
        inner = [each.loss for each in graph.backwards if each.differentiated and each.loss is not None]
        behind = graph.ancestors(inner)
        for parameter in missing:
            frozen = parameter.value is not None and not graph.values[parameter.value].requires_grad
            # A parameter in no optimizer that stepped need not learn now: a teacher, or the other half of a GAN.
            learns = context.may_learn(parameter) and not (stranger and parameter.value is None)
            # An optimizer none of whose parameters has a gradient is a finding of its own, and so is a replaced layer.
            aside = frozen or not learns or parameter.name in context.idle or parameter.name in strays
            # The last bias of an energy shifts it, and the gradient of the energy stays the same.
            shifts = parameter.value in behind
            # Tasks may take turns: one step does not tell, see `_without_gradient_for_long`.
            used = _is_used(context, parameter)
            unused = not used and not aside
            severity: Severity = "note" if aside or shifts or unused else "warning"
            reason = no_gradient(graph, parameter.value, parameter.name)
            if shifts and not frozen:
                of = listed([context.name(each) for each in inner])
                reason = f"{parameter.name} got no gradient: the loss uses the gradient of {of}, and not its value."
            yield NO_GRADIENT.found(
                parameter.name, reason,
                f"Its shape is {parameter.shape}; {_moved(context, parameter)}.",
                place=context.place_of(parameter), severity=severity, title=UNUSED if unused else "",
                advice=FROZEN if frozen else "" if used else NOT_USED,
            )  # fmt: skip


@NO_GRADIENT.over_time
def _without_gradient_for_long(run: Run) -> Iterator[Finding]:
    """A parameter that had a gradient before may belong to a task that is rare."""
    for stretch, found in NO_GRADIENT.carried(run):
        rare = len(stretch.steps) < run.thresholds.window and run.had_gradient(found.where)
        lasting = found.title == UNUSED and len(stretch.steps) >= NO_GRADIENT.lasts
        yield replace(found, severity="note") if rare else replace(found, severity="warning") if lasting else found


def _is_used(context: StepContext, parameter: Parameter) -> bool:
    value = parameter.value
    return value is not None and any(reads(use, value) for use in context.uses.get(value, ()))


def _moved(context: StepContext, parameter: Parameter) -> str:
    if parameter.after is None or parameter.before is None:
        return f"the optimizer {'did not move' if statistics_of(parameter.end) is None else 'may have moved'} it"
    if torch.equal(parameter.before.detach(), parameter.after.detach()):
        return "the optimizer did not move it"
    if not context.held or parameter.name not in context.held:
        return "no optimizer moved it; other code did (a moving average, say)"
    return "the optimizer still moved it (by momentum or weight decay)"


ACCUMULATED = Check(
    "accumulated-gradient", "A gradient was there before the backward pass", "warning",
    what="After backward, `.grad` of a parameter that may learn contains more than the step's backward passes sent; or "
    "the optimizer used what was there before the first of several. Or, in a recording, a closure adds up "
    "what its passes sent. Over a run it is a note at fewer than 3 examined steps in a row: an optimizer may step less "
    "often than others.",
    why="The gradients of earlier steps are added to those of this one, like an unintended momentum of 1.",
    advice="Call optimizer.zero_grad() before backward(), unless gradients are accumulated on purpose. With several "
    "optimizers each clears its own parameters alone: also what the other losses sent to them.",
    source="PyTorch's documentation of zero_grad", thresholds=("accumulated",))  # fmt: skip
LASTS = 3  # examined steps
CLEARLY = 0.01  # relative difference of two norms, which are less precise than the numbers


@ACCUMULATED.in_step
def _accumulated(context: StepContext) -> Iterator[Finding]:
    """By the numbers; without a derivation by the norm of what arrived in the step's only pass."""
    sent = _sent(context)
    for parameter in context.graph.parameters.values():
        if parameter.value is None or not context.graph.backwards or parameter.value in context.graph.hooked:
            continue
        if not context.may_learn(parameter):
            continue  # nothing uses it now, and its own optimizer may clear it: the other half of a GAN
        evidence = _more_than(context, parameter, sent.get(parameter.value, [])) or _larger(context, parameter)
        if evidence:
            yield ACCUMULATED.found(
                parameter.name,
                f"{parameter.name} already had a gradient when backward began, and the new one was added to it.",
                evidence, place=context.graph.accumulating[0].place,
            )  # fmt: skip


@ACCUMULATED.in_step
def _left_over(context: StepContext) -> Iterator[Finding]:
    """What an optimizer used of earlier steps, where a step has several passes."""
    last: dict[int, int] = {}  # optimizer -> position of its step
    for update in context.graph.updates if len(context.graph.accumulating) > 1 else ():
        begun = last.get(update.optimizer_number, -1)
        last[update.optimizer_number] = update.position
        places = [each.place for each in context.graph.accumulating if begun < each.position <= update.position]
        for member in update.parameters:
            before, used = context.cache.of(member.left_over), context.gradient(member)
            if before is not None and used is not None and before.norm > CLEARLY * used.norm and places:
                yield ACCUMULATED.found(
                    member.name,
                    f"{member.name} already had a gradient when backward began, and the new one was added to it.",
                    f"Its norm was {number(before.norm)} before the first of the step's backward passes; the optimizer "
                    f"used one of {number(used.norm)}.", place=places[0],
                )  # fmt: skip


@ACCUMULATED.in_step
def _in_a_closure(context: StepContext) -> Iterator[Finding]:
    """What the passes of a closure left, which run inside the optimizer's step: each is to leave its own gradient."""
    passes, updates = context.graph.accumulating, context.graph.updates
    if len(updates) != 1 or len(passes) < 2 or passes[0].position <= updates[0].position:
        return
    arrived: dict[int | None, list[Snapshot | None]] = {}
    for node in context.graph.nodes:
        for execution in (each for each in node.executions if each.backward == passes[-1].index):
            for edge, snapshot in zip(node.edges, execution.sent, strict=False):
                arrived.setdefault(context.graph.nodes[edge.node].leaf, []).append(snapshot)
    for parameter in context.graph.parameters.values():
        last = arrived.get(parameter.value, [])
        left, sent = context.gradient(parameter), context.cache.of(last[0]) if len(last) == 1 else None
        if left is not None and sent is not None and left.norm > (1 + CLEARLY) * sent.norm:
            yield ACCUMULATED.found(
                parameter.name, f"The closure of {updates[0].optimizer} adds the gradients of its {len(passes)} "
                f"backward passes up in {parameter.name}.",
                f"The last pass sent a gradient of norm {number(sent.norm)}, and {number(left.norm)} was left.",
                place=passes[0].place, advice="Call optimizer.zero_grad() in the closure, before backward().",
            )  # fmt: skip


@ACCUMULATED.over_time
def _accumulated_over_time(run: Run) -> Iterator[Finding]:
    for stretch, found in ACCUMULATED.carried(run):
        yield found if len(stretch.steps) >= LASTS else replace(found, severity="note")


def _more_than(context: StepContext, parameter: Parameter, sent: list[Tensor]) -> str:
    grad = context.graph.sent(parameter)
    # Clearing between two passes is fine: then `.grad` contains only the last of them.
    sums = list(itertools.accumulate(reversed(sent)))
    if not has_numbers(grad) or not sums or any(_same(context, grad, each) for each in sums):
        return ""
    left = dense(grad)
    before, new, after = (number(norm_of(each)) for each in (left - sums[-1], sums[-1], left))
    return f"Its norm was {before}; this step sent {new}, which left {after} in `.grad`."


def _larger(context: StepContext, parameter: Parameter) -> str:
    if context.derivation is not None or len(context.graph.accumulating) != 1:
        return ""
    left, sent = context.sent(parameter), context.statistics(parameter.value, gradient=True)
    if left is None or sent is None or left.not_finite or sent.not_finite:
        return ""
    same = abs(left.norm - sent.norm) <= CLEARLY * max(left.norm, sent.norm)
    return (
        ""
        if same
        else f"This step sent a gradient of norm {number(sent.norm)}, and left {number(left.norm)} in `.grad`."
    )


def _sent(context: StepContext) -> dict[int, list[Tensor]]:
    """For each leaf the gradient that each backward pass sent to it, the sum of its contributions."""
    passes: dict[int, dict[int, Tensor]] = {}
    unknown: set[int] = set()
    accumulating = {backward.index for backward in context.graph.accumulating}
    for step in context.derivation.nodes if context.derivation is not None else ():
        if step.backward not in accumulating:
            continue
        for contribution, edge in zip(step.contributions, context.graph.nodes[step.node].edges, strict=True):
            leaf, sent = context.graph.nodes[edge.node].leaf, sent_by(contribution)
            if leaf is None or sent is None:
                continue
            if not has_numbers(sent):
                unknown.add(leaf)
                continue
            sent, sums = dense(sent), passes.setdefault(leaf, {})
            alone = context.values[leaf].grad if len(accumulating) == 1 else None
            if step.backward in sums and alone is not None and has_numbers(alone):  # the graph has the sum
                sums[step.backward] = dense(alone)
            else:
                sums[step.backward] = sums[step.backward] + sent if step.backward in sums else sent
    return {leaf: [sums[index] for index in sorted(sums)] for leaf, sums in passes.items() if leaf not in unknown}


CHANGED = Check(
    "gradient-changed", "A gradient was changed between backward and the optimizer's step", "note",
    what="The optimizer did not use the gradient that backward left: it was clipped, scaled or cleared. Or it used "
    "that of the last of several micro-batches alone, as the others were cleared.",
    why="The update follows from the changed gradient. If it was cleared, there is no update at all.",
    advice="The update follows from the changed gradient; the derivation shows the one that backward computed.",
    source="PyTorch's documentation of clip_grad_norm_")  # fmt: skip
CLEARED = "The optimizer had no gradient to use: clear gradients before backward(), not after it."
Change = tuple[str, Tensor, Tensor | None]
"""The name of a parameter, its gradient after backward, and the gradient that the optimizer used."""


@CHANGED.in_step
def _changed(context: StepContext) -> Iterator[Finding]:
    found: dict[tuple[str, ...], tuple[Place | None, list[Change]]] = {}
    for update in context.graph.updates:
        written = context.graph.written_before(update.position)
        for member in update.parameters:
            known, used = context.parameter(member), member.grad
            if known is None or not has_numbers(known.grad) or not (used is None or has_numbers(used)):
                continue
            left, used = dense(known.grad), None if used is None else dense(used)
            if used is not None and context.cache.are_twins(left, used):
                continue
            events = [event for event in written if event.text == member.name]
            if not events and len(context.graph.accumulating) > 1:
                continue  # a later backward pass may have written what `.grad` contains at the end
            unscaled = left * unscaled_by(context.graph, events)
            scaler = [event for event in events if event.kind == UNSCALE]
            causes = [event for event in events if event.kind != UNSCALE]
            if scaler and (not causes or (used is not None and _same(context, used, unscaled))):
                causes = scaler  # nothing else changed it
            else:
                left = unscaled
            place = next((event.place for event in causes), None)
            kinds = tuple(dict.fromkeys(event.kind for event in causes)) or ("your code",)
            found.setdefault(kinds, (place, []))[1].append((member.name, left, used))
    for kinds, (place, changes) in found.items():
        before_norm = norm_of(*(left for _, left, _ in changes))
        after_norm = norm_of(*(used for _, _, used in changes if used is not None))
        cleared = all(used is None or not used.any() for _, _, used in changes) and before_norm > 0
        verb, names = "cleared" if cleared else "changed", listed([name for name, _, _ in changes])
        yield CHANGED.found(
            changes[0][0] if len(changes) == 1 else f"{len(changes)} parameters",
            ("Between backward and the optimizer's step, ", *_codes(kinds), f" {verb} the gradient of {names}."),
            (f"Their joint norm was {number(before_norm)}, and is {number(after_norm)}.", *_factor(context, changes)),
            place=place, severity="warning" if cleared else "note", advice=CLEARED if cleared else "",
        )  # fmt: skip


def _codes(kinds: tuple[str, ...]) -> Iterator[Span]:
    for place, kind in enumerate(kinds):
        yield from (" and ", Code(kind)) if place else (Code(kind),)


def _factor(context: StepContext, changes: list[Change]) -> tuple[str, ...]:
    pairs = [(a.flatten(), b.flatten()) for _, a, b in changes if b is not None and a.numel() == b.numel()]
    if not pairs:
        return ()
    left, used = torch.cat([a for a, _ in pairs]), torch.cat([b for _, b in pairs])
    square = (left * left).sum().item()
    if not square or not math.isfinite(square):
        return ()
    factor = (left * used).sum().item() / square
    if _same(context, used, left * factor):
        return (f"Every element was multiplied by {number(factor)}.",)
    largest, now = (number(each.abs().max().item()) for each in (left, used))
    count = int((left != used).sum())
    return (f"{count} of {left.numel()} elements changed: the largest was {largest}, and is {now}.",)


def _same(context: StepContext, a: Tensor, b: Tensor) -> bool:
    """Whether two gradients are equal up to rounding, or so far from finite that nothing can be said."""
    a, b = dense(a), dense(b)
    if a.shape != b.shape:
        return False
    if context.cache.are_twins(b, a, passing=True):
        return True
    size = max(norm_of(a), norm_of(b))
    return not math.isfinite(size) or distance(a, b) <= context.thresholds.accumulated * size


UNDERFLOW = Check(
    "fp16-underflow", "Gradients are too small for float16", "warning",
    what="Most nonzero elements of a float16 gradient are below 2^-16, or it is 0 although its terms are not.",
    why="float16 ends at 2^-24: small gradients lose their digits, then become 0, and the weights stop learning.",
    advice="Scale the loss (torch.amp.GradScaler), or use bfloat16, which has the range of float32.",
    source="Micikevicius et al., Mixed precision training, 2018", thresholds=("tiny",), lasts=2)  # fmt: skip
SMALL = EXPONENTS.index(-16)


@UNDERFLOW.in_step
def _underflow(context: StepContext) -> Iterator[Finding]:
    found: list[tuple[float, str, Value]] = []
    for value in context.values:
        if value.dtype == torch.float16 and value.kind != "input" and value.requires_grad:
            part, evidence = _tiny(context, value)
            if part > context.thresholds.tiny:
                found.append((part, evidence, value))
    if found:
        _, evidence, value = max(found, key=lambda each: each[0])
        yield UNDERFLOW.found(
            "float16 gradients",
            f"The gradients of {len(found)} float16 values are too small, most of all {context.name(value.index)}'s.",
            evidence, place=value.place,
        )  # fmt: skip


def _tiny(context: StepContext, value: Value) -> tuple[float, str]:
    """The share of the gradient's nonzero elements that lie below 2^-16, and a sentence that says so."""
    known = context.statistics(value.index, gradient=True)
    if known is None or not known.elements:
        return 0.0, ""
    name, nonzero = context.name(value.index), known.elements - known.zeros - known.not_finite
    if not nonzero:
        lost = 1.0 if _sent_something(context, value.index) else 0.0
        return lost, f"dJ/d{name} is 0 in all {known.elements} elements, although its uses have gradients."
    if value.grad is not None:
        small = int(((dense(value.grad).abs() < 2.0**-16) & (dense(value.grad) != 0)).sum())
    else:
        small = sum(known.magnitudes[:SMALL])
    return small / nonzero, (
        f"{small} of {nonzero} nonzero elements of dJ/d{name} are below 2^-16 = 1.5e-05; {known.zeros} are 0."
    )


def _sent_something(context: StepContext, value: int) -> bool:
    """Whether a linear use of it has a gradient that is not 0, so that only an underflow can make its own 0."""
    linear = (use for use in context.uses.get(value, ()) if facts_of(use.name).passes_gradient)
    known = (context.statistics(out, gradient=True) for use in linear for out in use.outputs)
    return any(each is not None and each.norm > 0 for each in known)


NOISE = Check(
    "gradient-noise", "The gradients of micro-batches share no direction", "note",
    what="The gradients of the backward passes of one step are almost orthogonal, by the mean cosine between them.",
    why="The update is mostly noise. Early in training this points to small batches or meaningless labels.",
    advice="Use larger or more micro-batches, or a smaller learning rate; at the start of training check the labels.",
    source="McCandlish et al., An empirical model of large-batch training, 2018", thresholds=("noise",))  # fmt: skip
MIN_PASSES = 3
SAME_LOSS = 0.02  # share of the loss at the start; noise is a warning if less was gained


@NOISE.in_step
def _noise(context: StepContext) -> Iterator[Finding]:
    passes = len(context.graph.accumulating)
    if passes < MIN_PASSES:
        return
    grads = {p.value: p.grad for p in context.graph.parameters.values()}
    whole = []  # of the parameters that every pass used, and whose gradients were accumulated without clearing
    for leaf, sent in _sent(context).items():
        left = grads.get(leaf)
        if len(sent) == passes and has_numbers(left) and _same(context, left, sum(sent[1:], sent[0])):
            whole.append(sent)
    joined = [torch.cat([each[index].flatten().double() for each in whole]) for index in range(passes if whole else 0)]
    units = [g / g.norm() for g in joined if g.norm() > 0 and g.isfinite().all()]
    count = len(units)
    if count < MIN_PASSES:
        return
    cosine = (float(torch.stack(units).sum(0).square().sum()) - count) / (count * (count - 1))
    if cosine < context.thresholds.noise:
        norms, total = listed([number(float(g.norm())) for g in joined]), float(torch.stack(joined).sum(0).norm())
        yield NOISE.found(
            "all gradients",
            f"The gradients of {count} backward passes share no direction: their mean cosine is {number(cosine)}.",
            f"Their norms are {norms}; the norm of their sum is {number(total)}.",
            place=context.graph.accumulating[0].place,
        )  # fmt: skip


@NOISE.over_time
def _noise_from_the_start(run: Run) -> Iterator[Finding]:
    """Noise from the first step on with nothing gained is more than the noise of a loss near its minimum."""
    last = median([loss for _, loss in run.losses[-5:]]) if run.losses else math.nan
    for stretch, found in NOISE.carried(run):
        gained = run.first_loss - last
        if stretch.whole and not stretch.ended and run.enough and gained < SAME_LOSS * abs(run.first_loss):
            loss = f"The loss was {number(run.first_loss)} at the start, and is {number(last)}."
            yield replace(found, severity="warning", evidence=(*found.evidence, loss))
        else:
            yield found
