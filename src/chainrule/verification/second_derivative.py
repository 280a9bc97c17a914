"""The second derivative of a function, as the first derivative of another one that the gradient check can check.

That other function takes the variables and the upstream gradients of the first derivative and gives what autograd gives
for the variables. Its own backward is autograd's double backward. Differences of its outputs, which are differences of
the first derivative, then measure the second one, whatever way the user's backward computes it.

`chainrule.verify(fn, order=2)` checks that function in full. In a step, where a later pass went back through a user's
backward, `wrong_in_step` compares the two along one random direction for each argument, at three step sizes: only what
stays apart while the differences stay the same is wrong.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from chainrule.execution.experiment import STEP, Experiment, cloned, nothing_left_behind, pick, put, widened
from chainrule.graph.comparison import rms
from chainrule.graph.graph import Edge
from chainrule.graph.reexecution import functions_unobserved, unobserved
from chainrule.graph.trees import map_leaves, reach, tensors_in
from chainrule.verification.differences import label_of

RELATIVE = 1e-5  # of the larger side, from which on derivative and differences differ
SAME = 0.05  # of that, by which the differences of three step sizes may differ
SHRINKS = (1.0, 2.0**-3, 2.0**-6)


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
    call: Callable[..., Any], fn: Any, given: Any, names: list[str], upstream: list[Tensor]
) -> SecondDerivative:
    """Of `call` on the inputs `given`, where its outputs get these gradients; a module's parameters are variables too.

    It draws the same random numbers whenever it runs.
    """
    variables = [each for each in tensors_in(given) if has_derivative(each)]
    parameters = dict(fn.named_parameters()) if isinstance(fn, torch.nn.Module) else {}
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
        with unobserved(), nothing_left_behind(), torch.enable_grad():
            found = [each.detach() for each in derivative(*tensors)[1]]
        return tuple(each.clone() for each in found)  # the only operations that the recorder sees: it draws nothing

    def backward(ctx: Any, *sent: Tensor) -> tuple[Tensor | None, ...]:
        with functions_unobserved(), nothing_left_behind(), torch.enable_grad():
            leaves, grads = derivative(*ctx.saved_tensors)
            pairs = [(each, g) for each, g in zip(grads, sent, strict=True) if each.requires_grad]
            if not pairs:
                return (None,) * len(leaves)
            if any(
                type(node).__name__ == "Error" for node in nodes_behind(each for each, _ in pairs)
            ):  # which autograd.grad would pass by in silence
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


def nodes_behind(outs: Iterable[Tensor]) -> Iterator[Any]:
    """The autograd nodes that lead to tensors."""
    roots = [each.grad_fn for each in outs if each.grad_fn is not None]
    return reach(roots, lambda node: [each for each, _ in node.next_functions if each is not None])


def _signature(labels: list[str]) -> inspect.Signature:
    """Names of arguments, from what variables and parameters are called."""
    names = [re.sub(r"\W+", "_", label.strip("`")).strip("_") for label in labels]
    unique = [name if name.isidentifier() and names.count(name) == 1 else f"input_{i}" for i, name in enumerate(names)]
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    return inspect.Signature([inspect.Parameter(name, kind) for name in ("ctx", *unique)])


def wrong_in_step(experiment: Experiment, edges: list[Edge]) -> str:
    """What is wrong with the second derivative of a user's function in a step, in words ("": nothing was found)."""
    place = _wrong_argument(_in_step(experiment, edges))
    if place is None:
        return ""
    name, why = "the gradient that arrives", ""
    if place < len(edges):
        name = f"`{label_of(edges[place])}`"
        why = ": what is kept on ctx carries no graph, unless it is an argument or an output"
    return (
        f"its backward was differentiated again, and the derivative of its gradient with respect to {name} is not the "
        f"one that differences measure{why}"
    )


def _in_step(experiment: Experiment, edges: list[Edge]) -> SecondDerivative:
    """That of a user's function in a step, in float64, by the arguments of these edges and by what arrived."""
    function: Any = experiment.function.function

    def call(*variables: Tensor) -> list[Tensor]:
        arguments = {
            name: cloned(tree) if name in experiment.writes else tree for name, tree in experiment.wide.items()
        }
        for edge, variable in zip(edges, variables, strict=True):
            put(arguments, edge, variable.clone())  # an in-place operation may not write to a leaf
        called = function.apply(*arguments.values()) if hasattr(function, "apply") else function(**arguments)
        outs = list(tensors_in(called))
        return [outs[place] for place in experiment.upstream]

    given = [pick(experiment.wide, edge) for edge in edges], dict[str, Any]()
    names = [edge.argument or "" for edge in edges]
    return second_derivative(call, function, given, names, list(widened(list(experiment.upstream.values()))))


def _wrong_argument(second: SecondDerivative) -> int | None:
    """The first input by which autograd gives another derivative than differences measure; None where none is found."""
    generator = torch.Generator().manual_seed(3)

    def noise(like: Tensor) -> Tensor:
        return torch.randn(like.shape, dtype=torch.float64, generator=generator).to(like)

    points, weights = second.inputs, list[Tensor]()

    def total(*variables: Tensor) -> Tensor:
        outs = second.function.apply(*variables)
        weights.extend(noise(out) for out in outs[len(weights) :])
        parts = [(out * w.conj()).real.sum() for out, w in zip(outs, weights, strict=True)]
        return torch.stack(parts).sum()

    with torch.enable_grad():
        leaves = [point.clone().requires_grad_() for point in points]
        gradients = torch.autograd.grad(total(*leaves), leaves, allow_unused=True)
    for place, (point, gradient) in enumerate(zip(points, gradients, strict=True)):
        direction = noise(point)

        def moved(step: float, place: int = place, direction: Tensor = direction) -> float:
            return float(total(*points[:place], points[place] + step * direction, *points[place + 1 :]))

        terms = (gradient * direction.conj()).real if gradient is not None else torch.zeros(1)
        if _is_apart(float(terms.sum()), float(terms.norm()), moved, STEP * (rms(point) or 1.0)):
            return place
    return None


def _is_apart(ours: float, size: float, f: Callable[[float], float], step: float) -> bool:
    slopes = [(f(step * each) - f(-step * each)) / (2 * step * each) for each in SHRINKS]
    apart = min(abs(ours - each) for each in slopes)
    settled = max(abs(one - other) for one, other in pairwise(slopes)) <= SAME * apart
    return settled and apart > RELATIVE * max(size, *map(abs, slopes))
