"""Other people's worked examples: every number that they print, beside what chainrule records and proves."""

from __future__ import annotations

from decimal import Decimal

import pytest
import torch

from tests.published import EXAMPLES
from tests.published.example import AGREES, WRONG, agrees, compare, flat, is_cut, measurable, measured, numbers, unit
from tests.published.page import PAGE, live, page
from tests.views.pages import data_of

each_example = pytest.mark.parametrize("example", EXAMPLES, ids=lambda each: each.key)


@each_example
def test_the_step_is_proved(example):
    for recording in compare(example).recordings:
        verification = recording.verify()
        assert verification.passed, verification
        assert {row.verdict for row in verification.rows} == {"agrees"}


@each_example
def test_every_printed_number_agrees_or_is_explained(example):
    for row in compare(example).rows():
        if WRONG in row.verdicts:
            assert row.row.why, f"{row.row.label}: printed {row.printed}, ours {row.ours}"
            assert row.row.check or any(measurable(part, row.row) for part in example.parts)
            if row.row.theirs:  # how it went wrong
                assert all(map(agrees, row.printed, flat(row.row.theirs())))
        else:
            assert not row.row.why, f"{row.row.label} is {row.verdict}, not wrong"


@each_example
def test_a_second_way_without_chainrule_and_autograd_gives_our_number(example):
    for part, rows in zip(example.parts, compare(example).parts, strict=True):
        for row in rows:
            if row.row.check:
                torch.testing.assert_close(flat(row.row.check()), row.ours, rtol=1e-8, atol=1e-10)
            elif found := measurable(part, row.row):
                torch.testing.assert_close(flat(measured(part, *found)), row.ours, rtol=1e-6, atol=1e-8)


def test_a_printed_number_that_is_two_units_off_would_not_agree():
    for example in EXAMPLES:
        for row in compare(example).rows():
            for printed, ours, verdict in zip(row.printed, row.ours, row.verdicts, strict=True):
                off = [str(Decimal(printed) + sign * 2 * unit(printed)) for sign in (1, -1)]
                if verdict == AGREES and unit(printed) > Decimal("1e-14"):  # beyond that float64 rounds
                    assert not any(agrees(each, ours) or is_cut(each, ours) for each in off), (row.row.label, printed)


def test_a_number_follows_only_from_a_wrong_one():
    for example in EXAMPLES:
        wrong = {row.row.label for row in compare(example).rows() if WRONG in row.verdicts}
        assert {row.row.follows for row in compare(example).rows()} <= {"", *wrong}


def test_the_wiring_of_the_softmax_network():
    """What the page says of its formulas: each of the two stated products is the gradient of the other weight."""
    (recording,) = compare(next(each for each in EXAMPLES if each.key == "softmax")).recordings
    a, y_hat = recording["a"].data, recording["y_hat"].data
    (_, dw9), (dw8, _) = recording["W2"].grad
    stated = {"w8": (y_hat[0] - 1) * a[1], "w9": y_hat[1] * a[0]}
    torch.testing.assert_close([dw9, dw8], [stated["w8"], stated["w9"]])
    assert (round(float(dw8), 4), round(float(dw9), 4)) == (0.1842, -0.2164)
    other = numbers([0.3, -0.1], [0.4, 0.2]) @ a + 0.1
    assert [round(each, 3) for each in other.tolist()] == [0.178, 0.370]


def test_the_page_is_the_written_one():
    assert PAGE.read_text(encoding="utf-8") == page(), "python -m tests.published writes it"


def test_the_live_page_shows_what_is_printed(tmp_path):
    live(tmp_path / "page.html")
    text = str(data_of((tmp_path / "page.html").read_text(encoding="utf-8")))
    assert "printed, and recorded" in text
    assert "0.185" in text
    assert "0.157444" in text
