import pytest
import torch

from tests.mutants import NAMED, Operation, mutants, right, step, tried
from tests.mutants.operations import OPERATIONS

EVERY = list(mutants())
QUICK = EVERY[::40]


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


@pytest.mark.slow
def test_every_mutant_is_flagged_and_most_are_named_rightly():
    outcomes = [tried(mutant) for mutant in EVERY]
    assert not [outcome.mutant.name for outcome in outcomes if not outcome.flagged or outcome.elsewhere]
    named = sum(outcome.named for outcome in outcomes)
    assert named >= 0.95 * len(outcomes)
