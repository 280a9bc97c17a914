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
def uncollected() -> Iterator[None]:
    """No garbage collection in the block, or in the function that this decorates (which must be no generator)."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()
