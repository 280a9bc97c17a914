"""The names of recorded values: from assignments, arguments, modules and loops."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

import chainrule
from tests.steps import assert_tied


def names(recording: chainrule.Recording) -> set[str]:
    return {name for value in recording.graph.values for name in value.names}


def test_assignments_give_names() -> None:
    x = torch.tensor([3.0, 1.0, 2.0], requires_grad=True)

    class Holder:
        pass

    holder = Holder()
    with chainrule.record() as recording:
        y: Tensor = x * 2
        holder.middle = y + 1
        top, places = holder.middle.sort()
        top += 1
        total = (squares := top * top).sum() + places.sum()
        a = b = total * 1
        first, (second, third) = x.unbind(0), x.split([1, 2])
        ((a + b) + first[0] + second.sum() + third.sum()).backward()
    assert recording["y"].data.tolist() == [6.0, 2.0, 4.0]
    assert recording["middle"].data.tolist() == [7.0, 3.0, 5.0]
    assert recording["top@1"].data.tolist() == [3.0, 5.0, 7.0]
    assert recording["top"].data.tolist() == [4.0, 6.0, 8.0]
    assert recording["places"].data.tolist() == [1, 2, 0]
    assert recording["squares"].data.tolist() == [16.0, 36.0, 64.0]
    assert recording["x"].kind == "parameter"
    assert {"a", "b", "total"} <= names(recording)
    assert squares is not None
    assert_tied(recording.graph)


def test_a_functions_arguments_name_what_is_passed_to_it() -> None:
    def loss(x: Tensor, w: Tensor, s: Tensor, u: Tensor, scale: float) -> Tensor:
        by_keyword = torch.mul(input=s, other=u).sum()
        return x.matmul(w).sum() + w.T.mul(s).sum() + (2 * u - s[:1]).sum() + (scale * s * (1 - u)).sum() + by_keyword

    given = [
        torch.randn(2, 3),
        torch.randn(3, 3, requires_grad=True),
        torch.randn(3),
        torch.randn(3, requires_grad=True),
    ]
    given = dict(zip("xwsu", given, strict=True))
    with chainrule.record() as recording:
        loss(**given, scale=3.0).backward()
    assert {"x", "w", "s", "u"} <= names(recording)
    assert not {"scale", "parameter", "input"} & names(recording)
    for name, tensor in given.items():
        assert torch.equal(recording[name].data, tensor.detach())
    assert set(recording.parameters) == {"w", "u"}


def test_parts_that_are_called_by_themselves_go_by_the_paths_of_their_model() -> None:
    class Autoencoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.decoder = nn.Sequential(nn.Linear(3, 2), nn.Tanh()), nn.Linear(2, 3)

    model, x = Autoencoder(), torch.randn(4, 3)
    with chainrule.record() as recording:
        F.mse_loss(model.decoder(model.encoder(x)), x).backward()
    assert list(recording.parameters) == [name for name, _ in model.named_parameters()]


def test_models_that_an_object_holds_go_by_its_attributes() -> None:
    class Trainer:
        def __init__(self) -> None:
            self.generator, self.critic = nn.Linear(3, 2), nn.Linear(2, 1)

        def step(self, x: Tensor) -> chainrule.Recording:
            with chainrule.record() as recording:
                self.critic(self.generator(x)).sum().backward()
            return recording

    found = list(Trainer().step(torch.randn(4, 3)).parameters)
    assert found == ["generator.weight", "generator.bias", "critic.weight", "critic.bias"]


def test_modules_that_are_not_called_name_their_parameters() -> None:
    layers = nn.ModuleList([nn.Linear(3, 4), nn.Linear(4, 2)])
    with chainrule.record() as recording:
        h = torch.ones(5, 3)
        for layer in layers:
            h = (h @ layer.weight.T + layer.bias).relu()
        h.sum().backward()
    assert list(recording.parameters) == ["layers.0.weight", "layers.0.bias", "layers.1.weight", "layers.1.bias"]


def test_operators_have_names_that_one_can_say() -> None:
    x = torch.rand(3, requires_grad=True)
    with chainrule.record() as recording:
        ((2 / x[1:]).sum() + (1 - x).prod() + 2 ** x[0] + (x @ x) / 2).backward()
    assert {"getitem@1", "getitem@2", "div.reciprocal", "sub", "pow", "matmul", "sum", "prod"} <= names(recording)
    assert not any("__" in name for name in names(recording))


def test_a_loop_numbers_its_names() -> None:
    x = torch.ones(2, requires_grad=True)
    with chainrule.record() as recording:
        h = x
        for _ in range(3):
            h = h * 2
        h.sum().backward()
    assert [recording[f"h@{i}"].data[0].item() for i in (1, 2, 3)] == [2, 4, 8]
    assert recording["h"].data[0] == 8


def test_weights_in_lists_and_comprehensions() -> None:
    weights = [torch.ones(2, requires_grad=True) for _ in range(2)]
    with chainrule.record() as recording:
        parts = [weight * 3 for weight in weights]
        sum(part.sum() for part in parts).backward()
    assert len(recording.parameters) == 2
    assert all(parameter.grad.tolist() == [3.0, 3.0] for parameter in recording.parameters.values())


def helper(x: Tensor) -> Tensor:
    inner = x.exp()
    return inner + 1


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, 2), nn.Tanh())
        self.gate = nn.ModuleDict({"open": nn.Linear(2, 2)})

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.layers(x)
        return helper(self.gate["open"](hidden))


def test_functions_and_nested_modules() -> None:
    block = Block()
    with chainrule.record() as recording:
        out = block(torch.randn(3, 2))
        out.sum().backward()
    assert set(recording.parameters) == {"layers.0.weight", "layers.0.bias", "gate.open.weight", "gate.open.bias"}
    assert recording["hidden"].index == recording["layers"].index == recording["layers.1"].index
    assert recording["inner"].place.function == "helper"
    assert recording["inner"].place.expression == "x.exp()"
    assert recording["out"].data.shape == (3, 2)
    assert [(module.path, module.class_name) for module in recording.graph.modules] == [
        ("", "Block"),
        ("layers", "Sequential"),
        ("layers.0", "Linear"),
        ("layers.1", "Tanh"),
        ("gate.open", "Linear"),
    ]


@pytest.mark.parametrize("file", ["<stdin>", "<string>", "not there.py"])
def test_code_without_source(file: str) -> None:
    code = "with chainrule.record() as recording:\n    y = x * 2\n    y.sum().backward()\n"
    scope: dict[str, Any] = {"chainrule": chainrule, "x": torch.ones(2, requires_grad=True)}
    exec(compile(code, file, "exec"), scope)
    recording = scope["recording"]
    assert recording["y"].grad.tolist() == [1.0, 1.0]  # the scope around the block still knows its name
    assert recording.parameters["x"].grad.tolist() == [2.0, 2.0]
