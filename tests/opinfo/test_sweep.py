"""Every operation of OpInfo records: nothing crashes, no number changes, and every node that ran is tied."""

from __future__ import annotations

import warnings

import pytest
import torch

from tests.opinfo.sweep import Report, database, sweep


def swept(samples: int, every: int = 1) -> Report:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what OpInfo's samples provoke is not ours to mend
            return sweep(samples, infos=database()[::every])
    finally:
        torch.set_num_threads(threads)


def test_one_sample_of_every_sixth_operation() -> None:
    report = swept(samples=1, every=6)
    assert not report.failures, str(report)
    assert not report.untied, str(report)


@pytest.mark.slow
def test_all_samples_of_every_operation() -> None:
    report = swept(samples=0)
    assert not report.failures, str(report)
    assert not report.untied, str(report)
    assert len(report.operations) == len({info.formatted_name for info in database()})
