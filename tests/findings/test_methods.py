"""Kinds of one method: policies, two players, codes with noise, decoders, tokens; and what is healthy."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.distributions import Categorical, Normal

import chainrule


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def found_in(compute, *models, **names):
    """The findings of a step, by id, of which only statistics were kept."""
    with chainrule.record({"model": nn.ModuleList(models), **names}, keep="statistics") as recording:
        compute().backward()
    return {each.id: each for each in recording.findings()}


def mlp(*widths):
    layers = [each for pair in pairwise(widths) for each in (nn.Linear(*pair), nn.Tanh())]
    return nn.Sequential(*layers[:-1])


# -- policies ---------------------------------------------------------------------------------------------------------


def policy_loss(rule):
    """The findings of a step of a policy of three actions; `rule(distribution, log_prob, reward, old)` is its loss."""
    model, states = mlp(4, 16, 3), torch.randn(32, 4)

    def compute():
        policy = Categorical(logits=model(states))
        action = policy.sample()
        reward = (action == 0).float()
        chosen = policy.log_prob(action)
        return rule(policy, chosen, reward, chosen.detach() - 0.1)

    return found_in(compute, model)


def ratio(chosen, old, reward, sign=1):
    advantage = reward - reward.mean()
    r = (sign * (chosen - old)).exp()
    return -torch.min(r * advantage, r.clamp(0.8, 1.2) * advantage).mean()


WRONG_SIGN = {
    "REINFORCE": lambda policy, chosen, reward, old: (chosen * reward).mean(),
    "minus twice": lambda policy, chosen, reward, old: -(-chosen * reward).sum(),
    "PPO, the ratio upside down": lambda policy, chosen, reward, old: ratio(chosen, old, reward, -1),
    "minus rewards": lambda policy, chosen, reward, old: -(chosen * -reward).mean(),
}
RIGHT_SIGN = {
    "REINFORCE": lambda policy, chosen, reward, old: -(chosen * reward).mean(),
    "a list of losses": lambda policy, chosen, reward, old: torch.stack([-each * 2.0 for each in chosen]).sum(),
    "PPO": lambda policy, chosen, reward, old: ratio(chosen, old, reward),
    "a cost": lambda policy, chosen, reward, old: cost_of(chosen, 1 - reward),
    "less than a baseline": lambda policy, chosen, reward, old: (chosen * (0.5 - reward)).mean(),
}


def cost_of(chosen, cost):
    return (chosen * cost).mean()


@pytest.mark.parametrize("name", WRONG_SIGN)
def test_a_policy_that_avoids_what_is_rewarded(name):
    finding = policy_loss(WRONG_SIGN[name])["loss-ascends"]
    assert finding.title == "The loss of a policy has the wrong sign"
    assert "less likely" in finding.sentence


@pytest.mark.parametrize("name", RIGHT_SIGN)
def test_a_policy_that_seeks_what_is_rewarded(name):
    assert "loss-ascends" not in policy_loss(RIGHT_SIGN[name])


def with_entropy(weight):
    return lambda policy, chosen, reward, old: -(chosen * reward).mean() + weight * policy.entropy().mean()


def test_the_sign_of_an_entropy_bonus():
    finding = policy_loss(with_entropy(0.01))["loss-ascends"]
    assert "the entropy of the policy smaller" in finding.sentence
    assert "loss-ascends" not in policy_loss(with_entropy(-0.01))
    # An entropy that is made smaller where no action is weighed, as in test-time adaptation.
    assert "loss-ascends" not in policy_loss(lambda policy, *_: policy.entropy().mean())


@pytest.mark.parametrize("sign", [1, -1])
def test_the_sign_of_a_normal_policys_entropy(sign):
    model, states = mlp(4, 16, 2), torch.randn(32, 4)

    def compute():
        mean, log = model(states).chunk(2, 1)
        policy = Normal(mean, log.exp())
        action = policy.sample()
        reward = -action.square()
        return -(policy.log_prob(action) * reward).mean() + sign * 0.01 * policy.entropy().mean()

    assert ("loss-ascends" in found_in(compute, model)) == (sign > 0)


def test_one_credit_for_all_actions():
    def normalised(reward):
        return (reward - reward.mean()) / (reward.std() + 1e-5)

    finding = policy_loss(lambda policy, chosen, reward, old: -(chosen.mean() * reward).sum())["credit-lost"]
    assert "one mean for 32 actions" in finding.sentence
    found = policy_loss(lambda policy, chosen, reward, old: -((chosen - old).exp() * normalised(reward).mean()).mean())
    assert "one mean that is nearly 0" in found["credit-lost"].sentence
    for right in (
        lambda policy, chosen, reward, old: -(chosen * normalised(reward)).mean(),
        lambda policy, chosen, reward, old: -(chosen * reward.sum()).mean(),  # the return of an episode
        lambda policy, chosen, reward, old: -(chosen.sum() * reward.sum()),
    ):
        assert "credit-lost" not in policy_loss(right)


def test_probabilities_in_the_place_of_logits():
    model, x = mlp(4, 16, 3), torch.randn(32, 4)

    def of(change, draw):
        return found_in(lambda: draw(change(model(x))), model)

    def chosen(logits):
        return -Categorical(logits=logits).log_prob(torch.zeros(32)).mean()

    def relaxed(logits):
        return F.gumbel_softmax(logits).square().sum()

    softmax = nn.Softmax(-1)
    for draw in (chosen, relaxed):
        assert "softmax-before-cross-entropy" in of(softmax, draw)
        assert "softmax-before-cross-entropy" not in of(lambda logits: logits, draw)
        assert "softmax-before-cross-entropy" not in of(lambda logits: softmax(logits).log(), draw)


# -- two players ------------------------------------------------------------------------------------------------------


def players(judge, maker):
    """The findings of a step of a GAN; `judge(real, made)` and `maker(made)` are the losses, of scores."""
    made, scores = mlp(8, 16, 2), mlp(2, 16, 1)
    optimizers = [torch.optim.SGD(each.parameters(), lr=0.01) for each in (scores, made)]
    with chainrule.record({"made": made, "scores": scores}, keep="statistics") as recording:
        judge(scores(torch.randn(16, 2) + 3), scores(made(torch.randn(16, 8)).detach())).backward()
        optimizers[0].step()
        maker(scores(made(torch.randn(16, 8)))).backward()
        optimizers[1].step()
    return {each.id: each for each in recording.findings()}


def crossed(scores, label):
    return F.binary_cross_entropy_with_logits(scores, torch.full_like(scores, label))


def wasserstein(real, made):
    return made.mean() - real.mean()


def hinge(real, made):
    return F.relu(2 - real).mean() + F.relu(2 + made).mean()


JUDGES = {"wasserstein": wasserstein, "hinge": hinge,
          "labels": lambda real, made: crossed(real, 1.0) + crossed(made, 0.0)}  # fmt: skip


@pytest.mark.parametrize("name", JUDGES)
def test_a_maker_that_wants_what_the_discriminator_wants(name):
    for wrong in (lambda made: made.mean(), lambda made: crossed(made, 0.0)):
        assert "the scores of made samples, smaller" in players(JUDGES[name], wrong)["players-agree"].sentence
    for right in (lambda made: -made.mean(), lambda made: crossed(made, 1.0), lambda made: -crossed(made, 0.0)):
        assert "players-agree" not in players(JUDGES[name], right)


def penalised(norm):
    scores, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(144, 1)), torch.randn(8, 3, 8, 8)

    def compute():
        mixed = x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(scores(mixed).sum(), mixed, create_graph=True)
        return ((norm(slope) - 1) ** 2).mean()

    return found_in(compute, scores)


def test_a_gradient_penalty_of_a_part():
    assert "several for each sample" in penalised(lambda slope: slope.norm(2, dim=1))["penalty-per-part"].sentence
    assert "one for the whole batch" in penalised(lambda slope: slope.norm())["penalty-per-part"].sentence
    assert "penalty-per-part" not in penalised(lambda slope: slope.flatten(1).norm(2, dim=1))
    assert "penalty-per-part" not in penalised(lambda slope: slope.norm(2, dim=(1, 2, 3)))


def test_slopes_of_many_points():
    field, points = mlp(3, 16, 1), torch.randn(4, 10, 3)

    def compute():
        given = points.clone().requires_grad_()
        (slope,) = torch.autograd.grad(field(given).sum(), given, create_graph=True)
        return ((slope.norm(dim=-1) - 1) ** 2).mean()

    assert "penalty-per-part" not in found_in(compute, field)


# -- weights of losses ------------------------------------------------------------------------------------------------


def two_tasks(total):
    body, one, other = mlp(8, 16, 4), nn.Linear(4, 3), nn.Linear(4, 1)
    weights = nn.ParameterList([nn.Parameter(torch.ones(2))])
    x, y, z = torch.randn(16, 8), torch.randint(0, 3, (16,)), torch.randn(16, 1)

    def compute():
        h = body(x)
        return total(weights[0], F.cross_entropy(one(h), y), F.mse_loss(other(h), z))

    return found_in(compute, body, one, other, weights)


def test_weights_of_losses_that_nothing_holds():
    for wrong in (
        lambda w, one, other: w[0] * one + w[1] * other,
        lambda w, one, other: torch.exp(-w[0]) * one + torch.exp(-w[1]) * other,
    ):
        assert "nothing holds it" in two_tasks(wrong)["loss-weight-unheld"].sentence
    for right in (
        lambda w, one, other: torch.exp(-w[0]) * one + torch.exp(-w[1]) * other + w.sum(),
        lambda w, one, other: w[0] * one + w[1] * other - w.log().sum(),
        lambda w, one, other: one + 0.5 * other,
        lambda w, one, other: w.detach()[0] * one + w.detach()[1] * other,
    ):
        assert "loss-weight-unheld" not in two_tasks(right)


# -- noise ------------------------------------------------------------------------------------------------------------


def coded(draw, divergence):
    encoder, decoder, x = mlp(8, 16, 8), mlp(4, 16, 8), torch.randn(16, 8)

    def compute():
        mean, log = encoder(x).chunk(2, 1)
        code = mean + torch.randn_like(mean) * draw(log)
        return F.mse_loss(decoder(code), x, reduction="sum") + divergence(mean, log)

    return found_in(compute, encoder, decoder)


def of_variance(mean, log):
    return -0.5 * torch.sum(1 + log - mean.pow(2) - log.exp())


def of_deviation(mean, log):
    return -torch.sum(0.5 + log - 0.5 * mean**2 - 0.5 * torch.exp(2 * log))


def test_the_variance_in_the_place_of_the_deviation():
    assert "exp of log" in coded(torch.exp, of_variance)["noise-scale"].sentence
    assert "the logarithm log" in coded(lambda log: log, of_variance)["noise-scale"].sentence
    assert "noise-scale" not in coded(lambda log: (0.5 * log).exp(), of_variance)
    assert "noise-scale" not in coded(torch.exp, of_deviation)
    assert "noise-scale" not in coded(torch.exp, lambda mean, log: (log.exp().square() + mean**2 - 2 * log).sum())


def test_noise_that_nothing_holds():
    def of(weight):
        return coded(lambda log: (0.5 * log).exp(), lambda mean, log: weight * of_variance(mean, log))

    assert of(0.0)["noise-unheld"].severity == "note"
    assert "noise-unheld" in coded(lambda log: (0.5 * log).exp(), lambda mean, log: 0 * mean.sum())
    assert "noise-unheld" not in of(0.01)
    # A divergence between drawn codes and noise holds the deviation too.
    encoder, decoder, x = mlp(8, 16, 8), mlp(4, 16, 8), torch.randn(16, 8)

    def compute():
        mean, log = encoder(x).chunk(2, 1)
        code = mean + torch.randn_like(mean) * log.exp()
        return F.mse_loss(decoder(code), x) + torch.cdist(code, torch.randn(16, 4)).mean()

    assert "noise-unheld" not in found_in(compute, encoder, decoder)


def diffused(mix):
    model, x = mlp(5, 16, 4), torch.randn(16, 4)

    def compute():
        kept, noise = torch.linspace(0.05, 0.95, 16)[:, None], torch.randn(16, 4)
        return F.mse_loss(model(torch.cat([mix(kept, x, noise), kept], 1)), noise)

    return found_in(compute, model, x=x)


def test_a_root_that_is_missing():
    wrong = diffused(lambda kept, x, noise: kept.sqrt() * x + (1 - kept) * noise)["noise-scale"]
    assert "the root of the second is missing" in wrong.sentence
    wrong = diffused(lambda kept, x, noise: kept * x + (1 - kept).sqrt() * noise)["noise-scale"]
    assert "the root of the first is missing" in wrong.sentence
    for right in (
        lambda kept, x, noise: kept.sqrt() * x + (1 - kept).sqrt() * noise,
        lambda kept, x, noise: kept * x + (1 - kept) * noise,
        lambda kept, x, noise: x + 3 * kept * noise,
    ):
        assert "noise-scale" not in diffused(right)


# -- recurrent layers -------------------------------------------------------------------------------------------------


class Decoder(nn.Module):
    def __init__(self, kind, carries):
        super().__init__()
        self.emb, self.out, self.carries = nn.Embedding(12, 8), nn.Linear(8, 12), carries
        self.encoder, self.cell = nn.GRU(8, 8, batch_first=True), kind in (nn.GRUCell, nn.LSTMCell)
        self.decoder = kind(8, 8) if self.cell else kind(8, 8, batch_first=True)

    def forward(self, x):
        _, hidden = self.encoder(self.emb(x))
        state, logits = hidden[0] if self.cell else hidden, []
        for token in x.unbind(1):
            given = self.emb(token) if self.cell else self.emb(token)[:, None]
            if self.cell:
                output = new = self.decoder(given, state)
            else:
                output, new = self.decoder(given, state)
            state = new if self.carries else state
            logits.append(self.out(output.reshape(-1, 8)))
        return torch.stack(logits, 1)


@pytest.mark.parametrize("kind", [nn.GRU, nn.GRUCell, nn.RNN])
def test_a_decoder_that_forgets_its_state(kind):
    x = torch.randint(1, 12, (4, 6))
    for carries in (True, False):
        model = Decoder(kind, carries)
        found = found_in(lambda model=model: F.cross_entropy(model(x).flatten(0, 1), x.flatten()), model)
        assert ("state-not-carried" in found) != carries


def directions(read, both=True):
    layer, head = nn.LSTM(8, 4, batch_first=True, bidirectional=both), nn.Linear(8 if both else 4, 3)
    x, y = torch.randn(6, 5, 8), torch.randint(0, 3, (6,))
    return found_in(lambda: F.cross_entropy(head(read(*layer(x))), y), layer, head)


def test_a_direction_that_has_read_one_token():
    assert "backward direction has read one" in directions(lambda o, s: o[:, -1])["direction-unread"].sentence
    assert "forward direction has read one" in directions(lambda o, s: o[:, 0])["direction-unread"].sentence
    for right in (
        lambda o, s: torch.cat([s[0][-2], s[0][-1]], 1),
        lambda o, s: torch.cat([o[:, -1, :4], o[:, 0, 4:]], 1),
        lambda o, s: o.mean(1),
    ):
        assert "direction-unread" not in directions(right)
    assert "direction-unread" not in directions(lambda o, s: o[:, -1], both=False)


# -- tokens -----------------------------------------------------------------------------------------------------------

HIDDEN = torch.triu(torch.ones(6, 6), 1)


def attended(weigh):
    query, key, value = (nn.Linear(8, 8) for _ in range(3))
    x = torch.randn(4, 6, 8)
    kept = 1 - HIDDEN

    def compute():
        scores = query(x) @ key(x).transpose(1, 2) / 8**0.5
        return (weigh(scores, kept) @ value(x)).square().mean()

    return found_in(compute, query, key, value)


def test_a_mask_after_the_softmax():
    causal = HIDDEN.bool()
    assert "mask-after-softmax" in attended(lambda s, kept: s.softmax(-1) * kept)
    assert "mask-after-softmax" in attended(lambda s, kept: F.dropout(s.softmax(-1) * kept, 0.1))
    for right in (
        lambda s, kept: s.masked_fill(causal, -1e9).softmax(-1),
        lambda s, kept: s.masked_fill(causal, -1e9).softmax(-1) * kept,
        lambda s, kept: (s.softmax(-1) * kept) / (s.softmax(-1) * kept).sum(-1, keepdim=True),
        lambda s, kept: s.softmax(-1) * (torch.rand(6, 6) > 0.1).float(),
    ):
        assert "mask-after-softmax" not in attended(right)


class Placed(nn.Module):
    def __init__(self, take):
        super().__init__()
        self.emb, self.take, self.out = nn.Embedding(12, 8), take, nn.Linear(8, 12)
        self.register_buffer("table", torch.randn(20, 8))

    def forward(self, x):
        return self.out(self.emb(x) + self.take(self.table, x.shape[1]))


def test_one_position_for_all():
    x = torch.randint(0, 12, (4, 6))

    def of(take):
        model = Placed(take)
        return found_in(lambda: F.cross_entropy(model(x).flatten(0, 1), x.flatten()), model)

    assert "Row 6 of the 20" in of(lambda table, length: table[length])["one-position"].sentence
    assert "Row 5 of the 20" in of(lambda table, length: table[None][:, length - 1])["one-position"].sentence
    for right in (lambda table, n: table[:n], lambda table, n: table[None, :n], lambda table, n: table[0]):
        assert "one-position" not in of(right)


class Pooled(nn.Module):
    def __init__(self, pool):
        super().__init__()
        self.emb, self.mix, self.out, self.pool = nn.Embedding(30, 8), mlp(8, 8, 8), nn.Linear(8, 3), pool

    def forward(self, ids):
        return self.out(self.pool(self.mix(self.emb(ids)), (ids != 0).float()[:, :, None]))


def pooled(pool, shortest=3):
    lengths = torch.randint(shortest, 13, (16,))
    ids = torch.randint(1, 30, (16, 12)) * (torch.arange(12) < lengths[:, None])
    model, y = Pooled(pool), torch.randint(0, 3, (16,))
    return found_in(lambda: F.cross_entropy(model(ids), y), model, ids=ids)


def test_a_mean_over_padding():
    def of_tokens(h, mask):
        return (h * mask).sum(1) / mask.sum(1)

    def of_all(h, mask):
        return (h * mask).sum(1) / mask.sum()

    assert "counts padding, token 0" in pooled(lambda h, mask: h.mean(1))["padding-in-mean"].sentence
    assert "the tokens of all samples" in pooled(of_all)["samples-mix"].sentence
    assert "samples-mix" in pooled(lambda h, mask: (h * mask).sum(1) / mask.sum().clamp(min=1))
    found = pooled(of_tokens)
    assert not {"padding-in-mean", "samples-mix"} & set(found)
    assert "padding-in-mean" not in pooled(lambda h, mask: (h * mask).mean(1))
    assert "padding-in-mean" not in pooled(lambda h, mask: h.mean(1), shortest=11)


def test_vectors_that_are_normalised_along_another_axis():
    one, other, x = nn.Linear(8, 8), nn.Linear(8, 8), torch.randn(4, 6, 8)

    def of(unit):
        def compute():
            scores = unit(one(x)) @ unit(other(x)).transpose(1, 2) / 0.1
            return F.cross_entropy(scores.flatten(0, 1), torch.arange(6).repeat(4))

        return found_in(compute, one, other)

    assert "cosine-axis" in of(F.normalize)
    assert "cosine-axis" in of(lambda z: z / z.norm(dim=0, keepdim=True))
    assert "cosine-axis" not in of(lambda z: F.normalize(z, dim=-1))
    assert "cosine-axis" not in of(lambda z: z / z.norm())

    def correlated():  # features of two views, over the samples
        a, b = F.normalize(one(x[:, 0]), dim=0), F.normalize(other(x[:, 1]), dim=0)
        return (a.T @ b).square().sum()

    assert "cosine-axis" not in found_in(correlated, one, other)


# -- rows -------------------------------------------------------------------------------------------------------------


def test_rows_that_are_sorted_without_their_targets():
    model, x, y = mlp(8, 16, 3), torch.randn(16, 8), torch.randint(0, 3, (16,))

    def of(predict):
        lengths = torch.randint(1, 9, (16,))
        return found_in(lambda: F.cross_entropy(*predict(lengths.argsort(), lengths)), model, x=x, y=y)

    assert "sorted by" in of(lambda order, lengths: (model(x[order]), y))["targets-of-others"].sentence
    sorts = of(lambda order, lengths: (model(x.index_select(0, lengths.sort()[1])), y))
    assert "targets-of-others" in sorts
    for right in (
        lambda order, lengths: (model(x[order]), y[order]),
        lambda order, lengths: (model(x[order])[order.argsort()], y),
        lambda order, lengths: (model(x + x[torch.randperm(16)]), y),
    ):
        assert "targets-of-others" not in of(right)


def test_a_row_among_its_own_negatives():
    model, x = mlp(8, 16, 4), torch.randn(16, 8)
    target = torch.arange(16).roll(8)

    def of(scores):
        def compute():
            z = F.normalize(model(x), dim=1)
            return F.cross_entropy(scores(z), target)

        return found_in(compute, model, target=target)

    finding = of(lambda z: z @ z.T / 0.1)["compared-with-itself"]
    assert finding.title == "A row is among its own negatives"
    assert "compared-with-itself" in of(lambda z: 5 * torch.mm(z, z.t()))
    assert "compared-with-itself" not in of(lambda z: (z @ z.T / 0.1).masked_fill(torch.eye(16).bool(), -1e9))
    assert "compared-with-itself" not in of(lambda z: z @ z.T / 0.1 - 1e9 * torch.eye(16))
    assert "compared-with-itself" not in of(lambda z: z @ z.roll(1, 0).T)
