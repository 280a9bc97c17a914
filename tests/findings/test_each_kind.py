"""Kinds that programs and loops of the bed show, each in a small step of its own, beside a healthy neighbour."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import lr_scheduler

from chainrule.diagnostics.ranks import of_ranks
from chainrule.graph.history import RankFacts, RankParameter
from tests.bed.loops import watched
from tests.bed.loops.shared import batches, mlp, train
from tests.findings.test_kinds import found_in, trained
from tests.findings.test_over_time import statistics

pytestmark = pytest.mark.trains


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def kinds(model, loss, *optimizers):
    return set(trained(model, loss, *optimizers))


# -- what is compared --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("several", [True, False])
def test_a_softmax_for_several_labels_and_for_one(several):
    model, x = nn.Sequential(nn.Linear(6, 4), nn.Softmax(1)), torch.randn(16, 6)
    labels = torch.randint(4, (16,))
    targets = (labels[:, None] >= torch.arange(4)).float() if several else F.one_hot(labels, 4).float()
    assert ("softmax-before-bce" in kinds(model, lambda: F.binary_cross_entropy(model(x), targets))) is several


@pytest.mark.parametrize("dropped", ["outputs", "units"])
def test_a_dropout_of_outputs_and_of_hidden_units(dropped):
    layers = [nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4)]
    layers.insert(3 if dropped == "outputs" else 2, nn.Dropout(0.3))
    model, x, y = nn.Sequential(*layers), torch.randn(16, 6), torch.randint(4, (16,))
    assert ("dropout-on-outputs" in kinds(model, lambda: F.cross_entropy(model(x), y))) is (dropped == "outputs")


@pytest.mark.parametrize("label", [1.0, 0.0])
def test_a_discriminator_that_is_to_say_yes_of_both(label):
    maker, judge = mlp(4, 16, 2), mlp(2, 16, 1)
    optimizer, data = torch.optim.SGD(judge.parameters(), lr=0.1), torch.randn(16, 2) + 2

    def step():
        made = maker(torch.randn(16, 4)).detach()
        said = F.binary_cross_entropy_with_logits
        (said(judge(data), torch.ones(16, 1)) + said(judge(made), torch.full((16, 1), label))).backward()
        optimizer.step()

    assert ("real-as-made" in found_in(step, maker=maker, judge=judge)) is (label == 1)


@pytest.mark.parametrize("same", [True, False])
def test_a_next_state_that_is_the_state(same):
    model, target, state = mlp(4, 16, 2), mlp(4, 16, 2), torch.randn(16, 4)
    following = state.clone() if same else state + 0.1 * torch.randn(16, 4)
    action, reward = torch.randint(2, (16, 1)), torch.randn(16)

    def loss():
        with torch.no_grad():
            goal = reward + 0.9 * target(following).max(1).values
        return F.smooth_l1_loss(model(state).gather(1, action).squeeze(1), goal)

    assert ("states-alike" in kinds(nn.ModuleList([model, target]), loss)) is same


@pytest.mark.parametrize("axis", [0, 1])
def test_places_along_the_samples_and_along_the_positions(axis):
    letters, out = nn.Embedding(16, 8), nn.Linear(8, 2)
    places = nn.Parameter(torch.randn(64, 1, 8) if axis == 0 else torch.randn(1, 64, 8))
    x, y = torch.randint(16, (12, 10)), torch.randint(2, (12,))
    model = nn.ParameterList([*letters.parameters(), *out.parameters(), places])

    def loss():
        given = places[: len(x)] if axis == 0 else places[:, : x.shape[1]]
        return F.cross_entropy(out(torch.tanh(letters(x) + given).mean(1)), y)

    assert ("place-in-batch" in kinds(model, loss)) is (axis == 0)


# -- layers ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("front", [False, True])
def test_padding_behind_the_sentences_and_in_front_of_them(front):
    letters, rnn, out = nn.Embedding(20, 8, padding_idx=0), nn.LSTM(8, 8, batch_first=True), nn.Linear(8, 2)
    x = torch.zeros(8, 30, dtype=torch.long)
    for row, length in zip(x, range(5, 13), strict=True):
        row[30 - length :] = torch.randint(1, 20, (length,))
    x, y = x if front else x.flip(1), torch.randint(2, (8,))
    model = nn.ModuleList([letters, rnn, out])
    found = trained(model, lambda: F.cross_entropy(out(rnn(letters(x))[0][:, -1]), y))
    assert ("padding-read" in found) is not front


@pytest.mark.parametrize("training", [True, False])
def test_a_frozen_batch_norm_in_train_mode_and_in_eval_mode(training):
    body, head = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU()), nn.Linear(8, 3)
    body.requires_grad_(False).train(training)
    model, x, y = nn.ModuleDict({"body": body, "head": head}), torch.randn(16, 6), torch.randint(3, (16,))
    optimizer = torch.optim.SGD(head.parameters(), lr=0.1)
    found = trained(model, lambda: F.cross_entropy(head(body(x)), y), optimizer)
    assert ("frozen-norm-moves" in found) is training


@pytest.mark.parametrize("scale", [1e-6, 1.0])
def test_gradients_below_what_float16_holds(scale):
    model, x, y = mlp(6, 16, 3), torch.randn(64, 6), torch.randint(3, (64,))

    def loss():
        with torch.autocast("cpu", dtype=torch.float16):
            return F.cross_entropy(model(x), y) * scale

    assert ("fp16-underflow" in kinds(model, loss)) is (scale < 1)


# -- schedules ---------------------------------------------------------------------------------------------------------


def scheduled(id, schedule, every, steps):
    """Whether a kind is found in a run whose schedule is stepped at each of so many batches."""
    model = mlp(64, 16, 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    plan = schedule(optimizer)
    script = train(model, batches(), optimizer, before_step=lambda step: step == 0 or step % every or plan.step())
    return [each.severity for each in watched(lambda: script, steps).findings if each.id == id]


@pytest.mark.parametrize(("every", "expected"), [(20, ["warning"]), (1, [])])
def test_a_schedule_of_batches_that_is_stepped_at_few(every, expected):
    plan = lambda optimizer: lr_scheduler.OneCycleLR(optimizer, max_lr=0.05, total_steps=300)  # noqa: E731
    assert scheduled("scheduler-per-epoch", plan, every, 40) == expected


@pytest.mark.parametrize(("factor", "expected"), [(lambda at: 0.97**at, ["warning"]), (lambda at: 0.97, [])])
def test_a_factor_that_is_compounded(factor, expected):
    plan = lambda optimizer: lr_scheduler.MultiplicativeLR(optimizer, factor)  # noqa: E731
    assert scheduled("learning-rate-vanished", plan, 1, 80) == expected


# -- ranks -------------------------------------------------------------------------------------------------------------


def rank(at, before=1.0, gradient=1.0, sent=1.0, batch=8, loss=1.0, combined=False):
    """A rank with one weight: the norms of the weight, of its gradient, and of what the rank sent to the others."""
    weight = RankParameter(statistics(before), sent and statistics(sent), statistics(gradient), combined=combined)
    return RankFacts(at, batch, loss, {"weight": weight})


def of(*ranks, **options):
    return [(each.id, each.severity) for each in of_ranks(ranks, **options)]


def test_equal_ranks_are_healthy():
    assert of(rank(0), rank(1), rank(2), equal={}) == []


def test_a_copy_that_differs_before_the_step():
    assert of(rank(0, combined=True), rank(1, 2.0, combined=True)) == [("rank-diverged", "warning")]


def test_a_gradient_that_only_this_rank_has():
    assert of(rank(0), rank(1, gradient=2.0)) == [("rank-not-reduced", "warning")]


def test_copies_that_were_equal_for_two_steps():
    equal: dict[str, int] = {}
    for _ in range(2):
        assert of(rank(0), rank(1), equal=equal) == []
    assert of(rank(0), rank(1, 2.0), equal=equal) == [("ranks-parted", "warning")]


def test_a_batch_of_another_size():
    assert ("rank-unequal-batch", "warning") in of(rank(0), rank(1, batch=5))


def test_a_loss_of_one_rank_that_is_lost():
    assert of(rank(0), rank(1, loss=math.nan)) == [("rank-not-finite", "error")]
