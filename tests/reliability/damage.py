"""Damages files at random and reads them: `python -m tests.reliability.damage SEED FOLDER KIND=COUNT...`.

Prints as JSON, by kind, how many ended in an error of chainrule, how many were read and equal, and what else happened.
It is a process of its own, with a limit of memory, so that a crash, a hang or a huge allocation shows.
"""

import json
import random
import resource
import sqlite3
import sys
import traceback
import warnings
from itertools import count
from pathlib import Path

import torch
from torch import nn

import chainrule
from chainrule import runs, watch
from chainrule.errors import ChainruleError

MEMORY = 2**31  # bytes above what the process has when it begins
KINDS = ("recording", "run", "log", "resumed")


def damaged(content, chance):
    """The content with one of the faults of disks and copies."""
    data = bytearray(content)
    place = chance.randrange(len(data))
    size = min(chance.choice((1, 8, 512, 4096, len(data) // 3)), len(data) - place)
    fault = chance.choice(("bit", "bit", "byte", "cut", "zeroes", "noise", "inserted", "missing", "swapped"))
    if fault == "bit":
        for _ in range(chance.choice((1, 1, 10))):
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    elif fault == "byte":
        data[place] = chance.choice((0, 255, 127, 128))
    elif fault == "cut":
        del data[place:]
    elif fault == "zeroes":
        data[place : place + size] = bytes(size)
    elif fault == "noise":
        data[place : place + size] = chance.randbytes(size)
    elif fault == "inserted":
        data[place:place] = chance.randbytes(size)
    elif fault == "missing":
        del data[place : place + size]
    else:
        other = chance.randrange(len(data) - size)
        data[place : place + size], data[other : other + size] = data[other : other + size], data[place : place + size]
    return bytes(data)


def training(path, steps, start=None):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    with watch(model, optimizer, to=path, start=start):
        for step in range(steps):
            optimizer.zero_grad()
            model(torch.full((2, 3), float(step))).sum().backward()
            optimizer.step()
    return [each.tolist() for each in model.parameters()]


def endless(path, say):
    """Resume on what is in the file, say where once five steps more are in it, train until killed."""
    torch.set_num_threads(1)
    try:
        with runs.open(path) as run:
            start = max((facts.step for facts in run.steps()), default=0) * 3 // 4
    except ChainruleError:
        start = 0
    model = nn.Linear(2, 1)
    optimizer = torch.optim.Adam(model.parameters())
    with watch(model, optimizer, to=path, start=start) as watching:
        for step in count():
            optimizer.zero_grad()
            model(torch.ones(1, 2)).sum().backward()
            optimizer.step()
            if step == 4:
                watching.writer.flush()
                say.send(start)


class Recordings:
    """Files of recordings; what is read is what it saves again."""

    def __init__(self, folder):
        self.path, self.again = folder / "step.safetensors", folder / "again.safetensors"
        model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 1))
        optimizer = torch.optim.Adam(model.parameters())
        with chainrule.record() as recording:
            model(torch.ones(2, 3)).square().mean().backward()
            optimizer.step()
        recording.save(self.path)
        self.files = {self.path: self.path.read_bytes()}
        self.whole = {self.read()}

    def read(self):
        chainrule.load(self.path).save(self.again)
        saved = self.again.read_bytes()
        body = 8 + int.from_bytes(saved[:8], "little")
        header = json.loads(saved[8:body])  # safetensors writes its entries in any order
        return json.dumps(header, sort_keys=True), saved[body:]


class Runs:
    """Files of runs; what is read is all that a run tells."""

    def __init__(self, folder):
        self.path, self.reads = folder / "run.db", 0
        training(self.path, 90)
        self.files = {self.path: self.path.read_bytes()}
        self.whole = {self.read()}  # what may be read

    def read(self):
        with runs.open(self.path) as run:
            history = run.history()
            tables = [
                [part.tolist() if hasattr(part, "tolist") else part for part in run.table(kind, name, marked=True)]
                for kind in dict.fromkeys(each.kind for each in run.tensors())
                for name in ("norm", "zeros")
            ]
            facts = [run.status, run.began, run.every, run.versions, run.findings(), run.recordings(), run.losses()]
            run.ratios()
            self.reads += 1
            for suffix in (".txt", ".json", ".html")[: 2 + (self.reads % 5 == 0)]:  # a page takes longest
                run.save(self.path.with_suffix(suffix))
            return repr((history, tables, facts))


class Logs(Runs):
    """The log of a run that was killed: what is read are whole transactions, as if it had been killed before."""

    def __init__(self, folder):
        super().__init__(folder)
        log = Path(f"{self.path}-wal")
        writer = sqlite3.connect(self.path, isolation_level=None)
        writer.execute("PRAGMA wal_autocheckpoint = 0")
        for last in (80, 70, 60):
            writer.execute("DELETE FROM step WHERE step > ?", (last,))
            self.files = {log: log.read_bytes(), self.path: self.path.read_bytes()}
            self.whole.add(self.read())
        writer.close()


class Resumed(Runs):
    """A training that resumes on the file of a run: its parameters are as without a watch, with one warning at most."""

    def __init__(self, folder):
        self.bare = training(None, 5)
        super().__init__(folder)

    def read(self):
        before = self.path.read_bytes()
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            assert training(self.path, 5, start=50) == self.bare
        assert len(said) <= 1, [str(each.message) for each in said]
        beside = sorted(self.path.parent.glob("run-*.db"))
        if beside:
            with runs.open(beside[0]) as run:
                assert [facts.step for facts in run.steps()] == [51, 52, 53, 54, 55]
        for each in (*beside, *self.path.parent.glob("run-*.db-*")):
            each.unlink()
        if said:
            assert self.path.read_bytes() == before or not beside
            raise ChainruleError("resumed with a warning")
        return "went on"


def tried(kind, number_of, seed, folder):
    made = {"recording": Recordings, "run": Runs, "log": Logs, "resumed": Resumed}[kind](folder)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, resource.RLIM_INFINITY))
    chance, found, others = random.Random(seed), {"error": 0, "equal": 0, "different": 0}, []
    for number in range(number_of):
        for beside in (f"{made.path}-wal", f"{made.path}-shm"):
            Path(beside).unlink(missing_ok=True)
        for place, (path, content) in enumerate(made.files.items()):
            path.write_bytes(content if place else damaged(content, chance))
        try:
            found["equal" if made.read() in made.whole else "different"] += 1
        except ChainruleError:
            found["error"] += 1
        except BaseException:
            others.append(f"number {number}: {traceback.format_exc()[-1500:]}")
    return {**found, "others": others}


def main():
    seed, folder, *asked = sys.argv[1:]
    found = {}
    for kind, _, number_of in (each.partition("=") for each in asked):
        (here := Path(folder, kind)).mkdir()
        found[kind] = tried(kind, int(number_of), int(seed), here)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
