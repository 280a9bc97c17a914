"""The calls of torch that a user's forward or backward makes, in order, so that they can run again with one changed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from chainrule.capture.lowering.naming import function_name
from chainrule.capture.source import Site, locals_of, users_frame
from chainrule.graph.graph import Place
from chainrule.graph.trees import map_leaves, tensors_in
from chainrule.pytorch_internals import OPERATORS, is_functorch_wrapped_tensor

_WRITING = frozenset(["setitem", "iadd", "isub", "imul", "itruediv", "ifloordiv", "ipow", "iand", "ior", "ixor"])

Work = Callable[[list[Any], dict[str, Any]], Any]
"""What a step does with its arguments and keywords."""


@dataclass(frozen=True)
class Called:
    """One call of torch; `value` is its result as it was then, before anything overwrote it."""

    function: Any
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    out: Any
    value: Any
    site: Site | None = None

    @cached_property
    def name(self) -> str:
        """`mul` for `Tensor.mul`, `torch.mul` and `*` alike, from whichever side."""
        name = function_name(self.function)
        return name.strip("_").removeprefix("r") if name.startswith("__") else name

    @property
    def reversed(self) -> bool:
        """Whether it is called from the right side: `2 - x`."""
        return function_name(self.function).startswith("__r")

    @cached_property
    def place(self) -> Place | None:
        """Where it stands in the user's code."""
        return None if self.site is None else self.site.place()

    @property
    def writes(self) -> bool:
        """Whether it overwrites one of its operands."""
        return self.name.endswith("_") or self.name in _WRITING or "out" in self.keywords

    @cached_property
    def reads(self) -> frozenset[int]:
        """The ids of the tensors among its arguments."""
        return frozenset(map(id, tensors_in((self.arguments, self.keywords))))

    def run(self, arguments: Iterable[Any], keywords: dict[str, Any]) -> Any:
        """Call it once more, with these arguments. Raises TypeError for those that may end the process.

        A kernel of `torch.ops` checks no shapes; and an index beyond its axis spoils all further work of a GPU.
        """
        given = tuple(arguments)
        if not self._takes([*tensors_in((given, keywords))]):
            raise TypeError(f"{self.name} is not called with operands of another kind")
        return widened(self.function(*given, **keywords))

    def _takes(self, given: list[Tensor]) -> bool:
        """Whether operands have the recorded shapes and types where nothing checks that, and are the same indices."""
        known = [*tensors_in((self.arguments, self.keywords))]
        raw = type(self.function).__module__ == OPERATORS
        if not raw and not any(each.is_cuda for each in given):
            return True
        return len(given) == len(known) and all(
            (not raw or (new.shape, new.dtype) == (old.shape, old.dtype))
            and (new.is_floating_point() or new.is_complex() or torch.equal(new, old))
            for new, old in zip(given, known, strict=True)
        )


class CallTape(TorchFunctionMode):
    """Records the outermost calls of torch, with results in float64; `variables` are the user's names of tensors.

    Nothing is recorded of code with a transform inside, as of `vmap`: its tensors live no longer than it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Called] = []
        self.variables: dict[int, str] = {}
        self._transformed = False

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = widened(function(*args, **(kwargs or {})))
        if self._transformed or any(map(is_functorch_wrapped_tensor, tensors_in((args, out)))):
            self._transformed = True
            self.calls.clear()
            self.variables.clear()
            return out
        if any(True for _ in tensors_in(out)) or getattr(function, "__name__", "") == "__setitem__":
            value = map_leaves(lambda each: each.detach().clone() if isinstance(each, Tensor) else each, out)
            frame = sys._getframe(1)
            self.calls.append(Called(function, tuple(args), dict(kwargs or {}), out, value, Site.of(frame)))
            self._note_variables(frame)
        return out

    def _note_variables(self, frame: FrameType | None) -> None:
        frame = users_frame(frame)
        for name, each in locals_of(frame).items() if frame is not None else ():
            if isinstance(each, Tensor):
                self.variables.setdefault(id(each), name)


def widened(out: Any) -> Any:
    """A result in float64, as everything else: a backward may make its own tensors, as `torch.zeros(shape)` does."""
    wide = map_leaves(_wide, out)
    same = all(one is other for one, other in zip(tensors_in(out), tensors_in(wide), strict=True))
    return out if same else wide  # the results of `max` have names, and keep them


def _wide(leaf: Any) -> Any:
    if not isinstance(leaf, Tensor) or not (leaf.is_floating_point() or leaf.is_complex()):
        return leaf
    return leaf.to(torch.promote_types(leaf.dtype, torch.float64))


class Replay:
    """The calls of a backward, to be run again with one of them changed.

    `sources` are the tensors that the calls read and did not make, as they were before; `back` is what the backward
    returned.
    """

    def __init__(self, calls: list[Called], sources: list[tuple[Tensor, Tensor]], back: tuple[Any, ...]) -> None:
        self.calls, self.back = calls, back
        self._sources = sources
        self.writes = any(call.writes for call in calls)

    def run(self, works: dict[int, Work], everything: bool = False) -> tuple[Any, ...]:
        """What the backward returns with some steps doing other `works`; the steps that depend on them run again."""
        new: dict[int, Tensor] = {}
        everything = everything or self.writes
        if self.writes:  # on copies
            new = {id(source): pristine.clone() for source, pristine in self._sources}

        def renewed(item: Any) -> Any:
            return new.get(id(item), item) if isinstance(item, Tensor) else item

        first = 0 if everything else min(works, default=0)
        for at, call in enumerate(self.calls[first:], first):
            work = works.get(at)
            if work is None and not everything and call.reads.isdisjoint(new):
                continue
            arguments = [map_leaves(renewed, each) for each in call.arguments]
            keywords = map_leaves(renewed, call.keywords)
            out = call.run(arguments, keywords) if work is None else work(arguments, keywords)
            for old, fresh in zip(tensors_in(call.out), tensors_in(out), strict=True):
                new[id(old)] = fresh
        return map_leaves(renewed, self.back)  # type: ignore[no-any-return]
