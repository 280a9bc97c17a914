"""A learning rate that jumps or collapses, and the schedules that do no harm."""

import math

import pytest

from chainrule.diagnostics import Thresholds, findings_over_time
from chainrule.graph.history import Noticed
from tests.findings.test_over_time import course

USUAL, HIGH = 0.1, 5.0


def run(losses, rate, every=1):
    """A run of which every so many steps were watched; a change of the rate by much is noticed at any step."""
    history = course(losses)
    for facts in history.steps:
        facts.step *= every
        facts.rates = (rate(facts.step),)
    for series in history.series.values():
        series.steps[:] = [step * every for step in series.steps]
    for step in range(1, len(losses) * every):
        before, after = rate(step - 1), rate(step)
        if max(before, after) > 2 * min(before, after):
            history.noticed += [Noticed(step - 1, (before,)), Noticed(step, (after,))]
    return history


def jumps(history, **options):
    return [each for each in findings_over_time(history, {}, **options) if each.id == "learning-rate-jump"]


def jump_at(step, to=HIGH):
    return lambda now: to if now >= step else USUAL


CALM = [2.0 - 0.02 * step for step in range(30)]
AFTER = {
    "jumps up": [1.4, 40.0, 1.4, 1.4, 1.4, 1.4, 1.4, 1.4],
    "stays up": [1.4, 4.0, 4.1, 4.0, 3.9, 4.0, 4.1, 4.0],
    "is infinite": [1.4, math.inf, 1.4, 1.4],
    "is lost": [1.4, math.nan, math.nan, math.nan],
}


@pytest.mark.parametrize("after", AFTER)
def test_a_rise_after_which_the_loss(after):
    (found,) = jumps(run(CALM + AFTER[after], jump_at(30)))
    assert (found.severity, found.since, found.until) == ("warning", 30, None)
    assert found.sentence == "The learning rate rises 50-fold at step 30, from 0.1 to 5."


def test_a_rise_between_the_watched_steps_has_its_own_step():
    losses = [1.0, 0.8, 0.6, 0.5, 1.9, 1.8, 2.0, 1.9]
    (found,) = jumps(run(losses, jump_at(163), every=50))
    assert found.since == 163
    assert "is 2 at step 300" in found.evidence[1]


def test_a_rise_that_ends_again():
    (found,) = jumps(run(CALM + AFTER["jumps up"], lambda step: HIGH if step == 30 else USUAL))
    assert (found.since, found.until) == (30, 30)


def test_parameters_that_are_lost_after_a_rise():
    history = run([1.0, 0.8, 0.6, 0.5, 0.5], jump_at(163), every=50)
    assert jumps(history) == []
    history.noticed.append(Noticed(165, (HIGH,), lost=True))
    (found,) = jumps(history)
    assert "step 165" in found.evidence[1]


SCHEDULES = {
    "linear warm-up": lambda step: USUAL * min(1, step / 20),
    "warm-up in stages": lambda step: USUAL / 10 if step < 20 else USUAL,
    "cosine": lambda step: USUAL * (1 + math.cos(step * math.pi / 40)) / 2,
    "warm restarts": lambda step: USUAL * (1 + math.cos(step % 10 * math.pi / 10)) / 2,
    "steps": lambda step: USUAL * 0.1 ** (step // 12),
    "cyclic": lambda step: USUAL * (1e-3 + abs(step % 16 - 8) / 8),
    "unfrozen": lambda step: USUAL if step > 20 else 0.0,
}


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("every", [1, 7])
def test_a_schedule_that_the_loss_bears(schedule, every):
    assert jumps(run([2 * 0.96**step for step in range(40)], SCHEDULES[schedule], every)) == []


def test_a_restart_is_no_jump_even_where_the_loss_jumps():
    assert jumps(run(CALM + AFTER["jumps up"], lambda step: USUAL if step % 10 == 0 else USUAL / 20)) == []


def test_a_rate_that_collapses_and_stays_so_low():
    losses = [1.0] * 40
    (found,) = jumps(run(losses, jump_at(20, to=1e-9)))
    assert found.sentence == "The learning rate collapses at step 20, from 0.1 to 1e-09."
    assert found.since == 20
    assert jumps(run(losses, jump_at(20, to=1e-3))) == []
    assert jumps(run(losses, lambda step: 1e-9 if 20 <= step < 30 else USUAL)) == []
    assert jumps(run([0.8**step for step in range(40)], jump_at(30, to=0.0))) == []  # all is learnt
    assert jumps(run(losses[:25], jump_at(20, to=1e-9))) == []  # not for long enough


def test_its_thresholds():
    history = run(CALM + AFTER["stays up"], jump_at(30))
    assert jumps(history, thresholds=Thresholds(rate_jump=100)) == []
    history = run([1.0] * 40, jump_at(20, to=1e-9))
    assert jumps(history, thresholds=Thresholds(rate_collapse=1e9)) == []
