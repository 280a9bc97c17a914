"""What is wrong between a gradient and its parameter: who moves it, how far, and whether it moves at all."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from statistics import median
from typing import Any

import torch
from torch import Tensor

from chainrule.diagnostics.check import Check
from chainrule.diagnostics.finding import Finding, listed
from chainrule.diagnostics.run_context import Run, is_bias
from chainrule.diagnostics.step_context import StepContext
from chainrule.graph.snapshot import ParameterUpdate
from chainrule.graph.statistics import Statistics
from chainrule.numbers import number

NOT_IN_OPTIMIZER = Check(
    "not-in-optimizer",
    title="A parameter has a gradient, and no optimizer holds it",
    severity="warning",
    what="A parameter got a gradient, and no optimizer that stepped holds it. In one step it is a note, since another "
    "optimizer may have its turn later (as of a GAN's two); over a run it never had one.",
    why="It stays as it was, and its gradient grows for ever where only the optimizer clears gradients.",
    advice="Give the optimizer all of model.parameters(), after every layer was made or replaced; where it is meant to "
    "stay, requires_grad_(False) also saves its gradient.",
    source="PyTorch's documentation of torch.optim: the parameters are given when the optimizer is constructed",
    lasts=3,
)


@NOT_IN_OPTIMIZER.in_step
def _not_in_optimizer(context: StepContext) -> Iterator[Finding]:
    if not context.held:
        return
    left_out: dict[str, list[str]] = {}
    # A leaf that is in no module is data of which the gradient is wanted: a penalty, an adversarial example.
    own = {name for module in context.graph.modules for name in module.parameters}
    for name, parameter in context.graph.parameters.items():
        known = name in own or name.partition("@")[0] in own
        if known and name not in context.held and parameter.has_gradient and parameter.value is not None:
            left_out.setdefault(name.rpartition(".")[0] or name, []).append(name)
    for owner, names in left_out.items():
        gradients = [context.gradient(context.graph.parameters[name]) for name in names]
        norm = math.hypot(*(each.norm for each in gradients if each is not None))
        yield NOT_IN_OPTIMIZER.found(
            owner,
            f"No optimizer that stepped holds {listed(names)}, and {'it has' if len(names) == 1 else 'they have'} a "
            "gradient.",
            (f"The norm of the gradient is {number(norm)}; the optimizers hold {len(context.held)} other parameters.",),
            severity="note",
        )


@NOT_IN_OPTIMIZER.over_time
def _never_in_optimizer(run: Run) -> Iterator[Finding]:
    """Only what never moves: what does is trained at steps that were not watched, or by hand."""
    moved = {series.name for series in run.history.of_kind("update")}
    moved |= {each.name for each in run.history.of_kind("parameter") if len({known.norm for _, known in each}) > 1}
    for told in NOT_IN_OPTIMIZER.lasting(run):
        turns = any(_belongs(name, told.where) for name in moved)
        yield replace(told, severity="note") if turns else told


def _belongs(name: str, owner: str) -> bool:
    """Whether a parameter of the history is of this owner, which may stand there without the model's own name."""
    of = name.rpartition(".")[0]
    return name == owner or of == owner or (bool(of) and owner.endswith(f".{of}"))


IN_TWO_OPTIMIZERS = Check(
    "in-two-optimizers",
    title="A parameter is in two optimizers",
    severity="warning",
    what="Two optimizers stepped, and both hold the same parameter.",
    why="It is moved twice, by two rules that know nothing of each other; the second one works with a gradient that "
    "belongs to where the parameter was before.",
    advice="Give each parameter to one optimizer; for different rates take parameter groups of one optimizer.",
    source="PyTorch's documentation of torch.optim, per-parameter options",
)


@IN_TWO_OPTIMIZERS.in_step
def _in_two_optimizers(context: StepContext) -> Iterator[Finding]:
    holders: dict[str, dict[int, tuple[str, ParameterUpdate]]] = {}
    for update in context.graph.updates:
        for member in update.parameters:
            known = context.parameter(member)
            if known is not None and context.gradient(member) is not None:
                holders.setdefault(known.name, {})[update.optimizer_number] = update.optimizer, member
    shared: dict[tuple[int, ...], list[str]] = {}
    for name, updates in holders.items():
        if len(updates) > 1:
            shared.setdefault(tuple(updates), []).append(name)
    for names in shared.values():
        both = holders[names[0]].values()
        kinds = " and ".join(f"{optimizer} (rate {number(_lr(member.options))})" for optimizer, member in both)
        moves = [
            " and then by ".join(_move(context, member) for _, member in holders[name].values()) for name in names[:2]
        ]
        yield IN_TWO_OPTIMIZERS.found(
            names[0] if len(names) == 1 else f"{len(names)} parameters",
            f"{listed(names)} {'is' if len(names) == 1 else 'are'} in {len(both)} optimizers that stepped: {kinds}.",
            [f"{name} was moved by {told}." for name, told in zip(names, moves, strict=False)],
        )


def _move(context: StepContext, member: ParameterUpdate) -> str:
    moved = context.move(member)
    return "an unknown distance" if moved is None else number(moved.norm)


# -- how far -----------------------------------------------------------------------------------------------------------

TOO_LARGE = Check(
    "update-too-large",
    title="Updates are too large for their weights",
    severity="warning",
    what="The norm of a weight's update over the norm of the weight: its median over the last watched steps. In one "
    "step, a note where the update is larger than ten times that threshold.",
    why="The weight is another one every few steps: what was learnt is overwritten before it can be used.",
    advice="Lower the learning rate (of this group), warm it up, or clip the gradient; a weight that began near 0 may "
    "need only a larger initialisation.",
    thresholds=("update_ratio_large", "window", "enough"),
    source="Karpathy, CS231n, Neural networks part 3: the ratio of updates to weights is healthy near 1e-3",
)


@TOO_LARGE.in_step
def _larger_than_itself(context: StepContext) -> Iterator[Finding]:
    limit = 10 * context.thresholds.update_ratio_large
    for member in _members(context):
        before, moved = context.before(member), context.move(member)
        if is_bias(member.name) or before is None or moved is None or not before.norm or moved.not_finite:
            continue
        ratio = moved.norm / before.norm
        if ratio > limit and member.before.dim() > 1:
            yield TOO_LARGE.found(
                member.name,
                f"The update of {member.name} is {number(ratio)} times as large as the weight itself.",
                (f"The weight's norm is {number(before.norm)}, its learning rate {number(_lr(member.options))}.",),
                severity="note",
            )


PEAK = 20.0  # times `update_ratio_large`: one such update replaces the weight, whatever comes after


@TOO_LARGE.over_time
def _too_large(run: Run) -> Iterator[Finding]:
    if not run.enough:
        return
    limit, window, over = run.thresholds.update_ratio_large, int(run.thresholds.window), []
    judged = {
        name: ratios if run.began_at_its_size(name) else _grown(ratios, limit) for name, ratios in run.ratios.items()
    }
    for name, ratios in judged.items():
        if len(ratios) >= run.thresholds.enough:
            last = median([ratio for _, ratio in ratios[len(ratios) // 2 :][-window:]])
            peak = max(ratio for _, ratio in ratios) if run.began_at_its_size(name) else 0.0
            if last > limit:
                over.append((last, name, "in the median over the last watched steps"))
            elif peak > PEAK * limit:
                over.append((peak, name, "at their largest, and made the weight what it is"))
    if over:
        worst, name, when = max(over)
        others = [other for _, other, _ in sorted(over, reverse=True)[1:]]
        yield TOO_LARGE.found(
            name,
            f"Updates of {name} are {number(worst)} times as large as the weight, {when}; about 0.001 is healthy.",
            (
                f"{len(over)} of {len(run.ratios)} weights are above {limit:g}"
                f"{': also ' + listed(others) if others else ''}.",
                f"Learning rate {_rates(run)}.",
            ),
            since=next(step for step, ratio in judged[name] if ratio > limit),
        )


def _grown(ratios: list[tuple[int, float]], limit: float) -> list[tuple[int, float]]:
    """The ratios of a weight that began at 0, from when it has a size of its own.

    The sum of n updates of one size, each in a direction of its own, has sqrt(n) times that size: until 1 / limit^2
    steps have gone by, the next update is larger than the limit for no other reason.
    """
    return [(step, ratio) for step, ratio in ratios if step - ratios[0][0] >= 1 / max(limit, 1e-9) ** 2]


TOO_SMALL = Check(
    "update-too-small",
    title="Updates are too small for their weights",
    severity="warning",
    what="The norm of a weight's update over the norm of the weight, at its largest in the whole run.",
    why="At this pace the weight needs a million steps and more to become another one: it does not learn.",
    advice="Raise the learning rate (of this group). Where only the first layers are so slow, look at the gradients "
    "through depth.",
    thresholds=("update_ratio_small", "enough"),
    source="Karpathy, CS231n, Neural networks part 3: the ratio of updates to weights is healthy near 1e-3",
)


@TOO_SMALL.over_time
def _too_small(run: Run) -> Iterator[Finding]:
    limit = run.thresholds.update_ratio_small
    under = []
    for name, ratios in run.ratios.items():
        largest = max(ratio for _, ratio in ratios)
        if len(ratios) >= run.thresholds.enough and 0 < largest < limit:
            under.append((largest, name))
    if under:
        largest, name = max(under)
        step = run.ratios[name][0][0]
        yield TOO_SMALL.found(
            name if len(under) == 1 else f"{len(under)} weights",
            f"Updates of {listed([each for _, each in under])} never reached {number(limit)} of the weight; about "
            "0.001 is healthy.",
            (f"The largest was {number(largest)}, of {name}.", f"Learning rate {_rates(run)}."),
            since=step,
        )


def _rates(run: Run) -> str:
    rates = next((each.rates for each in reversed(run.steps) if each.rates), ())
    return listed([number(rate) for rate in dict.fromkeys(rates)]) or "not known"


STUCK = Check(
    "stuck-update",
    title="The optimizer hardly moves a parameter that has a gradient",
    severity="warning",
    what="A parameter has a gradient, and its update is exactly 0, or, with an adaptive optimizer, far less than its "
    "learning rate. In one step it is a note; over a run it lasts.",
    why="It does not learn. The reason is in the optimizer: a rate of 0, a second moment that remembers one huge "
    "gradient for thousands of steps, or a number type too coarse for so small an update.",
    advice="Look at the rate that the schedule gives; clip gradients before they enter the optimizer's state, or begin "
    "its state anew; keep the weights in float32 where bfloat16 or float16 rounds the update away.",
    thresholds=("stuck",),
    source="Kingma and Ba, 2015, 2.1; Micikevicius et al., 2018, 3.1, for weights in half precision",
    lasts=5,
)


REMEMBERED = 1000.0  # times as large as the gradient is now: what a second moment must remember to be blamed


@STUCK.in_step
def _stuck(context: StepContext) -> Iterator[Finding]:
    for member in _members(context):
        grad, moved, before = context.gradient(member), context.move(member), context.before(member)
        if grad is None or moved is None or before is None or not grad.norm or grad.not_finite:
            continue
        root = math.sqrt(before.elements)
        reason = _reason(member, moved.norm / root, grad.norm / root, context.thresholds.stuck)
        if not reason:
            continue
        yield STUCK.found(
            member.name,
            f"{member.name} has a gradient, and is {'hardly moved' if moved.norm else 'not moved'}: {reason}.",
            (
                f"The norm of its gradient is {number(grad.norm)}, that of its update {number(moved.norm)}, that of "
                f"itself {number(before.norm)}; its learning rate is {number(_lr(member.options))}.",
                *_memory_told(member),
            ),
            severity="note",
        )


def _memory_told(member: ParameterUpdate) -> Iterator[str]:
    memory = _second_moment(member)
    if memory is not None:
        yield f"The root of its second moment is {number(memory)} on average."


@STUCK.over_time
def _stuck_for_long(run: Run) -> Iterator[Finding]:
    """What has been learnt to the end has small gradients beside what its optimizer remembers, and that is no fault."""
    learnt = bool(run.losses) and run.losses[-1][1] < LEARNT * run.first_loss
    for told in STUCK.lasting(run):
        yield replace(told, severity="note") if learnt else told


LEARNT = 0.01  # share of the loss at the start


def _reason(member: ParameterUpdate, moved: float, g: float, limit: float) -> str:
    """Why a parameter with a gradient of this size (root mean square, as `moved`) stays; "" where it does not.

    A gradient that is next to 0 itself, as that of a bias before a batch norm, is no fault of the optimizer.
    """
    rate = _lr(member.options)
    if rate == 0:
        return "its learning rate is 0"
    if not moved and member.before.dtype in (torch.float16, torch.bfloat16):
        kind = str(member.before.dtype).removeprefix("torch.")
        return f"the update is below the spacing of {kind}, {torch.finfo(member.before.dtype).eps:.2g} of the weight"
    if moved < limit * rate and (memory := _second_moment(member)) is not None and g * REMEMBERED < memory:
        return "its state remembers a gradient that was far larger"
    return ""


def _second_moment(member: ParameterUpdate) -> float | None:
    """The size of gradients that an adaptive optimizer remembers; None for one that is not, or that has just begun."""
    state = member.state_before
    for key in ("max_exp_avg_sq", "exp_avg_sq", "square_avg"):
        memory = state.get(key)
        figures = Statistics.of(memory) if isinstance(memory, Tensor) else None
        if figures is not None and figures.elements:
            step = float(state.get("step", 1))
            betas = member.options.get("betas", (0.0, float(member.options.get("alpha", 0.0))))
            grown = 1 - float(betas[1]) ** max(step, 1.0)
            return math.sqrt(max(figures.mean, 0.0) / max(grown, 1e-12)) if step >= 1 else None
    return None


def _members(context: StepContext) -> Iterator[ParameterUpdate]:
    return (member for update in context.graph.updates for member in update.parameters)


def _lr(options: dict[str, Any]) -> float:
    return float(options.get("lr", math.nan))


CLIPPED = Check(
    "always-clipped",
    title="The gradient is clipped at every step",
    severity="warning",
    what="clip_grad_norm_ made the gradient smaller at nearly every watched step. It is a note where that is by less "
    "than a factor of ten.",
    why="Clipping is there for the rare large gradient. At every step it replaces the learning rate: only the "
    "direction of the gradient counts, and the rate that was set is not the one that works.",
    advice="Raise the limit to what gradients usually are (the 90th percentile, say), or lower the learning rate by "
    "the factor that clipping takes.",
    thresholds=("clipped_share", "clipped_factor", "enough"),
    source="Pascanu, Mikolov and Bengio, 2013: the limit from the average norm over many updates",
)


@CLIPPED.over_time
def _always_clipped(run: Run) -> Iterator[Finding]:
    stepped = [each for each in run.steps if not each.skipped]
    clipped = [
        (each.step, *each.clipped) for each in stepped if each.clipped and each.clipped[1] < each.clipped[0] * 0.999
    ]
    if len(stepped) < run.thresholds.enough or len(clipped) < run.thresholds.clipped_share * len(stepped):
        return
    factor = median([before / after if after else math.inf for _, before, after in clipped])
    norms = [before for _, before, _ in clipped]
    yield CLIPPED.found(
        "all gradients",
        f"The gradient was clipped at {len(clipped)} of {len(stepped)} watched steps, by a factor of {number(factor)} "
        "in the median.",
        (
            f"Its norm before was between {number(min(norms))} and {number(max(norms))}, {number(median(norms))} in "
            f"the median; after, {number(median([after for _, _, after in clipped]))}.",
        ),
        severity="warning" if factor > run.thresholds.clipped_factor else "note",
        since=clipped[0][0],
    )
