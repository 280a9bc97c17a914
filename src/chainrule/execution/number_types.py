"""What runs in the number types of the recorded step, while everything around it is float64."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from chainrule.capture.own_mode import OwnMode
from chainrule.capture.traits import Traits
from chainrule.graph.trees import map_leaves, tensors_in


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
