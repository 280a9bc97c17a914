"""Kinds of training loops, each with a step after which it yields; `KINDS` has them by their names."""

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

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


def once(net, optimizer):
    optimizer.zero_grad()
    loss_of(net).backward()
    optimizer.step()
    yield


@kind
def plain(net, optimizer):
    for _ in range(STEPS):
        yield from once(net, optimizer)


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
        yield from once(net, optimizer)


@kind
def evaluation_without_gradients_in_training_mode(net, optimizer):
    for _ in range(STEPS):
        with torch.no_grad():
            loss_of(net)
        yield from once(net, optimizer)


@kind
def in_eval_mode(net, optimizer):
    net.eval()
    yield from plain(net, optimizer)


@kind
def only_the_head_in_training_mode(net, optimizer):
    net.eval()
    net[2].train()
    yield from plain(net, optimizer)


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
        yield from plain(net, optimizer)


@kind
def another_kind_of_optimizer_for_the_last_steps(net, optimizer):
    for _ in range(STEPS):
        yield from once(net, optimizer)
    other = torch.optim.AdamW(net.parameters(), lr=1e-3)
    for _ in range(STEPS):
        yield from once(net, other)
    yield from plain(net, optimizer)


@kind
def the_head_first_and_then_everything(net, optimizer):
    head = sgd(net[2].parameters())
    for _ in range(STEPS):
        yield from once(net, head)
    yield from plain(net, optimizer)


@kind
def a_scheduler(net, optimizer):
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2)
    for _ in range(STEPS):
        yield from once(net, optimizer)
        scheduler.step()


def closure_of(net, optimizer):
    def closure():
        optimizer.zero_grad()
        loss = loss_of(net)
        loss.backward()
        return loss

    return closure


@kind
def lbfgs(net, optimizer):
    optimizer = torch.optim.LBFGS(net.parameters(), lr=0.1, max_iter=4)

    for _ in range(STEPS):
        optimizer.step(closure_of(net, optimizer))
        yield


@kind
def a_closure_in_eval_mode(net, optimizer):
    net.eval()

    for _ in range(STEPS):
        loss_of(net)
        optimizer.step(closure_of(net, optimizer))
        yield


@kind
def fused(net, optimizer):
    optimizer = torch.optim.AdamW(net.parameters(), fused=True)
    yield from plain(net, optimizer)


@kind
def foreach(net, optimizer):
    optimizer = torch.optim.Adam(net.parameters(), foreach=True)
    yield from plain(net, optimizer)


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
    yield from plain(net, optimizer)


@kind
def an_optimizer_without_hooks(net, optimizer):
    del optimizer
    other = WithoutHooks(net.parameters())
    yield from plain(net, other)


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
    yield from plain(net, optimizer)


@kind
def a_failed_step_and_another_optimizer(net, optimizer):
    def broken():
        raise RuntimeError("out of memory")

    try:
        optimizer.step(broken)
    except RuntimeError:
        optimizer = torch.optim.Adam(net.parameters())
    yield from plain(net, optimizer)


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
    yield from plain(other, sgd(other.parameters()))


OWN_MODEL_AND_OPTIMIZER = (
    plain, gradient_accumulation, evaluation_with_gradients_before_each_step, in_eval_mode, a_scheduler, sam,
    evaluation_without_gradients_in_training_mode, only_the_head_in_training_mode, a_new_optimizer_each_epoch,
    another_kind_of_optimizer_for_the_last_steps, the_head_first_and_then_everything, many_forward_passes,
    whole_model_in_a_reentrant_checkpoint, whole_model_in_a_checkpoint, a_closure_in_eval_mode,
    two_optimizers_that_share_parameters, a_second_optimizer_of_the_same_parameters_after_some_steps,
)  # fmt: skip
