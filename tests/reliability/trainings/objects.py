"""Trainings with odd objects in them: modules, names, arguments, code without a file."""

from __future__ import annotations

import types
import weakref
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn, optim
from torch.nn.utils import parametrize, prune

from tests.reliability.trainings.base import Training, batch, mlp, plain, training


def refuses(self: Any, *given: Any, **named: Any) -> Any:
    """What must not be asked."""
    raise RuntimeError("do not ask me")


class Refusing:
    """An object that answers no question that Python asks of itself."""

    __eq__ = __ne__ = __lt__ = __bool__ = __len__ = __iter__ = __contains__ = __repr__ = __str__ = refuses
    __getitem__ = __getattr__ = __call__ = __int__ = __float__ = __index__ = __array__ = __hash__ = refuses


class Liar(nn.Module):
    """A module that compares, counts and prints itself in no way, and whose class is none."""

    __eq__ = __bool__ = __len__ = __iter__ = __repr__ = __str__ = extra_repr = _get_name = refuses
    __contains__ = __getitem__ = refuses
    named_parameters_asked = 0

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 6))
        self.odd = Refusing()

    def __hash__(self) -> int:
        return 1

    def __getattr__(self, name: str) -> Any:
        if name in ("weight", "odd"):
            return super().__getattr__(name)
        raise KeyError(name)  # not an AttributeError

    def forward(self, x: Tensor, *rest: Any, **named: Any) -> Tensor:
        return F.linear(x, self.weight)


# -- modules ----------------------------------------------------------------------------------------------------------


@training
def modules_that_refuse() -> Training:
    model, (x, y) = Liar(), batch()
    weight = model._parameters["weight"]
    optimizer = optim.SGD([weight], lr=0.1)

    def step(number: int) -> Tensor:
        optimizer.zero_grad()
        odd = Refusing()
        loss = F.cross_entropy(model(x, odd, [odd, {"odd": odd}], odd=odd), y)
        loss.backward()
        optimizer.step()
        return loss

    return Training(step, (weight, optimizer))


class Counted(nn.Module):
    """Overrides what PyTorch walks through, and counts who asks."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)
        self.asked = 0

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        return iter([self.layer.weight, self.layer.bias])

    def named_parameters(self, *given: Any, **named: Any) -> Any:
        raise RuntimeError("not here")

    def named_modules(self, *given: Any, **named: Any) -> Any:
        yield from super().named_modules(*given, **named)

    def state_dict(self, *given: Any, **named: Any) -> Any:
        raise RuntimeError("not here")

    def train(self, mode: bool = True) -> Any:
        self.asked += 1
        return super().train(mode)

    def __dir__(self) -> Any:
        raise RuntimeError("not here")

    def forward(self, input: Tensor, args: Any = (), kwargs: Any = None, **self_: Any) -> Any:
        return {"args": self.layer(input), "self": None, 3: [self.layer(input)], "module": (x for x in ())}


@training
def modules_that_count() -> Training:
    """And whose arguments are called as ours are."""
    model, (x, y) = Counted(), batch()
    optimizer = optim.SGD(model.parameters(), lr=0.1)

    def step(number: int) -> Tensor:
        optimizer.zero_grad()
        out = model(x, args=(1,), kwargs={}, module=1, func=2, output=3)
        loss = F.cross_entropy(out["args"], y)
        loss.backward()
        optimizer.step()
        return loss

    return Training(step, (model.layer, optimizer, [model]), steps=4)


@training
def strange_names() -> Training:
    """Classes, modules, parameters and variables whose names are no words: surrogates, NUL, newlines, markup, dots."""
    odd = ["\udcff", "a\0b", "two\nlines", "<b>&amp;", "self", "a b", "%s{}", "chainrule", "ü" * 300, ""]
    kinds = [type(name.replace("\0", "0").encode("utf-8", "replace").decode() or "x", (nn.Linear,), {}) for name in odd]
    for kind in kinds[::2]:
        kind.__module__ = None  # type: ignore[assignment]
    model = nn.Module()
    for place, (name, kind) in enumerate(zip(odd, kinds, strict=True)):
        layer = kind(3, 3)
        model._modules[name] = layer
        if place % 3 == 0:
            layer._parameters[f"{name}?"] = nn.Parameter(torch.ones(3))
    x, y = torch.randn(4, 3), torch.randn(4, 3)
    model.forward = lambda h: functools_reduce(model, h)  # type: ignore[method-assign]
    return plain(model, lambda number: F.mse_loss(model(x), y))


def functools_reduce(model: nn.Module, h: Tensor) -> Tensor:
    for layer in model._modules.values():
        h = layer(h).tanh()  # type: ignore[misc]
        for name, each in layer._parameters.items():  # type: ignore[union-attr]
            h = h * each if name.endswith("?") else h  # type: ignore[operator]
    return h


@training
def modules_in_a_circle() -> Training:
    """A module that contains the one that contains it, one in several places, and one that is replaced in a step."""
    first, second, (x, y) = nn.Linear(6, 6), nn.Linear(6, 3), batch()
    first.other, second.other = second, first
    first.again = first
    optimizer = optim.SGD(first.parameters(), lr=0.1)

    def step(number: int) -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(second(first(x)), y)
        first._modules["again"] = nn.Linear(1, 1)
        first.__class__ = type("Renamed", (nn.Linear,), {})
        loss.backward()
        optimizer.step()
        first._modules["again"] = first
        return loss

    return Training(step, (first.weight, second.weight, optimizer))


@training
def wrapped_on_the_way() -> Training:
    """`forward`, `step` and `__call__` are wrapped on the objects and on their classes, and the wrappers taken off."""
    model, (x, y) = mlp(), batch()
    optimizer, calls = optim.Adam(model.parameters(), lr=0.01), []

    def wrapped(function: Any) -> Any:
        def wrapper(*given: Any, **named: Any) -> Any:
            calls.append(function.__name__)
            return function(*given, **named)

        return wrapper

    targets: list[tuple[Any, str]] = [
        (model[0], "forward"), (optimizer, "step"), (nn.Module, "__call__"), (optim.Adam, "step"), (Tensor, "backward"),
        (torch.autograd, "backward"), (optim.Optimizer, "zero_grad"), (nn.Module, "_call_impl"), (F, "cross_entropy"),
    ]  # fmt: skip

    def step(number: int) -> Tensor:
        target, name = targets[number % len(targets)]
        own = vars(target).get(name)
        setattr(target, name, wrapped(getattr(target, name)))
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        if own is None:
            delattr(target, name)
        else:
            setattr(target, name, own)
        return loss

    return Training(step, (model, optimizer, calls), steps=2 * len(targets))


@training
def functions_that_are_patched() -> Training:
    """Libraries replace functions and methods of PyTorch by wrappers that change the result, or by mocks."""
    model, (x, y) = mlp(dropout=0.2), batch()
    inner = plain(model, lambda number: F.cross_entropy(F.softmax(model(x), -1).clamp(0.1), y) + model(x).mean())
    calls: list[int] = []

    def halved(function: Any) -> Any:
        return lambda *given, **named: function(*given, **named) * 0.5

    def step(number: int) -> Any:
        with ExitStack() as patches:
            patches.enter_context(mock.patch.object(F, "cross_entropy", halved(F.cross_entropy)))
            patches.enter_context(mock.patch.object(Tensor, "mean", halved(Tensor.mean)))
            patches.enter_context(mock.patch.object(Tensor, "clamp", halved(Tensor.clamp)))
            patches.enter_context(mock.patch.object(F, "dropout", halved(F.dropout)))
            counted = patches.enter_context(mock.patch.object(F, "softmax", wraps=F.softmax))
            ran = mock.patch.object(torch.autograd, "backward", wraps=torch.autograd.backward)
            backward = patches.enter_context(ran)
            out = inner.step(number)
            calls.append(counted.call_count + 10 * backward.call_count)
        return out

    return Training(step, (*inner.holds, calls))


@training
def pruned_and_normed() -> Training:
    """Pruning, old and new weight norm, and cached parametrizations, put on and taken off between the passes."""
    model, (x, y) = mlp(), batch()

    def loss(number: int) -> Tensor:
        if number == 0:
            prune.l1_unstructured(model[0], "weight", amount=0.3)
            torch.nn.utils.weight_norm(model[3])  # the old one
        out = model(x)
        if number == 2:
            prune.remove(model[0], "weight")
            torch.nn.utils.remove_weight_norm(model[3])
            torch.nn.utils.parametrizations.weight_norm(model[3])
        with parametrize.cached():
            return F.cross_entropy(out + model(x), y)

    return plain(model, loss)


@training
def quantisation_in_training() -> Training:
    """Observers and fake quantisation, as `prepare_qat` puts them in."""
    from torch.ao.quantization import get_default_qat_qconfig, prepare_qat

    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(36, 3))
    model.qconfig = get_default_qat_qconfig("fbgemm")  # type: ignore[assignment]
    prepared = prepare_qat(model.train())
    x, y = torch.randn(4, 2, 5, 5), torch.randint(3, (4,))
    return plain(prepared, lambda number: F.cross_entropy(prepared(x), y))


@training
def made_by_exec() -> Training:
    """The code of the model has no file, its globals no name, and its file name no encoding."""
    source = """
class Made(nn.Module):
    def __init__(self):
        nn.Module.__init__(self)
        self.w = nn.Parameter(torch.ones(6, 3))
    def forward(self, x):
        return x @ self.w
def loss(model, x, y):
    return F.cross_entropy(model(x), y)
"""
    space: dict[str, Any] = {"nn": nn, "torch": torch, "F": F, "__name__": None}
    exec(compile(source, "\udcff\n<none>.py", "exec"), space)
    model, (x, y) = space["Made"](), batch()
    return plain(model, lambda number: space["loss"](model, x, y))


class Names(dict[str, Any]):
    """Local names that refuse to be listed."""

    items = values = keys = __iter__ = __len__ = copy = refuses


@training
def names_of_odd_things() -> Training:
    """A step whose local names hold dead proxies, liars about their class, and a mapping of names that refuses."""

    class Class:
        @property
        def __class__(self) -> Any:
            raise RuntimeError("none")

    model, (x, y) = mlp(), batch()
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    code = compile("proxy = dead; out = model(x); loss = F.cross_entropy(out, y); loss.backward()", "<odd>", "exec")

    def step(number: int) -> Tensor:
        dead: Any = weakref.proxy(Class())
        liar, refusing, own = Class(), Refusing(), types.SimpleNamespace()
        own.own = own
        optimizer.zero_grad()
        names = Names(dead=dead, model=model, x=x, y=y, F=F, liar=liar, refusing=refusing)
        exec(code, {}, names)
        loss = dict.__getitem__(names, "loss")
        optimizer.step()
        return loss

    return Training(step, (model, optimizer))
