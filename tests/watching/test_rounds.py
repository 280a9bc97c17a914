"""Where training steps end, told from the optimizers' steps alone."""

import pytest
import torch

import chainrule

PATIENCE = 20  # steps of other optimizers after which one that steps no more is not waited for


def ends(steps, expected=()):
    """For each optimizer's step, whether a training step ended with it; `expected` are given to the watch."""
    models = {name: torch.nn.Linear(1, 1) for name in "ab"}
    optimizers = {name: torch.optim.SGD(model.parameters(), lr=0.1) for name, model in models.items()}
    found = ""
    with chainrule.watch(list(models.values()), [optimizers[name] for name in expected], every=10**6) as watch:
        for name in steps:
            before = watch.step_number
            optimizers[name].step()
            found += "|" if watch.step_number > before else "."
    return found


@pytest.mark.parametrize(
    ("expected", "steps", "found"),
    [
        ("", "aaaa", "||||"),
        ("ab", "abababab", ".|.|.|.|"),
        ("ba", "abababab", ".|.|.|.|"),  # the order in which they are given does not matter
        ("ab", "aaabaaab", "...|...|"),
        ("", "abababab", "|..|.|.|"),  # the second is met when the first step seems over
    ],
)
def test_rounds(expected, steps, found):
    assert ends(steps, expected) == found


def test_what_steps_no_more_is_not_waited_for():
    found = ends("ab" + "a" * (PATIENCE + 3), "ab")
    assert found == ".|" + "." * (PATIENCE - 1) + "||||"
