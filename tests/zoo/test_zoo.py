"""Real architectures, built small: one whole training step of each is recorded, explained, proved and walked back."""

from __future__ import annotations

import importlib.util

import pytest
import torch

import chainrule
from tests.zoo.models import ZOO

OF_TRANSFORMERS = {
    "gpt2", "gpt2_eager", "llama", "mixtral", "mamba", "bert", "t5", "vit", "resnet", "convnext",
}  # fmt: skip
CLOSE = 1e-4  # relative to the largest gradient of the step: float32, through some hundred nodes

# PyTorch has no float64 form of these kernels to take differences in; that rule and autograd agree is still shown.
ONE_PRECISION = {"GroupedMmBackward0", "MkldnnRnnLayerBackward0"}


pytestmark = pytest.mark.usefixtures("quiet")


@pytest.mark.parametrize("name", ZOO)
def test_a_step(name: str) -> None:
    if name in OF_TRANSFORMERS and importlib.util.find_spec("transformers") is None:
        pytest.skip(f"{name} is a model of transformers, which is not installed here.")
    model, loss = ZOO[name]()
    optimizer = torch.optim.AdamW(model.parameters())
    with chainrule.record() as recording:
        loss(model).backward()
        optimizer.step()
    verification = recording.verify()

    unexplained = [step for step in recording.derivation.nodes if step.rule is None]
    kinds = {f"{recording.graph.nodes[step.node].name} {step.failure}".strip() for step in unexplained}
    assert not kinds, f"without a rule: {kinds}"

    assert verification.passed, [(row.node.name, row.reason) for row in verification.failures]
    unproved = {
        f"{row.node.name}: {row.verdict}, {row.reason}"
        for row in verification.rows
        if row.node.executions and row.verdict not in ("agrees", "by convention") and row.node.name not in ONE_PRECISION
    }
    assert not unproved, unproved

    largest = max(float(parameter.grad.abs().max()) for parameter in model.parameters() if parameter.grad is not None)
    compared = 0
    for path, parameter in recording.parameters.items():
        if parameter.grad is not None and parameter.value is not None:
            ours = recording.derivation.gradients[parameter.value]
            assert float((ours - parameter.grad).abs().max()) <= CLOSE * largest, path
            compared += 1
    assert compared == sum(parameter.grad is not None for parameter in model.parameters())
