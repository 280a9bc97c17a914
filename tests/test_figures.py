"""A graph that is read at once says the same as one that lasts, and copies nothing for it."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import chainrule
from chainrule.errors import RecordingError
from chainrule.graph.statistics_cache import StatisticsCache


def step(dtype=torch.float32):
    """One step in which some tensors are small enough to be kept, and most are not; the optimizer, to look at it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(300, 200), nn.ReLU(), nn.Linear(200, 10)).to(dtype)
    optimizer = torch.optim.AdamW(model.parameters())
    inputs, targets = torch.randn(64, 300, dtype=dtype), torch.randint(10, (64,))
    with chainrule.record(keep="statistics") as recording:
        optimizer.zero_grad()
        logits = model(inputs)
        loss = F.cross_entropy(logits, targets)
        loss.backward()
        optimizer.step()
    return recording, model, (inputs, logits, loss)


def said(graph):
    """All that is said of it but for nodes, which one of the two lacks, and what parameters became."""
    values = [
        replace(value, snapshot=_said(value.snapshot), gradient=_said(value.gradient), node=value.node is not None)
        for value in graph.values
    ]
    parameters = [
        replace(each, start=_said(each.start), gradient=_said(each.gradient), end=None)
        for each in graph.parameters.values()
    ]
    updates = [
        replace(each, start=_said(each.start), gradient=_said(each.gradient),
                end=replace(each.end.filled(None), statistics=None), state_before={})
        for update in graph.updates
        for each in update.parameters
    ]  # fmt: skip
    operations = [(each.name, each.arguments, each.outputs, each.call) for each in graph.operations]
    return values, parameters, updates, operations, graph.calls, graph.modules, graph.events, graph.notes


def _said(snapshot):
    """With its numbers as a list, as tensors cannot be compared."""
    return snapshot and snapshot.filled(None if snapshot.data is None else snapshot.data.tolist())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_read_at_once_or_later(dtype):
    lasting, _, _theirs = step(dtype)
    at_once, _, _others = step(dtype)
    passing = at_once.at_once(StatisticsCache(), magnitudes=True)
    assert said(passing) == said(lasting.graph)
    assert at_once.graph is passing
    assert not passing.nodes


def test_without_histograms_but_where_float16_may_underflow():
    for dtype, wanted in ((torch.float32, False), (torch.float16, True)):
        recording, _, _theirs = step(dtype)
        graph = recording.at_once(StatisticsCache(), magnitudes=False)
        weight = graph.parameters["0.weight"]
        assert [bool(each.magnitudes) for each in (weight.start.statistics, weight.gradient.statistics)] == [wanted] * 2


def test_nothing_is_copied_that_is_read_at_once():
    recording, model, _theirs = step()
    graph = recording.at_once(StatisticsCache(), magnitudes=False)
    assert graph.parameters["0.weight"].after.data_ptr() == model[0].weight.data_ptr()
    assert graph.parameters["0.weight"].end.statistics is None
    assert graph.parameters["2.bias"].grad.tolist() == model[2].bias.grad.tolist()
    members = {each.name: each for each in graph.updates[0].parameters}
    assert members["0.weight"].after.data_ptr() == model[0].weight.data_ptr()


def test_not_while_the_block_runs():
    with pytest.raises(RecordingError, match="still running"), chainrule.record() as recording:
        recording.at_once(StatisticsCache(), magnitudes=False)
