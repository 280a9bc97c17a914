"""Recording changes nothing, leaves nothing behind, holds nothing back, and is not changed by what comes after."""

from __future__ import annotations

import copy
import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from torch._C import _len_torch_function_stack
from torch.nn.modules import module as module_hooks
from torch.optim import optimizer as optimizer_hooks
from torch.utils._python_dispatch import _len_torch_dispatch_stack, return_and_correct_aliasing
from torch.utils._pytree import tree_map_only

import chainrule
from chainrule.errors import RecordingError
from chainrule.graph.reexecution import unobserved

Step = Callable[[nn.Module, torch.optim.Optimizer, Tensor, Tensor], Tensor]


class Perceptron(nn.Module):
    """Dropout draws random numbers, batch norm updates buffers, ReLU works in place."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.norm = nn.BatchNorm1d(8)
        self.drop = nn.Dropout(0.3)
        self.second = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.first(x)), inplace=True)
        return self.second(self.drop(x))


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, foreach=False),
    "sgd-foreach": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01, foreach=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.1, foreach=False),
    "adam-foreach": lambda p: torch.optim.Adam(p, lr=0.1, amsgrad=True, foreach=True),
    "adam-fused": lambda p: torch.optim.AdamW(p, lr=0.1, fused=True),
}


def ordinary(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> Tensor:
    optimizer.zero_grad()
    loss = F.cross_entropy(model(x), y)
    loss.backward()
    optimizer.step()
    return loss


def clipped(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> Tensor:
    optimizer.zero_grad(set_to_none=False)
    loss = F.cross_entropy(model(x), y)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 0.1)
    optimizer.step()
    return loss


def accumulating(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> Tensor:
    optimizer.zero_grad()
    (F.cross_entropy(model(x[:4]), y[:4]) / 2).backward()
    loss = F.cross_entropy(model(x[4:]), y[4:]) / 2
    loss.backward(retain_graph=True)
    loss.backward()
    optimizer.step()
    return loss


def train(step: Step, optimizer: str, recorded: bool) -> dict[str, Any]:
    """Three steps, and all that they leave behind."""
    torch.manual_seed(7)
    model = Perceptron()
    updates = OPTIMIZERS[optimizer](model.parameters())
    x, y = torch.randn(8, 6), torch.randint(3, (8,))
    losses = []
    for _ in range(3):
        if recorded:
            with chainrule.record():
                losses.append(step(model, updates, x, y))
        else:
            losses.append(step(model, updates, x, y))
    return {
        "losses": [loss.detach() for loss in losses],
        "gradients": [p.grad for p in model.parameters()],
        "model": model.state_dict(),
        "optimizer": updates.state_dict(),
        "rng": torch.get_rng_state(),
        "hooks": [vars(m) for m in model.modules()],
    }


def assert_same(left: Any, right: Any) -> None:
    assert type(left) is type(right)
    if isinstance(left, Tensor):
        assert left.dtype == right.dtype
        assert torch.equal(left, right)
    elif isinstance(left, dict):
        assert left.keys() == right.keys()
        for key in left:
            assert_same(left[key], right[key])
    elif isinstance(left, (list, tuple)):
        assert len(left) == len(right)
        for one, other in zip(left, right, strict=True):
            assert_same(one, other)
    elif not isinstance(left, nn.Module):
        assert left == right


@pytest.mark.parametrize("step", [ordinary, clipped, accumulating])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_recorded_step_is_bit_for_bit_the_same(step: Step, optimizer: str) -> None:
    assert_same(train(step, optimizer, recorded=True), train(step, optimizer, recorded=False))


# -- nothing is left --------------------------------------------------------------------------------------------------


def state_of_torch() -> dict[str, Any]:
    """Every place where a recorder could leave something."""
    hooks = {
        name: dict(value)
        for name, value in vars(module_hooks).items()
        if name.startswith("_global_") and isinstance(value, dict)
    }
    hooks |= {name: dict(value) for name, value in vars(optimizer_hooks).items() if name.startswith("_global_")}
    modes = (_len_torch_function_stack(), _len_torch_dispatch_stack())
    return {"hooks": hooks, "modes": modes, "grad": torch.is_grad_enabled()}


@pytest.fixture(autouse=True)
def _torch_is_left_as_it_was() -> Iterator[None]:
    before = state_of_torch()
    yield
    assert state_of_torch() == before


class Failing(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        raise ValueError("backward fails")


class FailingOptimizer(torch.optim.SGD):
    def step(self, closure: Any = None) -> None:
        with torch.no_grad():
            self.param_groups[0]["params"][0].add_(1)
        raise ValueError("the optimizer fails")


def fail_in_forward(model: nn.Module, x: Tensor) -> None:
    model(x).sum() + model(x[:, :2]).sum()


def fail_in_backward(model: nn.Module, x: Tensor) -> None:
    Failing.apply(model(x)).sum().backward()


def fail_in_optimizer(model: nn.Module, x: Tensor) -> None:
    optimizer = FailingOptimizer(model.parameters(), lr=0.1)
    model(x).sum().backward()
    optimizer.step()


def fail_in_hook(model: nn.Module, x: Tensor) -> None:
    out = model(x)
    out.register_hook(lambda gradient: 1 / 0)
    out.sum().backward()


@pytest.mark.parametrize("fail", [fail_in_forward, fail_in_backward, fail_in_optimizer, fail_in_hook])
def test_nothing_is_left_after_an_exception(fail: Callable[[nn.Module, Tensor], None]) -> None:
    model, x = Perceptron(), torch.randn(4, 6)
    before = state_of_torch()
    attributes = [dict(vars(module)) for module in model.modules()]
    with pytest.raises((ValueError, RuntimeError, ZeroDivisionError)) as raised, chainrule.record() as recording:
        fail(model, x)
    assert state_of_torch() == before
    assert_same([dict(vars(module)) for module in model.modules()], attributes)
    assert recording.error == f"{type(raised.value).__name__}: {raised.value}"
    assert len(recording.graph.operations) > 3
    with chainrule.record() as again:  # the next recording is whole
        model(x).sum().backward()
    assert again.error is None
    assert all(parameter.grad is not None for parameter in again.parameters.values())


def test_the_nodes_have_no_hook_left() -> None:
    x = torch.randn(3, requires_grad=True)
    with chainrule.record() as recording:
        y = (x * 2).sum()
        y.backward(retain_graph=True)
    passages = recording.nodes[-1].executions
    y.backward()
    assert len(passages) == 1
    assert recording.nodes[-1].executions == passages
    assert not hasattr(y.grad_fn, "_chainrule")


def test_an_exception_outside_torch_is_passed_on() -> None:
    with pytest.raises(KeyboardInterrupt), chainrule.record() as recording:
        torch.ones(2).sum()
        raise KeyboardInterrupt
    assert recording["sum"].data == 2


# -- what was recorded stays as it was --------------------------------------------------------------------------------


def test_in_place_operations_make_new_values() -> None:
    x = torch.tensor([-1.0, 2.0], requires_grad=True)
    with chainrule.record() as recording:
        h = x * 3
        h.add_(1)
        h.mul_(2)
        h[0] = 5.0
        F.relu_(h)
        h.sum().backward()
    assert torch.equal(recording["h@1"].data, torch.tensor([-3.0, 6.0]))
    versions = [v.data.tolist() for v in recording.graph.values if v.shape == (2,) and v.operation is not None]
    assert versions[0] == [-3.0, 6.0]
    assert [-2.0, 7.0] in versions
    assert [-4.0, 14.0] in versions
    assert [5.0, 14.0] in versions
    assert recording["h"].data.tolist() == [5.0, 14.0]
    assert x.grad.tolist() == [0.0, 6.0]


def test_a_write_to_a_view_makes_a_new_value_of_its_base_and_of_its_other_views() -> None:
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
    with chainrule.record() as recording:
        h = x * 1
        row = h[0]
        column = h[:, 0]
        row.mul_(10)
        total = (h * h).sum() + column.sum()
        total.backward()
    squared = next(
        operation
        for operation in recording.graph.operations
        if operation.name == "aten.mul.Tensor" and operation.arguments["self"] == operation.arguments["other"]
    )
    assert recording.graph.values[squared.arguments["self"].value].data.tolist() == [[10.0, 20.0], [3.0, 4.0]]
    assert recording.loss == 100 + 400 + 9 + 16 + 13
    assert x.grad is not None


def test_the_optimizer_and_a_later_step_change_nothing() -> None:
    torch.manual_seed(0)
    model, x, y = Perceptron(), torch.randn(8, 6), torch.randint(3, (8,))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    ordinary(model, optimizer, x, y)
    before = copy.deepcopy(model.state_dict())
    with chainrule.record() as recording:
        loss = clipped(model, optimizer, x, y)
    after = copy.deepcopy(model.state_dict())
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    state = copy.deepcopy(optimizer.state_dict()["state"])
    inputs, was = x.clone(), loss.item()
    x.zero_()
    loss.detach().zero_()
    for _ in range(2):
        clipped(model, optimizer, x + 1, y)
    model.eval()
    for name, parameter in recording.parameters.items():
        assert torch.equal(parameter.before, before[name])
        assert torch.equal(parameter.after, after[name])
    assert torch.equal(recording["x@1"].data, inputs)
    assert recording.loss == was
    assert all(module.training for module in recording.graph.modules)
    buffers = {v.name: v.data for v in recording.graph.values if v.kind == "buffer"}
    assert torch.equal(buffers["norm.running_mean"], before["norm.running_mean"])
    update = recording.graph.updates[0]
    for place, changed in enumerate(update.parameters):
        assert torch.equal(changed.grad, gradients[changed.name])  # as the optimizer met it: clipped
        assert torch.equal(changed.before, before[changed.name])
        assert torch.equal(changed.after, after[changed.name])
        assert not torch.equal(changed.state_before["exp_avg"], state[place]["exp_avg"])
    kinds = [event.kind for event in recording.graph.events]
    assert "zero_grad" in kinds
    assert "clip_grad_norm_" in kinds


# -- bad input --------------------------------------------------------------------------------------------------------


def test_no_backward() -> None:
    with chainrule.record() as recording:
        Perceptron()(torch.randn(4, 6))
    assert recording.loss is None
    assert recording.graph.backwards == ()
    assert all(parameter.grad is None for parameter in recording.parameters.values())
    assert any(node.name == "AddmmBackward0" for node in recording.nodes)


def test_backward_on_a_non_scalar_without_a_gradient() -> None:
    x = torch.randn(3, requires_grad=True)
    with pytest.raises(RuntimeError, match="scalar"), chainrule.record() as recording:
        y = x * 2
        y.backward()
    assert recording["y"].shape == (3,)
    assert all(node.executions == () for node in recording.nodes)


def test_a_second_backward_on_a_freed_graph() -> None:
    x = torch.randn(3, requires_grad=True)
    with pytest.raises(RuntimeError, match="second time"), chainrule.record() as recording:
        y = (x * x).sum()
        y.backward()
        y.backward()
    assert recording.loss == pytest.approx(y.item())
    assert torch.equal(recording.parameters["x"].grad, 2 * x.detach())
    assert torch.equal(recording["y"].grad, torch.tensor(1.0))


def test_a_nested_recording_is_refused_and_the_outer_goes_on() -> None:
    x = torch.randn(3, requires_grad=True)
    with chainrule.record() as outer:
        y = x * 2
        with pytest.raises(RecordingError, match="inside"), chainrule.record():
            pass
        y.sum().backward()
    assert outer["y"].grad.tolist() == [1.0, 1.0, 1.0]


def test_an_open_recording_cannot_be_read() -> None:
    with chainrule.record() as recording, pytest.raises(RecordingError, match="still running"):
        _ = recording.graph


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_an_empty_batch() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.ReLU())
    with chainrule.record() as recording:
        model(torch.empty(0, 3)).sum().backward()
    assert recording.loss == 0
    assert torch.equal(recording.parameters["0.weight"].grad, torch.zeros(2, 3))


def test_nan_is_recorded() -> None:
    x = torch.tensor([-1.0, 1.0], requires_grad=True)
    with chainrule.record() as recording:
        y = torch.log(x)
        y.sum().backward()
    assert recording["y"].data.isnan().tolist() == [True, False]
    assert recording.loss != recording.loss


def test_a_crash_in_the_forward_pass_keeps_what_ran_and_names_the_place() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(5, 2))
    with pytest.raises(RuntimeError, match="shapes"), chainrule.record() as recording:
        model(torch.randn(2, 3))
    assert "shapes" in recording.error
    failed = [call for call in recording.graph.calls if call.error is not None]
    assert [(call.name, call.module) for call in failed] == [("linear", "2")]
    assert failed[0].place.expression == "model(torch.randn(2, 3))"
    assert recording["1"].shape == (2, 4)


# -- nothing is held --------------------------------------------------------------------------------------------------


def test_a_recording_is_freed_by_reference_counting_alone() -> None:
    torch.manual_seed(0)
    model, x, y = Perceptron(), torch.randn(8, 6), torch.randint(3, (8,))
    optimizer = torch.optim.Adam(model.parameters())
    ordinary(model, optimizer, x, y)
    gc.collect()

    def ours() -> list[object]:
        return [each for each in gc.get_objects() if type(each).__name__ in ("Tape", "Recorder", "Recording")]

    of_others = set(map(id, ours()))  # what tests before this one still hold
    gc.disable()
    try:
        for read in (False, True):
            with chainrule.record() as recording:
                loss = clipped(model, optimizer, x, y)
            if read:
                assert recording.graph.nodes
            watched = [weakref.ref(recording), weakref.ref(loss)]
            del recording, loss
            assert [each() for each in watched] == [None, None]
            assert [each for each in ours() if id(each) not in of_others] == []
    finally:
        gc.enable()


def test_memory_stays_flat() -> None:
    torch.manual_seed(0)
    model, x, y = Perceptron(), torch.randn(8, 6), torch.randint(3, (8,))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def objects() -> int:
        gc.collect()
        return len(gc.get_objects())

    def steps(count: int) -> None:
        for _ in range(count):
            with chainrule.record() as recording:
                ordinary(model, optimizer, x, y)
            assert recording.loss is not None

    steps(5)
    before = objects()
    steps(30)
    assert objects() - before < 30


@pytest.mark.parametrize("before", [(700, 10, 10), (0, 10, 10), (90_000, 5, 5)])
def test_garbage_is_collected_less_often_in_the_block_and_as_before_after_it(before):
    threshold = gc.get_threshold()
    try:
        gc.set_threshold(*before)
        with pytest.raises(ZeroDivisionError), chainrule.record():
            assert gc.get_threshold() == (max(before[0], 50_000) if before[0] else 0, *before[1:])
            1 / 0  # noqa: B018
        assert gc.get_threshold() == before
        with chainrule.record():
            gc.set_threshold(123, *before[1:])  # the user's own wish
        assert gc.get_threshold() == (123, *before[1:])
    finally:
        gc.set_threshold(*threshold)


class Wrapper(Tensor):
    """Holds a tensor on which its operations run, and has no memory itself, as tensors of quantized weights do."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> Wrapper:
        made: Wrapper = Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)  # type: ignore[attr-defined]
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        plain, named = tree_map_only(Wrapper, lambda each: each.inner, (args, kwargs or {}))
        return return_and_correct_aliasing(func, args, kwargs or {}, tree_map_only(Tensor, cls, func(*plain, **named)))


@pytest.mark.parametrize("keep", ["all", "statistics"])
def test_a_parameter_that_wraps_another_tensor_is_trained_as_ever(keep: str) -> None:
    def trained(recorded: bool) -> tuple[Tensor, chainrule.Recording | None]:
        torch.manual_seed(0)
        weight = nn.Parameter(Wrapper(torch.randn(100, 100)))
        optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9)
        with chainrule.record(keep=keep) if recorded else nullcontext() as recording:
            for _ in range(2):
                optimizer.zero_grad()
                (weight * 2).mul_(3).square().mean().backward()
                optimizer.step()
        return weight.detach().inner, recording

    plain, _ = trained(False)
    same, recording = trained(True)
    assert torch.equal(plain, same)
    assert recording is not None
    weights = [value for value in recording.graph.values if value.shape == (100, 100)]
    assert weights
    assert all(value.data is None for value in weights)
    assert "weight" in str(recording)


def test_unobserved_work_is_seen_by_no_mode_and_everything_is_put_back() -> None:
    weight = torch.ones(3, requires_grad=True)
    with chainrule.record() as recording:
        before = _len_torch_dispatch_stack(), _len_torch_function_stack()
        with pytest.raises(ZeroDivisionError), unobserved():
            assert (_len_torch_dispatch_stack(), (weight * 2).requires_grad) == (0, False)
            1 / 0  # noqa: B018
        assert (_len_torch_dispatch_stack(), _len_torch_function_stack()) == before
        (weight * 3).sum().backward()
    assert [call.name for call in recording.graph.calls] == ["mul", "sum"]


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 2 * grad


def test_a_function_reads_as_it_was_written() -> None:
    before, x = Doubled.__dict__["forward"].__func__, torch.ones(2, requires_grad=True)
    seen = []

    def tripled(ctx: Any, x: Tensor) -> Tensor:
        seen.append(Doubled.forward)
        return 3 * x

    try:
        with chainrule.record(namespace={}) as recording:
            assert Doubled.forward is before
            first = Doubled.apply(x)
            Doubled.forward = staticmethod(tripled)
            assert Doubled.forward is tripled
            (first + Doubled.apply(x)).sum().backward()
        assert Doubled.forward is tripled
    finally:
        Doubled.forward = staticmethod(before)
    assert seen == [tripled]
    assert "forward" not in vars(type(Doubled))
    assert [op.name for op in recording.graph.operations].count("Doubled") == 2


def test_a_function_of_another_thread_is_not_recorded() -> None:
    seen: list[Any] = []

    def elsewhere() -> None:
        seen.append(Doubled.apply(torch.ones(2, requires_grad=True)).grad_fn)

    with chainrule.record(namespace={}) as recording:
        other = threading.Thread(target=elsewhere)
        other.start()
        other.join()
        Doubled.apply(torch.ones(2, requires_grad=True)).sum().backward()
    assert seen[0] is not None
    assert [op.name for op in recording.graph.operations].count("Doubled") == 1
