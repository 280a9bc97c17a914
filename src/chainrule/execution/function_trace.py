"""The trace of a user's `autograd.Function` at one point: the steps of its backward, its gradients, and differences.

A repair must agree at several points, so that symmetric data (an upstream gradient of ones, say) lets nothing pass by
chance. The steps of a backward are its calls of torch. They can run again with one of them changed, on the same saved
tensors.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from chainrule.capture.lowering.naming import function_name
from chainrule.execution.experiment import SMALL, WIDE, Experiment, Probe, pick, put, real
from chainrule.graph.comparison import compare
from chainrule.graph.graph import Edge
from chainrule.graph.trees import map_leaves, tensors_in

DIRECTIONS = 6  # random directions along which a large gradient is measured
CLOSE = 1e-7  # the rounding allowed to a repaired gradient
LARGEST = 1 << 20  # elements, of a gradient to be repaired

Edit = Callable[[int, list[Any]], list[Any]]
"""Changes the operands of one step: (step, its flat operands) -> flat operands."""


@dataclass(frozen=True)
class Called:
    """One call of torch inside a backward."""

    function: Any
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    out: Any

    @property
    def name(self) -> str:
        """`mul` for `Tensor.mul`, `torch.mul` and `*` alike, from whichever side."""
        name = function_name(self.function)
        return name.strip("_").removeprefix("r") if name.startswith("__") else name

    def run(self, arguments: Iterable[Any], keywords: dict[str, Any]) -> Any:
        """Call it once more, with these arguments."""
        return _widened(self.function(*arguments, **keywords))


def _widened(out: Any) -> Any:
    """A result in float64, as everything else: a backward may make its own tensors, as `torch.zeros(shape)` does."""
    if not isinstance(out, Tensor) or not (out.is_floating_point() or out.is_complex()):
        return out
    return out.to(torch.promote_types(out.dtype, torch.float64))


class _Tape(TorchFunctionMode):
    """Records the outermost calls of torch, with results in float64."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Called] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = _widened(function(*args, **(kwargs or {})))
        if any(True for _ in tensors_in(out)) or getattr(function, "__name__", "") == "__setitem__":
            self.calls.append(Called(function, tuple(args), dict(kwargs or {}), out))
        return out


class _Context:
    """The `ctx` of a backward, whose saved tensors are the same objects at each access."""

    def __init__(self, node: Any) -> None:
        self._node = node
        self.saved_tensors = node.saved_tensors

    def __getattr__(self, name: str) -> Any:
        return getattr(self._node, name)


class FunctionTrace:
    """One point at which repairs are tried, in float64.

    `upstream` replaces the recorded upstream gradients, `moved` the arguments. Raises whatever the user's code raises.
    """

    def __init__(self, experiment: Experiment, edges: list[Edge], moved: dict[str, Any], upstream: dict[int, Tensor]):
        self.experiment = copy.copy(experiment)
        self.experiment.wide, self.experiment.upstream = moved, upstream
        self.function: Any = experiment.function.function
        self.edges = {edge.position: edge for edge in edges}
        arguments = {
            name: value.detach().clone().requires_grad_() if name in self._wanted() else value
            for name, value in moved.items()
        }
        with torch.enable_grad():
            outs = list(tensors_in(self._run(lambda: self.function.apply(*map(_writable, arguments.values())))))
        self.outs = [out.detach() for out in outs]
        node = next(out.grad_fn for out in outs if out.requires_grad)
        self.context = _Context(node)
        self.upstream = [
            upstream[place].to(out.dtype, copy=True) if place in upstream else torch.zeros_like(out)
            for place, out in enumerate(self.outs)
        ]
        self.inputs = {name: value for name, value in moved.items() if isinstance(value, Tensor)}
        arrived, own = [g.clone() for g in self.upstream], (self.context.saved_tensors, self.upstream, self.outs)
        with torch.no_grad(), _Tape() as tape:
            back = self._run(lambda: self.function.backward(self.context, *self.upstream), own)
        self.back = back if isinstance(back, tuple) else (back,)
        self.calls = tape.calls
        self.got = {position: self._returned(self.back, position).clone() for position in self.edges}
        for g, before in zip(self.upstream, arrived, strict=True):  # which a backward may write to
            g.copy_(before)

    def _run(self, work: Callable[[], Any], own: Any = ()) -> Any:
        return self.experiment.guarded(work, own)

    def _wanted(self) -> set[str]:
        return {edge.argument or "" for edge in self.edges.values()}

    def _returned(self, back: tuple[Any, ...], position: int) -> Tensor:
        """What backward returned for an edge, in the shape of its argument, as the engine would have it."""
        name = self.edges[position].argument or ""
        gradient: Tensor = back[list(self.experiment.wide).index(name)]
        shape = self.inputs[name].shape
        return gradient if gradient.shape == shape else gradient.sum_to_size(shape)

    @cached_property
    def sources(self) -> dict[str, Tensor]:
        """Everything that a backward may read, by name; a tensor with two names has the first."""
        named = {f"`{name}`": value for name, value in self.inputs.items()}
        named |= {"the output" if len(self.outs) == 1 else f"output {i}": out for i, out in enumerate(self.outs)}
        named |= {f"saved tensor {i}": each for i, each in enumerate(self.context.saved_tensors) if each is not None}
        named |= {
            "the upstream gradient" if len(self.outs) == 1 else f"upstream gradient {i}": g
            for i, g in enumerate(self.upstream)
        }
        return named

    # -- what differences measure --------------------------------------------------------------------------------------

    @cached_property
    def _measured(self) -> dict[int, tuple[Tensor | None, Tensor, Tensor, Tensor]]:
        return {position: self._measure(edge) for position, edge in self.edges.items()}

    def _measure(self, edge: Edge) -> tuple[Tensor | None, Tensor, Tensor, Tensor]:
        """Directions (None: each element), u^T J along them, the size of its terms, and how far that may be off."""
        probe = Probe(self.experiment, edge)
        size = probe.x.numel()
        if size <= SMALL and probe.u.numel() <= WIDE:
            found = probe.elements(list(range(size)))
            typical = found.terms.square().mean().sqrt()
            return None, found.slope, found.terms + typical, found.error
        generator = torch.Generator().manual_seed(1)
        lines = torch.randn(DIRECTIONS, size, dtype=torch.float64, generator=generator).to(probe.x.device)
        along = [probe.direction(line) for line in lines]
        slope = torch.stack([terms.sum() for terms, _ in along])
        terms = torch.stack([each.norm() for each, _ in along])
        error = torch.tensor([4 * rounding for _, rounding in along], dtype=terms.dtype, device=terms.device)
        return lines, slope, terms, error

    def seen(self, position: int, gradient: Tensor) -> Tensor:
        """What is compared of a gradient: its elements, or its products with the directions."""
        lines = self._measured[position][0]
        return real(gradient) if lines is None else lines @ real(gradient)

    def target(self, position: int) -> Tensor:
        """What differences measure."""
        return self._measured[position][1]

    def agrees(self, position: int, gradient: Tensor) -> bool:
        """Whether a gradient is what differences measure."""
        _, target, terms, error = self._measured[position]
        if gradient.numel() != self.got[position].numel() or not gradient.isfinite().all():
            return False
        return compare(self.seen(position, gradient), target, terms, eps=CLOSE, slack=error).agrees

    # -- its steps again, with one changed -----------------------------------------------------------------------------

    def replay(
        self,
        position: int,
        edit: Edit | None = None,
        skip: tuple[int, int] | None = None,
        instead: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """The gradient of an edge with its backward's steps run again.

        `edit` changes the operands of steps. `skip` is a step and which of its operands replaces its result. `instead`
        is a tensor that the backward reads or computes, and what replaces it in every step.
        """
        new: dict[int, Tensor] = {}
        if instead is not None:
            new[id(instead[0])] = instead[1]

        def renewed(item: Any) -> Any:
            return new.get(id(item), item) if isinstance(item, Tensor) else item

        with torch.no_grad():
            for place, call in enumerate(self.calls):
                arguments = [map_leaves(renewed, each) for each in call.arguments]
                if edit is not None:
                    arguments = edit(place, arguments)
                if skip is not None and place == skip[0]:
                    out = arguments[skip[1]]
                else:
                    out = call.run(arguments, map_leaves(renewed, call.keywords))
                for old, fresh in zip(tensors_in(call.out), tensors_in(out), strict=True):
                    new[id(old)] = instead[1] if instead is not None and old is instead[0] else fresh
        return self._returned(map_leaves(renewed, self.back), position)

    @cached_property
    def repeats(self) -> bool:
        """Whether running the steps again gives the same: nothing is written in place, or done outside torch."""
        if any(call.name.endswith("_") or call.name in ("setitem", "iadd", "imul", "isub") for call in self.calls):
            return False
        try:
            return all(compare(self.replay(position), got, eps=CLOSE).agrees for position, got in self.got.items())
        except Exception:  # whatever the user's code does
            return False

    # -- the forward pass, with one use of a tensor cut off ------------------------------------------------------------

    def without_use(self, cut: int | None) -> dict[int, Tensor | None]:
        """The gradients of the forward's own steps, with use number `cut` of a tensor detached."""
        leaves, out = self._run_forward(cut)
        outs = [(o, g) for o, g in zip(tensors_in(out), self.upstream, strict=True) if o.requires_grad]
        if not outs:
            return dict.fromkeys(self.edges)
        wanted = list(leaves.values())
        grads = torch.autograd.grad([o for o, _ in outs], wanted, [g for _, g in outs], allow_unused=True)
        named = dict(zip(leaves, grads, strict=True))
        return {position: named[edge.argument or ""] for position, edge in self.edges.items()}

    def _run_forward(self, cut: int | None) -> tuple[dict[str, Tensor], Any]:
        leaves = {
            e.argument or "": self.inputs[e.argument or ""].detach().clone().requires_grad_()
            for e in self.edges.values()
        }
        with torch.enable_grad(), _Cut(cut) as cutter:
            out = self._run(
                lambda: _plain_forward(
                    self.function, [_writable(leaves.get(name, value)) for name, value in self.experiment.wide.items()]
                )
            )
        self.uses = cutter.uses
        return leaves, out

    def along_the_diagonal(self, position: int) -> Tensor | None:
        """The gradient if each element of the output changed with the same element of the argument alone.

        None where the shapes differ, or are large.
        """
        leaves, out = self._run_forward(None)
        leaf, (out, *others) = leaves[self.edges[position].argument or ""], tensors_in(out)
        if others or out.shape != leaf.shape or out.numel() > SMALL or not out.requires_grad:
            return None
        with torch.enable_grad():
            rows = [torch.autograd.grad(each, leaf, retain_graph=True)[0].reshape(-1) for each in out.reshape(-1)]
        return torch.stack(rows).diagonal().reshape(leaf.shape) * self.upstream[0]


def _writable(argument: Any) -> Any:
    """A copy that a forward may write to (`mark_dirty`): a leaf does not allow it, and others read the original."""
    return argument.clone() if isinstance(argument, Tensor) else argument


class _Cut(TorchFunctionMode):
    """Detaches one operand of one call; counts the uses of tensors that want gradients on the way."""

    def __init__(self, cut: int | None) -> None:
        super().__init__()
        self.cut, self.uses = cut, list[str]()

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        def taken(item: Any) -> Any:
            if not (isinstance(item, Tensor) and item.requires_grad):
                return item
            self.uses.append(function_name(function).strip("_"))
            return item.detach() if len(self.uses) - 1 == self.cut else item

        return function(*map_leaves(taken, args), **map_leaves(taken, kwargs or {}))


class _Unsaving:
    """A `ctx` for a forward whose gradients autograd computes."""

    def save_for_backward(self, *tensors: Any) -> None: ...

    def mark_dirty(self, *tensors: Any) -> None: ...

    def mark_non_differentiable(self, *tensors: Any) -> None: ...

    def set_materialize_grads(self, value: bool) -> None: ...


def _plain_forward(function: Any, arguments: list[Any]) -> Any:
    if function.setup_context is not torch.autograd.Function.setup_context:
        return function.forward(*arguments)
    return function.forward(_Unsaving(), *arguments)


def forward_gradient(experiment: Experiment, edge: Edge) -> Tensor | None:
    """The gradient that autograd gives of the forward's own steps in float64, flat; None where it gives none."""
    arguments = dict(experiment.wide)
    leaf = pick(arguments, edge).detach().clone().requires_grad_()
    put(arguments, edge, leaf)

    def forward_and_back() -> Tensor:
        with torch.enable_grad():
            given = [_writable(each) for each in arguments.values()]
            outs = list(tensors_in(_plain_forward(experiment.function.function, given)))
            pairs = [(outs[place], g.to(outs[place].dtype)) for place, g in experiment.upstream.items()]
            pairs = [(out, g) for out, g in pairs if out.requires_grad]
            return torch.autograd.grad([out for out, _ in pairs], leaf, [g for _, g in pairs])[0]

    try:
        return real(experiment.guarded(forward_and_back))
    except Exception:  # whatever the user's code does
        return None


def traces(experiment: Experiment, edges: list[Edge]) -> Iterator[FunctionTrace]:
    """The recorded point; the same with another upstream gradient; and a point nearby, where that can be run."""
    generator = torch.Generator().manual_seed(2)

    def noise(like: Tensor) -> Tensor:
        return torch.randn(like.shape, dtype=torch.float64, generator=generator).to(like.device).to(like.dtype)

    upstream = {place: g.to(torch.promote_types(g.dtype, torch.float64)) for place, g in experiment.upstream.items()}
    yield FunctionTrace(experiment, edges, experiment.wide, upstream)
    another = {place: noise(g) for place, g in upstream.items()}
    yield FunctionTrace(experiment, edges, experiment.wide, another)
    moved = {
        name: value * (1 + 0.1 * noise(value).clamp(-3, 3))
        if isinstance(value, Tensor) and value.is_floating_point()
        else value
        for name, value in experiment.wide.items()
    }
    nearby = None
    try:
        nearby = FunctionTrace(experiment, edges, moved, {place: noise(g) for place, g in upstream.items()})
        usable = all(nearby.target(position).isfinite().all() for position in nearby.edges)
    except Exception:  # the user's function may not be defined there
        usable = False
    if nearby is not None and usable:
        yield nearby
