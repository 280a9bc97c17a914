"""Operations that raise when a check runs them again: that is said, and reaches nobody."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import chainrule
from chainrule.graph.reexecution import Reexecution

state = SimpleNamespace(calls=0, first=10**9, error=RuntimeError)


@torch.library.custom_op("raising::sine", mutates_args=())
def sine(x: Tensor) -> Tensor:
    state.calls += 1
    if state.calls > state.first:
        raise state.error("not again")
    return x.sin()


sine.register_fake(torch.empty_like)
sine.register_autograd(
    lambda ctx, g: g * ctx.saved_tensors[0].cos(),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
)


class Doubled(torch.autograd.Function):
    """Wrong by a factor."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.ops.raising.sine(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return 2 * g * torch.ops.raising.sine(ctx.saved_tensors[0] + torch.pi / 2)


@pytest.fixture(autouse=True)
def _reset() -> Iterator[None]:
    state.first = 10**9
    yield
    state.first = 10**9


def step(function: Callable[[Tensor], Tensor]) -> chainrule.Recording:
    x = torch.linspace(-1, 1, 6).reshape(2, 3).requires_grad_()
    with chainrule.record(keep="all") as recording:
        function(x * 2).square().sum().backward()
    assert recording.graph.values
    return recording


def why(recording: chainrule.Recording) -> None:
    recording.why(recording.graph.values[0].name, (0, 0))


def depends(recording: chainrule.Recording) -> None:
    loss = recording.graph.backwards[-1].loss
    assert loss is not None
    recording.depends(recording.graph.values[loss].name, recording.graph.values[0].name)


ACTIONS: dict[str, Callable[[chainrule.Recording], Any]] = {
    "verify": lambda recording: recording.verify(),
    "print": str,
    "why": why,
    "recompute": lambda recording: recording.recompute(),
    "depends": depends,
    "findings": lambda recording: recording.findings(),
}


def tried(action: Callable[[chainrule.Recording], Any], recording: chainrule.Recording) -> Any:
    try:
        return action(chainrule.Recording.of(recording.graph))
    except chainrule.ChainruleError:
        return None


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize(
    "function",
    [pytest.param(sine, id="operator"), pytest.param(Doubled.apply, id="function", marks=pytest.mark.slow)],
)
def test_whatever_raises_when_it_runs_again_reaches_nobody(function: Any, action: str) -> None:
    recording = step(function)
    state.calls = 0
    ACTIONS[action](chainrule.Recording.of(recording.graph))
    calls = state.calls
    for first in sorted({0, 1, 5, calls // 2, calls - 1} & set(range(calls))):
        for error in (RuntimeError, NotImplementedError, IndexError)[:: 1 if first == 0 else 2]:
            state.calls, state.first, state.error = 0, first, error
            before = torch.get_rng_state()
            found = tried(ACTIONS[action], recording)
            assert torch.equal(torch.get_rng_state(), before)
            assert torch.is_grad_enabled()
            if action == "verify" and first == 0:
                assert not found.passed
                assert "not again" in found.unchecked[0].reason
        state.calls, state.first, state.error = 0, first, KeyboardInterrupt
        with pytest.raises(KeyboardInterrupt):
            tried(ACTIONS[action], recording)


class WithoutFloat64:
    """An operation with kernels for coarser types alone, or with none."""

    runs = 0

    def __init__(self, operation: Any, none: bool) -> None:
        self.operation, self.none = operation, none

    def __getattr__(self, name: str) -> Any:
        return getattr(self.operation, name)

    def __str__(self) -> str:
        return str(self.operation)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.none or any(isinstance(each, Tensor) and each.dtype is torch.float64 for each in args):
            raise NotImplementedError("no kernel")
        WithoutFloat64.runs += 1
        return self.operation(*args, **kwargs)


def without_float64(recording: chainrule.Recording, factor: float, none: bool) -> chainrule.Verification:
    """The check of a step whose operations have no such kernels, and gave so many times their gradients."""
    graph = recording.graph
    operations = tuple(
        replace(each, function=each.function and Reexecution(WithoutFloat64(each.function.function, none)))
        for each in graph.operations
    )
    nodes = []
    for node in graph.nodes:
        executions = tuple(
            replace(each, sent=tuple(g and g.filled(factor * g.tensor) for g in each.sent)) for each in node.executions
        )
        nodes.append(node if node.leaf is not None else replace(node, executions=executions))
    return chainrule.Recording.of(replace(graph, operations=operations, nodes=tuple(nodes))).verify()


@pytest.mark.parametrize("none", [False, True], ids=["float32 alone", "no kernel"])
def test_an_operation_without_a_kernel_for_float64(none: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(4, 3, generator=generator).requires_grad_()
    weight = torch.randn(3, 3, generator=generator).requires_grad_()
    with chainrule.record() as recording:
        rows = F.embedding(torch.tensor([1, 1, 2]), table, padding_idx=2)
        F.cross_entropy((rows @ weight).tanh(), torch.tensor([0, 1, 2])).backward()

    def verdicts(factor: float) -> list[str]:
        rows = without_float64(recording, factor, none).rows
        return [row.verdict for row in rows if row.node.leaf is None]

    assert set(verdicts(1.0)) <= {"agrees", "by convention"}
    assert set(verdicts(3.0)) == {"disagrees"}
    assert set(verdicts(1.001)) == {"disagrees"}


def test_differences_of_a_right_gradient_in_float32_end_early(monkeypatch: pytest.MonkeyPatch) -> None:
    w = torch.linspace(-1, 1, 8).requires_grad_()
    with chainrule.record() as recording:
        w.tanh().square().sum().backward()
    monkeypatch.setattr(WithoutFloat64, "runs", 0)
    assert without_float64(recording, 1.0, none=False).passed
    assert WithoutFloat64.runs < 12 * 3 * 8  # of three operations at 8 elements, where all step sizes are 24 runs each


def test_the_recorder_is_not_in_the_traceback_of_an_error_of_the_users():
    w = torch.ones(2, requires_grad=True)

    def step() -> None:
        F.relu(w @ torch.ones(3))

    for around in (contextlib.nullcontext(), chainrule.record(), chainrule.record(keep="statistics")):
        with pytest.raises(RuntimeError) as caught, around:
            step()
        names = [entry.frame.f_globals["__name__"] for entry in caught.traceback]
        assert names == [__name__, __name__]
