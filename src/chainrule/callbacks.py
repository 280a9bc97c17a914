"""`chainrule.watch` as callbacks of other libraries' training loops."""

from chainrule.monitor.callbacks import __all__, __dir__, __getattr__  # noqa: F401
