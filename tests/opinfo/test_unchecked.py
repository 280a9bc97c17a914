"""The proof over PyTorch's own database: no node disagrees, but where PyTorch itself is known to be wrong."""

from __future__ import annotations

import warnings

import pytest

from tests.opinfo.unchecked import table

WRONG_IN_PYTORCH = ("as_strided_scatter: ",)  # its own gradcheck fails for `self` too


@pytest.mark.slow
def test_no_false_alarm_over_two_samples_of_every_operation() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = table(2)
    assert [alarm for alarm in found.alarms if not alarm.startswith(WRONG_IN_PYTORCH)] == []
