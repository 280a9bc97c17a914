"""Recorded with figures alone and recomputed, a step of each architecture is the one that was recorded in full."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch

import chainrule
from chainrule.graph.statistics_cache import StatisticsCache
from tests.zoo.models import ZOO
from tests.zoo.test_zoo import OF_TRANSFORMERS

pytestmark = pytest.mark.usefixtures("quiet")

SINGLE = 8  # bytes: single numbers are kept, and nothing else
BUFFERS = 128  # batch normalisation writes to its running statistics in the step: they must have been kept
WITH_BUFFERS = {"resnet", "gan"}

# Memory that nothing, or not everything, is written to: an operation's own workspace, and what is filled later.
EMPTY = ("aten.empty", "aten.new_empty")
WORKSPACE = "aten.mkldnn_rnn_layer.default"


@pytest.mark.parametrize("name", ZOO)
def test_what_is_recomputed_is_what_was(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if name in OF_TRANSFORMERS and importlib.util.find_spec("transformers") is None:
        pytest.skip(f"{name} is a model of transformers, which is not installed here.")
    monkeypatch.setattr("chainrule.capture.retention.SMALL", BUFFERS if name in WITH_BUFFERS else SINGLE)
    whole, thin = _recorded(name, "all"), _recorded(name, "statistics")
    unkept = [value.index for value in thin.graph.values if value.data is None]
    recomputed = thin.recompute()

    assert unkept
    assert recomputed.is_whole
    assert recomputed.graph.notes[-1].startswith("recomputed, not recorded: everything")
    empty: set[int] = set()
    for was, now in zip(whole.graph.values, recomputed.graph.values, strict=True):
        assert was.data is not None
        assert now.data is not None
        if _means_nothing(whole, was, empty):
            empty.add(was.index)
        else:
            assert _same_bits(was.data, now.data), was.name
        assert (was.grad is None) == (now.grad is None), was.name
        if was.grad is not None and now.grad is not None:
            close = 1e-6 * float(was.grad.abs().max())
            torch.testing.assert_close(now.grad, was.grad, rtol=1e-5, atol=close, msg=was.name)


@pytest.mark.parametrize("name", ZOO)
def test_a_step_is_replayed_after_its_update(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if name in OF_TRANSFORMERS and importlib.util.find_spec("transformers") is None:
        pytest.skip(f"{name} is a model of transformers, which is not installed here.")
    monkeypatch.setattr("chainrule.capture.retention.SMALL", BUFFERS if name in WITH_BUFFERS else SINGLE)
    whole, thin = (_updated(name, keep) for keep in ("all", "statistics"))
    thin.at_once(StatisticsCache(), magnitudes=False)
    again = thin.to_last().recompute()
    assert again.is_whole
    assert again.loss == whole.loss
    for was, now in zip(whole.parameters.values(), again.parameters.values(), strict=True):
        for one, other in ((was.before, now.before), (was.after, now.after)):
            assert one is not None
            assert other is not None
            assert _same_bits(one, other), was.name


def _updated(name: str, keep: str) -> chainrule.Recording:
    torch.manual_seed(0)
    model, loss = ZOO[name]()
    optimizer = torch.optim.AdamW(model.parameters())
    session = chainrule.record(keep=keep)
    session.keep_leaves()
    with session as recording:
        loss(model).backward()
        optimizer.step()
    return recording


def _recorded(name: str, keep: str) -> chainrule.Recording:
    torch.manual_seed(0)
    model, loss = ZOO[name]()
    with chainrule.record(keep=keep) as recording:
        loss(model).backward()
    _ = recording.graph
    return recording


def _means_nothing(recording: chainrule.Recording, value: Any, empty: set[int]) -> bool:
    if value.operation is None:
        return False
    operation = recording.graph.operations[value.operation]
    if operation.name == "aten.detach.default":
        return operation.arguments["self"].value in empty
    return operation.name.startswith(EMPTY) or (operation.name == WORKSPACE and value.slot == 3)


def _same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    one, other = one.contiguous(), other.contiguous()
    return one.dtype == other.dtype and torch.equal(one.flatten().view(torch.uint8), other.flatten().view(torch.uint8))
