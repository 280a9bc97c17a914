import pytest
import torch

from tests.mutants import NAMED, Operation, mutants, right, step, tried
from tests.mutants.areas import AREAS
from tests.mutants.authors import AUTHORS
from tests.mutants.backwards import Backward
from tests.mutants.bed import BACKWARDS, Trial, judge, trials
from tests.mutants.operations import OPERATIONS
from tests.mutants.orders import ORDERS
from tests.mutants.recent import RECENT
from tests.mutants.sources import Source, SourceTrial, judge_source
from tests.mutants.styles import STYLES

EVERY = list(mutants())
QUICK = EVERY[::80]
WRITTEN = list(trials(wrong=True))
PART = WRITTEN[::5]  # of every size and type; all of them take a quarter of an hour: `python -m tests.mutants`
SAMPLE = [trial for trial in WRITTEN if trial.dtype is torch.float32][5::60]


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def test_there_are_enough_of_them():
    assert len(EVERY) >= 300
    assert len({mutant.operation.name for mutant in EVERY}) >= 40
    assert {mutant.kind for mutant in EVERY} == set(NAMED)
    assert len({mutant.name for mutant in EVERY}) == len(EVERY)


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda each: each.name)
def test_the_right_backward_raises_no_alarm(operation: Operation):
    verification = step(right(operation), operation)
    assert verification.passed, verification.failures[0].reason
    assert {row.verdict for row in verification.rows if row.node.name == "MutantBackward"} == {"agrees"}


@pytest.mark.parametrize("mutant", QUICK, ids=lambda each: each.name)
def test_a_mutant_is_flagged_at_its_node_and_nowhere_else(mutant):
    outcome = tried(mutant)
    assert outcome.flagged
    assert not outcome.elsewhere


@pytest.mark.sweep
@pytest.mark.slow
def test_every_mutant_is_flagged_and_most_are_named_rightly():
    outcomes = [tried(mutant) for mutant in EVERY]
    assert not [outcome.mutant.name for outcome in outcomes if not outcome.flagged or outcome.elsewhere]
    named = sum(outcome.named for outcome in outcomes)
    assert named >= 0.9 * len(outcomes)  # another name may be as true: a dropped term can be a missing factor


@pytest.mark.parametrize("name", ["rows in another order", "circulant matrix"])
def test_orders_and_repeated_indices_are_named(name: str):
    (backward,) = (each for each in ORDERS if each.name == name)
    assert not judge(Trial(backward, None, 0, torch.float64)).flagged
    for wrong in range(len(backward.wrong)):
        judged = judge(Trial(backward, wrong, 0, torch.float64))
        assert judged.named, judged.repairs


def test_the_written_ones_are_of_many_operations():
    assert sum(len(backward.wrong) for backward in BACKWARDS) >= 150
    assert len({backward.name for backward in BACKWARDS}) == len(BACKWARDS) >= 50


@pytest.mark.parametrize("trial", SAMPLE, ids=lambda each: each.name)
def test_a_written_mutant_is_flagged_and_named(trial: Trial):
    judged = judge(trial)
    assert judged.flagged
    assert not judged.elsewhere
    assert judged.named, judged.repairs


@pytest.mark.sweep
@pytest.mark.slow
def test_the_written_mutants_are_flagged_and_most_are_named_and_few_falsely():
    judged = [judge(trial) for trial in PART]
    missed = [each.trial for each in judged if not each.flagged]
    assert not [trial.name for trial in missed if trial.dtype is not torch.bfloat16]
    assert len(missed) <= 0.01 * len(judged)  # a small term is lost in the rounding of bfloat16
    assert not [each.trial.name for each in judged if each.elsewhere]
    assert sum(each.named for each in judged) >= 0.95 * len(judged)
    assert sum(each.falsely for each in judged) <= 0.02 * len(judged)


@pytest.mark.slow
def test_the_right_twins_raise_no_alarm():
    judged = [judge(trial) for trial in [*trials(wrong=False)][::5]]
    assert not [each.trial.name for each in judged if each.flagged or each.elsewhere]


@pytest.mark.sweep
@pytest.mark.slow
@pytest.mark.parametrize("backwards", [RECENT, ORDERS, AREAS], ids=["recent layers", "orders", "areas"])
def test_further_mutants(backwards: tuple[Backward, ...]):
    right = [judge(Trial(each, None, 0, torch.float32)) for each in backwards]
    assert not [each.trial.name for each in right if each.flagged or each.elsewhere]
    judged = [judge(Trial(each, wrong, 0, torch.float32)) for each in backwards for wrong in range(len(each.wrong))]
    assert not [each.trial.name for each in judged if not each.flagged or each.elsewhere]
    assert sum(each.named for each in judged) >= 0.9 * len(judged)
    assert sum(each.falsely for each in judged) <= 0.02 * len(judged)


@pytest.mark.parametrize("source", [STYLES[1], STYLES[3], STYLES[4]], ids=lambda each: each.name)
@pytest.mark.parametrize("by_record", [True, False])
def test_a_mistake_is_found_in_each_style(source: Source, by_record: bool):
    right = judge_source(SourceTrial(source, None, torch.float64), by_record)
    assert not right.flagged
    wrong = judge_source(SourceTrial(source, 0, torch.float64), by_record)
    assert wrong.flagged
    assert not wrong.elsewhere


@pytest.mark.sweep
@pytest.mark.slow
@pytest.mark.parametrize("sources", [AUTHORS, STYLES], ids=["authors", "styles"])
def test_whole_sources(sources: tuple[Source, ...]):
    right = [judge_source(SourceTrial(each, None, torch.float64)) for each in sources]
    assert not [each.trial.name for each in right if each.flagged or each.elsewhere]
    judged = [
        judge_source(SourceTrial(each, wrong, torch.float64)) for each in sources for wrong in range(len(each.wrong))
    ]
    assert not [each.trial.name for each in judged if not each.flagged or each.elsewhere]
    assert sum(each.named for each in judged) >= 0.9 * len(judged)
    assert sum(each.falsely for each in judged) <= 0.05 * len(judged)


@pytest.mark.parametrize("name", ["reversed cumulative maximum, smooth", "linear attention by a running state"])
def test_a_loop_that_begins_at_the_wrong_end_is_named(name: str):
    (backward,) = (each for each in AREAS if each.name == name)
    (wrong,) = (place for place, (old, new, _) in enumerate(backward.wrong) if "reversed" in old and "range" in new)
    repairs = judge(Trial(backward, wrong, 0, torch.float64)).repairs
    assert {kind for kind, _ in repairs} == {"order"}
    assert "the loop begins at the wrong end in `for i in range(" in repairs[0][1]
