"""A progress bar for long work: on standard error, if that is a terminal, and removed when the work is done."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module

PATIENCE = 0.5  # seconds before a bar is worth showing


@contextmanager
def bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """Give `progress(done, total)`, which shows a bar on a terminal, unless the work is quick."""
    import_module("chainrule.views")  # which imports rich, and draws no random number
    from rich.console import Console
    from rich.progress import Progress

    console, began = Console(stderr=True), time.monotonic()
    with ExitStack() as shown:
        progress: Progress | None = None

        def show(done: int, total: int) -> None:
            nonlocal progress
            if progress is None and console.is_terminal and time.monotonic() - began > PATIENCE:
                progress = shown.enter_context(Progress(console=console, transient=True))
                progress.add_task(title, total=total)
            if progress is not None:
                progress.update(progress.task_ids[0], completed=done)

        yield show
