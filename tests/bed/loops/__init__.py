"""Faults and healthy runs as loops in this process, beside the programs in tests/bed/faults and tests/bed/healthy.

A loop is a generator: it yields its models once (one, or several by their names), then once after every training step.
`fault` and `healthy` enter a loop into the bed, and `watched` runs it under `chainrule.watch`, as a user would.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from importlib import import_module
from pathlib import Path
from typing import Any

import chainrule

Loop = Callable[[], Generator[Any, None, None]]

FAULTS: dict[str, tuple[str, Loop, int]] = {}
"""Name -> (the id, the loop, the steps that it is run for)."""
HEALTHY: dict[str, Loop] = {}


def fault(id: str, steps: int = 12) -> Callable[[Loop], Loop]:
    """Enter a loop with the finding that must name its fault; most show in a few steps, a course needs more."""

    def enter(loop: Loop) -> Loop:
        FAULTS[loop.__name__] = (id, loop, steps)
        return loop

    return enter


def healthy(loop: Loop) -> Loop:
    """Enter a loop in which nothing above a note may be found."""
    HEALTHY[loop.__name__] = loop
    return loop


def watched(
    loop: Loop, steps: int = 100, each_step: Callable[[chainrule.watch], Any] = lambda watch: None, **options: Any
) -> chainrule.watch:
    """Run a loop for at most so many steps, and close the watch.

    `each_step` is called after every one, and the last is that for which it returns what is true.
    """
    running = loop()
    models = next(running)
    names = models if isinstance(models, dict) else {"model": models}
    with chainrule.watch(names.values(), namespace=names, **options) as watch:
        for _ in range(steps):
            if next(running, running) is running or each_step(watch):
                break
    return watch


for _each in sorted(Path(__file__).parent.glob("*.py")):
    if _each.stem not in ("__init__", "margins"):
        import_module(f"{__name__}.{_each.stem}")
