"""Every kind of training loop: as many steps are watched as are made, or the watch says why not."""

import warnings
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import chainrule
from chainrule.errors import ChainruleWarning

pytestmark = pytest.mark.trains
X = torch.randn(16, 4, generator=torch.Generator().manual_seed(1))
Y = X[:, :3].argmax(1)
STEPS = 6


def model(*, width=8):
    return nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 3))


def sgd(parameters, **options):
    return torch.optim.SGD(parameters, **{"lr": 0.1, **options})


def loss_of(net, x=X):
    return F.cross_entropy(net(x), Y[: len(x)])


KINDS = {}


def kind(loop):
    KINDS[loop.__name__] = loop
    return loop


@kind
def plain(net, optimizer):
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss_of(net).backward()
        optimizer.step()
        yield


@kind
def gradient_accumulation(net, optimizer):
    for _ in range(STEPS):
        optimizer.zero_grad()
        for part in X.chunk(4):
            (loss_of(net, part) / 4).backward()
        optimizer.step()
        yield


@kind
def evaluation_with_gradients_before_each_step(net, optimizer):
    for _ in range(STEPS):
        net.eval()
        loss_of(net)
        net.train()
        optimizer.zero_grad()
        loss_of(net).backward()
        optimizer.step()
        yield


@kind
def evaluation_without_gradients_in_training_mode(net, optimizer):
    for _ in range(STEPS):
        with torch.no_grad():
            loss_of(net)
        yield from once(net, optimizer)


def once(net, optimizer):
    optimizer.zero_grad()
    loss_of(net).backward()
    optimizer.step()
    yield


@kind
def in_eval_mode(net, optimizer):
    net.eval()
    for _ in range(STEPS):
        yield from once(net, optimizer)


@kind
def only_the_head_in_training_mode(net, optimizer):
    net.eval()
    net[2].train()
    for _ in range(STEPS):
        yield from once(net, optimizer)


@kind
def many_forward_passes(net, optimizer):
    for _ in range(2):
        optimizer.zero_grad()
        sum(F.mse_loss(net(row), row[:3]) for row in torch.randn(300, 4)).backward()
        optimizer.step()
        yield


@kind
def a_new_optimizer_each_epoch(net, optimizer):
    for epoch in range(3):
        optimizer = sgd(net.parameters(), lr=0.1 / (epoch + 1))
        for _ in range(STEPS):
            yield from once(net, optimizer)


@kind
def another_kind_of_optimizer_for_the_last_steps(net, optimizer):
    for _ in range(STEPS):
        yield from once(net, optimizer)
    other = torch.optim.AdamW(net.parameters(), lr=1e-3)
    for _ in range(STEPS):
        yield from once(net, other)
    for _ in range(STEPS):
        yield from once(net, optimizer)


@kind
def the_head_first_and_then_everything(net, optimizer):
    head = sgd(net[2].parameters())
    for _ in range(STEPS):
        yield from once(net, head)
    for _ in range(STEPS):
        yield from once(net, optimizer)


@kind
def a_scheduler(net, optimizer):
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2)
    for _ in range(STEPS):
        yield from once(net, optimizer)
        scheduler.step()


@kind
def lbfgs(net, optimizer):
    optimizer = torch.optim.LBFGS(net.parameters(), lr=0.1, max_iter=4)

    def closure():
        optimizer.zero_grad()
        loss = loss_of(net)
        loss.backward()
        return loss

    for _ in range(STEPS):
        optimizer.step(closure)
        yield


@kind
def a_closure_in_eval_mode(net, optimizer):
    net.eval()

    def closure():
        optimizer.zero_grad()
        loss = loss_of(net)
        loss.backward()
        return loss

    for _ in range(STEPS):
        loss_of(net)
        optimizer.step(closure)
        yield


@kind
def fused(net, optimizer):
    optimizer = torch.optim.AdamW(net.parameters(), fused=True)
    for _ in range(STEPS):
        yield from once(net, optimizer)


@kind
def foreach(net, optimizer):
    optimizer = torch.optim.Adam(net.parameters(), foreach=True)
    for _ in range(STEPS):
        yield from once(net, optimizer)


class OwnOptimizer(torch.optim.Optimizer):
    def __init__(self, parameters):
        super().__init__(parameters, {"lr": 0.1})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for each in group["params"]:
                each.sub_(each.grad, alpha=group["lr"])


class WithoutHooks(torch.optim.Optimizer):
    """It does not call `super().__init__()`, so PyTorch calls no hooks for its steps."""

    def __init__(self, parameters):
        self.param_groups, self.state = [{"params": list(parameters)}], {}

    @torch.no_grad()
    def step(self):
        for each in self.param_groups[0]["params"]:
            each.data.add_(each.grad, alpha=-0.1)

    def zero_grad(self):
        for each in self.param_groups[0]["params"]:
            each.grad = None


@kind
def own_optimizer(net, optimizer):
    optimizer = OwnOptimizer(net.parameters())
    for _ in range(STEPS):
        yield from once(net, optimizer)


@kind
def an_optimizer_without_hooks(net, optimizer):
    del optimizer
    other = WithoutHooks(net.parameters())
    for _ in range(STEPS):
        yield from once(net, other)


def updated_by_hand(net, micro=1):
    net.zero_grad()
    for part in X.chunk(micro):
        loss_of(net, part).backward()
    with torch.no_grad():
        for each in net.parameters():
            each -= 0.1 * each.grad


@kind
def an_update_by_hand(net, optimizer):
    del optimizer
    for _ in range(STEPS):
        updated_by_hand(net)
        yield


@kind
def an_update_by_hand_of_accumulated_gradients(net, optimizer):
    del optimizer
    for _ in range(STEPS):
        updated_by_hand(net, micro=4)
        yield


@kind
def sam(net, optimizer):
    """Gradients are taken at a place beside the parameters."""
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss_of(net).backward()
        with torch.no_grad():
            moves = [each.grad * 0.05 for each in net.parameters()]
            for each, move in zip(net.parameters(), moves, strict=True):
                each += move
        optimizer.zero_grad()
        loss_of(net).backward()
        with torch.no_grad():
            for each, move in zip(net.parameters(), moves, strict=True):
                each -= move
        optimizer.step()
        yield


def in_backward(net):
    optimizers = {each: sgd([each]) for each in net.parameters()}

    def update(parameter):
        optimizers[parameter].step()
        optimizers[parameter].zero_grad()

    for each in net.parameters():
        each.register_post_accumulate_grad_hook(update)
    return list(optimizers.values())


@kind
def optimizers_inside_of_backward(net, optimizer):
    optimizers = in_backward(net)
    for _ in range(STEPS):
        loss_of(net).backward()
        yield
    assert optimizers


@kind
def optimizers_inside_of_backward_and_evaluation(net, optimizer):
    optimizers = in_backward(net)
    for _ in range(STEPS):
        loss_of(net).backward()
        with torch.no_grad():
            loss_of(net)
        yield
    assert optimizers


@kind
def whole_model_in_a_reentrant_checkpoint(net, optimizer):
    for _ in range(STEPS):
        optimizer.zero_grad()
        F.cross_entropy(checkpoint(net, X.clone().requires_grad_(), use_reentrant=True), Y).backward()
        optimizer.step()
        yield


@kind
def whole_model_in_a_checkpoint(net, optimizer):
    for _ in range(STEPS):
        optimizer.zero_grad()
        F.cross_entropy(checkpoint(net, X, use_reentrant=False), Y).backward()
        optimizer.step()
        yield


@kind
def truncated_backpropagation_through_time(net, optimizer):
    cell, head = nn.LSTMCell(4, 8), nn.Linear(8, 3)
    optimizer = sgd([*cell.parameters(), *head.parameters()])
    state = torch.zeros(4, 8), torch.zeros(4, 8)
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = 0
        for part in X.split(4):
            state = cell(part, state)
            loss = loss + F.cross_entropy(head(state[0]), Y[:4])
        loss.backward()
        optimizer.step()
        state = tuple(each.detach() for each in state)
        yield


@kind
def functional_call(net, optimizer):
    parameters = {name: each.detach().clone().requires_grad_() for name, each in net.named_parameters()}
    optimizer = sgd(parameters.values())
    for _ in range(STEPS):
        optimizer.zero_grad()
        F.cross_entropy(torch.func.functional_call(net, parameters, (X,)), Y).backward()
        optimizer.step()
        yield


@kind
def several_models(net, optimizer):
    encoder, decoder = nn.Linear(4, 2), nn.Linear(2, 4)
    optimizer = sgd([*encoder.parameters(), *decoder.parameters()])
    for _ in range(STEPS):
        optimizer.zero_grad()
        F.mse_loss(decoder(encoder(X)), X).backward()
        optimizer.step()
        yield


@kind
def another_model_in_the_middle(net, optimizer):
    for _ in range(STEPS):
        yield from once(net, optimizer)
    net = model(width=5)
    optimizer = sgd(net.parameters())
    for _ in range(STEPS):
        yield from once(net, optimizer)


@kind
def a_failed_step_and_another_optimizer(net, optimizer):
    def broken():
        raise RuntimeError("out of memory")

    try:
        optimizer.step(broken)
    except RuntimeError:
        optimizer = torch.optim.Adam(net.parameters())
    for _ in range(STEPS):
        yield from once(net, optimizer)


@kind
def two_optimizers_of_one_model(net, optimizer):
    optimizers = [sgd(net[0].parameters()), torch.optim.Adam(net[2].parameters())]
    for _ in range(STEPS):
        loss_of(net).backward()
        for each in optimizers:
            each.step()
            each.zero_grad()
        yield


def with_both(net, *optimizers):
    for _ in range(STEPS):
        net.zero_grad()
        loss_of(net).backward()
        for each in optimizers:
            each.step()
        yield


@kind
def two_optimizers_that_share_parameters(net, optimizer):
    yield from with_both(net, optimizer, torch.optim.Adam(net[2].parameters()))


@kind
def an_optimizer_after_two_whose_parameters_it_shares(net, optimizer):
    yield from with_both(net, sgd(net[2].parameters()), sgd(net[0].parameters()), optimizer)


@kind
def a_second_optimizer_of_the_same_parameters_after_some_steps(net, optimizer):
    yield from plain(net, optimizer)
    yield from with_both(net, optimizer, sgd(net.parameters()))


@kind
def two_new_optimizers_that_share_parameters_each_epoch(net, optimizer):
    for _ in range(3):
        optimizer, other = sgd(net.parameters()), torch.optim.Adam(net[2].parameters())
        yield from with_both(net, optimizer, other)


@kind
def a_second_optimizer_after_some_steps(net, optimizer):
    """Each has parameters of its own, and steps in a phase of its own."""
    other = model(width=4)
    for _ in range(STEPS):
        yield from once(net, optimizer)
    for _ in range(STEPS):
        yield from once(other, sgd(other.parameters()))


def trained(loop, watch):
    """How many steps a loop makes inside of a watch, and the sentences of warnings."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with watch:
            made = sum(1 for _ in loop)
    return made, [str(each.message) for each in told if each.category is ChainruleWarning]


@pytest.mark.parametrize("every", [1, 2])
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


OWN_MODEL_AND_OPTIMIZER = (
    plain, gradient_accumulation, evaluation_with_gradients_before_each_step, in_eval_mode, a_scheduler, sam,
    evaluation_without_gradients_in_training_mode, only_the_head_in_training_mode, a_new_optimizer_each_epoch,
    another_kind_of_optimizer_for_the_last_steps, the_head_first_and_then_everything, many_forward_passes,
    whole_model_in_a_reentrant_checkpoint, whole_model_in_a_checkpoint, a_closure_in_eval_mode,
    two_optimizers_that_share_parameters, a_second_optimizer_of_the_same_parameters_after_some_steps,
)  # fmt: skip


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
