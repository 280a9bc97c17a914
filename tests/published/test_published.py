"""Other people's worked examples: every number that they print, beside what chainrule records and proves."""

from __future__ import annotations

import pytest
import torch

from tests.published import EXAMPLES
from tests.published.example import WRONG, agrees, compare, flat, measurable, measured

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
    for part, recording, rows in zip(example.parts, compare(example).recordings, compare(example).parts, strict=True):
        for row in rows:
            if row.row.check:
                torch.testing.assert_close(flat(row.row.check()), row.ours, rtol=1e-8, atol=1e-10)
            elif found := measurable(part, row.row):
                torch.testing.assert_close(flat(measured(part, *found)), row.ours, rtol=1e-6, atol=1e-8)


def test_a_number_follows_only_from_a_wrong_one():
    for example in EXAMPLES:
        wrong = {row.row.label for row in compare(example).rows() if WRONG in row.verdicts}
        assert {row.row.follows for row in compare(example).rows()} <= {"", *wrong}
