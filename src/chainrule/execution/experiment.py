"""A recorded operation, ready to run again on other arguments, in float64 where it can."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import copy
from functools import cached_property, partial
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.checkpoint import CheckpointFunction

from chainrule.capture.traits import Traits
from chainrule.execution.number_types import DrawsAsRecorded, as_recorded
from chainrule.execution.random_rounding import RandomRounding
from chainrule.execution.user_code import SideEffectError, UserCode
from chainrule.graph.comparison import compare
from chainrule.graph.graph import Edge, Graph, Node, Ref
from chainrule.graph.trees import leaves, map_leaves, tensors_in
from chainrule.rules.facts import facts_of

T = TypeVar("T")

STEP = 2.0**-17  # about eps^(1/3): where the error of a central difference is least
FINEST = 1e-10  # the precision of a central difference in float64, relative to the terms
SMALL, WIDE = 64, 4096  # elements of an argument, of the outputs: up to here every element is measured


class CannotRunError(Exception):
    """The operation cannot be run again; the message says why."""


class Experiment:
    """One node's operation, ready to run again on the recorded inputs.

    `upstream` is what reached the node in one backward pass, `eps` the rounding of the `coarsest` number type involved,
    `memory` the bytes that running it may take. Raises CannotRunError where the recording does not hold what is needed.
    """

    def __init__(self, graph: Graph, node: Node, upstream: tuple[Tensor | None, ...], memory: int) -> None:
        assert node.operation is not None
        operation = graph.operations[node.operation]
        if operation.function is None:
            raise CannotRunError("the recording does not hold the operation that made it")
        if any(not graph.values[ref.value].has_numbers for ref in leaves(operation.arguments, Ref)):
            raise CannotRunError("its inputs were not kept")
        self.name, self.memory = operation.name, memory
        self.custom = node.function_class is not None
        self.function: Any = operation.function
        self.random_state = operation.random_state
        self._draws: list[torch.dtype] = []  # the number types of its draws, once it ran on the recorded arguments
        self.recorded: dict[str, Any] = graph.filled(operation.arguments)
        self.writes = set(self.recorded) if self.custom else written_by(operation.function)
        self.outs = {slot: graph.values[value].data for slot, value in enumerate(node.outputs) if value is not None}
        position = {value: place for place, value in enumerate(operation.outputs)}
        self.place = {
            slot: slot if self.custom or value is None else position.get(value, slot)
            for slot, value in enumerate(node.outputs)
        }
        self.upstream = {self.place.get(slot, slot): g for slot, g in enumerate(upstream) if g is not None}
        self.narrow: bool | None = None  # whether it runs in the recorded number types alone; None: not known yet
        self.drawn: Callable[[dict[str, Any]], Tensor] | None = None  # the result, from the recorded draw
        if draw := facts_of(operation.name).draw:
            slot, result = draw
            value = operation.outputs[slot]
            if value is not None and graph.values[value].has_numbers:
                self.drawn = partial(result, draw=graph.values[value].data)
        involved = tensors_in((list(self.recorded.values()), list(upstream), list(self.outs.values())))
        types = (t.dtype.to_real() for t in involved if t.is_floating_point() or t.is_complex())
        self.coarsest = max(types, key=lambda each: torch.finfo(each).eps, default=torch.float64)
        self.eps: float = torch.finfo(self.coarsest).eps

    @cached_property
    def wide(self) -> dict[str, Any]:
        """The recorded arguments in float64, made at first use."""
        wide: dict[str, Any] = widened(self.recorded)
        if wide.get("half_to_float"):  # asks for float32 out of float16, where float64 now comes in
            wide["half_to_float"] = False
        return wide

    def contiguous(self) -> Experiment:
        """The same with contiguous copies of what is not: what is wrong in a layout alone is no wrong formula."""

        def plain(leaf: Any) -> Any:
            return leaf.contiguous() if isinstance(leaf, Tensor) and leaf.layout == torch.strided else leaf

        other = copy(self)
        other.__dict__.pop("_unmoved", None)
        other.wide, other.upstream = map_leaves(plain, self.wide), map_leaves(plain, self.upstream)
        return other

    def afford(self, variable: Tensor, inputs: int, outputs: int, wide: bool = True) -> int:
        """The bytes left beside so many tensors like `variable` and so many times the outputs.

        `wide`: in float64, beside all arguments in float64. Raises CannotRunError where nothing is left.
        """
        size = 8 if wide else variable.itemsize
        out = sum(g.numel() for g in self.upstream.values())
        taken = size * (inputs * variable.numel() + outputs * out)
        if wide:
            coarse = (t for t in tensors_in(list(self.recorded.values())) if t.dtype != wide_dtype(t.dtype))
            taken += 8 * sum(t.numel() for t in coarse)
        if taken > self.memory:
            raise CannotRunError(
                f"running it again takes about {taken / 2**20:,.0f} MiB, and a check may take "
                f"{self.memory / 2**20:,.0f} MiB (`memory=` of `verify`)"
            )
        return self.memory - taken

    def run(self, arguments: dict[str, Any]) -> list[Tensor]:
        """The outputs on other arguments; the same random numbers are drawn, and no argument is overwritten.

        What has no kernel for float64 runs in the recorded number types.
        """
        if self.drawn is not None:  # also where the state of its generator is not known
            return [self.drawn(arguments)]
        if self.narrow or arguments is self.recorded:
            return self._run(self._narrowed(arguments))
        return self._run(arguments) if self.narrow is not None else self._first_run(arguments)

    def _first_run(self, arguments: dict[str, Any]) -> list[Tensor]:
        """As `run`, in float64 where that is possible, and draws what was drawn in the recorded number types."""
        try:
            outs = self._run(arguments)
        except CannotRunError:
            raise
        except Exception:
            self.narrow, outs = True, self._run(self._narrowed(arguments))
            return outs
        self.narrow = self.custom and self.random_state is not None and not self._gives(self._run(self.wide))
        return self.run(arguments) if self.narrow else outs

    def _run(self, arguments: dict[str, Any]) -> list[Tensor]:
        held = {name: cloned(tree) if name in self.writes else tree for name, tree in arguments.items()}
        return list(tensors_in(self.guarded(lambda: self.function(held), held)))

    def _narrowed(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Arguments in float64 in the number types of the recorded ones."""
        return {
            name: self._unmoved[name] if tree is self.wide[name] else as_recorded(tree, self.recorded[name])
            for name, tree in arguments.items()
        }

    @cached_property
    def _unmoved(self) -> dict[str, Any]:
        return {name: as_recorded(tree, self.recorded[name]) for name, tree in self.wide.items()}

    def guarded(self, work: Callable[[], T], own: Any = ()) -> T:
        """What `work` gives, with the recorded random numbers; of a user's function nothing else is left behind."""
        if not self.custom:
            with drawn_again(self.random_state):
                return work()
        try:
            drawn = nullcontext() if self.random_state is None else DrawsAsRecorded(self._draws)
            with random_numbers_restored(self.random_state), drawn:
                return self._user_code.run(work, own)
        except SideEffectError as error:
            raise CannotRunError(str(error)) from error

    @cached_property
    def _user_code(self) -> UserCode:
        made_by = self.function.function
        return UserCode(made_by, getattr(made_by, "runs", None), self.recorded)

    def repeats(self) -> bool:
        """Whether running it again on the recorded inputs, in their own number types, gives the recorded outputs."""
        return self._gives(self.run(self.recorded))

    def _gives(self, again: list[Tensor]) -> bool:
        """Whether these are the recorded outputs."""
        most = sum(t.numel() for t in tensors_in(list(self.recorded.values())))  # terms of one element of an output
        return all(
            out is None
            or (
                self.place[slot] < len(again)
                and compare(again[self.place[slot]], out, count=max(1, most), eps=self.eps).agrees
            )
            for slot, out in self.outs.items()
        )

    def replayed(self, edges: list[Edge], wide: bool, rounding: RandomRounding | None = None) -> list[Tensor | None]:
        """The gradients that autograd gives for the edges when the operation runs again with gradients on.

        With a `rounding` the arguments and the upstream gradients move by a last place; in float64 it rounds all steps.
        """
        arguments, upstream = dict(self.wide if wide and not self.narrow else self.recorded), self.upstream
        if rounding is not None:
            arguments, upstream = rounding.moved(arguments), rounding.moved(widened(upstream) if wide else upstream)
        arguments |= {name: cloned(tree) for name, tree in arguments.items() if name in self.writes}
        leaves = []
        for edge in edges:
            leaf = pick(arguments, edge).detach().clone().requires_grad_()
            leaves.append(leaf)
            put(arguments, edge, leaf)
        with torch.enable_grad():
            for edge, leaf in zip(edges, leaves, strict=True):
                put(arguments, edge, leaf.clone())  # an in-place operation may not write to a leaf
            function: Any = self.function.function  # the overload, or the class: `self.function` turns gradients off

            def forward_and_back() -> list[Tensor | None]:
                if function is CheckpointFunction:  # it refuses `autograd.grad`: what it runs is run without it
                    run_function, _, *given = arguments.values()
                    out = run_function(*given)
                else:
                    out = function.apply(*arguments.values()) if hasattr(function, "apply") else function(**arguments)
                outs = list(tensors_in(out))
                pairs = [(outs[place], g) for place, g in upstream.items() if outs[place].requires_grad]
                if not pairs:
                    return [None] * len(edges)
                # Copies, as a user's backward may write to what it is given.
                seeds = [g.to(out.dtype, copy=self.custom) for out, g in pairs]
                return list(torch.autograd.grad([out for out, _ in pairs], leaves, seeds, allow_unused=True))

            with rounding if rounding is not None and wide else nullcontext():
                return self.guarded(forward_and_back, arguments)


def real(tensor: Tensor) -> Tensor:
    """A tensor as a flat vector of float64: complex numbers as pairs."""
    if tensor.layout != torch.strided:
        tensor = tensor.to_dense()
    tensor = tensor.detach().resolve_conj().resolve_neg()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    return tensor.to(torch.float64).reshape(-1)


def pick(arguments: dict[str, Any], edge: Edge) -> Tensor:
    """The tensor that an edge belongs to."""
    tree = arguments[edge.argument or ""]
    found: Tensor = tree if edge.item is None else tree[edge.item]
    return found


def put(arguments: dict[str, Any], edge: Edge, tensor: Tensor) -> None:
    """Set the tensor that an edge belongs to; the recorded list is not changed."""
    name = edge.argument or ""
    if edge.item is None:
        arguments[name] = tensor
    else:
        arguments[name] = [*arguments[name][: edge.item], tensor, *arguments[name][edge.item + 1 :]]


@contextmanager
def nothing_left_behind() -> Iterator[None]:
    """For running code that may draw random numbers: `without_gradients` and `random_numbers_restored`."""
    with random_numbers_restored(), without_gradients():
        yield


@contextmanager
def without_gradients() -> Iterator[None]:
    """Turn gradients off; new tensors that would have no numbers, on the device `meta`, are made on the CPU."""
    with torch.no_grad(), torch.device("cpu") if torch.get_default_device().type == "meta" else nullcontext():
        yield


def drawn_again(state: Tensor | None) -> AbstractContextManager[None]:
    """For running one operation again: it draws what it drew in this state; None for one that draws nothing.

    The generators belong to all threads. So they are set for one operation at a time, and for those alone that draw.
    """
    return nullcontext() if state is None else random_numbers_restored(state)


@contextmanager
def random_numbers_restored(begin: Tensor | None = None) -> Iterator[None]:
    """Restore the states of the random generators afterwards, Python's and numpy's too; PyTorch's starts at `begin`."""
    state, own = torch.get_rng_state(), random.getstate()
    numpy = sys.modules.get("numpy")
    drawn = None if numpy is None else numpy.random.get_state()
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    try:
        if begin is not None:
            torch.set_rng_state(begin)
        yield
    finally:
        torch.set_rng_state(state)
        random.setstate(own)
        if numpy is not None:
            numpy.random.set_state(drawn)
        if devices is not None:
            torch.cuda.set_rng_state_all(devices)


def written_by(function: Callable[..., Any]) -> set[str]:
    """The arguments that a recorded operation writes to when it runs again."""
    overload = getattr(function, "function", None)
    return {name for _, name in Traits.of(overload).writes} if hasattr(overload, "_schema") else set()


def widened(tree: Any) -> Any:
    """Float64 and complex128 for what is coarser, in tensors and where a number type is asked for."""

    def wide(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            return leaf.to(wide_dtype(leaf.dtype))
        return wide_dtype(leaf) if isinstance(leaf, torch.dtype) else leaf

    return map_leaves(wide, tree)


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """Float64 or complex128 for what is coarser."""
    if dtype.is_complex:
        return torch.complex128
    return torch.float64 if dtype.is_floating_point else dtype


def cloned(tree: Any) -> Any:
    """A tree of arguments with copies of its tensors."""
    return map_leaves(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, tree)
