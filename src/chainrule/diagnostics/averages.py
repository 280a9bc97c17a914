"""Copies of a network that are to follow it, as the target of a value or a teacher: whether they do, and which way."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from statistics import median

from chainrule.diagnostics.check import Check
from chainrule.diagnostics.finding import Finding
from chainrule.diagnostics.run_context import Run, is_bias
from chainrule.graph.history import Series
from chainrule.graph.statistics import Statistics
from chainrule.numbers import number

FOLLOWS = Check(
    "average-wrong", "A copy of the network does not follow it as an average does", "warning",
    what="A network that no optimizer moves began as a copy of one that is trained. Either the trained one is moved "
    "towards it at each step, while it stands still. Or at each step it takes more than half of the trained one, "
    "and not all: the factors are swapped. Or it never changed in a training of 40 watched steps or more that has "
    "ended, though its name says that it is an average (a note for a target, which may be copied now and then). "
    "Nearly each step must be watched for the first two.",
    why="A target or a teacher is a slow average of the network: it gives steady values of what was learnt. One that "
    "stands gives those of the start, and one that takes nearly all is no steadier than the network.",
    advice="Update it after each optimizer.step(), under no_grad: slow.lerp_(fast, 0.01), where slow is the copy.",
    source="Lillicrap et al., Continuous control with deep reinforcement learning, 2016, algorithm 1; Tarvainen and "
    "Valpola, Mean teachers, 2017")  # fmt: skip
FEWEST = 10  # steps with a known factor
STANDS = 40  # steps
ALIKE = 0.05  # of a factor: the largest median deviation from it
MOST = 0.998  # of the network: more is a copy
AVERAGE = re.compile(r"(?<![a-z])(ema|momentum|slow|shadow|averaged?|polyak|mean_teacher)(?![a-z])", re.IGNORECASE)
TARGET = re.compile(r"(?<![a-z])(target|tgt)(?![a-z])", re.IGNORECASE)


@FOLLOWS.over_time
def _follows(run: Run) -> Iterator[Finding]:
    pairs: dict[tuple[str, str], list[tuple[Series, Series, Series]]] = {}
    for fast, update, slow in _pairs(run):
        pairs.setdefault((_network(fast.name), _network(slow.name)), []).append((fast, update, slow))
    for (network, copy), of in pairs.items():
        found = [_of_pair(*each) for each in of if not is_bias(each[0].name)]
        stands = all(len({(each.mean, each.norm) for each in slow.statistics}) == 1 for _, _, slow in of)
        first, last = of[0][2].steps[0], of[0][2].steps[-1]
        pulled = [share for pull, _ in found if (share := _agreed(pull)) is not None and 1e-4 < share < 1]
        taken = [share for _, take in found if (share := _agreed(take)) is not None and 0.5 < share < MOST]
        if stands and pulled and 2 * len(pulled) > len(found):
            yield FOLLOWS.found(
                network, f"After each step {network} is moved towards {copy}, which stands still: the update of the "
                "copy is the wrong way round.",
                (f"It goes {number(median(pulled))} of the way to {copy}.",), since=first,
                title="The network follows its copy",
            )  # fmt: skip
        elif taken and 2 * len(taken) > len(found):
            yield FOLLOWS.found(
                copy, f"At each step {copy} takes {number(median(taken))} of {network}, and keeps "
                f"{number(1 - median(taken))} of itself: the two factors are swapped.",
                (f"It was equal to {network} at step {first}.",), since=first, title="An average keeps hardly anything",
            )  # fmt: skip
        elif stands and run.ended and last - first + 1 >= STANDS and _is_to_follow(copy):
            yield FOLLOWS.found(
                copy, f"{copy} is what it was at step {first}, a copy of {network}: it never followed it.",
                (f"None of its {len(of)} parameters changed until step {last}, the end of the training.",), since=first,
                severity=None if AVERAGE.search(copy) else "note", title="A copy of the network never follows it",
            )  # fmt: skip


def _network(name: str) -> str:
    return name.partition(".")[0]


def _is_to_follow(copy: str) -> bool:
    return AVERAGE.search(copy) is not None or TARGET.search(copy) is not None


def _pairs(run: Run) -> Iterator[tuple[Series, Series, Series]]:
    """(parameter, its update, parameter of another network with the same path that no optimizer moves).

    Both were equal at the first step, and the first one is not any more.
    """
    known = {each.name: each for each in run.history.of_kind("parameter")}
    updates = {each.name: each for each in run.history.of_kind("update")}
    still: dict[str, list[Series]] = {}
    for name, series in known.items():
        if name not in updates and "." in name:
            still.setdefault(name.partition(".")[2], []).append(series)
    for name, fast in known.items():
        for slow in still.get(name.partition(".")[2], ()) if name in updates else ():
            begun = fast.steps[:1] == slow.steps[:1] and fast.statistics[0] == slow.statistics[0]
            if begun and fast.statistics[0].std > 0 and fast.statistics[-1].norm != fast.statistics[0].norm:
                yield fast, updates[name], slow


def _of_pair(fast: Series, update: Series, slow: Series) -> tuple[list[float], list[float]]:
    """The shares, of each pair of steps in a row, by which one goes towards the other: (fast to slow, slow to fast).

    The mean of a sum is the sum of the means, so a mean goes the same share as each element.
    """
    moves, copies = dict(update), dict(slow)
    pulls, takes = [], []
    for (step, before), (following, after) in zip(fast, list(fast)[1:], strict=False):
        if following != step + 1 or not {step, following} <= copies.keys() or step not in moves:
            continue
        moved = before.mean + moves[step].mean
        pulls += _share(moved, after.mean, copies[step].mean, before)
        takes += _share(copies[step].mean, copies[following].mean, after.mean, before)
    return pulls, takes


def _share(at: float, then: float, goal: float, scale: Statistics) -> list[float]:
    """Which share of the way to a goal something went; nothing where the way is lost in rounding."""
    rounding = 1e-7 * (abs(scale.mean) + scale.std)
    return [(then - at) / (goal - at)] if abs(goal - at) > 1e2 * rounding else []


def _agreed(shares: Sequence[float]) -> float | None:
    """The share on which nearly all steps agree."""
    if len(shares) < FEWEST:
        return None
    middle = median(shares)
    return middle if median([abs(each - middle) for each in shares]) < ALIKE * abs(middle) else None
