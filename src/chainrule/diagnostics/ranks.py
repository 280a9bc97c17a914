"""Faults between the ranks of a distributed training: parameters, batches or gradients that differ but should not.

These checks need the statistics of every rank, which one process has only after they were gathered
(`chainrule.distributed.gather`, or a watch). So they are not registered with `Check.in_step`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from chainrule.diagnostics.check import Check
from chainrule.diagnostics.finding import Finding, Severity, in_order, listed, plural
from chainrule.graph.comparison import FLOAT32, same_statistics
from chainrule.graph.history import RankFacts
from chainrule.graph.statistics import Statistics
from chainrule.numbers import number

DIVERGED = Check(
    "rank-diverged", "The parameters of a rank differ", "warning",
    what="A parameter of which every rank has a copy is not the same on all of them before the step.",
    why="Only gradients are averaged: copies that differ once stay different, and the mean fits none of them.",
    advice="Load checkpoints on every rank before the model is wrapped, seed all ranks alike, and change parameters "
    "only through the optimizer; wrapping the model in DistributedDataParallel again copies rank 0's to all.",
    source="PyTorch's documentation: Distributed Data Parallel", across_ranks=True)  # fmt: skip
NOT_REDUCED = Check(
    "rank-not-reduced", "A gradient was not reduced across the ranks", "warning",
    what="A parameter is the same on all ranks before the step, and its `.grad` after backward is not, nor what the "
    "optimizer uses, where no reducer is known.",
    why="Each rank takes a different step, and from then on the ranks train different models.",
    advice="Call the wrapped model (not model.module), leave no_sync() before the last backward pass of the step, and "
    "use every parameter on every rank.",
    source="PyTorch's documentation: Distributed Data Parallel", across_ranks=True)  # fmt: skip
PARTED = Check(
    "ranks-parted", "Ranks were equal and are not any more", "warning",
    what="Parameters were the same on all ranks at two watched steps in a row, or once while others that learn still "
    "are, and differ at this one, whatever reduces their gradients. If all part after the first step it is a note.",
    why="From then on each rank trains a model of its own, of which only one is saved.",
    advice="Reduce the gradient of every parameter on every rank (a layer that was added later, one that was left "
    "out), and change parameters by the optimizer alone. It is right between the exchanges of a local SGD.",
    source="Jiang et al., TrainCheck, 2025: silent errors of distributed training; Lin et al., Don't use large "
    "mini-batches, use local SGD, 2020", across_ranks=True)  # fmt: skip
UNEQUAL_BATCH = Check(
    "rank-unequal-batch", "The ranks have batches of different sizes", "warning",
    what="The ranks took different numbers of samples in this step.",
    why="The gradients of the ranks are averaged without weights, so a sample of a small batch weighs more than one "
    "of a large batch. For a single step, as at the end of an epoch, this is a note.",
    advice="Use drop_last=True in DistributedSampler, or weight each rank's loss by its share of the samples.",
    source="PyTorch's documentation: torch.utils.data.distributed.DistributedSampler", lasts=2, across_ranks=True,
)  # fmt: skip
NOT_FINITE = Check(
    "rank-not-finite", "One rank sends NaN or infinity to all", "error",
    what="The loss or a gradient of some ranks is not finite before it is combined with those of the others.",
    why="The mean is then NaN or infinity on every rank, and only the rank where it arises shows the cause.",
    advice="Look at the batch of this rank, and record its step: recording.findings() names the operation.",
    source="IEEE 754: a sum with a NaN is NaN", across_ranks=True)  # fmt: skip


def of_ranks(ranks: Sequence[RankFacts], equal: dict[str, int] | None = None) -> tuple[Finding, ...]:
    """All findings of a step that compare its ranks.

    `equal` counts, for each parameter, the steps in a row at which it was the same on all ranks; it is brought up to
    date.
    """
    parted = _parted(ranks, equal) if equal is not None else ()
    return in_order([*_not_finite(ranks), *_differing(ranks), *parted, *_unequal_batch(ranks)])


def _not_finite(ranks: Sequence[RankFacts]) -> Iterator[Finding]:
    lost = {each.rank: _lost(each) for each in ranks}
    guilty = [rank for rank, names in lost.items() if names]
    if not guilty or len(guilty) == len(ranks):
        return
    first, others = lost[guilty[0]], len(ranks) - len(guilty)
    losses = ", ".join(f"rank {each.rank} {'none' if each.loss is None else number(each.loss)}" for each in ranks)
    yield NOT_FINITE.found(
        _called(guilty),
        f"The gradients that {_called(guilty)} of {len(ranks)} sent to the others are not finite; those of the other "
        f"{plural(others, 'rank', 'ranks')} are.",
        (f"On rank {guilty[0]} of {len(first)}: {listed(first)}.", f"Losses: {losses}."), rows=guilty, size=len(ranks),
    )  # fmt: skip


def _lost(facts: RankFacts) -> list[str]:
    named = [name for name, each in facts.parameters.items() if each.local is not None and each.local.not_finite]
    return ["the loss", *named] if facts.loss is not None and not math.isfinite(facts.loss) else named


Numbers = dict[int, tuple[Statistics | None, int | None]]
"""By rank: the statistics of a tensor, and its checksum if that is known."""


def _differing(ranks: Sequence[RankFacts]) -> Iterator[Finding]:
    """Parameters that differ before the step, and gradients that differ although their parameters do not."""
    every = {each.rank: each.parameters for each in ranks}
    before = _before(ranks)
    gradients: dict[str, Numbers] = {
        name: {rank: (each[name].mean, each[name].mean_mark) for rank, each in every.items()}
        for name in before
        if not _outsiders(before[name])
    }
    diverged = {name: before[name] for name in before if any(each[name].combined for each in every.values())}
    yield from _grouped(DIVERGED, diverged, "is not the same on all ranks before the step")
    words = "was the same on all ranks before the step, and its gradient after backward is not"
    yield from _grouped(NOT_REDUCED, gradients, words)


def _parted(ranks: Sequence[RankFacts], equal: dict[str, int]) -> Iterator[Finding]:
    """Parameters that were the same on all ranks; those of a reducer are `_differing`."""
    before, every = _before(ranks), [each.parameters for each in ranks]
    now = {name for name, numbers in before.items() if not _outsiders(numbers)}
    for name in now:
        equal[name] = equal.get(name, 0) + 1
    learn_alike = any(equal[name] > 1 and every[0][name].mean is not None for name in now)
    apart: dict[Severity, dict[str, Numbers]] = {"warning": {}, "note": {}}
    for name, numbers in before.items():
        if name not in now and equal.get(name) and not any(each[name].combined for each in every):
            apart["warning" if learn_alike or equal[name] > 1 else "note"][name] = numbers
    words = "was the same on all ranks, and is not before this step"
    for severity, found in apart.items():
        yield from (replace(each, severity=severity) for each in _grouped(PARTED, found, words))


def _before(ranks: Sequence[RankFacts]) -> dict[str, Numbers]:
    """The parameters of which every rank has a copy, before the step."""
    first = ranks[0].parameters if len(ranks) > 1 else {}
    shared = (n for n in first if all(n in each.parameters and not each.parameters[n].sharded for each in ranks))
    known = {name: [(each.rank, each.parameters[name]) for each in ranks] for name in shared}
    return {name: {rank: (each.before, each.before_mark) for rank, each in of} for name, of in known.items()}


def _grouped(check: Check, found: dict[str, Numbers], words: str) -> Iterator[Finding]:
    """One finding for all parameters in which the same ranks differ from the others."""
    groups: dict[tuple[int, ...], list[str]] = {}
    for name, numbers in found.items():
        if outside := _outsiders(numbers):
            groups.setdefault(tuple(outside), []).append(name)
    for outsiders, names in groups.items():
        numbers = found[names[0]]
        norms = ", ".join(f"rank {rank} {number(each.norm)}" for rank, (each, _) in numbers.items() if each)
        count = plural(len(names), "1 parameter", f"{len(names)} parameters")
        yield check.found(
            names[0],
            f"{names[0]} {words}: {_called(outsiders)} {plural(len(outsiders), 'differs', 'differ')} from the others.",
            (f"{count}: {listed(names)}.", f"Norms: {norms}."), rows=outsiders, size=len(numbers),
        )  # fmt: skip


def _unequal_batch(ranks: Sequence[RankFacts]) -> Iterator[Finding]:
    sizes = {each.rank: each.batch for each in ranks if each.batch is not None}
    if len(sizes) < len(ranks) or len(set(sizes.values())) < 2:
        return
    usual, _ = Counter(sizes.values()).most_common(1)[0]
    others = [rank for rank, size in sizes.items() if size != usual]
    yield UNEQUAL_BATCH.found(
        _called(others),
        f"{_called(others).capitalize()} took {listed(sorted({sizes[rank] for rank in others}))} "
        f"samples in this step, the others {usual} each.",
        (", ".join(f"rank {rank}: {size}" for rank, size in sizes.items()) + ".",), rows=others, size=len(ranks),
    )  # fmt: skip


def _outsiders(numbers: Numbers) -> list[int]:
    """The ranks whose numbers differ from those of most ranks; of two that differ, the later one."""
    if all(mark is not None for _, mark in numbers.values()):
        usual, _ = Counter(mark for _, mark in numbers.values()).most_common(1)[0]
        return [rank for rank, (_, mark) in numbers.items() if mark != usual]
    known = {rank: each for rank, (each, _) in numbers.items() if each is not None}
    if len(known) < len(numbers):
        return [rank for rank in numbers if rank not in known] if known else []
    common = max(known.values(), key=lambda each: sum(_may_be_equal(each, other) for other in known.values()))
    return [rank for rank, each in known.items() if not _may_be_equal(each, common)]


def _may_be_equal(one: Statistics, other: Statistics) -> bool:
    """Whether two tensors may be equal, by their statistics."""
    if (one.elements, one.zeros, one.not_finite) != (other.elements, other.zeros, other.not_finite):
        return False
    return same_statistics(one, other, FLOAT32)


def _called(ranks: Iterable[int]) -> str:
    several = list(ranks)
    return f"rank {several[0]}" if len(several) == 1 else f"ranks {listed(several)}"
