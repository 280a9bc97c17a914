"""From a name or an index that a reader types to the value, or the element, that is meant."""

from __future__ import annotations

import difflib
import operator

from chainrule.errors import MissingError
from chainrule.graph.graph import Graph
from chainrule.graph.names import Notation

Index = tuple[int, ...]


def find_value(graph: Graph, name: str) -> int:
    """The value that goes by `name`: the user's name, a parameter or module path, or the symbol (`W1`).

    A bare name that several values share (`x@1`, `x@2`) means the last of them.

    Raises MissingError, with the near matches, where no value has that name.
    """
    known = _names(graph)
    if name in known:
        return known[name]
    told = _told_names(graph)
    if name in told:
        return told[name]
    if name in graph.parameters:
        raise MissingError(
            f"The parameter '{name}' has no value in this recording: the forward pass did not use it. Its data is in "
            f"`recording.parameters['{name}']`."
        )
    if any(module.path == name for module in graph.modules):
        raise MissingError(f"The module '{name}' ran, but what it returned is not one tensor. Ask for one by its name.")
    raise MissingError(f"There is no value named '{name}' in this recording. {_near(name, [*known, *told])}")


def check_index(graph: Graph, value: int, index: Index | int, called: str) -> Index:
    """`index` as a tuple of non-negative places in the value's shape; negative ones count from the end.

    Raises MissingError where it has too many or too few axes, is out of range, or is not made of whole numbers.
    """
    shape = graph.values[value].shape
    given = index if isinstance(index, tuple) else (index,)
    told = f"{called}[{', '.join(map(str, given))}]" if given else called
    places = []
    for place in given:
        if isinstance(place, bool) or not hasattr(place, "__index__"):
            raise MissingError(
                f"{told}: {place!r} is no index. Give whole numbers, one for each axis of the shape {shape}."
            )
        places.append(operator.index(place))
    if len(places) != len(shape):
        raise MissingError(
            f"{told} gives {_axes(len(places))}, but {called} has the shape {shape}. "
            f"Give {_axes(len(shape))}{', as in ' + str((0,) * len(shape)) if 0 not in shape else ''}."
        )
    for axis, (place, size) in enumerate(zip(places, shape, strict=True)):
        if not -size <= place < size:
            allowed = f"Axis {axis} goes from 0 to {size - 1}." if size else f"Axis {axis} is empty."
            raise MissingError(f"{told} is out of range: {called} has the shape {shape}. {allowed}")
    return tuple(place % size for place, size in zip(places, shape, strict=True))


def _names(graph: Graph) -> dict[str, int]:
    """Every name, and every bare name; later values take bare names from earlier ones."""
    exact = {name: value.index for value in reversed(graph.values) for name in value.names}
    bare = {name.partition("@")[0]: value.index for value in graph.values for name in value.names if "@" in name}
    paths = {name: each.value for name, each in graph.parameters.items() if each.value is not None}
    return {**bare, **paths, **exact}


def _told_names(graph: Graph) -> dict[str, int]:
    notation = Notation(graph)
    return {notation.plain(value.index): value.index for value in graph.values}


def _near(name: str, known: list[str]) -> str:
    by_lower = {each.lower(): each for each in known}
    near = [by_lower[each] for each in difflib.get_close_matches(name.lower(), by_lower, n=3, cutoff=0.5)]
    if near:
        return f"Near matches: {', '.join(repr(each) for each in near)}."
    return f"It holds {', '.join(repr(each) for each in known[:8])}." if known else "It holds no values at all."


def _axes(count: int) -> str:
    return {0: "no index", 1: "1 index"}.get(count, f"{count} indices")
