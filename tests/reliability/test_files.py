"""Files: damaged ones, those of others, full disks, names of all kinds, and processes that are killed."""

import json
import multiprocessing
import os
import re
import resource
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import warnings
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import torch
from torch import nn

import chainrule
from chainrule import runs
from chainrule.errors import ChainruleWarning, StorageError
from tests.reliability.damage import KINDS, endless

ROOT = Path(__file__).parents[2]


def environment():
    package = Path(chainrule.__file__).parents[1]
    return os.environ | {"PYTHONPATH": f"{package}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}


def train(path, steps=3, start=None, model=None, **options):
    """Watch a training; gives what was said and the parameters."""
    torch.manual_seed(0)
    model = nn.Linear(2, 1) if model is None else model
    optimizer = torch.optim.Adam(model.parameters())
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", ChainruleWarning)
        with chainrule.watch(model, optimizer, to=path, start=start, **options) as watch:
            for _ in range(steps):
                optimizer.zero_grad()
                model(torch.ones(1, 2)).sum().backward()
                optimizer.step()
                if watch.writer is not None:
                    watch.writer.flush()
    told = [str(each.message) for each in said if issubclass(each.category, ChainruleWarning)]
    return told, [each.tolist() for each in model.parameters()]


# -- damage -----------------------------------------------------------------------------------------------------------


def check_damage(seed, folder, **counts):
    """Every damaged file ends in an error of chainrule or is read, in bounded memory and time."""
    command = [sys.executable, "-X", "faulthandler", "-m", "tests.reliability.damage", str(seed), str(folder)]
    result = subprocess.run(
        [*command, *(f"{kind}={count}" for kind, count in counts.items())], cwd=ROOT, env=environment(),
        capture_output=True, text=True, timeout=60 + 3 * sum(counts.values()), check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-2000:]
    for kind, found in json.loads(result.stdout).items():
        print(kind, {name: each for name, each in found.items() if name != "others"})
        assert not found["others"], "\n".join(found["others"][:3])
        assert found["error"] + found["equal"] + found["different"] == counts[kind]
        assert not found["different"]


def test_damaged_files(tmp_path):
    check_damage(1, tmp_path, recording=30, run=8, log=8, resumed=8)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_many_damaged_files(kind, tmp_path):
    check_damage(2, tmp_path, **{kind: 300})


def test_a_damaged_chunk_keeps_no_training_from_going_on(tmp_path):
    """The run goes to a file beside, again and again to the same; what cannot be read stays as it is."""
    path = tmp_path / "run.db"
    train(path, 10)
    with closing(sqlite3.connect(path)) as connection, connection:
        (column,) = connection.execute("SELECT mean FROM chunk").fetchone()
        connection.execute("UPDATE chunk SET mean = ?", (column[:-4] + bytes(4),))
    connection.close()
    before = path.read_bytes()
    bare = train(None, 5)
    for start in (8, 9):
        told, parameters = train(path, 5, start)
        assert parameters == bare[1]
        (sentence,) = told
        assert re.search(r"run\.db is damaged .* The run goes to .*run-2\.db\.$", sentence)
        assert path.read_bytes() == before
    with runs.open(tmp_path / "run-2.db") as run:
        assert [facts.step for facts in run.steps()] == [9, *range(10, 15)]


# -- files of others --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("journal", ["delete", "wal"])
@pytest.mark.parametrize("application", [0, 1234567])
@pytest.mark.parametrize("filled", [True, False])
def test_the_database_of_another_program_is_not_touched(tmp_path, application, filled, journal):
    path = tmp_path / "other.sqlite"
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA journal_mode = {journal}")
    connection.execute(f"PRAGMA application_id = {application}")
    if filled:
        connection.execute("CREATE TABLE run (x)")
        connection.execute("INSERT INTO run VALUES (1)")
    connection.commit()
    connection.close()
    if not (application or filled):
        pytest.skip("an empty database of no program may become ours")
    before = {each.name: each.read_bytes() for each in tmp_path.iterdir()}
    told, _ = train(path)
    assert len(told) == 1
    assert "it is a database of another program" in told[0]
    assert {each.name: each.read_bytes() for each in tmp_path.iterdir()} == before


@pytest.mark.parametrize("content", [b"x", b"#!/bin/sh\n", b"SQLite format 3\0", os.urandom(5000)])
def test_what_is_no_database_is_not_touched(tmp_path, content):
    path = tmp_path / "run.db"
    path.write_bytes(content)
    told, _ = train(path)
    assert len(told) == 1
    assert path.read_bytes() == content
    with pytest.raises(StorageError):
        runs.open(path)


# -- disks ------------------------------------------------------------------------------------------------------------


@contextmanager
def full(size):
    """No file may grow beyond a size, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("size", [0, 40_000, 150_000])
def test_a_full_disk_is_one_warning(tmp_path, size):
    bare = train(None, 20)[1]
    with full(size):
        told, parameters = train(tmp_path / "run.db", 20, model=None, full_every=5)
    assert parameters == bare
    files = [each for each in told if "could not be saved in full" in each]
    assert len(told) - len(files) == 1, told
    told, _ = train(tmp_path / "run.db", 2)  # there is room again
    assert told == []


def test_a_folder_that_cannot_be_written_is_one_warning(tmp_path):
    told, parameters = train(tmp_path / "none" / "run.db", 5)
    assert len(told) == 1
    assert told[0].endswith("The training is watched without a file.")
    assert parameters == train(None, 5)[1]
    for place in (Path("/proc/run.db"), tmp_path):
        assert len(train(place)[0]) == 1


def test_a_locked_file_holds_nothing_up_for_long(tmp_path):
    path = tmp_path / "run.db"
    train(path, 2)
    lock = sqlite3.connect(path, isolation_level=None)
    lock.execute("BEGIN IMMEDIATE")
    began = time.monotonic()
    told, _ = train(path, 2)
    assert time.monotonic() - began < 10
    assert len(told) == 1
    assert "database is locked" in told[0]
    lock.execute("ROLLBACK")
    lock.close()
    assert train(path, 2)[0] == []


# -- names ------------------------------------------------------------------------------------------------------------

NAMES = [
    "Scale[2]", "a b", "a\nb", "it's", 'a"b', "größe", "名前", "\U0001f600", "f.<locals>.g", "<lambda>", "class",
    "None", "__class__", "Value", "tensor", "dict", "", " ", "../../x", "x" * 10_000, "a\tb\r\\", "</script>", "%s{0}",
    "\x1b[31m",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_a_name_of_any_kind_is_read_back(tmp_path, name):
    """Of an autograd.Function, a module's class, a submodule and a parameter, in a recording and in a run."""
    times = {"forward": staticmethod(lambda ctx, x: x * 2), "backward": staticmethod(lambda ctx, g: g * 2)}
    function = type(name, (torch.autograd.Function,), times)
    layer = type(name, (nn.Linear,), {"forward": lambda self, x: function.apply(nn.Linear.forward(self, x))})
    child = name.replace(".", "_") if name and not hasattr(nn.Module, name) else "taken"
    model = nn.Module()
    model.add_module(child, layer(2, 1))
    model.register_parameter(f"{child} too", nn.Parameter(torch.ones(1)))
    model.forward = lambda x: model._modules[child](x) * model._parameters[f"{child} too"]
    with chainrule.record() as recording:
        model(torch.ones(1, 2)).sum().backward()
    recording.save(tmp_path / "step.safetensors")
    loaded = chainrule.load(tmp_path / "step.safetensors")
    assert str(loaded)
    assert name in {node.function_class.__name__ for node in loaded.graph.nodes if node.function_class}
    train(tmp_path / "run.db", 2, model=model)
    with runs.open(tmp_path / "run.db") as run:
        assert f"{child} too" in {each.name for each in run.tensors("parameter")}
        assert [facts.step for facts in run.steps()] == [1, 2]
        run.save(tmp_path / "run.html")


def test_a_name_that_is_no_text_is_stored(tmp_path):
    """Half of a surrogate pair, which UTF-8 cannot hold."""
    model = nn.Sequential()
    model.add_module("a\ud83d", nn.Linear(2, 1))
    told, _ = train(tmp_path / "run.db", 2, model=model)
    assert told == []
    with runs.open(tmp_path / "run.db") as run:
        assert r"a\ud83d.weight" in {each.name for each in run.tensors("parameter")}


# -- killed -----------------------------------------------------------------------------------------------------------


def check_kills(tmp_path, count):
    """One training that is killed and resumed again and again, while a reader reads all the time."""
    path = tmp_path / "run.db"
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["tests.reliability.damage"])
    wrong, stop, read = [], threading.Event(), 0

    def reading():
        nonlocal read
        while not stop.is_set():
            if path.exists() and path.stat().st_size:
                try:
                    with runs.open(path) as run:
                        steps = [facts.step for facts in run.steps()]
                        assert steps == list(range(1, len(steps) + 1))
                        run.table("update", "norm")
                        read += 1
                except chainrule.errors.MissingError:
                    pass  # no run is in it yet
                except Exception as error:
                    wrong.append(error)
            time.sleep(0.02)

    reader = threading.Thread(target=reading)
    reader.start()
    try:
        starts = []
        for number in range(count):
            hear, say = processes.Pipe(duplex=False)
            process = processes.Process(target=endless, args=(path, say))
            process.start()
            starts.append(hear.recv())
            time.sleep(0.1 * (number % 10))
            process.kill()
            process.join()
    finally:
        stop.set()
        reader.join()
    print(f"{count} kills, {read} readings, resumed at {starts}")
    assert not wrong, wrong[:3]
    assert read > count
    with runs.open(path) as run:
        assert run.status == "running"
        assert len(run.runs) == starts.count(0)
    assert starts[-1] > 0


@pytest.mark.slow
def test_killed_thirty_times_while_somebody_reads(tmp_path):
    check_kills(tmp_path, 30)
