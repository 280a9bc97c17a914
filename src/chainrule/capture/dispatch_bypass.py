"""Functions of torch that run exactly one ATen operation, on their own arguments, and give its result.

Seen from a function mode such a call is known completely, so that the dispatch mode, which costs several times more
than a tiny operation itself, can be left out for it. Which functions these are is learnt: a call that went through both
modes tells which operations ran for it. Only elementwise functions are learnt, for they choose their operation by the
kinds of their arguments and by nothing else.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch._C import _are_functorch_transforms_active, _current_graph_task_id, _len_torch_dispatch_stack

# By the names of their operations: none of them writes, makes a view, draws numbers, or is cast by autocast.
_ELEMENTWISE = frozenset(
    f"aten::{name}"
    for name in (
        "abs", "add", "cos", "div", "maximum", "minimum", "mul", "neg", "relu", "rsub", "sigmoid", "silu", "sin",
        "sqrt", "sub", "tanh",
    )
)  # fmt: skip
_KINDS = frozenset({Tensor, nn.Parameter, int, float, bool})

_set_aside = torch.ops.aten.detach.default

Key = tuple[Any, ...]  # the function, and the types of its arguments


class Direct:
    """What has been learnt; `known.get((function, *map(type, arguments)))` is the operation, or None."""

    def __init__(self) -> None:
        self.known: dict[Key, Any] = {}

    def learn(self, function: Any, arguments: tuple[Any, ...], out: Any, operations: list[tuple[Any, ...]]) -> None:
        """Look at a call for which these operations of the tape ran."""
        func, given, keywords, result = operations[0][:4]
        if keywords or result is not out or func._schema.name not in _ELEMENTWISE or len(given) != len(arguments):
            return
        # A function that goes back by its result has autograd set that aside.
        if any(each[0] is not _set_aside or each[1][0] is not out for each in operations[1:]):
            return
        key = (function, *map(type, arguments))
        if _KINDS.issuperset(key[1:]) and all(map(_same, arguments, given)) and applies():
            self.known[key] = func


def _same(one: Any, other: Any) -> bool:
    return one is other if isinstance(one, Tensor) else type(one) is type(other) and bool(one == other)


def applies() -> bool:
    """Whether a call runs now as it did when it was learnt: no other mode, no transform, no backward pass around it."""
    return (
        _len_torch_dispatch_stack() == 1 and _current_graph_task_id() == -1 and not _are_functorch_transforms_active()
    )
