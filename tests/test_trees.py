"""The walks over nested arguments, and along links."""

from collections import namedtuple

import torch

from chainrule.graph.trees import gathered, leaves, map_leaves, reach, tensors_in


def test_leaves_are_found_left_to_right_and_as_deep_as_they_are():
    one, two, three = (torch.ones(each) for each in (1, 2, 3))
    tree = (one, 3, [{"x": two, "y": None}, (three,)])
    assert all(map(lambda found, each: found is each, tensors_in(tree), (one, two, three)))
    assert leaves(tree, int) == [3]
    assert tensors_in(one)[0] is one


def test_a_mapped_tree_keeps_its_kinds():
    pair = namedtuple("pair", "first second")
    tree = {"a": [1, (2,)], "b": pair(3, torch.Size([4]))}
    mapped = map_leaves(lambda leaf: leaf * 10 if isinstance(leaf, int) else leaf, tree)
    assert mapped == {"a": [10, (20,)], "b": pair(30, torch.Size([4]))}
    assert type(mapped["b"]) is pair
    assert type(mapped["b"].second) is torch.Size
    assert map_leaves(str, (1, (2, torch.Size([3]))), lists=True) == ["1", ["2", ["3"]]]


def test_reach_gives_each_place_once_also_in_a_circle_and_without_recursion():
    assert sorted(reach([0], lambda place: [(place + 1) % 5, 0])) == [0, 1, 2, 3, 4]
    assert sum(1 for _ in reach([0], lambda place: [place + 1] if place < 100_000 else [])) == 100_001


def test_reach_asks_for_the_next_steps_only_when_it_must():
    asked = []
    places = reach([0], lambda place: asked.append(place) or [place + 1])
    assert [next(places), next(places)] == [0, 1]
    assert asked == [0]


def test_what_is_gathered_is_worked_out_once_and_without_recursion():
    asked = []

    def combine(place, behind):
        asked.append(place)
        return place + sum(behind)

    known = {}
    assert gathered(3, lambda place: [place - 1, place - 2] if place > 1 else [], combine, known) == 3 + (2 + 1 + 0) + 1
    assert sorted(asked) == [0, 1, 2, 3]
    assert gathered(2, lambda place: [], combine, known) == known[2] == 3
    assert len(asked) == 4
    assert gathered(100_000, lambda place: [place - 1] if place else [], combine, {}) == 100_000 * 100_001 // 2
