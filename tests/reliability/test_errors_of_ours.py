"""An error of ours ends the recording, never the training, wherever it is raised; an interrupt reaches the user."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import chainrule
from chainrule.errors import ChainruleWarning, RecordingError
from tests.reliability import injection
from tests.reliability.injection import INJECTED, STEPS, InjectedError, Step


class Recorded:
    """Records each step of a training, and reads what was recorded, if it is to."""

    def __init__(self, read: bool = False, **options: Any) -> None:
        self.read, self.options = read, options
        self.unreadable: list[str] = []

    def __call__(self, model: nn.Module, optimizer: torch.optim.Optimizer, step: Step) -> list[Tensor]:
        losses = []
        self.unreadable = []
        for number in range(STEPS):
            with chainrule.record(**self.options) as recording:
                losses.append(step(number))
            try:
                if self.read:
                    assert recording.graph
            except Exception as error:  # the training goes on
                self.unreadable.append(f"{type(error).__name__}: {error}")
        return losses


OBSERVERS = {
    "all": Recorded(keep="all", read=True),
    "statistics": Recorded(keep="statistics"),
    "chosen": Recorded(keep=["block*"], memory=2**20, read=True),
}
PACKAGES = ("chainrule.capture",)
BETWEEN = {
    # PyTorch calls these, or they run the user's operation, and nothing of ours is around them. Their parts that do
    # anything run guarded; an error in the moment in which one is entered is not within our reach.
    "compiler:EagerHere.stance",
    "compiler:compiles_for_itself",
    "function_hooks:FunctionHooks._around",
    "function_hooks:FunctionHooks._around.<locals>.applied",
    "function_hooks:FunctionHooks._begins",
    "function_hooks:_ClassAttribute.__get__",
    "global_hooks:_Layer.__contains__",
    "global_hooks:_Layer.__len__",
    "global_hooks:_Layer.items",
    "global_hooks:_Layer.values",
    "modes:DispatchMode.__torch_dispatch__",
    "modes:FunctionMode.__torch_function__",
    "node_hooks:NodeHooks._noting.<locals>.note",
    "node_hooks:NodeHooks.around",
    "recorder:Recorder.backward",
    "recorder:Recorder.call",
    "recorder:Recorder.call_bypassing",
    "recorder:Recorder.dispatch",
    # the guard itself, and who calls the parts of a recording under it
    "guard:Guard.__enter__",
    "guard:Guard.__exit__",
    "guard:Guard.hook.<locals>.hook",
    "guard:here",
    "session:Session.__init__",
    "session:Session.begin",
    "session:Session.end",
    "session:Session.take_off",
    "session:Session.tape",
}


@pytest.fixture(scope="module")
def expected() -> dict[str, Any]:
    return injection.train(injection.bare)


def sweep(name: str, interrupted: bool, share: int, expected: dict[str, Any]) -> dict[str, list[str]]:
    """Make every `share`-th function of ours fail, when it is entered first and half-way; returns what went wrong."""
    observe = OBSERVERS[name]
    census = injection.take_census(observe, lines=False)
    error = KeyboardInterrupt if interrupted else InjectedError
    problems = {}
    for place, called in list(census.ours(PACKAGES).items())[::share]:
        if not interrupted and called.removeprefix("chainrule.capture.") in BETWEEN:
            continue
        for time in sorted({1, max(census.entered[place] // 2, 1)}):
            trial = injection.attempt(observe, injection.at_entry(place, time, error), expected)
            if found := trial.problems(interrupted):
                problems[f"{called}, call {time} of {census.entered[place]}"] = found
    return problems


@pytest.mark.parametrize("name", OBSERVERS)
@pytest.mark.parametrize("interrupted", [False, True])
def test_some_functions_may_fail(name: str, interrupted: bool, expected: dict[str, Any]) -> None:
    assert sweep(name, interrupted, 48, expected) == {}


@pytest.mark.slow
@pytest.mark.parametrize("name", OBSERVERS)
@pytest.mark.parametrize("interrupted", [False, True])
def test_every_function_may_fail(name: str, interrupted: bool, expected: dict[str, Any]) -> None:
    assert sweep(name, interrupted, 1, expected) == {}


@pytest.mark.parametrize("name", OBSERVERS)
def test_an_interrupt_at_some_lines(name: str, expected: dict[str, Any]) -> None:
    assert injection.interrupted(OBSERVERS[name], 10, expected) == {}


@pytest.mark.slow
@pytest.mark.parametrize("name", OBSERVERS)
def test_an_interrupt_at_any_line(name: str, expected: dict[str, Any]) -> None:
    assert injection.interrupted(OBSERVERS[name], 500, expected) == {}


@pytest.mark.slow
@pytest.mark.sweep
@pytest.mark.parametrize("name", OBSERVERS)
def test_an_interrupt_at_every_line(name: str, expected: dict[str, Any]) -> None:
    assert injection.interrupted_everywhere(OBSERVERS[name], expected) == {}


TURNS_ON_AND_OFF = (
    "capture/recorder.py:start",
    "capture/recorder.py:take_off",
    "capture/recorder.py:finish",
    "capture/guard.py:enter_thread",
    "capture/guard.py:leave_thread",
    "capture/global_hooks.py:add",
    "capture/global_hooks.py:remove",
    "capture/global_hooks.py:_settle",
    "capture/modes.py:enter",
    "capture/modes.py:blind",
    "capture/modes.py:leave",
    "capture/compiler.py:begin",
    "capture/compiler.py:end",
    "recording.py:__init__",
    "recording.py:__enter__",
    "recording.py:__exit__",
    "capture/session.py:__init__",
    "capture/session.py:begin",
    "capture/session.py:end",
    "capture/session.py:take_off",
    "gc_control.py:begin",
    "gc_control.py:end",
)


@pytest.mark.parametrize("function", TURNS_ON_AND_OFF)
def test_an_interrupt_at_every_line_of_start_and_end(function: str) -> None:
    """Not by chance: each line of what turns recording on and off, when it is reached first."""
    model, x = nn.Sequential(nn.Linear(2, 2), nn.Tanh()), torch.ones(1, 2)

    def step() -> None:
        with chainrule.record():
            model(x).sum().backward()

    step()
    before = injection.state_of_process()
    lines = injection.lines_of(function, step)
    assert lines
    for line in lines:
        with pytest.raises(KeyboardInterrupt):
            injection.interrupt_at(function, line, step)
        assert injection.state_of_process() == before, line
        step()
        assert injection.state_of_process() == before


# -- what the user is told --------------------------------------------------------------------------------------------


def test_a_failed_recording_says_so_once_and_when_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*given: Any) -> None:
        raise InjectedError(INJECTED)

    model = nn.Linear(2, 2)
    with monkeypatch.context() as patched:
        patched.setattr("chainrule.capture.traits.Traits.of", fails)
        with warnings.catch_warnings(record=True) as told, chainrule.record() as r:
            warnings.simplefilter("always")
            for _ in range(3):
                model(torch.ones(1, 2)).sum().backward()
    (warning,) = told
    assert warning.category is ChainruleWarning
    assert f"InjectedError: {INJECTED} (capture/" in str(warning.message)
    assert model.bias.grad.tolist() == [3, 3]
    assert repr(r) == "<chainrule.Recording, failed>"
    for read in (lambda: r.graph, lambda: r.loss, r.findings, r.verify, lambda: str(r)):
        with pytest.raises(RecordingError, match=f"InjectedError: {INJECTED}"):
            read()


@pytest.mark.filterwarnings("error")
def test_a_warning_that_is_an_error_ends_no_training(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("chainrule.capture.traits.Traits.of", lambda *given: 1 / 0)
    with chainrule.record():
        assert (torch.ones(2) * 2).sum().item() == 4
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_the_users_errors_pass_unchanged_after_one_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chainrule.capture.traits.Traits.of", lambda *given: 1 / 0)

    def step() -> None:
        with chainrule.record():
            torch.ones(2).sum()
            raise ValueError("mine")

    with pytest.warns(ChainruleWarning), pytest.raises(ValueError, match="mine"):
        step()


def test_an_interrupt_that_the_user_survives_ends_the_recording_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*given: Any) -> None:
        raise KeyboardInterrupt

    x = torch.ones(2, requires_grad=True)
    with chainrule.record() as recording:
        with monkeypatch.context() as patched:
            patched.setattr("chainrule.capture.traits.Traits.of", interrupt)
            with pytest.raises(KeyboardInterrupt):
                x.exp()
        x.square().sum().backward()
    assert x.grad.tolist() == [2, 2]
    with pytest.raises(RecordingError, match="interrupted"):
        _ = recording.graph
