"""Torch functions in whose place somebody has put a wrapper (`F.cross_entropy = logged(F.cross_entropy)`).

A function that asks the modes hands them what now has its name: the wrapper, which is running already and would run
once more.
"""

from __future__ import annotations

import gc
from types import CodeType, FrameType, FunctionType
from typing import Any

from torch import Tensor
from torch.overrides import handle_torch_function

_asks = handle_torch_function.__code__
_found: dict[CodeType, Any] = {}


def original(func: Any, caller: FrameType) -> Any:
    """The function that asked a mode, which is `func` or was wrapped by it; `caller` called the mode."""
    if caller.f_code is not _asks:  # a method in C, or a function that is no attribute of anything
        replaced = type(func) is FunctionType and caller.f_code is func.__code__
        return getattr(Tensor.__base__, _name_of(func), func) if replaced else func
    asking = caller.f_back
    if asking is None or asking.f_code is getattr(func, "__code__", None):
        return func
    name = asking.f_code.co_name
    if asking.f_globals.get(name) is not func and getattr(Tensor, name, None) is not func:
        return func  # PyTorch gives another function than the one that asks
    if asking.f_code not in _found:
        _found[asking.f_code] = _function_of(asking)
    return _found[asking.f_code] or func


def _name_of(method: Any) -> str:
    return next((name for name, each in vars(Tensor).items() if each is method), "")


def _function_of(frame: FrameType) -> Any:
    """The function that runs in a frame; None if several can."""
    holders = (each for each in gc.get_referrers(frame.f_code) if type(each) is FunctionType)
    found = [each for each in holders if each.__code__ is frame.f_code and each.__globals__ is frame.f_globals]
    return found[0] if len(found) == 1 else None
