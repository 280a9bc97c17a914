"""The tools, each in a few lines: how it is put around a training step, and how much it had captured afterwards.

Each is used as its own documentation shows, set to keep as much of values and gradients as it can. A tool is imported
by the function that drives it: one that is not there, or does not import, is a row that says so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.overhead import KEEPS, recorded
from benchmarks.steps import Training
from benchmarks.timing import Step


@dataclass(frozen=True)
class Captured:
    """How many operations and nodes of the backward graph; None where the tool knows no such thing."""

    operations: int | None
    nodes: int | None
    what: str


@dataclass(frozen=True)
class Watched:
    """A step with a tool around it; what it returns is what the tool captured, which `count` looks at."""

    step: Step
    count: Callable[[Any], Captured]


def chainrule(training: Training, keep: str) -> Watched:
    """`chainrule.record()` around the step."""
    what = {"all": "values, gradients, names, modules, lines", "statistics": "the same, statistics for numbers"}[keep]
    return Watched(
        recorded(training, keep), lambda got: Captured(len(got.graph.operations), len(got.graph.nodes), what)
    )


def torchlens(training: Training) -> Watched:
    """`trace` runs the model itself, so the loss goes into a module with it."""
    import torchlens as tl

    scored = Scored(training)
    options = tl.options.CaptureOptions(save_grads=True)

    def step() -> Any:
        training.model.zero_grad()
        log = tl.trace(scored, training.inputs, capture=options)
        log.log_backward(log[log.output_layers[0]].out)
        return log

    def count(log: Any) -> Captured:
        values, gradients = log.num_saved_ops, log.num_saved_grad_ops
        return Captured(log.num_ops, log.num_grad_fns, f"values ({values}), gradients ({gradients}), modules, lines")

    return Watched(step, count)


class Scored(nn.Module):
    """A model whose output is the loss."""

    def __init__(self, training: Training) -> None:
        super().__init__()
        self.model, self.criterion, self.targets = training.model, training.criterion, training.targets

    def forward(self, inputs: Tensor) -> Tensor:
        return self.criterion(self.model(inputs), self.targets)


def nansense(training: Training) -> Watched:
    """Its session, without the pages: every batch is captured, none pauses."""
    import nansense as nan

    session = nan.start(training.model)
    session.detach()
    session.set_update_frequency(unit="batch", n=1)

    def step() -> Any:
        with session.batch(phase="train", epoch=0):
            training()
        return session.snapshot

    def count(snapshot: Any) -> Captured:
        values, gradients = len(snapshot.activations), len(snapshot.activation_gradients)
        return Captured(values, None, f"values ({values}) and gradients ({gradients}) of layers, weights")

    return Watched(step, count)


def torchviz(training: Training) -> Watched:
    """The picture's source; it is not laid out, which takes a program of its own."""
    from torchviz import make_dot

    parameters = dict(training.model.named_parameters())

    def step() -> Any:
        training.model.zero_grad()
        loss = training.loss()
        dot = make_dot(loss, params=parameters)
        loss.backward()
        return dot

    def count(dot: Any) -> Captured:
        return Captured(None, sum("Backward" in line for line in dot.body), "a picture of the nodes; no numbers")

    return Watched(step, count)


def backpack(training: Training) -> Watched:
    """The gradient of each sample. The model is extended in place."""
    from backpack import backpack as running
    from backpack import extend
    from backpack.extensions import BatchGrad

    extend(training.model)

    def step() -> Any:
        with running(BatchGrad()):
            training()
        return [p.grad_batch for p in training.model.parameters() if hasattr(p, "grad_batch")]

    def count(gradients: list[Tensor]) -> Captured:
        every = sum(1 for _ in training.model.parameters())
        return Captured(None, None, f"gradient of each sample for {len(gradients)} of {every} parameters")

    return Watched(step, count)


def debug_mode(training: Training) -> Watched:
    """PyTorch's own log of what passes its dispatcher."""
    from torch.utils._debug_mode import DebugMode

    def step() -> Any:
        with DebugMode() as mode:
            training()
        return mode

    def count(mode: Any) -> Captured:
        return Captured(len(mode.operators), None, "names and shapes of operations, forward and backward; no numbers")

    return Watched(step, count)


def detect_anomaly(training: Training) -> Watched:
    """PyTorch's own search for NaN on the way back."""

    def step() -> Any:
        with torch.autograd.detect_anomaly():
            training()

    return Watched(step, lambda _: Captured(None, None, "nothing but the forward line of a node that returns NaN"))


def module_hooks(training: Training) -> Watched:
    """What people write by hand: the output of each module, and the gradient of it."""

    def step() -> Any:
        values: list[Any] = []
        gradients: list[Any] = []
        handles = []
        for module in training.model.modules():
            handles.append(module.register_forward_hook(lambda _, args, output: values.append(output)))
            handles.append(module.register_full_backward_hook(lambda _, down, up: gradients.append(up)))
        try:
            training()
        finally:
            for handle in handles:
                handle.remove()
        return values, gradients

    def count(kept: tuple[list[Any], list[Any]]) -> Captured:
        values, gradients = map(len, kept)
        return Captured(None, None, f"values ({values}) and gradients ({gradients}) of modules")

    return Watched(step, count)


TOOLS: dict[str, Callable[[Training], Watched]] = {
    **{f"chainrule, keep {keep}": partial(chainrule, keep=keep) for keep in KEEPS},
    "torchlens": torchlens,
    "nansense": nansense,
    "torchviz": torchviz,
    "BackPACK": backpack,
    "DebugMode": debug_mode,
    "detect_anomaly": detect_anomaly,
    "module hooks": module_hooks,
}
