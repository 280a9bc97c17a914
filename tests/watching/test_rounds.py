"""Where training steps end, told from the optimizers' steps alone."""

import pytest

from chainrule.monitor.step_boundaries import PATIENCE, Rounds


def ends(steps, expected=()):
    rounds = Rounds(map(ord, expected))
    return "".join("|" if rounds.stepped(ord(each)) else "." for each in steps)


@pytest.mark.parametrize(
    ("expected", "steps", "found"),
    [
        ("", "aaaa", "||||"),
        ("ab", "abababab", ".|.|.|.|"),
        ("ba", "abababab", ".|.|.|.|"),  # the order in which they are given does not matter
        ("ab", "aaabaaab", "...|...|"),
        ("", "abababab", "|..|.|.|"),  # the second is met when the first step seems over
    ],
)
def test_rounds(expected, steps, found):
    assert ends(steps, expected) == found


def test_what_steps_no_more_is_not_waited_for():
    found = ends("ab" + "a" * (PATIENCE + 3), "ab")
    assert found == ".|" + "." * (PATIENCE - 1) + "||||"
