"""Modes that the user enters inside of hooks, functions, generators: the run and PyTorch's state are as without us."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import chainrule
from chainrule.graph.statistics import prepare
from tests.reliability.test_user_modes import MODES, Operations, flags, model, restore, same, state

NAMES = ("device", "default-device", "flops", "operations", "functions", "doubling", "autocast", "hooks", "anomaly")
Net = nn.Sequential
Setup = Callable[[Net, torch.optim.Optimizer, Callable[[], Any]], None]


def around_a_module(net: Net, optimizer: torch.optim.Optimizer, mode: Callable[[], Any]) -> None:
    entered = []
    net[2].register_forward_pre_hook(lambda *_: (entered.append(mode()), entered[-1].__enter__())[:0] or None)
    net[4].register_forward_hook(lambda *_: entered.pop().__exit__(None, None, None))


def in_a_gradient(net: Net, optimizer: torch.optim.Optimizer, mode: Callable[[], Any]) -> None:
    def hook(gradient: Tensor) -> Tensor:
        with mode():
            return gradient * 2 + torch.zeros(1)

    net[0].weight.register_hook(hook)
    net[2].register_forward_hook(lambda module, args, out: out.register_hook(hook) and None)


def around_a_backward(net: Net, optimizer: torch.optim.Optimizer, mode: Callable[[], Any]) -> None:
    def wrapped(module: nn.Module, given: Any, sent: Any) -> None:
        with mode():
            torch.ones(2).sum()

    net[4].register_full_backward_hook(wrapped)
    net[4].register_full_backward_pre_hook(lambda module, sent: wrapped(module, sent, sent))


def around_the_update(net: Net, optimizer: torch.optim.Optimizer, mode: Callable[[], Any]) -> None:
    entered = []
    optimizer.register_step_pre_hook(lambda *_: (entered.append(mode()), entered[-1].__enter__())[:0] or None)
    optimizer.register_step_post_hook(lambda *_: entered.pop().__exit__(None, None, None))


def in_packing(net: Net, optimizer: torch.optim.Optimizer, mode: Callable[[], Any]) -> None:
    def packed(tensor: Tensor) -> Tensor:
        with mode():
            return tensor.detach() * 1

    saving = torch.autograd.graph.saved_tensors_hooks(packed, packed)
    net.register_forward_pre_hook(lambda *_: saving.__enter__())
    net.register_forward_hook(lambda *_: saving.__exit__())


def in_a_function(net: Net, optimizer: torch.optim.Optimizer, mode: Callable[[], Any]) -> None:
    class Own(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            with mode():
                return x * 2

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            with mode(), torch.enable_grad():
                x = torch.ones(3, requires_grad=True)
                (x * x).sum().backward()
            return gradient * 2

    net[2].register_forward_hook(lambda module, args, out: Own.apply(out))


def in_a_checkpoint(net: Net, optimizer: torch.optim.Optimizer, mode: Callable[[], Any]) -> None:
    inner = net[0].forward

    def moded(x: Tensor) -> Tensor:
        with mode():
            return inner(x)

    net[0].forward = lambda x: checkpoint(moded, x, use_reentrant=False)


def in_a_reentrant_checkpoint(net: Net, optimizer: torch.optim.Optimizer, mode: Callable[[], Any]) -> None:
    inner = net[0].forward

    def moded(x: Tensor) -> Tensor:
        with mode():
            return inner(x)

    net[0].forward = lambda x: checkpoint(moded, x.requires_grad_(), use_reentrant=True)


def in_a_generator(net: Net, optimizer: torch.optim.Optimizer, mode: Callable[[], Any]) -> None:
    """A mode that ends when a generator is thrown away, in the middle of the next forward pass."""

    def held() -> Iterator[None]:
        with mode():
            yield

    alive: list[Iterator[None]] = []

    def hook(*_: Any) -> None:
        alive.clear()
        generator = held()
        next(generator)
        alive.append(generator)

    net[1].register_forward_hook(hook)
    optimizer.register_step_pre_hook(lambda *_: alive.clear())


def in_an_exit_stack(net: Net, optimizer: torch.optim.Optimizer, mode: Callable[[], Any]) -> None:
    stack = ExitStack()
    net[0].register_forward_pre_hook(lambda *_: stack.enter_context(mode()) and None)
    net[1].register_forward_pre_hook(lambda *_: stack.enter_context(torch.no_grad()) and None)
    net[1].register_forward_hook(lambda *_: stack.close())


SETUPS: tuple[Setup, ...] = (
    around_a_module, in_a_gradient, around_a_backward, around_the_update, in_packing, in_a_function, in_a_checkpoint,
    in_a_reentrant_checkpoint, in_a_generator, in_an_exit_stack,
)  # fmt: skip
WAYS: dict[str, tuple[Callable[[], Any], Callable[..., Any]]] = {
    "record": (chainrule.record, lambda *_: nullcontext()),
    "record-statistics": (lambda: chainrule.record(keep="statistics"), lambda *_: nullcontext()),
    "watch-1": (nullcontext, lambda *given: chainrule.watch(*given, every=1)),
    "watch-2": (nullcontext, lambda *given: chainrule.watch(*given, every=2)),
}


QUICK = {"record", "watch-2"}  # whose watched steps keep statistics, beside steps that are not watched


def trained(
    setup: Callable[[Net, torch.optim.Optimizer], None], recorded: Callable[[], Any], watched: Callable[..., Any]
) -> list[Any]:
    """Three steps, and all that they leave behind."""
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    x, y = torch.randn(8, 6), torch.randint(3, (8,))
    setup(net, optimizer)
    seen: list[Any] = []
    try:
        with watched(net, optimizer):
            for _ in range(3):
                with recorded():
                    loss = F.cross_entropy(net(x), y) + torch.zeros(1).sum()
                    seen += [state(), loss.detach()]
                    loss.backward()
                    seen += [state(), [p.grad for p in net.parameters()]]
                    optimizer.step()
                    seen.append(state())
                    optimizer.zero_grad()
                seen.append(state())
    except Exception as error:
        seen.append(f"{type(error).__name__}: {error}")
    net[1]._forward_hooks.clear()  # what they hold ends now, not in another test
    optimizer._optimizer_step_pre_hooks.clear()
    return [*seen, list(net.state_dict().values()), torch.get_rng_state(), flags()]


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    restore()
    yield
    restore()


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@pytest.mark.parametrize("setup", SETUPS)
@pytest.mark.parametrize("way", [way if way in QUICK else pytest.param(way, marks=pytest.mark.slow) for way in WAYS])
def test_a_mode_in_a_hook(setup: Setup, way: str) -> None:
    for name in NAMES:
        results = []
        for ways in ((nullcontext, lambda *_: nullcontext()), WAYS[way]):
            told: list[Any] = []

            def mode(name: str = name, told: list[Any] = told) -> Any:
                made = MODES[name]()
                told.append(getattr(made, "seen", None))
                return made

            results.append([*trained(lambda net, optimizer, mode=mode: setup(net, optimizer, mode), *ways), told])
            restore()
        bare, ours = results
        assert same(bare, ours), name


@pytest.mark.parametrize("way", WAYS)
def test_an_update_inside_of_the_backward_pass(way: str) -> None:
    """The step ends, and the next may begin, while the recorder's own modes handle the call of `backward`."""

    def setup(net: Net, optimizer: torch.optim.Optimizer) -> None:
        net[0].bias.register_post_accumulate_grad_hook(lambda _: optimizer.step())

    bare = trained(setup, nullcontext, lambda *_: nullcontext())
    assert same(bare, trained(setup, *WAYS[way]))


def test_a_mode_that_a_recording_begins_and_ends_in() -> None:
    """A mode that handles a call is off the stack while it does; a recording made in there leaves none behind."""

    class Recording(Operations):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            with chainrule.record() as recording:
                out = func(*args, **(kwargs or {}))
            assert len(recording.graph.operations) == 1
            return out

    with Recording():
        out = torch.ones(3).mul(2)
        assert state()[1] == ["Recording"]
    assert out.tolist() == [2, 2, 2]
    assert flags() == [0, 0, False, False, False]


def test_the_first_recording_of_a_process_that_begins_in_a_mode_shows_it_nothing() -> None:
    seen: list[str] = []

    class Listening(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    prepare.cache_clear()
    with Listening(), chainrule.record(keep="statistics"):
        pass
    assert seen == []
