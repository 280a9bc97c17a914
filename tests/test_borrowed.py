"""What a recording borrows of the user's own tensors until it is read, or until they change."""

from __future__ import annotations

import pytest
import torch
from torch.optim import optimizer as optimizer_hooks

import chainrule
from tests.steps import Wide

LARGE = 20_000  # elements of a float32 tensor that is not small


def test_a_large_parameter_is_not_copied_until_the_recording_is_read() -> None:
    weight = torch.randn(LARGE, requires_grad=True)
    with chainrule.record() as recording:
        (weight * 2).sum().backward()
    assert not recording._tape.copies
    assert torch.equal(recording["weight"].data, weight)
    assert recording["weight"].data.data_ptr() != weight.data_ptr()


def test_an_optimizer_that_steps_before_the_recording_is_read_has_it_copied_first() -> None:
    model, x = Wide(), torch.randn(100, 40)
    before = model.first.weight.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with chainrule.record() as recording:
        model(x).sum().backward()
    gradient = model.first.weight.grad.clone()
    optimizer.step()
    optimizer.zero_grad(set_to_none=False)
    assert torch.equal(recording.parameters["first.weight"].before, before)
    assert torch.equal(recording.parameters["first.weight"].grad, gradient)
    assert recording.verify().passed


@pytest.mark.parametrize("end", ["read", "dropped", "stepped"])
def test_the_hook_that_waits_for_an_optimizer_goes(end: str) -> None:
    model = Wide()
    before = dict(optimizer_hooks._global_optimizer_pre_hooks)
    with chainrule.record() as recording:
        model(torch.randn(100, 40)).sum().backward()
    assert len(optimizer_hooks._global_optimizer_pre_hooks) == len(before) + 1
    if end == "read":
        assert recording.graph
    elif end == "stepped":
        torch.optim.SGD(model.parameters(), lr=0.1).step()
        del recording
    else:
        del recording
    assert dict(optimizer_hooks._global_optimizer_pre_hooks) == before


@pytest.mark.parametrize("through", ["itself", "data"])
def test_what_was_overwritten_unseen_is_lost_and_said_to_be(through: str) -> None:
    weight = torch.randn(LARGE, requires_grad=True)
    with chainrule.record() as recording:
        (weight * 2).sum().backward()
    with torch.no_grad():
        (weight if through == "itself" else weight.data).sub_(0.1)
    value = recording["weight"]
    assert value.data is None
    assert value.statistics is None
    assert recording.parameters["weight"].before is None
    assert recording.parameters["weight"].has_gradient
    assert any("not kept" in row.reason for row in recording.verify().rows)
    assert "not kept" in str(recording)


def test_a_recording_freed_while_an_optimizer_steps_does_not_disturb_it() -> None:
    model = Wide()
    recordings = []
    for _ in range(3):
        with chainrule.record() as recording:
            model(torch.randn(100, 40)).sum().backward()
        recordings.append(recording)
    del recording
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.register_step_pre_hook(lambda *_: recordings.clear())
    optimizer.step()
    with chainrule.record():
        optimizer.step()


def test_a_small_parameter_may_be_overwritten_at_once() -> None:
    weight = torch.randn(10, requires_grad=True)
    with chainrule.record() as recording:
        (weight * 2).sum().backward()
    before = weight.detach().clone()
    with torch.no_grad():
        weight.sub_(weight.grad)
    assert torch.equal(recording["weight"].data, before)
