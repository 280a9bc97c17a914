"""What is printed for three steps is what the golden files hold."""

import pytest

from tests.golden import NAMES, STEPS, kept, rendered
from tests.golden.comparison import difference


@pytest.fixture(scope="module")
def printed():
    return {name: text for step in STEPS for name, text in rendered(step).items()}


@pytest.mark.parametrize("name", NAMES)
def test_the_output_is_the_golden_one(name, printed):
    found = difference(kept(name), printed[name])
    assert not found, f"{name} is printed otherwise. If that is right, `make golden` writes it.\n{found}"


EXPECTED = """\
J = 0.1952  (cost)
    W1 = ⎡-1    0.5000⎤   (2, 2)
    ──────
    tiny 1.23e-07
"""


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("0.1952", "0.1953"),
        ("-1    0.5000", "-1    0.5"),
        ("-1    0.5000⎤", "-1  0.5⎤"),
        ("0.1952  (cost)\n    W1 = ⎡-1    0.5000⎤", "0.1951  (cost)\n    W1 = ⎡-1     0.5000⎤"),
        ("1.23e-07", "1.24e-07"),
        ("0.1952", "0.1951"),
    ],
)
def test_rounding_is_no_difference(old, new):
    assert difference(EXPECTED, EXPECTED.replace(old, new)) == ""


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("0.1952", "0.1954"),
        ("0.1952", "-0.1952"),
        ("cost", "loss"),
        ("(2, 2)", "(2, 3)"),
        ("-1  ", "-2  "),
        ("W1", "W2"),
        ("1.23e-07", "1.25e-07"),
        ("1.23e-07", "0"),
        ("J = 0.1952  (cost)\n", ""),
        ("  (cost)", " (cost)"),
        ("──────", "─────"),
    ],
)
def test_anything_else_is_one(old, new):
    changed = EXPECTED.replace(old, new)
    assert changed != EXPECTED
    assert difference(EXPECTED, changed)


def test_a_difference_is_shown_as_a_diff_of_the_lines_that_differ():
    changed = EXPECTED.replace("0.1952", "0.1953").replace("tiny", "small")
    assert difference(EXPECTED, changed).splitlines()[2:] == [
        "@@ -1,4 +1,4 @@",
        " J = 0.1952  (cost)",
        "     W1 = ⎡-1    0.5000⎤   (2, 2)",
        "     ──────",
        "-    tiny 1.23e-07",
        "+    small 1.23e-07",
    ]
