"""Optimizers that move nothing: updates of 0, a step without gradients, or no step at all."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from statistics import median

import torch
from torch import Tensor

from chainrule.diagnostics.check import Check
from chainrule.diagnostics.finding import Finding, Severity, listed, plural
from chainrule.diagnostics.run_context import BEGINNING, SECOND_MOMENTS, Run
from chainrule.diagnostics.step_context import StepContext, is_zero, rate_of
from chainrule.graph.graph import Graph
from chainrule.graph.snapshot import ParameterUpdate, Update, type_name
from chainrule.graph.statistics import Statistics
from chainrule.numbers import number

STUCK = Check(
    "stuck-update", "The optimizer does not move a parameter that has a gradient", "error",
    what="A parameter has a gradient, and its update is exactly 0. The numbers say why: a learning rate of 0, a step "
    "too small for the number type, or an update that was never written. An update that is not 0 is a warning, if an "
    "adaptive optimizer makes it far smaller than its learning rate, or if bfloat16 or float16 rounds nearly all of it "
    "away. In one step this is a note, and over a run where the gradient or the loss has all but vanished. A group may "
    "wait for its turn with a rate of 0 from the start while others learn: that is a note, and a warning if it still "
    "waits at the end of a watch of 100 steps.",
    why="The parameter does not learn, although backward computes what to change.",
    advice="Check the rate that the schedule sets, and that step() writes to the parameters.",
    source="Kingma and Ba, 2015, 2.1; Micikevicius et al., 2018, 3.1, for weights in half precision",
    thresholds=("stuck",), lasts=5)  # fmt: skip
REMEMBERED = 1000.0  # times the size of the gradient: a smaller second moment is not the cause
CONVERGED = 1e-3  # share of the largest gradient of the run
ROUNDING = 1e-5  # share of the largest gradient of any parameter: a bias before a norm or a difference has no other
ROUNDED = 0.95  # share of the elements with a gradient that rounding keeps in their place
OF_RATE = "Look at the schedule, which sets this rate or never raises it; freeze a parameter by requires_grad_(False)."
OF_MEMORY = "Clip gradients before they enter the optimizer's state, or reset its state."
OF_TYPE = "Keep the weights in float32 and compute in half precision (torch.autocast), or raise the rate."
OF_SMALL_STEP = "Raise the rate, or look at what makes it so small: a schedule that decays for too long, a wrong unit."
OF_WRITE = (
    "Look into step(): does it return early, write to copies of the parameters (as after .to() or deepcopy), or is "
    "its result undone afterwards?"
)
Reason = tuple[str, str, str]
"""Why an optimizer does not move a parameter, the numbers that show it, and what to try."""
ITS_TURN = 99  # steps after which a group with a rate of 0 does not wait for its turn any more
HARDLY = "hardly moved"
SMALLER = 10.0  # times as small as the rate is what an adaptive optimizer may write
NO_RATE = "its learning rate is 0"
MEMORY = "its state remembers a far larger gradient"
SHORT, TINY = "its steps are too small", "its steps are far too small"


@STUCK.in_step
def _stuck(context: StepContext) -> Iterator[Finding]:
    gradients = [known.norm for each in context.members if (known := context.gradient(each)) is not None]
    noise = ROUNDING * max(gradients, default=0.0)
    for member in context.members:
        grad, moved, before = context.gradient(member), context.move(member), context.cache.of(member.start)
        if grad is None or moved is None or before is None or not grad.norm or grad.not_finite or moved.not_finite:
            continue
        if reason := _reason(member, moved, grad, before, context.thresholds.stuck):
            why, shown, advice = reason
            if why.startswith(TINY) and grad.norm < noise:
                continue  # a bias before a norm: what rounding leaves of a gradient of 0 has nothing to move
            verb = HARDLY if moved.norm else "not moved"
            yield STUCK.found(
                member.name, f"{member.name} has a gradient, and is {verb}: {why}.",
                (f"The norm of its gradient is {number(grad.norm)}, that of its update {number(moved.norm)}, that "
                 f"of itself {number(before.norm)}; its learning rate is {number(rate_of(member))}.", shown),
                severity="note", advice=advice,
            )  # fmt: skip


@STUCK.over_time
def _stuck_for_long(run: Run) -> Iterator[Finding]:
    """At the end of learning gradients are small next to the optimizer's second moment, and that is no fault."""
    for stretch, found in STUCK.carried(run):
        lasting = len(stretch.steps) >= STUCK.lasts
        frozen = stretch.whole and _frozen_by_rate(run, found)
        waits = frozen and not (run.ended and not stretch.ended and run.steps[-1].step - run.steps[0].step >= ITS_TURN)
        quiet = run.has_learnt or _converged(run, found.where) or waits
        moves = any(HARDLY in each.sentence for each in stretch.findings)
        severity: Severity = "warning" if moves or frozen else "error"
        yield replace(found, severity=severity if lasting and not quiet else "note")


def _converged(run: Run, name: str) -> bool:
    """Whether a parameter's gradient has all but vanished, or is the rounding of what cancels: it is no fault then."""
    norms = [known.norm for _, known in run.of("parameter gradient", name)]
    others = [series.statistics[-1].norm for series in run.history.of_kind("parameter gradient")]
    # One huge gradient is no size that it has lost.
    largest = max((median(norms[first : first + STUCK.lasts]) for first in range(len(norms))), default=0.0)
    return bool(norms) and (norms[-1] < CONVERGED * largest or norms[-1] < ROUNDING * max(others))


def _frozen_by_rate(run: Run, found: Finding) -> bool:
    """Whether a group has a rate of 0 on purpose: others learn."""
    return NO_RATE in found.sentence and any(rate > 0 for each in run.steps[-1:] for rate in each.rates)


def _reason(
    member: ParameterUpdate, moved: Statistics, grad: Statistics, before: Statistics, limit: float
) -> Reason | None:
    """Why the optimizer, not a tiny gradient, keeps a parameter from moving; None if it moves."""
    rate, root, dtype = rate_of(member), math.sqrt(before.elements), member.start.dtype
    if rate == 0:
        return NO_RATE, "", OF_RATE
    if "tolerance_grad" in member.options:
        return None  # it stops by itself, as LBFGS where it has converged
    stands = moved.norm / root < limit * rate
    if stands and (memory := second_moment(member)) and grad.norm / root * REMEMBERED < memory:
        shown = f"The root of its second moment is {number(memory)} on average."
        return MEMORY, shown, OF_MEMORY
    if is_zero(moved):
        return _reason_of_zero(member, grad, before)
    stays = _stays(moved, grad)
    if dtype in (torch.float16, torch.bfloat16) and stays > ROUNDED:
        shown = f"{100 * stays:.3g} % of its elements stay as they are: {_spacing(dtype)}."
        return f"{type_name(dtype)} rounds nearly all of its steps away", shown, OF_TYPE
    return None


def _reason_of_zero(member: ParameterUpdate, grad: Statistics, before: Statistics) -> Reason:
    """Why an update is exactly 0 although there is a rate and a gradient."""
    rate, dtype, root = rate_of(member), member.start.dtype, math.sqrt(before.elements)
    adaptive = "eps" in member.options or "betas" in member.options  # its steps are about the rate
    size = rate * (1.0 if adaptive else grad.norm / root)  # of one element, in the mean
    below = SMALLER if adaptive else 1.0  # gradients that change their sign make it smaller than the rate
    if not size < below * torch.finfo(dtype).eps / 2 * before.norm / root:
        due = "" if math.isnan(size) else f"A step of about {number(size)} was due for each element."
        return "step() ran and wrote nothing", due, OF_WRITE
    shown = f"A step of about {number(size)} is lost beside weights of {number(before.norm / root)}: {_spacing(dtype)}."
    half = dtype in (torch.float16, torch.bfloat16)
    return f"{SHORT if half else TINY} for {type_name(dtype)}", shown, OF_TYPE if half else OF_SMALL_STEP


def _spacing(dtype: torch.dtype) -> str:
    return f"the spacing of {type_name(dtype)} is {torch.finfo(dtype).eps:.2g} of the number"


def _stays(moved: Statistics, grad: Statistics) -> float:
    """The share of the elements with a gradient that were not moved."""
    learning = (grad.elements - grad.zeros) / grad.elements
    return 1 - (1 - moved.zeros / moved.elements) / learning if moved.elements and learning else 0.0


def second_moment(member: ParameterUpdate) -> float | None:
    """The root of an adaptive optimizer's second moment; None for another optimizer, or before its first step."""
    state = member.state_before
    for key in SECOND_MOMENTS:
        memory = state.get(key)
        known = Statistics.of(memory) if isinstance(memory, Tensor) else None
        if known is not None and known.elements:
            step = float(state.get("step", 1))
            betas = member.options.get("betas", (0.0, float(member.options.get("alpha", 0.0))))
            grown = 1 - float(betas[1]) ** max(step, 1.0)
            return math.sqrt(max(known.mean, 0.0) / max(grown, 1e-12)) if step >= 1 else None
    return None


NOTHING_TO_STEP = Check(
    "nothing-to-step", "An optimizer steps, and none of its parameters has a gradient", "error",
    what="An optimizer's step() runs after a backward pass, and none of its parameters has a gradient: others have "
    "one, or nothing has. In one step this is a note, as another optimizer may take turns with it; over a run it "
    "lasts from one of the first watched steps on.",
    why="step() does nothing: what is trained is not what the optimizer holds.",
    advice="Make the optimizer from the parameters of the model that computes the loss, after the last deepcopy(), "
    "load, or replacement of the model or its layers.",
    source="PyTorch's documentation of torch.optim: parameters are given when the optimizer is constructed", lasts=5,
)  # fmt: skip


UNREACHED = (
    "Call backward() on the loss that was computed from the parameters: a new tensor made of its number, as by "
    "Variable(loss.data) or torch.tensor(loss), is the end of backward."
)


@NOTHING_TO_STEP.in_step
def _nothing_to_step(context: StepContext) -> Iterator[Finding]:
    graph = context.graph
    learning = [each.name for each in graph.parameters.values() if each.has_gradient]
    ran = graph.backwards if learning else () if graph.failures else graph.accumulating
    for update in graph.updates if ran else ():
        if not update.parameters or not context.is_idle(update):
            continue
        names = [member.name for member in update.parameters]
        if set(names) & set(learning):
            continue  # it had gradients, which were cleared: see `gradient-changed`
        has = plural(len(learning), "has one", "have one")
        yield NOTHING_TO_STEP.found(
            _name_of(graph, update),
            f"{update.optimizer} stepped, and none of its {len(names)} parameters has a gradient"
            + (f": {listed(learning)} {has}." if learning else "."),
            (f"It holds {listed(names)}.", f"0 of {len(learning)} parameters with a gradient are in it.")
            if learning
            else (f"It holds {listed(names)}; no parameter has a gradient after backward().",),
            place=None if learning else ran[0].place, severity="note", advice="" if learning else UNREACHED,
        )  # fmt: skip


@NOTHING_TO_STEP.over_time
def _never_anything(run: Run) -> Iterator[Finding]:
    for stretch, found in NOTHING_TO_STEP.carried(run):
        began = stretch.steps[0] in sorted(run.step_findings)[:BEGINNING]  # optimizers that take turns start in turn
        lasting = began and not stretch.ended and len(stretch.steps) >= NOTHING_TO_STEP.lasts
        yield replace(found, severity="error" if lasting else "note")


def _name_of(graph: Graph, update: Update) -> str:
    """The optimizer's class, with its number where several of them stepped."""
    kinds = {each.optimizer_number for each in graph.updates if each.optimizer == update.optimizer}
    return f"{update.optimizer} {update.optimizer_number + 1}" if len(kinds) > 1 else update.optimizer


COUNTER = Check(
    "step-counter-stands", "The step counter of an optimizer stands still", "warning",
    what="An optimizer's count of its steps is the same after each of several watched steps.",
    why="Its moments and their bias correction begin anew at each step: Adam then takes steps of the full rate along "
    "the sign of each gradient. A schedule that reads the count never moves on.",
    advice="Make the optimizer once, before the loop, and load its state once; do not copy or reset the state in it.",
    source="Kingma and Ba, 2015: the bias correction by the count of steps", lasts=5)  # fmt: skip


@COUNTER.over_time
def _counter_stands(run: Run) -> Iterator[Finding]:
    counted = [each for each in run.steps if each.counts]
    latest = counted[-1].counts if counted else ()
    for place, count in enumerate(latest):
        row = counted[len(counted) :]
        for facts in reversed(counted):
            if len(facts.counts) <= place or facts.counts[place] != count:
                break
            row = [facts, *row]
        if len(row) < COUNTER.lasts:
            continue
        before = counted[-len(row) - 1].counts[place : place + 1] if len(counted) > len(row) else ()
        if before and 0 < before[0] < count:
            continue  # it counted, and does not step any more: that of a network that was trained first
        # A new optimizer at every k-th step has the count k, too, at each watched step if k divides all gaps.
        gaps = [after.step - before.step for before, after in pairwise(row)]
        if count == 1 or any(gap % count for gap in gaps):
            yield COUNTER.found(
                f"optimizer {place + 1}",
                f"The step counter of optimizer {place + 1} stands at {count}.",
                f"It was {count} after each of {len(row)} watched steps, from step {row[0].step} to {row[-1].step}.",
                since=row[0].step,
            )


NOT_CALLED = Check(
    "step-not-called", "backward() goes on, and no optimizer steps", "error",
    what="After steps of one or a few backward passes each, many more run in training mode and no optimizer's step() "
    "is called: 20 until the watch ends, or 100 before, and 8 times as many as before any earlier step, or no step at "
    "all. Or a GradScaler has skipped each of the last 20 steps.",
    why="Gradients are computed and nothing learns from them: the parameters stay as they were.",
    advice="Call optimizer.step() after backward(), and look at the condition around it. If your own code updates the "
    "parameters, call watch.step() after it.",
    source="PyTorch's documentation of torch.optim: taking an optimization step")  # fmt: skip


ALL_SKIPPED = 20  # steps; a scale of 2^16 needs one for each halving until gradients fit
OF_SCALE = (
    "Call scaler.update() after each scaler.step(), and leave init_scale and backoff_factor as they are; if the loss "
    "is NaN, no scale helps."
)


def _skipped_at_the_end(run: Run) -> int:
    return next((count for count, each in enumerate(reversed(run.steps)) if not each.skipped), len(run.steps))


@NOT_CALLED.over_time
def _not_called(run: Run) -> Iterator[Finding]:
    if (skipped := _skipped_at_the_end(run)) >= ALL_SKIPPED:
        yield NOT_CALLED.found(
            "optimizer", f"A GradScaler skipped each of the last {skipped} steps: their gradients are not finite.",
            "" if run.steps[-1].scale is None else f"Its scale is {number(run.steps[-1].scale)}.",
            since=run.steps[-skipped].step, title="Every step is skipped", advice=OF_SCALE,
        )  # fmt: skip
    known = run.history.unstepped
    if known is not None:
        passes = plural(known.usual, "pass", "passes")
        yield NOT_CALLED.found(
            "optimizer",
            f"backward() ran {known.passes} times, and no optimizer stepped.",
            f"Until step {known.step} a step had {known.usual} backward {passes} at most." if known.usual
            else "No optimizer ever stepped, and one holds parameters with a gradient.",
            since=known.step + 1,
        )  # fmt: skip
