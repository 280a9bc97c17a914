"""Which operation stops the gradient of a whole parameter, and where a gradient of 0 is no fault."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import chainrule
from chainrule.diagnostics import findings_over_time
from chainrule.graph.history import History, StepFacts

pytestmark = pytest.mark.trains


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


class Between(nn.Module):
    """A function between two layers."""

    def __init__(self, function):
        super().__init__()
        self.first, self.last, self.function = nn.Linear(8, 16), nn.Linear(16, 8), function

    def forward(self, x):
        return self.last(self.function(self.first(x)))


def found_in(model, loss=lambda output: output.square().mean(), keep="all", id="zero-gradient"):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with chainrule.record({"model": model}, keep=keep) as recording:
        optimizer.zero_grad()
        loss(model(torch.randn(32, 8))).backward()
        optimizer.step()
    return [finding for finding in recording.findings() if finding.id == id]


def lasting(finding, steps=5):
    """What a run says of a finding that so many steps in a row show."""
    history = History([StepFacts(step, float(step), 1.0) for step in range(steps)])
    (carried,) = findings_over_time(history, dict.fromkeys(range(steps), (finding,)))
    return carried


@pytest.mark.parametrize("keep", ["all", "statistics"])
@pytest.mark.parametrize(
    ("function", "name"),
    [
        (torch.sign, "sign"), (torch.round, "round"), (torch.floor, "floor"), (torch.ceil, "ceil"),
        (torch.trunc, "trunc"), (lambda h: torch.div(h, 0.1, rounding_mode="floor"), "div"),
    ],
)  # fmt: skip
def test_a_function_of_steps_is_an_error_in_one_step(function, name, keep):
    first, *rest = found_in(Between(function), keep=keep)
    assert (first.id, first.severity, first.where) == ("zero-gradient", "error", "first.weight")
    assert first.sentence == f"first.weight, first.bias get a gradient of exactly 0: {name} stops it."
    assert first.place.file == __file__
    assert f"arrives at {name}, and 0 goes on: the derivative of {name} is 0 everywhere" in first.evidence[0]
    assert "straight-through" in first.advice
    assert all("last.weight" in each.sentence for each in rest)  # trunc gives 0 alone here


@pytest.mark.parametrize("keep", ["all", "statistics"])
def test_a_value_minus_itself_is_an_error_in_one_step(keep):
    """The ratio of a policy to itself, exp(log_prob - log_prob), with the graph on both sides."""
    advantage = torch.randn(32, 8)

    def loss(output, old):
        return -((output - old(output)).exp() * advantage).mean()

    (found,) = found_in(nn.Linear(8, 8), lambda output: loss(output, lambda x: x), keep=keep)
    assert (found.severity, found.where) == ("error", "weight")
    assert "is subtracted from itself" in found.evidence[0]
    assert ".detach()" in found.advice
    assert not found_in(nn.Linear(8, 8), lambda output: loss(output, torch.Tensor.detach), keep=keep)


@pytest.mark.parametrize(
    ("function", "evidence"),
    [
        (lambda h: h.detach() * h.mean(1, keepdim=True).softmax(1), "the softmax is 1 whatever it is given"),
        (lambda h: (h * 1e9).clamp(0, 1), "its slope is 0 at each of mul's elements. mul lies between -"),
        (lambda h: F.relu(h - 100), "its slope is 0 at each of sub's elements"),
        (lambda h: h * (h > 100).float(), "the other factor, gt, from `gt` (test_zero_gradients.py:"),
    ],
)
def test_what_depends_on_the_operand_is_an_error_once_it_lasts(function, evidence):
    first, *_ = found_in(Between(function), keep="statistics")
    assert first.severity == "note"
    assert evidence in first.evidence[0]
    assert lasting(first, 4).severity == "note"
    assert lasting(first).severity == "error"


def test_a_backward_of_the_users_own_that_returns_zero():
    class Zero(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return 2 * x

        @staticmethod
        def backward(ctx, upstream):
            return torch.zeros_like(upstream)

    (finding,) = found_in(Between(Zero.apply))
    assert "Zero stops it" in finding.sentence
    assert "its own backward returns 0" in finding.evidence[0]


def test_a_layer_whose_input_is_off_is_a_finding_of_its_own():
    off, after = found_in(Between(lambda h: F.relu(h - 100)))
    assert off.sentence.startswith("first.weight, first.bias get")
    assert after.sentence == "last.weight gets a gradient of exactly 0: linear stops it."
    assert "the other factor, A1, from `relu`" in after.evidence[0]


@pytest.mark.parametrize(
    "function",
    [
        lambda h: h + (h.round() - h).detach(),
        lambda h: h.sign() + h - h.detach(),
        lambda h: h - h.floor(),
        lambda h: h.detach(),  # which is no gradient at all, another finding
    ],
)
def test_a_gradient_that_passes_another_way_is_not_stopped(function):
    model = Between(function)
    assert found_in(model) == []
    assert found_in(model, id="unit-off") == []


@pytest.mark.parametrize("keep", ["all", "statistics"])
def test_what_is_no_fault(keep):
    """The loss is 0; data, a number in the code, or a gate of one number for many is 0, and other parameters learn."""

    def of_gate(h):
        return h * (h.mean(1, keepdim=True) > 100).float() + h.detach()

    model = Between(lambda h: h)
    assert found_in(model, lambda output: F.relu(output.abs().mean() - 100), keep) == []
    assert found_in(Between(lambda h: h * torch.zeros(16) + 1), keep=keep) == []
    assert found_in(Between(lambda h: 0.0 * h + 1), keep=keep) == []
    assert found_in(Between(of_gate), keep=keep) == []


def test_where_nothing_else_learns_a_number_in_the_code_is_a_fault():
    (finding,) = found_in(Between(lambda h: h), lambda output: 1 + (1 // 2) * output.square().mean())
    assert "it multiplies by 0" in finding.evidence[0]
    assert lasting(finding).severity == "error"


def test_a_factor_that_begins_at_zero_is_a_note_at_first():
    """As that of a low-rank adaptation: it moves in the first step, and then the gradient passes."""
    model = Between(lambda h: h)
    nn.init.zeros_(model.last.weight)
    (finding,) = found_in(model, lambda output: (output - 1).square().mean())
    assert finding.severity == "note"
    assert "the other factor, W2, is 0 in all 128 elements" in finding.evidence[0]
    assert found_in(model, lambda output: (output - 1).square().mean()) == []
