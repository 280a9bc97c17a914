"""Watching a training loop of one's own with `accelerate`."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from accelerate import Accelerator

from chainrule.monitor.watcher import watch


def watch_accelerate(
    accelerator: Accelerator, model: Any, optimizer: Any, **options: Any
) -> AbstractContextManager[watch | None]:
    """Watch what `accelerator.prepare` gave: `with watch_accelerate(accelerator, model, optimizer, to="run.db"):`.

    Takes the options of `chainrule.watch`. The model and the optimizers are watched inside their wrappers, together
    with the accelerator's GradScaler; micro-batches of `accelerator.accumulate` are one step. In other processes than
    the main one nothing is watched, and the block gives None.
    """
    if not accelerator.is_main_process:
        return nullcontext()
    models = model if isinstance(model, (list, tuple)) else [model]
    inside = [accelerator.unwrap_model(each, keep_torch_compile=False) for each in models]
    return watch(inside, optimizer, **{"scaler": accelerator.scaler, **options})
