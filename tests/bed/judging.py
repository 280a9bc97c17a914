"""Judges what a command said of a script, and counts."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

from tests.bed import Script
from tests.bed.running import Found, Result

NAMED, FOUND, MISSED, MISLEADING = "named", "found, not first", "missed", "misleading"
QUIET, ALARM = "quiet", "alarm"
FAILED = "failed"
NO_STEP = "no step"
GOALS = {"every=1": 0.90, "every=10": 0.75}  # the least share of causes that are named
MISLEADING_GOAL = 0.02  # the largest share of faults
ALARMS_GOAL = 2  # of healthy trainings in single steps; a watch must raise none


@dataclass(frozen=True)
class Verdict:
    """How one command did on one script."""

    script: Script
    result: Result
    outcome: str
    detail: str


def judge(script: Script, result: Result, healthy: bool = False) -> Verdict:
    """Compare what was found with what the script says of itself."""
    if re.search(r'File ".*chainrule/.*\.py"|ChainruleWarning.*(ended|failed)', result.said):
        return Verdict(script, result, FAILED, result.said.strip()[-200:])
    if not script.faulty and re.search(r"ended without a training step|\b0 of \d+ steps were watched", result.said):
        return Verdict(script, result, NO_STEP, "")  # the command says that it needs an optimizer, or gradients
    raises = not {"backward-failed", "forward-failed"}.isdisjoint([*script.ids("expect"), *script.ids("effects")])
    if result.status not in (0, 1) or (result.status == 1 and not raises):
        return Verdict(script, result, FAILED, f"status {result.status}: {result.said.strip()[-200:]}")
    above = [each for each in result.found if each.severity != "note"]
    if healthy or not script.faulty:
        return Verdict(script, result, ALARM if above else QUIET, listed(above))
    right = [each for each in result.found if each.id in script.ids("expect")]
    placed = [each for each in right if script.at_the_cause(each)]
    if above and above[0] in placed:
        return Verdict(script, result, NAMED, "")
    if placed:
        return Verdict(script, result, FOUND, listed(above) or "a note")
    # The right kind without its place, as of numbers that were lost between two watched steps, names no other cause.
    others = [each for each in above if each.id not in (*script.ids("effects"), *script.ids("expect"))]
    return Verdict(script, result, MISLEADING if others else MISSED, listed(others or above))


def listed(found: list[Found]) -> str:
    """The findings in short."""
    return ", ".join(dict.fromkeys(f"{each.id} ({each.where})" for each in found))[:160]


def report(verdicts: list[Verdict], hows: list[str], verbose: bool = False) -> str:
    """The table of all scripts and the totals against the goals."""
    lines = []
    by_script: dict[str, dict[str, Verdict]] = {}
    for each in verdicts:
        by_script.setdefault(each.script.name, {})[each.result.how] = each
    width = max(map(len, by_script), default=0)
    lines.append(f"{'':{width}} " + " ".join(f"{how:16}" for how in hows))
    for name in sorted(by_script, key=lambda name: (not by_script[name][hows[0]].script.faulty, name)):
        row = by_script[name]
        lines.append(f"{name:{width}} " + " ".join(f"{row[how].outcome:16}" for how in hows))
        for how in hows:
            if row[how].detail and row[how].outcome != NAMED:
                lines.append(f"    {how}: {row[how].detail}")
            if verbose:
                lines += [
                    f"      {each.severity} {each.id} [{each.where}] {each.place}: {each.text}"
                    for each in row[how].result.found if each.severity != "note"
                ]  # fmt: skip
        if len({row[how].result.figure for how in hows if how.startswith("every")}) > 1:
            lines.append("    the script printed another figure under each watch")
    return "\n".join([*lines, "", *totals(verdicts, hows)])


def totals(verdicts: list[Verdict], hows: list[str]) -> list[str]:
    """One line per command and kind of script, and then what falls short of its goal."""
    return [line for how in hows for line in _totals(verdicts, how)[0]] + shortfalls(verdicts, hows)


def shortfalls(verdicts: list[Verdict], hows: list[str]) -> list[str]:
    """The goals that are missed."""
    return [line for how in hows for line in _totals(verdicts, how)[1]]


def _totals(verdicts: list[Verdict], how: str) -> tuple[list[str], list[str]]:
    counts = Counter(each.outcome for each in verdicts if each.result.how == how)
    watched = how.startswith("every")
    lines, missed = [], []
    if judged := sum(counts[each] for each in (NAMED, FOUND, MISSED, MISLEADING)):
        shares = ", ".join(f"{counts[each]} {each}" for each in (NAMED, FOUND, MISSED, MISLEADING))
        named, misled = counts[NAMED] / judged, counts[MISLEADING] / judged
        lines.append(f"{how}: {judged} faults: {shares}; named {named:.0%}, misleading {misled:.0%}")
        if named < GOALS.get(how, 0):
            missed.append(f"{how}: {named:.0%} of the causes are named; the goal is {GOALS[how]:.0%}")
        if watched and misled > MISLEADING_GOAL:
            missed.append(f"{how}: {misled:.0%} are misleading; the goal is at most {MISLEADING_GOAL:.0%}")
    if healthy := counts[QUIET] + counts[ALARM]:
        lines.append(f"{how}: {healthy} healthy: {counts[ALARM]} with an alarm above a note")
        if counts[ALARM] > (goal := 0 if watched else ALARMS_GOAL):
            missed.append(f"{how}: {counts[ALARM]} healthy trainings raise an alarm; the goal is at most {goal}")
    if counts[NO_STEP]:
        lines.append(f"{how}: {counts[NO_STEP]} without an optimizer or gradients, so that the command finds no step")
    if counts[FAILED]:
        missed.append(f"{how}: {counts[FAILED]} scripts failed")
    return lines, missed
