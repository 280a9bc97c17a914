"""A layered layout: vertices in columns from left to right, each edge from a column to a later one.

The method is that of Sugiyama, Tagawa and Toda (1981): assign columns, order each column so that few edges cross, then
choose heights that keep edges level. An edge that skips columns runs through one waypoint in each of them; all edges
from one vertex share their waypoints. The same input always gives the same layout.
"""

from __future__ import annotations

from bisect import bisect, insort
from collections.abc import Sequence
from itertools import pairwise

COLUMN_GAP, VERTEX_GAP, WAYPOINT_GAP = 56.0, 22.0, 10.0
PORT_GAP = 11.0  # between the ends of two edges at one vertex
SWEEPS = 16  # over all columns, in which the order settles
LEAF, COMPUTED = 1e-4, 1.0  # weights; a waypoint has twice that of its source, so that long edges stay level
Point = tuple[float, float]


def _column_of(inputs: Sequence[Sequence[int]]) -> list[int]:
    """The column of each vertex: as far left as its inputs allow; a leaf stands one column before its first use."""
    column: list[int] = []
    first_use: dict[int, int] = {}
    for vertex, sources in enumerate(inputs):
        if not all(0 <= source < vertex for source in sources):
            raise ValueError(f"vertex {vertex} has the inputs {tuple(sources)}, but inputs are earlier vertices")
        column.append(1 + max((column[source] for source in sources), default=-1))
        for source in sources:
            first_use[source] = min(first_use.get(source, column[vertex]), column[vertex])
    return [first_use.get(v, 1) - 1 if not sources else column[v] for v, sources in enumerate(inputs)]


class Layout:
    """Vertices of given sizes, each placed to the right of its inputs, in px from the upper left corner (0, 0).

    `paths` has the points of each edge, target by target: level lines through columns, and gaps crossed between them.
    Raises ValueError where an input is not an earlier vertex.
    """

    def __init__(self, sizes: Sequence[tuple[float, float]], inputs: Sequence[Sequence[int]]) -> None:
        # Vertices come first in these lists, then waypoints, which have no size.
        self.sizes, self.column_of = list(sizes), _column_of(inputs)
        self.weight = [COMPUTED if sources else LEAF for sources in inputs]
        waypoints: dict[tuple[int, int], int] = {}
        self.routes = [
            [source, *(self._waypoint(waypoints, source, place) for place in range(first + 1, last)), target]
            for target, sources in enumerate(inputs)
            for source in sources
            for first, last in [(self.column_of[source], self.column_of[target])]
        ]
        self.left: list[list[int]] = [[] for _ in self.sizes]
        self.right: list[list[int]] = [[] for _ in self.sizes]
        for before, after in dict.fromkeys(segment for route in self.routes for segment in pairwise(route)):
            self.left[after].append(before)
            self.right[before].append(after)
        self.columns: list[list[int]] = [[] for _ in range(max(self.column_of, default=-1) + 1)]
        for vertex, place in enumerate(self.column_of):
            self.columns[place].append(vertex)
        self.y = [0.0] * len(self.sizes)
        self._order()
        self._sweep(self.right)
        self._sweep(self.left)
        for column in reversed(self.columns):  # last, leaves move to what uses them
            self._settle(column, [self.y[v] if self.left[v] else self._wish(v, self.right) for v in column])
        top = min((self.y[v] - height / 2 for v, (_, height) in enumerate(self.sizes)), default=0.0)
        self.y = [each - top for each in self.y]
        widths = [max(self.sizes[vertex][0] for vertex in column) for column in self.columns]
        starts = [sum(widths[:place]) + COLUMN_GAP * place for place in range(len(widths))]
        x = [starts[column] for column in self.column_of]
        ends = [start + width for start, width in zip(starts, widths, strict=True)]
        self.centres = [(x[v] + width / 2, self.y[v]) for v, (width, _) in enumerate(sizes)]
        self.paths = [self._path(x, ends, route) for route in self.routes]
        self.width = max(ends, default=0.0)
        self.height = max((self.y[v] + height / 2 for v, (_, height) in enumerate(self.sizes)), default=0.0)

    def _waypoint(self, known: dict[tuple[int, int], int], source: int, column: int) -> int:
        if (source, column) not in known:
            known[source, column] = len(self.sizes)
            self.sizes.append((0.0, 0.0))
            self.column_of.append(column)
            self.weight.append(2 * self.weight[source])
        return known[source, column]

    def _path(self, x: Sequence[float], ends: Sequence[float], route: Sequence[int]) -> list[Point]:
        levels = [*(self.y[vertex] for vertex in route[:-1]), self.y[route[-1]] + self._port(*route[-2:])]
        path = [(x[route[0]] + self.sizes[route[0]][0], levels[0])]
        for (before, after), (one, other) in zip(pairwise(route), pairwise(levels), strict=True):
            path += [(ends[self.column_of[before]], one), (x[after], other)]
        return path

    def _order(self) -> None:
        """Sort each column by the heights of its neighbours, to and fro; keep the order with the fewest crossings."""
        for column in self.columns:
            self._settle(column, [0.0] * len(column))
        tried = []
        for sweep in range(SWEEPS):
            tried.append((self._crossings(), sweep, [list(column) for column in self.columns]))
            self._sweep(self.right if sweep % 2 else self.left, sort=True)
        self.columns = min(tried)[2]

    def _sweep(self, side: list[list[int]], *, sort: bool = False) -> None:
        """Settle each column after its neighbours on one side."""
        for column in self.columns if side is self.left else reversed(self.columns):
            wish = {vertex: self._wish(vertex, side) for vertex in column}
            if sort:
                column.sort(key=wish.__getitem__)
            self._settle(column, [wish[vertex] for vertex in column])

    def _wish(self, vertex: int, side: list[list[int]]) -> float:
        """The height that a vertex wants: the mean of its heaviest neighbours'."""
        most = max((self.weight[each] for each in side[vertex]), default=0.0)
        heights = [self.y[each] for each in side[vertex] if self.weight[each] == most] or [self.y[vertex]]
        return sum(heights) / len(heights)

    def _settle(self, column: Sequence[int], wishes: Sequence[float]) -> None:
        """Choose the heights nearest to the wishes that keep the column's order and gaps (isotonic regression)."""
        offsets = [0.0]
        for one, other in pairwise(self.sizes[vertex][1] for vertex in column):
            offsets.append(offsets[-1] + (one + other) / 2 + (VERTEX_GAP if one and other else WAYPOINT_GAP))
        pools: list[tuple[float, float, int]] = []  # (mean, weight, number of vertices)
        for vertex, wish, offset in zip(column, wishes, offsets, strict=True):
            mean, weight, count = wish - offset, self.weight[vertex], 1
            while pools and pools[-1][0] >= mean:
                above, more, several = pools.pop()
                mean = (mean * weight + above * more) / (weight + more)
                weight, count = weight + more, count + several
            pools.append((mean, weight, count))
        means = [mean for mean, _, count in pools for _ in range(count)]
        for vertex, mean, offset in zip(column, means, offsets, strict=True):
            self.y[vertex] = mean + offset

    def _crossings(self) -> int:
        place = {vertex: at for column in self.columns for at, vertex in enumerate(column)}
        count = 0
        for column in self.columns:
            passed: list[int] = []
            for vertex in column:
                ends = sorted(place[each] for each in self.right[vertex])
                count += sum(len(passed) - bisect(passed, end) for end in ends)
                for end in ends:
                    insort(passed, end)
        return count

    def _port(self, before: int, vertex: int) -> float:
        """How far below a vertex's middle the edge from `before` ends. The heaviest edge ends in the middle."""
        order = sorted(self.left[vertex], key=self.y.__getitem__)
        level = order.index(max(order, key=self.weight.__getitem__))
        most = max(level, len(order) - 1 - level, 1)
        return min(PORT_GAP, (self.sizes[vertex][1] / 2 - 6.0) / most) * (order.index(before) - level)
