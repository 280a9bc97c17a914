"""Hooks of the whole process come and go while other threads train."""

import subprocess
import sys
import threading
import time

import pytest
import torch
from torch import nn
from torch.optim import optimizer as optimizer_hooks

import chainrule


@pytest.mark.parametrize("observed", [chainrule.record, chainrule.watch])
def test_another_thread_steps_while_hooks_come_and_go(observed):
    """Its optimizer has a hook that lets other threads run, in the middle of PyTorch's iteration over all hooks."""
    model, other = nn.Linear(2, 1), nn.Linear(2, 1)
    stop, failed, steps = threading.Event(), [], 0

    def train():
        nonlocal steps
        optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
        optimizer.register_step_post_hook(lambda *_: time.sleep(1e-5))
        while not stop.is_set():
            try:
                optimizer.step()
                steps += 1
            except Exception as error:
                failed.append(error)

    handles = [
        register(lambda *_: time.sleep(1e-5))
        for register in (
            optimizer_hooks.register_optimizer_step_pre_hook, optimizer_hooks.register_optimizer_step_post_hook
        )
    ]  # fmt: skip
    thread = threading.Thread(target=train)
    thread.start()
    try:
        until = time.monotonic() + 20
        while steps < 20 and time.monotonic() < until:
            time.sleep(0.01)
        for _ in range(60):
            with observed():
                model(torch.ones(1, 2))
    finally:
        stop.set()
        thread.join()
        for handle in handles:
            handle.remove()
    assert not failed
    assert steps >= 20


def test_hooks_from_before_the_import_are_called_and_removed_as_before():
    script = (
        "import torch\n"
        "from torch.optim import optimizer as hooks\n"
        "called = []\n"
        "before = hooks.register_optimizer_step_pre_hook(lambda *_: called.append('before'))\n"
        "import chainrule\n"
        "model = torch.nn.Linear(1, 1)\n"
        "optimizer = torch.optim.SGD(model.parameters(), lr=0.1)\n"
        "with chainrule.record():\n"
        "    optimizer.step()\n"
        "after = hooks.register_optimizer_step_pre_hook(lambda *_: called.append('after'))\n"
        "assert len(hooks._global_optimizer_pre_hooks) == 2 and before.id in hooks._global_optimizer_pre_hooks\n"
        "optimizer.step()\n"
        "before.remove()\n"
        "optimizer.step()\n"
        "after.remove()\n"
        "optimizer.step()\n"
        "assert called == ['before', 'before', 'after', 'after'], called\n"
        "assert not hooks._global_optimizer_pre_hooks\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
