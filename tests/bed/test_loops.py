"""The bed: each seeded fault is found under its id within 100 steps, and nothing is found in what is healthy.

All of it by a real watch. Where a fault must be found, the share of time for looking at the course is next to nothing,
so that there are no more looks than there must be; where nothing may be found, there is one at every watched step.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest
import torch

from chainrule import runs
from chainrule.diagnostics import CHECKS
from tests.bed import scripts
from tests.bed.loops import FAULTS, HEALTHY, watched

pytestmark = pytest.mark.trains
NO_FAULT = {"at-kink"}  # a choice of PyTorch's that a reader may want to know of
ENDS = {"backward-failed", "forward-failed"}  # tests/findings/failing.py has the trainings that an exception ends


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def no_time_to_look(monkeypatch):
    monkeypatch.setattr("chainrule.monitor.examine.SHARE", 1e-9)


@pytest.fixture
def always_looking(monkeypatch):
    monkeypatch.setattr("chainrule.monitor.examine.SHARE", 1e9)


@pytest.fixture
def figures_alone(monkeypatch):
    """As of a large model: of no tensor but a scalar are the numbers kept where statistics are."""
    monkeypatch.setattr("chainrule.capture.retention.SMALL", 8)


def found_in(name, folder, **options):
    """The ids of what a watch finds in a faulty script, and what it finds of the fault, at which the script ends."""
    id, script, steps = FAULTS[name]
    assert steps <= 100

    def is_found(watch):
        return any(each.id == id for each in watch.findings)

    path = folder / "run.db"
    watch = watched(script, steps, is_found, full_every=10, to=path, **options)
    with runs.open(path) as run:
        kept = run.findings()
        assert set(kept) == set(watch.findings)
        assert run.status == "ended"
    return Counter(each.id for each in kept), [each for each in kept if each.id == id]


def alarms_in(name, **options):
    """What the watch of a healthy run says above a note, at any time; and the watch."""
    said: dict[str, None] = {}

    def listen(watch):
        told = [f"{each.id} at {each.where}: {each}" for each in watch.findings if each.severity != "note"]
        said.update(dict.fromkeys(told))

    watch = watched(HEALTHY[name], each_step=listen, **options)
    listen(watch)
    return list(said), watch


@pytest.mark.usefixtures("no_time_to_look", "figures_alone")
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * bool(place % 3)) for place, name in enumerate(FAULTS)]
)
def test_a_seeded_fault_is_found(name, tmp_path):
    ids, hit = found_in(name, tmp_path)
    assert hit, ids
    for finding in hit:
        assert finding.since is not None
        assert finding.evidence
        assert any(character.isdigit() for line in finding.evidence for character in line)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAULTS)
def test_a_seeded_fault_is_found_where_the_numbers_of_small_tensors_are_kept(name, tmp_path):
    ids, hit = found_in(name, tmp_path)
    assert hit, ids


@pytest.mark.parametrize("name", ["softmax_as_last_layer", "rate_that_diverges", "biases_far_below_zero"])
def test_a_seeded_fault_is_silenced(name, tmp_path):
    id, _, _ = FAULTS[name]
    assert found_in(name, tmp_path, silence=(id,))[1] == []


def test_there_are_two_faults_of_each_kind_at_least():
    """Here, or among the faults of others in tests/bed."""
    counted = Counter(id for id, _, _ in FAULTS.values())
    counted.update(id for script in scripts("faults") for id in script.ids("expect"))
    alone = {id for id, kind in CHECKS.items() if not kind.across_ranks}  # tests/distributed has those of several ranks
    assert not {id: counted[id] for id in alone if id not in NO_FAULT | ENDS and counted[id] < 2}
    assert len(FAULTS) >= 40
    assert len(HEALTHY) >= 20


@pytest.mark.usefixtures("always_looking")
@pytest.mark.parametrize("name", list(HEALTHY)[::4])
def test_a_healthy_run_has_nothing_above_a_note(name):
    """A hundred steps of every fourth run, of which every fifth is watched; the slow tests watch all steps of all."""
    alarms, watch = alarms_in(name, every=5, full_every=25)
    assert watch.watched >= 11  # of a training that takes turns, two steps are one
    assert alarms == []


@pytest.mark.slow
@pytest.mark.usefixtures("always_looking")
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_run_watched_at_every_step_has_nothing_above_a_note(name, seed):
    torch.manual_seed(seed)
    alarms, watch = alarms_in(name, full_every=10)
    assert watch.watched >= 50
    assert alarms == []


@pytest.mark.slow
@pytest.mark.usefixtures("always_looking", "figures_alone")
@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_run_of_which_figures_alone_are_kept_has_nothing_above_a_note(name):
    assert alarms_in(name)[0] == []
