"""Trainings that reach into autograd: hooks of several tensors, edges, what is saved, passes in passes, retries."""

from __future__ import annotations

import contextlib
import gc
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn, optim
from torch.autograd.function import once_differentiable
from torch.autograd.graph import (
    GradientEdge,
    disable_saved_tensors_hooks,
    get_gradient_edge,
    register_multi_grad_hook,
    save_on_cpu,
    saved_tensors_hooks,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    checkpoint_sequential,
    create_selective_checkpoint_contexts,
    set_checkpoint_early_stop,
)

from tests.reliability.trainings.base import Training, batch, mlp, plain, training

# -- hooks ------------------------------------------------------------------------------------------------------------


@training
def hooks_of_several_gradients() -> Training:
    """`register_multi_grad_hook` in both modes, on parameters and activations, one of which gets no gradient."""
    model, (x, y), seen = mlp(), batch(), []

    def loss(number: int) -> Tensor:
        h = model[0](x)
        unused = h.detach().requires_grad_() * 2
        out = model[1:](h)
        watched = [h, out, unused, *model.parameters()]
        register_multi_grad_hook(watched, lambda grads: seen.append([g is None for g in grads]))
        register_multi_grad_hook(watched, lambda grad: seen.append(float(grad.sum())), mode="any")
        register_multi_grad_hook([h], lambda grads: seen.append(h.grad_fn.name()))
        return F.cross_entropy(out, y)

    return plain(model, loss, None, seen)


@training
def gradients_by_edges() -> Training:
    """Passes that begin and end at edges of the graph; tensors are deleted before."""
    model, (x, y), seen = mlp(), batch(), []
    optimizer = optim.SGD(model.parameters(), lr=0.1)

    def step(number: int) -> Tensor:
        optimizer.zero_grad()
        h = model[0](x)
        edge = get_gradient_edge(h)
        loss = F.cross_entropy(model[1:](h), y)
        value = loss.detach()
        end = get_gradient_edge(loss)
        del h, loss
        (upstream,) = torch.autograd.grad(
            GradientEdge(end.node, end.output_nr), edge, torch.ones(()), retain_graph=True
        )
        seen.append(float(upstream.norm()))
        torch.autograd.backward(end, torch.ones(()), inputs=[get_gradient_edge(p) for p in model.parameters()])
        optimizer.step()
        return value

    return Training(step, (model, optimizer, seen))


@training
def hooks_that_raise_once() -> Training:
    """A hook of a parameter, a tensor, a node and an accumulation each raise; the loop catches and tries again."""
    model, (x, y), caught = mlp(), batch(), []
    optimizer = optim.SGD(model.parameters(), lr=0.1)

    def refuse(*given: Any) -> None:
        raise ValueError("not this time")

    places: list[Callable[[Tensor], Any]] = [
        lambda h: model[0].weight.register_hook(refuse),
        lambda h: h.register_hook(refuse),
        lambda h: h.grad_fn.register_prehook(refuse),
        lambda h: model[3].bias.register_post_accumulate_grad_hook(refuse),
    ]

    def step(number: int) -> Any:
        loss = None
        for attempt in range(3):
            optimizer.zero_grad()
            h = model[0](x)
            handle = places[number](h) if attempt == 0 else None
            loss = F.cross_entropy(model[1:](h), y)
            try:
                loss.backward(retain_graph=attempt == 1)
                if attempt == 1:
                    loss.backward()
                    loss.backward()
            except (ValueError, RuntimeError) as error:
                caught.append(type(error).__name__)
            if handle is not None:
                handle.remove()
        optimizer.step()
        return loss

    return Training(step, (model, optimizer, caught))


@training
def passes_in_passes() -> Training:
    """A hook trains another model, whose hook differentiates a third; and a Function runs a pass in its backward."""
    model, second, third, (x, y) = mlp(), mlp(), mlp(), batch()
    inner, seen = optim.SGD(second.parameters(), lr=0.1), []

    class Inside(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, h: Tensor) -> Tensor:
            ctx.save_for_backward(h)
            return h.sin()

        @staticmethod
        def backward(ctx: Any, upstream: Tensor) -> Tensor:
            (h,) = ctx.saved_tensors
            with torch.enable_grad():
                h = h.detach().requires_grad_()
                (grad,) = torch.autograd.grad(h.sin(), h, upstream)
            return grad

    def innermost(grad: Tensor) -> None:
        with torch.enable_grad():
            seen.append([float(g.sum()) for g in torch.autograd.grad(third(x).sum(), list(third.parameters()))])

    def inside(grad: Tensor) -> Tensor:
        with torch.enable_grad():
            inner.zero_grad()
            h = second[0](x)
            h.register_hook(innermost)
            F.cross_entropy(second[1:](h), y).backward()
            inner.step()
        return grad * 1.5

    def loss(number: int) -> Tensor:
        h = Inside.apply(model[0](x))
        h.register_hook(inside)
        return F.cross_entropy(model[1:](h), y)

    return plain(model, loss, None, second, third, inner, seen)


# -- what is saved ----------------------------------------------------------------------------------------------------


@training
def saved_on_disk() -> Training:
    """Saved tensors go to files, in fewer bits, and through two pairs of hooks; some of them raise."""
    model, (x, y), counts = mlp(), batch(), []
    folder = Path(tempfile.mkdtemp())

    def pack(tensor: Tensor) -> Path:
        name = folder / str(len(counts))
        counts.append(tensor.numel())
        torch.save(tensor, name)
        return name

    def pack_small(tensor: Tensor) -> tuple[Tensor, torch.dtype]:
        counts.append(-tensor.numel())
        return (tensor.to(torch.float8_e4m3fn) if tensor.is_floating_point() else tensor), tensor.dtype

    def refuse(tensor: Tensor) -> Tensor:
        raise OSError("the disk is full")

    def loss(number: int) -> Tensor:
        with saved_tensors_hooks(pack, torch.load), save_on_cpu():
            h = model[0](x)
        with saved_tensors_hooks(pack_small, lambda packed: packed[0].to(packed[1])):
            h = model[1:](h * h.exp().clamp(max=3))
        with contextlib.suppress(OSError), saved_tensors_hooks(refuse, refuse):
            h = h * h.sigmoid()
        return F.cross_entropy(h, y)

    return plain(model, loss, None, counts)


@training
def saved_tensors_may_not_be_hooked() -> Training:
    """`disable_saved_tensors_hooks` around the step, and inside of it."""
    model, (x, y), told = mlp(), batch(), []
    inner = plain(model, lambda number: F.cross_entropy(model(x), y))

    def step(number: int) -> Any:
        with disable_saved_tensors_hooks("not in this loop"):
            try:
                with save_on_cpu():
                    model(x)
            except RuntimeError as error:
                told.append(str(error))
            return inner.step(number)

    return Training(step, (*inner.holds, told))


@training
def saved_tensors_are_read() -> Training:
    """What nodes saved is read by name, raw, and after it was freed."""
    model, (x, y), seen = mlp(), batch(), []
    optimizer = optim.SGD(model.parameters(), lr=0.1)

    def step(number: int) -> Tensor:
        optimizer.zero_grad()
        out = model(x).exp()
        loss = F.mse_loss(out, F.one_hot(y, 3).float())
        seen.append(float(out.grad_fn._saved_result.sum()))
        raw = loss.grad_fn._raw_saved_self
        if number % 2:
            raw.register_hooks(lambda tensor: tensor.double(), lambda tensor: tensor.float())
        del raw
        loss.backward()
        try:
            seen.append(float(out.grad_fn._saved_result.sum()))
        except RuntimeError as error:
            seen.append(str(error)[:40])
        optimizer.step()
        return loss

    return Training(step, (model, optimizer, seen))


# -- Functions and checkpoints ----------------------------------------------------------------------------------------


class Strange(torch.autograd.Function):
    """Everything a Function may say of itself at once."""

    @staticmethod
    def forward(x: Tensor, scale: float, shadow: Tensor) -> tuple[Tensor, Tensor, None, Tensor]:
        return x * scale, x.argmax(-1), None, shadow

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        x, scale, _ = inputs
        scaled, places, _, _ = output
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(places)
        ctx.save_for_backward(x, scaled)
        ctx.scale = scale
        ctx.itself = ctx  # a circle

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor | None, *rest: Any) -> Any:
        assert rest[:2] == (None, None)
        assert len(ctx.saved_tensors) == 2
        grad = None if upstream is None else upstream * ctx.scale
        return grad, None, rest[2]


class Doubles(torch.autograd.Function):
    """Writes to its input and says so."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x.mul_(2)
        ctx.mark_dirty(x)
        return x

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Tensor:
        return upstream * 2


@training
def functions_that_say_much() -> Training:
    """Functions with a context of their own, dirty inputs, missing gradients, outputs that are None or inputs."""
    model, (x, y), shadow = mlp(), batch(), torch.ones(3, requires_grad=True)

    def loss(number: int) -> Tensor:
        h = Doubles.apply(model[0](x) * 1.0)
        out, places, nothing, same = Strange.apply(model[1:](h), 0.5, shadow)
        assert nothing is None
        used = out if number % 2 else out.detach() + model[3].bias
        return F.cross_entropy(used + same * places.float().mean(), y)

    return plain(model, loss, None, shadow)


def _keep_products(ctx: Any, func: Any, *given: Any, **named: Any) -> CheckpointPolicy:
    products = (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)
    return CheckpointPolicy.MUST_SAVE if func in products else CheckpointPolicy.PREFER_RECOMPUTE


@training
def checkpoints_of_all_kinds() -> Training:
    """Nested, selective, without early stop, without random states, with debugging, and one whose second run raises."""
    model, (x, y) = (
        nn.Sequential(*(nn.Sequential(nn.Linear(6, 6), nn.GELU(), nn.Dropout(0.3)) for _ in range(6))),
        batch(),
    )
    runs: list[int] = []

    def once(h: Tensor) -> Tensor:
        runs.append(len(runs))
        if len(runs) == 4:
            raise InterruptedError("in the second run")
        return model[5](h)

    def parts(h: Tensor) -> Tensor:
        h = checkpoint(lambda a: checkpoint(model[0], a, use_reentrant=False) * 2, h, use_reentrant=False)
        h = checkpoint(
            model[1], h, use_reentrant=False, context_fn=lambda: create_selective_checkpoint_contexts(_keep_products)
        )
        with set_checkpoint_early_stop(False):
            h = checkpoint(model[2], h, use_reentrant=False, determinism_check="none")
        h = checkpoint(model[3], h, use_reentrant=True, preserve_rng_state=False)
        h = checkpoint(model[4], input=h, use_reentrant=False, debug=False)
        return checkpoint(once, h, use_reentrant=False)

    optimizer, caught = optim.Adam(model.parameters(), lr=0.01), []

    def step(number: int) -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(parts(x), y)
        try:
            loss.backward()
        except InterruptedError as error:
            caught.append(str(error))
        optimizer.step()
        return loss

    return Training(step, (model, optimizer, caught, runs))


@training
def checkpoints_with_contexts() -> Training:
    """`context_fn` with modes of the user's, lists of operations, early stop off around, and under autocast."""
    model, (x, y), seen = (
        nn.Sequential(*(nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Dropout(0.2)) for _ in range(4))),
        batch(),
        [],
    )

    class Named(TorchDispatchMode):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(f"{self.name} {func}")
            return func(*args, **(kwargs or {}))

    def loss(number: int) -> Tensor:
        h = checkpoint(model[0], x, use_reentrant=False, context_fn=lambda: (Named("first"), Named("again")))
        with set_checkpoint_early_stop(number % 2 == 0):
            h = checkpoint(model[1], h, use_reentrant=False, early_stop=True)
        with torch.autocast("cpu", torch.bfloat16):
            listed = [torch.ops.aten.mm.default, torch.ops.aten.addmm.default]
            h = checkpoint(
                model[2], h, use_reentrant=False, context_fn=lambda: create_selective_checkpoint_contexts(listed)
            )
        h = checkpoint_sequential(model[3], 2, h.float(), use_reentrant=False)
        return F.cross_entropy(h, y % 6)

    return plain(model, loss, None, seen)


# -- settings of autograd, and failures that are retried --------------------------------------------------------------


@contextlib.contextmanager
def _set_all(number: int) -> Iterator[None]:
    with (
        torch.autograd.set_multithreading_enabled(bool(number % 2)),
        torch.autograd._force_original_view_tracking(True) if number == 1 else contextlib.nullcontext(),
    ):
        yield


@training
def switches_of_autograd() -> Training:
    """Multithreading off and original views tracked, around a step and from the middle of it."""
    model, (x, y) = mlp(), batch()

    def loss(number: int) -> Tensor:
        h = model[0](x)
        with _set_all(number):
            h = h.view(-1)[:].view(8, 8)
            h[:, 0] = h[:, 1] * 2
            out = model[1:](h)
        return F.cross_entropy(out, y)

    inner = plain(model, loss)

    def step(number: int) -> Any:
        with _set_all(number + 1):
            return inner.step(number)

    return Training(step, inner.holds)


@training
def anomalies_that_are_caught() -> Training:
    """Anomaly detection finds NaN in a backward pass; the loop catches it, and goes on with another loss."""
    model, (x, y), caught = mlp(), batch(), []
    optimizer = optim.SGD(model.parameters(), lr=0.1)

    def step(number: int) -> Tensor:
        with torch.autograd.detect_anomaly(check_nan=True):
            for power in (0.5, 1.0):
                optimizer.zero_grad()
                out = model(x)
                loss = ((out - out.detach()).abs() ** power).sum() + F.cross_entropy(out, y)
                try:
                    loss.backward()
                except RuntimeError as error:
                    caught.append(str(error))
                    continue
                optimizer.step()
        return loss

    return Training(step, (model, optimizer, caught))


@training
def smaller_batches_after_failures() -> Training:
    """Memory runs out in forward, backward or update, and the step is tried again with half of the batch."""
    model, (x, y), sizes = mlp(dropout=0.1), batch(16), []
    optimizer = optim.AdamW(model.parameters(), lr=0.01)

    class Limited(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, h: Tensor, limit: int) -> Tensor:
            ctx.limit = limit
            if len(h) > 2 * limit:
                raise torch.OutOfMemoryError("in forward")
            return h * 1

        @staticmethod
        def backward(ctx: Any, upstream: Tensor) -> Any:
            if len(upstream) > ctx.limit:
                raise torch.OutOfMemoryError("in backward")
            return upstream, None

    def attempt(size: int, limit: int) -> Tensor:
        optimizer.zero_grad(set_to_none=False)
        loss = F.cross_entropy(Limited.apply(model(x[:size]), limit), y[:size])
        loss.backward()
        optimizer.step()
        return loss

    def step(number: int) -> Tensor:
        size = 16
        while True:
            sizes.append(size)
            try:
                return attempt(size, 2 + 2 * number)
            except torch.OutOfMemoryError:
                gc.collect()
            size //= 2

    return Training(step, (model, optimizer, sizes))


@training
def derivatives_by_functional() -> Training:
    """Jacobians, Hessians and products with them by `torch.autograd.functional`, batched and with a graph."""
    model, (x, y) = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3)), batch(3)

    def loss(number: int) -> Tensor:
        functional = torch.autograd.functional
        jacobian = functional.jacobian(lambda h: model(h).sum(0), x, create_graph=True, vectorize=bool(number % 2))
        product = functional.vhp(lambda h: model(h).square().sum(), x, torch.ones_like(x), create_graph=True)[1]
        out = model(x)
        batched = torch.autograd.grad(
            out, model[0].weight, torch.eye(9).view(9, 3, 3), is_grads_batched=True, retain_graph=True
        )[0]
        return F.cross_entropy(out, y) + 1e-2 * (jacobian.square().sum() + product.sum() + batched.sum().detach())

    return plain(model, loss)


@training
def passes_to_some_leaves() -> Training:
    """Several losses in one pass, some leaves at a time, gradients retained, and kept as views of one buffer."""
    model, (x, y), seen = mlp(), batch(), []
    sizes = [p.numel() for p in model.parameters()]
    flat = torch.zeros(sum(sizes))
    for p, part in zip(model.parameters(), flat.split(sizes), strict=True):
        p.grad = part.view_as(p)
    optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    def step(number: int) -> Tensor:
        flat.zero_()
        h = model[0](x)
        h.retain_grad()
        out = model[1:](h)
        losses = [F.cross_entropy(out, y), out.square().mean(1)]
        torch.autograd.backward(losses, [None, torch.full((8,), 0.1)], retain_graph=True, inputs=[model[3].weight, h])
        torch.autograd.backward(losses[0], inputs=[*model[0].parameters()])
        seen.append(float(h.grad.sum()))
        flat.clamp_(-0.1, 0.1)
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)
        return losses[0]

    return Training(step, (model, optimizer, flat, seen))
