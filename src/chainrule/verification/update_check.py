"""The proof of an update: what the formula of an optimizer gives, with the parameter after the step."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from chainrule.document import Kind
from chainrule.execution.experiment import widened
from chainrule.execution.random_rounding import RandomRounding, spread
from chainrule.graph.comparison import FLOAT32, MARGIN, Comparison, compare, dense, last_place, rounding
from chainrule.graph.graph import Graph
from chainrule.graph.snapshot import ParameterUpdate, Snapshot, Update
from chainrule.graph.trees import tensors_in
from chainrule.rules.optimizers import new_parameters, terms, without_terms

WHY = "with it a variance or a denominator may be 0, or not"


@dataclass(frozen=True, slots=True)
class UpdateCheck:
    """The check of what an optimizer's step did to one parameter."""

    parameter: str
    verdict: Kind
    reason: str = ""


def updates_of(graph: Graph) -> tuple[UpdateCheck, ...]:
    """Whether each parameter that an optimizer changed is what the terms of its update give."""
    return tuple(
        check_update(step, each) for step in graph.updates for each in step.parameters if each.gradient is not None
    )


def check_update(step: Update, update: ParameterUpdate) -> UpdateCheck:
    """Whether one parameter is what the terms of its update give."""
    if update.grad is None or not update.is_whole:
        return UpdateCheck(update.name, "not checked", "its numbers were not kept")
    found = [compare_update(*each, step.optimizer) for each in new_parameters(update, step.optimizer)]
    if not found:
        return UpdateCheck(update.name, "not checked", without_terms(update, step.optimizer))
    if not all(comparison.agrees for comparison, _ in found):
        reason = f"it is not what the formula of {step.optimizer} gives{by_hooks(step)}"
        return UpdateCheck(update.name, "disagrees", reason)
    undecided = next((reason for _, reason in found if reason), "")
    return UpdateCheck(update.name, "not checked" if undecided else "agrees", undecided)


def compare_update(new: Tensor, update: ParameterUpdate, optimizer: str) -> tuple[Comparison, str]:
    """What the terms of an update give, with the parameter after the step, each element by itself.

    The second result says why elements were left out ("": none were): where a variance or a denominator may be 0 by
    rounding alone, the step may be anything.

    Rounding allows two last places of the parameter and MARGIN of the step. Where that is not enough, since the terms
    of a step may cancel, as a momentum and a gradient do, it allows twice how far random rounding moves it. (Over all
    optimizers and settings of PyTorch the most that was met is once.) A step of 1e-24 and less is not resolved in
    float32: the order in which its factors are multiplied decides which products are subnormal.
    """
    before, after = dense(update.before), dense(update.after)
    dtype, fine = _worked_out_in(update), torch.finfo(torch.promote_types(after.dtype.to_real(), torch.float32))
    own = (new.to(before.dtype) - before).abs()
    places = 2 * last_place(torch.maximum(before.abs(), after.abs()).nan_to_num(0.0, 0.0), after.dtype.to_real())
    of_settings = max((rounding(each.dtype) for each in tensors_in(list(update.options.values()))), default=0.0)
    of_counters = _of_counters(update)
    for decay, of_factor in (("weight_decay", of_settings), ("lambd", of_counters)):
        if of_factor > rounding(after.dtype) and update.options.get(decay):  # its factor is that of a tensor
            places = places + of_factor * before.abs()
    of_step = MARGIN * max(rounding(dtype), of_settings, of_counters) * (after - before).abs()
    of_step = of_step + MARGIN * torch.where(own < fine.smallest_normal / fine.eps**2, own, 0.0)

    found = compare(new, after, 0.0, eps=0.0, slack=places + of_step)
    if found.agrees:
        return found, ""
    moved = _spread_of_step(update, optimizer)
    undecided = ~moved.isfinite() | (~after.isfinite() & (moved >= own))
    new, many = torch.where(undecided, after, new), int(undecided.sum())
    found = compare(new, after, 0.0, eps=0.0, slack=places + of_step + 2 * moved)
    return found, f"rounding alone decides the step of {many} of its elements: {WHY}" if many else ""


def by_hooks(step: Update) -> str:
    """Which hooks of the user's may have changed a parameter; "" where there are none."""
    return f"; {' and '.join(step.hooks)}, hooked on the step, may have changed it" if step.hooks else ""


def _of_counters(update: ParameterUpdate) -> float:
    """The rounding of what is counted from step to step, where that is multiplied as a tensor."""
    if not update.options.get("capturable") and not update.options.get("differentiable"):
        return 0.0
    counters = [each for each in update.state_before.values() if isinstance(each, Tensor) and not each.dim()]
    return max((rounding(each.dtype) for each in counters), default=FLOAT32)


def _spread_of_step(update: ParameterUpdate, optimizer: str) -> Tensor:
    """How far the rounding of the parameter's type, of settings that are tensors, and of counters moves the step.

    The parameter, its gradient and the rest of the state are what the optimizer read: they are not moved.
    """
    kept = {name: each for name, each in update.state_before.items() if name != "step"}
    counters = {name: each for name, each in kept.items() if _of_counters(update) and not torch.as_tensor(each).dim()}
    before, gradient, kept = widened([update.before, update.grad, kept])

    def step(rounding: RandomRounding | None, _: bool = True) -> Tensor:
        options = update.options if rounding is None else rounding.moved(update.options)
        state = kept if rounding is None else kept | widened(rounding.moved(counters))
        wide = replace(
            update, start=Snapshot.of(before), gradient=Snapshot.of(gradient), state_before=update.state_before | state,
            options=options,
        )  # fmt: skip
        with rounding if rounding is not None else nullcontext():
            return _step_of(wide, optimizer)

    still = step(None)
    shown = (_step_of(update, optimizer) - still).abs().nan_to_num(torch.inf, torch.inf)
    return torch.maximum(spread(step, _worked_out_in(update), still, None), shown).expand(update.before.shape)


def _worked_out_in(update: ParameterUpdate) -> torch.dtype:
    """The number type in which the step is worked out: a fused kernel rounds only what it stores."""
    dtype = update.before.dtype.to_real()
    return torch.promote_types(dtype, torch.float32) if update.options.get("fused") else dtype


def _step_of(update: ParameterUpdate, optimizer: str) -> Tensor:
    """The step, in float64."""
    found = terms(update, optimizer)
    assert found is not None
    value: Tensor = widened(torch.as_tensor(found[-2].value))
    return value
