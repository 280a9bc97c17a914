"""Mistakes that the mutants do not make; what is recognised there is in tests/mutants."""

import pytest
import torch
from torch.autograd import Function

import chainrule


def function(forward, backward):
    """An autograd.Function of two inputs, which saves both."""

    def run(ctx, x, y):
        ctx.save_for_backward(x, y)
        return forward(x, y)

    return type(
        "Wrong",
        (Function,),
        {"forward": staticmethod(run), "backward": staticmethod(lambda ctx, g: backward(g, *ctx.saved_tensors))},
    )


def mistakes(forward, backward, *shapes):
    (row,) = chainrule.verify(function(forward, backward), *(torch.randn(shape) for shape in shapes)).failures
    return {repair.argument: (repair.kind, repair.text) for repair in row.repairs}


def test_gradients_that_are_swapped():
    found = mistakes(torch.mul, lambda g, x, y: (g * x, g * y), (3, 4), (3, 4))
    assert {kind for kind, _ in found.values()} == {"swapped"}
    assert "what came back for `y` is the gradient of `x`" in found["x"][1]


@pytest.mark.parametrize("shape", [(5, 6), (50, 60)])
def test_a_mean_without_its_1_over_n(shape):
    found = mistakes(lambda x, y: (x * y).mean(), lambda g, x, y: (g * y, g * x / x.numel()), shape, shape)
    n = shape[0] * shape[1]
    assert found["x"][0] == "1/N"
    assert f"divided by N = {n}, the number of elements of `x`" in found["x"][1]
    assert "y" not in found


def test_a_shift_that_lost_the_edge():
    def backward(g, x, y):
        shifted = torch.zeros_like(g)
        shifted[1:] = (g * y)[:-1]
        return shifted, g * x

    assert mistakes(torch.mul, backward, (7,), (7,))["x"][0] == "shifted"


def test_a_term_too_many():
    found = mistakes(torch.mul, lambda g, x, y: (g * y + g * x, g * x), (3, 4), (3, 4))
    assert found["x"][0] == "extra term"


def test_the_gradient_read_in_the_wrong_order():
    found = mistakes(lambda x, y: x.sin() + y, lambda g, x, y: ((g * x.cos()).t().reshape(3, 4), g), (3, 4), (3, 4))
    assert found["x"][0] == "transpose"


def test_what_is_not_recognised_is_said_and_not_guessed():
    found = mistakes(
        lambda x, y: x.sin() * y, lambda g, x, y: (g * torch.erf(x) * y.exp() + x**3, g * x.sin()), (3, 4), (3, 4)
    )
    assert found["x"] == ("not recognised", "what is wrong with the gradient of `x` was not recognised")


def test_the_document_says_it():
    wrong = function(torch.mul, lambda g, x, y: (1.01 * g * y, g * x))
    told = chainrule.verify(wrong, torch.randn(3, 4), torch.randn(3, 4)).document()
    words = str(told.sections[-1].blocks)
    assert "1.01 times what it should be" in words
    assert "test_repair.py:" in words
