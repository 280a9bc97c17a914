"""The layout of the picture: nothing overlaps, edges run to the right and past other boxes, few of them cross."""

from __future__ import annotations

from itertools import combinations, pairwise
from random import Random

import pytest

from chainrule.views.layers import PORT_GAP, Layout


@pytest.mark.parametrize("seed", range(30))
def test_boxes_do_not_overlap_and_edges_pass_between_them(seed: int) -> None:
    draw = Random(seed)
    count = draw.randint(1, 30)
    sizes = [(draw.uniform(30, 300), draw.uniform(20, 120)) for _ in range(count)]
    inputs = [draw.sample(range(v), min(v, draw.randint(0, 3))) for v in range(count)]
    placed = Layout(sizes, inputs)
    boxes = [
        (x - width / 2, x + width / 2, y - height / 2, y + height / 2)
        for (x, y), (width, height) in zip(placed.centres, sizes, strict=True)
    ]
    for one, other in combinations(boxes, 2):
        assert one[1] < other[0] or other[1] < one[0] or one[3] < other[2] or other[3] < one[2]
    for left, right, top, bottom in boxes:
        assert min(left, top) >= -1e-6
        assert right <= placed.width + 1e-6
        assert bottom <= placed.height + 1e-6
    ends = [(source, target) for target, sources in enumerate(inputs) for source in sources]
    for (source, target), path in zip(ends, placed.paths, strict=True):
        assert path[0] == pytest.approx((boxes[source][1], placed.centres[source][1]))
        assert path[-1][0] == pytest.approx(boxes[target][0])
        assert boxes[target][2] < path[-1][1] < boxes[target][3]
        for (x, y), (to, level) in pairwise(path):
            assert x <= to
            crossed = [b for b in boxes if b[0] < to - 1e-6 and x + 1e-6 < b[1] and y == level and b[2] < y < b[3]]
            assert not crossed, "a level line runs through a box"


def test_the_same_graph_has_the_same_layout() -> None:
    sizes = [(60.0 + 7 * (v % 5), 30.0 + 11 * (v % 3)) for v in range(60)]
    inputs = [[v // 2, v - 1] if v > 1 else [] for v in range(60)]
    one, other = Layout(sizes, inputs), Layout(sizes, inputs)
    assert (one.centres, one.paths) == (other.centres, other.paths)


def test_a_chain_of_operations_is_level_whatever_its_parameters() -> None:
    inputs: list[list[int]] = [[]]
    for _ in range(5):
        inputs += [[], [], [len(inputs) - 1, len(inputs), len(inputs) + 1]]
    placed = Layout([(100.0, 40.0)] * len(inputs), inputs)
    heights = [placed.centres[v][1] for v, sources in enumerate(inputs) if sources]
    assert heights == pytest.approx([heights[0]] * len(heights), abs=0.1)


def test_edges_that_need_not_cross_do_not() -> None:
    """Four chains whose vertices come in another order in each column."""
    order = [(0, 1, 2, 3), (2, 0, 3, 1), (3, 1, 0, 2), (1, 3, 2, 0)]
    at = {(column, chain): 4 * column + place for column, row in enumerate(order) for place, chain in enumerate(row)}
    inputs = [[at[column - 1, chain]] if column else [] for column, chain in at]
    placed = Layout([(50.0, 20.0)] * 16, inputs)
    for one, other in combinations(range(4), 2):
        above = {placed.centres[at[column, one]][1] < placed.centres[at[column, other]][1] for column in range(4)}
        assert len(above) == 1


def test_edges_end_at_ports_of_their_own() -> None:
    placed = Layout([(50.0, 60.0)] * 4, [[], [], [], [0, 1, 2]])
    ends = sorted(path[-1][1] for path in placed.paths)
    assert [b - a for a, b in pairwise(ends)] == pytest.approx([PORT_GAP] * 2)


def test_a_leaf_stands_beside_its_first_use() -> None:
    placed = Layout([(50.0, 20.0)] * 5, [[], [0], [1], [], [2, 3]])
    assert placed.centres[3][0] == placed.centres[2][0]


@pytest.mark.parametrize("inputs", [[[0]], [[1], []], [[], [-1]]])
def test_an_input_that_is_no_earlier_vertex_is_an_error(inputs: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="inputs are earlier vertices"):
        Layout([(10.0, 10.0)] * len(inputs), inputs)


def test_nothing_has_an_empty_layout() -> None:
    placed = Layout([], [])
    assert (placed.centres, placed.paths, placed.width, placed.height) == ([], [], 0.0, 0.0)
