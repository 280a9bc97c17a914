"""The statistics of a tensor: those of its numbers, whatever its type, layout and device, and without a trace."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from chainrule.graph import statistics
from chainrule.graph.statistics import EXPONENTS, Statistics, measure
from tests.steps import assert_same_statistics

LARGE = 20_000  # elements of a float32 tensor that is not small


def test_figures_of_several_tensors_are_fetched_together() -> None:
    tensors = [torch.linspace(-1, 2, 100 + n, dtype=t) for n in range(3) for t in (torch.float32, torch.float64)]
    there = [statistics.Measured(statistics._on_device(each), statistics._sample(each)) for each in tensors]
    statistics._gather(there)
    for tensor, found in zip(tensors, there, strict=True):
        assert isinstance(found.row, tuple)
        assert_same_statistics(found.read(), Statistics.of(tensor))
        assert found.read().magnitudes == Statistics.of(tensor, magnitudes=True).magnitudes


@pytest.mark.parametrize(
    "tensor",
    [
        torch.linspace(-3, 5, 1001),
        torch.linspace(-3, 5, 5000, dtype=torch.float64).reshape(50, 100).t(),
        torch.linspace(-3, 5, 200_000)[::2],
        torch.linspace(-3, 5, 300).bfloat16(),
        torch.arange(-5, 20),
        torch.tensor([True, False, True]),
        torch.complex(torch.linspace(0, 1, 20), torch.linspace(1, 0, 20)),
        torch.full((5,), 1e30),
        torch.full((5,), 1e-30),
        torch.tensor(2.5),
        torch.zeros(4000),
    ],
)
def test_figures_are_those_of_the_numbers(tensor: Tensor) -> None:
    wide = (tensor.abs() if tensor.is_complex() else tensor).double().reshape(-1)
    found = Statistics.of(tensor)
    assert found.elements == wide.numel()
    assert found.norm == pytest.approx(wide.norm().item(), rel=1e-5)
    assert found.mean == pytest.approx(wide.mean().item(), rel=1e-5, abs=1e-6)
    assert found.std == pytest.approx(wide.std(correction=0).item(), rel=1e-3, abs=1e-3 * wide.abs().max().item())
    assert (found.low, found.high) == pytest.approx((wide.min().item(), wide.max().item()), rel=1e-6)
    assert found.zeros == (wide == 0).sum()
    assert found.not_finite == 0


def test_what_is_not_finite_is_counted_and_left_out() -> None:
    found = Statistics.of(torch.tensor([3.0, float("nan"), -4.0, float("inf"), 0.0]))
    assert (found.elements, found.not_finite, found.zeros) == (5, 2, 1)
    assert found.norm == 5.0
    assert (found.low, found.high) == (-4.0, 3.0)
    assert Statistics.of(torch.full((3,), float("nan"))).not_finite == 3
    assert Statistics.of(torch.empty(0)).elements == 0


def test_magnitudes_count_by_powers_of_two() -> None:
    found = Statistics.of(torch.tensor([0.0, 1.0, 1.5, -17.0, 2.0**-40, 2.0**60]), magnitudes=True)
    bins = dict(zip(EXPONENTS, found.magnitudes, strict=True))
    assert bins[0] == 2
    assert bins[4] == 1
    assert bins[-32] == 1
    assert bins[28] == 1
    assert sum(found.magnitudes) == 5


def test_figures_of_another_device_are_the_same() -> None:
    for tensor in (torch.linspace(-3, 5, 1001), torch.tensor([3.0, float("nan"), -4.0]), torch.arange(5)):
        found, true = (
            statistics.of_row(tuple(statistics._on_device(statistics._flat(tensor)).tolist())),
            Statistics.of(tensor),
        )
        assert (found.elements, found.zeros, found.not_finite) == (true.elements, true.zeros, true.not_finite)
        assert math.isclose(found.norm, true.norm, rel_tol=1e-5)
        assert math.isclose(found.mean, true.mean, rel_tol=1e-4, abs_tol=1e-6)


def test_measuring_leaves_no_trace() -> None:
    tensor = torch.randn(LARGE, requires_grad=True)
    version = tensor._version
    measure(tensor)
    assert tensor._version == version
    assert tensor.grad_fn is None
