"""A finding of a run names the one that most likely caused it: never one that came later."""

import math

import pytest

from chainrule.diagnostics import CHECKS, findings_over_time
from chainrule.diagnostics.causes import EFFECTS
from chainrule.graph.history import Noticed
from chainrule.monitor.runs.found import by_cause, families, lines
from chainrule.runs import Found
from tests.findings.test_learning_rate import AFTER, CALM, jump_at, run
from tests.findings.test_over_time import course, of_step, statistics


def test_the_loss_jumped_because_the_rate_rose():
    found = findings_over_time(run(CALM + AFTER["jumps up"], jump_at(30)), {})
    because = {each.id: each.because for each in found}
    assert because == {"learning-rate-jump": "", "loss-spike": "learning-rate-jump: learning rate"}


def test_nothing_is_caused_by_what_came_later():
    losses = [*CALM, 40.0, *([1.4] * 10), *AFTER["jumps up"]]
    found = findings_over_time(run(losses, jump_at(41)), {})
    because = {each.since: each.because for each in found if each.id == "loss-spike"}
    assert because == {30: "", 42: "learning-rate-jump: learning rate"}


def test_a_cause_that_has_ended_long_before_is_none():
    seen = {step: (of_step("input-not-normalised", where="x"),) if step < 3 else () for step in range(60)}
    for step in range(50, 60):
        seen[step] = (of_step("saturated"),)
    found = findings_over_time(course([1.0] * 60), seen)
    assert {each.id: each.because for each in found} == {"input-not-normalised": "", "saturated": ""}
    seen |= {step: (of_step("input-not-normalised", where="x"), *seen[step]) for step in range(3, 60)}
    found = findings_over_time(course([1.0] * 60), seen)
    assert {each.id: each.because for each in found} == {
        "input-not-normalised": "",
        "saturated": "input-not-normalised: x",
    }


def test_a_note_causes_no_warning():
    seen = {step: (of_step("input-not-normalised", "note", where="x"), of_step("saturated")) for step in range(9)}
    assert {each.because for each in findings_over_time(course([1.0] * 9), seen)} == {""}


def lost(step_of_loss, hidden=True):
    """Numbers that are lost at step 2, parameters that are NaN from step 3 on, and a loss that hides it."""
    history = course([1.0 if hidden or step < 2 else math.nan for step in range(9)])
    for step, each in enumerate(history.series["parameter", "weight"].statistics):
        history.series["parameter", "weight"].statistics[step] = (
            statistics(1.0, not_finite=4) if 3 <= step < step_of_loss else each
        )
    before, after = of_step("non-finite-backward", "error"), of_step("non-finite-forward", "error", where="weight")
    return history, {step: (before,) if step == 2 else (after,) if step >= 3 else () for step in range(9)}


def test_lost_numbers_cause_those_that_are_lost_later():
    found = {each.id: each for each in findings_over_time(*lost(9))}
    assert found["non-finite-forward"].because == "non-finite-backward: A1"
    assert (found["non-finite-forward"].since, found["non-finite-backward"].since) == (3, 2)


def test_once_the_loss_shows_it_the_first_is_told_alone():
    assert [each.id for each in findings_over_time(*lost(9, hidden=False))] == ["non-finite-backward"]


def test_parameters_that_are_finite_again_end_it():
    history, seen = lost(5)
    seen = {step: seen[step] if step in (2, 7) else () for step in range(9)}
    found = {each.id: each for each in findings_over_time(history, seen)}
    assert found["non-finite-forward"].because == ""


def test_each_birth_at_one_place_is_told():
    seen = {step: (of_step("non-finite-forward", "error"),) if step in (2, 5, 8) else () for step in range(12)}
    (found,) = findings_over_time(course([1.0] * 12), seen)
    assert (found.since, found.until) == (2, 8)
    assert "It came at 3 examined steps: 2, 5, 8." in found.evidence


@pytest.mark.parametrize(("loss", "id"), [(math.nan, "non-finite-forward"), (0.5, "non-finite-backward")])
def test_numbers_that_are_lost_between_the_watched_steps(loss, id):
    history = course([1.0] * 4)
    for facts in history.steps:
        facts.step *= 10
    history.noticed.append(Noticed(17, (0.1,), True, ("weight",), loss, "train.py:9"))
    (found,) = findings_over_time(history, {})
    assert (found.id, found.severity, found.since, found.until) == (id, "error", 17, 17)
    assert found.sentence == "The update of step 17 makes weight NaN or infinite (train.py:9)."
    assert found.evidence[0] == "It is after the watched step 10 and before 20, so nothing of it was recorded."
    assert "--every 1" in found.advice


def test_causes_come_before_their_effects_and_the_gravest_first():
    made = [
        Found("loss-spike", "warning", "loss", "It jumps.", since=8, because="learning-rate-jump: learning rate"),
        Found("at-kink", "note", "A1", "A kink."),
        Found("learning-rate-jump", "warning", "learning rate", "It rises.", ("From 1 to 50.",), "Look.", since=7),
        Found("unit-off", "warning", "A2", "Off.", place="net.py:3", since=9, because="loss-spike: loss"),
        Found("saturated", "warning", "A3", "Flat.", since=1, because="no such: finding"),
    ]
    assert [each.id for each in by_cause(made)] == [
        "learning-rate-jump", "loss-spike", "unit-off", "saturated", "at-kink",
    ]  # fmt: skip
    assert list(lines(made)) == [
        "warning since step 7: It rises. [learning-rate-jump]",
        "  From 1 to 50.",
        "  Look.",
        "  because of this, warning since step 8: It jumps. [loss-spike]",
        "  because of this, warning since step 9: Off (net.py:3). [unit-off]",
        "warning since step 1: Flat. [saturated]",
    ]
    error = Found("non-finite-forward", "error", "log", "Lost.", since=20)
    assert families([*made, error])[0] == (error, [])


def test_the_effects_of_every_kind_are_kinds():
    assert set(EFFECTS) <= set(CHECKS)
    assert {effect for effects in EFFECTS.values() for effect in effects} <= set(CHECKS)


@pytest.mark.parametrize("after", [60.0, 1.0])
def test_a_spike_causes_lost_numbers_unless_the_loss_comes_down_before(after):
    seen = {step: (of_step("non-finite-forward", "error"),) if step == 33 else () for step in range(34)}
    found = findings_over_time(run([*CALM, 40.0, after, after, math.nan], jump_at(999)), seen)
    because = {each.id: each.because for each in found if each.severity != "note"}
    assert because["non-finite-forward"] == ("loss-spike: loss" if after > 40 else "")
