"""Backpropagation, worked out: every derivative of one ordinary PyTorch training step, with formula, numbers and proof.

with chainrule.record() as recording:
    output = model(X)
    cost = F.binary_cross_entropy(output, Y)
    cost.backward()
    optimizer.step()

recording.show()
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from chainrule._version import __version__
from chainrule.errors import ChainruleError
from chainrule.gc_control import gc_paused

if TYPE_CHECKING:
    from chainrule import callbacks, distributed, runs
    from chainrule.assertions import assert_causal, assert_independent
    from chainrule.diagnostics.thresholds import Thresholds
    from chainrule.explain_step import explain
    from chainrule.monitor.watcher import watch
    from chainrule.recording import Recording, load, record
    from chainrule.verify_function import verify

__all__ = [
    "ChainruleError",
    "Recording",
    "Thresholds",
    "__version__",
    "assert_causal",
    "assert_independent",
    "callbacks",
    "distributed",
    "explain",
    "load",
    "record",
    "runs",
    "verify",
    "watch",
]

_homes = {
    "assert_causal": "chainrule.assertions",
    "assert_independent": "chainrule.assertions",
    "explain": "chainrule.explain_step",
    "verify": "chainrule.verify_function",
    "Thresholds": "chainrule.diagnostics.thresholds",
    "watch": "chainrule.monitor.watcher",
}


def load_ipython_extension(ipython: Any) -> None:
    """What `%load_ext chainrule` runs: gives the notebook the cell magic `%%chainrule`."""
    import_module("chainrule.magic").register(ipython)


def __getattr__(name: str) -> Any:
    # PyTorch takes over a second to import: `chainrule --help` and the views, which need none of it, do without.
    if name in ("runs", "callbacks", "distributed"):
        return import_module(f"chainrule.{name}")
    if name in __all__:
        with gc_paused():  # or the collector walks through all of PyTorch meanwhile
            return getattr(import_module(_homes.get(name, "chainrule.recording")), name)
    raise AttributeError(f"module 'chainrule' has no attribute {name!r}; it has {', '.join(__all__)}")
