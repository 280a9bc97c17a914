"""Trainings of models and parameters that are made in unusual ways, or change while they are trained."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import math
import pickle
import weakref
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn, optim
from torch.masked import as_masked_tensor
from torch.nn.utils import parametrizations, parametrize
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

from tests.reliability.trainings.base import Training, batch, mlp, plain, training

# -- classes ----------------------------------------------------------------------------------------------------------


class Registered(type):
    """A metaclass that keeps its classes, and counts how often they are called."""

    made: ClassVar[list[str]] = []

    def __call__(cls, *given: Any, **named: Any) -> Any:
        Registered.made.append(cls.__name__)
        return super().__call__(*given, **named)


@dataclasses.dataclass(eq=False)
class Settings(nn.Module):
    """A module that is a dataclass, as some libraries make them."""

    width: int = 8
    layers: list[nn.Module] = dataclasses.field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, self.width), nn.ReLU(), nn.Linear(self.width, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


class Slotted(nn.Module, metaclass=Registered):
    """Slots, no `__dict__` entry for its own attributes, a length of 0, and no truth value."""

    __slots__ = ("_scale", "count")

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.count = 0

    def __len__(self) -> int:
        return 0

    def __bool__(self) -> bool:
        raise TypeError("neither true nor false")

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        return self.linear(x)


class Proxy:
    """Stands before any object, and is not one of its class, but says so."""

    def __init__(self, inner: Any) -> None:
        object.__setattr__(self, "_inner", inner)

    @property
    def __class__(self) -> Any:
        return type(self._inner)

    def __getattr__(self, name: str) -> Any:
        return getattr(object.__getattribute__(self, "_inner"), name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._inner, name, value)

    def __call__(self, *given: Any) -> Any:
        return self._inner(*given)


@training
def classes_of_all_sorts() -> Training:
    """A dataclass, slots, a metaclass, proxies of a model and of its optimizer that lie about their class."""
    first, second, (x, y) = Settings(), Slotted(), batch()
    model = Proxy(first)
    optimizer = Proxy(optim.SGD([*first.parameters(), *second.parameters()], lr=0.1))

    def step(number: int) -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(second(model(x)), y)
        loss.backward()
        optimizer.step()
        return loss

    return Training(step, (first, second, optimizer._inner, Registered.made))


class Recorded(nn.Module):
    """Overrides what modules are made of: every access is counted, and attributes come from elsewhere."""

    accesses = 0

    def __init__(self) -> None:
        super().__init__()
        self.inner = mlp()
        self.log: list[str] = []

    def __getattr__(self, name: str) -> Any:
        type(self).accesses += 1
        if name == "answer":
            return 0.5
        return super().__getattr__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name != "log" and "log" in self.__dict__:
            self.log.append(name)
        super().__setattr__(name, value)

    def __call__(self, x: Tensor) -> Tensor:
        return super().__call__(x) * self.answer

    def __del__(self) -> None:
        deleted.append(len(self.log))

    def forward(self, x: Tensor) -> Tensor:
        self.last = x.sum().item()
        return self.inner(x)


deleted: list[int] = []


@training
def modules_that_override_all() -> Training:
    """`__getattr__`, `__setattr__`, `__call__`, `__del__`; some models live for one step only."""
    model, (x, y) = Recorded(), batch()

    def loss(number: int) -> Tensor:
        passing = Recorded()
        passing.load_state_dict(model.state_dict())
        return F.cross_entropy(model(x) + passing(x).detach(), y)

    return plain(model, loss, None, model.log)


@training
def weak_references() -> Training:
    """Caches that hold weakly: of models, outputs and gradients; a lookup says what is still there."""
    model, (x, y) = mlp(), batch()
    cache: Any = weakref.WeakValueDictionary()
    keyed: Any = weakref.WeakKeyDictionary()
    seen: list[int] = []

    def loss(number: int) -> Tensor:
        h = model[0](x)
        cache["h"], cache["model"] = h, model
        keyed[model] = number
        value = F.cross_entropy(model[1:](cache["h"]), y)
        seen.append(len(keyed) + ("model" in cache))
        return value

    return plain(model, loss, None, seen)


# -- parameters -------------------------------------------------------------------------------------------------------


@training
def parameters_of_all_shapes() -> Training:
    """No element, no dimension, transposed, strided with gaps, one row expanded, and three that share memory."""
    memory = torch.randn(40)
    parameters = [
        nn.Parameter(torch.empty(0, 3)),
        nn.Parameter(torch.tensor(0.5)),
        nn.Parameter(torch.randn(3, 6).t()),
        nn.Parameter(memory.as_strided((3, 3), (7, 2), 1)),
        nn.Parameter(memory[20:23]),
        nn.Parameter(torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)),
        nn.Parameter(torch.randn(6, 6).diagonal()),
    ]
    (x, y), optimizer = batch(), optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.01)

    def step(number: int) -> Tensor:
        optimizer.zero_grad(set_to_none=bool(number % 2))
        empty, scale, wide, square, shift, block, diagonal = parameters
        out = ((x * diagonal) @ wide * scale) @ square + shift + block.mean() + empty.sum()
        loss = F.cross_entropy(out, y)
        loss.backward()
        optimizer.step()
        return loss

    return Training(step, (parameters, optimizer, memory))


@training
def number_types_of_all_sorts() -> Training:
    """Half weights with masters in float32, float8 and integer buffers, complex and float64 parts, in one model."""
    model, (x, y) = mlp().half(), batch()
    masters = [p.detach().float().requires_grad_() for p in model.parameters()]
    wave = nn.Parameter(torch.randn(3, dtype=torch.complex128))
    model.register_buffer("small", torch.randn(3).to(torch.float8_e5m2))
    model.register_buffer("whole", torch.randint(9, (3,), dtype=torch.int8))
    optimizer = optim.Adam([*masters, wave], lr=0.01)

    def step(number: int) -> Tensor:
        model.zero_grad()
        optimizer.zero_grad()
        out = model(x.half()).float() * model.small.float() + model.whole
        out = (out.to(torch.complex128) * wave).abs().bfloat16()
        loss = F.cross_entropy(out.float(), y)
        (loss * 8).backward()
        for master, p in zip(masters, model.parameters(), strict=True):
            master.grad = p.grad.float() / 8
        optimizer.step()
        with torch.no_grad():
            for master, p in zip(masters, model.parameters(), strict=True):
                p.copy_(master)
        model.small = (model.small.float() * 0.5).to(torch.float8_e5m2)
        return loss

    return Training(step, (model, masters, wave, optimizer))


@training
def moved_between_steps() -> Training:
    """A model is converted in place, emptied, and filled by assignment, while it trains."""
    model, (x, y) = mlp(), batch()
    holders: dict[str, Any] = {}

    def step(number: int) -> Tensor:
        state = {name: t.detach().clone() for name, t in model.state_dict().items()}
        if number in (1, 2):
            model.to(torch.float64 if number == 1 else torch.float32)
        if number == 3:
            model.to("meta")
            model.to_empty(device="cpu")
            model.load_state_dict(state, assign=True)
            model.requires_grad_()
        holders["optimizer"] = optimizer = optim.Adam(model.parameters(), lr=0.01)
        kind = next(model.parameters()).dtype
        loss = F.cross_entropy(model(x.to(kind)), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss

    return Training(step, (model, holders))


@training
def lazy_in_the_first_step() -> Training:
    """Parameters that do not exist before the first step, and an optimizer that has them from then on."""
    model = nn.Sequential(nn.LazyConv1d(4, 3), nn.LazyBatchNorm1d(), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3))
    (x, y), holders = batch(), []

    def step(number: int) -> Tensor:
        out = model(x[:, None])
        if not holders:
            holders.append(optim.SGD(model[4].parameters(), lr=0.1))
            holders[0].add_param_group({"params": [*model[0].parameters(), *model[1].parameters()], "lr": 0.01})
        holders[0].zero_grad()
        loss = F.cross_entropy(out, y)
        loss.backward()
        holders[0].step()
        return loss

    return Training(step, (model, holders))


class Symmetric(nn.Module):
    """A parametrization with an inverse."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight.triu() + weight.triu(1).mT

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight.triu()


@training
def parametrized_on_the_way() -> Training:
    """Parametrizations are put on, stacked, assigned through, and taken off, between the passes of a training."""
    model, (x, y) = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6), nn.Linear(6, 3)), batch()

    def step(number: int) -> Tensor:
        if number == 0:
            parametrize.register_parametrization(model[0], "weight", Symmetric())
            parametrizations.spectral_norm(model[2])
        if number == 1:
            model[0].weight = torch.eye(6)
            parametrizations.orthogonal(model[3])
        if number == 3:
            parametrize.remove_parametrizations(model[0], "weight", leave_parametrized=True)
            parametrize.remove_parametrizations(model[3], "weight", leave_parametrized=False)
        optimizer = optim.SGD(model.parameters(), lr=0.1)
        with parametrize.cached():
            loss = F.cross_entropy(model(model[0](x)), y)
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss

    return Training(step, (model,), steps=5)


class Loud(nn.Parameter):
    """A parameter whose functions are overridden, and which keeps itself through some of them."""

    calls: ClassVar[list[str]] = []

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        Loud.calls.append(getattr(func, "__name__", "?"))
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))


@training
def parameters_of_a_class() -> Training:
    """Parameters of a class of one's own that hears every function; buffers that are not persistent."""
    (x, y), model = batch(), mlp()
    model[0].weight = Loud(model[0].weight.detach())
    model.mask = nn.Buffer(torch.ones(3), persistent=False)

    def loss(number: int) -> Tensor:
        model.mask = model.mask * 0.9
        return F.cross_entropy(model(x) * model.mask, y)

    return plain(model, loss, None, Loud.calls)


@training
def masked_tensors() -> Training:
    """Masked tensors and reductions over what is not masked."""
    model, (x, y) = mlp(), batch()
    mask = torch.rand(8, 3) > 0.4

    def loss(number: int) -> Tensor:
        out = model(x)
        kept = as_masked_tensor(out.detach(), mask) * 2
        share = torch.masked.softmax(out, 1, mask=mask)
        return kept.sum().get_data() + torch.masked.mean(share, mask=mask) + F.cross_entropy(out, y)

    return plain(model, loss)


@training
def memory_of_numpy() -> Training:
    """Parameters, inputs and gradients whose memory belongs to numpy arrays, which are read and written meanwhile."""
    model, (x, y) = mlp(), batch()
    arrays = [np.array(p.detach().numpy()) for p in model.parameters()]
    gradients = [np.zeros_like(each) for each in arrays]
    for p, array, gradient in zip(model.parameters(), arrays, gradients, strict=True):
        p.data = torch.from_numpy(array)
        p.grad = torch.from_numpy(gradient)
    seen: list[float] = []

    def step(number: int) -> Tensor:
        loss = F.cross_entropy(model(torch.from_dlpack(x.numpy()) * 1), y)
        for gradient in gradients:
            gradient[...] = 0
        loss.backward()
        for array, gradient in zip(arrays, gradients, strict=True):
            array -= 0.1 * gradient
            seen.append(float(np.abs(gradient).sum()))
        return loss

    return Training(step, (model, arrays, gradients, seen))


# -- copies and averages ----------------------------------------------------------------------------------------------


@training
def averaged_by_hooks() -> Training:
    """An exponential average that the optimizer's hook moves on, and batch norm statistics that are made anew."""
    model, (x, y) = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)), batch()
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    optimizer = optim.AdamW(model.parameters(), lr=0.01)
    optimizer.register_step_post_hook(lambda *given: average.update_parameters(model))
    inner = plain(model, lambda number: F.cross_entropy(model(x), y), optimizer)

    def step(number: int) -> Any:
        out = inner.step(number)
        if number % 2:
            update_bn([x, x * 2], average)
        return out, average(x).sum()

    return Training(step, (model, average, optimizer))


@training
def frozen_and_shared_on_the_way() -> Training:
    """Layers are frozen, shared, copied, pickled and replaced in the middle of a forward pass."""
    model, (x, y) = nn.Sequential(*(nn.Linear(6, 6) for _ in range(4)), nn.Linear(6, 3)), batch()
    optimizer, copies = optim.SGD(model.parameters(), lr=0.1, momentum=0.9), []

    def step(number: int) -> Tensor:
        optimizer.zero_grad()
        h = model[0](x)
        model[1].requires_grad_(number % 2 == 0)
        if number == 2:
            model[2].weight = model[3].weight
        copies.append(pickle.loads(pickle.dumps(model[1])))
        copies.append(copy.deepcopy(model[2].share_memory()))
        with contextlib.suppress(RuntimeError):
            copy.deepcopy(h)
        for layer in list(model)[1:]:
            h = layer(h)
        loss = F.cross_entropy(h, y) / math.e
        loss.backward()
        optimizer.step()
        return loss

    return Training(step, (model, optimizer, copies))
