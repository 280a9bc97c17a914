"""A dispatch mode of ours, and how operations run under one as they would without."""

from __future__ import annotations

from functools import reduce
from operator import or_
from typing import Any

import torch
from torch.compiler import is_dynamo_compiling
from torch.overrides import TorchFunctionMode

from chainrule.pytorch_internals import (
    DispatchKey,
    DispatchKeySet,
    HigherOrderOperator,
    TorchDispatchMode,
    _compute_keyset,
    _dispatch_tls_local_exclude_set,
    _dispatch_tls_local_include_set,
    _ForceDispatchKeyGuard,
    _len_torch_dispatch_stack,
    _RestorePythonTLSSnapshot,
)
from chainrule.rules.facts import facts_of


class OwnMode(TorchDispatchMode):
    """A dispatch mode of ours."""

    supports_higher_order_operators = True  # or `torch.cond` and its like would raise under this mode

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Otherwise the base class imports PyTorch's compiler, which takes more than a second. It only keeps the
        # compiler from tracing into `__torch_dispatch__`, and compiled code runs eagerly while we record.
        return False


def _keys(*beginnings: str) -> Any:
    """The dispatch keys whose names begin so."""
    names = (name for name in DispatchKey.__members__ if name.startswith(beginnings))
    keys = (DispatchKeySet(getattr(DispatchKey, name)) for name in names)
    return reduce(or_, keys)


_lazy = _keys("Conjugate", "Negative", "ZeroTensor")
_autocast = _keys("Autocast")


def run_composite(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], casts: bool) -> Any:
    """Run an operation in a dispatch mode so that those that it calls run as without one.

    PyTorch 2.13 turns off in a dispatch mode all that comes before it: the code that resolves a conjugated view before
    a kernel reads it (`linalg.pinv` and `linalg.lstsq` of complex matrices return wrong numbers then), and autocast.
    """
    excluded = _dispatch_tls_local_exclude_set() - _lazy
    if casts:
        with _RestorePythonTLSSnapshot():
            outside = _dispatch_tls_local_exclude_set()
        excluded = excluded - (_autocast - outside)
    with _ForceDispatchKeyGuard(_dispatch_tls_local_include_set(), excluded):
        return func(*args, **kwargs)


NUMBERS = frozenset({bool, int, float, complex})
_dtypes = {bool: torch.bool, int: torch.int64, float: torch.float64, complex: torch.complex128}


def with_tensors(func: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments of an operation of which the first is a number: as tensors, where it takes nothing else.

    PyTorch hands a dispatch mode a number for a tensor that it made of one itself. A traced function keeps such tensors
    (`h * 2`), and reads and compares them by operations that take no numbers.
    """
    schema = getattr(func, "_schema", None)
    if schema is None or not schema.name.startswith("aten::") or facts_of(str(func)).takes_numbers:
        return args
    return tuple(
        torch.scalar_tensor(given, dtype=_dtypes[type(given)], device="cpu")
        if type(given) in NUMBERS and isinstance(argument.type, torch.TensorType)
        else given
        for given, argument in zip(args, schema.arguments, strict=False)
    )


class _IsHigherOrder(dict[type, bool]):
    def __missing__(self, kind: type) -> bool:
        self[kind] = issubclass(kind, HigherOrderOperator)
        return self[kind]


is_higher_order = _IsHigherOrder()
"""Whether functions of this type are operators that take functions (`torch.cond`)."""


def go_on(operator: Any, args: tuple[Any, ...], kwargs: dict[str, Any], mode: TorchFunctionMode) -> Any:
    """Run a higher-order operator that a mode was asked about, with a function mode on: what it runs is seen by that.

    To call the operator would ask the modes again.
    """
    key = _compute_keyset(args, kwargs, operator.non_fallthrough_keys).highestPriorityTypeId()
    with mode:
        return operator.dispatch(key, *args, **kwargs)


def run_inside(operator: Any, args: tuple[Any, ...], kwargs: dict[str, Any], mode: TorchDispatchMode) -> Any:
    """Run a higher-order operator that a dispatch mode was asked about, with that mode on for what runs in it."""
    return go_on(operator, args, kwargs, _InsideMode(mode))


class _InsideMode(TorchFunctionMode):
    """Puts a dispatch mode on for each torch function that a higher-order operator calls.

    PyTorch takes the mode off while the operator runs, and some operators insist on that. Where another mode is on,
    PyTorch is tracing.
    """

    def __init__(self, mode: TorchDispatchMode) -> None:
        super().__init__()
        self._mode = mode

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if is_dynamo_compiling() or _len_torch_dispatch_stack():
            return func(*args, **(kwargs or {}))
        with self._mode:
            return func(*args, **(kwargs or {}))
