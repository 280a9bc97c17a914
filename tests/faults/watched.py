"""Runs a script of the bed under `chainrule.watch`, as a user would.

A script is a generator: it yields its models once (one, or several by their names), then once after every training
step.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

import chainrule

Script = Callable[[], Generator[Any, None, None]]


def watched(
    script: Script, steps: int = 100, each_step: Callable[[chainrule.watch], Any] = lambda watch: None, **options: Any
) -> chainrule.watch:
    """Run a script for at most so many steps, and close the watch.

    `each_step` is called after every one, and the last is that for which it returns what is true.
    """
    running = script()
    models = next(running)
    names = models if isinstance(models, dict) else {"model": models}
    with chainrule.watch(names.values(), namespace=names, **options) as watch:
        for _ in range(steps):
            if next(running, running) is running or each_step(watch):
                break
    return watch
