"""Tensors that are measured together have the figures that each has by itself."""

import math

import pytest
import torch

from chainrule.graph.statistics import Statistics, of_a_sample, part_of
from chainrule.graph.statistics_cache import MOST, measured, measured_samples


def tensors():
    torch.manual_seed(0)
    zeros = torch.randn(96)
    zeros[::7] = 0
    broken = torch.randn(96)
    broken[3], broken[5] = math.nan, math.inf
    return [
        *(torch.randn(96) for _ in range(3)),
        torch.randn(8, 12),
        torch.randn(8, 12).t(),
        torch.randn(8, 24)[:, ::2],
        torch.randn(96, dtype=torch.float64),
        torch.randn(96, requires_grad=True),
        zeros,
        torch.zeros(96),
        broken,
        torch.full((96,), 1e-30),
        torch.full((96,), 3e30),
        torch.full((96,), 1e100, dtype=torch.float64),
        torch.randn(MOST),
        torch.randn(MOST + 1),
        torch.randn(96, dtype=torch.bfloat16),
        torch.randn(96, dtype=torch.float16),
        broken.half(),
        torch.randn(96, dtype=torch.complex64),
        torch.randn(96, dtype=torch.complex64).conj().imag,
        torch.randint(5, (96,)),
        torch.randn(()),
        torch.empty(0),
        torch.randn(8, 12).to_sparse(),
    ]


@pytest.mark.parametrize("magnitudes", [True, False])
def test_together_or_each_by_itself(magnitudes):
    given = tensors()
    for tensor, found in zip(given, measured(given, magnitudes), strict=True):
        alone = Statistics.of(tensor, magnitudes)
        exact = ("elements", "low", "high", "zeros", "not_finite", "magnitudes")
        assert [getattr(found, name) for name in exact] == [getattr(alone, name) for name in exact]
        assert [found.norm, found.mean, found.std] == pytest.approx([alone.norm, alone.mean, alone.std], 1e-5, 1e-6)


def test_samples_together_or_each_by_itself():
    large = torch.randn(200, 200)
    given = [torch.randn(300), large, large.t(), large.relu(), large.bfloat16(), large.to_sparse(), torch.empty(0)]
    found = measured_samples(given)
    for tensor, known in zip(given, found, strict=True):
        alone = of_a_sample(Statistics.of(part_of(tensor)), tensor.numel())
        assert (known.elements, known.zeros, known.low, known.high) == (
            alone.elements, alone.zeros, alone.low, alone.high
        )  # fmt: skip
        assert [known.norm, known.mean, known.std] == pytest.approx([alone.norm, alone.mean, alone.std], 1e-5, 1e-6)


def test_of_nothing():
    assert measured([], True) == []
