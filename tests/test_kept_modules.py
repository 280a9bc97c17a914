"""Modules that a pattern names are kept with all that they take and give."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import chainrule

MUCH = 2**23  # bytes of results that a recording holds at most before it frees those that nothing needs


@pytest.mark.parametrize("pattern", ["second", "sec*"])
def test_a_pattern_keeps_a_module_and_its_parameters(pattern: str) -> None:
    model = nn.Sequential()
    model.add_module("first", nn.Linear(40, 300))
    model.add_module("act", nn.Tanh())
    model.add_module("second", nn.Linear(300, 300))
    with chainrule.record(keep=[pattern]) as recording:
        model(torch.randn(100, 40)).sum().backward()
    assert recording["first"].data is None
    assert recording["first"].grad is None
    assert recording["act"].data is not None  # what the module takes
    assert recording["act"].grad is not None
    assert recording["second"].data is not None
    assert recording["second"].grad is not None
    assert recording.parameters["second.weight"].before is not None
    assert recording.parameters["first.weight"].before is None


class Layers(nn.Module):
    """`layer` gets what `before` makes of the input, or of a parameter, and gives what it makes to `after`."""

    def __init__(self, before: Any, layer: nn.Module, after: Any) -> None:
        super().__init__()
        self.first, self.layer, self.last = nn.Linear(48, 48), layer, nn.Linear(48, 3)
        self.given = nn.Parameter(torch.randn(480, 48))
        self.before, self.after = before, after

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.after(self.layer(self.before(self.first(x), self.given))))


class Overwriting(nn.Module):
    """Its first operation overwrites what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(48, 48)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.mul_(2.0)).mul_(0.5)


class Function(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 2 * x * upstream


class Custom(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return Function.apply(x)


def image(x: Tensor, given: Tensor) -> Tensor:
    return torch.relu(x).view(-1, 3, 16, 48)


def from_image(x: Tensor) -> Tensor:
    return F.relu(x, inplace=True).flatten(0, -2)


def long_ago(x: Tensor, given: Tensor) -> Tensor:
    """What the layer is given was let go of megabytes before."""
    y = torch.tanh(x)
    torch.ones(MUCH).mul(2.0).mul(3.0)
    return y


def squashed(x: Tensor, given: Tensor) -> Tensor:
    return torch.tanh(x)


def linear(features: int = 48) -> nn.Module:
    return nn.Linear(features, features)


LAYERS: dict[str, tuple[Any, Any, Any]] = {
    "linear": (squashed, linear, torch.tanh),
    # float64, as the float32 kernel's sums over 7,680 places round to about what the proof allows.
    "convolution": (
        lambda x, given: image(x, given).double(),
        lambda: nn.Conv2d(3, 3, 3, padding=1, dtype=torch.float64),
        lambda x: from_image(x).float(),
    ),
    "norm": (image, lambda: nn.BatchNorm2d(3), from_image),
    "a part": (lambda x, given: torch.tanh(x)[8:400], linear, torch.relu_),
    "transposed": (lambda x, given: torch.tanh(x).t(), lambda: linear(480), lambda x: x[:, :48].relu_()),
    "in place before": (lambda x, given: x.mul(3.0).mul_(2.0).relu_(), linear, torch.relu_),
    "in place afterwards": (lambda x, given: x * given, linear, lambda x: x.mul_(3.0).add_(1.0).sigmoid_()),
    "in place inside": (lambda x, given: x * 3.0, Overwriting, torch.relu_),
    "in place inside, on a part": (lambda x, given: (x * 3.0)[32:], Overwriting, torch.relu_),
    "several": (squashed, lambda: nn.Sequential(nn.Linear(48, 99), nn.ReLU(True), nn.Linear(99, 48)), torch.relu_),
    "attention": (
        lambda x, given: torch.tanh(x).view(20, 24, 48),
        lambda: nn.TransformerEncoderLayer(48, 4, 64, batch_first=True),
        from_image,
    ),
    "no parameters": (squashed, nn.GELU, torch.relu_),
    "a view of it": (squashed, lambda: nn.Flatten(0), lambda x: x.sin().view(480, 48)),
    "function": (squashed, Custom, torch.relu_),
    "let go of": (long_ago, linear, torch.relu_),
    "a parameter": (lambda x, given: given, linear, torch.relu_),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_a_single_layer_is_kept_with_all_that_it_takes_and_gives(kind: str) -> None:
    before, layer, after = LAYERS[kind]
    steps = []
    for keep in (["layer"], "all"):
        torch.manual_seed(3)
        model, x = Layers(before, layer(), after), torch.randn(480, 48)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        with chainrule.record(keep=keep) as recording:  # type: ignore[arg-type]
            model(x).square().mean().backward()
            optimizer.step()
        steps.append(recording)
    found, whole = steps
    assert not found.is_whole
    for one, other in zip(found.graph.values, whole.graph.values, strict=True):
        for mine, true in ((one.data, other.data), (one.grad, other.grad)):
            empty = any("empty" in name for name in one.names)  # its memory holds anything
            assert mine is None or empty or torch.equal(mine, true), one.names
    assert [(n.name, n.operation) for n in found.nodes] == [(n.name, n.operation) for n in whole.nodes]
    inside = {n.index for n in found.nodes if n.call is not None and "layer" in found.graph.calls[n.call].module}
    verdicts, true = (
        {row.node.index: row.verdict for row in each.verify(only="layer.*").rows if row.node.index in inside}
        for each in steps
    )
    if kind == "in place inside, on a part":  # what is written into is the whole, which the layer does not take
        assert verdicts.pop(min(verdicts)) == "not checked"
        assert true.pop(min(true)) == "agrees"
    assert verdicts == true
    assert set(true.values()) == {"agrees"}
    for name, parameter in whole.parameters.items():
        if name.startswith("layer"):
            index = (0,) * len(parameter.shape)
            assert found.why(name, index).value == whole.why(name, index).value


def test_what_a_layer_takes_counts_as_what_is_kept() -> None:
    torch.manual_seed(3)
    model, x = Layers(squashed, linear(), torch.relu_), torch.randn(480, 48)
    with chainrule.record(keep=["layer"], memory=480 * 48 * 4) as recording:
        model(x).sum().backward()
    made = [value for value in recording.graph.values if value.shape == (480, 48) and value.kind == "result"]
    assert sum(value.data is not None for value in made) == 1
