"""`chainrule.watch` in the form that other libraries' training loops ask for."""

from chainrule.monitor.callbacks import __all__, __getattr__  # noqa: F401
