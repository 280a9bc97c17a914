"""The verdicts of a document are those of the gradient check, and what is wrong is said to be so wherever it shows."""

import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import Function

import chainrule
from chainrule import report
from chainrule.document import Table, Verdict
from tests.steps import spoil_rule
from tests.zoo.models import ZOO


@pytest.fixture(autouse=True)
def _repeatable():
    torch.manual_seed(0)


def recorded(step):
    with chainrule.record() as recording:
        step()
    return recording


def verdicts(document):
    return [block for _, section in document.walk() for block in section.blocks if isinstance(block, Verdict)]


def checks(recording):
    """The column `check` of the brief table of parameters."""
    tables = [
        block
        for _, section in recording.document(brief=True).walk()
        for block in section.blocks
        if isinstance(block, Table) and block.headers[-1] == "check"
    ]
    return {row[0][0]: row[-1][0] for table in tables for row in table.rows}


def same_verdicts(recording):
    """The verdict of every contribution is that of the rows of its nodes, before `verify` has run and after it."""
    before = report.Context(recording.graph, recording.derivation, recording.notation)
    rows = {row.node.index: row for row in recording.verify().rows}
    after = report.Context(recording.graph, recording.derivation, recording.notation, rows=rows)
    for step in recording.steps:
        for contribution in step.contributions:
            if contribution.gradient is not None and contribution.recorded is not None and len(step.nodes) == 1:
                expected = rows[step.nodes[0]].verdict
                assert [
                    after.checks.contribution(contribution).verdict,
                    before.checks.contribution(contribution).verdict,
                ] == [expected] * 2, (step.index, contribution.argument, rows[step.nodes[0]].reason)


HARD = {
    "layer norm far from 0": lambda x: F.layer_norm(1e3 + 0.01 * x, (16,)),
    "a linear layer before it": lambda x: F.layer_norm(5e2 + x @ torch.randn(16, 16), (16,)),
    "batch norm far from 0": lambda x: F.batch_norm(3e3 + 0.02 * x, None, None, training=True),
    "instance norm far from 0": lambda x: F.instance_norm((2e3 + 0.01 * x)[None]),
    "variance far from 0": lambda x: (1e4 + x).var(1),
    "saturated softmax": lambda x: (80 * x).softmax(1),
    "saturated tanh": lambda x: (9 + x).tanh(),
    "logsumexp of large numbers": lambda x: (1e3 * x).logsumexp(1),
    "distances of near points": lambda x: torch.cdist(x, x.detach() + 1e-4),
    "a difference of near numbers": lambda x: ((x + 1e4) - 1e4).exp(),
    "a kink": lambda x: x.relu() + (x - x.detach()).abs(),
    "bfloat16": lambda x: F.gelu(x.bfloat16() @ torch.randn(16, 16).bfloat16()).float(),
}


@pytest.mark.parametrize("name", HARD)
def test_a_document_and_the_gradient_check_give_one_verdict(name):
    x = torch.randn(8, 16, requires_grad=True)

    def step():
        out = HARD[name](x)
        (out * torch.randn(out.shape)).sum().backward()

    recording = recorded(step)
    assert recording.verify().passed
    for document in (recorded(step).document(), recorded(step).document(brief=True), recording.document(pointing=True)):
        assert {each.kind for each in verdicts(document)} <= {"agrees", "by convention", "not checked"}
    same_verdicts(recording)


@pytest.mark.parametrize("by", [0.0, 6.0, 12.0, 26.0, 60.0])
def test_confident_predictions_agree(by):
    logits = torch.tensor([[14.0 + by, 0.0, -3.0], [19.0 + by / 3, 1.0, 2.0]], requires_grad=True)
    recording = recorded(lambda: F.cross_entropy(logits, torch.tensor([0, 0])).backward())
    assert {each.kind for each in verdicts(recording.document())} == {"agrees"}
    assert recording.verify().passed


class Wrong(Function):
    """y = x^2 / 2, with a gradient that is twice too large in its last element."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.square() / 2

    @staticmethod
    def backward(ctx, up):
        (x,) = ctx.saved_tensors
        back = x * up
        back[-1] *= 2
        return back


@pytest.mark.parametrize("size", [5, 700, 30_000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_tiny_wrong_element_among_large_ones_is_caught(size, dtype):
    x = (1e3 * (1 + torch.rand(size, dtype=dtype))).requires_grad_()
    with torch.no_grad():
        x[-1] = 2e-3
    recording = recorded(lambda: Wrong.apply(x).sum().backward())
    (failure,) = recording.verify().failures
    assert failure.node.name == "WrongBackward"
    assert [wrong.index for wrong in failure.wrong] == [(size - 1,)]


def test_a_wrong_backward_is_said_to_be_wrong_in_every_view(tmp_path):
    w = nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))
    v = nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))
    recording = recorded(lambda: (Wrong.apply(w * 3) + v).sum().backward())
    assert list(checks(recording).values()) == ["disagrees", "agrees"]
    kinds = {each.kind for each in verdicts(recording.document())}
    assert "disagrees" in kinds
    for name in ("txt", "md", "html", "tex", "json", "ipynb"):
        recording.save(tmp_path / f"step.{name}")
        assert "disagrees" in (tmp_path / f"step.{name}").read_text(), name
    assert not recording.verify().passed
    assert list(checks(recording).values()) == ["disagrees", "agrees"]
    same_verdicts(recording)


def test_a_wrong_rule_is_said_to_be_wrong_in_the_document_too(monkeypatch):
    spoil_rule(monkeypatch, "SinBackward0", lambda op, g: g * op.self.cos() * 1.0001)
    x = torch.randn(6, requires_grad=True)
    recording = recorded(lambda: (x * 2).sin().sum().backward())
    assert [each.kind for each in verdicts(recording.document())].count("disagrees") >= 1
    assert [row.node.name for row in recording.verify().failures] == ["SinBackward0"]


def test_an_update_that_changes_a_tiny_weight_wrongly_is_caught():
    w = nn.Parameter(torch.tensor([1e4, 2e-4, -3e4]))
    optimizer = torch.optim.SGD([w], 0.1)
    with chainrule.record() as recording:
        (w * torch.tensor([1e3, 1e-3, 1e3])).sum().backward()
        optimizer.step()
    assert checks(recording) == {"w": "agrees"}
    (update,) = recording.graph.updates
    (each,) = update.parameters
    each.after[1] -= 1e-4  # twice what it was to change
    assert checks(recording) == {"w": "disagrees"}
    told = [each for each in verdicts(recording.document()) if each.kind == "disagrees"]
    assert len(told) == 1
    assert re.search("after", "".join(str(span) for span in told[0].text))


@pytest.mark.parametrize("name", ["resnet", "unet", "graph_network", "vae", "transformer_encoder"])
def test_a_model_has_one_verdict_for_each_node(name):
    model, loss = ZOO[name]()
    same_verdicts(recorded(lambda: loss(model).backward()))
