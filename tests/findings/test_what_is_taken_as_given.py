"""What a loss should take as given and trains, what it compares with itself, and gradients that are lost on purpose."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.distributions import Categorical, Normal, kl_divergence

from tests.findings.test_kinds import found_in, trained

pytestmark = pytest.mark.trains


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture
def rows():
    return torch.randn(32, 4)


def placed(found, id):
    """The title and severity of a finding; None if it was not made."""
    return (found[id].title, found[id].severity) if id in found else None


@pytest.mark.parametrize("policy", ["discrete", "continuous", "ratio", "squared"])
@pytest.mark.parametrize("detached", [False, True])
def test_an_advantage_trains_the_value(rows, policy, detached):
    actor, critic, reward = nn.Linear(4, 3), nn.Linear(4, 1), torch.randn(32)

    def loss():
        out, value = actor(rows), critic(rows)[:, 0]
        chosen = Normal(out, 1.0) if policy == "continuous" else Categorical(logits=out)
        probability = chosen.log_prob(chosen.sample())
        probability = probability.sum(1) if policy == "continuous" else probability
        probability = (probability - probability.detach()).exp() if policy == "ratio" else probability
        advantage = reward - value
        own = advantage.square().mean() if policy == "squared" else F.mse_loss(value, reward)
        if policy != "squared":
            advantage = (advantage - advantage.mean()) / advantage.std()
        return own - (probability * (advantage.detach() if detached else advantage)).mean()

    found = trained(nn.ModuleList([actor, critic]), loss)
    assert ("trained-target" in found) is not detached


def test_an_advantage_of_another_backward_pass_trains_nothing(rows):
    """The critic's own optimizer clears what the policy's loss sent."""
    actor, critic, reward = nn.Linear(4, 3), nn.Linear(4, 1), torch.randn(32)
    optimizers = [torch.optim.SGD(each.parameters(), lr=0.1) for each in (actor, critic)]

    def step():
        chosen = Categorical(logits=actor(rows))
        value = critic(rows)[:, 0]
        (-(chosen.log_prob(chosen.sample()) * (reward - value)).mean()).backward()
        optimizers[0].step()
        optimizers[1].zero_grad()
        F.mse_loss(critic(rows)[:, 0], reward).backward()
        optimizers[1].step()

    assert "trained-target" not in found_in(step, actor=actor, critic=critic)


@pytest.mark.parametrize(("target", "expected"), [("itself", True), ("detached", False), ("another", False)])
def test_a_bootstrapped_target_trains_the_network(rows, target, expected):
    model, other, action, reward = nn.Linear(4, 3), nn.Linear(4, 3), torch.randint(3, (32,)), torch.randn(32)

    def loss():
        following = (other if target == "another" else model)(rows.roll(1, 0)).max(1).values
        wanted = reward + 0.9 * (following.detach() if target == "detached" else following)
        return F.smooth_l1_loss(model(rows).gather(1, action[:, None])[:, 0], wanted)

    assert ("trained-target" in trained(model, loss)) is expected


@pytest.mark.parametrize(
    ("kept_apart", "expected"), [("", True), ("stop", False), ("negatives", False), ("data", False)]
)
def test_two_towers_that_nothing_holds_apart(rows, kept_apart, expected):
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8))

    def loss():
        a, b = model(rows), model(rows + 0.1 * torch.randn_like(rows))
        if kept_apart == "negatives":
            return F.cosine_similarity(a, b.roll(1, 0)).mean() - F.cosine_similarity(a, b).mean()
        alike = -F.cosine_similarity(a, b.detach() if kept_apart == "stop" else b).mean()
        return alike + F.mse_loss(a[:, :4], rows) if kept_apart == "data" else alike

    assert ("trained-target" in trained(model, loss)) is expected


@pytest.mark.parametrize("views", [1, 2])
def test_each_row_is_to_find_itself(rows, views):
    model = nn.Linear(4, 8)

    def loss():
        a, b = (F.normalize(model(rows + 0.1 * torch.randn_like(rows)), dim=1) for _ in range(2))
        return F.cross_entropy(a @ (a if views == 1 else b).T / 0.1, torch.arange(32))

    assert ("compared-with-itself" in trained(model, loss)) is (views == 1)


def test_a_network_is_its_own_teacher(rows):
    model = nn.Linear(4, 3)

    def loss():
        with torch.no_grad():
            wanted = model(rows)
        return F.mse_loss(model(rows), wanted)

    found = trained(model, loss)
    assert placed(found, "compared-with-itself") == ("The targets are what the network predicts", "note")
    assert "compared-with-itself" not in trained(model, lambda: F.mse_loss(model(rows), rows[:, :3]))


@pytest.mark.parametrize("signs", [False, True])
def test_a_hinge_of_zeros_and_ones(rows, signs):
    model = nn.Linear(4, 1)
    labels = (rows[:, 0] > 0).float() * (2 if signs else 1) - int(signs)
    found = trained(model, lambda: torch.clamp(1 - labels * model(rows)[:, 0], min=0).mean())
    expected = None if signs else ("Targets of 0 where 1 and -1 are expected", "warning")
    assert placed(found, "targets-out-of-range") == expected


@pytest.mark.parametrize("smoothing", [0.1, 1.0])
def test_labels_that_are_smoothed_away(rows, smoothing):
    model, labels = nn.Linear(4, 3), torch.randint(3, (32,))
    found = trained(model, lambda: F.cross_entropy(model(rows), labels, label_smoothing=smoothing))
    expected = ("Labels without an effect", "warning") if smoothing == 1 else None
    assert placed(found, "unfittable-labels") == expected


@pytest.mark.parametrize("how", ["sample", "rsample", "policy"])
def test_a_sample_without_a_gradient(rows, how):
    encoder, decoder = nn.Linear(4, 4), nn.Linear(2, 4)

    def loss():
        mean, deviation = encoder(rows).chunk(2, 1)
        posterior = Normal(mean, deviation.exp())
        code = posterior.rsample() if how == "rsample" else posterior.sample()
        errors = (decoder(code) - rows).square().sum(1)
        if how == "policy":  # the score function
            return (errors + posterior.log_prob(code).sum(1) * errors.detach()).mean()
        return errors.mean() + 0.1 * kl_divergence(posterior, Normal(0.0, 1.0)).mean()

    found = trained(nn.ModuleList([encoder, decoder]), loss)
    expected = ("A sample without a gradient", "warning") if how == "sample" else None
    assert placed(found, "loss-part-without-gradient") == expected


@pytest.mark.parametrize("bent", [nn.ReLU, nn.Tanh])
def test_a_second_derivative_that_is_zero(bent):
    model = nn.Sequential(nn.Linear(1, 8), bent(), nn.Linear(8, 1))

    def loss():
        x = torch.rand(16, 1, requires_grad=True)
        (first,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), x, create_graph=True)
        return (second + x.detach()).square().mean() + model(torch.zeros(1, 1)).square().mean()

    expected = ("A second derivative is exactly 0", "note") if bent is nn.ReLU else None
    assert placed(trained(model, loss), "zero-gradient") == expected


@pytest.mark.parametrize("kept", [0, 2])
def test_a_hook_that_returns_zeros(rows, kept):
    model = nn.Linear(4, 3)
    mask = torch.zeros(3, 1)
    mask[:kept] = 1
    model.weight.register_hook(lambda gradient: gradient * mask)
    expected = None if kept else ("A hook makes a gradient 0", "note")
    assert placed(trained(model, lambda: model(rows).square().mean()), "zero-gradient") == expected


@pytest.mark.parametrize("units", ["pixels", "shares"])
def test_a_grid_outside_of_its_input(units):
    shift, picture = nn.Parameter(torch.zeros(1, 8, 8, 2)), torch.rand(1, 1, 8, 8)
    places = torch.stack(torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="xy"), -1)
    grid = places + 9 if units == "pixels" else places / 4 - 0.9
    model = nn.ParameterList([shift])
    sampled = lambda: F.grid_sample(picture, grid + shift, align_corners=False)  # noqa: E731
    found = trained(model, lambda: (sampled() - picture).square().mean())
    said = found["zero-gradient"].sentence if "zero-gradient" in found else ""
    assert said.endswith("grid_sample stops it.") is (units == "pixels")


@pytest.mark.parametrize("cleared", [False, True])
def test_micro_batches_that_are_cleared(rows, cleared):
    model, labels = nn.Linear(4, 3), torch.randint(3, (32,))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def step():
        for part, wanted in zip(rows.split(8), labels.split(8), strict=True):
            if cleared:
                optimizer.zero_grad()
            (F.cross_entropy(model(part), wanted) / 4).backward()
        optimizer.step()

    expected = ("Gradients of micro-batches are cleared", "warning") if cleared else None
    assert placed(found_in(step, model=model), "gradient-changed") == expected


@pytest.mark.parametrize("share", [0.5, 0.95])
def test_a_dropout_of_nearly_everything(rows, share):
    model = nn.Sequential(nn.Linear(4, 64), nn.Dropout(share), nn.Linear(64, 1))
    assert ("dropout-rate" in trained(model, lambda: model(rows).square().mean())) is (share > 0.9)
    of_data = nn.Sequential(nn.Dropout(share), nn.Linear(4, 1))
    assert "dropout-rate" not in trained(of_data, lambda: of_data(rows).square().mean())


@pytest.mark.parametrize(("shifted", "causal", "expected"), [(0, True, True), (1, True, False), (0, False, False)])
def test_a_language_model_that_is_to_predict_what_it_sees(shifted, causal, expected):
    embed, out = nn.Embedding(20, 8), nn.Linear(8, 20)
    rnn = nn.GRU(8, 8 if causal else 4, batch_first=True, bidirectional=not causal)
    text = torch.randint(20, (4, 13))
    inputs, targets = text[:, :12].clone(), text[:, shifted : 12 + shifted].clone()
    model = nn.ModuleList([embed, rnn, out])
    found = trained(model, lambda: F.cross_entropy(out(rnn(embed(inputs))[0]).flatten(0, 1), targets.flatten()))
    titles = [found["sees-the-future"].title] if "sees-the-future" in found else []
    assert ("A position is to predict the token that it sees" in titles) is expected


def test_terms_of_a_loss_that_are_off_while_others_teach(rows):
    """A margin loss: a term that has reached its margin for every sample."""
    model = nn.Linear(4, 3)

    def loss():
        size = model(rows).square()
        return (F.relu(1 - size) + F.relu(size - 100)).mean()

    found = trained(model, loss)
    assert "unit-off" not in found or found["unit-off"].severity == "note"


def test_a_task_that_waits_for_its_turn_is_a_note_in_one_step(rows):
    model = nn.ModuleDict({"now": nn.Linear(4, 1), "then": nn.Linear(4, 1)})
    finding = trained(model, lambda: model["now"](rows).square().mean())["no-gradient"]
    assert (finding.severity, finding.title) == ("note", "A parameter is not used")
