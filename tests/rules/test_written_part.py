"""A write to a part of a tensor has the rule of its operation: proved, and a wrong part is caught."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import chainrule

Write = Callable[[Tensor, Tensor], object]

WRITES: dict[str, Write] = {
    "copy": lambda y, x: y[1].copy_(x[0]),
    "a column, broadcast": lambda y, x: y[:, 1].copy_(x[0, 1]),
    "set": lambda y, x: y.__setitem__((slice(None), 0), x[:, 2] * 2),
    "a step": lambda y, x: y[::2, 1:].mul_(x[0, 1:]),
    "a diagonal": lambda y, x: y.diagonal().add_(x[1], alpha=3),
    "turned": lambda y, x: y.t()[0].div_(x[:, 1] + 4),
    "in another shape": lambda y, x: y.view(-1)[2:5].sub_(x[2]),
    "its own result": lambda y, x: y[0].sqrt_(),
    "a kink": lambda y, x: y[0].relu_(),
    "clamped": lambda y, x: y[1].clamp_(-0.5, 0.5),
    "two factors": lambda y, x: y[2].addcmul_(x[0], x[1]),
    "between": lambda y, x: y[2].lerp_(x[0], 0.3),
    "a number": lambda y, x: y[2, :2].fill_(2.0),
    "of a tensor": lambda y, x: y[2, :2].fill_(x[0, 0]),
    "zero": lambda y, x: y[0].zero_(),
    "masked": lambda y, x: y[0].masked_fill_(torch.tensor([True, False, True]), 0.5),
    "by indices": lambda y, x: y[:2].index_put_((torch.tensor([0, 1]), torch.tensor([2, 2])), x[0, :2]),
    "added by an index": lambda y, x: y[0].index_add_(0, torch.tensor([1, 1]), x[0, :2]),
    "along an axis": lambda y, x: y[1:].cumsum_(0),
    "no element": lambda y, x: y[:0].mul_(2.0),
    "of two writes": lambda y, x: (y[0].add_(x[1]), y[1].mul_(x[1])),
}


@pytest.mark.parametrize("name", WRITES)
def test_each_write_is_proved(name: str) -> None:
    torch.manual_seed(0)
    x = nn.Parameter(torch.randn(3, 3, dtype=torch.float64))
    with chainrule.record() as recording:
        y = x.square() + 0.1
        WRITES[name](y, x)
        y.square().sum().backward()
    check = recording.verify()
    rows = [row for row in check.rows if row.node.name == "CopySlices"]
    assert check.passed
    assert rows
    assert {row.reason for row in rows} <= {"our rule, autograd and central differences agree"}, rows
    assert "No rule yet" not in str(recording)
