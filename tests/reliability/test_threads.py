"""What runs in another thread passes as if no recording were there, and the recording does not see it."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import pytest
import torch
import torch._dynamo.eval_frame as compiler
from torch import Tensor, nn
from torch.nn.modules import module as module_hooks
from torch.optim import optimizer as optimizer_hooks
from torch.utils import _python_dispatch
from torch.utils.checkpoint import checkpoint

import chainrule
from tests.reliability.injection import state_of_process

WAIT = 60  # seconds after which a test that hangs fails


class Thread(threading.Thread):
    """Runs a function; `result()` waits, and raises what it raised."""

    def __init__(self, work: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self._work = work
        self._result: Any = None
        self._error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self._result = self._work()
        except BaseException as error:
            self._error = error

    def result(self) -> Any:
        self.join(WAIT)
        assert not self.is_alive(), "the thread hangs"
        if self._error is not None:
            raise self._error
        return self._result


class Training:
    """A small training; `between` is called between its parts."""

    _one_at_a_time = threading.Lock()  # there is one random generator for all threads

    def __init__(self, seed: int) -> None:
        with self._one_at_a_time:
            torch.manual_seed(seed)
            self.x, self.y = torch.randn(8, 4), torch.randn(8, 2)
            self.model = nn.Sequential(nn.Linear(4, 6 + seed), nn.Tanh(), nn.Linear(6 + seed, 2))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)

    def step(self, between: Callable[[], Any] = lambda: None) -> float:
        self.optimizer.zero_grad()
        between()
        out = self.model(self.x)
        between()
        loss = (out - self.y).square().mean()
        loss.backward()
        between()
        self.optimizer.step()
        between()
        return loss.item()


def modes_here() -> tuple[int, int]:
    return torch._C._len_torch_function_stack(), torch._C._len_torch_dispatch_stack()


def facts(recording: chainrule.Recording) -> dict[str, Any]:
    graph = recording.graph
    return {
        "operations": [operation.name for operation in graph.operations],
        "modules": [(module.path, module.class_name) for module in graph.modules],
        "passes": [len(node.executions) for node in graph.nodes],
        "updates": len(graph.updates),
        "loss": recording.loss,
        "verdicts": {row.verdict for row in recording.verify().rows},
    }


@pytest.fixture(autouse=True)
def _nothing_is_left_on() -> Iterator[None]:
    before = state_of_process()
    yield
    assert state_of_process() == before


def test_a_thread_trains_while_another_is_recorded() -> None:
    """Whatever the recorded thread is in the middle of, the other takes a whole step."""
    alone, other, recorded = Training(1), Training(1), Training(0)
    expected = [alone.step() for _ in range(5)]
    with chainrule.record() as recording:
        recorded.step()
    expected_facts = facts(recording)
    recorded = Training(0)
    losses: list[float] = []

    def step() -> tuple[float, tuple[int, int]]:
        return other.step(), modes_here()

    def step_elsewhere() -> None:
        loss, modes = Thread(step).result()
        losses.append(loss)
        assert modes == (0, 0)

    recorded.optimizer.register_step_pre_hook(lambda *given: step_elsewhere())  # the recorded thread is in its step
    with chainrule.record() as recording:
        recorded.step(step_elsewhere)
    assert losses == expected
    assert facts(recording) == expected_facts


def test_two_threads_record_at_once() -> None:
    expected = {}
    for seed in (0, 1):
        training = Training(seed)
        with chainrule.record() as recording:
            training.step()
        expected[seed] = facts(recording)
    barrier = threading.Barrier(2)

    def turn() -> None:
        barrier.wait(WAIT)

    def work(seed: int) -> list[dict[str, Any]]:
        found = []
        for late in (False, True, seed == 0, seed == 1):  # begin and end together, or one inside of the other
            training = Training(seed)
            if late:
                turn()
            with chainrule.record() as recording:
                training.step(turn)
            if not late:
                turn()
            found.append(facts(recording))
            assert modes_here() == (0, 0)
        return found

    threads = [Thread(lambda seed=seed: work(seed)) for seed in (0, 1)]
    results = [thread.result() for thread in threads]
    for seed, found in enumerate(results):
        for each in found:
            assert each == expected[seed]


def test_a_thread_draws_while_a_recording_is_verified() -> None:
    """The random generators belong to all threads: a check that draws nothing does not set them back."""
    training = Training(0)
    with chainrule.record() as recording:
        training.step()
    torch.manual_seed(3)
    drawn, verified = [], threading.Event()

    def draw() -> None:
        while not drawn or not verified.is_set():
            drawn.append(torch.rand(3).tolist())
        drawn.append(torch.rand(3).tolist())

    elsewhere = Thread(draw)
    recording.verify()
    verified.set()
    elsewhere.result()
    torch.manual_seed(3)
    assert drawn == [torch.rand(3).tolist() for _ in drawn]


def test_the_recorded_model_is_evaluated_beside() -> None:
    training = Training(0)
    with chainrule.record() as recording:
        training.step()
    expected = facts(recording)
    training = Training(0)

    def evaluate() -> Tensor:
        with torch.no_grad():
            return training.model(training.x)

    def evaluate_elsewhere() -> None:
        assert Thread(evaluate).result().requires_grad is False

    with chainrule.record() as recording:
        training.step(evaluate_elsewhere)
    assert facts(recording) == expected


@pytest.mark.parametrize("keep", ["all", "statistics"])
def test_replicas_run_in_threads_of_their_own(keep: str) -> None:
    """As nn.DataParallel does: the same parameters in two threads, and one backward pass through both."""

    def step(training: Training) -> None:
        threads = [Thread(lambda part=part: training.model(part)) for part in training.x.chunk(2)]
        out = torch.cat([thread.result() for thread in threads])
        (out - training.y).square().mean().backward()
        training.optimizer.step()

    bare, recorded = Training(0), Training(0)
    step(bare)
    with chainrule.record(keep=keep) as recording:
        step(recorded)
    for one, other in zip(bare.model.parameters(), recorded.model.parameters(), strict=True):
        assert torch.equal(one, other)
        assert torch.equal(one.grad, other.grad)
    assert recording.graph.modules == ()  # they ran in threads that are not recorded
    assert len(recording.graph.backwards) == len(recording.graph.updates) == 1
    assert "disagrees" not in {row.verdict for row in recording.verify().rows}


def test_a_backward_pass_of_another_thread_through_hooked_nodes() -> None:
    x = torch.ones(3, requires_grad=True)
    with chainrule.record() as recording:
        y = x.exp().sum()
        y.backward(retain_graph=True)
        elsewhere = Thread(lambda: torch.autograd.grad(y, x, retain_graph=True)[0])
        assert torch.equal(elsewhere.result(), x.grad)
    assert [len(node.executions) for node in recording.nodes if node.name != "AccumulateGrad"] == [1, 1]


def test_a_thread_that_records_passes_back_through_nodes_that_another_has_hooked() -> None:
    x = torch.ones(3, requires_grad=True)

    def backward() -> chainrule.Recording:
        with chainrule.record() as recording:
            torch.autograd.grad(y, x, retain_graph=True)
        return recording

    with chainrule.record() as recording:
        y = x.exp().sum()
        y.backward(retain_graph=True)
        elsewhere = Thread(backward).result()
    assert [len(node.executions) for node in recording.nodes if node.name != "AccumulateGrad"] == [1, 1]
    assert len(elsewhere.graph.backwards) == 1


class Reentrant(torch.autograd.Function):
    """Runs a backward pass inside of its backward, as checkpointing does. Autograd runs the 61st in another thread."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, depth: int, seen: list[str]) -> Tensor:
        ctx.depth, ctx.seen = depth, seen
        ctx.save_for_backward(x)
        return x * 1.5

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        ctx.seen.append(threading.get_ident())
        (x,) = ctx.saved_tensors
        with torch.enable_grad():
            inner = x.detach().requires_grad_()
            out = Reentrant.apply(inner, ctx.depth - 1, ctx.seen) if ctx.depth else inner * 1.5
        out.backward(upstream)
        return inner.grad, None, None


def test_threads_of_autograd_belong_to_the_pass_that_was_recorded() -> None:
    """A device's nodes run in such threads. On the processor, only passes inside of 60 others do.

    PyTorch lets no child of a process with such threads go backward, and other tests fork.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        pool.submit(passes_inside_of_passes).result(WAIT)


def passes_inside_of_passes() -> None:
    def run() -> tuple[Tensor, list[int]]:
        x, seen = torch.ones(2, requires_grad=True), []
        Reentrant.apply(x, 70, seen).sum().backward()
        return x.grad, seen

    bare, _ = run()
    with chainrule.record() as recording:
        gradient, seen = run()
    assert torch.equal(bare, gradient)
    assert len(set(seen)) > 1
    assert len(recording.graph.backwards) == 72
    assert sum(node.name == "ReentrantBackward" and len(node.executions) == 1 for node in recording.nodes) == 71


def test_checkpoints_beside_a_thread_that_trains() -> None:
    training, other = Training(0), Training(1)

    def loss() -> Tensor:
        hidden = checkpoint(training.model[:2], training.x, use_reentrant=False)
        return training.model[2](hidden).square().mean()

    loss().backward()
    bare = [parameter.grad for parameter in training.model.parameters()]
    training.optimizer.zero_grad()
    going = threading.Event()

    def train() -> None:
        while not going.is_set():
            other.step()

    thread = Thread(train)
    for _ in range(20):
        training.optimizer.zero_grad()
        with chainrule.record() as recording:
            loss().backward()
        assert [module.path for module in recording.graph.modules]
    going.set()
    thread.result()
    for parameter, gradient in zip(training.model.parameters(), bare, strict=True):
        assert torch.equal(parameter.grad, gradient)


# -- hooks of the whole process ---------------------------------------------------------------------------------------


def test_recordings_begin_and_end_while_another_thread_calls_hooks() -> None:
    """PyTorch iterates over its dictionaries meanwhile, so they may not change."""
    inside, go_on, calls = threading.Event(), threading.Event(), []

    def slow(*given: Any) -> None:
        if threading.current_thread() is not threading.main_thread():
            calls.append(1)
            inside.set()
            assert go_on.wait(WAIT)
            go_on.clear()

    handles = [
        optimizer_hooks.register_optimizer_step_pre_hook(slow),
        optimizer_hooks.register_optimizer_step_post_hook(slow),
        module_hooks.register_module_forward_pre_hook(slow),
        module_hooks.register_module_forward_hook(slow, always_call=True),
    ]
    recorded, other = Training(0), Training(1)
    for begins_first in (False, True):
        thread = None
        if begins_first:
            session = chainrule.record()
            session.__enter__()
        thread = Thread(other.step)
        for _ in range(2 + 2 * 4):  # before and after the step, and each of four modules
            assert inside.wait(WAIT)
            inside.clear()
            if begins_first:
                session.__exit__(None, None, None)
                session = chainrule.record()
                session.__enter__()
            else:
                with chainrule.record():
                    recorded.step()
            go_on.set()
        thread.result()
        if begins_first:
            session.__exit__(None, None, None)
    for handle in handles:
        handle.remove()
    assert len(calls) == 20


def test_hooks_of_the_users_come_and_go_as_ever() -> None:
    training, called = Training(0), []

    def note(name: str) -> Callable[..., None]:
        return lambda *given: called.append(name)

    before = optimizer_hooks.register_optimizer_step_pre_hook(note("before"))
    with chainrule.record():
        within = optimizer_hooks.register_optimizer_step_pre_hook(note("within"))
        module = module_hooks.register_module_forward_hook(note("module"))
        training.step()
        before.remove()
        training.step()
    training.step()
    module.remove()
    within.remove()
    training.step()
    assert called == [*["module"] * 4, "before", "within", *["module"] * 4, "within", *["module"] * 4, "within"]


def test_other_threads_compile_and_use_modes_as_ever() -> None:
    def elsewhere() -> tuple[str, bool]:
        return compiler._stance.stance, _python_dispatch.is_in_torch_dispatch_mode()

    with chainrule.record():
        assert compiler._stance.stance == "force_eager"
        assert Thread(elsewhere).result() == ("default", False)
    first, second = chainrule.record(), threading.Event()
    done = threading.Event()

    def overlapping() -> None:
        with chainrule.record():
            second.set()
            assert done.wait(WAIT)

    first.__enter__()
    thread = Thread(overlapping)
    assert second.wait(WAIT)
    first.__exit__(None, None, None)
    assert elsewhere() == ("default", False)
    done.set()
    thread.result()
    assert elsewhere() == ("default", False)


@pytest.mark.slow
def test_many_threads_at_random() -> None:
    """Each trains by itself, and records some of its steps: the losses are those of the same training alone."""
    seeds, steps = range(6), 40
    expected = []
    for seed in seeds:
        training = Training(seed)
        expected.append([training.step() for _ in range(steps)])
    trainings = [Training(seed) for seed in seeds]

    def work(seed: int) -> list[float]:
        losses = []
        for number in range(steps):
            if (number * 7 + seed) % 3:
                losses.append(trainings[seed].step())
            else:
                with chainrule.record(keep=("all", "statistics")[number % 2]) as recording:
                    losses.append(trainings[seed].step())
                assert len(recording.graph.modules) == 4
                assert recording.loss == losses[-1]
        return losses

    threads = [Thread(lambda seed=seed: work(seed)) for seed in seeds]
    assert [thread.result() for thread in threads] == expected
