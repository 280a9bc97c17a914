"""`chainrule.watch` as callbacks of other libraries' training loops; each library is imported on first use.

    TransformersCallback    for `transformers.Trainer(callbacks=[...])`
    LightningCallback       for `lightning.Trainer(callbacks=[...])`
    watch_accelerate        for your own loop with `accelerate`

Plug-ins may add others (see `chainrule.plugins`). All take the options of `chainrule.watch` (`every=`, `to=`, ...). Of
several processes the main one watches.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

from chainrule import plugins
from chainrule.errors import MissingError, brief

if TYPE_CHECKING:
    from accelerate import Accelerator
    from lightning.pytorch import LightningModule, Trainer
    from transformers import TrainerState

    from chainrule.monitor.watcher import watch

__all__ = ["LightningCallback", "TransformersCallback", "watch_accelerate"]  # noqa: F822 (made on first use)


class _Watching:
    """Watches the training of a Trainer, with the options of `chainrule.watch`.

    Trainer(..., callbacks=[chainrule.callbacks.LightningCallback(every=50, to="run.db")])

    Steps have the numbers of the Trainer's `global_step`; a run resumed from a checkpoint continues them. `watch` is
    the watch of the training, and stays readable after it.
    """

    def __init__(self, **options: Any) -> None:
        self.options = options
        self.watch: watch | None = None

    def _begin(self, model: Any, optimizers: Any, **options: Any) -> None:
        from chainrule.monitor.watcher import watch  # imports torch

        self.watch = watch(model, optimizers, **{**options, **self.options})

    def _step(self, *args: Any, **kwargs: Any) -> None:
        """Store a step that a GradScaler skipped."""
        if self.watch is not None:
            self.watch.step()

    def _end(self, *args: Any, **kwargs: Any) -> None:
        if self.watch is not None:
            self.watch.close()


class _LightningHooks(_Watching):
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            scaler = getattr(trainer.precision_plugin, "scaler", None)
            self._begin(pl_module, trainer.optimizers, start=trainer.global_step, scaler=scaler)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if self.watch is not None:
            self.watch.close(f"{type(exception).__name__}: {exception}")

    on_train_batch_end = _Watching._step
    on_train_end = _Watching._end


class _TransformersHooks(_Watching):
    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self._begin(kwargs["model"], kwargs["optimizer"], start=state.global_step)

    on_step_end = _Watching._step
    on_train_end = _Watching._end


def watch_accelerate(
    accelerator: Accelerator, model: Any, optimizer: Any, **options: Any
) -> AbstractContextManager[watch | None]:
    """Watch a model from `accelerator.prepare`: `with watch_accelerate(accelerator, model, optimizer, to="run.db"):`.

    Takes the options of `chainrule.watch`. The model, the optimizers and the accelerator's GradScaler are watched
    inside their wrappers; the micro-batches of `accelerator.accumulate` are one step. In a process other than the main
    one nothing is watched, and the block yields None.
    """
    from chainrule.monitor.watcher import watch  # imports torch

    if not accelerator.is_main_process:
        return nullcontext()
    models = model if isinstance(model, (list, tuple)) else [model]
    inside = [accelerator.unwrap_model(each, keep_torch_compile=False) for each in models]
    return watch(inside, optimizer, **{"scaler": accelerator.scaler, **options})


_TRAINERS = {
    "LightningCallback": ("lightning.pytorch", "Callback", _LightningHooks),
    "TransformersCallback": ("transformers", "TrainerCallback", _TransformersHooks),
}


def __getattr__(name: str) -> Any:
    if name in plugins.offered("callbacks") and name not in __all__:
        try:
            return plugins.load_one(plugins.offered("callbacks")[name])
        except Exception as error:
            raise MissingError(f"{plugins.described('callbacks', name)} cannot be loaded: {brief(error)}") from error
    if name not in __all__:
        raise AttributeError(f"module 'chainrule.callbacks' has no attribute {name!r}; it has {', '.join(__dir__())}")
    library = _TRAINERS[name][0].partition(".")[0] if name in _TRAINERS else "accelerate"
    try:
        import_module(library)
        return _callback(name) if name in _TRAINERS else watch_accelerate
    except ModuleNotFoundError as error:
        raise MissingError(
            f"chainrule.callbacks.{name} needs {library}, which is not installed: pip install {library}"
        ) from error


def __dir__() -> list[str]:
    return [*__all__, *plugins.offered("callbacks")]


@cache
def _callback(name: str) -> type:
    """A class that the library's Trainer accepts: our hooks on its base class, under a public name, for pickle."""
    library, base, hooks = _TRAINERS[name]
    public = {"__doc__": _Watching.__doc__, "__module__": "chainrule.callbacks"}
    return type(name, (hooks, getattr(import_module(library), base)), public)
