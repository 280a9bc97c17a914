"""How far the thresholds are from the healthy runs, and from the faults: `python -m tests.bed.loops.margins`.

All thresholds are made stricter at once by a factor, and what is then found in the healthy runs is counted by its id;
then they are made more lenient, and the faults that are no longer found are listed.
"""

from __future__ import annotations

import sys
import warnings
from collections import Counter
from dataclasses import fields

import torch

from chainrule.diagnostics import Thresholds
from tests.bed.loops import FAULTS, HEALTHY, watched

ALARM_BELOW = {
    "flat",
    "depth_ratio",
    "noise",
    "update_ratio_small",
    "stuck",
    "plateau",
    "same",
    "input_small",
}  # the rest: above it
SHARES = {"units_off", "units_dead", "tiny", "clipped_share", "loss_swing"}  # at most 1
NOT_SCALED = {"window", "enough", "accumulated"}


def stricter(factor: float) -> Thresholds:
    """Every threshold nearer to what is healthy, by a factor (below 1: further from it)."""
    changed = {}
    for each in fields(Thresholds):
        known = float(each.default)  # type: ignore[arg-type]
        if each.name in ALARM_BELOW:
            changed[each.name] = known * factor
        elif each.name == "loss_rise":
            changed[each.name] = 1 + (known - 1) / factor
        elif each.name in SHARES:
            changed[each.name] = min(known / factor, 1 - (1 - known) * factor) if factor < 1 else known / factor
        elif each.name not in NOT_SCALED:
            changed[each.name] = known / factor
    return Thresholds(**changed)


def alarms(factor: float) -> Counter[str]:
    """What is found above a note in the healthy runs, by its id: in how many runs."""
    found: Counter[str] = Counter()
    for script in HEALTHY.values():
        torch.manual_seed(0)
        watch = watched(script, every=2, full_every=20, thresholds=stricter(factor))
        found.update({finding.id for finding in watch.findings if finding.severity != "note"})
    return found


def missed(factor: float) -> list[str]:
    """The faults that are no longer found with thresholds that are more lenient by a factor."""
    gone = []
    for name, (id, script, steps) in FAULTS.items():
        torch.manual_seed(0)
        watch = watched(script, steps, full_every=10, thresholds=stricter(1 / factor))
        if id not in {finding.id for finding in watch.findings}:
            gone.append(f"{name} ({id})")
    return gone


if __name__ == "__main__":
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    for factor in map(float, sys.argv[1:] or ("1.5", "2", "3")):
        print(
            f"stricter by {factor:g}: alarms in {len(HEALTHY)} healthy runs: {dict(alarms(factor)) or 'none'}",
            flush=True,
        )
        print(f"more lenient by {factor:g}: missed of {len(FAULTS)} faults: {missed(factor) or 'none'}", flush=True)
