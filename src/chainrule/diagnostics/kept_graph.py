"""A graph that a training keeps from step to step: memory and time grow, and nothing fails."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

from chainrule.diagnostics.check import Check
from chainrule.diagnostics.finding import Finding
from chainrule.diagnostics.run_context import Run
from chainrule.diagnostics.step_context import StepContext

KEPT = Check(
    "kept-graph", "The graph of earlier steps is kept", "warning",
    what="A step computes with a tensor whose autograd graph goes back through two earlier steps or more. In one step "
    "it is a note; over a run the graph goes back through more steps each time.",
    why="Memory, and the time of backward if it goes there, grow with every step until the process ends.",
    advice="Detach what is carried from step to step (h = h.detach()), and add up losses by their numbers "
    "(total += loss.item()).",
    thresholds=("kept_steps",),
    source="PyTorch's FAQ: don't accumulate history across your training loop", lasts=3,
)  # fmt: skip


@KEPT.in_step
def _kept(context: StepContext) -> Iterator[Finding]:
    known = context.graph.carried
    if known is None:
        return
    made = known.made
    names = " or ".join(filter(None, made.targets)) if made is not None else ""
    what = names or (f"what `{made.expression}` makes" if made is not None and made.expression else "a tensor")
    yield KEPT.found(
        names or "a tensor", f"The step uses {what} with its graph of {known.steps} earlier steps.",
        f"It goes back to step {known.first}.", place=made, severity="note", size=known.steps,
    )  # fmt: skip


@KEPT.over_time
def _grows(run: Run) -> Iterator[Finding]:
    """A note becomes a warning where the graph has grown at each of the last examined steps."""
    for stretch, found in KEPT.carried(run):
        sizes = [each.size for each in stretch.findings]
        last = sizes[-KEPT.lasts :]
        grown = len(last) == KEPT.lasts and all(after > before for before, after in pairwise(last))
        if grown and last[-1] >= run.thresholds.kept_steps:
            evidence = (
                f"At step {stretch.steps[0]} it was the graph of {sizes[0]}, now of {sizes[-1]}.",
                *found.evidence,
            )
            yield replace(found, severity=KEPT.severity, evidence=evidence)
        else:
            yield found
