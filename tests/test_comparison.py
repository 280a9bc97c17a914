"""The one comparison of numbers: what is rounding, what is not, and that every check gives the same answer."""

import itertools
import math

import pytest
import torch

from chainrule.graph.comparison import PART, compare, identical, rounding, same_statistics
from chainrule.graph.statistics import Statistics
from chainrule.graph.statistics_cache import StatisticsCache

SUMS = {
    "sum": lambda x: x.sum(),
    "product of matrices": lambda x: (x[None] @ torch.ones(x.numel(), 1, dtype=x.dtype))[0, 0],
    "one after the other": lambda x: x.cumsum(0)[-1],
}


@pytest.fixture(autouse=True)
def _repeatable():
    torch.manual_seed(0)


@pytest.mark.parametrize("way", SUMS)
@pytest.mark.parametrize("draw", [torch.rand, torch.randn])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_sum_of_a_million_terms_agrees_with_the_exact_one_and_not_with_a_wrong_one(dtype, draw, way):
    x = draw(10**6, dtype=torch.float64).to(dtype)
    got, terms, exact = SUMS[way](x), x.double().abs().sum(), math.fsum(x.tolist())
    known = {"count": x.numel(), "eps": rounding(dtype)}
    assert compare(got.double(), exact, terms, **known).agrees
    # A sum of random signs is small, and its rounding is that of its terms.
    apart = 0.1 * abs(exact) if draw is torch.rand else 0.1 * float(terms)
    assert not compare(got.double() + apart, exact, terms, **known).agrees


def test_a_tiny_element_among_large_ones_is_compared_by_its_own_terms():
    expected = torch.tensor([1e8, 3e-7, -2e8])
    got = torch.tensor([1e8, 6e-7, -2e8])
    found = compare(got, expected, expected.abs())
    assert (found.agrees, found.index, found.off) == (False, (1,), (1,))
    assert found.largest == pytest.approx(3e-7)


@pytest.mark.parametrize("size", [7, 3 * PART])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64])
def test_where_the_difference_is(size, dtype):
    expected = torch.randn(2, size, dtype=dtype)
    got = expected.clone()
    assert compare(got, expected).largest == 0.0
    got[1, size - 3] *= 1 + 2 * rounding(dtype)
    near = compare(got, expected)
    assert near.agrees
    assert near.index == (1, size - 3)
    assert 0 < near.largest < near.tolerance
    got[1, size - 2] += 1
    far = compare(got, expected, argument="x")
    assert (far.agrees, far.index, far.off, far.argument) == (False, (1, size - 2), (2 * size - 2,), "x")
    assert far.excess > 1
    assert float(far) == far.largest == pytest.approx(1.0)


@pytest.mark.parametrize("size", [4, 2 * PART])
def test_what_is_not_finite_equals_itself_alone(size):
    odd = torch.tensor([math.nan, math.inf, -math.inf, 1.0])
    expected = torch.cat([torch.ones(size - 4), odd])
    assert compare(expected.clone(), expected).agrees
    assert compare(expected * (1 + 1e-7), expected).agrees
    for place in (-4, -3, -2, -1):
        for other in (0.0, math.nan, math.inf, -math.inf, 1.0):
            got = expected.clone()
            got[place] = other
            assert compare(got, expected).agrees == identical(got, expected), (place, other)
            assert compare(got, expected, expected.abs()).agrees == identical(got, expected), (place, other)


def test_an_unknown_tolerance_allows_nothing():
    for unknown in (math.inf, math.nan):
        assert not compare(1.0, 2.0, terms=unknown).agrees
        assert not compare(torch.ones(2), torch.tensor([1.0, 2.0]), slack=torch.full((2,), unknown)).agrees


def test_whole_numbers_and_shapes_must_be_equal():
    assert compare(torch.tensor([1, 2]), torch.tensor([1, 2])).agrees
    assert compare(torch.tensor([True]), torch.tensor([False])).off == (0,)
    assert not compare(torch.tensor([10**7]), torch.tensor([10**7 + 1])).agrees
    assert not compare(torch.ones(2), torch.ones(2, 1)).agrees
    assert compare(torch.ones(0), torch.ones(0)).agrees


def test_the_coarser_number_type_counts():
    x = torch.randn(50, dtype=torch.float64)
    assert compare(x.bfloat16(), x).agrees
    assert not compare(x.bfloat16().double(), x).agrees
    assert compare(x.bfloat16().double(), x, eps=rounding(torch.bfloat16)).agrees


def test_a_sparse_and_a_conjugate_tensor_are_what_they_hold():
    x = torch.tensor([[0.0, 2.0], [0.0, 0.0]])
    assert compare(x.to_sparse(), x).largest == 0.0
    z = torch.tensor([1 + 2j])
    assert compare(z.conj(), torch.tensor([1 - 2j])).agrees
    assert not compare(z.conj(), z).agrees


def test_statistics_of_the_same_numbers_in_another_order():
    x = torch.randn(1000, 300)
    one, other = Statistics.of(x), Statistics.of(x.t().contiguous())
    assert same_statistics(one, other, rounding(x.dtype))
    assert not same_statistics(one, Statistics.of(x + 1e-4), rounding(x.dtype))
    assert not same_statistics(one, Statistics.of(x[:-1]), rounding(x.dtype))


def test_a_conjugate_shares_its_memory_but_not_its_numbers() -> None:
    z = torch.randn(5, dtype=torch.complex64)
    assert not identical(z, z.conj())
    assert not compare(z, z.conj()).agrees
    assert identical(z.conj(), z.conj().clone())
    assert not StatisticsCache().are_twins(z.imag, z.conj().imag)


def test_two_numbers_are_compared_as_two_tensors_of_one_element():
    numbers = [0.0, -0.0, 1.0, 1.0 + 2e-16, -1.0, 1e-300, 3e150, math.inf, -math.inf, math.nan, 7, True]
    for got, expected in itertools.product(numbers, repeat=2):
        for known in ({}, {"terms": 5.0, "count": 9}, {"eps": 0.0}, {"slack": 2.5}, {"terms": math.nan, "count": 2}):
            of_numbers = compare(got, expected, **known)
            of_tensors = compare(*(torch.tensor(each, dtype=torch.float64) for each in (got, expected)), **known)
            assert of_numbers.largest == of_tensors.largest, (got, expected, known)
            assert of_numbers.tolerance == pytest.approx(of_tensors.tolerance, rel=1e-15), (got, expected, known)
            assert (of_numbers.agrees, of_numbers.off) == (of_tensors.agrees, of_tensors.off), (got, expected, known)
