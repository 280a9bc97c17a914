"""What is unhealthy in a run is found while it runs, kept, and answered."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import chainrule
from chainrule import runs
from chainrule.errors import SilenceError

pytestmark = pytest.mark.trains


@pytest.fixture(autouse=True)
def always_looking(monkeypatch):
    monkeypatch.setattr("chainrule.monitor.examine.SHARE", 1e9)  # not only as long as it takes little time


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


def test_the_step_that_shows_something_new_is_kept_in_full(tmp_path):
    path = tmp_path / "run.db"
    train(lambda *given: chainrule.watch(*given, every=10, to=path, on_finding=True))
    with runs.open(path) as run:
        recorded = list(run.recordings().values())
        assert recorded[0].step == 1
        assert "softmax-before-cross-entropy" in recorded[0].reason
    assert chainrule.load(recorded[0].file).findings()


class Breaks(nn.Module):
    """Wide enough that only figures are kept, with dropout and running statistics; NaN where the scale is below 0."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(64, 256), nn.BatchNorm1d(256), nn.Linear(256, 3)
        self.drop = nn.Dropout(0.3)

    def forward(self, x, scale):
        hidden = self.drop(torch.relu(self.norm(self.first(x))))
        return self.last(hidden * torch.log(scale))


class Hidden(torch.autograd.Function):
    """Reads a number that no recording knows of, so that it cannot be played again."""

    now = 0.0

    @staticmethod
    def forward(ctx, x):
        Hidden.now += 1.0
        return x + Hidden.now

    @staticmethod
    def backward(ctx, g):
        return g


def break_at(step, watched, stop_at_nan=False, **options):
    """Train for eight steps, with NaN from one of them on; gives the parameters and buffers at the end."""
    torch.manual_seed(0)
    model = Breaks()
    model.last.register_forward_pre_hook(options.pop("before_last", lambda module, args: None))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    x, y = torch.randn(128, 64), torch.randint(0, 3, (128,))
    watch = chainrule.watch(model, optimizer, **options) if watched else None
    for number in range(1, 9):
        scale = torch.full((128, 1), 2.0)
        scale[3] = -1.0 if number == step else 2.0
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x, scale), y)
        if stop_at_nan and loss.isnan():
            break
        loss.backward()
        optimizer.step()
    if watch is not None:
        watch.close()
    return model.state_dict()


def test_the_step_in_which_nan_was_born_is_replayed_with_all_its_numbers(tmp_path):
    path = tmp_path / "run.db"
    watched = break_at(6, True, to=path, on_finding=True)
    bare = break_at(6, False)
    assert all(torch.equal(watched[name].nan_to_num(), bare[name].nan_to_num()) for name in bare)
    with runs.open(path) as run:
        (recorded,) = run.recordings().values()
    assert (recorded.step, recorded.reason) == (6, "non-finite-forward: log")
    recording = chainrule.load(recorded.file)
    assert recording.is_whole
    assert recording["drop"].data.isfinite().all()
    assert recording["drop"].data.eq(0).any()
    assert recording["log"].data.isnan().sum() == 1
    assert all(each.before.isfinite().all() for each in recording.parameters.values())
    assert "non-finite-forward" in {found.id for found in recording.findings()}


@pytest.mark.parametrize("full_every", [None, 1])
def test_a_step_that_was_left_because_of_nan_is_kept_in_full(tmp_path, full_every):
    path = tmp_path / "run.db"
    break_at(6, True, stop_at_nan=True, to=path, on_finding=True, full_every=full_every)
    with runs.open(path) as run:
        recorded = run.recordings()[6]
    recording = chainrule.load(recorded.file)
    assert recording["log"].data.isnan().sum() == 1
    assert recording["drop"].data.isfinite().all()
    assert all(each.before.isfinite().all() for each in recording.parameters.values())


def test_where_a_step_cannot_be_replayed_the_next_one_is_recorded(tmp_path):
    path = tmp_path / "run.db"
    break_at(6, True, to=path, on_finding=True, before_last=lambda module, args: Hidden.apply(args[0]))
    with runs.open(path) as run:
        (recorded,) = run.recordings().values()
    assert (recorded.step, recorded.reason) == (7, "the step after non-finite-forward: log")


def test_what_would_take_too_much_memory_is_not_replayed(tmp_path, monkeypatch):
    monkeypatch.setattr("chainrule.monitor.examine.default_memory", lambda: 2**18)
    path = tmp_path / "run.db"
    break_at(6, True, to=path, on_finding=True)
    with runs.open(path) as run:
        assert list(run.recordings()) == [7]


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
    monkeypatch.setattr("chainrule.monitor.examine.WINDOW", 4)
    watch = train(lambda *given: chainrule.watch(*given), steps=30)
    assert [facts.step for facts in watch.history.steps] == [25, 26, 27, 28, 29, 30]
    assert watch.history.series["update", "0.weight"].steps == [25, 26, 27, 28, 29, 30]
