"""Steps and mistakes that several files of tests use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch.nn.functional as F
from torch import Tensor, nn

from chainrule import Recording, record, rules
from chainrule.examples import worked_example
from chainrule.graph.statistics import Statistics
from chainrule.graph.trees import map_leaves

TRAINING = """
    import sys
    import torch

    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x * x

        @staticmethod
        def backward(ctx, upstream):
            (x,) = ctx.saved_tensors
            return FACTOR * x * upstream

    weight = torch.nn.Parameter(torch.tensor([1.0, 2.0], dtype=torch.float64))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    for step in range(3):
        optimizer.zero_grad()
        squares = Square.apply(weight)
        loss = squares.sum()
        loss.backward()
        optimizer.step()
    print("arguments:", sys.argv[1:])
"""
"""A training whose function has a backward with the FACTOR 2 where it is right."""


def worked(optimizer: str = "adam", logits: bool = False) -> Recording:
    """A step of the worked example."""
    model, loss, update = worked_example.build(optimizer, logits)
    with record(namespace=vars(worked_example)) as recording:
        worked_example.train_step(model, loss, update)
    return recording


def spoil_rule(monkeypatch: pytest.MonkeyPatch, node: str, vjp: Callable[..., Any]) -> None:
    """Give the rule of a node another vector-Jacobian product for its argument `self`."""
    right = rules.for_node

    def spoiled(name: str, op: Any = None) -> rules.Rule | None:
        rule = right(name, op)
        if rule is None or name != node:
            return rule
        return replace(rule, wrt={**rule.wrt, "self": replace(rule.wrt["self"], vjp=vjp)})

    monkeypatch.setattr(rules, "for_node", spoiled)


def cloned(tree: Any) -> Any:
    """A tree of arguments with copies of its tensors."""
    return map_leaves(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, tree)


def assert_tied(graph: Any) -> None:
    """Every node that ran knows its operation, and where each of its gradients goes."""
    for node in graph.nodes:
        if not node.executions or node.leaf is not None or node.name == "AccumulateGrad":
            continue
        assert node.operation is not None, node
        assert graph.operations[node.operation].function is not None, (node, graph.operations[node.operation])
        for edge in node.edges:
            if any(
                len(p.downstream) > edge.position and p.downstream[edge.position] is not None for p in node.executions
            ):
                assert edge.value is not None, (node, edge)
                assert edge.argument is not None, (node, edge)


class Wide(nn.Module):
    """Two layers whose activations are large."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(40, 500), nn.Linear(500, 30)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(F.relu(self.first(x)))


def assert_same_statistics(found: Statistics, true: Statistics) -> None:
    assert found.elements == true.elements
    assert (found.zeros, found.not_finite) == (true.zeros, true.not_finite)
    for name in ("norm", "mean", "std", "low", "high"):
        assert getattr(found, name) == pytest.approx(getattr(true, name), rel=1e-4, abs=1e-6 * (1 + true.norm))
