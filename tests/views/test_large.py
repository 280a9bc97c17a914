"""Views of steps with many calls: a screenful is one, and a page has a bounded number of terms."""

import pytest
import torch
from torch import nn

from benchmarks.views import VERBS, lbfgs
from chainrule import record
from chainrule.views import terminal


def recorded(step):
    with record() as recording:
        step()
    return recording


@pytest.fixture(scope="module")
def fit():
    return recorded(lbfgs(iterations=4))


def test_a_screenful_has_at_most_60_lines(fit):
    for width in (80, 100):
        assert terminal.text(fit.document(brief=True), width).count("\n") <= 60


def test_what_does_not_fit_in_a_screenful_is_counted(fit):
    told = terminal.text(fit.document(brief=True))
    results = sum(step.kind == "forward" for step in fit.steps)
    assert results > 16
    assert f"... {results - 8} more" in told  # the first four and the last four are listed
    assert f"{len(fit.losses) - 2} losses of further backward passes" in told


class Standardised(nn.Module):
    """A transform of the data, as torchvision has them."""

    def forward(self, images):
        return (images - images.mean()) / images.std()


def test_what_a_module_does_to_the_data_is_counted_in_a_screenful():
    transform, model, images = Standardised(), nn.Linear(4, 1), torch.rand(3, 4)
    with record() as recording:
        model(transform(images)).sum().backward()
    told = " ".join(terminal.text(recording.document(brief=True)).split())
    assert "4 more results on the way to them, which no gradient goes through." in told
    assert "images.mean()" not in told


@pytest.mark.slow
def test_every_view_of_a_large_step_is_made(fit):
    assert all(verb(fit) for verb in VERBS.values())
