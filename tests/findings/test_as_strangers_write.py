"""What trainings as others write them are not blamed for, and the fault beside each that still is."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import chainrule
from chainrule.diagnostics import findings_over_time
from tests.findings.test_kinds import found_in
from tests.findings.test_over_time import course, statistics


def watched(model, loss_of, steps, optimizer=None, every=1):
    """The findings of a run, by their id."""
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=1e-3)
    with chainrule.watch(model, optimizer, every=every, namespace={"model": model}) as watch:
        for step in range(steps):
            optimizer.zero_grad()
            loss_of(step).backward()
            optimizer.step()
    return {each.id: each for each in watch.findings}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.mark.parametrize(("begins", "expected"), [(0.01, False), (0.5, True)])
def test_the_last_layer_of_a_policy_may_begin_at_a_hundredth_of_the_others(begins, expected):
    """Its first update is six times as large, and makes it as large as it is from then on."""
    history = course([1.0] * 20)
    for name, size in (("policy", begins), ("body.0", 4.0), ("body.2", 2.0)):
        for step in range(20):
            first = name == "policy" and not step
            grown = (7 if step and name == "policy" else 1) + 1e-3 * step
            history.add("parameter", name, step, statistics(grown * size))
            history.add("update", name, step, statistics(6 * size if first else 1e-3 * size))
    found = findings_over_time(history, dict.fromkeys(range(20), ()), ended=True)
    assert ("update-too-large" in {each.id for each in found}) == expected


@pytest.mark.trains
@pytest.mark.parametrize(
    ("pictures", "every", "severity"), [(1, 1, "note"), (1, 5, "note"), (20, 1, "warning"), (20, 5, "warning")]
)
def test_a_network_that_is_fitted_to_one_picture_may_have_batch_norm(pictures, every, severity):
    model = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 1, 1))
    seeds, targets = torch.rand(1, 2, 6, 6), torch.rand(pictures, 1, 6, 6)

    def loss_of(step):
        return F.mse_loss(model(seeds + 0.1 * torch.randn(1, 2, 6, 6)), targets[step % pictures][None])

    found = watched(model, loss_of, 12, every=every)
    assert found["batch-norm-of-one"].severity == severity


@pytest.mark.trains
@pytest.mark.parametrize(("zero", "severity"), [((0,), "note"), ((4,), "warning")])
def test_only_the_first_batch_may_be_zero(zero, severity):
    """An environment begins at 0; a file that is empty may come at any time."""
    model = nn.Linear(3, 2)
    found = watched(model, lambda n: model(torch.randn(8, 3) * (n not in zero)).square().mean(), 8)
    assert found["zero-batch"].severity == severity


NET = {
    "beside a time": lambda: nn.Sequential(nn.Linear(9, 16), nn.SiLU(), nn.Linear(16, 8)),
    "a picture": lambda: nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.SiLU(), nn.Conv2d(4, 1, 3, padding=1)),
}


@pytest.mark.trains
@pytest.mark.parametrize("kind", NET)
@pytest.mark.parametrize("redrawn", [True, False])
def test_noise_that_was_drawn_anew_before_the_network_is_named_by_what_it_has_in_common_with_the_input(kind, redrawn):
    model, shape = NET[kind](), (32, 1, 8, 8) if kind == "a picture" else (32, 8)

    def loss(step):
        noise, share = torch.randn(shape), torch.rand(32, *(1 for _ in shape[1:]))
        added = torch.randn(shape) if redrawn else noise
        noisy = (1 - share).sqrt() * torch.rand(shape) + share.sqrt() * added
        time = share.expand(-1, 1, *shape[2:])
        return F.mse_loss(model(torch.cat([noisy, time], 1)), noise)

    found = watched(model, loss, 12)
    assert ("unfittable-labels" in found) == redrawn
    if redrawn:
        assert found["unfittable-labels"].severity == "warning"
        assert found["unfittable-labels"].text.endswith(
            "are normal noise that input, the network's input, does not contain."
        )


@pytest.mark.trains
def test_normal_targets_that_are_learnt_or_come_again_are_no_fault():
    """Those of a fixed batch can be memorised."""
    model, x, y = nn.Linear(16, 16), torch.randn(32, 16), torch.randn(32, 16)
    assert "unfittable-labels" not in watched(model, lambda n: F.mse_loss(model(x), y), 14)
    right = torch.randn(16, 16).div(4)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)

    def loss(step):
        fresh = torch.randn(32, 16)
        return F.mse_loss(model(fresh), F.normalize(fresh @ right, dim=1) * 4)

    assert "unfittable-labels" not in watched(model, loss, 14, optimizer)


@pytest.mark.parametrize("shared", [True, False])
def test_one_matrix_may_move_a_state_on_and_on(shared):
    """As in a Kalman filter; two matrices in a row are one."""
    moves = [torch.nn.Parameter(torch.randn(3, 3)) for _ in range(2)]
    first, second = (moves[0], moves[0]) if shared else moves
    x, y = torch.randn(8, 3), torch.randn(8, 3)
    found = found_in(lambda: F.mse_loss(x @ first @ second, y).backward(), x=x, y=y, first=first)
    assert ("no-activation" in found) == (not shared)


@pytest.mark.trains
@pytest.mark.parametrize("drawn", [True, False])
def test_passes_in_train_mode_over_one_input_draw_from_the_network(drawn):
    """Monte Carlo dropout, as against an evaluation of several batches."""
    model, x, y, held = (
        nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.1), nn.Linear(8, 1)),
        *torch.randn(3, 40, 4).unbind(),
    )

    def loss(step):
        if step == 4:
            with torch.no_grad():
                for k in range(5):
                    model(held[:8] if drawn else held[8 * k : 8 * k + 8])
        return F.mse_loss(model(x), y[:, :1])

    assert ("train-while-evaluating" in watched(model, loss, 10)) == (not drawn)


@pytest.mark.parametrize("mixed", [True, False])
def test_equal_inputs_may_have_shares_of_several_labels(mixed):
    """Of mixup the share of the second label may be nearly 0."""
    x, layer = torch.randn(16, 4), nn.Linear(4, 3)
    x[8:] = x[:8]
    y = torch.arange(8).remainder(3)
    a, b = torch.cat([y, y]), torch.cat([y, (y + 1) % 3])

    def step():
        z = layer(x)
        (0.9 * F.cross_entropy(z, a) + 0.1 * F.cross_entropy(z, b) if mixed else F.cross_entropy(z, b)).backward()

    assert ("unfittable-labels" in found_in(step, x=x, layer=layer)) == (not mixed)


@pytest.mark.trains
@pytest.mark.parametrize("module", [False, True])
def test_particles_whose_gradient_is_set_by_hand_are_no_frozen_parameters(module):
    """As of Stein variational gradient descent; a frozen layer that moves is one."""
    layer = nn.Linear(3, 1)
    held = [layer.weight.requires_grad_(False)] if module else [torch.randn(5, 3)]
    optimizer = torch.optim.SGD([*held, layer.bias], lr=0.1)
    held[0].grad = torch.ones_like(held[0])
    found = found_in(lambda: (layer(held[0] if not module else torch.randn(5, 3)).sum().backward(), optimizer.step()),
                     layer=layer, held=held[0])  # fmt: skip
    assert ("frozen-by-name" in found) == module


@pytest.mark.trains
@pytest.mark.parametrize("share", [0.0, 0.5])
def test_an_attention_without_dropout_draws_nothing(share):
    """So two steps on one rollout may begin with the same state of the generator; with dropout they must not."""
    model = nn.TransformerEncoderLayer(8, 2, 16, dropout=share, batch_first=True)
    x, y = torch.randn(4, 3, 8), torch.randn(4, 3, 8)

    def loss(step):
        if share:
            torch.manual_seed(0)
        return F.mse_loss(model(x), y)

    assert ("same-noise" in watched(model, loss, 8)) == bool(share)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_probabilities_of_a_connectionist_loss_are_those_of_the_symbols(axis):
    scores = torch.randn(10, 3, 5, requires_grad=True)
    targets, lengths = torch.randint(1, 5, (3, 4)), torch.full((3,), 10)

    def step():
        F.ctc_loss((2 * scores).log_softmax(axis), targets, lengths, torch.full((3,), 4)).backward()

    assert ("softmax-axis" in found_in(step, scores=scores)) == (axis != 2)


@pytest.mark.parametrize("sign", [1, -1])
def test_the_sign_of_a_policy_is_told_by_rewards_that_were_put_together(sign):
    """Of several steps, into a tensor without a name of its own."""
    layer = nn.Linear(4, 3)

    def step():
        chances, credits = [], []
        for _ in range(2):
            x = torch.randn(6, 4)
            policy = torch.distributions.Categorical(logits=layer(x))
            action = policy.sample()
            rew = (action == 1).float() * 1.5
            chances.append(policy.log_prob(action))
            credits.append(rew - 0.2)
        (sign * torch.cat(chances) * torch.cat(credits)).mean().backward()
        del action, x

    assert ("loss-ascends" in found_in(step, layer=layer)) == (sign > 0)


@pytest.mark.trains
@pytest.mark.parametrize(("cleared", "share"), [(True, 0.5), (False, 0.5), (True, 1.0)])
def test_two_micro_batches_are_some_where_each_loss_is_halved(cleared, share):
    """Of two whole losses the first may be another player's."""
    model, x, y = nn.Linear(6, 3), torch.randn(2, 8, 6), [torch.randint(3, (8,)) for _ in range(2)]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def step():
        for k in range(2):
            loss = F.cross_entropy(model(x[k]), y[k]) * share
            if cleared:
                optimizer.zero_grad()
            loss.backward()
        optimizer.step()

    found = found_in(step, model=model).get("gradient-changed")
    assert (found is not None and "do not add up" in found.sentence) == (cleared and share < 1)
