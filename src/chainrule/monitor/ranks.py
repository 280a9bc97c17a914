"""The ranks of a distributed training that watch it together: their statistics become those of one step.

The joined step is the one of a single process with all samples in one batch, whose loss is the mean of the ranks'
losses. Values are pooled. Gradients of values are divided by the number of ranks, as the mean of the losses divides
them. Parameters, their gradients, updates and moments are equal on all ranks, or shards of one tensor.

The training waits for none of this: each rank hands over its part of a watched step and goes on, and rank 0 stores the
step once all parts are there (`rank_exchange`). From the first step that a rank does not send, rank 0 goes on alone.
"""

from __future__ import annotations

import json
import math
import os
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from time import monotonic
from typing import TYPE_CHECKING, Any

from torch import distributed as dist

from chainrule.diagnostics.ranks import of_ranks
from chainrule.graph.history import Kind, RankFacts, RankParameter, StepFacts, joined
from chainrule.graph.statistics import Statistics
from chainrule.monitor.rank_exchange import Expected, Inbox, Outbox, now
from chainrule.monitor.runs import Figure
from chainrule.monitor.step_series import divided

if TYPE_CHECKING:
    from chainrule.diagnostics import Finding

REPLICATED = frozenset({"parameter", "parameter gradient", "update", "moment"})  # equal on all ranks unless sharded


@dataclass(frozen=True, slots=True)
class Step:
    """A watched step: its facts and statistics, of this rank or joined over all, and the findings in it by itself."""

    facts: StepFacts
    figures: list[Figure]
    found: Sequence[Finding] = ()


@dataclass(frozen=True, slots=True)
class _Sent:
    """What a rank sends to rank 0."""

    facts: StepFacts
    statistics: dict[tuple[Kind, str], Statistics]
    rank: RankFacts

    @classmethod
    def of(cls, step: Step, rank: RankFacts) -> _Sent:
        return cls(step.facts, {(each.kind, each.name): each.statistics for each in step.figures}, rank)

    def pack(self) -> str:
        """As JSON, exact to the bit: what a rank reads from the store is data, never code."""
        statistics = [(*key, asdict(each)) for key, each in self.statistics.items()]
        return json.dumps([asdict(self.facts), statistics, asdict(self.rank)])

    @classmethod
    def unpack(cls, text: str) -> _Sent:
        """The inverse of `pack`."""
        facts, statistics, rank = json.loads(text)
        parameters = {name: RankParameter(**_unpacked(each)) for name, each in rank["parameters"].items()}
        return cls(
            StepFacts(**_unpacked(facts)),
            {(kind, name): Statistics(**_unpacked(each)) for kind, name, each in statistics},
            RankFacts(**{**rank, "parameters": parameters}),
        )


def _unpacked(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields of a dataclass as they were before JSON: lists were tuples, and objects are statistics."""
    kinds: dict[type, Callable[[Any], Any]] = {list: tuple, dict: lambda each: Statistics(**_unpacked(each))}
    return {name: kinds.get(type(each), lambda same: same)(each) for name, each in fields.items()}


class _Waiting:
    """A step on its way to the file: `step` is that of this rank until the parts of the others are there."""

    def __init__(self, step: Step) -> None:
        self.step, self.complete = step, False
        self.expected: Expected | None = None


class WatchingRanks:
    """The ranks that watch. `active` from the first watched step to the end, if there are several.

    A step is `put` when it ends, and `ready` gives it back, in order: at once if it is that of this rank alone.
    """

    def __init__(self) -> None:
        self.active = False
        self.apart: str | None = None  # why the ranks do not watch together any more
        self._called = False
        self._equal: dict[str, int] = {}  # for `of_ranks`
        self._inbox: Inbox | None = None
        self._outbox: Outbox | None = None
        self._waiting: deque[_Waiting] = deque()

    @property
    def leads(self) -> bool:
        """Whether this process stores the run: rank 0, or the only process."""
        if _initialised():
            return dist.get_rank() == 0
        # torchrun sets the rank before the script asks for it.
        return int(os.environ.get("WORLD_SIZE", "1")) < 2 or os.environ.get("RANK", "0") == "0"

    def call(self) -> None:
        """Begin to exchange steps, before the first watched one."""
        if self._called or not _initialised() or dist.get_world_size() < 2:
            return
        self._called = True
        if self.leads:
            self._inbox = Inbox(dist.get_world_size())
        else:
            self._outbox = Outbox(dist.get_rank())
        self.active = True

    def put(self, step: Step, own: RankFacts | None = None) -> None:
        """Hand over a step that has ended; `own` are this rank's facts of it, None if it is not to be joined."""
        self._overtake()
        waiting = _Waiting(step)
        self._waiting.append(waiting)
        if not self.active or own is None or not _initialised():
            waiting.complete = True
        elif self._outbox is not None:
            waiting.complete = True
            self._outbox.send(now(step.facts.step), _Sent.of(step, own).pack)
        elif self._inbox is not None:
            mine, equal = _Sent.of(step, own), self._equal

            def complete(others: Sequence[str]) -> None:
                waiting.step, waiting.complete = _joined(step, [mine, *map(_Sent.unpack, others)], equal), True

            waiting.expected = Expected(now(step.facts.step), complete)
            self._inbox.expect(waiting.expected)

    def ready(self) -> list[Step]:
        """The steps that are complete, in order; sets `apart` once where the ranks have come apart."""
        thread = self._inbox or self._outbox
        if thread is not None and thread.problem is not None:
            self._part(thread)
        steps = []
        while self._waiting and (self._waiting[0].complete or not self.active):
            steps.append(self._waiting.popleft().step)
        return steps

    def step_ended(self) -> bool:
        """Note the end of a step that is not watched; returns whether others wait for their parts."""
        self._overtake()
        return bool(self._waiting)

    def leave(self) -> None:
        """Finish the exchange: wait a short time for what is under way."""
        thread = self._inbox or self._outbox
        if thread is not None:
            thread.close()
            self._part(thread)

    def _part(self, thread: Inbox | Outbox) -> None:
        """Go on alone; `apart` says why if something could not be joined."""
        first = next((each.step.facts.step for each in self._waiting if not each.complete), None)
        if self.active and thread.problem is not None:
            since = "" if first is None else f": from step {first} on all statistics are those of rank 0 alone"
            self.apart = f"{thread.problem}{since}."
        self.active = False

    def _overtake(self) -> None:
        """Note that a later step has ended than those that wait."""
        if self._waiting and (last := self._waiting[-1].expected) is not None and last.overtaken is None:
            last.overtaken = monotonic()


def _initialised() -> bool:
    return dist.is_available() and dist.is_initialized()


def _joined(step: Step, ranks: Sequence[_Sent], equal: dict[str, int]) -> Step:
    """A step of rank 0 joined with the parts of all ranks, its own first."""
    own = ranks[0].rank
    sharded = {name for name, each in own.parameters.items() if each.sharded}
    whole = {
        (each.kind, each.name): replace(each, statistics=_statistics(each, ranks, sharded)) for each in step.figures
    }
    every = tuple(replace(each.rank, rank=rank) for rank, each in enumerate(ranks))
    found = (*step.found, *of_ranks(every, equal))
    return Step(_facts(step.facts, ranks, bool(sharded)), list(whole.values()), found)


def _statistics(own: Figure, ranks: Sequence[_Sent], sharded: set[str]) -> Statistics:
    """The statistics of one tensor, joined over the ranks."""
    if own.kind in REPLICATED and own.name.partition("/")[0] not in sharded:
        return own.statistics
    key = (own.kind, own.name)
    whole = joined(each.statistics[key] for each in ranks if key in each.statistics)
    return divided(whole, len(ranks)) if own.kind == "gradient" else whole


def _facts(own: StepFacts, ranks: Sequence[_Sent], sharded: bool) -> StepFacts:
    losses = [each.facts.loss for each in ranks if each.facts.loss is not None]
    clipped = own.clipped
    if clipped is not None and sharded:  # the norm on each rank is that of its shards
        norms = [each.facts.clipped or (math.nan, math.nan) for each in ranks]
        clipped = math.hypot(*(before for before, _ in norms)), math.hypot(*(after for _, after in norms))
    return replace(own, loss=math.fsum(losses) / len(losses) if losses else None, clipped=clipped)
