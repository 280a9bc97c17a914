"""Our own work on the user's tensors, which nothing of PyTorch's that watches operations may see."""

from __future__ import annotations

from typing import Any

import torch
from torch._C import DisableTorchFunction, _len_torch_dispatch_stack
from torch.utils._python_dispatch import _pop_mode, _push_mode


class unobserved:  # noqa: N801 (read as a word: `with unobserved():`)
    """No function mode, no dispatch mode and no autograd sees the operations in this block.

    A tensor subclass still runs its own `__torch_dispatch__`: one that wraps other tensors has no memory, and PyTorch
    crashes when it is copied without (`torch._C._DisableTorchDispatch`). Costs less than PyTorch's own three contexts.
    """

    __slots__ = ("_functions", "_grad", "_modes")

    def __enter__(self) -> None:
        self._functions = DisableTorchFunction()
        self._functions.__enter__()
        self._grad = torch.is_grad_enabled()
        torch._C._set_grad_enabled(False)
        self._modes = [_pop_mode() for _ in range(_len_torch_dispatch_stack())]

    def __exit__(self, *raised: Any) -> None:
        while self._modes:
            _push_mode(self._modes.pop())
        torch._C._set_grad_enabled(self._grad)
        self._functions.__exit__(*raised)
