"""`chainrule.explain`: runs and records one training step of a model."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from chainrule.capture.lowering.naming import variables_around
from chainrule.errors import RecordingError
from chainrule.recording import Recording, record


def explain(
    model: torch.nn.Module,
    inputs: Any,
    targets: Any = None,
    *,
    loss: Callable[..., Tensor] | None = None,
    optimizer: torch.optim.Optimizer | None = None,
) -> Recording:
    """Run and record one training step of `model`: forward, loss, backward, and `optimizer.step()` where there is one.

    `inputs` is what the model takes: a tensor, a tuple of arguments, or a dict of keyword arguments. `loss(output,
    targets)` gives the loss; without `targets`, `loss(output)`; without `loss`, the model's output is the loss itself
    (or has it as `.loss`, as models of transformers do). Gradients are cleared before the step.

    Raises RecordingError where no scalar loss comes out.
    """
    with record(namespace=variables_around(sys._getframe(1))) as recording:
        (optimizer or model).zero_grad()
        arguments = inputs if isinstance(inputs, (tuple, list)) else (inputs,)
        output = model(**inputs) if isinstance(inputs, Mapping) else model(*arguments)
        cost = _loss(output, targets, loss)
        cost.backward()
        if optimizer is not None:
            optimizer.step()
    return recording


def _loss(output: Any, targets: Any, loss: Callable[..., Tensor] | None) -> Tensor:
    cost: Any = getattr(output, "loss", output)
    if loss is not None:
        cost = loss(output) if targets is None else loss(output, targets)
    if not isinstance(cost, Tensor) or cost.numel() != 1:
        met = f"shape {tuple(cost.shape)}" if isinstance(cost, Tensor) else f"a {type(cost).__name__}"
        raise RecordingError(
            f"chainrule.explain: the loss must be a tensor with one element, and {met} came. Give `loss=`, a function "
            "of (output, targets) that returns a scalar, such as torch.nn.functional.cross_entropy."
        )
    return cost
