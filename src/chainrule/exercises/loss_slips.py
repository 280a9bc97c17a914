"""What students write for the derivative of a loss; whether a step takes a mean or a square."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from chainrule.derivation.backprop import Step
from chainrule.execution.number_types import wide
from chainrule.graph.graph import Graph
from chainrule.rules import Applied

Slope = Callable[[Any], Tensor]
"""The derivative of one sample's loss, from the operation."""


def loss_slips(kind: str, x: str, t: str) -> Iterator[tuple[str, str, Slope]]:
    """(name, sentence, derivative) for a loss by the name of its rule; `x` and `t` are what it compares."""
    if kind == "binary_cross_entropy":
        yield (
            "missing term",
            f"only -{t}/{x} is used, and the term of 1 - {t} is missing",
            lambda op: -op.target / op.self,
        )
        yield "missing term", f"the term -{t}/{x} is missing", lambda op: (1 - op.target) / (1 - op.self)
        sentence = f"{x} - {t} is the gradient before the sigmoid; that by {x} is divided by {x}(1 - {x})"
        yield "left out", sentence, lambda op: op.self - op.target
    elif kind == "binary_cross_entropy_with_logits":
        yield "missing term", f"{t} is not subtracted from the sigmoid of {x}", lambda op: op.self.sigmoid()
        yield "wrong value", f"the sigmoid is left out: {x} - {t}", lambda op: op.self - op.target
    elif kind == "cross_entropy":
        sentence = f"the 1 of the target's class is not subtracted from the softmax of {x}"
        yield "missing term", sentence, lambda op: op.input.softmax(-1)
        sentence = f"the softmax of {x} is missing, and only the 1 of the target's class is left"
        yield "missing term", sentence, lambda op: -_onehot(op)
        sentence = f"the softmax is left out: {x} minus the 1 of the target's class"
        yield "wrong value", sentence, lambda op: op.input - _onehot(op)


def _onehot(op: Applied) -> Tensor:
    target: Tensor = wide(op.target)
    if not target.is_floating_point():
        target = torch.nn.functional.one_hot(target, op.input.shape[-1]).to(op.input.dtype)
    return target


def is_square(step: Step) -> bool:
    """Whether a step squares what it takes, as a loss or by itself."""
    if step.rule is None or step.op is None:
        return False
    return step.rule.name.startswith("mse_loss") or (step.rule.name == "pow" and step.op.arguments.get("exponent") == 2)


def other_means(step: Step, graph: Graph) -> Iterator[tuple[int, str]]:
    """(count, of what) of other means that may be taken in place of a step's: over the samples alone, over all."""
    count, shape = mean_of(step, graph), graph.values[step.arguments[0][2]].shape if step.arguments else ()
    if count > 1 and len(shape) > 1:
        whole = math.prod(shape)
        yield from [(shape[0], "the samples alone")] if shape[0] not in (1, count) and count == whole else []
        yield from [(whole, "all numbers of all samples")] if whole != count == shape[0] else []


def mean_of(step: Step, graph: Graph) -> int:
    """Over how many a step takes the mean; 1 where it takes none."""
    if step.rule is None or step.op is None or not step.arguments:
        return 1
    shape = graph.values[step.arguments[0][2]].shape
    if step.rule.name == "mean":
        return max(1, math.prod(shape) // max(1, math.prod(graph.values[step.outputs[0]].shape)))
    if step.rule.topic != "loss" or step.op.arguments.get("reduction") not in (1, "mean"):
        return 1
    if step.rule.name.startswith(("cross_entropy", "nll_loss")):
        return shape[0] if len(shape) > 1 else 1
    return math.prod(shape)
