import pytest
import torch
import torch.nn.functional as F
from torch import nn

import chainrule
from tests.checks import Square


class Flipped(Square):
    @staticmethod
    def backward(ctx, g):
        return -Square.backward(ctx, g)


class TooMany(Square):
    @staticmethod
    def backward(ctx, g):
        return g, g


def test_functions_modules_and_autograd_functions():
    x = torch.randn(3, 4)
    assert chainrule.verify(F.gelu, x).passed
    assert chainrule.verify(nn.Linear(4, 2), x).passed
    assert chainrule.verify(Square, x).passed
    assert chainrule.verify(lambda q, k: {"scores": (q @ k.T).softmax(-1)}, x, x).passed
    assert chainrule.verify(torch.lerp, x, x, weight=0.3).passed


@pytest.mark.parametrize("function", [Flipped, Flipped.apply, lambda x: Flipped.apply(x)])
@pytest.mark.parametrize("shape", [(1,), (3, 4), (50, 60)])
def test_a_wrong_backward_is_named_with_its_mistake(function, shape):
    (row,) = chainrule.verify(function, torch.randn(shape)).failures
    assert row.node.name == "FlippedBackward"
    assert row.place.file == __file__
    assert [repair.kind for repair in row.repairs] == ["sign"]
    assert row.repairs[0].text == "the sign of the gradient of `x` is wrong: with -1 it agrees"


def test_nothing_of_the_users_is_changed():
    model, x = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout(0.5)), torch.randn(5, 3, requires_grad=True)
    gradients = []
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
        gradients.append(parameter.grad)
    statistics, state = model[1].running_mean.clone(), torch.get_rng_state()
    assert chainrule.verify(model, x).passed
    assert all(p.grad is g and bool((g == 1).all()) for p, g in zip(model.parameters(), gradients, strict=True))
    assert torch.equal(statistics, model[1].running_mean)
    assert torch.equal(state, torch.get_rng_state())
    assert x.grad is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("gelu", torch.randn(2)), "chainrule.verify: 'gelu' cannot be called. Give a function, a module or"),
        ((torch.randn(2),), "chainrule.verify: a Tensor cannot be called."),
        ((nn.Linear, torch.randn(2)), "chainrule.verify: Linear is a class. Give an instance of it: Linear(...)."),
        ((F.relu, torch.arange(3)), "chainrule.verify: no input of relu has real or complex numbers"),
        ((lambda: torch.ones(2),), "chainrule.verify: <lambda> got no tensor."),
        ((lambda x: x.detach(), torch.randn(2)), "does not depend on its inputs for autograd"),
        ((lambda x: 3, torch.randn(2)), "chainrule.verify: <lambda> returned int, and no tensor."),
        (
            (torch.mm, torch.randn(2, 3), torch.randn(2, 3)),
            "chainrule.verify: mm failed on these inputs: RuntimeError: ",
        ),
        (
            (torch.relu_, torch.randn(2)),
            "It writes to what it is given: chainrule.verify(lambda x: relu_(x.clone()), x).",
        ),
        ((TooMany, torch.randn(2)), "chainrule.verify: TooMany failed in its backward: RuntimeError: "),
    ],
)
def test_what_cannot_be_verified_is_said_in_a_sentence(arguments, message):
    with pytest.raises(chainrule.ChainruleError) as raised:
        chainrule.verify(*arguments)
    assert message in str(raised.value)
