"""Trainings that differ in the optimizer: those of PyTorch, of somebody else, several, one in the backward pass."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, optim

from tests.reliability.trainings.base import Training, batch, entered, mlp, plain, training

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
