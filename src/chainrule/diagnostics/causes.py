"""Which finding of a run caused which: the most likely cause of each, never one that came later.

`EFFECTS` has what each kind may cause, and lists causes before their effects. A cause begins before its effect, or at
the same step and before it in the list. It still holds when its effect begins, or ended shortly before. Lost numbers
cause later ones until a step begins with finite parameters. A spike of the loss causes lost numbers only if the loss
does not come down again before.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Protocol

from chainrule.diagnostics.finding import Finding
from chainrule.diagnostics.run_context import Run
from chainrule.diagnostics.standstill import MEMORY, TINY


class HasCause(Protocol):
    """A finding of `diagnostics`, or one read from the file of a run."""

    @property
    def id(self) -> str: ...  # noqa: D102
    @property
    def severity(self) -> str: ...  # noqa: D102
    @property
    def where(self) -> str: ...  # noqa: D102
    @property
    def since(self) -> int | None: ...  # noqa: D102
    @property
    def until(self) -> int | None: ...  # noqa: D102


LOST = ("non-finite-forward", "non-finite-backward")
SICK = ("loss-spike", "learning-rate-too-high", "unit-off", "saturated", "zero-gradient")
THROWN = (*SICK, "update-too-large", *LOST)
"""What follows from updates that are far too large, and of that, what follows from lost numbers too."""

LARGE = ("exploding-gradient", "always-clipped", "update-too-large", "learning-rate-too-high")
"""What follows from a gradient that is far too large."""

EFFECTS: dict[str, tuple[str, ...]] = {
    "loss-ascends": (*THROWN, "exploding-gradient"),
    "learning-rate-jump": (*THROWN, "exploding-gradient", "stuck-update", "update-too-small"),
    "scheduler-per-batch": ("learning-rate-vanished", "stuck-update", "update-too-small"),
    "learning-rate-vanished": ("stuck-update", "update-too-small"),
    "nothing-to-step": ("no-gradient", "not-in-optimizer", "accumulated-gradient"),
    "clipping-misplaced": (*LARGE, *THROWN, "gradient-changed"),
    "unscaled-loss": ("stuck-update", "update-too-small", "optimizer-option"),
    "micro-batch-scale": LARGE,
    "sum-reduction": (*LARGE, *THROWN, "zero-gradient"),
    "zero-batch": ("zero-gradient", "loss-spike"),
    "averaged-first": ("learning-rate-too-high",),
    "samples-alike": ("one-class", "learning-rate-too-high", "loss-spike"),
    "one-class": ("learning-rate-too-high", "loss-spike"),
    "rank-not-reduced": ("rank-diverged", "ranks-parted"),
    "rank-not-finite": LOST,
    "input-not-normalised": ("saturated", "unit-off", "initial-loss", *LARGE),
    "targets-scale": ("initial-loss", "exploding-gradient", "always-clipped", *THROWN),
    "targets-out-of-range": ("saturated", "unit-off", "vanishing-gradient", "zero-gradient", "unfittable-labels"),
    "cosine-axis": ("initial-loss",),
    "added-to-itself": ("no-activation",),
    "clipping-idle": (*LARGE, *THROWN, "gradient-changed"),
    "bytes-wrap": ("input-not-normalised",),
    "states-swapped": ("vanishing-gradient", "exploding-gradient"),
    "clipped-before-unscale": ("always-clipped", "update-too-small"),
    "frozen-by-name": ("no-gradient",),
    "no-activation": ("unfittable-labels",),
    "penalty-dominates": ("unfittable-labels", "vanishing-gradient", "update-too-large", "unit-off"),
    "softmax-axis": ("vanishing-gradient", "unfittable-labels"),
    "softmax-of-one": ("zero-gradient", "vanishing-gradient", "unfittable-labels"),
    "in-two-optimizers": ("update-too-large", "learning-rate-too-high"),
    "accumulated-gradient": (*LARGE, *THROWN),
    "relu-on-scores": ("unit-off", "zero-gradient", "unfittable-labels"),
    "sigmoid-before-bce": LOST,
    "softmax-before-cross-entropy": ("vanishing-gradient", "unfittable-labels"),
    "sigmoid-twice": ("vanishing-gradient", "unfittable-labels"),
    "broadcast-in-loss": ("unfittable-labels",),
    "exploding-gradient": ("always-clipped", "update-too-large", "learning-rate-too-high", "loss-spike", *LOST),
    "saturated": ("vanishing-gradient", "update-too-small"),
    "unit-off": ("vanishing-gradient", "update-too-small"),
    "vanishing-gradient": ("fp16-underflow", "update-too-small"),
    "fp16-underflow": ("stuck-update", "update-too-small"),
    "learning-rate-too-high": ("update-too-large", "loss-spike", "unit-off", "saturated", *LOST),
    "update-too-large": ("loss-spike", "unit-off", "saturated", *LOST),
    "update-too-small": ("stuck-update",),
    "loss-spike": ("unit-off", "stuck-update", *LOST),
    "non-finite-forward": (*LOST, *SICK, "backward-failed"),
    "non-finite-backward": (*LOST, *SICK, "backward-failed"),
}
"""The kinds of effects of each kind. Among several causes of one finding the kind that comes first here is taken."""

ONLY = {("update-too-small", "stuck-update"): TINY, ("loss-spike", "stuck-update"): MEMORY}
"""What the sentence of an effect says where this cause is meant."""

ORDER = {id: place for place, id in enumerate(EFFECTS)}
SHORTLY = 20  # steps after the end of a cause at which an effect may still begin


def linked(run: Run, found: Sequence[Finding], earlier: Iterable[HasCause]) -> Iterator[Finding]:
    """The findings with the cause of each, which is one of them or of the `earlier` ones."""
    candidates = [*found, *earlier]
    for effect in found:
        causes = [each for each in candidates if _may_cause(run, each, effect)]
        best = min(causes, key=lambda each: (_group(each.id), -(each.since or 0), ORDER[each.id]), default=None)
        yield effect if best is None else replace(effect, because=name_of(best))


def _group(id: str) -> int:
    return min(ORDER[id], ORDER[LOST[0]])


def name_of(finding: HasCause) -> str:
    """How `because` names a finding."""
    return f"{finding.id}: {finding.where}"


def _may_cause(run: Run, cause: HasCause, effect: Finding) -> bool:
    if effect.id not in EFFECTS.get(cause.id, ()) or cause.since is None or effect.since is None:
        return False
    if cause.severity == "note" and effect.severity != "note":
        return False
    began = (cause.since, ORDER[cause.id]) < (effect.since, ORDER.get(effect.id, len(ORDER)))
    if cause.id in LOST and effect.id in LOST:
        return began and cause.severity == "error" and not run.has_finite_parameters(cause.since, effect.since)
    if cause.id == "loss-spike" and effect.id in LOST and run.comes_down(cause.since, effect.since):
        return False
    if ONLY.get((cause.id, effect.id), "") not in effect.sentence:
        return False
    return began and (cause.until is None or effect.since <= cause.until + SHORTLY)
