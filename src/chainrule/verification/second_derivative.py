"""The second derivative of a function, as the first derivative of another one that the gradient check can check.

That other function takes the variables and the upstream gradients of the first derivative and gives what autograd gives
for the variables. Its own backward is autograd's double backward. Differences of its outputs, which are differences of
the first derivative, then measure the second one, whatever way the user's backward computes it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from chainrule.execution.experiment import nothing_left_behind
from chainrule.graph.reexecution import unobserved
from chainrule.graph.trees import map_leaves, tensors_in
from chainrule.verification.conditions import random_upstream
from chainrule.verification.rows import GradientCheck, Row


@dataclass(frozen=True)
class SecondDerivative:
    """An `autograd.Function` whose backward is a double backward, with the inputs to verify it on."""

    function: type[torch.autograd.Function]
    inputs: tuple[Tensor, ...]

    def rows(self, check: GradientCheck) -> Iterator[Row]:
        """The rows of the function itself: no repairs, as its backward is autograd's and not the user's."""
        for row in check.rows:
            if row.node.function_class is not None and row.node.function_class.__name__ == self.function.__name__:
                yield replace(row, reason=f"second derivative: {row.reason}", repairs=())


def has_derivative(tensor: Tensor) -> bool:
    """Whether its numbers are real or complex."""
    return tensor.is_floating_point() or tensor.is_complex()


def second_derivative(call: Callable[..., Any], fn: Any, given: Any, outs: list[Tensor]) -> SecondDerivative:
    """Of `call` on the inputs `given`, where it gave `outs`; a module's parameters are variables too."""
    variables = [each for each in tensors_in(given) if has_derivative(each)]
    parameters = dict(fn.named_parameters()) if isinstance(fn, torch.nn.Module) else {}
    upstream = [g for g in random_upstream(outs) if g is not None]
    first = [*variables, *parameters.values()]

    def derivative(*tensors: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """The variables, and the gradient of each, with a graph of its own."""
        leaves = [each.detach().requires_grad_() for each in tensors]
        places = iter(leaves)
        arguments, keywords = map_leaves(
            lambda leaf: next(places) if isinstance(leaf, Tensor) and has_derivative(leaf) else leaf, given
        )
        if isinstance(fn, torch.nn.Module):
            state = dict(zip(parameters, places, strict=False))
            buffers = {name: each.detach().clone() for name, each in fn.named_buffers()}
            out = torch.func.functional_call(fn, {**buffers, **state}, tuple(arguments), keywords)
        else:
            out = call(*arguments, **keywords)
        found = [
            each for each in tensors_in(list(out.values()) if isinstance(out, dict) else out) if each.requires_grad
        ]
        wanted, seeds = leaves[: len(first)], leaves[len(first) :]
        grads = torch.autograd.grad(found, wanted, seeds, create_graph=True, allow_unused=True)
        return leaves, [torch.zeros_like(x) if g is None else g for x, g in zip(wanted, grads, strict=True)]

    def forward(ctx: Any, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(*tensors)
        ctx.random_state = torch.get_rng_state()
        with unobserved(), torch.enable_grad():
            found = [each.detach() for each in derivative(*tensors)[1]]
        return tuple(each.clone() for each in found)  # the recorder knows a function by the operations that it sees

    def backward(ctx: Any, *sent: Tensor) -> tuple[Tensor | None, ...]:
        with unobserved(), nothing_left_behind(), torch.enable_grad():
            torch.set_rng_state(ctx.random_state)
            leaves, grads = derivative(*ctx.saved_tensors)
            depending = [(each, g) for each, g in zip(grads, sent, strict=True) if each.requires_grad]
            if not depending:
                return (None,) * len(leaves)
            return torch.autograd.grad(
                [each for each, _ in depending], leaves, [g for _, g in depending], allow_unused=True
            )

    name = str(getattr(fn, "__name__", type(fn).__name__))
    functions = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    function = type(f"{name.strip('<>')}_second_derivative", (torch.autograd.Function,), functions)
    return SecondDerivative(function, tuple(each.detach() for each in (*first, *upstream)))
