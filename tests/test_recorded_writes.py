"""Views and in-place writes: each version of a memory is a value of its own."""

from __future__ import annotations

from typing import Any

import torch

import chainrule
from chainrule.graph.trees import tensors_in
from tests.steps import assert_tied, cloned


def assert_replays(graph: Any) -> None:
    """Each operation, run again on its recorded inputs, gives its recorded outputs: no value is a stale version."""
    for operation in graph.operations:
        arguments = cloned(graph.filled(operation.arguments))
        again = tensors_in(operation.function(arguments))
        for value, out in zip((v for v in operation.outputs if v is not None), again, strict=True):
            assert torch.allclose(graph.values[value].data, out), operation


def test_a_write_to_a_view_is_a_function_of_its_base() -> None:
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
    v = torch.tensor([10.0, 100.0], requires_grad=True)
    with chainrule.record() as recording:
        h = x * 1
        row = h[1]
        row.mul_(v)
        (h * h).sum().backward()
    graph = recording.graph
    (node,) = (node for node in graph.nodes if node.name == "CopySlices")
    operation = graph.operations[node.operation]
    assert operation.name == "aten.mul_.Tensor"
    base, factor = node.edges
    assert (base.argument, graph.values[base.value].name) == ("base", "h@1")
    assert (factor.argument, graph.values[factor.value].name) == ("other", "v")
    assert [graph.values[out].data.tolist() for out in operation.outputs] == [[[1, 2], [30, 400]], [30, 400]]
    assert_tied(graph)
    assert_replays(graph)


def test_every_version_of_shared_memory_is_told_apart() -> None:
    torch.manual_seed(0)
    x, v = torch.randn(3, 4, requires_grad=True), torch.randn(4, requires_grad=True)
    with chainrule.record() as recording:
        h = x * 1.5
        row = h[1]
        row.mul_(v)
        h[0] = v * v
        h[:, 2].mul_(3)
        h[[0, 2]] = torch.exp(v)
        column = h.view(4, 3)[:, 1]
        h.add_(column.sum())
        h.t_().unsqueeze_(0)
        ((h * h).sum() + (column * 2).sum() + row.sum()).backward()
    assert_tied(recording.graph)
    assert_replays(recording.graph)


def test_views_of_complex_memory() -> None:
    z = torch.tensor([1 + 2j, 3 - 1j], requires_grad=True)
    with chainrule.record() as recording:
        w = z * 1
        first = torch.view_as_real(w)[0]
        first.mul_(2)
        first.mul_(first.detach().sum())
        torch.view_as_real(w * w.conj()).sum().backward()
    assert_tied(recording.graph)
    assert_replays(recording.graph)


def test_writes_to_buffers_without_gradient() -> None:
    memory = torch.zeros(2, 3)
    x = torch.ones(3, requires_grad=True)
    with chainrule.record() as recording:
        memory[1].add_(x.detach())
        memory.mul_(2)
        (memory[1] * x).sum().backward()
    assert recording.parameters["x"].grad.tolist() == [2.0, 2.0, 2.0]
    assert recording["memory@1"].data.tolist() == [[0, 0, 0], [0, 0, 0]]
    assert recording["memory"].data.tolist() == [[0, 0, 0], [2, 2, 2]]
    assert_replays(recording.graph)
