"""Attributes that a script sets and PyTorch never reads: `layer.requires_grad = False`, `optimizer.lr = 1e-4`."""

from __future__ import annotations

from collections.abc import Iterator
from difflib import SequenceMatcher
from functools import lru_cache
from typing import Any

from torch import nn
from torch.optim.optimizer import Optimizer

from chainrule.capture.module_tree import own_parameters, parameters_of

LEARNS = "requires_grad"
ALIKE = 0.85  # share of letters in common, from which on one name is taken for a slip of another


def ignored_of(module: nn.Module) -> tuple[str, ...]:
    """What was set on a module, or on its own parameters, to freeze what still learns."""
    found = []
    if vars(module).get(LEARNS) is False and any(each.requires_grad for each in parameters_of(module)):
        found.append(LEARNS)
    for parameter in own_parameters(module):
        if type(parameter) is nn.Parameter and parameter.requires_grad:
            found += [name for name, value in vars(parameter).items() if value is False and is_slip(name, LEARNS)]
    return tuple(dict.fromkeys(found))


def ignored_options(optimizer: Optimizer) -> dict[str, float]:
    """The attributes of one of PyTorch's optimizers that have the name of an option, and a value no group has."""
    if not type(optimizer).__module__.startswith("torch.optim"):
        return {}
    return {
        name: value for name, value in _numbers(vars(optimizer))
        if name in optimizer.defaults and all(group.get(name) != value for group in optimizer.param_groups)
    }  # fmt: skip


def _numbers(attributes: dict[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in attributes.items():
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            yield name, float(value)


@lru_cache(maxsize=1024)  # the names of a model's thousands of parameters are a few
def is_slip(name: str, of: str) -> bool:
    """Whether a name is another one with a slip of the pen."""
    return name != of and SequenceMatcher(None, name, of).ratio() >= ALIKE
