"""Long chains: every stage goes through them without recursion, and without garbage collection that finds nothing."""

from __future__ import annotations

import gc
import pkgutil
import subprocess
import sys
import textwrap
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch

import chainrule
import chainrule.graph.graph
from chainrule.document import Document
from chainrule.views import written

CHAIN = """
    import sys, threading, torch, chainrule

    start = torch.full((2,), 0.5, requires_grad=True)

    def chain(length):
        x = start
        for _ in range(length // 2):
            x = torch.tanh(x * 1.01)
        x.sum().backward()

    def run(length, path):
        with chainrule.record():
            chain(length)  # nobody asks for its graph
        start.grad = None
        with chainrule.record() as recording:
            chain(length)
        assert len(recording.nodes) == length + 2
        assert torch.allclose(recording.derivation.gradients[recording.graph.nodes[0].leaf], start.grad)
        recording.save(path)
        assert len(chainrule.load(path).nodes) == length + 2

    length, stack, path = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    if stack:
        threading.stack_size(stack)
    thread = threading.Thread(target=run, args=(length, path))
    thread.start()
    thread.join()
    print("done")
"""


def through(length: int, stack: int, path: Path) -> subprocess.CompletedProcess[str]:
    """A chain through all stages, in a process of its own: recursion would overflow the stack and end it."""
    command = [sys.executable, "-c", textwrap.dedent(CHAIN), str(length), str(stack), str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_chain_longer_than_the_stack_is_deep(tmp_path: Path) -> None:
    done = through(3_000, 512 * 1024, tmp_path / "chain.safetensors")
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


def test_a_long_description_stands_beside_the_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.ones(2, requires_grad=True)
    with chainrule.record() as recording:
        x.tanh().sum().backward()
    monkeypatch.setattr("chainrule.graph.storage.IN_HEADER", 100)
    recording.save(tmp_path / "step.safetensors")
    again = chainrule.load(tmp_path / "step.safetensors")
    assert [node.name for node in again.nodes] == [node.name for node in recording.nodes]
    assert again.verify().passed


@pytest.mark.slow
def test_a_chain_of_a_hundred_thousand_nodes(tmp_path: Path) -> None:
    done = through(100_000, 0, tmp_path / "chain.safetensors")
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


def test_the_turns_of_a_loop_are_not_each_followed_back_to_the_data(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    ancestors = chainrule.graph.graph.Graph.ancestors

    def counted(graph: chainrule.graph.graph.Graph, values: Iterable[int]) -> set[int]:
        asked[-1] += 1
        return ancestors(graph, values)

    monkeypatch.setattr(chainrule.graph.graph.Graph, "ancestors", counted)
    cell, head = torch.nn.RNNCell(2, 3), torch.nn.Linear(3, 1)
    for turns in (5, 40):
        h, losses = torch.zeros(4, 3), []
        with chainrule.record() as recording:
            for _ in range(turns):
                h = cell(torch.ones(4, 2), h)
                losses.append(head(h).square().mean())
            torch.stack(losses).mean().backward()
        asked.append(0)
        recording.findings()
    assert asked[1] <= asked[0] + 5


def test_nothing_is_collected_while_a_graph_is_built() -> None:
    x = torch.full((2,), 0.5, requires_grad=True)
    with chainrule.record() as recording:
        y = x
        for _ in range(400):
            y = torch.tanh(y)
        y.sum().backward()
    began: list[str] = []

    def seen(phase: str, _: object) -> None:
        began.append(phase)

    gc.callbacks.append(seen)
    try:
        graph = recording.graph
    finally:
        gc.callbacks.remove(seen)
    assert len(graph.nodes) == 402
    assert len(began) <= 2  # one at the end, when the collector is back; some twenty otherwise
    assert gc.isenabled()


@pytest.mark.parametrize("collecting", [True, False])
def test_the_collector_is_left_as_it_was(collecting: bool) -> None:
    before = gc.isenabled()
    try:
        (gc.enable if collecting else gc.disable)()
        collected = []

        class Broken:
            def __iter__(self):
                collected.append(gc.isenabled())
                raise ValueError("in the middle")

        with pytest.raises(ValueError, match="in the middle"):
            written(Document(Broken(), (), ()), ".html")  # type: ignore[arg-type]
        assert collected == [False]
        assert gc.isenabled() is collecting
    finally:
        (gc.enable if before else gc.disable)()


def _page_of(depth: int) -> Document:
    """Of a chain of layers of which a ReLU lets no gradient through, so that those before it get exactly 0."""
    torch.manual_seed(0)
    layers = [torch.nn.Linear(2, 2) for _ in range(depth)]
    off = torch.nn.Linear(2, 2)
    torch.nn.init.constant_(off.bias, -100.0)
    with chainrule.record() as recording:
        x = torch.nn.Sequential(*layers)(torch.randn(2, 2))
        torch.nn.Linear(2, 1)(torch.relu(off(x))).sum().backward()
    return recording.document(pointing=True)


@pytest.mark.parametrize(
    "counted",
    [
        "verification.gradient_check.Rows.row",
        "derivation.contributions._entries_of",
        "diagnostics.step_context.StepContext.statistics",
    ],
)
def test_what_lies_behind_a_gradient_is_worked_out_once(counted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    *path, name = counted.split(".")
    owner = pkgutil.resolve_name(f"chainrule.{'.'.join(path)}")
    function, calls = getattr(owner, name), []

    def counting(*given: object, **named: object) -> object:
        calls.append(name)
        return function(*given, **named)

    monkeypatch.setattr(owner, name, counting)
    counts = []
    for depth in (6, 12, 24):
        calls.clear()
        _page_of(depth)
        counts.append(len(calls))
    assert counts[2] - counts[1] < 2.3 * (counts[1] - counts[0]), counts
