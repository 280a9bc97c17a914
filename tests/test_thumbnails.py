import math

import pytest
import torch

from chainrule.document import Histogram
from chainrule.graph.statistics import Statistics
from chainrule.graph.statistics_cache import COUNTED, sketch
from chainrule.graph.statistics_cache import histogram as counted


def histogram(data):
    return counted(data, Statistics.of(data))


def test_a_sketch_holds_the_mean_of_each_cell():
    data = torch.arange(16 * 32, dtype=torch.float32).reshape(16, 32)
    made = sketch(data)
    assert (made.rows, made.columns) == (8, 16)
    assert made.means[0] == data[:2, :2].mean()
    assert made.means[-1] == pytest.approx(data[-2:, -2:].mean().item(), rel=5e-3)


@pytest.mark.parametrize("data", [torch.tensor(3.0), torch.ones(2, 3, dtype=torch.bool), torch.ones(5) * 1j])
def test_a_small_one_keeps_its_shape(data):
    made = sketch(data)
    assert made.rows * made.columns == data.numel() == len(made.means)


def test_what_is_not_finite_is_seen_in_its_cell_and_left_out_of_the_bins():
    data = torch.tensor([[0.0, 1.0, math.nan, math.inf]])
    assert [math.isfinite(mean) for mean in sketch(data).means] == [True, True, False, False]
    made = histogram(data)
    assert (made.low, made.high, sum(made.counts)) == (0.0, 1.0, 2)


def test_a_histogram_counts_every_number():
    made = histogram(torch.tensor([-1.0, -1.0, 0.0, 1.0]))
    assert made == Histogram(-1.0, 1.0, (2, *[0] * 11, 1, *[0] * 10, 1))


def test_where_there_is_nothing_to_see():
    assert sketch(torch.empty(0, 3)) is None
    assert histogram(torch.empty(0)) is None
    assert histogram(torch.ones(9)) is None
    assert histogram(torch.tensor([math.nan])) is None


def test_of_very_many_numbers_a_regular_sample_is_counted_and_the_ends_are_true():
    data = torch.randn(200, 512)
    made = histogram(data)
    assert made.sample == sum(made.counts) <= COUNTED // 2
    assert (made.low, made.high) == (data.min().item(), data.max().item())
    spread = [count / made.sample for count in made.counts]
    whole = torch.histc(data, 24, made.low, made.high) / data.numel()
    assert spread == pytest.approx(whole.tolist(), abs=0.02)
    assert histogram(data.t()) == made  # a view holds the same numbers


def test_no_column_is_missed_where_the_sample_would_fall_into_step_with_the_rows():
    data = torch.zeros(1024, 512)
    data[:, 1] = 1.0  # every n-th number, n a multiple of 512 or a factor of it, would miss it
    assert histogram(data).counts[-1] / histogram(data).sample == pytest.approx(1 / 512, rel=0.1)


def test_a_sketch_of_a_grid_that_does_not_divide_is_that_of_pytorchs_pooling():
    data = torch.randn(3, 37, 101)
    expected = torch.nn.functional.adaptive_avg_pool2d(data.view(1, -1, 101), (8, 16))
    assert sketch(data).means == pytest.approx(expected.reshape(-1).tolist(), rel=0.01, abs=1e-4)
