"""What the recorder asks of an ATen operation before it runs, and others afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from chainrule.pytorch_internals import DispatchKey, _dispatch_has_kernel
from chainrule.rules.facts import PYTORCH, facts_of

_composite = (
    DispatchKey.CompositeExplicitAutograd,
    DispatchKey.CompositeExplicitAutogradNonFunctional,
)
# False for TorchScript's own (`prim.device`), which may not be asked for keys.
_in_dispatcher = _dispatch_has_kernel


@dataclass(frozen=True, slots=True)
class Traits:
    """What the recorder asks of an operation: of its schema, and of its facts where the schema is silent.

    A `silent` one is bookkeeping (the profiler's marks). A `composite` one calls other operations, below autograd;
    one that `casts` would do so under autocast.
    """

    writes: tuple[tuple[int, str], ...]
    views: bool
    random: bool
    silent: bool
    elementwise: bool
    detaches: bool
    sets_zero: bool
    uncounted: bool  # what it writes does not count in the version of what it overwrites
    composite: bool
    casts: bool
    in_one_part: bool  # it writes to the memory of one operand, and changes no shape
    part_written: Callable[[dict[str, Any]], tuple[Any, ...]] | None

    @classmethod
    @cache
    def of(cls, func: Any) -> Traits:
        """Read the traits off the operation's schema and facts."""
        facts = facts_of(str(func))
        writes = tuple(
            (i, a.name)
            for i, a in enumerate(func._schema.arguments)
            if (a.alias_info is not None and a.alias_info.is_write) or a.name in facts.undeclared_writes
        )
        views = facts.undeclared_view or any(
            r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns
        )
        return cls(
            writes,
            views,
            # A user's own operator may draw inside, unseen.
            random=torch.Tag.nondeterministic_seeded in func.tags or func.namespace not in PYTORCH,
            silent=func.namespace == "profiler",
            elementwise=facts.bypassable and not writes and not views,
            detaches=facts.detaches and not writes,
            sets_zero=facts.sets_zero,
            uncounted=facts.uncounted,
            composite=_in_dispatcher(func.name()) and any(map(func.has_kernel_for_dispatch_key, _composite)),
            casts=facts.casts_inside,
            in_one_part=len(writes) == 1 and torch.Tag.inplace_view not in func.tags,
            part_written=facts.part_written,
        )

    def written(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Any]:
        """The arguments that the operation will overwrite."""
        for position, name in self.writes:
            yield args[position] if position < len(args) else kwargs.get(name)
