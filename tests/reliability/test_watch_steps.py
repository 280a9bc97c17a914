"""Every kind of training loop: as many steps are watched as are made, or the watch says why not."""

import warnings
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing._internal.two_tensor import TwoTensor

import chainrule
from chainrule.errors import ChainruleWarning
from tests.reliability.kinds_of_loops import (
    KINDS,
    OWN_MODEL_AND_OPTIMIZER,
    STEPS,
    X,
    Y,
    in_backward,
    loss_of,
    model,
    once,
    plain,
    sgd,
    with_both,
)

pytestmark = pytest.mark.trains


def trained(loop, watch):
    """How many steps a loop makes inside of a watch, and the sentences of warnings."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with watch:
            made = sum(1 for _ in loop)
    return made, [str(each.message) for each in told if each.category is ChainruleWarning]


@pytest.mark.parametrize("every", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", KINDS)
def test_every_step_is_watched(name, every):
    """Nothing is given to the watch; the training is bit for bit the same."""
    ends = {}
    for watched in (False, True):
        torch.manual_seed(0)
        net = model()
        loop = KINDS[name](net, sgd(net.parameters()))
        watch = chainrule.watch(every=every) if watched else nullcontext()
        made, told = trained(loop, watch)
        ends[watched] = [each.clone() for each in net.parameters()]
    assert all(map(torch.equal, ends[False], ends[True]))
    assert not told
    assert watch.step_number == made
    assert watch.watched == (made if every == 1 else made // 2 + 1)
    assert None not in [facts.loss for facts in watch.history.steps]


@pytest.mark.parametrize("loop", OWN_MODEL_AND_OPTIMIZER)
def test_every_step_of_a_given_model_and_optimizer_is_watched(loop):
    torch.manual_seed(0)
    net = model()
    optimizer = sgd(net.parameters())
    watch = chainrule.watch(net, optimizer)
    made, told = trained(loop(net, optimizer), watch)
    assert not told
    assert (watch.step_number, watch.watched) == (made, made)


def test_given_optimizers_inside_of_backward():
    net = model()
    optimizers = in_backward(net)
    watch = chainrule.watch(net, optimizers)
    with watch:
        for _ in range(STEPS):
            loss_of(net).backward()
    assert (watch.step_number, watch.watched) == (STEPS, STEPS)
    assert {name for kind, name in watch.history.series if kind == "update"} == {n for n, _ in net.named_parameters()}


def of_a_gan(generator, critic, optimizers, critic_steps, iterations=4):
    noise = torch.randn(16, 4)
    for _ in range(iterations):
        for _ in range(critic_steps):
            optimizers[1].zero_grad()
            (critic(X[:, :3]).mean() - critic(generator(noise).detach()).mean()).backward()
            optimizers[1].step()
        optimizers[0].zero_grad()
        critic(generator(noise)).mean().backward()
        optimizers[0].step()
        yield


def test_given_optimizers_that_share_parameters():
    net = model()
    optimizers = [sgd(net.parameters()), torch.optim.Adam(net[2].parameters())]
    made, told = trained(with_both(net, *optimizers), watch := chainrule.watch(net, optimizers))
    assert not told
    assert (watch.step_number, watch.watched) == (made, made)


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("critic_steps", [1, 5])
def test_a_gan_whose_critic_steps_more_often(given, critic_steps):
    """A training step is a round of both, the first one too: the critic's first step has used the generator."""
    generator, critic = model(), nn.Linear(3, 1)
    optimizers = [sgd(generator.parameters()), sgd(critic.parameters())]
    watch = chainrule.watch([generator, critic], optimizers) if given else chainrule.watch()
    made, told = trained(of_a_gan(generator, critic, optimizers, critic_steps), watch)
    assert not told
    assert watch.watched == watch.step_number
    assert watch.step_number == made


def test_an_optimizer_that_steps_too_rarely_is_not_waited_for_and_it_is_said():
    generator, critic = model(), nn.Linear(3, 1)
    optimizers = [sgd(generator.parameters()), sgd(critic.parameters())]
    watch = chainrule.watch([generator, critic], optimizers)
    _, told = trained(of_a_gan(generator, critic, optimizers, 30), watch)
    assert [each for each in told if "has not stepped in the last 20 steps of each other optimizer" in each]
    assert watch.watched == watch.step_number == 4 * 31 - 19  # the first 20 are one


def test_another_model_with_another_optimizer_than_the_given_ones_is_said():
    net = model()
    watch = chainrule.watch(net, sgd(net.parameters()))
    other = model(width=5)
    optimizer = sgd(other.parameters())

    def loop():
        for _ in range(25):
            yield from once(other, optimizer)

    _, told = trained(loop(), watch)
    assert [each for each in told if "another optimizer than the given one, SGD, and are not watched" in each]
    assert watch.step_number == 0


def test_another_model_than_the_given_one_is_said_and_watched_from_then_on():
    net = model()
    optimizer = sgd(net.parameters())
    watch = chainrule.watch(nn.Linear(1, 1), optimizer)
    made, told = trained(plain(net, optimizer), watch)
    assert told == ["chainrule: step 1 was not watched: none of the given models ran in it."]
    assert (watch.step_number, watch.watched) == (made, made - 1)


def test_a_forward_pass_from_before_the_watch_is_said():
    net = model()
    optimizer = sgd(net.parameters())
    loss = loss_of(net)

    def loop():
        loss.backward()
        optimizer.step()
        yield
        yield from plain(net, optimizer)

    made, told = trained(loop(), watch := chainrule.watch(net, optimizer))
    assert told == ["chainrule: step 1 was not watched: no forward pass ran in it in the thread of the watch."]
    assert (watch.step_number, watch.watched) == (made, made - 1)


def test_a_training_without_modules_is_watched_from_the_second_step_on():
    weight = torch.zeros(4, 3, requires_grad=True)
    optimizer = sgd([weight])

    def loop():
        for _ in range(STEPS):
            optimizer.zero_grad()
            F.cross_entropy(X @ weight, Y).backward()
            optimizer.step()
            yield

    watch = chainrule.watch(None, optimizer)
    made, told = trained(loop(), watch)
    assert told == ["chainrule: step 1 was not watched: no forward pass ran in it in the thread of the watch."]
    assert (watch.step_number, watch.watched) == (made, made - 1)
    assert {"parameter", "parameter gradient", "update"} <= {kind for kind, _ in watch.history.series}


def test_a_watch_keeps_no_optimizer_alive():
    import weakref

    net = model()
    with chainrule.watch(net) as watch:
        optimizer = torch.optim.Adam(net.parameters())
        for _ in once(net, optimizer):
            pass
        gone = weakref.ref(optimizer)
        del optimizer
        assert gone() is None
    assert watch.watched == 1


def test_an_interrupt_between_two_steps_that_the_training_survives():
    net = model()
    optimizer = sgd(net.parameters())
    with chainrule.watch(net, optimizer) as watch:
        try:
            loss_of(net)
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            pass
        for _ in plain(net, optimizer):
            pass
    assert (watch.step_number, watch.watched) == (STEPS, STEPS)


def test_a_watch_that_cannot_begin_says_so_and_answers(monkeypatch):
    def fail(*given):
        raise ValueError("a bug of ours")

    monkeypatch.setattr("chainrule.monitor.watcher.ScalerView", fail)
    net = model()
    optimizer = sgd(net.parameters())
    with pytest.warns(ChainruleWarning, match="the training is not watched: ValueError: a bug of ours"):
        watch = chainrule.watch(net, optimizer)
    with watch:
        made = sum(1 for _ in plain(net, optimizer))
        watch.step()
        watch.record_next()
    assert (made, watch.watched, watch.findings, watch.history.steps) == (STEPS, 0, (), [])


class Wrapper(torch.Tensor):
    """A tensor around another one, without memory of its own, as quantised weights are."""

    @staticmethod
    def __new__(cls, inside):
        return torch.Tensor._make_wrapper_subclass(cls, inside.shape, dtype=inside.dtype)

    def __init__(self, inside):
        self.inside = inside

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.detach.default:
            return cls(args[0].inside.detach())
        inside = torch.utils._pytree.tree_map_only(cls, lambda each: each.inside, (args, kwargs or {}))
        return func(*inside[0], **inside[1])


def test_a_parameter_that_wraps_another_tensor():
    net = model()
    net[0].weight = nn.Parameter(Wrapper(net[0].weight.detach().clone()))
    optimizer = sgd([net[0].bias, *net[2].parameters()])
    watch = chainrule.watch(net, optimizer)
    made, told = trained(plain(net, optimizer), watch)
    assert not [each for each in told if "ended" in each]
    assert (watch.step_number, watch.watched) == (made, made)
    assert {("parameter", "0.bias"), ("parameter", "2.weight"), ("value", "0")} <= set(watch.history.series)


def test_parameters_can_be_swapped_under_a_watch() -> None:
    """PyTorch swaps no tensor to which a weak reference exists."""
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with chainrule.watch() as watch:
        for _ in range(3):
            model(torch.ones(2, 3)).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            with torch.no_grad():
                torch.utils.swap_tensors(model.weight, nn.Parameter(model.weight * 2))
    assert watch.watched == 3


@pytest.mark.parametrize("asked", [True, False])
def test_a_model_can_be_moved_between_watched_steps(asked: bool) -> None:
    """`Module.to` swaps the parameters if it is asked to, and those that wrap other tensors."""
    net = model()
    if not asked:
        net[0].weight = nn.Parameter(TwoTensor(net[0].weight.detach(), net[0].weight.detach()))
    optimizer = sgd([net[0].bias, *net[2].parameters()])
    torch.__future__.set_swap_module_params_on_conversion(asked)
    try:
        with chainrule.watch(every=2) as watch:
            for _ in range(4):
                net._apply(torch.clone)
                loss_of(net).backward()
                optimizer.step()
                optimizer.zero_grad()
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
    assert watch.step_number == 4
