"""Changes of a loop in a user's backward: what each turn lacks of a tensor, and of the turn before it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from chainrule.execution.call_tape import Called
from chainrule.verification.repair_reach import name_of
from chainrule.verification.repair_samples import Mistake, Reach
from chainrule.verification.repair_steps import Edit, Step


def by_turns(reach: Sequence[Reach], call: Called, place: int, turns: int, name: str) -> Iterator[Edit]:
    """In a loop: each turn lacks its element of a tensor as a factor, as `g[i]`, or as a term."""
    in_place = call.name in ("iadd", "isub", "add_", "sub_") and len(call.arguments) == 2
    if call.writes and not in_place:
        return
    for key, named in reach[0].named.items():
        tensor = named.tensor
        if named.made >= 0 or not tensor.dim() or len(tensor) != turns or not tensor.is_floating_point():
            continue
        factor = "" if "upstream" in named.text else " as a factor"
        alike = isinstance(call.out, Tensor) and tensor.shape[1:] == call.out.shape
        for back in (False, True):
            for put, kind, what, more in _PUT[: 3 if alike and not in_place else 1]:

                def own(reach: Reach, key: str = key, back: bool = back) -> Tensor:
                    return reach.named[key].tensor[turns - 1 - reach.turn if back else reach.turn]

                def result(
                    call: Called, reach: Reach, a: list[Any], k: dict[str, Any], own: Any = own, put: Any = put
                ) -> Any:
                    return put(call.run(a, k), own(reach))

                def operand(call: Called, reach: Reach, a: list[Any], k: dict[str, Any], own: Any = own) -> Any:
                    return call.run([a[0], a[1] * own(reach)], k)

                problem = f"{named.text} is missing{what or factor}"
                fix = f"with its element of each turn of the loop{more and more.format(name)}"
                works: dict[int, Step] = {place: operand if in_place else result}
                yield Edit(2.1 + named.cost + 0.2 * bool(what), kind, problem, fix, place, works)


_PUT: tuple[tuple[Callable[[Tensor, Tensor], Tensor], Mistake, str, str], ...] = (
    (torch.mul, "missing factor", "", ""),
    (torch.add, "missing term", " as a term", " added to {}"),
    (torch.sub, "missing term", " as a term", " subtracted from {}"),
)


def carried_over(calls: Sequence[Called], place: int, repeated: dict[int, list[int]]) -> Iterator[Edit]:
    """In a loop: each turn lacks what the turn before left, as in `d = g[t]` for `d = d + g[t]`."""
    call = calls[place]
    if call.writes or not isinstance(call.out, Tensor) or not call.out.is_floating_point():
        return
    turns = len(repeated[place])
    for left, siblings in repeated.items():
        other = calls[left]
        alike = isinstance(other.out, Tensor) and other.out.shape == call.out.shape and not other.writes
        if left < place or len(siblings) != turns or not alike or _is_read_later(calls, siblings, repeated[place][1]):
            continue
        name = name_of(other)
        problem = f"what the turn before left in {name} is missing as a term"
        yield Edit(1.7, "missing term", problem, f"with it added to {name_of(call)}", place, _carried(place, left))


def _carried(place: int, left: int) -> dict[int, Step]:
    """The steps that keep what a turn leaves, and add it in the next one."""
    kept: dict[int, Tensor] = {}

    def added(call: Called, reach: Reach, arguments: list[Any], keywords: dict[str, Any]) -> Any:
        out = call.run(arguments, keywords)
        return out + kept[reach.turn - 1] if reach.turn else out

    def keep(call: Called, reach: Reach, arguments: list[Any], keywords: dict[str, Any]) -> Any:
        kept[reach.turn] = call.run(arguments, keywords)
        return kept[reach.turn]

    def both(call: Called, reach: Reach, arguments: list[Any], keywords: dict[str, Any]) -> Any:
        kept[reach.turn] = added(call, reach, arguments, keywords)
        return kept[reach.turn]

    return {place: both} if left == place else {place: added, left: keep}


def _is_read_later(calls: Sequence[Called], siblings: Sequence[int], second: int) -> bool:
    """Whether a later turn reads what the first one left there."""
    out = id(calls[siblings[0]].out)
    return any(out in call.reads for call in calls[second:])
