"""One step of a distributed training on all its ranks: the local gradients, their mean, and whether the mean is right.

Every rank records its own step, then all call `gather(recording)`, a collective. It takes two collectives of
`torch.distributed`: one gathers the statistics of all ranks as objects, the other the small and the requested gradients
as one flat tensor. A larger gradient is checked along random directions, the same on all ranks, because

    <mean, u> = 1/R sum_r <local_r, u>    for every direction u.
"""

from __future__ import annotations

import math
import zlib
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch import distributed as dist

from chainrule.errors import MissingError, RecordingError
from chainrule.graph.comparison import compare, compare_mean, rounding
from chainrule.graph.graph import Graph
from chainrule.graph.history import RankFacts, RankParameter
from chainrule.graph.snapshot import Parameter, Reduction, Snapshot, data_of, statistics_of
from chainrule.graph.statistics import Statistics
from chainrule.graph.storage import checksum

if TYPE_CHECKING:
    from chainrule.diagnostics import Finding
    from chainrule.document import Kind
    from chainrule.recording import Recording

SMALL = 4096  # elements of a parameter up to which every rank's gradient is gathered
DIRECTIONS = 3
SLAB = 2**22  # numbers of a direction drawn at once


@dataclass(frozen=True, slots=True)
class Combined:
    """One parameter's gradient on all ranks, and whether `.grad` is the mean.

    `how` it is compared: "elements" (each with the mean of the local ones), "directions" (random ones), or "sums" (of a
    gradient without kept numbers). `gathered` is each rank's local gradient, if gathered.
    """

    name: str
    verdict: Kind
    reason: str
    how: str
    difference: float | None = None
    tolerance: float | None = None
    gathered: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class Ranks:
    """One step on all ranks, equal on every rank."""

    rank: int
    ranks: tuple[RankFacts, ...]
    parameters: dict[str, Combined]
    findings: tuple[Finding, ...]

    @property
    def passed(self) -> bool:
        """Whether no gradient disagrees."""
        return not any(each.verdict == "disagrees" for each in self.parameters.values())

    def __str__(self) -> str:
        count = Counter(each.verdict for each in self.parameters.values())
        verdicts = ", ".join(f"{many} {verdict}" for verdict, many in count.items()) or "none was combined"
        lines = [f"{len(self.ranks)} ranks, {len(self.parameters)} gradients: {verdicts}."]
        for facts in self.ranks:
            loss = "no loss" if facts.loss is None else f"loss {facts.loss:.6g}"
            batch = "batch unknown" if facts.batch is None else f"{facts.batch} samples"
            lines.append(f"  rank {facts.rank}: {loss}, {batch}")
        wrong = (each for each in self.parameters.values() if each.verdict == "disagrees")
        lines += [f"  {each.name}: {each.reason}" for each in wrong]
        return "\n".join([*lines, *map(str, self.findings)])


def gather(recording: Recording, parameters: Collection[str] = (), *, small: int = SMALL, group: Any = None) -> Ranks:
    """Join the recordings of one step on all ranks, and check that each gradient is the mean over the ranks.

    A collective call: every rank of `group` (by default all) makes it for the same step with the same arguments. The
    local gradients of parameters of up to `small` elements, and of those that a pattern of `parameters` matches, are
    gathered whole, and `recording.show()` then shows them; of the others, products with random directions are gathered.
    The training does not change.

    Raises RecordingError if torch.distributed is not initialised, and on every rank if the recording of one cannot be
    read; MissingError, on every rank, if a pattern matches no parameter.
    """
    if not (dist.is_available() and dist.is_initialized()):
        raise RecordingError(
            "chainrule.distributed.gather(recording): torch.distributed is not initialised in this process. Call "
            "torch.distributed.init_process_group() first (torchrun sets what it needs), and gather() on every rank."
        )
    patterns = (parameters,) if isinstance(parameters, str) else tuple(parameters)
    own = _own(recording, patterns, small)
    every: list[dict[str, Any]] = [{}] * dist.get_world_size(group)
    dist.all_gather_object(every, own, group=group)
    _raise_on_every_rank(every)
    names = [name for name in every[0]["sent"] if all(name in each["sent"] for each in every)]
    graph = recording.graph
    wanted = [name for name in names if all(each["sent"][name].whole for each in every)]
    locals_, means = _gathered(graph, wanted, every, group)
    combined = {name: _combined(graph, name, every, locals_.get(name, ()), means.get(name)) for name in names}
    _fill(recording, combined)
    from chainrule.diagnostics.ranks import of_ranks

    facts = tuple(each["facts"] for each in every)
    return Ranks(dist.get_rank(group), facts, combined, of_ranks(facts))


# -- one rank ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Sent:
    """What a rank sends about one parameter's gradient before the gradients themselves."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    whole: bool  # its numbers are gathered
    shard: tuple[int, ...] | None  # the shape of this rank's part of the mean, if it is sharded
    local: tuple[float, ...]  # products with the directions, then the norm
    mean: tuple[float, ...]


def _own(recording: Recording, patterns: Sequence[str], small: int) -> dict[str, Any]:
    """What this rank sends. An error is sent to the others too, which would wait otherwise."""
    try:
        graph = recording.graph
        unknown = [each for each in patterns if not any(fnmatchcase(name, each) for name in graph.parameters)]
        if unknown:
            raise MissingError(
                f"gather(parameters=...): no parameter matches {', '.join(map(repr, unknown))}. There are "
                f"{', '.join(list(graph.parameters)[:6])}."
            )
        sent = {name: _sent(graph, each, patterns, small) for name, each in sorted(graph.reductions.items())}
        return {"facts": facts_of_rank(recording), "sent": sent}
    except Exception as error:
        return {"error": error if isinstance(error, RecordingError) else f"{type(error).__name__}: {error}"}


def _raise_on_every_rank(every: Sequence[dict[str, Any]]) -> None:
    for rank, each in enumerate(every):
        error = each.get("error")
        if isinstance(error, MissingError):
            raise error
        if error is not None:
            raise RecordingError(f"gather(recording): the recording of rank {rank} cannot be read: {error}")


def facts_of_rank(recording: Recording, marks: bool = True) -> RankFacts:
    """The facts of this rank's step; `marks` are checksums, which read every parameter."""
    graph = recording.graph
    batches = [each.batch for each in graph.reducers if each.batch is not None]
    rank = graph.reducers[0].rank if graph.reducers else dist.get_rank()
    used = {each.name: each.gradient for update in graph.updates for each in update.parameters}
    parameters = {name: _parameter(graph, each, used.get(name), marks) for name, each in graph.parameters.items()}
    return RankFacts(rank, batches[0] if batches else None, recording.loss, parameters)


def _parameter(graph: Graph, parameter: Parameter, used: Snapshot | None, marks: bool) -> RankParameter:
    """What the optimizer `used` may have been reduced by hand after backward."""
    reduction = graph.reductions.get(parameter.name)
    sharded = reduction is not None and graph.reducers[reduction.reducer].kind == "reduce-scatter"
    local = None if reduction is None else _statistics(reduction.sent)
    received = parameter.gradient if reduction is not None or used is None else used
    before, mean = (_mark(parameter.before), _mark(data_of(received))) if marks else (None, None)
    start, gradient = _statistics(parameter.start), _statistics(received)
    return RankParameter(start, local, gradient, before, mean, sharded, reduction is not None)


def _statistics(snapshot: Snapshot | None) -> Statistics | None:
    known, data = statistics_of(snapshot), data_of(snapshot)
    return Statistics.of(data) if known is None and data is not None else known


def _mark(data: Tensor | None) -> int | None:
    """A checksum of the numbers; None if they were not kept."""
    if data is None:
        return None
    return checksum(_dense(data))


def _sent(graph: Graph, reduction: Reduction, patterns: Sequence[str], small: int) -> _Sent:
    local, mean = reduction.local, reduction.mean
    chosen = math.prod(reduction.sent.shape) <= small or any(fnmatchcase(reduction.name, each) for each in patterns)
    sharded = graph.reducers[reduction.reducer].kind == "reduce-scatter"
    shard = tuple(mean.shape) if sharded and mean is not None else None
    if chosen and local is not None and mean is not None:
        return _Sent(reduction.sent.shape, reduction.sent.dtype, True, shard, (), ())
    return _Sent(
        reduction.sent.shape, reduction.sent.dtype, False, shard,
        _products(reduction.name, local, statistics_of(reduction.sent)),
        _products(reduction.name, mean, statistics_of(reduction.received)),
    )  # fmt: skip


def _products(name: str, data: Tensor | None, known: Statistics | None) -> tuple[float, ...]:
    """Products with random directions of +-1, and the norm; without kept numbers, the sum and the norm."""
    if data is None:
        return () if known is None else (known.mean * (known.elements - known.not_finite), known.norm)
    flat = _dense(data).reshape(-1)
    sums = []
    for direction in range(DIRECTIONS):
        generator = torch.Generator().manual_seed(zlib.crc32(f"{name} {direction}".encode()))
        total = 0.0
        for part in flat.split(SLAB):
            signs = torch.randint(0, 2, part.shape, generator=generator, dtype=torch.int8).mul_(2).sub_(1)
            total += float((part.double().cpu() * signs).sum())
        sums.append(total)
    return (*sums, float(torch.linalg.vector_norm(flat.double())))


# -- the gradients themselves -----------------------------------------------------------------------------------------


def _gathered(
    graph: Graph, names: Sequence[str], every: Sequence[dict[str, Any]], group: Any
) -> tuple[dict[str, tuple[Tensor, ...]], dict[str, tuple[Tensor, ...]]]:
    """Each rank's local gradients of these parameters, and each rank's part of the mean of sharded ones."""
    parts: dict[str, Tensor] = {}
    for name in names:
        known = graph.reductions[name]
        assert known.local is not None
        assert known.mean is not None
        parts[name] = _flat(known.local)
        if every[0]["sent"][name].shard is not None:
            longest = max(math.prod(each["sent"][name].shard or ()) for each in every)
            shard = _flat(known.mean)
            parts[f"{name} shard"] = torch.nn.functional.pad(shard, (0, longest - shard.numel()))
    if not parts:
        return {}, {}
    flat = torch.cat(list(parts.values())).to(device_of(group))
    found = [torch.empty_like(flat) for _ in every]
    dist.all_gather(found, flat, group=group)
    sizes = [each.numel() for each in parts.values()]
    split = [dict(zip(parts, each.cpu().split(sizes), strict=True)) for each in found]
    locals_ = {name: tuple(each[name].view(graph.reductions[name].sent.shape) for each in split) for name in names}
    means = {
        name: tuple(
            each[f"{name} shard"][: math.prod(sent["sent"][name].shard)].view(sent["sent"][name].shard)
            for each, sent in zip(split, every, strict=True)
        )
        for name in names
        if f"{name} shard" in parts
    }
    return locals_, means


def _dense(data: Tensor) -> Tensor:
    return data.detach() if data.layout is torch.strided else data.detach().to_dense()


def _flat(data: Tensor) -> Tensor:
    return _dense(data).reshape(-1).double().cpu()


def device_of(group: Any) -> torch.device:
    """The device of the tensors that a process group takes."""
    backend = str(dist.get_backend(group))
    return torch.device("cuda", torch.cuda.current_device()) if backend == "nccl" else torch.device("cpu")


# -- the check --------------------------------------------------------------------------------------------------------


def _combined(
    graph: Graph,
    name: str,
    every: Sequence[dict[str, Any]],
    locals_: tuple[Tensor, ...],
    shards: tuple[Tensor, ...] | None,
) -> Combined:
    reduction = graph.reductions[name]
    if graph.reducers[reduction.reducer].ranks != len(every):
        reason = "it was combined over another group of ranks than these"
        return Combined(name, "not checked", reason, "none", gathered=locals_)
    found = _of_elements(reduction, locals_, shards) if locals_ else _of_products(name, every)
    hook = graph.reducers[reduction.reducer].hook
    if hook and found.verdict == "disagrees":
        reason = f"the communication hook {hook} takes the place of the mean; it differs by {found.difference:.3g}"
        found = replace(found, verdict="not checked", reason=reason)
    marks = [each["facts"].parameters[name].mean_mark for each in every]
    if found.verdict == "agrees" and shards is None and every[0]["sent"][name].shard is None and len(set(marks)) > 1:
        usual = max(marks, key=marks.count)
        apart = ", ".join(str(rank) for rank, each in enumerate(marks) if each != usual)
        found = replace(found, verdict="disagrees", reason=f"`.grad` is not the same on all ranks: {apart} differ")
    return replace(found, gathered=tuple(each.to(reduction.sent.dtype) for each in locals_))


def _of_elements(reduction: Reduction, locals_: tuple[Tensor, ...], shards: tuple[Tensor, ...] | None) -> Combined:
    assert reduction.mean is not None
    ranks = len(locals_)
    mean = torch.stack(locals_).sum(0) / ranks
    given = _flat(reduction.mean).view(reduction.mean.shape) if shards is None else _whole(shards, reduction.sent.shape)
    if given is None:
        return Combined(reduction.name, "not checked", "it is not cut along one axis", "elements")
    if not (mean.isfinite().all() and given.isfinite().all()):
        same = bool((mean.isfinite() == given.isfinite()).all())
        reason = "the mean is not finite where a rank's is not" if same else "the mean is finite where a rank's is not"
        return Combined(reduction.name, "not checked" if same else "disagrees", reason, "elements")
    found = compare_mean(locals_, given, rounding(reduction.mean.dtype))
    if not found.agrees and found.index is not None:
        reason = (
            f"`.grad`{list(found.index)} is {float(given[found.index]):.8g}, and the mean of the {ranks} ranks' "
            f"gradients is {float(mean[found.index]):.8g}"
        )
        return Combined(reduction.name, "disagrees", reason, "elements", found.largest, found.tolerance)
    reason = f"`.grad` is the mean of the {ranks} ranks' gradients, element by element"
    return Combined(reduction.name, "agrees", reason, "elements", found.largest, found.tolerance)


def _whole(shards: tuple[Tensor, ...], shape: tuple[int, ...]) -> Tensor | None:
    """The parts of all ranks, concatenated along the sharded axis."""
    for axis, size in enumerate(shape):
        rest = shape[:axis] + shape[axis + 1 :]
        fits = all(tuple(each.shape[:axis] + each.shape[axis + 1 :]) == rest for each in shards if each.numel())
        if fits and sum(each.shape[axis] for each in shards if each.numel()) == size:
            return torch.cat([each for each in shards if each.numel()], axis)
    return None


def _of_products(name: str, every: Sequence[dict[str, Any]]) -> Combined:
    sent = [each["sent"][name] for each in every]
    kept = all(len(each.local) > 2 and len(each.mean) > 2 for each in sent)
    how = "directions" if kept else "sums"
    if sent[0].shard is not None:
        return Combined(name, "not checked", "each rank has its own part of it, and it was not gathered", how)
    if not all(each.local and each.mean for each in sent):
        return Combined(name, "not checked", "its numbers were not kept", how)
    ranks, own = len(sent), sent[0]
    *products, _ = zip(*(each.local for each in sent), strict=True)
    scale = sum(each.local[-1] for each in sent) / ranks
    if not math.isfinite(scale):
        return Combined(name, "not checked", "the gradient of a rank is not finite", how)
    # A sum of n rounding errors of either sign is some sqrt(n) of one: as large as the norm of all of them.
    # Of a plain sum they may all have the same sign.
    terms = scale * (1 if kept else math.sqrt(math.prod(own.shape)))
    means = [sum(several) / ranks for several in products]
    found = compare(torch.tensor(own.mean[:-1]), torch.tensor(means), terms, eps=rounding(own.dtype))
    if not found.agrees:
        what = "product with a random direction" if kept else "sum"
        reason = f"its {what} is not the mean of those of the {ranks} ranks' gradients"
        return Combined(name, "disagrees", reason, how, found.largest, found.tolerance)
    if not kept:
        reason = "its numbers were not kept; its sum is the mean of the ranks' sums"
        return Combined(name, "not checked", reason, how, found.largest, found.tolerance)
    reason = f"`.grad` is the mean of the {ranks} ranks' gradients, along {DIRECTIONS} random directions"
    return Combined(name, "agrees", reason, how, found.largest, found.tolerance)


def _fill(recording: Recording, combined: dict[str, Combined]) -> None:
    """Put the gathered gradients into the recording, for `recording.show()`."""
    graph = recording.graph
    reductions = {
        name: replace(each, gathered=combined[name].gathered, verdict=combined[name].verdict)
        if name in combined
        else each
        for name, each in graph.reductions.items()
    }
    recording.graph = replace(graph, reductions=reductions)
