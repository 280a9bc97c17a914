"""Optimizers that move nothing, and why: by the numbers of a step, and by the course of a run."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import chainrule
from chainrule.diagnostics import findings_over_time
from chainrule.graph.history import History, StepFacts, Unstepped

pytestmark = pytest.mark.trains


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def network(dtype=torch.float32):
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1)).to(dtype)


def train(model, optimizer, steps=12, before_step=lambda step: None, stepping=lambda step: True):
    """The usual loop on one batch of unit-sized inputs."""
    dtype = next(model.parameters()).dtype
    x = torch.randn(64, 8, dtype=dtype)
    y = 100 + x[:, :1]
    for step in range(steps):
        optimizer.zero_grad()
        F.mse_loss(model(x), y).backward()
        before_step(step)
        if stepping(step):
            optimizer.step()


def found_in(model, optimizer, id, every=1, **options):
    with chainrule.watch(model, every=every) as watch:
        train(model, optimizer, **options)
    return [finding for finding in watch.findings if finding.id == id]


# -- updates of 0 ------------------------------------------------------------------------------------------------------


class Stale(torch.optim.SGD):
    """Its step returns early."""

    def step(self, closure=None):
        return None


def test_an_update_that_was_not_written():
    model = network()
    (finding, *_) = found_in(model, Stale(model.parameters(), lr=0.1), "stuck-update")
    assert finding.severity == "error"
    assert finding.text == (
        "0.weight has a gradient, and is not moved: step() ran and wrote nothing. The same applies to 0.bias, "
        "2.weight, 2.bias."
    )
    assert "was due for each element." in finding.evidence[1]
    assert "does it return early" in finding.advice


@pytest.mark.parametrize(
    ("dtype", "rate", "reason"),
    [
        (torch.float32, 0.0, "its learning rate is 0"),
        (torch.float32, 1e-30, "its steps are far too small for float32"),
        (torch.bfloat16, 1e-8, "its steps are too small for bfloat16"),
        (torch.float16, 1e-8, "its steps are too small for float16"),
    ],
)
def test_steps_that_are_lost_in_rounding(dtype, rate, reason):
    model = network(dtype)
    (finding, *_) = found_in(model, torch.optim.SGD(model.parameters(), lr=rate), "stuck-update")
    assert (finding.severity, finding.since) == ("error", 1)
    assert reason in finding.text
    if rate:
        assert "of the number." in finding.evidence[1]


def test_the_bias_before_a_norm_has_no_gradient_but_rounding_and_nothing_to_move():
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 1))
    nn.init.constant_(model[0].bias, 1.0)
    with chainrule.record() as recording:
        train(model, torch.optim.SGD(model.parameters(), lr=1e-4), steps=1)
    assert torch.equal(model[0].bias, torch.ones(16))
    assert model[0].bias.grad.norm() > 0
    assert not [finding for finding in recording.findings() if finding.id == "stuck-update"]


def test_half_precision_that_rounds_nearly_all_steps_away_is_a_warning():
    model = network(torch.bfloat16)
    with torch.no_grad():
        model[0].weight[0, :4] = 0  # small numbers have a small spacing: these move
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-8)
    first = found_in(model, optimizer, "stuck-update")[0]
    assert (first.where, first.severity) == ("0.weight", "warning")
    assert first.text.endswith("is hardly moved: bfloat16 rounds nearly all of its steps away.")
    assert "% of its elements stay as they are: the spacing of bfloat16 is 0.0078" in first.evidence[1]


def test_a_group_that_waits_with_a_rate_of_zero_is_a_note_and_one_that_falls_to_it_is_not():
    for rates, severity in (([0.0] * 12, "note"), ([1e-3] * 3 + [0.0] * 9, "error")):
        model = network()
        groups = [{"params": model[0].parameters(), "lr": 0.0}, {"params": model[2].parameters(), "lr": 1e-3}]
        optimizer = torch.optim.SGD(groups, lr=1e-3)

        def schedule(step, rates=rates, optimizer=optimizer):
            optimizer.param_groups[0]["lr"] = rates[step]

        found = found_in(model, optimizer, "stuck-update", before_step=schedule)
        assert {finding.severity for finding in found} == {severity}
        assert {finding.where.partition(".")[0] for finding in found} == {"0"}


def test_a_group_that_still_waits_at_the_end_of_a_long_watch_is_a_warning():
    for steps, every, severity in ((90, 10, "note"), (110, 10, "warning"), (101, 50, "note")):
        model = network()
        groups = [{"params": model[0].parameters(), "lr": 0.0}, {"params": model[2].parameters(), "lr": 1e-4}]
        found = found_in(model, torch.optim.SGD(groups, lr=1e-4), "stuck-update", every=every, steps=steps)
        assert {finding.severity for finding in found} == {severity}


def test_one_huge_gradient_is_what_the_state_remembers_not_a_size_that_the_gradient_has_lost():
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def once(step):
        for each in model.parameters() if step == 9 else ():
            each.grad *= 1e8

    found = found_in(model, optimizer, "stuck-update", before_step=once, steps=90)
    assert {finding.severity for finding in found} == {"warning"}
    assert "its state remembers a far larger gradient" in found[0].text


def test_steps_lost_in_rounding_follow_from_updates_that_are_too_small():
    model = network()
    with torch.no_grad():
        model[2].bias.fill_(1e4)
    with chainrule.watch(model) as watch:
        train(model, torch.optim.SGD(model.parameters(), lr=1e-11))
    found = {finding.id: finding for finding in watch.findings}
    assert found["stuck-update"].severity == "error"
    assert found["stuck-update"].because.startswith("update-too-small")


def test_a_gradient_that_has_all_but_vanished_moves_nothing_and_is_no_fault():
    """A linear regression at its minimum: what is left of the gradient is rounding, and the loss is the noise."""
    model, x = nn.Linear(8, 1), torch.randn(64, 8)
    y = x[:, :1] + torch.randn(64, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    with chainrule.watch(model, every=10) as watch:
        for _ in range(400):
            optimizer.zero_grad()
            F.mse_loss(model(x), y).backward()
            optimizer.step()
    assert [finding for finding in watch.findings if finding.severity != "note"] == []


# -- no gradient, no count, no step ------------------------------------------------------------------------------------


def test_an_optimizer_of_another_model_names_what_it_holds_and_what_learns():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model = copy.deepcopy(model)
    (finding,) = found_in(model, optimizer, "nothing-to-step")
    assert (finding.severity, finding.since) == ("error", 1)
    learning = "0.weight, 0.bias, 2.weight, 2.bias have one"
    assert finding.text == f"SGD stepped, and none of its 4 parameters has a gradient: {learning}."
    assert finding.evidence[0].startswith("It holds parameter0")
    assert finding.evidence[1] == "0 of 4 parameters with a gradient are in it."


def test_a_loss_that_is_made_anew_of_its_number_reaches_nothing():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with chainrule.watch(model) as watch:
        for _ in range(8):
            optimizer.zero_grad()
            loss = model(torch.randn(16, 8)).square().mean()
            torch.tensor(loss.item(), requires_grad=True).backward()
            optimizer.step()
    (finding,) = [each for each in watch.findings if each.severity != "note"]
    assert (finding.id, finding.severity, finding.since) == ("nothing-to-step", "error", 1)
    assert finding.evidence[0].endswith("no parameter has a gradient after backward().")


def test_the_optimizer_of_a_player_that_was_cut_off_has_never_anything():
    """A generator whose loss is computed from detached fakes, after the step of the discriminator."""
    generator, critic = nn.Linear(8, 8), network()
    optimizers = [torch.optim.SGD(each.parameters(), lr=0.01) for each in (critic, generator)]
    with chainrule.watch([generator, critic]) as watch:
        for _ in range(12):
            fake = generator(torch.randn(16, 8)).detach()
            for sign, optimizer in zip((1, -1), optimizers, strict=True):
                optimizer.zero_grad()
                (sign * critic(fake).tanh().mean()).backward()
                optimizer.step()
    assert {each.id for each in watch.findings if each.severity == "error"} == {"nothing-to-step"}


def test_optimizers_that_take_turns_have_something_to_step_at_times():
    one, other = network(), network()
    optimizers = [torch.optim.SGD(each.parameters(), lr=1e-4) for each in (one, other)]
    x = torch.randn(64, 8)
    with chainrule.watch([one, other]) as watch:
        for step in range(24):
            for optimizer in optimizers:
                optimizer.zero_grad()
            (one, other)[step // 6 % 2](x).square().mean().backward()
            for optimizer in optimizers:
                optimizer.step()
    assert {finding.severity for finding in watch.findings if finding.id == "nothing-to-step"} <= {"note"}


def counted(counts, gap=1):
    steps = [StepFacts(gap * place, 0.0, 1.0, counts=each) for place, each in enumerate(counts, 1)]
    return [each for each in findings_over_time(History(steps), {}) if each.id == "step-counter-stands"]


def test_a_count_that_stands():
    (finding,) = counted([(1,)] * 6)
    assert finding.sentence == "The step counter of optimizer 1 stands at 1."
    assert finding.evidence == ("It was 1 after each of 6 watched steps, from step 1 to 6.",)
    assert counted([(1,)] * 4) == []
    assert counted([(step,) for step in range(1, 9)]) == []
    (second,) = counted([(step, 7) for step in range(1, 9)])
    assert second.where == "optimizer 2"
    assert counted([(5,)] * 6, gap=10) == []  # as of a new optimizer after every five steps
    assert [finding.where for finding in counted([(3,)] * 6, gap=10)] == ["optimizer 1"]


@pytest.mark.parametrize("every", [1, 10])
def test_backward_goes_on_and_no_optimizer_steps(every):
    model = network()
    (finding,) = found_in(
        model, torch.optim.Adam(model.parameters()), "step-not-called", every, steps=60, stepping=lambda step: step < 12
    )
    assert (finding.severity, finding.since) == ("error", 13)
    assert finding.text == "backward() ran 48 times, and no optimizer stepped."
    assert not any(parameter._post_accumulate_grad_hooks for parameter in model.parameters())


def test_it_is_said_while_the_training_runs_and_taken_back_when_a_step_comes():
    model, said = network(), []
    optimizer = torch.optim.Adam(model.parameters())

    def severities():
        return [finding.severity for finding in watch.findings if finding.id == "step-not-called"]

    with chainrule.watch(model, every=10) as watch:
        train(
            model, optimizer, steps=160, stepping=lambda step: step < 12 or step >= 140,
            before_step=lambda step: said.append(severities()),
        )  # fmt: skip
    assert (said[110], said[120], severities()) == ([], ["error"], ["note"])


@pytest.mark.parametrize("every", [1, 10])
@pytest.mark.parametrize("case", ["evaluation", "attack", "micro-batches", "by hand"])
def test_many_backward_passes_that_are_no_fault(case, every):
    model, x, y = network(), torch.randn(64, 8), torch.randn(64, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with chainrule.watch(model, every=every) as watch:
        if case == "micro-batches":
            for step in range(200):
                F.mse_loss(model(x), y).backward()
                if step % 24 == 23:  # the first step has as many as the others
                    optimizer.step()
                    optimizer.zero_grad()
        else:
            train(model, optimizer)
        model.train(case != "attack")
        for _ in range(40):
            if case == "evaluation":
                model(x)
            elif case == "attack":
                F.mse_loss(model(x.clone().requires_grad_()), y).backward()
            elif case == "by hand":
                model.zero_grad()
                F.mse_loss(model(x), y).backward()
                for parameter in model.parameters():
                    parameter.data -= 1e-3 * parameter.grad
    assert [finding for finding in watch.findings if finding.id == "step-not-called"] == []


@pytest.mark.parametrize(("skipped", "severities"), [(19, []), (20, ["error"])])
def test_steps_that_are_all_skipped(skipped, severities):
    steps = [StepFacts(step, 0.0, 1.0, skipped=step > 5, scale=2.0**40) for step in range(1, 6 + skipped)]
    found = [each for each in findings_over_time(History(steps), {}) if each.id == "step-not-called"]
    assert [each.severity for each in found] == severities
    assert all((each.since, each.title) == (6, "Every step is skipped") for each in found)


@pytest.mark.parametrize("how", ["never", "by hand", "few"])
def test_a_training_that_never_steps(how):
    model, x = network(), torch.randn(16, 8)
    optimizer = torch.optim.Adam(model.parameters())
    with chainrule.watch(model) as watch:
        for _ in range(5 if how == "few" else 30):
            model.zero_grad()
            model(x).square().mean().backward()
            if how == "by hand":
                for parameter in model.parameters():
                    parameter.data -= 1e-3 * parameter.grad
    found = [each for each in watch.findings if each.id == "step-not-called"]
    assert [(each.severity, each.since) for each in found] == ([("error", 1)] if how == "never" else [])
    assert optimizer.state == {}


def test_what_a_history_says_of_passes_without_a_step():
    history = History([StepFacts(1, 0.0, 1.0)], unstepped=Unstepped(1, 20, 2))
    (finding,) = findings_over_time(history, {})
    assert finding.evidence == ("Until step 1 a step had 2 backward passes at most.",)


@pytest.mark.parametrize("every", [1, 4])
def test_a_model_that_is_frozen_after_its_training_ends_no_watch(every):
    """The teacher of a distillation; then its student learns, with losses of another kind."""
    teacher, student = network(), network()
    with chainrule.watch([teacher, student], every=every) as watch:
        train(teacher, torch.optim.SGD(teacher.parameters(), lr=1e-4))
        teacher.requires_grad_(False)
        train(student, torch.optim.SGD(student.parameters(), lr=1e-4))
    assert (watch.step_number, watch.watched) == (24, 24 if every == 1 else 7)
