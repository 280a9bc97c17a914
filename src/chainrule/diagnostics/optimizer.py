"""Faults between a gradient and its parameter: which optimizer moves it, how far, and whether it moves at all."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import pairwise
from statistics import median

from chainrule.diagnostics.check import Check
from chainrule.diagnostics.finding import Finding, listed, plural
from chainrule.diagnostics.run_context import Run, is_bias
from chainrule.diagnostics.step_context import StepContext, rate_of
from chainrule.graph.snapshot import Parameter, ParameterUpdate
from chainrule.numbers import number

NOT_IN_OPTIMIZER = Check(
    "not-in-optimizer", "A parameter has a gradient, and no optimizer holds it", "warning",
    what="A parameter got a gradient, and no optimizer that stepped holds it. In one step this is a note, as another "
    "optimizer may step later (a GAN has two), unless the optimizer holds only parameters that the step did not use; "
    "over a run no optimizer ever moved it.",
    why="It does not learn, and its gradient grows for ever if only the optimizer clears gradients.",
    advice="Pass all of model.parameters() to the optimizer, after every layer was made or replaced; a plain tensor is "
    "not among them, an nn.Parameter is. If it should not learn, requires_grad_(False) also saves its gradient.",
    source="PyTorch's documentation of torch.optim: the parameters are given when the optimizer is constructed; of "
    "ModuleList: its modules are registered",
    lasts=3)  # fmt: skip
ANOTHER = "If another optimizer moves it (a GAN has two), this is right. If none does, pass it to the optimizer."
PLAIN = (
    "model.parameters() leaves out what a plain list or dict holds. If it should learn, use nn.ModuleList, ModuleDict "
    "or ParameterList; if not, requires_grad_(False) also saves its gradient."
)
MADE = (
    "Make the layer once, in `__init__`, so that an optimizer can hold it: one made in forward() is new in each step."
)


@NOT_IN_OPTIMIZER.in_step
def _not_in_optimizer(context: StepContext) -> Iterator[Finding]:
    if not context.held:
        return
    left_out: dict[str, list[str]] = {}
    for name in _left_out(context):
        left_out.setdefault(name.rpartition(".")[0] or name, []).append(name)
    stranger, strays = holds_another_model(context), replaced(context)
    for owner, names in left_out.items():
        parameters = [context.graph.parameters[name] for name in names]
        gradients = [context.gradient(parameter) for parameter in parameters]
        norm = math.hypot(*(each.norm for each in gradients if each is not None))
        if norm == 0:
            continue  # nothing depends on it, as on a tensor that only makes a checkpoint differentiable
        has = plural(len(names), "it has", "they have")
        yield NOT_IN_OPTIMIZER.found(
            owner, f"No optimizer that stepped holds {listed(names)}, and {has} a gradient.",
            (f"The norm of the gradient is {number(norm)}; the optimizers hold {len(context.held)} other parameters.",
             "This step used none of those: the optimizer was made for another model." if stranger else "",
             f"{len(strays)} of those are in no module of this step, as where a layer was replaced after the optimizer "
             "was made." if strays and not stranger else ""),
            severity="warning" if stranger else "note",
            advice="" if stranger else MADE if _made(context, parameters) else PLAIN if "[" in owner else ANOTHER,
        )  # fmt: skip


def _left_out(context: StepContext) -> list[str]:
    """The parameters of modules that have a gradient and are in no optimizer that stepped."""
    # A leaf outside all modules is data with a gradient: a penalty, an adversarial example.
    return [
        name
        for name, parameter in context.graph.parameters.items()
        if _in_a_module(context, name) and name not in context.held
        and parameter.has_gradient and parameter.value is not None
    ]  # fmt: skip


def replaced(context: StepContext) -> frozenset[str]:
    """The parameters of optimizers that no module of the step has, where others of modules are in no optimizer."""
    if not context.held or not _left_out(context):
        return frozenset()
    unused = (name for name, each in context.graph.parameters.items() if each.value is None)
    return frozenset(name for name in unused if name in context.held and not _in_a_module(context, name))


def _in_a_module(context: StepContext, name: str) -> bool:
    own = context.once("own", lambda: {each for module in context.graph.modules for each in module.parameters})
    return name in own or name.partition("@")[0] in own


def holds_another_model(context: StepContext) -> bool:
    """Whether the step used no parameter of the optimizers that stepped, and none of them has a gradient."""
    known = [(member.gradient, context.parameter(member)) for member in context.members]
    return bool(known) and all(grad is None and (each is None or each.value is None) for grad, each in known)


def _made(context: StepContext, parameters: Iterable[Parameter]) -> bool:
    """Whether the step made these parameters, and not those that the optimizer holds."""
    held = [context.graph.parameters[name] for name in context.held]
    new = [each.value is not None and context.values[each.value].operation is not None for each in parameters]
    return all(new) and any(each.value is not None and context.values[each.value].operation is None for each in held)


@NOT_IN_OPTIMIZER.over_time
def _never_in_optimizer(run: Run) -> Iterator[Finding]:
    """A parameter that moves is trained by hand or at steps that were not watched, which is a note."""
    moved = {series.name for series in run.history.of_kind("update")}
    moved |= {each.name for each in run.history.of_kind("parameter") if len({known.norm for _, known in each}) > 1}
    for found in NOT_IN_OPTIMIZER.lasting(run):
        moves = found.advice != MADE and any(_belongs(name, found.where) for name in moved)
        advice = NOT_IN_OPTIMIZER.advice if found.advice == ANOTHER and not moves else found.advice
        yield replace(found, severity="note" if moves else found.severity, advice=advice)


def _belongs(name: str, owner: str) -> bool:
    """Whether a parameter of the history belongs to this owner; its name may lack the name of the model."""
    of = name.rpartition(".")[0]
    return name == owner or of == owner or (bool(of) and owner.endswith(f".{of}"))


IN_TWO_OPTIMIZERS = Check(
    "in-two-optimizers", "A parameter is in two optimizers", "warning",
    what="Two optimizers stepped, and both hold the same parameter.",
    why="Two independent rules move it, and the second one uses a gradient at the point before the first move.",
    advice="Put each parameter in one optimizer; for different rates use the parameter groups of one optimizer.",
    source="PyTorch's documentation of torch.optim, per-parameter options")  # fmt: skip


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
        kinds = " and ".join(f"{optimizer} (rate {number(rate_of(member))})" for optimizer, member in both)
        yield IN_TWO_OPTIMIZERS.found(
            names[0] if len(names) == 1 else f"{len(names)} parameters",
            f"{listed(names)} {plural(len(names), 'is', 'are')} in {len(both)} optimizers that stepped: {kinds}.",
            [f"{name} was moved by {_distances(context, holders[name].values())}." for name in names[:2]],
        )  # fmt: skip


def _distances(context: StepContext, holders: Iterable[tuple[str, ParameterUpdate]]) -> str:
    moves = (context.move(member) for _, member in holders)
    return " and then by ".join("an unknown distance" if each is None else number(each.norm) for each in moves)


HEALTHY = "about 0.001 is healthy"
SOURCE = "Karpathy, CS231n, Neural networks part 3: the ratio of updates to weights is healthy near 1e-3"

TOO_LARGE = Check(
    "update-too-large", "Updates are too large for their weights", "warning",
    what="The norm of a weight's update over the norm of the weight, as the median over the last watched steps, is "
    "too large, and the updates so far make up most of the weight even as independent steps. A weight that begins "
    "small grows with its first updates, which point the same way. A run that goes on is judged by a full window. In "
    "one step it is a note if the ratio is above ten times that threshold. An update that is withdrawn does not count, "
    "and it is a note if the weights are changed by something else every few steps, as by Reptile.",
    why="The weight is replaced every few steps: what it learns is overwritten before it is used.",
    advice="Lower this group's rate, warm it up, or clip the gradient; or start from a larger initial weight.",
    source=SOURCE, thresholds=("update_ratio_large", "window", "enough"))  # fmt: skip


@TOO_LARGE.in_step
def _larger_than_itself(context: StepContext) -> Iterator[Finding]:
    limit = 10 * context.thresholds.update_ratio_large
    for member in context.members:
        before, moved = context.cache.of(member.start), context.move(member)
        if is_bias(member.name) or before is None or moved is None or not before.norm or moved.not_finite:
            continue
        ratio = moved.norm / before.norm
        if ratio > limit and member.before.dim() > 1:
            yield TOO_LARGE.found(
                member.name, f"The update of {member.name} is {number(ratio)} times as large as the weight itself.",
                f"The weight's norm is {number(before.norm)}, its learning rate {number(rate_of(member))}.",
                severity="note",
            )  # fmt: skip


UNDONE = 0.1  # share of the steps: an inner loop has some ten at most
MOST = 0.5  # of the square of the weight's norm
PEAK = 20.0  # times `update_ratio_large`: one such update replaces the weight, whatever comes after


@TOO_LARGE.over_time
def too_large(run: Run) -> Iterator[Finding]:
    """Weights whose updates are too large in the median, or were so once."""
    lost = any(id in run.seen for id in ("non-finite-forward", "non-finite-backward"))
    if not run.enough and not lost:
        return
    limit, window, over = run.thresholds.update_ratio_large, int(run.thresholds.window), []
    least = run.thresholds.enough if run.ended else window  # the first steps may pass
    judged = {
        name: ratios if run.began_at_its_size(name) else _grown(ratios, limit) for name, ratios in run.ratios.items()
    }
    for name, ratios in judged.items():
        if len(ratios) >= run.thresholds.enough or lost:
            whole = len(ratios) >= least
            last = median([ratio for _, ratio in ratios[len(ratios) // 2 :][-window:]]) if whole else 0.0
            peak = _lasting_peak(run, name) if run.began_at_its_size(name) else 0.0
            if last > limit and _is_overwritten(run, name):
                over.append((last, name, "in the median over the last watched steps", limit))
            elif peak > PEAK * limit:
                over.append((peak, name, "at their largest, which replaced the weight", PEAK * limit))
    if over:
        worst, name, when, bar = max(over)
        undone = run.rewritten > UNDONE
        others = listed([other for _, other, *_ in sorted(over, reverse=True)[1:]])
        yield TOO_LARGE.found(
            name, f"Updates of {name} are {number(worst)} times as large as the weight, {when}; {HEALTHY}.",
            (f"{len(over)} of {len(run.ratios)} weights are above {limit:g}{': also ' + others if others else ''}.",
             f"After {run.rewritten:.0%} of the steps something else changed the weights." if undone else "",
             run.learning_rate),
            since=next(step for step, ratio in judged[name] if ratio > bar), severity="note" if undone else "warning",
        )  # fmt: skip


def _is_overwritten(run: Run, name: str) -> bool:
    """Whether the squares of a weight's updates add up to most of its own, as in a random walk or less.

    Updates that point the same way add up to more: a weight that begins small grows with them, and loses nothing.
    """
    ratios, norms = run.ratios[name], {step: known.norm for step, known in run.history.series["parameter", name]}
    apart = (ratios[-1][0] - ratios[0][0]) / max(len(ratios) - 1, 1)  # steps between two watched ones
    return apart * sum((ratio * norms[step]) ** 2 for step, ratio in ratios) > MOST * norms[ratios[-1][0]] ** 2


def _lasting_peak(run: Run, name: str) -> float:
    """The largest ratio of an update that the weight shows at the next watched step; a search may withdraw one."""
    norms = [(step, known.norm) for step, known in run.history.series["parameter", name]]
    after = {step: later / norm for (step, norm), (_, later) in pairwise(norms) if norm}
    kept = (ratio for step, ratio in run.ratios[name] if after.get(step, 0.0) > (ratio - 1) / 2)
    return max(kept, default=0.0)


def _grown(ratios: list[tuple[int, float]], limit: float) -> list[tuple[int, float]]:
    """The ratios of a weight that began at 0, from the step at which it has a size of its own."""
    # The sum of n independent updates of one size has sqrt(n) times that size: the first ratios are large in any case.
    return [(step, ratio) for step, ratio in ratios if step - ratios[0][0] >= 1 / max(limit, 1e-9) ** 2]


TOO_SMALL = Check(
    "update-too-small", "Updates are too small for their weights", "warning",
    what="The norm of a weight's update over that of the weight is too small, even at its largest in the run.",
    why="At this pace the weight needs a million steps or more to change: it does not learn.",
    advice="Raise this group's learning rate. If only the first layers are slow, look at gradients through depth.",
    source=SOURCE, thresholds=("update_ratio_small", "enough"))  # fmt: skip


@TOO_SMALL.over_time
def _too_small(run: Run) -> Iterator[Finding]:
    limit = run.thresholds.update_ratio_small
    judged = {name: ratios for name, ratios in run.ratios.items() if len(ratios) >= run.thresholds.enough}
    largest = [(max(ratio for _, ratio in ratios), name) for name, ratios in judged.items()]
    if under := [(ratio, name) for ratio, name in largest if 0 < ratio < limit]:
        ratio, name = max(under)
        yield TOO_SMALL.found(
            name if len(under) == 1 else f"{len(under)} weights",
            f"Updates of {listed([each for _, each in under])} never reached {number(limit)} of the weight; {HEALTHY}.",
            (f"The largest was {number(ratio)}, of {name}.", run.learning_rate), since=run.ratios[name][0][0],
        )  # fmt: skip


CLIPPED = Check(
    "always-clipped", "The gradient is clipped at every step", "warning",
    what="clip_grad_norm_ shrank the gradient at nearly every watched step. It is a note if the factor is below 10, or "
    "if an adaptive optimizer divides by the gradients' size, as Adam does.",
    why="Clipping is meant for rare large gradients. At every step, it overrides the learning rate.",
    advice="Raise the limit to, say, the 90th percentile of the norms, or lower the rate by the clipping factor.",
    source="Pascanu, Mikolov and Bengio, 2013: the limit from the average norm over many updates",
    thresholds=("clipped_share", "clipped_factor", "enough"))  # fmt: skip


@CLIPPED.over_time
def _always_clipped(run: Run) -> Iterator[Finding]:
    stepped = [each for each in run.steps if not each.skipped]
    clipped = [
        (each.step, *each.clipped) for each in stepped if each.clipped and each.clipped[1] < each.clipped[0] * 0.999
    ]
    if len(stepped) < run.thresholds.enough or len(clipped) < run.thresholds.clipped_share * len(stepped):
        return
    factor = median([before / after if after else math.inf for _, before, after in clipped])
    norms, after = [before for _, before, _ in clipped], median([after for _, _, after in clipped])
    yield CLIPPED.found(
        "all gradients",
        f"The gradient was clipped at {len(clipped)} of {len(stepped)} watched steps, by a factor of {number(factor)} "
        "in the median.",
        f"Its norm before was between {number(min(norms))} and {number(max(norms))}, with a median of "
        f"{number(median(norms))}; the median after is {number(after)}.",
        severity="warning" if factor > run.thresholds.clipped_factor and not run.is_adaptive else "note",
        since=clipped[0][0],
    )  # fmt: skip
