"""Constants that work against what they are given to: options of optimizers and of norms."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from chainrule.diagnostics.check import Check
from chainrule.diagnostics.finding import Finding, listed
from chainrule.diagnostics.run_context import Run
from chainrule.diagnostics.standstill import second_moment
from chainrule.diagnostics.step_context import StepContext, argument
from chainrule.graph.snapshot import ParameterUpdate, Update
from chainrule.numbers import number
from chainrule.rules.facts import facts_of

OPTIMIZER = Check(
    "optimizer-option", "An option of the optimizer defeats it", "warning",
    what="SGD or RMSprop has a momentum of 1 or more. Or the first of Adam's betas is the larger one, and its square "
    "is too. Or the eps of an adaptive optimizer is ten times the root of most of its second moments, and is at most "
    "1e-6, or leaves updates below a ten-thousandth of the weights: a note unless it lasts since the start.",
    why="A momentum of 1 never forgets a gradient, so the weights swing ever wider. With the betas swapped Adam "
    "divides by the size of the last few gradients and moves along a mean of a thousand. An eps that is far larger "
    "than the gradients takes the place of their size.",
    advice="Usual are momentum=0.9, betas=(0.9, 0.999) and eps=1e-8.",
    source="Sutskever et al., On the importance of initialization and momentum, 2013; Kingma and Ba, Adam, 2015: "
    "beta1 squared below the root of beta2", lasts=3)  # fmt: skip
DOMINATES = 10.0  # times the root of the second moment
USUAL = 1e-6  # nobody gives so small an eps to shorten steps
HARDLY = 1e-4  # of a weight
OF_EPS = (
    "Look at what makes the gradients so small: a loss that is divided by a count twice, or a weight of the loss. "
    "Otherwise choose a smaller eps."
)


@OPTIMIZER.in_step
def _option(context: StepContext) -> Iterator[Finding]:
    for update in context.graph.updates:
        for member in update.parameters[:1]:
            if fault := _impossible(member):
                yield OPTIMIZER.found(
                    update.optimizer, f"{update.optimizer} has {fault[0]}.", fault[1],
                )  # fmt: skip
        if under := _drowned(context, update):
            member, root = under[0]
            eps = _eps(member)
            yield OPTIMIZER.found(
                update.optimizer, f"The gradients of {listed([each.name for each, _ in under])} are far smaller than "
                f"the eps of {update.optimizer}, which takes the place of their size.",
                (f"eps is {number(eps)}, and the root of the second moment of {member.name} is {number(root)}: "
                 f"a step is some {number(eps / root)} times as short as its rate says.",),
                severity="note", advice=OF_EPS,
            )  # fmt: skip


@OPTIMIZER.over_time
def _option_over_time(run: Run) -> Iterator[Finding]:
    """At the end of learning gradients are small next to any eps, so it counts from the start alone."""
    examined = sorted(run.step_findings)
    for stretch, found in OPTIMIZER.carried(run):
        from_start = stretch.steps[0] in examined[:2]  # before the first step there is no second moment
        lasts = from_start and not stretch.ended and len(stretch.steps) >= OPTIMIZER.lasts
        yield replace(found, severity="warning" if lasts else "note") if found.advice == OF_EPS else found


def _impossible(member: ParameterUpdate) -> tuple[str, str] | None:
    """What is wrong with the options of a group, and why, with the numbers."""
    momentum, betas = member.options.get("momentum"), member.options.get("betas")
    if isinstance(momentum, (int, float)) and momentum >= 1:
        return f"momentum={number(float(momentum))}", (
            f"A gradient keeps a weight of {number(float(momentum))} of itself from step to step, and never fades."
        )
    if isinstance(betas, tuple) and len(betas) == 2 and float(betas[0]) ** 2 > float(betas[1]):
        first, second = (float(each) for each in betas)
        if first < 1 and second < 1:
            return f"betas=({number(first)}, {number(second)})", (
                f"Its mean is over some {number(1 / (1 - first))} gradients, and their size over the last "
                f"{number(1 / (1 - second))}."
            )
    return None


def _drowned(context: StepContext, update: Update) -> list[tuple[ParameterUpdate, float]]:
    """Most of the parameters and the roots of their second moments, if eps takes their place and is above all."""
    roots = []
    for member in update.parameters:
        if root := second_moment(member):
            if root >= _eps(member):
                return []  # as in nearly every step: the others are not read
            roots.append((member, root))
    under = [(member, root) for member, root in roots if _is_drowned(context, member, root)]
    return under if 2 * len(under) > len(roots) else []


def _eps(member: ParameterUpdate) -> float:
    eps = member.options.get("eps")
    return float(eps) if isinstance(eps, (int, float)) else 0.0


def _is_drowned(context: StepContext, member: ParameterUpdate, root: float) -> bool:
    """Whether eps takes the place of the second moment: a usual one, or another that leaves no update to speak of."""
    eps, before, moved = _eps(member), context.cache.of(member.start), context.move(member)
    if before is None or moved is None or eps <= DOMINATES * root:
        return False
    return eps <= USUAL or moved.norm < HARDLY * before.norm


NORM = Check(
    "norm-option", "An option of a norm is far from usual", "warning",
    what="A norm in train mode has a momentum of 0, or of 0.95 or more, at three examined steps in a row, or its eps "
    "is 0.1 or more and not small next to the variance.",
    why="PyTorch's momentum is the share of the new batch: with 0 the statistics of eval mode never move from mean 0 "
    "and variance 1, and with 0.99 they are those of the last batch. A large eps takes the place of the variance.",
    advice="Usual are momentum=0.1 and eps=1e-5. A momentum of m in TensorFlow or Keras is 1 - m here; the second "
    "argument of nn.BatchNorm2d is eps, and the third is the momentum.",
    source="PyTorch's documentation of BatchNorm1d: its momentum differs from that of optimizers and of other "
    "libraries", lasts=3)  # fmt: skip
NEARLY_ALL, LARGE_EPS, SMALL_SHARE = 0.95, 0.1, 0.1


@NORM.in_step
def _norm(context: StepContext) -> Iterator[Finding]:
    seen: set[object] = set()
    for operation in context.operations_that(lambda facts: facts.normalises):
        known, given = operation.arguments, argument(operation, "self") or argument(operation, "input")
        place, facts = context.place(operation), facts_of(operation.name)
        module = context.graph.calls[operation.call].module if operation.call is not None else ""
        momentum, eps = known.get("momentum"), known.get("eps", known.get("epsilon"))
        learns = facts.uses_batch is not None and facts.uses_batch(known) and argument(operation, "running_mean")
        name = module or context.name(operation.outputs[0] or 0)
        said = ""
        if learns and isinstance(momentum, (int, float)) and (momentum == 0 or momentum >= NEARLY_ALL):
            share = "never move" if momentum == 0 else "are nearly those of the last batch alone"
            said = f"momentum={number(float(momentum))}: its running statistics {share}"
        elif isinstance(eps, float) and eps >= LARGE_EPS:
            variance = context.statistics(given)
            if variance is None or eps > SMALL_SHARE * variance.std**2:
                said = f"eps={number(eps)}, which is added to the variance"
        if said and name not in seen:
            seen.add(name)
            yield NORM.found(
                name, f"{name} has {said}.", f"It was given momentum={momentum} and eps={eps}."
                if momentum is not None else f"It was given eps={eps}.", place=place,
            )  # fmt: skip
