import math
import re
import struct

import pytest

from chainrule.document import Document, Tensor
from chainrule.views import written


def number(value: complex) -> str:
    """A number as a reader sees it: among the statistics of a large tensor."""
    large = Tensor("W", (99, 99), "float32", "value", None, (("norm", value),))  # type: ignore[arg-type]
    return written(Document(("T",), (large,), ()), ".md").rsplit("norm ", 1)[1].strip()


def aligned(values: list[complex]) -> list[str]:
    """The numbers of a column, as a terminal shows them."""
    column = Tensor("C", (len(values), 1), "float32", "value", tuple(values))
    return re.findall(r"[⎡⎢⎣](.*?)[⎤⎥⎦]", written(Document(("T",), (column,), ()), ".txt"))


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (4.0, "4"),
        (-7.800000190734863, "-7.8"),  # the float32 nearest to -7.8
        (0.5, "0.5"),
        (-0.05998, "-0.0600"),
        (0.19522885978221893, "0.1952"),
        (-0.0, "0"),
        (1e-4, "0.0001"),
        (0.00012, "0.0001"),
        (1.234e-5, "1.23e-05"),
        (-2e-5, "-2e-05"),
        (1.5e-10, "1.5e-10"),
        (9.9999e-5, "1.00e-04"),
        (999999.0, "999999"),
        (1e6, "1e+06"),
        (-1234567.0, "-1.23e+06"),
        (math.nan, "nan"),
        (math.inf, "inf"),
        (-math.inf, "-inf"),
        (True, "True"),
        (12345678, "12345678"),
        (1.5 - 2j, "1.5-2j"),
        (complex(0.12345, math.nan), "0.1235+nanj"),
    ],
)
def test_number(value: complex, written: str) -> None:
    assert number(value) == written


def test_zeros_are_dropped_only_where_the_number_is_what_is_written() -> None:
    for step in range(-2000, 2000):
        decimal = step / 100
        (as_float32,) = struct.unpack("f", struct.pack("f", decimal))
        assert number(as_float32) == f"{decimal:.2f}".rstrip("0").rstrip(".").replace("-0", "-0" if decimal else "0")
        near = decimal + 3e-5
        if abs(near) >= 1e-4:
            assert number(near) == f"{near:.4f}"


def test_what_is_written_is_never_further_off_than_half_its_last_place() -> None:
    for exponent in range(-12, 12):
        value = math.pi * 10.0**exponent
        allowed = 5.1e-5 if 1e-4 <= value < 1e6 else 5.1e-3 * 10.0**exponent
        assert abs(float(number(value)) - value) <= allowed


def test_columns_are_aligned_on_the_decimal_point() -> None:
    assert aligned([-1, 0.5, -16, 1.23e-05, 1e6, math.nan, True]) == [
        "  -1       ",
        "   0.5     ",
        " -16       ",
        "   1.23e-05",
        "   1e+06   ",
        " nan       ",
        "True       ",
    ]
    assert aligned([1 + 2j, 0.5 - 1.25j]) == ["     1+2j", "0.5-1.25j"]
    assert aligned([]) == []
