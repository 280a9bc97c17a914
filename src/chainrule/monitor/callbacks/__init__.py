"""`chainrule.watch` in the form that other libraries' training loops ask for; each is imported when it is used.

    TransformersCallback    for `transformers.Trainer(callbacks=[...])`
    LightningCallback       for `lightning.Trainer(callbacks=[...])`
    watch_accelerate        for a loop of one's own with `accelerate`

All take the options of `chainrule.watch` (`every=`, `to=`, ...). Of several processes the main one watches.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from chainrule.errors import MissingError

if TYPE_CHECKING:
    from chainrule.monitor.callbacks.accelerate import watch_accelerate
    from chainrule.monitor.callbacks.lightning import LightningCallback
    from chainrule.monitor.callbacks.transformers import TransformersCallback

__all__ = ["LightningCallback", "TransformersCallback", "watch_accelerate"]

_homes = {"LightningCallback": "lightning", "TransformersCallback": "transformers", "watch_accelerate": "accelerate"}


def __getattr__(name: str) -> Any:
    if name not in _homes:
        raise AttributeError(f"module 'chainrule.callbacks' has no attribute {name!r}; it has {', '.join(__all__)}")
    library = _homes[name]
    try:
        module = import_module(f"{__name__}.{library}")
    except ModuleNotFoundError as error:
        raise MissingError(
            f"chainrule.callbacks.{name} needs {library}, which is not installed: pip install {library}"
        ) from error
    return getattr(module, name)
