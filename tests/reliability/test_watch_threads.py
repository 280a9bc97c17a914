"""A watch sees the training of its own thread, and what runs in other threads passes as if it were not there."""

from __future__ import annotations

import threading
import time
import warnings

import pytest
import torch
from torch import nn
from torch.optim import optimizer as optimizer_hooks

import chainrule
from chainrule.errors import ChainruleWarning

pytestmark = pytest.mark.trains
STEPS = 20


class Training:
    """A small training without randomness while it runs; its model has the width of its seed, and so its names."""

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.model = nn.Sequential(*(each for _ in range(seed) for each in (nn.Linear(3, 3), nn.Tanh())))
        for each in self.model.parameters():
            each.data = torch.randn(each.shape, generator=generator)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01, momentum=0.9)
        self.x = torch.randn(8, 3, generator=generator)

    def step(self) -> None:
        self.optimizer.zero_grad()
        self.model(self.x).tanh().square().mean().backward()
        self.optimizer.step()

    def run(self, steps: int = STEPS) -> Training:
        for _ in range(steps):
            self.step()
        return self

    @property
    def end(self) -> list[torch.Tensor]:
        return [each.detach() for each in self.model.parameters()]


def beside(work, until):
    """Runs `work` again and again in a thread, until an event; gives the thread and what it raised."""
    failed = []

    def loop():
        try:
            while not until.is_set():
                work()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=loop, daemon=True)
    thread.start()
    return thread, failed


def evaluation():
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2))

    def evaluate():
        with torch.no_grad():
            model(torch.ones(1, 3))

    return evaluate


def failing_forward():
    """A model whose forward pass raises, which its thread survives."""

    class Broken(nn.Module):
        def forward(self, x):
            raise ValueError("too large")

    model = Broken()

    def call():
        with pytest.raises(ValueError, match="too large"):
            model(torch.ones(1, 3))

    return call


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("other", [evaluation, lambda: Training(3).step, failing_forward])
def test_another_thread_evaluates_or_trains(given, other):
    stop = threading.Event()
    thread, failed = beside(other(), stop)
    watched, bare = Training(2), Training(2).run()
    try:
        with chainrule.watch(*((watched.model, watched.optimizer) if given else ()), every=1) as watch:
            watched.run()
    finally:
        stop.set()
        thread.join(60)
    assert not failed
    assert (watch.step_number, watch.watched) == (STEPS, STEPS)
    assert all(map(torch.equal, watched.end, bare.end))
    assert {name for kind, name in watch.history.series if kind == "parameter"} == {
        name for name, _ in watched.model.named_parameters()
    }
    assert not [each for each in watch.findings if each.severity != "note"]


def test_the_watched_model_is_evaluated_in_another_thread():
    stop = threading.Event()
    watched, bare = Training(2), Training(2).run()

    def evaluate():
        with torch.no_grad():
            watched.model(watched.x)

    thread, failed = beside(evaluate, stop)
    try:
        with chainrule.watch(watched.model, watched.optimizer) as watch:
            watched.run()
    finally:
        stop.set()
        thread.join(60)
    assert not failed
    assert watch.watched == STEPS
    assert all(map(torch.equal, watched.end, bare.end))


def test_two_threads_watch_at_once():
    trainings, watches = [Training(2), Training(3)], {}

    def work(place):
        training = trainings[place]
        with chainrule.watch(training.model, training.optimizer, every=place + 1) as watches[place]:
            training.run()

    threads = [threading.Thread(target=work, args=(place,)) for place in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert [watches[place].watched for place in range(2)] == [STEPS, STEPS // 2 + 1]
    for training, seed in zip(trainings, (2, 3), strict=True):
        assert all(map(torch.equal, training.end, Training(seed).run().end))
    assert not optimizer_hooks._global_optimizer_pre_hooks


def test_a_step_of_another_thread_in_the_middle_of_ours():
    """The other optimizer's step runs whole while ours has begun."""

    class Slow(torch.optim.SGD):
        def step(self, closure=None):
            thread = threading.Thread(target=other.step)
            thread.start()
            thread.join(60)
            return super().step(closure)

    other, watched = Training(3), Training(2)
    watched.optimizer = Slow(watched.model.parameters(), lr=0.01, momentum=0.9)
    with chainrule.watch(every=1) as watch:
        watched.run()
    assert (watch.step_number, watch.watched) == (STEPS, STEPS)
    assert all(map(torch.equal, other.end, Training(3).run().end))
    assert all(map(torch.equal, watched.end, Training(2).run().end))


@pytest.mark.parametrize("given", [True, False])
def test_a_training_in_another_thread_than_the_watch_is_said_to_be_missed(given):
    training = Training(2)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with chainrule.watch(*((training.model, training.optimizer) if given else ())) as watch:
            thread = threading.Thread(target=training.run)
            thread.start()
            thread.join(60)
    sentences = [str(each.message) for each in told if each.category is ChainruleWarning]
    assert any("another thread" in each or "other threads" in each for each in sentences)
    assert watch.watched == 0
    assert all(map(torch.equal, training.end, Training(2).run().end))


@pytest.mark.slow
def test_hooks_come_and_go_while_another_thread_steps():
    """Its optimizer's hooks let other threads run, in the middle of PyTorch's iteration over all hooks."""
    stop, other, watched = threading.Event(), Training(3), Training(2)
    other.optimizer.register_step_post_hook(lambda *_: time.sleep(1e-5))
    registers = (
        optimizer_hooks.register_optimizer_step_pre_hook, optimizer_hooks.register_optimizer_step_post_hook
    )  # fmt: skip
    handles = [register(lambda *_: time.sleep(1e-5)) for register in registers]
    thread, failed = beside(other.step, stop)
    try:
        for _ in range(30):
            with chainrule.watch(every=1):
                watched.step()
    finally:
        stop.set()
        thread.join(60)
        for handle in handles:
            handle.remove()
    assert not failed
    assert all(map(torch.equal, watched.end, Training(2).run(30).end))
