"""What the user's variables hold is looked at to find names; nothing of it is asked, changed or kept."""

from __future__ import annotations

import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import chainrule
from tests.reliability.trainings.objects import Refusing


class Nobody:
    """Raises when it is asked for its class, as what stands for an object that is not there."""

    @property
    def __class__(self) -> Any:
        raise RuntimeError("there is nobody")


class Begun(nn.Module):
    """A module that is no module yet."""

    def __init__(self) -> None:
        pass


def train(rate: float, folder: Path) -> tuple[dict[str, Any], chainrule.Recording]:
    """A recorded step and a watched training, with what is odd among the variables."""
    settings = locals()
    dead, nobody, odd, begun = weakref.proxy(Nobody()), Nobody(), Refusing(), Begun()
    members, self = [dead, nobody, odd], SimpleNamespace(nobody=nobody, odd=odd, begun=begun, model=nn.Linear(2, 2))
    optimizer = torch.optim.SGD(self.model.parameters(), lr=rate)
    with chainrule.record() as recording:
        h = self.model(torch.ones(1, 2))
        h.sum().backward()
    with chainrule.watch(every=1, full_every=1, to=folder / "run.db"):
        for _ in range(2):
            optimizer.zero_grad()
            self.model(torch.ones(1, 2)).sum().backward()
            optimizer.step()
    assert len(members) == 3
    return settings, recording


@pytest.mark.filterwarnings("error::chainrule.errors.ChainruleWarning")
def test_odd_variables_are_passed_over_and_those_of_the_user_stay(tmp_path: Path) -> None:
    settings, recording = train(0.1, tmp_path)
    assert settings["rate"] == 0.1  # it may have got the later variables too, before Python 3.13
    assert recording["h"].shape == (1, 2)
    assert list(recording.parameters) == ["weight", "bias"]
    assert len(chainrule.runs.open(tmp_path / "run.db").steps()) == 2
