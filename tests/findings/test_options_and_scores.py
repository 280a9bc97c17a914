"""Options that defeat an optimizer or a norm, and scores that no loss can use: the sentence of each kind."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.findings.test_as_strangers_write import watched
from tests.findings.test_kinds import found_in, trained


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.mark.trains
@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda p: torch.optim.SGD(p, lr=1e-3, momentum=1.0), True),
        (lambda p: torch.optim.RMSprop(p, lr=1e-3, momentum=1.0), True),
        (lambda p: torch.optim.Adam(p, lr=1e-3, betas=(0.999, 0.9)), True),
        (lambda p: torch.optim.SGD(p, lr=1e-3, momentum=0.99), False),
        (lambda p: torch.optim.Adam(p, lr=1e-3, betas=(0.9, 0.95)), False),
        (lambda p: torch.optim.Adam(p, lr=1e-3, betas=(0.5, 0.5)), False),
    ],
)
def test_momentum_of_one_and_betas_that_are_swapped(make, expected):
    model = nn.Linear(4, 2)
    found = watched(
        model, lambda n: F.mse_loss(model(torch.randn(8, 4)), torch.ones(8, 2)), 6, make(model.parameters())
    )
    assert ("optimizer-option" in found) == expected


@pytest.mark.trains
@pytest.mark.parametrize(
    ("options", "expected"),
    [({"momentum": 0.0}, True), ({"momentum": 0.99}, True), ({"eps": 0.9}, True), ({"momentum": 0.1}, False),
     ({"momentum": 0.01}, False), ({"eps": 1e-3}, False)],
)  # fmt: skip
def test_the_momentum_and_the_eps_of_a_norm(options, expected):
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8, **options), nn.ReLU(), nn.Linear(8, 2))
    found = watched(model, lambda n: F.mse_loss(model(torch.randn(8, 4)), torch.ones(8, 2)), 6)
    assert ("norm-option" in found) == expected


@pytest.mark.parametrize(("bound", "expected"), [(0.5, True), (16.0, False)])
def test_cosines_that_are_made_smaller_are_scores_that_are_alike(bound, expected):
    layer, centres = nn.Linear(8, 16), nn.Parameter(torch.randn(20, 16))
    x, y = torch.randn(32, 8), torch.randint(20, (32,))

    def step():
        scores = bound * (F.normalize(layer(x), dim=1) @ F.normalize(centres, dim=1).T)
        F.cross_entropy(scores, y).backward()

    assert ("scores-alike" in found_in(step, layer=layer, centres=centres, x=x, y=y)) == expected


@pytest.mark.parametrize("activation", [nn.Sigmoid(), nn.Identity()])
def test_a_sigmoid_before_a_loss_that_has_its_own(activation):
    model = nn.Sequential(nn.Linear(4, 1), activation)
    x, y = torch.randn(16, 4), torch.randint(2, (16, 1)).float()
    found = trained(model, lambda: F.binary_cross_entropy_with_logits(model(x), y))
    assert ("sigmoid-twice" in found) == isinstance(activation, nn.Sigmoid)


@pytest.mark.parametrize("blank", [0, 5])
def test_the_blank_is_no_symbol(blank):
    scores = torch.randn(12, 3, 6, requires_grad=True)
    targets, lengths = torch.tensor([[0, 1, 2], [2, 3, 0], [1, 2, 3]]), torch.full((3,), 12)

    def step():
        F.ctc_loss(scores.log_softmax(2), targets, lengths, torch.full((3,), 3), blank=blank).backward()

    assert ("blank-in-targets" in found_in(step, scores=scores)) == (blank == 0)


@pytest.mark.parametrize("sigmoid", [True, False])
def test_the_overlap_of_raw_scores(sigmoid):
    model, x, mask = nn.Conv2d(1, 1, 3, padding=1), torch.randn(4, 1, 8, 8), torch.randint(2, (4, 1, 8, 8)).float()

    def loss():
        p = model(x).sigmoid() if sigmoid else model(x)
        return 1 - (2 * (p * mask).sum() + 1) / (p.sum() + mask.sum() + 1)

    assert ("scores-in-dice" in trained(model, loss)) == (not sigmoid)
