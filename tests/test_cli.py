import json
import re
import socket
import subprocess
import sys
from textwrap import dedent
from types import SimpleNamespace

import pytest
import torch
from click.testing import CliRunner

import chainrule
import chainrule.script
from chainrule.cli import commands
from chainrule.script import ScriptRun
from tests.steps import TRAINING


@pytest.fixture
def invoke(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: CliRunner().invoke(commands, arguments, prog_name="chainrule")


@pytest.fixture
def train(invoke, tmp_path):
    def write(factor="2"):
        (tmp_path / "train.py").write_text(dedent(TRAINING.replace("FACTOR", factor)))
        return "train.py"

    return write


class Calls(list):
    """Stands in for `run_script`: notes how it was called, and gives what it was told to."""

    def __call__(self, script, arguments, **options):
        self.append((script, arguments, options))
        return ScriptRun(**{"script": script, "step": options["step"], **self.outcome})


class Wrong(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, upstream):
        return 3 * upstream


def recording(verdict="agrees"):
    weight = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    with chainrule.record() as made:
        doubled = Wrong.apply(weight) if verdict == "disagrees" else 2 * weight
        if verdict == "not checked":
            doubled.register_hook(lambda gradient: 3 * gradient)
        doubled.sum().backward()
    made.show = lambda brief: print(f"the walk, {brief=}")
    assert made.verify().verdict == verdict
    return made


@pytest.fixture
def ran(monkeypatch):
    calls = Calls()
    calls.outcome = {"steps": 9, "ending": "ended", "status": 0, "recording": recording()}
    monkeypatch.setattr(chainrule.script, "run_script", calls)
    return calls


def test_help_needs_no_torch():
    code = """
        import sys
        from chainrule.cli import commands
        commands(["run", "--help"], standalone_mode=False)
        print("torch" in sys.modules)
    """
    done = subprocess.run([sys.executable, "-c", dedent(code)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


@pytest.mark.parametrize("command", [(), ("demo",), ("run",), ("verify",)])
def test_every_help_has_examples(invoke, command):
    result = invoke(*command, "--help")
    assert result.exit_code == 0
    assert f"Examples:\n    chainrule {' '.join(command)}" in result.output


def test_version(invoke):
    assert invoke("--version").output == f"chainrule, version {chainrule.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("run",), "Missing argument 'SCRIPT'."),
        (("run", "train.py", "--epochs", "1"), "No such option '--epochs'. Options of the script itself go after --."),
        (("verify", "train.py", "--step", "0"), "Invalid value for '--step': 0 is not in the range x>=1."),
        (("demo", "--optimizer", "lion"), "Invalid value for '--optimizer': 'lion' is not one of 'sgd', 'adam'."),
        (
            ("run", "missing.py"),
            "cannot open missing.py: No such file or directory. Give the path of a Python file, as to `python`.",
        ),
        (
            ("run", "train.py", "-o", "step.xyz"),  # before the script has run for hours
            "no view writes .xyz. Give one of .html, .ipynb, .json, .md, .svg, .tex, .txt, .safetensors.",
        ),
        (
            ("run", "train.py", "-o", "missing/step.html"),
            "missing/step.html cannot be written: No such file or directory. Give a path in a folder you can write to.",
        ),
        (
            ("show", "missing.db"),
            "missing.db: there is no such file. Give a file that chainrule.watch(..., to=...) wrote.",
        ),
    ],
)
def test_wrong_usage_is_one_sentence_and_status_2(invoke, arguments, sentence):
    result = invoke(*arguments)
    assert result.exit_code == 2
    said = result.stderr.splitlines()[-1].replace("option: --epochs.", "option '--epochs'.")  # as click 8.2 has it
    assert said == f"Error: {sentence}"
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("output", "sentence"),
    [
        ("step.docx", "no view writes .docx. Give one of .html, .ipynb, .json, .md, .svg, .tex, .txt, .safetensors."),
        ("step", "no view writes a file without a suffix. Give one of .html, .ipynb, .json, .md, .svg, .tex, .txt, "
         ".safetensors."),
        ("no/step.md", "no/step.md cannot be written: No such file or directory. Give a path in a folder you can write "
         "to."),
    ],
)  # fmt: skip
def test_an_output_that_cannot_be_written_is_refused_before_the_script_runs(invoke, ran, output, sentence):
    result = invoke("run", "train.py", "-o", output)
    assert (ran, result.exit_code, result.stderr) == ([], 2, f"Error: {sentence}\n")


def test_a_port_that_is_taken_is_refused_before_the_script_runs(invoke, ran):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = invoke("lab", "train.py", "--port", str(port))
    assert (result.exit_code, ran) == (2, [])
    assert f"port {port} cannot be used" in result.output


def test_an_output_that_can_be_written_leaves_nothing_before_it_is(invoke, ran, tmp_path):
    ran.outcome |= {"recording": None}
    assert invoke("run", "train.py", "-o", "step.md").exit_code == 0
    assert list(tmp_path.iterdir()) == []


def test_show_says_what_a_file_is_not(invoke, tmp_path):
    (tmp_path / "folder.safetensors").mkdir()
    (tmp_path / "folder.db").mkdir()
    (tmp_path / "run.db").write_bytes(b"no database")
    for file, sentence in {
        "folder.safetensors": "folder.safetensors is a folder. Give a file that recording.save() wrote.",
        "none.db": "none.db: there is no such file. Give a file that chainrule.watch(..., to=...) wrote.",
        "folder.db": "folder.db is a folder. Give a file that chainrule.watch(..., to=...) wrote.",
        "run.db": "run.db is not the file of a run: file is not a database. Give a file that "
        "chainrule.watch(..., to=...) wrote, or another path.",
    }.items():
        result = invoke("show", file)
        assert (result.exit_code, result.stderr) == (2, f"Error: {sentence}\n")


def test_run_passes_everything_on(invoke, ran):
    result = invoke("run", "train.py", "data.csv", "--step", "3", "--brief", "--stop", "--", "--epochs", "1", "--")
    assert ran == [("train.py", ("data.csv", "--epochs", "1", "--"), {"step": 3, "stop": True, "module": False})]
    assert (result.exit_code, result.output) == (0, "the walk, brief=True\n")


@pytest.mark.parametrize(
    ("outcome", "status"),
    [({}, 0), ({"status": 7}, 7), ({"steps": 0}, 2), ({"steps": 0, "status": 1, "ending": "crashed"}, 1)],
)
def test_the_status_of_run(invoke, ran, outcome, status):
    ran.outcome |= outcome
    result = invoke("run", "train.py")
    assert result.exit_code == status
    assert result.stdout == "the walk, brief=False\n"
    assert bool(result.stderr) == (ran.outcome["steps"] == 0)


@pytest.mark.parametrize(
    ("outcome", "status"),
    [
        ({}, 0),
        ({"recording": recording("disagrees")}, 1),
        ({"recording": recording("not checked")}, 2),
        ({"recording": None, "steps": 0}, 2),
        ({"recording": None, "steps": 0, "status": 3, "ending": "exited"}, 3),
        ({"recording": SimpleNamespace(nodes=(), graph=SimpleNamespace(calls=("call",)))}, 2),
        ({"steps": 0}, 2),
    ],
)
def test_the_status_of_verify(invoke, ran, outcome, status):
    ran.outcome |= outcome
    result = invoke("verify", "train.py", "--step", "2", "--", "-x")
    assert ran == [("train.py", ("-x",), {"step": 2, "stop": True, "module": False, "in_one": True})]
    assert result.exit_code == status
    assert ("Verification" in result.stdout) == bool(getattr(ran.outcome["recording"], "nodes", ()))


def test_nothing_to_verify_is_said(invoke, ran):
    ran.outcome["recording"] = SimpleNamespace(nodes=(), graph=SimpleNamespace(calls=("call",)))
    assert invoke("verify", "train.py").stderr == (
        "chainrule: there is nothing to verify in training step 1 of train.py: no operation in it needs a gradient.\n"
    )


def test_a_script_is_run_and_told(invoke, train):
    result = invoke("run", train(), "--step", "2", "--", "--epochs", "1")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("arguments: ['--epochs', '1']\n")
    assert "squares" in result.stdout
    assert result.stderr == ""


def test_a_script_that_changes_its_folder_does_not_take_the_output_with_it(invoke, train, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    script = train()
    (tmp_path / script).write_text('import os\nos.chdir("elsewhere")\n' + (tmp_path / script).read_text())
    result = invoke("run", script, "--stop", "-o", "step.json")
    monkeypatch.chdir(tmp_path)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "step.json").exists()


def test_a_right_backward_passes(invoke, train):
    result = invoke("verify", train())
    assert result.exit_code == 0, result.output
    assert "arguments" not in result.stdout


def test_a_wrong_backward_is_named(invoke, train):
    result = invoke("verify", train("2.001"))
    assert result.exit_code == 1, result.output
    assert "SquareBackward" in result.stdout
    assert "train.py:20: Square.apply(weight)" in result.stdout
    assert "difference 0.002" in result.stdout


def test_verify_takes_a_part_and_says_what_it_left_out(invoke, train):
    result = invoke("verify", train("2.001"), "--only", "Sum")
    assert result.exit_code == 0, result.output
    assert "2 more were not looked at (those that Sum names)" in " ".join(result.stdout.split())
    result = invoke("verify", train(), "--sample", "0.5")
    assert "more were not looked at (a random share of 0.5)" in " ".join(result.stdout.split())
    result = invoke("verify", train(), "--only", "Sine", "--only", "lion")
    assert result.exit_code == 2
    assert "no node is named 'Sine', 'lion'" in " ".join(result.stderr.split())


def test_verify_of_a_script_that_updates_nothing_takes_all_that_it_did_as_one_step(invoke, tmp_path):
    once = "import torch\nw = torch.ones(2, requires_grad=True)\nw.square().sum().backward()\n"
    (tmp_path / "plain.py").write_text(once)
    result = invoke("verify", "plain.py")
    assert result.exit_code == 0, result.output
    assert "all that it did is verified as one step" in result.stderr
    assert "agrees: 3 of 3 autograd nodes agree" in result.stdout
    found = json.loads(invoke("verify", "plain.py", "--json").stdout)
    assert (found["verdict"], found["status"], found["steps"]) == ("agrees", 0, 0)

    forward, at_second = once.replace(".backward()", ""), ("--step", "2")
    ends = ((forward, ()), (once + "raise SystemExit(2)", ()), (once, at_second), (once + "1 / 0", ()))
    for source, options in ends:  # no gradient; not to its end; another step; crashed
        (tmp_path / "plain.py").write_text(source)
        result = invoke("verify", "plain.py", *options)
        assert result.exit_code != 0
        assert "step() of an optimizer from torch.optim" in result.stderr or "crashed" in result.stderr


def test_verify_of_a_script_without_a_step_takes_the_first_of_a_loop(invoke, tmp_path):
    loop = "w = torch.ones(2, requires_grad=True)\nfor _ in range(9):\n    w.square().sum().backward()\n"
    (tmp_path / "plain.py").write_text(f"import torch\n{loop}")
    result = invoke("verify", "plain.py")
    assert result.exit_code == 0, result.output
    assert "8 more were not looked at (the first 5 of each line and operation)" in " ".join(result.stdout.split())


@pytest.mark.parametrize("options", [(), ("--optimizer", "sgd"), ("--logits",)])
def test_the_demo(invoke, options):
    result = invoke("demo", "--brief", *options)
    assert result.exit_code == 0, result.output
    after = "0.1725" if "sgd" in options else "0.1630"
    assert re.search(rf"J = 0\.1952\d+  \(cost\); {after} after the step, on the same data\n", result.stdout)


def test_the_demo_goes_on_training(invoke):
    result = invoke("demo", "--brief", "--train", "200")
    assert result.exit_code == 0, result.output
    assert "After 200 more steps the cost is 0.0020" in result.stdout
    assert "3, 4" in result.stdout
