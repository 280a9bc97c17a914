"""Where NaN and infinity come from: the first place of the forward pass, and the first of the backward pass.

A number that is not finite is *born* where an operation makes it of operands that are finite (or infinite on purpose,
as in a mask); wherever an operand was already tainted by an earlier birth it is only *passed on*. PyTorch raises
nothing in either context: the loss is NaN, and so is every parameter after the next step.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from chainrule.derivation.backprop import Derivation, NodeStep
from chainrule.derivation.contributions import aligned
from chainrule.derivation.why import element
from chainrule.diagnostics.check import Check
from chainrule.diagnostics.finding import Finding, listed
from chainrule.diagnostics.nonfinite_origin import Birth, Births, births_of, on_purpose
from chainrule.diagnostics.run_context import Run
from chainrule.diagnostics.step_context import StepContext, argument, base_of, dense, floating
from chainrule.graph.graph import Operation, Value, references
from chainrule.graph.history import Kind as SeriesKind
from chainrule.graph.history import Series
from chainrule.graph.names import Index
from chainrule.numbers import number

ADVICE = {
    "log": "Keep the operand of the logarithm above 0: clamp it, add an epsilon, or take a loss that works on logits.",
    "exp": "Subtract the largest exponent first: logsumexp, log_softmax and the losses on logits do so.",
    "div": "Keep the divisor away from 0: add a small epsilon to it, or leave those elements out before dividing.",
    "sqrt": "Keep the operand of the root above 0: add a small epsilon inside it, or clamp it before the root.",
    "softmax": "Leave at least one place of each row unmasked, or mask with a large negative number instead of -inf.",
    "mean": "There was nothing to take the mean of: look at the mask or the batch that was selected.",
    "var": "A variance needs two numbers or more: give correction=0, or look at the shape.",
    "std": "Add a small epsilon to the variance, and take its root instead of the standard deviation.",
    "norm": "Add a small epsilon inside the norm, or leave out the rows that are 0.",
}
ALIKE = {
    "log2": "log", "log10": "log", "log1p": "log", "rsqrt": "sqrt", "_softmax": "softmax", "_log_softmax": "softmax",
    "reciprocal": "div", "expm1": "exp", "linalg_vector_norm": "norm", "sinh": "exp", "cosh": "exp",
    "_safe_softmax": "softmax",
}  # fmt: skip
SIGNS = {"add": "+", "sub": "-", "mul": "*"}
OVERFLOWING = (
    "exp", "expm1", "sinh", "cosh", "add", "sub", "mul", "pow", "square", "prod", "sum", "cumsum", "mm", "bmm", "addmm",
    "_to_copy",
)  # fmt: skip
IN_RANGE = (
    "Keep its operand inside the range where the function is finite: clamp it, add an epsilon, or scale it down before."
)


FORWARD = Check(
    "non-finite-forward",
    title="A number that is not finite is born in the forward pass",
    severity="error",
    what="An operation makes NaN, or infinity, of operands that are finite; or data or a parameter held it before the "
    "step. What only hands it on is listed, not blamed. A mask of -inf is no finding.",
    why="PyTorch raises nothing: the loss is NaN, and after the next update so is every parameter.",
    advice="Keep its operand inside the range where the function is finite: clamp it, add an epsilon, or scale it down "
    "before.",
    source="IEEE 754: what 0 / 0, log of a negative number and inf - inf are",
    unfinished=True,
)
BACKWARD = Check(
    "non-finite-backward",
    title="A number that is not finite is born in the backward pass",
    severity="error",
    what="The first node that makes a gradient NaN or infinite though what arrived at it was finite, as the root of 0 "
    "does.",
    why="The loss looks fine, and the next update makes parameters NaN.",
    advice="The derivative is not finite at this point: keep the operand away from it (a small epsilon inside a square "
    "root or a logarithm, or a clamp before it rather than after it).",
    source="the derivative of the operation, and 0 * inf = NaN",
    unfinished=True,
)


@FORWARD.in_step
def _births_forward(context: StepContext) -> Iterator[Finding]:
    """The first number that is not finite, with the operands that made it."""
    history = births_of(context)
    for birth in history.first:
        yield _told(context, history, birth)


@FORWARD.in_step
def _by_statistics(context: StepContext) -> Iterator[Finding]:
    """Where numbers were not kept: the first operation that gives what is not finite of operands that all are."""
    reach = _reach_a_loss(context) if context.unfinished else None
    for operation in context.graph.operations:
        for slot, out in enumerate(operation.outputs):
            if out is None or context.graph.values[out].data is not None or (reach is not None and out not in reach):
                continue
            known = context.statistics(out)
            if known is None or not known.not_finite or on_purpose(operation, slot):
                continue
            given = [context.statistics(index) for _, _, index in references(operation.arguments)]
            if any(each is not None and each.not_finite for each in given):
                continue
            yield FORWARD.found(
                context.name(out),
                f"{context.called(operation)} makes numbers that are not finite of finite numbers, first of all.",
                (f"{known.not_finite} of {known.elements} elements of {context.name(out)}.",),
                place=context.graph.values[out].place or context.place(operation),
                severity="error"
                if _reaches_the_end(context)
                else "warning"
                if context.graph.values[out].requires_grad
                else "note",
                advice=_advice(context, operation),
            )
            return


def _reach_a_loss(context: StepContext) -> set[int]:
    """The losses that are not finite, and what they were made of."""
    lost = {loss for loss in context.losses if (known := context.statistics(loss)) is not None and known.not_finite}
    return lost | context.graph.ancestors(lost)


def _reaches_the_end(context: StepContext) -> bool:
    """Whether a loss or a parameter's gradient is not finite, by the figures."""
    losses = map(context.statistics, context.losses)
    gradients = (context.gradient(parameter) for parameter in context.graph.parameters.values())
    return any(known is not None and known.not_finite for known in (*losses, *gradients))


@BACKWARD.in_step
def _births_backward(context: StepContext) -> Iterator[Finding]:
    """The first node that makes a gradient NaN or infinite, with the operands that made it."""
    if context.derivation is not None:
        yield from _backward(context, context.derivation, births_of(context))


@BACKWARD.in_step
def _backward_by_statistics(context: StepContext) -> Iterator[Finding]:
    """Without a derivation: the first operation back from the loss whose operand's gradient is not finite, and whose
    results' gradients all are.
    """
    if (
        context.derivation is not None
        or births_of(context).births
        or _reach_a_loss(context)
        or _all_gradients_are_finite(context)
    ):
        return
    for operation in reversed(context.graph.operations):
        arrived = [context.statistics(out, gradient=True) for out in operation.outputs if out is not None]
        if not any(arrived) or any(each is not None and each.not_finite for each in arrived):
            continue
        for _, _, index in references(operation.arguments):
            known = context.statistics(index, gradient=True)
            if known is not None and known.not_finite and len(context.uses.get(index, ())) == 1:
                yield BACKWARD.found(
                    f"dJ/d{context.name(index)}",
                    f"Going back through {context.called(operation)} makes a gradient that is not finite, the first.",
                    (f"{known.not_finite} of {known.elements} elements of dJ/d{context.name(index)}.",),
                    place=context.place(operation),
                )
                return


def _all_gradients_are_finite(context: StepContext) -> bool:
    known = (value.grad_statistics for value in context.graph.values)
    lost = any(each is not None and each.not_finite for each in known)
    return not lost and context.measures.all_finite(value.grad for value in context.graph.values)


@FORWARD.over_time
def _forward_over_time(run: Run) -> Iterator[Finding]:
    for told in FORWARD.carried(run):
        if not _follows(run, told):
            yield told
    if not any(True for kind in (FORWARD, BACKWARD) for _ in run.stretches(kind.id)):
        yield from _first_of_history(run)


@BACKWARD.over_time
def _backward_over_time(run: Run) -> Iterator[Finding]:
    """A GradScaler tries a scale that is too large now and then, and leaves that step out: this is how it works."""
    skipped = {each.step for each in run.steps if each.skipped}
    for stretch, told in zip(run.stretches(BACKWARD.id), BACKWARD.carried(run), strict=True):
        left_out = set(stretch.steps) <= skipped and len(skipped) < len(run.steps) / 2
        if not _follows(run, told):
            yield replace(told, severity="note") if left_out else told


def _follows(run: Run, told: Finding) -> bool:
    """Whether it only follows from what came before: numbers were lost, and the loss has not been finite since."""
    lost = [stretch.steps[0] for kind in (FORWARD, BACKWARD) for stretch in run.stretches(kind.id)]
    first, at = min(lost), told.since
    return at is not None and at > first and not any(first < step < at for step, _ in run.losses)


ORDER: tuple[SeriesKind, ...] = ("input", "parameter", "value", "gradient", "parameter gradient", "update")
LOST: tuple[SeriesKind, ...] = ("parameter", "parameter gradient", "update")  # what the next step depends on


def _first_of_history(run: Run) -> Iterator[Finding]:
    """Of the statistics over time alone: the first step at which numbers were lost, and in it the first tensor."""
    step = _first_lost(run)
    if step is None:
        return
    bad = [
        (rank, series.layer, series, dict(series)[step])
        for rank, kind in enumerate(ORDER)
        for series in run.history.of_kind(kind)
        if _became_bad(series, step)
    ]
    if not bad:
        return
    rank, _, series, known = min(bad, key=lambda each: each[:2])
    kind = FORWARD if rank <= ORDER.index("value") else BACKWARD
    yield kind.found(
        series.name,
        f"The {series.kind} of {series.name} is not finite, the first of all, at step {step}.",
        (f"{known.not_finite} of {known.elements} elements.",),
        since=step,
    )


def _first_lost(run: Run) -> int | None:
    """The first step whose loss, or parameter or what moves it, is not finite; masks and the like may well not be."""
    skipped = {each.step for each in run.steps if each.skipped}
    lost = {each.step for each in run.steps if each.loss is not None and not math.isfinite(each.loss)}
    for kind in LOST:
        lost |= {step for series in run.history.of_kind(kind) for step, known in series if known.not_finite}
    return min(lost - skipped, default=None)


def _became_bad(series: Series, step: int) -> bool:
    """Whether it is not finite at this step, and was before: what never is is so on purpose."""
    met = [known.not_finite > 0 for at, known in series if at <= step]
    return step in series.steps and met[-1] and not any(met[:-1])


# -- forward -----------------------------------------------------------------------------------------------------------


def _told(context: StepContext, history: Births, birth: Birth) -> Finding:
    data = birth.value.data
    assert data is not None
    nan = bool(dense(data).isnan().any())
    kind = "NaN" if nan else "infinity"
    if birth.operation is None:
        at = (dense(data).isnan() if nan else ~dense(data).isfinite()).nonzero().tolist()
        name = context.name(birth.value.index)
        told = listed([element(name, tuple(place)) for place in at])
        evidence = [f"{len(at)} of {data.numel()} elements: {told}."]
        text, place = f"{name} held {kind} before the step began.", birth.value.place
        advice = "Look at the data that was loaded, or, for a parameter, at the step before this one."
    else:
        order = "first of all" if birth is history.births[0] else "and that reaches the loss"
        text = f"{context.called(birth.operation)} makes {kind} of {_made_of(context, birth.operation)}, {order}."
        evidence = list(_evidence(context, birth.operation, birth.value))
        place, advice = birth.value.place or context.place(birth.operation), _advice(context, birth.operation)
    evidence += _passed_on(context, history, birth)
    if not history.harmful:
        evidence.append("Neither a loss that a backward pass began from nor a parameter's gradient holds it.")
    return FORWARD.found(
        context.name(birth.value.index),
        text,
        evidence,
        place=place,
        severity="error" if history.harmful else "warning" if _may_harm(context, birth) else "note",
        advice=advice,
    )


def _may_harm(context: StepContext, birth: Birth) -> bool:
    """Not so where no value that wants a gradient holds it, and what uses them masks it out (positions, say)."""
    holding = (birth.value.index, *birth.passed_on)
    return any(context.graph.values[each].requires_grad or not context.uses.get(each) for each in holding)


def _made_of(context: StepContext, operation: Operation) -> str:
    known = [context.graph.values[index].data for _, _, index in references(operation.arguments)]
    return "finite numbers" if all(context.measures.finite(each) for each in known) else "numbers that are not NaN"


def _evidence(context: StepContext, operation: Operation, made: Value) -> Iterator[str]:
    """The first such element with its operands, why it is so, and how many there are."""
    assert made.data is not None
    data = dense(made.data)
    bad = data.isnan() if data.isnan().any() else ~data.isfinite()
    places = [tuple(at) for at in bad.nonzero().tolist()]
    at = places[0]
    told = f"{element(context.name(made.index), at)} = {number(data[at].item())}"
    operands = list(_operands(context, operation, at))
    yield f"{told} from {', '.join(operands)}." if operands else f"{told}."
    reason = _reason(context, operation, at, data)
    if reason:
        yield reason
    if len(places) > 1:
        yield f"{len(places)} of {data.numel()} elements are {'NaN' if data[at].isnan() else 'infinite'}."


def _operands(context: StepContext, operation: Operation, at: Index) -> Iterator[str]:
    """What stood at the same place in each operand, or, where the places don't match, its range."""
    for _, _, index in references(operation.arguments):
        value = context.graph.values[index]
        if value.data is None or not value.data.numel():
            continue
        own = aligned(at, value.shape)
        if own is not None:
            yield f"{element(context.name(index), own)} = {number(dense(value.data)[own].item())}"
        elif floating(value.data) and not value.data.is_complex():
            low, high = dense(value.data).min().item(), dense(value.data).max().item()
            yield f"{context.name(index)} between {number(low)} and {number(high)}"


def _advice(context: StepContext, operation: Operation) -> str:
    if _mean_of_nothing(context, operation):
        return ADVICE["mean"]
    base = base_of(operation).removesuffix("_")
    return ADVICE.get(ALIKE.get(base, base), IN_RANGE)


def _mean_of_nothing(context: StepContext, operation: Operation) -> str:
    """Why a loss is a mean over nothing, if it is one: all labels are ignored, or there are no predictions."""
    target = argument(operation, "target")
    labels = context.graph.values[target].data if target is not None else None
    ignored = operation.arguments.get("ignore_index")
    if ignored is not None and labels is not None and labels.numel() and bool((labels == ignored).all()):
        return f"All {labels.numel()} labels are {ignored}, which is ignored: a mean of nothing is 0 / 0."
    given = argument(operation, "self")
    if target is not None and given is not None and not math.prod(context.graph.values[given].shape):
        return f"{context.name(given)} has no elements: a mean of nothing is 0 / 0."
    return ""


def _reason(context: StepContext, operation: Operation, at: Index, made: Tensor) -> str:
    """The calculation itself, as one would write it: `log(-1.2)`, `0 / 0`, and what is the matter with it."""
    if nothing := _mean_of_nothing(context, operation):
        return nothing
    base = base_of(operation).removesuffix("_")
    numbers = _numbers(context, operation, at)
    result = made[at].item()
    limit = _overflow(result, made) if base in OVERFLOWING and "0" not in numbers else ""
    if base == "div" and len(numbers) == 2:
        return f"{numbers[0]} / {numbers[1]} is {number(result)}."
    if base in SIGNS and len(numbers) == 2:
        return f"{numbers[0]} {SIGNS[base]} {numbers[1]} is {number(result)}{limit}."
    if base in ("_softmax", "_log_softmax", "_safe_softmax"):
        return "A row that is -inf everywhere (all of it masked) has no softmax: 0 / 0."
    if base in ("mean", "var", "std", "var_mean") and math.isnan(abs(result)):
        return f"The {base.split('_')[0]} of too few numbers: 0 / 0."
    if len(numbers) == 1 or base == "pow":
        return f"{base}({', '.join(numbers)}) is {number(result)}{limit}."
    return f"T{limit[3:]}." if limit else ""


def _numbers(context: StepContext, operation: Operation, at: Index) -> list[str]:
    """The operands as numbers, tensors at this place and plain ones alike; [] where a tensor's place is not known."""
    told = []
    for name, given in operation.arguments.items():
        if name in ("alpha", "rounding_mode") or isinstance(given, (bool, str)):
            continue
        if hasattr(given, "value"):
            value = context.graph.values[given.value]
            own = aligned(at, value.shape)
            if value.data is None or own is None:
                return []
            told.append(number(dense(value.data)[own].item()))
        elif isinstance(given, (int, float)):
            told.append(number(given))
    return told


def _overflow(result: Any, made: Tensor) -> str:
    """Why a finite calculation is infinite: the number type ends before."""
    if isinstance(result, complex) or not math.isinf(result):
        return ""
    largest = torch.finfo(made.dtype).max
    return f": the largest {str(made.dtype).removeprefix('torch.')} is {largest:.3g}"


def _passed_on(context: StepContext, history: Births, birth: Birth) -> Iterator[str]:
    """What only handed it on, as far as the loss."""
    loss = next((each for each in history.bad_losses if history.of.get(each, birth) is birth), None)
    others = [each for each in birth.passed_on if each != loss]
    if others:
        names = list(dict.fromkeys(context.name(each) for each in others))
        yield f"Passed on, not made, by what came after: {listed(names)}."
    if loss is not None:
        yield _reached(context, loss)


def _reached(context: StepContext, loss: int) -> str:
    """That it came as far as the loss; or, where an unfinished step has none yet, as far as the step did."""
    name, data = context.name(loss), context.graph.values[loss].data
    if not context.is_loss(loss):
        return f"The step came as far as {name}, which holds it."
    told = "holds it"
    if data is not None and data.numel() == 1:
        told = f"is {number(dense(data).reshape(-1)[0].item())}"
    return f"The loss {name} {told}, and PyTorch raises nothing."


# -- backward ----------------------------------------------------------------------------------------------------------


def _backward(context: StepContext, derivation: Derivation, history: Births) -> Iterator[Finding]:
    """The first node that makes a gradient NaN or infinite while what arrived at it was finite."""
    fed = {edge.node for node in context.graph.nodes if node.executions for edge in node.edges}
    for step in derivation.nodes:
        if not all(context.measures.finite(g) for g in step.upstream):
            if step.node not in fed or _added_up(context, derivation, step):
                yield _arrived(context, step, seed=step.node not in fed)
                return
            continue
        if step.operation is None or _inherits(context, history, step):
            continue
        for share in step.shares:
            sent = share.gradient if share.recorded is None else share.recorded
            if share.value is None or sent is None or context.measures.finite(sent):
                continue
            yield _gradient_born(context, step, context.graph.values[share.value], dense(sent))
            return


def _inherits(context: StepContext, history: Births, step: NodeStep) -> bool:
    """Whether the forward pass made it: a tainted operand or output, and a loss that is not finite for it."""
    if not history.bad_losses or step.operation is None:
        return False
    operation = context.graph.operations[step.operation]
    near = [index for _, _, index in references(operation.arguments)] + [o for o in operation.outputs if o is not None]
    return any(index in history.of for index in near)


def _added_up(context: StepContext, derivation: Derivation, step: NodeStep) -> bool:
    """Whether every share that arrived was finite, so that only their sum is not."""
    shares = [
        share.recorded if share.recorded is not None else share.gradient
        for other in derivation.nodes
        if other.backward == step.backward
        for share, edge in zip(other.shares, context.graph.nodes[other.node].edges, strict=True)
        if edge.node == step.node
    ]
    return all(context.measures.finite(each) for each in shares)


def _arrived(context: StepContext, step: NodeStep, *, seed: bool) -> Finding:
    node = context.graph.nodes[step.node]
    slot = next(slot for slot, g in enumerate(step.upstream) if not context.measures.finite(g))
    value = node.outputs[slot] if slot < len(node.outputs) else None
    name = "dJ/d" + (context.name(value) if value is not None else node.name)
    data = step.upstream[slot]
    assert data is not None
    at = tuple((~dense(data).isfinite()).nonzero()[0].tolist())
    text = (
        "The gradient that the backward pass was begun with is not finite."
        if seed
        else "Finite gradients from several uses add up to a number that is not finite."
    )
    advice = (
        "Look at what was given to backward(): a loss scale that is too large, or a gradient made elsewhere."
        if seed
        else "Scale the loss down, or use a number type with a larger range."
    )
    evidence = (f"{element(name, at)} = {number(dense(data)[at].item())}.",)
    return BACKWARD.found(name, text, evidence, place=node.place, advice=advice)


def _gradient_born(context: StepContext, step: NodeStep, value: Value, sent: Tensor) -> Finding:
    assert step.operation is not None
    operation = context.graph.operations[step.operation]
    kind = "NaN" if sent.isnan().any() else "infinity"
    name = context.called(operation)
    return BACKWARD.found(
        f"dJ/d{context.name(value.index)}",
        f"Going back through {name} makes {kind} of finite gradients, the first.",
        _gradient_evidence(context, step, operation, value, sent),
        place=context.graph.nodes[step.node].place,
    )


def _gradient_evidence(
    context: StepContext, step: NodeStep, operation: Operation, value: Value, sent: Tensor
) -> Iterator[str]:
    places = [tuple(at) for at in (~sent.isfinite()).nonzero().tolist()]
    at = places[0]
    gradient = f"dJ/d{element(context.name(value.index), at)} = {number(sent[at].item())}"
    told = []
    if value.data is not None and value.data.shape == sent.shape:
        told.append(f"{element(context.name(value.index), at)} = {number(dense(value.data)[at].item())}")
    stopped = False
    for _, _, index in references(operation.arguments):
        other, own = context.graph.values[index], aligned(at, context.graph.values[index].shape)
        if index != value.index and other.data is not None and own is not None and other.data.numel():
            told.append(f"{element(context.name(index), own)} = {number(dense(other.data)[own].item())}")
    for g, out in zip(step.upstream, operation.outputs, strict=False):
        if g is None or out is None:
            continue
        own = aligned(at, tuple(g.shape)) if g.shape != sent.shape else at
        if own is not None:
            told.append(f"dJ/d{element(context.name(out), own)} = {number(dense(g)[own].item())}")
            stopped = bool(dense(g)[own] == 0)
    yield f"{gradient}{', where ' + ' and '.join(told) if told else ''}."
    if stopped:
        yield (
            "Nothing was to flow back here, but 0 times infinity is NaN: choose the operand before this operation (as "
            "with torch.where on the input), not the result after it."
        )
    if len(places) > 1:
        yield f"{len(places)} of {sent.numel()} elements are not finite."
