"""Python's garbage collector, kept out of work that only builds.

The collector starts whenever there are some hundred more containers than before, and now and then walks through all
that live. Work that makes many objects and lets go of none pays for walks that cannot find anything: up to as much
again as the work itself, and the more, the larger the graph. Only pure functions of ours are held out of it, which run
none of the user's code and end; the collector is put back as it was, also after an error. It is one switch for the
process: for so long, cycles that other threads leave behind wait, which harms nobody.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def gc_paused() -> Iterator[None]:
    """No garbage collection in the block, or in the function that this decorates (which must be no generator)."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


class FewerCollections:
    """Fewer collections while a step is recorded, from `begin` to `end`.

    All that is recorded stays until the end, so a collection goes over it again and again in vain: in a chain of
    100,000 operations that took more than half of the time. The user's own cycles are still found, but only once there
    are 50,000 new containers, in place of some hundreds.
    """

    THRESHOLD = 50_000

    def __init__(self) -> None:
        self._before = self._meanwhile = (0, 0, 0)

    def begin(self) -> None:
        """Collect less often; not at all stays not at all."""
        first, *later = self._before = gc.get_threshold()
        if first:
            gc.set_threshold(max(first, self.THRESHOLD), *later)
        self._meanwhile = gc.get_threshold()

    def end(self) -> None:
        """As before; unless somebody else has meanwhile said how often."""
        if gc.get_threshold() == self._meanwhile:
            gc.set_threshold(*self._before)
