import subprocess
import sys
from pathlib import Path
from textwrap import dedent
from types import SimpleNamespace

import pytest
from torch.optim import optimizer as torch_optimizer

from chainrule.errors import RecordingError
from chainrule.script import run_script

TRAINING = """
    import torch

    weight = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    for step in range(4):
        optimizer.zero_grad()
        loss = (weight * weight).sum()
        loss.backward()
        optimizer.step()
        print("step", step + 1)
    print("done")
"""


class Session:
    """Stands in for `record()`: notes the updates while it was open, how it was closed, and the names it was given."""

    graph = SimpleNamespace(calls=("call",))

    def __init__(self, namespace):
        self.namespace = namespace
        self.updates = 0
        self.closed = None

    def __enter__(self):
        # The real one adds and takes off hooks of the same kinds, from within a hook.
        self.hooks = [
            torch_optimizer.register_optimizer_step_pre_hook(lambda *_: None),
            torch_optimizer.register_optimizer_step_post_hook(self.update),
        ]
        return self

    def update(self, *_):
        self.updates += 1

    def __exit__(self, kind, error, trace):
        for hook in self.hooks:
            hook.remove()
        self.closed = kind
        self.names = dict(self.namespace)


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def write(source, name="train.py"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(dedent(source))
        return name

    return write


def hooks():
    return (*torch_optimizer._global_optimizer_pre_hooks, *torch_optimizer._global_optimizer_post_hooks)


SAME_AS_PYTHON = {
    "what a script can see of itself": """
        import os, sys
        print(__name__, __file__, __doc__, __package__, __spec__, __cached__, __builtins__, type(__loader__).__name__)
        print(sys.argv, sys.path[0], os.getcwd(), sys.modules["__main__"].__dict__ is globals())
    """,
    "an import from beside it": """
        import neighbour
        print(neighbour.__file__)
    """,
    "a guarded main, dataclasses and pickles": """
        from __future__ import annotations
        import dataclasses, pickle

        @dataclasses.dataclass
        class Config:
            rate: float = 0.1

        if __name__ == "__main__":
            print(pickle.loads(pickle.dumps(Config())), Config.__annotations__)
    """,
    "no future of ours": """
        def f(x: 1 + 1): ...
        print(f.__annotations__)
    """,
    "exit 3": "import sys; sys.exit(3)",
    "exit without a code": "raise SystemExit",
    "exit False": "raise SystemExit(False)",
    "exit with words": "import sys; print('before'); sys.exit('the data is missing')",
    "exit with an object": "raise SystemExit(['a', 1])",
    "an exception": """
        def work(n):
            return 1 / n
        work(0)
    """,
    "a chain of exceptions": """
        def load():
            try:
                {}["key"]
            except KeyError as error:
                raise ValueError("no such key") from error
        try:
            load()
        except ValueError:
            raise RuntimeError("cannot begin")
    """,
    "an exception group": "raise ExceptionGroup('two', [ValueError(1), TypeError(2)])",
    "an exception hook of its own": """
        import sys
        sys.excepthook = lambda kind, error, trace: print(kind, error, trace.tb_lineno, trace.tb_next)
        raise ValueError("seen")
    """,
    "a syntax error": "print('never')\nx = (\n",
    "another encoding": "# -*- coding: latin-1 -*-\nprint(len('é'))",
    "a change of directory": """
        import os
        os.mkdir("runs")
        os.chdir("runs")
        raise ValueError("here")
    """,
}


@pytest.mark.parametrize("source", SAME_AS_PYTHON.values(), ids=SAME_AS_PYTHON.keys())
@pytest.mark.parametrize("name", ["train.py", "inner/train.py"])
def test_a_script_runs_as_python_runs_it(write, tmp_path, monkeypatch, capsys, source, name):
    script = write(source, name)
    write("", str(Path(name).parent / "neighbour.py"))
    arguments = ["--epochs", "1", "--", "two words"]
    python = subprocess.run([sys.executable, script, *arguments], capture_output=True, text=True)
    if (tmp_path / "runs").exists():
        (tmp_path / "runs").rmdir()
    monkeypatch.delitem(sys.modules, "neighbour", raising=False)
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    before = sys.modules["__main__"], sys.argv, list(sys.path)

    ran = run_script(script, arguments, session=Session)

    printed = capsys.readouterr()
    assert (printed.out, printed.err, ran.status) == (python.stdout, python.stderr, python.returncode)
    assert (sys.modules["__main__"], sys.argv, sys.path) == before


def test_an_interrupted_script(write, capsys):
    ran = run_script(write("print('working')\nraise KeyboardInterrupt\n"), session=Session)
    printed = capsys.readouterr()
    assert (ran.status, ran.ending) == (130, "was interrupted")
    assert printed.out == "working\n"
    assert printed.err.endswith("line 2, in <module>\n    raise KeyboardInterrupt\nKeyboardInterrupt\n")
    assert "chainrule" not in printed.err
    assert ran.shortfall == (
        "train.py was interrupted before the end of training step 1; step 1 was asked for. What it did up to there is "
        "recorded."
    )


@pytest.mark.parametrize("step", [1, 2, 4])
@pytest.mark.parametrize("stop", [False, True])
def test_the_step_asked_for_is_recorded(write, capsys, step, stop):
    ran = run_script(write(TRAINING), step=step, stop=stop, session=Session)
    assert ran.complete
    assert ran.shortfall is None
    assert ran.recording.updates == 1
    assert ran.recording.names["loss"].item() == pytest.approx(5 * 0.64 ** (step - 1))
    assert ran.recording.closed is None
    assert (ran.status, ran.ending, ran.steps) == ((0, "was stopped", step) if stop else (0, "ended", 4))
    printed = [f"step {n}" for n in range(1, step if stop else 5)] + ([] if stop else ["done"])
    assert capsys.readouterr().out.splitlines() == printed
    assert hooks() == ()


def test_stopping_runs_the_scripts_own_clean_up_and_passes_its_handlers(write, capsys):
    script = write("""
        import torch
        weight = torch.nn.Parameter(torch.ones(1))
        optimizer = torch.optim.SGD([weight])
        try:
            try:
                optimizer.step()
            except Exception:
                print("caught")
        finally:
            print("cleaned up")
    """)
    assert run_script(script, stop=True, session=Session).ending == "was stopped"
    assert capsys.readouterr().out == "cleaned up\n"


def test_hooks_of_the_scripts_own_do_not_disturb_and_stay(write):
    script = write("""
        import torch
        from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
        seen = []
        handles = [register_optimizer_step_pre_hook(lambda *_: seen.append("before"))]
        handles += [register_optimizer_step_post_hook(lambda *_: seen.append("after")) for _ in range(2)]
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))])
        for _ in range(3):
            optimizer.step()
        for handle in handles:
            handle.remove()
        assert seen == ["before", "after", "after"] * 3
    """)
    ran = run_script(script, step=2, session=Session)
    assert (ran.ending, ran.steps, ran.recording.updates) == ("ended", 3, 1)
    assert hooks() == ()


def test_an_optimizer_around_another_makes_one_step(write):
    script = write("""
        import torch
        weight = torch.nn.Parameter(torch.ones(1))
        class Twice(torch.optim.SGD):
            def __init__(self, parameters):
                super().__init__(parameters)
                self.inner = torch.optim.Adam(parameters)
            def step(self, closure=None):
                self.inner.step()
                self.inner.step()
        optimizer = Twice([weight])
        for _ in range(3):
            optimizer.step()
    """)
    ran = run_script(script, step=2, session=Session)
    assert (ran.steps, ran.recording.updates) == (3, 3)


# The optimizers of scripts that have two, or one for each parameter, and their steps in each of four training steps.
SEVERAL = {
    "of parts": """
        first, second = torch.optim.SGD([weight], lr=0.1), torch.optim.Adam([bias])
        for _ in range(4):
            (weight * 2 + bias).square().sum().backward()
            first.step()
            second.step()
    """,
    "in turn": """
        first, second = torch.optim.SGD([weight], lr=0.1), torch.optim.Adam([bias])
        for _ in range(4):
            (layer(weight).detach() * bias).sum().backward()
            second.step()
            (layer(weight) * bias).sum().backward()
            first.step()
    """,
    "within backward": """
        for each in (weight, bias):
            optimizer = torch.optim.SGD([each], lr=0.1)
            each.register_post_accumulate_grad_hook(lambda _, optimizer=optimizer: optimizer.step())
        for _ in range(4):
            (layer(weight) + bias).square().sum().backward()
    """,
}


@pytest.mark.parametrize("step", [1, 3])
@pytest.mark.parametrize("name", SEVERAL)
def test_a_step_in_which_several_optimizers_step(write, name, step):
    model = """
        import torch
        weight, bias = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
        layer = torch.nn.Identity()
        layer.weight, layer.bias = weight, bias
    """
    ran = run_script(write(model + SEVERAL[name]), step=step)
    assert (ran.steps, len(ran.recording.graph.updates)) == (4, 2)
    assert len(ran.recording.graph.backwards) == (2 if name == "in turn" else 1)
    assert ran.recording.verify().passed


def test_an_optimizer_that_does_not_step_yet_is_not_waited_for(write):
    script = write("""
        import torch
        weight, later = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
        first, second = torch.optim.SGD([weight], lr=0.1), torch.optim.SGD([later], lr=0.1)
        for step in range(4):
            weight.square().sum().backward()
            first.step()
    """)
    assert [len(run_script(script, step=step).recording.graph.updates) for step in (1, 2, 4)] == [1, 1, 1]


def test_a_step_of_nothing(write):
    script = write("""
        import torch
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))])
        optimizer.step()
        optimizer.step()
    """)
    sentence = "Training step 2 of train.py ran no operation of PyTorch: there is nothing to show."
    assert run_script(script, step=2).shortfall == sentence


SHORTFALLS = {
    "never trains": (
        "print('nothing to do')",
        1,
        "train.py ended without a training step; step 1 was asked for. A training step ends with the step() of an "
        "optimizer from torch.optim: call one, or put `with chainrule.record() as recording:` around the code that "
        "trains.",
    ),
    "exits early": (
        "raise SystemExit(3)",
        1,
        "train.py exited with status 3 without a training step; step 1 was asked for. A training step ends with the "
        "step() of an optimizer from torch.optim: call one, or put `with chainrule.record() as recording:` around the "
        "code that trains.",
    ),
    "one step": (
        TRAINING.replace("range(4)", "range(1)"),
        3,
        "train.py ended after 1 training step; step 3 was asked for. Use --step 1 for the last one.",
    ),
    "too few steps": (
        TRAINING,
        6,
        "train.py ended after 4 training steps; step 6 was asked for. Use --step 4 for the last one.",
    ),
    "crashes in the step": (
        TRAINING.replace("loss.backward()", "loss.backward() if step < 2 else 1 / 0"),
        3,
        "train.py crashed before the end of training step 3; step 3 was asked for. What it did up to there is "
        "recorded.",
    ),
    "crashes before": (
        TRAINING.replace("loss.backward()", "loss.backward() if step < 2 else 1 / 0"),
        4,
        "train.py crashed before the end of training step 3; step 4 was asked for. Use --step 3 to see what it did up "
        "to there.",
    ),
}


@pytest.mark.parametrize(("source", "step", "sentence"), SHORTFALLS.values(), ids=SHORTFALLS.keys())
def test_a_step_that_never_comes(write, source, step, sentence):
    ran = run_script(write(source), step=step, session=Session)
    assert not ran.complete
    assert ran.shortfall == sentence
    assert hooks() == ()


def test_a_crash_in_the_step_is_handed_to_the_session(write):
    ran = run_script(write("import torch\ntorch.ones(2) @ torch.ones(3)"), session=Session)
    assert ran.recording.closed is RuntimeError
    assert ran.status == 1


def test_a_crash_after_the_step_leaves_the_recording(write, capsys):
    ran = run_script(write(TRAINING + "\n    raise ValueError('late')"), step=2, session=Session)
    assert (ran.status, ran.complete, ran.recording.closed) == (1, True, None)
    assert capsys.readouterr().err.endswith("ValueError: late\n")


def test_a_file_that_cannot_be_read(write, tmp_path):
    advice = "Give the path of a Python file, as to `python`."
    with pytest.raises(RecordingError) as missing:
        run_script("missing.py", session=Session)
    assert str(missing.value) == f"cannot open missing.py: No such file or directory. {advice}"
    write("", "folder/train.py")
    with pytest.raises(RecordingError) as folder:
        run_script("folder", session=Session)
    assert str(folder.value) == f"cannot open folder: Is a directory. {advice}"


def test_names_in_sight_are_those_of_every_function_on_the_way(write):
    script = write("""
        import torch
        rate = 0.1
        def train(model, data):
            optimizer = torch.optim.SGD(model.parameters(), rate)
            for inputs in data:
                model(inputs).sum().backward()
                optimizer.step()
        def main():
            network = torch.nn.Linear(2, 1)
            train(network, torch.ones(3, 4, 2))
        main()
    """)
    seen = run_script(script, step=2, session=Session).recording.names
    assert seen["network"] is seen["model"]
    assert seen["inputs"].shape == (4, 2)
    assert seen["rate"] == 0.1
    assert not {"error", "namespace", "self", "write"} & set(seen)


CRASH = """
    import torch
    import torch.nn.functional as F

    def forward(x):
        return F.relu(F.dropout(x, p=2.0))

    forward(torch.ones(2))
"""


def test_a_traceback_shows_no_frame_of_the_recorders(write, capsys):
    script = write(CRASH)
    python = subprocess.run([sys.executable, script], capture_output=True, text=True)
    assert "dropout probability has to be between 0 and 1" in python.stderr
    ran = run_script(script)
    assert capsys.readouterr().err == python.stderr
    assert ran.recording.graph.error.startswith("ValueError: dropout probability")


def test_a_script_that_cannot_begin_is_not_said_to_be_recorded(write, capsys):
    ran = run_script(write("print("))
    assert "SyntaxError" in capsys.readouterr().err
    assert ran.shortfall == (
        "train.py crashed before the end of training step 1; step 1 was asked for. Nothing was recorded before."
    )


def test_a_script_that_records_by_itself_is_told_what_is_open(write, capsys):
    script = write("""
        import chainrule, torch
        weight = torch.nn.Parameter(torch.ones(2))
        optimizer = torch.optim.SGD([weight])
        for _ in range(3):
            with chainrule.record():
                weight.sum().backward()
                optimizer.step()
    """)
    for step in (1, 2):  # the script's own block comes second, and first
        assert run_script(script, step=step).ending == "crashed"
        told = capsys.readouterr().err
        assert "End the outer block first (`chainrule run`, `verify` and `watch` are such blocks)" in told
        assert "During handling" not in told
        assert hooks() == ()


def test_tensors_are_named_by_the_scripts_globals_and_locals(write):
    script = write("""
        import torch
        weight = torch.nn.Parameter(torch.ones(2))
        optimizer = torch.optim.SGD([weight])
        def step(batch):
            product = weight * batch
            product.sum().backward()
            optimizer.step()
        for batch in torch.ones(3, 2):
            step(batch)
    """)
    recording = run_script(script, step=3).recording
    assert {"weight", "batch", "product"} <= {value.name for value in recording.graph.values}
    assert list(recording.parameters) == ["weight"]
