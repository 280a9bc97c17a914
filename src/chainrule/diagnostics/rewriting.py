"""Weights that something other than their optimizer replaces while they are trained."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median

from chainrule.diagnostics.check import Check
from chainrule.diagnostics.finding import Finding, listed
from chainrule.diagnostics.run_context import Run
from chainrule.numbers import number

REPLACED = Check(
    "weights-replaced", "Something replaces the weights during the training", "warning",
    what="After some steps a weight is not what the optimizer's update made of it, while the optimizer keeps its "
    "state, and then the loss has lost half of what it had gained: twice at least, after one in five of the watched "
    "steps at most, and nearly each time. Every step must be watched.",
    why="What was learnt since is thrown away, and the optimizer goes on with the memory of other weights.",
    advice="Initialise and load weights once, before the loop. To put weights back after an evaluation keep a copy: "
    "copy.deepcopy(model.state_dict()), as state_dict() itself shares the memory of the model.",
    source="PyTorch's tutorial on saving and loading models: state_dict() returns a reference and not a copy",
)  # fmt: skip
TWICE, SHARE, NEARLY = 2, 0.2, 0.75  # times; of the steps; of the times
GAINED, LOST, RECENT = 0.05, 0.5, 3  # of the first loss; of what was gained; steps before


@REPLACED.over_time
def _replaced(run: Run) -> Iterator[Finding]:
    known = {each.step: each for each in run.steps}
    at = [step for step, changed in run.rewrites.items() if changed and step in known and step + 1 in known]
    going_on = [step for step in at if _goes_on(known[step].counts, known[step + 1].counts)]
    if len(going_on) < TWICE or len(at) > SHARE * len(run.rewrites):
        return
    losses = dict(run.watched_losses)
    shown = []
    for step in going_on:
        recent = [losses[each] for each in range(step - RECENT + 1, step + 1) if each in losses]
        if len(recent) == RECENT and step + 1 in losses:
            before, after = median(recent), losses[step + 1]
            gained = run.first_loss - before
            if gained > GAINED * abs(run.first_loss) and after - max(recent) > 0 and after - before > LOST * gained:
                shown.append((step, before, after))
    if len(shown) < max(TWICE, NEARLY * len(going_on)):
        return
    steps, (_, before, after) = [str(step) for step, *_ in shown], shown[-1]
    yield REPLACED.found(
        "weights", f"Something other than the optimizer changes the weights after step {listed(steps)}, and the loss "
        f"rises from {number(before)} to {number(after)}.",
        (f"The loss was {number(run.first_loss)} at the start.",
         "The optimizer's count of steps goes on, so it was not made anew."), since=shown[0][0] + 1,
    )  # fmt: skip


def _goes_on(before: tuple[int, ...], after: tuple[int, ...]) -> bool:
    """Whether an optimizer that counts its steps went on counting."""
    return any(late == early + 1 > 1 for early, late in zip(before, after, strict=False))
