"""Watching a `lightning.Trainer`."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from chainrule.monitor.watcher import watch


class LightningCallback(Callback):
    """Watches the training of a `lightning.Trainer`; takes the options of `chainrule.watch`.

    Trainer(..., callbacks=[chainrule.callbacks.LightningCallback(every=50, to="run.db")])

    Steps are numbered as the Trainer's `global_step`; a run resumed from a checkpoint goes on with its own. `watch` is
    the watch while it trains, and stays readable afterwards.
    """

    def __init__(self, **options: Any) -> None:
        self.options = options
        self.watch: watch | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to watch."""
        if trainer.is_global_zero:
            scaler = getattr(trainer.precision_plugin, "scaler", None)
            options = {"start": trainer.global_step, "scaler": scaler, **self.options}
            self.watch = watch(pl_module, trainer.optimizers, **options)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """See a step that a GradScaler left out."""
        if self.watch is not None:
            self.watch.step()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Watch no longer."""
        if self.watch is not None:
            self.watch.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Watch no longer, and keep why."""
        if self.watch is not None:
            self.watch.close(f"{type(exception).__name__}: {exception}")
