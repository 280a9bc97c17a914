"""Mistakes of a user's backward that one step does not show: its upstream gradient, or its numbers, hide them.

Each stands beside the same function with a right backward, of which nothing is said.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import Function

import chainrule


def checked(backward: Callable[[Tensor, Tensor], Tensor], forward: Any, x: Tensor, loss: Any) -> Any:
    """The one row of a function whose backward is given the upstream gradient and its input."""

    class Own(Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Any:
            ctx.save_for_backward(x)
            return forward(x)

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> Tensor:
            return backward(g, *ctx.saved_tensors)

    leaf = x.clone().requires_grad_()
    with chainrule.record() as recording:
        loss(Own.apply(1.0 * leaf)).backward()
    check = recording.verify()
    assert {row.node.name for row in check.failures} <= {"OwnBackward"}
    (row,) = (row for row in check.rows if row.node.function_class is Own)
    return row


# -- by its upstream gradient -----------------------------------------------------------------------------------------

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
W = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("right", [True, False])
def test_a_backward_that_is_wrong_only_where_a_mask_stops_the_upstream_gradient(right: bool) -> None:
    kept = (torch.arange(6) < 5).float()

    def backward(g: Tensor, x: Tensor) -> Tensor:
        return g * x.cos() * (1.0 if right else 3 - 2 * kept)

    row = checked(backward, torch.sin, X, lambda y: (y * W * kept).sum())
    assert row.verdict == ("agrees" if right else "disagrees"), row.reason
    if not right:
        assert "the upstream gradient is 0 at 4 of 24 elements, which hides the mistake" in row.reason
        assert any("last column" in repair.text for repair in row.repairs)


@pytest.mark.parametrize("right", [True, False])
def test_a_backward_that_is_wrong_only_where_a_relu_stops_the_upstream_gradient(right: bool) -> None:
    def backward(g: Tensor, x: Tensor) -> Tensor:
        return g * (x.cos() if right else x.cos().where(x > 0, 2.0))

    row = checked(backward, torch.sin, X, lambda y: (y.relu() * W).sum())
    assert row.verdict == ("agrees" if right else "disagrees"), row.reason


@pytest.mark.parametrize("right", [True, False])
def test_a_backward_that_is_right_only_where_all_rows_of_the_upstream_gradient_are_equal(right: bool) -> None:
    row = checked(lambda g, x: 2 * (g if right else g.flip(0)), lambda x: 2 * x, X, lambda y: (y @ W[0]).sum())
    assert row.verdict == ("agrees" if right else "disagrees"), row.reason
    if not right:
        assert row.reason.startswith("right in this step alone; given another one")


@pytest.mark.parametrize("bound", [1.0, 3.0])
def test_a_backward_that_clips_is_left_alone_where_it_does_not_clip(bound: float) -> None:
    def by_norm(g: Tensor, x: Tensor) -> Tensor:
        return g * min(1.0, bound / float(g.norm()))

    weights = W * (W > 0)
    weights = weights * 0.99 * bound / weights.norm()
    for backward in (by_norm, lambda g, x: g.clamp(-bound, bound)):
        row = checked(backward, torch.clone, X, lambda y: (y * weights).sum())
        assert row.verdict == "agrees", row.reason


def test_a_backward_that_leaves_out_what_gets_no_upstream_gradient_is_right() -> None:
    def backward(g: Tensor, x: Tensor) -> Tensor:
        out = torch.zeros_like(g)
        out[g != 0] = g[g != 0] * x[g != 0].cos()
        return out

    assert checked(backward, torch.sin, X, lambda y: (y.relu() * W).sum()).verdict == "agrees"


@pytest.mark.parametrize("masked", [True, False])
def test_rows_of_padding_that_are_divided_by_their_norm_raise_no_alarm(masked: bool) -> None:
    def size(x: Tensor) -> Tensor:
        return x.norm(dim=-1, keepdim=True).clamp(min=1e-12)

    def backward(g: Tensor, x: Tensor) -> Tensor:
        y = x / size(x)
        return (g - y * (g * y).sum(-1, keepdim=True)) / size(x)

    rows = torch.tensor([[1.0], [1.0], [1.0], [0.0]])
    row = checked(backward, lambda x: x / size(x), X * rows, lambda y: (y * W * (rows if masked else 1)).sum())
    assert row.verdict == ("agrees" if masked else "not checked"), row.reason


# -- by its numbers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("right", [True, False])
@pytest.mark.parametrize("start", [0.0, 1.0])
def test_a_factor_is_seen_where_it_is_one_number_at_the_beginning(start: float, right: bool) -> None:
    class Scaled(Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
            ctx.save_for_backward(x, w)
            return x.tanh() * w

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
            x, w = ctx.saved_tensors
            return g * (1 - x.tanh() ** 2) * (w if right else w**2), (g * x.tanh()).sum(0)

    x, w = X.clone().requires_grad_(), nn.Parameter(torch.full((6,), start))
    with chainrule.record() as recording:
        (Scaled.apply(1.0 * x, w) * W).sum().backward()
    (row,) = (row for row in recording.verify().rows if row.own)
    assert row.verdict == ("agrees" if right else "disagrees"), row.reason
    if not right:
        assert row.reason.startswith(f"right in this step, where `w` is {start:.0f} throughout")
        assert [repair.argument for repair in row.repairs] == ["x"]


def test_numbers_that_are_all_equal_raise_no_alarm() -> None:
    right = {
        0.0: (torch.atanh, lambda g, x: g / (1 - x * x)),
        1.0: (torch.sqrt, lambda g, x: g / (2 * x.sqrt())),
        0.25: (lambda x: x * x.log(), lambda g, x: g * (x.log() + 1)),
        -1.0: (lambda x: x.clamp(-1, 1), lambda g, x: g * (x.abs() <= 1)),
    }
    for number, (forward, backward) in right.items():
        row = checked(backward, forward, torch.full((2, 3), number), lambda y: (y * W[:2, :3]).sum())
        assert row.verdict in ("agrees", "by convention"), row.reason


@pytest.mark.parametrize("right", [True, False])
@pytest.mark.parametrize("part", [1.0, 1j])
def test_a_conjugate_that_is_missing_is_seen_in_real_and_imaginary_numbers(part: complex, right: bool) -> None:
    def backward(g: Tensor, z: Tensor) -> Tensor:
        return 2 * g * (z.conj() if right else z * (1 if part == 1 else -1))

    z, weights = part * X[0].to(torch.complex64), torch.complex(W[0], W[1])
    row = checked(backward, torch.square, z, lambda y: (y * weights).sum().real)
    assert row.verdict == ("agrees" if right else "disagrees"), row.reason
    if not right:
        lacking = "imaginary" if part == 1 else "real"
        assert f"right in this step, where the {lacking} part of `x` is 0" in row.reason


@pytest.mark.parametrize("right", [True, False])
def test_a_conjugate_of_the_upstream_gradient_is_seen_where_that_is_real(right: bool) -> None:
    z = torch.complex(X[0], X[1])
    row = checked(
        lambda g, z: 2 * (g if right else g.conj()) * z.conj(), torch.square, z, lambda y: (y.real * W[0]).sum()
    )
    assert row.verdict == ("agrees" if right else "disagrees"), row.reason


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [4, 120])
def test_an_element_that_is_small_beside_the_others_is_wrong_too(size: int, dtype: torch.dtype) -> None:
    factor = torch.ones(size, dtype=dtype)
    factor[1] = 1e-20
    for wrong in (1.0, 2.0):
        changed = torch.ones(size, dtype=dtype)
        changed[1] = wrong
        weights = torch.linspace(0.5, 2, size, dtype=dtype)
        for offset in (0.0, 5.0):  # beside which differences cannot show it: autograd of the forward alone is no proof
            row = checked(
                lambda g, x, changed=changed: g * factor * changed,
                lambda x, offset=offset: offset + x * factor,
                torch.linspace(-1, 2, size, dtype=dtype),
                lambda y, weights=weights: (y * weights).sum(),
            )
            assert row.verdict == ("disagrees" if wrong == 2 and not offset else "agrees"), row.reason
            if row.verdict == "disagrees":
                assert ["wrong at [1], where it is small" in repair.text for repair in row.repairs] == [True]


def test_a_custom_operator_is_given_another_upstream_gradient_too() -> None:
    w = nn.Parameter(X)
    for factor, verdict in ((1.0, "agrees"), (2.0, "disagrees")):
        with chainrule.record() as recording:
            (half(w, factor) * W * (X > 0)).sum().backward()
        (row,) = (row for row in recording.verify().rows if row.own)
        assert row.verdict == verdict, row.reason


@torch.library.custom_op("chainrule_tests::half", mutates_args=())
def half(x: Tensor, factor: float) -> Tensor:
    return x / 2


def keep(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.save_for_backward(inputs[0])
    ctx.factor = inputs[1]


half.register_autograd(
    lambda ctx, g: (g * torch.where(ctx.saved_tensors[0] > 0, 0.5, 0.5 * ctx.factor), None), setup_context=keep
)
