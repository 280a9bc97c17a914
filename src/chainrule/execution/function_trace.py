"""The trace of a user's `autograd.Function` at one point: the steps of its backward, its gradients, and differences.

A repair must agree at several points, so that symmetric data (an upstream gradient of ones, say) lets nothing pass by
chance. The steps of a backward are its calls of torch. They can run again with one of them changed, on the same saved
tensors.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from chainrule.capture.lowering.naming import function_name
from chainrule.capture.source import Site
from chainrule.execution.call_tape import Called, CallTape, Replay
from chainrule.execution.central_differences import Probe
from chainrule.execution.experiment import SMALL, WIDE, Experiment, pick, put, real
from chainrule.execution.loop_order import Loop
from chainrule.execution.operator_function import function_of
from chainrule.graph.comparison import compare
from chainrule.graph.graph import Edge
from chainrule.graph.trees import map_leaves, tensors_in

DIRECTIONS = 6  # random directions along which a large gradient is measured
SAMPLED = 96  # elements that are measured of a large one where nothing else tells the right gradient
CLOSE = 1e-7  # the rounding allowed to a repaired gradient
LARGEST = 1 << 20  # elements, of a gradient to be repaired


class _Context:
    """The `ctx` of a backward, whose saved tensors are the same objects at each access."""

    def __init__(self, node: Any) -> None:
        self._node = node
        self.saved_tensors = node.saved_tensors
        self.own: dict[str, Any] = dict(vars(node))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._node, name)


@dataclass(frozen=True)
class Right:
    """The right gradient of one argument: at which elements it is known (None: all), and how far it may be off."""

    at: Tensor
    elements: Tensor | None
    error: Tensor


class FunctionTrace:
    """One point at which repairs are tried, in float64.

    `upstream` replaces the recorded upstream gradients, `moved` the arguments. Raises whatever the user's code raises.
    """

    def __init__(self, experiment: Experiment, edges: list[Edge], moved: dict[str, Any], upstream: dict[int, Tensor]):
        self.experiment = copy.copy(experiment)
        self.experiment.wide, self.experiment.upstream = moved, upstream
        self.function = function_of(experiment.function.function)
        self.edges = {edge.position: edge for edge in edges}
        arguments = {
            name: value.detach().clone().requires_grad_() if name in self._wanted() else value
            for name, value in moved.items()
        }
        with torch.enable_grad():
            given = self._run(lambda: self.function.apply(*map(_writable, arguments.values())))
        outs = list(tensors_in(given))
        self.outs = [out.detach() for out in outs]
        node = next(out.grad_fn for out in outs if out.requires_grad)
        self.context = _Context(node)
        self.upstream = [
            upstream[place].to(out.dtype, copy=True) if place in upstream else torch.zeros_like(out)
            for place, out in enumerate(self.outs)
        ]
        self.inputs = {name: value for name, value in moved.items() if isinstance(value, Tensor)}
        read = [*self.context.saved_tensors, *self.upstream, *self.outs, *self.context.own.values()]
        self.read = [each for each in read if isinstance(each, Tensor)]
        sources = [(each, each.detach().clone()) for each in self.read]
        self.before = {id(each): pristine for each, pristine in sources}
        upstreams = iter(self.upstream)  # backward is given None for a result that is no tensor
        self._seeds = [next(upstreams) if isinstance(each, Tensor) else None for each in _in_a_tuple(given)]
        self.back, tape = self._backward(self.function.backward)
        self.steps = Replay(tape.calls, sources, self.back)
        self.variables = {id(each): tape.variables[id(each)] for each in self.read if id(each) in tape.variables}
        self.got = self._gradients(self.back)

    def _backward(self, backward: Callable[..., Any]) -> tuple[tuple[Any, ...], CallTape]:
        with torch.no_grad(), CallTape() as tape:
            return _in_a_tuple(self._run(lambda: backward(self.context, *self._seeds), self.read)), tape

    def _gradients(self, back: tuple[Any, ...]) -> dict[int, Tensor]:
        got = {position: self.returned(back, position).clone() for position in self.edges}
        for g in self.upstream:  # which a backward may write to
            g.copy_(self.before[id(g)])
        return got

    def turned(self, loop: Loop) -> dict[int, Tensor]:
        """The gradients that the backward gives with one of its loops in the other order."""
        return self._gradients(self._backward(loop.turned())[0])

    def _run(self, work: Callable[[], Any], own: Any = ()) -> Any:
        return self.experiment.guarded(work, own)

    def _wanted(self) -> set[str]:
        return {edge.argument or "" for edge in self.edges.values()}

    def returned(self, back: tuple[Any, ...], position: int) -> Tensor:
        """What backward returned for an edge, in the shape of its argument, as the engine would have it."""
        name = self.edges[position].argument or ""
        gradient: Tensor = back[list(self.experiment.wide).index(name)]
        shape = self.inputs[name].shape
        return gradient if gradient.shape == shape else gradient.sum_to_size(shape)

    @cached_property
    def sources(self) -> dict[str, Tensor]:
        """Everything that a backward may read, by name."""
        single = len(self.outs) == 1
        read = {f"`{name}`": value for name, value in self.inputs.items()}
        read |= {"the output" if single else f"output {i}": out for i, out in enumerate(self.outs)}
        read |= {f"the upstream gradient{'' if single else f' of output {i}'}": g for i, g in enumerate(self.upstream)}
        read |= {f"`ctx.{name}`": each for name, each in self.context.own.items() if isinstance(each, Tensor)}
        for i, each in enumerate(self.context.saved_tensors):
            name = f"`{self.variables[id(each)]}`" if id(each) in self.variables else ""
            if each is not None:
                read[name if name and name not in read else f"saved tensor {i}"] = each
        return {name: self.before.get(id(each), each) for name, each in read.items()}

    @cached_property
    def numbers(self) -> dict[str, float]:
        """The plain numbers that the forward was given or left on ctx, and those written in it, by name."""
        given = {f"`{name}`": each for name, each in self.experiment.wide.items()}
        given |= {f"`ctx.{name}`": each for name, each in self.context.own.items()}
        found = {name: float(each) for name, each in given.items() if _is_number(each)}
        for call in self.forward:
            for each in call.arguments:
                if _is_fraction(each) and each not in found.values():
                    found[f"{each:.6g}"] = float(each)
        return found

    @cached_property
    def forward(self) -> list[Called]:
        """The steps of the forward; none where it cannot run without its ctx."""
        arguments = [_writable(each) for each in self.experiment.wide.values()]
        try:
            with torch.no_grad(), CallTape() as tape:
                self._run(lambda: _plain_forward(self.function, arguments), arguments)
        except Exception:
            return []
        calls: list[Called] = tape.calls
        return calls

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

    @cached_property
    def right(self) -> dict[int, Right]:
        """The right gradients: those that autograd gives of the forward, where differences agree, or differences."""
        return {position: self._right(position) for position in self.edges}

    def _right(self, position: int) -> Right:
        lines, slope, terms, error = self._measured[position]
        whole = self.whole.get(position)
        if whole is not None and whole.isfinite().all():
            if self.agrees(position, whole):
                return Right(real(whole), None, torch.zeros((), dtype=torch.float64))
            if lines is None:  # but for kinks, where differences take another slope than PyTorch
                same = (real(whole) - slope).abs() <= CLOSE * terms + error
                if int(same.sum()) * 2 > same.numel():
                    return Right(real(whole)[same], same.nonzero()[:, 0], error[same])
        if lines is None:
            return Right(slope, None, error)
        probe = Probe(self.experiment, self.edges[position])
        chosen = torch.linspace(0, probe.x.numel() - 1, SAMPLED, dtype=torch.float64).long().unique()
        found = probe.elements(chosen.tolist())
        return Right(found.slope, chosen, found.error)

    @cached_property
    def whole(self) -> dict[int, Tensor | None]:
        """The gradients that autograd gives of the forward's own steps."""
        try:
            return self.without_use(None)
        except Exception:  # a forward that autograd cannot differentiate
            return {}

    @cached_property
    def repeats(self) -> bool:
        """Whether running the steps again gives the same: nothing is done outside torch."""
        try:
            back = self.steps.run({}, everything=True)
            return all(compare(self.returned(back, place), got, eps=CLOSE).agrees for place, got in self.got.items())
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

    @cached_property
    def _graph(self) -> tuple[dict[str, Tensor], list[Called], list[Tensor]]:
        """The forward with autograd on: the arguments that want gradients, the steps, the outputs."""
        leaves = {name: self.inputs[name].detach().clone().requires_grad_() for name in self._wanted()}
        with torch.enable_grad():
            held = {name: _writable(each) for name, each in leaves.items()}
        with torch.enable_grad(), CallTape() as tape:
            arguments = [held.get(name, each) for name, each in self.experiment.wide.items()]
            out = self._run(lambda: _plain_forward(self.function, arguments), arguments)
        if any(each.writes for each in tape.calls):
            return {}, [], []
        steps = [each for each in tape.calls if isinstance(each.out, Tensor) and each.out.requires_grad]
        return leaves, steps, list(tensors_in(out))

    @cached_property
    def adjoints(self) -> list[tuple[Called, Tensor]]:
        """The steps of the forward with the gradients of their results, which autograd gives."""
        _, steps, given = self._graph
        outs = [(o, g) for o, g in zip(given, self.upstream, strict=False) if o.requires_grad]
        if not outs:
            return []
        ones, seeds = [o for o, _ in outs], [g for _, g in outs]
        wanted = [each.out for each in steps]
        found = torch.autograd.grad(ones, wanted, seeds, allow_unused=True, retain_graph=True)
        return [(step, grad) for step, grad in zip(steps, found, strict=True) if grad is not None]

    @cached_property
    def slopes(self) -> list[tuple[Called, str, Tensor]]:
        """The derivatives of steps of the forward that are elementwise: of its operand ("") or of an argument."""
        found = []
        leaves, steps, _ = self._graph
        for step in steps[:40]:
            operands = [each for each in step.arguments if isinstance(each, Tensor) and each.requires_grad]
            of = [("", operands[0])] if len(operands) == 1 else []
            for name, x in [*of, *leaves.items()]:
                slope = self._slope(step.out, x) if x.shape == step.out.shape and x.numel() > 1 else None
                if slope is not None:
                    found.append((step, name, slope))
        return found

    def _slope(self, out: Tensor, x: Tensor) -> Tensor | None:
        """The derivative of each element by that at its place; None where others move it, and where it is constant."""
        if out.is_complex() or x.is_complex() or out is x:
            return None
        seed = torch.linspace(0.5, 1.7, out.numel(), dtype=out.dtype, device=out.device).reshape(out.shape)
        with torch.enable_grad():
            one, other = (
                torch.autograd.grad(out, x, each, retain_graph=True, allow_unused=True)[0]
                for each in (torch.ones_like(seed), seed)
            )
        if one is None or other is None or not compare(seed * one, other, eps=CLOSE).agrees:
            return None
        return None if bool((one == one.reshape(-1)[0]).all()) else one

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


def _in_a_tuple(given: Any) -> tuple[Any, ...]:
    return given if isinstance(given, tuple) else (given,)


def _is_number(given: Any) -> bool:
    return isinstance(given, (int, float)) and not isinstance(given, bool) and abs(given) not in (0, 1)


def _is_fraction(given: Any) -> bool:
    return isinstance(given, float) and not given.is_integer()


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
            site = Site.of(sys._getframe(1))
            expression = site.place().expression if site is not None else ""
            self.uses.append(expression or function_name(function).strip("_"))
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
            outs = list(tensors_in(_plain_forward(function_of(experiment.function.function), given)))
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
    wanted = {edge.argument for edge in edges}  # what has no gradient stays: a mask is nothing but 0 and 1
    moved = {
        name: value * (1 + 0.1 * noise(value).clamp(-3, 3))
        if name in wanted and isinstance(value, Tensor) and value.is_floating_point()
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
