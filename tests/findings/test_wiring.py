"""What stands between a gradient and its parameter, or a loss and its target; with the healthy case beside each."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import chainrule
from chainrule.diagnostics import Thresholds, findings_over_time
from tests.findings.test_kinds import found_in, trained
from tests.findings.test_over_time import course, of_step

pytestmark = pytest.mark.trains


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


# -- which optimizer holds what ----------------------------------------------------------------------------------------


def test_the_other_player_of_a_gan_is_a_note_without_wrong_advice():
    """Its left-over gradient is cleared before its own step, and the step that is recorded does not use it."""
    generator, discriminator = nn.Linear(3, 2), nn.Linear(2, 1)
    optimizers = [torch.optim.Adam(each.parameters()) for each in (generator, discriminator)]
    discriminator(torch.randn(8, 2)).mean().backward()

    def step():
        optimizers[0].zero_grad()
        F.softplus(-discriminator(generator(torch.randn(8, 3)).tanh())).mean().backward()
        optimizers[0].step()

    found = found_in(step)
    assert set(found) == {"not-in-optimizer"}
    assert found["not-in-optimizer"].severity == "note"
    assert "another optimizer" in found["not-in-optimizer"].advice


def test_an_optimizer_of_another_model_is_named_in_the_first_step():
    first, model, x = nn.Linear(3, 2), nn.Linear(3, 2), torch.randn(4, 3)
    found = trained(model, lambda: model(x).square().mean(), torch.optim.SGD(first.parameters(), lr=0.1))
    finding = found["not-in-optimizer"]
    assert finding.severity == "warning"
    assert "was made for another model" in finding.evidence[1]
    assert found["no-gradient"].severity == "note"


@pytest.mark.parametrize("keep", [list, lambda layers: {"a": layers[0]}])
def test_a_layer_in_a_plain_list_or_dict_is_named_by_it(keep):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.kept, self.head = keep([nn.Linear(3, 3)]), nn.Linear(3, 1)

        def forward(self, x):
            return self.head(next(iter(self.kept.values() if isinstance(self.kept, dict) else self.kept))(x))

    model, x = Model(), torch.randn(4, 3)
    finding = trained(model, lambda: model(x).mean())["not-in-optimizer"]
    assert finding.where in ("kept[0]", "kept['a']")
    assert "nn.ModuleList" in finding.advice


def test_a_layer_that_is_made_in_the_step_was_not_used_by_its_initialisation():
    def step():
        model = nn.ModuleDict({"used": nn.Linear(3, 2), "unused": nn.Linear(3, 2)})
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        model["used"](torch.randn(4, 3)).square().mean().backward()
        optimizer.step()

    with chainrule.record() as recording:
        step()
    unused = [each for each in recording.findings() if each.id == "no-gradient"]
    assert len(unused) == 2
    for finding in unused:
        assert "the recorded forward pass did not use it" in finding.sentence
        assert "the optimizer did not move it" in finding.evidence[0]
    weight = next(each for each in recording.parameters.values() if each.grad is None and len(each.shape) == 2)
    assert weight.before.abs().max() <= 1 / math.sqrt(3)  # what it was initialised with, not the memory before


def test_a_parameter_of_a_rare_task_had_a_gradient_before():
    history = course([1.0] * 40)
    history.add("parameter gradient", "head", 0, chainrule.graph.statistics.Statistics.of(torch.ones(3)))
    rare = {step: (of_step("no-gradient", where="head"),) if step else () for step in range(10)}
    never = {step: (of_step("no-gradient", where="other"),) if step else () for step in range(10)}
    long = {step: (of_step("no-gradient", where="head"),) if step else () for step in range(40)}
    assert [severity_of(history, each) for each in (rare, never, long)] == ["note", "warning", "warning"]


def severity_of(history, shown):
    (finding,) = [each for each in findings_over_time(history, shown) if each.id == "no-gradient"]
    return finding.severity


# -- losses and targets ------------------------------------------------------------------------------------------------


def test_a_learnt_scale_of_as_many_features_as_samples_is_no_target():
    """Waves of a time in a column, (N, 1) against (N,), and centres that are a buffer."""

    class Waves(nn.Module):
        def __init__(self):
            super().__init__()
            self.frequencies, self.out = nn.Parameter(torch.randn(16)), nn.Linear(16, 1)
            self.register_buffer("centres", torch.randn(16))

        def forward(self, t):
            waves = torch.sin(t * self.frequencies)
            return self.out(waves * torch.exp(-((waves.mean(1, keepdim=True) - self.centres) ** 2)))

    model, t, y = Waves(), torch.randn(16, 1), torch.randn(16, 1)
    assert "broadcast-in-loss" not in trained(model, lambda: F.mse_loss(model(t), y))


# -- clipping and scaling ----------------------------------------------------------------------------------------------


def scaled_step(unscale_first, limit=1.0):
    model, scaler, x = nn.Linear(8, 2), torch.amp.GradScaler("cpu", init_scale=1024.0), torch.randn(16, 8)
    optimizer, seen = torch.optim.SGD(model.parameters(), lr=0.1), {}

    def step():
        scaler.scale(model(x).square().sum()).backward()
        if unscale_first:
            scaler.unscale_(optimizer)
        seen["before"] = nn.utils.clip_grad_norm_(model.parameters(), limit).item()
        scaler.step(optimizer)
        scaler.update()

    return found_in(step, model=model), seen["before"]


def test_clipping_before_unscaling_is_told_with_its_factor():
    found, before = scaled_step(unscale_first=False)
    finding = found["clipped-before-unscale"]
    assert finding.severity == "warning"
    assert f"clipped by a factor of {before:.2f}"[:-3] in finding.evidence[1]
    assert "1024 times as strict" in finding.evidence[2]


def test_clipping_after_unscaling_is_right_and_its_factor_is_that_of_the_clipping():
    found, before = scaled_step(unscale_first=True)
    assert "clipped-before-unscale" not in found
    assert (
        "`clip_grad_norm_`" in found["gradient-changed"].sentence or "clip_grad" in found["gradient-changed"].sentence
    )
    assert found["gradient-changed"].evidence[1] == f"Every element was multiplied by {1 / before:.4f}."


def test_a_limit_that_changes_nothing_before_unscaling_is_a_note():
    found, _ = scaled_step(unscale_first=False, limit=1e9)
    assert found["clipped-before-unscale"].severity == "note"
    assert "unscale_" in found["gradient-changed"].sentence
    assert "clip" not in found["gradient-changed"].sentence


def test_gradients_that_were_cleared_before_backward_were_not_changed_after_it():
    model, x = nn.Linear(3, 2), torch.randn(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(x).sum().backward()

    def loss():
        made = model(x).square().sum()
        optimizer.zero_grad(set_to_none=False)
        return made

    assert "gradient-changed" not in trained(model, loss, optimizer)


@pytest.mark.parametrize("small", [8, 2**14])
@pytest.mark.parametrize("by_hand", [False, True])
def test_the_norms_of_a_watch_are_those_that_clipping_met_and_left(by_hand, small, monkeypatch):
    """Also with an update by hand, with a scale that grows, and where the numbers of gradients are not kept."""
    monkeypatch.setattr("chainrule.capture.retention.SMALL", small)
    model, x = nn.Linear(4, 1), torch.randn(64, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0, growth_interval=2, enabled=not by_hand)
    wanted = []
    with chainrule.watch(model, None if by_hand else optimizer) as watch:
        for _ in range(6):
            model.zero_grad()
            scaler.scale((model(x) - x[:, :1]).square().mean()).backward()
            if not by_hand:
                scaler.unscale_(optimizer)
            before = nn.utils.clip_grad_norm_(model.parameters(), 0.25).item()
            wanted.append((before, min(before, 0.25)))
            if by_hand:
                with torch.no_grad():
                    for parameter in model.parameters():
                        parameter -= 0.1 * parameter.grad
                watch.step()
            else:
                scaler.step(optimizer)
                scaler.update()
    assert len(watch.history.steps) == 6
    for facts, (before, after) in zip(watch.history.steps, wanted, strict=True):
        assert facts.clipped == (pytest.approx(before, rel=1e-4), pytest.approx(after, rel=1e-4))


# -- numbers that are not finite ---------------------------------------------------------------------------------------


def test_a_nan_in_the_backward_pass_that_reaches_no_parameter_is_a_note():
    net, x = nn.Linear(4, 4), torch.randn(6, 4)

    def loss():
        rows = net(x)
        squares = torch.relu((rows[:, None] - rows[None]).square().sum(2))
        return (squares.sqrt() * (1 - torch.eye(6))).mean()

    finding = trained(net, loss)["non-finite-backward"]
    assert finding.severity == "note"
    assert finding.evidence[-1] == "It reaches no gradient of a parameter: all 2 are finite."
    assert finding.advice.startswith("The `relu`")
    assert "lets 0 through" in finding.advice


@pytest.mark.parametrize("keep", ["all", "statistics"])
def test_a_step_that_a_scaler_leaves_out_has_a_note(keep):
    model, scaler, x = nn.Linear(8, 2), torch.amp.GradScaler("cpu", init_scale=2.0**60), 1e20 * torch.randn(16, 8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def step():
        scaler.scale(model(x).mean() * 1e3).backward()
        scaler.step(optimizer)
        scaler.update()

    finding = found_in(step, keep)["non-finite-backward"]
    assert finding.severity == "note"
    assert "GradScaler left this update out" in finding.evidence[-1]


def log_of_sum(x):
    return x.exp().sum(1).log()


def softmax_by_hand(x):
    made = x.exp()
    return made / made.sum(1, keepdim=True)


@pytest.mark.parametrize(
    ("function", "advice"),
    [
        (log_of_sum, "logsumexp"),
        (softmax_by_hand, "torch.softmax"),
        (lambda x: (x - x.detach() * 0.5).exp(), "is a ratio: clamp the difference"),
        (lambda x: x.clamp(max=300.0).exp(), "lets 300 through: lower its upper limit"),
        (lambda x: x.exp() * 2, "Bound the exponent"),
        (lambda x: (x - 400).clamp(min=0).log(), "lets 0 through: clamp at a small positive number"),
        (lambda x: (x - 400).log(), "above 0: clamp it"),
        (lambda x: 1e30 * x / (x * 1e-30), "Keep the operand in the range"),
        (lambda x: x / (x - x), "Keep the divisor away from 0"),
    ],
)
def test_the_advice_fits_what_made_the_operand_and_what_uses_the_result(function, advice):
    x = torch.full((2, 3), 200.0, requires_grad=True)
    found = found_in(lambda: function(x * 1.5).sum().backward(), x=x)
    assert advice in found["non-finite-forward"].advice


# -- the course --------------------------------------------------------------------------------------------------------


def rates(history, ratio=0.1):
    statistics = chainrule.graph.statistics.Statistics.of
    for facts in history.steps:
        history.add("parameter", "w", facts.step, statistics(torch.ones(4) * (1 + facts.step)))
        history.add("update", "w", facts.step, statistics(torch.ones(4) * ratio * (1 + facts.step)))
    return history


def over_time(losses, **options):
    history = rates(course(losses), **options)
    return {each.id for each in findings_over_time(history, dict.fromkeys(range(len(losses)), ()))}


def test_a_loss_around_zero_has_no_start_to_rise_from():
    noise = torch.randn(60, generator=torch.Generator().manual_seed(0)).tolist()
    assert "learning-rate-too-high" not in over_time([0.01, *(0.2 * each for each in noise)])
    assert "learning-rate-too-high" not in over_time([0.01, *(abs(0.2 * each) for each in noise[:5]), -0.1, *noise])
    assert "learning-rate-too-high" in over_time([0.5] * 5 + [2.0] * 30)


def test_a_loss_that_weights_its_terms_by_data_of_either_sign_has_no_start():
    """As that of a policy does by its advantages; it may lie above 0 for a while, where a critic's is added."""
    losses = [0.5] * 5 + [2.0] * 30
    history = rates(course(losses))
    for facts in history.steps:
        facts.estimate = True
    assert "learning-rate-too-high" not in {each.id for each in findings_over_time(history, {})}


@pytest.mark.trains
@pytest.mark.parametrize("estimate", [True, False])
def test_a_watch_notes_whether_data_of_either_sign_weights_the_loss(estimate, tmp_path):
    policy, critic = nn.Linear(4, 3), nn.Linear(4, 1)
    optimizer = torch.optim.SGD([*policy.parameters(), *critic.parameters()], lr=0.01)
    with chainrule.watch([policy, critic], to=tmp_path / "run.db"):
        for _ in range(3):
            state, action = torch.randn(16, 4), torch.randint(3, (16,))
            value = critic(state).squeeze(1)
            advantage = torch.randn(16) if estimate else torch.rand(16)
            ratio = (policy(state).log_softmax(1)[torch.arange(16), action] - 1).exp()
            surrogate = torch.min(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage).mean()
            optimizer.zero_grad()
            (0.5 * (value - torch.randn(16)).square().mean() - surrogate).backward()
            optimizer.step()
    with chainrule.runs.open(tmp_path / "run.db") as run:
        assert [each.estimate for each in run.steps()] == [estimate] * 3


def test_losses_that_follow_the_size_of_the_data_have_no_start():
    """Tasks of different sizes, as sines of other amplitudes: the first may have been a small one."""
    generator = torch.Generator().manual_seed(0)
    sizes = [0.5, *(0.5 + 4 * torch.rand(39, generator=generator)).tolist()]
    losses = [0.3 * each**2 for each in sizes]
    alike = [4.0 + 0.2 * (each - 2.5) for each in sizes]  # no more than batches of one kind differ
    for data, expected in ((sizes, False), (alike, True)):
        history = rates(course(losses))
        for facts, size in zip(history.steps, data, strict=True):
            history.add("input", "y", facts.step, chainrule.graph.statistics.Statistics.of(size * torch.ones(8)))
        found = {each.id for each in findings_over_time(history, dict.fromkeys(range(40), ()))}
        assert ("learning-rate-too-high" in found) == expected


@pytest.mark.parametrize("back", [0.0, 0.9])
def test_large_updates_that_something_else_takes_back_are_a_note(back):
    """The outer step of Reptile takes back most of five inner ones."""
    history, weight, statistics = course([1.0] * 40), torch.ones(6, 6), chainrule.graph.statistics.Statistics.of
    generator, start = torch.Generator().manual_seed(0), weight
    for step in range(40):
        update = 0.3 * torch.randn(6, 6, generator=generator)
        history.add("parameter", "w", step, statistics(weight))
        history.add("update", "w", step, statistics(update))
        weight = weight + update
        if step % 5 == 4:
            weight = start = weight - back * (weight - start)
    (found,) = [each for each in findings_over_time(history, {}) if each.id == "update-too-large"]
    assert found.severity == ("note" if back else "warning")


@pytest.mark.trains
@pytest.mark.parametrize("back", [False, True])
def test_between_watched_steps_a_look_tells_that_something_else_changed_the_parameters(back):
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with chainrule.watch(model, optimizer, every=5) as watch:
        for _ in range(31):
            start = {name: each.clone() for name, each in model.state_dict().items()}
            optimizer.zero_grad()
            model(torch.randn(16, 4)).square().mean().backward()
            optimizer.step()
            if back:
                model.load_state_dict(start)
    known = [facts.rewritten for facts in watch.history.steps]
    assert known[2:] == [back] * (len(known) - 2)  # after step 1 no pass has been seen yet


@pytest.mark.trains
def test_an_update_that_loses_numbers_comes_before_what_it_breaks():
    """Adam in float16: its eps is 0, and so are the squares of small gradients."""
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4)).half()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    with chainrule.watch(model) as watch:
        for _ in range(4):
            x, y = torch.randn(32, 16).half(), torch.randint(4, (32,))
            optimizer.zero_grad()
            F.cross_entropy(model(x).float(), y).backward()
            optimizer.step()
    first, *others = sorted((each for each in watch.findings if each.severity == "error"), key=lambda each: each.since)
    assert first.text.startswith("The update of 0.weight is not finite at step 1")
    assert "eps" in first.advice
    assert all(each.because for each in others)


@pytest.mark.trains
def test_one_update_that_replaces_the_weights_is_named_before_the_numbers_are_lost():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.Softplus(), nn.Linear(8, 8), nn.Softplus(), nn.Linear(8, 8))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e14)
    with chainrule.watch(model) as watch:
        for _ in range(4):
            optimizer.zero_grad()
            model(torch.randn(16, 8)).square().mean().backward()
            optimizer.step()
    above = [each for each in watch.findings if each.severity != "note" and not each.because]
    assert {each.id for each in above} == {"update-too-large"}


def test_a_task_that_is_rare_has_no_spikes():
    """After its first time; the loss falls at first, and that is no peak."""
    usual = [3.0, 2.0, 1.0, *(0.5 + 0.01 * (step % 3) for step in range(57))]
    rare = [4.0 if step % 9 == 4 else each for step, each in enumerate(usual)]
    once = [4.0 if step == 40 else each for step, each in enumerate(usual)]
    assert "loss-spike" not in over_time(rare)
    assert "loss-spike" in over_time(once)


def test_clipping_at_every_step_does_not_slow_down_an_adaptive_optimizer():
    history = course([1.0] * 20)
    for facts in history.steps:
        facts.clipped = (30.0, 1.0)
    assert [each.severity for each in findings_over_time(history, {})] == ["warning"]
    history.add("moment", "w/exp_avg_sq", 0, chainrule.graph.statistics.Statistics.of(torch.ones(3)))
    assert [each.severity for each in findings_over_time(history, {})] == ["note"]


@pytest.mark.parametrize("one_hot", [False, True])
def test_equal_inputs_with_other_labels_are_named_by_two_of_them(one_hot):
    """Of tokens they are a note: equal words are followed by different ones."""
    ids, layer = torch.tensor([0, 0, 1, 1, 2, 0]), nn.Linear(3, 2)
    x, y = F.one_hot(ids, 3).float() * (1.0 if one_hot else 0.7), torch.tensor([0, 0, 1, 0, 1, 1])
    finding = found_in(lambda: F.cross_entropy(layer(x), y).backward(), x=x, y=y)["unfittable-labels"]
    assert finding.severity == ("note" if one_hot else "warning")
    assert finding.evidence[1] == "Samples 0 and 5 have equal inputs; their labels are 0 and 1."


@pytest.mark.parametrize(("grows", "expected"), [(0.0, True), (1.0, False)])
def test_a_weight_that_grows_with_its_first_updates_is_not_overwritten(grows, expected):
    """By Adam's first steps, or by those of a warm-up, whose ratios rise."""
    history, weight = course([1.0] * 16), torch.full((4, 4), 0.1)
    statistics, away = chainrule.graph.statistics.Statistics.of, torch.ones(4, 4)
    for step in range(16):
        update = 0.004 * (1 + step) * (away if grows else away * (-1) ** step)
        history.add("parameter", "w", step, statistics(weight))
        history.add("update", "w", step, statistics(update))
        weight = weight + update
    given = history, dict.fromkeys(range(16), ()), Thresholds(update_ratio_large=0.05)
    assert findings_over_time(*given) == ()  # while the run goes on it has no full window yet
    found = findings_over_time(*given, ended=True)
    assert ("update-too-large" in {each.id for each in found}) == expected


def test_a_bias_that_only_shifts_an_energy_whose_gradient_is_learnt_is_a_note():
    energy = nn.Sequential(nn.Linear(3, 8), nn.Softplus(), nn.Linear(8, 1))

    def loss():
        x = torch.randn(16, 3, requires_grad=True)
        (score,) = torch.autograd.grad(energy(x).sum(), x, create_graph=True)
        return (score + x).square().mean()

    finding = trained(energy, loss)["no-gradient"]
    assert (finding.where, finding.severity) == ("2.bias", "note")
    assert "and not its value" in finding.sentence


def test_a_head_that_was_replaced_is_one_finding():
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    model[2] = nn.Linear(16, 3)
    with chainrule.watch(model) as watch:
        for _ in range(8):
            optimizer.zero_grad()
            model(torch.randn(16, 8)).square().mean().backward()
            optimizer.step()
    (found,) = (each for each in watch.findings if each.severity != "note")
    assert (found.id, found.where) == ("not-in-optimizer", "2")
    assert found.evidence[1].startswith("2 of those are in no module of this step, as where a layer was replaced")
