"""What is said of what stands before a loss, of how samples are drawn, and of weights that are replaced; the edges."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.bed.loops import FAULTS, watched
from tests.bed.loops.shared import batches, mlp, points, train
from tests.findings.test_kinds import found_in

pytestmark = pytest.mark.trains


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def said(name):
    """The first finding of the kind that a loop of the bed has, and its whole sentence."""
    id, loop, steps = FAULTS[name]
    return next(each for each in watched(loop, steps, full_every=1).findings if each.id == id)


def of(loss, given=None, target=None, outputs=4):
    """What is found in one step of a linear layer of four outputs."""
    layer = nn.Linear(8, outputs)
    x = torch.randn(32, 8) if given is None else given
    return found_in(lambda: loss(layer(x), target).backward(), layer=layer)


# -- which samples -----------------------------------------------------------------------------------------------------


def test_few_samples_are_counted():
    found = said("one_weight_for_each_class")
    assert found.severity == "warning"
    assert "Only 10 of the 32 samples" in found.text or "Only 9 of the 32 samples" in found.text


def moved_on(by):
    x = torch.randn(400, 8)
    y = x.sum(1, keepdim=True)
    return train(mlp(8, 16, 1), ((x[at : at + 32], y[at : at + 32]) for at in range(0, 360, by)), loss=F.mse_loss)


@pytest.mark.parametrize(("by", "found"), [(1, True), (8, True), (16, False), (32, False)])
def test_a_batch_that_is_nearly_the_one_before(by, found):
    kinds = {each.id: each for each in watched(lambda: moved_on(by), 10, full_every=1).findings}
    assert ("few-samples" in kinds) == found
    if found:
        assert f"moved on by {by} of its 32 samples" in kinds["few-samples"].text


# -- schedules ---------------------------------------------------------------------------------------------------------


def test_a_cycle_of_batches_that_stands():
    found = said("one_cycle_in_epochs")
    assert (found.severity, found.where) == ("warning", "learning rate")
    assert "OneCycleLR plans to change it at each batch, up to 0.1" in found.text


# -- outputs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("squash", [F.logsigmoid, lambda output: output.log_softmax(1)])
def test_logarithms_of_probabilities_are_no_logits(squash):
    y = torch.randint(2, (32, 4)).float()
    found = of(lambda output, y: F.binary_cross_entropy_with_logits(squash(output), y), target=y)["sigmoid-twice"]
    assert "is the logarithm of a probability" in found.sentence
    # Where no label is 1 nothing is out of reach.
    assert "sigmoid-twice" not in of(lambda o, y: F.binary_cross_entropy_with_logits(squash(o), y), target=0 * y)


@pytest.mark.parametrize(("size", "found"), [(1.0, False), (3.0, False), (30.0, True)])
def test_a_norm_on_the_outputs_is_said_where_targets_have_another_size(size, found):
    model, x = nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4)), torch.randn(32, 8)
    kinds = found_in(lambda: F.mse_loss(model(x), size * torch.randn(32, 4)).backward(), model=model)
    assert ("norm-on-outputs" in kinds) == found
    if found:
        assert kinds["norm-on-outputs"].where == "1"


@pytest.mark.parametrize(
    ("target", "found"),
    [(torch.arange(32) % 4, True), (torch.randn(32), False), (torch.arange(32), False)],
    ids=["labels", "numbers", "more than there are outputs"],
)
def test_the_largest_score_and_a_label(target, found):
    kinds = of(lambda output, y: F.mse_loss(output.max(1).values, y.float()), target=target)
    assert ("score-as-class" in kinds) == found


# -- targets -----------------------------------------------------------------------------------------------------------


def test_several_labels_where_one_is_expected():
    tags = torch.ones(32, 4)
    tags[:, 0] = 0
    found = of(F.cross_entropy, target=tags)["targets-out-of-range"]
    assert "takes probabilities that add up to 1, and each row of these adds up to 3 on average" in found.sentence
    assert "targets-out-of-range" not in of(F.cross_entropy, target=tags / 3)


@pytest.mark.parametrize(("least", "found"), [(1e-6, True), (0.1, False)])
def test_a_relative_error_and_its_smallest_target(least, found):
    target = torch.linspace(least, 2, 32).reshape(32, 1).expand(32, 4)
    kinds = of(lambda output, y: ((output - y).abs() / y).mean(), target=target)
    assert ("relative-error-near-zero" in kinds) == found


def test_a_deviation_that_the_network_predicts_is_no_target():
    found = of(
        lambda o, y: ((y - o[:, :1]) / o[:, 1:2].exp()).square().mean() + o[:, 1].mean(), target=torch.rand(32, 1)
    )
    assert "relative-error-near-zero" not in found


# -- shapes ------------------------------------------------------------------------------------------------------------


def test_classes_along_axis_one_are_lost_by_a_view():
    layer, x, y = nn.Conv2d(1, 3, 1), torch.randn(4, 1, 6, 6), torch.randint(3, (4, 6, 6))
    found = found_in(lambda: F.cross_entropy(layer(x).reshape(-1, 3), y.flatten()).backward(), layer=layer)
    assert "The 3 classes lie along axis 1" in found["view-swaps-axes"].sentence
    moved = lambda: F.cross_entropy(layer(x).movedim(1, -1).reshape(-1, 3), y.flatten())  # noqa: E731
    assert "view-swaps-axes" not in found_in(lambda: moved().backward(), layer=layer)
    assert "view-swaps-axes" not in found_in(lambda: F.cross_entropy(layer(x), y).backward(), layer=layer)


# -- penalties and weights ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "found"), [(torch.sum, True), (torch.mean, True), (torch.norm, False)])
def test_a_penalty_without_a_least_value(size, found):
    layer, x, y = nn.Linear(8, 4), torch.randn(32, 8), torch.randint(4, (32,))
    kinds = found_in(lambda: (F.cross_entropy(layer(x), y) + 0.1 * size(layer.weight)).backward(), layer=layer)
    assert ("penalty-unbounded" in kinds) == found


def test_weights_that_are_replaced():
    found = said("initialised_anew_now_and_then")
    assert (found.severity, found.where, found.since) == ("warning", "weights", 21)
    assert "changes the weights after step 20, 40" in found.text


def test_weights_that_are_loaded_once_are_not_replaced():
    model = mlp(64, 32, 10)

    def loop():
        running = train(model, batches(64), torch.optim.Adam(model.parameters(), lr=5e-3))
        yield next(running)
        for step, _ in enumerate(running, 1):
            if step == 20:
                [each.reset_parameters() for each in model if hasattr(each, "weight")]
            yield

    assert "weights-replaced" not in {each.id for each in watched(loop, 60).findings}


# -- what is joined ----------------------------------------------------------------------------------------------------


def test_a_branch_that_is_computed_and_not_taken():
    found = said("one_of_two_branches_is_taken")
    assert found.severity == "warning"
    assert any("only other parts of it are used" in line for line in found.evidence)


def test_data_that_grows():
    def grown():
        for step, (x, y) in enumerate(points(), 1):
            yield step * x, y

    found = {each.id: each for each in watched(lambda: train(mlp(8, 4, 1), grown(), loss=F.mse_loss), 40).findings}
    assert found["input-not-normalised"].evidence[0].startswith("It grows: its standard deviation was ")
