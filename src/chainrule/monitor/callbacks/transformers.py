"""Watching a `transformers.Trainer`."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from chainrule.monitor.watcher import watch


class TransformersCallback(TrainerCallback):
    """Watches the training of a `transformers.Trainer`; takes the options of `chainrule.watch`.

    Trainer(..., callbacks=[chainrule.callbacks.TransformersCallback(every=50, to="run.db")])

    Steps are numbered as the Trainer's `global_step`; a run resumed from a checkpoint goes on with its own. `watch` is
    the watch while it trains, and stays readable afterwards.
    """

    def __init__(self, **options: Any) -> None:
        self.options = options
        self.watch: watch | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Begin to watch."""
        if state.is_world_process_zero:
            self.watch = watch(kwargs["model"], kwargs["optimizer"], **{"start": state.global_step, **self.options})

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """See a step that a GradScaler left out."""
        if self.watch is not None:
            self.watch.step()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Watch no longer."""
        if self.watch is not None:
            self.watch.close()
