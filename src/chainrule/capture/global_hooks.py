"""PyTorch's tables of process-wide hooks, made safe to change while PyTorch runs through them.

PyTorch calls hooks of optimizers while it iterates over their table. If one is added or removed meanwhile, by a hook or
in another thread, the iteration fails with "OrderedDict mutated during iteration", and with it the training there. A
recording adds and removes hooks in the middle of everything, so importing this module replaces the tables by ones that
are iterated over as copies. PyTorch's own functions and handles work with them as before; a hook that was just removed
may still be called once by who was already iterating.
"""

from __future__ import annotations

from collections import OrderedDict
from types import ModuleType
from typing import Any

from torch.nn.modules import module as modules
from torch.optim import optimizer as optimizers


class HookTable(OrderedDict[int, Any]):
    """Hooks by the ids of their handles."""

    def values(self) -> Any:
        """The hooks at this moment."""
        return list(super().values())

    def items(self) -> Any:
        """The hooks at this moment, with their ids."""
        return list(super().items())


class ContinuedTable(HookTable):
    """A table that continues an `earlier` one: the handles of what was registered before remove it there."""

    earlier: OrderedDict[int, Any]

    def values(self) -> Any:
        """The hooks at this moment."""
        return [*list(self.earlier.values()), *super().values()]

    def items(self) -> Any:
        """The hooks at this moment, with their ids."""
        return [*list(self.earlier.items()), *super().items()]

    def __len__(self) -> int:
        return len(self.earlier) + super().__len__()

    def __contains__(self, key: object) -> bool:
        return super().__contains__(key) or key in self.earlier


def _replace(place: ModuleType, name: str) -> None:
    earlier = getattr(place, name)
    if isinstance(earlier, HookTable):
        return
    table = ContinuedTable() if earlier else HookTable()
    if isinstance(table, ContinuedTable):
        table.earlier = earlier
    setattr(place, name, table)


for _place, _names in (
    (modules, ("_global_forward_pre_hooks", "_global_forward_hooks")),
    (optimizers, ("_global_optimizer_pre_hooks", "_global_optimizer_post_hooks")),
):
    for _name in _names:
        _replace(_place, _name)
