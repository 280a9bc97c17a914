import math

import pytest
import torch

from chainrule.document import Histogram
from chainrule.telling.sketches import histogram, sketch


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
