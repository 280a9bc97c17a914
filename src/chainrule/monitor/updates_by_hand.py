"""Sees that parameters are changed by no optimizer of torch.optim: by hand, or by an optimizer of another kind."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from chainrule.capture.data_parallel import own_part
from chainrule.capture.module_tree import parameters_of
from chainrule.capture.rounds import living
from chainrule.graph.reexecution import unobserved
from chainrule.graph.snapshot import has_numbers
from chainrule.graph.statistics import part_of
from chainrule.pytorch_internals import _DisableFuncTorch

PARAMETERS = 16  # that are compared, spread evenly over all


class UpdatesByHand:
    """Whether parameters have changed since the last look, judged by a few elements of them.

    Before an optimizer of torch.optim has stepped, it is not known whether there is one. A change counts only if no
    such optimizer holds the parameters: one that perturbs them between two passes (SAM) would seem to update them. But
    if such an optimizer never steps, its `CHANGES`-th change counts.
    """

    CHANGES = 8

    def __init__(self, models: Callable[[], Iterable[nn.Module]]) -> None:
        self._models = models
        self._seen: list[tuple[Tensor, Tensor]] = []
        self._changes = 0
        self.known = False  # that this training updates by hand

    def begin(self, root: nn.Module | None) -> None:
        """Look at the parameters of the models, or of the one that runs."""
        models = [*self._models()] or ([] if root is None else [root])
        with unobserved():
            trained = [each for model in models for each in parameters_of(model) if each.requires_grad]
            trained = [each for each in trained if has_numbers(own_part(each))]
        self._seen = [(each, some_bits(each)) for each in trained[:: max(1, len(trained) // PARAMETERS)]]

    def forget(self) -> None:
        """An optimizer of torch.optim has stepped: what changed until now is its work."""
        self._seen = []

    def look(self) -> bool:
        """Whether an update by hand has ended a training step."""
        changed = False
        for place, (parameter, before) in enumerate(self._seen):
            now = some_bits(parameter)
            if not same_bits(now, before):
                self._seen[place], changed = (parameter, now), True
        if not changed or self.known:
            return changed
        self._changes += 1
        self.known = self._changes >= self.CHANGES or not self._belong_to_an_optimizer()
        return self.known

    def _belong_to_an_optimizer(self) -> bool:
        """Whether the process has an optimizer of torch.optim that holds one of them, and whose steps call hooks."""
        mine = {id(parameter) for parameter, _ in self._seen}
        return any(
            id(parameter) in mine
            for each in living()
            if getattr(type(each).step, "hooked", False)
            for group in each.param_groups
            for parameter in group["params"]
        )


def some_bits(parameter: Tensor) -> Tensor:
    """A copy of some of its numbers, as bytes: a NaN equals itself."""
    with unobserved(), _DisableFuncTorch():  # what is made inside of `vmap` has no memory
        return part_of(own_part(parameter)).view(torch.uint8)


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether these are the same."""
    with unobserved(), _DisableFuncTorch():
        return torch.equal(one, other)
