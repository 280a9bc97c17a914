"""`chainrule watch` around scripts that know nothing of it, and `chainrule show` of what it left."""

import io
import re

import pytest
from click.testing import CliRunner
from rich.console import Console

from chainrule import runs
from chainrule.cli import commands
from chainrule.graph.history import StepFacts
from chainrule.graph.statistics import Statistics
from chainrule.monitor import dashboard

pytestmark = pytest.mark.trains
TRAINING = """
import sys
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(4, 8), nn.Linear(8, 1)

    def forward(self, x):
        return self.head(torch.relu(self.body(x)))

def main(steps):
    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(steps):
        optimizer.zero_grad()
        loss = nn.MSELoss()(model(torch.linspace(-1, 1, 8).reshape(2, 4)), torch.zeros(2, 1))
        loss.backward()
        optimizer.step()
        print("step", step)

if __name__ == "__main__":
    main(int(sys.argv[1]))
"""


@pytest.fixture
def script(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def script(text=TRAINING):
        (tmp_path / "train.py").write_text(text)
        return "train.py"

    return script


def invoke(*arguments):
    return CliRunner().invoke(commands, arguments, prog_name="chainrule")


def test_a_script_is_watched_as_it_is(script):
    result = invoke("watch", script(), "--every", "2", "--to", "run.db", "--full-every", "4", "--", "6")
    assert result.exit_code == 0
    assert result.stdout == "".join(f"step {step}\n" for step in range(6))
    assert "chainrule: step 1, loss " in result.stderr
    assert "chainrule: 4 of 6 steps were watched: 0 findings. `chainrule show run.db` shows the run." in result.stderr
    with runs.open("run.db") as run:
        assert [facts.step for facts in run.steps()] == [1, 2, 4, 6]
        assert list(run.recordings()) == [1, 4]
        assert run.script == "train.py"
        for kind in ("parameter gradient", "update"):
            assert [each.name for each in run.tensors(kind)] == ["body.weight", "body.bias", "head.weight", "head.bias"]


@pytest.mark.parametrize(("every", "hinted"), [("2", False), ("100", True)])
def test_a_watch_of_hardly_any_step_says_how_to_watch_more(script, every, hinted):
    result = invoke("watch", script(), "--every", every, "--", "6")
    assert ("Few steps show little: --every 1 watches" in result.stderr) == hinted


def test_show_tells_the_run(script):
    invoke("watch", script(), "--every", "2", "--to", "run.db", "--", "6")
    shown = invoke("show", "run.db")
    assert shown.exit_code == 0
    assert "One run of training" in shown.output
    assert "4 watched steps, 1 to 6, every 2" in re.sub(r"\s+", " ", shown.output)
    assert "body.weight" in shown.output
    written = invoke("show", "run.db", "-o", "run.html")
    assert written.stderr == "chainrule: the run is written to run.html\n"


@pytest.mark.parametrize(
    ("ending", "status", "kept"),
    [
        ("sys.exit(3)", 3, "ended"),
        ("raise ValueError('no more data')", 1, "ValueError: no more data"),
        ("raise KeyboardInterrupt", 130, "KeyboardInterrupt: "),
    ],
)
def test_how_a_script_ends_is_passed_on_and_kept(script, ending, status, kept):
    result = invoke("watch", script(TRAINING + f"    {ending}\n"), "--to", "run.db", "--", "2")
    assert result.exit_code == status
    with runs.open("run.db") as run:
        assert run.status == kept


def test_a_script_that_changes_its_folder_keeps_its_steps_beside_the_run(script, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    text = TRAINING.replace("import sys\n", 'import os, sys\nos.chdir("elsewhere")\n', 1)
    invoke("watch", script(text), "--to", "run.db", "--full-every", "1", "--", "1")
    monkeypatch.chdir(tmp_path)
    with runs.open("run.db") as run:
        assert run.recordings()[1].file.exists()


def test_a_script_without_training(script):
    result = invoke("watch", script("print('nothing')"))
    assert result.exit_code == 2
    assert "train.py ended without a training step." in result.stderr


@pytest.mark.parametrize(("error", "ending"), [("KeyboardInterrupt", "was interrupted"), ("ValueError", "crashed")])
def test_a_script_that_ends_before_its_first_step(script, error, ending):
    result = invoke("watch", script(f"raise {error}"))
    assert result.stderr.splitlines()[-1] == f"chainrule: train.py {ending} before the end of its first training step."


def test_the_traceback_of_an_interrupt_inside_of_the_watch_is_that_of_the_script(script, monkeypatch):
    def stop(*given):
        raise KeyboardInterrupt

    monkeypatch.setattr("chainrule.monitor.watcher.watch._read", stop)
    result = invoke("watch", script(), "--", "3")
    assert result.exit_code == 130
    files = re.findall(r'File ".*?([^/]+/[^/]+)", line', result.stderr)
    assert files[-1].endswith("test_watch_script.py")  # `stop`
    assert not [each for each in files if "contextlib" in each or "chainrule/" in each or "monitor/" in each]


def test_a_script_that_is_not_there():
    result = invoke("watch", "missing.py")
    assert result.exit_code == 2
    assert "cannot open missing.py" in result.stderr


def test_a_file_that_is_no_run_is_refused(tmp_path, monkeypatch):
    import sqlite3

    monkeypatch.chdir(tmp_path)
    with sqlite3.connect("photos.db") as connection:
        connection.execute("CREATE TABLE photos (id INTEGER)")
    result = invoke("show", "photos.db")
    assert result.exit_code == 2
    assert "it is a database of another program" in result.stderr


@pytest.mark.parametrize("path", ["photos.txt", "no/run.db"])
def test_a_file_that_cannot_be_written_is_said_before_the_script_runs(script, tmp_path, path):
    (tmp_path / "photos.txt").write_bytes(b"no database")
    result = invoke("watch", script(), "--to", path, "--", "1")
    assert result.exit_code == 2
    assert result.stderr.startswith(f"Error: {path} ")
    assert result.stdout == ""
    assert [each.name for each in tmp_path.iterdir() if each.name.startswith(".")] == []


def test_a_run_goes_into_no_file_of_a_step(script):
    invoke("watch", script(), "--to", "run.db", "--", "1")
    result = invoke("show", "run.db", "-o", "run.safetensors")
    assert result.exit_code == 2
    assert result.stderr == (
        "Error: no view writes .safetensors. Give one of .html, .ipynb, .json, .md, .svg, .tex, .txt.\n"
    )


def test_the_dashboard_stays_below_what_the_script_prints(script):
    terminal = {"FORCE_COLOR": "1", "TERM": "xterm", "NO_COLOR": "1", "COLUMNS": "100", "LINES": "50"}
    arguments = ["watch", script(), "--every", "1", "--steps", "5", "--", "5"]
    result = CliRunner().invoke(commands, arguments, prog_name="chainrule", env=terminal)
    assert result.exit_code == 0
    assert "5 of 5 steps were watched" in result.stderr
    text = result.stderr
    assert "step 4\n" in text
    last = text[text.rindex("chainrule watch train.py") :]
    assert "5 steps" in last
    assert "step 5, loss" in plain(last)
    assert "body.weight" in last


def plain(text):
    """The words of a panel, without its borders."""
    return re.sub(r"[\s│]+", " ", text)


# -- the dashboard by itself ------------------------------------------------------------------------------------------


def figures(step, broken=0):
    return [
        runs.Figure(kind, f"layer{place}", place, "Linear", "", Statistics(4, size * step, 0, 0, 0, 0, 0, broken))
        for kind, size in (("parameter", 10.0), ("parameter gradient", 2.0), ("update", 0.1))
        for place in range(30)
    ]


FOUND = [runs.Found(f"kind-{i}", "warning", "layer3", f"Finding number {i}.", since=i) for i in range(7)]


def test_a_dashboard_of_many_layers_and_findings():
    console = Console(file=io.StringIO(), width=90, height=50)
    shown = dashboard.Dashboard("train\x1b[31m.py", console, total=100)
    shown.progress = lambda: 40
    shown.report(StepFacts(40, 0.0, 0.5, (1e-3, 1e-4), scale=1024.0), figures(3), FOUND)
    console.print(shown)
    text = plain(console.file.getvalue())
    assert "\x1b" not in text
    assert text.count("layer") == dashboard.LAYERS
    assert "loss 0.5, learning rate 0.001, 0.0001, gradient norm" in text
    assert "loss scale 1024" in text
    assert "Finding number 6." in text
    assert "and 2 earlier findings" in text


def test_lines_where_there_is_no_terminal(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(dashboard.time, "monotonic", lambda: now[0])
    console = Console(file=io.StringIO(), width=200)
    lines = dashboard.Lines(console, total=100)
    for step in range(1, 40):
        now[0] += 1
        lines.report(StepFacts(step, 0.0, 1.0 / step), figures(step), FOUND[: step // 20])
    assert console.file.getvalue().splitlines() == [
        "chainrule: step 1 of 100, loss 1, gradient norm 10.9545, largest update/weight 0.01",
        "chainrule: step 11 of 100, loss 0.0909, gradient norm 120.499, largest update/weight 0.01",
        "chainrule: warning at step 20: Finding number 0.",
        "chainrule: step 21 of 100, loss 0.0476, gradient norm 230.0435, largest update/weight 0.01",
        "chainrule: step 31 of 100, loss 0.0323, gradient norm 339.588, largest update/weight 0.01",
    ]


def test_notes_of_the_last_examination_are_printed_and_what_the_command_ends_with_is_not():
    console = Console(file=io.StringIO(), width=200)
    lines = dashboard.Lines(console)
    early, late = (runs.Found(f"other-{i}", "note", "layer3", f"Note number {i}.", since=i) for i in range(2))
    lines.report(StepFacts(1, 0.0, 1.0), figures(1), [early])
    lines.conclude([early, late, *FOUND])
    assert console.file.getvalue().splitlines()[1:] == [
        "chainrule: note at step 1: Note number 0.",
        "chainrule: note at the end: Note number 1.",
    ]


def test_sparklines():
    assert dashboard.sparkline([1, 2, 3]) == "▁▅█"
    assert dashboard.sparkline([1, float("nan"), 1]) == "▁✗▁"
    assert dashboard.sparkline([]) == ""
    assert dashboard.spread(list(range(10)), 4) == [0, 3, 6, 9]
