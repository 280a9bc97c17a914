"""Kinds about losses, data and modes that become warnings over a run: when, and the healthy twin of each."""

from itertools import count

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from chainrule import runs
from tests.bed.loops import watched
from tests.bed.loops.models import Dropping, normed
from tests.bed.loops.runs import by_hand, coded, of_distributions, players, validated
from tests.bed.loops.shared import batches, mlp, train
from tests.findings.test_kinds import found_in

pytestmark = pytest.mark.trains


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def severities(id, script, steps=12, **options):
    """How severe the findings of a kind are after a watched run."""
    return [each.severity for each in watched(lambda: script, steps, **options).findings if each.id == id]


# -- sums --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("optimizer", "clips", "severity"),
    [
        (lambda p: torch.optim.SGD(p, lr=0.1), False, "warning"),
        (lambda p: torch.optim.SGD(p, lr=1e-4), False, "note"),
        (lambda p: torch.optim.SGD(p, lr=0.1), True, "note"),
        (lambda p: torch.optim.Adam(p, lr=0.1), False, "note"),
    ],
)
def test_a_sum_whose_rate_is_too_high_for_it(optimizer, clips, severity):
    model = mlp(64, 32, 10)
    clip = lambda step: clips and nn.utils.clip_grad_norm_(model.parameters(), 5.0)  # noqa: E731
    loss = lambda output, y: F.cross_entropy(output, y, reduction="sum")  # noqa: E731
    script = train(model, batches(64), optimizer(model.parameters()), loss, clip)
    assert severities("sum-reduction", script) == [severity]


# -- summands ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("divergence", [by_hand, of_distributions])
@pytest.mark.parametrize(("weight", "expected"), [(10.0, ["warning"]), (1e-3, [])])
def test_a_divergence_drowns_the_reconstruction(divergence, weight, expected):
    found = watched(lambda: coded(weight, divergence), 12).findings
    drowned = [each for each in found if each.id == "penalty-dominates"]
    assert [each.severity for each in drowned] == expected
    assert all(each.place for each in drowned)


def test_a_divergence_that_drowns_the_loss_in_one_step_is_a_note():
    assert severities("penalty-dominates", coded(10.0, by_hand), 1) == ["note"]


def test_a_penalty_that_has_won_is_still_the_cause():
    model = mlp(64, 32, 10)
    loss = lambda output, y: F.cross_entropy(output, y) + sum(p.square().sum() for p in model.parameters())  # noqa: E731
    script = train(model, batches(), torch.optim.SGD(model.parameters(), lr=0.2), loss)
    found = next(each for each in watched(lambda: script, 30).findings if each.id == "penalty-dominates")
    assert (found.severity, found.since) == ("warning", 1)
    assert found.until is not None


def test_a_divergence_that_is_subtracted():
    assert severities("loss-ascends", coded(-0.5, by_hand), 20) == ["warning"]
    assert severities("loss-ascends", coded(1e-3, by_hand)) == []


def test_a_loss_that_falls_below_0_more_and_more_slowly():
    """The likelihood of a normal variable with a learnt deviation: its logarithm is a summand below 0."""
    model, log = nn.Linear(8, 1), nn.Parameter(torch.tensor(1.0))
    optimizer = torch.optim.Adam([*model.parameters(), log], lr=0.05)
    x = torch.randn(64, 8)
    y = x[:, :1].clone()

    def script():
        yield model
        while True:
            optimizer.zero_grad()
            (0.5 * ((model(x) - y) ** 2).mean() * (-2 * log).exp() + log).backward()
            optimizer.step()
            yield

    assert "loss-ascends" not in {each.id for each in watched(script, 120, every=6).findings}


# -- inputs ------------------------------------------------------------------------------------------------------------


def scaled(*factors):
    return ((x * factor, y) for (x, y), factor in zip(batches(), [*factors, *[factors[-1]] * 20], strict=False))


@pytest.mark.parametrize(
    ("factors", "steps", "severity"),
    [((4e-3,), 3, ["warning"]), ((4e-3,), 2, ["note"]), ((4e-3, 4e-3, 4e-3, 1.0), 4, ["note"]), ((0.05,), 3, [])],
)
def test_inputs_that_hardly_vary_at_every_step(factors, steps, severity):
    assert severities("input-not-normalised", train(mlp(64, 32, 10), scaled(*factors)), steps) == severity


def test_small_numbers_that_are_no_fault():
    wide, x = nn.Linear(4096, 4), F.normalize(torch.randn(16, 4096), dim=1)
    assert "input-not-normalised" not in found_in(lambda: wide(x).square().mean().backward())
    one_hot = F.one_hot(torch.arange(16), 4096).float()
    assert "input-not-normalised" not in found_in(lambda: wide(one_hot).square().mean().backward())
    first, second, noise, y = nn.Linear(8, 4), nn.Linear(8, 4), 1e-3 * torch.randn(16, 8), torch.randn(16, 8)
    assert "input-not-normalised" not in found_in(lambda: (first(noise) + second(y)).square().mean().backward())


# -- batches -----------------------------------------------------------------------------------------------------------


def loading(size):
    model = nn.Linear(8, 1)
    data = TensorDataset(torch.randn(64, 8), torch.randn(64, 1))
    return model, torch.optim.SGD(model.parameters(), lr=0.01), DataLoader(data, batch_size=size)


def first_at_each_step(size):
    model, optimizer, loader = loading(size)
    yield model
    while True:
        x, y = next(iter(loader))
        optimizer.zero_grad()
        F.mse_loss(model(x), y).backward()
        optimizer.step()
        yield


def first_on_purpose(size):
    """One batch is to be overfitted, while others are looked at."""
    model, optimizer, loader = loading(size)
    yield model
    for step in count():
        if step == 0:
            x, y = next(iter(loader))
        validation = next(iter(loader))
        optimizer.zero_grad()
        F.mse_loss(model(x), y).backward()
        optimizer.step()
        assert len(validation) == 2
        yield


@pytest.mark.parametrize(
    ("script", "size", "severity"),
    [(first_at_each_step, 16, "warning"), (first_at_each_step, 64, "note"), (first_on_purpose, 16, "note")],
)
def test_the_first_batch_of_a_loader_that_has_others(script, size, severity, tmp_path):
    assert severities("same-batch", script(size), 6, to=tmp_path / "run.db") == [severity]
    with runs.open(tmp_path / "run.db") as run:
        assert all(each.restarted.endswith("of 4 batches") for each in run.steps()) == (severity == "warning")


# -- gradients of two optimizers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("generator_first", [True, False])
@pytest.mark.parametrize(("clears", "expected"), [(False, ["warning"]), (True, [])])
def test_the_gradients_of_a_discriminator(generator_first, clears, expected):
    assert severities("accumulated-gradient", players(generator_first, clears), 6)[:1] == expected


def test_gradients_that_were_left_at_fewer_steps_than_three_in_a_row():
    def script():
        model = nn.Linear(64, 10)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        yield model
        for step, (x, y) in zip(count(), batches(), strict=False):
            if step % 3 != 2:
                optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            yield

    assert set(severities("accumulated-gradient", script(), 12)) == {"note"}


# -- modes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize(("change", "severity"), [(lambda x: x + 4, "warning"), (lambda x: 5 * x, "warning")])
def test_validation_in_train_mode_that_parts_the_running_statistics(change, severity, every):
    assert severities("train-while-evaluating", validated(normed(), change, False), 24, every=every) == [severity]


def test_validation_in_train_mode_of_the_same_pictures_is_no_more_than_a_note():
    assert "warning" not in severities("train-while-evaluating", validated(normed(), lambda x: x, False), 24)
    assert severities("train-while-evaluating", validated(normed(), lambda x: x + 4, True), 24) == []


class Careful(Dropping):
    def forward(self, x):
        return self.last(F.dropout(self.first(x).relu(), 0.3, self.training))


class Sampling(Dropping):
    def forward(self, x):
        return self.last(F.dropout(self.first(x).relu(), 0.3, training=True))


@pytest.mark.parametrize(("model", "expected"), [(Dropping, ["warning"]), (Careful, []), (Sampling, [])])
@pytest.mark.parametrize("every", [1, 5])
def test_a_dropout_in_an_evaluation(model, expected, every, tmp_path):
    assert severities(
        "dropout-in-eval", validated(model(), lambda x: x, True), 11, every=every, to=tmp_path / "run.db"
    ) == (expected)  # fmt: skip
    with runs.open(tmp_path / "run.db") as run:
        assert any(each.dropped for each in run.steps()) == bool(expected)
    assert not torch.nn.modules.module._global_forward_hooks


def test_the_distance_of_running_statistics_is_kept_in_the_file(tmp_path):
    watched(lambda: validated(normed(), lambda x: x + 4, False), 12, to=tmp_path / "run.db")
    with runs.open(tmp_path / "run.db") as run:
        distances = [each.distance for each in run.steps()]
    assert all(each is not None and each[0] > 0 and each[1] > 0 for each in distances[1:])
