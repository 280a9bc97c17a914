"""What differs between the ranks of a distributed training that ought not to: parameters, batches, gradients.

These checks ask the figures of every rank, which one process has only where they were gathered
(`chainrule.distributed.gather`, or a watch): they stand beside those of one step (`Check.in_step`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence

from chainrule.diagnostics.check import Check
from chainrule.diagnostics.finding import Finding, in_order, listed
from chainrule.graph.comparison import FLOAT32, same_statistics
from chainrule.graph.history import RankFacts, RankParameter
from chainrule.graph.statistics import Statistics
from chainrule.numbers import number

DIVERGED = Check(
    "rank-diverged",
    title="The parameters of a rank differ",
    severity="warning",
    what="A parameter that every rank holds a copy of is not the same on all of them before the step.",
    why="Data-parallel training averages gradients, never parameters: copies that differ once stay apart, and the mean "
    "gradient belongs to none of them.",
    advice="Load checkpoints on every rank before the model is wrapped, seed all ranks alike, and change parameters "
    "only through the optimizer; wrapping the model in DistributedDataParallel again copies rank 0's to all.",
    source="PyTorch's documentation: Distributed Data Parallel",
    across_ranks=True,
)

NOT_REDUCED = Check(
    "rank-not-reduced",
    title="A gradient was not made one over the ranks",
    severity="warning",
    what="A parameter is the same on all ranks before the step, and its `.grad` after backward is not.",
    why="Each rank takes another step, and from there on the ranks train different models.",
    advice="Call the wrapped model (not model.module), leave no_sync() before the last backward pass of the step, and "
    "use every parameter on every rank.",
    source="PyTorch's documentation: Distributed Data Parallel",
    across_ranks=True,
)

UNEQUAL_BATCH = Check(
    "rank-unequal-batch",
    title="The ranks have batches of different sizes",
    severity="warning",
    what="Not every rank took the same number of samples in this step.",
    why="The gradients of the ranks are averaged as they are: a sample of a small batch weighs more than one of a "
    "large batch. It is a note for a single step, as at the end of an epoch.",
    advice="Give DistributedSampler drop_last=True, or weight each rank's loss by its share of the samples.",
    source="PyTorch's documentation: torch.utils.data.distributed.DistributedSampler",
    lasts=2,
    across_ranks=True,
)

NOT_FINITE = Check(
    "rank-not-finite",
    title="One rank sends NaN or infinity to all",
    severity="error",
    what="The loss or a gradient is not finite on some of the ranks before it is combined with that of the others.",
    why="The mean of all gradients is then NaN or infinity on every rank, and the cause can only be found on the one "
    "where it was born.",
    advice="Look at the batch of this rank: record the step there (chainrule.record), and recording.findings() names "
    "the operation.",
    source="IEEE 754: a sum with a NaN is NaN",
    across_ranks=True,
)


def of_ranks(ranks: Sequence[RankFacts]) -> tuple[Finding, ...]:
    """All findings that hold the ranks of one step against each other."""
    return in_order([*_not_finite(ranks), *_diverged(ranks), *_not_reduced(ranks), *_unequal_batch(ranks)])


def _not_finite(ranks: Sequence[RankFacts]) -> Iterator[Finding]:
    lost = {each.rank: _lost(each) for each in ranks}
    guilty = [rank for rank, names in lost.items() if names]
    if not guilty or len(guilty) == len(ranks):
        return
    first = lost[guilty[0]]
    yield NOT_FINITE.found(
        _called(guilty),
        f"The gradients that {_called(guilty)} of {len(ranks)} sent to the others are not finite; those of the other "
        f"{_plural(len(ranks) - len(guilty), 'rank', 'ranks')} are.",
        (f"On rank {guilty[0]} of {len(first)}: {listed(first)}.", _losses(ranks)),
        rows=guilty,
        size=len(ranks),
    )


def _lost(facts: RankFacts) -> list[str]:
    named = [name for name, each in facts.parameters.items() if each.local is not None and each.local.not_finite]
    return ["the loss", *named] if facts.loss is not None and not math.isfinite(facts.loss) else named


def _diverged(ranks: Sequence[RankFacts]) -> Iterator[Finding]:
    found = {}
    for name in _shared(ranks):
        if any(each.parameters[name].combined for each in ranks):
            outside = _outsiders(ranks, name, lambda each: each.before, lambda each: each.before_mark)
            if outside:
                found[name] = outside
    yield from _told(DIVERGED, ranks, found, "is not the same on all ranks before the step", lambda each: each.before)


def _not_reduced(ranks: Sequence[RankFacts]) -> Iterator[Finding]:
    found = {}
    for name in _shared(ranks):
        if _outsiders(ranks, name, lambda each: each.before, lambda each: each.before_mark):
            continue
        outside = _outsiders(ranks, name, lambda each: each.mean, lambda each: each.mean_mark)
        if outside:
            found[name] = outside
    words = "was the same on all ranks before the step, and its gradient after backward is not"
    yield from _told(NOT_REDUCED, ranks, found, words, lambda each: each.mean)


def _told(
    kind: Check,
    ranks: Sequence[RankFacts],
    found: dict[str, list[int]],
    words: str,
    figures: Callable[[RankParameter], Statistics | None],
) -> Iterator[Finding]:
    """One finding for all parameters in which the same ranks stand apart."""
    groups: dict[tuple[int, ...], list[str]] = {}
    for name, outside in found.items():
        groups.setdefault(tuple(outside), []).append(name)
    for apart_from_others, names in groups.items():
        outside = list(apart_from_others)
        norms = [figures(each.parameters[names[0]]) for each in ranks]
        told = ", ".join(f"rank {each.rank} {number(n.norm)}" for each, n in zip(ranks, norms, strict=True) if n)
        apart = f"{_called(outside)} {_plural(len(outside), 'stands', 'stand')} apart"
        yield kind.found(
            names[0],
            f"{names[0]} {words}: {apart}.",
            (f"{_plural(len(names), '1 parameter', f'{len(names)} parameters')}: {listed(names)}.", f"Norms: {told}."),
            rows=outside,
            size=len(ranks),
        )


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
        (", ".join(f"rank {rank}: {size}" for rank, size in sizes.items()) + ".",),
        rows=others,
        size=len(ranks),
    )


def _shared(ranks: Sequence[RankFacts]) -> list[str]:
    """The parameters that every rank holds a copy of."""
    return [
        name
        for name in (ranks[0].parameters if len(ranks) > 1 else ())
        if all(name in each.parameters and not each.parameters[name].sharded for each in ranks)
    ]


def _outsiders(
    ranks: Sequence[RankFacts],
    name: str,
    figures: Callable[[RankParameter], Statistics | None],
    mark: Callable[[RankParameter], int | None],
) -> list[int]:
    """The ranks whose numbers are not those that most ranks have; of two that differ, the later one."""
    marks = [mark(each.parameters[name]) for each in ranks]
    known = [figures(each.parameters[name]) for each in ranks]
    if all(each is not None for each in marks):
        usual, _ = Counter(marks).most_common(1)[0]
        return [each.rank for each, own in zip(ranks, marks, strict=True) if own != usual]
    there = [each for each in known if each is not None]
    if len(there) < len(ranks):
        return [each.rank for each, own in zip(ranks, known, strict=True) if own is None] if there else []
    alike = [sum(_alike(each, other) for other in there) for each in there]
    usual_one = there[alike.index(max(alike))]
    return [each.rank for each, own in zip(ranks, there, strict=True) if not _alike(own, usual_one)]


def _alike(one: Statistics, other: Statistics) -> bool:
    """Whether these may be the figures of equal tensors."""
    if (one.elements, one.zeros, one.not_finite) != (other.elements, other.zeros, other.not_finite):
        return False
    return same_statistics(one, other, FLOAT32)


def _losses(ranks: Sequence[RankFacts]) -> str:
    told = (f"rank {each.rank} {'none' if each.loss is None else number(each.loss)}" for each in ranks)
    return f"Losses: {', '.join(told)}."


def _called(ranks: Iterable[int]) -> str:
    several = list(ranks)
    return f"rank {several[0]}" if len(several) == 1 else f"ranks {listed(several)}"


def _plural(count: int, one: str, many: str) -> str:
    return one if count == 1 else many
