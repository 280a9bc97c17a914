"""How much is kept: all, statistics alone, up to a budget."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import chainrule
from chainrule.errors import RecordingError
from chainrule.graph.statistics import Statistics
from tests.steps import Wide, assert_same_statistics
from tests.zoo.models import ZOO

LARGE = 20_000  # elements of a float32 tensor that is not small
MUCH = 2**23  # bytes of results that a recording holds at most before it frees those that nothing needs


@pytest.fixture
def nothing_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chainrule.capture.retention.SMALL", 0)


def wide_step(**keep: Any) -> tuple[chainrule.Recording, Wide, Tensor]:
    torch.manual_seed(3)
    model, x = Wide(), torch.randn(100, 40)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    with chainrule.record(**keep) as recording:
        loss = model(x).square().mean()
        loss.backward()
        optimizer.step()
    return recording, model, loss


def zoo_step(name: str, keep: str) -> Any:
    torch.manual_seed(0)
    model, loss = ZOO[name]()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    torch.manual_seed(1)
    with chainrule.record(keep=keep) as recording:
        loss(model).backward()
        optimizer.step()
    return recording.graph


@pytest.mark.parametrize("name", ["gpt2", "gru", "resnet", "gan", "mixtral", "vae"])
@pytest.mark.usefixtures("nothing_is_small")
def test_the_facts_are_the_same_but_for_the_numbers(name: str) -> None:
    whole, figures = zoo_step(name, "all"), zoo_step(name, "statistics")
    assert [(o.name, o.outputs, o.call, o.node) for o in figures.operations] == [
        (o.name, o.outputs, o.call, o.node) for o in whole.operations
    ]
    assert [(n.name, n.edges, n.outputs, n.leaf) for n in figures.nodes] == [
        (n.name, n.edges, n.outputs, n.leaf) for n in whole.nodes
    ]
    measured = 0
    for one, other in zip(whole.values, figures.values, strict=True):
        for fact in ("names", "kind", "shape", "dtype", "device", "requires_grad", "node", "has_gradient"):
            assert getattr(one, fact) == getattr(other, fact), (one.names, fact)
        made_empty = any(word in name for name in one.names for word in ("empty", "inv_perm", "mkldnn"))
        if other.data is None and other.statistics is not None and not made_empty:  # empty memory holds anything
            assert_same_statistics(other.statistics, Statistics.of(one.data))
            measured += 1
        if one.grad is not None and other.grad is None and other.grad_statistics is not None:
            assert_same_statistics(other.gradient.statistics, Statistics.of(one.grad))
            measured += 1
    assert measured > len(whole.nodes)
    for path, parameter in whole.parameters.items():
        other = figures.parameters[path]
        assert (other.shape, other.has_gradient) == (parameter.shape, parameter.has_gradient)
        assert_same_statistics(other.start.statistics, Statistics.of(parameter.before))
        assert_same_statistics(other.end.statistics, Statistics.of(parameter.after))
        if parameter.grad is not None:
            assert_same_statistics(other.gradient.statistics, Statistics.of(parameter.grad))


def test_small_tensors_are_kept_and_large_ones_are_not() -> None:
    recording, _, loss = wide_step(keep="statistics")
    hidden, output = recording["first"], recording["second"]
    assert hidden.data is None
    assert hidden.has_gradient
    assert hidden.grad is None
    assert hidden.statistics.elements == hidden.grad_statistics.elements == 50_000
    assert output.data is not None
    assert recording.loss == loss.item()
    assert not recording.is_whole
    weight = recording.parameters["first.weight"]
    assert weight.before is None
    assert weight.shape == (500, 40)
    assert recording.parameters["first.bias"].before is not None


def test_updates_are_measured() -> None:
    whole, figures = wide_step(keep="all")[0], wide_step(keep="statistics")[0]
    for one, other in zip(whole.graph.updates[0].parameters, figures.graph.updates[0].parameters, strict=True):
        true = Statistics.of(one.after - one.before)
        assert other.update_statistics.norm == pytest.approx(true.norm, rel=0.02)
        assert other.update_statistics.elements == true.elements
        if other.start.data is None:
            assert_same_statistics(other.start.statistics, Statistics.of(one.before))
            assert_same_statistics(other.gradient.statistics, Statistics.of(one.grad))


def test_a_gradient_is_measured_as_backward_left_it_and_as_the_optimizer_met_it() -> None:
    model, x = Wide(), torch.randn(100, 40)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with chainrule.record(keep="statistics") as recording:
        model(x).square().mean().backward()
        before = model.first.weight.grad.norm().item()
        nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
        after = model.first.weight.grad.norm().item()
        optimizer.step()
    assert recording.parameters["first.weight"].gradient.statistics.norm == pytest.approx(before, rel=1e-5)
    update = next(u for u in recording.graph.updates[0].parameters if u.name == "first.weight")
    assert update.gradient.statistics.norm == pytest.approx(after, rel=1e-5)


def test_what_is_not_kept_is_freed_while_the_step_runs() -> None:
    with chainrule.record(keep="statistics") as recording:
        x = torch.randn(MUCH // 4 + 1, requires_grad=True)
        y = x * 2.0  # its way back does not need the result
        z = y * 3.0
        gone = weakref.ref(y)
        del y
        z + 1.0
        gc.collect()
        assert gone() is None
        z.sum().backward()
    assert recording["y"].statistics.norm == pytest.approx(2 * Statistics.of(x).norm, rel=1e-5)


def test_a_pattern_that_names_nothing_is_said() -> None:
    recording, _, _ = wide_step(keep=["second", "secnod"])
    (note,) = recording.graph.notes
    assert note.startswith("keep=['secnod'] named no module that ran, so it kept nothing")
    assert "secnod" in str(recording)


def test_beyond_the_budget_figures_are_kept() -> None:
    size = LARGE * 4
    x = torch.randn(LARGE, requires_grad=True)
    with chainrule.record(memory=3 * size + 1) as recording:
        y = x
        for _ in range(6):
            y = y.exp() * 0.1
        y.sum().backward()
    made = [value for value in recording.graph.values if value.operation is not None and value.shape == (LARGE,)]
    kept = [value.data is not None for value in made]
    assert kept == [True] * 3 + [False] * (len(made) - 3)
    assert all(value.statistics is not None for value in made[3:])


def test_by_default_a_small_step_is_kept_whole() -> None:
    assert wide_step()[0].is_whole


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"keep": "everything"}, 'record(keep=\'everything\'): say "all", "statistics", or a list of patterns'),
        ({"keep": [1]}, "record(keep=[1])"),
        ({"memory": -1}, "record(memory=-1): the memory is a number of bytes"),
        ({"memory": "2GB"}, "record(memory='2GB')"),
    ],
)
def test_what_is_no_measure_is_said(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(RecordingError) as raised:
        chainrule.record(**arguments)
    assert said in str(raised.value)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError])
def test_a_device_without_memory_left_does_not_end_the_step(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(tensor: Tensor) -> Any:
        raise error("no memory left")

    monkeypatch.setattr(
        "chainrule.capture.retention.in_place", lambda tensor: None
    )  # as on a device, where figures take memory
    monkeypatch.setattr("chainrule.capture.retention.measure", measure)
    recording, _, loss = wide_step(keep="statistics")
    monkeypatch.undo()
    assert torch.equal(loss, wide_step(keep="all")[2])
    assert recording["first"].data is None
    assert recording["first"].statistics is None
    assert recording["first"].has_gradient
    assert "not kept" in str(recording)
    assert len(recording.document().sections) > 2


def test_figures_are_of_what_an_operation_gave_whatever_becomes_of_its_memory() -> None:
    with chainrule.record(keep="statistics") as recording:
        x = torch.ones(LARGE)
        first = x * 2.0
        first.data = torch.zeros(LARGE)
        second = x * 3.0
        second.numpy()[:] = 0.0
    assert recording["first"].statistics.mean == 2.0
    assert recording["second"].statistics.mean == 3.0


def test_a_view_of_what_was_overwritten_in_inference_mode_has_figures_of_its_own() -> None:
    with torch.inference_mode(), chainrule.record(keep="statistics") as recording:
        made = torch.ones(LARGE) * 2.0
        made.add_(1.0)
        seen = made.view(-1)
        seen * 1.0
    assert recording["seen"].statistics.mean == 3.0


def test_a_step_on_the_meta_device_has_no_figures() -> None:
    with chainrule.record(keep="statistics") as recording:
        x = torch.empty(LARGE, device="meta", requires_grad=True)
        made = x * 2.0
        made.sum().backward()
    assert recording["made"].statistics is None
    assert "not kept" in str(recording)
