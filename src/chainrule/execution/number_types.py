"""Number types: what runs in those of the recorded step while all around it is float64, and how coarse they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from chainrule.capture.own_mode import OwnMode, is_higher_order, run_inside
from chainrule.capture.traits import Traits
from chainrule.graph.comparison import rounding
from chainrule.graph.trees import map_leaves, tensors_in

T = TypeVar("T")


def as_recorded(tree: Any, recorded: Any) -> Any:
    """Tensors in the number type of the recorded ones, where those have a single one."""
    if isinstance(tree, Tensor) and isinstance(recorded, Tensor):
        return tree.to(recorded.dtype)
    dtypes = {t.dtype for t in tensors_in(recorded)} if isinstance(recorded, (Tensor, list, tuple)) else set()

    def narrow(leaf: Any) -> Any:
        return leaf.to(next(iter(dtypes))) if isinstance(leaf, Tensor) and len(dtypes) == 1 else leaf

    return recorded if isinstance(recorded, torch.dtype) else map_leaves(narrow, tree)


class DrawsAsRecorded(OwnMode):
    """Draws random numbers in the number types in which they were drawn: a generator gives others in float64.

    `dtypes` are those of the draws in their order. An empty list is filled: then the recorded arguments are run.
    """

    def __init__(self, dtypes: list[torch.dtype]) -> None:
        super().__init__()
        self._dtypes, self._left = dtypes, iter(list(dtypes)) if dtypes else None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        traits = Traits.of(func) if hasattr(func, "_schema") else None
        if traits is None or not traits.random:
            return func(*args, **(kwargs or {}))

        if self._left is None:
            out = func(*args, **(kwargs or {}))
            reals = (t.dtype for t in tensors_in((args, list((kwargs or {}).values()), out)) if t.is_floating_point())
            self._dtypes.append(next(reals, torch.float64))
            return out
        dtype = next(self._left, torch.float64)

        def narrow(leaf: Any) -> Any:
            if isinstance(leaf, Tensor):
                return leaf.to(dtype) if leaf.dtype == torch.float64 else leaf
            return dtype if leaf is torch.float64 else leaf

        given, named = map_leaves(narrow, args), map_leaves(narrow, kwargs or {})
        out = map_leaves(wide, func(*given, **named))
        written = list(zip(traits.written(args, kwargs or {}), traits.written(given, named), strict=True))
        for own, drawn in written:
            own.copy_(drawn)
        return written[0][0] if written else out


def wide(leaf: Any) -> Any:
    """A tensor of real numbers in double precision; all else unchanged."""
    return leaf.double() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf


class _Coarsest(OwnMode):
    """The largest rounding of any tensor that an operation reads or makes."""

    def __init__(self) -> None:
        super().__init__()
        self.eps = 0.0

    def saw(self, *trees: Any) -> None:
        """Count the tensors in some trees."""
        self.eps = max([self.eps, *(rounding(each.dtype) for each in tensors_in(list(trees)))])

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        higher = is_higher_order[type(func)]
        out = run_inside(func, args, kwargs or {}, self) if higher else func(*args, **(kwargs or {}))
        self.saw(*args, out)
        return out


def with_rounding(work: Callable[[], T]) -> tuple[T, float]:
    """What some work gives, and the rounding of the coarsest numbers in it.

    The values alone do not show it: what rounds to quarters gives numbers that bfloat16 has as well.
    """
    with _Coarsest() as seen:
        out = work()
    seen.saw(out)
    return out, seen.eps
