"""What is wrong with a user's wrong backward, where it can be recognised: each kind of mistake is tried to be mended.

A mistake is named only where the mended gradient agrees with the differences at the recorded point, with another
upstream gradient, and at a point nearby. Simple mistakes are tried before intricate ones; where nothing agrees the
answer is that it was not recognised.
"""

from __future__ import annotations

from dataclasses import dataclass

from chainrule.execution.experiment import Experiment
from chainrule.execution.function_trace import LARGEST, Trial, trials
from chainrule.verification.differences import Finding
from chainrule.verification.repair.mending import Mistake
from chainrule.verification.repair.missing import missing_others, missing_product, missing_use
from chainrule.verification.repair.steps import edited, summed
from chainrule.verification.repair.whole import anew, flat, moved, padded, scaled, swapped

_ATTEMPTS = (
    anew, flat, scaled, swapped, moved, summed, edited, missing_use, missing_others, missing_product, padded
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Repair:
    """What is wrong with the gradient of one argument, in words, found by mending it."""

    kind: Mistake
    argument: str
    text: str


def recognise(experiment: Experiment, findings: list[Finding]) -> tuple[Repair, ...]:
    """For each argument whose gradient is wrong, what is wrong with it."""
    wrong = [finding for finding in findings if finding.off and not finding.missing]
    edges = [finding.edge for finding in findings if not finding.missing and finding.edge.argument is not None]
    if not wrong:
        return ()
    points: list[Trial] = []
    if all(finding.got.numel() <= LARGEST for finding in wrong):
        try:
            points = list(trials(experiment, edges))
        except Exception:  # a user's code may do anything when it runs again
            points = []
    return tuple(_recognised(points, finding, wrong) for finding in wrong)


def _recognised(points: list[Trial], finding: Finding, wrong: list[Finding]) -> Repair:
    if points:
        for attempt in _ATTEMPTS:
            try:
                found = next(attempt(points, finding, wrong), None)
            except Exception:  # an attempt that cannot be made is none
                continue
            if found is not None:
                return Repair(found[0], finding.label, found[1])
    return Repair(
        "not recognised", finding.label, f"what is wrong with the gradient of `{finding.label}` was not recognised"
    )
