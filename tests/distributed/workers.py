"""What each process of the distributed tests runs, and how they are started.

A process leaves what it found as a pickle in the folder of the test; starting one takes seconds, so one start serves
many tests.
"""

import math
import pickle
import warnings
from datetime import timedelta
from pathlib import Path
from unittest import mock

import torch
from torch import distributed as dist
from torch import multiprocessing, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel as DDP

import chainrule
from chainrule import runs
from chainrule.errors import ChainruleWarning, MissingError
from chainrule.graph import statistics
from tests.seeds import shifted

SAMPLES, STEPS = 24, 5


def start(ranks, work, folder: Path):
    """Run `work(rank, ranks, folder)` in so many real processes; gives what each returned."""
    # Served from here, the port is taken from the first moment on: one that was only found to be free might be another
    # test run's when the ranks come, seconds later, and they would meet the ranks of that one.
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    multiprocessing.spawn(_rank, args=(ranks, work, str(folder), store.port), nprocs=ranks)
    return [pickle.loads((folder / f"{rank}.pickle").read_bytes()) for rank in range(ranks)]


def _rank(rank, ranks, work, folder, port):
    torch.set_num_threads(1)
    store = dist.TCPStore("127.0.0.1", port, ranks, is_master=False)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks)
    with shifted():
        found = work(rank, ranks, Path(folder))
    dist.barrier()
    dist.destroy_process_group()
    Path(folder, f"{rank}.pickle").write_bytes(pickle.dumps(found))


class Model(nn.Module):
    """One layer above and one below what is kept of a tensor in any case."""

    def __init__(self):
        super().__init__()
        self.hidden, self.act, self.out = nn.Linear(4, 2048), nn.ReLU(), nn.Linear(2048, 3)

    def forward(self, x):
        return self.out(self.act(self.hidden(x)))


def built(small=False):
    """The small one has biases that keep each unit on for some of the samples, whatever the seed."""
    torch.manual_seed(0)
    if not small:
        return Model()
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    nn.init.constant_(model[0].bias, 0.5)
    return model


def data(step, rank=0, ranks=1, samples=SAMPLES):
    generator = torch.Generator().manual_seed(100 + step)
    x = torch.randn(samples, 4, generator=generator)
    part = slice(rank * samples // ranks, (rank + 1) * samples // ranks)
    return x[part], x[part, :3].argmax(1)


def step_of(model, optimizer, x, y):
    optimizer.zero_grad()
    loss = F.cross_entropy(model(x), y)
    loss.backward()
    optimizer.step()
    return loss.item()


# -- one recorded step ------------------------------------------------------------------------------------------------


def record_steps(rank, ranks, folder):
    """Every scenario of a single step, by name."""
    return {
        "bare": _trained(rank, ranks, record=False),
        "recorded": _trained(rank, ranks, record=True),
        "step": _step(rank, ranks),
        "bucket": _step(rank, ranks, gradient_as_bucket_view=True),
        "statistics": _statistics(rank, ranks),
        "directions": _directions(rank, ranks),
        "accumulated": _accumulated(rank, ranks),
        "unequal": _findings(rank, ranks, samples=SAMPLES + 1),
        "nan": _findings(rank, ranks, lost=True),
        "diverged": _findings(rank, ranks, diverged=True),
        "inner": _findings(rank, ranks, inner=True),
        "wrong mean": _wrong_mean(rank, ranks),
        "hook": _hooked(rank, ranks),
        "saved": _saved(rank, ranks, folder),
        "missing": _missing(rank, ranks),
        "sharded": _step(rank, ranks, wrap=sharded),
        "sharded bare": _trained(rank, ranks, record=False, wrap=sharded),
        "sharded recorded": _trained(rank, ranks, record=True, wrap=sharded),
        "sharded statistics": _sharded_statistics(rank, ranks),
        "sharded watch": watched(rank, ranks, folder, "sharded", wrap=sharded, full_every=4),
        "watch": _watched(rank, ranks, folder),
        "watch failed": _watch_failed(rank, ranks, folder),
        "watch alone": _watch_alone(rank, ranks, folder),
        "watch at different steps": watched(rank, ranks, folder, "different", start=rank),
        "watch nan": _watch_nan(rank, ranks, folder),
        "by hand": _by_hand(rank, ranks, folder, "by-hand"),
        "parted": _by_hand(rank, ranks, folder, "parted", left_out=["2.bias"], since=2),
        "apart": _by_hand(rank, ranks, folder, "apart", left_out=["0.weight", "0.bias", "2.weight", "2.bias"]),
    }


def sharded(model):
    """As `fully_shard` is meant to be used: each layer, then the whole."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in (each for each in model.modules() if isinstance(each, nn.Linear)):
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def _recorded(rank, ranks, keep=None, samples=SAMPLES, wrap=DDP, **options):
    model = wrap(built(small=keep is None), **options)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    step_of(model, optimizer, *data(0, rank, ranks))  # the reducer makes its buckets anew after the first
    with chainrule.record(keep=keep) as recording:
        step_of(model, optimizer, *data(1, rank, ranks, samples))
    return recording


def _trained(rank, ranks, record, wrap=DDP):
    model = wrap(built(small=True))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    for step in range(3):
        if record:
            with chainrule.record() as recording:
                step_of(model, optimizer, *data(step, rank, ranks))
            recording.graph  # noqa: B018 (read it)
        else:
            step_of(model, optimizer, *data(step, rank, ranks))
    hooks = sum(len(p._backward_hooks or ()) + len(p._post_accumulate_grad_hooks or ()) for p in model.parameters())
    return [own_part(p.detach()).clone() for p in model.parameters()], hooks


def _step(rank, ranks, **options):
    recording = _recorded(rank, ranks, **options)
    rows = [(row.node.name, row.verdict) for row in recording.verify().rows]
    ranks_ = chainrule.distributed.gather(recording)
    own = {name: (each.local, each.mean) for name, each in recording.graph.reductions.items()}
    sections = [str(section.anchor) for section in recording.document().sections]
    verdicts = [
        block.kind for section in recording.document().sections if section.anchor in ("all-reduce", "reduce-scatter")
        for inner in section.sections for block in inner.blocks if type(block).__name__ == "Verdict"
    ]  # fmt: skip
    return {
        "rows": rows, "own": own, "combined": ranks_.parameters, "passed": ranks_.passed, "text": str(ranks_),
        "findings": [each.id for each in (*recording.findings(), *ranks_.findings)], "sections": sections,
        "events": [each.kind for each in recording.graph.events], "verdicts": verdicts,
        "grads": {name: each.grad for name, each in recording.parameters.items()},
        "batches": [each.batch for each in ranks_.ranks],
    }  # fmt: skip


def _statistics(rank, ranks):
    known, full = _recorded(rank, ranks, keep="statistics"), _recorded(rank, ranks, keep="all")
    found = chainrule.distributed.gather(known)
    return {
        "local": {name: each.sent.statistics for name, each in known.graph.reductions.items()},
        "whole": {name: each.local for name, each in full.graph.reductions.items()},
        "combined": found.parameters,
        "findings": [each.id for each in (*known.findings(), *found.findings)],
    }


def _sharded_statistics(rank, ranks):
    found = _recorded(rank, ranks, keep="statistics", wrap=sharded)
    graph = found.graph
    return {
        "local": {name: each.sent.statistics for name, each in graph.reductions.items()},
        "before": {name: tuple(each.before.shape) for name, each in graph.parameters.items()},
        "shapes": {name: each.shape for name, each in graph.parameters.items()},
        "leaves": {value.name: value.shape for value in graph.values if value.kind == "parameter"},
        "findings": [each.id for each in found.findings()],
    }


def _directions(rank, ranks):
    recording = _recorded(rank, ranks)
    few = chainrule.distributed.gather(recording, small=0)
    chosen = chainrule.distributed.gather(recording, "module.0.*", small=0)
    return [{name: (each.how, each.verdict) for name, each in found.parameters.items()} for found in (few, chosen)]


def _accumulated(rank, ranks):
    model = DDP(built(small=True))
    with chainrule.record() as recording:
        (x, y), (u, v) = data(1, rank, ranks), data(2, rank, ranks)
        with model.no_sync():
            F.cross_entropy(model(x), y).backward()
        F.cross_entropy(model(u), v).backward()
    plain = built(small=True)
    (F.cross_entropy(plain(x), y) + F.cross_entropy(plain(u), v)).backward()
    found = chainrule.distributed.gather(recording)
    return {
        "passed": found.passed, "verdicts": {each.verdict for each in found.parameters.values()},
        "local": [each.local for each in recording.graph.reductions.values()],
        "expected": [p.grad for p in plain.parameters()], "batch": found.ranks[0].batch,
        "findings": [each.id for each in recording.findings()],
    }  # fmt: skip


def _findings(rank, ranks, samples=SAMPLES, lost=False, diverged=False, inner=False):
    model = DDP(built(small=True))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    if diverged and rank == ranks - 1:
        with torch.no_grad():
            model.module[2].weight[1, 1] += 1e-3
    x, y = data(1, rank, ranks, samples)
    if lost and rank == 1:
        x[0, 0] = float("nan")
    with chainrule.record() as recording:
        step_of(model.module if inner else model, optimizer, x, y)
    found = chainrule.distributed.gather(recording)
    told = [(each.id, each.severity, each.where, each.rows) for each in found.findings]
    return {"told": told, "text": str(found), "passed": found.passed}


def _wrong_mean(rank, ranks):
    """A gradient that somebody changes on one rank between the all-reduce and the end of backward."""
    recording = _recorded(rank, ranks)
    if rank == 1:
        recording.graph.reductions["module.0.bias"].mean[2] += 0.5
    found = chainrule.distributed.gather(recording)
    return {"passed": found.passed, "found": found.parameters["module.0.bias"]}


def _hooked(rank, ranks):
    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import fp16_compress_hook

    model = DDP(built(small=True))
    model.register_comm_hook(None, fp16_compress_hook)
    with chainrule.record() as recording:
        F.cross_entropy(model(data(1, rank, ranks)[0]), data(1, rank, ranks)[1]).backward()
    found = chainrule.distributed.gather(recording)
    return {"verdicts": {each.verdict for each in found.parameters.values()}, "reasons": str(found.parameters)}


def _saved(rank, ranks, folder):
    recording = _recorded(rank, ranks)
    chainrule.distributed.gather(recording)
    recording.save(folder / f"step{rank}.safetensors")
    again = chainrule.load(folder / f"step{rank}.safetensors").graph
    same = [
        torch.equal(torch.stack(again.reductions[name].gathered), torch.stack(each.gathered))
        for name, each in recording.graph.reductions.items()
    ]
    return again.reducers == recording.graph.reducers and all(same) and len(same) == 4


def _missing(rank, ranks):
    """A wrong pattern, given on one rank only, is an error on all of them, and nobody waits."""
    recording = _recorded(rank, ranks)
    try:
        chainrule.distributed.gather(recording, "nowhere.*" if rank == 1 else ())
    except MissingError as error:
        return str(error)


# -- a watched run ----------------------------------------------------------------------------------------------------


def watched(rank, ranks, folder, name, steps=STEPS, wrap=DDP, before=lambda watch, step: None, **options):
    """Train and watch; gives the warnings and the parameters.

    Nothing is told by a sample: a rank that holds a part of a parameter would look at other numbers than one process.
    """
    model = wrap(built()) if wrap else built()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    with warnings.catch_warnings(record=True) as said, mock.patch.object(statistics, "PART", 2**14):
        warnings.simplefilter("always", ChainruleWarning)
        with chainrule.watch(model, optimizer, every=2, to=folder / f"{name}.db", **options) as watch:
            for step in range(steps):
                before(watch, step)
                x, y = data(step, rank, ranks)
                optimizer.zero_grad()
                F.cross_entropy(model(x), y).backward()
                nn.utils.clip_grad_norm_(model.parameters(), 0.5)
                optimizer.step()
    told = [str(each.message) for each in said if issubclass(each.category, ChainruleWarning)]
    return {"told": told, "parameters": [own_part(p.detach()).clone() for p in model.parameters()]}


def own_part(tensor):
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def figures(run: runs.Run):
    """All that is kept of a run, to be compared."""
    tensors = {(tensor.kind, tensor.name): run.series(tensor.kind, tensor.name).statistics for tensor in run.tensors()}
    return {"steps": run.steps(), "tensors": tensors, "findings": [each.id for each in run.findings()]}


def _watched(rank, ranks, folder):
    return watched(rank, ranks, folder, "run", full_every=4)


def _watch_failed(rank, ranks, folder):
    def fail(watch, step):
        if rank == 1 and step == 3:
            watch._read = lambda recording, cache: 1 / 0

    return watched(rank, ranks, folder, "failed", before=fail)


def _watch_alone(rank, ranks, folder):
    """Rank 1 does not watch, as where a script says `if rank == 0`."""
    if rank == 0:
        return watched(rank, ranks, folder, "alone")
    model = DDP(built())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(STEPS):
        optimizer.zero_grad()
        x, y = data(step, rank, ranks)
        F.cross_entropy(model(x), y).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
    return {"told": [], "parameters": [p.detach().clone() for p in model.parameters()]}


def _by_hand(rank, ranks, folder, name, left_out=(), since=0):
    """Gradients are reduced after backward, without a wrapper; from a step on without those of `left_out`."""
    model = built(small=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with chainrule.watch(model, optimizer, to=folder / f"{name}.db"):
        for step in range(STEPS):
            x, y = data(step, rank, ranks)
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            for key, parameter in model.named_parameters():
                if step < since or key not in left_out:
                    dist.all_reduce(parameter.grad)
                    parameter.grad /= ranks
            optimizer.step()


def _watch_nan(rank, ranks, folder):
    model = DDP(built(small=True))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    with chainrule.watch(model, optimizer, to=folder / "nan.db"):
        for step in range(2):
            x, y = data(step, rank, ranks)
            if step == 1 and rank == 1:
                x[0, 0] = float("nan")
            step_of(model, optimizer, x, y)


def leave_one_by_one(rank, ranks, folder):
    """Each training ends in the middle of a step; rank 1 closes its watch when rank 0 has."""
    store = dist.distributed_c10d._get_default_store()
    for name, wrap in (("alone", lambda model: model), ("replicated", DDP), ("sharded", sharded)):
        model = wrap(built())
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        watch = chainrule.watch(model, optimizer, to=folder / f"{name}.db")
        for step in range(4):
            x, y = data(step, rank, ranks)
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x * math.nan if step == 3 else x), y)
            if step < 3:
                loss.backward()
                optimizer.step()
        if rank == 1:
            store.wait([name], timedelta(seconds=60))
        watch.close()
        if rank == 0:
            store.set(name, "looked")


def watch_many(rank, ranks, folder):
    """The figure of four processes."""
    return watched(rank, ranks, folder, "run"), _step(rank, ranks)
