"""Trainings with odd objects in them: modules, names, arguments, tensors, hooks, transforms, code without a file."""

from __future__ import annotations

import contextlib
import copy
import gc
import types
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn, optim
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, linearize, stack_module_state, vjp, vmap
from torch.nn.modules import module as module_hooks
from torch.nn.utils import parametrize, prune
from torch.optim import optimizer as optimizer_hooks
from torch.overrides import TorchFunctionMode, handle_torch_function, has_torch_function
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

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


# -- hooks ------------------------------------------------------------------------------------------------------------


@training
def hooks_for_all_modules() -> Training:
    """Global hooks of the user come and go inside of each other, change what passes, and raise once."""
    model, (x, y) = mlp(), batch()
    seen: list[str] = []

    def before(module: nn.Module, args: Any) -> Any:
        seen.append(f"before {type(module).__name__}")
        return (args[0] * 1.1,) if isinstance(module, nn.ReLU) else None

    def after(module: nn.Module, args: Any, out: Any) -> Any:
        seen.append(f"after {type(module).__name__}")
        if isinstance(module, nn.ReLU):
            handle = module_hooks.register_module_forward_pre_hook(before)
            handles.append(handle)
        return out * 1.01

    def backward(module: nn.Module, inner: Any, outer: Any) -> Any:
        seen.append(f"backward {type(module).__name__}")
        return tuple(None if each is None else each * 0.9 for each in inner)

    handles: list[Any] = []
    inner = plain(model, lambda number: F.cross_entropy(model(x), y), None, seen)

    def step(number: int) -> Any:
        handles.append(module_hooks.register_module_forward_hook(after, always_call=number % 2 == 0))
        handles.append(module_hooks.register_module_full_backward_hook(backward))
        handles.append(optimizer_hooks.register_optimizer_step_pre_hook(lambda *given: seen.append("step")))
        handles.append(optimizer_hooks.register_optimizer_step_post_hook(lambda *given: seen.append("stepped")))
        out = inner.step(number)
        while handles:
            handles.pop(0).remove()
        return out

    return Training(step, inner.holds)


@training
def hooks_in_the_graph() -> Training:
    """Hooks of nodes, edges and tensors, several at once, some taken off while they run; metadata on nodes."""
    model, (x, y) = mlp(), batch()
    seen: list[Any] = []

    def loss(number: int) -> Tensor:
        h = model(x)
        h.retain_grad()
        node = h.grad_fn
        assert node is not None
        node.metadata["mine"] = number
        once = node.register_prehook(lambda upstream: (once.remove(), seen.append("pre"))[2:] or None)
        node.register_hook(lambda inner, outer: seen.append((len(inner), len(outer), node.name())))
        torch.autograd.graph.register_multi_grad_hook([h, *model.parameters()], lambda all_: seen.append(len(all_)))
        torch.autograd.graph.register_multi_grad_hook([h], lambda one: seen.append("any"), mode="any")
        h.register_hook(lambda slope: slope * 0.5)
        edge = torch.autograd.graph.get_gradient_edge(h)
        out = F.cross_entropy(h, y)
        (slope,) = torch.autograd.grad(out, [edge], retain_graph=True)
        seen.append(float(slope.abs().sum()))
        return out

    return plain(model, loss, None, seen)


@training
def writes_to_what_is_saved() -> Training:
    """`allow_mutation_on_saved_tensors` around a step, and hooks that raise when a tensor is saved."""
    model, (x, y) = mlp(), batch()
    inner = plain(model, lambda number: F.cross_entropy(double_(model(x).sigmoid()), y))
    caught: list[str] = []

    def double_(h: Tensor) -> Tensor:
        return h.exp().mul_(2) + h.mul_(2)

    def refuse(tensor: Tensor) -> Any:
        raise RuntimeError("nothing is saved")

    def step(number: int) -> Any:
        with contextlib.suppress(RuntimeError), torch.autograd.graph.saved_tensors_hooks(refuse, lambda each: each):
            model(x).exp()
            caught.append("saved")
        with torch.autograd.graph.allow_mutation_on_saved_tensors():
            return inner.step(number)

    return Training(step, (*inner.holds, caught))


@training
def steps_that_are_hooked() -> Training:
    """An optimizer whose hooks step another one, change its groups, and load its state, while it steps."""
    model, other, (x, y) = mlp(), mlp(), batch()
    optimizer, second = optim.Adam(model.parameters(), lr=0.01), optim.SGD(other.parameters(), lr=0.1, momentum=0.5)

    def before(stepper: Any, args: Any, kwargs: Any) -> None:
        F.cross_entropy(other(x), y).backward()
        second.step()
        second.zero_grad()
        stepper.param_groups[0]["lr"] *= 0.9

    def after(stepper: Any, args: Any, kwargs: Any) -> None:
        stepper.load_state_dict(copy.deepcopy(stepper.state_dict()))

    optimizer.register_step_pre_hook(before)
    optimizer.register_step_post_hook(after)
    return plain(model, lambda number: F.cross_entropy(model(x), y), optimizer, other, second)


# -- modes and overrides ----------------------------------------------------------------------------------------------


class Replaces(TorchDispatchMode):
    """Puts other results in the place of some, trains inside, and raises for one operation."""

    def __init__(self, work: Callable[[], None]) -> None:
        super().__init__()
        self.work, self.seen = work, []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.relu.default:
            self.work()
            return out * 1.5
        if func is torch.ops.aten.erf.default:
            raise NotImplementedError("no erf")
        return out


class Calls(TorchFunctionMode):
    """Calls other functions than those that were called."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.relu:
            return F.silu(*args)
        with torch._C.DisableTorchFunction():
            return func(*args, **(kwargs or {}))


@training
def modes_that_interfere() -> Training:
    model, other, (x, y) = mlp(), mlp(), batch()
    second, seen = optim.SGD(other.parameters(), lr=0.1), []

    def work() -> None:
        with torch.enable_grad(), _disable_current_modes():
            second.zero_grad()
            loss = F.cross_entropy(other(x), y)
        seen.append(float(loss))

    def loss(number: int) -> Tensor:
        with Replaces(work):
            h = model(x)
            with contextlib.suppress(NotImplementedError):
                h.erf()
        with Calls():
            return F.cross_entropy(F.relu(h) + model(x), y)

    return plain(model, loss, None, other, second, seen)


class Unhashable:
    """A function as others override it: callable, and not to be hashed or compared."""

    __eq__ = refuses
    __hash__ = None  # type: ignore[assignment]

    def __call__(self, x: Any) -> Any:
        if has_torch_function((x,)):
            return handle_torch_function(self, (x,), x)
        return x * 2


class Duck:
    """No tensor, but torch functions take it."""

    def __init__(self, value: Tensor) -> None:
        self.value = value

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*(each.value if isinstance(each, Duck) else each for each in args), **(kwargs or {}))

    __eq__ = __bool__ = __len__ = __getattr__ = refuses
    __hash__ = None  # type: ignore[assignment]


@training
def overridden_functions() -> Training:
    """Functions that cannot be hashed, and arguments that are no tensors but act for some."""
    model, (x, y) = mlp(), batch()
    double = Unhashable()

    def loss(number: int) -> Tensor:
        h = double(Duck(model(x)))
        return F.cross_entropy(torch.add(h, Duck(h)) + torch.stack([double(h), h]).sum(0), y)

    return plain(model, loss)


# -- transforms and compilers -----------------------------------------------------------------------------------------


@training
def transforms_in_transforms() -> Training:
    """Hessians, Jacobians both ways, `linearize`, `vjp` of `jvp`, an ensemble, and random numbers under `vmap`."""
    model, (x, y) = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)), (torch.randn(5, 3), torch.randn(5, 1))
    kept: list[Tensor] = []

    def loss(number: int) -> Tensor:
        weights = dict(model.named_parameters())

        def energy(one: Tensor) -> Tensor:
            return functional_call(model, weights, one[None]).sum()

        laplacian = vmap(lambda one: hessian(energy)(one).diagonal().sum())(x)
        slopes = vmap(jacrev(energy))(x) - vmap(jacfwd(energy))(x) + vmap(grad(energy))(x)
        _, tangent = jvp(lambda h: model(h), (x,), (torch.ones_like(x),))
        _, pull = vjp(model, x)
        _, push = linearize(lambda h: h.sin(), x)
        noise = vmap(lambda one: one + torch.randn(()), randomness="different")(x)
        kept.append(noise)
        return laplacian.sum() + slopes.sum() + tangent.sum() + pull(y)[0].sum() + push(x).sum() + model(noise).sum()

    return plain(model, loss, None, kept)


@training
def ensemble_by_vmap() -> Training:
    models, (x, y) = [mlp() for _ in range(3)], batch()
    weights, buffers = stack_module_state(models)  # type: ignore[arg-type]
    skeleton = copy.deepcopy(models[0]).to("meta")
    optimizer = optim.SGD(list(weights.values()), lr=0.1)

    def step(number: int) -> Tensor:
        optimizer.zero_grad()
        out = vmap(lambda w, b: functional_call(skeleton, (w, b), x), randomness="same")(weights, buffers)
        loss = vmap(lambda each: F.cross_entropy(each, y))(out).sum()
        loss.backward()
        optimizer.step()
        return loss

    return Training(step, (weights, optimizer))


@training
def traced_in_the_step() -> Training:
    """make_fx, symbolic tracing, scripting, export and a compiler's front end, in the middle of the forward pass."""
    from torch._functorch.aot_autograd import aot_function
    from torch.fx.experimental.proxy_tensor import make_fx

    model, (x, y) = mlp(), batch()

    def twice(h: Tensor) -> Tensor:
        return (h.tanh() * 2).relu()

    ways: list[Callable[[Tensor], Tensor]] = [
        lambda h: make_fx(twice)(h.detach())(h),
        lambda h: torch.fx.symbolic_trace(twice)(h),
        lambda h: torch.fx.Interpreter(torch.fx.symbolic_trace(nn.Sequential(nn.Tanh(), nn.ReLU()))).run(h),
        lambda h: torch.jit.trace(twice, h)(h),
        lambda h: aot_function(twice, fw_compiler=lambda graph, inputs: graph)(h),
        lambda h: torch.export.export(nn.Sequential(nn.Tanh()), (h.detach(),)).module()(h),
        lambda h: torch.compile(twice, backend="aot_eager")(h),
        lambda h: torch.func.functionalize(twice)(h),
    ]
    inner = plain(model, lambda number: F.cross_entropy(ways[number](model(x)), y))
    return Training(inner.step, inner.holds, steps=len(ways))


# -- memory -----------------------------------------------------------------------------------------------------------


@training
def memory_that_comes_and_goes() -> Training:
    """Storages are freed and filled again, exchanged, resized, shared by parameters, mapped from a file."""
    import tempfile

    flat = torch.randn(40)
    w, b, tied = (nn.Parameter(flat[:18].view(6, 3)), nn.Parameter(flat[18:21]), nn.Parameter(flat[15:21]))
    flat_gradient = torch.zeros(27)
    optimizer, (x, y) = optim.SGD([w, b, tied], lr=0.1), batch()
    mapped = torch.from_file(tempfile.mktemp(), shared=True, size=24).view(8, 3)

    def step(number: int) -> Tensor:
        w.grad, b.grad, tied.grad = flat_gradient[:18].view(6, 3), flat_gradient[18:21], flat_gradient[21:]
        flat_gradient.zero_()
        h = x @ w + b
        scratch = torch.ones(8, 3)
        size = scratch.untyped_storage().nbytes()
        scratch.untyped_storage().resize_(0)
        scratch.untyped_storage().resize_(size)
        scratch.fill_(0.5)
        mapped.copy_(h.detach())
        growing = torch.empty(0)
        growing.resize_(8, 3).copy_(mapped)
        growing.set_(mapped.untyped_storage(), 0, (8, 3), (3, 1))
        loss = F.cross_entropy(h * scratch + growing + tied.view(2, 3).sum(0), y)
        loss.backward()
        scratch.untyped_storage().resize_(0)
        optimizer.step()
        return loss

    return Training(step, (flat, flat_gradient, mapped, w, b, tied, optimizer))


@training
def overlapping_views() -> Training:
    """Views of views that overlap are written and trained; dlpack and numpy hand memory round."""
    base = torch.randn(12, requires_grad=True)
    optimizer, arrays = optim.SGD([base], lr=0.01), []

    def step(number: int) -> Tensor:
        optimizer.zero_grad()
        whole = base * 2
        rows = whole.as_strided((4, 6), (2, 1), 0)
        left, right = whole[:6], whole[6:]
        whole[::2].mul_(3)
        right.copy_(left.detach())
        handed = torch.from_dlpack(whole.detach())
        handed.numpy()[0] = 5.0
        arrays.append(np.asarray(handed).copy())
        loss = rows.square().sum() + torch.view_as_complex(whole.view(6, 2)).abs().sum() + right.sum()
        loss.backward()
        optimizer.step()
        return loss

    return Training(step, (base, optimizer, arrays))


@training
def deleted_as_soon_as_possible() -> Training:
    """Models, optimizers and losses that live for a step; what is made next gets their addresses."""
    (x, y), freed, weights = batch(), [], []

    def step(number: int) -> float:
        model = mlp()
        model.load_state_dict(weights[-1]) if weights else None
        optimizer = optim.SGD(model.parameters(), lr=0.1)
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        value = float(loss)
        del loss
        optimizer.step()
        weights.append(copy.deepcopy(model.state_dict()))
        del model, optimizer
        gc.collect()
        return value

    return Training(step, (weights, freed), steps=6)


@training
def updates_by_hand() -> Training:
    """Parameters are updated by `_foreach_`, `.data`, new tensors, and vectors of all; gradients are deleted."""
    from torch.nn.utils import parameters_to_vector, vector_to_parameters

    model, (x, y) = mlp(), batch()

    def by_vector(slopes: list[Tensor]) -> None:
        vector = parameters_to_vector(model.parameters()) - 0.1 * parameters_to_vector(slopes)
        vector_to_parameters(vector, model.parameters())

    def by_new_tensors(slopes: list[Tensor]) -> None:
        for module in model:
            for name, p in list(module._parameters.items()):
                assert p is not None
                module._parameters[name] = nn.Parameter((p - 0.1 * p.grad).detach())

    def by_data(slopes: list[Tensor]) -> None:
        for p, slope in zip(model.parameters(), slopes, strict=True):
            p.data -= 0.1 * slope
            del p.grad

    ways = [lambda slopes: torch._foreach_add_(list(model.parameters()), slopes, alpha=-0.1), by_vector, by_data]
    ways += [by_new_tensors, lambda slopes: model.load_state_dict({k: v * 0.9 for k, v in model.state_dict().items()})]

    def step(number: int) -> Tensor:
        model.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        with torch.no_grad():
            ways[number % len(ways)]([p.grad for p in model.parameters()])
        return loss

    return Training(step, (model,), steps=2 * len(ways))


class Reversible(torch.autograd.Function):
    """Keeps no tensors: its backward computes the input from the output, and the gradients by a pass of its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: nn.Module, *parameters: Tensor) -> Tensor:
        with torch.no_grad():
            left, right = x.chunk(2, -1)
            out = torch.cat([left + layer(right), right], -1)
        ctx.layer, ctx.parameters = layer, parameters
        ctx.save_for_backward(out)
        ctx.set_materialize_grads(False)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> Any:
        (out,) = ctx.saved_tensors
        _, right = out.chunk(2, -1)
        with torch.enable_grad():
            right = right.detach().requires_grad_()
            inner = ctx.layer(right)
            slopes = torch.autograd.grad(inner, [right, *ctx.parameters], upstream.chunk(2, -1)[0])
        return torch.cat([upstream.chunk(2, -1)[0], upstream.chunk(2, -1)[1] + slopes[0]], -1), None, *slopes[1:]


@training
def reversible_layers() -> Training:
    layers, (x, y) = nn.ModuleList([nn.Linear(3, 3) for _ in range(3)]), batch()

    def loss(number: int) -> Tensor:
        h = x
        for layer in layers:
            h = Reversible.apply(h, layer, *layer.parameters()).flip(-1)
        return F.cross_entropy(h, y)

    return plain(layers, loss)


@training
def evaluated_in_inference_mode() -> Training:
    """Validation in inference mode in the middle of a step, on a copy, on the model, and on its submodules."""
    model, (x, y) = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 3)), batch()
    scores: list[Tensor] = []

    def loss(number: int) -> Tensor:
        h = model[:2](x)
        model.eval()
        with torch.inference_mode():
            scores.append(model(x).clone())
            scores.append(copy.deepcopy(model)(x + 1))
        model.train()
        return F.cross_entropy(model[2:](h + scores[0].sum().item() * 0.001), y)

    return plain(model, loss, None, [])
