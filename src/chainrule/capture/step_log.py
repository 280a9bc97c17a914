"""What outlives the steps of a training: where each ended, and which line made autograd's nodes of the last one.

A tensor that the training carries into a later step keeps its autograd graph. Autograd numbers its nodes in the order
in which a thread makes them, so the number of a node tells the step in which it was made, recorded or not.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field
from typing import Any

from chainrule.capture.source import Site
from chainrule.pytorch_internals import _get_sequence_nr

LAST = 4096  # steps that are known


def number_of(node: Any) -> int:
    """Autograd's number of a node: it counts the nodes that a thread makes."""
    return int(node._sequence_nr())


@dataclass
class StepLog:
    """The ends of the last steps, and the lines that made the nodes of the step that was recorded last."""

    made: dict[int, Site] = field(default_factory=dict)  # the number of a node -> the line that made it
    _steps: list[int] = field(default_factory=list)
    _ends: list[int] = field(default_factory=list)  # the number of the first node after each step
    _sites: list[Site | None] = field(default_factory=list)  # of each step's last update

    def end(self, step: int, site: Site | None) -> None:
        """A step has ended with an update at this line."""
        self._steps.append(step)
        self._ends.append(_get_sequence_nr())
        self._sites.append(site)
        if len(self._steps) > 2 * LAST:
            for each in (self._steps, self._ends, self._sites):
                del each[:LAST]

    def step_of(self, node: Any) -> int | None:
        """The earlier step in which a node was made; None if it was made since, or if that is not known."""
        place = bisect_right(self._ends, number_of(node))
        return self._steps[place] if place < len(self._steps) else None

    def update_after(self, node: Any) -> Site | None:
        """The line of the first update after a node was made."""
        place = bisect_right(self._ends, number_of(node))
        return self._sites[place] if place < len(self._sites) else None
