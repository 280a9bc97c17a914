"""The ranks of a distributed training that watch it together: their statistics become those of one step.

The joined step is the one of a single process with all samples in one batch, whose loss is the mean of the ranks'
losses. Values are pooled. Gradients of values are divided by the number of ranks, as the mean of the losses divides
them. Parameters, their gradients, updates and moments are equal on all ranks, or shards of one tensor.

A watched step takes two collectives, of the step numbers and of the statistics, in a process group of our own (gloo, on
the CPU), so they cannot be confused with those of the training. A rank whose watch ends aborts the group, and the
others notice at once. A slow rank is waited for as long as the training's own group would wait.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import torch
from torch import distributed as dist

from chainrule.errors import brief
from chainrule.graph.history import Kind, RankFacts, StepFacts, joined
from chainrule.graph.statistics import Statistics
from chainrule.monitor.runs import Figure
from chainrule.monitor.step_series import divided

PATIENCE = 5.0  # seconds that the watches of the other ranks have to arrive at the end of the first watched step
REPLICATED = frozenset({"parameter", "parameter gradient", "update", "moment"})  # equal on all ranks unless sharded

CALLS, TAKEN, GONE = "calls", "taken", "gone"


class ApartError(Exception):
    """The ranks cannot watch together; the message says why."""


@dataclass(frozen=True, slots=True)
class Step:
    """A step joined over all ranks, and the facts of each rank."""

    facts: StepFacts
    figures: list[Figure]
    ranks: tuple[RankFacts, ...]


@dataclass(frozen=True, slots=True)
class _Sent:
    """What a rank sends to rank 0."""

    facts: StepFacts
    statistics: dict[tuple[Kind, str], Statistics]
    rank: RankFacts


class WatchingRanks:
    """The ranks that watch. `active` from the first watched step to the end, if there are several."""

    _met = 0  # how many watches of this process have met those of the other ranks; equal on all ranks

    def __init__(self) -> None:
        self.active = False
        self._group: Any = None
        self._called = False

    @property
    def leads(self) -> bool:
        """Whether this process stores the run: rank 0, or the only process."""
        if _initialised():
            return dist.get_rank() == 0
        # torchrun sets the rank before the script asks for it.
        return int(os.environ.get("WORLD_SIZE", "1")) < 2 or os.environ.get("RANK", "0") == "0"

    def call(self) -> None:
        """Announce before a watched step that this rank watches."""
        if not self._called and _initialised() and dist.get_world_size() > 1:
            self._called = self.active = True
            store, rank = dist.distributed_c10d._get_default_store(), dist.get_rank()
            if rank == 0:
                store.delete_key(self._key("missing"))  # left by a watch that met no other
            store.set(self._key(rank), CALLS)

    def join(self, facts: StepFacts, figures: list[Figure], own: RankFacts) -> Step:
        """Join a step of all ranks on rank 0; the other ranks get their own step back. A collective call.

        Raises ApartError if a rank is missing.
        """
        try:
            if self._group is None:
                self._meet()
            return self._joined(facts, figures, own)
        except Exception as error:
            self.leave()
            if isinstance(error, ApartError):
                raise
            raise ApartError(f"the ranks no longer watch together ({brief(error)})") from error

    def leave(self) -> None:
        """Continue alone; the other ranks find the group closed."""
        called = self.active and self._group is None
        group, self._group, self.active = self._group, None, False
        if called and _initialised():
            with suppress(Exception):  # so that another watch may call
                dist.distributed_c10d._get_default_store().delete_key(self._key(dist.get_rank()))
        if group is not None and _initialised():
            with suppress(Exception):  # the training may have destroyed its groups before
                group.abort()
            with suppress(Exception):
                dist.destroy_process_group(group)

    # -- meeting ------------------------------------------------------------------------------------------------------

    def _key(self, name: object) -> str:
        return f"chainrule/watch/{self._met}/{name}"

    def _meet(self) -> None:
        """Create the group if all ranks watch. Rank 0 decides, so no rank waits in it for one that gave up."""
        wait = self._decide if dist.get_rank() == 0 else self._ask
        missing = wait(dist.distributed_c10d._get_default_store())
        if missing:
            raise ApartError(f"rank {missing} has no watch: call chainrule.watch on every rank, in the same way")
        WatchingRanks._met += 1
        self._group = dist.new_group(backend="gloo", timeout=_timeout_of_training())

    def _decide(self, store: Any) -> str:
        """On rank 0: take every rank that calls within `PATIENCE`, and return the missing ones.

        Ranks that train together began this step together, so their calls have arrived by now.
        """
        until, missing = time.monotonic() + PATIENCE, list(range(1, dist.get_world_size()))
        while missing := [r for r in missing if store.compare_set(self._key(r), CALLS, TAKEN) != TAKEN.encode()]:
            if time.monotonic() > until:
                break
            time.sleep(0.01)
        names = ", ".join(map(str, missing))
        store.set(self._key("missing"), names or "none")
        return names

    def _ask(self, store: Any) -> str:
        """On another rank: the missing ranks that rank 0 has found, or "0" if rank 0 does not watch.

        A rank that is taken waits for the decision; a rank 0 that has called decides at the end of its step.
        """
        began, own = time.monotonic(), self._key(dist.get_rank())
        while not store.check([self._key("missing")]):
            patience = _timeout_of_training().total_seconds() if store.check([self._key(0)]) else PATIENCE
            # Giving up and being taken exclude each other.
            late = time.monotonic() > began + patience
            if late and store.compare_set(own, CALLS, GONE) != TAKEN.encode():
                return "0"
            time.sleep(0.01)
        names = store.get(self._key("missing")).decode()
        return "" if names == "none" else str(names)

    # -- joining ------------------------------------------------------------------------------------------------------

    def _joined(self, facts: StepFacts, figures: list[Figure], own: RankFacts) -> Step:
        step, size = torch.tensor(facts.step, device="cpu"), dist.get_world_size(self._group)
        steps = [torch.empty_like(step) for _ in range(size)]
        dist.all_gather(steps, step, group=self._group)
        if len({int(each) for each in steps}) > 1:
            counts = ", ".join(f"rank {rank} at {int(each)}" for rank, each in enumerate(steps))
            raise ApartError(f"the ranks are at different steps ({counts})")
        sent: Any = [None] * size if self.leads else None
        mine = _Sent(facts, {(each.kind, each.name): each.statistics for each in figures}, own)
        dist.gather_object(mine, sent, dst=0, group=self._group)
        if not self.leads:
            return Step(facts, figures, ())
        ranks: list[_Sent] = sent
        sharded = {name for name, each in own.parameters.items() if each.sharded}
        whole = {
            (each.kind, each.name): replace(each, statistics=_statistics(each, ranks, sharded)) for each in figures
        }
        every = tuple(replace(each.rank, rank=rank) for rank, each in enumerate(ranks))
        return Step(_facts(facts, ranks, bool(sharded)), list(whole.values()), every)


def _initialised() -> bool:
    return dist.is_available() and dist.is_initialized()


def _timeout_of_training() -> timedelta:
    """The timeout of the training's own process group."""
    try:
        group = dist.distributed_c10d._get_default_group()
        device = torch.device("cuda" if str(dist.get_backend(group)) == "nccl" else "cpu")
        timeout: timedelta = group._get_backend(device).options._timeout
        return timeout
    except (AttributeError, RuntimeError):
        return dist.distributed_c10d.default_pg_timeout


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
