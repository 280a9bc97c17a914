"""A training on several ranks, one of which misbehaves, bare (`every` 0) or watched.

One process per rank: `python -m tests.reliability.misbehaving PORT RANKS RANK FOLDER CASE:EVERY...`. After each case a
rank prints its losses and parameters as JSON, exact to the bit.
"""

import contextlib
import faulthandler
import json
import os
import sys
import time
import warnings
from datetime import timedelta

import torch
from torch import distributed as dist
from torch import nn
from torch.distributed.algorithms.join import Join
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

import chainrule
from chainrule.errors import ChainruleWarning

STEPS, FEWER, AT = 12, 8, 5
TOGETHER = ("plain", "sharded", "uneven", "skip", "nan", "sizes", "watch-on-0", "no-watch-on-0", "slow")
"""Cases after which the ranks still work together."""
ENDING = ("raise", "crash", "early")  # others


def train(case, every, folder):
    """Train as the case says; the last rank is the one that misbehaves."""
    began = time.monotonic()
    rank, last = dist.get_rank(), dist.get_world_size() - 1
    odd = rank == last
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
    if case == "sharded":
        for layer in (model[0], model[2]):
            fully_shard(layer)
        trained = fully_shard(model)
    else:
        trained = DistributedDataParallel(model)
    optimizer = torch.optim.Adam(trained.parameters(), lr=0.01)
    torch.manual_seed(100 + rank)
    losses = []
    watched = every and not (case == "watch-on-0" and rank) and not (case == "no-watch-on-0" and not rank)
    watches = contextlib.ExitStack()
    said = watches.enter_context(warnings.catch_warnings(record=True))
    warnings.simplefilter("always")
    if watched:
        watches.enter_context(chainrule.watch(trained, optimizer, every=every, to=f"{folder}/{case}-{every}.db"))
    try:
        with watches, Join([trained]) if case == "uneven" else contextlib.nullcontext():
            for step in range(FEWER if odd and case in ("uneven", "early") else STEPS):
                x = torch.randn(4 + (rank if case == "sizes" else 0), 4)
                if odd and step == AT:
                    if case == "nan":
                        x[0, 0] = float("nan")
                    if case == "crash":
                        os._exit(3)
                    if case == "raise":
                        raise ValueError("an error of the training")
                if odd and case == "slow":
                    time.sleep(0.2)
                optimizer.zero_grad()
                loss = trained(x).square().mean()
                loss.backward()
                if odd and step == AT and case == "skip":
                    continue
                if odd and case == "slow":
                    time.sleep(0.2)
                optimizer.step()
                losses.append(loss.item())
    finally:
        parameters = [p.to_local() if isinstance(p, DTensor) else p for p in trained.parameters()]
        told = [str(each.message) for each in said if issubclass(each.category, ChainruleWarning)]
        found = {
            "case": f"{case}:{every}", "seconds": time.monotonic() - began, "told": told,
            "losses": [each.hex() for each in losses],
            "parameters": [number.hex() for each in parameters for number in each.flatten().tolist()],
        }  # fmt: skip
        print(json.dumps(found), flush=True)


def main():
    port, ranks, rank, folder, *cases = sys.argv[1:]
    faulthandler.enable()  # an abort shows where each thread was
    torch.set_num_threads(1)
    store = dist.TCPStore("127.0.0.1", int(port), int(ranks), is_master=False)
    dist.init_process_group("gloo", store=store, rank=int(rank), world_size=int(ranks), timeout=timedelta(seconds=60))
    for each in cases:
        case, every = each.split(":")
        train(case, int(every), folder)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
