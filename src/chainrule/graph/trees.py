"""The walks that many rooms need: over the nested arguments of a call, and along links from one fact to the next.

The recorder gathers the tensors of every operation, so `leaves` does no more than it must.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Any, TypeGuard, TypeVar

import torch
from torch import Tensor

Leaf = TypeVar("Leaf")
Place = TypeVar("Place", bound=Hashable)
Result = TypeVar("Result")
_nested = (tuple, list, dict)


def is_a(item: Any, kind: type[Leaf]) -> TypeGuard[Leaf]:
    """Whether an object of the user's is of a class, by its type alone.

    `isinstance` asks the object too, and what stands for another one may raise (`weakref.proxy`, `flask.request`).
    """
    return issubclass(type(item), kind)


def reach(start: Iterable[Place], step: Callable[[Place], Iterable[Place]]) -> Iterator[Place]:
    """Everything that steps lead to from `start`, which comes first, each once; `step` is asked after a place is given.

    Goes on without recursion, so that a chain may be as long as memory allows.
    """
    found = dict.fromkeys(start)
    waiting = list(found)
    while waiting:
        place = waiting.pop()
        yield place
        for following in step(place):
            if following not in found:
                found[following] = None
                waiting.append(following)


def gathered(
    start: Place,
    step: Callable[[Place], Iterable[Place]],
    combine: Callable[[Place, list[Result]], Result],
    known: dict[Place, Result],
) -> Result:
    """What `combine` makes of a place and of the results of those that a step leads to; all of them go into `known`.

    The steps must not lead round in a circle. Goes on without recursion, as `reach`.
    """
    waiting = [start]
    while waiting:
        place = waiting[-1]
        following = () if place in known else tuple(step(place))
        if unknown := [each for each in following if each not in known]:
            waiting += unknown
            continue
        if place not in known:
            known[place] = combine(place, [known[each] for each in following])
        waiting.pop()
    return known[start]


def leaves(tree: Any, kind: type[Leaf]) -> list[Leaf]:
    """Every object of a class in nested tuples, lists and dicts, left to right."""
    found: list[Leaf] = []
    _gather(tree, kind, found)
    return found


def _gather(tree: Any, kind: type[Leaf], into: list[Leaf]) -> None:
    if isinstance(tree, kind):
        into.append(tree)
    elif isinstance(tree, (tuple, list)):
        for item in tree:
            if isinstance(item, kind):
                into.append(item)
            elif isinstance(item, _nested):
                _gather(item, kind, into)
    elif isinstance(tree, dict):
        for item in tree.values():
            _gather(item, kind, into)


def tensors_in(tree: Any) -> list[Tensor]:
    """Every tensor in nested tuples, lists and dicts, left to right."""
    return leaves(tree, Tensor)


def map_leaves(function: Callable[[Any], Any], tree: Any, lists: bool = False) -> Any:
    """The same tree with `function` applied to everything in it that is no tuple, list or dict.

    A `torch.Size` is one leaf, and a named tuple keeps its type. With `lists`, every tuple becomes a list.
    """
    if not isinstance(tree, _nested) or (type(tree) is torch.Size and not lists):
        return function(tree)
    if isinstance(tree, dict):
        return {key: map_leaves(function, each, lists) for key, each in tree.items()}
    mapped = [map_leaves(function, each, lists) if isinstance(each, _nested) else function(each) for each in tree]
    if lists or isinstance(tree, list):
        return mapped
    return tree._make(mapped) if hasattr(tree, "_make") else tuple(mapped)
