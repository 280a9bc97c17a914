"""The second derivative of a function, as the first derivative of another one that the gradient check can check.

That other function takes the variables and the upstream gradients of the first derivative and gives what autograd gives
for the variables. Its own backward is autograd's double backward. Differences of its outputs, which are differences of
the first derivative, then measure the second one, whatever way the user's backward computes it.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from chainrule.execution.experiment import nothing_left_behind, widened
from chainrule.graph.reexecution import functions_unobserved
from chainrule.graph.trees import map_leaves, reach, tensors_in
from chainrule.verification.conditions import random_upstream


class OnceError(RuntimeError):
    """A backward that refuses to be differentiated."""


class SecondDerivative(NamedTuple):
    """An `autograd.Function` whose backward is a double backward, with the inputs to verify it on."""

    function: type[torch.autograd.Function]
    inputs: tuple[Tensor, ...]


def has_derivative(tensor: Tensor) -> bool:
    """Whether its numbers are real or complex."""
    return tensor.is_floating_point() or tensor.is_complex()


def second_derivative(
    call: Callable[..., Any], fn: Any, given: Any, names: list[str], outs: list[Tensor]
) -> SecondDerivative:
    """Of `call` on the inputs `given`, where it gave `outs`; a module's parameters are variables too.

    It draws the same random numbers whenever it runs.
    """
    variables = [each for each in tensors_in(given) if has_derivative(each)]
    parameters = dict(fn.named_parameters()) if isinstance(fn, torch.nn.Module) else {}
    upstream = [g for g in random_upstream(outs) if g is not None]
    first, random_state = [*variables, *parameters.values()], torch.get_rng_state()

    def derivative(*tensors: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """The variables, and the gradient of each, with a graph of its own."""
        torch.set_rng_state(random_state)
        leaves = [each.detach().requires_grad_() for each in tensors]
        places = iter(leaves)
        arguments, keywords = map_leaves(
            lambda leaf: next(places) if isinstance(leaf, Tensor) and has_derivative(leaf) else leaf, given
        )
        if isinstance(fn, torch.nn.Module):
            state = dict(zip(parameters, places, strict=False))
            buffers = {name: each.detach().clone() for name, each in fn.named_buffers()}
            state |= widened(buffers) if leaves[0].dtype != first[0].dtype else buffers  # differences: in float64
            out = torch.func.functional_call(fn, state, tuple(arguments), keywords)
        else:
            out = call(*arguments, **keywords)
        found = [x for x in tensors_in(list(out.values()) if isinstance(out, dict) else out) if x.requires_grad]
        wanted, seeds = leaves[: len(first)], leaves[len(first) :]
        grads = torch.autograd.grad(found, wanted, seeds, create_graph=True, allow_unused=True)
        return leaves, [torch.zeros_like(x) if g is None else g for x, g in zip(wanted, grads, strict=True)]

    def forward(ctx: Any, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(*tensors)
        with functions_unobserved(), nothing_left_behind(), torch.enable_grad():
            found = [each.detach() for each in derivative(*tensors)[1]]
        return tuple(each.clone() for each in found)  # the recorder knows a function by the operations that it sees

    def backward(ctx: Any, *sent: Tensor) -> tuple[Tensor | None, ...]:
        with functions_unobserved(), nothing_left_behind(), torch.enable_grad():
            leaves, grads = derivative(*ctx.saved_tensors)
            pairs = [(each, g) for each, g in zip(grads, sent, strict=True) if each.requires_grad]
            if not pairs:
                return (None,) * len(leaves)
            roots = [each.grad_fn for each, _ in pairs if each.grad_fn is not None]
            nodes = reach(roots, lambda node: [each for each, _ in node.next_functions if each is not None])
            if any(type(node).__name__ == "Error" for node in nodes):  # which autograd.grad would pass by in silence
                raise OnceError("a backward on its way is marked @once_differentiable")
            return torch.autograd.grad([each for each, _ in pairs], leaves, [g for _, g in pairs], allow_unused=True)

    labels = [
        *names,
        *parameters,
        *(f"upstream_{i}" if len(upstream) > 1 else "upstream" for i in range(len(upstream))),
    ]
    forward.__signature__ = _signature(labels)  # type: ignore[attr-defined]
    functions = {"forward": staticmethod(forward), "backward": staticmethod(backward), "runs": fn}
    function = type("SecondDerivative", (torch.autograd.Function,), functions)
    return SecondDerivative(function, tuple(each.detach() for each in (*first, *upstream)))


def _signature(labels: list[str]) -> inspect.Signature:
    """Names of arguments, from what variables and parameters are called."""
    names = [re.sub(r"\W+", "_", label.strip("`")).strip("_") for label in labels]
    unique = [name if name.isidentifier() and names.count(name) == 1 else f"input_{i}" for i, name in enumerate(names)]
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    return inspect.Signature([inspect.Parameter(name, kind) for name in ("ctx", *unique)])
