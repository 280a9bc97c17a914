"""When a watch looks for findings: its share of the time delays what is said, and never hides it."""

import subprocess
import sys

import pytest
import torch
from click.testing import CliRunner
from torch import nn
from torch.nn import functional as F

import chainrule
from chainrule import runs
from chainrule.cli import commands
from chainrule.errors import ChainruleWarning
from tests.bed.loops import courses, watched

pytestmark = pytest.mark.trains


@pytest.fixture(autouse=True)
def no_time_to_look(monkeypatch):
    monkeypatch.setattr("chainrule.monitor.examine.SHARE", 1e-9)


SCRIPT = """
import sys, torch
torch.manual_seed(0)
model = torch.nn.Linear(4, 1).double()
optimizer = torch.optim.SGD(model.parameters(), lr=1e-9)
for step in range(12):
    optimizer.zero_grad()
    (model(torch.randn(16, 4).double()) - 5).square().mean().backward()
    optimizer.step()
"""
"""Updates that are too small, which only the course of ten steps and more shows."""


def train(last=lambda: None, **options):
    torch.manual_seed(0)
    model = nn.Linear(4, 1).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-9)
    with chainrule.watch(model, optimizer, **options) as watch:
        for _ in range(12):
            optimizer.zero_grad()
            (model(torch.randn(16, 4).double()) - 5).square().mean().backward()
            optimizer.step()
        assert watch.findings == ()
        last()
    return watch


def kept(path):
    with runs.open(path) as run:
        return run.status, [each.id for each in run.findings()]


def test_the_course_is_looked_at_once_more_when_the_watch_ends(tmp_path):
    watch = train(to=tmp_path / "run.db")
    assert [each.id for each in watch.findings] == ["update-too-small"]
    assert kept(tmp_path / "run.db") == ("ended", ["update-too-small"])


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_also_when_it_ends_by_an_exception(tmp_path, error):
    def last():
        raise error

    with pytest.raises(error):
        train(to=tmp_path / "run.db", last=last)
    assert kept(tmp_path / "run.db") == (f"{error.__name__}: ", ["update-too-small"])


def test_also_at_the_end_of_the_process(tmp_path):
    path = tmp_path / "run.db"
    text = SCRIPT.replace("for step", f"import chainrule\nchainrule.watch(model, to={str(path)!r})\nfor step", 1)
    (tmp_path / "train.py").write_text(text)
    subprocess.run([sys.executable, tmp_path / "train.py"], check=True)
    assert kept(path) == ("ended", ["update-too-small"])
    with runs.open(path) as run:
        assert len(run.steps()) == 12


def watched_script(folder, *options):
    """What `chainrule watch` says of the script in a folder."""
    arguments = ["watch", str(folder / "train.py"), "--every", "1", "--plain", *options]
    return CliRunner().invoke(commands, arguments, prog_name="chainrule").stderr


@pytest.mark.parametrize("ending", ["", "sys.exit(3)", "raise KeyboardInterrupt"])
def test_also_at_the_end_of_a_script(tmp_path, ending):
    (tmp_path / "train.py").write_text(SCRIPT + ending)
    said = watched_script(tmp_path, "--to", str(tmp_path / "run.db"))
    with runs.open(tmp_path / "run.db") as run:
        assert [each.id for each in run.findings()] == ["update-too-small"]
    told = "12 of 12 steps were watched: 1 finding."
    assert said.splitlines()[-1].startswith(f"chainrule: {told} `chainrule show ")
    assert watched_script(tmp_path).splitlines()[-1] == f"chainrule: {told}"


def test_a_function_hears_of_what_is_found_at_the_end():
    met = []
    train(on_finding=met.append)
    assert [each.id for each in met] == ["update-too-small"]


def test_a_last_look_that_fails_says_so_and_the_file_ends_all_the_same(tmp_path, monkeypatch):
    def fail(*arguments, **options):
        raise ValueError("a bug of ours")

    def last():
        monkeypatch.setattr("chainrule.monitor.examine.findings_over_time", fail)

    with pytest.warns(ChainruleWarning, match="there are no findings from step 12 on: ValueError: a bug of ours"):
        train(to=tmp_path / "run.db", last=last)
    assert kept(tmp_path / "run.db") == ("ended", [])


def test_a_function_that_fails_at_the_end_stops_nothing(tmp_path):
    def fail(found):
        raise ValueError("no network")

    with pytest.warns(ChainruleWarning, match="the end of the watch failed in part: ValueError: no network"):
        train(to=tmp_path / "run.db", on_finding=fail)
    assert kept(tmp_path / "run.db") == ("ended", ["update-too-small"])


def test_what_a_step_shows_is_said_at_once():
    torch.manual_seed(0)
    model = nn.Linear(4, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    said = []
    with chainrule.watch(model, optimizer) as watch:
        for step in range(6):
            x = torch.randn(8, 4)
            x[0, 0] = torch.nan if step == 3 else 0.0
            optimizer.zero_grad()
            F.mse_loss(model(x), torch.zeros(8, 2)).backward()
            optimizer.step()
            said.append([each.id for each in watch.findings])
    assert said[2:4] == [[], ["non-finite-forward"]]
    (found,) = watch.findings
    assert (found.since, found.severity) == (4, "error")


def test_no_step_is_forgotten_that_was_not_looked_at(monkeypatch):
    """The loss jumps at step 26, and is out of the window when the run ends."""
    monkeypatch.setattr("chainrule.monitor.examine.WINDOW", 16)
    torch.manual_seed(0)
    watch = watched(courses.one_batch_a_hundred_times_too_large, 64)
    assert watch.history.steps[0].step > 26
    assert [each.since for each in watch.findings if each.id == "loss-spike"] == [26]


def test_what_has_passed_becomes_a_note(monkeypatch):
    """Far too fast at first, and as it should be then."""
    monkeypatch.setattr("chainrule.monitor.examine.SHARE", 1e9)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    said = []
    with chainrule.watch(model, optimizer) as watch:
        for step in range(60):
            x = torch.randn(16, 4)
            optimizer.zero_grad()
            F.mse_loss(model(x), x[:, :1]).backward()
            for name, parameter in model.named_parameters():
                ratio = (0.4 if name == "2.weight" else 0.001) if step < 24 else 0.001
                parameter.grad.mul_(ratio * parameter.norm() / (1e-3 * parameter.grad.norm()))
            optimizer.step()
            said += [(step + 1, each) for each in watch.findings if each.id == "update-too-large"]
    step, first = said[0]
    assert (step, first.severity, first.until) == (20, "warning", None)
    (found,) = [each for each in watch.findings if each.id == "update-too-large"]
    assert (found.severity, found.since) == ("note", 1)
    assert 24 < found.until < 50
