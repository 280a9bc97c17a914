"""Which value of a leaf its gradients belong to.

A leaf may be initialised inside the block, and be updated there, by hand or by an optimizer: it is several values, and
autograd, which knows it by one `AccumulateGrad`, does not tell them apart.
"""

from __future__ import annotations

from torch import Tensor

from chainrule.capture.lowering.operations import Reading
from chainrule.graph.graph import references


class Leaves:
    """Answers once the whole tape has been read: it takes all uses to tell the first."""

    def __init__(self, reading: Reading) -> None:
        self._values = reading.values
        operations = (each for each in reading.operations if each.node is not None)
        self.used = {value for each in operations for _, _, value in references(each.arguments)}

    def of(self, tensor: Tensor, before: int | None = None) -> int | None:
        """The value of a leaf that gradients belong to; with `before` the last one by then, as an optimizer met it."""
        versions = self._values.versions.get(id(tensor))
        if versions is None:
            return None
        if before is not None:
            earlier = [v for v in versions if v in self.used and self._values[v].created < before]
            if earlier:
                return earlier[-1]
        return self.first_used(versions[0])

    def first_used(self, value: int) -> int:
        """Of all values that this one's tensor was, the first that a node was made with."""
        versions = self._values.versions[id(self._values[value].tensor)]
        return next((each for each in versions if each in self.used), versions[0])
