"""What a watch knows of the steps between the watched ones, and what it says of causes."""

import io

import pytest
import torch
from click.testing import CliRunner
from rich.console import Console
from torch import nn

import chainrule
from chainrule import runs
from chainrule.cli import commands
from chainrule.graph.history import StepFacts
from chainrule.monitor.dashboard import Lines
from chainrule.monitor.every_step import EveryStep
from chainrule.runs import Found

pytestmark = pytest.mark.trains
BROKEN = 8

BIRTHS = {
    "logarithm": lambda out: (out - out.detach()).log().nan_to_num(neginf=0.0).sum(),
    "root": lambda out: (out - out.detach()).sqrt().sum(),
    "division": lambda out: ((out - out.detach()) / (out - out.detach())).sum(),
    "overflow": lambda out: (out * 1e30).exp().sum(),
}


def train(term, steps=12, rates=None, **options):
    """Trains a small network; the loss has one more term at step `BROKEN`."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with chainrule.watch(model, optimizer, **options) as watch:
        for step in range(1, steps + 1):
            for group in optimizer.param_groups:
                group["lr"] = rates(step) if rates else 0.01
            out = model(torch.randn(16, 4))
            loss = out.nan_to_num().square().mean() + (term(out) if step == BROKEN and term else 0.0)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return watch


@pytest.mark.parametrize("name", BIRTHS)
def test_numbers_that_one_rare_batch_loses_between_the_watched_steps(tmp_path, name):
    path = tmp_path / "run.db"
    watch = train(BIRTHS[name], every=5, to=path)
    first = min((each for each in watch.findings if each.severity == "error"), key=lambda each: each.since)
    assert (first.since, first.until, first.because) == (BROKEN, BROKEN, "")
    assert first.id == ("non-finite-forward" if name in ("division", "overflow") else "non-finite-backward")
    assert "0.weight" in first.text
    assert "test_every_step.py" in first.text
    assert first.evidence[0].startswith("It is after the watched step 5")
    with runs.open(path) as run:
        (noticed,) = run.noticed()
        assert str(noticed) == str(watch.history.noticed[0])  # its loss may be NaN
        assert str(run.history().noticed) == str([noticed])
        assert first in run.findings()


@pytest.mark.parametrize("name", ["logarithm", "root"])
def test_each_birth_is_told_where_every_step_is_watched(name):
    watch = train(BIRTHS[name])
    found = {(each.id, each.since): each for each in watch.findings if each.severity == "error"}
    assert ("non-finite-backward", BROKEN) in found
    assert (("non-finite-forward", BROKEN) in found) == (name == "logarithm")
    assert found["non-finite-forward", BROKEN + 1].because.startswith("non-finite-")


def test_a_step_after_the_last_watched_one_is_noticed():
    (found,) = train(BIRTHS["root"], every=1000).findings
    assert (found.since, found.evidence[0]) == (
        BROKEN, "It is after the watched step 1, so nothing of it was recorded.",
    )  # fmt: skip


def test_rates_that_change_much_are_noticed_and_others_are_not(tmp_path):
    watch = train(None, 12, lambda step: 0.01 if step < 7 else 0.05, every=5, to=tmp_path / "run.db")
    assert [(each.step, each.rates) for each in watch.history.noticed] == [(6, (0.01,)), (7, (0.05,))]
    assert train(None, 12, lambda step: 0.01 + 0.001 * step, every=5).history.noticed == []


def test_what_hides_in_a_look_is_read_when_its_results_have_come():
    """As on a device, where they wait until the next watched step."""
    looks = EveryStep({})
    looks._waiting = [(step, False, torch.tensor(float("nan") if step > 3 else 1.0)) for step in range(1, 6)]
    assert [(each.step, each.lost, each.parameters) for each in looks.read()] == [(4, True, ())]


def test_a_look_sees_numbers_that_come_back():
    model = nn.Linear(4, 2)
    optimizer, looks = torch.optim.SGD(model.parameters(), lr=0.1), EveryStep({})
    seen = []
    for step in range(1, 9):
        with torch.no_grad():
            model.weight[1, 2] = torch.nan if step in (3, 4, 7) else 0.0
        seen += [each.step for each in looks.look(step, False, [optimizer])]
    assert seen == [3, 7]


def test_a_look_is_invisible_to_the_users_modes():
    model = nn.Linear(4, 2)
    optimizer, looks, met = torch.optim.SGD(model.parameters(), lr=0.1), EveryStep({}), []

    class Listens(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            met.append(function)
            return function(*args, **(kwargs or {}))

    with Listens():
        looks.look(1, False, [optimizer])
    assert met == []
    assert torch.is_grad_enabled()


def test_lines_say_what_is_new_with_its_evidence_and_what_has_changed_its_severity():
    out = io.StringIO()
    shown = Lines(Console(file=out, width=200))
    shown._next = float("inf")
    facts = StepFacts(7, 0.0, 1.0)
    found = Found("loss-spike", "warning", "loss", "It jumps.", ("From 1 to 9.",), place="a.py:3", because="x: y")
    shown.report(facts, [], [found])
    shown.report(facts, [], [found])
    worse = Found("loss-spike", "error", "loss", "It jumps.", ("From 1 to 9.",))
    shown.report(StepFacts(9, 0.0, 1.0), [], [worse])
    assert out.getvalue().splitlines() == [
        "chainrule: warning at step 7: It jumps (a.py:3). (because of x: y)",
        "chainrule:   From 1 to 9.",
        "chainrule: error (before: warning) at step 9: It jumps.",
    ]


SCRIPT = """
import torch
import torch.nn.functional as F
torch.manual_seed(0)
torch.set_num_threads(1)
model = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 3))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for step in range(60):
    optimizer.param_groups[0]["lr"] = 0.1 if step < 43 else 50.0
    x = torch.randn(64, 8)
    optimizer.zero_grad()
    F.cross_entropy(model(x), x[:, :3].argmax(1)).backward()
    optimizer.step()
"""


def test_a_watch_ends_with_the_most_likely_cause_and_its_effects_below(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    path = str(tmp_path / "run.db")
    said = CliRunner().invoke(commands, ["watch", str(script), "--every", "1", "--plain", "--to", path]).stderr
    told = said.splitlines()[said.splitlines().index("chainrule: The most likely cause first:") + 1 :]
    assert told[0] == (
        "chainrule: warning since step 44: The learning rate rises 500-fold at step 44, from 0.1 to 50. "
        "[learning-rate-jump]"
    )
    effects = [line for line in told if line.startswith("chainrule:   because of this, ")]
    assert any("[loss-spike]" in line for line in effects)
    shown = " ".join(CliRunner().invoke(commands, ["show", path]).stdout.split())
    assert shown.index("The learning rate rises 500-fold") < shown.index("Because of the above, at step 45: The loss")


@pytest.mark.parametrize("command", [[], ["watch"], ["run"], ["show"]])
def test_a_kind_is_explained_by_its_id(command):
    result = CliRunner().invoke(commands, [*command, "--explain", "loss-spike"], prog_name="chainrule")
    assert result.exit_code == 0
    assert result.stdout.startswith("loss-spike: The loss jumps up. Warning, over time.\nwhat is found: ")
    (causes,) = [line for line in result.stdout.splitlines() if line.startswith("may be caused by: ")]
    assert "learning-rate-jump" in causes
    assert "spike_factor: 2 (loss / median of the window before)" in result.stdout


def test_what_a_kind_may_cause_is_named_once():
    result = CliRunner().invoke(commands, ["--explain", "clipping-idle"], prog_name="chainrule")
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("may cause: ")]
    effects = line.removeprefix("may cause: ").split(", ")
    assert len(effects) == len(set(effects)) > 5


def test_a_kind_that_there_is_not_has_near_ones():
    result = CliRunner().invoke(commands, ["watch", "--explain", "loss-spik"], prog_name="chainrule")
    assert result.exit_code == 2
    assert result.stderr == "Error: --explain: no finding has the id 'loss-spik'. Near matches: 'loss-spike'.\n"
