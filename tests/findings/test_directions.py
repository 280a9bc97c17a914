"""Kinds of losses that pursue the opposite, of copies that do not follow, and of what is prepared in vain."""

import copy
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.distributions import Categorical, Normal, kl_divergence

import chainrule


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def mlp(*widths):
    layers = [each for pair in pairwise(widths) for each in (nn.Linear(*pair), nn.Tanh())]
    return nn.Sequential(*layers[:-1])


def found_in(compute, **models):
    """The findings of a step, by id, of which only statistics were kept."""
    with chainrule.record(models, keep="statistics") as recording:
        compute().backward()
    return {each.id: each for each in recording.findings()}


# -- one of two -------------------------------------------------------------------------------------------------------


def pair_loss(rule):
    model, one, other = mlp(4, 16, 1), torch.randn(16, 4), torch.randn(16, 4)

    def compute():
        chosen_scores, rejected_scores = model(one), model(other)
        return rule(chosen_scores, rejected_scores)

    return found_in(compute, model=model)


@pytest.mark.parametrize(
    ("rule", "found"),
    [
        (lambda a, b: -F.logsigmoid(b - a).mean(), True),
        (lambda a, b: (1 + (a - b).exp()).log().mean(), True),
        (lambda a, b: (b - a).neg().sigmoid().mean(), True),
        (lambda a, b: F.margin_ranking_loss(a, b, -torch.ones(16, 1), margin=4.0), True),
        (lambda a, b: -F.logsigmoid(a - b).mean(), False),
        (lambda a, b: F.margin_ranking_loss(a, b, torch.ones(16, 1), margin=4.0), False),
        (lambda a, b: F.softplus(b - a).mean() + 0.1 * (a.square() + b.square()).mean(), False),
    ],
)
def test_the_worse_of_two_is_preferred(rule, found):
    found_here = pair_loss(rule).get("worse-preferred")
    assert (found_here is not None) == found
    if found_here is not None:
        assert "makes rejected_scores larger and chosen_scores smaller" in found_here.sentence


def test_two_networks_score_no_pair():
    """Names say which one is better, so something else has to show that it is one of two."""
    models, x = nn.ModuleList([mlp(4, 16, 1), mlp(4, 16, 1)]), torch.randn(16, 4)

    def compute():
        chosen_scores, rejected_scores = (model(x) for model in models)
        return -F.logsigmoid(rejected_scores - chosen_scores).mean()

    assert "worse-preferred" not in found_in(compute, model=models)
    by_name = pair_loss(lambda a, b: -F.logsigmoid(b - a).mean())["worse-preferred"].evidence[-1]
    assert by_name == "The names say which one is better: chosen_scores, not rejected_scores."


def test_positive_and_negative_say_it_of_scores_and_not_of_distances():
    model, x, y = mlp(4, 16, 8), torch.randn(16, 4), torch.randn(16, 4)

    def triplet():
        anchor = model(x)
        positive_distance, negative_distance = (anchor - model(x + 0.1)).norm(dim=1), (anchor - model(y)).norm(dim=1)
        return (positive_distance - negative_distance + 5).clamp(min=0).mean()

    def contrast():
        anchor = model(x)
        positive_sim, negative_sim = (anchor * model(x + 0.1)).sum(1), (anchor * model(y)).sum(1)
        return -F.logsigmoid(negative_sim - positive_sim).mean()

    assert "worse-preferred" not in found_in(triplet, model=model)
    assert "worse-preferred" in found_in(contrast, model=model)


# -- policies ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("choose", "sign", "found"),
    [(torch.max, -1, True), (torch.min, 1, True), (torch.min, -1, False), (torch.max, 1, False)],
)
def test_the_limit_of_a_ratio(choose, sign, found):
    model, states, actions = mlp(4, 16, 3), torch.randn(32, 4), torch.randint(0, 3, (32,))
    advantages = torch.randn(32)

    def compute():
        log = Categorical(logits=model(states)).log_prob(actions)
        ratio = (log - log.detach() + 0.5 * torch.randn(32)).exp()
        weighed = advantages * -sign  # of gains where the result is subtracted, of losses where it is added
        return sign * choose(ratio * weighed, ratio.clamp(0.8, 1.2) * weighed).mean()

    assert ("limit-without-effect" in found_in(compute, model=model)) == found


@pytest.mark.parametrize(("sign", "found"), [(-0.1, True), (0.1, False)])
@pytest.mark.parametrize("exact", [False, True])
def test_a_divergence_from_the_reference(sign, found, exact):
    policy, reference = mlp(4, 16, 3), mlp(4, 16, 3).requires_grad_(False)
    states, actions, rewards = torch.randn(32, 4), torch.randint(0, 3, (32,)), torch.randn(32)

    def compute():
        new, old = Categorical(logits=policy(states)), Categorical(logits=reference(states))
        log = new.log_prob(actions)
        divergence = kl_divergence(new, old).mean() if exact else (log - old.log_prob(actions)).mean()
        return -(log * rewards).mean() + sign * divergence

    assert ("reference-left" in found_in(compute, policy=policy, reference=reference)) == found


@pytest.mark.parametrize(
    ("delta", "found"),
    [(lambda guess, outcome: guess - outcome, True), (lambda guess, outcome: outcome - guess, False)],
)
def test_an_advantage_is_known_by_what_its_value_is_compared_with(delta, found):
    actor, critic = mlp(4, 16, 3), mlp(4, 16, 1)
    states, actions, outcome = torch.randn(32, 4), torch.randint(0, 3, (32,)), torch.randn(32)

    def compute():
        guess = critic(states).squeeze(1)
        log = Categorical(logits=actor(states)).log_prob(actions)
        return -(log * delta(guess.detach(), outcome)).mean() + F.mse_loss(guess, outcome)

    found_here = found_in(compute, actor=actor, critic=critic).get("loss-ascends")
    assert (found_here is not None) == found
    assert found_here is None or "actions with a high outcome less likely" in found_here.sentence


@pytest.mark.parametrize(
    ("loss", "found"),
    [
        (lambda log, q, gain: (0.1 * log - q).mean(), True),
        (lambda log, q, gain: (-(log * gain) - 0.01 * q).mean(), False),
    ],
)
def test_a_sample_whose_log_probability_weighs_all_alike(loss, found):
    actor, critic, states = mlp(3, 16, 2), mlp(4, 16, 1), torch.randn(32, 3)

    def compute():
        mean, log_std = actor(states).chunk(2, 1)
        policy = Normal(mean, log_std.exp())
        action = policy.sample()
        return loss(policy.log_prob(action), critic(torch.cat([states, action], 1)), -(action**2))

    assert ("loss-part-without-gradient" in found_in(compute, actor=actor, critic=critic)) == found


@pytest.mark.parametrize(
    ("target", "found"),
    [
        (lambda value, x, r: r + 0.9 * value(x), True),
        (lambda value, x, r: r + 0.9 * (1 - (r > 0).float()) * value(x), True),
        (lambda value, x, r: r + 0.9 * value(x).detach(), False),
        (lambda value, x, r: r + 1e-3 * value(x), False),
        (lambda value, x, r: r.mean() + value(x), False),
    ],
)
def test_a_target_with_a_share_of_the_own_value(target, found):
    value, states, later, rewards = mlp(4, 16, 1), torch.randn(32, 4), torch.randn(32, 4), torch.randn(32, 1)
    found_here = found_in(lambda: F.mse_loss(value(states), target(value, later, rewards)), value=value)
    assert ("trained-target" in found_here) == found


# -- twice, or without ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("turn", "found"),
    [
        (lambda p: p.softmax(-1), True),
        (lambda p: (p / 0.1).softmax(-1), False),
        (lambda p: p / p.sum(-1, keepdim=True), False),
        (lambda p: p.log().softmax(-1), False),
    ],
)
def test_a_softmax_of_a_softmax(turn, found):
    model, x = mlp(4, 16, 3), torch.randn(32, 4)

    def compute():
        return -turn(model(x).softmax(-1))[:, 0].log().mean()

    assert ("softmax-twice" in found_in(compute, model=model)) == found


@pytest.mark.parametrize(
    ("code", "found"),
    [
        (lambda mean, log: mean, True),
        (lambda mean, log: mean + 0 * mean, False),  # something else than the mean is decoded
        (lambda mean, log: mean + (0.5 * log).exp() * torch.randn_like(mean), False),
    ],
)
@pytest.mark.parametrize("axis", [0, 1])
def test_a_code_without_noise(code, found, axis):
    encoder, decoder, x = mlp(8, 16, 8), mlp(4, 16, 8), torch.randn(32, 8)

    def compute():
        mean, log = encoder(x).chunk(2, 1)
        divergence = 0.5 * (log.exp() + mean.square() - 1 - log).sum(1).mean()
        if axis:
            divergence = -0.5 * (1 + log - mean**2 - log.exp()).mean()
        return F.mse_loss(decoder(code(mean, log)), x) + divergence

    assert ("noise-forgotten" in found_in(compute, encoder=encoder, decoder=decoder)) == found


@pytest.mark.parametrize("found", [True, False])
def test_two_critics_that_are_one(found):
    one, other, x = mlp(4, 16, 1), mlp(4, 16, 1), torch.randn(32, 4)

    def compute():
        with torch.no_grad():
            target = torch.min(one(x + 1), (one if found else other)(x + 1))
        return F.mse_loss(one(x), target) + F.mse_loss(other(x), target)

    assert ("compared-with-itself" in found_in(compute, one=one, other=other)) == found


# -- prepared in vain -------------------------------------------------------------------------------------------------


def in_vain(compute, steps=6, **models):
    optimizer = torch.optim.SGD([each for model in models.values() for each in model.parameters()], lr=1e-3)
    with chainrule.watch(models.values(), namespace=models) as watch:
        for _ in range(steps):
            optimizer.zero_grad()
            compute().backward()
            optimizer.step()
    return [each for each in watch.findings if each.id == "prepared-in-vain"]


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda x: x * (torch.rand_like(x) < 0.5).float(), True),
        (lambda x: x.masked_fill(torch.rand_like(x) < 0.5, 0.0), True),
        (lambda x: x + 0.1 * torch.randn_like(x), True),
        (lambda x: x * 2, False),
        (lambda x: x.mean(1) * (x[:, 0] > 0), False),
    ],
)
def test_a_changed_input_that_nothing_takes(change, found):
    model, data = mlp(8, 16, 8), torch.randn(32, 8)

    def compute():
        changed = change(data)  # noqa: F841
        return F.mse_loss(model(data), data.flip(1))

    assert ("prepared-in-vain" in found_in(compute, model=model)) == found


@pytest.mark.parametrize("used", [True, False])
def test_the_ends_of_episodes(used):
    value, states, later = mlp(4, 16, 1), torch.randn(64, 4), torch.randn(64, 4)
    ends, gains = torch.rand(64, 1) < 0.2, torch.randn(64, 1)

    def compute():
        guess = value(states)
        rewards, dones = gains[:], ends.float()
        with torch.no_grad():
            following = value(later)
        target = rewards + 0.9 * ((1 - dones) * following if used else following)
        return F.mse_loss(guess, target)

    found = in_vain(compute, value=value)
    assert [each.severity for each in found] == ([] if used else ["warning"])
    assert used or found[0].text.startswith("Nothing takes dones")


def test_ends_that_a_bandit_does_not_need():
    value, states, gains = mlp(4, 16, 1), torch.randn(64, 4), torch.randn(64, 1)

    def compute():
        guess = value(states)
        dones = (gains > 0).float()  # noqa: F841
        return F.mse_loss(guess, gains)

    assert in_vain(compute, value=value) == []


# -- copies -----------------------------------------------------------------------------------------------------------


def copied(update, name="target", steps=60, same=True):
    """The findings of a training with a copy, which `update(slow, fast)` changes after each step."""
    fast = mlp(4, 16, 1)
    slow = (copy.deepcopy(fast) if same else mlp(4, 16, 1)).requires_grad_(False)
    optimizer, models = torch.optim.Adam(fast.parameters(), lr=1e-3), {"online": fast, name: slow}
    with chainrule.watch([fast, slow], namespace=models) as watch:
        for _ in range(steps):
            x = torch.randn(32, 4)
            loss = F.mse_loss(fast(x), x[:, :1] + 0.9 * slow(x.flip(1)))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                for one, other in zip(slow.parameters(), fast.parameters(), strict=True):
                    update(one, other)
    return [each for each in watch.findings if each.id == "average-wrong"]


def test_a_network_that_is_moved_to_its_copy():
    (found,) = copied(lambda slow, fast: fast.lerp_(slow, 0.05))
    assert (found.severity, found.where) == ("warning", "online")
    assert found.text.startswith("After each step online is moved towards target, which stands still")


def test_an_average_with_swapped_factors():
    (found,) = copied(lambda slow, fast: slow.copy_(0.05 * slow + 0.95 * fast), name="teacher")
    assert found.text.startswith("At each step teacher takes 0.9500 of online")


def test_an_average_that_never_follows():
    (found,) = copied(lambda slow, fast: None, name="ema")
    assert (found.severity, found.where) == ("warning", "ema")
    (found,) = copied(lambda slow, fast: None, name="target")
    assert found.severity == "note"


@pytest.mark.parametrize(
    ("update", "name", "same"),
    [
        (lambda slow, fast: slow.lerp_(fast, 0.05), "target", True),
        (lambda slow, fast: slow.copy_(fast), "target", True),
        (lambda slow, fast: None, "reference", True),
        (lambda slow, fast: None, "ema", False),
        (lambda slow, fast: fast.mul_(0.999), "reference", True),
    ],
)
def test_copies_that_are_healthy(update, name, same):
    assert copied(update, name, same=same) == []


def test_a_counter_that_stands_after_it_counted_is_of_an_optimizer_that_is_done():
    first, second, x = mlp(4, 8, 1), mlp(4, 8, 1), torch.randn(32, 4)
    optimizers = [torch.optim.Adam(each.parameters()) for each in (first, second)]
    with chainrule.watch([first, second]) as watch:
        for step in range(40):
            at = int(step >= 15)
            optimizers[at].zero_grad()
            F.mse_loss((first, second)[at](x), x[:, :1]).backward()
            optimizers[at].step()
    assert "step-counter-stands" not in {each.id for each in watch.findings}
