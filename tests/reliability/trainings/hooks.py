"""Trainings with hooks, modes, overridden functions, transforms, and tracers in the step."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn, optim
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, linearize, stack_module_state, vjp, vmap
from torch.nn.modules import module as module_hooks
from torch.optim import optimizer as optimizer_hooks
from torch.overrides import TorchFunctionMode, handle_torch_function, has_torch_function
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from tests.reliability.trainings.base import Training, batch, mlp, plain, training
from tests.reliability.trainings.objects import refuses


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
