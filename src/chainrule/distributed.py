"""One step of a distributed training on all its ranks: `chainrule.distributed.gather(recording)`."""

from chainrule.monitor.distributed import Combined, Ranks, gather

__all__ = ["Combined", "Ranks", "gather"]
