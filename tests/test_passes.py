"""Backward passes that accumulate into `.grad`, and those of `torch.autograd.grad`, whose gradients are results."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import chainrule
from chainrule import runs, views
from tests.golden import without_residues


def proved(recording: chainrule.Recording) -> dict[str, Any]:
    """The rows of the leaves, by name; nothing may disagree."""
    verification = recording.verify()
    assert verification.passed, verification
    values = recording.graph.values
    return {values[row.node.leaf].name: row for row in verification.rows if row.node.leaf is not None}


def assert_told(recording: chainrule.Recording, name: str, expected: Tensor) -> None:
    """Our gradient, the recorded one, and every sum of `why` are what torch gave."""
    value = recording[name]
    torch.testing.assert_close(value.grad, expected)
    torch.testing.assert_close(recording.derivation.gradients[value.index], expected)
    for index in torch.cartesian_prod(*map(torch.arange, expected.shape)).reshape(expected.numel(), -1).tolist():
        why = recording.why(name, tuple(index))
        assert why.value == pytest.approx(expected[tuple(index)].item(), rel=1e-4, abs=1e-6)
        assert why.total == pytest.approx(expected[tuple(index)].item(), rel=1e-4, abs=1e-6)
        assert not why.sentence


def run_code(recording: chainrule.Recording) -> None:
    code = [section.code for _, section in recording.document(coded=True).walk() if section.code]
    exec("\n".join(code), {})


def penalised(keep: Any = None) -> tuple[chainrule.Recording, nn.Module, Tensor, Tensor]:
    """A step of WGAN-GP: the critic's slope at points between real and fake samples is pulled towards 1."""
    torch.manual_seed(0)
    critic = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    real, fake = torch.randn(5, 3), torch.randn(5, 3)
    optimizer = torch.optim.SGD(critic.parameters(), lr=0.1)
    with chainrule.record(keep=keep) as recording:
        share = torch.rand(5, 1)
        between = (share * real + (1 - share) * fake).requires_grad_()
        judged = critic(between)
        (slope,) = torch.autograd.grad(judged, between, torch.ones_like(judged), create_graph=True)
        penalty = ((slope.norm(2, dim=1) - 1) ** 2).mean()
        loss = critic(fake).mean() - critic(real).mean() + 10 * penalty
        loss.backward()
        optimizer.step()
    return recording, critic, between, slope.detach()


def test_a_gradient_penalty_is_proved_against_grad() -> None:
    recording, critic, between, slope = penalised()
    for name, parameter in critic.named_parameters():
        assert_told(recording, name, parameter.grad)
    assert_told(recording, "between", between.grad)
    handed, accumulated = recording.graph.backwards
    assert (handed.accumulates, accumulated.accumulates) == (False, True)
    at = recording["between"].index
    assert handed.given.keys() == {at}
    assert torch.equal(handed.given[at].data, slope)
    torch.testing.assert_close(recording.derivation.of_passes[0][at], slope)
    rows = proved(recording)
    assert {row.verdict for row in rows.values()} == {"agrees"}
    assert recording.loss == recording["loss"].data.item()
    assert len(recording.losses) == 1


def test_a_gradient_penalty_is_told() -> None:
    recording = penalised()[0]
    text = recording.document()
    titles = [str(section.title[0]) for _, section in text.walk()]
    assert "djudged/dbetween" in titles
    assert not any(title.startswith("djudged/d0.") for title in titles), "nobody asked for these"
    assert "dJ/d2.weight (contribution 3 of 3: the value is used 3 times, and the contributions add up)" in titles
    told = str(recording)
    assert "J = " in told
    assert "torch.autograd.grad (test_passes.py:" in re.sub(r"\s+", " ", told)
    run_code(recording)
    assert not {finding.id for finding in recording.findings()} & {
        "accumulated-gradient",
        "no-gradient",
        "gradient-changed",
    }


@pytest.mark.parametrize("keep", ["all", "statistics"])
def test_the_pass_of_autograd_grad_is_not_counted(keep: str) -> None:
    w = torch.tensor([2.0, 3.0], requires_grad=True)
    x = torch.tensor([1.5, -1.0])
    with chainrule.record(keep=keep) as recording:
        y = (w * x).pow(3).sum()
        (g,) = torch.autograd.grad(y, w, create_graph=True)
        J = y + (g**2).sum()
        J.backward()
    assert_told(recording, "w", w.grad)
    assert torch.equal(recording.graph.backwards[0].given[recording["w"].index].data, g.detach())
    row = proved(recording)["w"]
    assert (row.verdict, row.reason) == ("agrees", "its gradient is the sum of what came back from its only use")
    run_code(recording)


def test_large_gradients_that_were_given() -> None:
    torch.manual_seed(0)
    w = torch.randn(120, 120, requires_grad=True)
    with chainrule.record(keep="statistics") as recording:
        y = (w**2).sum()
        (g,) = torch.autograd.grad(y, w, create_graph=True)
        J = (g**2).sum()
        J.backward()
    at = recording["w"].index
    assert recording.graph.backwards[0].given[at].data is None
    assert recording["w"].grad_statistics.norm == pytest.approx(w.grad.norm().item(), rel=1e-5)
    again = recording.recompute("w")
    torch.testing.assert_close(again["w"].grad, w.grad)


def test_autograd_grad_alone_and_an_update_by_hand() -> None:
    w = torch.tensor([2.0, 3.0], requires_grad=True)
    x = torch.tensor([1.5, -1.0])
    with chainrule.record() as recording:
        y = (w * x).pow(3).sum()
        (g,) = torch.autograd.grad(y, w)
        with torch.no_grad():
            w -= 0.1 * g
    assert recording.loss == y.item()
    name = recording.graph.values[recording.graph.parameters["w"].value].name
    assert_told(recording, name, g)
    row = proved(recording)[name]
    assert row.verdict == "agrees"
    assert row.reason.startswith("the gradient that torch.autograd.grad gave of it is the sum of")
    assert not recording.parameters["w"].has_gradient
    assert torch.equal(recording.parameters["w"].after, w.detach())
    assert "no-gradient" not in {finding.id for finding in recording.findings()}
    run_code(recording)


def test_the_gradient_of_an_intermediate_value() -> None:
    w, x = torch.tensor([2.0, 3.0], requires_grad=True), torch.tensor([1.5, -1.0])
    with chainrule.record() as recording:
        h = w * x
        y = h.pow(3).sum()
        (g,) = torch.autograd.grad(y, h)
    assert_told(recording, "h", g)
    assert recording["w"].grad is None
    assert recording.why("w", 0).value is None


def test_two_backward_calls_both_accumulate() -> None:
    w, x = torch.tensor([2.0, 3.0], requires_grad=True), torch.tensor([1.5, -1.0])
    with chainrule.record() as recording:
        y = (w * x).pow(3).sum()
        y.backward(retain_graph=True)
        y.backward()
    assert_told(recording, "w", w.grad)
    assert proved(recording)["w"].verdict == "agrees"
    assert len(recording.losses) == 2


def test_autograd_grad_before_backward_without_a_graph() -> None:
    w, x = torch.tensor([2.0, 3.0], requires_grad=True), torch.tensor([1.5, -1.0])
    optimizer = torch.optim.Adam([w], lr=0.1)
    with chainrule.record() as recording:
        J = (w * x).pow(3).sum()
        (g,) = torch.autograd.grad(J, w, retain_graph=True)
        norm = g.norm()
        J.backward()
        optimizer.step()
    assert norm > 0
    assert_told(recording, "w", w.grad)
    assert torch.equal(recording.graph.backwards[0].given[recording["w"].index].data, g)
    assert proved(recording)["w"].verdict == "agrees"
    run_code(recording)


def test_what_was_given_is_kept_as_it_was() -> None:
    w = torch.tensor([2.0, 3.0], requires_grad=True)
    with chainrule.record() as recording:
        (g,) = torch.autograd.grad((w**2).sum(), w)
        g.mul_(0)
    g.add_(7)
    assert recording.graph.backwards[0].given[recording["w"].index].data.tolist() == [4.0, 6.0]


def test_an_inner_update_then_backward() -> None:
    """As in MAML: the outer loss is differentiated through the update that the inner loss made."""
    torch.manual_seed(1)
    w, b = torch.randn(3, requires_grad=True), torch.zeros(1, requires_grad=True)
    x, y = torch.randn(4, 3), torch.randn(4)
    with chainrule.record() as recording:
        inner = ((x @ w + b - y) ** 2).mean()
        gw, gb = torch.autograd.grad(inner, (w, b), create_graph=True)
        fast_w, fast_b = w - 0.1 * gw, b - 0.1 * gb
        outer = ((x @ fast_w + fast_b + y) ** 2).mean()
        outer.backward()
    assert_told(recording, "w", w.grad)
    assert_told(recording, "b", b.grad)
    given = recording.graph.backwards[0].given
    assert torch.equal(given[recording["w"].index].data, gw.detach())
    assert torch.equal(given[recording["b"].index].data, gb.detach())
    assert {row.verdict for row in proved(recording).values()} == {"agrees"}
    run_code(recording)


def test_two_gradients_of_different_things_are_not_added() -> None:
    """Without `backward` the last `autograd.grad` that reached a value is the one that is told."""
    w = torch.tensor([2.0, 3.0], requires_grad=True)
    with chainrule.record() as recording:
        first = (w**2).sum()
        second = (w**3).sum()
        (one,) = torch.autograd.grad(first, w)
        (two,) = torch.autograd.grad(second, w)
    assert_told(recording, "w", two)
    given = [each.given[recording["w"].index].data for each in recording.graph.backwards]
    assert all(map(torch.equal, given, (one, two)))
    assert proved(recording)["w"].verdict == "agrees"


def test_a_gradient_given_in_a_backward_of_ones_own() -> None:
    """A `backward` that runs its forward again and asks `autograd.grad` hands its results on, and they accumulate."""

    class Again(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return x**3

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> Tensor:
            with torch.enable_grad():
                x = ctx.saved_tensors[0].detach().requires_grad_()
                return torch.autograd.grad(x**3, x, g)[0]

    w = torch.tensor([2.0, 3.0], requires_grad=True)
    with chainrule.record() as recording:
        J = Again.apply(w).sum()
        J.backward()
    torch.testing.assert_close(recording["w"].grad, w.grad)
    assert recording.loss == J.item()
    assert proved(recording)["w"].verdict == "agrees"


def test_inputs_that_are_no_part_of_the_loss() -> None:
    w, v = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    with chainrule.record() as recording:
        J = (w * 2).sum()
        got, none = torch.autograd.grad(outputs=J, inputs=[w, v], allow_unused=True)
    assert none is None
    assert recording.graph.backwards[0].given.keys() == {recording["w"].index}
    assert torch.equal(recording["w"].grad, got)


def test_a_file_keeps_what_was_given(tmp_path: Path) -> None:
    recording = penalised()[0]
    recording.save(tmp_path / "step.safetensors")
    loaded = chainrule.load(tmp_path / "step.safetensors")
    one, other = recording.graph.backwards[0], loaded.graph.backwards[0]
    assert not other.accumulates
    assert one.given.keys() == other.given.keys()
    assert all(torch.equal(one.given[value].data, other.given[value].data) for value in one.given)
    texts = {views.written(without_residues(each.document()), ".txt") for each in (loaded, recording)}
    assert len(texts) == 1


def test_rows_of_a_hessian_are_each_the_gradient_of_something_else() -> None:
    w = torch.tensor([2.0, 3.0], requires_grad=True)
    with chainrule.record() as recording:
        J = (w**4).sum()
        (g,) = torch.autograd.grad(J, w, create_graph=True)
        rows = [torch.autograd.grad(each, w, retain_graph=True)[0] for each in g]
    given = [each.given[recording["w"].index].data for each in recording.graph.backwards[1:]]
    assert all(map(torch.equal, given, rows))
    assert_told(recording, "w", rows[1])
    assert recording.why("w", 1).gradient == "dJ3/dw[1]"


def test_a_batch_of_gradients_at_once_leaves_the_rest_readable() -> None:
    w = torch.tensor([2.0, 3.0], requires_grad=True)
    with chainrule.record() as recording:
        h = w**2
        h.sum().backward(retain_graph=True)
        (jacobian,) = torch.autograd.grad(h, w, torch.eye(2), is_grads_batched=True)
    assert jacobian.tolist() == [[4.0, 0.0], [0.0, 6.0]]
    assert_told(recording, "w", w.grad)
    assert proved(recording)["w"].verdict == "agrees"


def test_a_watch_tells_the_loss_and_not_what_a_penalty_differentiates(tmp_path: Path) -> None:
    torch.manual_seed(0)
    critic = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    optimizer = torch.optim.SGD(critic.parameters(), lr=0.01)
    losses = []
    with chainrule.watch(critic, optimizer, every=1, to=str(tmp_path / "run.db")):
        for _ in range(3):
            x = torch.randn(5, 3, requires_grad=True)
            judged = critic(x).sum()
            (slope,) = torch.autograd.grad(judged, x, create_graph=True)
            loss = ((slope.norm(dim=1) - 1) ** 2).mean() + critic(torch.randn(5, 3)).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    with runs.open(tmp_path / "run.db") as run:
        assert [loss for _, loss in run.losses()] == pytest.approx(losses)


@pytest.mark.parametrize("activation", [nn.Tanh(), nn.Sigmoid(), nn.Softmax(-1), nn.GELU()])
def test_every_node_of_a_gradient_penalty_is_checked(activation: nn.Module) -> None:
    """Of a result that autograd gives back to its own node, the way on is to that result."""
    torch.manual_seed(0)
    critic = nn.Sequential(nn.Linear(3, 4), activation, nn.Linear(4, 1))
    x = torch.randn(5, 3, requires_grad=True)
    with chainrule.record() as recording:
        judged = critic(x).sum()
        (slope,) = torch.autograd.grad(judged, x, create_graph=True)
        loss = judged + ((slope.norm(dim=1) - 1) ** 2).mean()
        loss.backward()
    verification = recording.verify()
    assert [row.reason for row in verification.rows if row.verdict != "agrees"] == []
    assert_told(recording, "0.weight", critic[0].weight.grad)


@pytest.mark.parametrize("norm", [nn.LayerNorm(4), nn.BatchNorm1d(4)])
def test_a_normalisation_in_a_gradient_penalty_is_not_accused(norm: nn.Module) -> None:
    """PyTorch counts how mean and spread change with the input, which differences at given statistics do not see."""
    torch.manual_seed(0)
    critic = nn.Sequential(nn.Linear(3, 4), norm, nn.Linear(4, 1))
    x = torch.randn(5, 3, requires_grad=True)
    with chainrule.record() as recording:
        (slope,) = torch.autograd.grad(critic(x).pow(2).sum(), x, create_graph=True)
        ((slope.norm(dim=1) - 1) ** 2).mean().backward()
    verification = recording.verify()
    assert verification.passed
    (row,) = [row for row in verification.rows if row.node.name.endswith("NormBackwardBackward0")]
    assert "the statistics that it is given are those of its `input`" in row.reason
    run_code(recording)


def test_a_gradient_that_was_cleared_between_two_passes() -> None:
    w = torch.tensor([2.0, 3.0], requires_grad=True)
    with chainrule.record() as recording:
        (w**2).sum().backward()
        w.grad = None
        (w**3).sum().backward()
    row = proved(recording)["w"]
    assert row.verdict == "agrees"
    assert row.reason.endswith("`.grad` was cleared in between, and holds what came after that")
    assert recording.parameters["w"].grad.tolist() == [12.0, 27.0]


@pytest.mark.parametrize("norm", [nn.GroupNorm(2, 4), nn.BatchNorm2d(4), nn.Identity()])
def test_the_penalty_of_a_critic_with_convolutions_is_proved(norm: nn.Module) -> None:
    torch.manual_seed(0)
    critic = nn.Sequential(nn.Conv2d(2, 4, 3), norm, nn.Tanh(), nn.Conv2d(4, 2, 2), nn.Flatten(), nn.Linear(2, 1))
    real = torch.randn(3, 2, 4, 4, requires_grad=True)
    with chainrule.record() as recording:
        scores = critic(real)
        (slope,) = torch.autograd.grad(scores.sum(), real, create_graph=True)
        (((slope.flatten(1).norm(dim=1) - 1) ** 2).mean() + scores.mean()).backward()
    found = recording.verify()
    assert not found.failures
    assert "ConvolutionBackwardBackward0" in {row.node.name for row in found.rows if row.verdict == "agrees"}
    assert str(recording)


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("passes", [1, 2])
def test_a_pass_inside_of_another_adds_to_the_same_leaves(first: bool, passes: int) -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    x = torch.randn(5, 4, requires_grad=True)
    with chainrule.record() as recording:
        for _ in range(passes):
            inner, outer = checkpoint(model, x, use_reentrant=True).square().sum(), model(x).sum()
            (inner + outer if first else outer + inner).backward()
    check = recording.verify()
    assert check.passed, [(row.node.name, row.verdict, row.reason) for row in check.rows]
    assert {row.verdict for row in check.rows} == {"agrees"}
