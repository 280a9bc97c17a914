"""Whoever reads a recording changes nothing: not the model, not random numbers, not the training that goes on."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import random
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, spectral_norm
from torch.utils.checkpoint import checkpoint

import chainrule

LOG: list[str] = []
SETTINGS = {"calls": 0}
total_calls = 0


class Noting(torch.autograd.Function):
    """A function that counts, in every place where Python can keep a count, and draws random numbers."""

    calls = 0
    seen: list[int] = []  # noqa: RUF012 (it is to be shared)

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        global total_calls
        total_calls += 1
        Noting.calls += 1
        Noting.seen.append(total_calls)
        LOG.append("forward")
        SETTINGS["calls"] += 1
        random.random()
        numpy.random.rand()
        ctx.save_for_backward(x)
        ctx.factor = 2.0
        return x * ctx.factor

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Tensor:
        LOG.append("backward")
        _ = ctx.saved_tensors
        return upstream * (ctx.factor if len(LOG) > 0 else 0.0)


class Wrong(torch.autograd.Function):
    """The same with a wrong backward, which is diagnosed: it runs many times more."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        LOG.append("forward")
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Tensor:
        LOG.append("backward")
        (x,) = ctx.saved_tensors
        return upstream * x.cos() * 2


class Counting(nn.Module):
    """A module with state of every kind: buffers, an average, a list, a counter, hooks that count."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.register_buffer("average", torch.zeros(4))
        self.calls, self.norms = 0, list[float]()
        self.register_forward_hook(lambda module, args, out: module.norms.append(float(out.detach().norm())))
        self.register_forward_pre_hook(self._count)

    def _count(self, module: nn.Module, args: Any) -> None:
        self.calls += 1

    def forward(self, x: Tensor) -> Tensor:
        out = self.inner(x)
        if random.random() < 2 and numpy.random.rand() < 2:
            with torch.no_grad():
                self.average.mul_(0.9).add_(out.mean(0), alpha=0.1)
        return out


class Checkpointed(nn.Module):
    def __init__(self, inner: nn.Module, reentrant: bool) -> None:
        super().__init__()
        self.inner, self.reentrant = inner, reentrant

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.inner, x, use_reentrant=self.reentrant)


class Applying(nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function.apply(x)


def normed() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.3))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "normed": lambda: Counting(normed()),
    "checkpointed": lambda: Counting(Checkpointed(normed(), reentrant=False)),
    "checkpointed, reentrant": lambda: Checkpointed(Counting(normed()), reentrant=True),
    "checkpointed, reentrant, alone": lambda: Checkpointed(normed(), reentrant=True),
    "checkpointed, reentrant, without buffers": lambda: Checkpointed(nn.Linear(3, 4), reentrant=True),
    "function": lambda: nn.Sequential(nn.Linear(3, 4), Applying(Noting), nn.Dropout(0.5)),
    "wrong function": lambda: nn.Sequential(nn.Linear(3, 4), Applying(Wrong)),
    "spectral": lambda: Counting(spectral_norm(nn.Linear(3, 4))),
    "parametrized": lambda: Counting(parametrizations.spectral_norm(nn.Linear(3, 4))),
    "weight norm": lambda: Counting(parametrizations.weight_norm(nn.Linear(3, 4))),
}


def _why(recording: chainrule.Recording) -> None:
    name, parameter = next(iter(recording.parameters.items()))
    recording.why(name, (0,) * len(parameter.shape))


def _tried(action: Callable[[], Any]) -> None:
    with contextlib.suppress(chainrule.ChainruleError):
        action()


ACTIONS: dict[str, Callable[[chainrule.Recording], Any]] = {
    "repr": repr,
    "print": str,
    "notebook": lambda recording: recording._repr_mimebundle_(),
    "show": lambda recording: recording.show(),
    "verify": lambda recording: recording.verify(),
    "findings": lambda recording: recording.findings(),
    "why": _why,
    "recompute": lambda recording: _tried(recording.recompute),
    "page": lambda recording: recording.save("step.html"),
    "file": lambda recording: (recording.save("step.safetensors"), chainrule.load("step.safetensors").verify()),
    "notes": lambda recording: recording.save("step.ipynb"),
    "latex": lambda recording: recording.save("step.tex"),
}


def state(model: nn.Module, x: Tensor) -> list[Any]:
    """The numbers of a training, as copies."""
    found: list[Any] = [random.getstate(), numpy.random.get_state()[1].tolist(), torch.get_rng_state()]
    tensors = [x, *model.parameters(), *model.buffers()]
    found += [each.detach().clone() for each in (*tensors, *(t.grad for t in tensors if t.grad is not None))]
    for module in model.modules():
        plain = (bool, int, float, str, list)
        found.append({key: copy.copy(each) for key, each in vars(module).items() if isinstance(each, plain)})
    return found


def surroundings(model: nn.Module, x: Tensor) -> list[Any]:
    """What else reading might change: of this process alone."""
    found = [list(LOG), dict(SETTINGS), total_calls, Noting.calls, list(Noting.seen), torch.get_default_dtype()]
    found += [torch.is_grad_enabled(), torch.are_deterministic_algorithms_enabled(), torch.get_num_threads()]
    tensors = [x, *model.parameters(), *model.buffers()]
    tensors += [each.grad for each in tensors if each.grad is not None]
    found += [(each._version, each.data_ptr(), each.requires_grad, id(each.grad)) for each in tensors if each.is_leaf]
    for module in model.modules():
        found.append([list(each) for key, each in vars(module).items() if key.endswith("hooks")])
    return found


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(equal, one, other))
    return bool(one == other)


def trained(name: str, actions: dict[str, Callable[[chainrule.Recording], Any]]) -> list[Any]:
    """The end of a training of three steps, of which the second is recorded and read, if there are actions.

    Around each action everything must be as it was.
    """
    LOG.clear()
    torch.manual_seed(0), random.seed(0), numpy.random.seed(0)
    model = MODELS[name]()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for number in range(3):
        x = torch.randn(8, 3, requires_grad=True)
        optimizer.zero_grad()
        if number == 1 and actions:
            with chainrule.record() as recording:
                model(x).square().sum().backward()
            for action, read in actions.items():
                before = state(model, x), surroundings(model, x)
                with contextlib.redirect_stdout(io.StringIO()):
                    read(recording)
                assert equal(before, (state(model, x), surroundings(model, x))), action
        else:
            model(x).square().sum().backward()
        optimizer.step()
    return state(model, x)


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", MODELS)
def test_reading_changes_nothing_and_the_training_goes_on_as_without(name):
    """Before and after each action are equal, and so is the end of the training that was never recorded."""
    assert equal(trained(name, ACTIONS), trained(name, {}))


@pytest.mark.parametrize(
    "action", ["print(recording)"] + [pytest.param(each, marks=pytest.mark.slow) for each in ("recording.verify()",)]
)
def test_rich_is_imported_without_a_draw(action, tmp_path):
    """What is first shown in a process imports the library that draws a random number as it is imported."""
    code = f"""
import random, torch, chainrule
with chainrule.record() as recording: torch.ones(2, requires_grad=True).sum().backward()
state = random.getstate()
{action}
assert random.getstate() == state
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, capture_output=True, timeout=120)


@pytest.mark.parametrize("way", ["file", "iterator", "log", "process"])
def test_what_cannot_be_undone_is_not_done_again(way, tmp_path):
    """A function that reaches out of the process, or uses something up, is not checked, with the reason."""
    (tmp_path / "log").write_text("")
    numbers, log, path = iter(range(100)), logging.getLogger("chainrule.test"), tmp_path / "log"

    ways = {"file": lambda: path.write_text("x" + path.read_text()), "iterator": lambda: next(numbers)}
    ways |= {"log": lambda: log.info("x"), "process": lambda: subprocess.run([sys.executable, "-c", ""], check=True)}
    effect: Callable[[], Any] = ways[way]

    class Reaching(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            effect()
            return 2 * x

        @staticmethod
        def backward(ctx: Any, upstream: Tensor) -> Tensor:
            return 2 * upstream

    with chainrule.record() as recording:
        Reaching.apply(torch.ones(3, requires_grad=True)).sum().backward()
    [row] = [row for row in recording.verify().rows if "Reaching" in row.node.name]
    assert row.verdict == "not checked"
    assert "not run again" in row.reason
    assert next(numbers) == (1 if way == "iterator" else 0)
    assert way != "file" or path.read_text() == "x"


def test_a_tensor_of_the_user_is_not_written_to_again():
    """A function that updates a buffer is not checked: its reason names the buffer."""

    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("steps", torch.zeros(1))

    scale = Scale()

    class Averaging(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            scale.steps.add_(1)
            return 2 * x

        @staticmethod
        def backward(ctx: Any, upstream: Tensor) -> Tensor:
            return 2 * upstream

    with chainrule.record() as recording:
        Averaging.apply(torch.ones(3, requires_grad=True)).sum().backward()
    [row] = [row for row in recording.verify().rows if "Averaging" in row.node.name]
    assert (row.verdict, scale.steps.item()) == ("not checked", 1)
    assert "would change `steps`" in row.reason


def test_a_module_verified_by_itself_keeps_its_python_state():
    """`chainrule.verify(module, x)` runs the module, and puts back what it counts."""
    model = Counting(normed())
    x = torch.randn(8, 3)
    before = state(model, x)
    assert chainrule.verify(model, x).rows
    assert equal(before, state(model, x))


@pytest.mark.parametrize(("function", "verdict"), [(Noting, "agrees"), (Wrong, "disagrees")])
def test_a_function_that_only_changes_what_can_be_put_back_is_checked(function, verdict):
    """The verdict is the one of any other function, and every count is as before."""
    with chainrule.record() as recording:
        function.apply(torch.linspace(0.2, 1.3, 5, requires_grad=True)).square().sum().backward()
    before = list(LOG), dict(SETTINGS), total_calls, Noting.calls, list(Noting.seen)
    rows = {row.node.name: row.verdict for row in recording.verify().rows}
    assert rows[f"{function.__name__}Backward"] == verdict
    assert before == (list(LOG), dict(SETTINGS), total_calls, Noting.calls, list(Noting.seen))
