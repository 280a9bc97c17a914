"""Statistics of large tensors: those of float64 over every element, whatever the type, the layout and the size."""

import math

import pytest
import torch

import chainrule
from chainrule.graph import statistics
from chainrule.graph.statistics import Statistics
from chainrule.graph.statistics_cache import StatisticsCache, distance, memory


@pytest.fixture(autouse=True, params=["in one pass", "without numba"])
def compiled(request, monkeypatch):
    if request.param == "without numba":
        monkeypatch.setattr(statistics, "one_pass", lambda row: None)
    else:
        pytest.importorskip("numba")
        statistics.one_pass(torch.zeros(statistics.LARGE))  # loads the kernel


def plainly(data):
    wide = (data.abs() if data.is_complex() else data).double().reshape(-1)
    return {
        "elements": wide.numel(), "norm": wide.norm().item(), "mean": wide.mean().item(),
        "std": wide.std(correction=0).item(), "low": wide.min().item(), "high": wide.max().item(),
        "zeros": int((wide == 0).sum()), "not_finite": 0,
    }  # fmt: skip


@pytest.mark.parametrize(
    "data",
    [
        torch.randn(70_001),
        torch.randn(300, 500).t(),
        torch.randn(64, 3, 100)[:, 1],
        torch.randn(1, 400).expand(300, 400),
        torch.randn(90_000, dtype=torch.float64) * 1e-3 + 5,
        torch.randn(90_000).to(torch.bfloat16),
        (torch.randn(90_000) * 1e4).to(torch.float16),
        torch.randint(0, 50_000, (300, 400)),
        torch.rand(9_000) > 0.5,
        torch.randn(5_000, dtype=torch.complex64),
        torch.zeros(10_000),
        torch.full((70_000,), 3e30),
        torch.full((300, 300), torch.finfo(torch.float32).min).tril(),
        torch.full((70_000,), 1e-30),
        torch.nn.functional.dropout(torch.randn(100_000)),
    ],
)
def test_the_figures_are_those_of_float64(data):
    found = Statistics.of(data)
    for name, expected in plainly(data).items():
        scale = abs(expected) if name in ("norm", "low", "high") else plainly(data)["norm"] / math.sqrt(data.numel())
        assert getattr(found, name) == pytest.approx(expected, rel=1e-5, abs=1e-4 * scale), name


@pytest.mark.parametrize("type", [torch.float32, torch.float64])
def test_the_histogram_is_the_same_with_and_without_a_compiler(type, monkeypatch):
    data = torch.randn(50_000, dtype=type) * torch.logspace(-45, 25, 50_000, dtype=type)
    data[::7] = 0
    found = Statistics.of(data, magnitudes=True)
    monkeypatch.setattr(statistics, "one_pass", lambda row: None)
    assert found.magnitudes == Statistics.of(data, magnitudes=True).magnitudes


def test_what_is_not_finite_is_counted_and_left_out():
    data = torch.randn(100_000)
    clean = data[3:].clone()
    data[0], data[1], data[2] = math.nan, math.inf, -math.inf
    found, expected = Statistics.of(data), Statistics.of(clean)
    assert (found.elements, found.not_finite) == (100_000, 3)
    assert found.norm == pytest.approx(expected.norm)
    nothing = Statistics.of(torch.full((200,), math.nan))
    assert (nothing.elements, nothing.not_finite, nothing.norm) == (200, 200, 0.0)


def test_a_view_of_all_of_a_tensor_is_the_same_memory_and_a_part_is_not():
    data = torch.randn(4, 6)
    assert memory(data) == memory(data.t()) == memory(data.view(2, 12))
    assert memory(data) != memory(data[:2])
    assert memory(data[:, :3]) != memory(data[:, :3].clone())
    assert memory(data.expand(2, 4, 6)) != memory(data)
    complex_ = torch.randn(3, dtype=torch.complex64)
    assert memory(complex_) != memory(complex_.conj())


def test_nothing_is_kept_of_what_is_only_compared():
    measures = StatisticsCache()
    theirs = torch.randn(10)
    assert measures.are_twins(theirs.clone(), theirs, passing=True)
    assert not measures._known


def test_the_distance_of_two_tensors():
    one, other = torch.randn(700, 500), torch.randn(500, 700).t()
    assert distance(one, other) == pytest.approx((one.double() - other.double()).norm().item(), rel=1e-6)


def test_a_step_with_nan_in_its_gradients_is_told():
    w = torch.nn.Parameter(torch.zeros(3))
    with chainrule.record() as recording:
        (w * torch.ones(3)).square().sum().sqrt().backward()
    kinds = [
        block.kind for _, section in recording.document().walk() for block in section.blocks if hasattr(block, "kind")
    ]
    assert math.isnan(w.grad[0])
    assert set(kinds) == {"not checked"} == {row.verdict for row in recording.verify().rows}
