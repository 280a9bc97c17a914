"""Files of whole runs: `chainrule.runs.open("run.db")` reads what `chainrule.watch(..., to="run.db")` wrote.

run = chainrule.runs.open("run.db")
run.losses()                                  # [(1, 2.3), (51, 1.9), ...]
run.series("parameter gradient", "fc1.weight")
run.findings()
run.frame("update")                           # a DataFrame

Reading needs no torch. docs/runs.md describes the tables.
"""

from chainrule.monitor.runs.found import Found
from chainrule.monitor.runs.reader import Recorded, Tensor
from chainrule.monitor.runs.run import Run, is_run, open
from chainrule.monitor.runs.writer import Figure, Writer

__all__ = ["Figure", "Found", "Recorded", "Run", "Tensor", "Writer", "is_run", "open"]
