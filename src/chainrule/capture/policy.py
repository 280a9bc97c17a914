"""How much of a step is kept, from the arguments of `record`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from chainrule.errors import RecordingError

MEMORY = 4 * 2**30  # bytes of values and gradients that are kept by default


@dataclass(frozen=True)
class Policy:
    """How much of a step is kept: everything, statistics alone, or statistics but for modules that match a pattern.

    Beyond `memory` bytes the rest is kept as statistics.
    """

    everything: bool
    patterns: tuple[str, ...] = ()
    memory: float = float("inf")

    @classmethod
    def of(cls, keep: str | Sequence[str] | None, memory: int | None) -> Policy:
        """From the arguments of `record`. Raises RecordingError for any other value."""
        if memory is not None and (isinstance(memory, bool) or not isinstance(memory, int) or memory < 0):
            raise RecordingError(
                f"record(memory={memory!r}): the memory is a number of bytes, such as 2 * 2**30 for two gibibytes."
            )
        if keep is None:
            return cls(True, memory=default_memory() if memory is None else memory)
        limit = float("inf") if memory is None else memory
        if keep == "all" or keep == "statistics":
            return cls(keep == "all", memory=limit)
        if isinstance(keep, str) or not all(isinstance(each, str) for each in keep):
            raise RecordingError(
                f'record(keep={keep!r}): say "all", "statistics", or a list of patterns of module paths such as '
                '["h.3.*", "lm_head"].'
            )
        return cls(False, tuple(keep), limit)


def default_memory() -> int:
    """How much is kept by default: 4 GiB, or a quarter of the machine's memory where that is less."""
    try:
        return min(MEMORY, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4)
    except (AttributeError, OSError, ValueError):  # this system does not say
        return MEMORY
