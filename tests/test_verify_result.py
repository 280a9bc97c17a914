"""What `verify` gives: its rows, what was chosen and left out, its memory, its document."""

import time
from contextlib import nullcontext
from pkgutil import resolve_name

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from chainrule import document
from chainrule.errors import MissingError, RequestError
from tests.checks import FlippedSign, no_alarm, proved, recorded, rows, verify


@pytest.fixture(autouse=True)
def _repeatable():
    torch.set_num_threads(1)
    torch.manual_seed(0)


def test_one_row_a_node_in_order_with_coverage_and_progress(monkeypatch):
    layer = nn.Linear(3, 2)
    graph = recorded(lambda: torch.special.entr(layer(torch.randn(4, 3)).exp()).sum().backward())
    seen = []
    monkeypatch.setattr("chainrule.recording.bar", lambda title: nullcontext(lambda *counts: seen.append(counts)))
    verification = verify(graph)
    assert [row.node for row in verification.rows] == list(graph.nodes)
    assert seen[-1] == (len(graph.nodes), len(graph.nodes))
    unexplained = [row for row in verification.rows if row.reason.startswith("we have no rule for it")]
    assert verification.coverage == (len(graph.nodes) - len(unexplained), len(graph.nodes))


def test_only_takes_names_and_an_unknown_one_is_an_error_with_near_matches():
    x = torch.randn(3, requires_grad=True)
    graph = recorded(lambda: x.exp().sin().sum().backward())
    assert [row.node.name for row in verify(graph, only="SinBackward0").rows] == ["SinBackward0"]
    with pytest.raises(MissingError, match="SinBackward0"):
        verify(graph, only="SineBackward0")


class Fused(TorchDispatchMode):
    """The layer norm of a processor that fuses multiply and add: the weight's gradient is the rounding of `x * rstd`.

    Without it, both terms are rounded alike, and the kernel gives 0.
    """

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.native_layer_norm_backward.default:
            g, x, _, _, rstd = args[:5]
            left = torch.finfo(x.dtype).eps / 2 * g * x * rstd
            return out[0], left.reshape(out[1].shape), out[2]
        return out


@pytest.mark.parametrize("scale", [1e-3, 1.0])
def test_what_cancels_inside_an_operation_is_rounding(scale):
    """Of a single element the normalised value is 0, and PyTorch's kernel gives what is left of two large terms."""
    x = (scale * torch.randn(1, dtype=torch.float64)).requires_grad_()
    w = torch.randn(1, dtype=torch.float64, requires_grad=True)
    with Fused():
        graph = recorded(lambda: F.layer_norm(x, (1,), w).sum().backward())
    verification = verify(graph)
    assert w.grad != 0
    (row,) = rows(verification, "NativeLayerNormBackward0")
    assert row.verdict == "agrees"
    no_alarm(verification)


class Deep(nn.Module):
    """Twelve blocks, as models of transformers name them."""

    def __init__(self):
        super().__init__()
        self.h = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(12))

    def forward(self, x):
        for block in self.h:
            x = x + block(x)
        return x


def deep():
    model, x = Deep(), torch.randn(2, 4)
    return recorded(lambda: model(x).square().sum().backward())


def test_a_pattern_means_whole_parts_of_a_path():
    graph = deep()

    def modules(*only):
        chosen = verify(graph, only=only).rows
        return {graph.calls[row.node.call].module for row in chosen if row.node.call is not None}

    assert modules("h.1") == modules("h.1.*") == {"h.1.0", "h.1.1"}
    assert modules("h.1?.1", "h.3.0") == {"h.10.1", "h.11.1", "h.3.0"}
    assert modules("h.*.0") == {f"h.{block}.0" for block in range(12)}
    assert [row.node.name for row in verify(graph, only="0.weight").rows] == ["AccumulateGrad"] * 12
    with pytest.raises(MissingError, match=r"no node is named 'h\.12\.\*'"):
        verify(graph, only="h.12.*")


def test_a_sample_is_the_same_each_time_and_says_what_it_left_out():
    graph = deep()
    some, again = verify(graph, sample=0.1), verify(graph, sample=0.1)
    looked = len(some.rows)
    assert looked == round(0.1 * len(graph.nodes))
    assert [row.node for row in some.rows] == [row.node for row in again.rows]
    assert some.coverage == (looked, looked)
    assert some.left_out == len(graph.nodes) - looked
    said = " ".join(str(some).split())
    assert f"{some.left_out} more were not looked at (a random share of 0.1)" in said
    both = verify(graph, only=["h.3.*", "h.4.*"], sample=0.01)
    assert (len(both.rows), both.chosen) == (1, "those that h.3.*, h.4.* names, of these a random share of 0.01")
    assert verify(graph).left_out == 0


@pytest.mark.parametrize("options", [{"sample": 0}, {"sample": 1.5}, {"sample": float("nan")}, {"memory": 0}])
def test_a_share_or_a_memory_that_means_nothing_is_an_error(options):
    with pytest.raises(RequestError, match="Give"):
        verify(deep(), **options)


def test_a_check_beyond_its_memory_is_left_out_and_says_so():
    x = torch.randn(300, 300, requires_grad=True)
    graph = recorded(lambda: x.softmax(1).square().sum().backward())
    (row,) = rows(verify(graph, memory=2**20), "SoftmaxBackward0")
    assert row.verdict == "agrees"
    assert "our rule and autograd agree; no central difference was taken" in row.reason
    assert "a check may take 1 MiB (`memory=` of `verify`)" in row.reason
    assert rows(verify(graph), "SoftmaxBackward0")[0].verdict == "agrees"


def test_many_elements_are_looked_at_in_chunks_that_fit(monkeypatch):
    x = torch.randn(60, 60, dtype=torch.float64, requires_grad=True)
    graph = recorded(lambda: FlippedSign.apply(x).sum().backward())
    place = "chainrule.execution.central_differences.Probe._terms"
    chunks, stacked = [], resolve_name(place)

    def terms(probe, lines, step):
        chunks.append(len(lines))
        return stacked(probe, lines, step)

    monkeypatch.setattr(place, terms)
    wide = verify(graph)
    at_once, chunks[:] = max(chunks), []
    narrow = verify(graph, memory=600_000)
    assert max(chunks) < at_once
    assert narrow.failures[0].wrong == wide.failures[0].wrong


def test_the_document_names_node_line_and_the_three_sides():
    x = torch.randn(3, requires_grad=True)
    told = proved(lambda: FlippedSign.apply(x).sum().backward()).document()
    assert isinstance(told, document.Document)
    failure = told.sections[1]
    assert failure.title[0].startswith("FlippedSignBackward, node")
    table = next(block for block in failure.blocks if isinstance(block, document.Table))
    assert table.headers == ("element", "rule", "autograd", "finite difference")
    element, rule, autograd, finite = (cell[0] for cell in table.rows[0])
    assert (element, rule) == ("x[0]", "none")
    assert float(autograd) == pytest.approx(-float(finite), rel=1e-4)
    assert told.summary[0].kind == "disagrees"
    assert "2 of 3 autograd nodes agree" in told.summary[0].text[0]


def test_nothing_global_is_changed():
    layer = nn.Linear(6, 30)
    graph = recorded(lambda: F.dropout(FlippedSign.apply(layer(torch.randn(7, 6)))).sum().backward())
    state, dtype, mode = torch.get_rng_state(), torch.get_default_dtype(), torch.is_grad_enabled()
    gradient = layer.weight.grad.clone()
    verify(graph)
    assert torch.equal(state, torch.get_rng_state())
    assert (dtype, mode) == (torch.get_default_dtype(), torch.is_grad_enabled())
    assert torch.equal(gradient, layer.weight.grad)


def test_a_small_step_is_proved_in_well_under_a_tenth_of_a_second():
    layer = nn.Sequential(
        nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 1), nn.Sigmoid()
    ).double()
    graph = recorded(lambda: layer(torch.randn(2, 2, dtype=torch.float64)).square().mean().backward())
    verify(graph)
    began = time.process_time()
    verify(graph)
    assert time.process_time() - began < 0.15
