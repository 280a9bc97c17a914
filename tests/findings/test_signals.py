"""Signals on their way forward and gradients on their way back: their edges, and what is healthy."""

import pytest
import torch
from torch import nn

import chainrule
from tests.bed.loops.models import FUTURE, Rows
from tests.findings.test_models import found_in, watched

pytestmark = pytest.mark.trains


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


# -- attention --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", [True, False])
def test_a_mask_of_zeros_and_ones_of_multi_head_attention(weights):
    class Net(nn.Module):
        def __init__(self, mask):
            super().__init__()
            self.attend, self.mask = nn.MultiheadAttention(8, 2, batch_first=True), mask

        def forward(self, x):
            return self.attend(*[x.reshape(-1, 8, 8)] * 3, need_weights=weights, attn_mask=self.mask)[0]

    finding = found_in(Net((~FUTURE).float()), torch.randn(8, 64), keep="statistics")["mask-without-effect"]
    assert "adds 0 or 1, and a token that gets the smaller one keeps 0.3679 of its weight" in finding.sentence
    assert "mask-without-effect" not in found_in(Net(-1e4 * FUTURE), torch.randn(8, 64), keep="statistics")


def test_attention_that_was_uniform_for_long_is_said_after_it_has_ended():
    def zeros(model):
        for projection in (model.q, model.k):
            nn.init.zeros_(projection.weight)
            nn.init.zeros_(projection.bias)
        return model

    def between(step, of, at):
        if step == at:
            of.q.reset_parameters()
            of.k.reset_parameters()

    late, soon = zeros(Rows()), zeros(Rows())
    found = watched(late, 60, lambda step: between(step, late, 52), every=10)["uniform-attention"]
    assert (found.severity, found.since, found.until) == ("warning", 1, 50)
    found = watched(soon, 60, lambda step: between(step, soon, 32), every=10)
    assert "uniform-attention" not in found or found["uniform-attention"].severity == "note"


def test_attention_whose_scores_lie_far_apart_from_the_start_on():
    def change(scores):
        return (400 * scores).masked_fill(FUTURE, -1e9)

    finding = watched(Rows(change), 4)["saturated"]
    assert finding.severity == "warning"
    assert any("scores have a standard deviation of" in line for line in finding.evidence)
    # Those of a mask are no scores.
    assert "saturated" not in watched(Rows(lambda scores: scores.masked_fill(FUTURE, -1e9)), 4)


# -- weights that begin at 0 ------------------------------------------------------------------------------------------


def test_weights_that_all_begin_at_zero():
    def of(*zeros):
        model = nn.Sequential(nn.Linear(64, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1))
        for place in zeros:
            nn.init.zeros_(model[place].weight)
        return model

    found = watched(of(0, 2, 4), 8)["symmetric-units"]
    assert (found.severity, found.since) == ("warning", 1)
    assert "All 3 weights of the step are 0." in found.evidence
    found = watched(of(2, 4), 8)
    assert "symmetric-units" not in found or found["symmetric-units"].severity == "note"


# -- layers that are dropped ------------------------------------------------------------------------------------------


def test_a_layer_whose_result_is_dropped_is_what_is_missing():
    class Net(nn.Module):
        def __init__(self, drops):
            super().__init__()
            self.enter, self.mix, self.out, self.drops = nn.Linear(64, 16), nn.Linear(16, 16), nn.Linear(16, 4), drops

        def forward(self, x):
            h = self.enter(x)
            if self.drops:
                self.mix(h).relu()
            return self.out(h)

    found = found_in(Net(True), torch.randn(8, 64))
    assert "no-activation" not in found
    assert found["no-gradient"].where.startswith("mix.")
    assert "no-activation" in found_in(Net(False), torch.randn(8, 64))


# -- through depth and time -------------------------------------------------------------------------------------------


def test_the_factor_of_each_layer():
    model = nn.Sequential(*(each for _ in range(8) for each in (nn.Linear(32, 32), nn.Sigmoid())), nn.Linear(32, 32))
    finding = found_in(model, torch.randn(16, 32), keep="statistics")["vanishing-gradient"]
    (line,) = (each for each in finding.evidence if "per layer" in each)
    assert 0.05 < float(line.split()[5]) < 0.3  # a sigmoid passes a quarter at most


class Recurrent(nn.Module):
    def __init__(self, radius):
        super().__init__()
        self.enter, self.again, self.out = nn.Linear(4, 16), nn.Linear(16, 16, bias=False), nn.Linear(16, 1)
        nn.init.orthogonal_(self.again.weight, gain=radius)

    def forward(self, x):
        h = torch.zeros(len(x), 16)
        for row in x.reshape(len(x), -1, 4).unbind(1):  # 16 time steps
            h = self.enter(row) + self.again(h)
        return self.out(h)


def recurrent(radius, clip=None):
    model = Recurrent(radius)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-12)
    with chainrule.watch(model, optimizer, every=1, namespace={"model": model}) as watch:
        for _ in range(6):
            optimizer.zero_grad()
            model(torch.randn(8, 64)).square().mean().backward()
            if clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
    return {each.id: each for each in watch.findings}.get("exploding-gradient")


def test_a_recurrence_throws_the_gradient():
    found = recurrent(1.4)  # 1.4^11 = 40 between the thirds
    assert (found.severity, found.where) == ("warning", "again.weight")
    assert "through time" in found.text
    (line,) = (each for each in found.evidence if "per step" in each)
    assert float(line.split()[5]) == pytest.approx(1.4, abs=0.03)
    assert recurrent(1.1) is None  # 1.1^11 = 3


def test_a_recurrence_of_which_the_gradient_is_clipped():
    found = recurrent(1.4, clip=1.0)
    assert found is None or found.severity == "note"
