"""Trainings that differ in the loop: the optimizer, the order of passes and steps, and what goes on around them."""

from __future__ import annotations

import contextlib
import copy
import gc
import io
import logging
import random
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn, optim
from torch.func import functional_call, grad, grad_and_value, jvp, vmap
from torch.optim import lr_scheduler, swa_utils
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.flop_counter import FlopCounterMode

from tests.reliability.trainings.base import Training, batch, entered, mlp, plain, training

# -- optimizers -------------------------------------------------------------------------------------------------------

OPTIMIZERS: dict[str, Callable[[Any], Any]] = {
    "sgd_nesterov": lambda p: optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, foreach=False),
    "sgd_foreach": lambda p: optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01, foreach=True),
    "sgd_fused": lambda p: optim.SGD(p, lr=0.1, momentum=0.9, fused=True),
    "sgd_maximize": lambda p: optim.SGD(p, lr=0.001, maximize=True),
    "sgd_differentiable": lambda p: optim.SGD(p, lr=0.1, differentiable=False, dampening=0.1, momentum=0.5),
    "adam": lambda p: optim.Adam(p, lr=0.1, foreach=False),
    "adam_foreach": lambda p: optim.Adam(p, lr=0.1, amsgrad=True, foreach=True),
    "adam_fused": lambda p: optim.Adam(p, lr=0.1, fused=True, amsgrad=True),
    "adam_tensor_rate": lambda p: optim.Adam(p, lr=torch.tensor(0.05)),
    "adamw": lambda p: optim.AdamW(p, lr=0.1),
    "nadam": lambda p: optim.NAdam(p, lr=0.02),
    "radam": lambda p: optim.RAdam(p, lr=0.02),
    "adamax": lambda p: optim.Adamax(p, lr=0.02),
    "adagrad": lambda p: optim.Adagrad(p, lr=0.1, lr_decay=0.1),
    "adadelta": lambda p: optim.Adadelta(p, lr=1.0),
    "rmsprop": lambda p: optim.RMSprop(p, lr=0.01, centered=True, momentum=0.5),
    "rprop": lambda p: optim.Rprop(p, lr=0.01),
    "asgd": lambda p: optim.ASGD(p, lr=0.1, t0=2),
    "adafactor": lambda p: optim.Adafactor(p, lr=0.05),
    "own_optimizer": lambda p: Signs(p),
    "hookless_optimizer": lambda p: Hookless(p),
}


class Signs(optim.Optimizer):
    """Somebody's optimizer: the sign of a moving mean, kept as a plain list as well."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {"lr": 0.01, "history": []})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            group["history"].append(len(group["history"]))
            for each in group["params"]:
                mean = self.state[each].setdefault("mean", torch.zeros_like(each))
                each.add_(mean.lerp_(each.grad, 0.1).sign(), alpha=-group["lr"])


class Hookless:
    """An optimizer that is none of PyTorch's."""

    def __init__(self, parameters: Any) -> None:
        self.parameters = list(parameters)

    def zero_grad(self) -> None:
        for each in self.parameters:
            each.grad = None

    def step(self) -> None:
        with torch.no_grad():
            for each in self.parameters:
                each -= 0.1 * each.grad


def of_an_optimizer(make: Callable[[Any], Any]) -> Training:
    model, (x, y) = mlp(dropout=0.2), batch()
    return plain(model, lambda number: F.cross_entropy(model(x), y), make(model.parameters()))


for name, make_optimizer in OPTIMIZERS.items():
    entered(f"optimizer_{name}", partial(of_an_optimizer, make_optimizer))


@training
def lbfgs() -> Training:
    model, (x, y) = mlp(), batch()
    optimizer = optim.LBFGS(model.parameters(), max_iter=4, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        return loss

    return Training(lambda number: optimizer.step(closure), (model, optimizer))


@training
def muon_and_adam() -> Training:
    model, (x, y) = mlp(), batch()
    matrices = [each for each in model.parameters() if each.dim() == 2]
    rest = [each for each in model.parameters() if each.dim() != 2]
    optimizers = optim.Muon(matrices, lr=0.02), optim.AdamW(rest, lr=0.02)

    def step(number: int) -> Tensor:
        model.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        for each in optimizers:
            each.step()
        return loss

    return Training(step, (model, *optimizers))


@training
def optimizer_in_backward() -> Training:
    model, (x, y) = mlp(), batch()
    optimizers = {each: optim.SGD([each], lr=0.1) for each in model.parameters()}

    def stepped(parameter: Tensor) -> None:
        optimizers[parameter].step()
        optimizers[parameter].zero_grad()

    for each in model.parameters():
        each.register_post_accumulate_grad_hook(stepped)

    def step(number: int) -> Tensor:
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        return loss

    return Training(step, (model, *optimizers.values()))


@training
def new_optimizer_each_step() -> Training:
    model, (x, y) = mlp(), batch()
    made: list[Any] = []

    def step(number: int) -> Tensor:
        made.append(optim.Adam(model.parameters(), lr=0.1 / (number + 1)))
        made[-1].zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        made[-1].step()
        return loss

    return Training(step, (model, made))


# -- passes and steps -------------------------------------------------------------------------------------------------


@training
def accumulated() -> Training:
    model, (x, y) = mlp(dropout=0.1), batch(12)
    optimizer = optim.Adam(model.parameters(), lr=0.05)

    def step(number: int) -> list[Tensor]:
        losses = [F.cross_entropy(model(part), label) / 3 for part, label in zip(x.split(4), y.split(4), strict=True)]
        for loss in losses:
            loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.2)
        optimizer.step()
        optimizer.zero_grad(set_to_none=number % 2 == 0)
        return losses

    return Training(step, (model, optimizer))


@training
def clipped_by_hand() -> Training:
    model, (x, y) = mlp(), batch()
    optimizer = optim.SGD(model.parameters(), lr=0.1)

    def step(number: int) -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        for each in model.parameters():
            each.grad.data.clamp_(-0.01, 0.01)
            each.grad += 1e-3 * each.detach()
        optimizer.step()
        return loss

    return Training(step, (model, optimizer))


@training
def retained_graph() -> Training:
    model, (x, y) = mlp(), batch()
    optimizer = optim.SGD(model.parameters(), lr=0.1)

    def step(number: int) -> Tensor:
        optimizer.zero_grad()
        out = model(x)
        out.retain_grad()
        loss = F.cross_entropy(out, y)
        loss.backward(retain_graph=True)
        (out.grad.pow(2).sum() + loss).backward()
        optimizer.step()
        return loss

    return Training(step, (model, optimizer))


@training
def gradient_penalty() -> Training:
    critic, x = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1)), torch.randn(8, 6)
    optimizer = optim.RMSprop(critic.parameters(), lr=0.01)

    def step(number: int) -> Tensor:
        mixed = torch.lerp(x, torch.randn_like(x), torch.rand(8, 1)).requires_grad_()
        (slope,) = torch.autograd.grad(critic(mixed).sum(), mixed, create_graph=True)
        loss = critic(x).mean() + 10 * (slope.norm(dim=1) - 1).pow(2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    return Training(step, (critic, optimizer))


@training
def adversaries() -> Training:
    """A generative adversarial network in which the discriminator steps twice as often."""
    generator, critic = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 6)), nn.Linear(6, 1)
    first, second = optim.Adam(generator.parameters()), optim.Adam(critic.parameters())
    real = torch.randn(8, 6)

    def step(number: int) -> Tensor:
        for _ in range(2):
            second.zero_grad()
            fake = generator(torch.randn(8, 3)).detach()
            (F.softplus(critic(fake)) + F.softplus(-critic(real))).mean().backward()
            second.step()
        first.zero_grad()
        loss = F.softplus(-critic(generator(torch.randn(8, 3)))).mean()
        loss.backward()
        first.step()
        return loss

    return Training(step, (generator, critic, first, second))


@training
def meta_learning() -> Training:
    model, (x, y) = nn.Linear(6, 3), batch()
    optimizer = optim.SGD(model.parameters(), lr=0.1)

    def step(number: int) -> Tensor:
        weights = dict(model.named_parameters())
        inner = F.cross_entropy(functional_call(model, weights, (x,)), y)
        slopes = torch.autograd.grad(inner, list(weights.values()), create_graph=True)
        fast = {name: each - 0.1 * slope for (name, each), slope in zip(weights.items(), slopes, strict=True)}
        loss = F.cross_entropy(functional_call(model, fast, (x.flip(0),)), y.flip(0))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    return Training(step, (model, optimizer))


@training
def functional_gradients() -> Training:
    """Gradients by `torch.func`, written into the parameters by hand."""
    model, (x, y) = nn.Linear(6, 3), batch()
    weights = {name: each.detach() for name, each in model.named_parameters()}

    def step(number: int) -> Tensor:
        slopes, loss = grad_and_value(lambda w: F.cross_entropy(functional_call(model, w, (x,)), y))(weights)
        for name, slope in slopes.items():
            weights[name] -= 0.1 * slope
        return loss

    return Training(step, (model, weights))


@training
def per_sample_gradients() -> Training:
    """Differentially private training: a gradient per sample, each clipped, and noise."""
    model, (x, y) = nn.Linear(6, 3), batch()
    optimizer = optim.SGD(model.parameters(), lr=0.1)

    def one(weights: Any, sample: Tensor, label: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(model, weights, (sample[None],)), label[None])

    def step(number: int) -> None:
        weights = {name: each.detach() for name, each in model.named_parameters()}
        slopes = vmap(grad(one), in_dims=(None, 0, 0))(weights, x, y)
        for name, each in model.named_parameters():
            norm = slopes[name].flatten(1).norm(dim=1).clamp(min=1).view(-1, *[1] * each.dim())
            each.grad = (slopes[name] / norm).mean(0) + 0.01 * torch.randn_like(each)
        optimizer.step()

    return Training(step, (model, optimizer))


@training
def forward_gradients() -> Training:
    """The slope along a random direction, in forward mode."""
    model, (x, y) = nn.Linear(6, 3), batch()
    weights = {name: each.detach() for name, each in model.named_parameters()}

    def step(number: int) -> Tensor:
        direction = {name: torch.randn_like(each) for name, each in weights.items()}
        loss, slope = jvp(lambda w: F.cross_entropy(functional_call(model, w, (x,)), y), (weights,), (direction,))
        for name, each in direction.items():
            weights[name] -= 0.1 * slope * each
        return loss

    return Training(step, (weights,))


@training
def hessian_by_hand() -> Training:
    w = torch.randn(4, requires_grad=True)

    def step(number: int) -> Tensor:
        (slope,) = torch.autograd.grad((w**4).sum(), w, create_graph=True)
        rows = [torch.autograd.grad(each, w, retain_graph=True)[0] for each in slope]
        with torch.no_grad():
            w.sub_(torch.linalg.solve(torch.stack(rows) + 1e-3 * torch.eye(4), slope))
        return slope

    return Training(step, (w,))


@training
def truncated_in_time() -> Training:
    cell, readout, x = nn.LSTMCell(6, 8), nn.Linear(8, 3), torch.randn(12, 4, 6)
    optimizer = optim.Adam([*cell.parameters(), *readout.parameters()], lr=0.02)
    state: list[Any] = [(torch.zeros(4, 8), torch.zeros(4, 8))]

    def step(number: int) -> Tensor:
        h, c = (each.detach() for each in state[0])
        loss = torch.zeros(())
        for moment in range(3):
            h, c = cell(x[3 * number % 12 + moment], (h, c))
            loss = loss + readout(h).pow(2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        state[0] = (h, c)
        return loss

    return Training(step, (cell, readout, optimizer, state))


@training
def policy_gradient() -> Training:
    policy, random_numbers = nn.Linear(4, 2), np.random.default_rng(0)
    optimizer = optim.Adam(policy.parameters(), lr=0.05)

    def step(number: int) -> Tensor:
        terms, place = [], random_numbers.normal(size=4)
        for _ in range(5):
            choice = torch.distributions.Categorical(logits=policy(torch.as_tensor(place, dtype=torch.float32)))
            action = choice.sample()
            place = place + (action.item() - 0.5) + 0.1 * np.random.normal(size=4)
            terms.append(choice.log_prob(action) * float(-(place**2).sum()))
        loss = -torch.stack(terms).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    return Training(step, (policy, optimizer))


@training
def q_learning() -> Training:
    """A target network, and targets made under `no_grad`."""
    online = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    target = copy.deepcopy(online).requires_grad_(False)
    optimizer = optim.RMSprop(online.parameters(), lr=0.01)

    def step(number: int) -> Tensor:
        s, a, r, following = torch.randn(6, 4), torch.randint(2, (6, 1)), torch.rand(6), torch.randn(6, 4)
        with torch.no_grad():
            aim = r + 0.9 * target(following).max(1).values
        loss = F.smooth_l1_loss(online(s).gather(1, a).squeeze(1), aim)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_value_(online.parameters(), 1)
        optimizer.step()
        with torch.no_grad():
            for slow, fast in zip(target.parameters(), online.parameters(), strict=True):
                slow.mul_(0.9).add_(fast, alpha=0.1)
        return loss

    return Training(step, (online, target, optimizer))


@training
def averaged_weights() -> Training:
    model, (x, y) = mlp(), batch()
    average = swa_utils.AveragedModel(model, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(0.9))
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    rate = lr_scheduler.SequentialLR(
        optimizer,
        [lr_scheduler.LinearLR(optimizer, total_iters=2), lr_scheduler.CosineAnnealingLR(optimizer, 4)],
        milestones=[2],
    )

    def step(number: int) -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        rate.step()
        average.update_parameters(model)
        return loss

    return Training(step, (model, average, optimizer, rate), steps=5)


@training
def phases() -> Training:
    """First the head, then all; evaluation, and the best state, in between."""
    model, (x, y) = mlp(dropout=0.3), batch()
    model[0].requires_grad_(False)
    optimizers = [optim.Adam(model[3].parameters(), lr=0.1)]
    best: list[Any] = []

    def step(number: int) -> Tensor:
        if number == 2:
            model[0].requires_grad_(True)
            optimizers.append(optim.SGD(model.parameters(), lr=0.01))
        model.train()
        optimizers[-1].zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizers[-1].step()
        model.eval()
        with torch.inference_mode():
            best.append((float(F.cross_entropy(model(x), y)), copy.deepcopy(model.state_dict())))
        return loss

    return Training(step, (model, optimizers, best), steps=5)


@training
def resumed() -> Training:
    """Saved and loaded in the middle."""
    model, (x, y) = mlp(), batch()
    optimizer = optim.Adam(model.parameters(), lr=0.05)

    def step(number: int) -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        if number % 2:
            file = io.BytesIO()
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
            file.seek(0)
            state = torch.load(file)
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
        return loss

    return Training(step, (model, optimizer))


@training
def skipped_steps() -> Training:
    """Batches without a step, an empty one, and one that raises and is caught."""
    model, (x, y) = mlp(), batch()
    optimizer = optim.Adam(model.parameters(), lr=0.05)
    raised: list[str] = []

    def step(number: int) -> Any:
        optimizer.zero_grad()
        try:
            loss = F.cross_entropy(model(x[:, : 6 - number % 3 // 2]), y)
        except RuntimeError as error:
            raised.append(type(error).__name__)
            return None
        if number % 3 == 1:
            return loss
        loss.backward()
        optimizer.step()
        return loss

    return Training(step, (model, optimizer, raised), steps=6)


@training
def many_forward_passes() -> Training:
    model, (x, y) = mlp(), batch()
    optimizer = optim.SGD(model.parameters(), lr=0.1)

    def step(number: int) -> Tensor:
        optimizer.zero_grad()
        with torch.no_grad():
            for _ in range(150):
                model(x)
        loss = sum(F.cross_entropy(model(x + 0.01 * place), y) for place in range(150)) / 150
        loss.backward()
        optimizer.step()
        return loss

    return Training(step, (model, optimizer), steps=3)


@training
def not_finite() -> Training:
    """NaN in one step, which the loop looks for and leaves out."""
    model, (x, y) = mlp(), batch()
    optimizer = optim.SGD(model.parameters(), lr=0.1)

    def step(number: int) -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x.log() if number == 1 else x), y)
        loss.backward()
        if all(each.grad.isfinite().all() for each in model.parameters()):
            optimizer.step()
        return loss

    return Training(step, (model, optimizer))


# -- around the loop --------------------------------------------------------------------------------------------------


@training
def scaled() -> Training:
    model, (x, y) = mlp(dropout=0.1), batch()
    optimizer, scaler = optim.SGD(model.parameters(), lr=0.1), torch.amp.GradScaler("cpu", init_scale=2.0**127)

    def step(number: int) -> Tensor:
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = F.cross_entropy(model(x), y)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        return loss

    return Training(step, (model, optimizer, scaler), steps=6)


Around = Callable[[], contextlib.AbstractContextManager[Any]]

AROUND: dict[str, tuple[Around, Around]] = {  # around the forward pass, around all of the step
    "autocast_step": (contextlib.nullcontext, lambda: torch.autocast("cpu", dtype=torch.bfloat16)),
    "device": (lambda: torch.device("cpu"), contextlib.nullcontext),
    "device_step": (contextlib.nullcontext, lambda: torch.device("cpu")),
    "anomaly": (contextlib.nullcontext, lambda: torch.autograd.detect_anomaly(check_nan=False)),
    "profiler": (contextlib.nullcontext, lambda: torch.profiler.profile(record_shapes=True)),
    "flops": (lambda: FlopCounterMode(display=False), contextlib.nullcontext),
    "flops_step": (contextlib.nullcontext, lambda: FlopCounterMode(display=False)),
    "save_on_cpu": (torch.autograd.graph.save_on_cpu, contextlib.nullcontext),
    "deterministic": (contextlib.nullcontext, lambda: deterministic()),
    "warnings_are_errors": (contextlib.nullcontext, lambda: warnings_are_errors()),
    "default_dtype": (contextlib.nullcontext, lambda: default_dtype()),
    "forked_random": (torch.random.fork_rng, contextlib.nullcontext),
    "no_collector": (contextlib.nullcontext, lambda: no_collector()),
    "stdout_taken": (contextlib.nullcontext, lambda: contextlib.redirect_stdout(io.StringIO())),
}


@contextlib.contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@contextlib.contextmanager
def warnings_are_errors() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@contextlib.contextmanager
def default_dtype() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextlib.contextmanager
def no_collector() -> Iterator[None]:
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def in_contexts(inner: Around, outer: Around) -> Training:
    model, (x, y) = mlp(dropout=0.2), batch()
    optimizer = optim.Adam(model.parameters(), lr=0.05)

    def step(number: int) -> Tensor:
        with outer():
            optimizer.zero_grad()
            with inner():
                loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            return loss

    return Training(step, (model, optimizer))


for name, contexts in AROUND.items():
    entered(f"around_{name}", partial(in_contexts, *contexts))


@training
def modes_across_steps() -> Training:
    """A mode that is entered in one step and left in the next, and one that a generator leaves when it likes."""
    model, (x, y) = mlp(), batch()
    optimizer, stack = optim.SGD(model.parameters(), lr=0.1), contextlib.ExitStack()
    counts: list[int] = []

    def counted() -> Iterator[None]:
        with FlopCounterMode(display=False) as counter:
            yield
            counts.append(counter.get_total_flops())
            yield

    def step(number: int) -> Tensor:
        if number % 2 == 0:
            stack.enter_context(torch.device("cpu"))
        generator = counted()
        next(generator)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        next(generator)
        next(generator, None)
        loss.backward()
        optimizer.step()
        if number % 2:
            stack.close()
        return loss

    return Training(step, (model, optimizer, counts))


@training
def threads_evaluate() -> Training:
    """Other threads evaluate the model, and train one of their own, while it is trained."""
    model, other, (x, y) = mlp(), mlp(), batch()
    optimizer, second = optim.SGD(model.parameters(), lr=0.1), optim.Adam(other.parameters(), lr=0.1)
    scores: list[float] = []

    def evaluate() -> None:
        with torch.no_grad():
            frozen = copy.deepcopy(model)
            scores.append(float(frozen(x).sum()))

    def train_the_other() -> None:
        for _ in range(3):
            second.zero_grad()
            F.cross_entropy(other(x), y).backward()
            second.step()

    def step(number: int) -> Tensor:
        for job in (evaluate, train_the_other):
            thread = threading.Thread(target=job)
            thread.start()
            thread.join()
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        with ThreadPoolExecutor(2) as pool:
            waiting = pool.submit(train_the_other)
            loss.backward()
            waiting.result()
        optimizer.step()
        return loss

    return Training(step, (model, other, optimizer, second, scores))


@training
def trained_in_a_thread() -> Training:
    model, (x, y) = mlp(dropout=0.2), batch()
    inner = plain(model, lambda number: F.cross_entropy(model(x), y))

    def step(number: int) -> Any:
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(inner.step, number).result()

    return Training(step, inner.holds)


@training
def data_loader() -> Training:
    model, (x, y) = mlp(), batch(12)
    random_numbers = torch.Generator().manual_seed(3)
    loader = DataLoader(TensorDataset(x, y), batch_size=4, shuffle=True, generator=random_numbers)
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    batches = iter(loader)

    def step(number: int) -> Tensor:
        inputs, labels = next(batches)
        noise = torch.as_tensor(np.random.normal(size=(4, 6)) + random.random(), dtype=torch.float32)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(inputs + 0.1 * noise), labels)
        loss.backward()
        optimizer.step()
        return loss

    return Training(step, (model, optimizer, x, y), steps=3)


@training
def logged() -> Training:
    """Reads numbers, prints, and logs as people do."""
    model, (x, y) = mlp(), batch()
    optimizer, lines = optim.SGD(model.parameters(), lr=0.1), []
    log = logging.getLogger("training")

    def step(number: int) -> Tensor:
        optimizer.zero_grad()
        out = model(x)
        loss = F.cross_entropy(out, y)
        loss.backward()
        norms = {name: each.grad.norm().item() for name, each in model.named_parameters()}
        optimizer.step()
        log.info("step %d", number)
        lines.append(f"{number} {loss.item():.6f} {out.detach().numpy().sum():.6f} {norms} {out[0].tolist()}")
        return loss

    return Training(step, (model, optimizer, lines))


@training
def many_small_writes() -> Training:
    """A data set is made inside the step, row by row."""
    model = mlp()

    def loss(number: int) -> Tensor:
        x, y = torch.empty(64, 6), torch.empty(64, dtype=torch.long)
        for row in range(64):
            x[row] = torch.randn(6)
            y[row] = row % 3
        return F.cross_entropy(model(x), y)

    return plain(model, loss)


@training
def model_that_grows() -> Training:
    model, (x, y) = nn.Sequential(nn.Linear(6, 6)), batch()
    head, optimizer = nn.Linear(6, 3), None
    optimizer = optim.Adam([*model.parameters(), *head.parameters()], lr=0.05)

    def step(number: int) -> Tensor:
        if number:
            model.append(nn.Linear(6, 6))
            optimizer.add_param_group({"params": list(model[-1].parameters())})
        optimizer.zero_grad()
        loss = F.cross_entropy(head(model(x)), y)
        loss.backward()
        optimizer.step()
        return loss

    return Training(step, (model, head, optimizer))


@training
def replaced_data() -> Training:
    """Parameters get other memory by `.data =`, `swap_tensors` and `set_`."""
    model, (x, y) = mlp(), batch()
    optimizer = optim.SGD(model.parameters(), lr=0.1)

    def step(number: int) -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        weight = model[0].weight
        weight.data = weight.data.clone().clamp(-0.3, 0.3)
        with torch.no_grad():
            model[3].weight.set_(model[3].weight.clone())
        return loss

    return Training(step, (model, optimizer))


@training
def subclass_of_tensor() -> Training:
    class Tagged(Tensor):
        """A tensor with nothing but a name."""

    w = nn.Parameter(torch.randn(6, 3).as_subclass(Tagged))
    (x, y), optimizer = batch(), optim.SGD([w], lr=0.1)

    def step(number: int) -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(x @ w, y)
        loss.backward()
        optimizer.step()
        return loss

    return Training(step, (w, optimizer))


@training
def nested_tensors() -> Training:
    layer = nn.Linear(6, 3)
    x = [torch.randn(rows, 6) for rows in (2, 4, 3)]

    def loss(number: int) -> Tensor:
        nested = torch.nested.nested_tensor(x, layout=torch.jagged)
        return layer(nested).values().pow(2).mean()

    return plain(layer, loss)


@training
def sparse_matrix() -> Training:
    layer, x = nn.Linear(4, 3), torch.randn(6, 4)
    graph = (torch.rand(6, 6) > 0.5).float().to_sparse()
    return plain(layer, lambda number: torch.sparse.mm(graph, layer(x)).pow(2).mean(), None, graph)


@training
def chosen_branch() -> Training:
    """`torch.cond` on a number of the data."""
    layer, x = nn.Linear(4, 4), torch.randn(6, 4)

    def loss(number: int) -> Tensor:
        out = layer(x) * (number % 2 - 0.5)
        return torch.cond(out.sum() > 0, lambda t: t.sin(), lambda t: t * 3, (out,)).pow(2).mean()

    return plain(layer, loss)


@training
def flexible_attention() -> Training:
    """On a CPU it has no backward pass, so only what comes after it is trained."""
    from torch.nn.attention.flex_attention import flex_attention

    layer, x = nn.Linear(16, 3), torch.randn(1, 1, 8, 16)

    def loss(number: int) -> Tensor:
        mixed = flex_attention(x, x, x, score_mod=lambda score, b, h, i, j: score + 0.1 * (i - j))
        return layer(mixed).pow(2).mean()

    return plain(layer, loss)


@training
def compiled() -> Training:
    model, (x, y) = mlp(), batch()
    whole = torch.compile(model, backend="eager")
    return plain(model, lambda number: F.cross_entropy(whole(x), y))


class Cube(torch.autograd.Function):
    """Counts its passes in a class attribute and writes to what it is given."""

    passes = 0

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        ctx.seed = torch.rand(())
        Cube.passes += 1
        return x**3

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Tensor:
        Cube.passes += 1
        (x,) = ctx.saved_tensors
        return upstream.mul_(3 * x**2 * (0.9 + 0.2 * ctx.seed))


@training
def own_function() -> Training:
    model, (x, y) = mlp(), batch()
    passes: list[int] = []

    def loss(number: int) -> Tensor:
        passes.append(Cube.passes)
        return F.cross_entropy(Cube.apply(model(x)), y)

    return plain(model, loss, None, passes)


@training
def own_operator() -> Training:
    model, (x, y) = mlp(), batch()

    @torch.library.custom_op("reliability::twice", mutates_args=())
    def twice(t: Tensor) -> Tensor:
        return t.clone() * 2

    twice.register_autograd(lambda ctx, upstream: upstream * 2)
    return plain(model, lambda number: F.cross_entropy(twice(model(x)), y))
