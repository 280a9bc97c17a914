"""What whole runs (tests/bed/loops) can't show: the edges of checks of one step, and what must not be found."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import chainrule
from chainrule.diagnostics import findings
from chainrule.errors import SilenceError

pytestmark = pytest.mark.trains


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def found_in(step, keep="all", **names):
    with chainrule.record(names, keep=keep) as recording:
        step()
    return {finding.id: finding for finding in recording.findings()}


def trained(model, loss, *optimizers):
    def step():
        loss().backward()
        for optimizer in optimizers or (torch.optim.SGD(model.parameters(), lr=0.1),):
            optimizer.step()

    return found_in(step, model=model)


def test_two_models_of_one_class_are_not_one_parameter_in_two_optimizers():
    one, other = nn.Sequential(nn.Linear(3, 2)), nn.Sequential(nn.Linear(3, 2))
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.1) for model in (one, other)]

    def step():
        x = torch.randn(4, 3)
        (one(x) + other(x)).square().mean().backward()
        for optimizer in optimizers:
            optimizer.step()

    assert not {"in-two-optimizers", "not-in-optimizer", "gradient-changed"} & set(found_in(step))


def test_one_optimizer_that_steps_twice_is_one():
    model = nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters())
    x = torch.randn(4, 3)
    assert "in-two-optimizers" not in trained(model, lambda: model(x).square().mean(), optimizer, optimizer)


def test_which_optimizers_hold_it_and_how_far_each_moved_it():
    model = nn.Linear(3, 2, bias=False)
    x = torch.randn(4, 3)
    optimizers = [torch.optim.Adam(model.parameters(), lr=0.25), torch.optim.SGD(model.parameters(), lr=0.5)]
    finding = trained(model, lambda: model(x).square().mean(), *optimizers)["in-two-optimizers"]
    assert finding.sentence == "weight is in 2 optimizers that stepped: Adam (rate 0.25) and SGD (rate 0.5)."
    assert finding.evidence[0].startswith("weight was moved by 0.6124 and then by ")  # 0.25 * sqrt(6)


def test_the_mean_slope_follows_from_statistics():
    first, last, x = nn.Linear(4, 8), nn.Linear(8, 1), torch.randn(16, 4)
    nn.init.constant_(first.bias, 4.0)
    kept = []

    def step():
        hidden = torch.tanh(first(x))
        kept.append(hidden.detach())
        last(hidden).mean().backward()

    finding = found_in(step)["saturated"]
    slope = float((1 - kept[0] ** 2).mean())
    assert f"passes back {100 * slope:.2g} %" in finding.sentence


def test_an_output_may_be_sure_of_itself():
    layer, x = nn.Linear(4, 1), torch.randn(16, 4)
    nn.init.constant_(layer.bias, 20.0)
    assert "saturated" not in found_in(lambda: torch.sigmoid(layer(x)).mean().backward())


def test_a_head_that_begins_at_zero_is_no_symmetry():
    model, x, y = (
        nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)),
        torch.randn(16, 4),
        torch.randint(3, (16,)),
    )
    nn.init.zeros_(model[2].weight)
    assert "symmetric-units" not in found_in(lambda: F.cross_entropy(model(x), y).backward(), model=model)


def test_instance_norm_is_no_batch_norm_of_one():
    layer, norm, x = nn.Conv2d(1, 2, 3), nn.InstanceNorm2d(2, affine=True), torch.randn(1, 1, 8, 8)
    assert "batch-norm-of-one" not in found_in(lambda: norm(layer(x)).square().mean().backward())


def test_batch_norm_of_one_in_evaluation_is_fine():
    model, x = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)), torch.randn(1, 1, 8, 8)
    assert "batch-norm-of-one" in found_in(lambda: model(x).square().mean().backward())
    model.eval()
    assert "batch-norm-of-one" not in found_in(lambda: model(x).square().mean().backward())


def test_a_norm_after_the_first_layer_makes_up_for_the_scale():
    x = 100 * torch.randn(16, 1, 8, 8)
    plain, normed = nn.Conv2d(1, 2, 3), nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    assert found_in(lambda: plain(x).mean().backward())["input-not-normalised"].severity == "warning"
    assert found_in(lambda: normed(x).square().mean().backward())["input-not-normalised"].severity == "note"


def test_features_of_a_frozen_body_are_no_data():
    body, head, x = nn.Linear(4, 16).requires_grad_(False), nn.Linear(16, 1), torch.randn(32, 4)
    with torch.no_grad():
        body.weight[0] *= 1e5
    assert "input-not-normalised" not in found_in(lambda: head(body(x).tanh() * 100).mean().backward(), body=body)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_sum_over_the_batch_and_a_mean(reduction):
    layer, x, y = nn.Linear(4, 3), torch.randn(16, 4), torch.randint(3, (16,))
    found = found_in(lambda: F.cross_entropy(layer(x), y, reduction=reduction).backward())
    assert ("sum-reduction" in found) == (reduction == "sum")
    divided = found_in(lambda: (F.cross_entropy(layer(x), y, reduction=reduction) / 16).backward())
    assert "sum-reduction" not in divided


def test_targets_within_reach_and_beyond():
    layer, x = nn.Linear(4, 1), torch.randn(16, 4)
    inside, beyond = torch.rand(16, 1), 3 * torch.rand(16, 1) + 1

    def loss(y):
        return lambda: F.mse_loss(torch.sigmoid(layer(x)), y).backward()

    assert "targets-out-of-range" not in found_in(loss(inside))
    finding = found_in(loss(beyond), beyond=beyond)["targets-out-of-range"]
    assert "is between 0 and 1" in finding.sentence
    assert finding.where == "beyond"


def test_a_loss_by_hand_is_known_by_what_becomes_of_the_difference():
    layer, again, x = nn.Linear(4, 4), nn.Linear(4, 1), 3 * torch.randn(16, 4)
    assert "targets-out-of-range" in found_in(lambda: ((torch.tanh(layer(x)) - x) ** 2).mean().backward())
    assert "targets-out-of-range" not in found_in(lambda: again(torch.tanh(layer(x)) - x).mean().backward())


def test_a_label_for_every_word_is_only_a_note():
    """The same word is followed by others, as it should be."""
    embed, head = nn.Embedding(5, 8), nn.Linear(8, 5)
    x, y = torch.zeros(8, 1, dtype=torch.long), torch.arange(8) % 5
    finding = found_in(lambda: F.cross_entropy(head(embed(x)[:, 0]), y).backward())["unfittable-labels"]
    assert finding.severity == "note"
    assert finding.rows == tuple(range(8))


def test_one_number_for_all_is_meant():
    layer, x, label = nn.Linear(4, 1), torch.randn(16, 4), torch.tensor(1.0)
    assert "broadcast-in-loss" not in found_in(lambda: ((layer(x) - label) ** 2).mean().backward(), label=label)


def test_a_teacher_without_gradients_is_a_note():
    student, teacher, x = nn.Linear(4, 2), nn.Linear(4, 2), torch.randn(8, 4)

    def loss():
        with torch.no_grad():
            wanted = teacher(x)
        return F.mse_loss(student(x), wanted)

    assert trained(student, loss)["no-gradient"].severity == "note"


def test_units_of_a_normalised_convolution_are_its_channels():
    model, x = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU()), torch.randn(4, 1, 6, 6)
    with torch.no_grad():
        model[1].bias[1] = -9.0
    finding = found_in(lambda: model(x).mean().backward(), model=model)["unit-off"]
    assert (finding.rows, finding.size) == ((1,), 3)


def test_findings_without_a_derivation_leave_out_what_needs_it():
    model, x, y = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Softmax(1)), torch.randn(8, 4), torch.randint(3, (8,))
    with torch.no_grad():
        model[0].bias[:2] = -9.0
    with chainrule.record({"model": model}) as recording:
        F.cross_entropy(model(x), y).backward()
    whole = {finding.id for finding in recording.findings()}
    quick = {finding.id for finding in findings(recording.graph, None, recording.notation)}
    assert whole - quick == {"unit-off"}
    assert "softmax-before-cross-entropy" in quick


def test_a_recording_takes_thresholds_and_silence():
    layer, x = nn.Linear(2, 10), torch.rand(4, 2)
    with torch.no_grad():
        layer.bias.fill_(9)
        layer.bias[7] = -9
    with chainrule.record({}) as recording:
        F.relu(layer(x)).sum().backward()
    (finding,) = recording.findings()
    assert (finding.id, finding.severity, finding.rows, finding.size) == ("unit-off", "note", (7,), 10)
    (finding,) = recording.findings(chainrule.Thresholds(units_off=0.05))
    assert finding.severity == "warning"
    assert recording.findings(silence=("unit-off",)) == ()
    with pytest.raises(SilenceError, match="Near matches: 'unit-off'"):
        recording.findings(silence=("unit-of",))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"silence": 3}, 'silence=3: give the ids of findings to leave out, as in ("unit-off", "at-kink").'),
        (
            {"thresholds": {"flat": 1}},
            "thresholds={'flat': 1}: give a chainrule.Thresholds, as in chainrule.Thresholds(update_ratio_large=0.3).",
        ),
    ],
)
def test_what_is_no_option_is_refused(options, words):
    with chainrule.record({}) as recording:
        torch.ones(2, requires_grad=True).sum().backward()
    with pytest.raises(chainrule.ChainruleError) as caught:
        recording.findings(**options)
    assert str(caught.value) == words


def test_passes_of_a_line_search_are_no_micro_batches():
    layer, x, y = nn.Linear(3, 1), torch.randn(5, 3), torch.randn(5, 1)
    optimizer = torch.optim.LBFGS(layer.parameters())

    def closure():
        optimizer.zero_grad()
        loss = F.mse_loss(layer(x), y)
        loss.backward()
        return loss

    assert "gradient-noise" not in found_in(lambda: optimizer.step(closure))


# -- what is meant so --------------------------------------------------------------------------------------------------


def test_an_input_of_which_the_gradient_is_wanted_is_not_left_out_of_the_optimizer():
    critic = nn.Sequential(nn.Linear(2, 8), nn.SiLU(), nn.Linear(8, 1))

    def loss():
        real = torch.randn(4, 2).requires_grad_()
        (slope,) = torch.autograd.grad(critic(real).sum(), real, create_graph=True)
        return slope.square().sum()

    assert "not-in-optimizer" not in trained(critic, loss)


def test_weights_that_a_moving_average_keeps_are_no_parameters_of_the_step():
    model, x = nn.Linear(3, 2), torch.randn(4, 3)
    average = torch.optim.swa_utils.AveragedModel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with chainrule.record() as recording:
        model(x).sum().backward()
        optimizer.step()
        average.update_parameters(model)
        average.update_parameters(model)
    assert list(recording.parameters) == ["weight", "bias"]
    assert recording.findings() == ()


def test_a_view_under_no_grad_is_no_parameter():
    layer = nn.utils.parametrizations.spectral_norm(nn.Linear(3, 2))
    with chainrule.record() as recording:
        layer(torch.randn(4, 3)).sum().backward()
    assert list(recording.parameters) == ["bias", "parametrizations.weight.original"]
    assert recording.findings() == ()


def test_states_that_begin_at_zero_are_no_inputs_with_other_labels():
    rnn, embed, head = nn.GRU(4, 8, batch_first=True), nn.Embedding(9, 4), nn.Linear(8, 9)
    tokens = torch.randint(9, (6, 5))

    def step():
        lengths = torch.tensor([4, 3, 2, 4, 1, 2])
        packed = nn.utils.rnn.pack_padded_sequence(embed(tokens[:, :-1]), lengths, True, enforce_sorted=False)
        output, _ = nn.utils.rnn.pad_packed_sequence(rnn(packed)[0], batch_first=True)
        F.cross_entropy(head(output).flatten(0, 1), tokens[:, 1:].flatten()).backward()

    assert "unfittable-labels" not in found_in(step, tokens=tokens)


@pytest.mark.parametrize("keep", ["all", "statistics"])
def test_the_paths_of_a_ctc_loss_that_cannot_be_are_no_infinities(keep):
    x = torch.randn(64, 8, 4, requires_grad=True)
    lengths = torch.full((8,), 64), torch.full((8,), 8)

    def step():
        F.ctc_loss(x.log_softmax(-1), torch.randint(1, 4, (8, 8)), *lengths).backward()

    assert "non-finite-forward" not in found_in(step, keep)


@pytest.mark.parametrize("keep", ["all", "statistics"])
def test_an_infinity_of_positions_that_is_masked_out_is_a_note(keep):
    embed, distance = nn.Embedding(32, 2), torch.arange(8192)

    def step():
        far = (distance.float() / 2).log().mul(2).long() + 2
        embed(torch.where(distance < 2, distance, far)).sum().backward()

    assert found_in(step, keep, distance=distance)["non-finite-forward"].severity == "note"


def test_a_hook_on_a_parameter_is_no_gradient_of_an_earlier_step():
    model, x = nn.Linear(3, 2), torch.randn(4, 3)
    model.weight.register_hook(lambda gradient: gradient.clamp(-0.1, 0.1))
    assert "accumulated-gradient" not in trained(model, lambda: model(x).square().sum())


# -- steps that an exception ended -------------------------------------------------------------------------------------


def test_after_another_exception_nobody_is_blamed_for_what_had_not_come_yet():
    model, x = nn.Linear(3, 2), torch.randn(4, 3)
    with pytest.raises(ZeroDivisionError), chainrule.record() as recording:
        loss = model(x).sum()
        loss.register_hook(lambda gradient: 1 / 0)
        loss.backward()
    assert [each.id for each in recording.findings()] == ["backward-failed"]
    assert "came to it" in recording.why("weight", (0, 0)).sentence
    assert ".. " not in str(recording)


def test_a_gradient_that_was_not_asked_for():
    model, x = nn.Linear(3, 2), torch.randn(4, 3)
    finding = found_in(lambda: model(x).sum().backward(inputs=[model.weight]), model=model)["no-gradient"]
    assert finding.where == "bias"
    assert "not asked for it" in finding.sentence


def test_the_report_says_once_what_applies_to_several_parameters():
    model, x = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2)), torch.randn(4, 3)
    model[0].requires_grad_(False)
    with chainrule.record() as recording:
        model(x).sum().backward()
    assert [finding.where for finding in recording.findings()] == ["0.weight", "0.bias"]
    assert str(recording).count("it is frozen") == 1
    assert "The same applies to 0.bias." in " ".join(str(recording).split())


def test_a_divergence_of_probabilities_that_are_no_logarithms():
    layer, x, wanted = nn.Linear(4, 3), torch.randn(8, 4), torch.rand(8, 3).softmax(1)

    def loss(function):
        return lambda: F.kl_div(function(layer(x), dim=1), wanted, reduction="batchmean").backward()

    assert "nll-without-log" not in found_in(loss(F.log_softmax))
    finding = found_in(loss(F.softmax))["nll-without-log"]
    assert "kl_div expects log-probabilities" in finding.sentence


def test_ctc_of_probabilities():
    layer, x = nn.Linear(4, 5), torch.randn(12, 3, 4)
    targets, lengths = torch.randint(1, 5, (3, 4)), (torch.full((3,), 12), torch.full((3,), 4))

    def loss(function):
        return lambda: F.ctc_loss(function(layer(x), dim=2), targets, *lengths).backward()

    assert "nll-without-log" not in found_in(loss(F.log_softmax))
    assert "ctc_loss expects log-probabilities" in found_in(loss(F.softmax))["nll-without-log"].sentence


@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.RMSNorm, lambda size: nn.GroupNorm(1, size)])
def test_a_norm_over_one_number(norm):
    layer, x = nn.Linear(4, 1), torch.randn(8, 4)
    alone, several = norm(1), norm(4)
    found = found_in(lambda: several(x * layer(x)).square().mean().backward())
    assert "batch-norm-of-one" not in found
    found = found_in(lambda: alone(layer(x)).square().mean().backward())
    assert ("batch-norm-of-one" in found) == (norm is not nn.RMSNorm)  # which has no mean, and keeps the sign


def test_a_frozen_copy_that_a_moving_average_moves_was_moved_by_no_optimizer():
    model, average = nn.Linear(3, 2, bias=False), nn.Linear(3, 2, bias=False).requires_grad_(False)
    optimizer, x = torch.optim.SGD(model.parameters(), lr=0.1), torch.randn(8, 3)

    def step():
        with torch.no_grad():
            for theirs, own in zip(average.parameters(), model.parameters(), strict=True):
                theirs.lerp_(own, 0.5)
        (model(x) - average(x)).square().mean().backward()
        optimizer.step()

    evidence = found_in(step, model=model, average=average)["no-gradient"].evidence
    assert evidence == ("Its shape is (2, 3); no optimizer moved it; other code did (a moving average, say).",)
