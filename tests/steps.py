"""Steps and mistakes that several files of tests use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from torch import Tensor

from chainrule import Recording, record, rules
from chainrule.examples import worked_example
from chainrule.graph.trees import map_leaves


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
