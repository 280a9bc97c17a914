"""One change that a student makes without meaning to, and how its sentence calls the numbers in it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from chainrule.diagnostics import finding
from chainrule.exercises.chain import Change
from chainrule.graph.graph import Graph
from chainrule.graph.names import Notation, element
from chainrule.numbers import nested, number

WRITTEN = 6  # numbers of a tensor that a sentence writes out
LISTED = 3  # of a larger one


@dataclass(frozen=True)
class Slip:
    """A change of one step that students make. `cost` orders them, the likeliest first."""

    cost: float
    name: str
    sentence: str
    change: Change


class SlipsOfStep:
    """What the slips of either direction know of the step; `after` has the updated parameters by their values."""

    def __init__(self, graph: Graph, notation: Notation) -> None:
        self.graph = graph
        self.notation = notation
        self.after = {each.value: each.after for each in graph.parameters.values() if each.value is not None}


def written(name: str, data: Tensor) -> str:
    """A tensor with its numbers, or with the first few of them: `A1 = [[2, 9]]`."""
    if data.numel() <= WRITTEN:
        return f"{name} = {nested(data.tolist())}"
    return f"{listed(name, data, torch.ones_like(data, dtype=torch.bool))}, ..."


def listed(name: str, data: Tensor, where: Tensor) -> str:
    """The first few elements that are marked: `Z2[0,0] = -4.5 and Z2[1,0] = 0`."""
    places = [tuple(each) for each in where.nonzero().tolist()]
    return finding.listed([f"{element(name, place)} = {number(data[place].item())}" for place in places], LISTED)
