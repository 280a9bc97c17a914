"""What is unhealthy in a run is found while it runs, kept, and answered."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import chainrule
from chainrule import runs
from chainrule.errors import SilenceError


@pytest.fixture(autouse=True)
def always_looking(monkeypatch):
    monkeypatch.setattr("chainrule.watching.examine.SHARE", 1e9)  # not only as long as it takes little time


def train(watching, steps=30, broken=lambda logits: F.softmax(logits, dim=1)):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    x = torch.randn(32, 4)
    y = x[:, :3].argmax(1)
    with watching(model, optimizer) as watch:
        for _ in range(steps):
            optimizer.zero_grad()
            F.cross_entropy(broken(model(x)), y).backward()
            optimizer.step()
    return watch


def test_a_finding_is_kept_with_the_step_since_which_it_holds(tmp_path):
    path = tmp_path / "run.db"
    watch = train(lambda *given: chainrule.watch(*given, every=5, to=path))
    (found,) = [each for each in watch.findings if each.id == "softmax-before-cross-entropy"]
    with runs.open(path) as run:
        kept = {each.id: each for each in run.findings()}
    assert kept["softmax-before-cross-entropy"] == found
    assert (found.since, found.severity) == (1, "warning")
    assert "softmax" in found.text
    assert found.advice


def test_a_healthy_run_has_no_warning(tmp_path):
    watch = train(lambda *given: chainrule.watch(*given, every=5), broken=lambda logits: logits)
    assert [each for each in watch.findings if each.severity != "note"] == []


def test_after_a_new_finding_a_step_is_recorded_in_full(tmp_path):
    path = tmp_path / "run.db"
    train(lambda *given: chainrule.watch(*given, every=10, to=path, on_finding=True))
    with runs.open(path) as run:
        recorded = list(run.recordings().values())
        assert recorded[0].step == 2
        assert "softmax-before-cross-entropy" in recorded[0].reason
    assert chainrule.load(recorded[0].file).findings()


def test_a_function_is_called_with_each_new_finding_once(tmp_path):
    met = []
    train(lambda *given: chainrule.watch(*given, every=5, to=tmp_path / "run.db", on_finding=met.append))
    assert [each.id for each in met].count("softmax-before-cross-entropy") == 1
    with runs.open(tmp_path / "run.db") as run:
        assert not run.recordings()


def test_findings_can_be_silenced(tmp_path):
    watch = train(lambda *given: chainrule.watch(*given, silence=("softmax-before-cross-entropy",)), steps=5)
    assert "softmax-before-cross-entropy" not in {each.id for each in watch.findings}


def test_silencing_what_does_not_exist_is_said_at_the_start():
    with pytest.raises(SilenceError, match="no finding has the id 'softmaxx'"):
        chainrule.watch(silence=("softmaxx",))


def test_the_history_that_is_remembered_stays_small(monkeypatch):
    monkeypatch.setattr("chainrule.watching.examine.WINDOW", 4)
    watch = train(lambda *given: chainrule.watch(*given), steps=30)
    assert [facts.step for facts in watch.history.steps] == [25, 26, 27, 28, 29, 30]
    assert watch.history.series["update", "0.weight"].steps == [25, 26, 27, 28, 29, 30]
