import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import chainrule
from chainrule import reference
from chainrule.diagnostics import BY_TOPIC, CHECKS, Finding, Thresholds, findings_over_time
from chainrule.errors import ChainruleError
from chainrule.graph.history import History, Series, StepFacts
from chainrule.graph.statistics import Statistics


def statistics(norm, elements=16, **others):
    known = {"mean": 0.0, "std": norm / elements**0.5, "low": -norm, "high": norm, "zeros": 0, "not_finite": 0}
    return Statistics(elements, norm, **(known | others))


def course(losses, ratio=1e-3, full=True, **facts):
    """A run with one weight whose updates are `ratio` of it."""
    history = History()
    for step, loss in enumerate(losses):
        history.steps.append(StepFacts(step, float(step), loss, (0.1,), full=full, **facts))
        history.add("parameter", "weight", step, statistics(1.0))
        history.add("update", "weight", step, statistics(ratio(step) if callable(ratio) else ratio))
    return history


def of_step(id, severity="warning", where="A1", rows=(), size=0):
    return CHECKS[id].found(where, f"{where} is not well.", ("1 of 2.",), severity=severity, rows=rows, size=size)


def ids(found):
    return [finding.id for finding in found]


# -- what single steps showed ------------------------------------------------------------------------------------------


def test_a_finding_holds_since_the_first_step_of_its_last_unbroken_row():
    seen = {step: (of_step("saturated"),) if step in (0, 3, 4, 5) else () for step in range(6)}
    (finding,) = findings_over_time(course([1.0] * 6), seen)
    assert (finding.since, finding.until, finding.severity) == (3, None, "warning")
    assert "It held at 3 examined steps in a row." in finding.evidence
    assert str(finding).startswith("warning since step 3: A1 is not well.")


def test_what_has_not_lasted_is_a_note_and_what_has_gone_is_dropped():
    seen = {step: (of_step("saturated"),) if step > 3 else () for step in range(6)}
    (finding,) = findings_over_time(course([1.0] * 6), seen)
    assert finding.severity == "note"
    assert findings_over_time(course([1.0] * 7), seen | {6: ()}) == ()


def test_a_step_that_was_not_looked_at_in_full_breaks_no_row():
    history = course([1.0] * 21, full=False)
    for facts in history.steps[::10]:
        facts.full = True
    seen = {step: (of_step("unit-off", rows=(1, 2), size=3),) if step % 10 == 0 else () for step in range(21)}
    (finding,) = findings_over_time(history, seen)
    assert (finding.since, finding.until, finding.rows) == (0, None, (1, 2))


def test_units_count_as_dead_only_where_they_were_off_at_every_step():
    rows = [(0, 1, 2), (1, 2, 3), (2, 3, 1)]
    seen = {step: (of_step("unit-off", rows=each, size=4),) for step, each in enumerate(rows)}
    (finding,) = findings_over_time(course([1.0] * 3), seen)
    assert (finding.rows, finding.severity) == ((1, 2), "note")
    assert finding.sentence.startswith("2 of 4 units of A1 were off")
    (finding,) = findings_over_time(course([1.0] * 3), seen, Thresholds(units_dead=0.4))
    assert finding.severity == "warning"


def test_units_that_died_later_are_dead_since_then():
    rows = [(0,), (0, 5), (1, 2, 3), (1, 2, 3, 5), (1, 2, 3), (0, 1, 2, 3)]
    seen = {step: (of_step("unit-off", rows=each, size=4),) for step, each in enumerate(rows)}
    (finding,) = findings_over_time(course([1.0] * 6), seen)
    assert (finding.rows, finding.since, finding.severity) == ((1, 2, 3), 2, "warning")
    assert "at each of 4 steps" in finding.sentence


def test_a_finding_of_several_places_is_reported_once():
    seen = {0: tuple(of_step("accumulated-gradient", where=name) for name in ("a", "b", "c"))}
    (finding,) = findings_over_time(course([1.0]), seen)
    assert finding.sentence == "a is not well. The same applies to b, c."


def test_nan_in_the_step_after_an_overflow_is_not_reported_as_a_second_error():
    first, later = of_step("non-finite-backward", "error"), of_step("non-finite-forward", "error", where="weight")
    seen = {0: (), 1: (first,), 2: (later,), 3: (later,)}
    assert ids(findings_over_time(course([1.0, 1.0, math.nan, math.nan]), seen)) == ["non-finite-backward"]
    assert len(findings_over_time(course([1.0, 1.0, 1.0, 1.0]), {0: (first,), 1: (), 2: (later,), 3: (later,)})) == 2


def test_a_step_that_the_scaler_skips_is_no_error():
    history = course([1.0] * 10)
    history.steps[0].skipped = True
    (finding,) = findings_over_time(history, {0: (of_step("non-finite-backward", "error"),), 1: ()})
    assert finding.severity == "note"


def test_of_statistics_alone_the_first_tensor_that_is_not_finite_is_named():
    history = course([1.0, 1.0, math.nan])
    history.add("value", "late", 2, statistics(1.0, not_finite=3), layer=9)
    history.add("value", "early", 2, statistics(1.0, not_finite=2), layer=4)
    (finding,) = findings_over_time(history, {})
    assert (finding.id, finding.where, finding.since) == ("non-finite-forward", "early", 2)


def test_a_mask_of_infinities_is_no_fault_and_not_blamed_for_one():
    history = course([1.0, 1.0, math.nan])
    for step in range(3):
        history.add("value", "scores", step, statistics(1.0, not_finite=6), layer=1)
        history.add("value", "late", step, statistics(1.0, not_finite=3 if step == 2 else 0), layer=9)
    (finding,) = findings_over_time(history, {})
    assert (finding.where, finding.since) == ("late", 2)
    history.steps[2].loss = 1.0
    assert findings_over_time(history, {}) == ()


def test_another_optimizers_turn_is_no_fault():
    seen = {step: (of_step("not-in-optimizer", "note", where="critic"),) for step in range(5)}
    (finding,) = findings_over_time(course([1.0] * 5), seen)
    assert finding.severity == "warning"
    history = course([1.0] * 5)
    history.add("update", "critic.weight", 3, statistics(1.0))
    (finding,) = findings_over_time(history, seen)
    assert finding.severity == "note"


# -- the course --------------------------------------------------------------------------------------------------------


def test_a_loss_that_rises_is_blamed_on_the_rate_only_where_updates_are_large():
    rising = [1.0 + 0.1 * step for step in range(40)]
    assert ids(findings_over_time(course(rising, ratio=0.05), {})) == ["learning-rate-too-high"]
    assert findings_over_time(course(rising, ratio=0.001), {}) == ()


def test_a_loss_that_swings_and_one_that_is_only_noisy():
    swinging = [1.0 + 0.5 * (-1) ** step for step in range(60)]
    (finding,) = findings_over_time(course(swinging, ratio=0.05), {})
    assert finding.id == "learning-rate-too-high"
    noisy = [1.0 + 0.5 * math.sin(7.0 * step * step) for step in range(60)]
    assert findings_over_time(course(noisy, ratio=0.05), {}) == ()


def test_a_spike_names_the_layer_that_it_began_in():
    losses = [2.0 - 0.01 * step for step in range(40)]
    losses[30] = 9.0
    history = course(losses)
    for step in range(40):
        history.add("value", "first", step, statistics(1.0), layer=1)
        history.add("value", "second", step, statistics(100.0 if step == 30 else 1.0), layer=2)
        history.add("value", "third", step, statistics(900.0 if step == 30 else 1.0), layer=3)
    (finding,) = findings_over_time(history, {})
    assert (finding.id, finding.where, finding.since, finding.until) == ("loss-spike", "second", 30, 30)
    assert "100 times its usual value" in finding.evidence[1]
    assert findings_over_time(history, {}, Thresholds(spike_factor=6.0)) == ()


def test_a_window_of_a_run_knows_the_loss_at_its_start():
    """Late in a run a hard batch may have ten times the loss that has been reached, and that is no spike."""
    losses = [0.01] * 30
    losses[25] = 0.1
    history = course(losses)
    assert ids(findings_over_time(history, {})) == ["loss-spike"]
    history.first_loss = 2.3
    assert findings_over_time(history, {}) == ()


def test_clipping_now_and_then_is_what_it_is_for():
    often, seldom = course([1.0] * 20), course([1.0] * 20)
    for facts in often.steps:
        facts.clipped = (30.0, 1.0)
    for facts in seldom.steps:
        facts.clipped = (30.0, 1.0) if facts.step % 5 == 0 else (0.5, 0.5)
    (finding,) = findings_over_time(often, {})
    assert (finding.id, finding.severity) == ("always-clipped", "warning")
    assert "by a factor of 30" in finding.sentence
    assert findings_over_time(seldom, {}) == ()


def test_a_few_steps_say_nothing_of_a_course():
    assert findings_over_time(course([1.0, 5.0, 25.0], ratio=2.0), {}) == ()
    assert findings_over_time(History(), {}) == ()


# -- thresholds, silence, the page -------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [-1, math.nan, math.inf, True, "0.5", None])
def test_a_threshold_that_is_no_number_is_refused(given):
    with pytest.raises(ChainruleError) as caught:
        chainrule.Thresholds(flat=given)
    assert str(caught.value) == (
        f"Thresholds(flat={given!r}): the value must be a finite number of 0 or more (mean slope, as a share of the "
        "function's largest slope). The default is 0.04."
    )


def from_nothing(steps, ratio):
    """A run with a weight that begins at 0."""
    history = course([1.0] * steps)
    for step in range(steps):
        history.add("parameter", "scale", step, statistics((step > 0) * (1 + 1e-6 * step)))
        history.add("update", "scale", step, statistics(ratio(step)))
    return history


def test_a_weight_that_grows_from_zero_is_given_time():
    walk = from_nothing(300, lambda step: 1 / (step + 1) ** 0.5)
    for steps in (12, 30, 100, 300):
        assert findings_over_time(first(walk, steps), {}) == ()
    (finding,) = findings_over_time(from_nothing(300, lambda step: 0.3), {})
    assert (finding.id, finding.where) == ("update-too-large", "scale")


def first(history, steps):
    return History(
        history.steps[:steps],
        {key: Series(*key, 0, "", each.steps[:steps], each.statistics[:steps]) for key, each in history.series.items()},
    )


def test_a_loss_below_zero_jumps_only_where_it_jumps_as_far_as_one_above():
    calm = [-0.45 + 0.01 * (-1) ** step for step in range(30)]
    assert findings_over_time(course([*calm, -0.2]), {}) == ()
    (finding,) = findings_over_time(course([*calm, 0.4]), {})
    assert finding.id == "loss-spike"


def test_silence_leaves_out_and_refuses_what_does_not_exist():
    seen = {0: (of_step("accumulated-gradient"),)}
    assert findings_over_time(course([1.0]), seen, silence=("accumulated-gradient",)) == ()
    assert findings_over_time(course([1.0]), seen, silence="accumulated-gradient") == ()
    with pytest.raises(ChainruleError) as caught:
        findings_over_time(course([1.0]), seen, silence=("unit_off",))
    assert str(caught.value).startswith("silence: no finding has the id 'unit_off'. Near matches: 'unit-off'")


def test_a_check_says_everything_and_names_thresholds_that_exist():
    used = set()
    for check in CHECKS.values():
        assert check.title
        assert not check.title.endswith(".")
        assert all(text.endswith(".") for text in (check.what, check.why, check.advice)), check.id
        assert check.source
        assert check.step_checks or check.run_checks or check.across_ranks, check.id
        used.update(check.thresholds)
    assert used == set(vars(Thresholds()))
    assert sorted(CHECKS) == sorted(check.id for checks in BY_TOPIC.values() for check in checks)


def test_the_page_of_findings_is_up_to_date():
    written = reference.FINDINGS.read_text(encoding="utf-8")
    assert written == reference.findings_page(), f"docs/findings.md is old: run `{reference.COMMAND}`"


def test_a_finding_without_time_names_no_time():
    finding = of_step("saturated")
    assert isinstance(finding, Finding)
    assert finding.when == ""
    assert str(finding).startswith("warning: A1 is not well.")


@pytest.mark.trains
def test_an_update_that_replaced_its_weight_is_dated_by_itself():
    """Updates at the start of a run are above the limit, too."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 1))
    optimizer, w = torch.optim.SGD(model.parameters(), lr=0.05), torch.randn(8, 1)
    with chainrule.watch(model, optimizer) as watch:
        for step in range(60):
            optimizer.param_groups[0]["lr"] = 25.0 if step >= 40 else 0.05
            x = torch.randn(64, 8)
            optimizer.zero_grad()
            F.mse_loss(model(x), x @ w).backward()
            optimizer.step()
    # An examination on the way may have met the largest update in the other weight.
    (found,) = [each for each in watch.findings if each.id == "update-too-large" and each.severity == "warning"]
    assert found.since is not None
    assert found.since > 40
    assert found.because.startswith("learning-rate-jump")


@pytest.mark.parametrize(("elements", "severity"), [(16, "warning"), (2, "note")])
def test_a_spike_of_a_batch_of_few_samples_that_comes_down_at_once_is_a_note(elements, severity):
    losses = [2.0 - 0.05 * step for step in range(30)] + [3.0] + [0.4] * 10
    history = course(losses)
    for step in range(len(losses)):
        history.add("input", "x", step, statistics(1.0, elements=elements if step == 30 else 16))
    found = [each for each in findings_over_time(history, {}) if each.id == "loss-spike"]
    assert [each.severity for each in found] == [severity]
