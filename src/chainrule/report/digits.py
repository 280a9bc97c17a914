"""How many decimals a calculation needs in print, so that a reader who repeats it gets the printed result."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor as Data

from chainrule.derivation.forward_values import decimals_of, formula
from chainrule.derivation.jacobian import indices
from chainrule.numbers import DECIMALS, enough, rounded
from chainrule.rules import Applied, Rule
from chainrule.rules.element import TooManyError

USUAL, MOST = DECIMALS[0], 8


def of_result(rule: Rule, op: Applied) -> int:
    """Those of the operands of a forward step, by the formula of each element of its result."""
    tensors = [each for each in op.arguments.values() if isinstance(each, Data)]
    if not isinstance(op.out, Data) or not any(_is_cut(each) for each in tensors):
        return USUAL
    found = USUAL
    for index, result in zip(indices(op.out.shape), op.out.reshape(-1).tolist(), strict=True):
        try:
            element = formula(rule, op, 0, index)
        except (TooManyError, ArithmeticError, LookupError, AttributeError, RuntimeError, TypeError, ValueError):
            return USUAL  # more digits are only a service
        found = max(found, USUAL if element is None else decimals_of(element, result))
    return min(found, MOST)


def of_product(rule: Rule, argument: str, op: Applied, upstream: Data, result: Data) -> int:
    """Those of the operands and of the upstream gradient of a vector-Jacobian product."""

    def repeat(decimals: int) -> Data:
        arguments = {name: _rounded(each, decimals) for name, each in op.arguments.items()}
        outs = tuple(_rounded(each, decimals) for each in op.outs)
        found = rule.wrt[argument].vjp(Applied(arguments, outs, op.name), _rounded(upstream, decimals))
        return found if isinstance(found, Data) else result

    return of_calculation(repeat, result)


def of_calculation(repeat: Callable[[int], Data], result: Data) -> int:
    """Those with which `repeat` gives each element of a result as it is printed."""

    @cache
    def again(decimals: int) -> list[Any]:
        found = repeat(decimals).reshape(-1).tolist()
        return found if len(found) == result.numel() else result.reshape(-1).tolist()

    try:
        places = enumerate(result.reshape(-1).tolist())
        needed = (enough(lambda count: again(count)[place], each) for place, each in places)  # noqa: B023
        return min(max(needed, default=USUAL), MOST)
    except (ArithmeticError, LookupError, AttributeError, RuntimeError, TypeError, ValueError):
        return USUAL  # a rule that does not take these numbers: more digits are only a service


def written(data: Data, decimals: int) -> Data:
    """A tensor as it is printed, in float64."""
    kind = torch.complex128 if data.is_complex() else torch.float64
    if decimals >= DECIMALS[-1]:
        return data.detach().to_dense().to(kind)
    numbers = [rounded(each, decimals) for each in data.detach().to_dense().reshape(-1).tolist()]
    return torch.tensor(numbers, dtype=kind).reshape(data.shape)


def _rounded(item: Any, decimals: int) -> Any:
    return written(item, decimals) if isinstance(item, Data) and item.is_floating_point() else item


def _is_cut(data: Data) -> bool:
    """Whether a number of a tensor is not printed in full."""
    return data.is_floating_point() and any(
        abs(rounded(each, USUAL) - each) > 5e-7 * abs(each) for each in data.detach().to_dense().reshape(-1).tolist()
    )
