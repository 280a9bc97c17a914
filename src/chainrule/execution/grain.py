"""How coarse the numbers are that a function computes with, whatever it is given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from chainrule.capture.own_mode import OwnMode, is_higher_order, run_inside
from chainrule.graph.comparison import rounding
from chainrule.graph.trees import tensors_in

T = TypeVar("T")


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
