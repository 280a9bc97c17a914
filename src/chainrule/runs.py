"""Files of whole runs: `chainrule.runs.open("run.db")` reads what `chainrule.watch(..., to="run.db")` wrote."""

from chainrule.monitor.runs import Figure, Found, Recorded, Run, Tensor, Writer, is_run, open

__all__ = ["Figure", "Found", "Recorded", "Run", "Tensor", "Writer", "is_run", "open"]
