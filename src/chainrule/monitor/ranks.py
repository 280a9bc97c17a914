"""The ranks of a distributed training that watch together: at each watched step their figures become those of one step.

What is joined is what a single process would have met with all samples in one batch, whose loss is the mean of the
ranks' losses: values are pooled, gradients of values are shared out by the number of ranks (as the mean of the losses
does), and parameters, their gradients, updates and moments are the same on all ranks, or parts of one whole.

Two small collectives of `torch.distributed` a watched step, in a process group of our own (gloo, so on processors),
that no collective of the training can be mixed up with. A rank whose watch ends lets go of the group, and the others
notice at once; where one is merely late, they wait as long as the training's own group would.
"""

from __future__ import annotations

import math
import os
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import torch
from torch import distributed as dist

from chainrule.errors import brief
from chainrule.graph.history import Kind, RankFacts, RankParameter, StepFacts, joined
from chainrule.graph.statistics import EXPONENTS, Statistics
from chainrule.monitor.runs import Figure
from chainrule.monitor.step_series import divided

PATIENCE = 5.0  # seconds for the other ranks' watches to be there at the end of the first watched step
PLAIN = ("elements", "norm", "mean", "std", "low", "high", "zeros", "not_finite")
WIDTH = len(PLAIN) + len(EXPONENTS)
FACTS = 4  # loss, batch, norm before and after clipping
SAME = frozenset({"parameter", "parameter gradient", "update", "moment"})  # on all ranks, unless they are sharded

CALLS, TAKEN, GONE = "calls", "taken", "gone"


class ApartError(Exception):
    """The ranks cannot watch together (any longer); the message says why."""


@dataclass(frozen=True, slots=True)
class Step:
    """A step of all ranks as one, and what each of them was like."""

    facts: StepFacts
    figures: list[Figure]
    ranks: tuple[RankFacts, ...]


class Together:
    """This process among those that watch. `active` from the first watched step to the end, where there are several."""

    _met = 0  # how many watches of this process have met those of the other ranks: as many as there

    def __init__(self) -> None:
        self.active = False
        self._group: Any = None
        self._called = False

    @property
    def leads(self) -> bool:
        """Whether this process keeps the run: rank 0, or the only one."""
        if _initialised():
            return dist.get_rank() == 0
        # torchrun says which rank it is before the script has asked for it.
        return int(os.environ.get("WORLD_SIZE", "1")) < 2 or os.environ.get("RANK", "0") == "0"

    def call(self) -> None:
        """Before a watched step runs: let the others know that this rank watches."""
        if not self._called and _initialised() and dist.get_world_size() > 1:
            self._called = self.active = True
            store, rank = dist.distributed_c10d._get_default_store(), dist.get_rank()
            if rank == 0:
                store.delete_key(self._key("missing"))  # of a watch that met nobody
            store.set(self._key(rank), CALLS)

    def combine(self, facts: StepFacts, figures: list[Figure], own: RankFacts) -> Step:
        """Join a step of all ranks, on rank 0; the others give theirs. A collective call.

        Raises ApartError where they are not all there.
        """
        try:
            if self._group is None:
                self._meet()
            return self._combined(facts, figures, own)
        except Exception as error:
            self.leave()
            if isinstance(error, ApartError):
                raise
            raise ApartError(f"the ranks do not watch together any longer ({brief(error)})") from error

    def leave(self) -> None:
        """Go on alone: the other ranks find the group closed."""
        called = self.active and self._group is None
        group, self._group, self.active = self._group, None, False
        if called and _initialised():
            self._withdraw()
        if group is not None and _initialised():
            with suppress(Exception):  # the training may have ended its groups before us
                group.abort()
            with suppress(Exception):
                dist.destroy_process_group(group)

    # -- meeting ------------------------------------------------------------------------------------------------------

    def _key(self, name: object) -> str:
        return f"chainrule/watch/{self._met}/{name}"

    def _meet(self) -> None:
        """Make the group, if all ranks watch. Rank 0 decides, so that none waits in there for one that gave up."""
        wait = self._decide if dist.get_rank() == 0 else self._ask
        missing = wait(dist.distributed_c10d._get_default_store())
        if missing:
            raise ApartError(
                f"no watch is there on rank {missing}: call chainrule.watch on every rank, in the same way"
            )
        Together._met += 1
        self._group = dist.new_group(backend="gloo", timeout=_patience_of_training())

    def _decide(self, store: Any) -> str:
        """On rank 0: take every rank that has called; those that have not in time are missing.

        Ranks that train together have begun this step together, so that their calls are there by now.
        """
        until, missing = time.monotonic() + PATIENCE, list(range(1, dist.get_world_size()))
        while missing := [r for r in missing if store.compare_set(self._key(r), CALLS, TAKEN) != TAKEN.encode()]:
            if time.monotonic() > until:
                break
            time.sleep(0.01)
        told = ", ".join(map(str, missing))
        store.set(self._key("missing"), told or "none")
        return told

    def _ask(self, store: Any) -> str:
        """On another rank: what rank 0 has decided. "0" where it does not watch.

        Once taken there is a decision to come; a rank 0 that has called makes it at the end of its step.
        """
        began, own = time.monotonic(), self._key(dist.get_rank())
        while not store.check([self._key("missing")]):
            patience = _patience_of_training().total_seconds() if store.check([self._key(0)]) else PATIENCE
            # Giving up and being taken exclude each other.
            late = time.monotonic() > began + patience
            if late and store.compare_set(own, CALLS, GONE) != TAKEN.encode():
                return "0"
            time.sleep(0.01)
        told = store.get(self._key("missing")).decode()
        return "" if told == "none" else str(told)

    def _withdraw(self) -> None:
        """Take back this rank's call; another watch may call again."""
        with suppress(Exception):
            dist.distributed_c10d._get_default_store().delete_key(self._key(dist.get_rank()))

    # -- joining ------------------------------------------------------------------------------------------------------

    def _combined(self, facts: StepFacts, figures: list[Figure], own: RankFacts) -> Step:
        known = {(each.kind, each.name): each for each in figures}
        names = "\n".join(f"{kind} {name}" for kind, name in known) + "\n" + "\n".join(own.parameters)
        header = torch.tensor([facts.step, len(known), len(own.parameters), zlib.crc32(names.encode())], device="cpu")
        headers = self._all(header)
        if len({int(each[0]) for each in headers}) > 1:
            steps = ", ".join(f"rank {rank} at {int(each[0])}" for rank, each in enumerate(headers))
            raise ApartError(f"the ranks count other steps ({steps})")
        if all(torch.equal(each, header) for each in headers):
            flat = torch.tensor(_packed(facts, list(known.values()), own), dtype=torch.float64, device="cpu")
            rows = self._all(flat)
            ranks = [_unpacked(each.tolist(), list(known), own) for each in rows] if self.leads else []
        else:  # one has tensors that another has not
            ranks = [(_of_step(facts), {}, own)] * len(headers)
            mine = {key: each.statistics for key, each in known.items()}
            dist.all_gather_object(ranks, (_of_step(facts), mine, own), self._group)
        if not self.leads:
            return Step(facts, figures, ())
        sharded = {name for name, each in own.parameters.items() if each.sharded}
        every = tuple(replace(each, rank=rank) for rank, (_, _, each) in enumerate(ranks))
        whole = [
            replace(each, statistics=found)
            for key, each in known.items()
            if (found := _joined(key, [met[key] for _, met, _ in ranks if key in met], sharded, len(ranks)))
        ]
        return Step(_facts(facts, [step for step, _, _ in ranks], bool(sharded)), whole, every)

    def _all(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        found = [torch.empty_like(tensor) for _ in range(dist.get_world_size(self._group))]
        dist.all_gather(found, tensor, group=self._group)
        return found


def _initialised() -> bool:
    return dist.is_available() and dist.is_initialized()


def _patience_of_training() -> timedelta:
    """The timeout of the training's own process group."""
    try:
        group = dist.distributed_c10d._get_default_group()
        device = torch.device("cuda" if str(dist.get_backend(group)) == "nccl" else "cpu")
        timeout: timedelta = group._get_backend(device).options._timeout
        return timeout
    except (AttributeError, RuntimeError):
        return dist.distributed_c10d.default_pg_timeout


# -- to numbers and back ----------------------------------------------------------------------------------------------

Facts = tuple[float, float, float, float]
Key = tuple[Kind, str]
Rank = tuple[Facts, dict[Key, Statistics], RankFacts]


def _of_step(facts: StepFacts) -> Facts:
    before, after = facts.clipped or (math.nan, math.nan)
    return (math.nan if facts.loss is None else facts.loss, 0.0 if facts.loss is None else 1.0, before, after)


def _packed(facts: StepFacts, figures: Sequence[Figure], own: RankFacts) -> list[float]:
    row = [*_of_step(facts), math.nan if own.batch is None else own.batch]
    for each in figures:
        row.extend(_numbers(each.statistics))
    for parameter in own.parameters.values():
        row.extend(_numbers(parameter.local))
    return row


def _numbers(statistics: Statistics | None) -> Iterator[float]:
    if statistics is None:
        return iter([math.nan] * WIDTH)
    counts = statistics.magnitudes or [math.nan] * len(EXPONENTS)
    return iter([*(getattr(statistics, name) for name in PLAIN), *counts])


def _unpacked(row: list[float], known: Sequence[Key], own: RankFacts) -> Rank:
    step, batch, rest = row[:FACTS], row[FACTS], row[FACTS + 1 :]
    found = [_statistics(rest[place : place + WIDTH]) for place in range(0, len(rest), WIDTH)]
    figures = {key: each for key, each in zip(known, found, strict=False) if each is not None}
    parameters = {
        name: RankParameter(
            figures.get(("parameter", name)), local, figures.get(("parameter gradient", name)),
            sharded=parameter.sharded, combined=parameter.combined,
        )
        for (name, parameter), local in zip(own.parameters.items(), found[len(known) :], strict=True)
    }  # fmt: skip
    loss = step[0] if step[1] else None
    facts = RankFacts(0, None if math.isnan(batch) else int(batch), loss, parameters)
    return (step[0], step[1], step[2], step[3]), figures, facts


def _statistics(row: list[float]) -> Statistics | None:
    if math.isnan(row[0]):
        return None
    elements, norm, mean, std, low, high, zeros, lost = row[: len(PLAIN)]
    counts = row[len(PLAIN) :]
    magnitudes = () if math.isnan(counts[0]) else tuple(map(int, counts))
    return Statistics(int(elements), norm, mean, std, low, high, int(zeros), int(lost), magnitudes)


def _joined(key: Key, parts: list[Statistics], sharded: set[str], ranks: int) -> Statistics | None:
    kind, name = key
    if not parts:
        return None
    if kind in SAME and name.partition("/")[0] not in sharded:
        return parts[0]
    return divided(joined(parts), ranks) if kind == "gradient" else joined(parts)


def _facts(own: StepFacts, steps: Sequence[Facts], sharded: bool) -> StepFacts:
    losses = [loss for loss, there, _, _ in steps if there]
    clipped = own.clipped
    if clipped is not None and sharded:  # each rank's norm is that of its own parts
        clipped = math.hypot(*(before for *_, before, _ in steps)), math.hypot(*(after for *_, after in steps))
    return replace(own, loss=math.fsum(losses) / len(losses) if losses else None, clipped=clipped)
