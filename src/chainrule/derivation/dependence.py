"""Along which axes one value depends on another: proved from the operations between them, or measured.

Structure gives a bound for all numbers (`Reaches`). Where that allows everything, positions are moved one by one, and
the operations between the two run again: what stays the same then was measured, for these numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from chainrule.derivation.reaches import Alignment, Bounds, Reaches, Relation, relation, step_of
from chainrule.execution.experiment import CannotRunError
from chainrule.execution.lineage import Lineage
from chainrule.execution.perturbation import Perturbation, moved, same
from chainrule.graph.graph import Graph
from chainrule.graph.names import Index, Notation, element, find_value

MOVED = 64
"""The positions along an axis that are moved, each twice; of more, so many are drawn."""
SHOWN = 12
"""The steps of a path that are written."""

Run = Callable[[Tensor], Tensor]

_words = {
    "none": "no position",
    "own": "its own position alone",
    "one": "one position alone",
    "earlier": "its own and earlier positions alone",
    "later": "its own and later positions alone",
    "any": "any position",
}


@dataclass(frozen=True)
class AxisDependence:
    """What elements of `of` depend on along one axis of `on`, at most.

    `along` is the axis of `of` whose positions are meant (None: of no single one). `how` is "structure" where the
    operations alone show it, for all numbers, and "measured" where it was seen for these numbers, with `moved` of the
    positions moved. `witness` is a position and an element of `of` that it moved, where any may depend on any.
    `unknown` says why it could not be measured.
    """

    axis: int
    size: int
    relation: Relation
    along: int | None
    how: Literal["structure", "measured"]
    words: str
    moved: int = 0
    witness: tuple[int, Index] | None = None
    unknown: str = ""


@dataclass(frozen=True)
class Dependence:
    """The answer to whether the value named `of` depends on the one named `on`; it is false where it does not.

    `axes` has one entry for each axis of `on` with more than one position. `path` leads from `on` to `of`, and
    `mixes` is the operation on it that first brings several positions together ("" where none does). `open` lists
    where numbers left the recorded operations: what structure shows does not cover what came back.
    """

    of: str
    on: str
    depends: bool
    axes: tuple[AxisDependence, ...]
    path: tuple[str, ...]
    mixes: str = ""
    open: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return self.depends

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        if not self.depends:
            shown = "No operation leads from one to the other, whatever the numbers."
            yield f"{self.of} does not depend on {self.on}. {shown if not self.open else ''}".rstrip()
        else:
            yield f"{self.of} depends on {self.on}."
        for each in self.axes:
            yield f"  axis {each.axis} of {self.on}, {each.size} positions: on {each.words}"
        if self.path:
            yield f"  path: {written(self.path)}"
        if self.mixes:
            yield f"  first mixed by: {self.mixes}"
        for left in self.open:
            yield f"  not covered: {left}"


def depends(graph: Graph, notation: Notation, of: str, on: str) -> Dependence:
    """Whether and along which axes the value named `of` depends on the one named `on`.

    Raises MissingError for a name that the recording does not hold.
    """
    until, source = find_value(graph, of), find_value(graph, on)
    shape = graph.values[source].shape
    lineage = Lineage(graph)
    walks = [Reaches(graph, source, axis, until, lineage) for axis, size in enumerate(shape) if size > 1]
    whole = walks[0] if walks else Reaches(graph, source, None, until, lineage)
    of, on = notation.plain(until), notation.plain(source)
    if whole.of(until) is None:
        return Dependence(of, on, False, (), (), open=tuple(whole.open()))
    axes = tuple(_axis(walk, until, of) for walk in walks)
    worst = next((walk for walk, each in zip(walks, axes, strict=True) if each.relation == "any"), whole)
    path, first = worst.path(until, lambda value: worst.relation(value)[0] == "any")
    mixes = step_of(graph, path[first]) if worst.relation(until)[0] == "any" else ""
    return Dependence(of, on, True, axes, steps(graph, path), mixes, tuple(whole.open()))


def steps(graph: Graph, path: list[int]) -> tuple[str, ...]:
    """The steps of a path in words; those of one call are one step."""
    found = [graph.values[path[0]].name] if path else []
    found += [step_of(graph, value) for value in path[1:]]
    return tuple(each for place, each in enumerate(found) if not place or each != found[place - 1])


def written(path: tuple[str, ...]) -> str:
    """A path in one line; the middle of a long one is left out."""
    if len(path) > SHOWN:
        half = SHOWN // 2
        path = (*path[:half], f"... {len(path) - SHOWN} more ...", *path[-half:])
    return " -> ".join(path)


def _axis(walk: Reaches, until: int, of: str) -> AxisDependence:
    axis, size = walk.axis or 0, walk.size
    bound, aligned = walk.relation(until)
    if bound != "any":
        words = f"{said(bound, aligned, of)}. Structure, for all finite numbers."
        return AxisDependence(axis, size, bound, _axis_of(aligned), "structure", words)
    try:
        if walk.returned():
            raise CannotRunError("it goes through a backward pass of the step, whose gradients come back as data")
        part = Perturbation(walk.graph, walk.source, until, walk.lineage)
        base = part.base
        seen = measured(part.data, axis, lambda given: part.run(given).get(until, base))
    except CannotRunError as error:
        words = f"{said(bound, None, of)}. Structure; not measured: {error}."
        return AxisDependence(axis, size, bound, None, "structure", words, unknown=str(error))
    if seen.count == 0:
        words = f"{said(bound, None, of)}. Structure; not measured: {seen.unknown}."
        return AxisDependence(axis, size, bound, None, "structure", words, unknown=seen.unknown)
    found, aligned = relation(seen.bounds, tuple(base.shape), size)
    share = "each position was moved" if seen.count == size else f"{seen.count} positions were moved"
    if found != "any":
        words = f"{said(found, aligned, of)}. Measured, for these numbers: {share}."
        return AxisDependence(axis, size, found, _axis_of(aligned), "measured", words, seen.count)
    witness = seen.witness(size)
    words = f"{said(found, None, of)}. Measured: moving position {witness[0]} moves {element(of, witness[1])}."
    return AxisDependence(axis, size, found, None, "measured", words, seen.count, witness)


def _axis_of(aligned: Alignment | None) -> int | None:
    return None if aligned is None else aligned.axis


def said(found: Relation, aligned: Alignment | None, of: str) -> str:
    """A relation in words."""
    return _words[found] + (f", axis {aligned.axis} of {of}{aligned.note}" if aligned is not None else "")


@dataclass(frozen=True)
class Measured:
    """What moved where positions were moved one by one: `count` of them."""

    bounds: Bounds
    count: int
    unknown: str = ""

    def witness(self, size: int) -> tuple[int, Index]:
        """A position that moved an element that another one moved too, and the element."""
        mixed = self.bounds.mixed(size).nonzero()
        place = tuple(mixed[0].tolist() if len(mixed) else self.bounds.last.nonzero()[0].tolist())
        return int(self.bounds.last[place]) - 1, place


def measured(
    data: Tensor, axis: int, run: Run, most: int = MOVED, draws: int = 2, positions: Iterable[int] | None = None
) -> Measured:
    """Move positions along an axis one by one, and see which elements of the result change."""
    generator, size = torch.Generator().manual_seed(0), data.shape[axis]
    base = run(data)
    last, first, count = torch.zeros(base.shape), torch.zeros(base.shape), 0
    unknown = "all its numbers are equal, and no other one is known to be allowed"
    for position in chosen(size, most, generator) if positions is None else positions:
        tried = False
        for draw in range(draws):
            given = moved(data, axis, position, draw, generator)
            if given is None:
                continue
            result = run(given)
            if result.shape != base.shape or _is_worse(base, result):
                unknown = "with other numbers the result is not finite, or of another shape"
                continue
            tried, changed = True, ~same(base, result).cpu()
            last = torch.where(changed, last.clamp(min=position + 1), last)
            first = torch.where(changed, first.clamp(min=size - position), first)
        count += tried
    return Measured(Bounds(last, first), count, unknown)


def _is_worse(base: Tensor, result: Tensor) -> bool:
    """Whether numbers became NaN or infinite, which then spread through a product with 0."""
    if not base.is_floating_point():
        return False
    return bool((~result.isfinite() & base.isfinite()).any())


def chosen(size: int, most: int, generator: torch.Generator) -> Iterable[int]:
    """All positions of an axis; of very many some, drawn at random."""
    return range(size) if size <= most else sorted(torch.randperm(size, generator=generator)[:most].tolist())
