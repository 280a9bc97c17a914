"""The bed: each seeded fault is found under its id within 100 steps, and nothing is found in what is healthy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest
import torch

from chainrule.findings import KINDS, Finding
from tests.faults.faulty import FAULTS
from tests.faults.gather import watched
from tests.faults.healthy import HEALTHY

NO_FAULT = {"at-kink"}  # a choice of PyTorch's that a reader may want to know of


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


def above_a_note(found: tuple[Finding, ...]) -> list[str]:
    return [f"{finding.id} at {finding.where}: {finding}" for finding in found if finding.severity != "note"]


@pytest.mark.parametrize("name", FAULTS)
def test_a_seeded_fault_is_found(name):
    id, script, steps = FAULTS[name]
    run = watched(script, steps)
    assert len(run.history.steps) <= 100
    found = run.findings()
    hit = [finding for finding in found if finding.id == id]
    assert hit, Counter(finding.id for finding in found)
    for finding in hit:
        assert finding.since is not None
        assert finding.evidence
        assert any(character.isdigit() for line in finding.evidence for character in line)
    assert id not in {finding.id for finding in run.findings(silence=(id,))}


def test_the_bed_has_two_faults_of_each_kind_at_least():
    counted = Counter(id for id, _, _ in FAULTS.values())
    alone = {id for id, kind in KINDS.items() if not kind.across_ranks}  # tests/distributed has those of several ranks
    assert not {id: counted[id] for id in alone if id not in NO_FAULT and counted[id] < 2}
    assert len(FAULTS) >= 40
    assert len(HEALTHY) >= 20


@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_run_has_nothing_above_a_note(name):
    """A hundred steps, of which every fifth is watched; the slow test watches every one."""
    run = watched(HEALTHY[name], every=5, full_every=25)
    assert len(run.history.steps) == 20
    assert above_a_note(run.findings()) == []


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_run_watched_at_every_step_has_nothing_above_a_note(name, seed):
    torch.manual_seed(seed)
    run = watched(HEALTHY[name])
    assert len(run.history.steps) == 100
    assert above_a_note(run.findings()) == []
