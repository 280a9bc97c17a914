"""An exception of PyTorch's is explained by the lines, steps and layers at fault, and reaches the user as it was."""

from __future__ import annotations

import traceback
from contextlib import suppress

import pytest
import torch
from click.testing import CliRunner
from torch import nn

import chainrule
from chainrule import runs
from chainrule.cli import commands
from tests.findings.failing import FAILING, a_hidden_state_that_is_not_detached, a_sum_in_place_after_a_sigmoid

pytestmark = pytest.mark.trains
EFFECTS = ("no-gradient", "stuck-update", "not-in-optimizer")


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def error_of(training):
    with pytest.raises((RuntimeError, IndexError)) as caught:
        training()
    return caught.value


def check(findings, name):
    """One error, of the right kind, with all that must be said; nothing that only follows from it."""
    id, parts, _ = FAILING[name]
    errors = [each for each in findings if each.severity == "error"]
    assert [each.id for each in errors] == [id], findings
    text = getattr(errors[0], "sentence", "") or errors[0].text
    assert not [part for part in parts if part not in text], text
    assert errors[0].advice
    assert errors[0].place
    return errors[0]


@pytest.mark.parametrize("name", FAILING)
@pytest.mark.parametrize("every", [1, pytest.param(10, marks=pytest.mark.slow)])
def test_a_watched_training_is_explained(name, every, tmp_path):
    with pytest.raises((RuntimeError, IndexError)), chainrule.watch(every=every, to=tmp_path / "run.db") as watch:
        FAILING[name][2]()
    if every > 1 and name == "a_hidden_state_with_retain_graph":
        return  # see the test below: the line that saved was in a step that nobody recorded
    found = check(watch.findings, name)
    assert any(" ended before its update: " in line for line in found.evidence)
    with runs.open(tmp_path / "run.db") as run:
        assert run.findings() == watch.findings


def test_without_a_recording_the_steps_and_the_update_are_known():
    with pytest.raises(RuntimeError), chainrule.watch(every=10) as watch:
        FAILING["a_hidden_state_with_retain_graph"][2]()
    (found,) = (each for each in watch.findings if each.severity == "error")
    assert "saved rnn.weight_hh in step 2 for its backward pass, and `optimizer.step()`" in found.text
    assert "Detach what is carried" in found.advice


ONE_STEP = [name for name in FAILING if "step 1" not in "".join(FAILING[name][1]) and "retain" not in name]


@pytest.mark.parametrize(
    "name",
    [*ONE_STEP[::9], *(pytest.param(each, marks=pytest.mark.slow) for each in ONE_STEP if each not in ONE_STEP[::9])],
)
def test_a_recorded_step_is_explained_and_its_file_too(name, tmp_path):
    with pytest.raises((RuntimeError, IndexError)), chainrule.record() as recording:
        FAILING[name][2]()
    check(recording.findings(), name)
    recording.save(tmp_path / "step.safetensors")
    assert chainrule.load(tmp_path / "step.safetensors").findings() == recording.findings()


def test_between_two_recordings_the_line_is_that_of_the_same_loop():
    rnn, h = nn.GRUCell(4, 8), torch.zeros(16, 8)
    with pytest.raises(RuntimeError):
        for _ in range(2):
            with chainrule.record() as recording:
                h = rnn(torch.randn(16, 4), h)
                h.square().mean().backward()
    (found,) = recording.findings()
    assert "an earlier step" in found.sentence
    assert "h, which `rnn(torch.randn(16, 4), h)` (test_exceptions.py:" in found.sentence


@pytest.mark.parametrize("training", [a_sum_in_place_after_a_sigmoid, a_hidden_state_that_is_not_detached])
def test_the_exception_is_the_users_own(training):
    bare = error_of(training)
    with chainrule.watch():
        watched = error_of(training)
    assert (type(watched), str(watched)) == (type(bare), str(bare))

    def frames(error):
        return [
            (each.name, each.line)
            for each in traceback.extract_tb(error.__traceback__)
            if "chainrule/" not in each.filename and "contextlib" not in each.filename
        ]

    assert frames(watched)[-3:] == frames(bare)[-3:]


def test_a_backward_pass_that_the_code_gives_up_is_a_note_and_lasting_an_error():
    model = nn.Sequential(nn.Linear(4, 8), nn.Sigmoid())
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    severities = []
    with chainrule.watch(model, optimizer) as watch:
        for _ in range(5):
            h = model(torch.randn(16, 4))
            h += 1
            with suppress(RuntimeError):
                h.sum().backward()
            optimizer.step()
            severities.append([each.severity for each in watch.findings if each.id == "backward-failed"])
    assert severities[0] == ["note"]
    assert [(each.id, each.severity) for each in watch.findings] == [("backward-failed", "error")]


@pytest.mark.parametrize(
    ("kind", "said"), [(ValueError, "the loss is nan"), (KeyError, "a"), (RuntimeError, "mat1 and mat2")]
)
def test_what_the_users_code_raises_is_not_explained(kind, said):
    model = nn.Linear(4, 2)

    def step():
        with torch.no_grad():
            model(torch.randn(3, 4))
        model(torch.randn(3, 4)).sum().backward()
        raise kind(said)

    with pytest.raises(kind), chainrule.record() as recording:
        step()
    with pytest.raises(kind), chainrule.watch() as watch:
        step()
    ids = {each.id for each in (*recording.findings(), *watch.findings)}
    assert not ids & {"backward-failed", "forward-failed", *EFFECTS}


def test_a_key_that_a_dictionary_lacks_is_no_exception_of_pytorchs():
    model, options = nn.Linear(4, 2), {}
    with pytest.raises(KeyError), chainrule.watch() as watch:
        model(torch.randn(3, 4)).sum().backward()
        options["rate"]
    assert watch.findings == ()


HIDDEN = """
import torch
from torch import nn
rnn = nn.GRUCell(4, 8)
optimizer = torch.optim.SGD(rnn.parameters(), 0.1)
h = torch.zeros(2, 8)
for _ in range(3):
    h = rnn(torch.randn(2, 4), h)
    h.square().mean().backward()
    optimizer.step()
"""


@pytest.mark.parametrize("step", [1, 2])
def test_the_command_explains_beside_the_traceback(step, tmp_path):
    script = tmp_path / "train.py"
    script.write_text(HIDDEN)
    ran = CliRunner().invoke(commands, ["run", str(script), "--step", str(step), "-o", str(tmp_path / "o.json")])
    assert ran.exit_code == 1
    assert "RuntimeError: Trying to backward through the graph a second time" in ran.stderr
    assert "chainrule: error: backward() went on into the graph of step 1" in ran.stderr
    assert "`rnn(torch.randn(2, 4), h)` (train.py:8)" in ran.stderr
    assert "h = h.detach()" in ran.stderr


def test_a_leak_grows_from_step_to_step():
    model, memory = nn.Linear(4, 4), torch.zeros(4)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with chainrule.watch(model, optimizer) as watch:
        for step in range(12):
            memory = 0.9 * memory + 0.1 * model(torch.randn(8, 4)).mean(0)
            (memory - 1).square().mean().backward(retain_graph=True)
            optimizer.step()
            if step == 4:
                watch._examiner._rest_until = 0.0
                early = [each.severity for each in watch.findings if each.id == "kept-graph"]
    (found,) = (each for each in watch.findings if each.id == "kept-graph")
    assert early in ([], ["note"])
    assert (found.severity, found.since, found.size) == ("warning", 3, 11)
    assert found.text == "The step uses memory with its graph of 11 earlier steps."
    assert found.place.startswith("test_exceptions.py:")


def test_a_state_that_is_detached_keeps_nothing():
    rnn, h = nn.GRUCell(4, 8), torch.zeros(2, 8)
    optimizer = torch.optim.SGD(rnn.parameters(), 0.1)
    with chainrule.watch(rnn, optimizer) as watch:
        for _ in range(6):
            h = h.detach()
            for _ in range(3):
                h = rnn(torch.randn(2, 4), h)
            h.square().mean().backward()
            optimizer.step()
    assert "kept-graph" not in {each.id for each in watch.findings}
