"""The two modes of PyTorch's that a recorder puts on: one sees what the user wrote, one each ATen operation."""

from __future__ import annotations

from typing import Any, Protocol, Self

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from chainrule.direct import Direct, applies

BACKWARD = frozenset({Tensor.backward, torch.autograd.backward, torch.autograd.grad})


class Watcher(Protocol):
    """What the modes report to."""

    directly: Direct

    def dispatch(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None) -> Any:
        """Run an ATen operation."""

    def call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a torch function."""

    def direct(self, operation: Any, func: Any, args: tuple[Any, ...]) -> Any:
        """Run a torch function of which it is known that it runs just this operation."""

    def backward(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run `backward` or `grad`."""


class DispatchMode(TorchDispatchMode):
    """Sees each ATen operation, below autograd."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Otherwise the base class imports PyTorch's compiler, which takes more than a second. It only keeps the
        # compiler from tracing into `__torch_dispatch__`, and compiled code is run eagerly while we record.
        return False

    def __init__(self, recorder: Watcher) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.recorder = recorder

    def __enter__(self) -> Self:
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        super().__exit__(kind, error, trace)  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return self.recorder.dispatch(func, args, kwargs)


class FunctionMode(TorchFunctionMode):
    """Sees each torch function that the user's code calls."""

    def __init__(self, recorder: Watcher) -> None:
        super().__init__()
        self.recorder = recorder

    def __enter__(self) -> Self:
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        super().__exit__(kind, error, trace)  # type: ignore[no-untyped-call]

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        recorder = self.recorder
        if not kwargs:
            operation = recorder.directly.known.get((func, *map(type, args)))
            if operation is not None and applies():
                return recorder.direct(operation, func, args)
        if func in BACKWARD:
            return recorder.backward(func, args, kwargs or {})
        return recorder.call(func, args, kwargs or {})
