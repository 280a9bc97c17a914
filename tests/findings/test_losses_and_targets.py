"""Kinds about losses, targets and batches: what docs/findings.md says of each, and the healthy twin beside it."""

import math
from itertools import count

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.bed.loops import watched
from tests.bed.loops.shared import batches, mlp
from tests.findings.test_kinds import found_in, trained

pytestmark = pytest.mark.trains


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def of_classes(loss, outputs=10, width=64, **options):
    """What is found in one backward pass of a loss between the outputs of a linear layer and classes."""
    layer, x, y = nn.Linear(width, outputs), torch.randn(16, width), torch.randint(outputs, (16,))
    return found_in(lambda: loss(layer(x), y).backward(), layer=layer, **options)


def in_run(id, loss, data=None, model=None, optimizer=None, steps=12, **options):
    """What a watched run finds of a kind."""
    model = model or nn.Linear(64, 10)
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.01)

    def script():
        yield model
        for x, y in data or batches():
            optimizer.zero_grad()
            loss(model(x), y).backward()
            optimizer.step()
            yield

    return [found for found in watched(script, steps, **options).findings if found.id == id]


# -- the sign ----------------------------------------------------------------------------------------------------------


def likelihood(output, y):
    return output.log_softmax(1).gather(1, y.unsqueeze(1))


def binary(output, y):
    p, y = output.sigmoid(), F.one_hot(y, 10).float()
    return y * p.log() + (1 - y) * (1 - p).log()


RIGHT = {
    "function": F.cross_entropy,
    "picked": lambda output, y: -likelihood(output, y).mean(),
    "by index": lambda output, y: -output.log_softmax(1)[torch.arange(len(y)), y].mean(),
    "by a product": lambda output, y: -(F.one_hot(y, 10) * output.log_softmax(1)).sum(1).mean(),
    "binary": lambda output, y: -binary(output, y).mean(),
    "of a distribution": lambda output, y: -torch.distributions.Categorical(logits=output).log_prob(y).mean(),
    "probability": lambda output, y: -output.softmax(1).gather(1, y.unsqueeze(1)).mean(),
    "squares": lambda output, y: ((output - F.one_hot(y, 10)) ** 2).mean(),
}


@pytest.mark.parametrize("name", RIGHT)
def test_a_loss_with_the_wrong_sign(name):
    assert "loss-ascends" not in of_classes(RIGHT[name])
    found = of_classes(lambda output, y: -RIGHT[name](output, y))["loss-ascends"]
    assert found.severity == "warning"
    assert found.place is not None


def test_the_place_is_where_the_sign_is_turned():
    def upside_down(output, y):
        loss = F.cross_entropy(output, y)
        return 0.5 * (1 - loss)

    found = of_classes(upside_down)["loss-ascends"]
    assert found.place.line > upside_down.__code__.co_firstlineno + 1


def test_a_policy_with_returns_below_zero_ascends_no_likelihood():
    returns = -torch.arange(1.0, 17.0)
    assert "loss-ascends" not in of_classes(lambda output, y: -(likelihood(output, y).squeeze(1) * returns).mean())
    weighted = of_classes(lambda output, y: (F.cross_entropy(output, y, reduction="none") * returns).mean())
    assert "loss-ascends" not in weighted


def test_one_comparison_that_is_made_smaller_is_enough():
    def confused(output, y):
        return F.cross_entropy(output, y) - 0.1 * F.cross_entropy(output[:, :2], y % 2)

    assert "loss-ascends" not in of_classes(confused)


def test_an_adversary_may_make_the_loss_of_the_other_larger():
    player, judge, x, y = nn.Linear(8, 8), nn.Linear(8, 2), torch.randn(16, 8), torch.randint(2, (16,))
    optimizer = torch.optim.SGD(player.parameters(), lr=0.1)

    def step():
        (-F.cross_entropy(judge(player(x)), y)).backward()
        optimizer.step()

    assert "loss-ascends" not in found_in(step, player=player, judge=judge)


@pytest.mark.parametrize("maximize", [False, True])
def test_an_optimizer_that_maximises(maximize):
    model, x, y = nn.Linear(8, 1), torch.randn(16, 8), torch.randn(16, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, maximize=maximize)
    assert ("loss-ascends" in trained(model, lambda: F.mse_loss(model(x), y), optimizer)) == maximize
    optimizer.zero_grad()
    assert ("loss-ascends" in trained(model, lambda: -F.mse_loss(model(x), y), optimizer)) != maximize


def test_one_optimizer_may_maximise_what_another_minimises():
    model, weight, x, y = nn.Linear(8, 1), nn.Parameter(torch.ones(16, 1)), torch.randn(16, 8), torch.randn(16, 1)
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.1), torch.optim.SGD([weight], lr=0.1, maximize=True)]
    loss = lambda: (weight * (model(x) - y) ** 2).mean()  # noqa: E731
    assert "loss-ascends" not in trained(model, loss, *optimizers)


@pytest.mark.parametrize("sign", [-1, 1])
def test_an_update_by_hand_along_the_gradient(sign):
    model, x, y = nn.Linear(8, 1), torch.randn(16, 8), torch.randn(16, 1)

    def step():
        F.mse_loss(model(x), y).backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(parameter.grad, alpha=0.1 * sign)

    assert ("loss-ascends" in found_in(step, model=model)) == (sign > 0)


# -- summands ----------------------------------------------------------------------------------------------------------

SIZES = {
    "squares": lambda w, b: w.pow(2).sum(),
    "products": lambda w, b: (w * w).sum() + (b * b).sum(),
    "sizes": lambda w, b: w.abs().sum(),
    "norm": lambda w, b: 4 * w.norm(),
    "norm of sizes": lambda w, b: w.norm(1),
    "joined": lambda w, b: torch.cat([w.flatten(), b]).square().sum(),
}


@pytest.mark.parametrize("name", SIZES)
def test_a_penalty_whose_gradient_drowns_that_of_the_loss(name):
    model, x, y = nn.Linear(64, 10), torch.randn(16, 64), torch.randint(10, (16,))

    def found(coefficient):
        def step():
            (F.cross_entropy(model(x), y) + coefficient * SIZES[name](model.weight, model.bias)).backward()

        model.zero_grad()
        return found_in(step, keep="statistics", model=model)

    assert found(10.0)["penalty-dominates"].severity == "warning"
    assert "penalty-dominates" not in found(1e-2)


def test_a_penalty_somewhat_larger_than_the_loss_is_a_note():
    model, x, y = nn.Linear(64, 10), torch.randn(64, 64), torch.randint(10, (64,))
    F.cross_entropy(model(x), y).backward()
    coefficient = float(model.weight.grad.norm() / model.weight.detach().norm())
    model.zero_grad()
    loss = lambda: F.cross_entropy(model(x), y) + coefficient * model.weight.square().sum()  # noqa: E731
    assert trained(model, loss)["penalty-dominates"].severity == "note"


def test_a_penalty_may_be_large_when_the_loss_is_learnt():
    model, x = nn.Linear(64, 10), torch.randn(16, 64)
    y = model(x).argmax(1)
    with torch.no_grad():
        model.weight.mul_(100)
    found = trained(model, lambda: F.cross_entropy(model(x), y) + 1e-3 * model.weight.square().sum())
    assert "penalty-dominates" not in found


@pytest.mark.parametrize(
    ("optimizer", "usual", "drowning"),
    [
        (lambda p, decay: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=decay), 5e-4, 0.1),
        (lambda p, decay: torch.optim.SGD(p, lr=1e-4, weight_decay=decay), 1e-2, 10.0),
        (lambda p, decay: torch.optim.Adam(p, lr=1e-3, weight_decay=decay), 1e-2, 10.0),
        (lambda p, decay: torch.optim.AdamW(p, lr=1e-3, weight_decay=decay), 0.3, 100.0),
    ],
)
def test_weight_decay_that_drowns_the_gradient_or_takes_a_hundredth_of_a_weight(optimizer, usual, drowning):
    model, x, y = mlp(64, 32, 10), torch.randn(16, 64), torch.randint(10, (16,))

    def found(decay):
        model.zero_grad()
        return trained(model, lambda: F.cross_entropy(model(x), y), optimizer(model.parameters(), decay))

    assert "penalty-dominates" not in found(usual)
    assert "penalty-dominates" in found(drowning)


def quietly(output):
    with torch.no_grad():
        return output.std(0).mean()


CUT = {
    "detached": lambda output: output.square().mean().detach(),
    "no_grad": quietly,
    "item": lambda output: output.std(0).mean().item(),
    "float with a coefficient": lambda output: 0.05 * float(output.detach().std(0).mean()),
    "several numbers": lambda output: 0.5 * sum(column.norm().item() for column in output.unbind(1)),
    "a tensor of a number": lambda output: torch.tensor(output.std(0).mean().item()),
    "not differentiable": lambda output: (output.argmax(1) == 3).float().mean() + 0.01,
}


@pytest.mark.parametrize("name", CUT)
def test_a_summand_without_a_gradient(name):
    found = of_classes(lambda output, y: F.cross_entropy(output, y) + CUT[name](output))
    assert found["loss-part-without-gradient"].severity == "warning"


def recentred(output, y):
    most = output.max().detach()
    return (output - most).exp().sum(1).log().mean() + most - output.gather(1, y.unsqueeze(1)).mean()


def replaced(output, y):
    loss = F.cross_entropy(output, y)
    return loss + (torch.tensor(5.0) - loss).detach()


def after_a_look(output, y):
    loss = F.cross_entropy(output, y)
    assert math.isfinite(loss.item())
    return loss + 1e-8


HELD = {
    "recentred": recentred,
    "replaced": replaced,
    "after a look": after_a_look,
    "of a distribution": lambda output, y: 1e-8 - torch.distributions.Categorical(logits=output).log_prob(y).mean(),
    "data alone": lambda output, y: F.cross_entropy(output, y) + y.float().mean(),
    "a number": lambda output, y: F.cross_entropy(output, y) + 0.1,
    "with a gradient": lambda output, y: F.cross_entropy(output, y) + output.std(0).mean(),
}


@pytest.mark.parametrize("name", HELD)
def test_a_summand_that_needs_no_gradient(name):
    assert "loss-part-without-gradient" not in of_classes(HELD[name])


# -- softmaxes ---------------------------------------------------------------------------------------------------------

OVER_SAMPLES = {
    "log_softmax": lambda output, y: F.nll_loss(output.log_softmax(0), y),
    "logarithm": lambda output, y: F.nll_loss((output.softmax(0) + 1e-8).log(), y),
    "picked": lambda output, y: -output.log_softmax(0).gather(1, y.unsqueeze(1)).mean(),
    "numbers": lambda output, y: F.mse_loss(output.softmax(0), F.one_hot(y, 10).float()),
}


@pytest.mark.parametrize("name", OVER_SAMPLES)
def test_a_softmax_over_the_samples_is_compared_with_targets(name):
    assert "softmax-axis" in of_classes(OVER_SAMPLES[name])


def test_a_softmax_over_pixels_is_none_over_classes():
    layer, x, y = nn.Conv2d(1, 3, 1), torch.randn(4, 1, 5, 6), torch.randint(3, (4, 5, 6))
    assert "softmax-axis" in found_in(lambda: F.nll_loss(layer(x).log_softmax(-1), y).backward())
    assert "softmax-axis" not in found_in(lambda: F.nll_loss(layer(x).log_softmax(1), y).backward())


class Inside(nn.Module):
    """A softmax inside of a network, over the samples or over their 12 places, with either axis first."""

    def __init__(self, over_samples, places_first):
        super().__init__()
        self.score, self.value, self.out = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 10)
        self.places = 0 if places_first else 1
        self.axis = 1 - self.places if over_samples else self.places

    def forward(self, x):
        x = x.unflatten(1, (12, 8)).transpose(1, self.places)
        return self.out((self.score(x).softmax(self.axis) * self.value(x)).sum(self.places))


@pytest.mark.parametrize(("over_samples", "places_first"), [(True, False), (False, False), (False, True)])
def test_a_softmax_inside_the_network_runs_over_the_samples(over_samples, places_first):
    model, x, y = Inside(over_samples, places_first), torch.randn(16, 96), torch.randint(10, (16,))
    found = found_in(lambda: F.cross_entropy(model(x), y).backward(), model=model)
    assert ("softmax-axis" in found) == over_samples


def test_similarities_of_all_pairs_have_samples_along_both_axes():
    layer, x = nn.Linear(8, 8), torch.randn(16, 8)

    def contrast():
        pairs = layer(x) @ layer(x + 0.1).T
        (-(pairs.log_softmax(0).diag() + pairs.log_softmax(1).diag()).mean()).backward()

    assert "softmax-axis" not in found_in(contrast)


@pytest.mark.parametrize("outputs", [1, 2])
def test_a_softmax_over_one_element(outputs):
    found = of_classes(F.cross_entropy, outputs)
    assert ("softmax-of-one" in found) == (outputs == 1)
    found = of_classes(lambda output, y: F.mse_loss(output.softmax(1)[:, 0], y.float()), outputs)
    assert ("softmax-of-one" in found) == (outputs == 1)


class Attends(nn.Module):
    """Attention to so many places, or to more and more of them."""

    def __init__(self, *places):
        super().__init__()
        self.key, self.out, self.places = nn.Linear(8, 8), nn.Linear(8, 10), places

    def forward(self, x):
        x = x.unflatten(1, (8, 8))
        for seen in self.places:
            keys = self.key(x[:, :seen])
            found = (x[:, :1] @ keys.transpose(1, 2)).softmax(-1) @ keys
        return self.out(found[:, 0])


def test_attention_to_one_place_is_a_note_until_it_has_lasted():
    def severity(steps, *places):
        found = in_run("softmax-of-one", F.cross_entropy, model=Attends(*places), steps=steps)
        return [each.severity for each in found]

    assert severity(4, 1) == ["note"]
    assert severity(5, 1) == ["warning"]
    assert severity(5, 1, 2, 3) == []


# -- targets -----------------------------------------------------------------------------------------------------------

LAST = {
    "tanh": (torch.tanh, -1, 1), "sigmoid": (torch.sigmoid, 0, 1), "relu": (F.relu, 0, 10),
    "clamp": (lambda x: x.clamp(-2, 2), -2, 2), "scaled": (lambda x: 3 * torch.tanh(x) + 1, -2, 4),
}  # fmt: skip


@pytest.mark.parametrize("name", LAST)
def test_targets_at_the_ends_of_the_range_and_beyond(name):
    last, low, high = LAST[name]
    layer, x, y = nn.Linear(4, 1), torch.randn(16, 4), torch.linspace(low, high, 16).unsqueeze(1)

    def found(target):
        return found_in(lambda: F.mse_loss(last(layer(x)), target).backward())

    assert "targets-out-of-range" not in found(y)
    assert found(y - 0.01)["targets-out-of-range"].severity == "note"
    assert found(y - (high - low) / 2)["targets-out-of-range"].severity == "warning"


@pytest.mark.parametrize("loss", [F.margin_ranking_loss, F.cosine_embedding_loss, F.soft_margin_loss])
def test_targets_of_zero_where_signs_are_expected(loss):
    layer, x, y = nn.Linear(4, 3), torch.randn(16, 4), torch.tensor([0.0, 1.0]).repeat(8)

    def found(target):
        output = layer(x)
        given = (output[:, 0],) if loss is F.soft_margin_loss else (output, output.detach() + 1)
        given = tuple(each[:, 0] for each in given) if loss is F.margin_ranking_loss else given
        return found_in(lambda: loss(*given, target).backward())

    assert "8 of 16 targets" in found(y)["targets-out-of-range"].sentence
    assert "targets-out-of-range" not in found(2 * y - 1)


@pytest.mark.parametrize(
    ("size", "severity"), [(1.0, None), (50.0, None), (1e4, "warning"), (1e-2, None), (1e-5, "note")]
)
def test_targets_far_from_the_scale_of_the_outputs(size, severity):
    layer, x, y = nn.Linear(4, 1), torch.randn(64, 4), size * torch.randn(64, 1)
    found = found_in(lambda: F.mse_loss(layer(x), y).backward(), keep="statistics").get("targets-scale")
    assert (found.severity if found else None) == severity


def test_large_targets_of_large_outputs_and_targets_of_zeros_have_a_fitting_scale():
    layer, x, y = nn.Linear(4, 1), torch.randn(64, 4), 1e4 * torch.randn(64, 1)
    assert "targets-scale" not in found_in(lambda: F.mse_loss(1e4 * layer(x), y).backward())
    assert "targets-scale" not in found_in(lambda: F.mse_loss(layer(x), 0 * y).backward())


def test_the_initial_loss_against_a_guess():
    surer = count(1)
    for scale, severities in ((1.0, []), (40.0, ["warning"])):
        found = in_run("initial-loss", lambda output, y, s=scale: F.cross_entropy(s * output, y), steps=2)
        assert [each.severity for each in found] == severities
    later = in_run("initial-loss", lambda output, y: F.cross_entropy(20.0 * next(surer) * output, y) / 1e3, steps=3)
    assert all(each.since == each.until == 1 for each in later)
    assert of_classes(lambda output, y: F.cross_entropy(40 * output, y))["initial-loss"].severity == "note"
    found = of_classes(lambda output, y: F.binary_cross_entropy_with_logits(40 * output, F.one_hot(y, 10).float()))
    assert "among 2 classes" in found["initial-loss"].sentence


def test_a_margin_on_the_right_class_is_no_wrong_start():
    """Logits that depend on their targets (ArcFace, CosFace) are worse than a guess on purpose."""

    def margin(output, y):
        cosines = F.normalize(output)
        return F.cross_entropy(64 * (cosines - 0.35 * F.one_hot(y, 10)), y)

    assert "initial-loss" not in of_classes(margin)
    assert "initial-loss" in of_classes(lambda output, y: F.cross_entropy(64 * F.normalize(output), y))


def classes(*of_steps):
    return ((torch.randn(16, 64), torch.full((16,), each) if isinstance(each, int) else each) for each in of_steps)


def test_one_class_in_a_batch_is_a_note_for_a_step():
    assert of_classes(lambda output, y: F.cross_entropy(output, 0 * y + 3))["one-class"].severity == "note"
    assert "one-class" not in of_classes(F.cross_entropy)


def test_the_pair_of_a_contrastive_loss_is_class_0():
    def loss(output, y):
        queries, keys = F.normalize(output).chunk(2)
        scores = torch.cat([(queries * keys).sum(1, keepdim=True), queries @ keys.detach().roll(1, 0).T], 1)
        return F.cross_entropy(scores / 0.2, torch.zeros(len(scores), dtype=torch.long))

    assert "one-class" not in of_classes(loss)


@pytest.mark.parametrize(
    ("of_steps", "severities"),
    [
        ([0, 0, 0, 1, 1, 1, 2, 2, 2, 3], ["warning"]),
        ([0, 0, torch.arange(16) % 10, 1, 1, 1, torch.arange(16) % 10, 2, 2, 2], ["warning"]),
        ([3] * 10, ["warning"]),
        ([3] * 9, []),
        ([0, 1, 2, *[torch.arange(16) % 10] * 7], []),
    ],
)
def test_one_class_in_the_batches_of_a_run(of_steps, severities):
    found = in_run("one-class", F.cross_entropy, classes(*of_steps), steps=len(of_steps))
    assert [each.severity for each in found] == severities


@pytest.mark.parametrize(
    ("of_steps", "severities"),
    [([0] * 6 + [1] * 6, ["warning"]), ([0] * 10, ["note"]), ([0, 1] * 6, [])],
)
def test_binary_targets_may_take_turns(of_steps, severities):
    def loss(output, y):
        return F.binary_cross_entropy_with_logits(output.squeeze(1), y.float())

    found = in_run("one-class", loss, classes(*of_steps), nn.Linear(64, 1), steps=len(of_steps))
    assert [each.severity for each in found] == severities


# -- batches -----------------------------------------------------------------------------------------------------------


def test_the_same_batch_again():
    x, y = torch.randn(16, 64), torch.randint(1, 10, (16,))
    assert [each.severity for each in in_run("same-batch", F.cross_entropy, ((x, y) for _ in count()), steps=5)] == [
        "note"
    ]
    assert in_run("same-batch", F.cross_entropy, ((x, y) for _ in count()), steps=4) == []
    assert in_run("same-batch", F.cross_entropy) == []
    assert in_run("same-batch", F.cross_entropy, ((x, y + step % 2 - 1) for step in count())) == []


@pytest.mark.parametrize(("number", "severity"), [(0.0, "warning"), (2.0, "note")])
def test_a_batch_that_is_all_zeros(number, severity):
    layer, x = nn.Linear(64, 10), torch.full((16, 64), number)
    found = found_in(lambda: layer(x).square().mean().backward(), keep="statistics")
    assert found["zero-batch"].severity == severity


def test_a_state_of_zeros_beside_an_input_and_one_sample_are_no_batch_of_zeros():
    cell, layer, x = nn.RNNCell(8, 8), nn.Linear(8, 8), torch.randn(16, 8)
    assert "zero-batch" not in found_in(lambda: cell(x, torch.zeros(16, 8)).square().mean().backward())
    assert "zero-batch" not in found_in(lambda: layer(torch.zeros(1, 8)).square().mean().backward())


def test_a_batch_of_zeros_beside_another_of_the_same_layer():
    """An environment begins at 0, and the network sees the states that actions led to as well."""
    layer, x = nn.Linear(8, 4), torch.zeros(16, 8)

    def step():
        now = layer(x)
        then = layer(torch.rand(16, 8) * now.detach().sum())
        (now - then).square().mean().backward()

    assert "zero-batch" not in found_in(step, keep="statistics")


def in_micro_batches(sizes, loss, optimizer=None, steps=3, limit=None):
    model = nn.Linear(64, 10)
    optimizer = (optimizer or torch.optim.SGD)(model.parameters(), lr=0.01)

    def script():
        yield model
        for step in count():
            optimizer.zero_grad()
            for size in sizes(step):
                loss(model(torch.randn(size, 64)), torch.randint(10, (size,))).backward()
            if limit is not None:
                nn.utils.clip_grad_norm_(model.parameters(), limit)
            optimizer.step()
            yield

    found = watched(script, steps).findings
    return {each.id: each.severity for each in found if "micro" in each.id}


def test_means_of_unequal_micro_batches():
    divided = lambda output, y: F.cross_entropy(output, y) / 3  # noqa: E731
    summed = lambda output, y: F.cross_entropy(output, y, reduction="sum") / 48  # noqa: E731
    weighed = lambda output, y: F.cross_entropy(output, y) * len(y) / 48  # noqa: E731
    unequal = lambda step: (24, 16, 8)  # noqa: E731
    assert in_micro_batches(unequal, divided) == {"unequal-micro-batches": "warning"}
    assert in_micro_batches(unequal, divided, steps=2) == {"unequal-micro-batches": "note"}
    assert in_micro_batches(lambda step: (16, 16, 8 if step % 3 == 2 else 16), divided, steps=9) == {
        "unequal-micro-batches": "note"
    }
    assert in_micro_batches(unequal, summed) == in_micro_batches(unequal, weighed) == {}
    assert in_micro_batches(lambda step: (16, 15, 14), divided) == {}


def test_a_step_that_a_scaler_leaves_out_is_no_micro_batch():
    model, scaler = nn.Linear(64, 10), torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    def step():
        for size in (1e36, 1.0):
            optimizer.zero_grad()
            x = size * torch.randn(16, 64)
            scaler.scale(F.cross_entropy(model(x), torch.randint(10, (16,)))).backward()
            scaler.step(optimizer)
            scaler.update()

    before = model.weight.detach().clone()
    found = found_in(step, model=model)
    assert scaler.get_scale() == 512
    assert not torch.equal(model.weight, before)
    assert "unequal-micro-batches" not in found


def test_labels_that_are_ignored_do_not_count():
    def loss(output, y):
        return F.cross_entropy(output, y.where(torch.arange(len(y)) < (4 if len(y) == 15 else 12), -100)) / 2

    assert in_micro_batches(lambda step: (16, 15), loss) == {"unequal-micro-batches": "warning"}


def test_micro_batches_against_the_big_batch():
    several = lambda step: (8,) * 4  # noqa: E731
    assert in_micro_batches(several, F.cross_entropy) == {"micro-batch-scale": "warning"}
    assert in_micro_batches(several, F.cross_entropy, torch.optim.Adam) == {"micro-batch-scale": "note"}
    assert in_micro_batches(several, F.cross_entropy, limit=1.0) == {"micro-batch-scale": "note"}
    assert in_micro_batches(lambda step: (8, 8), F.cross_entropy) == {"micro-batch-scale": "note"}
    assert in_micro_batches(several, lambda output, y: F.cross_entropy(output, y) / 4) == {}


def test_passes_through_one_result_are_no_micro_batches():
    model, x = nn.Linear(8, 10), torch.randn(16, 8)
    targets = [torch.randint(10, (16,)) for _ in range(4)]

    def step():
        output = model(x)
        for y in targets:
            F.cross_entropy(output, y).backward(retain_graph=True)

    assert "micro-batch-scale" not in found_in(step, model=model)
