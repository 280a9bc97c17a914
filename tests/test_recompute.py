"""Numbers that were not kept: asked for in vain they are an error that says what to do; `recompute` gives them."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import chainrule
from chainrule.errors import MissingError, ReplayError, RequestError

NO_WAY = (
    "Record the step with keep= for it, or recompute before the next optimizer.step() (and end the block before it)."
)


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)
        self.drop = nn.Dropout(0.2)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop(self.down(F.gelu(self.up(self.norm(x)))))


class Network(nn.Module):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.h = nn.ModuleList(Block(width) for _ in range(4))
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.h:
            x = block(x)
        return self.head(x)


class Step:
    """One step of a small network, the same one each time."""

    def __init__(self, keep: str | list[str]) -> None:
        torch.manual_seed(3)
        self.model = Network()
        self.x, self.y = torch.randn(6, 8), torch.randint(0, 3, (6,))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        with chainrule.record(keep=keep) as self.recording:
            F.cross_entropy(self.model(self.x), self.y).backward()


@pytest.fixture(autouse=True)
def _single_numbers_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chainrule.capture.retention.SMALL", 8)


def test_what_is_named_is_recomputed_and_the_rest_is_left() -> None:
    thin, whole = Step("statistics").recording, Step("all").recording
    recomputed = thin.recompute("h.2.*")
    for name in ("h.2.up.weight", "h.2.norm", "h.2.up", "h.2.drop", "h.2"):
        was, now = whole[name], recomputed[name]
        assert was.data is not None
        assert was.grad is not None
        assert now.data is not None
        assert now.grad is not None
        assert torch.equal(now.data, was.data), name
        assert torch.equal(now.grad, was.grad), name
        assert now.statistics == thin[name].statistics
    assert thin["h.2.up"].data is None
    assert thin.graph.notes == ()
    assert recomputed["h.0.up"].data is None
    assert recomputed["h.0.up.weight"].grad is None
    assert not recomputed.is_whole
    (note,) = recomputed.graph.notes
    assert re.fullmatch(
        r"recomputed, not recorded: h\.2\.\* and what it was made of and used for \(the numbers of \d+ values and \d+ "
        r"gradients\), by running \d+ of \d+ operations forward and \d+ nodes back again; the statistics are those "
        r"that were recorded(; of \d+ none were recorded)?",
        note,
    )


def test_only_what_is_needed_runs() -> None:
    thin = Step("statistics").recording
    last, everything = thin.recompute("head").graph.notes[0], thin.recompute().graph.notes[0]

    def nodes(note: str) -> int:
        return int(re.findall(r"and (\d+) nodes back", note)[0])

    assert nodes(last) < 6 < nodes(everything)


def test_a_gradient_is_explained_and_proved_from_what_was_recomputed() -> None:
    thin, whole = Step("statistics").recording, Step("all").recording
    recomputed = thin.recompute("h.1.up.weight")
    assert str(recomputed.why("h.1.up.weight", (1, 2))) == str(whole.why("h.1.up.weight", (1, 2)))
    block = thin.recompute("h.1.*").verify(only="h.1.*")
    assert {row.verdict for row in block.rows} == {"agrees"}
    assert {row.verdict for row in thin.recompute().verify().rows} == {"agrees"}


def test_what_is_recomputed_is_told_and_stored_with_its_note(tmp_path: object) -> None:
    recomputed = Step("statistics").recording.recompute("h.1.*")
    recomputed.save(f"{tmp_path}/step.safetensors")
    read = chainrule.load(f"{tmp_path}/step.safetensors")
    assert read.graph.notes == recomputed.graph.notes
    recomputed.save(f"{tmp_path}/step.md")
    with open(f"{tmp_path}/step.md") as file:
        assert "recomputed, not recorded: h.1." in file.read().replace("\\", "")
    recomputed.save(f"{tmp_path}/step.html")


def test_what_was_recomputed_can_be_recomputed_further_and_a_whole_recording_stays_as_it_is() -> None:
    recomputed = Step("statistics").recording.recompute("h.1.*").recompute("h.2.*")
    assert len(recomputed.graph.notes) == 2
    assert recomputed["h.1"].data is not None
    assert recomputed["h.2"].data is not None
    whole = Step("all").recording
    assert whole.recompute("h.1").graph is whole.graph


def test_what_is_recomputed_stays_when_the_parameters_go_on() -> None:
    step = Step("statistics")
    recomputed = step.recording.recompute("h.1.*")
    numbers = {v.index: v.data.clone() for v in recomputed.graph.values if v.data is not None}
    step.optimizer.step()
    step.x.zero_()
    for index, data in numbers.items():
        now = recomputed.graph.values[index].data
        assert now is not None
        assert torch.equal(now, data)
    assert recomputed.recompute("h.1").graph is recomputed.graph


def test_nothing_is_left_behind() -> None:
    step = Step("statistics")
    before = [p.detach().clone() for p in step.model.parameters()]
    grads = [p.grad.clone() for p in step.model.parameters() if p.grad is not None]
    state = torch.get_rng_state()
    step.recording.recompute()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(map(torch.equal, before, step.model.parameters()))
    after = [p.grad for p in step.model.parameters() if p.grad is not None]
    assert len(grads) == len(after)
    assert all(map(torch.equal, grads, after))
    assert all(p.requires_grad and p.is_leaf for p in step.model.parameters())


def _views_and_writes(w: Tensor) -> Tensor:
    b = w * 1.5
    b[2:4].mul_(2)
    part = b[3:5]
    part.mul_(3)
    with torch.no_grad():
        rows = torch.arange(8.0).view(4, 2)
        left, right = rows[:, 0], rows[:, 1]
        left.add_(1)
        rows.mul_(2)
    return (b * b).sum() + (w[:4] * left * right).sum()


def _twice(w: Tensor) -> Tensor:
    (w * w).sum().backward()
    return (w.sin() * w).sum()


def _random(w: Tensor) -> Tensor:
    noise = torch.randn_like(w)
    return (F.dropout(w * noise, 0.5) * torch.rand(8)).sum()


def _complex(w: Tensor) -> Tensor:
    return torch.fft.rfft(w * 2).abs().sum()


class SineAndDouble(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x)
        return 2 * x, x.sin()

    @staticmethod
    def backward(ctx: Any, double: Tensor, sine: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 2 * double + sine * x.cos()


def _function(w: Tensor) -> Tensor:
    double, sine = SineAndDouble.apply(w * 1)
    return (double * sine).sum()


@pytest.mark.parametrize("loss", [_views_and_writes, _twice, _random, _complex, _function])
def test_awkward_steps(loss: Callable[[Tensor], Tensor]) -> None:
    def recorded(keep: str) -> chainrule.Recording:
        torch.manual_seed(5)
        w = torch.linspace(-1, 2, 8).requires_grad_()
        with chainrule.record(keep=keep) as recording:
            loss(w).backward()
        _ = recording.graph
        return recording

    whole, thin = recorded("all"), recorded("statistics")
    for was, now in zip(whole.graph.values, thin.recompute().graph.values, strict=True):
        assert was.data is not None
        assert now.data is not None
        if not whole.graph.operations[was.operation or 0].name.startswith("aten.empty"):
            assert torch.equal(was.data, now.data), was.name
        assert (was.grad is None) == (now.grad is None), was.name
        if was.grad is not None and now.grad is not None:
            torch.testing.assert_close(now.grad, was.grad)


def test_a_graph_of_gradients_is_recorded_by_figures() -> None:
    w = torch.linspace(-1, 2, 8).requires_grad_()
    with chainrule.record(keep="statistics") as recording:
        (gradient,) = torch.autograd.grad((w**3).sum(), w, create_graph=True)
        gradient.square().sum().backward()
    norm = recording["gradient"].statistics
    assert norm is not None
    assert norm.norm == pytest.approx(gradient.norm().item())


# -- what cannot be had ------------------------------------------------------------------------------------------------


def _error(kind: type[Exception], ask: Callable[[], object]) -> str:
    with pytest.raises(kind) as caught:
        ask()
    return str(caught.value)


def test_asked_of_what_was_not_kept_why_says_what_to_do() -> None:
    thin = Step("statistics").recording
    assert _error(MissingError, lambda: thin.why("h.1.up.weight", (1, -1))) == (
        "dJ/dh.1.up.weight[1,7]: of this gradient, or of what it is the sum of, only statistics were kept. Ask "
        "recording.recompute('h.1.up.weight').why('h.1.up.weight', (1, 7)), or record the step with keep= for it."
    )
    row = thin.verify(only="h.1.up").rows[0]
    assert (row.verdict, row.reason) == ("not checked", "its numbers were not kept: recording.recompute gives them")


def test_a_name_that_nothing_has() -> None:
    thin = Step("statistics").recording
    assert _error(MissingError, lambda: thin.recompute("h.1.upp.*")).startswith(
        "no value is named 'h.1.upp.*'. Near matches: 'h.1.up"
    )
    assert "Near matches" in _error(MissingError, lambda: thin.recompute("h.1.upp"))
    assert _error(RequestError, lambda: thin.recompute(["h.1"])) == (  # type: ignore[arg-type]
        "recompute(['h.1']): give names of values, or patterns such as \"h.3.*\", each by itself."
    )


def test_a_parameter_that_was_overwritten_after_the_step() -> None:
    for read in (False, True):
        step = Step("statistics")
        if read:
            _ = step.recording.graph
        step.optimizer.step()
        assert _error(ReplayError, lambda step=step: step.recording.recompute("h.0.up")) == (
            f"the parameter h.0.norm.weight (8,) was not kept, and was overwritten after the recorded step. {NO_WAY}"
        )


def test_a_parameter_that_was_overwritten_unseen() -> None:
    step = Step("statistics")
    _ = step.recording.graph
    step.model.h[0].norm.weight.data[7] += 1e-3
    assert "was overwritten after the recorded step" in _error(ReplayError, lambda: step.recording.recompute("h.0.up"))


def test_a_parameter_that_was_overwritten_in_the_step() -> None:
    w = torch.ones(8, requires_grad=True)
    optimizer = torch.optim.SGD([w], lr=0.1)
    with chainrule.record(keep="statistics") as recording:
        z = w * 2
        z.sum().backward()
        optimizer.step()
    assert _error(ReplayError, lambda: recording.recompute("z")) == (
        "the parameter w (8,) was not kept, and is no longer what the step began with: it was overwritten in the "
        f"recorded step, by optimizer.step() for one, or made unseen, or the recording was read from a file. {NO_WAY}"
    )


def test_parameters_that_a_pattern_keeps_outlive_the_optimizer() -> None:
    w = nn.Linear(8, 8)
    optimizer = torch.optim.SGD(w.parameters(), lr=0.1)
    x = torch.ones(2, 8)
    model = nn.Sequential(w, nn.Tanh())
    with chainrule.record(keep=["0"]) as recording:
        model(x).sum().backward()
        optimizer.step()
    assert recording["0"].data is not None
    assert recording["1"].data is None
    assert recording.recompute("1")["1"].data is not None


def test_buffers_of_batch_normalisation_that_were_not_kept() -> None:
    norm = nn.BatchNorm1d(8)
    x = torch.randn(4, 8, requires_grad=True)
    with chainrule.record(keep="statistics") as recording:
        norm(x).square().sum().backward()
    said = _error(ReplayError, recording.recompute)
    assert re.match(r"the buffer \S*running_mean \(8,\) was not kept, and is no longer what the step began with", said)


_clock = [0.0]


class Clock(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:  # type: ignore[override]
        _clock[0] += 1
        return x + _clock[0]

    @staticmethod
    def backward(ctx: object, upstream: Tensor) -> Tensor:  # type: ignore[override]
        return upstream


def test_an_operation_that_reads_a_clock() -> None:
    x = torch.zeros(8, requires_grad=True)
    with chainrule.record(keep="statistics") as recording:
        z = Clock.apply(x)
        z.sum().backward()
    said = _error(ReplayError, lambda: recording.recompute("z"))
    assert re.fullmatch(
        r"Clock, operation 0 \(test_recompute\.py:\d+\): run again, z comes out with other statistics than those "
        r"recorded \(norm 5\.65685, from 2 to 2; recorded: norm 2\.82843, from 1 to 1\)\. The operation reads what the "
        r"recording does not hold \(a clock, a random generator of its own, a buffer written unseen\)\. .*",
        said,
    )


def test_a_gradient_that_a_hook_changed() -> None:
    x = torch.ones(8, requires_grad=True)
    with chainrule.record(keep="statistics") as recording:
        z = x * 2
        z.register_hook(lambda g: g * 3)
        (z * z).sum().backward()
    said = _error(ReplayError, lambda: recording.recompute("z"))
    assert said.startswith("the gradient of z (test_recompute.py:")
    assert "recomputed, it has other statistics than those recorded" in said
    assert "A hook changed it" in said


def test_a_pass_that_began_with_a_large_gradient() -> None:
    x = torch.ones(8, requires_grad=True)
    with chainrule.record(keep="statistics") as recording:
        z = x * 2
        z.backward(torch.arange(8.0))
    said = _error(ReplayError, lambda: recording.recompute("x"))
    assert said.startswith("MulBackward0 (test_recompute.py:")
    assert "the gradient that arrived there was not kept, and no recorded node sent it" in said


def test_a_recording_that_was_read_from_a_file_has_no_parameters_to_run_on(tmp_path: object) -> None:
    Step("statistics").recording.save(f"{tmp_path}/step.safetensors")
    read = chainrule.load(f"{tmp_path}/step.safetensors")
    assert "the recording was read from a file" in _error(ReplayError, lambda: read.recompute("h.1"))


def test_what_is_next_to_zero_may_come_out_as_zero_and_the_other_way_round() -> None:
    exact = torch.tensor([0.0, 0.0, 1.0, -2.0])
    near = torch.tensor([1e-9, 0.0, 1.0, -2.0])
    other = torch.tensor([0.1, 0.0, 1.0, -2.0])
    for one, another, alike in ((exact, near, True), (near, exact, True), (exact, other, False), (other, exact, False)):
        assert _stands_for(one, another) == alike
    exact, near = torch.tensor([0.0, 0.0, 1.0] * 4), torch.tensor([0.0, 1e-9, 1.0] * 4)
    assert _stands_for(exact, near)
    for whole in (lambda y: torch.bucketize(y, torch.tensor([1e-10])), lambda y: y > 1e-10):
        assert not _stands_for(exact, near, whole)  # whole numbers and booleans are 0 or are not


def _stands_for(
    one: torch.Tensor, another: torch.Tensor, then: Callable[[torch.Tensor], torch.Tensor] = torch.neg
) -> bool:
    """Whether an operation that gave one tensor may give another one when it is run again, with what follows it."""
    given = [another, one]

    class Given(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            return given.pop().clone()

        @staticmethod
        def backward(ctx: Any, g: torch.Tensor) -> torch.Tensor:
            return g.sum()

    x = torch.tensor(2.0, requires_grad=True)
    with chainrule.record(keep="statistics") as recording:
        y = then(Given.apply(x))
    assert recording["y"].data is None
    assert recording["y"].shape == y.shape
    try:
        recording.recompute("y")
    except ReplayError:
        return False
    assert recording.recompute("y")["y"].data is not None
    assert len(given) == 1  # what the function changes is put back
    return True
