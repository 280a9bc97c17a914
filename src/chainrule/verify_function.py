"""`chainrule.verify(fn, *inputs)`: checks the gradients of one function at one point, without a training step.

The outputs get random upstream gradients, so that no error is hidden by symmetry. Whatever running the function changes
is restored: `.grad` of the leaves that it reads, buffers of a module, its attributes and other Python objects that it
leads to, random generators.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from chainrule.errors import RecordingError
from chainrule.execution.experiment import nothing_left_behind
from chainrule.execution.user_code import UserCode
from chainrule.graph.trees import map_leaves, reach, tensors_in
from chainrule.recording import record
from chainrule.report.headline import with_names
from chainrule.verification.gradient_check import verify as check_gradients
from chainrule.verification_result import Verification


def verify(fn: Callable[..., Any] | type[torch.autograd.Function], *inputs: Any, **keywords: Any) -> Verification:
    """Check the gradients of a function, a module, or an `autograd.Function` (the class, or its `.apply`) on inputs.

    Copies of the real or complex tensors among the inputs are the variables; the inputs do not change.

    >>> import torch, chainrule
    >>> chainrule.verify(torch.nn.functional.gelu, torch.randn(3, 4)).passed
    True

    Raises RecordingError where `fn` cannot be called, fails on these inputs in forward or backward, or returns nothing
    that depends on a variable.
    """
    name = _name(fn)
    call = _callable(fn, name)
    with nothing_left_behind(), UserCode(fn).restored(), _restored(fn), torch.enable_grad():
        arguments, named = _variables(inputs), _variables(keywords)
        with record(namespace={}) as recording:
            out = _tried(lambda: call(*arguments, **named), name, "on these inputs")
            outs = [each for each in tensors_in(_values(out)) if each.requires_grad]
            if not outs:
                raise RecordingError(_nothing(name, [*tensors_in((arguments, list(named.values())))], out))
            with _gradients_restored(outs):
                seeds = _projection(outs)
                _tried(lambda: torch.autograd.backward(outs, seeds), name, "in its backward")
        check = check_gradients(recording.graph)
        return Verification.of(with_names(check, recording.graph, lambda: recording.derivation))


def _name(fn: Any) -> str:
    owner = getattr(fn, "__self__", None)
    if isinstance(owner, type) and issubclass(owner, torch.autograd.Function):
        return owner.__name__
    return str(getattr(fn, "__name__", type(fn).__name__))


def _callable(fn: Any, name: str) -> Callable[..., Any]:
    if isinstance(fn, type) and issubclass(fn, torch.autograd.Function):
        apply: Callable[..., Any] = fn.apply
        return apply
    if isinstance(fn, Tensor) or not callable(fn):
        given = repr(fn) if isinstance(fn, str) else f"a {type(fn).__name__}"
        raise RecordingError(
            f"chainrule.verify: {given} cannot be called. Give a "
            "function, a module or an autograd.Function first, then its inputs: chainrule.verify(fn, x, y)."
        )
    if isinstance(fn, type):
        raise RecordingError(f"chainrule.verify: {name} is a class. Give an instance of it: {name}(...).")
    return fn  # type: ignore[no-any-return]


def _variables(tree: Any) -> Any:
    """Copies of all tensors; those with derivatives require gradients."""

    def variable(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        return leaf.detach().clone().requires_grad_(leaf.is_floating_point() or leaf.is_complex())

    return map_leaves(variable, tree)


def _values(out: Any) -> Any:
    return list(out.values()) if isinstance(out, dict) else out


def _tried(run: Callable[[], Any], name: str, where: str) -> Any:
    try:
        return run()
    except Exception as error:
        lines = str(error).strip().splitlines()
        writes = lines and "a leaf Variable that requires grad" in lines[0]
        advice = f" It writes to what it is given: chainrule.verify(lambda x: {name}(x.clone()), x)." if writes else ""
        raise RecordingError(
            f"chainrule.verify: {name} failed {where}: {type(error).__name__}{': ' + lines[0] if lines else ''}{advice}"
        ) from error


def _nothing(name: str, inputs: list[Tensor], out: Any) -> str:
    if not inputs:
        return f"chainrule.verify: {name} got no tensor. Give its inputs after it: chainrule.verify(fn, x, y)."
    if not any(each.requires_grad for each in inputs):
        return f"chainrule.verify: no input of {name} has real or complex numbers, so there is no derivative to verify."
    if not list(tensors_in(_values(out))):
        return f"chainrule.verify: {name} returned {type(out).__name__}, and no tensor."
    return (
        f"chainrule.verify: what {name} returned does not depend on its inputs for autograd. It may detach them, run "
        "under no_grad, or go through NumPy."
    )


def _projection(outs: list[Tensor]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    draws = [torch.randn(each.shape, dtype=torch.float64, generator=generator) for each in outs]
    return [draw.to(each.device).to(each.dtype) for draw, each in zip(draws, outs, strict=True)]


@contextmanager
def _restored(fn: Any) -> Iterator[None]:
    """Restore a module's buffers (running statistics) at the end."""
    buffers = [(each, each.detach().clone()) for each in fn.buffers()] if isinstance(fn, torch.nn.Module) else []
    try:
        yield
    finally:
        for buffer, before in buffers:
            with torch.no_grad():
                buffer.copy_(before)


@contextmanager
def _gradients_restored(outs: list[Tensor]) -> Iterator[None]:
    """Clear `.grad` of every leaf behind the outputs, and restore it at the end."""
    roots = [each.grad_fn for each in outs if each.grad_fn is not None]
    nodes = reach(roots, lambda node: [each for each, _ in node.next_functions if each is not None])
    before = [(node.variable, node.variable.grad) for node in nodes if hasattr(node, "variable")]
    for leaf, _ in before:
        leaf.grad = None
    try:
        yield
    finally:
        for leaf, grad in before:
            leaf.grad = grad
