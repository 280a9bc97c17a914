"""A run that is killed at any moment leaves a file that opens, with all but what was seen just before."""

import contextlib
import multiprocessing
import random
import time

import pytest

from chainrule import runs
from tests.runs.made_up import endlessly

BATCH = 0.05  # seconds
LATE = 0.5  # a batch, and what a busy machine needs to write it


@pytest.fixture(scope="module")
def processes():
    """Processes that have everything imported already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.runs.made_up", "chainrule.monitor.runs.writer"])
    return context


def killed(processes, path, after):
    """Write a run in a process of its own, kill it; gives (step, when it was handed over) of each, and when it died."""
    hear, say = processes.Pipe(duplex=False)
    process = processes.Process(target=endlessly, args=(path, BATCH, say))
    process.start()
    say.close()
    said = [hear.recv()]  # it has begun
    time.sleep(after)
    died = time.monotonic()
    process.kill()
    with contextlib.suppress(EOFError, OSError):
        while True:
            said.append(hear.recv())
    process.join()
    return said, died


def check(processes, path, after):
    said, died = killed(processes, path, after)
    with runs.open(path) as run:
        steps = [facts.step for facts in run.steps()]
        assert steps == list(range(1, len(steps) + 1))
        assert len(steps) <= len(said) + 1
        lost = [when for step, when in said if step > len(steps)]
        assert not lost or died - min(lost) < LATE, f"a step of {died - min(lost):.3f} s before the end is missing"
        if steps:  # each step is there with its tensors, and they are right
            series = run.series("parameter gradient", "fc1.weight")
            assert series.steps == steps
            assert [each.norm for each in series.statistics] == steps
            assert run.status == "running"


def deaths(count, seed):
    generator = random.Random(seed)
    return [generator.uniform(0, 0.4) for _ in range(count)]


def test_killed_at_eight_moments(processes, tmp_path):
    for number, after in enumerate(deaths(8, seed=1)):
        check(processes, tmp_path / f"{number}.db", after)


@pytest.mark.slow
def test_killed_at_two_hundred_moments(processes, tmp_path):
    for number, after in enumerate(deaths(200, seed=2)):
        check(processes, tmp_path / f"{number}.db", after)


def test_a_killed_run_goes_on_where_its_checkpoint_was(processes, tmp_path):
    path = tmp_path / "run.db"
    check(processes, path, 0.4)
    writer = runs.Writer(path, start=5)
    writer.close()
    with runs.open(path) as run:
        assert [facts.step for facts in run.steps()] == [1, 2, 3, 4, 5]
        assert run.series("update", "fc2.weight").steps == [1, 2, 3, 4, 5]
