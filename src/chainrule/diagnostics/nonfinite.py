"""NaN and infinity: where the forward pass produces the first one, and where the backward pass does.

PyTorch raises no error in either case: the loss is NaN, and so is every parameter after the next step.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from torch import Tensor

from chainrule.derivation.backprop import Derivation, NodeStep
from chainrule.derivation.contributions import aligned
from chainrule.diagnostics.check import Check
from chainrule.diagnostics.finding import RANK, Finding, Severity, listed
from chainrule.diagnostics.nonfinite_advice import advice_for, at_zero
from chainrule.diagnostics.nonfinite_origin import Origin, Origins, evidence_of, on_purpose, origins_of
from chainrule.diagnostics.run_context import Run
from chainrule.diagnostics.step_context import StepContext, element_of, operands, sent_by
from chainrule.graph.comparison import dense
from chainrule.graph.graph import Operation, Value
from chainrule.graph.history import Kind as SeriesKind
from chainrule.graph.history import Noticed, Series
from chainrule.graph.names import element
from chainrule.graph.statistics import Statistics
from chainrule.numbers import number

FORWARD = Check(
    "non-finite-forward", "The forward pass produces a non-finite number", "error",
    what="An operation turns finite operands into NaN or infinity, or data or a parameter contains one before the "
    "step. Operations that only pass it on are listed. A mask of -inf is not reported.",
    why="PyTorch raises no error: the loss becomes NaN, and so does every parameter after the next update.",
    advice="Keep the operand in the range where the function is finite: clamp it, add an epsilon, or scale it down.",
    source="IEEE 754: the results of 0 / 0, the log of a negative number and inf - inf", unfinished=True)  # fmt: skip
BACKWARD = Check(
    "non-finite-backward", "The backward pass produces a non-finite number", "error",
    what="The first node that turns a finite gradient into NaN or infinity, as the square root does at 0. It is a note "
    "if the gradients of all parameters are finite, or if a GradScaler left the update out because of it.",
    why="The loss looks fine, and the next update makes parameters NaN.",
    advice="The derivative is not finite at this point: keep the operand away from it. Add a small epsilon inside a "
    "square root or a logarithm, or clamp the operand (not the result).",
    source="the derivative of the operation, and 0 * inf = NaN", unfinished=True)  # fmt: skip

LOSSES = (FORWARD.id, BACKWARD.id)


@FORWARD.in_step
def _forward(context: StepContext) -> Iterator[Finding]:
    """The first number that is not finite, with the operands that it was computed from."""
    origins = origins_of(context)
    for origin in origins.first:
        value, operation = origin.value, origin.operation
        assert value.data is not None
        name, data = context.name(value.index), dense(value.data)
        nan = data.isnan()
        bad, kind = (nan, "NaN") if nan.any() else (~data.isfinite(), "infinity")
        if operation is None:
            places = bad.nonzero().tolist()
            elements = listed([element(name, tuple(place)) for place in places])
            evidence = [f"{len(places)} of {data.numel()} elements: {elements}."]
            text, place = f"{name} contains {kind} before the step.", value.place
            advice = "Look at the data that was loaded, or, for a parameter, at the previous step."
        else:
            given = all(context.cache.finite(context.values[index].data) for index in operands(operation))
            numbers = "finite numbers" if given else "numbers other than NaN"
            order = "it is the first to do so" if origin is origins.every[0] else "this one reaches the loss"
            text = f"{context.called(operation)} turns {numbers} into {kind}; {order}."
            evidence = list(evidence_of(context, operation, value))
            place, advice = value.place or context.place(operation), advice_for(context, operation)
        evidence += _passed_on(context, origins, origin)
        harmful = origins.bad_losses or origins.gradients_lost
        if not harmful:
            evidence.append("It reaches neither the loss of a backward pass nor a parameter's gradient.")
        severity: Severity = "error" if harmful else "warning" if _may_harm(context, origin) else "note"
        yield FORWARD.found(name, text, evidence, place=place, severity=severity, advice=advice)


def _may_harm(context: StepContext, origin: Origin) -> bool:
    """Whether a value with a gradient contains it, or one that is not used (and so not masked out) later."""
    reached = (origin.value.index, *origin.passed_on)
    return any(context.values[each].requires_grad or not context.uses.get(each) for each in reached)


def _passed_on(context: StepContext, origins: Origins, origin: Origin) -> Iterator[str]:
    """The values that it reaches, up to the loss or, in an unfinished step without one, the last result."""
    loss = next((each for each in origins.bad_losses if origins.of.get(each, origin) is origin), None)
    others = [each for each in origin.passed_on if each != loss]
    if others:
        yield f"Later operations pass it on: {listed(list(dict.fromkeys(map(context.name, others))))}."
    if loss is None:
        return
    name, data = context.name(loss), context.values[loss].data
    if not context.is_loss(loss):
        yield f"The step reached {name}, which contains it."
    elif data is not None and data.numel() == 1:
        yield f"The loss {name} is {number(dense(data).reshape(-1)[0].item())}, and PyTorch raises no error."
    else:
        yield f"The loss {name} contains it, and PyTorch raises no error."


@FORWARD.in_step
def _forward_by_statistics(context: StepContext) -> Iterator[Finding]:
    """The same for values without numbers: the first operation with finite operands and a result that is not."""
    lost = {loss for loss in context.losses if context.lost(loss)}
    reaching = lost | context.graph.ancestors(lost) if context.unfinished else None
    for operation, slot, out in (
        (each, *slot) for each in context.graph.operations for slot in enumerate(each.outputs)
    ):
        if out is None or context.values[out].has_numbers:
            continue
        known = context.lost(out)
        if known is None or on_purpose(operation, slot) or (reaching is not None and out not in reaching):
            continue
        if any(context.lost(index) for index in operands(operation)):
            continue
        gradients = (context.gradient(parameter) for parameter in context.graph.parameters.values())
        harmful = lost or any(each is not None and each.not_finite for each in gradients)
        name, made = context.name(out), context.values[out]
        yield FORWARD.found(
            name, f"{context.called(operation)} turns finite numbers into non-finite ones; it is the first to do so.",
            _count(known, f" of {name}"), place=made.place or context.place(operation),
            severity="error" if harmful else "warning" if made.requires_grad else "note",
            advice=advice_for(context, operation),
        )  # fmt: skip
        return


def _count(known: Statistics, of: str = "") -> str:
    return f"{known.not_finite} of {known.elements} elements{of}."


@BACKWARD.in_step
def _backward(context: StepContext) -> Iterator[Finding]:
    """The first node that turns a finite gradient into NaN or infinity; a note if that does no harm."""
    for found in _first_in_backward(context):
        harmless = _harmless(context)
        evidence = (*found.evidence, harmless) if harmless else found.evidence
        yield replace(found, severity="note" if harmless else found.severity, evidence=evidence)


def _harmless(context: StepContext) -> str:
    """Why what is not finite in the backward pass reaches no update; "" if it may."""
    graph = context.graph
    used = [context.gradient(member) for member in context.members]
    if any(each is not None and each.not_finite for each in used):
        return ""
    for operation in context.operations_that(lambda facts: facts.unscales):
        found_inf = [each.data for each in graph.values if each.operation == operation.index and not each.shape]
        if any(each is not None and each.item() for each in found_inf):
            return "The GradScaler left this update out, and lowers its scale: now and then this is as it should be."
    kept = [context.gradient(each) for each in graph.parameters.values()]
    kept += [context.cache.of(each) for backward in graph.backwards for each in backward.given.values()]
    known = [each for each in kept if each is not None]
    if not known or any(each.not_finite for each in known) or (context.unfinished and None in kept):
        return ""
    return f"It reaches no gradient of a parameter: all {len(known)} are finite."


def _first_in_backward(context: StepContext) -> Iterator[Finding]:
    """The first node that turns a finite gradient into NaN or infinity, with its operands."""
    if context.derivation is None:
        yield from _backward_by_statistics(context)
        return
    fed = {edge.node for node in context.graph.nodes if node.executions for edge in node.edges}
    for step in context.derivation.nodes:
        if not all(map(context.cache.finite, step.upstream)):
            if step.node not in fed or _added_up(context, context.derivation, step):
                yield _arrived(context, step, seed=step.node not in fed)
                return
            continue
        if step.operation is None or _inherits(context, step.operation):
            continue
        for contribution in step.contributions:
            sent = sent_by(contribution)
            if contribution.value is not None and sent is not None and not context.cache.finite(sent):
                value, operation = context.values[contribution.value], context.graph.operations[step.operation]
                kind = "NaN" if dense(sent).isnan().any() else "infinity"
                yield BACKWARD.found(
                    f"dJ/d{context.name(value.index)}",
                    f"The backward pass of {context.called(operation)} turns a finite gradient into {kind}; "
                    "it is the first to do so.",
                    _gradient_evidence(context, step, operation, value, dense(sent)),
                    place=context.graph.nodes[step.node].place, advice=at_zero(context, operation),
                )  # fmt: skip
                return


def _inherits(context: StepContext, index: int) -> bool:
    """Whether the forward pass is the cause: the loss and an operand or output of the operation are not finite."""
    origins, operation = origins_of(context), context.graph.operations[index]
    near = (*operands(operation), *operation.outputs)
    return bool(origins.bad_losses) and any(value in origins.of for value in near)


def _added_up(context: StepContext, derivation: Derivation, step: NodeStep) -> bool:
    """Whether every contribution that arrived was finite, so that only their sum is not."""
    return all(
        context.cache.finite(sent_by(contribution))
        for other in derivation.nodes
        if other.backward == step.backward
        for contribution, edge in zip(other.contributions, context.graph.nodes[other.node].edges, strict=True)
        if edge.node == step.node
    )


def _arrived(context: StepContext, step: NodeStep, *, seed: bool) -> Finding:
    node = context.graph.nodes[step.node]
    slot = next(slot for slot, g in enumerate(step.upstream) if not context.cache.finite(g))
    value = node.outputs[slot] if slot < len(node.outputs) else None
    name, data = f"dJ/d{node.name if value is None else context.name(value)}", step.upstream[slot]
    assert data is not None
    at = tuple((~dense(data).isfinite()).nonzero()[0].tolist())
    text, advice = (
        "The gradient that the backward pass started from is not finite.",
        "Look at the argument of backward(): the loss scale may be too large, or the gradient is not finite.",
    ) if seed else (
        "Finite gradients of several uses add up to a non-finite number.",
        "Scale the loss down, or use a number type with a larger range.",
    )  # fmt: skip
    return BACKWARD.found(name, text, (f"{element_of(name, at, data)}.",), place=node.place, advice=advice)


def _gradient_evidence(
    context: StepContext, step: NodeStep, operation: Operation, value: Value, sent: Tensor
) -> Iterator[str]:
    places = [tuple(at) for at in (~sent.isfinite()).nonzero().tolist()]
    at, name = places[0], context.name(value.index)
    given = [index for index in operands(operation) if index != value.index]
    if value.data is not None and value.data.shape == sent.shape:
        given.insert(0, value.index)
    shown, stopped = [text for index in given if (text := context.at(index, at))], False
    for g, out in zip(step.upstream, operation.outputs, strict=False):
        if g is not None and out is not None and (own := aligned(at, tuple(g.shape))) is not None:
            shown.append(element_of(f"dJ/d{context.name(out)}", own, g))
            stopped = bool(dense(g)[own] == 0)
    yield f"dJ/d{element_of(name, at, sent)}{', where ' + ' and '.join(shown) if shown else ''}."
    if stopped:
        yield (
            "The upstream gradient is 0 here, but 0 times infinity is NaN: select the operand before this operation "
            "(torch.where on its input), not the result after it."
        )
    if len(places) > 1:
        yield f"{len(places)} of {sent.numel()} elements are not finite."


def _backward_by_statistics(context: StepContext) -> Iterator[Finding]:
    """Without a derivation: the last operation with finite gradients of its results and not of an operand."""
    if any(map(context.lost, context.losses)):
        return
    lost = any(value.grad_statistics is not None and value.grad_statistics.not_finite for value in context.values)
    if not lost and context.cache.all_finite(value.grad for value in context.values):
        return
    for operation in reversed(context.graph.operations):
        arrived = [context.statistics(out, gradient=True) for out in operation.outputs if out is not None]
        if not any(arrived) or any(each is not None and each.not_finite for each in arrived):
            continue
        if any(map(context.lost, operands(operation))):
            continue  # it only passes on what the forward pass lost
        for index in operands(operation):
            known = context.lost(index, gradient=True)
            if known is not None and len(context.uses.get(index, ())) == 1:
                yield BACKWARD.found(
                    f"dJ/d{context.name(index)}",
                    f"The backward pass of {context.called(operation)} turns a finite gradient into a non-finite one; "
                    "it is the first to do so.",
                    (_count(known, f" of dJ/d{context.name(index)}"),), place=context.place(operation),
                    advice=at_zero(context, operation),
                )  # fmt: skip
                return


@FORWARD.over_time
def _forward_over_time(run: Run) -> Iterator[Finding]:
    yield from (found for _, found in _births(run, FORWARD))
    yield from _between(run, FORWARD)
    yield from _first_of_history(run)


@BACKWARD.over_time
def _backward_over_time(run: Run) -> Iterator[Finding]:
    """A GradScaler now and then tries a scale that is too large and skips that step, which is no fault."""
    skipped = {each.step for each in run.steps if each.skipped}
    for steps, found in _births(run, BACKWARD):
        left_out = set(steps) <= skipped and len(skipped) < len(run.steps) / 2
        yield replace(found, severity="note") if left_out else found
    yield from _between(run, BACKWARD)


def _births(run: Run, check: Check) -> Iterator[tuple[list[int], Finding]]:
    """For each place the steps at which it lost numbers, and the first of the gravest findings there."""
    for stretch, found in check.carried(run):
        if _follows(run, found.since):
            continue
        at = run.seen[check.id][found.where]
        steps = sorted(at)
        if steps[0] < stretch.steps[0]:  # it came before, and was gone in between
            first = min(steps, key=lambda step: (RANK[at[step].severity], step))
            again = f"It came at {len(steps)} examined steps: {listed(steps)}."
            found = replace(at[first], since=first, until=found.until, evidence=(*at[first].evidence, again))
        yield steps, found


def _follows(run: Run, since: int | None) -> bool:
    """Whether it follows from an earlier one: numbers were lost, and the loss has not been finite since."""
    births = [step for check in (FORWARD, BACKWARD) for at in run.seen.get(check.id, {}).values() for step in at]
    first = min(births + [each.step for each in run.history.noticed if each.lost], default=math.inf)
    return since is not None and since > first and not any(first < step <= since for step, _ in run.losses)


def _between(run: Run, check: Check) -> Iterator[Finding]:
    """Numbers that were lost at a step that was not watched: the step, and how to see the cause."""
    for each in run.history.noticed:
        # Without a finite loss the forward pass lost them. If the loss is unknown, so is which of the passes did.
        lost_loss = each.loss is not None and not math.isfinite(each.loss)
        of_backward = each.loss is not None and not lost_loss
        if not (each.lost or lost_loss) or (check is BACKWARD) != of_backward:
            continue
        if any(found.id in LOSSES for found in run.step_findings.get(each.step, ())) or _follows(run, each.step):
            continue  # it was run again, or parameters were lost before
        before = max((facts.step for facts in run.steps if facts.step < each.step), default=None)
        watched = f"after the watched step {before}" if before is not None else "before the first watched step"
        after = min((facts.step for facts in run.steps if facts.step > each.step), default=None)
        what = listed(each.parameters) if each.parameters else "parameters"
        yield check.found(
            f"step {each.step}",
            f"The update of step {each.step} makes {what} NaN or infinite{_at(each)}." if each.lost else
            f"The loss of step {each.step} is {number(each.loss or 0.0)}.",
            (f"It is {watched}{f' and before {after}' if after is not None else ''}, so nothing of it was recorded.",
             f"The loss was {number(each.loss)} in it." if each.loss is not None else ""),
            since=each.step, until=each.step, advice=f"Run it again with the same seed and `--every 1` to see which "
            f"operation loses them, or record the step in full: `chainrule run SCRIPT --step {each.step}`.",
        )  # fmt: skip


def _at(noticed: Noticed) -> str:
    return f" ({noticed.place})" if noticed.place else ""


ORDER: tuple[SeriesKind, ...] = ("input", "parameter", "value", "gradient", "parameter gradient", "update")
OF_UPDATE = (
    "Its gradient was finite, so the optimizer lost it. In float16 the eps=1e-8 of Adam is 0, and so are the squares "
    "of small gradients: keep the weights in float32 and compute under autocast, or give a larger eps."
)
LOST: tuple[SeriesKind, ...] = ("parameter", "parameter gradient", "update")  # the next step depends on these


def _first_of_history(run: Run) -> Iterator[Finding]:
    """From the statistics over time: the first step at which numbers were lost, if no step showed it by itself."""
    seen = [run.seen.get(check.id, {}).values() for check in (FORWARD, BACKWARD)]
    shown = [step for places in seen for at in places for step, found in at.items() if found.severity == "error"]
    step = _first_lost(run)
    if step is None or min(shown, default=math.inf) <= step:
        return
    bad = [
        (rank, series.layer, series, dict(series)[step])
        for rank, kind in enumerate(ORDER)
        for series in run.history.of_kind(kind)
        if _became_bad(series, step)
    ]
    if bad:
        rank, _, series, known = min(bad, key=lambda each: each[:2])
        yield (FORWARD if rank <= ORDER.index("value") else BACKWARD).found(
            series.name, f"The {series.kind} of {series.name} is not finite at step {step}; it is the first.",
            (_count(known),), since=step, advice=OF_UPDATE if series.kind == "update" else "",
        )  # fmt: skip


def _first_lost(run: Run) -> int | None:
    """The first step with a non-finite loss, parameter, gradient or update; other values may be so on purpose."""
    skipped = {each.step for each in run.steps if each.skipped}
    lost = {each.step for each in run.steps if each.loss is not None and not math.isfinite(each.loss)}
    for kind in LOST:
        lost |= {step for series in run.history.of_kind(kind) for step, known in series if known.not_finite}
    return min(lost - skipped, default=None)


def _became_bad(series: Series, step: int) -> bool:
    """Whether it is not finite at this step and was before; a series that never is finite is so on purpose."""
    lost = [known.not_finite > 0 for at, known in series if at <= step]
    return step in series.steps and lost[-1] and not any(lost[:-1])
