"""Updates that the user's own lines make, without an optimizer."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import chainrule
from chainrule.document import Equation, Section

RATE = 0.1


def one_a_line(w: Tensor, b: Tensor) -> None:
    with torch.no_grad():
        w -= RATE * w.grad
        b -= RATE * b.grad


def on_one_line(w: Tensor, b: Tensor) -> None:
    with torch.no_grad():
        w -= RATE * w.grad; b -= RATE * b.grad  # fmt: skip  # noqa: E702


def in_a_loop(w: Tensor, b: Tensor) -> None:
    with torch.no_grad():
        for p in (w, b):
            p -= RATE * p.grad
            p.grad.zero_()


def through_data(w: Tensor, b: Tensor) -> None:
    w.data -= RATE * w.grad
    b.data.sub_(RATE * b.grad)


def with_other_memory(w: Tensor, b: Tensor) -> None:
    w.data = w.data - RATE * w.grad
    b.data = b.data - RATE * b.grad


UPDATES = [one_a_line, on_one_line, in_a_loop, through_data, with_other_memory]


def told(recording: chainrule.Recording) -> dict[str, Section]:
    section = next(each for each in recording.document().sections if each.anchor == "by-hand")
    return {each.title[0].source: each for each in section.sections}


@pytest.mark.parametrize("keep", ["all", "statistics"])
@pytest.mark.parametrize("update", UPDATES)
def test_a_parameter_keeps_its_name_and_its_update_is_told(update: Callable[[Tensor, Tensor], None], keep: str) -> None:
    torch.manual_seed(0)
    w, b = torch.randn(3, requires_grad=True), torch.zeros(1, requires_grad=True)
    x, y = torch.randn(4, 3), torch.randn(4)
    before = {"w": w.detach().clone(), "b": b.detach().clone()}
    with chainrule.record(keep=keep) as recording:
        J = ((x @ w + b - y) ** 2).mean()
        J.backward()
        grads = {"w": w.grad.clone(), "b": b.grad.clone()}
        update(w, b)
    assert recording.parameters.keys() == {"w", "b"}
    for name, after in (("w", w), ("b", b)):
        parameter = recording.parameters[name]
        assert recording.graph.values[parameter.value].names[0] == name
        assert torch.equal(parameter.before, before[name])
        assert torch.equal(parameter.after, after)
        torch.testing.assert_close(recording[name].grad, grads[name])
        assert recording.why(name, 0).gradient == f"dJ/d{name}[0]"
        equation = next(each for each in told(recording)[name].blocks if isinstance(each, Equation))
        assert rf"\Delta {name} = -0.1 \cdot" in equation.latex
    assert not any(
        "@1" in name for value in recording.graph.values for name in value.names if value.kind == "parameter"
    )


def test_a_parameter_that_is_used_again_after_its_update() -> None:
    w, x = torch.tensor([2.0, 3.0], requires_grad=True), torch.tensor([1.5, -1.0])
    with chainrule.record() as recording:
        for _ in range(2):
            J = (w * x).pow(2).sum()
            w.grad = None
            J.backward()
            with torch.no_grad():
                w -= RATE * w.grad
    versions = [each for each in recording.graph.values if each.kind == "parameter"]
    assert [each.name for each in versions] == ["w", "w@2", "w@3"]
    assert versions[0].data.tolist() == [2.0, 3.0]
    assert torch.equal(versions[2].data, w.detach())


def test_data_that_is_given_other_memory_between_two_uses() -> None:
    w = torch.zeros(2, requires_grad=True)
    seen = []
    with chainrule.record() as recording:
        for _ in range(3):
            seen.append(w.detach().clone())
            J = ((w - 1) ** 2).sum()
            J.backward()
            w.data = w.data - RATE * w.grad
    versions = [each for each in recording.graph.values if each.kind == "parameter"]
    assert [each.data.tolist() for each in versions] == [each.tolist() for each in seen]
    assert torch.equal(recording.parameters["w"].before, seen[0])
    assert torch.equal(recording.parameters["w"].after, w.detach())
    assert recording.verify().passed


def test_an_update_that_is_no_multiple_of_the_gradient() -> None:
    model = nn.Linear(2, 1)
    with chainrule.record() as recording:
        model(torch.ones(3, 2)).sum().backward()
        with torch.no_grad():
            model.weight += torch.tensor([[1.0, -1.0]])
    sections = told(recording)
    assert sections.keys() == {"weight"}
    assert not any(isinstance(each, Equation) for each in sections["weight"].blocks)
    assert [each.label for each in sections["weight"].blocks] == ["before", "gradient", "after", "change"]


def test_what_an_optimizer_changed_is_not_told_as_by_hand() -> None:
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    with chainrule.record() as recording:
        model(torch.ones(3, 2)).sum().backward()
        optimizer.step()
    assert not any(each.anchor == "by-hand" for each in recording.document().sections)
