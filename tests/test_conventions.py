"""Gradients that are by definition not the derivative: said, with name and source. A wrong one disagrees."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import chainrule


def row_of(work, *leaves: Tensor, hook=None):
    """The last node's row of a step, and whether the whole step passes."""
    with chainrule.record() as recording:
        out = work(*(leaf * 1 for leaf in leaves))
        if hook is not None:
            out.grad_fn.register_hook(hook)
        (out * torch.linspace(0.5, 1.5, out.numel()).reshape(out.shape)).sum().backward()
    verification = recording.verify()
    name = type(out.grad_fn).__name__
    return next(row for row in verification.rows if row.node.name == name), verification.passed


def numbers(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3)).requires_grad_()


WORDS = torch.tensor([[3, 4, 3], [1, 0, 0]])
PLACES = torch.tensor([0, 1, 1, 3])
INT = torch.int32

BUILT_IN = {
    "padding_idx": (lambda w: F.embedding(WORDS, w, padding_idx=0), (6, 4), "padding_idx", "embedding", 4),
    "of many rows": (lambda w: F.embedding(WORDS, w, padding_idx=0), (3000, 40), "padding_idx", "embedding", 40),
    "scale_grad_by_freq": (
        lambda w: F.embedding(WORDS, w, scale_grad_by_freq=True), (6, 4), "scale_grad_by_freq", "embedding", 8,
    ),
    "scatter": (lambda x: torch.zeros(5).scatter(0, PLACES, x), (4,), "repeated indices", "scatter_", 2),
    "index_put": (
        lambda x: torch.zeros(5, 2).index_put((PLACES,), x), (4, 2), "repeated indices", "index_put_", 4,
    ),
    "index_copy": (
        lambda x: torch.zeros(5, 2).index_copy(0, PLACES, x), (4, 2), "repeated indices", "index_copy_", 4,
    ),
    "fake quantisation": (
        lambda x: torch.fake_quantize_per_tensor_affine(x * 0.01, 0.1, 0, -5, 5), (4, 5), "straight-through",
        "torch.fake_quantize_per_tensor_affine", 20,
    ),
    "relu at 0": (F.relu, (0,), "ReLU has a corner at 0", "relu", 1),
}  # fmt: skip


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_convention_of_pytorch_is_named_with_its_source(name):
    work, shape, convention, source, count = BUILT_IN[name]
    row, passed = row_of(work, torch.tensor([0.0, 1.0, -1.0], requires_grad=True) if shape == (0,) else numbers(*shape))
    assert passed
    assert row.verdict == "by convention"
    assert row.reason.startswith(convention)
    assert source in row.reason
    assert row.conventions[0].count == count


@pytest.mark.parametrize("name", ["padding_idx", "of many rows", "scatter", "relu at 0"])
def test_another_gradient_than_the_convention_says_disagrees(name):
    work, shape, *_ = BUILT_IN[name]
    at = 0 if name != "scatter" else 1

    def wrong(sent, _):
        gradient = next(each for each in sent if each is not None).clone()
        gradient[at] += 0.5
        return tuple(None if each is None else gradient for each in sent)

    leaf = torch.tensor([0.0, 1.0, -1.0], requires_grad=True) if shape == (0,) else numbers(*shape)
    row, passed = row_of(work, leaf, hook=wrong)
    assert not passed
    assert row.verdict == "disagrees"
    assert "is not what the convention says" in row.reason


def test_elements_beside_a_convention_are_measured():
    def wrong(sent, _):
        gradient = sent[0].clone()
        gradient[3] *= 1.5
        return (gradient, *sent[1:])

    row, passed = row_of(lambda w: F.embedding(WORDS, w, padding_idx=0), numbers(6, 4), hook=wrong)
    assert not passed
    assert row.wrong[0].index[0] == 3


def function(forward, backward):
    class Own(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return forward(x)

        @staticmethod
        def backward(ctx, u):
            return backward(u, *ctx.saved_tensors)

    return Own.apply


def eighths(x):
    return (x * 8).round().clamp(-9, 9) / 8


def scaled_sign(x):
    return x.abs().mean(1, keepdim=True) * x.sign()


def slope_of_scaled_sign(u, x):
    return u * (1 / x.shape[1] + x.abs().mean(1, keepdim=True) * (x.abs() <= 1))


BY_DESIGN = {
    "round": (torch.round, lambda u, x: u, "straight-through estimator: the backward takes `round`"),
    "quarters": (lambda x: (x * 4).floor() / 4, lambda u, x: u, "straight-through estimator"),
    "codes": (lambda x: (x / 0.1).round(), lambda u, x: u / 0.1, "straight-through estimator"),
    "clamped": (eighths, lambda u, x: u * (x.abs() <= 9 / 8), "straight-through estimator"),
    "sign": (torch.sign, lambda u, x: u * (x.abs() <= 1), "straight-through estimator"),
    "step": (lambda x: (x > 0).to(x), lambda u, x: u.clamp(-1, 1), "straight-through estimator"),
    "spike": (lambda x: (x > 0).to(x), lambda u, x: u / (1 + 10 * x.abs()) ** 2, "surrogate gradient"),
    "a sign and its scale": (scaled_sign, lambda u, x: u * (x.abs() <= 1), "straight-through estimator"),
    "with the slope of the scale": (scaled_sign, slope_of_scaled_sign, "surrogate gradient"),
    "reversal": (lambda x: x.view_as(x), lambda u, x: -0.5 * u, "gradient reversal by 0.5"),
    "scaling": (lambda x: x.clone(), lambda u, x: 0.1 * u, "gradient scaling by 0.1"),
    "clipping": (lambda x: x.clone(), lambda u, x: u.clamp(-1, 1), "gradient clipping"),
}


@pytest.mark.parametrize(("name", "size"), [*((name, (4, 5)) for name in BY_DESIGN), ("round", (300, 400))])
def test_a_convention_of_the_user_is_recognised(name, size):
    forward, backward, said = BY_DESIGN[name]
    row, passed = row_of(function(forward, backward), numbers(*size))
    assert passed
    assert row.verdict == "by convention"
    assert row.reason.startswith(said)


WRONG = {
    "the sign of a straight-through estimator": (torch.round, lambda u, x: -u),
    "its factor": (torch.round, lambda u, x: 1.01 * u),
    "a surrogate that pushes back": (lambda x: (x > 0).to(x), lambda u, x: u * (x - 0.5)),
    "of its own numbers": (torch.round, lambda u, x: u * u),
    "ReLU without its mask": (F.relu, lambda u, x: u),
    "an identity here alone": (lambda x: x.clamp(-100, 100) * 1.0 + (x.abs() - x.abs()), lambda u, x: u * x),
    "a pruned weight without its mask": (lambda x: x * (x.abs() > 0.5), lambda u, x: u),
    "the sign of a sign and its scale": (scaled_sign, lambda u, x: -u),
    "twice": (lambda x: 2 * x, lambda u, x: -u),
    "a clamp of rounded numbers": (lambda x: x + (x * 4).round() / 4, lambda u, x: u * 3),
}


@pytest.mark.parametrize(("name", "size"), [*((name, (4, 5)) for name in WRONG), ("its factor", (40, 30))])
def test_a_wrong_backward_is_no_convention(name, size):
    row, passed = row_of(function(*WRONG[name]), numbers(*size))
    assert not passed
    assert row.verdict == "disagrees"


def test_relu_is_no_identity_where_all_is_positive():
    row, passed = row_of(function(F.relu, lambda u, x: -u), numbers(4, 5).detach().abs().requires_grad_())
    assert not passed
    assert row.verdict == "disagrees"
