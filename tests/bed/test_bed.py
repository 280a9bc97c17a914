"""The bed itself: its scripts are well-formed, the page of sources is theirs, and the goals are met."""

from __future__ import annotations

import ast
import os
import subprocess
import sys

import pytest

from chainrule.diagnostics import CHECKS
from tests.bed import scripts
from tests.bed.evidence import PAGE, table

FAULTS = [each.name for each in scripts("faults")]
HEALTHY = [each.name for each in scripts("healthy")]
FEW = ["nan_in_one_row_of_the_data", "zero_grad_forgotten", "gan"]


def bed(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.run(
        [sys.executable, "-m", "tests.bed", *arguments], capture_output=True, text=True, env=environment
    )


def test_the_bed_is_as_large_as_promised():
    assert len(FAULTS) >= 100
    assert len(HEALTHY) >= 60


def test_every_script_is_an_ordinary_program_that_says_what_it_is():
    for each in scripts():
        assert each.title.endswith((".", ";")), each.name
        assert "chainrule" not in each.text
        ast.parse(each.twin or each.text)
        if each.faulty:
            assert each.ids("expect"), each.name
            assert each.fields["source"], each.name
            assert {*each.ids("expect"), *each.ids("effects")} <= set(CHECKS), each.name
            assert each.lines or each.ids("where"), each.name


def test_the_page_of_sources_is_that_of_the_scripts():
    assert PAGE.read_text() == table(), "run python -m tests.bed --table"


@pytest.mark.trains
def test_a_few_scripts_meet_the_goals():
    done = bed(*FEW, "--every", "1")
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]


@pytest.mark.trains
@pytest.mark.slow
@pytest.mark.sweep
def test_the_whole_bed_meets_the_goals():
    done = bed()
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
